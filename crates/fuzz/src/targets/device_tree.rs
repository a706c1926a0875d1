//! Device trees: as bytes, built of words that mean something, and made ready for the next kernel.

use super::Draw;
use kleap_devicetree::{
    CrashBoot, Error, MAX_BOOTARGS_BYTES, NextBoot, SecureBoot, TIMELINE_PROPERTY, Tree, UartKind,
    find_property_value,
};
use kleap_memmap::{PhysAddr, PhysRange};
use std::collections::BTreeMap;

/// Names of nodes, of those that kleap looks for and others.
const NODES: [&str; 24] = [
    "chosen",
    "chosen@0",
    "aliases",
    "memory@40000000",
    "memory@80000000",
    "reserved-memory",
    "soc",
    "bus@0",
    "bus@1",
    "pl011@9000000",
    "serial@9000000",
    "serial@9040000",
    "serial",
    "intc@8000000",
    "interrupt-controller@8000000",
    "its@8080000",
    "psci",
    "firmware",
    "cpus",
    "cpu@0",
    "framebuffer@1000",
    "region@2000",
    "__symbols__",
    "x",
];

/// Names of properties.
pub(crate) const PROPERTIES: [&str; 40] = [
    "compatible",
    "reg",
    "ranges",
    "#address-cells",
    "#size-cells",
    "status",
    "method",
    "device_type",
    "stdout-path",
    "linux,stdout-path",
    "serial0",
    "reg-shift",
    "reg-io-width",
    "reg-offset",
    "#redistributor-regions",
    "redistributor-stride",
    "no-map",
    "size",
    "alignment",
    "bootargs",
    "linux,initrd-start",
    "linux,initrd-end",
    "linux,elfcorehdr",
    "linux,usable-memory-range",
    "linux,dmcryptkeys",
    "linux,ima-kexec-buffer",
    "linux,kho-fdt",
    "linux,booted-from-kexec",
    "kleap,timeline",
    "kleap,other",
    "kaslr-seed",
    "rng-seed",
    "linux,uefi-system-table",
    "linux,uefi-mmap-start",
    "linux,uefi-mmap-size",
    "linux,uefi-mmap-desc-size",
    "linux,uefi-mmap-desc-ver",
    "linux,uefi-secure-boot",
    "enable-method",
    "phandle",
];

/// Texts that are values.
const TEXTS: [&str; 26] = [
    "arm,pl011",
    "arm,primecell",
    "arm,sbsa-uart",
    "ns16550a",
    "snps,dw-apb-uart",
    "brcm,bcm2835-aux-uart",
    "ti,omap4-uart",
    "arm,gic-v3",
    "arm,gic-v3-its",
    "arm,psci-1.0",
    "arm,psci-0.2",
    "arm,psci",
    "smc",
    "hvc",
    "memory",
    "cpu",
    "okay",
    "disabled",
    "/soc/serial@9000000",
    "/pl011@9000000",
    "serial0:115200n8",
    "/soc/bus@0/serial",
    "console=ttyAMA0",
    "",
    "psci",
    "spin-table",
];

/// A node of a tree that is built.
#[derive(Debug, Default)]
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    pub(crate) properties: Vec<(&'a str, Vec<u8>)>,
    pub(crate) children: Vec<Node<'a>>,
}

/// A tree, and the writer that the crate under attack has no part in.
#[derive(Debug, Default)]
pub(crate) struct Built<'a> {
    pub(crate) reservations: Vec<(u64, u64)>,
    pub(crate) boot_cpu: u32,
    pub(crate) root: Node<'a>,
}

fn pick<T: Copy + Default>(draw: &mut Draw<'_>, from: &[T]) -> T {
    let index = draw.below(from.len());
    from.get(index).copied().unwrap_or_default()
}

fn value(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    match draw.below(8) {
        // Cells, one or two a number.
        kind @ 0..=3 => {
            for _ in 0..draw.below(13) {
                let number = if kind == 0 {
                    u64::from(draw.byte())
                } else {
                    draw.number()
                };
                if kind & 1 == 0 {
                    value.extend((number as u32).to_be_bytes());
                } else {
                    value.extend(number.to_be_bytes());
                }
            }
        }
        4 | 5 => {
            value.extend(pick(draw, &TEXTS).bytes());
            value.push(0);
            if draw.flag() {
                value.extend(pick(draw, &TEXTS).bytes());
                value.push(0);
            }
        }
        6 => value.extend(u32::from(draw.byte()).to_be_bytes()),
        _ => {
            let length = draw.below(40);
            value.extend(draw.bytes(length));
        }
    }
    value
}

impl Built<'_> {
    /// A tree of the fuzzer's bytes, always well formed.
    fn draw(draw: &mut Draw<'_>) -> Self {
        let mut built = Self {
            boot_cpu: u32::from(draw.byte()),
            ..Self::default()
        };
        for _ in 0..draw.below(4) {
            let (start, size_bytes) = (draw.number(), draw.number());
            // Two zeros are the list's end.
            if (start, size_bytes) != (0, 0) {
                built.reservations.push((start, size_bytes));
            }
        }
        let mut open: Vec<Node<'_>> = vec![Node::default()];
        while !draw.is_empty() {
            match draw.below(8) {
                0 | 1 if open.len() < kleap_devicetree::MAX_DEPTH => {
                    let name = pick(draw, &NODES);
                    let twice = open
                        .last()
                        .is_some_and(|node| node.children.iter().any(|child| child.name == name));
                    if !twice {
                        open.push(Node {
                            name,
                            ..Node::default()
                        });
                    }
                }
                2 if open.len() > 1 => close(&mut open),
                3 if open.len() > 2 => {
                    close(&mut open);
                    close(&mut open);
                }
                _ => {
                    let name = pick(draw, &PROPERTIES);
                    let value = value(draw);
                    if let Some(node) = open.last_mut()
                        && node.properties.iter().all(|(other, _)| *other != name)
                    {
                        node.properties.push((name, value));
                    }
                }
            }
        }
        while open.len() > 1 {
            close(&mut open);
        }
        built.root = open.pop().unwrap_or_default();
        built
    }

    /// Flattened: Devicetree Specification 0.4, chapter 5.
    pub(crate) fn flat(&self) -> Vec<u8> {
        let mut strings = Strings::default();
        let mut structure = Vec::new();
        flatten(&self.root, &mut structure, &mut strings);
        structure.extend(9_u32.to_be_bytes());
        let mut reservations = Vec::new();
        for (start, size_bytes) in self.reservations.iter().chain([&(0, 0)]) {
            reservations.extend(start.to_be_bytes());
            reservations.extend(size_bytes.to_be_bytes());
        }
        let lengths = [40, reservations.len(), structure.len(), strings.block.len()]
            .map(|length| u32::try_from(length).unwrap());
        let structure_at = lengths[0] + lengths[1];
        let strings_at = structure_at + lengths[2];
        let header = [
            0xd00d_feed,
            strings_at + lengths[3],
            structure_at,
            strings_at,
            lengths[0],
            17,
            16,
            self.boot_cpu,
            lengths[3],
            lengths[2],
        ];
        let mut blob: Vec<u8> = header.into_iter().flat_map(u32::to_be_bytes).collect();
        blob.extend(reservations);
        blob.extend(structure);
        blob.extend(strings.block);
        blob
    }
}

fn close(open: &mut Vec<Node<'_>>) {
    if let Some(done) = open.pop()
        && let Some(parent) = open.last_mut()
    {
        parent.children.push(done);
    }
}

#[derive(Default)]
struct Strings<'a> {
    block: Vec<u8>,
    places: BTreeMap<&'a str, u32>,
}

fn flatten<'a>(node: &Node<'a>, structure: &mut Vec<u8>, strings: &mut Strings<'a>) {
    let pad = |structure: &mut Vec<u8>| structure.resize(structure.len().next_multiple_of(4), 0);
    structure.extend(1_u32.to_be_bytes());
    structure.extend(node.name.bytes());
    structure.push(0);
    pad(structure);
    for (name, value) in &node.properties {
        let place = *strings.places.entry(name).or_insert_with(|| {
            let place = u32::try_from(strings.block.len()).unwrap();
            strings.block.extend(name.bytes());
            strings.block.push(0);
            place
        });
        structure.extend(3_u32.to_be_bytes());
        structure.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        structure.extend(place.to_be_bytes());
        structure.extend(value);
        pad(structure);
    }
    for child in &node.children {
        flatten(child, structure, strings);
    }
    structure.extend(2_u32.to_be_bytes());
}

/// Asks a tree everything that kleap asks one; what is answered is within its bounds.
fn look(tree: &Tree) {
    match tree.console() {
        Ok(Some(uart)) => {
            assert!(uart.path.starts_with('/'));
            if let UartKind::Ns16550 {
                reg_shift,
                reg_io_width_bytes,
                ..
            } = uart.kind
            {
                assert!(reg_shift <= 4 && matches!(reg_io_width_bytes, 1 | 2 | 4));
            }
        }
        Ok(None) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(psci) = tree.psci() {
        assert_eq!(psci.has_system_reset, psci.version >= (0, 2));
    }
    match tree.gic_v3_redistributors() {
        Ok(regions) => {
            // What the relocator will take.
            let steps = |region: &kleap_devicetree::RedistributorRegion| {
                region
                    .stride_bytes
                    .is_none_or(|stride| stride >= 0x2_0000 && stride % 0x1_0000 == 0)
            };
            assert!(regions.iter().all(steps));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match tree.memory() {
        Ok(ranges) => assert!(ranges.iter().all(|range| !range.is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match tree.reserved_memory() {
        Ok(reserved) => assert!(reserved.iter().all(|reserved| !reserved.name.is_empty())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(bootargs) = tree.bootargs() {
        assert!(!bootargs.contains('\0'));
    }
    assert!(tree.initrd().is_none_or(|initrd| !initrd.is_empty()));
    let _ = tree.memory_reservations();
    let methods = tree.enable_methods();
    assert!(methods.is_sorted_by(|a, b| a < b), "each word once");
    assert!(methods.iter().all(|method| !method.contains('\0')));
    let _ = tree.has_its();
}

/// A value that is one text, as most are.
fn text<'a>(node: &'a Node<'_>, name: &str) -> Option<&'a str> {
    let (_, value) = node.properties.iter().find(|(other, _)| *other == name)?;
    let text = std::str::from_utf8(value.strip_suffix(&[0])?).ok()?;
    (!text.contains('\0')).then_some(text)
}

fn has_its(node: &Node<'_>) -> bool {
    let is_its = text(node, "compatible") == Some("arm,gic-v3-its")
        && node.properties.iter().all(|(name, _)| *name != "status");
    is_its || node.children.iter().any(has_its)
}

/// What `check` asks of a tree that is known.
fn check_cpus(tree: &Tree, root: &Node<'_>) {
    let found = tree.enable_methods();
    let cpus = root.children.iter().find(|child| child.name == "cpus");
    for cpu in cpus.iter().flat_map(|cpus| &cpus.children) {
        if text(cpu, "device_type") == Some("cpu")
            && let Some(method) = text(cpu, "enable-method")
        {
            assert!(found.iter().any(|found| found == method), "{method}");
        }
    }
    assert!(cpus.is_some() || found.is_empty());
    assert!(tree.has_its() || !has_its(root), "{root:?}");
}

/// Where a value lies in a blob, and what the tree says that it is, are the same.
fn same_place(tree: &Tree, dtb: &[u8], path: &str, name: &str) {
    if let Some(place) = find_property_value(dtb, path, name) {
        assert!(place.start.is_multiple_of(4));
        assert_eq!(dtb.get(place), tree.property(path, name), "{path} {name}");
    }
}

/// Written and read again, a tree is the same.
fn round_trip(tree: &Tree) {
    let dtb = match tree.to_dtb() {
        Ok(dtb) => dtb,
        Err(error) => {
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
            return;
        }
    };
    let again = Tree::parse(&dtb).expect("what was written is well formed");
    assert_eq!(&again, tree);
    for (path, name) in [
        ("/chosen", "bootargs"),
        ("/chosen", TIMELINE_PROPERTY),
        ("/", "compatible"),
    ] {
        same_place(tree, &dtb, path, name);
    }
}

/// A blob, as it is.
pub fn bytes(data: &[u8]) {
    let tree = match Tree::parse(data) {
        Ok(tree) => tree,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(find_property_value(data, "/", "\0"), None);
            return;
        }
    };
    look(&tree);
    same_place(&tree, data, "/chosen", "stdout-path");
    round_trip(&tree);
}

fn check_node(tree: &Tree, node: &Node<'_>, path: &str) {
    for (name, value) in &node.properties {
        let path = if path.is_empty() { "/" } else { path };
        assert_eq!(tree.property(path, name), Some(&value[..]), "{path} {name}");
    }
    for child in &node.children {
        check_node(tree, child, &format!("{path}/{}", child.name));
    }
}

/// A tree that is known: all of it is found.
pub fn built(data: &[u8]) {
    let mut draw = Draw::new(data);
    let built = Built::draw(&mut draw);
    let dtb = built.flat();
    let tree = Tree::parse(&dtb).unwrap_or_else(|error| panic!("{error}: {built:?}"));
    check_node(&tree, &built.root, "");
    check_cpus(&tree, &built.root);
    let reservations: Vec<u64> = built.reservations.iter().map(|(start, _)| *start).collect();
    let found: Vec<u64> = tree
        .memory_reservations()
        .iter()
        .map(|range| range.start().as_u64())
        .collect();
    assert_eq!(found, reservations);
    look(&tree);
    round_trip(&tree);
}

fn range(draw: &mut Draw<'_>) -> Option<PhysRange> {
    PhysRange::from_size(PhysAddr::new(draw.number()), draw.number()).ok()
}

/// What is stale in `/chosen`: the kernel's own list (drivers/of/kexec.c) and kleap's.
fn is_stale(name: &str) -> bool {
    name.starts_with("linux,kho-")
        || name.starts_with("kleap,")
        || matches!(
            name,
            "linux,elfcorehdr"
                | "linux,usable-memory-range"
                | "linux,dmcryptkeys"
                | "linux,ima-kexec-buffer"
        )
}

/// A known tree made ready for the next kernel, with anything that a caller could want.
pub fn prepare(data: &[u8]) {
    let mut draw = Draw::new(data);
    let seed_bytes = draw.below(200);
    let seed = draw.bytes(seed_bytes).to_vec();
    let text = match draw.below(16) {
        0 => "x".repeat(MAX_BOOTARGS_BYTES + draw.below(2)),
        1 => "a\0b".to_owned(),
        length => String::from_utf8_lossy(draw.bytes(length)).into_owned(),
    };
    let next = NextBoot {
        bootargs: &text,
        initrd: if draw.flag() { range(&mut draw) } else { None },
        kaslr_seed: draw.number(),
        rng_seed: &seed,
        timeline_bytes: match draw.below(32) {
            0 => 0,
            // Rarely: it is slow.
            1 => kleap_devicetree::MAX_TIMELINE_BYTES + draw.below(2),
            _ => 192,
        },
        old_dtb: if draw.flag() { range(&mut draw) } else { None },
        secure_boot: match draw.below(4) {
            0 => Some(SecureBoot::Unknown),
            1 => Some(SecureBoot::Disabled),
            2 => Some(SecureBoot::Enabled),
            _ => None,
        },
        crash: None,
    };
    let (carries, repeats) = (draw.below(4) == 1, draw.below(8) == 1);
    let built = Built::draw(&mut draw);
    // Drawn last, so that older inputs still mean what they meant.
    let usable: Vec<PhysRange> = (0..draw.below(3))
        .filter_map(|_| range(&mut draw))
        .collect();
    let core_header = range(&mut draw).filter(|_| !usable.is_empty());
    let next = NextBoot {
        crash: core_header.map(|core_header| CrashBoot {
            core_header,
            usable: &usable,
        }),
        ..next
    };
    let before = Tree::parse(&built.flat()).expect("well formed");
    let mut tree = before.clone();
    let prepared = match tree.prepare(&next) {
        Ok(prepared) => prepared,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(tree, before, "an error, and the tree has changed");
            return;
        }
    };
    let Ok(dtb) = tree.to_dtb() else { return };
    let mut again = Tree::parse(&dtb).expect("what was written is well formed");

    assert_eq!(again.bootargs(), Some(&text[..]));
    assert_eq!(again.initrd(), next.initrd);
    for name in PROPERTIES.into_iter().filter(|name| is_stale(name)) {
        if next.crash.is_some() && matches!(name, "linux,elfcorehdr" | "linux,usable-memory-range")
        {
            assert!(again.property("/chosen", name).is_some(), "{name}");
            continue;
        }
        let expected = vec![0_u8; next.timeline_bytes];
        let expected =
            (name == TIMELINE_PROPERTY && next.timeline_bytes > 0).then_some(&expected[..]);
        assert_eq!(again.property("/chosen", name), expected, "{name}");
    }
    let seed_wanted = (!seed.is_empty()).then_some(&seed[..]);
    assert_eq!(again.property("/chosen", "rng-seed"), seed_wanted);
    assert_eq!(
        again.property("/chosen", "kaslr-seed"),
        Some(&next.kaslr_seed.to_be_bytes()[..])
    );
    let place = find_property_value(&dtb, "/chosen", TIMELINE_PROPERTY);
    assert_eq!(place.map_or(0, |place| place.len()), next.timeline_bytes);

    // Every reservation stays or is said to be gone; the new initrd has one.
    let kept = again.memory_reservations();
    let expected = before.memory_reservations().len() - prepared.removed_reservations.len()
        + usize::from(next.initrd.is_some());
    assert_eq!(kept.len(), expected);
    for old in before.memory_reservations() {
        assert!(
            kept.contains(&old) || prepared.removed_reservations.contains(&old),
            "{old}"
        );
    }
    assert!(next.initrd.is_none_or(|initrd| kept.contains(&initrd)));
    // What is not in /chosen is as it was.
    for child in built
        .root
        .children
        .iter()
        .filter(|child| child.name != "chosen")
    {
        check_node(&again, child, &format!("/{}", child.name));
    }

    // From hand-over to hand-over nothing piles up. (Asked now and then: it takes as long as all the rest.)
    if repeats {
        let _ = again.prepare(&next).expect("the same again");
        let second = again.to_dtb();
        let _ = again.prepare(&next).expect("and again");
        assert_eq!(again.to_dtb(), second);
    }

    if carries {
        let mut other = Tree::parse(&dtb).expect("well formed");
        let names = other.carry_efi(&before);
        for name in PROPERTIES
            .into_iter()
            .filter(|name| name.starts_with("linux,uefi-"))
        {
            let carried = names.iter().any(|carried| carried == name);
            let value = other.property("/chosen", name);
            assert_eq!(value.is_some(), carried, "{name}");
            // `chosen@0` answers for a missing `chosen`.
            if built
                .root
                .children
                .iter()
                .any(|child| child.name == "chosen")
            {
                assert_eq!(value, before.property("/chosen", name), "{name}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_well_formed_whatever_it_is_built_of() {
        for seed in 0..200_u8 {
            let data: Vec<u8> = (0..200_u8)
                .map(|index| index.wrapping_mul(seed) ^ seed)
                .collect();
            built(&data);
        }
    }
}
