//! EFI zboot: a compressed kernel inside an EFI program that unpacks it (`vmlinuz.efi`, CONFIG_EFI_ZBOOT).
//!
//! drivers/firmware/efi/libstub/zboot-header.S. The payload is an arm64 `Image`, padded to its `image_size`:
//!
//! ```text
//!  0 "MZ"   4 "zimg"   8 u32 payload's offset   12 u32 payload's size   24 compression, a text   60 u32 PE header
//! ```

use std::ops::Range;

use crate::read::{u16_at, u32_at};
use crate::{Compression, Container, Error};

/// From the file's beginning to the end of the compression's name, bytes.
const NAME: Range<usize> = 24..0x38;
const MACHINE_ARM64: u16 = 0xaa64;

fn refuse(what: impl Into<String>) -> Error {
    Error::Container {
        container: Container::Zboot,
        what: what.into(),
    }
}

/// Whether it begins like one.
pub(crate) fn is_zboot(file: &[u8]) -> bool {
    file.starts_with(b"MZ") && file.get(4..8) == Some(b"zimg")
}

/// Where the payload is, and how it is compressed.
pub(crate) fn read(file: &[u8]) -> Result<(Range<usize>, Compression), Error> {
    let cut = || {
        refuse(format!(
            "the file has {:#x} bytes, less than it says: it is truncated, install it again (was the disk full?)",
            file.len()
        ))
    };
    let word = |offset: usize| {
        u32_at(file, offset)
            .and_then(|word| usize::try_from(word).ok())
            .ok_or_else(cut)
    };
    let machine = u16_at(file, word(60)?.saturating_add(4)).ok_or_else(cut)?;
    if machine != MACHINE_ARM64 {
        return Err(refuse(format!(
            "for machine {machine:#06x}, not arm64 ({MACHINE_ARM64:#06x})"
        )));
    }
    let name = file.get(NAME).ok_or_else(cut)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    // comp-type in drivers/firmware/efi/libstub/Makefile.zboot, and the names that its variants go by.
    let compression = match name {
        b"gzip" => Compression::Gzip,
        b"lz4" => Compression::Lz4,
        b"lzma" => Compression::Lzma,
        b"lzo" => Compression::Lzo,
        b"xz" | b"xzkern" => Compression::Xz,
        b"zstd" | b"zstd22" => Compression::Zstd,
        b"bzip2" => Compression::Bzip2,
        other => {
            return Err(refuse(format!(
                "compressed with \"{}\", which is not known: the file is damaged, or newer than this loader",
                other.escape_ascii()
            )));
        }
    };
    let (start, size) = (word(8)?, word(12)?);
    let end = start.checked_add(size).filter(|end| *end <= file.len());
    Ok((start..end.ok_or_else(cut)?, compression))
}
