//! Finding nodes and reading values.
//!
//! dtoolkit's own lookup by name takes a name without a unit address for any node that has it with one:
//! `/chosen` would also be `chosen@1`. Where a tree is changed, names are compared whole.

use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node as _, Property as _};
use kleap_memmap::{PhysAddr, PhysRange};

/// The child of `node` that is called exactly `name`.
pub(crate) fn child<'a>(node: &'a DeviceTreeNode, name: &str) -> Option<&'a DeviceTreeNode> {
    node.children().find(|child| child.name() == name)
}

/// A node and all its parents, from the root down.
#[derive(Clone)]
pub(crate) struct Place<'a> {
    chain: Vec<&'a DeviceTreeNode>,
    root: &'a DeviceTreeNode,
}

impl<'a> Place<'a> {
    pub(crate) fn root(root: &'a DeviceTreeNode) -> Self {
        Self {
            chain: Vec::new(),
            root,
        }
    }

    pub(crate) fn below(&self, child: &'a DeviceTreeNode) -> Self {
        let mut chain = self.chain.clone();
        chain.push(child);
        Self {
            chain,
            root: self.root,
        }
    }

    pub(crate) fn node(&self) -> &'a DeviceTreeNode {
        self.chain.last().copied().unwrap_or(self.root)
    }

    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, above) = self.chain.split_last()?;
        Some(Self {
            chain: above.to_vec(),
            root: self.root,
        })
    }

    pub(crate) fn path(&self) -> String {
        if self.chain.is_empty() {
            return "/".to_owned();
        }
        self.chain
            .iter()
            .fold(String::new(), |path, node| path + "/" + node.name())
    }
}

/// The node at `path`. As in libfdt, a part without a unit address finds the first node that has that
/// name with one, if none has it without.
pub(crate) fn node_at<'a>(root: &'a DeviceTreeNode, path: &str) -> Option<Place<'a>> {
    let mut place = Place::root(root);
    for part in path
        .strip_prefix('/')?
        .split('/')
        .filter(|part| !part.is_empty())
    {
        let node = place.node();
        let next = child(node, part).or_else(|| {
            node.children().find(|child| {
                child
                    .name()
                    .strip_prefix(part)
                    .is_some_and(|rest| rest.starts_with('@'))
            })
        })?;
        place = place.below(next);
    }
    Some(place)
}

/// All nodes, parents before children, that `wanted` takes.
pub(crate) fn find_all<'a>(
    root: &'a DeviceTreeNode,
    wanted: &dyn Fn(&DeviceTreeNode) -> bool,
) -> Vec<Place<'a>> {
    fn visit<'a>(
        place: &Place<'a>,
        wanted: &dyn Fn(&DeviceTreeNode) -> bool,
        found: &mut Vec<Place<'a>>,
    ) {
        if wanted(place.node()) {
            found.push(place.clone());
        }
        // Recursion is bounded: a tree deeper than `MAX_DEPTH` was not read.
        for child in place.node().children() {
            visit(&place.below(child), wanted, found);
        }
    }
    let mut found = Vec::new();
    visit(&Place::root(root), wanted, &mut found);
    found
}

pub(crate) fn count(node: &DeviceTreeNode) -> usize {
    1 + node.children().map(count).sum::<usize>()
}

/// What the structure block alone takes at least, bytes.
pub(crate) fn least_bytes(model: &DeviceTree) -> usize {
    fn of(node: &DeviceTreeNode) -> usize {
        node.properties()
            .map(|property| 12 + property.value().len())
            .sum::<usize>()
            + node.children().map(of).sum::<usize>()
            + 8
            + node.name().len()
    }
    of(&model.root) + 16 * model.memory_reservations.len()
}

pub(crate) fn value<'a>(node: &'a DeviceTreeNode, name: &str) -> Option<&'a [u8]> {
    // `Property::value` would borrow from the handle, which does not outlive this call.
    node.property(name)?.value_as::<&'a [u8]>().ok()
}

/// A string, up to its first NUL.
pub(crate) fn text<'a>(node: &'a DeviceTreeNode, name: &str) -> Option<&'a str> {
    let value = value(node, name)?;
    std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}

/// A list of strings; those that are not UTF-8 are left out.
pub(crate) fn texts<'a>(
    node: &'a DeviceTreeNode,
    name: &str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    value(node, name)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .filter(|text| !text.is_empty())
        .filter_map(|text| std::str::from_utf8(text).ok())
}

pub(crate) fn is_compatible(node: &DeviceTreeNode, with: &[&str]) -> bool {
    texts(node, "compatible").any(|compatible| with.contains(&compatible))
}

/// Absent, "okay" and the older "ok" mean that the device is there.
pub(crate) fn is_enabled(node: &DeviceTreeNode) -> bool {
    text(node, "status").is_none_or(|status| matches!(status, "okay" | "ok"))
}

/// One cell.
pub(crate) fn number32(node: &DeviceTreeNode, name: &str) -> Option<u32> {
    Some(u32::from_be_bytes(value(node, name)?.try_into().ok()?))
}

/// One cell or two.
pub(crate) fn number(node: &DeviceTreeNode, name: &str) -> Option<u64> {
    let value = value(node, name)?;
    match value.len() {
        4 | 8 => Some(cells(value)),
        _ => None,
    }
}

/// Big-endian cells as one number; of more than 8 bytes the last 8.
pub(crate) fn cells(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// `size_bytes` from `start`, cut at the end of the address space.
pub(crate) fn range_clamped(start: u64, size_bytes: u64) -> PhysRange {
    let start = PhysAddr::new(start);
    PhysRange::from_size(start, size_bytes)
        .or_else(|_| PhysRange::new(start, PhysAddr::new(u64::MAX)))
        .unwrap_or_default()
}
