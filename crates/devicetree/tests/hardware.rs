//! What the trees say about their machines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use common::{BOARD, EFI, VIRT};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use kleap_devicetree::{
    Conduit, HardwareError, Psci, RedistributorRegion, ReservedMemory, Tree, Uart, UartKind,
    find_property_value,
};
use kleap_memmap::{PhysAddr, PhysRange};

fn range(start: u64, size_bytes: u64) -> PhysRange {
    PhysRange::from_size(PhysAddr::new(start), size_bytes).unwrap()
}

/// The board with another console: the alias in the blob is replaced by one of the same length.
fn board_console(alias: &str) -> Result<Option<Uart>, HardwareError> {
    let mut blob = BOARD.to_vec();
    let at = blob
        .windows(8)
        .position(|window| window == b"serial1:")
        .unwrap();
    blob[at..at + 7].copy_from_slice(alias.as_bytes());
    Tree::parse(&blob).unwrap().console()
}

#[test]
fn consoles_are_found_by_path_and_by_alias() {
    assert_eq!(
        Tree::parse(VIRT).unwrap().console(),
        Ok(Some(Uart {
            base: PhysAddr::new(0x900_0000),
            kind: UartKind::Pl011,
            path: "/pl011@9000000".to_owned()
        }))
    );
    assert_eq!(Tree::parse(EFI).unwrap().console(), Ok(None));
    // Through the ranges of one bus.
    assert_eq!(
        board_console("serial0").unwrap().unwrap(),
        Uart {
            base: PhysAddr::new(0xfe20_1000),
            kind: UartKind::Pl011,
            path: "/soc/serial@7e201000".to_owned()
        }
    );
    assert_eq!(
        board_console("serial1").unwrap().unwrap(),
        Uart {
            base: PhysAddr::new(0xfe21_5040),
            kind: UartKind::Ns16550 {
                reg_shift: 2,
                reg_io_width_bytes: 4,
                reg_offset_bytes: 0
            },
            path: "/soc/serial@7e215040".to_owned()
        }
    );
    // Through two buses, with registers from 0x40 on.
    assert_eq!(
        board_console("serial2").unwrap().unwrap(),
        Uart {
            base: PhysAddr::new(0xfd00_1040),
            kind: UartKind::Ns16550 {
                reg_shift: 2,
                reg_io_width_bytes: 4,
                reg_offset_bytes: 0x40
            },
            path: "/soc/bus@7d000000/serial@1000".to_owned()
        }
    );
}

#[test]
fn consoles_that_cannot_be_used_are_errors() {
    // On an i2c bus: an address without a size.
    assert!(matches!(
        board_console("serial3"),
        Err(HardwareError::Address { .. })
    ));
    // An alias of nothing, and no alias.
    assert!(matches!(
        board_console("serial4"),
        Err(HardwareError::StdoutPath { .. })
    ));
    assert!(matches!(
        board_console("serial9"),
        Err(HardwareError::StdoutPath { .. })
    ));
    // On a bus without ranges.
    let error = board_console("serial5").unwrap_err();
    assert!(error.to_string().contains("no ranges"), "{error}");

    let mut blob = VIRT.to_vec();
    for at in 0..blob.len() - 9 {
        if &blob[at..at + 9] == b"arm,pl011" {
            blob[at..at + 9].copy_from_slice(b"arm,pl099");
        }
    }
    let error = Tree::parse(&blob).unwrap().console().unwrap_err();
    assert!(error.to_string().contains("arm,pl099"), "{error}");
}

#[test]
fn a_console_behind_pci_is_not_guessed() {
    let mut blob = VIRT.to_vec();
    let path = b"/pl011@9000000\0";
    let at = blob
        .windows(path.len())
        .position(|window| window == path)
        .unwrap();
    // Shorter, the rest is NUL; the unit addresses are left out, as libfdt allows.
    blob[at..at + path.len()].copy_from_slice(b"/pcie/serial\0\0\0");
    let error = Tree::parse(&blob).unwrap().console().unwrap_err();
    assert!(matches!(error, HardwareError::Address { ref path, .. }
        if path == "/pcie@10000000/serial@1,0"));
}

#[test]
fn firmware_and_interrupt_controller() {
    let virt = Tree::parse(VIRT).unwrap();
    let board = Tree::parse(BOARD).unwrap();
    assert_eq!(
        virt.psci(),
        Some(Psci {
            conduit: Conduit::Hvc,
            version: (1, 0),
            has_system_reset: true
        })
    );
    assert_eq!(
        board.psci(),
        Some(Psci {
            conduit: Conduit::Smc,
            version: (0, 2),
            has_system_reset: true
        })
    );
    assert_eq!(Tree::parse(EFI).unwrap().psci(), None);
    assert_eq!(
        virt.gic_v3_redistributors(),
        Ok(vec![
            RedistributorRegion {
                range: range(0x80a_0000, 0xf6_0000),
                stride_bytes: Some(0x2_0000)
            },
            RedistributorRegion {
                range: range(0x40_0000_0000, 0x400_0000),
                stride_bytes: Some(0x2_0000)
            },
        ])
    );
    assert_eq!(board.gic_v3_redistributors(), Ok(vec![]));
}

#[test]
fn memory_and_reservations() {
    let virt = Tree::parse(VIRT).unwrap();
    let board = Tree::parse(BOARD).unwrap();
    assert_eq!(
        virt.memory(),
        Ok(vec![
            range(0x4000_0000, 0x8000_0000),
            range(0x8_8000_0000, 0x4000_0000)
        ])
    );
    // The third node is disabled.
    assert_eq!(
        board.memory(),
        Ok(vec![range(0, 0x3b40_0000), range(0x4000_0000, 0xbc00_0000)])
    );
    let reserved = |name: &str, range, is_no_map| ReservedMemory {
        name: name.to_owned(),
        range,
        is_no_map,
    };
    assert_eq!(
        virt.reserved_memory(),
        Ok(vec![
            reserved("secure@50000000", range(0x5000_0000, 0x20_0000), true),
            reserved("ramoops@51000000", range(0x5100_0000, 0x1_0000), false),
        ])
    );
    assert_eq!(
        virt.memory_reservations(),
        [range(0x4800_0000, 0x10_0000), range(0x4900_0000, 0x2000)]
    );
}

#[test]
fn an_interrupt_translation_service_is_found() {
    for (blob, has_its) in [(VIRT, true), (BOARD, false), (EFI, false)] {
        assert_eq!(Tree::parse(blob).unwrap().has_its(), has_its);
    }
    // One by another name does not count.
    let mut blob = VIRT.to_vec();
    let name = b"arm,gic-v3-its";
    let at = blob
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    blob[at] = b'b';
    assert!(!Tree::parse(&blob).unwrap().has_its());
}

/// From a step that does not leave the frame, a walk from one redistributor to the next would not end.
#[test]
fn an_impossible_stride_is_refused() {
    let path = "/intc@8000000";
    let place = find_property_value(VIRT, path, "redistributor-stride").unwrap();
    assert_eq!(place.len(), 8);
    for (stride_bytes, is_fine) in [
        (0, true),
        (1, false),
        (0x1_0000, false),
        (0x2_0000, true),
        (0x2_8000, false),
        (0x3_0000, true),
        (0x4_0000, true),
        (u64::MAX, false),
    ] {
        let mut dtb = VIRT.to_vec();
        dtb[place.clone()].copy_from_slice(&u64::to_be_bytes(stride_bytes));
        let found = Tree::parse(&dtb).unwrap().gic_v3_redistributors();
        assert_eq!(found.is_ok(), is_fine, "{stride_bytes:#x}: {found:?}");
    }
}

/// Each entry of `reg` is looked for among the ranges of each bus above it: with both as long as they fit into a
/// tree, that is thousands of millions of steps.
#[test]
fn lists_that_no_machine_has_are_refused() {
    let tree = |entries: usize, ranges: usize| {
        let cells = |count: usize| vec![0_u8; 4 * count];
        let mut uart = DeviceTreeNode::new_unchecked("serial@0");
        uart.add_property(DeviceTreeProperty::new_unchecked("compatible", "arm,pl011"));
        uart.add_property(DeviceTreeProperty::new_unchecked("reg", cells(3 * entries)));
        let mut bus = DeviceTreeNode::new_unchecked("bus");
        // Ranges of one byte that cover nothing, and in the end one that covers the UART.
        let mut value = cells(5 * ranges);
        let last = value.len() - 1;
        value[last] = 1;
        bus.add_property(DeviceTreeProperty::new_unchecked("ranges", value));
        bus.add_child(uart);
        let mut chosen = DeviceTreeNode::new_unchecked("chosen");
        chosen.add_property(DeviceTreeProperty::new_unchecked(
            "stdout-path",
            "/bus/serial@0",
        ));
        let mut model = DeviceTree::new();
        model.root.add_child(chosen);
        model.root.add_child(bus);
        Tree::parse(&model.to_dtb()).unwrap().console()
    };
    assert!(tree(1, 1).unwrap().is_some());
    assert!(tree(100, 8192).unwrap().is_some());
    for (entries, ranges) in [(8193, 1), (1, 8193), (50_000, 50_000)] {
        let error = tree(entries, ranges).unwrap_err();
        assert!(matches!(error, HardwareError::Address { .. }), "{error}");
    }
}
