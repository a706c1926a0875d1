# Asks $count loads to end, by $seed.

run kleap-guest interrupt-trials "$seed" "$count" $image --initrd $initrd --command-line "$command_line"
[ $code = 0 ] || finish fail "a load that was asked to end left something behind, or did not say so"
finish ok
