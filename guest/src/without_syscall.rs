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

/// What a filter can take away from the command.
const SYSTEM_CALLS: &[(&str, libc::c_long)] = &[
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("fallocate", libc::SYS_fallocate),
    ("fcntl", libc::SYS_fcntl),
    ("flock", libc::SYS_flock),
    ("fstat", libc::SYS_fstat),
    ("ftruncate", libc::SYS_ftruncate),
    ("getdents64", libc::SYS_getdents64),
    ("get_mempolicy", libc::SYS_get_mempolicy),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("kexec_load", libc::SYS_kexec_load),
    ("lseek", libc::SYS_lseek),
    ("madvise", libc::SYS_madvise),
    ("mbind", libc::SYS_mbind),
    ("memfd_create", libc::SYS_memfd_create),
    ("mkdirat", libc::SYS_mkdirat),
    ("mount", libc::SYS_mount),
    ("pipe2", libc::SYS_pipe2),
    ("pread64", libc::SYS_pread64),
    ("renameat", libc::SYS_renameat),
    ("renameat2", libc::SYS_renameat2),
    ("reboot", libc::SYS_reboot),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sched_setaffinity", libc::SYS_sched_setaffinity),
    ("set_mempolicy", libc::SYS_set_mempolicy),
    ("setsid", libc::SYS_setsid),
    ("statfs", libc::SYS_statfs),
    ("statx", libc::SYS_statx),
    ("umount2", libc::SYS_umount2),
    ("unlinkat", libc::SYS_unlinkat),
    ("vmsplice", libc::SYS_vmsplice),
];

/// `without-syscall NAME ERROR COMMAND...`: returns only if the command cannot be run.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let name = arguments.next().context("no system call")?;
    let number = SYSTEM_CALLS
        .iter()
        .find_map(|&(known, number)| (known == name).then_some(number))
        .with_context(|| format!("no such system call: {name}"))?;
    let error = match arguments.next().as_deref() {
        Some("ENOSYS") => libc::ENOSYS,
        Some("EPERM") => libc::EPERM,
        Some("ENOMEM") => libc::ENOMEM,
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
