//! `/proc/iomem`.

use kleap_memmap::PhysAddr;
use kleap_memmap::iomem::{self, Entry, IomemError, SYSTEM_RAM};
use kleap_plan::kexec_cost::linear_map_ranges;
use std::fmt::Write as _;

/// Most entries whose edges are asked about one by one.
const EDGES_MAX: usize = 12;

/// The text that Linux would print for these entries.
fn printed(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let range = entry.range();
        let (start, end) = (range.start().as_u64(), range.end().as_u64());
        let last = end.saturating_sub(1).max(start);
        let indent = 2 * entry.depth();
        let _ = writeln!(
            text,
            "{:indent$}{start:08x}-{last:08x} : {}",
            "",
            entry.label()
        );
    }
    text
}

fn covers(entry: &Entry, address: u64) -> bool {
    let range = entry.range();
    range.start().as_u64() <= address && address < range.end().as_u64()
}

/// Whether an entry lies in System RAM, by its chain of parents.
fn claimed(entries: &[Entry]) -> Vec<bool> {
    let mut parents: Vec<&Entry> = Vec::new();
    entries
        .iter()
        .map(|entry| {
            parents.truncate(entry.depth());
            let claimed = parents.iter().any(|parent| parent.label() == SYSTEM_RAM);
            parents.push(entry);
            claimed
        })
        .collect()
}

/// Reads the text; what is printed from it reads the same, and each address near an edge is in the sets exactly
/// where the entries, looked at one by one, say so.
pub fn run(data: &[u8]) {
    let entries = match iomem::parse(data) {
        Ok(entries) => entries,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    match iomem::parse(printed(&entries).as_bytes()) {
        Ok(again) => assert_eq!(again, entries),
        // Bytes that are no UTF-8 take three each when they are printed.
        Err(IomemError::LineTooLong { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let (ram, plain) = (
        iomem::system_ram(&entries),
        iomem::plain_system_ram(&entries),
    );
    assert!(
        plain.difference(&ram).is_empty(),
        "{plain} is not all in {ram}"
    );
    assert!(ram.difference(&linear_map_ranges(&entries)).is_empty());
    let claimed = claimed(&entries);
    for edge in entries.iter().take(EDGES_MAX) {
        let (start, end) = (edge.range().start().as_u64(), edge.range().end().as_u64());
        for address in [start.saturating_sub(1), start, end.saturating_sub(1), end] {
            let in_ram = entries
                .iter()
                .any(|entry| entry.label() == SYSTEM_RAM && covers(entry, address));
            let in_claimed = entries
                .iter()
                .zip(&claimed)
                .any(|(entry, claimed)| *claimed && covers(entry, address));
            assert_eq!(
                ram.contains(PhysAddr::new(address)),
                in_ram,
                "{address:#x} in {ram}"
            );
            assert_eq!(
                plain.contains(PhysAddr::new(address)),
                in_ram && !in_claimed,
                "{address:#x} in {plain}"
            );
        }
    }
}
