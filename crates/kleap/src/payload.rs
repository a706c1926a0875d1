//! What is loaded: the note that `load` leaves for `exec`, and the way to the bytes.

use crate::error::Failure;
use kleap_linux::hugepages::PageFile;
use kleap_linux::pagemap::Pagemap;
use kleap_plan::{Layout, Owned, Place, Strategy};
use kleap_relocator::crc32c;
use serde::{Deserialize, Serialize};

/// A piece's bytes as they were loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) size_bytes: u64,
    pub(crate) crc32c: u32,
}

impl From<Content> for kleap_plan::stage::Content {
    fn from(content: Content) -> Self {
        Self {
            size_bytes: content.size_bytes,
            crc32c: content.crc32c,
        }
    }
}

/// What is loaded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// The boot in which it was loaded.
    pub(crate) boot_id: String,
    /// Number of the load, counted from 1 while something is loaded.
    pub(crate) generation: u64,
    /// Name of the payload's file.
    pub(crate) payload: String,
    /// Pages of that file, holes included, count.
    pub(crate) file_pages: usize,
    /// Where everything is.
    pub(crate) layout: Layout,
    /// What was asked for.
    pub(crate) strategy: Strategy,
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
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&'static str, &Place, Content)> {
        let initrd = self.layout.initrd.as_ref().zip(self.initrd);
        [
            Some(("Image", &self.layout.image, self.image)),
            initrd.map(|(place, content)| ("initrd", place, content)),
            Some(("device tree", &self.layout.device_tree, self.device_tree)),
        ]
        .into_iter()
        .flatten()
    }
}

/// The parts of `place`'s pages that hold `size_bytes` of content, in order: (page index, from, to).
pub(crate) fn parts(
    place: &Place,
    size_bytes: u64,
    page_size_bytes: usize,
) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    let page_bytes = page_size_bytes as u64;
    let end = place.offset_bytes.saturating_add(size_bytes);
    place
        .pages
        .iter()
        .zip(0_u64..)
        .filter_map(move |(page, number)| {
            let first = number * page_bytes;
            let from = place.offset_bytes.max(first) - first;
            let to = end.min(first + page_bytes).checked_sub(first)?;
            let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
            (from < to && from < page_size_bytes).then_some((page.index, from, to))
        })
}

/// Digest of a piece as it is in memory now.
pub(crate) fn digest(file: &PageFile, place: &Place, size_bytes: u64) -> u32 {
    parts(place, size_bytes, file.page_size_bytes()).fold(0, |crc, (index, from, to)| {
        crc32c::update_on_host(crc, &file.page(index)[from..to])
    })
}

/// Checks that every page is where it was.
pub(crate) fn check_addresses(file: &PageFile, layout: &Layout) -> Result<(), Failure> {
    let pagemap = Pagemap::open()?;
    for Owned { address, index } in layout.pages() {
        let found = file.address(&pagemap, index)?;
        if found != address {
            return Err(Failure::Changed(format!(
                "huge page {index} of the payload was at {address} and is at {found} now"
            )));
        }
    }
    Ok(())
}
