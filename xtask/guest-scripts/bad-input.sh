# Everything that a user can get wrong: a message, the documented exit code, an unchanged machine.

# expect CODE PATTERN... -- COMMAND...: refused with this exit code, and nothing is left behind.
expect() {
    wanted=$1
    shift
    refuse "$@"
    [ "$code" = "$wanted" ] || finish fail "'$*' ended with exit code $code, not $wanted"
    [ ! -e /dev/kleap ] || finish fail "'$*' left /dev/kleap behind"
}

image=/payload/Image
initrd=/payload/initrd
mkdir -p /etc
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >>/etc/passwd

say "arguments"
expect 2 'usage|subcommand' -- kleap
expect 2 'unexpected|unrecognized' -- kleap load --no-such-option $image
expect 2 'required' -- kleap load
expect 2 'cannot be used with' -- kleap load $image --command-line a --reuse-cmdline
expect 2 'invalid value' -- kleap load $image --strategy sideways

expect 2 'required' -- kleap hold
expect 2 'unexpected' -- kleap check --no-such-option

say "nothing loaded"
expect 7 'nothing is loaded' -- kleap exec
expect 7 'not started by kleap' -- kleap report
must kleap unload
must kleap status
must kleap status --json

say "privileges"
expect 5 'CAP_SYS_BOOT' -- su -s /bin/sh -c "kleap load $image" nobody
expect 5 'CAP_SYS_BOOT' -- su -s /bin/sh -c "kleap exec" nobody

say "a kernel without kexec"
expect 4 'CONFIG_KEXEC' -- kleap-guest without-syscall kexec_load ENOSYS kleap load $image
expect 5 'CAP_SYS_BOOT|not permitted|lockdown' -- kleap-guest without-syscall kexec_load EPERM kleap load $image

say "limits of this process"
limited() {
    sh -c "ulimit $1; shift; exec kleap load $image"
}
expect 1 'too many open files' -- limited '-n 3'
# Enough to read the kernel, and not for the pages that it goes to.
expect 6 'ulimit -v' -- limited "-v $(($(stat -c %s $image) / 1024 + 9000))"

say "a limit of the control group"
mkdir /tmp/cgroup
mount -t cgroup2 cgroup2 /tmp/cgroup || finish fail "no control groups"
say "controllers: $(cat /tmp/cgroup/cgroup.controllers)"
if grep -q hugetlb /tmp/cgroup/cgroup.controllers; then
    echo +hugetlb >/tmp/cgroup/cgroup.subtree_control
    mkdir /tmp/cgroup/few
    echo 4194304 >/tmp/cgroup/few/hugetlb.2MB.max
    in_group() {
        sh -c "echo \$\$ >/tmp/cgroup/few/cgroup.procs && exec kleap load $image"
    }
    expect 6 'control group' -- in_group
    rmdir /tmp/cgroup/few
fi
umount /tmp/cgroup

say "somebody else has the lock"
kleap-guest lock &
locker=$!
sleep 1
kill -STOP $locker
kleap load $image --command-line x >/run/output 2>&1 &
waiter=$!
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    grep -q waiting /run/output || sleep 1
done
cat /run/output
grep -q "waiting for process $locker (kleap-guest, stopped)" /run/output ||
    finish fail "a load that waits says: $(cat /run/output)"
kill -KILL $locker
wait $waiter || finish fail "a load that had waited failed: $(cat /run/output)"
must kleap unload

say "files that are no kernel"
expect 3 'no such file' -- kleap load /no/such/file
expect 3 'directory' -- kleap load /tmp
expect 3 'regular file' -- kleap load /dev/zero
mknod /tmp/fifo p
expect 3 'regular file' -- kleap load /tmp/fifo
expect 3 'regular file' -- kleap load $image --initrd /tmp/fifo
expect 3 'regular file' -- kleap load $image --dtb /tmp/fifo
: >/tmp/empty
expect 3 'empty' -- kleap load /tmp/empty
head -c 100 $image >/tmp/k
expect 3 'Image|truncated|ends|cut' -- kleap load /tmp/k
size=$(stat -c %s $image)
for length in 63 64 4096 1000000 $((size / 2)) $((size - 4096)) $((size - 1)); do
    head -c "$length" $image >/tmp/k
    expect 3 '/tmp/k' -- kleap load /tmp/k
done
{
    head -c 510 /dev/zero
    printf '\125\252\353\146HdrS'
    head -c 100000 /dev/zero
} >/tmp/k
expect 3 'x86' -- kleap load /tmp/k
gzip -c /tmp/k >/tmp/k.gz
expect 3 'x86' -- kleap load /tmp/k.gz
head -c 3000000 $image | gzip -1 >/tmp/k.gz
expect 3 '/tmp/k.gz' -- kleap load /tmp/k.gz
head -c 100000 /tmp/k.gz >/tmp/k
expect 3 '/tmp/k' -- kleap load /tmp/k

say "every byte of the header"
cp $image /tmp/k
byte=0
while [ $byte -lt 64 ]; do
    old=$(dd if=$image bs=1 skip=$byte count=1 2>/dev/null | od -An -tu1 | tr -d ' ')
    new=$((old ^ 255))
    printf "\\$(printf %o $new)" | dd of=/tmp/k bs=1 seek=$byte conv=notrunc 2>/dev/null
    expect 3 '/tmp/k' -- kleap load /tmp/k
    printf "\\$(printf %o "$old")" | dd of=/tmp/k bs=1 seek=$byte conv=notrunc 2>/dev/null
    byte=$((byte + 1))
done
cmp $image /tmp/k || finish fail "the test did not restore the header"
rm -f /tmp/k /tmp/k.gz

say "initrd"
expect 3 'no such file' -- kleap load $image --initrd /no/such/file
expect 3 'regular file' -- kleap load $image --initrd /tmp
expect 3 'regular file' -- kleap load $image --initrd /dev/zero
expect 3 'empty' -- kleap load $image --initrd /tmp/empty
truncate -s 8G /tmp/huge
expect 6 'not enough memory' -- kleap load $image --initrd /tmp/huge
truncate -s 100G /tmp/huge
expect 3 'larger than' -- kleap load $image --initrd /tmp/huge
rm /tmp/huge

say "command line"
long=$(head -c 2048 /dev/zero | tr '\0' x)
expect 3 '2047' -- kleap load $image --command-line "$long"
expect 3 '2047' -- kleap load $image --append "$long"
expect 3 '2047' -- kleap load $image --reuse-cmdline --append "$long"

say "device tree"
expect 3 'no such file' -- kleap load $image --dtb /no/such/file
expect 3 'larger than 2097152' -- kleap load $image --dtb $image
head -c 5000 $image >/tmp/dtb
expect 3 'device tree.*/tmp/dtb' -- kleap load $image --dtb /tmp/dtb
expect 3 '/tmp/empty' -- kleap load $image --dtb /tmp/empty
head -c 1000 /sys/firmware/fdt >/tmp/dtb
expect 3 '/tmp/dtb' -- kleap load $image --dtb /tmp/dtb
cat /sys/firmware/fdt >/tmp/dtb
printf '\377\377\377\377' | dd of=/tmp/dtb bs=1 seek=200 conv=notrunc 2>/dev/null
printf '\377\377\377\377' | dd of=/tmp/dtb bs=1 seek=8 conv=notrunc 2>/dev/null
expect 3 '/tmp/dtb' -- kleap load $image --dtb /tmp/dtb

say "a kernel that is not what was signed"
cp $image /tmp/k
printf 'x' | dd of=/tmp/k bs=1 seek=5000000 conv=notrunc 2>/dev/null
expect 3 'not what was signed' -- kleap load /tmp/k

say "a kernel larger than memory"
# 1 GiB of memory by its header, in both places where it is said, on a machine with less; and no signature.
cp $image /tmp/k
printf '\0\0\0\0\0\0\0\0' | dd of=/tmp/k bs=1 seek=232 conv=notrunc 2>/dev/null
printf '\0\0\0\100' | dd of=/tmp/k bs=1 seek=16 conv=notrunc 2>/dev/null
printf '\0\0\0\100' | dd of=/tmp/k bs=1 seek=144 conv=notrunc 2>/dev/null
expect 6 'not enough memory' -- kleap load /tmp/k
rm /tmp/k

say "a second load replaces the first, or leaves it"
empty=$(state)
must kleap load $image --initrd $initrd --command-line first
held=$(state)
kleap status --json >/run/status-1
refuse '/tmp' -- kleap load /tmp --command-line second
refuse 'empty' -- kleap load $image --initrd /tmp/empty --command-line second
truncate -s 8G /tmp/huge
refuse 'not enough memory' -- kleap load $image --initrd /tmp/huge --command-line second
rm /tmp/huge
kleap status --json | cmp - /run/status-1 || finish fail "a failed second load changed the first"
must kleap load $image --initrd $initrd --command-line second
kleap status --json >/run/status-2
grep -q '"command_line": "second"' /run/status-2 || finish fail "the second load did not replace the first"
[ "$(state)" = "$held" ] || finish fail "two loads hold more than one: $(state), one holds $held"
must kleap unload
[ "$(state)" = "$empty" ] || finish fail "unload did not give everything back: $(state), before $empty"
[ ! -e /dev/kleap ] || finish fail "unload left /dev/kleap behind"

say "nobody listens, or nobody can"
must kleap load $image --command-line first
kleap status >/dev/full
[ $? = 1 ] || finish fail "status to a full disk did not end with 1"
kleap status --json | true
kleap exec >/dev/full &
victim=$!
kill -9 $victim 2>/dev/null
wait $victim
must kleap unload
[ "$(state)" = "$empty" ] || finish fail "after a killed exec: $(state), before $empty"

say "other mounts, other users of huge pages, damaged notes"
pool=/sys/kernel/mm/hugepages/hugepages-2048kB
expect 4 'mount' -- unshare -m kleap load $image
echo 10 >$pool/nr_hugepages
kept=$(state)
must kleap load $image --command-line x
[ "$(cat $pool/free_hugepages)" = 10 ] || finish fail "the load took pages that were set aside"
must kleap unload
[ "$(state)" = "$kept" ] || finish fail "the pool is not as it was: $(state), before $kept"
must kleap load $image --command-line x
rm /dev/kleap/pages-2048/*
kleap status >/run/output
cat /run/output
grep -q 'the payload is gone' /run/output || finish fail "status does not say that the payload is gone"
grep -qE 'held|pinned' /run/output && finish fail "status speaks of pages that are gone"
run kleap exec
[ $code = 8 ] || finish fail "exec without a payload ended with $code"
echo 7 >/dev/kleap/state.json
run kleap status
[ $code = 1 ] || finish fail "a damaged note: status ended with $code"
must kleap unload
[ "$(state)" = "$kept" ] || finish fail "the pool is not as it was: $(state), before $kept"
mkdir /dev/kleap
echo '{"boot_id":"another","before":0,"added":26}' >/dev/kleap/pool.json
must kleap unload
[ "$(state)" = "$kept" ] || finish fail "the note of another boot took pages away: $(state)"
echo 0 >$pool/nr_hugepages

say "no room for notes"
kept=$(state)
must kleap load $image --command-line first
kleap status --json >/run/status-1
mount -o remount,ro /dev
refuse 'read-only' -- kleap load $image --command-line second
run kleap status
mount -o remount,rw /dev
kleap status --json | cmp - /run/status-1 || finish fail "a load that could not be noted changed the first"
echo 7 >/dev/kleap/pool.json
must kleap unload
[ ! -e /dev/kleap ] || finish fail "unload with a damaged note left /dev/kleap behind"
# What the note said is lost: these are the pages that unload has warned of.
for size in /sys/kernel/mm/hugepages/*; do
    echo 0 >$size/nr_hugepages
done
[ "$(state)" = "$kept" ] || finish fail "the pool is not as it was: $(state), before $kept"

say "asked to end"
# All that a load changes, without a kleap command that could put it back.
changed() {
    state
    cat /proc/sys/vm/watermark_boost_factor /proc/sys/vm/percpu_pagelist_high_fraction 2>/dev/null
    ls -R /dev/kleap 2>&1
    grep hugetlbfs /proc/mounts
}
changed >/run/kept
ended=0
for signal in INT HUP TERM; do
    for delay in 0.2 0.3 0.4 0.5 0.6 0.7 0.8 1 1.2 1.5; do
        run timeout -s $signal $delay kleap load $image --command-line x
        case "$signal$code" in
        INT130 | HUP129 | TERM143) ended=$((ended + 1)) ;;
        # Done before it was asked.
        INT0 | HUP0 | TERM0) must kleap unload ;;
        *) finish fail "asked to end by SIG$signal after $delay s: exit code $code" ;;
        esac
        changed >/run/now
        cmp -s /run/kept /run/now || {
            diff /run/kept /run/now
            finish fail "asked to end by SIG$signal after $delay s, it left something"
        }
    done
done
[ $ended -ge 3 ] || finish fail "only $ended loads were asked before they were done"

say "settings of the kernel that a killed load has changed"
# A load that ended between its note and its end, as it is noted there.
killed() {
    mkdir -m 700 /dev/kleap
    echo "{\"boot_id\":\"$(cat /proc/sys/kernel/random/boot_id)\",\"$2\":$was}" >/dev/kleap/pool.json
    echo $3 >/proc/sys/vm/$1
}
settings=0
for setting in "watermark_boost_factor boost_factor 0" "percpu_pagelist_high_fraction high_fraction 2147483647"; do
    set -- $setting
    # The second one is in kernels from 5.14 on.
    [ -e /proc/sys/vm/$1 ] || continue
    settings=$((settings + 1))
    was=$(cat /proc/sys/vm/$1)
    killed $setting
    must kleap status
    [ "$(cat /proc/sys/vm/$1)" = "$was" ] || finish fail "$1 was not put back"
    [ ! -e /dev/kleap ] || finish fail "a note stayed that nobody needs"
    killed $setting
    echo 4711 >/proc/sys/vm/$1
    must kleap unload
    [ "$(cat /proc/sys/vm/$1)" = 4711 ] || finish fail "$1 is somebody else's now, and was changed"
    killed $setting
    mount -o bind /proc/sys/vm/$1 /proc/sys/vm/$1 && mount -o remount,bind,ro /proc/sys/vm/$1 ||
        finish fail "$1 cannot be made read-only"
    must kleap unload
    [ "$(cat /proc/sys/vm/$1)" = "$3" ] || finish fail "$1 was changed although it is read-only"
    grep -q "$2" /dev/kleap/pool.json || finish fail "what $1 was is no longer noted"
    umount /proc/sys/vm/$1
    must kleap unload
    [ "$(cat /proc/sys/vm/$1)" = "$was" ] || finish fail "$1 was not put back later"
    [ ! -e /dev/kleap ] || finish fail "a note stayed that nobody needs"
done
[ $settings -gt 0 ] || finish fail "this kernel has none of these settings"

say "lockdown, then the sysctl: neither can be undone"
mount -t securityfs securityfs /sys/kernel/security
if [ -e /sys/kernel/security/lockdown ]; then
    echo integrity >/sys/kernel/security/lockdown
    expect 5 'lockdown' -- kleap load $image
else
    finish fail "this kernel has no lockdown"
fi
echo 1 >/proc/sys/kernel/kexec_load_disabled
expect 5 'kexec_load_disabled' -- kleap load $image
expect 5 'kexec_load_disabled' -- kleap exec
finish ok
