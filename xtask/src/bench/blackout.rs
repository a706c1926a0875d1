//! How long nothing runs: from `reboot(2)` to the next kernel's first line, by the host's clock.
//!
//! Three times, all of them from lines of the serial console, stamped when they arrive:
//!
//! - **blackout**: from the first kernel's "Starting new kernel", printed by `reboot(2)` once devices are
//!   shut down, to the second kernel's "Booting Linux on physical CPU" on its early console.
//! - **after Bye!**: from the first kernel's last line to the same end. That is what the two programs
//!   themselves bring with them: the kernel's relocation and the purgatory, or kleap's relocator; and the
//!   second kernel's way to its console, which is the same for all.
//! - **from exec**: from the start of `kleap exec` or `kexec -e` to the same end. It includes what kleap does
//!   before `reboot(2)`, while everything still runs: checking every byte, and `kexec_load(2)`, which
//!   kexec-tools has called at load.
//!
//! For kleap there are two more, in ticks of the machine's own counter: what its record says of the same.
//!
//! Every hand-over has a machine of its own, and ends with a second kernel that has read its whole
//! initrd and found the right SHA-256.
//!
//! Measured twice: beside kexec-tools as Debian has it ([`BLACKOUT`]), and beside `kexec_file_load(2)`, which
//! since Linux 6.17 puts the next kernel where it will run if the CMA has room ([`FILE`]).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::stats::{Summary, ratio};
use super::svg::{Bar, Chart, Group, Scale, seconds_text};
use super::{Conditions, USUAL_MB, What, Wish, load_average, number, ratio_text, row, write_files};
use crate::e2e::aligned;
use crate::kernels;
use crate::lab::Lab;
use crate::qemu::Line;
use crate::rows::Row;
use crate::run::{self, Assets, KERNEL_ENTRY, lab_value};
use crate::setup::{self, KERNELS, Kernel};

/// The first kernel's scripts.
const KLEAP_SCRIPT: &str = include_str!("../../guest-scripts/bench-kleap.sh");
const KEXEC_SCRIPT: &str = include_str!("../../guest-scripts/bench-kexec.sh");
const FILE_SCRIPT: &str = include_str!("../../guest-scripts/bench-file.sh");
const PANIC_KLEAP_SCRIPT: &str = include_str!("../../guest-scripts/bench-panic-kleap.sh");
const PANIC_KEXEC_SCRIPT: &str = include_str!("../../guest-scripts/bench-panic-kexec.sh");
/// What `reboot(2)` prints, and what a panic.
const STARTING: [&str; 2] = ["Starting new kernel", "Starting crashdump kernel"];
/// What is set aside for a crash kernel: room for the largest payload that is measured, and once more for what it
/// unpacks.
const CRASH_WORDS: &str = "crashkernel=1536M";
/// The largest payload of a crash kernel, in MB.
pub(crate) const PANIC_MAX_MB: u64 = 380;
/// The kernel that has `kexec_file_load(2)`.
pub(crate) const FILE_KERNEL: &str = "7.3-file";
/// From load to verdict, besides what goes by the payload's size.
const DEADLINE_MS: u64 = 300_000;
/// For each MB, in emulation: copying, unpacking, and hashing in both kernels.
const DEADLINE_MS_PER_MB: u64 = 500;
/// For each MB that the purgatory hashes with caches off. A third of a second was seen.
const CHECKED_DEADLINE_MS_PER_MB: u64 = 2_000;
/// What the second initrd holds at least: programs. A kernel that is larger than the wanted payload
/// without this is replaced by the smallest there is.
const INITRD_MIN_BYTES: u64 = 6_000_000;

/// Who hands over, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    /// In tables.
    title: &'static str,
    /// In file names.
    name: &'static str,
    script: &'static str,
    /// What the script's placeholder stands for.
    word: &'static str,
    is_kleap: bool,
    is_checked: bool,
    /// More words for the first kernel.
    kernel_words: &'static str,
}

/// What is compared, and what is said of it.
#[derive(Debug)]
struct Suite {
    what: What,
    /// Of the files.
    name: &'static str,
    variants: &'static [Variant],
    /// What the others are put beside: the name in JSON, and the heading of the column.
    yardsticks: [(&'static str, &'static str, Variant); 2],
    explanation: &'static str,
    /// What the picture says of verification.
    note: &'static str,
}

/// Beside kexec-tools.
const BLACKOUT: Suite = Suite {
    what: What::Blackout,
    name: "blackout",
    variants: &VARIANTS,
    yardsticks: [
        ("kexec", "of kexec", CHECKED),
        ("kexec_i", "of kexec -i", UNCHECKED),
    ],
    explanation: EXPLANATION,
    note: "kleap verifies every byte during the blackout, kexec does, kexec -i does not",
};

/// Beside `kexec_file_load(2)`.
const FILE: Suite = Suite {
    what: What::File,
    name: "file",
    variants: &FILE_VARIANTS,
    yardsticks: [
        ("file_cma", "of CMA", FILE_CMA),
        ("file_no_cma", "of no CMA", FILE_NO_CMA),
    ],
    explanation: FILE_EXPLANATION,
    note: "kleap verifies every byte during the blackout; after kexec_file_load nobody does",
};

/// A panic instead of `reboot(2)`.
const PANIC: Suite = Suite {
    what: What::Panic,
    name: "panic",
    variants: &PANIC_VARIANTS,
    yardsticks: [
        ("kexec", "of kexec -p", PANIC_CHECKED),
        ("kexec_i", "of kexec -p -i", PANIC_UNCHECKED),
    ],
    explanation: PANIC_EXPLANATION,
    note: "kleap and kexec -p verify every byte before the crash kernel is entered, kexec -p -i does not",
};

const PANIC_VARIANTS: [Variant; 4] = [
    PANIC_KLEAP,
    Variant {
        title: "kleap, SHA-256",
        name: "kleap-panic-sha256",
        word: "--verify sha256",
        ..PANIC_KLEAP
    },
    PANIC_UNCHECKED,
    PANIC_CHECKED,
];
const PANIC_KLEAP: Variant = Variant {
    title: "kleap, CRC32C",
    name: "kleap-panic",
    script: PANIC_KLEAP_SCRIPT,
    word: "",
    kernel_words: CRASH_WORDS,
    ..IN_PLACE
};
const PANIC_UNCHECKED: Variant = Variant {
    title: "kexec -p -i",
    name: "kexec-panic-i",
    script: PANIC_KEXEC_SCRIPT,
    kernel_words: CRASH_WORDS,
    ..UNCHECKED
};
const PANIC_CHECKED: Variant = Variant {
    title: "kexec -p",
    name: "kexec-panic",
    script: PANIC_KEXEC_SCRIPT,
    kernel_words: CRASH_WORDS,
    ..CHECKED
};

/// Room for the largest payload, in the machine's first 4 GiB.
const CMA_WORDS: &str = "cma=1280M";
const FILE_VARIANTS: [Variant; 5] = [
    Variant {
        kernel_words: CMA_WORDS,
        ..IN_PLACE
    },
    Variant {
        kernel_words: CMA_WORDS,
        title: "kleap, unverified",
        name: "kleap-unverified",
        word: "in-place --verify none",
        ..IN_PLACE
    },
    Variant {
        kernel_words: CMA_WORDS,
        ..RELOCATE
    },
    FILE_CMA,
    FILE_NO_CMA,
];
const FILE_CMA: Variant = Variant {
    title: "kexec -s, CMA",
    name: "kexec-file-cma",
    script: FILE_SCRIPT,
    word: "cma",
    is_kleap: false,
    is_checked: false,
    kernel_words: CMA_WORDS,
};
const FILE_NO_CMA: Variant = Variant {
    title: "kexec -s, no CMA",
    name: "kexec-file-no-cma",
    word: "",
    kernel_words: "cma=0",
    ..FILE_CMA
};

const VARIANTS: [Variant; 4] = [IN_PLACE, RELOCATE, UNCHECKED, CHECKED];
const IN_PLACE: Variant = Variant {
    title: "kleap, in place",
    name: "kleap-in-place",
    script: KLEAP_SCRIPT,
    word: "in-place",
    is_kleap: true,
    is_checked: false,
    kernel_words: "",
};
const RELOCATE: Variant = Variant {
    title: "kleap, relocate",
    name: "kleap-relocate",
    word: "relocate",
    ..IN_PLACE
};
/// kexec-tools without verification.
const UNCHECKED: Variant = Variant {
    title: "kexec -i",
    name: "kexec-i",
    script: KEXEC_SCRIPT,
    word: "-i",
    is_kleap: false,
    is_checked: false,
    kernel_words: "",
};
/// kexec-tools as it comes: the purgatory verifies.
const CHECKED: Variant = Variant {
    title: "kexec",
    name: "kexec",
    script: KEXEC_SCRIPT,
    word: "",
    is_kleap: false,
    is_checked: true,
    kernel_words: "",
};

/// The three times of one hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    blackout: Duration,
    after_last_line: Duration,
    from_exec: Duration,
}

/// Finds them on the console.
fn times(lines: &[Line]) -> Option<Times> {
    let position = |from: usize, found: &dyn Fn(&Line) -> bool| {
        let rest = lines.get(from..)?;
        Some(from + rest.iter().position(found)?)
    };
    let exec = position(0, &|line| lab_value(line, "executing").is_some())?;
    let starting = position(exec, &|line| {
        STARTING.iter().any(|text| line.text.contains(text))
    })?;
    let entry = position(starting, &|line| line.text.contains(KERNEL_ENTRY))?;
    let at = |index: usize| lines.get(index).map(|line| line.at);
    let end = at(entry)?;
    Some(Times {
        blackout: end.saturating_sub(at(starting)?),
        after_last_line: end.saturating_sub(at(entry - 1)?),
        from_exec: end.saturating_sub(at(exec)?),
    })
}

/// One hand-over.
#[derive(Debug, Clone)]
struct Run {
    times: Option<Times>,
    /// `kleap report --json`.
    report: Option<Value>,
    failure: Option<String>,
}

/// All hand-overs of one kind.
#[derive(Debug, Clone)]
struct Cell {
    variant: Variant,
    runs: Vec<Run>,
}

impl Cell {
    fn summary(&self, part: Part) -> Option<Summary> {
        Summary::of(
            self.runs
                .iter()
                .filter(|run| run.failure.is_none())
                .filter_map(|run| Some(part(run.times.as_ref()?).as_secs_f64())),
        )
    }

    /// From one of the record's times to the next kernel's entry, by the counter.
    fn by_counter(&self, from: &str) -> Option<Summary> {
        Summary::of(
            self.runs
                .iter()
                .filter(|run| run.failure.is_none())
                .filter_map(|run| seconds_to_entry(run.report.as_ref()?, from)),
        )
    }

    /// How long the relocator verified, by its own record.
    fn verified(&self) -> Option<Summary> {
        Summary::of(
            self.runs
                .iter()
                .filter(|run| run.failure.is_none())
                .filter_map(|run| seconds_between(run.report.as_ref()?, "moves_done", "verified")),
        )
    }

    fn failures(&self) -> impl Iterator<Item = &String> {
        self.runs.iter().filter_map(|run| run.failure.as_ref())
    }
}

/// Times in the record, as `kleap report --json` calls them.
const EXEC_REQUESTED: &str = "exec_requested";
const RELOCATOR_ENTERED: &str = "relocator_entered";

fn seconds_to_entry(report: &Value, from: &str) -> Option<f64> {
    seconds_between(report, from, "kernel_entered")
}

fn seconds_between(report: &Value, from: &str, to: &str) -> Option<f64> {
    let counter = report.get("counter")?;
    // 0 is a time that nobody has noted: a panic is not asked for.
    let ticks = |name| counter.get(name)?.as_u64().filter(|ticks| *ticks > 0);
    let ticks_gone = ticks(to)?.checked_sub(ticks(from)?)?;
    let seconds = ticks_gone as f64 / ticks("frequency_hz")? as f64;
    seconds.is_finite().then_some(seconds)
}

/// All hand-overs with one payload.
#[derive(Debug, Clone)]
struct Payload {
    wanted_mb: u64,
    second: Kernel,
    /// Image and initrd, as they were in memory.
    bytes: Option<(u64, u64)>,
    cells: Vec<Cell>,
}

impl Payload {
    fn cell(&self, variant: Variant) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.variant == variant)
    }

    /// How long a cell's program verified: kleap by its record, kexec-tools, which has none, by how much longer its
    /// blackout is than without. `None` where nobody verified, or one of the two was not measured.
    fn verification_seconds(&self, cell: &Cell) -> Option<f64> {
        if cell.variant.is_kleap {
            return Some(cell.verified()?.median);
        }
        if !cell.variant.is_checked {
            return None;
        }
        let blackout = QUANTITIES[0].1;
        let without = self
            .cells
            .iter()
            .find(|other| !other.variant.is_kleap && !other.variant.is_checked)?;
        let more = cell.summary(blackout)?.median - without.summary(blackout)?.median;
        (more > 0.0).then_some(more)
    }

    fn title(&self) -> String {
        let kernel = format!("Debian's {}", self.second.version);
        match self.bytes {
            None => format!("{} MB wanted, {kernel}", self.wanted_mb),
            Some((image, initrd)) => {
                let mb = |bytes: u64| bytes as f64 / 1e6;
                let mut title = format!(
                    "{:.1} MB: Image {:.1} MB ({kernel}), initrd {:.1} MB",
                    mb(image + initrd),
                    mb(image),
                    mb(initrd)
                );
                if image + initrd > self.wanted_mb * 1_000_000 + 1_000_000 {
                    title.push_str(&format!(
                        "; {} MB were wanted, this is the smallest there is",
                        self.wanted_mb
                    ));
                }
                title
            }
        }
    }
}

/// The kernel for a payload: the one asked for if it fits, else the smallest of Debian's with pages of the same size, else the
/// small one that is built from Debian's source, if it has pages of that size as well, else whichever is smallest.
///
/// # Errors
/// If a kernel cannot be had; also the small one, where it is needed and does not build.
fn second_kernel(lab: &Lab, wish: &Wish, wanted_mb: u64) -> Result<Kernel> {
    let size = |kernel: &Kernel| -> Result<u64> {
        let metadata = fs::metadata(&kernel.image)
            .with_context(|| format!("cannot examine {}", kernel.image.display()))?;
        Ok(metadata.len())
    };
    let fits = |bytes: u64| bytes + INITRD_MIN_BYTES <= wanted_mb * 1_000_000;
    let asked = setup::kernel(lab, &wish.to)?;
    let asked = (size(&asked)?, asked);
    if fits(asked.0) {
        return Ok(asked.1);
    }
    let page_kb = asked.1.page_kb;
    let smaller = |one: (u64, Kernel), name: &str| -> Result<(u64, Kernel)> {
        let kernel = setup::kernel(lab, name)?;
        let bytes = size(&kernel)?;
        Ok(if bytes < one.0 { (bytes, kernel) } else { one })
    };
    let smallest = KERNELS
        .iter()
        .filter(|source| source.page_kb == page_kb)
        .try_fold(asked, |one, source| smaller(one, source.name))?;
    let is_of_use = kernels::recipe(FILE_KERNEL).is_some_and(|built| built.page_kb == page_kb);
    // It takes minutes to build: only where nothing else will do.
    if !fits(smallest.0) && is_of_use {
        return Ok(smaller(smallest, FILE_KERNEL)?.1);
    }
    Ok(smallest.1)
}

/// The row of one hand-over.
fn hand_over(
    suite: &Suite,
    wish: &Wish,
    second: &str,
    wanted_mb: u64,
    variant: Variant,
) -> Result<Row> {
    let script = variant
        .script
        .replace("@STRATEGY@", variant.word)
        .replace("@OPTIONS@", variant.word);
    let mut row = row(
        format!("bench/{}/{wanted_mb}M/{}", suite.name, variant.name),
        &wish.from,
        second,
        wanted_mb,
        script,
    )?;
    row.report = variant.is_kleap;
    row.first_words = variant.kernel_words;
    row.kexec_tools = !variant.is_kleap;
    let per_mb = if variant.is_checked {
        CHECKED_DEADLINE_MS_PER_MB
    } else {
        DEADLINE_MS_PER_MB
    };
    row.verdict_deadline_ms = Some(DEADLINE_MS + per_mb * wanted_mb.max(USUAL_MB));
    row.replay = Some(wish.command(suite.what));
    Ok(row)
}

/// Beside kexec-tools.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    measure_suite(lab, wish, &BLACKOUT)
}

/// Beside `kexec_file_load(2)`, on a kernel that has it.
pub(crate) fn run_file(lab: &Lab, wish: &Wish) -> Result<()> {
    let wish = Wish {
        from: FILE_KERNEL.to_owned(),
        ..wish.clone()
    };
    measure_suite(lab, &wish, &FILE)
}

/// A panic, beside kexec-tools.
pub(crate) fn run_panic(lab: &Lab, wish: &Wish) -> Result<()> {
    let wish = Wish {
        sizes: wish
            .sizes
            .iter()
            .copied()
            .filter(|size_mb| *size_mb <= PANIC_MAX_MB)
            .collect(),
        ..wish.clone()
    };
    if wish.sizes.is_empty() {
        bail!("--sizes: at most {PANIC_MAX_MB} for a crash kernel, which has {CRASH_WORDS}");
    }
    measure_suite(lab, &wish, &PANIC)
}

/// Measures, prints, writes.
fn measure_suite(lab: &Lab, wish: &Wish, suite: &Suite) -> Result<()> {
    let mut conditions = Conditions::before(lab, wish, suite.what)?;
    let mut payloads = Vec::new();
    let sizes = if wish.quick {
        vec![USUAL_MB]
    } else {
        wish.sizes.clone()
    };
    for wanted_mb in sizes {
        let cells = suite
            .variants
            .iter()
            .copied()
            .filter(|variant| !(variant.is_checked && wish.quick))
            .map(|variant| Cell {
                variant,
                runs: Vec::new(),
            })
            .collect();
        payloads.push(Payload {
            wanted_mb,
            second: second_kernel(lab, wish, wanted_mb)?,
            bytes: None,
            cells,
        });
    }
    let mut rows = Vec::new();
    for payload in &payloads {
        for cell in &payload.cells {
            let second = &payload.second.name;
            rows.push(hand_over(
                suite,
                wish,
                second,
                payload.wanted_mb,
                cell.variant,
            )?);
        }
    }
    let assets = Assets::prepare(lab, &rows)?;
    let runs = if wish.quick { 1 } else { wish.runs };
    let checked = if wish.quick { 0 } else { wish.runs_checked() };
    let mut paths = None;
    for done in 1..=payloads.len() {
        if let Some(payload) = payloads.get_mut(done - 1) {
            // In turn, so that what the host does meanwhile is done to all of them.
            for turn in 0..runs.max(checked) {
                for index in 0..payload.cells.len() {
                    measure(
                        lab,
                        wish,
                        suite,
                        &assets,
                        payload,
                        index,
                        turn,
                        &mut conditions,
                    )?;
                }
            }
        }
        conditions.host_load[1] = load_average();
        // After each payload: the next one may take an hour, and be interrupted.
        let so_far = payloads.get(..done).unwrap_or_default();
        paths = Some(write_files(
            lab,
            suite.name,
            &to_json(suite, so_far, &conditions),
            &chart(suite, so_far, &conditions),
        )?);
    }
    println!("\n{}\n", report(suite, &payloads, &conditions));
    for path in paths.iter().flatten() {
        println!("{}", path.display());
    }
    let failures = failures(&payloads);
    if !failures.is_empty() {
        bail!("{} hand-overs failed, see above", failures.len());
    }
    Ok(())
}

/// One hand-over, if it is one of those wanted.
#[expect(clippy::too_many_arguments, reason = "called once")]
fn measure(
    lab: &Lab,
    wish: &Wish,
    suite: &Suite,
    assets: &Assets,
    payload: &mut Payload,
    index: usize,
    turn: u32,
    conditions: &mut Conditions,
) -> Result<()> {
    let Some(cell) = payload.cells.get_mut(index) else {
        return Ok(());
    };
    let variant = cell.variant;
    let wanted = if variant.is_checked && !wish.quick {
        wish.runs_checked()
    } else if wish.quick {
        1
    } else {
        wish.runs
    };
    if turn >= wanted {
        return Ok(());
    }
    let row = hand_over(
        suite,
        wish,
        &payload.second.name,
        payload.wanted_mb,
        variant,
    )?;
    println!("{} ({} of {wanted}) ...", row.name, turn + 1);
    let mut lines = Vec::new();
    let outcome = run::row(lab, assets, &row, &mut |line| lines.push(line.clone()));
    for line in &lines {
        if let Some(version) = lab_value(line, "kexec-version ") {
            version.trim().clone_into(&mut conditions.kexec_version);
        }
        if let Some(text) = lab_value(line, "payload ") {
            payload.bytes = number(text, "image_bytes").zip(number(text, "initrd_bytes"));
        }
    }
    let times = times(&lines);
    let failure = outcome.failure.or_else(|| {
        times
            .is_none()
            .then(|| "the console lacks one of the lines that are measured".to_owned())
    });
    let seconds = outcome.duration.as_secs_f64();
    match (&failure, times) {
        (None, Some(times)) => println!(
            "{}: blackout {} ({seconds:.0} s in all)",
            row.name,
            seconds_text(times.blackout.as_secs_f64())
        ),
        (failure, _) => println!(
            "{}: FAILED ({seconds:.0} s in all): {}",
            row.name,
            failure.as_deref().unwrap_or_default()
        ),
    }
    cell.runs.push(Run {
        times,
        report: outcome.seen.json,
        failure,
    });
    Ok(())
}

fn failures(payloads: &[Payload]) -> Vec<String> {
    let mut failures = Vec::new();
    for payload in payloads {
        for cell in &payload.cells {
            for text in cell.failures() {
                let line = text.lines().next().unwrap_or_default();
                failures.push(format!(
                    "{} MB, {}: {line}",
                    payload.wanted_mb, cell.variant.title
                ));
            }
        }
    }
    failures
}

/// One of the three times.
type Part = fn(&Times) -> Duration;

/// What can be said of a hand-over, and how it is found.
const QUANTITIES: [(&str, Part); 3] = [
    ("blackout", |times| times.blackout),
    ("after_last_line", |times| times.after_last_line),
    ("from_exec", |times| times.from_exec),
];

/// What the numbers are.
const EXPLANATION: &str = "\
verification alone: kleap by its record; kexec by how much longer its blackout is than that of kexec -i
blackout: from \"Starting new kernel\" to \"Booting Linux\"; after Bye!: from the first kernel's last line
from exec: from the start of kleap exec (which checks all bytes and calls kexec_load) or kexec -e (which
  has called it at load)
by kleap's own record, in ticks of the counter: by counter: as from exec, to the second kernel's first
  instruction; relocator: from the relocator's first instruction to there
of kexec, of kexec -i: the blackout's median over theirs; kexec -i and kexec both use kexec_load (-c)
kleap verifies every byte during the blackout (CRC32C), kexec does (SHA-256), kexec -i does not
";

const FILE_EXPLANATION: &str = "\
blackout: from \"Starting new kernel\" to \"Booting Linux\"; after Bye!: from the first kernel's last line
from exec: from the start of kleap exec (which checks all bytes and calls kexec_load) or kexec -e (which
  has called kexec_file_load at load)
by kleap's own record, in ticks of the counter: by counter: as from exec, to the second kernel's first
  instruction; relocator: from the relocator's first instruction to there
of CMA, of no CMA: the blackout's median over theirs. With CMA every byte is in place before reboot(2) and
  the kernel copies nothing; without, it copies all of it with the MMU on. Neither verifies anything
kleap verifies every byte during the blackout (CRC32C), but for the row that says unverified
";

const PANIC_EXPLANATION: &str = "\
blackout: from \"Starting crashdump kernel\", which the panicking kernel prints, to \"Booting Linux\"; after Bye!: from its
  last line; from exec: from the write to /proc/sysrq-trigger; relocator: by kleap's own record
of kexec -p, of kexec -p -i: the blackout's median over theirs; both use kexec_load (-c)
verification alone: kleap by its record; kexec -p by how much longer its blackout is than that of kexec -p -i
";

/// The table with what has to be known to read it.
fn report(suite: &Suite, payloads: &[Payload], conditions: &Conditions) -> String {
    let headings = [
        "",
        "runs",
        "blackout",
        "min",
        "max",
        suite.yardsticks[0].1,
        suite.yardsticks[1].1,
        "after Bye!",
        "from exec",
        "by counter",
        "relocator",
    ];
    let mut text = String::new();
    for payload in payloads {
        let mut lines = vec![headings.map(str::to_owned)];
        for cell in &payload.cells {
            let [blackout, after, exec] = QUANTITIES.map(|(_, part)| cell.summary(part));
            let over = |variant| {
                let other = payload
                    .cell(variant)
                    .and_then(|cell| cell.summary(QUANTITIES[0].1));
                ratio_text(ratio(blackout, other))
            };
            let median = |summary: Option<Summary>| {
                summary.map_or_else(|| "-".to_owned(), |summary| seconds_text(summary.median))
            };
            let failed = cell.failures().count();
            let runs = match failed {
                0 => cell.runs.len().to_string(),
                _ => format!("{}, {failed} FAILED", cell.runs.len()),
            };
            let bound = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), seconds_text);
            lines.push([
                cell.variant.title.to_owned(),
                runs,
                median(blackout),
                bound(blackout.map(|summary| summary.min)),
                bound(blackout.map(|summary| summary.max)),
                over(suite.yardsticks[0].2),
                over(suite.yardsticks[1].2),
                median(after),
                median(exec),
                median(cell.by_counter(EXEC_REQUESTED)),
                median(cell.by_counter(RELOCATOR_ENTERED)),
            ]);
        }
        text.push_str(&format!("{}\n\n{}\n\n", payload.title(), aligned(&lines)));
        let verified: Vec<_> = payload
            .cells
            .iter()
            .filter_map(|cell| {
                let seconds = payload.verification_seconds(cell)?;
                Some(format!("{} {}", cell.variant.title, seconds_text(seconds)))
            })
            .collect();
        if !verified.is_empty() {
            text.push_str(&format!("verification alone: {}\n\n", verified.join("; ")));
        }
    }
    for failure in failures(payloads) {
        text.push_str(&format!("FAILED: {failure}\n"));
    }
    text.push_str(suite.explanation);
    text.push_str(&conditions.lines().join("\n"));
    text
}

fn to_json(suite: &Suite, payloads: &[Payload], conditions: &Conditions) -> Value {
    let payloads: Vec<Value> = payloads
        .iter()
        .map(|payload| {
            let cells: Vec<Value> = payload
                .cells
                .iter()
                .map(|cell| {
                    let runs: Vec<Value> = cell.runs.iter().map(run_to_json).collect();
                    let by_counter =
                        |from| cell.by_counter(from).map_or(Value::Null, Summary::to_json);
                    let mut value = json!({
                        "variant": cell.variant.title,
                        "runs": runs,
                        "from_exec_by_counter_seconds": by_counter(EXEC_REQUESTED),
                        "relocator_by_counter_seconds": by_counter(RELOCATOR_ENTERED),
                        "verification_seconds": payload.verification_seconds(cell),
                    });
                    for (quantity, part) in QUANTITIES {
                        let seconds = cell.summary(part);
                        value[format!("{quantity}_seconds")] =
                            seconds.map_or(Value::Null, Summary::to_json);
                        for (name, _, variant) in suite.yardsticks {
                            let other = payload.cell(variant).and_then(|cell| cell.summary(part));
                            value[format!("{quantity}_of_{name}")] = json!(ratio(seconds, other));
                        }
                    }
                    value
                })
                .collect();
            json!({
                "wanted_mb": payload.wanted_mb,
                "image_bytes": payload.bytes.map(|(image, _)| image),
                "initrd_bytes": payload.bytes.map(|(_, initrd)| initrd),
                "second_kernel": payload.second.version,
                "variants": cells,
            })
        })
        .collect();
    json!({
        "format": format!("kleap-bench-{}-1", suite.name),
        "conditions": conditions.to_json(),
        "payloads": payloads,
    })
}

fn run_to_json(run: &Run) -> Value {
    let mut value = json!({ "failure": run.failure, "report": run.report });
    for (quantity, part) in QUANTITIES {
        value[format!("{quantity}_us")] = json!(run.times.map(|times| part(&times).as_micros()));
    }
    value
}

fn chart(suite: &Suite, payloads: &[Payload], conditions: &Conditions) -> Chart {
    let blackout = QUANTITIES[0].1;
    let groups = payloads
        .iter()
        .map(|payload| Group {
            title: payload.title(),
            bars: payload
                .cells
                .iter()
                .enumerate()
                .map(|(series, cell)| bar(suite, payload, series, cell, blackout))
                .collect(),
        })
        .collect();
    let mut notes = vec![suite.note.to_owned()];
    notes.extend(conditions.lines());
    Chart {
        title: "From reboot(2) to the next kernel".to_owned(),
        subtitle: vec![
            "from \"Starting new kernel\" to \"Booting Linux\", by the host's clock".to_owned(),
            "bars: median, each hand-over in a machine of its own; lines: least to most, where there \
             was more than one"
                .to_owned(),
        ],
        axis: "blackout".to_owned(),
        scale: Scale::Logarithmic,
        groups,
        notes,
    }
}

fn bar(suite: &Suite, payload: &Payload, series: usize, cell: &Cell, part: Part) -> Bar {
    let seconds = cell.summary(part);
    let (_, heading, yardstick) = suite.yardsticks[0];
    let over = payload
        .cell(yardstick)
        .and_then(|other| ratio(seconds, other.summary(part)));
    let remark = match (seconds, over) {
        (None, _) if cell.runs.is_empty() => "not run".to_owned(),
        (None, _) => "failed".to_owned(),
        (_, Some(over)) if cell.variant != yardstick => {
            format!("{} {heading}", ratio_text(Some(over)))
        }
        _ => String::new(),
    };
    Bar {
        label: cell.variant.title.to_owned(),
        series,
        seconds,
        remark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(texts: &[(u64, &str)]) -> Vec<Line> {
        let line = |&(at_ms, text): &(u64, &str)| Line {
            at: Duration::from_millis(at_ms),
            text: text.to_owned(),
        };
        texts.iter().map(line).collect()
    }

    const HAND_OVER: &[(u64, &str)] = &[
        (10, "[    0.000000] Booting Linux on physical CPU 0x0"),
        (2000, "KLEAP-LAB: executing"),
        (2700, "[    2.0] kexec_core: Starting new kernel"),
        (2800, "[    2.1] psci: CPU1 killed"),
        (2810, "[    2.2] Bye!"),
        (3100, "[    0.000000] Booting Linux on physical CPU 0x0"),
    ];

    #[test]
    fn times_are_found_on_the_console() {
        let milliseconds = Duration::from_millis;
        let expected = Times {
            blackout: milliseconds(400),
            after_last_line: milliseconds(290),
            from_exec: milliseconds(1100),
        };
        assert_eq!(times(&console(HAND_OVER)), Some(expected));
        // Any line that is missing makes the measurement none, not another one.
        for missing in [1, 2, 5] {
            let mut lines = console(HAND_OVER);
            lines.remove(missing);
            assert_eq!(times(&lines), None, "{missing}");
        }
    }

    fn payload() -> Payload {
        let run = |at_ms: u64| Run {
            times: Some(Times {
                blackout: Duration::from_millis(at_ms),
                after_last_line: Duration::from_millis(at_ms / 2),
                from_exec: Duration::from_millis(at_ms * 2),
            }),
            report: Some(json!({ "counter": {
                "frequency_hz": 1000, "exec_requested": 1, "relocator_entered": 5,
                "kernel_entered": 5 + at_ms,
            }})),
            failure: None,
        };
        let failed = Run {
            failure: Some("the kernel is lost\nmore".to_owned()),
            ..run(1)
        };
        let runs = [
            vec![run(100), run(300), run(200)],
            vec![run(400)],
            vec![failed],
            vec![run(20_000)],
        ];
        let cells = VARIANTS
            .into_iter()
            .zip(runs)
            .map(|(variant, runs)| Cell { variant, runs })
            .collect();
        Payload {
            wanted_mb: 16,
            second: Conditions::example().first,
            bytes: Some((27_500_000, 5_000_000)),
            cells,
        }
    }

    #[test]
    fn ratios_and_failures_are_in_the_table() {
        let text = report(&BLACKOUT, &[payload()], &Conditions::example());
        let row = |title: &str| {
            let line = text.lines().find(|line| line.starts_with(title)).unwrap();
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let line = row("kleap, in place").join(" ");
        assert_eq!(
            line,
            "kleap, in place 3 200 ms 100 ms 300 ms 0.0100 - 100 ms 400 ms 204 ms 200 ms"
        );
        assert!(text.contains("1, 1 FAILED"), "{text}");
        assert!(
            text.contains("FAILED: 16 MB, kexec -i: the kernel is lost\n"),
            "{text}"
        );
        assert!(text.contains("16 MB were wanted"), "{text}");
        assert!(text.contains("32.5 MB: Image 27.5 MB"), "{text}");
    }

    #[test]
    fn json_has_every_run() {
        let json = to_json(&BLACKOUT, &[payload()], &Conditions::example());
        let variants = &json["payloads"][0]["variants"];
        assert_eq!(variants[0]["runs"].as_array().unwrap().len(), 3);
        assert_eq!(variants[0]["runs"][1]["blackout_us"], 300_000);
        assert_eq!(variants[0]["blackout_seconds"]["median"], 0.2);
        assert_eq!(variants[0]["blackout_of_kexec"], 0.01);
        assert_eq!(variants[0]["blackout_of_kexec_i"], Value::Null);
        assert_eq!(variants[0]["relocator_by_counter_seconds"]["median"], 0.2);
        assert_eq!(variants[2]["blackout_seconds"], Value::Null);
        assert!(variants[2]["runs"][0]["failure"].is_string());
    }

    #[test]
    fn the_picture_is_well_formed() {
        let svg = super::super::svg::draw(&chart(&BLACKOUT, &[payload()], &Conditions::example()));
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<_> = document
            .descendants()
            .filter_map(|node| node.text())
            .collect();
        assert!(texts.contains(&"failed"), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("0.0100 of kexec")));
    }

    #[test]
    fn every_placeholder_is_filled() {
        let wish = Wish {
            what: None,
            quick: false,
            sizes: vec![47],
            loads: 1,
            runs: 1,
            runs_checked: None,
            from: "6.1".to_owned(),
            to: "6.12".to_owned(),
        };
        let initrd = crate::initramfs::SecondInitrd {
            sha256: "0".repeat(64),
            size_bytes: 0,
        };
        let suites = [&BLACKOUT, &FILE, &PANIC];
        let variants =
            suites.map(|suite| suite.variants.iter().map(move |variant| (suite, *variant)));
        for (suite, variant) in variants.into_iter().flatten() {
            let row = hand_over(suite, &wish, "6.12", 47, variant).unwrap();
            assert_eq!(row.first_words, variant.kernel_words);
            let script = row.script_text("token", &initrd);
            assert!(!script.contains('@'), "{script}");
            assert!(script.contains("kleap_lab.role=second"), "{script}");
            assert_eq!(
                script.contains("kleap_lab.report=no"),
                !variant.is_kleap,
                "{script}"
            );
        }
    }
}
