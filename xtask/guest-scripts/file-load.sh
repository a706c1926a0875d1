# `--strategy kernel` where kexec_load(2) is forbidden and kexec_file_load(2) is there: the hand-over of a
# kernel that nobody but the kernel places, with memory of the CMA or without.

mount -t securityfs securityfs /sys/kernel/security
@FORBID@
cma_free_kb() {
    awk '/^CmaFree/ { print $2 }' /proc/meminfo
}
# Image, as it is in memory, and initrd, in pages of 4 KiB. A packed one does not say the former.
initrd_bytes=$(stat -c %s /payload/initrd)
payload_kb=$(((initrd_bytes + 4095) / 4096 * 4))
if [ '@PACKED@' = no ]; then
    memory_bytes=$(od -A n -t u8 -j 16 -N 8 /payload/Image)
    payload_kb=$((payload_kb + (memory_bytes + 4095) / 4096 * 4))
fi
total_kb=$(awk '/^CmaTotal/ { print $2 }' /proc/meminfo)
before_kb=$(cma_free_kb)
refuse '@REASON@' -- @PREFIX@ kleap load /payload/Image --initrd /payload/initrd --command-line '@COMMAND_LINE@'
must @PREFIX@ kleap load /payload/Image --initrd /payload/initrd --strategy kernel \
    --command-line '@COMMAND_LINE@' 2>/run/loaded
cat /run/loaded
grep -q 'loaded by kexec_file_load(2) instead' /run/loaded || finish fail 'load does not say who loaded it'
[ "$(cat /sys/kernel/kexec_loaded)" = 1 ] || finish fail 'the kernel has nothing loaded'
taken_kb=$((before_kb - $(cma_free_kb)))
say "cma total_kb=$total_kb taken_kb=$taken_kb payload_kb=$payload_kb"
if [ "$total_kb" = 0 ]; then
    [ $taken_kb = 0 ] || finish fail 'memory was taken of a CMA that is not there'
else
    # The device tree as well, so more than these.
    [ $taken_kb -gt $payload_kb ] || finish fail "of the CMA only $taken_kb KiB were taken"
fi
# Taken back as load says, also where nothing is left to take, and given once more by kexec's words.
must @PREFIX@ kleap kexec -s -u
[ "$(cat /sys/kernel/kexec_loaded)" = 0 ] || finish fail 'kexec -s -u left it loaded'
must @PREFIX@ kleap kexec -u
must @PREFIX@ kleap kexec -p -u
must @PREFIX@ kleap unload --panic
@PREFIX@ kleap kexec -c -u && finish fail 'kexec -c -u has used the other system call'
must @PREFIX@ kleap kexec -s -l /payload/Image --initrd=/payload/initrd --append='@COMMAND_LINE@'
[ "$(cat /sys/kernel/kexec_loaded)" = 1 ] || finish fail 'kexec -s -l has loaded nothing'
say executing
run kleap-guest reboot-kexec
finish fail 'the reboot came back'
