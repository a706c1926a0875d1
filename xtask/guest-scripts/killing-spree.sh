# What systemd-shutdown does before it enters what is loaded: every process is asked to end and then killed, but for PID 1
# and those whose name begins with @; then what can be unmounted is. $how=exec is a hand-over after that by kleap, $how=reboot
# one by reboot(2) alone, as systemd-shutdown does it.

# Whether process $1 is one that is spared: PID 1, a thread of the kernel's, or one with an @.
is_spared() {
    [ "$1" != 1 ] || return 0
    case "$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null)" in
    '' | @*) return 0 ;;
    esac
    return 1
}

# Sends signal $1 to everybody who is not spared.
spree() {
    for process in /proc/[0-9]*; do
        is_spared "${process#/proc/}" || kill "-$1" "${process#/proc/}" 2>/dev/null
    done
}

# One that only SIGKILL ends.
sh -c 'trap "" TERM; while :; do sleep 1; done' &
victim=$!
early=
[ "$how" = exec ] || early=--early
load $early
[ $code = 0 ] || finish fail "the load was refused: $code"
found=$(holders | tr '\n' ' ')
say "holders: $found"
[ -n "$found" ] || finish fail "nobody holds the pages"
spree TERM
sleep 1
[ -d /proc/$victim ] || finish fail "SIGTERM has ended who ignores it"
spree KILL
waited=0
while [ -d /proc/$victim ] && ! grep -q '^State:.*Z' /proc/$victim/status; do
    [ $waited -lt 20 ] || finish fail "the spree kills nobody"
    sleep 1
    waited=$((waited + 1))
done
[ "$(holders | tr '\n' ' ')" = "$found" ] || finish fail "the spree has ended those who hold the pages: $(holders)"
# All but the kernel's own, as systemd-shutdown leaves them.
while read -r _ place _; do
    case "$place" in
    / | /dev | /dev/* | /proc | /proc/* | /sys | /sys/*) ;;
    *) umount "$place" || finish fail "cannot unmount $place" ;;
    esac
done </proc/mounts
say executing
if [ "$how" = exec ]; then
    run kleap exec
    finish fail "kleap exec came back with $code"
fi
run kleap-guest reboot-kexec
finish fail 'the reboot came back'
