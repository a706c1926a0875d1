//! The bare program as the command embeds it, made ready for the address it will run at.
//!
//! The program is a position-independent ELF linked at 0. It cannot relocate itself (that would be
//! Rust, or a writable page, before the MMU is on), so the command does it: every relocation is
//! `R_AARCH64_RELATIVE`, a 64-bit word that becomes *base + addend*.

use crate::abi::PROGRAM_MAX_BYTES;
use object::LittleEndian;
use object::elf::{
    EM_AARCH64, FileHeader64, PT_LOAD, R_AARCH64_RELATIVE, SHT_CREL, SHT_REL, SHT_RELR,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// The program's ELF, or `None` where it could not be built (see `build.rs`): only on a developer's
/// machine without a compiler for arm64, never in a command for arm64.
pub const ELF: Option<&[u8]> = embedded();

#[cfg(relocator_program)]
const fn embedded() -> Option<&'static [u8]> {
    Some(include_bytes!(concat!(env!("OUT_DIR"), "/relocator.elf")))
}

#[cfg(not(relocator_program))]
const fn embedded() -> Option<&'static [u8]> {
    None
}

/// Why an ELF cannot be the relocator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// This build has no relocator.
    #[error("this build of kleap has no relocator: build it for arm64 Linux")]
    Missing,
    /// Not an ELF that can be read.
    #[error("the embedded relocator is not a readable ELF: {0}")]
    Elf(String),
    /// Not exactly one loadable, read-only, executable segment at 0.
    #[error(
        "the embedded relocator has {count} loadable segments, first at {address:#x} with flags {flags:#x}; \
             it must have one, at 0, readable and executable"
    )]
    Segments {
        /// Loadable segments, count.
        count: usize,
        /// Address of the first.
        address: u64,
        /// Flags of the first.
        flags: u32,
    },
    /// It does not start at its first byte.
    #[error("the embedded relocator starts at {0:#x}, not at 0")]
    Entry(u64),
    /// Too large.
    #[error("the embedded relocator has {0} bytes, more than {PROGRAM_MAX_BYTES}")]
    Size(u64),
    /// A relocation that is not `R_AARCH64_RELATIVE`, or outside the program.
    #[error("the embedded relocator has a relocation of type {kind} at {offset:#x}")]
    Relocation {
        /// ELF relocation type.
        kind: u32,
        /// Where it is to be applied.
        offset: u64,
    },
}

impl From<object::Error> for ImageError {
    fn from(error: object::Error) -> Self {
        Self::Elf(error.to_string())
    }
}

/// The program's bytes for `base`, the physical address of the stage.
///
/// # Errors
/// [`ImageError`] if this build has no program, or one that breaks the rules of `link.ld`.
pub fn program_at(base: u64) -> Result<Vec<u8>, ImageError> {
    place(ELF.ok_or(ImageError::Missing)?, base)
}

/// The bytes of `elf` when it is loaded at `base`.
///
/// # Errors
/// [`ImageError`] if the ELF is not what `link.ld` makes.
pub fn place(elf: &[u8], base: u64) -> Result<Vec<u8>, ImageError> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    if header.e_machine(endian) != EM_AARCH64 {
        return Err(ImageError::Elf("not for arm64".into()));
    }
    if header.e_entry(endian) != 0 {
        return Err(ImageError::Entry(header.e_entry(endian)));
    }
    let segments: Vec<_> = header
        .program_headers(endian, elf)?
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .collect();
    let first = segments.first().ok_or(ImageError::Segments {
        count: 0,
        address: 0,
        flags: 0,
    })?;
    let (address, flags) = (first.p_vaddr(endian), first.p_flags(endian));
    if segments.len() != 1 || address != 0 || flags != object::elf::PF_R | object::elf::PF_X {
        return Err(ImageError::Segments {
            count: segments.len(),
            address,
            flags: flags.0,
        });
    }
    let size_bytes = first.p_memsz(endian);
    if size_bytes > PROGRAM_MAX_BYTES || size_bytes != first.p_filesz(endian) {
        return Err(ImageError::Size(size_bytes));
    }
    let mut program = first
        .data(endian, elf)
        .map_err(|()| ImageError::Elf("segment outside the file".into()))?
        .to_vec();
    let sections = header.sections(endian, elf)?;
    if sections.is_empty() {
        // Nobody could say which words are to be relocated.
        return Err(ImageError::Elf("no sections".into()));
    }
    for section in sections.iter() {
        // A linker may pack relocations: what is not applied here must not be passed over.
        let kind = section.sh_type(endian);
        if [SHT_REL, SHT_RELR, SHT_CREL].contains(&kind) {
            return Err(ImageError::Elf(format!(
                "relocations in a section of type {:#x}",
                kind.0
            )));
        }
        let Some((relocations, _)) = section.rela(endian, elf)? else {
            continue;
        };
        for relocation in relocations {
            let kind = relocation.r_type(endian, false);
            let offset = relocation.r_offset.get(endian);
            let slot = usize::try_from(offset)
                .ok()
                .and_then(|offset| program.get_mut(offset..))
                .and_then(|rest| rest.first_chunk_mut::<8>());
            let (R_AARCH64_RELATIVE, Some(slot)) = (kind, slot) else {
                return Err(ImageError::Relocation {
                    kind: kind.0,
                    offset,
                });
            };
            let addend = relocation.r_addend.get(endian).cast_unsigned();
            *slot = base.wrapping_add(addend).to_le_bytes();
        }
    }
    Ok(program)
}
