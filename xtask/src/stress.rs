//! Attacks: loads in memory that was made fragmented, loads that are killed, loads at one time, pages
//! that are moved, memory that is added and taken away.
//!
//! Each attack is a row, so that it can be run alone and repeated; the guest's helper judges each trial
//! where it happens. `cargo xtask stress` runs the same attacks many times over, as many machines with
//! some trials each: a machine that has done hundreds of loads is no longer the one that was booted,
//! and a failure in it would be hard to repeat.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::lab::{self, Lab};
use crate::rows::{COMMAND_LINE, EL1_A57, EL1_N1, EL2_A57, Kind, Row, Script, Strategy, VHE_N1};
use crate::run::{self, Assets};

/// Sizes of Image and initrd together, bytes, and of a machine in which 90 % of memory used leaves hardly
/// enough for them, MB.
const PAYLOADS: &[(u64, u32)] = &[(100_000_000, 2560), (380_000_000, 6144)];
/// Kernels whose memory is fragmented, in turn, with a machine that can run them.
const FRAGMENTED: &[(&str, Kind)] = &[
    ("6.1", EL1_A57),
    ("6.12", EL1_A57),
    ("5.10", EL1_A57),
    ("7.3", EL1_A57),
    ("6.12-16k", EL1_N1),
];
/// Trials of one machine.
const TRIALS_PER_MACHINE: u64 = 20;
/// From the script's start to the verdict, for one machine with as many trials.
const TRIALS_DEADLINE_MS: u64 = 1_800_000;
/// What the page cache is filled with needs them.
const CACHE_MODULES: &[&str] = &["loop"];
/// Most loads of one attack, and the highest number of the first one.
const LOADS_MAX: u64 = 1_000_000;
/// The seed of the rows; `cargo xtask stress --seed` takes others.
const ROW_SEED: u64 = 1;
/// CPUs of these machines: what is waited for is memory.
const CPUS: u32 = 2;
/// How wide the longest bar of a histogram is.
const BAR_COLUMNS: u64 = 40;

/// What the attacks' scripts share.
const ATTACKS: &str = include_str!("../guest-scripts/attacks.sh");
const FRAGMENTATION: &str = include_str!("../guest-scripts/fragmentation.sh");
const FRAGMENTED_HAND_OVER: &str = include_str!("../guest-scripts/fragmented-hand-over.sh");
const FRESH: &str = include_str!("../guest-scripts/fresh.sh");
const KILL: &str = include_str!("../guest-scripts/kill.sh");
const INTERRUPT: &str = include_str!("../guest-scripts/interrupt.sh");
const KILLING_SPREE: &str = include_str!("../guest-scripts/killing-spree.sh");
const RACE: &str = include_str!("../guest-scripts/race.sh");
const HOTPLUG: &str = include_str!("../guest-scripts/hotplug.sh");
const MIGRATE: &str = include_str!("../guest-scripts/migrate.sh");
const EXHAUSTION: &str = include_str!("../guest-scripts/exhaustion.sh");
const SET_ASIDE: &str = include_str!("../guest-scripts/set-aside.sh");
const NUMA: &str = include_str!("../guest-scripts/numa.sh");

/// Two nodes of 1 GiB. The boot CPU is on the second, and memory starts on the first.
const TWO_NODES: &[&str] = &[
    "-object",
    "memory-backend-ram,id=node0,size=1G",
    "-object",
    "memory-backend-ram,id=node1,size=1G",
    "-numa",
    "node,nodeid=0,memdev=node0",
    "-numa",
    "node,nodeid=1,memdev=node1",
    "-numa",
    "cpu,node-id=1,socket-id=0,cluster-id=0,core-id=0,thread-id=0",
    "-numa",
    "cpu,node-id=0,socket-id=0,cluster-id=0,core-id=1,thread-id=0",
];

/// A script that is told what to do by variables; `$command_line` is the second kernel's.
fn script(text: &str, variables: &str) -> Script {
    Script::Template(format!(
        "command_line='{COMMAND_LINE}'\n{variables}\n{ATTACKS}\n{text}"
    ))
}

fn attack(
    name: String,
    first: &'static str,
    kind: Kind,
    text: &'static str,
    variables: String,
) -> Row {
    let mut row = Row::hand_over(first, "6.12", kind, Strategy::Auto);
    // The second kernel has to run on the same CPU.
    row.second = if first == "6.12-16k" {
        "6.12-16k"
    } else {
        "6.12"
    };
    row.cpus = CPUS;
    row.script = script(text, &variables);
    row.name = format!("stress/{name}");
    row
}

/// Some loads in fragmented memory, from number `first_number` on.
fn fragmentation(
    turn: usize,
    payload: (u64, u32),
    seed: u64,
    first_number: u64,
    count: u64,
) -> Row {
    let (payload_bytes, memory_mb) = payload;
    let &(kernel, kind) = FRAGMENTED
        .get(turn % FRAGMENTED.len())
        .unwrap_or(&("6.1", EL1_A57));
    let megabytes = payload_bytes / 1_000_000;
    let mut row = attack(
        format!("fragmentation/{kernel}/{megabytes}M/from-{first_number}"),
        kernel,
        kind,
        FRAGMENTATION,
        format!("seed={seed} count={count} first={first_number}"),
    );
    row.payload_bytes = payload_bytes;
    row.memory_mb = memory_mb;
    if kernel != "5.10" {
        // 5.10 fills the holes of the file below a loop device when they are read: that is no cache.
        row.modules = CACHE_MODULES;
    }
    // Debian's kernels clear every page twice; once is slow enough in an emulator.
    row.first_words = "init_on_alloc=0";
    row.verdict_deadline_ms = Some(TRIALS_DEADLINE_MS);
    row
}

/// A hand-over from fragmented memory.
fn fragmented_hand_over(
    turn: usize,
    payload: (u64, u32),
    kind_of_trouble: &str,
    fill_percent: u64,
    seed: u64,
) -> Row {
    let mut row = fragmentation(turn, payload, seed, 0, 0);
    let megabytes = row.payload_bytes / 1_000_000;
    row.name = format!(
        "stress/hand-over/{}/{megabytes}M/{kind_of_trouble}-{fill_percent}",
        row.first
    );
    row.script = script(
        FRAGMENTED_HAND_OVER,
        &format!("seed={seed} kind={kind_of_trouble} fill={fill_percent}"),
    );
    row
}

/// A hand-over from memory in which 2 MiB are free in fewer places than the payload needs, and 64 KiB in nearly all.
fn small_pages(first: &'static str, kind: Kind) -> Row {
    let (payload_bytes, memory_mb) = (380_000_000, 2048);
    let mut row = attack(
        format!("small-pages/{first}"),
        first,
        kind,
        FRAGMENTED_HAND_OVER,
        format!("seed={ROW_SEED} kind=every-pinned fill=0"),
    );
    row.payload_bytes = payload_bytes;
    row.memory_mb = memory_mb;
    // Pages of CMA cannot be pinned where they are. And a ramfs is not moved out of the way, as a tmpfs is.
    row.first_words = "init_on_alloc=0 cma=0 rootfstype=ramfs";
    row.lines = &["huge pages of 64 KiB"];
    row.verdict_deadline_ms = Some(TRIALS_DEADLINE_MS);
    row
}

/// What 5.10 needs to read a disk with a FAT file system, in the order in which it is loaded.
const DISK_MODULES_5_10: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_blk",
    "nls_cp437",
    "nls_ascii",
    "fat",
    "vfat",
];
/// Later kernels have the first two built in.
const DISK_MODULES: &[&str] = DISK_MODULES_5_10.split_at(2).1;

/// The same row, with the payload on a disk: a root in memory has room without being told to.
fn on_disk(mut row: Row) -> Row {
    row.is_payload_on_disk = true;
    row.modules = match row.first {
        "5.10" => DISK_MODULES_5_10,
        _ => DISK_MODULES,
    };
    row.first_words = "";
    row
}

/// A freshly booted machine on which `percent` of the payload is available when the first script runs, with
/// the memory for that, MB; found by trying. Nothing may be moved.
fn fresh(first: &'static str, kind: Kind, payload_bytes: u64, percent: u64, memory_mb: u32) -> Row {
    let mut row = attack(
        format!("fresh/{first}/{}M/{percent}", payload_bytes / 1_000_000),
        first,
        kind,
        FRESH,
        format!("percent={percent}"),
    );
    row.payload_bytes = payload_bytes;
    row.memory_mb = memory_mb;
    // As a tmpfs the root would be limited to half of what is left beside its own archive: too little.
    row.first_words = "rootfstype=ramfs";
    row.moved_max_bytes = Some(0);
    row
}

/// What may be moved on a machine so small that some boots leave no place without a page of the kernel's own in it,
/// wherever the payload is looked for (docs/attacks.md).
const SMALL_MACHINE_MOVED_BYTES: u64 = 24 << 20;

/// A machine of which less than the payload is not CMA: part of it has to lie there, and stay.
fn cma(first: &'static str) -> Row {
    let mut row = on_disk(fresh(first, EL2_A57, 150_000_000, 210, 384));
    row.name = format!("stress/cma/{first}");
    row.first_words = "cma=208M";
    row.lines = &["in place: nothing will be moved, pinned by pipe"];
    row
}

fn hotplug(first: &'static str, online: &str, offline: bool) -> Row {
    let offline = if offline { "yes" } else { "no" };
    let mut row = attack(
        format!("hotplug/{first}/{online}/offline-{offline}"),
        first,
        EL2_A57,
        HOTPLUG,
        format!("online={online} offline={offline}"),
    )
    .by_efi();
    row.second = "6.1-cloud";
    row.memory_words = ",slots=2,maxmem=8G";
    row
}

fn migrate(first: &'static str, name: &str, how: &str, pins: bool) -> Row {
    let pins = if pins { "yes" } else { "no" };
    let mut row = attack(
        format!("migrate/{first}/{name}/pins-{pins}"),
        first,
        EL2_A57,
        MIGRATE,
        format!("how='{how}' pins={pins}"),
    );
    row.machine_words = TWO_NODES;
    row
}

/// Everything that can be lacking, one thing at a time.
fn exhaustion(first: &'static str, extent: &str) -> Row {
    let mut row = attack(
        format!("exhaustion/{first}/{extent}"),
        first,
        EL1_A57,
        EXHAUSTION,
        format!("extent={extent}"),
    );
    // Loaded a hundred times: the smallest Image that there is, and an initrd that is no larger than it must be.
    row.second = "5.10-cloud";
    row.payload_bytes = 0;
    row.memory_mb = 768;
    row.verdict_deadline_ms = Some(TRIALS_DEADLINE_MS);
    row
}

/// Huge pages of somebody else's, and little else; with the kernel's own memory for devices, from which not everything can
/// be taken, or without.
fn set_aside(first: &'static str, cma: bool) -> Row {
    let name = if cma { "cma" } else { "no-cma" };
    let mut row = attack(
        format!("set-aside/{first}/{name}"),
        first,
        EL2_A57,
        SET_ASIDE,
        String::new(),
    );
    row.memory_mb = 768;
    row.payload_bytes = 44_400_000;
    row.first_words = if cma { "" } else { "cma=0" };
    row.verdict_deadline_ms = Some(TRIALS_DEADLINE_MS);
    row
}

/// All attacks, in short.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (turn, &payload) in PAYLOADS.iter().enumerate() {
        rows.push(fragmentation(turn, payload, ROW_SEED, 0, 8));
        for (offset, (trouble, fill_percent)) in [
            ("alternate-pinned", 60),
            ("random-pinned", 60),
            ("alternate-movable", 60),
            ("plain", 90),
            ("page-cache", 60),
            ("alternate-pinned", 90),
            ("random-pinned", 90),
        ]
        .into_iter()
        .enumerate()
        {
            rows.push(fragmented_hand_over(
                turn + offset,
                payload,
                trouble,
                fill_percent,
                ROW_SEED,
            ));
        }
    }
    // Twice is what was asked for; more shows from where on it holds.
    for (percent, more) in [(200, 0), (300, 1), (400, 2)] {
        for (first, kind, payload_bytes, memory_mb) in [
            ("6.1", EL2_A57, 100_000_000, 348),
            ("6.1", EL2_A57, 380_000_000, 1215),
            ("6.12-16k", VHE_N1, 100_000_000, 370),
            ("6.12-16k", VHE_N1, 380_000_000, 1270),
        ] {
            let payload_mb = u32::try_from(payload_bytes / 1_000_000).unwrap_or(0);
            // With larger pages, the kernel itself takes more of what is added.
            let (part, base_mb) = if first == "6.12-16k" {
                (108, 4)
            } else {
                (100, 0)
            };
            let memory_mb = match (first, payload_mb, percent) {
                // What the kernel takes of this much does not grow evenly.
                ("6.12-16k", 100, 400) => 577,
                ("6.12-16k", 380, 400) => 2140,
                _ => memory_mb + more * (payload_mb * part / 100 + base_mb),
            };
            let mut row = fresh(first, kind, payload_bytes, percent, memory_mb);
            if (first, payload_mb, percent) == ("6.12-16k", 100, 200) {
                row.moved_max_bytes = Some(SMALL_MACHINE_MOVED_BYTES);
            }
            rows.push(row);
        }
    }
    // With the payload where it usually is: not in memory. QEMU's disk holds 504 MiB.
    for (first, kind, payload_bytes, memory_mb) in [
        ("6.1", EL2_A57, 100_000_000, 243),
        ("6.1", EL2_A57, 230_000_000, 512),
        ("6.1", EL2_A57, 380_000_000, 820),
        ("6.1", EL2_A57, 475_000_000, 1024),
        ("7.3", EL2_A57, 475_000_000, 1024),
        ("6.12-16k", VHE_N1, 100_000_000, 265),
        ("6.12-16k", VHE_N1, 227_000_000, 512),
        ("6.12-16k", VHE_N1, 380_000_000, 875),
        ("6.12-16k", VHE_N1, 455_000_000, 1024),
    ] {
        let mut row = on_disk(fresh(first, kind, payload_bytes, 200, memory_mb));
        row.name = format!("{}-disk", row.name);
        if memory_mb < 300 || (first == "6.12-16k" && memory_mb <= 512) {
            row.moved_max_bytes = Some(SMALL_MACHINE_MOVED_BYTES);
        }
        if memory_mb == 265 {
            // No two places of plain memory are long enough.
            row.may_be_refused = true;
            row.script = script(FRESH, "percent=200 tight=yes");
        }
        rows.push(row);
    }
    rows.extend(["5.10", "6.12", "7.3"].map(cma));
    // The same payload on a machine of a usual size, most of which is in use.
    for (first, kind) in [
        ("6.1", EL2_A57),
        ("6.12", EL2_A57),
        ("7.3", EL2_A57),
        ("6.12-16k", VHE_N1),
    ] {
        let mut row = fresh(first, kind, 100_000_000, 200, 1024);
        row.name = format!("stress/fresh/{first}/100M/200-of-1024M");
        row.script = script(FRESH, "percent=200 filled=yes");
        // With 16K pages the kernel keeps more to itself: of 290 MB that are free, 220 may be taken, and which is its choice.
        if first == "6.12-16k" {
            row.moved_max_bytes = Some(SMALL_MACHINE_MOVED_BYTES);
        }
        rows.push(row);
    }
    for first in ["5.10-cloud", "6.1-cloud", "6.12-cloud", "7.3-cloud"] {
        for online in ["online_movable", "online_kernel"] {
            rows.push(hotplug(first, online, false));
        }
        rows.push(hotplug(first, "online_movable", true));
    }
    for first in ["5.10", "6.1", "6.12", "7.3"] {
        for pins in [true, false] {
            rows.push(migrate(first, "move-pages", "move-pages", pins));
            rows.push(migrate(first, "soft-offline", "soft-offline 4", pins));
        }
    }
    for first in ["6.1", "6.12", "7.3"] {
        rows.push(set_aside(first, true));
        rows.push(set_aside(first, false));
    }
    for first in ["6.1", "7.3"] {
        rows.push(attack(
            format!("kill/{first}"),
            first,
            EL1_A57,
            KILL,
            format!("seed={ROW_SEED} count=20"),
        ));
    }
    for first in ["5.10", "6.1", "7.3"] {
        rows.push(attack(
            format!("interrupt/{first}"),
            first,
            EL1_A57,
            INTERRUPT,
            format!("seed={ROW_SEED} count=30"),
        ));
    }
    for (first, kind) in [("5.10", EL1_A57), ("6.1", EL2_A57), ("7.3", VHE_N1)] {
        rows.push(small_pages(first, kind));
    }
    for first in ["5.10", "6.1", "6.12", "7.3"] {
        for how in ["exec", "reboot"] {
            let mut row = attack(
                format!("killing-spree/{first}/{how}"),
                first,
                EL2_A57,
                KILLING_SPREE,
                format!("how={how}"),
            );
            row.moved_max_bytes = Some(0);
            rows.push(row);
        }
    }
    for rivals in [2, 4] {
        rows.push(attack(
            format!("race/{rivals}"),
            "6.1",
            EL2_A57,
            RACE,
            format!("seed={ROW_SEED} count=10 rivals={rivals}"),
        ));
    }
    for first in ["5.10", "6.1", "7.3"] {
        rows.extend(["short", "long"].map(|extent| exhaustion(first, extent)));
    }
    let mut numa = attack("numa/6.1".to_owned(), "6.1", EL2_A57, NUMA, String::new());
    numa.machine_words = TWO_NODES;
    rows.push(numa);
    rows
}

/// What can be done many times over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Loads in memory that was made fragmented, 100 MB and 380 MB
    Fragmentation,
    /// Loads that are killed at random moments
    Kill,
    /// Loads at one time, two and four
    Race,
    /// Everything that can be lacking, one thing at a time; has no number of loads and no seed
    Exhaustion,
}

/// `cargo xtask stress`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wish {
    /// What to do
    attack: Attack,
    /// Repeats exactly the same trials
    #[arg(long, default_value_t = ROW_SEED, value_name = "N")]
    seed: u64,
    /// How many loads, of each size
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LOADS_MAX))]
    loads: u64,
    /// Only this payload, in MB: 100 or 380
    #[arg(long, value_name = "MB")]
    payload: Option<u64>,
    /// The number of the first load: repeats some of a longer run
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=LOADS_MAX))]
    from: u64,
}

impl Wish {
    /// Refuses what would be ignored, or would leave nothing to do.
    fn check(&self) -> Result<()> {
        let sizes: Vec<u64> = PAYLOADS
            .iter()
            .map(|(bytes, _)| bytes / 1_000_000)
            .collect();
        if let Some(megabytes) = self.payload {
            ensure!(
                sizes.contains(&megabytes),
                "--payload {megabytes}: one of {sizes:?}"
            );
        }
        ensure!(
            self.attack == Attack::Fragmentation || (self.payload.is_none() && self.from == 0),
            "--payload and --from are for fragmentation alone"
        );
        Ok(())
    }
}

/// Runs the machines of an attack one after the other and judges what they printed.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    wish.check()?;
    let rows = match wish.attack {
        Attack::Fragmentation => fragmentation_rows(wish),
        Attack::Kill => vec![long(wish, "kill/6.1", 1), long(wish, "kill/7.3", 1)],
        Attack::Race => vec![long(wish, "race/2", 2), long(wish, "race/4", 4)],
        Attack::Exhaustion => ["5.10", "6.1", "7.3"]
            .map(|first| exhaustion(first, "long"))
            .into(),
    };
    let assets = Assets::prepare(lab, &rows)?;
    let total = rows.len();
    let mut failures = Vec::new();
    let mut trials = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        println!("[{}/{total}] {} ...", index + 1, row.name);
        let began = Instant::now();
        let mut seen = Vec::new();
        let outcome = run::row(lab, &assets, row, &mut |line| {
            for word in ["trial ", "kill ", "race "] {
                let trial = run::lab_value(line, word)
                    .and_then(|text| serde_json::from_str::<Value>(text).ok());
                if let Some(mut trial) = trial {
                    if let Some(members) = trial.as_object_mut() {
                        members.insert("kernel".to_owned(), json!(row.first));
                        members.insert("payload_bytes".to_owned(), json!(row.payload_bytes));
                    }
                    seen.push(trial);
                }
            }
        });
        println!(
            "[{}/{total}] {}: {} trials, {} ({:.0} s)",
            index + 1,
            row.name,
            seen.len(),
            if outcome.failure.is_none() {
                "ok"
            } else {
                "FAILED"
            },
            began.elapsed().as_secs_f64()
        );
        if let Some(failure) = outcome.failure {
            println!("{failure}");
            failures.push(row.name.clone());
        }
        trials.extend(seen);
        // What there is so far is kept, whatever happens to the rest.
        write_result(lab, wish, &trials)?;
    }
    summary(wish, &trials);
    ensure!(
        !trials.is_empty(),
        "no trial was seen: the machines did not get that far"
    );
    for trial in &trials {
        if let Some(failure) = trial.get("failure").filter(|failure| !failure.is_null()) {
            println!("failed: {failure} in {trial}");
        }
    }
    if !failures.is_empty() {
        bail!(
            "{} machines failed: {}",
            failures.len(),
            failures.join(", ")
        );
    }
    Ok(())
}

fn fragmentation_rows(wish: &Wish) -> Vec<Row> {
    let mut rows = Vec::new();
    for &payload in PAYLOADS {
        let megabytes = payload.0 / 1_000_000;
        if wish.payload.is_some_and(|wanted| wanted != megabytes) {
            continue;
        }
        let mut number = wish.from;
        let end = wish.from + wish.loads;
        while number < end {
            // The kernel belongs to the number, so that a part of a run can be repeated.
            let turn = number / TRIALS_PER_MACHINE;
            let count = TRIALS_PER_MACHINE - number % TRIALS_PER_MACHINE;
            let count = count.min(end - number);
            let turn = usize::try_from(turn).unwrap_or(0);
            let mut row = fragmentation(turn, payload, wish.seed, number, count);
            row.replay = Some(format!(
                "cargo xtask stress fragmentation --seed {} --payload {megabytes} --from {number} --loads {count}",
                wish.seed
            ));
            rows.push(row);
            number += count;
        }
    }
    rows
}

/// A row of the short list, as long as wished.
fn long(wish: &Wish, name: &str, rivals: u64) -> Row {
    let name = format!("stress/{name}");
    let (text, word) = match wish.attack {
        Attack::Kill => (KILL, "kill"),
        _ => (RACE, "race"),
    };
    let mut row = rows()
        .into_iter()
        .find(|row| row.name == name)
        .unwrap_or_else(|| Row::hand_over("6.1", "6.12", EL1_A57, Strategy::Auto));
    row.script = script(
        text,
        &format!("seed={} count={} rivals={rivals}", wish.seed, wish.loads),
    );
    row.verdict_deadline_ms = Some(TRIALS_DEADLINE_MS);
    row.replay = Some(format!(
        "cargo xtask stress {word} --seed {} --loads {}",
        wish.seed, wish.loads
    ));
    row
}

fn write_result(lab: &Lab, wish: &Wish, trials: &[Value]) -> Result<()> {
    let name = match wish.attack {
        Attack::Fragmentation => "fragmentation",
        Attack::Kill => "kill",
        Attack::Race => "race",
        Attack::Exhaustion => "exhaustion",
    };
    let directory = lab.workspace().join("target").join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let histograms: BTreeMap<String, Value> = payloads(trials)
        .into_iter()
        .map(|(payload, trials)| (payload.to_string(), json!(histogram(&trials))))
        .collect();
    let result = json!({
        "attack": name,
        "seed": wish.seed,
        "loads": wish.loads,
        "in_place_tenths_by_payload_bytes": histograms,
        "trials": trials,
    });
    let text = serde_json::to_string_pretty(&result).context("the result is no JSON")?;
    lab::write_whole(&directory.join(format!("{name}.json")), text.as_bytes())
}

fn payloads(trials: &[Value]) -> BTreeMap<u64, Vec<&Value>> {
    let mut payloads: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for trial in trials {
        let payload = trial.get("payload_bytes").and_then(Value::as_u64);
        payloads
            .entry(payload.unwrap_or(0))
            .or_default()
            .push(trial);
    }
    payloads
}

/// In which tenth the part of the payload lies that is in place: 0 to 9; all of it is in the last.
fn tenth(trial: &Value) -> Option<usize> {
    let total = trial.get("total_bytes")?.as_u64()?;
    let in_place = trial.get("in_place_bytes")?.as_u64()?;
    let tenth = in_place.checked_mul(10)?.checked_div(total)?.min(9);
    usize::try_from(tenth).ok()
}

fn histogram(trials: &[&Value]) -> [u64; 10] {
    let mut buckets = [0; 10];
    for tenth in trials.iter().filter_map(|trial| tenth(trial)) {
        if let Some(bucket) = buckets.get_mut(tenth) {
            *bucket += 1;
        }
    }
    buckets
}

fn word<'trial>(trial: &'trial Value, name: &str) -> &'trial str {
    trial.get(name).and_then(Value::as_str).unwrap_or("-")
}

/// Prints what came of the trials.
fn summary(wish: &Wish, trials: &[Value]) {
    let failed = trials
        .iter()
        .filter(|trial| {
            trial
                .get("failure")
                .is_none_or(|failure| !failure.is_null())
        })
        .count();
    println!(
        "\n{} trials, {failed} failed, seed {}",
        trials.len(),
        wish.seed
    );
    if wish.attack == Attack::Kill {
        let left = trials
            .iter()
            .filter(|trial| trial.get("left").is_some_and(|left| !left.is_null()))
            .count();
        println!("{left} kills left something to clean up");
    }
    if wish.attack != Attack::Fragmentation {
        return;
    }
    for (payload_bytes, trials) in payloads(trials) {
        println!("\npayload of {} MB", payload_bytes / 1_000_000);
        let mut outcomes: BTreeMap<(String, u64), BTreeMap<&str, u64>> = BTreeMap::new();
        for trial in &trials {
            let fill = trial.get("fill_percent").and_then(Value::as_u64);
            *outcomes
                .entry((word(trial, "kind").to_owned(), fill.unwrap_or(0)))
                .or_default()
                .entry(word(trial, "outcome"))
                .or_default() += 1;
        }
        for ((kind, fill_percent), outcomes) in outcomes {
            let counts: Vec<_> = outcomes
                .iter()
                .map(|(outcome, count)| format!("{count} {outcome}"))
                .collect();
            println!(
                "  {kind:<18} {fill_percent:>3} % used  {}",
                counts.join(", ")
            );
        }
        println!("  bytes in place, of those loaded:");
        let buckets = histogram(&trials);
        let most = buckets.iter().copied().max().unwrap_or(0).max(1);
        for (index, count) in buckets.iter().enumerate() {
            let bar =
                "#".repeat(usize::try_from((count * BAR_COLUMNS).div_ceil(most)).unwrap_or(0));
            let (from, to) = (index * 10, (index + 1) * 10);
            println!("  {from:>3} to {to:>3} %  {count:>4}  {bar}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_place_is_the_last_tenth() {
        let trial = |in_place: u64| json!({ "total_bytes": 1000_u64, "in_place_bytes": in_place });
        let trials: Vec<Value> = [0, 99, 100, 999, 1000].map(trial).into();
        let trials: Vec<&Value> = trials.iter().collect();
        assert_eq!(histogram(&trials), [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(tenth(&json!({ "outcome": "refused" })), None);
    }

    #[test]
    fn a_part_of_a_run_has_the_same_kernels() {
        let wish = |from, loads| Wish {
            attack: Attack::Fragmentation,
            seed: 7,
            loads,
            payload: Some(100),
            from,
        };
        let all = fragmentation_rows(&wish(0, 200));
        assert_eq!(all.len(), 10);
        let part = fragmentation_rows(&wish(45, 10));
        assert_eq!(part.len(), 1);
        assert_eq!(part[0].first, all[2].first);
    }

    #[test]
    fn the_rows_of_long_attacks_exist() {
        let names: Vec<_> = rows().into_iter().map(|row| row.name).collect();
        for name in [
            "kill/6.1",
            "kill/7.3",
            "race/2",
            "race/4",
            "exhaustion/6.1/short",
        ] {
            assert!(names.contains(&format!("stress/{name}")), "{name}");
        }
    }
}
