//! The relocator's work, on a machine that is simulated.

use super::Draw;
use super::hand_off::repaired;
use kleap_relocator::abi::{
    self, HandOff, Header, Lpis, Move, OnFailure, Piece, PieceKind, Redistributors, Uart,
};
use kleap_relocator::deadline::frequency_or_fallback_hz;
use kleap_relocator::digest::{Algorithm, Digest, Digests, chunk_count, on_host};
use kleap_relocator::failure::Failure;
use kleap_relocator::lpi::{REDISTRIBUTOR_BYTES, register};
use kleap_relocator::record::Phase;
use kleap_relocator::relocate::{Entry, Machine, relocate};
use kleap_relocator::timeline::{Level, SIZE_BYTES, Timeline};

const MEMORY_START: u64 = 0x4000_0000;
const MEMORY_BYTES: u64 = 0x1000;
/// Where the generator puts the stage: behind all of the memory that there is.
const STAGE: u64 = MEMORY_START + MEMORY_BYTES;
const TREE: u64 = MEMORY_START + 0x800;
/// Redistributors of which each has a state of its own; others are like one of these.
const FRAMES: usize = 8;
/// Most accesses to registers that a hand-over may make. A machine may have 16,384 redistributors, each of which
/// is read a few times; waiting for all of them has one end.
const ACCESSES_MAX: u64 = 1_000_000;

/// What a redistributor is like.
#[derive(Debug, Clone, Copy, Default)]
struct Frame {
    typer: u64,
    enabled: bool,
    write_once: bool,
    busy: u32,
    configuration: u64,
    pending: u64,
}

/// Memory and devices. What is not there reads as a pattern and swallows writes: on a real machine it would be
/// an exception, which ends in a reset.
struct Simulated {
    memory: Vec<u8>,
    frames: [Frame; FRAMES],
    accesses: u64,
    ticks: u64,
    /// How far the counter goes from one look to the next.
    tick: u64,
    frequency_hz: u64,
    stage: (u64, u64),
    regions: Vec<Redistributors>,
    copies: Vec<(u64, u64, u64)>,
    writes: Vec<(u64, usize)>,
    cleaned: Vec<(u64, u64)>,
    verified: usize,
    phase: Phase,
    said: usize,
}

impl Simulated {
    fn index(&self, start: u64, size_bytes: u64) -> Option<std::ops::Range<usize>> {
        let from = usize::try_from(start.checked_sub(MEMORY_START)?).ok()?;
        let to = from.checked_add(usize::try_from(size_bytes).ok()?)?;
        (to <= self.memory.len()).then_some(from..to)
    }

    /// The redistributor that a register belongs to; it must be in a region of the hand-off.
    fn frame(&mut self, address: u64) -> (&mut Frame, u64) {
        self.accesses += 1;
        assert!(self.accesses < ACCESSES_MAX, "this does not end");
        let within = self.regions.iter().any(|region| {
            region.start <= address && address < region.start.saturating_add(region.size_bytes)
        });
        assert!(within, "{address:#x} is no redistributor's");
        let base = self
            .regions
            .iter()
            .find(|region| region.start <= address && address - region.start < region.size_bytes)
            .map_or(0, |region| region.start);
        let offset = (address - base) % 0x1_0000;
        let number = (address - base) / REDISTRIBUTOR_BYTES;
        let number = usize::try_from(number).unwrap_or(0) % FRAMES;
        (&mut self.frames[number], offset)
    }
}

impl Machine for Simulated {
    fn counter(&mut self) -> u64 {
        self.ticks = self.ticks.wrapping_add(self.tick);
        self.ticks
    }
    fn frequency_hz(&mut self) -> u64 {
        self.frequency_hz
    }
    fn supports_page_size(&mut self, page_size_bytes: u64) -> bool {
        matches!(page_size_bytes, 4096 | 65536)
    }
    fn read_register32(&mut self, address: u64) -> u32 {
        let (frame, offset) = self.frame(address);
        if offset != register::CTLR {
            return 0;
        }
        let busy = frame.busy > 0;
        frame.busy = frame.busy.saturating_sub(1);
        (u32::from(frame.enabled) * register::CTLR_ENABLE_LPIS)
            | (u32::from(busy) * register::CTLR_RWP)
    }
    fn read_register64(&mut self, address: u64) -> u64 {
        let (frame, offset) = self.frame(address);
        match offset {
            register::TYPER => frame.typer,
            register::PROPBASER => frame.configuration,
            register::PENDBASER => frame.pending,
            _ => 0,
        }
    }
    fn write_register32(&mut self, address: u64, value: u32) {
        let (frame, offset) = self.frame(address);
        assert_eq!(offset, register::CTLR, "only GICR_CTLR is written");
        if !frame.write_once {
            frame.enabled = value & register::CTLR_ENABLE_LPIS != 0;
        }
    }
    fn copy(&mut self, target: u64, source: u64, size_bytes: u64) {
        assert_eq!(self.verified, 0, "moved after it was verified");
        let (stage, stage_bytes) = self.stage;
        for start in [target, source] {
            let touches = start < stage.saturating_add(stage_bytes)
                && stage < start.saturating_add(size_bytes);
            assert!(!touches, "a move touches the stage");
        }
        self.copies.push((target, source, size_bytes));
        if let (Some(to), Some(from)) = (
            self.index(target, size_bytes),
            self.index(source, size_bytes),
        ) {
            self.memory.copy_within(from, to.start);
        }
    }
    fn digest(&mut self, algorithm: Algorithm, start: u64, size_bytes: u64) -> Digest {
        self.verified += 1;
        self.index(start, size_bytes)
            .map_or(digest_of_nothing(algorithm), |range| {
                on_host(algorithm, &[&self.memory[range]])
            })
    }
    fn has_instructions(&mut self, _: Algorithm) -> bool {
        false
    }
    fn clean(&mut self, start: u64, size_bytes: u64) {
        self.cleaned.push((start, size_bytes));
    }
    fn read(&mut self, start: u64, bytes: &mut [u8]) {
        self.accesses += 1;
        assert!(self.accesses < ACCESSES_MAX, "this does not end");
        match self.index(start, bytes.len() as u64) {
            Some(range) => bytes.copy_from_slice(&self.memory[range]),
            None => bytes.fill(0xa5),
        }
    }
    fn begin(&mut self, phase: Phase) {
        assert!(
            self.phase.code() < phase.code(),
            "{phase:?} after {:?}",
            self.phase
        );
        self.phase = phase;
    }
    fn say(&mut self, _: Option<Uart>, line: std::fmt::Arguments<'_>) {
        assert!(!line.to_string().contains('\n'));
        self.said += 1;
    }
    fn write(&mut self, start: u64, bytes: &[u8]) {
        self.writes.push((start, bytes.len()));
        if let Some(range) = self.index(start, bytes.len() as u64) {
            self.memory[range].copy_from_slice(bytes);
        }
    }
}

/// Of memory that is not there.
const fn digest_of_nothing(algorithm: Algorithm) -> Digest {
    match algorithm {
        Algorithm::Crc32c => Digest::Crc32c(0x5a5a_5a5a),
        Algorithm::Sha256 => Digest::Sha256([0x5a; 32]),
    }
}

/// An address, mostly of memory that is there.
fn address(draw: &mut Draw<'_>) -> u64 {
    match draw.below(16) {
        0 => draw.number(),
        _ => MEMORY_START + u64::from(draw.word32()) % MEMORY_BYTES,
    }
}

fn size(draw: &mut Draw<'_>) -> u64 {
    match draw.below(16) {
        0 => draw.number(),
        _ => u64::from(draw.byte()) * 4,
    }
}

/// A block of plausible values; the digests of its pieces are mostly right.
fn drawn(draw: &mut Draw<'_>, memory: &[u8]) -> Option<Vec<u8>> {
    let image = address(draw);
    let header = Header {
        stage: STAGE,
        stage_size_bytes: 0x2_4000,
        mair: 0,
        tcr_two_privileges: 0,
        ttbr_two_privileges: 0,
        tcr_one_privilege: 0,
        ttbr_one_privilege: 0,
        physical_size_max: 5,
        kernel_entry: if draw.below(32) == 0 {
            draw.number()
        } else {
            image
        },
        device_tree: if draw.below(8) == 0 {
            draw.number()
        } else {
            TREE
        },
        timeline: match draw.below(8) {
            0 => Some(draw.number()),
            1 => None,
            _ => Some(TREE + 0x400),
        },
        exec_requested: 1,
        exec_prepared: 2,
        uart: None,
        psci: None,
        lpis: if draw.flag() {
            Lpis::TurnOff
        } else {
            Lpis::LeaveOn
        },
        kernel_page_size_bytes: [0, 4096, 16384, 65536][draw.below(4)],
        tables_two_privileges: 3,
        tables_one_privilege: 4,
        table_size_bytes: 4096,
        program_size_bytes: 0x1000,
        program_crc32c: 1,
        tables_two_privileges_crc32c: 2,
        tables_one_privilege_crc32c: 3,
        portable: false,
        verbose: draw.flag(),
        on_failure: OnFailure::Off,
        record: None,
    };
    let moves: Vec<Move> = (0..draw.below(5))
        .map(|_| Move {
            target: address(draw),
            source: address(draw),
            size_bytes: size(draw),
        })
        .collect();
    let mut after = memory.to_vec();
    let place = |start: u64, size_bytes: u64| {
        let from = usize::try_from(start.checked_sub(MEMORY_START)?).ok()?;
        let to = from.checked_add(usize::try_from(size_bytes).ok()?)?;
        (to <= memory.len()).then_some(from..to)
    };
    for copy in &moves {
        if let (Some(to), Some(from)) = (
            place(copy.target, copy.size_bytes),
            place(copy.source, copy.size_bytes),
        ) {
            after.copy_within(from, to.start);
        }
    }
    let kinds = [
        PieceKind::DeviceTree,
        PieceKind::Image,
        PieceKind::Initrd,
        PieceKind::Tables,
    ];
    let mut words = Vec::new();
    let pieces: Vec<Piece> = (0..draw.below(5))
        .map(|index| {
            let kind = kinds[index];
            let (start, size_bytes) = match kind {
                _ if draw.below(32) == 0 => (address(draw), size(draw)),
                PieceKind::DeviceTree => {
                    // With or without room for the record.
                    let least_bytes = if header.timeline.is_some() { 0x300 } else { 0 };
                    (header.device_tree, least_bytes + 4 * u64::from(draw.byte()))
                }
                PieceKind::Image => (image, size(draw)),
                _ => (address(draw), size(draw)),
            };
            let algorithm = [None, Some(Algorithm::Crc32c), Some(Algorithm::Sha256)][draw.below(3)];
            if let Some(algorithm) = algorithm {
                let mut right = match place(start, size_bytes) {
                    Some(range) => Digests::of(algorithm, &after[range]).words,
                    None => digest_of_nothing(algorithm).words()[..algorithm.digest_words()]
                        .repeat(chunk_count(size_bytes)),
                };
                if let Some(word) = right.last_mut() {
                    *word ^= u64::from(draw.below(16) == 0);
                }
                words.extend(right);
            }
            Piece {
                kind,
                start,
                size_bytes,
                algorithm,
                clean_size_bytes: size_bytes.saturating_add(size(draw)),
            }
        })
        .collect();
    let regions: Vec<Redistributors> = (0..draw.below(3))
        .map(|_| Redistributors {
            start: 0x800_0000 + (u64::from(draw.byte()) << 24),
            size_bytes: if draw.below(4) == 0 {
                draw.number()
            } else {
                REDISTRIBUTOR_BYTES * u64::from(draw.byte() % 10)
            },
            stride_bytes: match draw.below(8) {
                0 => draw.number(),
                1 => 0x4_0000,
                _ => 0,
            },
        })
        .collect();
    abi::encode(&header, &pieces, &words, &moves, &regions).ok()
}

/// Memory whose content follows from a few bytes, with something like a device tree in it.
fn memory(draw: &mut Draw<'_>) -> Vec<u8> {
    let (seed, step) = (draw.byte(), draw.byte() | 1);
    let mut memory: Vec<u8> = (0..MEMORY_BYTES)
        .map(|index| (index as u8).wrapping_mul(step) ^ (index >> 8) as u8 ^ seed)
        .collect();
    let tree = usize::try_from(TREE - MEMORY_START).unwrap();
    // The header, and a list of reservations with some slots free.
    let (list, end) = (
        40 + 8 * (draw.byte() as u32 & 3),
        56 + 4 * u32::from(draw.byte()),
    );
    for (field, value) in [(8, end), (12, end + 64), (16, list)] {
        memory[tree + field..][..4].copy_from_slice(&u32::to_be_bytes(value));
    }
    let taken = draw.below(4) * 16;
    let from = tree + usize::try_from(list).unwrap();
    let to = tree
        + usize::try_from(end)
            .unwrap()
            .max(usize::try_from(list).unwrap());
    if let Some(slots) = memory.get_mut(from + taken..to) {
        slots.fill(0);
    }
    memory
}

/// A hand-over, from a block whose digest is right, to its end.
pub fn run(data: &[u8]) {
    let mut draw = Draw::new(data);
    let is_raw = draw.below(4) == 0;
    let memory = memory(&mut draw);
    let mut frames = [Frame::default(); FRAMES];
    let never_ready = (draw.below(8) == 0).then(|| draw.below(FRAMES));
    for (number, frame) in frames.iter_mut().enumerate() {
        let bits = draw.byte();
        *frame = Frame {
            // Most have LPIs; some are the last of their region.
            typer: u64::from(bits & 0b10011) ^ 1,
            enabled: bits & 4 != 0,
            write_once: bits & 8 != 0,
            // One of them may never become ready.
            busy: if never_ready == Some(number) {
                u32::MAX
            } else {
                u32::from(bits >> 5)
            },
            configuration: if bits & 0x40 != 0 {
                address(&mut draw)
            } else {
                0x9000_000f
            },
            pending: 0x9100_0000,
        };
    }
    // A counter that makes a wait of a second one of a thousand looks, whatever frequency is claimed, and where it
    // starts: near its end too.
    let (frequency_hz, ticks) = (draw.number(), draw.number());
    let tick = frequency_or_fallback_hz(frequency_hz).div_ceil(1000);
    let level = [Level::El1, Level::El2, Level::El2Vhe][draw.below(3)];
    let block = if is_raw {
        let rest = draw.bytes(usize::MAX);
        repaired(rest, true)
    } else {
        match drawn(&mut draw, &memory) {
            Some(block) => block,
            None => return,
        }
    };
    let decoded = HandOff::decode(&block);
    let mut machine = Simulated {
        memory,
        frames,
        accesses: 0,
        ticks,
        tick,
        frequency_hz,
        stage: decoded.as_ref().map_or((0, 0), |block| {
            (block.header.stage, block.header.stage_size_bytes)
        }),
        regions: decoded
            .as_ref()
            .map_or(Vec::new(), |block| block.redistributors().collect()),
        copies: Vec::new(),
        writes: Vec::new(),
        cleaned: Vec::new(),
        verified: 0,
        phase: Phase::Entry,
        said: 0,
    };
    let entry = Entry {
        entered: 0,
        mmu_on: 0,
        level,
    };
    let ended = relocate(&block, entry, &mut machine);
    let hand_off = match decoded {
        Ok(hand_off) => hand_off,
        Err(error) => {
            assert_eq!(ended, Err(Failure::HandOff(error)));
            assert!(
                machine.accesses == 0 && machine.copies.is_empty() && machine.writes.is_empty()
            );
            return;
        }
    };
    match ended {
        Err(failure) => {
            assert!(
                failure
                    .to_string()
                    .starts_with("kleap: hand-over stopped: ")
            );
            if matches!(failure, Failure::Digest { .. } | Failure::Move { .. }) {
                assert!(machine.writes.is_empty(), "written, though {failure}");
            }
        }
        Ok(timeline) => succeeded(&hand_off, &timeline, &machine),
    }
}

/// What must hold when the next kernel is entered.
fn succeeded(hand_off: &HandOff<'_>, timeline: &Timeline, machine: &Simulated) {
    let moves: Vec<_> = hand_off
        .moves()
        .map(|copy| (copy.target, copy.source, copy.size_bytes))
        .collect();
    assert_eq!(machine.copies, moves, "all moves, each once, in order");
    assert_eq!(timeline.moves, moves.len() as u64);
    assert_eq!(
        machine.verified,
        hand_off.chunks().count(),
        "every chunk is verified"
    );
    for piece in hand_off.pieces() {
        let cleaned = machine
            .cleaned
            .contains(&(piece.start, piece.clean_size_bytes));
        assert!(cleaned, "{piece:?} is not clean");
    }
    // Nothing is written but reservations and the record, and both are cleaned.
    for &(start, size_bytes) in &machine.writes {
        let is_record = Some(start) == hand_off.header.timeline && size_bytes == SIZE_BYTES;
        let is_reservation = size_bytes == 16
            && hand_off.pieces().any(|piece| {
                piece.kind == PieceKind::DeviceTree
                    && piece.start <= start
                    && start + 16 <= piece.start + piece.size_bytes
            });
        assert!(
            is_record || is_reservation,
            "{size_bytes} bytes written at {start:#x}"
        );
        assert!(machine.cleaned.contains(&(start, size_bytes as u64)));
    }
    if let Some(start) = hand_off.header.timeline {
        assert!(machine.writes.last().is_some_and(|(at, _)| *at == start));
        if let Some(range) = machine.index(start, SIZE_BYTES as u64) {
            assert_eq!(Timeline::decode(&machine.memory[range]), Ok(*timeline));
        }
    }
    assert_eq!(machine.said > 0, hand_off.header.verbose);
    assert_eq!(machine.phase, Phase::Enter);
    if hand_off.header.lpis == Lpis::TurnOff && timeline.lpis_stuck == 0 {
        assert_eq!(
            timeline.lpis_reserved, 0,
            "off, and their tables are reserved"
        );
    }
}
