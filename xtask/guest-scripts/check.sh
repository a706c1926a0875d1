# `kleap check`: what it says, by root and by nobody, and that it changes nothing. What it says is judged from
# outside.

mkdir -p /etc
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
echo 'nobody:x:65534:65534:nobody:/:/bin/sh' >>/etc/passwd

# check NAME [COMMAND...]: runs `kleap check --json`, by COMMAND where there is one.
check() {
    name=$1
    shift
    "$@" kleap check --json >/run/check.json 2>/run/check.err
    code=$?
    [ ! -s /run/check.err ] || finish fail "check $name said on standard error: $(cat /run/check.err)"
    say "check-begin $name $code"
    cat /run/check.json
    say "check-end"
}

by_nobody() {
    su -s /bin/sh -c "$*" nobody
}

# unchanged WHAT: nothing is different from /run/before.
unchanged() {
    kleap-guest snapshot >/run/after || finish fail "no snapshot"
    if ! cmp -s /run/before /run/after; then
        # Lines that only one of the two has.
        sort /run/before /run/after | uniq -u >/run/difference
        sed 's/^/KLEAP-LAB: different: /' /run/difference
        finish fail "$1 changed something: $(head -n 1 /run/difference)"
    fi
}

# seen KIND: a difference of this kind was noticed.
seen() {
    kleap-guest snapshot | sort - /run/before | uniq -u | grep -q "^$1 " || finish fail "a change of $1 was not noticed"
}

say "what it says"
check root
case $code in
# What check says must be so.
2) refuse 'LPA2|busy' -- kleap load /payload/Image ;;
*)
    must kleap load /payload/Image --command-line x
    must kleap unload
    ;;
esac
check nobody by_nobody
run kleap check
run by_nobody kleap check

say "that it changes nothing"
kleap-guest snapshot >/run/before
say "snapshot of $(wc -l </run/before) lines"
unchanged "doing nothing"
kleap check >/run/text
unchanged "kleap check"
kleap check --json >/run/json
unchanged "kleap check --json"
by_nobody kleap check >/run/text
unchanged "kleap check by nobody"

say "that a change would be seen"
pool=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
touch /dev/kleap-test
seen file
rm /dev/kleap-test
echo 1 >$pool
seen memory
seen setting
echo 0 >$pool
mount -t tmpfs none /tmp
seen mount
umount /tmp
echo "kleap test" >/dev/kmsg
seen log
sleep 100 &
seen process
kill $!
echo 1 >/proc/sys/vm/panic_on_oom
seen setting
echo 0 >/proc/sys/vm/panic_on_oom
