//! The two types every other crate speaks in: a physical address and a range of them.

use core::fmt;

/// What can go wrong when addresses are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// An end lies before its start.
    #[error("range ends at {end:#x}, before it starts at {start:#x}")]
    Reversed {
        /// Start of the range, bytes.
        start: u64,
        /// End of the range, bytes.
        end: u64,
    },
    /// Start plus size does not fit in 64 bits.
    #[error("range of {size_bytes:#x} bytes at {start:#x} runs over the end of the address space")]
    Overflow {
        /// Start of the range, bytes.
        start: u64,
        /// Size asked for, bytes.
        size_bytes: u64,
    },
}

/// A physical address, in bytes from 0.
///
/// Printed in hexadecimal. Arithmetic is explicit ([`PhysAddr::checked_add`],
/// [`PhysAddr::offset_from`]), so that an overflow is a decision of the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address `bytes` bytes from 0.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address as an integer, for the places that need bits: descriptors, system calls, the ABI.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// This address plus `size_bytes`, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, size_bytes: u64) -> Option<Self> {
        match self.0.checked_add(size_bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Bytes from `base` up to this address, or `None` if it lies below `base`.
    #[must_use]
    pub const fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }

    /// Whether the address is a multiple of `alignment_bytes`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, alignment_bytes: u64) -> bool {
        debug_assert!(alignment_bytes.is_power_of_two());
        self.0 & (alignment_bytes - 1) == 0
    }

    /// The nearest multiple of `alignment_bytes` (a power of two) at or below the address.
    #[must_use]
    pub const fn align_down(self, alignment_bytes: u64) -> Self {
        debug_assert!(alignment_bytes.is_power_of_two());
        Self(self.0 & !(alignment_bytes - 1))
    }

    /// The nearest multiple of `alignment_bytes` (a power of two) at or above the address, or `None`
    /// past the end of the address space.
    #[must_use]
    pub const fn align_up(self, alignment_bytes: u64) -> Option<Self> {
        match self.0.checked_add(alignment_bytes - 1) {
            Some(sum) => Some(Self(sum).align_down(alignment_bytes)),
            None => None,
        }
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of physical memory, `[start, end)`. `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(into = "(PhysAddr, PhysAddr)", try_from = "(PhysAddr, PhysAddr)")
)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// The range from `start` up to, not including, `end`.
    ///
    /// # Errors
    /// [`AddressError::Reversed`] if `end` is below `start`.
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Result<Self, AddressError> {
        if end.0 < start.0 {
            return Err(AddressError::Reversed {
                start: start.0,
                end: end.0,
            });
        }
        Ok(Self { start, end })
    }

    /// The range of `size_bytes` bytes from `start`.
    ///
    /// # Errors
    /// [`AddressError::Overflow`] if it would run past the end of the address space.
    pub const fn from_size(start: PhysAddr, size_bytes: u64) -> Result<Self, AddressError> {
        match start.checked_add(size_bytes) {
            Some(end) => Ok(Self { start, end }),
            None => Err(AddressError::Overflow {
                start: start.0,
                size_bytes,
            }),
        }
    }

    /// First address of the range.
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// First address after the range.
    #[must_use]
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `address` lies in the range.
    #[must_use]
    pub const fn contains(self, address: PhysAddr) -> bool {
        self.start.0 <= address.0 && address.0 < self.end.0
    }

    /// Whether every byte of `other` lies in this range. An empty `other` lies in any range that has
    /// its address within `[start, end]`.
    #[must_use]
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two ranges share at least one byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end.0
            && other.start.0 < self.end.0
            && !self.is_empty()
            && !other.is_empty()
    }

    /// The smallest range with bounds at multiples of `alignment_bytes` (a power of two) that covers
    /// this one, or `None` if it would run past the end of the address space.
    #[must_use]
    pub const fn align_outward(self, alignment_bytes: u64) -> Option<Self> {
        match self.end.align_up(alignment_bytes) {
            Some(end) => Some(Self {
                start: self.start.align_down(alignment_bytes),
                end,
            }),
            None => None,
        }
    }

    /// The largest range with bounds at multiples of `alignment_bytes` (a power of two) that lies in
    /// this one, or `None` if it holds none but the empty one.
    #[must_use]
    pub const fn align_inward(self, alignment_bytes: u64) -> Option<Self> {
        let end = self.end.align_down(alignment_bytes);
        match self.start.align_up(alignment_bytes) {
            Some(start) if start.0 < end.0 => Some(Self { start, end }),
            _ => None,
        }
    }

    /// The bytes that both ranges share, or `None` if they share none.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        if !self.overlaps(other) {
            return None;
        }
        let start = if self.start.0 > other.start.0 {
            self.start
        } else {
            other.start
        };
        let end = if self.end.0 < other.end.0 {
            self.end
        } else {
            other.end
        };
        Some(Self { start, end })
    }
}

impl From<PhysRange> for (PhysAddr, PhysAddr) {
    fn from(range: PhysRange) -> Self {
        (range.start, range.end)
    }
}

impl TryFrom<(PhysAddr, PhysAddr)> for PhysRange {
    type Error = AddressError;

    fn try_from((start, end): (PhysAddr, PhysAddr)) -> Result<Self, AddressError> {
        Self::new(start, end)
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end.0)
    }
}

/// Memory, and where the running kernel has mapped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// The memory.
    pub range: PhysRange,
    /// Virtual address of its first byte.
    pub virtual_start: u64,
}
