//! The failure record: where the relocator may write it, and how the next boot reads it.
//!
//! The place is a zone of the running kernel's `ramoops`. Its parameters are taken from the module, which
//! shows there what it uses wherever it has it from, the device tree included
//! (`fs/pstore/ram.c`, `ramoops_probe`), and only while pstore says that it is what is in use. Of its zones for
//! dumps the last one is taken: Linux begins with the first.

use crate::output;
use kleap_devicetree::Tree;
use kleap_linux::facts;
use kleap_memmap::{PhysAddr, PhysRange};
use kleap_plan::Layout;
use kleap_relocator::abi::RecordPlace;
use kleap_relocator::record::{self, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most bytes of a file below [`PSTORE`] that are looked at.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Most files that are looked at.
const FILES_MAX: usize = 256;
/// Where Linux shows what survived.
const PSTORE: &str = "/sys/fs/pstore";

/// `ramoops` as it is set up, sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ramoops {
    start: u64,
    size_bytes: u64,
    record_size_bytes: u64,
    /// Console, ftrace and pmsg together, behind the dumps.
    other_bytes: u64,
}

impl Ramoops {
    /// What the module uses, if it is what pstore uses, and its memory has no error correction.
    fn find(tree: &Tree) -> Option<Self> {
        let text = |path: &str| -> Option<String> {
            let bytes = facts::read_limited(Path::new(path), 4096).ok()?;
            Some(String::from_utf8(bytes).ok()?.trim().to_owned())
        };
        if text("/sys/module/pstore/parameters/backend")? != "ramoops" {
            return None;
        }
        let number = |name: &str| -> Option<u64> {
            text(&format!("/sys/module/ramoops/parameters/{name}"))?
                .parse()
                .ok()
        };
        // Error correction that the device tree asks for is not shown by the module.
        let in_tree = tree.reserved_memory().unwrap_or_default();
        let is_corrected_by_tree = in_tree.iter().any(|reserved| {
            let path = format!("/reserved-memory/{}", reserved.name);
            tree.property(&path, "ecc-size")
                .is_some_and(|value| value.iter().any(|byte| *byte != 0))
        });
        if number("ecc")? != 0 || is_corrected_by_tree {
            return None;
        }
        let parts = ["console_size", "ftrace_size", "pmsg_size"];
        let mut other_bytes = 0_u64;
        for part in parts {
            other_bytes = other_bytes.checked_add(number(part)?)?;
        }
        Some(Self {
            start: number("mem_address")?,
            size_bytes: number("mem_size")?,
            record_size_bytes: number("record_size")?,
            other_bytes,
        })
    }

    /// The last zone for dumps (`ramoops_init_przs`) that begins with a whole word: where the sizes do not divide
    /// evenly, Linux makes the zones larger, to the byte.
    fn last_dump_zone(&self) -> Option<RecordPlace> {
        let dumps_bytes = self.size_bytes.checked_sub(self.other_bytes)?;
        let count = dumps_bytes.checked_div(self.record_size_bytes)?;
        let zone_bytes = dumps_bytes.checked_div(count)?;
        if self.start == 0 || zone_bytes < record::MAX_BYTES as u64 {
            return None;
        }
        // One of eight in a row is where the first one is, modulo 8.
        (0..count).rev().take(8).find_map(|index| {
            let start = self.start.checked_add(zone_bytes.checked_mul(index)?)?;
            start.checked_add(zone_bytes)?;
            start.is_multiple_of(8).then_some(RecordPlace {
                start,
                size_bytes: zone_bytes,
            })
        })
    }
}

/// Where the relocator may write a record: nothing that Linux may use for anything else, nothing that the
/// hand-over touches, and the units around it neither, because it is mapped in units.
pub(crate) fn place(
    tree: &Tree,
    memory: &crate::machine::Memory,
    layout: &Layout,
) -> Option<RecordPlace> {
    let zone = Ramoops::find(tree)?.last_dump_zone()?;
    let range = PhysRange::from_size(PhysAddr::new(zone.start), zone.size_bytes).ok()?;
    let mapped = range.align_outward(facts::page_size_bytes())?;
    let is_in_the_way = layout
        .places()
        .map(|place| place.target)
        .chain([layout.stage])
        .chain(layout.owned().map(|part| part.range()))
        .any(|used| used.start() < mapped.end() && mapped.start() < used.end());
    if memory.plain.overlaps(range) || is_in_the_way {
        output::warn(&format!(
            "warning: ramoops has {range}, which is not reserved or which the hand-over needs: should it fail, \
             no record is left there"
        ));
        return None;
    }
    Some(zone)
}

/// A record, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LastFailure {
    /// Why, as it was printed.
    pub(crate) reason: String,
    /// Phase, class and values, by name.
    pub(crate) values: BTreeMap<String, String>,
    /// The file that has it.
    pub(crate) file: PathBuf,
}

impl LastFailure {
    fn new(record: Record<'_>, file: PathBuf) -> Self {
        Self {
            reason: record.reason().to_owned(),
            values: record
                .values()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            file,
        }
    }

    /// What pstore shows; `None` if it has no record, or is not mounted.
    pub(crate) fn find() -> Option<Self> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(PSTORE)
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .take(FILES_MAX)
            .collect();
        files.sort();
        files.into_iter().rev().find_map(|file| {
            let bytes = facts::read_limited(&file, FILE_MAX_BYTES).ok()?;
            record::parse(&bytes).map(|record| Self::new(record, file))
        })
    }

    /// One sentence, and where it is from.
    pub(crate) fn text(&self, is_last: bool) -> String {
        format!(
            "{} hand-over failed because of this: {} (phase: {}; {})",
            if is_last { "the last" } else { "an earlier" },
            self.reason,
            self.values.get("phase").map_or("unknown", String::as_str),
            self.file.display()
        )
    }
}

/// The last zone for dumps of such a ramoops, sizes in bytes: address and size. For the fuzzer.
#[cfg(feature = "fuzzing")]
pub(crate) fn last_dump_zone(
    start: u64,
    size_bytes: u64,
    record_size_bytes: u64,
    other_bytes: u64,
) -> Option<(u64, u64)> {
    let ramoops = Ramoops {
        start,
        size_bytes,
        record_size_bytes,
        other_bytes,
    };
    let zone = ramoops.last_dump_zone()?;
    Some((zone.start, zone.size_bytes))
}

/// What is said of a record. For the fuzzer.
#[cfg(feature = "fuzzing")]
pub(crate) fn said_of(record: &Record<'_>) -> String {
    LastFailure::new(*record, PathBuf::from("/sys/fs/pstore/dmesg-ramoops-0")).text(true)
}

/// How a record could be seen, where it cannot.
pub(crate) fn hint() -> Option<&'static str> {
    let is_empty = std::fs::read_dir(PSTORE).is_ok_and(|mut entries| entries.next().is_none());
    is_empty.then_some(
        "there is no failure record either: one is seen where ramoops is set up in both boots and pstore is mounted \
         (mount -t pstore pstore /sys/fs/pstore); systemd-pstore moves it to /var/lib/systemd/pstore",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_zone_is_the_kernels_last_zone() {
        let ramoops = Ramoops {
            start: 0xbf80_0000,
            size_bytes: 0x10_0000,
            record_size_bytes: 0x2_0000,
            other_bytes: 0x2_0000 * 2,
        };
        // Six zones, and then the others.
        let zone = ramoops.last_dump_zone().unwrap();
        assert_eq!((zone.start, zone.size_bytes), (0xbf8a_0000, 0x2_0000));
        // As the module has it by default beside these sizes: 7 of 148041 bytes, of which only the first begins
        // with a word.
        let uneven = Ramoops {
            other_bytes: 3 * 0x1000,
            ..ramoops
        };
        let zone = uneven.last_dump_zone().unwrap();
        assert_eq!((zone.start, zone.size_bytes), (0xbf80_0000, 148_041));
    }

    #[test]
    fn what_cannot_be_is_no_place() {
        let good = Ramoops {
            start: 0xbf80_0000,
            size_bytes: 0x1_0000,
            record_size_bytes: 0x1000,
            other_bytes: 0,
        };
        assert!(good.last_dump_zone().is_some());
        for bad in [
            Ramoops { start: 0, ..good },
            Ramoops { start: 4, ..good },
            Ramoops {
                start: u64::MAX - 7,
                ..good
            },
            Ramoops {
                size_bytes: 0,
                ..good
            },
            Ramoops {
                record_size_bytes: 0,
                ..good
            },
            Ramoops {
                record_size_bytes: 0x2_0000,
                ..good
            },
            Ramoops {
                record_size_bytes: 8,
                ..good
            },
            Ramoops {
                other_bytes: u64::MAX,
                ..good
            },
        ] {
            assert_eq!(bad.last_dump_zone(), None, "{bad:?}");
        }
    }
}
