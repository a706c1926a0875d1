//! `cargo xtask faults`: what becomes of a hand-over in which something is broken.
//!
//! Problem: "it resets instead of hanging" is easily said, and a test with one damaged byte shows that for
//! one byte. Choice: thousands of faults, of every kind and at every phase, in every kind of machine, each
//! chosen by a seed and a number so that it can be repeated alone. A fault must end, within five seconds of
//! the guest's time, in the next kernel being entered with every byte as it was loaded, or in a reset. A
//! hang is a failure, and so is a kernel that is entered with anything wrong.
//!
//! - [`fault`]: what is broken, and when.
//! - [`stage`]: where each thing is in a stopped machine.
//! - [`target`]: the machine, its snapshots, and how the end is judged.

mod fault;
mod stage;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use self::fault::{KINDS, Kind};
use self::target::{End, Target};
use crate::e2e::Tally;
use crate::lab::{self, Lab};
use crate::random::Random;
use crate::rows::{EL1_A57, EL2_A57, Row, Strategy, VHE_N1};
use crate::run::Assets;

/// Faults of the run that every test makes: each kind at least once.
const SHORT_COUNT: u64 = 30;
/// Its machine: the set of tables that two of the three levels use, and moves.
const SHORT_MACHINE: &str = "el1-a57/relocate";
/// Its seed; other runs choose theirs.
const SHORT_SEED: u64 = 1;
/// Most faults of a run: a week's worth.
const COUNT_MAX: u64 = 1_000_000;
/// Memory of these machines: a snapshot of less is loaded faster.
const MEMORY_MB: u32 = 512;
/// Every how manieth fault that ends in a boot is followed up to the next kernel's own verdict.
const WHOLE_BOOT_INTERVAL: u64 = 100;

/// Kinds that are known to hang now and then, and why: such a hang is shown and counted, and no failure. Any
/// other end that is not promised is one, of these kinds too.
const KNOWN_HANGS: &[(Kind, &str)] = &[
    (
        Kind::Descriptor,
        "the vectors are behind the same tables; the digests are right",
    ),
    (
        Kind::AnyHeader,
        "the words for the MMU are believed where the digests are right",
    ),
    (Kind::Code, "broken code runs before it can be found out"),
];

/// `cargo xtask faults`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// How many faults, over all machines
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: u64,
    /// Repeats exactly the same faults
    #[arg(long, default_value_t = SHORT_SEED, value_name = "S")]
    seed: u64,
    /// Only this fault of such a run
    #[arg(long, value_name = "N")]
    only: Option<u64>,
    /// Only machines whose name contains this, such as el1-a57/relocate; the numbers count among those
    #[arg(long, default_value = "", value_name = "SUBSTRING")]
    machine: String,
    /// Only this kind of fault, such as tables-in-use
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
}

/// What came of a fault.
#[derive(Debug, Clone)]
struct Trial {
    number: u64,
    machine: String,
    kind: Kind,
    stop: String,
    detail: String,
    may_be_silent: bool,
    end: End,
}

impl Trial {
    /// Whether this is what the project promises not to do.
    fn is_failure(&self) -> bool {
        match self.end {
            End::Hang(_) if self.known().is_some() => false,
            End::Boot | End::Named(_) => false,
            End::Silent => !self.may_be_silent,
            End::Hang(_) | End::Damaged(_) => true,
        }
    }

    /// Why such a hang is no surprise.
    fn known(&self) -> Option<&'static str> {
        let End::Hang(_) = self.end else { return None };
        KNOWN_HANGS
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .map(|(_, why)| *why)
    }

    fn end_name(&self) -> &'static str {
        match self.end {
            End::Boot => "boot",
            End::Named(_) => "named reset",
            End::Silent => "silent reset",
            End::Hang(_) => "hang",
            End::Damaged(_) => "damaged boot",
        }
    }

    fn end_text(&self) -> &str {
        match &self.end {
            End::Boot | End::Silent => "",
            End::Named(text) | End::Hang(text) | End::Damaged(text) => text,
        }
    }

    fn json(&self) -> Value {
        json!({
            "number": self.number,
            "machine": self.machine,
            "kind": self.kind.name(),
            "stop": self.stop,
            "detail": self.detail,
            "end": self.end_name(),
            "text": self.end_text(),
            "failure": self.is_failure(),
            "known": self.known(),
        })
    }
}

/// Each exception level with both ways of getting the payload into place.
fn machines() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in [EL1_A57, EL2_A57, VHE_N1] {
        for strategy in [Strategy::Relocate, Strategy::InPlace] {
            let mut row = Row::hand_over("6.1", "6.1", kind, strategy);
            row.name = format!("{}/{}", kind.name, strategy.word());
            row.memory_mb = MEMORY_MB;
            row.cpus = 1;
            // As small as it gets: what is damaged is found whatever the size.
            row.payload_bytes = 0;
            row.witness = true;
            rows.push(row);
        }
    }
    rows
}

/// `cargo xtask faults`.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    let trials = inject(lab, wish)?;
    let failed = trials.iter().filter(|trial| trial.is_failure()).count();
    if failed > 0 {
        bail!(
            "{failed} of {} faults did not end as promised",
            trials.len()
        );
    }
    Ok(())
}

/// The run that `cargo xtask test` makes.
pub(crate) fn short(lab: &Lab) -> Result<Tally> {
    let wish = Wish {
        count: SHORT_COUNT,
        seed: SHORT_SEED,
        only: None,
        machine: SHORT_MACHINE.to_owned(),
        kind: None,
    };
    let trials = inject(lab, &wish)?;
    let failed = trials.iter().filter(|trial| trial.is_failure()).count();
    Ok(Tally {
        passed: trials.len() - failed,
        failed,
    })
}

fn inject(lab: &Lab, wish: &Wish) -> Result<Vec<Trial>> {
    let mut rows = machines();
    rows.retain(|row| row.name.contains(&wish.machine));
    if rows.is_empty() {
        let names: Vec<_> = machines().into_iter().map(|row| row.name).collect();
        bail!(
            "no machine is called {}: {}",
            wish.machine,
            names.join(", ")
        );
    }
    let kinds = kinds(wish.kind.as_deref())?;
    let assets = Assets::prepare(lab, &rows)?;
    // Now: a build during a long run puts another one there.
    let command = lab.dist().join("kleap");
    let command =
        fs::read(&command).with_context(|| format!("cannot read {}", command.display()))?;
    let mut trials = Vec::new();
    let began = Instant::now();
    for (index, row) in rows.iter().enumerate() {
        let numbers: Vec<u64> = (0..wish.count)
            .filter(|number| number % rows.len() as u64 == index as u64)
            .filter(|number| wish.only.is_none_or(|only| only == *number))
            .collect();
        if numbers.is_empty() {
            continue;
        }
        println!("{}: {} faults", row.name, numbers.len());
        let target = Target::start(lab, &assets, row, &command);
        let mut target = target.with_context(|| format!("the machine {}", row.name))?;
        println!(
            "{}: {} moves, {:.0} s until now",
            row.name,
            target.stage.moves.len(),
            began.elapsed().as_secs_f64()
        );
        for number in numbers {
            let turn = number / rows.len() as u64;
            let kind = *usize::try_from(turn % kinds.len() as u64)
                .ok()
                .and_then(|index| kinds.get(index))
                .context("no kind of fault")?;
            let trial = trial(&mut target, wish, row, number, kind)?;
            if trial.is_failure() || trial.known().is_some() || wish.only.is_some() {
                println!(
                    "fault {number} on {}: {} at {} ({}): {} {}\n  to repeat it: {}",
                    trial.machine,
                    kind.name(),
                    trial.stop,
                    trial.detail,
                    trial.end_name(),
                    trial.end_text(),
                    replay(wish, number)
                );
            }
            trials.push(trial);
            if trials.len().is_multiple_of(50) {
                let seconds = began.elapsed().as_secs_f64();
                println!("{} of {} faults, {seconds:.0} s", trials.len(), wish.count);
                write_result(lab, wish, &trials)?;
            }
        }
    }
    if trials.is_empty() {
        bail!("no fault was injected: --only has to be below --count");
    }
    write_result(lab, wish, &trials)?;
    print_table(&trials);
    Ok(trials)
}

fn trial(target: &mut Target, wish: &Wish, row: &Row, number: u64, kind: Kind) -> Result<Trial> {
    let mut random = Random::new(wish.seed, number);
    let fault = fault::choose(kind, &target.stage, target.two_privileges, &mut random)
        .with_context(|| format!("fault {number}, {}", kind.name()))?;
    let whole = (number + 1).is_multiple_of(WHOLE_BOOT_INTERVAL) || wish.only.is_some();
    let end = target
        .inject(
            &fault,
            whole || (kind == Kind::Nothing && number < KINDS.len() as u64),
        )
        .with_context(|| format!("fault {number}; to repeat it: {}", replay(wish, number)))?;
    Ok(Trial {
        number,
        machine: row.name.clone(),
        kind,
        stop: fault.stop.to_string(),
        detail: fault.detail,
        may_be_silent: fault.may_be_silent,
        end,
    })
}

fn kinds(name: Option<&str>) -> Result<Vec<Kind>> {
    let kinds: Vec<Kind> = KINDS
        .iter()
        .copied()
        .filter(|kind| name.is_none_or(|name| name == kind.name()))
        .collect();
    if kinds.is_empty() {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name()).collect();
        bail!("no kind of fault is called so: {}", names.join(", "));
    }
    Ok(kinds)
}

fn replay(wish: &Wish, number: u64) -> String {
    let mut words = format!(
        "cargo xtask faults --seed {} --count {} --only {number}",
        wish.seed, wish.count
    );
    if !wish.machine.is_empty() {
        words.push_str(&format!(" --machine {}", wish.machine));
    }
    if let Some(kind) = &wish.kind {
        words.push_str(&format!(" --kind {kind}"));
    }
    words
}

fn write_result(lab: &Lab, wish: &Wish, trials: &[Trial]) -> Result<()> {
    let directory = lab.workspace().join("target").join("reliability");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let result = json!({
        "command": format!("cargo xtask faults --seed {} --count {}", wish.seed, wish.count),
        "seed": wish.seed,
        "faults": trials.iter().map(Trial::json).collect::<Vec<_>>(),
    });
    let text = serde_json::to_vec_pretty(&result).context("cannot write JSON")?;
    lab::write_whole(&directory.join("faults.json"), &text)
}

fn print_table(trials: &[Trial]) {
    let ends = [
        "boot",
        "named reset",
        "silent reset",
        "hang",
        "damaged boot",
    ];
    let mut counts: BTreeMap<Kind, BTreeMap<&str, u64>> = BTreeMap::new();
    for trial in trials {
        *counts
            .entry(trial.kind)
            .or_default()
            .entry(trial.end_name())
            .or_default() += 1;
    }
    println!(
        "\n{:<20} {:>6} {:>8} {:>12} {:>13} {:>6} {:>13}",
        "kind", "count", "boots", "named resets", "silent resets", "hangs", "damaged boots"
    );
    let mut sums = [0; 5];
    for (kind, found) in &counts {
        let numbers = ends.map(|end| found.get(end).copied().unwrap_or(0));
        print_row(kind.name(), numbers);
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += number;
        }
    }
    print_row("all", sums);
    for (kind, why) in KNOWN_HANGS {
        let count = trials
            .iter()
            .filter(|trial| trial.kind == *kind && trial.known().is_some())
            .count();
        if count > 0 {
            println!("known: {count} hangs of {}: {why}", kind.name());
        }
    }
}

fn print_row(name: &str, numbers: [u64; 5]) {
    let [boots, named, silent, hangs, damaged] = numbers;
    println!(
        "{name:<20} {:>6} {boots:>8} {named:>12} {silent:>13} {hangs:>6} {damaged:>13}",
        numbers.iter().sum::<u64>()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for kind in KINDS {
            assert_eq!(kinds(Some(kind.name())).unwrap(), [*kind]);
        }
        assert!(kinds(Some("nonsense")).is_err());
        assert!(machines().iter().any(|row| row.name == SHORT_MACHINE));
        assert!(SHORT_COUNT >= KINDS.len() as u64);
    }

    #[test]
    fn a_silent_reset_is_a_failure_unless_the_voice_was_broken() {
        let trial = |end, may_be_silent| Trial {
            number: 1,
            machine: String::new(),
            kind: Kind::Image,
            stop: String::new(),
            detail: String::new(),
            may_be_silent,
            end,
        };
        assert!(trial(End::Silent, false).is_failure());
        assert!(!trial(End::Silent, true).is_failure());
        assert!(trial(End::Hang(String::new()), true).is_failure());
        let mut known = trial(End::Hang(String::new()), false);
        known.kind = Kind::Code;
        assert!(!known.is_failure());
        known.end = End::Damaged(String::new());
        assert!(known.is_failure());
        assert!(trial(End::Damaged(String::new()), true).is_failure());
        assert!(!trial(End::Boot, false).is_failure());
        assert!(!trial(End::Named(String::new()), false).is_failure());
    }
}
