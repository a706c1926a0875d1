use std::collections::BTreeSet;

use kleap_memmap::{PhysAddr, PhysRange};
use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// The memory of QEMU's `virt` machine.
fn virt(size_bytes: u64) -> PhysRanges {
    range(GIB, size_bytes).into()
}

fn input<'a>(release: &str, page_size_bytes: u64, ram: &'a PhysRanges) -> KexecCostInput<'a> {
    KexecCostInput {
        kernel: KernelVersion::parse(release),
        page_size_bytes,
        compiled_virtual_address_bits: Some(48),
        virtual_address_bits: 48,
        system_ram: ram,
        command_line: "",
        total_bytes: ram.size_bytes(),
        available_bytes: ram.size_bytes(),
    }
}

#[test]
fn releases_are_read() {
    for (release, version) in [
        ("6.12.107+deb13-arm64", Some((6, 12, 107))),
        ("6.1.0-47-arm64", Some((6, 1, 0))),
        ("5.10.0-32-arm64", Some((5, 10, 0))),
        ("6.12", Some((6, 12, 0))),
        ("7.3-rc1", Some((7, 3, 0))),
        ("6.12.x", Some((6, 12, 0))),
        ("6.12.107.1-edge", Some((6, 12, 107))),
        ("", None),
        ("6", None),
        ("6.", None),
        ("6-12", None),
        (".6.12", None),
        ("v6.12", None),
        ("nonsense", None),
        ("6.4294967296", None),
        ("99999999999999999999.1", None),
    ] {
        assert_eq!(
            KernelVersion::parse(release),
            version.map(|(major, minor, patch)| KernelVersion::new(major, minor, patch)),
            "{release}"
        );
    }
}

#[test]
fn the_lpa2_bug_is_where_it_was_seen() {
    for (release, page_size_bytes, bits, bug) in [
        ("6.12.107+deb13-arm64", 4096, 52, true),
        ("6.12.107+deb13-arm64", 4096, 48, false), // arm64.nolva, or no LPA2
        ("6.12.107+deb13-arm64-16k", 16384, 52, false),
        ("6.12.107-64k", 65536, 52, false),
        ("6.12.118+deb13-arm64", 4096, 52, true),
        ("7.3.4+deb13-arm64", 4096, 52, false),
        ("7.2.9", 4096, 52, true),
        ("6.1.0-47-arm64", 4096, 48, false),
        ("6.9.0", 4096, 52, true),
        ("6.9.0-rc3", 4096, 52, true), // syzbot's
        ("6.8.12", 4096, 52, false),
        ("nonsense", 4096, 52, false),
    ] {
        assert_eq!(
            lpa2_crash(KernelVersion::parse(release), page_size_bytes, bits).is_some(),
            bug,
            "{release}"
        );
        let ram = virt(GIB);
        let mut input = input(release, page_size_bytes, &ram);
        input.virtual_address_bits = bits;
        input.compiled_virtual_address_bits = None;
        let cost = predict(&input).unwrap();
        let refused = cost.refusal().is_some_and(|hazard| {
            matches!(hazard, Hazard::Lpa2Crash { .. }) && hazard.remedy().contains("arm64.nolva")
        });
        assert_eq!(refused, bug, "{release}");
    }
}

#[test]
fn nothing_is_copied_before_5_16() {
    let ram = virt(8 * GIB);
    for (release, copies) in [
        ("5.10.0-32-arm64", false),
        ("5.15.199", false),
        ("5.16.0", true),
    ] {
        let mut input = input(release, 4096, &ram);
        // Not even where nothing is left.
        input.available_bytes = 0;
        let cost = predict(&input).unwrap();
        assert_eq!(cost.tables.at_most > 0, copies, "{release}");
        assert_eq!(cost.bytes.at_most > 0, copies, "{release}");
        assert_eq!(cost.refusal().is_some(), copies, "{release}");
        assert!(copies || cost.is_exact());
    }
}

/// 1 TiB in one piece, as computed by hand from the descriptor format.
#[test]
fn a_tebibyte_takes_what_the_architecture_says() {
    let ram: PhysRanges = range(0, TIB).into();
    // Last level, the level above, and so on to the top.
    for (page_size_bytes, bits, levels) in [
        (4 * KIB, 48, &[524_288, 1024, 2, 1][..]),
        (16 * KIB, 47, &[32_768, 16, 1]),
        (64 * KIB, 48, &[2048, 1, 1]),
    ] {
        let mut input = input("6.1.0", page_size_bytes, &ram);
        input.compiled_virtual_address_bits = Some(bits);
        input.command_line = "rodata=full";
        let cost = predict(&input).unwrap();
        let by_hand: u64 = levels.iter().sum();
        let idmap = if page_size_bytes == 64 * KIB { 3 } else { 4 };
        assert!(cost.is_exact(), "{cost:?}");
        assert_eq!(
            cost.tables.at_least,
            by_hand + idmap,
            "{page_size_bytes} {cost:?}"
        );
        assert!(cost.tables.at_most <= by_hand + idmap + 4, "{cost:?}");
        assert_eq!(
            cost.bytes.at_least,
            (by_hand + idmap + CONTROL_PAGES) * page_size_bytes
        );
    }
    // What is known without the command line: somewhere between a few tables and all.
    let cost = predict(&input("6.1.0", 4 * KIB, &ram)).unwrap();
    assert!(!cost.is_exact());
    assert!(cost.bytes.at_least < MIB, "{cost:?}");
    assert!(cost.bytes.at_most > 2052 * MIB, "{cost:?}");
    assert!(cost.bytes.at_most < 2053 * MIB, "{cost:?}");
}

/// What was measured on Debian's kernels in QEMU, as the drop of `MemFree` over the call. They map by pages.
/// `MemFree` moves by itself by up to `NOISE_BYTES`: it counts no pages that CPUs keep for themselves.
#[test]
fn measured_costs_are_predicted() {
    const NOISE_BYTES: u64 = 9 * MIB;
    const DEFAULT: &str = "";
    const BLOCKS: &str = "rodata=on kfence.sample_interval=100";
    const MB: u64 = 1_000_000;
    for (release, page_size_bytes, memory_gib, compiled, in_use, command_line, measured_mb) in [
        ("6.1.176", 4, 8, 48, 48, DEFAULT, [16, 16]),
        ("7.3.4", 4, 8, 52, 48, DEFAULT, [24, 24]),
        ("7.3.4", 4, 8, 52, 52, DEFAULT, [16, 16]),
        ("6.12.107", 4, 2, 52, 48, DEFAULT, [66, 72]),
        ("6.12.107", 4, 8, 52, 48, DEFAULT, [258, 265]),
        // rodata=on alone is no help.
        ("6.12.107", 4, 8, 52, 48, "rodata=on", [258, 258]),
        ("6.12.107", 4, 8, 52, 48, BLOCKS, [2, 2]),
        ("6.12.107", 16, 8, 52, 48, DEFAULT, [138, 138]),
        ("6.12.107", 16, 8, 52, 52, DEFAULT, [7, 7]),
        ("6.12.118", 4, 2, 52, 48, DEFAULT, [4, 4]),
        ("6.12.118", 4, 8, 52, 48, DEFAULT, [16, 16]),
        ("6.12.118", 16, 8, 52, 48, DEFAULT, [4, 4]),
        ("6.12.118", 16, 8, 52, 52, DEFAULT, [4, 4]),
    ] {
        let ram = virt(memory_gib * GIB);
        let mut input = input(release, page_size_bytes * KIB, &ram);
        input.compiled_virtual_address_bits = Some(compiled);
        input.virtual_address_bits = in_use;
        input.command_line = command_line;
        let cost = predict(&input).unwrap();
        let what = format!("{release} {page_size_bytes}K {memory_gib}G {in_use} {command_line}");
        let [low, high] = measured_mb.map(|mb: u64| mb * MB);
        // In the bounds, and not by the bounds being wide.
        assert!(
            cost.bytes.at_least <= high + NOISE_BYTES,
            "{what}: {cost:?}"
        );
        assert!(
            cost.bytes.at_most + NOISE_BYTES >= high,
            "{what}: {cost:?}, measured {high}"
        );
        let allowed = low + low / 10 + NOISE_BYTES + upper_half_allowance(&input);
        assert!(
            cost.bytes.at_most <= allowed,
            "{what}: {cost:?}, measured {low}"
        );
        let repeated = cost
            .hazards
            .iter()
            .any(|hazard| matches!(hazard, Hazard::RepeatedCopy { certain: true, .. }));
        assert_eq!(repeated, release == "6.12.107" && in_use == 48, "{what}");
    }
}

/// What the prediction leaves for the upper half.
fn upper_half_allowance(input: &KexecCostInput<'_>) -> u64 {
    let granule = Granule::new(input.page_size_bytes).unwrap();
    let rounds = rounds(input, granule).at_most;
    let tables = UPPER_HALF_AREAS + (UPPER_HALF_BYTES >> granule.span_shift(1));
    tables * (rounds - 1) * input.page_size_bytes
}

/// The kernel's own walk, address by address of its top level, on sets of table numbers instead of memory:
/// how many last-level tables it copies, and how many tables above them the copy has.
/// Independent of the code above: nothing in it knows how often a level is copied.
fn walked_tables(
    page_shift: u32,
    compiled_bits: u32,
    bits_in_use: u32,
    ram: &PhysRanges,
    memstart: u64,
) -> (u64, u64) {
    let stride = page_shift - 3;
    let levels = |bits: u32| (bits - page_shift).div_ceil(stride);
    let page_offset = |bits: u32| (1_u64 << bits).wrapping_neg();
    let mask = (1_u64 << bits_in_use) - 1;
    let span = |height: u32| page_shift + height * stride;
    // Where the kernel's tables have something: the last-level tables of the linear map.
    let mut mapped = BTreeSet::new();
    for range in ram {
        let mut address = range.start().as_u64() >> span(1) << span(1);
        while address < range.end().as_u64() {
            let linear = page_offset(bits_in_use).wrapping_add(address - memstart);
            mapped.insert((linear & mask) >> span(1));
            address += 1 << span(1);
        }
    }
    // PGDIR_SHIFT of the build.
    let top_shift = page_shift + (levels(compiled_bits) - 1) * stride;
    let vabits_min = match (compiled_bits, page_shift) {
        (52, 14) => 47,
        (52, _) => 48,
        (bits, _) => bits,
    };
    let page_end = page_offset(vabits_min - 1);
    let mut last_level = 0;
    let mut upper = BTreeSet::new();
    let mut address = page_offset(compiled_bits);
    while address != page_end {
        let step_end = ((address >> top_shift) + 1)
            .checked_shl(top_shift)
            .unwrap_or(0);
        let next = if step_end.wrapping_sub(1) < page_end - 1 {
            step_end
        } else {
            page_end
        };
        // The indexes below the top level see no more than the bits in use.
        for &table in &mapped {
            let low = table << span(1);
            let offset = low.wrapping_sub(address & mask) & mask;
            let is_folded = levels(bits_in_use) < levels(compiled_bits);
            let is_here = if is_folded {
                offset < next - address
            } else {
                // Not folded: all bits of the index count.
                (low | !mask) >= address && (low | !mask) < next
            };
            if is_here {
                last_level += 1;
                for height in 2..levels(bits_in_use) {
                    upper.insert((height, low >> span(height)));
                }
            }
        }
        address = next;
    }
    (last_level, upper.len() as u64 + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any memory map, any shift of the linear map, any build.
    #[test]
    fn the_bounds_hold_the_kernels_walk(
        pieces in prop::collection::vec((0_u64..400, 1_u64..40, 0_u64..512), 1..6),
        build in prop::sample::select(vec![
            (12, 39, 39), (12, 48, 48), (12, 52, 48), (12, 52, 52),
            (14, 47, 47), (14, 48, 48), (14, 52, 47), (14, 52, 52),
            (16, 42, 42), (16, 48, 48), (16, 52, 48), (16, 52, 52),
        ]),
        shift in 0_u64..60,
        is_known in any::<bool>(),
    ) {
        let (page_shift, compiled, in_use) = build;
        let granule = Granule::new(1 << page_shift).unwrap();
        let unit = 1_u64 << granule.span_shift(1);
        let ram: PhysRanges = pieces
            .iter()
            .map(|&(start, size, cut)| range(64 * GIB + start * unit + cut * 4096, size * unit / 2))
            .collect();
        let memstart = 64 * GIB - (shift << granule.shift_unit_shift());
        // A kernel whose walk starts at the wrong address; LPA2 with 4K pages crashes instead.
        prop_assume!((page_shift, in_use) != (12, 52));
        let (last_level, upper) = walked_tables(page_shift, compiled, in_use, &ram, memstart);
        let mut input = input("6.12.107", 1 << page_shift, &ram);
        input.compiled_virtual_address_bits = is_known.then_some(compiled);
        input.virtual_address_bits = in_use.max(48);
        input.command_line = "rodata=full";
        let cost = predict(&input).unwrap();
        let walked = last_level + upper + granule.idmap_tables();
        if is_known {
            let once = regions(&ram, granule.span_shift(1));
            prop_assert_eq!(Bounds::exactly(last_level / once), rounds(&input, granule));
            prop_assert_eq!(last_level % once, 0);
        }
        let what = format!("{build:?} {ram} shifted by {shift}: {walked} walked, {cost:?}");
        prop_assert!(cost.tables.at_least <= walked, "{}", what);
        prop_assert!(cost.tables.at_most >= walked, "{}", what);
        if is_known {
            // And not by much: the top, the shift, and the upper half where it is copied.
            let rounds = rounds(&input, granule).at_most;
            let upper_half = UPPER_HALF_AREAS + (UPPER_HALF_BYTES >> granule.span_shift(1))
                + walked / rounds / UPPER_HALF_SHARE + 1;
            let slack = 2 * ram.range_count() as u64 + 6 + upper_half * if rounds > 1 { rounds } else { 0 };
            prop_assert!(cost.tables.at_most - walked <= slack, "{}", what);
        }
    }
}

#[test]
fn holes_matter() {
    // 2 MiB in every GiB: one last-level table and one above for each.
    let ram: PhysRanges = (0..64).map(|gib| range(gib * GIB, 2 * MIB)).collect();
    let whole: PhysRanges = range(0, 128 * MIB).into();
    let tables = |ram: &PhysRanges| {
        let mut input = input("6.1.0", 4096, ram);
        input.command_line = "quiet rodata=full";
        predict(&input).unwrap().tables.at_least
    };
    // Beside those: top, the one below it, four of the identity map.
    assert_eq!(tables(&ram), 64 + 64 + 6);
    assert_eq!(tables(&whole), 64 + 1 + 6);
}

#[test]
fn the_command_line_tells_pages_from_blocks() {
    use LinearMap::{Blocks, Pages, Unknown};
    for (release, command_line, expected) in [
        ("6.12.0", "", Unknown),
        ("6.12.0", "rodata=full", Pages),
        ("6.12.0", "rodata=full rodata=on", Unknown),
        ("6.12.0", "rodata=on rodata=full", Pages),
        ("6.12.0", "quiet -- rodata=full", Unknown),
        ("6.12.0", "xrodata=full rodata", Unknown),
        ("6.12.0", "rodata=on", Unknown),
        ("6.12.0", "rodata=on kfence.sample_interval=100", Blocks),
        ("6.12.0", "rodata=off kfence.sample_interval=100", Blocks),
        ("6.12.0", "rodata=on kfence.sample_interval=0", Unknown),
        ("6.12.0", "rodata=on kfence.sample_interval=x", Unknown),
        (
            "6.12.0",
            "rodata=on kfence.sample_interval=100 debug_pagealloc=on",
            Unknown,
        ),
        (
            "6.12.0",
            "rodata=on kfence.sample_interval=100 crashkernel=512M",
            Unknown,
        ),
        ("6.1.0", "rodata=on kfence.sample_interval=100", Unknown),
        ("7.3.0", "rodata=on kfence.sample_interval=100", Unknown),
        ("7.3.0", "rodata=full", Unknown),
        ("7.3.0", "rodata=noalias kfence.sample_interval=100", Blocks),
        ("unknown", "rodata=full", Unknown),
    ] {
        assert_eq!(
            linear_map(KernelVersion::parse(release), command_line),
            expected,
            "{release} {command_line}"
        );
    }
}

#[test]
fn what_is_unknown_widens_the_bounds() {
    let ram = virt(8 * GIB);
    let known = |bits| {
        let mut input = input("6.12.107", 4096, &ram);
        input.compiled_virtual_address_bits = bits;
        input.command_line = "rodata=full";
        predict(&input).unwrap()
    };
    let (of_48, of_52, unknown) = (known(Some(48)), known(Some(52)), known(None));
    assert!(of_48.hazards.is_empty());
    assert_eq!(
        of_52.hazards,
        [Hazard::RepeatedCopy {
            times: 16,
            certain: true
        }]
    );
    assert_eq!(
        unknown.hazards,
        [Hazard::RepeatedCopy {
            times: 16,
            certain: false
        }]
    );
    assert!(unknown.tables.at_least <= of_48.tables.at_least);
    assert!(unknown.tables.at_most >= of_52.tables.at_most);
    // A kernel of unknown version may copy nothing, or everything many times.
    let mut input = input("?", 4096, &ram);
    input.compiled_virtual_address_bits = None;
    let cost = predict(&input).unwrap();
    assert_eq!(cost.tables.at_least, 0);
    assert_eq!(cost.bytes.at_least, 0);
    assert!(cost.tables.at_most >= of_52.tables.at_most);
}

#[test]
fn repeated_copies_are_known_where_they_were_seen() {
    let ram = virt(8 * GIB);
    for (release, certain) in [
        ("6.8.12", Some(false)),
        ("6.9.1", Some(true)),
        ("6.12.107", Some(true)),
        ("6.12.108", None),
        ("6.12.117", None),
        ("6.12.118", Some(false)),
        ("6.12.200", Some(false)),
        ("6.12.0-55.el10.aarch64", None),
        ("6.13.0", None),
        ("6.18.30", None),
        ("7.2.9", None),
        ("7.3.0", Some(false)),
        ("nonsense", None),
    ] {
        let mut input = input(release, 16 * KIB, &ram);
        input.compiled_virtual_address_bits = Some(52);
        let hazards = predict(&input).unwrap().hazards;
        let expected = match certain {
            Some(false) => vec![],
            certain => vec![Hazard::RepeatedCopy {
                times: 32,
                certain: certain.is_some(),
            }],
        };
        assert_eq!(hazards, expected, "{release}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let ram = virt(8 * GIB);
    let mut input = input("6.12.107", 4096, &ram);
    input.compiled_virtual_address_bits = Some(52);
    let needed = predict(&input).unwrap().bytes.at_most;
    let remaining = 8 * GIB / MIN_REMAINING_SHARE;
    for (available_bytes, fits) in [
        (8 * GIB, true),
        (needed + remaining, true),
        (needed + remaining - 1, false),
        (needed, false),
        (0, false),
    ] {
        input.available_bytes = available_bytes;
        let cost = predict(&input).unwrap();
        assert_eq!(cost.fits(), fits);
        match cost.refusal() {
            None => assert!(fits, "{available_bytes}"),
            Some(hazard) => {
                assert!(!fits, "{available_bytes}");
                let text = hazard.to_string();
                let mib = format!("{} MiB", needed.div_ceil(MIB));
                assert!(text.contains(&mib), "{text} does not say {mib}");
                assert!(hazard.remedy().contains("rodata=on"));
            }
        }
    }
    // A small machine keeps the fixed amount.
    let ram = virt(512 * MIB);
    input.system_ram = &ram;
    input.total_bytes = 512 * MIB;
    let needed = predict(&input).unwrap().bytes.at_most;
    input.available_bytes = needed + MIN_REMAINING_BYTES;
    assert_eq!(predict(&input).unwrap().refusal(), None);
    input.available_bytes -= 1;
    assert!(predict(&input).unwrap().refusal().is_some());
}

#[test]
fn a_small_machine_keeps_a_smaller_rest() {
    let ram = virt(192 * MIB);
    let mut input = input("6.12.107", 4096, &ram);
    let needed = predict(&input).unwrap().bytes.at_most;
    input.available_bytes = needed + 12 * MIB;
    assert_eq!(predict(&input).unwrap().refusal(), None);
    input.available_bytes -= 1;
    let cost = predict(&input).unwrap();
    let text = cost.refusal().unwrap().to_string();
    assert!(text.contains("12 MiB must remain"), "{text}");
}

#[test]
fn numbers_from_outside_do_not_overflow() {
    let ram: PhysRanges = range(0, u64::MAX).into();
    for page_size_bytes in [4 * KIB, 16 * KIB, 64 * KIB] {
        for bits in [None, Some(0), Some(36), Some(48), Some(52), Some(u32::MAX)] {
            for virtual_address_bits in [0, 48, 52, u32::MAX] {
                let mut input = input("6.12.0", page_size_bytes, &ram);
                input.compiled_virtual_address_bits = bits;
                input.virtual_address_bits = virtual_address_bits;
                input.total_bytes = u64::MAX;
                input.available_bytes = 0;
                assert!(predict(&input).unwrap().refusal().is_some());
            }
        }
    }
    let empty = PhysRanges::new();
    assert!(
        predict(&input("6.12.0", 4096, &empty))
            .unwrap()
            .tables
            .at_most
            < 1000
    );
    assert_eq!(
        predict(&input("6.12.0", 8192, &empty)),
        Err(KexecCostError::PageSize(8192))
    );
}

#[test]
fn hot_added_memory_is_mapped_too() {
    let text = b"40000000-7fffffff : System RAM\n  40200000-41ffffff : Kernel code\n\
                 80000000-8000ffff : reserved\n100000000-1ffffffff : System RAM (kmem)\n\
                 200000000-2ffffffff : System RAM (virtio_mem)\n300000000-3000fffff : pcie\n";
    let entries = iomem::parse(text).unwrap();
    let ranges = linear_map_ranges(&entries);
    assert_eq!(
        ranges.to_string(),
        "[0x40000000, 0x80000000) [0x100000000, 0x300000000)"
    );
}

#[test]
fn json_has_the_numbers() {
    // What `status --json` will print; the fields are its interface.
    let ram = virt(2 * GIB);
    let mut input = input("6.12.107", 4096, &ram);
    input.compiled_virtual_address_bits = Some(52);
    let json = serde_json::to_value(predict(&input).unwrap()).unwrap();
    assert_eq!(json["linear_map"], "unknown");
    assert_eq!(json["hazards"][0]["hazard"], "repeated-copy");
    assert_eq!(json["hazards"][0]["times"], 16);
    assert!(json["bytes"]["at_most"].as_u64() > Some(64 * MIB));
    assert!(json["tables"]["at_least"].as_u64() > Some(0));
}
