# One hand-over by kexec-tools with kexec_file_load(2): with memory of the CMA where there is enough of it.

cma_free_kb() {
    awk '/^CmaFree/ { print $2 }' /proc/meminfo
}
say "kexec-version $(kexec --version)"
image_bytes=$(stat -c %s /payload/Image)
initrd_bytes=$(stat -c %s /payload/initrd)
say "payload image_bytes=$image_bytes initrd_bytes=$initrd_bytes"
before_kb=$(cma_free_kb)
must kexec -l -s /payload/Image --initrd=/payload/initrd --command-line='@COMMAND_LINE@'
taken_kb=$((before_kb - $(cma_free_kb)))
say "cma total_kb=$(awk '/^CmaTotal/ { print $2 }' /proc/meminfo) taken_kb=$taken_kb"
# If one piece is elsewhere, the kernel copies that, and its tables. More than Image and initrd in whole pages of
# 4 KiB, and so the device tree as well.
memory_bytes=$(od -A n -t u8 -j 16 -N 8 /payload/Image)
two_kb=$(((memory_bytes + 4095) / 4096 * 4 + (initrd_bytes + 4095) / 4096 * 4))
if [ '@OPTIONS@' = cma ]; then
    [ $taken_kb -gt $two_kb ] || finish fail "of the CMA only $taken_kb KiB were taken"
else
    [ $taken_kb = 0 ] || finish fail "$taken_kb KiB of the CMA were taken"
fi
say executing
run kexec -e
finish fail 'kexec -e came back'
