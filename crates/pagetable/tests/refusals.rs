//! What cannot be mapped is refused, with the values and what to do.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kleap_memmap::{PhysAddr, PhysRange};
use kleap_pagetable::{
    Access, Error, Geometry, Granule, MAX_MAPPINGS, MAX_TABLES_BYTES, Mapping, MemoryType,
    OutputAddressSize, Regime, VirtAddr, build, table_count,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PAGE: u64 = 0x1000;

fn geometry() -> Geometry {
    Geometry::new(Granule::K4, 39, OutputAddressSize::Bits48).unwrap()
}

fn mapping(virt: u64, start: u64, end: u64) -> Mapping {
    Mapping {
        virt: VirtAddr::new(virt),
        phys: PhysRange::new(PhysAddr::new(start), PhysAddr::new(end)).unwrap(),
        memory: MemoryType::Normal,
        access: Access::ReadWrite,
    }
}

fn refused(mappings: &[Mapping]) -> Error {
    let error = build(
        geometry(),
        Regime::TwoPrivileges,
        mappings,
        PhysAddr::new(0),
    )
    .unwrap_err();
    assert_eq!(table_count(geometry(), mappings), Err(error));
    error
}

#[test]
fn virtual_address_sizes_that_do_not_exist() {
    use OutputAddressSize::{Bits48, Bits52};
    let largest = [
        (Granule::K4, Bits48, 48),
        (Granule::K16, Bits48, 48),
        (Granule::K64, Bits48, 52),
        (Granule::K4, Bits52, 52),
        (Granule::K16, Bits52, 52),
        (Granule::K64, Bits52, 52),
    ];
    for (granule, output, max_va_bits) in largest {
        for va_bits in (0..200).chain([u32::MAX]) {
            let geometry = Geometry::new(granule, va_bits, output);
            if (25..=max_va_bits).contains(&va_bits) {
                assert_eq!(geometry.unwrap().va_bits(), va_bits);
            } else {
                let error = Error::VaBits {
                    granule,
                    va_bits,
                    min_va_bits: 25,
                    max_va_bits,
                };
                assert_eq!(geometry, Err(error));
            }
        }
    }
}

#[test]
fn start_levels_of_common_kernels() {
    use OutputAddressSize::{Bits48, Bits52};
    for (granule, va_bits, output, level) in [
        (Granule::K4, 39, Bits48, 1),
        (Granule::K4, 48, Bits48, 0),
        (Granule::K4, 48, Bits52, 0),
        (Granule::K4, 52, Bits52, -1),
        (Granule::K16, 36, Bits48, 2),
        (Granule::K16, 47, Bits48, 1),
        (Granule::K16, 48, Bits48, 0),
        (Granule::K16, 52, Bits52, 0),
        (Granule::K64, 42, Bits48, 2),
        (Granule::K64, 48, Bits48, 1),
        (Granule::K64, 52, Bits52, 1),
    ] {
        let geometry = Geometry::new(granule, va_bits, output).unwrap();
        assert_eq!(geometry.start_level(), level, "{geometry}");
    }
}

#[test]
fn granules_are_known_by_their_page_size() {
    for granule in Granule::ALL {
        assert_eq!(
            Granule::from_page_size_bytes(granule.size_bytes()),
            Some(granule)
        );
    }
    for other in [0, 1, 0x2000, 0x8000, 0x1001, u64::MAX] {
        assert_eq!(Granule::from_page_size_bytes(other), None);
    }
}

#[test]
fn mappings_that_cannot_be() {
    let empty = mapping(0, PAGE, PAGE);
    assert_eq!(refused(&[empty]), Error::Empty { mapping: empty });

    for odd in [
        mapping(1, 0, PAGE),
        mapping(0, 1, PAGE),
        mapping(0, 0, PAGE - 1),
    ] {
        assert_eq!(
            refused(&[odd]),
            Error::Misaligned {
                mapping: odd,
                granule: Granule::K4
            }
        );
    }

    let last_page = u64::MAX - (PAGE - 1);
    for high in [
        mapping(1 << 39, 0, PAGE),
        mapping((1 << 39) - PAGE, 0, 2 * PAGE),
        mapping(last_page, 0, PAGE),
        mapping(last_page, 0, 2 * PAGE),
    ] {
        assert_eq!(
            refused(&[high]),
            Error::VirtOutOfRange {
                mapping: high,
                va_bits: 39
            }
        );
    }

    for high in [
        mapping(0, 1 << 48, (1 << 48) + PAGE),
        mapping(0, last_page - PAGE, last_page),
    ] {
        assert_eq!(
            refused(&[high]),
            Error::PhysOutOfRange {
                mapping: high,
                output_bits: 48
            }
        );
    }

    let device = Mapping {
        memory: MemoryType::Device,
        access: Access::ReadExecute,
        ..mapping(0, 0, PAGE)
    };
    assert_eq!(
        refused(&[device]),
        Error::ExecutableDevice { mapping: device }
    );
}

#[test]
fn overlaps_name_both() {
    let low = mapping(0, 0, 3 * PAGE);
    let high = mapping(2 * PAGE, 8 * PAGE, 9 * PAGE);
    let inside = mapping(PAGE, PAGE, 2 * PAGE);
    assert_eq!(
        refused(&[high, low]),
        Error::Overlap {
            first: low,
            second: high
        }
    );
    // Also where they agree: the caller lost count of something.
    assert_eq!(
        refused(&[low, inside]),
        Error::Overlap {
            first: low,
            second: inside
        }
    );
    assert_eq!(
        refused(&[low, low]),
        Error::Overlap {
            first: low,
            second: low
        }
    );

    let message = refused(&[high, low]).to_string();
    assert!(
        message.contains("[0x0, 0x3000)") && message.contains("[0x8000, 0x9000)"),
        "{message}"
    );
    // Two virtual addresses for the same memory are no overlap.
    let alias = mapping(4 * PAGE, 0, 3 * PAGE);
    assert!(
        build(
            geometry(),
            Regime::OnePrivilege,
            &[low, alias],
            PhysAddr::new(0)
        )
        .is_ok()
    );
}

#[test]
fn bases_that_cannot_be() {
    let build_at = |base: u64| {
        let mappings = [mapping(0, 0, PAGE)];
        build(
            geometry(),
            Regime::TwoPrivileges,
            &mappings,
            PhysAddr::new(base),
        )
        .err()
    };
    let base = PhysAddr::new(PAGE + 8);
    assert_eq!(
        build_at(base.as_u64()),
        Some(Error::BaseMisaligned {
            base,
            granule: Granule::K4
        })
    );
    // Three tables: levels 1, 2 and 3.
    assert_eq!(build_at((1 << 48) - 3 * PAGE), None);
    for base in [(1 << 48) - 2 * PAGE, 1 << 48, u64::MAX - (PAGE - 1)].map(PhysAddr::new) {
        let error = Error::BaseOutOfRange {
            base,
            size_bytes: 3 * PAGE,
            output_bits: 48,
        };
        assert_eq!(build_at(base.as_u64()), Some(error));
    }
}

#[test]
fn limits() {
    // Virtual and physical address differ by a page: nothing but pages will do, 2 MiB per table.
    let table_limit = MAX_TABLES_BYTES / PAGE;
    let size = |tables: u64| (tables << 21) - PAGE;
    let gigabytes = (size(table_limit - 33) >> 30) + 1;
    assert_eq!(gigabytes, 32, "one root and 32 tables of level 2");
    let fits = mapping(PAGE, 0, size(table_limit - 33));
    assert_eq!(table_count(geometry(), &[fits]), Ok(table_limit));
    assert_eq!(
        refused(&[mapping(PAGE, 0, size(table_limit - 32))]),
        Error::TooManyTables
    );

    let page = |index: u64| mapping(index * PAGE, index * PAGE, (index + 1) * PAGE);
    let pages: Vec<Mapping> = (0..=MAX_MAPPINGS as u64).map(page).collect();
    assert!(table_count(geometry(), &pages[1..]).is_ok());
    assert_eq!(
        table_count(geometry(), &pages),
        Err(Error::TooManyMappings {
            mapping_count: MAX_MAPPINGS + 1
        })
    );
}

#[test]
fn nothing_mapped_is_one_empty_table() {
    let tables = build(geometry(), Regime::TwoPrivileges, &[], PhysAddr::new(PAGE)).unwrap();
    assert_eq!(tables.table_count(), 1);
    assert!(tables.bytes().iter().all(|&byte| byte == 0));
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u64..64, any::<bool>()).prop_map(|(bits, below)| (1 << bits) - u64::from(below)),
        (0_u64..64).prop_map(|page| page * PAGE),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn never_panics(
        numbers in prop::collection::vec((any_address(), any_address(), any_address()), 0..4),
        base in any_address(),
        va_bits in 20_u32..56,
    ) {
        let mappings: Vec<Mapping> =
            numbers.into_iter().map(|(virt, a, b)| mapping(virt, a.min(b), a.max(b))).collect();
        for granule in Granule::ALL {
            for output in [OutputAddressSize::Bits48, OutputAddressSize::Bits52] {
                if let Ok(geometry) = Geometry::new(granule, va_bits, output) {
                    let _ = build(geometry, Regime::TwoPrivileges, &mappings, PhysAddr::new(base));
                    let _ = table_count(geometry, &mappings);
                }
            }
        }
    }
}
