//! Kernel files.

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use kleap_image::{
    Compression, Container, Error, Kernel, KernelFile, Layer, MAX_BANNER_BYTES,
    MAX_IMAGE_SIZE_BYTES, Options, StreamError, decompress_initramfs,
};
use std::io::Read;

/// Most bytes that the oracle inflates: more than 1032 times the longest input.
const INFLATED_MAX_BYTES: u64 = 2 << 20;

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

fn word32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn word64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// What booting.rst demands of a file that was accepted, read from its bytes once more.
fn check(kernel: &Kernel) {
    let image = kernel.image_bytes();
    let header = kernel.header();
    assert!(image.len() >= 64);
    assert_eq!(&image[56..60], b"ARM\x64");
    assert_eq!(header.text_offset_bytes, word64(image, 8));
    assert_eq!(header.image_size_bytes, word64(image, 16));
    assert!(header.image_size_bytes <= MAX_IMAGE_SIZE_BYTES);
    assert!(image.len() as u64 <= header.image_size_bytes);
    assert!(header.text_offset_bytes < 2 << 20);
    assert!(image[32..56].iter().all(|byte| *byte == 0));
    assert_eq!(
        word64(image, 24) & !0xe,
        0,
        "big-endian, or flags that nobody knows"
    );
    let entry = usize::try_from(header.entry_offset_bytes).unwrap();
    assert!(entry >= 64 && entry % 4 == 0);
    assert_ne!(word32(image, entry), 0);
    assert_eq!(header.is_efi, word32(image, 60) != 0);
    let rule = kernel.placement_rule();
    assert_eq!(rule.reserved_bytes, header.image_size_bytes);
    match kernel.banner() {
        Some(banner) => {
            assert!(banner.starts_with("Linux version ") && banner.len() <= MAX_BANNER_BYTES);
            assert!(!banner.chars().any(char::is_control));
            let found = image
                .windows(banner.len())
                .any(|window| window == banner.as_bytes());
            assert!(found);
        }
        None => assert_eq!(kernel.version(), None),
    }
}

fn refused(error: StreamError) -> Result<Kernel, Error> {
    Err(Error::Stream {
        compression: Compression::Gzip,
        error,
    })
}

/// A file as it is.
pub fn image(data: &[u8]) {
    match Kernel::parse(data.to_vec()) {
        Ok(kernel) => {
            if let Some(range) = kernel.file_range() {
                assert_eq!(kernel.image_bytes(), &data[range]);
            }
            check(&kernel);
            assert!(!format!("{kernel:?}").is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Most that comes out of a stream or an initramfs here, bytes.
const OUT_MAX_BYTES: usize = 1 << 20;

/// A file in any of the containers, as it is: what it brings is no longer than the limits, and no part of it is
/// made up.
pub fn formats(data: &[u8]) {
    let options = Options {
        without_device_tree: data.first().is_some_and(|byte| byte & 1 == 1),
        ..Options::default()
    };
    match KernelFile::parse(data.to_vec(), options) {
        Ok(file) => {
            check(&file.kernel);
            if let Some(range) = file.kernel.file_range() {
                assert_eq!(file.kernel.image_bytes(), &data[range]);
            }
            let mut layers: Vec<_> = file.kernel.layers().to_vec();
            layers.dedup();
            assert_eq!(layers, file.kernel.layers(), "a layer was taken off twice");
            for remark in &file.remarks {
                assert!(!remark.is_empty() && !remark.contains('\n'));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// An EFI program of 5 KiB with one section, `.linux`, a kernel without CONFIG_EFI, and room for a table of signatures behind
/// it.
const PROGRAM_BYTES: usize = 0x1400;
const KERNEL: std::ops::Range<usize> = 0x200..PROGRAM_BYTES;
const OPTIONAL_HEADER: usize = 0x98;
const CHECKSUM: usize = OPTIONAL_HEADER + 64;
const SIGNATURE_DIRECTORY: usize = OPTIONAL_HEADER + 112 + 4 * 8;

/// That program, with a table as long as that.
pub(crate) fn program(table_bytes: usize) -> Vec<u8> {
    let mut file = vec![0_u8; PROGRAM_BYTES];
    let section = OPTIONAL_HEADER + 240;
    let mut put = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"MZ");
    put(0x80, b"PE\0\0\x64\xaa\x01");
    put(0x94, &240_u16.to_le_bytes());
    put(OPTIONAL_HEADER, &0x20b_u16.to_le_bytes());
    put(section, b".linux");
    for (offset, word) in [
        (0x3c, 0x80),
        (OPTIONAL_HEADER + 60, 0x200),
        (OPTIONAL_HEADER + 108, 16),
        (SIGNATURE_DIRECTORY, PROGRAM_BYTES),
        (SIGNATURE_DIRECTORY + 4, table_bytes),
        (section + 8, KERNEL.len()),
        (section + 16, KERNEL.len()),
        (section + 20, KERNEL.start),
        // nop, and a branch to bl, nop, mov x21, x0.
        (KERNEL.start, 0xd503_201f),
        (KERNEL.start + 4, 0x1400_03ff),
        (KERNEL.start + 16, 0x2000),
        (KERNEL.start + 24, 0xa),
        (KERNEL.start + 56, 0x644d_5241),
        (KERNEL.start + 0x1000, 0x9400_0002),
        (KERNEL.start + 0x1004, 0xd503_201f),
        (KERNEL.start + 0x1008, 0xaa00_03f5),
    ] {
        put(offset, &(word as u32).to_le_bytes());
    }
    file
}

/// Its digest, by the words of the format's specification.
pub(crate) fn program_digest<D: sha2::Digest>() -> Vec<u8> {
    let file = program(8);
    let mut digest = D::new();
    digest.update(&file[..CHECKSUM]);
    digest.update(&file[CHECKSUM + 4..SIGNATURE_DIRECTORY]);
    digest.update(&file[SIGNATURE_DIRECTORY + 8..]);
    digest.finalize().to_vec()
}

/// A table of signatures. What is said to be what was signed has the program's digest in its table; what is refused
/// as something else has not, and the right one is said beside.
pub fn signature(data: &[u8]) {
    let file = [&program(data.len())[..], data].concat();
    match KernelFile::parse(file, Options::default()) {
        Ok(found) => {
            let is_whole = found
                .remarks
                .iter()
                .any(|remark| remark == "it is what was signed; who signed it is not checked");
            let has = |digest: &[u8]| data.windows(digest.len()).any(|window| window == digest);
            assert!(
                !is_whole
                    || has(&program_digest::<sha2::Sha256>())
                    || has(&program_digest::<sha2::Sha384>())
                    || has(&program_digest::<sha2::Sha512>())
            );
            assert!(is_whole || data.is_empty() || found.remarks.len() == 1);
        }
        Err(Error::NotWhatWasSigned {
            algorithm,
            expected,
            found,
        }) => {
            let right = match algorithm {
                "SHA-256" => program_digest::<sha2::Sha256>(),
                "SHA-384" => program_digest::<sha2::Sha384>(),
                _ => program_digest::<sha2::Sha512>(),
            };
            let right: String = right.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, right);
            assert_ne!(found, expected);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A stream of one kind, or an initramfs; the first byte says which. What comes out is bounded, and plain archives
/// come out as they are, whatever zeros lie between them.
pub fn streams(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    if let Some(compression) = Compression::ALL.get(usize::from(kind % 8)) {
        match compression.decompress(rest, OUT_MAX_BYTES) {
            Ok(bytes) => {
                assert!(bytes.len() <= OUT_MAX_BYTES);
                let longer = [rest, &[0x55]].concat();
                assert!(compression.decompress(&longer, OUT_MAX_BYTES).is_err());
                if let Some(less) = bytes.len().checked_sub(1) {
                    assert!(compression.decompress(rest, less).is_err());
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        return;
    }
    match decompress_initramfs(rest, OUT_MAX_BYTES, &mut |_| ()) {
        Ok(found) => {
            assert!(found.bytes.len() <= OUT_MAX_BYTES);
            let mut end = 0;
            for segment in &found.segments {
                assert!(segment.range.start >= end && segment.range.end <= rest.len());
                end = segment.range.end;
            }
            let again = decompress_initramfs(&found.bytes, OUT_MAX_BYTES, &mut |_| ());
            // What is in a stream is the next kernel's to judge: zeros, or another stream.
            if found
                .segments
                .iter()
                .all(|segment| segment.compression.is_none())
            {
                assert_eq!(again.map(|again| again.bytes), Ok(found.bytes));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A stream without its frame, put into one that is right: the file must be taken exactly as if it had not been
/// compressed. Then the same stream in a frame that is not right.
pub fn gzip(data: &[u8]) {
    const FRAME: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    // As it is: any flags, any header fields.
    let raw = [&FRAME[..2], data].concat();
    if let Ok(kernel) = Kernel::parse(raw) {
        check(&kernel);
    }

    let mut decoder = DeflateDecoder::new(data);
    let mut inflated = Vec::new();
    let whole = (&mut decoder)
        .take(INFLATED_MAX_BYTES)
        .read_to_end(&mut inflated)
        .is_ok();
    if !whole || inflated.len() as u64 == INFLATED_MAX_BYTES {
        return;
    }
    let used = usize::try_from(decoder.total_in()).unwrap();
    let mut crc = Crc::new();
    crc.update(&inflated);
    let mut file = [&FRAME[..], &data[..used]].concat();
    file.extend(crc.sum().to_le_bytes());
    file.extend(crc.amount().to_le_bytes());

    let plain = Kernel::parse(inflated.clone());
    let zipped = Kernel::parse(file.clone());
    match (&plain, &zipped) {
        // Inside a stream there may be an Image or an ELF file, nothing else.
        (Ok(plain), Err(Error::NotAnImage { .. }))
            if plain
                .layers()
                .iter()
                .any(|layer| *layer != Layer::Container(Container::Elf)) => {}
        (Ok(plain), Ok(zipped)) => {
            assert!(zipped.is_gzip() && !is_gzip(&inflated));
            assert_eq!(plain.header(), zipped.header());
            assert_eq!(plain.image_bytes(), zipped.image_bytes());
            check(zipped);
        }
        (Err(_), Err(error)) => assert!(!error.to_string().is_empty()),
        (plain, zipped) => panic!("plain: {plain:?}; compressed: {zipped:?}"),
    }
    if zipped.is_ok() {
        let mut longer = file.clone();
        longer.push(0);
        assert_eq!(
            Kernel::parse(longer),
            refused(StreamError::Trailing { trailing_bytes: 1 })
        );
        let end = file.len() - 1;
        assert_eq!(
            Kernel::parse(file[..end].to_vec()),
            refused(StreamError::Truncated)
        );
        file[end - 5] ^= 1;
        assert!(matches!(
            Kernel::parse(file),
            Err(Error::Stream {
                error: StreamError::Damaged(_),
                ..
            })
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds::{Sources, seeds};

    /// Otherwise nothing would show that the target tells them apart.
    #[test]
    fn the_seeds_are_of_every_kind() {
        let seeds = seeds(&Sources::default());
        let parse = |name: &str| {
            let seed = seeds
                .iter()
                .find(|seed| (seed.target, seed.name.as_str()) == ("signature", name))
                .unwrap();
            let file = [&program(seed.bytes.len())[..], &seed.bytes].concat();
            KernelFile::parse(file, Options::default()).map(|found| found.remarks)
        };
        let whole = ["it is what was signed; who signed it is not checked".to_owned()];
        assert_eq!(parse("seed-whole").unwrap(), whole);
        assert_eq!(parse("seed-twice").unwrap(), whole);
        assert!(matches!(
            parse("seed-other"),
            Err(Error::NotWhatWasSigned { .. })
        ));
    }
}
