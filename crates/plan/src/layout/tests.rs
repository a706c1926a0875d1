//! `choose` against a model that knows units, not ranges.
//!
//! The model is slow and obvious: sets of addresses, every start tried, every multiple of 1 GiB tried as
//! the window's start. It shares nothing with the code but the types.

use super::{Strategy, *};
use proptest::prelude::*;
use proptest::strategy::{Strategy as Generator, ValueTree};
use proptest::test_runner::FileFailurePersistence;
use std::collections::{BTreeMap, BTreeSet};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HUGE: u64 = 2 * MIB;
const LIMIT: u64 = 1 << 48;

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// Pages at these addresses; the offset in the file has nothing to do with the address.
fn pages_of(addresses: &[u64], page_size_bytes: u64, file: usize) -> Vec<Owned> {
    let owned = |(index, &address): (usize, &u64)| Owned {
        address: PhysAddr::new(address),
        size_bytes: page_size_bytes,
        file,
        offset_bytes: (index as u64 * 7919) % 10_007 * page_size_bytes,
    };
    addresses.iter().enumerate().map(owned).collect()
}

fn pages(addresses: &[u64]) -> Vec<Owned> {
    pages_of(addresses, HUGE, 0)
}

fn ram(ranges: &[(u64, u64)]) -> PhysRanges {
    ranges
        .iter()
        .map(|&(start, size_bytes)| range(start, size_bytes))
        .collect()
}

/// Requirements in whole MiB, without the oddities.
fn simple(image_mib: u64, initrd_mib: u64) -> Requirements {
    Requirements {
        image_file_bytes: image_mib * MIB,
        image_size_bytes: image_mib * MIB,
        text_offset_bytes: 0,
        initrd_bytes: initrd_mib * MIB,
        device_tree_bytes: MIB,
        stage_bytes: 512 << 10,
    }
}

/// The boot protocol's window, tried from every multiple of 1 GiB that could do.
fn share_a_window(first: PhysRange, second: PhysRange) -> bool {
    let start = first.start().as_u64().min(second.start().as_u64());
    let end = first.end().as_u64().max(second.end().as_u64());
    let highest = start / GIB;
    (highest.saturating_sub(40)..=highest).any(|gib| end <= gib * GIB + 32 * GIB)
}

#[derive(Debug, Clone)]
struct Case {
    unit_bytes: u64,
    owned: Vec<Owned>,
    plain_ram: PhysRanges,
    requirements: Requirements,
    strategy: Strategy,
}

impl Case {
    fn choose(&self) -> Result<Layout, LayoutError> {
        choose(
            &self.owned,
            self.unit_bytes,
            &self.plain_ram,
            &self.requirements,
            self.strategy,
        )
    }

    fn simple(owned: Vec<Owned>, requirements: Requirements, strategy: Strategy) -> Self {
        Self {
            unit_bytes: HUGE,
            owned,
            plain_ram: PhysRanges::new(),
            requirements,
            strategy,
        }
    }
}

/// Every unit of memory of ours: where it is, and where in which file.
fn units(owned: impl IntoIterator<Item = Owned>, unit_bytes: u64) -> BTreeMap<u64, (usize, u64)> {
    let mut units = BTreeMap::new();
    for part in owned {
        for at in (0..part.size_bytes).step_by(usize::try_from(unit_bytes).unwrap()) {
            let address = part.address.as_u64() + at;
            let before = units.insert(address, (part.file, part.offset_bytes + at));
            assert_eq!(before, None, "{address:#x} is used twice");
        }
    }
    units
}

/// A place, and whether it keeps every promise that is made about a single one.
fn check_place(case: &Case, place: &Place, content_bytes: u64, room_bytes: u64, offset_bytes: u64) {
    let (start, end) = (place.target.start().as_u64(), place.target.end().as_u64());
    assert_eq!(start % HUGE, 0, "target not at a multiple of 2 MiB");
    assert!(
        end - start >= (offset_bytes + room_bytes).max(1),
        "target too small"
    );
    assert!(end <= LIMIT, "target above 48 bits");
    assert_eq!(place.offset_bytes, offset_bytes);
    assert_eq!(place.start().as_u64(), start + offset_bytes);
    let held_bytes = (offset_bytes + content_bytes)
        .max(1)
        .next_multiple_of(case.unit_bytes);
    let wanted_bytes = if case.strategy == Strategy::Kernel {
        0
    } else {
        held_bytes
    };
    assert_eq!(
        place.held_bytes(),
        wanted_bytes,
        "not exactly what is needed"
    );
    match case.strategy {
        Strategy::InPlace | Strategy::Kernel => assert!(place.is_in_place()),
        Strategy::Relocate => {
            assert!(
                place
                    .parts_with_targets()
                    .all(|(part, target)| part.address != target)
            );
            for owned in &case.owned {
                assert!(
                    !owned.range().overlaps(place.target),
                    "{owned:?} is in a target"
                );
            }
        }
        Strategy::Auto => {}
    }
    // What is ours and lies in the target's held part holds what belongs there.
    if case.strategy == Strategy::Auto {
        let here: BTreeSet<u64> = units(place.parts.iter().copied(), case.unit_bytes)
            .into_keys()
            .collect();
        for address in units(case.owned.iter().copied(), case.unit_bytes).into_keys() {
            if address >= start && address < start + held_bytes {
                assert!(
                    here.contains(&address),
                    "{address:#x} is ours, in place, and not used"
                );
            }
        }
        for (part, target) in place.parts_with_targets() {
            if part.address != target {
                let held = range(start, held_bytes);
                assert!(
                    !part.range().overlaps(held),
                    "{part:?} is at another byte's place"
                );
            }
        }
    }
}

/// Everything that is promised about a layout.
fn check_layout(case: &Case, layout: &Layout) {
    let r = &case.requirements;
    assert_eq!(layout.unit_bytes, case.unit_bytes);
    check_place(
        case,
        &layout.image,
        r.image_file_bytes,
        r.image_size_bytes,
        r.text_offset_bytes,
    );
    check_place(
        case,
        &layout.device_tree,
        r.device_tree_bytes,
        r.device_tree_bytes,
        0,
    );
    assert_eq!(layout.initrd.is_some(), r.initrd_bytes != 0);
    if let Some(place) = &layout.initrd {
        check_place(case, place, r.initrd_bytes, r.initrd_bytes, 0);
        assert!(
            share_a_window(layout.image.target, place.target),
            "not within 32 GiB"
        );
    }
    assert!(layout.stage.size_bytes() >= r.stage_bytes);
    assert!(layout.stage.start().is_aligned(HUGE) && layout.stage.end().as_u64() <= LIMIT);

    // All of a target is ours, and kept, or plain.
    let kept: PhysRanges = layout.owned().map(|part| part.range()).collect();
    for place in layout.places() {
        let foreign = PhysRanges::from(place.target).difference(&kept);
        assert!(
            foreign
                .iter()
                .all(|range| case.plain_ram.contains_range(*range)),
            "{place:?}"
        );
        assert!(
            place
                .room
                .iter()
                .all(|part| place.target.contains_range(part.range()))
        );
    }
    // Nothing has moved, so there is nothing to repair.
    let find = |file, offset_bytes: u64| {
        let page = case.owned.iter().find(|page| {
            page.file == file
                && (page.offset_bytes..page.offset_bytes + page.size_bytes).contains(&offset_bytes)
        });
        page.and_then(|page| page.address.checked_add(offset_bytes - page.offset_bytes))
            .ok_or(LayoutError::Pages("no such page".into()))
    };
    if case.unit_bytes >= 64 * KIB && case.owned.iter().all(|page| page.size_bytes < GIB) {
        assert_eq!(layout.repaired(&case.plain_ram, find).as_ref(), Ok(layout));
    }

    // Only memory that was given, each byte at its own place in its file, each once.
    let given = units(case.owned.iter().copied(), case.unit_bytes);
    for (address, place) in units(layout.owned(), case.unit_bytes) {
        assert!(address < LIMIT);
        assert_eq!(
            given.get(&address),
            Some(&place),
            "{address:#x} is not ours"
        );
    }
    // Targets and stage are ours or plain, and disjoint.
    let ours: PhysRanges = case.owned.iter().map(Owned::range).collect();
    let usable = case.plain_ram.union(&ours);
    let mut used: Vec<PhysRange> = layout.places().map(|place| place.target).collect();
    used.push(layout.stage);
    used.extend(layout.spare);
    for (index, first) in used.iter().enumerate() {
        assert!(usable.contains_range(*first), "{first} may not be used");
        for second in &used[index + 1..] {
            assert!(!first.overlaps(*second), "{first} and {second} overlap");
        }
    }
    // Nothing that is held lies in the stage or in the spare unit.
    for part in layout.places().flat_map(|place| &place.parts) {
        assert!(!part.range().overlaps(layout.stage));
        assert!(
            layout
                .spare
                .is_none_or(|spare| !part.range().overlaps(spare))
        );
    }
    for part in &layout.stage_parts {
        assert!(layout.stage.contains_range(part.range()));
    }
    if let Some(spare) = layout.spare {
        assert_eq!(spare.size_bytes(), case.unit_bytes);
        assert!(case.plain_ram.contains_range(spare));
    }
}

/// The most bytes of a piece that any place for it would have in place: every start is tried.
fn most_in_place(case: &Case, held_bytes: u64, room_bytes: u64) -> Option<u64> {
    let ours: PhysRanges = case.owned.iter().map(Owned::range).collect();
    let mut usable = case.plain_ram.union(&ours);
    usable = usable.within(range(0, LIMIT));
    let mut most = None;
    for room in &usable {
        let mut start = room.start().as_u64().next_multiple_of(HUGE);
        while start + room_bytes <= room.end().as_u64() {
            let in_place = ours.within(range(start, held_bytes)).size_bytes();
            most = most.max(Some(in_place));
            start += HUGE;
        }
    }
    most
}

/// Where memory may lie: bottom, around the ends of windows, around the limit of 48 bits.
fn any_cluster_start() -> impl Generator<Value = u64> {
    let bases = [
        0,
        GIB,
        3 * GIB,
        31 * GIB,
        32 * GIB,
        33 * GIB,
        64 * GIB,
        LIMIT - 4 * GIB,
        LIMIT - GIB,
    ];
    (proptest::sample::select(bases.to_vec()), 0..64_u64)
        .prop_map(|(base, huge_pages)| base + huge_pages * HUGE)
}

/// A stretch of memory of which some pages are ours, and some is plain RAM. Pages of several sizes: large
/// ones first, smaller ones between them.
fn any_cluster() -> impl Generator<Value = (Vec<(u64, u64)>, Vec<PhysRange>)> {
    let bits = || {
        prop_oneof![
            any::<u32>(),
            any::<(u32, u32)>().prop_map(|(a, b)| a | b),
            Just(u32::MAX),
            Just(0)
        ]
    };
    let sizes = proptest::sample::select(vec![64 * KIB, HUGE, HUGE, HUGE, 4 * HUGE]);
    let holes = proptest::collection::vec((0..96_u64, 1..8_u64), 0..4);
    (
        any_cluster_start(),
        bits(),
        sizes,
        0..96_u64,
        1..96_u64,
        holes,
    )
        .prop_map(move |(start, bits, size, ram_start, ram_count, holes)| {
            let start = start.next_multiple_of(size.max(HUGE));
            let pages = (0..32_u64)
                .filter(|page| bits >> page & 1 == 1)
                .map(|page| (start + page * size, size))
                .collect();
            let mut set = ram(&[(start + ram_start * MIB, ram_count * MIB)]);
            for (at, count) in holes {
                set.subtract(range(start + at * MIB, count * MIB));
            }
            (pages, set.iter().copied().collect())
        })
}

fn any_bytes(most_pages: u64) -> impl Generator<Value = u64> {
    prop_oneof![
        1..=most_pages * HUGE,
        (1..=most_pages).prop_map(|pages| pages * HUGE),
        (1..=most_pages).prop_map(|pages| pages * HUGE + 1),
    ]
}

fn any_requirements() -> impl Generator<Value = Requirements> {
    let text_offset = prop_oneof![3 => Just(0), 2 => Just(0x8_0000), 1 => 0..HUGE];
    let initrd = prop_oneof![1 => Just(0), 4 => any_bytes(12)];
    let image = (any_bytes(8), 0..4 * MIB, text_offset);
    (image, initrd, 1..=HUGE, 1..=2 * HUGE).prop_map(
        |(image, initrd_bytes, device_tree_bytes, stage_bytes)| Requirements {
            image_file_bytes: image.0,
            image_size_bytes: image.0 + image.1,
            text_offset_bytes: image.2,
            initrd_bytes,
            device_tree_bytes,
            stage_bytes,
        },
    )
}

fn any_case() -> impl Generator<Value = Case> {
    let strategies = [
        Strategy::Auto,
        Strategy::Auto,
        Strategy::InPlace,
        Strategy::Relocate,
        Strategy::Kernel,
    ];
    let strategy = proptest::sample::select(strategies.to_vec());
    let clusters = proptest::collection::vec(any_cluster(), 1..4);
    (strategy, clusters, any_requirements()).prop_flat_map(|(strategy, clusters, requirements)| {
        let mut taken = PhysRanges::new();
        let mut by_size: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut plain_ram = PhysRanges::new();
        for (pages, ranges) in clusters {
            for (address, size_bytes) in pages {
                let page = range(address, size_bytes);
                if !taken.overlaps(page) {
                    taken.insert(page);
                    by_size.entry(size_bytes).or_default().push(address);
                }
            }
            plain_ram.extend(ranges);
        }
        let unit_bytes = by_size.keys().copied().min().unwrap_or(HUGE).min(HUGE);
        let owned: Vec<Owned> = by_size
            .iter()
            .enumerate()
            .flat_map(|(file, (&size_bytes, addresses))| pages_of(addresses, size_bytes, file))
            .collect();
        Just(owned).prop_shuffle().prop_map(move |owned| Case {
            unit_bytes,
            owned,
            plain_ram: plain_ram.clone(),
            requirements,
            strategy,
        })
    })
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn every_layout_keeps_its_promises(case in any_case()) {
        if let Ok(layout) = case.choose() {
            check_layout(&case, &layout);
        }
    }

    /// No place for the Image would have had more of it in place.
    #[test]
    fn the_best_place_is_found(case in any_case()) {
        let mut case = Case { strategy: Strategy::Auto, unit_bytes: HUGE, ..case };
        case.requirements.initrd_bytes = 0;
        case.owned.retain(|page| page.size_bytes >= HUGE);
        let Requirements { text_offset_bytes, image_file_bytes, image_size_bytes, .. } = case.requirements;
        let held_bytes = (text_offset_bytes + image_file_bytes).next_multiple_of(HUGE);
        let room_bytes = (text_offset_bytes + image_size_bytes).next_multiple_of(HUGE);
        let most = most_in_place(&case, held_bytes, room_bytes);
        match case.choose() {
            Ok(layout) => {
                let in_place: u64 = layout
                    .image
                    .parts_with_targets()
                    .filter(|(part, target)| part.address == *target)
                    .map(|(part, _)| part.size_bytes)
                    .sum();
                prop_assert_eq!(Some(in_place), most);
            }
            Err(LayoutError::NoTarget { piece: "Image", .. }) => prop_assert_eq!(most, None),
            Err(_) => {}
        }
    }

    /// A larger choice never costs what was possible without it.
    #[test]
    fn auto_does_whatever_in_place_does(case in any_case()) {
        let in_place = Case { strategy: Strategy::InPlace, ..case.clone() }.choose();
        if let Ok(layout) = in_place {
            prop_assert!(layout.is_in_place());
            let auto = Case { strategy: Strategy::Auto, ..case }.choose();
            prop_assert!(auto.is_ok_and(|layout| layout.is_in_place()));
        }
    }

    /// The layout depends on the pages, not on the order in which they are listed.
    #[test]
    fn the_order_of_the_pages_does_not_matter(case in any_case()) {
        let mut sorted = case.clone();
        sorted.owned.sort_unstable();
        prop_assert_eq!(case.choose(), sorted.choose());
    }

    /// Pages migrate: some of them, to anywhere that is plain, also into targets and onto the stage, and each
    /// other's places. What is held stays what it was, and what is said stays true.
    #[test]
    fn a_repaired_layout_keeps_its_promises(case in any_case(), seed in any::<u64>(), share in 0..=4_u64) {
        prop_assume!(!matches!(case.strategy, Strategy::Kernel));
        let Ok(layout) = case.choose() else { return Ok(()) };
        let mut state = seed | 1;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        // Whole pages move, each to a free place of its size, or to the place of one that has moved away.
        let mut now: Vec<Owned> = case.owned.clone();
        let plain: Vec<u64> = case
            .plain_ram
            .iter()
            .filter_map(|range| range.align_inward(HUGE))
            .flat_map(|range| (range.start().as_u64()..range.end().as_u64()).step_by(2 << 20))
            .collect();
        for index in 0..now.len() {
            if now[index].size_bytes != HUGE || random(4) >= share {
                continue;
            }
            let other = usize::try_from(random(now.len() as u64)).unwrap();
            if random(2) == 0 && now[other].size_bytes == HUGE {
                let (a, b) = (now[index].address, now[other].address);
                now[index].address = b;
                now[other].address = a;
            } else if !plain.is_empty() {
                let to = range(plain[usize::try_from(random(plain.len() as u64)).unwrap()], HUGE);
                if now.iter().all(|page| !page.range().overlaps(to)) && to.end() <= ADDRESS_LIMIT {
                    now[index].address = to.start();
                }
            }
        }
        let find = |file, offset_bytes: u64| {
            let page = now.iter().find(|page| {
                page.file == file && (page.offset_bytes..page.offset_bytes + page.size_bytes).contains(&offset_bytes)
            });
            page.and_then(|page| page.address.checked_add(offset_bytes - page.offset_bytes))
                .ok_or(LayoutError::Pages("no such page".into()))
        };
        let mut plain_now = case.plain_ram.clone();
        // Where our pages were is the system's again.
        plain_now.extend(case.owned.iter().map(Owned::range));
        match layout.repaired(&plain_now, find) {
            Ok(repaired) => {
                for (before, after) in layout.places().zip(repaired.places()) {
                    prop_assert_eq!(before.target, after.target);
                    prop_assert_eq!(before.held_bytes(), after.held_bytes());
                    prop_assert!(!after.target.overlaps(repaired.stage));
                    for part in &after.parts {
                        prop_assert!(!part.range().overlaps(repaired.stage));
                    }
                }
                // The same bytes of the same files, in the same order.
                let order = |layout: &Layout| -> Vec<(usize, u64)> {
                    layout
                        .places()
                        .flat_map(|place| &place.parts)
                        .flat_map(|part| {
                            (0..part.size_bytes / case.unit_bytes)
                                .map(|unit| (part.file, part.offset_bytes + unit * case.unit_bytes))
                        })
                        .collect()
                };
                prop_assert_eq!(order(&layout), order(&repaired));
                let expected: BTreeMap<u64, (usize, u64)> = units(now.iter().copied(), case.unit_bytes);
                for (address, place) in units(repaired.owned(), case.unit_bytes) {
                    prop_assert_eq!(expected.get(&address), Some(&place));
                }
                if let Some(spare) = repaired.spare {
                    prop_assert!(!repaired.stage.overlaps(spare));
                    prop_assert!(repaired.places().all(|place| !place.target.overlaps(spare)));
                    prop_assert!(repaired.places().flat_map(|place| &place.parts).all(|part| !part.range().overlaps(spare)));
                }
            }
            Err(LayoutError::NoTarget { piece: "relocator", .. }) => {}
            Err(error) => return Err(TestCaseError::fail(format!("{error}"))),
        }
    }
}

/// The properties above say nothing if the cases never get that far: among the generated ones are
/// enough of each outcome.
#[test]
fn the_generated_cases_reach_every_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..3000 {
        let case = any_case().new_tree(&mut runner).unwrap().current();
        let partly = |place: &Place| {
            let mut parts = place.parts_with_targets();
            parts.any(|(part, target)| part.address == target) && !place.is_in_place()
        };
        let outcome = match case.choose() {
            Ok(_) if case.strategy == Strategy::Kernel => "by the kernel",
            Ok(layout) if layout.is_in_place() => "in place",
            Ok(layout) if layout.places().any(partly) => "a piece partly in place",
            Ok(layout) if layout.places().any(Place::is_in_place) => "mixed",
            Ok(_) => "moved",
            Err(LayoutError::NoRun { .. }) => "no run",
            Err(LayoutError::NoTarget { .. }) => "no target",
            Err(LayoutError::TooFewPages { .. }) => "too few pages",
            Err(error) => panic!("{error}: {case:?}"),
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    let enough = outcomes.values().filter(|&&count| count >= 20).count();
    assert_eq!(enough, 8, "{outcomes:?}");
}

fn any_address() -> impl Generator<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..8_u64).prop_map(|pages| pages * HUGE),
        (0..8_u64).prop_map(|pages| (pages * HUGE).wrapping_neg()),
        (0..16_u64).prop_map(|pages| LIMIT - 8 * HUGE + pages * HUGE),
        (0..8_u64).prop_map(|pages| pages * GIB),
        (0..64_u32).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
    ]
}

fn any_size() -> impl Generator<Value = u64> {
    prop_oneof![0..64 * MIB, any_address()]
}

proptest! {
    #![proptest_config(config(3000))]

    /// Nothing from outside makes it panic, and what it returns still keeps the promises.
    #[test]
    fn no_input_makes_it_panic(
        addresses in proptest::collection::vec(any_address(), 0..12),
        page_size_bytes in prop_oneof![
            proptest::sample::select(&[HUGE, 32 * MIB, GIB, 64 << 10, 4096, 0, 1, 3, 1 << 63][..]),
            any_address()
        ],
        unit_bytes in proptest::sample::select(&[HUGE, HUGE, 64 << 10, 4096, 0, 3, 1 << 63][..]),
        ram_ranges in proptest::collection::vec((any_address(), any_size()), 0..4),
        sizes in proptest::collection::vec(any_size(), 6),
        strategy in proptest::sample::select(
            &[Strategy::Auto, Strategy::InPlace, Strategy::Relocate, Strategy::Kernel][..]
        ),
    ) {
        let plain_ram = ram_ranges
            .iter()
            .filter_map(|&(start, size)| PhysRange::from_size(PhysAddr::new(start), size).ok())
            .collect();
        let requirements = Requirements {
            image_file_bytes: sizes[0],
            image_size_bytes: sizes[1],
            text_offset_bytes: sizes[2],
            initrd_bytes: sizes[3],
            device_tree_bytes: sizes[4],
            stage_bytes: sizes[5],
        };
        let owned = addresses
            .iter()
            .zip(0_u64..)
            .map(|(&address, index)| Owned {
                address: PhysAddr::new(address),
                size_bytes: page_size_bytes,
                file: 0,
                offset_bytes: (index * page_size_bytes.min(GIB)).next_multiple_of(unit_bytes.max(1)),
            })
            .collect();
        let case = Case { unit_bytes, owned, plain_ram, requirements, strategy };
        if let Ok(layout) = case.choose() {
            let mut sound = case.clone();
            sound.owned.sort_unstable();
            let distinct = sound.owned.windows(2).all(|pair| pair[0].address != pair[1].address);
            prop_assert!(distinct, "a page listed twice was believed");
            prop_assert!(addresses.iter().all(|start| start % unit_bytes == 0), "misaligned page");
            let whole = requirements.image_file_bytes <= requirements.image_size_bytes;
            let small = page_size_bytes / unit_bytes < 4096;
            if whole && small && requirements.text_offset_bytes < HUGE {
                check_layout(&case, &layout);
            }
        }
    }
}

/// All 1024 ways to own some of ten pages in a row, all lengths: in place exactly when a run exists
/// and pages for device tree and stage are left.
#[test]
fn in_place_succeeds_exactly_when_a_run_exists() {
    for bits in 0..1024_u32 {
        let addresses: Vec<u64> = (0..10)
            .filter(|page| bits >> page & 1 == 1)
            .map(|page| GIB + page * HUGE)
            .collect();
        let longest = (0..10_u32)
            .flat_map(|start| (1..=10 - start).map(move |count| (start, count)))
            .filter(|&(start, count)| (start..start + count).all(|page| bits >> page & 1 == 1))
            .map(|(_, count)| u64::from(count))
            .max()
            .unwrap_or(0);
        for image_pages in 1..=10_u64 {
            let case = Case::simple(
                pages(&addresses),
                simple(image_pages * 2, 0),
                Strategy::InPlace,
            );
            let result = case.choose();
            let possible = longest >= image_pages && addresses.len() as u64 >= image_pages + 2;
            assert_eq!(
                result.is_ok(),
                possible,
                "pages {bits:#b}, {image_pages} wanted: {result:?}"
            );
            if let Ok(layout) = result {
                check_layout(&case, &layout);
            }
        }
    }
}

/// The same with an initrd.
#[test]
fn in_place_finds_room_for_two_pieces_exactly_when_there_is_some() {
    for bits in 0..1024_u32 {
        let addresses: Vec<u64> = (0..10)
            .filter(|page| bits >> page & 1 == 1)
            .map(|page| GIB + page * HUGE)
            .collect();
        let starts = |count: u32| {
            (0..=10_u32.saturating_sub(count))
                .map(move |start| ((1 << count) - 1) << start)
                .filter(move |&mask| bits & mask == mask)
        };
        for (image_pages, initrd_pages) in [(1, 1), (2, 2), (3, 2), (2, 3), (4, 1), (1, 5), (4, 4)]
        {
            let apart = starts(image_pages)
                .any(|image| starts(initrd_pages).any(|initrd| image & initrd == 0));
            let wanted = image_pages + initrd_pages + 2;
            let requirements = simple(u64::from(image_pages) * 2, u64::from(initrd_pages) * 2);
            let case = Case::simple(pages(&addresses), requirements, Strategy::InPlace);
            let result = case.choose();
            assert_eq!(
                result.is_ok(),
                apart && bits.count_ones() >= wanted,
                "pages {bits:#b}, {image_pages} and {initrd_pages} wanted: {result:?}"
            );
            if let Ok(layout) = result {
                check_layout(&case, &layout);
            }
        }
    }
}

/// Every second page of ours: half of a piece is in place, and only the other half is moved.
#[test]
fn half_of_a_piece_is_moved_where_half_is_in_place() {
    let addresses: Vec<u64> = (0..64).map(|page| GIB + 2 * page * HUGE).collect();
    let case = Case {
        plain_ram: ram(&[(GIB, 128 * HUGE)]),
        ..Case::simple(pages(&addresses), simple(40, 40), Strategy::Auto)
    };
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
    let in_place = |place: &Place| {
        let parts = place.parts_with_targets();
        parts
            .filter(|(part, target)| part.address == *target)
            .count()
    };
    assert_eq!(in_place(&layout.image), 10);
    assert_eq!(in_place(layout.initrd.as_ref().unwrap()), 10);
}

/// The room behind an Image's bytes need not be ours, but is where it can be.
#[test]
fn the_room_is_ours_where_it_can_be() {
    let mut requirements = simple(4, 0);
    requirements.image_size_bytes = 4 * HUGE;
    let short: Vec<u64> = (0..2).map(|page| GIB + page * HUGE).collect();
    let long: Vec<u64> = (0..6).map(|page| 2 * GIB + page * HUGE).collect();
    let rest = [4 * GIB, 5 * GIB];
    let case = Case {
        plain_ram: ram(&[(GIB, 8 * HUGE)]),
        ..Case::simple(
            pages(&[&short[..], &rest].concat()),
            requirements,
            Strategy::InPlace,
        )
    };
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
    assert_eq!(layout.image.target.start().as_u64(), GIB);
    let case = Case {
        owned: pages(&[short, long, rest.to_vec()].concat()),
        ..case
    };
    let layout = case.choose().unwrap();
    assert!(layout.image.target.start().as_u64() >= 2 * GIB);
}

/// The case that a developer meets first: RAM from 1 GiB, the Image in place at its bottom, the initrd
/// to be moved, and room for it only above.
#[test]
fn an_initrd_finds_room_above_an_image_at_the_bottom_of_ram() {
    let case = Case {
        plain_ram: ram(&[(GIB, 2 * HUGE), (3 * GIB, GIB)]),
        ..Case::simple(
            pages(&[GIB, GIB + HUGE, 5 * GIB, 6 * GIB, 7 * GIB, 8 * GIB]),
            simple(4, 4),
            Strategy::Auto,
        )
    };
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
}

/// The best place for either piece would leave no room for the other.
#[test]
fn pieces_are_packed_where_there_is_just_room_for_both() {
    // 20 units of memory; of ours the ones in the middle, where each piece would be in place.
    let middle: Vec<u64> = (6..14).map(|page| GIB + page * HUGE).collect();
    let elsewhere: Vec<u64> = (0..16).map(|page| 4 * GIB + 2 * page * HUGE).collect();
    let case = Case {
        plain_ram: ram(&[(GIB, 20 * HUGE)]),
        ..Case::simple(
            pages(&[middle, elsewhere].concat()),
            simple(16, 22),
            Strategy::Auto,
        )
    };
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
}

/// A run that leaves the window is used where it is inside.
#[test]
fn a_run_longer_than_the_window_is_used_inside_it() {
    let gib_pages = |gibs: &[u64]| {
        let addresses: Vec<u64> = gibs.iter().map(|gib| gib * GIB).collect();
        pages_of(&addresses, GIB, 0)
    };
    let many: Vec<u64> = (0..40).chain([50, 60]).collect();
    let mut requirements = simple(1024, 1023);
    requirements.image_size_bytes += 1; // more than one page, and only the run has two
    let case = Case::simple(gib_pages(&many), requirements, Strategy::InPlace);
    check_layout(&case, &case.choose().unwrap());

    let two_runs: Vec<u64> = (0..40).chain(50..53).collect();
    let case = Case::simple(
        gib_pages(&two_runs),
        simple(3 * 1024, 2 * 1024),
        Strategy::InPlace,
    );
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
    assert_eq!(
        layout.image.target.start().as_u64(),
        50 * GIB,
        "the shortest run that does"
    );
}

#[test]
fn every_error_is_reached() {
    let four: Vec<u64> = (0..4).map(|page| GIB + 2 * page * HUGE).collect();
    let case = |addresses: &[u64], requirements, strategy| Case {
        plain_ram: ram(&[(2 * GIB, GIB)]),
        ..Case::simple(pages(addresses), requirements, strategy)
    };
    assert_eq!(
        case(&four, simple(10, 0), Strategy::Auto).choose(),
        Err(LayoutError::TooFewPages {
            wanted_bytes: 6 * HUGE,
            found_bytes: 4 * HUGE
        })
    );
    let alone = case(&four[..2], simple(1, 0), Strategy::Auto)
        .choose()
        .unwrap();
    assert_eq!(
        alone.stage_parts,
        [],
        "no page is left for the stage, so it goes elsewhere"
    );
    let no_run = LayoutError::NoRun {
        piece: "initrd",
        wanted_bytes: 2 * HUGE,
        found_bytes: HUGE,
    };
    let no_plain = Case {
        plain_ram: ram(&[(GIB + 4 * HUGE, 4 * HUGE)]),
        ..case(&four, simple(1, 3), Strategy::InPlace)
    };
    assert_eq!(no_plain.choose(), Err(no_run));
    let no_target = |piece, wanted_bytes| {
        Err(LayoutError::NoTarget {
            piece,
            wanted_bytes,
        })
    };
    assert_eq!(
        case(&four, simple(2048, 0), Strategy::Kernel).choose(),
        no_target("Image", 2 * GIB)
    );
    let mut large_stage = simple(1, 0);
    large_stage.stage_bytes = GIB + 1;
    assert_eq!(
        case(&four, large_stage, Strategy::Auto).choose(),
        no_target("relocator", GIB + HUGE)
    );
    for strategy in [Strategy::Auto, Strategy::InPlace, Strategy::Relocate] {
        for bad in [GIB, GIB + 6 * HUGE, GIB + 4096, 0_u64.wrapping_sub(4096)] {
            let addresses = [&four[..], &[bad]].concat();
            let result = case(&addresses, simple(1, 1), strategy).choose();
            let refused = matches!(result, Err(LayoutError::Pages(_)));
            assert!(refused, "{strategy:?} with a page at {bad:#x}: {result:?}");
        }
    }
    let many = vec![pages(&[0])[0]; PAGES_MAX + 1];
    assert_eq!(
        choose(
            &many,
            HUGE,
            &PhysRanges::new(),
            &simple(1, 1),
            Strategy::Auto
        ),
        Err(LayoutError::TooManyPages(PAGES_MAX + 1))
    );
}

/// As many pages as may be given, in the worst order, in a time that nobody notices.
#[test]
fn the_most_pages_there_may_be() {
    let addresses: Vec<u64> = (0..PAGES_MAX as u64)
        .rev()
        .map(|page| 2 * page * HUGE)
        .collect();
    let case = Case {
        plain_ram: ram(&[(0, 2 << 40)]),
        ..Case::simple(pages_of(&addresses, HUGE, 0), simple(2, 2), Strategy::Auto)
    };
    assert!(case.choose().is_ok());
}

#[test]
fn the_window_check_agrees_with_the_model() {
    let piece = |gib: u64, jitter: u64| range(gib * GIB + jitter, HUGE);
    for first in 0..70_u64 {
        for second in 0..70_u64 {
            for (first_jitter, second_jitter) in
                [(0, 0), (GIB - HUGE, 0), (0, GIB - HUGE), (HUGE, HUGE)]
            {
                let (a, b) = (piece(first, first_jitter), piece(second, second_jitter));
                assert_eq!(in_one_window(a, b), share_a_window(a, b), "{a} and {b}");
            }
        }
    }
}

/// Both halves of the window are as large as they may be, and no larger: every place on a grid finer
/// than the 1 GiB that matters.
#[test]
fn the_windows_hold_every_place_that_may_be_and_no_other() {
    for near_start in [
        0,
        HUGE,
        GIB - HUGE,
        GIB,
        33 * GIB,
        34 * GIB + GIB / 2,
        LIMIT - GIB,
    ] {
        for near_bytes in [HUGE, GIB, 31 * GIB, 32 * GIB] {
            let near = range(near_start, near_bytes);
            let first = near_start.saturating_sub(33 * GIB);
            for step in 0..68 * 4 {
                for jitter in [0, HUGE, GIB / 4 - HUGE] {
                    let target = range(first + step * (GIB / 4) + jitter, HUGE);
                    if near.overlaps(target) {
                        continue;
                    }
                    let inside = windows(Some(near))
                        .iter()
                        .any(|window| window.contains_range(target));
                    let allowed = share_a_window(near, target) && target.end().as_u64() <= LIMIT;
                    assert_eq!(inside, allowed, "{target} near {near}");
                }
            }
        }
    }
}

/// What stands in a damaged note: a repair that would never end, or take all memory, is refused. Found by
/// fuzzing (pages of 0 bytes), and by reading what it had reached.
#[test]
fn a_layout_that_cannot_be_is_not_repaired() {
    let place = |size_bytes| Place {
        target: PhysRange::default(),
        parts: vec![Owned {
            address: PhysAddr::new(0x4000_0000),
            size_bytes,
            file: 0,
            offset_bytes: 0,
        }],
        room: Vec::new(),
        offset_bytes: 0,
    };
    let empty = Place {
        parts: Vec::new(),
        ..place(0)
    };
    for (unit_bytes, size_bytes) in [
        (0, HUGE),
        (1, HUGE),
        (3 << 16, HUGE),
        (HUGE, HUGE + 1),
        (HUGE, OWNED_MAX_BYTES + HUGE),
        (HUGE, u64::MAX - HUGE + 1),
    ] {
        let layout = Layout {
            unit_bytes,
            image: place(size_bytes),
            initrd: None,
            device_tree: empty.clone(),
            stage: PhysRange::default(),
            stage_parts: Vec::new(),
            spare: None,
        };
        let mut asked = 0;
        let repaired = layout.repaired(&PhysRanges::default(), |_, _| {
            asked += 1;
            Ok::<_, LayoutError>(PhysAddr::new(0x4000_0000))
        });
        let refused = matches!(repaired, Err(LayoutError::Pages(_)));
        assert!(
            refused && asked == 0,
            "unit {unit_bytes}, {size_bytes} bytes: {repaired:?}"
        );
    }
}
