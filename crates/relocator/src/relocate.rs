//! The order of work, from "the MMU is on" to "enter the next kernel".
//!
//! Written against [`Machine`], so that the same code runs against a simulated memory on the host and
//! against the real one in the bare program. The order matters:
//!
//! 1. check the hand-off block: nothing is believed before that;
//! 2. check that the CPU can run the next kernel: afterwards the old one is gone;
//! 3. stop the GIC from reading and writing LPI tables in memory that is about to be reused, or see
//!    that no piece is put over them;
//! 4. make the moves;
//! 5. verify every piece *in its final place*, after the last write to it, chunk by chunk;
//! 6. reserve the LPI tables that stay in use in the next device tree;
//! 7. clean to the point of coherency: `booting.rst` wants the Image clean, and whatever was written
//!    through a cache must reach memory before the MMU is off;
//! 8. write the timeline, clean it too, and go.
//!
//! Verification after moving, not before: one pass then covers the copy as well as the copied.

use crate::abi::{HandOff, Header, Move, PieceKind, Uart};
use crate::digest::{Algorithm, Digest};
use crate::failure::Failure;
use crate::lpi;
use crate::record::Phase;
use crate::timeline::{Level, SIZE_BYTES, Timeline};
use core::fmt;

/// What the work is done with. Addresses are physical, sizes in bytes.
pub trait Machine {
    /// `CNTVCT_EL0`, now.
    fn counter(&mut self) -> u64;
    /// `CNTFRQ_EL0`.
    fn frequency_hz(&mut self) -> u64;
    /// Whether this CPU can run a kernel with pages of this size.
    fn supports_page_size(&mut self, page_size_bytes: u64) -> bool;
    /// Reads 32 bits of a redistributor's registers.
    fn read_register32(&mut self, address: u64) -> u32;
    /// Reads 64 bits of a redistributor's registers.
    fn read_register64(&mut self, address: u64) -> u64;
    /// Writes 32 bits of a redistributor's registers.
    fn write_register32(&mut self, address: u64, value: u32);
    /// Copies bytes, as `memmove` does: where source and target overlap, the target gets what the source
    /// held before.
    fn copy(&mut self, target: u64, source: u64, size_bytes: u64);
    /// Digest of memory.
    fn digest(&mut self, algorithm: Algorithm, start: u64, size_bytes: u64) -> Digest;
    /// Whether [`Machine::digest`] uses instructions made for that algorithm.
    fn has_instructions(&mut self, algorithm: Algorithm) -> bool;
    /// Cleans and invalidates memory to the point of coherency.
    fn clean(&mut self, start: u64, size_bytes: u64);
    /// Reads bytes.
    fn read(&mut self, start: u64, bytes: &mut [u8]);
    /// Writes bytes.
    fn write(&mut self, start: u64, bytes: &[u8]);
    /// Notes which phase begins, for the record of a failure.
    fn begin(&mut self, _phase: Phase) {}
    /// Writes a line to the console. Called only if the hand-off asks for it.
    fn say(&mut self, _uart: Option<Uart>, _line: fmt::Arguments<'_>) {}
}

/// What only the entry code knows.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// `CNTVCT_EL0` at the first instruction.
    pub entered: u64,
    /// `CNTVCT_EL0` when the MMU was on.
    pub mmu_on: u64,
    /// Where it runs.
    pub level: Level,
}

/// A move may not touch the stage that the relocator runs from. It may overlap itself, and other moves:
/// their order is the planner's business, and the digests find out if it was wrong. Nothing in the stage
/// belongs anywhere else, so that a move reads from it is as wrong as that it writes to it.
/// ([`HandOff::decode`] has refused what runs over the end of the address space.)
fn check_move(header: &Header, copy: &Move) -> Result<(), Failure> {
    let Move {
        target,
        source,
        size_bytes,
    } = *copy;
    let touches_stage = |start: u64| {
        start < header.stage.saturating_add(header.stage_size_bytes)
            && header.stage < start.saturating_add(size_bytes)
    };
    if touches_stage(target) || touches_stage(source) {
        return Err(Failure::Move {
            target,
            source,
            size_bytes,
        });
    }
    Ok(())
}

/// Does all of it; on success the machine is ready for [`Header::kernel_entry`].
///
/// # Errors
/// [`Failure`]: nothing may be entered any more, the machine has to be reset.
pub fn relocate(
    block: &[u8],
    entry: Entry,
    machine: &mut impl Machine,
) -> Result<Timeline, Failure> {
    machine.begin(Phase::Check);
    let hand_off = HandOff::decode(block).map_err(Failure::HandOff)?;
    let header = &hand_off.header;
    let page_size_bytes = header.kernel_page_size_bytes;
    if page_size_bytes != 0 && !machine.supports_page_size(page_size_bytes) {
        return Err(Failure::PageSize { page_size_bytes });
    }
    let image = hand_off
        .pieces()
        .find(|piece| piece.kind == PieceKind::Image);
    let algorithm = image.and_then(|image| image.algorithm);
    // Kept short, and out of the way of who asked for none.
    let say = |machine: &mut _, line: fmt::Arguments<'_>| {
        if header.verbose {
            Machine::say(machine, header.uart, line);
        }
    };
    say(
        machine,
        format_args!("MMU on at {}, hand-off block sound", entry.level.name()),
    );
    let mut timeline = Timeline {
        frequency_hz: machine.frequency_hz(),
        exec_requested: header.exec_requested,
        exec_prepared: header.exec_prepared,
        relocator_entered: entry.entered,
        mmu_on: entry.mmu_on,
        level: entry.level,
        tables: match entry.level {
            Level::El2 => header.tables_one_privilege,
            Level::El1 | Level::El2Vhe => header.tables_two_privileges,
        },
        table_size_bytes: header.table_size_bytes,
        algorithm,
        digest_instructions: algorithm.is_some_and(|algorithm| machine.has_instructions(algorithm)),
        ..Timeline::default()
    };

    machine.begin(Phase::Quiesce);
    let lpis = lpi::quiesce(&hand_off, machine)?;
    timeline.redistributors = lpis.redistributors;
    timeline.lpis_disabled = lpis.disabled;
    timeline.lpis_stuck = lpis.stuck;
    timeline.quiesced = machine.counter();

    say(
        machine,
        format_args!(
            "interrupts quiet: {} redistributors, LPIs of {} turned off, of {} left on",
            lpis.redistributors, lpis.disabled, lpis.enabled
        ),
    );

    machine.begin(Phase::Move);
    for copy in hand_off.moves() {
        check_move(header, &copy)?;
        machine.copy(copy.target, copy.source, copy.size_bytes);
        timeline.moves += 1;
        timeline.moved_bytes = timeline.moved_bytes.saturating_add(copy.size_bytes);
    }
    timeline.moves_done = machine.counter();

    say(
        machine,
        format_args!(
            "moved {:#x} bytes in {} moves",
            timeline.moved_bytes, timeline.moves
        ),
    );

    machine.begin(Phase::Verify);
    for chunk in hand_off.chunks() {
        let found = machine.digest(chunk.algorithm, chunk.start, chunk.size_bytes);
        if chunk.expected != Some(found) {
            return Err(Failure::Digest {
                kind: chunk.kind,
                start: chunk.start,
                size_bytes: chunk.size_bytes,
                expected: chunk.expected,
                found,
            });
        }
        timeline.verified_bytes = timeline.verified_bytes.saturating_add(chunk.size_bytes);
    }
    timeline.verified = machine.counter();

    say(
        machine,
        format_args!("verified {:#x} bytes", timeline.verified_bytes),
    );

    machine.begin(Phase::Reserve);
    if lpis.enabled > 0 {
        timeline.lpis_reserved = lpi::reserve(&hand_off, machine)?;
    }
    machine.begin(Phase::Clean);
    for piece in hand_off.pieces() {
        machine.clean(piece.start, piece.clean_size_bytes);
        timeline.cleaned_bytes = timeline
            .cleaned_bytes
            .saturating_add(piece.clean_size_bytes);
    }
    timeline.cleaned = machine.counter();

    say(
        machine,
        format_args!("cleaned {:#x} bytes", timeline.cleaned_bytes),
    );
    say(
        machine,
        format_args!("entering the kernel at {:#x}", header.kernel_entry),
    );

    machine.begin(Phase::Enter);
    timeline.kernel_entered = machine.counter();
    if let Some(start) = header.timeline {
        machine.write(start, &timeline.encode());
        machine.clean(start, SIZE_BYTES as u64);
    }
    Ok(timeline)
}

#[cfg(all(test, feature = "host"))]
#[allow(clippy::unwrap_used, reason = "a test's helper functions too")]
mod tests;
