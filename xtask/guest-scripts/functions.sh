# Used by the scripts of both kernels.

say() {
    echo "KLEAP-LAB: $*"
}

# The value of kleap_lab.NAME on the kernel's command line.
word() {
    for argument in $(cat /proc/cmdline); do
        case "$argument" in
        "kleap_lab.$1="*) echo "${argument#*=}" ;;
        esac
    done
}

# finish ok | finish fail REASON: prints the verdict and ends the machine.
finish() {
    if [ "$1" = ok ]; then
        say "token=$token verdict=ok"
    else
        shift
        say "token=$token verdict=fail reason=$*"
    fi
    poweroff -f
    # Until the machine is off.
    sleep 60
}

# Runs a command with its output on the console; its exit code is kept in $code.
run() {
    say "run $*"
    "$@"
    code=$?
    say "exit $code"
    return $code
}

# Runs a command that must succeed.
must() {
    run "$@" || finish fail "'$*' failed with exit code $code"
}

# refuse PATTERN... -- COMMAND...: the command must fail, say something that matches each pattern,
# and leave the machine as it was.
refuse() {
    : >/run/patterns
    while [ "$1" != -- ]; do
        echo "$1" >>/run/patterns
        shift
    done
    shift
    before=$(state)
    say "run $*"
    "$@" >/run/output 2>&1
    code=$?
    cat /run/output
    say "exit $code"
    [ $code -ne 0 ] || finish fail "'$*' succeeded, but must be refused"
    [ $code -lt 128 ] || finish fail "'$*' died of a signal: exit code $code"
    while read -r pattern; do
        grep -qiE -e "$pattern" /run/output || finish fail "the refusal does not say '$pattern'"
    done </run/patterns
    after=$(state)
    [ "$before" = "$after" ] || finish fail "the refusal changed the machine: $before, then $after"
}

# Memory that is available, as the kernel says it.
available_kb() {
    sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo
}

# What a command that did nothing must not have changed.
state() {
    echo "kexec_loaded=$(cat /sys/kernel/kexec_loaded) $(kleap-guest hugepages | tr '\n' ' ')"
}

# What is wrong with what arrived, collected.
reasons=

fail() {
    reasons="$reasons$*; "
}

# What kleap says of the hand-over that led here, for the harness to read.
show_report() {
    say "report-begin"
    kleap report || fail "kleap report failed with exit code $?"
    say "report-end"
    say "json-begin"
    kleap report --json || fail "kleap report --json failed with exit code $?"
    say "json-end"
}

# Messages by which a kernel says that it was not entered as it should be.
check_log() {
    suspicious='violation of boot protocol|misaligned|memory probably corrupted|Booted with MMU enabled|BUG|Oops|WARNING'
    if dmesg | grep -E "$suspicious" >/run/suspicious; then
        sed 's/^/KLEAP-LAB: suspicious: /' /run/suspicious
        fail "the kernel complains: $(head -n 1 /run/suspicious)"
    fi
}

check_cpus() {
    online=$(nproc)
    say "cpus=$online $(cat /sys/devices/system/cpu/online)"
    expected=$(word cpus)
    [ "$online" = "$expected" ] || fail "$online CPUs are online, not $expected"
}

# The initrd, where this kernel was told that it lies.
check_initrd() {
    expected=$(word initrd_sha256)
    # What follows kleap_lab.initrd_bytes, where that is given, is padding.
    if digest=$(kleap-guest initrd-digest $(word initrd_bytes)); then
        say "initrd $digest"
        case "$digest" in
        "sha256=$expected "*) ;;
        *) fail "the initrd is not the one that was loaded, $expected" ;;
        esac
    else
        fail "the initrd could not be read"
    fi
}

# The kernel has used the seeds in its device tree and wiped them. One that uses ACPI shows no tree.
check_seeds() {
    chosen=/proc/device-tree/chosen
    [ ! -e $chosen/rng-seed ] || fail "the device tree still has a seed for the random number generator"
    if [ -e $chosen/kaslr-seed ] && [ -n "$(tr -d '\0' <$chosen/kaslr-seed)" ]; then
        fail "the device tree still has a seed for KASLR"
    fi
}
