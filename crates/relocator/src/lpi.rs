//! LPIs: interrupts that a GICv3 keeps in memory, for longer than the kernel that gave it the memory.
//!
//! Every redistributor reads a configuration table and reads and writes a pending table for as long as
//! `GICR_CTLR.EnableLPIs` is set, whoever owns that memory by then. There are two ways to a clean
//! hand-over, and [`crate::abi::Lpis`] says which:
//!
//! * Turn them off ([`quiesce`]). The architecture allows the bit to be write-once (IHI 0069,
//!   GICR_CTLR); then they stay on, and the second way is taken.
//! * Leave them on, and reserve their tables for the next kernel ([`reserve`]): it then finds them where
//!   Linux looks before it believes that memory was corrupted, and takes them over. They are entered
//!   into the list of reservations of the device tree, in slots that the command has left there, because
//!   the addresses are in registers that the first kernel lets nobody read.
//!
//! In both cases tables that stay in use must not lie where the next kernel is put ([`quiesce`]): that is
//! a failure, before anything is moved.

use crate::abi::{DEVICE_TREE_MAX_BYTES, HandOff, Lpis, PieceKind, Redistributors};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::relocate::Machine;

/// Offsets and bits of a redistributor's registers (IHI 0069H.b, 12.11).
pub mod register {
    /// `GICR_CTLR`, 32 bits.
    pub const CTLR: u64 = 0x0;
    /// `GICR_TYPER`, 64 bits.
    pub const TYPER: u64 = 0x8;
    /// `GICR_PROPBASER`, 64 bits: where the configuration table is, and how many bits an INTID has.
    pub const PROPBASER: u64 = 0x70;
    /// `GICR_PENDBASER`, 64 bits: where the pending table is.
    pub const PENDBASER: u64 = 0x78;
    /// `GICR_CTLR.EnableLPIs`.
    pub const CTLR_ENABLE_LPIS: u32 = 1 << 0;
    /// `GICR_CTLR.RWP`: a write has not taken effect yet.
    pub const CTLR_RWP: u32 = 1 << 3;
    /// `GICR_TYPER.PLPIS`: it has LPIs.
    pub const TYPER_PLPIS: u64 = 1 << 0;
    /// `GICR_TYPER.VLPIS`: it has virtual LPIs, and twice as many frames.
    pub const TYPER_VLPIS: u64 = 1 << 1;
    /// `GICR_TYPER.Last`: no redistributor follows in this region.
    pub const TYPER_LAST: u64 = 1 << 4;
}

/// Size of a redistributor without virtual LPIs: RD_base and SGI_base, 64 KiB each.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// Linux rounds both tables up to this, and looks for reservations of that size.
const TABLE_ALIGNMENT_BYTES: u64 = 0x1_0000;
/// How long all redistributors together may take for writes to take effect. Linux gives one of them a second;
/// the first that takes longer has used up the time of those that follow, which get one look each.
const WRITES_DEADLINE_MS: u64 = 1000;

/// What became of the LPIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Redistributors seen, count.
    pub redistributors: u64,
    /// Whose LPIs were enabled and are disabled now, count.
    pub disabled: u64,
    /// Whose LPIs should have been disabled and still are enabled, count.
    pub stuck: u64,
    /// Whose LPIs are enabled, count: the stuck ones, or all that were found so.
    pub enabled: u64,
}

/// A range of physical addresses, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    size_bytes: u64,
}

impl Range {
    fn end(self) -> u64 {
        self.start.saturating_add(self.size_bytes)
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// Calls `visit` with the first register of every redistributor of a region, and counts them.
fn walk<M: Machine>(
    machine: &mut M,
    region: Redistributors,
    visit: &mut impl FnMut(&mut M, u64) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let (mut count, mut offset) = (0, 0_u64);
    while offset.saturating_add(REDISTRIBUTOR_BYTES) <= region.size_bytes {
        let frame = region.start + offset;
        let typer = machine.read_register64(frame + register::TYPER);
        count += 1;
        if typer & register::TYPER_PLPIS != 0 {
            visit(machine, frame)?;
        }
        if typer & register::TYPER_LAST != 0 {
            break;
        }
        offset = offset.saturating_add(match region.stride_bytes {
            0 if typer & register::TYPER_VLPIS != 0 => 2 * REDISTRIBUTOR_BYTES,
            0 => REDISTRIBUTOR_BYTES,
            stride_bytes => stride_bytes,
        });
    }
    Ok(count)
}

fn is_enabled(machine: &mut impl Machine, frame: u64) -> bool {
    machine.read_register32(frame + register::CTLR) & register::CTLR_ENABLE_LPIS != 0
}

/// Clears EnableLPIs; whether that had an effect.
fn turn_off(machine: &mut impl Machine, frame: u64, deadline: &mut Deadline) -> bool {
    let control = frame + register::CTLR;
    let before = machine.read_register32(control);
    machine.write_register32(control, before & !register::CTLR_ENABLE_LPIS);
    loop {
        let after = machine.read_register32(control);
        let is_pending = after & register::CTLR_RWP != 0;
        if !is_pending || deadline.is_over(machine.counter(), machine.frequency_hz()) {
            return after & (register::CTLR_ENABLE_LPIS | register::CTLR_RWP) == 0;
        }
    }
}

/// The configuration table and the pending table of a redistributor, with the sizes that Linux gives them
/// (`LPI_PROPBASE_SZ`, `LPI_PENDBASE_SZ`).
fn tables(machine: &mut impl Machine, frame: u64) -> [Range; 2] {
    let configuration = machine.read_register64(frame + register::PROPBASER);
    let pending = machine.read_register64(frame + register::PENDBASER);
    let interrupts = 1_u64 << ((configuration & 0x1f) + 1);
    let aligned = |bytes: u64| bytes.next_multiple_of(TABLE_ALIGNMENT_BYTES);
    // Addresses are bits 51 to 12 and 51 to 16; one byte for each interrupt, and one bit.
    [
        Range {
            start: configuration & 0x000f_ffff_ffff_f000,
            size_bytes: aligned(interrupts),
        },
        Range {
            start: pending & 0x000f_ffff_ffff_0000,
            size_bytes: aligned(interrupts / 8),
        },
    ]
}

/// Where the next kernel, and this program, will be: no table may be there.
fn check(hand_off: &HandOff<'_>, table: Range) -> Result<(), Failure> {
    let failure = |kind| Failure::LpiTable {
        start: table.start,
        kind,
    };
    for piece in hand_off.pieces() {
        let place = Range {
            start: piece.start,
            size_bytes: piece.size_bytes.max(piece.clean_size_bytes),
        };
        if table.overlaps(place) {
            return Err(failure(piece.kind));
        }
    }
    let stage = Range {
        start: hand_off.header.stage,
        size_bytes: hand_off.header.stage_size_bytes,
    };
    // What is moved to outside of every piece is the unit that a cycle of moves goes through: this program's
    // while it moves.
    let spare_overlaps = hand_off.moves().any(|copy| {
        table.overlaps(Range {
            start: copy.target,
            size_bytes: copy.size_bytes,
        })
    });
    if table.overlaps(stage) || spare_overlaps {
        return Err(failure(PieceKind::Program));
    }
    Ok(())
}

fn quiesce_once(
    hand_off: &HandOff<'_>,
    machine: &mut impl Machine,
    lpis: Lpis,
) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::default();
    let mut deadline = Deadline::after_ms(WRITES_DEADLINE_MS);
    for region in hand_off.redistributors() {
        let Outcome {
            disabled,
            stuck,
            enabled,
            ..
        } = &mut outcome;
        let count = walk(machine, region, &mut |machine, frame| {
            if !is_enabled(machine, frame) {
                return Ok(());
            }
            if lpis == Lpis::TurnOff {
                if turn_off(machine, frame, &mut deadline) {
                    *disabled += 1;
                    return Ok(());
                }
                *stuck += 1;
            }
            *enabled += 1;
            for table in tables(machine, frame) {
                check(hand_off, table)?;
            }
            Ok(())
        })?;
        outcome.redistributors += count;
    }
    Ok(outcome)
}

/// Turns LPIs off, or makes sure that they can stay on. Where they were to stay on and a table lies in the
/// next kernel's place, they are turned off after all.
///
/// # Errors
/// [`Failure::LpiTable`] if a table that stays in use lies in the next kernel's place.
pub fn quiesce(hand_off: &HandOff<'_>, machine: &mut impl Machine) -> Result<Outcome, Failure> {
    match hand_off.header.lpis {
        Lpis::TurnOff => quiesce_once(hand_off, machine, Lpis::TurnOff),
        Lpis::LeaveOn => quiesce_once(hand_off, machine, Lpis::LeaveOn)
            .or_else(|_| quiesce_once(hand_off, machine, Lpis::TurnOff)),
    }
}

/// Enters the tables of every redistributor whose LPIs are on into the device tree's list of reservations,
/// where they are not in it already; gives how many redistributors that are.
///
/// The tree must have been verified: its own header says where the list is.
///
/// # Errors
/// [`Failure::NoReservation`] if the list has no free slot.
pub fn reserve(hand_off: &HandOff<'_>, machine: &mut impl Machine) -> Result<u64, Failure> {
    let mut count = 0;
    for region in hand_off.redistributors() {
        walk(machine, region, &mut |machine, frame| {
            if !is_enabled(machine, frame) {
                return Ok(());
            }
            count += 1;
            for table in tables(machine, frame) {
                reserve_one(hand_off, machine, table)?;
            }
            Ok(())
        })?;
    }
    Ok(count)
}

/// Size of a reservation in the tree: address and size, 64 bits each, big-endian.
const RESERVATION_BYTES: u64 = 16;

fn read_be32(machine: &mut impl Machine, start: u64) -> u64 {
    let mut bytes = [0; 4];
    machine.read(start, &mut bytes);
    u64::from(u32::from_be_bytes(bytes))
}

fn read_be64(machine: &mut impl Machine, start: u64) -> u64 {
    let mut bytes = [0; 8];
    machine.read(start, &mut bytes);
    u64::from_be_bytes(bytes)
}

/// Devicetree Specification 0.4, 5.2 and 5.3. The list ends with an entry of two zeros, and the block it
/// is in may be longer than the list. Nothing is looked at but what was verified as the device tree.
fn reserve_one(
    hand_off: &HandOff<'_>,
    machine: &mut impl Machine,
    table: Range,
) -> Result<(), Failure> {
    const HEADER_BYTES: u64 = 40;
    const STRUCTURE: u64 = 8;
    const STRINGS: u64 = 12;
    const RESERVATIONS: u64 = 16;
    let failure = Err(Failure::NoReservation { start: table.start });
    let tree = hand_off.header.device_tree;
    let verified_bytes = hand_off
        .pieces()
        .find(|piece| piece.kind == PieceKind::DeviceTree && piece.start == tree)
        .map_or(0, |piece| piece.size_bytes);
    if verified_bytes < HEADER_BYTES {
        return failure;
    }
    let list = read_be32(machine, tree + RESERVATIONS);
    let end = [STRUCTURE, STRINGS]
        .map(|field| read_be32(machine, tree + field))
        .into_iter()
        .filter(|&block| block > list)
        .min()
        .unwrap_or(list)
        // Whatever the header says: there is an end.
        .min(verified_bytes.min(DEVICE_TREE_MAX_BYTES));
    let mut slot = list;
    // The last slot is the list's end, and stays.
    while slot + 2 * RESERVATION_BYTES <= end {
        let entry = Range {
            start: read_be64(machine, tree + slot),
            size_bytes: read_be64(machine, tree + slot + 8),
        };
        if entry.size_bytes == 0 && entry.start == 0 {
            let mut bytes = [0; 16];
            let (start, size) = bytes.split_at_mut(8);
            start.copy_from_slice(&table.start.to_be_bytes());
            size.copy_from_slice(&table.size_bytes.to_be_bytes());
            machine.write(tree + slot, &bytes);
            machine.clean(tree + slot, RESERVATION_BYTES);
            return Ok(());
        }
        if entry.contains(table) {
            return Ok(());
        }
        slot += RESERVATION_BYTES;
    }
    failure
}

#[cfg(all(test, feature = "host"))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper functions too"
)]
mod tests;
