//! Makes memory scarce and fragmented, on purpose and so that it can be repeated.
//!
//! Everything that is free is taken, page by page; pagemap says which physical page each one is; then
//! some go back. What stays decides what the kernel can still give in one piece:
//!
//! - `plain`: whole blocks of 2 MiB stay, chosen at random, until so much of memory is used;
//! - `alternate-movable`: of every second block something stays. Compaction may move it away;
//! - `alternate-pinned`: the same, and one page of each is pinned, so that it stays where it is;
//! - `random-pinned`: one page in every fourth block, at random, is pinned: free runs are short and
//!   of all lengths;
//! - `every-pinned`: one page in each block is pinned: huge pages of 2 MiB are only where nothing was taken;
//! - `page-cache`: `plain`, and what is left is full of clean page cache. It is a block device's, which the
//!   kernel does not keep together with what it can move (`GFP_USER`), so it is worse than that of files.
//!
//! What makes holes that stay: see `kleap_linux::anonymous`. Rejected: kernel memory as ballast (page
//! tables, pipes). The kernel collects it in blocks of its own, so it fragments nothing until memory
//! has once been full, and where it ends up cannot be chosen.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kleap_linux::anonymous::{AnonymousMemory, Pins};
use kleap_linux::facts;
use kleap_linux::pagemap::{self, Entry};

use crate::seeded::Seeded;

/// What the kernel's own needs are left while everything else is taken, bytes.
const RESERVE_BYTES: u64 = 64 << 20;
/// How often memory is looked at while it is taken: every so many pages.
const LOOK_EVERY_PAGES: usize = 2048;
/// The size of the blocks that are busy or not: the smallest huge page on every granule, bytes.
const BLOCK_BYTES: u64 = 2 << 20;
/// Splits all transparent huge pages, in debugfs, which the script mounts.
const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
/// Every so many blocks has a pinned page, for `random-pinned`.
const PINNED_ONE_IN: u64 = 4;
/// What is read to fill the page cache: a loop device on a sparse file, which takes no memory itself.
const CACHE_FILE: &str = "/dev/loop0";
/// The page cache is full when so much was read and no less memory is free than before, bytes.
const CACHE_FULL_BYTES: u64 = 32 << 20;

/// What kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    AlternateMovable,
    AlternatePinned,
    RandomPinned,
    PageCache,
    EveryPinned,
}

impl Kind {
    /// All of them.
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::AlternateMovable,
        Self::AlternatePinned,
        Self::RandomPinned,
        Self::PageCache,
        Self::EveryPinned,
    ];
    /// Those that trials choose from.
    pub(crate) const TRIED: [Self; 5] = [
        Self::Plain,
        Self::AlternateMovable,
        Self::AlternatePinned,
        Self::RandomPinned,
        Self::PageCache,
    ];

    /// As on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::AlternateMovable => "alternate-movable",
            Self::AlternatePinned => "alternate-pinned",
            Self::RandomPinned => "random-pinned",
            Self::PageCache => "page-cache",
            Self::EveryPinned => "every-pinned",
        }
    }

    pub(crate) fn from_word(word: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.word() == word)
            .with_context(|| format!("no such kind of fragmentation: {word}"))
    }
}

/// What was made of memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    /// How much of memory is used now, percent.
    pub(crate) used_percent: u64,
    /// Blocks in which something is held.
    pub(crate) busy_blocks: usize,
    /// Blocks that were ours and are free now.
    pub(crate) free_blocks: usize,
    /// Pages that cannot be moved.
    pub(crate) pinned_pages: usize,
}

/// The memory that is held.
#[derive(Debug)]
pub(crate) struct Ballast {
    memory: AnonymousMemory,
    pins: Option<Pins>,
}

/// Mappings that this program may have: more than any machine here has pages. Compaction takes neighbours apart, and with
/// one mapping for each 32 KiB a program ended in the middle of its work.
const MAPPINGS_MAX: &str = "2000000";

impl Ballast {
    /// Nothing yet.
    pub(crate) fn new() -> Result<Self> {
        // What is given back in the middle of a mapping makes two of it.
        fs::write("/proc/sys/vm/max_map_count", MAPPINGS_MAX)
            .context("cannot have more mappings")?;
        let total_bytes = facts::memory()?.total_bytes;
        let memory = AnonymousMemory::map(usize::try_from(total_bytes)?)?;
        Ok(Self { memory, pins: None })
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.pins = None;
        self.memory.release(0, self.memory.pages())?;
        Ok(())
    }

    /// Makes memory what `kind` says, with so much of it used.
    pub(crate) fn arrange(
        &mut self,
        kind: Kind,
        fill_percent: u64,
        seeded: &mut Seeded,
    ) -> Result<Made> {
        self.pins = None;
        let taken = self.take_everything()?;
        let mut blocks = self.blocks(taken)?;
        seeded.shuffle(&mut blocks);
        let marks: Vec<bool> = blocks
            .iter()
            .map(|block| match kind {
                Kind::Plain | Kind::PageCache => false,
                Kind::AlternateMovable | Kind::AlternatePinned => block.number % 2 == 1,
                Kind::RandomPinned => seeded.below(PINNED_ONE_IN) == 0,
                Kind::EveryPinned => true,
            })
            .collect();
        let facts::MemoryInfo {
            total_bytes,
            available_bytes,
            ..
        } = facts::memory()?;
        let page_bytes = self.memory.page_size_bytes() as u64;
        let held_bytes = blocks
            .iter()
            .map(|block| block.pages.len() as u64)
            .sum::<u64>()
            * page_bytes;
        // What others use, and would use if nothing were held here.
        let others_bytes = total_bytes
            .saturating_sub(available_bytes)
            .saturating_sub(held_bytes);
        let wanted_bytes = (total_bytes / 100 * fill_percent).saturating_sub(others_bytes);
        // Marked blocks stay first; of the others as many as are wanted.
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&index| !marks.get(index).copied().unwrap_or(false));
        let (mut kept_bytes, mut busy_blocks) = (0, 0);
        let (mut released, mut pinned) = (Vec::new(), Vec::new());
        for index in order {
            let (Some(block), Some(&marked)) = (blocks.get(index), marks.get(index)) else {
                continue;
            };
            let Some((first, rest)) = block.pages.split_first() else {
                continue;
            };
            let is_whole = kept_bytes < wanted_bytes;
            if marked && kind != Kind::AlternateMovable {
                pinned.push(*first);
            }
            if is_whole {
                kept_bytes += block.pages.len() as u64 * page_bytes;
            } else {
                released.extend_from_slice(rest);
                if marked {
                    kept_bytes += page_bytes;
                } else {
                    released.push(*first);
                }
            }
            busy_blocks += usize::from(marked || is_whole);
        }
        // Before anything is freed: a page that is pinned later may have been moved meanwhile.
        self.pins = Some(self.memory.pin(&pinned)?);
        self.release(released)?;
        if kind == Kind::PageCache {
            fill_page_cache()?;
        }
        let facts::MemoryInfo {
            total_bytes,
            available_bytes,
            ..
        } = facts::memory()?;
        Ok(Made {
            used_percent: 100 - available_bytes * 100 / total_bytes.max(1),
            busy_blocks,
            free_blocks: blocks.len() - busy_blocks,
            pinned_pages: self.pins.as_ref().map_or(0, Pins::pages),
        })
    }

    /// Touches page after page until there is no more memory. Gives how many are ours now.
    ///
    /// As huge pages, where there are any, because a fault for each small one takes minutes in an
    /// emulator; they are split before anything else is done with them.
    fn take_everything(&mut self) -> Result<usize> {
        self.memory.allow_huge_pages(true);
        let taken = self.touch_everything()?;
        fs::write(SPLIT, "1").with_context(|| format!("cannot write {SPLIT}"))?;
        // Nor may they become huge again by themselves.
        self.memory.allow_huge_pages(false);
        Ok(taken)
    }

    fn touch_everything(&mut self) -> Result<usize> {
        let pages = self.memory.pages();
        for index in 0..pages {
            if index % LOOK_EVERY_PAGES == 0
                && facts::memory()?.available_bytes < RESERVE_BYTES + boost_bytes()?
            {
                // What was held beyond this point from an earlier time.
                self.memory.release(index, pages - index)?;
                return Ok(index);
            }
            self.memory.touch(index);
        }
        Ok(pages)
    }

    /// The first `taken` pages, sorted into the blocks that they lie in.
    fn blocks(&self, taken: usize) -> Result<Vec<Block>> {
        let page_bytes = self.memory.page_size_bytes() as u64;
        let mut words = vec![0; taken * 8];
        let first = self.memory.start() as u64 / page_bytes;
        File::open("/proc/self/pagemap")
            .and_then(|file| file.read_exact_at(&mut words, first * 8))
            .context("cannot read /proc/self/pagemap")?;
        let (words, _) = words.as_chunks::<8>();
        let mut places = Vec::with_capacity(taken);
        for (index, word) in words.iter().enumerate() {
            match pagemap::decode(u64::from_le_bytes(*word), page_bytes) {
                Entry::At(address) => places.push((address.as_u64(), index)),
                Entry::Absent => {}
                Entry::Hidden => bail!("pagemap hides addresses: root sees them"),
            }
        }
        places.sort_unstable();
        Ok(places
            .chunk_by(|(one, _), (two, _)| one / BLOCK_BYTES == two / BLOCK_BYTES)
            .map(|pages| Block {
                number: pages
                    .first()
                    .map_or(0, |(address, _)| address / BLOCK_BYTES),
                pages: pages.iter().map(|&(_, index)| index).collect(),
            })
            .collect())
    }

    /// Gives single pages back, neighbours together.
    fn release(&mut self, mut indices: Vec<usize>) -> Result<()> {
        indices.sort_unstable();
        for run in indices.chunk_by(|one, two| one + 1 == *two) {
            if let Some(&first) = run.first() {
                self.memory.release(first, run.len())?;
            }
        }
        Ok(())
    }
}

/// 2 MiB of physical memory, and which of our pages lie in it.
#[derive(Debug)]
struct Block {
    /// Its address divided by its size.
    number: u64,
    /// Indices of our pages, in the order of their addresses.
    pages: Vec<usize>,
}

/// Free memory, bytes: what not even the page cache has.
fn free_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map(|kilobytes| kilobytes * 1024)
        .context("/proc/meminfo has no MemFree")
}

/// What the kernel keeps back for the moment because memory is fragmented, bytes (`boost_watermark` of mm/page_alloc.c;
/// with pages of 16 KiB 256 MiB and more). `MemAvailable` counts it as available, and who takes it, down to the last
/// page, meets the kernel's "deadlocked on memory".
fn boost_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/zoneinfo").context("cannot read /proc/zoneinfo")?;
    // A zone's "min" has its boost in it.
    let pages: u64 = text
        .lines()
        .filter_map(|line| {
            line.trim_start()
                .strip_prefix("min ")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .sum();
    let path = "/proc/sys/vm/min_free_kbytes";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let without_kb: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("{path}: {text:?}"))?;
    Ok((pages * facts::page_size_bytes()).saturating_sub(without_kb * 1024))
}

/// Whether the script has made what the page cache is filled with.
pub(crate) fn can_fill_page_cache() -> bool {
    Path::new(CACHE_FILE).exists()
}

/// Reads the file until its pages are everywhere: until the kernel drops old ones for new ones.
fn fill_page_cache() -> Result<()> {
    let mut file =
        File::open(CACHE_FILE).with_context(|| format!("no {CACHE_FILE}: the script makes it"))?;
    let mut buffer = vec![0; 1 << 20];
    let (mut least_bytes, mut read_bytes) = (u64::MAX, 0);
    while read_bytes < CACHE_FULL_BYTES {
        let count = file
            .read(&mut buffer)
            .context("cannot read the file for the page cache")?;
        if count == 0 {
            break;
        }
        read_bytes += count as u64;
        let free_bytes = free_bytes()?;
        if free_bytes < least_bytes {
            (least_bytes, read_bytes) = (free_bytes, 0);
        }
    }
    Ok(())
}

/// `fragment KIND FILL_PERCENT SEED COMMAND...`: runs the command in such memory.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = |what: &str| arguments.next().with_context(|| format!("no {what}"));
    let kind = Kind::from_word(&next("kind of fragmentation")?)?;
    let fill_percent = next("fill percentage")?
        .parse()
        .context("the fill percentage")?;
    let mut seeded = Seeded::new(next("seed")?.parse().context("the seed")?);
    let program = next("command to run")?;
    let mut ballast = Ballast::new()?;
    let made = ballast.arrange(kind, fill_percent, &mut seeded)?;
    println!(
        "fragment {} {fill_percent} %: {} % used, {} blocks of 2 MiB busy, {} free, {} pages pinned",
        kind.word(),
        made.used_percent,
        made.busy_blocks,
        made.free_blocks,
        made.pinned_pages
    );
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_words() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_word(kind.word()).unwrap(), kind);
        }
        assert!(Kind::from_word("sideways").is_err());
    }

    #[test]
    fn free_memory_is_known() {
        assert!(free_bytes().unwrap() > 0);
    }
}
