//! FIT, U-Boot's image tree: kernels, device trees and RAM disks with hashes, and configurations that say
//! which belong together.
//!
//! After U-Boot's doc/usage/fit/source_file_format.rst and boot/image-fit.c. Data is a property, or lies behind
//! the tree (`mkimage -E`: `data-offset` from the tree's end, `data-position` from the file's beginning).
//!
//! Every hash of what is used must be right. Signatures are not checked, and that is said: the key would have to
//! come from somewhere that whoever replaces the file cannot reach. Encrypted images are refused.

use std::ops::Range;

use sha2::Digest;

use crate::fdt::{Node, Tree};
use crate::{Compression, Container, Error};

/// Most hashes of one image; mkimage knows six algorithms.
const MAX_HASHES: usize = 64;

/// An image of a FIT.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) range: Range<usize>,
    pub(crate) compression: Option<Compression>,
}

/// A configuration.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) name: String,
    pub(crate) kernel: Image,
    pub(crate) device_tree: Option<Image>,
    pub(crate) ramdisk: Option<Image>,
    /// What was not checked, or not taken.
    pub(crate) remarks: Vec<String>,
}

fn refuse(what: impl Into<String>) -> Error {
    Error::Container {
        container: Container::Fit,
        what: what.into(),
    }
}

/// Whether `file`, which is a device tree, is a FIT.
pub(crate) fn is_fit(file: &[u8]) -> bool {
    // One that is damaged is no machine's tree either.
    Tree::read(file).map_or(true, |tree| tree.root.child("images").is_some())
}

/// Reads the configuration with this name, or the default one. Of several device trees those behind the first are
/// overlays, which are not applied: `takes_device_tree` says whether that matters.
pub(crate) fn read(
    file: &[u8],
    name: Option<&str>,
    takes_device_tree: bool,
) -> Result<Configuration, Error> {
    let tree = Tree::read(file).map_err(refuse)?;
    let fit = Fit { file, tree: &tree };
    let configuration = fit.configuration(name)?;
    let mut remarks = fit.signatures(configuration);
    let name_of = |property: &str| configuration.texts(&tree, property);
    let kernel = name_of("kernel")
        .and_then(|names| names.first().copied())
        .ok_or_else(|| {
            refuse(format!(
                "the configuration {} names no kernel; choose another one with --fit-config: {}",
                configuration.name,
                fit.names()
            ))
        })?;
    let kernel = fit.image(kernel, &["kernel", "kernel_noload"], &mut remarks)?;
    let trees = name_of("fdt").unwrap_or_default();
    if trees.len() > 1 && takes_device_tree {
        return Err(refuse(format!(
            "the configuration {} has overlays ({}), which are not applied here: apply them \
             (fdtoverlay) and give the result with --dtb",
            configuration.name,
            trees.get(1..).unwrap_or_default().join(", ")
        )));
    }
    let mut part = |names: Option<&&str>, types: &[&str]| {
        names
            .map(|name| fit.image(name, types, &mut remarks))
            .transpose()
    };
    let device_tree = if takes_device_tree {
        part(trees.first(), &["flat_dt"])?
    } else {
        None
    };
    let ramdisk = part(name_of("ramdisk").unwrap_or_default().first(), &["ramdisk"])?;
    for left in ["loadables", "firmware", "fpga", "script"] {
        if let Some(names) = name_of(left) {
            remarks.push(format!("{left} not taken: {}", names.join(", ")));
        }
    }
    Ok(Configuration {
        name: configuration.name.to_owned(),
        kernel,
        device_tree,
        ramdisk,
        remarks,
    })
}

struct Fit<'a> {
    file: &'a [u8],
    tree: &'a Tree<'a>,
}

impl<'a> Fit<'a> {
    fn names(&self) -> String {
        let names: Vec<&str> = self
            .tree
            .root
            .child("configurations")
            .map(|node| node.children.iter().map(|child| child.name).collect())
            .unwrap_or_default();
        if names.is_empty() {
            "there are none".to_owned()
        } else {
            names.join(", ")
        }
    }

    fn configuration(&self, name: Option<&str>) -> Result<&'a Node<'a>, Error> {
        let all = self.tree.root.child("configurations").ok_or_else(|| {
            refuse("no /configurations: nothing says which images belong together")
        })?;
        // U-Boot's own way to write it.
        let name = name.map(|name| name.strip_prefix('#').unwrap_or(name));
        let wanted = match (
            name,
            all.text(self.tree, "default"),
            all.children.as_slice(),
        ) {
            (Some(name), _, _) | (None, Some(name), _) => name,
            (None, None, [only]) => only.name,
            (None, None, _) => {
                return Err(refuse(format!(
                    "no default configuration; choose one with --fit-config: {}",
                    self.names()
                )));
            }
        };
        all.child(wanted).ok_or_else(|| {
            refuse(format!(
                "no configuration has the name {wanted}; choose one with --fit-config: {}",
                self.names()
            ))
        })
    }

    fn signatures(&self, node: &Node<'a>) -> Vec<String> {
        node.children
            .iter()
            .filter(|child| child.name.starts_with("signature"))
            .map(|child| {
                format!(
                    "{} of {} ({}) is not checked",
                    child.name,
                    node.name,
                    child.text(self.tree, "algo").unwrap_or("unknown algorithm")
                )
            })
            .collect()
    }

    /// An image, its data found and its hashes checked.
    fn image(&self, name: &str, types: &[&str], remarks: &mut Vec<String>) -> Result<Image, Error> {
        let node = self
            .tree
            .root
            .child("images")
            .and_then(|images| images.child(name))
            .ok_or_else(|| {
                refuse(format!(
                    "no image has the name {name}, which the configuration uses"
                ))
            })?;
        let text = |property| node.text(self.tree, property);
        let kind = text("type").unwrap_or("nothing");
        if !types.contains(&kind) {
            return Err(refuse(format!(
                "the image {name} is of type {kind}, not {}",
                types.join(" or ")
            )));
        }
        if let Some(arch) = text("arch").filter(|arch| *arch != "arm64") {
            return Err(refuse(format!("the image {name} is for {arch}, not arm64")));
        }
        if let Some(os) = text("os").filter(|os| *os != "linux") {
            return Err(refuse(format!("the image {name} is for {os}, not linux")));
        }
        if node.child("cipher").is_some() {
            return Err(refuse(format!("the image {name} is encrypted")));
        }
        let compression = match text("compression") {
            None | Some("none") => None,
            Some(said) => Some(compression(said).ok_or_else(|| {
                refuse(format!(
                    "the image {name} is compressed with {said}, which is not known"
                ))
            })?),
        };
        let range = self.data(node)?;
        let data = self.file.get(range.clone()).unwrap_or_default();
        let is_hash = |node: &&Node<'a>| node.name.starts_with("hash");
        let hashes = node.children.iter().filter(is_hash).count();
        if hashes > MAX_HASHES {
            return Err(refuse(format!(
                "the image {name} has {hashes} hashes, more than {MAX_HASHES}: no FIT is like that"
            )));
        }
        for hash in node.children.iter().filter(is_hash) {
            self.check_hash(name, hash, data)?;
        }
        if hashes == 0 {
            remarks.push(format!("{name} has no hash: nothing says that it is whole"));
        }
        remarks.extend(self.signatures(node));
        Ok(Image {
            name: name.to_owned(),
            range,
            compression,
        })
    }

    fn data(&self, node: &Node<'a>) -> Result<Range<usize>, Error> {
        if let Some(range) = node.range("data") {
            return Ok(range);
        }
        let cell = |property| {
            node.cell(self.tree, property)
                .and_then(|value| usize::try_from(value).ok())
        };
        // The external data begins at the next multiple of 4 (fit_get_data_offset).
        let start = cell("data-position").or_else(|| {
            let base = self.tree.total_bytes.checked_next_multiple_of(4)?;
            base.checked_add(cell("data-offset")?)
        });
        let (Some(start), Some(size)) = (start, cell("data-size")) else {
            return Err(refuse(format!("the image {} has no data", node.name)));
        };
        start
            .checked_add(size)
            .filter(|end| *end <= self.file.len())
            .map(|end| start..end)
            .ok_or_else(|| {
                refuse(format!(
                    "the image {} lies at {start:#x} with {size:#x} bytes, but the file has {:#x}: it is \
                     truncated, install it again (was the disk full?)",
                    node.name,
                    self.file.len()
                ))
            })
    }

    fn check_hash(&self, image: &str, hash: &Node<'a>, data: &[u8]) -> Result<(), Error> {
        let algorithm = hash.text(self.tree, "algo").unwrap_or("no algorithm");
        let said = hash.value(self.tree, "value").unwrap_or_default();
        let found: Vec<u8> = match algorithm {
            "crc32" => crc32fast::hash(data).to_be_bytes().to_vec(),
            "md5" => md5::Md5::digest(data).to_vec(),
            "sha1" => sha1::Sha1::digest(data).to_vec(),
            "sha256" => sha2::Sha256::digest(data).to_vec(),
            "sha384" => sha2::Sha384::digest(data).to_vec(),
            "sha512" => sha2::Sha512::digest(data).to_vec(),
            other => {
                return Err(refuse(format!(
                    "{} of {image} is made with {other}, which cannot be checked here: make the FIT with \
                     crc32, sha1, sha256, sha384 or sha512",
                    hash.name
                )));
            }
        };
        if found != said {
            return Err(refuse(format!(
                "{algorithm} of {image} is {}, not {} as the file says: it is damaged, install it again",
                hex(&found),
                hex(said)
            )));
        }
        Ok(())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compression(name: &str) -> Option<Compression> {
    match name {
        "gzip" => Some(Compression::Gzip),
        "bzip2" => Some(Compression::Bzip2),
        "lzma" => Some(Compression::Lzma),
        "lzo" => Some(Compression::Lzo),
        "lz4" => Some(Compression::Lz4),
        "zstd" => Some(Compression::Zstd),
        _ => None,
    }
}
