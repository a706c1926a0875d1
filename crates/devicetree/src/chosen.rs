//! What the next kernel is told: `/chosen`, and what of the old kernel's must not go along.
//!
//! After `of_kexec_alloc_and_setup_fdt()` in drivers/of/kexec.c, with the differences that a loader in
//! userspace has: this one does not know where this kernel's own tree lies unless told, and it must
//! also serve kernels that it did not build (Debian's demand one EFI property more than others).

use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _, ToPropertyValue};
use kleap_memmap::{PhysAddr, PhysRange};

use crate::{Error, SPARE_RESERVATIONS, Tree, lookup};

/// Longest command line, bytes without the NUL: `COMMAND_LINE_SIZE` of arm64 (2048) less one.
pub const MAX_BOOTARGS_BYTES: usize = 2047;

/// How many random bytes the kernel's own loader gives as `rng-seed` (`RNG_SEED_SIZE`).
pub const RNG_SEED_BYTES: usize = 128;

/// Longest `rng-seed` that is accepted, bytes. The kernel mixes it into a pool of 32.
const MAX_RNG_SEED_BYTES: usize = 4096;

/// The property in `/chosen` that the relocator writes its timeline to.
pub const TIMELINE_PROPERTY: &str = "kleap,timeline";

/// Largest timeline, bytes.
pub const MAX_TIMELINE_BYTES: usize = 64 << 10;

const CHOSEN: &str = "chosen";
const BOOTARGS: &str = "bootargs";
const CORE_HEADER: &str = "linux,elfcorehdr";
const USABLE_MEMORY: &str = "linux,usable-memory-range";
const INITRD_START: &str = "linux,initrd-start";
const INITRD_END: &str = "linux,initrd-end";
const KASLR_SEED: &str = "kaslr-seed";
const RNG_SEED: &str = "rng-seed";
/// Written by the kernel's own loader, for firmware-like code in the next kernel; read by nobody yet.
const BOOTED_FROM_KEXEC: &str = "linux,booted-from-kexec";

/// Properties of `/chosen` that describe the kernel that is leaving.
const STALE: [&str; 4] = [
    // Makes the next kernel believe that it is a crash kernel, confined to a part of memory.
    CORE_HEADER,
    USABLE_MEMORY,
    "linux,dmcryptkeys",
    // Points to memory that nobody carried over.
    "linux,ima-kexec-buffer",
];
/// The same, by prefix: Kexec Handover's (`linux,kho-fdt`, `linux,kho-scratch`), and our own of the
/// hand-over before.
const STALE_PREFIXES: [&str; 2] = ["linux,kho-", "kleap,"];

/// What `efi_get_fdt_params()` wants (drivers/firmware/efi/fdtparams.c): with one missing the kernel
/// takes the machine for one without EFI, and so without ACPI and without memory.
const EFI: [&str; 5] = [
    "linux,uefi-system-table",
    "linux,uefi-mmap-start",
    "linux,uefi-mmap-size",
    "linux,uefi-mmap-desc-size",
    "linux,uefi-mmap-desc-ver",
];
/// What all of them begin with, those too that a later kernel adds.
const EFI_PREFIX: &str = "linux,uefi-";
/// One more, in Debian's kernels.
const EFI_SECURE_BOOT: &str = "linux,uefi-secure-boot";

/// Page sizes to which a loader may have rounded a reservation, bytes.
const ROUNDINGS_BYTES: [u64; 4] = [1, 4 << 10, 16 << 10, 64 << 10];

/// The state of UEFI Secure Boot as `linux,uefi-secure-boot` states it: Debian's kernels lock
/// themselves down by it. `enum efi_secureboot_mode` in include/linux/efi.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecureBoot {
    /// The firmware could not be asked.
    Unknown,
    /// Off.
    Disabled,
    /// On.
    Enabled,
}

impl SecureBoot {
    const fn value(self) -> u32 {
        match self {
            Self::Unknown => 1,
            Self::Disabled => 2,
            Self::Enabled => 3,
        }
    }
}

/// What makes the next kernel a crash kernel: one that runs in memory set aside for it, and saves the rest
/// (Documentation/devicetree/bindings/chosen.txt; Documentation/admin-guide/kdump/kdump.rst).
#[derive(Debug, Clone, Copy)]
pub struct CrashBoot<'a> {
    /// Where the headers of the core file are (`linux,elfcorehdr`).
    pub core_header: PhysRange,
    /// All the memory that it may use (`linux,usable-memory-range`). The one that it lies in first: older kernels
    /// read no other, and newer ones take the last of two for low memory.
    pub usable: &'a [PhysRange],
}

/// What the next kernel is to be told.
#[derive(Clone, Copy)]
pub struct NextBoot<'a> {
    /// The command line, at most [`MAX_BOOTARGS_BYTES`]. Written even if empty: the old one must not
    /// come back.
    pub bootargs: &'a str,
    /// Where the initrd will lie, without padding: its end is what the kernel takes for its length.
    /// It is also put into /memreserve/, as the kernel's own loader does.
    pub initrd: Option<PhysRange>,
    /// Seed for the place of the next kernel, fresh from the random number generator. With 0 it runs
    /// where it was linked to. The one in this kernel's tree cannot be used again: it reads as 0.
    pub kaslr_seed: u64,
    /// Entropy for the next kernel, [`RNG_SEED_BYTES`] of it. If empty, none is given.
    pub rng_seed: &'a [u8],
    /// How many zero bytes to reserve as [`TIMELINE_PROPERTY`]; 0 for none.
    pub timeline_bytes: usize,
    /// Where the tree that this kernel was given lies, if that is known: its reservation goes.
    pub old_dtb: Option<PhysRange>,
    /// What this machine's firmware says about Secure Boot; used only if the tree has EFI properties
    /// and not this one.
    pub secure_boot: Option<SecureBoot>,
    /// If it is a crash kernel.
    pub crash: Option<CrashBoot<'a>>,
}

// Derived, this would print the seeds into somebody's log.
impl std::fmt::Debug for NextBoot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NextBoot")
            .field("bootargs", &self.bootargs)
            .field("initrd", &self.initrd)
            .field("rng_seed_bytes", &self.rng_seed.len())
            .field("timeline_bytes", &self.timeline_bytes)
            .field("old_dtb", &self.old_dtb)
            .field("secure_boot", &self.secure_boot)
            .field("crash", &self.crash)
            .finish_non_exhaustive()
    }
}

/// Something the user should know before the hand-over; the tree was made nevertheless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// Some, but not all, of the properties that describe EFI are there.
    #[error("the device tree has EFI properties but lacks {}: the next kernel will take this machine \
             for one without EFI, as this one must have", .missing.join(", "))]
    IncompleteEfi {
        /// Those that are not.
        missing: Vec<&'static str>,
    },
    /// The tree describes EFI without `linux,uefi-secure-boot`, and the caller does not know it.
    #[error(
        "the device tree has no linux,uefi-secure-boot and its value is not known: a Debian kernel \
             will not recognise EFI without it, and find neither ACPI nor memory"
    )]
    NoSecureBootState,
    /// The caller gave no KASLR seed.
    #[error("no KASLR seed was given: the next kernel will not be placed at random")]
    NoKaslrSeed,
}

/// What [`Tree::prepare`] did.
#[must_use = "warnings are for the user to see"]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prepared {
    /// Properties of `/chosen` that described the old kernel and were deleted.
    pub removed_properties: Vec<String>,
    /// Entries of /memreserve/ that covered the old initrd or the old tree and were deleted.
    pub removed_reservations: Vec<PhysRange>,
    /// What the user should know.
    pub warnings: Vec<Warning>,
}

pub(crate) fn initrd(model: &DeviceTree) -> Option<PhysRange> {
    let chosen = lookup::child(&model.root, CHOSEN)?;
    let start = lookup::number(chosen, INITRD_START)?;
    let end = lookup::number(chosen, INITRD_END)?;
    PhysRange::new(PhysAddr::new(start), PhysAddr::new(end))
        .ok()
        .filter(|range| !range.is_empty())
}

fn check(next: &NextBoot<'_>) -> Result<(), Error> {
    let size_bytes = next.bootargs.len();
    if size_bytes > MAX_BOOTARGS_BYTES {
        return Err(Error::BootargsTooLong {
            size_bytes,
            limit_bytes: MAX_BOOTARGS_BYTES,
        });
    }
    if let Some(position) = next.bootargs.bytes().position(|byte| byte == 0) {
        return Err(Error::BootargsNul { position });
    }
    if let Some(initrd) = next.initrd
        && initrd.is_empty()
    {
        return Err(Error::InitrdEmpty {
            address: initrd.start(),
        });
    }
    if next.timeline_bytes > MAX_TIMELINE_BYTES {
        let (size_bytes, limit_bytes) = (next.timeline_bytes, MAX_TIMELINE_BYTES);
        return Err(Error::TimelineTooLarge {
            size_bytes,
            limit_bytes,
        });
    }
    if next.rng_seed.len() > MAX_RNG_SEED_BYTES {
        let (size_bytes, limit_bytes) = (next.rng_seed.len(), MAX_RNG_SEED_BYTES);
        return Err(Error::RngSeedTooLarge {
            size_bytes,
            limit_bytes,
        });
    }
    Ok(())
}

pub(crate) fn prepare(tree: &mut Tree, next: &NextBoot<'_>) -> Result<Prepared, Error> {
    check(next)?;
    let crash = next
        .crash
        .map(|crash| crash_properties(&tree.model.root, &crash))
        .transpose()?;
    let mut prepared = Prepared::default();

    let old = [initrd(&tree.model), next.old_dtb];
    tree.model.memory_reservations.retain(|entry| {
        let range = lookup::range_clamped(entry.address(), entry.size());
        let stale = old.iter().flatten().any(|old| covers_just(range, *old));
        if stale {
            prepared.removed_reservations.push(range);
        }
        !stale
    });

    if lookup::child(&tree.model.root, CHOSEN).is_none() {
        tree.model
            .root
            .add_child(DeviceTreeNode::new_unchecked(CHOSEN));
    }
    // Just made sure of; without it there is nothing to write to.
    if let Some(chosen) = tree.model.root.child_mut(CHOSEN) {
        remove_stale(chosen, &mut prepared);
        write_chosen(chosen, next, &mut prepared);
        for (name, value) in crash.into_iter().flatten() {
            set(chosen, name, value.as_slice());
        }
    }
    if let Some(initrd) = next.initrd {
        let entry = MemoryReservation::new(initrd.start().as_u64(), initrd.size_bytes());
        tree.model.memory_reservations.push(entry);
    }
    tree.spare_reservations = SPARE_RESERVATIONS;
    Ok(prepared)
}

/// The properties of a crash kernel, in cells as the root counts them.
fn crash_properties(
    root: &DeviceTreeNode,
    crash: &CrashBoot<'_>,
) -> Result<[(&'static str, Vec<u8>); 2], Error> {
    // What the specification says where nothing is said.
    let address_cells = lookup::number32(root, "#address-cells").unwrap_or(2);
    let size_cells = lookup::number32(root, "#size-cells").unwrap_or(1);
    let encode = |ranges: &[PhysRange]| -> Result<Vec<u8>, Error> {
        let mut value = Vec::new();
        for range in ranges {
            let refused = || Error::CrashRange {
                range: *range,
                address_cells,
                size_cells,
            };
            for (number, cells) in [
                (range.start().as_u64(), address_cells),
                (range.size_bytes(), size_cells),
            ] {
                match cells {
                    1 => value.extend(u32::try_from(number).map_err(|_| refused())?.to_be_bytes()),
                    2 => value.extend(number.to_be_bytes()),
                    _ => return Err(refused()),
                }
            }
        }
        Ok(value)
    };
    Ok([
        (CORE_HEADER, encode(&[crash.core_header])?),
        (USABLE_MEMORY, encode(crash.usable)?),
    ])
}

/// Replaces every EFI property of `tree` by those of `running`; returns their names.
pub(crate) fn carry_efi(tree: &mut Tree, running: &Tree) -> Vec<String> {
    let is_efi = |name: &str| name.starts_with(EFI_PREFIX);
    let Some(from) = lookup::child(&running.model.root, CHOSEN) else {
        return Vec::new();
    };
    let carried: Vec<(String, Vec<u8>)> = from
        .properties()
        .filter(|property| is_efi(property.name()))
        .map(|property| (property.name().to_owned(), property.value().to_vec()))
        .collect();
    if lookup::child(&tree.model.root, CHOSEN).is_none() {
        tree.model
            .root
            .add_child(DeviceTreeNode::new_unchecked(CHOSEN));
    }
    if let Some(chosen) = tree.model.root.child_mut(CHOSEN) {
        let own: Vec<String> = chosen
            .properties()
            .map(|property| property.name().to_owned())
            .filter(|name| is_efi(name))
            .collect();
        for name in own {
            chosen.remove_property(&name);
        }
        for (name, value) in &carried {
            set(chosen, name, value.as_slice());
        }
    }
    carried.into_iter().map(|(name, _)| name).collect()
}

/// Whether a reservation is for `old` and nothing else: the same range, or what rounding it to pages
/// gives. A larger one may protect something else, and stays.
fn covers_just(reservation: PhysRange, old: PhysRange) -> bool {
    !old.is_empty()
        && ROUNDINGS_BYTES.iter().any(|page| {
            old.align_outward(*page).is_some_and(|rounded| {
                reservation == rounded
                    // Only the size rounded, and only the start.
                    || (reservation.start(), reservation.end()) == (old.start(), rounded.end())
                    || (reservation.start(), reservation.end()) == (rounded.start(), old.end())
            })
        })
}

fn remove_stale(chosen: &mut DeviceTreeNode, prepared: &mut Prepared) {
    let stale: Vec<String> = chosen
        .properties()
        .map(|property| property.name().to_owned())
        .filter(|name| {
            STALE.contains(&name.as_str())
                || STALE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
        .collect();
    for name in stale {
        chosen.remove_property(&name);
        prepared.removed_properties.push(name);
    }
}

fn write_chosen(chosen: &mut DeviceTreeNode, next: &NextBoot<'_>, prepared: &mut Prepared) {
    set(chosen, BOOTARGS, next.bootargs);
    match next.initrd {
        Some(initrd) => {
            set(chosen, INITRD_START, initrd.start().as_u64());
            set(chosen, INITRD_END, initrd.end().as_u64());
        }
        None => {
            for name in [INITRD_START, INITRD_END] {
                if chosen.remove_property(name).is_some() {
                    prepared.removed_properties.push(name.to_owned());
                }
            }
        }
    }
    set(chosen, KASLR_SEED, next.kaslr_seed);
    if next.kaslr_seed == 0 {
        prepared.warnings.push(Warning::NoKaslrSeed);
    }
    if next.rng_seed.is_empty() {
        chosen.remove_property(RNG_SEED);
    } else {
        set(chosen, RNG_SEED, next.rng_seed);
    }
    set(chosen, BOOTED_FROM_KEXEC, [0_u8; 0]);
    check_efi(chosen, next.secure_boot, prepared);
    if next.timeline_bytes > 0 {
        set(chosen, TIMELINE_PROPERTY, vec![0_u8; next.timeline_bytes]);
    }
}

fn check_efi(
    chosen: &mut DeviceTreeNode,
    secure_boot: Option<SecureBoot>,
    prepared: &mut Prepared,
) {
    let missing: Vec<&'static str> = EFI
        .into_iter()
        .filter(|name| lookup::value(chosen, name).is_none())
        .collect();
    if missing.len() == EFI.len() {
        return;
    }
    if !missing.is_empty() {
        prepared.warnings.push(Warning::IncompleteEfi { missing });
    }
    if lookup::value(chosen, EFI_SECURE_BOOT).is_none() {
        match secure_boot {
            Some(state) => set(chosen, EFI_SECURE_BOOT, state.value()),
            None => prepared.warnings.push(Warning::NoSecureBootState),
        }
    }
}

/// Sets a property where it stands, or adds it at the end.
fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    match node.property_mut(name) {
        Some(property) => property.set_value(value),
        None => node.add_property(DeviceTreeProperty::new_unchecked(name, value)),
    }
}
