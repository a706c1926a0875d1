//! Memory that is ours, in large contiguous pieces, at addresses that we know.
//!
//! Huge pages of hugetlbfs: physically contiguous, never swapped, kept unmodified in the pool when a
//! process dies, and kept *allocated* by a file. So the payload is a file on a hugetlbfs of our own below
//! `/dev`, which systemd-shutdown does not unmount: it outlives every process.
//!
//! Every size that the kernel has can be used: a large page is a long contiguous piece that comes whole or
//! not at all, and small ones fill the rest. Pages above the buddy allocator's largest block (32 MiB and
//! 1 GiB with 4K pages, for example) are assembled from movable memory when they are asked for, which often
//! fails on a machine that has been up for a while. So growing a pool by fewer than asked is no error.
//!
//! Rejected: anonymous memory and memfd (gone with the process), `/dev/hugepages` (not mounted
//! everywhere, and its page size is not ours to choose), surplus pages by overcommit (they go back to
//! the buddy allocator, which may zero them).

use crate::{Error, pagemap::Pagemap};
use kleap_memmap::PhysAddr;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const SYSFS_DIRECTORY: &str = "/sys/kernel/mm/hugepages";
/// Most sizes that are looked at: arm64 has four (`HUGE_MAX_HSTATE`).
const SIZES_MAX: usize = 16;

/// The sizes of huge pages that this kernel has, bytes, smallest first. Empty without CONFIG_HUGETLBFS.
///
/// # Errors
/// If sysfs cannot be read.
pub fn sizes() -> Result<Vec<u64>, Error> {
    let entries = match std::fs::read_dir(SYSFS_DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("cannot read", SYSFS_DIRECTORY, error)),
    };
    let mut sizes = Vec::new();
    for entry in entries.take(SIZES_MAX) {
        let entry = entry.map_err(|error| Error::file("cannot read", SYSFS_DIRECTORY, error))?;
        sizes.extend(entry.file_name().to_str().and_then(size_of_directory));
    }
    sizes.sort_unstable();
    Ok(sizes)
}

/// The size that a directory of sysfs stands for, bytes: `hugepages-2048kB` is 2 MiB. Only powers of two are
/// sizes.
#[must_use]
pub fn size_of_directory(name: &str) -> Option<u64> {
    let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let size_bytes = kib.parse::<u64>().ok()?.checked_mul(1024)?;
    size_bytes.is_power_of_two().then_some(size_bytes)
}

/// Whether this kernel has no free blocks as large as pages of `size_bytes`, built as arm64 kernels usually are: those are at most
/// what one entry of its second-lowest level of translation tables covers (`ARCH_FORCE_MAX_ORDER` in arch/arm64/Kconfig). It
/// makes such pages by moving what is in the way, in the highest zone first, from its lowest memory on (`alloc_contig_pages` in
/// mm/page_alloc.c).
#[must_use]
pub fn is_gigantic(size_bytes: u64) -> bool {
    is_gigantic_with(size_bytes, crate::facts::page_size_bytes())
}

/// The same for a kernel with pages of `page_size_bytes`.
#[must_use]
pub fn is_gigantic_with(size_bytes: u64, page_size_bytes: u64) -> bool {
    // A table of one page has an entry of 8 bytes for each page.
    size_bytes > page_size_bytes.saturating_mul(page_size_bytes / 8)
}

/// Whether this process may make the pool of pages of `page_size_bytes` larger or smaller; nothing is written.
///
/// # Errors
/// [`Error::NoHugePages`] if there is none; why not, if it may not.
pub fn check_growable(page_size_bytes: u64) -> Result<(), Error> {
    let pool = Pool::of_size(page_size_bytes)?;
    crate::facts::check_writable(&pool.directory.join("nr_hugepages"))
}

/// Asks the kernel to move movable pages together, so that longer pieces of memory become free; returns when
/// it has done so. Says whether the kernel has that (CONFIG_COMPACTION) and did it.
///
/// Best effort: how much it helps is seen only by growing a pool afterwards.
#[must_use]
pub fn compact_memory() -> bool {
    std::fs::write("/proc/sys/vm/compact_memory", "1").is_ok()
}

/// The pool of huge pages of one size, as sysfs shows it.
#[derive(Debug, Clone)]
pub struct Pool {
    directory: PathBuf,
    page_size_bytes: u64,
}

impl Pool {
    /// The pool of pages of `page_size_bytes`.
    ///
    /// # Errors
    /// [`Error::NoHugePages`] if the kernel has no such size.
    pub fn of_size(page_size_bytes: u64) -> Result<Self, Error> {
        let directory = Path::new(SYSFS_DIRECTORY).join(directory_of_size(page_size_bytes));
        if !directory.is_dir() {
            return Err(Error::NoHugePages { page_size_bytes });
        }
        Ok(Self {
            directory,
            page_size_bytes,
        })
    }

    /// Size of a page, bytes.
    #[must_use]
    pub fn page_size_bytes(&self) -> u64 {
        self.page_size_bytes
    }

    fn read(&self, name: &str) -> Result<u64, Error> {
        read_count(&self.directory.join(name))
    }

    /// All pages of the pool, count: also the surplus that others have by overcommit.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn all(&self) -> Result<u64, Error> {
        self.read("nr_hugepages")
    }

    /// Persistent pages in the pool, count; without the surplus that others have by overcommit, which
    /// sysfs counts in.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn total(&self) -> Result<u64, Error> {
        Ok(self.all()?.saturating_sub(self.read("surplus_hugepages")?))
    }

    /// Pages that nobody uses or has reserved, count.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn available(&self) -> Result<u64, Error> {
        Ok(self
            .read("free_hugepages")?
            .saturating_sub(self.read("resv_hugepages")?))
    }

    fn set_total(&self, pages: u64) -> Result<(), Error> {
        write_count(&self.directory.join("nr_hugepages"), pages)
    }

    /// Surplus pages that others have by overcommit, count.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn surplus(&self) -> Result<u64, Error> {
        self.read("surplus_hugepages")
    }

    /// Asks for `pages` more, first on NUMA node `node`, the rest wherever there are some; returns how many
    /// new ones came, which may be fewer. Surplus pages of others become persistent with it, until
    /// [`Pool::shrink`].
    ///
    /// A node that does not exist is passed over. Older kernels count the surplus pages of *other*
    /// nodes as missing on this one, and that many more may come; the returned count has them.
    ///
    /// # Errors
    /// If sysfs cannot be read or written.
    pub fn grow(&self, pages: u64, node: Option<u32>) -> Result<u64, Error> {
        let before = self.read("nr_hugepages")?;
        let came = |this: &Self| Ok(this.read("nr_hugepages")?.saturating_sub(before));
        if let Some(node) = node {
            let path = self.node_path(node);
            if path.exists() {
                write_count(&path, read_count(&path)?.saturating_add(pages))?;
            }
        }
        let so_far = came(self)?;
        if so_far < pages {
            self.set_total(before.saturating_add(pages))?;
        }
        came(self)
    }

    /// The file of this pool's pages on one node.
    fn node_path(&self, node: u32) -> PathBuf {
        Path::new("/sys/devices/system/node")
            .join(format!("node{node}/hugepages"))
            .join(directory_of_size(self.page_size_bytes))
            .join("nr_hugepages")
    }

    /// Whether free pages of this pool, on NUMA node `node`, can be made pages of the pool of `size_bytes` (Linux 5.16,
    /// and where that is what the system has them made of).
    #[must_use]
    pub fn demotes_to(&self, size_bytes: u64, node: Option<u32>) -> bool {
        let said = std::fs::read_to_string(self.directory.join("demote_size"));
        let size = said.ok().and_then(|text| demote_size_in(&text));
        size == Some(size_bytes) && self.demote_path(node).exists()
    }

    fn demote_path(&self, node: Option<u32>) -> PathBuf {
        node.map(|node| self.node_path(node).with_file_name("demote"))
            .filter(|path| path.exists())
            .unwrap_or_else(|| self.directory.join("demote"))
    }

    /// Makes so many free pages of this pool, on NUMA node `node`, pages of the next smaller size; those that became
    /// free last go first. How many there were is seen by the pools' totals.
    ///
    /// # Errors
    /// If sysfs cannot be written: the kernel has no memory for it, or fewer pages are free.
    pub fn demote(&self, pages: u64, node: Option<u32>) -> Result<(), Error> {
        if pages == 0 {
            return Ok(());
        }
        write_count(&self.demote_path(node), pages)
    }

    /// Gives `pages` back to the system, first those of NUMA node `node`; they must be free.
    ///
    /// Of a node, the page that became free last goes first. Without a node, or where it has not enough, the kernel
    /// takes from all nodes in turn.
    ///
    /// # Errors
    /// If sysfs cannot be read or written.
    pub fn shrink(&self, pages: u64, node: Option<u32>) -> Result<(), Error> {
        if pages == 0 {
            return Ok(());
        }
        let before = self.total()?;
        if let Some(path) = node
            .map(|node| self.node_path(node))
            .filter(|path| path.exists())
        {
            let total = read_count(&path)?;
            let free = read_count(&path.with_file_name("free_hugepages"))?;
            // Not below what is in use there: that would become surplus.
            write_count(&path, total.saturating_sub(pages.min(free)))?;
        }
        let wanted = before.saturating_sub(pages);
        if self.total()? > wanted {
            self.set_total(wanted)?;
        }
        Ok(())
    }
}

fn directory_of_size(page_size_bytes: u64) -> String {
    format!("hugepages-{}kB", page_size_bytes / 1024)
}

pub(crate) fn read_count(path: &Path) -> Result<u64, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    count_in(path, &text)
}

/// The size in the text of a pool's `demote_size`, bytes.
#[must_use]
pub fn demote_size_in(text: &str) -> Option<u64> {
    let kib = text.trim().strip_suffix("kB")?.parse::<u64>().ok()?;
    kib.checked_mul(1024)
}

/// A count in the text of the file at `path`.
///
/// # Errors
/// If it is no number.
pub fn count_in(path: &Path, text: &str) -> Result<u64, Error> {
    text.trim()
        .parse()
        .map_err(|error| Error::content(path, format!("{text:?}: {error}")))
}

pub(crate) fn write_count(path: &Path, pages: u64) -> Result<(), Error> {
    std::fs::write(path, pages.to_string())
        .map_err(|error| Error::file("cannot write", path, error))
}

/// Mounts a hugetlbfs with pages of `page_size_bytes` on `directory`, which exists.
///
/// # Errors
/// What mount(2) answered.
pub fn mount(directory: &Path, page_size_bytes: u64) -> Result<(), Error> {
    let options = std::ffi::CString::new(format!("pagesize={}K,mode=0700", page_size_bytes / 1024))
        .map_err(|error| Error::content(directory, error.to_string()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("kleap", directory, "hugetlbfs", flags, options.as_c_str()).map_err(
        |source| match source {
            rustix::io::Errno::PERM => Error::Privilege {
                what: "mounting a hugetlbfs",
                capability: "CAP_SYS_ADMIN",
            },
            rustix::io::Errno::NODEV => Error::NoHugePages { page_size_bytes },
            source => Error::Call {
                call: format!("mount(hugetlbfs, {}, {options:?})", directory.display()),
                source,
            },
        },
    )
}

/// Whether a hugetlbfs is mounted on `directory`.
///
/// Where a filter forbids statfs(2), a directory on another device than its parent has something mounted on it:
/// taking "it cannot be said" for "no" would mount a second one over the first.
#[must_use]
pub fn is_mounted(directory: &Path) -> bool {
    /// `HUGETLBFS_MAGIC` (`include/uapi/linux/magic.h`).
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    match rustix::fs::statfs(directory) {
        Ok(found) => u64::try_from(found.f_type) == Ok(HUGETLBFS_MAGIC),
        Err(_) => is_on_another_device_than_its_parent(directory),
    }
}

fn is_on_another_device_than_its_parent(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let parent = directory.parent().and_then(device);
    device(directory).is_some_and(|device| parent.is_some_and(|parent| parent != device))
}

/// Unmounts what [`mount`] mounted.
///
/// # Errors
/// What umount2(2) answered.
pub fn unmount(directory: &Path) -> Result<(), Error> {
    // Detached: a process that stands in it keeps an empty file system, not the pages.
    rustix::mount::unmount(directory, UnmountFlags::DETACH).map_err(|source| Error::Call {
        call: format!("umount2({})", directory.display()),
        source,
    })
}

/// Pages of a file that are no holes, count.
fn allocated_pages(file: &impl AsFd, page_size_bytes: u64) -> u64 {
    let blocks = rustix::fs::fstat(file).map_or(0, |stat| stat.st_blocks);
    let bytes = u64::try_from(blocks).unwrap_or(0).saturating_mul(512);
    bytes.checked_div(page_size_bytes).unwrap_or(0)
}

/// Why there were not `wanted` pages but `came`: there are not as many, or a limit of this process is in the way.
/// The kernel's answer is the same.
fn shortage(wanted: u64, came: u64, page_size_bytes: u64) -> Error {
    let pool = Pool::of_size(page_size_bytes);
    let free = |pool: Pool| pool.read("free_hugepages");
    let found = pool.and_then(free).unwrap_or(0).saturating_add(came);
    if found < wanted {
        return Error::HugePages {
            wanted,
            found,
            page_size_bytes,
        };
    }
    let address_space = rustix::process::getrlimit(rustix::process::Resource::As);
    Error::Limited {
        wanted,
        found,
        page_size_bytes,
        limit: if address_space.current.is_some() {
            "its address space is limited (ulimit -v)"
        } else {
            "its control group limits them (hugetlb.*.max), perhaps"
        },
    }
}

/// A file of huge pages, mapped whole, readable and writable. Some of its pages may be holes.
#[derive(Debug)]
pub struct PageFile {
    file: OwnedFd,
    path: PathBuf,
    mapping: *mut u8,
    page_size_bytes: usize,
    pages: usize,
}

impl PageFile {
    /// Creates a file of `pages` pages, every one of them allocated and zero.
    ///
    /// # Errors
    /// [`Error::HugePages`] if the pool has not that many; the file is gone then.
    pub fn create(path: &Path, pages: usize, page_size_bytes: u64) -> Result<Self, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| Error::file("cannot create", path, error))?;
        let undo = |error| {
            let _ = std::fs::remove_file(path);
            error
        };
        // Without NORESERVE mmap itself fails when the pool is too small: no SIGBUS later.
        let this = Self::map(file, path, pages, page_size_bytes, MapFlags::SHARED).map_err(undo)?;
        this.allocate(0..pages).map_err(undo)?;
        Ok(this)
    }

    /// Opens a file of `pages` pages that [`PageFile::create`] made.
    ///
    /// # Errors
    /// If it cannot be opened or has another size.
    pub fn open(path: &Path, pages: usize, page_size_bytes: u64) -> Result<Self, Error> {
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::file("cannot open", path, error))?;
        let found = rustix::fs::fstat(&file)
            .map_err(|error| Error::file("cannot stat", path, error))?
            .st_size;
        let wanted = pages as u64 * page_size_bytes;
        if u64::try_from(found) != Ok(wanted) {
            return Err(Error::content(
                path,
                format!("has {found} bytes, not {wanted}"),
            ));
        }
        // Its holes stay holes: NORESERVE, and only the pages in use are ever touched.
        Self::map(
            file,
            path,
            pages,
            page_size_bytes,
            MapFlags::SHARED | MapFlags::NORESERVE,
        )
    }

    fn map(
        file: OwnedFd,
        path: &Path,
        pages: usize,
        page_size_bytes: u64,
        flags: MapFlags,
    ) -> Result<Self, Error> {
        let wanted = pages as u64;
        let overflow = || Error::HugePages {
            wanted,
            found: 0,
            page_size_bytes,
        };
        let size_bytes = wanted.checked_mul(page_size_bytes).ok_or_else(overflow)?;
        let length = usize::try_from(size_bytes).map_err(|_| overflow())?;
        rustix::fs::ftruncate(&file, size_bytes)
            .map_err(|error| Error::file("cannot resize", path, error))?;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let mapping = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                &file,
                0,
            )
        }
        .map_err(|source| match source {
            // Without a reservation no page is taken here: it is not for want of pages.
            rustix::io::Errno::NOMEM if flags.contains(MapFlags::NORESERVE) => {
                shortage(wanted, wanted, page_size_bytes)
            }
            rustix::io::Errno::NOMEM => shortage(wanted, 0, page_size_bytes),
            source => Error::Call {
                call: format!("mmap({} bytes of {})", length, path.display()),
                source,
            },
        })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            mapping: mapping.cast(),
            page_size_bytes: usize::try_from(page_size_bytes).map_err(|_| overflow())?,
            pages,
        })
    }

    /// Allocates pages. fallocate(2) answers with an error where touching would be a SIGBUS.
    fn allocate(&self, pages: Range<usize>) -> Result<(), Error> {
        let page_size_bytes = self.page_size_bytes as u64;
        let (start, length) = (pages.start as u64, pages.len() as u64);
        let before = allocated_pages(&self.file, page_size_bytes);
        // Seen on 5.10 right after an io_uring was closed, with no signal sent by anybody. What was allocated
        // stays, so trying again ends.
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(
                &self.file,
                FallocateFlags::empty(),
                start * page_size_bytes,
                length * page_size_bytes,
            )
        })
        .map_err(|source| match source {
            rustix::io::Errno::NOMEM | rustix::io::Errno::NOSPC => {
                // Those that came before it failed are no longer free.
                let came = allocated_pages(&self.file, page_size_bytes).saturating_sub(before);
                shortage(length, came, page_size_bytes)
            }
            source => Error::file("cannot allocate", &self.path, source),
        })
    }

    /// The same file with `more` pages at its end. Holes stay holes.
    ///
    /// # Errors
    /// [`Error::HugePages`] if the pool has not that many. The file is dropped from this process then,
    /// its pages with the file.
    pub fn extend(self, more: usize) -> Result<Self, Error> {
        let (path, before, pages) = (self.path.clone(), self.pages, self.pages + more);
        let page_size_bytes = self.page_size_bytes as u64;
        drop(self);
        let file = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::file("cannot open", &path, error))?;
        // As in `open`: a reservation would be one for the holes, too.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let this = Self::map(file, &path, pages, page_size_bytes, flags)?;
        this.allocate(before..pages)?;
        Ok(this)
    }

    /// Pages of the file, holes included, count.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Size of a page, bytes.
    #[must_use]
    pub fn page_size_bytes(&self) -> usize {
        self.page_size_bytes
    }

    /// Size of the file and of its mapping, holes included, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        // No overflow: `map` was given this length.
        self.pages * self.page_size_bytes
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The virtual address of one page in this process. `index` is below [`PageFile::pages`].
    ///
    /// For calls that want an address, as pinning does; reading through it is for [`PageFile::page`].
    #[must_use]
    pub fn pointer(&self, index: usize) -> *const u8 {
        self.page_pointer(index)
    }

    fn page_pointer(&self, index: usize) -> *mut u8 {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: within the mapping, which `map` made this long.
        unsafe { self.mapping.add(index * self.page_size_bytes) }
    }

    /// One page's bytes. `index` is below [`PageFile::pages`] and no hole.
    #[must_use]
    pub fn page(&self, index: usize) -> &[u8] {
        // SAFETY: the page is mapped and allocated, and `&self` keeps writers of this process out;
        // the file is ours alone (mode 0600 in a directory of mode 0700).
        unsafe { std::slice::from_raw_parts(self.page_pointer(index), self.page_size_bytes) }
    }

    /// One page's bytes, to write. `index` is below [`PageFile::pages`] and no hole.
    pub fn page_mut(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: as in `page`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.page_pointer(index), self.page_size_bytes) }
    }

    /// The physical address of one page.
    ///
    /// # Errors
    /// If pagemap does not say, or says something that is no multiple of the page size.
    pub fn address(&self, pagemap: &Pagemap, index: usize) -> Result<PhysAddr, Error> {
        let pointer = self.page_pointer(index);
        // Pagemap shows only what this process has mapped: a read makes it so.
        // SAFETY: within the mapping; the page is allocated.
        unsafe { pointer.read_volatile() };
        let address = pagemap.physical(pointer)?;
        if !address.is_aligned(self.page_size_bytes as u64) {
            return Err(Error::content(
                &self.path,
                format!("huge page {index} is at {address}, not a multiple of its size"),
            ));
        }
        Ok(address)
    }

    /// Gives a run of pages back to the pool; `range` is of page indices, and may have holes. Pages that are
    /// pinned go back when they are no longer pinned.
    ///
    /// # Errors
    /// What fallocate(2) answered; an error if the range ends behind the file.
    pub fn release(&mut self, range: Range<usize>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        if range.end > self.pages {
            return Err(Error::content(
                &self.path,
                format!(
                    "cannot release pages {range:?}: the file has {}",
                    self.pages
                ),
            ));
        }
        let size_bytes = self.page_size_bytes as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = (range.start as u64, range.len() as u64);
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, flags, offset * size_bytes, length * size_bytes)
        })
        .map_err(|error| Error::file("cannot punch a hole into", &self.path, error))
    }
}

impl AsFd for PageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PageFile {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.mapping.cast(), self.size_bytes()) };
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::fs::fstat;

    #[test]
    fn what_the_second_lowest_level_maps_is_not_gigantic() {
        for (page_kib, sizes_kib, gigantic_kib) in [
            (4, vec![64, 2048], vec![32 << 10, 1 << 20]),
            (16, vec![2048, 32 << 10], vec![1 << 20]),
            (64, vec![2048, 512 << 10], vec![16 << 20]),
        ] {
            for (sizes, gigantic) in [(sizes_kib, false), (gigantic_kib, true)] {
                for size_kib in sizes {
                    let is_gigantic = is_gigantic_with(size_kib << 10, page_kib << 10);
                    assert_eq!(is_gigantic, gigantic, "{size_kib} with {page_kib} KiB");
                }
            }
        }
    }

    #[test]
    fn what_is_mounted_is_on_another_device() {
        for (directory, mounted) in [("/proc", true), ("/proc/self", false), ("/no/such", false)] {
            let found = is_on_another_device_than_its_parent(Path::new(directory));
            assert_eq!(found, mounted, "{directory}");
        }
        assert!(!is_mounted(Path::new("/proc")), "it is no hugetlbfs");
    }

    /// A page file of ordinary pages: tmpfs has the same calls as hugetlbfs, and exists everywhere.
    pub(crate) fn ordinary(name: &str, pages: usize) -> PageFile {
        let path = Path::new("/dev/shm").join(format!("kleap-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let size_bytes = crate::facts::page_size_bytes();
        PageFile::create(&path, pages, size_bytes).unwrap()
    }

    /// Bytes that a file really has.
    pub(crate) fn allocated_bytes(file: &PageFile) -> u64 {
        u64::try_from(fstat(file).unwrap().st_blocks).unwrap() * 512
    }

    #[test]
    fn directories_are_sizes() {
        for (name, size_bytes) in [
            ("hugepages-64kB", Some(64 << 10)),
            ("hugepages-2048kB", Some(2 << 20)),
            ("hugepages-32768kB", Some(32 << 20)),
            ("hugepages-1048576kB", Some(1 << 30)),
            ("hugepages-16777216kB", Some(16 << 30)),
            ("hugepages-0kB", None),
            ("hugepages-3kB", None),
            ("hugepages-18446744073709551615kB", None),
            ("hugepages-kB", None),
            ("hugepages-2048", None),
            ("2048kB", None),
        ] {
            assert_eq!(size_of_directory(name), size_bytes, "{name}");
        }
    }

    #[test]
    fn every_size_has_a_pool() {
        let sizes = sizes().unwrap();
        assert!(sizes.is_sorted(), "{sizes:?}");
        for size_bytes in sizes {
            let pool = Pool::of_size(size_bytes).unwrap();
            assert_eq!(pool.page_size_bytes(), size_bytes);
            assert!(pool.available().unwrap() <= pool.read("nr_hugepages").unwrap());
        }
        let none = Pool::of_size(3 << 20);
        assert!(matches!(none, Err(Error::NoHugePages { .. })), "{none:?}");
    }

    #[test]
    fn a_run_of_pages_is_given_back() {
        let mut file = ordinary("release", 8);
        std::fs::remove_file(file.path()).unwrap();
        let page = file.page_size_bytes() as u64;
        for index in 0..8 {
            file.page_mut(index).fill(0xa5);
        }
        assert_eq!(allocated_bytes(&file), 8 * page);
        file.release(2..5).unwrap();
        assert_eq!(allocated_bytes(&file), 5 * page);
        file.release(4..6).unwrap(); // over a hole
        assert_eq!(allocated_bytes(&file), 4 * page);
        file.release(3..3).unwrap();
        assert_eq!(allocated_bytes(&file), 4 * page);
        let outside = file.release(7..9).unwrap_err().to_string();
        assert!(outside.contains("7..9"), "{outside}");
        for index in [0, 1, 6, 7] {
            assert!(file.page(index).iter().all(|byte| *byte == 0xa5), "{index}");
        }
        assert_eq!(file.size_bytes() as u64, 8 * page);
        let path = PathBuf::from("/dev/shm").join(format!("kleap-grow-{}", std::process::id()));
        let mut grown = PageFile::create(&path, 4, page).unwrap();
        grown.page_mut(3).fill(0x5a);
        grown.release(1..3).unwrap();
        let grown = grown.extend(3).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(allocated_bytes(&grown), 5 * page, "holes stay holes");
        assert_eq!(grown.pages(), 7);
        assert!(grown.page(3).iter().all(|byte| *byte == 0x5a));
        assert!(grown.page(6).iter().all(|byte| *byte == 0));
        assert_eq!(
            file.pointer(3).addr() - file.pointer(0).addr(),
            3 * file.page_size_bytes()
        );
    }
}
