#!/bin/sh
# PID 1 of every machine of the lab, in the first kernel and in the second.
#
# What it does is chosen by words of the kernel's command line:
#   kleap_lab.role=first      run /lab/script.sh, which loads and executes the second kernel
#   kleap_lab.role=second     check what arrived, print the verdict, power off
#   kleap_lab.role=capture    the second kernel is a crash kernel: read the first one's memory, and so on
#   kleap_lab.role=chain      check what arrived, and hand over to the next kernel of a chain
#   kleap_lab.role=soak       the same, with a plan that says how
#   kleap_lab.token=...       printed with the verdict, so that no earlier run can be mistaken for it
#   kleap_lab.initrd_sha256=  what the second kernel's initrd must be, in physical memory
#   kleap_lab.cpus=N          how many CPUs must be online
#   kleap_lab.report=no       the second kernel was not handed over to by kleap, and has no report
# Lines for the harness start with "KLEAP-LAB: ".

export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /tmp /dev/pts

. /lab/functions.sh

role=$(word role)
token=$(word token)
say "role=$role kernel=$(uname -r) up_s=$(cut -d ' ' -f 1 /proc/uptime)"

case "$role" in
first)
    . /lab/script.sh
    finish fail "the first kernel's script ended"
    ;;
second)
    . /lab/second.sh
    ;;
capture)
    . /lab/capture.sh
    ;;
chain)
    . /lab/chain.sh
    ;;
soak)
    . /lab/soak.sh
    ;;
*)
    finish fail "kleap_lab.role is '$role', not first, second, capture, chain or soak"
    ;;
esac
