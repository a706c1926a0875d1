# Somebody has set huge pages aside, so that little else is available, and somebody else works with some of that. A load is
# done with what there is or refused; nobody is ended for it, and the pages that were set aside are as many as before.

pool=/sys/kernel/mm/hugepages/hugepages-2048kB
# Somebody works with 10 MB, takes them and gives them back, without end; a process that is ended for want of memory says so.
sh -c 'while dd if=/dev/zero of=/dev/null bs=10M count=4 2>/dev/null; do :; done; echo ended >/run/bystander' &
loaded=0
refused=0
for strategy in auto in-place; do
    for left_mb in 150 130 115 105 95 85 75 65; do
        echo $((($(available_kb) / 1024 - left_mb) / 2)) >$pool/nr_hugepages
        kept=$(cat $pool/nr_hugepages)
        say "set aside $kept, available $(available_kb) kB"
        run kleap load $image --initrd $initrd --strategy $strategy --command-line x
        case $code in
        0)
            loaded=$((loaded + 1))
            must kleap unload
            ;;
        6) refused=$((refused + 1)) ;;
        *) finish fail "with $left_mb MB the load ended with $code" ;;
        esac
        [ "$(cat $pool/nr_hugepages)" = "$kept" ] || finish fail "$(cat $pool/nr_hugepages) pages are set aside, before $kept"
        [ ! -e /run/bystander ] || finish fail "with $left_mb MB somebody else was ended"
        ! dmesg | grep 'oom-killer' || finish fail "with $left_mb MB the kernel had to end something"
        echo 0 >$pool/nr_hugepages
    done
done
say "set aside: $loaded loaded, $refused refused"
[ $loaded -gt 0 ] || finish fail "nothing was loaded"
finish ok
