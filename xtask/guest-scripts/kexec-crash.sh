# Debian's kdump-config and Fedora's kdumpctl, word for word, and a panic.

line=$(echo '@COMMAND_LINE@' | sed 's/kleap_lab.role=second/kleap_lab.role=capture/')
cat /payload/initrd /lab/dump-tools.cpio >/tmp/initrd

crash_loaded() {
    found=$(cat /sys/kernel/kexec_crash_loaded)
    [ "$found" = "$1" ] || finish fail "kexec_crash_loaded is $found, not $1, after: $2"
}

[ "$(kexec --print-ckr-size)" -gt 0 ] || finish fail 'no memory for a crash kernel'
kdump_load() {
    quietly /sbin/kexec "$@" --command-line="$line maxcpus=1 reset_devices" --initrd=/tmp/initrd /payload/Image
    crash_loaded 1 "kexec $*"
    loaded 0 "kexec $*"
}
kdump_load -p
fails 1 kexec -S
fails 1 kexec --status -p
fails 0 kexec -S -l
quietly /sbin/kexec -p -u
crash_loaded 0 'kexec -p -u'
fails 0 kexec -S
# As kdump-config does where /sys/firmware/efi says Secure Boot, and kdumpctl by default.
fails 253 /sbin/kexec -p -s --command-line=x --initrd=/tmp/initrd /payload/Image
fails 253 /sbin/kexec -s -p -u
kdump_load -c -p
# A kernel for a reboot beside it, and gone again: they do not touch each other.
quietly kexec -l /payload/Image --append=x
loaded 1 'kexec -l'
crash_loaded 1 'kexec -l'
quietly kexec -u
crash_loaded 1 'kexec -u'
kdump_load --load-panic
echo "token-of-the-crashed-kernel=$token" >/dev/kmsg
say executing
echo c >/proc/sysrq-trigger
finish fail 'this kernel did not panic'
