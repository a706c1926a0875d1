//! `/proc/kpageflags`: what the kernel knows about page frames.
//!
//! One 64-bit word for each page frame number, by the kernel's page size
//! (Documentation/admin-guide/mm/pagemap.rst). kleap asks for three things: whether memory is known to be bad (a
//! payload must not be in such a page, nor may it be moved over one), where the huge pages are, those
//! included that are free in their pool, and which memory looks free.

use crate::Error;
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

const PATH: &str = "/proc/kpageflags";
/// `KPF_HWPOISON` (`include/uapi/linux/kernel-page-flags.h`).
const HWPOISON: u64 = 1 << 19;
/// `KPF_BUDDY`: free, in a block of any size.
const BUDDY: u64 = 1 << 10;
/// `KPF_COMPOUND_HEAD`: the first page frame of several that are one page.
const COMPOUND_HEAD: u64 = 1 << 15;
/// `KPF_HUGE`: of hugetlbfs, in use or free.
const HUGE: u64 = 1 << 17;
/// Bytes of one page's word.
const WORD_BYTES: u64 = 8;
/// Bytes read at once: the words of 2 MiB of 4 KiB pages.
const CHUNK_BYTES: usize = 4096;
/// Most memory asked about in one call, bytes: more than any payload.
pub const RANGE_MAX_BYTES: u64 = 64 << 30;

/// Whether the kernel has taken a page of `range` out of use because its memory is bad (`HWPoison`).
///
/// Of a huge page, the kernel marks the first page frame: `range` has to be of whole huge pages.
///
/// # Errors
/// If kpageflags cannot be read (CONFIG_PROC_PAGE_MONITOR, CAP_SYS_ADMIN), `range` is not memory, or it is
/// larger than [`RANGE_MAX_BYTES`].
pub fn is_hwpoisoned(range: PhysRange) -> Result<bool, Error> {
    any_hwpoisoned(range, crate::facts::page_size_bytes(), reader()?)
}

/// Where pages of hugetlbfs begin, in use or free in their pool, that lie within `ranges` and at a multiple of
/// `size_bytes`. A smaller page that happens to be at such an address is among them.
///
/// One read for each `size_bytes` of `ranges`.
///
/// # Errors
/// If kpageflags cannot be read (CONFIG_PROC_PAGE_MONITOR, CAP_SYS_ADMIN).
pub fn huge_pages(ranges: &PhysRanges, size_bytes: u64) -> Result<BTreeSet<PhysAddr>, Error> {
    let page_size_bytes = crate::facts::page_size_bytes();
    let mut read = reader()?;
    huge_pages_in(ranges, size_bytes, page_size_bytes, |word, offset| {
        read(word, offset)
    })
}

/// The same of words that `read` fills in from an offset of kpageflags, bytes; `page_size_bytes` is the
/// kernel's page size.
///
/// # Errors
/// Whatever `read` answers.
pub fn huge_pages_in(
    ranges: &PhysRanges,
    size_bytes: u64,
    page_size_bytes: u64,
    read: impl FnMut(&mut [u8; 8], u64) -> Result<(), Error>,
) -> Result<BTreeSet<PhysAddr>, Error> {
    let wanted = HUGE | COMPOUND_HEAD;
    let is_huge = |flags| flags & wanted == wanted;
    pages_in(ranges, size_bytes, page_size_bytes, is_huge, read)
}

/// Multiples of `size_bytes` where `size_bytes` within `ranges` begin with a page that is free, or of which nothing is said: one that a
/// CPU keeps for itself, or some that the kernel uses. The rest of it may be in use.
///
/// One read for each `size_bytes` of `ranges`.
///
/// # Errors
/// If kpageflags cannot be read (CONFIG_PROC_PAGE_MONITOR, CAP_SYS_ADMIN).
pub fn that_look_free(ranges: &PhysRanges, size_bytes: u64) -> Result<BTreeSet<PhysAddr>, Error> {
    let page_size_bytes = crate::facts::page_size_bytes();
    let mut read = reader()?;
    that_look_free_in(ranges, size_bytes, page_size_bytes, |word, offset| {
        read(word, offset)
    })
}

/// The same of words that `read` fills in from an offset of kpageflags, bytes; `page_size_bytes` is the
/// kernel's page size.
///
/// # Errors
/// Whatever `read` answers.
pub fn that_look_free_in(
    ranges: &PhysRanges,
    size_bytes: u64,
    page_size_bytes: u64,
    read: impl FnMut(&mut [u8; 8], u64) -> Result<(), Error>,
) -> Result<BTreeSet<PhysAddr>, Error> {
    let looks_free = |flags| flags & BUDDY != 0 || flags == 0;
    pages_in(ranges, size_bytes, page_size_bytes, looks_free, read)
}

/// Reads words from an offset on, bytes.
fn reader() -> Result<impl FnMut(&mut [u8], u64) -> Result<(), Error>, Error> {
    let file = File::open(PATH).map_err(|error| Error::file("cannot open", PATH, error))?;
    Ok(move |bytes: &mut [u8], offset| {
        file.read_exact_at(bytes, offset)
            .map_err(|error| Error::file("cannot read", PATH, error))
    })
}

/// Where pages of `size_bytes` within `ranges` begin with a page frame of such flags.
fn pages_in(
    ranges: &PhysRanges,
    size_bytes: u64,
    page_size_bytes: u64,
    is_such: impl Fn(u64) -> bool,
    mut read: impl FnMut(&mut [u8; 8], u64) -> Result<(), Error>,
) -> Result<BTreeSet<PhysAddr>, Error> {
    let mut found = BTreeSet::new();
    for range in ranges {
        let mut next = range.start().align_up(size_bytes);
        while let Some(start) = next
            && let Ok(page) = PhysRange::from_size(start, size_bytes)
            && range.contains_range(page)
        {
            let mut word = [0; 8];
            read(&mut word, start.as_u64() / page_size_bytes * WORD_BYTES)?;
            if is_such(u64::from_le_bytes(word)) {
                found.insert(start);
            }
            next = start.checked_add(size_bytes);
        }
    }
    Ok(found)
}

/// The same of words that `read` fills in from an offset of kpageflags, bytes; `page_size_bytes` is the
/// kernel's page size.
///
/// # Errors
/// If `range` is larger than [`RANGE_MAX_BYTES`]; and whatever `read` answers.
pub fn any_hwpoisoned(
    range: PhysRange,
    page_size_bytes: u64,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), Error>,
) -> Result<bool, Error> {
    let (start, size_bytes) = (range.start().as_u64(), range.size_bytes());
    if size_bytes > RANGE_MAX_BYTES {
        return Err(Error::content(
            PATH,
            format!("{range} is larger than {RANGE_MAX_BYTES} bytes"),
        ));
    }
    if range.is_empty() {
        return Ok(false);
    }
    let mut chunk = [0; CHUNK_BYTES];
    let mut frame = start / page_size_bytes;
    let end = start.saturating_add(size_bytes).div_ceil(page_size_bytes);
    while frame < end {
        let length = (end - frame).saturating_mul(WORD_BYTES);
        let length = usize::try_from(length).map_or(CHUNK_BYTES, |length| length.min(CHUNK_BYTES));
        let (bytes, _) = chunk.split_at_mut(length);
        read(bytes, frame * WORD_BYTES)?;
        let (words, _) = bytes.as_chunks::<8>();
        if words
            .iter()
            .any(|word| u64::from_le_bytes(*word) & HWPOISON != 0)
        {
            return Ok(true);
        }
        frame += words.len() as u64;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kleap_memmap::PhysAddr;

    fn range(start: u64, size_bytes: u64) -> PhysRange {
        PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
    }

    #[test]
    fn one_bad_page_is_found_where_it_is_and_nowhere_else() {
        for page_size_bytes in [4096, 16384, 65536] {
            for bad in [0, 1, 511, 512, 513, 1024, 1535] {
                // All other flags of all other pages are set.
                let read = |bytes: &mut [u8], offset: u64| {
                    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
                        let frame = offset / 8 + index as u64;
                        let flags = if frame == bad { HWPOISON } else { !HWPOISON };
                        word.copy_from_slice(&flags.to_le_bytes());
                    }
                    Ok(())
                };
                for (first, pages) in [(0, 1536), (1, 512), (513, 1), (500, 20), (1024, 512)] {
                    let range = range(first * page_size_bytes, pages * page_size_bytes);
                    assert_eq!(
                        any_hwpoisoned(range, page_size_bytes, read).unwrap(),
                        (first..first + pages).contains(&bad),
                        "page size {page_size_bytes}, bad page {bad}, range {range}"
                    );
                }
                // A page counts also where the range touches one byte of it.
                let last = range(bad * page_size_bytes + page_size_bytes - 1, 1);
                assert!(any_hwpoisoned(last, page_size_bytes, read).unwrap());
            }
        }
    }

    /// Found by fuzzing: an empty range within a page was that page.
    #[test]
    fn an_empty_range_touches_no_page() {
        let bad = |bytes: &mut [u8], _| {
            bytes.fill(0xff);
            Ok(())
        };
        assert!(!any_hwpoisoned(range(0x81, 0), 4096, bad).unwrap());
        assert!(any_hwpoisoned(range(0x81, 1), 4096, bad).unwrap());
    }

    #[test]
    fn huge_pages_are_found_where_they_begin() {
        let megabyte = 1 << 20;
        for page_size_bytes in [4096, 16384, 65536] {
            // Of 16 pages of 2 MiB the odd ones; one of 4 MiB, whose second half is no beginning; one that is
            // large but not of hugetlbfs.
            let read = |word: &mut [u8; 8], offset: u64| {
                let page = offset / 8 * page_size_bytes / (2 * megabyte);
                let flags = match page {
                    4 => COMPOUND_HEAD,
                    5 => HUGE,
                    page if page % 2 == 1 => HUGE | COMPOUND_HEAD,
                    _ => !(HUGE | COMPOUND_HEAD),
                };
                *word = flags.to_le_bytes();
                Ok(())
            };
            let ranges: PhysRanges = [
                range(megabyte, 13 * megabyte),
                range(15 * megabyte, 17 * megabyte),
            ]
            .into_iter()
            .collect();
            let found = huge_pages_in(&ranges, 2 * megabyte, page_size_bytes, read).unwrap();
            // Page 7 is in neither range as a whole.
            let expected: Vec<u64> = [1, 3, 9, 11, 13, 15]
                .map(|page| page * 2 * megabyte)
                .to_vec();
            let found: Vec<u64> = found.into_iter().map(PhysAddr::as_u64).collect();
            assert_eq!(found, expected, "page size {page_size_bytes}");
        }
    }

    #[test]
    fn what_looks_free_begins_free() {
        let megabyte = 1 << 20;
        let flags_of = [
            (BUDDY, true),
            (BUDDY | 1 << 2, true),
            (0, true),
            (!BUDDY, false),
            (HUGE | COMPOUND_HEAD, false),
            // On the list of pages in use.
            (1 << 5, false),
        ];
        for page_size_bytes in [4096, 16384, 65536] {
            let read = |word: &mut [u8; 8], offset: u64| {
                let page = offset / 8 * page_size_bytes / (2 * megabyte);
                let (flags, _) = flags_of[usize::try_from(page).unwrap()];
                *word = flags.to_le_bytes();
                Ok(())
            };
            // Not the first, of which the beginning is missing.
            let ranges = PhysRanges::from(range(megabyte, 11 * megabyte));
            let found = that_look_free_in(&ranges, 2 * megabyte, page_size_bytes, read).unwrap();
            let expected: BTreeSet<PhysAddr> = (1..6_u64)
                .filter(|page| flags_of[usize::try_from(*page).unwrap()].1)
                .map(|page| PhysAddr::new(page * 2 * megabyte))
                .collect();
            assert_eq!(found, expected, "page size {page_size_bytes}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let ranges = PhysRanges::from(range(0, 4 << 20));
        let fails_too = |_: &mut [u8; 8], _| Err(Error::content(PATH, "ends"));
        assert!(huge_pages_in(&ranges, 2 << 20, 4096, fails_too).is_err());
        assert!(that_look_free_in(&ranges, 2 << 20, 4096, fails_too).is_err());
        let fails = |_: &mut [u8], _| Err(Error::content(PATH, "ends"));
        assert!(any_hwpoisoned(range(0, 1), 4096, fails).is_err());
        assert!(any_hwpoisoned(range(0, RANGE_MAX_BYTES + 1), 4096, |_, _| Ok(())).is_err());
    }

    #[test]
    fn this_machine_answers() {
        // A frame far above all memory: the file ends before it.
        let outside = is_hwpoisoned(range(1 << 50, 4096));
        assert!(outside.is_err(), "{outside:?}");
        if let Err(error) = is_hwpoisoned(range(1 << 20, 4096)) {
            eprintln!("SKIPPED: {error}");
        }
    }
}
