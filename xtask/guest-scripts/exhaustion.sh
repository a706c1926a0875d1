# Everything that can be lacking, one thing at a time. A load either works, and `unload` gives everything back,
# or it ends with an error that says something, and has left nothing: no huge pages, no file, no process, no
# mount, nothing in the kernel.
#   $extent   short or long

# Everything that a load may not change.
everything() {
    state
    cat /proc/mounts
    ls -R /dev/kleap 2>/dev/null
    # Programs, but for this script and the one that looks.
    ps -o args >/run/ps
    grep -v -e '^\[' -e '^{init}' -e '/init$' -e 'ps -o args' /run/ps | sort
    cat /proc/sys/vm/nr_overcommit_hugepages /proc/sys/vm/overcommit_memory
}

worked=0
refused=0
# Not empty: what a refused load has left may be removed by `kleap unload`.
cleaner=

# Compares with what was before; several looks, because a process that was told to end takes a moment.
unchanged() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        everything >/run/after
        cmp -s /run/before /run/after && return
        usleep 200000
    done
    diff /run/before /run/after
    finish fail "$1 changed the machine"
}

# attempt PREFIX...: a load by way of a program that takes something away; gives its exit code in $code.
attempt() {
    everything >/run/before
    # By way of a pipe: where files may have no size, a file could not hold what is said.
    {
        "$@" kleap load $image --initrd $initrd --command-line x
        echo $? >/run/code
    } 2>&1 | cat >/run/output
    code=$(cat /run/code)
    say "trial {\"lacking\":\"$*\",\"exit_code\":$code,\"failure\":null}"
    if [ $code = 0 ]; then
        grep -i warn /run/output
        worked=$((worked + 1))
        kleap status >/run/status 2>&1 || finish fail "$*: a load that worked has no status"
        must kleap unload >/dev/null
    else
        refused=$((refused + 1))
        cat /run/output
        [ $code -lt 126 ] || finish fail "$*: exit code $code is no refusal"
        grep -q '^kleap: ' /run/output || finish fail "$*: no error is told"
        [ -z "$cleaner" ] || must kleap unload
    fi
    unchanged "$*"
}

# fails CODES PREFIX...: such a load must be refused, with one of these exit codes.
fails() {
    codes=$1
    shift
    attempt "$@"
    case " $codes " in
    *" $code "*) ;;
    *) finish fail "$*: exit code $code, not $codes" ;;
    esac
}

# works PREFIX...: such a load must work.
works() {
    attempt "$@"
    [ $code = 0 ] || finish fail "$*: exit code $code"
}

# What the limit does to a program that does nothing: one that cannot even start proves nothing.
limit() {
    if kleap-guest limited "$1" "$2" kleap --version >/dev/null 2>&1; then
        attempt kleap-guest limited "$1" "$2"
    else
        say "not even --version works with $1 $2"
    fi
}

image=/payload/Image
initrd=/payload/initrd

say "as it is"
works env

say "capabilities"
for capability in 21 22; do # CAP_SYS_ADMIN, CAP_SYS_BOOT
    fails 5 kleap-guest without-capability $capability
done
last=$(cat /proc/sys/kernel/cap_last_cap)
capability=0
while [ "$capability" -le "$last" ]; do
    case "$extent $capability" in
    # CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETPCAP, CAP_IPC_LOCK, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_SYSLOG
    long\ * | 'short 1' | 'short 14' | 'short 24' | 'short 34') attempt kleap-guest without-capability "$capability" ;;
    esac
    capability=$((capability + 1))
done

say "system calls"
for error in ENOSYS EPERM; do
    for call in clone fallocate ftruncate io_uring_setup mount vmsplice; do
        attempt kleap-guest without-syscall $call $error
    done
    [ $extent = long ] || continue
    for call in clone3 fcntl flock fstat getdents64 get_mempolicy inotify_init1 io_uring_register lseek madvise \
        mbind memfd_create mkdirat pipe2 pread64 renameat renameat2 sched_getaffinity sched_setaffinity \
        set_mempolicy setsid statfs statx; do
        attempt kleap-guest without-syscall $call $error
    done
    # Whoever cannot remove anything leaves it to the next command.
    for call in umount2 unlinkat; do
        cleaner=kleap
        attempt kleap-guest without-syscall $call $error
        cleaner=
    done
done

say "limits"
for files in 3 4 6 8; do
    limit NOFILE $files
done
for bytes in 0 4096; do
    limit FSIZE $bytes
done
limit MEMLOCK 0
limit NPROC 1
limit CORE 0
limit AS 30000000
limit DATA 1000000
limit STACK 131072
if [ $extent = long ]; then
    for files in 0 1 2 5 7 9 10 12 16 20; do
        limit NOFILE $files
    done
    for bytes in 1 1000 65536 1000000 100000000; do
        limit FSIZE $bytes
    done
    for bytes in 1000000 4000000 8000000 16000000 60000000 100000000 200000000; do
        limit AS $bytes
    done
    for bytes in 0 100000 4000000 30000000; do
        limit DATA $bytes
    done
    for bytes in 16384 65536 262144; do
        limit STACK $bytes
    done
    limit MEMLOCK 65536
    limit NPROC 0
fi

say "read-only file systems"
mount -o remount,ro /
works env
mount -o remount,rw /
mount -o remount,ro /dev
fails '1 5 6 8' env
mount -o remount,rw /dev

say "no room below /dev"
mount -o remount,size=4k /dev
attempt env
mount -o remount,size=50% /dev
inodes=$(($(find /dev -xdev | wc -l) + 2))
mount -o remount,nr_inodes=$inodes /dev
attempt env
mount -o remount,nr_inodes=0 /dev

say "no huge pages"
mount -t tmpfs tmpfs /sys/kernel/mm
fails '4 6' env
umount /sys/kernel/mm

say "huge pages that others hold"
pool=/sys/kernel/mm/hugepages/hugepages-2048kB
mkdir /run/huge
mount -t hugetlbfs hugetlbfs /run/huge
echo 20 >$pool/nr_hugepages
fallocate -l 40M /run/huge/held || finish fail "nobody else can hold huge pages"
works env
[ "$(cat $pool/nr_hugepages) $(cat $pool/free_hugepages)" = '20 0' ] ||
    finish fail "the load took pages of others: $(cat $pool/nr_hugepages) $(cat $pool/free_hugepages)"
# The rest of memory as well, but for less than a load takes, which leaves more than this to others. Not as far as it
# goes: then this shell has none either, and the kernel ends.
too_little=$((($(stat -c %s $image) + $(stat -c %s $initrd)) / 1024 + 8000))
echo $((20 + ($(available_kb) - too_little) / 2048)) >$pool/nr_hugepages
fallocate -l $(($(cat $pool/free_hugepages) * 2))M /run/huge/rest || finish fail "the rest cannot be held"
fails '6' env
rm /run/huge/held /run/huge/rest
echo 0 >$pool/nr_hugepages
umount /run/huge

say "no memory"
mount -t tmpfs -o size=100% tmpfs /tmp
# Until there is less than the payload takes.
fallocate -l $(($(available_kb) - too_little))K /tmp/filled || finish fail "memory cannot be filled"
fails '6' env
umount /tmp
works env

say "exhaustion worked=$worked refused=$refused"
finish ok
