//! What a signature says about the file around it. `fixtures/formats/*.signed.gz` are signed by sbsign, which takes the
//! digest with code of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use common::{Random, SIGNATURE_DIRECTORY, SMALL_EFI_BYTES, pe, put, small_efi, uki};
use kleap_image::{Compression, Error, Kernel, KernelFile, Options};

/// From the beginning of the table to the signature itself, bytes.
const CERTIFICATE_HEADER_BYTES: usize = 8;

fn signed(bytes: &[u8]) -> Vec<u8> {
    Compression::Gzip.decompress(bytes, 1 << 20).unwrap()
}

fn signed_image() -> Vec<u8> {
    signed(include_bytes!("fixtures/formats/Image.signed.gz"))
}

fn signed_uki() -> Vec<u8> {
    signed(include_bytes!("fixtures/formats/uki.signed.gz"))
}

fn is_not_what_was_signed(error: &Error) -> bool {
    matches!(error, Error::NotWhatWasSigned { algorithm: "SHA-256", expected, found }
        if expected.len() == 64 && found != expected)
}

/// What was signed: with `KLEAP_TEST_WRITE` it is written there, for the tool.
#[test]
fn the_signed_files_are_these() {
    let (image, uki) = (small_efi(), uki(&small_efi()));
    if let Some(path) = std::env::var_os("KLEAP_TEST_WRITE") {
        let path = std::path::PathBuf::from(path);
        std::fs::write(path.join("Image"), &image).expect("written");
        std::fs::write(path.join("uki"), &uki).expect("written");
        return;
    }
    let kernel = Kernel::parse(image.clone()).expect("a kernel");
    assert!(!kernel.is_as_signed());
    for (what, plain, signed) in [("Image", image, signed_image()), ("uki", uki, signed_uki())] {
        let differences: Vec<usize> = (0..plain.len())
            .filter(|at| plain[*at] != signed[*at])
            .collect();
        assert!(signed.len() > plain.len(), "{what}");
        assert!(
            differences.len() <= 12,
            "{what}: signing changes more than the checksum and the table's place: {differences:x?}"
        );
    }
}

#[test]
fn a_signed_kernel_is_taken() {
    let kernel = Kernel::parse(signed_image()).expect("a kernel");
    assert!(kernel.is_as_signed());
    let found = KernelFile::parse(signed_uki(), Options::default()).expect("a UKI");
    assert_eq!(
        found.remarks,
        ["it is what was signed; who signed it is not checked"]
    );
    // Containers pad.
    let mut padded = signed_image();
    padded.resize(padded.len() + 200, 0);
    assert!(Kernel::parse(padded).expect("a kernel").is_as_signed());
}

#[test]
fn every_digest_is_known() {
    for (name, bytes) in [
        (
            "SHA-384",
            &include_bytes!("fixtures/formats/Image.sha384.signed.gz")[..],
        ),
        (
            "SHA-512",
            include_bytes!("fixtures/formats/Image.sha512.signed.gz"),
        ),
    ] {
        let mut file = signed(bytes);
        assert!(Kernel::parse(file.clone()).expect(name).is_as_signed());
        file[0x1_2345] ^= 1;
        let error = Kernel::parse(file).expect_err(name);
        assert!(
            matches!(error, Error::NotWhatWasSigned { algorithm, .. } if algorithm == name),
            "{error}"
        );
    }
}

/// An entry of the table as it is, and one of an earlier state of the file.
fn entries() -> (Vec<u8>, Vec<u8>) {
    let entry = signed_image().split_off(SMALL_EFI_BYTES);
    let mut stale = entry.clone();
    let digest = stale
        .windows(DIGEST_FOLLOWS.len())
        .position(|window| window == DIGEST_FOLLOWS)
        .expect("a digest")
        + DIGEST_FOLLOWS.len();
    stale[digest] ^= 1;
    (entry, stale)
}

/// SHA-256 without parameters, and a text of 32 bytes.
const DIGEST_FOLLOWS: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";

fn with_table(table: &[u8]) -> Vec<u8> {
    let mut file = signed_image();
    file.truncate(SMALL_EFI_BYTES);
    file.extend_from_slice(table);
    let size = u32::try_from(table.len()).unwrap();
    put(&mut file, SIGNATURE_DIRECTORY + 4, &size.to_le_bytes());
    file
}

/// Who signs what is signed already adds a signature.
#[test]
fn one_right_signature_is_enough() {
    let (right, stale) = entries();
    for (table, is_whole) in [
        ([&right[..], &right].concat(), true),
        ([&right[..], &stale].concat(), true),
        ([&stale[..], &right].concat(), true),
        ([&stale[..], &stale].concat(), false),
    ] {
        match Kernel::parse(with_table(&table)) {
            Ok(kernel) => assert!(is_whole && kernel.is_as_signed()),
            Err(error) => assert!(!is_whole && is_not_what_was_signed(&error), "{error}"),
        }
    }
    // Beyond the eighth none is looked at.
    let many = [stale.repeat(8), right].concat();
    assert!(is_not_what_was_signed(
        &Kernel::parse(with_table(&many)).expect_err("stale")
    ));
}

/// The size in the directory may leave out what pads the last entry.
#[test]
fn a_table_may_end_without_padding() {
    let (entry, _) = entries();
    let length = u32::from_le_bytes(entry[..4].try_into().unwrap());
    let mut padded = entry;
    padded.extend_from_slice(&[0; 3]);
    put(&mut padded, 0, &(length + 3).to_le_bytes());
    let mut file = with_table(&[&padded[..], &[0; 5]].concat());
    put(
        &mut file,
        SIGNATURE_DIRECTORY + 4,
        &(length + 3).to_le_bytes(),
    );
    assert!(Kernel::parse(file).expect("padded").is_as_signed());
}

/// What would take long to look at is not looked at.
#[test]
fn the_table_has_a_limit() {
    let (entry, stale) = entries();
    let mut long = stale;
    long.resize((64 << 10) + 8, 0);
    let length = u32::try_from(long.len()).unwrap();
    put(&mut long, 0, &length.to_le_bytes());
    let mut file = with_table(&long);
    // The Image must not be longer than its memory.
    put(&mut file, 16, &0x4_0000_u32.to_le_bytes());
    put(&mut file, 0x40 + 24 + 56, &0x4_0000_u32.to_le_bytes());
    assert!(!Kernel::parse(file).expect("too long").is_as_signed());
    assert!(
        Kernel::parse(with_table(&entry))
            .expect("short")
            .is_as_signed()
    );
}

#[test]
fn no_bit_may_change() {
    let file = signed_image();
    let mut random = Random(7);
    let header = (0..0x200 * 8).map(|bit| (bit / 8, bit % 8));
    let body = (0..300).map(|_| (random.below(SMALL_EFI_BYTES), random.below(8)));
    let edges = [0x1_0000, 0x1_ffff, 0x2_0000, SMALL_EFI_BYTES - 1].map(|at| (at, 7));
    let (mut refused, mut taken) = (0, Vec::new());
    for (at, bit) in header.chain(body.collect::<Vec<_>>()).chain(edges) {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << bit;
        match Kernel::parse(damaged) {
            Err(error) => {
                assert!(
                    at < 0x200 || is_not_what_was_signed(&error),
                    "byte {at:#x}: {error}"
                );
                refused += 1;
            }
            Ok(kernel) => {
                // Without the table's place nothing is signed; the checksum is not part of what is.
                let checksum = 0x40 + 24 + 64;
                let directories = 0x40 + 24 + 108..0x40 + 24 + 112;
                let directory = SIGNATURE_DIRECTORY..SIGNATURE_DIRECTORY + 8;
                assert!(
                    (checksum..checksum + 4).contains(&at)
                        || ((directories.contains(&at) || directory.contains(&at))
                            && !kernel.is_as_signed()),
                    "bit {bit} of byte {at:#x}"
                );
                taken.push(at);
            }
        }
    }
    assert!(refused > 4_000, "{refused} refused, taken: {taken:x?}");
}

#[test]
fn what_is_cut_is_refused() {
    let file = signed_image();
    for length in [
        file.len() - 1,
        SMALL_EFI_BYTES + CERTIFICATE_HEADER_BYTES,
        SMALL_EFI_BYTES,
    ] {
        let error = Kernel::parse(file[..length].to_vec()).expect_err("cut");
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
    }
}

/// The kernel inside a container is looked at as well, and the container as a whole.
#[test]
fn what_is_inside_is_looked_at() {
    let inside = signed_image();
    let file = uki(&inside);
    let at = file
        .windows(64)
        .position(|window| window == &inside[..64])
        .expect("as it is");
    assert!(Kernel::parse(file.clone()).expect("whole").is_as_signed());
    let mut damaged = file;
    damaged[at + 0x1_2345] ^= 4;
    assert!(is_not_what_was_signed(
        &Kernel::parse(damaged).expect_err("damaged")
    ));

    let file = signed_uki();
    let at = file
        .windows(14)
        .position(|window| window == b"the initrd\0\0\0\0")
        .expect("as it is");
    let mut damaged = file;
    damaged[at] = b'T';
    let error = Kernel::parse(damaged).expect_err("another initrd");
    assert!(is_not_what_was_signed(&error), "{error}");
    assert!(error.to_string().contains("sbattach --remove"), "{error}");
}

#[test]
fn what_is_no_signature_is_refused() {
    // Its length, its revision, its kind, in the middle of it.
    let (file, table) = (signed_image(), SMALL_EFI_BYTES);
    for at in [table, table + 5, table + 6, table + 9, table + 20] {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        match Kernel::parse(damaged) {
            Err(error) => assert!(matches!(error, Error::Signature { .. }), "{at:#x}: {error}"),
            Ok(_) => panic!("taken with a damaged byte {at:#x}"),
        }
    }
    // What follows a place is one byte further on, the table as well.
    let mut moved = file;
    moved.insert(0x1_2345, 0);
    assert!(Kernel::parse(moved).is_err());
}

#[test]
fn another_kind_says_nothing() {
    // A signature by GUID, and a digest that is not known.
    let (file, table) = (signed_image(), SMALL_EFI_BYTES);
    let algorithm = file
        .windows(11)
        .position(|window| window == b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01")
        .expect("SHA-256");
    for (at, bytes) in [(table + 6, [0xf1, 0x0e]), (algorithm + 9, [2, 9])] {
        let mut other = file.clone();
        put(&mut other, at, &bytes);
        let kernel = Kernel::parse(other).unwrap_or_else(|error| panic!("{at:#x}: {error}"));
        assert!(!kernel.is_as_signed(), "{at:#x}");
    }
    let mut uki = signed_uki();
    let length = uki.len();
    let size = u32::from_le_bytes(uki[0x98 + 148..0x98 + 152].try_into().unwrap());
    let table = length - usize::try_from(size).unwrap();
    put(&mut uki, table + 6, &[0xf1, 0x0e]);
    let found = KernelFile::parse(uki, Options::default()).expect("a UKI");
    assert!(
        found.remarks[0].starts_with("its signature is not checked: "),
        "{:?}",
        found.remarks
    );
}

/// A table anywhere, of any length, in a file with any sections: an answer, in bounded time.
#[test]
fn nothing_panics() {
    let mut random = Random(11);
    let file = signed_image();
    for _ in 0..2_000 {
        let mut damaged = file.clone();
        for _ in 0..=random.below(3) {
            let at = match random.below(3) {
                0 => 0x40 + random.below(0x140),
                1 => SIGNATURE_DIRECTORY + random.below(8),
                _ => SMALL_EFI_BYTES + random.below(file.len() - SMALL_EFI_BYTES),
            };
            damaged[at] = u8::try_from(random.below(256)).unwrap();
        }
        if let Err(error) = Kernel::parse(damaged) {
            assert!(!error.to_string().is_empty());
        }
    }
    // No section at all, and a table over the headers.
    let mut empty = pe(0xaa64, &[]);
    put(&mut empty, 0x98 + 144, &[8, 0, 0, 0, 0, 1, 0, 0]);
    assert!(Kernel::parse(empty).is_err());
}
