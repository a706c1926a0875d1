//! Every option of kexec-tools 2.0.32 on arm64, as data.
//!
//! One table for the parser, `--help`, the manual page (a test compares them) and the shells' completions: what one of
//! them says, all say. What an option *does* is in [`super::request`].

use super::getopt::{Known, Takes};

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    Help,
    Version,
    Debug,
    Load,
    LoadPanic,
    Unload,
    Exec,
    Force,
    Status,
    NoIfdown,
    NoSync,
    FileSyscall,
    LoadSyscall,
    AutoSyscall,
    Type,
    CommandLine,
    ReuseCommandLine,
    Initrd,
    ReuseInitrd,
    DeviceTree,
    Serial,
    NoChecks,
    MemMin,
    MemMax,
    PrintCrashSize,
    Entry,
    Hotplug,
    PreserveContext,
    JumpBackHelper,
    LoadLiveUpdate,
    ExecLiveUpdate,
}

/// What an option's argument is, for people and for shells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    None,
    File,
    /// Anything; called this.
    Text(&'static str),
}

/// A spelling, and what is said of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) id: Id,
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) value: Value,
    /// One line; of a second spelling, that it is one.
    pub(super) what: &'static str,
}

const fn row(
    id: Id,
    short: Option<char>,
    long: &'static str,
    value: Value,
    what: &'static str,
) -> Row {
    Row {
        id,
        long,
        short,
        value,
        what,
    }
}

/// Formats that `--type` names, as kexec-tools names them.
pub(super) const TYPES: &[&str] = &["vmlinux", "Image", "uImage", "vmlinuz", "uki"];

/// All of them, in the order of `--help`.
pub(super) const ROWS: &[Row] = &[
    row(
        Id::Help,
        Some('h'),
        "help",
        Value::None,
        "Print this and end",
    ),
    row(
        Id::Version,
        Some('v'),
        "version",
        Value::None,
        "Print the version and end",
    ),
    row(
        Id::Debug,
        Some('d'),
        "debug",
        Value::None,
        "Say on standard error what is done",
    ),
    row(
        Id::Load,
        Some('l'),
        "load",
        Value::None,
        "Load KERNEL, and do not go",
    ),
    row(
        Id::LoadPanic,
        Some('p'),
        "load-panic",
        Value::None,
        "Load KERNEL for the case of a panic; with -u or -S: that one",
    ),
    row(
        Id::Unload,
        Some('u'),
        "unload",
        Value::None,
        "Unload what is loaded",
    ),
    row(
        Id::Exec,
        Some('e'),
        "exec",
        Value::None,
        "Go: enter what is loaded",
    ),
    row(
        Id::Force,
        Some('f'),
        "force",
        Value::None,
        "Load KERNEL and go at once, without shutdown",
    ),
    row(
        Id::Status,
        Some('S'),
        "status",
        Value::None,
        "Exit code 1 if a crash kernel (with -l: a kernel) is loaded, 0 if not",
    ),
    row(
        Id::NoIfdown,
        Some('x'),
        "no-ifdown",
        Value::None,
        "Do not bring network interfaces down before going",
    ),
    row(
        Id::NoSync,
        Some('y'),
        "no-sync",
        Value::None,
        "Do not write dirty data out before going",
    ),
    row(
        Id::FileSyscall,
        Some('s'),
        "kexec-file-syscall",
        Value::None,
        "Use kexec_file_load(2), and nothing else",
    ),
    row(
        Id::LoadSyscall,
        Some('c'),
        "kexec-syscall",
        Value::None,
        "Use kexec_load(2), and nothing else",
    ),
    row(
        Id::AutoSyscall,
        Some('a'),
        "kexec-syscall-auto",
        Value::None,
        "Use kexec_load(2), or else kexec_file_load(2); the default",
    ),
    row(
        Id::Type,
        Some('t'),
        "type",
        Value::Text("TYPE"),
        "KERNEL must be of this type: vmlinux, Image, uImage, vmlinuz or uki",
    ),
    row(
        Id::CommandLine,
        None,
        "command-line",
        Value::Text("STRING"),
        "The kernel's command line; after --reuse-cmdline: more of it",
    ),
    row(
        Id::CommandLine,
        None,
        "append",
        Value::Text("STRING"),
        "The same",
    ),
    row(
        Id::ReuseCommandLine,
        None,
        "reuse-cmdline",
        Value::None,
        "The running kernel's command line, without BOOT_IMAGE",
    ),
    row(
        Id::Initrd,
        None,
        "initrd",
        Value::File,
        "The initial RAM disk",
    ),
    row(Id::Initrd, None, "ramdisk", Value::File, "The same"),
    row(
        Id::ReuseInitrd,
        None,
        "reuseinitrd",
        Value::None,
        "The running kernel's initrd, if it was booted with retain_initrd and shows it",
    ),
    row(
        Id::DeviceTree,
        None,
        "dtb",
        Value::File,
        "A device tree in place of this machine's own",
    ),
    row(
        Id::Serial,
        None,
        "serial",
        Value::Text("TTY"),
        "The UART that is written to should the hand-over fail, as in ttyAMA0",
    ),
    row(
        Id::NoChecks,
        Some('i'),
        "no-checks",
        Value::None,
        "Do not verify kernel, initrd and device tree before they are entered",
    ),
    row(
        Id::MemMin,
        None,
        "mem-min",
        Value::Text("ADDRESS"),
        "Use no memory below this address",
    ),
    row(
        Id::MemMax,
        None,
        "mem-max",
        Value::Text("ADDRESS"),
        "Use no memory above this address",
    ),
    row(
        Id::PrintCrashSize,
        None,
        "print-ckr-size",
        Value::None,
        "Print how many bytes are reserved for a crash kernel, and end",
    ),
    row(
        Id::Entry,
        None,
        "entry",
        Value::Text("ADDRESS"),
        "Refused: a kernel is entered where the boot protocol says",
    ),
    row(
        Id::Hotplug,
        None,
        "hotplug",
        Value::None,
        "Refused: arm64 kernels do not update a crash kernel's headers",
    ),
    row(
        Id::PreserveContext,
        None,
        "load-preserve-context",
        Value::None,
        "Refused: arm64 has no way back",
    ),
    row(
        Id::JumpBackHelper,
        None,
        "load-jump-back-helper",
        Value::None,
        "Refused: arm64 has no way back",
    ),
    row(
        Id::LoadLiveUpdate,
        None,
        "load-live-update",
        Value::None,
        "Refused: for Xen on x86 alone",
    ),
    row(
        Id::ExecLiveUpdate,
        None,
        "exec-live-update",
        Value::None,
        "Refused: for Xen on x86 alone",
    ),
];

/// The table for the parser.
pub(super) fn known() -> Vec<Known<Id>> {
    ROWS.iter()
        .map(|row| Known {
            id: row.id,
            long: row.long,
            short: row.short.and_then(|letter| u8::try_from(letter).ok()),
            takes: match row.value {
                Value::None => Takes::Nothing,
                Value::File | Value::Text(_) => Takes::Value,
            },
        })
        .collect()
}

/// Columns of the left part of `--help`.
const LEFT_COLUMNS: usize = 30;

/// The text of `--help`.
pub(super) fn usage() -> String {
    let mut text = String::from(
        "Usage: kexec [OPTION]... KERNEL\n\n\
         Loads another kernel and goes there, as kexec of kexec-tools 2.0.32 does on arm64; this one is kleap.\n\
         Without -l, -p, -u, -e, -f and -S: loads KERNEL, then runs `shutdown -r now`, at the end of which it is entered.\n\
         The last of them counts. Long options may be cut short where that leaves no doubt.\n\n",
    );
    for row in ROWS {
        let short = row
            .short
            .map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = match row.value {
            Value::None => String::new(),
            Value::File => "=FILE".to_owned(),
            Value::Text(name) => format!("={name}"),
        };
        let left = format!("{short}--{}{value}", row.long);
        text.push_str(&format!("  {left:<LEFT_COLUMNS$}{}\n", row.what));
    }
    text.push_str("\nExit codes: 0 done, 1 refused or wrong usage (--status: loaded), 253 no kexec_file_load(2), 255 failed\n");
    text
}

/// The list for the manual page.
#[cfg(test)]
pub(super) fn manual() -> String {
    let escaped = |text: &str| text.replace('-', "\\-");
    let mut text = String::new();
    for row in ROWS {
        text.push_str(".TP\n");
        let mut spellings = Vec::new();
        if let Some(letter) = row.short {
            spellings.push(format!("\\fB\\-{letter}\\fR"));
        }
        let value = match row.value {
            Value::None => String::new(),
            Value::File => "=\\fIFILE\\fR".to_owned(),
            Value::Text(name) => format!("=\\fI{name}\\fR"),
        };
        spellings.push(format!("\\fB\\-\\-{}\\fR{value}", escaped(row.long)));
        text.push_str(&format!(
            "{}\n{}.\n",
            spellings.join(", "),
            escaped(row.what)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn spellings_are_of_one_option_each() {
        let longs: BTreeSet<_> = ROWS.iter().map(|row| row.long).collect();
        assert_eq!(longs.len(), ROWS.len());
        let shorts: Vec<_> = ROWS.iter().filter_map(|row| row.short).collect();
        assert_eq!(shorts.iter().collect::<BTreeSet<_>>().len(), shorts.len());
    }

    #[test]
    fn usage_names_every_option_and_fits_a_screen() {
        let usage = usage();
        for row in ROWS {
            assert!(usage.contains(&format!("--{}", row.long)), "{}", row.long);
        }
        assert!(
            usage.lines().all(|line| line.chars().count() <= 120),
            "{usage}"
        );
    }
}
