//! Whole files: gzip, other formats, arbitrary bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::io::Write;

use common::{FIXTURES, NOP, put, without_efi};
use flate2::write::GzEncoder;
use kleap_image::{Compression, Error, FileKind, Kernel, Layer, StreamError};
use proptest::prelude::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const GZIP: Layer = Layer::Compressed(Compression::Gzip);

fn refused(error: StreamError) -> Error {
    Error::Stream {
        compression: Compression::Gzip,
        error,
    }
}

fn small() -> Vec<u8> {
    let mut image = without_efi([NOP, 0x1400_03ff], 0x8000, 0x1_0000);
    for (index, byte) in image.iter_mut().enumerate().skip(0x2000) {
        *byte = u8::try_from(index * index % 251).unwrap();
    }
    image
}

#[test]
fn gzip_gives_the_same_kernel() {
    for image in [small(), FIXTURES[0].image()] {
        let kernel = Kernel::parse(gzip(&image)).expect("gzip");
        assert!(kernel.is_gzip());
        assert_eq!(kernel.image_bytes(), image);
        let plain = Kernel::parse(image).expect("plain");
        assert_eq!(plain.header(), kernel.header());
        assert!(!plain.is_gzip());
    }
}

#[test]
fn damaged_gzip_is_refused() {
    let whole = gzip(&small());
    for length in 2..whole.len() {
        let error = Kernel::parse(whole[..length].to_vec()).expect_err("truncated");
        assert_eq!(
            error,
            refused(StreamError::Truncated),
            "{length} of {}",
            whole.len()
        );
    }
    // The last eight bytes are CRC and length.
    for back in 1..=8 {
        let mut damaged = whole.clone();
        let at = damaged.len() - back;
        damaged[at] ^= 1;
        let error = Kernel::parse(damaged).expect_err("damaged");
        assert!(
            matches!(
                &error,
                Error::Stream {
                    error: StreamError::Damaged(_),
                    ..
                }
            ),
            "{error}"
        );
    }
    let mut trailing = whole.clone();
    trailing.extend_from_slice(b"more");
    assert_eq!(
        Kernel::parse(trailing),
        Err(refused(StreamError::Trailing { trailing_bytes: 4 }))
    );
    let two = [whole.clone(), whole.clone()].concat();
    assert_eq!(
        Kernel::parse(two),
        Err(refused(StreamError::Trailing {
            trailing_bytes: whole.len()
        }))
    );
    assert_eq!(
        Kernel::parse(gzip(&whole)),
        Err(Error::NotAnImage {
            kind: FileKind::Compressed(Compression::Gzip),
            layers: vec![GZIP]
        })
    );
}

#[test]
fn more_than_the_header_claims_is_refused() {
    let mut image = small();
    image.resize(0x1_0000, 0);
    Kernel::parse(gzip(&image)).expect("as long as image_size");
    image.push(0);
    assert_eq!(
        Kernel::parse(gzip(&image)),
        Err(Error::DecompressedTooLarge {
            compression: Compression::Gzip,
            limit_bytes: 0x1_0000,
            image_size_bytes: 0x1_0000
        })
    );
}

#[test]
fn other_files_are_named() {
    let with = |offset: usize, magic: &[u8]| {
        let mut file = vec![0x11; 4096];
        put(&mut file, offset, magic);
        file
    };
    for (file, kind, remedy) in [
        (vec![], FileKind::Empty, "install the kernel again"),
        (vec![0; 5000], FileKind::Zeros, "disk may have been full"),
        (
            vec![0xee; 10],
            FileKind::TooShort,
            "install the kernel again",
        ),
        (vec![0xee; 100], FileKind::Unknown, "vmlinux"),
        (
            b"#!/bin/sh\necho hello\n".to_vec(),
            FileKind::Text,
            "vmlinuz-VERSION",
        ),
        (with(0x202, b"HdrS"), FileKind::X86, "arm64"),
        (
            with(0x24, &0x016f_2818_u32.to_le_bytes()),
            FileKind::Arm32Zimage,
            "arm64",
        ),
        (with(56, b"RSC\x05"), FileKind::RiscV, "arm64"),
        (with(0, b"MZ"), FileKind::Pe, ".linux"),
        (with(0, b"070701"), FileKind::Cpio, "--initrd"),
    ] {
        let error = Kernel::parse(file.clone()).expect_err("not an Image");
        assert_eq!(
            error,
            Error::NotAnImage {
                kind,
                layers: Vec::new()
            }
        );
        assert!(error.to_string().contains(remedy), "{error}");
        let error = Kernel::parse(gzip(&file)).expect_err("not an Image inside gzip");
        assert_eq!(
            error,
            Error::NotAnImage {
                kind,
                layers: vec![GZIP]
            }
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Kernel::parse(bytes);
    }

    #[test]
    fn arbitrary_gzip_bodies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Kernel::parse([&[0x1f, 0x8b, 8, 0][..], &bytes].concat());
        let _ = Kernel::parse(gzip(&bytes));
    }

    /// Damage anywhere in the headers of a kernel that fits in memory many times over.
    #[test]
    fn damaged_headers_never_panic(
        changes in prop::collection::vec((0_usize..0x148, any::<u8>()), 1..8),
        length in 0_usize..0x1000,
        which in 0_usize..5,
    ) {
        let mut image = FIXTURES[which].head.to_vec();
        image.resize(0x1000, 0);
        for (offset, value) in changes {
            image[offset] = value;
        }
        image.truncate(length);
        let _ = Kernel::parse(gzip(&image));
        let _ = Kernel::parse(image);
    }
}
