# What kexec_load takes of memory, against what is predicted.

# Pages that CPUs keep for themselves are not in MemFree, and they keep more of them than this costs. With
# this they keep about one MB each. Kernels before 5.14 do not have it, and copy nothing.
fraction=/proc/sys/vm/percpu_pagelist_high_fraction
[ ! -e $fraction ] || echo 1000000 >$fraction
run kleap-guest kexec-cost || finish fail "nothing was predicted"
run kleap-guest measure-kexec-cost || finish fail "the prediction is wrong, or nothing could be measured"
[ "$(cat /sys/kernel/kexec_loaded)" = 0 ] || finish fail "something is still loaded"
finish ok
