# kleap under the name kexec, where others look for it.

mkdir -p /sbin /lab/as /etc
ln -s /bin/kleap /lab/as/kexec
ln -s /bin/kleap /sbin/kexec
PATH=/lab/as:$PATH

loaded() {
    found=$(cat /sys/kernel/kexec_loaded)
    [ "$found" = "$1" ] || finish fail "kexec_loaded is $found, not $1, after: $2"
}

# quietly COMMAND...: must succeed, and say nothing.
quietly() {
    "$@" >/run/output 2>&1
    code=$?
    cat /run/output
    say "run $*: exit $code"
    [ $code = 0 ] || finish fail "'$*' failed with exit code $code"
    [ ! -s /run/output ] || finish fail "'$*' said: $(cat /run/output)"
}

# fails CODE COMMAND...
fails() {
    wanted=$1
    shift
    run "$@"
    [ $code = "$wanted" ] || finish fail "'$*' ended with exit code $code, not $wanted"
}

