//! The last stage: a tree at a physical base becomes bytes.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use kleap_memmap::{PhysAddr, PhysRange};

use crate::MAX_TABLES_BYTES;
use crate::descriptor::{self, Regime};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::mapping::{self, Mapping};
use crate::tree::{Entry, Tree};

/// Bytes of one descriptor.
const DESCRIPTOR_BYTES: usize = 8;

/// Translation tables, to be written to the place they were built for.
#[derive(Clone, PartialEq, Eq)]
pub struct Tables {
    bytes: Vec<u8>,
    range: PhysRange,
    geometry: Geometry,
    regime: Regime,
}

impl Tables {
    /// The tables: little-endian descriptors, a whole number of granules, the root table first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The tables, by value.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Where the tables must lie.
    #[must_use]
    pub const fn range(&self) -> PhysRange {
        self.range
    }

    /// Where the root table must lie: the start of [`Tables::range`].
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.range.start()
    }

    /// Number of tables, each of one granule.
    #[must_use]
    pub const fn table_count(&self) -> u64 {
        self.range.size_bytes() >> self.geometry.granule().shift()
    }

    /// The geometry that the tables were built for.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The regime that the tables were built for.
    #[must_use]
    pub const fn regime(&self) -> Regime {
        self.regime
    }

    /// The value for TTBR0_EL1, or TTBR0_EL2: ASID 0, CnP clear.
    #[must_use]
    pub const fn ttbr(&self) -> u64 {
        self.geometry.ttbr(self.root())
    }

    /// The value for TCR_EL1, or TCR_EL2, but for the physical address size: see [`Geometry::tcr`].
    #[must_use]
    pub const fn tcr(&self) -> u64 {
        self.geometry.tcr(self.regime)
    }
}

impl fmt::Debug for Tables {
    /// Everything but the bytes, which nobody reads by the megabyte.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables")
            .field("range", &self.range)
            .field("geometry", &self.geometry)
            .field("regime", &self.regime)
            .field("table_count", &self.table_count())
            .finish_non_exhaustive()
    }
}

/// Builds the tables that map `mappings`, and nothing else, to be put at `base`.
///
/// Memory is mapped in the largest blocks that alignment, `geometry` and the attributes allow;
/// mappings that continue each other are mapped as one. The same mappings, in any order and cut at
/// any page, give the same bytes.
///
/// # Errors
/// [`Error`] if a mapping is empty, misaligned, out of range, or Device memory to be executed; if two
/// share virtual addresses; if `base` is misaligned or out of range; or if a limit
/// ([`crate::MAX_MAPPINGS`], [`MAX_TABLES_BYTES`]) is exceeded.
pub fn build(
    geometry: Geometry,
    regime: Regime,
    mappings: &[Mapping],
    base: PhysAddr,
) -> Result<Tables, Error> {
    let granule = geometry.granule();
    if !base.is_aligned(granule.size_bytes()) {
        return Err(Error::BaseMisaligned { base, granule });
    }
    let tree = Tree::new(geometry, &mapping::extents(geometry, mappings)?)?;

    let size_bytes = (tree.tables.len() as u64) << granule.shift();
    let output_bits = geometry.output().bits();
    let out_of_range = Error::BaseOutOfRange {
        base,
        size_bytes,
        output_bits,
    };
    let range = PhysRange::from_size(base, size_bytes).map_err(|_| out_of_range)?;
    if range.end().as_u64() > 1 << output_bits {
        return Err(out_of_range);
    }
    // The tree keeps to the limit, so this holds on machines of 32 bits too.
    let buffer_bytes = usize::try_from(size_bytes).map_err(|_| Error::TooManyTables)?;
    debug_assert!(size_bytes <= MAX_TABLES_BYTES);
    let mut bytes = vec![0; buffer_bytes];
    serialise(&tree, geometry, regime, base, &mut bytes);
    Ok(Tables {
        bytes,
        range,
        geometry,
        regime,
    })
}

/// How many tables [`build`] would need for `mappings`, each of one granule, without building them.
///
/// # Errors
/// As [`build`], but for its base.
pub fn table_count(geometry: Geometry, mappings: &[Mapping]) -> Result<u64, Error> {
    let tree = Tree::new(geometry, &mapping::extents(geometry, mappings)?)?;
    Ok(tree.tables.len() as u64)
}

/// Writes every table of `tree` into `bytes`, which is zero and has a granule for each.
fn serialise(tree: &Tree, geometry: Geometry, regime: Regime, base: PhysAddr, bytes: &mut [u8]) {
    let granule_shift = geometry.granule().shift();
    let tables = bytes.chunks_exact_mut(1 << granule_shift);
    for (table, bytes) in tree.tables.iter().zip(tables) {
        let (descriptors, _) = bytes.as_chunks_mut::<DESCRIPTOR_BYTES>();
        let mut put = |index: u64, descriptor: u64| {
            // An index has at most 13 bits, so it fits; an index out of the table does not happen.
            if let Some(place) = usize::try_from(index)
                .ok()
                .and_then(|i| descriptors.get_mut(i))
            {
                *place = descriptor.to_le_bytes();
            } else {
                debug_assert!(false, "index {index} is outside a table");
            }
        };
        for entry in &table.entries {
            match *entry {
                Entry::Table { index, table } => {
                    let next = base.as_u64() + ((table as u64) << granule_shift);
                    put(index, descriptor::table(geometry, next));
                }
                Entry::Leaves {
                    index,
                    count,
                    phys,
                    attributes,
                } => {
                    let shift = geometry.entry_shift(table.level);
                    for step in 0..count {
                        let phys = phys + (step << shift);
                        let leaf =
                            descriptor::leaf(geometry, regime, table.level, phys, attributes);
                        put(index + step, leaf);
                    }
                }
            }
        }
    }
}
