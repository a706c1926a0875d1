//! What an arm64 kernel file is.
//!
//! A hand-over cannot be taken back, so a kernel that will not start must be refused while the old
//! one still runs. The only thing the boot protocol says about a kernel is the 64-byte header of the
//! `Image` file (`Documentation/arch/arm64/booting.rst` in Linux), and a loader that looks at three of
//! its fields, as most do, jumps into a half-written file without a word.
//!
//! [`Kernel::parse`] takes the bytes of a file, decompresses them if they are gzip, and checks
//! **every** field of the header against the specification, against the file, and against the PE
//! header that an EFI-capable kernel also carries. The PE header says how many bytes the file must
//! have and repeats the size in memory, so that a truncated download and a damaged `image_size` are
//! both found. A file that is no arm64 `Image` is named for what it is, with what to do about it.
//!
//! The header was not left to the `object` crate: object reads PE files as they should be, here the
//! question is in what way this one is wrong, and the few fields needed are read with checked reads.
//!
//! # What is not found
//!
//! - The body is not verified: a flipped bit in the code of the kernel is not noticed (in a gzip file
//!   it is, by its CRC).
//! - A kernel built without `CONFIG_EFI` has no PE header: nothing in it says how long the file must
//!   be, so a truncated one passes. Ship such kernels as gzip.
//! - Parts of the header can be changed into another valid header: the page size (byte 24: used only to
//!   ask whether the CPU can do it); in kernels older than Linux 5.10 `text_offset` and the placement flag
//!   (from 5.10 on they are constants, and checked as such); and in what does not say that it is Linux
//!   5.10 to 7.3 the displacement of the entry branch (bytes 4 to 7), as long as it hits code.
#![forbid(unsafe_code)]

mod banner;
mod error;
mod file_kind;
mod gzip;
mod header;
mod read;

pub use error::Error;
pub use file_kind::FileKind;
pub use header::{BASE_ALIGNMENT_BYTES, HEADER_BYTES, Header, PageSize, Placement, PlacementRule};

/// Largest file that is accepted, in bytes: 512 MiB. Debian's kernels have 27 to 52 MB; the room is for
/// kernels with an initramfs built in.
pub const MAX_FILE_BYTES: usize = 512 << 20;

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
    is_gzip: bool,
}

impl Kernel {
    /// Takes the bytes of a kernel file: an arm64 `Image`, or one compressed with gzip.
    ///
    /// Memory is bounded: of a gzip file the first 64 bytes are decompressed alone, and only if they are
    /// the header of an arm64 `Image` the rest, at most to the `image_size` that the header claims and
    /// never beyond [`MAX_DECOMPRESSED_BYTES`]. A gzip file must be one member and nothing else: `gzip`
    /// makes no other from one kernel, and bytes after the end are a sign of a damaged copy.
    ///
    /// # Errors
    /// [`Error`]: what the file is instead, or which field of the header is wrong.
    pub fn parse(file: Vec<u8>) -> Result<Self, Error> {
        if file.len() > MAX_FILE_BYTES {
            return Err(Error::FileTooLarge {
                file_bytes: file.len(),
                limit_bytes: MAX_FILE_BYTES,
            });
        }
        let is_gzip = gzip::is_gzip(&file);
        let image = if is_gzip {
            gzip::decompress(&file, MAX_DECOMPRESSED_BYTES)?
        } else {
            file
        };
        let header = Header::check(&image)?;
        Ok(Self {
            image,
            header,
            is_gzip,
        })
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

    /// Whether the file was compressed with gzip.
    #[must_use]
    pub const fn is_gzip(&self) -> bool {
        self.is_gzip
    }
}

// Derived, this would print tens of megabytes of code.
impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("image_bytes", &self.image.len())
            .field("header", &self.header)
            .field("is_gzip", &self.is_gzip)
            .finish()
    }
}
