//! The limits of the bare program, read from its ELF; and what is refused as a program.
//!
//! Where this compiler has no `core` for arm64 there is no program to look at: the tests then say that
//! they were skipped, or fail if `KLEAP_REQUIRE_RELOCATOR` is set.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests, on 64-bit machines"
)]

#[path = "../build/compile.rs"]
mod compile;

use kleap_relocator::abi::PROGRAM_MAX_BYTES;
use kleap_relocator::image::{self, ImageError, place, program_at};
use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Rela, SectionHeader};
use object::{Object, ObjectSymbol};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ENDIAN: LittleEndian = LittleEndian;

fn program_elf(test: &str) -> Option<&'static [u8]> {
    if image::ELF.is_none() {
        assert!(
            std::env::var_os("KLEAP_REQUIRE_RELOCATOR").is_none(),
            "KLEAP_REQUIRE_RELOCATOR is set, and this build has no relocator"
        );
        eprintln!("SKIPPED, this build has no relocator: {test}");
    }
    image::ELF
}

fn header(elf: &[u8]) -> &FileHeader64<LittleEndian> {
    FileHeader64::parse(elf).unwrap()
}

/// Relocations of every section: type, symbol, where, addend.
fn relocations(elf: &[u8]) -> Vec<(u32, u32, u64, u64)> {
    let sections = header(elf).sections(ENDIAN, elf).unwrap();
    sections
        .iter()
        .filter_map(|section| section.rela(ENDIAN, elf).unwrap())
        .flat_map(|(relocations, _)| relocations)
        .map(|relocation| {
            let addend = relocation.r_addend(ENDIAN).cast_unsigned();
            let kind = relocation.r_type(ENDIAN, false).0;
            let symbol = relocation.r_sym(ENDIAN, false);
            (kind, symbol, relocation.r_offset(ENDIAN), addend)
        })
        .collect()
}

/// Address of one of the program's symbols.
fn symbol(elf: &[u8], name: &str) -> u64 {
    let file = ElfFile64::<LittleEndian>::parse(elf).unwrap();
    let found = file.symbols().find(|symbol| symbol.name() == Ok(name));
    found
        .unwrap_or_else(|| panic!("the program has no symbol {name}"))
        .address()
}

#[test]
fn one_segment_that_is_read_and_executed_and_starts_at_its_first_byte() {
    let Some(elf) = program_elf("one_segment") else {
        return;
    };
    let header = header(elf);
    assert_eq!(header.e_machine(ENDIAN), elf::EM_AARCH64);
    assert_eq!(header.e_type(ENDIAN), elf::ET_DYN);
    assert_eq!(header.e_entry(ENDIAN), 0);
    assert_eq!(symbol(elf, "_start"), 0);
    let mut loaded = 0;
    for segment in header.program_headers(ENDIAN, elf).unwrap() {
        let flags = segment.p_flags(ENDIAN);
        assert_eq!(flags.0 & elf::PF_W.0, 0, "a segment is writable");
        let kind = segment.p_type(ENDIAN);
        if kind == elf::PT_LOAD {
            loaded += 1;
            assert_eq!(flags, elf::PF_R | elf::PF_X);
            assert_eq!(segment.p_vaddr(ENDIAN), 0);
            let size_bytes = segment.p_memsz(ENDIAN);
            assert_eq!(size_bytes, segment.p_filesz(ENDIAN));
            assert!(size_bytes <= 64 * 1024, "{size_bytes} bytes");
        } else {
            assert_eq!(kind, elf::PT_DYNAMIC, "nothing else is expected");
        }
        for entry in segment.dynamic(ENDIAN, elf).unwrap().unwrap_or_default() {
            let tag = entry.d_tag.get(ENDIAN);
            for (name, unwanted) in [
                ("NEEDED", elf::DT_NEEDED),
                ("TEXTREL", elf::DT_TEXTREL),
                ("JMPREL", elf::DT_JMPREL),
                ("REL", elf::DT_REL),
                ("RELR", elf::DT_RELR),
            ] {
                assert_ne!(tag, unwanted, "it has DT_{name}");
            }
        }
    }
    assert_eq!(loaded, 1);
}

#[test]
fn only_relative_relocations_each_of_a_word_of_its_own() {
    let Some(elf) = program_elf("only_relative_relocations") else {
        return;
    };
    let size_bytes = program_at(0).unwrap().len() as u64;
    let relocations = relocations(elf);
    assert!(
        !relocations.is_empty(),
        "none was seen, so none was looked at"
    );
    let mut words = BTreeSet::new();
    for &(kind, symbol, offset, addend) in &relocations {
        let relative = (elf::R_AARCH64_RELATIVE.0, 0);
        assert_eq!((kind, symbol), relative, "at {offset:#x}");
        assert_eq!(offset % 8, 0, "{offset:#x} is not a word");
        assert!(
            addend <= size_bytes,
            "{offset:#x} points outside the program"
        );
        assert!(words.insert(offset), "{offset:#x} is relocated twice");
    }
    for section in header(elf).sections(ENDIAN, elf).unwrap().iter() {
        let kind = section.sh_type(ENDIAN);
        let ignored = [elf::SHT_REL, elf::SHT_RELR, elf::SHT_CREL].contains(&kind);
        assert!(!ignored, "relocations that `place` does not apply");
    }
    // Placed at two bases, exactly these words differ, and by exactly the distance.
    let bases = [0x4020_0000_u64, 0xffff_ff12_3456_0000];
    let placed = bases.map(|base| program_at(base).unwrap());
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut differ = BTreeSet::new();
    for at in (0..placed[0].len() / 8 * 8).step_by(8) {
        let [first, second] = [0, 1].map(|index| word(&placed[index], at));
        if first != second {
            let distance = bases[1].wrapping_sub(bases[0]);
            assert_eq!(second.wrapping_sub(first), distance, "at {at:#x}");
            differ.insert(at as u64);
        }
    }
    assert_eq!(differ, words);
    for &(_, _, offset, addend) in &relocations {
        let found = word(&placed[0], offset as usize);
        assert_eq!(found, bases[0] + addend, "at {offset:#x}");
    }
}

#[test]
fn no_undefined_symbols_and_no_outline_atomics() {
    let Some(elf) = program_elf("no_undefined_symbols") else {
        return;
    };
    let file = ElfFile64::<LittleEndian>::parse(elf).unwrap();
    let mut count = 0;
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let name = symbol.name().unwrap();
        assert!(!symbol.is_undefined(), "{name} is undefined");
        assert!(
            !name.starts_with("__aarch64_"),
            "{name}: an outline atomic, whose check of the CPU is a writable static"
        );
        count += 1;
    }
    assert!(count > 20, "{count} symbols: was the program stripped?");
}

/// `VBAR_ELx` is 2 KiB-aligned; sixteen entries of 128 bytes, each with code and not with padding.
#[test]
fn exception_vectors_are_where_the_architecture_wants_them() {
    let Some(elf) = program_elf("exception_vectors") else {
        return;
    };
    let program = program_at(0).unwrap();
    for name in ["vectors", "last_vectors"] {
        let start = symbol(elf, name);
        assert_eq!(start % 2048, 0, "{name} at {start:#x}");
        for entry in 0..16 {
            let at = (start + entry * 128) as usize;
            let first = u32::from_le_bytes(program[at..at + 4].try_into().unwrap());
            assert_ne!(first, 0, "{name}, entry {entry}");
            assert_ne!(first, 0xd503_201f, "{name}, entry {entry}: NOP");
        }
    }
}

/// One A64 instruction, as far as matters here (Arm ARM C4.1, "A64 instruction set encoding").
struct Instruction(u32);

impl Instruction {
    /// "Loads and Stores": op1 (bits 28:25) is x1x0.
    fn is_memory_access(&self) -> bool {
        self.0 >> 25 & 0b0101 == 0b0100
    }

    /// "Data Processing -- Scalar Floating-Point and Advanced SIMD": op1 is x111.
    fn is_floating_point(&self) -> bool {
        self.0 >> 25 & 0b0111 == 0b0111
    }

    /// LDR (literal) of a general register.
    fn is_literal_load(&self) -> bool {
        self.0 & 0xbf00_0000 == 0x1800_0000
    }

    /// LDR Xt, [X21, #imm]: a word of the hand-off block.
    fn is_hand_off_load(&self) -> bool {
        self.0 & 0xffc0_03e0 == 0xf940_0000 | 21 << 5
    }

    /// LDP Xt, Xt2, [X1], #16: what is to be compared with its digest.
    fn is_checksum_load(&self) -> bool {
        self.0 & 0xffff_83e0 == 0xa8c1_0000 | 1 << 5
    }

    fn is_call(&self) -> bool {
        self.0 & 0xfc00_0000 == 0x9400_0000 || self.0 & 0xffff_fc1f == 0xd63f_0000
    }

    /// MSR SCTLR_EL1 or SCTLR_EL2.
    fn is_system_control(&self) -> bool {
        matches!(self.0 & 0xffff_ffe0, 0xd518_1000 | 0xd51c_1000)
    }

    fn is_branch_to_register(&self) -> bool {
        self.0 & 0xffff_fc1f == 0xd61f_0000
    }
}

fn instructions(program: &[u8], from: u64, to: u64) -> Vec<(u64, Instruction)> {
    let (words, _) = program[from as usize..to as usize].as_chunks::<4>();
    (from..)
        .step_by(4)
        .zip(words)
        .map(|(at, word)| (at, Instruction(u32::from_le_bytes(*word))))
        .collect()
}

/// With the MMU off all data is Device memory and nothing is coherent with the caches: the stage, which
/// the first kernel cleaned, may be read, and that is all.
#[test]
fn before_the_mmu_is_on_only_the_stage_is_read() {
    let Some(elf) = program_elf("before_the_mmu_is_on") else {
        return;
    };
    let program = program_at(0).unwrap();
    let all = instructions(&program, 0, symbol(elf, "mmu_on"));
    let (mut loads, mut checksum_loads, mut on) = (0, 0, 0);
    for (at, instruction) in &all {
        let word = instruction.0;
        assert!(
            !instruction.is_floating_point(),
            "{at:#x}: {word:08x} is SIMD"
        );
        assert!(!instruction.is_call(), "{at:#x}: {word:08x} is a call");
        on += u32::from(instruction.is_system_control());
        if instruction.is_memory_access() {
            checksum_loads += u32::from(instruction.is_checksum_load());
            let allowed = instruction.is_literal_load()
                || instruction.is_hand_off_load()
                || instruction.is_checksum_load();
            assert!(allowed, "{at:#x}: {word:08x} is no load from the stage");
            loads += 1;
        }
    }
    assert!(loads >= 8, "{loads} loads: is this the entry code?");
    assert_eq!(checksum_loads, 1);
    assert_eq!(on, 4, "instruction cache, MMU; for each kind of regime");
}

/// After the MMU is off again nothing is loaded or stored: what was written through the caches may not be
/// in memory.
#[test]
fn after_the_mmu_is_off_nothing_is_read() {
    let Some(elf) = program_elf("after_the_mmu_is_off") else {
        return;
    };
    let program = program_at(0).unwrap();
    let all = instructions(
        &program,
        symbol(elf, "enter_kernel"),
        symbol(elf, "vectors"),
    );
    let position = |wanted: fn(&Instruction) -> bool| {
        all.iter()
            .position(|(_, instruction)| wanted(instruction))
            .unwrap()
    };
    let off = position(Instruction::is_system_control);
    let end = position(Instruction::is_branch_to_register);
    assert!(
        off < end,
        "the next kernel is entered before the MMU is off"
    );
    for (at, instruction) in &all[off..end] {
        let word = instruction.0;
        assert!(!instruction.is_memory_access(), "{at:#x}: {word:08x}");
        assert!(!instruction.is_call(), "{at:#x}: {word:08x} is a call");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Built again from copies of the source, in directories whose names have other lengths, by the same
/// compiler: bit for bit what is embedded.
#[test]
fn built_again_elsewhere_it_is_the_same() {
    let Some(elf) = program_elf("built_again_elsewhere") else {
        return;
    };
    let mut recipe = include_str!(concat!(env!("OUT_DIR"), "/recipe.txt")).lines();
    let mut next = || recipe.next().unwrap();
    let (rustc, target) = (next(), next());
    let linker = (next().to_owned(), next() == "true");
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("reproducible-{}", std::process::id()));
    for name in ["a", "a-directory-with-a-longer-name/and-another"] {
        let (source, out) = (root.join(name).join("source"), root.join(name).join("out"));
        for part in ["src", "blob"] {
            copy_tree(&crate_directory.join(part), &source.join(part));
        }
        fs::create_dir_all(&out).unwrap();
        compile::build(rustc, target, &linker, &source, &out).unwrap();
        let again = fs::read(out.join("relocator.elf")).unwrap();
        let differs = again.iter().zip(elf).position(|(a, b)| a != b);
        assert!(
            again == elf,
            "{} ({} bytes, embedded are {}) differs from byte {differs:?} on; built by {rustc} for \
             {target} with {linker:?}",
            out.join("relocator.elf").display(),
            again.len(),
            elf.len()
        );
    }
    // Kept where the assertion fails, to be compared.
    fs::remove_dir_all(&root).unwrap();
}

/// A segment of [`Handmade`].
#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// An ELF made by hand, so that every rule can be broken alone.
#[derive(Clone)]
struct Handmade {
    machine: u16,
    entry: u64,
    segments: Vec<Segment>,
    program: Vec<u8>,
    relocations_kind: u32,
    /// Offset, info, addend.
    relocations: Vec<(u64, u64, u64)>,
    has_sections: bool,
}

const PROGRAM_OFFSET: u64 = 0x1000;
const RELATIVE: u64 = elf::R_AARCH64_RELATIVE.0 as u64;

impl Handmade {
    fn good() -> Self {
        Self {
            machine: elf::EM_AARCH64.0,
            entry: 0,
            segments: vec![Segment {
                kind: elf::PT_LOAD.0,
                flags: 5,
                offset: PROGRAM_OFFSET,
                address: 0,
                file_bytes: 4096,
                memory_bytes: 4096,
            }],
            program: vec![0xd5; 4096],
            relocations_kind: elf::SHT_RELA.0,
            relocations: vec![(0x100, RELATIVE, 0x40), (4088, RELATIVE, 0x80)],
            has_sections: true,
        }
    }

    fn with_segment(change: impl FnOnce(&mut Segment)) -> Self {
        let mut handmade = Self::good();
        change(&mut handmade.segments[0]);
        handmade
    }

    fn bytes(&self) -> Vec<u8> {
        let relocations_at = PROGRAM_OFFSET + self.program.len() as u64;
        let relocations_bytes = self.relocations.len() as u64 * 24;
        let sections = u16::from(self.has_sections);
        let sections_at = u64::from(sections) * (relocations_at + relocations_bytes);
        let half = |bytes: &mut Vec<u8>, value: u16| bytes.extend(value.to_le_bytes());
        let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_le_bytes());
        let long = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_le_bytes());

        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec(); // 64 bits, little-endian, version 1
        bytes.resize(16, 0);
        half(&mut bytes, elf::ET_DYN.0);
        half(&mut bytes, self.machine);
        word(&mut bytes, 1);
        for value in [self.entry, 64, sections_at] {
            long(&mut bytes, value);
        }
        word(&mut bytes, 0);
        let segments = self.segments.len() as u16;
        for value in [64, 56, segments, 64, 3 * sections, 2 * sections] {
            half(&mut bytes, value);
        }
        for segment in &self.segments {
            word(&mut bytes, segment.kind);
            word(&mut bytes, segment.flags);
            let address = segment.address;
            let (in_file, in_memory) = (segment.file_bytes, segment.memory_bytes);
            for value in [segment.offset, address, address, in_file, in_memory, 4096] {
                long(&mut bytes, value);
            }
        }
        bytes.resize(PROGRAM_OFFSET as usize, 0);
        bytes.extend(&self.program);
        for &(offset, info, addend) in &self.relocations {
            for value in [offset, info, addend] {
                long(&mut bytes, value);
            }
        }
        if self.has_sections {
            bytes.resize(bytes.len() + 64, 0); // the null section
            word(&mut bytes, 0);
            word(&mut bytes, self.relocations_kind);
            let at = relocations_at;
            for value in [2, at, at, relocations_bytes, 0, 8, 24] {
                long(&mut bytes, value);
            }
            // The table of section names, which have none.
            word(&mut bytes, 0);
            word(&mut bytes, elf::SHT_STRTAB.0);
            for value in [0, 0, 0, 0, 0, 1, 0] {
                long(&mut bytes, value);
            }
        }
        bytes
    }
}

#[test]
fn a_handmade_program_is_placed() {
    let base = 0x1234_5670_0000;
    let mut expected = Handmade::good().program;
    expected[0x100..0x108].copy_from_slice(&(base + 0x40_u64).to_le_bytes());
    expected[4088..].copy_from_slice(&(base + 0x80_u64).to_le_bytes());
    assert_eq!(place(&Handmade::good().bytes(), base), Ok(expected));
    // A base at the end of the address space wraps; it does not panic.
    assert!(place(&Handmade::good().bytes(), u64::MAX).is_ok());
}

/// Asserts that `handmade` is refused for the reason that `expected` knows.
fn refused(what: &str, handmade: &Handmade, expected: fn(&ImageError) -> bool) {
    let result = place(&handmade.bytes(), 0x4000_0000).map(|program| program.len());
    assert!(result.as_ref().is_err_and(expected), "{what}: {result:?}");
}

#[test]
fn segments_that_break_a_rule_are_refused() {
    let writable = |segment: &mut Segment| segment.flags = 7;
    let data = |segment: &mut Segment| segment.flags = 6;
    let constants = |segment: &mut Segment| segment.flags = 4;
    let unreadable = |segment: &mut Segment| segment.flags = 1;
    let elsewhere = |segment: &mut Segment| segment.address = 0x1000;
    let none = |segment: &mut Segment| segment.kind = elf::PT_DYNAMIC.0;
    let mut two = Handmade::good();
    two.segments.push(two.segments[0]);
    for (what, handmade) in [
        ("writable and executable", Handmade::with_segment(writable)),
        ("writable", Handmade::with_segment(data)),
        ("not executable", Handmade::with_segment(constants)),
        ("not readable", Handmade::with_segment(unreadable)),
        ("not at 0", Handmade::with_segment(elsewhere)),
        ("none loaded", Handmade::with_segment(none)),
        ("two", two),
    ] {
        refused(what, &handmade, |error| {
            matches!(error, ImageError::Segments { .. })
        });
    }
    for memory_bytes in [4095, 4097, 65536, u64::MAX] {
        let handmade = Handmade::with_segment(|segment| segment.memory_bytes = memory_bytes);
        refused("other sizes in file and memory", &handmade, |error| {
            matches!(error, ImageError::Size(_))
        });
    }
    for offset in [0x10_0000, u64::MAX] {
        let handmade = Handmade::with_segment(|segment| segment.offset = offset);
        refused("outside the file", &handmade, |error| {
            matches!(error, ImageError::Elf(_))
        });
    }
    for (size_bytes, accepted) in [(PROGRAM_MAX_BYTES, true), (PROGRAM_MAX_BYTES + 1, false)] {
        let mut handmade = Handmade::with_segment(|segment| {
            segment.file_bytes = size_bytes;
            segment.memory_bytes = size_bytes;
        });
        handmade.program.resize(size_bytes as usize, 0);
        let result = place(&handmade.bytes(), 0).map(|program| program.len() as u64);
        let expected = if accepted {
            Ok(size_bytes)
        } else {
            Err(ImageError::Size(size_bytes))
        };
        assert_eq!(result, expected);
    }
    for entry in [4, 1 << 63] {
        let handmade = Handmade {
            entry,
            ..Handmade::good()
        };
        refused("entry", &handmade, |error| {
            matches!(error, ImageError::Entry(_))
        });
    }
    let handmade = Handmade {
        machine: elf::EM_X86_64.0,
        ..Handmade::good()
    };
    refused("another machine", &handmade, |error| {
        matches!(error, ImageError::Elf(_))
    });
}

#[test]
fn relocations_that_break_a_rule_are_refused() {
    for (offset, info) in [
        (0x100, u64::from(elf::R_AARCH64_ABS64.0)),
        (0x100, u64::from(elf::R_AARCH64_GLOB_DAT.0)),
        (0x100, u64::from(elf::R_AARCH64_JUMP_SLOT.0)),
        (0x100, 0),
        (4089, RELATIVE),
        (4096, RELATIVE),
        (u64::MAX, RELATIVE),
    ] {
        let mut handmade = Handmade::good();
        handmade.relocations.push((offset, info, 0));
        let what = format!("relocation {info:#x} at {offset:#x}");
        refused(&what, &handmade, |error| {
            matches!(error, ImageError::Relocation { .. })
        });
    }
    // Relocations of a kind that is not applied must not be passed over, nor must those that cannot be
    // found.
    for relocations_kind in [elf::SHT_REL.0, elf::SHT_RELR.0, elf::SHT_CREL.0] {
        let handmade = Handmade {
            relocations_kind,
            ..Handmade::good()
        };
        let what = format!("section of type {relocations_kind:#x}");
        refused(&what, &handmade, |error| {
            matches!(error, ImageError::Elf(_))
        });
    }
    let handmade = Handmade {
        has_sections: false,
        ..Handmade::good()
    };
    refused("no sections", &handmade, |error| {
        matches!(error, ImageError::Elf(_))
    });
}

#[test]
fn every_truncation_is_refused() {
    let handmade = Handmade::good().bytes();
    let fine = (0..handmade.len()).map(|length| &handmade[..length]);
    let program = program_elf("truncations of the program").unwrap_or_default();
    let coarse = (0..program.len())
        .step_by(64)
        .map(|length| &program[..length]);
    for truncated in fine.chain(coarse) {
        assert!(
            place(truncated, 0).is_err(),
            "{} bytes accepted",
            truncated.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 3000, ..ProptestConfig::default() })]

    /// Whatever the ELF says: an error or a program within the limit, never a panic.
    #[test]
    fn no_bytes_make_it_panic(
        changes in proptest::collection::vec((0..64 + 56 + 48 + 192_usize, any::<u8>()), 1..6),
        base in any::<u64>(),
    ) {
        let mut bytes = Handmade::good().bytes();
        for (at, value) in changes {
            // Header and segment at the front, relocations and sections behind the program.
            let at = if at < 120 { at } else { PROGRAM_OFFSET as usize + 4096 + at - 120 };
            bytes[at] = value;
        }
        if let Ok(program) = place(&bytes, base) {
            prop_assert!(program.len() as u64 <= PROGRAM_MAX_BYTES);
        }
    }
}
