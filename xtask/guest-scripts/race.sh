# $rivals loads at a time, $count times, by $seed. What the last time loaded is executed.

run kleap-guest race-trials "$seed" "$count" "$rivals" $image $initrd "$command_line"
[ $code = 0 ] || finish fail "loads at one time got into each other's way"
run kleap status
go
finish fail "kleap exec came back with $code"
