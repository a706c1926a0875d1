//! What three ACPI tables say of a machine.
//!
//! A kernel that was started by UEFI has a device tree with nothing in it but `/chosen`: the machine is
//! described by ACPI. The hand-over needs to know the same three things there: where it can print
//! ([`console`], from the SPCR), how it can reset ([`psci`], from the FADT), and where the GICv3
//! redistributors are ([`redistributors`], from the MADT). Linux shows the tables as files, each whole,
//! below `/sys/firmware/acpi/tables`.
//!
//! # Choices
//!
//! Static tables only: no AML is interpreted. A console that exists in the DSDT alone is not found.
//! Every table's length and checksum must be right, more than Linux asks for: an address from a table
//! that is wrong somewhere would be written to by a program that cannot survive a fault. The existing
//! ACPI crates were rejected: they find tables in physical memory, by way of a mapping function, and
//! lay structures over the bytes.
//!
//! Offsets are those of the ACPI specification 6.5 (MADT 5.2.12, FADT 5.2.9) and of Microsoft's
//! "Serial Port Console Redirection Table". What an interface type means is taken as Linux takes it
//! (drivers/acpi/spcr.c), because Linux is who has set the device up.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use kleap_memmap::{PhysAddr, PhysRange};

/// Largest table that is read, bytes. The MADT of a machine with 4096 CPUs has less than 400 KiB.
pub const MAX_TABLE_BYTES: usize = 1 << 20;

/// Most regions of redistributors that are accepted: one for each CPU that Linux can be built for.
pub const MAX_REDISTRIBUTORS: usize = 4096;

/// Size of the header that all tables have, bytes.
const HEADER_BYTES: usize = 36;
/// What a redistributor without virtual LPIs has: two frames of 64 KiB (IHI 0069, 12.10).
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// Why a table cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Longer than what is read.
    #[error("the ACPI table has {size_bytes} bytes, more than the {MAX_TABLE_BYTES} that are read")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
    /// Shorter than its header, or not as long as the header says.
    #[error("the ACPI table has {found_bytes} bytes and should have {expected_bytes}")]
    Size {
        /// Bytes there are.
        found_bytes: usize,
        /// Bytes there must be.
        expected_bytes: usize,
    },
    /// Another table than was asked for.
    #[error("the ACPI table is {found:?}, not {expected:?}")]
    Signature {
        /// The signature found, each byte as a character.
        found: [char; 4],
        /// The signature expected.
        expected: &'static str,
    },
    /// The sum of its bytes is not 0.
    #[error("the ACPI table {table} is damaged: its bytes add up to {sum:#x}, not to 0")]
    Checksum {
        /// Which table.
        table: &'static str,
        /// The sum, modulo 256.
        sum: u8,
    },
    /// A structure in the MADT does not fit.
    #[error(
        "the ACPI table APIC has a structure of type {kind} with a length of {size_bytes} at byte {offset}, which cannot be"
    )]
    Structure {
        /// Its type.
        kind: u8,
        /// The length it claims.
        size_bytes: usize,
        /// Where it starts.
        offset: usize,
    },
    /// An address range that does not exist.
    #[error(
        "the ACPI table {table} has a range of {size_bytes:#x} bytes at {start:#x}, which cannot be"
    )]
    Range {
        /// Which table.
        table: &'static str,
        /// First byte.
        start: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// More regions than are accepted.
    #[error("the ACPI table APIC has more than {MAX_REDISTRIBUTORS} regions of redistributors")]
    TooManyRedistributors,
    /// A console of a kind that is not known.
    #[error(
        "the console in the ACPI table SPCR is of interface type {interface:#x}, not a known one"
    )]
    UnknownInterface {
        /// The interface type (DBG2 serial port subtype).
        interface: u8,
    },
    /// A console that is not accessed as memory, or not by bytes or words.
    #[error(
        "the console in the ACPI table SPCR is in address space {space} with access size {access_size}, not memory read by bytes or words of 4"
    )]
    Access {
        /// Address space identifier of its Generic Address Structure.
        space: u8,
        /// Access size of the same.
        access_size: u8,
    },
}

/// How to drive a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleKind {
    /// Arm PL011, or the SBSA's generic UART, which is a part of it.
    Pl011,
    /// 8250 family.
    Ns16550 {
        /// log2 of the distance between registers, bytes.
        reg_shift: u32,
        /// Width of an access, bytes: 1 or 4.
        reg_io_width_bytes: u32,
    },
}

/// The console that the firmware used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Console {
    /// How to drive it.
    pub kind: ConsoleKind,
    /// First register.
    pub base: PhysAddr,
}

/// How PSCI is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// `smc #0`.
    Smc,
    /// `hvc #0`.
    Hvc,
}

/// `N` bytes at an offset; zeros where the table is too short, which every caller has excluded.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn byte(bytes: &[u8], offset: usize) -> u8 {
    u8::from_le_bytes(array(bytes, offset))
}

fn number16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

fn number32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

fn number64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// Checks the header, and that the table has at least `least_bytes`.
fn check(table: &[u8], signature: &'static str, least_bytes: usize) -> Result<(), Error> {
    let found_bytes = table.len();
    if found_bytes > MAX_TABLE_BYTES {
        return Err(Error::TooLarge {
            size_bytes: found_bytes,
        });
    }
    let size = |expected_bytes| {
        Err(Error::Size {
            found_bytes,
            expected_bytes,
        })
    };
    if found_bytes < HEADER_BYTES {
        return size(HEADER_BYTES);
    }
    let found: [u8; 4] = array(table, 0);
    if found != *signature.as_bytes() {
        return Err(Error::Signature {
            found: found.map(char::from),
            expected: signature,
        });
    }
    let expected_bytes = usize::try_from(number32(table, 4)).unwrap_or(usize::MAX);
    if found_bytes != expected_bytes {
        return size(expected_bytes);
    }
    if found_bytes < least_bytes {
        return size(least_bytes);
    }
    match table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(()),
        sum => Err(Error::Checksum {
            table: signature,
            sum,
        }),
    }
}

/// The console that the SPCR names; `None` if it names none.
///
/// # Errors
/// [`Error`] if the table is wrong, or the console is not one that can be written to.
pub fn console(spcr: &[u8]) -> Result<Option<Console>, Error> {
    const REVISION: usize = 8;
    const INTERFACE: usize = 36;
    const SPACE: usize = 40;
    const ACCESS_SIZE: usize = 43;
    const ADDRESS: usize = 44;
    const LEAST_BYTES: usize = 80;
    const SYSTEM_MEMORY: u8 = 0;
    check(spcr, "SPCR", LEAST_BYTES)?;
    let base = number64(spcr, ADDRESS);
    if base == 0 {
        return Ok(None);
    }
    let (space, access_size) = (byte(spcr, SPACE), byte(spcr, ACCESS_SIZE));
    let access = Error::Access { space, access_size };
    if space != SYSTEM_MEMORY {
        return Err(access);
    }
    let kind = match (byte(spcr, REVISION), byte(spcr, INTERFACE)) {
        // 0: undefined, and Linux takes bytes. 1: bytes. 3: words of 4.
        (_, 0 | 1) | (2.., 0x5 | 0x12) => match access_size {
            0 | 1 => ConsoleKind::Ns16550 {
                reg_shift: 0,
                reg_io_width_bytes: 1,
            },
            3 => ConsoleKind::Ns16550 {
                reg_shift: 2,
                reg_io_width_bytes: 4,
            },
            _ => return Err(access),
        },
        // PL011; SBSA, with accesses of 4 bytes only; SBSA. All are written to by words of 4.
        (2.., 0x3 | 0xd | 0xe) => ConsoleKind::Pl011,
        (_, interface) => return Err(Error::UnknownInterface { interface }),
    };
    Ok(Some(Console {
        kind,
        base: PhysAddr::new(base),
    }))
}

/// How the FADT wants PSCI to be called; `None` without PSCI.
///
/// # Errors
/// [`Error`] if the table is wrong.
pub fn psci(fadt: &[u8]) -> Result<Option<Conduit>, Error> {
    /// `ARM_BOOT_ARCH`, since revision 5.1.
    const ARM_BOOT_ARCH: usize = 129;
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;
    check(fadt, "FACP", ARM_BOOT_ARCH + 2)?;
    let flags = number16(fadt, ARM_BOOT_ARCH);
    if flags & PSCI_COMPLIANT == 0 {
        return Ok(None);
    }
    Ok(Some(if flags & PSCI_USE_HVC == 0 {
        Conduit::Smc
    } else {
        Conduit::Hvc
    }))
}

/// The regions of GICv3 redistributors in the MADT, in the order of the table; none without a GICv3.
///
/// Where there are GICR structures they are meant; otherwise each enabled CPU names its own
/// redistributor, and its region is that one (as in drivers/irqchip/irq-gic-v3.c). Of a GICv4's four
/// frames such a region has the first two: nobody here needs the others.
///
/// # Errors
/// [`Error`] if the table is wrong anywhere, not only where redistributors are.
pub fn redistributors(madt: &[u8]) -> Result<Vec<PhysRange>, Error> {
    const FIRST_STRUCTURE: usize = 44;
    /// GIC CPU Interface: type, least length (ACPI 5.1), flags, redistributor.
    const GICC: u8 = 11;
    const GICC_BYTES: usize = 76;
    const GICC_FLAGS: usize = 12;
    const GICC_REDISTRIBUTOR: usize = 60;
    const ENABLED: u32 = 1 << 0;
    /// GIC Redistributor: type, least length, address, size.
    const GICR: u8 = 14;
    const GICR_BYTES: usize = 16;
    const GICR_ADDRESS: usize = 4;
    const GICR_SIZE: usize = 12;
    check(madt, "APIC", FIRST_STRUCTURE)?;
    let (mut regions, mut of_cpus) = (Vec::new(), Vec::new());
    let mut offset = FIRST_STRUCTURE;
    while let Some(rest) = madt.get(offset..).filter(|rest| !rest.is_empty()) {
        let (kind, size_bytes) = (byte(rest, 0), usize::from(byte(rest, 1)));
        let least_bytes = match kind {
            GICC => GICC_BYTES,
            GICR => GICR_BYTES,
            _ => 2,
        };
        let wrong = Error::Structure {
            kind,
            size_bytes,
            offset,
        };
        if size_bytes < least_bytes {
            return Err(wrong);
        }
        let structure = rest.get(..size_bytes).ok_or(wrong)?;
        let (found, start, size_bytes) = match kind {
            GICR => (
                &mut regions,
                number64(structure, GICR_ADDRESS),
                u64::from(number32(structure, GICR_SIZE)),
            ),
            GICC if number32(structure, GICC_FLAGS) & ENABLED != 0 => (
                &mut of_cpus,
                number64(structure, GICC_REDISTRIBUTOR),
                REDISTRIBUTOR_BYTES,
            ),
            _ => (&mut of_cpus, 0, 0),
        };
        if start != 0 {
            if found.len() == MAX_REDISTRIBUTORS {
                return Err(Error::TooManyRedistributors);
            }
            let range = PhysRange::from_size(PhysAddr::new(start), size_bytes)
                .ok()
                .filter(|range| !range.is_empty());
            found.push(range.ok_or(Error::Range {
                table: "APIC",
                start,
                size_bytes,
            })?);
        }
        offset += structure.len();
    }
    Ok(if regions.is_empty() { of_cpus } else { regions })
}
