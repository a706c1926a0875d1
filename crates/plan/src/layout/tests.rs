//! `choose` against a model that knows pages, not ranges.
//!
//! The model is slow and obvious: sets of page addresses, every start tried, every multiple of 1 GiB
//! tried as the window's start. It shares nothing with the code but the types.

use super::{Strategy, *};
use proptest::prelude::*;
use proptest::strategy::{Strategy as Generator, ValueTree};
use proptest::test_runner::FileFailurePersistence;
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HUGE: u64 = 2 * MIB;
const LIMIT: u64 = 1 << 48;

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// Pages at these addresses; the index in the file has nothing to do with the address.
fn pages(addresses: &[u64]) -> Vec<Owned> {
    let owned = |(index, &address): (usize, &u64)| {
        let index = (index * 7919) % 10_007;
        Owned {
            address: PhysAddr::new(address),
            index,
        }
    };
    addresses.iter().enumerate().map(owned).collect()
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

/// What the pieces need, as the boot protocol says it.
#[derive(Debug, Clone, Copy)]
struct Need {
    room_bytes: u64,
    held_bytes: u64,
    offset_bytes: u64,
}

fn needs(requirements: &Requirements) -> (Need, Need, Need) {
    let Requirements {
        text_offset_bytes,
        image_size_bytes,
        image_file_bytes,
        ..
    } = *requirements;
    let image = Need {
        room_bytes: text_offset_bytes + image_size_bytes,
        held_bytes: text_offset_bytes + image_file_bytes,
        offset_bytes: text_offset_bytes,
    };
    let plain = |bytes| Need {
        room_bytes: bytes,
        held_bytes: bytes,
        offset_bytes: 0,
    };
    (
        image,
        plain(requirements.initrd_bytes),
        plain(requirements.device_tree_bytes),
    )
}

/// Whether free pages in a row would do for a piece: every start is tried.
fn run_exists(
    free: &BTreeSet<u64>,
    page_size_bytes: u64,
    need: Need,
    near: Option<PhysRange>,
) -> bool {
    let count = need.room_bytes.max(1).div_ceil(page_size_bytes);
    free.iter()
        .filter(|&&start| start % HUGE == 0)
        .any(|&start| {
            let target = range(start, count * page_size_bytes);
            (0..count).all(|page| free.contains(&(start + page * page_size_bytes)))
                && near.is_none_or(|near| share_a_window(near, target))
        })
}

#[derive(Debug, Clone)]
struct Case {
    page_size_bytes: u64,
    owned: Vec<Owned>,
    plain_ram: PhysRanges,
    requirements: Requirements,
    strategy: Strategy,
}

impl Case {
    fn choose(&self) -> Result<Layout, LayoutError> {
        choose(
            &self.owned,
            self.page_size_bytes,
            &self.plain_ram,
            &self.requirements,
            self.strategy,
        )
    }
}

/// A place, and whether it keeps every promise that is made about a single one.
fn check_place(case: &Case, place: &Place, need: Need) {
    let page = case.page_size_bytes;
    let (start, end) = (place.target.start().as_u64(), place.target.end().as_u64());
    assert_eq!(start % HUGE, 0, "target not at a multiple of 2 MiB");
    assert!(
        place.target.size_bytes() >= need.room_bytes.max(1),
        "target too small"
    );
    assert_eq!(
        place.target.size_bytes() % page,
        0,
        "target is not whole pages"
    );
    assert!(end <= LIMIT, "target above 48 bits");
    assert_eq!(place.offset_bytes, need.offset_bytes);
    assert_eq!(place.start().as_u64(), start + need.offset_bytes);
    let held_bytes = place.pages.len() as u64 * page;
    assert!(
        held_bytes >= need.held_bytes,
        "the pages do not hold the content"
    );
    assert!(
        place
            .pages
            .iter()
            .all(|owned| owned.address.as_u64() + page <= LIMIT)
    );
    if place.is_in_place() {
        assert_eq!(held_bytes, place.target.size_bytes());
        for (index, owned) in place.pages.iter().enumerate() {
            assert_eq!(
                owned.address.as_u64(),
                start + index as u64 * page,
                "not the target"
            );
        }
        assert_ne!(case.strategy, Strategy::Relocate);
    } else {
        assert_ne!(case.strategy, Strategy::InPlace);
        assert!(
            case.plain_ram.contains_range(place.target),
            "target is not plain RAM"
        );
        for owned in &case.owned {
            let owned_start = owned.address.as_u64();
            assert!(
                owned_start >= end || owned_start.saturating_add(page) <= start,
                "target overlaps the page at {owned_start:#x}"
            );
        }
        assert_eq!(
            held_bytes,
            need.held_bytes.max(1).next_multiple_of(page),
            "more than needed"
        );
    }
}

/// Everything that is promised about a layout.
fn check_layout(case: &Case, layout: &Layout) {
    let page = case.page_size_bytes;
    let (image, initrd, device_tree) = needs(&case.requirements);
    assert_eq!(layout.page_size_bytes, page);
    check_place(case, &layout.image, image);
    check_place(case, &layout.device_tree, device_tree);
    assert_eq!(layout.initrd.is_some(), case.requirements.initrd_bytes != 0);
    if let Some(place) = &layout.initrd {
        check_place(case, place, initrd);
        assert!(
            share_a_window(layout.image.target, place.target),
            "not within 32 GiB"
        );
    }
    assert!(case.requirements.stage_bytes <= page);
    assert!(layout.stage.address.as_u64() + page <= LIMIT);

    // Only pages that were given, each at its own index, each once.
    let mut unused: BTreeMap<u64, usize> = case
        .owned
        .iter()
        .map(|owned| (owned.address.as_u64(), owned.index))
        .collect();
    for owned in layout.pages() {
        let index = unused.remove(&owned.address.as_u64());
        assert_eq!(
            index,
            Some(owned.index),
            "{owned:?} is used twice, or is not ours"
        );
    }
    // Targets, and the stage, are disjoint.
    let mut used: Vec<PhysRange> = layout.places().map(|place| place.target).collect();
    used.push(range(layout.stage.address.as_u64(), page));
    for (index, first) in used.iter().enumerate() {
        for second in &used[index + 1..] {
            assert!(
                first.end() <= second.start() || second.end() <= first.start(),
                "{first} and {second} overlap"
            );
        }
    }
}

/// With [`Strategy::Auto`], a piece is moved only if no run would do for it when it is its turn: the
/// longer of Image and initrd, then the other, then the device tree.
fn check_moved_only_if_needed(case: &Case, layout: &Layout) {
    let page = case.page_size_bytes;
    let (image, initrd, device_tree) = needs(&case.requirements);
    let mut turns = vec![(&layout.image, image, None)];
    if let Some(place) = &layout.initrd {
        if initrd.room_bytes > image.room_bytes {
            turns = vec![
                (place, initrd, None),
                (&layout.image, image, Some(place.target)),
            ];
        } else {
            turns.push((place, initrd, Some(layout.image.target)));
        }
    }
    turns.push((&layout.device_tree, device_tree, None));
    let addresses = case.owned.iter().map(|owned| owned.address.as_u64());
    let mut free: BTreeSet<u64> = addresses
        .filter(|&start| start < LIMIT && start + page <= LIMIT)
        .collect();
    for (place, need, near) in turns {
        if !place.is_in_place() {
            assert!(
                !run_exists(&free, page, need, near),
                "{place:?} is moved, and need not be"
            );
        }
        for owned in &place.pages {
            free.remove(&owned.address.as_u64());
        }
    }
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

/// A stretch of memory of which some pages are ours, and some is plain RAM.
fn any_cluster(page_size_bytes: u64) -> impl Generator<Value = (Vec<u64>, Vec<PhysRange>)> {
    let owned = prop_oneof![
        any::<u32>(),
        any::<(u32, u32)>().prop_map(|(a, b)| a | b),
        Just(u32::MAX),
        Just(0)
    ];
    let holes = proptest::collection::vec((0..96_u64, 1..8_u64), 0..4);
    (any_cluster_start(), owned, 0..96_u64, 1..96_u64, holes).prop_map(
        move |(start, bits, ram_start, ram_count, holes)| {
            let start = start.next_multiple_of(page_size_bytes);
            let addresses = (0..32_u64)
                .filter(|page| bits >> page & 1 == 1)
                .map(|page| start + page * page_size_bytes)
                .collect();
            // In MiB: plain RAM respects neither our pages nor 2 MiB.
            let scale = page_size_bytes / 2;
            let mut set = ram(&[(start + ram_start * scale, ram_count * scale)]);
            for (at, count) in holes {
                set.subtract(range(start + at * scale, count * scale));
            }
            (addresses, set.iter().copied().collect())
        },
    )
}

fn any_bytes(most_pages: u64, page_size_bytes: u64) -> impl Generator<Value = u64> {
    prop_oneof![
        1..=most_pages * page_size_bytes,
        (1..=most_pages).prop_map(move |pages| pages * page_size_bytes),
        (1..=most_pages).prop_map(move |pages| pages * page_size_bytes + 1),
    ]
}

fn any_requirements(page_size_bytes: u64) -> impl Generator<Value = Requirements> {
    let text_offset = prop_oneof![3 => Just(0), 2 => Just(0x8_0000), 1 => 0..HUGE];
    let initrd = prop_oneof![1 => Just(0), 4 => any_bytes(12, page_size_bytes)];
    let image = (any_bytes(8, page_size_bytes), 0..4 * MIB, text_offset);
    (image, initrd, 1..=HUGE, 1..=HUGE).prop_map(
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
    let page_sizes = [HUGE, HUGE, HUGE, 32 * MIB, GIB];
    let strategies = [Strategy::Auto, Strategy::InPlace, Strategy::Relocate];
    (
        proptest::sample::select(page_sizes.to_vec()),
        proptest::sample::select(strategies.to_vec()),
    )
        .prop_flat_map(|(page_size_bytes, strategy)| {
            let clusters = proptest::collection::vec(any_cluster(page_size_bytes), 1..4);
            (clusters, any_requirements(page_size_bytes)).prop_flat_map(
                move |(clusters, requirements)| {
                    let mut addresses = BTreeSet::new();
                    let mut plain_ram = PhysRanges::new();
                    for (pages, ranges) in clusters {
                        addresses.extend(pages);
                        plain_ram.extend(ranges);
                    }
                    let addresses: Vec<u64> = addresses.into_iter().collect();
                    Just(pages(&addresses))
                        .prop_shuffle()
                        .prop_map(move |owned| Case {
                            page_size_bytes,
                            owned,
                            plain_ram: plain_ram.clone(),
                            requirements,
                            strategy,
                        })
                },
            )
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
            if case.strategy == Strategy::Auto {
                check_moved_only_if_needed(&case, &layout);
            }
        }
    }

    /// A larger choice never costs what was possible without it.
    #[test]
    fn auto_does_whatever_in_place_does(case in any_case()) {
        let in_place = Case { strategy: Strategy::InPlace, ..case.clone() }.choose();
        if let Ok(layout) = in_place {
            prop_assert!(layout.is_in_place());
            prop_assert_eq!(Case { strategy: Strategy::Auto, ..case }.choose(), Ok(layout));
        }
    }

    /// The layout depends on the pages, not on the order in which they are listed.
    #[test]
    fn the_order_of_the_pages_does_not_matter(case in any_case()) {
        let mut sorted = case.clone();
        sorted.owned.sort_unstable();
        prop_assert_eq!(case.choose(), sorted.choose());
    }

    /// Where the longer piece has its target, and the other one could be moved next to it, it is.
    #[test]
    fn a_target_in_the_window_is_found(case in any_case()) {
        let mut case = Case { strategy: Strategy::Relocate, ..case };
        let (image, initrd, _) = needs(&case.requirements);
        case.requirements.initrd_bytes = initrd.room_bytes.clamp(1, image.room_bytes);
        let mut alone = case.clone();
        alone.requirements.initrd_bytes = 0;
        let Ok(alone) = alone.choose() else { return Ok(()) };
        let mut free = case.plain_ram.clone();
        for owned in &case.owned {
            free.subtract(range(owned.address.as_u64(), case.page_size_bytes));
        }
        free.subtract(alone.image.target);
        let room_bytes = case.requirements.initrd_bytes.next_multiple_of(case.page_size_bytes);
        let possible = free.iter().any(|free| {
            let mut start = free.start().as_u64().next_multiple_of(HUGE);
            while start + room_bytes <= free.end().as_u64().min(LIMIT) {
                if share_a_window(alone.image.target, range(start, room_bytes)) {
                    return true;
                }
                start += HUGE;
            }
            false
        });
        let result = case.choose();
        let refused = matches!(result, Err(LayoutError::NoTarget { piece: "initrd", .. }));
        prop_assert_eq!(refused, !possible, "{:?}", result);
    }
}

/// The properties above say nothing if the cases never get that far: among the generated ones are
/// enough of each outcome.
#[test]
fn the_generated_cases_reach_every_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..2000 {
        let case = any_case().new_tree(&mut runner).unwrap().current();
        let outcome = match case.choose() {
            Ok(layout) if layout.is_in_place() => "in place",
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
    assert_eq!(enough, 6, "{outcomes:?}");
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
        ram_ranges in proptest::collection::vec((any_address(), any_size()), 0..4),
        sizes in proptest::collection::vec(any_size(), 6),
        strategy in proptest::sample::select(&[Strategy::Auto, Strategy::InPlace, Strategy::Relocate][..]),
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
        let owned = pages(&addresses);
        let case = Case { page_size_bytes, owned, plain_ram, requirements, strategy };
        if let Ok(layout) = case.choose() {
            let mut sound = case.clone();
            sound.owned.sort_unstable();
            let distinct = sound.owned.windows(2).all(|pair| pair[0].address != pair[1].address);
            prop_assert!(distinct, "a page listed twice was believed");
            prop_assert!(addresses.iter().all(|start| start % page_size_bytes == 0), "misaligned page");
            let whole = requirements.image_file_bytes <= requirements.image_size_bytes;
            if whole && requirements.text_offset_bytes < page_size_bytes {
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
            let case = Case {
                page_size_bytes: HUGE,
                owned: pages(&addresses),
                plain_ram: PhysRanges::new(),
                requirements: simple(image_pages * 2, 0),
                strategy: Strategy::InPlace,
            };
            let result = case.choose();
            let possible = longest >= image_pages && addresses.len() as u64 >= image_pages + 2;
            assert_eq!(
                result.is_ok(),
                possible,
                "pages {bits:#b}, {image_pages} wanted: {result:?}"
            );
            if let Ok(layout) = result {
                check_layout(&case, &layout);
            } else if longest < image_pages {
                let error = LayoutError::NoRun {
                    piece: "Image",
                    wanted_bytes: image_pages * HUGE,
                    longest_bytes: longest * HUGE,
                };
                assert_eq!(result, Err(error));
            }
        }
    }
}

/// The same with an initrd: longest first into the shortest run that does is optimal for two pieces.
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
            let case = Case {
                page_size_bytes: HUGE,
                owned: pages(&addresses),
                plain_ram: PhysRanges::new(),
                requirements: simple(u64::from(image_pages) * 2, u64::from(initrd_pages) * 2),
                strategy: Strategy::InPlace,
            };
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

/// The case that a developer meets first: RAM from 1 GiB, the Image in place at its bottom, the initrd
/// to be moved, and room for it only above.
#[test]
fn an_initrd_is_moved_above_an_image_at_the_bottom_of_ram() {
    let image_pages: Vec<u64> = (0..2).map(|page| GIB + page * HUGE).collect();
    // Every other page below 2 GiB: no run, no target.
    let rest: Vec<u64> = (0..255).map(|page| GIB + (3 + 2 * page) * HUGE).collect();
    let case = Case {
        page_size_bytes: HUGE,
        owned: pages(&[image_pages, rest].concat()),
        plain_ram: ram(&[(GIB, 4 * GIB)]),
        requirements: simple(4, 4),
        strategy: Strategy::Auto,
    };
    let layout = case.choose().unwrap();
    check_layout(&case, &layout);
    assert!(layout.image.is_in_place());
    assert!(layout.initrd.unwrap().target.start().as_u64() >= 2 * GIB);
}

/// A run that leaves the window is used where it is inside.
#[test]
fn a_run_longer_than_the_window_is_used_inside_it() {
    // 1 GiB pages: a single one at 50 GiB for the Image, and a run from 0 to 40 GiB.
    let addresses: Vec<u64> = (0..40).chain([50, 60]).map(|gib| gib * GIB).collect();
    let mut requirements = simple(1024, 1023);
    requirements.image_size_bytes += 1; // two pages, and only the run has two
    let case = Case {
        page_size_bytes: GIB,
        owned: pages(&addresses),
        plain_ram: PhysRanges::new(),
        requirements,
        strategy: Strategy::InPlace,
    };
    check_layout(&case, &case.choose().unwrap());

    let addresses: Vec<u64> = (0..40).chain(50..53).map(|gib| gib * GIB).collect();
    let case = Case {
        owned: pages(&addresses),
        requirements: simple(3 * 1024, 2 * 1024),
        ..case
    };
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
        page_size_bytes: HUGE,
        owned: pages(addresses),
        plain_ram: ram(&[(2 * GIB, GIB)]),
        requirements,
        strategy,
    };
    assert_eq!(
        case(&four, simple(10, 0), Strategy::Auto).choose(),
        Err(LayoutError::TooFewPages {
            wanted: 5,
            found: 4
        })
    );
    assert_eq!(
        case(&four[..2], simple(1, 0), Strategy::Auto).choose(),
        Err(LayoutError::TooFewPages {
            wanted: 1,
            found: 0
        }),
        "no page is left for the stage"
    );
    let no_run = LayoutError::NoRun {
        piece: "initrd",
        wanted_bytes: 2 * HUGE,
        longest_bytes: HUGE,
    };
    assert_eq!(
        case(&four, simple(1, 3), Strategy::InPlace).choose(),
        Err(no_run)
    );
    let no_target = LayoutError::NoTarget {
        piece: "Image",
        wanted_bytes: 2 * GIB,
    };
    assert_eq!(
        case(&four, simple(2048, 0), Strategy::Auto).choose(),
        Err(no_target)
    );
    let mut large_stage = simple(1, 0);
    large_stage.stage_bytes = HUGE + 1;
    assert_eq!(
        case(&four, large_stage, Strategy::Auto).choose(),
        Err(LayoutError::StageTooLarge {
            stage_bytes: HUGE + 1
        })
    );
    for strategy in [Strategy::Auto, Strategy::InPlace, Strategy::Relocate] {
        for bad in [GIB, GIB + 6 * HUGE, GIB + 4096, 0_u64.wrapping_sub(4096)] {
            let addresses = [&four[..], &[bad]].concat();
            let result = case(&addresses, simple(1, 1), strategy).choose();
            let refused = matches!(result, Err(LayoutError::Pages(_)));
            assert!(refused, "{strategy:?} with a page at {bad:#x}: {result:?}");
        }
    }
    let many = vec![
        Owned {
            address: PhysAddr::new(0),
            index: 0
        };
        PAGES_MAX + 1
    ];
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
        page_size_bytes: HUGE,
        owned: pages(&addresses),
        plain_ram: ram(&[(0, 2 << 40)]),
        requirements: simple(2, 2),
        strategy: Strategy::Auto,
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
