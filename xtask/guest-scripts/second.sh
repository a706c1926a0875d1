# The second kernel: what arrived is looked at before anything else runs.

reasons=

fail() {
    reasons="$reasons$*; "
}

# Messages by which a kernel says that it was not entered as it should be.
suspicious='violation of boot protocol|misaligned|memory probably corrupted|Booted with MMU enabled|BUG|Oops|WARNING'
if dmesg | grep -E "$suspicious" >/run/suspicious; then
    sed 's/^/KLEAP-LAB: suspicious: /' /run/suspicious
    fail "the kernel complains: $(head -n 1 /run/suspicious)"
fi

online=$(nproc)
say "cpus=$online $(cat /sys/devices/system/cpu/online)"
expected=$(word cpus)
[ "$online" = "$expected" ] || fail "$online CPUs are online, not $expected"

expected=$(word initrd_sha256)
if digest=$(kleap-guest initrd-digest); then
    say "initrd $digest"
    case "$digest" in
    "sha256=$expected "*) ;;
    *) fail "the initrd is not the one that was loaded, $expected" ;;
    esac
else
    fail "the initrd could not be read"
fi

say "report-begin"
kleap report || fail "kleap report failed with exit code $?"
say "report-end"
say "json-begin"
kleap report --json || fail "kleap report --json failed with exit code $?"
say "json-end"

if [ -z "$reasons" ]; then
    finish ok
else
    finish fail "$reasons"
fi
