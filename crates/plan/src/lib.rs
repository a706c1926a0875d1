//! From what is known about the machine to what the hand-over will do.
//!
//! Pure: the same inputs give the same bytes, nothing is read and nothing is changed here. Two steps,
//! because the device tree stands between them (it names the initrd's address, so it can only be
//! written when that is chosen, and its digest is part of the hand-off):
//!
//! 1. [`layout`]: from the pages we own, the memory map and the sizes of the pieces to a place for each
//!    piece, and to the moves for those that are not where they belong;
//! 2. [`stage`]: from the layout, the digests and what is known of the console and of PSCI to the bytes
//!    of the relocator's stage: program, hand-off, translation tables.
//!
//! Between them, [`moves`] puts the copies that are left for the relocator in an order in which none
//! overwrites what another has yet to read. Beside them, [`kexec_cost`]: what the system call that starts
//! the hand-over will cost, and where it must not be made; and [`core_header`]: what a crash kernel is told of
//! the memory that it finds.
#![forbid(unsafe_code)]

pub mod core_header;
pub mod kexec_cost;
pub mod layout;
pub mod moves;
pub mod stage;

pub use kexec_cost::KexecCost;
pub use layout::{Layout, LayoutError, Owned, Place, Requirements, Strategy};
pub use moves::{MemoryCopy, MovesError};
pub use stage::{Device, Stage, StageError, StageInput};
