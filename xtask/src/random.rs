//! Numbers that a seed decides: the same on every machine and in every version.

/// `SplitMix64` (Steele, Lea and Flood, 2014): small, and any seed will do.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// From a seed alone.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// For one fault of a run.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut random = Self::from_seed(seed);
        let start = random.next() ^ number.wrapping_mul(0xd605_1fa3_7d2b_8d1b);
        Self(start)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0 where `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// One of several.
    pub(crate) fn of<'item, T>(&mut self, items: &'item [T]) -> Option<&'item T> {
        let index = usize::try_from(self.below(items.len() as u64)).ok()?;
        items.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_its_own_numbers() {
        let numbers = |seed, number| {
            let mut random = Random::new(seed, number);
            [random.next(), random.below(1000), random.next()]
        };
        assert_eq!(numbers(1, 2), numbers(1, 2));
        assert_ne!(numbers(1, 2), numbers(1, 3));
        assert_ne!(numbers(1, 2), numbers(2, 2));
        assert_eq!(Random::new(0, 0).below(0), 0);
    }
}
