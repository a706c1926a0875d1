//! The tables as a tree, before they have an address.
//!
//! Extents arrive sorted by virtual address, so entries are only ever appended: the one entry that
//! can still grow is the last of each level. And leaves that continue each other are one [`Entry`],
//! however many descriptors they become. The tree is therefore small and quick to build even where
//! the tables are not, which is what lets [`crate::table_count`] answer for terabytes without
//! building anything.
//!
//! Insertion into a gap-free partition that is split on demand, the usual shape, was rejected: it
//! serves mappings that override each other, and here an overlap is an error.

use alloc::vec;
use alloc::vec::Vec;

use crate::MAX_TABLES_BYTES;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::mapping::{Attributes, Extent};

/// What lies at some indices of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry {
    /// `count` blocks or pages from `index` on, each at the physical address after the one before.
    Leaves {
        index: u64,
        count: u64,
        phys: u64,
        attributes: Attributes,
    },
    /// The next table, by its number in [`Tree::tables`].
    Table { index: u64, table: usize },
}

/// One table, at a level.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) level: i8,
    /// Sorted by index; indices that are not named are invalid descriptors.
    pub(crate) entries: Vec<Entry>,
}

/// All tables. The root is the first; the others follow in the order of a walk from the lowest
/// virtual address up, each before the tables it points to.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    geometry: Geometry,
    pub(crate) tables: Vec<Table>,
}

impl Tree {
    /// The tree that maps `extents`, which must be as [`crate::mapping::extents`] makes them.
    pub(crate) fn new(geometry: Geometry, extents: &[Extent]) -> Result<Self, Error> {
        let root = Table {
            level: geometry.start_level(),
            entries: Vec::new(),
        };
        let mut tree = Self {
            geometry,
            tables: vec![root],
        };
        for extent in extents {
            tree.append(0, *extent)?;
        }
        Ok(tree)
    }

    /// Maps `extent` in `table`, which covers all of it. Recurses once per level: at most 5 deep.
    fn append(&mut self, table: usize, mut extent: Extent) -> Result<(), Error> {
        let level = self.tables[table].level;
        let shift = self.geometry.entry_shift(level);
        let entry_bytes = 1_u64 << shift;
        // All entries but those of the root resolve `index_bits` bits; those of the root are masked
        // by the VA size already.
        let index_mask = (1_u64 << self.geometry.granule().index_bits()) - 1;
        while extent.size_bytes > 0 {
            let index = (extent.virt >> shift) & index_mask;
            let offset_bytes = extent.virt & (entry_bytes - 1);
            let whole = offset_bytes == 0 && extent.size_bytes >= entry_bytes;
            let aligned = extent.phys & (entry_bytes - 1) == 0;
            let taken_bytes = if whole && aligned && self.geometry.allows_leaf(level) {
                let count = extent.size_bytes >> shift;
                let Extent {
                    phys, attributes, ..
                } = extent;
                self.tables[table].entries.push(Entry::Leaves {
                    index,
                    count,
                    phys,
                    attributes,
                });
                count << shift
            } else {
                let size_bytes = extent.size_bytes.min(entry_bytes - offset_bytes);
                let next = self.next_table(table, index)?;
                self.append(
                    next,
                    Extent {
                        size_bytes,
                        ..extent
                    },
                )?;
                size_bytes
            };
            extent.virt += taken_bytes;
            extent.phys += taken_bytes;
            extent.size_bytes -= taken_bytes;
        }
        Ok(())
    }

    /// The table that the entry `index` of `table` points to, new if there is none yet.
    fn next_table(&mut self, table: usize, index: u64) -> Result<usize, Error> {
        if let Some(Entry::Table {
            index: last,
            table: next,
        }) = self.tables[table].entries.last()
            && *last == index
        {
            return Ok(*next);
        }
        let next = self.tables.len();
        let table_bytes = self.geometry.granule().size_bytes();
        if next as u64 >= MAX_TABLES_BYTES / table_bytes {
            return Err(Error::TooManyTables);
        }
        let level = self.tables[table].level + 1;
        self.tables.push(Table {
            level,
            entries: Vec::new(),
        });
        self.tables[table]
            .entries
            .push(Entry::Table { index, table: next });
        Ok(next)
    }
}
