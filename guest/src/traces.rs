//! What a command that is over must have left behind: nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::command::KLEAP;

/// Where huge pages are counted, one directory for each size.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";
/// What the command keeps while something is loaded.
const STORE: &str = "/dev/kleap";

/// What the process that keeps pages pinned calls itself.
const HOLDER: &[u8] = b"@kleap";

/// Everything that a load changes, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Traces {
    /// For each size: its directory's name, and pages in the pool, free, surplus, reserved.
    huge_pages: Vec<(String, [u64; 4])>,
    /// What the kernel raises its reserves by (`vm.watermark_boost_factor`), where it has that.
    boost_factor: Option<String>,
    /// What single CPUs may keep for themselves (`vm.percpu_pagelist_high_fraction`), likewise.
    high_fraction: Option<String>,
    /// Whether the kernel has something to kexec.
    kexec_loaded: String,
    /// What is below `/dev/kleap`; nothing is there while nothing is loaded.
    store: Vec<String>,
    /// Mounted hugetlbfs, as `/proc/mounts` has them.
    mounts: Vec<String>,
    /// Processes of the command: number and name.
    processes: Vec<String>,
}

impl Traces {
    /// Looks.
    pub(crate) fn now() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        Ok(Self {
            huge_pages: huge_pages()?,
            boost_factor: fs::read_to_string("/proc/sys/vm/watermark_boost_factor").ok(),
            high_fraction: fs::read_to_string("/proc/sys/vm/percpu_pagelist_high_fraction").ok(),
            kexec_loaded: fs::read_to_string("/sys/kernel/kexec_loaded")
                .or_else(|_| fs::read_to_string("/sys/kernel/kexec/loaded"))
                .context("the kernel does not say what is loaded")?
                .trim()
                .to_owned(),
            store: files_below(Path::new(STORE)),
            mounts: mounts
                .lines()
                .filter(|line| line.split(' ').nth(2) == Some("hugetlbfs"))
                .map(str::to_owned)
                .collect(),
            processes: processes()?,
        })
    }

    /// Says in what it differs from how it was before.
    pub(crate) fn compare(&self, before: &Self) -> Result<()> {
        ensure!(
            self == before,
            "not as before: {}, before: {}",
            serde_json::to_string(self)?,
            serde_json::to_string(before)?
        );
        Ok(())
    }

    /// Huge pages of all sizes together, bytes.
    pub(crate) fn huge_page_bytes(&self) -> u64 {
        self.huge_pages
            .iter()
            .filter_map(|(name, [total, ..])| {
                let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
                Some(kilobytes.parse::<u64>().ok()? * 1024 * total)
            })
            .sum()
    }
}

fn huge_pages() -> Result<Vec<(String, [u64; 4])>> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(HUGE_PAGES).with_context(|| format!("cannot list {HUGE_PAGES}"))? {
        let path = entry.context("cannot list the sizes")?.path();
        let read = |name: &str| -> Result<u64> {
            let path = path.join(name);
            fs::read_to_string(&path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .with_context(|| format!("{} is no number", path.display()))
        };
        let counts = [
            read("nr_hugepages")?,
            read("free_hugepages")?,
            read("surplus_hugepages")?,
            read("resv_hugepages")?,
        ];
        let name = path.file_name().unwrap_or_default();
        sizes.push((name.to_string_lossy().into_owned(), counts));
    }
    sizes.sort();
    Ok(sizes)
}

fn files_below(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    if directory.exists() {
        names.push(directory.display().to_string());
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            names.extend(files_below(&path));
        } else {
            names.push(path.display().to_string());
        }
    }
    names.sort();
    names
}

/// Live processes of the command, by their name or by what they call themselves.
fn processes() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")
        .context("cannot list /proc")?
        .flatten()
    {
        let number = entry.file_name().to_string_lossy().into_owned();
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // One that ended meanwhile is none.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((name, state)) = parse_stat(&stat) else {
            continue;
        };
        let own_name = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_zombie = state == 'Z' || state == 'X';
        if (name == KLEAP || own_name.starts_with(HOLDER)) && !is_zombie {
            found.push(format!("{number} {name}"));
        }
    }
    found.sort();
    Ok(found)
}

/// Name and state of `/proc/PID/stat`. The name stands in parentheses and may have some itself.
fn parse_stat(stat: &str) -> Option<(&str, char)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name, rest.trim_start().chars().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses() {
        assert_eq!(parse_stat("12 (a) b) S 1 2"), Some(("a) b", 'S')));
        assert_eq!(parse_stat("nonsense"), None);
    }
}
