//! What the kernels of a chain of hand-overs say of memory, compared.
//!
//! `MemTotal` depends on the kernel, so a kernel is compared with the first of its version that a hand-over led to: a
//! page lost with each of them would be nothing from one to the next, and is found all the same.
//! The first of all is not: firmware and QEMU reserve other things than kleap does (QEMU's device tree
//! alone takes 1 MiB), and with EFI the LPI tables that it allocates are reserved from the second kernel on.
//! Both numbers are in the note.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};

/// The kernel's own early tables take a page more or less, and so does the end of its initrd, depending on where they
/// lie, and that differs from hand-over to hand-over, up and down. What is lost in earnest is 64 KiB and more at each,
/// which pages of 64 KiB hide in one hand-over, and not in several.
const TOLERANCE_PAGES: u64 = 2;

/// What one kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    kernel: String,
    mem_total_kb: u64,
    reserved_kb: u64,
    page_kb: u64,
}

impl Found {
    /// From `kernel=6.1 mem_total_kb=3000000 reserved_kb=100000 ...`.
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let value = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .with_context(|| format!("no {name} in '{line}'"))
        };
        let number = |name: &str| -> Result<u64> {
            let text = value(name)?;
            text.parse()
                .with_context(|| format!("{name} is '{text}', not a number"))
        };
        Ok(Self {
            kernel: value("kernel")?.to_owned(),
            mem_total_kb: number("mem_total_kb")?,
            reserved_kb: number("reserved_kb")?,
            page_kb: number("page_kb")?,
        })
    }
}

/// Compares every kernel that was reached by a hand-over with the first of the same version; gives a summary. Each
/// hand-over must have cost so much memory.
pub(crate) fn compare(chain: &[Found], lost_kb_per_hop: u64) -> Result<String> {
    let mut first_of: BTreeMap<&str, (usize, &Found)> = BTreeMap::new();
    let mut last_of: BTreeMap<&str, (usize, &Found)> = BTreeMap::new();
    let mut compared = 0;
    for (hop, found) in chain.iter().enumerate().skip(1) {
        last_of.insert(&found.kernel, (hop, found));
        let (earlier_hop, earlier) = *first_of.entry(&found.kernel).or_insert((hop, found));
        if earlier_hop < hop {
            let lost_kb = lost_kb_per_hop.saturating_mul((hop - earlier_hop) as u64);
            let expected_kb = earlier.mem_total_kb.saturating_sub(lost_kb);
            ensure!(
                found.mem_total_kb.abs_diff(expected_kb)
                    <= TOLERANCE_PAGES.saturating_mul(found.page_kb),
                "Linux {} has {} KiB after {hop} hand-overs and had {} KiB after {earlier_hop} \
                 (reserved {} and {} KiB), where {lost_kb} KiB should have been lost",
                found.kernel,
                found.mem_total_kb,
                earlier.mem_total_kb,
                found.reserved_kb,
                earlier.reserved_kb,
            );
            compared += 1;
        }
    }
    ensure!(compared > 0, "no kernel was met twice");
    let mut note =
        format!("MemTotal compared {compared} times: {lost_kb_per_hop} KiB lost per hop");
    if let Some(first) = chain.first()
        && let Some((hop, same)) = last_of.get(first.kernel.as_str())
    {
        let _ = write!(
            note,
            "; {} KiB in the first kernel, {} after {hop} hand-overs",
            first.mem_total_kb, same.mem_total_kb
        );
    }
    Ok(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kernel: &str, mem_total_kb: u64) -> Found {
        Found::parse(&format!(
            "kernel={kernel} mem_total_kb={mem_total_kb} reserved_kb=1 reservations=2 page_kb=4"
        ))
        .unwrap()
    }

    #[test]
    fn a_kernel_is_compared_with_itself() {
        let chain = [
            found("5.10", 90),
            found("6.1", 80),
            found("5.10", 91),
            found("6.1", 80),
            found("5.10", 91),
        ];
        let note = compare(&chain, 0).unwrap();
        assert!(note.contains("compared 2 times"), "{note}");
        assert!(
            note.contains("90 KiB in the first kernel, 91 after 4"),
            "{note}"
        );
    }

    #[test]
    fn lost_memory_is_found() {
        let chain = [found("5.10", 900), found("6.1", 800), found("6.1", 791)];
        let error = compare(&chain, 0).unwrap_err().to_string();
        assert!(
            error.contains("791 KiB after 2") && error.contains("800 KiB after 1"),
            "{error}"
        );
        assert!(compare(&chain[..2], 0).is_err(), "nothing was compared");
        for (lost_kb_per_hop, right) in [(0, false), (1, true), (17, true), (18, false)] {
            assert_eq!(compare(&chain, lost_kb_per_hop).is_ok(), right);
        }
    }

    /// A page each time, which is nothing from one to the next.
    #[test]
    fn memory_that_is_lost_slowly_is_found() {
        let chain: Vec<Found> = (0..5).map(|hop| found("5.10", 900 - 4 * hop)).collect();
        assert!(compare(&chain[..4], 0).is_ok());
        let error = compare(&chain, 0).unwrap_err().to_string();
        assert!(
            error.contains("884 KiB after 4") && error.contains("896 KiB after 1"),
            "{error}"
        );
        let up_and_down = [900, 904, 896, 904, 900, 904, 896].map(|kb| found("5.10", kb));
        assert!(compare(&up_and_down, 0).is_ok());
    }

    #[test]
    fn a_line_without_a_number_is_an_error() {
        assert!(Found::parse("kernel=5.10 mem_total_kb= reserved_kb=1 page_kb=4").is_err());
        assert!(Found::parse("kernel=5.10 reserved_kb=1 page_kb=4").is_err());
    }
}
