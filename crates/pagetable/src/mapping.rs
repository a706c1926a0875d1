//! What is to be mapped, and the checks that let the later stages trust it.
//!
//! Checked mappings become *extents*: sorted by virtual address, disjoint, in range, and merged where
//! one continues the other in both address spaces with equal attributes. Merging matters: ten
//! thousand adjacent huge pages of 2 MiB become a few blocks of 1 GiB, and the result does not
//! depend on how the caller cut or ordered the memory.

use alloc::vec::Vec;
use core::fmt;

use kleap_memmap::{PhysAddr, PhysRange};

use crate::MAX_MAPPINGS;
use crate::error::Error;
use crate::geometry::Geometry;

/// A virtual address in the TTBR0 half, in bytes from 0. Printed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// The address `bytes` bytes from 0.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address as an integer.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What may be done with mapped memory, at the privileged level only. There is no value for
/// "writable and executable".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Loads.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
    /// Loads and instruction fetches.
    ReadExecute,
}

/// How the CPU may treat accesses to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryType {
    /// Normal memory, Inner and Outer Write-Back, Inner Shareable: RAM.
    Normal,
    /// Device-nGnRE: registers. Never executable.
    Device,
}

/// One stretch of memory and the virtual addresses it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Virtual address of the first byte.
    pub virt: VirtAddr,
    /// The memory.
    pub phys: PhysRange,
    /// How accesses are treated.
    pub memory: MemoryType,
    /// Which accesses are allowed.
    pub access: Access,
}

impl Mapping {
    /// Maps `range` to the virtual addresses that equal its physical ones.
    #[must_use]
    pub const fn identity(range: PhysRange, memory: MemoryType, access: Access) -> Self {
        Self {
            virt: VirtAddr::new(range.start().as_u64()),
            phys: range,
            memory,
            access,
        }
    }

    /// First virtual address after the mapping, or `None` past 2^64.
    const fn virt_end(&self) -> Option<u64> {
        self.virt.0.checked_add(self.phys.size_bytes())
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at virtual {} ({:?}, {:?})",
            self.phys, self.virt, self.memory, self.access
        )
    }
}

/// Memory type and access: all of a leaf but its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) memory: MemoryType,
    pub(crate) access: Access,
}

/// A checked stretch: granule-aligned, not empty, inside both address spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) virt: u64,
    pub(crate) phys: u64,
    pub(crate) size_bytes: u64,
    pub(crate) attributes: Attributes,
}

impl Extent {
    /// Whether `next` continues this extent, so that the two are one.
    fn continues_in(&self, next: &Self) -> bool {
        self.virt + self.size_bytes == next.virt
            && self.phys + self.size_bytes == next.phys
            && self.attributes == next.attributes
    }
}

/// Checks all mappings; returns them sorted, disjoint and merged.
pub(crate) fn extents(geometry: Geometry, mappings: &[Mapping]) -> Result<Vec<Extent>, Error> {
    if mappings.len() > MAX_MAPPINGS {
        return Err(Error::TooManyMappings {
            mapping_count: mappings.len(),
        });
    }
    let mut sorted = mappings.to_vec();
    // Stable, so that the error for an overlap names the mappings in the order they were given.
    sorted.sort_by_key(|mapping| mapping.virt);
    let mut extents: Vec<Extent> = Vec::with_capacity(sorted.len());
    let mut previous: Option<Mapping> = None;
    for mapping in sorted {
        let extent = check(geometry, mapping)?;
        if let Some(first) = previous
            && first.virt_end().is_none_or(|end| mapping.virt.0 < end)
        {
            return Err(Error::Overlap {
                first,
                second: mapping,
            });
        }
        previous = Some(mapping);
        match extents.last_mut() {
            Some(last) if last.continues_in(&extent) => last.size_bytes += extent.size_bytes,
            _ => extents.push(extent),
        }
    }
    Ok(extents)
}

/// Checks one mapping by itself.
fn check(geometry: Geometry, mapping: Mapping) -> Result<Extent, Error> {
    let Mapping {
        virt,
        phys,
        memory,
        access,
    } = mapping;
    let granule = geometry.granule();
    if phys.is_empty() {
        return Err(Error::Empty { mapping });
    }
    if memory == MemoryType::Device && access == Access::ReadExecute {
        return Err(Error::ExecutableDevice { mapping });
    }
    let aligned = |address: u64| PhysAddr::new(address).is_aligned(granule.size_bytes());
    if !(aligned(virt.0) && aligned(phys.start().as_u64()) && aligned(phys.end().as_u64())) {
        return Err(Error::Misaligned { mapping, granule });
    }
    if mapping
        .virt_end()
        .is_none_or(|end| end > 1 << geometry.va_bits())
    {
        return Err(Error::VirtOutOfRange {
            mapping,
            va_bits: geometry.va_bits(),
        });
    }
    let output_bits = geometry.output().bits();
    if phys.end().as_u64() > 1 << output_bits {
        return Err(Error::PhysOutOfRange {
            mapping,
            output_bits,
        });
    }
    Ok(Extent {
        virt: virt.0,
        phys: phys.start().as_u64(),
        size_bytes: phys.size_bytes(),
        attributes: Attributes { memory, access },
    })
}
