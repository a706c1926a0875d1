//! The hand-off: what the command tells the relocator.
//!
//! # The stage
//!
//! One physically contiguous piece of memory, [`STAGE_ALIGNMENT_BYTES`]-aligned, given to
//! `kexec_load(2)` as a segment (the only one, but with the strategy `kernel`), so that the first kernel
//! itself cleans it to the point of coherency: it is used before the MMU is on.
//!
//! ```text
//! offset    what                             mapped
//! 0         the program (text, constants)    read, execute
//! 64 KiB    stack                            read, write
//! 128 KiB   the hand-off, then the tables    read
//! ```
//!
//! # The hand-off block
//!
//! Little-endian 64-bit words, nothing else: a header of [`HEADER_WORDS`] words at the indices in
//! [`word`], then the pieces, their digests, the moves and the redistributor regions. Words were chosen over a
//! `repr(C)` structure because the assembly, the bare program, the command and the fuzzer must all
//! agree on the layout, and with words there is none to disagree about; decoding needs no `unsafe`.
//!
//! A block is a multiple of [`BLOCK_ALIGNMENT_BYTES`] long. Its CRC32C ([`word::CRC32C`]) covers all of it,
//! that word read as zero.

use crate::crc32c;
use crate::digest::{Algorithm, CHUNKS_MAX, Digest, chunk_count, chunk_size_bytes};
use crate::lpi::REDISTRIBUTOR_BYTES;
use crate::timeline::SIZE_BYTES as TIMELINE_BYTES;

/// Alignment of the stage: the largest granule, so that every part can have its own permissions
/// whatever the granule.
pub const STAGE_ALIGNMENT_BYTES: u64 = 64 * 1024;
/// Most bytes of program, constants included.
pub const PROGRAM_MAX_BYTES: u64 = 64 * 1024;
/// Offset of the stack in the stage.
pub const STACK_OFFSET_BYTES: u64 = PROGRAM_MAX_BYTES;
/// Size of the stack.
pub const STACK_SIZE_BYTES: u64 = 64 * 1024;
/// Offset of the hand-off block in the stage.
pub const HAND_OFF_OFFSET_BYTES: u64 = STACK_OFFSET_BYTES + STACK_SIZE_BYTES;
/// Most bytes of hand-off block.
pub const HAND_OFF_MAX_BYTES: u64 = 1024 * 1024;

/// First word of the block: `KLEAPHO1` in ASCII, first letter in the lowest byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KLEAPHO1");

/// Alignment of the block's size, and of the program's: both are read in pairs of words before the MMU is on.
pub const BLOCK_ALIGNMENT_BYTES: usize = 16;

/// Most pieces in a hand-off.
pub const PIECES_MAX: usize = 16;
/// Most words of digests in a hand-off.
pub const DIGEST_WORDS_MAX: usize = PIECES_MAX * CHUNKS_MAX * 4;
/// Most moves in a hand-off.
pub const MOVES_MAX: usize = 32 * 1024;
/// Most redistributor regions in a hand-off: on some machines with ACPI every CPU has its own.
pub const REDISTRIBUTORS_MAX: usize = 4096;

/// Most redistributors that all regions together may have room for: four times the CPUs that Linux can have.
/// The walk ends with the last one that is there, but only if that one says so.
pub const REDISTRIBUTOR_FRAMES_MAX: u64 = 16 * 1024;
/// What the stride of a region is a multiple of: the size of a frame.
pub const FRAME_BYTES: u64 = 64 * 1024;
/// Most bytes of a device tree (booting.rst).
pub const DEVICE_TREE_MAX_BYTES: u64 = 2 << 20;

/// Words of a [`Piece`].
pub const PIECE_WORDS: usize = 5;
/// Words of a [`Move`].
pub const MOVE_WORDS: usize = 3;
/// Words of a [`Redistributors`].
pub const REDISTRIBUTORS_WORDS: usize = 3;

/// Index of each header word. Addresses are physical, in bytes.
pub mod word {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// Size of the whole block, bytes.
    pub const SIZE_BYTES: usize = 1;
    /// CRC32C of the whole block, this word taken as zero.
    pub const CRC32C: usize = 2;
    /// Address of the stage.
    pub const STAGE: usize = 3;
    /// Address after the stack; the stack pointer starts here.
    pub const STACK_END: usize = 4;
    /// `MAIR_ELx`.
    pub const MAIR: usize = 5;
    /// `TCR_EL1` format, for EL1 and for EL2 with E2H; IPS is filled in by the relocator.
    pub const TCR_TWO_PRIVILEGES: usize = 6;
    /// `TTBR0_ELx` for EL1 and for EL2 with E2H.
    pub const TTBR_TWO_PRIVILEGES: usize = 7;
    /// `TCR_EL2` format, for EL2 without E2H; PS is filled in by the relocator.
    pub const TCR_ONE_PRIVILEGE: usize = 8;
    /// `TTBR0_EL2` for EL2 without E2H.
    pub const TTBR_ONE_PRIVILEGE: usize = 9;
    /// Most that IPS or PS may be: 5 (48 bits) or 6 (52 bits); the CPU's own limit goes before.
    pub const PHYSICAL_SIZE_MAX: usize = 10;
    /// Entry of the next kernel.
    pub const KERNEL_ENTRY: usize = 11;
    /// Device tree for the next kernel.
    pub const DEVICE_TREE: usize = 12;
    /// Where the timeline is to be written, or 0.
    pub const TIMELINE: usize = 13;
    /// `CNTVCT_EL0` when `exec` was asked for.
    pub const EXEC_REQUESTED: usize = 14;
    /// UART: 0 none, 1 PL011, 2 8250 family.
    pub const UART_KIND: usize = 15;
    /// UART: address of its registers.
    pub const UART_BASE: usize = 16;
    /// UART, 8250 family: log2 of the distance between registers, bytes.
    pub const UART_REG_SHIFT: usize = 17;
    /// UART, 8250 family: width of an access, 1 or 4 bytes.
    pub const UART_WIDTH_BYTES: usize = 18;
    /// PSCI: 0 none, 1 SMC, 2 HVC. At EL2 it is always SMC.
    pub const PSCI_CONDUIT: usize = 19;
    /// Page size the next kernel was built for, bytes, or 0 if its header does not say.
    pub const KERNEL_PAGE_SIZE_BYTES: usize = 20;
    /// Tables of the two-privileges set, count.
    pub const TABLES_TWO_PRIVILEGES: usize = 21;
    /// Tables of the one-privilege set, count.
    pub const TABLES_ONE_PRIVILEGE: usize = 22;
    /// Size of a table, bytes.
    pub const TABLE_SIZE_BYTES: usize = 23;
    /// Pieces, count.
    pub const PIECES: usize = 24;
    /// Moves, count.
    pub const MOVES: usize = 25;
    /// Redistributor regions, count.
    pub const REDISTRIBUTORS: usize = 26;
    /// Size of the stage, bytes.
    pub const STAGE_SIZE_BYTES: usize = 27;
    /// `CNTVCT_EL0` when `exec` had checked everything and gave the stage to the kernel.
    pub const EXEC_PREPARED: usize = 28;
    /// LPIs: 0 to be turned off, 1 to be left on.
    pub const LPIS: usize = 29;
    /// Size of the program, bytes.
    pub const PROGRAM_SIZE_BYTES: usize = 32;
    /// CRC32C of the program.
    pub const PROGRAM_CRC32C: usize = 33;
    /// CRC32C of the two-privileges set of tables.
    pub const TABLES_TWO_PRIVILEGES_CRC32C: usize = 34;
    /// CRC32C of the one-privilege set of tables.
    pub const TABLES_ONE_PRIVILEGE_CRC32C: usize = 35;
    /// 1: no instruction is to be used that some CPUs do not have, for tests and measurements; else 0.
    pub const PORTABLE: usize = 36;
    /// Words of digests, count.
    pub const DIGEST_WORDS: usize = 37;
    /// Whether a line is written for every phase: 0 no, 1 yes.
    pub const VERBOSE: usize = 48;
    /// What ends a hand-over that failed: 0 reset, 1 power off, 2 halt.
    pub const ON_FAILURE: usize = 49;
    /// Where the failure record is written, or 0: see [`super::RecordPlace`].
    pub const RECORD: usize = 50;
    /// Size of that place, bytes.
    pub const RECORD_SIZE_BYTES: usize = 51;
}

/// Words of the header.
pub const HEADER_WORDS: usize = 64;

/// What a [`Piece`] is; it names the piece in the line that is printed when its digest is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// The kernel Image.
    Image,
    /// The initial RAM disk.
    Initrd,
    /// The device tree.
    DeviceTree,
    /// The translation tables.
    Tables,
    /// The relocator itself.
    Program,
    /// What describes the memory of a kernel that has crashed to the one that saves it: an ELF core file's
    /// headers (Documentation/admin-guide/kdump/kdump.rst).
    CoreHeader,
}

impl PieceKind {
    /// The number that stands for it in the hand-off.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Image => 1,
            Self::Initrd => 2,
            Self::DeviceTree => 3,
            Self::Tables => 4,
            Self::Program => 5,
            Self::CoreHeader => 6,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            1 => Some(Self::Image),
            2 => Some(Self::Initrd),
            3 => Some(Self::DeviceTree),
            4 => Some(Self::Tables),
            5 => Some(Self::Program),
            6 => Some(Self::CoreHeader),
            _ => None,
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "Image",
            Self::Initrd => "initrd",
            Self::DeviceTree => "device tree",
            Self::Tables => "translation tables",
            Self::Program => "relocator",
            Self::CoreHeader => "ELF core header",
        }
    }
}

/// Bytes that the next kernel (or the relocator) will use, in their final place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub kind: PieceKind,
    /// First byte, physical address.
    pub start: u64,
    /// Bytes that are verified.
    pub size_bytes: u64,
    /// How they are verified; `None` if not at all.
    pub algorithm: Option<Algorithm>,
    /// Bytes from `start` that are cleaned (and invalidated) to the point of coherency. For the Image
    /// that is its `image_size`, BSS included: the next kernel writes there with the MMU off.
    pub clean_size_bytes: u64,
}

/// A part of a piece that has a digest of its own ([`crate::digest`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Of which piece.
    pub kind: PieceKind,
    /// First byte, physical address.
    pub start: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// How it is verified.
    pub algorithm: Algorithm,
    /// What it must have; `None` is no digest of that algorithm, and in no block that was decoded.
    pub expected: Option<Digest>,
}

/// Words that the digests of a piece take.
fn digest_words(piece: &Piece) -> u64 {
    piece.algorithm.map_or(0, |algorithm| {
        (chunk_count(piece.size_bytes) * algorithm.digest_words()) as u64
    })
}

/// One copy. Source and target may overlap, as in `memmove`; neither touches the stage.
///
/// Moves are made in the order of the block, each reading what the earlier ones have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where the bytes go, physical address.
    pub target: u64,
    /// Where the bytes are, physical address.
    pub source: u64,
    /// How many.
    pub size_bytes: u64,
}

/// A region of GICv3 redistributor frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redistributors {
    /// First byte, physical address.
    pub start: u64,
    /// Size of the region, bytes.
    pub size_bytes: u64,
    /// Distance between frames, bytes, or 0 for the architecture's own.
    pub stride_bytes: u64,
}

/// The console UART, already set up by the first kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uart {
    /// Arm PL011 or SBSA UART.
    Pl011 {
        /// Physical address of its registers.
        base: u64,
    },
    /// 8250 family.
    Ns16550 {
        /// Physical address of its first register.
        base: u64,
        /// log2 of the distance between registers, bytes.
        reg_shift: u64,
        /// Width of an access: 1 or 4 bytes.
        width_bytes: u64,
    },
}

impl Uart {
    /// What kind it is, for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pl011 { .. } => "PL011",
            Self::Ns16550 { .. } => "8250",
        }
    }

    /// Physical address of the registers.
    #[must_use]
    pub const fn base(self) -> u64 {
        match self {
            Self::Pl011 { base } | Self::Ns16550 { base, .. } => base,
        }
    }
}

/// How PSCI is called from EL1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC #0`.
    Smc,
    /// `HVC #0`.
    Hvc,
}

/// What becomes of the machine when the hand-over cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// PSCI `SYSTEM_RESET`, and `SYSTEM_OFF` where that returns.
    #[default]
    Reset,
    /// PSCI `SYSTEM_OFF`, and `SYSTEM_RESET` where that returns.
    Off,
    /// Nothing more: the CPU waits, for somebody who wants to look at it.
    Halt,
}

impl OnFailure {
    /// The number that stands for it in the hand-off.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Reset => 0,
            Self::Off => 1,
            Self::Halt => 2,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Reset),
            1 => Some(Self::Off),
            2 => Some(Self::Halt),
            _ => None,
        }
    }

    /// What the failure line ends with.
    #[must_use]
    pub const fn doing(self) -> &'static str {
        match self {
            Self::Reset => "resetting",
            Self::Off => "powering off",
            Self::Halt => "halting",
        }
    }
}

/// Memory that keeps its contents over a reset, for the failure record: one zone of the next kernel's
/// `ramoops`. Mapped as Device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPlace {
    /// First byte, physical address, a multiple of 8.
    pub start: u64,
    /// Size of the zone, bytes.
    pub size_bytes: u64,
}

/// What is to become of LPIs that the first kernel has enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lpis {
    /// They are disabled. Where that has no effect, they are treated as by [`Lpis::LeaveOn`].
    TurnOff,
    /// They stay enabled, and their tables are reserved in the next device tree.
    LeaveOn,
}

/// The header of a hand-off, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// See [`word::STAGE`].
    pub stage: u64,
    /// See [`word::STAGE_SIZE_BYTES`].
    pub stage_size_bytes: u64,
    /// See [`word::MAIR`].
    pub mair: u64,
    /// See [`word::TCR_TWO_PRIVILEGES`].
    pub tcr_two_privileges: u64,
    /// See [`word::TTBR_TWO_PRIVILEGES`].
    pub ttbr_two_privileges: u64,
    /// See [`word::TCR_ONE_PRIVILEGE`].
    pub tcr_one_privilege: u64,
    /// See [`word::TTBR_ONE_PRIVILEGE`].
    pub ttbr_one_privilege: u64,
    /// See [`word::PHYSICAL_SIZE_MAX`].
    pub physical_size_max: u64,
    /// See [`word::KERNEL_ENTRY`].
    pub kernel_entry: u64,
    /// See [`word::DEVICE_TREE`].
    pub device_tree: u64,
    /// See [`word::TIMELINE`].
    pub timeline: Option<u64>,
    /// See [`word::EXEC_REQUESTED`].
    pub exec_requested: u64,
    /// See [`word::EXEC_PREPARED`].
    pub exec_prepared: u64,
    /// The console.
    pub uart: Option<Uart>,
    /// How the machine is reset.
    pub psci: Option<Conduit>,
    /// See [`word::LPIS`].
    pub lpis: Lpis,
    /// See [`word::KERNEL_PAGE_SIZE_BYTES`].
    pub kernel_page_size_bytes: u64,
    /// See [`word::TABLES_TWO_PRIVILEGES`].
    pub tables_two_privileges: u64,
    /// See [`word::TABLES_ONE_PRIVILEGE`].
    pub tables_one_privilege: u64,
    /// See [`word::TABLE_SIZE_BYTES`].
    pub table_size_bytes: u64,
    /// See [`word::PROGRAM_SIZE_BYTES`].
    pub program_size_bytes: u64,
    /// See [`word::PROGRAM_CRC32C`].
    pub program_crc32c: u32,
    /// See [`word::TABLES_TWO_PRIVILEGES_CRC32C`].
    pub tables_two_privileges_crc32c: u32,
    /// See [`word::TABLES_ONE_PRIVILEGE_CRC32C`].
    pub tables_one_privilege_crc32c: u32,
    /// See [`word::PORTABLE`].
    pub portable: bool,
    /// See [`word::VERBOSE`].
    pub verbose: bool,
    /// See [`word::ON_FAILURE`].
    pub on_failure: OnFailure,
    /// Where the failure record goes.
    pub record: Option<RecordPlace>,
}

/// Why a hand-off block cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(thiserror::Error))]
#[cfg_attr(feature = "host", error("hand-off block: {} ({value:#x})", self.what()))]
pub struct HandOffError {
    /// Which rule it breaks.
    pub rule: Rule,
    /// The offending value.
    pub value: u64,
}

/// The rules of a hand-off block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The first word is the magic number.
    Magic,
    /// The size is the header's plus the arrays', and within what is there.
    Size,
    /// The CRC32C is right.
    Digest,
    /// There is a digest for every chunk of every piece that is verified, and no more.
    Digests,
    /// A count is within its limit.
    Count,
    /// An enumerated word has a known value.
    Code,
    /// A range does not run over the end of the address space.
    Range,
    /// The stage is where the block says it is.
    Stage,
    /// The next kernel's entry is the Image's first byte.
    Entry,
    /// The next kernel's device tree is the one that is verified.
    DeviceTree,
    /// The timeline is inside the device tree.
    Timeline,
    /// The stride of a region of redistributors is 0 or a redistributor's size or more, in whole frames.
    Stride,
}

impl HandOffError {
    /// The rule in words.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self.rule {
            Rule::Magic => "bad magic number",
            Rule::Size => "bad size",
            Rule::Digest => "bad digest",
            Rule::Digests => "not one digest for each chunk",
            Rule::Count => "count over its limit",
            Rule::Code => "unknown code",
            Rule::Range => "range over the end of the address space",
            Rule::Stage => "not where it says it is",
            Rule::Entry => "entry is not the Image's start",
            Rule::DeviceTree => "device tree is not the verified one",
            Rule::Timeline => "timeline outside the device tree",
            Rule::Stride => "impossible stride of redistributors",
        }
    }
}

const fn refuse<T>(rule: Rule, value: u64) -> Result<T, HandOffError> {
    Err(HandOffError { rule, value })
}

/// A hand-off block that was checked as a whole; see [`HandOff::decode`].
#[derive(Debug, Clone, Copy)]
pub struct HandOff<'a> {
    /// The header.
    pub header: Header,
    pieces: &'a [u8],
    digests: &'a [u8],
    moves: &'a [u8],
    redistributors: &'a [u8],
}

fn read_word(bytes: &[u8], index: usize) -> u64 {
    let Some(slot) = bytes
        .get(index * 8..)
        .and_then(|rest| rest.first_chunk::<8>())
    else {
        return 0;
    };
    u64::from_le_bytes(*slot)
}

/// CRC32C of a block, its own digest word taken as zero. `block` is at least a header long.
fn block_crc32c(block: &[u8]) -> u32 {
    let digest_at = word::CRC32C * 8;
    let (before, rest) = block.split_at(digest_at);
    let (_, after) = rest.split_at(8);
    crc32c::update(crc32c::update(crc32c::update(0, before), &[0; 8]), after)
}

impl<'a> HandOff<'a> {
    /// Reads a block. `bytes` may be longer than the block, as the memory it lies in is.
    ///
    /// Everything that the relocator will rely on is checked here, once, before anything is touched:
    /// the command made the block, but since then it has been through a reboot.
    ///
    /// # Errors
    /// [`HandOffError`] with the first rule that is broken.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, HandOffError> {
        if bytes.len() < HEADER_WORDS * 8 {
            return refuse(Rule::Size, bytes.len() as u64);
        }
        let header_word = |index| read_word(bytes, index);
        if header_word(word::MAGIC) != MAGIC {
            return refuse(Rule::Magic, header_word(word::MAGIC));
        }
        let count = |index, max: usize| match usize::try_from(header_word(index)) {
            Ok(count) if count <= max => Ok(count),
            _ => refuse(Rule::Count, header_word(index)),
        };
        let piece_bytes = count(word::PIECES, PIECES_MAX)? * PIECE_WORDS * 8;
        let digest_bytes = count(word::DIGEST_WORDS, DIGEST_WORDS_MAX)? * 8;
        let move_bytes = count(word::MOVES, MOVES_MAX)? * MOVE_WORDS * 8;
        let redistributor_bytes =
            count(word::REDISTRIBUTORS, REDISTRIBUTORS_MAX)? * REDISTRIBUTORS_WORDS * 8;
        let array_bytes = piece_bytes + digest_bytes + move_bytes + redistributor_bytes;
        let size_bytes = (HEADER_WORDS * 8 + array_bytes).next_multiple_of(BLOCK_ALIGNMENT_BYTES);
        if header_word(word::SIZE_BYTES) != size_bytes as u64
            || size_bytes as u64 > HAND_OFF_MAX_BYTES
        {
            return refuse(Rule::Size, header_word(word::SIZE_BYTES));
        }
        let Some(block) = bytes.get(..size_bytes) else {
            return refuse(Rule::Size, size_bytes as u64);
        };
        if u64::from(block_crc32c(block)) != header_word(word::CRC32C) {
            return refuse(Rule::Digest, u64::from(block_crc32c(block)));
        }
        let (_, arrays) = block.split_at(HEADER_WORDS * 8);
        let (pieces, rest) = arrays.split_at(piece_bytes);
        let (digests, rest) = rest.split_at(digest_bytes);
        let (moves, rest) = rest.split_at(move_bytes);
        let (redistributors, _) = rest.split_at(redistributor_bytes);
        let hand_off = Self {
            header: decode_header(&header_word)?,
            pieces,
            digests,
            moves,
            redistributors,
        };
        hand_off.check_arrays()?;
        hand_off.check_next_kernel()?;
        Ok(hand_off)
    }

    /// The next kernel is entered where the Image that is verified starts, it gets the device tree that is
    /// verified, and nothing is written but into that: else all digests would be right, and of something else.
    /// Holds for the pieces that there are.
    fn check_next_kernel(&self) -> Result<(), HandOffError> {
        let header = &self.header;
        for piece in self.pieces() {
            match piece.kind {
                PieceKind::Image if header.kernel_entry != piece.start => {
                    return refuse(Rule::Entry, header.kernel_entry);
                }
                PieceKind::DeviceTree if header.device_tree != piece.start => {
                    return refuse(Rule::DeviceTree, header.device_tree);
                }
                PieceKind::DeviceTree => {
                    let Some(timeline) = header.timeline else {
                        continue;
                    };
                    let is_inside = timeline >= piece.start
                        && timeline
                            .checked_add(TIMELINE_BYTES as u64)
                            // `check_arrays` has seen that it does not overflow.
                            .is_some_and(|end| end <= piece.start.wrapping_add(piece.size_bytes));
                    if !is_inside {
                        return refuse(Rule::Timeline, timeline);
                    }
                }
                _ => {}
            }
        }
        // Both are written to, or near, also where no piece is the tree: nothing may run over the end of the
        // address space.
        if header
            .device_tree
            .checked_add(DEVICE_TREE_MAX_BYTES)
            .is_none()
        {
            return refuse(Rule::Range, header.device_tree);
        }
        match header.timeline {
            Some(start) if start.checked_add(TIMELINE_BYTES as u64).is_none() => {
                refuse(Rule::Range, start)
            }
            _ => Ok(()),
        }
    }

    fn check_arrays(&self) -> Result<(), HandOffError> {
        for index in 0..self.pieces.len() / (PIECE_WORDS * 8) {
            let at = |offset| read_word(self.pieces, index * PIECE_WORDS + offset);
            if PieceKind::from_code(at(0)).is_none() {
                return refuse(Rule::Code, at(0));
            }
            if at(1).checked_add(at(2).max(at(4))).is_none() {
                return refuse(Rule::Range, at(1));
            }
            if Algorithm::from_code(at(3)).is_none() {
                return refuse(Rule::Code, at(3));
            }
        }
        let digest_words: u64 = self.pieces().map(|piece| digest_words(&piece)).sum();
        if digest_words != (self.digests.len() / 8) as u64 {
            return refuse(Rule::Digests, digest_words);
        }
        for chunk in self.chunks() {
            if chunk.expected.is_none() {
                return refuse(Rule::Digests, chunk.start);
            }
        }
        for copy in self.moves() {
            if copy.target.checked_add(copy.size_bytes).is_none()
                || copy.source.checked_add(copy.size_bytes).is_none()
            {
                return refuse(Rule::Range, copy.target);
            }
        }
        let mut frames = 0_u64;
        for region in self.redistributors() {
            if region.start.checked_add(region.size_bytes).is_none() {
                return refuse(Rule::Range, region.start);
            }
            let stride_bytes = region.stride_bytes;
            if stride_bytes != 0
                && (stride_bytes < REDISTRIBUTOR_BYTES || !stride_bytes.is_multiple_of(FRAME_BYTES))
            {
                return refuse(Rule::Stride, stride_bytes);
            }
            frames = frames.saturating_add(region.size_bytes / REDISTRIBUTOR_BYTES);
            if frames > REDISTRIBUTOR_FRAMES_MAX {
                return refuse(Rule::Count, frames);
            }
        }
        Ok(())
    }

    /// The pieces.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = Piece> + '_ {
        let pieces = self.pieces;
        (0..pieces.len() / (PIECE_WORDS * 8)).map(move |index| {
            let at = |offset| read_word(pieces, index * PIECE_WORDS + offset);
            Piece {
                // `check_arrays` has seen every code; `Program` stands for what cannot be.
                kind: PieceKind::from_code(at(0)).unwrap_or(PieceKind::Program),
                start: at(1),
                size_bytes: at(2),
                // `check_arrays` has seen every code of these too.
                algorithm: Algorithm::from_code(at(3)).flatten(),
                clean_size_bytes: at(4),
            }
        })
    }

    /// Every chunk of every piece that is verified, in the order of the pieces.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let digests = self.digests;
        let mut index = 0;
        self.pieces()
            .filter_map(|piece| Some((piece, piece.algorithm?)))
            .flat_map(move |(piece, algorithm)| {
                let first = index;
                index += chunk_count(piece.size_bytes) * algorithm.digest_words();
                let chunk_bytes = chunk_size_bytes(piece.size_bytes);
                (0..chunk_count(piece.size_bytes)).map(move |number| {
                    let words = algorithm.digest_words();
                    let mut digest = [0; 4];
                    for (word, slot) in digest.iter_mut().take(words).enumerate() {
                        *slot = read_word(digests, first + number * words + word);
                    }
                    // At most 2^64 in all: `check_arrays` has seen it.
                    let before = number as u64 * chunk_bytes;
                    Chunk {
                        kind: piece.kind,
                        start: piece.start.wrapping_add(before),
                        size_bytes: chunk_bytes.min(piece.size_bytes - before),
                        algorithm,
                        expected: Digest::from_words(algorithm, digest),
                    }
                })
            })
    }

    /// The words of all digests.
    pub fn digest_words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let digests = self.digests;
        (0..digests.len() / 8).map(move |index| read_word(digests, index))
    }

    /// The moves, in the order in which they are to be made.
    pub fn moves(&self) -> impl ExactSizeIterator<Item = Move> + '_ {
        let moves = self.moves;
        (0..moves.len() / (MOVE_WORDS * 8)).map(move |index| {
            let at = |offset| read_word(moves, index * MOVE_WORDS + offset);
            Move {
                target: at(0),
                source: at(1),
                size_bytes: at(2),
            }
        })
    }

    /// The regions of redistributor frames.
    pub fn redistributors(&self) -> impl ExactSizeIterator<Item = Redistributors> + '_ {
        let regions = self.redistributors;
        (0..regions.len() / (REDISTRIBUTORS_WORDS * 8)).map(move |index| {
            let at = |offset| read_word(regions, index * REDISTRIBUTORS_WORDS + offset);
            Redistributors {
                start: at(0),
                size_bytes: at(1),
                stride_bytes: at(2),
            }
        })
    }
}

/// Whether a block forbids the instructions that some CPUs do not have, the rest of it unread.
#[must_use]
pub fn is_portable(block: &[u8]) -> bool {
    read_word(block, word::PORTABLE) != 0
}

/// The console that a block names, the rest of it unread: for the line that says that the block is bad.
/// It may be nonsense; who writes to it must be ready for an exception.
#[must_use]
pub fn console_of(block: &[u8]) -> Option<Uart> {
    decode_uart(&|index| read_word(block, index)).ok().flatten()
}

/// What a block says of failures, the rest of it unread; a reset where it makes no sense.
#[must_use]
pub fn on_failure_of(block: &[u8]) -> OnFailure {
    OnFailure::from_code(read_word(block, word::ON_FAILURE)).unwrap_or_default()
}

/// Where a block wants the failure record, the rest of it unread. As with [`console_of`], it may be nonsense.
#[must_use]
pub fn record_of(block: &[u8]) -> Option<RecordPlace> {
    decode_record(&|index| read_word(block, index))
        .ok()
        .flatten()
}

fn decode_record(at: &impl Fn(usize) -> u64) -> Result<Option<RecordPlace>, HandOffError> {
    let (start, size_bytes) = (at(word::RECORD), at(word::RECORD_SIZE_BYTES));
    if start == 0 {
        return Ok(None);
    }
    if !start.is_multiple_of(8) || start.checked_add(size_bytes).is_none() {
        return refuse(Rule::Range, start);
    }
    Ok(Some(RecordPlace { start, size_bytes }))
}

fn decode_uart(at: &impl Fn(usize) -> u64) -> Result<Option<Uart>, HandOffError> {
    Ok(match at(word::UART_KIND) {
        0 => None,
        1 => Some(Uart::Pl011 {
            base: at(word::UART_BASE),
        }),
        2 if at(word::UART_REG_SHIFT) <= 4 && matches!(at(word::UART_WIDTH_BYTES), 1 | 4) => {
            Some(Uart::Ns16550 {
                base: at(word::UART_BASE),
                reg_shift: at(word::UART_REG_SHIFT),
                width_bytes: at(word::UART_WIDTH_BYTES),
            })
        }
        other => return refuse(Rule::Code, other),
    })
}

fn decode_header(at: &impl Fn(usize) -> u64) -> Result<Header, HandOffError> {
    let uart = decode_uart(at)?;
    let psci = match at(word::PSCI_CONDUIT) {
        0 => None,
        1 => Some(Conduit::Smc),
        2 => Some(Conduit::Hvc),
        other => return refuse(Rule::Code, other),
    };
    let lpis = match at(word::LPIS) {
        0 => Lpis::TurnOff,
        1 => Lpis::LeaveOn,
        other => return refuse(Rule::Code, other),
    };
    let portable = match at(word::PORTABLE) {
        0 => false,
        1 => true,
        other => return refuse(Rule::Code, other),
    };
    let crc32c = |index| match u32::try_from(at(index)) {
        Ok(crc32c) => Ok(crc32c),
        Err(_) => refuse(Rule::Digest, at(index)),
    };
    let verbose = match at(word::VERBOSE) {
        0 => false,
        1 => true,
        other => return refuse(Rule::Code, other),
    };
    let Some(on_failure) = OnFailure::from_code(at(word::ON_FAILURE)) else {
        return refuse(Rule::Code, at(word::ON_FAILURE));
    };
    let stage = at(word::STAGE);
    let stage_size_bytes = at(word::STAGE_SIZE_BYTES);
    if stage.checked_add(stage_size_bytes).is_none() {
        return refuse(Rule::Range, stage);
    }
    if at(word::STACK_END) != stage.wrapping_add(HAND_OFF_OFFSET_BYTES) {
        return refuse(Rule::Stage, at(word::STACK_END));
    }
    Ok(Header {
        stage,
        stage_size_bytes,
        mair: at(word::MAIR),
        tcr_two_privileges: at(word::TCR_TWO_PRIVILEGES),
        ttbr_two_privileges: at(word::TTBR_TWO_PRIVILEGES),
        tcr_one_privilege: at(word::TCR_ONE_PRIVILEGE),
        ttbr_one_privilege: at(word::TTBR_ONE_PRIVILEGE),
        physical_size_max: at(word::PHYSICAL_SIZE_MAX),
        kernel_entry: at(word::KERNEL_ENTRY),
        device_tree: at(word::DEVICE_TREE),
        timeline: Some(at(word::TIMELINE)).filter(|&address| address != 0),
        exec_requested: at(word::EXEC_REQUESTED),
        exec_prepared: at(word::EXEC_PREPARED),
        uart,
        psci,
        lpis,
        kernel_page_size_bytes: at(word::KERNEL_PAGE_SIZE_BYTES),
        tables_two_privileges: at(word::TABLES_TWO_PRIVILEGES),
        tables_one_privilege: at(word::TABLES_ONE_PRIVILEGE),
        table_size_bytes: at(word::TABLE_SIZE_BYTES),
        program_size_bytes: at(word::PROGRAM_SIZE_BYTES),
        program_crc32c: crc32c(word::PROGRAM_CRC32C)?,
        tables_two_privileges_crc32c: crc32c(word::TABLES_TWO_PRIVILEGES_CRC32C)?,
        tables_one_privilege_crc32c: crc32c(word::TABLES_ONE_PRIVILEGE_CRC32C)?,
        portable,
        verbose,
        on_failure,
        record: decode_record(at)?,
    })
}

#[cfg(feature = "host")]
mod encode {
    use super::{
        Algorithm, BLOCK_ALIGNMENT_BYTES, DIGEST_WORDS_MAX, HAND_OFF_MAX_BYTES,
        HAND_OFF_OFFSET_BYTES, HEADER_WORDS, HandOff, HandOffError, Header, Lpis, MAGIC, MOVES_MAX,
        Move, PIECES_MAX, Piece, REDISTRIBUTORS_MAX, Redistributors, Rule, Uart, block_crc32c,
        digest_words, read_word, refuse, word,
    };

    /// Writes a hand-off block.
    ///
    /// `digests` are the words of all chunks of all pieces, in order ([`crate::digest::Digests`]).
    ///
    /// # Errors
    /// [`HandOffError`] if there is more of something than a block may hold, or not a digest for each chunk.
    pub fn encode(
        header: &Header,
        pieces: &[Piece],
        digests: &[u64],
        moves: &[Move],
        redistributors: &[Redistributors],
    ) -> Result<Vec<u8>, HandOffError> {
        for (count, max) in [
            (pieces.len(), PIECES_MAX),
            (digests.len(), DIGEST_WORDS_MAX),
            (moves.len(), MOVES_MAX),
            (redistributors.len(), REDISTRIBUTORS_MAX),
        ] {
            if count > max {
                return refuse(Rule::Count, count as u64);
            }
        }
        let needed: u64 = pieces.iter().map(digest_words).sum();
        if needed != digests.len() as u64 {
            return refuse(Rule::Digests, needed);
        }
        let mut words = vec![0_u64; HEADER_WORDS];
        for (index, value) in [
            (word::MAGIC, MAGIC),
            (word::STAGE, header.stage),
            (word::STAGE_SIZE_BYTES, header.stage_size_bytes),
            (
                word::STACK_END,
                header.stage.wrapping_add(HAND_OFF_OFFSET_BYTES),
            ),
            (word::MAIR, header.mair),
            (word::TCR_TWO_PRIVILEGES, header.tcr_two_privileges),
            (word::TTBR_TWO_PRIVILEGES, header.ttbr_two_privileges),
            (word::TCR_ONE_PRIVILEGE, header.tcr_one_privilege),
            (word::TTBR_ONE_PRIVILEGE, header.ttbr_one_privilege),
            (word::PHYSICAL_SIZE_MAX, header.physical_size_max),
            (word::KERNEL_ENTRY, header.kernel_entry),
            (word::DEVICE_TREE, header.device_tree),
            (word::TIMELINE, header.timeline.unwrap_or(0)),
            (word::EXEC_REQUESTED, header.exec_requested),
            (word::EXEC_PREPARED, header.exec_prepared),
            (
                word::PSCI_CONDUIT,
                header.psci.map_or(0, |conduit| conduit as u64 + 1),
            ),
            (word::LPIS, u64::from(header.lpis == Lpis::LeaveOn)),
            (word::KERNEL_PAGE_SIZE_BYTES, header.kernel_page_size_bytes),
            (word::TABLES_TWO_PRIVILEGES, header.tables_two_privileges),
            (word::TABLES_ONE_PRIVILEGE, header.tables_one_privilege),
            (word::TABLE_SIZE_BYTES, header.table_size_bytes),
            (word::PROGRAM_SIZE_BYTES, header.program_size_bytes),
            (word::PROGRAM_CRC32C, header.program_crc32c.into()),
            (
                word::TABLES_TWO_PRIVILEGES_CRC32C,
                header.tables_two_privileges_crc32c.into(),
            ),
            (
                word::TABLES_ONE_PRIVILEGE_CRC32C,
                header.tables_one_privilege_crc32c.into(),
            ),
            (word::PORTABLE, header.portable.into()),
            (word::VERBOSE, u64::from(header.verbose)),
            (word::ON_FAILURE, header.on_failure.code()),
            (word::RECORD, header.record.map_or(0, |record| record.start)),
            (
                word::RECORD_SIZE_BYTES,
                header.record.map_or(0, |record| record.size_bytes),
            ),
            (word::PIECES, pieces.len() as u64),
            (word::DIGEST_WORDS, digests.len() as u64),
            (word::MOVES, moves.len() as u64),
            (word::REDISTRIBUTORS, redistributors.len() as u64),
        ] {
            words[index] = value;
        }
        match header.uart {
            None => {}
            Some(Uart::Pl011 { base }) => {
                words[word::UART_KIND] = 1;
                words[word::UART_BASE] = base;
            }
            Some(Uart::Ns16550 {
                base,
                reg_shift,
                width_bytes,
            }) => {
                words[word::UART_KIND] = 2;
                words[word::UART_BASE] = base;
                words[word::UART_REG_SHIFT] = reg_shift;
                words[word::UART_WIDTH_BYTES] = width_bytes;
            }
        }
        for piece in pieces {
            words.extend([
                piece.kind.code(),
                piece.start,
                piece.size_bytes,
                Algorithm::code(piece.algorithm),
                piece.clean_size_bytes,
            ]);
        }
        words.extend(digests);
        for copy in moves {
            words.extend([copy.target, copy.source, copy.size_bytes]);
        }
        for region in redistributors {
            words.extend([region.start, region.size_bytes, region.stride_bytes]);
        }
        words.resize(words.len().next_multiple_of(BLOCK_ALIGNMENT_BYTES / 8), 0);
        let size_bytes = words.len() as u64 * 8;
        if size_bytes > HAND_OFF_MAX_BYTES {
            return refuse(Rule::Size, size_bytes);
        }
        words[word::SIZE_BYTES] = size_bytes;
        let mut block: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let digest = u64::from(block_crc32c(&block));
        block[word::CRC32C * 8..][..8].copy_from_slice(&digest.to_le_bytes());
        Ok(block)
    }

    /// Writes the two times that are known last into a block that is otherwise complete. `bytes` may be
    /// longer than the block.
    ///
    /// # Errors
    /// [`HandOffError`] if the block is not sound: then nothing is written.
    pub fn stamp(
        bytes: &mut [u8],
        exec_requested: u64,
        exec_prepared: u64,
    ) -> Result<(), HandOffError> {
        HandOff::decode(bytes)?;
        let size_bytes = usize::try_from(read_word(bytes, word::SIZE_BYTES)).unwrap_or(0);
        // As long as the header at least, and not longer than `bytes`: `decode` has seen it.
        let block = bytes.get_mut(..size_bytes).unwrap_or_default();
        let mut put = |index: usize, value: u64| {
            block[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
        };
        put(word::EXEC_REQUESTED, exec_requested);
        put(word::EXEC_PREPARED, exec_prepared);
        let digest = u64::from(block_crc32c(block));
        block[word::CRC32C * 8..][..8].copy_from_slice(&digest.to_le_bytes());
        Ok(())
    }
}

#[cfg(feature = "host")]
pub use encode::{encode, stamp};

#[cfg(all(test, feature = "host"))]
#[allow(clippy::unwrap_used, reason = "a test's helper functions too")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            stage: 0x4000_0000,
            stage_size_bytes: 0x4_0000,
            mair: 0x4ff,
            tcr_two_privileges: 1,
            ttbr_two_privileges: 2,
            tcr_one_privilege: 3,
            ttbr_one_privilege: 4,
            physical_size_max: 5,
            kernel_entry: 0x8000_0000,
            device_tree: 0x8800_0000,
            timeline: Some(0x8800_0100),
            exec_requested: 77,
            exec_prepared: 78,
            uart: Some(Uart::Ns16550 {
                base: 0x1_0000_0000,
                reg_shift: 2,
                width_bytes: 4,
            }),
            psci: Some(Conduit::Hvc),
            lpis: Lpis::LeaveOn,
            kernel_page_size_bytes: 4096,
            tables_two_privileges: 7,
            tables_one_privilege: 8,
            table_size_bytes: 4096,
            program_size_bytes: 0x6000,
            program_crc32c: 0xffff_ffff,
            tables_two_privileges_crc32c: 9,
            tables_one_privilege_crc32c: 10,
            portable: false,
            verbose: true,
            on_failure: OnFailure::Halt,
            record: Some(RecordPlace {
                start: 0x7000_0000,
                size_bytes: 0x1_0000,
            }),
        }
    }

    fn piece() -> Piece {
        Piece {
            kind: PieceKind::Initrd,
            start: 0x9000_0000,
            size_bytes: 123,
            algorithm: Some(Algorithm::Crc32c),
            clean_size_bytes: 0,
        }
    }

    fn block() -> Vec<u8> {
        let moves = [Move {
            target: 0x9000_0000,
            source: 0xa000_0000,
            size_bytes: 123,
        }];
        let regions = [Redistributors {
            start: 0x80a_0000,
            size_bytes: 0xf6_0000,
            stride_bytes: 0,
        }];
        encode(&header(), &[piece()], &[0xdead_beef], &moves, &regions).unwrap()
    }

    #[test]
    fn what_is_encoded_is_what_is_decoded() {
        let mut bytes = block();
        bytes.extend([0xaa; 64]); // the memory around it
        let hand_off = HandOff::decode(&bytes).unwrap();
        assert_eq!(hand_off.header, header());
        assert_eq!(hand_off.pieces().collect::<Vec<_>>(), [piece()]);
        assert_eq!(hand_off.moves().next().unwrap().source, 0xa000_0000);
        assert_eq!(
            hand_off.redistributors().next().unwrap().size_bytes,
            0xf6_0000
        );
    }

    /// Pieces of several chunks, of none, and of both algorithms: each chunk gets its own digest.
    #[test]
    fn chunks_follow_the_pieces_and_their_digests() {
        let with = |kind, algorithm, size_bytes| Piece {
            kind,
            start: 0x1_0000_0000,
            size_bytes,
            algorithm,
            clean_size_bytes: 0,
        };
        let pieces = [
            with(PieceKind::Image, Some(Algorithm::Sha256), (1 << 20) + 5),
            with(PieceKind::Initrd, None, 9),
            with(PieceKind::DeviceTree, Some(Algorithm::Crc32c), 2 << 20),
        ];
        let words: Vec<u64> = (1..=10).collect();
        let header = Header {
            kernel_entry: 0x1_0000_0000,
            device_tree: 0x1_0000_0000,
            timeline: None,
            ..header()
        };
        let bytes = encode(&header, &pieces, &words, &[], &[]).unwrap();
        let hand_off = HandOff::decode(&bytes).unwrap();
        assert_eq!(hand_off.digest_words().collect::<Vec<_>>(), words);
        let found: Vec<_> = hand_off
            .chunks()
            .map(|chunk| {
                let first = chunk.expected.unwrap().words()[0];
                (
                    chunk.kind,
                    chunk.start - 0x1_0000_0000,
                    chunk.size_bytes,
                    first,
                )
            })
            .collect();
        let mib = 1 << 20;
        assert_eq!(
            found,
            [
                (PieceKind::Image, 0, mib, 1),
                (PieceKind::Image, mib, 5, 5),
                (PieceKind::DeviceTree, 0, mib, 9),
                (PieceKind::DeviceTree, mib, mib, 10)
            ]
        );
        for wrong in [&words[1..], &words[..9], &[]] {
            let refused = encode(&header, &pieces, wrong, &[], &[]).unwrap_err();
            assert_eq!(refused.rule, Rule::Digests);
        }
        // A CRC of more than 32 bits.
        let wrong: Vec<u64> = words.iter().map(|word| word << 32).collect();
        let block = encode(&header, &pieces, &wrong, &[], &[]).unwrap();
        assert_eq!(HandOff::decode(&block).unwrap_err().rule, Rule::Digests);
    }

    #[test]
    fn a_stamp_changes_the_times_and_nothing_else() {
        let mut bytes = block();
        bytes.extend([0xaa; 64]);
        stamp(&mut bytes, 77, 88).unwrap();
        let expected = Header {
            exec_requested: 77,
            exec_prepared: 88,
            ..header()
        };
        assert_eq!(HandOff::decode(&bytes).unwrap().header, expected);
        assert!(bytes.ends_with(&[0xaa; 64]));
        bytes[word::KERNEL_ENTRY * 8] ^= 1;
        let damaged = bytes.clone();
        assert_eq!(stamp(&mut bytes, 1, 2).unwrap_err().rule, Rule::Digest);
        assert_eq!(bytes, damaged);
    }

    #[test]
    fn what_is_entered_is_what_is_verified() {
        let image = Piece {
            kind: PieceKind::Image,
            start: 0x8000_0000,
            size_bytes: 0x1000,
            ..piece()
        };
        let tree = Piece {
            kind: PieceKind::DeviceTree,
            start: 0x8800_0000,
            size_bytes: 0x100 + TIMELINE_BYTES as u64,
            ..piece()
        };
        let rule = |header: Header| {
            let bytes = encode(&header, &[image, tree], &[1, 2], &[], &[]).unwrap();
            HandOff::decode(&bytes)
                .map(|_| ())
                .map_err(|error| error.rule)
        };
        let good = header();
        assert_eq!(rule(good), Ok(()));
        assert_eq!(
            rule(Header {
                timeline: None,
                ..good
            }),
            Ok(())
        );
        for kernel_entry in [0, 0x8000_0004, 0x8800_0000, u64::MAX] {
            assert_eq!(
                rule(Header {
                    kernel_entry,
                    ..good
                }),
                Err(Rule::Entry)
            );
        }
        for device_tree in [0, 0x8800_0008, 0x8000_0000, u64::MAX] {
            assert_eq!(
                rule(Header {
                    device_tree,
                    ..good
                }),
                Err(Rule::DeviceTree)
            );
        }
        for timeline in [1, 0x87ff_ffff, 0x8800_0101, u64::MAX] {
            assert_eq!(
                rule(Header {
                    timeline: Some(timeline),
                    ..good
                }),
                Err(Rule::Timeline)
            );
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = block();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                HandOff::decode(&bad).is_err(),
                "bit {bit} flipped, and still accepted"
            );
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let good = block();
        for length in 0..good.len() {
            assert!(
                HandOff::decode(&good[..length]).is_err(),
                "{length} bytes accepted"
            );
        }
    }

    /// With these a walk would take years, or an address run over the end: found by fuzzing.
    #[test]
    fn what_would_not_end_is_refused() {
        let region = |size_bytes, stride_bytes| Redistributors {
            start: 0x80a_0000,
            size_bytes,
            stride_bytes,
        };
        for (regions, rule) in [
            (vec![region(0xf6_0000, 1)], Some(Rule::Stride)),
            (vec![region(0xf6_0000, 0x1_0000)], Some(Rule::Stride)),
            (vec![region(0xf6_0000, 0x2_1000)], Some(Rule::Stride)),
            (
                vec![region(0xf6_0000, 0x2_0000), region(0xf6_0000, 0x4_0000)],
                None,
            ),
            (
                vec![region(REDISTRIBUTOR_FRAMES_MAX * REDISTRIBUTOR_BYTES, 0)],
                None,
            ),
            (vec![region(u64::MAX - 0x80a_0000, 0)], Some(Rule::Count)),
            (
                vec![region(1 << 30, 0), region(1 << 30, 0), region(1 << 17, 0)],
                Some(Rule::Count),
            ),
        ] {
            let block = encode(&header(), &[], &[], &[], &regions).unwrap();
            let found = HandOff::decode(&block).err().map(|error| error.rule);
            assert_eq!(found, rule, "{regions:x?}");
        }
        for (device_tree, timeline) in [(u64::MAX - 0x1f_fffe, None), (0, Some(u64::MAX - 100))] {
            let header = Header {
                device_tree,
                timeline,
                ..header()
            };
            let block = encode(&header, &[], &[], &[], &[]).unwrap();
            assert_eq!(HandOff::decode(&block).unwrap_err().rule, Rule::Range);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = HandOff::decode(&bytes);
        }

        /// With a right digest every other rule still holds.
        #[test]
        fn no_words_make_it_panic(words in proptest::collection::vec(any::<u64>(), 64..96), counts in any::<[u8; 4]>()) {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let put = |bytes: &mut Vec<u8>, index: usize, value: u64| bytes[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
            put(&mut bytes, word::MAGIC, MAGIC);
            put(&mut bytes, word::SIZE_BYTES, words.len() as u64 * 8);
            put(&mut bytes, word::PIECES, u64::from(counts[0] % 4));
            put(&mut bytes, word::MOVES, u64::from(counts[1] % 4));
            put(&mut bytes, word::REDISTRIBUTORS, u64::from(counts[2] % 4));
            put(&mut bytes, word::DIGEST_WORDS, u64::from(counts[3] % 8));
            let digest = u64::from(block_crc32c(&bytes));
            put(&mut bytes, word::CRC32C, digest);
            if let Ok(hand_off) = HandOff::decode(&bytes) {
                prop_assert!(hand_off.chunks().count() <= 8);
                prop_assert!(hand_off.pieces().all(|piece| piece.start.checked_add(piece.size_bytes).is_some()));
            }
        }
    }
}
