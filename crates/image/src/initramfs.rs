//! Decompressing an initramfs before the hand-over, so that the next kernel does not do it in the blackout.
//!
//! An initramfs is a row of cpio archives, each plain or compressed in its own way; zeros may stand between
//! them (Documentation/driver-api/early-userspace/buffer-format.rst). They are walked here as
//! `unpack_to_rootfs()` does it (init/initramfs.c): `0` at a multiple of 4 begins a plain archive, a zero is
//! skipped, anything else must be compressed. Plain archives, such as the early one with microcode in front, are
//! kept byte for byte and in their place.

use std::ops::Range;

use crate::compression::Stream;
use crate::{Compression, Error, Progress};

/// Length of a cpio header of the "newc" format, bytes.
const HEADER_BYTES: usize = 110;
/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!\0";
/// What every archive begins at a multiple of, bytes.
const ALIGNMENT_BYTES: usize = 4;

/// One archive of an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// How it was compressed; `None` for a plain one.
    pub compression: Option<Compression>,
    /// Where it is in the file, bytes.
    pub range: Range<usize>,
    /// Its length now, bytes.
    pub decompressed_bytes: usize,
}

/// An initramfs without compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecompressedInitramfs {
    /// All archives.
    pub bytes: Vec<u8>,
    /// Each of them, in order.
    pub segments: Vec<Segment>,
}

/// Decompresses what is compressed in an initramfs, to at most `limit_bytes` in all.
///
/// # Errors
/// [`Error`]: something in it is no archive, or a stream or an archive is damaged, cut or too large.
pub fn decompress_initramfs(
    file: &[u8],
    limit_bytes: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<DecompressedInitramfs, Error> {
    let mut bytes = Vec::new();
    let mut segments = Vec::new();
    let mut at = 0;
    while let Some(first) = file.get(at) {
        let rest = file.get(at..).unwrap_or_default();
        if *first == 0 {
            at += 1;
            continue;
        }
        let start = bytes.len().next_multiple_of(ALIGNMENT_BYTES);
        let (compression, length);
        if *first == b'0' && at.is_multiple_of(ALIGNMENT_BYTES) {
            compression = None;
            length = archive_bytes(rest).ok_or(Error::NotAnInitramfs { offset_bytes: at })?;
            let archive = rest
                .get(..length)
                .ok_or(Error::ArchiveTruncated { offset_bytes: at })?;
            if start.saturating_add(length) > limit_bytes {
                return Err(Error::InitramfsTooLarge { limit_bytes });
            }
            reserve(&mut bytes, start + length)?;
            bytes.resize(start, 0);
            bytes.extend_from_slice(archive);
        } else {
            let found = Compression::of(rest).ok_or(Error::NotAnInitramfs { offset_bytes: at })?;
            compression = Some(found);
            bytes.resize(start, 0);
            let mut stream = Stream::open(found, rest)?;
            let total_bytes = file.len();
            stream
                .read_all(&mut bytes, limit_bytes, &mut |left_bytes| {
                    progress(Progress {
                        done_bytes: total_bytes.saturating_sub(left_bytes),
                        total_bytes,
                    });
                })
                .map_err(|error| match error {
                    Error::Stream {
                        error: crate::StreamError::TooLarge { limit_bytes },
                        ..
                    } => Error::InitramfsTooLarge { limit_bytes },
                    other => other,
                })?;
            length = rest.len().saturating_sub(stream.into_rest_bytes());
            // A stream may hold several archives and zeros; the first must be one.
            if bytes
                .get(start)
                .is_some_and(|first| *first != b'0' && *first != 0)
            {
                return Err(Error::NotAnInitramfs { offset_bytes: at });
            }
        }
        segments.push(Segment {
            compression,
            range: at..at + length,
            decompressed_bytes: bytes.len() - start,
        });
        at += length;
    }
    Ok(DecompressedInitramfs { bytes, segments })
}

fn reserve(bytes: &mut Vec<u8>, wanted_bytes: usize) -> Result<(), Error> {
    bytes
        .try_reserve(wanted_bytes.saturating_sub(bytes.len()))
        .map_err(|_| Error::OutOfMemory { wanted_bytes })
}

/// Length of the archive that `bytes` begins with, its trailer included; beyond the end of `bytes` if it is cut;
/// `None` if it is none.
fn archive_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0_usize;
    loop {
        let Some(header) = bytes.get(at..).filter(|rest| !rest.is_empty()) else {
            return Some(bytes.len() + 1);
        };
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            // Between two entries there is nothing but the next.
            return None;
        }
        let Some(header) = header.get(..HEADER_BYTES) else {
            return Some(bytes.len() + 1);
        };
        let field = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name = at.checked_add(HEADER_BYTES)?;
        let content = name.checked_add(name_size)?.checked_next_multiple_of(4)?;
        let next = content.checked_add(size)?.checked_next_multiple_of(4)?;
        if bytes.get(name..name.checked_add(name_size)?) == Some(TRAILER) {
            // The padding of the last entry may be missing at the end of a file.
            return Some(
                if content > bytes.len() && name + name_size <= bytes.len() {
                    bytes.len()
                } else {
                    content
                },
            );
        }
        at = next;
    }
}
