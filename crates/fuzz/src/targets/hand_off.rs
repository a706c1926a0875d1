//! The hand-off block.

use kleap_relocator::abi::{
    self, BLOCK_ALIGNMENT_BYTES, HEADER_WORDS, HandOff, MAGIC, MOVE_WORDS, MOVES_MAX, Move,
    PIECE_WORDS, PIECES_MAX, Piece, REDISTRIBUTORS_MAX, REDISTRIBUTORS_WORDS, Redistributors, Rule,
    word,
};
use kleap_relocator::crc32c;
use kleap_relocator::digest::{Algorithm, chunk_count};

/// Most of each array in a block that was set right, count: few, so that it stays short.
const ARRAY_MAX: u64 = 6;
/// Most bytes of a piece in a plausible block: four chunks.
const PIECE_MAX_BYTES: u64 = 4 << 20;

fn get(block: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(block[index * 8..][..8].try_into().unwrap())
}

fn put(block: &mut [u8], index: usize, value: u64) {
    block[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
}

/// Sets the digest right.
pub(crate) fn sign(block: &mut [u8]) {
    put(block, word::CRC32C, 0);
    let digest = crc32c::update(0, block);
    put(block, word::CRC32C, u64::from(digest));
}

/// A block of these bytes whose frame is right: magic, counts, size, digest. All else is as the bytes say, or, if
/// it is to be plausible, what nothing would get past is bent: codes, sizes, the number of digests, what must be
/// where something else is.
pub(crate) fn repaired(data: &[u8], is_plausible: bool) -> Vec<u8> {
    let mut block = data.to_vec();
    block.resize(HEADER_WORDS * 8, 0);
    let mut rest = data.get(HEADER_WORDS * 8..).unwrap_or_default();
    let mut array = |words: usize| {
        let (taken, left) = rest.split_at(rest.len().min(words * 8));
        rest = left;
        let mut array = taken.to_vec();
        array.resize(words * 8, 0);
        array
    };
    let mut count = |index: usize| {
        let count = get(&block, index) % (ARRAY_MAX + 1);
        put(&mut block, index, count);
        usize::try_from(count).unwrap()
    };
    let (pieces, moves) = (count(word::PIECES), count(word::MOVES));
    let (regions, mut digest_words) = (count(word::REDISTRIBUTORS), count(word::DIGEST_WORDS));
    let mut piece_bytes = array(pieces * PIECE_WORDS);
    let mut crc_words = Vec::new();
    if is_plausible {
        let stack_end = get(&block, word::STAGE).wrapping_add(abi::HAND_OFF_OFFSET_BYTES);
        put(&mut block, word::STACK_END, stack_end);
        digest_words = 0;
        for piece in piece_bytes.chunks_exact_mut(PIECE_WORDS * 8) {
            let kind = 1 + get(piece, 0) % 5;
            put(piece, 0, kind);
            for at in [2, 4] {
                let size_bytes = get(piece, at) % (PIECE_MAX_BYTES + 1);
                put(piece, at, size_bytes);
            }
            match kind {
                1 => put(piece, 1, get(&block, word::KERNEL_ENTRY)),
                3 => put(piece, 1, get(&block, word::DEVICE_TREE)),
                _ => {}
            }
            // Inside of a large one, outside of a small one.
            if kind == 3 && get(&block, word::TIMELINE) != 0 {
                let offset_bytes = get(&block, word::TIMELINE) & 0xfff;
                let timeline = get(piece, 1).wrapping_add(offset_bytes);
                put(&mut block, word::TIMELINE, timeline);
            }
            let code = get(piece, 3) % 3;
            put(piece, 3, code);
            let words = Algorithm::from_code(code).flatten().map_or(0, |algorithm| {
                chunk_count(get(piece, 2)) * algorithm.digest_words()
            });
            if code == 1 {
                crc_words.extend(digest_words..digest_words + words);
            }
            digest_words += words;
        }
        for index in [
            word::PROGRAM_CRC32C,
            word::TABLES_TWO_PRIVILEGES_CRC32C,
            word::TABLES_ONE_PRIVILEGE_CRC32C,
        ] {
            let crc = get(&block, index) & 0xffff_ffff;
            put(&mut block, index, crc);
        }
        for (index, codes) in [
            (word::UART_KIND, 2),
            (word::PSCI_CONDUIT, 3),
            (word::LPIS, 2),
            (word::PORTABLE, 2),
            (word::VERBOSE, 2),
            (word::ON_FAILURE, 3),
        ] {
            let code = get(&block, index) % codes;
            put(&mut block, index, code);
        }
        put(&mut block, word::DIGEST_WORDS, digest_words as u64);
    }
    let mut digests = array(digest_words);
    for index in crc_words {
        let crc = get(&digests, index) & 0xffff_ffff;
        put(&mut digests, index, crc);
    }
    let move_bytes = array(moves * MOVE_WORDS);
    let mut region_bytes = array(regions * REDISTRIBUTORS_WORDS);
    if is_plausible {
        for region in region_bytes.chunks_exact_mut(REDISTRIBUTORS_WORDS * 8) {
            let (size_bytes, stride) = (get(region, 1), get(region, 2));
            put(region, 1, size_bytes & 0xfff_ffff);
            put(region, 2, (stride & 7) << 16);
        }
    }
    for array in [piece_bytes, digests, move_bytes, region_bytes] {
        block.extend(array);
    }
    block.resize(block.len().next_multiple_of(BLOCK_ALIGNMENT_BYTES), 0);
    put(&mut block, word::MAGIC, MAGIC);
    let size_bytes = block.len() as u64;
    put(&mut block, word::SIZE_BYTES, size_bytes);
    sign(&mut block);
    block
}

/// Everything that is in a block.
#[derive(Debug, PartialEq)]
struct Contents {
    header: abi::Header,
    pieces: Vec<Piece>,
    digests: Vec<u64>,
    moves: Vec<Move>,
    redistributors: Vec<Redistributors>,
}

fn contents(hand_off: &HandOff<'_>) -> Contents {
    Contents {
        header: hand_off.header,
        pieces: hand_off.pieces().collect(),
        digests: hand_off.digest_words().collect(),
        moves: hand_off.moves().collect(),
        redistributors: hand_off.redistributors().collect(),
    }
}

fn check(bytes: &[u8], hand_off: &HandOff<'_>) {
    let found = contents(hand_off);
    let header = &found.header;
    assert!(found.pieces.len() <= PIECES_MAX && found.moves.len() <= MOVES_MAX);
    assert!(found.redistributors.len() <= REDISTRIBUTORS_MAX);
    let ends = |start: u64, size_bytes: u64| start.checked_add(size_bytes).is_some();
    assert!(ends(header.stage, header.stage_size_bytes));
    for piece in &found.pieces {
        assert!(ends(piece.start, piece.size_bytes) && ends(piece.start, piece.clean_size_bytes));
    }
    for copy in &found.moves {
        assert!(ends(copy.target, copy.size_bytes) && ends(copy.source, copy.size_bytes));
    }
    assert!(
        found
            .redistributors
            .iter()
            .all(|region| ends(region.start, region.size_bytes))
    );
    assert_eq!(abi::console_of(bytes), header.uart);
    assert_eq!(abi::is_portable(bytes), header.portable);
    assert_eq!(abi::on_failure_of(bytes), header.on_failure);
    assert_eq!(abi::record_of(bytes), header.record);
    assert!(
        header
            .record
            .is_none_or(|record| ends(record.start, record.size_bytes))
    );

    // The chunks are the pieces that are verified, each byte once, in order, and each has a digest.
    let mut chunks = hand_off.chunks();
    for piece in &found.pieces {
        let Some(algorithm) = piece.algorithm else {
            continue;
        };
        let mut at = piece.start;
        while at < piece.start + piece.size_bytes {
            let chunk = chunks.next().expect("a piece has all of its chunks");
            assert_eq!((chunk.kind, chunk.start), (piece.kind, at));
            assert_eq!(chunk.algorithm, algorithm);
            assert!(chunk.size_bytes > 0 && chunk.expected.is_some());
            at += chunk.size_bytes;
        }
        assert_eq!(at, piece.start + piece.size_bytes);
    }
    assert!(chunks.next().is_none(), "a chunk of no piece");

    // Encoded again it says the same. (Words that mean nothing are not kept.)
    let block = abi::encode(
        header,
        &found.pieces,
        &found.digests,
        &found.moves,
        &found.redistributors,
    )
    .expect("within its limits");
    let again = HandOff::decode(&block).expect("what was encoded is a block");
    assert_eq!(contents(&again), found);
}

/// The bytes as they are; then with a right frame; then with one bit of that flipped.
pub fn run(data: &[u8]) {
    let _ = (
        abi::console_of(data),
        abi::on_failure_of(data),
        abi::record_of(data),
    );
    match HandOff::decode(data) {
        Ok(hand_off) => check(data, &hand_off),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // Half of the time plausible, else hardly anything gets further.
    let is_plausible = data.first().is_some_and(|byte| byte & 1 == 0);
    let mut block = repaired(data, is_plausible);
    match HandOff::decode(&block) {
        Ok(hand_off) => check(&block, &hand_off),
        Err(error) => {
            let of_the_frame = matches!(error.rule, Rule::Magic | Rule::Size)
                || (error.rule == Rule::Count && error.value <= abi::REDISTRIBUTOR_FRAMES_MAX)
                || (is_plausible && matches!(error.rule, Rule::Digests | Rule::Digest));
            assert!(!of_the_frame, "{error} in a block whose frame is right");
            assert!(!error.to_string().is_empty());
        }
    }
    let bit = data
        .last_chunk::<2>()
        .map_or(0, |last| usize::from(u16::from_le_bytes(*last)))
        % (block.len() * 8);
    block[bit / 8] ^= 1 << (bit % 8);
    let flipped = HandOff::decode(&block);
    assert!(flipped.is_err(), "bit {bit} is flipped, and nobody noticed");
}
