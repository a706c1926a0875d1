# A hand-over from memory that was made fragmented: $kind, $fill percent used, by $seed.

fragmentation
cat >/run/inside.sh <<'END'
. /lab/functions.sh
grep -E 'MemTotal|MemFree|MemAvailable|^Cached' /proc/meminfo
run kleap load "$image" --initrd "$initrd" --command-line "$command_line"
[ $code = 0 ] || finish fail "the load was refused: $code"
run kleap status
say "executing"
run kleap exec
finish fail "kleap exec came back with $code"
END
export image initrd command_line token
run kleap-guest fragment "$kind" "$fill" "$seed" sh /run/inside.sh
finish fail "the fragmented memory is gone"
