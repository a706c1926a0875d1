# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_kleap_global_optspecs
    string join \n h/help V/version
end

function __fish_kleap_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_kleap_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_kleap_using_subcommand
    set -l cmd (__fish_kleap_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c kleap -n "__fish_kleap_needs_command" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_needs_command" -s V -l version -d 'Print version'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "check" -d 'Say whether this machine can hand over, what speaks against it and what to do; changes nothing'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "load" -d 'Place a kernel in memory, ready to go; replaces what was loaded before'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "exec" -d 'Go: write dirty data out, stop this kernel, enter the loaded one. Services are not stopped'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "status" -d 'Say what is loaded, where, and what the hand-over will do and cost'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "unload" -d 'Give back what `load` took'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "report" -d 'On the next kernel: say where the time of the hand-over went'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "kexec" -d 'Be kexec of kexec-tools: takes its options and has its exit codes (kleap kexec --help, kexec(8))'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "hold" -d 'Keep the payload\'s pages pinned; started by `load`'
complete -c kleap -n "__fish_kleap_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kleap -n "__fish_kleap_using_subcommand check" -l json -d 'For programs: JSON on standard output'
complete -c kleap -n "__fish_kleap_using_subcommand check" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_using_subcommand load" -l initrd -l ramdisk -d 'The initial RAM disk; several, one after the other (without this: that of a UKI, FIT or uImage)' -r -F
complete -c kleap -n "__fish_kleap_using_subcommand load" -l fit-config -d 'The configuration of a FIT [default: the one that it names]' -r
complete -c kleap -n "__fish_kleap_using_subcommand load" -l command-line -d 'The kernel command line (without this, --append and --reuse-cmdline: that of a UKI, or the device tree\'s own)' -r
complete -c kleap -n "__fish_kleap_using_subcommand load" -l append -d 'The kernel command line, as with kexec; after --reuse-cmdline: what to add to it' -r
complete -c kleap -n "__fish_kleap_using_subcommand load" -l dtb -d 'A device tree to use instead of this machine\'s own, or of that in a UKI, FIT or uImage' -r -F
complete -c kleap -n "__fish_kleap_using_subcommand load" -l strategy -d 'How the payload gets to its place' -r -f -a "auto\t'In place what can be in place; only the rest is moved at hand-over'
in-place\t'Placed where it will be used, or not loaded at all'
relocate\t'All of it moved at hand-over'
kernel\t'No huge pages: the running kernel takes all of it now, and copies it at hand-over'"
complete -c kleap -n "__fish_kleap_using_subcommand load" -l verify -d 'How Image, initrd and device tree are compared with what was loaded, right before they are entered [default: crc32c]' -r -f -a "crc32c\t'CRC32C: finds whatever accidents do to memory, at the speed of memory'
sha256\t'SHA-256'
none\t'Not at all: what is damaged after load is entered as it is. Only the relocator itself is verified'"
complete -c kleap -n "__fish_kleap_using_subcommand load" -l on-failure -d 'What becomes of the machine if the hand-over cannot go on (without it: for exec as load was told, else reset)' -r -f -a "reset\t'Reset; power off where the firmware refuses that'
off\t'Power off; reset where the firmware refuses that'
halt\t'Stop and wait, for somebody who wants to look at the machine as it is'"
complete -c kleap -n "__fish_kleap_using_subcommand load" -l serial -d 'The UART that the relocator writes to, as the kernel\'s earlycon= spells it: pl011,ADDRESS, uart8250,mmio,ADDRESS or uart8250,mmio32,ADDRESS (without it: for exec as load was told, else this kernel\'s console)' -r
complete -c kleap -n "__fish_kleap_using_subcommand load" -l decompress-initrd -d 'Decompress the initrd now, so that the next kernel does not have to'
complete -c kleap -n "__fish_kleap_using_subcommand load" -l reuse-cmdline -d 'Use the running kernel\'s command line, without BOOT_IMAGE'
complete -c kleap -n "__fish_kleap_using_subcommand load" -l early -d 'Call kexec_load(2) now and not at exec, for `systemctl kexec` and whatever looks at kexec_loaded'
complete -c kleap -n "__fish_kleap_using_subcommand load" -l panic -d 'Not for exec: for a panic. Into the memory that crashkernel= has set aside, with the headers of /proc/vmcore'
complete -c kleap -n "__fish_kleap_using_subcommand load" -l verbose-handoff -d 'At hand-over, write a line to the console for every phase'
complete -c kleap -n "__fish_kleap_using_subcommand load" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c kleap -n "__fish_kleap_using_subcommand exec" -l on-failure -d 'What becomes of the machine if the hand-over cannot go on (without it: for exec as load was told, else reset)' -r -f -a "reset\t'Reset; power off where the firmware refuses that'
off\t'Power off; reset where the firmware refuses that'
halt\t'Stop and wait, for somebody who wants to look at the machine as it is'"
complete -c kleap -n "__fish_kleap_using_subcommand exec" -l serial -d 'The UART that the relocator writes to, as the kernel\'s earlycon= spells it: pl011,ADDRESS, uart8250,mmio,ADDRESS or uart8250,mmio32,ADDRESS (without it: for exec as load was told, else this kernel\'s console)' -r
complete -c kleap -n "__fish_kleap_using_subcommand exec" -l verbose-handoff -d 'At hand-over, write a line to the console for every phase'
complete -c kleap -n "__fish_kleap_using_subcommand exec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c kleap -n "__fish_kleap_using_subcommand status" -l json -d 'For programs: JSON on standard output'
complete -c kleap -n "__fish_kleap_using_subcommand status" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_using_subcommand unload" -l panic -d 'What `load --panic` has loaded, and nothing else'
complete -c kleap -n "__fish_kleap_using_subcommand unload" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_using_subcommand report" -l json -d 'For programs: JSON on standard output'
complete -c kleap -n "__fish_kleap_using_subcommand report" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_using_subcommand hold" -s h -l help -d 'Print help'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "check" -d 'Say whether this machine can hand over, what speaks against it and what to do; changes nothing'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "load" -d 'Place a kernel in memory, ready to go; replaces what was loaded before'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "exec" -d 'Go: write dirty data out, stop this kernel, enter the loaded one. Services are not stopped'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "status" -d 'Say what is loaded, where, and what the hand-over will do and cost'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "unload" -d 'Give back what `load` took'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "report" -d 'On the next kernel: say where the time of the hand-over went'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "kexec" -d 'Be kexec of kexec-tools: takes its options and has its exit codes (kleap kexec --help, kexec(8))'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "hold" -d 'Keep the payload\'s pages pinned; started by `load`'
complete -c kleap -n "__fish_kleap_using_subcommand help; and not __fish_seen_subcommand_from check load exec status unload report kexec hold help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
