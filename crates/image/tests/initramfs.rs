//! Decompressing an initramfs: what comes out is read by a reader of the test's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::io::Write;

use flate2::write::GzEncoder;
use kleap_image::{Compression, Error, Progress, StreamError, decompress_initramfs};
use proptest::prelude::*;

const LIMIT_BYTES: usize = 1 << 20;

fn entry(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let start = archive.len();
    let mut fields = [0; 13];
    (fields[6], fields[11]) = (content.len(), name.len() + 1);
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    let pad = |archive: &mut Vec<u8>| {
        archive.resize(start + (archive.len() - start).next_multiple_of(4), 0)
    };
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        entry(&mut archive, name, content);
    }
    entry(&mut archive, "TRAILER!!!", b"");
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of a plain initramfs, as `unpack_to_rootfs()` finds them: entries at multiples of 4, zeros between.
fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == 0 {
            at += 1;
            continue;
        }
        assert_eq!(at % 4, 0, "an entry at {at}");
        assert_eq!(&bytes[at..at + 6], b"070701", "at {at}");
        let field = |index: usize| {
            let digits = &bytes[at + 6 + index * 8..at + 14 + index * 8];
            usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let (size, name_size) = (field(6), field(11));
        let name = &bytes[at + 110..at + 110 + name_size - 1];
        let content = (at + 110 + name_size).next_multiple_of(4);
        if name != b"TRAILER!!!" {
            files.push((
                String::from_utf8(name.to_vec()).unwrap(),
                bytes[content..content + size].to_vec(),
            ));
        }
        at = (content + size).next_multiple_of(4);
    }
    files
}

fn decompress(file: &[u8]) -> Result<kleap_image::DecompressedInitramfs, Error> {
    decompress_initramfs(file, LIMIT_BYTES, &mut |_| ())
}

#[test]
fn early_archive_and_compressed_ones() {
    let early = {
        let mut early = archive(&[("kernel/x86/microcode/GenuineIntel.bin", b"microcode")]);
        early.resize(early.len().next_multiple_of(512), 0);
        early
    };
    let (one, two) = (
        archive(&[("init", b"#!/bin/sh\n")]),
        archive(&[("lib/a", b"12345")]),
    );
    // Debian's initramfs-tools, and a boot loader that adds another one, at any offset.
    let file = [
        early.clone(),
        gzip(&one),
        vec![0; 3],
        lz4(&two),
        two.clone(),
    ]
    .concat();
    // The last one must be where the kernel finds it.
    let plain_at = file.len() - two.len();
    let file = if plain_at.is_multiple_of(4) {
        file
    } else {
        let mut padded = file[..plain_at].to_vec();
        padded.resize(plain_at.next_multiple_of(4), 0);
        [padded, two.clone()].concat()
    };
    let mut told = Vec::new();
    let found = decompress_initramfs(&file, LIMIT_BYTES, &mut |progress: Progress| {
        told.push(progress)
    })
    .expect("decompressed");
    assert!(found.bytes.starts_with(&archive(&[(
        "kernel/x86/microcode/GenuineIntel.bin",
        b"microcode"
    )])));
    let names: Vec<_> = files(&found.bytes)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        [
            "kernel/x86/microcode/GenuineIntel.bin",
            "init",
            "lib/a",
            "lib/a"
        ]
    );
    let how: Vec<_> = found
        .segments
        .iter()
        .map(|segment| segment.compression)
        .collect();
    assert_eq!(
        how,
        [None, Some(Compression::Gzip), Some(Compression::Lz4), None]
    );
    assert_eq!(told.len(), 2);
    assert!(
        told.windows(2)
            .all(|two| two[0].done_bytes < two[1].done_bytes)
    );
}

#[test]
fn several_archives_in_one_stream() {
    let mut inner = archive(&[("a", b"1")]);
    inner.resize(inner.len() + 512, 0);
    inner.extend(archive(&[("b", b"22")]));
    let found = decompress(&gzip(&inner)).expect("decompressed");
    assert_eq!(found.bytes, inner);
}

#[test]
fn what_is_no_initramfs_is_refused() {
    assert!(matches!(
        decompress(b"an ext2 file system"),
        Err(Error::NotAnInitramfs { offset_bytes: 0 })
    ));
    assert!(matches!(
        decompress(&gzip(b"an ext2 file system")),
        Err(Error::NotAnInitramfs { offset_bytes: 0 })
    ));
    let one = archive(&[("init", b"x")]);
    let then_junk = [one.clone(), b"junk".to_vec()].concat();
    assert_eq!(
        decompress(&then_junk),
        Err(Error::NotAnInitramfs {
            offset_bytes: one.len()
        })
    );
    for length in 1..one.len() - 3 {
        let error = decompress(&one[..length]).expect_err("cut");
        assert!(
            matches!(
                error,
                Error::ArchiveTruncated { .. } | Error::NotAnInitramfs { .. }
            ),
            "{length}: {error}"
        );
    }
    let whole = gzip(&one);
    for length in 2..whole.len() {
        assert_eq!(
            decompress(&whole[..length]),
            Err(Error::Stream {
                compression: Compression::Gzip,
                error: StreamError::Truncated
            })
        );
    }
    assert!(decompress(&[]).expect("nothing").bytes.is_empty());
}

#[test]
fn the_limit_is_for_all_of_it() {
    let large = archive(&[("large", &vec![7; LIMIT_BYTES / 2])]);
    decompress(&gzip(&large)).expect("half of it");
    let refused = Err(Error::InitramfsTooLarge {
        limit_bytes: LIMIT_BYTES,
    });
    assert_eq!(decompress(&[gzip(&large), gzip(&large)].concat()), refused);
    assert_eq!(decompress(&[large.clone(), large].concat()), refused);
    assert_eq!(decompress(&gzip(&vec![b'0'; 1 << 28])), refused);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_stay_the_same(
        archives in prop::collection::vec(
            (prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4), 0_u8..3, 0_usize..9),
            0..6,
        ),
    ) {
        let mut file = Vec::new();
        let mut expected = Vec::new();
        for (contents, how, zeros) in archives {
            let named: Vec<(String, Vec<u8>)> =
                contents.into_iter().enumerate().map(|(index, content)| (format!("f{index}"), content)).collect();
            let borrowed: Vec<(&str, &[u8])> =
                named.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
            let plain = archive(&borrowed);
            match how {
                0 => {
                    file.resize(file.len().next_multiple_of(4), 0);
                    file.extend(plain);
                }
                1 => file.extend(gzip(&plain)),
                _ => file.extend(lz4(&plain)),
            }
            file.resize(file.len() + zeros, 0);
            expected.extend(named);
        }
        let found = decompress(&file).expect("decompressed");
        prop_assert_eq!(files(&found.bytes), expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        head in prop::sample::select(vec![&b""[..], b"070701", b"\x02\x21\x4c\x18", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd",
            b"\x5d\0\0", b"BZh9", b"\x89LZO\0\r\n\x1a\n", b"\x04\x22\x4d\x18"]),
    ) {
        let _ = decompress(&[head, &bytes].concat());
        let _ = decompress(&[head, &bytes, &[0; 8], head].concat());
    }
}
