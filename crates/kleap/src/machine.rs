//! What is known of this machine, gathered once for `load` and once more for `exec`.

use crate::error::Failure;
use kleap_devicetree::{Conduit, Tree, UartKind};
use kleap_linux::{facts, kexec};
use kleap_memmap::{PhysRanges, iomem};
use kleap_plan::Device;
use kleap_relocator::abi;
use std::path::Path;

/// This machine's device tree, as it was given to the running kernel.
pub(crate) fn device_tree() -> Result<Tree, Failure> {
    let path = Path::new(facts::DEVICE_TREE_PATH);
    let bytes = facts::read_limited(path, kleap_devicetree::MAX_DTB_BYTES as u64)?;
    Tree::parse(&bytes).map_err(|error| Failure::DeviceTree {
        path: path.to_owned(),
        what: error.to_string(),
    })
}

/// Where things may be.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Where pages that we own may lie: System RAM of this boot, reserved pools (CMA) left out, because
    /// the next kernel reserves them again.
    pub(crate) usable: PhysRanges,
    /// Where pieces may be moved to: of that, what has nothing nested in it.
    pub(crate) plain: PhysRanges,
}

impl Memory {
    /// From `/proc/iomem` and the device tree.
    pub(crate) fn find(tree: &Tree) -> Result<Self, Failure> {
        let path = Path::new(facts::IOMEM_PATH);
        let text = facts::read_limited(path, iomem::MAX_FILE_BYTES as u64)?;
        let entries = iomem::parse(&text).map_err(|error| match error {
            iomem::IomemError::AddressesHidden => kleap_linux::Error::NoAddresses.into(),
            error => Failure::Input {
                path: path.to_owned(),
                what: error.to_string(),
            },
        })?;
        let (mut usable, mut plain) = (
            iomem::system_ram(&entries),
            iomem::plain_system_ram(&entries),
        );
        let reserved = tree
            .reserved_memory()
            .map_err(|error| Failure::DeviceTree {
                path: facts::DEVICE_TREE_PATH.into(),
                what: error.to_string(),
            })?;
        for reserved in reserved {
            usable.subtract(reserved.range);
            plain.subtract(reserved.range);
        }
        Ok(Self { usable, plain })
    }
}

/// What the relocator needs to know of the machine's devices.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) uart: Option<abi::Uart>,
    pub(crate) psci: Option<abi::Conduit>,
    pub(crate) redistributors: Vec<Device>,
    /// What could not be found out, for the user.
    pub(crate) warnings: Vec<String>,
}

impl Devices {
    /// From the device tree; PSCI from ACPI where the tree has none.
    pub(crate) fn find(tree: &Tree) -> Self {
        let mut devices = Self::default();
        match tree.console() {
            Ok(Some(uart)) => devices.uart = uart_for_relocator(&uart),
            Ok(None) => {}
            Err(error) => devices.warnings.push(format!("console: {error}")),
        }
        if devices.uart.is_none() {
            devices.warnings.push(
                "no console that the relocator can write to: should the hand-over fail, the machine \
                 is reset without a message"
                    .into(),
            );
        }
        devices.psci = match tree.psci() {
            Some(psci) if psci.has_system_reset => Some(match psci.conduit {
                Conduit::Smc => abi::Conduit::Smc,
                Conduit::Hvc => abi::Conduit::Hvc,
            }),
            _ => facts::acpi_psci_is_hvc().map(|is_hvc| {
                if is_hvc {
                    abi::Conduit::Hvc
                } else {
                    abi::Conduit::Smc
                }
            }),
        };
        if devices.psci.is_none() {
            devices.warnings.push(
                "no PSCI: should the hand-over fail, the machine cannot be reset, and stops".into(),
            );
        }
        match tree.gic_v3_redistributors() {
            Ok(regions) => {
                devices.redistributors = regions
                    .into_iter()
                    .map(|region| Device {
                        range: region.range,
                        stride_bytes: region.stride_bytes,
                    })
                    .collect();
            }
            Err(error) => devices
                .warnings
                .push(format!("interrupt controller: {error}")),
        }
        devices
    }
}

fn uart_for_relocator(uart: &kleap_devicetree::Uart) -> Option<abi::Uart> {
    match uart.kind {
        UartKind::Pl011 => Some(abi::Uart::Pl011 {
            base: uart.base.as_u64(),
        }),
        // `base` has `reg-offset` in it already.
        UartKind::Ns16550 {
            reg_shift,
            reg_io_width_bytes,
            ..
        } => matches!(reg_io_width_bytes, 1 | 4).then_some(abi::Uart::Ns16550 {
            base: uart.base.as_u64(),
            reg_shift: u64::from(reg_shift),
            width_bytes: u64::from(reg_io_width_bytes),
        }),
    }
}

/// First kernel with the bug, and the first known to be without it: (major, minor).
const LPA2_BUG: ((u32, u32), (u32, u32)) = ((6, 9), (7, 3));

/// Major and minor version of a release such as `6.12.107+deb13-arm64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether `kexec_load` itself would crash the running kernel.
///
/// Kernels from 6.9 on that are built for 52-bit addresses copy the linear map from a wrong start; with
/// 4 KiB pages on a CPU that has LPA2 they run into a null pointer (`trans_pgd_create_copy`). Seen on
/// 6.12, not on 7.3; those between are taken to have it.
fn has_lpa2_bug(release: &str, page_size_bytes: u64, virtual_address_bits: u32) -> bool {
    let (first, fixed) = LPA2_BUG;
    page_size_bytes == 4096
        && virtual_address_bits == 52
        && version(release).is_some_and(|version| version >= first && version < fixed)
}

/// Whether this machine can hand over at all, asked before anything is changed.
pub(crate) fn check() -> Result<(), Failure> {
    kexec::probe()?;
    if !facts::has_capability(facts::CAP_SYS_ADMIN) {
        return Err(kleap_linux::Error::Privilege {
            what: "reading physical addresses and mounting a hugetlbfs",
            capability: "CAP_SYS_ADMIN",
        }
        .into());
    }
    if cfg!(not(target_endian = "little")) {
        return Err(Failure::Unsupported(
            "big-endian kernels cannot be handed over".into(),
        ));
    }
    let (release, _) = facts::kernel_release();
    if has_lpa2_bug(
        &release,
        facts::page_size_bytes(),
        facts::virtual_address_bits(),
    ) {
        return Err(Failure::KnownBug {
            message: format!(
                "kexec_load would crash this kernel ({release}): with 52-bit addresses on a CPU with \
                 LPA2 it has a bug that was fixed by 7.3"
            ),
            remedy: "boot this kernel with arm64.nolva on its command line, or boot a kernel from 7.3 on",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lpa2_bug_is_where_it_was_seen() {
        for (release, page_size_bytes, bits, bug) in [
            ("6.12.107+deb13-arm64", 4096, 52, true),
            ("6.12.107+deb13-arm64", 4096, 48, false), // arm64.nolva, or no LPA2
            ("6.12.107+deb13-arm64-16k", 16384, 52, false),
            ("7.3.4+deb13-arm64", 4096, 52, false),
            ("6.1.0-47-arm64", 4096, 48, false),
            ("6.9.0", 4096, 52, true),
            ("6.8.12", 4096, 52, false),
            ("nonsense", 4096, 52, false),
        ] {
            assert_eq!(
                has_lpa2_bug(release, page_size_bytes, bits),
                bug,
                "{release}"
            );
        }
    }
}
