//! `check`: can this machine hand over, and what speaks against it?
//!
//! Problem: most of what can be wrong is found only when it is too late to choose: `load` stops at the first
//! thing, and some things `exec` alone meets. Choice: look at everything ([`facts`]), judge it in one pure
//! function ([`judge`]), and say of each thing what was found, what it means and what to do. Nothing is changed
//! by that, whoever runs it, so it can be run anywhere and at any time.
//!
//! Rejected: a trial load that is taken back. It takes memory from others, calls the very code that may crash,
//! and replaces what somebody else has loaded.

mod facts;
mod judge;

use crate::output::{self, line};
use facts::Facts;
use judge::{Finding, Overall};
use serde::Serialize;

/// The version of what `--json` prints (docs/check.schema.json); larger when something that was there is gone
/// or means something else.
const SCHEMA_VERSION: u32 = 1;
/// Of a check that could not be said: no answer is no "yes".
const FAILED_EXIT_CODE: u8 = 2;

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Check<'a> {
    schema_version: u32,
    kleap_version: &'static str,
    kernel: &'a str,
    verdict: Overall,
    findings: &'a [Finding],
}

impl<'a> Check<'a> {
    fn new(kernel: &'a str, findings: &'a [Finding]) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            kleap_version: env!("CARGO_PKG_VERSION"),
            kernel,
            verdict: Overall::of(findings),
            findings,
        }
    }
}

fn table(check: &Check<'_>) -> String {
    let mut text = String::new();
    // The same advice for many findings is given once.
    let mut given = Vec::new();
    for finding in check.findings {
        line!(
            text,
            "{:<8} {:<16} {}",
            finding.verdict.word(),
            finding.id,
            output::printable(&finding.reason)
        );
        if let Some(remedy) = &finding.remedy
            && !given.contains(&remedy)
        {
            line!(text, "{:<25} -> {remedy}", "");
            given.push(remedy);
        }
    }
    line!(text);
    line!(
        text,
        "{}",
        match check.verdict {
            Overall::Ready => "ready: this machine can hand over",
            Overall::Limited => "limited: this machine can hand over, with what is said above",
            Overall::Cannot => "cannot: this machine cannot hand over as it is",
        }
    );
    text
}

/// `kleap check`. The exit code: 0 ready, 1 limited, 2 cannot, or the answer could not be written.
pub(crate) fn check(json: bool) -> u8 {
    let facts = Facts::gather();
    let findings = judge::judge(&facts);
    let check = Check::new(&facts.release, &findings);
    let text = if json {
        serde_json::to_string_pretty(&check).map(|text| format!("{text}\n"))
    } else {
        Ok(table(&check))
    };
    let answered = match text {
        Ok(text) => output::answer(&text).map_err(|failure| failure.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match answered {
        Ok(()) => check.verdict.exit_code(),
        Err(why) => {
            output::warn(&why);
            FAILED_EXIT_CODE
        }
    }
}
