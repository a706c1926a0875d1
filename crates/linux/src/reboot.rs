//! The end.

use crate::Error;
use rustix::system::{RebootCommand, reboot};

/// Writes all file systems' dirty data out (sync(2)).
pub fn sync() {
    rustix::fs::sync();
}

/// `reboot(LINUX_REBOOT_CMD_KEXEC)`: stops devices and CPUs and enters what `kexec_load` was given.
///
/// # Errors
/// Returns only if the kernel refuses; then nothing was stopped, unless a reboot notifier failed.
pub fn kexec() -> Error {
    match reboot(RebootCommand::Kexec) {
        Err(rustix::io::Errno::PERM) => Error::Privilege {
            what: "reboot(2)",
            capability: "CAP_SYS_BOOT",
        },
        Err(source) => Error::Call {
            call: "reboot(LINUX_REBOOT_CMD_KEXEC)".into(),
            source,
        },
        Ok(()) => Error::Refused("reboot(LINUX_REBOOT_CMD_KEXEC) returned".into()),
    }
}
