//! Every format, made by the tools that people make it with.
//!
//! `fixtures/formats` holds one small kernel in each format (see its README for the commands). With
//! `KLEAP_TEST_FORMATS` set to a directory of files of one real kernel, as `cargo xtask formats` leaves it, the same is
//! asked of those: too much for every run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::path::PathBuf;

use common::{Random, packed, pe, put, uki};
use kleap_image::{
    Compression, Container, Error, FileKind, Kernel, KernelFile, Layer, Options, Progress,
    StreamError,
};

/// Damaged places for each file: bits flipped, and lengths cut to. More with `KLEAP_TEST_PLACES`.
const PLACES: usize = 100;
/// Where a failure prints another one, set this to repeat it.
const SEED_VARIABLE: &str = "KLEAP_TEST_SEED";
const FORMATS_VARIABLE: &str = "KLEAP_TEST_FORMATS";
const PLACES_VARIABLE: &str = "KLEAP_TEST_PLACES";

macro_rules! fixture {
    ($name:literal) => {
        ($name, include_bytes!(concat!("fixtures/formats/", $name)))
    };
}

/// Bare streams.
const STREAMS: [(&str, &[u8], Compression); 10] = [
    entry(fixture!("Image.gz"), Compression::Gzip),
    entry(fixture!("Image.zst"), Compression::Zstd),
    entry(fixture!("Image.xz"), Compression::Xz),
    entry(fixture!("Image.arm64.xz"), Compression::Xz),
    entry(fixture!("Image.sha256.xz"), Compression::Xz),
    entry(fixture!("Image.lzma"), Compression::Lzma),
    entry(fixture!("Image.lz4"), Compression::Lz4),
    entry(fixture!("Image.legacy.lz4"), Compression::Lz4),
    entry(fixture!("Image.lzo"), Compression::Lzo),
    entry(fixture!("Image.bz2"), Compression::Bzip2),
];

const fn entry<const N: usize>(
    (name, bytes): (&'static str, &'static [u8; N]),
    compression: Compression,
) -> (&'static str, &'static [u8], Compression) {
    (name, bytes, compression)
}

fn stream(name: &str) -> (&'static [u8], Compression) {
    let found = STREAMS.iter().find(|(found, _, _)| *found == name).unwrap();
    (found.1, found.2)
}

/// As drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot put it together, but for the program.
fn zboot(payload: &[u8], name: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"MZ\0\0zimg");
    put(&mut file, 8, &0x1000_u32.to_le_bytes());
    put(
        &mut file,
        12,
        &u32::try_from(payload.len()).unwrap().to_le_bytes(),
    );
    put(&mut file, 24, name);
    put(&mut file, 0x38, &0x8182_23cd_u32.to_le_bytes());
    put(&mut file, 0x3c, &0x40_u32.to_le_bytes());
    put(&mut file, 0x40, b"PE\0\0\x64\xaa");
    file.extend_from_slice(payload);
    file.extend_from_slice(&[0; 0x200]);
    file
}

/// Everything that must give the same kernel, and whether a checksum covers it.
fn all() -> Vec<(String, Vec<u8>, Vec<Layer>, bool)> {
    let mut files = Vec::new();
    let mut add = |name: &str, bytes: &[u8], layers: &[Layer], is_covered| {
        files.push((name.to_owned(), bytes.to_vec(), layers.to_vec(), is_covered));
    };
    let packed_with = Layer::Compressed;
    let within = Layer::Container;
    for (name, bytes, compression) in STREAMS {
        let is_covered = !["Image.lzma", "Image.legacy.lz4"].contains(&name);
        add(name, bytes, &[packed_with(compression)], is_covered);
    }
    for (name, word) in [
        ("Image.gz", "gzip"),
        ("Image.legacy.lz4", "lz4"),
        ("Image.lzma", "lzma"),
        ("Image.lzo", "lzo"),
        ("Image.xz", "xzkern"),
        ("Image.zst", "zstd22"),
    ] {
        let (bytes, compression) = stream(name);
        add(
            &format!("zboot {word}"),
            &zboot(bytes, word.as_bytes()),
            &[within(Container::Zboot), packed_with(compression)],
            !["lzma", "lz4"].contains(&word),
        );
    }
    let gzip = packed_with(Compression::Gzip);
    let (gz, _) = stream("Image.gz");
    add("uki", &uki(&packed()), &[within(Container::Uki)], false);
    add(
        "uki of zboot",
        &uki(&zboot(gz, b"gzip")),
        &[within(Container::Uki), within(Container::Zboot), gzip],
        true,
    );
    let vmlinux = include_bytes!("fixtures/formats/vmlinux.gz");
    add(
        "vmlinux",
        &Compression::Gzip.decompress(vmlinux, 1 << 20).unwrap(),
        &[within(Container::Elf)],
        false,
    );
    add("vmlinux.gz", vmlinux, &[gzip, within(Container::Elf)], true);
    add(
        "uImage",
        include_bytes!("fixtures/formats/uImage"),
        &[within(Container::Uimage)],
        true,
    );
    add(
        "uImage of gzip",
        include_bytes!("fixtures/formats/uImage.gz"),
        &[within(Container::Uimage), gzip],
        true,
    );
    add(
        "uImage with three files",
        include_bytes!("fixtures/formats/uImage.multi"),
        &[within(Container::Uimage), gzip],
        true,
    );
    add(
        "FIT",
        include_bytes!("fixtures/formats/fit.itb"),
        &[within(Container::Fit), gzip],
        true,
    );
    add(
        "FIT, data outside",
        include_bytes!("fixtures/formats/fit-external.itb"),
        &[within(Container::Fit), gzip],
        true,
    );
    files
}

/// The fixtures were made of this: with `KLEAP_TEST_WRITE` it is written there, for the tools.
#[test]
fn the_kernel_of_the_fixtures_is_this_one() {
    if let Some(path) = std::env::var_os("KLEAP_TEST_WRITE") {
        std::fs::write(path, packed()).expect("written");
    }
    Kernel::parse(packed()).expect("a kernel");
}

#[test]
fn every_format_gives_the_same_kernel() {
    for (name, bytes, layers, _) in all() {
        let kernel = Kernel::parse(bytes.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(kernel.image_bytes() == packed(), "{name}: another kernel");
        assert_eq!(kernel.layers(), layers, "{name}");
        if let Some(range) = kernel.file_range() {
            assert!(
                bytes[range] == packed(),
                "{name}: not where it is said to be"
            );
        }
    }
}

#[test]
fn what_comes_along_is_found() {
    let parse = |file: &[u8], options| KernelFile::parse(file.to_vec(), options).expect("parsed");
    let initrd = |file: &[u8], found: &KernelFile| {
        let part = found.initrd.clone().expect("an initrd");
        let bytes = file[part.range].to_vec();
        assert_eq!(part.crc32, crc32fast::hash(&bytes));
        (part.name, bytes)
    };
    let file = uki(&packed());
    let found = parse(&file, Options::default());
    assert_eq!(
        initrd(&file, &found),
        (".initrd".to_owned(), b"the initrd".to_vec())
    );
    assert_eq!(
        found.command_line.as_deref(),
        Some("console=ttyAMA0 x=\"a  b\"")
    );
    assert_eq!(
        found.device_tree,
        Some((".dtb".to_owned(), b"the tree".to_vec()))
    );

    for file in [
        &include_bytes!("fixtures/formats/fit.itb")[..],
        include_bytes!("fixtures/formats/fit-external.itb"),
    ] {
        let found = parse(file, Options::default());
        assert_eq!(found.configuration.as_deref(), Some("conf-1"));
        assert_eq!(
            initrd(file, &found),
            ("ramdisk-1".to_owned(), b"the ramdisk\n".to_vec())
        );
        let (name, tree) = found.device_tree.expect("a tree");
        assert_eq!(name, "fdt-1");
        assert!(tree.starts_with(&[0xd0, 0x0d, 0xfe, 0xed]));
        assert_eq!(found.remarks, Vec::<String>::new());

        let with_config = |name| Options {
            fit_config: Some(name),
            ..Options::default()
        };
        let found = parse(file, with_config("#conf-2"));
        assert_eq!((found.initrd, found.device_tree), (None, None));
        assert_eq!(
            found.remarks,
            ["kernel-2 has no hash: nothing says that it is whole"]
        );
        let error = KernelFile::parse(file.to_vec(), with_config("conf-9")).expect_err("no such");
        assert!(
            error.to_string().contains("conf-1, conf-2, conf-3"),
            "{error}"
        );
        let error = KernelFile::parse(file.to_vec(), with_config("conf-3")).expect_err("overlays");
        assert!(error.to_string().contains("fdtoverlay"), "{error}");
        let without = Options {
            without_device_tree: true,
            ..with_config("conf-3")
        };
        assert_eq!(parse(file, without).device_tree, None);
    }

    let file = include_bytes!("fixtures/formats/uImage.multi");
    let found = parse(file, Options::default());
    assert_eq!(initrd(file, &found).1, b"the ramdisk\n");
    assert!(found.device_tree.is_some());
}

#[test]
fn what_is_not_for_this_machine_is_said() {
    let refusal = |file: Vec<u8>| Kernel::parse(file).expect_err("refused").to_string();
    let other_machine = pe(0x8664, &[(b".linux", &packed())]);
    assert!(refusal(other_machine).contains("0x8664"));
    assert!(
        refusal(include_bytes!("fixtures/formats/uImage.arm").to_vec()).contains("architecture 2")
    );
    let (gz, _) = stream("Image.gz");
    assert!(refusal(zboot(gz, b"brotli")).contains("\"brotli\""));
    assert_eq!(
        Kernel::parse(zboot(gz, b"zstd22")),
        Err(Error::OtherCompression {
            container: Container::Zboot,
            said: Compression::Zstd,
            found: FileKind::Compressed(Compression::Gzip),
        })
    );
    let with_config = Options {
        fit_config: Some("conf-1"),
        ..Options::default()
    };
    assert_eq!(
        KernelFile::parse(packed(), with_config),
        Err(Error::NoConfigurations {
            name: "conf-1".to_owned()
        })
    );
    // The order is fixed: a container in a stream, or in itself, is not looked into.
    let twice = uki(&uki(&packed()));
    assert_eq!(
        Kernel::parse(twice),
        Err(Error::NotAnImage {
            kind: FileKind::Pe,
            layers: vec![Layer::Container(Container::Uki)],
        })
    );
}

#[test]
fn one_stream_and_nothing_else() {
    for (name, bytes, compression) in STREAMS {
        let mut file = bytes.to_vec();
        file.extend_from_slice(b"something else");
        let error = Kernel::parse(file).expect_err(name);
        assert!(
            matches!(error, Error::Stream { compression: found, .. } if found == compression),
            "{name}: {error}"
        );
        // What the kernel's build appends.
        let mut file = bytes.to_vec();
        file.extend_from_slice(&0x1_0000_u32.to_le_bytes());
        assert_eq!(
            Kernel::parse(file).is_ok(),
            compression != Compression::Gzip,
            "{name}"
        );
        for length in (0..bytes.len()).rev().take(40) {
            let error = Kernel::parse(bytes[..length].to_vec()).expect_err(name);
            assert!(
                matches!(
                    error,
                    Error::Stream {
                        error: StreamError::Truncated,
                        ..
                    }
                ),
                "{name} cut to {length} of {}: {error}",
                bytes.len()
            );
        }
    }
}

#[test]
fn progress_is_told_and_reaches_the_end() {
    for (name, bytes, _) in STREAMS {
        let mut seen = Vec::new();
        let mut tell = |progress: Progress| seen.push(progress);
        let options = Options {
            progress: Some(&mut tell),
            ..Options::default()
        };
        KernelFile::parse(bytes.to_vec(), options).expect(name);
        let last = seen.last().expect(name);
        assert_eq!(
            (last.done_bytes, last.total_bytes),
            (bytes.len(), bytes.len()),
            "{name}"
        );
    }
}

#[test]
fn limits_hold_for_every_stream() {
    for (name, bytes, compression) in STREAMS {
        assert_eq!(
            compression.decompress(bytes, 0xffff),
            Err(Error::Stream {
                compression,
                error: StreamError::TooLarge {
                    limit_bytes: 0xffff
                }
            }),
            "{name}"
        );
        assert!(
            compression.decompress(bytes, 0x1_0000) == Ok(packed()),
            "{name}"
        );
        for other in Compression::ALL {
            if other != compression {
                // Of another format: an error, whatever it says.
                assert!(
                    other.decompress(bytes, 0x1_0000).is_err(),
                    "{name} as {other}"
                );
            }
        }
    }
}

fn seed() -> u64 {
    std::env::var(SEED_VARIABLE).map_or_else(
        |_| {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
            u64::from(since.subsec_nanos())
        },
        |text| text.parse().expect("a number"),
    )
}

fn places() -> usize {
    std::env::var(PLACES_VARIABLE).map_or(PLACES, |text| text.parse().expect("a number"))
}

/// Whether two kernels differ at most in their signature, and where it is: nothing that runs.
fn is_same(expected: &Kernel, found: &Kernel) -> bool {
    let (expected_bytes, found_bytes) = (expected.image_bytes(), found.image_bytes());
    if !expected.is_as_signed() || expected_bytes.len() != found_bytes.len() {
        return expected_bytes == found_bytes;
    }
    let word = |at: usize| {
        usize::try_from(u32::from_le_bytes(
            expected_bytes[at..at + 4].try_into().unwrap(),
        ))
        .unwrap()
    };
    let optional = word(0x3c) + 24;
    let directory = optional + 112 + 4 * 8;
    let table = word(directory)..word(directory) + word(directory + 4);
    let may_differ = [
        optional + 64..optional + 68,
        directory..directory + 8,
        table,
    ];
    expected_bytes
        .iter()
        .zip(found_bytes)
        .enumerate()
        .all(|(at, (one, other))| {
            one == other || may_differ.iter().any(|range| range.contains(&at))
        })
}

/// Damages a file at so many places: an error with a text, or the kernel as it was.
fn damage(name: &str, file: &[u8], is_covered: bool, places: usize) {
    let seed = seed();
    let mut random = Random(seed);
    let expected = Kernel::parse(file.to_vec()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let is_covered = is_covered || expected.is_as_signed();
    let (mut refused, mut same, mut other) = (0, 0, 0);
    for place in 0..places {
        let mut damaged = file.to_vec();
        let what = if place % 2 == 0 {
            let (at, bit) = (random.below(file.len()), random.below(8));
            damaged[at] ^= 1 << bit;
            format!("bit {bit} of byte {at:#x} flipped")
        } else {
            damaged.truncate(random.below(file.len()));
            format!("cut to {:#x} bytes", damaged.len())
        };
        match Kernel::parse(damaged) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Ok(kernel) if is_same(&expected, &kernel) => same += 1,
            Ok(_) => {
                assert!(
                    !is_covered,
                    "{name}, {what}: another kernel; to repeat it: {SEED_VARIABLE}={seed} cargo test -p \
                     kleap-image --test formats"
                );
                other += 1;
            }
        }
    }
    println!("{name}: of {places}: {refused} refused, {same} the same kernel, {other} another one");
}

#[test]
fn damage_is_refused_or_harmless() {
    for (name, file, _, is_covered) in all() {
        damage(&name, &file, is_covered, places());
    }
}

/// Formats whose content nothing covers if the kernel in them is not signed, by the names that `cargo xtask formats` gives.
const UNCOVERED: [&str; 8] = [
    "lzma",
    "lz4-legacy",
    "vmlinux",
    "built-vmlinux",
    "built-vmlinux-stripped",
    "uki",
    "ukify",
    "zboot-lz4",
];

#[test]
fn damage_to_a_real_kernel_is_refused_or_harmless() {
    let Some(directory) = std::env::var_os(FORMATS_VARIABLE).map(PathBuf::from) else {
        println!(
            "SKIPPED: set {FORMATS_VARIABLE} to the directory that `cargo xtask formats` names"
        );
        return;
    };
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("directory")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "kernel")
        })
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for path in names {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let file = std::fs::read(&path).expect("file");
        damage(&name, &file, !UNCOVERED.contains(&name.as_str()), places());
    }
}
