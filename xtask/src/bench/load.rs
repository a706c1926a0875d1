//! What loading costs: `kleap load` beside `kexec -l`, many times in one machine.
//!
//! The programs take turns, so that whatever the host and the kernel's free lists do is done to all
//! of them. Each load is followed by its unload, whose time does not count. The first loads count as all
//! others: there is no warming up.
//!
//! What the two do at load differs. `kexec -l` reads the files, computes SHA-256 of them (not with `-i`)
//! and calls `kexec_load(2)`, in which the kernel copies the payload and, from 5.16 on, the tables of all
//! memory. `kleap load` reads the files, computes CRC32C and writes the payload into huge pages; the kernel is
//! called at `exec`, or at load with `--early`, where that option is there.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::stats::{Summary, ratio};
use super::svg::{Bar, Chart, Group, Scale, seconds_text};
use super::{Conditions, USUAL_MB, What, Wish, load_average, number, ratio_text, row, write_files};
use crate::e2e::aligned;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::qemu::Line;
use crate::run::{self, Assets, lab_value};
use crate::setup;

/// The first kernel's script.
const SCRIPT: &str = include_str!("../../guest-scripts/bench-load.sh");
/// How long one load may take. kexec-tools needs minutes where the kernel's free lists are unlucky.
const LOAD_DEADLINE_MS: u64 = 120_000;
/// The machine's verdict comes after the loads.
const OTHER_DEADLINE_MS: u64 = 120_000;

/// What is compared, as the script calls it, and as people do. The last one is the yardstick.
const PROGRAMS: [(&str, &str); 4] = [
    ("kleap", "kleap load"),
    ("kleap-early", "kleap load --early"),
    ("kexec-i", "kexec -l -i"),
    ("kexec", "kexec -l"),
];

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    wall_us: u64,
    user_us: u64,
    sys_us: u64,
}

/// What one machine said.
#[derive(Debug, Default)]
struct Heard {
    loads: Vec<(String, Measured)>,
    kexec_version: String,
    early: bool,
    in_place: usize,
    moved: usize,
    payload: Option<(u64, u64)>,
    second: String,
}

impl Heard {
    fn hear(&mut self, line: &Line) {
        let Some(said) = lab_value(line, "") else {
            return;
        };
        if let Some(rest) = said.strip_prefix("measured ") {
            self.loads.extend(parse(rest));
        } else if let Some(version) = said.strip_prefix("kexec-version ") {
            self.kexec_version = version.trim().to_owned();
        } else if said == "early yes" {
            self.early = true;
        } else if said == "placed in-place" {
            self.in_place += 1;
        } else if said == "placed moved" {
            self.moved += 1;
        } else if said.starts_with("payload ") {
            self.payload = number(said, "image_bytes").zip(number(said, "initrd_bytes"));
        }
    }

    fn of(&self, program: &str) -> Vec<Measured> {
        let loads = self.loads.iter().filter(|(name, _)| name == program);
        loads.map(|&(_, measured)| measured).collect()
    }
}

fn parse(text: &str) -> Option<(String, Measured)> {
    let name = text.split_whitespace().next()?;
    let measured = Measured {
        wall_us: number(text, "wall_us")?,
        user_us: number(text, "user_us")?,
        sys_us: number(text, "sys_us")?,
    };
    Some((name.to_owned(), measured))
}

/// Seconds of each load.
fn summary(loads: &[Measured], microseconds: Part) -> Option<Summary> {
    Summary::of(loads.iter().map(|load| microseconds(load) as f64 / 1e6))
}

/// Microseconds of something.
type Part = fn(&Measured) -> u64;

/// What can be said of a load, and how it is found.
const QUANTITIES: [(&str, Part); 4] = [
    ("wall", |load| load.wall_us),
    ("cpu", |load| load.user_us + load.sys_us),
    ("user", |load| load.user_us),
    ("sys", |load| load.sys_us),
];

/// Measures, prints, writes.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    let loads = if wish.quick { 1 } else { wish.loads };
    let mut conditions = Conditions::before(lab, wish, What::Load)?;
    let script = SCRIPT.replace("@LOADS@", &loads.to_string());
    let mut row = row(
        "bench/load".to_owned(),
        &wish.from,
        &wish.to,
        USUAL_MB,
        script,
    )?;
    row.verdict_deadline_ms =
        Some(OTHER_DEADLINE_MS + LOAD_DEADLINE_MS * PROGRAMS.len() as u64 * u64::from(loads));
    row.replay = Some(conditions.command.clone());
    let assets = Assets::prepare(lab, std::slice::from_ref(&row))?;
    let mut heard = Heard {
        second: setup::kernel(lab, &wish.to)?.version,
        ..Heard::default()
    };
    let mut progress = Progress::start("loads");
    let outcome = run::row(lab, &assets, &row, &mut |line| {
        heard.hear(line);
        progress.update(&format!("{} done", heard.loads.len()));
    });
    progress.finish(&format!("{} done", heard.loads.len()));
    conditions.host_load[1] = load_average();
    conditions.kexec_version = heard.kexec_version.clone();
    if let Some(text) = outcome.failure {
        bail!("the loads failed: {text}");
    }
    println!("\n{}\n", report(&heard, &conditions));
    let paths = write_files(
        lab,
        "load",
        &to_json(&heard, &conditions),
        &chart(&heard, &conditions),
    )?;
    println!("{}\n{}", paths[0].display(), paths[1].display());
    Ok(())
}

/// The payload's name in all outputs.
fn payload_text(heard: &Heard) -> String {
    match heard.payload {
        None => "payload of unknown size".to_owned(),
        Some((image, initrd)) => format!(
            "{:.1} MB: Image {:.1} MB (Debian's {}), initrd {:.1} MB",
            (image + initrd) as f64 / 1e6,
            image as f64 / 1e6,
            heard.second,
            initrd as f64 / 1e6
        ),
    }
}

fn placed_text(heard: &Heard) -> String {
    format!(
        "kleap's loads: {} in place, {} to be moved at hand-over",
        heard.in_place, heard.moved
    )
}

/// The table with what has to be known to read it.
fn report(heard: &Heard, conditions: &Conditions) -> String {
    let headings = [
        "load",
        "loads",
        "",
        "median",
        "min",
        "max",
        "of kexec -l",
        "of kexec -l -i",
    ];
    let mut lines = vec![headings.map(str::to_owned)];
    for (name, title) in PROGRAMS {
        let loads = heard.of(name);
        for (index, (quantity, microseconds)) in QUANTITIES.into_iter().enumerate() {
            let Some(seconds) = summary(&loads, microseconds) else {
                continue;
            };
            let over = |other| {
                ratio_text(ratio(
                    Some(seconds),
                    summary(&heard.of(other), microseconds),
                ))
            };
            let first = |text: String| if index == 0 { text } else { String::new() };
            lines.push([
                first(title.to_owned()),
                first(seconds.count.to_string()),
                quantity.to_owned(),
                seconds_text(seconds.median),
                seconds_text(seconds.min),
                seconds_text(seconds.max),
                over("kexec"),
                over("kexec-i"),
            ]);
        }
    }
    let mut text = format!("loading {}\n\n{}\n\n", payload_text(heard), aligned(&lines));
    text.push_str(&format!("{}\n", placed_text(heard)));
    text.push_str(EXPLANATION);
    if !heard.early {
        text.push_str("this kleap has no `load --early`: it was not measured\n");
    }
    text.push_str(&conditions.lines().join("\n"));
    text
}

/// What the numbers are.
const EXPLANATION: &str = "\
cpu is user and system time together, of the program; how it is divided is sampled by the kernel
kexec -l calls kexec_load(2) at load (option -c); kleap load leaves that to kleap exec
";

fn to_json(heard: &Heard, conditions: &Conditions) -> Value {
    let programs: Vec<Value> = PROGRAMS
        .into_iter()
        .filter(|(name, _)| !heard.of(name).is_empty())
        .map(|(name, title)| {
            let loads = heard.of(name);
            let mut program = json!({
                "program": title,
                "loads": loads
                    .iter()
                    .map(|load| json!({
                        "wall_us": load.wall_us,
                        "user_us": load.user_us,
                        "sys_us": load.sys_us,
                    }))
                    .collect::<Vec<_>>(),
            });
            for (quantity, microseconds) in QUANTITIES {
                let seconds = summary(&loads, microseconds);
                let over = |other| ratio(seconds, summary(&heard.of(other), microseconds));
                program[format!("{quantity}_seconds")] =
                    seconds.map_or(Value::Null, Summary::to_json);
                program[format!("{quantity}_of_kexec")] = json!(over("kexec"));
                program[format!("{quantity}_of_kexec_i")] = json!(over("kexec-i"));
            }
            program
        })
        .collect();
    json!({
        "format": "kleap-bench-load-1",
        "conditions": conditions.to_json(),
        "payload": {
            "kernel": heard.second,
            "image_bytes": heard.payload.map(|(image, _)| image),
            "initrd_bytes": heard.payload.map(|(_, initrd)| initrd),
        },
        "early_available": heard.early,
        "kleap_in_place": heard.in_place,
        "kleap_moved": heard.moved,
        "programs": programs,
    })
}

fn chart(heard: &Heard, conditions: &Conditions) -> Chart {
    let groups = [
        ("wall time", QUANTITIES[0].1),
        ("CPU time: user and system", QUANTITIES[1].1),
    ]
    .into_iter()
    .map(|(title, microseconds)| Group {
        title: title.to_owned(),
        bars: PROGRAMS
            .into_iter()
            .enumerate()
            .filter(|(_, (name, _))| !heard.of(name).is_empty())
            .map(|(series, (name, title))| {
                let seconds = summary(&heard.of(name), microseconds);
                let over = ratio(seconds, summary(&heard.of("kexec"), microseconds));
                Bar {
                    label: title.to_owned(),
                    series,
                    seconds,
                    remark: match over {
                        Some(over) if name != "kexec" => {
                            format!("{} of kexec -l", ratio_text(Some(over)))
                        }
                        _ => String::new(),
                    },
                }
            })
            .collect(),
    })
    .collect();
    let mut notes = vec![placed_text(heard)];
    notes.extend(conditions.lines());
    Chart {
        title: format!("Loading {}", payload_text(heard)),
        subtitle: vec![format!(
            "bars: median, loads of each: {}, taking turns in one machine; lines: least to most",
            heard.of("kleap").len()
        )],
        axis: "time of one load".to_owned(),
        scale: Scale::Linear,
        groups,
        notes,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn heard(texts: &[&str]) -> Heard {
        let mut heard = Heard {
            second: "6.12".to_owned(),
            ..Heard::default()
        };
        for text in texts {
            heard.hear(&Line {
                at: Duration::ZERO,
                text: (*text).to_owned(),
            });
        }
        heard
    }

    const CONSOLE: &[&str] = &[
        "KLEAP-LAB: early no",
        "KLEAP-LAB: kexec-version kexec-tools 2.0.32",
        "KLEAP-LAB: payload image_bytes=37000000 initrd_bytes=10000000",
        "[   1.0] noise KLEAP-LAB: measured kleap wall_us=500000 user_us=300000 sys_us=100000 code=0",
        "KLEAP-LAB: placed in-place",
        "KLEAP-LAB: measured kexec-i wall_us=1000000 user_us=1 sys_us=900000 code=0",
        "KLEAP-LAB: measured kexec wall_us=2000000 user_us=1000000 sys_us=600000 code=0",
        "KLEAP-LAB: measured kleap wall_us=700000 user_us=300000 sys_us=200000 code=0",
        "KLEAP-LAB: placed moved",
        "KLEAP-LAB: measured nonsense",
        "measured kleap wall_us=1 user_us=1 sys_us=1 code=0",
    ];

    #[test]
    fn the_console_is_understood() {
        let heard = heard(CONSOLE);
        assert_eq!(heard.of("kleap").len(), 2);
        assert_eq!(heard.of("kleap-early").len(), 0);
        assert_eq!((heard.in_place, heard.moved, heard.early), (1, 1, false));
        assert_eq!(heard.kexec_version, "kexec-tools 2.0.32");
        assert_eq!(heard.payload, Some((37_000_000, 10_000_000)));
        let json = to_json(&heard, &Conditions::example());
        let program = &json["programs"][0];
        assert_eq!(program["program"], "kleap load");
        assert_eq!(program["wall_seconds"]["median"], 0.6);
        assert_eq!(program["wall_of_kexec"], 0.3);
        assert_eq!(program["wall_of_kexec_i"], 0.6);
        assert_eq!(program["cpu_seconds"]["max"], 0.5);
        assert_eq!(json["programs"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn the_table_says_what_it_left_out() {
        let text = report(&heard(CONSOLE), &Conditions::example());
        assert!(text.contains("no `load --early`"), "{text}");
        assert!(
            text.contains("47.0 MB: Image 37.0 MB (Debian's 6.12), initrd 10.0 MB"),
            "{text}"
        );
        let with = report(&heard(&["KLEAP-LAB: early yes"]), &Conditions::example());
        assert!(!with.contains("--early"), "{with}");
    }

    #[test]
    fn the_picture_is_well_formed() {
        for texts in [CONSOLE, &[]] {
            let svg = super::super::svg::draw(&chart(&heard(texts), &Conditions::example()));
            roxmltree::Document::parse(&svg).unwrap();
        }
    }
}
