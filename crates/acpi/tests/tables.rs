//! Real tables, tables made for the test, and tables that are broken in every way.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test stops at the first surprise; one range is what is meant"
)]

use kleap_acpi::{
    Conduit, Console, ConsoleKind, Error, MAX_REDISTRIBUTORS, MAX_TABLE_BYTES, console, psci,
    redistributors,
};
use kleap_memmap::{PhysAddr, PhysRange};
use proptest::prelude::*;

const APIC: &[u8] = include_bytes!("fixtures/gicv3-2cpus.APIC");
const APIC_GICV2: &[u8] = include_bytes!("fixtures/gicv2-2cpus.APIC");
const APIC_130_CPUS: &[u8] = include_bytes!("fixtures/gicv3-130cpus.APIC");
const SPCR: &[u8] = include_bytes!("fixtures/gicv3-2cpus.SPCR");
const FACP: &[u8] = include_bytes!("fixtures/gicv3-2cpus.FACP");

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// What all three readers say, for any bytes.
fn read(table: &[u8]) -> String {
    format!("{:?}", (console(table), psci(table), redistributors(table)))
}

/// Makes length and checksum right again.
fn repaired(mut table: Vec<u8>) -> Vec<u8> {
    if table.len() >= 36 {
        let length = u32::try_from(table.len()).unwrap();
        table[4..8].copy_from_slice(&length.to_le_bytes());
        table[9] = 0;
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
    }
    table
}

/// A MADT with these structures.
fn madt(structures: &[Vec<u8>]) -> Vec<u8> {
    repaired([&APIC[..44], &structures.concat()].concat())
}

fn gicc(flags: u32, redistributor: u64, length: u8) -> Vec<u8> {
    let mut structure = vec![0; usize::from(length)];
    structure[..2].copy_from_slice(&[11, length]);
    structure[12..16].copy_from_slice(&flags.to_le_bytes());
    structure[60..68].copy_from_slice(&redistributor.to_le_bytes());
    structure
}

fn gicr(address: u64, size_bytes: u32) -> Vec<u8> {
    let mut structure = vec![14, 16, 0, 0];
    structure.extend(address.to_le_bytes());
    structure.extend(size_bytes.to_le_bytes());
    structure
}

/// The SPCR with an interface type, an address space and an access size.
fn spcr(revision: u8, interface: u8, space: u8, access_size: u8) -> Vec<u8> {
    let mut table = SPCR.to_vec();
    (table[8], table[36], table[40], table[43]) = (revision, interface, space, access_size);
    repaired(table)
}

#[test]
fn the_machines_that_the_tables_come_from() {
    assert_eq!(redistributors(APIC), Ok(vec![range(0x80a_0000, 0xf6_0000)]));
    assert_eq!(redistributors(APIC_GICV2), Ok(vec![]));
    assert_eq!(
        redistributors(APIC_130_CPUS),
        Ok(vec![
            range(0x80a_0000, 0xf6_0000),
            range(0x40_0000_0000, 0x400_0000)
        ])
    );
    assert_eq!(
        console(SPCR),
        Ok(Some(Console {
            kind: ConsoleKind::Pl011,
            base: PhysAddr::new(0x900_0000)
        }))
    );
    // The machine has neither EL2 nor EL3: QEMU itself answers HVC.
    assert_eq!(psci(FACP), Ok(Some(Conduit::Hvc)));
}

#[test]
fn every_truncation_is_refused() {
    for table in [APIC, APIC_GICV2, SPCR, FACP] {
        for length in 0..table.len() {
            let cut = &table[..length];
            assert!(console(cut).is_err(), "{length}");
            assert!(psci(cut).is_err(), "{length}");
            assert!(redistributors(cut).is_err(), "{length}");
        }
    }
}

#[test]
fn every_changed_byte_is_refused() {
    for table in [APIC, APIC_GICV2, SPCR, FACP] {
        for offset in 0..table.len() {
            for change in 1..=255 {
                let mut bad = table.to_vec();
                bad[offset] ^= change;
                assert!(console(&bad).is_err(), "byte {offset} ^ {change:#x}");
                assert!(psci(&bad).is_err(), "byte {offset} ^ {change:#x}");
                assert!(redistributors(&bad).is_err(), "byte {offset} ^ {change:#x}");
            }
        }
    }
}

/// With a right length and a right checksum, nothing but the fields that are read changes the answer.
#[test]
fn only_what_is_read_matters() {
    let meaning = |offset: usize, fields: &[std::ops::Range<usize>]| {
        fields.iter().any(|field| field.contains(&offset))
    };
    let header = [0..4, 4..8, 9..10];
    let (reads, table) = (
        [&header[..], &[8..9, 36..37, 40..41, 43..52]].concat(),
        SPCR,
    );
    for (offset, change) in (0..table.len()).flat_map(|offset| (1..=255).map(move |c| (offset, c)))
    {
        let mut changed = table.to_vec();
        changed[offset] ^= change;
        if !meaning(offset, &reads) {
            assert_eq!(
                read(&repaired(changed)),
                read(table),
                "SPCR byte {offset} ^ {change:#x}"
            );
        } else {
            let _ = read(&repaired(changed));
        }
    }
    let reads = [&header[..], &[129..131]].concat();
    for (offset, change) in (0..FACP.len()).flat_map(|offset| (1..=255).map(move |c| (offset, c))) {
        let mut changed = FACP.to_vec();
        changed[offset] ^= change;
        if !meaning(offset, &reads) {
            assert_eq!(
                read(&repaired(changed)),
                read(FACP),
                "FACP byte {offset} ^ {change:#x}"
            );
        } else {
            let _ = read(&repaired(changed));
        }
    }
}

#[test]
fn redistributors_of_cpus_count_where_there_are_no_regions() {
    const ENABLED: u32 = 1;
    let cpus = [
        gicc(ENABLED, 0x1000_0000, 76),
        gicc(0, 0x2000_0000, 80), // not there
        gicc(8, 0x3000_0000, 80), // may come later
        gicc(ENABLED | 2, 0x4000_0000, 82),
        gicc(ENABLED, 0, 80),        // has none, or a region has it
        vec![200, 7, 1, 2, 3, 4, 5], // from a later specification
    ];
    assert_eq!(
        redistributors(&madt(&cpus)),
        Ok(vec![
            range(0x1000_0000, 0x2_0000),
            range(0x4000_0000, 0x2_0000)
        ])
    );
    let both = [&cpus[..], &[gicr(0x5000_0000, 0x8_0000)]].concat();
    assert_eq!(
        redistributors(&madt(&both)),
        Ok(vec![range(0x5000_0000, 0x8_0000)])
    );
}

#[test]
fn structures_that_do_not_fit_are_refused() {
    let refused = |structures: &[Vec<u8>]| redistributors(&madt(structures)).unwrap_err();
    for (kind, size_bytes) in [(11_u8, 75_u8), (14, 15), (9, 1), (9, 0)] {
        let mut short = vec![0; usize::from(size_bytes).max(2)];
        (short[0], short[1]) = (kind, size_bytes);
        assert_eq!(
            refused(&[gicr(0x1000_0000, 0x2_0000), short]),
            Error::Structure {
                kind,
                size_bytes: size_bytes.into(),
                offset: 60
            }
        );
    }
    // Over the table's end, and half a header at it.
    let long = vec![14, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(matches!(
        refused(&[long]),
        Error::Structure { size_bytes: 17, .. }
    ));
    assert!(matches!(
        refused(&[vec![14]]),
        Error::Structure { size_bytes: 0, .. }
    ));
    assert!(matches!(
        refused(&[gicr(u64::MAX - 0xfff, 0x2_0000)]),
        Error::Range {
            size_bytes: 0x2_0000,
            ..
        }
    ));
    assert!(matches!(
        refused(&[gicr(0x1000_0000, 0)]),
        Error::Range { size_bytes: 0, .. }
    ));
    let many: Vec<_> = (1..)
        .map(|n| gicr(n << 20, 0x2_0000))
        .take(MAX_REDISTRIBUTORS + 1)
        .collect();
    assert_eq!(
        redistributors(&madt(&many[1..])).unwrap().len(),
        MAX_REDISTRIBUTORS
    );
    assert_eq!(refused(&many), Error::TooManyRedistributors);
}

#[test]
fn consoles() {
    let kind = |table: Vec<u8>| console(&table).map(|console| console.unwrap().kind);
    let bytes = ConsoleKind::Ns16550 {
        reg_shift: 0,
        reg_io_width_bytes: 1,
    };
    let words = ConsoleKind::Ns16550 {
        reg_shift: 2,
        reg_io_width_bytes: 4,
    };
    for (revision, interface, access_size, expected) in [
        (1, 0, 0, bytes),
        (1, 1, 1, bytes),
        (2, 0, 3, words),
        (2, 0x12, 3, words),
        (4, 0x5, 1, bytes),
        (2, 0x3, 3, ConsoleKind::Pl011),
        (2, 0xd, 0x20, ConsoleKind::Pl011), // seen: the width in bits instead of its code
        (4, 0xe, 3, ConsoleKind::Pl011),
    ] {
        assert_eq!(
            kind(spcr(revision, interface, 0, access_size)),
            Ok(expected)
        );
    }
    for interface in [2, 4, 0x6, 0x10, 0x11, 0x13, 0xff] {
        assert_eq!(
            kind(spcr(2, interface, 0, 3)),
            Err(Error::UnknownInterface { interface })
        );
    }
    // Revision 1 has only two types.
    assert_eq!(
        kind(spcr(1, 3, 0, 3)),
        Err(Error::UnknownInterface { interface: 3 })
    );
    for (space, access_size) in [(1, 1), (0, 2), (0, 4)] {
        assert_eq!(
            kind(spcr(2, 0, space, access_size)),
            Err(Error::Access { space, access_size })
        );
    }
    let mut off = SPCR.to_vec();
    off[44..52].fill(0);
    assert_eq!(console(&repaired(off)), Ok(None));
}

#[test]
fn psci_flags() {
    for (flags, expected) in [
        (0_u8, None),
        (1, Some(Conduit::Smc)),
        (2, None),
        (3, Some(Conduit::Hvc)),
        (0xfd, Some(Conduit::Smc)),
    ] {
        let mut table = FACP.to_vec();
        table[129] = flags;
        assert_eq!(psci(&repaired(table)), Ok(expected), "{flags:#x}");
    }
}

#[test]
fn too_large_a_table_is_refused() {
    let table = vec![0; MAX_TABLE_BYTES + 1];
    let size_bytes = table.len();
    assert_eq!(console(&table), Err(Error::TooLarge { size_bytes }));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
    }

    /// Whatever follows a right header, the readers come to an end, and what they give exists.
    #[test]
    fn no_structures_make_it_panic(
        which in 0..3_usize,
        body in proptest::collection::vec(prop_oneof![any::<u8>(), Just(11), Just(14), Just(16), Just(80)], 0..400),
    ) {
        let header = &[APIC, SPCR, FACP][which][..36];
        let table = repaired([header, &body].concat());
        let _ = read(&table);
        for range in redistributors(&table).unwrap_or_default() {
            prop_assert!(range.start() <= range.end());
        }
    }
}
