//! What `kexec_load(2)` itself costs.
//!
//! Problem: from 5.16 on the system call copies the translation tables of the whole linear map, one page at
//! a time, whatever is loaded (`machine_kexec_post_load`, `arch/arm64/kernel/machine_kexec.c`;
//! `trans_pgd_create_copy`, `arch/arm64/mm/trans_pgd.c`). That is 2 MiB for each GiB of memory with 4K
//! pages, 16 times as much where a bug of 6.9 and later applies, and a crash where another one does. The
//! machine should not find that out by running out of memory.
//!
//! Choice: count the tables that the copy will have, from the memory map, the way the kernel walks them. A
//! table is copied if anything is mapped below it, so holes matter and no formula in "bytes of memory" is
//! right for all maps. Rejected: loading and looking at `MemFree`, which is what this shall prevent.
//!
//! # The walk
//!
//! `copy_p4d`, `copy_pud` and `copy_pmd` give each level a table where the copy has none yet; `copy_pte`
//! always takes a new one. The walk goes from `PAGE_OFFSET` to `PAGE_END`.
//!
//! * **Repeated copy.** A kernel from 6.9 on that was built for 52-bit virtual addresses and runs on a CPU
//!   without LPA2 uses 48 bits (47 with 16K pages) and folds its top level at run time. `PAGE_OFFSET` is
//!   still that of 52 bits, and bits 51..48 of an address do not matter to the folded tables, so the walk
//!   goes through all of them once for each value of the top level's index: 16 times with 4K pages (bits
//!   51..48), 32 times with 16K pages (bits 51..47). Upper tables are found again each time; the last level
//!   is copied each time. In all rounds but the last the walk does not end at `PAGE_END`, so the upper half
//!   (modules, vmalloc, vmemmap) is copied as well. With 64K pages nothing is folded and the indexes below
//!   the map are empty. Seen on 6.12.107; 6.12.118 and 7.3.4 start at `_PAGE_OFFSET(vabits_actual)`.
//! * **Crash.** With 4K pages and LPA2 the tables have five levels, and `copy_p4d` of those kernels allocates
//!   none at the second: it writes through a null pointer. Reported by syzbot for 6.9-rc3
//!   (2d1f5a94167d430a3bd7), seen on 6.12.107 and 6.12.118, not on 7.3.4.
//!
//! # What cannot be known
//!
//! Whether the linear map is made of pages or of blocks is not shown to user space. By default it is made of
//! pages, but the default is a build option, and since 6.18 CPUs that can split blocks safely (BBM level 2
//! without aborts) keep blocks. Where the linear map starts is random. Both make the answer a range.

use std::fmt;

use kleap_memmap::{PhysRanges, iomem};
use serde::Serialize;

/// First kernel that copies the linear map at load.
const FIRST_WITH_COPY: KernelVersion = KernelVersion::new(5, 16, 0);
/// First kernel that can be built for 52-bit virtual addresses with 4K and 16K pages, and with both bugs.
const FIRST_WITH_52_BIT_BUGS: KernelVersion = KernelVersion::new(6, 9, 0);
/// First kernel that is known to be without either; those between are taken to have the crash.
const FIRST_WITHOUT_52_BIT_BUGS: KernelVersion = KernelVersion::new(7, 3, 0);
/// Last kernel that was seen to copy repeatedly.
const LAST_SEEN_WITH_REPEATED_COPY: KernelVersion = KernelVersion::new(6, 12, 107);
/// First kernel of the same series that was seen not to. Other series may have the fix or not.
const FIRST_SEEN_WITHOUT_REPEATED_COPY: KernelVersion = KernelVersion::new(6, 12, 118);
/// From here on `rodata=on` is what `rodata=full` was, and CPUs with BBM level 2 keep blocks in spite of it.
/// Merged for 6.18; one release earlier costs only certainty.
const FIRST_WITH_BLOCKS_BY_CPU: KernelVersion = KernelVersion::new(6, 17, 0);
/// From here on KFENCE maps only its pool by pages if it starts at boot. Seen on 6.12, merged for 6.4; one
/// release later costs only certainty.
const FIRST_WITH_KFENCE_POOL: KernelVersion = KernelVersion::new(6, 5, 0);

/// Virtual address bits that a build for 52 bits has.
const VA_BITS_52: u32 = 52;
/// Pages besides tables: control code, swap page, list of segments, EL2 vectors (only without VHE, counted
/// always).
const CONTROL_PAGES: u64 = 4;
/// Kernels before the fix allocate the copy's top table twice and lose one.
const MAX_TOP_TABLES: u64 = 2;
/// What the upper half (modules, vmalloc, vmemmap) of a small machine has of last-level tables, at most: as
/// many as 256 MiB in one piece, and one for each of some areas that lie apart.
const UPPER_HALF_BYTES: u64 = 256 << 20;
const UPPER_HALF_AREAS: u64 = 24;
/// And what it has beside that, as a share of the linear map's last-level tables: memory for `struct page`
/// takes 1/256 with 16K pages and no table with 4K pages (it is mapped by blocks), hash tables less.
const UPPER_HALF_SHARE: u64 = 64;
/// Last-level tables in a linear map of blocks besides those at the ends of memory: around the kernel's text
/// and read-only data, KFENCE's pool, pages whose permissions were changed.
const TABLES_AMONG_BLOCKS: u64 = 16;
/// How many tables a prediction may be wide and still count as exact.
const EXACT_WITHIN_TABLES: u64 = 8;

/// Memory that must remain available after the system call, bytes; on a small machine,
/// [`MIN_REMAINING_SMALL_SHARE`]. What is left to do takes a few MiB, and more would be a refusal at the moment of the
/// reboot.
pub const MIN_REMAINING_BYTES: u64 = 16 << 20;
/// This share of all memory, where that is less than [`MIN_REMAINING_BYTES`]: one part in so many.
pub const MIN_REMAINING_SMALL_SHARE: u64 = 16;
/// Or this share of all memory, if that is more: one part in so many. `MemAvailable` is an estimate, and the
/// pages that the copy takes cannot be reclaimed, so the rest must do for everybody until the reboot.
pub const MIN_REMAINING_SHARE: u64 = 50;

/// The version of a Linux kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KernelVersion {
    /// 6 in 6.12.107.
    pub major: u32,
    /// 12 in 6.12.107.
    pub minor: u32,
    /// 107 in 6.12.107; 0 where there is none.
    pub patch: u32,
}

impl KernelVersion {
    /// From its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// From a release such as `6.12.107+deb13-arm64` (`uname -r`), or `None` if it does not start with two
    /// numbers and a dot between them. A release candidate counts as its release.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let (major, rest) = leading_number(release)?;
        let (minor, rest) = leading_number(rest.strip_prefix('.')?)?;
        let patch = rest.strip_prefix('.').and_then(leading_number);
        Some(Self::new(major, minor, patch.map_or(0, |(patch, _)| patch)))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A decimal number at the start, and what follows it.
fn leading_number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

/// A number that is known to lie in a range, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Bounds {
    /// The smallest that it can be.
    pub at_least: u64,
    /// The largest.
    pub at_most: u64,
}

impl Bounds {
    const fn exactly(value: u64) -> Self {
        Self {
            at_least: value,
            at_most: value,
        }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            at_least: self.at_least.saturating_add(other.at_least),
            at_most: self.at_most.saturating_add(other.at_most),
        }
    }

    const fn times(self, factor: u64) -> Self {
        Self {
            at_least: self.at_least.saturating_mul(factor),
            at_most: self.at_most.saturating_mul(factor),
        }
    }

    /// Whatever either allows.
    fn or(self, other: Self) -> Self {
        Self {
            at_least: self.at_least.min(other.at_least),
            at_most: self.at_most.max(other.at_most),
        }
    }
}

/// What the prediction is made from.
#[derive(Debug, Clone, Copy)]
pub struct KexecCostInput<'a> {
    /// The running kernel, if its release could be read.
    pub kernel: Option<KernelVersion>,
    /// Its page size, bytes: 4096, 16384 or 65536.
    pub page_size_bytes: u64,
    /// `CONFIG_ARM64_VA_BITS`, if known (`NUMBER(VA_BITS)` of VMCOREINFO).
    pub compiled_virtual_address_bits: Option<u32>,
    /// Virtual address bits that user space can have: 52, or 48 for 48 and fewer.
    pub virtual_address_bits: u32,
    /// All memory that the kernel maps: [`linear_map_ranges`].
    pub system_ram: &'a PhysRanges,
    /// The running kernel's command line.
    pub command_line: &'a str,
    /// `MemTotal`, bytes.
    pub total_bytes: u64,
    /// `MemAvailable`, bytes.
    pub available_bytes: u64,
}

/// How the kernel maps its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinearMap {
    /// Page by page: one last-level table for every 512 pages (2048 with 16K, 8192 with 64K).
    Pages,
    /// By blocks wherever possible: nearly no last-level table.
    Blocks,
    /// One or the other.
    Unknown,
}

/// What `kexec_load` will allocate, until the reboot or until something else is loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KexecCost {
    /// Translation tables, count.
    pub tables: Bounds,
    /// Tables and control pages, bytes. The segments themselves are not counted.
    pub bytes: Bounds,
    /// How the linear map was taken to be mapped.
    pub linear_map: LinearMap,
    /// What may go wrong.
    pub hazards: Vec<Hazard>,
}

impl KexecCost {
    /// Whether the prediction is exact, but for a few tables at the top that depend on where the linear map
    /// starts, which is random.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.tables.at_most - self.tables.at_least <= EXACT_WITHIN_TABLES
    }

    /// Whether there is enough memory for the call at this moment.
    #[must_use]
    pub fn fits(&self) -> bool {
        let does_not_fit = |hazard: &Hazard| matches!(hazard, Hazard::DoesNotFit { .. });
        !self.hazards.iter().any(does_not_fit)
    }

    /// The first hazard because of which `kexec_load` must not be called.
    #[must_use]
    pub fn refusal(&self) -> Option<&Hazard> {
        self.hazards.iter().find(|hazard| hazard.is_refusal())
    }
}

/// What may go wrong in `kexec_load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "hazard", rename_all = "kebab-case")]
pub enum Hazard {
    /// The kernel would crash: it copies five levels of tables and allocates four.
    Lpa2Crash {
        /// The kernel.
        kernel: KernelVersion,
    },
    /// The last level of the tables is copied many times over.
    RepeatedCopy {
        /// How often.
        times: u64,
        /// Whether that is certain; else it depends on what the kernel was built for.
        certain: bool,
    },
    /// The copy may not fit in memory: other programs would be killed, or the call fail half way.
    DoesNotFit {
        /// What it takes at most, bytes.
        needed_bytes: u64,
        /// What is available, bytes.
        available_bytes: u64,
        /// What must remain, bytes.
        remaining_bytes: u64,
    },
}

impl Hazard {
    /// Whether the call must not be made.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Lpa2Crash { .. } | Self::DoesNotFit { .. } => true,
            Self::RepeatedCopy { .. } => false,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Lpa2Crash { .. } => {
                "boot this kernel with arm64.nolva on its command line, or boot a kernel from 7.3 on"
            }
            Self::RepeatedCopy { .. } => {
                "boot this kernel with rodata=on kfence.sample_interval=100 on its command line, so that \
                 there is little to copy, or boot a kernel without the bug: 6.12.118, or from 7.3 on"
            }
            Self::DoesNotFit { .. } => {
                "end what uses memory, or boot this kernel with rodata=on kfence.sample_interval=100 on \
                 its command line, so that there is little to copy"
            }
        }
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lpa2Crash { kernel } => write!(
                f,
                "kexec_load would crash this kernel ({kernel}): with 52-bit addresses on a CPU with LPA2 it \
                 has a bug that was fixed by 7.3"
            ),
            Self::RepeatedCopy { times, certain } => write!(
                f,
                "kexec_load {} this kernel's tables {times} times over: built for 52-bit addresses and on a CPU \
                 that does not have them, it has a bug that was fixed by 6.12.118 and 7.3",
                if *certain { "copies" } else { "may copy" }
            ),
            Self::DoesNotFit {
                needed_bytes,
                available_bytes,
                remaining_bytes,
            } => write!(
                f,
                "kexec_load would copy up to {} MiB of this kernel's tables, but only {} MiB of memory are \
                 available for that and {} MiB must remain",
                needed_bytes.div_ceil(1 << 20),
                available_bytes >> 20,
                remaining_bytes.div_ceil(1 << 20)
            ),
        }
    }
}

/// Why nothing can be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KexecCostError {
    /// The page size is none of the architecture's.
    #[error("{0} bytes is no arm64 page size: 4096, 16384 and 65536 are")]
    PageSize(u64),
}

/// All memory that the kernel maps: the entries of `/proc/iomem` that are called System RAM, hot-added memory
/// (`System RAM (kmem)`, `System RAM (virtio_mem)`) and what is nested in them included.
#[must_use]
pub fn linear_map_ranges(entries: &[iomem::Entry]) -> PhysRanges {
    entries
        .iter()
        .filter(|entry| entry.label().starts_with(iomem::SYSTEM_RAM))
        .map(iomem::Entry::range)
        .collect()
}

fn lpa2_crash(
    kernel: Option<KernelVersion>,
    page_size_bytes: u64,
    virtual_address_bits: u32,
) -> Option<Hazard> {
    let kernel = kernel.filter(|&kernel| has_52_bit_bugs(kernel))?;
    (page_size_bytes == 4096 && virtual_address_bits == VA_BITS_52)
        .then_some(Hazard::Lpa2Crash { kernel })
}

fn has_52_bit_bugs(kernel: KernelVersion) -> bool {
    (FIRST_WITH_52_BIT_BUGS..FIRST_WITHOUT_52_BIT_BUGS).contains(&kernel)
}

/// Whether this kernel copies repeatedly if its build and the CPU let it; `None` if that is not known.
fn copies_repeatedly(kernel: KernelVersion) -> Option<bool> {
    if !has_52_bit_bugs(kernel) {
        return Some(false);
    }
    let of_series = FIRST_SEEN_WITHOUT_REPEATED_COPY..KernelVersion::new(6, 13, 0);
    if of_series.contains(&kernel) {
        return Some(false);
    }
    // Distributions that number their kernels .0 hide what they have fixed.
    (kernel <= LAST_SEEN_WITH_REPEATED_COPY && kernel.patch != 0).then_some(true)
}

/// Predicts what `kexec_load` will allocate on this machine.
///
/// # Errors
/// [`KexecCostError::PageSize`].
pub fn predict(input: &KexecCostInput<'_>) -> Result<KexecCost, KexecCostError> {
    let granule = Granule::new(input.page_size_bytes)?;
    let linear_map = linear_map(input.kernel, input.command_line);
    let mut hazards = Vec::new();
    let tables = match input.kernel {
        Some(kernel) if kernel < FIRST_WITH_COPY => Bounds::default(),
        kernel => {
            hazards.extend(lpa2_crash(
                kernel,
                input.page_size_bytes,
                input.virtual_address_bits,
            ));
            let rounds = rounds(input, granule);
            if rounds.at_most > 1 {
                hazards.push(Hazard::RepeatedCopy {
                    times: rounds.at_most,
                    certain: rounds.at_least == rounds.at_most,
                });
            }
            let tables = copied_tables(input, granule, linear_map, rounds);
            // A kernel of unknown version may also be one that copies nothing.
            let none = kernel.is_none().then_some(Bounds::default());
            none.map_or(tables, |none| none.or(tables))
        }
    };
    let control_pages = if tables.at_most == 0 {
        Bounds::default()
    } else {
        Bounds {
            at_least: if tables.at_least == 0 {
                0
            } else {
                CONTROL_PAGES
            },
            at_most: CONTROL_PAGES,
        }
    };
    let bytes = tables.plus(control_pages).times(input.page_size_bytes);
    let least_bytes = MIN_REMAINING_BYTES.min(input.total_bytes / MIN_REMAINING_SMALL_SHARE);
    let remaining_bytes = (input.total_bytes / MIN_REMAINING_SHARE).max(least_bytes);
    if bytes.at_most != 0 && bytes.at_most.saturating_add(remaining_bytes) > input.available_bytes {
        hazards.push(Hazard::DoesNotFit {
            needed_bytes: bytes.at_most,
            available_bytes: input.available_bytes,
            remaining_bytes,
        });
    }
    Ok(KexecCost {
        tables,
        bytes,
        linear_map,
        hazards,
    })
}

/// How often the last level is copied.
fn rounds(input: &KexecCostInput<'_>, granule: Granule) -> Bounds {
    let wasted_rounds = match granule {
        Granule::Size4K => 16,
        Granule::Size16K => 32,
        Granule::Size64K => 1,
    };
    let may_be_52 = input
        .compiled_virtual_address_bits
        .is_none_or(|bits| bits == VA_BITS_52);
    let repeats = input.kernel.and_then(copies_repeatedly);
    let is_wide = input.virtual_address_bits >= VA_BITS_52;
    if is_wide || !may_be_52 || repeats == Some(false) || wasted_rounds == 1 {
        return Bounds::exactly(1);
    }
    if input.compiled_virtual_address_bits.is_some() && repeats == Some(true) {
        Bounds::exactly(wasted_rounds)
    } else {
        Bounds {
            at_least: 1,
            at_most: wasted_rounds,
        }
    }
}

/// The tables of the copy, and those that map the relocation code.
fn copied_tables(
    input: &KexecCostInput<'_>,
    granule: Granule,
    linear_map: LinearMap,
    rounds: Bounds,
) -> Bounds {
    let ram = input.system_ram;
    let last_level = granule.last_level_tables(ram, linear_map);
    // All rounds but the last copy the upper half as well: its last level each time, its upper levels once.
    let upper_half = Bounds {
        at_least: 0,
        at_most: UPPER_HALF_AREAS
            + (UPPER_HALF_BYTES >> granule.span_shift(1))
            + granule.last_level_tables(ram, LinearMap::Pages).at_most / UPPER_HALF_SHARE,
    };
    let last_level = Bounds {
        at_least: last_level.at_least.saturating_mul(rounds.at_least),
        at_most: last_level
            .at_most
            .saturating_mul(rounds.at_most)
            .saturating_add(upper_half.at_most.saturating_mul(rounds.at_most - 1)),
    };
    let upper_levels = granule
        .virtual_address_bits_in_use(input)
        .iter()
        .map(|&bits| granule.upper_level_tables(ram, bits, linear_map))
        .reduce(Bounds::or)
        .unwrap_or_default();
    let upper_half_uppers = if rounds.at_most > 1 {
        Bounds {
            at_least: 0,
            at_most: upper_half.at_most,
        }
    } else {
        Bounds::default()
    };
    last_level
        .plus(upper_levels)
        .plus(upper_half_uppers)
        .plus(Bounds::exactly(granule.idmap_tables()))
}

/// How the kernel maps its memory, as far as its version and command line say.
fn linear_map(kernel: Option<KernelVersion>, command_line: &str) -> LinearMap {
    let Some(kernel) = kernel else {
        return LinearMap::Unknown;
    };
    let rodata = parameter(command_line, "rodata");
    let is_full = rodata == Some("full");
    let is_partial = match rodata {
        Some("off") => true,
        Some("on") => kernel < FIRST_WITH_BLOCKS_BY_CPU,
        Some("noalias") => kernel >= FIRST_WITH_BLOCKS_BY_CPU,
        _ => false,
    };
    if is_full && kernel < FIRST_WITH_BLOCKS_BY_CPU {
        return LinearMap::Pages;
    }
    // KFENCE that does not start at boot may start later and then needs pages; whether it is built in is not
    // known. A kernel that can be asked for debug_pagealloc maps by pages; the crash kernel's memory is
    // mapped by pages.
    let starts_kfence = kernel >= FIRST_WITH_KFENCE_POOL
        && parameter(command_line, "kfence.sample_interval")
            .and_then(|interval| interval.parse::<u64>().ok())
            .is_some_and(|interval| interval > 0);
    let needs_pages = parameter(command_line, "debug_pagealloc").is_some()
        || parameter(command_line, "crashkernel").is_some();
    if is_partial && starts_kfence && !needs_pages {
        LinearMap::Blocks
    } else {
        LinearMap::Unknown
    }
}

/// The value of the last `name=value` on a kernel's command line, before `--`.
fn parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line
        .split_ascii_whitespace()
        .take_while(|&word| word != "--")
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .last()
}

/// A page size and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Granule {
    Size4K,
    Size16K,
    Size64K,
}

impl Granule {
    const fn new(page_size_bytes: u64) -> Result<Self, KexecCostError> {
        match page_size_bytes {
            0x1000 => Ok(Self::Size4K),
            0x4000 => Ok(Self::Size16K),
            0x1_0000 => Ok(Self::Size64K),
            other => Err(KexecCostError::PageSize(other)),
        }
    }

    const fn page_shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// Bits of an address that one table resolves: a table is a page of 8-byte entries.
    const fn bits_per_level(self) -> u32 {
        self.page_shift() - 3
    }

    /// Log2 of what one table covers. `height` is 1 at the last level.
    const fn span_shift(self, height: u32) -> u32 {
        self.page_shift() + height * self.bits_per_level()
    }

    /// Log2 of `ARM64_MEMSTART_ALIGN` (`arch/arm64/include/asm/kernel-pgtable.h`): the linear map is shifted
    /// against physical addresses by a random multiple of this.
    const fn shift_unit_shift(self) -> u32 {
        match self {
            Self::Size4K | Self::Size16K => 30,
            Self::Size64K => 29,
        }
    }

    /// Levels of tables for that many virtual address bits.
    const fn levels(self, virtual_address_bits: u32) -> u32 {
        virtual_address_bits
            .saturating_sub(self.page_shift())
            .div_ceil(self.bits_per_level())
    }

    /// Tables of `trans_pgd_idmap_page`, which maps one page for 48 bits.
    const fn idmap_tables(self) -> u64 {
        match self {
            Self::Size4K | Self::Size16K => 4,
            Self::Size64K => 3,
        }
    }

    /// Virtual address bits that the kernel's tables may have (`VA_BITS_MIN`,
    /// `arch/arm64/include/asm/memory.h`).
    fn virtual_address_bits_in_use(self, input: &KexecCostInput<'_>) -> Vec<u32> {
        if input.virtual_address_bits >= VA_BITS_52 {
            return vec![VA_BITS_52];
        }
        let without_52 = match self {
            Self::Size4K | Self::Size64K => 48,
            Self::Size16K => 47,
        };
        match (input.compiled_virtual_address_bits, self) {
            (Some(VA_BITS_52), _) => vec![without_52],
            (Some(bits), _) => vec![bits.min(VA_BITS_52)],
            // What the kernel can be built for (`arch/arm64/Kconfig`).
            (None, Self::Size4K) => vec![39, 48],
            (None, Self::Size16K) => vec![36, 47, 48],
            (None, Self::Size64K) => vec![42, 48],
        }
    }

    fn last_level_tables(self, ram: &PhysRanges, linear_map: LinearMap) -> Bounds {
        // Shifting the map never changes these: what a table covers divides the unit of the shift.
        let of_pages = regions(ram, self.span_shift(1));
        // A table at each end of a range that no block ends at.
        let ends = ram
            .iter()
            .flat_map(|range| [range.start(), range.end()])
            .filter(|end| !end.is_aligned(1 << self.span_shift(1)))
            .count() as u64;
        let at_most_among_blocks = ends.saturating_add(TABLES_AMONG_BLOCKS).min(of_pages);
        match linear_map {
            LinearMap::Pages => Bounds::exactly(of_pages),
            LinearMap::Blocks => Bounds {
                at_least: 0,
                at_most: at_most_among_blocks,
            },
            LinearMap::Unknown => Bounds {
                at_least: 0,
                at_most: of_pages,
            },
        }
    }

    /// Tables above the last level, the top one included.
    fn upper_level_tables(
        self,
        ram: &PhysRanges,
        virtual_address_bits: u32,
        linear_map: LinearMap,
    ) -> Bounds {
        let mut tables = Bounds {
            at_least: 1,
            at_most: MAX_TOP_TABLES,
        };
        for height in 2..self.levels(virtual_address_bits) {
            let mut level = shifted_regions(ram, self.span_shift(height), self.shift_unit_shift());
            // With 4K pages a block of 1 GiB takes the place of a table, so there may be none.
            let may_be_block = height == 2 && self == Self::Size4K;
            if may_be_block && linear_map != LinearMap::Pages {
                level.at_least = 0;
            }
            tables = tables.plus(level);
        }
        tables
    }
}

/// How many naturally aligned regions of `1 << span_shift` bytes hold a byte of the set.
fn regions(ram: &PhysRanges, span_shift: u32) -> u64 {
    let mut count: u64 = 0;
    let mut last_counted = None;
    for range in ram {
        let first = range.start().as_u64() >> span_shift;
        let last = (range.end().as_u64() - 1) >> span_shift;
        count += last - first + 1;
        // Ranges are sorted, so a region is shared only with the range before.
        if last_counted == Some(first) {
            count -= 1;
        }
        last_counted = Some(last);
    }
    count
}

/// The same, after all addresses have been shifted by some multiple of `1 << unit_shift`.
fn shifted_regions(ram: &PhysRanges, span_shift: u32, unit_shift: u32) -> Bounds {
    let Some(whole) = ram.span().filter(|_| span_shift > unit_shift) else {
        return Bounds::exactly(regions(ram, span_shift));
    };
    let span_bytes = 1_u64 << span_shift.min(u64::BITS - 1);
    // The start of a stretch can lie anywhere in a region, so it touches as many as it fills, or one more.
    let fewest = |bytes: u64| bytes.div_ceil(span_bytes);
    let most_apart: u64 = ram.iter().map(|r| fewest(r.size_bytes()) + 1).sum();
    Bounds {
        at_least: fewest(ram.size_bytes()),
        at_most: most_apart.min(fewest(whole.size_bytes()) + 1),
    }
}

#[cfg(test)]
mod tests;
