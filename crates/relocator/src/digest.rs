//! What is compared with what: algorithms, and the chunks that each piece is cut into.
//!
//! A piece has a digest for each chunk, not one for all of it: the line about a mismatch then says where it
//! is, and `load` and `exec` take the digests of different chunks on different CPUs. The size of a chunk grows
//! with the piece, so that a hand-off block never holds more than [`CHUNKS_MAX`] digests for one; it follows
//! from the piece's size alone, so that nobody has to be told.

use core::fmt;

/// Size of a chunk of a small piece, bytes.
pub const CHUNK_MIN_BYTES: u64 = 1 << 20;
/// Most chunks of a piece. The block is read before the MMU is on, load by load: 256 digests of SHA-256 are 8 KiB.
pub const CHUNKS_MAX: usize = 256;

/// Size of the chunks of a piece, bytes; the last one may be smaller.
#[must_use]
pub const fn chunk_size_bytes(piece_size_bytes: u64) -> u64 {
    let least = piece_size_bytes.div_ceil(CHUNKS_MAX as u64);
    if least <= CHUNK_MIN_BYTES {
        return CHUNK_MIN_BYTES;
    }
    match least.checked_next_power_of_two() {
        Some(size_bytes) => size_bytes,
        None => piece_size_bytes, // never: `least` is at most 2^64 / CHUNKS_MAX
    }
}

/// Chunks of a piece, count: at most [`CHUNKS_MAX`].
#[must_use]
pub fn chunk_count(piece_size_bytes: u64) -> usize {
    let count = piece_size_bytes.div_ceil(chunk_size_bytes(piece_size_bytes));
    usize::try_from(count).unwrap_or(CHUNKS_MAX) // which it never exceeds
}

/// How bytes are compared with those that were loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// [`crate::crc32c`]: finds accidents.
    Crc32c,
    /// [`crate::sha256`].
    Sha256,
}

impl Algorithm {
    /// The number that stands for it in the hand-off and in the timeline; 0 is none at all.
    #[must_use]
    pub const fn code(algorithm: Option<Self>) -> u64 {
        match algorithm {
            None => 0,
            Some(Self::Crc32c) => 1,
            Some(Self::Sha256) => 2,
        }
    }

    /// What a number stands for, if for anything.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Option<Self>> {
        match code {
            0 => Some(None),
            1 => Some(Some(Self::Crc32c)),
            2 => Some(Some(Self::Sha256)),
            _ => None,
        }
    }

    /// Words of 64 bits that a digest takes in the hand-off.
    #[must_use]
    pub const fn digest_words(self) -> usize {
        match self {
            Self::Crc32c => 1,
            Self::Sha256 => 4,
        }
    }

    /// What the field calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "CRC32C",
            Self::Sha256 => "SHA-256",
        }
    }
}

/// A digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// Of [`Algorithm::Crc32c`].
    Crc32c(u32),
    /// Of [`Algorithm::Sha256`].
    Sha256([u8; crate::sha256::DIGEST_BYTES]),
}

impl Digest {
    /// As words of 64 bits, the bytes of SHA-256 in the order of memory; those beyond
    /// [`Algorithm::digest_words`] are 0.
    #[must_use]
    pub fn words(&self) -> [u64; 4] {
        match self {
            Self::Crc32c(crc) => [u64::from(*crc), 0, 0, 0],
            Self::Sha256(bytes) => {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
                words
            }
        }
    }

    /// From those words; `None` if they are no digest of that algorithm.
    #[must_use]
    pub fn from_words(algorithm: Algorithm, words: [u64; 4]) -> Option<Self> {
        match algorithm {
            Algorithm::Crc32c => Some(Self::Crc32c(u32::try_from(words[0]).ok()?)),
            Algorithm::Sha256 => {
                let mut bytes = [0; crate::sha256::DIGEST_BYTES];
                for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
                Some(Self::Sha256(bytes))
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crc32c(crc) => write!(f, "{crc:#010x}"),
            Self::Sha256(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// The digests of a piece, one for each chunk in order, as the hand-off holds them.
#[cfg(feature = "host")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// How they were made; `None`: there are none, and the piece is not verified.
    pub algorithm: Option<Algorithm>,
    /// Their words.
    pub words: Vec<u64>,
}

#[cfg(feature = "host")]
impl Digests {
    /// No digests: a piece that is not verified.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            algorithm: None,
            words: Vec::new(),
        }
    }

    /// Of a piece that is all in one slice; on this CPU alone.
    #[must_use]
    pub fn of(algorithm: Algorithm, piece: &[u8]) -> Self {
        let chunk = usize::try_from(chunk_size_bytes(piece.len() as u64)).unwrap_or(usize::MAX);
        let words = piece.chunks(chunk).flat_map(|chunk| {
            let digest = on_host(algorithm, &[chunk]);
            digest.words().into_iter().take(algorithm.digest_words())
        });
        Self {
            algorithm: Some(algorithm),
            words: words.collect(),
        }
    }

    /// The digest of each chunk; stops before one that is none.
    pub fn iter(&self) -> impl Iterator<Item = Digest> + '_ {
        self.algorithm.into_iter().flat_map(|algorithm| {
            let size = algorithm.digest_words();
            self.words.chunks_exact(size).map_while(move |digest| {
                let mut words = [0; 4];
                words[..size].copy_from_slice(digest);
                Digest::from_words(algorithm, words)
            })
        })
    }

    /// The CRC32C of the whole piece, if that is what the digests of its chunks are.
    #[must_use]
    pub fn crc32c(&self, piece_size_bytes: u64) -> Option<u32> {
        let chunk = chunk_size_bytes(piece_size_bytes);
        let (mut crc, mut rest) = (0, piece_size_bytes);
        for digest in self.iter() {
            let Digest::Crc32c(next) = digest else {
                return None;
            };
            let size_bytes = chunk.min(rest);
            crc = crate::crc32c::combine(crc, next, size_bytes);
            rest -= size_bytes;
        }
        (self.algorithm.is_some() && rest == 0).then_some(crc)
    }
}

/// The digest of bytes that lie in several slices, in the fastest way that this CPU has.
#[cfg(feature = "host")]
#[must_use]
pub fn on_host(algorithm: Algorithm, slices: &[&[u8]]) -> Digest {
    match algorithm {
        Algorithm::Crc32c => {
            let add = |crc, slice: &&[u8]| crate::crc32c::update_on_host(crc, slice);
            Digest::Crc32c(slices.iter().fold(0, add))
        }
        Algorithm::Sha256 => {
            let mut hasher = crate::sha256::Hasher::on_host();
            slices.iter().for_each(|slice| hasher.update(slice));
            Digest::Sha256(hasher.finish())
        }
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Crc32c, Algorithm::Sha256];

    #[test]
    fn chunks_are_few_and_cover_everything() {
        let mib = 1 << 20;
        for (size_bytes, chunk, count) in [
            (0, mib, 0),
            (1, mib, 1),
            (mib, mib, 1),
            (mib + 1, mib, 2),
            (256 * mib, mib, 256),
            (256 * mib + 1, 2 * mib, 129),
            (380_000_000, 2 * mib, 182),
            (16 << 30, 64 * mib, 256),
            (u64::MAX, 1 << 56, 256),
        ] {
            assert_eq!(chunk_size_bytes(size_bytes), chunk, "{size_bytes}");
            assert_eq!(chunk_count(size_bytes), count, "{size_bytes}");
        }
    }

    #[test]
    fn codes_are_what_they_were() {
        for algorithm in [None, Some(Algorithm::Crc32c), Some(Algorithm::Sha256)] {
            assert_eq!(
                Algorithm::from_code(Algorithm::code(algorithm)),
                Some(algorithm)
            );
        }
        assert_eq!(Algorithm::from_code(3), None);
    }

    #[test]
    fn the_crc_of_all_follows_from_those_of_the_chunks() {
        let piece: Vec<u8> = (0..3 * CHUNK_MIN_BYTES + 77)
            .map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7])
            .collect();
        let whole = crate::crc32c::update(0, &piece);
        let size_bytes = piece.len() as u64;
        let digests = Digests::of(Algorithm::Crc32c, &piece);
        assert_eq!(digests.iter().count(), 4);
        assert_eq!(digests.crc32c(size_bytes), Some(whole));
        assert_eq!(Digests::of(Algorithm::Sha256, &piece[..9]).crc32c(9), None);
        assert_eq!(Digests::none().crc32c(0), None);
        assert_eq!(Digests::of(Algorithm::Crc32c, &[]).crc32c(0), Some(0));
        assert_eq!(
            digests.crc32c(size_bytes + CHUNK_MIN_BYTES),
            None,
            "one digest is missing"
        );
    }

    #[test]
    fn a_digest_is_written_as_people_compare_it() {
        assert_eq!(
            on_host(Algorithm::Crc32c, &[b"1234", b"56789"]).to_string(),
            "0xe3069283"
        );
        assert_eq!(
            on_host(Algorithm::Sha256, &[b"a", b"bc"]).to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    proptest! {
        #[test]
        fn no_size_has_too_many_chunks(size_bytes in any::<u64>()) {
            let (chunk, count) = (chunk_size_bytes(size_bytes), chunk_count(size_bytes));
            prop_assert!(chunk >= CHUNK_MIN_BYTES && count <= CHUNKS_MAX);
            prop_assert!(u128::from(chunk) * count as u128 >= u128::from(size_bytes));
        }

        #[test]
        fn words_are_digests(words in any::<[u64; 4]>()) {
            for algorithm in ALGORITHMS {
                if let Some(digest) = Digest::from_words(algorithm, words) {
                    let size = algorithm.digest_words();
                    prop_assert_eq!(&digest.words()[..size], &words[..size]);
                } else {
                    prop_assert!(algorithm == Algorithm::Crc32c && words[0] > u64::from(u32::MAX));
                }
            }
        }
    }
}
