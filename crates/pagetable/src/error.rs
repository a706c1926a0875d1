//! Why tables cannot be built. Each message carries the values and what to change.

use kleap_memmap::PhysAddr;

use crate::geometry::Granule;
use crate::mapping::Mapping;
use crate::{MAX_MAPPINGS, MAX_TABLES_BYTES};

/// Why tables cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The VA size has no tables of this granule and output size.
    #[error(
        "{va_bits}-bit virtual addresses do not exist with a {granule} granule; use {min_va_bits} to {max_va_bits} bits (above 48 needs 52-bit physical addresses or the 64 KiB granule)"
    )]
    VaBits {
        /// Granule asked for.
        granule: Granule,
        /// VA size asked for, bits.
        va_bits: u32,
        /// Smallest VA size, bits.
        min_va_bits: u32,
        /// Largest VA size, bits.
        max_va_bits: u32,
    },
    /// A mapping has no byte.
    #[error("mapping {mapping} is empty; leave it out")]
    Empty {
        /// The mapping.
        mapping: Mapping,
    },
    /// A mapping does not start and end on pages.
    #[error(
        "mapping {mapping} does not start and end at multiples of the {granule} granule; widen it to whole pages"
    )]
    Misaligned {
        /// The mapping.
        mapping: Mapping,
        /// The granule it must be a multiple of.
        granule: Granule,
    },
    /// A mapping lies above the virtual addresses that are translated.
    #[error(
        "mapping {mapping} ends above the {va_bits}-bit virtual address space; use more virtual address bits"
    )]
    VirtOutOfRange {
        /// The mapping.
        mapping: Mapping,
        /// VA size, bits.
        va_bits: u32,
    },
    /// A mapping lies above the physical addresses that descriptors can hold.
    #[error(
        "mapping {mapping} ends above the {output_bits}-bit physical addresses of the descriptors; use 52-bit descriptors, or memory further down"
    )]
    PhysOutOfRange {
        /// The mapping.
        mapping: Mapping,
        /// Output address size, bits.
        output_bits: u32,
    },
    /// Device memory was to be executable: a speculative fetch from it could have side effects.
    #[error(
        "mapping {mapping} asks for executable Device memory; map it as Normal, or without execution"
    )]
    ExecutableDevice {
        /// The mapping.
        mapping: Mapping,
    },
    /// Two mappings share virtual addresses.
    #[error("mappings {first} and {second} share virtual addresses; map each address once")]
    Overlap {
        /// The one that starts lower.
        first: Mapping,
        /// The other.
        second: Mapping,
    },
    /// The tables are not to lie on pages.
    #[error("tables cannot lie at {base}: not a multiple of the {granule} granule; align it")]
    BaseMisaligned {
        /// Where the tables were to lie.
        base: PhysAddr,
        /// The granule it must be a multiple of.
        granule: Granule,
    },
    /// The tables end above the physical addresses that descriptors can hold.
    #[error(
        "{size_bytes:#x} bytes of tables at {base} end above {output_bits}-bit physical addresses; put them further down, or use 52-bit descriptors"
    )]
    BaseOutOfRange {
        /// Where the tables were to lie.
        base: PhysAddr,
        /// Size of the tables, bytes.
        size_bytes: u64,
        /// Output address size, bits.
        output_bits: u32,
    },
    /// The mappings need too many tables.
    #[error(
        "the mappings need more than {MAX_TABLES_BYTES:#x} bytes of tables; map fewer or larger ranges, virtual and physical address at the same offset in a block"
    )]
    TooManyTables,
    /// There are too many mappings.
    #[error(
        "{mapping_count} mappings are more than the {MAX_MAPPINGS} that are taken; merge adjacent ones"
    )]
    TooManyMappings {
        /// Number of mappings given.
        mapping_count: usize,
    },
}
