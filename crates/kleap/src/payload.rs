//! What is loaded: the note that `load` leaves for `exec`, and the way to the bytes.

use crate::error::Failure;
use crate::hand_off::HandOffOptions;
use clap::ValueEnum;
use kleap_linux::hugepages::PageFile;
use kleap_linux::pagemap::Pagemap;
use kleap_linux::pin::Region;
use kleap_memmap::{PhysAddr, PhysRange};
use kleap_plan::{Layout, Owned, Place, Strategy};
use kleap_relocator::digest::{self, Algorithm, Digests, chunk_size_bytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How the payload is verified: by `exec`, and by the relocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verify {
    /// CRC32C: finds whatever accidents do to memory, at the speed of memory
    #[default]
    Crc32c,
    /// SHA-256
    Sha256,
    /// Not at all: what is damaged after load is entered as it is. Only the relocator itself is verified
    None,
}

impl Verify {
    /// The algorithm that it stands for.
    pub(crate) const fn algorithm(self) -> Option<Algorithm> {
        match self {
            Self::Crc32c => Some(Algorithm::Crc32c),
            Self::Sha256 => Some(Algorithm::Sha256),
            Self::None => None,
        }
    }
}

/// A piece's bytes as they were loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) size_bytes: u64,
    /// Words of the digests of its chunks ([`Digests::words`]).
    pub(crate) digests: Vec<u64>,
}

impl Content {
    /// Of bytes that lie in these slices, in order.
    pub(crate) fn of(verify: Verify, slices: &[&[u8]]) -> Self {
        Self {
            size_bytes: slices.iter().map(|slice| slice.len() as u64).sum(),
            digests: digests(verify, slices),
        }
    }

    /// Its digests, as the hand-off has them.
    pub(crate) fn digests(&self, verify: Verify) -> Digests {
        Digests {
            algorithm: verify.algorithm(),
            words: self.digests.clone(),
        }
    }
}

/// Most threads that take digests: some are enough for any memory, and each has a stack.
const THREADS_MAX: usize = 16;

/// Words of the digests of the chunks of a piece that lies in these slices; on all CPUs that there are, up to
/// [`THREADS_MAX`].
fn digests(verify: Verify, slices: &[&[u8]]) -> Vec<u64> {
    let Some(algorithm) = verify.algorithm() else {
        return Vec::new();
    };
    let chunks = chunks(slices);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        // A counter, not a share for each: CPUs differ, and so do their memories.
        while let Some(chunk) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            chunks.get(number).map(|chunk| (number, chunk))
        } {
            done.push((chunk.0, digest::on_host(algorithm, chunk.1)));
        }
        done
    };
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let others = cpus.min(THREADS_MAX).min(chunks.len()).saturating_sub(1);
    let mut found = std::thread::scope(|scope| {
        // Where no thread may be started, this one does all of it.
        let threads: Vec<_> = (0..others)
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut found = work();
        for thread in threads {
            match thread.join() {
                Ok(more) => found.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        found
    });
    found.sort_unstable_by_key(|(number, _)| *number);
    let words = algorithm.digest_words();
    found
        .iter()
        .flat_map(|(_, digest)| digest.words().into_iter().take(words))
        .collect()
}

/// The chunks of a piece that lies in these slices: each a list of slices.
fn chunks<'a>(slices: &[&'a [u8]]) -> Vec<Vec<&'a [u8]>> {
    let size_bytes = slices.iter().map(|slice| slice.len() as u64).sum();
    let chunk_bytes = usize::try_from(chunk_size_bytes(size_bytes)).unwrap_or(usize::MAX);
    let mut chunks: Vec<Vec<&[u8]>> = Vec::new();
    let mut room = 0;
    for mut slice in slices.iter().copied() {
        while !slice.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = chunk_bytes;
            }
            let (now, later) = slice.split_at(room.min(slice.len()));
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(now);
            }
            room -= now.len();
            slice = later;
        }
    }
    chunks
}

/// A file of huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileNote {
    /// Size of its pages, bytes.
    pub(crate) page_size_bytes: u64,
    /// Its pages, holes included, count.
    pub(crate) pages: usize,
}

/// What is loaded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The boot in which it was loaded.
    pub(crate) boot_id: String,
    /// Number of the load, counted from 1 while something is loaded.
    pub(crate) generation: u64,
    /// Name of the payload's files, one for each size of pages.
    pub(crate) payload: String,
    /// Those files, in the order in which the layout counts them.
    pub(crate) files: Vec<FileNote>,
    /// How the pages were pinned when the load ended; `None` if they could not be.
    pub(crate) pinned_by: Option<String>,
    /// Whether the kernel was given the stage, or the whole payload, by `load`.
    pub(crate) early: bool,
    /// What was asked of the hand-over itself.
    #[serde(default)]
    pub(crate) hand_off: HandOffOptions,
    /// Memory outside of this is not to be used.
    #[serde(default)]
    pub(crate) window: Option<PhysRange>,
    /// Where everything is.
    pub(crate) layout: Layout,
    /// What was asked for.
    pub(crate) strategy: Strategy,
    /// How it is verified.
    pub(crate) verify: Verify,
    /// Path of the kernel, as given.
    pub(crate) kernel_path: String,
    /// The kernel's banner, if it has one.
    pub(crate) kernel_banner: Option<String>,
    /// `image_size` of its header, bytes.
    pub(crate) image_size_bytes: u64,
    /// Page size it was built for, bytes, if its header says.
    pub(crate) kernel_page_size_bytes: Option<u64>,
    /// Its command line.
    pub(crate) command_line: String,
    /// The Image.
    pub(crate) image: Content,
    /// Path of the initrd, as given.
    pub(crate) initrd_path: Option<String>,
    /// The initrd.
    pub(crate) initrd: Option<Content>,
    /// The device tree.
    pub(crate) device_tree: Content,
    /// Where the timeline is in it, bytes.
    pub(crate) timeline_offset_bytes: u64,
}

impl Loaded {
    /// Every piece with its name, place and content.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&'static str, &Place, &Content)> {
        let initrd = self.layout.initrd.as_ref().zip(self.initrd.as_ref());
        [
            Some(("Image", &self.layout.image, &self.image)),
            initrd.map(|(place, content)| ("initrd", place, content)),
            Some(("device tree", &self.layout.device_tree, &self.device_tree)),
        ]
        .into_iter()
        .flatten()
    }
}

/// Where bytes of a payload are: a stretch of one page of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Number of the file.
    pub(crate) file: usize,
    /// Index of the page.
    pub(crate) page: usize,
    /// First byte in it.
    pub(crate) from: usize,
    /// Byte after the last.
    pub(crate) to: usize,
}

/// The stretches that hold `size_bytes` of content of `place`, in order; `page_sizes` are those of the
/// files, bytes.
pub(crate) fn stretches(place: &Place, size_bytes: u64, page_sizes: &[u64]) -> Vec<Stretch> {
    let mut found = Vec::new();
    let end = place.offset_bytes.saturating_add(size_bytes);
    let mut at: u64 = 0;
    for part in &place.parts {
        let part_end = at.saturating_add(part.size_bytes);
        let (mut from, to) = (place.offset_bytes.max(at), end.min(part_end));
        let Some(&page_size) = page_sizes.get(part.file).filter(|size| **size > 0) else {
            continue;
        };
        while from < to {
            let offset = part.offset_bytes.saturating_add(from - at);
            let within = offset % page_size;
            let length = (page_size - within).min(to - from);
            let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
            found.push(Stretch {
                file: part.file,
                page: number(offset / page_size),
                from: number(within),
                to: number(within + length),
            });
            from += length;
        }
        at = part_end;
    }
    found
}

/// The open files of a payload.
#[derive(Debug)]
pub(crate) struct Files(pub(crate) Vec<PageFile>);

impl Files {
    /// What the note says of them.
    pub(crate) fn notes(&self) -> Vec<FileNote> {
        self.0
            .iter()
            .map(|file| FileNote {
                page_size_bytes: file.page_size_bytes() as u64,
                pages: file.pages(),
            })
            .collect()
    }

    fn page_sizes(&self) -> Vec<u64> {
        self.0
            .iter()
            .map(|file| file.page_size_bytes() as u64)
            .collect()
    }

    /// A piece as it is in memory now, in order.
    pub(crate) fn slices(&self, place: &Place, size_bytes: u64) -> Vec<&[u8]> {
        stretches(place, size_bytes, &self.page_sizes())
            .into_iter()
            .filter_map(|at| Some(&self.0.get(at.file)?.page(at.page)[at.from..at.to]))
            .collect()
    }

    /// Calls `each` with every stretch that holds a piece, in order, to be written.
    pub(crate) fn write<E>(
        &mut self,
        place: &Place,
        size_bytes: u64,
        mut each: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for at in stretches(place, size_bytes, &self.page_sizes()) {
            if let Some(file) = self.0.get_mut(at.file) {
                each(&mut file.page_mut(at.page)[at.from..at.to])?;
            }
        }
        Ok(())
    }

    /// Where a byte of a file is now.
    pub(crate) fn address(
        &self,
        pagemap: &Pagemap,
        file: usize,
        offset_bytes: u64,
    ) -> Result<PhysAddr, Failure> {
        let gone = || Failure::Changed(format!("the payload has no file number {file}"));
        let file = self.0.get(file).ok_or_else(gone)?;
        let page_size_bytes = file.page_size_bytes() as u64;
        let index = usize::try_from(offset_bytes / page_size_bytes)
            .ok()
            .filter(|index| *index < file.pages())
            .ok_or_else(gone)?;
        let page = file.address(pagemap, index)?;
        page.checked_add(offset_bytes % page_size_bytes)
            .ok_or_else(gone)
    }

    /// The pages that a layout uses, to be pinned.
    pub(crate) fn regions(&self, layout: &Layout) -> Vec<Region<'_>> {
        let used = used_pages(layout, &self.page_sizes());
        self.0
            .iter()
            .zip(used)
            .flat_map(|(file, pages)| {
                runs(&pages)
                    .into_iter()
                    .map(move |pages| Region { file, pages })
            })
            .collect()
    }
}

/// Indices of the pages that a layout uses, for each file.
pub(crate) fn used_pages(layout: &Layout, page_sizes: &[u64]) -> Vec<BTreeSet<usize>> {
    let mut used = vec![BTreeSet::new(); page_sizes.len()];
    for Owned {
        size_bytes,
        file,
        offset_bytes,
        ..
    } in layout.owned()
    {
        let (Some(pages), Some(&page_size)) = (used.get_mut(file), page_sizes.get(file)) else {
            continue;
        };
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let end = offset_bytes.saturating_add(size_bytes);
        pages.extend(number(offset_bytes / page_size)..number(end.div_ceil(page_size)));
    }
    used
}

/// Numbers that follow each other, as ranges.
pub(crate) fn runs(numbers: &BTreeSet<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(parts: &[(u64, usize, u64)], offset_bytes: u64) -> Place {
        let owned = |&(size_bytes, file, offset_bytes)| Owned {
            address: PhysAddr::new(0x4000_0000),
            size_bytes,
            file,
            offset_bytes,
        };
        Place {
            target: kleap_memmap::PhysRange::default(),
            parts: parts.iter().map(owned).collect(),
            room: Vec::new(),
            offset_bytes,
        }
    }

    #[test]
    fn stretches_follow_the_parts_and_end_with_pages() {
        // Pages of 100 and of 10 bytes.
        let place = place(&[(150, 0, 50), (20, 1, 30), (100, 0, 400)], 10);
        let found: Vec<_> = stretches(&place, 200, &[100, 10])
            .into_iter()
            .map(|at| (at.file, at.page, at.from, at.to))
            .collect();
        assert_eq!(
            found,
            [
                (0, 0, 60, 100),
                (0, 1, 0, 100),
                (1, 3, 0, 10),
                (1, 4, 0, 10),
                (0, 4, 0, 40)
            ]
        );
        let bytes: usize = found.iter().map(|(_, _, from, to)| to - from).sum();
        assert_eq!(bytes, 200);
        assert!(stretches(&place, 0, &[100, 10]).is_empty());
        assert!(stretches(&place, u64::MAX, &[100, 0]).len() >= 3);
    }

    /// However a piece lies in memory, its digests are those of its bytes.
    #[test]
    fn digests_do_not_depend_on_slices_and_threads() {
        let piece: Vec<u8> = (0..5_000_000_u64)
            .map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7])
            .collect();
        let cuts = [
            0,
            1,
            77,
            1 << 20,
            (1 << 20) + 1,
            3 << 20,
            4_999_999,
            5_000_000,
        ];
        let slices: Vec<&[u8]> = cuts.windows(2).map(|cut| &piece[cut[0]..cut[1]]).collect();
        for verify in [Verify::Crc32c, Verify::Sha256] {
            let expected = Digests::of(verify.algorithm().unwrap(), &piece);
            let content = Content::of(verify, &slices);
            assert_eq!(content.size_bytes, 5_000_000);
            assert_eq!(content.digests(verify), expected);
            assert_eq!(Content::of(verify, &[&piece]).digests, expected.words);
            assert!(Content::of(verify, &[]).digests.is_empty());
        }
        assert!(Content::of(Verify::None, &slices).digests.is_empty());
    }

    #[test]
    fn numbers_become_runs() {
        let numbers = BTreeSet::from([0, 1, 2, 5, 7, 8]);
        assert_eq!(runs(&numbers), [0..3, 5..6, 7..9]);
        assert!(runs(&BTreeSet::new()).is_empty());
    }
}
