//! A decompression bomb takes no more memory than the header it carries allows. In a process of its
//! own, because it looks at the peak of the whole process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::io::Write;

use common::{NOP, without_efi};
use flate2::write::GzEncoder;
use kleap_image::{Compression, Error, FileKind, Kernel, Layer};

const BOMB_BYTES: usize = 1 << 30;
const IMAGE_SIZE_BYTES: usize = 16 << 20;

fn bomb(head: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(head).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_BYTES / zeros.len() {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap()
}

/// Peak resident memory of this process so far, bytes.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

#[test]
fn a_bomb_takes_no_more_than_its_header_claims() {
    let image = without_efi(
        [NOP, 0x1400_03ff],
        0x8000,
        u64::try_from(IMAGE_SIZE_BYTES).unwrap(),
    );
    let as_kernel = bomb(&image);
    let as_zeros = bomb(&[]);
    let before = peak_bytes();
    assert_eq!(
        Kernel::parse(as_kernel),
        Err(Error::DecompressedTooLarge {
            compression: Compression::Gzip,
            limit_bytes: IMAGE_SIZE_BYTES,
            image_size_bytes: u64::try_from(IMAGE_SIZE_BYTES).unwrap()
        })
    );
    assert_eq!(
        Kernel::parse(as_zeros),
        Err(Error::NotAnImage {
            kind: FileKind::Zeros,
            layers: vec![Layer::Compressed(Compression::Gzip)]
        })
    );
    let (Some(before), Some(after)) = (before, peak_bytes()) else {
        println!("SKIPPED the bound on memory: no VmHWM in /proc/self/status");
        return;
    };
    let grown = after - before;
    println!("peak grew by {grown} bytes");
    assert!(
        grown < 3 * IMAGE_SIZE_BYTES,
        "{grown} bytes for {IMAGE_SIZE_BYTES}"
    );
}
