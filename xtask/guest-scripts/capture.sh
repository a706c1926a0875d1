# The crash kernel: the memory of the one that panicked must be there, for a tool that people use.

check_log
[ -s /proc/vmcore ] || fail "there is no /proc/vmcore"
say "vmcore $(stat -c %s /proc/vmcore) bytes, $(grep MemTotal /proc/meminfo)"
# is_log FILE WHO: whether it is the log of the kernel that panicked.
is_log() {
    grep -q "token-of-the-crashed-kernel=$token" "$1" || fail "$2 finds a log that is not of the kernel that panicked"
    grep -q 'sysrq: Trigger a crash' "$1" || fail "$2 finds a log that does not end with the panic"
}

run vmcore-dmesg /proc/vmcore >/run/vmcore-dmesg
[ $code = 0 ] || fail "vmcore-dmesg cannot read the log: $(tail -n 1 /run/vmcore-dmesg)"
is_log /run/vmcore-dmesg vmcore-dmesg

if run makedumpfile --dump-dmesg /proc/vmcore /run/dmesg >/run/makedumpfile 2>&1; then
    is_log /run/dmesg makedumpfile
    # Kernel pages only, compressed: as kdump-tools does.
    run makedumpfile -c -d 31 /proc/vmcore /run/dump || fail "makedumpfile cannot save the memory"
    say "dump $(stat -c %s /run/dump) bytes"
    run makedumpfile --dump-dmesg /run/dump /run/dmesg-of-dump || fail "makedumpfile cannot read its own dump"
    cmp /run/dmesg /run/dmesg-of-dump || fail "the log in the dump is another one"
elif grep -q 'PAGE SIZE 0x1000 and VA Bits 52 not supported' /run/makedumpfile; then
    say "makedumpfile does not know this kernel's address space"
    run dd if=/proc/vmcore of=/dev/null bs=1M || fail "/proc/vmcore cannot be read to its end"
else
    fail "makedumpfile cannot read the log: $(tail -n 3 /run/makedumpfile)"
fi

if [ "$(word report)" != no ]; then
    show_report
fi

if [ -z "$reasons" ]; then
    finish ok
else
    finish fail "$reasons"
fi
