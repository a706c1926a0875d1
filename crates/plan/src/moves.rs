//! An order for copies that overlap.
//!
//! A piece that lies partly where it belongs is moved by pages: each page from where we own it to where
//! it is wanted, and what is wanted there may be another page that has not been read yet. All copies are
//! meant at once, "every source as it was before"; the relocator makes them one after the other. This
//! module finds the order in which that is the same, with as few and as long copies as it can.
//!
//! # How
//!
//! Target and source of a copy lie at the same offset in their *unit* (a huge page, usually), so cutting
//! every copy at the units' borders gives *steps* that read from one unit and write to one. A step has to
//! be made before the step that writes what it reads. No step reads what two others write (where two
//! copies meet within a unit, whoever reads across that border is cut there too), so every step has at
//! most one that must come after it: a functional graph, whose cycles are disjoint and simple.
//!
//! Neighbouring steps by the same distance are a *run*, and a run is one copy with `memmove`'s semantics
//! even where it overlaps itself. So the order is first sought among runs: strongly connected components,
//! in topological order (Tarjan, 1972). A component of one run is one copy. Within a larger one:
//!
//! 1. a run that nothing outside it still reads from is made whole;
//! 2. else, if the spare unit is unused and there is a cycle of steps, it is broken: the source of one step
//!    is saved in the spare unit, and that step is made last of its cycle, from there. A step that is a run
//!    of its own is preferred, then the first of the cycle's shortest stretch, so that no long one is torn;
//! 3. else the longest stretch of a run that nobody still reads from is made, and grown in both
//!    directions as its own steps free their neighbours: shifts stay in one copy, upward and downward.
//!
//! One spare unit is enough, however many cycles there are. Say nothing is free: then each step left is read
//! by another, and as each has at most one successor, each has exactly one. A saved step no longer has any.
//! So none is saved, and what is left are cycles, one of which can be broken.
//!
//! Cycles are broken before runs are torn, because a cycle has to be broken anyway and often frees a run as
//! a whole. (Partial units can form a cycle none of whose bytes goes round in it. Tearing a step would do
//! there, for as many copies; it is not done, so that there is one way to break a cycle.)
//!
//! Every part of it is linear in the number of steps, but for sorting.
//!
//! # Rejected
//!
//! - *Ordering steps and joining what happens to follow each other.* Simpler, but long runs are torn
//!   wherever one of their steps is free early; a tree of runs should cost one copy each.
//! - *Ordering runs only, cutting them where they form cycles.* Which cut frees what is a question about
//!   steps again, and a run that has to be cut at every step is found out by cutting it at every step.
//! - *Placing units where they do not belong on the way*: two runs of n units change places in 2n + 2
//!   copies that way, and in 3n here. The bytes copied are about the same, and those are what costs time.
//!   Likewise a spare unit where there is no cycle, to keep a run whole: a copy less, a unit more to copy.
//! - *Proving the least number of copies.* Which runs of a component to tear is a feedback problem; the
//!   tests compare with the least for every map of five units.

use kleap_memmap::{PhysAddr, PhysRange};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Most copies that are ordered.
pub const COPIES_MAX: usize = 1 << 20;
/// Most steps that the copies may be cut into: 64 GiB by 64 KiB, 2 TiB by 2 MiB.
pub const STEPS_MAX: usize = 1 << 20;
/// Most steps that are looked at to find those that read across the border of two copies within a unit.
/// There are none where targets are whole units; only a nonsensical input comes near it.
pub const CUT_LOOKS_MAX: usize = 16 * STEPS_MAX;

/// A copy of physical memory.
///
/// Given to [`order`], all are meant at once. Returned by it, they are made one after the other, and each
/// reads all of its source before it writes, like `memmove`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryCopy {
    /// Where the bytes go.
    pub target: PhysAddr,
    /// Where the bytes are.
    pub source: PhysAddr,
    /// How many.
    pub size_bytes: u64,
}

/// Why copies cannot be put in order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MovesError {
    /// The unit is no power of two.
    #[error("a unit of {unit_bytes} bytes: it must be a power of two")]
    Unit {
        /// Size of the unit, bytes.
        unit_bytes: u64,
    },
    /// More copies than [`COPIES_MAX`].
    #[error("{0} copies: more than {COPIES_MAX}; use larger huge pages")]
    TooManyCopies(usize),
    /// More steps than [`STEPS_MAX`], or than can be found within [`CUT_LOOKS_MAX`].
    #[error(
        "the copies consist of more than {STEPS_MAX} parts of {unit_bytes} bytes or less; \
         use larger huge pages or a smaller payload"
    )]
    TooManySteps {
        /// Size of the unit, bytes.
        unit_bytes: u64,
    },
    /// Source and target at different offsets in their units.
    #[error(
        "a copy from {source_start} to {target}: not at the same offset in units of {unit_bytes} bytes"
    )]
    Misaligned {
        /// Where the bytes would go.
        target: PhysAddr,
        /// Where the bytes are.
        source_start: PhysAddr,
        /// Size of the unit, bytes.
        unit_bytes: u64,
    },
    /// Source or target would run past the end of the address space.
    #[error(
        "a copy of {size_bytes} bytes from {source_start} to {target} runs past the last address"
    )]
    Wraps {
        /// Where the bytes would go.
        target: PhysAddr,
        /// Where the bytes are.
        source_start: PhysAddr,
        /// How many.
        size_bytes: u64,
    },
    /// Two copies write the same bytes.
    #[error("two copies write the same bytes: to {first} and to {second}")]
    TargetsOverlap {
        /// All that one of them writes.
        first: PhysRange,
        /// All that the other writes.
        second: PhysRange,
    },
    /// The spare memory is smaller than a unit.
    #[error("the spare memory {spare} is smaller than a unit of {unit_bytes} bytes")]
    SpareTooSmall {
        /// The spare memory.
        spare: PhysRange,
        /// Size of the unit, bytes.
        unit_bytes: u64,
    },
    /// The spare memory is read or written by a copy.
    #[error("the spare memory {spare} is not spare: {used} is copied")]
    SpareInUse {
        /// The spare memory.
        spare: PhysRange,
        /// Source or target of the copy.
        used: PhysRange,
    },
    /// The copies form a cycle, and there is no spare memory.
    #[error(
        "the copies form a cycle through {at}: without {unit_bytes} bytes of spare memory there is no \
         order for them; one more huge page would do"
    )]
    NoSpare {
        /// A target in the cycle.
        at: PhysAddr,
        /// Size of the unit, bytes.
        unit_bytes: u64,
    },
    /// No order was found, and there must be one.
    #[error("a bug in the planner of moves: no order for the copies near {at}; please report it")]
    Bug {
        /// A target among those that are left.
        at: PhysAddr,
    },
}

/// Puts copies in an order in which, made one after the other, they do what all of them at once would.
///
/// Targets are disjoint; sources may overlap anything. `unit_bytes` is a power of two, and source and target of a
/// copy are at the same offset modulo it. `spare` is written if there are cycles: at most its first
/// `unit_bytes` bytes, and it must overlap neither a source nor a target.
///
/// Copies to where the bytes already are vanish. What is returned may join parts of different copies. How many
/// copies a hand-off holds is not looked at here (`kleap_relocator::abi::MOVES_MAX`).
///
/// # Errors
/// [`MovesError`]. With [`MovesError::NoSpare`], the same copies can be put in order if spare memory is given.
pub fn order(
    copies: &[MemoryCopy],
    spare: Option<PhysRange>,
    unit_bytes: u64,
) -> Result<Vec<MemoryCopy>, MovesError> {
    if !unit_bytes.is_power_of_two() {
        return Err(MovesError::Unit { unit_bytes });
    }
    if copies.len() > COPIES_MAX {
        return Err(MovesError::TooManyCopies(copies.len()));
    }
    let spans = check(copies, spare, unit_bytes)?;
    let steps = cut_at_borders(steps(&spans, unit_bytes)?, unit_bytes)?;
    let mut sequence = Sequence::new(&steps, unit_bytes);
    for component in sequence.graph.components() {
        sequence.make(&component, spare)?;
    }
    Ok(sequence.copies)
}

/// Source and target of a copy, or of a part of it. Addresses and sizes in bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    target: u64,
    source: u64,
    size_bytes: u64,
}

impl Span {
    const fn target_end(&self) -> u64 {
        self.target + self.size_bytes
    }

    /// Whether `next` goes on where `self` ends, in source and target.
    const fn is_continued_by(&self, next: &Self) -> bool {
        self.target_end() == next.target && self.source + self.size_bytes == next.source
    }

    /// The first `size_bytes` bytes, and the rest.
    const fn split(&self, size_bytes: u64) -> (Self, Self) {
        let first = Self {
            size_bytes,
            ..*self
        };
        let rest = Self {
            target: self.target + size_bytes,
            source: self.source + size_bytes,
            size_bytes: self.size_bytes - size_bytes,
        };
        (first, rest)
    }
}

/// What is really to be copied, by target.
fn check(
    copies: &[MemoryCopy],
    spare: Option<PhysRange>,
    unit_bytes: u64,
) -> Result<Vec<Span>, MovesError> {
    if let Some(spare) = spare
        && spare.size_bytes() < unit_bytes
    {
        return Err(MovesError::SpareTooSmall { spare, unit_bytes });
    }
    let mut targets = Vec::with_capacity(copies.len());
    let mut spans = Vec::with_capacity(copies.len());
    for copy in copies.iter().filter(|copy| copy.size_bytes > 0) {
        let range = |start| PhysRange::from_size(start, copy.size_bytes);
        let (Ok(target), Ok(source)) = (range(copy.target), range(copy.source)) else {
            return Err(MovesError::Wraps {
                target: copy.target,
                source_start: copy.source,
                size_bytes: copy.size_bytes,
            });
        };
        let (to, from) = (copy.target.as_u64(), copy.source.as_u64());
        if to % unit_bytes != from % unit_bytes {
            return Err(MovesError::Misaligned {
                target: copy.target,
                source_start: copy.source,
                unit_bytes,
            });
        }
        for used in [target, source] {
            if let Some(spare) = spare
                && spare.overlaps(used)
            {
                return Err(MovesError::SpareInUse { spare, used });
            }
        }
        targets.push(target);
        if to != from {
            spans.push(Span {
                target: to,
                source: from,
                size_bytes: copy.size_bytes,
            });
        }
    }
    targets.sort_unstable_by_key(|target| target.start());
    for pair in targets.windows(2) {
        if let [first, second] = *pair
            && first.overlaps(second)
        {
            return Err(MovesError::TargetsOverlap { first, second });
        }
    }
    spans.sort_unstable_by_key(|span| span.target);
    Ok(spans)
}

/// Cuts at the borders of units.
fn steps(spans: &[Span], unit_bytes: u64) -> Result<Vec<Span>, MovesError> {
    let mut steps = Vec::new();
    for span in spans {
        let mut rest = *span;
        while rest.size_bytes > 0 {
            if steps.len() == STEPS_MAX {
                return Err(MovesError::TooManySteps { unit_bytes });
            }
            let room_bytes = unit_bytes - rest.target % unit_bytes;
            let (step, after) = rest.split(room_bytes.min(rest.size_bytes));
            steps.push(step);
            rest = after;
        }
    }
    Ok(steps)
}

/// Cuts steps until none reads what two others write.
fn cut_at_borders(steps: Vec<Span>, unit_bytes: u64) -> Result<Vec<Span>, MovesError> {
    let unit = |address: u64| address / unit_bytes;
    // Borders whose readers are to be looked for, as (unit, offset in it). The cut of a reader is a border
    // for those who read from where it writes.
    let mut borders: Vec<(u64, u64)> = steps
        .windows(2)
        .filter_map(|pair| match pair {
            [first, second] if unit(first.target) == unit(second.target) => {
                Some((unit(second.target), second.target % unit_bytes))
            }
            _ => None,
        })
        .collect();
    if borders.is_empty() {
        return Ok(steps);
    }
    let mut readers: Vec<usize> = (0..steps.len()).collect();
    readers.sort_unstable_by_key(|&reader| unit(steps[reader].source));
    let mut cuts: BTreeSet<(usize, u64)> = BTreeSet::new();
    let mut looks = 0;
    while let Some((read, offset_bytes)) = borders.pop() {
        let first = readers.partition_point(|&reader| unit(steps[reader].source) < read);
        for &reader in &readers[first..] {
            looks += 1;
            if looks > CUT_LOOKS_MAX || steps.len() + cuts.len() > STEPS_MAX {
                return Err(MovesError::TooManySteps { unit_bytes });
            }
            let step = &steps[reader];
            if unit(step.source) != read {
                break;
            }
            let start_bytes = step.source % unit_bytes;
            if start_bytes < offset_bytes
                && offset_bytes < start_bytes + step.size_bytes
                && cuts.insert((reader, offset_bytes))
            {
                borders.push((unit(step.target), offset_bytes));
            }
        }
    }
    let mut cut_steps = Vec::with_capacity(steps.len() + cuts.len());
    let mut cuts = cuts.into_iter().peekable();
    for (index, step) in steps.iter().enumerate() {
        let mut rest = *step;
        while let Some((_, offset_bytes)) = cuts.next_if(|&(cut, _)| cut == index) {
            let (first, after) = rest.split(offset_bytes - rest.target % unit_bytes);
            cut_steps.push(first);
            rest = after;
        }
        cut_steps.push(rest);
    }
    Ok(cut_steps)
}

/// Steps, by target, and what must come after what.
struct Graph<'a> {
    steps: &'a [Span],
    /// The step that writes what a step reads, and so comes after it; itself excluded.
    next: Vec<Option<usize>>,
    /// The run of each step.
    run_of: Vec<usize>,
    /// First step of each run, and the number of steps.
    run_starts: Vec<usize>,
}

impl<'a> Graph<'a> {
    fn new(steps: &'a [Span]) -> Self {
        let mut run_of: Vec<usize> = Vec::with_capacity(steps.len());
        let mut run_starts = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            if index == 0 || !steps[index - 1].is_continued_by(step) {
                run_starts.push(index);
            }
            run_of.push(run_starts.len() - 1);
        }
        run_starts.push(steps.len());
        let writer = |step: &Span| {
            let writer = steps.partition_point(|other| other.target_end() <= step.source);
            let found = steps.get(writer)?;
            (found.target < step.source + step.size_bytes).then_some(writer)
        };
        let next = steps.iter().map(writer).collect();
        Self {
            steps,
            next,
            run_of,
            run_starts,
        }
    }

    fn run_count(&self) -> usize {
        self.run_starts.len() - 1
    }

    fn steps_of(&self, run: usize) -> std::ops::Range<usize> {
        self.run_starts[run]..self.run_starts[run + 1]
    }

    /// The run of the step that comes after `step`, if it is another.
    fn next_run(&self, step: usize) -> Option<usize> {
        let run = self.run_of[self.next[step]?];
        (run != self.run_of[step]).then_some(run)
    }

    /// The strongly connected components of the runs, in topological order; where there is a choice, by
    /// target. Tarjan's algorithm with a stack of its own: the depth is as large as the payload.
    fn components(&self) -> Vec<Vec<usize>> {
        const UNSEEN: usize = usize::MAX;
        let runs = self.run_count();
        let mut number = vec![UNSEEN; runs];
        let mut lowest = vec![UNSEEN; runs];
        let mut is_open = vec![false; runs];
        let mut open = Vec::new();
        let mut components = Vec::new();
        let mut seen = 0;
        // The path from the root: runs, and the next step of each to look at.
        let mut path: Vec<(usize, usize)> = Vec::new();
        // Found last to first, so the last root is taken first.
        for root in (0..runs).rev() {
            if number[root] == UNSEEN {
                path.push((root, self.run_starts[root]));
            }
            while let Some(&mut (run, ref mut cursor)) = path.last_mut() {
                if number[run] == UNSEEN {
                    number[run] = seen;
                    lowest[run] = seen;
                    seen += 1;
                    open.push(run);
                    is_open[run] = true;
                }
                if *cursor < self.run_starts[run + 1] {
                    let step = *cursor;
                    *cursor += 1;
                    match self.next_run(step) {
                        Some(other) if number[other] == UNSEEN => {
                            path.push((other, self.run_starts[other]));
                        }
                        Some(other) if is_open[other] => {
                            lowest[run] = lowest[run].min(number[other]);
                        }
                        _ => {}
                    }
                    continue;
                }
                path.pop();
                if let Some(&(parent, _)) = path.last() {
                    lowest[parent] = lowest[parent].min(lowest[run]);
                }
                if lowest[run] == number[run] {
                    let mut component = Vec::new();
                    while let Some(member) = open.pop() {
                        is_open[member] = false;
                        component.push(member);
                        if member == run {
                            break;
                        }
                    }
                    component.sort_unstable();
                    components.push(component);
                }
            }
        }
        components.reverse();
        components
    }
}

/// The copies so far, and what is left.
struct Sequence<'a> {
    graph: Graph<'a>,
    unit_bytes: u64,
    copies: Vec<MemoryCopy>,
    /// Whether the last of them may be prolonged: neither from nor to the spare memory, where what is read
    /// is not what was there at first.
    is_last_direct: bool,
    is_made: Vec<bool>,
    /// Whose source is in the spare memory.
    saved: Option<usize>,
    /// Steps not yet made that read what a step writes, count.
    readers: Vec<usize>,
    /// Those of other runs, summed over each run.
    foreign_readers: Vec<usize>,
    /// Whether a run belongs to the component that is being made.
    is_current: Vec<bool>,
    /// The first step of the walk along `next` that came by a step, when cycles were looked for.
    walk_of: Vec<Option<usize>>,
    /// Steps of that component not yet made, count.
    left: usize,
    /// Runs of that component without foreign readers.
    free_runs: Vec<usize>,
    /// Stretches of steps without readers, in that component: length and first step. Some are outdated:
    /// longer now, or made.
    free_stretches: BinaryHeap<(usize, Reverse<usize>)>,
    /// Whether a step is in one of them.
    is_free: Vec<bool>,
    /// For the first and the last step of each stretch: the last and the first.
    other_end: Vec<usize>,
}

impl<'a> Sequence<'a> {
    fn new(steps: &'a [Span], unit_bytes: u64) -> Self {
        let graph = Graph::new(steps);
        let runs = graph.run_count();
        let mut readers = vec![0; steps.len()];
        let mut foreign_readers = vec![0; runs];
        for step in 0..steps.len() {
            if let Some(next) = graph.next[step] {
                readers[next] += 1;
            }
            if let Some(run) = graph.next_run(step) {
                foreign_readers[run] += 1;
            }
        }
        Self {
            graph,
            unit_bytes,
            copies: Vec::new(),
            is_last_direct: false,
            is_made: vec![false; steps.len()],
            saved: None,
            readers,
            foreign_readers,
            is_current: vec![false; runs],
            walk_of: vec![None; steps.len()],
            left: 0,
            free_runs: Vec::new(),
            free_stretches: BinaryHeap::new(),
            is_free: vec![false; steps.len()],
            other_end: vec![0; steps.len()],
        }
    }

    /// Makes every step of a component whose predecessors are made.
    fn make(&mut self, component: &[usize], spare: Option<PhysRange>) -> Result<(), MovesError> {
        for &run in component {
            self.is_current[run] = true;
            self.left += self.graph.steps_of(run).len();
            if self.foreign_readers[run] == 0 {
                self.free_runs.push(run);
            }
        }
        let steps: Vec<usize> = match component {
            [_] => Vec::new(), // made as a whole
            _ => component
                .iter()
                .flat_map(|&run| self.graph.steps_of(run))
                .collect(),
        };
        for &step in &steps {
            if self.readers[step] == 0 {
                self.add_free(step);
            }
        }
        let mut cycles = self.cycles(&steps).into_iter();
        while self.left > 0 {
            if let Some(run) = self.free_runs.pop() {
                self.make_run(run, spare);
            } else if self.saved.is_none()
                && let Some(cycle) = cycles.next()
            {
                self.break_cycle(&cycle, spare)?;
            } else if let Some((first, last)) = self.longest_free_stretch() {
                self.make_stretch(first, last, spare);
            } else {
                // Cannot be, see the module's proof. If it could, an order with something left out would
                // be found out only by the digests, when the old kernel is gone.
                let run = component.first().copied().unwrap_or_default();
                let at = self.graph.steps[self.graph.run_starts[run]].target;
                return Err(MovesError::Bug {
                    at: PhysAddr::new(at),
                });
            }
        }
        for &run in component {
            self.is_current[run] = false;
        }
        self.free_runs.clear();
        self.free_stretches.clear();
        Ok(())
    }

    /// Makes what is left of a run that no other reads from.
    fn make_run(&mut self, run: usize, spare: Option<PhysRange>) {
        let mut stretches: Vec<(usize, usize)> = Vec::new();
        for step in self.graph.steps_of(run) {
            if self.is_made[step] {
                continue;
            }
            match stretches.last_mut() {
                Some((_, last))
                    if *last + 1 == step && ![Some(*last), Some(step)].contains(&self.saved) =>
                {
                    *last = step;
                }
                _ => stretches.push((step, step)),
            }
        }
        // A run reads from itself ahead of where it writes, or behind.
        let Some(start) = self.graph.steps.get(self.graph.run_starts[run]) else {
            return;
        };
        if start.source < start.target {
            stretches.reverse();
        }
        for (first, last) in stretches {
            (first..=last).for_each(|step| self.finish(step));
            self.push(first, last, spare);
        }
    }

    /// Makes a stretch without readers, and what it frees on both sides.
    fn make_stretch(&mut self, mut first: usize, mut last: usize, spare: Option<PhysRange>) {
        let run = self.graph.steps_of(self.graph.run_of[first]);
        let is_saved = self.saved == Some(first);
        (first..=last).for_each(|step| self.finish(step));
        loop {
            let can_join = |step: usize| {
                !is_saved
                    && run.contains(&step)
                    && !self.is_made[step]
                    && self.readers[step] == 0
                    && self.saved != Some(step)
            };
            if can_join(last + 1) {
                last += 1;
                self.finish(last);
            } else if first > 0 && can_join(first - 1) {
                first -= 1;
                self.finish(first);
            } else {
                break;
            }
        }
        self.push(first, last, spare);
    }

    /// The cycles among steps of a component.
    fn cycles(&mut self, steps: &[usize]) -> Vec<Vec<usize>> {
        let mut cycles = Vec::new();
        for &start in steps {
            let mut at = Some(start);
            while let Some(step) = at
                && self.walk_of[step].is_none()
            {
                self.walk_of[step] = Some(start);
                let next = self.graph.next[step];
                at = next.filter(|&next| self.is_current[self.graph.run_of[next]]);
            }
            // Where this walk has been before, it goes round.
            if let Some(first) = at
                && self.walk_of[first] == Some(start)
            {
                let follow = |&step: &usize| self.graph.next[step].filter(|&next| next != first);
                cycles.push(std::iter::successors(Some(first), follow).collect());
            }
        }
        cycles
    }

    /// Saves the source of a step of a cycle.
    fn break_cycle(&mut self, cycle: &[usize], spare: Option<PhysRange>) -> Result<(), MovesError> {
        let Some(spare) = spare else {
            return Err(MovesError::NoSpare {
                at: PhysAddr::new(self.graph.steps[cycle[0]].target),
                unit_bytes: self.unit_bytes,
            });
        };
        // Stretches: steps that follow each other in the cycle and in their run.
        let is_torn =
            |a: usize, b: usize| self.graph.run_of[a] != self.graph.run_of[b] || a.abs_diff(b) != 1;
        let count = cycle.len();
        let mut cycle = cycle.to_vec();
        if let Some(end) = (0..count).find(|&at| is_torn(cycle[at], cycle[(at + 1) % count])) {
            cycle.rotate_left((end + 1) % count);
        }
        let run_len = |s: usize| self.graph.steps_of(self.graph.run_of[s]).len();
        let chosen = cycle
            .chunk_by(|&a, &b| !is_torn(a, b))
            .min_by_key(|stretch| (run_len(stretch[0]) > 1, stretch.len()))
            .and_then(<[usize]>::first)
            .copied()
            .unwrap_or(cycle[0]);
        let from = self.graph.steps[chosen];
        self.copies.push(MemoryCopy {
            target: self.in_spare(&from, spare),
            source: PhysAddr::new(from.source),
            size_bytes: from.size_bytes,
        });
        self.is_last_direct = false;
        self.saved = Some(chosen);
        self.release_next(chosen);
        Ok(())
    }

    /// Where a step's source is saved: at the same offset in the unit, for the same alignment.
    fn in_spare(&self, step: &Span, spare: PhysRange) -> PhysAddr {
        // The spare memory is a unit or more, and the step ends within its unit.
        let offset_bytes = step.source % self.unit_bytes;
        spare
            .start()
            .checked_add(offset_bytes)
            .unwrap_or(spare.start())
    }

    /// Appends the copy of a stretch; the saved step is a stretch of its own.
    fn push(&mut self, first: usize, last: usize, spare: Option<PhysRange>) {
        let start = self.graph.steps[first];
        let size_bytes = self.graph.steps[last].target_end() - start.target;
        if let Some(spare) = spare
            && self.saved == Some(first)
        {
            self.copies.push(MemoryCopy {
                target: PhysAddr::new(start.target),
                source: self.in_spare(&start, spare),
                size_bytes,
            });
            self.is_last_direct = false;
            self.saved = None;
            return;
        }
        let span = Span {
            size_bytes,
            ..start
        };
        if self.is_last_direct
            && let Some(before) = self.copies.last_mut()
        {
            let whole = |a: &MemoryCopy, b: &Span| {
                a.target.checked_add(a.size_bytes) == Some(PhysAddr::new(b.target))
                    && a.source.checked_add(a.size_bytes) == Some(PhysAddr::new(b.source))
            };
            // What is made second does not read what is made first: that would be wrong. So it may as
            // well read before.
            if whole(before, &span) {
                before.size_bytes += size_bytes;
                return;
            }
            if span.target_end() == before.target.as_u64()
                && span.source + span.size_bytes == before.source.as_u64()
            {
                before.target = PhysAddr::new(span.target);
                before.source = PhysAddr::new(span.source);
                before.size_bytes += size_bytes;
                return;
            }
        }
        self.copies.push(MemoryCopy {
            target: PhysAddr::new(span.target),
            source: PhysAddr::new(span.source),
            size_bytes,
        });
        self.is_last_direct = true;
    }

    /// A step is made.
    fn finish(&mut self, step: usize) {
        self.is_made[step] = true;
        self.left -= 1;
        // Whoever writes to the source of a saved step has been released when it was saved.
        if self.saved != Some(step) {
            self.release_next(step);
        }
    }

    /// A step no longer needs its source.
    fn release_next(&mut self, step: usize) {
        let Some(next) = self.graph.next[step] else {
            return;
        };
        self.readers[next] -= 1;
        if let Some(run) = self.graph.next_run(step) {
            self.foreign_readers[run] -= 1;
            if self.foreign_readers[run] == 0 && self.is_current[run] {
                self.free_runs.push(run);
            }
        }
        if self.readers[next] == 0 && self.is_current[self.graph.run_of[next]] {
            self.add_free(next);
        }
    }

    /// Notes a step without readers, as part of a stretch with its neighbours.
    fn add_free(&mut self, step: usize) {
        self.is_free[step] = true;
        let run = self.graph.steps_of(self.graph.run_of[step]);
        let can_join = |other: usize| {
            run.contains(&other)
                && !self.is_made[other]
                && self.is_free[other]
                && ![Some(step), Some(other)].contains(&self.saved)
        };
        // A neighbour in a stretch is an end of it.
        let first = match step.checked_sub(1) {
            Some(before) if can_join(before) => self.other_end[before],
            _ => step,
        };
        let last = if can_join(step + 1) {
            self.other_end[step + 1]
        } else {
            step
        };
        self.other_end[first] = last;
        self.other_end[last] = first;
        self.free_stretches.push((last - first + 1, Reverse(first)));
    }

    fn longest_free_stretch(&mut self) -> Option<(usize, usize)> {
        while let Some((steps, Reverse(first))) = self.free_stretches.pop() {
            let last = first + steps - 1;
            if !self.is_made[first] && self.other_end[first] == last && !self.is_made[last] {
                return Some((first, last));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
