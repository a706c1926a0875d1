//! What is broken, and when: chosen by a seed, from the stage of the machine that is to be broken.
//!
//! Bits are flipped where the relocator has not looked yet. What it has verified already, and what is
//! damaged between its last look and the branch, nobody can catch: a digest says what was there when it
//! was computed. So header, moves and digests are damaged before the block is decoded, program and tables
//! before the first instruction uses them, pieces before they are verified, and the stack, which has no
//! digest, where no frame is.

use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result};
use kleap_relocator::abi::{
    HAND_OFF_OFFSET_BYTES, HEADER_WORDS, MOVE_WORDS, PieceKind, STACK_OFFSET_BYTES,
    STACK_SIZE_BYTES, word,
};

use super::stage::{Stage, word_at};
use crate::random::Random;

/// Most bits of one fault.
const BITS_MAX: u64 = 8;
/// How much of the stack is in use, at most, by the relocator's few frames.
const LIVE_STACK_BYTES: u64 = 16 * 1024;
/// Moves before which a fault can be injected: each is a stop of its own.
const MOVES_STOPPED_AT: u64 = 8;
/// UARTFR.TXFF of a PL011 in [`UART_FLAGS_OFFSET`]: there is no room for a byte.
const UART_FULL: u32 = 1 << 5;
const UART_FLAGS_OFFSET: u64 = 0x18;
/// Nothing of a machine of the lab is there.
const NOWHERE: u64 = 0x7f_ffff_0000;
/// A page size that no CPU of these kinds has: not even one of the architecture's.
const NO_PAGE_SIZE: u64 = 8192;
/// A descriptor that is a table or a page (Arm ARM D8.3): its lowest bit.
const VALID: u64 = 1;

/// Where the relocator is stopped for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At its first instruction.
    First,
    /// As soon as the MMU is on, before the block is decoded.
    MmuOn,
    /// Before a move, when so many have been made.
    Move(usize),
    /// Before the first digest of a piece is computed.
    Verification,
}

impl fmt::Display for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => formatter.write_str("first instruction"),
            Self::MmuOn => formatter.write_str("MMU on"),
            Self::Move(made) => write!(formatter, "after {made} moves"),
            Self::Verification => formatter.write_str("verification"),
        }
    }
}

/// One change to a stopped machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A bit of memory, physical address.
    Flip {
        /// The byte.
        address: u64,
        /// The bit.
        bit: u8,
    },
    /// Bytes of memory, physical address.
    Write {
        /// The first.
        address: u64,
        /// All of them.
        bytes: Vec<u8>,
    },
    /// A register.
    Register {
        /// Its name.
        name: &'static str,
        /// What it becomes.
        value: u64,
    },
}

/// A fault, ready to be injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What it is.
    pub(crate) kind: Kind,
    /// When.
    pub(crate) stop: Stop,
    /// How.
    pub(crate) changes: Vec<Change>,
    /// For people.
    pub(crate) detail: String,
    /// Whether the machine's voice is broken too, so that it cannot say why it resets.
    pub(crate) may_be_silent: bool,
}

/// The kinds of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Nothing: the next kernel must be entered.
    Nothing,
    /// Bits of the Image.
    Image,
    /// Bits of the initrd.
    Initrd,
    /// Bits of the device tree.
    DeviceTree,
    /// Bits of the tables in use.
    TablesInUse,
    /// Bits of the other set.
    OtherTables,
    /// Bits of the moves.
    Moves,
    /// Bits of the pieces' words: kinds, places, digests.
    Digests,
    /// Bits of one word of the header.
    Header,
    /// Bits of the relocator's instructions.
    Code,
    /// Bits of its constants.
    Constants,
    /// Bits of its stack.
    Stack,
    /// A move to or from where there is no memory; digests right.
    MoveNowhere,
    /// A move to or from the stage; digests right.
    MoveStage,
    /// Another entry of the next kernel; digests right.
    Entry,
    /// Another address of the device tree; digests right.
    DeviceTreeAddress,
    /// A page size that the CPU has not; digests right.
    PageSize,
    /// A UART where there is none, and a damaged Image; digests right.
    UartNowhere,
    /// A UART that never has room, and a damaged Image; digests right.
    UartFull,
    /// PSCI by the other instruction, and a damaged Image; digests right.
    Conduit,
    /// A descriptor of the tables in use that is not valid; digests right.
    Descriptor,
    /// A word of the header that is anything; digests right.
    AnyHeader,
    /// The wrong exception level in the register that remembers it.
    Level,
}

/// All of them, in the order in which they take turns.
pub(crate) const KINDS: &[Kind] = &[
    Kind::Nothing,
    Kind::Image,
    Kind::Initrd,
    Kind::DeviceTree,
    Kind::TablesInUse,
    Kind::OtherTables,
    Kind::Moves,
    Kind::Digests,
    Kind::Header,
    Kind::Code,
    Kind::Constants,
    Kind::Stack,
    Kind::MoveNowhere,
    Kind::MoveStage,
    Kind::Entry,
    Kind::DeviceTreeAddress,
    Kind::PageSize,
    Kind::UartNowhere,
    Kind::UartFull,
    Kind::Conduit,
    Kind::Descriptor,
    Kind::AnyHeader,
    Kind::Level,
];

impl Kind {
    /// What tables and JSON call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Image => "Image",
            Self::Initrd => "initrd",
            Self::DeviceTree => "device-tree",
            Self::TablesInUse => "tables-in-use",
            Self::OtherTables => "other-tables",
            Self::Moves => "moves",
            Self::Digests => "digests",
            Self::Header => "header",
            Self::Code => "code",
            Self::Constants => "constants",
            Self::Stack => "stack",
            Self::MoveNowhere => "move-nowhere",
            Self::MoveStage => "move-stage",
            Self::Entry => "entry",
            Self::DeviceTreeAddress => "device-tree-address",
            Self::PageSize => "page-size",
            Self::UartNowhere => "uart-nowhere",
            Self::UartFull => "uart-full",
            Self::Conduit => "conduit",
            Self::Descriptor => "descriptor",
            Self::AnyHeader => "any-header",
            Self::Level => "level",
        }
    }
}

/// Chooses a fault of a kind. `two_privileges` says which set of tables this machine uses.
pub(crate) fn choose(
    kind: Kind,
    stage: &Stage,
    two_privileges: bool,
    random: &mut Random,
) -> Result<Fault> {
    let mut chooser = Chooser {
        stage,
        random,
        changes: Vec::new(),
    };
    let (stop, detail, may_be_silent) = chooser.fill(kind, two_privileges)?;
    Ok(Fault {
        kind,
        stop,
        changes: chooser.changes,
        detail,
        may_be_silent,
    })
}

struct Chooser<'run> {
    stage: &'run Stage,
    random: &'run mut Random,
    changes: Vec<Change>,
}

impl Chooser<'_> {
    fn fill(&mut self, kind: Kind, two_privileges: bool) -> Result<(Stop, String, bool)> {
        let stage = self.stage;
        let early = [Stop::First, Stop::MmuOn];
        let stop = match kind {
            Kind::Nothing | Kind::Image | Kind::Initrd | Kind::DeviceTree | Kind::Stack => {
                self.any_stop()
            }
            Kind::TablesInUse | Kind::OtherTables | Kind::Code | Kind::Constants => Stop::First,
            Kind::Level => Stop::MmuOn,
            _ => *self.random.of(&early).unwrap_or(&Stop::First),
        };
        // What a flip has hit may be what speaks.
        let voice = matches!(kind, Kind::Code | Kind::Constants);
        let detail = match kind {
            Kind::Nothing => String::new(),
            Kind::Image => self.flip_piece(PieceKind::Image, stop)?,
            Kind::Initrd => self.flip_piece(PieceKind::Initrd, stop)?,
            Kind::DeviceTree => self.flip_piece(PieceKind::DeviceTree, stop)?,
            Kind::TablesInUse => self.flip(&stage.tables(two_privileges)),
            Kind::OtherTables => self.flip(&stage.tables(!two_privileges)),
            Kind::Moves | Kind::Digests => {
                let (pieces, moves) = stage.arrays();
                // Where nothing is moved there is nothing else to damage.
                let words = if kind == Kind::Moves && !moves.is_empty() {
                    moves
                } else {
                    pieces
                };
                self.flip(&(stage.word_address(words.start)..stage.word_address(words.end)))
            }
            Kind::Header => {
                let index = self.header_word();
                let place = stage.word_address(index)..stage.word_address(index + 1);
                let detail = format!("word {index}: {}", self.flip(&place));
                return Ok((stop, detail, is_voice(index)));
            }
            Kind::Code => self.flip(&stage.code()),
            Kind::Constants => self.flip(&stage.constants()),
            Kind::Stack => {
                let start = stage.start + STACK_OFFSET_BYTES;
                let live_bytes = if early.contains(&stop) {
                    0
                } else {
                    LIVE_STACK_BYTES
                };
                self.flip(&(start..start + STACK_SIZE_BYTES - live_bytes))
            }
            Kind::MoveNowhere => self.change_move(NOWHERE)?,
            Kind::MoveStage => self.change_move(stage.start + HAND_OFF_OFFSET_BYTES)?,
            Kind::Entry => {
                let entry = stage.header.kernel_entry;
                let flipped = entry ^ 4 << self.random.below(27);
                let wrong = *self
                    .random
                    .of(&[flipped, NOWHERE, stage.start])
                    .unwrap_or(&NOWHERE);
                self.seal(&[(word::KERNEL_ENTRY, wrong)], &[])?;
                format!("{wrong:#x}, not {entry:#x}")
            }
            Kind::DeviceTreeAddress => {
                let tree = stage.header.device_tree;
                let flipped = tree ^ 8 << self.random.below(26);
                let wrong = *self.random.of(&[flipped, NOWHERE, 0]).unwrap_or(&NOWHERE);
                self.seal(&[(word::DEVICE_TREE, wrong)], &[])?;
                format!("{wrong:#x}, not {tree:#x}")
            }
            Kind::PageSize => {
                self.seal(&[(word::KERNEL_PAGE_SIZE_BYTES, NO_PAGE_SIZE)], &[])?;
                format!("{NO_PAGE_SIZE}")
            }
            Kind::UartNowhere => {
                self.seal(&[(word::UART_BASE, NOWHERE)], &[])?;
                let damage = self.flip_piece(PieceKind::Image, stop)?;
                return Ok((stop, format!("{NOWHERE:#x}; {damage}"), true));
            }
            Kind::UartFull => {
                // The far end of the stack, which nobody else uses, looks like a UART without room.
                let base = stage.start + STACK_OFFSET_BYTES;
                self.seal(&[(word::UART_KIND, 1), (word::UART_BASE, base)], &[])?;
                self.changes.push(Change::Write {
                    address: base + UART_FLAGS_OFFSET,
                    bytes: UART_FULL.to_le_bytes().into(),
                });
                let damage = self.flip_piece(PieceKind::Image, stop)?;
                return Ok((stop, format!("{base:#x}; {damage}"), true));
            }
            Kind::Conduit => {
                let other = if stage.word(word::PSCI_CONDUIT) == 1 {
                    2
                } else {
                    1
                };
                self.seal(&[(word::PSCI_CONDUIT, other)], &[])?;
                let damage = self.flip_piece(PieceKind::Image, stop)?;
                format!("{other}; {damage}")
            }
            Kind::Descriptor => self.invalidate(stage.tables(two_privileges))?,
            Kind::AnyHeader => {
                let index = self.header_word();
                let value = self.random.next() >> self.random.below(64);
                self.seal(&[(index, value)], &[])?;
                return Ok((stop, format!("word {index}: {value:#x}"), is_voice(index)));
            }
            Kind::Level => {
                // What the entry code found is in the stage's favour; the register is not.
                let value = self.random.below(5);
                self.changes.push(Change::Register { name: "x22", value });
                format!("x22 = {value}")
            }
        };
        Ok((stop, detail, voice))
    }

    fn any_stop(&mut self) -> Stop {
        let moves = (self.stage.moves.len() as u64).min(MOVES_STOPPED_AT);
        match self.random.below(if moves == 0 { 3 } else { 4 }) {
            0 => Stop::First,
            1 => Stop::MmuOn,
            2 => Stop::Verification,
            _ => Stop::Move(usize::try_from(self.random.below(moves)).unwrap_or(0)),
        }
    }

    /// Any word of the header but the digest's own, where a right digest would undo the damage.
    fn header_word(&mut self) -> usize {
        let index = usize::try_from(self.random.below(HEADER_WORDS as u64)).unwrap_or(0);
        if index == word::CRC32C { 0 } else { index }
    }

    /// Flips one bit, or several.
    fn flip(&mut self, place: &Range<u64>) -> String {
        let count = *self.random.of(&[1, 1, 2, BITS_MAX]).unwrap_or(&1);
        let mut words = Vec::new();
        for _ in 0..count {
            let address = place.start + self.random.below(place.end - place.start);
            let bit = u8::try_from(self.random.below(8)).unwrap_or(0);
            let change = Change::Flip { address, bit };
            // Twice the same bit would be none.
            if !self.changes.contains(&change) {
                words.push(format!("{address:#x} bit {bit}"));
                self.changes.push(change);
            }
        }
        words.join(", ")
    }

    /// Flips bits of a piece, wherever they are at this moment.
    fn flip_piece(&mut self, kind: PieceKind, stop: Stop) -> Result<String> {
        let stage = self.stage;
        let piece = stage
            .piece(kind)
            .with_context(|| format!("the hand-off has no {}", kind.name()))?;
        let moves_made = match stop {
            Stop::First | Stop::MmuOn => 0,
            Stop::Move(made) => made,
            Stop::Verification => stage.moves.len(),
        };
        let before = self.changes.len();
        let _ = self.flip(&(piece.start..piece.start + piece.size_bytes));
        let mut words = Vec::new();
        for change in self.changes.iter_mut().skip(before) {
            if let Change::Flip { address, bit } = change {
                let offset = *address - piece.start;
                *address = stage.where_is(*address, moves_made);
                words.push(format!(
                    "{}+{offset:#x} at {address:#x} bit {bit}",
                    kind.name()
                ));
            }
        }
        Ok(words.join(", "))
    }

    /// Changes a move's target or source; where there is none, adds one in place of the last piece's words.
    fn change_move(&mut self, wrong: u64) -> Result<String> {
        let stage = self.stage;
        let (_, moves) = stage.arrays();
        let size_bytes = stage.word(word::SIZE_BYTES);
        if moves.is_empty() {
            // A move is put behind everything else: there is room up to the end of the granule.
            let index = usize::try_from(size_bytes / 8)?;
            // Redistributors come last, and are not looked at any more: they become the rest of the move.
            let regions = stage.word(word::REDISTRIBUTORS);
            let words = [
                (word::MOVES, 1),
                (word::REDISTRIBUTORS, regions.saturating_sub(1)),
                (moves.start, wrong),
                (moves.start + 1, stage.header.kernel_entry),
                (moves.start + 2, 4096),
            ];
            anyhow::ensure!(
                regions == 1,
                "{regions} redistributor regions before word {index}: a move cannot take their place"
            );
            self.seal(&words, &[])?;
            return Ok(format!("a move to {wrong:#x}"));
        }
        let number = usize::try_from(self.random.below(stage.moves.len() as u64))?;
        let part = usize::try_from(self.random.below(2))?;
        self.seal(&[(moves.start + number * MOVE_WORDS + part, wrong)], &[])?;
        let what = if part == 0 { "target" } else { "source" };
        Ok(format!("{what} of move {number}: {wrong:#x}"))
    }

    fn invalidate(&mut self, tables: Range<u64>) -> Result<String> {
        let stage = self.stage;
        let mut valid = Vec::new();
        for address in tables.step_by(8) {
            let value = word_at(&stage.bytes, usize::try_from(address - stage.start)?);
            if value & VALID != 0 {
                valid.push((address, value));
            }
        }
        let &(address, value) = self.random.of(&valid).context("the tables are empty")?;
        self.seal(&[], &[(address, value & !VALID)])?;
        Ok(format!("{address:#x}: {value:#x} made invalid"))
    }

    fn seal(&mut self, words: &[(usize, u64)], bytes: &[(u64, u64)]) -> Result<()> {
        for (address, bytes) in self.stage.sealed(words, bytes)? {
            self.changes.push(Change::Write { address, bytes });
        }
        Ok(())
    }
}

/// Whether a word of the header is one without which nothing can be said.
fn is_voice(index: usize) -> bool {
    matches!(
        index,
        word::UART_KIND | word::UART_BASE | word::UART_REG_SHIFT | word::UART_WIDTH_BYTES
    )
}
