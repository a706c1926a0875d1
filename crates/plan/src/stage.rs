//! The bytes of the relocator's stage.
//!
//! Program, stack, hand-off block, translation tables: one contiguous piece (`kleap_relocator::abi`
//! describes it), given to `kexec_load` as it is. The tables map what the hand-over touches and nothing
//! else:
//!
//! | what | how |
//! |---|---|
//! | the program | read, execute |
//! | its stack | read, write |
//! | hand-off and tables | read |
//! | pages that a piece is moved from | read |
//! | targets that a piece is moved to; the device tree, for the timeline | read, write |
//! | pieces that are in place | read |
//! | console UART, GIC redistributors | Device, read, write |
//!
//! Two sets of tables, because the descriptors of a regime with two privilege levels (EL1, and EL2 with
//! E2H) and with one (EL2 without) differ in bits that are RES1 in one and a permission in the other, and
//! which regime it will be is only known at entry. A set is a few pages, whatever the RAM.

use crate::layout::{Layout, Place};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_pagetable::{
    Access, Geometry, Granule, MAIR, Mapping, MemoryType, OutputAddressSize, Regime, Tables, build,
};
use kleap_relocator::abi::{
    self, Conduit, HAND_OFF_OFFSET_BYTES, Header, Move, Piece, PieceKind, Redistributors,
    STACK_OFFSET_BYTES, STAGE_ALIGNMENT_BYTES, Uart,
};
use kleap_relocator::{crc32c, image, timeline};
use serde::Serialize;

/// Virtual address bits of the relocator's map: enough for every address the boot protocol allows.
const VA_BITS: u32 = 48;
/// `TCR.IPS` for 48 bits (Arm ARM D24.2.189).
const PHYSICAL_SIZE_48_BITS: u64 = 5;

/// A piece's content as it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size_bytes: u64,
    /// CRC32C of them.
    pub crc32c: u32,
}

/// Registers that the relocator will use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// A region of redistributor frames.
    pub range: PhysRange,
    /// Distance between frames, bytes, if not the architecture's own.
    pub stride_bytes: Option<u64>,
}

/// What the stage is made from.
#[derive(Debug, Clone)]
pub struct StageInput<'a> {
    /// Where everything is.
    pub layout: &'a Layout,
    /// The first kernel's page size, bytes: the one granule that this CPU is known to have.
    pub granule_bytes: u64,
    /// The Image.
    pub image: Content,
    /// `image_size` of its header, bytes.
    pub image_size_bytes: u64,
    /// The initrd, if the layout has one.
    pub initrd: Option<Content>,
    /// The device tree.
    pub device_tree: Content,
    /// Offset of the timeline in the device tree, bytes.
    pub timeline_offset_bytes: u64,
    /// Page size that the next kernel was built for, bytes, if its header says.
    pub kernel_page_size_bytes: Option<u64>,
    /// The console.
    pub uart: Option<Uart>,
    /// How to reset.
    pub psci: Option<Conduit>,
    /// GICv3 redistributors.
    pub redistributors: &'a [Device],
    /// Counter when `exec` was asked for.
    pub exec_requested: u64,
    /// Counter when `exec` had checked everything.
    pub exec_prepared: u64,
}

/// What the hand-over will do, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Moves, count.
    pub moves: u64,
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Bytes verified.
    pub verified_bytes: u64,
    /// Translation tables of one regime, count.
    pub tables: u64,
    /// Translation tables of both, bytes.
    pub tables_bytes: u64,
    /// The stage, bytes.
    pub stage_bytes: u64,
}

/// A stage, ready for `kexec_load`.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Where it goes; the first byte is the entry.
    pub start: PhysAddr,
    /// What it is: a whole number of granules.
    pub bytes: Vec<u8>,
    /// What it will do.
    pub summary: Summary,
}

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The page size is none of the architecture's.
    #[error("{0} bytes is no arm64 page size")]
    Granule(u64),
    /// The tables cannot be built.
    #[error("translation tables for the hand-over: {0}")]
    Tables(#[from] kleap_pagetable::Error),
    /// The relocator cannot be used.
    #[error(transparent)]
    Program(#[from] image::ImageError),
    /// The hand-off cannot be written.
    #[error(transparent)]
    HandOff(#[from] abi::HandOffError),
    /// It all does not fit in one huge page.
    #[error(
        "the relocator and its tables need {stage_bytes} bytes, a huge page has {page_size_bytes}: load a smaller initrd"
    )]
    TooLarge {
        /// Bytes needed.
        stage_bytes: u64,
        /// Bytes there are.
        page_size_bytes: u64,
    },
    /// An address that cannot be.
    #[error("{0}")]
    Address(#[from] kleap_memmap::AddressError),
    /// A device lies where memory is.
    #[error("the registers at {device} overlap memory that the hand-over uses, {memory}")]
    DeviceInMemory {
        /// The registers.
        device: PhysRange,
        /// The memory.
        memory: PhysRange,
    },
    /// An initrd without a place, or a place without an initrd.
    #[error("the layout and the payload do not agree whether there is an initrd: load again")]
    Initrd,
    /// The timeline would be written outside the device tree.
    #[error(
        "the timeline at byte {offset_bytes} is outside the device tree of {size_bytes} bytes: load again"
    )]
    Timeline {
        /// Where in the device tree it would be written, bytes.
        offset_bytes: u64,
        /// Size of the device tree, bytes.
        size_bytes: u64,
    },
    /// The next kernel's piece does not fit its place.
    #[error("{size_bytes} bytes do not fit into {place}")]
    Content {
        /// The piece's size.
        size_bytes: u64,
        /// Its place.
        place: PhysRange,
    },
}

fn align_up(bytes: u64, alignment_bytes: u64) -> u64 {
    bytes.next_multiple_of(alignment_bytes)
}

/// The moves that bring `content` to its place, neighbouring pages as one.
fn moves(place: &Place, content: Content, page_size_bytes: u64) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    if place.is_in_place() {
        return moves;
    }
    let end_bytes = place.offset_bytes + content.size_bytes;
    let mut offset_bytes = place.offset_bytes;
    while offset_bytes < end_bytes {
        let within_bytes = offset_bytes % page_size_bytes;
        let size_bytes = (page_size_bytes - within_bytes).min(end_bytes - offset_bytes);
        let Some(page) = usize::try_from(offset_bytes / page_size_bytes)
            .ok()
            .and_then(|index| place.pages.get(index))
        else {
            break; // `check_content` has seen that there is a page for every byte
        };
        let source = page.address.as_u64() + within_bytes;
        let target = place.target.start().as_u64() + offset_bytes;
        match moves.last_mut() {
            Some(last) if last.source + last.size_bytes == source => last.size_bytes += size_bytes,
            _ => moves.push(Move {
                target,
                source,
                size_bytes,
            }),
        }
        offset_bytes += size_bytes;
    }
    moves
}

/// Checks that there is a page for every byte of `content`, and room at the target for it and for
/// whatever else is cleaned. The layout was stored since it was chosen: nothing in it is believed.
fn check_content(
    place: &Place,
    content: Content,
    clean_size_bytes: u64,
    page_size_bytes: u64,
) -> Result<(), StageError> {
    for page in &place.pages {
        PhysRange::from_size(page.address, page_size_bytes)?;
    }
    let held_bytes = (place.pages.len() as u64).saturating_mul(page_size_bytes);
    for (size_bytes, most_bytes) in [
        (content.size_bytes, held_bytes),
        (content.size_bytes, place.target.size_bytes()),
        (clean_size_bytes, place.target.size_bytes()),
    ] {
        let end_bytes = place.offset_bytes.checked_add(size_bytes);
        if end_bytes.is_none_or(|end_bytes| end_bytes > most_bytes) {
            return Err(StageError::Content {
                size_bytes,
                place: place.target,
            });
        }
    }
    Ok(())
}

/// Checks that the timeline lies in the device tree: anything else is not mapped, or not ours.
fn check_timeline(input: &StageInput<'_>) -> Result<(), StageError> {
    let size_bytes = input.device_tree.size_bytes;
    let end_bytes = input
        .timeline_offset_bytes
        .checked_add(timeline::SIZE_BYTES as u64);
    if end_bytes.is_none_or(|end_bytes| end_bytes > size_bytes) {
        return Err(StageError::Timeline {
            offset_bytes: input.timeline_offset_bytes,
            size_bytes,
        });
    }
    Ok(())
}

/// Everything but the stage itself, as mappings.
fn mappings(input: &StageInput<'_>, granule_bytes: u64) -> Result<Vec<Mapping>, StageError> {
    let layout = input.layout;
    let normal = |range, access| Mapping::identity(range, MemoryType::Normal, access);
    let mut mappings = Vec::new();
    for place in layout.places() {
        let is_device_tree = std::ptr::eq(place, &raw const layout.device_tree);
        if place.is_in_place() {
            let access = if is_device_tree {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            };
            mappings.push(normal(place.target, access));
        } else {
            mappings.push(normal(place.target, Access::ReadWrite));
            for page in &place.pages {
                let range = PhysRange::from_size(page.address, layout.page_size_bytes)?;
                mappings.push(normal(range, Access::ReadOnly));
            }
        }
    }
    let mut devices = PhysRanges::new();
    let uart = input
        .uart
        .map(|uart| PhysRange::from_size(PhysAddr::new(uart.base()), 0x100));
    for range in uart
        .into_iter()
        .chain(input.redistributors.iter().map(|device| Ok(device.range)))
    {
        let range = range?;
        devices.insert(range.align_outward(granule_bytes).unwrap_or(range));
    }
    let stage = PhysRange::from_size(layout.stage.address, layout.page_size_bytes)?;
    for &device in devices.iter() {
        let memory = mappings.iter().map(|mapping| mapping.phys).chain([stage]);
        if let Some(memory) = memory.into_iter().find(|memory| memory.overlaps(device)) {
            return Err(StageError::DeviceInMemory { device, memory });
        }
        mappings.push(Mapping::identity(
            device,
            MemoryType::Device,
            Access::ReadWrite,
        ));
    }
    Ok(mappings)
}

/// Builds the stage.
///
/// # Errors
/// [`StageError`]; nothing of it depends on the machine's state, only on the input.
pub fn prepare(input: &StageInput<'_>) -> Result<Stage, StageError> {
    let layout = input.layout;
    let page_size_bytes = layout.page_size_bytes;
    let granule = Granule::from_page_size_bytes(input.granule_bytes)
        .ok_or(StageError::Granule(input.granule_bytes))?;
    let geometry = Geometry::new(granule, VA_BITS, OutputAddressSize::Bits48)?;
    let start = layout.stage.address;
    let program = image::program_at(start.as_u64())?;

    let mut contents = vec![(PieceKind::Image, &layout.image, input.image)];
    match (&layout.initrd, input.initrd) {
        (Some(place), Some(content)) => contents.push((PieceKind::Initrd, place, content)),
        (None, None) => {}
        _ => return Err(StageError::Initrd),
    }
    contents.push((
        PieceKind::DeviceTree,
        &layout.device_tree,
        input.device_tree,
    ));

    check_timeline(input)?;
    let (mut pieces, mut all_moves) = (Vec::new(), Vec::new());
    for &(kind, place, content) in &contents {
        let clean_size_bytes = match kind {
            // BSS and first tables included: the next kernel writes there with the MMU off.
            PieceKind::Image => input.image_size_bytes,
            _ => content.size_bytes,
        };
        check_content(place, content, clean_size_bytes, page_size_bytes)?;
        all_moves.extend(moves(place, content, page_size_bytes));
        pieces.push(Piece {
            kind,
            start: place.start().as_u64(),
            size_bytes: content.size_bytes,
            crc32c: content.crc32c,
            clean_size_bytes,
        });
    }
    let regions: Vec<Redistributors> = input
        .redistributors
        .iter()
        .map(|device| Redistributors {
            start: device.range.start().as_u64(),
            size_bytes: device.range.size_bytes(),
            stride_bytes: device.stride_bytes.unwrap_or(0),
        })
        .collect();

    // The block's size depends on counts alone, and two more pieces (tables, program) are certain.
    let block_bytes = (abi::HEADER_WORDS
        + (pieces.len() + 2) * abi::PIECE_WORDS
        + all_moves.len() * abi::MOVE_WORDS
        + regions.len() * abi::REDISTRIBUTORS_WORDS) as u64
        * 8;
    let tables_offset_bytes = align_up(HAND_OFF_OFFSET_BYTES + block_bytes, STAGE_ALIGNMENT_BYTES);
    let offset = |bytes: u64| {
        start
            .checked_add(bytes)
            .ok_or(kleap_memmap::AddressError::Overflow {
                start: start.as_u64(),
                size_bytes: bytes,
            })
    };
    let part = |from: u64, to: u64| PhysRange::new(offset(from)?, offset(to)?);

    let mut mappings = mappings(input, granule.size_bytes())?;
    for (range, access) in [
        (part(0, STACK_OFFSET_BYTES)?, Access::ReadExecute),
        (
            part(STACK_OFFSET_BYTES, HAND_OFF_OFFSET_BYTES)?,
            Access::ReadWrite,
        ),
        (
            part(HAND_OFF_OFFSET_BYTES, page_size_bytes)?,
            Access::ReadOnly,
        ),
    ] {
        mappings.push(Mapping::identity(range, MemoryType::Normal, access));
    }
    let two = build(
        geometry,
        Regime::TwoPrivileges,
        &mappings,
        offset(tables_offset_bytes)?,
    )?;
    let one = build(geometry, Regime::OnePrivilege, &mappings, two.range().end())?;
    let table_bytes: Vec<u8> = [two.bytes(), one.bytes()].concat();
    let stage_bytes = tables_offset_bytes + table_bytes.len() as u64;
    if stage_bytes > page_size_bytes || block_bytes > abi::HAND_OFF_MAX_BYTES {
        return Err(StageError::TooLarge {
            stage_bytes,
            page_size_bytes,
        });
    }

    for (kind, start, bytes) in [
        (PieceKind::Tables, two.root(), &table_bytes),
        (PieceKind::Program, start, &program),
    ] {
        pieces.push(Piece {
            kind,
            start: start.as_u64(),
            size_bytes: bytes.len() as u64,
            crc32c: crc32c::update(0, bytes),
            clean_size_bytes: 0,
        });
    }
    let header = header(input, stage_bytes, &two, &one);
    let block = abi::encode(&header, &pieces, &all_moves, &regions)?;

    let mut bytes = program;
    let mut append = |at: u64, part: &[u8]| {
        // Every offset was checked against the huge page's size.
        bytes.resize(usize::try_from(at).unwrap_or(usize::MAX), 0);
        bytes.extend_from_slice(part);
    };
    append(HAND_OFF_OFFSET_BYTES, &block);
    append(tables_offset_bytes, &table_bytes);
    let summary = Summary {
        moves: all_moves.len() as u64,
        moved_bytes: all_moves.iter().map(|copy| copy.size_bytes).sum(),
        verified_bytes: pieces.iter().map(|piece| piece.size_bytes).sum(),
        tables: two.table_count(),
        tables_bytes: table_bytes.len() as u64,
        stage_bytes,
    };
    Ok(Stage {
        start,
        bytes,
        summary,
    })
}

fn header(input: &StageInput<'_>, stage_size_bytes: u64, two: &Tables, one: &Tables) -> Header {
    let layout = input.layout;
    let device_tree = layout.device_tree.start().as_u64();
    Header {
        stage: layout.stage.address.as_u64(),
        stage_size_bytes,
        mair: MAIR,
        tcr_two_privileges: two.tcr(),
        ttbr_two_privileges: two.ttbr(),
        tcr_one_privilege: one.tcr(),
        ttbr_one_privilege: one.ttbr(),
        physical_size_max: PHYSICAL_SIZE_48_BITS,
        kernel_entry: layout.image.start().as_u64(),
        device_tree,
        timeline: Some(device_tree + input.timeline_offset_bytes),
        exec_requested: input.exec_requested,
        exec_prepared: input.exec_prepared,
        uart: input.uart,
        psci: input.psci,
        kernel_page_size_bytes: input.kernel_page_size_bytes.unwrap_or(0),
        tables_two_privileges: two.table_count(),
        tables_one_privilege: one.table_count(),
        table_size_bytes: two.geometry().granule().size_bytes(),
    }
}

#[cfg(test)]
mod tests;
