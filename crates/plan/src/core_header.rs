//! The headers of a core file of the running kernel, for the kernel that will save it after a panic.
//!
//! A capture kernel finds the memory of the one that crashed by an ELF header that was made beforehand: it shows
//! `/proc/vmcore`, a core file with exactly these program headers (fs/proc/vmcore.c). Each `PT_LOAD` is a range of
//! physical memory, each `PT_NOTE` memory that the crashing kernel fills: the registers of every CPU, and vmcoreinfo.
//! After `crash_prepare_elf64_headers()` in kernel/crash_core.c, which only `kexec_file_load(2)` makes use of.
//!
//! Some tools find their way by vmcoreinfo alone (makedumpfile), others by the virtual addresses (vmcore-dmesg, gdb).
//! Where `/proc/kcore` tells those they are written, and else left 0, as no load should fail for them.

use kleap_memmap::{Mapped, PhysAddr, PhysRange, PhysRanges};
use object::elf::{
    self, EM_AARCH64, ET_CORE, EV_CURRENT, FileFlags, FileHeader64, Ident, PF_R, PF_W, PF_X,
    PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64, ProgramType, SHN_UNDEF,
};
use object::pod::bytes_of;
use object::{LittleEndian, U16, U32, U64};

/// Most program headers: `e_phnum` has 16 bits, and 65,535 is `PN_XNUM`.
pub const SEGMENTS_MAX: usize = 65_534;

/// What a core file's headers are made from.
#[derive(Debug, Clone)]
pub struct CoreHeaderInput<'a> {
    /// The notes of each CPU (`/sys/devices/system/cpu/cpu*/crash_notes`), in the order of the CPUs.
    pub cpu_notes: &'a [PhysRange],
    /// The note with vmcoreinfo (`/sys/kernel/vmcoreinfo`).
    pub vmcoreinfo: PhysRange,
    /// The running kernel's text and data, if it is known where they are mapped.
    pub kernel: Option<Mapped>,
    /// The memory to be saved.
    pub memory: &'a PhysRanges,
    /// The kernel's linear map, as far as it is known.
    pub linear_map: &'a [Mapped],
}

/// Why there are no headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreHeaderError {
    /// More than a core file can have.
    #[error(
        "{found} CPUs and ranges of memory, more than the {SEGMENTS_MAX} that a core file can have"
    )]
    TooManySegments {
        /// How many there are.
        found: usize,
    },
    /// Nothing to save.
    #[error("there is no memory to be saved")]
    NoMemory,
}

/// Where `start` is in the linear map; 0 if that is not known.
fn virtual_address(linear_map: &[Mapped], start: PhysAddr) -> u64 {
    linear_map
        .iter()
        .find(|mapped| mapped.range.contains(start))
        .map_or(0, |mapped| {
            let offset_bytes = start.as_u64() - mapped.range.start().as_u64();
            mapped.virtual_start.wrapping_add(offset_bytes)
        })
}

fn program_header(
    kind: ProgramType,
    flags: ProgramFlags,
    range: PhysRange,
    virtual_start: u64,
) -> ProgramHeader64<LittleEndian> {
    let e = LittleEndian;
    let (start, size_bytes) = (range.start().as_u64(), range.size_bytes());
    ProgramHeader64 {
        p_type: U32::new(e, kind),
        p_flags: U32::new(e, flags),
        // The kernel reads an offset as a physical address.
        p_offset: U64::new(e, start),
        p_vaddr: U64::new(e, virtual_start),
        p_paddr: U64::new(e, start),
        p_filesz: U64::new(e, size_bytes),
        p_memsz: U64::new(e, size_bytes),
        p_align: U64::new(e, 0),
    }
}

/// The headers' bytes.
///
/// # Errors
/// [`CoreHeaderError`].
pub fn core_header(input: &CoreHeaderInput<'_>) -> Result<Vec<u8>, CoreHeaderError> {
    if input.memory.is_empty() {
        return Err(CoreHeaderError::NoMemory);
    }
    let note = |range: &PhysRange| program_header(PT_NOTE, ProgramFlags(0), *range, 0);
    let load = |range: PhysRange, virtual_start| {
        program_header(PT_LOAD, PF_R | PF_W | PF_X, range, virtual_start)
    };
    let segments: Vec<_> = input
        .cpu_notes
        .iter()
        .chain([&input.vmcoreinfo])
        .map(note)
        .chain(
            input
                .kernel
                .map(|mapped| load(mapped.range, mapped.virtual_start)),
        )
        .chain(
            input
                .memory
                .iter()
                .map(|range| load(*range, virtual_address(input.linear_map, range.start()))),
        )
        .collect();
    if segments.len() > SEGMENTS_MAX {
        return Err(CoreHeaderError::TooManySegments {
            found: segments.len(),
        });
    }
    let e = LittleEndian;
    let header_bytes = size_of::<FileHeader64<LittleEndian>>();
    // Neither size is near its type's end.
    let small = |size: usize| U16::new(e, u16::try_from(size).unwrap_or(u16::MAX));
    let header = FileHeader64 {
        e_ident: Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(e, ET_CORE),
        e_machine: U16::new(e, EM_AARCH64),
        e_version: U32::new(e, u32::from(EV_CURRENT.0)),
        e_entry: U64::new(e, 0),
        e_phoff: U64::new(e, header_bytes as u64),
        e_shoff: U64::new(e, 0),
        e_flags: U32::new(e, FileFlags(0)),
        e_ehsize: small(header_bytes),
        e_phentsize: small(size_of::<ProgramHeader64<LittleEndian>>()),
        e_phnum: small(segments.len()),
        e_shentsize: small(0),
        e_shnum: small(0),
        e_shstrndx: U16::new(e, SHN_UNDEF),
    };
    let mut bytes = bytes_of(&header).to_vec();
    for segment in &segments {
        bytes.extend_from_slice(bytes_of(segment));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's helper functions too")]

    use super::*;
    use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
    use proptest::prelude::*;

    fn range(start: u64, size_bytes: u64) -> PhysRange {
        PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
    }

    /// Type, flags, offset, virtual and physical address, size in the file and in memory.
    type Segment = (ProgramType, ProgramFlags, u64, u64, u64, u64, u64);

    /// What an ELF reader says of the bytes.
    fn read(bytes: &[u8]) -> Vec<Segment> {
        let header = FileHeader64::<LittleEndian>::parse(bytes).unwrap();
        let e = header.endian().unwrap();
        assert_eq!(header.e_type(e), ET_CORE);
        assert_eq!(header.e_machine(e), EM_AARCH64);
        let segments = header.program_headers(e, bytes).unwrap();
        segments
            .iter()
            .map(|segment| {
                (
                    segment.p_type(e),
                    segment.p_flags(e),
                    segment.p_offset(e),
                    segment.p_vaddr(e),
                    segment.p_paddr(e),
                    segment.p_filesz(e),
                    segment.p_memsz(e),
                )
            })
            .collect()
    }

    #[test]
    fn a_reader_finds_everything_in_its_order() {
        let memory: PhysRanges = [
            range(0x4000_0000, 0x1000_0000),
            range(0x8_0000_0000, 0x1000),
        ]
        .into_iter()
        .collect();
        let notes = [range(0x4100_0100, 0x1a0), range(0x4100_0300, 0x1a0)];
        let bytes = core_header(&CoreHeaderInput {
            cpu_notes: &notes,
            vmcoreinfo: range(0x4200_0000, 0x1024),
            kernel: Some(Mapped {
                range: range(0x4020_0000, 0x200_0000),
                virtual_start: 0xffff_8000_8000_0000,
            }),
            memory: &memory,
            linear_map: &[Mapped {
                range: range(0x4000_0000, 0x1000_0000),
                virtual_start: 0xffff_0000_0000_0000,
            }],
        })
        .unwrap();
        let rwx = PF_R | PF_W | PF_X;
        assert_eq!(
            read(&bytes),
            [
                (
                    PT_NOTE,
                    ProgramFlags(0),
                    0x4100_0100,
                    0,
                    0x4100_0100,
                    0x1a0,
                    0x1a0
                ),
                (
                    PT_NOTE,
                    ProgramFlags(0),
                    0x4100_0300,
                    0,
                    0x4100_0300,
                    0x1a0,
                    0x1a0
                ),
                (
                    PT_NOTE,
                    ProgramFlags(0),
                    0x4200_0000,
                    0,
                    0x4200_0000,
                    0x1024,
                    0x1024
                ),
                (
                    PT_LOAD,
                    rwx,
                    0x4020_0000,
                    0xffff_8000_8000_0000,
                    0x4020_0000,
                    0x200_0000,
                    0x200_0000
                ),
                (
                    PT_LOAD,
                    rwx,
                    0x4000_0000,
                    0xffff_0000_0000_0000,
                    0x4000_0000,
                    0x1000_0000,
                    0x1000_0000
                ),
                (
                    PT_LOAD,
                    rwx,
                    0x8_0000_0000,
                    0,
                    0x8_0000_0000,
                    0x1000,
                    0x1000
                ),
            ]
        );
        // As a whole file, too: nothing in it points outside but the segments' contents.
        assert!(ElfFile64::<LittleEndian>::parse(bytes.as_slice()).is_ok());
    }

    #[test]
    fn no_more_segments_than_can_be_counted() {
        let vmcoreinfo = range(0x1000, 0x100);
        let memory = PhysRanges::from(range(0x4000_0000, 0x1000));
        let of = |cpus: usize| {
            core_header(&CoreHeaderInput {
                cpu_notes: &vec![range(0x2000, 0x100); cpus],
                vmcoreinfo,
                kernel: None,
                memory: &memory,
                linear_map: &[],
            })
        };
        assert_eq!(read(&of(SEGMENTS_MAX - 2).unwrap()).len(), SEGMENTS_MAX);
        assert_eq!(
            of(SEGMENTS_MAX - 1),
            Err(CoreHeaderError::TooManySegments {
                found: SEGMENTS_MAX + 1
            })
        );
        let nothing = core_header(&CoreHeaderInput {
            cpu_notes: &[],
            vmcoreinfo,
            kernel: None,
            memory: &PhysRanges::new(),
            linear_map: &[],
        });
        assert_eq!(nothing, Err(CoreHeaderError::NoMemory));
    }

    proptest! {
        /// Every byte of memory is in exactly one segment, at the virtual address that the map gives it.
        #[test]
        fn all_memory_is_saved_once(
            pieces in prop::collection::vec((0_u64..1 << 20, 1_u64..1 << 8), 1..32),
            shift in any::<u32>(),
        ) {
            let memory: PhysRanges = pieces.iter().map(|(page, pages)| range(page << 12, pages << 12)).collect();
            let virtual_start = 0xffff_0000_0000_0000 + (u64::from(shift) << 12);
            let bytes = core_header(&CoreHeaderInput {
                cpu_notes: &[],
                vmcoreinfo: range(0x1000, 0x100),
                kernel: None,
                memory: &memory,
                linear_map: &[Mapped { range: range(0, 1 << 40), virtual_start }],
            }).unwrap();
            let mut saved = PhysRanges::new();
            for (kind, _, offset, virtual_at, at, file_bytes, size_bytes) in read(&bytes) {
                if kind == PT_LOAD {
                    prop_assert_eq!((offset, file_bytes), (at, size_bytes));
                    prop_assert_eq!(virtual_at, virtual_start + at);
                    prop_assert!(!saved.overlaps(range(at, size_bytes)));
                    saved.insert(range(at, size_bytes));
                }
            }
            prop_assert_eq!(saved, memory);
        }
    }
}
