# Loads and unloads the same payload with each program in turn. Each load prints a line
# "measured PROGRAM wall_us=... user_us=... sys_us=... code=...".

loads=@LOADS@
command_line='@COMMAND_LINE@'

# load PROGRAM COMMAND...: must succeed.
load() {
    kleap-guest time "$@" >/run/output 2>&1 || finish fail "$(cat /run/output)"
    if ! grep -q '^KLEAP-LAB: measured .* code=0$' /run/output; then
        cat /run/output
        finish fail "'$2 $3' did not load"
    fi
    grep '^KLEAP-LAB: measured ' /run/output
}

# unload COMMAND...: must succeed, and leave nothing loaded.
unload() {
    "$@" >/run/output 2>&1 || finish fail "'$*' failed: $(cat /run/output)"
    [ "$(cat /sys/kernel/kexec_loaded)" = 0 ] || finish fail "'$*' left a kernel loaded"
}

# expect_loaded 0|1: whether the kernel itself has something loaded.
expect_loaded() {
    [ "$(cat /sys/kernel/kexec_loaded)" = "$1" ] || finish fail "kexec_loaded is not $1 after $2"
}

kleap_load="kleap load /payload/Image --initrd /payload/initrd"
kexec_load="kexec -l -c /payload/Image --initrd=/payload/initrd"
early=no
if kleap load --help | grep -q -e --early; then early=yes; fi
say "early $early"
say "kexec-version $(kexec --version)"
say "payload image_bytes=$(stat -c %s /payload/Image) initrd_bytes=$(stat -c %s /payload/initrd)"

turn=0
while [ "$turn" -lt "$loads" ]; do
    turn=$((turn + 1))
    load kleap $kleap_load --command-line "$command_line"
    expect_loaded 0 kleap
    kleap status >/run/output
    grep -q '^Image ' /run/output || finish fail "kleap has loaded nothing"
    if grep 'moved there' /run/output; then say "placed moved"; else say "placed in-place"; fi
    unload kleap unload
    if [ $early = yes ]; then
        load kleap-early $kleap_load --early --command-line "$command_line"
        expect_loaded 1 kleap-early
        unload kleap unload
    fi
    load kexec-i $kexec_load -i --command-line="$command_line"
    expect_loaded 1 kexec-i
    unload kexec -u
    load kexec $kexec_load --command-line="$command_line"
    expect_loaded 1 kexec
    unload kexec -u
done
finish ok
