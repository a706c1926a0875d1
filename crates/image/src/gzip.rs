//! A kernel compressed with gzip.
//!
//! A gzip file of 600 kB can hold 600 MB of zeros, and what a file claims about its length (the last
//! four bytes) is as untrusted as the rest. So the header comes out first, alone, and what it claims
//! bounds what is taken. Decompressing at once up to a fixed cap would be simpler, and lets any gzip
//! file on the disk take half a gigabyte before it is refused.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

use crate::header::{HEADER_BYTES, claimed_image_size_bytes};
use crate::{Error, FileKind};

pub(crate) fn is_gzip(file: &[u8]) -> bool {
    file.starts_with(&[0x1f, 0x8b])
}

/// The `Image` in `file`, at most `limit_bytes` long.
pub(crate) fn decompress(file: &[u8], limit_bytes: usize) -> Result<Vec<u8>, Error> {
    let mut decoder = GzDecoder::new(file);

    let mut image = Vec::new();
    let header_bytes = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
    (&mut decoder)
        .take(header_bytes)
        .read_to_end(&mut image)
        .map_err(|e| damaged(&e))?;
    let Some(image_size_bytes) = claimed_image_size_bytes(&image) else {
        // Some formats are recognised only further in.
        (&mut decoder)
            .take(1024)
            .read_to_end(&mut image)
            .map_err(|e| damaged(&e))?;
        return Err(Error::NotAnImage {
            kind: FileKind::of(&image),
            inside_gzip: true,
        });
    };

    // A file is never longer than its kernel in memory. One byte more is asked for, to tell.
    let bound_bytes = usize::try_from(image_size_bytes)
        .unwrap_or(usize::MAX)
        .min(limit_bytes);
    let rest_bytes = bound_bytes.saturating_sub(image.len()).saturating_add(1);
    // Room is reserved for what the file says, if it can be true: deflate packs at most 1032 to 1.
    let said_bytes = crate::read::u32_at(file, file.len().saturating_sub(4)).unwrap_or(0);
    let room_bytes = usize::try_from(said_bytes)
        .unwrap_or(usize::MAX)
        .min(bound_bytes)
        .min(file.len().saturating_mul(1032))
        .saturating_add(1);
    image
        .try_reserve_exact(room_bytes)
        .map_err(|_| Error::OutOfMemory {
            wanted_bytes: room_bytes,
        })?;
    (&mut decoder)
        .take(u64::try_from(rest_bytes).unwrap_or(u64::MAX))
        .read_to_end(&mut image)
        .map_err(|e| damaged(&e))?;
    if image.len() > bound_bytes {
        return Err(Error::DecompressedTooLarge {
            limit_bytes: bound_bytes,
            image_size_bytes,
        });
    }

    // The decoder has now seen the end and its CRC: it returned fewer bytes than were asked for.
    let trailing_bytes = decoder.into_inner().len();
    if trailing_bytes != 0 {
        return Err(Error::GzipTrailing { trailing_bytes });
    }
    Ok(image)
}

fn damaged(error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        Error::GzipTruncated
    } else {
        Error::GzipDamaged {
            reason: error.to_string(),
        }
    }
}
