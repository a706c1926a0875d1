//! U-Boot's legacy image: 64 bytes in front of one file, or of several.
//!
//! include/image.h of U-Boot, `struct legacy_img_hdr`; all numbers are big-endian.
//!
//! ```text
//!  0 u32 magic 27051956    4 u32 CRC of the header    8 u32 time        12 u32 size of the data
//! 16 u32 load address     20 u32 entry               24 u32 CRC of the data
//! 28 u8 os  29 u8 architecture  30 u8 type  31 u8 compression           32 name, 32 bytes
//! ```

use std::ops::Range;

use crate::fdt::be32;
use crate::{Compression, Container, Error};

const HEADER_BYTES: usize = 64;
/// `27051956`.
pub(crate) const MAGIC: [u8; 4] = [0x27, 0x05, 0x19, 0x56];

const OS_LINUX: u8 = 5;
const ARCHITECTURE_ARM64: u8 = 22;
const TYPE_KERNEL: u8 = 2;
const TYPE_RAMDISK: u8 = 3;
const TYPE_MULTI: u8 = 4;
const TYPE_KERNEL_NOLOAD: u8 = 14;
/// A multi-file image holds kernel, RAM disk and device tree.
const MAX_FILES: usize = 8;

/// What a uImage holds: places in the file.
#[derive(Debug)]
pub(crate) struct Uimage {
    pub(crate) kernel: Range<usize>,
    pub(crate) compression: Option<Compression>,
    pub(crate) ramdisk: Option<Range<usize>>,
    pub(crate) device_tree: Option<Range<usize>>,
}

fn refuse(what: impl Into<String>) -> Error {
    Error::Container {
        container: Container::Uimage,
        what: what.into(),
    }
}

/// Reads and checks the header and the data's CRC.
pub(crate) fn read(file: &[u8]) -> Result<Uimage, Error> {
    let cut = || {
        refuse(format!(
            "the file has {} bytes, less than it says: it is truncated, install it again (was the disk full?)",
            file.len()
        ))
    };
    let mut header = file.get(..HEADER_BYTES).ok_or_else(cut)?.to_vec();
    let word = |offset: usize| be32(file, offset).ok_or_else(cut);
    let (said, size) = (word(4)?, word(12)?);
    header.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
    let found = crc32fast::hash(&header);
    if found != said {
        return Err(refuse(format!(
            "the CRC of the header is {found:#010x}, not {said:#010x}: the file is damaged, install it again"
        )));
    }
    let byte = |offset: usize| header.get(offset).copied().unwrap_or(0);
    let (os, architecture, kind, packed) = (byte(28), byte(29), byte(30), byte(31));
    if architecture != ARCHITECTURE_ARM64 {
        return Err(refuse(format!(
            "for architecture {architecture}, not arm64 ({ARCHITECTURE_ARM64})"
        )));
    }
    if os != OS_LINUX {
        return Err(refuse(format!(
            "for operating system {os}, not Linux ({OS_LINUX})"
        )));
    }
    if kind == TYPE_RAMDISK {
        return Err(refuse(
            "a RAM disk, not a kernel; it goes to --initrd, without its header: \
             dumpimage -T ramdisk -p 0 -o INITRD FILE",
        ));
    }
    if ![TYPE_KERNEL, TYPE_KERNEL_NOLOAD, TYPE_MULTI].contains(&kind) {
        return Err(refuse(format!(
            "of type {kind}, not a kernel ({TYPE_KERNEL})"
        )));
    }
    let compression = match packed {
        0 => None,
        1 => Some(Compression::Gzip),
        2 => Some(Compression::Bzip2),
        3 => Some(Compression::Lzma),
        4 => Some(Compression::Lzo),
        5 => Some(Compression::Lz4),
        6 => Some(Compression::Zstd),
        other => {
            return Err(refuse(format!(
                "compressed in a way that is not known ({other})"
            )));
        }
    };
    let end = usize::try_from(size)
        .ok()
        .and_then(|size| size.checked_add(HEADER_BYTES))
        .ok_or_else(cut)?;
    let data = file.get(HEADER_BYTES..end).ok_or_else(cut)?;
    if file.len() > end {
        return Err(refuse(format!(
            "{} bytes follow its end: the file is damaged or has something appended",
            file.len() - end
        )));
    }
    let (said, found) = (word(24)?, crc32fast::hash(data));
    if found != said {
        return Err(refuse(format!(
            "the CRC of the data is {found:#010x}, not {said:#010x}: the file is damaged, install it again"
        )));
    }
    let mut parts = if kind == TYPE_MULTI {
        files(data)?
    } else {
        std::iter::once(0..data.len()).collect()
    }
    .into_iter()
    .map(|range| range.start + HEADER_BYTES..range.end + HEADER_BYTES);
    let kernel = parts.next().ok_or_else(|| refuse("holds no file"))?;
    let mut part = || parts.next().filter(|range| !range.is_empty());
    Ok(Uimage {
        kernel,
        compression,
        ramdisk: part(),
        device_tree: part(),
    })
}

/// The files of a multi-file image: a list of lengths that ends with 0, then the files, each at a multiple of 4.
fn files(data: &[u8]) -> Result<Vec<Range<usize>>, Error> {
    let mut lengths = Vec::new();
    loop {
        let length = be32(data, lengths.len() * 4)
            .filter(|_| lengths.len() <= MAX_FILES)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or_else(|| {
                refuse(format!(
                    "a list of more than {MAX_FILES} files, or without an end"
                ))
            })?;
        if length == 0 {
            break;
        }
        lengths.push(length);
    }
    let mut at = (lengths.len() + 1) * 4;
    let mut files = Vec::new();
    for length in lengths {
        let end = at
            .checked_add(length)
            .filter(|end| *end <= data.len())
            .ok_or_else(|| {
                refuse(format!(
                    "a file of {length:#x} bytes at {at:#x} does not fit"
                ))
            })?;
        files.push(at..end);
        at = end.next_multiple_of(4);
    }
    Ok(files)
}
