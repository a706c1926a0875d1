//! What machine this is, as Linux shows it. Reads only.

use crate::Error;
use std::path::Path;

/// `CAP_SYS_BOOT` (`include/uapi/linux/capability.h`).
pub const CAP_SYS_BOOT: u32 = 22;
/// `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u32 = 21;

/// The device tree that the running kernel was given.
pub const DEVICE_TREE_PATH: &str = "/sys/firmware/fdt";
/// The map of physical memory.
pub const IOMEM_PATH: &str = "/proc/iomem";

/// Whether this process has a capability in its effective set (`/proc/self/status`, `CapEff`).
#[must_use]
pub fn has_capability(capability: u32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> capability & 1 == 1)
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// If it cannot be read, or is longer.
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let file =
        std::fs::File::open(path).map_err(|error| Error::file("cannot open", path, error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Error::content(path, "is a directory, not a file"));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::file("cannot read", path, error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::content(
            path,
            format!("is larger than {max_bytes} bytes"),
        ));
    }
    Ok(bytes)
}

/// The running kernel's release and version (`uname -r`, `uname -v`).
#[must_use]
pub fn kernel_release() -> (String, String) {
    let name = rustix::system::uname();
    (
        name.release().to_string_lossy().into_owned(),
        name.version().to_string_lossy().into_owned(),
    )
}

/// The running kernel's page size, bytes.
#[must_use]
pub fn page_size_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// `MIDR_EL1` of CPU 0, if the kernel shows it.
#[must_use]
pub fn midr() -> Option<u64> {
    let path = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
    let text = std::fs::read_to_string(path).ok()?;
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// CPUs that are online, count.
#[must_use]
pub fn cpus_online() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    text.trim()
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

/// `MemTotal` and `MemAvailable` of `/proc/meminfo`, bytes.
///
/// # Errors
/// If it cannot be read.
pub fn memory_bytes() -> Result<(u64, u64), Error> {
    let path = "/proc/meminfo";
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .and_then(|kib| kib.checked_mul(1024))
            .ok_or_else(|| Error::content(path, format!("no {name}")))
    };
    Ok((value("MemTotal:")?, value("MemAvailable:")?))
}

/// This boot's identity: differs from boot to boot, also across kexec.
///
/// # Errors
/// If it cannot be read.
pub fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    Ok(text.trim().to_owned())
}

/// The running kernel's command line.
///
/// # Errors
/// If it cannot be read.
pub fn command_line() -> Result<String, Error> {
    let path = "/proc/cmdline";
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    Ok(text.trim().to_owned())
}

/// Fills `bytes` from the kernel's random number generator.
///
/// # Errors
/// If the kernel cannot (before it is seeded it waits).
pub fn random(bytes: &mut [u8]) -> Result<(), Error> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()).map_err(
            |source| Error::Call {
                call: "getrandom".into(),
                source,
            },
        )?;
    }
    Ok(())
}
