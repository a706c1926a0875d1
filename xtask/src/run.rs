//! One row, from the files it needs to its verdict.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bench::kexec_tools::{self, KexecTools};
use crate::build;
use crate::chain;
use crate::check;
use crate::cpio::Archive;
use crate::formats::{self, Tools};
use crate::initramfs::{self, Base, Payload, PayloadPlace, SecondInitrd};
use crate::kexec_diff;
use crate::lab::{self, Lab};
use crate::qemu::{self, Description, Line, Machine};
use crate::rows::{Board, End, Firmware, Row, Script, WITNESS_LINE};
use crate::setup;
use crate::toolchain::{self, QemuSystem, Rust};
use crate::witness;

/// The tree of the board that `raspi3b` is.
const RASPI3B_TREE: &str = "bcm2837-rpi-3-b.dtb";
/// What is on a machine's disk, in its own directory.
const PAYLOAD_DIRECTORY: &str = "payload";
/// Until the first kernel's script runs, with a large initramfs on a busy machine.
pub(crate) const FIRST_BOOT_DEADLINE_MS: u64 = 180_000;
/// From there to the verdict: load, hand-over, boot, digest.
pub(crate) const VERDICT_DEADLINE_MS: u64 = 420_000;
/// From the verdict to the end of the machine.
const END_DEADLINE_MS: u64 = 30_000;
/// What the scripts print for the harness starts with this.
pub(crate) const PREFIX: &str = "KLEAP-LAB: ";
/// How long a machine that should wait for ever is watched.
const HALT_WATCHED_MS: u64 = 2_000;
/// What the command says when it has broken something.
const FAULT_LINE: &str = "kleap: TEST: ";
/// What the relocator says of every failure.
const FAILURE_LINE: &str = "kleap: hand-over stopped: ";
/// The first line of every kernel.
pub(crate) const KERNEL_ENTRY: &str = "Booting Linux on physical CPU";

/// What rows share.
#[derive(Debug)]
pub(crate) struct Assets {
    qemu: QemuSystem,
    kernels: BTreeMap<String, PathBuf>,
    base: Base,
    fault_base: Option<Base>,
    firmware: Option<PathBuf>,
    /// By kernel.
    raspi3b_trees: BTreeMap<&'static str, PathBuf>,
    kexec_tools: Option<KexecTools>,
    format_tools: Option<Tools>,
    /// An archive with what reads a crashed kernel's memory.
    dump_tools: Option<Vec<u8>>,
    /// By kernel and name.
    modules: BTreeMap<(&'static str, &'static str), Vec<u8>>,
}

impl Assets {
    /// Gets and builds what these rows need.
    pub(crate) fn prepare(lab: &Lab, rows: &[Row]) -> Result<Self> {
        remove_leftovers(lab)?;
        let mut kernels = BTreeMap::new();
        for name in rows.iter().flat_map(Row::kernels) {
            if !kernels.contains_key(name) {
                kernels.insert(name.to_owned(), setup::kernel(lab, name)?.image);
            }
        }
        let mut modules = BTreeMap::new();
        for row in rows {
            if row.modules.is_empty() {
                continue;
            }
            let directory = setup::modules(lab, row.first, row.modules)?;
            for &name in row.modules {
                let path = directory.join(format!("{name}.ko"));
                let content =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                modules.insert((row.first, name), content);
            }
        }
        let mut raspi3b_trees = BTreeMap::new();
        for row in rows.iter().filter(|row| row.board == Board::Raspi3b) {
            let tree = setup::device_tree(lab, row.first, RASPI3B_TREE)?;
            raspi3b_trees.insert(row.first, tree);
        }
        let qemu = toolchain::qemu_system(lab)?;
        let firmware = if rows.iter().any(|row| row.firmware == Firmware::Efi) {
            Some(setup::firmware(lab)?)
        } else {
            None
        };
        let busybox = setup::busybox(lab)?;
        let rust = Rust::find(lab)?;
        let guest = build::program(lab, &rust, build::GUEST)?;
        let kleap = build::program(lab, &rust, build::KLEAP)?;
        let base = Base::new(&busybox, &kleap, &guest)?;
        let fault_base = if rows.iter().any(|row| row.fault_injection) {
            let kleap = build::program(lab, &rust, build::KLEAP_FAULT)?;
            Some(Base::new(&busybox, &kleap, &guest)?)
        } else {
            None
        };
        let kexec_tools = if rows.iter().any(|row| row.kexec_tools) {
            Some(KexecTools::fetch(lab)?)
        } else {
            None
        };
        let wants_tools = |row: &Row| {
            matches!(
                row.script,
                Script::Format(_) | Script::FormatTemplate(..) | Script::Initrds
            )
        };
        let format_tools = if rows.iter().any(wants_tools) {
            Some(Tools::fetch(lab)?)
        } else {
            None
        };
        let dump_tools = if rows.iter().any(|row| row.captures) {
            Some(dump_tools_archive(lab)?)
        } else {
            None
        };
        Ok(Self {
            qemu,
            kernels,
            base,
            fault_base,
            firmware,
            raspi3b_trees,
            kexec_tools,
            format_tools,
            dump_tools,
            modules,
        })
    }

    /// Replaces a kernel by a file of the user's.
    pub(crate) fn set_kernel(&mut self, name: &str, image: PathBuf) {
        self.kernels.insert(name.to_owned(), image);
    }

    /// A kernel that was prepared.
    pub(crate) fn kernel(&self, name: &str) -> Result<&PathBuf> {
        self.kernels
            .get(name)
            .with_context(|| format!("the kernel {name} was not prepared"))
    }
}

/// An archive to be put behind an initrd.
fn dump_tools_archive(lab: &Lab) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    for (name, content) in kexec_tools::dump_tools(lab)? {
        archive.file(&name, &content)?;
    }
    archive.finish()?;
    Ok(bytes)
}

/// What came of a row.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The row's name.
    pub(crate) name: String,
    /// The failure's text, with the console's end.
    pub(crate) failure: Option<String>,
    /// How long it took.
    pub(crate) duration: Duration,
    /// What was seen, where it got that far.
    pub(crate) seen: Seen,
}

/// What was seen on the console.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// From the last line of the first kernel to the first line of the second, by the host's clock.
    pub(crate) gap: Option<Duration>,
    /// The lines of `kleap report`.
    pub(crate) report: Vec<String>,
    /// `kleap report --json`.
    pub(crate) json: Option<Value>,
    /// What the debugger saw.
    pub(crate) note: Option<String>,
}

/// Runs a row. `on_line` sees the console.
pub(crate) fn row(
    lab: &Lab,
    assets: &Assets,
    row: &Row,
    on_line: &mut dyn FnMut(&Line),
) -> Outcome {
    let began = Instant::now();
    let mut seen = Seen::default();
    let result = try_row(lab, assets, row, on_line, &mut seen);
    Outcome {
        name: row.name.clone(),
        failure: result.err().map(|error| format!("{error:#}")),
        duration: began.elapsed(),
        seen,
    }
}

fn try_row(
    lab: &Lab,
    assets: &Assets,
    row: &Row,
    on_line: &mut dyn FnMut(&Line),
    seen: &mut Seen,
) -> Result<()> {
    let token = token();
    let Started {
        mut machine,
        _initrd,
    } = start(lab, assets, row, &token)?;
    let mut note = None;
    let result = watch(&mut machine, row, &token, on_line, &mut note);
    *seen = Seen {
        note,
        ..look_back(machine.history())
    };
    let result = result.and_then(|()| {
        if let Some(most_bytes) = row.moved_max_bytes {
            check_moved(seen.json.as_ref(), most_bytes, row.may_be_refused)?;
        }
        if let (Some(verify), End::Verdict) = (row.verify, &row.end) {
            check_verified(seen.json.as_ref(), verify, row.fault_injection)?;
        }
        Ok(())
    });
    result.map_err(|error| {
        anyhow::anyhow!(
            "{error:#}\n{}to repeat it: {}",
            machine.last_lines(),
            row.replay_command()
        )
    })
}

/// A machine, and the file that it was started from.
#[derive(Debug)]
pub(crate) struct Started {
    /// The machine.
    pub(crate) machine: Machine,
    /// QEMU reads the file while it starts; the guard removes it whatever happens.
    _initrd: RemovedFile,
}

/// Starts a row's machine.
pub(crate) fn start(lab: &Lab, assets: &Assets, row: &Row, token: &str) -> Result<Started> {
    let run_directory = lab.directory("run")?.join(token);
    let initrd = lab.directory("run")?.join(format!("{token}.cpio"));
    let log = lab
        .path("logs")
        .join(format!("{}.log", row.name.replace('/', "_")));
    let base = if row.fault_injection {
        assets
            .fault_base
            .as_ref()
            .context("the fault-injection variant was not built")?
    } else {
        &assets.base
    };
    let guard = RemovedFile(initrd.clone());
    lab::fresh_directory(&run_directory)?;
    let command_line = write_initramfs(&initrd, assets, base, row, token, &run_directory)?;
    let description = Description {
        board: match row.board {
            Board::Virt => qemu::Board::Virt {
                cpu: row.kind.cpu.to_owned(),
                virtualization: row.kind.virtualization,
                its: row.its,
            },
            Board::Raspi3b => qemu::Board::Raspi3b {
                device_tree: assets
                    .raspi3b_trees
                    .get(row.first)
                    .context("the device tree of raspi3b was not prepared")?
                    .clone(),
            },
        },
        cpus: row.cpus,
        memory_mb: row.memory_mb,
        firmware: match row.firmware {
            Firmware::DeviceTree => None,
            Firmware::Efi => {
                let firmware = assets.firmware.as_ref();
                Some(firmware.context("UEFI was not prepared")?.clone())
            }
        },
        kernel: assets.kernel(row.first)?.clone(),
        initrd,
        command_line,
        memory_words: row.memory_words,
        machine_words: row.machine_words,
        disk: row.is_payload_on_disk.then_some(PAYLOAD_DIRECTORY),
        reboots: row.reboots,
        debugger: row.witness,
    };
    Ok(Started {
        machine: Machine::start(&assets.qemu, &description, &run_directory, &log)?,
        _initrd: guard,
    })
}

/// Writes what the machine starts with, and gives the first kernel's command line.
fn write_initramfs(
    path: &Path,
    assets: &Assets,
    base: &Base,
    row: &Row,
    token: &str,
    directory: &Path,
) -> Result<String> {
    if let Script::Chain { kernels, plan, .. } = &row.script {
        let mut images = Vec::new();
        for &name in *kernels {
            images.push((name, assets.kernel(name)?.as_path()));
        }
        let initrd = initramfs::write_chain(path, base, &images, plan.as_deref())?;
        return Ok(row.chain_command_line(token, &initrd));
    }
    let mut payload = Payload {
        image: assets.kernel(row.second)?.clone(),
        total_bytes: row.payload_bytes,
    };
    // What the second kernel must find, where that is not what is written here.
    let mut expected: Option<SecondInitrd> = None;
    let mut extra_files = match &assets.kexec_tools {
        Some(tools) if row.kexec_tools => tools.files.clone(),
        _ => Vec::new(),
    };
    for &name in row.modules {
        let content = assets.modules.get(&(row.first, name));
        let content = content.with_context(|| format!("the module {name} was not prepared"))?;
        extra_files.push((format!("lab/{name}.ko"), content.clone()));
    }
    if matches!(row.script, Script::KexecDiff(_)) {
        extra_files.extend(kexec_diff::files());
    }
    if row.captures {
        let archive = assets.dump_tools.as_ref();
        let archive = archive.context("the tools for dumps were not prepared")?;
        extra_files.push(("lab/dump-tools.cpio".to_owned(), archive.clone()));
        // It has to fit into what is set aside.
        payload.total_bytes = 0;
    }
    let tools = || {
        let tools = assets.format_tools.as_ref();
        tools.context("the formats' tools were not prepared")
    };
    match &row.script {
        Script::Format(format) | Script::FormatTemplate(format, _) => {
            let (initrd, tree) = (directory.join("initrd"), directory.join("tree.dtb"));
            let second = initramfs::write_second(&initrd, base)?;
            formats::dump_tree(&assets.qemu, row, &tree)?;
            payload.image = tools()?.make(
                *format,
                &formats::Inputs {
                    image: &payload.image,
                    initrd: &initrd,
                    tree: &tree,
                    command_line: &row.second_command_line(token, &second),
                    directory,
                },
            )?;
            payload.total_bytes = 0;
        }
        Script::Initrds => {
            let initrd = directory.join("initrd");
            initramfs::write_second(&initrd, base)?;
            let mut both = Vec::new();
            let mut archive = Archive::new(&mut both);
            archive.file("kernel/arm64/microcode/none", b"none")?;
            archive.finish()?;
            let early = both.clone();
            both.extend(fs::read(&initrd).context("cannot read the second initrd")?);
            expected = Some(SecondInitrd {
                sha256: initramfs::sha256(&both),
                size_bytes: both.len() as u64,
            });
            let packed = directory.join("initrd.zst");
            tools()?.compress("zstd", &initrd, &packed)?;
            let packed = fs::read(packed);
            extra_files.push(("lab/early.cpio".to_owned(), early));
            extra_files.push((
                "lab/initrd.zst".to_owned(),
                packed.context("cannot read the compressed initrd")?,
            ));
            payload.total_bytes = 0;
        }
        _ => {}
    }
    let place = match row.is_payload_on_disk {
        true => PayloadPlace::Directory(directory.join(PAYLOAD_DIRECTORY)),
        false => PayloadPlace::Initramfs,
    };
    initramfs::write_first(path, base, &payload, &place, |second| {
        let second = expected.as_ref().unwrap_or(second);
        Ok((row.script_text(token, second), extra_files))
    })?;
    Ok(row.first_command_line(token))
}

/// The second kernel's report says that no more than this was moved. Where the load was refused there is none.
fn check_moved(report: Option<&Value>, most_bytes: u64, may_be_refused: bool) -> Result<()> {
    if report.is_none() && may_be_refused {
        return Ok(());
    }
    let moved_bytes = report
        .and_then(|report| report.get("moved_bytes")?.as_u64())
        .context("the report does not say what was moved")?;
    ensure!(
        moved_bytes <= most_bytes,
        "{moved_bytes} bytes were moved at the hand-over, not {most_bytes}"
    );
    Ok(())
}

/// That the relocator did what `--verify` said, and with the instructions made for it unless it was told to use
/// none.
fn check_verified(report: Option<&Value>, verify: &str, portable: bool) -> Result<()> {
    let field = |name| report.and_then(|report| report.get(name));
    let found = (
        field("verify").and_then(Value::as_str),
        field("digest_instructions").and_then(Value::as_bool),
    );
    let expected = (Some(verify), Some(verify != "none" && !portable));
    ensure!(
        found == expected,
        "the report says of verification and its instructions {found:?}, not {expected:?}"
    );
    Ok(())
}

/// What the scripts ask of the harness while they wait for something.
enum Wish {
    /// The verdict.
    Verdict(String),
    /// A command for QEMU's monitor: memory that is plugged in cannot come from inside.
    Monitor(String),
}

fn watch(
    machine: &mut Machine,
    row: &Row,
    token: &str,
    on_line: &mut dyn FnMut(&Line),
    note: &mut Option<String>,
) -> Result<()> {
    machine.wait_for(
        "the first kernel's script",
        FIRST_BOOT_DEADLINE_MS,
        &mut *on_line,
        |line| lab_value(line, "role=").map(|_| ()),
    )?;
    if row.witness {
        machine.wait_for("the pause", VERDICT_DEADLINE_MS, &mut *on_line, |line| {
            (lab_value(line, "") == Some(WITNESS_LINE)).then_some(())
        })?;
        *note = Some(witness::watch(machine).context("the debugger")?);
    }
    let verdict_deadline_ms = row.verdict_deadline_ms.unwrap_or(VERDICT_DEADLINE_MS);
    match &row.end {
        // A machine that cannot power itself off ends with its verdict.
        End::Verdict | End::Checks(_) if row.board == Board::Raspi3b => {
            let verdict = wait_for_word(machine, token, verdict_deadline_ms, on_line)?;
            ensure!(verdict == "ok", "the machine's own verdict: {verdict}");
        }
        End::Verdict | End::Checks(_) | End::KexecDiff(_) => {
            wait_for_ok(machine, token, verdict_deadline_ms, on_line)?;
        }
        End::Complaint { text } => {
            let verdict = wait_for_verdict(machine, token, verdict_deadline_ms, on_line)?;
            ensure!(
                verdict.starts_with("fail ") && verdict.contains(text),
                "the machine's own verdict, where it should complain of '{text}': {verdict}"
            );
        }
        End::Chain {
            hops,
            lost_kb_per_hop,
        } => {
            let mut found = Vec::new();
            for hop in 0..=*hops {
                let start = format!("hop={hop} ");
                let verdict = format!("token={token} verdict=");
                let what = format!("the kernel after {hop} hand-overs");
                // A kernel that finds something wrong says so instead.
                let line = machine.wait_for(&what, verdict_deadline_ms, &mut *on_line, |line| {
                    lab_value(line, &start)
                        .map(|rest| Ok(rest.to_owned()))
                        .or_else(|| lab_value(line, &verdict).map(|text| Err(text.to_owned())))
                })?;
                match line {
                    Ok(rest) => found.push(chain::Found::parse(&rest)?),
                    Err(verdict) => bail!("{what}: the machine's own verdict: {verdict}"),
                }
            }
            wait_for_ok(machine, token, verdict_deadline_ms, on_line)?;
            *note = Some(chain::compare(&found, *lost_kb_per_hop)?);
        }
        End::NoRoot => {
            let end = machine.wait_for_end(VERDICT_DEADLINE_MS, &mut *on_line)?;
            ensure!(
                end == "guest-reset",
                "the machine ended with {end}, not with a reset"
            );
            let seen = |text: &str| {
                machine
                    .history()
                    .iter()
                    .any(|line| line.text.contains(text))
            };
            ensure!(
                seen("VFS: Unable to mount root fs"),
                "the second kernel did not get as far as its root file system"
            );
            ensure!(
                !seen("Initramfs unpacking failed"),
                "the second kernel took the first one's initrd"
            );
        }
        End::Watchdog { resets } => {
            let end = machine.wait_for_end(verdict_deadline_ms, &mut *on_line)?;
            let fired = machine.has_seen("WATCHDOG");
            let entries = machine
                .history()
                .iter()
                .filter(|line| line.text.contains(KERNEL_ENTRY))
                .count();
            ensure!(entries == 2, "{entries} kernels were started, not 2");
            let expected = if *resets {
                ("guest-reset", true)
            } else {
                ("guest-shutdown", false)
            };
            ensure!(
                (end.as_str(), fired) == expected,
                "the machine ended with {end}, with an event of the watchdog: {fired}; expected {expected:?}"
            );
        }
        End::Reset { line: expected } => {
            wait_for_reason(machine, "guest-reset", verdict_deadline_ms, on_line)?;
            check_no_second_kernel(machine)?;
            check_lines(machine, &[expected])?;
        }
        End::Off { line: expected } => {
            wait_for_reason(machine, "guest-shutdown", verdict_deadline_ms, on_line)?;
            check_no_second_kernel(machine)?;
            check_lines(machine, &[expected])?;
        }
        End::SilentReset => {
            wait_for_reason(machine, "guest-reset", verdict_deadline_ms, on_line)?;
            check_no_second_kernel(machine)?;
            check_lines(machine, &[FAULT_LINE])?;
            let said = machine
                .history()
                .iter()
                .find(|line| line.text.contains(FAILURE_LINE));
            if let Some(line) = said {
                bail!(
                    "the console should have been silent, and says: {}",
                    line.text
                );
            }
        }
        End::Halt { line: expected } => {
            machine.wait_for(
                "the line that says it stops",
                verdict_deadline_ms,
                &mut *on_line,
                |line| line.text.contains(expected).then_some(()),
            )?;
            let more = machine.wait_for_end(HALT_WATCHED_MS, &mut *on_line);
            ensure!(
                machine.is_running()?,
                "the machine should wait, and has ended: {more:?}"
            );
            check_no_second_kernel(machine)?;
            let after = machine.history().last();
            ensure!(
                after.is_some_and(|line| line.text.contains(expected)),
                "it says more after it has stopped: {after:?}"
            );
        }
    }
    if let End::Checks(expected) = &row.end {
        *note = Some(check::judge(machine.history(), expected)?);
    }
    if let End::KexecDiff(cases) = &row.end {
        *note = Some(kexec_diff::judge(machine.history(), cases)?);
    }
    check_lines(machine, row.lines)
}

/// Waits for the end of the machine, which must have this reason.
fn wait_for_reason(
    machine: &mut Machine,
    reason: &str,
    deadline_ms: u64,
    on_line: &mut dyn FnMut(&Line),
) -> Result<()> {
    let end = machine.wait_for_end(deadline_ms, on_line)?;
    ensure!(
        end == reason,
        "the machine ended with {end}, not with {reason}"
    );
    Ok(())
}

fn check_no_second_kernel(machine: &Machine) -> Result<()> {
    let entries = machine
        .history()
        .iter()
        .filter(|line| line.text.contains(KERNEL_ENTRY))
        .count();
    ensure!(entries == 1, "{entries} kernels were started, not one");
    Ok(())
}

/// Lines with these texts are on the console, in this order.
fn check_lines(machine: &Machine, expected: &[&str]) -> Result<()> {
    let mut lines = machine.history().iter();
    for text in expected {
        ensure!(
            lines.any(|line| line.text.contains(text)),
            "the console does not say '{text}', or not in its turn"
        );
    }
    Ok(())
}

fn wait_for_ok(
    machine: &mut Machine,
    token: &str,
    deadline_ms: u64,
    on_line: &mut dyn FnMut(&Line),
) -> Result<()> {
    let verdict = wait_for_verdict(machine, token, deadline_ms, on_line)?;
    ensure!(verdict == "ok", "the machine's own verdict: {verdict}");
    Ok(())
}

/// The verdict; what becomes of the machine after it is not looked at.
fn wait_for_word(
    machine: &mut Machine,
    token: &str,
    deadline_ms: u64,
    on_line: &mut dyn FnMut(&Line),
) -> Result<String> {
    let verdict_start = format!("token={token} verdict=");
    loop {
        let wish = machine.wait_for("the verdict", deadline_ms, &mut *on_line, |line| {
            let verdict = lab_value(line, &verdict_start).map(str::to_owned);
            let command = lab_value(line, "monitor ").map(str::to_owned);
            verdict
                .map(Wish::Verdict)
                .or_else(|| command.map(Wish::Monitor))
        })?;
        match wish {
            Wish::Verdict(verdict) => return Ok(verdict),
            Wish::Monitor(command) => {
                let answer = machine.qmp().monitor(&command)?;
                ensure!(
                    answer.trim().is_empty(),
                    "QEMU's monitor says of '{command}': {}",
                    answer.trim()
                );
            }
        }
    }
}

/// The verdict, after which the machine has powered off.
fn wait_for_verdict(
    machine: &mut Machine,
    token: &str,
    deadline_ms: u64,
    on_line: &mut dyn FnMut(&Line),
) -> Result<String> {
    let verdict = wait_for_word(machine, token, deadline_ms, on_line)?;
    let end = machine.wait_for_end(END_DEADLINE_MS, &mut *on_line)?;
    ensure!(
        end == "guest-shutdown",
        "the machine ended with {end}, not by powering off (its own verdict: {verdict})"
    );
    Ok(verdict)
}

/// What follows a word in a line for the harness.
pub(crate) fn lab_value<'line>(line: &'line Line, word: &str) -> Option<&'line str> {
    // The kernel may have put a message of its own before it, on the same line.
    let start = line.text.find(PREFIX)?;
    line.text.get(start + PREFIX.len()..)?.strip_prefix(word)
}

/// Collects what the table shows.
fn look_back(history: &[Line]) -> Seen {
    let mut entries = Vec::new();
    for (index, line) in history.iter().enumerate() {
        if line.text.contains(KERNEL_ENTRY) {
            entries.push(index);
        }
    }
    let gap = entries.get(1).and_then(|&index| {
        let before = history.get(index.checked_sub(1)?)?;
        Some(history.get(index)?.at.saturating_sub(before.at))
    });
    let json = between(history, "json-begin", "json-end").join("\n");
    Seen {
        gap,
        report: between(history, "report-begin", "report-end"),
        json: serde_json::from_str(&json).ok(),
        note: None,
    }
}

fn between(history: &[Line], begin: &str, end: &str) -> Vec<String> {
    history
        .iter()
        .skip_while(|line| lab_value(line, begin).is_none())
        .skip(1)
        .take_while(|line| lab_value(line, end).is_none())
        .filter(|line| !is_kernel_message(&line.text))
        .map(|line| line.text.clone())
        .collect()
}

/// Whether the kernel wrote a line, between those of the program that is listened to.
pub(crate) fn is_kernel_message(text: &str) -> bool {
    let Some((time, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    time.contains('.') && time.trim().parse::<f64>().is_ok()
}

/// A name that no other run has.
pub(crate) fn token() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|duration| duration.as_nanos())
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count}", process::id(), nanoseconds)
}

/// Removes what runs left behind that were killed: an initramfs can be 400 MB. Names start with the
/// process that made them.
fn remove_leftovers(lab: &Lab) -> Result<()> {
    let directory = lab.directory("run")?;
    for entry in fs::read_dir(&directory)
        .context("cannot list unfinished runs")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .split('-')
            .next()
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let alive = owner.is_some_and(|process| Path::new(&format!("/proc/{process}")).exists());
        if !alive {
            let path = entry.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            // Another instance may have removed it meanwhile.
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
        }
    }
    Ok(())
}

/// A file that does not outlive its run.
#[derive(Debug)]
struct RemovedFile(PathBuf);

impl Drop for RemovedFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<Line> {
        texts
            .iter()
            .enumerate()
            .map(|(index, text)| Line {
                at: Duration::from_millis(10 * index as u64 * index as u64),
                text: (*text).to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_console_is_understood() {
        let history = lines(&[
            "[    0.000000] Booting Linux on physical CPU 0x0",
            "[    2.5] kexec_core: Starting new kernel",
            "[    0.000000] Booting Linux on physical CPU 0x0",
            "KLEAP-LAB: report-begin",
            "[    1.771696] random: crng init done",
            "total 12 ms",
            "[ 1.0] noiseKLEAP-LAB: report-end",
            "KLEAP-LAB: json-begin",
            "{ \"a\":",
            "1 }",
            "KLEAP-LAB: json-end",
        ]);
        let seen = look_back(&history);
        assert_eq!(seen.gap, Some(Duration::from_millis(30)));
        assert_eq!(seen.report, ["total 12 ms"]);
        assert_eq!(seen.json.unwrap()["a"], 1);
    }
}
