//! Physical memory through `/proc/kcore`, an ELF file whose segments name physical addresses.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};

/// The file.
const PATH: &str = "/proc/kcore";
/// How much is read at once.
const BUFFER_BYTES: usize = 1 << 20;
/// The size of an ELF64 file header.
const FILE_HEADER_BYTES: usize = 64;
/// The size of an ELF64 program header.
const PROGRAM_HEADER_BYTES: usize = 56;
/// The type of a program header that describes memory.
const PT_LOAD: u32 = 1;

/// One piece of memory in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    physical: u64,
    bytes: u64,
    offset: u64,
}

/// The open file with its segments.
#[derive(Debug)]
pub(crate) struct Kcore {
    file: File,
    segments: Vec<Segment>,
}

impl Kcore {
    /// Opens the file, for which one must be root.
    pub(crate) fn open() -> Result<Self> {
        let mut file = File::open(PATH).context("cannot open /proc/kcore: root may")?;
        let mut header = [0; FILE_HEADER_BYTES];
        file.read_exact(&mut header)
            .context("cannot read /proc/kcore")?;
        ensure!(
            header.starts_with(b"\x7fELF\x02\x01"),
            "/proc/kcore is not a 64-bit ELF file"
        );
        let table = field_u64(&header, 32)?;
        let count = usize::from(field_u16(&header, 56)?);
        let mut headers = vec![0; count * PROGRAM_HEADER_BYTES];
        file.seek(SeekFrom::Start(table))
            .context("cannot seek in /proc/kcore")?;
        file.read_exact(&mut headers)
            .context("cannot read /proc/kcore's program headers")?;
        let segments = parse_segments(&headers)?;
        Ok(Self { file, segments })
    }

    /// Gives the bytes from `start` to `end` to a consumer, in order.
    pub(crate) fn read_physical(
        &mut self,
        start: u64,
        end: u64,
        mut consume: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut address = start;
        while address < end {
            let segment = find(&self.segments, address)
                .with_context(|| format!("no segment of /proc/kcore holds {address:#x}"))?;
            let inside = address - segment.physical;
            let left = (segment.bytes - inside).min(end - address);
            let step = usize::try_from(left)
                .unwrap_or(BUFFER_BYTES)
                .min(BUFFER_BYTES);
            let piece = buffer
                .get_mut(..step)
                .context("a step is at most the buffer")?;
            self.file
                .seek(SeekFrom::Start(segment.offset + inside))
                .context("cannot seek in /proc/kcore")?;
            self.file
                .read_exact(piece)
                .with_context(|| format!("cannot read {step} bytes at {address:#x}"))?;
            consume(piece);
            address += step as u64;
        }
        Ok(())
    }
}

/// More than any machine's memory that starts at 0: such a segment is no memory, but one without an address.
const MEMORY_MAX_BYTES: u64 = 1 << 40;

/// The segment that holds an address. Segments of kernel text and vmalloc have no physical address
/// of their own (all ones, or 0 where memory may start as well), and the linear map's hold each address once.
fn find(segments: &[Segment], address: u64) -> Option<Segment> {
    segments
        .iter()
        .copied()
        .find(|segment| address >= segment.physical && address - segment.physical < segment.bytes)
}

fn parse_segments(headers: &[u8]) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
        let segment = Segment {
            physical: field_u64(header, 24)?,
            bytes: field_u64(header, 40)?,
            offset: field_u64(header, 8)?,
        };
        let known = match segment.physical {
            u64::MAX => false,
            0 => segment.bytes <= MEMORY_MAX_BYTES,
            _ => true,
        };
        if field_u32(header, 0)? == PT_LOAD && known {
            segments.push(segment);
        }
    }
    if segments.is_empty() {
        bail!("/proc/kcore has no segment with a physical address");
    }
    Ok(segments)
}

fn field<const BYTES: usize>(header: &[u8], offset: usize) -> Result<[u8; BYTES]> {
    header
        .get(offset..offset + BYTES)
        .and_then(|bytes| bytes.try_into().ok())
        .context("an ELF header is too short")
}

fn field_u16(header: &[u8], offset: usize) -> Result<u16> {
    field(header, offset).map(u16::from_le_bytes)
}

fn field_u32(header: &[u8], offset: usize) -> Result<u32> {
    field(header, offset).map(u32::from_le_bytes)
}

fn field_u64(header: &[u8], offset: usize) -> Result<u64> {
    field(header, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, offset: u64, physical: u64, bytes: u64) -> Vec<u8> {
        let mut header = vec![0; PROGRAM_HEADER_BYTES];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[24..32].copy_from_slice(&physical.to_le_bytes());
        header[40..48].copy_from_slice(&bytes.to_le_bytes());
        header
    }

    #[test]
    fn segments_with_physical_addresses_only() {
        let headers = [
            header(4, 1, 2, 3),
            header(PT_LOAD, 0x1000, u64::MAX, 0x1000),
            header(PT_LOAD, 0x1000, 0, 1 << 46),
            header(PT_LOAD, 0x2000, 0x4000_0000, 0x1000),
        ]
        .concat();
        let segments = parse_segments(&headers).unwrap();
        assert_eq!(segments.len(), 1);
        assert_eq!(find(&segments, 0x4000_0fff), Some(segments[0]));
        assert_eq!(find(&segments, 0x4000_1000), None);
        assert_eq!(find(&segments, 0x3fff_ffff), None);
        // A board whose memory starts at 0.
        let segments = parse_segments(&header(PT_LOAD, 0x1000, 0, 0x1000)).unwrap();
        assert_eq!(find(&segments, 0), Some(segments[0]));
    }
}
