//! Runs a program as root that lacks one capability.
//!
//! Busybox' `setpriv` does not change the bounding set, which is all that keeps a capability from a program of
//! root's.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// `without-capability NAME COMMAND...`: returns only if the command cannot be run.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let capability = match arguments.next().as_deref() {
        Some("SYS_BOOT") => CapabilitySet::SYS_BOOT,
        Some("SYS_ADMIN") => CapabilitySet::SYS_ADMIN,
        other => bail!("no such capability: {other:?}"),
    };
    let program = arguments.next().context("no command to run")?;
    remove_capability_from_bounding_set(capability).context("cannot drop the capability")?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot run {program}"))
}
