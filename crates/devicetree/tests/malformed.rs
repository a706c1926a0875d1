//! Blobs that are no trees: refused with a reason, and never a panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::path::Path;

use common::{CORPUS_VARIABLE, FIXTURES, VIRT, files_below, put_u32};
use kleap_devicetree::{
    BlobError, Error, MAX_DEPTH, MAX_DTB_BYTES, MAX_MEMORY_RESERVATIONS, MAX_NODES, NextBoot, Tree,
    find_property_value,
};
use proptest::prelude::*;

/// A blob out of a structure block, with `a` as its only property name.
fn blob(structure: &[u32]) -> Vec<u8> {
    let structure_bytes = u32::try_from(4 * structure.len()).unwrap();
    let mut words = vec![
        0xd00d_feed,
        56 + structure_bytes + 4,
        56,
        56 + structure_bytes,
        40,
        17,
        16,
        0,
        2,
        structure_bytes,
        0,
        0,
        0,
        0,
    ];
    words.extend_from_slice(structure);
    words.push(u32::from_be_bytes(*b"a\0\0\0"));
    words.into_iter().flat_map(u32::to_be_bytes).collect()
}

const BEGIN: u32 = 1;
const STOP: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
const NAME_N: u32 = u32::from_be_bytes(*b"n\0\0\0");

/// Everything that reads a tree, on bytes that may be anything.
fn exercise(bytes: &[u8]) {
    let _ = find_property_value(bytes, "/chosen", "bootargs");
    let Ok(mut tree) = Tree::parse(bytes) else {
        return;
    };
    let _ = (tree.console(), tree.psci(), tree.gic_v3_redistributors());
    let _ = (
        tree.memory(),
        tree.reserved_memory(),
        tree.memory_reservations(),
    );
    let _ = (tree.bootargs(), tree.initrd(), format!("{tree:?}"));
    let written = tree.to_dtb().expect("what was read is small enough");
    assert_eq!(Tree::parse(&written).as_ref(), Ok(&tree));
    let _ = tree
        .prepare(&NextBoot {
            bootargs: "x",
            initrd: None,
            kaslr_seed: 1,
            rng_seed: &[1],
            timeline_bytes: 8,
            old_dtb: None,
            secure_boot: None,
            crash: None,
        })
        .expect("nothing here is refused");
    let written = tree.to_dtb().expect("small enough");
    assert_eq!(
        find_property_value(&written, "/chosen", "kleap,timeline")
            .unwrap()
            .len(),
        8
    );
}

#[test]
fn the_smallest_tree_is_one() {
    for structure in [
        &[BEGIN, 0, STOP, END][..],
        &[
            NOP, BEGIN, 0, NOP, PROP, 0, 0, NOP, BEGIN, NAME_N, NOP, STOP, NOP, STOP, NOP, END,
        ],
    ] {
        Tree::parse(&blob(structure)).expect("a tree");
        exercise(&blob(structure));
    }
}

#[test]
fn structures_that_are_none_are_refused() {
    let refuse = |structure: &[u32]| {
        exercise(&blob(structure));
        Tree::parse(&blob(structure)).expect_err("malformed")
    };
    for structure in [
        &[][..],
        &[END],
        &[BEGIN],
        &[BEGIN, 0],
        &[BEGIN, 0, STOP],
        &[BEGIN, 0, END],
        &[STOP, END],
        &[PROP, 0, 0, END],
        &[BEGIN, NAME_N, STOP, END],
        &[BEGIN, 0, STOP, STOP, END],
        &[BEGIN, 0, STOP, BEGIN, 0, STOP, END],
        &[BEGIN, 0, 5, STOP, END],
        // A value that is too long, a name outside of the strings, an empty name.
        &[BEGIN, 0, PROP, 13, 0, STOP, END],
        &[BEGIN, 0, PROP, u32::MAX, 0, STOP, END],
        &[BEGIN, 0, PROP, 0, 2, STOP, END],
        &[BEGIN, 0, PROP, 0, u32::MAX, STOP, END],
        &[BEGIN, 0, PROP, 0, 1, STOP, END],
        // A property after a node, a node without a name, names that are none.
        &[BEGIN, 0, BEGIN, NAME_N, STOP, PROP, 0, 0, STOP, END],
        &[BEGIN, 0, BEGIN, 0, STOP, STOP, END],
        &[
            BEGIN,
            0,
            BEGIN,
            u32::from_be_bytes(*b"a/b\0"),
            STOP,
            STOP,
            END,
        ],
        &[
            BEGIN,
            0,
            BEGIN,
            u32::from_be_bytes([0xff, b'a', 0, 0]),
            STOP,
            STOP,
            END,
        ],
        &[BEGIN, 0, BEGIN, u32::from_be_bytes(*b"abcd")],
    ] {
        let error = refuse(structure);
        assert!(
            matches!(error, BlobError::Malformed { .. }),
            "{structure:?}: {error}"
        );
    }
    let error = refuse(&[BEGIN, 0, PROP, 0, 0, PROP, 0, 0, STOP, END]);
    assert!(
        matches!(
            error,
            BlobError::Duplicate {
                what: "properties",
                ..
            }
        ),
        "{error}"
    );
    let error = refuse(&[
        BEGIN, 0, BEGIN, NAME_N, STOP, BEGIN, NAME_N, STOP, STOP, END,
    ]);
    assert!(
        matches!(error, BlobError::Duplicate { what: "nodes", .. }),
        "{error}"
    );
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let mut structure = vec![BEGIN, 0];
        structure.extend([BEGIN, NAME_N].repeat(depth - 1));
        structure.extend(vec![STOP; depth]);
        structure.push(END);
        blob(&structure)
    };
    exercise(&nested(MAX_DEPTH));
    Tree::parse(&nested(MAX_DEPTH)).expect("as deep as allowed");
    for depth in [MAX_DEPTH + 1, 100_000] {
        let error = Tree::parse(&nested(depth)).expect_err("too deep");
        assert!(
            matches!(
                error,
                BlobError::Limit {
                    what: "levels",
                    limit: 64,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn numbers_are_limited() {
    let wide = |nodes: usize| {
        let mut structure = vec![BEGIN, 0];
        for index in 1..nodes {
            // Hexadecimal in eight letters, so that every name is another.
            let name = format!("{index:08x}");
            let half =
                |at: usize| u32::from_be_bytes(name.as_bytes()[at..at + 4].try_into().unwrap());
            structure.extend([BEGIN, half(0), half(4), 0, STOP]);
        }
        structure.extend([STOP, END]);
        blob(&structure)
    };
    Tree::parse(&wide(MAX_NODES)).expect("as many as allowed");
    let error = Tree::parse(&wide(MAX_NODES + 1)).expect_err("too many");
    assert!(
        matches!(error, BlobError::Limit { what: "nodes", .. }),
        "{error}"
    );

    let reserving = |entries: usize| {
        let mut blob = blob(&[BEGIN, 0, STOP, END]);
        let list = u32::try_from(blob.len().next_multiple_of(8)).unwrap();
        blob.resize(blob.len().next_multiple_of(8), 0);
        put_u32(&mut blob, 16, list);
        blob.extend([0x11; 16].repeat(entries));
        blob.extend([0; 16]);
        let total = u32::try_from(blob.len()).unwrap();
        put_u32(&mut blob, 4, total);
        blob
    };
    let tree = Tree::parse(&reserving(MAX_MEMORY_RESERVATIONS)).expect("as many as allowed");
    assert_eq!(tree.memory_reservations().len(), MAX_MEMORY_RESERVATIONS);
    exercise(&reserving(MAX_MEMORY_RESERVATIONS));
    let error = Tree::parse(&reserving(MAX_MEMORY_RESERVATIONS + 1)).expect_err("too many");
    assert!(
        matches!(
            error,
            BlobError::Limit {
                what: "memory reservations",
                ..
            }
        ),
        "{error}"
    );
    // Without the end.
    let mut endless = reserving(3);
    endless.truncate(endless.len() - 16);
    let total = u32::try_from(endless.len()).unwrap();
    put_u32(&mut endless, 4, total);
    assert!(matches!(
        Tree::parse(&endless),
        Err(BlobError::Malformed { .. })
    ));
}

#[test]
fn sizes_are_limited() {
    let mut large = VIRT.to_vec();
    large.resize(MAX_DTB_BYTES + 1, 0);
    put_u32(&mut large, 4, u32::try_from(MAX_DTB_BYTES).unwrap());
    let mut tree = Tree::parse(&large).expect("as large as allowed");
    put_u32(&mut large, 4, u32::try_from(MAX_DTB_BYTES + 1).unwrap());
    assert!(matches!(
        Tree::parse(&large),
        Err(BlobError::TooLarge { .. })
    ));
    tree.to_dtb().expect("its contents are small");

    // A tree that is filled up to the limit, and then given more.
    let value_words = MAX_DTB_BYTES / 4 - 24;
    let mut structure = vec![BEGIN, 0, PROP, u32::try_from(4 * value_words).unwrap(), 0];
    structure.extend(vec![0; value_words]);
    structure.extend([STOP, END]);
    let full = blob(&structure);
    assert!(full.len() <= MAX_DTB_BYTES);
    tree = Tree::parse(&full).expect("full");
    tree.to_dtb().expect("full");
    let next = NextBoot {
        bootargs: "",
        initrd: None,
        kaslr_seed: 1,
        rng_seed: &[],
        timeline_bytes: 64,
        old_dtb: None,
        secure_boot: None,
        crash: None,
    };
    let _ = tree.prepare(&next).expect("prepared");
    assert!(matches!(tree.to_dtb(), Err(Error::TooLarge { .. })));
}

#[test]
fn headers_are_checked() {
    let with = |at: usize, value: u32| {
        let mut blob = VIRT.to_vec();
        put_u32(&mut blob, at, value);
        Tree::parse(&blob).expect_err("damaged")
    };
    assert!(matches!(
        with(0, 0xd00d_feee),
        BlobError::Magic { magic: 0xd00d_feee }
    ));
    assert!(matches!(with(4, 39), BlobError::TotalSize { .. }));
    assert!(matches!(with(4, u32::MAX), BlobError::TotalSize { .. }));
    assert!(matches!(
        with(8, 58),
        BlobError::Block {
            block: "structure",
            ..
        }
    ));
    assert!(matches!(
        with(8, 0),
        BlobError::Block {
            block: "structure",
            ..
        }
    ));
    assert!(matches!(
        with(36, u32::MAX),
        BlobError::Block {
            block: "structure",
            ..
        }
    ));
    assert!(matches!(
        with(12, u32::MAX),
        BlobError::Block {
            block: "strings",
            ..
        }
    ));
    assert!(matches!(
        with(32, u32::MAX),
        BlobError::Block {
            block: "strings",
            ..
        }
    ));
    assert!(matches!(
        with(16, 44),
        BlobError::Block {
            block: "reservation",
            ..
        }
    ));
    assert!(matches!(
        with(20, 16),
        BlobError::Version { version: 16, .. }
    ));
    assert!(matches!(
        with(24, 18),
        BlobError::Version {
            last_compatible: 18,
            ..
        }
    ));
    for length in 0..VIRT.len() {
        Tree::parse(&VIRT[..length]).expect_err("truncated");
        exercise(&VIRT[..length]);
    }
}

/// Every bit of every fixture, one at a time.
#[test]
fn flipped_bits_never_panic() {
    for (_, blob) in FIXTURES {
        let mut blob = blob.to_vec();
        for at in 0..blob.len() {
            for bit in 0..8 {
                blob[at] ^= 1 << bit;
                exercise(&blob);
                blob[at] ^= 1 << bit;
            }
        }
    }
}

/// Real trees, damaged: fifty of them, evenly out of a directory, each in forty ways.
#[test]
fn a_damaged_corpus_never_panics() {
    let Some(directory) = std::env::var_os(CORPUS_VARIABLE) else {
        println!("SKIPPED: set {CORPUS_VARIABLE} to a directory with .dtb files to damage them");
        return;
    };
    let files = files_below(Path::new(&directory));
    // xorshift64: the same damage every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 1).unwrap() % below
    };
    let mut damaged = 0;
    for path in files.iter().step_by((files.len() / 50).max(1)) {
        let whole = std::fs::read(path).expect("file");
        for way in 0..40 {
            let mut blob = whole.clone();
            if way % 4 == 0 {
                blob.truncate(random(whole.len()));
                exercise(&blob);
                // The same, with a header that hides it.
                if blob.len() >= 8 {
                    let total = u32::try_from(blob.len()).unwrap();
                    put_u32(&mut blob, 4, total);
                }
            } else {
                for _ in 0..=way {
                    let at = random(blob.len());
                    blob[at] ^= 1 << random(8);
                }
            }
            exercise(&blob);
            damaged += 1;
        }
    }
    println!("{damaged} damaged trees, no panic");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        exercise(&bytes);
    }

    /// Arbitrary words behind a right header: gets further than arbitrary bytes.
    #[test]
    fn arbitrary_structures_never_panic(
        structure in prop::collection::vec(
            prop_oneof![Just(BEGIN), Just(STOP), Just(PROP), Just(NOP), Just(END), Just(0),
                        Just(NAME_N), any::<u32>()],
            0..64,
        )
    ) {
        exercise(&blob(&structure));
    }

    #[test]
    fn mutated_trees_never_panic(
        which in 0_usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
        words in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 0..4),
        keep in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut blob = FIXTURES[which].1.to_vec();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        for (at, value) in words {
            let at = 4 * at.index(blob.len() / 4);
            put_u32(&mut blob, at, value);
        }
        if truncate {
            blob.truncate(keep.index(blob.len()));
        }
        exercise(&blob);
    }
}
