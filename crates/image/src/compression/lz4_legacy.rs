//! The older lz4 frame (lz4_Frame_format.md, "Legacy frame"): a magic number, then blocks of 8 MiB, each
//! with its compressed length before it.
//!
//! There is no end mark and no checksum: a frame ends where the file ends, where another frame begins, or, in an
//! initramfs, at the zeros behind it (lib/decompress_unlz4.c).

use std::io::{self, Read};

use crate::read::u32_at;

/// 0x184c2102, little-endian.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What a block holds, decompressed; only the last may hold less.
const BLOCK_BYTES: usize = 8 << 20;

/// The longest compressed block: what cannot be compressed gets longer (LZ4_COMPRESSBOUND).
const MAX_COMPRESSED_BYTES: usize = BLOCK_BYTES + BLOCK_BYTES / 255 + 16;

/// Decompresses block by block.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    /// How much of the block was given away, and how much there is.
    at: usize,
    length: usize,
    is_last: bool,
}

impl<'a> Reader<'a> {
    /// From a stream that begins with [`MAGIC`].
    pub(super) fn new(stream: &'a [u8]) -> Self {
        Self {
            rest: stream.get(MAGIC.len()..).unwrap_or_default(),
            block: Vec::new(),
            at: 0,
            length: 0,
            is_last: false,
        }
    }

    /// What is still to be read; after the end, what follows it.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn next(&mut self) -> io::Result<()> {
        (self.at, self.length) = (0, 0);
        while self.rest.starts_with(&MAGIC) {
            self.rest = self.rest.get(MAGIC.len()..).unwrap_or_default();
            self.is_last = false;
        }
        // Only the last block of a frame is shorter than the others: what follows it is not of this stream.
        if self.rest.is_empty() || self.is_last {
            return Ok(());
        }
        let size = u32_at(self.rest, 0).ok_or(io::ErrorKind::UnexpectedEof)?;
        if size == 0 {
            return Ok(());
        }
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= MAX_COMPRESSED_BYTES)
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "a block of {size} bytes, more than the {MAX_COMPRESSED_BYTES} possible"
                    ),
                )
            })?;
        let (compressed, rest) = self
            .rest
            .get(4..)
            .and_then(|rest| rest.split_at_checked(size))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.block.resize(BLOCK_BYTES, 0);
        self.length = lz4_flex::block::decompress_into(compressed, &mut self.block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.is_last = self.length < BLOCK_BYTES;
        self.rest = rest;
        Ok(())
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.length {
            self.next()?;
        }
        let mut ready = self.block.get(self.at..self.length).unwrap_or_default();
        let count = ready.read(buffer)?;
        self.at += count;
        Ok(count)
    }
}
