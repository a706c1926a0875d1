complete -c kexec -s t -l type -d 'KERNEL must be of this type: vmlinux, Image, uImage, vmlinuz or uki' -r -f -a "vmlinux\t''
Image\t''
uImage\t''
vmlinuz\t''
uki\t''"
complete -c kexec -l command-line -d 'The kernel\'s command line; after --reuse-cmdline: more of it' -r
complete -c kexec -l append -d 'The same' -r
complete -c kexec -l initrd -d 'The initial RAM disk' -r -F
complete -c kexec -l ramdisk -d 'The same' -r -F
complete -c kexec -l dtb -d 'A device tree in place of this machine\'s own' -r -F
complete -c kexec -l serial -d 'The UART that is written to should the hand-over fail, as in ttyAMA0' -r
complete -c kexec -l mem-min -d 'Use no memory below this address' -r
complete -c kexec -l mem-max -d 'Use no memory above this address' -r
complete -c kexec -l entry -d 'Refused: a kernel is entered where the boot protocol says' -r
complete -c kexec -s h -l help -d 'Print this and end'
complete -c kexec -s v -l version -d 'Print the version and end'
complete -c kexec -s d -l debug -d 'Say on standard error what is done'
complete -c kexec -s l -l load -d 'Load KERNEL, and do not go'
complete -c kexec -s p -l load-panic -d 'Load KERNEL for the case of a panic; with -u or -S: that one'
complete -c kexec -s u -l unload -d 'Unload what is loaded'
complete -c kexec -s e -l exec -d 'Go: enter what is loaded'
complete -c kexec -s f -l force -d 'Load KERNEL and go at once, without shutdown'
complete -c kexec -s S -l status -d 'Exit code 1 if a crash kernel (with -l: a kernel) is loaded, 0 if not'
complete -c kexec -s x -l no-ifdown -d 'Do not bring network interfaces down before going'
complete -c kexec -s y -l no-sync -d 'Do not write dirty data out before going'
complete -c kexec -s s -l kexec-file-syscall -d 'Use kexec_file_load(2), and nothing else'
complete -c kexec -s c -l kexec-syscall -d 'Use kexec_load(2), and nothing else'
complete -c kexec -s a -l kexec-syscall-auto -d 'Use kexec_load(2), or else kexec_file_load(2); the default'
complete -c kexec -l reuse-cmdline -d 'The running kernel\'s command line, without BOOT_IMAGE'
complete -c kexec -l reuseinitrd -d 'The running kernel\'s initrd, if it was booted with retain_initrd and shows it'
complete -c kexec -s i -l no-checks -d 'Do not verify kernel, initrd and device tree before they are entered'
complete -c kexec -l print-ckr-size -d 'Print how many bytes are reserved for a crash kernel, and end'
complete -c kexec -l hotplug -d 'Refused: arm64 kernels do not update a crash kernel\'s headers'
complete -c kexec -l load-preserve-context -d 'Refused: arm64 has no way back'
complete -c kexec -l load-jump-back-helper -d 'Refused: arm64 has no way back'
complete -c kexec -l load-live-update -d 'Refused: for Xen on x86 alone'
complete -c kexec -l exec-live-update -d 'Refused: for Xen on x86 alone'
