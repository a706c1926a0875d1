//! The set algebra against a bitmap: one `bool` per address of a small space, where every operation
//! is a line that cannot be wrong.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Addresses of the model, 0 up to this.
const SPACE: usize = 64;

type Bitmap = [bool; SPACE];

fn range(start: usize, end: usize) -> PhysRange {
    PhysRange::new(PhysAddr::new(start as u64), PhysAddr::new(end as u64)).unwrap()
}

fn bounds(range: PhysRange) -> std::ops::Range<usize> {
    let index = |address: PhysAddr| usize::try_from(address.as_u64()).unwrap();
    index(range.start())..index(range.end())
}

fn bitmap_of(set: &PhysRanges) -> Bitmap {
    let mut bits = [false; SPACE];
    for range in set {
        bits[bounds(*range)].fill(true);
    }
    bits
}

/// The canonical set for a bitmap, found by looking at each address.
fn set_of(bits: &[bool]) -> Vec<PhysRange> {
    let mut ranges = Vec::new();
    let mut start = None;
    for address in 0..=bits.len() {
        match (start, bits.get(address).copied().unwrap_or(false)) {
            (None, true) => start = Some(address),
            (Some(from), false) => {
                ranges.push(range(from, address));
                start = None;
            }
            _ => {}
        }
    }
    ranges
}

/// The set is canonical, and is exactly the bitmap.
fn assert_is(set: &PhysRanges, bits: &[bool], what: &str) {
    assert_eq!(set.as_slice(), set_of(bits), "{what}");
    let count = bits.iter().filter(|&&bit| bit).count() as u64;
    assert_eq!(set.size_bytes(), count, "{what}: size");
    assert_eq!(set.is_empty(), count == 0, "{what}: is_empty");
}

fn zip(a: &Bitmap, b: &Bitmap, op: impl Fn(bool, bool) -> bool) -> Vec<bool> {
    a.iter().zip(b).map(|(&a, &b)| op(a, b)).collect()
}

/// Every start, in the wanted order, where `size` addresses at a multiple of `alignment` are free.
fn fits(bits: &Bitmap, size: usize, alignment: usize, window: PhysRange) -> Vec<PhysRange> {
    (0..SPACE)
        .step_by(alignment)
        .filter(|&start| size > 0 && start + size <= SPACE)
        .filter(|&start| window.contains_range(range(start, start + size)))
        .filter(|&start| bits[start..start + size].iter().all(|&bit| bit))
        .map(|start| range(start, start + size))
        .collect()
}

/// Everything that is asked of one set and one range.
fn check_against_range(set: &PhysRanges, probe: PhysRange) {
    let bits = bitmap_of(set);

    let mut inserted = set.clone();
    inserted.insert(probe);
    let mut expected = bits;
    expected[bounds(probe)].fill(true);
    assert_is(&inserted, &expected, &format!("{set} with {probe}"));

    let mut subtracted = set.clone();
    subtracted.subtract(probe);
    let mut expected = bits;
    expected[bounds(probe)].fill(false);
    assert_is(&subtracted, &expected, &format!("{set} without {probe}"));

    let mut inside = [false; SPACE];
    inside[bounds(probe)].copy_from_slice(&bits[bounds(probe)]);
    assert_is(
        &set.within(probe),
        &inside,
        &format!("{set} within {probe}"),
    );

    let all = bits[bounds(probe)].iter().all(|&bit| bit);
    let any = bits[bounds(probe)].iter().any(|&bit| bit);
    assert_eq!(set.contains_range(probe), all, "{set} contains {probe}");
    assert_eq!(set.overlaps(probe), any, "{set} overlaps {probe}");
}

fn check_pair(a: &PhysRanges, b: &PhysRanges) {
    let (bits_a, bits_b) = (bitmap_of(a), bitmap_of(b));
    let check = |set: PhysRanges, op: fn(bool, bool) -> bool, what: &str| {
        assert_is(&set, &zip(&bits_a, &bits_b, op), &format!("{a} {what} {b}"));
    };
    check(a.union(b), |a, b| a || b, "union");
    check(a.difference(b), |a, b| a && !b, "difference");
    check(a.intersection(b), |a, b| a && b, "intersection");
}

fn any_range() -> impl Strategy<Value = PhysRange> {
    (0..=SPACE, 0..=SPACE).prop_map(|(a, b)| range(a.min(b), a.max(b)))
}

fn any_ranges() -> impl Strategy<Value = Vec<PhysRange>> {
    prop::collection::vec(any_range(), 0..10)
}

/// Many short ranges with gaps, which [`any_ranges`] nearly never gives.
fn any_set() -> impl Strategy<Value = PhysRanges> {
    prop_oneof![
        any_ranges().prop_map(|ranges| ranges.into_iter().collect()),
        prop::collection::vec(any::<bool>(), SPACE)
            .prop_map(|bits| set_of(&bits).into_iter().collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn collecting_is_inserting_one_by_one(ranges in any_ranges()) {
        let mut bits = [false; SPACE];
        let mut one_by_one = PhysRanges::new();
        for range in &ranges {
            bits[bounds(*range)].fill(true);
            one_by_one.insert(*range);
        }
        let at_once: PhysRanges = ranges.into_iter().collect();
        assert_is(&at_once, &bits, "collected");
        prop_assert_eq!(at_once, one_by_one);
    }

    #[test]
    fn extending_keeps_what_was_there(set in any_set(), ranges in any_ranges()) {
        let mut extended = set.clone();
        extended.extend(ranges.iter().copied());
        prop_assert_eq!(extended, set.union(&ranges.into_iter().collect()));
    }

    #[test]
    fn a_set_and_a_range(set in any_set(), probe in any_range()) {
        check_against_range(&set, probe);
    }

    #[test]
    fn two_sets(a in any_set(), b in any_set()) {
        check_pair(&a, &b);
    }

    #[test]
    fn single_addresses(set in any_set()) {
        let bits = bitmap_of(&set);
        for (address, &bit) in bits.iter().enumerate() {
            prop_assert_eq!(set.contains(PhysAddr::new(address as u64)), bit, "at {}", address);
        }
        prop_assert!(!set.contains(PhysAddr::new(SPACE as u64)));
    }

    #[test]
    fn cutting_to_alignment(set in any_set(), shift in 0_u32..6) {
        let alignment = 1_usize << shift;
        let bits = bitmap_of(&set);
        let mut expected = [false; SPACE];
        for page in (0..SPACE).step_by(alignment) {
            let whole = bits[page..page + alignment].iter().all(|&bit| bit);
            expected[page..page + alignment].fill(whole);
        }
        assert_is(&set.aligned_inward(alignment as u64), &expected, "aligned inward");
    }

    #[test]
    fn fitting(set in any_set(), size in 0..SPACE, shift in 0_u32..6, window in any_range()) {
        let alignment = 1_usize << shift;
        let all = fits(&bitmap_of(&set), size, alignment, window);
        let (size_bytes, alignment_bytes) = (size as u64, alignment as u64);
        let lowest = set.lowest_fit(size_bytes, alignment_bytes, window);
        let highest = set.highest_fit(size_bytes, alignment_bytes, window);
        prop_assert_eq!(lowest, all.first().copied());
        prop_assert_eq!(highest, all.last().copied());
    }
}

/// All 2^8 sets over eight addresses with all ranges over them, and all pairs of such sets.
#[test]
fn exhaustive_over_eight_addresses() {
    const WIDTH: usize = 8;
    let sets: Vec<PhysRanges> = (0_u32..1 << WIDTH)
        .map(|mask| {
            let bits: Vec<bool> = (0..WIDTH).map(|bit| mask >> bit & 1 == 1).collect();
            set_of(&bits).into_iter().collect()
        })
        .collect();
    for set in &sets {
        for start in 0..=WIDTH {
            for end in start..=WIDTH {
                check_against_range(set, range(start, end));
            }
        }
        for other in &sets {
            check_pair(set, other);
        }
    }
}

#[test]
fn the_end_of_the_address_space() {
    let top = PhysAddr::new(u64::MAX);
    let everything = PhysRange::new(PhysAddr::new(0), top).unwrap();
    let mut set = PhysRanges::from(everything);
    assert_eq!(set.size_bytes(), u64::MAX);
    assert_eq!(set.span(), Some(everything));

    let last_page = PhysRange::new(top.align_down(0x1000), top).unwrap();
    set.subtract(last_page);
    assert!(!set.overlaps(last_page));
    assert_eq!(
        set.highest_fit(0x1000, 0x1000, everything).unwrap().end(),
        last_page.start()
    );
    // Aligning the start of the last, partial page up would leave the address space.
    assert_eq!(last_page.align_inward(0x2000), None);
    let lone = PhysRanges::from(last_page);
    assert_eq!(lone.lowest_fit(0x1000, 0x1000, everything), None);
    assert_eq!(lone.lowest_fit(u64::MAX, 1, everything), None);
    assert_eq!(lone.highest_fit(u64::MAX, 1, everything), None);
}

#[test]
fn ranges_share_what_they_overlap_in() {
    for (a, b, c, d) in pairs_of_bounds(6) {
        let (left, right) = (range(a, b), range(c, d));
        let expected = PhysRanges::from(left).intersection(&right.into());
        assert_eq!(
            left.intersection(right),
            expected.span(),
            "{left} and {right}"
        );
    }
}

/// All `(a, b, c, d)` below `limit` with `a <= b` and `c <= d`.
fn pairs_of_bounds(limit: usize) -> Vec<(usize, usize, usize, usize)> {
    let pairs: Vec<(usize, usize)> = (0..limit)
        .flat_map(|a| (a..limit).map(move |b| (a, b)))
        .collect();
    pairs
        .iter()
        .flat_map(|&(a, b)| pairs.iter().map(move |&(c, d)| (a, b, c, d)))
        .collect()
}
