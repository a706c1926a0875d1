//! From single huge pages to stretches of memory.
//!
//! Linux hands out huge pages one by one and in no order. An Image needs many of them in a row, so
//! the placement wants the longest physically contiguous runs. This is a sort and one pass; what
//! makes it a module is what it refuses. A physical address that is not a multiple of the page size,
//! or that two pages claim, means that the reading of `/proc/self/pagemap` went wrong, and memory
//! that we only believe to own must not be written.

use alloc::vec::Vec;

use crate::address::{PhysAddr, PhysRange};

/// Why a list of pages is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunsError {
    /// The page size is not a power of two.
    #[error(
        "page size of {page_size_bytes:#x} bytes is not a power of two; check the huge page size asked for"
    )]
    PageSize {
        /// Size asked for, bytes.
        page_size_bytes: u64,
    },
    /// A page does not start at a multiple of the page size.
    #[error(
        "page at {page} is not a multiple of its size, {page_size_bytes:#x} bytes; the pages were not huge pages of that size: free them and load again"
    )]
    Misaligned {
        /// Address of the page.
        page: PhysAddr,
        /// Size of a page, bytes.
        page_size_bytes: u64,
    },
    /// Two pages have the same address.
    #[error(
        "page at {page} is listed twice; pages moved while their addresses were read: pin them first, then load again"
    )]
    Duplicate {
        /// Address of both pages.
        page: PhysAddr,
    },
    /// A page runs over the end of the address space.
    #[error("page of {page_size_bytes:#x} bytes at {page} runs over the end of the address space")]
    Overflow {
        /// Address of the page.
        page: PhysAddr,
        /// Size of a page, bytes.
        page_size_bytes: u64,
    },
}

/// The maximal physically contiguous runs that `pages`, in any order and each of `page_size_bytes`
/// bytes, make up; from the lowest address to the highest.
///
/// # Errors
/// [`RunsError`] if the page size is not a power of two, or if a page is misaligned, listed twice,
/// or runs over the end of the address space.
pub fn contiguous_runs(
    pages: &[PhysAddr],
    page_size_bytes: u64,
) -> Result<Vec<PhysRange>, RunsError> {
    if !page_size_bytes.is_power_of_two() {
        return Err(RunsError::PageSize { page_size_bytes });
    }
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();

    let mut runs = Vec::new();
    let mut current: Option<PhysRange> = None;
    for &page in &sorted {
        if !page.is_aligned(page_size_bytes) {
            return Err(RunsError::Misaligned {
                page,
                page_size_bytes,
            });
        }
        let range =
            PhysRange::from_size(page, page_size_bytes).map_err(|_| RunsError::Overflow {
                page,
                page_size_bytes,
            })?;
        current = match current {
            // Sorted and aligned: a page that starts below the end of the run is its last page.
            Some(run) if page < run.end() => return Err(RunsError::Duplicate { page }),
            Some(run) if page == run.end() => PhysRange::new(run.start(), range.end()).ok(),
            finished => {
                runs.extend(finished);
                Some(range)
            }
        };
    }
    runs.extend(current);
    Ok(runs)
}
