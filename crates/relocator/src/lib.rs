//! The program between two kernels.
//!
//! When the first kernel has stopped every device and every other CPU, it turns the MMU off and
//! jumps. What runs next has no operating system, no one to report to, and 64 KiB. It turns the MMU
//! and the caches back on with translation tables that were built before the reboot, silences the
//! interrupt controller's table walks, moves what could not be placed beforehand, checks a CRC32C of
//! every byte that the next kernel will use, cleans what `booting.rst` wants clean, writes down when
//! each step ended, and enters the next kernel the way firmware would.
//!
//! # Three parts, so that most of it can be tested on any machine
//!
//! * This library: the hand-off ABI ([`abi`]), the order of work ([`relocate`]), the interrupt
//!   controller's tables ([`lpi`]), the digest ([`crc32c`]), the record of times ([`timeline`]), failure
//!   lines ([`failure`]), the console ([`console`]), an end for every wait ([`deadline`]), what the
//!   next boot can read of a failure ([`record`]). No `unsafe`, but
//!   for the CRC32 instructions; no allocation; compiled for the host (tests, the command) *and*
//!   into the bare program, from the same source.
//! * `blob/`: all that cannot run anywhere else. Assembly for the entry, the exit and the exception
//!   vectors; one Rust file that gives [`relocate::Machine`] the real machine.
//! * `image` (feature `host`): the bare program as the command embeds it, made ready for the physical
//!   address it will run at.
//!
//! # How the bare program is built
//!
//! `build.rs` runs the compiler twice for the command's own target (this library as an rlib, then the
//! program) and the result, a position-independent ELF, is embedded. Rejected: artifact dependencies
//! and `-Zbuild-std` (nightly), a nested Cargo (network inside a build script), a prebuilt binary
//! (nobody could check it). The price is that the bare program can have no third-party dependency,
//! which it should not have anyway.
//!
//! # No Rust runs with the MMU off
//!
//! The precompiled `core` makes unaligned accesses. With the MMU off all memory is Device memory,
//! where those fault. So assembly turns the MMU on before the first Rust instruction, and after the
//! last one assembly turns it off again.
#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod abi;
pub mod console;
pub mod crc32c;
pub mod deadline;
pub mod digest;
pub mod failure;
pub mod lpi;
pub mod record;
pub mod relocate;
pub mod sha256;
pub mod timeline;

#[cfg(feature = "host")]
pub mod image;
