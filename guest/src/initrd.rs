//! The initrd as the kernel was given it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kleap_devicetree::Tree;
use sha2::{Digest, Sha256};

use crate::kcore::Kcore;

/// The device tree that the kernel was given. Kernels that use ACPI have no `/proc/device-tree`.
const DEVICE_TREE: &str = "/sys/firmware/fdt";

/// Where it lies: first byte, and the one after the last.
///
/// With `first_bytes` only that much of it: what follows is padding, which differs between hand-overs.
fn addresses(first_bytes: Option<u64>) -> Result<(u64, u64)> {
    let bytes = fs::read(DEVICE_TREE).with_context(|| format!("cannot read {DEVICE_TREE}"))?;
    let initrd = Tree::parse(&bytes)
        .with_context(|| format!("{DEVICE_TREE} is malformed"))?
        .initrd()
        .context("the device tree names no initrd")?;
    let (start, end) = (initrd.start().as_u64(), initrd.end().as_u64());
    let Some(first_bytes) = first_bytes else {
        return Ok((start, end));
    };
    ensure!(
        first_bytes <= end - start,
        "the initrd has {} bytes, fewer than {first_bytes}",
        end - start
    );
    Ok((start, start + first_bytes))
}

/// Prints `sha256=... bytes=... mb_per_s=...`.
pub(crate) fn print_digest(first_bytes: Option<u64>) -> Result<()> {
    let (start, end) = addresses(first_bytes)?;
    let mut kcore = Kcore::open()?;
    let mut digest = Sha256::new();
    let began = Instant::now();
    kcore.read_physical(start, end, |bytes| digest.update(bytes)).context(
        "cannot read the initrd's memory: it is kept only with the kernel parameter retain_initrd",
    )?;
    let microseconds = began.elapsed().as_micros().max(1);
    let bytes = end - start;
    let hex: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!(
        "sha256={hex} bytes={bytes} mb_per_s={}",
        u128::from(bytes) / microseconds
    );
    Ok(())
}

/// Writes it to a file.
pub(crate) fn copy_to(path: &Path, first_bytes: Option<u64>) -> Result<()> {
    let (start, end) = addresses(first_bytes)?;
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut written = Ok(());
    Kcore::open()?
        .read_physical(start, end, |bytes| {
            if written.is_ok() {
                written = file.write_all(bytes);
            }
        })
        .context("cannot read the initrd's memory")?;
    written.with_context(|| format!("cannot write {}", path.display()))
}
