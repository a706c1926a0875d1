//! What `kexec_load` costs on this machine: as it is predicted, and as it is.
//!
//! The prediction is the command's own (`kleap_plan::kexec_cost`), from the same files. The measurement is
//! one page loaded to anywhere in System RAM, and unloaded: the kernel copies its tables for that as for
//! anything.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use kleap_linux::{facts, kexec};
use kleap_memmap::{PhysAddr, PhysRanges, iomem};
use kleap_plan::kexec_cost::{self, KernelVersion, KexecCost, KexecCostInput};

/// Loads and unloads before the first that counts: they fill the caches that `MemFree` does not see.
const WARM_UPS: usize = 1;
/// Loads that count. The median of them is taken.
const ROUNDS: usize = 5;
/// How far `MemFree` moves by itself between two readings, bytes: pages that CPUs keep for themselves, and what
/// the kernel does meanwhile. Without the limit that the script sets on the former it is tens of MB.
const NOISE_BYTES: u64 = 1 << 20;
/// That limit is a number of pages, so where pages are large this many of them count.
const NOISE_PAGES: u64 = 96;
/// And how far the prediction may be off, as a share of it: one part in so many.
const TOLERANCE_SHARE: u64 = 4;

/// Prints `tables_at_least= tables_at_most= bytes_at_least= bytes_at_most= linear_map= hazard=`.
pub(crate) fn print_prediction() -> Result<()> {
    let (cost, facts) = predict()?;
    println!(
        "{facts} tables_at_least={} tables_at_most={} bytes_at_least={} bytes_at_most={} linear_map={:?}",
        cost.tables.at_least,
        cost.tables.at_most,
        cost.bytes.at_least,
        cost.bytes.at_most,
        cost.linear_map
    );
    for hazard in &cost.hazards {
        println!("hazard: {hazard}");
    }
    Ok(())
}

/// Loads and unloads several times, and compares with the upper bound: Debian's kernels map their memory page
/// by page unless told otherwise.
pub(crate) fn measure() -> Result<()> {
    let (cost, _) = predict()?;
    if let Some(hazard) = cost.refusal() {
        bail!("not loaded: {hazard}");
    }
    ensure!(kexec::is_loaded() != Some(true), "something is loaded");
    let page_bytes = facts::page_size_bytes();
    let page = vec![0_u8; usize::try_from(page_bytes).context("a page's size")?];
    let target = memory()?
        .aligned_inward(page_bytes)
        .span()
        .context("no System RAM")?
        .end()
        .as_u64()
        - page_bytes;
    let target = PhysAddr::new(target);
    let segments = [kexec::Segment {
        start: target,
        bytes: &page,
    }];
    let mut drops = Vec::new();
    for round in 0..WARM_UPS + ROUNDS {
        let before = free_bytes()?;
        let began = Instant::now();
        kexec::load(target, &segments).context("kexec_load failed")?;
        let took = began.elapsed();
        let after = free_bytes()?;
        kexec::unload().context("unloading failed")?;
        let drop_bytes = before.saturating_sub(after);
        println!(
            "round={round} drop_bytes={drop_bytes} load_ms={:.1}",
            took.as_secs_f64() * 1e3
        );
        if round >= WARM_UPS {
            drops.push(drop_bytes);
        }
    }
    drops.sort_unstable();
    let measured = *drops.get(ROUNDS / 2).context("no rounds")?;
    println!(
        "measured_bytes={measured} predicted_bytes={}..{} ratio={:.2}",
        cost.bytes.at_least,
        cost.bytes.at_most,
        ratio(measured, cost.bytes.at_most)
    );
    check(&cost, measured, page_bytes)
}

#[allow(clippy::cast_precision_loss)] // for people to read
fn ratio(measured: u64, predicted: u64) -> f64 {
    measured as f64 / predicted.max(1) as f64
}

/// Debian's kernels map by pages unless told otherwise, so the upper bound is what they must take.
fn check(cost: &KexecCost, measured: u64, page_bytes: u64) -> Result<()> {
    let predicted = cost.bytes.at_most;
    let allowed = NOISE_BYTES
        .max(NOISE_PAGES * page_bytes)
        .max(predicted / TOLERANCE_SHARE);
    ensure!(
        measured.abs_diff(predicted) <= allowed,
        "{measured} bytes were taken and {predicted} predicted; {allowed} may lie between them"
    );
    Ok(())
}

fn predict() -> Result<(KexecCost, String)> {
    let (release, _) = facts::kernel_release();
    let facts::MemoryInfo {
        total_bytes,
        available_bytes,
        ..
    } = facts::memory()?;
    let ram = memory()?;
    let command_line = facts::command_line()?;
    let compiled = facts::configured_virtual_address_bits();
    let input = KexecCostInput {
        kernel: KernelVersion::parse(&release),
        page_size_bytes: facts::page_size_bytes(),
        compiled_virtual_address_bits: compiled,
        virtual_address_bits: facts::virtual_address_bits(),
        system_ram: &ram,
        command_line: &command_line,
        total_bytes,
        available_bytes,
    };
    let facts = format!(
        "release={release} page_bytes={} va_bits_compiled={} va_bits={} ram_bytes={}",
        input.page_size_bytes,
        compiled.map_or_else(|| "unknown".to_owned(), |bits| bits.to_string()),
        input.virtual_address_bits,
        ram.size_bytes()
    );
    Ok((kexec_cost::predict(&input)?, facts))
}

fn memory() -> Result<PhysRanges> {
    let text = fs::read(facts::IOMEM_PATH).context("cannot read the memory map")?;
    let entries = iomem::parse(&text)?;
    Ok(kexec_cost::linear_map_ranges(&entries))
}

/// `MemFree`, bytes. Not `MemAvailable`, which is an estimate.
fn free_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .context("no MemFree in /proc/meminfo")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kleap_plan::kexec_cost::{Bounds, LinearMap};

    fn cost(at_most: u64) -> KexecCost {
        KexecCost {
            tables: Bounds::default(),
            bytes: Bounds {
                at_least: 0,
                at_most,
            },
            linear_map: LinearMap::Unknown,
            hazards: Vec::new(),
        }
    }

    #[test]
    fn a_prediction_that_is_off_by_two_fails() {
        const MIB: u64 = 1 << 20;
        // What the smallest machine of each page size takes, and more.
        for (page_bytes, smallest) in [(4096, 4 * MIB), (16384, 4 * MIB)] {
            let check = |predicted, measured| check(&cost(predicted), measured, page_bytes);
            for measured in [smallest, 16 * MIB, 64 * MIB, 256 * MIB] {
                assert!(check(measured, measured).is_ok(), "{measured}");
                assert!(check(measured + MIB / 2, measured).is_ok());
                assert!(check(measured / 2, measured).is_err(), "{measured}");
                assert!(check(measured * 2, measured).is_err(), "{measured}");
            }
            // Where nothing is predicted, nothing may be taken.
            assert!(check(0, 0).is_ok());
            assert!(check(0, 2 * MIB).is_err());
        }
    }
}
