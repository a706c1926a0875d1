//! `cargo xtask test`: everything that says whether the project works, in one number.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::e2e::{self, Selection, Tally};
use crate::faults;
use crate::fuzz;
use crate::lab::Lab;
use crate::setup;
use crate::soak;
use crate::toolchain::{Rust, TARGET};

/// Packages whose unit tests also run as arm64 programs, because they have code of their own for it, with
/// the features that the command uses.
const ARM64_PACKAGES: &[(&str, &str)] = &[("kleap-relocator", "kleap-relocator/host")];
/// Cases of each property in emulation, which is twenty times slower.
const EMULATED_CASES: &str = "16";
/// No target of Cargo's, so it is named to be formatted.
const BARE_PROGRAM: &str = "crates/relocator/blob/main.rs";
/// Makes the tests that examine the relocator fail, not skip, where it could not be built.
const REQUIRE_RELOCATOR_VARIABLE: &str = "KLEAP_REQUIRE_RELOCATOR";
/// Tells Cargo what runs arm64 programs.
const RUNNER_VARIABLE: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER";

/// Runs all of it.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    setup::run(lab)?;
    let mut tally = Tally::default();
    step(&mut tally, "tests on this machine", host_tests(lab));
    step(&mut tally, "tests as arm64 programs", arm64_tests(lab));
    step(&mut tally, "fuzz targets", fuzz::test(lab));
    for (what, component, arguments) in [
        (
            "format",
            "fmt",
            &["fmt", "--all", "--", "--check", BARE_PROGRAM][..],
        ),
        (
            "clippy",
            "clippy",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ][..],
        ),
    ] {
        if has_component(lab, component) {
            step(&mut tally, what, check(lab, arguments));
        } else {
            println!("{what}: skipped, this Rust has no cargo {component}");
        }
    }
    let selection = Selection {
        fast: true,
        ..Selection::default()
    };
    step(&mut tally, "hand-overs", e2e::run(lab, &selection));
    step(&mut tally, "hand-overs in a row", soak::test(lab));
    step(&mut tally, "injected faults", faults::short(lab));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

/// Adds a step's numbers; a step that could not run is one failure.
fn step(sum: &mut Tally, what: &str, result: Result<Tally>) {
    match result {
        Ok(tally) => {
            println!("{what}: {} passed, {} failed", tally.passed, tally.failed);
            sum.passed += tally.passed;
            sum.failed += tally.failed;
        }
        Err(error) => {
            println!("{what}: FAILED: {error:#}");
            sum.failed += 1;
        }
    }
}

fn host_tests(lab: &Lab) -> Result<Tally> {
    let mut command = host_cargo(lab)?;
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.env(REQUIRE_RELOCATOR_VARIABLE, "1");
    cargo_test(&mut command)
}

/// Cargo's own compiler and target.
fn host_cargo(lab: &Lab) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(lab.workspace());
    Rust::find(lab)?.configure_relocator(&mut command);
    Ok(command)
}

fn arm64_tests(lab: &Lab) -> Result<Tally> {
    let rust = Rust::find(lab)?;
    let mut command = build::cargo(lab, &rust);
    // Documentation tests would need a rustdoc of the same compiler.
    command.args([
        "test",
        "--target",
        TARGET,
        "--no-fail-fast",
        "--lib",
        "--bins",
        "--tests",
    ]);
    for (package, features) in ARM64_PACKAGES {
        command.args(["--package", package, "--features", features]);
    }
    if !cfg!(target_arch = "aarch64") {
        command.env(RUNNER_VARIABLE, setup::qemu_user(lab)?);
        // The properties were tested at length on the host; here it is about the instructions.
        command.env("PROPTEST_CASES", EMULATED_CASES);
    }
    cargo_test(&mut command)
}

/// Runs `cargo test`, shows what it prints, and adds up its summary lines.
fn cargo_test(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the output of cargo test")?;
        println!("{line}");
        add_summary(&mut tally, &line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    // A test program that did not build, or died, has no summary line.
    if !status.success() && tally.failed == 0 {
        tally.failed += 1;
    }
    Ok(tally)
}

/// Understands `test result: ok. 5 passed; 0 failed; ...`.
fn add_summary(tally: &mut Tally, line: &str) {
    let Some(rest) = line.trim().strip_prefix("test result: ") else {
        return;
    };
    let number = |word: &str| {
        rest.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    tally.passed += number("passed");
    tally.failed += number("failed");
}

fn has_component(lab: &Lab, component: &str) -> bool {
    host_cargo(lab)
        .and_then(|mut command| Ok(command.args([component, "--version"]).output()?))
        .is_ok_and(|output| output.status.success())
}

fn check(lab: &Lab, arguments: &[&str]) -> Result<Tally> {
    let status = host_cargo(lab)?
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    let failed = usize::from(!status.success());
    Ok(Tally {
        passed: 1 - failed,
        failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let mut tally = Tally::default();
        let line = "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out; \
                    finished in 0.00s";
        add_summary(&mut tally, line);
        add_summary(
            &mut tally,
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured",
        );
        add_summary(&mut tally, "running 5 tests");
        assert_eq!(
            tally,
            Tally {
                passed: 8,
                failed: 2
            }
        );
    }
}
