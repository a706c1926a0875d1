//! A virtual machine: started, listened to, and never left behind.
//!
//! The serial console is QEMU's standard output, read by a thread that stamps each line with the
//! host's clock. Expectations are matched against those lines with deadlines; a line that means
//! that the kernel is lost ends the wait at once. QEMU is killed when the [`Machine`] is dropped,
//! and by the kernel (`setpriv --pdeathsig`) when this program dies without dropping anything.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::qmp::{Event, Qmp};
use crate::toolchain::QemuSystem;

/// Multiplies every deadline, for machines that are slow or busy.
const SLOWDOWN_VARIABLE: &str = "KLEAP_LAB_SLOWDOWN";
/// Most that deadlines can be multiplied by: minutes become days.
const SLOWDOWN_MAX: f64 = 1000.0;
/// A panic that a script has made on purpose, for a crash kernel: what matters is what comes after it.
const WANTED_PANIC: &str = "Kernel panic - not syncing: sysrq triggered crash";
/// Lines that no kernel of the lab prints while it works.
const LOST: &[&str] = &[
    "Kernel panic - not syncing",
    "Internal error: Oops",
    "Unable to handle kernel",
    "kernel BUG at",
    "Attempted to kill init",
];
/// After such a line, what else the kernel says is collected for so long.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// How many lines of the console a failure shows.
const SHOWN_LINES: usize = 60;
/// How long QEMU may take to end once it was told to.
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// How often QEMU is asked whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The machine that QEMU emulates.
#[derive(Debug, Clone)]
pub(crate) enum Board {
    /// `virt`: PSCI, a GICv3, and a device tree of QEMU's own.
    Virt {
        /// `-cpu`.
        cpu: String,
        /// Whether the machine has EL2.
        virtualization: bool,
        /// Whether the interrupt controller has an ITS.
        its: bool,
    },
    /// `raspi3b`: four Cortex-A53 that wait in a spin-table, no PSCI, no GIC; 1 GiB of memory, which is the
    /// only size that QEMU takes. The console is its PL011, as on `virt`.
    Raspi3b {
        /// The device tree that comes with the kernel.
        device_tree: PathBuf,
    },
}

/// What is started.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    /// Which machine.
    pub(crate) board: Board,
    /// How many CPUs.
    pub(crate) cpus: u32,
    /// How much memory.
    pub(crate) memory_mb: u32,
    /// UEFI, if the first kernel is to be started by it, with ACPI; without, QEMU starts the kernel
    /// itself, with a device tree.
    pub(crate) firmware: Option<PathBuf>,
    /// The first kernel.
    pub(crate) kernel: PathBuf,
    /// Its initrd.
    pub(crate) initrd: PathBuf,
    /// Its command line.
    pub(crate) command_line: String,
    /// What else `-m` says, such as room for memory that is added later.
    pub(crate) memory_words: &'static str,
    /// More words for QEMU.
    pub(crate) machine_words: &'static [&'static str],
    /// A directory below the machine's own, which the machine sees as a disk with a FAT file system.
    pub(crate) disk: Option<&'static str>,
    /// Whether the machine starts again after a reset; if not, that is its end.
    pub(crate) reboots: bool,
    /// Whether to open a socket for a debugger, which stops the machine when it connects.
    pub(crate) debugger: bool,
}

/// A line of the serial console.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// When it ended, since QEMU was started.
    pub(crate) at: Duration,
    /// Without line end and control characters.
    pub(crate) text: String,
}

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    qmp: Qmp,
    events: Vec<Event>,
    lines: Receiver<Line>,
    history: Vec<Line>,
    run_directory: PathBuf,
    #[allow(
        dead_code,
        reason = "keeps the sockets' path valid; read by `debugger_socket`"
    )]
    run_handle: File,
    log: PathBuf,
    slowdown: f64,
}

impl Machine {
    /// Starts a machine. `run_directory` is its own, for sockets and its disk; `log` gets the console.
    pub(crate) fn start(
        qemu: &QemuSystem,
        description: &Description,
        run_directory: &Path,
        log: &Path,
    ) -> Result<Self> {
        if let Some(directory) = log.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let mut log_file =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        // Names of sockets are limited to 107 bytes and a work tree may be deep, so they are
        // relative for QEMU and go by way of a file descriptor here.
        let run_handle = File::open(run_directory).context("cannot open the run directory")?;
        let words = command_words(qemu, description);
        writeln!(log_file, "# {}", words.join(" ")).context("cannot write the log")?;
        let errors = File::create(run_directory.join("stderr")).context("cannot create a log")?;
        let (program, arguments) = words
            .split_first()
            .context("QEMU's command line is empty")?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(run_directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let stdout = child.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        // Ends when QEMU closes its output.
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while let Ok(count) = reader.read_until(b'\n', &mut bytes) {
                if count == 0 {
                    break;
                }
                let at = started.elapsed();
                let text: String = String::from_utf8_lossy(&bytes)
                    .chars()
                    .filter(|letter| !letter.is_control() || *letter == '\t')
                    .collect();
                let _ = writeln!(log_file, "{:9.3} {text}", at.as_secs_f64());
                if sender.send(Line { at, text }).is_err() {
                    break;
                }
                bytes.clear();
            }
        });
        let socket = descriptor_path(&run_handle, "qmp");
        let connected = Qmp::connect(&socket, || match child.try_wait() {
            Ok(Some(status)) => bail!("it ended with {status}"),
            _ => Ok(()),
        });
        let qmp = match connected {
            Ok(qmp) => qmp,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let text = fs::read_to_string(run_directory.join("stderr")).unwrap_or_default();
                return Err(match text.trim() {
                    "" => error.context("QEMU did not start"),
                    text => error.context(format!("QEMU did not start: {text}")),
                });
            }
        };
        Ok(Self {
            child,
            qmp,
            events: Vec::new(),
            lines,
            history: Vec::new(),
            run_directory: run_directory.to_path_buf(),
            run_handle,
            log: log.to_path_buf(),
            slowdown: slowdown(),
        })
    }

    /// The emulator's own word.
    pub(crate) fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// How much longer than usual everything may take.
    pub(crate) fn slowdown(&self) -> f64 {
        self.slowdown
    }

    /// A file in the machine's own directory, which is removed with it; QEMU knows it by the bare name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.run_directory.join(name)
    }

    /// The lines that have come since the last one was taken, and what comes until `found` accepts one or
    /// nothing has come for `patience`.
    pub(crate) fn lines_until(
        &mut self,
        patience: Duration,
        found: impl Fn(&Line) -> bool,
    ) -> Vec<Line> {
        let mut lines: Vec<Line> = self.lines.try_iter().collect();
        while !lines.iter().any(&found) {
            match self.lines.recv_timeout(patience) {
                Ok(line) => lines.push(line),
                Err(_) => break,
            }
        }
        self.history.extend(lines.iter().cloned());
        lines
    }

    /// The path by which the debugger's socket can be reached.
    pub(crate) fn debugger_socket(&self) -> PathBuf {
        descriptor_path(&self.run_handle, "gdb")
    }

    /// Everything the console showed.
    pub(crate) fn history(&self) -> &[Line] {
        &self.history
    }

    /// Whether QEMU has told of such an event, known once the machine has ended.
    pub(crate) fn has_seen(&self, event: &str) -> bool {
        self.events.iter().any(|seen| seen.name == event)
    }

    /// Waits for a line that `found` accepts. `on_line` sees every line, the accepted one included.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        deadline_ms: u64,
        mut on_line: impl FnMut(&Line),
        mut found: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let began = Instant::now();
        let mut limit = Duration::from_millis(deadline_ms).mul_f64(self.slowdown);
        let mut lost: Option<String> = None;
        loop {
            let left = limit.saturating_sub(began.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.history.push(line.clone());
                    on_line(&line);
                    if let Some(value) = found(&line) {
                        return Ok(value);
                    }
                    let is_wanted = line.text.contains(WANTED_PANIC);
                    if lost.is_none()
                        && !is_wanted
                        && LOST.iter().any(|text| line.text.contains(text))
                    {
                        lost = Some(line.text);
                        limit = began.elapsed() + LAST_WORDS;
                    }
                }
                Err(reason) => {
                    if let Some(text) = lost {
                        bail!("waiting for {what}: the kernel is lost: {text}");
                    }
                    match reason {
                        RecvTimeoutError::Timeout => bail!(
                            "waiting for {what}: nothing after {:.0} s ({SLOWDOWN_VARIABLE}=2 \
                             doubles every deadline)",
                            limit.as_secs_f64()
                        ),
                        RecvTimeoutError::Disconnected => {
                            let end = self.end_reason()?;
                            bail!("waiting for {what}: the machine ended ({end})")
                        }
                    }
                }
            }
        }
    }

    /// Waits until the machine has ended by itself and gives the reason in QEMU's words, such as
    /// `guest-shutdown` or `guest-reset`.
    pub(crate) fn wait_for_end(
        &mut self,
        deadline_ms: u64,
        mut on_line: impl FnMut(&Line),
    ) -> Result<String> {
        let began = Instant::now();
        let limit = Duration::from_millis(deadline_ms).mul_f64(self.slowdown);
        loop {
            let left = limit.saturating_sub(began.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.history.push(line.clone());
                    on_line(&line);
                }
                Err(RecvTimeoutError::Disconnected) => return self.end_reason(),
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the machine did not end within {:.0} s",
                        limit.as_secs_f64()
                    )
                }
            }
        }
    }

    /// Whether QEMU has not ended, and its CPUs are not stopped.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        if self
            .child
            .try_wait()
            .context("cannot ask for QEMU")?
            .is_some()
        {
            return Ok(false);
        }
        let status = self.qmp.execute("query-status", &serde_json::json!({}))?;
        Ok(status.get("status").and_then(serde_json::Value::as_str) == Some("running"))
    }

    /// Why the machine ended, once its console is closed.
    fn end_reason(&mut self) -> Result<String> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for QEMU")? {
                break status;
            }
            if began.elapsed() > QUIT_DEADLINE {
                bail!("QEMU closed the console but does not end");
            }
            thread::sleep(POLL_INTERVAL);
        };
        self.events.extend(self.qmp.last_events());
        let shutdown = self
            .events
            .iter()
            .rev()
            .find(|event| event.name == "SHUTDOWN");
        match shutdown {
            Some(event) => Ok(event.reason.clone()),
            None => {
                let path = self.run_directory.join("stderr");
                let text = fs::read_to_string(path).unwrap_or_default();
                bail!("QEMU ended without a shutdown ({status}): {}", text.trim())
            }
        }
    }

    /// The end of the console, for a failure.
    pub(crate) fn last_lines(&mut self) -> String {
        self.history.extend(self.lines.try_iter());
        let skipped = self.history.len().saturating_sub(SHOWN_LINES);
        let mut text = String::new();
        for line in self.history.iter().skip(skipped) {
            text.push_str(&format!("  {:9.3} {}\n", line.at.as_secs_f64(), line.text));
        }
        text.push_str(&format!("the whole console: {}\n", self.log.display()));
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Not QMP's `quit`: it waits for an answer, and nothing in the machine is worth saving.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.run_directory);
    }
}

/// A name inside an open directory, short enough for a socket's address.
fn descriptor_path(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// How much longer everything may take.
fn slowdown() -> f64 {
    read_slowdown().unwrap_or(1.0)
}

fn read_slowdown() -> Result<f64> {
    let Ok(text) = env::var(SLOWDOWN_VARIABLE) else {
        return Ok(1.0);
    };
    text.parse::<f64>()
        .ok()
        .filter(|value| (1.0..=SLOWDOWN_MAX).contains(value))
        .with_context(|| format!("{SLOWDOWN_VARIABLE}={text}: a number from 1 to {SLOWDOWN_MAX}"))
}

/// Refuses a slowdown that is none, before anything is built.
pub(crate) fn check_slowdown() -> Result<()> {
    read_slowdown().map(|_| ())
}

/// QEMU's command line.
fn command_words(qemu: &QemuSystem, description: &Description) -> Vec<String> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let mut words: Vec<String> = ["setpriv", "--pdeathsig", "KILL"].map(str::to_owned).into();
    words.extend(qemu.words.iter().cloned());
    let mut add = |option: &str, value: String| {
        words.push(option.to_owned());
        words.push(value);
    };
    match &description.board {
        Board::Virt {
            cpu,
            virtualization,
            its,
        } => {
            add(
                "-M",
                format!(
                    "virt,gic-version=3,virtualization={},its={}",
                    on_off(*virtualization),
                    on_off(*its)
                ),
            );
            add("-cpu", cpu.clone());
        }
        Board::Raspi3b { device_tree } => {
            add("-M", "raspi3b".to_owned());
            add("-dtb", device_tree.display().to_string());
        }
    }
    add("-smp", description.cpus.to_string());
    add(
        "-m",
        format!("{}M{}", description.memory_mb, description.memory_words),
    );
    add("-accel", "tcg,thread=multi".to_owned());
    // The default network card wants a ROM that Debian's package lacks.
    add("-nic", "none".to_owned());
    add("-display", "none".to_owned());
    add("-monitor", "none".to_owned());
    add("-serial", "stdio".to_owned());
    add("-qmp", "unix:qmp,server=on,wait=off".to_owned());
    if let Some(firmware) = &description.firmware {
        // It finds kernel, initrd and command line by way of fw_cfg and starts the kernel's EFI stub.
        add("-bios", firmware.display().to_string());
    }
    add("-kernel", description.kernel.display().to_string());
    add("-initrd", description.initrd.display().to_string());
    add("-append", description.command_line.clone());
    if let Some(disk) = description.disk {
        add(
            "-drive",
            format!("if=none,id=disk,format=raw,readonly=on,file=fat:{disk}"),
        );
        add("-device", "virtio-blk-device,drive=disk".to_owned());
    }
    if description.debugger {
        add("-gdb", "unix:gdb,server=on,wait=off".to_owned());
    }
    words.extend(
        description
            .machine_words
            .iter()
            .map(|&word| word.to_owned()),
    );
    // A reset ends the machine, with an event that says so.
    if !description.reboots {
        words.push("-no-reboot".to_owned());
    }
    words
}
