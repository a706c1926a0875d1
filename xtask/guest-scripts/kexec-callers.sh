# What the programs that call kexec do, for real: each with its own words, and what it looks at afterwards.

image=/payload/Image
initrd=/payload/initrd

say "systemctl kexec"
[ -x /sbin/kexec ] || finish fail 'no /sbin/kexec'
[ "$(cat /sys/kernel/kexec_loaded)" = 1 ] && finish fail 'systemctl would not load'
quietly /sbin/kexec --load $image --append 'root=/dev/vda1 ro quiet' --initrd $initrd
loaded 1 'systemctl kexec'
quietly kexec -u
loaded 0 'kexec -u'
[ ! -e /dev/kleap ] || finish fail 'kexec -u left /dev/kleap behind'

say "Debian's kexec-load-kernel"
mkdir -p /etc/default/kexec.d /lib/lsb
# What the script needs of a Debian system; there are no snippets.
: >/lib/lsb/init-functions
printf '#!/bin/sh\n' >/bin/run-parts
chmod 755 /bin/run-parts
cat >/etc/default/kexec <<'END'
KERNEL_IMAGE="/payload/Image"
INITRD="/payload/initrd"
APPEND="root=/dev/vda1 quiet"
USE_GRUB_CONFIG=false
END
run sh /lab/kexec-load-kernel
loaded 1 kexec-load-kernel
kleap status | tee /dev/console | grep -q 'root=/dev/vda1 quiet' || finish fail "not the script's command line"
run sh /lab/kexec-load-kernel
loaded 1 'kexec-load-kernel once more'
quietly kexec -u

say "kernel selftests"
quietly kexec --load $image
loaded 1 'kexec --load'
quietly kexec --unload
loaded 0 'kexec --unload'
fails 253 kexec --load --kexec-file-syscall $image
loaded 0 'kexec_file_load, which is not there'

say "nixpkgs"
quietly kexec --load --kexec-syscall-auto --initrd=$initrd --append='root=/dev/vda1 quiet' -- $image
loaded 1 nixpkgs
quietly kexec -u

say "petitboot"
run kexec -l --debug --initrd=$initrd --dtb=/sys/firmware/fdt --append=quiet $image
[ $code = 0 ] || finish fail "petitboot's load: $code"
loaded 1 petitboot
fails 255 kexec -e -f
loaded 1 'a load of nothing'

say "kexecboot, and what --mem-min and --mem-max mean"
quietly kexec --mem-min=0x60000000 --mem-max=0x8fffffff -l $image --no-checks --dtb=/sys/firmware/fdt --initrd=$initrd \
    --command-line=quiet
loaded 1 kexecboot
# Whatever is loaded, and the relocator's stage, is in the window.
kleap status --json | tr ',' '\n' | sed -n 's/.*"address": *\([0-9]*\).*/\1/p' | head -n 3 >/run/addresses
sed 's/.*"stage":\[\([0-9]*\),.*/\1/' /dev/kleap/state.json >>/run/addresses
[ "$(grep -c . /run/addresses)" = 4 ] || finish fail "not four addresses: $(cat /run/addresses)"
for address in $(cat /run/addresses); do
    say "address $address"
    [ "$address" -ge $((0x60000000)) ] && [ "$address" -lt $((0x90000000)) ] || finish fail "$address is outside"
done
kleap status | grep -q 'the relocator alone: --verify none' || finish fail '--no-checks was ignored'
quietly kexec -u

say "--serial, and a way to spell it that kleap has as well"
for tty in ttyAMA0 /dev/ttyAMA0 pl011,0x9000000; do
    quietly kexec -l --serial=$tty $image
    kleap status | tee /dev/console | grep -qx 'console       PL011 at 0x9000000: --serial' || finish fail "not $tty"
done
quietly kexec -u

say "what is refused leaves what is loaded"
quietly kexec -l $image
for words in '--entry=0x40000000' '--hotplug' '--serial=ttyNONE9' '--reuseinitrd' '-t uImage' '--mem-max=0x1000'; do
    kexec -l $words $image 2>/run/output && finish fail "kexec -l $words is accepted"
    cat /run/output
    [ -s /run/output ] || finish fail "kexec -l $words is refused without a word"
    loaded 1 "kexec -l $words"
done
quietly kexec -u

say "no huge pages: the running kernel takes it"
mkdir /tmp/none
mount --bind /tmp/none /sys/kernel/mm/hugepages || finish fail 'cannot hide the huge pages'
kexec -l $image 2>/run/output || finish fail "no load without huge pages: $(cat /run/output)"
cat /run/output
grep -q 'the running kernel takes all of it instead' /run/output || finish fail 'it is not said'
loaded 1 'a load without huge pages'
quietly kexec -u
umount /sys/kernel/mm/hugepages

say "another program's kernel"
must /bin/kexec -l /payload/Image --append=x
loaded 1 'kexec-tools'
quietly kexec -u
loaded 0 'unload of what another program has loaded'
quietly kexec -l $image
must /bin/kexec -u
loaded 0 "unload by kexec-tools"
quietly kexec -u
[ ! -e /dev/kleap ] || finish fail 'something is left of what was unloaded by another program'

say "as a word of kleap"
run kleap kexec --version
[ "$(kleap kexec --version)" = "$(kexec -v)" ] || finish fail 'two versions'
fails 1 kleap kexec -e
finish ok
