//! Which huge pages could be had, known before any of them is taken.
//!
//! Taking a page clears it, which costs more than everything else that is done for it; and the page that is
//! handed out is not ours to choose. But a page that is only *in the pool* has been cleared by nobody, and
//! `/proc/kpageflags` shows where it is. So the pool is grown, batch after batch, until it holds a place for
//! every piece; the pages of that place are taken, and the rest goes back as it came.
//!
//! How the right pages are taken: a pool's free pages are a stack in every kernel so far. Growing puts pages on
//! its top, taking and shrinking remove them from there (`enqueue_huge_page`, `dequeue_huge_page` and
//! `remove_pool_huge_page` in mm/hugetlb.c). So batches come back in the reverse of their order: one without a
//! page of use goes back whole, and of one with some, pages are taken until the last of those has come.
//!
//! That order is nowhere promised, and others use the pool as well. Nothing relies on it but the number of pages
//! that are cleared for nothing: what was taken is looked at, and the layout is made of what has come.
//!
//! Rejected: taking pages and looking at them (measured: most of the time of a load was the clearing of pages
//! that went back at once); growing the pool page by page, which would show the order within a batch, but needs a
//! look at all memory for each page.

use crate::error::Failure;
use kleap_memmap::PhysAddr;
use std::collections::BTreeSet;

/// The pool, and a payload's file that pages are taken into.
pub(crate) trait Supply {
    /// Adds up to so many pages to the pool; returns how many came.
    fn grow(&mut self, pages: u64) -> Result<u64, Failure>;
    /// Adds pages made of up to `larger` pages of the next larger size; returns how many came.
    fn grow_from_larger(&mut self, larger: u64) -> Result<u64, Failure>;
    /// Gives so many free pages of the pool back to the system.
    fn shrink(&mut self, pages: u64) -> Result<(), Failure>;
    /// Where the pages of this size are, everybody's, free or not, as far as they are of use.
    fn pages(&mut self) -> Result<BTreeSet<PhysAddr>, Failure>;
    /// Takes so many free pages of the pool; says where they are.
    fn take(&mut self, pages: u64) -> Result<Vec<PhysAddr>, Failure>;
    /// Puts those of the pages taken last back into the pool that are not wanted.
    fn put_back(&mut self, wanted: &BTreeSet<PhysAddr>) -> Result<u64, Failure>;
}

/// Pages that came together.
#[derive(Debug)]
struct Batch {
    /// How many.
    pages: u64,
    /// Those of use, as far as they were seen.
    addresses: BTreeSet<PhysAddr>,
}

/// Free pages of the pool that were not there before.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Everybody's pages that were there before.
    known: BTreeSet<PhysAddr>,
    /// The last one is on top.
    batches: Vec<Batch>,
}

impl Probe {
    /// Before the first page is added.
    pub(crate) fn new(supply: &mut impl Supply) -> Result<Self, Failure> {
        Ok(Self {
            known: supply.pages()?,
            batches: Vec::new(),
        })
    }

    /// Adds up to so many pages; returns how many came.
    pub(crate) fn grow(&mut self, supply: &mut impl Supply, pages: u64) -> Result<u64, Failure> {
        let came = supply.grow(pages)?;
        self.note(supply, came)
    }

    /// Adds pages that are made of up to `larger` larger ones; returns how many came.
    pub(crate) fn grow_from_larger(
        &mut self,
        supply: &mut impl Supply,
        larger: u64,
    ) -> Result<u64, Failure> {
        let came = supply.grow_from_larger(larger)?;
        self.note(supply, came)
    }

    fn note(&mut self, supply: &mut impl Supply, came: u64) -> Result<u64, Failure> {
        if came > 0 {
            let now = supply.pages()?;
            let addresses: BTreeSet<PhysAddr> = now.difference(&self.known).copied().collect();
            self.known.extend(&addresses);
            self.batches.push(Batch {
                pages: came,
                addresses,
            });
        }
        Ok(came)
    }

    /// Where the pages of use are.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = PhysAddr> + '_ {
        let mut all: Vec<PhysAddr> = self
            .batches
            .iter()
            .flat_map(|batch| batch.addresses.iter().copied())
            .collect();
        all.sort_unstable();
        all.into_iter()
    }

    /// Pages that came, of use or not, count.
    pub(crate) fn pages(&self) -> u64 {
        self.batches.iter().map(|batch| batch.pages).sum()
    }

    /// Takes the pages of `wanted`, as far as they come, and gives the others back to the system. If no more can be taken,
    /// all that were not go back.
    pub(crate) fn claim(
        mut self,
        supply: &mut impl Supply,
        wanted: &BTreeSet<PhysAddr>,
    ) -> Result<(), Failure> {
        let mut missing: BTreeSet<PhysAddr> = wanted.clone();
        while let Some(batch) = self.batches.pop() {
            let mut left = batch.pages;
            while left > 0 {
                let here = batch.addresses.intersection(&missing).count() as u64;
                if here == 0 {
                    break;
                }
                let taken = match supply.take(here.min(left)) {
                    Ok(taken) => taken,
                    Err(failure) => {
                        supply.shrink(left)?;
                        self.give_back(supply)?;
                        return Err(failure);
                    }
                };
                if taken.is_empty() {
                    break;
                }
                left -= (taken.len() as u64).min(left);
                for page in &taken {
                    missing.remove(page);
                }
                let put_back = supply.put_back(wanted)?;
                supply.shrink(put_back)?;
            }
            supply.shrink(left)?;
        }
        Ok(())
    }

    /// Gives the pages that came last back to the system; returns how many.
    pub(crate) fn give_back_last(&mut self, supply: &mut impl Supply) -> Result<u64, Failure> {
        let Some(batch) = self.batches.pop() else {
            return Ok(0);
        };
        for page in &batch.addresses {
            self.known.remove(page);
        }
        supply.shrink(batch.pages)?;
        Ok(batch.pages)
    }

    /// Gives everything back to the system.
    pub(crate) fn give_back(self, supply: &mut impl Supply) -> Result<(), Failure> {
        supply.shrink(self.pages())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A pool as the kernel has it, and what was taken from it.
    #[derive(Debug, Default)]
    struct Model {
        /// Free memory, in the order in which it is handed out.
        free: Vec<u64>,
        /// Free pages of the pool; the last one is on top.
        pool: Vec<u64>,
        /// Pages that somebody uses, and that show as huge all the same.
        used: Vec<u64>,
        taken: Vec<u64>,
        /// Of those, the ones that came last.
        last: usize,
        /// Pages that were cleared, count.
        cleared: u64,
        /// Whether new pages lie on the stack in the order in which they came, or the other way round.
        reversed: bool,
        /// Whether pages are handed out from the other end, as no kernel does.
        queue: bool,
        /// Pages that are of no use.
        useless: BTreeSet<u64>,
        /// How often pages can be taken, if there is an end to it.
        takes_left: Option<u64>,
    }

    impl Model {
        fn pop(&mut self) -> Option<u64> {
            if self.queue && !self.pool.is_empty() {
                return Some(self.pool.remove(0));
            }
            self.pool.pop()
        }
    }

    impl Supply for Model {
        fn grow(&mut self, pages: u64) -> Result<u64, Failure> {
            let came = usize::try_from(pages).unwrap().min(self.free.len());
            let mut batch: Vec<u64> = self.free.drain(..came).collect();
            if self.reversed {
                batch.reverse();
            }
            self.pool.extend(batch);
            Ok(came as u64)
        }

        fn grow_from_larger(&mut self, larger: u64) -> Result<u64, Failure> {
            self.grow(16 * larger)
        }

        fn shrink(&mut self, pages: u64) -> Result<(), Failure> {
            for _ in 0..pages {
                let page = self.pop().expect("more pages shrunk than there are");
                self.free.push(page);
            }
            Ok(())
        }

        fn pages(&mut self) -> Result<BTreeSet<PhysAddr>, Failure> {
            let all = self.pool.iter().chain(&self.used).chain(&self.taken);
            let of_use = all.filter(|page| !self.useless.contains(page));
            Ok(of_use.map(|page| PhysAddr::new(*page)).collect())
        }

        fn take(&mut self, pages: u64) -> Result<Vec<PhysAddr>, Failure> {
            if let Some(left) = &mut self.takes_left {
                *left = left.checked_sub(1).ok_or(Failure::NothingLoaded)?;
            }
            let mut came = Vec::new();
            for _ in 0..pages {
                came.extend(self.pop());
            }
            self.cleared += came.len() as u64;
            self.last = came.len();
            self.taken.extend(&came);
            Ok(came.into_iter().map(PhysAddr::new).collect())
        }

        fn put_back(&mut self, wanted: &BTreeSet<PhysAddr>) -> Result<u64, Failure> {
            let last = self.taken.split_off(self.taken.len() - self.last);
            let (keep, back): (Vec<_>, Vec<_>) = last
                .into_iter()
                .partition(|page| wanted.contains(&PhysAddr::new(*page)));
            self.taken.extend(keep);
            self.pool.extend(&back);
            Ok(back.len() as u64)
        }
    }

    fn shuffled() -> impl Strategy<Value = Vec<u64>> {
        Just((1..=60_u64).collect::<Vec<_>>()).prop_shuffle()
    }

    proptest! {
        /// With the order that kernels have, exactly what is wanted is taken, and all else is as it was.
        #[test]
        fn what_is_wanted_comes(
            free in shuffled(),
            batches in proptest::collection::vec(1..20_u64, 1..6),
            picks in any::<u64>(),
            others in proptest::collection::vec(100..110_u64, 0..5),
            reversed: bool,
            too_much in 0..4_usize,
        ) {
            let all: BTreeSet<u64> = free.iter().copied().collect();
            let mut model = Model { free, pool: others.clone(), used: vec![200], reversed, ..Model::default() };
            let mut probe = Probe::new(&mut model).unwrap();
            for pages in &batches {
                probe.grow(&mut model, *pages).unwrap();
            }
            for _ in 0..too_much {
                let (free, pages) = (model.free.len() as u64, probe.pages());
                let back = probe.give_back_last(&mut model).unwrap();
                prop_assert_eq!(back == 0, pages == 0);
                prop_assert_eq!((model.free.len() as u64, probe.pages()), (free + back, pages - back));
            }
            if too_much > 2 {
                // What went back is seen again when it comes again.
                probe.grow(&mut model, 30).unwrap();
            }
            let seen: Vec<PhysAddr> = probe.addresses().collect();
            prop_assert_eq!(seen.len() as u64, probe.pages());
            let wanted: BTreeSet<PhysAddr> =
                seen.iter().copied().enumerate().filter(|(at, _)| picks >> (at % 64) & 1 == 1).map(|(_, page)| page).collect();
            probe.claim(&mut model, &wanted).unwrap();
            let taken: BTreeSet<PhysAddr> = model.taken.iter().map(|page| PhysAddr::new(*page)).collect();
            prop_assert_eq!(&taken, &wanted);
            prop_assert_eq!(&model.pool, &others, "the pages of others");
            let now: BTreeSet<u64> = model.free.iter().chain(&model.taken).copied().collect();
            prop_assert_eq!(now, all);
            prop_assert!(model.cleared <= seen.len() as u64);
        }

        /// Whatever the order is, and whatever cannot be seen: no page is lost, none of others is given away by
        /// number, and nothing but what is wanted is kept.
        #[test]
        fn another_order_loses_nothing(
            free in shuffled(),
            batches in proptest::collection::vec(1..20_u64, 1..6),
            picks in any::<u64>(),
            others in proptest::collection::btree_set(100..110_u64, 0..5),
            useless in proptest::collection::btree_set(1..60_u64, 0..30),
        ) {
            let mut model = Model { free, pool: others.iter().copied().collect(), queue: true, useless, ..Model::default() };
            let before = model.free.len() + model.pool.len();
            let mut probe = Probe::new(&mut model).unwrap();
            for pages in &batches {
                probe.grow(&mut model, *pages).unwrap();
            }
            let wanted: BTreeSet<PhysAddr> =
                probe.addresses().enumerate().filter(|(at, _)| picks >> (at % 64) & 1 == 1).map(|(_, page)| page).collect();
            probe.claim(&mut model, &wanted).unwrap();
            prop_assert_eq!(model.pool.len(), others.len(), "as many are set aside as before");
            prop_assert_eq!(model.free.len() + model.pool.len() + model.taken.len(), before);
            prop_assert!(model.taken.iter().all(|page| wanted.contains(&PhysAddr::new(*page))));
        }
    }

    #[test]
    fn only_the_batch_with_the_run_is_cleared() {
        let mut model = Model {
            free: (1..=64).collect(),
            ..Model::default()
        };
        let mut probe = Probe::new(&mut model).unwrap();
        for _ in 0..8 {
            probe.grow(&mut model, 8).unwrap();
        }
        let wanted = (17..=24).map(PhysAddr::new).collect();
        probe.claim(&mut model, &wanted).unwrap();
        assert_eq!(model.cleared, 8);
        assert_eq!(model.free.len(), 56);
    }

    #[test]
    fn what_cannot_be_taken_goes_back() {
        for takes in 0..3 {
            let mut model = Model {
                free: (1..=64).collect(),
                pool: vec![100],
                takes_left: Some(takes),
                ..Model::default()
            };
            let mut probe = Probe::new(&mut model).unwrap();
            for _ in 0..8 {
                probe.grow(&mut model, 8).unwrap();
            }
            // Of each batch the one below its top, so that each is taken in two steps.
            let wanted = (0..8).map(|batch| PhysAddr::new(batch * 8 + 7)).collect();
            let answer = probe.claim(&mut model, &wanted);
            assert!(matches!(answer, Err(Failure::NothingLoaded)));
            assert_eq!(model.pool, [100]);
            assert_eq!(model.free.len() + model.taken.len(), 64);
        }
    }

    #[test]
    fn all_goes_back() {
        let mut model = Model {
            free: (1..=64).collect(),
            ..Model::default()
        };
        let mut probe = Probe::new(&mut model).unwrap();
        assert_eq!(probe.grow_from_larger(&mut model, 1).unwrap(), 16);
        assert_eq!(probe.grow(&mut model, 40).unwrap(), 40);
        assert_eq!(probe.grow(&mut model, 40).unwrap(), 8);
        assert_eq!(probe.grow(&mut model, 40).unwrap(), 0);
        probe.give_back(&mut model).unwrap();
        assert_eq!((model.free.len(), model.cleared), (64, 0));
    }
}
