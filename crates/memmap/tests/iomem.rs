//! `/proc/iomem`: the shapes that arm64 machines show, and everything that must be refused.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kleap_memmap::iomem::{
    self, Entry, IomemError, MAX_DEPTH, MAX_ENTRIES, MAX_FILE_BYTES, MAX_LINE_BYTES,
};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// QEMU `virt`, booted from a device tree.
const QEMU_DEVICE_TREE: &str = include_str!("iomem/qemu-virt-dt.txt");
/// A server booted by UEFI: many reserved children, a crash kernel, a top-level `reserved`.
const EFI_SERVER: &str = include_str!("iomem/efi-server.txt");
/// A guest with memory that came after boot.
const HOTPLUG_GUEST: &str = include_str!("iomem/hotplug-guest.txt");

fn parse(text: &str) -> Result<Vec<Entry>, IomemError> {
    iomem::parse(text.as_bytes())
}

/// A set from inclusive bounds, as the file prints them.
fn set(bounds: &[(u64, u64)]) -> PhysRanges {
    bounds
        .iter()
        .map(|&(start, last)| {
            PhysRange::new(PhysAddr::new(start), PhysAddr::new(last + 1)).unwrap()
        })
        .collect()
}

#[test]
fn qemu_device_tree_boot() {
    let entries = parse(QEMU_DEVICE_TREE).unwrap();
    assert_eq!(entries.len(), QEMU_DEVICE_TREE.lines().count());
    assert_eq!(
        iomem::system_ram(&entries),
        set(&[(0x4000_0000, 0xbfff_ffff)])
    );
    assert_eq!(
        iomem::plain_system_ram(&entries),
        set(&[
            (0x4000_0000, 0x401f_ffff),
            (0x4310_0000, 0x47ff_ffff),
            (0x4810_0000, 0xba5f_ffff),
            (0xbe60_0000, 0xbf5f_ffff),
            (0xbf80_0000, 0xbf9f_efff),
            (0xbfa0_0000, 0xbfa0_2fff),
        ])
    );
}

#[test]
fn efi_boot_with_reserved_children() {
    let entries = parse(EFI_SERVER).unwrap();
    assert_eq!(
        iomem::system_ram(&entries),
        set(&[
            (0x8000_0000, 0xfbfe_ffff),
            (0xfc00_0000, 0xffff_ffff),
            (0x80_0000_0000, 0x9f_ffff_ffff)
        ])
    );
    let plain = iomem::plain_system_ram(&entries);
    // The reserved memory at the top level was never System RAM; nested memory no longer is.
    for (start, last) in [
        (0xfbff_0000, 0xfbff_ffff),
        (0x8100_0000, 0x8100_0fff),
        (0xbde0_0000, 0xdddf_ffff),
    ] {
        for range in &set(&[(start, last)]) {
            assert!(!plain.overlaps(*range), "{range} is claimed");
        }
    }
    assert_eq!(
        iomem::labelled(&entries, "Crash kernel"),
        set(&[(0xbde0_0000, 0xdddf_ffff)])
    );
    assert_eq!(
        plain.size_bytes(),
        iomem::system_ram(&entries).size_bytes() - nested_bytes(&entries)
    );
}

/// Bytes of the direct children of System RAM, which are disjoint.
fn nested_bytes(entries: &[Entry]) -> u64 {
    let mut in_ram = false;
    let mut total = 0;
    for entry in entries {
        match entry.depth() {
            0 => in_ram = entry.label() == iomem::SYSTEM_RAM,
            1 if in_ram => total += entry.range().size_bytes(),
            _ => {}
        }
    }
    total
}

#[test]
fn memory_that_came_later_is_not_plain() {
    let entries = parse(HOTPLUG_GUEST).unwrap();
    assert_eq!(
        iomem::system_ram(&entries),
        set(&[(0x4000_0000, 0x7fff_ffff)])
    );
    assert!(
        entries
            .iter()
            .any(|entry| entry.label() == "System RAM (virtio_mem)")
    );
    assert!(
        entries
            .iter()
            .any(|entry| entry.label() == "System RAM (kmem)")
    );
    assert!(iomem::plain_system_ram(&entries).span().unwrap().end() <= PhysAddr::new(0x8000_0000));
}

#[test]
fn nesting_below_the_first_level_is_claimed_once() {
    let text = "\
0000-ffff : System RAM
  1000-2fff : reserved
    1800-1fff : deeper
  3000-3fff : System RAM
10000-1ffff : Window
  10000-17fff : System RAM
    10000-10fff : reserved
  18000-18fff : Device
";
    let entries = parse(text).unwrap();
    assert_eq!(
        iomem::plain_system_ram(&entries),
        set(&[(0, 0xfff), (0x4000, 0xffff), (0x1_1000, 0x1_7fff)])
    );
}

#[test]
fn hidden_addresses_have_their_own_error() {
    let hidden: String = QEMU_DEVICE_TREE
        .lines()
        .map(|line| {
            let depth = line.len() - line.trim_start().len();
            let label = line.split_once(" : ").unwrap().1;
            format!("{:depth$}00000000-00000000 : {label}\n", "")
        })
        .collect();
    assert_eq!(parse(&hidden), Err(IomemError::AddressesHidden));
    assert!(
        IomemError::AddressesHidden
            .to_string()
            .contains("CAP_SYS_ADMIN")
    );
    // One byte at 0 among other entries hides nothing.
    assert!(parse("00000000-00000000 : a\n00000001-00000001 : b\n").is_ok());
}

#[test]
fn the_last_byte_of_the_address_space_is_given_up() {
    let entries = parse(
        "8000000000000000-ffffffffffffffff : Bus\n  ffffffffffffffff-ffffffffffffffff : Last\n",
    )
    .unwrap();
    assert_eq!(entries[0].range().end(), PhysAddr::new(u64::MAX));
    assert!(entries[1].range().is_empty());
}

#[test]
fn no_line_end_at_the_end_and_no_text_at_all() {
    assert_eq!(parse("0-1 : a"), parse("0-1 : a\n"));
    assert_eq!(parse(""), Ok(vec![]));
    assert_eq!(parse("\n"), Ok(vec![]));
}

#[test]
fn malformed_lines_name_their_number() {
    let cases = [
        ("\n\n", 2),
        ("g-1 : a", 2),
        ("-1 : a", 2),
        ("+1-2 : a", 2),
        ("0x1-2 : a", 2),
        ("1 : a", 2),
        ("1-: a", 2),
        ("1-2: a", 2),
        ("1-2 :a", 2),
        ("1-2", 2),
        (" 1-2 : a", 2),
        ("\t1-2 : a", 2),
        ("00000000000000000-1 : a", 2),
        ("0-10000000000000000 : a", 2),
        ("2-3 : a\nx", 3),
    ];
    for (text, line) in cases {
        let text = format!("0-ff : first\n{text}");
        let error = parse(&text).unwrap_err();
        assert!(
            matches!(error, IomemError::Malformed { line: at, .. } if at == line),
            "{text:?}: {error}"
        );
        assert!(
            error.to_string().contains(&format!("line {line}")),
            "{error}"
        );
    }
}

#[test]
fn impossible_trees_are_refused() {
    assert_eq!(
        parse("2-1 : a"),
        Err(IomemError::Reversed {
            line: 1,
            start: 2,
            end: 1
        })
    );
    assert_eq!(
        parse("  0-1 : a"),
        Err(IomemError::TooDeep {
            line: 1,
            depth: 1,
            allowed: 0
        })
    );
    assert_eq!(
        parse("0-9 : a\n    0-1 : b"),
        Err(IomemError::TooDeep {
            line: 2,
            depth: 2,
            allowed: 1
        })
    );
    assert!(matches!(
        parse("0-9 : a\n  5-a : b"),
        Err(IomemError::OutsideParent { line: 2, .. })
    ));
}

#[test]
fn limits_hold_at_their_edges() {
    let nested = |deepest: usize| -> String {
        (0..=deepest)
            .map(|depth| format!("{:1$}0-9 : a\n", "", 2 * depth))
            .collect()
    };
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(
        parse(&nested(MAX_DEPTH + 1)),
        Err(IomemError::TooDeep {
            line: MAX_DEPTH + 2,
            depth: MAX_DEPTH + 1,
            allowed: MAX_DEPTH
        })
    );

    let long = |size: usize| format!("0-9 : {}", "a".repeat(size - "0-9 : ".len()));
    assert!(parse(&long(MAX_LINE_BYTES)).is_ok());
    let size_bytes = MAX_LINE_BYTES + 1;
    assert_eq!(
        parse(&long(size_bytes)),
        Err(IomemError::LineTooLong {
            line: 1,
            size_bytes
        })
    );

    let many = |count: usize| "0-9 : a\n".repeat(count);
    assert_eq!(
        parse(&many(MAX_ENTRIES)).map(|entries| entries.len()),
        Ok(MAX_ENTRIES)
    );
    assert_eq!(
        parse(&many(MAX_ENTRIES + 1)),
        Err(IomemError::TooManyEntries {
            line: MAX_ENTRIES + 1
        })
    );

    let size_bytes = MAX_FILE_BYTES + 1;
    assert_eq!(
        iomem::parse(&vec![b'a'; size_bytes]),
        Err(IomemError::FileTooLarge { size_bytes })
    );
}

#[test]
fn labels_are_kept_as_far_as_they_are_text() {
    let entries = iomem::parse(b"0-9 : 9000000.pl011 : pl\xff011\n").unwrap();
    assert_eq!(entries[0].label(), "9000000.pl011 : pl\u{fffd}011");
}

/// Text made of the pieces of real lines, which gets further into the reader than random bytes.
fn nearly_iomem() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\n".to_vec()),
        4 => Just(b" : ".to_vec()),
        4 => Just(b"-".to_vec()),
        4 => Just(b"  ".to_vec()),
        4 => any::<u16>().prop_map(|number| format!("{number:x}").into_bytes()),
        1 => any::<u64>().prop_map(|number| format!("{number:016x}").into_bytes()),
        2 => Just(b"System RAM".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// A well-formed file: numbers in any relation, at depths that have a parent.
fn lines() -> impl Strategy<Value = String> {
    let line = (0_usize..4, 0_u64..32, 0_u64..8, prop::bool::ANY);
    prop::collection::vec(line, 0..20).prop_map(|lines| {
        let mut stack: Vec<(u64, u64)> = Vec::new();
        let mut text = String::new();
        for (depth, start, size, ram) in lines {
            stack.truncate(depth);
            let (low, high) = stack.last().copied().unwrap_or((0, 64));
            let start = (low + start).min(high);
            let last = (start + size).min(high);
            let label = if ram { "System RAM" } else { "reserved" };
            text += &format!(
                "{:1$}{start:08x}-{last:08x} : {label}\n",
                "",
                2 * stack.len()
            );
            stack.push((start, last));
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn never_panics_on_arbitrary_bytes(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = iomem::parse(&text);
    }

    #[test]
    fn never_panics_on_nearly_right_text(text in nearly_iomem()) {
        if let Ok(entries) = iomem::parse(&text) {
            let plain = iomem::plain_system_ram(&entries);
            prop_assert_eq!(plain.difference(&iomem::system_ram(&entries)), PhysRanges::new());
        }
    }

    /// An address is plain if a System RAM entry holds it and nothing nested in one does.
    #[test]
    fn plain_ram_address_by_address(text in lines()) {
        let Ok(entries) = parse(&text) else { return Ok(()) };
        let plain = iomem::plain_system_ram(&entries);
        for address in (0..=65).map(PhysAddr::new) {
            let mut in_ram = false;
            let mut claimed = false;
            let mut chain: Vec<&Entry> = Vec::new();
            for entry in &entries {
                chain.truncate(entry.depth());
                if entry.range().contains(address) {
                    in_ram |= entry.label() == "System RAM";
                    claimed |= chain.iter().any(|parent| parent.label() == "System RAM");
                }
                chain.push(entry);
            }
            prop_assert_eq!(plain.contains(address), in_ram && !claimed, "at {} of\n{}", address, text);
        }
    }
}
