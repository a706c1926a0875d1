//! `order` against memory in which every byte has a name.
//!
//! The model is obvious: all copies at once is a map from each byte to the byte it gets its content from;
//! one after the other is a `Vec` and `copy_within`. It shares nothing with the code but the types.

use super::*;
use std::collections::{HashMap, VecDeque};

/// (target, source, size) in bytes.
type Triple = (usize, usize, usize);

fn copies_of(triples: &[Triple]) -> Vec<MemoryCopy> {
    let address = |at: usize| PhysAddr::new(at as u64);
    triples
        .iter()
        .map(|&(target, source, size)| MemoryCopy {
            target: address(target),
            source: address(source),
            size_bytes: size as u64,
        })
        .collect()
}

fn triples_of(copies: &[MemoryCopy]) -> Vec<Triple> {
    let number = |value: u64| usize::try_from(value).unwrap();
    copies
        .iter()
        .map(|copy| {
            let (target, source) = (copy.target.as_u64(), copy.source.as_u64());
            (number(target), number(source), number(copy.size_bytes))
        })
        .collect()
}

fn range(start: usize, size: usize) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start as u64), size as u64).unwrap()
}

/// What memory of `size` bytes holds afterwards, each byte named after where it was.
fn at_once(size: usize, triples: &[Triple]) -> Vec<usize> {
    let mut memory: Vec<usize> = (0..size).collect();
    for &(target, source, size) in triples {
        for at in 0..size {
            memory[target + at] = source + at;
        }
    }
    memory
}

fn one_by_one(size: usize, triples: &[Triple]) -> Vec<usize> {
    let mut memory: Vec<usize> = (0..size).collect();
    for &(target, source, size) in triples {
        memory.copy_within(source..source + size, target);
    }
    memory
}

/// A problem: memory of `size` bytes, the spare unit after it, and then a guard.
#[derive(Debug, Clone)]
struct Problem {
    unit: usize,
    size: usize,
    triples: Vec<Triple>,
}

impl Problem {
    /// Whole units: what unit `i` is to hold, if anything.
    fn of_units(map: &[Option<usize>], unit: usize) -> Self {
        let triples = map
            .iter()
            .enumerate()
            .filter_map(|(target, source)| Some((target * unit, (*source)? * unit, unit)))
            .collect();
        let units = map.iter().flatten().max().map_or(0, |&last| last + 1);
        Self {
            unit,
            size: units.max(map.len()) * unit,
            triples,
        }
    }

    /// Without the first `head` bytes of the first copy's unit and the last `tail` of the last's.
    fn trimmed(mut self, head: usize, tail: usize) -> Self {
        if let Some((target, source, size)) = self.triples.first_mut() {
            *target += head;
            *source += head;
            *size -= head;
        }
        if let Some((_, _, size)) = self.triples.last_mut() {
            *size -= tail;
        }
        self
    }

    /// Orders, makes, compares. The order, or what is wrong.
    fn solve(&self) -> Result<Vec<Triple>, String> {
        let spare = range(self.size, self.unit);
        let ordered = order(&copies_of(&self.triples), Some(spare), self.unit as u64)
            .map_err(|error| error.to_string())?;
        let ordered = triples_of(&ordered);
        let all = self.size + 2 * self.unit;
        let (found, expected) = (one_by_one(all, &ordered), at_once(all, &self.triples));
        // The guard after the spare unit counts too, the spare unit does not.
        let counts = |at: &usize| !(self.size..self.size + self.unit).contains(at);
        match (0..all)
            .filter(counts)
            .find(|&at| found[at] != expected[at])
        {
            Some(at) => Err(format!(
                "byte {at} holds {}, not {}, after {ordered:?}",
                found[at], expected[at]
            )),
            None => self.check_cost(&ordered).map(|()| ordered),
        }
    }

    /// Every byte is copied once, but for those that are saved, at most a unit each time; nothing is
    /// saved if no cycle demands it.
    fn check_cost(&self, ordered: &[Triple]) -> Result<(), String> {
        let sum = |triples: &[Triple]| triples.iter().map(|&(_, _, size)| size).sum::<usize>();
        let saved: Vec<Triple> = ordered
            .iter()
            .copied()
            .filter(|&(target, _, _)| target >= self.size)
            .collect();
        let wanted: Vec<Triple> = self
            .triples
            .iter()
            .copied()
            .filter(|(target, source, _)| target != source)
            .collect();
        if sum(ordered) != sum(&wanted) + sum(&saved) {
            return Err(format!("copies more than it should: {ordered:?}"));
        }
        if saved.iter().any(|&(_, _, size)| size > self.unit) {
            return Err(format!("saves more than a unit: {ordered:?}"));
        }
        let without = order(&copies_of(&self.triples), None, self.unit as u64);
        match (without, saved.is_empty()) {
            (Ok(_), true) if !self.has_cycle_of_bytes() => Ok(()),
            (Err(MovesError::NoSpare { .. }), false) if self.has_cycle_of_units() => Ok(()),
            (without, _) => Err(format!(
                "{without:?} without spare memory, {ordered:?} with it"
            )),
        }
    }

    /// Whether the bytes go round in circles anywhere; by following every byte.
    fn has_cycle_of_bytes(&self) -> bool {
        let holds = at_once(self.size, &self.triples);
        (0..self.size).any(|start| {
            let mut at = start;
            for _ in 0..self.size {
                if holds[at] == at {
                    return false; // stays
                }
                at = holds[at];
                if at == start {
                    return true;
                }
            }
            false
        })
    }

    /// Whether units wait for each other in circles, if a unit waits for all that read any byte of it:
    /// takes away, again and again, the units that read from none that is left.
    fn has_cycle_of_units(&self) -> bool {
        let holds = at_once(self.size, &self.triples);
        let mut left: Vec<usize> = (0..self.size.div_ceil(self.unit)).collect();
        loop {
            let before = left.clone();
            left.retain(|&unit| {
                (unit * self.unit..self.size.min((unit + 1) * self.unit))
                    .any(|at| holds[at] != at && before.contains(&(holds[at] / self.unit)))
            });
            if left.len() == before.len() {
                return !left.is_empty();
            }
        }
    }

    fn fails_as_given(&self) -> bool {
        one_by_one(self.size, &self.triples) != at_once(self.size, &self.triples)
    }
}

/// Every map from `targets` units to `sources` units, or to nothing, in turn.
fn for_every_map(targets: usize, sources: usize, mut visit: impl FnMut(&[Option<usize>])) {
    let choices = sources + 1;
    for mut code in 0..choices.pow(u32::try_from(targets).unwrap()) {
        let map: Vec<Option<usize>> = (0..targets)
            .map(|_| {
                let choice = code % choices;
                code /= choices;
                choice.checked_sub(1)
            })
            .collect();
        visit(&map);
    }
}

fn for_every_permutation(count: usize, visit: &mut impl FnMut(&[Option<usize>])) {
    // Heap's algorithm.
    let mut map: Vec<Option<usize>> = (0..count).map(Some).collect();
    let mut counters = vec![0; count];
    visit(&map);
    let mut at = 0;
    while at < count {
        if counters[at] < at {
            map.swap(if at % 2 == 0 { 0 } else { counters[at] }, at);
            visit(&map);
            counters[at] += 1;
            at = 0;
        } else {
            counters[at] = 0;
            at += 1;
        }
    }
}

#[test]
fn every_map_of_six_units_is_made_right() {
    let (mut maps, mut wrong_as_given) = (0, 0);
    for_every_map(6, 6, |map| {
        let problem = Problem::of_units(map, 1);
        problem.solve().unwrap_or_else(|e| panic!("{map:?}: {e}"));
        maps += 1;
        wrong_as_given += usize::from(problem.fails_as_given());
    });
    assert_eq!(maps, 117_649);
    // That the test can fail: the same check on the copies as they were given.
    assert!(wrong_as_given > maps / 2, "{wrong_as_given} of {maps}");
}

#[test]
fn every_map_with_partial_ends_is_made_right() {
    let mut wrong_as_given = 0;
    for (head, tail) in [(1, 0), (0, 1), (1, 1), (3, 2), (1, 3)] {
        for_every_map(5, 6, |map| {
            // With one copy both ends are its own.
            if map.iter().flatten().count() < 2 {
                return;
            }
            let problem = Problem::of_units(map, 4).trimmed(head, tail);
            problem
                .solve()
                .unwrap_or_else(|e| panic!("{map:?} without {head} and {tail}: {e}"));
            wrong_as_given += usize::from(problem.fails_as_given());
        });
    }
    assert!(wrong_as_given > 10_000, "{wrong_as_given}");
}

/// Units of two bytes, each byte with a source of its own: copies that meet within a unit, and readers
/// across where they meet.
#[test]
fn every_map_of_half_units_is_made_right() {
    const UNITS: usize = 3;
    let mut wrong_as_given = 0;
    for_every_map(2 * UNITS, UNITS, |map| {
        let mut triples: Vec<Triple> = Vec::new();
        for (target, source) in map.iter().enumerate() {
            let Some(source) = source.map(|unit| unit * 2 + target % 2) else {
                continue;
            };
            match triples.last_mut() {
                // Joined as a caller would, so that there are whole units to be cut.
                Some((t, s, size)) if *t + *size == target && *s + *size == source => *size += 1,
                _ => triples.push((target, source, 1)),
            }
        }
        let problem = Problem {
            unit: 2,
            size: 2 * UNITS,
            triples,
        };
        problem.solve().unwrap_or_else(|e| panic!("{map:?}: {e}"));
        wrong_as_given += usize::from(problem.fails_as_given());
    });
    assert!(wrong_as_given > 1_000, "{wrong_as_given}");
}

#[test]
fn every_permutation_of_eight_units_is_made_right() {
    let (mut permutations, mut wrong_as_given) = (0, 0);
    for count in 0..=8 {
        for_every_permutation(count, &mut |map| {
            let problem = Problem::of_units(map, 1);
            let ordered = problem.solve().unwrap_or_else(|e| panic!("{map:?}: {e}"));
            // Without its cycles broken more than once: a save and a copy more than there are units.
            let cycles = cycles_of(map);
            let moved = (0..count).filter(|&at| map[at] != Some(at)).count();
            assert!(ordered.len() <= moved + cycles, "{map:?}: {ordered:?}");
            permutations += 1;
            let fails = problem.fails_as_given();
            // No permutation but the identity is right in any order without spare memory.
            assert_eq!(fails, moved > 0, "{map:?}");
            wrong_as_given += usize::from(fails);
        });
    }
    assert_eq!(permutations, 1 + 1 + 2 + 6 + 24 + 120 + 720 + 5040 + 40320);
    assert_eq!(wrong_as_given, permutations - 9);
}

/// Cycles of two and more.
fn cycles_of(map: &[Option<usize>]) -> usize {
    let mut seen = vec![false; map.len()];
    let mut cycles = 0;
    for start in 0..map.len() {
        let mut at = start;
        let mut length = 0;
        while !seen[at] {
            seen[at] = true;
            at = map[at].unwrap();
            length += 1;
        }
        cycles += usize::from(length > 1);
    }
    cycles
}

/// The least copies for every content that five units and a spare one can have, by breadth-first search
/// over all sequences of copies, those that use units as scratch memory included.
fn least_copies(units: usize) -> HashMap<Vec<usize>, usize> {
    let spare = units; // its own island: no copy runs into it
    let start: Vec<usize> = (0..=units).collect();
    let mut least = HashMap::from([(start.clone(), 0)]);
    let mut queue = VecDeque::from([start]);
    while let Some(memory) = queue.pop_front() {
        let copies = least[&memory] + 1;
        let mut visit = |source: usize, size: usize, target: usize| {
            let mut after = memory.clone();
            after.copy_within(source..source + size, target);
            if !least.contains_key(&after) {
                least.insert(after.clone(), copies);
                queue.push_back(after);
            }
        };
        for size in 1..=units {
            for source in 0..=units - size {
                (0..=units - size).for_each(|target| visit(source, size, target));
            }
        }
        (0..units).for_each(|unit| visit(unit, 1, spare));
        (0..units).for_each(|unit| visit(spare, 1, unit));
    }
    // The spare unit may hold anything in the end.
    let mut result: HashMap<Vec<usize>, usize> = HashMap::new();
    for (mut memory, copies) in least {
        memory.truncate(units);
        let known = result.entry(memory).or_insert(copies);
        *known = copies.min(*known);
    }
    result
}

/// The least copies if every unit is written once, with what it is to hold, and only the spare one is
/// written in between: what `order` allows itself.
fn least_copies_in_place(wanted: &[usize]) -> usize {
    let units = wanted.len();
    let spare = units;
    let start: Vec<usize> = (0..=units).collect();
    let mut seen = HashMap::from([(start.clone(), 0)]);
    let mut queue = VecDeque::from([start]);
    while let Some(memory) = queue.pop_front() {
        let copies = seen[&memory];
        if memory[..units] == *wanted {
            return copies;
        }
        let mut visit = |source: usize, size: usize, target: usize| {
            let mut after = memory.clone();
            after.copy_within(source..source + size, target);
            let is_final = |at: usize| at == spare || after[at] == wanted[at];
            if (target..target + size).all(is_final) && !seen.contains_key(&after) {
                seen.insert(after.clone(), copies + 1);
                queue.push_back(after);
            }
        };
        for size in 1..=units {
            for source in 0..=units - size {
                (0..=units - size).for_each(|target| visit(source, size, target));
            }
        }
        (0..units).for_each(|unit| visit(unit, 1, spare));
        (0..units).for_each(|unit| visit(spare, 1, unit));
    }
    panic!("no order for {wanted:?}");
}

#[test]
fn copies_are_few() {
    const UNITS: usize = 5;
    let least = least_copies(UNITS);
    // Maps by how many copies they take over the least, and over the least in place.
    let (mut over, mut over_in_place) = ([0_usize; 8], [0_usize; 8]);
    for_every_map(UNITS, UNITS, |map| {
        let mut sources: Vec<usize> = map.iter().flatten().copied().collect();
        let all = sources.len();
        sources.sort_unstable();
        sources.dedup();
        // As in a payload, no unit is read twice; else what is written can be read again, for fewer.
        if sources.len() < all {
            return;
        }
        let found = Problem::of_units(map, 1).solve().unwrap().len();
        let stays = |(at, source): (usize, &Option<usize>)| source.unwrap_or(at);
        let wanted: Vec<usize> = map.iter().enumerate().map(stays).collect();
        over[found - least[&wanted]] += 1;
        over_in_place[found - least_copies_in_place(&wanted)] += 1;
    });
    println!("copies over the least: {over:?}, in place: {over_in_place:?}");
    assert_eq!(over.iter().sum::<usize>(), 1546);
    // Most take the least that is possible at all, none more than two over it.
    assert!(over[0] > 1250 && over[3..] == [0; 5], "{over:?}");
    assert!(
        over_in_place[0] > 1450 && over_in_place[3..] == [0; 5],
        "{over_in_place:?}"
    );
}
