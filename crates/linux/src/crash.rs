//! What a kernel shows of itself to whoever will save its memory after a panic.
//!
//! Where every CPU's registers will be written (`/sys/devices/system/cpu/cpu*/crash_notes`), where the text for tools
//! is (`/sys/kernel/vmcoreinfo`), and where memory and the kernel itself are mapped (the program headers of
//! `/proc/kcore`). Reads only; the load itself is [`crate::kexec::load_crash`].

use crate::Error;
use crate::facts::{KCORE_PATH, elf};
use kleap_memmap::{Mapped, PhysAddr, PhysRange};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CPUS: &str = "/sys/devices/system/cpu";
const VMCOREINFO: &str = "/sys/kernel/vmcoreinfo";
/// Most CPUs that are looked at: arm64's `NR_CPUS` is at most 4096.
pub const CPUS_MAX: usize = 4096;
/// Most bytes of a note: Linux makes them of less than a page.
pub const NOTE_MAX_BYTES: u64 = 1 << 20;

fn text(path: &Path) -> Result<String, Error> {
    let bytes = crate::facts::read_limited(path, 4096)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A note's place from the two numbers that describe it, as sysfs prints them. `None` if they cannot be one.
#[must_use]
pub fn note_range(address: &str, size_bytes: Option<u64>) -> Option<PhysRange> {
    let digits = address.strip_prefix("0x").unwrap_or(address);
    let start = PhysAddr::new(u64::from_str_radix(digits, 16).ok()?);
    let size_bytes = size_bytes.filter(|size| (1..=NOTE_MAX_BYTES).contains(size))?;
    PhysRange::from_size(start, size_bytes).ok()
}

/// The notes of every CPU that the kernel knows, in the order of their numbers.
///
/// # Errors
/// If there are none (the kernel lacks kdump), or what is there cannot be read.
pub fn cpu_notes() -> Result<Vec<PhysRange>, Error> {
    let mut cpus: Vec<u32> = std::fs::read_dir(CPUS)
        .map_err(|error| Error::file("cannot read", CPUS, error))?
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_prefix("cpu")?
                .parse()
                .ok()
        })
        .take(CPUS_MAX)
        .collect();
    cpus.sort_unstable();
    let mut notes = Vec::new();
    for cpu in cpus {
        let path = |name: &str| Path::new(CPUS).join(format!("cpu{cpu}")).join(name);
        let address = path("crash_notes");
        if !address.exists() {
            continue;
        }
        let size_bytes = text(&path("crash_notes_size"))?.parse().ok();
        let found = text(&address)?;
        notes.push(note_range(&found, size_bytes).ok_or_else(|| {
            Error::content(
                &address,
                format!("{found:?} with {size_bytes:?} bytes is no place"),
            )
        })?);
    }
    if notes.is_empty() {
        return Err(Error::content(
            CPUS,
            "no CPU has crash_notes: this kernel was built without crash dumps (CONFIG_CRASH_DUMP)",
        ));
    }
    Ok(notes)
}

/// Where vmcoreinfo is, as a note: an address and a size, both in hexadecimal.
///
/// # Errors
/// If the kernel does not show it, or shows something else.
pub fn vmcoreinfo_note() -> Result<PhysRange, Error> {
    let path = Path::new(VMCOREINFO);
    let found = text(path)?;
    vmcoreinfo_note_in(&found)
        .ok_or_else(|| Error::content(path, format!("{found:?} is no address and size")))
}

/// The same, from the file's text.
#[must_use]
pub fn vmcoreinfo_note_in(text: &str) -> Option<PhysRange> {
    let (address, size) = text.trim().split_once(' ')?;
    let digits = size.strip_prefix("0x").unwrap_or(size);
    note_range(address, u64::from_str_radix(digits, 16).ok())
}

/// Every part of memory that `/proc/kcore` gives a physical address for, the kernel's own text among them. Empty
/// where there is no such file or it may not be read (`CONFIG_PROC_KCORE`, CAP_SYS_RAWIO, lockdown).
#[must_use]
pub fn mapped_memory() -> Vec<Mapped> {
    let Ok(file) = std::fs::File::open(KCORE_PATH) else {
        return Vec::new();
    };
    mapped_memory_in(|range| {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        if length as u64 > elf::PART_MAX_BYTES {
            return None;
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(bytes)
    })
}

/// The same, from a core file of which `part` reads what it is asked for.
pub fn mapped_memory_in(mut part: impl FnMut(Range<u64>) -> Option<Vec<u8>>) -> Vec<Mapped> {
    let table = part(0..elf::HEADER_BYTES)
        .and_then(|header| elf::program_headers(&header))
        .and_then(part)
        .unwrap_or_default();
    elf::load_segments(&table)
        .filter_map(|segment| {
            Some(Mapped {
                range: PhysRange::from_size(
                    PhysAddr::new(segment.physical_start?),
                    segment.size_bytes,
                )
                .ok()?,
                virtual_start: segment.virtual_start,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, size_bytes: u64) -> PhysRange {
        PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
    }

    /// As 6.12 prints them.
    #[test]
    fn notes_are_read_as_sysfs_prints_them() {
        assert_eq!(
            note_range("bfe3a1c0", Some(424)),
            Some(range(0xbfe3_a1c0, 424))
        );
        assert_eq!(
            vmcoreinfo_note_in("0x00000000435b3000 1024\n"),
            Some(range(0x435b_3000, 0x1024))
        );
        for (address, size_bytes) in [
            ("", Some(1)),
            ("xyz", Some(1)),
            ("1000", None),
            ("1000", Some(0)),
            ("1000", Some(NOTE_MAX_BYTES + 1)),
            ("ffffffffffffffff", Some(2)),
        ] {
            assert_eq!(note_range(address, size_bytes), None, "{address}");
        }
        for text in ["", "0x1000", "0x1000 ", "0x1000 zz", "1000 0"] {
            assert_eq!(vmcoreinfo_note_in(text), None, "{text:?}");
        }
    }

    /// Written by hand, from elf(5).
    #[test]
    fn what_is_mapped_is_read_from_a_core_file() {
        let header = |count: u16| {
            let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
            bytes.resize(64, 0);
            bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
            bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
            bytes[56..58].copy_from_slice(&count.to_le_bytes());
            bytes
        };
        let segment = |kind: u32, virtual_start: u64, physical_start: u64, size: u64| {
            let mut bytes = kind.to_le_bytes().to_vec();
            bytes.extend(7_u32.to_le_bytes());
            for word in [0x1000, virtual_start, physical_start, size, size, 0x1000] {
                bytes.extend(word.to_le_bytes());
            }
            bytes
        };
        let mut file = header(4);
        file.extend(segment(4, 0, 0, 100));
        file.extend(segment(1, 0xffff_8000_8000_0000, 0x4020_0000, 0x200_0000));
        // Memory of which kcore knows no physical address: vmalloc's.
        file.extend(segment(1, 0xffff_8000_0000_0000, u64::MAX, 0x1000));
        file.extend(segment(1, 0xffff_0000_0000_0000, 0x4000_0000, 0x4000_0000));
        let read = |file: &[u8]| {
            mapped_memory_in(|range| {
                let at = |value: u64| usize::try_from(value).ok();
                Some(file.get(at(range.start)?..at(range.end)?)?.to_vec())
            })
        };
        let found: Vec<_> = read(&file)
            .into_iter()
            .map(|mapped| (mapped.range, mapped.virtual_start))
            .collect();
        assert_eq!(
            found,
            [
                (range(0x4020_0000, 0x200_0000), 0xffff_8000_8000_0000),
                (range(0x4000_0000, 0x4000_0000), 0xffff_0000_0000_0000),
            ]
        );
        for length in 0..file.len() {
            let found = read(&file[..length]);
            assert!(found.is_empty(), "{length} bytes");
        }
    }
}
