//! Bytes of translation tables for a hand-over, beside those of Linux's own copy of its linear map.
//!
//! Problem: "a few pages, whatever the RAM" is a claim about machines that nobody here has. Choice: both are
//! computed, by the code that the command runs, from memory maps made for the purpose: ours with
//! `kleap_pagetable` from the mappings of a stage, Linux's with `kleap_plan::kexec_cost`, which is held
//! against real kernels by the rows `kexec-cost/`. Nothing is measured, so the numbers are the same
//! everywhere.
//!
//! | column | what it is |
//! |---|---|
//! | in place | every piece where it belongs, in the node that is farthest from the devices |
//! | relocate | every second 2 MiB page of a stretch of memory holds a part, all of it is moved |
//! | scattered | the worst case: such pages spread evenly over all memory |
//! | pages | Linux, linear map of pages, as kernels are built by default |
//! | blocks | Linux, linear map of blocks, at most |
//! | 52-bit | Linux 6.12.107 and others that copy 16 or 32 times, at most |
//!
//! The scattered pages are the one case that depends on memory, and only until each page has tables of its
//! own: it is bounded by the payload. The command takes pages from the node of the boot CPU and prefers long
//! runs, so that case is not what it makes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_pagetable::{
    Access, Geometry, Granule, Mapping, MemoryType, OutputAddressSize, table_count,
};
use kleap_plan::kexec_cost::{self, KernelVersion, KexecCostInput, LinearMap};
use kleap_relocator::abi::{HAND_OFF_OFFSET_BYTES, STACK_OFFSET_BYTES};
use serde_json::json;

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
/// As in the command: the relocator's map.
const VA_BITS: u32 = 48;
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
const UART_BYTES: u64 = 64 << 10;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const REDISTRIBUTORS_BYTES: u64 = 123 * (128 << 10);
/// By how many tables of a regime a larger machine may need more: one for each level that the lowest and the
/// highest memory may share or not (levels 1 and 2 of 4; level 0 is always one).
const FAR_TABLES: u64 = 2;

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
    /// Ours, bytes: everything moved.
    pub(crate) relocate_bytes: u64,
    /// Ours, bytes: everything moved from pages all over memory.
    pub(crate) scattered_bytes: u64,
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

/// Where the parts of the payload are before they are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    InPlace,
    EverySecondPage,
    Scattered,
}

/// What the relocator maps, as `kleap_plan::stage` does.
fn mappings(
    ram: &PhysRanges,
    granule: Granule,
    payload_bytes: u64,
    source: Source,
) -> Result<Vec<Mapping>> {
    let normal = |range, access| Mapping::identity(range, MemoryType::Normal, access);
    let whole_pages = |bytes: u64| bytes.next_multiple_of(HUGE_PAGE_BYTES);
    // Image, initrd, device tree, stage, one after the other.
    let sizes = [
        whole_pages(IMAGE_SIZE_BYTES),
        whole_pages(payload_bytes - IMAGE_BYTES),
        HUGE_PAGE_BYTES,
    ];
    let targets_bytes: u64 = sizes.iter().sum();
    let source_pages = whole_pages(IMAGE_BYTES) / HUGE_PAGE_BYTES
        + (sizes.get(1).copied().unwrap_or_default() + HUGE_PAGE_BYTES) / HUGE_PAGE_BYTES;
    let near_bytes = 2 * source_pages * HUGE_PAGE_BYTES;
    let all = place(ram, targets_bytes + HUGE_PAGE_BYTES + near_bytes)?;
    let mut mappings = Vec::new();
    let mut at = all.start().as_u64();
    for (index, size_bytes) in sizes.into_iter().enumerate() {
        // The relocator writes its record into the device tree, and where it moves something to.
        let is_written = source != Source::InPlace || index == sizes.len() - 1;
        let access = if is_written {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        mappings.push(normal(range(at, size_bytes)?, access));
        at += size_bytes;
    }
    for (from, to, access) in [
        (0, STACK_OFFSET_BYTES, Access::ReadExecute),
        (STACK_OFFSET_BYTES, HAND_OFF_OFFSET_BYTES, Access::ReadWrite),
        (HAND_OFF_OFFSET_BYTES, HUGE_PAGE_BYTES, Access::ReadOnly),
    ] {
        mappings.push(normal(range(at + from, to - from)?, access));
    }
    at += HUGE_PAGE_BYTES;
    let pages: Vec<u64> = match source {
        Source::InPlace => Vec::new(),
        Source::EverySecondPage => (0..source_pages)
            .map(|page| at + 2 * page * HUGE_PAGE_BYTES)
            .collect(),
        Source::Scattered => spread(ram, all, source_pages),
    };
    for page in pages {
        mappings.push(normal(range(page, HUGE_PAGE_BYTES)?, Access::ReadOnly));
    }
    for device in [
        range(UART, UART_BYTES)?,
        range(REDISTRIBUTORS, REDISTRIBUTORS_BYTES)?,
    ] {
        let device = device
            .align_outward(granule.size_bytes())
            .context("a device at the end of the address space")?;
        mappings.push(Mapping::identity(
            device,
            MemoryType::Device,
            Access::ReadWrite,
        ));
    }
    Ok(mappings)
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

fn ours(ram: &PhysRanges, granule: Granule, payload_bytes: u64, source: Source) -> Result<u64> {
    let geometry = Geometry::new(granule, VA_BITS, OutputAddressSize::Bits48)?;
    let mappings = mappings(ram, granule, payload_bytes, source)?;
    Ok(table_count(geometry, &mappings)? * granule.size_bytes() * REGIMES)
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
    Ok(TableRow {
        ram_bytes,
        granule_bytes: granule.size_bytes(),
        payload_bytes,
        in_place_bytes: ours(&ram, granule, payload_bytes, Source::InPlace)?,
        relocate_bytes: ours(&ram, granule, payload_bytes, Source::EverySecondPage)?,
        scattered_bytes: ours(&ram, granule, payload_bytes, Source::Scattered)?,
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

/// `cargo xtask bench tables`: prints the table, writes `tables.json` into `directory`.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let rows = rows()?;
    println!(
        "{:>4} {:>8} {:>9} | {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}",
        "page",
        "memory",
        "payload",
        "in place",
        "relocate",
        "scattered",
        "pages",
        "blocks",
        "52-bit"
    );
    for row in &rows {
        println!(
            "{:>4} {:>8} {:>9} | {:>10} {:>10} {:>10} | {:>10} {:>10} {:>10}",
            format!("{}K", row.granule_bytes >> 10),
            amount(row.ram_bytes),
            format!("{} MB", row.payload_bytes / 1_000_000),
            amount(row.in_place_bytes),
            amount(row.relocate_bytes),
            amount(row.scattered_bytes),
            amount(row.linux_pages_bytes),
            amount(row.linux_blocks_bytes),
            row.linux_52_bit_bytes
                .map_or_else(|| "-".to_owned(), amount),
        );
    }
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
            "relocate_bytes": row.relocate_bytes,
            "scattered_bytes": row.scattered_bytes,
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

    #[test]
    fn growth_is_noticed() {
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
