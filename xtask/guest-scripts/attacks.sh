# What the attacks share. $command_line is what the second kernel must be given.

image=/payload/Image
initrd=/payload/initrd

# Loads what the second kernel checks.
load() {
    run kleap load $image --initrd $initrd --command-line "$command_line" "$@"
}

# Goes. Does not come back, unless `exec` refuses; its exit code is in $code then.
go() {
    say "executing"
    run kleap exec
}

# Sets the machine up for `kleap-guest fragment`: transparent huge pages are taken only where they are
# free, and can be split.
fragmentation() {
    mount -t debugfs debugfs /sys/kernel/debug
    echo never >/sys/kernel/mm/transparent_hugepage/defrag
    if [ -e /lab/loop.ko ]; then
        page_cache
    fi
}

# Makes /dev/loop0, whose pages are page cache when they are read: a loop device on a file of holes. What
# is in a tmpfs is no page cache that the kernel could drop, and these machines have no disk.
page_cache() {
    insmod /lab/loop.ko || finish fail "no loop devices"
    truncate -s 8G /run/cache.img
    losetup -r /dev/loop0 /run/cache.img || finish fail "no loop device"
    echo 1024 >/sys/block/loop0/queue/read_ahead_kb
}

# Mounts the disk that holds the payload.
mount_disk() {
    for module in virtio virtio_ring virtio_mmio virtio_blk nls_cp437 nls_ascii fat vfat; do
        # Some kernels have the first two built in.
        [ -e /lab/$module.ko ] || continue
        insmod /lab/$module.ko || finish fail "no $module"
    done
    mount -t vfat -o ro /dev/vda1 /payload || finish fail "no disk"
}

# Processes that keep what is loaded pinned.
holders() {
    for process in /proc/[0-9]*; do
        case "$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)" in
        @kleap*) echo "${process#/proc/}" ;;
        esac
    done
}

# Whether the block of memory with this number is one of $2.
is_in() {
    case " $2 " in
    *" $1 "*) return 0 ;;
    esac
    return 1
}

# Numbers of the blocks of memory (/sys/devices/system/memory) in which something loaded lies.
loaded_blocks() {
    block_bytes=$((0x$(cat /sys/devices/system/memory/block_size_bytes)))
    for address in $(kleap-guest migrate addresses); do
        echo $((address / block_bytes))
    done | sort -n | uniq
}

memory_blocks() {
    ls -d /sys/devices/system/memory/memory[0-9]* | sed 's/.*memory//' | sort -n
}
