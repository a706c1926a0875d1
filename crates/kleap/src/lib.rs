//! The command, as a library: so that what it reads from outside can be reached by the fuzzer.
//!
//! `load` places the next kernel, `exec` goes, `status` and `unload` say and undo, `report` tells, on the
//! next kernel, where the time went. `load` and `exec` are separate processes, maybe hours apart:
//! what `load` places lives in files of huge pages ([`store`]) until `exec` or `unload`, and a third process
//! ([`hold`]) keeps those pages where they are.
//!
//! `kexec_load(2)` is called at `exec`, not at `load`: from Linux 5.16 on it copies the tables of all of
//! memory, which costs memory for as long as it is loaded, and its one segment carries the time at which
//! `exec` was asked for. `load --early` calls it all the same, and so must `load --strategy kernel`.
#![forbid(unsafe_code)]

mod check;
mod cpu;
mod crash;
mod error;
mod exec;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(test)]
mod generated;
mod hand_off;
mod hold;
mod kexec;
mod last_words;
mod load;
mod machine;
mod output;
mod payload;
mod pieces;
mod place;
mod probe;
mod progress;
mod report;
mod serial;
mod sources;
mod status;
mod store;
mod units;
mod watchdog;

use clap::{Args, Parser, Subcommand, ValueEnum};
use error::Failure;
use kleap_plan::Strategy;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown by `kleap check --help`; the man page has the same table.
const CHECK_EXIT_CODES_HELP: &str = "\
Exit codes of check:
  0  ready: everything is as it should be
  1  limited: a hand-over is possible, with a limit or a risk, or something cannot be known
  2  cannot: no hand-over is possible, or not by this process; also wrong usage, or no answer could be written";

/// Hands an arm64 machine from one Linux kernel to the next.
#[derive(Debug, Parser)]
#[command(name = "kleap", version, after_help = error::EXIT_CODES_HELP)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say whether this machine can hand over, what speaks against it and what to do; changes nothing
    #[command(after_help = CHECK_EXIT_CODES_HELP)]
    Check(Format),
    /// Place a kernel in memory, ready to go; replaces what was loaded before
    Load(LoadArguments),
    /// Go: write dirty data out, stop this kernel, enter the loaded one. Services are not stopped
    Exec(ExecArguments),
    /// Say what is loaded, where, and what the hand-over will do and cost
    Status(Format),
    /// Give back what `load` took
    Unload(UnloadArguments),
    /// On the next kernel: say where the time of the hand-over went
    Report(Format),
    /// Be kexec of kexec-tools: takes its options and has its exit codes (kleap kexec --help, kexec(8))
    #[command(disable_help_flag = true)]
    Kexec {
        /// What kexec takes
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENT"
        )]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Keep the payload's pages pinned; started by `load`
    #[command(hide = true)]
    Hold {
        /// What to hold
        #[arg(required = true)]
        files: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct LoadArguments {
    /// The kernel: an arm64 Image, compressed or not, EFI zboot, vmlinux, uImage, FIT or UKI
    image: PathBuf,
    /// The initial RAM disk; several, one after the other (without this: that of a UKI, FIT or uImage)
    #[arg(long, visible_alias = "ramdisk", value_name = "FILE")]
    initrd: Vec<PathBuf>,
    /// Decompress the initrd now, so that the next kernel does not have to
    #[arg(long)]
    decompress_initrd: bool,
    /// The configuration of a FIT [default: the one that it names]
    #[arg(long, value_name = "NAME")]
    fit_config: Option<String>,
    /// The kernel command line (without this, --append and --reuse-cmdline: that of a UKI, or the device tree's own)
    #[arg(long, value_name = "STRING", conflicts_with_all = ["append", "reuse_cmdline"])]
    command_line: Option<String>,
    /// The kernel command line, as with kexec; after --reuse-cmdline: what to add to it
    #[arg(long, value_name = "STRING")]
    append: Option<String>,
    /// Use the running kernel's command line, without BOOT_IMAGE
    #[arg(long)]
    reuse_cmdline: bool,
    /// A device tree to use instead of this machine's own, or of that in a UKI, FIT or uImage
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
    /// How the payload gets to its place
    #[arg(long, value_enum, default_value_t, value_name = "STRATEGY")]
    strategy: StrategyArgument,
    /// How Image, initrd and device tree are compared with what was loaded, right before they are entered
    /// [default: crc32c]
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    verify: Option<payload::Verify>,
    /// Call kexec_load(2) now and not at exec, for `systemctl kexec` and whatever looks at kexec_loaded
    #[arg(long)]
    early: bool,
    /// Not for exec: for a panic. Into the memory that crashkernel= has set aside, with the headers of /proc/vmcore
    #[arg(long, conflicts_with_all = ["strategy", "early"])]
    panic: bool,
    /// Test only, with --panic: damage a piece after its digest was taken: PIECE:OFFSET
    #[cfg(feature = "fault-injection")]
    #[arg(
        long,
        value_name = "FAULT,...",
        value_delimiter = ',',
        requires = "panic"
    )]
    inject_fault: Vec<exec::Fault>,
    #[command(flatten)]
    hand_off: hand_off::HandOffArguments,
    /// What `kexec` can ask for beside that
    #[arg(skip)]
    wishes: kexec::Wishes,
}

#[derive(Debug, Clone, Copy, Args)]
struct UnloadArguments {
    /// What `load --panic` has loaded, and nothing else
    #[arg(long)]
    panic: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum StrategyArgument {
    /// In place what can be in place; only the rest is moved at hand-over
    #[default]
    Auto,
    /// Placed where it will be used, or not loaded at all
    InPlace,
    /// All of it moved at hand-over
    Relocate,
    /// No huge pages: the running kernel takes all of it now, and copies it at hand-over
    Kernel,
}

impl From<StrategyArgument> for Strategy {
    fn from(argument: StrategyArgument) -> Self {
        match argument {
            StrategyArgument::Auto => Self::Auto,
            StrategyArgument::InPlace => Self::InPlace,
            StrategyArgument::Relocate => Self::Relocate,
            StrategyArgument::Kernel => Self::Kernel,
        }
    }
}

#[derive(Debug, Args)]
struct ExecArguments {
    #[command(flatten)]
    hand_off: hand_off::HandOffArguments,
    /// What is done at the very end, before the kernel is asked to go
    #[arg(skip)]
    last_steps: exec::LastSteps,
    /// Test only: damage what was checked: PIECE:OFFSET, stage:OFFSET, tables:OFFSET, exception, early-exception,
    /// lpis:on, lpis:off, lpis:forgotten, uart:silent, uart:unmapped, psci:other, psci:none; portable: use no CRC32 and
    /// SHA-256 instructions
    #[cfg(feature = "fault-injection")]
    #[arg(long, value_name = "FAULT,...", value_delimiter = ',')]
    inject_fault: Vec<exec::Fault>,
}

#[derive(Debug, Clone, Copy, Args)]
struct Format {
    /// For programs: JSON on standard output
    #[arg(long)]
    json: bool,
}

fn run(action: Action) -> Result<ExitCode, Failure> {
    match action {
        Action::Check(format) => return Ok(ExitCode::from(check::check(format.json))),
        Action::Load(arguments) => load::load(&arguments)?,
        Action::Exec(arguments) => exec::exec(&arguments)?,
        Action::Status(format) => status::status(format.json)?,
        Action::Unload(arguments) => load::unload(arguments)?,
        Action::Report(format) => report::report(format.json)?,
        Action::Kexec { arguments } => return Ok(kexec::main(arguments)),
        Action::Hold { files } => hold::hold(&files)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the program does: its arguments are the process's, its answer the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    kleap_linux::limits::survive_file_size_limit();
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| kexec::is_name(&name)) {
        return kexec::main(words.collect());
    }
    let command = Command::parse();
    match run(command.action) {
        Ok(code) => code,
        Err(failure) => {
            output::failed(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
