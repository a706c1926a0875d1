//! A second opinion: the table walk as the architecture describes it.
//!
//! Written from the pseudocode of the Arm Architecture Reference Manual (DDI 0487, shared
//! pseudocode: `AArch64.S1Walk`, `AArch64.S1StartLevel`, `AArch64.S1TTBaseAddress`,
//! `AArch64.BlockDescSupported`, `AArch64.S1DirectBasePermissions`, ...). It sees what a CPU sees:
//! bytes of memory, TTBR0, TCR and the exception level. It shares no code, constant or type with the
//! crate, and is written bit by bit where the crate computes, so that the two cannot be wrong in the
//! same way.
//!
//! It is stricter than a CPU in one respect: bits that are reserved, or that a CPU may ignore, must
//! be as the architecture wants them written; anything else is [`Fault::Malformed`].
#![allow(dead_code, unreachable_pub, reason = "each test crate uses its part")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "fields of a few bits, on a 64-bit host"
)]

use std::fmt::Write;

/// Which layout TCR has, and which permissions descriptors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum El {
    /// EL1&0, or EL2&0: TCR_EL1 layout, two privileges.
    El1,
    /// EL2 with E2H clear: TCR_EL2 layout, one privilege.
    El2,
}

/// The CPU and the memory it reads.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    pub memory: &'a [u8],
    /// Physical address of the first byte of `memory`.
    pub memory_base: u64,
    pub ttbr0: u64,
    pub tcr: u64,
    pub el: El,
}

/// What a walk ends with when it does not fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    pub phys: u64,
    pub attr_index: u64,
    /// 0 non, 2 outer, 3 inner.
    pub shareability: u64,
    pub permissions: Permissions,
    /// Bytes that the descriptor maps.
    pub leaf_bytes: u64,
    pub level: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    pub privileged_read: bool,
    pub privileged_write: bool,
    pub privileged_execute: bool,
    pub unprivileged_read: bool,
    pub unprivileged_write: bool,
    pub unprivileged_execute: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped there.
    Translation { level: i32 },
    /// An address does not fit the output size.
    AddressSize { level: i32 },
    /// The access flag is clear.
    AccessFlag { level: i32 },
    /// A table lies outside the memory that was given.
    External { phys: u64 },
    /// Something the architecture reserves.
    Malformed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Granule {
    Four,
    Sixteen,
    SixtyFour,
}

#[derive(Debug, Clone, Copy)]
struct WalkParams {
    txsz: u64,
    granule: Granule,
    ds: bool,
    ps: u64,
    sh0: u64,
    el: El,
}

/// Restrictions that table descriptors put on everything below them.
#[derive(Debug, Clone, Copy, Default)]
struct Hierarchy {
    no_write: bool,
    no_unprivileged: bool,
    uxn: bool,
    pxn: bool,
}

/// A valid descriptor, taken apart.
enum Decoded {
    Invalid,
    Table { base: u64, restrictions: Hierarchy },
    Leaf { output: u64, descriptor: u64 },
}

fn bit(value: u64, position: u32) -> bool {
    value >> position & 1 == 1
}

/// `value<high:low>`.
fn bits(value: u64, high: u32, low: u32) -> u64 {
    let width = high - low + 1;
    if width == 64 {
        value
    } else {
        value >> low & ((1 << width) - 1)
    }
}

fn malformed<T>(text: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Malformed(text.into()))
}

/// Refuses a set bit in `value<high:low>`.
fn must_be_zero(value: u64, high: u32, low: u32, what: &str) -> Result<(), Fault> {
    if bits(value, high, low) != 0 {
        let mut text = String::new();
        let _ = write!(text, "{what} {value:#018x}: bits {high}:{low} are not zero");
        return malformed(text);
    }
    Ok(())
}

impl WalkParams {
    /// `AArch64.GetS1TTWParams`, with the checks of the registers' descriptions.
    fn new(tcr: u64, el: El) -> Result<Self, Fault> {
        let granule = match bits(tcr, 15, 14) {
            0b00 => Granule::Four,
            0b01 => Granule::SixtyFour,
            0b10 => Granule::Sixteen,
            _ => return malformed("TCR.TG0 is reserved"),
        };
        // Tables in memory that the relocator writes with caches on.
        if bits(tcr, 9, 8) != 0b01 || bits(tcr, 11, 10) != 0b01 || bits(tcr, 13, 12) != 0b11 {
            return malformed("table walks are not Write-Back, Inner Shareable");
        }
        let (ps, ds) = match el {
            El::El1 => {
                if bit(tcr, 7) {
                    return malformed("TCR_EL1.EPD0 switches TTBR0 off");
                }
                if !bit(tcr, 23) {
                    return malformed("TCR_EL1.EPD1 leaves TTBR1 on");
                }
                if bits(tcr, 31, 30) == 0b00 {
                    return malformed("TCR_EL1.TG1 is reserved");
                }
                if !(12..=39).contains(&bits(tcr, 21, 16)) {
                    return malformed("TCR_EL1.T1SZ does not exist");
                }
                must_be_zero(tcr, 6, 6, "TCR_EL1")?;
                must_be_zero(tcr, 22, 22, "TCR_EL1")?;
                must_be_zero(tcr, 29, 24, "TCR_EL1")?;
                must_be_zero(tcr, 58, 35, "TCR_EL1")?;
                must_be_zero(tcr, 63, 60, "TCR_EL1")?;
                (bits(tcr, 34, 32), bit(tcr, 59))
            }
            El::El2 => {
                if !bit(tcr, 31) || !bit(tcr, 23) {
                    return malformed("TCR_EL2: a RES1 bit is clear");
                }
                must_be_zero(tcr, 7, 6, "TCR_EL2")?;
                must_be_zero(tcr, 22, 19, "TCR_EL2")?;
                must_be_zero(tcr, 30, 24, "TCR_EL2")?;
                must_be_zero(tcr, 63, 33, "TCR_EL2")?;
                (bits(tcr, 18, 16), bit(tcr, 32))
            }
        };
        if ds && granule == Granule::SixtyFour {
            return malformed("TCR.DS is RES0 with 64 KiB granules");
        }
        let params = Self {
            txsz: bits(tcr, 5, 0),
            granule,
            ds,
            ps,
            sh0: bits(tcr, 13, 12),
            el,
        };
        // AArch64.S1MinTxSZ and AArch64.MaxTxSZ, without FEAT_TTST.
        let min_txsz = if ds || granule == Granule::SixtyFour {
            12
        } else {
            16
        };
        if params.txsz < min_txsz || params.txsz > 39 {
            return malformed("TCR.T0SZ does not exist for the granule");
        }
        if params.output_bits() == 52 && !params.large_output() {
            return malformed("TCR.IPS says 52 bits where the descriptors hold 48");
        }
        if ds && params.output_bits() != 52 {
            return malformed("TCR.DS is set where TCR.IPS does not say 52 bits");
        }
        Ok(params)
    }

    /// `AArch64.PhysicalAddressSize`.
    fn output_bits(&self) -> u32 {
        match self.ps {
            0b000 => 32,
            0b001 => 36,
            0b010 => 40,
            0b011 => 42,
            0b100 => 44,
            0b101 => 48,
            _ => 52,
        }
    }

    /// Whether descriptors and TTBR hold 52 bits of address.
    fn large_output(&self) -> bool {
        self.ds || (self.granule == Granule::SixtyFour && self.ps == 0b110)
    }

    /// `TGxGranuleBits`.
    fn granule_bits(&self) -> u32 {
        match self.granule {
            Granule::Four => 12,
            Granule::Sixteen => 14,
            Granule::SixtyFour => 16,
        }
    }

    fn input_bits(&self) -> u32 {
        64 - self.txsz as u32
    }

    /// `AArch64.S1StartLevel`: `3 - (((iasize - 1) - granulebits) DIV stride)`.
    fn start_level(&self) -> i32 {
        let stride = self.granule_bits() - 3;
        3 - ((self.input_bits() - 1 - self.granule_bits()) / stride) as i32
    }

    /// `TranslationSize`: bits of address below what `level` resolves.
    fn translation_bits(&self, level: i32) -> u32 {
        let stride = self.granule_bits() - 3;
        (3 - level) as u32 * stride + self.granule_bits()
    }

    /// `AArch64.BlockDescSupported`.
    fn block_supported(&self, level: i32) -> bool {
        match self.granule {
            Granule::Four => (level == 0 && self.ds) || level == 1 || level == 2,
            Granule::Sixteen => (level == 1 && self.ds) || level == 2,
            // The PE's own size; here, as large as TCR says.
            Granule::SixtyFour => (level == 1 && self.output_bits() == 52) || level == 2,
        }
    }

    /// `AArch64.S1TTBaseAddress`.
    fn base_address(&self, ttbr: u64) -> Result<u64, Fault> {
        must_be_zero(ttbr, 63, 48, "TTBR0 (ASID)")?;
        must_be_zero(ttbr, 0, 0, "TTBR0 (CnP)")?;
        let levels = (3 - self.start_level()) as u32;
        let stride = self.granule_bits() - 3;
        let table_bits = self.input_bits() - (levels * stride + self.granule_bits()) + 3;
        let (base, align_bits) = if self.large_output() {
            (
                bits(ttbr, 5, 2) << 48 | bits(ttbr, 47, 6) << 6,
                table_bits.max(6),
            )
        } else {
            (bits(ttbr, 47, 1) << 1, table_bits)
        };
        if base & ((1 << align_bits) - 1) != 0 {
            return malformed("TTBR0: the root table is not aligned to its size");
        }
        Ok(base)
    }

    /// The address in a descriptor, whose low `low_bits` bits are not part of it.
    fn address(&self, descriptor: u64, low_bits: u32) -> Result<u64, Fault> {
        let granule_bits = self.granule_bits();
        let address = match self.granule {
            Granule::SixtyFour if self.large_output() => {
                // <15:12> = OA<51:48>
                bits(descriptor, 15, 12) << 48 | bits(descriptor, 47, granule_bits) << granule_bits
            }
            _ if self.ds => {
                // <9:8> = OA<51:50>, <49:48> = OA<49:48>
                must_be_zero_between(descriptor, granule_bits, 12)?;
                bits(descriptor, 9, 8) << 50 | bits(descriptor, 49, granule_bits) << granule_bits
            }
            _ => {
                must_be_zero(descriptor, 49, 48, "descriptor")?;
                must_be_zero_between(descriptor, granule_bits, 12)?;
                bits(descriptor, 47, granule_bits) << granule_bits
            }
        };
        // Includes bit 16, nT, of blocks.
        if address & ((1 << low_bits) - 1) != 0 {
            return malformed(format!(
                "descriptor {descriptor:#018x}: address below bit {low_bits} is not zero"
            ));
        }
        Ok(address)
    }

    /// Takes apart one descriptor found at `level` (`AArch64.DecodeDescriptorType` and the formats
    /// of D8.3).
    fn decode(&self, descriptor: u64, level: i32) -> Result<Decoded, Fault> {
        let one_privilege = self.el == El::El2;
        if !bit(descriptor, 0) {
            if descriptor != 0 {
                return malformed(format!("invalid descriptor {descriptor:#018x} is not zero"));
            }
            return Ok(Decoded::Invalid);
        }
        if bit(descriptor, 1) && level < 3 {
            must_be_zero(descriptor, 58, 50, "table descriptor")?;
            must_be_zero(descriptor, 7, 2, "table descriptor")?;
            if !self.ds {
                must_be_zero(descriptor, 9, 8, "table descriptor")?;
            }
            must_be_zero(descriptor, 11, 10, "table descriptor")?;
            must_be_zero(descriptor, 63, 63, "table descriptor (NSTable)")?;
            if one_privilege {
                must_be_zero(descriptor, 61, 61, "table descriptor (APTable[0])")?;
                must_be_zero(descriptor, 59, 59, "table descriptor (PXNTable)")?;
            }
            let restrictions = Hierarchy {
                no_write: bit(descriptor, 62),
                no_unprivileged: bit(descriptor, 61),
                uxn: bit(descriptor, 60),
                pxn: bit(descriptor, 59),
            };
            let base = self.address(descriptor, self.granule_bits())?;
            if base >> self.output_bits() != 0 {
                return Err(Fault::AddressSize { level });
            }
            return Ok(Decoded::Table { base, restrictions });
        }
        if !bit(descriptor, 1) && (level == 3 || !self.block_supported(level)) {
            return malformed(format!(
                "block descriptor {descriptor:#018x} at level {level}"
            ));
        }
        // Software and PBHA bits, DBM, GP: none of them is used. Bit 52, Contiguous, is a hint.
        must_be_zero(descriptor, 63, 55, "leaf descriptor")?;
        must_be_zero(descriptor, 51, 50, "leaf descriptor")?;
        must_be_zero(descriptor, 5, 5, "leaf descriptor (NS)")?;
        must_be_zero(descriptor, 11, 11, "leaf descriptor (nG)")?;
        if one_privilege {
            must_be_zero(descriptor, 53, 53, "leaf descriptor of one privilege (PXN)")?;
            if !bit(descriptor, 6) {
                return malformed(format!("leaf descriptor {descriptor:#018x}: AP[1] is RES1"));
            }
        }
        if !self.ds && bits(descriptor, 9, 8) == 0b01 {
            return malformed(format!(
                "leaf descriptor {descriptor:#018x}: SH is reserved"
            ));
        }
        let output = self.address(descriptor, self.translation_bits(level))?;
        if output >> self.output_bits() != 0 {
            return Err(Fault::AddressSize { level });
        }
        Ok(Decoded::Leaf { output, descriptor })
    }

    /// `AArch64.S1DirectBasePermissions` with the hierarchy applied.
    fn permissions(&self, descriptor: u64, hierarchy: Hierarchy) -> Permissions {
        let writable = !bit(descriptor, 7) && !hierarchy.no_write;
        let uxn = bit(descriptor, 54) || hierarchy.uxn;
        match self.el {
            El::El1 => {
                let unprivileged = bit(descriptor, 6) && !hierarchy.no_unprivileged;
                let pxn = bit(descriptor, 53) || hierarchy.pxn;
                Permissions {
                    privileged_read: true,
                    privileged_write: writable,
                    // What EL0 can write is never executed at EL1.
                    privileged_execute: !(pxn || unprivileged && writable),
                    unprivileged_read: unprivileged,
                    unprivileged_write: unprivileged && writable,
                    unprivileged_execute: !uxn,
                }
            }
            El::El2 => Permissions {
                privileged_read: true,
                privileged_write: writable,
                privileged_execute: !uxn,
                unprivileged_read: false,
                unprivileged_write: false,
                unprivileged_execute: false,
            },
        }
    }
}

/// Bits from 12 up to the granule hold no address and are RES0.
fn must_be_zero_between(descriptor: u64, granule_bits: u32, low: u32) -> Result<(), Fault> {
    if granule_bits > low {
        must_be_zero(descriptor, granule_bits - 1, low, "descriptor")?;
    }
    Ok(())
}

impl Machine<'_> {
    fn read(&self, phys: u64) -> Result<u64, Fault> {
        let offset = phys
            .checked_sub(self.memory_base)
            .map(|offset| offset as usize);
        let bytes = offset.and_then(|offset| self.memory.get(offset..offset + 8));
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes)),
            None => Err(Fault::External { phys }),
        }
    }

    fn translated(
        params: &WalkParams,
        level: i32,
        output: u64,
        descriptor: u64,
        hierarchy: Hierarchy,
    ) -> Result<Translated, Fault> {
        if !bit(descriptor, 10) {
            return Err(Fault::AccessFlag { level });
        }
        Ok(Translated {
            phys: output,
            attr_index: bits(descriptor, 4, 2),
            shareability: if params.ds {
                params.sh0
            } else {
                bits(descriptor, 9, 8)
            },
            permissions: params.permissions(descriptor, hierarchy),
            leaf_bytes: 1 << params.translation_bits(level),
            level,
        })
    }

    /// `AArch64.S1Walk`: translates one address.
    pub fn walk(&self, virt: u64) -> Result<Translated, Fault> {
        let params = WalkParams::new(self.tcr, self.el)?;
        let mut level = params.start_level();
        // AArch64.VAIsOutOfRange: the lower half ends at the input size.
        if virt >> params.input_bits() != 0 {
            return Err(Fault::Translation { level: 0 });
        }
        let mut base = params.base_address(self.ttbr0)?;
        let mut hierarchy = Hierarchy::default();
        let mut high = params.input_bits() - 1;
        loop {
            let low = params.translation_bits(level);
            let descriptor = self.read(base + bits(virt, high, low) * 8)?;
            match params.decode(descriptor, level)? {
                Decoded::Invalid => return Err(Fault::Translation { level }),
                Decoded::Table {
                    base: next,
                    restrictions,
                } => {
                    hierarchy = hierarchy.and(restrictions);
                    base = next;
                    high = low - 1;
                    level += 1;
                }
                Decoded::Leaf { output, descriptor } => {
                    let offset = bits(virt, low - 1, 0);
                    return Self::translated(
                        &params,
                        level,
                        output | offset,
                        descriptor,
                        hierarchy,
                    );
                }
            }
        }
    }

    /// Every leaf, as its first virtual address and its translation, in ascending order; looks at
    /// every descriptor of every table. Also gives the number of tables it saw.
    pub fn leaves(&self) -> Result<(Vec<(u64, Translated)>, u64), Fault> {
        let params = WalkParams::new(self.tcr, self.el)?;
        let base = params.base_address(self.ttbr0)?;
        let mut leaves = Vec::new();
        let mut table_count = 0;
        let level = params.start_level();
        let entries = 1 << (params.input_bits() - params.translation_bits(level));
        let root = (base, level, 0, entries, Hierarchy::default());
        let mut pending = vec![root];
        while let Some((base, level, virt, entries, hierarchy)) = pending.pop() {
            table_count += 1;
            for index in 0..entries {
                let virt = virt | index << params.translation_bits(level);
                let descriptor = self.read(base + index * 8)?;
                match params.decode(descriptor, level)? {
                    Decoded::Invalid => {}
                    Decoded::Table { base, restrictions } => {
                        let entries = 1 << (params.granule_bits() - 3);
                        pending.push((base, level + 1, virt, entries, hierarchy.and(restrictions)));
                    }
                    Decoded::Leaf { output, descriptor } => leaves.push((
                        virt,
                        Self::translated(&params, level, output, descriptor, hierarchy)?,
                    )),
                }
            }
            // The part of the root's page that a small root does not use.
            for index in entries..1 << (params.granule_bits() - 3) {
                if self.read(base + index * 8)? != 0 {
                    return malformed("a descriptor lies behind the end of the root table");
                }
            }
        }
        leaves.sort_by_key(|&(virt, _)| virt);
        Ok((leaves, table_count))
    }
}

impl Hierarchy {
    fn and(self, other: Self) -> Self {
        Self {
            no_write: self.no_write || other.no_write,
            no_unprivileged: self.no_unprivileged || other.no_unprivileged,
            uxn: self.uxn || other.uxn,
            pxn: self.pxn || other.pxn,
        }
    }
}
