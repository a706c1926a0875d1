//! The flattened form: chapter 5 of the Devicetree Specification, version 0.4.
//!
//! Every offset and length comes from outside, so every read is checked, and one walk serves reading a
//! whole tree and finding one value in it ([`walk`]).

use std::collections::HashSet;
use std::ops::Range;

use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::{
    BlobError, Error, MAX_DEPTH, MAX_DTB_BYTES, MAX_MEMORY_RESERVATIONS, MAX_NODES, Tree, lookup,
};

const MAGIC: u32 = 0xd00d_feed;
const HEADER_BYTES: usize = 40;
const VERSION: u32 = 17;

/// Offsets of the header's fields, all of them big-endian u32.
mod field {
    pub(super) const TOTAL_BYTES: usize = 4;
    pub(super) const STRUCT_OFFSET: usize = 8;
    pub(super) const STRINGS_OFFSET: usize = 12;
    pub(super) const RESERVATIONS_OFFSET: usize = 16;
    pub(super) const VERSION: usize = 20;
    pub(super) const LAST_COMPATIBLE: usize = 24;
    pub(super) const BOOT_CPU: usize = 28;
    pub(super) const STRINGS_BYTES: usize = 32;
    pub(super) const STRUCT_BYTES: usize = 36;
}

mod token {
    pub(super) const BEGIN_NODE: u32 = 1;
    pub(super) const END_NODE: u32 = 2;
    pub(super) const PROP: u32 = 3;
    pub(super) const NOP: u32 = 4;
    pub(super) const END: u32 = 9;
    pub(super) const BYTES: usize = 4;
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_be_bytes)
}

const fn malformed(offset: usize, what: &'static str) -> BlobError {
    BlobError::Malformed { offset, what }
}

/// The blocks of a blob whose header is right.
struct Blocks<'a> {
    blob: &'a [u8],
    structure: Range<usize>,
    strings: Range<usize>,
    reservations_offset: usize,
    boot_cpu: u32,
}

impl<'a> Blocks<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let short = BlobError::TooShort {
            size_bytes: bytes.len(),
        };
        if bytes.len() < HEADER_BYTES {
            return Err(short);
        }
        let get = |offset: usize| u32_at(bytes, offset).ok_or_else(|| short.clone());
        let magic = get(0)?;
        if magic != MAGIC {
            return Err(BlobError::Magic { magic });
        }
        let (version, last_compatible) = (get(field::VERSION)?, get(field::LAST_COMPATIBLE)?);
        if version < VERSION || last_compatible > VERSION {
            return Err(BlobError::Version {
                version,
                last_compatible,
            });
        }
        let total_bytes = get(field::TOTAL_BYTES)?;
        let total = usize::try_from(total_bytes).unwrap_or(usize::MAX);
        if total < HEADER_BYTES || total > bytes.len() {
            return Err(BlobError::TotalSize {
                total_bytes,
                size_bytes: bytes.len(),
            });
        }
        if total > MAX_DTB_BYTES {
            return Err(BlobError::TooLarge {
                total_bytes,
                limit_bytes: MAX_DTB_BYTES,
            });
        }
        let blob = bytes.get(..total).ok_or(short.clone())?;

        let block = |name, offset_field, bytes_field: Option<usize>, alignment: usize| {
            let offset = get(offset_field)?;
            let block_bytes = bytes_field.map_or(Ok(0), get)?;
            let refusal = BlobError::Block {
                block: name,
                offset,
                block_bytes,
            };
            let start = usize::try_from(offset).map_err(|_| refusal.clone())?;
            let size = usize::try_from(block_bytes).map_err(|_| refusal.clone())?;
            match start.checked_add(size) {
                Some(end)
                    if start >= HEADER_BYTES && end <= total && start.is_multiple_of(alignment) =>
                {
                    Ok(start..end)
                }
                _ => Err(refusal),
            }
        };
        Ok(Self {
            blob,
            structure: block(
                "structure",
                field::STRUCT_OFFSET,
                Some(field::STRUCT_BYTES),
                4,
            )?,
            strings: block(
                "strings",
                field::STRINGS_OFFSET,
                Some(field::STRINGS_BYTES),
                1,
            )?,
            reservations_offset: block("reservation", field::RESERVATIONS_OFFSET, None, 8)?.start,
            boot_cpu: get(field::BOOT_CPU)?,
        })
    }

    fn reservations(&self) -> Result<Vec<MemoryReservation>, BlobError> {
        let mut entries = Vec::new();
        let mut offset = self.reservations_offset;
        loop {
            let read = || Some((u64_at(self.blob, offset)?, u64_at(self.blob, offset + 8)?));
            let (address, size) =
                read().ok_or(malformed(offset, "the list of reservations has no end"))?;
            if (address, size) == (0, 0) {
                return Ok(entries);
            }
            if entries.len() == MAX_MEMORY_RESERVATIONS {
                let limit = MAX_MEMORY_RESERVATIONS;
                return Err(BlobError::Limit {
                    offset,
                    what: "memory reservations",
                    limit,
                });
            }
            entries.push(MemoryReservation::new(address, size));
            offset += 16;
        }
    }

    /// The name at `offset` of the strings block; `at` is where it is used.
    fn string(&self, offset: u32, at: usize) -> Result<&'a str, BlobError> {
        let block = self.blob.get(self.strings.clone()).unwrap_or_default();
        usize::try_from(offset)
            .ok()
            .and_then(|offset| block.get(offset..))
            .and_then(name_in)
            .ok_or(malformed(
                at,
                "a property's name is not in the strings block, or not a name",
            ))
    }
}

/// A name up to its NUL: at least one printable ASCII character. More is not asked for: of the
/// specification's rules (31 characters, a set of punctuation), many real trees break one.
fn name_in(bytes: &[u8]) -> Option<&str> {
    let length = bytes.iter().position(|byte| *byte == 0)?;
    let name = bytes.get(..length)?;
    if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    std::str::from_utf8(name).ok()
}

/// What [`walk`] finds, in the order of the blob.
enum Event<'a> {
    Begin {
        name: &'a str,
        offset: usize,
    },
    Property {
        name: &'a str,
        value: Range<usize>,
        offset: usize,
    },
    End,
}

/// Walks the structure block and checks that it is one root node, well nested and fully inside.
fn walk<'a>(
    blocks: &Blocks<'a>,
    mut event: impl FnMut(Event<'a>) -> Result<(), BlobError>,
) -> Result<(), BlobError> {
    // Cut at the block's end, so that no token or value can reach over it.
    let bytes = blocks.blob.get(..blocks.structure.end).unwrap_or_default();
    let mut at = blocks.structure.start;
    let mut depth = 0_usize;
    let mut nodes = 0_usize;
    // Whether the innermost node has had a child: properties come first.
    let mut had_child = false;
    loop {
        let offset = at;
        let found = u32_at(bytes, at).ok_or(malformed(at, "the structure has no end"))?;
        at += token::BYTES;
        if depth == 0 && nodes > 0 {
            match found {
                token::NOP => continue,
                token::END => return Ok(()),
                _ => return Err(malformed(offset, "something follows the root node")),
            }
        }
        match found {
            token::NOP => {}
            token::BEGIN_NODE => {
                if depth == MAX_DEPTH {
                    return Err(BlobError::Limit {
                        offset,
                        what: "levels",
                        limit: MAX_DEPTH,
                    });
                }
                if nodes == MAX_NODES {
                    return Err(BlobError::Limit {
                        offset,
                        what: "nodes",
                        limit: MAX_NODES,
                    });
                }
                let rest = bytes.get(at..).unwrap_or_default();
                let name = if nodes == 0 && rest.first() == Some(&0) {
                    ""
                } else {
                    name_in(rest)
                        .filter(|name| nodes > 0 && !name.contains('/'))
                        .ok_or(malformed(at, "a node's name is not a name"))?
                };
                at = (at + name.len() + 1).next_multiple_of(token::BYTES);
                (depth, nodes, had_child) = (depth + 1, nodes + 1, false);
                event(Event::Begin { name, offset })?;
            }
            token::END_NODE if depth > 0 => {
                (depth, had_child) = (depth - 1, true);
                event(Event::End)?;
            }
            token::PROP if depth > 0 => {
                if had_child {
                    return Err(malformed(offset, "a property follows a node"));
                }
                let header = || Some((u32_at(bytes, at)?, u32_at(bytes, at + 4)?));
                let (length, name) = header().ok_or(malformed(offset, "a property is cut off"))?;
                let start = at + 8;
                let end = usize::try_from(length)
                    .ok()
                    .and_then(|length| start.checked_add(length))
                    .filter(|end| *end <= bytes.len())
                    .ok_or(malformed(
                        offset,
                        "a property's value does not fit in the structure",
                    ))?;
                at = end.next_multiple_of(token::BYTES);
                let name = blocks.string(name, offset)?;
                event(Event::Property {
                    name,
                    value: start..end,
                    offset,
                })?;
            }
            _ => return Err(malformed(offset, "an unknown or misplaced token")),
        }
    }
}

/// A node under construction, with the names it already has.
#[derive(Default)]
struct Open<'a> {
    node: DeviceTreeNode,
    properties: HashSet<&'a str>,
    children: HashSet<&'a str>,
}

pub(crate) fn read(dtb: &[u8]) -> Result<Tree, BlobError> {
    let blocks = Blocks::read(dtb)?;
    let mut model = DeviceTree::new();
    model.memory_reservations = blocks.reservations()?;
    let mut open: Vec<Open<'_>> = Vec::new();
    walk(&blocks, |event| {
        match event {
            Event::Begin { name, offset } => {
                if let Some(parent) = open.last_mut()
                    && !parent.children.insert(name)
                {
                    let name = name.to_owned();
                    return Err(BlobError::Duplicate {
                        offset,
                        what: "nodes",
                        name,
                    });
                }
                let node = DeviceTreeNode::new_unchecked(name);
                open.push(Open {
                    node,
                    ..Open::default()
                });
            }
            Event::Property {
                name,
                value,
                offset,
            } => {
                if let Some(node) = open.last_mut() {
                    if !node.properties.insert(name) {
                        let name = name.to_owned();
                        return Err(BlobError::Duplicate {
                            offset,
                            what: "properties",
                            name,
                        });
                    }
                    let value = blocks.blob.get(value).unwrap_or_default();
                    node.node
                        .add_property(DeviceTreeProperty::new_unchecked(name, value));
                }
            }
            Event::End => {
                if let Some(done) = open.pop() {
                    match open.last_mut() {
                        Some(parent) => parent.node.add_child(done.node),
                        None => model.root = done.node,
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(Tree {
        model,
        boot_cpu: blocks.boot_cpu,
        spare_reservations: 0,
    })
}

pub(crate) fn write(tree: &Tree) -> Result<Vec<u8>, Error> {
    // Before dtoolkit writes it: it counts in u32 and panics above.
    let spare = tree.spare_reservations.saturating_sub(1);
    let least_bytes = lookup::least_bytes(&tree.model) + 16 * spare;
    if least_bytes > MAX_DTB_BYTES {
        return Err(Error::TooLarge {
            size_bytes: least_bytes,
            limit_bytes: MAX_DTB_BYTES,
        });
    }
    let mut dtb = if spare == 0 {
        tree.model.to_dtb()
    } else {
        // Every reader stops at the first entry of two zeros; dtoolkit writes one more of them.
        let mut model = tree.model.clone();
        model
            .memory_reservations
            .extend(std::iter::repeat_n(MemoryReservation::new(0, 0), spare));
        model.to_dtb()
    };
    if dtb.len() > MAX_DTB_BYTES {
        return Err(Error::TooLarge {
            size_bytes: dtb.len(),
            limit_bytes: MAX_DTB_BYTES,
        });
    }
    // dtoolkit's model has no place for it and writes 0.
    if let Some(bytes) = dtb.get_mut(field::BOOT_CPU..field::BOOT_CPU + 4) {
        bytes.copy_from_slice(&tree.boot_cpu.to_be_bytes());
    }
    Ok(dtb)
}

/// Where in the blob `dtb` the value of the property `name` of the node at `path` lies, in bytes. The
/// path is made of full node names (`/chosen`, `/soc/serial@9000000`). The start is a multiple of 4.
///
/// The relocator writes the timeline there: it is far too small to understand a device tree.
///
/// `None` if there is no such property, or the blob is malformed.
#[must_use]
pub fn find_property_value(dtb: &[u8], path: &str, name: &str) -> Option<Range<usize>> {
    let wanted: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let blocks = Blocks::read(dtb).ok()?;
    let mut here: Vec<&str> = Vec::new();
    let mut found = None;
    walk(&blocks, |event| {
        match event {
            Event::Begin { name, .. } => here.push(name),
            Event::End => {
                here.pop();
            }
            Event::Property {
                name: this, value, ..
            } => {
                // The first of `here` is the root, which has no name.
                if found.is_none() && this == name && here.get(1..) == Some(&wanted[..]) {
                    found = Some(value);
                }
            }
        }
        Ok(())
    })
    .ok()?;
    found
}
