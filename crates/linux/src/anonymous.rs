//! Ordinary memory of a process, at physical addresses that one can know, and nailed down there.
//!
//! The command needs none of this. It is for programs that make memory scarce and fragmented on
//! purpose: what they hold must be known by its physical address, page by page, and must be such that
//! compaction cannot move it out of the way.
//!
//! What really stays where it is was tried out. `mlock` does not do it: compaction moves locked
//! pages (`vm.compact_unevictable_allowed`). A buffer registered with io_uring does: the kernel takes
//! a long-term pin (`FOLL_LONGTERM`), and a page with references that migration cannot account for
//! is not moved. That needs two system calls, no ring is mapped, and it ends with the descriptor.

use crate::Error;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `IORING_REGISTER_BUFFERS` (`include/uapi/linux/io_uring.h`).
const IORING_REGISTER_BUFFERS: libc::c_uint = 0;
/// Size of `struct io_uring_params`, bytes.
const IO_URING_PARAMS_BYTES: usize = 120;
/// Most buffers of one ring: `UIO_MAXIOV`, the limit before 5.13.
const BUFFERS_PER_RING: usize = 1024;

/// A private anonymous mapping. Its pages come when they are touched.
#[derive(Debug)]
pub struct AnonymousMemory {
    mapping: *mut u8,
    size_bytes: usize,
    page_size_bytes: usize,
}

impl AnonymousMemory {
    /// Maps `size_bytes`, which is rounded up to whole pages.
    ///
    /// # Errors
    /// What mmap(2) answered.
    pub fn map(size_bytes: usize) -> Result<Self, Error> {
        let page_size_bytes = rustix::param::page_size();
        let failed = |source| Error::Call {
            call: format!("mmap({size_bytes} bytes, MAP_ANONYMOUS)"),
            source,
        };
        let size_bytes = size_bytes
            .checked_next_multiple_of(page_size_bytes)
            .filter(|&size| size > 0)
            .ok_or_else(|| failed(rustix::io::Errno::INVAL))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let mapping = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }
        .map_err(failed)?;
        Ok(Self {
            mapping: mapping.cast(),
            size_bytes,
            page_size_bytes,
        })
    }

    /// Whether what is touched from now on may be transparent huge pages, which come much faster. A
    /// kernel that has none ignores it.
    pub fn allow_huge_pages(&mut self, allowed: bool) {
        let advice = if allowed {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        };
        // Without transparent huge pages the answer is EINVAL, and there are none to keep away.
        // SAFETY: exactly our own mapping; the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(self.mapping.cast(), self.size_bytes, advice) };
    }

    /// Size, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Size of its pages, bytes.
    #[must_use]
    pub fn page_size_bytes(&self) -> usize {
        self.page_size_bytes
    }

    /// Pages, count.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.size_bytes / self.page_size_bytes
    }

    /// Virtual address of the first byte: what pagemap is asked with.
    #[must_use]
    pub fn start(&self) -> usize {
        self.mapping.addr()
    }

    fn page(&self, index: usize) -> *mut u8 {
        assert!(index < self.pages(), "page {index} of {}", self.pages());
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.mapping.add(index * self.page_size_bytes) }
    }

    /// Makes the page there, by writing to it.
    pub fn touch(&mut self, index: usize) {
        let page = self.page(index);
        // SAFETY: mapped for writing, and `&mut self` keeps everybody else out.
        unsafe { page.write_volatile(1) };
    }

    /// Gives the pages `first` to before `first + count` back; the next touch gets others.
    ///
    /// By mapping anew, not by `MADV_DONTNEED`: that keeps the page tables, and where there is a table of
    /// small pages no huge page can come again.
    ///
    /// # Errors
    /// What mmap(2) answered.
    pub fn release(&mut self, first: usize, count: usize) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        let start = self.page(first);
        // The last one is looked at so that the range is known to be ours.
        let _ = self.page(first + count - 1);
        let length = count * self.page_size_bytes;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a part of our own mapping, by the same; `&mut self`, so nobody holds a reference
        // to what is lost.
        unsafe { rustix::mm::mmap_anonymous(start.cast(), length, access, flags) }
            .map(|_| ())
            .map_err(|source| Error::Call {
                call: format!("mmap({length} bytes, MAP_ANONYMOUS | MAP_FIXED)"),
                source,
            })
    }

    /// Pins single pages where they are, until the result is dropped.
    ///
    /// # Errors
    /// What io_uring answered: it may be turned off (`kernel.io_uring_disabled`).
    pub fn pin(&self, indices: &[usize]) -> Result<Pins, Error> {
        let mut rings = Vec::new();
        for part in indices.chunks(BUFFERS_PER_RING) {
            let buffers: Vec<libc::iovec> = part
                .iter()
                .map(|&index| libc::iovec {
                    iov_base: self.page(index).cast(),
                    iov_len: self.page_size_bytes,
                })
                .collect();
            rings.push(register(&buffers)?);
        }
        Ok(Pins {
            rings,
            pages: indices.len(),
        })
    }
}

impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference to it was ever given out.
        let _ = unsafe { rustix::mm::munmap(self.mapping.cast(), self.size_bytes) };
    }
}

/// Pages that stay where they are while this lives.
#[derive(Debug)]
pub struct Pins {
    /// Each holds the pins of its registered buffers.
    rings: Vec<OwnedFd>,
    pages: usize,
}

impl Pins {
    /// How many pages are pinned.
    #[must_use]
    pub fn pages(&self) -> usize {
        if self.rings.is_empty() { 0 } else { self.pages }
    }
}

fn answer(call: &str, result: libc::c_long) -> Result<libc::c_int, Error> {
    libc::c_int::try_from(result)
        .ok()
        .filter(|&result| result >= 0)
        .ok_or_else(|| Error::Call {
            call: call.to_owned(),
            source: std::io::Error::last_os_error()
                .raw_os_error()
                .map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error),
        })
}

/// A ring that does nothing but hold these buffers.
fn register(buffers: &[libc::iovec]) -> Result<OwnedFd, Error> {
    let mut params = [0_u64; IO_URING_PARAMS_BYTES / 8];
    let entries: libc::c_uint = 1;
    // SAFETY: `params` has the size of `struct io_uring_params` and is the kernel's to fill in.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) };
    let ring = answer("io_uring_setup(1)", ring)?;
    // SAFETY: a descriptor that the kernel has just made; nobody else owns it.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    // SAFETY: the buffers are parts of live mappings, and the kernel keeps pages, not addresses: what is
    // unmapped later stays allocated until the ring is closed.
    let registered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_BUFFERS,
            buffers.as_ptr(),
            buffers.len(),
        )
    };
    answer("io_uring_register(IORING_REGISTER_BUFFERS)", registered)?;
    Ok(ring)
}

/// What the kernel says of one page: a node, or a negative error number; nothing if it says nothing, as of
/// pages that it tried to move and could not.
pub type PageAnswer = Option<i32>;

/// The NUMA node that each page of this process is on (move_pages(2) without nodes).
///
/// # Errors
/// If the call as a whole was refused.
pub fn page_nodes(pages: &[*const u8]) -> Result<Vec<PageAnswer>, Error> {
    ask_or_move(pages, None)
}

/// Asks the kernel to move pages of this process to a NUMA node (move_pages(2), `MPOL_MF_MOVE_ALL`,
/// which needs CAP_SYS_NICE). A huge page moves whole, whichever of its addresses is given.
///
/// # Errors
/// If the call as a whole was refused.
pub fn move_pages(pages: &[*const u8], node: u32) -> Result<Vec<PageAnswer>, Error> {
    ask_or_move(pages, Some(node))
}

fn ask_or_move(pages: &[*const u8], node: Option<u32>) -> Result<Vec<PageAnswer>, Error> {
    const MPOL_MF_MOVE_ALL: libc::c_int = 1 << 2;
    /// No node and no error number: the kernel did not write there.
    const UNTOLD: i32 = i32::MIN;
    let nodes = node.map(|node| vec![node; pages.len()]);
    let mut status = vec![UNTOLD; pages.len()];
    // SAFETY: the arrays have `pages.len()` elements each and outlive the call; without nodes the kernel only
    // says where pages are. They are only named, and what a page contains does not change by being moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0, // this process
            pages.len(),
            pages.as_ptr(),
            nodes.as_ref().map_or(std::ptr::null(), Vec::as_ptr),
            status.as_mut_ptr(),
            MPOL_MF_MOVE_ALL,
        )
    };
    // A positive result is the number of pages that were not moved.
    answer("move_pages(MPOL_MF_MOVE_ALL)", result)?;
    Ok(status
        .into_iter()
        .map(|status| (status != UNTOLD).then_some(status))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go() {
        let mut memory = AnonymousMemory::map(10 * rustix::param::page_size() - 1).unwrap();
        assert_eq!(memory.pages(), 10);
        memory.allow_huge_pages(true);
        memory.allow_huge_pages(false);
        for index in 0..10 {
            memory.touch(index);
        }
        memory.release(2, 3).unwrap();
        memory.release(0, 0).unwrap();
        memory.touch(2);
        assert_eq!(memory.start() % memory.page_size_bytes(), 0);
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        assert!(AnonymousMemory::map(0).is_err());
        assert!(AnonymousMemory::map(usize::MAX).is_err());
    }

    #[test]
    #[should_panic(expected = "page 10 of 10")]
    fn a_range_beyond_the_end_is_refused() {
        let mut memory = AnonymousMemory::map(10 * rustix::param::page_size()).unwrap();
        let _ = memory.release(8, 3);
    }

    #[test]
    fn pages_are_on_a_node_or_nowhere() {
        let mut memory = AnonymousMemory::map(2 * rustix::param::page_size()).unwrap();
        memory.touch(0);
        let pages = [memory.page(0).cast_const(), memory.page(1).cast_const()];
        // A kernel without NUMA has no such call.
        if let Ok(nodes) = page_nodes(&pages) {
            assert!(nodes[0].unwrap() >= 0);
            assert!(nodes[1].unwrap() < 0, "nothing is there");
        }
    }

    #[test]
    fn pins_are_counted() {
        let mut memory = AnonymousMemory::map(4 * rustix::param::page_size()).unwrap();
        memory.touch(1);
        // io_uring may be turned off, or not be there, where this is run.
        if let Ok(pins) = memory.pin(&[1, 3]) {
            assert_eq!(pins.pages(), 2);
        }
        assert_eq!(memory.pin(&[]).unwrap().pages(), 0);
    }
}
