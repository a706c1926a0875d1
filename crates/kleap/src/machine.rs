//! What is known of this machine, gathered once for `load` and once more for `exec`.

use crate::error::Failure;
use crate::serial::{self, SerialSpec};
use crate::{output, units};
use kleap_acpi::ConsoleKind;
use kleap_devicetree::{Conduit, Tree, UartKind};
use kleap_linux::consoles::{self, SerialKind};
use kleap_linux::pin::Method;
use kleap_linux::{facts, kexec, memory_blocks, pageflags};
use kleap_memmap::{PhysRange, PhysRanges, iomem};
use kleap_plan::kexec_cost::{self, Hazard, KernelVersion, KexecCostInput};
use kleap_plan::{Device, Layout, Owned};
use kleap_relocator::abi::{self, Lpis};
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether there is a device tree at all: what is loaded is made of it, and commands lock it.
pub(crate) fn check_device_tree() -> Result<(), Failure> {
    let path = Path::new(facts::DEVICE_TREE_PATH);
    if !path.exists() {
        if cfg!(not(target_arch = "aarch64")) {
            return Err(kleap_linux::Error::Architecture(std::env::consts::ARCH).into());
        }
        return Err(Failure::Unsupported(format!(
            "there is no {}, from which the next kernel's device tree is made: mount sysfs on /sys, or boot with a \
             device tree or EFI",
            path.display()
        )));
    }
    Ok(())
}

/// This machine's device tree, as it was given to the running kernel.
pub(crate) fn device_tree() -> Result<Tree, Failure> {
    check_device_tree()?;
    let path = Path::new(facts::DEVICE_TREE_PATH);
    let bytes = facts::read_limited(path, kleap_devicetree::MAX_DTB_BYTES as u64)?;
    Tree::parse(&bytes).map_err(|error| Failure::DeviceTree {
        path: path.to_owned(),
        what: error.to_string(),
    })
}

/// What lies where in physical memory, as the running kernel says.
pub(crate) fn iomem_entries() -> Result<Vec<iomem::Entry>, Failure> {
    let path = Path::new(facts::IOMEM_PATH);
    let text = facts::read_limited(path, iomem::MAX_FILE_BYTES as u64)?;
    iomem::parse(&text).map_err(|error| match error {
        iomem::IomemError::AddressesHidden => kleap_linux::Error::NoAddresses.into(),
        error => Failure::Input {
            path: path.to_owned(),
            what: error.to_string(),
        },
    })
}

/// Where things may be.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// Where pages that we own may lie: System RAM of this boot, what was added since left out, and reserved
    /// pools (CMA), because the next kernel reserves them again.
    pub(crate) usable: PhysRanges,
    /// Where pieces may be moved to: of that, what has nothing nested in it.
    pub(crate) plain: PhysRanges,
    /// Where pages stay however they are pinned, as far as that is known: of `usable`, what the kernel has not reserved, and
    /// where this kernel's own initrd was. Huge pages elsewhere are CMA's, and pinning by io_uring moves them out of it.
    pub(crate) lasting: PhysRanges,
}

impl Memory {
    /// From `/proc/iomem`, the device tree and the blocks of memory.
    pub(crate) fn find(tree: &Tree) -> Result<Self, Failure> {
        let entries = iomem_entries()?;
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
        // ACPI's hot-added memory has no label of its own, and the next kernel is not told of it.
        for added in memory_blocks::added_by_acpi()? {
            usable.subtract(added);
            plain.subtract(added);
        }
        // The kernel reserves whole pages, and frees them as such.
        let initrd = tree.initrd().unwrap_or_default();
        let initrd = initrd
            .align_outward(facts::page_size_bytes())
            .unwrap_or(initrd);
        let lasting = plain.union(&usable.within(initrd));
        Ok(Self {
            usable,
            plain,
            lasting,
        })
    }

    /// Takes those units of `used` out that the kernel has found to be bad; says whether there were some.
    pub(crate) fn exclude_bad(&mut self, used: &PhysRanges, unit_bytes: u64) -> bool {
        // Usually there is none at all, and nothing has to be looked at page by page.
        if facts::corrupted_bytes() == Some(0) {
            return false;
        }
        let mut found = false;
        for range in used {
            let mut start = range.start();
            while let Ok(unit) = PhysRange::from_size(start, unit_bytes)
                && start < range.end()
            {
                // A kernel that does not show its pages' flags cannot be asked.
                if let Ok(true) = pageflags::is_hwpoisoned(unit) {
                    self.usable.subtract(unit);
                    self.plain.subtract(unit);
                    found = true;
                }
                start = unit.end();
            }
        }
        found
    }

    /// The same, but for what is outside of `window`: to choose from. What there is in truth stays `self`.
    pub(crate) fn within(&self, window: Option<PhysRange>) -> Self {
        match window {
            None => self.clone(),
            Some(window) => Self {
                usable: self.usable.within(window),
                plain: self.plain.within(window),
                lasting: self.lasting.within(window),
            },
        }
    }

    /// The method to try first where all of a layout's pages have to stay where they are, though some lie where the other
    /// one moves them away.
    pub(crate) fn pin_first(&self, layout: &Layout) -> Option<Method> {
        let lasts = |part: Owned| self.lasting.contains_range(part.range());
        (!layout.owned().all(lasts)).then_some(Method::Pipe)
    }

    /// What may be mapped as Normal memory: plain memory, and what we own.
    pub(crate) fn mappable(&self, owned: impl Iterator<Item = Owned>) -> PhysRanges {
        self.plain.union(&owned.map(|part| part.range()).collect())
    }
}

/// What the relocator needs to know of the machine's devices.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) uart: Option<abi::Uart>,
    /// Who named that UART.
    pub(crate) uart_from: Option<ConsoleFrom>,
    pub(crate) psci: Option<abi::Conduit>,
    pub(crate) redistributors: Vec<Device>,
    pub(crate) lpis: Lpis,
    /// What could not be found out, for the user.
    pub(crate) warnings: Vec<String>,
}

impl Devices {
    /// From the running kernel, from the device tree, or, on a machine that is described by ACPI, from its tables:
    /// the tree then has nothing but `/chosen`. A UART that the user has named goes before all of them.
    pub(crate) fn find(tree: &Tree, serial: Option<&SerialSpec>) -> Self {
        let mut warnings = Vec::new();
        let (uart, uart_from) = console(tree, serial, &mut warnings).unzip();
        if uart.is_none() {
            warnings.push(
                "no console that the relocator can write to: should the hand-over fail, the machine \
                 is reset without a message; --serial names one"
                    .into(),
            );
        }
        let psci =
            match tree.psci() {
                Some(psci) if psci.has_system_reset => Some(match psci.conduit {
                    Conduit::Smc => abi::Conduit::Smc,
                    Conduit::Hvc => abi::Conduit::Hvc,
                }),
                _ => acpi("FACP", kleap_acpi::psci, &mut warnings)
                    .flatten()
                    .map(|conduit| match conduit {
                        kleap_acpi::Conduit::Smc => abi::Conduit::Smc,
                        kleap_acpi::Conduit::Hvc => abi::Conduit::Hvc,
                    }),
            };
        if psci.is_none() {
            warnings.push(
                "no PSCI: should the hand-over fail, the machine cannot be reset, and stops".into(),
            );
        }
        let mut redistributors: Vec<Device> = match tree.gic_v3_redistributors() {
            Ok(regions) => regions
                .into_iter()
                .map(|region| Device {
                    range: region.range,
                    stride_bytes: region.stride_bytes,
                })
                .collect(),
            Err(error) => {
                warnings.push(format!("interrupt controller: {error}"));
                Vec::new()
            }
        };
        if redistributors.is_empty() {
            redistributors = acpi("APIC", kleap_acpi::redistributors, &mut warnings)
                .unwrap_or_default()
                .into_iter()
                .map(|range| Device {
                    range,
                    stride_bytes: None,
                })
                .collect();
        }
        Self {
            uart,
            uart_from,
            psci,
            redistributors,
            lpis: lpis(tree),
            warnings,
        }
    }
}

/// Who named the UART that the relocator writes to. In the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsoleFrom {
    /// The user.
    Option,
    /// The running kernel, which uses it under this name.
    Kernel(String),
    /// This word of the running kernel's command line, which has the address in it.
    CommandLine(String),
    /// `stdout-path` of the device tree, which leads to this node.
    StdoutPath(String),
    /// ACPI's table SPCR.
    Spcr,
}

impl std::fmt::Display for ConsoleFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Option => f.write_str("--serial"),
            Self::Kernel(name) => write!(f, "this kernel's console {name}"),
            Self::CommandLine(spec) => write!(f, "{spec} on this kernel's command line"),
            Self::StdoutPath(path) => write!(f, "stdout-path of the device tree, {path}"),
            Self::Spcr => f.write_str("ACPI's table SPCR"),
        }
    }
}

/// The UART to write to. What the kernel uses goes before what the firmware says: somebody has chosen it, and it has
/// worked since.
fn console(
    tree: &Tree,
    serial: Option<&SerialSpec>,
    warnings: &mut Vec<String>,
) -> Option<(abi::Uart, ConsoleFrom)> {
    if let Some(spec) = serial {
        return Some((spec.uart(), ConsoleFrom::Option));
    }
    if let Some(console) = consoles::serial().into_iter().next() {
        let base = console.base;
        let uart = match console.kind {
            SerialKind::Pl011 => abi::Uart::Pl011 { base },
            SerialKind::Ns16550 {
                reg_shift,
                width_bytes,
            } => abi::Uart::Ns16550 {
                base,
                reg_shift,
                width_bytes,
            },
        };
        return Some((uart, ConsoleFrom::Kernel(console.name)));
    }
    let command_line = facts::command_line().unwrap_or_default();
    if let Some(spec) = serial::in_command_line(&command_line).first() {
        return Some((spec.uart(), ConsoleFrom::CommandLine(spec.to_string())));
    }
    match tree.console() {
        Ok(Some(uart)) => {
            uart_for_relocator(&uart).map(|found| (found, ConsoleFrom::StdoutPath(uart.path)))
        }
        Ok(None) => acpi("SPCR", kleap_acpi::console, warnings)
            .flatten()
            .map(|console| (acpi_uart_for_relocator(console), ConsoleFrom::Spcr)),
        Err(error) => {
            warnings.push(format!("console: {error}"));
            None
        }
    }
}

/// What is to become of LPIs (docs/interrupt-tables.md). With EFI, Linux reserves their tables for every
/// kernel to come, and the next one takes them over if LPIs are on; if they are off it makes new ones, and
/// the old ones stay reserved: memory lost with each hand-over. Without EFI there are no such reservations.
fn lpis(tree: &Tree) -> Lpis {
    if has_efi(tree) {
        Lpis::LeaveOn
    } else {
        Lpis::TurnOff
    }
}

/// Whether this kernel was told of EFI, and uses it; the next one will be told the same.
pub(crate) fn has_efi(tree: &Tree) -> bool {
    let told = tree.property("/chosen", "linux,uefi-system-table");
    told.is_some() && facts::is_efi()
}

/// What `read` finds in an ACPI table; `None` if there is no such table, or it is wrong.
fn acpi<T>(
    signature: &str,
    read: impl FnOnce(&[u8]) -> Result<T, kleap_acpi::Error>,
    warnings: &mut Vec<String>,
) -> Option<T> {
    let table = facts::acpi_table(signature, kleap_acpi::MAX_TABLE_BYTES)
        .inspect_err(|error| warnings.push(error.to_string()))
        .ok()??;
    read(&table)
        .inspect_err(|error| warnings.push(error.to_string()))
        .ok()
}

fn acpi_uart_for_relocator(console: kleap_acpi::Console) -> abi::Uart {
    let base = console.base.as_u64();
    match console.kind {
        ConsoleKind::Pl011 => abi::Uart::Pl011 { base },
        ConsoleKind::Ns16550 {
            reg_shift,
            reg_io_width_bytes,
        } => abi::Uart::Ns16550 {
            base,
            reg_shift: u64::from(reg_shift),
            width_bytes: u64::from(reg_io_width_bytes),
        },
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

/// What `kexec_load(2)` itself will cost.
#[derive(Debug, Clone)]
pub(crate) struct KexecCost(pub(crate) kleap_plan::KexecCost);

/// Predicts it, from what the machine is now. Reserves that the kernel has raised are waited for where it does not fit
/// beside them.
pub(crate) fn kexec_cost() -> Result<KexecCost, Failure> {
    kexec_cost_beside(Copies::default())
}

/// Copies of the payload that will be in memory at the call, and are not yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Copies {
    /// Those that may lie in CMA, bytes.
    pub(crate) ours_bytes: u64,
    /// Those that may not, bytes.
    pub(crate) kernels_bytes: u64,
}

/// The same for when there are such copies.
pub(crate) fn kexec_cost_beside(copies: Copies) -> Result<KexecCost, Failure> {
    let began = Instant::now();
    loop {
        let cost = kexec_cost_now(copies)?;
        if cost.0.fits() || !wait_for_reserves(began) {
            return Ok(cost);
        }
    }
}

/// How long the kernel is given to lower reserves that it has raised; it does that as it frees memory in the background.
const RESERVES_WAIT: Duration = Duration::from_secs(2);
/// How often it is asked meanwhile.
const RESERVES_LOOK: Duration = Duration::from_millis(20);

/// Waits a little for the kernel to lower its reserves; says whether it is worth looking once more at what is available,
/// after waiting since `began`.
pub(crate) fn wait_for_reserves(began: Instant) -> bool {
    let may_fall = facts::watermark_boost_bytes() > 0 && began.elapsed() < RESERVES_WAIT;
    if may_fall {
        std::thread::sleep(RESERVES_LOOK);
    }
    may_fall
}

/// What the kernel may take for itself at once, bytes: neither CMA, which it cannot use, nor what it keeps back while its
/// reserves are raised.
pub(crate) fn available_to_kernel_bytes(memory: &facts::MemoryInfo) -> u64 {
    memory
        .available_without_cma_bytes()
        .saturating_sub(facts::watermark_boost_bytes())
}

fn kexec_cost_now(copies: Copies) -> Result<KexecCost, Failure> {
    let entries = iomem_entries()?;
    let (release, _) = facts::kernel_release();
    let memory = facts::memory()?;
    let input = KexecCostInput {
        kernel: KernelVersion::parse(&release),
        page_size_bytes: facts::page_size_bytes(),
        compiled_virtual_address_bits: facts::configured_virtual_address_bits(),
        virtual_address_bits: facts::virtual_address_bits(),
        system_ram: &kexec_cost::linear_map_ranges(&entries),
        command_line: &facts::command_line()?,
        total_bytes: memory.total_bytes,
        // Tables are not movable.
        available_bytes: available_to_kernel_bytes(&memory)
            .saturating_sub(copies.kernels_bytes)
            .saturating_sub(copies.ours_bytes.saturating_sub(memory.cma_free_bytes)),
    };
    kexec_cost::predict(&input)
        .map(KexecCost)
        .map_err(|error| Failure::Unsupported(error.to_string()))
}

impl KexecCost {
    /// Refuses what would crash the kernel.
    pub(crate) fn check_crash(&self) -> Result<(), Failure> {
        match self.0.refusal() {
            Some(hazard @ Hazard::Lpa2Crash { .. }) => Err(Failure::KnownBug {
                message: hazard.to_string(),
                remedy: hazard.remedy(),
                is_memory: false,
            }),
            _ => Ok(()),
        }
    }

    /// Refuses what must not be tried: what would crash the kernel, always; what does not fit in memory, if
    /// `now` is when it happens. Before that, there may be more memory later: a warning.
    pub(crate) fn check(&self, now: bool) -> Result<(), Failure> {
        for hazard in &self.0.hazards {
            let is_memory = matches!(hazard, Hazard::DoesNotFit { .. });
            if hazard.is_refusal() && (now || !is_memory) {
                return Err(Failure::KnownBug {
                    message: hazard.to_string(),
                    remedy: hazard.remedy(),
                    is_memory,
                });
            }
            if is_memory {
                output::warn(&format!("warning: {hazard}; {}", hazard.remedy()));
            }
        }
        Ok(())
    }

    /// One sentence about it; `None` if there is nothing to say.
    pub(crate) fn sentence(&self, early: bool) -> Option<String> {
        let bytes = self.0.bytes;
        if bytes.at_most == 0 {
            return None;
        }
        let when = if early {
            "holds"
        } else {
            "will take, at exec,"
        };
        let much = if self.0.is_exact() {
            units::bytes(bytes.at_most)
        } else {
            format!(
                "{} to {}",
                units::bytes(bytes.at_least),
                units::bytes(bytes.at_most)
            )
        };
        Some(format!(
            "kexec_load(2) itself {when} {much} for a copy of this kernel's tables"
        ))
    }
}

/// Whether this process may do `what`, which root may, and whether this kernel is of the kind that can be handed over.
pub(crate) fn check_process(what: &'static str) -> Result<(), Failure> {
    if !facts::has_capability(facts::CAP_SYS_ADMIN) {
        return Err(kleap_linux::Error::Privilege {
            what,
            capability: "CAP_SYS_ADMIN",
        }
        .into());
    }
    if cfg!(not(target_endian = "little")) {
        return Err(Failure::Unsupported(
            "big-endian kernels cannot be handed over".into(),
        ));
    }
    Ok(())
}

/// Whether this machine can hand over at all, asked before anything is changed.
pub(crate) fn check() -> Result<(), Failure> {
    kexec::probe()?;
    check_process("reading physical addresses and mounting a hugetlbfs")?;
    kexec_cost()?.check_crash()
}
