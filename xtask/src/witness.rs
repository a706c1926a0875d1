//! What a debugger sees of the relocator: not its own word.
//!
//! Problem: the relocator's timeline says that the MMU and the caches were on while it moved bytes.
//! It would say so too if it were wrong. Choice: stop the emulated CPU when something is written to
//! where the second kernel goes, at the virtual address that equals the physical one, which only the
//! relocator maps; then read the system registers of that CPU through QEMU's gdbstub. The same is
//! done at the second kernel's first instruction, where booting.rst wants both off: a reading that
//! were always "on" would fail there.
//!
//! A watchpoint needs no symbols and no knowledge of the relocator's code.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::gdbstub::Debugger;
use crate::qemu::{Line, Machine};

/// From the watchpoint to the first write, with the shutdown between them.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// How far into the Image the watched place is: past the header, and not in the first page moved.
const WATCHED_OFFSET: u64 = 0x10_0000;
/// How often somebody else may use that virtual address before.
const OTHERS_LIMIT: u32 = 1000;
/// Kernel addresses have all upper bits set; identity-mapped ones have none.
const IDENTITY_LIMIT: u64 = 1 << 52;

/// SCTLR_ELx: the MMU is on.
const SCTLR_M: u64 = 1 << 0;
/// SCTLR_ELx: data accesses are cached.
const SCTLR_C: u64 = 1 << 2;
/// SCTLR_ELx: instruction fetches are cached.
const SCTLR_I: u64 = 1 << 12;
/// PSTATE.DAIF: everything is masked.
const DAIF: u64 = 0xf << 6;

/// Watches a hand-over and gives what was seen, in one line.
pub(crate) fn watch(machine: &Machine) -> Result<String> {
    let image = image_address(machine.history())?;
    let mut debugger = Debugger::connect(&machine.debugger_socket())?;
    let moving = first_write(&mut debugger, image + WATCHED_OFFSET)?;
    ensure!(
        moving.sctlr & SCTLR_M != 0 && moving.sctlr & SCTLR_C != 0 && moving.sctlr & SCTLR_I != 0,
        "the Image is written with the MMU or a cache off: {moving}"
    );
    debugger.set_breakpoint(image)?;
    debugger
        .continue_until_stop(STOP_DEADLINE)
        .context("the second kernel's entry")?;
    let entry = State::read(&mut debugger)?;
    debugger.clear_breakpoint(image)?;
    ensure!(
        entry.pc == image,
        "stopped at {:#x}, not at the Image",
        entry.pc
    );
    ensure!(
        entry.sctlr & (SCTLR_M | SCTLR_C) == 0,
        "the second kernel is entered with the MMU or the data cache on: {entry}"
    );
    ensure!(
        entry.pstate & DAIF == DAIF,
        "the second kernel is entered unmasked: {entry}"
    );
    ensure!(
        entry.level == moving.level,
        "the exception level changed: {moving}, then {entry}"
    );
    let registers = debugger.general_registers()?;
    let reserved = registers.get(1..4).context("x1 to x3 are missing")?;
    ensure!(
        reserved == [0, 0, 0],
        "booting.rst wants x1 to x3 to be 0: {reserved:x?}"
    );
    let tree = *registers.first().context("x0 is missing")?;
    debugger.set_physical_memory(true)?;
    let magic = debugger.memory(tree, 4)?;
    debugger.set_physical_memory(false)?;
    ensure!(
        magic == [0xd0, 0x0d, 0xfe, 0xed],
        "x0 is no device tree: {magic:x?} at {tree:#x}"
    );
    debugger.detach()?;
    Ok(format!("moving: {moving}; second kernel: {entry}"))
}

/// What is read of a stopped CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State {
    /// Where it is.
    pub(crate) pc: u64,
    pstate: u64,
    /// Its exception level.
    pub(crate) level: u64,
    /// `SCTLR_ELx` of that level.
    pub(crate) sctlr: u64,
}

impl State {
    /// Reads it.
    pub(crate) fn read(debugger: &mut Debugger) -> Result<Self> {
        let pstate = debugger.register(&["cpsr"])?;
        let level = pstate >> 2 & 3;
        let sctlr = match level {
            2 => debugger.register(&["SCTLR_EL2"])?,
            // Named after the 32-bit register that it shares its bits with.
            _ => debugger.register(&["SCTLR_EL1", "SCTLR"])?,
        };
        Ok(Self {
            pc: debugger.register(&["pc"])?,
            pstate,
            level,
            sctlr,
        })
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let on = |bit: u64| if self.sctlr & bit == 0 { "off" } else { "on" };
        write!(
            formatter,
            "EL{} at {:#x}, SCTLR {:#x}: MMU {}, data cache {}, instruction cache {}",
            self.level,
            self.pc,
            self.sctlr,
            on(SCTLR_M),
            on(SCTLR_C),
            on(SCTLR_I)
        )
    }
}

/// Stops at the relocator's write to an address. Programs of the first kernel may use the same
/// virtual address for something else; they are let go.
fn first_write(debugger: &mut Debugger, address: u64) -> Result<State> {
    debugger.set_watchpoint(address)?;
    for _ in 0..OTHERS_LIMIT {
        debugger
            .continue_until_stop(STOP_DEADLINE)
            .context("a write to the Image's place")?;
        let state = State::read(debugger)?;
        if state.level > 0 && state.pc < IDENTITY_LIMIT {
            debugger.clear_watchpoint(address)?;
            return Ok(state);
        }
    }
    bail!("{address:#x} was written {OTHERS_LIMIT} times, never by the relocator")
}

/// The Image's place, as `kleap status` showed it on the console.
fn image_address(history: &[Line]) -> Result<u64> {
    history
        .iter()
        .rev()
        .filter(|line| line.text.starts_with("Image "))
        .find_map(|line| {
            let digits = line.text.split("0x").nth(1)?.split_whitespace().next()?;
            u64::from_str_radix(digits, 16).ok()
        })
        .context("`kleap status` did not say where the Image goes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_in_what_status_prints() {
        let line = |text: &str| Line {
            at: Duration::ZERO,
            text: text.to_owned(),
        };
        let history = [
            line("piece              size  address            at hand-over"),
            line("Image           27.5 MB  0xb7400000         moved there"),
            line("initrd          19.5 MB  0xb6000000         moved there"),
        ];
        assert_eq!(image_address(&history).unwrap(), 0xb740_0000);
        assert!(image_address(&history[..1]).is_err());
    }
}
