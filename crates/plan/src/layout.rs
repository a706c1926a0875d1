//! A place for every piece.
//!
//! What is known: huge pages that we own, at their physical addresses; the memory map; how large each
//! piece is. What is wanted: each piece in one contiguous range, its *target*, at an address that the
//! boot protocol allows, with as many of its bytes as possible there already, so that as few as possible
//! are moved at hand-over.
//!
//! A target is a range of memory that is ours or plain System RAM, which nobody needs once the first
//! kernel is gone. Those of its bytes that lie in pages we own are written there, before the reboot. The
//! rest is written to pages of ours elsewhere and moved by the relocator, and only that rest. Where a
//! whole run of our pages is long enough, there is no rest.
//!
//! Every alignable range of memory is a candidate, but not every one has to be looked at: sliding a range
//! changes how much of it is ours only where one of its ends passes an end of a page of ours. So the
//! candidates are the ranges that start or end with a page of ours, or at an end of usable memory.
//!
//! Pieces are placed one after the other. Which first, and whether the room behind an Image's bytes
//! should be ours too, matters when runs are scarce; and where memory is, the best place for one piece may
//! leave none for the other, so they are also packed to the ends of what there is. All these ways are tried,
//! and the one that leaves the least to move wins. Rejected: a search over all combinations, which costs more
//! than the few moves that it could save.
//!
//! A source may lie in the target of another piece only if there is no other memory for it. Whatever
//! overlaps, [`crate::moves`] puts the moves into an order that loses nothing.
//!
//! The rules (Documentation/arch/arm64/booting.rst): Image at a 2 MiB-aligned base plus `text_offset`, with
//! `image_size` bytes of its own; the initrd within the same 32 GiB, from a multiple of 1 GiB; the device
//! tree 8-byte aligned, at most 2 MiB; all of it below 2^48.

use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use serde::{Deserialize, Serialize};

/// First address that no piece may reach: the boot protocol wants everything within 48 bits.
pub const ADDRESS_LIMIT: PhysAddr = PhysAddr::new(1 << 48);
/// Image and initrd lie within this many bytes, counted from a multiple of [`WINDOW_ALIGNMENT_BYTES`].
pub const WINDOW_BYTES: u64 = 32 << 30;
/// Where such a window may start.
pub const WINDOW_ALIGNMENT_BYTES: u64 = 1 << 30;
/// Alignment of the Image's base, and of every target: 2 MiB.
pub const BASE_ALIGNMENT_BYTES: u64 = 2 << 20;
/// Smallest page that pieces are cut at, 64 KiB: the largest granule, so that every part can have
/// permissions of its own, and the smallest huge page that Linux has.
pub const UNIT_MIN_BYTES: u64 = 64 << 10;
/// Most huge pages that are looked at: 512 GiB of 2 MiB pages.
pub const PAGES_MAX: usize = 256 * 1024;
/// Most memory of ours that a layout may use, bytes: that many pages of 2 MiB.
pub const OWNED_MAX_BYTES: u64 = 512 << 30;

/// Which way pieces get to their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// In place where possible, moved where not.
    #[default]
    Auto,
    /// In place or not at all.
    InPlace,
    /// Everything is moved.
    Relocate,
    /// No page is ours: the first kernel itself brings every piece to its place.
    Kernel,
}

/// Memory that we own: a whole huge page, or a part of one, or several that follow each other both in
/// memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owned {
    /// Where it is.
    pub address: PhysAddr,
    /// How long it is, bytes.
    pub size_bytes: u64,
    /// Number of the file that holds it.
    pub file: usize,
    /// Where in that file, bytes.
    pub offset_bytes: u64,
}

impl Owned {
    /// The memory. Empty if it would run over the end of the address space, which [`choose`] refuses.
    #[must_use]
    pub fn range(&self) -> PhysRange {
        PhysRange::from_size(self.address, self.size_bytes).unwrap_or_default()
    }

    /// The `size_bytes` bytes from `offset_bytes` on; both lie within.
    fn part(&self, offset_bytes: u64, size_bytes: u64) -> Self {
        Self {
            address: self
                .address
                .checked_add(offset_bytes)
                .unwrap_or(self.address),
            size_bytes,
            file: self.file,
            offset_bytes: self.offset_bytes + offset_bytes,
        }
    }

    /// Whether `next` continues this one, in memory and in the file.
    fn continues_in(&self, next: &Self) -> bool {
        self.file == next.file
            && self.offset_bytes + self.size_bytes == next.offset_bytes
            && self.address.checked_add(self.size_bytes) == Some(next.address)
    }
}

/// Appends, joined with the last one where the two are one.
fn push(parts: &mut Vec<Owned>, part: Owned) {
    match parts.last_mut() {
        Some(last) if last.continues_in(&part) => last.size_bytes += part.size_bytes,
        _ => parts.push(part),
    }
}

/// How large the pieces are. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Bytes of the Image file.
    pub image_file_bytes: u64,
    /// `image_size` of its header: file, BSS and first tables.
    pub image_size_bytes: u64,
    /// `text_offset` of its header.
    pub text_offset_bytes: u64,
    /// Bytes of the initrd; 0 if there is none.
    pub initrd_bytes: u64,
    /// Most bytes that the device tree will have.
    pub device_tree_bytes: u64,
    /// Most bytes that the stage will have.
    pub stage_bytes: u64,
}

/// Where one piece is, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where it belongs, with all the room that it needs there.
    pub target: PhysRange,
    /// The memory of ours that holds it now, in the order of its bytes, the first of which belongs at the
    /// start of the target. A part that is where it belongs is not moved. Empty if the first kernel brings
    /// the piece to its place ([`Strategy::Kernel`]).
    pub parts: Vec<Owned>,
    /// Memory of ours in the room behind what is written. It holds nothing; it is kept so that nobody else
    /// has it. Room that is not ours is plain System RAM.
    pub room: Vec<Owned>,
    /// Bytes from the start of the target, and of the parts, to the piece's first byte.
    pub offset_bytes: u64,
}

impl Place {
    /// Address of the piece's first byte, where it belongs.
    #[must_use]
    pub fn start(&self) -> PhysAddr {
        // `offset_bytes` is below 2 MiB and the target is at least that long.
        self.target
            .start()
            .checked_add(self.offset_bytes)
            .unwrap_or(self.target.end())
    }

    /// Every part with the address where it belongs.
    pub fn parts_with_targets(&self) -> impl Iterator<Item = (Owned, PhysAddr)> + '_ {
        let mut at_bytes = 0_u64;
        self.parts.iter().map(move |part| {
            let target = self.target.start().checked_add(at_bytes);
            at_bytes = at_bytes.saturating_add(part.size_bytes);
            (*part, target.unwrap_or(self.target.end()))
        })
    }

    /// Bytes of our memory that hold it, count.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum: u64, part| sum.saturating_add(part.size_bytes))
    }

    /// Whether all of it is where it belongs.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.parts_with_targets()
            .all(|(part, target)| part.address == target)
    }
}

/// A place for every piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Every address and size in the layout is a multiple of this, bytes.
    pub unit_bytes: u64,
    /// The Image.
    pub image: Place,
    /// The initrd, if there is one.
    pub initrd: Option<Place>,
    /// The device tree.
    pub device_tree: Place,
    /// Where the relocator's stage goes.
    pub stage: PhysRange,
    /// The memory of ours that is kept free for it; empty where there was none to spare.
    pub stage_parts: Vec<Owned>,
    /// One unit that moves may use in between, outside of everything else.
    pub spare: Option<PhysRange>,
}

impl Layout {
    /// All memory of ours that the layout uses.
    pub fn owned(&self) -> impl Iterator<Item = Owned> + '_ {
        self.places()
            .flat_map(|place| place.parts.iter().chain(&place.room).copied())
            .chain(self.stage_parts.iter().copied())
    }

    fn owned_mut(&mut self) -> impl Iterator<Item = &mut Vec<Owned>> {
        [
            Some(&mut self.image),
            self.initrd.as_mut(),
            Some(&mut self.device_tree),
        ]
        .into_iter()
        .flatten()
        .flat_map(|place| [&mut place.parts, &mut place.room])
        .chain([&mut self.stage_parts])
    }

    /// Whether what is ours can be: each of it at an address and of a size that are multiples of the unit,
    /// none of it twice, and no more than [`OWNED_MAX_BYTES`]. For a layout that comes out of a file.
    ///
    /// # Errors
    /// [`LayoutError::Pages`] or [`LayoutError::TooManyPages`].
    pub fn check(&self) -> Result<(), LayoutError> {
        let owned: Vec<Owned> = self.owned().collect();
        check_owned(&owned, self.unit_bytes)?;
        // They do not overlap, so that the sum fits.
        let owned_bytes: u64 = owned.iter().map(|part| part.size_bytes).sum();
        if owned_bytes > OWNED_MAX_BYTES {
            return Err(LayoutError::Pages(format!("{owned_bytes} bytes of them")));
        }
        Ok(())
    }

    /// Every piece's place.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        [
            Some(&self.image),
            self.initrd.as_ref(),
            Some(&self.device_tree),
        ]
        .into_iter()
        .flatten()
    }

    /// Whether nothing is moved at hand-over.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.places().all(Place::is_in_place)
    }

    /// What is moved at hand-over, bytes.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.places()
            .flat_map(Place::parts_with_targets)
            .filter(|(part, target)| part.address != *target)
            .fold(0, |sum: u64, (part, _)| sum.saturating_add(part.size_bytes))
    }

    /// Where everything ends up, stage included.
    fn occupied(&self) -> PhysRanges {
        self.places()
            .map(|place| place.target)
            .chain([self.stage])
            .collect()
    }

    /// The same layout after pages have migrated: `address_of` says where a byte of a file is now, for
    /// every multiple of the unit. What belongs where does not change; what has to be moved does.
    ///
    /// The stage's own page may have moved as well; the stage stays where it was to go, unless something of
    /// ours lies there now: then it goes where its page is.
    ///
    /// # Errors
    /// [`LayoutError::NoTarget`] if a target or the stage is no longer memory that may be used,
    /// [`LayoutError::Pages`] if the new addresses make no sense, and whatever `address_of` answers.
    pub fn repaired<E: From<LayoutError>>(
        &self,
        plain_ram: &PhysRanges,
        mut address_of: impl FnMut(usize, u64) -> Result<PhysAddr, E>,
    ) -> Result<Self, E> {
        self.check()?;
        let mut layout = self.clone();
        for parts in layout.owned_mut() {
            let mut found = Vec::new();
            for part in parts.iter() {
                let mut at_bytes = 0;
                while at_bytes < part.size_bytes {
                    let size_bytes = self.unit_bytes.min(part.size_bytes - at_bytes);
                    let offset_bytes = part.offset_bytes + at_bytes;
                    push(
                        &mut found,
                        Owned {
                            address: address_of(part.file, offset_bytes)?,
                            size_bytes,
                            file: part.file,
                            offset_bytes,
                        },
                    );
                    at_bytes += size_bytes;
                }
            }
            *parts = found;
        }
        let owned: Vec<Owned> = layout.owned().collect();
        check_owned(&owned, self.unit_bytes)?;
        let usable = plain_ram.union(&memory_of(&owned));
        let targets: PhysRanges = layout.places().map(|place| place.target).collect();
        if let Some(lost) = targets.iter().find(|range| !usable.contains_range(**range)) {
            return Err(LayoutError::NoTarget {
                piece: "payload",
                wanted_bytes: lost.size_bytes(),
            }
            .into());
        }
        let held: PhysRanges = layout
            .places()
            .flat_map(|place| place.parts.iter().map(Owned::range))
            .collect();
        let used = targets.union(&held);
        let stage_bytes = layout.stage.size_bytes();
        let own_page = layout
            .stage_parts
            .iter()
            .filter_map(|part| PhysRange::from_size(part.address, stage_bytes).ok());
        let elsewhere = plain_ram
            .difference(&memory_of(&owned).union(&used))
            .highest_fit(stage_bytes, BASE_ALIGNMENT_BYTES, everywhere());
        layout.stage = [layout.stage]
            .into_iter()
            .chain(own_page)
            .chain(elsewhere)
            .find(|range| usable.contains_range(*range) && !used.overlaps(*range))
            .ok_or(LayoutError::NoTarget {
                piece: "relocator",
                wanted_bytes: stage_bytes,
            })?;
        let used = layout.occupied().union(&held);
        layout.spare = spare(&plain_ram.difference(&used), self.unit_bytes);
        Ok(layout)
    }
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too few pages to hold the pieces at all.
    #[error("the payload needs {wanted_bytes} bytes of huge pages, {found_bytes} are there")]
    TooFewPages {
        /// Bytes wanted.
        wanted_bytes: u64,
        /// Bytes there are.
        found_bytes: u64,
    },
    /// No contiguous run is long enough, and nothing may be moved.
    #[error(
        "no {wanted_bytes} contiguous bytes for the {piece}: the best place has {found_bytes} of them"
    )]
    NoRun {
        /// Which piece.
        piece: &'static str,
        /// How long the run has to be, bytes.
        wanted_bytes: u64,
        /// How many bytes of ours the best place has.
        found_bytes: u64,
    },
    /// No range that may be used is long enough.
    #[error("no {wanted_bytes} contiguous bytes of plain System RAM for the {piece}")]
    NoTarget {
        /// Which piece.
        piece: &'static str,
        /// How many bytes.
        wanted_bytes: u64,
    },
    /// The pages given make no sense.
    #[error("the huge pages given cannot be: {0}")]
    Pages(String),
    /// More pages than there can be.
    #[error("{0} huge pages: more than {PAGES_MAX}")]
    TooManyPages(usize),
}

/// Checks what is said to be ours: a page that is misaligned, listed twice or over the end of memory was
/// misread, and may not be ours at all.
fn check_owned(owned: &[Owned], unit_bytes: u64) -> Result<(), LayoutError> {
    let wrong = |what: String| Err(LayoutError::Pages(what));
    if owned.len() > PAGES_MAX {
        return Err(LayoutError::TooManyPages(owned.len()));
    }
    if !unit_bytes.is_power_of_two()
        || !(UNIT_MIN_BYTES..=BASE_ALIGNMENT_BYTES).contains(&unit_bytes)
    {
        return wrong(format!("cut at every {unit_bytes} bytes"));
    }
    let mut sorted = owned.to_vec();
    sorted.sort_unstable();
    let mut end = PhysAddr::new(0);
    for page in sorted {
        let aligned = page.address.is_aligned(unit_bytes)
            && page.size_bytes.is_multiple_of(unit_bytes)
            && page.offset_bytes.is_multiple_of(unit_bytes);
        let ends = page.offset_bytes.checked_add(page.size_bytes).is_some();
        if !aligned || !ends || page.size_bytes == 0 {
            return wrong(format!(
                "{} bytes at {} are no multiples of {unit_bytes} bytes",
                page.size_bytes, page.address
            ));
        }
        if page.address < end {
            return wrong(format!(
                "the page at {} is listed twice; pages moved while their addresses were read: load again",
                page.address
            ));
        }
        end = match page.address.checked_add(page.size_bytes) {
            Some(end) => end,
            None => {
                return wrong(format!(
                    "the page at {} runs over the end of the address space",
                    page.address
                ));
            }
        };
    }
    Ok(())
}

/// The memory of some pages as a set.
fn memory_of(owned: &[Owned]) -> PhysRanges {
    owned.iter().map(Owned::range).collect()
}

/// The highest unit of some memory.
fn spare(free: &PhysRanges, unit_bytes: u64) -> Option<PhysRange> {
    free.highest_fit(unit_bytes, unit_bytes, everywhere())
}

fn everywhere() -> PhysRange {
    PhysRange::new(PhysAddr::new(0), ADDRESS_LIMIT).unwrap_or_default()
}

/// Memory of ours that is not used yet, by address, and how much of it lies below any address.
#[derive(Debug, Clone)]
struct Free {
    pages: Vec<Owned>,
    /// Bytes of ours before each page, and after the last.
    before_bytes: Vec<u64>,
}

impl Free {
    fn new(mut pages: Vec<Owned>) -> Self {
        pages.sort_unstable();
        let mut sum_bytes = 0;
        let mut before_bytes = vec![0];
        for page in &pages {
            sum_bytes += page.size_bytes;
            before_bytes.push(sum_bytes);
        }
        Self {
            pages,
            before_bytes,
        }
    }

    fn total_bytes(&self) -> u64 {
        self.before_bytes.last().copied().unwrap_or(0)
    }

    /// Bytes of ours below `address`.
    fn below_bytes(&self, address: PhysAddr) -> u64 {
        let after = self.pages.partition_point(|page| page.address < address);
        let whole_bytes = self.before_bytes.get(after).copied().unwrap_or(0);
        let over_bytes = after
            .checked_sub(1)
            .and_then(|last| self.pages.get(last))
            .and_then(|last| last.range().end().offset_from(address))
            .unwrap_or(0);
        whole_bytes - over_bytes
    }

    /// Bytes of ours within `range`.
    fn within_bytes(&self, range: PhysRange) -> u64 {
        self.below_bytes(range.end()) - self.below_bytes(range.start())
    }

    fn ranges(&self) -> PhysRanges {
        self.pages.iter().map(Owned::range).collect()
    }

    /// What lies within `range`, in order.
    fn within(&self, range: PhysRange) -> impl Iterator<Item = Owned> + '_ {
        let first = self
            .pages
            .partition_point(|page| page.range().end() <= range.start());
        self.pages
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(move |page| page.address < range.end())
            .filter_map(move |page| {
                let inside = page.range().intersection(range)?;
                let from_bytes = inside.start().offset_from(page.address)?;
                (!inside.is_empty()).then(|| page.part(from_bytes, inside.size_bytes()))
            })
    }

    /// Removes all of `taken`, in one pass over the pages: there may be as many of both.
    fn remove(&mut self, taken: &PhysRanges) {
        let mut left = Vec::new();
        for page in &self.pages {
            let whole = page.range();
            let mut keep = |from: PhysAddr, to: PhysAddr| {
                if let (Some(from_bytes), Some(size_bytes)) =
                    (from.offset_from(whole.start()), to.offset_from(from))
                    && size_bytes > 0
                {
                    left.push(page.part(from_bytes, size_bytes));
                }
            };
            let first = taken
                .as_slice()
                .partition_point(|range| range.end() <= whole.start());
            let mut from = whole.start();
            for range in taken.as_slice().get(first..).unwrap_or_default() {
                if range.start() >= whole.end() {
                    break;
                }
                keep(from, range.start());
                from = range.end();
            }
            keep(from, whole.end());
        }
        *self = Self::new(left);
    }

    /// Takes what lies within `range`, in order.
    fn take(&mut self, range: PhysRange) -> Vec<Owned> {
        let taken = self.within(range).collect();
        self.remove(&range.into());
        taken
    }
}

/// What is asked for one piece. Sizes are whole units.
#[derive(Debug, Clone, Copy)]
struct Wish {
    name: &'static str,
    /// From the start of the target to the end of what is written there, bytes.
    held_bytes: u64,
    /// From the start of the target to the end of the room, bytes.
    room_bytes: u64,
    offset_bytes: u64,
}

impl Wish {
    fn new(
        name: &'static str,
        offset_bytes: u64,
        content_bytes: u64,
        room_bytes: u64,
        unit_bytes: u64,
    ) -> Result<Self, LayoutError> {
        let whole = |bytes: u64, alignment_bytes| {
            bytes
                .max(1)
                .checked_next_multiple_of(alignment_bytes)
                .ok_or(LayoutError::NoTarget {
                    piece: name,
                    wanted_bytes: bytes,
                })
        };
        let held_bytes = whole(offset_bytes.saturating_add(content_bytes), unit_bytes)?;
        let room_bytes = whole(
            offset_bytes.saturating_add(room_bytes),
            BASE_ALIGNMENT_BYTES,
        )?;
        Ok(Self {
            name,
            held_bytes,
            room_bytes: room_bytes.max(held_bytes),
            offset_bytes,
        })
    }
}

/// Whether two ranges lie in one window as the boot protocol wants it.
#[must_use]
pub fn in_one_window(first: PhysRange, second: PhysRange) -> bool {
    let start = first
        .start()
        .min(second.start())
        .align_down(WINDOW_ALIGNMENT_BYTES);
    first
        .end()
        .max(second.end())
        .offset_from(start)
        .is_some_and(|bytes| bytes <= WINDOW_BYTES)
}

/// Where a piece may lie to be in one window with `near`, which it does not overlap: below it, above
/// it. Without `near`, anywhere.
fn windows(near: Option<PhysRange>) -> [PhysRange; 2] {
    let window = |start: PhysAddr, end: PhysAddr| {
        // Reversed: there is no such place.
        PhysRange::new(start, end.min(ADDRESS_LIMIT)).unwrap_or_default()
    };
    let Some(near) = near else {
        return [everywhere(), PhysRange::default()];
    };
    let last_end = near
        .end()
        .align_up(WINDOW_ALIGNMENT_BYTES)
        .unwrap_or(ADDRESS_LIMIT);
    let lowest = PhysAddr::new(last_end.as_u64().saturating_sub(WINDOW_BYTES));
    let first_start = near.start().align_down(WINDOW_ALIGNMENT_BYTES);
    let highest = first_start
        .checked_add(WINDOW_BYTES)
        .unwrap_or(ADDRESS_LIMIT);
    [window(lowest, near.start()), window(near.end(), highest)]
}

/// What makes one candidate better than another, most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merit {
    /// Bytes that need not be moved.
    in_place_bytes: u64,
    /// Bytes of the room that are ours, if that is asked for.
    room_bytes: u64,
    /// The shorter the run of ours that it is cut from, the better: long ones are left for what needs them.
    run: std::cmp::Reverse<u64>,
    /// The higher the better: low memory is what devices with few address bits need.
    start: PhysAddr,
}

/// One of the ways to place all pieces.
#[derive(Debug, Clone, Copy)]
struct Way {
    initrd_first: bool,
    room_is_ours: bool,
    /// Only at the ends of usable memory, so that what is left stays in one piece.
    packed: bool,
}

struct Chooser<'a> {
    free: Free,
    /// Where targets may be: shrinks with every target.
    usable: PhysRanges,
    /// The targets chosen so far, and the stage.
    occupied: PhysRanges,
    plain_ram: &'a PhysRanges,
    strategy: Strategy,
    unit_bytes: u64,
    way: Way,
}

impl Chooser<'_> {
    /// The best target for a piece.
    fn target(&mut self, wish: &Wish, near: Option<PhysRange>) -> Result<PhysRange, LayoutError> {
        let no_target = LayoutError::NoTarget {
            piece: wish.name,
            wanted_bytes: wish.room_bytes,
        };
        let windows = windows(near);
        let anywhere = windows.iter().rev().find_map(|window| {
            self.usable
                .highest_fit(wish.room_bytes, BASE_ALIGNMENT_BYTES, *window)
        });
        let best = if self.strategy == Strategy::Relocate || self.strategy == Strategy::Kernel {
            None
        } else {
            self.best(wish, &windows)
        };
        let (target, in_place_bytes) = match best {
            Some((merit, target)) => (target, merit.in_place_bytes),
            None => (anywhere.ok_or(no_target)?, 0),
        };
        if self.strategy == Strategy::InPlace && in_place_bytes < wish.held_bytes {
            return Err(LayoutError::NoRun {
                piece: wish.name,
                wanted_bytes: wish.held_bytes,
                found_bytes: in_place_bytes,
            });
        }
        self.usable.subtract(target);
        self.occupied.insert(target);
        Ok(target)
    }

    /// The candidate with the most merit; none if no range has a byte of ours.
    fn best(&self, wish: &Wish, windows: &[PhysRange; 2]) -> Option<(Merit, PhysRange)> {
        let runs = self.free.ranges();
        let run_bytes = |start: PhysAddr| {
            let after = runs.as_slice().partition_point(|run| run.end() <= start);
            runs.as_slice()
                .get(after)
                .map_or(u64::MAX, |run| run.size_bytes())
        };
        let mut best: Option<(Merit, PhysRange)> = None;
        let mut consider = |target: PhysRange| {
            let part = |size_bytes| PhysRange::from_size(target.start(), size_bytes).ok();
            let Some(held) = part(wish.held_bytes) else {
                return;
            };
            let in_place_bytes = self.free.within_bytes(held);
            if in_place_bytes == 0 {
                return;
            }
            let room_bytes = if self.way.room_is_ours {
                self.free.within_bytes(target)
            } else {
                0
            };
            let merit = Merit {
                in_place_bytes,
                room_bytes,
                run: std::cmp::Reverse(run_bytes(target.start())),
                start: target.start(),
            };
            if best.is_none_or(|(other, _)| merit > other) {
                best = Some((merit, target));
            }
        };
        for window in windows {
            for room in &self.usable.within(*window) {
                let fit = |start: Option<PhysAddr>| {
                    PhysRange::from_size(start?, wish.room_bytes)
                        .ok()
                        .filter(|target| room.contains_range(*target))
                };
                let before = |end: PhysAddr, bytes: u64| {
                    Some(PhysAddr::new(end.as_u64().checked_sub(bytes)?))
                };
                let ends = [Some(room.start()), before(room.end(), wish.room_bytes)];
                let (from, to) = (
                    runs.as_slice()
                        .partition_point(|run| run.end() <= room.start()),
                    runs.as_slice()
                        .partition_point(|run| run.start() < room.end()),
                );
                let inside = runs.as_slice().get(from..to).unwrap_or_default();
                let starts = inside.iter().flat_map(|run| {
                    [
                        Some(run.start()),
                        before(run.end(), wish.held_bytes),
                        before(run.end(), wish.room_bytes),
                    ]
                });
                let starts = starts.filter(|_| !self.way.packed);
                for start in ends.into_iter().chain(starts).flatten() {
                    let below = start.align_down(BASE_ALIGNMENT_BYTES);
                    let above = start.align_up(BASE_ALIGNMENT_BYTES);
                    fit(Some(below)).map(&mut consider);
                    if above != Some(below) {
                        fit(above).map(&mut consider);
                    }
                }
            }
        }
        best
    }

    /// Takes what is in place for a target; says where the rest belongs.
    fn take_in_place(&mut self, wish: &Wish, target: PhysRange) -> (Vec<Owned>, PhysRanges) {
        let held = PhysRange::from_size(target.start(), wish.held_bytes).unwrap_or(target);
        let parts = if self.strategy == Strategy::Relocate {
            Vec::new()
        } else {
            self.free.take(held)
        };
        let mut gaps = PhysRanges::from(held);
        for part in &parts {
            gaps.subtract(part.range());
        }
        (parts, gaps)
    }

    /// Memory of ours for what belongs into `gaps`: with the address where each part belongs.
    fn fill(&mut self, gaps: &PhysRanges) -> Result<Vec<(PhysAddr, Owned)>, LayoutError> {
        let wanted_bytes = gaps.size_bytes();
        let mut sources = Vec::new();
        let runs = self.free.ranges();
        // Outside of every target first; inside only where there is nothing else. The longest runs first,
        // for as few moves as possible.
        let longest_first = |set: PhysRanges| {
            let mut runs: Vec<PhysRange> = set.into_iter().collect();
            runs.sort_by_key(|run| (std::cmp::Reverse(run.size_bytes()), run.start()));
            runs
        };
        let mut missing_bytes = wanted_bytes;
        let mut taken = Vec::new();
        for run in longest_first(runs.difference(&self.occupied))
            .into_iter()
            .chain(longest_first(runs.intersection(&self.occupied)))
        {
            if missing_bytes == 0 {
                break;
            }
            let size_bytes = missing_bytes.min(run.size_bytes());
            let Ok(range) = PhysRange::from_size(run.start(), size_bytes) else {
                break;
            };
            sources.extend(self.free.within(range));
            taken.push(range);
            missing_bytes -= size_bytes;
        }
        self.free.remove(&taken.into_iter().collect());
        if missing_bytes > 0 {
            return Err(LayoutError::TooFewPages {
                wanted_bytes,
                found_bytes: wanted_bytes - missing_bytes,
            });
        }
        let mut filled = Vec::new();
        let mut sources = sources.into_iter();
        let mut current: Option<Owned> = None;
        for gap in gaps {
            let mut at_bytes = 0;
            while at_bytes < gap.size_bytes() {
                let Some(source) = current.take().or_else(|| sources.next()) else {
                    break; // there are exactly as many bytes as are missing
                };
                let size_bytes = source.size_bytes.min(gap.size_bytes() - at_bytes);
                let target = gap.start().checked_add(at_bytes).unwrap_or(gap.end());
                filled.push((target, source.part(0, size_bytes)));
                if size_bytes < source.size_bytes {
                    current = Some(source.part(size_bytes, source.size_bytes - size_bytes));
                }
                at_bytes += size_bytes;
            }
        }
        Ok(filled)
    }

    /// Where the stage goes: ours and outside of every target, or else plain memory.
    fn stage(&mut self, stage_bytes: u64) -> Result<(PhysRange, Vec<Owned>), LayoutError> {
        let no_target = LayoutError::NoTarget {
            piece: "relocator",
            wanted_bytes: stage_bytes,
        };
        let ours = self
            .free
            .ranges()
            .difference(&self.occupied)
            .iter()
            .filter_map(|run| {
                let start = run.start().align_up(BASE_ALIGNMENT_BYTES)?;
                let range = PhysRange::from_size(start, stage_bytes).ok()?;
                (run.contains_range(range) && range.end() <= ADDRESS_LIMIT)
                    .then_some((run.size_bytes(), range))
            })
            .min_by_key(|(run_bytes, _)| *run_bytes)
            .map(|(_, range)| range);
        let range = match ours {
            Some(range) => range,
            None => self
                .usable
                .difference(&self.free.ranges())
                .intersection(self.plain_ram)
                .highest_fit(stage_bytes, BASE_ALIGNMENT_BYTES, everywhere())
                .ok_or(no_target)?,
        };
        self.usable.subtract(range);
        self.occupied.insert(range);
        let mut parts = Vec::new();
        for part in self.free.take(range) {
            push(&mut parts, part);
        }
        Ok((range, parts))
    }

    fn layout(
        mut self,
        image: &Wish,
        initrd: Option<&Wish>,
        device_tree: &Wish,
        stage_bytes: u64,
    ) -> Result<Layout, LayoutError> {
        let (image_target, initrd_target) = match initrd {
            None => (self.target(image, None)?, None),
            Some(initrd) if self.way.initrd_first => {
                let first = self.target(initrd, None)?;
                (self.target(image, Some(first))?, Some(first))
            }
            Some(initrd) => {
                let first = self.target(image, None)?;
                (first, Some(self.target(initrd, Some(first))?))
            }
        };
        let tree_target = self.target(device_tree, None)?;
        let (stage, stage_parts) = self.stage(stage_bytes)?;
        let mut wishes = vec![(image, image_target), (device_tree, tree_target)];
        wishes.extend(initrd.zip(initrd_target));
        // All that is in place before anything that is not: a page that is at its place must not be taken
        // to hold something else.
        let halves: Vec<(Vec<Owned>, PhysRanges)> = wishes
            .iter()
            .map(|(wish, target)| self.take_in_place(wish, *target))
            .collect();
        let mut places = Vec::new();
        for ((wish, target), (in_place, gaps)) in wishes.iter().zip(halves) {
            let mut parts: Vec<(PhysAddr, Owned)> = in_place
                .into_iter()
                .map(|part| (part.address, part))
                .collect();
            if self.strategy != Strategy::Kernel {
                parts.extend(self.fill(&gaps)?);
            }
            parts.sort_unstable_by_key(|(at, _)| *at);
            let mut joined = Vec::new();
            for (_, part) in parts {
                push(&mut joined, part);
            }
            places.push(Place {
                target: *target,
                parts: joined,
                room: Vec::new(),
                offset_bytes: wish.offset_bytes,
            });
        }
        // What is still ours in the room behind, when everything that holds something has its place.
        for place in &mut places {
            for part in self.free.take(place.target) {
                push(&mut place.room, part);
            }
        }
        let mut places = places.into_iter();
        let (Some(image), Some(device_tree)) = (places.next(), places.next()) else {
            return Err(LayoutError::Pages("no place for a piece".into()));
        };
        let mut layout = Layout {
            unit_bytes: self.unit_bytes,
            image,
            initrd: places.next(),
            device_tree,
            stage,
            stage_parts,
            spare: None,
        };
        let used = layout
            .occupied()
            .union(&layout.owned().map(|part| part.range()).collect());
        layout.spare = spare(&self.plain_ram.difference(&used), self.unit_bytes);
        Ok(layout)
    }
}

/// Bytes that a layout leaves to be moved, and bytes of its targets that are not ours.
fn cost(layout: &Layout) -> (u64, u64) {
    let owned: PhysRanges = layout.owned().map(|part| part.range()).collect();
    let foreign_bytes = layout.occupied().difference(&owned).size_bytes();
    (layout.moved_bytes(), foreign_bytes)
}

/// Chooses a place for every piece.
///
/// `owned` is the memory we own, `plain_ram` the System RAM with nothing nested in it
/// ([`kleap_memmap::iomem::plain_system_ram`]); every address and size of what we own is a multiple of
/// `unit_bytes`. More memory than is used may be given: the more, the more likely a long run. With
/// [`Strategy::Kernel`] nothing is owned.
///
/// # Errors
/// [`LayoutError`]: with [`LayoutError::NoRun`] and [`LayoutError::TooFewPages`] more pages may help.
pub fn choose(
    owned: &[Owned],
    unit_bytes: u64,
    plain_ram: &PhysRanges,
    requirements: &Requirements,
    strategy: Strategy,
) -> Result<Layout, LayoutError> {
    check_owned(owned, unit_bytes)?;
    let wish = |name, offset_bytes, content_bytes, room_bytes| {
        Wish::new(name, offset_bytes, content_bytes, room_bytes, unit_bytes)
    };
    let image = wish(
        "Image",
        requirements.text_offset_bytes,
        requirements.image_file_bytes,
        requirements.image_size_bytes,
    )?;
    let initrd_bytes = requirements.initrd_bytes;
    let initrd = match initrd_bytes {
        0 => None,
        _ => Some(wish("initrd", 0, initrd_bytes, initrd_bytes)?),
    };
    let tree_bytes = requirements.device_tree_bytes;
    let device_tree = wish("device tree", 0, tree_bytes, tree_bytes)?;
    let stage_bytes = requirements
        .stage_bytes
        .max(1)
        .checked_next_multiple_of(unit_bytes)
        .ok_or(LayoutError::NoTarget {
            piece: "relocator",
            wanted_bytes: requirements.stage_bytes,
        })?;

    let limited = |page: &Owned| {
        let inside = page.range().intersection(everywhere())?;
        (!inside.is_empty()).then(|| page.part(0, inside.size_bytes()))
    };
    let free = Free::new(match strategy {
        Strategy::Kernel => Vec::new(),
        _ => owned.iter().filter_map(limited).collect(),
    });
    let held_bytes = image
        .held_bytes
        .saturating_add(initrd.map_or(0, |wish| wish.held_bytes))
        .saturating_add(device_tree.held_bytes);
    if strategy != Strategy::Kernel && free.total_bytes() < held_bytes {
        return Err(LayoutError::TooFewPages {
            wanted_bytes: held_bytes,
            found_bytes: free.total_bytes(),
        });
    }
    let all_owned = memory_of(owned);
    let usable = match strategy {
        // What is to be moved must not be there already, and what the kernel brings must not be ours.
        Strategy::Relocate | Strategy::Kernel => plain_ram.difference(&all_owned),
        Strategy::Auto | Strategy::InPlace => plain_ram.union(&free.ranges()),
    };

    let longer_first = initrd.is_some_and(|wish| wish.room_bytes > image.room_bytes);
    let mut best: Option<Layout> = None;
    let mut first_error = None;
    for (initrd_first, room_is_ours, packed) in [
        (longer_first, true, false),
        (!longer_first, true, false),
        (longer_first, false, false),
        (!longer_first, false, false),
        (longer_first, false, true),
        (!longer_first, false, true),
    ] {
        let chooser = Chooser {
            free: free.clone(),
            usable: usable.clone(),
            occupied: PhysRanges::new(),
            plain_ram,
            strategy,
            unit_bytes,
            way: Way {
                initrd_first,
                room_is_ours,
                packed,
            },
        };
        match chooser.layout(&image, initrd.as_ref(), &device_tree, stage_bytes) {
            Ok(layout) => {
                let best_cost = best.as_ref().map(cost);
                if best_cost.is_none_or(|best_cost| cost(&layout) < best_cost) {
                    best = Some(layout);
                }
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
        if best.as_ref().is_some_and(|layout| cost(layout) == (0, 0)) {
            break;
        }
    }
    match (best, first_error) {
        (Some(layout), _) => Ok(layout),
        (None, Some(error)) => Err(error),
        (None, None) => Err(LayoutError::Pages("no way to place them".into())),
    }
}

#[cfg(test)]
mod tests;
