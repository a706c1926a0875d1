//! From the bytes of a file to a kernel and what came with it.

use std::fmt;
use std::ops::Range;

use crate::compression::Stream;
use crate::header::{HEADER_BYTES, claimed_image_size_bytes};
use crate::signature::{self, Signed};
use crate::{
    Compression, Error, FileKind, Header, Kernel, MAX_DECOMPRESSED_BYTES, MAX_FILE_BYTES,
    StreamError, elf, fit, uimage, uki, zboot,
};

/// How much of what comes out of a stream is looked at to name it, bytes.
const SAMPLE_BYTES: u64 = 1024;

/// A format that has a kernel in it, and perhaps more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Container {
    /// EFI zboot (`vmlinuz.efi`).
    Zboot,
    /// ELF (`vmlinux`).
    Elf,
    /// U-Boot's legacy image.
    Uimage,
    /// U-Boot's image tree (`.itb`).
    Fit,
    /// A unified kernel image.
    Uki,
}

impl Container {
    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zboot => "EFI zboot",
            Self::Elf => "ELF",
            Self::Uimage => "uImage",
            Self::Fit => "FIT",
            Self::Uki => "UKI",
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What was around an `Image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layer {
    /// It was in a file of this format.
    Container(Container),
    /// It was compressed.
    Compressed(Compression),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(container) => container.fmt(f),
            Self::Compressed(compression) => compression.fmt(f),
        }
    }
}

/// Something else than the kernel, as it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What the file calls it: `.initrd`, `ramdisk-1`.
    pub name: String,
    /// Where it is, bytes from the beginning of the file.
    pub range: Range<usize>,
    /// CRC32 (ISO 3309, as in gzip) of it: who reads it from the file once more can tell whether it is the same.
    pub crc32: u32,
}

/// How far decompression is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the stream that were read.
    pub done_bytes: usize,
    /// Length of the stream, bytes.
    pub total_bytes: usize,
}

/// How a file is to be read.
#[derive(Default)]
pub struct Options<'a> {
    /// The configuration of a FIT, where it is not to be the default one.
    pub fit_config: Option<&'a str>,
    /// The device tree in the file is not wanted, so that it does not matter whether it can be used.
    pub without_device_tree: bool,
    /// Called during decompression, about once for every MiB that comes out.
    pub progress: Option<&'a mut dyn FnMut(Progress)>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("fit_config", &self.fit_config)
            .field("without_device_tree", &self.without_device_tree)
            .finish_non_exhaustive()
    }
}

/// A kernel, and what came with it in the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFile {
    /// The kernel.
    pub kernel: Kernel,
    /// The initrd in a UKI, FIT or uImage.
    pub initrd: Option<Part>,
    /// The device tree in one of them: its name in the file, and the tree, decompressed.
    pub device_tree: Option<(String, Vec<u8>)>,
    /// The command line in a UKI.
    pub command_line: Option<String>,
    /// The configuration of a FIT that was taken.
    pub configuration: Option<String>,
    /// What was not checked or not taken, for the user to know.
    pub remarks: Vec<String>,
}

/// What is around the kernel, taken off.
#[derive(Default)]
struct Opened {
    container: Option<Container>,
    kernel: Range<usize>,
    /// How the container says that the kernel is compressed.
    compression: Option<Compression>,
    initrd: Option<(String, Range<usize>)>,
    device_tree: Option<(String, Range<usize>, Option<Compression>)>,
    command_line: Option<String>,
    configuration: Option<String>,
    remarks: Vec<String>,
}

impl Opened {
    fn open(file: &[u8], options: &Options<'_>) -> Result<Self, Error> {
        let kind = if claimed_image_size_bytes(file).is_some() {
            FileKind::Unknown
        } else {
            FileKind::of(file)
        };
        let takes_device_tree = !options.without_device_tree;
        let opened = match kind {
            FileKind::Fit => {
                let found = fit::read(file, options.fit_config, takes_device_tree)?;
                Self {
                    container: Some(Container::Fit),
                    kernel: found.kernel.range,
                    compression: found.kernel.compression,
                    initrd: found.ramdisk.map(|image| (image.name, image.range)),
                    device_tree: found
                        .device_tree
                        .map(|image| (image.name, image.range, image.compression)),
                    configuration: Some(found.name),
                    remarks: found.remarks,
                    command_line: None,
                }
            }
            FileKind::Uimage => {
                let found = uimage::read(file)?;
                let part = |name: &str, range| (name.to_owned(), range);
                Self {
                    container: Some(Container::Uimage),
                    kernel: found.kernel,
                    compression: found.compression,
                    initrd: found.ramdisk.map(|range| part("second file", range)),
                    device_tree: found
                        .device_tree
                        .map(|range| ("third file".to_owned(), range, None)),
                    ..Self::default()
                }
            }
            FileKind::Pe => match uki::read(file)? {
                Some(found) => Self {
                    container: Some(Container::Uki),
                    kernel: found.kernel,
                    initrd: found.initrd.map(|range| (".initrd".to_owned(), range)),
                    device_tree: found
                        .device_tree
                        .map(|range| (".dtb".to_owned(), range, None)),
                    command_line: found.command_line,
                    remarks: found.remarks,
                    ..Self::default()
                },
                None => Self::bare(file),
            },
            _ => Self::bare(file),
        };
        match options.fit_config {
            Some(name) if kind != FileKind::Fit => Err(Error::NoConfigurations {
                name: name.to_owned(),
            }),
            _ => Ok(opened),
        }
    }

    fn bare(file: &[u8]) -> Self {
        Self {
            kernel: 0..file.len(),
            ..Self::default()
        }
    }
}

impl KernelFile {
    /// Takes the bytes of a kernel file, in any of the formats.
    ///
    /// Memory is bounded: of a compressed kernel the first 64 bytes come out alone, and only if they are the
    /// header of an arm64 `Image` the rest, at most to the `image_size` that the header claims and never beyond
    /// [`MAX_DECOMPRESSED_BYTES`]; of a compressed ELF file, which does not say, to that limit. A compressed kernel
    /// must be one stream and nothing else: bytes after the end are a sign of a damaged copy.
    ///
    /// # Errors
    /// [`Error`]: what the file is instead, or what is wrong with it.
    pub fn parse(file: Vec<u8>, mut options: Options<'_>) -> Result<Self, Error> {
        if file.len() > MAX_FILE_BYTES {
            return Err(Error::FileTooLarge {
                file_bytes: file.len(),
                limit_bytes: MAX_FILE_BYTES,
            });
        }
        let opened = Opened::open(&file, &options)?;
        let device_tree = match opened.device_tree {
            Some((name, range, compression)) if !options.without_device_tree => {
                let bytes = file.get(range).unwrap_or_default();
                let bytes = match compression {
                    None => bytes.to_vec(),
                    Some(compression) => compression.decompress(bytes, MAX_DEVICE_TREE_BYTES)?,
                };
                Some((name, bytes))
            }
            _ => None,
        };
        let initrd = opened.initrd.map(|(name, range)| Part {
            name,
            crc32: crc32fast::hash(file.get(range.clone()).unwrap_or_default()),
            range,
        });
        let kernel = unpack(
            file,
            opened.kernel,
            opened.container,
            opened.compression,
            options.progress.as_deref_mut().unwrap_or(&mut |_| ()),
        )?;
        Ok(Self {
            kernel,
            initrd,
            device_tree,
            command_line: opened.command_line,
            configuration: opened.configuration,
            remarks: opened.remarks,
        })
    }
}

/// Largest device tree that comes out of a compressed one, bytes: what a kernel takes (booting.rst).
const MAX_DEVICE_TREE_BYTES: usize = 2 << 20;

/// The kernel at `range` of `file`, which is in `container`.
fn unpack(
    file: Vec<u8>,
    mut range: Range<usize>,
    container: Option<Container>,
    said: Option<Compression>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Kernel, Error> {
    let mut layers: Vec<Layer> = container.map(Layer::Container).into_iter().collect();
    let mut said = said.map(|said| (container.unwrap_or(Container::Fit), said));
    let bytes = file.get(range.clone()).unwrap_or_default();
    if zboot::is_zboot(bytes) {
        signature::check(bytes)?;
        let (payload, compression) = zboot::read(bytes)?;
        range = range.start + payload.start..range.start + payload.end;
        said = Some((Container::Zboot, compression));
        layers.push(Layer::Container(Container::Zboot));
    }
    let bytes = file.get(range.clone()).unwrap_or_default();
    let found = Compression::of(bytes);
    if let Some((container, said)) = said
        && found != Some(said)
    {
        return Err(Error::OtherCompression {
            container,
            said,
            found: FileKind::of(bytes),
        });
    }
    let mut file_range = None;
    let image = match found {
        Some(compression) => {
            layers.push(Layer::Compressed(compression));
            let image = decompress(compression, bytes, &layers, progress)?;
            drop(file);
            image
        }
        None => {
            file_range = Some(range.clone());
            let mut image = file;
            image.truncate(range.end);
            image.drain(..range.start);
            image
        }
    };
    let image = if image.starts_with(b"\x7fELF") {
        layers.push(Layer::Container(Container::Elf));
        file_range = None;
        elf::flatten(&image)?
    } else {
        image
    };
    let header = Header::check(&image).map_err(|error| match error {
        Error::NotAnImage { kind, .. } => Error::NotAnImage {
            kind,
            layers: layers.clone(),
        },
        other => other,
    })?;
    // One of another kind says nothing, as none does.
    let is_as_signed = signature::check(&image)? == Signed::Whole;
    Ok(Kernel {
        image,
        header,
        layers,
        file_range,
        is_as_signed,
    })
}

/// The kernel in a compressed stream.
///
/// A stream of 600 kB can hold 600 MB of zeros, and what it claims about its length is as untrusted as the rest. So
/// the header comes out first, alone, and what it claims bounds what is taken.
fn decompress(
    compression: Compression,
    stream: &[u8],
    layers: &[Layer],
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, Error> {
    let total_bytes = stream.len();
    let mut open = Stream::open(compression, stream)?;
    let mut image = Vec::new();
    let header_bytes = u64::try_from(HEADER_BYTES).unwrap_or(u64::MAX);
    open.read(&mut image, header_bytes)?;
    let claimed = claimed_image_size_bytes(&image);
    let is_elf = image.starts_with(b"\x7fELF");
    if claimed.is_none() && !is_elf {
        // Some formats are recognised only further in.
        open.read(&mut image, SAMPLE_BYTES)?;
        return Err(Error::NotAnImage {
            kind: FileKind::of(&image),
            layers: layers.to_vec(),
        });
    }
    // A file is never longer than its kernel in memory.
    let bound_bytes = claimed
        .map_or(usize::MAX, |size| {
            usize::try_from(size).unwrap_or(usize::MAX)
        })
        .min(MAX_DECOMPRESSED_BYTES);
    if claimed.is_some() {
        let room_bytes = bound_bytes.saturating_sub(image.len()).saturating_add(1);
        image
            .try_reserve_exact(room_bytes)
            .map_err(|_| Error::OutOfMemory {
                wanted_bytes: room_bytes,
            })?;
    }
    open.read_all(&mut image, bound_bytes, &mut |left_bytes| {
        progress(Progress {
            done_bytes: total_bytes.saturating_sub(left_bytes),
            total_bytes,
        });
    })
    .map_err(|error| match (error, claimed) {
        (
            Error::Stream {
                error: StreamError::TooLarge { limit_bytes },
                ..
            },
            Some(image_size_bytes),
        ) => Error::DecompressedTooLarge {
            compression,
            limit_bytes,
            image_size_bytes,
        },
        (error, _) => error,
    })?;
    open.finish(stream, image.len())?;
    Ok(image)
}
