# A machine that was just booted, with $percent percent of the payload available, because it has no more or because
# the rest is $filled: nothing may be moved. What was moved is judged outside, by the second kernel's report.

if [ -e /lab/vfat.ko ]; then
    mount_disk
else
    # The root of these rows is a ramfs, whose pages cannot be moved, unlike those of files elsewhere.
    mkdir -p /mnt
    mount -t tmpfs -o size=95% tmpfs /mnt
    for file in Image initrd; do
        cp /payload/$file /mnt/$file && rm /payload/$file || finish fail "no room for $file"
    done
    image=/mnt/Image
    initrd=/mnt/initrd
fi
payload=$(($(stat -c %s $image) + $(stat -c %s $initrd)))
available() {
    echo $(($(available_kb) * 1024))
}
# What the boot and the copies have freed becomes available a little later.
for second in 1 2 3 4 5 6 7 8 9 10; do
    if [ "$filled" = yes ]; then
        # All but that much is in use, as on a machine that has work to do.
        megabytes=$((($(available) - payload * percent / 100) / 1048576))
        [ $megabytes -le 0 ] || dd if=/dev/zero bs=1M count=$megabytes >>/mnt/work 2>/dev/null ||
            finish fail "cannot fill $megabytes MiB"
    fi
    available=$(available)
    found=$((available * 100 / payload))
    if [ $found -ge $((percent - 4)) ]; then
        # Unless more can be filled.
        [ "$filled" = yes ] && [ $found -gt $((percent + 4)) ] || break
    fi
    sleep 1
done
say "fresh payload_bytes=$payload available_bytes=$available percent=$found"
# More than that would prove less, and less would prove more than was asked for.
[ $found -ge $((percent - 12)) ] && [ $found -le $((percent + 12)) ] ||
    finish fail "$available bytes are available, $found % of the payload: the row is for $percent %"
before=$(state)
load
if [ "$tight" = yes ] && [ $code = 6 ]; then
    # Memory is too small for any place, and is as it was.
    after=$(state)
    [ "$before" = "$after" ] || finish fail "the refusal changed the machine: $before, then $after"
    finish ok
fi
[ $code = 0 ] || finish fail "the load was refused: $code"
run kleap status
go
finish fail "kleap exec came back with $code"
