//! A flattened device tree, only to be read: the outside of a FIT.
//!
//! `kleap-devicetree` reads trees that describe machines: up to 2 MiB, every value copied into a model that can
//! be changed. A FIT is the same format with a kernel of 50 MB as one of the values. Here a value is where it
//! lies in the file, and nothing is copied. Devicetree Specification 0.4, chapter 5; all numbers are big-endian.

use std::ops::Range;

/// `d00dfeed`.
pub(crate) const MAGIC: u32 = 0xd00d_feed;
/// A FIT has three levels, four with hashes.
const MAX_DEPTH: usize = 16;
/// A FIT for every board that a vendor has holds some hundreds.
const MAX_NODES: usize = 16_384;
/// Longest name, bytes.
const MAX_NAME_BYTES: usize = 256;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A big-endian number.
pub(crate) fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A node: names and places.
#[derive(Debug, Default)]
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    properties: Vec<(&'a str, Range<usize>)>,
    pub(crate) children: Vec<Node<'a>>,
}

impl<'a> Node<'a> {
    /// The child with this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Where the value of a property lies.
    pub(crate) fn range(&self, name: &str) -> Option<Range<usize>> {
        let mut found = self.properties.iter().filter(|(found, _)| *found == name);
        found.next().map(|(_, range)| range.clone())
    }

    /// The value of a property.
    pub(crate) fn value(&self, tree: &Tree<'a>, name: &str) -> Option<&'a [u8]> {
        tree.blob.get(self.range(name)?)
    }

    /// The value of a property that is one text.
    pub(crate) fn text(&self, tree: &Tree<'a>, name: &str) -> Option<&'a str> {
        self.texts(tree, name)?.first().copied()
    }

    /// The value of a property that is a list of texts.
    pub(crate) fn texts(&self, tree: &Tree<'a>, name: &str) -> Option<Vec<&'a str>> {
        let value = self.value(tree, name)?.strip_suffix(&[0])?;
        value
            .split(|byte| *byte == 0)
            .map(|text| std::str::from_utf8(text).ok())
            .collect()
    }

    /// The value of a property that is a number of one cell.
    pub(crate) fn cell(&self, tree: &Tree<'a>, name: &str) -> Option<u32> {
        let value = self.value(tree, name)?;
        (value.len() == 4).then(|| be32(value, 0))?
    }
}

/// A whole tree.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    blob: &'a [u8],
    /// Length that the header states, bytes.
    pub(crate) total_bytes: usize,
    pub(crate) root: Node<'a>,
}

impl<'a> Tree<'a> {
    /// Reads the structure. What is wrong is said in a sentence.
    pub(crate) fn read(file: &'a [u8]) -> Result<Self, String> {
        let cut = || {
            format!(
                "the file ends after {} bytes, within the device tree: it is truncated, install it again",
                file.len()
            )
        };
        let field = |index: usize| {
            be32(file, index * 4)
                .and_then(|value| usize::try_from(value).ok())
                .ok_or_else(cut)
        };
        let total_bytes = field(1)?;
        let (structure, strings) = (field(2)?, field(3)?);
        let (version, last_compatible) = (field(5)?, field(6)?);
        if be32(file, 0) != Some(MAGIC) {
            return Err("no device tree".into());
        }
        if version < 17 || last_compatible > 17 {
            return Err(format!(
                "device tree of version {version}, not 17: make it again with mkimage"
            ));
        }
        let (strings_bytes, structure_bytes) = (field(8)?, field(9)?);
        let blob = file.get(..total_bytes).ok_or_else(cut)?;
        let block = |name: &str, offset: usize, size: usize| {
            let end = offset.checked_add(size).filter(|end| *end <= total_bytes);
            end.map(|end| offset..end).ok_or_else(|| {
                format!("the {name} block ({offset:#x}, {size:#x} bytes) is not within {total_bytes:#x} bytes")
            })
        };
        let structure = block("structure", structure, structure_bytes)?;
        let strings = block("strings", strings, strings_bytes)?;
        let mut walk = Walk {
            blob,
            at: structure.start,
            end: structure.end,
            strings: blob.get(strings).unwrap_or_default(),
            nodes: 0,
        };
        let root = walk.root()?;
        Ok(Self {
            blob,
            total_bytes,
            root,
        })
    }
}

struct Walk<'a> {
    blob: &'a [u8],
    at: usize,
    end: usize,
    strings: &'a [u8],
    nodes: usize,
}

impl<'a> Walk<'a> {
    fn word(&mut self) -> Result<u32, String> {
        let word = (self.at.saturating_add(4) <= self.end)
            .then(|| be32(self.blob, self.at))
            .flatten()
            .ok_or_else(|| format!("the structure ends early, at {:#x}", self.at))?;
        self.at += 4;
        Ok(word)
    }

    fn name(&self, bytes: &'a [u8]) -> Result<&'a str, String> {
        let bounded = bytes.get(..MAX_NAME_BYTES).unwrap_or(bytes);
        bounded
            .iter()
            .position(|byte| *byte == 0)
            .and_then(|length| std::str::from_utf8(bounded.get(..length)?).ok())
            .filter(|name| !name.chars().any(char::is_control))
            .ok_or_else(|| format!("no readable name at {:#x}", self.at))
    }

    fn token(&mut self) -> Result<u32, String> {
        loop {
            match self.word()? {
                NOP => {}
                token => return Ok(token),
            }
        }
    }

    fn root(&mut self) -> Result<Node<'a>, String> {
        if self.token()? != BEGIN_NODE {
            return Err("the structure does not begin with a node".into());
        }
        let root = self.node(1)?;
        match self.token()? {
            END => Ok(root),
            token => Err(format!("token {token:#x} after the root node")),
        }
    }

    fn node(&mut self, depth: usize) -> Result<Node<'a>, String> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return Err(format!(
                "more than {MAX_DEPTH} levels or {MAX_NODES} nodes: no FIT is like that"
            ));
        }
        let name = self.name(self.blob.get(self.at..self.end).unwrap_or_default())?;
        self.advance(name.len() + 1)?;
        let mut node = Node {
            name,
            ..Node::default()
        };
        loop {
            match self.token()? {
                BEGIN_NODE => {
                    let child = self.node(depth + 1)?;
                    if node.child(child.name).is_some() {
                        return Err(format!("two nodes with the name {}", child.name));
                    }
                    node.children.push(child);
                }
                END_NODE => return Ok(node),
                PROPERTY => {
                    let length = usize::try_from(self.word()?).unwrap_or(usize::MAX);
                    let name = usize::try_from(self.word()?).unwrap_or(usize::MAX);
                    let name = self.name(self.strings.get(name..).unwrap_or_default())?;
                    let start = self.at;
                    self.advance(length)?;
                    node.properties.push((name, start..start + length));
                }
                token => return Err(format!("token {token:#x} at {:#x}", self.at - 4)),
            }
        }
    }

    /// Goes on behind `bytes`, at the next multiple of 4.
    fn advance(&mut self, bytes: usize) -> Result<(), String> {
        self.at = self
            .at
            .checked_add(bytes)
            .filter(|at| *at <= self.end)
            .and_then(|at| at.checked_next_multiple_of(4))
            .ok_or_else(|| format!("{bytes:#x} bytes at {:#x} do not fit", self.at))?;
        Ok(())
    }
}
