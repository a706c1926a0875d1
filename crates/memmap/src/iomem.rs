//! `/proc/iomem`: the kernel's own list of what lies where in physical memory.
//!
//! The file decides which memory kleap may write to, so it is read strictly. A line that does not
//! have the one form the kernel prints (`kernel/resource.c`, `r_show`) is an error with its line
//! number, never skipped: a skipped `reserved` line would be memory taken from firmware.
//!
//! ```text
//! 40000000-bfffffff : System RAM
//!   40210000-41c4ffff : Kernel code
//!   bf600000-bf60ffff : reserved
//! ```
//!
//! Each two blanks of indentation are one level of nesting. Ends are inclusive there and half-open
//! everywhere else in kleap; they are converted here, once.
//!
//! What is kept is a flat list in the order of the file, each entry with its depth, and not a tree
//! of owned nodes: the list needs no recursion to read, walk or drop, so hostile nesting cannot
//! exhaust a stack.

use alloc::string::String;
use alloc::vec::Vec;

use crate::address::{PhysAddr, PhysRange};
use crate::ranges::PhysRanges;

/// Largest file that is read, bytes. A large server has less than 200 KiB.
pub const MAX_FILE_BYTES: usize = 4 << 20;
/// Most entries that are read. 8 TiB of hot-plugged 128 MiB blocks that do not merge are 65,536.
pub const MAX_ENTRIES: usize = 1 << 17;
/// Longest line that is read, bytes without the line end.
pub const MAX_LINE_BYTES: usize = 1024;
/// Deepest nesting that is read; the outermost entries have depth 0. Linux prints no deeper than 5
/// (`MAX_IORES_LEVEL`).
pub const MAX_DEPTH: usize = 8;

/// Label of memory that is the kernel's to hand out and was there at boot.
///
/// Memory that came later carries more (`System RAM (kmem)`, `System RAM (virtio_mem)`) and can
/// leave again, so it does not match.
pub const SYSTEM_RAM: &str = "System RAM";
/// Label of what `crashkernel=` has reserved (`crashk_res` and `crashk_low_res` in kernel/crash_core.c).
pub const CRASH_KERNEL: &str = "Crash kernel";
/// Label of the running kernel's text (`arch/arm64/kernel/setup.c`).
pub const KERNEL_CODE: &str = "Kernel code";
/// Label of its data and BSS.
pub const KERNEL_DATA: &str = "Kernel data";

/// Why the text is not a usable `/proc/iomem`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IomemError {
    /// The file is too large to be one.
    #[error(
        "/proc/iomem has {size_bytes} bytes, more than the {MAX_FILE_BYTES} that are read; check that the right file was given"
    )]
    FileTooLarge {
        /// Size of the text, bytes.
        size_bytes: usize,
    },
    /// The file has too many entries.
    #[error(
        "/proc/iomem line {line}: more than {MAX_ENTRIES} entries; check that the right file was given"
    )]
    TooManyEntries {
        /// First line over the limit, counted from 1.
        line: usize,
    },
    /// A line is too long to be one.
    #[error(
        "/proc/iomem line {line} has {size_bytes} bytes, more than the {MAX_LINE_BYTES} that are read; check that the right file was given"
    )]
    LineTooLong {
        /// The line, counted from 1.
        line: usize,
        /// Its length, bytes.
        size_bytes: usize,
    },
    /// A line is not `START-END : LABEL`, indented by two blanks per level.
    #[error(
        "/proc/iomem line {line}: {expected}; every line must read `START-END : LABEL`, as Linux prints it"
    )]
    Malformed {
        /// The line, counted from 1.
        line: usize,
        /// What was looked for and not found.
        expected: &'static str,
    },
    /// A range ends before it starts.
    #[error("/proc/iomem line {line}: range {start:#x}-{end:#x} ends before it starts")]
    Reversed {
        /// The line, counted from 1.
        line: usize,
        /// First address, bytes.
        start: u64,
        /// Last address, bytes.
        end: u64,
    },
    /// An entry is nested deeper than there is a parent for, or than the limit.
    #[error(
        "/proc/iomem line {line}: nested {depth} deep where at most {allowed} is possible; the file may have changed while it was read: read it again"
    )]
    TooDeep {
        /// The line, counted from 1.
        line: usize,
        /// Depth of the entry; the outermost have 0.
        depth: usize,
        /// Deepest the entry could be.
        allowed: usize,
    },
    /// An entry does not lie in the entry it is nested in.
    #[error(
        "/proc/iomem line {line}: {child} is nested in {parent} and does not lie in it; the file may have changed while it was read: read it again"
    )]
    OutsideParent {
        /// The line, counted from 1.
        line: usize,
        /// The nested range.
        child: PhysRange,
        /// The range it is nested in.
        parent: PhysRange,
    },
    /// All addresses are zero: the kernel hides them from this reader.
    #[error(
        "/proc/iomem shows only zeros: the kernel hides physical addresses from this process; run as root, with CAP_SYS_ADMIN"
    )]
    AddressesHidden,
}

/// One line of `/proc/iomem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    depth: usize,
    range: PhysRange,
    label: String,
}

impl Entry {
    /// How many entries this one is nested in; 0 for the outermost.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.depth
    }

    /// The memory, half-open.
    ///
    /// The inclusive end `ffffffffffffffff` has no half-open form in 64 bits; it becomes
    /// `0xffff_ffff_ffff_ffff`, and the last byte of the address space is lost. That is safe, as no
    /// arm64 machine has memory above 2^56, while an error would refuse machines with a bus window
    /// up to the end.
    #[must_use]
    pub const fn range(&self) -> PhysRange {
        self.range
    }

    /// What the kernel calls it. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }
}

/// Reads the text of `/proc/iomem`: its entries in the order of the file, each nested entry after
/// the one it is nested in. An empty text has no entries.
///
/// # Errors
/// Any of [`IomemError`]: text that Linux does not print, text beyond the limits of this module, or
/// [`IomemError::AddressesHidden`].
pub fn parse(text: &[u8]) -> Result<Vec<Entry>, IomemError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(IomemError::FileTooLarge {
            size_bytes: text.len(),
        });
    }
    let mut entries: Vec<Entry> = Vec::new();
    // The chain of entries that the last one is nested in, itself included.
    let mut ancestors: Vec<PhysRange> = Vec::with_capacity(MAX_DEPTH + 1);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(entries);
    }
    for (index, bytes) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        if entries.len() == MAX_ENTRIES {
            return Err(IomemError::TooManyEntries { line });
        }
        let entry = parse_line(line, bytes)?;
        let allowed = ancestors.len().min(MAX_DEPTH);
        if entry.depth > allowed {
            return Err(IomemError::TooDeep {
                line,
                depth: entry.depth,
                allowed,
            });
        }
        ancestors.truncate(entry.depth);
        if let Some(&parent) = ancestors.last()
            && !parent.contains_range(entry.range)
        {
            return Err(IomemError::OutsideParent {
                line,
                child: entry.range,
                parent,
            });
        }
        ancestors.push(entry.range);
        entries.push(entry);
    }
    // `00000000-00000000` is one byte at 0, which no machine lists as its only resource.
    let hidden = |entry: &Entry| entry.range.end() <= PhysAddr::new(1);
    if entries.iter().all(hidden) {
        return Err(IomemError::AddressesHidden);
    }
    Ok(entries)
}

/// Reads one line, without its line end.
fn parse_line(line: usize, bytes: &[u8]) -> Result<Entry, IomemError> {
    let malformed = |expected| IomemError::Malformed { line, expected };
    if bytes.len() > MAX_LINE_BYTES {
        return Err(IomemError::LineTooLong {
            line,
            size_bytes: bytes.len(),
        });
    }
    let blanks = bytes.iter().take_while(|&&byte| byte == b' ').count();
    if blanks % 2 != 0 {
        return Err(malformed(
            "expected an even number of blanks before the range",
        ));
    }
    let (start, rest) = parse_hex(bytes.get(blanks..).unwrap_or(&[]))
        .ok_or(malformed("expected a start of 1 to 16 hexadecimal digits"))?;
    let rest = rest
        .strip_prefix(b"-")
        .ok_or(malformed("expected `-` after the start"))?;
    let (last, rest) =
        parse_hex(rest).ok_or(malformed("expected an end of 1 to 16 hexadecimal digits"))?;
    let label = rest
        .strip_prefix(b" : ")
        .ok_or(malformed("expected ` : ` after the end"))?;
    if last < start {
        return Err(IomemError::Reversed {
            line,
            start,
            end: last,
        });
    }
    // See `Entry::range` for why the end saturates.
    let range = PhysRange::new(PhysAddr::new(start), PhysAddr::new(last.saturating_add(1)))
        .map_err(|_| IomemError::Reversed {
            line,
            start,
            end: last,
        })?;
    let label = String::from_utf8_lossy(label).into_owned();
    Ok(Entry {
        depth: blanks / 2,
        range,
        label,
    })
}

/// Takes 1 to 16 hexadecimal digits off the front.
fn parse_hex(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (number, rest) = bytes.split_at_checked(digits)?;
    let number = core::str::from_utf8(number).ok()?;
    // Refuses no digits and more than 64 bits; 17 digits with a leading zero are refused as well,
    // because the kernel never prints them.
    if digits > 16 {
        return None;
    }
    Some((u64::from_str_radix(number, 16).ok()?, rest))
}

/// The regions that `crashkernel=` has set aside, by address. Two that touch stay two: the kernel loads a crash
/// kernel into the higher one alone, and refuses what reaches into the other.
#[must_use]
pub fn crash_regions(entries: &[Entry]) -> Vec<PhysRange> {
    let mut regions: Vec<PhysRange> = entries
        .iter()
        .filter(|entry| entry.label == CRASH_KERNEL)
        .map(|entry| entry.range)
        .collect();
    regions.sort_unstable_by_key(|region| region.start());
    regions
}

/// The memory of all entries with exactly this label, at any depth, nested entries included.
#[must_use]
pub fn labelled(entries: &[Entry], label: &str) -> PhysRanges {
    entries
        .iter()
        .filter(|entry| entry.label == label)
        .map(|entry| entry.range)
        .collect()
}

/// All memory that was there at boot, whatever it is used for: the entries labelled exactly
/// [`SYSTEM_RAM`], with what is nested in them.
#[must_use]
pub fn system_ram(entries: &[Entry]) -> PhysRanges {
    labelled(entries, SYSTEM_RAM)
}

/// All memory that there is now, also what came after boot: the entries whose label is [`SYSTEM_RAM`] or begins
/// with it and a blank. For whoever wants to read it, not to use it.
#[must_use]
pub fn all_system_ram(entries: &[Entry]) -> PhysRanges {
    let is_ram = |label: &str| {
        label
            .strip_prefix(SYSTEM_RAM)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    entries
        .iter()
        .filter(|entry| is_ram(&entry.label))
        .map(|entry| entry.range)
        .collect()
}

/// The memory that nobody has claimed beyond being memory: [`system_ram`], minus everything nested
/// in it (the running kernel, what firmware reserved, the crash kernel's memory, ...), whatever its
/// label.
///
/// This is memory whose *contents* are the running kernel's own; a next kernel may be put there.
#[must_use]
pub fn plain_system_ram(entries: &[Entry]) -> PhysRanges {
    let mut claimed = Vec::new();
    // Depth of the outermost System RAM entry that we are in, if any.
    let mut ram_depth: Option<usize> = None;
    for entry in entries {
        match ram_depth {
            Some(depth) if entry.depth > depth => claimed.push(entry.range),
            _ => ram_depth = (entry.label == SYSTEM_RAM).then_some(entry.depth),
        }
    }
    system_ram(entries).difference(&claimed.into_iter().collect())
}
