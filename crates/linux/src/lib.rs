//! What kleap asks of Linux.
//!
//! The only host-side crate with `unsafe`, and the only one that changes the machine. Each module is
//! one thing that the kernel offers: [`kexec`] the system call, [`hugepages`] memory that is ours, [`pin`] so
//! that it stays where it is and [`holder`] also after this process, [`tunables`] what is in the way of it,
//! [`numa`] near which CPU, [`pagemap`] where that is, [`pageflags`] whether it is good, [`memory_blocks`] what came
//! after the boot, [`facts`] what machine this is, [`consoles`] where it can be written to, [`counter`] the clock that
//! both kernels share, [`kernel_log`] the log of the kernel that runs now, [`limits`] what must not kill, [`interrupts`]
//! who asks to end, [`watchdog`] what may reset the machine meanwhile, [`reboot`] the end. [`anonymous`] is for the
//! tests' attackers.
//!
//! Every error says which file or call failed, with what, and what the user can do about it.

pub mod anonymous;
pub mod consoles;
pub mod counter;
pub mod crash;
mod error;
pub mod facts;
pub mod holder;
pub mod hugepages;
pub mod interfaces;
pub mod interrupts;
pub mod kernel_log;
pub mod kexec;
pub mod limits;
pub mod memory_blocks;
pub mod numa;
pub mod pageflags;
pub mod pagemap;
pub mod pin;
pub mod reboot;
pub mod tunables;
pub mod watchdog;

pub use error::Error;
