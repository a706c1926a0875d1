# Loads in memory that was made fragmented, $count of them from number $first on, by $seed.

fragmentation
# The counters that the trials compare are those of a machine that has loaded before.
load
[ $code = 0 ] || finish fail "the load was refused before anything was fragmented: $code"
must kleap unload
run kleap-guest fragment-trials "$seed" "$count" "$first" \
    $image --initrd $initrd --command-line "$command_line" --strategy auto
[ $code = 0 ] || finish fail "a load in fragmented memory did not end as it must"
finish ok
