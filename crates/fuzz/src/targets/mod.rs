//! The targets, by what they attack.

pub mod acpi;
pub mod device_tree;
pub mod hand_off;
pub mod image;
pub mod iomem;
pub mod last_words;
pub mod machine;
pub mod notes;
pub mod relocate;
pub mod texts;
pub mod words;

use arbitrary::Unstructured;

/// Takes numbers out of the fuzzer's bytes; where there are no more, zeros.
pub(crate) struct Draw<'a>(Unstructured<'a>);

impl<'a> Draw<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Below `limit`, which is at most 256.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    pub(crate) fn word32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or_default()
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// A number: often one at which something ends, or one near it.
    pub(crate) fn number(&mut self) -> u64 {
        const EDGES: [u64; 12] = [
            0,
            1,
            0x1000,
            0x1_0000,
            0x20_0000,
            0x4000_0000,
            0xffff_ffff,
            1 << 32,
            1 << 48,
            1 << 52,
            1 << 63,
            u64::MAX,
        ];
        let kind = self.byte();
        let edge = EDGES
            .get(usize::from(kind >> 3) % EDGES.len())
            .copied()
            .unwrap_or(0);
        match kind & 7 {
            0 | 1 => edge,
            2 => edge.wrapping_add(u64::from(self.byte())),
            3 => edge.wrapping_sub(u64::from(self.byte())),
            4 => u64::from(self.byte()),
            5 => u64::from(self.word32()),
            6 => edge.wrapping_mul(u64::from(self.byte())),
            _ => self.word(),
        }
    }

    /// At most `limit` bytes, as many as there are.
    pub(crate) fn bytes(&mut self, limit: usize) -> &'a [u8] {
        let length = limit.min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }
}
