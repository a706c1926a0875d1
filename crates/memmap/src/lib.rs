//! Ranges of physical memory.
//!
//! Everything in kleap turns on one question: *which bytes of physical memory are ours, and which
//! must not be touched?* A wrong answer is not an error message but a dead machine, so addresses do
//! not travel as bare integers: [`PhysAddr`] is a place, [`PhysRange`] a half-open stretch of
//! places, and neither can be made from, or added to, something of another kind by accident.
//!
//! [`PhysRanges`] is a set of such places, and the algebra on it; [`iomem`] reads what the running
//! kernel says about memory.
//!
//! Half-open ranges are used throughout; `/proc/iomem` prints inclusive ends and is converted once,
//! at the door ([`iomem`]).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod address;
pub mod iomem;
mod ranges;

pub use address::{AddressError, Mapped, PhysAddr, PhysRange};
pub use ranges::PhysRanges;
