//! One line of progress for whatever takes more than a moment.
//!
//! On a terminal the line is rewritten in place; elsewhere (CI, a pipe) a line appears at once and
//! then every few seconds, so that a log shows that something still happens without being all dots.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a line is added where lines cannot be rewritten.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);
/// How often a terminal's line is rewritten.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);

/// A task under way.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    terminal: bool,
    started: Instant,
    shown: Instant,
}

impl Progress {
    /// Announces a task.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let terminal = io::stdout().is_terminal();
        let now = Instant::now();
        if terminal {
            print!("{label} ...");
        } else {
            println!("{label} ...");
        }
        flush();
        Self {
            label,
            terminal,
            started: now,
            shown: now,
        }
    }

    /// Shows where the task is, if it is time to.
    pub(crate) fn update(&mut self, detail: &str) {
        let interval = if self.terminal {
            TERMINAL_INTERVAL
        } else {
            PLAIN_INTERVAL
        };
        if self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let seconds = self.started.elapsed().as_secs();
        if self.terminal {
            print!("\r\x1b[K{} ... {detail} ({seconds} s)", self.label);
        } else {
            println!("{} ... {detail} ({seconds} s)", self.label);
        }
        flush();
    }

    /// Ends the line with a result.
    pub(crate) fn finish(self, result: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.terminal {
            print!("\r\x1b[K");
        }
        println!("{}: {result} ({seconds:.1} s)", self.label);
        flush();
    }
}

/// A closed pipe is no reason to stop a download.
fn flush() {
    let _ = io::stdout().flush();
}

/// Bytes as people read them.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
