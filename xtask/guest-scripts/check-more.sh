# After check.sh: a machine, or a process, from which something has been taken.

say "a process that lacks something"
# CAP_SYS_BOOT and CAP_SYS_ADMIN, as linux/capability.h numbers them.
check no-sys-boot kleap-guest without-capability 22
check no-sys-admin kleap-guest without-capability 21
check missing-call kleap-guest without-syscall kexec_load ENOSYS
check forbidden-call kleap-guest without-syscall kexec_load EPERM
check mounts unshare -m
check user-namespace unshare -U -r

say "what is loaded"
must kleap load /payload/Image --command-line x
check loaded

say "who may look at it"
# mode WANTED PATH: as SECURITY.md says.
mode() {
    found=$(stat -c '%a %u:%g' "$2") || finish fail "there is no $2"
    [ "$found" = "$1 0:0" ] || finish fail "$2 has mode $found, not $1 0:0"
}
mode 700 /dev/kleap
mode 600 /dev/kleap/state.json
mode 600 /dev/kleap/pool.json
mode 700 /dev/kleap/pages-2048
mode 600 /dev/kleap/pages-2048/payload-1
for entry in $(find /dev/kleap -mindepth 1); do
    case "$(stat -c '%a' "$entry")" in
    600 | 700) ;;
    *) finish fail "$entry has mode $(stat -c '%a' "$entry")" ;;
    esac
done
grep -E ' /dev/kleap/pages-2048 hugetlbfs [^ ]*nosuid[^ ]*nodev[^ ]*noexec' /proc/mounts ||
    finish fail "the hugetlbfs is not nosuid, nodev and noexec: $(grep kleap /proc/mounts)"
run by_nobody 'cat /dev/kleap/state.json /dev/kleap/pages-2048/payload-1' &&
    finish fail "nobody can read what is loaded"
holder=
for process in /proc/[0-9]*; do
    [ "$(tr '\0' ' ' <"$process/cmdline" | cut -c 1-6)" = "@kleap" ] && holder=$process
done
[ -n "$holder" ] || finish fail "there is no holder"
say "holder $(tr '\0' ' ' <$holder/cmdline)"
[ "$(awk '/^Uid:/ { print $2, $3, $4 }' $holder/status)" = "0 0 0" ] || finish fail "the holder is not root's"
[ -z "$(tr -d '\0' <$holder/environ)" ] || finish fail "the holder has an environment"
for descriptor in $holder/fd/*; do
    target=$(readlink "$descriptor")
    say "holder has $target"
    case "$target" in
    /dev/null | /dev/kleap/pages-2048/payload-1 | pipe:* | anon_inode:*) ;;
    *) finish fail "the holder has $target open" ;;
    esac
done
[ "$(readlink $holder/cwd)" = / ] || finish fail "the holder is in $(readlink $holder/cwd)"
readlink $holder/exe | grep -q '^/memfd:' || finish fail "the holder is $(readlink $holder/exe)"
run by_nobody "cat $holder/environ $holder/maps $holder/mem" && finish fail "nobody can look into the holder"
must kleap load /payload/Image --command-line x --early
mode 600 /dev/kleap/early
must kleap unload
[ ! -e /dev/kleap ] || finish fail "unload left /dev/kleap behind"

say "what somebody else has loaded"
must kleap load /payload/Image --command-line x --strategy kernel
mv /dev/kleap /dev/kept
check loaded-by-another
mv /dev/kept /dev/kleap
must kleap unload

say "a machine that lacks something"
mount -o remount,ro /dev
check read-only-dev
mount -o remount,rw /dev
echo 5 >/proc/sys/kernel/kexec_load_limit_reboot
check limited-calls
[ "$(cat /proc/sys/kernel/kexec_load_limit_reboot)" = 5 ] || finish fail "the check used up a call"
echo 0 >/proc/sys/kernel/kexec_load_limit_reboot
check no-calls
mount -t securityfs securityfs /sys/kernel/security
echo integrity >/sys/kernel/security/lockdown
check locked-down
echo 1 >/proc/sys/kernel/kexec_load_disabled
check disabled
finish ok
