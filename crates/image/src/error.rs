//! Why a file was refused.

use crate::{Compression, Container, FileKind, Layer};

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
    #[error("not an arm64 Image: {}the file is {kind}", inside(.layers))]
    NotAnImage {
        /// What it is instead.
        kind: FileKind,
        /// What was taken off before that was seen, outermost first.
        layers: Vec<Layer>,
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
    /// The file has a signature for Secure Boot, and is not what was signed.
    #[error(
        "the file is not what was signed ({algorithm} {}, in its signature {expected}): it is damaged, install it \
             again; where it was changed on purpose, take its signatures off (sbattach --remove)",
        if .found.is_empty() { "cannot be taken" } else { .found }
    )]
    NotWhatWasSigned {
        /// Of the digest.
        algorithm: &'static str,
        /// In the signature, in hexadecimal.
        expected: String,
        /// Of the file, in hexadecimal; empty if its headers name bytes that are not there.
        found: String,
    },
    /// The file says that it has a signature for Secure Boot, and what is there is none.
    #[error(
        "the file's signature cannot be read ({reason}): the file is damaged, install it again; where the signature is \
             meant to be like that, take it off (sbattach --remove)"
    )]
    Signature {
        /// What is wrong with it.
        reason: String,
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
    /// A compressed stream cannot be used.
    #[error("{}", .error.sentence(*.compression))]
    Stream {
        /// The format.
        compression: Compression,
        /// What is wrong.
        error: StreamError,
    },
    /// More comes out of a compressed kernel than its header, or the limit, allows.
    #[error(
        "more than {limit_bytes:#x} bytes come out of the {compression} stream, with an image_size of \
             {image_size_bytes:#x} in the header: the file is damaged or hostile"
    )]
    DecompressedTooLarge {
        /// The format.
        compression: Compression,
        /// The lower of `image_size` and [`MAX_DECOMPRESSED_BYTES`](crate::MAX_DECOMPRESSED_BYTES).
        limit_bytes: usize,
        /// The header's field, bytes.
        image_size_bytes: u64,
    },
    /// A container says that the kernel in it is compressed in another way than it is.
    #[error(
        "the {container} says that its kernel is compressed with {said}, but it is {found}: \
             the file is damaged, install it again"
    )]
    OtherCompression {
        /// The container.
        container: Container,
        /// What it says.
        said: Compression,
        /// What the kernel begins like.
        found: FileKind,
    },
    /// A container is malformed, or holds something else than a kernel for this machine.
    #[error("{container}: {what}")]
    Container {
        /// The container.
        container: Container,
        /// What is wrong, with the values, and what can be done.
        what: String,
    },
    /// A configuration was asked for, of a file that has none.
    #[error(
        "a configuration ({name}) was asked for, but the file is no FIT: leave out --fit-config"
    )]
    NoConfigurations {
        /// What was asked for.
        name: String,
    },
    /// An initramfs has something in it that is none.
    #[error(
        "at offset {offset_bytes:#x} the initrd has neither a cpio archive nor a compressed one: \
             load it as it is, without --decompress-initrd"
    )]
    NotAnInitramfs {
        /// Where, bytes from the beginning of the file.
        offset_bytes: usize,
    },
    /// More comes out of an initramfs than is allowed.
    #[error(
        "more than {limit_bytes:#x} bytes come out of the initrd: it is damaged or hostile, or there is not \
             enough memory for it; load it as it is, without --decompress-initrd"
    )]
    InitramfsTooLarge {
        /// The limit, bytes.
        limit_bytes: usize,
    },
    /// A cpio archive in an initramfs ends early.
    #[error(
        "the cpio archive at offset {offset_bytes:#x} of the initrd ends in the middle: the file is \
             truncated, make it again (was the disk full?)"
    )]
    ArchiveTruncated {
        /// Where the archive begins, bytes from the beginning of the file.
        offset_bytes: usize,
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

/// What is wrong with a compressed stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// It ends early.
    Truncated,
    /// It is damaged; the reason is the decompressor's.
    Damaged(String),
    /// Bytes follow its end.
    Trailing {
        /// How many.
        trailing_bytes: usize,
    },
    /// More comes out of it than is allowed.
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
}

impl StreamError {
    fn sentence(&self, compression: Compression) -> String {
        match self {
            Self::Truncated => format!(
                "the {compression} stream ends in the middle: the file is truncated, install it again \
                 (was the disk full?)"
            ),
            Self::Damaged(reason) => {
                format!("the {compression} stream is damaged ({reason}): install the file again")
            }
            Self::Trailing { trailing_bytes } => format!(
                "{trailing_bytes} bytes follow the end of the {compression} stream; a compressed kernel is \
                 one stream and nothing else: make it again with {compression}"
            ),
            Self::TooLarge { limit_bytes } => format!(
                "more than {limit_bytes:#x} bytes come out of the {compression} stream: the file is damaged \
                 or hostile"
            ),
        }
    }
}

/// Says where in a file something was found: `inside UKI and EFI zboot, after decompression with gzip, `.
fn inside(layers: &[Layer]) -> String {
    let containers: Vec<&str> = layers
        .iter()
        .filter_map(|layer| match layer {
            Layer::Container(container) => Some(container.name()),
            Layer::Compressed(_) => None,
        })
        .collect();
    let mut text = String::new();
    if !containers.is_empty() {
        text = format!("inside {}, ", containers.join(" and "));
    }
    for layer in layers {
        if let Layer::Compressed(compression) = layer {
            text.push_str(&format!("after decompression with {compression}, "));
        }
    }
    text
}
