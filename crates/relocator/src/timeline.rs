//! The record of a hand-over: counter values and counts, as the next kernel finds them.
//!
//! The command reserves a property of [`SIZE_BYTES`] zero bytes, [`PROPERTY`] in `/chosen`; the
//! relocator fills it in as its last act; the next kernel's userspace reads it below
//! `/proc/device-tree`. All words are big-endian, as everything in a device tree is. Times are values
//! of `CNTVCT_EL0`, which keeps counting through a hand-over; `FREQUENCY` makes seconds of them.
//!
//! The device tree was chosen over a reserved page of memory because it needs no address to be found
//! at and no driver to be read with, and every kernel shows it.

use crate::digest::Algorithm;

/// Name of the property in `/chosen`.
pub const PROPERTY: &str = "kleap,timeline";
/// First word of the record: `KLEAPTL1` in ASCII.
pub const MAGIC: u64 = u64::from_be_bytes(*b"KLEAPTL1");
/// Words of the record.
pub const WORDS: usize = 24;
/// Size of the record, bytes.
pub const SIZE_BYTES: usize = WORDS * 8;

/// What a hand-over leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeline {
    /// Counts per second.
    pub frequency_hz: u64,
    /// When `exec` was asked for.
    pub exec_requested: u64,
    /// When the first kernel jumped.
    pub relocator_entered: u64,
    /// When the MMU and the caches were on.
    pub mmu_on: u64,
    /// When the interrupt controller's table walks had been stopped.
    pub quiesced: u64,
    /// When every move was done.
    pub moves_done: u64,
    /// When every digest was right.
    pub verified: u64,
    /// When everything was clean to the point of coherency.
    pub cleaned: u64,
    /// When the next kernel was entered.
    pub kernel_entered: u64,
    /// Exception level and regime.
    pub level: Level,
    /// Moves made, count.
    pub moves: u64,
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Bytes verified.
    pub verified_bytes: u64,
    /// Bytes cleaned.
    pub cleaned_bytes: u64,
    /// Translation tables in use, count.
    pub tables: u64,
    /// Size of one, bytes.
    pub table_size_bytes: u64,
    /// How Image, initrd and device tree were verified; `None` if they were not.
    pub algorithm: Option<Algorithm>,
    /// Whether instructions made for that were used.
    pub digest_instructions: bool,
    /// Redistributors seen, count.
    pub redistributors: u64,
    /// Redistributors whose LPIs were on and are off now, count.
    pub lpis_disabled: u64,
    /// Redistributors whose LPIs could not be turned off, count.
    pub lpis_stuck: u64,
    /// Redistributors whose LPIs are on when the next kernel is entered, their tables reserved in its
    /// device tree, count.
    pub lpis_reserved: u64,
    /// When `exec` had checked everything and gave the relocator to the first kernel.
    pub exec_prepared: u64,
}

/// Where the relocator ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// EL1.
    #[default]
    El1,
    /// EL2, `HCR_EL2.E2H` clear.
    El2,
    /// EL2, `HCR_EL2.E2H` set: the Virtualization Host Extensions.
    El2Vhe,
}

impl Level {
    /// The number that stands for it, in the record and between assembly and Rust.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::El1 => 1,
            Self::El2 => 2,
            Self::El2Vhe => 3,
        }
    }

    /// The level that `code` stands for.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Self> {
        match code {
            1 => Some(Self::El1),
            2 => Some(Self::El2),
            3 => Some(Self::El2Vhe),
            _ => None,
        }
    }

    /// What the field calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::El1 => "EL1",
            Self::El2 => "EL2",
            Self::El2Vhe => "EL2 (VHE)",
        }
    }
}

/// Why a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineError {
    /// It has another size.
    Size {
        /// Bytes there are.
        found_bytes: usize,
    },
    /// It was never filled in: the relocator did not get that far, or was not run at all.
    Empty,
    /// It starts with something else.
    Magic {
        /// What it starts with.
        found: u64,
    },
    /// Its algorithm for digests is none that is known.
    Algorithm {
        /// The number found.
        found: u64,
    },
    /// Its exception level is none that exists.
    Level {
        /// The number found.
        found: u64,
    },
}

impl core::fmt::Display for TimelineError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Size { found_bytes } => write!(
                f,
                "the record of the hand-over has {found_bytes} bytes, not {SIZE_BYTES}: \
                 it was left by another version of kleap"
            ),
            Self::Empty => f.write_str("the record of the hand-over was never filled in"),
            Self::Magic { found } => {
                write!(f, "the record of the hand-over starts with {found:#x}")
            }
            Self::Algorithm { found } => {
                write!(
                    f,
                    "the record of the hand-over names digest algorithm {found}"
                )
            }
            Self::Level { found } => {
                write!(
                    f,
                    "the record of the hand-over names exception level {found}"
                )
            }
        }
    }
}

impl core::error::Error for TimelineError {}

impl Timeline {
    /// The record as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SIZE_BYTES] {
        let words: [u64; WORDS] = [
            MAGIC,
            self.frequency_hz,
            self.exec_requested,
            self.relocator_entered,
            self.mmu_on,
            self.quiesced,
            self.moves_done,
            self.verified,
            self.cleaned,
            self.kernel_entered,
            self.level.code(),
            self.moves,
            self.moved_bytes,
            self.verified_bytes,
            self.cleaned_bytes,
            self.tables,
            self.table_size_bytes,
            self.digest_instructions as u64,
            self.redistributors,
            self.lpis_disabled,
            self.lpis_stuck,
            self.exec_prepared,
            self.lpis_reserved,
            Algorithm::code(self.algorithm),
        ];
        let mut bytes = [0; SIZE_BYTES];
        let (slots, _) = bytes.as_chunks_mut::<8>();
        for (slot, word) in slots.iter_mut().zip(words) {
            *slot = word.to_be_bytes();
        }
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`TimelineError`], when the bytes are no record of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, TimelineError> {
        let Ok(bytes) = <&[u8; SIZE_BYTES]>::try_from(bytes) else {
            return Err(TimelineError::Size {
                found_bytes: bytes.len(),
            });
        };
        let mut words = [0_u64; WORDS];
        let (slots, _) = bytes.as_chunks::<8>();
        for (word, slot) in words.iter_mut().zip(slots) {
            *word = u64::from_be_bytes(*slot);
        }
        match words[0] {
            MAGIC => {}
            0 => return Err(TimelineError::Empty),
            found => return Err(TimelineError::Magic { found }),
        }
        Ok(Self {
            frequency_hz: words[1],
            exec_requested: words[2],
            relocator_entered: words[3],
            mmu_on: words[4],
            quiesced: words[5],
            moves_done: words[6],
            verified: words[7],
            cleaned: words[8],
            kernel_entered: words[9],
            level: Level::from_code(words[10]).ok_or(TimelineError::Level { found: words[10] })?,
            moves: words[11],
            moved_bytes: words[12],
            verified_bytes: words[13],
            cleaned_bytes: words[14],
            tables: words[15],
            table_size_bytes: words[16],
            digest_instructions: words[17] != 0,
            redistributors: words[18],
            lpis_disabled: words[19],
            lpis_stuck: words[20],
            exec_prepared: words[21],
            lpis_reserved: words[22],
            algorithm: Algorithm::from_code(words[23])
                .ok_or(TimelineError::Algorithm { found: words[23] })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbered() -> Timeline {
        Timeline {
            frequency_hz: 1,
            exec_requested: 2,
            relocator_entered: 3,
            mmu_on: 4,
            quiesced: 5,
            moves_done: 6,
            verified: 7,
            cleaned: 8,
            kernel_entered: 9,
            level: Level::El2Vhe,
            moves: 11,
            moved_bytes: 12,
            verified_bytes: 13,
            cleaned_bytes: 14,
            tables: 15,
            table_size_bytes: 16,
            algorithm: Some(Algorithm::Sha256),
            digest_instructions: true,
            redistributors: 18,
            lpis_disabled: 19,
            lpis_stuck: 20,
            exec_prepared: 21,
            lpis_reserved: 22,
        }
    }

    #[test]
    fn what_is_encoded_is_what_is_decoded() {
        assert_eq!(Timeline::decode(&numbered().encode()), Ok(numbered()));
    }

    #[test]
    fn an_unfilled_record_is_told_from_a_broken_one() {
        assert_eq!(
            Timeline::decode(&[0; SIZE_BYTES]),
            Err(TimelineError::Empty)
        );
        let mut broken = numbered().encode();
        broken[0] = 0xff;
        assert!(matches!(
            Timeline::decode(&broken),
            Err(TimelineError::Magic { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Timeline::decode(&bytes);
        }
    }
}
