//! A set of physical addresses, held as ranges.
//!
//! The questions kleap asks about memory are questions about sets: *System RAM, minus what is
//! reserved, minus what we own already: where do 40 MiB fit?* [`PhysRanges`] answers them. It holds
//! the set in its one canonical form: sorted, disjoint, no empty range, and no two ranges that
//! touch. Two sets with the same addresses are therefore equal as values and print the same, and a
//! plan made from them is reproducible.
//!
//! A sorted vector was chosen over a tree or an interval map: a machine has tens of ranges, at most
//! some ten thousand (one per huge page of a badly fragmented machine), operations on whole sets are
//! one linear merge, and the vector is what the tests, the JSON output and the placement want to
//! walk. A bitmap over pages was rejected because ranges in `/proc/iomem` need not end on pages.

use alloc::vec::{self, Vec};
use core::fmt;
use core::slice;

use crate::address::{PhysAddr, PhysRange};

/// A set of physical addresses: sorted, disjoint ranges with gaps between them.
///
/// ```
/// use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
///
/// let range = |start, end| PhysRange::new(PhysAddr::new(start), PhysAddr::new(end));
/// let mut ram: PhysRanges = [range(0x4000_0000, 0x6000_0000)?].into_iter().collect();
/// ram.subtract(range(0x4800_0000, 0x4900_0000)?);
/// assert_eq!(ram.to_string(), "[0x40000000, 0x48000000) [0x49000000, 0x60000000)");
/// # Ok::<(), kleap_memmap::AddressError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct PhysRanges {
    /// Invariant: no element is empty, and each ends below (not at) the start of the next.
    ranges: Vec<PhysRange>,
}

impl PhysRanges {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The ranges, from the lowest address to the highest.
    #[must_use]
    pub fn as_slice(&self) -> &[PhysRange] {
        &self.ranges
    }

    /// The ranges, from the lowest address to the highest.
    pub fn iter(&self) -> slice::Iter<'_, PhysRange> {
        self.ranges.iter()
    }

    /// Number of ranges, not of bytes.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the set holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of bytes in the set.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        // Cannot overflow: the ranges are disjoint parts of [0, u64::MAX).
        self.ranges.iter().map(|range| range.size_bytes()).sum()
    }

    /// The smallest range that covers the whole set, or `None` if the set is empty.
    #[must_use]
    pub fn span(&self) -> Option<PhysRange> {
        let first = self.ranges.first()?;
        let last = self.ranges.last()?;
        PhysRange::new(first.start(), last.end()).ok()
    }

    /// Adds every byte of `range`.
    pub fn insert(&mut self, range: PhysRange) {
        if range.is_empty() {
            return;
        }
        // Everything that overlaps `range` or touches it becomes one range with it.
        let first = self.ranges.partition_point(|r| r.end() < range.start());
        let after = self.ranges.partition_point(|r| r.start() <= range.end());
        let touched = self.ranges.get(first..after).unwrap_or(&[]);
        let merged = [touched.first(), touched.last()]
            .into_iter()
            .flatten()
            .copied()
            .fold(range, hull);
        self.ranges.splice(first..after, [merged]);
    }

    /// Removes every byte of `range`.
    pub fn subtract(&mut self, range: PhysRange) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end() <= range.start());
        let after = self.ranges.partition_point(|r| r.start() < range.end());
        let touched = self.ranges.get(first..after).unwrap_or(&[]);
        // What sticks out below the hole and above it.
        let below = touched
            .first()
            .and_then(|r| between(r.start(), range.start()));
        let above = touched.last().and_then(|r| between(range.end(), r.end()));
        self.ranges
            .splice(first..after, below.into_iter().chain(above));
    }

    /// The bytes that are in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.iter().chain(other).copied().collect()
    }

    /// The bytes that are in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut holes = other.ranges.as_slice();
        for range in self {
            let mut from = range.start();
            // A hole may reach into the next range too, so only holes that end before this range
            // are done with for good.
            while let Some((hole, rest)) = holes.split_first() {
                if hole.end() <= range.start() {
                    holes = rest;
                    continue;
                }
                break;
            }
            for hole in holes.iter().take_while(|hole| hole.start() < range.end()) {
                ranges.extend(between(from, hole.start()));
                from = hole.end();
            }
            ranges.extend(between(from, range.end()));
        }
        Self { ranges }
    }

    /// The bytes that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let (mut ours, mut theirs) = (self.ranges.as_slice(), other.ranges.as_slice());
        while let (Some((a, rest_a)), Some((b, rest_b))) =
            (ours.split_first(), theirs.split_first())
        {
            ranges.extend(between(a.start().max(b.start()), a.end().min(b.end())));
            if a.end() <= b.end() {
                ours = rest_a;
            } else {
                theirs = rest_b;
            }
        }
        Self { ranges }
    }

    /// The bytes of this set that lie in `window`.
    #[must_use]
    pub fn within(&self, window: PhysRange) -> Self {
        self.intersection(&window.into())
    }

    /// Whether `address` is in the set.
    #[must_use]
    pub fn contains(&self, address: PhysAddr) -> bool {
        let after = self.ranges.partition_point(|r| r.end() <= address);
        self.ranges.get(after).is_some_and(|r| r.contains(address))
    }

    /// Whether every byte of `range` is in the set. An empty range has no byte that could be
    /// missing, so it always is.
    #[must_use]
    pub fn contains_range(&self, range: PhysRange) -> bool {
        if range.is_empty() {
            return true;
        }
        // Ranges never touch, so a range is covered by one of them or not at all.
        let after = self.ranges.partition_point(|r| r.end() <= range.start());
        self.ranges
            .get(after)
            .is_some_and(|r| r.contains_range(range))
    }

    /// Whether any byte of `range` is in the set.
    #[must_use]
    pub fn overlaps(&self, range: PhysRange) -> bool {
        let after = self.ranges.partition_point(|r| r.end() <= range.start());
        self.ranges.get(after).is_some_and(|r| r.overlaps(range))
    }

    /// Each range cut down to multiples of `alignment_bytes` (a power of two): the whole pages of
    /// that size in the set. Ranges that hold no such page vanish.
    #[must_use]
    pub fn aligned_inward(&self, alignment_bytes: u64) -> Self {
        // Cutting never makes two ranges touch: the gap between them only grows.
        let ranges = self
            .iter()
            .filter_map(|r| r.align_inward(alignment_bytes))
            .collect();
        Self { ranges }
    }

    /// The lowest range of `size_bytes` bytes at a multiple of `alignment_bytes` (a power of two)
    /// that lies in the set and in `window`; `None` if there is none or `size_bytes` is 0.
    #[must_use]
    pub fn lowest_fit(
        &self,
        size_bytes: u64,
        alignment_bytes: u64,
        window: PhysRange,
    ) -> Option<PhysRange> {
        self.clipped(window).find_map(|free| {
            let start = free.start().align_up(alignment_bytes)?;
            fit_at(start, size_bytes, free)
        })
    }

    /// The highest range of `size_bytes` bytes at a multiple of `alignment_bytes` (a power of two)
    /// that lies in the set and in `window`; `None` if there is none or `size_bytes` is 0.
    #[must_use]
    pub fn highest_fit(
        &self,
        size_bytes: u64,
        alignment_bytes: u64,
        window: PhysRange,
    ) -> Option<PhysRange> {
        self.clipped(window).rev().find_map(|free| {
            let start = PhysAddr::new(free.end().as_u64().checked_sub(size_bytes)?);
            fit_at(start.align_down(alignment_bytes), size_bytes, free)
        })
    }

    /// The parts of the ranges that lie in `window`, without building a set.
    fn clipped(&self, window: PhysRange) -> impl DoubleEndedIterator<Item = PhysRange> {
        let first = self.ranges.partition_point(|r| r.end() <= window.start());
        let after = self.ranges.partition_point(|r| r.start() < window.end());
        let touched = self.ranges.get(first..after).unwrap_or(&[]);
        touched
            .iter()
            .filter_map(move |r| between(r.start().max(window.start()), r.end().min(window.end())))
    }
}

/// The range from `start` to `end` if it holds a byte.
fn between(start: PhysAddr, end: PhysAddr) -> Option<PhysRange> {
    PhysRange::new(start, end)
        .ok()
        .filter(|range| !range.is_empty())
}

/// The range of `size_bytes` bytes at `start` if it holds a byte and lies in `free`.
fn fit_at(start: PhysAddr, size_bytes: u64, free: PhysRange) -> Option<PhysRange> {
    let fit = PhysRange::from_size(start, size_bytes).ok()?;
    (!fit.is_empty() && free.contains_range(fit)).then_some(fit)
}

/// The smallest range that covers both.
fn hull(a: PhysRange, b: PhysRange) -> PhysRange {
    // The minimum of the starts cannot lie above the maximum of the ends.
    PhysRange::new(a.start().min(b.start()), a.end().max(b.end())).unwrap_or(a)
}

impl From<PhysRange> for PhysRanges {
    fn from(range: PhysRange) -> Self {
        core::iter::once(range).collect()
    }
}

impl FromIterator<PhysRange> for PhysRanges {
    /// The union of ranges in any order, overlapping or not.
    fn from_iter<I: IntoIterator<Item = PhysRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl Extend<PhysRange> for PhysRanges {
    /// Adds many ranges at once: one sort, where repeated [`PhysRanges::insert`] would be quadratic.
    fn extend<I: IntoIterator<Item = PhysRange>>(&mut self, ranges: I) {
        self.ranges
            .extend(ranges.into_iter().filter(|range| !range.is_empty()));
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, kept| {
            let touches = next.start() <= kept.end();
            if touches {
                *kept = hull(*kept, *next);
            }
            touches
        });
    }
}

impl IntoIterator for PhysRanges {
    type Item = PhysRange;
    type IntoIter = vec::IntoIter<PhysRange>;

    fn into_iter(self) -> Self::IntoIter {
        self.ranges.into_iter()
    }
}

impl<'a> IntoIterator for &'a PhysRanges {
    type Item = &'a PhysRange;
    type IntoIter = slice::Iter<'a, PhysRange>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for PhysRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PhysRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self).finish()
    }
}
