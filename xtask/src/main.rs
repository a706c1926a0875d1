//! `cargo xtask`: set-up, build, demo and tests of kleap, with one command each.
#![forbid(unsafe_code)]

mod apt;
mod build;
mod lab;
mod progress;
mod setup;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about)]
struct Arguments {
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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let lab = lab::Lab::locate()?;
    match arguments.command {
        Task::Setup => setup::run(&lab),
        Task::Build { fault_injection } => build::run(&lab, fault_injection),
    }
}
