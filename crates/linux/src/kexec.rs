//! `kexec_load(2)` and `kexec_file_load(2)`.
//!
//! Called through `syscall(2)`: no library has them for every libc. The kernel never looks at the entry
//! address of a normal load and lets a segment's destination be any memory (`kernel/kexec.c`), so kleap
//! mostly needs one segment, the relocator's stage, whose destination is memory that we own. Where pages
//! cannot be owned, the payload is given to the kernel as further segments, which it copies twice.
//!
//! Where the kernel accepts only what it can check itself (lockdown, a signature policy), `kexec_file_load`
//! takes a kernel file and makes everything else on its own: no relocator, no verification, no timeline.
//! The last resort.

use crate::Error;
use kleap_memmap::{PhysAddr, PhysRange};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// `KEXEC_ARCH_AARCH64` (`include/uapi/linux/kexec.h`).
const KEXEC_ARCH_AARCH64: libc::c_ulong = 183 << 16;
/// `KEXEC_ON_CRASH`.
const KEXEC_ON_CRASH: libc::c_ulong = 1;
/// An architecture that no arm64 kernel accepts: `KEXEC_ARCH_386`.
const KEXEC_ARCH_386: libc::c_ulong = 3 << 16;

/// `kexec_file_load` has one number on all architectures of the asm-generic table, as arm64; not every libc
/// names it.
const SYS_KEXEC_FILE_LOAD: libc::c_long = if cfg!(target_arch = "x86_64") {
    320
} else {
    294
};
/// `KEXEC_FILE_UNLOAD`.
const KEXEC_FILE_UNLOAD: libc::c_ulong = 1;
/// `KEXEC_FILE_ON_CRASH`.
const KEXEC_FILE_ON_CRASH: libc::c_ulong = 2;
/// `KEXEC_FILE_NO_INITRAMFS`.
const KEXEC_FILE_NO_INITRAMFS: libc::c_ulong = 4;
/// Most segments of one load (`KEXEC_SEGMENT_MAX`).
pub const SEGMENTS_MAX: usize = 16;
/// Most bytes of a command line with the NUL at its end (`COMMAND_LINE_SIZE` of arm64).
pub const COMMAND_LINE_MAX_BYTES: usize = 2048;

/// How often `kexec_load` is called where it has no memory. It asks for what it will need itself, tables among it, with
/// `__GFP_NORETRY` (`KEXEC_CONTROL_MEMORY_GFP`), which gives up when one round of reclaim has freed only pages that the kernel
/// itself cannot use (CMA), with any number of others in caches; the kernel goes on to free those while we wait.
const MEMORY_TRIES: u32 = 5;
/// How long is waited in between.
const MEMORY_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
const LOAD: &str = "kexec_load";
const FILE_LOAD: &str = "kexec_file_load";

/// Bytes, and the memory where they are to be when the kernel jumps.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Where they will be; a multiple of the page size.
    pub start: PhysAddr,
    /// What will be there; the rest of the last page is zero.
    pub bytes: &'a [u8],
}

impl std::fmt::Debug for Segment<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} bytes at {}", self.bytes.len(), self.start)
    }
}

impl Segment<'_> {
    /// The memory that it takes: whole pages of `page_size_bytes`.
    fn range(&self, page_size_bytes: u64) -> Result<PhysRange, Error> {
        let refused = || {
            Error::Segments(format!(
                "{self:?} are not whole pages of {page_size_bytes} bytes of memory"
            ))
        };
        if !self.start.is_aligned(page_size_bytes) {
            return Err(refused());
        }
        (self.bytes.len() as u64)
            .checked_next_multiple_of(page_size_bytes)
            .and_then(|size_bytes| PhysRange::from_size(self.start, size_bytes).ok())
            .ok_or_else(refused)
    }
}

/// The segments by address, with the memory that each takes.
fn arrange<'a>(
    segments: &[Segment<'a>],
    page_size_bytes: u64,
) -> Result<Vec<(PhysRange, Segment<'a>)>, Error> {
    if !(1..=SEGMENTS_MAX).contains(&segments.len()) {
        return Err(Error::Segments(format!(
            "{} segments, and the kernel takes 1 to {SEGMENTS_MAX}",
            segments.len()
        )));
    }
    let mut arranged = segments
        .iter()
        .map(|segment| Ok((segment.range(page_size_bytes)?, *segment)))
        .collect::<Result<Vec<_>, Error>>()?;
    arranged.sort_by_key(|(range, _)| (range.start(), range.end()));
    for pair in arranged.windows(2) {
        if let [(before, _), (after, _)] = pair
            && after.start() < before.end()
        {
            return Err(Error::Segments(format!(
                "{before} and {after} overlap (in pages of {page_size_bytes} bytes)"
            )));
        }
    }
    Ok(arranged)
}

/// `struct kexec_segment`.
#[repr(C)]
struct KernelSegment {
    buffer: *const libc::c_void,
    buffer_size_bytes: usize,
    memory: *const libc::c_void,
    memory_size_bytes: usize,
}

/// One call; the kernel's answer as it is.
fn call(entry: u64, segments: &[KernelSegment], flags: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: `segments` outlives the call and each buffer in it is a live slice (`load`), or an address that
    // the kernel refuses to read (`try_prepare`); the kernel copies and keeps no pointer. With KEXEC_ON_CRASH it
    // copies to where the segments say, but refuses what is not inside the memory that it has set aside for that
    // (`sanity_check_segment_list`): nothing that anybody else uses is written.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            entry,
            segments.len(),
            segments.as_ptr(),
            flags,
        )
    };
    answered(answer)
}

fn answered(answer: libc::c_long) -> Result<(), Errno> {
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
    lockdown_in(&std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// The mode in brackets, as in `none [integrity] confidentiality`.
#[must_use]
pub fn lockdown_in(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Whether the sysctl `kernel.kexec_load_disabled` is set; it stays so until the next boot. `None` if there is
/// none, or it cannot be read.
#[must_use]
pub fn is_disabled() -> Option<bool> {
    number("/proc/sys/kernel/kexec_load_disabled").map(|value| value != 0)
}

/// How many more calls the sysctl `kernel.kexec_load_limit_reboot` allows, which can only be made fewer until
/// the next boot: loads and unloads count alike. `None` if there is no limit, or no such sysctl (before 6.3).
#[must_use]
pub fn calls_left() -> Option<u64> {
    number("/proc/sys/kernel/kexec_load_limit_reboot").and_then(|left| u64::try_from(left).ok())
}

/// What a load is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A hand-over.
    Reboot,
    /// A panic.
    Crash,
}

impl Purpose {
    const fn flags(self) -> libc::c_ulong {
        match self {
            Self::Reboot => KEXEC_ARCH_AARCH64,
            Self::Crash => KEXEC_ARCH_AARCH64 | KEXEC_ON_CRASH,
        }
    }

    const fn file_flags(self) -> libc::c_ulong {
        match self {
            Self::Reboot => 0,
            Self::Crash => KEXEC_FILE_ON_CRASH,
        }
    }

    /// The sysctl that counts its calls.
    const fn limit(self) -> &'static str {
        match self {
            Self::Reboot => "kernel.kexec_load_limit_reboot",
            Self::Crash => "kernel.kexec_load_limit_panic",
        }
    }

    fn calls_left(self) -> Option<u64> {
        match self {
            Self::Reboot => calls_left(),
            Self::Crash => number("/proc/sys/kernel/kexec_load_limit_panic")
                .and_then(|left| u64::try_from(left).ok()),
        }
    }
}

/// Says why the kernel answered `EPERM` to `call`; the kernel itself does not.
fn why_not_permitted(call: &'static str, purpose: Purpose) -> Error {
    let is_file = call == FILE_LOAD;
    let refused = |why: String| {
        if is_file {
            Error::FileRefused(why)
        } else {
            Error::Refused(why)
        }
    };
    if !crate::facts::has_capability(crate::facts::CAP_SYS_BOOT) {
        return Error::Privilege {
            what: if is_file {
                "kexec_file_load(2)"
            } else {
                "kexec_load(2)"
            },
            capability: "CAP_SYS_BOOT",
        };
    }
    if crate::facts::is_in_user_namespace() {
        return refused(
            "not from a user namespace, as in a container: it has to be the initial one".into(),
        );
    }
    if is_disabled() == Some(true) {
        return refused("the sysctl kernel.kexec_load_disabled is 1, until the next boot".into());
    }
    if purpose.calls_left() == Some(0) {
        return refused(format!(
            "the sysctl {} is used up, until the next boot",
            purpose.limit()
        ));
    }
    match lockdown() {
        Some(mode) if mode != "none" && is_file => refused(format!(
            "lockdown is in {mode} mode, and the kernel file has no signature that this kernel trusts"
        )),
        Some(mode) if mode != "none" => refused(format!(
            "lockdown is in {mode} mode, which forbids kexec_load (with UEFI Secure Boot it is automatic)"
        )),
        _ => refused(
            "not permitted, by lockdown or by a security module (see the kernel log)".into(),
        ),
    }
}

const BUSY: &str = "busy: another load is in progress, or this machine cannot stop its CPUs (no PSCI CPU_OFF), \
                    or protected KVM is on (kvm-arm.mode=protected)";

fn explain(errno: Errno, call: String, purpose: Purpose) -> Error {
    match errno {
        Errno::NOSYS => Error::NoKexec,
        Errno::PERM => why_not_permitted(LOAD, purpose),
        Errno::NOMEM => Error::KernelMemory,
        Errno::BUSY => Error::Refused(BUSY.into()),
        source => Error::Call { call, source },
    }
}

fn explain_file(errno: Errno, call: String) -> Error {
    match errno {
        Errno::NOSYS => Error::NoKexecFile,
        Errno::PERM => why_not_permitted(FILE_LOAD, Purpose::Reboot),
        Errno::BUSY => Error::FileRefused(BUSY.into()),
        Errno::NOEXEC => Error::FileRefused(
            "it does not take this file for a kernel: it has to be an uncompressed Image (no zboot or gzip) \
             for this CPU's page sizes and byte order"
                .into(),
        ),
        Errno::KEYREJECTED | Errno::NOKEY | Errno::NODATA | Errno::BADMSG | Errno::NOPKG => {
            Error::FileRefused(format!(
                "the kernel file's signature is missing, broken or by no key that this kernel trusts ({errno})"
            ))
        }
        Errno::NOMEM | Errno::ADDRNOTAVAIL => Error::FileMemory(errno),
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
    probe_for(Purpose::Reboot)
}

/// The same for [`load_crash`], whose calls `kernel.kexec_load_limit_panic` counts.
///
/// # Errors
/// Why it would not be let through.
pub fn probe_crash() -> Result<(), Error> {
    probe_for(Purpose::Crash)
}

fn probe_for(purpose: Purpose) -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    match purpose.calls_left() {
        Some(0) => return Err(why_not_permitted(LOAD, purpose)),
        Some(_) => return Ok(()),
        None => {}
    }
    // Without KEXEC_ON_CRASH, of which kernels before 6.3 know no difference here and later ones are not asked.
    match call(0, &[], KEXEC_ARCH_386) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(explain(errno, LOAD.into(), purpose)),
    }
}

/// What the kernel says of the machine, when it is asked to get ready for a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// Nothing speaks against it.
    Ready,
    /// `EBUSY`: it cannot stop its CPUs, protected KVM is on, or somebody else is loading just now.
    Busy,
}

/// How often `EBUSY` is asked about once more, and after how long: a load by somebody else may be short.
const BUSY_RETRIES: u32 = 2;
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Whether the kernel could hand over, as far as a load can tell, without loading or unloading anything.
///
/// The kernel first takes its lock, then asks the architecture (`machine_kexec_prepare`, which on arm64 refuses
/// where CPUs cannot be stopped), and only then reads a segment's bytes. So a load whose one segment has bytes
/// that cannot be read ends with `EFAULT` if all before that went well, and the kernel frees the few pages that
/// it took; what is loaded stays. The copy of the translation tables comes later still
/// (`machine_kexec_post_load`), so its cost and its bugs are not met.
///
/// The kernel's lock is held for that moment, and another program's load at the very same time is told
/// `EBUSY`: callers hold the lock that every kleap takes. `EBUSY` leaves a line in the kernel log. `None` where
/// [`calls_left`] counts: the call would use one up.
///
/// # Errors
/// What else the kernel answered, explained as for [`load`].
pub fn try_prepare() -> Result<Option<Preparation>, Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    if calls_left().is_some() {
        return Ok(None);
    }
    let page = rustix::param::page_size();
    let unreadable = KernelSegment {
        // The last page of the address space: the kernel's, never a program's.
        buffer: std::ptr::without_provenance(usize::MAX - page + 1),
        buffer_size_bytes: page,
        memory: std::ptr::null(),
        memory_size_bytes: page,
    };
    let mut tries = 0;
    loop {
        match call(0, std::slice::from_ref(&unreadable), KEXEC_ARCH_AARCH64) {
            Err(Errno::FAULT) => return Ok(Some(Preparation::Ready)),
            Err(Errno::BUSY) if tries < BUSY_RETRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(Errno::BUSY) => return Ok(Some(Preparation::Busy)),
            Ok(()) => {
                return Err(Error::content(
                    "kexec_load",
                    "took a segment whose bytes it cannot have read",
                ));
            }
            Err(errno) => {
                let call = "kexec_load(an unreadable segment)".into();
                return Err(explain(errno, call, Purpose::Reboot));
            }
        }
    }
}

/// Refuses where [`try_prepare`] says that the kernel could not hand over.
///
/// # Errors
/// [`Error::Refused`] for that; else as [`try_prepare`].
pub fn check_prepared() -> Result<(), Error> {
    match try_prepare()? {
        Some(Preparation::Busy) => Err(Error::Refused(BUSY.into())),
        Some(Preparation::Ready) | None => Ok(()),
    }
}

/// Loads segments, at most [`SEGMENTS_MAX`] in any order: the kernel copies their bytes now, and puts them in
/// place when it jumps to `entry`.
///
/// # Errors
/// [`Error::Segments`] if they are no whole pages or overlap; what the kernel answered, with its reason where
/// that can be found out.
pub fn load(entry: PhysAddr, segments: &[Segment<'_>]) -> Result<(), Error> {
    load_for(Purpose::Reboot, entry, segments)
}

/// Loads segments for a panic: the kernel copies them to their places now, in the memory that `crashkernel=` has
/// reserved, and enters `entry` when it panics. Whatever was loaded for a panic before is gone, also if this fails.
///
/// # Errors
/// As [`load`].
pub fn load_crash(entry: PhysAddr, segments: &[Segment<'_>]) -> Result<(), Error> {
    load_for(Purpose::Crash, entry, segments)
}

fn load_for(purpose: Purpose, entry: PhysAddr, segments: &[Segment<'_>]) -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    let arranged = arrange(segments, crate::facts::page_size_bytes())?;
    let address = |value: u64| {
        usize::try_from(value).map_err(|error| Error::Segments(format!("{value:#x}: {error}")))
    };
    let kernel_segments = arranged
        .iter()
        .map(|(range, segment)| {
            Ok(KernelSegment {
                buffer: segment.bytes.as_ptr().cast(),
                buffer_size_bytes: segment.bytes.len(),
                memory: std::ptr::without_provenance(address(range.start().as_u64())?),
                memory_size_bytes: address(range.size_bytes())?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    // Where calls are counted, each try would be one; and for a panic the memory is the one that was set aside.
    let tries = match purpose {
        Purpose::Reboot if calls_left().is_none() => MEMORY_TRIES,
        Purpose::Reboot | Purpose::Crash => 1,
    };
    let mut answer = call(entry.as_u64(), &kernel_segments, purpose.flags());
    for _ in 1..tries {
        if answer != Err(Errno::NOMEM) {
            break;
        }
        std::thread::sleep(MEMORY_PAUSE);
        answer = call(entry.as_u64(), &kernel_segments, purpose.flags());
    }
    answer.map_err(|errno| {
        let ranges: Vec<_> = arranged
            .iter()
            .map(|(range, _)| range.to_string())
            .collect();
        explain(
            errno,
            format!(
                "kexec_load(entry {entry}, segments {}, flags {:#x})",
                ranges.join(" "),
                purpose.flags()
            ),
            purpose,
        )
    })
}

/// The file to give to [`file_load`]: the one at `path` where that is the Image itself, so that a signature in
/// it is seen; a memfd with `image` where the file was compressed.
///
/// # Errors
/// If the file cannot be opened, or the memfd not made.
pub fn image_file(path: &Path, image: &[u8]) -> Result<std::fs::File, Error> {
    let file =
        std::fs::File::open(path).map_err(|error| Error::file("cannot open", path, error))?;
    if file
        .metadata()
        .is_ok_and(|metadata| metadata.len() == image.len() as u64)
    {
        return Ok(file);
    }
    memory_file("kleap-image", image)
}

/// A file in memory with these bytes, to be read from its start.
///
/// # Errors
/// If it cannot be made.
pub fn memory_file(name: &str, bytes: &[u8]) -> Result<std::fs::File, Error> {
    use std::io::{Seek, Write};
    let memfd =
        rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).map_err(|source| {
            Error::Call {
                call: "memfd_create".into(),
                source,
            }
        })?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(bytes)
        .and_then(|()| file.rewind())
        .map_err(|error| Error::file("cannot write", name, error))?;
    Ok(file)
}

/// Gives the kernel an Image and an initrd as files, which it loads, checks and places on its own, with a
/// device tree that it makes of its own one.
///
/// # Errors
/// [`Error::NoKexecFile`] without CONFIG_KEXEC_FILE; [`Error::FileRefused`] with the reason;
/// [`Error::Segments`] if the command line is too long or has a NUL in it.
pub fn file_load(
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    command_line: &str,
) -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    let text = terminated(command_line)?;
    let flags = if initrd.is_some() {
        0
    } else {
        KEXEC_FILE_NO_INITRAMFS
    };
    let initrd = initrd.map_or(-1, |file| file.as_raw_fd());
    file_call(kernel.as_raw_fd(), initrd, &text, flags).map_err(|errno| {
        let call = format!("kexec_file_load(command line of {} bytes)", text.len());
        explain_file(errno, call)
    })
}

/// The command line as the kernel wants it: with a NUL at its end, and no other.
fn terminated(command_line: &str) -> Result<Vec<u8>, Error> {
    let text = CString::new(command_line)
        .map_err(|error| Error::Segments(format!("command line: {error}")))?
        .into_bytes_with_nul();
    if text.len() > COMMAND_LINE_MAX_BYTES {
        return Err(Error::Segments(format!(
            "a command line of {} bytes, and Linux takes {}",
            text.len() - 1,
            COMMAND_LINE_MAX_BYTES - 1
        )));
    }
    Ok(text)
}

/// One call; the kernel's answer as it is.
fn file_call(kernel: i32, initrd: i32, text: &[u8], flags: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the kernel reads `text`, of the length that it is told, and the two files. `flags` has
    // KEXEC_FILE_ON_CRASH only with KEXEC_FILE_UNLOAD, which loads nothing, so no running memory is written.
    let answer = unsafe {
        libc::syscall(
            SYS_KEXEC_FILE_LOAD,
            kernel,
            initrd,
            text.len(),
            text.as_ptr(),
            flags,
        )
    };
    answered(answer)
}

/// Whether this kernel has `kexec_file_load(2)`, permitted or not. Nothing is loaded, unloaded or counted.
///
/// A call by a thread that has given up CAP_SYS_BOOT is refused before anything else is looked at: also before
/// one of `kernel.kexec_load_limit_reboot` is used up. The thread ends with it.
#[must_use]
pub fn has_file_load() -> bool {
    let answer = std::thread::spawn(|| {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_BOOT);
        set_capabilities(None, sets)?;
        // No files, and flags that no kernel knows: should it be permitted all the same, it is an error.
        file_call(-1, -1, &[], libc::c_ulong::MAX)
    });
    matches!(
        answer.join(),
        Ok(Err(Errno::PERM | Errno::INVAL | Errno::BADF))
    )
}

/// Unloads whatever is loaded for a normal kexec.
///
/// # Errors
/// What the kernel answered.
pub fn unload() -> Result<(), Error> {
    unload_for(Purpose::Reboot)
}

/// Unloads whatever is loaded for a panic.
///
/// # Errors
/// What the kernel answered.
pub fn unload_crash() -> Result<(), Error> {
    unload_for(Purpose::Crash)
}

/// With `kexec_load(2)`, or, where that is missing or forbidden, as by lockdown, with `kexec_file_load(2)`: what the
/// latter has loaded could not be taken back otherwise. Both unload what either has loaded.
fn unload_for(purpose: Purpose) -> Result<(), Error> {
    if cfg!(not(target_arch = "aarch64")) {
        return Err(Error::Architecture(std::env::consts::ARCH));
    }
    let Err(errno) = call(0, &[], purpose.flags()) else {
        return Ok(());
    };
    if matches!(errno, Errno::PERM | Errno::NOSYS)
        && file_call(-1, -1, &[], KEXEC_FILE_UNLOAD | purpose.file_flags()).is_ok()
    {
        return Ok(());
    }
    Err(explain(errno, "kexec_load(no segments)".into(), purpose))
}

/// Whether something is loaded for a normal kexec, by anyone; `None` if the kernel does not say.
#[must_use]
pub fn is_loaded() -> Option<bool> {
    first_number(&["/sys/kernel/kexec_loaded", "/sys/kernel/kexec/loaded"])
        .map(|loaded| loaded == 1)
}

/// Whether something is loaded for a panic, by anyone; `None` if the kernel does not say.
#[must_use]
pub fn is_crash_loaded() -> Option<bool> {
    first_number(&[
        "/sys/kernel/kexec_crash_loaded",
        "/sys/kernel/kexec/crash_loaded",
    ])
    .map(|loaded| loaded == 1)
}

/// How much memory is set aside for a crash kernel, bytes; `None` if the kernel does not say.
#[must_use]
pub fn crash_size_bytes() -> Option<u64> {
    first_number(&[
        "/sys/kernel/kexec_crash_size",
        "/sys/kernel/kexec/crash_size",
    ])
    .and_then(|size| u64::try_from(size).ok())
}

/// The number in the first of these files that there is.
fn first_number(paths: &[&str]) -> Option<i64> {
    paths
        .iter()
        .filter(|path| Path::new(path).exists())
        .find_map(|path| number(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn segment(start: u64, bytes: &[u8]) -> Segment<'_> {
        Segment {
            start: PhysAddr::new(start),
            bytes,
        }
    }

    #[test]
    fn every_arrangement_of_two_is_judged_by_its_pages() {
        let bytes = vec![0; 3 * 4096];
        let lengths = [0, 1, 4095, 4096, 4097, 8192, 12288];
        for first in 0..5_u64 {
            for second in 0..5_u64 {
                for a in lengths {
                    for b in lengths {
                        let segments = [
                            segment(first * PAGE, &bytes[..a]),
                            segment(second * PAGE, &bytes[..b]),
                        ];
                        // The model: no page is in both; an empty one may not be inside another.
                        let pages = |start: u64, length: usize| {
                            start..start + (length as u64).div_ceil(PAGE)
                        };
                        let (one, two) = (pages(first, a), pages(second, b));
                        let is_inside = |point: u64, range: &std::ops::Range<u64>| {
                            range.start < point && point < range.end
                        };
                        let overlaps = one.clone().any(|page| two.contains(&page))
                            || (one.is_empty() && is_inside(first, &two))
                            || (two.is_empty() && is_inside(second, &one));
                        let what = format!("{segments:?}");
                        match arrange(&segments, PAGE) {
                            Ok(arranged) => {
                                assert!(!overlaps, "{what}");
                                let sizes: u64 = arranged
                                    .iter()
                                    .map(|(range, segment)| {
                                        assert_eq!(range.start(), segment.start);
                                        range.size_bytes()
                                    })
                                    .sum();
                                assert_eq!(sizes, (one.count() + two.count()) as u64 * PAGE);
                                assert!(arranged[0].0.end() <= arranged[1].0.start());
                            }
                            Err(error) => {
                                assert!(overlaps, "{what}: {error}");
                                assert!(error.to_string().contains("overlap"), "{error}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_said_with_its_values() {
        let bytes = [0; 16];
        let refused = |segments: &[Segment<'_>], words: &[&str]| {
            let error = arrange(segments, PAGE).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        refused(&[], &["0 segments"]);
        let many: Vec<_> = (0..17).map(|page| segment(page * PAGE, &bytes)).collect();
        refused(&many, &["17 segments", "16"]);
        assert_eq!(arrange(&many[1..], PAGE).unwrap().len(), SEGMENTS_MAX);
        refused(&[segment(PAGE + 8, &bytes)], &["16 bytes at", "1008"]);
        refused(&[segment(u64::MAX - 4095, &[0; 4097])], &["4097 bytes"]);
        assert!(arrange(&[segment(16384, &bytes)], 16384).is_ok());
        assert!(arrange(&[segment(4096, &bytes)], 16384).is_err());
    }

    #[test]
    fn a_command_line_ends_with_one_nul() {
        assert_eq!(terminated("quiet").unwrap(), b"quiet\0");
        assert_eq!(terminated("").unwrap(), b"\0");
        assert_eq!(terminated(&"x".repeat(2047)).unwrap().len(), 2048);
        let long = terminated(&"x".repeat(2048)).unwrap_err().to_string();
        assert!(
            long.contains("2048 bytes") && long.contains("2047"),
            "{long}"
        );
        assert!(terminated("a\0b").is_err());
    }

    #[test]
    fn asking_for_file_load_changes_nothing() {
        let before = (
            is_loaded(),
            crate::facts::has_capability(crate::facts::CAP_SYS_BOOT),
        );
        let answers = [has_file_load(), has_file_load()];
        assert_eq!(answers[0], answers[1]);
        let after = (
            is_loaded(),
            crate::facts::has_capability(crate::facts::CAP_SYS_BOOT),
        );
        assert_eq!(before, after);
        // The kernel's own table of symbols, where it may be seen, is the independent witness.
        let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        if symbols.contains(" T ") && !cfg!(target_arch = "aarch64") {
            assert_eq!(answers[0], symbols.contains("__do_sys_kexec_file_load"));
        } else {
            eprintln!("SKIPPED: /proc/kallsyms says nothing here");
        }
    }

    #[test]
    #[cfg(not(target_arch = "aarch64"))]
    fn no_other_architecture_is_loaded() {
        let entry = PhysAddr::new(0);
        let answer = load(entry, &[segment(0, &[0; 16])]);
        assert!(matches!(answer, Err(Error::Architecture(_))), "{answer:?}");
        let file = std::fs::File::open("/dev/null").unwrap();
        let answer = file_load(std::os::fd::AsFd::as_fd(&file), None, "");
        assert!(matches!(answer, Err(Error::Architecture(_))), "{answer:?}");
    }
}
