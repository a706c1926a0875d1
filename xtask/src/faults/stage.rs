//! The stage of a stopped machine: what its words mean, and where each byte of the payload is now.
//!
//! Everything is read from the guest's memory by way of the hand-off's own constants
//! (`kleap_relocator::abi`), and every address in the program by its symbol, so that another layout of
//! either changes nothing here.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use kleap_relocator::abi::{
    HAND_OFF_OFFSET_BYTES, HEADER_WORDS, HandOff, Header, MOVE_WORDS, Move, PIECE_WORDS, Piece,
    PieceKind, word,
};
use kleap_relocator::{crc32c, image};
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, LittleEndian};

/// Bytes of a word of the hand-off.
const WORD_BYTES: usize = 8;
/// `br xN`, but for N (Arm ARM C6.2.41).
const BRANCH_REGISTER: u32 = 0xd61f_0000;
/// Where N is in it.
const BRANCH_REGISTER_N: u32 = 0x1f << 5;
/// Bits of a TTBR that are an address, for tables below 48 bits (Arm ARM D24.2.194): neither CnP nor ASID.
const TTBR_ADDRESS: u64 = 0x0000_ffff_ffff_fffe;

/// A symbol of the program.
#[derive(Debug, Clone)]
struct Symbol {
    name: String,
    offset: u64,
}

/// The stage, as it was at the relocator's first instruction.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// Where it is, physical address.
    pub(crate) start: u64,
    /// All of it.
    pub(crate) bytes: Vec<u8>,
    /// The hand-off's header.
    pub(crate) header: Header,
    /// Its pieces.
    pub(crate) pieces: Vec<Piece>,
    /// Its moves.
    pub(crate) moves: Vec<Move>,
    symbols: Vec<Symbol>,
    code_bytes: u64,
    program_bytes: u64,
}

impl Stage {
    /// From the stage's bytes and the command that made them.
    pub(crate) fn new(start: u64, bytes: Vec<u8>, command: &[u8]) -> Result<Self> {
        let block = usize::try_from(HAND_OFF_OFFSET_BYTES)
            .ok()
            .and_then(|at| bytes.get(at..))
            .context("the stage ends before the hand-off")?;
        let hand_off = HandOff::decode(block)
            .map_err(|error| anyhow::anyhow!("the stage at {start:#x}: {error}"))?;
        let (header, pieces, moves) = (
            hand_off.header,
            hand_off.pieces().collect(),
            hand_off.moves().collect(),
        );
        let elf = relocator_of(command, start, &bytes)?;
        let parsed = FileHeader64::<Endianness>::parse(elf)?;
        let endian = parsed.endian()?;
        let sections = parsed.sections(endian, elf)?;
        let code_bytes = sections
            .iter()
            .find(|section| sections.section_name(endian, section) == Ok(b".text"))
            .map(|section| section.sh_size(endian))
            .context("the relocator has no section .text")?;
        let table = sections.symbols(endian, elf, object::elf::SHT_SYMTAB)?;
        let mut symbols = Vec::new();
        for symbol in table.iter() {
            let name = symbol.name(endian, table.strings())?;
            symbols.push(Symbol {
                name: String::from_utf8_lossy(name).into_owned(),
                offset: symbol.st_value(endian),
            });
        }
        let program_bytes = image::place(elf, start)?.len() as u64;
        Ok(Self {
            start,
            bytes,
            header,
            pieces,
            moves,
            symbols,
            code_bytes,
            program_bytes,
        })
    }

    /// Where a symbol of the program is, physical address. A name inside a crate is longer than what is
    /// asked for: it also has the compiler's marks.
    pub(crate) fn symbol(&self, name: &str) -> Result<u64> {
        let exactly = self.symbols.iter().find(|symbol| symbol.name == name);
        exactly
            .or_else(|| {
                self.symbols
                    .iter()
                    .find(|symbol| symbol.name.contains(name))
            })
            .map(|symbol| self.start + symbol.offset)
            .with_context(|| format!("the relocator has no symbol {name}"))
    }

    /// The branch to the next kernel, and the number of the register that says where to.
    pub(crate) fn last_branch(&self) -> Result<(u64, usize)> {
        let enter = self.symbol("enter_kernel")?;
        let from = usize::try_from(enter - self.start).context("enter_kernel is far away")?;
        let code = self.bytes.get(from..).unwrap_or_default();
        for (index, instruction) in code.as_chunks::<4>().0.iter().enumerate() {
            let instruction = u32::from_le_bytes(*instruction);
            if instruction & !BRANCH_REGISTER_N == BRANCH_REGISTER {
                let register = usize::try_from((instruction & BRANCH_REGISTER_N) >> 5)?;
                return Ok((enter + index as u64 * 4, register));
            }
        }
        anyhow::bail!("no branch to a register after enter_kernel")
    }

    /// The piece of a kind.
    pub(crate) fn piece(&self, kind: PieceKind) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.kind == kind)
    }

    /// Where the program's instructions are.
    pub(crate) fn code(&self) -> Range<u64> {
        self.start..self.start + self.code_bytes
    }

    /// Where its constants are.
    pub(crate) fn constants(&self) -> Range<u64> {
        self.start + self.code_bytes..self.start + self.program_bytes
    }

    /// The tables of a set, that of two privileges or of one.
    pub(crate) fn tables(&self, two_privileges: bool) -> Range<u64> {
        let header = &self.header;
        let (ttbr, count) = if two_privileges {
            (header.ttbr_two_privileges, header.tables_two_privileges)
        } else {
            (header.ttbr_one_privilege, header.tables_one_privilege)
        };
        let start = ttbr & TTBR_ADDRESS;
        start..start + count * header.table_size_bytes
    }

    /// Where a word of the block is, physical address.
    pub(crate) fn word_address(&self, index: usize) -> u64 {
        self.start + HAND_OFF_OFFSET_BYTES + (index * WORD_BYTES) as u64
    }

    /// The value of a word of the block.
    pub(crate) fn word(&self, index: usize) -> u64 {
        let at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap_or(0) + index * WORD_BYTES;
        word_at(&self.bytes, at)
    }

    /// The indices of the words that tell of pieces, and of those that tell of moves.
    pub(crate) fn arrays(&self) -> (Range<usize>, Range<usize>) {
        let moves = HEADER_WORDS + self.pieces.len() * PIECE_WORDS;
        (
            HEADER_WORDS..moves,
            moves..moves + self.moves.len() * MOVE_WORDS,
        )
    }

    /// Where a byte of the next kernel's is, when so many moves have been made.
    pub(crate) fn where_is(&self, address: u64, moves_made: usize) -> u64 {
        let to_come = self.moves.get(moves_made..).unwrap_or_default();
        to_come.iter().rev().fold(address, |address, copy| {
            if address >= copy.target && address - copy.target < copy.size_bytes {
                copy.source + (address - copy.target)
            } else {
                address
            }
        })
    }

    /// What has to be written so that some words have other values, and some bytes of the stage too, and
    /// every digest of the hand-off is right all the same: runs of bytes and where they go.
    ///
    /// A digest over more than the block and the pieces that lie in the stage belongs here, too.
    pub(crate) fn sealed(
        &self,
        words: &[(usize, u64)],
        bytes: &[(u64, u64)],
    ) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut stage = self.bytes.clone();
        let block_at = usize::try_from(HAND_OFF_OFFSET_BYTES)?;
        for &(address, value) in bytes {
            let at = usize::try_from(address.checked_sub(self.start).context("below the stage")?)?;
            put_word(&mut stage, at, value)?;
        }
        for (index, piece) in self.pieces.iter().enumerate() {
            let Some(at) = piece.start.checked_sub(self.start) else {
                continue;
            };
            let range = usize::try_from(at)?..usize::try_from(at + piece.size_bytes)?;
            let Some(content) = stage.get(range) else {
                continue;
            };
            let digest = u64::from(crc32c::update(0, content));
            // A piece is its kind, its start, its size, its digest, and how much of it is cleaned.
            let word_index = HEADER_WORDS + index * PIECE_WORDS + 3;
            put_word(&mut stage, block_at + word_index * WORD_BYTES, digest)?;
        }
        for &(index, value) in words {
            put_word(&mut stage, block_at + index * WORD_BYTES, value)?;
        }
        put_word(&mut stage, block_at + word::CRC32C * WORD_BYTES, 0)?;
        let size_bytes = usize::try_from(self.word(word::SIZE_BYTES))?;
        let block = stage
            .get(block_at..block_at + size_bytes)
            .context("the block ends after the stage")?;
        let digest = u64::from(crc32c::update(0, block));
        put_word(&mut stage, block_at + word::CRC32C * WORD_BYTES, digest)?;
        Ok(self.differences(&stage))
    }

    /// The words that are no longer what they were.
    fn differences(&self, stage: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let (old, new) = (self.bytes.as_chunks::<8>().0, stage.as_chunks::<8>().0);
        old.iter()
            .zip(new)
            .enumerate()
            .filter(|(_, (old, new))| old != new)
            .map(|(index, (_, new))| (self.start + index as u64 * 8, new.to_vec()))
            .collect()
    }
}

/// A word of memory.
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<WORD_BYTES>())
        .map_or(0, |word| u64::from_le_bytes(*word))
}

fn put_word(bytes: &mut [u8], at: usize, value: u64) -> Result<()> {
    let slot = bytes
        .get_mut(at..)
        .and_then(|rest| rest.first_chunk_mut::<WORD_BYTES>())
        .with_context(|| format!("offset {at:#x} is outside the stage"))?;
    *slot = value.to_le_bytes();
    Ok(())
}

/// The relocator inside the command: the ELF whose bytes, made ready for this place, are those of the stage.
fn relocator_of<'command>(
    command: &'command [u8],
    start: u64,
    stage: &[u8],
) -> Result<&'command [u8]> {
    const MAGIC: &[u8] = b"\x7fELF";
    for (at, _) in command
        .windows(MAGIC.len())
        .enumerate()
        .skip(1)
        .filter(|(_, bytes)| *bytes == MAGIC)
    {
        let elf = command.get(at..).unwrap_or_default();
        let Ok(_) = FileHeader64::<LittleEndian>::parse(elf) else {
            continue;
        };
        if let Ok(program) = image::place(elf, start) {
            ensure!(
                stage.starts_with(&program),
                "the stage at {start:#x} does not start with the command's relocator"
            );
            return Ok(elf);
        }
    }
    anyhow::bail!("the command has no relocator in it")
}
