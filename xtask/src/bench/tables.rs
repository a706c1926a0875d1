//! Bytes of translation tables for a hand-over, beside those of Linux's own copy of its linear map.
//!
//! Problem: "a few pages, whatever the RAM" is a claim about machines that nobody here has. Choice: both are
//! computed, by the code that the command runs, from memory maps made for the purpose. Ours: pages are laid
//! out by `kleap_plan::layout`, `kleap_plan::stage` makes the stage of that, with twice the room while it does
//! not fit, as the command does, and what it says of its tables is what is printed. Linux's:
//! `kleap_plan::kexec_cost`, which is held against real kernels by the rows `kexec-cost/`. Nothing is
//! measured, so the numbers are the same everywhere.
//!
//! | column | what it is |
//! |---|---|
//! | in place | one run of pages, in the node that is farthest from the devices: nothing is moved |
//! | auto | every second 2 MiB page of a stretch of memory is ours; what lies right stays, the rest is moved |
//! | relocate | the same pages, all of it is moved |
//! | scattered | the worst case: such pages spread evenly over all memory, all of it is moved |
//! | stage | the whole stage of the scattered case: program, hand-off and tables |
//! | pages | Linux, linear map of pages, as kernels are built by default |
//! | blocks | Linux, linear map of blocks, at most |
//! | 52-bit | Linux 6.12.107 and others that copy 16 or 32 times, at most |
//!
//! The scattered pages are the one case that depends on memory, and only until each page has tables of its
//! own: it is bounded by the payload, and by the largest stage. The command takes pages from the node of the
//! boot CPU and prefers long runs, so that case is not what it makes.
//!
//! A stage has the relocator in it, which a compiler without arm64's `core` cannot build. An `xtask` that has
//! none builds itself again with the lab's compiler, and lets that one print. Rejected: a program of its own
//! for the computation, which needs the memory maps twice, here for Linux and there for us; and a copy of what
//! a stage maps, which goes on saying what the stage once was.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_pagetable::Granule;
use kleap_plan::kexec_cost::{self, KernelVersion, KexecCostInput, LinearMap};
use kleap_plan::stage::{self, Content, Device, ROOM_FIRST_BYTES, ROOM_MAX_BYTES, Summary};
use kleap_plan::{Owned, Requirements, StageError, StageInput, Strategy, layout};
use kleap_relocator::abi::{Conduit, Lpis, OnFailure, Uart};
use kleap_relocator::digest::{Algorithm, Digests, chunk_count};
use kleap_relocator::{image, timeline};
use serde_json::json;

use crate::lab::Lab;
use crate::toolchain::Rust;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Memory of the machines.
const RAM_BYTES: [u64; 4] = [4 * GIB, 64 * GIB, TIB, 16 * TIB];
/// Image and initrd together, as in the measurements that this project started from.
const PAYLOAD_BYTES: [u64; 2] = [47_000_000, 380_000_000];
/// Of that, the Image; the rest is the initrd.
const IMAGE_BYTES: u64 = 32 * MIB;
/// What the Image takes where it runs.
const IMAGE_SIZE_BYTES: u64 = 36 * MIB;
/// Pages that the payload is kept in.
const HUGE_PAGE_BYTES: u64 = 2 * MIB;
/// The device tree, and where in it the timeline is.
const DEVICE_TREE_BYTES: u64 = 64 << 10;
const TIMELINE_OFFSET_BYTES: u64 = DEVICE_TREE_BYTES - timeline::SIZE_BYTES as u64;
/// The relocator has tables for regimes with one privilege level and for those with two.
const REGIMES: u64 = 2;
/// Largest node of a machine; larger ones have several, `NODE_STRIDE_BYTES` apart.
const NODE_BYTES: u64 = TIB;
const NODE_STRIDE_BYTES: u64 = 4 * TIB;
/// Memory below 4 GiB: 2 GiB of it, as on most servers.
const LOW: u64 = 2 * GIB;
const LOW_BYTES: u64 = 2 * GIB;
/// Where memory goes on above the devices.
const HIGH: u64 = 34 * GIB;
/// A PL011 and 123 redistributors, as on QEMU's `virt` machine.
const UART: u64 = 0x0900_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const REDISTRIBUTORS_BYTES: u64 = 123 * (128 << 10);
/// By how many tables of a regime a larger machine may need more: one for each level that the lowest and the
/// highest memory may share or not (levels 1 and 2 of 4; level 0 is always one).
const FAR_TABLES: u64 = 2;
/// Set for an `xtask` that was built again, so that it does not do so as well.
const AGAIN_VARIABLE: &str = "KLEAP_XTASK_AGAIN";

/// One machine, one payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableRow {
    /// Memory, bytes.
    pub(crate) ram_bytes: u64,
    /// Page size, bytes.
    pub(crate) granule_bytes: u64,
    /// Image and initrd, bytes.
    pub(crate) payload_bytes: u64,
    /// Ours, both regimes, bytes: everything in place.
    pub(crate) in_place_bytes: u64,
    /// Ours, bytes: every second page ours, what is not in place moved.
    pub(crate) auto_bytes: u64,
    /// Ours, bytes: everything moved.
    pub(crate) relocate_bytes: u64,
    /// Ours, bytes: everything moved from pages all over memory.
    pub(crate) scattered_bytes: u64,
    /// Then, the whole stage, bytes.
    pub(crate) scattered_stage_bytes: u64,
    /// Linux's copy of a linear map of pages, bytes.
    pub(crate) linux_pages_bytes: u64,
    /// Of a linear map of blocks, bytes, at most.
    pub(crate) linux_blocks_bytes: u64,
    /// With the bug of kernels built for 52-bit addresses, bytes, at most; `None` where it does not apply.
    pub(crate) linux_52_bit_bytes: Option<u64>,
}

fn range(start: u64, size_bytes: u64) -> Result<PhysRange> {
    Ok(PhysRange::from_size(PhysAddr::new(start), size_bytes)?)
}

/// System RAM of a machine: 2 GiB below 4 GiB, the rest above in nodes, and in each stretch the small holes
/// that firmware keeps for itself, which are not multiples of anything but a page.
fn memory_map(ram_bytes: u64) -> Result<PhysRanges> {
    let mut ram: PhysRanges = range(LOW, LOW_BYTES.min(ram_bytes))?.into();
    // Run-time services, ACPI tables.
    ram.subtract(range(LOW + LOW_BYTES - 0x0413_0000, 0x0041_0000)?);
    ram.subtract(range(LOW, 0x0002_0000)?);
    let mut left_bytes = ram_bytes.saturating_sub(LOW_BYTES);
    let mut start = HIGH;
    let mut node = 0;
    while left_bytes > 0 {
        let size_bytes = left_bytes.min(NODE_BYTES);
        ram.insert(range(start, size_bytes)?);
        // What firmware keeps at the end of each node.
        ram.subtract(range(start + size_bytes - 0x0123_0000, 0x0021_0000)?);
        left_bytes -= size_bytes;
        node += 1;
        start = node * NODE_STRIDE_BYTES;
    }
    Ok(ram)
}

/// The last stretch of memory that is long enough for everything, from a multiple of 1 GiB on.
fn place(ram: &PhysRanges, size_bytes: u64) -> Result<PhysRange> {
    ram.aligned_inward(HUGE_PAGE_BYTES)
        .iter()
        .rev()
        .find_map(|stretch| {
            let start = stretch.start().align_up(GIB)?;
            let wanted = PhysRange::from_size(start, size_bytes).ok()?;
            stretch.contains_range(wanted).then_some(wanted)
        })
        .with_context(|| format!("no {size_bytes} bytes in one piece in {ram}"))
}

/// What is loaded.
fn requirements(payload_bytes: u64) -> Requirements {
    Requirements {
        image_file_bytes: IMAGE_BYTES,
        image_size_bytes: IMAGE_SIZE_BYTES,
        text_offset_bytes: 0,
        initrd_bytes: payload_bytes - IMAGE_BYTES,
        device_tree_bytes: DEVICE_TREE_BYTES,
        stage_bytes: ROOM_FIRST_BYTES,
    }
}

/// How many huge pages the command takes for it at least: everything, and the first stage.
fn page_count(requirements: &Requirements) -> u64 {
    [
        requirements.image_size_bytes,
        requirements.initrd_bytes,
        requirements.device_tree_bytes,
        requirements.stage_bytes,
    ]
    .map(|bytes| bytes.div_ceil(HUGE_PAGE_BYTES))
    .iter()
    .sum()
}

/// Where the pages are that hold the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// One after the other.
    OneRun,
    /// Every second of a stretch of memory.
    EverySecond,
    /// All over memory, but for a stretch that everything is moved to.
    Spread,
}

/// The first byte of each of `count` pages.
fn starts(ram: &PhysRanges, count: u64, pages: Pages) -> Result<Vec<u64>> {
    let every = |step: u64| -> Result<Vec<u64>> {
        let stretch = place(ram, count * step * HUGE_PAGE_BYTES)?;
        let page = |index| stretch.start().as_u64() + index * step * HUGE_PAGE_BYTES;
        Ok((0..count).map(page).collect())
    };
    match pages {
        Pages::OneRun => every(1),
        Pages::EverySecond => every(2),
        Pages::Spread => {
            let target = place(ram, count * HUGE_PAGE_BYTES + ROOM_MAX_BYTES)?;
            Ok(spread(ram, target, count))
        }
    }
}

/// That many huge pages at equal distances over all memory but `taken`.
fn spread(ram: &PhysRanges, taken: PhysRange, count: u64) -> Vec<u64> {
    let mut free = ram.clone();
    free.subtract(taken);
    let free = free.aligned_inward(HUGE_PAGE_BYTES);
    let step_pages = (free.size_bytes() / HUGE_PAGE_BYTES / count).max(1);
    let starts = free.iter().flat_map(|stretch| {
        let pages = stretch.size_bytes() / HUGE_PAGE_BYTES;
        (0..pages.div_ceil(step_pages))
            .map(move |page| stretch.start().as_u64() + page * step_pages * HUGE_PAGE_BYTES)
    });
    starts
        .take(usize::try_from(count).unwrap_or(usize::MAX))
        .collect()
}

/// The hand-over of a payload in such pages, as the command would make it.
fn ours(
    ram: &PhysRanges,
    granule: Granule,
    payload_bytes: u64,
    pages: Pages,
    strategy: Strategy,
) -> Result<Summary> {
    let mut requirements = requirements(payload_bytes);
    let starts = starts(ram, page_count(&requirements), pages)?;
    let owned: Vec<Owned> = (0..)
        .zip(starts)
        .map(|(index, start)| Owned {
            address: PhysAddr::new(start),
            size_bytes: HUGE_PAGE_BYTES,
            file: 0,
            offset_bytes: index * HUGE_PAGE_BYTES,
        })
        .collect();
    let redistributors = [Device {
        range: range(REDISTRIBUTORS, REDISTRIBUTORS_BYTES)?,
        stride_bytes: None,
    }];
    // Nothing is loaded, so there is nothing to take a digest of.
    let content = |size_bytes| Content {
        size_bytes,
        digests: Digests {
            algorithm: Some(Algorithm::Crc32c),
            words: vec![0; chunk_count(size_bytes)],
        },
    };
    loop {
        let layout = layout::choose(&owned, HUGE_PAGE_BYTES, ram, &requirements, strategy)?;
        let stage = stage::prepare(&StageInput {
            layout: &layout,
            granule_bytes: granule.size_bytes(),
            image: content(requirements.image_file_bytes),
            image_size_bytes: requirements.image_size_bytes,
            initrd: Some(content(requirements.initrd_bytes)),
            device_tree: content(requirements.device_tree_bytes),
            timeline_offset_bytes: TIMELINE_OFFSET_BYTES,
            kernel_page_size_bytes: None,
            uart: Some(Uart::Pl011 { base: UART }),
            psci: Some(Conduit::Smc),
            redistributors: &redistributors,
            lpis: Lpis::TurnOff,
            verbose: false,
            on_failure: OnFailure::Reset,
            record: None,
            core_header: None,
            mappable: ram,
        });
        let room_bytes = 2 * requirements.stage_bytes;
        match stage {
            Err(StageError::TooLarge { .. }) if room_bytes <= ROOM_MAX_BYTES => {
                requirements.stage_bytes = room_bytes;
            }
            other => return Ok(other?.summary),
        }
    }
}

/// What Linux's copy takes at most.
fn linux(
    ram: &PhysRanges,
    granule: Granule,
    kernel: KernelVersion,
    compiled_bits: u32,
    command_line: &str,
    expected: LinearMap,
) -> Result<u64> {
    let cost = kexec_cost::predict(&KexecCostInput {
        kernel: Some(kernel),
        page_size_bytes: granule.size_bytes(),
        compiled_virtual_address_bits: Some(compiled_bits),
        virtual_address_bits: 48,
        system_ram: ram,
        command_line,
        total_bytes: ram.size_bytes(),
        available_bytes: ram.size_bytes(),
    })?;
    ensure!(
        cost.linear_map == expected,
        "'{command_line}' makes {:?}, not {expected:?}",
        cost.linear_map
    );
    Ok(cost.bytes.at_most)
}

fn row(ram_bytes: u64, granule: Granule, payload_bytes: u64) -> Result<TableRow> {
    let ram = memory_map(ram_bytes)?;
    let fixed = KernelVersion::new(6, 1, 0);
    // The last that is known to copy repeatedly, and in which the command line makes blocks.
    let repeating = KernelVersion::new(6, 12, 107);
    let full = "rodata=full";
    let partial = "rodata=on kfence.sample_interval=100";
    let ours = |pages, strategy| {
        ours(&ram, granule, payload_bytes, pages, strategy).with_context(|| {
            format!(
                "{pages:?}, {strategy:?}: {payload_bytes} bytes, {} GiB, {granule}",
                ram_bytes / GIB
            )
        })
    };
    let in_place = ours(Pages::OneRun, Strategy::InPlace)?;
    let auto = ours(Pages::EverySecond, Strategy::Auto)?;
    let relocate = ours(Pages::EverySecond, Strategy::Relocate)?;
    let scattered = ours(Pages::Spread, Strategy::Relocate)?;
    // Each column is what it says it is.
    ensure!(in_place.moved_bytes == 0, "not in place: {in_place:?}");
    ensure!(
        auto.in_place_bytes > 0 && auto.moved_bytes > 0,
        "not half in place: {auto:?}"
    );
    for moved in [&relocate, &scattered] {
        ensure!(moved.in_place_bytes == 0, "not moved: {moved:?}");
    }
    Ok(TableRow {
        ram_bytes,
        granule_bytes: granule.size_bytes(),
        payload_bytes,
        in_place_bytes: in_place.tables_bytes,
        auto_bytes: auto.tables_bytes,
        relocate_bytes: relocate.tables_bytes,
        scattered_bytes: scattered.tables_bytes,
        scattered_stage_bytes: scattered.stage_bytes,
        linux_pages_bytes: linux(&ram, granule, fixed, 48, full, LinearMap::Pages)?,
        linux_blocks_bytes: linux(&ram, granule, repeating, 48, partial, LinearMap::Blocks)?,
        linux_52_bit_bytes: match granule {
            Granule::K64 => None,
            _ => Some(linux(&ram, granule, repeating, 52, full, LinearMap::Pages)?),
        },
    })
}

/// All of them, checked: ours does not grow with memory.
pub(crate) fn rows() -> Result<Vec<TableRow>> {
    let mut rows = Vec::new();
    for granule in Granule::ALL {
        for payload_bytes in PAYLOAD_BYTES {
            let of_payload = RAM_BYTES
                .iter()
                .map(|&ram_bytes| row(ram_bytes, granule, payload_bytes))
                .collect::<Result<Vec<_>>>()?;
            check(&of_payload)?;
            rows.extend(of_payload);
        }
    }
    Ok(rows)
}

/// For one granule and payload, from the least memory to the most.
fn check(rows: &[TableRow]) -> Result<()> {
    let first = rows.first().context("no rows")?;
    let pages = first.payload_bytes.div_ceil(HUGE_PAGE_BYTES) + 4;
    let far_bytes = FAR_TABLES * REGIMES * first.granule_bytes;
    for row in rows {
        for (what, bytes, most_bytes) in [
            (
                "in place",
                row.in_place_bytes,
                first.in_place_bytes + far_bytes,
            ),
            ("auto", row.auto_bytes, first.auto_bytes + far_bytes),
            (
                "relocate",
                row.relocate_bytes,
                first.relocate_bytes + far_bytes,
            ),
            // A table of each level for each page at worst, and what it has anyway.
            (
                "scattered",
                row.scattered_bytes,
                first.relocate_bytes + far_bytes + 3 * pages * REGIMES * first.granule_bytes,
            ),
        ] {
            ensure!(
                bytes <= most_bytes,
                "{what}, {} GiB, {} byte pages: {bytes} bytes of tables, more than {most_bytes}: they \
                 grow with memory",
                row.ram_bytes / GIB,
                row.granule_bytes
            );
        }
    }
    Ok(())
}

/// `cargo xtask bench tables`: prints the table, writes `tables.json`.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    if image::ELF.is_none() {
        return run_with_relocator(lab, "tables");
    }
    let directory = lab.workspace().join("target").join("bench");
    let rows = rows()?;
    println!(
        "{:>4} {:>7} {:>7} | {:>9} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9}",
        "page",
        "memory",
        "payload",
        "in place",
        "auto",
        "relocate",
        "scattered",
        "stage",
        "pages",
        "blocks",
        "52-bit"
    );
    for row in &rows {
        println!(
            "{:>4} {:>7} {:>7} | {:>9} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9}",
            format!("{}K", row.granule_bytes >> 10),
            amount(row.ram_bytes),
            format!("{} MB", row.payload_bytes / 1_000_000),
            amount(row.in_place_bytes),
            amount(row.auto_bytes),
            amount(row.relocate_bytes),
            amount(row.scattered_bytes),
            amount(row.scattered_stage_bytes),
            amount(row.linux_pages_bytes),
            amount(row.linux_blocks_bytes),
            row.linux_52_bit_bytes
                .map_or_else(|| "-".to_owned(), amount),
        );
    }
    write(&directory, &rows)
}

/// `cargo xtask bench WHAT` by an `xtask` that has the relocator in it.
pub(super) fn run_with_relocator(lab: &Lab, what: &str) -> Result<()> {
    if env::var_os(AGAIN_VARIABLE).is_some() {
        bail!("the relocator could not be built: see the warning of its build above");
    }
    println!(
        "this xtask was built without the relocator: building it again with the lab's compiler"
    );
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(lab.workspace())
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(["bench", what])
        .env(AGAIN_VARIABLE, "1");
    Rust::find(lab)?.configure_relocator(&mut command);
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo xtask bench {what}: {status}");
    Ok(())
}

fn write(directory: &Path, rows: &[TableRow]) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let path = directory.join("tables.json");
    let text = serde_json::to_string_pretty(&rows.iter().map(json_of).collect::<Vec<_>>())?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn json_of(row: &TableRow) -> serde_json::Value {
    json!({
        "ram_bytes": row.ram_bytes,
        "granule_bytes": row.granule_bytes,
        "payload_bytes": row.payload_bytes,
        "kleap": {
            "in_place_bytes": row.in_place_bytes,
            "auto_bytes": row.auto_bytes,
            "relocate_bytes": row.relocate_bytes,
            "scattered_bytes": row.scattered_bytes,
            "scattered_stage_bytes": row.scattered_stage_bytes,
        },
        "linux": {
            "pages_bytes": row.linux_pages_bytes,
            "blocks_at_most_bytes": row.linux_blocks_bytes,
            "built_for_52_bits_at_most_bytes": row.linux_52_bit_bytes,
        },
    })
}

/// Bytes for people: the largest unit that leaves at least 1, one decimal where it is not whole.
fn amount(bytes: u64) -> String {
    let (unit_bytes, unit) = match bytes {
        TIB.. => (TIB, "TiB"),
        GIB.. => (GIB, "GiB"),
        MIB.. => (MIB, "MiB"),
        _ => (1 << 10, "KiB"),
    };
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit_bytes));
    if tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the test cannot run here.
    fn skipped(test: &str) -> bool {
        if image::ELF.is_some() {
            return false;
        }
        assert!(
            env::var_os("KLEAP_REQUIRE_RELOCATOR").is_none(),
            "KLEAP_REQUIRE_RELOCATOR is set, and this build has no relocator"
        );
        eprintln!("SKIPPED, this build has no relocator: {test}");
        true
    }

    #[test]
    fn memory_maps_have_the_memory_and_holes() {
        for ram_bytes in RAM_BYTES {
            let ram = memory_map(ram_bytes).unwrap();
            let missing = ram_bytes - ram.size_bytes();
            assert!(missing > 0 && missing < ram_bytes / 100, "{ram}");
            assert!(ram.range_count() >= 3, "{ram}");
            // Everything that the relocator and the next kernel use has at most 48 bits.
            assert!(ram.span().unwrap().end().as_u64() < 1 << 48);
        }
    }

    #[test]
    fn ours_does_not_grow_and_linuxs_does() {
        if skipped("ours_does_not_grow_and_linuxs_does") {
            return;
        }
        let rows = rows().unwrap();
        assert_eq!(rows.len(), 3 * RAM_BYTES.len() * PAYLOAD_BYTES.len());
        for of_payload in rows.chunks(RAM_BYTES.len()) {
            let [first, .., last] = of_payload else {
                unreachable!()
            };
            assert!(last.linux_pages_bytes > 1000 * first.linux_pages_bytes);
            assert!(last.in_place_bytes <= 2 * first.in_place_bytes);
        }
    }

    /// The scattered case too, from where each page has what it can have to itself: more memory, or the most
    /// that 48 bits address in nodes this far apart, makes no difference but for the root's side.
    #[test]
    fn scattered_pages_stop_growing() {
        if skipped("scattered_pages_stop_growing") {
            return;
        }
        for granule in Granule::ALL {
            let payload_bytes = PAYLOAD_BYTES[0];
            let [less, more] =
                [16 * TIB, 60 * TIB].map(|ram_bytes| row(ram_bytes, granule, payload_bytes));
            let (less, more) = (less.unwrap(), more.unwrap());
            // One table of level 1 for each node, at most.
            let nodes_bytes = 44 * REGIMES * granule.size_bytes();
            assert!(
                more.scattered_bytes <= less.scattered_bytes + nodes_bytes,
                "{less:?}, {more:?}"
            );
            assert!(more.scattered_stage_bytes <= ROOM_MAX_BYTES);
        }
    }

    #[test]
    fn growth_is_noticed() {
        if skipped("growth_is_noticed") {
            return;
        }
        let mut rows: Vec<_> = RAM_BYTES
            .iter()
            .map(|&ram_bytes| row(ram_bytes, Granule::K4, PAYLOAD_BYTES[0]).unwrap())
            .collect();
        check(&rows).unwrap();
        // One byte for every 64 KiB of memory.
        for row in &mut rows {
            row.in_place_bytes += row.ram_bytes >> 16;
        }
        assert!(check(&rows).is_err());
    }

    #[test]
    fn pages_are_spread_over_all_memory() {
        let ram = memory_map(TIB).unwrap();
        let taken = place(&ram, GIB).unwrap();
        let pages = spread(&ram, taken, 100);
        assert_eq!(pages.len(), 100);
        let range = |start| range(start, HUGE_PAGE_BYTES).unwrap();
        assert!(pages.iter().all(|&page| ram.contains_range(range(page))));
        assert!(pages.iter().all(|&page| !taken.overlaps(range(page))));
        assert!(pages.last().unwrap() - pages.first().unwrap() > TIB / 2);
    }

    #[test]
    fn amounts_are_rounded_up() {
        for (bytes, text) in [
            (0, "0 KiB"),
            (1, "0.1 KiB"),
            (4096, "4 KiB"),
            (MIB + 1, "1.1 MiB"),
            (16 * TIB, "16 TiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
    }
}
