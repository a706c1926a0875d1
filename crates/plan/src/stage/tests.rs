//! The bytes of the stage, read as the relocator and the CPU will read them.
//!
//! Here: scenarios, and what is refused. [`tables`] walks the translation tables, [`hand_over`] runs the
//! relocator's own logic through them.
//!
//! All of it needs the bare program, which a compiler without arm64's `core` cannot build: the tests then
//! say that they were skipped, or fail if `KLEAP_REQUIRE_RELOCATOR` is set.

mod hand_over;
mod scattered;
mod tables;
#[path = "../../../pagetable/tests/walker/mod.rs"]
mod walker;

use super::*;
use crate::layout::{self, Owned, Requirements};
use kleap_relocator::abi::HandOff;
use kleap_relocator::digest::chunk_count;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HUGE: u64 = 2 * MIB;
const GRANULES: [u64; 3] = [4096, 16384, 65536];
/// Where owned pages are, below everything that is moved to.
const OWNED_START: u64 = GIB;
const OWNED_PAGES: u64 = 64;
/// Where things are moved to.
const PLAIN_START: u64 = 3 * GIB;
const PLAIN_BYTES: u64 = 128 * MIB;

/// Whether the test cannot run here.
fn skipped(test: &str) -> bool {
    if image::ELF.is_some() {
        return false;
    }
    assert!(
        std::env::var_os("KLEAP_REQUIRE_RELOCATOR").is_none(),
        "KLEAP_REQUIRE_RELOCATOR is set, and this build has no relocator"
    );
    eprintln!("SKIPPED, this build has no relocator: {test}");
    true
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// Everything that a stage is made from, by value.
#[derive(Debug, Clone)]
struct Scenario {
    layout: Layout,
    granule_bytes: u64,
    image: Content,
    image_size_bytes: u64,
    initrd: Option<Content>,
    device_tree: Content,
    timeline_offset_bytes: u64,
    uart: Option<Uart>,
    redistributors: Vec<Device>,
    record: Option<abi::RecordPlace>,
    mappable: PhysRanges,
}

impl Scenario {
    fn input(&self) -> StageInput<'_> {
        StageInput {
            layout: &self.layout,
            granule_bytes: self.granule_bytes,
            image: self.image.clone(),
            image_size_bytes: self.image_size_bytes,
            initrd: self.initrd.clone(),
            device_tree: self.device_tree.clone(),
            timeline_offset_bytes: self.timeline_offset_bytes,
            kernel_page_size_bytes: Some(4096),
            uart: self.uart,
            psci: Some(Conduit::Smc),
            redistributors: &self.redistributors,
            lpis: abi::Lpis::TurnOff,
            verbose: false,
            on_failure: abi::OnFailure::Reset,
            record: self.record,
            core_header: None,
            mappable: &self.mappable,
        }
    }

    fn prepare(&self) -> Result<Stage, StageError> {
        let mut stage = prepare(&self.input())?;
        stage.stamp(0x1234_5678, 0x1234_5679)?;
        Ok(stage)
    }

    /// The pieces that a user loads, with their places.
    fn contents(&self) -> Vec<(PieceKind, &Place, Content)> {
        let mut contents = vec![(PieceKind::Image, &self.layout.image, self.image.clone())];
        if let (Some(place), Some(content)) = (&self.layout.initrd, self.initrd.clone()) {
            contents.push((PieceKind::Initrd, place, content));
        }
        contents.push((
            PieceKind::DeviceTree,
            &self.layout.device_tree,
            self.device_tree.clone(),
        ));
        contents
    }

    /// Where the timeline goes.
    fn timeline(&self) -> u64 {
        self.layout.device_tree.start().as_u64() + self.timeline_offset_bytes
    }
}

fn content(size_bytes: u64) -> Content {
    Content {
        size_bytes,
        digests: Digests {
            algorithm: Some(Algorithm::Crc32c),
            words: vec![7; chunk_count(size_bytes)],
        },
    }
}

/// Lays out pieces of these sizes in the pages whose bits are set, and in a reserve that is enough for
/// anything and has no two pages in a row.
fn scenario(
    bits: u64,
    strategy: crate::Strategy,
    image: (u64, u64, u64),
    initrd_bytes: u64,
    device_tree_bytes: u64,
) -> Scenario {
    let (image_file_bytes, image_size_bytes, text_offset_bytes) = image;
    let scattered = (0..OWNED_PAGES).filter(|page| bits >> page & 1 == 1);
    let reserve = (0..16).map(|page| OWNED_PAGES + 1 + 2 * page);
    let addresses = scattered
        .chain(reserve)
        .map(|page| OWNED_START + page * HUGE);
    let owned: Vec<Owned> = addresses
        .enumerate()
        .map(|(index, address)| Owned {
            address: PhysAddr::new(address),
            size_bytes: HUGE,
            file: 0,
            // Not in the order of the addresses, and no two in a row.
            offset_bytes: (index as u64 * 7919) % 10_007 * HUGE,
        })
        .collect();
    let requirements = Requirements {
        image_file_bytes,
        image_size_bytes,
        text_offset_bytes,
        initrd_bytes,
        device_tree_bytes,
        stage_bytes: MIB,
    };
    let plain_ram: PhysRanges = [range(PLAIN_START, PLAIN_BYTES)].into_iter().collect();
    let mappable = plain_ram.union(&owned.iter().map(Owned::range).collect());
    let layout = layout::choose(&owned, HUGE, &plain_ram, &requirements, strategy).unwrap();
    Scenario {
        layout,
        granule_bytes: 4096,
        image: content(image_file_bytes),
        image_size_bytes,
        initrd: (initrd_bytes != 0).then(|| content(initrd_bytes)),
        device_tree: content(device_tree_bytes),
        timeline_offset_bytes: (device_tree_bytes - timeline::SIZE_BYTES as u64) / 8 * 8,
        uart: Some(Uart::Pl011 { base: 0x900_0000 }),
        redistributors: vec![Device {
            range: range(0x80a_0000, 0x8_0000),
            stride_bytes: None,
        }],
        record: None,
        mappable,
    }
}

/// A scenario that nothing is special about, everything moved.
fn ordinary() -> Scenario {
    let image = (5 * MIB + 123, 6 * MIB, 0);
    scenario(0x5555, crate::Strategy::Relocate, image, 3 * MIB + 1, 9001)
}

fn any_strategy_and_pages() -> impl proptest::strategy::Strategy<Value = (crate::Strategy, u64)> {
    prop_oneof![
        // For a strategy that must succeed, there has to be a run.
        Just((crate::Strategy::InPlace, u64::MAX)),
        any::<(u64, u64)>().prop_map(|(a, b)| (crate::Strategy::Auto, a | b)),
        any::<u64>().prop_map(|bits| (crate::Strategy::Relocate, bits)),
        any::<(u64, u64)>().prop_map(|(a, b)| (crate::Strategy::Relocate, a | b)),
    ]
}

fn any_uart() -> impl proptest::strategy::Strategy<Value = Option<Uart>> {
    prop_oneof![
        Just(None),
        (0..0x1000_u64).prop_map(|page| Some(Uart::Pl011 {
            base: 0x900_0000 + page * 0x1000
        })),
        // Not page-aligned, and in the last bytes of a page, so that the registers leave it.
        (0..0x1000_u64, 0..3_u64).prop_map(|(at, reg_shift)| {
            Some(Uart::Ns16550 {
                base: 0x2000_0000 + at * 0x10,
                reg_shift,
                width_bytes: 4,
            })
        }),
    ]
}

fn any_redistributors() -> impl proptest::strategy::Strategy<Value = Vec<Device>> {
    // Frames of 128 KiB, regions adjacent or apart, none or many.
    proptest::collection::vec((0..3_u64, 1..9_u64), 0..5).prop_map(|regions| {
        let mut start = 0x3000_0000;
        regions
            .into_iter()
            .map(|(gap, frames)| {
                start += gap * 0x2_0000;
                let range = range(start, frames * 0x2_0000);
                start = range.end().as_u64();
                Device {
                    range,
                    stride_bytes: (gap == 2).then_some(0x2_0000),
                }
            })
            .collect()
    })
}

/// Scenarios of all kinds. `largest_bytes` bounds Image and initrd.
fn any_scenario(largest_bytes: u64) -> impl proptest::strategy::Strategy<Value = Scenario> {
    let bytes = prop_oneof![
        1..=largest_bytes,
        1..=HUGE,
        1..300_u64,
        (1..=largest_bytes / HUGE).prop_map(|pages| pages * HUGE),
    ];
    let text_offset = prop_oneof![2 => Just(0), 2 => Just(0x8_0000), 1 => 0..HUGE, 1 => Just(4095)];
    let image = (bytes.clone(), 0..2 * HUGE, text_offset);
    let initrd = prop_oneof![1 => Just(0), 4 => bytes];
    let device_tree = (512..20_000_u64, 0..=1_u64);
    let devices = (any_uart(), any_redistributors());
    let granule = proptest::sample::select(GRANULES.to_vec());
    (
        any_strategy_and_pages(),
        image,
        initrd,
        device_tree,
        devices,
        granule,
    )
        .prop_map(
            |((strategy, bits), image, initrd_bytes, device_tree, devices, granule_bytes)| {
                let image = (image.0, image.0 + image.1, image.2);
                let mut scenario = scenario(bits, strategy, image, initrd_bytes, device_tree.0);
                scenario.granule_bytes = granule_bytes;
                (scenario.uart, scenario.redistributors) = devices;
                // The record at the end of the tree, or at its start: both are within it.
                scenario.timeline_offset_bytes *= device_tree.1;
                scenario
            },
        )
}

/// The block as the relocator finds it: it does not know where the block ends.
fn hand_off(stage: &Stage) -> HandOff<'_> {
    let at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap();
    HandOff::decode(&stage.bytes[at..]).unwrap()
}

/// How many moves there have to be: one for each stretch of content that is not at its place and is held in
/// one stretch of memory. And how many bytes.
fn expected_moves(place: &Place, content: &Content, unit_bytes: u64) -> (u64, u64) {
    let (mut count, mut bytes, mut before) = (0, 0, None);
    let mut at = 0;
    let end = place.offset_bytes + content.size_bytes;
    for part in &place.parts {
        for inside in (0..part.size_bytes).step_by(usize::try_from(unit_bytes).unwrap()) {
            let source = part.address.as_u64() + inside;
            let target = place.target.start().as_u64() + at;
            let from = place.offset_bytes.max(at);
            let to = end.min(at + unit_bytes);
            at += unit_bytes;
            if source == target || from >= to {
                before = None;
                continue;
            }
            count += u64::from(before != Some((source, target)));
            bytes += to - from;
            before = Some((source + unit_bytes, target + unit_bytes));
        }
    }
    (count, bytes)
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn the_block_says_what_was_given(scenario in any_scenario(8 * MIB)) {
        if skipped("the_block_says_what_was_given") {
            return Ok(());
        }
        let stage = scenario.prepare().unwrap();
        prop_assert_eq!(stage.start, scenario.layout.stage.start());
        prop_assert!(stage.bytes.len() as u64 <= HUGE);
        prop_assert_eq!(stage.bytes.len() as u64 % scenario.granule_bytes, 0);
        prop_assert_eq!(stage.bytes.len() as u64, stage.summary.stage_bytes);

        let hand_off = hand_off(&stage);
        let header = hand_off.header;
        prop_assert_eq!(header.stage, stage.start.as_u64());
        prop_assert_eq!(header.stage_size_bytes, stage.bytes.len() as u64);
        prop_assert_eq!(header.kernel_entry, scenario.layout.image.target.start().as_u64() + scenario.layout.image.offset_bytes);
        prop_assert_eq!(header.device_tree, scenario.layout.device_tree.target.start().as_u64());
        prop_assert_eq!(header.timeline, Some(scenario.timeline()));
        prop_assert_eq!((header.uart, header.psci), (scenario.uart, Some(Conduit::Smc)));
        prop_assert_eq!((header.exec_requested, header.exec_prepared), (0x1234_5678, 0x1234_5679));
        prop_assert_eq!(header.kernel_page_size_bytes, 4096);
        prop_assert_eq!(header.physical_size_max, 5, "48 bits");
        prop_assert_eq!(header.table_size_bytes, scenario.granule_bytes);
        let regions: Vec<(u64, u64, u64)> = hand_off.redistributors().map(|region| (region.start, region.size_bytes, region.stride_bytes)).collect();
        let given: Vec<(u64, u64, u64)> = scenario.redistributors.iter().map(|device| (device.range.start().as_u64(), device.range.size_bytes(), device.stride_bytes.unwrap_or(0))).collect();
        prop_assert_eq!(regions, given);

        // Every piece that was loaded, then the relocator's own parts.
        let pieces: Vec<Piece> = hand_off.pieces().collect();
        let contents = scenario.contents();
        prop_assert_eq!(pieces.len(), contents.len() + 2);
        for (piece, (kind, place, content)) in pieces.iter().zip(&contents) {
            prop_assert_eq!(piece.kind, *kind);
            prop_assert_eq!(piece.start, place.target.start().as_u64() + place.offset_bytes);
            prop_assert_eq!((piece.size_bytes, piece.algorithm), (content.size_bytes, content.digests.algorithm));
            let cleaned = if *kind == PieceKind::Image { scenario.image_size_bytes } else { content.size_bytes };
            prop_assert_eq!(piece.clean_size_bytes, cleaned);
        }
        let start = stage.start.as_u64();
        for piece in &pieces[contents.len()..] {
            let from = usize::try_from(piece.start - start).unwrap();
            let bytes = &stage.bytes[from..][..usize::try_from(piece.size_bytes).unwrap()];
            let digests = Digests::of(Algorithm::Crc32c, bytes);
            let found: Vec<u64> = hand_off.chunks().filter(|chunk| chunk.kind == piece.kind).map(|chunk| chunk.expected.unwrap().words()[0]).collect();
            prop_assert_eq!((piece.algorithm, found), (digests.algorithm, digests.words), "{:?}", piece);
        }
        let own: Vec<PieceKind> = pieces[contents.len()..].iter().map(|piece| piece.kind).collect();
        prop_assert_eq!(own, [PieceKind::Tables, PieceKind::Program]);
        let program = image::program_at(start).unwrap();
        // Whole pairs of words, the rest of them zeros.
        let program_bytes = program.len().next_multiple_of(16);
        prop_assert_eq!(pieces[contents.len() + 1].size_bytes, program_bytes as u64);
        prop_assert!(stage.bytes[program.len()..program_bytes].iter().all(|byte| *byte == 0));
        prop_assert_eq!(&stage.bytes[..program.len()], &program[..]);

        // What assembly verifies before the MMU is on, as it finds it there: by registers and by words.
        let granule_bytes = scenario.granule_bytes;
        for (from, size_bytes, expected) in [
            (0, header.program_size_bytes, header.program_crc32c),
            (header.ttbr_two_privileges - start, header.tables_two_privileges * granule_bytes, header.tables_two_privileges_crc32c),
            (header.ttbr_one_privilege - start, header.tables_one_privilege * granule_bytes, header.tables_one_privilege_crc32c),
        ] {
            prop_assert_eq!(size_bytes % 16, 0);
            let bytes = &stage.bytes[usize::try_from(from).unwrap()..][..usize::try_from(size_bytes).unwrap()];
            prop_assert_eq!(crc32c::update(0, bytes), expected);
        }
        prop_assert_eq!(header.tables_two_privileges + header.tables_one_privilege, pieces[contents.len()].size_bytes / granule_bytes);
        prop_assert!(!header.portable);

        let unit_bytes = scenario.layout.unit_bytes;
        let (mut expected, mut misplaced, mut total) = (0, 0, 0);
        for (_, place, content) in &contents {
            let (count, bytes) = expected_moves(place, content, unit_bytes);
            expected += count;
            misplaced += bytes;
            total += content.size_bytes;
        }
        prop_assert_eq!(hand_off.moves().len() as u64, expected, "neighbouring pages are moved as one");
        let moved_bytes: u64 = hand_off.moves().map(|copy| copy.size_bytes).sum();
        prop_assert_eq!(moved_bytes, misplaced);
        prop_assert_eq!(stage.summary.in_place_bytes, total - misplaced);
        let summary = &stage.summary;
        prop_assert_eq!((summary.moves, summary.moved_bytes), (expected, moved_bytes));
        prop_assert_eq!(summary.verified_bytes, pieces.iter().map(|piece| piece.size_bytes).sum::<u64>());
        prop_assert_eq!(summary.tables_bytes, pieces[contents.len()].size_bytes);
        prop_assert_eq!(summary.tables_bytes, (header.tables_two_privileges + header.tables_one_privilege) * scenario.granule_bytes);

        // Pure: the same input, the same bytes.
        prop_assert_eq!(scenario.prepare().unwrap().bytes, stage.bytes);
    }
}

#[test]
fn neighbouring_pages_are_one_move() {
    if skipped("neighbouring_pages_are_one_move") {
        return;
    }
    // Pages 0 1 2, 4, 6 7, longest runs first: the Image in 0 1 2 and 6, the tree in 7, the initrd in 4 and
    // in the first page of the reserve (page 66: the stage has 65).
    let image = (7 * MIB, 7 * MIB, 0);
    let scenario = scenario(0b1101_0111, crate::Strategy::Relocate, image, 3 * MIB, 1000);
    let stage = scenario.prepare().unwrap();
    let moves: Vec<(u64, u64)> = hand_off(&stage)
        .moves()
        .map(|copy| (copy.source, copy.size_bytes))
        .collect();
    let page = |index: u64| OWNED_START + index * HUGE;
    let mut sorted = moves.clone();
    sorted.sort_unstable();
    assert_eq!(sorted.len(), 5, "{moves:x?}");
    assert!(sorted.contains(&(page(0), 3 * HUGE)), "{moves:x?}");
    assert!(sorted.contains(&(page(6), MIB)), "{moves:x?}");
}

#[test]
fn a_page_size_that_does_not_exist_is_refused() {
    for granule_bytes in [0, 1, 4095, 8192, 32768, HUGE, u64::MAX] {
        let error = Scenario {
            granule_bytes,
            ..ordinary()
        }
        .prepare()
        .unwrap_err();
        assert!(
            matches!(error, StageError::Granule(found) if found == granule_bytes),
            "{error}"
        );
    }
}

#[test]
fn pieces_that_do_not_fit_their_place_are_refused() {
    if skipped("pieces_that_do_not_fit_their_place_are_refused") {
        return;
    }
    for strategy in [crate::Strategy::Relocate, crate::Strategy::InPlace] {
        for text_offset in [0, 0x8_0000] {
            let image = (3 * MIB, 4 * MIB - text_offset, text_offset);
            let good = scenario(u64::MAX, strategy, image, 2 * MIB, 2 * MIB);
            assert!(good.prepare().is_ok());
            // The place is larger than what was asked for, but it ends.
            let most = 2 * HUGE - text_offset;
            let image_size_bytes = most + 1;
            for (what, bad) in [
                (
                    "Image",
                    Scenario {
                        image: content(most + 1),
                        ..good.clone()
                    },
                ),
                (
                    "Image, far",
                    Scenario {
                        image: content(u64::MAX),
                        ..good.clone()
                    },
                ),
                (
                    "BSS",
                    Scenario {
                        image_size_bytes,
                        ..good.clone()
                    },
                ),
                (
                    "BSS, far",
                    Scenario {
                        image_size_bytes: u64::MAX,
                        ..good.clone()
                    },
                ),
                (
                    "initrd",
                    Scenario {
                        initrd: Some(content(HUGE + 1)),
                        ..good.clone()
                    },
                ),
                (
                    "device tree",
                    Scenario {
                        device_tree: content(HUGE + 1),
                        ..good.clone()
                    },
                ),
            ] {
                let result = bad.prepare();
                let refused = matches!(result, Err(StageError::Content { .. }));
                assert!(
                    refused,
                    "{what}, {strategy:?}, {text_offset:#x}: {result:?}"
                );
            }
        }
    }
}

/// A piece without a place would be left behind, a place without a piece would not be verified.
#[test]
fn an_initrd_has_a_place_and_a_place_has_an_initrd() {
    if skipped("an_initrd_has_a_place_and_a_place_has_an_initrd") {
        return;
    }
    let mut no_place = ordinary();
    no_place.layout.initrd = None;
    let no_content = Scenario {
        initrd: None,
        ..ordinary()
    };
    for bad in [no_place, no_content] {
        let result = bad.prepare();
        assert!(matches!(result, Err(StageError::Initrd)), "{result:?}");
    }
}

#[test]
fn a_timeline_outside_the_device_tree_is_refused() {
    if skipped("a_timeline_outside_the_device_tree_is_refused") {
        return;
    }
    let good = ordinary();
    let most = good.device_tree.size_bytes - timeline::SIZE_BYTES as u64;
    for (offset, accepted) in [
        (0, true),
        (most, true),
        (most + 1, false),
        (u64::MAX, false),
    ] {
        let result = Scenario {
            timeline_offset_bytes: offset,
            ..good.clone()
        }
        .prepare();
        assert_eq!(result.is_ok(), accepted, "at {offset:#x}: {result:?}");
        let said = matches!(result, Ok(_) | Err(StageError::Timeline { .. }));
        assert!(said, "at {offset:#x}: {result:?}");
    }
}

#[test]
fn devices_in_memory_are_refused() {
    if skipped("devices_in_memory_are_refused") {
        return;
    }
    let good = ordinary();
    let initrd = good.layout.initrd.clone().unwrap();
    for memory in [
        good.layout.stage.start(),
        good.layout.image.target.start(),
        good.layout.image.parts[0].address,
        initrd.target.start(),
        initrd.parts[1].address,
        good.layout.device_tree.target.start(),
    ] {
        let memory = memory.as_u64();
        for (base, overlaps) in [
            (memory, true),
            (memory + HUGE - 0x100, true),
            (memory - 0xff, true), // its last register only
            (0x900_0000, false),
        ] {
            let uart = Some(Uart::Pl011 { base });
            let result = Scenario {
                uart,
                redistributors: vec![],
                ..good.clone()
            }
            .prepare();
            let refused = matches!(result, Err(StageError::DeviceInMemory { .. }));
            assert_eq!(refused, overlaps, "UART at {base:#x}: {result:?}");
            assert_eq!(result.is_ok(), !overlaps);

            let record = abi::RecordPlace {
                start: base & !7,
                size_bytes: 0x1000,
            };
            let result = Scenario {
                uart: None,
                redistributors: vec![],
                record: Some(record),
                ..good.clone()
            }
            .prepare();
            let refused = matches!(result, Err(StageError::DeviceInMemory { .. }));
            assert_eq!(refused, overlaps, "record at {base:#x}: {result:?}");

            let redistributors = vec![Device {
                range: range(base, 0x2_0000),
                stride_bytes: None,
            }];
            let result = Scenario {
                uart: None,
                redistributors,
                ..good.clone()
            }
            .prepare();
            let refused = matches!(result, Err(StageError::DeviceInMemory { .. }));
            assert_eq!(refused, overlaps, "redistributors at {base:#x}: {result:?}");
        }
    }
}

#[test]
fn devices_that_cannot_be_are_refused() {
    if skipped("devices_that_cannot_be_are_refused") {
        return;
    }
    for base in [1 << 48, u64::MAX - 0xfff, u64::MAX] {
        let bad = Scenario {
            uart: Some(Uart::Pl011 { base }),
            ..ordinary()
        };
        let result = bad.prepare();
        let refused = matches!(result, Err(StageError::Tables(_) | StageError::Address(_)));
        assert!(refused, "UART at {base:#x}: {result:?}");
    }
    let region = Device {
        range: range(0x3000_0000, 0x2_0000),
        stride_bytes: None,
    };
    let bad = Scenario {
        redistributors: vec![region; abi::REDISTRIBUTORS_MAX + 1],
        ..ordinary()
    };
    assert!(matches!(bad.prepare(), Err(StageError::HandOff(_))));
}

/// 64 KiB tables, and pages so far apart that each needs one of its own: refused, unless whole blocks of
/// memory may be mapped.
#[test]
fn tables_that_do_not_fit_are_made_of_blocks_or_refused() {
    if skipped("tables_that_do_not_fit_are_made_of_blocks_or_refused") {
        return;
    }
    let mut far = ordinary();
    far.granule_bytes = 65536;
    assert!(far.prepare().is_ok());
    let mut initrd = far.layout.initrd.clone().unwrap();
    initrd.target = range(PLAIN_START, 40 * HUGE);
    let part = |index: u64| Owned {
        address: PhysAddr::new((100 + index) * GIB),
        size_bytes: HUGE,
        file: 0,
        offset_bytes: 2 * index * HUGE,
    };
    initrd.parts = (0..40).map(part).collect();
    far.initrd = Some(content(40 * HUGE));
    far.layout.initrd = Some(initrd);
    let result = far.prepare();
    let refused =
        matches!(result, Err(StageError::TooLarge { stage_bytes, .. }) if stage_bytes > HUGE);
    assert!(refused, "{result:?}");
    far.mappable.insert(range(100 * GIB, 40 * GIB));
    let summary = far.prepare().unwrap().summary;
    assert!(summary.stage_bytes <= HUGE, "{summary:?}");
    assert_eq!(
        summary.moved_bytes,
        far.contents()
            .iter()
            .map(|(.., content)| content.size_bytes)
            .sum::<u64>()
    );
    // The blocks stop where memory may not be mapped.
    far.mappable.subtract(range(120 * GIB + 4 * HUGE, HUGE));
    let more = far.prepare().unwrap().summary;
    assert_eq!(
        more.tables,
        summary.tables + 1,
        "one page in a block of its own table"
    );
}

fn any_number() -> impl proptest::strategy::Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..4 * HUGE,
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32, 0..1000_u64).prop_map(|(bit, less)| (1_u64 << bit).saturating_sub(less)),
        (0..64_u64).prop_map(|page| GIB + page * HUGE),
        (0..64_u64).prop_map(|page| (page * HUGE).wrapping_neg()),
        Just(HUGE),
    ]
}

fn any_place() -> impl proptest::strategy::Strategy<Value = Place> {
    let parts = proptest::collection::vec((any_number(), any_number(), any_number()), 0..4);
    (any_number(), any_number(), parts, any_number()).prop_map(|(start, size, parts, offset)| {
        let owned = |(address, size_bytes, offset_bytes)| Owned {
            address: PhysAddr::new(address),
            size_bytes,
            file: 0,
            offset_bytes,
        };
        let target = PhysRange::from_size(PhysAddr::new(start), size).unwrap_or_default();
        Place {
            target,
            parts: parts.into_iter().map(owned).collect(),
            room: Vec::new(),
            offset_bytes: offset,
        }
    })
}

proptest! {
    #![proptest_config(config(2000))]

    /// A layout is stored between load and exec, so it comes from outside: any of its numbers, and any
    /// number in the input, may be anything.
    #[test]
    fn no_input_makes_it_panic(
        places in (any_place(), any_place(), any_place()),
        changed in any::<[bool; 13]>(),
        numbers in proptest::collection::vec(any_number(), 13),
        granule in proptest::sample::select(GRANULES.to_vec()),
    ) {
        if skipped("no_input_makes_it_panic") {
            return Ok(());
        }
        let mut scenario = ordinary();
        scenario.granule_bytes = granule;
        let mut number = changed.iter().zip(&numbers).map(|(changed, number)| changed.then_some(*number));
        let mut put = |slot: &mut u64| {
            if let Some(Some(number)) = number.next() {
                *slot = number;
            }
        };
        put(&mut scenario.image.size_bytes);
        put(&mut scenario.image_size_bytes);
        put(&mut scenario.device_tree.size_bytes);
        put(&mut scenario.timeline_offset_bytes);
        put(&mut scenario.layout.unit_bytes);
        let (mut stage, mut room) = (scenario.layout.stage.start().as_u64(), HUGE);
        put(&mut stage);
        put(&mut room);
        scenario.layout.stage = PhysRange::from_size(PhysAddr::new(stage), room).unwrap_or_default();
        let (mut start, mut size) = (0x3000_0000, 0x2_0000);
        put(&mut start);
        put(&mut size);
        let range = PhysRange::from_size(PhysAddr::new(start), size).unwrap_or_default();
        scenario.redistributors = vec![Device { range, stride_bytes: Some(size) }];
        let mut base = 0x900_0000;
        put(&mut base);
        scenario.uart = Some(Uart::Pl011 { base });
        if changed[9] {
            scenario.layout.image = places.0;
        }
        if changed[10] {
            scenario.layout.initrd = Some(places.1);
        }
        if changed[11] {
            scenario.layout.device_tree = places.2;
        }
        let _ = scenario.prepare();
    }
}
