# One kernel of a long run of hand-overs: look at what arrived, then do what the plan says next.
#
# The plan is a file in the initrd that every kernel is given, one line for each kernel:
#   NUMBER KERNEL STRATEGY PADDING_MB OFFLINE
# After NUMBER hand-overs it is KERNEL that runs; it came with STRATEGY, with so many MB of padding behind its initrd,
# and OFFLINE are the CPUs that had been stopped before ("-" for none).
#   kleap_lab.hop=N           how many hand-overs led here
#   kleap_lab.initrd_bytes=N  the initrd without its padding

hop=$(word hop)
initrd_bytes=$(word initrd_bytes)

# plan N: the plan's line for the kernel after N hand-overs, without the number.
plan() {
    sed -n "s/^$1 //p" /chain/plan
}

set -- $(plan "$hop")
kernel=$1 strategy=$2 padding_mb=$3
case "$(uname -r)" in
"$kernel".*) ;;
*) fail "this is Linux $(uname -r), not $kernel" ;;
esac
check_log
check_cpus
check_initrd
# The pages of the initrd are kept, and so they are not in MemTotal; how many they are differs.
page_kb=$(awk '/^Hugepagesize/ { print ($2 == 2048) ? 4 : 16 }' /proc/meminfo)
kept_kb=$((((initrd_bytes + padding_mb * 1048576 + page_kb * 1024 - 1) / (page_kb * 1024)) * page_kb))
total_kb=$(($(awk '/^MemTotal/ { print $2 }' /proc/meminfo) + kept_kb))
moved=-
if [ "$hop" -gt 0 ]; then
    kleap report --json >/run/report.json || fail "kleap report failed with exit code $?"
    moved=$(sed -n 's/^ *"moved_bytes": *\([0-9]*\).*/\1/p' /run/report.json)
    hugepages=$(kleap-guest hugepages | tr '\n' ' ')
fi
say "hop=$hop kernel=$kernel mem_total_kb=$total_kb reserved_kb=0 page_kb=$page_kb strategy=$strategy padding_mb=$padding_mb" \
    "moved_bytes=$moved"
[ -z "$reasons" ] || finish fail "after $hop hand-overs: $reasons"

next=$((hop + 1))
set -- $(plan "$next")
[ $# -gt 0 ] || finish ok
kernel=$1 strategy=$2 padding_mb=$3 offline=$4
line=$(sed -e "s/kleap_lab.hop=$hop/kleap_lab.hop=$next/" /proc/cmdline)
must kleap-guest initrd-copy /run/initrd "$initrd_bytes"
truncate -s $((initrd_bytes + padding_mb * 1048576)) /run/initrd
case "$offline" in
-) ;;
*)
    for cpu in $(echo "$offline" | tr ',' ' '); do
        echo 0 >"/sys/devices/system/cpu/cpu$cpu/online" || finish fail "CPU $cpu cannot be stopped"
    done
    ;;
esac
load() {
    run kleap load "/chain/$kernel" --initrd /run/initrd --command-line "$line" "$@"
}
case "$strategy" in
early) load --early ;;
*) load --strategy "$strategy" ;;
esac
# In place or not at all: where there is no place, that is an answer.
if [ $code = 6 ] && [ "$strategy" = in-place ]; then
    say "refused hop=$next strategy=$strategy"
    load --strategy auto
fi
[ $code = 0 ] || finish fail "kleap load failed with exit code $code"
rm /run/initrd
say executing
case "$strategy" in
early) run kleap-guest reboot-kexec ;;
*) run kleap exec ;;
esac
finish fail 'the hand-over came back'
