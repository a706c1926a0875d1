//! Runs a program as if the kernel lacked a system call, or refused it.
//!
//! Debian has no arm64 kernel without `CONFIG_KEXEC`. A seccomp filter that answers `ENOSYS` is what a
//! program sees of such a kernel. Rejected: building one, which takes longer than every other test.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// `without-syscall NAME ERROR COMMAND...`: returns only if the command cannot be run.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let number = match arguments.next().as_deref() {
        Some("kexec_load") => libc::SYS_kexec_load,
        other => bail!("no such system call: {other:?}"),
    };
    let error = match arguments.next().as_deref() {
        Some("ENOSYS") => libc::ENOSYS,
        Some("EPERM") => libc::EPERM,
        other => bail!("no such error: {other:?}"),
    };
    let program = arguments.next().context("no command to run")?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(number, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(error.unsigned_abs()),
        ARCH.try_into().context("seccomp on this architecture")?,
    )?;
    let filter: BpfProgram = filter.try_into().context("the filter")?;
    seccompiler::apply_filter(&filter).context("cannot apply the filter")?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("cannot run {program}"))
}
