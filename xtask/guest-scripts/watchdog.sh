# A watchdog runs when this kernel hands over. Nobody serves it in the second kernel, which has no driver for
# it, waits for longer than it would, and powers off.

heartbeat_s=60
wait_s=180

must insmod /lab/i6300esb.ko heartbeat=$heartbeat_s
(while echo; do sleep 1; done) >/dev/watchdog &
sleep 2
must kleap load /payload/Image --initrd /payload/initrd \
    --command-line "console=ttyAMA0 earlycon panic=1 rdinit=/bin/sh -- -c \"/bin/sleep $wait_s; /bin/poweroff -f\""
kleap status >/run/status
cat /run/status
kleap status --json | grep -A 7 '"watchdogs"'
grep -q "$EXPECTED" /run/status || finish fail "status does not say '$EXPECTED'"
say executing
run kleap exec
finish fail 'kleap exec came back'
