//! Huge pages for a payload: enough of them, where they do most good.
//!
//! Linux hands out huge pages in no order that could be asked for. So more are asked for than are needed, until
//! there is a run for every piece, within limits that leave the machine its memory:
//!
//! 1. where memory is scarce, and larger pages are blocks of the kernel's allocator, as with granules of 16 and 64 KiB: those, split,
//!    before it puts pages of its own into them;
//! 2. pages of 2 MiB, which every granule has, from the node of the CPU that jumps: added to the pool and looked
//!    at there ([`crate::probe`]), in larger and larger steps; only those of use are taken, those that are CMA's only
//!    where that is not enough without them;
//! 3. if that is not enough, and larger ones in memory that looks free would make a place with some of them: those, and the
//!    larger ones, which the kernel makes from one end of memory on, are split;
//! 4. if there is no such place, all of them go back, single CPUs give back what they keep, memory is compacted, and they
//!    are looked for once more;
//! 5. those that the best place lacks, which may have been left over when the limit was reached;
//! 6. where there are not even enough to hold the payload, what others have set aside, and smaller ones;
//! 7. larger ones, one of which is a run by itself: for that, what is of no use has been given back.
//!
//! What then still has no run goes to the place that has the most of it already, and only the rest is moved
//! at hand-over. Nothing is kept that the layout does not use.
//!
//! Where the kernel does not show where the pages of a pool are, pages are taken, looked at, and given back.
//!
//! Pinning can move pages (out of memory that the kernel wants to keep movable, which is avoided for CMA), and pages can migrate until
//! they are pinned. So addresses are read again when the pages are pinned, and what moved meanwhile is laid
//! out again.

use crate::error::{Failure, check_interrupted};
use crate::machine::{self, Memory};
use crate::output;
use crate::payload::{runs, used_pages};
use crate::probe::{Probe, Supply};
use crate::store::{NewPayload, Store};
use kleap_linux::pagemap::Pagemap;
use kleap_linux::pin::{Pin, Region};
use kleap_linux::{facts, hugepages, numa, pageflags};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_plan::layout::BASE_ALIGNMENT_BYTES;
use kleap_plan::{Layout, LayoutError, Owned, Requirements, Strategy, layout, stage};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Room for the relocator's stage that is asked for first, bytes; twice as much each time it is too little.
pub(crate) const STAGE_BYTES: u64 = stage::ROOM_FIRST_BYTES;
/// The size that is taken first, bytes: the smallest that every granule has, and the alignment of an Image.
pub(crate) const FIRST_SIZE_BYTES: u64 = BASE_ALIGNMENT_BYTES;
/// How far the search for runs goes into memory that is in use as a cache, where there is moving to fall back
/// to: at most this many times what is needed. Memory that nobody uses is searched to its end.
const FACTOR_AUTO: u64 = 3;
/// And where there is not, because only `in-place` will do.
const FACTOR_IN_PLACE: u64 = 16;
/// What is left of the available memory to everybody else, bytes, or a part of all memory where that is less.
/// Some of what the kernel counts as available it cannot use itself (the lists of single CPUs): with 36 MB of it
/// left, 6.12 ended another process.
const MARGIN_BYTES: u64 = 64 << 20;
/// That part.
const MARGIN_PART: u64 = 32;
/// Where pages cannot be looked at before they are taken, the search goes in so many steps.
const SEARCH_STEPS: u64 = 8;
/// Where they can, each step is this part of what is there already, and so the steps are few.
const PROBE_PART: u64 = 4;
/// How long is looked for a better place than one that can be moved to, where moving is allowed. In fragmented memory
/// that is nearly full the kernel can take a large part of a second to make one huge page, and what all of that
/// saves is moved in milliseconds. Compacting memory, once, comes on top: nothing stops it.
const BETTER_WAIT: Duration = Duration::from_secs(10);
/// Meanwhile at most so many bytes of pages are asked for at a time, because the kernel answers when it has tried all of
/// them.
const BETTER_STEP_BYTES: u64 = 8 << 20;
/// And a single page, after a step that took longer than this.
const BETTER_STEP_WAIT: Duration = Duration::from_millis(100);
/// The Image and the initrd: each may reach into one block more than its size fills.
const LARGE_PIECES: u64 = 2;
/// Whole blocks are taken only where all of them are at most so many times what is needed.
const BLOCKS_FACTOR: u64 = 2;
/// Most larger pages that complete a place.
const LARGER_MAX: u64 = 64;
/// The end of ZONE_DMA32 (`zone_sizes_init` in arch/arm64/mm/init.c). Where ZONE_DMA ends below it, and on other nodes than the first, the
/// order is another one, and the kernel makes pages elsewhere.
const DMA32_END: PhysAddr = PhysAddr::new(4 << 30);
/// How often pages are asked for that a layout lacks, each time with less to be moved than before.
const REFINE_ROUNDS: u32 = 4;
/// How often pages that moved while they were pinned are laid out again.
const PIN_TRIES: u32 = 4;

/// Pages with a layout for them, and pinned where the kernel allows it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) layout: Layout,
    pub(crate) pin: Option<Pin>,
}

/// Pages of a pool to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those that any pin leaves where they are ([`Memory::lasting`]).
    Lasting,
    /// All.
    All,
}

struct Search<'a> {
    store: &'a Store,
    payload: &'a mut NewPayload,
    pagemap: Pagemap,
    memory: Memory,
    requirements: Requirements,
    strategy: Strategy,
    node: Option<u32>,
    /// Bytes of pages that the payload has.
    held_bytes: u64,
    limits: Limits,
    /// Bytes of pages that lie where the next kernel finds no memory, as of the last look. Memory that was
    /// added since the boot is often what Linux hands out first.
    useless_bytes: Cell<u64>,
    /// When looking for something better ends; not yet known before there is enough to hold the payload.
    better_until: Option<Instant>,
    /// Whether looking for pages once took so long that it is not done again.
    is_slow: bool,
    /// Whether single CPUs have given back what they kept.
    has_emptied_lists: bool,
}

impl<'a> Search<'a> {
    fn pool(&mut self, size_bytes: u64) -> PoolOf<'_, 'a> {
        PoolOf {
            search: self,
            size_bytes,
            taken: Vec::new(),
        }
    }

    /// Sizes of the files' pages, bytes.
    fn page_sizes(&self) -> Vec<u64> {
        self.payload
            .files
            .iter()
            .map(|file| file.page_size_bytes)
            .collect()
    }

    /// Every page with its address, as far as the next kernel will find ordinary memory there.
    fn owned(&self) -> Result<Vec<Owned>, Failure> {
        let mut owned = Vec::new();
        let mut useless_bytes = 0;
        for (number, file) in self.payload.files.iter().enumerate() {
            let pages = file.pages()?;
            for index in file.present() {
                let page = Owned {
                    address: pages.address(&self.pagemap, index)?,
                    size_bytes: file.page_size_bytes,
                    file: number,
                    offset_bytes: index as u64 * file.page_size_bytes,
                };
                if self.memory.usable.contains_range(page.range()) {
                    owned.push(page);
                } else {
                    useless_bytes += page.size_bytes;
                }
            }
        }
        self.useless_bytes.set(useless_bytes);
        Ok(owned)
    }

    /// Where a byte of a file is now.
    fn address(&self, file: usize, offset_bytes: u64) -> Result<PhysAddr, Failure> {
        let gone = || Failure::Changed(format!("the payload has no byte {offset_bytes}"));
        let file = self.payload.files.get(file).ok_or_else(gone)?;
        let index = usize::try_from(offset_bytes / file.page_size_bytes).map_err(|_| gone())?;
        let page = file.pages()?.address(&self.pagemap, index)?;
        page.checked_add(offset_bytes % file.page_size_bytes)
            .ok_or_else(gone)
    }

    fn choose(&self, owned: &[Owned], strategy: Strategy) -> Result<Layout, LayoutError> {
        let unit_bytes = self
            .page_sizes()
            .into_iter()
            .fold(BASE_ALIGNMENT_BYTES, u64::min);
        layout::choose(
            owned,
            unit_bytes,
            &self.memory.plain,
            &self.requirements,
            strategy,
        )
    }

    /// What is tried first: where moving is allowed, a layout without it.
    fn first_strategy(&self) -> Strategy {
        match self.strategy {
            Strategy::Auto => Strategy::InPlace,
            strategy => strategy,
        }
    }

    /// The layout that nothing needs to be moved for, where there may be one.
    fn try_first(&self) -> Result<Result<Layout, LayoutError>, Failure> {
        match self.choose(&self.owned()?, self.first_strategy()) {
            Err(error) if may_grow_out_of(&error) => Ok(Err(error)),
            Err(error) => Err(error.into()),
            Ok(layout) => Ok(Ok(layout)),
        }
    }

    /// How many of `pages` more pages of a size are within the limits.
    fn at_most(&self, size_bytes: u64, pages: u64) -> u64 {
        let most_bytes =
            (self.limits.most_bytes + self.useless_bytes.get()).min(self.limits.share_bytes);
        pages.min(most_bytes.saturating_sub(self.held_bytes) / size_bytes)
    }

    /// Adds up to `wanted` pages of a size to the pool, but no more than are to spare: all that come may be such as the
    /// kernel can use itself. Where none of those is to spare, one that is CMA's may come, or it goes back; larger ones are not
    /// asked for then. Returns how many came, and whether there may be more.
    fn grow(&self, size_bytes: u64, wanted: u64) -> Result<(u64, bool), Failure> {
        let spare = spare_bytes()? / size_bytes;
        let least = u64::from(size_bytes <= FIRST_SIZE_BYTES);
        let asked = wanted.min(spare.max(least));
        if asked == 0 {
            return Ok((0, false));
        }
        let came = self.store.grow(size_bytes, asked, self.node)?;
        if spare == 0 && came > 0 && check_rest().is_err() {
            self.store.shrink(size_bytes, came, self.node)?;
            return Ok((0, false));
        }
        Ok((came, came >= asked))
    }

    /// The same until there are no more to be had, or `pages` came.
    fn grow_to_the_end(&self, size_bytes: u64, pages: u64) -> Result<u64, Failure> {
        let mut came = 0;
        while came < pages {
            let (more, may_be_more) = self.grow(size_bytes, pages - came)?;
            came += more;
            if !may_be_more {
                break;
            }
        }
        Ok(came)
    }

    /// Takes up to `pages` more pages of a size, within the limits; returns how many came.
    fn take(&mut self, size_bytes: u64, pages: u64) -> Result<u64, Failure> {
        let pages = self.at_most(size_bytes, pages);
        let came = self.grow_to_the_end(size_bytes, pages)?.min(pages);
        if came > 0 && check_rest().is_err() {
            // What there is already may do.
            self.store.shrink(size_bytes, came, self.node)?;
            return Ok(0);
        }
        self.fill(size_bytes, came)?;
        Ok(came)
    }

    /// Takes up to `pages` pages that others have set aside, which take nothing of the memory that is limited.
    fn take_set_aside(&mut self, size_bytes: u64, pages: u64) -> Result<(), Failure> {
        if pages == 0 {
            return Ok(());
        }
        let others = self.store.set_aside(size_bytes, pages)?;
        self.limits.most_bytes += others * size_bytes;
        self.limits.share_bytes += others * size_bytes;
        self.fill(size_bytes, others)
    }

    /// Moves so many pages from their pool into the payload: mapping them takes memory of the kernel's own, and where
    /// that has none left to give it ends this process.
    fn fill(&mut self, size_bytes: u64, pages: u64) -> Result<(), Failure> {
        if pages == 0 {
            return Ok(());
        }
        check_rest()?;
        self.store.fill(self.payload, size_bytes, pages)?;
        self.held_bytes += pages * size_bytes;
        Ok(())
    }

    /// Gives back what a layout does not use.
    fn trim(&mut self, layout: &Layout) -> Result<(), Failure> {
        let sizes = self.page_sizes();
        let used = used_pages(layout, &sizes);
        let is_used =
            |file: usize, page: usize| used.get(file).is_some_and(|pages| pages.contains(&page));
        self.store.trim(self.payload, is_used)?;
        self.held_bytes = used
            .iter()
            .zip(&sizes)
            .map(|(pages, size)| pages.len() as u64 * size)
            .sum();
        self.useless_bytes.set(0);
        Ok(())
    }

    /// A layout for pages of the pool: for those that stay where they are when they are pinned, or for all.
    fn layout_of(
        &self,
        probe: &Probe,
        size_bytes: u64,
        strategy: Strategy,
        which: Which,
    ) -> Result<Layout, LayoutError> {
        let pages = probe
            .addresses()
            .filter(|page| which == Which::All || self.stays(*page, size_bytes));
        self.choose(&owned_pages(pages, size_bytes, 0), strategy)
    }

    /// Whether any pin leaves a page where it is.
    fn stays(&self, page: PhysAddr, size_bytes: u64) -> bool {
        PhysRange::from_size(page, size_bytes)
            .is_ok_and(|page| self.memory.lasting.contains_range(page))
    }

    /// Adds pages to the pool, step by step, until there is a layout; `None` if there is none within the limits.
    fn probe_further(
        &mut self,
        probe: &mut Probe,
        size_bytes: u64,
        needed: u64,
        strategy: Strategy,
    ) -> Result<Option<Layout>, Failure> {
        let mut wanted = needed;
        // Less once that was too much.
        let mut step_max = u64::MAX;
        loop {
            let of_use_bytes = probe.addresses().count() as u64 * size_bytes;
            let all_bytes = probe.pages() * size_bytes;
            let left_bytes = self
                .limits
                .most_bytes
                .saturating_sub(of_use_bytes)
                .min(self.limits.share_bytes.saturating_sub(all_bytes));
            let missing = wanted.saturating_sub(probe.pages());
            let pages = missing.min(left_bytes / size_bytes).min(step_max);
            let mut came = 0;
            if pages > 0 {
                came = probe.grow(&mut self.pool(size_bytes), pages)?;
                // The last that came stay the last.
                if came > 0 && self.put_back_too_much(probe, size_bytes)? > 0 {
                    step_max = pages / 2;
                    continue;
                }
            }
            match self.layout_of(probe, size_bytes, strategy, Which::Lasting) {
                Ok(layout) => return Ok(Some(layout)),
                Err(error) if !may_grow_out_of(&error) => return Err(error.into()),
                Err(_) if came == 0 && missing > 0 => return Ok(None),
                Err(_) if self.strategy == Strategy::Auto && probe.pages() >= needed => {
                    self.better_until
                        .get_or_insert_with(|| Instant::now() + BETTER_WAIT);
                    if self.is_late() {
                        return Ok(None);
                    }
                }
                Err(_) => {}
            }
            wanted = probe.pages() + (probe.pages() / PROBE_PART).max(1);
        }
    }

    /// Whether it is time to be content with what was found.
    fn is_late(&self) -> bool {
        self.better_until
            .is_some_and(|until| Instant::now() >= until)
    }

    /// Gives the pages that came last back to the system where what is left without them is too little; returns how many.
    fn put_back_too_much(&mut self, probe: &mut Probe, size_bytes: u64) -> Result<u64, Failure> {
        if check_rest().is_ok() {
            return Ok(0);
        }
        probe.give_back_last(&mut self.pool(size_bytes))
    }

    /// The next larger size, bytes, if the kernel can split its pages into such of `size_bytes`.
    fn split_from(&self, size_bytes: u64) -> Result<Option<u64>, Failure> {
        let Some(larger_bytes) = next_larger(size_bytes)? else {
            return Ok(None);
        };
        let pool = hugepages::Pool::of_size(larger_bytes)?;
        let splits = pool.demotes_to(size_bytes, self.node);
        Ok(splits.then_some(larger_bytes))
    }

    /// Adds pages that are made of up to `larger` larger ones, if enough is left beside them.
    fn probe_larger(
        &mut self,
        probe: &mut Probe,
        size_bytes: u64,
        larger: u64,
    ) -> Result<(), Failure> {
        if probe.grow_from_larger(&mut self.pool(size_bytes), larger)? > 0 {
            self.put_back_too_much(probe, size_bytes)?;
        }
        Ok(())
    }

    /// Where memory is scarce, and the next larger pages are blocks of the buddy allocator, adds some of those, split. The kernel
    /// begins its largest free block when its own are full, and the rest of that block comes last
    /// (`__rmqueue_fallback`, since Linux 6.15 `__rmqueue_claim`, in mm/page_alloc.c); a block in the pool it cannot begin. If fewer come
    /// than were asked for, the request that failed has also emptied the lists of the CPUs, where the kernel could reclaim something.
    fn probe_whole_blocks(
        &mut self,
        probe: &mut Probe,
        size_bytes: u64,
        needed: u64,
    ) -> Result<(), Failure> {
        let Some(larger_bytes) = self.split_from(size_bytes)? else {
            return Ok(());
        };
        let needed_bytes = needed.saturating_mul(size_bytes);
        let larger = whole_blocks(needed_bytes, self.limits.share_bytes, larger_bytes);
        if larger == 0 || hugepages::is_gigantic(larger_bytes) {
            return Ok(());
        }
        // Once more before memory is looked through for the second time.
        self.store.empty_cpu_lists()?;
        check_interrupted()?;
        self.probe_larger(probe, size_bytes, larger)?;
        check_interrupted()
    }

    /// Looks for runs among the pages of the pool, and takes those of use. Says whether the kernel shows where they
    /// are; if not, nothing was done.
    fn probe(&mut self, size_bytes: u64, needed: u64) -> Result<bool, Failure> {
        let strategy = self.first_strategy();
        let Ok(mut probe) = Probe::new(&mut self.pool(size_bytes)) else {
            return Ok(false);
        };
        let began = Instant::now();
        if strategy == Strategy::InPlace {
            self.probe_whole_blocks(&mut probe, size_bytes, needed)?;
        }
        let mut layout = self.probe_further(&mut probe, size_bytes, needed, strategy)?;
        self.is_slow = self.strategy == Strategy::Auto && began.elapsed() >= BETTER_WAIT;
        if strategy == Strategy::InPlace {
            // Before memory is compacted, which fills CMA with what others have.
            layout = layout.or_else(|| {
                self.layout_of(&probe, size_bytes, strategy, Which::All)
                    .ok()
            });
        }
        if layout.is_none() && strategy == Strategy::InPlace && !self.is_slow {
            match self.completion(&probe, size_bytes, needed)? {
                Some(completion) => {
                    if self.complete(probe, size_bytes, &completion)? {
                        return Ok(true);
                    }
                }
                None => probe.give_back(&mut self.pool(size_bytes))?,
            }
            // With what was added given back, there is room to move everything else together. And larger pages
            // are made by moving what is in their way, at one end of memory first, until there are no more.
            self.empty_cpu_lists()?;
            check_interrupted()?;
            let _ = hugepages::compact_memory();
            // What has come back counts as available now.
            if let Ok(limits) = Limits::now(needed * size_bytes, self.strategy) {
                self.limits = limits;
            }
            probe = Probe::new(&mut self.pool(size_bytes))?;
            self.probe_larger(&mut probe, size_bytes, u64::MAX)?;
            layout = self.probe_further(&mut probe, size_bytes, needed, strategy)?;
        }
        // Or, with pages that only references keep where they are, or the place with the most of it.
        let layout = layout.or_else(|| {
            [
                (strategy, Which::All),
                (self.strategy, Which::Lasting),
                (self.strategy, Which::All),
            ]
            .into_iter()
            .find_map(|(strategy, which)| self.layout_of(&probe, size_bytes, strategy, which).ok())
        });
        let wanted: BTreeSet<PhysAddr> = match &layout {
            Some(layout) => pages_of(layout.owned(), size_bytes),
            // Too few even to hold everything: all of them, then, and more of other sizes.
            None => probe.addresses().collect(),
        };
        match probe.claim(&mut self.pool(size_bytes), &wanted) {
            // What is held stays, and with the rest given back there is more.
            Ok(()) | Err(Failure::Memory { .. }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// How pages of the pool, with larger ones in memory that looks free, would make a place for everything, if they do and it is
    /// not too late for that.
    fn completion(
        &self,
        probe: &Probe,
        size_bytes: u64,
        needed: u64,
    ) -> Result<Option<Completion>, Failure> {
        let Some(larger_bytes) = self.split_from(size_bytes)? else {
            return Ok(None);
        };
        // Of other pages the kernel hands out whichever comes first.
        if self.is_late() || !hugepages::is_gigantic(larger_bytes) {
            return Ok(None);
        }
        let stays = |page: &PhysAddr| self.stays(*page, size_bytes);
        let ours: BTreeSet<PhysAddr> = probe.addresses().filter(stays).collect();
        let free = pageflags::that_look_free(&self.memory.lasting, size_bytes)?;
        let most = needed.saturating_mul(size_bytes).div_ceil(larger_bytes);
        let sizes = (size_bytes, larger_bytes);
        let found = completion_of(&ours, &free, sizes, most, |owned| {
            self.choose(owned, Strategy::InPlace).ok()
        });
        Ok(found.filter(|found| {
            let held_bytes = found.held.len() as u64 * size_bytes;
            held_bytes + found.larger * larger_bytes <= self.limits.most_bytes
        }))
    }

    /// Makes that place, with everything else given back. If it comes to nothing, nothing is held.
    fn complete(
        &mut self,
        probe: Probe,
        size_bytes: u64,
        completion: &Completion,
    ) -> Result<bool, Failure> {
        check_interrupted()?;
        match self.try_to_complete(probe, size_bytes, completion) {
            Ok(true) => return Ok(true),
            Ok(false) | Err(Failure::Memory { .. }) => {}
            Err(failure) => return Err(failure),
        }
        self.store.trim(self.payload, |_, _| false)?;
        self.held_bytes = 0;
        self.useless_bytes.set(0);
        Ok(false)
    }

    fn try_to_complete(
        &mut self,
        probe: Probe,
        size_bytes: u64,
        completion: &Completion,
    ) -> Result<bool, Failure> {
        probe.claim(&mut self.pool(size_bytes), &completion.held)?;
        let mut probe = Probe::new(&mut self.pool(size_bytes))?;
        self.probe_larger(&mut probe, size_bytes, completion.larger)?;
        let file = self.payload.files.len();
        // Read now: some kernels move what is held out of a larger page's way.
        let mut owned = self.owned()?;
        owned.extend(owned_pages(probe.addresses(), size_bytes, file));
        let Ok(layout) = self.choose(&owned, Strategy::InPlace) else {
            probe.give_back(&mut self.pool(size_bytes))?;
            return Ok(false);
        };
        let new = layout.owned().filter(|part| part.file == file);
        let wanted = pages_of(new, size_bytes);
        probe.claim(&mut self.pool(size_bytes), &wanted)?;
        Ok(self.try_first()?.is_ok())
    }

    /// Asks for the pages that the best layout lacks where it is to be, with everything else given back. The kernel hands out
    /// what is left over in small pieces first, and those are what lay between the pages that came when the limit was reached.
    fn refine(&mut self, size_bytes: u64) -> Result<(), Failure> {
        let mut least_moved_bytes = u64::MAX;
        for _ in 0..REFINE_ROUNDS {
            if self.is_slow || self.is_late() {
                break;
            }
            let Some(layout) = self.best_of(&self.owned()?) else {
                break;
            };
            let moved_bytes = layout.moved_bytes();
            if moved_bytes == 0 || moved_bytes >= least_moved_bytes {
                break;
            }
            least_moved_bytes = moved_bytes;
            self.trim(&layout)?;
            match self.refine_once(size_bytes, moved_bytes) {
                // There is a layout, if no better one.
                Err(Failure::Memory { .. }) => break,
                result => result?,
            }
        }
        Ok(())
    }

    /// Adds pages to the pool, step by step, and takes those with which less than `moved_bytes` is to be moved.
    fn refine_once(&mut self, size_bytes: u64, mut moved_bytes: u64) -> Result<(), Failure> {
        let held = self.owned()?;
        let file = self.payload.files.len();
        let mut probe = Probe::new(&mut self.pool(size_bytes))?;
        let mut wanted = BTreeSet::new();
        let mut step = (moved_bytes / size_bytes).max(1);
        // Smaller steps once one was too much.
        let mut factor = 2;
        while moved_bytes > 0 && !self.is_late() {
            check_interrupted()?;
            let most = self.at_most(size_bytes, u64::MAX);
            let pages = step.min(most.saturating_sub(probe.pages()));
            if pages == 0 || probe.grow(&mut self.pool(size_bytes), pages)? == 0 {
                break;
            }
            if self.put_back_too_much(&mut probe, size_bytes)? > 0 {
                (step, factor) = (pages / 2, 1);
                continue;
            }
            let mut owned = held.clone();
            owned.extend(owned_pages(probe.addresses(), size_bytes, file));
            if let Some(layout) = self.best_of(&owned)
                && layout.moved_bytes() < moved_bytes
            {
                moved_bytes = layout.moved_bytes();
                let new = layout.owned().filter(|part| part.file == file);
                wanted = pages_of(new, size_bytes);
            }
            step *= factor;
        }
        probe.claim(&mut self.pool(size_bytes), &wanted)
    }

    /// The layout with the least to be moved; one without CMA, if that is no worse.
    fn best_of(&self, owned: &[Owned]) -> Option<Layout> {
        let lasts = |page: &&Owned| self.memory.lasting.contains_range(page.range());
        let lasting: Vec<Owned> = owned.iter().filter(lasts).copied().collect();
        let lasting = self.choose(&lasting, Strategy::Auto).ok();
        let all = self.choose(owned, Strategy::Auto).ok();
        match (lasting, all) {
            (Some(lasting), Some(all)) if all.moved_bytes() < lasting.moved_bytes() => Some(all),
            (lasting, all) => lasting.or(all),
        }
    }

    /// Has single CPUs give back what they keep; once.
    fn empty_cpu_lists(&mut self) -> Result<(), Failure> {
        if !std::mem::replace(&mut self.has_emptied_lists, true) {
            self.store.empty_cpu_lists()?;
        }
        Ok(())
    }

    /// All steps, until every piece has a run or nothing more can be done.
    fn gather(&mut self, needed_bytes: u64) -> Result<Layout, Failure> {
        let sizes = hugepages::sizes()?;
        let first_size = sizes
            .iter()
            .copied()
            .find(|size| *size >= FIRST_SIZE_BYTES)
            .ok_or(kleap_linux::Error::NoHugePages {
                page_size_bytes: FIRST_SIZE_BYTES,
            })?;
        let needed = needed_bytes.div_ceil(first_size);
        let probed = self.probe(first_size, needed)?;
        if probed && let Ok(layout) = self.try_first()? {
            return Ok(layout);
        }
        if probed && self.strategy != Strategy::Relocate {
            self.refine(first_size)?;
            if let Ok(layout) = self.try_first()? {
                return Ok(layout);
            }
        }
        let missing = needed_bytes
            .saturating_sub(self.held_bytes)
            .div_ceil(first_size);
        if missing > 0 {
            self.empty_cpu_lists()?;
        }
        // If the kernel has tried that for long, it will again.
        let came = match self.is_slow {
            true => 0,
            false => self.take(first_size, missing)?,
        };
        // Pages that others have set aside, only where there is no other memory.
        self.take_set_aside(first_size, missing - came)?;
        if !probed && let Some(layout) = self.take_and_look(first_size, needed_bytes)? {
            return Ok(layout);
        }
        for size in sizes.iter().rev().filter(|size| **size < first_size) {
            let missing_bytes = needed_bytes.saturating_sub(self.held_bytes);
            self.take(*size, missing_bytes.div_ceil(*size))?;
        }
        if self.strategy != Strategy::Relocate {
            // With what is of no use given back, there may be room for something larger.
            if let Ok(layout) = self.choose(&self.owned()?, Strategy::Auto) {
                if layout.is_in_place() {
                    return Ok(layout);
                }
                self.trim(&layout)?;
            }
            for size in sizes.into_iter().filter(|size| *size > first_size) {
                if self.is_slow || self.is_late() {
                    break;
                }
                let r = &self.requirements;
                let image_bytes = r.text_offset_bytes.saturating_add(r.image_size_bytes);
                let wanted = image_bytes.div_ceil(size) + r.initrd_bytes.div_ceil(size);
                // One more: a run of several has to begin somewhere.
                if self.take(size, wanted + u64::from(wanted > 2))? == 0 {
                    continue;
                }
                if let Ok(layout) = self.try_first()? {
                    return Ok(layout);
                }
            }
        }
        let owned = self.owned()?;
        let layout = self.choose(&owned, self.strategy);
        Ok(layout.map_err(|error| match error {
            // Not a question of places, then: say how much there was.
            LayoutError::TooFewPages { wanted_bytes, .. } => LayoutError::TooFewPages {
                wanted_bytes,
                found_bytes: self.held_bytes,
            },
            error => error,
        })?)
    }

    /// The search where pages can only be looked at when they have been taken.
    fn take_and_look(
        &mut self,
        size_bytes: u64,
        needed_bytes: u64,
    ) -> Result<Option<Layout>, Failure> {
        let mut compacted = false;
        if let Ok(layout) = self.try_first()? {
            return Ok(Some(layout));
        }
        let step = (self.limits.most_bytes.saturating_sub(needed_bytes) / size_bytes)
            .div_ceil(SEARCH_STEPS)
            .max(1);
        loop {
            // Twice as many each time where they are of no use: they end only when they are all ours.
            let useless = self.useless_bytes.get() / size_bytes;
            let added = self.take(size_bytes, step.max(useless))?;
            if added == 0 {
                if compacted {
                    return Ok(None);
                }
                self.empty_cpu_lists()?;
                if !hugepages::compact_memory() {
                    return Ok(None);
                }
                compacted = true;
            }
            if let Ok(layout) = self.try_first()? {
                return Ok(Some(layout));
            }
        }
    }

    /// Pins what a layout uses. Pages that moved meanwhile are laid out again. If that does not end (where most of what is
    /// free has to stay movable, io_uring moves other pages each time), the last layout stays, with the
    /// pinned pages where they are now: more is moved at hand-over, and nothing moves any more.
    fn pin(&mut self, mut layout: Layout) -> Result<Placed, Failure> {
        for try_number in 1..=PIN_TRIES {
            let sizes = self.page_sizes();
            let used = used_pages(&layout, &sizes);
            let mut regions = Vec::new();
            for (file, pages) in self.payload.files.iter().zip(&used) {
                let file = file.pages()?;
                regions.extend(runs(pages).into_iter().map(|pages| Region { file, pages }));
            }
            let first = self.memory.pin_first(&layout);
            let pin = match Pin::preferring(first, &regions) {
                Ok(pin) => Some(pin),
                Err(error) => {
                    output::warn(&format!(
                        "warning: {error}; should the kernel move a page, exec finds it"
                    ));
                    None
                }
            };
            if first.is_some() && pin.as_ref().map(Pin::method) != first {
                // Nothing can be moved back to where a page has left CMA, and nothing keeps it there.
                let lasting = self.memory.lasting.clone();
                let all = std::mem::replace(&mut self.memory.usable, lasting);
                if let Ok(again) = self.choose(&self.owned()?, self.strategy) {
                    layout = again;
                    continue;
                }
                self.memory.usable = all;
            }
            let used = used_memory(&layout);
            if self.memory.exclude_bad(&used, layout.unit_bytes) {
                drop(pin);
                layout = self.choose(&self.owned()?, self.strategy)?;
                continue;
            }
            let again = layout.repaired(&self.memory.plain, |file, offset_bytes| {
                self.address(file, offset_bytes)
            });
            if let Ok(again) = again
                && (again == layout || (try_number == PIN_TRIES && pin.is_some()))
            {
                self.trim(&again)?;
                return Ok(Placed { layout: again, pin });
            }
            drop(pin);
            layout = self.choose(&self.owned()?, self.strategy)?;
        }
        Err(Failure::Changed(
            "the kernel keeps moving the payload's pages, or finds bad memory where it lies".into(),
        ))
    }
}

/// What makes a place for everything.
#[derive(Debug, PartialEq, Eq)]
struct Completion {
    /// Pages of the pool, to be held.
    held: BTreeSet<PhysAddr>,
    /// How many larger pages, to be asked for when all else has been given back.
    larger: u64,
}

/// How many larger pages are taken before all else, where so much is needed and available, bytes; none where memory is not scarce,
/// or they are too large for what is needed.
fn whole_blocks(needed_bytes: u64, available_bytes: u64, larger_bytes: u64) -> u64 {
    let larger = needed_bytes.div_ceil(larger_bytes) + LARGE_PIECES;
    let is_scarce = available_bytes < needed_bytes.saturating_mul(FACTOR_AUTO);
    let most_bytes = needed_bytes.saturating_mul(BLOCKS_FACTOR);
    match is_scarce && larger.saturating_mul(larger_bytes) <= most_bytes {
        true => larger,
        false => 0,
    }
}

/// With how few larger pages, `most` of them, those of a pool, `ours`, make a place, if the kernel makes them of what is `free`
/// and of what goes back. `sizes` are those of the pool's pages and of the larger ones, bytes; `choose` finds a place among pages.
fn completion_of(
    ours: &BTreeSet<PhysAddr>,
    free: &BTreeSet<PhysAddr>,
    (size_bytes, larger_bytes): (u64, u64),
    most: u64,
    choose: impl Fn(&[Owned]) -> Option<Layout>,
) -> Option<Completion> {
    let memory = ranges_of(ours.union(free).copied(), size_bytes);
    let blocks = in_the_kernels_order(&memory, larger_bytes);
    let (mut pages, mut larger) = (ours.clone(), BTreeSet::<PhysAddr>::new());
    for (block, count) in blocks.into_iter().zip(1..=most.min(LARGER_MAX)) {
        let block: Vec<PhysAddr> = pages_from(block.start(), block.end(), size_bytes).collect();
        larger.extend(&block);
        pages.extend(&block);
        if let Some(layout) = choose(&owned_pages(pages.iter().copied(), size_bytes, 0)) {
            let mut held = pages_of(layout.owned(), size_bytes);
            held.retain(|page| !larger.contains(page));
            return Some(Completion {
                held,
                larger: count,
            });
        }
    }
    None
}

/// Pages of one size as those of a file, in this order.
fn owned_pages(pages: impl Iterator<Item = PhysAddr>, size_bytes: u64, file: usize) -> Vec<Owned> {
    let owned = pages.enumerate().map(|(number, address)| Owned {
        address,
        size_bytes,
        file,
        offset_bytes: number as u64 * size_bytes,
    });
    owned.collect()
}

/// The memory of pages of one size.
fn ranges_of(pages: impl Iterator<Item = PhysAddr>, size_bytes: u64) -> PhysRanges {
    pages
        .filter_map(|page| PhysRange::from_size(page, size_bytes).ok())
        .collect()
}

/// Pages of one size that follow each other, from the first to the last that begins before `end`.
fn pages_from(first: PhysAddr, end: PhysAddr, size_bytes: u64) -> impl Iterator<Item = PhysAddr> {
    std::iter::successors(Some(first), move |page| page.checked_add(size_bytes))
        .take_while(move |page| *page < end)
}

/// The pages of one size that lie within some memory, in the order in which the kernel makes them where it has to choose
/// their memory itself (`alloc_contig_pages` in mm/page_alloc.c): the highest zone first, its lowest memory first.
fn in_the_kernels_order(memory: &PhysRanges, size_bytes: u64) -> Vec<PhysRange> {
    let mut pages: Vec<PhysRange> = memory
        .aligned_inward(size_bytes)
        .iter()
        .flat_map(|range| pages_from(range.start(), range.end(), size_bytes))
        .filter_map(|page| PhysRange::from_size(page, size_bytes).ok())
        .collect();
    pages.sort_by_key(|page| (page.start() < DMA32_END, page.start()));
    pages
}

/// The pages that parts lie in.
fn pages_of(parts: impl Iterator<Item = Owned>, size_bytes: u64) -> BTreeSet<PhysAddr> {
    parts
        .flat_map(|part| {
            let first = part.address.align_down(size_bytes);
            pages_from(first, part.range().end(), size_bytes)
        })
        .collect()
}

/// Whether more pages may help.
fn may_grow_out_of(error: &LayoutError) -> bool {
    matches!(
        error,
        LayoutError::NoRun { .. } | LayoutError::NoTarget { .. } | LayoutError::TooFewPages { .. }
    )
}

/// The pool of one size, for [`Probe`].
struct PoolOf<'search, 'a> {
    search: &'search mut Search<'a>,
    size_bytes: u64,
    /// Indices of the pages taken last, in the file of that size.
    taken: Vec<(usize, PhysAddr)>,
}

impl Supply for PoolOf<'_, '_> {
    fn grow(&mut self, pages: u64) -> Result<u64, Failure> {
        let search = &*self.search;
        if search.better_until.is_none() {
            return search.grow_to_the_end(self.size_bytes, pages);
        }
        let most = (BETTER_STEP_BYTES / self.size_bytes).max(1);
        let (mut came, mut step) = (0, 1);
        while came < pages && !search.is_late() {
            let began = Instant::now();
            let (more, may_be_more) = search.grow(self.size_bytes, step.min(pages - came))?;
            came += more;
            if !may_be_more {
                break;
            }
            step = match began.elapsed() < BETTER_STEP_WAIT {
                true => most.min(step * 2),
                false => 1,
            };
        }
        Ok(came)
    }

    fn grow_from_larger(&mut self, larger: u64) -> Result<u64, Failure> {
        let (search, size_bytes) = (&*self.search, self.size_bytes);
        let Some(larger_bytes) = next_larger(size_bytes)? else {
            return Ok(0);
        };
        // Hardly ever CMA's, so all of it counts as what the kernel could use itself.
        let left_bytes = search.limits.most_bytes.saturating_sub(search.held_bytes);
        let most = left_bytes.min(spare_bytes()?) / larger_bytes;
        search
            .store
            .grow_from_larger(size_bytes, larger_bytes, larger.min(most), search.node)
    }

    fn shrink(&mut self, pages: u64) -> Result<(), Failure> {
        let search = &*self.search;
        search.store.shrink(self.size_bytes, pages, search.node)
    }

    fn pages(&mut self) -> Result<BTreeSet<PhysAddr>, Failure> {
        let usable = &self.search.memory.usable;
        // A look at all memory takes a read for each page. Where no pool has any, one place shows whether it can be looked at.
        let looked_at = match has_huge_pages()? {
            true => usable.clone(),
            false => usable
                .span()
                .and_then(|span| usable.lowest_fit(self.size_bytes, self.size_bytes, span))
                .into_iter()
                .collect(),
        };
        Ok(pageflags::huge_pages(&looked_at, self.size_bytes)?)
    }

    fn take(&mut self, pages: u64) -> Result<Vec<PhysAddr>, Failure> {
        self.search.fill(self.size_bytes, pages)?;
        let search = &mut *self.search;
        let size_bytes = self.size_bytes;
        let file = search
            .payload
            .files
            .iter()
            .find(|file| file.page_size_bytes == size_bytes);
        let Some(file) = file else {
            return Ok(Vec::new());
        };
        let last = usize::try_from(pages).unwrap_or(usize::MAX);
        let page_file = file.pages()?;
        self.taken.clear();
        for index in page_file.pages().saturating_sub(last)..page_file.pages() {
            self.taken
                .push((index, page_file.address(&search.pagemap, index)?));
        }
        Ok(self.taken.iter().map(|(_, address)| *address).collect())
    }

    fn put_back(&mut self, wanted: &BTreeSet<PhysAddr>) -> Result<u64, Failure> {
        let unwanted: BTreeSet<usize> = self
            .taken
            .drain(..)
            .filter(|(_, address)| !wanted.contains(address))
            .map(|(index, _)| index)
            .collect();
        let size_bytes = self.size_bytes;
        if let Some(file) = self
            .search
            .payload
            .files
            .iter_mut()
            .find(|file| file.page_size_bytes == size_bytes)
        {
            file.release(|index| !unwanted.contains(&index))?;
        }
        let count = unwanted.len() as u64;
        self.search.held_bytes = self.search.held_bytes.saturating_sub(count * size_bytes);
        Ok(count)
    }
}

/// The next larger size of huge pages, bytes.
fn next_larger(size_bytes: u64) -> Result<Option<u64>, Failure> {
    let sizes = hugepages::sizes()?;
    Ok(sizes.into_iter().find(|larger| *larger > size_bytes))
}

/// Whether there are huge pages of any size, free or not, anybody's.
fn has_huge_pages() -> Result<bool, Failure> {
    for size in hugepages::sizes()? {
        if hugepages::Pool::of_size(size)?.all()? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Memory that huge pages may be taken from without others having to do without, bytes.
fn available_bytes(memory: &facts::MemoryInfo) -> u64 {
    let margin_bytes = MARGIN_BYTES.min(memory.total_bytes / MARGIN_PART);
    memory
        .available_bytes
        .saturating_sub(facts::watermark_boost_bytes())
        .saturating_sub(margin_bytes)
}

/// How much memory may be taken, bytes; what others have set aside as huge pages is not in it.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The most that may be of use.
    most_bytes: u64,
    /// The most, what is of no use included.
    share_bytes: u64,
}

impl Limits {
    /// As things are now, for a payload of `needed_bytes`, of which nothing has been taken.
    fn now(needed_bytes: u64, strategy: Strategy) -> Result<Self, Failure> {
        let memory = facts::memory()?;
        let share_bytes = available_bytes(&memory);
        let mut all_bytes = share_bytes;
        for size in hugepages::sizes()? {
            let pool = hugepages::Pool::of_size(size)?;
            all_bytes = all_bytes.saturating_add(pool.available()?.saturating_mul(size));
        }
        if needed_bytes > all_bytes {
            return Err(Failure::Memory {
                needed_bytes,
                available_bytes: all_bytes,
            });
        }
        let factor = match strategy {
            Strategy::InPlace => FACTOR_IN_PLACE,
            Strategy::Auto | Strategy::Relocate | Strategy::Kernel => FACTOR_AUTO,
        };
        let most_bytes = needed_bytes
            .saturating_mul(factor)
            .max(memory.free_bytes)
            .min(share_bytes);
        Ok(Self {
            most_bytes,
            share_bytes,
        })
    }
}

/// What a payload may take at all, bytes.
///
/// # Errors
/// If the kernel does not say how much memory there is.
pub(crate) fn payload_room() -> Result<u64, Failure> {
    Ok(available_bytes(&facts::memory()?))
}

/// Refuses to have this process take more memory than is to be had.
///
/// # Errors
/// [`Failure::Memory`].
pub(crate) fn check_available_to_us(needed_bytes: u64) -> Result<(), Failure> {
    refuse_more_than(payload_room()?, needed_bytes)
}

/// Refuses to have the kernel take more memory for itself, which cannot come from CMA, than is to be had.
///
/// # Errors
/// [`Failure::Memory`].
pub(crate) fn check_available_to_kernel(needed_bytes: u64) -> Result<(), Failure> {
    let memory = facts::memory()?;
    let available_bytes = available_bytes(&memory).saturating_sub(memory.cma_free_bytes);
    refuse_more_than(available_bytes, needed_bytes)
}

fn refuse_more_than(available_bytes: u64, needed_bytes: u64) -> Result<(), Failure> {
    match needed_bytes > available_bytes {
        true => Err(Failure::Memory {
            needed_bytes,
            available_bytes,
        }),
        false => Ok(()),
    }
}

/// What must be left beside the pages, bytes: the rest of a load takes a few MiB (the holder's copy of this program,
/// the note, tables), and where the kernel has nothing more to give it ends a process, most likely this one.
const REST_BYTES: u64 = 16 << 20;
/// Or this part of all memory, where that is less: half of what the search leaves at least.
const REST_PART: u64 = 2 * MARGIN_PART;

/// What may be taken of what the kernel can use itself, bytes, with enough left as [`check_rest`] sees it.
fn spare_bytes() -> Result<u64, Failure> {
    let memory = facts::memory()?;
    Ok(machine::available_to_kernel_bytes(&memory).saturating_sub(rest_bytes(&memory)))
}

/// How much must be left to the kernel itself, bytes.
fn rest_bytes(memory: &facts::MemoryInfo) -> u64 {
    REST_BYTES.min(memory.total_bytes / REST_PART)
}

/// Refuses to go on where the pages in the pool have left too little to the kernel itself. Where it has raised its
/// reserves, that passes, and is waited for.
///
/// # Errors
/// [`Failure::Memory`].
pub(crate) fn check_rest() -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let memory = facts::memory()?;
        let available_bytes = machine::available_to_kernel_bytes(&memory);
        let needed_bytes = rest_bytes(&memory);
        if available_bytes >= needed_bytes {
            return Ok(());
        }
        if memory.available_without_cma_bytes() < needed_bytes || !machine::wait_for_reserves(began)
        {
            return Err(Failure::Memory {
                needed_bytes,
                available_bytes,
            });
        }
    }
}

/// All memory that a hand-over touches.
pub(crate) fn used_memory(layout: &Layout) -> PhysRanges {
    layout
        .places()
        .map(|place| place.target)
        .chain([layout.stage])
        .chain(layout.spare)
        .chain(layout.owned().map(|part| part.range()))
        .collect()
}

/// What all pieces take together, bytes, in pages of the size that is taken first.
fn needed_bytes(requirements: &Requirements) -> u64 {
    let whole = |bytes: u64| {
        bytes
            .max(1)
            .checked_next_multiple_of(FIRST_SIZE_BYTES)
            .unwrap_or(u64::MAX)
    };
    [
        requirements
            .text_offset_bytes
            .saturating_add(requirements.image_size_bytes),
        requirements.initrd_bytes,
        requirements.device_tree_bytes,
        requirements.stage_bytes,
    ]
    .into_iter()
    .filter(|bytes| *bytes > 0)
    .fold(0_u64, |sum, bytes| sum.saturating_add(whole(bytes)))
}

/// Drops the payload's files from the page cache where the search may come to memory that is a cache. They lie in the middle
/// of what is free, because they have just been looked at, and would be dropped at its end, when the kernel has begun to
/// put pages of its own into the place that they leave. Where memory is plentiful they stay, for the next load.
pub(crate) fn drop_cached<'p>(
    requirements: &Requirements,
    paths: impl IntoIterator<Item = &'p Path>,
) -> Result<(), Failure> {
    let memory = facts::memory()?;
    let search_bytes = needed_bytes(requirements).saturating_mul(FACTOR_AUTO);
    if memory.free_bytes < search_bytes {
        paths.into_iter().for_each(facts::drop_cached);
    }
    Ok(())
}

/// Gets pages for a new payload, and a layout for them. `try_stage` says whether the relocator's stage can be
/// built for a layout.
pub(crate) fn find(
    store: &Store,
    payload: &mut NewPayload,
    requirements: &Requirements,
    strategy: Strategy,
    memory: &Memory,
    try_stage: impl Fn(&Layout) -> Result<(), Failure>,
) -> Result<Placed, Failure> {
    let needed_bytes = needed_bytes(requirements);
    let mut has_emptied_lists = false;
    let limits = match Limits::now(needed_bytes, strategy) {
        Err(Failure::Memory { .. }) => {
            // What single CPUs keep does not count as available.
            store.empty_cpu_lists()?;
            has_emptied_lists = true;
            Limits::now(needed_bytes, strategy)?
        }
        limits => limits?,
    };

    let node = numa::boot_cpu_node();
    // For fallocate(2), which takes pages from the pool.
    let _preference = node.and_then(|node| numa::prefer_node(node).ok());
    let mut search = Search {
        store,
        payload,
        pagemap: Pagemap::open()?,
        memory: memory.clone(),
        requirements: *requirements,
        strategy,
        node,
        held_bytes: 0,
        limits,
        useless_bytes: Cell::new(0),
        better_until: None,
        is_slow: false,
        has_emptied_lists,
    };
    let mut layout = search.gather(needed_bytes)?;
    while let Err(failure) = try_stage(&layout) {
        // Scattered pages take more tables. The pages stay; the stage becomes larger.
        let stage_bytes = search.requirements.stage_bytes.saturating_mul(2);
        if !failure.is_stage_too_large() || stage_bytes > stage::ROOM_MAX_BYTES {
            return Err(failure);
        }
        search.requirements.stage_bytes = stage_bytes;
        layout = search.choose(&search.owned()?, strategy)?;
    }
    search.pin(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kleap_plan::layout;

    const MEGABYTE: u64 = 1 << 20;
    const SIZES: (u64, u64) = (2 * MEGABYTE, 32 * MEGABYTE);

    /// Pages of 2 MiB in ranges of megabytes.
    fn pages<const N: usize>(ranges: [(u64, u64); N]) -> BTreeSet<PhysAddr> {
        let address = |megabyte: u64| PhysAddr::new(megabyte * MEGABYTE);
        let all = ranges.into_iter();
        all.flat_map(|(from, to)| pages_from(address(from), address(to), SIZES.0))
            .collect()
    }

    fn complete(
        ours: &BTreeSet<PhysAddr>,
        free: &BTreeSet<PhysAddr>,
        most: u64,
    ) -> Option<Completion> {
        let megabytes = |megabytes: u64| megabytes * MEGABYTE;
        let requirements = Requirements {
            image_file_bytes: megabytes(37),
            image_size_bytes: megabytes(38),
            text_offset_bytes: 0,
            initrd_bytes: megabytes(60),
            device_tree_bytes: megabytes(2),
            stage_bytes: megabytes(2),
        };
        let plain = PhysRange::new(PhysAddr::new(0), PhysAddr::new(8 << 30)).unwrap();
        completion_of(ours, free, SIZES, most, |owned| {
            layout::choose(
                owned,
                SIZES.0,
                &plain.into(),
                &requirements,
                Strategy::InPlace,
            )
            .ok()
        })
    }

    #[test]
    fn a_hole_of_free_memory_is_filled_with_larger_pages() {
        // As a machine of 1 GiB had it: the best run ends where the pool was as large as it may be.
        let ours = pages([(1092, 1152), (1204, 1240), (1258, 1284)]);
        let free = pages([(1090, 1092), (1152, 1204), (1240, 1248)]);
        let found = complete(&ours, &free, 4).unwrap();
        // From 1120 to 1216, some of which is ours and goes back.
        assert_eq!(found.larger, 3);
        let larger = pages([(1120, 1216)]);
        assert!(!found.held.is_empty() && found.held.is_subset(&ours));
        assert!(found.held.is_disjoint(&larger));
        assert_eq!(complete(&ours, &free, 2), None);
    }

    #[test]
    fn nothing_is_held_that_the_larger_ones_are_made_of() {
        let ours = pages([(64, 94), (96, 100), (110, 200)]);
        let free = pages([(94, 96), (100, 110), (300, 400)]);
        let nothing = BTreeSet::new();
        for (ours, free, expected) in [
            (&ours, &free, Some(2)),
            (&free, &ours, Some(1)),
            (&ours, &nothing, None),
            (&nothing, &nothing, None),
        ] {
            let found = complete(ours, free, u64::MAX);
            assert_eq!(found.as_ref().map(|found| found.larger), expected);
            let Some(found) = found else { continue };
            let memory = ranges_of(ours.union(free).copied(), SIZES.0);
            let blocks = in_the_kernels_order(&memory, SIZES.1);
            let taken = usize::try_from(found.larger).unwrap();
            for block in blocks.iter().take(taken) {
                for page in pages_from(block.start(), block.end(), SIZES.0) {
                    assert!(!found.held.contains(&page), "{page} of {block}");
                }
            }
            assert!(found.held.is_subset(ours));
        }
    }

    #[test]
    fn whole_blocks_come_first_only_where_memory_is_scarce_and_they_are_not_too_large() {
        let megabytes = |needed: u64, available: u64, larger: u64| {
            whole_blocks(needed * MEGABYTE, available * MEGABYTE, larger * MEGABYTE)
        };
        // As 512 MB with pages of 16 KiB have it, and 1 GiB mostly in use.
        assert_eq!(megabytes(222, 430, 32), 9);
        assert_eq!(megabytes(102, 160, 32), 6);
        assert_eq!(megabytes(222, 3 * 222 - 1, 32), 9);
        assert_eq!(megabytes(222, 3 * 222, 32), 0);
        // Two blocks beyond what is needed would be more than as much again.
        assert_eq!(megabytes(64, 100, 32), 4);
        assert_eq!(megabytes(60, 100, 32), 0);
        // Blocks of 512 MiB, as with pages of 64 KiB.
        assert_eq!(megabytes(400, 1100, 512), 0);
        assert_eq!(megabytes(1100, 2200, 512), 0);
        assert_eq!(megabytes(1300, 2600, 512), 5);
        assert_eq!(whole_blocks(0, 0, 32 * MEGABYTE), 0);
        assert_eq!(
            whole_blocks(u64::MAX, 0, 2),
            u64::MAX / 2 + 1 + LARGE_PIECES
        );
    }

    #[test]
    fn the_kernel_makes_pages_in_the_highest_zone_first() {
        let range = |from: u64, to: u64| {
            PhysRange::new(PhysAddr::new(from * MEGABYTE), PhysAddr::new(to * MEGABYTE)).unwrap()
        };
        let memory: PhysRanges = [range(30, 97), range(1000, 1030), range(4095, 4200)]
            .into_iter()
            .collect();
        let found = in_the_kernels_order(&memory, SIZES.1);
        let expected = [(4096, 4128), (4128, 4160), (4160, 4192), (32, 64), (64, 96)];
        assert_eq!(found, expected.map(|(from, to)| range(from, to)));
    }
}
