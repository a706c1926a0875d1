//! What the tree says about this machine: console, firmware, interrupt controller, memory.
//!
//! An address in a `reg` property is one of the parent's bus. It is the CPU's only after every parent's
//! `ranges` has been applied (Devicetree Specification, 2.3.8): a missing `ranges` means that the CPU
//! cannot reach it, an empty one that it is the same. Writing to a guess could do anything, so a place
//! that cannot be translated is an error.

use dtoolkit::Node as _;
use dtoolkit::model::DeviceTreeNode;
use kleap_memmap::{PhysAddr, PhysRange};

use crate::lookup::{self, Place};
use crate::{HardwareError, Tree};

/// A UART and how its registers are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UartKind {
    /// Arm PL011, or the SBSA's generic UART: 32-bit registers.
    Pl011,
    /// The 8250 family.
    Ns16550 {
        /// Register `n` is at `n << reg_shift`.
        reg_shift: u32,
        /// Width of one access: 1, 2 or 4 bytes.
        reg_io_width_bytes: u32,
        /// From the base to register 0. Already part of [`Uart::base`].
        reg_offset_bytes: u32,
    },
}

/// The UART that the firmware or the bootloader chose as the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uart {
    /// Where register 0 is.
    pub base: PhysAddr,
    /// How to write to it.
    pub kind: UartKind,
    /// The node.
    pub path: String,
}

/// The instruction that calls the firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// `smc`: firmware at EL3.
    Smc,
    /// `hvc`: a hypervisor.
    Hvc,
}

/// The firmware's power interface (Arm DEN0022).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Psci {
    /// How to call it.
    pub conduit: Conduit,
    /// The version that the tree claims, as `(1, 0)`; the firmware may implement a later one.
    pub version: (u32, u32),
    /// Whether SYSTEM_RESET (0x84000009) is there: from 0.2 on it is mandatory.
    pub has_system_reset: bool,
}

/// A stretch of GICv3 redistributors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedistributorRegion {
    /// Their registers.
    pub range: PhysRange,
    /// From one redistributor to the next, bytes; `None` if the redistributors say it themselves
    /// (GICR_TYPER.VLPIS).
    pub stride_bytes: Option<u64>,
}

/// A range that `/reserved-memory` keeps from ordinary use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedMemory {
    /// The node's name.
    pub name: String,
    /// The memory.
    pub range: PhysRange,
    /// Whether it must not even be mapped.
    pub is_no_map: bool,
}

/// A redistributor has two frames of 64 KiB at least (IHI 0069H.b, 12.10).
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// What `redistributor-stride` is a multiple of (Linux' binding arm,gic-v3).
const STRIDE_ALIGNMENT_BYTES: u64 = 0x1_0000;

/// Most entries of one `reg` or `ranges` that are read: a GICv3 may have a region for each of 4096 CPUs and a few
/// more. Each of the one is looked for in the other, and both could fill a tree.
const MAX_ENTRIES: usize = 8192;

const PL011: [&str; 2] = ["arm,pl011", "arm,sbsa-uart"];

/// The 8250 family: `compatible`, and the shift and width that its drivers take where the tree does not
/// say (drivers/tty/serial/8250).
const NS16550: [(&str, u32, u32); 15] = [
    ("brcm,bcm2835-aux-uart", 2, 4),
    ("snps,dw-apb-uart", 0, 1),
    ("marvell,armada-38x-uart", 0, 1),
    ("rockchip,rk3399-uart", 0, 1),
    ("nvidia,tegra20-uart", 2, 4),
    ("mediatek,mt6577-uart", 2, 4),
    ("brcm,bcm7271-uart", 2, 4),
    ("ti,am654-uart", 2, 4),
    ("ti,omap4-uart", 2, 4),
    ("fsl,ns16550", 0, 1),
    ("ns16550a", 0, 1),
    ("ns16550", 0, 1),
    ("ns16750", 0, 1),
    ("ns16850", 0, 1),
    ("ns8250", 0, 1),
];

impl Tree {
    /// The console that `/chosen` names, `stdout-path` or the older `linux,stdout-path`: a path or an
    /// alias, with options after a colon. `Ok(None)` if it names none.
    ///
    /// # Errors
    /// [`HardwareError`] if it names one that cannot be used.
    pub fn console(&self) -> Result<Option<Uart>, HardwareError> {
        let root = &self.model.root;
        let Some(stdout) = lookup::child(root, "chosen").and_then(|chosen| {
            lookup::text(chosen, "stdout-path")
                .or_else(|| lookup::text(chosen, "linux,stdout-path"))
        }) else {
            return Ok(None);
        };
        let name = stdout.split(':').next().unwrap_or(stdout);
        let place = if name.starts_with('/') {
            lookup::node_at(root, name)
        } else {
            lookup::child(root, "aliases")
                .and_then(|aliases| lookup::text(aliases, name))
                .and_then(|path| lookup::node_at(root, path))
        };
        let place = place.ok_or_else(|| HardwareError::StdoutPath {
            path: name.to_owned(),
        })?;
        let kind = uart_kind(&place)?;
        let registers = regs(&place)?;
        let base = registers
            .first()
            .ok_or_else(|| no_address(&place, "reg is empty"))?
            .start();
        let offset_bytes = match kind {
            UartKind::Pl011 => 0,
            UartKind::Ns16550 {
                reg_offset_bytes, ..
            } => u64::from(reg_offset_bytes),
        };
        let base = base.checked_add(offset_bytes).ok_or_else(|| {
            no_address(&place, "reg-offset runs over the end of the address space")
        })?;
        Ok(Some(Uart {
            base,
            kind,
            path: place.path(),
        }))
    }

    /// The firmware's power interface, if the tree has one. (A machine that boots with ACPI says it
    /// there.)
    #[must_use]
    pub fn psci(&self) -> Option<Psci> {
        const VERSIONS: [(&str, (u32, u32)); 3] = [
            ("arm,psci-1.0", (1, 0)),
            ("arm,psci-0.2", (0, 2)),
            ("arm,psci", (0, 1)),
        ];
        let names = VERSIONS.map(|(name, _)| name);
        let nodes = lookup::find_all(&self.model.root, &|node| {
            lookup::is_compatible(node, &names) && lookup::is_enabled(node)
        });
        let node = nodes.first()?.node();
        let conduit = match lookup::text(node, "method")? {
            "smc" => Conduit::Smc,
            "hvc" => Conduit::Hvc,
            _ => return None,
        };
        let (_, version) = VERSIONS
            .into_iter()
            .find(|(name, _)| lookup::is_compatible(node, &[name]))?;
        // Before 0.2 the function numbers are the firmware's own, and there is no reset.
        Some(Psci {
            conduit,
            version,
            has_system_reset: version >= (0, 2),
        })
    }

    /// The redistributors of a GICv3 or GICv4, in the order of the tree; none without one.
    ///
    /// # Errors
    /// [`HardwareError`] if there is a GICv3 whose redistributors cannot be found.
    pub fn gic_v3_redistributors(&self) -> Result<Vec<RedistributorRegion>, HardwareError> {
        let nodes = lookup::find_all(&self.model.root, &|node| {
            lookup::is_compatible(node, &["arm,gic-v3"]) && lookup::is_enabled(node)
        });
        let mut regions = Vec::new();
        for place in nodes {
            let node = place.node();
            let wrong = |property, what| HardwareError::Property {
                path: place.path(),
                property,
                what,
            };
            let count = match lookup::value(node, "#redistributor-regions") {
                None => 1,
                Some(_) => lookup::number32(node, "#redistributor-regions")
                    .and_then(|count| usize::try_from(count).ok())
                    .ok_or_else(|| wrong("#redistributor-regions", "not one cell"))?,
            };
            let stride_bytes = match lookup::value(node, "redistributor-stride") {
                None => None,
                Some(_) => Some(
                    lookup::number(node, "redistributor-stride")
                        .ok_or_else(|| wrong("redistributor-stride", "not one or two cells"))?,
                )
                .filter(|stride| *stride != 0),
            };
            // A smaller step would not leave the frame that it starts from.
            if let Some(stride_bytes) = stride_bytes
                && (stride_bytes < REDISTRIBUTOR_BYTES
                    || !stride_bytes.is_multiple_of(STRIDE_ALIGNMENT_BYTES))
            {
                return Err(wrong(
                    "redistributor-stride",
                    "not a multiple of 64 KiB, or below two of them",
                ));
            }
            // The first entry is the distributor.
            let registers = regs(&place)?;
            let ranges = registers
                .get(1..)
                .and_then(|redistributors| redistributors.get(..count))
                .ok_or_else(|| wrong("reg", "fewer entries than redistributor regions"))?;
            regions.extend(ranges.iter().map(|&range| RedistributorRegion {
                range,
                stride_bytes,
            }));
        }
        Ok(regions)
    }

    /// How CPUs are started and stopped: what `enable-method` says in the nodes of `/cpus`, each word once.
    /// Empty where no CPU says it (a machine with one, or one that is described by ACPI).
    #[must_use]
    pub fn enable_methods(&self) -> Vec<String> {
        let Some(cpus) = lookup::child(&self.model.root, "cpus") else {
            return Vec::new();
        };
        let mut methods: Vec<String> = cpus
            .children()
            .filter(|node| lookup::text(node, "device_type") == Some("cpu"))
            .filter_map(|node| lookup::text(node, "enable-method"))
            .map(str::to_owned)
            .collect();
        methods.sort();
        methods.dedup();
        methods
    }

    /// Whether the tree has an Interrupt Translation Service, and so LPIs whose tables lie in memory.
    #[must_use]
    pub fn has_its(&self) -> bool {
        let is_its = |node: &DeviceTreeNode| {
            lookup::is_compatible(node, &["arm,gic-v3-its"]) && lookup::is_enabled(node)
        };
        !lookup::find_all(&self.model.root, &is_its).is_empty()
    }

    /// The memory that the tree describes. A kernel that boots with EFI takes it from the firmware's
    /// map instead and ignores this.
    ///
    /// # Errors
    /// [`HardwareError`] if a memory node has no readable `reg`.
    pub fn memory(&self) -> Result<Vec<PhysRange>, HardwareError> {
        let root = Place::root(&self.model.root);
        let mut ranges = Vec::new();
        for node in self.model.root.children() {
            if lookup::text(node, "device_type") == Some("memory") && lookup::is_enabled(node) {
                ranges.extend(regs(&root.below(node))?);
            }
        }
        ranges.retain(|range| !range.is_empty());
        Ok(ranges)
    }

    /// The ranges with a fixed place in `/reserved-memory`, in the order of the tree. Those whose place
    /// the kernel chooses (`size` without `reg`) have none yet.
    ///
    /// # Errors
    /// [`HardwareError`] if one has no readable `reg`.
    pub fn reserved_memory(&self) -> Result<Vec<ReservedMemory>, HardwareError> {
        let root = Place::root(&self.model.root);
        let Some(parent) = lookup::child(&self.model.root, "reserved-memory") else {
            return Ok(Vec::new());
        };
        let parent = root.below(parent);
        let mut reserved = Vec::new();
        for node in parent.node().children() {
            if lookup::value(node, "reg").is_none() || !lookup::is_enabled(node) {
                continue;
            }
            let is_no_map = lookup::value(node, "no-map").is_some();
            reserved.extend(
                regs(&parent.below(node))?
                    .into_iter()
                    .map(|range| ReservedMemory {
                        name: node.name().to_owned(),
                        range,
                        is_no_map,
                    }),
            );
        }
        Ok(reserved)
    }
}

fn uart_kind(place: &Place<'_>) -> Result<UartKind, HardwareError> {
    let node = place.node();
    for compatible in lookup::texts(node, "compatible") {
        if PL011.contains(&compatible) {
            return Ok(UartKind::Pl011);
        }
        if let Some((_, shift, width)) = NS16550.into_iter().find(|(name, ..)| *name == compatible)
        {
            let reg_shift = lookup::number32(node, "reg-shift").unwrap_or(shift);
            let reg_io_width_bytes = lookup::number32(node, "reg-io-width").unwrap_or(width);
            let wrong = |property, what| {
                Err(HardwareError::Property {
                    path: place.path(),
                    property,
                    what,
                })
            };
            if reg_shift > 4 {
                return wrong("reg-shift", "larger than 4");
            }
            if !matches!(reg_io_width_bytes, 1 | 2 | 4) {
                return wrong("reg-io-width", "not 1, 2 or 4");
            }
            let reg_offset_bytes = lookup::number32(node, "reg-offset").unwrap_or(0);
            return Ok(UartKind::Ns16550 {
                reg_shift,
                reg_io_width_bytes,
                reg_offset_bytes,
            });
        }
    }
    Err(HardwareError::UnknownUart {
        path: place.path(),
        compatible: lookup::texts(node, "compatible")
            .map(str::to_owned)
            .collect(),
    })
}

fn no_address(place: &Place<'_>, what: &'static str) -> HardwareError {
    HardwareError::Address {
        path: place.path(),
        what,
    }
}

/// How many cells an address and a size take for the children of a node.
#[derive(Clone, Copy)]
struct CellCounts {
    address: usize,
    size: usize,
}

impl CellCounts {
    /// The specification's defaults are 2 and 1. `None` if a count is not one cell or impossible.
    fn below(place: &Place<'_>) -> Option<Self> {
        const MAX_CELLS: u32 = 4;
        let count = |name, default| match lookup::value(place.node(), name) {
            None => Some(default),
            Some(_) => usize::try_from(
                lookup::number32(place.node(), name).filter(|count| *count <= MAX_CELLS)?,
            )
            .ok(),
        };
        Some(Self {
            address: count("#address-cells", 2)?,
            size: count("#size-cells", 1)?,
        })
    }
}

/// The entries of a node's `reg` as the CPU sees them.
fn regs(place: &Place<'_>) -> Result<Vec<PhysRange>, HardwareError> {
    let refuse = |what| no_address(place, what);
    let parent = place
        .parent()
        .ok_or_else(|| refuse("the root has no registers"))?;
    let counts = CellCounts::below(&parent)
        .ok_or_else(|| refuse("impossible #address-cells or #size-cells"))?;
    let reg = lookup::value(place.node(), "reg").ok_or_else(|| refuse("no reg"))?;
    if !matches!(counts.address, 1 | 2) || !matches!(counts.size, 1 | 2) {
        return Err(refuse(
            "its bus has no plain addresses and sizes of one or two cells",
        ));
    }
    let entry_bytes = 4 * (counts.address + counts.size);
    if reg.is_empty() || !reg.len().is_multiple_of(entry_bytes) {
        return Err(refuse("reg is not a whole number of entries"));
    }
    if reg.len() / entry_bytes > MAX_ENTRIES {
        return Err(refuse("reg has more than 8192 entries"));
    }
    reg.chunks_exact(entry_bytes)
        .map(|entry| {
            let (address, size) = entry.split_at(4 * counts.address);
            let (address, size_bytes) = (lookup::cells(address), lookup::cells(size));
            let address = translate(&parent, address, size_bytes).map_err(refuse)?;
            PhysRange::from_size(PhysAddr::new(address), size_bytes)
                .map_err(|_| refuse("reg runs over the end of the address space"))
        })
        .collect()
}

/// An address on the bus below `bus` as the CPU sees it.
fn translate(bus: &Place<'_>, address: u64, size_bytes: u64) -> Result<u64, &'static str> {
    let mut bus = bus.clone();
    let mut address = address;
    while let Some(above) = bus.parent() {
        let ranges = lookup::value(bus.node(), "ranges")
            .ok_or("a bus above it has no ranges, so the CPU cannot reach it")?;
        if !ranges.is_empty() {
            let here = CellCounts::below(&bus).ok_or("impossible cell counts on a bus above it")?;
            let there =
                CellCounts::below(&above).ok_or("impossible cell counts on a bus above it")?;
            if !matches!(
                (here.address, there.address, here.size),
                (1 | 2, 1 | 2, 1 | 2)
            ) {
                return Err("a bus above it has no plain addresses (PCI?)");
            }
            address = through(ranges, here, there.address, address, size_bytes)?;
        }
        bus = above;
    }
    Ok(address)
}

/// One step: through the `ranges` of one bus.
fn through(
    ranges: &[u8],
    here: CellCounts,
    there_address_cells: usize,
    address: u64,
    size_bytes: u64,
) -> Result<u64, &'static str> {
    let entry_bytes = 4 * (here.address + there_address_cells + here.size);
    if !ranges.len().is_multiple_of(entry_bytes) {
        return Err("the ranges of a bus above it are not a whole number of entries");
    }
    if ranges.len() / entry_bytes > MAX_ENTRIES {
        return Err("a bus above it has more than 8192 ranges");
    }
    for entry in ranges.chunks_exact(entry_bytes) {
        let (from, rest) = entry.split_at(4 * here.address);
        let (to, length) = rest.split_at(4 * there_address_cells);
        let (from, to, length) = (
            lookup::cells(from),
            lookup::cells(to),
            lookup::cells(length),
        );
        let Some(offset) = address.checked_sub(from) else {
            continue;
        };
        if offset < length {
            if size_bytes > length - offset {
                return Err("it reaches over the end of a range of a bus above it");
            }
            return to
                .checked_add(offset)
                .ok_or("a range runs over the end of the address space");
        }
    }
    Err("no range of a bus above it covers it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::model::{DeviceTree, DeviceTreeProperty};

    /// A tree whose CPUs say this; `None` says nothing.
    fn with_cpus(methods: &[Option<&str>]) -> Tree {
        let mut cpus = DeviceTreeNode::new_unchecked("cpus");
        for (number, method) in methods.iter().enumerate() {
            let mut cpu = DeviceTreeNode::new_unchecked(format!("cpu@{number}"));
            cpu.add_property(DeviceTreeProperty::new_unchecked("device_type", "cpu"));
            if let Some(method) = method {
                cpu.add_property(DeviceTreeProperty::new_unchecked("enable-method", *method));
            }
            cpus.add_child(cpu);
        }
        let mut cache = DeviceTreeNode::new_unchecked("l2-cache");
        cache.add_property(DeviceTreeProperty::new_unchecked("enable-method", "none"));
        cpus.add_child(cache);
        let mut model = DeviceTree::new();
        model.root.add_child(cpus);
        Tree {
            model,
            boot_cpu: 0,
            spare_reservations: 0,
        }
    }

    #[test]
    fn each_way_to_start_a_cpu_is_named_once() {
        let (psci, spin) = (Some("psci"), Some("spin-table"));
        for (cpus, methods) in [
            (&[][..], &[][..]),
            (&[None, None], &[]),
            (&[psci, psci, psci], &["psci"]),
            (&[spin, psci, spin, None], &["psci", "spin-table"]),
        ] {
            assert_eq!(with_cpus(cpus).enable_methods(), methods, "{cpus:?}");
        }
    }
}
