//! A place for every piece.
//!
//! What is known: huge pages that we own, at their physical addresses; the memory map; how large each
//! piece is. What is wanted: each piece in one contiguous range at an address that the boot protocol
//! allows. Where the pages we own contain such a range, the piece is written there and nothing is moved
//! at hand-over ([`Place::is_in_place`]). Where not, it is written to any pages we own, and the relocator moves it
//! to a range of plain System RAM that nobody needs once the first kernel is gone.
//!
//! That target never overlaps a page that we own. So no move can overwrite what a later move reads, in
//! any order, and the relocator can never overwrite itself: the price is that a piece is moved whole even
//! where part of it is already in place.
//!
//! The rules (Documentation/arch/arm64/booting.rst): Image at a 2 MiB-aligned base plus `text_offset`, with
//! `image_size` bytes of its own; the initrd within the same 32 GiB, from a multiple of 1 GiB; the device
//! tree 8-byte aligned, at most 2 MiB; all of it below 2^48.

use kleap_memmap::runs::contiguous_runs;
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
/// Most huge pages that are looked at: 512 GiB of 2 MiB pages.
pub const PAGES_MAX: usize = 256 * 1024;

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
}

/// A huge page that we own, and which page of our file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owned {
    /// Where it is.
    pub address: PhysAddr,
    /// Its index in the file.
    pub index: usize,
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
    /// Most bytes that the stage will have; it must fit in one huge page.
    pub stage_bytes: u64,
}

/// Where one piece is, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where it belongs: whole huge pages.
    pub target: PhysRange,
    /// The pages that hold it, in order. In place, they *are* the target.
    pub pages: Vec<Owned>,
    /// Bytes from the start of the target, and of the pages, to the piece's first byte.
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

    /// Whether the pages that hold it are the target.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.pages
            .first()
            .is_some_and(|page| page.address == self.target.start())
    }
}

/// A place for every piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Size of a huge page, bytes.
    pub page_size_bytes: u64,
    /// The Image.
    pub image: Place,
    /// The initrd, if there is one.
    pub initrd: Option<Place>,
    /// The device tree.
    pub device_tree: Place,
    /// The page of the relocator's stage.
    pub stage: Owned,
}

impl Layout {
    /// Every page that the layout uses.
    pub fn pages(&self) -> impl Iterator<Item = Owned> + '_ {
        self.places()
            .flat_map(|place| place.pages.iter().copied())
            .chain([self.stage])
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
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too few pages to hold the pieces at all.
    #[error("the payload needs {wanted} huge pages, {found} are there")]
    TooFewPages {
        /// Pages wanted, count.
        wanted: u64,
        /// Pages there are, count.
        found: u64,
    },
    /// No contiguous run is long enough, and nothing may be moved.
    #[error(
        "no {wanted_bytes} contiguous bytes for the {piece}: the longest free run has {longest_bytes}"
    )]
    NoRun {
        /// Which piece.
        piece: &'static str,
        /// How long the run has to be, bytes.
        wanted_bytes: u64,
        /// How long the longest is, bytes.
        longest_bytes: u64,
    },
    /// No target outside our own pages.
    #[error("no {wanted_bytes} contiguous bytes of plain System RAM to move the {piece} to")]
    NoTarget {
        /// Which piece.
        piece: &'static str,
        /// How many bytes.
        wanted_bytes: u64,
    },
    /// The stage does not fit in a huge page.
    #[error("the relocator and its tables need {stage_bytes} bytes, more than a huge page has")]
    StageTooLarge {
        /// How many bytes.
        stage_bytes: u64,
    },
    /// The pages given make no sense.
    #[error("the huge pages given cannot be: {0}")]
    Pages(String),
    /// More pages than there can be.
    #[error("{0} huge pages: more than {PAGES_MAX}")]
    TooManyPages(usize),
}

/// Pages we own and have not used yet, by address.
struct Free<'a> {
    owned: &'a [Owned],
    taken: Vec<bool>,
    page_size_bytes: u64,
}

/// Whether all of a page lies where the boot protocol allows it.
fn is_usable(page: &Owned, page_size_bytes: u64) -> bool {
    let end = page.address.checked_add(page_size_bytes);
    end.is_some_and(|end| end <= ADDRESS_LIMIT)
}

impl Free<'_> {
    fn runs(&self) -> Result<Vec<PhysRange>, LayoutError> {
        let pages: Vec<PhysAddr> = self
            .owned
            .iter()
            .zip(&self.taken)
            .filter(|(page, taken)| !**taken && is_usable(page, self.page_size_bytes))
            .map(|(page, _)| page.address)
            .collect();
        contiguous_runs(&pages, self.page_size_bytes)
            .map_err(|error| LayoutError::Pages(error.to_string()))
    }

    /// Takes the pages of `range`.
    fn take(&mut self, range: PhysRange) -> Vec<Owned> {
        let page_size_bytes = self.page_size_bytes;
        self.take_where(usize::MAX, |page| {
            range.contains(page.address)
                && page
                    .address
                    .offset_from(range.start())
                    .is_some_and(|o| o % page_size_bytes == 0)
        })
    }

    /// Takes the first `count` pages that may be used.
    fn take_any(&mut self, count: usize) -> Vec<Owned> {
        let page_size_bytes = self.page_size_bytes;
        self.take_where(count, |page| is_usable(page, page_size_bytes))
    }

    /// Takes the first `count` pages that satisfy `wanted`.
    fn take_where(&mut self, count: usize, wanted: impl Fn(&Owned) -> bool) -> Vec<Owned> {
        let mut pages = Vec::new();
        for (page, taken) in self.owned.iter().zip(&mut self.taken) {
            if pages.len() < count && !*taken && wanted(page) {
                *taken = true;
                pages.push(*page);
            }
        }
        pages
    }
}

/// What is asked for one piece.
struct Wish {
    name: &'static str,
    /// Bytes that are written into it, from `offset_bytes` on.
    content_bytes: u64,
    /// Bytes that it occupies, from the start of the target.
    room_bytes: u64,
    offset_bytes: u64,
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
        let anywhere = window(PhysAddr::new(0), ADDRESS_LIMIT);
        return [anywhere, PhysRange::default()];
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

/// Chooses a place for every piece.
///
/// `owned` are the pages we own, `plain_ram` the System RAM with nothing nested in it
/// ([`kleap_memmap::iomem::plain_system_ram`]). More pages than are used may be given: the more, the more
/// likely a long run.
///
/// # Errors
/// [`LayoutError`]: with [`LayoutError::NoRun`] more pages may help.
pub fn choose(
    owned: &[Owned],
    page_size_bytes: u64,
    plain_ram: &PhysRanges,
    requirements: &Requirements,
    strategy: Strategy,
) -> Result<Layout, LayoutError> {
    if owned.len() > PAGES_MAX {
        return Err(LayoutError::TooManyPages(owned.len()));
    }
    if requirements.stage_bytes > page_size_bytes {
        return Err(LayoutError::StageTooLarge {
            stage_bytes: requirements.stage_bytes,
        });
    }
    let mut sorted = owned.to_vec();
    sorted.sort_unstable();
    // Whatever the strategy: a page that is misaligned or listed twice was misread, and may not be ours.
    let addresses: Vec<PhysAddr> = sorted.iter().map(|page| page.address).collect();
    contiguous_runs(&addresses, page_size_bytes)
        .map_err(|error| LayoutError::Pages(error.to_string()))?;
    let mut free = Free {
        owned: &sorted,
        taken: vec![false; sorted.len()],
        page_size_bytes,
    };

    let image = Wish {
        name: "Image",
        content_bytes: requirements.image_file_bytes,
        room_bytes: requirements
            .text_offset_bytes
            .saturating_add(requirements.image_size_bytes),
        offset_bytes: requirements.text_offset_bytes,
    };
    let initrd = Wish {
        name: "initrd",
        content_bytes: requirements.initrd_bytes,
        room_bytes: requirements.initrd_bytes,
        offset_bytes: 0,
    };
    let device_tree = Wish {
        name: "device tree",
        content_bytes: requirements.device_tree_bytes,
        room_bytes: requirements.device_tree_bytes,
        offset_bytes: 0,
    };

    // The longer one first: it has the fewest runs to choose from.
    let mut chooser = Chooser {
        free: &mut free,
        plain_ram: plain_ram.clone(),
        strategy,
    };
    for page in &sorted {
        if let Ok(range) = PhysRange::from_size(page.address, page_size_bytes) {
            chooser.plain_ram.subtract(range);
        }
    }
    let (image, initrd) = if initrd.content_bytes == 0 {
        (chooser.place(&image, None)?, None)
    } else if initrd.room_bytes > image.room_bytes {
        let initrd = chooser.place(&initrd, None)?;
        (chooser.place(&image, Some(initrd.target))?, Some(initrd))
    } else {
        let image = chooser.place(&image, None)?;
        let initrd = chooser.place(&initrd, Some(image.target))?;
        (image, Some(initrd))
    };
    let device_tree = chooser.place(&device_tree, None)?;
    let stage = free.take_any(1).pop().ok_or(LayoutError::TooFewPages {
        wanted: 1,
        found: 0,
    })?;
    Ok(Layout {
        page_size_bytes,
        image,
        initrd,
        device_tree,
        stage,
    })
}

struct Chooser<'a, 'b> {
    free: &'a mut Free<'b>,
    /// Where things may be moved to: shrinks with every target.
    plain_ram: PhysRanges,
    strategy: Strategy,
}

impl Chooser<'_, '_> {
    fn place(&mut self, wish: &Wish, near: Option<PhysRange>) -> Result<Place, LayoutError> {
        if self.strategy != Strategy::Relocate {
            match self.in_place(wish, near) {
                Err(LayoutError::NoRun { .. }) if self.strategy == Strategy::Auto => {}
                done => return done,
            }
        }
        self.moved(wish, near)
    }

    fn whole_pages(&self, bytes: u64, wish: &Wish) -> Result<u64, LayoutError> {
        bytes
            .max(1)
            .checked_next_multiple_of(self.free.page_size_bytes)
            .ok_or(LayoutError::NoTarget {
                piece: wish.name,
                wanted_bytes: bytes,
            })
    }

    fn in_place(&mut self, wish: &Wish, near: Option<PhysRange>) -> Result<Place, LayoutError> {
        let room_bytes = self.whole_pages(wish.room_bytes, wish)?;
        let runs = self.free.runs()?;
        let longest_bytes = runs.iter().map(|run| run.size_bytes()).max().unwrap_or(0);
        let alignment_bytes = BASE_ALIGNMENT_BYTES.max(self.free.page_size_bytes);
        let windows = windows(near);
        // The shortest run that is long enough: long ones are left for what needs them.
        let target = runs
            .iter()
            .flat_map(|run| windows.iter().map(move |window| (run, window)))
            .filter_map(|(run, window)| {
                let inside = run.intersection(*window)?;
                let start = inside.start().align_up(alignment_bytes)?;
                let target = PhysRange::from_size(start, room_bytes).ok()?;
                inside
                    .contains_range(target)
                    .then_some((run.size_bytes(), target))
            })
            .min_by_key(|(run_bytes, _)| *run_bytes)
            .map(|(_, target)| target)
            .ok_or(LayoutError::NoRun {
                piece: wish.name,
                wanted_bytes: room_bytes,
                longest_bytes,
            })?;
        let pages = self.free.take(target);
        Ok(Place {
            target,
            pages,
            offset_bytes: wish.offset_bytes,
        })
    }

    fn moved(&mut self, wish: &Wish, near: Option<PhysRange>) -> Result<Place, LayoutError> {
        let room_bytes = self.whole_pages(wish.room_bytes, wish)?;
        let held_bytes =
            self.whole_pages(wish.content_bytes.saturating_add(wish.offset_bytes), wish)?;
        let target = windows(near)
            .iter()
            .rev()
            .find_map(|window| {
                self.plain_ram
                    .highest_fit(room_bytes, BASE_ALIGNMENT_BYTES, *window)
            })
            .ok_or(LayoutError::NoTarget {
                piece: wish.name,
                wanted_bytes: room_bytes,
            })?;
        self.plain_ram.subtract(target);
        let count = held_bytes / self.free.page_size_bytes;
        let pages = self
            .free
            .take_any(usize::try_from(count).unwrap_or(usize::MAX));
        if pages.len() as u64 != count {
            return Err(LayoutError::TooFewPages {
                wanted: count,
                found: pages.len() as u64,
            });
        }
        Ok(Place {
            target,
            pages,
            offset_bytes: wish.offset_bytes,
        })
    }
}

#[cfg(test)]
mod tests;
