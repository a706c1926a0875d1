//! One entry of a table as 64 bits (DDI 0487, D8.3, "Translation table descriptor formats").
//!
//! Three formats hold the same address in different bits:
//!
//! ```text
//!                               PA[47:granule]   PA[49:48]   PA[51:50]   PA[51:48]   SH
//! 48 bits, any granule          47:granule       -           -           -           9:8
//! 52 bits, 4 and 16 KiB (DS)    47:granule       49:48       9:8         -           TCR.SH0
//! 52 bits, 64 KiB (LPA)         47:16            -           -           15:12       9:8
//! ```

use crate::geometry::{Geometry, Granule, OutputAddressSize};
use crate::mapping::{Access, Attributes, MemoryType};

/// Valid.
const VALID: u64 = 1 << 0;
/// A table at levels up to 2, a page at level 3; clear for a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx, the field of MAIR that gives the memory type, starts here.
const ATTR_INDEX_SHIFT: u32 = 2;
/// AP\[1\]: accessible from EL0; RES1 where there is no EL0 (DDI 0487, D8.4.1).
const AP_UNPRIVILEGED: u64 = 1 << 6;
/// AP\[2\]: not writable.
const AP_READ_ONLY: u64 = 1 << 7;
/// SH: Outer Shareable. What Device memory always is, whatever the field says.
const SH_OUTER: u64 = 0b10 << 8;
/// SH: Inner Shareable.
const SH_INNER: u64 = 0b11 << 8;
/// Access flag: set, or the first access faults.
const ACCESSED: u64 = 1 << 10;
/// Privileged execute-never; RES0 where there is one privilege.
const PXN: u64 = 1 << 53;
/// Unprivileged execute-never; execute-never where there is one privilege.
const UXN: u64 = 1 << 54;

/// Who uses the tables. The bits for permissions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Regime {
    /// EL1&0, and EL2&0: EL2 with `HCR_EL2.E2H` set. Nothing is accessible from EL0.
    TwoPrivileges,
    /// EL2 with `HCR_EL2.E2H` clear.
    OnePrivilege,
}

/// A descriptor that points to the table at `phys`, with no restriction on what that maps.
pub(crate) const fn table(geometry: Geometry, phys: u64) -> u64 {
    VALID | TABLE_OR_PAGE | address_bits(geometry, phys)
}

/// A block or page descriptor at `level` for the memory at `phys`.
pub(crate) const fn leaf(
    geometry: Geometry,
    regime: Regime,
    level: i8,
    phys: u64,
    attributes: Attributes,
) -> u64 {
    let kind = if geometry.is_page_level(level) {
        TABLE_OR_PAGE
    } else {
        0
    };
    let Attributes { memory, access } = attributes;
    let shareability = match memory {
        // Bits 9:8 hold an address, and TCR.SH0 gives the shareability.
        _ if geometry.needs_tcr_ds() => 0,
        MemoryType::Normal => SH_INNER,
        MemoryType::Device => SH_OUTER,
    };
    VALID
        | kind
        | memory.attribute_index() << ATTR_INDEX_SHIFT
        | shareability
        | ACCESSED
        | permissions(regime, access)
        | address_bits(geometry, phys)
}

/// AP and execute-never.
const fn permissions(regime: Regime, access: Access) -> u64 {
    let read_only = match access {
        Access::ReadWrite => 0,
        Access::ReadOnly | Access::ReadExecute => AP_READ_ONLY,
    };
    let executable = matches!(access, Access::ReadExecute);
    let others = match (regime, executable) {
        (Regime::TwoPrivileges, true) => UXN,
        (Regime::TwoPrivileges, false) => UXN | PXN,
        (Regime::OnePrivilege, true) => AP_UNPRIVILEGED,
        (Regime::OnePrivilege, false) => AP_UNPRIVILEGED | UXN,
    };
    read_only | others
}

/// An address, aligned to its use, in the bits that the format has for it.
const fn address_bits(geometry: Geometry, phys: u64) -> u64 {
    /// Bits 47:0 of an address stay where they are in all formats.
    const LOW_48: u64 = (1 << 48) - 1;
    match (geometry.output(), geometry.granule()) {
        (OutputAddressSize::Bits48, _) => phys,
        (OutputAddressSize::Bits52, Granule::K64) => (phys & LOW_48) | (phys >> 48) << 12,
        (OutputAddressSize::Bits52, Granule::K4 | Granule::K16) => {
            (phys & ((1 << 50) - 1)) | (phys >> 50) << 8
        }
    }
}
