//! Runs a program with less than it is used to: a resource limit, a capability taken away.
//!
//! busybox has `ulimit` for some of the limits, and nothing that drops a capability for good: root gets all of
//! the bounding set back with every program it runs, so that set is what has to shrink.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// `limited NAME VALUE COMMAND...`: returns only if the command cannot be run.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let resource = match arguments.next().as_deref() {
        Some("AS") => Resource::RLIMIT_AS,
        Some("CORE") => Resource::RLIMIT_CORE,
        Some("DATA") => Resource::RLIMIT_DATA,
        Some("FSIZE") => Resource::RLIMIT_FSIZE,
        Some("MEMLOCK") => Resource::RLIMIT_MEMLOCK,
        Some("NOFILE") => Resource::RLIMIT_NOFILE,
        Some("NPROC") => Resource::RLIMIT_NPROC,
        Some("STACK") => Resource::RLIMIT_STACK,
        other => bail!("no such limit: {other:?}"),
    };
    let value = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .context("the limit is no number")?;
    let mut command = command(arguments)?;
    setrlimit(resource, value, value).context("cannot set the limit")?;
    Err(command.exec()).context("cannot run the command")
}

/// `without-capability NUMBER COMMAND...`: the numbers are those of `linux/capability.h`.
pub(crate) fn without_capability(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let number: u32 = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .context("the capability is no number")?;
    let bit = 1_u64.checked_shl(number).context("no such capability")?;
    let capability = CapabilitySet::from_bits_retain(bit);
    let mut command = command(arguments)?;
    remove_capability_from_bounding_set(capability)
        .with_context(|| format!("this kernel has no capability {number}"))?;
    Err(command.exec()).context("cannot run the command")
}

fn command(mut arguments: impl Iterator<Item = String>) -> Result<Command> {
    let mut command = Command::new(arguments.next().context("no command to run")?);
    command.args(arguments);
    Ok(command)
}
