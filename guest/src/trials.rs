//! Loads, many times, while something else goes wrong. Each trial is judged by itself and printed as
//! one line of JSON; the seed repeats them all.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::command::{self, KLEAP, Run, Status};
use crate::fragment::{Ballast, Kind, can_fill_page_cache};
use crate::seeded::Seeded;
use crate::traces::Traces;

/// Lines for the harness start with this.
const PREFIX: &str = "KLEAP-LAB: ";
/// "Not enough memory": the only way in which a load may fail here.
const MEMORY_CODE: i32 = 6;
/// How much of memory is used, percent. The first is no more than what the pattern needs.
const FILL_PERCENTS: [u64; 3] = [0, 60, 90];
/// The least of them where the rest is page cache.
const CACHE_FILL_PERCENT: u64 = 60;
/// Loads in the same memory, one after the other: making it takes longer than a load, and each load leaves
/// other free runs to the next.
const LOADS_PER_ARRANGEMENT: u64 = 2;
/// From a kill to the end of what the killed process had started.
const AFTERMATH: Duration = Duration::from_millis(200);
/// From how many loads in fragmented memory on at least half of them must have been loaded: a command that refuses all of
/// them breaks nothing either.
const REFUSALS_COUNT_FROM: u64 = 8;
/// How long what must end by itself may take.
const END_DEADLINE: Duration = Duration::from_secs(20);

fn print(what: &str, value: &Value) {
    println!("{PREFIX}{what} {value}");
}

/// Takes the seed and the count from the front.
fn seed_and_count(arguments: &mut impl Iterator<Item = String>) -> Result<(u64, u64)> {
    let mut number = |what: &str| {
        let text = arguments.next().with_context(|| format!("no {what}"))?;
        text.parse().with_context(|| format!("the {what}"))
    };
    Ok((number("seed")?, number("count")?))
}

/// `fragment-trials SEED COUNT FIRST LOAD-ARGUMENTS...`: so many loads in memory that is made
/// fragmented, and made anew for every few. `FIRST` is the number of the first one.
pub(crate) fn fragmentation(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (seed, count) = seed_and_count(&mut arguments)?;
    let first: u64 = arguments
        .next()
        .context("no first number")?
        .parse()
        .context("the first number")?;
    let mut load = vec!["load".to_owned()];
    load.extend(arguments);
    let mut ballast = Ballast::new()?;
    // Should a load drive the kernel to killing, the attacker is to be there for the next one.
    fs::write("/proc/self/oom_score_adj", "-1000").context("cannot be spared")?;
    let before = Traces::now()?;
    let mut failures = 0;
    let mut refusals = 0;
    let kinds: Vec<Kind> = Kind::TRIED
        .into_iter()
        .filter(|kind| *kind != Kind::PageCache || can_fill_page_cache())
        .collect();
    let mut arranged = None;
    for number in first..first + count {
        // Each arrangement has a seed of its own, so that it can be repeated without those before it.
        let arrangement = number / LOADS_PER_ARRANGEMENT;
        let mut seeded = Seeded::new(seed ^ arrangement.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let kind = *seeded.one_of(&kinds).context("no kinds")?;
        let mut fill_percent = *seeded.one_of(&FILL_PERCENTS).context("no percentages")?;
        if kind == Kind::PageCache {
            // All of memory as cache takes minutes to read in an emulator.
            fill_percent = fill_percent.max(CACHE_FILL_PERCENT);
        }
        let mut line = json!({
            "number": number,
            "kind": kind.word(),
            "fill_percent": fill_percent,
        });
        let began = Instant::now();
        let made = match arranged {
            Some((known, made)) if known == arrangement => made,
            _ => ballast.arrange(kind, fill_percent, &mut seeded)?,
        };
        arranged = Some((arrangement, made));
        merge(
            &mut line,
            json!({
                "arrangement": arrangement,
                "used_percent": made.used_percent,
                "busy_blocks": made.busy_blocks,
                "free_blocks": made.free_blocks,
                "pinned_pages": made.pinned_pages,
                "arranged_seconds": began.elapsed().as_secs_f64(),
            }),
        );
        match fragmentation_trial(&load, &before, &mut line) {
            Ok(()) => merge(&mut line, json!({ "failure": null })),
            Err(error) => {
                failures += 1;
                merge(&mut line, json!({ "failure": format!("{error:#}") }));
                // The next trial starts from a clean machine, or its failure means nothing.
                ballast.clear()?;
                arranged = None;
                let _ = command::run(&["unload"])?;
            }
        }
        refusals += u64::from(line.get("outcome") == Some(&json!("refused")));
        print("trial", &line);
    }
    ensure!(failures == 0, "{failures} of {count} trials failed");
    ensure!(
        count < REFUSALS_COUNT_FROM || refusals * 2 <= count,
        "{refusals} of {count} loads were refused"
    );
    Ok(())
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

fn fragmentation_trial(load: &[String], before: &Traces, line: &mut Value) -> Result<()> {
    let kills = out_of_memory_kills()?;
    let run = command::run(load)?;
    merge(
        line,
        json!({
            "exit_code": run.code,
            "seconds": run.duration.as_secs_f64(),
            "message": run.message.lines().next_back(),
        }),
    );
    ensure!(
        out_of_memory_kills()? == kills,
        "the kernel killed for lack of memory"
    );
    match run.code {
        Some(0) => {
            let status = Status::ask()?;
            ensure!(status.is_loaded(), "load said done, but nothing is loaded");
            let (total, moved) = (status.total_bytes()?, status.moved_bytes()?);
            merge(
                line,
                json!({
                    "outcome": if moved == 0 { "in place" } else { "moved" },
                    "total_bytes": total,
                    "in_place_bytes": total.saturating_sub(moved),
                    "huge_page_bytes": Traces::now()?.huge_page_bytes(),
                    "page_sizes_bytes": status.page_sizes_bytes()?,
                }),
            );
            command::must(&["unload"])?;
        }
        Some(MEMORY_CODE) => {
            merge(line, json!({ "outcome": "refused" }));
            ensure!(!run.message.is_empty(), "a refusal without a word");
        }
        code => {
            merge(line, json!({ "outcome": "failed" }));
            bail!("load ended with {code:?}: {}", run.message);
        }
    }
    Traces::now()?.compare(before)
}

/// How often the kernel has killed a process for lack of memory (`/proc/vmstat`).
fn out_of_memory_kills() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .context("/proc/vmstat does not count oom_kill")
}

/// A load that something happens to at random moments.
#[derive(Debug)]
struct Disturbed {
    load: Vec<String>,
    count: u64,
    seeded: Seeded,
    before: Traces,
    /// How long it takes: the longest of three, because the first has to read the program itself.
    span_us: u64,
}

impl Disturbed {
    /// From `SEED COUNT LOAD-ARGUMENTS...`.
    fn new(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let (seed, count) = seed_and_count(&mut arguments)?;
        let mut load = vec!["load".to_owned()];
        load.extend(arguments);
        let before = Traces::now()?;
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            let run = command::run(&load)?;
            ensure!(run.code == Some(0), "load does not work: {}", run.message);
            longest = longest.max(run.duration);
            command::must(&["unload"])?;
            settled(&before)?;
        }
        print("kill-span", &json!({ "seconds": longest.as_secs_f64() }));
        Ok(Self {
            load,
            count,
            seeded: Seeded::new(seed),
            before,
            span_us: u64::try_from(longest.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Starts it and sends it a signal at the next moment. When that was, and its exit code; `None` if the signal ended it.
    fn send(&mut self, signal: Signal) -> Result<(Duration, Option<i32>)> {
        let after = Duration::from_micros(self.seeded.below(self.span_us));
        let mut child = Command::new(KLEAP)
            .args(&self.load)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run kleap")?;
        thread::sleep(after);
        // Not waited for yet, so the number is still its own; nothing happens to one that has already ended.
        rustix::process::kill_process(Pid::from_child(&child), signal)
            .context("cannot signal it")?;
        Ok((after, child.wait().context("cannot wait for it")?.code()))
    }

    /// After a trial that failed, the next one starts from a clean machine.
    fn clean_up_after(&self, result: &Result<()>) -> Result<()> {
        if result.is_err() {
            let _ = command::run(&["unload"])?;
            settled(&self.before).context("not even unload cleans up")?;
        }
        Ok(())
    }
}

/// `kill-trials SEED COUNT LOAD-ARGUMENTS...`: kills a load at random moments; after the next `status`
/// or `unload`, in turn, nothing of it may be left.
pub(crate) fn kills(arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut disturbed = Disturbed::new(arguments)?;
    let count = disturbed.count;
    let mut failures = 0;
    for number in 0..count {
        let next = if number % 2 == 0 { "status" } else { "unload" };
        let (after, code) = disturbed.send(Signal::KILL)?;
        thread::sleep(AFTERMATH);
        let left = Traces::now()?;
        let result = kill_trial(code, next, &disturbed.before);
        failures += u64::from(result.is_err());
        print(
            "kill",
            &json!({
                "number": number,
                "after_ms": after.as_secs_f64() * 1e3,
                "exit_code": code,
                "next": next,
                // Whether there was anything to clean up: a kill that comes too early shows nothing.
                "left": if left == disturbed.before { Value::Null } else { json!(left) },
                "failure": result.as_ref().err().map(|error| format!("{error:#}")),
            }),
        );
        disturbed.clean_up_after(&result)?;
    }
    ensure!(failures == 0, "{failures} of {count} trials failed");
    Ok(())
}

/// What a load may be asked to end by.
const SIGNALS: [Signal; 3] = [Signal::INT, Signal::HUP, Signal::TERM];
/// What is added to a signal's number in the exit code of a program that ends by it.
const SIGNAL_CODE_BASE: i32 = 128;

/// `interrupt-trials SEED COUNT LOAD-ARGUMENTS...`: asks a load to end, at random moments, by each signal in turn. It
/// says so, and leaves nothing, without a next command.
pub(crate) fn interrupts(arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut disturbed = Disturbed::new(arguments)?;
    let count = disturbed.count;
    let (mut failures, mut ended) = (0, 0);
    for (number, &signal) in (0..count).zip(SIGNALS.iter().cycle()) {
        let (after, code) = disturbed.send(signal)?;
        let result = interrupt_trial(code, signal, &disturbed.before);
        failures += u64::from(result.is_err());
        ended += u64::from(code.is_some_and(|code| code != 0));
        print(
            "interrupt",
            &json!({
                "number": number,
                "after_ms": after.as_secs_f64() * 1e3,
                "signal": signal.as_raw(),
                "exit_code": code,
                "failure": result.as_ref().err().map(|error| format!("{error:#}")),
            }),
        );
        disturbed.clean_up_after(&result)?;
    }
    ensure!(failures == 0, "{failures} of {count} trials failed");
    ensure!(ended > 0, "no load has heard its signal");
    Ok(())
}

fn interrupt_trial(code: Option<i32>, signal: Signal, before: &Traces) -> Result<()> {
    match code {
        Some(0) => {
            whole()?;
            command::must(&["unload"])?;
        }
        // Before it has begun to listen, the signal ends it as it ends any program.
        None => {}
        Some(code) => ensure!(
            code == SIGNAL_CODE_BASE + signal.as_raw(),
            "ended with {code} after signal {}",
            signal.as_raw()
        ),
    }
    settled(before)
}

fn kill_trial(code: Option<i32>, next: &str, before: &Traces) -> Result<()> {
    command::must(&[next])?;
    if code == Some(0) && next == "status" {
        // It was faster than the kill: then it is loaded, as it said.
        ensure!(
            Status::ask()?.is_loaded(),
            "load said done, but nothing is loaded"
        );
        command::must(&["unload"])?;
    } else if next == "status" && Status::ask()?.is_loaded() {
        // Killed between the instant at which it was complete and its end: complete it must be.
        whole()?;
        command::must(&["unload"])?;
    }
    settled(before)
}

/// Everything is as before, after a moment in which what was told to end may end.
fn settled(before: &Traces) -> Result<()> {
    let began = Instant::now();
    loop {
        let result = Traces::now()?.compare(before);
        if result.is_ok() || began.elapsed() > END_DEADLINE {
            return result;
        }
        thread::sleep(AFTERMATH);
    }
}

/// What is loaded is whole, as far as `status` can say.
fn whole() -> Result<Status> {
    let status = Status::ask()?;
    ensure!(status.is_loaded(), "nothing is loaded");
    ensure!(
        status.0.pointer("/loaded/payload_present") == Some(&Value::Bool(true)),
        "the payload is gone: {}",
        status.0
    );
    status.moved_bytes()?;
    Ok(status)
}

/// One of several loads at a time.
#[derive(Debug)]
struct Rival {
    initrd: String,
    command_line: String,
    image_digest: String,
    initrd_digest: String,
}

/// `race-trials SEED COUNT RIVALS IMAGE INITRD COMMAND_LINE`: so many loads at a time, each with its
/// own initrd and command line; afterwards one of them is loaded, whole, and none of the others. The
/// last round loads the given initrd and leaves it loaded.
pub(crate) fn races(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (seed, count) = seed_and_count(&mut arguments)?;
    let mut next = |what: &str| arguments.next().with_context(|| format!("no {what}"));
    let rivals: u64 = next("number of rivals")?.parse().context("the rivals")?;
    let image = next("Image")?;
    let initrd = next("initrd")?;
    let command_line = next("command line")?;
    let mut seeded = Seeded::new(seed);
    let before = Traces::now()?;
    let image_digest = digest_of(&image)?;
    let own_digest = digest_of(&initrd)?;
    let mut contenders = Vec::new();
    for number in 0..rivals {
        let path = format!("/run/initrd-{number}");
        // Of different sizes, so that a mixture cannot have the right one by chance.
        let bytes: Vec<u8> = (0..(3 + 2 * number) << 17)
            .flat_map(|_| seeded.next().to_le_bytes())
            .collect();
        fs::write(&path, &bytes).with_context(|| format!("cannot write {path}"))?;
        contenders.push(Rival {
            command_line: format!("rival={number}"),
            image_digest: image_digest.clone(),
            initrd_digest: digest_of(&path)?,
            initrd: path,
        });
    }
    let finals: Vec<Rival> = (0..rivals)
        .map(|number| Rival {
            initrd: initrd.clone(),
            command_line: format!("{command_line} kleap_lab.rival={number}"),
            image_digest: image_digest.clone(),
            initrd_digest: own_digest.clone(),
        })
        .collect();
    let mut failures = 0;
    for round in 0..count {
        let is_last = round + 1 == count;
        let group = if is_last { &finals } else { &contenders };
        let (line, result) = race(&image, group, &mut seeded)?;
        let mut line = line;
        let result = result.and_then(|()| {
            if is_last {
                return Ok(());
            }
            command::must(&["unload"])?;
            settled(&before)
        });
        failures += u64::from(result.is_err());
        merge(
            &mut line,
            json!({
                "number": round,
                "failure": result.as_ref().err().map(|error| format!("{error:#}")),
            }),
        );
        print("race", &line);
        if result.is_err() {
            let _ = command::run(&["unload"])?;
        }
    }
    ensure!(failures == 0, "{failures} of {count} races failed");
    Ok(())
}

fn race(image: &str, rivals: &[Rival], seeded: &mut Seeded) -> Result<(Value, Result<()>)> {
    let mut children = Vec::new();
    for rival in rivals {
        thread::sleep(Duration::from_micros(seeded.below(30_000)));
        let child = Command::new(KLEAP)
            .args(["load", image, "--initrd", &rival.initrd])
            .args(["--command-line", &rival.command_line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kleap")?;
        children.push((Instant::now(), child));
    }
    let mut runs = Vec::new();
    for (began, child) in children {
        let output = child.wait_with_output().context("cannot wait for kleap")?;
        runs.push(Run::from_output(&output, began.elapsed()));
    }
    let codes: Vec<_> = runs.iter().map(|run| run.code).collect();
    let line = json!({ "rivals": rivals.len(), "exit_codes": codes });
    Ok((line, judge_race(rivals, &runs)))
}

fn judge_race(rivals: &[Rival], runs: &[Run]) -> Result<()> {
    for run in runs {
        ensure!(
            matches!(run.code, Some(0 | MEMORY_CODE)),
            "a load ended with {:?}: {}",
            run.code,
            run.message
        );
    }
    ensure!(
        runs.iter().any(|run| run.code == Some(0)),
        "no load succeeded: {}",
        runs.first().map_or("", |run| run.message.as_str())
    );
    let status = whole()?;
    let winner = rivals
        .iter()
        .zip(runs)
        .find(|(rival, _)| status.command_line() == Some(&rival.command_line));
    let Some((rival, run)) = winner else {
        bail!(
            "what is loaded has nobody's command line: {:?}",
            status.command_line()
        );
    };
    ensure!(run.code == Some(0), "what is loaded was refused");
    ensure!(
        status.digest("Image") == Some(&rival.image_digest)
            && status.digest("initrd") == Some(&rival.initrd_digest),
        "what is loaded is a mixture: {}, wanted {rival:?}",
        status.0
    );
    let (held, wanted) = (Traces::now()?.huge_page_bytes(), status.huge_page_bytes()?);
    ensure!(
        held == wanted,
        "{held} bytes of huge pages are held, what is loaded needs {wanted}"
    );
    Ok(())
}

/// A file's CRC32C as `status` writes it, by another implementation than the command's.
fn digest_of(path: &str) -> Result<String> {
    static CRC32C: crc::Crc<u32, crc::Table<16>> =
        crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
    let mut buffer = vec![0; 1 << 20];
    let mut digest = CRC32C.digest();
    loop {
        let count = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {path}"))?;
        if count == 0 {
            return Ok(format!("{:#010x}", digest.finalize()));
        }
        digest.update(buffer.get(..count).unwrap_or_default());
    }
}
