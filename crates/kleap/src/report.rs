//! `report`: where the time of the hand-over went, said by the kernel that it led to.
//!
//! All times come from one clock, the counter that both kernels and the relocator read. `shutdown` is from
//! the call of `kleap exec` to the relocator's first instruction (what `exec` itself checks and sync(2), while
//! everything still runs; then `kexec_load(2)` and the first kernel's own shutdown); `relocation` from there to the next
//! kernel's first instruction; `kernel startup` from there to the start of PID 1, which the kernel log
//! knows.

use crate::error::Failure;
use crate::last_words::LastFailure;
use crate::output::line;
use crate::{machine, output, units};
use kleap_linux::{facts, kernel_log};
use kleap_relocator::digest::Algorithm;
use kleap_relocator::timeline::{PROPERTY, Timeline};
use serde::Serialize;
use std::path::PathBuf;

/// Says what the marker in the kernel log is for, to whoever reads the log.
const MARKER: &str = "kleap: report: reading the time at which PID 1 was started";

/// A phase and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Phase {
    phase: &'static str,
    seconds: Option<f64>,
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    phases: Vec<Phase>,
    shutdown: Vec<Phase>,
    relocation: Vec<Phase>,
    total_seconds: Option<f64>,
    exception_level: &'static str,
    moves: u64,
    moved_bytes: u64,
    verified_bytes: u64,
    cleaned_bytes: u64,
    /// How Image, initrd and device tree were verified: `crc32c`, `sha256`, `none`.
    verify: &'static str,
    /// Whether instructions made for that were used.
    digest_instructions: bool,
    translation_tables: u64,
    translation_table_bytes: u64,
    redistributors: u64,
    lpis_disabled: u64,
    lpis_stuck: u64,
    lpis_reserved: u64,
    counter: Counter,
    /// What is left of a hand-over that failed before this one.
    last_failure: Option<LastFailure>,
}

/// The raw values.
#[derive(Debug, Serialize)]
struct Counter {
    frequency_hz: u64,
    exec_requested: u64,
    exec_prepared: u64,
    relocator_entered: u64,
    mmu_on: u64,
    quiesced: u64,
    moves_done: u64,
    verified: u64,
    cleaned: u64,
    kernel_entered: u64,
    init_started: Option<u64>,
}

/// The record's bytes, from where every kernel shows it, if there is one; a kernel that uses ACPI has no
/// `/proc/device-tree`, but keeps the tree that it was given.
pub(crate) fn record() -> Result<Option<Vec<u8>>, Failure> {
    let path = PathBuf::from("/proc/device-tree/chosen").join(PROPERTY);
    if path.exists() {
        return Ok(Some(facts::read_limited(&path, 1 << 16)?));
    }
    if path.parent().is_some_and(std::path::Path::exists) {
        return Ok(None);
    }
    Ok(machine::device_tree()?
        .property("/chosen", PROPERTY)
        .map(<[u8]>::to_vec))
}

fn read() -> Result<Timeline, Failure> {
    let bytes = record()?
        .ok_or_else(|| Failure::NoReport("this kernel was not started by kleap".into()))?;
    Timeline::decode(&bytes).map_err(|error| Failure::NoReport(error.to_string()))
}

/// Seconds between two counter values; `None` if one of them is 0, which stands for "not known", if they are
/// in the wrong order, or if the frequency is 0.
pub(crate) fn seconds(from: u64, to: u64, frequency_hz: u64) -> Option<f64> {
    (frequency_hz != 0 && from != 0 && to != 0).then_some(())?;
    Some(to.checked_sub(from)? as f64 / frequency_hz as f64)
}

fn build(timeline: &Timeline, init_started: Option<u64>) -> Report {
    let t = timeline;
    let between = |from, to| seconds(from, to, t.frequency_hz);
    let phase = |phase, seconds| Phase { phase, seconds };
    Report {
        kernel: facts::kernel_release().0,
        phases: vec![
            phase("shutdown", between(t.exec_requested, t.relocator_entered)),
            phase("relocation", between(t.relocator_entered, t.kernel_entered)),
            phase(
                "kernel startup",
                init_started.and_then(|init| between(t.kernel_entered, init)),
            ),
        ],
        shutdown: vec![
            phase("checks, sync", between(t.exec_requested, t.exec_prepared)),
            phase(
                "first kernel",
                between(t.exec_prepared, t.relocator_entered),
            ),
        ],
        relocation: vec![
            phase("MMU on", between(t.relocator_entered, t.mmu_on)),
            phase("interrupts quiet", between(t.mmu_on, t.quiesced)),
            phase("moves", between(t.quiesced, t.moves_done)),
            phase("verification", between(t.moves_done, t.verified)),
            phase("cleaning", between(t.verified, t.cleaned)),
        ],
        total_seconds: init_started.and_then(|init| between(t.exec_requested, init)),
        exception_level: t.level.name(),
        moves: t.moves,
        moved_bytes: t.moved_bytes,
        verified_bytes: t.verified_bytes,
        cleaned_bytes: t.cleaned_bytes,
        verify: match t.algorithm {
            Some(Algorithm::Crc32c) => "crc32c",
            Some(Algorithm::Sha256) => "sha256",
            None => "none",
        },
        digest_instructions: t.digest_instructions,
        translation_tables: t.tables,
        translation_table_bytes: t.tables.saturating_mul(t.table_size_bytes),
        redistributors: t.redistributors,
        lpis_disabled: t.lpis_disabled,
        lpis_stuck: t.lpis_stuck,
        lpis_reserved: t.lpis_reserved,
        counter: Counter {
            frequency_hz: t.frequency_hz,
            exec_requested: t.exec_requested,
            exec_prepared: t.exec_prepared,
            relocator_entered: t.relocator_entered,
            mmu_on: t.mmu_on,
            quiesced: t.quiesced,
            moves_done: t.moves_done,
            verified: t.verified,
            cleaned: t.cleaned,
            kernel_entered: t.kernel_entered,
            init_started,
        },
        last_failure: None,
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let time = |seconds: Option<f64>| seconds.map_or_else(|| "unknown".to_owned(), units::seconds);
    let share = |seconds: Option<f64>| match (seconds, report.total_seconds) {
        (Some(part), Some(total)) if total > 0.0 => format!("{:.1} %", part / total * 100.0),
        _ => String::new(),
    };
    let row = |text: &mut String, name: &str, seconds| {
        line!(
            text,
            "{name:<18} {:>12} {:>9}",
            time(seconds),
            share(seconds)
        );
    };
    line!(text, "{:<18} {:>12} {:>9}", "phase", "time", "share");
    for phase in &report.phases {
        row(&mut text, phase.phase, phase.seconds);
        let parts = match phase.phase {
            "shutdown" => &report.shutdown[..],
            "relocation" => &report.relocation[..],
            _ => &[],
        };
        for part in parts {
            row(&mut text, &format!("  {}", part.phase), part.seconds);
        }
    }
    row(&mut text, "total", report.total_seconds);
    line!(text);
    line!(
        text,
        "{} at {}: {} moved in {} moves, {} verified ({}), {} cleaned, {} translation tables ({})",
        report.kernel,
        report.exception_level,
        units::bytes(report.moved_bytes),
        report.moves,
        units::bytes(report.verified_bytes),
        match (report.verify, report.digest_instructions) {
            ("none", _) => "the relocator alone: --verify none",
            ("sha256", true) => "SHA-256 instructions",
            ("sha256", false) => "SHA-256 in software",
            (_, true) => "CRC32 instructions",
            (_, false) => "CRC32 in software",
        },
        units::bytes(report.cleaned_bytes),
        report.translation_tables,
        units::bytes(report.translation_table_bytes),
    );
    if report.lpis_stuck > 0 {
        line!(
            text,
            "warning: LPIs of {} redistributors could not be disabled; their tables are reserved in this \
             kernel's device tree",
            report.lpis_stuck
        );
    }
    if report.counter.exec_requested == 0 {
        line!(
            text,
            "shutdown is unknown: the kernel had everything since load, and nobody noted when it was told to go"
        );
    }
    if report.counter.init_started.is_none() {
        line!(
            text,
            "kernel startup is unknown: the kernel log no longer has, or may not be read for, the start of PID 1"
        );
    }
    text
}

/// The report as text and as JSON, for the fuzzer.
#[cfg(feature = "fuzzing")]
pub(crate) fn both(timeline: &Timeline, init_started: Option<u64>) -> (String, String) {
    let report = build(timeline, init_started);
    let json = serde_json::to_string(&report).unwrap_or_default();
    (table(&report), json)
}

/// `kleap report`.
pub(crate) fn report(json: bool) -> Result<(), Failure> {
    let last_failure = LastFailure::find();
    let timeline = match (read(), &last_failure) {
        (Ok(timeline), _) => timeline,
        // This kernel was started by a reset, and there is an answer to why.
        (Err(Failure::NoReport(_)), Some(failure)) if json => {
            let text = serde_json::json!({ "last_failure": failure }).to_string();
            return output::answer(&format!("{text}\n"));
        }
        (Err(Failure::NoReport(_)), Some(failure)) => {
            let text = output::printable(&failure.text(true));
            return output::answer(&format!("{text}\n"));
        }
        (Err(error), _) => return Err(error),
    };
    // Without the right to read the kernel log the rest of the report still stands.
    let init_started = kernel_log::init_started(timeline.frequency_hz, MARKER)
        .ok()
        .flatten();
    let mut report = build(&timeline, init_started);
    report.last_failure = last_failure;
    if !json {
        let mut text = table(&report);
        if let Some(failure) = &report.last_failure {
            line!(text, "{}", output::printable(&failure.text(false)));
        }
        return output::answer(&text);
    }
    let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::State {
        path: "report".into(),
        what: error.to_string(),
    })?;
    output::answer(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up() {
        let timeline = Timeline {
            frequency_hz: 1000,
            exec_requested: 1000,
            relocator_entered: 2000,
            mmu_on: 2001,
            quiesced: 2002,
            moves_done: 2003,
            verified: 2004,
            cleaned: 2005,
            kernel_entered: 2500,
            ..Timeline::default()
        };
        let report = build(&timeline, Some(5000));
        let parts: f64 = report.phases.iter().filter_map(|phase| phase.seconds).sum();
        assert_eq!(Some(parts), report.total_seconds);
        assert_eq!(report.phases[1].seconds, Some(0.5));
    }

    /// With `load --early` and a reboot by somebody else nobody notes when it began.
    #[test]
    fn a_beginning_that_nobody_noted_is_unknown() {
        let timeline = Timeline {
            frequency_hz: 1000,
            relocator_entered: 2000,
            kernel_entered: 2500,
            ..Timeline::default()
        };
        let report = build(&timeline, Some(5000));
        assert_eq!(report.phases[0].seconds, None);
        assert_eq!(report.phases[1].seconds, Some(0.5));
        assert_eq!(report.total_seconds, None);
        let text = table(&report);
        assert!(text.contains("shutdown is unknown"), "{text}");
        assert!(!text.contains("startup is unknown"), "{text}");
    }

    #[test]
    fn how_it_was_verified_is_said() {
        for (algorithm, digest_instructions, verify, said) in [
            (None, false, "none", "(the relocator alone: --verify none)"),
            (
                Some(Algorithm::Crc32c),
                true,
                "crc32c",
                "(CRC32 instructions)",
            ),
            (
                Some(Algorithm::Crc32c),
                false,
                "crc32c",
                "(CRC32 in software)",
            ),
            (
                Some(Algorithm::Sha256),
                true,
                "sha256",
                "(SHA-256 instructions)",
            ),
            (
                Some(Algorithm::Sha256),
                false,
                "sha256",
                "(SHA-256 in software)",
            ),
        ] {
            let timeline = Timeline {
                algorithm,
                digest_instructions,
                ..Timeline::default()
            };
            let report = build(&timeline, None);
            assert_eq!(report.verify, verify);
            let text = table(&report);
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn impossible_times_are_unknown_not_wrong() {
        let timeline = Timeline {
            exec_requested: 10,
            relocator_entered: 5,
            ..Timeline::default()
        };
        let report = build(&timeline, Some(1));
        assert!(report.phases.iter().all(|phase| phase.seconds.is_none()));
    }
}
