//! Pages that the kernel must not move.
//!
//! A plan names physical addresses. A page of hugetlbfs is never swapped, but it may be *migrated* while it
//! is in use: by compaction for a large allocation, by offlining of memory, by soft-offlining of a page with
//! corrected errors, by `move_pages(2)`. mlock(2) does not prevent it. What does is a reference to the page
//! that the kernel cannot account for: migration counts the references it knows and gives up if there are more.
//!
//! Two ways to have one, the better first:
//!
//! - **io_uring**: registered buffers (`IORING_REGISTER_BUFFERS`) are pinned with `FOLL_LONGTERM`, the
//!   kernel's own notion of a page that stays for as long as somebody wants. The kernel may *move* pages while
//!   it pins them, out of memory that has to stay movable (`ZONE_MOVABLE`, CMA), where a pin would be in the
//!   way. It may be turned off (`kernel.io_uring_disabled`, seccomp, CONFIG_IO_URING), and without
//!   CAP_IPC_LOCK the pages count against RLIMIT_MEMLOCK.
//! - **pipe**: vmsplice(2) of one byte of each page leaves a reference to it in the pipe. Any kernel can do
//!   that, but the page stays in memory from which it should go: offlining that memory fails then, and a device that wants
//!   CMA gets other CMA, or none. Where a payload lies in CMA because there is no other place for it, that is wanted.
//!
//! So the order is: pin, *then* read pagemap, and read it again before the jump.
//!
//! Pins belong to an open file and end with the last descriptor of it, and so with the process: to keep them
//! is [`crate::holder`]'s work.
//!
//! Rejected: udmabuf. It takes only a file that is sealed with `F_SEAL_SHRINK`. A file of a mounted hugetlbfs
//! cannot be: it is born with `F_SEAL_SEAL`, no more seals. A memfd can, but is gone with the last process that
//! has it, while the payload has to outlive them all.

use crate::Error;
use crate::hugepages::PageFile;
use rustix::io::{Errno, retry_on_intr};
use rustix::io_uring::{IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup};
use rustix::pipe::{IoSliceRaw, PipeFlags, SpliceFlags};
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// Most bytes of one registered buffer (`SZ_1G` in `io_uring/rsrc.c`).
const BUFFER_MAX_BYTES: usize = 1 << 30;
/// Most buffers of one ring: `UIO_MAXIOV` in 5.10, more in later kernels.
const RING_BUFFERS_MAX: usize = 1024;
/// Pages in one pipe: what any user may have with 4 KiB pages (`fs.pipe-max-size`).
const PIPE_PAGES_MAX: usize = 256;
/// Most rings or pipes; each is a file descriptor of the 1024 that a process may have.
const FILES_MAX: usize = 768;

/// How pages are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Registered buffers of an io_uring: long-term pins.
    IoUring,
    /// Pages in a pipe: references.
    Pipe,
}

impl Method {
    /// All, the better first.
    pub const ALL: [Self; 2] = [Self::IoUring, Self::Pipe];

    /// In the order in which they are tried on a kernel of this release.
    ///
    /// Kernels from 5.11 on warn (`follow_hugetlb_page`, and until 6.9 `__get_user_pages`; seen on 6.1, not on 5.10, 6.12 and 7.3) when huge
    /// pages that lie in CMA or in movable memory are pinned for long, and with `panic_on_warn` they end.
    /// References block migration as well, so there they come first.
    #[must_use]
    pub fn in_order(release: &str) -> [Self; 2] {
        const WARNING: std::ops::Range<(u32, u32)> = (5, 11)..(6, 10);
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|digits| digits.parse().ok());
        match (number(), number()) {
            (Some(major), Some(minor)) if WARNING.contains(&(major, minor)) => {
                [Self::Pipe, Self::IoUring]
            }
            _ => Self::ALL,
        }
    }

    /// Its name for people: `io_uring` or `pipe`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Pipe => "pipe",
        }
    }

    /// The method that has this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A run of pages of a file: none of them a hole.
#[derive(Debug, Clone)]
pub struct Region<'a> {
    /// The file.
    pub file: &'a PageFile,
    /// Page indices in it.
    pub pages: Range<usize>,
}

/// Pages that stay where they are while this lives.
///
/// The file may be unmapped and closed meanwhile; its pages go back to the pool only when they are released
/// here and in the file.
#[derive(Debug)]
pub struct Pin {
    method: Method,
    /// The rings, or the pipes' reading ends.
    files: Vec<OwnedFd>,
}

impl Pin {
    /// Pins pages by the best method that this kernel allows. Their addresses may be read afterwards, not
    /// before: pinning may move them.
    ///
    /// # Errors
    /// [`Error::NotPinned`] with each method's reason; an error if a region is outside its file.
    pub fn new(regions: &[Region<'_>]) -> Result<Self, Error> {
        Self::preferring(None, regions)
    }

    /// The same, but this method is tried before all others. [`Method::Pipe`] leaves pages where they are, CMA included.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn preferring(first: Option<Method>, regions: &[Region<'_>]) -> Result<Self, Error> {
        let mut reasons = Vec::new();
        let others = Method::in_order(&crate::facts::kernel_release().0);
        let others = others.into_iter().filter(|method| Some(*method) != first);
        for method in first.into_iter().chain(others) {
            match Self::by(method, regions) {
                Err(Error::Call { call, source }) => {
                    reasons.push(format!("{method}: {call}: {source}"));
                }
                result => return result,
            }
        }
        Err(Error::NotPinned(reasons.join("; ")))
    }

    /// Pins pages by this method and no other.
    ///
    /// # Errors
    /// What the kernel answered; an error if a region is outside its file.
    pub fn by(method: Method, regions: &[Region<'_>]) -> Result<Self, Error> {
        for Region { file, pages } in regions {
            if pages.start > pages.end || pages.end > file.pages() {
                return Err(Error::content(
                    file.path(),
                    format!("cannot pin pages {pages:?}: the file has {}", file.pages()),
                ));
            }
        }
        let mut this = Self {
            method,
            files: Vec::new(),
        };
        match method {
            Method::IoUring => this.register(regions),
            Method::Pipe => this.splice(regions),
        }?;
        Ok(this)
    }

    /// How the pages are pinned.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Ends the pins, at once: when this returns, a page of which the file has no more use is in the pool
    /// again. Dropping does the same.
    pub fn release(self) {
        drop(self);
    }

    fn keep(&mut self, file: OwnedFd) -> Result<&OwnedFd, Error> {
        if self.files.len() == FILES_MAX {
            return Err(Error::Call {
                call: format!("more than {FILES_MAX} rings or pipes"),
                source: Errno::MFILE,
            });
        }
        self.files.push(file);
        self.files.last().ok_or_else(|| Error::Call {
            call: "no ring".into(),
            source: Errno::IO,
        })
    }

    fn register(&mut self, regions: &[Region<'_>]) -> Result<(), Error> {
        for buffers in buffers(regions).chunks(RING_BUFFERS_MAX) {
            let mut parameters = io_uring_params::default();
            // SAFETY: no flag is set, so no field of the parameters is a descriptor or a pointer.
            let ring =
                unsafe { io_uring_setup(1, &mut parameters) }.map_err(|source| Error::Call {
                    call: "io_uring_setup".into(),
                    source,
                })?;
            let ring = self.keep(ring)?;
            // SAFETY: `buffers` is an array of `struct iovec` of this length, which the call only reads. What
            // the buffers themselves name is memory of a live mapping, and no operation that would read or
            // write them is ever submitted: the ring is not even mapped.
            retry_on_intr(|| unsafe {
                io_uring_register(
                    ring,
                    IoringRegisterOp::RegisterBuffers,
                    buffers.as_ptr().cast(),
                    u32::try_from(buffers.len()).unwrap_or(u32::MAX),
                )
            })
            .map_err(|source| Error::Call {
                call: format!(
                    "io_uring_register(IORING_REGISTER_BUFFERS, {} buffers of {} bytes in all)",
                    buffers.len(),
                    buffers.iter().map(|buffer| buffer.iov_len).sum::<usize>()
                ),
                source,
            })?;
        }
        Ok(())
    }

    fn splice(&mut self, regions: &[Region<'_>]) -> Result<(), Error> {
        let bytes: Vec<*const u8> = regions
            .iter()
            .flat_map(|region| {
                let pages = region.pages.clone();
                pages.map(|index| region.file.pointer(index))
            })
            .collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (reading, writing) =
                rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|source| Error::Call {
                    call: "pipe2".into(),
                    source,
                })?;
            let reading = self.keep(reading)?;
            let page_size_bytes = rustix::param::page_size();
            // A pipe has a slot for each page of its size. Where it may not have that size, it has another.
            let size_bytes = rustix::pipe::fcntl_setpipe_size(
                reading,
                rest.len().min(PIPE_PAGES_MAX) * page_size_bytes,
            )
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(reading))
            .map_err(|source| Error::Call {
                call: "fcntl(F_GETPIPE_SZ)".into(),
                source,
            })?;
            let slots = (size_bytes / page_size_bytes).clamp(1, PIPE_PAGES_MAX);
            let (now, later) = rest.split_at(slots.min(rest.len()));
            let slices: Vec<IoSliceRaw<'_>> = now
                .iter()
                // SAFETY: the first byte of an allocated page of a live mapping. The kernel takes a reference
                // to the page; nobody reads what is in the pipe, so later changes to it do not matter.
                .map(|byte| unsafe { std::slice::from_raw_parts(*byte, 1) })
                .map(IoSliceRaw::from_slice)
                .collect();
            // SAFETY: as above; without SPLICE_F_GIFT the pages stay this process' own.
            let spliced =
                unsafe { rustix::pipe::vmsplice(&writing, &slices, SpliceFlags::NONBLOCK) };
            match spliced {
                Ok(bytes) if bytes == slices.len() => {}
                answer => {
                    return Err(Error::Call {
                        call: format!("vmsplice({} pages) = {answer:?}", slices.len()),
                        source: answer.err().unwrap_or(Errno::AGAIN),
                    });
                }
            }
            rest = later;
        }
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.method != Method::IoUring {
            // Closing the last end of a pipe drops its pages before close(2) returns.
            return;
        }
        for ring in &self.files {
            // Closing a ring leaves the unpinning to a worker of the kernel; this does it here and now. It waits
            // for the ring's users, of which there are none, but the wait can be interrupted.
            // SAFETY: the call takes no memory, and nothing uses the buffers.
            let _ = retry_on_intr(|| unsafe {
                io_uring_register(
                    ring,
                    IoringRegisterOp::UnregisterBuffers,
                    std::ptr::null(),
                    0,
                )
            });
        }
    }
}

/// The regions as buffers of at most [`BUFFER_MAX_BYTES`], each of whole small pages.
fn buffers(regions: &[Region<'_>]) -> Vec<libc::iovec> {
    let mut buffers = Vec::new();
    for Region { file, pages } in regions.iter().filter(|region| !region.pages.is_empty()) {
        let start = file.pointer(pages.start);
        for (offset, length) in pieces(pages.len() * file.page_size_bytes()) {
            buffers.push(libc::iovec {
                // No arithmetic beyond the mapping: the piece is inside the region, which `by` checked.
                iov_base: start.wrapping_add(offset).cast_mut().cast(),
                iov_len: length,
            });
        }
    }
    buffers
}

/// Cuts `size_bytes` into pieces: offset and length of each.
fn pieces(size_bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..size_bytes)
        .step_by(BUFFER_MAX_BYTES)
        .map(move |offset| (offset, BUFFER_MAX_BYTES.min(size_bytes - offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_first_where_long_pins_warn() {
        for (release, first) in [
            ("5.10.0-34-arm64", Method::IoUring),
            ("5.11.0", Method::Pipe),
            ("6.1.0-47-arm64", Method::Pipe),
            ("6.6.9", Method::Pipe),
            ("6.9.12", Method::Pipe),
            ("6.10.0", Method::IoUring),
            ("6.12.107+deb13-arm64", Method::IoUring),
            ("nonsense", Method::IoUring),
        ] {
            assert_eq!(Method::in_order(release)[0], first, "{release}");
        }
    }
    use crate::hugepages::tests::ordinary;

    /// What a machine may refuse, loudly; `None` then.
    fn pin(method: Method, regions: &[Region<'_>]) -> Option<Pin> {
        match Pin::by(method, regions) {
            Ok(pin) => Some(pin),
            Err(Error::Call {
                call,
                source: source @ (Errno::NOSYS | Errno::PERM | Errno::NOMEM),
            }) => {
                eprintln!("SKIPPED: {method} does not work here: {call}: {source}");
                None
            }
            Err(error) => panic!("{method}: {error}"),
        }
    }

    #[test]
    fn names_are_unique() {
        for method in Method::ALL {
            assert_eq!(Method::from_name(method.name()), Some(method));
        }
        assert_eq!(Method::from_name("udmabuf"), None);
    }

    #[test]
    fn buffers_cover_a_region_once() {
        const GIB: usize = 1 << 30;
        for size_bytes in [1, 4096, GIB - 1, GIB, GIB + 1, 3 * GIB, 16 * GIB + 4096] {
            let mut end = 0;
            for (offset, length) in pieces(size_bytes) {
                assert_eq!(offset, end, "{size_bytes}");
                assert!((1..=BUFFER_MAX_BYTES).contains(&length), "{size_bytes}");
                end += length;
            }
            assert_eq!(end, size_bytes);
        }
        assert_eq!(pieces(0).count(), 0);
    }

    #[test]
    fn every_method_pins_and_releases() {
        for method in Method::ALL {
            // More than a pipe takes, in two files, with pages left out.
            let files = [
                ordinary(&format!("pin-a-{method}"), PIPE_PAGES_MAX * 2 + 3),
                ordinary(&format!("pin-b-{method}"), 5),
            ];
            for file in &files {
                std::fs::remove_file(file.path()).unwrap();
            }
            let regions = [
                Region {
                    file: &files[0],
                    pages: 1..files[0].pages(),
                },
                Region {
                    file: &files[1],
                    pages: 0..2,
                },
                Region {
                    file: &files[1],
                    pages: 3..3,
                },
                Region {
                    file: &files[1],
                    pages: 4..5,
                },
            ];
            let Some(pinned) = pin(method, &regions) else {
                continue;
            };
            assert_eq!(pinned.method(), method);
            let expected = match method {
                Method::IoUring => 1,
                Method::Pipe => (PIPE_PAGES_MAX * 2 + 2 + 3).div_ceil(PIPE_PAGES_MAX),
            };
            assert_eq!(pinned.files.len(), expected, "{method}");
            pinned.release();
        }
    }

    #[test]
    fn a_region_outside_the_file_is_refused() {
        let file = ordinary("pin-outside", 2);
        std::fs::remove_file(file.path()).unwrap();
        for pages in [0..3, 3..3, Range { start: 2, end: 1 }] {
            let region = Region {
                file: &file,
                pages: pages.clone(),
            };
            for method in Method::ALL {
                let answer = Pin::by(method, std::slice::from_ref(&region));
                assert!(matches!(answer, Err(Error::Content { .. })), "{pages:?}");
            }
        }
    }

    #[test]
    fn nothing_to_pin_is_pinned() {
        assert!(Pin::new(&[]).unwrap().files.is_empty());
    }
}
