//! The 64 bytes in front of an arm64 kernel, and the PE header behind them.
//!
//! From Documentation/arch/arm64/booting.rst, with arch/arm64/kernel/head.S and efi-header.S for what
//! kernels in fact put there:
//!
//! ```text
//!  0 u32 code0         "MZ" as a harmless instruction (CONFIG_EFI), else NOP, or the branch itself
//!  4 u32 code1         branch to the entry, or 0 where code0 is the branch
//!  8 u64 text_offset   bytes from a 2 MiB aligned base
//! 16 u64 image_size    bytes in memory from the first byte of the file
//! 24 u64 flags         0: big-endian; 1-2: page size; 3: placement
//! 32 u64 res2, 40 u64 res3, 48 u64 res4   all 0
//! 56 u32 magic         "ARM\x64"
//! 60 u32 res5          offset of the PE header, 0 without CONFIG_EFI
//! ```

use crate::read::{u16_at, u32_at, u64_at};
use crate::{Error, FileKind, MAX_IMAGE_SIZE_BYTES, banner};

/// Length of the header, bytes.
pub const HEADER_BYTES: usize = 64;

/// What the base of an `Image` is aligned to, bytes: 2 MiB (booting.rst).
pub const BASE_ALIGNMENT_BYTES: u64 = 2 << 20;

/// `"ARM\x64"` at offset 56, little-endian.
const MAGIC: u32 = 0x644d_5241;
/// Offsets of res2, res3 and res4.
const RESERVED_OFFSETS: [usize; 3] = [32, 40, 48];
/// Alignment of `text_offset` and `image_size`: the smallest page, bytes.
const FIELD_ALIGNMENT_BYTES: u64 = 4096;

/// `add x13, x18, #0x16`: "MZ" in older kernels (5.10).
const CODE0_MZ_ADD: u32 = 0x9100_5a4d;
/// `ccmp x18, #0, #0xd, pl`: "MZ" in newer kernels (6.1).
const CODE0_MZ_CCMP: u32 = 0xfa40_5a4d;
/// `nop`: in newer kernels without CONFIG_EFI.
const CODE0_NOP: u32 = 0xd503_201f;

const FLAG_BIG_ENDIAN: u64 = 1 << 0;
const FLAG_PAGE_SIZE_SHIFT: u32 = 1;
const FLAG_PAGE_SIZE_MASK: u64 = 3;
const FLAG_ANYWHERE: u64 = 1 << 3;
const FLAGS_KNOWN: u64 = 0xf;

/// From this version on `text_offset` is 0 and the flags carry page size and placement, always
/// (arch/arm64/kernel/head.S; "arm64: get rid of TEXT_OFFSET").
const FIRST_CONSTANT_VERSION: (u32, u32) = (5, 10);

/// Fields of the PE header, counted from its signature: the COFF header at 4, the optional header at 24.
mod pe {
    pub(super) const SIGNATURE: u32 = u32::from_le_bytes(*b"PE\0\0");
    pub(super) const MACHINE: usize = 4;
    pub(super) const MACHINE_ARM64: u16 = 0xaa64;
    pub(super) const SECTIONS: usize = 6;
    pub(super) const OPTIONAL_HEADER_BYTES: usize = 20;
    pub(super) const OPTIONAL_HEADER: usize = 24;
    pub(super) const OPTIONAL_MAGIC_64: u16 = 0x20b;
    pub(super) const SIZE_OF_IMAGE: usize = OPTIONAL_HEADER + 56;
    pub(super) const DIRECTORIES: usize = OPTIONAL_HEADER + 108;
    /// Directory 4: the signature for Secure Boot. Its first word is a file offset, not an address.
    pub(super) const CERTIFICATE_INDEX: u32 = 4;
    pub(super) const CERTIFICATE: usize = OPTIONAL_HEADER + 112 + 4 * 8;
    pub(super) const SECTION_BYTES: usize = 40;
    pub(super) const SECTION_RAW_SIZE: usize = 16;
    pub(super) const SECTION_RAW_OFFSET: usize = 20;
    pub(super) const SECTION_FLAGS: usize = 36;
    pub(super) const SECTION_EXECUTABLE: u32 = 0x2000_0000;
    /// Kernels have two; a count of thousands is damage.
    pub(super) const MAX_SECTIONS: u16 = 96;
}

/// A translation granule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageSize {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl PageSize {
    /// The granule in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4 << 10,
            Self::K16 => 16 << 10,
            Self::K64 => 64 << 10,
        }
    }
}

impl std::fmt::Display for PageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}K", self.bytes() >> 10)
    }
}

/// Where in memory an `Image` may be put: bit 3 of the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// At any 2 MiB aligned base below 2^48 (booting.rst; which states the bound in Linux 7.3).
    /// Linux 4.6 and later.
    Anywhere48,
    /// As close as possible to the base of memory: what lies below cannot be used by the kernel.
    NearDramBase,
}

/// The rule of booting.rst in numbers: the `Image` goes to `base + text_offset_bytes`, where `base` is a
/// multiple of `base_alignment_bytes`; the `reserved_bytes` from there must be memory that nothing else
/// uses, neither the initrd nor the device tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementRule {
    /// What the base is a multiple of, bytes.
    pub base_alignment_bytes: u64,
    /// From the base to the first byte of the `Image`, bytes.
    pub text_offset_bytes: u64,
    /// From the first byte of the `Image`: how much must be free, bytes.
    pub reserved_bytes: u64,
    /// Which bases are allowed.
    pub placement: Placement,
}

/// The fields of a header that passed every check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes from the 2 MiB aligned base to the `Image`.
    pub text_offset_bytes: u64,
    /// Bytes in memory from the first byte of the `Image`.
    pub image_size_bytes: u64,
    /// The granule the kernel was built for; `None` if the header does not say.
    pub page_size: Option<PageSize>,
    /// Where the `Image` may be put.
    pub placement: Placement,
    /// Offset of the first instruction that is the kernel's own, bytes from the first byte of the file.
    pub entry_offset_bytes: u64,
    /// Whether the file is also an EFI program (has a PE header).
    pub is_efi: bool,
}

impl Header {
    /// Checks the header of `image`, the bytes of a whole, uncompressed kernel file.
    ///
    /// # Errors
    /// [`Error`]: what the file is instead, or which field is wrong.
    pub fn check(image: &[u8]) -> Result<Self, Error> {
        let Some(raw) = Raw::read(image) else {
            return Err(Error::NotAnImage {
                kind: FileKind::of(image),
                layers: Vec::new(),
            });
        };
        raw.check_fields(image)?;
        let pe = match raw.pe_offset {
            0 => None,
            pe_offset => Some(Pe::read(image, pe_offset)?),
        };
        if let Some(pe) = &pe {
            pe.check_length(image)?;
            if u64::from(pe.size_of_image_bytes) != raw.image_size_bytes {
                return Err(Error::SizesDisagree {
                    image_size_bytes: raw.image_size_bytes,
                    size_of_image_bytes: pe.size_of_image_bytes,
                });
            }
        }
        let entry_offset_bytes = raw.check_entry(image, pe.as_ref())?;
        raw.check_against_version(image)?;
        check_first_instructions(image, entry_offset_bytes)?;
        Ok(Self {
            text_offset_bytes: raw.text_offset_bytes,
            image_size_bytes: raw.image_size_bytes,
            page_size: raw.page_size(),
            placement: if raw.flags & FLAG_ANYWHERE == 0 {
                Placement::NearDramBase
            } else {
                Placement::Anywhere48
            },
            entry_offset_bytes,
            is_efi: pe.is_some(),
        })
    }

    /// The rule of booting.rst for this header, in numbers.
    #[must_use]
    pub const fn placement_rule(&self) -> PlacementRule {
        PlacementRule {
            base_alignment_bytes: BASE_ALIGNMENT_BYTES,
            text_offset_bytes: self.text_offset_bytes,
            reserved_bytes: self.image_size_bytes,
            placement: self.placement,
        }
    }
}

/// `image_size` of what begins like an arm64 `Image`, nothing checked but the magic.
pub(crate) fn claimed_image_size_bytes(head: &[u8]) -> Option<u64> {
    Raw::read(head).map(|raw| raw.image_size_bytes)
}

/// The header as it stands in the file.
struct Raw {
    code0: u32,
    code1: u32,
    text_offset_bytes: u64,
    image_size_bytes: u64,
    flags: u64,
    pe_offset: u32,
}

impl Raw {
    /// `None` if there are fewer than 64 bytes or the magic is missing.
    fn read(image: &[u8]) -> Option<Self> {
        if u32_at(image, 56)? != MAGIC {
            return None;
        }
        Some(Self {
            code0: u32_at(image, 0)?,
            code1: u32_at(image, 4)?,
            text_offset_bytes: u64_at(image, 8)?,
            image_size_bytes: u64_at(image, 16)?,
            flags: u64_at(image, 24)?,
            pe_offset: u32_at(image, 60)?,
        })
    }

    const fn page_size(&self) -> Option<PageSize> {
        match (self.flags >> FLAG_PAGE_SIZE_SHIFT) & FLAG_PAGE_SIZE_MASK {
            1 => Some(PageSize::K4),
            2 => Some(PageSize::K16),
            3 => Some(PageSize::K64),
            _ => None,
        }
    }

    fn check_fields(&self, image: &[u8]) -> Result<(), Error> {
        let &Self {
            text_offset_bytes,
            image_size_bytes,
            flags,
            ..
        } = self;
        for offset_bytes in RESERVED_OFFSETS {
            let value = u64_at(image, offset_bytes).unwrap_or(u64::MAX);
            if value != 0 {
                return Err(Error::ReservedField {
                    offset_bytes,
                    value,
                });
            }
        }
        let unknown = flags & !FLAGS_KNOWN;
        if unknown != 0 {
            return Err(Error::UnknownFlags { flags, unknown });
        }
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(Error::BigEndian { flags });
        }
        if text_offset_bytes >= BASE_ALIGNMENT_BYTES
            || !text_offset_bytes.is_multiple_of(FIELD_ALIGNMENT_BYTES)
        {
            return Err(Error::TextOffset { text_offset_bytes });
        }
        if image_size_bytes == 0 {
            return Err(Error::ImageSizeZero);
        }
        if image_size_bytes > MAX_IMAGE_SIZE_BYTES
            || !image_size_bytes.is_multiple_of(FIELD_ALIGNMENT_BYTES)
        {
            return Err(Error::ImageSize {
                image_size_bytes,
                limit_bytes: MAX_IMAGE_SIZE_BYTES,
            });
        }
        if length(image) > image_size_bytes {
            return Err(Error::LongerThanImageSize {
                file_bytes: image.len(),
                image_size_bytes,
            });
        }
        Ok(())
    }

    /// Checks both instructions and where they lead; returns that offset.
    fn check_entry(&self, image: &[u8], pe: Option<&Pe>) -> Result<u64, Error> {
        let &Self {
            code0,
            code1,
            pe_offset,
            ..
        } = self;
        let (branch, from_bytes) = match (code0, pe) {
            (CODE0_MZ_ADD | CODE0_MZ_CCMP, Some(_)) | (CODE0_NOP, None) => (code1, 4),
            (_, None) if code1 == 0 => (code0, 0),
            _ => {
                return Err(Error::Entry {
                    code0,
                    code1,
                    pe_offset,
                });
            }
        };
        let distance_bytes = branch_distance_bytes(branch).ok_or(Error::Entry {
            code0,
            code1,
            pe_offset,
        })?;
        let target = from_bytes + distance_bytes;
        let refusal = Error::EntryTarget { branch, target };
        // Words of the header are no code, and a word of 0 is an undefined instruction.
        let Some(offset) = usize::try_from(target)
            .ok()
            .filter(|offset| *offset >= HEADER_BYTES)
        else {
            return Err(refusal);
        };
        let in_code = pe.is_none_or(|pe| pe.executable.iter().any(|code| code.contains(&offset)));
        match u32_at(image, offset) {
            Some(instruction) if instruction != 0 && in_code => {
                u64::try_from(target).map_err(|_| refusal)
            }
            _ => Err(refusal),
        }
    }

    /// The banner is searched only if something is unusual: it takes milliseconds.
    fn check_against_version(&self, image: &[u8]) -> Result<(), Error> {
        let usual = self.text_offset_bytes == 0
            && self.flags & FLAG_ANYWHERE != 0
            && self.page_size().is_some();
        if usual {
            return Ok(());
        }
        match banner::find(image).and_then(banner::version) {
            Some((major, minor)) if (major, minor) >= FIRST_CONSTANT_VERSION => {
                Err(Error::UnlikeItsVersion {
                    major,
                    minor,
                    text_offset_bytes: self.text_offset_bytes,
                    flags: self.flags,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Linux begins with a call, `bl preserve_boot_args` or `bl record_mmu_state`, and what is called begins
/// with one of [`FIRST_CALLED`] (arch/arm64/kernel/head.S). A branch that leads anywhere else is damaged,
/// though there is code where it leads. Asked only of what says that it is Linux, and the instructions
/// only of versions they were read in: the format also carries other programs, and newer kernels may
/// begin otherwise.
fn check_first_instructions(image: &[u8], entry_offset_bytes: u64) -> Result<(), Error> {
    let Some(version) = banner::find(image).and_then(banner::version) else {
        return Ok(());
    };
    let refusal = Error::EntryUnlikeLinux { entry_offset_bytes };
    let entry = usize::try_from(entry_offset_bytes).map_err(|_| refusal.clone())?;
    let called = u32_at(image, entry)
        .and_then(|instruction| branch_distance_bytes_of(instruction, OPCODE_BL))
        .and_then(|distance_bytes| entry_offset_bytes.checked_add_signed(distance_bytes))
        .and_then(|offset_bytes| u32_at(image, usize::try_from(offset_bytes).ok()?))
        .ok_or_else(|| refusal.clone())?;
    let (first, last) = FIRST_CALLED_VERSIONS;
    if version >= first && version <= last && !FIRST_CALLED.contains(&called) {
        return Err(refusal);
    }
    Ok(())
}

/// `mov x21, x0` (preserve_boot_args) and `mrs x19, CurrentEL` (record_mmu_state).
const FIRST_CALLED: [u32; 2] = [0xaa00_03f5, 0xd538_4253];
/// First and last version that was looked at.
const FIRST_CALLED_VERSIONS: ((u32, u32), (u32, u32)) = ((5, 10), (7, 3));

const OPCODE_B: u32 = 0x1400_0000;
const OPCODE_BL: u32 = 0x9400_0000;

/// Bytes from an A64 `b` instruction to its target.
fn branch_distance_bytes(instruction: u32) -> Option<i64> {
    branch_distance_bytes_of(instruction, OPCODE_B)
}

/// Bytes from an A64 branch with this opcode to its target: a signed count of words in the low 26 bits.
fn branch_distance_bytes_of(instruction: u32, opcode: u32) -> Option<i64> {
    const OPCODE_MASK: u32 = 0xfc00_0000;
    const WORDS_BITS: u32 = 26;
    if instruction & OPCODE_MASK != opcode {
        return None;
    }
    let unsigned_words = i64::from(instruction & !OPCODE_MASK);
    let sign = unsigned_words >> (WORDS_BITS - 1);
    Some((unsigned_words - (sign << WORDS_BITS)) * 4)
}

/// What the PE header says about the file.
struct Pe {
    size_of_image_bytes: u32,
    /// The longest part, and its name.
    needed_bytes: u64,
    longest: &'static str,
    /// File offsets of executable sections.
    executable: Vec<std::ops::Range<usize>>,
}

impl Pe {
    fn read(image: &[u8], pe_offset: u32) -> Result<Self, Error> {
        let refuse = |what| Error::PeHeader { pe_offset, what };
        let base = usize::try_from(pe_offset).map_err(|_| refuse("out of range"))?;
        let field = |offset: usize| base.saturating_add(offset);
        if base < HEADER_BYTES || !base.is_multiple_of(4) {
            return Err(refuse(
                "inside the kernel's header or not aligned to 4 bytes",
            ));
        }
        if u32_at(image, base) != Some(pe::SIGNATURE) {
            return Err(refuse("no signature"));
        }
        if u16_at(image, field(pe::MACHINE)) != Some(pe::MACHINE_ARM64) {
            return Err(refuse("machine is not 0xaa64"));
        }
        if u16_at(image, field(pe::OPTIONAL_HEADER)) != Some(pe::OPTIONAL_MAGIC_64) {
            return Err(refuse("not PE32+"));
        }
        let cut = || refuse("the file ends inside it");
        let sections = u16_at(image, field(pe::SECTIONS)).ok_or_else(cut)?;
        if sections == 0 || sections > pe::MAX_SECTIONS {
            return Err(refuse("impossible number of sections"));
        }
        let optional_bytes = u16_at(image, field(pe::OPTIONAL_HEADER_BYTES)).ok_or_else(cut)?;
        let size_of_image_bytes = u32_at(image, field(pe::SIZE_OF_IMAGE)).ok_or_else(cut)?;
        let table = field(pe::OPTIONAL_HEADER).saturating_add(usize::from(optional_bytes));

        let mut this = Self {
            size_of_image_bytes,
            needed_bytes: 0,
            longest: "",
            executable: Vec::new(),
        };
        for index in 0..usize::from(sections) {
            let section = table.saturating_add(index * pe::SECTION_BYTES);
            let at = |offset: usize| u32_at(image, section.saturating_add(offset)).ok_or_else(cut);
            let raw_bytes = at(pe::SECTION_RAW_SIZE)?;
            let raw_offset = at(pe::SECTION_RAW_OFFSET)?;
            this.needs("last section", raw_offset, raw_bytes);
            if at(pe::SECTION_FLAGS)? & pe::SECTION_EXECUTABLE != 0 {
                let start = usize::try_from(raw_offset).map_err(|_| cut())?;
                let size = usize::try_from(raw_bytes).map_err(|_| cut())?;
                this.executable.push(start..start.saturating_add(size));
            }
        }
        let directories = u32_at(image, field(pe::DIRECTORIES)).ok_or_else(cut)?;
        if directories > pe::CERTIFICATE_INDEX {
            let offset = u32_at(image, field(pe::CERTIFICATE)).ok_or_else(cut)?;
            let size_bytes = u32_at(image, field(pe::CERTIFICATE + 4)).ok_or_else(cut)?;
            if size_bytes != 0 {
                this.needs("signature", offset, size_bytes);
            }
        }
        Ok(this)
    }

    fn needs(&mut self, what: &'static str, offset: u32, size_bytes: u32) {
        let end = u64::from(offset) + u64::from(size_bytes);
        if end > self.needed_bytes {
            self.needed_bytes = end;
            self.longest = what;
        }
    }

    fn check_length(&self, image: &[u8]) -> Result<(), Error> {
        if length(image) < self.needed_bytes {
            return Err(Error::Truncated {
                file_bytes: image.len(),
                needed_bytes: self.needed_bytes,
                what: self.longest,
            });
        }
        Ok(())
    }
}

fn length(image: &[u8]) -> u64 {
    u64::try_from(image.len()).unwrap_or(u64::MAX)
}
