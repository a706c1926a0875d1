//! `cargo xtask fuzz`: everything that reads bytes from outside, under attack.
//!
//! Without `--runs`, the short form that the tests run: the corpora in `fuzz/corpus`, and seeded mutations of
//! them, through the same functions, in this process, with any compiler.
//!
//! With `--runs`, libFuzzer: the programs in `fuzz/` are built with coverage counters and run one after the
//! other. No nightly compiler is needed for that: the counters are a pass of LLVM, which a stable compiler takes
//! too (`-C passes=sancov-module`). What does need one is AddressSanitizer, and it is left out: no target reaches
//! `unsafe` code of ours, the crates under attack forbid it, and without it ten million runs take a third of the
//! time. `cargo +nightly fuzz run TARGET` runs the same targets with it.
//!
//! A target's runs are made in pieces, each with a seed of its own, and what came of them is written down after
//! each, so that an interruption costs one piece. They add up as long as the program is the same, byte for byte;
//! a changed one begins at 0.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use kleap_fuzz::replay::{self, Outcome};
use kleap_fuzz::seeds::{self, Sources};
use kleap_fuzz::{TARGETS, Target};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::e2e::{Tally, aligned};
use crate::lab::{self, Lab};
use crate::setup;

/// Mutations of each target in the short form. All of them together take some seconds.
const MUTATIONS: u64 = 20_000;
/// Seed of the short form: always the same, so that a failure is the change's.
const SEED: u64 = 1;
/// Runs of one process of libFuzzer.
const PIECE_RUNS: u64 = 1_000_000;
/// A run that takes longer is a hang, seconds.
const TIMEOUT_SECONDS: u32 = 5;
/// Memory of a target, libFuzzer's own included, MiB.
const RSS_LIMIT_MIB: u32 = 512;
/// What a kernel's head is cut to, bytes: the rest of the first 64 KiB is empty.
const HEAD_BYTES: usize = 64 << 10;
/// The record of the long form.
const RECORD: &str = "docs/reliability/fuzz.json";
/// Kernels whose heads are seeds.
const KERNELS: &[&str] = &["5.10", "6.1", "6.12", "6.12-16k", "7.3"];
/// The kernel whose package the device trees come from, and the trees: of every kind of machine one.
const TREES_OF: &str = "6.12";
const TREES: &[&str] = &[
    "bcm2711-rpi-4-b.dtb",
    "bcm2837-rpi-3-b.dtb",
    "rk3399-rockpro64.dtb",
    "imx8mq-evk.dtb",
    "meson-gxbb-odroidc2.dtb",
    "sun50i-h6-pine-h64.dtb",
    "fsl-ls1028a-rdb.dtb",
    "armada-8040-mcbin.dtb",
    "juno.dtb",
    "hi3660-hikey960.dtb",
    "k3-am654-base-board.dtb",
    "apm-mustang.dtb",
];

/// What is wanted.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// libFuzzer, until each target has had as many runs; without this: the corpora, and mutations of them
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Only this target; may be given several times
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Mutations of each target, without --runs
    #[arg(long, value_name = "N", default_value_t = MUTATIONS, conflicts_with = "runs")]
    mutations: u64,
    /// The seed; with --runs: of the first piece
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// Write the seeds of the corpora into fuzz/corpus, from kernels and their device trees
    #[arg(long, conflicts_with_all = ["runs", "minimize"])]
    seed_corpus: bool,
    /// Put into fuzz/corpus what libFuzzer has found, as little as reaches all that is reached
    #[arg(long, conflicts_with = "runs")]
    minimize: bool,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    let targets = selected(&wish.targets)?;
    if wish.seed_corpus {
        return seed_corpus(lab, &targets);
    }
    if wish.minimize {
        let programs = build_all(lab, &targets)?;
        return targets
            .iter()
            .try_for_each(|target| minimize(lab, &programs, target));
    }
    if let Some(runs) = wish.runs {
        return long(lab, &targets, runs, wish.seed);
    }
    let tally = short(lab, &targets, wish.mutations, wish.seed)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "{} targets failed", tally.failed);
    Ok(())
}

/// The short form, as the tests run it.
pub(crate) fn test(lab: &Lab) -> Result<Tally> {
    short(lab, &selected(&[])?, MUTATIONS, SEED)
}

/// Those that are named, in that order; all if none is.
fn selected(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        kleap_fuzz::find(name).with_context(|| {
            let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            format!("there is no target {name}: there are {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

fn corpus(lab: &Lab) -> PathBuf {
    lab.workspace().join("fuzz/corpus")
}

/// Below `target`: programs, what libFuzzer has found, failing inputs.
fn work(lab: &Lab, part: &str) -> PathBuf {
    lab.workspace().join("target/fuzz").join(part)
}

fn short(lab: &Lab, targets: &[&'static Target], mutations: u64, seed: u64) -> Result<Tally> {
    println!("fuzz: {mutations} mutations of each target's corpus, seed {seed}");
    let wish = replay::Wish {
        corpus: corpus(lab),
        artifacts: work(lab, "artifacts"),
        mutations,
        seed,
    };
    let mut tally = Tally::default();
    for target in targets {
        let began = Instant::now();
        let outcome = replay::replay(target, &wish)
            .with_context(|| format!("cannot replay the corpus of {}", target.name))?;
        println!(
            "fuzz {:<20} {} ({} in the corpus, {} runs, {:.1} s, slowest {:.1} ms)",
            target.name,
            if outcome.failure.is_none() {
                "passed"
            } else {
                "FAILED"
            },
            outcome.corpus,
            outcome.runs,
            began.elapsed().as_secs_f64(),
            outcome.slowest.as_secs_f64() * 1e3,
        );
        tally_of(target, &outcome, &mut tally);
    }
    Ok(tally)
}

fn tally_of(target: &Target, outcome: &Outcome, tally: &mut Tally) {
    let Some((text, path)) = &outcome.failure else {
        tally.passed += 1;
        return;
    };
    tally.failed += 1;
    println!("  {text}");
    println!(
        "  repeat: cargo run -p kleap-fuzz -- {} {}",
        target.name,
        path.display()
    );
}

/// The programs of these targets, each built as it is to be.
fn build_all(lab: &Lab, targets: &[&Target]) -> Result<PathBuf> {
    // Copies: a build beside this must not change what is counted.
    let programs = work(lab, "bin");
    fs::create_dir_all(&programs).context("cannot make a directory for the programs")?;
    for is_drawn in [false, true] {
        let wanted: Vec<_> = targets
            .iter()
            .filter(|target| target.is_drawn == is_drawn)
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let built = build(lab, !is_drawn)?;
        for target in wanted {
            let to = programs.join(target.name);
            match fs::remove_file(&to) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot replace {}", to.display()));
                }
                _ => {}
            }
            fs::copy(built.join(target.name), &to).context("cannot copy a program")?;
        }
    }
    Ok(programs)
}

/// The programs in `fuzz/`, built with coverage counters, and with a look at what is compared or not.
fn build(lab: &Lab, traces_compares: bool) -> Result<PathBuf> {
    const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
         -Cllvm-args=-sanitizer-coverage-level=4 \
         -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
         -Cllvm-args=-sanitizer-coverage-pc-table \
         -Ccodegen-units=1";
    const COMPARES: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
    let host = host()?;
    let (directory, flags) = if traces_compares {
        (work(lab, "build"), format!("{FLAGS} {COMPARES}"))
    } else {
        (work(lab, "build-drawn"), FLAGS.to_owned())
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(lab.workspace())
        .args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml"])
        // With a target named, the flags are not for build scripts and procedural macros.
        .args(["--target", &host, "--target-dir"])
        .arg(&directory)
        .env("RUSTFLAGS", flags)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    Ok(directory.join(host).join("release"))
}

/// This machine, as the compiler names it.
fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not name its host")
}

/// What one process of libFuzzer said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Said {
    executions: u64,
    slowest_seconds: u64,
    peak_rss_mib: u64,
    edges: u64,
    features: u64,
    corpus: u64,
}

/// Understands libFuzzer's lines of progress and its final statistics.
fn understood(text: &str) -> Said {
    let mut said = Said::default();
    let after = |line: &str, word: &str| -> Option<u64> {
        let rest = line.split_once(word)?.1.trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest.get(..end)?.parse().ok()
    };
    for line in text.lines() {
        for (word, field) in [
            ("stat::number_of_executed_units:", &mut said.executions),
            ("stat::slowest_unit_time_sec:", &mut said.slowest_seconds),
            ("stat::peak_rss_mb:", &mut said.peak_rss_mib),
            (" cov: ", &mut said.edges),
            (" ft: ", &mut said.features),
            (" corp: ", &mut said.corpus),
        ] {
            if let Some(number) = after(line, word) {
                *field = number;
            }
        }
    }
    said
}

/// What became of a target.
enum End {
    Done,
    /// It failed, or the process died; the end of what it said.
    Failed(String),
}

fn long(lab: &Lab, targets: &[&'static Target], runs: u64, seed: u64) -> Result<()> {
    let programs = build_all(lab, targets)?;
    let mut failed = Vec::new();
    for target in targets {
        match fuzz(lab, &programs, target, runs, seed)? {
            End::Done => {}
            End::Failed(text) => {
                println!("{}: FAILED\n{text}", target.name);
                failed.push(target.name);
            }
        }
    }
    println!("{}", table(&read_record(lab)?));
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs one target until it has had `runs` runs.
fn fuzz(lab: &Lab, programs: &Path, target: &Target, runs: u64, seed: u64) -> Result<End> {
    let program = programs.join(target.name);
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let found = work(lab, "corpus").join(target.name);
    let artifacts = work(lab, "artifacts").join(target.name);
    for directory in [&found, &artifacts] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    loop {
        let mut record = read_record(lab)?;
        let before = entry(&record, target, &digest);
        let number = |name: &str| before.get(name).and_then(Value::as_u64).unwrap_or(0);
        let left = runs.saturating_sub(number("executions"));
        if left == 0 {
            return Ok(End::Done);
        }
        let piece_seed = seed.wrapping_add(number("pieces"));
        let began = Instant::now();
        let output = Command::new(&program)
            .arg(&found)
            .arg(corpus(lab).join(target.name))
            .args([
                format!("-runs={}", left.min(PIECE_RUNS)),
                format!("-seed={}", piece_seed.max(1)),
                format!("-max_len={}", target.max_len_bytes),
                format!("-timeout={TIMEOUT_SECONDS}"),
                format!("-rss_limit_mb={RSS_LIMIT_MIB}"),
                format!("-artifact_prefix={}/", artifacts.display()),
                "-print_final_stats=1".to_owned(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let said = understood(&text);
        let is_failure = !output.status.success();
        let after = json!({
            "program_sha256": digest,
            "executions": number("executions") + said.executions,
            "pieces": number("pieces") + 1,
            "first_seed": if number("pieces") == 0 { seed } else { number("first_seed") },
            "seconds": number("seconds") + began.elapsed().as_secs(),
            "failures": number("failures") + u64::from(is_failure),
            "slowest_unit_seconds": number("slowest_unit_seconds").max(said.slowest_seconds),
            "peak_rss_mib": number("peak_rss_mib").max(said.peak_rss_mib),
            "edges_covered": number("edges_covered").max(said.edges),
            "features": number("features").max(said.features),
            "corpus": number("corpus").max(said.corpus),
            "max_len_bytes": target.max_len_bytes,
            "traces_compares": !target.is_drawn,
        });
        println!(
            "{}: {} of {runs} runs, {} edges, {} MiB, seed {piece_seed}",
            target.name,
            number("executions") + said.executions,
            said.edges,
            said.peak_rss_mib
        );
        if let Some(targets) = record.get_mut("targets").and_then(Value::as_object_mut) {
            targets.insert(target.name.to_owned(), after);
        }
        write_record(lab, &record)?;
        if is_failure {
            let lines: Vec<&str> = text.lines().collect();
            let end = lines
                .get(lines.len().saturating_sub(25)..)
                .unwrap_or_default();
            return Ok(End::Failed(end.join("\n")));
        }
        ensure!(said.executions > 0, "{} ran nothing:\n{text}", target.name);
    }
}

/// What is on record of a target, if it is of this program; a failed one begins again.
fn entry(record: &Value, target: &Target, digest: &str) -> Map<String, Value> {
    record
        .get("targets")
        .and_then(|targets| targets.get(target.name))
        .and_then(Value::as_object)
        .filter(|entry| entry.get("program_sha256").and_then(Value::as_str) == Some(digest))
        .filter(|entry| entry.get("failures").and_then(Value::as_u64) == Some(0))
        .cloned()
        .unwrap_or_default()
}

fn read_record(lab: &Lab) -> Result<Value> {
    let path = lab.workspace().join(RECORD);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(json!({
            "format": "kleap-fuzz-1",
            "conditions": {
                "fuzzer": "libFuzzer, sancov inline-8bit-counters, trace-compares where the input is not drawn from, no sanitizer",
                "host_architecture": env::consts::ARCH,
                "timeout_seconds": TIMEOUT_SECONDS,
                "rss_limit_mib": RSS_LIMIT_MIB,
                "runs_per_process": PIECE_RUNS,
            },
            "targets": {},
        })),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_record(lab: &Lab, record: &Value) -> Result<()> {
    let path = lab.workspace().join(RECORD);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).context("cannot make a directory for the record")?;
    }
    let text = serde_json::to_string_pretty(record).context("cannot write the record")?;
    lab::write_whole(&path, format!("{text}\n").as_bytes())
}

/// The record for people.
fn table(record: &Value) -> String {
    let mut lines = vec![
        [
            "target",
            "executions",
            "failures",
            "slowest",
            "peak memory",
            "edges",
            "corpus",
        ]
        .map(str::to_owned),
    ];
    for target in TARGETS {
        let Some(entry) = record
            .get("targets")
            .and_then(|targets| targets.get(target.name))
        else {
            continue;
        };
        let number = |name: &str| entry.get(name).and_then(Value::as_u64).unwrap_or(0);
        lines.push([
            target.name.to_owned(),
            number("executions").to_string(),
            number("failures").to_string(),
            match number("slowest_unit_seconds") {
                0 => "below 1 s".to_owned(),
                seconds => format!("{seconds} s"),
            },
            format!("{} MiB", number("peak_rss_mib")),
            number("edges_covered").to_string(),
            number("corpus").to_string(),
        ]);
    }
    aligned(&lines)
}

/// Makes the seeds again, from the lab.
fn seed_corpus(lab: &Lab, targets: &[&'static Target]) -> Result<()> {
    let mut sources = Sources::default();
    for name in KERNELS {
        let kernel = setup::kernel(lab, name)?;
        let bytes = fs::read(&kernel.image).context("cannot read a kernel")?;
        let head = bytes.get(..HEAD_BYTES).unwrap_or(&bytes).to_vec();
        sources.heads.push(((*name).to_owned(), head));
    }
    let directory = setup::device_trees(lab, TREES_OF, TREES)?;
    for name in TREES {
        let bytes =
            fs::read(directory.join(name)).with_context(|| format!("cannot read {name}"))?;
        sources
            .trees
            .push((name.trim_end_matches(".dtb").to_owned(), bytes));
    }
    let mut written = 0;
    for seed in seeds::seeds(&sources) {
        if targets.iter().all(|target| target.name != seed.target) {
            continue;
        }
        let directory = corpus(lab).join(seed.target);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        fs::write(directory.join(&seed.name), &seed.bytes)
            .with_context(|| format!("cannot write {}", seed.name))?;
        written += 1;
    }
    println!("{written} seeds written to {}", corpus(lab).display());
    Ok(())
}

/// libFuzzer's merge: of all inputs those that reach something; the seeds stay in any case.
fn minimize(lab: &Lab, programs: &Path, target: &Target) -> Result<()> {
    let kept = corpus(lab).join(target.name);
    let found = work(lab, "corpus").join(target.name);
    let merged = work(lab, "merged").join(target.name);
    lab::fresh_directory(&merged)?;
    fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
    for entry in fs::read_dir(&kept).with_context(|| format!("no corpus of {}", target.name))? {
        let entry = entry.context("cannot list a corpus")?;
        // What was written for a reason has a name; what libFuzzer found is named by its digest.
        if entry.file_name().to_string_lossy().contains('-') {
            fs::copy(entry.path(), merged.join(entry.file_name())).context("cannot copy a seed")?;
        }
    }
    let output = Command::new(programs.join(target.name))
        // Edges, not how often they were passed: a fifth of the files.
        .args(["-merge=1", "-use_counters=0"])
        .args([
            format!("-max_len={}", target.max_len_bytes),
            format!("-timeout={TIMEOUT_SECONDS}"),
            format!("-rss_limit_mb={RSS_LIMIT_MIB}"),
        ])
        .args([&merged, &kept, &found])
        .output()
        .context("cannot run a target")?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            target.name,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::remove_dir_all(&kept).context("cannot remove the old corpus")?;
    fs::rename(&merged, &kept).context("cannot put the new corpus in its place")?;
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(&kept).context("cannot list a corpus")? {
        files += 1;
        bytes += entry
            .and_then(|entry| entry.metadata())
            .map_or(0, |data| data.len());
    }
    println!("{}: {files} inputs, {bytes} bytes", target.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let text = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 41Mb\n\
                    #524288\tpulse  cov: 345 ft: 1301 corp: 220/14Kb lim: 1024 exec/s: 174762 rss: 66Mb\n\
                    #1000000\tDONE   cov: 347 ft: 1310 corp: 222/14Kb lim: 1024 exec/s: 166666 rss: 77Mb\n\
                    Done 1000000 runs in 6 second(s)\n\
                    stat::number_of_executed_units: 1000000\n\
                    stat::average_exec_per_sec:     166666\n\
                    stat::new_units_added:          221\n\
                    stat::slowest_unit_time_sec:    0\n\
                    stat::peak_rss_mb:              77\n";
        assert_eq!(
            understood(text),
            Said {
                executions: 1_000_000,
                slowest_seconds: 0,
                peak_rss_mib: 77,
                edges: 347,
                features: 1310,
                corpus: 222,
            }
        );
        assert_eq!(understood(""), Said::default());
    }

    #[test]
    fn counts_are_of_one_program_and_without_failures() {
        let target = &TARGETS[0];
        let record = |failures: u64| {
            json!({ "targets": { target.name: {
                "program_sha256": "aa", "executions": 7, "failures": failures } } })
        };
        assert_eq!(
            entry(&record(0), target, "aa").get("executions"),
            Some(&json!(7))
        );
        assert!(entry(&record(0), target, "bb").is_empty());
        assert!(entry(&record(1), target, "aa").is_empty());
    }

    #[test]
    fn targets_are_chosen_by_name() {
        assert_eq!(selected(&[]).unwrap().len(), TARGETS.len());
        assert_eq!(selected(&["iomem".to_owned()]).unwrap().len(), 1);
        assert!(selected(&["no such".to_owned()]).is_err());
    }
}
