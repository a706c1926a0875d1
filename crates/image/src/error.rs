//! Why a file was refused.

use crate::FileKind;

/// Why a file is not a kernel that can be started. Every variant carries what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is larger than any kernel.
    #[error(
        "the file has {file_bytes} bytes, more than the {limit_bytes} that a kernel may have; \
             is this an Image?"
    )]
    FileTooLarge {
        /// Length of the file, bytes.
        file_bytes: usize,
        /// [`MAX_FILE_BYTES`](crate::MAX_FILE_BYTES).
        limit_bytes: usize,
    },
    /// The file is something else.
    #[error("not an arm64 Image: {}the file is {kind}",
            if *.inside_gzip { "after decompression with gzip, " } else { "" })]
    NotAnImage {
        /// What it is instead.
        kind: FileKind,
        /// Whether `kind` is about what came out of gzip.
        inside_gzip: bool,
    },
    /// The first two words are not the ones that an arm64 kernel begins with.
    #[error(
        "the header's code0 {code0:#010x} and code1 {code1:#010x} with PE offset {pe_offset:#x} \
             are not how an arm64 kernel begins (\"MZ\" and a branch with a PE header; \
             or NOP and a branch, or a branch and 0, without): the file is damaged, install it again"
    )]
    Entry {
        /// First instruction.
        code0: u32,
        /// Second instruction.
        code1: u32,
        /// Offset of the PE header, bytes; 0 for none.
        pe_offset: u32,
    },
    /// The entry branch does not lead to code.
    #[error(
        "the header's entry branch {branch:#010x} leads to offset {target:#x}, \
             where this kernel has no code: the file is damaged, install it again"
    )]
    EntryTarget {
        /// The branch instruction.
        branch: u32,
        /// Where it leads, bytes from the beginning of the file; may be negative.
        target: i64,
    },
    /// The entry branch leads to code that is not how Linux begins.
    #[error(
        "the header's entry leads to offset {entry_offset_bytes:#x}, which is not how Linux begins: the \
             file is damaged, install it again"
    )]
    EntryUnlikeLinux {
        /// Where it leads, bytes from the beginning of the file.
        entry_offset_bytes: u64,
    },
    /// `text_offset` is not a multiple of 4 KiB below 2 MiB.
    #[error(
        "the header's text_offset is {text_offset_bytes:#x}; it must be a multiple of 0x1000 \
             below 0x200000: the file is damaged, install it again"
    )]
    TextOffset {
        /// The field, bytes.
        text_offset_bytes: u64,
    },
    /// `image_size` is 0, as in kernels before Linux 3.17.
    #[error(
        "the header's image_size is 0: kernels before Linux 3.17 do not say how much memory \
             they need, and cannot be placed safely; use a newer kernel"
    )]
    ImageSizeZero,
    /// `image_size` is not a multiple of the smallest page, or larger than any kernel.
    #[error(
        "the header's image_size is {image_size_bytes:#x}; it must be a multiple of 0x1000 up to \
             {limit_bytes:#x}: the file is damaged, install it again"
    )]
    ImageSize {
        /// The field, bytes.
        image_size_bytes: u64,
        /// [`MAX_IMAGE_SIZE_BYTES`](crate::MAX_IMAGE_SIZE_BYTES).
        limit_bytes: u64,
    },
    /// The file does not fit in the memory that its header claims.
    #[error(
        "the file has {file_bytes:#x} bytes, more than the image_size {image_size_bytes:#x} in its \
             header: the file is damaged or has something appended, install it again"
    )]
    LongerThanImageSize {
        /// Length of the (uncompressed) file, bytes.
        file_bytes: usize,
        /// The field, bytes.
        image_size_bytes: u64,
    },
    /// The kernel is big-endian.
    #[error(
        "the kernel is big-endian (flags {flags:#x}); this loader enters kernels in little-endian \
             state only: use one built without CONFIG_CPU_BIG_ENDIAN"
    )]
    BigEndian {
        /// The flags.
        flags: u64,
    },
    /// Flags that booting.rst does not define.
    #[error(
        "the header's flags are {flags:#x}; the bits {unknown:#x} have no meaning in booting.rst: \
             the file is damaged, or newer than this loader"
    )]
    UnknownFlags {
        /// The flags.
        flags: u64,
        /// Those without a meaning.
        unknown: u64,
    },
    /// A field that must be 0 is not.
    #[error(
        "the header's reserved field at offset {offset_bytes} is {value:#x}, not 0: the file is \
             damaged, or newer than this loader"
    )]
    ReservedField {
        /// Where in the header, bytes.
        offset_bytes: usize,
        /// What it holds.
        value: u64,
    },
    /// The header points to a PE header that is none.
    #[error(
        "no valid PE header for arm64 at offset {pe_offset:#x}, where the header says ({what}): \
             the file is damaged or truncated, install it again"
    )]
    PeHeader {
        /// Offset of the PE header, bytes.
        pe_offset: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The PE header claims more bytes than there are.
    #[error(
        "the file has {file_bytes:#x} bytes, but its {what} ends at {needed_bytes:#x}: \
             the file is truncated, install it again (was the disk full?)"
    )]
    Truncated {
        /// Length of the (uncompressed) file, bytes.
        file_bytes: usize,
        /// Length it must have, bytes.
        needed_bytes: u64,
        /// Which part is cut off.
        what: &'static str,
    },
    /// The two headers disagree about the size in memory.
    #[error(
        "the header's image_size is {image_size_bytes:#x}, but the PE header's SizeOfImage is \
             {size_of_image_bytes:#x}: the file is damaged, install it again"
    )]
    SizesDisagree {
        /// `image_size`, bytes.
        image_size_bytes: u64,
        /// `SizeOfImage`, bytes.
        size_of_image_bytes: u32,
    },
    /// Fields that are constant from Linux 5.10 on have another value.
    #[error(
        "the kernel says it is Linux {major}.{minor}, whose header has text_offset 0, a page size \
             and the placement flag; this one has text_offset {text_offset_bytes:#x} and flags \
             {flags:#x}: the file is damaged, install it again"
    )]
    UnlikeItsVersion {
        /// From the banner.
        major: u32,
        /// From the banner.
        minor: u32,
        /// The field, bytes.
        text_offset_bytes: u64,
        /// The flags.
        flags: u64,
    },
    /// The gzip stream ends early.
    #[error(
        "the gzip stream ends in the middle: the file is truncated, install it again \
             (was the disk full?)"
    )]
    GzipTruncated,
    /// The gzip stream is damaged.
    #[error("the gzip stream is damaged ({reason}): install the file again")]
    GzipDamaged {
        /// From the decompressor.
        reason: String,
    },
    /// Bytes follow the end of the gzip stream.
    #[error(
        "{trailing_bytes} bytes follow the end of the gzip stream; a compressed kernel is one \
             stream and nothing else: make it again with gzip"
    )]
    GzipTrailing {
        /// How many.
        trailing_bytes: usize,
    },
    /// More comes out of gzip than its header, or the limit, allows.
    #[error(
        "more than {limit_bytes:#x} bytes come out of the gzip stream, with an image_size of \
             {image_size_bytes:#x} in the header: the file is damaged or hostile"
    )]
    DecompressedTooLarge {
        /// The lower of `image_size` and [`MAX_DECOMPRESSED_BYTES`](crate::MAX_DECOMPRESSED_BYTES).
        limit_bytes: usize,
        /// The header's field, bytes.
        image_size_bytes: u64,
    },
    /// There is no memory to decompress into.
    #[error(
        "no memory for {wanted_bytes} bytes to decompress the kernel into; free some, or give an \
             uncompressed Image"
    )]
    OutOfMemory {
        /// How much was asked for, bytes.
        wanted_bytes: usize,
    },
}
