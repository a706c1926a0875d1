# Memory is added while the machine runs, put online by $online; nothing of what is loaded may lie in
# it. With $offline=yes it is taken away again while something is loaded.

old_blocks=$(memory_blocks | tr '\n' ' ')
grep 'System RAM' /proc/iomem >/run/iomem-before
# Newer kernels are set to put it online themselves, where it may be in use at once.
echo offline >/sys/devices/system/memory/auto_online_blocks || finish fail "no auto_online_blocks"
say "monitor object_add memory-backend-ram,id=added,size=1G"
say "monitor device_add pc-dimm,id=dimm,memdev=added"
waited=0
while [ "$(memory_blocks | tr '\n' ' ')" = "$old_blocks" ]; do
    [ $waited -lt 120 ] || finish fail "no memory was added: this kernel ignores it"
    sleep 1
    waited=$((waited + 1))
done
# All of them, not only the first.
sleep 3
hot_blocks=
for block in $(memory_blocks); do
    is_in "$block" "$old_blocks" && continue
    hot_blocks="$hot_blocks $block"
    state=/sys/devices/system/memory/memory$block/state
    [ "$(cat $state)" = offline ] || finish fail "block $block is $(cat $state) already"
    echo "$online" >$state || finish fail "block $block cannot be put online"
done
say "hot blocks:$hot_blocks zones: $(cat /sys/devices/system/memory/memory${hot_blocks##* }/valid_zones)"
say "ACPI's name for it: $(readlink /sys/devices/system/memory/memory${hot_blocks##* }/firmware_node)"
say "System RAM that is new: $(grep 'System RAM' /proc/iomem | grep -vxFf /run/iomem-before | tr '\n' ';')"
grep MemTotal /proc/meminfo

# Nothing of what is loaded may lie in what was added.
judge() {
    found=$(loaded_blocks | tr '\n' ' ')
    say "what is loaded lies in the blocks $found"
    [ -n "$found" ] || finish fail "no addresses"
    for block in $found; do
        is_in "$block" "$hot_blocks" && finish fail "what is loaded lies in block $block, which was added"
    done
}

load
[ $code = 0 ] || finish fail "the load was refused: $code"
run kleap status
judge

if [ "$offline" = yes ]; then
    gone=0
    kept=0
    for block in $hot_blocks; do
        if echo offline >/sys/devices/system/memory/memory$block/state; then
            gone=$((gone + 1))
        else
            kept=$((kept + 1))
        fi
    done
    boot_gone=0
    boot_kept=0
    for block in $old_blocks; do
        if echo offline >/sys/devices/system/memory/memory$block/state; then
            boot_gone=$((boot_gone + 1))
        else
            boot_kept=$((boot_kept + 1))
        fi
    done
    say "offline: of the blocks added $gone went, $kept stayed; of the others $boot_gone went, $boot_kept stayed"
    [ $gone -gt 0 ] || finish fail "nothing was taken offline, so nothing was tried"
    run kleap status
fi

go
[ $code = 8 ] || finish fail "kleap exec ended with $code, not with 8"
say "refused: loading again"
load
[ $code = 0 ] || finish fail "the second load was refused: $code"
judge
go
finish fail "kleap exec came back with $code, after a second load"
