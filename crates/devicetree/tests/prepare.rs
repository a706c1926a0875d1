//! What the next kernel is told, property by property.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use common::{BOARD, EFI, VIRT, contents, properties, put_u32};
use kleap_devicetree::{
    CrashBoot, Error, MAX_BOOTARGS_BYTES, MAX_TIMELINE_BYTES, NextBoot, SPARE_RESERVATIONS,
    SecureBoot, Tree, Warning, find_property_value,
};
use kleap_memmap::{PhysAddr, PhysRange};

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

fn next_boot() -> NextBoot<'static> {
    NextBoot {
        bootargs: "root=/dev/vda1 quiet",
        initrd: Some(range(0x1_4000_0000, 0x123_4567)),
        kaslr_seed: 0x1122_3344_5566_7788,
        rng_seed: &[0xa5; 128],
        timeline_bytes: 256,
        old_dtb: None,
        secure_boot: None,
        crash: None,
    }
}

fn names(properties: &[(String, Vec<u8>)]) -> Vec<&str> {
    properties.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn chosen_is_renewed_in_place() {
    let mut tree = Tree::parse(VIRT).unwrap();
    assert_eq!(tree.initrd(), Some(range(0x4800_0000, 0x10_0000)));
    let report = tree.prepare(&NextBoot {
        old_dtb: Some(range(0x4900_0000, 0x1948)),
        ..next_boot()
    });
    let report = report.unwrap();
    assert_eq!(
        report.removed_properties,
        [
            "linux,elfcorehdr",
            "linux,usable-memory-range",
            "linux,dmcryptkeys",
            "linux,ima-kexec-buffer",
            "linux,kho-fdt",
            "linux,kho-scratch",
            "kleap,timeline",
        ]
    );
    // The old initrd's is exact; the old tree's was rounded to pages.
    assert_eq!(
        report.removed_reservations,
        [range(0x4800_0000, 0x10_0000), range(0x4900_0000, 0x2000)]
    );
    assert_eq!(report.warnings, []);

    let dtb = tree.to_dtb().unwrap();
    let written = contents(&dtb);
    assert_eq!(written.reservations, [(0x1_4000_0000, 0x123_4567)]);
    let chosen = properties(&written, "/chosen");
    assert_eq!(
        names(&chosen),
        [
            "bootargs",
            "linux,initrd-start",
            "linux,initrd-end",
            "kaslr-seed",
            "rng-seed",
            "stdout-path",
            "vendor,keep-this",
            "linux,booted-from-kexec",
            "kleap,timeline",
        ]
    );
    assert_eq!(chosen[0].1, b"root=/dev/vda1 quiet\0");
    assert_eq!(chosen[1].1, 0x1_4000_0000_u64.to_be_bytes());
    assert_eq!(chosen[2].1, 0x1_4123_4567_u64.to_be_bytes());
    assert_eq!(chosen[3].1, 0x1122_3344_5566_7788_u64.to_be_bytes());
    assert_eq!(chosen[4].1, [0xa5; 128]);
    assert_eq!(chosen[6].1, b"unchanged\0");
    assert_eq!(chosen[8].1, [0; 256]);

    let timeline = find_property_value(&dtb, "/chosen", "kleap,timeline").unwrap();
    assert_eq!(timeline.len(), 256);
    let mut filled = dtb.clone();
    filled[timeline].fill(0x77);
    let filled = Tree::parse(&filled).unwrap();
    assert_eq!(
        filled.property("/chosen", "kleap,timeline"),
        Some(&[0x77; 256][..])
    );
    assert_eq!(filled.initrd(), Some(range(0x1_4000_0000, 0x123_4567)));
    assert_eq!(filled.bootargs(), Some("root=/dev/vda1 quiet"));
}

#[test]
fn a_second_and_third_hand_over_leave_nothing_behind() {
    let mut dtb = VIRT.to_vec();
    let mut sizes = Vec::new();
    for step in 0..3_u64 {
        let mut tree = Tree::parse(&dtb).unwrap();
        let initrd = Some(range(0x5000_0000 + step * 0x100_0000, 0x1_0001));
        let report = tree
            .prepare(&NextBoot {
                initrd,
                ..next_boot()
            })
            .unwrap();
        assert_eq!(report.removed_reservations.len(), 1);
        dtb = tree.to_dtb().unwrap();
        sizes.push(dtb.len());
        // Ours, and the one of a tree whose place was not given.
        assert_eq!(tree.memory_reservations().len(), 2);
    }
    assert_eq!(sizes[1], sizes[0]);
    assert_eq!(sizes[2], sizes[0]);
}

#[test]
fn without_an_initrd_the_old_one_goes() {
    let mut tree = Tree::parse(VIRT).unwrap();
    let report = tree
        .prepare(&NextBoot {
            initrd: None,
            ..next_boot()
        })
        .unwrap();
    assert!(
        report
            .removed_properties
            .contains(&"linux,initrd-start".to_owned())
    );
    assert_eq!(tree.initrd(), None);
    assert_eq!(tree.property("/chosen", "linux,initrd-end"), None);
    assert_eq!(tree.memory_reservations(), [range(0x4900_0000, 0x2000)]);
}

#[test]
fn a_larger_reservation_stays() {
    let mut blob = VIRT.to_vec();
    let entry = usize::try_from(u32::from_be_bytes(blob[16..20].try_into().unwrap())).unwrap();
    // One byte over what rounding to 64K pages could make of the initrd.
    put_u32(&mut blob, entry + 12, 0x11_0001);
    let mut tree = Tree::parse(&blob).unwrap();
    let report = tree.prepare(&next_boot()).unwrap();
    assert_eq!(report.removed_reservations, []);
    assert_eq!(tree.memory_reservations()[0], range(0x4800_0000, 0x11_0001));
}

#[test]
fn a_tree_without_chosen_gets_one() {
    let mut blob = BOARD.to_vec();
    let at = blob
        .windows(7)
        .position(|window| window == b"chosen\0")
        .unwrap();
    // A node that looks like it is not it.
    blob[at..at + 7].copy_from_slice(b"chosen@");
    blob[at + 7] = 0;
    // "chosen" and its NUL fill seven bytes of eight, so the new name has room for its own NUL.
    let mut tree = Tree::parse(&blob).unwrap();
    assert_eq!(tree.property("/", "model"), Some(&b"A board\0"[..]));
    let _ = tree.prepare(&next_boot()).unwrap();
    let written = contents(&tree.to_dtb().unwrap());
    assert_eq!(names(&properties(&written, "/chosen@")), ["stdout-path"]);
    assert_eq!(properties(&written, "/chosen").len(), 7);
}

#[test]
fn the_boot_cpu_is_kept() {
    // efi.dtb was compiled with boot CPU 0x101.
    let tree = Tree::parse(EFI).unwrap();
    assert_eq!(contents(&tree.to_dtb().unwrap()).boot_cpu, 0x101);
}

#[test]
fn efi_properties_are_carried_unchanged() {
    let before = properties(&contents(EFI), "/chosen");
    let mut tree = Tree::parse(EFI).unwrap();
    let report = tree.prepare(&next_boot()).unwrap();
    assert_eq!(report.warnings, [Warning::NoSecureBootState]);
    let after = properties(&contents(&tree.to_dtb().unwrap()), "/chosen");
    let efi: Vec<_> = before
        .iter()
        .filter(|(name, _)| name.starts_with("linux,uefi-"))
        .collect();
    assert_eq!(efi.len(), 6);
    assert!(efi.iter().all(|property| after.contains(property)));
    assert_eq!(tree.property("/chosen", "linux,uefi-secure-boot"), None);

    // The caller knows: it is added, once, and never changed.
    for state in [SecureBoot::Enabled, SecureBoot::Disabled] {
        let next = NextBoot {
            secure_boot: Some(state),
            ..next_boot()
        };
        let report = tree.prepare(&next).unwrap();
        assert_eq!(report.warnings, []);
        let value = tree.property("/chosen", "linux,uefi-secure-boot");
        assert_eq!(value, Some(&[0, 0, 0, 3][..]));
    }
    // A machine without EFI gets none.
    let mut tree = Tree::parse(VIRT).unwrap();
    let next = NextBoot {
        secure_boot: Some(SecureBoot::Unknown),
        ..next_boot()
    };
    let _ = tree.prepare(&next).unwrap();
    assert_eq!(tree.property("/chosen", "linux,uefi-secure-boot"), None);
}

#[test]
fn an_incomplete_efi_set_is_reported() {
    let mut blob = EFI.to_vec();
    let name = b"linux,uefi-mmap-size\0";
    let at = blob
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    blob[at + 11] = b'M';
    let mut tree = Tree::parse(&blob).unwrap();
    let report = tree.prepare(&NextBoot {
        secure_boot: Some(SecureBoot::Disabled),
        ..next_boot()
    });
    let warnings = report.unwrap().warnings;
    assert_eq!(
        warnings,
        [Warning::IncompleteEfi {
            missing: vec!["linux,uefi-mmap-size"]
        }]
    );
    assert!(warnings[0].to_string().contains("linux,uefi-mmap-size"));
}

#[test]
fn a_crash_kernel_is_told_of_its_memory_in_the_roots_cells() {
    let core_header = range(0x1_5fff_0000, 0x1000);
    let usable = [
        range(0x1_5000_0000, 0x1000_0000),
        range(0x5000_0000, 0x80_0000),
    ];
    let crash = Some(CrashBoot {
        core_header,
        usable: &usable,
    });
    let mut tree = Tree::parse(VIRT).unwrap();
    let _ = tree
        .prepare(&NextBoot {
            crash,
            ..next_boot()
        })
        .unwrap();
    let read = Tree::parse(&tree.to_dtb().unwrap()).unwrap();
    // The machine's root has two cells of each.
    let encode = |ranges: &[PhysRange]| -> Vec<u8> {
        ranges
            .iter()
            .flat_map(|range| [range.start().as_u64(), range.size_bytes()])
            .flat_map(u64::to_be_bytes)
            .collect()
    };
    assert_eq!(
        read.property("/chosen", "linux,elfcorehdr"),
        Some(encode(&[core_header]).as_slice())
    );
    assert_eq!(
        read.property("/chosen", "linux,usable-memory-range"),
        Some(encode(&usable).as_slice())
    );
    // And whoever comes next is none.
    let mut tree = read;
    let _ = tree.prepare(&next_boot()).unwrap();
    assert_eq!(tree.property("/chosen", "linux,elfcorehdr"), None);

    // With single cells it is written in them, or refused.
    let mut blob = VIRT.to_vec();
    let root_cells: Vec<usize> = blob
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == [0, 0, 0, 2])
        .map(|(at, _)| at)
        .take(2)
        .collect();
    for at in root_cells {
        blob[at + 3] = 1;
    }
    let mut tree = Tree::parse(&blob).unwrap();
    assert_eq!(
        tree.property("/", "#address-cells"),
        Some(&[0, 0, 0, 1][..])
    );
    assert_eq!(tree.property("/", "#size-cells"), Some(&[0, 0, 0, 1][..]));
    let before = tree.clone();
    let error = tree.prepare(&NextBoot {
        crash,
        ..next_boot()
    });
    assert!(
        matches!(
            error,
            Err(Error::CrashRange {
                address_cells: 1,
                size_cells: 1,
                ..
            })
        ),
        "{error:?}"
    );
    assert_eq!(tree, before);
    let low = [range(0x5000_0000, 0x80_0000)];
    let _ = tree
        .prepare(&NextBoot {
            crash: Some(CrashBoot {
                core_header: range(0x507f_0000, 0x200),
                usable: &low,
            }),
            ..next_boot()
        })
        .unwrap();
    assert_eq!(
        tree.property("/chosen", "linux,elfcorehdr"),
        Some(&[0x50, 0x7f, 0, 0, 0, 0, 2, 0][..])
    );
}

#[test]
fn what_no_kernel_would_take_is_refused_and_changes_nothing() {
    let longest = "x".repeat(MAX_BOOTARGS_BYTES);
    let too_long = "x".repeat(MAX_BOOTARGS_BYTES + 1);
    let mut tree = Tree::parse(VIRT).unwrap();
    let before = tree.clone();
    let mut refuse = |next: NextBoot<'_>| {
        let error = tree.prepare(&next).unwrap_err();
        assert_eq!(tree, before);
        error
    };
    assert_eq!(
        refuse(NextBoot {
            bootargs: &too_long,
            ..next_boot()
        }),
        Error::BootargsTooLong {
            size_bytes: 2048,
            limit_bytes: 2047
        }
    );
    assert_eq!(
        refuse(NextBoot {
            bootargs: "a\0b",
            ..next_boot()
        }),
        Error::BootargsNul { position: 1 }
    );
    assert_eq!(
        refuse(NextBoot {
            initrd: Some(range(0x1000, 0)),
            ..next_boot()
        }),
        Error::InitrdEmpty {
            address: PhysAddr::new(0x1000)
        }
    );
    assert!(matches!(
        refuse(NextBoot {
            timeline_bytes: MAX_TIMELINE_BYTES + 1,
            ..next_boot()
        }),
        Error::TimelineTooLarge { .. }
    ));
    assert!(matches!(
        refuse(NextBoot {
            rng_seed: &[0; 4097],
            ..next_boot()
        }),
        Error::RngSeedTooLarge { .. }
    ));
    let _ = tree
        .prepare(&NextBoot {
            bootargs: &longest,
            ..next_boot()
        })
        .unwrap();
    assert_eq!(tree.bootargs(), Some(longest.as_str()));
}

#[test]
fn no_seed_is_said_and_never_the_old_one_used() {
    let mut tree = Tree::parse(VIRT).unwrap();
    let next = NextBoot {
        kaslr_seed: 0,
        rng_seed: &[],
        ..next_boot()
    };
    assert_eq!(
        tree.prepare(&next).unwrap().warnings,
        [Warning::NoKaslrSeed]
    );
    assert_eq!(tree.property("/chosen", "kaslr-seed"), Some(&[0; 8][..]));
    assert_eq!(tree.property("/chosen", "rng-seed"), None);
}

/// Neither the seeds nor a tree of thousands of nodes belong into a log.
#[test]
fn debug_output_has_no_secrets() {
    let text = format!("{:?}", next_boot());
    assert!(
        !text.contains("1234605616436508552") && !text.contains("165"),
        "{text}"
    );
    let text = format!("{:?}", Tree::parse(VIRT).unwrap());
    assert!(text.len() < 200, "{text}");
}

#[test]
fn a_tree_from_a_file_takes_over_this_machines_efi() {
    let running = Tree::parse(EFI).unwrap();
    let of = |tree: &Tree, name: &str| tree.property("/chosen", name).map(<[u8]>::to_vec);
    let table = of(&running, "linux,uefi-system-table").unwrap();

    let mut file = Tree::parse(VIRT).unwrap();
    let carried = file.carry_efi(&running);
    assert!(
        carried.contains(&"linux,uefi-mmap-start".to_owned()),
        "{carried:?}"
    );
    assert_eq!(of(&file, "linux,uefi-system-table"), Some(table));

    // The other way round: what the file says of another boot's firmware goes.
    let mut file = Tree::parse(EFI).unwrap();
    assert_eq!(
        file.carry_efi(&Tree::parse(VIRT).unwrap()),
        Vec::<String>::new()
    );
    assert_eq!(of(&file, "linux,uefi-system-table"), None);
    assert_eq!(of(&file, "bootargs"), of(&running, "bootargs"));
}

/// The relocator looks for free slots between the list and the block behind it.
#[test]
fn there_is_room_for_reservations_and_it_does_not_grow() {
    let slots = |dtb: &[u8]| {
        let field = |at: usize| u32::from_be_bytes(dtb[at..at + 4].try_into().unwrap()) as usize;
        let (structure, strings, list) = (field(8), field(12), field(16));
        assert!(list < structure && list < strings);
        let block = &dtb[list..structure.min(strings)];
        let used = contents(dtb).reservations.len();
        assert!(block[16 * used..].iter().all(|byte| *byte == 0));
        (used, block.len() / 16)
    };
    let mut tree = Tree::parse(VIRT).unwrap();
    let (_, before) = slots(VIRT);
    assert!(
        before < SPARE_RESERVATIONS,
        "the fixture has no spare slots"
    );
    let _ = tree.prepare(&next_boot()).unwrap();
    let mut dtb = tree.to_dtb().unwrap();
    let (used, total) = slots(&dtb);
    assert_eq!(total, used + SPARE_RESERVATIONS);
    for hop in 0..3 {
        // The relocator has filled one in.
        let list = usize::try_from(u32::from_be_bytes(dtb[16..20].try_into().unwrap())).unwrap();
        let slot = list + 16 * contents(&dtb).reservations.len();
        dtb[slot..slot + 8].copy_from_slice(&(0x6000_0000_u64 + hop * 0x1_0000).to_be_bytes());
        dtb[slot + 8..slot + 16].copy_from_slice(&0x1_0000_u64.to_be_bytes());
        let mut tree = Tree::parse(&dtb).unwrap();
        let _ = tree.prepare(&next_boot()).unwrap();
        dtb = tree.to_dtb().unwrap();
        let (used, total) = slots(&dtb);
        assert_eq!(total, used + SPARE_RESERVATIONS);
        let reserved = contents(&dtb).reservations;
        for earlier in 0..=hop {
            assert!(reserved.contains(&(0x6000_0000 + earlier * 0x1_0000, 0x1_0000)));
        }
    }
}
