//! What the kernel keeps of free memory for its own good, and what it lets itself be told about it.
//!
//! Two of its habits are in the way of a pool of huge pages that grows. It raises its reserves where memory is
//! fragmented, and what is below them is given to nobody. And each CPU keeps what it has freed on lists of its own:
//! since Linux 6.7, whose lists grow by themselves, a good part of what is free can lie there, whole huge pages
//! included, where neither `MemAvailable` nor whoever makes a pool larger on another CPU finds it. Both can be set in
//! `/proc/sys/vm` for as long as it takes.
//!
//! Rejected: taking CPUs offline, which does empty their lists; looking for the pages from each CPU in turn, which
//! finds what that one keeps and nothing that has to be merged with another's.

use crate::{Error, hugepages};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "/proc/sys/vm";
/// Reading it has each CPU count its pages, and since Linux 6.7 give back some of those that it keeps
/// (`refresh_cpu_vm_stats`, `decay_pcp_high` in mm/).
const REFRESH_PATH: &str = "/proc/sys/vm/stat_refresh";
/// Each time an eighth of what a list may hold, and at most 32 batches (8 MB with 4 KiB pages): after so many, half a
/// gigabyte of each CPU.
const REFRESHES_MAX: u32 = 64;
/// After this, none is begun. Each waits for a kernel thread on every CPU, as long as that takes.
const REFRESH_WAIT: Duration = Duration::from_millis(200);
/// CPUs that the kernel leaves alone, because they have something of their own to do: since the boot, and by a cpuset.
const LEFT_ALONE_PATHS: [&str; 3] = [
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/sys/fs/cgroup/cpuset.cpus.isolated",
];
/// How much of each second threads of real time may take, microseconds; -1 if all of it: then one that never sleeps leaves
/// nothing to the kernel's own threads.
const REAL_TIME_PATH: &str = "/proc/sys/kernel/sched_rt_runtime_us";

/// A setting in `/proc/sys/vm` (Documentation/admin-guide/sysctl/vm.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunable {
    /// `watermark_boost_factor`, in 1/10000 of the high watermark, from Linux 5.0: by how much the reserves are raised
    /// when pages are taken from blocks of memory of another kind. They can become a tenth of memory; where nothing
    /// can be reclaimed, the kernel ends processes with hundreds of megabytes free, and never lowers them (it does that
    /// in `balance_pgdat`, mm/vmscan.c, and gives that up after sixteen failures).
    WatermarkBoostFactor,
    /// `percpu_pagelist_high_fraction`, from Linux 5.14: CPUs keep one part in so many of a zone, all of them
    /// together; 0 if the kernel decides. What is freed beyond that goes back at once.
    PercpuPagelistHighFraction,
}

impl Tunable {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::WatermarkBoostFactor, Self::PercpuPagelistHighFraction];

    /// As `sysctl` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WatermarkBoostFactor => "vm.watermark_boost_factor",
            Self::PercpuPagelistHighFraction => "vm.percpu_pagelist_high_fraction",
        }
    }

    /// What it is to be while a pool grows: no reserves are raised, and a CPU keeps the least that it can (four batches,
    /// `zone_highsize` in mm/page_alloc.c).
    #[must_use]
    pub const fn while_growing(self) -> u64 {
        match self {
            Self::WatermarkBoostFactor => 0,
            Self::PercpuPagelistHighFraction => i32::MAX as u64,
        }
    }

    fn path(self) -> PathBuf {
        let name = self.name();
        Path::new(DIRECTORY).join(name.strip_prefix("vm.").unwrap_or(name))
    }

    /// What it is; `None` where the kernel does not have it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn get(self) -> Result<Option<u64>, Error> {
        match hugepages::read_count(&self.path()) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.file_error_kind() == Some(ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn set(self, value: u64) -> Result<(), Error> {
        hugepages::write_count(&self.path(), value)
    }
}

/// Has every CPU give back the free memory that it keeps, as far as the kernel does that before it is needed.
/// With [`Tunable::PercpuPagelistHighFraction`] at what it is while a pool grows, from Linux 6.7 on, that is nearly all.
///
/// Each CPU is asked and waited for, without a limit of time. One that the kernel has been told to leave alone could be
/// running one thread that gives way to nothing, and any CPU could where threads of real time may take all of it: there
/// none is asked.
pub fn empty_cpu_lists() {
    let is_left_alone = LEFT_ALONE_PATHS
        .iter()
        .any(|path| std::fs::read_to_string(path).is_ok_and(|text| names_cpus(&text)));
    let is_unlimited =
        std::fs::read_to_string(REAL_TIME_PATH).is_ok_and(|text| text.trim() == "-1");
    if is_left_alone || is_unlimited {
        return;
    }
    let began = Instant::now();
    for _ in 0..REFRESHES_MAX {
        if began.elapsed() > REFRESH_WAIT || std::fs::read(REFRESH_PATH).is_err() {
            break;
        }
    }
}

/// Whether a list of CPUs in sysfs has any: `3-5,7` has, an empty line and ` (null)` have not.
#[must_use]
fn names_cpus(text: &str) -> bool {
    text.contains(|character: char| character.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        for text in ["0\n", "3-5,7\n", "64-127\n"] {
            assert!(names_cpus(text), "{text:?}");
        }
        // Of `isolated` and of `nohz_full` without any.
        for text in ["", "\n", " (null)\n", "(null)\n"] {
            assert!(!names_cpus(text), "{text:?}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(
            Tunable::ALL.map(Tunable::path),
            [
                Path::new("/proc/sys/vm/watermark_boost_factor"),
                Path::new("/proc/sys/vm/percpu_pagelist_high_fraction"),
            ]
        );
    }
}
