//! `cargo xtask soak`: many hand-overs in a row in one machine, each another way.
//!
//! What wears out is not found by single hand-overs: memory that each of them loses, a device that is left a little
//! different each time, a kernel that one other cannot follow. So one machine runs one kernel after the other, and a
//! plan, made from a seed, says for each hand-over which kernel is next, by which strategy, with how large an
//! initrd, and which CPUs have been stopped before. Every kernel checks what arrived: every byte of the initrd, all
//! CPUs, its own log. Memory is compared between kernels of the same version (see [`crate::chain`]).
//!
//! The plan is made here and not in the machine: so it can be printed before anything runs, and what the machine says
//! is checked against it. Rejected: one machine for each hand-over, which starts with clean memory every time.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::e2e::Tally;
use crate::lab::{self, Lab};
use crate::random::Random;
use crate::rows::{CHAIN_KERNELS, EL2_A57, End, Row, Script, Strategy};
use crate::run::{self, Assets};

/// Most hand-overs in one run: days.
const HAND_OVERS_MAX: u32 = 20_000;
/// Hand-overs of the run that is part of the tests.
const SHORT_HAND_OVERS: u32 = 8;
/// With this seed the short run has every kernel and every strategy.
const SHORT_SEED: u64 = 4;
/// Every kernel is in the initrd, which is unpacked, kept, copied and loaded.
const MEMORY_MB: u32 = 3584;
const CPUS: u32 = 4;
/// Padding behind an initrd of about 150 MB, MB.
const PADDING_MAX_MB: u64 = 96;
/// From one kernel's line to the next one's.
const HOP_DEADLINE_MS: u64 = 300_000;
/// Ways to hand over.
const STRATEGIES: [&str; 5] = ["auto", "in-place", "relocate", "kernel", "early"];

/// `cargo xtask soak`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// How many hand-overs
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(HAND_OVERS_MAX)))]
    hand_overs: u32,
    /// Repeats exactly the same plan
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// What is done at one hand-over, and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    kernel: &'static str,
    strategy: &'static str,
    padding_mb: u64,
    /// CPUs that are stopped before it.
    offline: Vec<u32>,
}

/// The first kernel, and one step for each hand-over.
fn plan(seed: u64, hand_overs: u32) -> Vec<Step> {
    let mut draw = Random::from_seed(seed);
    let one_of =
        |draw: &mut Random, items: &[&'static str]| draw.of(items).copied().unwrap_or_default();
    (0..=hand_overs)
        .map(|number| {
            let kernel = one_of(&mut draw, CHAIN_KERNELS);
            let strategy = one_of(&mut draw, &STRATEGIES);
            let padding_mb = draw.below(PADDING_MAX_MB + 1);
            // Any of them, the first one included, as long as one is left.
            let stopped = draw.below(1 << CPUS);
            let mut offline: Vec<u32> = (0..CPUS).filter(|cpu| stopped >> cpu & 1 == 1).collect();
            // Half of all hand-overs are with all CPUs.
            if draw.below(2) == 0 || offline.len() == CPUS as usize {
                offline.clear();
            }
            match number {
                // Started by the machine, with its initrd as it is.
                0 => Step {
                    kernel,
                    strategy: "-",
                    padding_mb: 0,
                    offline: Vec::new(),
                },
                _ => Step {
                    kernel,
                    strategy,
                    padding_mb,
                    offline,
                },
            }
        })
        .collect()
}

/// The plan as `soak.sh` reads it.
fn plan_text(plan: &[Step]) -> String {
    let mut text = String::new();
    for (number, step) in plan.iter().enumerate() {
        let offline: Vec<String> = step.offline.iter().map(u32::to_string).collect();
        let offline = if offline.is_empty() {
            "-".to_owned()
        } else {
            offline.join(",")
        };
        let _ = writeln!(
            text,
            "{number} {} {} {} {offline}",
            step.kernel, step.strategy, step.padding_mb
        );
    }
    text
}

fn row(wish: &Wish, plan: &[Step]) -> Result<Row> {
    let first = plan.first().context("the plan is empty")?;
    let mut row = Row::hand_over(first.kernel, "6.1", EL2_A57, Strategy::Auto);
    row.cpus = CPUS;
    row.memory_mb = MEMORY_MB;
    row.script = Script::Chain {
        kernels: CHAIN_KERNELS,
        hops: wish.hand_overs,
        fault: None,
        plan: Some(plan_text(plan)),
    };
    row.end = End::Chain {
        hops: wish.hand_overs,
        lost_kb_per_hop: 0,
    };
    row.verdict_deadline_ms = Some(HOP_DEADLINE_MS);
    row.name = format!("soak/{}/{}", wish.seed, wish.hand_overs);
    row.replay = Some(format!(
        "cargo xtask soak --seed {} --hand-overs {}",
        wish.seed, wish.hand_overs
    ));
    Ok(row)
}

/// A number out of `name=5 other=6`.
fn number(line: &str, name: &str) -> Option<u64> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?
        .parse()
        .ok()
}

/// What was seen of the hand-overs.
#[derive(Debug, Default)]
struct Record {
    hops: Vec<Value>,
    refused: u64,
}

impl Record {
    fn add(&mut self, line: &str, plan: &[Step], began: Instant) {
        let Some(step) = number(line, "hop").and_then(|hop| plan.get(usize::try_from(hop).ok()?))
        else {
            return;
        };
        println!("  {:>6.0} s  {line}", began.elapsed().as_secs_f64());
        self.hops.push(json!({
            "hop": number(line, "hop"),
            "kernel": step.kernel,
            "strategy": step.strategy,
            "padding_mb": step.padding_mb,
            "offline": step.offline,
            "moved_bytes": number(line, "moved_bytes"),
            "mem_total_kb": number(line, "mem_total_kb"),
        }));
    }

    /// The most that two kernels of one version differ in what memory they have, KiB, the first kernel left out.
    fn drift_kb(&self) -> u64 {
        let mut bounds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for hop in self.hops.iter().skip(1) {
            if let (Some(kernel), Some(total)) =
                (hop["kernel"].as_str(), hop["mem_total_kb"].as_u64())
            {
                let (least, most) = bounds.entry(kernel).or_insert((total, total));
                *least = total.min(*least);
                *most = total.max(*most);
            }
        }
        bounds
            .values()
            .map(|(least, most)| most - least)
            .max()
            .unwrap_or(0)
    }
}

fn soak(lab: &Lab, wish: &Wish) -> Result<(Record, Option<String>, f64)> {
    let plan = plan(wish.seed, wish.hand_overs);
    let row = row(wish, &plan)?;
    let assets = Assets::prepare(lab, std::slice::from_ref(&row))?;
    println!(
        "{} hand-overs in one machine, seed {}",
        wish.hand_overs, wish.seed
    );
    let began = Instant::now();
    let mut record = Record::default();
    let outcome = run::row(lab, &assets, &row, &mut |line| {
        if let Some(rest) = run::lab_value(line, "hop=") {
            record.add(&format!("hop={rest}"), &plan, began);
        } else if run::lab_value(line, "refused ").is_some() {
            record.refused += 1;
        }
    });
    Ok((record, outcome.failure, began.elapsed().as_secs_f64()))
}

/// Runs it, and prints and keeps what came of it.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    let (record, failure, seconds) = soak(lab, wish)?;
    let done = record.hops.len().saturating_sub(1);
    let mut by_strategy: BTreeMap<String, u64> = BTreeMap::new();
    for hop in record.hops.iter().skip(1) {
        let strategy = hop["strategy"].as_str().unwrap_or("-").to_owned();
        *by_strategy.entry(strategy).or_default() += 1;
    }
    println!(
        "\n{done} of {} hand-overs in {seconds:.0} s, {} failed; {} loads in place had no place and were loaded as auto",
        wish.hand_overs,
        u8::from(failure.is_some()),
        record.refused
    );
    for (strategy, count) in &by_strategy {
        println!("  {strategy:<10} {count}");
    }
    println!(
        "  memory of kernels of one version differs by {} KiB at most",
        record.drift_kb()
    );
    let result = json!({
        "command": format!("cargo xtask soak --seed {} --hand-overs {}", wish.seed, wish.hand_overs),
        "seed": wish.seed,
        "hand_overs": wish.hand_overs,
        "done": done,
        "failure": failure.as_deref().and_then(|text| text.lines().next()),
        "refused_in_place": record.refused,
        "by_strategy": by_strategy,
        "memory_drift_kb": record.drift_kb(),
        "hops": record.hops,
    });
    let directory = lab.workspace().join("target").join("reliability");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let text = serde_json::to_string_pretty(&result).context("the result is no JSON")?;
    lab::write_whole(&directory.join("soak.json"), text.as_bytes())?;
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    ensure!(
        done == wish.hand_overs as usize,
        "{done} hand-overs were seen, not {}",
        wish.hand_overs
    );
    Ok(())
}

/// The short run of the tests.
pub(crate) fn test(lab: &Lab) -> Result<Tally> {
    run(
        lab,
        &Wish {
            hand_overs: SHORT_HAND_OVERS,
            seed: SHORT_SEED,
        },
    )?;
    Ok(Tally {
        passed: SHORT_HAND_OVERS as usize,
        failed: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_gives_a_plan() {
        let long = plan(1, 200);
        assert_eq!(long.len(), 201);
        assert_eq!(long, plan(1, 200));
        assert_ne!(long, plan(2, 200));
        // A shorter run is the beginning of a longer one.
        assert_eq!(long[..11], plan(1, 10)[..]);
        assert!(long.iter().all(|step| step.offline.len() < CPUS as usize));
        assert!(long.iter().any(|step| step.offline.contains(&0)));
        let text = plan_text(&long);
        assert_eq!(text.lines().count(), 201);
        assert!(
            text.lines().all(|line| line.split(' ').count() == 5),
            "{text}"
        );
    }

    #[test]
    fn the_short_run_has_everything() {
        let short = plan(SHORT_SEED, SHORT_HAND_OVERS);
        let kernels: BTreeSet<_> = short.iter().map(|step| step.kernel).collect();
        let strategies: BTreeSet<_> = short[1..].iter().map(|step| step.strategy).collect();
        assert_eq!(kernels.len(), CHAIN_KERNELS.len(), "{short:?}");
        assert_eq!(strategies.len(), STRATEGIES.len(), "{short:?}");
        let visits = |kernel: &str| {
            short[1..]
                .iter()
                .filter(|step| step.kernel == kernel)
                .count()
        };
        assert!(
            CHAIN_KERNELS.iter().any(|kernel| visits(kernel) > 1),
            "nothing is compared"
        );
    }
}
