//! AArch64 stage 1 translation tables: regions in, bytes out.
//!
//! The relocator turns the MMU on with tables that were built before the reboot; resume from
//! hibernation needs the same tables with other addresses. Both are this one pure function:
//!
//! ```text
//! geometry      granule, VA size, output size   -> levels, index bits, block levels   (data)
//! regions       mappings, checked and sorted    -> extents, merged where they continue each other
//! tree          extents                         -> tables of entries, no address of their own yet
//! serialise     tree at a physical base         -> bytes, and the values for TTBR0, TCR and MAIR
//! ```
//!
//! Only what is named is mapped, with the largest blocks that fit: the tables for a hand-over are a
//! few pages, whatever the machine's memory. Entry formats and register layouts follow the Arm
//! Architecture Reference Manual for A-profile (DDI 0487), chapter D8, "The AArch64 Virtual Memory
//! System Architecture"; each constant names its section.
//!
//! What is deliberately absent:
//!
//! - *Nothing both writable and executable.* [`Access`] has no such value.
//! - *No dynamic changes.* Tables are built once, whole, and are never live while they are built, so
//!   there is no break-before-make, no TLB maintenance and no unsafe code.
//! - *No contiguous hint.* It saves TLB entries where blocks are already used, and a wrong hint is a
//!   TLB conflict abort.
//!
//! `aarch64-paging` was considered instead. It knows the 4 KiB granule and 48-bit addresses only;
//! kernels are built with three granules and run on machines with 52 bits. It is the tests' oracle
//! for what it does know.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod descriptor;
mod error;
mod geometry;
mod mapping;
mod registers;
mod tables;
mod tree;

pub use descriptor::Regime;
pub use error::Error;
pub use geometry::{Geometry, Granule, OutputAddressSize};
pub use mapping::{Access, Mapping, MemoryType, VirtAddr};
pub use registers::MAIR;
pub use tables::{Tables, build, table_count};

/// Most bytes of tables that are built, 64 MiB. Tables that large mean that memory is mapped page
/// by page; a hand-over needs less than 1 MiB.
pub const MAX_TABLES_BYTES: u64 = 64 << 20;

/// Most mappings that are taken in one call: 4 GiB in single 4 KiB pages.
pub const MAX_MAPPINGS: usize = 1 << 20;
