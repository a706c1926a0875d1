//! `kleap check` on machines of every kind: the rows, and whether what it said is right.
//!
//! The script in the machine runs `kleap check --json` a few times, each under a name, and prints what came of it.
//! It is judged here: against the schema that is documented, and against what is known of the machine.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::qemu::Line;
use crate::rows::{Board, EL1_A57, EL2_A57, End, Kind, Row, Script, Strategy, VHE_MAX, VHE_N1};
use crate::run::{is_kernel_message, lab_value};

/// What `kleap check --json` prints, as it is documented.
const SCHEMA: &str = include_str!("../../docs/check.schema.json");
/// What every machine is asked.
const CHECK: &str = concat!(include_str!("../guest-scripts/check.sh"), "finish ok\n");
/// What a machine is asked on which nobody's answer is no other than elsewhere.
const CHECK_ROOT: &str = "kleap check --json >/run/check.json 2>/run/check.err\n\
    say \"check-begin root $?\"\ncat /run/check.json\nsay check-end\nfinish ok\n";
/// And what one machine is asked beside that.
const CHECK_MORE: &str = concat!(
    include_str!("../guest-scripts/check.sh"),
    include_str!("../guest-scripts/check-more.sh")
);
/// The name of the first check of every script: by root, on the machine as it is.
const ROOT: &str = "root";

/// What one check must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its name in the script.
    name: &'static str,
    /// The verdict over all.
    verdict: &'static str,
    /// Some of the findings; with the verdict `ready` every other one is `ok` as well.
    findings: &'static [Finding],
}

/// What a finding must say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    id: &'static str,
    verdict: &'static str,
    /// Part of its reason.
    reason: &'static str,
    /// Part of its remedy; empty where that does not matter.
    remedy: &'static str,
}

const fn finding(
    id: &'static str,
    verdict: &'static str,
    reason: &'static str,
    remedy: &'static str,
) -> Finding {
    Finding {
        id,
        verdict,
        reason,
        remedy,
    }
}

const fn expected(
    name: &'static str,
    verdict: &'static str,
    findings: &'static [Finding],
) -> Expected {
    Expected {
        name,
        verdict,
        findings,
    }
}

/// By nobody, on a machine that is ready: what is missing, and that the rest is not known.
const NOBODY: Expected = expected(
    "nobody",
    "cannot",
    &[
        finding(
            "privileges",
            "no",
            "lacks CAP_SYS_BOOT and CAP_SYS_ADMIN",
            "run it as root",
        ),
        finding("kexec-load", "unknown", "kexec_load(2) is there", "root"),
        finding("kernel-bugs", "unknown", "not known", "root"),
        finding("cpus", "ok", "the kernel can stop all", ""),
        finding("interrupts", "unknown", "not known", "root"),
    ],
);

/// What a machine that is ready must say.
const READY_DEVICE_TREE: &[Finding] = &[
    finding("firmware", "ok", "a device tree", ""),
    finding("console", "ok", "PL011 at 0x9000000", ""),
    finding("console", "ok", "this kernel's console ttyAMA0", ""),
    finding("psci", "ok", "SYSTEM_RESET", ""),
    finding("cpus", "ok", "4 online, 4 possible", ""),
    finding("interrupts", "ok", "GICv3 with an ITS, 1 region", ""),
    finding("last-hand-over", "ok", "not started by kleap", ""),
];

/// The same with EFI and ACPI.
const READY_EFI: &[Finding] = &[
    finding("firmware", "ok", "EFI, with ACPI", ""),
    finding("console", "ok", "PL011 at 0x9000000", ""),
    finding("psci", "ok", "SYSTEM_RESET", ""),
    finding("interrupts", "ok", "LPIs stay on", ""),
];

const LPA2: &[Finding] = &[
    finding("kernel-bugs", "no", "LPA2", "arm64.nolva"),
    finding("privileges", "ok", "", ""),
    finding("kexec-load", "ok", "", ""),
];

const PROTECTED_KVM: &[Finding] = &[
    finding(
        "protected-kvm",
        "no",
        "EBUSY",
        "without kvm-arm.mode=protected",
    ),
    finding("kexec-load", "ok", "", ""),
    finding("cpus", "ok", "", ""),
];

const PROTECTED_KVM_IGNORED: &[Finding] =
    &[finding("protected-kvm", "ok", "has no effect here", "")];

const SPIN_TABLE: &[Finding] = &[
    finding(
        "cpus",
        "no",
        "cannot stop its 4 CPUs (enable-method spin-table)",
        "nr_cpus=1",
    ),
    finding("psci", "warning", "cannot be reset", ""),
    finding("interrupts", "ok", "no GIC", ""),
    finding("firmware", "ok", "a device tree", ""),
    finding("kexec-load", "ok", "", ""),
];

const SPIN_TABLE_ONE_CPU: &[Finding] = &[
    finding("cpus", "ok", "one CPU", ""),
    finding("psci", "warning", "cannot be reset", ""),
];

/// What [`CHECK_MORE`] asks of a machine.
const MORE: &[Expected] = &[
    NOBODY,
    expected(
        "no-sys-boot",
        "cannot",
        &[
            finding("privileges", "no", "lacks CAP_SYS_BOOT", ""),
            finding("memory", "ok", "usable", ""),
            finding("pagemap", "ok", "", ""),
        ],
    ),
    expected(
        "no-sys-admin",
        "cannot",
        &[
            finding("privileges", "no", "lacks CAP_SYS_ADMIN", ""),
            finding("kexec-load", "ok", "", ""),
        ],
    ),
    expected(
        "missing-call",
        "cannot",
        &[finding("kexec-load", "no", "seccomp filter", "")],
    ),
    expected(
        "forbidden-call",
        "cannot",
        &[finding("kexec-load", "no", "seccomp filter", "")],
    ),
    expected(
        "mounts",
        "cannot",
        &[finding("mounts", "no", "mounts of its own", "nsenter")],
    ),
    expected(
        "user-namespace",
        "cannot",
        &[finding("privileges", "no", "user namespace", "container")],
    ),
    expected(
        "loaded",
        "ready",
        &[finding("loaded", "ok", "kleap has a kernel loaded", "")],
    ),
    expected(
        "loaded-by-another",
        "limited",
        &[finding("loaded", "warning", "another program", "kexec -u")],
    ),
    expected(
        "read-only-dev",
        "cannot",
        &[finding("state-directory", "no", "Read-only", "remount")],
    ),
    expected(
        "limited-calls",
        "limited",
        &[
            finding("sysctls", "warning", "allows 5 more calls", ""),
            finding("kexec-load", "ok", "5 are left", ""),
        ],
    ),
    expected(
        "no-calls",
        "cannot",
        &[finding("sysctls", "no", "used up", "reboot")],
    ),
    expected(
        "locked-down",
        "cannot",
        &[
            finding("lockdown", "no", "integrity mode", "Secure Boot"),
            finding("kexec-load", "no", "", ""),
        ],
    ),
    expected(
        "disabled",
        "cannot",
        &[
            finding("sysctls", "no", "kexec_load_disabled is 1", "reboot"),
            finding("kexec-load", "no", "kexec_load_disabled", ""),
        ],
    ),
];

fn row(first: &'static str, kind: Kind, name: &str) -> Row {
    let mut row = Row::hand_over(first, first, kind, Strategy::Auto);
    row.script = Script::Text(CHECK);
    // Nothing is handed over to.
    row.payload_bytes = 0;
    row.memory_mb = 1024;
    row.name = format!("check/{name}");
    row
}

fn ends(mut row: Row, verdict: &'static str, findings: &'static [Finding]) -> Row {
    row.end = End::Checks(vec![expected(ROOT, verdict, findings), NOBODY]);
    row
}

/// What a machine without huge pages must say.
const NO_HUGE_PAGES: &[Finding] = &[
    finding(
        "huge-pages",
        "warning",
        "no huge pages of 2 MiB",
        "--strategy kernel",
    ),
    finding("kexec-load", "ok", "", ""),
    finding("pagemap", "ok", "", ""),
    finding("cpus", "ok", "", ""),
];

/// The same with a kernel that has the other system call, under lockdown.
const FILE_LOAD_LEFT: &[Finding] = &[
    finding(
        "kexec-load",
        "warning",
        "no kexec_load(2)",
        "kexec_file_load(2) instead",
    ),
    finding("huge-pages", "ok", "2 MiB", ""),
    finding("cpus", "ok", "", ""),
];

/// The rows with kernels that are built here: with pages of 64 KiB, with `kexec_file_load(2)`, without huge
/// pages.
pub(crate) fn built_rows(
    pages_64k: &'static str,
    file: &'static str,
    no_huge_pages: &'static str,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (first, kind) in [(pages_64k, EL2_A57), (pages_64k, VHE_MAX), (file, VHE_N1)] {
        let name = format!("{first}/{}/ready", kind.name);
        rows.push(ends(row(first, kind, &name), "ready", READY_DEVICE_TREE));
    }
    let mut row_of_file = row(file, EL2_A57, &format!("{file}/el2-a57/locked-down"));
    row_of_file.first_words = "lockdown=integrity";
    row_of_file.end = End::Checks(vec![expected(ROOT, "limited", FILE_LOAD_LEFT)]);
    row_of_file.script = Script::Text(CHECK_ROOT);
    rows.push(row_of_file);
    let name = format!("{no_huge_pages}/{}/limited", EL1_A57.name);
    let mut limited = row(no_huge_pages, EL1_A57, &name);
    limited.end = End::Checks(vec![expected(ROOT, "limited", NO_HUGE_PAGES)]);
    // What it would change is shown with a load, which is not to be had here.
    limited.script = Script::Text(CHECK_ROOT);
    rows.push(limited);
    rows
}

/// The rows.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (first, kind) in [
        ("5.10", EL2_A57),
        ("6.1", EL1_A57),
        ("6.12", EL2_A57),
        ("7.3", VHE_MAX),
        ("6.12-16k", VHE_N1),
    ] {
        let name = format!("{first}/{}/ready", kind.name);
        rows.push(ends(row(first, kind, &name), "ready", READY_DEVICE_TREE));
    }
    let by_efi = row("6.1", EL2_A57, "6.1/el2-a57").by_efi();
    rows.push(ends(by_efi, "ready", READY_EFI));
    rows.push(ends(
        row("6.12", VHE_MAX, "6.12/vhe-max/lpa2"),
        "cannot",
        LPA2,
    ));
    // On a CPU with VHE, as 7.3 has it here: with protected KVM on a Cortex-A57 it hangs in its own boot.
    for (first, kind) in [("6.1", EL2_A57), ("6.12", EL2_A57), ("7.3", VHE_N1)] {
        let mut row = row(first, kind, &format!("{first}/{}/protected-kvm", kind.name));
        row.first_words = PROTECTED_KVM_WORD;
        rows.push(ends(row, "cannot", PROTECTED_KVM));
    }
    // 5.10 does not know the word; a machine without EL2 has no KVM.
    for (first, kind) in [("5.10", EL2_A57), ("6.12", EL1_A57)] {
        let name = format!("{first}/{}/protected-kvm-ignored", kind.name);
        let mut row = row(first, kind, &name);
        row.first_words = PROTECTED_KVM_WORD;
        rows.push(ends(row, "ready", PROTECTED_KVM_IGNORED));
    }
    for (words, name, verdict, findings) in [
        ("", "spin-table", "cannot", SPIN_TABLE),
        ("nr_cpus=1", "one-cpu", "limited", SPIN_TABLE_ONE_CPU),
    ] {
        let mut row = row("6.12", EL2_A57, &format!("6.12/raspi3b/{name}"));
        row.board = Board::Raspi3b;
        row.first_words = words;
        row.end = End::Checks(vec![expected(ROOT, verdict, findings)]);
        rows.push(row);
    }
    // What is advised there works: the next kernel has all CPUs again.
    let mut hand_over = Row::hand_over("6.12", "6.12", EL2_A57, Strategy::Auto);
    hand_over.board = Board::Raspi3b;
    hand_over.memory_mb = 1024;
    hand_over.first_words = "nr_cpus=1";
    hand_over.name = "6.12-to-6.12/raspi3b/one-cpu".to_owned();
    rows.push(hand_over);
    let mut row = row("6.12", EL2_A57, "6.12/el2-a57/more");
    row.script = Script::Text(CHECK_MORE);
    let mut expectations = vec![expected(ROOT, "ready", READY_DEVICE_TREE)];
    expectations.extend_from_slice(MORE);
    row.end = End::Checks(expectations);
    rows.push(row);
    rows
}

/// What Linux is told.
const PROTECTED_KVM_WORD: &str = "kvm-arm.mode=protected";

/// One check as the console shows it.
#[derive(Debug)]
struct Said {
    name: String,
    exit_code: u64,
    answer: Value,
}

/// The checks in the console's lines, each between `check-begin NAME EXIT_CODE` and `check-end`.
fn said(history: &[Line]) -> Result<Vec<Said>> {
    let mut found = Vec::new();
    let mut current: Option<(String, u64, String)> = None;
    for line in history {
        if let Some(rest) = lab_value(line, "check-begin ") {
            let (name, code) = rest
                .trim()
                .split_once(' ')
                .with_context(|| format!("a check begins with '{rest}'"))?;
            let code = code.parse().with_context(|| format!("{name}: '{code}'"))?;
            current = Some((name.to_owned(), code, String::new()));
        } else if lab_value(line, "check-end").is_some() {
            let (name, exit_code, text) =
                current.take().context("a check ends before it begins")?;
            let answer =
                serde_json::from_str(&text).with_context(|| format!("{name} said:\n{text}"))?;
            found.push(Said {
                name,
                exit_code,
                answer,
            });
        } else if let Some((_, _, text)) = &mut current
            && !is_kernel_message(&line.text)
        {
            text.push_str(&line.text);
            text.push('\n');
        }
    }
    Ok(found)
}

/// Whether every check that was expected said what it must, and all are as documented. Gives a summary.
pub(crate) fn judge(history: &[Line], expected: &[Expected]) -> Result<String> {
    let schema: Value = serde_json::from_str(SCHEMA).context("docs/check.schema.json")?;
    let validator =
        jsonschema::validator_for(&schema).map_err(|error| anyhow::anyhow!("schema: {error}"))?;
    let said = said(history)?;
    for one in &said {
        if let Err(error) = validator.validate(&one.answer) {
            bail!(
                "check '{}' is not as docs/check.schema.json says: {error} at {}",
                one.name,
                error.instance_path()
            );
        }
    }
    for expected in expected {
        let one = said
            .iter()
            .find(|one| one.name == expected.name)
            .with_context(|| format!("no check '{}' was made", expected.name))?;
        compare(one, expected).with_context(|| format!("check '{}'", expected.name))?;
    }
    Ok(format!("{} checks", said.len()))
}

fn compare(said: &Said, expected: &Expected) -> Result<()> {
    let verdict = said.answer.get("verdict").and_then(Value::as_str);
    ensure!(
        verdict == Some(expected.verdict),
        "the verdict is {verdict:?}, not {}: {:#}",
        expected.verdict,
        said.answer
    );
    let exit_code = match expected.verdict {
        "ready" => 0,
        "limited" => 1,
        _ => 2,
    };
    ensure!(
        said.exit_code == exit_code,
        "the exit code is {}, not {exit_code}",
        said.exit_code
    );
    let findings = said
        .answer
        .get("findings")
        .and_then(Value::as_array)
        .context("no findings")?;
    for wanted in expected.findings {
        let text = |found: &Value, name: &str| {
            found
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let found = findings
            .iter()
            .find(|found| text(found, "id") == wanted.id)
            .with_context(|| format!("no finding '{}'", wanted.id))?;
        ensure!(
            text(found, "verdict") == wanted.verdict
                && text(found, "reason").contains(wanted.reason)
                && text(found, "remedy").contains(wanted.remedy),
            "finding '{}' is {found}, expected {wanted:?}",
            wanted.id
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn lines(texts: &[&str]) -> Vec<Line> {
        texts
            .iter()
            .map(|text| Line {
                at: Duration::ZERO,
                text: (*text).to_owned(),
            })
            .collect()
    }

    const ANSWER: &str = r#"{"schema_version": 1, "kleap_version": "0.1.0", "kernel": "6.1",
        "verdict": "cannot", "findings": [{"id": "cpus", "verdict": "no", "reason": "spin-table",
        "remedy": "nr_cpus=1"}]}"#;
    const WANTED: Expected = expected(
        "root",
        "cannot",
        &[finding("cpus", "no", "spin", "nr_cpus")],
    );

    fn judged(begin: &str, answer: &str, wanted: Expected) -> Result<String> {
        let mut texts = vec![begin];
        texts.extend(answer.lines());
        texts.extend(["[    1.5] noise", "KLEAP-LAB: check-end"]);
        judge(&lines(&texts), &[wanted])
    }

    #[test]
    fn what_is_right_passes_and_nothing_else() {
        const BEGIN: &str = "KLEAP-LAB: check-begin root 2";
        judged(BEGIN, ANSWER, WANTED).unwrap();
        for (begin, from, to) in [
            ("KLEAP-LAB: check-begin root 1", "", ""),
            ("KLEAP-LAB: check-begin other 2", "", ""),
            (BEGIN, "cannot", "limited"),
            (BEGIN, "cannot", "perhaps"),
            (BEGIN, "spin-table", "psci"),
            (BEGIN, "nr_cpus=1", ""),
            (BEGIN, "\"no\"", "\"ok\""),
            (BEGIN, "\"reason\"", "\"because\""),
            (BEGIN, "\"schema_version\": 1,", ""),
            (BEGIN, "}", ""),
        ] {
            let answer = ANSWER.replace(from, to);
            let answer = if from.is_empty() { ANSWER } else { &answer };
            let error = judged(begin, answer, WANTED);
            assert!(error.is_err(), "{begin} {from} -> {to}");
        }
    }
}
