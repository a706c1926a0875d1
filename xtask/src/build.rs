//! Builds the static arm64 programs: the command, its test variants, the guest's helper.
//!
//! The finished command is copied to `target/dist`, where the README tells people to look for it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::progress::megabytes;
use crate::toolchain::{Rust, TARGET};

/// A program to be built for arm64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The package, which is also the name of the binary.
    package: &'static str,
    /// Cargo features besides the default ones.
    features: &'static [&'static str],
    /// The name of the copy in `target/dist`.
    file_name: &'static str,
}

/// The command as it is released.
pub(crate) const KLEAP: Program = Program {
    package: "kleap",
    features: &[],
    file_name: "kleap",
};
/// The command with switches that break things on purpose.
pub(crate) const KLEAP_FAULT: Program = Program {
    package: "kleap",
    features: &["fault-injection"],
    file_name: "kleap-fault",
};
/// The helper that looks at memory inside the virtual machine.
pub(crate) const GUEST: Program = Program {
    package: "kleap-guest",
    features: &[],
    file_name: "kleap-guest",
};

/// Builds one program and gives the path of its copy.
pub(crate) fn program(lab: &Lab, rust: &Rust, program: Program) -> Result<PathBuf> {
    let mut command = cargo(lab, rust);
    command.args([
        "build",
        "--release",
        "--target",
        TARGET,
        "--package",
        program.package,
    ]);
    if !program.features.is_empty() {
        command.arg("--features").arg(program.features.join(","));
    }
    println!("building {} for {TARGET}", program.file_name);
    let status = command.status().context("cannot run cargo")?;
    ensure!(
        status.success(),
        "cargo build of {} failed ({status})",
        program.package
    );
    let built = rust
        .target_directory()
        .join(TARGET)
        .join("release")
        .join(program.package);
    let copy = lab.dist().join(program.file_name);
    copy_program(&built, &copy)?;
    let bytes = fs::metadata(&copy)
        .map(|metadata| metadata.len())
        .unwrap_or_default();
    println!("{}: {}", copy.display(), megabytes(bytes));
    Ok(copy)
}

/// Cargo in the work tree, set up for arm64.
pub(crate) fn cargo(lab: &Lab, rust: &Rust) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(lab.workspace());
    rust.configure(&mut command);
    command
}

/// Copies by way of a second name, so that a running copy is no obstacle.
fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let directory = to.parent().context("a program needs a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let part = to.with_extension("part");
    fs::copy(from, &part).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(&part, to).with_context(|| format!("cannot write {}", to.display()))
}

/// `cargo xtask build`.
pub(crate) fn run(lab: &Lab, fault_injection: bool) -> Result<()> {
    let rust = Rust::find(lab)?;
    program(lab, &rust, KLEAP)?;
    if fault_injection {
        program(lab, &rust, KLEAP_FAULT)?;
    }
    program(lab, &rust, GUEST)?;
    Ok(())
}
