//! CRC32C (Castagnoli), the digest of every piece.
//!
//! The question it answers is "are these the bytes that `load` placed?", asked of memory that only
//! accidents touch: CRC32C catches every burst up to 32 bits and 1 - 2^-32 of everything else, and has
//! an instruction on every arm64 server core. SHA-256 answers another question (did someone mean to
//! change them?) that a program in the same memory cannot answer.
//!
//! Two implementations, one result: [`update`] is portable (slicing by eight, 8 KiB of tables built
//! at compile time) and [`update_with_instructions`] uses `CRC32CX` (Arm ARM C6.2, FEAT_CRC32).

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
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for word in words {
            crc = __crc32cd(crc, u64::from_le_bytes(*word));
        }
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

    proptest! {
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
