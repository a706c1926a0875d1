//! A simulated machine: memory in a `Vec`, a counter that ticks, a log of what was done to what.

use super::*;
use crate::abi::{self, Lpis, Piece, PieceKind, Redistributors};
use crate::digest::{self, Digests};
use proptest::prelude::*;

const MEMORY_START: u64 = 0x4000_0000;
const MEMORY_BYTES: usize = 0x8_0000;
const STAGE: u64 = MEMORY_START + 0x4_0000;
const STAGE_BYTES: u64 = 0x2_4000;

struct Simulated {
    memory: Vec<u8>,
    ticks: u64,
    cleaned: Vec<(u64, u64)>,
    page_sizes: Vec<u64>,
    events: Vec<&'static str>,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        let mut state = seed | 1;
        let memory = (0..MEMORY_BYTES)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        Self {
            memory,
            ticks: 100,
            cleaned: vec![],
            page_sizes: vec![4096],
            events: vec![],
        }
    }

    fn slice(&mut self, start: u64, size_bytes: u64) -> &mut [u8] {
        let start = usize::try_from(start - MEMORY_START).unwrap();
        &mut self.memory[start..][..usize::try_from(size_bytes).unwrap()]
    }
}

impl Machine for Simulated {
    fn counter(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
    fn frequency_hz(&mut self) -> u64 {
        1000
    }
    fn supports_page_size(&mut self, page_size_bytes: u64) -> bool {
        self.page_sizes.contains(&page_size_bytes)
    }
    /// One redistributor, without a second behind it; its LPIs are on, and can be turned off.
    fn read_register32(&mut self, _: u64) -> u32 {
        u32::from(!self.events.contains(&"lpis off"))
    }
    fn read_register64(&mut self, _: u64) -> u64 {
        0b1_0001
    }
    fn write_register32(&mut self, _: u64, _: u32) {
        self.events.push("lpis off");
    }
    fn copy(&mut self, target: u64, source: u64, size_bytes: u64) {
        self.events.push("copy");
        let bytes = self.slice(source, size_bytes).to_vec();
        self.slice(target, size_bytes).copy_from_slice(&bytes);
    }
    fn digest(&mut self, algorithm: Algorithm, start: u64, size_bytes: u64) -> Digest {
        self.events.push("digest");
        digest::on_host(algorithm, &[self.slice(start, size_bytes)])
    }
    fn has_instructions(&mut self, algorithm: Algorithm) -> bool {
        algorithm == Algorithm::Sha256
    }
    fn clean(&mut self, start: u64, size_bytes: u64) {
        self.events.push("clean");
        self.cleaned.push((start, size_bytes));
    }
    fn read(&mut self, start: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.slice(start, bytes.len() as u64));
    }
    fn write(&mut self, start: u64, bytes: &[u8]) {
        self.events.push("write");
        self.slice(start, bytes.len() as u64).copy_from_slice(bytes);
    }
}

const ENTRY: Entry = Entry {
    entered: 50,
    mmu_on: 60,
    level: Level::El2,
};

fn header() -> Header {
    Header {
        stage: STAGE,
        stage_size_bytes: STAGE_BYTES,
        mair: 0,
        tcr_two_privileges: 0,
        ttbr_two_privileges: 0,
        tcr_one_privilege: 0,
        ttbr_one_privilege: 0,
        physical_size_max: 5,
        kernel_entry: MEMORY_START,
        device_tree: MEMORY_START + 0x1000,
        timeline: Some(MEMORY_START + 0x1100),
        exec_requested: 7,
        exec_prepared: 8,
        uart: None,
        psci: None,
        lpis: Lpis::TurnOff,
        kernel_page_size_bytes: 4096,
        tables_two_privileges: 3,
        tables_one_privilege: 4,
        table_size_bytes: 4096,
        program_size_bytes: 0,
        program_crc32c: 0,
        tables_two_privileges_crc32c: 0,
        tables_one_privilege_crc32c: 0,
        portable: false,
        verbose: false,
        on_failure: abi::OnFailure::Reset,
        record: None,
    }
}

/// Moves `sources[i]` to consecutive targets, with the piece that results.
fn scattered(
    machine: &mut Simulated,
    sources: &[u64],
    size_bytes: u64,
) -> (Vec<Move>, Piece, Vec<u64>) {
    let start = MEMORY_START;
    let mut content = vec![];
    let mut moves = vec![];
    for (index, &source) in sources.iter().enumerate() {
        content.extend_from_slice(machine.slice(source, size_bytes));
        moves.push(Move {
            target: start + index as u64 * size_bytes,
            source,
            size_bytes,
        });
    }
    let piece = Piece {
        kind: PieceKind::Image,
        start,
        size_bytes: content.len() as u64,
        algorithm: Some(Algorithm::Crc32c),
        clean_size_bytes: content.len() as u64 + 64,
    };
    (moves, piece, Digests::of(Algorithm::Crc32c, &content).words)
}

#[test]
fn a_hand_over_moves_verifies_cleans_and_records_in_this_order() {
    let mut machine = Simulated::new(1);
    let sources = [MEMORY_START + 0x2_3000, MEMORY_START + 0x2_1000];
    let (moves, piece, digests) = scattered(&mut machine, &sources, 0x800);
    let regions = [Redistributors {
        start: 0x80a_0000,
        size_bytes: 0x4_0000,
        stride_bytes: 0,
    }];
    let block = abi::encode(&header(), &[piece], &digests, &moves, &regions).unwrap();
    let timeline = relocate(&block, ENTRY, &mut machine).unwrap();
    assert_eq!(
        machine.events,
        [
            "lpis off", "copy", "copy", "digest", "clean", "write", "clean"
        ]
    );
    assert_eq!(machine.cleaned[0], (MEMORY_START, 0x1040));
    assert_eq!(
        (
            timeline.moves,
            timeline.moved_bytes,
            timeline.verified_bytes
        ),
        (2, 0x1000, 0x1000)
    );
    assert_eq!(
        (
            timeline.redistributors,
            timeline.lpis_disabled,
            timeline.lpis_stuck,
            timeline.lpis_reserved
        ),
        (1, 1, 0, 0)
    );
    assert_eq!(
        timeline.tables, 4,
        "EL2 without E2H uses the one-privilege tables"
    );
    let record = machine
        .slice(MEMORY_START + 0x1100, SIZE_BYTES as u64)
        .to_vec();
    assert_eq!(Timeline::decode(&record), Ok(timeline));
    let times = [
        timeline.relocator_entered,
        timeline.mmu_on,
        timeline.quiesced,
        timeline.moves_done,
        timeline.verified,
        timeline.cleaned,
        timeline.kernel_entered,
    ];
    assert!(times.is_sorted(), "{times:?}");
}

/// With `--verify none` the payload's pieces have no digests; the others have.
#[test]
fn what_has_no_digest_is_moved_and_cleaned_all_the_same() {
    let mut machine = Simulated::new(1);
    let (moves, mut piece, digests) = scattered(&mut machine, &[MEMORY_START + 0x2_0000], 0x800);
    piece.algorithm = None;
    let refused = abi::encode(&header(), &[piece], &digests, &moves, &[]).unwrap_err();
    assert_eq!(refused.rule, abi::Rule::Digests);
    let program = Piece {
        kind: PieceKind::Program,
        start: STAGE,
        size_bytes: 0x40,
        algorithm: Some(Algorithm::Crc32c),
        clean_size_bytes: 0,
    };
    let digests = Digests::of(Algorithm::Crc32c, machine.slice(STAGE, 0x40)).words;
    let block = abi::encode(&header(), &[piece, program], &digests, &moves, &[]).unwrap();
    let timeline = relocate(&block, ENTRY, &mut machine).unwrap();
    assert_eq!(
        machine.events,
        ["copy", "digest", "clean", "clean", "write", "clean"]
    );
    assert_eq!(timeline.algorithm, None);
    assert_eq!(timeline.verified_bytes, 0x40);
    // The program was looked at after all.
    let mut machine = Simulated::new(1);
    machine.slice(STAGE + 0x3f, 1)[0] ^= 0x80;
    let failure = relocate(&block, ENTRY, &mut machine).unwrap_err();
    let found = matches!(
        failure,
        Failure::Digest {
            kind: PieceKind::Program,
            ..
        }
    );
    assert!(found, "{failure}");
}

#[test]
fn a_page_size_the_cpu_lacks_stops_it_before_anything_is_touched() {
    let mut machine = Simulated::new(2);
    machine.page_sizes = vec![16384];
    let block = abi::encode(&header(), &[], &[], &[], &[]).unwrap();
    let failure = relocate(&block, ENTRY, &mut machine).unwrap_err();
    assert_eq!(
        failure,
        Failure::PageSize {
            page_size_bytes: 4096
        }
    );
    assert!(machine.events.is_empty());
}

#[test]
fn moves_that_touch_the_relocator_are_refused() {
    for (target, source, refused) in [
        (STAGE - 0x7ff, MEMORY_START, true),
        (STAGE - 0x800, MEMORY_START, false),
        (STAGE + STAGE_BYTES - 1, MEMORY_START, true),
        (STAGE + STAGE_BYTES, MEMORY_START, false),
        (MEMORY_START, STAGE - 0x7ff, true),
        (MEMORY_START, STAGE - 0x800, false),
        (MEMORY_START, STAGE + STAGE_BYTES - 1, true),
        (MEMORY_START, STAGE + STAGE_BYTES, false),
        // Their own source is no obstacle.
        (MEMORY_START + 0x7ff, MEMORY_START, false),
        (MEMORY_START, MEMORY_START + 1, false),
        (MEMORY_START, MEMORY_START, false),
    ] {
        let mut machine = Simulated::new(3);
        let moves = [Move {
            target,
            source,
            size_bytes: 0x800,
        }];
        let block = abi::encode(&header(), &[], &[], &moves, &[]).unwrap();
        let result = relocate(&block, ENTRY, &mut machine);
        assert_eq!(
            result.is_err(),
            refused,
            "to {target:#x} from {source:#x}: {result:?}"
        );
        assert_eq!(machine.events.contains(&"copy"), !refused);
    }
}

#[test]
fn a_move_past_the_last_address_is_refused() {
    for (target, source) in [(u64::MAX - 0x7fe, MEMORY_START), (MEMORY_START, u64::MAX)] {
        let mut machine = Simulated::new(3);
        let moves = [Move {
            target,
            source,
            size_bytes: 0x800,
        }];
        let block = abi::encode(&header(), &[], &[], &moves, &[]).unwrap();
        let failure = relocate(&block, ENTRY, &mut machine).unwrap_err();
        assert!(matches!(failure, Failure::HandOff(_)), "{failure:?}");
        assert!(machine.events.is_empty());
    }
}

/// The order of the block is kept: pages go round in a circle by way of a spare one, and a run is shifted
/// onto itself, up and down.
#[test]
fn cycles_and_shifts_end_as_planned() {
    const PAGE: u64 = 0x1000;
    let page = |number: u64| MEMORY_START + number * PAGE;
    let copy = |target: u64, source: u64, pages: u64| Move {
        target: page(target),
        source: page(source),
        size_bytes: pages * PAGE,
    };
    // Held by each page in the end, by number; 15 is the spare one.
    let wanted: [u64; 12] = [1, 2, 3, 0, 4, 4, 5, 6, 9, 10, 11, 11];
    let moves = [
        copy(15, 0, 1),
        copy(0, 1, 3),
        copy(3, 15, 1),
        copy(5, 4, 3),
        copy(8, 9, 3),
    ];
    let mut machine = Simulated::new(4);
    let content: Vec<u8> = wanted
        .iter()
        .flat_map(|&number| machine.slice(page(number), PAGE).to_vec())
        .collect();
    let piece = Piece {
        kind: PieceKind::Initrd,
        start: MEMORY_START,
        size_bytes: content.len() as u64,
        algorithm: Some(Algorithm::Crc32c),
        clean_size_bytes: content.len() as u64,
    };
    let digests = Digests::of(Algorithm::Crc32c, &content).words;
    let mut header = header();
    header.timeline = Some(page(13));
    let block = abi::encode(&header, &[piece], &digests, &moves, &[]).unwrap();
    let timeline = relocate(&block, ENTRY, &mut machine).unwrap();
    assert_eq!((timeline.moves, timeline.moved_bytes), (5, 11 * PAGE));
    assert!(machine.slice(MEMORY_START, 12 * PAGE) == content);
    // In the wrong order the digest finds out.
    let mut machine = Simulated::new(4);
    let mut wrong = moves;
    wrong.swap(0, 1);
    let block = abi::encode(&header, &[piece], &digests, &wrong, &[]).unwrap();
    let failure = relocate(&block, ENTRY, &mut machine).unwrap_err();
    assert!(matches!(failure, Failure::Digest { .. }), "{failure:?}");
}

proptest! {
    /// Whatever is moved where: bytes outside the targets and the record stay, bytes inside are right.
    #[test]
    fn only_targets_and_the_record_change(seed in any::<u64>(), pages in proptest::sample::subsequence((0x20..0x40_u64).collect::<Vec<_>>(), 1..=16).prop_shuffle()) {
        let mut machine = Simulated::new(seed);
        let sources: Vec<u64> = pages.iter().map(|page| MEMORY_START + page * 0x1000).collect();
        let (moves, piece, digests) = scattered(&mut machine, &sources, 0x1000);
        let mut header = header();
        header.timeline = Some(STAGE - SIZE_BYTES as u64);
        prop_assume!(!pages.contains(&0x3f));
        let mut expected = machine.memory.clone();
        for copy in &moves {
            let at = |address: u64| usize::try_from(address - MEMORY_START).unwrap();
            expected.copy_within(at(copy.source)..at(copy.source + 0x1000), at(copy.target));
        }
        let block = abi::encode(&header, &[piece], &digests, &moves, &[]).unwrap();
        let timeline = relocate(&block, ENTRY, &mut machine).unwrap();
        let record_at = usize::try_from(STAGE - MEMORY_START).unwrap() - SIZE_BYTES;
        expected[record_at..][..SIZE_BYTES].copy_from_slice(&timeline.encode());
        prop_assert!(machine.memory == expected);
    }

    /// Moves that overlap themselves and each other in any way are made as they stand in the block.
    #[test]
    fn moves_that_overlap_are_made_one_after_the_other(
        seed in any::<u64>(),
        moves in proptest::collection::vec((0..0x4_0000_u64, 0..0x4_0000_u64, 0..0x1_0000_u64), 0..12),
    ) {
        let mut machine = Simulated::new(seed);
        let mut header = header();
        header.timeline = None;
        let moves: Vec<Move> = moves
            .into_iter()
            .map(|(target, source, size_bytes)| Move {
                target: MEMORY_START + target,
                source: MEMORY_START + source,
                // Up to the stage.
                size_bytes: size_bytes.min(0x4_0000 - target.max(source)),
            })
            .collect();
        let mut expected = machine.memory.clone();
        for copy in &moves {
            let at = |address: u64| usize::try_from(address - MEMORY_START).unwrap();
            expected.copy_within(at(copy.source)..at(copy.source + copy.size_bytes), at(copy.target));
        }
        let block = abi::encode(&header, &[], &[], &moves, &[]).unwrap();
        let timeline = relocate(&block, ENTRY, &mut machine).unwrap();
        prop_assert_eq!(timeline.moves, moves.len() as u64);
        prop_assert!(machine.memory == expected);
    }

    /// One flipped bit anywhere in a piece is found by either algorithm, and nothing after verification is done.
    #[test]
    fn a_flipped_bit_is_found(seed in any::<u64>(), bit in 0..0x1000_u64 * 8, sha256 in any::<bool>()) {
        let mut machine = Simulated::new(seed);
        let source = MEMORY_START + 0x2_0000;
        let (moves, mut piece, mut digests) = scattered(&mut machine, &[source], 0x1000);
        if sha256 {
            piece.algorithm = Some(Algorithm::Sha256);
            digests = Digests::of(Algorithm::Sha256, machine.slice(source, 0x1000)).words;
        }
        machine.slice(source + bit / 8, 1)[0] ^= 1 << (bit % 8);
        let block = abi::encode(&header(), &[piece], &digests, &moves, &[]).unwrap();
        let failure = relocate(&block, ENTRY, &mut machine).unwrap_err();
        let stopped = matches!(failure, Failure::Digest { kind: PieceKind::Image, .. });
        prop_assert!(stopped, "{:?}", failure);
        prop_assert_eq!(machine.events, ["copy", "digest"]);
    }
}
