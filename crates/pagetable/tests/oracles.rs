//! Two libraries by other people, each asked what it knows: `aarch64-paging` builds the same tables
//! for the 4 KiB granule and 48-bit addresses, byte for byte; `arm-sysregs`, generated from Arm's
//! machine-readable register descriptions, reads the fields of TCR and MAIR back.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use aarch64_paging::descriptor::{El1Attributes, El23Attributes, PhysicalAddress};
use aarch64_paging::mair::{Mair, MairAttribute, NormalMemory};
use aarch64_paging::paging::{Constraints, El1And0, El2, MemoryRegion, RootTable, VaRange};
use aarch64_paging::target::TargetAllocator;
use arm_sysregs::el1::registers::{MairEl1, TcrEl1, Ttbr0El1};
use arm_sysregs::el2::registers::TcrEl2;
use kleap_memmap::{PhysAddr, PhysRange};
use kleap_pagetable::{
    Access, Geometry, Granule, MAIR, Mapping, MemoryType, OutputAddressSize, Regime, VirtAddr,
    build,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PAGE: u64 = 0x1000;

/// The VA sizes that `aarch64-paging` has: whole tables at every level, and its level of the root.
const SIZES: [(u32, usize); 3] = [(48, 0), (39, 1), (30, 2)];

fn region(mapping: &Mapping) -> (MemoryRegion, PhysicalAddress) {
    let number = |address: u64| usize::try_from(address).unwrap();
    let start = number(mapping.virt.as_u64());
    let size = number(mapping.phys.size_bytes());
    let phys = PhysicalAddress(number(mapping.phys.start().as_u64()));
    (MemoryRegion::new(start, start + size), phys)
}

fn two_privileges(root_level: usize, mappings: &[Mapping], base: u64) -> Vec<u8> {
    let allocator = TargetAllocator::new(base);
    let mut root = RootTable::with_va_range(allocator, root_level, El1And0, VaRange::Lower);
    for mapping in mappings {
        let memory = match mapping.memory {
            MemoryType::Normal => El1Attributes::ATTRIBUTE_INDEX_0 | El1Attributes::INNER_SHAREABLE,
            MemoryType::Device => El1Attributes::ATTRIBUTE_INDEX_1 | El1Attributes::OUTER_SHAREABLE,
        };
        let access = match mapping.access {
            Access::ReadOnly => El1Attributes::READ_ONLY | El1Attributes::PXN,
            Access::ReadWrite => El1Attributes::PXN,
            Access::ReadExecute => El1Attributes::READ_ONLY,
        };
        let always = El1Attributes::VALID | El1Attributes::ACCESSED | El1Attributes::UXN;
        let (region, phys) = region(mapping);
        root.map_range(
            &region,
            phys,
            always | memory | access,
            Constraints::NO_CONTIGUOUS_HINT,
        )
        .unwrap();
    }
    root.translation().as_bytes()
}

fn one_privilege(root_level: usize, mappings: &[Mapping], base: u64) -> Vec<u8> {
    let mut root = RootTable::new(TargetAllocator::new(base), root_level, El2);
    for mapping in mappings {
        let memory = match mapping.memory {
            MemoryType::Normal => {
                El23Attributes::ATTRIBUTE_INDEX_0 | El23Attributes::INNER_SHAREABLE
            }
            MemoryType::Device => {
                El23Attributes::ATTRIBUTE_INDEX_1 | El23Attributes::OUTER_SHAREABLE
            }
        };
        let access = match mapping.access {
            Access::ReadOnly => El23Attributes::READ_ONLY | El23Attributes::XN,
            Access::ReadWrite => El23Attributes::XN,
            Access::ReadExecute => El23Attributes::READ_ONLY,
        };
        let always = El23Attributes::VALID | El23Attributes::ACCESSED | El23Attributes::USER_RES1;
        let (region, phys) = region(mapping);
        root.map_range(
            &region,
            phys,
            always | memory | access,
            Constraints::NO_CONTIGUOUS_HINT,
        )
        .unwrap();
    }
    root.translation().as_bytes()
}

/// Disjoint mappings in ascending order with a page at least between them: the oracle does not merge
/// what touches, and its tables are in the order of its calls.
fn any_mappings(va_bits: u32) -> impl Strategy<Value = Vec<Mapping>> {
    let attributes = prop::sample::select(vec![
        (MemoryType::Normal, Access::ReadOnly),
        (MemoryType::Normal, Access::ReadWrite),
        (MemoryType::Normal, Access::ReadExecute),
        (MemoryType::Device, Access::ReadOnly),
        (MemoryType::Device, Access::ReadWrite),
    ]);
    let shift = prop::sample::select(vec![12_u32, 21, 30]);
    let jitter = prop_oneof![Just((0, 0)), (0_u64..3, 0_u64..3)];
    // Gap and size in entries of one level; the physical offset is of the same level or one below.
    let seed = (
        shift,
        0_u64..3,
        1_u64..4,
        jitter,
        0_u64..1000,
        any::<bool>(),
        attributes,
    );
    prop::collection::vec(seed, 0..8).prop_map(move |seeds| {
        let mut mappings = Vec::new();
        let mut free = 0_u64;
        for (shift, gap, count, jitter, offset, fine, (memory, access)) in seeds {
            let virt = (free.next_multiple_of(1 << shift) + (gap << shift)) + jitter.0 * PAGE;
            let size_bytes = (count << shift) + jitter.1 * PAGE;
            let offset_shift = if fine {
                shift.saturating_sub(9).max(12)
            } else {
                shift
            };
            let phys =
                PhysRange::from_size(PhysAddr::new(virt + (offset << offset_shift)), size_bytes);
            if virt + size_bytes > 1 << va_bits {
                break;
            }
            let phys = phys.unwrap();
            mappings.push(Mapping {
                virt: VirtAddr::new(virt),
                phys,
                memory,
                access,
            });
            free = virt + size_bytes + PAGE;
        }
        mappings
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn aarch64_paging_builds_the_same_bytes(
        (va_bits, root_level, mappings) in prop::sample::select(&SIZES[..])
            .prop_flat_map(|(bits, level)| (Just(bits), Just(level), any_mappings(bits))),
        base_page in 0_u64..1 << 30,
    ) {
        let base = base_page * PAGE;
        let geometry = Geometry::new(Granule::K4, va_bits, OutputAddressSize::Bits48).unwrap();
        let ours = |regime| build(geometry, regime, &mappings, PhysAddr::new(base)).unwrap();
        // Compared, not printed: the mappings say more than megabytes of descriptors.
        prop_assert!(
            ours(Regime::TwoPrivileges).bytes() == two_privileges(root_level, &mappings, base),
            "EL1&0 differs"
        );
        prop_assert!(
            ours(Regime::OnePrivilege).bytes() == one_privilege(root_level, &mappings, base),
            "EL2 differs"
        );
    }
}

fn geometries() -> impl Iterator<Item = Geometry> {
    let outputs = [OutputAddressSize::Bits48, OutputAddressSize::Bits52];
    Granule::ALL.into_iter().flat_map(move |granule| {
        outputs.into_iter().flat_map(move |output| {
            (25..=52).filter_map(move |bits| Geometry::new(granule, bits, output).ok())
        })
    })
}

fn wants_ds(geometry: Geometry) -> bool {
    geometry.granule() != Granule::K64 && geometry.output() == OutputAddressSize::Bits52
}

#[test]
fn tcr_el1_reads_back() {
    for geometry in geometries() {
        let tcr = TcrEl1::from_bits_retain(geometry.tcr(Regime::TwoPrivileges));
        let (tg0, tg1) = match geometry.granule() {
            Granule::K4 => (0b00, 0b10),
            Granule::K16 => (0b10, 0b01),
            Granule::K64 => (0b01, 0b11),
        };
        let t0sz = u8::try_from(64 - geometry.va_bits()).unwrap();
        // Built from nothing by the oracle: no other bit is set.
        let mut expected = TcrEl1::EPD1
            .with_t0sz(t0sz)
            .with_t1sz(t0sz)
            .with_irgn0(0b01)
            .with_orgn0(0b01)
            .with_sh0(0b11)
            .with_tg0(tg0)
            .with_tg1(tg1);
        expected.set(TcrEl1::DS, wants_ds(geometry));
        assert_eq!(tcr, expected, "{geometry}");
        assert_eq!(tcr.ips(), 0, "{geometry}");
    }
}

#[test]
fn tcr_el2_reads_back() {
    for geometry in geometries() {
        let tcr = TcrEl2::from_bits_retain(geometry.tcr(Regime::OnePrivilege));
        let tg0 = match geometry.granule() {
            Granule::K4 => 0b00,
            Granule::K16 => 0b10,
            Granule::K64 => 0b01,
        };
        let mut expected = TcrEl2::RES1
            .with_t0sz(u8::try_from(64 - geometry.va_bits()).unwrap())
            .with_irgn0(0b01)
            .with_orgn0(0b01)
            .with_sh0(0b11)
            .with_tg0(tg0);
        // The oracle leaves out DS of the layout without E2H: bit 32 (DDI 0487, "TCR_EL2").
        if wants_ds(geometry) {
            expected |= TcrEl2::from_bits_retain(1 << 32);
        }
        assert_eq!(tcr, expected, "{geometry}");
        assert_eq!(tcr.ps(), 0, "{geometry}");
    }
}

#[test]
fn mair_reads_back() {
    let mair = MairEl1::from_bits_retain(MAIR);
    assert_eq!(mair.attr(0), 0xff);
    assert_eq!(mair.attr(1), 0x04);
    assert!((2..8).all(|index| mair.attr(index) == 0));

    let write_back = NormalMemory::WriteBackNonTransientReadWriteAllocate;
    let same = Mair::EMPTY
        .with_attribute(0, MairAttribute::normal(write_back, write_back))
        .with_attribute(1, MairAttribute::DEVICE_NGNRE);
    assert_eq!(same.0, MAIR);
}

#[test]
fn ttbr_reads_back() {
    let root = PhysAddr::new(0x1234_5678_0000);
    for geometry in geometries() {
        let tables = build(geometry, Regime::TwoPrivileges, &[], root).unwrap();
        let ttbr = Ttbr0El1::from_bits_retain(tables.ttbr());
        assert_eq!(ttbr.baddr_47_1() << 1, root.as_u64(), "{geometry}");
        assert_eq!(ttbr.asid(), 0, "{geometry}");
        assert!(!ttbr.contains(Ttbr0El1::CNP), "{geometry}");
    }
}
