# The boot CPU is on node 1, where there is room: that is where the pages are to be.

say "cpu0 is on $(ls -d /sys/devices/system/cpu/cpu0/node* | sed 's/.*cpu0.//')"
[ -e /sys/devices/system/cpu/cpu0/node1 ] || finish fail "cpu0 is not on node 1"
load
[ $code = 0 ] || finish fail "the load was refused: $code"
run kleap status
there=0
elsewhere=0
block_bytes=$((0x$(cat /sys/devices/system/memory/block_size_bytes)))
for address in $(kleap-guest migrate addresses); do
    if [ -e /sys/devices/system/node/node1/memory$((address / block_bytes)) ]; then
        there=$((there + 1))
    else
        elsewhere=$((elsewhere + 1))
    fi
done
say "addresses on node 1: $there, elsewhere: $elsewhere"
[ $there -gt 0 ] && [ $elsewhere = 0 ] || finish fail "$elsewhere of $((there + elsewhere)) addresses are not on the boot CPU's node"
go
finish fail "kleap exec came back with $code"
