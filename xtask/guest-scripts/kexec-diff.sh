# Every case once by kexec-tools and once by kleap under the name kexec, in one machine: exit code, what the kernel has
# loaded before and after, which stream was written to, and what else happened. Compared from outside.

THEIRS=/bin/kexec
OURS=/lab/as/kexec
mkdir -p /lab/as /sbin /etc /k
ln -s /bin/kleap $OURS
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >>/etc/passwd
chmod 711 /lab
chmod 755 /bin /bin/* /lib /lib/* /k /lab/as

# What `kexec KERNEL` runs when it has loaded.
cat >/sbin/shutdown <<'END'
#!/bin/sh
echo "$@" >/run/shutdown
END
chmod 755 /sbin/shutdown

# Files to be refused, and some that are not.
cp /lab/Image /lab/uImage /lab/vmlinux /k
gzip -c /k/Image >/k/Image.gz
head -c 100000 /bin/busybox | tail -c 65536 >/k/garbage
: >/k/empty
mkdir /k/directory
head -c 40 /k/Image >/k/truncated
dd if=/dev/zero bs=1024 count=64 of=/k/initrd 2>/dev/null
cp /sys/firmware/fdt /k/tree
long=$(head -c 2047 /dev/zero | tr '\0' x)
longer=${long}x

insmod /lab/dummy.ko numdummies=1 || finish fail 'no dummy.ko'
FLAGS=/sys/class/net/dummy0/flags
net() {
    if [ $(($(cat $FLAGS) & 1)) = 1 ]; then echo up; else echo down; fi
}

state_of() {
    echo "$(cat /sys/kernel/kexec_loaded) $(cat /sys/kernel/kexec_crash_loaded) $(net)"
}

nothing_loaded() {
    $OURS -u 2>/dev/null
    kleap unload >/dev/null
    $THEIRS -u
    $THEIRS -p -u
    echo 0x83 >$FLAGS
    rm -f /run/shutdown
    [ "$(state_of)" = "0 0 up" ] || finish fail "cannot begin anew: $(state_of)"
}

# with TOOL AS WORDS...
with() {
    as=$1
    tool=$2
    shift 2
    case $as in
    root) $tool "$@" ;;
    nobody) su -s /bin/sh -c "$tool $*" nobody ;;
    no-reboot) kleap-guest without-syscall reboot EPERM $tool "$@" ;;
    no-kexec) kleap-guest without-syscall kexec_load ENOSYS $tool "$@" ;;
    no-sysfs) unshare -m sh -c 'mount -t tmpfs tmpfs /sys && exec "$@"' sh $tool "$@" ;;
    esac
}

# case_ NAME AS LOADED WORDS...: LOADED is what is loaded before: nothing, kernel or crash.
case_() {
    name=$1
    as=$2
    loaded=$3
    shift 3
    for tool in $THEIRS $OURS; do
        nothing_loaded
        case $loaded in
        nothing) wanted="0 0 up" ;;
        kernel)
            $tool -l /k/Image --append=x >/dev/null 2>&1
            wanted="1 0 up"
            ;;
        crash)
            $tool -p /k/Image --append=x >/dev/null 2>&1
            wanted="0 1 up"
            ;;
        esac
        before=$(state_of)
        [ "$before" = "$wanted" ] || finish fail "$name: $tool did not load what is to be loaded before: $before"
        with $as $tool "$@" >/run/out 2>/run/err </dev/null
        code=$?
        sed 's/^/  out: /' /run/out | head -n 4 | cut -c 1-160
        sed 's/^/  err: /' /run/err | head -n 4 | cut -c 1-160
        out=0 err=0 shutdown=0
        [ -s /run/out ] && out=1
        [ -s /run/err ] && err=1
        [ -e /run/shutdown ] && shutdown=1
        say "diff $name $tool exit=$code out=$out err=$err before=$before after=$(state_of) shutdown=$shutdown"
    done
}

