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

/// Whether this process is in another user namespace than the initial one, whose map is the identity.
#[must_use]
pub fn is_in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Whether this process sees other mounts than PID 1 does; `None` if that cannot be known.
#[must_use]
pub fn has_own_mounts() -> Option<bool> {
    let namespace = |process| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    Some(namespace("self")? != namespace("1")?)
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

/// Bits of a virtual address that user space may have: 52 where the kernel and the CPU have them, else
/// 48 (or fewer).
///
/// The CPU does not tell EL0 whether it has LPA2 or LVA, but Linux gives user space an address above
/// 2^48 if asked for one, exactly when its own addresses have 52 bits too
/// (Documentation/arch/arm64/memory.rst).
#[must_use]
pub fn virtual_address_bits() -> u32 {
    const ABOVE_48_BITS: usize = 1 << 50;
    let length = rustix::param::page_size();
    // SAFETY: a new, inaccessible mapping; without MAP_FIXED the address is a wish and replaces nothing.
    let mapping = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::without_provenance_mut(ABOVE_48_BITS),
            length,
            rustix::mm::ProtFlags::empty(),
            rustix::mm::MapFlags::PRIVATE,
        )
    };
    let Ok(mapping) = mapping else { return 48 };
    let bits = if mapping.addr() >> 48 == 0 { 48 } else { 52 };
    // SAFETY: unmaps exactly what was just mapped; nothing refers to it.
    let _ = unsafe { rustix::mm::munmap(mapping, length) };
    bits
}

/// How an ACPI machine wants PSCI to be called: the FADT's ARM_BOOT_ARCH flags (ACPI 5.1, 5.2.9.4), bit 0
/// PSCI, bit 1 HVC. `None` without ACPI or without PSCI; otherwise whether it is HVC.
#[must_use]
pub fn acpi_psci_is_hvc() -> Option<bool> {
    const ARM_BOOT_ARCH_OFFSET: usize = 129;
    let table = read_limited(Path::new("/sys/firmware/acpi/tables/FACP"), 4096).ok()?;
    let flags = u16::from_le_bytes(*table.get(ARM_BOOT_ARCH_OFFSET..)?.first_chunk()?);
    (flags & 1 == 1).then_some(flags & 2 == 2)
}

/// Takes a lock that every kleap takes before it changes something; waits for it. Held until dropped.
///
/// The lock is on the device tree in sysfs, which a hand-over needs anyway: no lock file is left behind, none
/// can be missing, and only root can open it, so nobody else can keep kleap waiting.
///
/// # Errors
/// If the file is missing, or may not be opened.
pub fn lock() -> Result<std::os::fd::OwnedFd, Error> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let path = DEVICE_TREE_PATH;
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::file("cannot open", path, error))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| Error::file("cannot lock", path, error))?;
    Ok(file)
}
