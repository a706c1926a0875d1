# The second kernel: what arrived is looked at before anything else runs.

check_log
check_cpus
check_initrd

# A kernel that another program handed over to has none.
if [ "$(word report)" != no ]; then
    show_report
    kleap check >/run/check
    grep -q '^ok  *last-hand-over .*was started by kleap' /run/check ||
        fail "kleap check does not know of the hand-over: $(grep last-hand-over /run/check)"
    check_seeds
fi

if [ -z "$reasons" ]; then
    finish ok
else
    finish fail "$reasons"
fi
