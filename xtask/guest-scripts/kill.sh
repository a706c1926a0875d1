# Kills $count loads, by $seed.

run kleap-guest kill-trials "$seed" "$count" $image --initrd $initrd --command-line "$command_line"
[ $code = 0 ] || finish fail "a killed load left something behind"
finish ok
