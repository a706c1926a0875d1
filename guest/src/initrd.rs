//! The initrd as the kernel was given it.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::kcore::Kcore;

/// Where the device tree says what the kernel was given.
const CHOSEN: &str = "/proc/device-tree/chosen";

/// Prints `sha256=... bytes=... mb_per_s=...`.
pub(crate) fn print_digest() -> Result<()> {
    let start = address("linux,initrd-start")?;
    let end = address("linux,initrd-end")?;
    ensure!(
        start < end,
        "the device tree's initrd is empty: {start:#x} to {end:#x}"
    );
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

/// An address of one or two cells.
fn address(name: &str) -> Result<u64> {
    let path = Path::new(CHOSEN).join(name);
    let bytes = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    parse_cells(&bytes).with_context(|| format!("{} is malformed", path.display()))
}

fn parse_cells(bytes: &[u8]) -> Result<u64> {
    if let Ok(cell) = <[u8; 4]>::try_from(bytes) {
        Ok(u64::from(u32::from_be_bytes(cell)))
    } else if let Ok(cells) = <[u8; 8]>::try_from(bytes) {
        Ok(u64::from_be_bytes(cells))
    } else {
        bail!("{} bytes are neither one nor two cells", bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_cells() {
        assert_eq!(parse_cells(&[0x48, 0, 0, 1]).unwrap(), 0x4800_0001);
        assert_eq!(
            parse_cells(&[0, 0, 0, 1, 0x48, 0, 0, 1]).unwrap(),
            0x1_4800_0001
        );
        assert!(parse_cells(&[1, 2]).is_err());
    }
}
