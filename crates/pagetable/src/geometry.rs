//! The shape of the tables as data: which levels there are, what each indexes, and where blocks are
//! allowed.
//!
//! The architecture describes the shape with tables of cases per granule. Nearly all of it follows
//! from three numbers (granule, VA size, whether addresses have 52 bits), so it is computed here
//! once and nothing else in the crate knows which granule it serves, except the descriptor format.

use core::fmt;

use crate::error::Error;

/// The last level of every walk: its leaves are pages.
const PAGE_LEVEL: i8 = 3;

/// Bytes of one descriptor, as a power of two.
const DESCRIPTOR_SHIFT: u32 = 3;

/// Smallest VA size, bits: T0SZ is at most 39 on every machine. `FEAT_TTST` would allow down to 16,
/// which nothing here needs (DDI 0487, D8.2.1, "Translation table base address and size").
const MIN_VA_BITS: u32 = 25;

/// Largest VA size without `FEAT_LVA` or `FEAT_LPA2`, bits.
const MAX_VA_BITS: u32 = 48;

/// Largest VA size with `FEAT_LVA` (64 KiB granule) or `FEAT_LPA2` (4 and 16 KiB), bits.
const MAX_LARGE_VA_BITS: u32 = 52;

/// Size of a page and of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// All granules, from the smallest.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// The granule whose pages have `page_size_bytes` bytes, or `None` if there is no such granule.
    #[must_use]
    pub const fn from_page_size_bytes(page_size_bytes: u64) -> Option<Self> {
        match page_size_bytes {
            0x1000 => Some(Self::K4),
            0x4000 => Some(Self::K16),
            0x1_0000 => Some(Self::K64),
            _ => None,
        }
    }

    /// Size of a page and of a table, bytes.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Log2 of the size of a page in bytes.
    pub(crate) const fn shift(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Address bits that one whole table resolves.
    pub(crate) const fn index_bits(self) -> u32 {
        self.shift() - DESCRIPTOR_SHIFT
    }
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB", self.size_bytes() >> 10)
    }
}

/// How many bits of physical address the descriptors hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutputAddressSize {
    /// 48 bits: every machine understands these descriptors.
    Bits48,
    /// 52 bits: needs `FEAT_LPA2` for the granule (4 and 16 KiB; TCR.DS is set) or `FEAT_LPA`
    /// (64 KiB), and an `ID_AA64MMFR0_EL1.PARange` of `0b0110`, which the caller puts into TCR.
    Bits52,
}

impl OutputAddressSize {
    /// Number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }

    /// The largest value that TCR_EL1.IPS or TCR_EL2.PS may take with these descriptors, in the
    /// encoding of `ID_AA64MMFR0_EL1.PARange`: the caller writes the smaller of the two.
    ///
    /// With [`Self::Bits52`] the field must come out as this value: for 64 KiB granules it is what
    /// makes the CPU read 52 bits (DDI 0487, `AArch64.S1TTBaseAddress`).
    #[must_use]
    pub const fn max_pa_range(self) -> u64 {
        match self {
            Self::Bits48 => 0b0101,
            Self::Bits52 => 0b0110,
        }
    }
}

/// The shape of a set of tables for addresses below `2^va_bits` (the TTBR0 half).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    granule: Granule,
    va_bits: u32,
    output: OutputAddressSize,
}

impl Geometry {
    /// The geometry for addresses of `va_bits` bits; T0SZ becomes `64 - va_bits`.
    ///
    /// With 4 and 16 KiB granules, [`OutputAddressSize::Bits52`] selects the descriptors of
    /// `FEAT_LPA2`. Only with those can `va_bits` exceed 48; with 64 KiB it can if the machine has
    /// `FEAT_LVA`, whatever the output size.
    ///
    /// # Errors
    /// [`Error::VaBits`] if `va_bits` is below 25, or above 48 (52 where just said).
    pub const fn new(
        granule: Granule,
        va_bits: u32,
        output: OutputAddressSize,
    ) -> Result<Self, Error> {
        let max_va_bits = match (granule, output) {
            (Granule::K4 | Granule::K16, OutputAddressSize::Bits48) => MAX_VA_BITS,
            _ => MAX_LARGE_VA_BITS,
        };
        if va_bits < MIN_VA_BITS || va_bits > max_va_bits {
            return Err(Error::VaBits {
                granule,
                va_bits,
                min_va_bits: MIN_VA_BITS,
                max_va_bits,
            });
        }
        Ok(Self {
            granule,
            va_bits,
            output,
        })
    }

    /// Size of a page and of a table.
    #[must_use]
    pub const fn granule(self) -> Granule {
        self.granule
    }

    /// Bits of virtual address that are translated.
    #[must_use]
    pub const fn va_bits(self) -> u32 {
        self.va_bits
    }

    /// Bits of physical address that descriptors hold.
    #[must_use]
    pub const fn output(self) -> OutputAddressSize {
        self.output
    }

    /// The level of the root table, -1 to 2: the fewest levels that resolve the VA size
    /// (DDI 0487, `AArch64.S1StartLevel`).
    #[must_use]
    pub const fn start_level(self) -> i8 {
        let mut level = PAGE_LEVEL;
        let mut resolved_bits = self.granule.shift() + self.granule.index_bits();
        while resolved_bits < self.va_bits {
            resolved_bits += self.granule.index_bits();
            level -= 1;
        }
        level
    }

    /// Whether TCR.DS must be set: 52-bit descriptors of `FEAT_LPA2`.
    #[must_use]
    pub const fn needs_tcr_ds(self) -> bool {
        matches!(
            (self.granule, self.output),
            (Granule::K4 | Granule::K16, OutputAddressSize::Bits52)
        )
    }

    /// Log2 of the bytes that one entry at `level` maps.
    pub(crate) const fn entry_shift(self, level: i8) -> u32 {
        let below = PAGE_LEVEL.abs_diff(level) as u32;
        self.granule.shift() + below * self.granule.index_bits()
    }

    /// Whether an entry at `level` may map memory itself: pages, and the blocks that
    /// DDI 0487, `AArch64.BlockDescSupported`, lists.
    pub(crate) const fn allows_leaf(self, level: i8) -> bool {
        let large = matches!(self.output, OutputAddressSize::Bits52);
        match (self.granule, level) {
            (_, 2 | PAGE_LEVEL) | (Granule::K4, 1) => true,
            (Granule::K4, 0) | (Granule::K16 | Granule::K64, 1) => large,
            _ => false,
        }
    }

    /// Whether `level` is the one whose leaves are pages.
    pub(crate) const fn is_page_level(self, level: i8) -> bool {
        level == PAGE_LEVEL
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} granule, {}-bit virtual, {}-bit physical addresses",
            self.granule,
            self.va_bits,
            self.output.bits()
        )
    }
}
