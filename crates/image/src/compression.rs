//! Compressed streams: what a kernel or an initramfs is packed with.
//!
//! Decoders are other people's: flate2 (zlib-rs), ruzstd, lzma-rust2 (xz with its filters for code, and
//! "lzma alone"), lz4_flex, bzip2 (libbz2-rs). All of them are Rust, so that the command is built for
//! another machine without a C compiler for it. Two things are done here because no crate does them:
//! the older lz4 frame ([`lz4_legacy`]), in which lz4_flex cannot tell an end from a cut and refuses blocks
//! that did not get smaller, and lzop ([`lzop`]): of the crates that decode LZO, two have another licence
//! (GPL-2.0), and the third panics on damaged input and knows no limit.
//!
//! What they have in common is done once: output stops at a limit, memory for it is asked for and not
//! assumed, and the end of a stream is looked for. A cut stream and a damaged one are told apart, since
//! the first is what a full disk leaves.
//!
//! # What is not found
//!
//! gzip, xz, zstd, bzip2, lzop and the newer lz4 frame carry checksums, and they are compared. "lzma alone"
//! and the older lz4 frame have none: damage in them is found where it breaks the stream, or what comes out of
//! it. `zstd --no-check` and `xz --check=none` leave the checksum out.

mod lz4_legacy;
mod lzop;

use std::fmt;
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::{FrameDecoder as ZstdFrame, StreamingDecoder as ZstdStream};

use crate::read::u32_at;
use crate::{Error, StreamError};

/// Most memory for the window of a zstd, xz or lzma stream, bytes: what the kernel's build asks of xz
/// (`dict=128MiB` in scripts/xz_wrap.sh) and `zstd --ultra -22` uses, and a quarter for tables beside it.
pub const MAX_WINDOW_BYTES: u32 = 160 << 20;

/// How much is decompressed between two looks at limits and progress, bytes.
const STEP_BYTES: u64 = 1 << 20;

/// A format that packs one stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz format 1.2, with any of its filters.
    Xz,
    /// "lzma alone", the format before xz.
    Lzma,
    /// The lz4 frame, or the older ("legacy") one that the kernel's build makes (`lz4 -l`).
    Lz4,
    /// The format of lzop.
    Lzo,
    /// bzip2.
    Bzip2,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Gzip,
        Self::Zstd,
        Self::Xz,
        Self::Lzma,
        Self::Lz4,
        Self::Lzo,
        Self::Bzip2,
    ];

    /// The format that `stream` begins like, by the magic numbers that the kernel goes by (lib/decompress.c).
    #[must_use]
    pub fn of(stream: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| stream.starts_with(magic);
        if starts(&[0x1f, 0x8b]) {
            Some(Self::Gzip)
        } else if starts(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Self::Zstd)
        } else if starts(b"\xfd7zXZ\0") {
            Some(Self::Xz)
        } else if starts(&lz4_legacy::MAGIC) || starts(&LZ4_MAGIC) {
            Some(Self::Lz4)
        } else if starts(lzop::MAGIC) {
            Some(Self::Lzo)
        } else if starts(b"BZh") {
            Some(Self::Bzip2)
        } else if starts(&[0x5d, 0, 0]) {
            // Properties 0x5d, and the low half of a dictionary size that is a multiple of 64 KiB.
            Some(Self::Lzma)
        } else {
            None
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Lzo => "lzop",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Decompresses `stream`, which must be one stream and nothing else, to at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Error`]: the stream ends early, is damaged, has something after its end, or holds more.
    pub fn decompress(self, stream: &[u8], limit_bytes: usize) -> Result<Vec<u8>, Error> {
        let mut open = Stream::open(self, stream)?;
        let mut bytes = Vec::new();
        open.read_all(&mut bytes, limit_bytes, &mut |_| ())?;
        open.finish(stream, bytes.len())?;
        Ok(bytes)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// 0x184d2204, little-endian (lz4_Frame_format.md).
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// Bytes that know whether more of them were asked for than there are: lz4_flex takes that for the end.
struct Source<'a> {
    rest: &'a [u8],
    is_overrun: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && !buffer.is_empty() {
            self.is_overrun = true;
        }
        self.rest.read(buffer)
    }
}

/// A stream that is being decompressed.
pub(crate) struct Stream<'a> {
    compression: Compression,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Gzip(Box<GzDecoder<&'a [u8]>>),
    Zstd(Box<ZstdStream<&'a [u8], ZstdFrame>>),
    Xz(Box<lzma_rust2::XzReader<&'a [u8]>>),
    Lzma(Box<lzma_rust2::LzmaReader<&'a [u8]>>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<Source<'a>>>),
    Lz4Legacy(lz4_legacy::Reader<'a>),
    Lzo(lzop::Reader<'a>),
    Bzip2(Box<bzip2::bufread::BzDecoder<&'a [u8]>>),
}

impl<'a> Stream<'a> {
    /// Reads what is before the first compressed byte.
    pub(crate) fn open(compression: Compression, stream: &'a [u8]) -> Result<Self, Error> {
        let refuse = |error: io::Error| refusal(compression, &error);
        let decoder = match compression {
            Compression::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(stream))),
            Compression::Zstd => {
                let limit_bytes = u64::from(MAX_WINDOW_BYTES);
                let opened = ZstdStream::new_with_max_window_size(stream, limit_bytes);
                Decoder::Zstd(Box::new(opened.map_err(|error| {
                    refuse(zstd_error(&error, stream.len() < ZSTD_HEADER_MAX_BYTES))
                })?))
            }
            Compression::Xz => Decoder::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(
                stream,
                false,
                MAX_WINDOW_BYTES >> 10,
            ))),
            Compression::Lzma => {
                let mut reader =
                    lzma_rust2::LzmaReader::new_mem_limit(stream, MAX_WINDOW_BYTES >> 10, None)
                        .map_err(refuse)?;
                reader.set_relaxed_end_condition(false);
                Decoder::Lzma(Box::new(reader))
            }
            Compression::Lz4 if stream.starts_with(&LZ4_MAGIC) => {
                let source = Source {
                    rest: stream,
                    is_overrun: false,
                };
                Decoder::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(source)))
            }
            Compression::Lz4 if stream.starts_with(&lz4_legacy::MAGIC) => {
                Decoder::Lz4Legacy(lz4_legacy::Reader::new(stream))
            }
            Compression::Lz4 => {
                return Err(Error::Stream {
                    compression,
                    error: StreamError::Damaged("it does not begin like one".into()),
                });
            }
            Compression::Lzo => Decoder::Lzo(lzop::Reader::open(stream).map_err(refuse)?),
            Compression::Bzip2 => Decoder::Bzip2(Box::new(bzip2::bufread::BzDecoder::new(stream))),
        };
        Ok(Self {
            compression,
            decoder,
        })
    }

    /// Reads up to `limit_bytes` more. Fewer come only at the stream's end, whose checksum was right.
    pub(crate) fn read(&mut self, bytes: &mut Vec<u8>, limit_bytes: u64) -> Result<(), Error> {
        let wanted = bytes
            .len()
            .saturating_add(usize::try_from(limit_bytes).unwrap_or(usize::MAX));
        let room_bytes = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
        bytes
            .try_reserve(room_bytes)
            .map_err(|_| Error::OutOfMemory {
                wanted_bytes: bytes.len().saturating_add(room_bytes),
            })?;
        let mut all = |reader: &mut dyn Read| reader.take(limit_bytes).read_to_end(bytes);
        let read = match &mut self.decoder {
            Decoder::Gzip(decoder) => all(decoder),
            Decoder::Zstd(decoder) => {
                all(decoder).map_err(|error| zstd_error(&error, decoder.get_ref().is_empty()))
            }
            Decoder::Xz(decoder) => all(decoder),
            Decoder::Lzma(decoder) => all(decoder),
            Decoder::Lz4(decoder) => all(decoder),
            Decoder::Lz4Legacy(decoder) => all(decoder),
            Decoder::Lzo(decoder) => all(decoder),
            Decoder::Bzip2(decoder) => all(decoder),
        };
        read.map_err(|error| refusal(self.compression, &error))?;
        if bytes.len() < wanted {
            self.check_end()?;
        }
        Ok(())
    }

    /// What these decoders leave to their callers.
    fn check_end(&self) -> Result<(), Error> {
        let compression = self.compression;
        match &self.decoder {
            Decoder::Zstd(decoder) => {
                let (said, found) = (
                    decoder.decoder.get_checksum_from_data(),
                    decoder.decoder.get_calculated_checksum(),
                );
                if said.is_some() && said != found {
                    return Err(Error::Stream {
                        compression,
                        error: StreamError::Damaged("the checksum is wrong".into()),
                    });
                }
            }
            Decoder::Lz4(decoder) if decoder.get_ref().is_overrun => {
                return Err(Error::Stream {
                    compression,
                    error: StreamError::Truncated,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads to the stream's end, up to `limit_bytes` in all. `progress` is told how many bytes of the stream are
    /// still to be read.
    pub(crate) fn read_all(
        &mut self,
        bytes: &mut Vec<u8>,
        limit_bytes: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), Error> {
        // One byte more is asked for, to tell.
        let end = u64::try_from(limit_bytes)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        loop {
            let before = bytes.len();
            let left = end.saturating_sub(u64::try_from(before).unwrap_or(u64::MAX));
            let step = left.min(STEP_BYTES);
            self.read(bytes, step)?;
            progress(self.left_bytes());
            if bytes.len() > limit_bytes {
                return Err(Error::Stream {
                    compression: self.compression,
                    error: StreamError::TooLarge { limit_bytes },
                });
            }
            if u64::try_from(bytes.len() - before).unwrap_or(u64::MAX) < step {
                return Ok(());
            }
        }
    }

    /// Bytes of the stream that are still to be read; some decoders read ahead.
    pub(crate) fn left_bytes(&self) -> usize {
        match &self.decoder {
            Decoder::Gzip(decoder) => decoder.get_ref().len(),
            Decoder::Zstd(decoder) => decoder.get_ref().len(),
            Decoder::Xz(decoder) => decoder.inner().len(),
            Decoder::Lzma(decoder) => decoder.inner().len(),
            Decoder::Lz4(decoder) => decoder.get_ref().rest.len(),
            Decoder::Lz4Legacy(decoder) => decoder.rest().len(),
            Decoder::Lzo(decoder) => decoder.rest().len(),
            Decoder::Bzip2(decoder) => decoder.get_ref().len(),
        }
    }

    /// After the end: how many bytes follow it.
    pub(crate) fn into_rest_bytes(self) -> usize {
        match self.decoder {
            Decoder::Lzma(decoder) => {
                let (rest, read_ahead) = decoder.into_parts();
                rest.len() + read_ahead.len()
            }
            _ => self.left_bytes(),
        }
    }

    /// After the end: checks that nothing follows it, but for the length of what came out of it, which the
    /// kernel's build appends (`size_append` in scripts/Makefile.lib). `stream` is all of it.
    pub(crate) fn finish(self, stream: &[u8], decompressed_bytes: usize) -> Result<(), Error> {
        let compression = self.compression;
        let trailing_bytes = self.into_rest_bytes();
        let rest = stream.len().saturating_sub(trailing_bytes);
        let is_size = compression != Compression::Gzip
            && trailing_bytes == 4
            && u32_at(stream, rest).map(usize::try_from) == Some(Ok(decompressed_bytes));
        if trailing_bytes == 0 || is_size {
            return Ok(());
        }
        Err(Error::Stream {
            compression,
            error: StreamError::Trailing { trailing_bytes },
        })
    }
}

/// Magic, descriptor, window, dictionary, content size.
const ZSTD_HEADER_MAX_BYTES: usize = 18;

/// ruzstd does not tell a stream that ends early from a damaged one.
fn zstd_error(error: &dyn fmt::Display, is_at_end: bool) -> io::Error {
    let kind = if is_at_end {
        io::ErrorKind::UnexpectedEof
    } else {
        io::ErrorKind::InvalidData
    };
    io::Error::new(kind, error.to_string())
}

fn refusal(compression: Compression, error: &io::Error) -> Error {
    Error::Stream {
        compression,
        error: if error.kind() == io::ErrorKind::UnexpectedEof {
            StreamError::Truncated
        } else {
            StreamError::Damaged(error.to_string())
        },
    }
}
