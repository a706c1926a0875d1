//! The device tree that is given to the next kernel.
//!
//! An arm64 kernel learns what machine it is on, and what it was told, from one blob: the flattened
//! device tree. The next kernel gets the tree that this one was given (`/sys/firmware/fdt`) with a new
//! `/chosen`: command line, initrd, fresh seeds. What must *not* go along is as important: a stale
//! `linux,elfcorehdr` makes the next kernel believe that it is a crash kernel, a stale reservation
//! takes memory from it with every hand-over. [`Tree::prepare`] does both, after
//! `of_kexec_alloc_and_setup_fdt()` of the kernel (drivers/of/kexec.c), and says what it did.
//!
//! The tree also tells what the hand-over itself needs to know of the machine before it can print,
//! reset or quiesce anything: [`Tree::console`], [`Tree::psci`], [`Tree::gic_v3_redistributors`].
//!
//! # Choices
//!
//! The model and the writer are dtoolkit's. Its reader is not used: the strict one refuses more than
//! half of the trees in a distribution (names longer than 31 characters), and the unchecked one may
//! panic on malformed input. A checker in front of the unchecked reader would walk the same tokens and
//! could disagree with it; so the checker *is* the reader (`blob`), and builds the model itself.
//! Patching the blob in place, as libfdt does, was rejected: it keeps the order of things too, but
//! every edit moves bytes behind it, and the tree would be checked after it was changed, not before.
//!
//! Names and values are kept byte for byte and in order; NOP tokens are dropped, and so is a name's
//! place in the strings block.
#![forbid(unsafe_code)]

mod blob;
mod chosen;
mod error;
mod hardware;
mod lookup;

use dtoolkit::model::DeviceTree;
use kleap_memmap::PhysRange;

pub use blob::find_property_value;
pub use chosen::{
    CrashBoot, MAX_BOOTARGS_BYTES, MAX_TIMELINE_BYTES, NextBoot, Prepared, RNG_SEED_BYTES,
    SecureBoot, TIMELINE_PROPERTY, Warning,
};
pub use error::{BlobError, Error, HardwareError};
pub use hardware::{Conduit, Psci, RedistributorRegion, ReservedMemory, Uart, UartKind};

/// Largest tree in bytes: 2 MiB, `MAX_FDT_SIZE` in the kernel (booting.rst: "must not exceed 2
/// megabytes").
pub const MAX_DTB_BYTES: usize = 2 << 20;

/// Deepest nesting of nodes that is accepted, the root being 1. libfdt and the kernel stop at 64
/// (`FDT_MAX_DEPTH`).
pub const MAX_DEPTH: usize = 64;

/// Most nodes that are accepted. A blob of 2 MiB could hold 170,000 empty ones; of the 3,826 trees in
/// Debian's kernels 5.10 to 7.3 the largest has 1,531, 12 levels deep.
pub const MAX_NODES: usize = 65_536;

/// Most entries of /memreserve/ that are accepted. The kernel's own limit on early reservations is 128
/// before it has to make room.
pub const MAX_MEMORY_RESERVATIONS: usize = 4096;

/// Free slots that [`Tree::prepare`] leaves after the last entry of /memreserve/, count, the list's end
/// included. The relocator fills them in where it finds memory that the interrupt controller goes on
/// using: one table, and one for each CPU.
pub const SPARE_RESERVATIONS: usize = 1024;

/// A device tree, owned and well formed.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree {
    model: DeviceTree,
    /// Physical id of the boot CPU. Linux on arm64 does not read it; it is kept because it is not ours.
    boot_cpu: u32,
    /// Free slots that are written after the last memory reservation, count.
    spare_reservations: usize,
}

impl Tree {
    /// Reads a flattened device tree. Bytes after the length that its header states are ignored.
    ///
    /// # Errors
    /// [`BlobError`], with the offset of what is malformed, or over a limit of this crate.
    pub fn parse(dtb: &[u8]) -> Result<Self, BlobError> {
        blob::read(dtb)
    }

    /// Writes the tree as a flattened device tree, version 17.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`MAX_DTB_BYTES`].
    pub fn to_dtb(&self) -> Result<Vec<u8>, Error> {
        blob::write(self)
    }

    /// Makes the tree that the next kernel is to be given out of the one this kernel was given. See
    /// [`NextBoot`] for what is set; what is removed, kept or doubtful is in the answer.
    ///
    /// # Errors
    /// [`Error`] if a value cannot be given to a kernel. The tree is then unchanged.
    pub fn prepare(&mut self, next: &NextBoot<'_>) -> Result<Prepared, Error> {
        chosen::prepare(self, next)
    }

    /// Makes this tree describe the firmware of the machine that runs: every `linux,uefi-*` property of
    /// `running` in place of its own. Returns their names; there are none on a machine without EFI.
    ///
    /// For a tree that comes from a file: it cannot know where this boot's firmware has put its tables,
    /// and a kernel that is not told finds neither ACPI nor memory.
    pub fn carry_efi(&mut self, running: &Self) -> Vec<String> {
        chosen::carry_efi(self, running)
    }

    /// The command line in `/chosen`, if there is one and it is UTF-8.
    #[must_use]
    pub fn bootargs(&self) -> Option<&str> {
        lookup::text(lookup::child(&self.model.root, "chosen")?, "bootargs")
    }

    /// The initrd that `/chosen` names: what *this* kernel was given.
    #[must_use]
    pub fn initrd(&self) -> Option<PhysRange> {
        chosen::initrd(&self.model)
    }

    /// The entries of /memreserve/, in order. Those that run over the end of the address space are cut
    /// there.
    #[must_use]
    pub fn memory_reservations(&self) -> Vec<PhysRange> {
        self.model
            .memory_reservations
            .iter()
            .map(|entry| lookup::range_clamped(entry.address(), entry.size()))
            .collect()
    }

    /// The value of the property `name` of the node at `path` (`/chosen`), byte for byte.
    #[must_use]
    pub fn property(&self, path: &str, name: &str) -> Option<&[u8]> {
        lookup::value(lookup::node_at(&self.model.root, path)?.node(), name)
    }
}

// Derived, this would print the whole tree, seeds included.
impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("nodes", &lookup::count(&self.model.root))
            .field("memory_reservations", &self.memory_reservations())
            .finish_non_exhaustive()
    }
}
