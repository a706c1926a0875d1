//! CRC32C (Castagnoli), the digest of every piece.
//!
//! The question it answers is "are these the bytes that `load` placed?", asked of memory that only
//! accidents touch: CRC32C catches every burst up to 32 bits and 1 - 2^-32 of everything else, and has
//! an instruction on every arm64 server core. SHA-256 ([`crate::sha256`]) answers another question (did
//! someone mean to change them?) that a program in the same memory cannot answer.
//!
//! Two implementations, one result: [`update`] is portable (slicing by eight, 8 KiB of tables built
//! at compile time) and [`update_with_instructions`] uses `CRC32CX` (Arm ARM C6.2, FEAT_CRC32).
//!
//! # Several streams
//!
//! `CRC32CX` takes one result and makes the next: two or three cycles for 8 bytes, though a core can start
//! one in every cycle. So a block is cut into [`LANES`] lanes whose CRCs do not wait for each other. A CRC
//! is linear: the register after *A* followed by *B* is the register after *A* followed by as many zeros,
//! XOR that of *B* started with 0. What zeros do to a register is a multiplication by a power of x modulo
//! the polynomial, constant for lanes of a fixed length: eight lookups of four bits in a table of 512 bytes.
//! Rejected: `PMULL` for the same, which is another optional instruction for a few cycles in 16 KiB.

/// The reflected Castagnoli polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[k][b]` is the CRC of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0_u32; 256]; 8];
    let mut byte = 0_u32;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte as usize] = crc;
        byte += 1;
    }
    let mut slice = 1;
    while slice < 8 {
        let mut byte = 0;
        while byte < 256 {
            let previous = tables[slice - 1][byte];
            tables[slice][byte] = (previous >> 8) ^ tables[0][(previous & 0xff) as usize];
            byte += 1;
        }
        slice += 1;
    }
    tables
}

/// Streams of CRC32 instructions that do not wait for each other. On no core known does the instruction take
/// more cycles than that, and each load gets four times as many cycles.
#[cfg(any(target_arch = "aarch64", test))]
const LANES: usize = 4;
/// Bytes of one of them: long enough that combining them does not count, and that each is read in a row.
#[cfg(any(target_arch = "aarch64", test))]
const LANE_BYTES: usize = 4096;

/// Product of two polynomials modulo the CRC's, all reflected: the highest bit is the coefficient of 1.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 {
            (b >> 1) ^ POLYNOMIAL
        } else {
            b >> 1
        };
        bit >>= 1;
    }
    product
}

/// What `size_bytes` zero bytes multiply a CRC register by: x to the power of eight times that.
const fn zeros_operator(mut size_bytes: u64) -> u32 {
    let mut operator = 1 << 31; // 1
    let mut power = 1 << 23; // x^8: one byte
    while size_bytes > 0 {
        if size_bytes & 1 == 1 {
            operator = multiply(operator, power);
        }
        power = multiply(power, power);
        size_bytes >>= 1;
    }
    operator
}

/// The CRC32C of what `first` is the CRC32C of, followed by `second_size_bytes` bytes of which `second` is.
#[must_use]
pub const fn combine(first: u32, second: u32, second_size_bytes: u64) -> u32 {
    multiply(first, zeros_operator(second_size_bytes)) ^ second
}

/// `LANE_OF_ZEROS[k][n]` is what a lane of zeros makes of a register with `n` in its `k`th four bits.
#[cfg(any(target_arch = "aarch64", test))]
static LANE_OF_ZEROS: [[u32; 16]; 8] = lane_of_zeros();

#[cfg(any(target_arch = "aarch64", test))]
const fn lane_of_zeros() -> [[u32; 16]; 8] {
    let operator = zeros_operator(LANE_BYTES as u64);
    let mut table = [[0; 16]; 8];
    let mut digit = 0;
    while digit < 8 {
        let mut value = 0_u32;
        while value < 16 {
            table[digit][value as usize] = multiply(value << (4 * digit), operator);
            value += 1;
        }
        digit += 1;
    }
    table
}

#[cfg(any(target_arch = "aarch64", test))]
fn after_a_lane_of_zeros(crc: u32) -> u32 {
    let mut after = 0;
    for (digit, table) in LANE_OF_ZEROS.iter().enumerate() {
        after ^= table[(crc >> (4 * digit) & 0xf) as usize];
    }
    after
}

const fn table(slice: usize, byte: u64) -> u32 {
    TABLES[slice][(byte & 0xff) as usize]
}

/// The CRC32C of what `crc` is the CRC32C of, followed by `bytes`. Start with 0.
#[must_use]
pub fn update(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
        crc = table(7, word)
            ^ table(6, word >> 8)
            ^ table(5, word >> 16)
            ^ table(4, word >> 24)
            ^ table(3, word >> 32)
            ^ table(2, word >> 40)
            ^ table(1, word >> 48)
            ^ table(0, word >> 56);
    }
    for &byte in rest {
        crc = (crc >> 8) ^ table(0, u64::from(crc) ^ u64::from(byte));
    }
    !crc
}

/// [`update`], with the CRC32 instructions.
///
/// # Safety
/// The CPU must have FEAT_CRC32 (`ID_AA64ISAR0_EL1.CRC32` is not 0; `HWCAP_CRC32`).
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "crc")]
#[must_use]
pub fn update_with_instructions(crc: u32, bytes: &[u8]) -> u32 {
    use core::arch::aarch64::{__crc32cb, __crc32cd};
    let mut crc = !crc;
    let (blocks, rest) = bytes.as_chunks::<{ LANES * LANE_BYTES }>();
    for block in blocks {
        let (lanes, _) = block.as_chunks::<LANE_BYTES>();
        let &[ref first, ref second, ref third, ref fourth] = lanes else {
            continue; // there are LANES of them
        };
        let mut crcs = [crc, 0, 0, 0];
        // One load for 16 bytes of each.
        let pairs = first.as_chunks::<16>().0.iter();
        let pairs = pairs.zip(second.as_chunks::<16>().0);
        let pairs = pairs.zip(third.as_chunks::<16>().0);
        for (((a, b), c), d) in pairs.zip(fourth.as_chunks::<16>().0) {
            for (crc, pair) in crcs.iter_mut().zip([a, b, c, d]) {
                let pair = u128::from_le_bytes(*pair);
                *crc = __crc32cd(*crc, pair as u64);
                *crc = __crc32cd(*crc, (pair >> 64) as u64);
            }
        }
        let [first, second, third, fourth] = crcs;
        crc = after_a_lane_of_zeros(first) ^ second;
        crc = after_a_lane_of_zeros(crc) ^ third;
        crc = after_a_lane_of_zeros(crc) ^ fourth;
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        crc = __crc32cd(crc, u64::from_le_bytes(*word));
    }
    for &byte in rest {
        crc = __crc32cb(crc, byte);
    }
    !crc
}

/// [`update`], in the fastest way that this CPU has; for the command, which has an operating system to
/// ask.
#[cfg(feature = "host")]
#[must_use]
pub fn update_on_host(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("crc") {
        // SAFETY: the CPU has FEAT_CRC32: the line above asked.
        return unsafe { update_with_instructions(crc, bytes) };
    }
    update(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oracle(bytes: &[u8]) -> u32 {
        crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(bytes)
    }

    #[test]
    fn check_value() {
        assert_eq!(update(0, b"123456789"), 0xe306_9283); // RFC 3720, appendix B.4 polynomial
    }

    /// Bytes that repeat nowhere near.
    fn noise(size_bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..size_bytes).map(|_| next()).collect()
    }

    /// In every way there is on this machine.
    fn all_ways(crc: u32, bytes: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        found.extend([update(crc, bytes)]);
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("crc") {
            // SAFETY: the line above has seen that the CPU has FEAT_CRC32.
            found.push(unsafe { update_with_instructions(crc, bytes) });
        }
        found
    }

    /// Every length up to past the slicing, at every offset of a word; and around the ends of blocks of lanes.
    #[test]
    fn every_short_length_and_alignment() {
        let bytes = noise(3 * LANES * LANE_BYTES, 1);
        let block = LANES * LANE_BYTES;
        let lengths = (0..300)
            .chain(block - 20..block + 20)
            .chain(2 * block - 9..2 * block + 9);
        for length in lengths {
            for offset in 0..8 {
                let part = &bytes[offset..][..length];
                let expected = oracle(part);
                for found in all_ways(0, part) {
                    assert_eq!(found, expected, "{length} bytes at {offset}");
                }
            }
        }
    }

    #[test]
    fn a_lane_of_zeros_is_what_it_is() {
        for crc in [0, 1, 0x8000_0000, 0xdead_beef, u32::MAX] {
            // The register, not its complement.
            assert_eq!(after_a_lane_of_zeros(!crc), !update(crc, &[0; LANE_BYTES]));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn long_ones_agree_with_another_implementation(size_bytes in 0..200_000_usize, seed in any::<u64>(), split in any::<proptest::sample::Index>()) {
            let bytes = noise(size_bytes, seed);
            let (first, second) = bytes.split_at(split.index(bytes.len() + 1));
            let expected = oracle(&bytes);
            for crc in all_ways(0, first) {
                for found in all_ways(crc, second) {
                    prop_assert_eq!(found, expected);
                }
            }
            prop_assert_eq!(combine(oracle(first), oracle(second), second.len() as u64), expected);
        }

        #[test]
        fn portable_agrees_with_another_implementation(bytes in proptest::collection::vec(any::<u8>(), 0..600), split in any::<proptest::sample::Index>()) {
            let (first, second) = bytes.split_at(split.index(bytes.len() + 1));
            prop_assert_eq!(update(update(0, first), second), oracle(&bytes));
        }

        #[cfg(target_arch = "aarch64")]
        #[test]
        fn instructions_agree_with_another_implementation(bytes in proptest::collection::vec(any::<u8>(), 0..600), split in any::<proptest::sample::Index>()) {
            let (first, second) = bytes.split_at(split.index(bytes.len() + 1));
            prop_assume!(std::arch::is_aarch64_feature_detected!("crc"));
            // SAFETY: the line above has seen that the CPU has FEAT_CRC32.
            let crc = unsafe { update_with_instructions(0, first) };
            // SAFETY: as above.
            let crc = unsafe { update_with_instructions(crc, second) };
            prop_assert_eq!(crc, oracle(&bytes));
        }
    }
}
