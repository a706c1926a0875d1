//! Memory that came after the boot, by ACPI.
//!
//! Problem: the next kernel is told of memory by the firmware's map, which is of the time of the boot. Memory
//! that was added later is in the running kernel's hands and not in that map: a payload in it is lost. What
//! drivers add has a label of its own in `/proc/iomem` (`System RAM (virtio_mem)`, `System RAM (kmem)`);
//! what ACPI adds is plain `System RAM` there, on every kernel from 5.10 to 7.3.
//!
//! Choice: the kernel binds the blocks of such memory to their device in ACPI's namespace
//! (`drivers/acpi/acpi_memhotplug.c`, `acpi_bind_memory_blocks`), and sysfs shows that as a link
//! `firmware_node`, which leads to a device called `PNP0C80`, ACPI's memory device.
//!
//! Rejected: the flag "hot pluggable" of ACPI's SRAT, which is about sockets and not about what is in them;
//! the firmware's map itself, which the kernel shows to nobody but through `/proc/kcore`. Should firmware
//! describe the memory of the boot as such devices too, that memory is taken for added as well: then less of it
//! is used, or none and the load is refused, never too much.

use crate::Error;
use kleap_memmap::{PhysAddr, PhysRange};
use std::path::Path;

/// The blocks, one directory each, and their size.
const DIRECTORY: &str = "/sys/devices/system/memory";
/// ACPI's name of a memory device (ACPI 6.5, 9.11).
const MEMORY_DEVICE: &str = "PNP0C80";

/// Memory that belongs to ACPI's memory devices. Empty where the kernel has no memory hotplug.
///
/// # Errors
/// If sysfs shows blocks and cannot be understood.
pub fn added_by_acpi() -> Result<Vec<PhysRange>, Error> {
    added_below(Path::new(DIRECTORY))
}

fn added_below(directory: &Path) -> Result<Vec<PhysRange>, Error> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(found);
    };
    for entry in entries {
        let block = entry
            .map_err(|error| Error::file("cannot list", directory, error))?
            .path();
        // Without a link it belongs to nobody.
        let Ok(device) = std::fs::read_link(block.join("firmware_node")) else {
            continue;
        };
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(MEMORY_DEVICE) {
            continue;
        }
        let (size, number) = (
            text(&directory.join("block_size_bytes"))?,
            text(&block.join("phys_index"))?,
        );
        found.push(block_range(&block, &size, &number)?);
    }
    Ok(found)
}

fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))
}

/// The memory of the block in the directory `block`: from the text of `block_size_bytes` and that of its own
/// `phys_index`, both hexadecimal.
///
/// # Errors
/// If one of them is no number, or the block lies beyond all addresses.
pub fn block_range(block: &Path, size: &str, number: &str) -> Result<PhysRange, Error> {
    let hexadecimal = |text: &str| {
        u64::from_str_radix(text.trim(), 16)
            .map_err(|error| Error::content(block, format!("{text:?}: {error}")))
    };
    let (size_bytes, number) = (hexadecimal(size)?, hexadecimal(number)?);
    number
        .checked_mul(size_bytes)
        .and_then(|start| PhysRange::from_size(PhysAddr::new(start), size_bytes).ok())
        .ok_or_else(|| {
            Error::content(
                block,
                format!("is block {number} of {size_bytes} bytes, beyond all addresses"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A directory like sysfs' with four blocks: of the boot, added, bound to something else, damaged.
    fn sysfs(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("kleap-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("block_size_bytes"), "8000000\n").unwrap();
        for (block, index, device) in [
            ("memory8", "00000008\n", None),
            ("memory24", "00000018\n", Some("PNP0C80:00")),
            ("memory25", "00000019\n", Some("ACPI0012:00")),
        ] {
            fs::create_dir(root.join(block)).unwrap();
            fs::write(root.join(block).join("phys_index"), index).unwrap();
            if let Some(device) = device {
                let target = format!("../../../LNXSYSTM:00/LNXSYBUS:00/PNP0A06:01/{device}");
                symlink(target, root.join(block).join("firmware_node")).unwrap();
            }
        }
        root
    }

    #[test]
    fn only_blocks_of_memory_devices() {
        let root = sysfs("blocks");
        let found = added_below(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let wanted = PhysRange::from_size(PhysAddr::new(0xc000_0000), 0x800_0000).unwrap();
        assert_eq!(found, [wanted]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let root = sysfs("damaged");
        for index in ["x", "ffffffffffffffff", ""] {
            fs::write(root.join("memory24/phys_index"), index).unwrap();
            assert!(added_below(&root).is_err(), "{index}");
        }
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn without_hotplug_there_is_none() {
        assert_eq!(added_below(Path::new("/no/such/directory")).unwrap(), []);
    }
}
