//! How many huge pages there are and how many are free, by size.

use std::fs;

use anyhow::{Context, Result};

/// One directory per size.
const DIRECTORY: &str = "/sys/kernel/mm/hugepages";

/// Prints a line `size_kb=... nr=... free=...` for each size.
pub(crate) fn print() -> Result<()> {
    let entries = fs::read_dir(DIRECTORY).with_context(|| {
        format!("no {DIRECTORY}: is sysfs mounted, and has the kernel hugetlb?")
    })?;
    let mut sizes = Vec::new();
    for entry in entries {
        let path = entry.context("cannot list the sizes")?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(size_kb) = name
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB"))
            .and_then(|digits| digits.parse::<u64>().ok())
        else {
            continue;
        };
        let read = |file: &str| {
            fs::read_to_string(path.join(file))
                .map(|text| text.trim().to_owned())
                .with_context(|| format!("cannot read {file} of {name}"))
        };
        sizes.push((size_kb, read("nr_hugepages")?, read("free_hugepages")?));
    }
    sizes.sort();
    for (size_kb, nr, free) in sizes {
        println!("size_kb={size_kb} nr={nr} free={free}");
    }
    Ok(())
}
