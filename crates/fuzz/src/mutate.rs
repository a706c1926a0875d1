//! Mutations of an input, by a seed: what libFuzzer does, without its knowledge of what is worth keeping.
//!
//! The same seed and the same input give the same mutation on every machine, so that a failure can be repeated
//! from the two numbers that are printed.

/// SplitMix64 (Steele, Lea and Flood, 2014): a state of one word, and every seed is a good one.
#[derive(Debug, Clone, Copy)]
pub struct Random(u64);

impl Random {
    /// The stream of numbers that a seed stands for.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    #[must_use]
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.word() % limit).unwrap_or(0)
    }
}

/// Bytes at which parsers trip.
const BYTES: [u8; 12] = [0, 1, 2, 4, 0x0a, 0x20, 0x2d, 0x3a, 0x7f, 0x80, 0xfe, 0xff];
/// Words at which they do.
const WORDS: [u64; 12] = [
    0,
    1,
    9,
    0x7f,
    0xff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX,
];

/// One to eight changes of `input`: bits, bytes, words of either endianness, pieces removed, repeated, or taken
/// from `other`. At most `max_len_bytes` long.
#[must_use]
pub fn mutated(random: &mut Random, input: &[u8], other: &[u8], max_len_bytes: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len());
        let length = 1 + random.below(16);
        let end = at.saturating_add(length).min(bytes.len());
        match random.below(9) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = BYTES[random.below(BYTES.len())];
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add(random.below(33) as u8).wrapping_sub(16);
                }
            }
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                let size = 1 << random.below(4);
                let word = if random.below(2) == 0 {
                    word.to_le_bytes()[..size].to_vec()
                } else {
                    word.to_be_bytes()[8 - size..].to_vec()
                };
                for (byte, new) in bytes.iter_mut().skip(at).zip(word) {
                    *byte = new;
                }
            }
            4 => {
                bytes.drain(at..end);
            }
            5 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let new: Vec<u8> = (0..length).map(|_| random.word() as u8).collect();
                bytes.splice(at..at, new);
            }
            7 => {
                let from = random.below(other.len());
                let piece = &other[from..from.saturating_add(4 * length).min(other.len())];
                bytes.splice(at..end, piece.iter().copied());
            }
            _ => {
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(max_len_bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_everything() {
        let (input, other) = (vec![7; 100], vec![9; 50]);
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..100)
                .map(|_| mutated(&mut random, &input, &other, 120))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(3).iter().all(|bytes| bytes.len() <= 120));
        let different = run(4).iter().filter(|bytes| **bytes != input).count();
        assert!(different > 90, "{different} of 100 differ");
    }

    #[test]
    fn nothing_becomes_something() {
        let mut random = Random::new(5);
        assert!((0..100).any(|_| !mutated(&mut random, &[], &[], 10).is_empty()));
    }
}
