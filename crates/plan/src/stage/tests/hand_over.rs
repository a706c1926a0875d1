//! A whole hand-over on a simulated machine.
//!
//! The relocator's own order of work, given the stage's own hand-off, on memory that can only be reached
//! through the stage's own tables: a read wants a mapping, a write a writable one, registers want Device
//! memory. What comes out must be what was loaded, at its place, and nothing else may have changed.

use super::walker::{El, Machine as Walker};
use super::*;
use kleap_relocator::digest::{Digest, chunk_size_bytes};
use kleap_relocator::failure::Failure;
use kleap_relocator::relocate::{Entry, Machine, relocate};
use kleap_relocator::timeline::{Level, Timeline};
use kleap_relocator::{digest, lpi};
use std::collections::HashMap;

const FRAME_BYTES: usize = 4096;
const COUNTER_START: u64 = 1000;

/// A generator of bytes: fast, and the same everywhere.
fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state ^ (*state >> 29)
}

fn random_bytes(seed: u64, size_bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size_bytes + 8);
    while bytes.len() < size_bytes {
        bytes.extend_from_slice(&random(&mut state).to_le_bytes());
    }
    bytes.truncate(size_bytes);
    bytes
}

/// Physical memory: what was written, and noise everywhere else.
#[derive(Clone, PartialEq)]
struct Memory {
    frames: HashMap<u64, Vec<u8>>,
    seed: u64,
}

impl Memory {
    fn frame(&mut self, index: u64) -> &mut Vec<u8> {
        let seed = self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.frames
            .entry(index)
            .or_insert_with(|| random_bytes(seed, FRAME_BYTES))
    }

    /// Calls `each` with every stretch of one frame, and with its place in the whole.
    fn stretches(&mut self, start: u64, size_bytes: usize, mut each: impl FnMut(&mut [u8], usize)) {
        let mut done = 0;
        while done < size_bytes {
            let address = start + done as u64;
            let within = usize::try_from(address % FRAME_BYTES as u64).unwrap();
            let count = (FRAME_BYTES - within).min(size_bytes - done);
            let frame = self.frame(address / FRAME_BYTES as u64);
            each(&mut frame[within..within + count], done);
            done += count;
        }
    }

    fn read(&mut self, start: u64, size_bytes: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap()];
        let size_bytes = bytes.len();
        self.stretches(start, size_bytes, |part, at| {
            bytes[at..at + part.len()].copy_from_slice(part);
        });
        bytes
    }

    fn write(&mut self, start: u64, bytes: &[u8]) {
        self.stretches(start, bytes.len(), |part, at| {
            part.copy_from_slice(&bytes[at..at + part.len()]);
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Execute,
    Registers,
}

/// The machine at the moment when the MMU is on.
struct Simulated<'a> {
    memory: Memory,
    walker: Walker<'a>,
    mair: u64,
    ticks: u64,
    copies: u64,
    cleaned: Vec<(u64, u64)>,
    redistributors: Vec<u64>,
    disabled: Vec<u64>,
}

impl Simulated<'_> {
    /// What the MMU would say to every byte of this access.
    fn check(&self, start: u64, size_bytes: u64, kind: Kind) {
        let end = start.checked_add(size_bytes).unwrap();
        let mut address = start;
        while address < end {
            let leaf = match self.walker.walk(address) {
                Ok(leaf) => leaf,
                Err(fault) => panic!("{kind:?} at {address:#x}: {fault:?}"),
            };
            let permissions = leaf.permissions;
            let memory_type = self.mair >> (8 * leaf.attr_index) & 0xff;
            assert_eq!(leaf.phys, address);
            assert!(permissions.privileged_read);
            let allowed = match kind {
                Kind::Read => memory_type == 0xff,
                Kind::Write => memory_type == 0xff && permissions.privileged_write,
                Kind::Execute => permissions.privileged_execute && !permissions.privileged_write,
                Kind::Registers => memory_type == 0x04 && permissions.privileged_write,
            };
            assert!(allowed, "{kind:?} at {address:#x}: {leaf:?}");
            address = (address | (leaf.leaf_bytes - 1)) + 1;
        }
    }
}

impl Machine for Simulated<'_> {
    fn counter(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
    fn frequency_hz(&mut self) -> u64 {
        62_500_000
    }
    fn supports_page_size(&mut self, page_size_bytes: u64) -> bool {
        page_size_bytes == 4096
    }
    /// Every redistributor has LPIs, enabled until they are disabled.
    fn read_register32(&mut self, address: u64) -> u32 {
        self.check(address, 4, Kind::Registers);
        u32::from(!self.disabled.contains(&address))
    }
    fn read_register64(&mut self, address: u64) -> u64 {
        self.check(address, 8, Kind::Registers);
        assert_eq!(address % 0x1_0000, lpi::register::TYPER);
        self.redistributors.push(address - lpi::register::TYPER);
        lpi::register::TYPER_PLPIS
    }
    fn write_register32(&mut self, address: u64, value: u32) {
        self.check(address, 4, Kind::Registers);
        assert_eq!(value, 0);
        self.disabled.push(address);
    }
    fn copy(&mut self, target: u64, source: u64, size_bytes: u64) {
        self.check(source, size_bytes, Kind::Read);
        self.check(target, size_bytes, Kind::Write);
        let bytes = self.memory.read(source, size_bytes);
        self.memory.write(target, &bytes);
        self.copies += 1;
    }
    fn digest(&mut self, algorithm: Algorithm, start: u64, size_bytes: u64) -> Digest {
        self.check(start, size_bytes, Kind::Read);
        digest::on_host(algorithm, &[&self.memory.read(start, size_bytes)])
    }
    fn has_instructions(&mut self, _: Algorithm) -> bool {
        true
    }
    fn clean(&mut self, start: u64, size_bytes: u64) {
        self.check(start, size_bytes, Kind::Read);
        self.cleaned.push((start, size_bytes));
    }
    fn read(&mut self, start: u64, bytes: &mut [u8]) {
        self.check(start, bytes.len() as u64, Kind::Read);
        bytes.copy_from_slice(&self.memory.read(start, bytes.len() as u64));
    }
    fn write(&mut self, start: u64, bytes: &[u8]) {
        self.check(start, bytes.len() as u64, Kind::Write);
        self.memory.write(start, bytes);
    }
}

/// Where a byte of a place is held, and how many follow it there.
fn whereabouts(place: &Place, at_bytes: u64) -> (u64, usize) {
    let mut before = 0;
    for part in &place.parts {
        if at_bytes < before + part.size_bytes {
            let within = at_bytes - before;
            let rest = usize::try_from(part.size_bytes - within).unwrap();
            return (part.address.as_u64() + within, rest);
        }
        before += part.size_bytes;
    }
    panic!("no part holds byte {at_bytes}");
}

/// What `load` does: digests in the scenario, contents in the owned pages.
fn load(scenario: &mut Scenario, seed: u64, memory: &mut Memory) -> Vec<(Place, Vec<u8>)> {
    let mut loaded = Vec::new();
    let places = [
        (Some(&scenario.layout.image), Some(&mut scenario.image)),
        (scenario.layout.initrd.as_ref(), scenario.initrd.as_mut()),
        (
            Some(&scenario.layout.device_tree),
            Some(&mut scenario.device_tree),
        ),
    ];
    for (number, (place, content)) in (0_u64..).zip(places) {
        let (Some(place), Some(content)) = (place, content) else {
            continue;
        };
        let size_bytes = usize::try_from(content.size_bytes).unwrap();
        let bytes = random_bytes(seed.wrapping_add(number * 77), size_bytes);
        // As the user chose, another one for each piece.
        content.digests = match (seed + number) % 5 {
            0 => Digests::none(),
            1 | 2 => Digests::of(Algorithm::Sha256, &bytes),
            _ => Digests::of(Algorithm::Crc32c, &bytes),
        };
        let mut done = 0;
        while done < bytes.len() {
            let (address, most) = whereabouts(place, place.offset_bytes + done as u64);
            let count = most.min(bytes.len() - done);
            memory.write(address, &bytes[done..done + count]);
            done += count;
        }
        loaded.push((place.clone(), bytes));
    }
    loaded
}

/// Machine and block at the moment of the first Rust instruction.
fn enter(stage: &Stage, level: Level, memory: Memory) -> (Simulated<'_>, Vec<u8>) {
    let el = if level == Level::El2 {
        El::El2
    } else {
        El::El1
    };
    let header = hand_off(stage).header;
    let mut machine = Simulated {
        memory,
        walker: super::tables::machine(stage, el),
        mair: header.mair,
        ticks: COUNTER_START,
        copies: 0,
        cleaned: vec![],
        redistributors: vec![],
        disabled: vec![],
    };
    // `kexec_load` has put it there.
    machine.memory.write(stage.start.as_u64(), &stage.bytes);
    let start = stage.start.as_u64();
    machine.check(start, abi::PROGRAM_MAX_BYTES, Kind::Execute);
    machine.check(
        start + STACK_OFFSET_BYTES,
        abi::STACK_SIZE_BYTES,
        Kind::Write,
    );
    if let Some(uart) = header.uart {
        machine.check(uart.base(), 0x100, Kind::Registers);
    }
    // As the program reads it: the size first, then as much as that says.
    let block = start + HAND_OFF_OFFSET_BYTES;
    machine.check(block, 16, Kind::Read);
    let size_bytes = machine.memory.read(block + 8, 8);
    let size_bytes = u64::from_le_bytes(size_bytes.try_into().unwrap());
    machine.check(block, size_bytes, Kind::Read);
    let block = machine.memory.read(block, size_bytes);
    (machine, block)
}

fn entry(level: Level) -> Entry {
    Entry {
        entered: COUNTER_START - 2,
        mmu_on: COUNTER_START - 1,
        level,
    }
}

fn run(mut scenario: Scenario, level: Level, seed: u64) {
    let mut memory = Memory {
        frames: HashMap::new(),
        seed,
    };
    let loaded = load(&mut scenario, seed, &mut memory);
    let stage = scenario.prepare().unwrap();
    let (mut machine, block) = enter(&stage, level, memory);
    let mut expected = machine.memory.clone();
    let timeline = relocate(&block, entry(level), &mut machine).unwrap();

    // Every piece is where it belongs, but for the record that was written into the device tree.
    for (place, bytes) in &loaded {
        expected.write(place.target.start().as_u64() + place.offset_bytes, bytes);
    }
    let record = scenario.timeline();
    expected.write(record, &timeline.encode());
    // Frames that only one side has looked at are noise on the other side too.
    let frames: Vec<u64> = expected
        .frames
        .keys()
        .chain(machine.memory.frames.keys())
        .copied()
        .collect();
    for frame in frames {
        assert!(
            expected.frame(frame) == machine.memory.frame(frame),
            "memory at {:#x} is not as it should be",
            frame * FRAME_BYTES as u64
        );
    }

    // The record is what the run says, and the run is what was planned.
    let found = machine.memory.read(record, timeline::SIZE_BYTES as u64);
    assert_eq!(Timeline::decode(&found), Ok(timeline));
    let summary = &stage.summary;
    assert_eq!(
        (timeline.moves, timeline.moved_bytes),
        (summary.moves, summary.moved_bytes)
    );
    assert_eq!(machine.copies, summary.moves);
    assert_eq!(machine.copies == 0, scenario.layout.is_in_place());
    assert_eq!(timeline.verified_bytes, summary.verified_bytes);
    assert_eq!((timeline.tables, timeline.level), (summary.tables, level));
    assert_eq!(timeline.exec_requested, 0x1234_5678);
    let redistributors: Vec<u64> = scenario
        .redistributors
        .iter()
        .flat_map(|device| {
            let first = device.range.start().as_u64();
            let count = device.range.size_bytes() / lpi::REDISTRIBUTOR_BYTES;
            (0..count).map(move |index| first + index * lpi::REDISTRIBUTOR_BYTES)
        })
        .collect();
    assert_eq!(machine.redistributors, redistributors);
    assert_eq!(machine.disabled, redistributors);
    assert_eq!(timeline.lpis_disabled, redistributors.len() as u64);

    // Clean to the point of coherency: the whole Image with its BSS, and every byte that was written.
    let cleaned: PhysRanges = machine
        .cleaned
        .iter()
        .map(|&(start, size_bytes)| range(start, size_bytes))
        .collect();
    let image = range(
        scenario.layout.image.start().as_u64(),
        scenario.image_size_bytes,
    );
    let record = range(record, timeline::SIZE_BYTES as u64);
    let pieces = loaded
        .iter()
        .map(|(place, bytes)| range(place.start().as_u64(), bytes.len() as u64));
    for wanted in pieces.chain([image, record]) {
        assert!(cleaned.contains_range(wanted), "{wanted} is not cleaned");
    }
}

fn any_level() -> impl proptest::strategy::Strategy<Value = Level> {
    proptest::sample::select(vec![Level::El1, Level::El2, Level::El2Vhe])
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn every_piece_arrives_and_nothing_else_changes(
        scenario in any_scenario(7 * MIB),
        level in any_level(),
        seed in any::<u64>(),
    ) {
        if skipped("every_piece_arrives_and_nothing_else_changes") {
            return Ok(());
        }
        run(scenario, level, seed);
    }

    /// One bit of the payload flipped after load: the hand-over stops, whatever is moved or in place, and says in
    /// which chunk; unless nobody wanted that piece to be verified.
    #[test]
    fn a_flipped_bit_stops_the_hand_over(
        scenario in any_scenario(3 * MIB),
        level in any_level(),
        seed in any::<u64>(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8_u32,
    ) {
        if skipped("a_flipped_bit_stops_the_hand_over") {
            return Ok(());
        }
        let mut scenario = scenario;
        let mut memory = Memory { frames: HashMap::new(), seed };
        let loaded = load(&mut scenario, seed, &mut memory);
        let stage = scenario.prepare().unwrap();
        let (place, bytes) = &loaded[at.index(loaded.len())];
        let byte = at.index(bytes.len()) as u64 + place.offset_bytes;
        let (address, _) = whereabouts(place, byte);
        let flipped = memory.read(address, 1)[0] ^ (1 << bit);
        memory.write(address, &[flipped]);
        let (mut machine, block) = enter(&stage, level, memory);
        let result = relocate(&block, entry(level), &mut machine);
        let pieces: Vec<Piece> = hand_off(&stage).pieces().collect();
        if pieces.iter().any(|piece| piece.start == place.start().as_u64() && piece.algorithm.is_none()) {
            prop_assert!(result.is_ok(), "{:?}", result);
            return Ok(());
        }
        let failure = result.unwrap_err();
        let chunk_bytes = chunk_size_bytes(bytes.len() as u64);
        let chunk = place.start().as_u64() + at.index(bytes.len()) as u64 / chunk_bytes * chunk_bytes;
        let stopped = matches!(failure, Failure::Digest { start, .. } if start == chunk);
        prop_assert!(stopped, "{:?}", failure);
        prop_assert!(machine.cleaned.is_empty(), "nothing is done after it");
    }
}

/// Known cases, so that no seed is needed: both strategies, all levels and granules, a text offset.
#[test]
fn known_hand_overs() {
    if skipped("known_hand_overs") {
        return;
    }
    for (strategy, bits) in [
        (crate::Strategy::InPlace, u64::MAX),
        (crate::Strategy::Relocate, 0x5555_5555),
        (crate::Strategy::Auto, 0b1110_1011),
    ] {
        for (granule_bytes, level) in
            GRANULES
                .into_iter()
                .zip([Level::El1, Level::El2, Level::El2Vhe])
        {
            let image = (2 * MIB + 4099, 3 * MIB, 0x8_0000);
            let mut scenario = scenario(bits, strategy, image, MIB + 1, 4097);
            scenario.granule_bytes = granule_bytes;
            run(scenario, level, 1);
        }
    }
}
