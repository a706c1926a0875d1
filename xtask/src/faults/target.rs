//! A machine that is stopped at the relocator's first instruction, as often as wanted.
//!
//! Problem: a machine takes half a minute to boot and load, and a thousand faults would take a day.
//! Choice: boot once, let the first kernel hand over, stop at the relocator's first instruction, and let
//! QEMU take a snapshot of everything; each fault starts from that, within a second. Where the first
//! instruction will be, `load` has noted, and the script reads it out.
//!
//! Rejected: to find that out by a hand-over from a snapshot before `kleap exec`. QEMU's snapshots leave out the
//! timers of EL2 (target/arm/machine.c has `gt_timer` of EL1 alone), so that a first kernel with VHE never wakes
//! up again. The relocator uses no timer, and the next kernel sets its own.
//! Rejected: a debugger that undoes each fault by hand. It would have to know everything that the
//! relocator may have touched, damaged as it was.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kleap_relocator::abi::{HAND_OFF_OFFSET_BYTES, PieceKind, word};
use kleap_relocator::timeline;
use serde_json::{Value, json};

use super::fault::{Change, Fault, Stop};
use super::stage::{Stage, word_at};
use crate::gdbstub::Debugger;
use crate::lab::Lab;
use crate::qemu::{Line, Machine};
use crate::rows::{Row, WITNESS_LINE, WITNESS_STAGE};
use crate::run::{self, Assets, Started};
use crate::witness::State;

/// Guest time that a fault may take, from the injection to its end: an emulator without `-icount` has the
/// host's clock, so it is multiplied as every deadline is.
const FAULT_DEADLINE: Duration = Duration::from_secs(5);
/// From the first kernel's pause to the next one's entry, and from an entry to a verdict.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(60);
/// How often events and stops are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a line of the console may be on its way when the machine has already been reset.
const LINE_PATIENCE: Duration = Duration::from_millis(300);
/// How often another program may get to an address before the one that is waited for.
const OTHERS_LIMIT: u32 = 1000;
/// What a stop says that was named.
const STOPPED: &str = "kleap: hand-over stopped: ";
/// The snapshot, at the relocator's first instruction.
const ENTERED: &str = "entered";
/// Where they are kept; it grows as needed.
const SNAPSHOT_FILE: &str = "snapshots.qcow2";
const SNAPSHOT_DISK_BYTES: u64 = 1 << 20;
/// Where memory is written for a comparison.
const DUMP_FILE: &str = "memory";
/// SCTLR: MMU and data cache.
const SCTLR_M_C: u64 = 1 << 2 | 1;
/// HCR_EL2.E2H: two privileges at EL2.
const E2H: u64 = 1 << 34;

/// How a fault ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The next kernel is entered, with everything as it was loaded.
    Boot,
    /// A reset, after this line.
    Named(String),
    /// A reset without a word.
    Silent,
    /// Neither, within the deadline.
    Hang(String),
    /// A kernel is entered with something wrong.
    Damaged(String),
}

/// What the next kernel needs, as an undamaged hand-over leaves it.
#[derive(Debug)]
struct Content {
    name: &'static str,
    start: u64,
    bytes: Vec<u8>,
    /// What may differ: the timeline.
    ignored: std::ops::Range<usize>,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Target {
    started: Started,
    debugger: Debugger,
    token: String,
    /// What was read at the first instruction.
    pub(crate) stage: Stage,
    /// Which set of tables it uses.
    pub(crate) two_privileges: bool,
    contents: Vec<Content>,
    level: u64,
    branch: u64,
    branch_register: usize,
}

impl Target {
    /// Boots, loads, and takes the snapshots. `command` is the kleap that the machine has.
    pub(crate) fn start(lab: &Lab, assets: &Assets, row: &Row, command: &[u8]) -> Result<Self> {
        let token = run::token();
        let mut started = run::start(lab, assets, row, &token)?;
        let prepared = Self::prepare(&mut started, command);
        match prepared {
            Ok((debugger, stage, two_privileges)) => {
                let (branch, branch_register) = stage.last_branch()?;
                let mut target = Self {
                    started,
                    debugger,
                    token,
                    stage,
                    two_privileges,
                    contents: Vec::new(),
                    level: 0,
                    branch,
                    branch_register,
                };
                target.learn(assets.kernel(row.second)?)?;
                Ok(target)
            }
            Err(error) => Err(error.context(started.machine.last_lines())),
        }
    }

    fn prepare(started: &mut Started, command: &[u8]) -> Result<(Debugger, Stage, bool)> {
        let machine = &mut started.machine;
        machine.wait_for(
            "the pause before the hand-over",
            run::FIRST_BOOT_DEADLINE_MS,
            |_| {},
            |line| (run::lab_value(line, "") == Some(WITNESS_LINE)).then_some(()),
        )?;
        let start = machine
            .history()
            .iter()
            .find_map(|line| run::lab_value(line, WITNESS_STAGE)?.parse().ok())
            .context("the script has not said where the stage will be")?;
        let mut debugger = Debugger::connect(&machine.debugger_socket())?;
        // A reset goes on, so that the machine stays; so does one that is powered off.
        let actions = json!({ "reboot": "reset", "shutdown": "pause", "panic": "pause" });
        machine.qmp().execute("set-action", &actions)?;
        add_snapshot_disk(machine)?;
        let deadline = HAND_OVER_DEADLINE.mul_f64(machine.slowdown());
        run_to(&mut debugger, start, deadline).context("the relocator's first instruction")?;
        snapshot(machine, "savevm", ENTERED)?;
        let level = debugger.register(&["cpsr"])? >> 2 & 3;
        let two_privileges = level == 1 || debugger.register(&["HCR_EL2"])? & E2H != 0;
        debugger.set_physical_memory(true)?;
        let size = word::STAGE_SIZE_BYTES as u64 * 8;
        let size = debugger.memory(start + HAND_OFF_OFFSET_BYTES + size, 8)?;
        let bytes = dump(machine, start, word_at(&size, 0))?;
        let stage = Stage::new(start, bytes, command)?;
        Ok((debugger, stage, two_privileges))
    }

    /// Makes an undamaged hand-over, and keeps what it leaves; then sees that damage would be found.
    fn learn(&mut self, image_file: &std::path::Path) -> Result<()> {
        self.restart()?;
        self.debugger.set_breakpoint(self.branch)?;
        self.debugger
            .continue_until_stop(self.deadline())
            .context("the end of an undamaged hand-over")?;
        self.level = State::read(&mut self.debugger)?.level;
        for kind in [PieceKind::Image, PieceKind::Initrd, PieceKind::DeviceTree] {
            let piece = *self
                .stage
                .piece(kind)
                .with_context(|| format!("the hand-off has no {}", kind.name()))?;
            let bytes = dump(&mut self.started.machine, piece.start, piece.size_bytes)?;
            let timeline = self.stage.header.timeline;
            let ignored = match timeline.and_then(|at| at.checked_sub(piece.start)) {
                Some(at) if at < piece.size_bytes => {
                    let at = usize::try_from(at)?;
                    at..at + timeline::SIZE_BYTES
                }
                _ => 0..0,
            };
            self.contents.push(Content {
                name: kind.name(),
                start: piece.start,
                bytes,
                ignored,
            });
        }
        let wanted = fs::read(image_file).context("cannot read the next kernel")?;
        let image = self.contents.first().map(|content| &content.bytes);
        ensure!(
            image == Some(&wanted),
            "an undamaged hand-over leaves another Image than {}",
            image_file.display()
        );
        ensure!(
            self.judge_boot()? == End::Boot,
            "an undamaged hand-over does not compare as such"
        );
        for content in 0..self.contents.len() {
            let Some(&Content {
                start, ref bytes, ..
            }) = self.contents.get(content)
            else {
                continue;
            };
            let at = start + bytes.len() as u64 - 1;
            self.apply(&Change::Flip {
                address: at,
                bit: 7,
            })?;
            let seen = self.judge_boot()?;
            ensure!(
                matches!(seen, End::Damaged(_)),
                "a bit at {at:#x} was flipped, and the comparison sees nothing"
            );
            self.apply(&Change::Flip {
                address: at,
                bit: 7,
            })?;
        }
        self.debugger.clear_breakpoint(self.branch)
    }

    /// Injects a fault and waits for its end. `whole`: a boot is followed up to the next kernel's own verdict.
    pub(crate) fn inject(&mut self, fault: &Fault, whole: bool) -> Result<End> {
        self.restart()?;
        self.go_to(fault.stop)
            .with_context(|| format!("going to {}", fault.stop))?;
        for change in &fault.changes {
            self.apply(change)?;
        }
        let entry = self.stage.header.kernel_entry;
        self.debugger.set_breakpoint(self.branch)?;
        self.debugger.set_breakpoint(entry)?;
        let end = self.wait_for_end();
        self.debugger.clear_breakpoint(self.branch)?;
        self.debugger.clear_breakpoint(entry)?;
        let end = end?;
        if end == End::Boot && whole {
            return self.boot();
        }
        Ok(end)
    }

    /// Everything as it was at the first instruction; the machine stands still.
    fn restart(&mut self) -> Result<()> {
        let machine = &mut self.started.machine;
        snapshot(machine, "loadvm", ENTERED)?;
        machine.lines_until(Duration::ZERO, |_| false);
        while machine.qmp().next_event().is_some() {}
        let pc = self.debugger.register(&["pc"])?;
        ensure!(
            pc == self.stage.start,
            "the snapshot is at {pc:#x}, not at the relocator's first instruction"
        );
        Ok(())
    }

    fn deadline(&self) -> Duration {
        FAULT_DEADLINE.mul_f64(self.started.machine.slowdown())
    }

    fn go_to(&mut self, stop: Stop) -> Result<()> {
        let deadline = self.deadline();
        match stop {
            Stop::First => Ok(()),
            Stop::MmuOn => {
                let address = self.stage.symbol("mmu_on")?;
                run_to(&mut self.debugger, address, deadline)
            }
            Stop::Verification => {
                let address = self.stage.symbol("update_with_instructions")?;
                run_to(&mut self.debugger, address, deadline)
            }
            Stop::Move(made) => {
                let address = self.stage.symbol("memmove")?;
                let wanted = *self.stage.moves.get(made).context("no such move")?;
                self.debugger.set_breakpoint(address)?;
                for _ in 0..OTHERS_LIMIT {
                    self.debugger.continue_until_stop(deadline)?;
                    let registers = self.debugger.general_registers()?;
                    if registers.get(..3)
                        == Some(&[wanted.target, wanted.source, wanted.size_bytes])
                    {
                        return self.debugger.clear_breakpoint(address);
                    }
                    // From a breakpoint, going on would stop at the same place.
                    self.debugger.step()?;
                }
                bail!("the move to {:#x} was not seen", wanted.target)
            }
        }
    }

    fn apply(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Flip { address, bit } => {
                let old = self.debugger.memory(*address, 1)?;
                let new: Vec<u8> = old.iter().map(|byte| byte ^ 1 << bit).collect();
                self.debugger.write_memory(*address, &new)
            }
            Change::Write { address, bytes } => self.debugger.write_memory(*address, bytes),
            Change::Register { name, value } => self.debugger.set_register(name, *value),
        }
    }

    fn wait_for_end(&mut self) -> Result<End> {
        let deadline = self.deadline();
        let began = Instant::now();
        self.debugger.start_running()?;
        loop {
            if self.debugger.stopped_within(POLL_INTERVAL)? {
                return self.judge_boot();
            }
            let event = self.started.machine.qmp().next_event();
            match event.as_ref().map(|event| event.name.as_str()) {
                Some("RESET") => {
                    self.stop()?;
                    return Ok(self.judge_reset());
                }
                Some("SHUTDOWN") => {
                    self.stopped_when_off()?;
                    return Ok(End::Damaged("the machine powers itself off".to_owned()));
                }
                _ => {}
            }
            if began.elapsed() > deadline {
                self.stop()?;
                return Ok(End::Hang(self.where_it_hangs()?));
            }
        }
    }

    /// Stops a machine that runs; the debugger is told of it.
    fn stop(&mut self) -> Result<()> {
        self.started.machine.qmp().execute("stop", &json!({}))?;
        // It may have stopped at a breakpoint just before: that is one message, too.
        ensure!(
            self.debugger.stopped_within(Duration::from_secs(10))?,
            "the machine was stopped, and the debugger was not told"
        );
        Ok(())
    }

    /// A machine that is off has to be reset before anything can be done with it.
    fn stopped_when_off(&mut self) -> Result<()> {
        let _ = self.debugger.stopped_within(Duration::from_secs(1))?;
        self.started
            .machine
            .qmp()
            .execute("system_reset", &json!({}))?;
        thread::sleep(LINE_PATIENCE);
        Ok(())
    }

    fn judge_reset(&mut self) -> End {
        let named = |line: &Line| line.text.contains(STOPPED);
        let lines = self.started.machine.lines_until(LINE_PATIENCE, named);
        match lines.iter().find(|line| named(line)) {
            Some(line) => {
                let at = line.text.find(STOPPED).unwrap_or(0);
                End::Named(line.text.get(at..).unwrap_or_default().to_owned())
            }
            None => End::Silent,
        }
    }

    /// The machine is at the branch to the next kernel, or at its first instruction.
    fn judge_boot(&mut self) -> Result<End> {
        let registers = self.debugger.general_registers()?;
        let state = State::read(&mut self.debugger)?;
        let entry = self.stage.header.kernel_entry;
        let target = if state.pc == self.branch {
            *registers
                .get(self.branch_register)
                .context("the branch's register is missing")?
        } else {
            state.pc
        };
        let tree = self.stage.header.device_tree;
        if target != entry {
            return Ok(End::Damaged(format!(
                "entered at {target:#x}, not {entry:#x}"
            )));
        }
        if registers.get(..4) != Some(&[tree, 0, 0, 0]) {
            let found = registers.get(..4).unwrap_or_default();
            return Ok(End::Damaged(format!("entered with x0 to x3 {found:x?}")));
        }
        if state.level != self.level || state.sctlr & SCTLR_M_C != 0 {
            return Ok(End::Damaged(format!("entered in another state: {state}")));
        }
        for content in &self.contents {
            let machine = &mut self.started.machine;
            let found = dump(machine, content.start, content.bytes.len() as u64)?;
            let parts = |bytes: &[u8]| {
                let before = bytes.get(..content.ignored.start).map(<[u8]>::to_vec);
                let after = bytes.get(content.ignored.end..).map(<[u8]>::to_vec);
                (before, after)
            };
            if parts(&found) != parts(&content.bytes) {
                return Ok(End::Damaged(format!(
                    "entered with another {}",
                    content.name
                )));
            }
        }
        Ok(End::Boot)
    }

    /// From the next kernel's entry to what it says of itself.
    fn boot(&mut self) -> Result<End> {
        let token = format!("token={} verdict=", self.token);
        let patience = HAND_OVER_DEADLINE.mul_f64(self.started.machine.slowdown());
        self.debugger.start_running()?;
        let found = |line: &Line| run::lab_value(line, &token).is_some();
        let lines = self.started.machine.lines_until(patience, found);
        let verdict = lines
            .iter()
            .find_map(|line| run::lab_value(line, &token))
            .map(str::to_owned);
        // It powers itself off now.
        let began = Instant::now();
        loop {
            match self.started.machine.qmp().next_event() {
                Some(event) if event.name == "SHUTDOWN" => {
                    self.stopped_when_off()?;
                    break;
                }
                Some(_) => {}
                None if began.elapsed() > patience => {
                    self.stop()?;
                    break;
                }
                None => thread::sleep(POLL_INTERVAL),
            }
        }
        Ok(match verdict.as_deref() {
            Some("ok") => End::Boot,
            Some(verdict) => End::Damaged(format!("the next kernel says {verdict}")),
            None => End::Hang("the next kernel says nothing".to_owned()),
        })
    }

    fn where_it_hangs(&mut self) -> Result<String> {
        let state = State::read(&mut self.debugger)?;
        let level = state.level.max(1);
        let mut words = state.to_string();
        for name in ["ESR", "ELR", "FAR"] {
            let name = format!("{name}_EL{level}");
            let known = self.debugger.register(&[name.as_str()]);
            if let Ok(value) = known {
                words.push_str(&format!(", {name} {value:#x}"));
            }
        }
        Ok(words)
    }
}

/// Runs up to an address that only the relocator and the next kernel execute with the MMU off or with its
/// tables; other programs that have the same virtual address are let go.
fn run_to(debugger: &mut Debugger, address: u64, deadline: Duration) -> Result<()> {
    debugger.set_breakpoint(address)?;
    for _ in 0..OTHERS_LIMIT {
        debugger.continue_until_stop(deadline)?;
        let state = State::read(debugger)?;
        if state.level > 0 && state.pc == address {
            return debugger.clear_breakpoint(address);
        }
        debugger.step()?;
    }
    bail!("{address:#x} was executed {OTHERS_LIMIT} times, never by the relocator")
}

/// A disk that nobody in the machine sees, for snapshots.
fn add_snapshot_disk(machine: &mut Machine) -> Result<()> {
    create(
        machine,
        json!({ "driver": "file", "filename": SNAPSHOT_FILE, "size": 0 }),
        "file",
    )?;
    let add = |machine: &mut Machine, options: Value| {
        machine.qmp().execute("blockdev-add", &options).map(drop)
    };
    add(
        machine,
        json!({ "driver": "file", "node-name": "snapshot-file", "filename": SNAPSHOT_FILE }),
    )?;
    create(
        machine,
        json!({ "driver": "qcow2", "file": "snapshot-file", "size": SNAPSHOT_DISK_BYTES }),
        "qcow2",
    )?;
    add(
        machine,
        json!({ "driver": "qcow2", "node-name": "snapshots", "file": "snapshot-file" }),
    )
}

/// Has QEMU create an image, and waits for it.
fn create(machine: &mut Machine, options: Value, name: &str) -> Result<()> {
    let qmp = machine.qmp();
    let arguments = json!({ "job-id": name, "options": options });
    qmp.execute("blockdev-create", &arguments)?;
    let began = Instant::now();
    loop {
        let jobs = qmp.execute("query-jobs", &json!({}))?;
        let word =
            |job: &Value, name: &str| job.get(name).and_then(Value::as_str).map(str::to_owned);
        let job = jobs
            .as_array()
            .and_then(|jobs| {
                jobs.iter()
                    .find(|job| word(job, "id").as_deref() == Some(name))
            })
            .context("QEMU's job has vanished")?;
        if word(job, "status").as_deref() == Some("concluded") {
            if let Some(error) = word(job, "error") {
                bail!("QEMU cannot create a disk for snapshots: {error}");
            }
            qmp.execute("job-dismiss", &json!({ "id": name }))?;
            return Ok(());
        }
        ensure!(
            began.elapsed() < HAND_OVER_DEADLINE,
            "QEMU does not create a disk for snapshots"
        );
        thread::sleep(POLL_INTERVAL);
    }
}

/// Takes a snapshot, or goes back to it.
fn snapshot(machine: &mut Machine, what: &str, name: &str) -> Result<()> {
    let answer = machine.qmp().monitor(&format!("{what} {name}"))?;
    ensure!(
        answer.trim().is_empty(),
        "QEMU's monitor says of {what} {name}: {}",
        answer.trim()
    );
    Ok(())
}

/// Physical memory.
fn dump(machine: &mut Machine, start: u64, size_bytes: u64) -> Result<Vec<u8>> {
    let path = machine.file(DUMP_FILE);
    let arguments = json!({ "val": start, "size": size_bytes, "filename": DUMP_FILE });
    machine.qmp().execute("pmemsave", &arguments)?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        bytes.len() as u64 == size_bytes,
        "QEMU wrote {} bytes of memory, not {size_bytes}",
        bytes.len()
    );
    Ok(bytes)
}
