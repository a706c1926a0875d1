# One kernel of a chain of hand-overs: look at what arrived, then hand over to the next.
#
# Every kernel is given the same initrd, byte for byte: it holds all Images of the chain, and each kernel
# takes the one that it was given itself, out of memory, for the next. So what the last one finds has been
# through every hand-over, and memory can be compared.
#   kleap_lab.hop=N           how many hand-overs led here
#   kleap_lab.hops=N          how many there are to be
#   kleap_lab.kernels=A,B,C   the kernels in turn, files below /chain
#   kleap_lab.fault=WHAT      for `kleap exec --inject-fault`, with the variant that has it

hop=$(word hop)
hops=$(word hops)
fault=$(word fault)

# turn N: the name of the kernel after N hand-overs.
turn() {
    names=$(word kernels | tr ',' ' ')
    set -- $(($1 % $(echo $names | wc -w) + 1)) $names
    eval "echo \$$(($1 + 1))"
}

# Memory that the kernel has set aside within System RAM.
reserved_kb() {
    total=0
    for range in $(grep '^  .*: reserved$' /proc/iomem | sed 's/ : .*//'); do
        total=$((total + 0x${range#*-} - 0x${range%-*} + 1))
    done
    echo $((total / 1024))
}

kernel=$(turn "$hop")
# What follows a dash is the flavour, which is last in the release.
case "$(uname -r)-" in
"${kernel%%-*}".*"-${kernel#*-}-") ;;
"$kernel".*) ;;
*) fail "this is Linux $(uname -r), not $kernel" ;;
esac
check_log
check_cpus
check_initrd
if [ "$hop" -gt 0 ]; then
    kleap report --json >/run/report.json || fail "kleap report failed with exit code $?"
    grep -E '"(redistributors|lpis_.*)"' /run/report.json | tr -d '\n'
    echo
fi
dmesg | grep -E 'GICv3: .*(preallocated|property table|pending table)'
say "hop=$hop kernel=$kernel mem_total_kb=$(awk '/^MemTotal/ { print $2 }' /proc/meminfo)" \
    "reserved_kb=$(reserved_kb) reservations=$(grep -c ': reserved$' /proc/iomem)" \
    "page_kb=$(awk '/^KernelPageSize/ { print $2; exit }' /proc/self/smaps)"
[ -z "$reasons" ] || finish fail "after $hop hand-overs: $reasons"
[ "$hop" -lt "$hops" ] || finish ok

next=$((hop + 1))
# UEFI adds a word of its own to the first kernel's.
line=$(sed -e "s/kleap_lab.hop=$hop/kleap_lab.hop=$next/" -e 's/ initrd=initrd//' /proc/cmdline)
must kleap-guest initrd-copy /run/initrd
must kleap load "/chain/$(turn $next)" --initrd /run/initrd --strategy "$(word strategy)" \
    --command-line "$line"
rm /run/initrd
say executing
run kleap exec ${fault:+--inject-fault $fault}
finish fail 'kleap exec came back'
