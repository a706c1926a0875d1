//! `/proc/self/pagemap`: where our pages are.
//!
//! One 64-bit little-endian word for each page of virtual memory, by the kernel's page size (4, 16 or
//! 64 KiB): bit 63 present, bit 62 swapped, bits 54 to 0 the page frame number
//! (Documentation/admin-guide/mm/pagemap.rst). Without CAP_SYS_ADMIN the frame number reads as zero,
//! which would be a perfectly good address: that is an error here, never an answer.

use crate::Error;
use kleap_memmap::PhysAddr;
use std::fs::File;
use std::os::unix::fs::FileExt;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FRAME_MASK: u64 = (1 << 55) - 1;
const PATH: &str = "/proc/self/pagemap";

/// What one word of pagemap says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped there, or it is swapped out.
    Absent,
    /// Mapped, but the reader may not know where.
    Hidden,
    /// Mapped at this physical address.
    At(PhysAddr),
}

/// Decodes one word; `page_size_bytes` is the kernel's page size.
#[must_use]
pub fn decode(word: u64, page_size_bytes: u64) -> Entry {
    if word & PRESENT == 0 || word & SWAPPED != 0 {
        return Entry::Absent;
    }
    match word & FRAME_MASK {
        0 => Entry::Hidden,
        frame => frame
            .checked_mul(page_size_bytes)
            .map_or(Entry::Absent, |address| Entry::At(PhysAddr::new(address))),
    }
}

/// Reads pagemap.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    page_size_bytes: u64,
}

impl Pagemap {
    /// Opens this process' own.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let file = File::open(PATH).map_err(|error| Error::file("cannot open", PATH, error))?;
        Ok(Self {
            file,
            page_size_bytes: rustix::param::page_size() as u64,
        })
    }

    /// The physical address behind `address`, a virtual address of this process.
    ///
    /// # Errors
    /// [`Error::NoAddresses`] without the capability; an error if nothing is mapped there.
    pub fn physical(&self, address: *const u8) -> Result<PhysAddr, Error> {
        let page = address.addr() as u64 / self.page_size_bytes;
        let mut word = [0; 8];
        self.file
            .read_exact_at(&mut word, page * 8)
            .map_err(|error| Error::file("cannot read", PATH, error))?;
        match decode(u64::from_le_bytes(word), self.page_size_bytes) {
            Entry::At(start) => Ok(start),
            Entry::Hidden => Err(Error::NoAddresses),
            Entry::Absent => Err(Error::content(
                PATH,
                format!("nothing is mapped at {address:p}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_every_kind() {
        assert_eq!(decode(0, 4096), Entry::Absent);
        assert_eq!(decode(PRESENT, 4096), Entry::Hidden);
        assert_eq!(decode(PRESENT | SWAPPED | 5, 4096), Entry::Absent);
        assert_eq!(
            decode(PRESENT | (1 << 61) | 5, 16384),
            Entry::At(PhysAddr::new(5 * 16384))
        );
        // The soft-dirty and exclusive bits (55, 56) are no part of the address.
        assert_eq!(
            decode(PRESENT | (3 << 55) | 7, 65536),
            Entry::At(PhysAddr::new(7 * 65536))
        );
        assert_eq!(
            decode(!SWAPPED, 65536),
            Entry::Absent,
            "overflow is no address"
        );
    }

    #[test]
    fn our_own_stack_is_mapped_or_hidden() {
        let here = 0_u8;
        match Pagemap::open().unwrap().physical(&raw const here) {
            Ok(address) => assert_ne!(address.as_u64(), 0),
            Err(error) => assert!(matches!(error, Error::NoAddresses), "{error}"),
        }
    }

    #[test]
    fn what_is_not_mapped_is_an_error() {
        let nowhere = std::ptr::without_provenance::<u8>(0x1000);
        assert!(Pagemap::open().unwrap().physical(nowhere).is_err());
    }
}
