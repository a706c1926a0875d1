//! `cargo xtask bench`: kleap beside Debian's own kexec-tools, in the same machine and the same run.
//!
//! Problem: times under an emulator say nothing by themselves, and less on a host that others use as
//! well. Choice: everything is measured for both programs, turn by turn, on the same virtual machine
//! with the same kernels and the same payload, and what is said of it is a ratio with the conditions
//! beside it. Nothing here passes or fails by a time: a run fails only if a hand-over does.
//!
//! - [`load`]: what it costs to load and unload, many times in one machine.
//! - [`blackout`]: how long nothing runs, for payloads from the smallest to a gigabyte.
//!   And the same beside `kexec_file_load(2)`, and at a panic.
//! - [`instructions`]: instructions that the relocator executes for each byte, counted.
//! - [`tables`]: bytes of translation tables, computed, for machines of any size.
//!
//! Each prints a table and writes `target/bench/NAME.json`, those that measure also `target/bench/NAME.svg`; the fields of
//! the JSON are described in `docs/benchmarks.md`.
//!
//! The interrupt controller has no ITS. With one, the LPI tables of the first kernel are still live after
//! a boot by device tree; kexec-tools leaves them so, and may place the next kernel over them, which
//! then dies or says that its memory is probably corrupted. kleap turns LPIs off and needs no such care,
//! but what is compared has to run for both.

pub(crate) mod blackout;
pub(crate) mod instructions;
pub(crate) mod kexec_tools;
pub(crate) mod load;
mod stats;
mod svg;
pub(crate) mod tables;

use std::env::consts::ARCH;
use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::{self, Lab};
use crate::rows::{self, Kind, Row, Script, Strategy};
use crate::setup::{self, Kernel};
use crate::toolchain;

/// The machine of all measurements: a v8.0 CPU with EL2, as the emulator runs it fastest.
const KIND: Kind = rows::EL2_A57;
/// As many as the smallest host of the lab has cores.
const CPUS: u32 = 2;
/// Room for the largest payload four times: files, the program's copy, the kernel's copy, free.
const MEMORY_MB: u32 = 6144;
/// The payload of loads, and of the quick run.
const USUAL_MB: u64 = 47;
/// The largest payload, in MB: it has to fit into the machine as often as said above.
const SIZE_MAX_MB: u64 = 1000;
/// More than this takes days.
const REPETITIONS_MAX: u32 = 1000;

/// The kernel that hands over, where the user names none.
const DEFAULT_FROM: &str = "6.1";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// Loading and unloading
    Load,
    /// From exec to the next kernel
    Blackout,
    /// The same beside kexec_file_load(2), with CMA and without, on a kernel that is built for it
    File,
    /// From a panic to the crash kernel, beside kexec-tools
    Panic,
    /// Instructions that the relocator executes for each byte, counted
    Instructions,
    /// Translation tables for machines of 4 GiB to 16 TiB, computed
    Tables,
    /// Everything but `panic` and `file`, which has a kernel to build
    All,
}

/// What the user asks for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Wish {
    /// What is measured [default: all]
    #[arg(value_enum)]
    pub(crate) what: Option<What>,
    /// One load of each kind, one hand-over of each kind with 47 MB, none with the slow checks of
    /// kexec-tools: shows that the benchmark works, measures nothing
    #[arg(long)]
    pub(crate) quick: bool,
    /// Payloads of the hand-overs, in MB: Image and initrd together
    #[arg(long, value_name = "MB,...", value_delimiter = ',', default_values_t = [16, 47, 380, 1000])]
    pub(crate) sizes: Vec<u64>,
    /// How many loads of each kind
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) loads: u32,
    /// How many hand-overs of each kind
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: u32,
    /// How many hand-overs of kexec-tools with its checks, which take minutes [default: as --runs]
    #[arg(long, value_name = "N")]
    pub(crate) runs_checked: Option<u32>,
    /// The kernel that loads and hands over
    #[arg(long, default_value = DEFAULT_FROM, value_name = "NAME")]
    pub(crate) from: String,
    /// The kernel that is handed over to
    #[arg(long, default_value = "6.12", value_name = "NAME")]
    pub(crate) to: String,
}

impl Wish {
    /// The command that asks for this again.
    fn command(&self, what: What) -> String {
        let name = match what {
            What::Load => "load",
            What::Blackout => "blackout",
            What::File => "file",
            What::Panic => "panic",
            What::Instructions => "instructions",
            What::Tables => "tables",
            What::All => "all",
        };
        let mut words = format!("cargo xtask bench {name}");
        // Of the other one there is no choice.
        if what != What::File {
            words.push_str(&format!(" --from {}", self.from));
        }
        words.push_str(&format!(" --to {}", self.to));
        if self.quick {
            words.push_str(" --quick");
            return words;
        }
        if !matches!(what, What::Blackout | What::File | What::Panic) {
            words.push_str(&format!(" --loads {}", self.loads));
        }
        if what != What::Load {
            let sizes: Vec<_> = self.sizes.iter().map(u64::to_string).collect();
            words.push_str(&format!(
                " --sizes {} --runs {}",
                sizes.join(","),
                self.runs
            ));
            if what != What::File {
                words.push_str(&format!(" --runs-checked {}", self.runs_checked()));
            }
        }
        words
    }

    fn runs_checked(&self) -> u32 {
        self.runs_checked.unwrap_or(self.runs)
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--loads", self.loads),
            ("--runs", self.runs),
            ("--runs-checked", self.runs_checked()),
        ] {
            ensure!(
                value <= REPETITIONS_MAX,
                "{name} {value}: at most {REPETITIONS_MAX}"
            );
        }
        setup::known_name(&self.from)?;
        setup::known_name(&self.to)?;
        ensure!(self.loads > 0, "--loads 0: at least one");
        ensure!(self.runs > 0, "--runs 0: at least one");
        ensure!(!self.sizes.is_empty(), "--sizes: at least one");
        for &size_mb in &self.sizes {
            ensure!(
                (1..=SIZE_MAX_MB).contains(&size_mb),
                "--sizes {size_mb}: from 1 to {SIZE_MAX_MB} MB, which is what the machine has room for"
            );
        }
        Ok(())
    }
}

/// `cargo xtask bench`.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    wish.check()?;
    let what = wish.what.unwrap_or(What::All);
    // One failure does not keep the other from being measured.
    let mut failures = Vec::new();
    if matches!(what, What::Tables | What::All) {
        failures.extend(tables::run(lab).err());
    }
    if matches!(what, What::Instructions | What::All) {
        failures.extend(instructions::run(lab).err());
    }
    if matches!(what, What::Load | What::All) {
        failures.extend(load::run(lab, wish).err());
    }
    if matches!(what, What::Blackout | What::All) {
        failures.extend(blackout::run(lab, wish).err());
    }
    if what == What::Panic {
        failures.extend(blackout::run_panic(lab, wish).err());
    }
    if what == What::File {
        ensure!(
            [DEFAULT_FROM, blackout::FILE_KERNEL].contains(&wish.from.as_str()),
            "--from {}: only {} has kexec_file_load(2)",
            wish.from,
            blackout::FILE_KERNEL
        );
        failures.extend(blackout::run_file(lab, wish).err());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let texts: Vec<_> = failures.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", texts.join("\n"))
}

/// A row of the benchmark's machine.
fn row(name: String, first: &str, second: &str, payload_mb: u64, script: String) -> Result<Row> {
    let mut row = Row::hand_over(
        setup::known_name(first)?,
        setup::known_name(second)?,
        KIND,
        Strategy::Auto,
    );
    row.name = name;
    row.cpus = CPUS;
    row.memory_mb = MEMORY_MB;
    row.its = false;
    row.kexec_tools = true;
    row.payload_bytes = payload_mb * 1_000_000;
    row.script = Script::Template(script);
    Ok(row)
}

/// Under what a measurement was made.
#[derive(Debug, Clone)]
struct Conditions {
    command: String,
    revision: String,
    qemu: String,
    host_cores: usize,
    /// Processes that wanted to run on the host, over a minute, before and after.
    host_load: [Option<f64>; 2],
    first: Kernel,
    kexec_version: String,
}

impl Conditions {
    /// What is known before anything runs.
    fn before(lab: &Lab, wish: &Wish, what: What) -> Result<Self> {
        Ok(Self {
            command: wish.command(what),
            revision: revision(lab),
            qemu: qemu_version(lab)?,
            host_cores: thread::available_parallelism().map_or(1, NonZero::get),
            host_load: [load_average(), None],
            first: setup::kernel(lab, &wish.from)?,
            kexec_version: String::new(),
        })
    }

    /// For tests of what is printed, with what XML does not like.
    #[cfg(test)]
    fn example() -> Self {
        Self {
            command: "cargo xtask bench".to_owned(),
            revision: "0123456789ab".to_owned(),
            qemu: "QEMU <10>".to_owned(),
            host_cores: 2,
            host_load: [Some(0.5), None],
            first: Kernel {
                name: "6.1".to_owned(),
                version: "6.1.1-1".to_owned(),
                image: std::path::PathBuf::new(),
                page_kb: 4,
            },
            kexec_version: "kexec-tools & co".to_owned(),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "command": self.command,
            "kleap_revision": self.revision,
            "kexec_tools": self.kexec_version,
            "emulator": self.qemu,
            "accelerator": "TCG",
            "host_architecture": ARCH,
            "host_cores": self.host_cores,
            "host_load_before": self.host_load[0],
            "host_load_after": self.host_load[1],
            "cpu": KIND.cpu,
            "exception_level": "EL2",
            "cpus": CPUS,
            "memory_mib": MEMORY_MB,
            "interrupt_controller": "GICv3, its=off",
            "first_kernel": self.first.version,
        })
    }

    /// The same as lines of text.
    fn lines(&self) -> Vec<String> {
        let load = |value: Option<f64>| {
            value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.1}"))
        };
        vec![
            format!(
                "kleap {}; {} (Debian's); first kernel: Debian's {}",
                self.revision, self.kexec_version, self.first.version
            ),
            format!(
                "{}, TCG, on {ARCH} with {} cores, load average {} before and {} after",
                self.qemu,
                self.host_cores,
                load(self.host_load[0]),
                load(self.host_load[1]),
            ),
            format!(
                "machine: {}, EL2, {CPUS} CPUs, {MEMORY_MB} MiB, GICv3 with its=off: kexec-tools does \
                 not turn LPIs off",
                KIND.cpu
            ),
            "TCG models no caches: ratios of one run, not times of hardware".to_owned(),
            self.command.clone(),
        ]
    }
}

/// The revision that is measured, and whether it is what is committed.
fn revision(lab: &Lab) -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(lab.workspace())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        // A work tree without its history.
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn qemu_version(lab: &Lab) -> Result<String> {
    let qemu = toolchain::qemu_system(lab)?;
    let (program, arguments) = qemu
        .words
        .split_first()
        .context("QEMU's command line is empty")?;
    let output = Command::new(program)
        .args(arguments)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    Ok(line.replace("emulator version ", "").trim().to_owned())
}

fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Writes the two files and gives their paths.
fn write_files(lab: &Lab, name: &str, value: &Value, chart: &svg::Chart) -> Result<[PathBuf; 2]> {
    let directory = lab.workspace().join("target").join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    let paths = ["json", "svg"].map(|extension| directory.join(format!("{name}.{extension}")));
    let contents = [format!("{text}\n"), svg::draw(chart)];
    for (path, content) in paths.iter().zip(contents) {
        lab::write_whole(path, content.as_bytes())?;
    }
    Ok(paths)
}

/// `NAME=NUMBER` in a line of words.
fn number(text: &str, name: &str) -> Option<u64> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?
        .parse()
        .ok()
}

/// A ratio, as the tables have it.
fn ratio_text(ratio: Option<f64>) -> String {
    match ratio {
        None => "-".to_owned(),
        Some(ratio) if ratio >= 0.1 => format!("{ratio:.2}"),
        Some(ratio) => format!("{ratio:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            what: None,
            quick: false,
            sizes: vec![16, 47],
            loads: 30,
            runs: 3,
            runs_checked: None,
            from: "6.1".to_owned(),
            to: "6.12".to_owned(),
        }
    }

    #[test]
    fn the_command_can_be_given_again() {
        use clap::Parser;
        #[derive(Debug, Parser)]
        struct Line {
            #[command(flatten)]
            wish: Wish,
        }
        let mut asked = wish();
        asked.runs_checked = Some(1);
        for what in [What::Load, What::Blackout, What::All] {
            let command = asked.command(what);
            let words = command.split_whitespace().skip(2);
            let parsed = Line::try_parse_from(words).unwrap().wish;
            assert_eq!(parsed.what, Some(what));
            assert_eq!(parsed.command(what), command);
        }
    }

    #[test]
    fn wishes_have_limits() {
        wish().check().unwrap();
        let bad = |change: fn(&mut Wish)| {
            let mut bad = wish();
            change(&mut bad);
            bad.check().unwrap_err().to_string()
        };
        assert!(bad(|wish| wish.sizes = vec![47, 1001]).contains("1001"));
        assert!(bad(|wish| wish.sizes = vec![0]).contains("--sizes 0"));
        assert!(bad(|wish| wish.sizes.clear()).contains("--sizes"));
        assert!(bad(|wish| wish.loads = 0).contains("--loads"));
        assert!(bad(|wish| wish.runs = 1001).contains("1001"));
    }

    #[test]
    fn numbers_in_lines() {
        let text = "payload image_bytes=12 initrd_bytes=34 bad=x";
        assert_eq!(number(text, "image_bytes"), Some(12));
        assert_eq!(number(text, "initrd_bytes"), Some(34));
        assert_eq!(number(text, "bytes"), None);
        assert_eq!(number(text, "bad"), None);
    }
}
