//! `kexec_load(2)`.
//!
//! Called through `syscall(2)`: no library has it for every libc. The kernel never looks at the entry
//! address of a normal load and lets a segment's destination be any memory (`kernel/kexec.c`), so the
//! whole of kleap's use of it is one segment, the relocator's stage, whose destination is memory that
//! we own.

use crate::Error;
use kleap_memmap::{PhysAddr, PhysRange};
use rustix::io::Errno;
use std::path::Path;

/// `KEXEC_ARCH_AARCH64` (`include/uapi/linux/kexec.h`).
const KEXEC_ARCH_AARCH64: libc::c_ulong = 183 << 16;
/// An architecture that no arm64 kernel accepts: `KEXEC_ARCH_386`.
const KEXEC_ARCH_386: libc::c_ulong = 3 << 16;

/// `struct kexec_segment`.
#[repr(C)]
struct Segment {
    buffer: *const libc::c_void,
    buffer_size_bytes: usize,
    memory: *const libc::c_void,
    memory_size_bytes: usize,
}

/// One call; the kernel's answer as it is.
fn call(entry: u64, segments: &[Segment], flags: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: `segments` outlives the call and each buffer in it is a live slice (`load`); the kernel
    // copies and keeps no pointer. `flags` never has KEXEC_ON_CRASH, so no running memory is written.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            entry,
            segments.len(),
            segments.as_ptr(),
            flags,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error()
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error))
}

/// A number in a file below `/sys` or `/proc`, or `None` if the file does not exist or has none.
fn number(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The lockdown mode in force (`none`, `integrity`, `confidentiality`), if the kernel has lockdown.
///
/// `/sys/kernel/security/lockdown` shows the mode in brackets; securityfs may not be mounted.
#[must_use]
pub fn lockdown() -> Option<String> {
    let text = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Says why the kernel answered `EPERM`; the kernel itself does not.
fn why_not_permitted() -> Error {
    if !crate::facts::has_capability(crate::facts::CAP_SYS_BOOT) {
        return Error::Privilege {
            what: "kexec_load(2)",
            capability: "CAP_SYS_BOOT",
        };
    }
    if crate::facts::is_in_user_namespace() {
        return Error::Refused(
            "not from a user namespace, as in a container: it has to be the initial one".into(),
        );
    }
    if number("/proc/sys/kernel/kexec_load_disabled") == Some(1) {
        return Error::Refused(
            "the sysctl kernel.kexec_load_disabled is 1, until the next boot".into(),
        );
    }
    if number("/proc/sys/kernel/kexec_load_limit_reboot") == Some(0) {
        return Error::Refused(
            "the sysctl kernel.kexec_load_limit_reboot is used up, until the next boot".into(),
        );
    }
    match lockdown() {
        Some(mode) if mode != "none" => Error::Refused(format!(
            "lockdown is in {mode} mode, which forbids kexec_load (with UEFI Secure Boot it is automatic)"
        )),
        _ => Error::Refused(
            "not permitted, by lockdown or by a security module (see the kernel log)".into(),
        ),
    }
}

fn explain(errno: Errno, call: String) -> Error {
    match errno {
        Errno::NOSYS => Error::NoKexec,
        Errno::PERM => why_not_permitted(),
        Errno::NOMEM => Error::KernelMemory,
        Errno::BUSY => Error::Refused(
            "busy: another load is in progress, or this machine cannot stop its CPUs \
             (no PSCI CPU_OFF), or protected KVM is on (kvm-arm.mode=protected)"
                .into(),
        ),
        source => Error::Call { call, source },
    }
}

/// Whether `kexec_load` would be let through, without loading or unloading anything.
///
/// The kernel checks permissions before it looks at the arguments, so a call for another architecture
/// tells the two apart: `EINVAL` means permitted. From 6.3 on a permitted call uses up one of
/// `kernel.kexec_load_limit_reboot` when that is set; then the counter is read and no call made.
///
/// # Errors
/// Why it would not be let through.
pub fn probe() -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    match number("/proc/sys/kernel/kexec_load_limit_reboot") {
        Some(0) => return Err(why_not_permitted()),
        Some(limit) if limit > 0 => return Ok(()),
        _ => {}
    }
    match call(0, &[], KEXEC_ARCH_386) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(explain(errno, "kexec_load".into())),
    }
}

/// Loads one segment: `bytes` will be at `start` when the kernel jumps to `entry`.
///
/// # Errors
/// What the kernel answered, with its reason where that can be found out.
pub fn load(entry: PhysAddr, start: PhysAddr, bytes: &[u8]) -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    let range = PhysRange::from_size(start, bytes.len() as u64)
        .map_err(|error| Error::Refused(error.to_string()))?;
    let segment = Segment {
        buffer: bytes.as_ptr().cast(),
        buffer_size_bytes: bytes.len(),
        memory: std::ptr::without_provenance(
            usize::try_from(start.as_u64()).map_err(|error| Error::Refused(error.to_string()))?,
        ),
        memory_size_bytes: bytes.len(),
    };
    call(entry.as_u64(), &[segment], KEXEC_ARCH_AARCH64).map_err(|errno| {
        explain(
            errno,
            format!("kexec_load(entry {entry}, segment {range}, KEXEC_ARCH_AARCH64)"),
        )
    })
}

/// Unloads whatever is loaded for a normal kexec.
///
/// # Errors
/// What the kernel answered.
pub fn unload() -> Result<(), Error> {
    call(0, &[], KEXEC_ARCH_AARCH64)
        .map_err(|errno| explain(errno, "kexec_load(no segments)".into()))
}

/// Whether something is loaded for a normal kexec, by anyone; `None` if the kernel does not say.
#[must_use]
pub fn is_loaded() -> Option<bool> {
    ["/sys/kernel/kexec_loaded", "/sys/kernel/kexec/loaded"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .find_map(number)
        .map(|loaded| loaded == 1)
}
