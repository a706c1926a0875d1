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
//! | memory that is moved to; the device tree, for the timeline | read, write |
//! | what is in place, the room behind it, memory that is moved from and not to | read |
//! | console UART, GIC redistributors, the place for a failure record | Device, read, write |
//!
//! Two sets of tables, because the descriptors of a regime with two privilege levels (EL1, and EL2 with
//! E2H) and with one (EL2 without) differ in bits that are RES1 in one and a permission in the other, and
//! which regime it will be is only known at entry. A set is a few pages, whatever the RAM.
//!
//! Pages that lie scattered take tables of their own, the more so with granules of 16 and 64 KiB, where a
//! table for single pages covers 32 and 512 MiB. Where the tables would not fit, sources are mapped by whole
//! blocks instead, as far as all of the block is memory that Linux itself maps as Normal memory, and a
//! target with anything to be moved is mapped writable as a whole; with a granule of 4 KiB, whose tables of
//! blocks cover 1 GiB each, then by blocks of 1 GiB. That is tried in this order: the less is mapped, the less
//! a wrong address can do.

use crate::layout::{BASE_ALIGNMENT_BYTES, Layout, Place, UNIT_MIN_BYTES};
use crate::moves::{self, MovesError};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_pagetable::{
    Access, Geometry, Granule, MAIR, Mapping, MemoryType, OutputAddressSize, Regime, Tables, build,
    table_count,
};
use kleap_relocator::abi::{
    self, Conduit, HAND_OFF_OFFSET_BYTES, HandOff, Header, Lpis, MOVES_MAX, Move, OnFailure, Piece,
    PieceKind, RecordPlace, Redistributors, STACK_OFFSET_BYTES, STAGE_ALIGNMENT_BYTES, Uart,
};
use kleap_relocator::digest::{Algorithm, Digests};
use kleap_relocator::{crc32c, image, timeline};
use serde::Serialize;

/// Virtual address bits of the relocator's map: enough for every address the boot protocol allows.
const VA_BITS: u32 = 48;
/// Room for the stage that is asked for first, bytes; twice as much each time it is too little.
pub const ROOM_FIRST_BYTES: u64 = 2 << 20;
/// The most that is asked for, bytes.
pub const ROOM_MAX_BYTES: u64 = 32 << 20;
/// Sets of tables: one for each kind of regime.
const REGIMES: u64 = 2;
/// Most digests of the tables and the program: both are smaller than [`ROOM_MAX_BYTES`], in chunks of 1 MiB.
const OWN_DIGESTS_MAX: usize = 33;
/// `TCR.IPS` for 48 bits (Arm ARM D24.2.189).
const PHYSICAL_SIZE_48_BITS: u64 = 5;

/// A piece's content as it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size_bytes: u64,
    /// Of each chunk of them.
    pub digests: Digests,
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
    /// What is to become of their LPIs.
    pub lpis: Lpis,
    /// Whether the relocator writes a line for every phase.
    pub verbose: bool,
    /// What ends a hand-over that failed.
    pub on_failure: OnFailure,
    /// Where a failure is recorded for the next boot: mapped as Device memory, so that nothing of it stays in
    /// a cache.
    pub record: Option<RecordPlace>,
    /// For a crash kernel: the headers of the core file that describe this kernel's memory, and where they are.
    pub core_header: Option<(PhysRange, Content)>,
    /// Memory that may be mapped as Normal memory beyond what is touched, to save tables: System RAM with
    /// nothing nested in it, and what we own.
    pub mappable: &'a PhysRanges,
}

/// What the hand-over will do, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Moves, count.
    pub moves: u64,
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Bytes of the pieces that are where they belong already.
    pub in_place_bytes: u64,
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

impl Stage {
    /// Notes when `exec` was asked for and when it had checked everything, values of the counter. Both are 0
    /// until then. Called last, so that the stage need not be built twice.
    ///
    /// # Errors
    /// [`StageError::HandOff`] if the stage was damaged since it was built.
    pub fn stamp(&mut self, exec_requested: u64, exec_prepared: u64) -> Result<(), StageError> {
        let block_at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap_or(usize::MAX);
        let block = self.bytes.get_mut(block_at..).unwrap_or_default();
        Ok(abi::stamp(block, exec_requested, exec_prepared)?)
    }
}

/// Why there is no stage.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The page size is none of the architecture's.
    #[error("{0} bytes is no arm64 page size")]
    Granule(u64),
    /// The layout is not cut at whole granules.
    #[error("a layout cut at every {0} bytes cannot be: load again")]
    Unit(u64),
    /// The tables cannot be built.
    #[error("translation tables for the hand-over: {0}")]
    Tables(#[from] kleap_pagetable::Error),
    /// The relocator cannot be used.
    #[error(transparent)]
    Program(#[from] image::ImageError),
    /// The hand-off cannot be written.
    #[error(transparent)]
    HandOff(#[from] abi::HandOffError),
    /// It does not fit where it is to go.
    #[error(
        "the relocator and its tables need {stage_bytes} bytes, there is room for {room_bytes}: free memory, so \
         that more of the payload is in one piece"
    )]
    TooLarge {
        /// Bytes needed.
        stage_bytes: u64,
        /// Bytes there are.
        room_bytes: u64,
    },
    /// The moves cannot be put in order.
    #[error(transparent)]
    Moves(#[from] MovesError),
    /// More moves than a hand-off holds. A larger stage does not help.
    #[error(
        "{0} moves, more than {MOVES_MAX}: use larger huge pages, or free memory, so that more of the payload \
         is in one piece"
    )]
    TooManyMoves(usize),
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

/// What has to be copied to bring `content_bytes` of content to their place: the parts that are elsewhere.
fn copies(place: &Place, content_bytes: u64) -> Vec<moves::MemoryCopy> {
    let content_end_bytes = place.offset_bytes + content_bytes;
    let mut at_bytes = 0;
    let mut copies = Vec::new();
    for (part, target) in place.parts_with_targets() {
        // The part's bytes that are content, from its start.
        let from_bytes = place.offset_bytes.saturating_sub(at_bytes);
        let to_bytes = content_end_bytes
            .saturating_sub(at_bytes)
            .min(part.size_bytes);
        at_bytes = at_bytes.saturating_add(part.size_bytes);
        if part.address == target || from_bytes >= to_bytes {
            continue;
        }
        let at = |start: PhysAddr| start.checked_add(from_bytes).unwrap_or(start);
        copies.push(moves::MemoryCopy {
            target: at(target),
            source: at(part.address),
            size_bytes: to_bytes - from_bytes,
        });
    }
    copies
}

/// Checks that there is memory for all `content_bytes`, and room at the target for it and for
/// whatever else is cleaned. The layout was stored since it was chosen: nothing in it is believed.
fn check_content(
    place: &Place,
    content_bytes: u64,
    clean_size_bytes: u64,
) -> Result<(), StageError> {
    for part in &place.parts {
        PhysRange::from_size(part.address, part.size_bytes)?;
    }
    let held_bytes = if place.parts.is_empty() {
        // The first kernel brings it to its place.
        place.target.size_bytes()
    } else {
        place.held_bytes()
    };
    for (size_bytes, most_bytes) in [
        (content_bytes, held_bytes),
        (content_bytes, place.target.size_bytes()),
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

/// The sizes of blocks, bytes, the smaller first (Arm ARM DDI 0487, `AArch64.BlockDescSupported`, 48-bit output
/// addresses).
const fn block_sizes_bytes(granule: Granule) -> &'static [u64] {
    match granule {
        Granule::K4 => &[2 << 20, 1 << 30],
        Granule::K16 => &[32 << 20],
        Granule::K64 => &[512 << 20],
    }
}

/// Adds to `sources` the whole of every block that they touch, where all of it is `mappable` and none of it
/// is `taken` for something else.
fn widen(sources: &mut PhysRanges, block_bytes: u64, mappable: &PhysRanges, taken: &PhysRanges) {
    let mut blocks = Vec::new();
    for source in sources.iter() {
        let Some(around) = source.align_outward(block_bytes) else {
            continue;
        };
        let mut start = around.start();
        while let Ok(block) = PhysRange::from_size(start, block_bytes)
            && block.end() <= around.end()
        {
            if mappable.contains_range(block) && !taken.overlaps(block) {
                blocks.push(block);
            }
            start = block.end();
        }
    }
    sources.extend(blocks);
}

/// Everything that is mapped: what is touched, or, with the sizes of `blocks`, whole blocks of memory where
/// that does no harm.
fn mappings(
    input: &StageInput<'_>,
    moves: &[moves::MemoryCopy],
    blocks: &[u64],
) -> Result<Vec<Mapping>, StageError> {
    let layout = input.layout;
    let units = |start, size_bytes| {
        let range = PhysRange::from_size(start, size_bytes)?;
        Ok::<_, StageError>(range.align_outward(layout.unit_bytes).unwrap_or(range))
    };
    let mut writable = PhysRanges::from(layout.device_tree.target);
    let mut sources = PhysRanges::new();
    for copy in moves {
        writable.insert(units(copy.target, copy.size_bytes)?);
        sources.insert(units(copy.source, copy.size_bytes)?);
    }
    let mut readable: PhysRanges = layout.places().map(|place| place.target).collect();
    if let Some((range, _)) = &input.core_header {
        readable.insert(*range);
    }

    let mut devices = PhysRanges::new();
    let uart = input
        .uart
        .map(|uart| PhysRange::from_size(PhysAddr::new(uart.base()), 0x100));
    let record = input
        .record
        .map(|place| PhysRange::from_size(PhysAddr::new(place.start), place.size_bytes));
    for range in uart
        .into_iter()
        .chain(record)
        .chain(input.redistributors.iter().map(|device| Ok(device.range)))
    {
        let range = range?;
        devices.insert(range.align_outward(input.granule_bytes).unwrap_or(range));
    }

    if !blocks.is_empty() {
        for place in layout.places().filter(|place| !place.is_in_place()) {
            writable.insert(place.target);
        }
        let taken = writable.union(&layout.stage.into()).union(&devices);
        for &block_bytes in blocks {
            widen(&mut sources, block_bytes, input.mappable, &taken);
        }
    }
    readable.extend(sources);
    let readable = readable.difference(&writable);

    let memory = writable.union(&readable).union(&layout.stage.into());
    for &device in &devices {
        if let Some(&memory) = memory.within(device).iter().next() {
            return Err(StageError::DeviceInMemory { device, memory });
        }
    }
    let all = |ranges: &PhysRanges, memory, access| -> Vec<Mapping> {
        ranges
            .iter()
            .map(|range| Mapping::identity(*range, memory, access))
            .collect()
    };
    let mut mappings = all(&writable, MemoryType::Normal, Access::ReadWrite);
    mappings.extend(all(&readable, MemoryType::Normal, Access::ReadOnly));
    mappings.extend(all(&devices, MemoryType::Device, Access::ReadWrite));
    let stage = layout.stage;
    let at = |bytes: u64| stage.start().checked_add(bytes).unwrap_or(stage.end());
    for (from, to, access) in [
        (stage.start(), at(STACK_OFFSET_BYTES), Access::ReadExecute),
        (
            at(STACK_OFFSET_BYTES),
            at(HAND_OFF_OFFSET_BYTES),
            Access::ReadWrite,
        ),
        (at(HAND_OFF_OFFSET_BYTES), stage.end(), Access::ReadOnly),
    ] {
        let range = PhysRange::new(from, to)?;
        mappings.push(Mapping::identity(range, MemoryType::Normal, access));
    }
    Ok(mappings)
}

/// What is mapped, with the bytes of both sets of tables for it: the first way whose tables have at most
/// `most_bytes`, or else the last.
fn mappings_that_fit(
    input: &StageInput<'_>,
    geometry: Geometry,
    moves: &[moves::MemoryCopy],
    most_bytes: u64,
) -> Result<(Vec<Mapping>, u64), StageError> {
    let granule = geometry.granule();
    let sizes_bytes = block_sizes_bytes(granule);
    for count in 0..sizes_bytes.len() {
        let blocks = sizes_bytes.get(..count).unwrap_or_default();
        let mappings = mappings(input, moves, blocks)?;
        // More tables than there may be are no reason to stop: larger blocks need fewer.
        let tables = match table_count(geometry, &mappings) {
            Err(kleap_pagetable::Error::TooManyTables) => continue,
            tables => tables?,
        };
        let bytes = REGIMES * tables * granule.size_bytes();
        if bytes <= most_bytes {
            return Ok((mappings, bytes));
        }
    }
    let mappings = mappings(input, moves, sizes_bytes)?;
    let tables = table_count(geometry, &mappings)?;
    Ok((mappings, REGIMES * tables * granule.size_bytes()))
}

/// Builds the stage.
///
/// # Errors
/// [`StageError`]; nothing of it depends on the machine's state, only on the input.
pub fn prepare(input: &StageInput<'_>) -> Result<Stage, StageError> {
    let layout = input.layout;
    let room_bytes = layout.stage.size_bytes();
    let granule = Granule::from_page_size_bytes(input.granule_bytes)
        .ok_or(StageError::Granule(input.granule_bytes))?;
    let unit_bytes = layout.unit_bytes;
    if !unit_bytes.is_power_of_two()
        || !(UNIT_MIN_BYTES..=BASE_ALIGNMENT_BYTES).contains(&unit_bytes)
    {
        return Err(StageError::Unit(unit_bytes));
    }
    let geometry = Geometry::new(granule, VA_BITS, OutputAddressSize::Bits48)?;
    let start = layout.stage.start();
    let mut program = image::program_at(start.as_u64())?;
    // It is read in pairs of words.
    program.resize(
        program.len().next_multiple_of(abi::BLOCK_ALIGNMENT_BYTES),
        0,
    );

    let mut contents = vec![(PieceKind::Image, &layout.image, &input.image)];
    match (&layout.initrd, &input.initrd) {
        (Some(place), Some(content)) => contents.push((PieceKind::Initrd, place, content)),
        (None, None) => {}
        _ => return Err(StageError::Initrd),
    }
    contents.push((
        PieceKind::DeviceTree,
        &layout.device_tree,
        &input.device_tree,
    ));

    check_timeline(input)?;
    let (mut pieces, mut copied, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for &(kind, place, content) in &contents {
        let clean_size_bytes = match kind {
            // BSS and first tables included: the next kernel writes there with the MMU off.
            PieceKind::Image => input.image_size_bytes,
            _ => content.size_bytes,
        };
        check_content(place, content.size_bytes, clean_size_bytes)?;
        copied.extend(copies(place, content.size_bytes));
        digests.extend(&content.digests.words);
        pieces.push(Piece {
            kind,
            start: place.start().as_u64(),
            size_bytes: content.size_bytes,
            algorithm: content.digests.algorithm,
            clean_size_bytes,
        });
    }
    if let Some((range, content)) = &input.core_header {
        if content.size_bytes > range.size_bytes() {
            return Err(StageError::Content {
                size_bytes: content.size_bytes,
                place: *range,
            });
        }
        digests.extend(&content.digests.words);
        pieces.push(Piece {
            kind: PieceKind::CoreHeader,
            start: range.start().as_u64(),
            size_bytes: content.size_bytes,
            algorithm: content.digests.algorithm,
            clean_size_bytes: content.size_bytes,
        });
    }
    let piece_bytes: u64 = pieces.iter().map(|piece| piece.size_bytes).sum();
    let copied_bytes: u64 = copied.iter().map(|copy| copy.size_bytes).sum();
    let copies = moves::order(&copied, layout.spare, layout.unit_bytes)?;
    if copies.len() > MOVES_MAX {
        return Err(StageError::TooManyMoves(copies.len()));
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

    // The block's size depends on counts alone, and two more pieces (tables, program) are certain. How many
    // digests the tables will have is not, so there is room for the most.
    let block_bytes = ((abi::HEADER_WORDS
        + digests.len()
        + OWN_DIGESTS_MAX
        + (pieces.len() + 2) * abi::PIECE_WORDS
        + copies.len() * abi::MOVE_WORDS
        + regions.len() * abi::REDISTRIBUTORS_WORDS)
        * 8)
    .next_multiple_of(abi::BLOCK_ALIGNMENT_BYTES) as u64;
    let tables_offset_bytes = align_up(HAND_OFF_OFFSET_BYTES + block_bytes, STAGE_ALIGNMENT_BYTES);
    let base =
        start
            .checked_add(tables_offset_bytes)
            .ok_or(kleap_memmap::AddressError::Overflow {
                start: start.as_u64(),
                size_bytes: tables_offset_bytes,
            })?;
    let most_bytes = room_bytes.saturating_sub(tables_offset_bytes);
    let (mappings, tables_bytes) = mappings_that_fit(input, geometry, &copies, most_bytes)?;
    let stage_bytes = tables_offset_bytes + tables_bytes;
    if stage_bytes > room_bytes || block_bytes > abi::HAND_OFF_MAX_BYTES {
        return Err(StageError::TooLarge {
            stage_bytes,
            room_bytes,
        });
    }
    let two = build(geometry, Regime::TwoPrivileges, &mappings, base)?;
    let one = build(geometry, Regime::OnePrivilege, &mappings, two.range().end())?;
    let table_bytes: Vec<u8> = [two.bytes(), one.bytes()].concat();

    for (kind, start, bytes) in [
        (PieceKind::Tables, two.root(), &table_bytes),
        (PieceKind::Program, start, &program),
    ] {
        pieces.push(Piece {
            kind,
            start: start.as_u64(),
            size_bytes: bytes.len() as u64,
            algorithm: Some(Algorithm::Crc32c),
            clean_size_bytes: 0,
        });
        digests.extend(Digests::of(Algorithm::Crc32c, bytes).words);
    }
    let header = header(input, stage_bytes, &program, &two, &one);
    let moves: Vec<Move> = copies
        .iter()
        .map(|copy| Move {
            target: copy.target.as_u64(),
            source: copy.source.as_u64(),
            size_bytes: copy.size_bytes,
        })
        .collect();
    let block = abi::encode(&header, &pieces, &digests, &moves, &regions)?;
    // As the relocator will: what it refuses is refused here, while the first kernel still runs.
    HandOff::decode(&block)?;

    let mut bytes = program;
    let mut append = |at: u64, part: &[u8]| {
        // Every offset was checked against the stage's room.
        bytes.resize(usize::try_from(at).unwrap_or(usize::MAX), 0);
        bytes.extend_from_slice(part);
    };
    append(HAND_OFF_OFFSET_BYTES, &block);
    append(tables_offset_bytes, &table_bytes);
    let summary = Summary {
        moves: moves.len() as u64,
        moved_bytes: moves.iter().map(|copy| copy.size_bytes).sum(),
        in_place_bytes: piece_bytes - copied_bytes,
        verified_bytes: pieces
            .iter()
            .filter(|piece| piece.algorithm.is_some())
            .map(|piece| piece.size_bytes)
            .sum(),
        tables: two.table_count(),
        tables_bytes,
        stage_bytes,
    };
    Ok(Stage {
        start,
        bytes,
        summary,
    })
}

fn header(
    input: &StageInput<'_>,
    stage_size_bytes: u64,
    program: &[u8],
    two: &Tables,
    one: &Tables,
) -> Header {
    let layout = input.layout;
    let device_tree = layout.device_tree.start().as_u64();
    Header {
        stage: layout.stage.start().as_u64(),
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
        exec_requested: 0,
        exec_prepared: 0,
        uart: input.uart,
        psci: input.psci,
        lpis: input.lpis,
        kernel_page_size_bytes: input.kernel_page_size_bytes.unwrap_or(0),
        tables_two_privileges: two.table_count(),
        tables_one_privilege: one.table_count(),
        table_size_bytes: two.geometry().granule().size_bytes(),
        program_size_bytes: program.len() as u64,
        program_crc32c: crc32c::update(0, program),
        tables_two_privileges_crc32c: crc32c::update(0, two.bytes()),
        tables_one_privilege_crc32c: crc32c::update(0, one.bytes()),
        portable: false,
        verbose: input.verbose,
        on_failure: input.on_failure,
        record: input.record,
    }
}

#[cfg(test)]
mod tests;
