//! SHA-256 (FIPS 180-4), the digest for those who ask for it.
//!
//! Here, because the bare program can be linked with no third-party crate. Two implementations of the
//! compression function, one result: [`compress`] is portable, and [`compress_with_instructions`] uses
//! `SHA256H`, `SHA256H2`, `SHA256SU0` and `SHA256SU1` (Arm ARM C7.2, FEAT_SHA256). Tested against the vectors
//! of the standard and against the `sha2` crate.

/// Size of a digest, bytes.
pub const DIGEST_BYTES: usize = 32;
/// Size of a block, bytes.
pub const BLOCK_BYTES: usize = 64;

/// FIPS 180-4, 4.2.2.
static ROUND_CONSTANTS: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// FIPS 180-4, 5.3.3.
const INITIAL_STATE: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Takes blocks into the state.
type Compress = fn(&mut [u32; 8], &[[u8; BLOCK_BYTES]]);

/// The message schedule's next sixteen words in place of the last sixteen (FIPS 180-4, 6.2.2, step 1).
fn expand(schedule: &mut [u32; 16]) {
    for index in 0..16 {
        let (near, far) = (schedule[(index + 1) % 16], schedule[(index + 14) % 16]);
        let sigma0 = near.rotate_right(7) ^ near.rotate_right(18) ^ (near >> 3);
        let sigma1 = far.rotate_right(17) ^ far.rotate_right(19) ^ (far >> 10);
        schedule[index] = schedule[index]
            .wrapping_add(sigma0)
            .wrapping_add(schedule[(index + 9) % 16])
            .wrapping_add(sigma1);
    }
}

/// One round (step 3). Nothing is handed on from variable to variable: the next round names them another way.
macro_rules! round {
    ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident $word:expr) => {
        let sum1 = $e.rotate_right(6) ^ $e.rotate_right(11) ^ $e.rotate_right(25);
        let choice = ($e & $f) ^ (!$e & $g);
        let first = $h
            .wrapping_add(sum1)
            .wrapping_add(choice)
            .wrapping_add($word);
        let sum0 = $a.rotate_right(2) ^ $a.rotate_right(13) ^ $a.rotate_right(22);
        let majority = ($a & $b) ^ ($a & $c) ^ ($b & $c);
        $d = $d.wrapping_add(first);
        $h = first.wrapping_add(sum0).wrapping_add(majority);
    };
}

/// The compression function, portable (FIPS 180-4, 6.2.2).
fn compress(state: &mut [u32; 8], blocks: &[[u8; BLOCK_BYTES]]) {
    for block in blocks {
        let mut schedule = [0_u32; 16];
        for (word, bytes) in schedule.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (sixteen, constants) in ROUND_CONSTANTS.as_chunks::<16>().0.iter().enumerate() {
            if sixteen > 0 {
                expand(&mut schedule);
            }
            let mut words = *constants;
            for (word, more) in words.iter_mut().zip(schedule) {
                *word = word.wrapping_add(more);
            }
            for eight in words.as_chunks::<8>().0 {
                round!(a b c d e f g h eight[0]);
                round!(h a b c d e f g eight[1]);
                round!(g h a b c d e f eight[2]);
                round!(f g h a b c d e eight[3]);
                round!(e f g h a b c d eight[4]);
                round!(d e f g h a b c eight[5]);
                round!(c d e f g h a b eight[6]);
                round!(b c d e f g h a eight[7]);
            }
        }
        for (word, more) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *word = word.wrapping_add(more);
        }
    }
}

/// The compression function, with the SHA-256 instructions.
///
/// # Safety
/// The CPU must have FEAT_SHA256.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "sha2")]
fn compress_with_instructions(state: &mut [u32; 8], blocks: &[[u8; BLOCK_BYTES]]) {
    use core::arch::aarch64::{
        uint32x4_t, vaddq_u32, vld1q_u8, vld1q_u32, vreinterpretq_u32_u8, vrev32q_u8,
        vsha256h2q_u32, vsha256hq_u32, vsha256su0q_u32, vsha256su1q_u32, vst1q_u32,
    };
    /// Four words of memory.
    fn words(from: &[u32; 4]) -> uint32x4_t {
        // SAFETY: reads the four words of the array; any alignment will do. NEON is part of this target.
        unsafe { vld1q_u32(from.as_ptr()) }
    }
    /// Four big-endian words of memory.
    fn big_endian(from: &[u8; 16]) -> uint32x4_t {
        // SAFETY: reads the sixteen bytes of the array; any alignment will do. NEON is part of this target.
        unsafe { vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(from.as_ptr()))) }
    }
    let [low, high] = state.as_chunks::<4>().0 else {
        return; // there are eight words
    };
    let (mut abcd, mut efgh) = (words(low), words(high));
    for block in blocks {
        let [first, second, third, fourth] = block.as_chunks::<16>().0 else {
            return; // there are 64 bytes
        };
        let mut schedule = [first, second, third, fourth].map(big_endian);
        let (before_abcd, before_efgh) = (abcd, efgh);
        for constants in ROUND_CONSTANTS.as_chunks::<4>().0 {
            let [now, next, later, last] = schedule;
            let sum = vaddq_u32(now, words(constants));
            let abcd_before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, sum);
            efgh = vsha256h2q_u32(efgh, abcd_before, sum);
            // The words that are needed four times four rounds later; unused after the twelfth time.
            let new = vsha256su1q_u32(vsha256su0q_u32(now, next), later, last);
            schedule = [next, later, last, new];
        }
        abcd = vaddq_u32(abcd, before_abcd);
        efgh = vaddq_u32(efgh, before_efgh);
    }
    let (low, high) = state.split_at_mut(4);
    // SAFETY: both halves are four words; any alignment will do.
    unsafe {
        vst1q_u32(low.as_mut_ptr(), abcd);
        vst1q_u32(high.as_mut_ptr(), efgh);
    }
}

/// A digest in the making.
#[derive(Debug)]
pub struct Hasher {
    state: [u32; 8],
    /// What was given and is no whole block yet.
    rest: [u8; BLOCK_BYTES],
    /// How much of `rest` that is, bytes.
    held: usize,
    size_bytes: u64,
    compress: Compress,
}

impl Hasher {
    /// Without special instructions.
    #[must_use]
    pub const fn portable() -> Self {
        Self::with(compress)
    }

    /// With the SHA-256 instructions.
    ///
    /// # Safety
    /// The CPU must have FEAT_SHA256 (`ID_AA64ISAR0_EL1.SHA2` is not 0; `HWCAP_SHA2`).
    #[cfg(target_arch = "aarch64")]
    #[must_use]
    pub const unsafe fn with_instructions() -> Self {
        Self::with(|state, blocks| {
            // SAFETY: the CPU has FEAT_SHA256: whoever made this hasher has promised it.
            unsafe { compress_with_instructions(state, blocks) }
        })
    }

    /// In the fastest way that this CPU has; for the command, which has an operating system to ask.
    #[cfg(feature = "host")]
    #[must_use]
    pub fn on_host() -> Self {
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("sha2") {
            // SAFETY: the line above has asked.
            return unsafe { Self::with_instructions() };
        }
        Self::portable()
    }

    const fn with(compress: Compress) -> Self {
        Self {
            state: INITIAL_STATE,
            rest: [0; BLOCK_BYTES],
            held: 0,
            size_bytes: 0,
            compress,
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.size_bytes = self.size_bytes.wrapping_add(bytes.len() as u64);
        if self.held > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.held));
            self.rest[self.held..self.held + now.len()].copy_from_slice(now);
            self.held += now.len();
            if self.held < BLOCK_BYTES {
                return;
            }
            (self.compress)(&mut self.state, &[self.rest]);
            bytes = later;
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        (self.compress)(&mut self.state, blocks);
        self.rest[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
    }

    /// The digest of everything that was added.
    #[must_use]
    pub fn finish(mut self) -> [u8; DIGEST_BYTES] {
        let held = usize::try_from(self.size_bytes % BLOCK_BYTES as u64).unwrap_or(0);
        // FIPS 180-4, 5.1.1: a bit, zeros, and the size in bits in the last eight bytes of a block.
        let mut end = [[0; BLOCK_BYTES]; 2];
        let blocks = if held < BLOCK_BYTES - 8 { 1 } else { 2 };
        end[0][..held].copy_from_slice(&self.rest[..held]);
        end[0][held] = 0x80;
        let size_bits = self.size_bytes.wrapping_mul(8).to_be_bytes();
        end[blocks - 1][BLOCK_BYTES - 8..].copy_from_slice(&size_bits);
        (self.compress)(&mut self.state, &end[..blocks]);
        let mut digest = [0; DIGEST_BYTES];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    /// In every way there is on this machine, added in two parts.
    fn all_ways(first: &[u8], second: &[u8]) -> Vec<[u8; DIGEST_BYTES]> {
        let mut hashers = Vec::new();
        hashers.extend([Hasher::portable()]);
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("sha2") {
            // SAFETY: the line above has asked.
            hashers.push(unsafe { Hasher::with_instructions() });
        }
        hashers
            .into_iter()
            .map(|mut hasher| {
                hasher.update(first);
                hasher.update(second);
                hasher.finish()
            })
            .collect()
    }

    fn oracle(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
        sha2::Sha256::digest(bytes).into()
    }

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

    /// FIPS 180-4's own examples: "abc", and nothing.
    #[test]
    fn check_values() {
        for (bytes, first_word) in [(&b"abc"[..], 0xba78_16bf_u32), (b"", 0xe3b0_c442)] {
            for digest in all_ways(bytes, b"") {
                assert_eq!(digest[..4], first_word.to_be_bytes());
                assert_eq!(digest, oracle(bytes));
            }
        }
    }

    /// Every length around the padding's corners, cut everywhere.
    #[test]
    fn every_short_length_and_cut() {
        let bytes = noise(200, 7);
        for length in 0..=bytes.len() {
            let expected = oracle(&bytes[..length]);
            for cut in 0..=length {
                for found in all_ways(&bytes[..cut], &bytes[cut..length]) {
                    assert_eq!(found, expected, "{length} bytes, cut at {cut}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn long_ones_agree_with_another_implementation(size_bytes in 0..100_000_usize, seed in any::<u64>(), cut in any::<proptest::sample::Index>()) {
            let bytes = noise(size_bytes, seed);
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            for found in all_ways(first, second) {
                prop_assert_eq!(found, oracle(&bytes));
            }
        }
    }
}
