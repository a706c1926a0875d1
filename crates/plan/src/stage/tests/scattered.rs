//! Payloads whose pages lie all over a machine: how large the stage becomes, and what it maps then.

use super::tables::{READ, READ_WRITE, machine, rights};
use super::walker::El;
use super::*;

const TIB: u64 = 1 << 40;
const KIB: u64 = 1 << 10;
/// Memory of the machines.
const RAM_BYTES: [u64; 4] = [4 * GIB, 64 * GIB, TIB, 16 * TIB];
const IMAGE_BYTES: u64 = 32 * MIB + 123;
const TREE_BYTES: u64 = 20_000;

/// System RAM: 2 GiB below 4 GiB, the rest in nodes of at most 1 TiB, a hole for firmware in each.
fn ram(ram_bytes: u64) -> PhysRanges {
    let mut ram: PhysRanges = range(2 * GIB, 2 * GIB).into();
    ram.subtract(range(4 * GIB - 0x413_0000, 0x41_0000));
    let mut left_bytes = ram_bytes - 2 * GIB;
    let mut start = 34 * GIB;
    let mut node = 0;
    while left_bytes > 0 {
        let size_bytes = left_bytes.min(TIB);
        ram.insert(range(start, size_bytes));
        ram.subtract(range(start + size_bytes - 0x123_0000, 0x21_0000));
        left_bytes -= size_bytes;
        node += 1;
        start = node * 4 * TIB;
    }
    ram
}

/// `count` pages at equal distances over all memory, but for a stretch at its end that is left for what is
/// moved there.
fn spread(ram: &PhysRanges, page_bytes: u64, count: u64, left_bytes: u64) -> Vec<Owned> {
    let mut free = ram.aligned_inward(HUGE);
    let end = free.span().unwrap().end().as_u64();
    free.subtract(range(end - left_bytes, left_bytes));
    let pages = free.size_bytes() / page_bytes;
    let step = pages / count;
    let mut stretches = free.iter();
    let mut stretch = *stretches.next().unwrap();
    let mut before = 0;
    (0..count)
        .map(|index| {
            while index * step - before >= stretch.size_bytes() / page_bytes {
                before += stretch.size_bytes() / page_bytes;
                stretch = *stretches.next().unwrap();
            }
            Owned {
                address: PhysAddr::new(
                    stretch.start().as_u64() + (index * step - before) * page_bytes,
                ),
                size_bytes: page_bytes,
                file: 0,
                offset_bytes: index * page_bytes,
            }
        })
        .collect()
}

fn requirements(payload_bytes: u64, stage_bytes: u64) -> Requirements {
    Requirements {
        image_file_bytes: IMAGE_BYTES,
        image_size_bytes: IMAGE_BYTES + 4 * MIB,
        text_offset_bytes: 0,
        initrd_bytes: payload_bytes - IMAGE_BYTES,
        device_tree_bytes: TREE_BYTES,
        stage_bytes,
    }
}

/// Pages that hold every piece.
fn page_count(requirements: &Requirements, page_bytes: u64) -> u64 {
    [
        requirements.image_file_bytes,
        requirements.initrd_bytes,
        TREE_BYTES,
    ]
    .map(|bytes| bytes.div_ceil(page_bytes))
    .iter()
    .sum()
}

fn with_layout(
    layout: Layout,
    ram: &PhysRanges,
    granule_bytes: u64,
    requirements: &Requirements,
) -> Scenario {
    Scenario {
        layout,
        granule_bytes,
        image: content(requirements.image_file_bytes),
        image_size_bytes: requirements.image_size_bytes,
        initrd: Some(content(requirements.initrd_bytes)),
        device_tree: content(TREE_BYTES),
        timeline_offset_bytes: 4096,
        uart: Some(Uart::Pl011 { base: 0x900_0000 }),
        redistributors: vec![Device {
            range: range(0x80a_0000, 123 * 0x2_0000),
            stride_bytes: None,
        }],
        record: None,
        mappable: ram.clone(),
    }
}

/// A payload in pages all over `ram`, all of it to be moved.
fn scattered(
    ram: &PhysRanges,
    granule_bytes: u64,
    page_bytes: u64,
    payload_bytes: u64,
    stage_bytes: u64,
) -> Scenario {
    let requirements = requirements(payload_bytes, stage_bytes);
    let count = page_count(&requirements, page_bytes);
    let owned = spread(ram, page_bytes, count, payload_bytes + 256 * MIB);
    let strategy = crate::Strategy::Relocate;
    let layout = layout::choose(&owned, page_bytes, ram, &requirements, strategy).unwrap();
    with_layout(layout, ram, granule_bytes, &requirements)
}

/// The first room, in MiB, that the stage fits into, of those that the command asks for. The scenario has the
/// largest, so that the stage starts at the same place with each.
fn smallest_room_mib(mut scenario: Scenario) -> Option<(u64, Scenario, Stage)> {
    let start = scenario.layout.stage.start().as_u64();
    let mut room_bytes = ROOM_FIRST_BYTES;
    while room_bytes <= ROOM_MAX_BYTES {
        scenario.layout.stage = range(start, room_bytes);
        match scenario.prepare() {
            Ok(stage) => return Some((room_bytes / MIB, scenario, stage)),
            Err(StageError::TooLarge { stage_bytes, .. }) => assert!(stage_bytes > room_bytes),
            Err(error) => panic!("{room_bytes} bytes of room: {error}"),
        }
        room_bytes *= 2;
    }
    None
}

/// All memory lies above 2 GiB, the devices below.
fn leaf_is_device(at: u64) -> bool {
    at < 2 * GIB
}

/// What the tables of both regimes map, for a sample of the moves and for all of their leaves.
fn check(scenario: &Scenario, stage: &Stage) {
    let hand_off = hand_off(stage);
    let mair = hand_off.header.mair;
    let targets: PhysRanges = scenario.layout.places().map(|place| place.target).collect();
    let moves: Vec<Move> = hand_off.moves().collect();
    let moved_bytes: u64 = moves.iter().map(|copy| copy.size_bytes).sum();
    assert_eq!(moved_bytes, stage.summary.moved_bytes);
    for el in [El::El1, El::El2] {
        let machine = machine(stage, el);
        let found = |at: u64| {
            let leaf = machine.walk(at);
            rights(
                at,
                &leaf.unwrap_or_else(|_| panic!("{at:#x} is not mapped")),
                mair,
            )
        };
        let step = moves.len().div_ceil(500).max(1);
        for copy in moves.iter().step_by(step).chain(moves.last()) {
            let last = copy.size_bytes - 1;
            for inside in [0, copy.size_bytes / 3, last] {
                assert_eq!(found(copy.target + inside), READ_WRITE, "{copy:x?}");
                // What is moved from is only written where it is moved to as well.
                let at = copy.source + inside;
                let rights = found(at);
                let is_target = targets.contains(PhysAddr::new(at));
                assert!(
                    rights == READ || is_target && rights == READ_WRITE,
                    "{copy:x?}: {rights:?}"
                );
            }
        }
        // All of every piece is verified where it belongs.
        for (_, place, content) in scenario.contents() {
            let at = place.start().as_u64();
            for inside in (0..content.size_bytes).step_by(5 << 20) {
                found(at + inside);
            }
            found(at + content.size_bytes - 1);
        }
        let (leaves, tables) = machine.leaves().unwrap();
        assert_eq!(tables, stage.summary.tables);
        let mut writable_bytes = 0;
        for (at, leaf) in &leaves {
            let rights = rights(*at, leaf, mair);
            let memory = range(*at, leaf.leaf_bytes);
            if leaf_is_device(*at) {
                continue;
            }
            assert!(
                scenario.mappable.contains_range(memory),
                "{memory} is not memory"
            );
            if rights == READ_WRITE {
                writable_bytes += leaf.leaf_bytes;
                let allowed = targets.union(&scenario.layout.stage.into());
                assert!(allowed.contains_range(memory), "{memory} is writable");
            }
        }
        assert!(writable_bytes >= moved_bytes);
    }
}

/// Granule and page, KiB; payload, MB; and for each of [`RAM_BYTES`], the room that the stage takes, MiB.
const SPREAD: [(u64, u64, u64, [u64; 4]); 8] = [
    (4, 2048, 380, [2, 2, 2, 2]),
    (4, 2048, 1000, [2, 2, 2, 2]),
    (16, 2048, 380, [2, 2, 2, 8]),
    (16, 2048, 1000, [2, 2, 2, 16]),
    (64, 2048, 380, [2, 2, 2, 4]),
    (64, 2048, 1000, [2, 2, 2, 4]),
    (4, 64, 380, [2, 2, 2, 2]),
    (4, 64, 1000, [2, 2, 2, 2]),
];

#[test]
fn pages_all_over_memory_have_a_stage() {
    if skipped("pages_all_over_memory_have_a_stage") {
        return;
    }
    let mut all = Vec::new();
    for (granule_kib, page_kib, payload_mb, _) in SPREAD {
        let rooms = RAM_BYTES.map(|ram_bytes| {
            let ram = ram(ram_bytes);
            let scenario = scattered(
                &ram,
                granule_kib * KIB,
                page_kib * KIB,
                payload_mb * 1_000_000,
                ROOM_MAX_BYTES,
            );
            let (room, scenario, stage) = smallest_room_mib(scenario).unwrap();
            assert_eq!(stage.summary.in_place_bytes, 0);
            check(&scenario, &stage);
            room
        });
        all.push((granule_kib, page_kib, payload_mb, rooms));
    }
    assert_eq!(all, SPREAD);
}

/// Every second page ours: half of each piece is in place, and what is written changes from page to page.
#[test]
fn every_second_page_has_a_stage() {
    if skipped("every_second_page_has_a_stage") {
        return;
    }
    for (granule_kib, page_kib) in [(4, 2048), (16, 2048), (64, 2048), (4, 64)] {
        let page_bytes = page_kib * KIB;
        for payload_mb in [380, 1000] {
            let ram = ram(64 * GIB);
            let requirements = requirements(payload_mb * 1_000_000, ROOM_MAX_BYTES);
            let owned: Vec<Owned> = (0..page_count(&requirements, page_bytes))
                .map(|index| Owned {
                    address: PhysAddr::new(36 * GIB + 2 * index * page_bytes),
                    size_bytes: page_bytes,
                    file: 0,
                    offset_bytes: index * page_bytes,
                })
                .collect();
            for strategy in [crate::Strategy::Auto, crate::Strategy::Relocate] {
                let layout =
                    layout::choose(&owned, page_bytes, &ram, &requirements, strategy).unwrap();
                let scenario = with_layout(layout, &ram, granule_kib * KIB, &requirements);
                let (room, scenario, stage) = smallest_room_mib(scenario).unwrap();
                check(&scenario, &stage);
                assert_eq!(
                    room, 2,
                    "{strategy:?}, {granule_kib}K, pages {page_kib}K, {payload_mb} MB"
                );
                let in_place_bytes = stage.summary.in_place_bytes;
                match strategy {
                    crate::Strategy::Auto => assert!(in_place_bytes > payload_mb * 400_000),
                    _ => assert_eq!(in_place_bytes, 0),
                }
            }
        }
    }
}

/// As many moves as a hand-off holds, and one more: which no larger stage helps.
#[test]
fn too_many_moves_are_refused_as_such() {
    if skipped("too_many_moves_are_refused_as_such") {
        return;
    }
    let ram = ram(64 * GIB);
    let page_bytes = 64 * KIB;
    let image_pages = IMAGE_BYTES.div_ceil(page_bytes);
    for over in [0, 1] {
        let initrd_pages = MOVES_MAX as u64 + over - image_pages - 1;
        let scenario = scattered(
            &ram,
            4 * KIB,
            page_bytes,
            IMAGE_BYTES + initrd_pages * page_bytes,
            ROOM_FIRST_BYTES,
        );
        match (over, scenario.prepare()) {
            (0, Ok(stage)) => {
                assert_eq!(stage.summary.moves, MOVES_MAX as u64);
                check(&scenario, &stage);
            }
            (1, Err(StageError::TooManyMoves(moves))) => assert_eq!(moves, MOVES_MAX + 1),
            (_, result) => panic!("{over} too many: {:?}", result.map(|stage| stage.summary)),
        }
    }
}

/// With 64 KiB tables, the tables for a few thousand pages each in its own are more than are ever built: that
/// must not keep blocks from being tried, which need a handful.
#[test]
fn more_tables_than_can_be_built_are_made_of_blocks() {
    if skipped("more_tables_than_can_be_built_are_made_of_blocks") {
        return;
    }
    let ram = ram(TIB);
    let scenario = scattered(&ram, 64 * KIB, HUGE, 3_000_000_000, ROOM_MAX_BYTES);
    let pages = scenario.layout.owned().count() as u64;
    assert!(pages * scenario.granule_bytes > kleap_pagetable::MAX_TABLES_BYTES);
    let (room, scenario, stage) = smallest_room_mib(scenario).unwrap();
    assert_eq!(room, 2);
    assert!(stage.summary.tables <= 16, "{:?}", stage.summary);
    check(&scenario, &stage);
}
