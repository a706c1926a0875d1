//! Words of fixed meaning: pagemap, kpageflags, the record of a hand-over.

use super::Draw;
use kleap_linux::pageflags::{self, RANGE_MAX_BYTES};
use kleap_linux::pagemap::{Entry, decode};
use kleap_memmap::{PhysAddr, PhysRange};
use kleap_relocator::timeline::{self, Timeline, TimelineError};

/// Most page frames that the oracle looks at one by one.
const FRAMES_MAX: u64 = 1500;
const HWPOISON: u64 = 1 << 19;

fn page_size_bytes(draw: &mut Draw<'_>) -> u64 {
    [4096, 16384, 65536, 4096][draw.below(4)]
}

/// Words of pagemap, by 128-bit arithmetic; pages of kpageflags, one by one.
pub fn pagemap(data: &[u8]) {
    let mut draw = Draw::new(data);
    let page_size_bytes = page_size_bytes(&mut draw);
    let word = if draw.flag() {
        draw.word()
    } else {
        draw.number() | 1 << 63
    };
    let (present, swapped) = (word >> 63 == 1, word >> 62 & 1 == 1);
    let frame = word & ((1 << 55) - 1);
    let address = u128::from(frame) * u128::from(page_size_bytes);
    let expected = match u64::try_from(address) {
        _ if !present || swapped => Entry::Absent,
        Ok(0) => Entry::Hidden,
        Ok(address) => Entry::At(PhysAddr::new(address)),
        Err(_) => Entry::Absent,
    };
    assert_eq!(decode(word, page_size_bytes), expected, "{word:#x}");

    let start = draw.number();
    let size_bytes = if draw.flag() {
        draw.number()
    } else {
        u64::from(draw.word32()) % (FRAMES_MAX * page_size_bytes)
    };
    let Ok(range) = PhysRange::from_size(PhysAddr::new(start), size_bytes) else {
        return;
    };
    // Where the bad page is, counted from the range's first; all other flags of all other pages are set.
    let first = start / page_size_bytes;
    let bad = first.saturating_add(draw.word() % FRAMES_MAX);
    let mut read_last = None;
    let found = pageflags::any_hwpoisoned(range, page_size_bytes, |bytes, offset| {
        assert!(offset % 8 == 0 && bytes.len() % 8 == 0 && !bytes.is_empty());
        for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
            let frame = offset / 8 + index as u64;
            assert!(read_last.is_none_or(|last| last + 1 == frame), "a gap");
            read_last = Some(frame);
            let flags = if frame == bad { HWPOISON } else { !HWPOISON };
            word.copy_from_slice(&flags.to_le_bytes());
        }
        // Beyond this it is a matter of patience.
        if offset / 8 > first.saturating_add(2 * FRAMES_MAX) {
            return Err(kleap_linux::Error::NoAddresses);
        }
        Ok(())
    });
    if size_bytes > RANGE_MAX_BYTES {
        assert!(found.is_err());
        return;
    }
    // Also of a page of which only one byte is in the range.
    let covered = size_bytes > 0
        && u128::from(bad) * u128::from(page_size_bytes)
            < u128::from(start) + u128::from(size_bytes);
    match found {
        Ok(found) => assert_eq!(found, covered, "frame {bad} of {range}"),
        Err(_) => assert!(size_bytes / page_size_bytes > FRAMES_MAX),
    }
}

/// The record as it is, and with magic and level set right; the report that is made of it.
pub fn timeline(data: &[u8]) {
    let check = |bytes: &[u8]| match Timeline::decode(bytes) {
        Ok(timeline) => {
            let again = timeline.encode();
            assert_eq!(Timeline::decode(&again), Ok(timeline));
            // All but the flag, of which every value but 0 means the same, and the word that means nothing.
            let same = |index: usize| bytes[index * 8..][..8] == again[index * 8..][..8];
            assert!((0..timeline::WORDS).all(|index| index == 17 || index == 23 || same(index)));
            // It takes ten times as long as all the rest.
            if bytes[23] & 7 == 0 {
                kleap_command::fuzzing::report(&timeline, timeline.kernel_entered | 1);
            }
        }
        Err(TimelineError::Size { found_bytes }) => assert_ne!(found_bytes, timeline::SIZE_BYTES),
        Err(error) => assert!(!error.to_string().is_empty()),
    };
    check(data);
    let mut bytes = data.to_vec();
    bytes.resize(timeline::SIZE_BYTES, 0);
    bytes[..8].copy_from_slice(&timeline::MAGIC.to_be_bytes());
    bytes[80..87].fill(0);
    bytes[87] = 1 + bytes[87] % 3;
    check(&bytes);
}
