//! `cargo xtask e2e`: many rows, a few at a time, and a table of what came of them.

use std::collections::VecDeque;
use std::fs;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::rows::{self, Row};
use crate::run::{self, Assets, Outcome};

/// What one machine takes of the host's memory at most, with what the host needs besides.
const MEMORY_PER_JOB_MB: u64 = 7000;
/// Cores that one machine keeps busy while it boots.
const CORES_PER_JOB: usize = 2;
/// How much of a note the table shows; the whole failure is above it.
const NOTE_COLUMNS: usize = 200;

/// What the user asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Only the fast subset.
    pub(crate) fast: bool,
    /// Only rows whose name contains one of these; the whole name selects that row alone.
    pub(crate) only: Vec<String>,
    /// How many at a time.
    pub(crate) jobs: Option<usize>,
}

/// How many rows passed, and how many did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Passed.
    pub(crate) passed: usize,
    /// Failed.
    pub(crate) failed: usize,
}

/// The rows selected.
pub(crate) fn select(selection: &Selection) -> Result<Vec<Row>> {
    let all = rows::all();
    for text in &selection.only {
        ensure!(
            all.iter().any(|row| selects(text, &row.name, &all)),
            "--only {text}: no row is called so: `cargo xtask e2e --list` shows their names"
        );
    }
    let chosen: Vec<Row> = all
        .iter()
        .filter(|row| {
            (!selection.fast || row.fast)
                && (selection.only.is_empty()
                    || selection
                        .only
                        .iter()
                        .any(|text| selects(text, &row.name, &all)))
        })
        .cloned()
        .collect();
    if chosen.is_empty() {
        bail!("no row is selected: `cargo xtask e2e --list` shows their names");
    }
    Ok(chosen)
}

fn selects(text: &str, name: &str, all: &[Row]) -> bool {
    if all.iter().any(|row| row.name == text) {
        name == text
    } else {
        name.contains(text)
    }
}

/// Prints the names.
pub(crate) fn list(selection: &Selection) -> Result<()> {
    for row in select(selection)? {
        println!("{}{}", row.name, if row.fast { "  (fast)" } else { "" });
    }
    Ok(())
}

/// Runs the rows selected and prints the table.
pub(crate) fn run(lab: &Lab, selection: &Selection) -> Result<Tally> {
    let rows = select(selection)?;
    let assets = Assets::prepare(lab, &rows)?;
    let total = rows.len();
    let jobs = selection.jobs.unwrap_or_else(default_jobs).clamp(1, total);
    println!("{total} rows, {jobs} at a time");
    let began = Instant::now();
    let queue = Mutex::new(rows.into_iter().enumerate().collect::<VecDeque<_>>());
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                // The lock is not held while a row runs.
                while let Some((index, row)) =
                    queue.lock().ok().and_then(|mut rows| rows.pop_front())
                {
                    println!("[{}/{total}] {} ...", index + 1, row.name);
                    let outcome = run::row(lab, &assets, &row, &mut |_| {});
                    let seconds = outcome.duration.as_secs_f64();
                    match &outcome.failure {
                        None => {
                            println!("[{}/{total}] {}: ok ({seconds:.1} s)", index + 1, row.name)
                        }
                        Some(text) => println!(
                            "[{}/{total}] {}: FAILED ({seconds:.1} s): {text}",
                            index + 1,
                            row.name
                        ),
                    }
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push((index, outcome));
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a row panicked"))?;
    outcomes.sort_by_key(|(index, _)| *index);
    print_table(outcomes.iter().map(|(_, outcome)| outcome));
    println!("{total} rows in {:.0} s", began.elapsed().as_secs_f64());
    let failed = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.failure.is_some())
        .count();
    Ok(Tally {
        passed: outcomes.len() - failed,
        failed,
    })
}

fn default_jobs() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let memory_mb = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(MEMORY_PER_JOB_MB, |kilobytes| kilobytes / 1024);
    let by_memory = usize::try_from(memory_mb / MEMORY_PER_JOB_MB).unwrap_or(1);
    (cores / CORES_PER_JOB).min(by_memory).max(1)
}

/// Times are milliseconds. The gap is between the last line of the first kernel and the first of the
/// second, by the host's clock; the phases are the second kernel's report.
const HEADINGS: [&str; 8] = [
    "row",
    "verdict",
    "seconds",
    "gap",
    "shutdown",
    "relocation",
    "startup",
    "note",
];

fn print_table<'outcomes>(outcomes: impl Iterator<Item = &'outcomes Outcome>) {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    for outcome in outcomes {
        let verdict = if outcome.failure.is_none() {
            "ok"
        } else {
            "FAILED"
        };
        let phase = |name| {
            milliseconds(
                outcome
                    .seen
                    .json
                    .as_ref()
                    .and_then(|json| phase(json, name)),
            )
        };
        let note = outcome
            .failure
            .as_deref()
            .and_then(|text| text.lines().next())
            .or(outcome.seen.note.as_deref());
        lines.push([
            outcome.name.clone(),
            verdict.to_owned(),
            format!("{:.1}", outcome.duration.as_secs_f64()),
            milliseconds(outcome.seen.gap.map(|gap| gap.as_secs_f64())),
            phase("shutdown"),
            phase("relocation"),
            phase("kernel startup"),
            note.unwrap_or_default()
                .chars()
                .take(NOTE_COLUMNS)
                .collect(),
        ]);
    }
    println!("\n{}", aligned(&lines));
}

/// How long a phase of the report took, in seconds.
fn phase(report: &Value, name: &str) -> Option<f64> {
    report
        .get("phases")?
        .as_array()?
        .iter()
        .find(|phase| phase.get("phase").and_then(Value::as_str) == Some(name))?
        .get("seconds")?
        .as_f64()
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.1}", seconds * 1e3))
}

/// Columns as wide as their widest cell.
pub(crate) fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..COLUMNS)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    lines
        .iter()
        .map(|line| {
            line.iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:<width$}"))
                .collect::<Vec<_>>()
                .join("  ")
                .trim_end()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// `cargo xtask e2e`.
pub(crate) fn run_command(lab: &Lab, selection: &Selection) -> Result<()> {
    let tally = run(lab, selection)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} rows failed", tally.failed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_name_selects_one_row() {
        let name = "6.12-to-6.12/vhe-max/refused-lpa2".to_owned();
        let selection = Selection {
            only: vec![name.clone()],
            ..Selection::default()
        };
        let rows = select(&selection).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].name, name);
    }

    #[test]
    fn nothing_selected_is_an_error() {
        let selection = Selection {
            only: vec!["no such row".to_owned()],
            ..Selection::default()
        };
        assert!(select(&selection).is_err());
    }

    #[test]
    fn phases_are_found_by_name() {
        let report = serde_json::json!({ "phases": [{ "phase": "shutdown", "seconds": 0.5 }] });
        assert_eq!(milliseconds(phase(&report, "shutdown")), "500.0");
        assert_eq!(milliseconds(phase(&report, "relocation")), "-");
    }

    #[test]
    fn tables_are_aligned() {
        let lines = [["a", "bb", "c"], ["aaa", "b", ""]].map(|line| line.map(str::to_owned));
        assert_eq!(aligned(&lines), "a    bb  c\naaa  b");
    }
}
