//! Where a corpus begins: real kernels' heads, real machines' device trees, the files that the crates' own tests
//! use, and what kleap itself writes.
//!
//! All is cut down to what a target takes in ([`crate::Target::max_len_bytes`]), so that a mutation hits something
//! that matters. libFuzzer finds the rest, and what it found is in `fuzz/corpus` beside the seeds.

use crate::targets::device_tree::{Built, Node, PROPERTIES};
use crate::{TARGETS, mutate::Random};
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use kleap_relocator::abi::{
    self, Conduit, Header, Lpis, Move, OnFailure, Piece, PieceKind, RecordPlace, Redistributors,
    Uart,
};
use kleap_relocator::digest::Algorithm;
use kleap_relocator::timeline::{Level, Timeline};
use std::io::{Read as _, Write as _};

/// An input of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The target that it is for.
    pub target: &'static str,
    /// Its file name.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What comes from outside of the repository.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Names and first bytes (512 at least) of `Image` files.
    pub heads: Vec<(String, Vec<u8>)>,
    /// Names and bytes of whole device trees.
    pub trees: Vec<(String, Vec<u8>)>,
}

const VIRT: &[u8] = include_bytes!("../../devicetree/tests/fixtures/virt.dtb");
const EFI: &[u8] = include_bytes!("../../devicetree/tests/fixtures/efi.dtb");
const BOARD: &[u8] = include_bytes!("../../devicetree/tests/fixtures/board.dtb");
const TABLES: [(&str, &[u8]); 4] = [
    (
        "gicv2",
        include_bytes!("../../acpi/tests/fixtures/gicv2-2cpus.APIC"),
    ),
    (
        "gicv3",
        include_bytes!("../../acpi/tests/fixtures/gicv3-2cpus.APIC"),
    ),
    (
        "facp",
        include_bytes!("../../acpi/tests/fixtures/gicv3-2cpus.FACP"),
    ),
    (
        "spcr",
        include_bytes!("../../acpi/tests/fixtures/gicv3-2cpus.SPCR"),
    ),
];
const IOMEM: [(&str, &str); 3] = [
    (
        "device-tree",
        include_str!("../../memmap/tests/iomem/qemu-virt-dt.txt"),
    ),
    (
        "efi-server",
        include_str!("../../memmap/tests/iomem/efi-server.txt"),
    ),
    (
        "hotplug",
        include_str!("../../memmap/tests/iomem/hotplug-guest.txt"),
    ),
];

/// Where the first instruction of a cut-down kernel is, bytes.
const ENTRY: usize = 1024;
/// Size of a cut-down kernel, bytes.
const SMALL_BYTES: usize = 1280;
/// Its `image_size`, bytes.
const SMALL_IMAGE_SIZE: u32 = 0x1_0000;

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..offset + value.len()) {
        place.copy_from_slice(value);
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<usize> {
    let value = u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?);
    usize::try_from(value).ok()
}

/// A whole kernel of a kilobyte that is accepted: the real head, with sizes that fit, three instructions, a banner.
fn small_kernel(head: &[u8], version: &str) -> Option<Vec<u8>> {
    let mut image = head.get(..512)?.to_vec();
    image.resize(SMALL_BYTES, 0);
    put(&mut image, 16, &u64::from(SMALL_IMAGE_SIZE).to_le_bytes());
    let pe = word(&image, 60)?;
    if pe != 0 {
        put(&mut image, pe + 24 + 56, &SMALL_IMAGE_SIZE.to_le_bytes());
        // Of the sections the first (.text) is what is left; no signature.
        let sections = word(&image, pe + 6)? & 0xffff;
        let table = pe + 24 + (word(&image, pe + 20)? & 0xffff);
        for index in 0..sections {
            let (size, offset) = if index == 0 {
                (256_u32, 1024_u32)
            } else {
                (0, 0)
            };
            put(&mut image, table + index * 40 + 16, &size.to_le_bytes());
            put(&mut image, table + index * 40 + 20, &offset.to_le_bytes());
        }
        put(&mut image, pe + 24 + 112 + 32, &[0; 8]);
        let branch = 0x1400_0000 | u32::try_from((ENTRY - 4) / 4).ok()?;
        put(&mut image, 4, &branch.to_le_bytes());
    }
    for (index, word) in [0x9400_0002_u32, 0xd503_201f, 0xaa00_03f5]
        .iter()
        .enumerate()
    {
        put(&mut image, ENTRY + 4 * index, &word.to_le_bytes());
    }
    let banner = format!("Linux version {version}-arm64 (x@y) #1 SMP\n");
    put(&mut image, ENTRY + 64, banner.as_bytes());
    Some(image)
}

fn deflated(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// Reads a real tree into nodes, leaving out what kleap never asks for. `None` if it is malformed.
struct Reader<'a> {
    blob: &'a [u8],
    at: usize,
    strings: usize,
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<usize> {
        let number = u32::from_be_bytes(*self.blob.get(self.at..)?.first_chunk()?);
        self.at += 4;
        usize::try_from(number).ok()
    }

    fn text(&self, at: usize) -> Option<&'a str> {
        let rest = self.blob.get(at..)?;
        let length = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..length)?).ok()
    }

    /// A node whose BEGIN token has been read.
    fn node(&mut self) -> Option<Node<'a>> {
        const VALUE_MAX_BYTES: usize = 96;
        let name = self.text(self.at)?;
        self.at = (self.at + name.len() + 1).next_multiple_of(4);
        let mut node = Node {
            name,
            ..Node::default()
        };
        loop {
            match self.number()? {
                1 => {
                    let child = self.node()?;
                    if is_wanted(&child) {
                        node.children.push(child);
                    }
                }
                2 => return Some(node),
                3 => {
                    let length = self.number()?;
                    let place = self.number()?;
                    let name = self.text(self.strings.checked_add(place)?)?;
                    let value = self.blob.get(self.at..self.at.checked_add(length)?)?;
                    self.at = (self.at + length).next_multiple_of(4);
                    let cut = value.get(..VALUE_MAX_BYTES).unwrap_or(value);
                    if PROPERTIES.contains(&name) || name.starts_with("serial") {
                        node.properties.push((name, cut.to_vec()));
                    }
                }
                4 => {}
                _ => return None,
            }
        }
    }
}

/// Whether a node is one that kleap looks for, or leads to one.
fn is_wanted(node: &Node<'_>) -> bool {
    const NAMES: [&str; 12] = [
        "chosen",
        "aliases",
        "memory",
        "reserved-memory",
        "psci",
        "firmware",
        "serial",
        "uart",
        "pl011",
        "interrupt-controller",
        "gic",
        "intc",
    ];
    let is_reserved = node.properties.iter().any(|(name, _)| *name == "no-map");
    is_reserved || !node.children.is_empty() || NAMES.iter().any(|name| node.name.starts_with(name))
}

/// A real tree, cut down to what kleap asks for.
fn small_tree(blob: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader {
        blob,
        at: 8,
        strings: 0,
    };
    let structure = reader.number()?;
    reader.strings = reader.number()?;
    reader.at = structure;
    if reader.number()? != 1 {
        return None;
    }
    let root = reader.node()?;
    let built = Built {
        reservations: vec![(0x4000_0000, 0x1000)],
        boot_cpu: 0,
        root,
    };
    Some(built.flat())
}

fn header() -> Header {
    Header {
        stage: 0x4000_1000,
        stage_size_bytes: 0x2_4000,
        mair: 0xff,
        tcr_two_privileges: 0x10,
        ttbr_two_privileges: 0x4002_3000,
        tcr_one_privilege: 0x10,
        ttbr_one_privilege: 0x4002_4000,
        physical_size_max: 5,
        kernel_entry: 0x4000_0000,
        device_tree: 0x4000_0800,
        timeline: Some(0x4000_0e00),
        exec_requested: 7,
        exec_prepared: 8,
        uart: Some(Uart::Pl011 { base: 0x900_0000 }),
        psci: Some(Conduit::Hvc),
        lpis: Lpis::TurnOff,
        kernel_page_size_bytes: 4096,
        tables_two_privileges: 3,
        tables_one_privilege: 4,
        table_size_bytes: 4096,
        program_size_bytes: 0x1000,
        program_crc32c: 5,
        tables_two_privileges_crc32c: 6,
        tables_one_privilege_crc32c: 7,
        portable: false,
        verbose: true,
        on_failure: OnFailure::Halt,
        record: Some(RecordPlace {
            start: 0x7000_0000,
            size_bytes: 0x1_0000,
        }),
    }
}

fn hand_off() -> Vec<u8> {
    let piece = Piece {
        kind: PieceKind::Image,
        start: 0x4000_0000,
        size_bytes: 0x100,
        algorithm: Some(Algorithm::Crc32c),
        clean_size_bytes: 0x200,
    };
    let copy = Move {
        target: 0x4000_0000,
        source: 0x4000_0400,
        size_bytes: 0x80,
    };
    let region = Redistributors {
        start: 0x80a_0000,
        size_bytes: 0x8_0000,
        stride_bytes: 0,
    };
    abi::encode(&header(), &[piece; 2], &[1, 2], &[copy; 3], &[region]).unwrap_or_default()
}

fn timeline() -> Vec<u8> {
    let timeline = Timeline {
        frequency_hz: 62_500_000,
        exec_requested: 1000,
        exec_prepared: 2000,
        relocator_entered: 3000,
        mmu_on: 3100,
        quiesced: 3200,
        moves_done: 3300,
        verified: 3400,
        cleaned: 3500,
        kernel_entered: 3600,
        level: Level::El2Vhe,
        moves: 5,
        moved_bytes: 1 << 21,
        verified_bytes: 47 << 20,
        cleaned_bytes: 48 << 20,
        tables: 7,
        table_size_bytes: 4096,
        ..Timeline::default()
    };
    timeline.encode().to_vec()
}

/// A core file with one note, as `fs/proc/kcore.c` makes it.
fn core_file() -> Vec<u8> {
    let text = b"OSRELEASE=6.12\nNUMBER(VA_BITS)=48\nKERNELOFFSET=0\n";
    let mut notes = Vec::new();
    for (name, text) in [(&b"CORE\0"[..], &[7; 16][..]), (b"VMCOREINFO\0", text)] {
        for number in [name.len(), text.len(), 0] {
            notes.extend(u32::try_from(number).unwrap_or(0).to_le_bytes());
        }
        for part in [name, text] {
            notes.extend(part);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &56_u16.to_le_bytes());
    put(&mut file, 56, &2_u16.to_le_bytes());
    for (kind, start) in [(1_u32, 1_u64 << 40), (4, 64 + 2 * 56)] {
        let mut entry = vec![0; 56];
        put(&mut entry, 0, &kind.to_le_bytes());
        put(&mut entry, 8, &start.to_le_bytes());
        put(&mut entry, 32, &(notes.len() as u64).to_le_bytes());
        file.extend(entry);
    }
    file.extend(notes);
    file
}

/// Small texts, each for one target; those of `sysfs` begin with the number of their kind.
const TEXTS: &[(&str, &[&str])] = &[
    (
        "crash",
        &["\x000x00000000435b3000 1024\n", "\x00bfe3a1c0\n424"],
    ),
    (
        "kexec_words",
        &[
            "--load\0/k\0--append\0root=/dev/vda1 quiet\0--initrd\0/i",
            "-l\0/k\0--initrd=/i\0--append=quiet",
            "-e",
            "-p\0-s\0--command-line=nr_cpus=1\0--initrd=/i\0/k",
            "-s\0-p\0-u",
            "--load\0--kexec-syscall-auto\0--initrd=/i\0--append=x\0--\0/k",
            "-l\0--debug\0--dtb=/t\0--append=x\0/k\0-t\0Image\0--mem-min=0x40000000\0--mem-max=0x80000000",
            "-fxyd\0--reuse-c\0/k\0--serial=ttyAMA0\0-i",
            "-S\0-l",
        ],
    ),
    (
        "kernel_log",
        &[
            "6,812,1234567,-,caller=T1;Run /init as init process\n SUBSYSTEM=x\n",
            "12,1,5,-;Running /init as init process?",
            "4,99,18446744073709551615,c;x",
        ],
    ),
    (
        "sysfs",
        &[
            "\0MemTotal:        2030464 kB\nMemFree:  1 kB\nMemAvailable:    1812340 kB\nCmaFree: 0 kB\nHardwareCorrupted:     0 kB\n",
            "\u{1}none [integrity] confidentiality\n",
            "\u{2}0x00000000410fd034\n",
            "\u{3}8000000\n00000018\n",
            "\u{4}hugepages-2048kB",
            "\u{5}512\n",
        ],
    ),
    (
        "cpu_list",
        &["0-3,5\n", "0\n", "0-4095\n", "2,4-7,9-10,64-127"],
    ),
    (
        "proc",
        &[
            "\u{0}312 (kleap) T 1 312 312 0 -1 4194560 0 0\n",
            "\u{7}9 (a) b)) S 1\n",
            "\u{1}           CPU0       CPU1\n 11:       1234       1201     GICv3  27 Level     arch_timer\nIPI0:  1 2  Rescheduling interrupts\n",
            "\u{1} 11:  1  GICv2  27 Level  arch_timer\n",
            "\u{2}Name:\tkleap\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n",
            "\u{3}         0          0 4294967295\n",
            "\u{4}2048kB\n",
            "\u{5}node17",
            "\u{6}6.1.0-31-arm64",
            "\u{6}io_uring",
        ],
    ),
    (
        "command_line",
        &[
            "BOOT_IMAGE=/boot/vmlinuz-6.12 root=UUID=8d4b ro quiet  console=ttyAMA0\n",
            "a BOOT_IMAGE=(hd0,gpt2)/vmlinuz",
        ],
    ),
    (
        "holder_answer",
        &["ready io_uring", "ready pipe", "error no memory\nfor it"],
    ),
    (
        "consoles",
        &[
            "\0ttyAMA0              -W- (EC p a)  204:64\ntty0   -WU (E  p  )    4:1\npl11   -W- (EB p  )\n",
            "\u{1}iomem_base=0x9000000\ntype=32\nio_type=2\n",
            "\u{1}iomem_base=0xFE215040\ntype=8\nio_type=3\niomem_reg_shift=2\n",
        ],
    ),
    (
        "serial",
        &[
            "pl011,0x9000000",
            "uart8250,mmio32,0xfe660000,115200n8 earlycon=pl011,mmio,150994944",
            "ro earlycon=\"uart8250,0x3f8\" console=uart,mmio,0x10 console=ttyS0,115200",
        ],
    ),
    (
        "record",
        &[
            "Panic#1 Part1\n<6>[   12.0] x\nkleap: hand-over stopped: digest mismatch in Image at 0x48000000\n\
             kleap-failure: version=1 phase=verify class=digest piece=image address=0x48000000 expected=0x00000001 \
             found=0x00000002\n",
            "kleap: hand-over stopped: exception before the MMU was on\nkleap-failure: version=1 phase=entry \
             class=exception\n\0\0",
            "kleap: hand-over stopped: bug in the relocator, line 7\nkleap-failure: version=1 phase=move class=bug line=7\n",
        ],
    ),
    (
        "hold_argument",
        &[
            "2097152:40:0-3,7-40:/dev/kleap/pages-2048/payload-1",
            "65536:1:0-1:/x:y",
            "1:2:1-0:/x",
        ],
    ),
    (
        "pool",
        &[
            r#"{"boot_id":"8d4b","pools":[{"page_size_bytes":2097152,"before":0,"added":24}],"boost_factor":15000,"high_fraction":0}"#,
            r#"{"boot_id":""}"#,
        ],
    ),
    (
        "state",
        &[
            r#"{"boot_id":"8d4b","generation":1,"payload":"payload-1","files":[{"page_size_bytes":2097152,"pages":4}],"pinned_by":"io_uring","early":false,"layout":{"unit_bytes":65536,"image":{"target":[1073741824,1075838976],"parts":[{"address":1073741824,"size_bytes":2097152,"file":0,"offset_bytes":0}],"room":[],"offset_bytes":0},"initrd":null,"device_tree":{"target":[1342177280,1344274432],"parts":[{"address":1342177280,"size_bytes":65536,"file":0,"offset_bytes":2097152}],"room":[],"offset_bytes":0},"stage":[1375731712,1377828864],"stage_parts":[],"spare":null},"strategy":"auto","verify":"crc32c","kernel_path":"/k","kernel_banner":null,"image_size_bytes":65536,"kernel_page_size_bytes":null,"command_line":"c","image":{"size_bytes":1000,"digests":[1]},"initrd_path":null,"initrd":null,"device_tree":{"size_bytes":1000,"digests":[3]},"timeline_offset_bytes":64}"#,
        ],
    ),
];

/// The first bytes of files that are taken for kernels by mistake.
const KINDS: [(&str, usize, &[u8]); 12] = [
    ("elf", 0, b"\x7fELF\x02\x01\x01"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("lz4", 0, b"\x02\x21\x4c\x18"),
    ("bzip2", 0, b"BZh9"),
    ("lzo", 0, b"\x89LZO\0"),
    ("uimage", 0, b"\x27\x05\x19\x56"),
    ("cpio", 0, b"070701"),
    ("x86", 0x202, b"HdrS"),
    ("arm32", 0x24, b"\x18\x28\x6f\x01"),
    ("riscv", 56, b"RSC\x05"),
    ("zboot", 0, b"MZ\0\0zimg"),
];

/// Kernel files that real tools have made (crates/image/tests/fixtures/formats/make.sh).
const FORMATS: &[(&str, &[u8])] = &[
    (
        "fit",
        include_bytes!("../../image/tests/fixtures/formats/fit.itb"),
    ),
    (
        "fit-external",
        include_bytes!("../../image/tests/fixtures/formats/fit-external.itb"),
    ),
    (
        "uimage-gz",
        include_bytes!("../../image/tests/fixtures/formats/uImage.gz"),
    ),
    (
        "uimage-arm",
        include_bytes!("../../image/tests/fixtures/formats/uImage.arm"),
    ),
    (
        "uimage-multi",
        include_bytes!("../../image/tests/fixtures/formats/uImage.multi"),
    ),
    (
        "vmlinux-gz",
        include_bytes!("../../image/tests/fixtures/formats/vmlinux.gz"),
    ),
    (
        "xz",
        include_bytes!("../../image/tests/fixtures/formats/Image.xz"),
    ),
    (
        "zst",
        include_bytes!("../../image/tests/fixtures/formats/Image.zst"),
    ),
];

/// A kernel that sbsign has signed.
const SIGNED: &[u8] = include_bytes!("../../image/tests/fixtures/formats/Image.signed.gz");
/// Its length without the table of signatures, bytes.
const SIGNED_BYTES: usize = 0x2_8000;
/// What stands before the digest: its algorithm, without parameters, and its length.
const SHA256_DIGEST: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";

fn signature_table() -> Vec<u8> {
    let mut file = Vec::new();
    let _ = flate2::bufread::GzDecoder::new(SIGNED).read_to_end(&mut file);
    file.split_off(SIGNED_BYTES.min(file.len()))
}

/// Streams that real tools have made, behind the number of their kind.
const STREAMS: &[(&str, u8, &[u8])] = &[
    (
        "gz",
        0,
        include_bytes!("../../image/tests/fixtures/formats/Image.gz"),
    ),
    (
        "zst",
        1,
        include_bytes!("../../image/tests/fixtures/formats/Image.zst"),
    ),
    (
        "xz-arm64",
        2,
        include_bytes!("../../image/tests/fixtures/formats/Image.arm64.xz"),
    ),
    (
        "xz-sha256",
        2,
        include_bytes!("../../image/tests/fixtures/formats/Image.sha256.xz"),
    ),
    (
        "lzma",
        3,
        include_bytes!("../../image/tests/fixtures/formats/Image.lzma"),
    ),
    (
        "lz4",
        4,
        include_bytes!("../../image/tests/fixtures/formats/Image.lz4"),
    ),
    (
        "lz4-legacy",
        4,
        include_bytes!("../../image/tests/fixtures/formats/Image.legacy.lz4"),
    ),
    (
        "lzo",
        5,
        include_bytes!("../../image/tests/fixtures/formats/Image.lzo"),
    ),
    (
        "bz2",
        6,
        include_bytes!("../../image/tests/fixtures/formats/Image.bz2"),
    ),
    (
        "initramfs-gz",
        7,
        include_bytes!("../../image/tests/fixtures/formats/Image.gz"),
    ),
];

/// An archive with nothing in it: `cpio -o -H newc </dev/null`.
const EMPTY_ARCHIVE: &[u8] = b"070701000000000000000000000000000000000000000100000000000000\
    00000000000000000000000000000000000000000B00000000TRAILER!!!\0\0\0\0";

/// All seeds.
#[must_use]
pub fn seeds(sources: &Sources) -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &str, name: &str, bytes: Vec<u8>| {
        if let Some(target) = crate::find(target)
            && bytes.len() <= target.max_len_bytes
        {
            let name = format!("seed-{name}");
            seeds.push(Seed {
                target: target.name,
                name,
                bytes,
            });
        }
    };
    for (name, head) in &sources.heads {
        let version = name.split('-').next().unwrap_or(name);
        add(
            "image",
            &format!("{name}-head"),
            head.get(..512).unwrap_or_default().to_vec(),
        );
        if let Some(kernel) = small_kernel(head, &format!("{version}.1")) {
            for level in [0, 1, 9] {
                let name = format!("{name}-level{level}");
                add("gzip", &name, deflated(&kernel, level));
            }
            add("image", name, kernel);
        }
    }
    for (name, offset, magic) in KINDS {
        let mut file = vec![0x11; 0x210];
        put(&mut file, offset, magic);
        add("image", name, file);
    }
    for (name, tree) in [("virt", VIRT), ("efi", EFI), ("board", BOARD)] {
        add("device_tree", name, tree.to_vec());
    }
    for (name, tree) in &sources.trees {
        if let Some(tree) = small_tree(tree) {
            add("device_tree", name, tree);
        }
    }
    for (name, text) in IOMEM {
        let mut cut = String::new();
        for line in text.split_inclusive('\n') {
            if cut.len() + line.len() < 1500 {
                cut += line;
            }
        }
        add("iomem", name, cut.into_bytes());
    }
    for (name, file) in FORMATS {
        add("formats", name, file.to_vec());
    }
    let table = signature_table();
    let right = crate::targets::image::program_digest::<sha2::Sha256>();
    if let Some(at) = table
        .windows(SHA256_DIGEST.len())
        .position(|window| window == SHA256_DIGEST)
    {
        // The program's digest where that of the signed file is.
        let mut whole = table.clone();
        let start = at + SHA256_DIGEST.len();
        if let Some(place) = whole.get_mut(start..start + right.len()) {
            place.copy_from_slice(&right);
        }
        add("signature", "twice", [&table[..], &whole].concat());
        add("signature", "whole", whole);
    }
    add("signature", "other", table);
    for (name, kind, stream) in STREAMS {
        add("streams", name, [&[*kind], *stream].concat());
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let _ = packed.write_all(EMPTY_ARCHIVE);
    let packed = packed.finish().unwrap_or_default();
    add(
        "streams",
        "initramfs",
        [&[7], EMPTY_ARCHIVE, &packed].concat(),
    );
    for (name, table) in TABLES {
        add("acpi", name, table.to_vec());
    }
    add("hand_off", "encoded", hand_off());
    add("timeline", "encoded", timeline());
    add("vmcoreinfo", "core", core_file());
    add("crash", "core", [&[1], core_file().as_slice()].concat());
    for (target, texts) in TEXTS {
        for (index, text) in texts.iter().enumerate() {
            add(target, &format!("{index}"), text.as_bytes().to_vec());
        }
    }
    // Where the bytes are drawn from, any will do for a start.
    let mut random = Random::new(1);
    for target in TARGETS {
        for length in [16, 64, 200, 500, 1000] {
            let bytes: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
            add(target.name, &format!("random-{length}"), bytes);
        }
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;
    use kleap_image::Kernel;

    #[test]
    fn cut_down_kernels_are_kernels() {
        for (name, head) in [
            (
                "5.10",
                &include_bytes!("../../image/tests/fixtures/debian-5.10.head")[..],
            ),
            (
                "6.12-16k",
                include_bytes!("../../image/tests/fixtures/debian-6.12-16k.head"),
            ),
            (
                "7.3",
                include_bytes!("../../image/tests/fixtures/debian-7.3.head"),
            ),
        ] {
            let image = small_kernel(head, "6.12.1").unwrap();
            let kernel = Kernel::parse(image).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(kernel.version(), Some((6, 12)));
        }
    }

    /// What real tools made is taken, so that the fuzzer starts inside.
    #[test]
    fn files_of_real_tools_are_taken() {
        use kleap_image::{Compression, KernelFile, Options, decompress_initramfs};
        for (name, file) in FORMATS {
            let parsed = KernelFile::parse(file.to_vec(), Options::default());
            // The one for another machine is here to be refused.
            assert_eq!(parsed.is_err(), *name == "uimage-arm", "{name}: {parsed:?}");
        }
        for (name, kind, stream) in STREAMS {
            if let Some(compression) = Compression::ALL.get(usize::from(*kind)) {
                let opened = compression.decompress(stream, 1 << 20);
                assert!(opened.is_ok(), "{name}: {opened:?}");
            }
        }
        let archive = decompress_initramfs(EMPTY_ARCHIVE, 1 << 20, &mut |_| ());
        assert!(archive.is_ok_and(|archive| archive.segments.len() == 1));
    }

    #[test]
    fn cut_down_trees_are_trees() {
        for tree in [VIRT, EFI, BOARD] {
            let whole = kleap_devicetree::Tree::parse(tree).unwrap();
            let small = kleap_devicetree::Tree::parse(&small_tree(tree).unwrap()).unwrap();
            assert_eq!(small.psci(), whole.psci());
            assert_eq!(small.console(), whole.console());
            assert_eq!(small.memory(), whole.memory());
        }
    }

    #[test]
    fn every_target_has_seeds_and_takes_them() {
        let seeds = seeds(&Sources::default());
        for target in TARGETS {
            assert!(
                seeds.iter().any(|seed| seed.target == target.name),
                "{}",
                target.name
            );
        }
        for seed in seeds {
            (crate::find(seed.target).unwrap().run)(&seed.bytes);
        }
    }
}
