//! Redistributors that obey, and redistributors that do not.

use super::register::{CTLR, CTLR_ENABLE_LPIS, CTLR_RWP, PENDBASER, PROPBASER, TYPER};
use super::*;
use crate::abi::{self, Header, Piece};
use crate::digest::{Algorithm, Digest};
use proptest::prelude::*;
use std::collections::BTreeMap;

const FIRST: u64 = 0x80a_0000;
const TREE: u64 = 0x4800_0000;
const IMAGE: u64 = 0x4020_0000;
const IMAGE_BYTES: u64 = 0x10_0000;
const BSS_BYTES: u64 = 0x20_0000;
/// 16 bits of INTID: tables of 64 KiB each, as on QEMU.
const IDBITS: u64 = 15;

#[derive(Debug, Clone)]
struct Redistributor {
    control: u32,
    /// Whether EnableLPIs is write-once.
    stuck: bool,
    typer: u64,
    configuration: u64,
    pending: u64,
}

/// Redistributors at their addresses, and a device tree.
struct Simulated {
    redistributors: BTreeMap<u64, Redistributor>,
    tree: Vec<u8>,
    cleaned: Vec<u64>,
    ticks: u64,
}

impl Simulated {
    fn at(&mut self, address: u64) -> (&mut Redistributor, u64) {
        let frame = address & !0xffff;
        let redistributor = self.redistributors.get_mut(&frame);
        (
            redistributor.expect("no redistributor there"),
            address & 0xffff,
        )
    }
}

impl Machine for Simulated {
    fn read_register32(&mut self, address: u64) -> u32 {
        let (redistributor, register) = self.at(address);
        assert_eq!(register, CTLR);
        redistributor.control
    }
    fn read_register64(&mut self, address: u64) -> u64 {
        let (redistributor, register) = self.at(address);
        match register {
            TYPER => redistributor.typer,
            PROPBASER => redistributor.configuration,
            PENDBASER => redistributor.pending,
            other => panic!("register {other:#x}"),
        }
    }
    fn write_register32(&mut self, address: u64, value: u32) {
        let (redistributor, register) = self.at(address);
        assert_eq!(register, CTLR);
        assert_eq!(value & CTLR_ENABLE_LPIS, 0, "nobody enables LPIs here");
        // Other bits must be written back as they were.
        assert_eq!(value, redistributor.control & !CTLR_ENABLE_LPIS);
        if !redistributor.stuck {
            redistributor.control = value;
        }
    }
    fn read(&mut self, start: u64, bytes: &mut [u8]) {
        let start = usize::try_from(start - TREE).unwrap();
        bytes.copy_from_slice(&self.tree[start..][..bytes.len()]);
    }
    fn write(&mut self, start: u64, bytes: &[u8]) {
        let start = usize::try_from(start - TREE).unwrap();
        self.tree[start..][..bytes.len()].copy_from_slice(bytes);
    }
    fn clean(&mut self, start: u64, size_bytes: u64) {
        assert_eq!(size_bytes, RESERVATION_BYTES);
        self.cleaned.push(start);
    }
    fn counter(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
    fn frequency_hz(&mut self) -> u64 {
        1000
    }
    fn supports_page_size(&mut self, _: u64) -> bool {
        unreachable!()
    }
    fn copy(&mut self, _: u64, _: u64, _: u64) {
        unreachable!()
    }
    fn digest(&mut self, _: Algorithm, _: u64, _: u64) -> Digest {
        unreachable!()
    }
    fn has_instructions(&mut self, _: Algorithm) -> bool {
        unreachable!()
    }
}

/// A tree with `used` reservations, `slots` places for them in all (the list's end is one), and nothing
/// else behind them.
fn tree(used: &[(u64, u64)], slots: u32) -> Vec<u8> {
    let mut tree = vec![0; 40];
    let end = 40 + 16 * slots;
    for (field, value) in [(8, end), (12, end + 8), (16, 40)] {
        tree[field..field + 4].copy_from_slice(&value.to_be_bytes());
    }
    for (start, size_bytes) in used {
        tree.extend(start.to_be_bytes());
        tree.extend(size_bytes.to_be_bytes());
    }
    tree.resize(usize::try_from(end).unwrap(), 0);
    tree.extend([0xaa; 64]);
    tree
}

/// The reservations as a kernel would read them.
fn reservations(tree: &[u8]) -> Vec<(u64, u64)> {
    tree[40..]
        .chunks_exact(16)
        .map(|entry| {
            let (start, size) = entry.split_at(8);
            let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
            (number(start), number(size))
        })
        .take_while(|entry| *entry != (0, 0))
        .collect()
}

fn redistributor(enabled: bool, stuck: bool, configuration: u64, pending: u64) -> Redistributor {
    Redistributor {
        control: u32::from(enabled),
        stuck,
        typer: register::TYPER_PLPIS,
        // Cacheability and shareability, which are no part of the address.
        configuration: configuration | 7 << 7 | IDBITS,
        pending: pending | 7 << 7,
    }
}

/// As many redistributors as given, one after another.
fn machine(redistributors: &[Redistributor], tree: Vec<u8>) -> Simulated {
    Simulated {
        redistributors: (0..)
            .map(|index| FIRST + index * REDISTRIBUTOR_BYTES)
            .zip(redistributors.iter().cloned())
            .collect(),
        tree,
        cleaned: vec![],
        ticks: 0,
    }
}

fn block(lpis: Lpis, redistributors: usize) -> Vec<u8> {
    block_with_moves(lpis, redistributors, &[])
}

fn block_with_moves(lpis: Lpis, redistributors: usize, moves: &[abi::Move]) -> Vec<u8> {
    let header = Header {
        stage: 0x5000_0000,
        stage_size_bytes: 0x4_0000,
        mair: 0,
        tcr_two_privileges: 0,
        ttbr_two_privileges: 0,
        tcr_one_privilege: 0,
        ttbr_one_privilege: 0,
        physical_size_max: 5,
        kernel_entry: IMAGE,
        device_tree: TREE,
        timeline: None,
        exec_requested: 0,
        exec_prepared: 0,
        uart: None,
        psci: None,
        lpis,
        kernel_page_size_bytes: 0,
        tables_two_privileges: 0,
        tables_one_privilege: 0,
        table_size_bytes: 4096,
        program_size_bytes: 0,
        program_crc32c: 0,
        tables_two_privileges_crc32c: 0,
        tables_one_privilege_crc32c: 0,
        portable: false,
        verbose: false,
        on_failure: abi::OnFailure::Reset,
        record: None,
    };
    let piece = Piece {
        kind: PieceKind::Image,
        start: IMAGE,
        size_bytes: IMAGE_BYTES,
        algorithm: None,
        clean_size_bytes: BSS_BYTES,
    };
    let region = Redistributors {
        start: FIRST,
        size_bytes: redistributors as u64 * REDISTRIBUTOR_BYTES,
        stride_bytes: 0,
    };
    let tree = Piece {
        kind: PieceKind::DeviceTree,
        start: TREE,
        size_bytes: abi::DEVICE_TREE_MAX_BYTES,
        algorithm: None,
        clean_size_bytes: abi::DEVICE_TREE_MAX_BYTES,
    };
    abi::encode(&header, &[piece, tree], &[], moves, &[region]).unwrap()
}

/// Both steps, with a tree as given.
fn run(
    lpis: Lpis,
    redistributors: &[Redistributor],
    tree: Vec<u8>,
) -> (Simulated, Result<(Outcome, u64), Failure>) {
    let mut machine = machine(redistributors, tree);
    let block = block(lpis, redistributors.len());
    let hand_off = HandOff::decode(&block).unwrap();
    let result = quiesce(&hand_off, &mut machine)
        .and_then(|outcome| Ok((outcome, reserve(&hand_off, &mut machine)?)));
    (machine, result)
}

const CONFIGURATION: u64 = 0x6000_0000;
const PENDING: u64 = 0x6001_0000;

/// The unit that a cycle of moves goes through lies outside of every piece.
#[test]
fn a_table_where_something_is_moved_to_stops_the_hand_over() {
    let redistributors = [redistributor(true, true, CONFIGURATION, PENDING)];
    for (target, size_bytes, in_the_way) in [
        (PENDING, 0x20_0000, true),
        (PENDING + 0xffff, 1, true),
        (PENDING + 0x1_0000, 0x20_0000, false),
        (PENDING - 0x1000, 0x1001, true),
        (CONFIGURATION, 1, true),
        (CONFIGURATION - 0x1000, 0x1000, false),
    ] {
        let copy = abi::Move {
            target,
            source: 0x9000_0000,
            size_bytes,
        };
        let block = block_with_moves(Lpis::TurnOff, 1, &[copy]);
        let mut machine = machine(&redistributors, tree(&[], 8));
        let result = quiesce(&HandOff::decode(&block).unwrap(), &mut machine);
        let stopped = matches!(
            result,
            Err(Failure::LpiTable {
                kind: PieceKind::Program,
                ..
            })
        );
        assert_eq!(
            stopped, in_the_way,
            "{target:#x} {size_bytes:#x}: {result:?}"
        );
    }
}

#[test]
fn those_that_obey_are_turned_off_and_nothing_is_reserved() {
    let redistributors = [
        redistributor(true, false, CONFIGURATION, PENDING),
        redistributor(false, false, CONFIGURATION, PENDING),
        redistributor(true, false, CONFIGURATION, PENDING + 0x1_0000),
    ];
    let before = tree(&[(1, 2)], 8);
    let (machine, result) = run(Lpis::TurnOff, &redistributors, before.clone());
    let outcome = Outcome {
        redistributors: 3,
        disabled: 2,
        stuck: 0,
        enabled: 0,
    };
    assert_eq!(result, Ok((outcome, 0)));
    assert!(machine.tree == before);
    assert!(machine.redistributors.values().all(|one| one.control == 0));
}

#[test]
fn those_that_do_not_are_reserved_each_table_once() {
    let stuck = |pending| redistributor(true, true, CONFIGURATION, pending);
    let redistributors = [
        stuck(PENDING),
        redistributor(true, false, CONFIGURATION, PENDING + 0x1_0000),
        stuck(PENDING + 0x2_0000),
    ];
    let (machine, result) = run(Lpis::TurnOff, &redistributors, tree(&[(1, 2)], 8));
    let outcome = Outcome {
        redistributors: 3,
        disabled: 1,
        stuck: 2,
        enabled: 2,
    };
    assert_eq!(result, Ok((outcome, 2)));
    let expected = [
        (1, 2),
        (CONFIGURATION, 0x1_0000),
        (PENDING, 0x1_0000),
        (PENDING + 0x2_0000, 0x1_0000),
    ];
    assert_eq!(reservations(&machine.tree), expected);
    // What was written was cleaned, and nothing behind the list was touched.
    assert_eq!(machine.cleaned, [56, 72, 88].map(|offset| TREE + offset));
    assert!(machine.tree.ends_with(&[0xaa; 64]));
    // The next hand-over finds them there.
    let (machine, result) = run(Lpis::TurnOff, &redistributors, machine.tree);
    assert!(result.is_ok());
    assert_eq!(reservations(&machine.tree), expected);
    assert!(machine.cleaned.is_empty());
}

#[test]
fn a_write_that_never_takes_effect_counts_as_stuck() {
    let mut pending_write = redistributor(true, false, CONFIGURATION, PENDING);
    pending_write.control |= CTLR_RWP;
    let mut machine = machine(&[pending_write], tree(&[], 8));
    let mut deadline = Deadline::after_ms(WRITES_DEADLINE_MS);
    assert!(!turn_off(&mut machine, FIRST, &mut deadline));
}

/// One deadline for all of them: a hundred that never answer take no longer than one.
#[test]
fn writes_that_never_take_effect_have_one_deadline() {
    let mut pending_write = redistributor(true, true, CONFIGURATION, PENDING);
    pending_write.control |= CTLR_RWP;
    for count in [1, 100] {
        let redistributors = vec![pending_write.clone(); count];
        let (machine, result) = run(Lpis::TurnOff, &redistributors, tree(&[], 300));
        assert_eq!(result.unwrap().0.stuck, count as u64);
        assert!(machine.ticks <= WRITES_DEADLINE_MS + count as u64 + 2);
    }
}

/// The list was looked for wherever the header of a tree that nobody had verified said.
#[test]
fn only_what_was_verified_is_read_as_the_tree() {
    let redistributors = [redistributor(true, true, CONFIGURATION, PENDING)];
    let bytes = block(Lpis::LeaveOn, 1);
    let block = HandOff::decode(&bytes).unwrap();
    let pieces: Vec<_> = block.pieces().collect();
    let reserve_with = |device_tree: u64, pieces: &[Piece]| {
        let mut header = block.header;
        header.device_tree = device_tree;
        let regions: Vec<_> = block.redistributors().collect();
        let bytes = abi::encode(&header, pieces, &[], &[], &regions).unwrap();
        let mut machine = machine(&redistributors, tree(&[], 8));
        reserve(&HandOff::decode(&bytes).unwrap(), &mut machine)
    };
    let failure = |start| Err(Failure::NoReservation { start });
    assert_eq!(reserve_with(TREE, &pieces), Ok(1));
    // No piece is the tree: that one elsewhere than a piece of its kind is refused before.
    for elsewhere in [0, TREE - 8, TREE, TREE + 8, 1 << 60] {
        let result = reserve_with(elsewhere, &pieces[..1]);
        assert_eq!(result, failure(CONFIGURATION), "{elsewhere:#x}");
    }
    // The piece ends before the list has room for both tables.
    let mut cut = pieces;
    cut[1].size_bytes = 40 + 2 * RESERVATION_BYTES;
    assert_eq!(reserve_with(TREE, &cut), failure(PENDING));
    cut[1].size_bytes = 39;
    assert_eq!(reserve_with(TREE, &cut), failure(CONFIGURATION));
}

#[test]
fn left_on_they_are_not_written_to() {
    let redistributors = [redistributor(true, false, CONFIGURATION, PENDING)];
    let (machine, result) = run(Lpis::LeaveOn, &redistributors, tree(&[], 3));
    let outcome = Outcome {
        redistributors: 1,
        disabled: 0,
        stuck: 0,
        enabled: 1,
    };
    assert_eq!(result, Ok((outcome, 1)));
    assert_eq!(machine.redistributors[&FIRST].control, CTLR_ENABLE_LPIS);
    assert_eq!(reservations(&machine.tree).len(), 2);
}

#[test]
fn a_list_without_room_is_a_failure_and_keeps_its_end() {
    let redistributors = [redistributor(true, true, CONFIGURATION, PENDING)];
    for (slots, room) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
        let (machine, result) = run(Lpis::TurnOff, &redistributors, tree(&[], slots));
        match room {
            0 => assert_eq!(
                result,
                Err(Failure::NoReservation {
                    start: CONFIGURATION
                })
            ),
            1 => assert_eq!(result, Err(Failure::NoReservation { start: PENDING })),
            _ => assert!(result.is_ok()),
        }
        assert!(machine.tree.ends_with(&[0xaa; 64]));
        if slots > 0 {
            assert_eq!(reservations(&machine.tree).len(), room);
        }
    }
}

#[test]
fn tables_in_the_next_kernels_place() {
    // The last byte of BSS, and the first after it; both tables.
    for (address, in_the_way) in [
        (IMAGE - 0x1_0000, false),
        (IMAGE, true),
        (IMAGE + BSS_BYTES - 0x1_0000, true),
        (IMAGE + BSS_BYTES, false),
        (0x5000_0000, true),
        (0x5004_0000, false),
    ] {
        for (configuration, pending) in [(address, PENDING), (CONFIGURATION, address)] {
            let stuck = [redistributor(true, true, configuration, pending)];
            let obeys = [redistributor(true, false, configuration, pending)];
            for lpis in [Lpis::TurnOff, Lpis::LeaveOn] {
                let (_, result) = run(lpis, &stuck, tree(&[], 8));
                match result {
                    Err(Failure::LpiTable { start, .. }) => {
                        assert!(in_the_way);
                        assert_eq!(start, address);
                    }
                    result => assert!(result.is_ok() && !in_the_way, "{address:#x}: {result:?}"),
                }
                let (machine, result) = run(lpis, &obeys, tree(&[], 8));
                let (outcome, _) = result.unwrap();
                let off = in_the_way || lpis == Lpis::TurnOff;
                assert_eq!(outcome.disabled, u64::from(off), "{address:#x} {lpis:?}");
                assert_eq!(machine.redistributors[&FIRST].control, u32::from(!off));
            }
        }
    }
}

#[test]
fn the_walk_ends_at_the_last_and_knows_virtual_lpis() {
    let mut redistributors = vec![redistributor(true, false, CONFIGURATION, PENDING); 4];
    redistributors[0].typer |= register::TYPER_VLPIS; // 1 is its other half
    redistributors[2].typer |= register::TYPER_LAST;
    let (machine, result) = run(Lpis::TurnOff, &redistributors, tree(&[], 8));
    assert_eq!(result.unwrap().0.redistributors, 2);
    let controls: Vec<u32> = machine
        .redistributors
        .values()
        .map(|one| one.control)
        .collect();
    assert_eq!(controls, [0, 1, 0, 1]);
    // Without physical LPIs there is nothing to turn off.
    redistributors[0].typer = 0;
    let (machine, _) = run(Lpis::TurnOff, &redistributors, tree(&[], 8));
    assert_eq!(machine.redistributors[&FIRST].control, 1);
}

/// The header of a damaged tree may say that the list has 4 GiB. Found by fuzzing.
#[test]
fn a_list_without_end_has_an_end() {
    let mut long = tree(&[], 8);
    long.resize(usize::try_from(abi::DEVICE_TREE_MAX_BYTES).unwrap(), 0xa5);
    let list = 0x100_usize;
    long[list..].fill(0xa5);
    for (field, value) in [(8, u32::MAX), (12, u32::MAX), (16, 0x100)] {
        long[field..][..4].copy_from_slice(&value.to_be_bytes());
    }
    let redistributors = [redistributor(true, true, CONFIGURATION, PENDING)];
    let (_, result) = run(Lpis::LeaveOn, &redistributors, long);
    assert_eq!(
        result.unwrap_err(),
        Failure::NoReservation {
            start: CONFIGURATION
        }
    );
}

proptest! {
    /// Any redistributors, any list: whoever has LPIs on at the end has both tables reserved, nobody else
    /// has, and nothing that was reserved before is lost.
    #[test]
    fn on_at_the_end_means_reserved(
        given in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..8_u64), 1..8),
        used in proptest::collection::vec((0x4000_0000..0x7000_0000_u64, 1..0x2_0000_u64), 0..6),
        leave_on in any::<bool>(),
    ) {
        let lpis = if leave_on { Lpis::LeaveOn } else { Lpis::TurnOff };
        let redistributors: Vec<_> = given
            .iter()
            .map(|&(enabled, stuck, place)| redistributor(enabled, stuck, CONFIGURATION, PENDING + place * 0x1_0000))
            .collect();
        let (mut machine, result) = run(lpis, &redistributors, tree(&used, 32));
        let (_, count) = result.unwrap();
        let list = reservations(&machine.tree);
        prop_assert_eq!(&list[..used.len()], &used[..]);
        let mut on = 0;
        let mut wanted = std::collections::BTreeSet::new();
        for (&frame, one) in &machine.redistributors.clone() {
            if one.control & CTLR_ENABLE_LPIS != 0 {
                on += 1;
                wanted.extend(tables(&mut machine, frame).map(|table| (table.start, table.size_bytes)));
            }
        }
        prop_assert_eq!(count, on);
        let covered = |&(start, size): &(u64, u64), by: &[(u64, u64)]| by.iter().any(|&(s, n)| s <= start && start + size <= s + n);
        prop_assert!(wanted.iter().all(|table| covered(table, &list)));
        let new: std::collections::BTreeSet<_> = list[used.len()..].iter().copied().collect();
        prop_assert_eq!(new.len(), list.len() - used.len());
        prop_assert!(new.is_subset(&wanted));
    }
}
