//! The register values that belong to the tables: MAIR, TCR and TTBR0.
//!
//! They are computed next to the descriptors because they must agree with them: AttrIndx names a
//! field of MAIR, the format of an address depends on TCR.DS, and a descriptor with DS set has no
//! shareability of its own.

use kleap_memmap::PhysAddr;

use crate::descriptor::Regime;
use crate::geometry::{Geometry, Granule, OutputAddressSize};
use crate::mapping::MemoryType;

/// MAIR_ELx for the descriptors of this crate: attribute 0 is Normal, Inner and Outer Write-Back,
/// non-transient, read and write allocate (`0xff`); attribute 1 is Device-nGnRE (`0x04`). The
/// others are Device-nGnRnE and not used (DDI 0487, D24.2, "MAIR_EL1").
pub const MAIR: u64 = MemoryType::Normal.mair_field() | MemoryType::Device.mair_field();

impl MemoryType {
    /// The field of MAIR that describes this type.
    pub(crate) const fn attribute_index(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::Device => 1,
        }
    }

    /// The field's value, in its place.
    const fn mair_field(self) -> u64 {
        let attribute = match self {
            Self::Normal => 0xff,
            Self::Device => 0x04,
        };
        attribute << (8 * self.attribute_index())
    }
}

/// TCR fields for the tables in TTBR0, which have the same place in TCR_EL1 and TCR_EL2
/// (DDI 0487, D24.2): how the CPU reads the tables themselves.
mod tcr0 {
    /// IRGN0: tables are Inner Write-Back, read and write allocate.
    pub(super) const IRGN0_WRITE_BACK: u64 = 0b01 << 8;
    /// ORGN0: tables are Outer Write-Back, read and write allocate.
    pub(super) const ORGN0_WRITE_BACK: u64 = 0b01 << 10;
    /// SH0: tables are Inner Shareable; with DS set, mapped memory is too.
    pub(super) const SH0_INNER: u64 = 0b11 << 12;
    /// TG0 starts here.
    pub(super) const TG0_SHIFT: u32 = 14;
}

/// Fields of TCR_EL1, and of TCR_EL2 when `HCR_EL2.E2H` is set.
mod tcr_el1 {
    /// T1SZ starts here.
    pub(super) const T1SZ_SHIFT: u32 = 16;
    /// EPD1: a miss in the TTBR1 half faults instead of walking tables that are not there.
    pub(super) const EPD1: u64 = 1 << 23;
    /// TG1 starts here.
    pub(super) const TG1_SHIFT: u32 = 30;
    /// DS: descriptors of `FEAT_LPA2`.
    pub(super) const DS: u64 = 1 << 59;
}

/// Fields of TCR_EL2 when `HCR_EL2.E2H` is clear.
mod tcr_el2 {
    /// Bits that are reserved and read as one.
    pub(super) const RES1: u64 = 1 << 31 | 1 << 23;
    /// DS: descriptors of `FEAT_LPA2`.
    pub(super) const DS: u64 = 1 << 32;
}

impl Geometry {
    /// TCR for tables of this geometry in TTBR0: TCR_EL1 (or TCR_EL2 with `HCR_EL2.E2H` set) for
    /// [`Regime::TwoPrivileges`], TCR_EL2 for [`Regime::OnePrivilege`].
    ///
    /// TTBR1 is switched off. IPS (bits 34:32) or PS (bits 18:16) is 0: the caller puts the CPU's
    /// `ID_AA64MMFR0_EL1.PARange` there, but no more than [`OutputAddressSize::max_pa_range`].
    #[must_use]
    pub const fn tcr(self, regime: Regime) -> u64 {
        let t0sz = (64 - self.va_bits()) as u64;
        // TG0 and TG1 encode the same granules differently.
        let (tg0, tg1) = match self.granule() {
            Granule::K4 => (0b00, 0b10),
            Granule::K16 => (0b10, 0b01),
            Granule::K64 => (0b01, 0b11),
        };
        let common = t0sz
            | tcr0::IRGN0_WRITE_BACK
            | tcr0::ORGN0_WRITE_BACK
            | tcr0::SH0_INNER
            | tg0 << tcr0::TG0_SHIFT;
        match regime {
            Regime::TwoPrivileges => {
                // The TTBR1 half is not walked, but its fields must hold values that exist.
                let upper_half =
                    t0sz << tcr_el1::T1SZ_SHIFT | tg1 << tcr_el1::TG1_SHIFT | tcr_el1::EPD1;
                let ds = if self.needs_tcr_ds() { tcr_el1::DS } else { 0 };
                common | upper_half | ds
            }
            Regime::OnePrivilege => {
                let ds = if self.needs_tcr_ds() { tcr_el2::DS } else { 0 };
                common | tcr_el2::RES1 | ds
            }
        }
    }

    /// TTBR0 for a root table at `root`, which is granule-aligned: ASID 0, CnP clear. With 52-bit
    /// descriptors, bits 5:2 hold PA\[51:48\] (DDI 0487, `AArch64.S1TTBaseAddress`).
    pub(crate) const fn ttbr(self, root: PhysAddr) -> u64 {
        /// BADDR: bits 47:0 of the address stay where they are.
        const LOW_48: u64 = (1 << 48) - 1;
        let phys = root.as_u64();
        match self.output() {
            OutputAddressSize::Bits48 => phys,
            OutputAddressSize::Bits52 => (phys & LOW_48) | (phys >> 48) << 2,
        }
    }
}
