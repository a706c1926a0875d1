//! The format of lzop, and LZO1X in it.
//!
//! The container from lib/decompress_unlzo.c and lzop's own conf.h; LZO1X from Documentation/staging/lzo.rst.
//! All numbers in the container are big-endian.

use std::io::{self, Read};

use adler2::adler32_slice;

/// The first nine bytes.
pub(super) const MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";

/// lzop's own limit for a block (MAX_BLOCK_SIZE), bytes; it makes blocks of 256 KiB.
const MAX_BLOCK_BYTES: usize = 64 << 20;

/// From this version on a header has a level, and a time of 64 bits.
const VERSION_WITH_LEVEL: u16 = 0x0940;

/// Flags of a file.
mod flag {
    pub(super) const ADLER32_OF_CONTENT: u32 = 1;
    pub(super) const ADLER32_OF_COMPRESSED: u32 = 2;
    pub(super) const EXTRA_FIELD: u32 = 0x40;
    pub(super) const CRC32_OF_CONTENT: u32 = 0x100;
    pub(super) const CRC32_OF_COMPRESSED: u32 = 0x200;
    pub(super) const MULTIPART: u32 = 0x400;
    pub(super) const FILTER: u32 = 0x800;
    pub(super) const CRC32_OF_HEADER: u32 = 0x1000;
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Takes bytes from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1)
            .map(|bytes| bytes.first().copied().unwrap_or(0))
    }

    fn be16(&mut self) -> io::Result<u16> {
        let bytes = self.take(2)?;
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u16::from(*byte)))
    }

    fn be32(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }
}

/// Decompresses block by block.
pub(super) struct Reader<'a> {
    rest: Cursor<'a>,
    flags: u32,
    block: Vec<u8>,
    at: usize,
    is_ended: bool,
}

impl<'a> Reader<'a> {
    /// Reads and checks the header.
    pub(super) fn open(stream: &'a [u8]) -> io::Result<Self> {
        let mut cursor = Cursor(stream);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(damaged("no magic number"));
        }
        let start = cursor.0;
        let version = cursor.be16()?;
        // Version of the library, version needed, method.
        cursor.take(2 + 2)?;
        let method = cursor.byte()?;
        if !(1..=3).contains(&method) {
            return Err(damaged(format!("compression method {method}, not LZO1X")));
        }
        let is_new = version >= VERSION_WITH_LEVEL;
        cursor.take(usize::from(is_new))?;
        let flags = cursor.be32()?;
        if flags & (flag::FILTER | flag::EXTRA_FIELD | flag::MULTIPART) != 0 {
            return Err(damaged(format!(
                "flags {flags:#x}: filters, extra fields and parts are not supported"
            )));
        }
        // Mode, time.
        cursor.take(if is_new { 12 } else { 8 })?;
        let name_bytes = cursor.byte()?;
        cursor.take(usize::from(name_bytes))?;
        let header = start
            .get(..start.len() - cursor.0.len())
            .unwrap_or_default();
        let said = cursor.be32()?;
        let found = if flags & flag::CRC32_OF_HEADER != 0 {
            crc32fast::hash(header)
        } else {
            adler32_slice(header)
        };
        if said != found {
            return Err(damaged(format!(
                "the header's checksum is {found:#x}, not {said:#x}"
            )));
        }
        Ok(Self {
            rest: cursor,
            flags,
            block: Vec::new(),
            at: 0,
            is_ended: false,
        })
    }

    /// What is still to be read; after the end, what follows it.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest.0
    }

    fn checksum(&mut self, if_flag: u32) -> io::Result<Option<u32>> {
        (self.flags & if_flag != 0)
            .then(|| self.rest.be32())
            .transpose()
    }

    fn next(&mut self) -> io::Result<()> {
        self.at = 0;
        self.block.clear();
        if self.is_ended {
            return Ok(());
        }
        let size = |bytes: u32| {
            usize::try_from(bytes)
                .ok()
                .filter(|bytes| *bytes <= MAX_BLOCK_BYTES)
                .ok_or_else(|| {
                    damaged(format!(
                        "a block of {bytes} bytes, more than {MAX_BLOCK_BYTES}"
                    ))
                })
        };
        let content_bytes = size(self.rest.be32()?)?;
        if content_bytes == 0 {
            self.is_ended = true;
            return Ok(());
        }
        let compressed_bytes = size(self.rest.be32()?)?;
        if compressed_bytes > content_bytes {
            return Err(damaged(format!(
                "a block of {content_bytes} bytes is {compressed_bytes} bytes long"
            )));
        }
        let of_content = (
            self.checksum(flag::ADLER32_OF_CONTENT)?,
            self.checksum(flag::CRC32_OF_CONTENT)?,
        );
        let is_stored = compressed_bytes == content_bytes;
        let of_compressed = if is_stored {
            (None, None)
        } else {
            (
                self.checksum(flag::ADLER32_OF_COMPRESSED)?,
                self.checksum(flag::CRC32_OF_COMPRESSED)?,
            )
        };
        let compressed = self.rest.take(compressed_bytes)?;
        check(of_compressed, compressed)?;
        if is_stored {
            self.block.extend_from_slice(compressed);
        } else {
            decompress(compressed, content_bytes, &mut self.block)?;
        }
        check(of_content, &self.block)
    }
}

fn check((adler32, crc32): (Option<u32>, Option<u32>), bytes: &[u8]) -> io::Result<()> {
    if adler32.is_some_and(|said| said != adler32_slice(bytes))
        || crc32.is_some_and(|said| said != crc32fast::hash(bytes))
    {
        return Err(damaged("a block's checksum is wrong"));
    }
    Ok(())
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            self.next()?;
        }
        let mut ready = self.block.get(self.at..).unwrap_or_default();
        let count = ready.read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// LZO1X: `source` must hold `content_bytes` and nothing else.
///
/// Instructions are told apart by their first byte and, below 16, by `literals`: how many bytes the instruction
/// before has copied from the source (4 stands for four or more).
fn decompress(source: &[u8], content_bytes: usize, output: &mut Vec<u8>) -> io::Result<()> {
    // The distance that stands for the end.
    const END: usize = 0x4000;
    let mut source = Cursor(source);
    let mut literals = 0;
    let copy = |source: &mut Cursor<'_>, count: usize, output: &mut Vec<u8>| {
        let bytes = source.take(count)?;
        if count > content_bytes.saturating_sub(output.len()) {
            return Err(damaged("a block holds more than it says"));
        }
        output.extend_from_slice(bytes);
        Ok(())
    };
    // The first byte of a block may say how many bytes to copy.
    if let Some(&first) = source.0.first()
        && first > 17
    {
        source.byte()?;
        let count = usize::from(first) - 17;
        copy(&mut source, count, output)?;
        literals = count.min(4);
    }
    loop {
        let instruction = usize::from(source.byte()?);
        let (distance, length);
        if instruction >= 64 {
            let high = usize::from(source.byte()?);
            distance = (high << 3) + ((instruction >> 2) & 7) + 1;
            length = (instruction >> 5) + 1;
            literals = instruction & 3;
        } else if instruction >= 16 {
            let (mask, base) = if instruction >= 32 { (31, 1) } else { (7, END) };
            length = 2 + long_length(&mut source, instruction & mask, mask)?;
            let low = usize::from(source.be16()?.swap_bytes());
            let high = if instruction >= 32 {
                0
            } else {
                (instruction & 8) << 11
            };
            distance = base + high + (low >> 2);
            literals = low & 3;
            if instruction < 32 && distance == END {
                break;
            }
        } else if literals == 0 {
            let count = 3 + long_length(&mut source, instruction, 15)?;
            copy(&mut source, count, output)?;
            literals = 4;
            continue;
        } else {
            let high = usize::from(source.byte()?) << 2;
            let near = high + (instruction >> 2) + 1;
            (distance, length) = if literals == 4 {
                (near + 0x800, 3)
            } else {
                (near, 2)
            };
            literals = instruction & 3;
        }
        if length > content_bytes.saturating_sub(output.len()) {
            return Err(damaged("a block holds more than it says"));
        }
        let from = output
            .len()
            .checked_sub(distance)
            .ok_or_else(|| damaged("a reference to before the beginning of its block"))?;
        // What is copied may be what this copy has written.
        for at in from..from + length {
            let byte = output.get(at).copied().unwrap_or(0);
            output.push(byte);
        }
        copy(&mut source, literals, output)?;
    }
    if output.len() != content_bytes || !source.0.is_empty() {
        return Err(damaged(format!(
            "a block of {content_bytes} bytes ends after {}, {} before its end",
            output.len(),
            source.0.len()
        )));
    }
    Ok(())
}

/// A length that did not fit in its instruction: zeros count 255 each.
fn long_length(source: &mut Cursor<'_>, short: usize, most: usize) -> io::Result<usize> {
    if short != 0 {
        return Ok(short);
    }
    let mut length = most;
    loop {
        match source.byte()? {
            0 => length += 255,
            last => return Ok(length + usize::from(last)),
        }
        if length > MAX_BLOCK_BYTES {
            return Err(damaged("a length beyond the largest block"));
        }
    }
}
