//! What the tables say, read back by an independent walker: exactly the mappings, nothing else, with
//! exactly their attributes, in the fewest tables.
//!
//! A failure prints the smallest case that fails, and proptest keeps its seed next to this file
//! (`walk.regressions`), from where it is replayed first.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod walker;

use std::collections::BTreeSet;

use kleap_memmap::{PhysAddr, PhysRange};
use kleap_pagetable::{
    Access, Geometry, Granule, Mapping, MemoryType, OutputAddressSize, Regime, Tables, VirtAddr,
    build, table_count,
};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;
use walker::{El, Fault, Machine, Permissions, Translated};

const MEMORY_TYPES: [MemoryType; 2] = [MemoryType::Normal, MemoryType::Device];
const ACCESSES: [Access; 3] = [Access::ReadOnly, Access::ReadWrite, Access::ReadExecute];
/// Most tables that one random mapping may need: every descriptor of every table is read back.
const MAX_TABLES_PER_MAPPING: u64 = 200;
const REGIMES: [Regime; 2] = [Regime::TwoPrivileges, Regime::OnePrivilege];

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

fn virt_end(mapping: &Mapping) -> u64 {
    mapping.virt.as_u64() + mapping.phys.size_bytes()
}

/// Every geometry there is.
fn all_geometries() -> Vec<Geometry> {
    let mut geometries = Vec::new();
    for granule in Granule::ALL {
        for output in [OutputAddressSize::Bits48, OutputAddressSize::Bits52] {
            geometries
                .extend((0..=64).filter_map(|bits| Geometry::new(granule, bits, output).ok()));
        }
    }
    geometries
}

/// The CPU that runs `tables`, with as large a physical address as the descriptors allow.
fn machine(tables: &Tables) -> Machine<'_> {
    let (el, pa_range_shift) = match tables.regime() {
        Regime::TwoPrivileges => (El::El1, 32),
        Regime::OnePrivilege => (El::El2, 16),
    };
    let pa_range = match tables.geometry().output() {
        OutputAddressSize::Bits48 => 0b101,
        OutputAddressSize::Bits52 => 0b110,
    };
    Machine {
        memory: tables.bytes(),
        memory_base: tables.root().as_u64(),
        ttbr0: tables.ttbr(),
        tcr: tables.tcr() | pa_range << pa_range_shift,
        el,
    }
}

/// What the walk must give for `virt` if `mapping` maps it, but for the leaf it is found in.
fn expected(tables: &Tables, mapping: &Mapping, virt: u64) -> (u64, u64, u64, Permissions) {
    let lpa2 = tables.geometry().output() == OutputAddressSize::Bits52
        && tables.geometry().granule() != Granule::K64;
    let (attr_index, shareability) = match mapping.memory {
        MemoryType::Normal => (0, 3),
        MemoryType::Device => (1, if lpa2 { 3 } else { 2 }),
    };
    let permissions = Permissions {
        privileged_read: true,
        privileged_write: mapping.access == Access::ReadWrite,
        privileged_execute: mapping.access == Access::ReadExecute,
        unprivileged_read: false,
        unprivileged_write: false,
        unprivileged_execute: false,
    };
    let phys = mapping.phys.start().as_u64() + (virt - mapping.virt.as_u64());
    (phys, attr_index, shareability, permissions)
}

/// The walk of `virt` gives what `mappings` say, or faults if none maps it.
fn check_address(tables: &Tables, mappings: &[Mapping], virt: u64) {
    let walked = machine(tables).walk(virt);
    let mapping = mappings
        .iter()
        .find(|m| m.virt.as_u64() <= virt && virt < virt_end(m));
    match (mapping, walked) {
        (None, Err(Fault::Translation { .. })) => {}
        (Some(mapping), Ok(t)) => {
            let got = (t.phys, t.attr_index, t.shareability, t.permissions);
            assert_eq!(
                got,
                expected(tables, mapping, virt),
                "{virt:#x} of {mapping} in {tables:?}"
            );
        }
        (mapping, walked) => {
            panic!("{virt:#x}: {walked:x?} for {mapping:?} in {tables:?}, all: {mappings:?}")
        }
    }
}

/// Every leaf in the tables lies in one run of mappings that continue each other, and together they
/// are as large as the mappings; nothing is writable and executable.
fn check_leaves(tables: &Tables, mappings: &[Mapping]) {
    let (leaves, seen_tables) = machine(tables).leaves().unwrap();
    assert_eq!(
        seen_tables,
        tables.table_count(),
        "tables that nothing points to"
    );
    let merged = merge(mappings);
    for &(
        virt,
        Translated {
            permissions,
            phys,
            leaf_bytes,
            ..
        },
    ) in &leaves
    {
        assert!(
            !(permissions.privileged_write && permissions.privileged_execute),
            "{virt:#x} is writable and executable"
        );
        let mapping = merged
            .iter()
            .find(|m| m.virt.as_u64() <= virt && virt < virt_end(m));
        let mapping = mapping.unwrap_or_else(|| panic!("leaf at {virt:#x} maps what nobody named"));
        assert!(
            virt + leaf_bytes <= virt_end(mapping),
            "leaf at {virt:#x} is larger than {mapping}"
        );
        assert_eq!(
            phys,
            expected(tables, mapping, virt).0,
            "leaf at {virt:#x} of {mapping}"
        );
    }
    let leaf_bytes: u64 = leaves.iter().map(|(_, leaf)| leaf.leaf_bytes).sum();
    let mapped_bytes: u64 = mappings
        .iter()
        .map(|mapping| mapping.phys.size_bytes())
        .sum();
    assert_eq!(
        leaf_bytes, mapped_bytes,
        "bytes mapped by leaves, and asked for"
    );
}

/// Mappings, sorted, with those that continue each other as one.
fn merge(mappings: &[Mapping]) -> Vec<Mapping> {
    let mut sorted = mappings.to_vec();
    sorted.sort_by_key(|mapping| mapping.virt.as_u64());
    let mut merged: Vec<Mapping> = Vec::new();
    for mapping in sorted {
        if let Some(last) = merged.last_mut()
            && virt_end(last) == mapping.virt.as_u64()
            && last.phys.end() == mapping.phys.start()
            && (last.memory, last.access) == (mapping.memory, mapping.access)
        {
            last.phys = PhysRange::new(last.phys.start(), mapping.phys.end()).unwrap();
        } else {
            merged.push(mapping);
        }
    }
    merged
}

/// The entries that may be leaves, as log2 of their bytes, from the largest; written out as the
/// architecture's table of block sizes has them.
fn leaf_shifts(geometry: Geometry) -> &'static [u32] {
    match (geometry.granule(), geometry.output()) {
        (Granule::K4, OutputAddressSize::Bits48) => &[30, 21, 12],
        (Granule::K4, OutputAddressSize::Bits52) => &[39, 30, 21, 12],
        (Granule::K16, OutputAddressSize::Bits48) => &[25, 14],
        (Granule::K16, OutputAddressSize::Bits52) => &[36, 25, 14],
        (Granule::K64, OutputAddressSize::Bits48) => &[29, 16],
        (Granule::K64, OutputAddressSize::Bits52) => &[42, 29, 16],
    }
}

/// The fewest tables there can be: the root, and one for each window (what one entry covers) that is
/// mapped, but that no leaf can map whole. Counts windows instead of building anything.
fn fewest_tables(geometry: Geometry, mappings: &[Mapping]) -> u64 {
    let window_shifts: &[u32] = match geometry.granule() {
        Granule::K4 => &[21, 30, 39, 48],
        Granule::K16 => &[25, 36, 47],
        Granule::K64 => &[29, 42],
    };
    let mut count = 1;
    for &shift in window_shifts
        .iter()
        .filter(|&&shift| shift < geometry.va_bits())
    {
        // Windows that an extent covers in part can be shared with the next extent.
        let mut shared = BTreeSet::new();
        for extent in merge(mappings) {
            let (start, end) = (extent.virt.as_u64(), virt_end(&extent));
            let aligned = (extent.phys.start().as_u64() ^ start) & ((1 << shift) - 1) == 0;
            let (first_whole, after_whole) = (start.div_ceil(1 << shift), end >> shift);
            if first_whole < after_whole && !(aligned && leaf_shifts(geometry).contains(&shift)) {
                count += after_whole - first_whole;
            }
            for window in [start >> shift, (end - 1) >> shift] {
                if !(first_whole..after_whole).contains(&window) {
                    shared.insert(window);
                }
            }
        }
        count += shared.len() as u64;
    }
    count
}

/// Everything that is known about the tables for `mappings`.
fn check(
    geometry: Geometry,
    regime: Regime,
    mappings: &[Mapping],
    base: PhysAddr,
    samples: &[u64],
) {
    let tables = build(geometry, regime, mappings, base).unwrap();
    assert_eq!(tables.bytes().len() as u64, tables.range().size_bytes());
    assert_eq!(tables.range().start(), base);
    let fewest = fewest_tables(geometry, mappings);
    assert_eq!(tables.table_count(), fewest, "{tables:?} for {mappings:?}");
    assert_eq!(table_count(geometry, mappings), Ok(fewest));

    let space = 1 << geometry.va_bits();
    let page = geometry.granule().size_bytes();
    let mut addresses = vec![0, space - 1, space, space + page, u64::MAX];
    addresses.extend(samples.iter().map(|sample| sample % space));
    for mapping in mappings {
        let (start, end) = (mapping.virt.as_u64(), virt_end(mapping));
        let middle = start + (end - start) / 2;
        addresses.extend([
            start,
            start + 1,
            start + page - 1,
            middle,
            end - page,
            end - 1,
            end,
        ]);
        addresses.extend([
            start.saturating_sub(1),
            start.saturating_sub(page),
            end + page,
        ]);
        addresses.extend(samples.iter().map(|sample| start + sample % (end - start)));
        for &shift in leaf_shifts(geometry) {
            let boundary = (start >> shift).saturating_add(1) << shift;
            addresses.extend([boundary - 1, boundary]);
        }
    }
    for address in addresses {
        check_address(&tables, mappings, address);
    }
    check_leaves(&tables, mappings);
}

/// One mapping before it is fitted into a geometry: all numbers are taken modulo what there is.
#[derive(Debug, Clone)]
struct Seed {
    /// Directly behind the previous mapping, in both address spaces or in one.
    follows: Option<bool>,
    scale: Index,
    position: u64,
    count: u64,
    /// Pages added to start and size, so that they are not multiples of a block.
    jitter: (u64, u64),
    phys_scale_steps: usize,
    phys: u64,
    identity: bool,
    memory: Index,
    access: Index,
}

fn any_seed() -> impl Strategy<Value = Seed> {
    let jitter = prop_oneof![Just((0, 0)), (0_u64..3, 0_u64..3)];
    let place = (any::<Index>(), any::<u64>(), 1_u64..4, jitter);
    let phys = (0_usize..2, any::<u64>(), prop::bool::weighted(0.4));
    let attributes = (any::<Index>(), any::<Index>());
    let follows = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
    (follows, place, phys, attributes).prop_map(|(follows, place, phys, attributes)| Seed {
        follows,
        scale: place.0,
        position: place.1,
        count: place.2,
        jitter: place.3,
        phys_scale_steps: phys.0,
        phys: phys.1,
        identity: phys.2,
        memory: attributes.0,
        access: attributes.1,
    })
}

/// Fits `seed` into the geometry; `None` where it does not.
fn grow(geometry: Geometry, seed: &Seed, previous: Option<&Mapping>) -> Option<Mapping> {
    let page = geometry.granule().size_bytes();
    let (space_bits, output_bits) = (geometry.va_bits(), geometry.output().bits());
    // All levels' entry sizes, whether they can be leaves or not.
    let stride = page.trailing_zeros() - 3;
    let scales: Vec<u32> = (0..5)
        .map(|step| page.trailing_zeros() + step * stride)
        .filter(|&scale| scale < space_bits)
        .collect();
    let scale_index = seed.scale.index(scales.len());
    let scale = scales[scale_index];
    let mut virt = ((seed.position % (1 << (space_bits - scale))) << scale) + seed.jitter.0 * page;
    let size_bytes = (seed.count << scale) + seed.jitter.1 * page;

    // Where virtual and physical offset in a block differ, pages or smaller blocks must be used: one
    // step down keeps that to a few tables.
    let phys_scale = scales[scale_index.saturating_sub(seed.phys_scale_steps)];
    let phys_base = (seed.phys % (1 << (output_bits - phys_scale))) << phys_scale;
    let mut phys = phys_base + (virt & ((1 << phys_scale) - 1));
    let mut memory = MEMORY_TYPES[seed.memory.index(2)];
    let mut access = ACCESSES[seed.access.index(3)];
    if memory == MemoryType::Device && access == Access::ReadExecute {
        access = Access::ReadOnly;
    }
    if let (Some(contiguous), Some(previous)) = (seed.follows, previous) {
        virt = virt_end(previous);
        phys = phys_base + (virt & ((1 << phys_scale) - 1));
        if contiguous {
            phys = previous.phys.end().as_u64();
            (memory, access) = (previous.memory, previous.access);
        }
    } else if seed.identity {
        phys = virt;
    }
    let fits = virt + size_bytes <= 1 << space_bits && phys + size_bytes <= 1 << output_bits;
    let mapping = Mapping {
        virt: VirtAddr::new(virt),
        phys: range(phys, size_bytes),
        memory,
        access,
    };
    // Where no block fits, terabytes of pages would be looked at one by one.
    let cheap = fewest_tables(geometry, &[mapping]) <= MAX_TABLES_PER_MAPPING;
    (fits && cheap).then_some(mapping)
}

/// Disjoint mappings in any order.
fn any_mappings(geometry: Geometry) -> impl Strategy<Value = Vec<Mapping>> {
    prop::collection::vec(any_seed(), 0..7)
        .prop_map(move |seeds| {
            let mut mappings: Vec<Mapping> = Vec::new();
            for seed in &seeds {
                let Some(mapping) = grow(geometry, seed, mappings.last()) else {
                    continue;
                };
                let disjoint = |other: &Mapping| {
                    virt_end(other) <= mapping.virt.as_u64()
                        || virt_end(&mapping) <= other.virt.as_u64()
                };
                if mappings.iter().all(disjoint) {
                    mappings.push(mapping);
                }
            }
            mappings
        })
        .prop_shuffle()
}

fn any_case() -> impl Strategy<Value = (Geometry, Regime, Vec<Mapping>, PhysAddr, Vec<u64>)> {
    let geometry = prop::sample::select(all_geometries());
    geometry.prop_flat_map(|geometry| {
        let output_bits = geometry.output().bits();
        let granule_bytes = geometry.granule().size_bytes();
        // Room for the tables above the base; the property checks nothing about the limit.
        let room = 1 << 30;
        let base = (0..((1 << output_bits) - room) / granule_bytes)
            .prop_map(move |page| PhysAddr::new(page * granule_bytes));
        let samples = prop::collection::vec(any::<u64>(), 8);
        (
            Just(geometry),
            prop::sample::select(&REGIMES[..]),
            any_mappings(geometry),
            base,
            samples,
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_walk_gives_the_mappings((geometry, regime, mappings, base, samples) in any_case()) {
        check(geometry, regime, &mappings, base, &samples);
    }

    /// The bytes depend on what is mapped, not on how it is cut or ordered.
    #[test]
    fn order_and_cuts_do_not_matter((geometry, regime, mappings, base, samples) in any_case()) {
        let page = geometry.granule().size_bytes();
        let mut pieces: Vec<Mapping> = Vec::new();
        for (mapping, sample) in mappings.iter().zip(samples.iter().cycle()) {
            let cut = sample % mapping.phys.size_bytes() / page * page;
            let (start, end) = (mapping.phys.start(), mapping.phys.end());
            let middle = PhysAddr::new(start.as_u64() + cut);
            let upper = VirtAddr::new(mapping.virt.as_u64() + cut);
            let lower_piece = Mapping { phys: PhysRange::new(start, middle).unwrap(), ..*mapping };
            let upper_piece = Mapping { phys: PhysRange::new(middle, end).unwrap(), virt: upper, ..*mapping };
            pieces.extend([upper_piece, lower_piece].into_iter().filter(|piece| !piece.phys.is_empty()));
        }
        pieces.reverse();
        prop_assert_eq!(build(geometry, regime, &mappings, base), build(geometry, regime, &pieces, base));
    }
}

/// For every geometry and regime: one page and one of each block, with all attributes, at the bottom
/// and at the top of both address spaces.
#[test]
fn every_geometry_at_its_corners() {
    for geometry in all_geometries() {
        let top_virt = 1_u64 << geometry.va_bits();
        let top_phys = 1_u64 << geometry.output().bits();
        let page = geometry.granule().size_bytes();
        let base = PhysAddr::new(top_phys - 64 * page);
        for &shift in leaf_shifts(geometry)
            .iter()
            .filter(|&&shift| shift < geometry.va_bits())
        {
            let size = 1_u64 << shift;
            for regime in REGIMES {
                for (memory, access) in [
                    (MemoryType::Normal, Access::ReadOnly),
                    (MemoryType::Normal, Access::ReadWrite),
                    (MemoryType::Normal, Access::ReadExecute),
                    (MemoryType::Device, Access::ReadOnly),
                    (MemoryType::Device, Access::ReadWrite),
                ] {
                    let high = Mapping {
                        virt: VirtAddr::new(top_virt - size),
                        phys: range(top_phys - size, size),
                        memory,
                        access,
                    };
                    let low = Mapping::identity(range(0, size), memory, access);
                    check(geometry, regime, &[high], base, &[]);
                    let mut both = vec![high];
                    if virt_end(&low) <= high.virt.as_u64() {
                        both.push(low);
                    }
                    check(geometry, regime, &both, base, &[]);
                    // One entry in the root or one table per level, and one leaf.
                    let tables = build(geometry, regime, &[high], base).unwrap();
                    assert_eq!(
                        machine(&tables).walk(top_virt - 1).unwrap().leaf_bytes,
                        size
                    );
                }
            }
        }
    }
}

/// For each granule, all ranges whose ends are among the interesting addresses of a small window
/// (pages around block boundaries), alone and in all adjacent pairs, at physical offsets with and without room for a block.
#[test]
fn exhaustive_over_boundaries_of_a_small_window() {
    for granule in Granule::ALL {
        for output in [OutputAddressSize::Bits48, OutputAddressSize::Bits52] {
            let geometry = Geometry::new(granule, 39, output).unwrap();
            let page = granule.size_bytes();
            let block = page * page / 8;
            let mut points = vec![0, page];
            for boundary in [block, 2 * block] {
                points.extend([boundary - page, boundary, boundary + page]);
            }
            for (lower, &start) in points.iter().enumerate() {
                for (upper, &end) in points.iter().enumerate().skip(lower + 1) {
                    for offset in [0, page, block / 2, block] {
                        let piece = |from: u64, to: u64, access| Mapping {
                            virt: VirtAddr::new(from),
                            phys: range(from + offset, to - from),
                            memory: MemoryType::Normal,
                            access,
                        };
                        let whole = piece(start, end, Access::ReadWrite);
                        check_small(geometry, &[whole], &points);
                        for &cut in &points[lower + 1..upper] {
                            let code = piece(start, cut, Access::ReadExecute);
                            check_small(
                                geometry,
                                &[code, piece(cut, end, Access::ReadWrite)],
                                &points,
                            );
                            check_small(
                                geometry,
                                &[code, piece(cut, end, Access::ReadExecute)],
                                &points,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// As [`check`], without looking at every descriptor: the exhaustive test has thousands of cases.
fn check_small(geometry: Geometry, mappings: &[Mapping], points: &[u64]) {
    let tables = build(geometry, Regime::TwoPrivileges, mappings, PhysAddr::new(0)).unwrap();
    assert_eq!(
        tables.table_count(),
        fewest_tables(geometry, mappings),
        "{tables:?} for {mappings:?}"
    );
    for &point in points {
        check_address(&tables, mappings, point);
        check_address(&tables, mappings, point.saturating_sub(1));
    }
}

/// Ten thousand huge pages, and the tables of a machine with 16 TiB.
#[test]
fn large_inputs() {
    let geometry = Geometry::new(Granule::K4, 48, OutputAddressSize::Bits48).unwrap();
    let huge = 2 << 20;
    let scattered: Vec<Mapping> = (0..10_000)
        .map(|index| {
            let range = range(2 * index * huge, huge);
            Mapping::identity(range, MemoryType::Normal, Access::ReadWrite)
        })
        .collect();
    let tables = build(
        geometry,
        Regime::TwoPrivileges,
        &scattered,
        PhysAddr::new(0),
    )
    .unwrap();
    // 40 GiB: a root, one table of gigabytes, and one per gigabyte.
    assert_eq!(tables.table_count(), 2 + 40);

    let everything = [Mapping::identity(
        range(0, 16 << 40),
        MemoryType::Normal,
        Access::ReadWrite,
    )];
    assert_eq!(table_count(geometry, &everything), Ok(1 + 32));
}
