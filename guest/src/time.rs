//! How long a command takes, and how much of a CPU.
//!
//! Problem: busybox's `time` shows hundredths of a second, and a load takes a few of them. Choice:
//! `getrusage(2)` of the children, which counts microseconds. Rejected: `/proc/PID/stat`, whose unit
//! is the clock tick. Debian's arm64 kernels account CPU time by ticks: the sum of user and system time
//! is exact, as the scheduler knows it, but how it is divided between the two is a sample.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// User and system time of all children that have ended, in microseconds.
fn children() -> Result<(i64, i64)> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok((
        usage.user_time().num_microseconds(),
        usage.system_time().num_microseconds(),
    ))
}

/// `time NAME COMMAND...`: runs a command with its output where ours is, then prints one line
/// `measured NAME wall_us=... user_us=... sys_us=... code=...`.
///
/// The exit code is that of success if the command could be run, whatever it ended with: the line
/// has its code, -1 after a signal.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let name = arguments.next().context("no name for the measurement")?;
    let program = arguments.next().context("no command to run")?;
    ensure!(
        !name.contains(char::is_whitespace),
        "the name must be one word: {name:?}"
    );
    let (user_before, sys_before) = children()?;
    let began = Instant::now();
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    let wall = began.elapsed();
    let (user, sys) = children()?;
    println!(
        "KLEAP-LAB: measured {name} wall_us={} user_us={} sys_us={} code={}",
        wall.as_micros(),
        user - user_before,
        sys - sys_before,
        status.code().unwrap_or(-1)
    );
    Ok(())
}
