//! `cargo xtask`: set-up, build, demo and tests of kleap, with one command each.
#![forbid(unsafe_code)]

mod apt;
mod bench;
mod build;
mod built;
mod chain;
mod check;
mod cpio;
mod crash;
mod demo;
mod dropin;
mod e2e;
mod faults;
mod formats;
mod fuzz;
mod gdbstub;
mod initramfs;
mod kernels;
mod kexec_diff;
mod lab;
mod progress;
mod qemu;
mod qmp;
mod random;
mod rows;
mod run;
mod setup;
mod soak;
mod stress;
mod test;
mod toolchain;
mod watchdog;
mod witness;

use std::io::{self, Write};
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What can be set from outside.
const VARIABLES: &str = "\
Environment:
  KLEAP_LAB_DIR       where downloads and logs are kept [default: target/kleap-lab]
  KLEAP_LAB_SLOWDOWN  multiplies every deadline, for slow or busy machines [default: 1]
  KLEAP_ARM64_STD     where arm64's Rust library comes from: rustup, debian or auto [default: auto]
  KLEAP_QEMU          another qemu-system-aarch64 than the one that set-up unpacks
  KLEAP_DEBIAN_MIRROR, KLEAP_DEBIAN_SECURITY_MIRROR
                      the archive, on machines whose apt does not use Debian's";

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, after_help = VARIABLES)]
struct Arguments {
    /// Ask nothing; nothing is asked so far, so scripts can pass it without harm
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Download and unpack what the demo and the tests need
    Setup,
    /// Build the static arm64 command into target/dist/kleap
    Build {
        /// Also build the variant that breaks things on purpose, target/dist/kleap-fault
        #[arg(long)]
        fault_injection: bool,
    },
    /// Hand over from one Debian kernel to another in QEMU and show where the time went
    Demo {
        /// The kernel that hands over: 5.10, 6.1, 6.12, 7.3 or 6.12-16k
        #[arg(long, default_value = "6.1", value_name = "NAME")]
        from: String,
        /// The kernel that is handed over to
        #[arg(long, default_value = "6.12", value_name = "NAME")]
        to: String,
        /// Your own arm64 Image instead, with the PL011 console and initramfs support built in
        #[arg(long, value_name = "FILE", conflicts_with = "to")]
        kernel: Option<PathBuf>,
        /// How the payload reaches its place
        #[arg(long, default_value = "auto")]
        strategy: rows::Strategy,
    },
    /// Measure kleap beside Debian's kexec-tools in QEMU; tables, JSON and SVG in target/bench
    Bench(bench::Wish),
    /// Run all tests: units here and as arm64 programs, format, lints, and the fast hand-overs
    Test,
    /// Hand over between real kernels in QEMU, and print a table
    E2e {
        /// Print the rows' names and end
        #[arg(long)]
        list: bool,
        /// Only a few rows that cover every kind of machine
        #[arg(long)]
        fast: bool,
        /// Only rows whose name contains this; may be given several times
        #[arg(long, value_name = "SUBSTRING")]
        only: Vec<String>,
        /// How many machines run at a time [default: by cores and memory]
        #[arg(long, value_name = "N", value_parser = at_least_one)]
        jobs: Option<usize>,
    },
    /// Compare kleap under the name kexec with Debian's own kexec: every option, every mistake
    KexecDiff,
    /// Make one Debian kernel in every format that the command takes, with the real tools
    Formats {
        /// The kernel: 5.10, 6.1, 6.12, 7.3 or 6.12-16k
        #[arg(long, default_value = "6.1", value_name = "NAME")]
        kernel: String,
    },
    /// Build kernels that Debian does not have, from Debian's source: minutes for each, then cached
    Kernel {
        /// Which: 7.3-64k, 7.3-file, 7.3-nohuge, 7.3-zboot [default: all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Attack the command in QEMU, many times: fragmented memory, kills, loads at one time
    Stress(stress::Wish),
    /// Many hand-overs in a row in one machine, each another way
    Soak(soak::Wish),
    /// Break hand-overs in QEMU, in every way and at every phase, and see how each ends
    Faults(faults::Wish),
    /// Attack everything that reads bytes from outside: replay of the corpora, or libFuzzer with --runs
    Fuzz(fuzz::Wish),
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// What `print!` panics with where nobody reads its output any more, or there is no room for it.
const OUTPUT_PANIC: &str = "failed printing to stdout";

/// That end is nobody's mistake here: one line says it, not a backtrace. Machines end with it as with any other.
fn be_brief_about_closed_output() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        match info.payload().downcast_ref::<String>() {
            Some(text) if text.starts_with(OUTPUT_PANIC) => {
                let _ = writeln!(io::stderr(), "error: {text}");
            }
            _ => usual(info),
        }
    }));
}

fn main() -> ExitCode {
    be_brief_about_closed_output();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Not by returning the error: that would print a backtrace, which says nothing to a user.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let lab = lab::Lab::locate()?;
    qemu::check_slowdown()?;
    toolchain::check_qemu()?;
    match arguments.command {
        Task::Setup => setup::run(&lab),
        Task::Build { fault_injection } => build::run(&lab, fault_injection),
        Task::Demo {
            from,
            to,
            kernel,
            strategy,
        } => demo::run(
            &lab,
            &demo::Wish {
                from,
                to,
                kernel,
                strategy,
            },
        ),
        Task::Bench(wish) => bench::run(&lab, &wish),
        Task::Test => test::run(&lab),
        Task::KexecDiff => kexec_diff::run(&lab),
        Task::Formats { kernel } => formats::run(&lab, &kernel),
        Task::Kernel { names } => kernels::run(&lab, &names),
        Task::Soak(wish) => soak::run(&lab, &wish),
        Task::Stress(wish) => stress::run(&lab, &wish),
        Task::Faults(wish) => faults::run(&lab, &wish),
        Task::Fuzz(wish) => fuzz::run(&lab, &wish),
        Task::E2e {
            list,
            fast,
            only,
            jobs,
        } => {
            let selection = e2e::Selection { fast, only, jobs };
            if list {
                e2e::list(&selection)
            } else {
                e2e::run_command(&lab, &selection)
            }
        }
    }
}
