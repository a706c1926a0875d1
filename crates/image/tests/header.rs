//! Every byte of the header, flipped in every way, and every interesting truncation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::collections::BTreeMap;

use common::{FIXTURES, NOP, put, without_efi};
use kleap_image::{Error, Header, Kernel, PageSize, Placement};

/// Names a directory of real, uncompressed kernels to run the same tests over.
const KERNELS_VARIABLE: &str = "KLEAP_KERNELS";

/// For every byte of the header: how many of its 255 other values are accepted.
fn accepted_flips(image: &mut [u8]) -> BTreeMap<usize, Vec<u8>> {
    let mut accepted: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    for offset in 0..64 {
        let original = image[offset];
        for flip in 1..=255_u8 {
            image[offset] = original ^ flip;
            if Header::check(image).is_ok() {
                accepted.entry(offset).or_default().push(original ^ flip);
            }
        }
        image[offset] = original;
    }
    accepted
}

#[test]
fn real_heads_are_read() {
    for fixture in FIXTURES {
        let kernel = Kernel::parse(fixture.image()).expect(fixture.name);
        assert_eq!(kernel.image_size_bytes(), fixture.image_size_bytes);
        assert_eq!(kernel.text_offset_bytes(), 0);
        assert_eq!(
            kernel.page_size().map(PageSize::bytes),
            Some(fixture.page_size_bytes)
        );
        assert_eq!(kernel.placement(), Placement::Anywhere48);
        assert_eq!(kernel.banner(), Some(fixture.banner));
        assert!(kernel.header().is_efi && !kernel.is_gzip());
        let rule = kernel.placement_rule();
        assert_eq!(rule.base_alignment_bytes, 0x20_0000);
        assert_eq!(rule.reserved_bytes, fixture.image_size_bytes);
    }
}

/// Nothing passes but another page size, though every other target of the entry branch holds code.
#[test]
fn no_flip_in_a_header_passes_but_the_page_size() {
    for fixture in FIXTURES {
        let mut image = fixture.image();
        let original = image[24];
        let others: Vec<u8> = (1..4)
            .map(|size| 0x8 | size << 1)
            .filter(|flags| *flags != original)
            .collect();
        let mut accepted = accepted_flips(&mut image);
        for flags in accepted.values_mut() {
            flags.sort_unstable();
        }
        assert_eq!(accepted, BTreeMap::from([(24, others)]), "{}", fixture.name);
    }
}

/// Without a PE header there is less to check against. What passes is listed, byte by byte.
#[test]
fn flips_without_a_pe_header_pass_only_where_documented() {
    for code in [[NOP, 0x1400_03ff], [0x1400_0400, 0]] {
        let mut image = without_efi(code, 0x8000, 0x1_0000);
        assert_eq!(Header::check(&image).unwrap().entry_offset_bytes, 0x1000);
        let accepted = accepted_flips(&mut image);
        for (offset, values) in accepted {
            let allowed: fn(u8) -> bool = match offset {
                // The branch: the two other instructions that are there.
                0 => |value| matches!(value, 1 | 2),
                // text_offset: any multiple of 4 KiB below 2 MiB.
                9 => |value| value & 0xf == 0,
                10 => |value| value < 0x20,
                // image_size: any multiple of 4 KiB that covers the file.
                17 => |value| value & 0xf == 0,
                18 | 19 => |_| true,
                // Page size and placement.
                24 => |value| value & !0xe == 0,
                _ => |_| false,
            };
            assert!(
                values.iter().all(|value| allowed(*value)),
                "byte {offset}: {values:x?}"
            );
        }
    }
}

#[test]
fn a_truncated_kernel_is_refused_at_every_length() {
    for fixture in FIXTURES {
        let image = fixture.image();
        let interesting = [
            0, 1, 2, 4, 56, 59, 60, 63, 64, 65, 0x44, 0x58, 0x90, 0x148, 511, 512,
        ]
        .into_iter()
        .chain((0..image.len()).step_by(0x1_0000))
        .chain([image.len() - 4096, image.len() - 512, image.len() - 1]);
        for length in interesting {
            let error = Header::check(&image[..length]).expect_err("truncated");
            if length >= 512 {
                assert!(
                    matches!(error, Error::Truncated { .. }),
                    "{length:#x}: {error}"
                );
            }
        }
        Header::check(&image).expect("whole");
    }
}

#[test]
fn a_file_longer_than_its_memory_is_refused() {
    let fixture = &FIXTURES[0];
    let mut image = fixture.image();
    image.resize(usize::try_from(fixture.image_size_bytes).unwrap(), 0);
    Header::check(&image).expect("as long as image_size");
    image.push(0);
    assert!(matches!(
        Header::check(&image),
        Err(Error::LongerThanImageSize { .. })
    ));
}

#[test]
fn every_field_has_its_own_refusal() {
    let refuse = |offset: usize, bytes: &[u8]| {
        let mut image = FIXTURES[2].image();
        put(&mut image, offset, bytes);
        Header::check(&image).expect_err("damaged")
    };
    assert!(matches!(refuse(0, &[0; 4]), Error::Entry { code0: 0, .. }));
    assert!(matches!(
        refuse(4, &NOP.to_le_bytes()),
        Error::Entry { code1: NOP, .. }
    ));
    // One word backwards from code1; far beyond the file; into the headers.
    for branch in [0x17ff_fffe_u32, 0x15ff_ffff, 0x1400_0020] {
        let error = refuse(4, &branch.to_le_bytes());
        assert!(matches!(error, Error::EntryTarget { .. }), "{error}");
    }
    assert!(matches!(
        refuse(8, &[1]),
        Error::TextOffset {
            text_offset_bytes: 1
        }
    ));
    assert!(matches!(refuse(8, &[0, 0, 0x20]), Error::TextOffset { .. }));
    assert!(matches!(
        refuse(8, &[0, 0x80]),
        Error::UnlikeItsVersion {
            major: 6,
            minor: 12,
            ..
        }
    ));
    assert!(matches!(refuse(16, &[0; 8]), Error::ImageSizeZero));
    assert!(matches!(refuse(16, &[0xff; 8]), Error::ImageSize { .. }));
    assert!(matches!(refuse(18, &[0x50]), Error::SizesDisagree { .. }));
    assert!(matches!(
        refuse(24, &[0xb]),
        Error::BigEndian { flags: 0xb }
    ));
    assert!(matches!(
        refuse(24, &[0x1a]),
        Error::UnknownFlags { unknown: 0x10, .. }
    ));
    assert!(matches!(refuse(31, &[0x80]), Error::UnknownFlags { .. }));
    assert!(matches!(refuse(24, &[0x2]), Error::UnlikeItsVersion { .. }));
    for offset in [32, 40, 48, 55] {
        assert!(matches!(refuse(offset, &[1]), Error::ReservedField { .. }));
    }
    assert!(matches!(
        refuse(60, &[0; 4]),
        Error::Entry { pe_offset: 0, .. }
    ));
    assert!(matches!(
        refuse(60, &[0xfc, 0xff, 0xff, 0xff]),
        Error::PeHeader { .. }
    ));
    assert!(matches!(
        refuse(0x44, &[0x4c, 0x01]),
        Error::PeHeader { .. }
    ));
    assert!(matches!(
        refuse(0x46, &[0xff, 0xff]),
        Error::PeHeader { .. }
    ));
    assert!(matches!(refuse(0x46, &[0, 0]), Error::PeHeader { .. }));
}

/// A kernel older than the constants: its text_offset is taken.
#[test]
fn an_old_kernel_may_have_a_text_offset() {
    let mut image = without_efi([0x1400_0400, 0], 0x8000, 0x1_0000);
    put(&mut image, 8, &0x8_0000_u64.to_le_bytes());
    put(&mut image, 24, &[0]);
    put(&mut image, 0x2000, b"Linux version 4.4.0 (a@b) #1\n");
    let header = Header::check(&image).expect("old");
    assert_eq!(header.text_offset_bytes, 0x8_0000);
    assert_eq!(header.page_size, None);
    assert_eq!(header.placement, Placement::NearDramBase);
    put(&mut image, 0x2000, b"Linux version 5.10 (a@b) #1\n");
    assert!(matches!(
        Header::check(&image),
        Err(Error::UnlikeItsVersion { .. })
    ));
}

#[test]
fn real_kernels_are_accepted_and_their_flips_refused() {
    let Some(directory) = std::env::var_os(KERNELS_VARIABLE) else {
        println!("SKIPPED: set {KERNELS_VARIABLE} to a directory of uncompressed arm64 kernels");
        return;
    };
    let mut kernels = 0;
    for entry in std::fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        let kernel = Kernel::parse(std::fs::read(&path).expect("file"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let banner = kernel.banner().expect("banner").to_owned();
        assert!(
            kernel.version().is_some_and(|version| version >= (5, 10)),
            "{banner}"
        );
        let mut image = kernel.into_image_bytes();
        let accepted = accepted_flips(&mut image);
        let total: usize = accepted.values().map(Vec::len).sum();
        println!("{banner}\n  of 16320 flips {total} are accepted:");
        for (offset, values) in &accepted {
            println!("  byte {offset}: {}", values.len());
            assert!(
                matches!(offset, 4..=7 | 24),
                "byte {offset} flipped to {values:x?}"
            );
        }
        for length in (0..image.len()).step_by(4096).chain([image.len() - 1]) {
            assert!(
                Header::check(&image[..length]).is_err(),
                "{length:#x} of {}",
                image.len()
            );
        }
        kernels += 1;
    }
    println!("{kernels} kernels");
}
