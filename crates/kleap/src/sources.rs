//! The kernel's file and the initrds, read, checked and taken apart: everything that `load` places but the device
//! tree.
//!
//! A UKI, a FIT or a uImage brings more than a kernel. What it brings is the default; an option that says otherwise
//! wins. Either way it is said what was taken from where: the same command with another file may take other things.

use crate::LoadArguments;
use crate::error::Failure;
use crate::pieces::{Pieces, check_regular, input_error, read_error};
use crate::progress::Bar;
use crate::{output, place, units};
use kleap_image::{Container, Header, Layer, Options, Part};
use kleap_linux::facts;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most bytes of one initrd, and of all of them.
const INITRD_MAX_BYTES: u64 = 16 << 30;

/// Most bytes of an initrd that is decompressed: it is held in memory twice, packed and not.
const DECOMPRESS_MAX_BYTES: u64 = 4 << 30;

/// What archives in an initrd are aligned to (init/initramfs.c), bytes.
const ARCHIVE_ALIGNMENT_BYTES: u64 = 4;

/// An archive with nothing in it: the entry that ends every archive of the "newc" format.
const EMPTY_ARCHIVE: &[u8] = b"070701\
    00000000000000000000000000000000\
    00000001000000000000000000000000\
    000000000000000000000000\
    0000000b00000000\
    TRAILER!!!\0\0\0\0";

/// The kernel: what its file says, and where its bytes are.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) header: Header,
    pub(crate) banner: Option<String>,
    /// The Image, not compressed.
    pub(crate) pieces: Pieces,
}

/// What came in the kernel's file, and is the default for what was not given.
#[derive(Debug)]
pub(crate) struct Bundle {
    path: PathBuf,
    pub(crate) kernel: Kernel,
    initrd: Option<Part>,
    pub(crate) device_tree: Option<(String, Vec<u8>)>,
    pub(crate) command_line: Option<String>,
    /// What it is, for the user: `UKI, EFI zboot, zstd`.
    what: String,
    /// Whether it can hold more than a kernel.
    is_container: bool,
}

impl Bundle {
    /// Reads and checks the kernel's file.
    pub(crate) fn read(arguments: &LoadArguments) -> Result<Self, Failure> {
        let path = &arguments.image;
        let size_bytes = check_regular(path)?;
        let limit_bytes = kleap_image::MAX_FILE_BYTES as u64;
        place::check_available_to_us(size_bytes.min(limit_bytes))?;
        let file =
            facts::read_limited(path, limit_bytes).map_err(|error| read_error(path, error))?;
        let mut bar = Bar::new("decompressing the kernel");
        let found = kleap_image::KernelFile::parse(
            file,
            Options {
                fit_config: arguments.fit_config.as_deref(),
                without_device_tree: arguments.dtb.is_some(),
                progress: Some(&mut |progress| bar.show(progress)),
            },
        );
        drop(bar);
        let found = found.map_err(|source| Failure::Image {
            path: path.clone(),
            source,
        })?;
        for remark in &found.remarks {
            output::warn(&format!(
                "warning: {}: {}",
                path.display(),
                output::printable(remark)
            ));
        }
        let kernel = found.kernel;
        let layers = kernel.layers();
        arguments.wishes.check_type(path, layers)?;
        let mut names: Vec<String> = layers.iter().map(Layer::to_string).collect();
        if let Some(configuration) = &found.configuration {
            names.insert(1, format!("configuration {configuration}"));
        }
        let is_container = matches!(
            layers.first(),
            Some(Layer::Container(
                Container::Fit | Container::Uki | Container::Uimage
            ))
        );
        let (header, banner) = (kernel.header(), kernel.banner().map(str::to_owned));
        let is_whole = layers.is_empty();
        let range = kernel.file_range();
        let bytes = kernel.into_image_bytes();
        let mut pieces = Pieces::default();
        match range {
            Some(_) if is_whole => {
                pieces.add_file(path, bytes.len() as u64, Some(crc32fast::hash(&bytes)))?;
            }
            Some(range) => pieces.add_stretch(path, range, crc32fast::hash(&bytes))?,
            None => pieces.add_memory(bytes),
        }
        Ok(Self {
            path: path.clone(),
            kernel: Kernel {
                header,
                banner,
                pieces,
            },
            initrd: found.initrd,
            device_tree: found.device_tree,
            command_line: found.command_line,
            what: output::printable(&names.join(", ")),
            is_container,
        })
    }

    /// Says what was taken out of the kernel's file, and what was not because something else was given.
    pub(crate) fn announce(&self, arguments: &LoadArguments) {
        if !self.is_container {
            return;
        }
        let path = self.path.display();
        output::note(&format!("kleap: kernel: from {path} ({})", self.what));
        let taken = |what: &str, name: &str, option: Option<&str>| {
            let name = output::printable(name);
            output::note(&match option {
                None => format!("kleap: {what}: {name} of {path}"),
                Some(option) => {
                    format!("kleap: {what}: from {option}, in place of {name} of {path}")
                }
            });
        };
        if let Some(part) = &self.initrd {
            let option = (!arguments.initrd.is_empty()).then_some("--initrd");
            taken("initrd", &part.name, option);
        }
        if self.command_line.is_some() {
            let option = if arguments.reuse_cmdline {
                Some("--reuse-cmdline")
            } else if arguments.command_line.is_some() {
                Some("--command-line")
            } else {
                arguments.append.as_ref().map(|_| "--append")
            };
            taken("command line", ".cmdline", option);
        }
        if let Some((name, _)) = &self.device_tree {
            taken("device tree", name, None);
            output::note(&format!(
                "kleap: to use this machine's own instead: --dtb {}",
                facts::DEVICE_TREE_PATH
            ));
        }
    }
}

/// What the next kernel unpacks first.
#[derive(Debug)]
pub(crate) struct Initrd {
    /// Where it is from, for `status`; none for the empty one.
    pub(crate) name: Option<String>,
    pub(crate) pieces: Pieces,
}

impl Initrd {
    /// What a kernel with EFI is given in place of no initrd. Given none, it takes the one that the *first*
    /// kernel's EFI stub has left in a table of the firmware's (`efi_config_parse_tables`), whatever lies
    /// there by now; and it gives that memory away afterwards, even if it has been put there itself.
    pub(crate) fn empty() -> Self {
        let mut pieces = Pieces::default();
        pieces.add_memory(EMPTY_ARCHIVE.to_vec());
        Self { name: None, pieces }
    }

    /// The initrds that were given, one after the other, or else that of the kernel's file.
    pub(crate) fn open(
        arguments: &LoadArguments,
        bundle: &Bundle,
    ) -> Result<Option<Self>, Failure> {
        let mut pieces = Pieces::default();
        let mut names = Vec::new();
        for path in &arguments.initrd {
            let size_bytes = match check_regular(path)? {
                0 => return Err(input_error(path, "is empty")),
                size_bytes => size_bytes,
            };
            if pieces.size_bytes().saturating_add(size_bytes) > INITRD_MAX_BYTES {
                return Err(input_error(
                    path,
                    format!("is larger than {INITRD_MAX_BYTES} bytes, with the initrds before it"),
                ));
            }
            pieces.align(ARCHIVE_ALIGNMENT_BYTES);
            if arguments.decompress_initrd {
                let mut one = Pieces::default();
                one.add_file(path, size_bytes, None)?;
                pieces.add_memory(decompress(one, path)?);
            } else {
                pieces.add_file(path, size_bytes, None)?;
            }
            names.push(path.display().to_string());
        }
        if names.is_empty()
            && let Some(part) = &bundle.initrd
        {
            let path = &bundle.path;
            let mut one = Pieces::default();
            one.add_stretch(path, part.range.clone(), part.crc32)?;
            if arguments.decompress_initrd {
                pieces.add_memory(decompress(one, path)?);
            } else {
                pieces = one;
            }
            names.push(format!("{} ({})", path.display(), part.name));
        }
        if names.is_empty() {
            if arguments.decompress_initrd {
                output::warn("warning: --decompress-initrd: there is no initrd");
            }
            return Ok(None);
        }
        Ok(Some(Self {
            name: Some(names.join(" + ")),
            pieces,
        }))
    }
}

/// Reads an initrd and decompresses it, and says what that is worth.
fn decompress(pieces: Pieces, path: &Path) -> Result<Vec<u8>, Failure> {
    let packed_bytes = pieces.size_bytes();
    place::check_available_to_us(packed_bytes)?;
    let packed = pieces.take()?;
    // It will be in memory twice: here, and in its place.
    let limit_bytes = (place::payload_room()? / 2).min(DECOMPRESS_MAX_BYTES);
    let began = Instant::now();
    let mut bar = Bar::new("decompressing the initrd");
    let found = kleap_image::decompress_initramfs(
        &packed,
        usize::try_from(limit_bytes).unwrap_or(usize::MAX),
        &mut |progress| bar.show(progress),
    );
    drop(bar);
    let found = found.map_err(|source| Failure::Image {
        path: path.to_owned(),
        source,
    })?;
    output::note(&format!(
        "kleap: {}: {}",
        path.display(),
        saving(&found, packed_bytes, began.elapsed().as_secs_f64())
    ));
    Ok(found.bytes)
}

/// What decompressing an initrd beforehand saves the next kernel: what it took here, on one CPU as there.
fn saving(found: &kleap_image::DecompressedInitramfs, packed_bytes: u64, seconds: f64) -> String {
    let mut names: Vec<&str> = Vec::new();
    for segment in &found.segments {
        if let Some(compression) = segment.compression
            && !names.contains(&compression.name())
        {
            names.push(compression.name());
        }
    }
    if names.is_empty() {
        return "nothing in it is compressed: --decompress-initrd saves nothing".to_owned();
    }
    let bytes = found.bytes.len() as u64;
    format!(
        "{} with {} are {} without; that took {} here, and is about what the next kernel is spared, less what {} \
         more take to be verified",
        units::bytes(packed_bytes),
        names.join(" and "),
        units::bytes(bytes),
        units::seconds(seconds),
        units::bytes(bytes.saturating_sub(packed_bytes)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_archive_is_one_entry() {
        // 6 letters, 13 fields of 8 digits, the name with its NUL, all of it a multiple of 4.
        assert_eq!(
            EMPTY_ARCHIVE.len(),
            (6 + 13 * 8 + 11_usize).next_multiple_of(4)
        );
        let field = |index: usize| {
            let digits = std::str::from_utf8(&EMPTY_ARCHIVE[6 + index * 8..][..8]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        let fields: Vec<u32> = (0..13).map(field).collect();
        // One link, a name of 11 bytes, nothing else.
        assert_eq!(fields, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0]);
        assert!(EMPTY_ARCHIVE.ends_with(b"TRAILER!!!\0\0\0\0"));
    }

    #[test]
    fn the_saving_is_said() {
        let found = |compression| kleap_image::DecompressedInitramfs {
            bytes: vec![0; 5_000_000],
            segments: vec![kleap_image::Segment {
                compression,
                range: 0..1_000_000,
                decompressed_bytes: 5_000_000,
            }],
        };
        let text = saving(
            &found(Some(kleap_image::Compression::Zstd)),
            1_000_000,
            0.25,
        );
        assert_eq!(
            text,
            "1.0 MB with zstd are 5.0 MB without; that took 250.000 ms here, and is about what the next kernel is \
             spared, less what 4.0 MB more take to be verified"
        );
        assert!(saving(&found(None), 5_000_000, 0.1).contains("saves nothing"));
    }
}
