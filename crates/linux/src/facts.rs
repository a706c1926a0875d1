//! What machine this is, as Linux shows it. Reads only.

use crate::Error;
use std::ops::Range;
use std::path::Path;

/// `CAP_SYS_BOOT` (`include/uapi/linux/capability.h`).
pub const CAP_SYS_BOOT: u32 = 22;
/// `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u32 = 21;

/// The device tree that the running kernel was given.
pub const DEVICE_TREE_PATH: &str = "/sys/firmware/fdt";
/// All memory as a core file.
pub(crate) const KCORE_PATH: &str = "/proc/kcore";
/// The map of physical memory.
pub const IOMEM_PATH: &str = "/proc/iomem";

/// Whether this process has a capability in its effective set. By capget(2), which needs no file descriptor:
/// where there is none left, the answer would be no.
#[must_use]
pub fn has_capability(capability: u32) -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.bits() >> capability & 1 == 1)
}

/// Whether this process is in another user namespace than the initial one, whose map is the identity.
#[must_use]
pub fn is_in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_all_users(&map))
}

/// Whether a map of users, as in `/proc/self/uid_map`, is the identity.
#[must_use]
pub fn maps_all_users(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether this process sees other mounts than PID 1 does; `None` if that cannot be known.
#[must_use]
pub fn has_own_mounts() -> Option<bool> {
    let namespace = |process| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    Some(namespace("self")? != namespace("1")?)
}

/// Has the kernel drop what it has of a file in its cache, as far as it can: what is being written, mapped or not on a disk
/// stays. Whether it did is not known, and nothing depends on it.
pub fn drop_cached(path: &Path) {
    if let Ok(file) = std::fs::File::open(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Reads a file of at most `max_bytes`.
///
/// # Errors
/// If it cannot be read, or is longer.
pub fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let file =
        std::fs::File::open(path).map_err(|error| Error::file("cannot open", path, error))?;
    let metadata = file.metadata().ok();
    if metadata.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Err(Error::content(path, "is a directory, not a file"));
    }
    // All room at once, and one byte to see the end in: with room that grows, reading a kernel took twice as long. Files of
    // procfs say that they are empty.
    let said_bytes = metadata.map_or(0, |metadata| metadata.len());
    let room_bytes = said_bytes.min(max_bytes).saturating_add(1);
    let mut bytes = Vec::new();
    // If there is no such room, reading says so where it is really needed.
    let _ = bytes.try_reserve_exact(usize::try_from(room_bytes).unwrap_or(0));
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
    midr_in(&std::fs::read_to_string(path).ok()?)
}

/// `MIDR_EL1` in the text of its file, `0x` and hexadecimal digits.
#[must_use]
pub fn midr_in(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// CPUs that are online, count.
#[must_use]
pub fn cpus_online() -> Option<usize> {
    cpu_list("online").map(|cpus| cpus.len())
}

const CPU_DIRECTORY: &str = "/sys/devices/system/cpu";
/// Most CPUs that are looked at: `CONFIG_NR_CPUS` is at most 4096 on arm64.
const CPUS_MAX: usize = 4096;

/// The CPUs of a list such as `0-3,5`; `None` if it is none, or names more than [`CPUS_MAX`].
#[must_use]
pub fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let count = usize::try_from(last.checked_sub(first)?)
            .ok()?
            .checked_add(1)?;
        if cpus.len().checked_add(count)? > CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn cpu_list(name: &str) -> Option<Vec<u32>> {
    parse_cpu_list(&std::fs::read_to_string(Path::new(CPU_DIRECTORY).join(name)).ok()?)
}

/// The machine's CPUs, as far as a hand-over has to stop them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    /// Those that the kernel has room for, count: with more than one it wants to be able to stop them.
    pub possible: usize,
    /// Those that are running.
    pub online: Vec<u32>,
    /// Of those, the ones that the kernel does not know how to stop: sysfs has no `online` for them
    /// (`cpu_can_disable`; a CPU without PSCI, or the one on which a trusted operating system lives).
    pub unstoppable: Vec<u32>,
    /// The one that jumps, which need not be stopped (`/sys/kernel/reboot/cpu`; 0 before 5.11).
    pub reboot: u32,
}

/// The machine's CPUs; `None` if sysfs does not say.
#[must_use]
pub fn cpus() -> Option<Cpus> {
    let online = cpu_list("online")?;
    let stop = |cpu: &u32| Path::new(CPU_DIRECTORY).join(format!("cpu{cpu}/online"));
    Some(Cpus {
        possible: cpu_list("possible")?.len(),
        unstoppable: online
            .iter()
            .copied()
            .filter(|cpu| !stop(cpu).exists())
            .collect(),
        online,
        reboot: reboot_cpu(),
    })
}

/// The CPU on which the kernel will jump: the one in `/sys/kernel/reboot/cpu`, CPU 0 where there is no such
/// file (before 5.11); and if that is not online, the first that is (`migrate_to_reboot_cpu` in kernel/reboot.c).
#[must_use]
pub fn reboot_cpu() -> u32 {
    let wanted = std::fs::read_to_string("/sys/kernel/reboot/cpu")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    match cpu_list("online").as_deref() {
        Some(online @ [first, ..]) if !online.contains(&wanted) => *first,
        _ => wanted,
    }
}

/// The main interrupt controller, by the name of Linux' driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptController {
    /// `GICv3`, which stands for a GICv4 as well.
    GicV3,
    /// `GICv2`, or older.
    GicV2,
    /// None of Arm's.
    Other,
}

/// The controller that the interrupts in `/proc/interrupts` come by; `None` if that cannot be read.
#[must_use]
pub fn interrupt_controller() -> Option<InterruptController> {
    Some(interrupt_controller_in(
        &std::fs::read_to_string("/proc/interrupts").ok()?,
    ))
}

/// The same from the text of `/proc/interrupts`.
#[must_use]
pub fn interrupt_controller_in(text: &str) -> InterruptController {
    let names = |wanted: &str| text.split_whitespace().any(|word| word.starts_with(wanted));
    if names("GICv3") {
        InterruptController::GicV3
    } else if names("GICv2") || names("GIC-") {
        InterruptController::GicV2
    } else {
        InterruptController::Other
    }
}

/// Whether a seccomp filter is in force for this process (`Seccomp: 2` of `/proc/self/status`): then an answer
/// to a system call may be the filter's and not the kernel's.
#[must_use]
pub fn has_seccomp_filter() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_seccomp_filter_in(&status))
}

/// The same from the text of `/proc/self/status`.
#[must_use]
pub fn has_seccomp_filter_in(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .is_some_and(|mode| mode.trim() == "2")
}

/// Whether this process may write a file or into a directory, by access(2): nothing is opened.
///
/// # Errors
/// Why not.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK)
        .map_err(|error| Error::file("cannot write", path, error))
}

/// `/proc/meminfo`, as far as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// `MemTotal`, bytes.
    pub total_bytes: u64,
    /// `MemFree`, bytes: used for nothing at all.
    pub free_bytes: u64,
    /// `MemAvailable`, bytes.
    pub available_bytes: u64,
    /// `CmaFree`, bytes: part of what is available, but only for movable pages, as huge pages are.
    pub cma_free_bytes: u64,
}

impl MemoryInfo {
    /// What is available to the kernel for itself, which cannot come from CMA, bytes.
    #[must_use]
    pub const fn available_without_cma_bytes(&self) -> u64 {
        self.available_bytes.saturating_sub(self.cma_free_bytes)
    }
}

/// How much memory there is.
///
/// # Errors
/// If it cannot be read.
pub fn memory() -> Result<MemoryInfo, Error> {
    let path = "/proc/meminfo";
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    memory_in(&text)
}

/// The same from the text of `/proc/meminfo`.
///
/// # Errors
/// If it lacks something, or has no number where one should be.
pub fn memory_in(text: &str) -> Result<MemoryInfo, Error> {
    let path = "/proc/meminfo";
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .and_then(|kib| kib.checked_mul(1024))
            .ok_or_else(|| Error::content(path, format!("no {name}")))
    };
    Ok(MemoryInfo {
        total_bytes: value("MemTotal:")?,
        free_bytes: value("MemFree:")?,
        available_bytes: value("MemAvailable:")?,
        // Not there without CONFIG_CMA.
        cma_free_bytes: value("CmaFree:").unwrap_or(0),
    })
}

/// By how much the kernel has raised its reserves for the moment, bytes: after it had to take pages from blocks of another
/// kind, it keeps more free until it has tidied up (`watermark_boost_factor` in
/// Documentation/admin-guide/sysctl/vm.rst). `MemAvailable` does not know of it, and what is below is given to nobody.
/// 0 where the kernel does not say.
#[must_use]
pub fn watermark_boost_bytes() -> u64 {
    std::fs::read_to_string("/proc/zoneinfo").map_or(0, |text| {
        watermark_boost_pages_in(&text).saturating_mul(page_size_bytes())
    })
}

/// The same in pages, from the text of `/proc/zoneinfo`: of all zones together.
#[must_use]
pub fn watermark_boost_pages_in(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("boost")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .fold(0, u64::saturating_add)
}

/// Memory that the kernel has taken out of use because it is bad (`HardwareCorrupted` of `/proc/meminfo`),
/// bytes; `None` if it does not say (CONFIG_MEMORY_FAILURE).
#[must_use]
pub fn corrupted_bytes() -> Option<u64> {
    corrupted_bytes_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// The same from the text of `/proc/meminfo`.
#[must_use]
pub fn corrupted_bytes_in(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("HardwareCorrupted:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
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

/// The text that describes the running kernel to a crash dump's reader: lines as `OSRELEASE=...` and
/// `NUMBER(VA_BITS)=48` (Documentation/admin-guide/kdump/vmcoreinfo.rst). From the note in `/proc/kcore`.
///
/// # Errors
/// If there is no `/proc/kcore` (CONFIG_PROC_KCORE), it may not be read (CAP_SYS_RAWIO, lockdown in
/// confidentiality mode), or has no such note.
pub fn vmcoreinfo() -> Result<String, Error> {
    let path = KCORE_PATH;
    let file =
        std::fs::File::open(path).map_err(|error| Error::file("cannot open", path, error))?;
    let part = |range: Range<u64>| -> Result<Vec<u8>, Error> {
        use std::os::unix::fs::FileExt;
        let size_bytes = range.end.saturating_sub(range.start);
        if size_bytes > elf::PART_MAX_BYTES {
            return Err(Error::content(
                path,
                format!("its headers or notes are of {size_bytes} bytes"),
            ));
        }
        let length =
            usize::try_from(size_bytes).map_err(|error| Error::content(path, error.to_string()))?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, range.start)
            .map_err(|error| Error::file("cannot read", path, error))?;
        Ok(bytes)
    };
    vmcoreinfo_in(part)
}

/// The same from a core file of which `part` reads what it is asked for, to the last byte.
///
/// # Errors
/// If it has no such note, or is no core file; and whatever `part` answers.
pub fn vmcoreinfo_in(
    mut part: impl FnMut(Range<u64>) -> Result<Vec<u8>, Error>,
) -> Result<String, Error> {
    let absent = |what: &str| Error::content(KCORE_PATH, format!("has no {what}"));
    let header = part(0..elf::HEADER_BYTES)?;
    let table = elf::program_headers(&header).ok_or_else(|| absent("64-bit ELF header"))?;
    for range in elf::note_segments(&part(table)?) {
        if let Some(text) = elf::note(&part(range)?, b"VMCOREINFO") {
            return Ok(String::from_utf8_lossy(text).into_owned());
        }
    }
    Err(absent("VMCOREINFO note"))
}

/// Bits of a virtual address that the running kernel was *built* for, which may be more than this CPU has
/// (see [`virtual_address_bits`]). `None` where [`vmcoreinfo`] cannot be read.
#[must_use]
pub fn configured_virtual_address_bits() -> Option<u32> {
    number_in_vmcoreinfo(&vmcoreinfo().ok()?, "VA_BITS")
}

/// `NUMBER(name)=value` in the text of [`vmcoreinfo`].
#[must_use]
pub fn number_in_vmcoreinfo(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix("NUMBER(")?.strip_prefix(name)?;
        rest.strip_prefix(")=")?.trim().parse().ok()
    })
}

/// As much of a 64-bit little-endian ELF file as it takes to find a note or a range of memory in it (elf(5)).
///
/// By hand: `/proc/kcore` is a file of all memory, of which a library would want to have a slice.
pub(crate) mod elf {
    use std::ops::Range;

    /// Size of the file's header, bytes.
    pub(crate) const HEADER_BYTES: u64 = 64;
    /// Most bytes of the program headers (65535 of 56 bytes), and of the notes.
    pub(crate) const PART_MAX_BYTES: u64 = 4 << 20;
    /// Size of one program header, bytes.
    const PROGRAM_HEADER_BYTES: u16 = 56;
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    /// Sizes of a note's name and of its content are rounded up to this.
    const NOTE_ALIGNMENT_BYTES: usize = 4;

    fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
    }

    fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
    }

    fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
    }

    /// Where the file header says that the program headers are, in the file.
    pub(crate) fn program_headers(header: &[u8]) -> Option<Range<u64>> {
        /// Magic number, 64-bit, little-endian, version 1.
        const IDENTIFICATION: &[u8] = b"\x7fELF\x02\x01\x01";
        if !header.starts_with(IDENTIFICATION) || u16_at(header, 54)? != PROGRAM_HEADER_BYTES {
            return None;
        }
        let start = u64_at(header, 32)?;
        let size_bytes = u64::from(PROGRAM_HEADER_BYTES) * u64::from(u16_at(header, 56)?);
        Some(start..start.checked_add(size_bytes)?)
    }

    /// Where the notes are, in the file.
    pub(crate) fn note_segments(table: &[u8]) -> impl Iterator<Item = Range<u64>> {
        table
            .chunks_exact(usize::from(PROGRAM_HEADER_BYTES))
            .filter(|entry| u32_at(entry, 0) == Some(PT_NOTE))
            .filter_map(|entry| {
                let start = u64_at(entry, 8)?;
                Some(start..start.checked_add(u64_at(entry, 32)?)?)
            })
    }

    /// A range of memory.
    pub(crate) struct LoadSegment {
        pub(crate) virtual_start: u64,
        /// `None` where it is said not to be known: all ones.
        pub(crate) physical_start: Option<u64>,
        pub(crate) size_bytes: u64,
    }

    /// Where memory is.
    pub(crate) fn load_segments(table: &[u8]) -> impl Iterator<Item = LoadSegment> {
        table
            .chunks_exact(usize::from(PROGRAM_HEADER_BYTES))
            .filter(|entry| u32_at(entry, 0) == Some(PT_LOAD))
            .filter_map(|entry| {
                Some(LoadSegment {
                    virtual_start: u64_at(entry, 16)?,
                    physical_start: u64_at(entry, 24).filter(|start| *start != u64::MAX),
                    size_bytes: u64_at(entry, 40)?,
                })
            })
    }

    /// The content of the first note of this name.
    pub(crate) fn note<'a>(mut notes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        let taken = |bytes: &mut &'a [u8], size_bytes: u32| {
            let length = usize::try_from(size_bytes).ok()?;
            let content = bytes.get(..length)?;
            let padded = length.checked_next_multiple_of(NOTE_ALIGNMENT_BYTES)?;
            // The last one's padding may be missing.
            *bytes = bytes.get(padded..).unwrap_or_default();
            Some(content)
        };
        loop {
            let (name_bytes, content_bytes) = (u32_at(notes, 0)?, u32_at(notes, 4)?);
            notes = notes.get(12..)?;
            let found = taken(&mut notes, name_bytes)?;
            let content = taken(&mut notes, content_bytes)?;
            // The name has a NUL at its end.
            if found.strip_suffix(b"\0").unwrap_or(found) == name {
                return Some(content);
            }
        }
    }
}

/// An ACPI table as the firmware gave it (`FACP`, `APIC`, `SPCR`), of at most `max_bytes`. `None` if this
/// kernel does not use ACPI, or the firmware has no such table.
///
/// # Errors
/// If it is there and cannot be read, or is longer.
pub fn acpi_table(signature: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
    let path = Path::new("/sys/firmware/acpi/tables").join(signature);
    if !path.exists() {
        return Ok(None);
    }
    read_limited(&path, max_bytes as u64).map(Some)
}

/// Whether this kernel was started by EFI and uses what the firmware left for it.
#[must_use]
pub fn is_efi() -> bool {
    Path::new("/sys/firmware/efi").is_dir()
}

/// Whether this kernel uses ACPI's tables and not a device tree.
#[must_use]
pub fn has_acpi() -> bool {
    Path::new("/sys/firmware/acpi/tables").is_dir()
}

/// How long the lock is waited for in silence.
const SILENT_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
const LOCK_POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(20);

/// Takes a lock that every kleap takes before it changes something; waits for it. Held until dropped. If it takes
/// more than a second, `waiting` is told who has it, as far as that can be found out.
///
/// The lock is on the device tree in sysfs, which a hand-over needs anyway: no lock file is left behind, none
/// can be missing, and only root can open it, so nobody else can keep kleap waiting.
///
/// # Errors
/// If the file is missing, or may not be opened.
pub fn lock(waiting: impl FnOnce(Option<LockHolder>)) -> Result<std::os::fd::OwnedFd, Error> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let path = DEVICE_TREE_PATH;
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::file("cannot open", path, error))?;
    let began = std::time::Instant::now();
    while began.elapsed() < SILENT_WAIT {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_POLL_INTERVAL),
            taken => {
                taken.map_err(|error| Error::file("cannot lock", path, error))?;
                return Ok(file);
            }
        }
    }
    let holder = rustix::fs::fstat(&file).ok().and_then(|stat| {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        LockHolder::look(locker(&locks, stat.st_dev, stat.st_ino)?)
    });
    waiting(holder);
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| Error::file("cannot lock", path, error))?;
    Ok(file)
}

/// A process that has the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    process: u32,
    name: String,
    is_stopped: bool,
}

impl LockHolder {
    fn look(process: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        Self::from_stat(process, &stat)
    }

    /// From the text of the process' `stat`; `None` if it is none.
    #[must_use]
    pub fn from_stat(process: u32, stat: &str) -> Option<Self> {
        // `number (name) state ...`; the name may have anything in it.
        let (before, after) = stat.rsplit_once(')')?;
        Some(Self {
            process,
            name: before.split_once('(')?.1.replace(char::is_control, "?"),
            is_stopped: matches!(after.trim_start().chars().next(), Some('T' | 't')),
        })
    }
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "process {} ({}", self.process, self.name)?;
        formatter.write_str(if self.is_stopped { ", stopped)" } else { ")" })
    }
}

/// The process that has the flock(2) on a file, as `/proc/locks` has it:
/// `1: FLOCK  ADVISORY  WRITE 312 00:15:1234 0 EOF`. Lines with `->` wait for it. `device` and `inode` are as
/// stat(2) has them.
#[must_use]
pub fn locker(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, process, found, ..] if found == file => process.parse().ok(),
            _ => None,
        }
    })
}

/// The same lock, if nobody has it now; does not wait.
///
/// # Errors
/// If the file is missing, or may not be opened.
pub fn try_lock() -> Result<Option<std::os::fd::OwnedFd>, Error> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let path = DEVICE_TREE_PATH;
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::file("cannot open", path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::file("cannot lock", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core file as `fs/proc/kcore.c` makes it: header, program headers, notes.
    fn core_file(notes: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut content = Vec::new();
        for (name, text) in notes {
            content.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            content.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            content.extend(0_u32.to_le_bytes());
            for part in [name, text] {
                content.extend(*part);
                content.resize(content.len().next_multiple_of(4), 0);
            }
        }
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&2_u16.to_le_bytes());
        for (kind, start) in [(1_u32, 1_u64 << 40), (4, 64 + 2 * 56)] {
            let mut entry = vec![0; 56];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            entry[8..16].copy_from_slice(&start.to_le_bytes());
            entry[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend(entry);
        }
        file.extend(content);
        file
    }

    /// What `vmcoreinfo` does, on a file in memory.
    fn find(file: &[u8]) -> Option<&[u8]> {
        let part = |range: Range<u64>| {
            file.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
        };
        let table = elf::program_headers(part(0..elf::HEADER_BYTES)?)?;
        elf::note_segments(part(table)?).find_map(|range| elf::note(part(range)?, b"VMCOREINFO"))
    }

    const TEXT: &[u8] = b"OSRELEASE=6.12\nNUMBER(VA_BITS)=52\nKERNELOFFSET=0\n";

    /// As 6.12 prints it, shortened.
    #[test]
    fn reserves_that_are_raised_are_added_up() {
        let text = "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 1\n  pages free     21672\n        boost    17167\n        \
                    min      24798\nNode 0, zone   Normal\n  pages free     5\n        boost    3\n        min      1\n";
        assert_eq!(watermark_boost_pages_in(text), 17_170);
        assert_eq!(
            watermark_boost_pages_in("  pages free 1\n        min 2\n"),
            0
        );
        assert_eq!(watermark_boost_pages_in("boost\nboosted 7\nboost -1\n"), 0);
    }

    #[test]
    fn a_note_is_found_wherever_it_is() {
        let other: (&[u8], &[u8]) = (b"CORE\0", &[7; 336]);
        let wanted: (&[u8], &[u8]) = (b"VMCOREINFO\0", TEXT);
        for notes in [
            &[wanted][..],
            &[other, wanted],
            &[other, (b"", b""), (b"CORE\0", b"x"), wanted, other],
        ] {
            assert_eq!(find(&core_file(notes)), Some(TEXT));
        }
        assert_eq!(find(&core_file(&[other])), None);
        assert_eq!(find(&core_file(&[])), None);
    }

    #[test]
    fn no_broken_file_does_any_harm() {
        let file = core_file(&[(b"CORE\0", &[7; 33]), (b"VMCOREINFO\0", TEXT)]);
        for length in 0..file.len() {
            // The length of the text is in the note: nothing shorter is found.
            let found = find(&file[..length]);
            assert!(found.is_none(), "{length}: {found:?}");
        }
        for index in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, file[index] ^ 1] {
                let mut broken = file.clone();
                broken[index] = value;
                // Any answer is right that is no panic; what is found has the text's length or less.
                let found = find(&broken).unwrap_or_default();
                assert!(found.len() < file.len(), "byte {index} = {value:#x}");
            }
        }
    }

    #[test]
    fn who_has_a_lock() {
        let device = rustix::fs::makedev(0, 0x15);
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:15:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 8 00:16:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 312 00:15:99 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 313 00:15:99 0 EOF\n";
        assert_eq!(locker(locks, device, 99), Some(312));
        assert_eq!(locker(locks, device, 9), None);
        assert_eq!(locker("", device, 99), None);
        let this = LockHolder::look(std::process::id()).unwrap();
        assert!(!this.is_stopped && !this.name.is_empty(), "{this}");
    }

    #[test]
    fn this_process_has_a_lock() {
        use rustix::fs::{FlockOperation, flock, fstat};
        let path = format!("/dev/shm/kleap-lock-{}", std::process::id());
        let file = std::fs::File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let stat = fstat(&file).unwrap();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let found = locker(&locks, stat.st_dev, stat.st_ino);
        assert_eq!(found, Some(std::process::id()), "{locks}");
    }

    #[test]
    fn lists_of_cpus() {
        for (text, cpus) in [
            ("0\n", Some(vec![0])),
            ("0-3\n", Some(vec![0, 1, 2, 3])),
            ("0-1,4,6-7", Some(vec![0, 1, 4, 6, 7])),
            ("", None),
            ("\n", None),
            ("3-1", None),
            ("0-", None),
            ("0-4095", Some((0..4096).collect())),
            ("0-4096", None),
            ("0-4294967295", None),
            ("x", None),
        ] {
            assert_eq!(parse_cpu_list(text), cpus, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_cpus() {
        let cpus = cpus().unwrap();
        assert!(!cpus.online.is_empty() && cpus.possible >= cpus.online.len());
        assert!(cpus.unstoppable.iter().all(|cpu| cpus.online.contains(cpu)));
        assert_eq!(cpus_online(), Some(cpus.online.len()));
    }

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let text = "X=NUMBER(VA_BITS)=1\nNUMBER(VA_BITS_MIN)=2\nNUMBER(VA_BITS)=52\nNUMBER(Y)=x\n";
        assert_eq!(number_in_vmcoreinfo(text, "VA_BITS"), Some(52));
        assert_eq!(number_in_vmcoreinfo(text, "Y"), None);
        assert_eq!(number_in_vmcoreinfo(text, "Z"), None);
    }

    #[test]
    fn this_machine_has_a_vmcoreinfo() {
        match vmcoreinfo() {
            Ok(text) => assert!(text.contains("OSRELEASE="), "{text}"),
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }
}
