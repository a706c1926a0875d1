//! `vmlinux`: the kernel as it was linked, with symbols.
//!
//! `objcopy -O binary` makes an `Image` out of it (arch/arm64/boot/Makefile): what is loaded, in the order of its
//! load addresses, without what is not in the file. The same is done here from the program headers. The kernel
//! relocates itself, so relocations are left alone, and the entry is the first byte.

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::{Container, Error, MAX_DECOMPRESSED_BYTES};

/// A kernel has a handful.
const MAX_SEGMENTS: usize = 64;

fn refuse(what: impl Into<String>) -> Error {
    Error::Container {
        container: Container::Elf,
        what: what.into(),
    }
}

/// The `Image` in a `vmlinux`.
pub(crate) fn flatten(file: &[u8]) -> Result<Vec<u8>, Error> {
    let malformed = |error: object::read::Error| {
        refuse(format!(
            "{error}: the file is damaged or truncated, install it again"
        ))
    };
    let header = elf::FileHeader64::<LittleEndian>::parse(file).map_err(|error| {
        refuse(format!(
            "{error}: not a 64-bit little-endian ELF file, as arm64 kernels are"
        ))
    })?;
    let endian = header.endian().map_err(malformed)?;
    let (machine, kind) = (header.e_machine(endian), header.e_type(endian));
    if machine != elf::EM_AARCH64 {
        return Err(refuse(format!(
            "for machine {machine}, not arm64 ({})",
            elf::EM_AARCH64
        )));
    }
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        return Err(refuse(format!(
            "of type {kind}, not linked (2 or 3): use vmlinux, not vmlinux.o"
        )));
    }
    let headers = header.program_headers(endian, file).map_err(malformed)?;
    let mut segments = Vec::new();
    for segment in headers
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD && segment.p_filesz(endian) != 0)
    {
        let data = segment.data(endian, file).map_err(|()| {
            refuse(format!(
                "a segment lies at {:#x} with {:#x} bytes, but the file has {:#x}: it is truncated, \
                 install it again (was the disk full?)",
                segment.p_offset(endian),
                segment.p_filesz(endian),
                file.len()
            ))
        })?;
        segments.push((segment.p_paddr(endian), data));
    }
    segments.sort_by_key(|(address, _)| *address);
    let (Some((base, _)), true) = (segments.first(), segments.len() <= MAX_SEGMENTS) else {
        return Err(refuse(format!(
            "{} segments to load, not 1 to {MAX_SEGMENTS}: no kernel",
            segments.len()
        )));
    };
    let base = *base;
    let mut image: Vec<u8> = Vec::new();
    for (address, data) in segments {
        let offset = usize::try_from(address - base).unwrap_or(usize::MAX);
        if offset < image.len() {
            return Err(refuse(format!(
                "the segment at {address:#x} lies in the one before: the file is damaged, install it again"
            )));
        }
        let end = offset.saturating_add(data.len());
        if end > MAX_DECOMPRESSED_BYTES {
            return Err(refuse(format!(
                "its segments reach from {base:#x} over {end:#x} bytes, more than the {MAX_DECOMPRESSED_BYTES:#x} \
                 that a kernel may have"
            )));
        }
        image
            .try_reserve(end - image.len())
            .map_err(|_| Error::OutOfMemory { wanted_bytes: end })?;
        image.resize(offset, 0);
        image.extend_from_slice(data);
    }
    Ok(image)
}
