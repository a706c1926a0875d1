//! What an arm64 kernel file is.
//!
//! A hand-over cannot be taken back, so a kernel that will not start must be refused while the old
//! one still runs. The only thing the boot protocol says about a kernel is the 64-byte header of the
//! `Image` file (`Documentation/arch/arm64/booting.rst` in Linux), and a loader that looks at three of
//! its fields, as most do, jumps into a half-written file without a word.
//!
//! [`Kernel::parse`] checks **every** field of the header against the specification, against the file, and
//! against the PE header that an EFI-capable kernel also carries. The PE header says how many bytes the
//! file must have and repeats the size in memory, so that a truncated download and a damaged
//! `image_size` are both found. A file that is no kernel for this machine is named for what it is, with what
//! to do about it.
//!
//! The header was not left to the `object` crate: object reads PE files as they should be, here the
//! question is in what way this one is wrong, and the few fields needed are read with checked reads.
//!
//! # Formats
//!
//! People rarely have a bare `Image`. What is around it is told by its content, never by a name, and taken off
//! in a fixed order, each at most once: no file can make the loader unpack for ever.
//!
//! 1. A container: UKI, FIT or legacy uImage. It may bring an initrd, a command line and a device tree
//!    ([`KernelFile`]).
//! 2. EFI zboot.
//! 3. One [`Compression`].
//! 4. ELF (`vmlinux`).
//!
//! Parts that are in the file as they will be used are ranges of it: the caller can read them again where they
//! are needed, instead of holding them while memory is looked for. Checksums that a format has are compared, and
//! the digests in signatures for Secure Boot. Who signed is not checked, and [`KernelFile::remarks`] says so of
//! what is more than a kernel.
//!
//! An initramfs can be decompressed beforehand ([`decompress_initramfs`]), so that the next kernel does not
//! have to.
//!
//! # What is not found
//!
//! - The body of an `Image` without a signature is not verified: a flipped bit in its code is not noticed. It is in
//!   most containers and compressed streams, by their checksums; not in a UKI, an ELF file, "lzma alone" and the older
//!   lz4 frame (also in an EFI zboot), which have none. With a signature, as Debian's kernels have it, it is noticed
//!   wherever the `Image` is in the file as it was signed; a `vmlinux` as it was linked has none.
//! - A kernel built without `CONFIG_EFI` has no PE header: nothing in it says how long the file must
//!   be, so a truncated one passes. Ship such kernels as gzip.
//! - Parts of the header can be changed into another valid header: the page size (byte 24: used only to
//!   ask whether the CPU can do it); in kernels older than Linux 5.10 `text_offset` and the placement flag
//!   (from 5.10 on they are constants, and checked as such); and in what does not say that it is Linux
//!   5.10 to 7.3 the displacement of the entry branch (bytes 4 to 7), as long as it hits code.
#![forbid(unsafe_code)]

use std::ops::Range;

mod banner;
mod compression;
mod elf;
mod error;
mod fdt;
mod file;
mod file_kind;
mod fit;
mod header;
mod initramfs;
mod read;
mod signature;
mod uimage;
mod uki;
mod zboot;

pub use compression::{Compression, MAX_WINDOW_BYTES};
pub use error::{Error, StreamError};
pub use file::{Container, KernelFile, Layer, Options, Part, Progress};
pub use file_kind::FileKind;
pub use header::{BASE_ALIGNMENT_BYTES, HEADER_BYTES, Header, PageSize, Placement, PlacementRule};
pub use initramfs::{DecompressedInitramfs, Segment, decompress_initramfs};

/// Largest file that is accepted, in bytes: 1 GiB. Debian's kernels have 27 to 52 MB; the room is for
/// kernels with an initramfs built in or beside them, and for `vmlinux` with debug information.
pub const MAX_FILE_BYTES: usize = 1 << 30;

/// Largest `Image` that comes out of a compressed file, in bytes: 512 MiB. A file that claims more, or
/// turns out to hold more, is refused; see [`Kernel::parse`] for the bound on memory.
pub const MAX_DECOMPRESSED_BYTES: usize = 512 << 20;

/// Largest `image_size` that is accepted, in bytes: 1 GiB, the file and its zero-initialised data.
pub const MAX_IMAGE_SIZE_BYTES: u64 = 1 << 30;

/// Longest banner that is looked for, in bytes, without its newline.
pub const MAX_BANNER_BYTES: usize = 512;

/// A kernel that passed every check, uncompressed.
#[derive(Clone, PartialEq, Eq)]
pub struct Kernel {
    image: Vec<u8>,
    header: Header,
    layers: Vec<Layer>,
    file_range: Option<Range<usize>>,
    is_as_signed: bool,
}

impl Kernel {
    /// Takes the bytes of a kernel file in any of the formats, and nothing but the kernel in it: see
    /// [`KernelFile::parse`].
    ///
    /// # Errors
    /// [`Error`]: what the file is instead, or what is wrong with it.
    pub fn parse(file: Vec<u8>) -> Result<Self, Error> {
        KernelFile::parse(file, Options::default()).map(|file| file.kernel)
    }

    /// The uncompressed `Image`, to be put at `base + text_offset`.
    #[must_use]
    pub fn image_bytes(&self) -> &[u8] {
        &self.image
    }

    /// The uncompressed `Image`, given away.
    #[must_use]
    pub fn into_image_bytes(self) -> Vec<u8> {
        self.image
    }

    /// The header's fields.
    #[must_use]
    pub const fn header(&self) -> Header {
        self.header
    }

    /// Bytes from the 2 MiB aligned base to the `Image`. 0 in Linux 5.10 and later.
    #[must_use]
    pub const fn text_offset_bytes(&self) -> u64 {
        self.header.text_offset_bytes
    }

    /// Bytes of memory, from the first byte of the `Image`, that the kernel uses before it knows what
    /// memory is free: the file and its zero-initialised data and first page tables.
    #[must_use]
    pub const fn image_size_bytes(&self) -> u64 {
        self.header.image_size_bytes
    }

    /// The translation granule the kernel was built for, if the header says.
    #[must_use]
    pub const fn page_size(&self) -> Option<PageSize> {
        self.header.page_size
    }

    /// Where in memory the `Image` may be put.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.header.placement
    }

    /// The rule of booting.rst for this `Image`, in numbers.
    #[must_use]
    pub const fn placement_rule(&self) -> PlacementRule {
        self.header.placement_rule()
    }

    /// The text that the kernel will print first, from `Linux version` up to its newline, if the file
    /// has it in readable form. At most [`MAX_BANNER_BYTES`]. Every call searches the file.
    #[must_use]
    pub fn banner(&self) -> Option<&str> {
        banner::find(&self.image)
    }

    /// Major and minor version from the banner, as `(6, 12)`.
    #[must_use]
    pub fn version(&self) -> Option<(u32, u32)> {
        banner::version(self.banner()?)
    }

    /// What was taken off to get at the `Image`, outermost first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Where in the file the `Image` is, byte for byte; `None` where it was decompressed or put together.
    #[must_use]
    pub fn file_range(&self) -> Option<Range<usize>> {
        self.file_range.clone()
    }

    /// Whether the `Image` has a signature for Secure Boot and is what was signed, by whomever: then every byte of it but
    /// the signature itself is as it was. Without one, nothing says so.
    #[must_use]
    pub const fn is_as_signed(&self) -> bool {
        self.is_as_signed
    }

    /// Whether the kernel was compressed with gzip.
    #[must_use]
    pub fn is_gzip(&self) -> bool {
        self.layers.contains(&Layer::Compressed(Compression::Gzip))
    }
}

// Derived, this would print tens of megabytes of code.
impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("image_bytes", &self.image.len())
            .field("header", &self.header)
            .field("layers", &self.layers)
            .field("file_range", &self.file_range)
            .field("is_as_signed", &self.is_as_signed)
            .finish()
    }
}
