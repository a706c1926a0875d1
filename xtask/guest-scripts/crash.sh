# A kernel that panics, with a crash kernel loaded by kleap.

line=$(echo '@COMMAND_LINE@' | sed 's/kleap_lab.role=second/kleap_lab.role=capture/')
grep 'Crash kernel' /proc/iomem | sed 's/^/KLEAP-LAB: /'
before=$(state)
load() {
    must kleap load --panic /payload/Image --initrd /payload/initrd --initrd /lab/dump-tools.cpio \
        --command-line "$line maxcpus=1 reset_devices" @OPTIONS@
    [ "$(cat /sys/kernel/kexec_crash_loaded)" = 1 ] || finish fail "the kernel has no crash kernel"
    [ "$before" = "$(state)" ] || finish fail "the load took more than a crash kernel: $(state), before $before"
}
load
kleap status | tee /run/status
grep -q '^crash kernel  *loaded' /run/status || finish fail "status does not say that a crash kernel is loaded"
must kleap unload --panic
[ "$(cat /sys/kernel/kexec_crash_loaded)" = 0 ] || finish fail "the crash kernel is still loaded"
must kleap unload --panic
load
# Twice: the second replaces the first.
load
echo "token-of-the-crashed-kernel=$token" >/dev/kmsg
say executing
echo c >/proc/sysrq-trigger
finish fail "this kernel did not panic"
