# Pages are moved behind the command's back, by $how, with $pins=yes or no.

load
[ $code = 0 ] || finish fail "the load was refused: $code"
run kleap status
found=$(holders | tr '\n' ' ')
say "holders: $found"
if [ "$pins" = yes ]; then
    [ -n "$found" ] || finish fail "nobody holds the pages"
else
    for process in $found; do
        kill -9 "$process"
    done
    waited=0
    while [ -n "$(holders)" ]; do
        [ $waited -lt 20 ] || finish fail "the holder does not die: $(holders)"
        sleep 1
        waited=$((waited + 1))
    done
fi
# Room for the pages that are moved.
pool=/sys/kernel/mm/hugepages/hugepages-2048kB
cat $pool/nr_hugepages $pool/free_hugepages
run kleap-guest migrate $how >/run/migrated 2>&1
cat /run/migrated
moved=$(sed -n 's/.*moved=\([0-9]*\) .*/\1/p' /run/migrated)
[ -n "$moved" ] || finish fail "the attack did not work"
say "moved=$moved"
if [ "$pins" = yes ]; then
    [ "$moved" = 0 ] || finish fail "$moved pages moved although they were pinned"
else
    [ "$moved" -gt 0 ] || finish fail "no page moved, so nothing was tried"
fi
# Either it goes, and what arrives is looked at by the second kernel; or it says what has changed.
go
[ $code = 8 ] || finish fail "kleap exec ended with $code, not with 8"
[ "$pins" = no ] || finish fail "pages that nobody moved are said to have changed"
say "refused: loading again"
load
[ $code = 0 ] || finish fail "the second load was refused: $code"
go
finish fail "kleap exec came back with $code, after a second load"
