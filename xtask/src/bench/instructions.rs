//! Instructions that the relocator executes for each byte that it verifies, moves and cleans.
//!
//! Problem: times under an emulator say little, and not the same twice. Choice: the emulator counts. With
//! `-icount shift=0` the virtual time goes on by 1 ns for each instruction, and with a counter of 1 GHz
//! (`cntfrq`) the times in the relocator's own record are numbers of instructions. No Linux is in between:
//! QEMU puts stage and payload into memory, the CPU starts at the stage's first byte as if a kernel had jumped
//! there, and what is entered at the end is a dozen instructions that send the record to the serial port. So
//! it takes seconds, the program is the one that is shipped, and the numbers are the same everywhere: each is
//! counted twice, and a difference is a failure.
//!
//! An instruction is no time. A load that misses every cache and an addition count the same here; what the
//! table is good for is the work of one way beside that of another, and to see when it becomes more.
//!
//! Rejected: a plug-in of the emulator's, which has to be compiled for each version of it; the counts of a
//! program under user-mode emulation, which would not be the relocator's.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_plan::stage::{self, Content, ROOM_FIRST_BYTES, StageInput};
use kleap_plan::{Layout, Owned, Requirements, Strategy, layout};
use kleap_relocator::abi::{self, HAND_OFF_OFFSET_BYTES, HandOff, Lpis, OnFailure, Uart};
use kleap_relocator::digest::{Algorithm, Digests};
use kleap_relocator::image;
use kleap_relocator::timeline::{self, Timeline};
use serde_json::{Value, json};

use super::tables;
use crate::lab::{self, Lab};
use crate::toolchain::{self, QemuSystem};

const MIB: u64 = 1 << 20;
const HUGE_PAGE_BYTES: u64 = 2 * MIB;
/// Memory of QEMU's `virt` machine.
const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 512 * MIB;
/// Its PL011.
const UART: u64 = 0x0900_0000;
/// From here on pages are ours: every one, or every second.
const OWNED: u64 = RAM + 128 * MIB;
const IMAGE_BYTES: u64 = 8 * MIB;
const INITRD_BYTES: u64 = 24 * MIB;
const DEVICE_TREE_BYTES: u64 = 64 << 10;
/// A multiple of 4 KiB, for the one instruction that adds it.
const TIMELINE_OFFSET_BYTES: u64 = 32 << 10;
/// How long one machine may take; there is no other way to see that it hangs.
const DEADLINE: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Counts of the machine's counter in a second: one for each instruction.
const COUNTER_HZ: u64 = 1_000_000_000;

/// What is entered: sends the record at the device tree's [`TIMELINE_OFFSET_BYTES`] to the PL011 at 0x0900_0000,
/// and turns the machine off (PSCI `SYSTEM_OFF` by `HVC`).
const NEXT_KERNEL: [u32; 12] = [
    0x9140_2001, // add x1, x0, #8, lsl #12
    0x9103_0022, // add x2, x1, #192
    0xd2a1_2003, // mov x3, #0x9000000
    0x3840_1424, // 1: ldrb w4, [x1], #1
    0xb900_0064, // str w4, [x3]
    0xeb02_003f, // cmp x1, x2
    0x54ff_ffa1, // b.ne 1b
    0x5280_0100, // mov w0, #8
    0x72b0_8000, // movk w0, #0x8400, lsl #16
    0xd400_0002, // hvc #0
    0xd503_205f, // 2: wfe
    0x17ff_ffff, // b 2b
];

/// One hand-over.
#[derive(Debug, Clone, Copy)]
struct Case {
    algorithm: Option<Algorithm>,
    /// Without the instructions that some CPUs lack.
    portable: bool,
    strategy: Strategy,
}

const CASES: [Case; 7] = {
    const fn case(algorithm: Option<Algorithm>, portable: bool, strategy: Strategy) -> Case {
        Case {
            algorithm,
            portable,
            strategy,
        }
    }
    const CRC32C: Option<Algorithm> = Some(Algorithm::Crc32c);
    const SHA256: Option<Algorithm> = Some(Algorithm::Sha256);
    [
        case(None, false, Strategy::InPlace),
        case(None, true, Strategy::InPlace),
        case(CRC32C, false, Strategy::InPlace),
        case(CRC32C, true, Strategy::InPlace),
        case(SHA256, false, Strategy::InPlace),
        case(SHA256, true, Strategy::InPlace),
        case(CRC32C, false, Strategy::Relocate),
    ]
};

/// Bytes that repeat nowhere near.
fn noise(size_bytes: u64, seed: u64) -> Vec<u8> {
    (0..size_bytes / 8)
        .flat_map(|index| {
            let word = (index + seed * 0x1_0000_0001).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (word ^ word >> 29).to_le_bytes()
        })
        .collect()
}

/// What is loaded: Image, initrd, device tree.
fn payload() -> [Vec<u8>; 3] {
    let mut image = noise(IMAGE_BYTES, 1);
    for (bytes, instruction) in image.as_chunks_mut::<4>().0.iter_mut().zip(NEXT_KERNEL) {
        *bytes = instruction.to_le_bytes();
    }
    [image, noise(INITRD_BYTES, 2), noise(DEVICE_TREE_BYTES, 3)]
}

/// A stretch of memory and what QEMU puts there.
struct Loaded {
    start: u64,
    bytes: Vec<u8>,
}

fn lay_out(strategy: Strategy, ram: &PhysRanges) -> Result<Layout> {
    let requirements = Requirements {
        image_file_bytes: IMAGE_BYTES,
        image_size_bytes: IMAGE_BYTES,
        text_offset_bytes: 0,
        initrd_bytes: INITRD_BYTES,
        device_tree_bytes: DEVICE_TREE_BYTES,
        stage_bytes: ROOM_FIRST_BYTES,
    };
    let step = if strategy == Strategy::InPlace { 1 } else { 2 };
    let owned: Vec<Owned> = (0..(IMAGE_BYTES + INITRD_BYTES) / HUGE_PAGE_BYTES + 4)
        .map(|index| Owned {
            address: PhysAddr::new(OWNED + index * step * HUGE_PAGE_BYTES),
            size_bytes: HUGE_PAGE_BYTES,
            file: 0,
            offset_bytes: index * HUGE_PAGE_BYTES,
        })
        .collect();
    Ok(layout::choose(
        &owned,
        HUGE_PAGE_BYTES,
        ram,
        &requirements,
        strategy,
    )?)
}

/// Memory as it is when the first kernel jumps, the stage first.
fn memory(case: Case) -> Result<Vec<Loaded>> {
    let ram = PhysRanges::from(PhysRange::from_size(PhysAddr::new(RAM), RAM_BYTES)?);
    let layout = lay_out(case.strategy, &ram)?;
    let payload = payload();
    let [image, initrd, device_tree] = payload.each_ref().map(|bytes| Content {
        size_bytes: bytes.len() as u64,
        digests: case
            .algorithm
            .map_or_else(Digests::none, |algorithm| Digests::of(algorithm, bytes)),
    });
    let mut stage = stage::prepare(&StageInput {
        layout: &layout,
        granule_bytes: 4096,
        image,
        image_size_bytes: IMAGE_BYTES,
        initrd: Some(initrd),
        device_tree,
        timeline_offset_bytes: TIMELINE_OFFSET_BYTES,
        kernel_page_size_bytes: None,
        // Should it fail, it says why.
        uart: Some(Uart::Pl011 { base: UART }),
        psci: None,
        redistributors: &[],
        lpis: Lpis::TurnOff,
        verbose: false,
        on_failure: OnFailure::Reset,
        record: None,
        core_header: None,
        mappable: &ram,
    })?;
    if case.portable {
        set_portable(&mut stage.bytes)?;
    }
    let mut memory = vec![Loaded {
        start: stage.start.as_u64(),
        bytes: stage.bytes,
    }];
    let places = [
        Some(&layout.image),
        layout.initrd.as_ref(),
        Some(&layout.device_tree),
    ];
    for (place, bytes) in places.into_iter().flatten().zip(&payload) {
        let mut rest = &bytes[..];
        let mut skipped_bytes = place.offset_bytes;
        for part in &place.parts {
            let from = skipped_bytes.min(part.size_bytes);
            skipped_bytes -= from;
            let room = usize::try_from(part.size_bytes - from)?;
            let (now, later) = rest.split_at(room.min(rest.len()));
            if !now.is_empty() {
                memory.push(Loaded {
                    start: part.address.as_u64() + from,
                    bytes: now.to_vec(),
                });
            }
            rest = later;
        }
        ensure!(rest.is_empty(), "{} bytes have no place", rest.len());
    }
    Ok(memory)
}

fn set_portable(stage: &mut [u8]) -> Result<()> {
    let block = stage
        .get_mut(usize::try_from(HAND_OFF_OFFSET_BYTES)?..)
        .context("the stage has no hand-off block")?;
    let hand_off = HandOff::decode(block)?;
    let mut header = hand_off.header;
    header.portable = true;
    let new = abi::encode(
        &header,
        &hand_off.pieces().collect::<Vec<_>>(),
        &hand_off.digest_words().collect::<Vec<_>>(),
        &hand_off.moves().collect::<Vec<_>>(),
        &hand_off.redistributors().collect::<Vec<_>>(),
    )?;
    block
        .get_mut(..new.len())
        .context("the block has grown")?
        .copy_from_slice(&new);
    Ok(())
}

/// Runs one hand-over in `directory`, and gives its record.
fn hand_over(qemu: &QemuSystem, directory: &Path, memory: &[Loaded]) -> Result<Timeline> {
    let (program, arguments) = qemu
        .words
        .split_first()
        .context("QEMU's command line is empty")?;
    let stage = memory.first().context("nothing is loaded")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command.args(["-M", "virt,gic-version=3"]);
    command.args(["-cpu", &format!("cortex-a57,cntfrq={COUNTER_HZ}")]);
    command.args(["-m", &format!("{}M", RAM_BYTES / MIB)]);
    command.args(["-accel", "tcg,thread=single"]);
    command.args(["-icount", "shift=0,sleep=off"]);
    command.args(["-nic", "none", "-display", "none", "-monitor", "none"]);
    command.args(["-serial", "file:record", "-no-reboot"]);
    for (number, loaded) in memory.iter().enumerate() {
        let name = format!("memory-{number}");
        fs::write(directory.join(&name), &loaded.bytes).context("cannot write memory")?;
        let start = loaded.start;
        let words = format!("loader,file={name},addr={start:#x},force-raw=on");
        command.args(["-device", &words]);
    }
    command.args([
        "-device",
        &format!("loader,addr={:#x},cpu-num=0", stage.start),
    ]);
    let errors = fs::File::create(directory.join("stderr")).context("cannot create a log")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for QEMU")? {
            break status;
        }
        if began.elapsed() > DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the machine did not end within {} s", DEADLINE.as_secs());
        }
        thread::sleep(POLL_INTERVAL);
    };
    let record = fs::read(directory.join("record")).unwrap_or_default();
    if !status.success() || record.len() != timeline::SIZE_BYTES {
        let errors = fs::read_to_string(directory.join("stderr")).unwrap_or_default();
        let record = String::from_utf8_lossy(&record);
        bail!("no record, but '{record}' ({status}): {}", errors.trim());
    }
    let timeline = Timeline::decode(&record).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(
        timeline.frequency_hz == COUNTER_HZ,
        "the counter has {} Hz",
        timeline.frequency_hz
    );
    Ok(timeline)
}

/// Work and the bytes that it was done to.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    what: &'static str,
    how: &'static str,
    instructions: u64,
    bytes: u64,
}

impl Row {
    fn per_byte(&self) -> f64 {
        self.instructions as f64 / self.bytes.max(1) as f64
    }
}

/// What the records say; they are in the order of [`CASES`].
fn rows(records: &[Timeline], stage_bytes: &[u64]) -> Result<Vec<Row>> {
    let &[none, _, crc, crc_portable, sha, sha_portable, moved] = records else {
        bail!("{} records", records.len());
    };
    let row = |what, how, instructions, bytes| Row {
        what,
        how,
        instructions,
        bytes,
    };
    // The relocator's own pieces are verified in any case.
    let own = none.verified - none.moves_done;
    let verified = |how, record: &Timeline, instructions: bool| {
        ensure!(
            record.digest_instructions == instructions,
            "{how}: the record says something else"
        );
        let own = if instructions {
            own
        } else {
            let portable = records.get(1).context("no record without instructions")?;
            portable.verified - portable.moves_done
        };
        Ok(row(
            "verification",
            how,
            record.verified - record.moves_done - own,
            record.verified_bytes - none.verified_bytes,
        ))
    };
    let stage = |how, index: usize| {
        let record = records.get(index).context("no such record")?;
        let bytes = *stage_bytes.get(index).context("no such stage")?;
        let instructions = record.mmu_on - record.relocator_entered;
        Ok::<_, anyhow::Error>(row("before the MMU is on", how, instructions, bytes))
    };
    Ok(vec![
        stage("CRC32C, with CRC32CX", 0)?,
        stage("CRC32C, bit by bit", 1)?,
        verified("CRC32C, with CRC32CX", &crc, true)?,
        verified("CRC32C, slicing by eight", &crc_portable, false)?,
        verified("SHA-256, with SHA256H", &sha, true)?,
        verified("SHA-256, portable", &sha_portable, false)?,
        row(
            "moves",
            "LDP, STP",
            moved.moves_done - moved.quiesced,
            moved.moved_bytes,
        ),
        row(
            "cleaning",
            "DC CIVAC",
            crc.cleaned - crc.verified,
            crc.cleaned_bytes,
        ),
    ])
}

/// Bytes that assembly looks at: block, program, the tables of EL1.
fn looked_at_bytes(stage: &Loaded) -> Result<u64> {
    let block = stage
        .bytes
        .get(usize::try_from(HAND_OFF_OFFSET_BYTES)?..)
        .context("the stage has no hand-off block")?;
    let header = HandOff::decode(block)?.header;
    let size_bytes = block
        .get(abi::word::SIZE_BYTES * 8..)
        .and_then(|word| word.first_chunk::<8>())
        .context("the block has no size")?;
    Ok(u64::from_le_bytes(*size_bytes)
        + header.program_size_bytes
        + header.tables_two_privileges * header.table_size_bytes)
}

/// `cargo xtask bench instructions`: prints the table, writes `instructions.json`.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    if image::ELF.is_none() {
        return tables::run_with_relocator(lab, "instructions");
    }
    let qemu = toolchain::qemu_system(lab)?;
    // Begins with the process: what belongs to none that lives is removed by the next run of anything.
    let directory = lab
        .directory("run")?
        .join(format!("{:x}-instructions", std::process::id()));
    let (mut records, mut stage_bytes) = (Vec::new(), Vec::new());
    for case in CASES {
        let memory = memory(case)?;
        let stage = memory.first().context("nothing is loaded")?;
        stage_bytes.push(looked_at_bytes(stage)?);
        let mut twice = Vec::new();
        for _ in 0..2 {
            lab::fresh_directory(&directory)?;
            let record = hand_over(&qemu, &directory, &memory);
            twice.push(record.with_context(|| format!("{case:?}"))?);
        }
        let _ = fs::remove_dir_all(&directory);
        ensure!(
            twice.first() == twice.last(),
            "{case:?}: not the same twice: {twice:#?}"
        );
        records.extend(twice.first());
    }
    let rows = rows(&records, &stage_bytes)?;
    println!(
        "{:<22} {:<26} {:>12} {:>12} {:>9}",
        "", "", "instructions", "bytes", "per byte"
    );
    for row in &rows {
        println!(
            "{:<22} {:<26} {:>12} {:>12} {:>9.3}",
            row.what,
            row.how,
            row.instructions,
            row.bytes,
            row.per_byte()
        );
    }
    println!(
        "counted twice, the same both times; {}",
        super::qemu_version(lab)?
    );
    let path = lab
        .workspace()
        .join("target")
        .join("bench")
        .join("instructions.json");
    let directory = path.parent().context("no directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let rows: Vec<Value> = rows.iter().map(json_of).collect();
    let value = json!({
        "command": "cargo xtask bench instructions",
        "kleap_revision": super::revision(lab),
        "emulator": super::qemu_version(lab)?,
        "cpu": "cortex-a57",
        "exception_level": "EL1",
        "rows": rows,
    });
    let text = serde_json::to_string_pretty(&value)?;
    lab::write_whole(&path, format!("{text}\n").as_bytes())?;
    println!("{}", path.display());
    Ok(())
}

fn json_of(row: &Row) -> Value {
    json!({
        "what": row.what,
        "how": row.how,
        "instructions": row.instructions,
        "bytes": row.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every record has in common is not counted twice, and no row is of another's numbers.
    #[test]
    fn rows_are_differences_of_records() {
        let record = |verified: u64, verified_bytes, digest_instructions| Timeline {
            relocator_entered: 1000,
            mmu_on: 1500,
            quiesced: 1500,
            moves_done: 1600,
            verified: 1600 + verified,
            cleaned: 1600 + verified + 70,
            moved_bytes: 50,
            cleaned_bytes: 700,
            verified_bytes,
            digest_instructions,
            ..Timeline::default()
        };
        let records = [
            record(10, 5, false),
            record(20, 5, false),
            record(110, 105, true),
            record(320, 105, false),
            record(210, 105, true),
            record(920, 105, false),
            record(110, 105, true),
        ];
        let found: Vec<_> = rows(&records, &[250; 7])
            .unwrap()
            .iter()
            .map(|row| (row.what, row.instructions, row.bytes))
            .collect();
        assert_eq!(
            found,
            [
                ("before the MMU is on", 500, 250),
                ("before the MMU is on", 500, 250),
                ("verification", 100, 100),
                ("verification", 300, 100),
                ("verification", 200, 100),
                ("verification", 900, 100),
                ("moves", 100, 50),
                ("cleaning", 70, 700),
            ]
        );
        let mut wrong = records;
        wrong[3].digest_instructions = true;
        assert!(rows(&wrong, &[250; 7]).is_err());
        assert!(rows(&records[1..], &[250; 7]).is_err());
    }
}
