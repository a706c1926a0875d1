# A kernel without huge pages: what is missing is said, with the way out, and the way out works.

[ ! -e /sys/kernel/mm/hugepages ] || finish fail 'this kernel has huge pages'
for strategy in auto in-place relocate; do
    kleap load /payload/Image --initrd /payload/initrd --strategy $strategy \
        --command-line '@COMMAND_LINE@' >/run/output 2>&1
    code=$?
    cat /run/output
    [ $code = 4 ] || finish fail "--strategy $strategy ends with exit code $code, not 4"
    grep -q 'no huge pages of 2097152 bytes (CONFIG_HUGETLBFS)' /run/output ||
        finish fail "--strategy $strategy does not say what is missing"
    grep -q -e '--strategy kernel' /run/output || finish fail "--strategy $strategy does not say what works"
    [ ! -e /dev/kleap ] || finish fail "--strategy $strategy leaves /dev/kleap behind"
    [ "$(cat /sys/kernel/kexec_loaded)" = 0 ] || finish fail "--strategy $strategy leaves a kernel loaded"
done
must kleap load /payload/Image --initrd /payload/initrd --strategy kernel --command-line '@COMMAND_LINE@'
must kleap status
must kleap unload
[ "$(cat /sys/kernel/kexec_loaded)" = 0 ] || finish fail 'unload leaves the kernel loaded'
must kleap load /payload/Image --initrd /payload/initrd --strategy kernel --command-line '@COMMAND_LINE@'
say executing
run kleap exec
finish fail 'kleap exec came back'
