//! What the tables map, seen by a walker that was written from the architecture's pseudocode.

use super::walker::{El, Machine, Translated};
use super::*;

/// What the CPU may do with a stretch of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    device: bool,
    write: bool,
    execute: bool,
}

pub(super) const READ: Rights = Rights {
    device: false,
    write: false,
    execute: false,
};
pub(super) const READ_WRITE: Rights = Rights {
    write: true,
    ..READ
};
const READ_EXECUTE: Rights = Rights {
    execute: true,
    ..READ
};
const DEVICE: Rights = Rights {
    device: true,
    ..READ_WRITE
};

/// A stretch of memory, identity mapped.
type Stretch = (u64, u64, Rights);

/// The CPU's view of the stage's tables in one of its two regimes, as `entry.S` sets it up.
pub(super) fn machine(stage: &Stage, el: El) -> Machine<'_> {
    let header = hand_off(stage).header;
    let (ttbr0, tcr) = match el {
        El::El1 => {
            let size = header.physical_size_max << 32; // IPS
            (header.ttbr_two_privileges, header.tcr_two_privileges | size)
        }
        El::El2 => {
            let size = header.physical_size_max << 16; // PS
            (header.ttbr_one_privilege, header.tcr_one_privilege | size)
        }
    };
    Machine {
        memory: &stage.bytes,
        memory_base: stage.start.as_u64(),
        ttbr0,
        tcr,
        el,
    }
}

/// What a leaf allows, once everything that holds for all leaves was checked.
pub(super) fn rights(virt: u64, leaf: &Translated, mair: u64) -> Rights {
    assert_eq!(leaf.phys, virt, "not identity mapped");
    let permissions = leaf.permissions;
    assert!(permissions.privileged_read);
    assert!(
        !permissions.unprivileged_read
            && !permissions.unprivileged_write
            && !permissions.unprivileged_execute,
        "{virt:#x}: EL0 may use it"
    );
    assert!(
        !(permissions.privileged_write && permissions.privileged_execute),
        "{virt:#x}: both writable and executable"
    );
    // MAIR_ELx: 0xff Normal Write-Back, 0x04 Device-nGnRE.
    let device = match mair >> (8 * leaf.attr_index) & 0xff {
        0xff => {
            assert_eq!(
                leaf.shareability, 3,
                "{virt:#x}: Normal memory is Inner Shareable"
            );
            false
        }
        0x04 => true,
        other => panic!("{virt:#x}: MAIR field {other:#x}"),
    };
    Rights {
        device,
        write: permissions.privileged_write,
        execute: permissions.privileged_execute,
    }
}

/// Neighbours with the same rights as one.
fn merged(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_by_key(|&(start, ..)| start);
    let mut all: Vec<Stretch> = Vec::new();
    for (start, end, rights) in stretches {
        match all.last_mut() {
            Some(last) if last.1 == start && last.2 == rights => last.1 = end,
            Some(last) => {
                assert!(last.1 <= start, "{last:x?} and {start:#x} overlap");
                all.push((start, end, rights));
            }
            None => all.push((start, end, rights)),
        }
    }
    all
}

/// All that may be mapped.
fn expected(scenario: &Scenario) -> Vec<Stretch> {
    let layout = &scenario.layout;
    let (stage, stage_end) = (layout.stage.start().as_u64(), layout.stage.end().as_u64());
    let mut all = vec![
        (stage, stage + 0x1_0000, READ_EXECUTE),
        (stage + 0x1_0000, stage + 0x2_0000, READ_WRITE),
        (stage + 0x2_0000, stage_end, READ),
    ];
    // Unit by unit: whether it is written, whether it is read.
    let mut rights = std::collections::BTreeMap::new();
    let unit = layout.unit_bytes;
    for (kind, place, content) in scenario.contents() {
        let target = place.target.start().as_u64();
        for at in (0..place.target.size_bytes()).step_by(usize::try_from(unit).unwrap()) {
            let written = kind == PieceKind::DeviceTree;
            *rights.entry(target + at).or_insert(false) |= written;
        }
        let mut at = 0;
        for part in &place.parts {
            for inside in (0..part.size_bytes).step_by(usize::try_from(unit).unwrap()) {
                let source = part.address.as_u64() + inside;
                let has_content =
                    at + unit > place.offset_bytes && at < place.offset_bytes + content.size_bytes;
                if source != target + at && has_content {
                    *rights.entry(target + at).or_insert(true) = true;
                    rights.entry(source).or_insert(false);
                }
                at += unit;
            }
        }
    }
    all.extend(
        rights
            .into_iter()
            .map(|(start, written)| (start, start + unit, if written { READ_WRITE } else { READ })),
    );
    // Registers in whole granules, each once.
    let granule = scenario.granule_bytes;
    let mut granules = std::collections::BTreeSet::new();
    let uart = scenario.uart.map(|uart| (uart.base(), uart.base() + 0x100));
    let regions = scenario
        .redistributors
        .iter()
        .map(|device| (device.range.start().as_u64(), device.range.end().as_u64()));
    for (start, end) in uart.into_iter().chain(regions) {
        granules.extend(start / granule..end.div_ceil(granule));
    }
    all.extend(
        granules
            .into_iter()
            .map(|at| (at * granule, (at + 1) * granule, DEVICE)),
    );
    merged(all)
}

/// Every leaf of one set of tables, against [`expected`].
fn check(scenario: &Scenario, stage: &Stage, el: El) {
    let header = hand_off(stage).header;
    let (leaves, table_count) = machine(stage, el).leaves().unwrap();
    let found = leaves
        .iter()
        .map(|(virt, leaf)| {
            (
                *virt,
                virt + leaf.leaf_bytes,
                rights(*virt, leaf, header.mair),
            )
        })
        .collect();
    assert_eq!(
        merged(found),
        expected(scenario),
        "{el:?}, addresses in decimal"
    );
    let said = match el {
        El::El1 => header.tables_two_privileges,
        El::El2 => header.tables_one_privilege,
    };
    assert_eq!(said, table_count);
    assert_eq!(stage.summary.tables, table_count);
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn nothing_is_mapped_but_what_the_hand_over_touches(scenario in any_scenario(8 * MIB)) {
        if skipped("nothing_is_mapped_but_what_the_hand_over_touches") {
            return Ok(());
        }
        let stage = scenario.prepare().unwrap();
        check(&scenario, &stage, El::El1);
        check(&scenario, &stage, El::El2);
    }
}

/// The same for one known case of every granule and strategy, so that no seed is needed to see it.
#[test]
fn known_layouts_are_mapped_as_they_should_be() {
    if skipped("known_layouts_are_mapped_as_they_should_be") {
        return;
    }
    for granule_bytes in GRANULES {
        for strategy in [crate::Strategy::InPlace, crate::Strategy::Relocate] {
            let image = (5 * MIB + 123, 6 * MIB, 0x8_0000);
            let mut scenario = scenario(u64::MAX, strategy, image, 3 * MIB + 1, 9001);
            scenario.granule_bytes = granule_bytes;
            let stage = scenario.prepare().unwrap();
            check(&scenario, &stage, El::El1);
            check(&scenario, &stage, El::El2);
            // A few pages, whatever the memory: that is the point of these tables.
            assert!(stage.summary.tables <= 8, "{:?}", stage.summary);
        }
    }
}

/// The walker sees what is wrong: each descriptor of a leaf, changed, is noticed.
#[test]
fn a_changed_descriptor_is_noticed() {
    if skipped("a_changed_descriptor_is_noticed") {
        return;
    }
    let scenario = ordinary();
    let good = scenario.prepare().unwrap();
    let hand_off = hand_off(&good);
    let tables = hand_off
        .pieces()
        .find(|piece| piece.kind == PieceKind::Tables)
        .unwrap();
    let first = usize::try_from(tables.start - good.start.as_u64()).unwrap();
    let one = hand_off.header.tables_two_privileges * 4096;
    let mut changed = 0;
    for at in (first..first + usize::try_from(one).unwrap()).step_by(8) {
        if good.bytes[at] & 1 == 0 {
            continue;
        }
        for bit in [0, 7, 54, 30] {
            let mut bad = good.clone();
            bad.bytes[at + bit / 8] ^= 1 << (bit % 8);
            let noticed = std::panic::catch_unwind(|| check(&scenario, &bad, El::El1)).is_err();
            // In a table descriptor, bits 7 and 54 are ignored or RES0.
            assert!(noticed, "bit {bit} at {at:#x}");
            changed += 1;
        }
    }
    assert!(changed > 0);
}
