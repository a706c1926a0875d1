//! Names for the files that people hand to a kernel loader by mistake.

use std::fmt;

use crate::read::u32_at;
use crate::{Compression, fdt, fit, uimage, zboot};

/// What a file that is not an arm64 `Image` looks like, from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// No bytes at all.
    Empty,
    /// Fewer bytes than the header of an `Image`, and no other format recognised.
    TooShort,
    /// A kernel for x86: `HdrS` at 0x202 (Documentation/arch/x86/boot.rst).
    X86,
    /// A kernel for 32-bit Arm: 0x016f2818 at 0x24 (Documentation/arch/arm/booting.rst).
    Arm32Zimage,
    /// A kernel for RISC-V: `RSC\x05` at 56 (Documentation/arch/riscv/boot-image-header.rst).
    RiscV,
    /// An ELF file, such as `vmlinux`.
    Elf,
    /// An EFI zboot kernel: `MZ` and `zimg` (drivers/firmware/efi/libstub/zboot-header.S).
    Zboot,
    /// A U-Boot legacy image: 0x27051956, big-endian.
    Uimage,
    /// A flattened device tree: a machine's own.
    DeviceTree,
    /// A FIT image, which is a flattened device tree, too.
    Fit,
    /// Another PE program: a unified kernel image, a boot loader.
    Pe,
    /// An initramfs: a cpio archive.
    Cpio,
    /// Compressed; also what was compressed twice.
    Compressed(Compression),
    /// Nothing but readable text.
    Text,
    /// Nothing but zeros in its first bytes: a hole left by a crash or an interrupted download.
    Zeros,
    /// None of these.
    Unknown,
}

/// How much of the beginning is looked at to tell text and zeros, bytes.
const SAMPLE_BYTES: usize = 512;

impl FileKind {
    /// Names `file` by its first bytes.
    pub(crate) fn of(file: &[u8]) -> Self {
        let starts = |magic: &[u8]| file.starts_with(magic);
        let at = |offset: usize, magic: &[u8]| {
            file.get(offset..)
                .is_some_and(|rest| rest.starts_with(magic))
        };
        let sample = &file[..file.len().min(SAMPLE_BYTES)];
        if file.is_empty() {
            Self::Empty
        } else if starts(b"\x7fELF") {
            Self::Elf
        } else if let Some(compression) = Compression::of(file) {
            Self::Compressed(compression)
        } else if starts(&uimage::MAGIC) {
            Self::Uimage
        } else if starts(&fdt::MAGIC.to_be_bytes()) {
            if fit::is_fit(file) {
                Self::Fit
            } else {
                Self::DeviceTree
            }
        } else if starts(b"07070") {
            Self::Cpio
        } else if at(0x202, b"HdrS") {
            Self::X86
        } else if u32_at(file, 0x24) == Some(0x016f_2818) {
            Self::Arm32Zimage
        } else if at(56, b"RSC\x05") {
            Self::RiscV
        } else if zboot::is_zboot(file) {
            Self::Zboot
        } else if starts(b"MZ") {
            Self::Pe
        } else if sample.iter().all(|byte| *byte == 0) {
            Self::Zeros
        } else if std::str::from_utf8(sample).is_ok_and(|text| {
            !text
                .chars()
                .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
        }) {
            Self::Text
        } else if file.len() < crate::HEADER_BYTES {
            Self::TooShort
        } else {
            Self::Unknown
        }
    }

    /// What the user can do to get an `Image`.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Empty | Self::TooShort | Self::Zeros => {
                "copy or install the kernel again; the disk may have been full"
            }
            Self::X86 | Self::Arm32Zimage | Self::RiscV => {
                "install a kernel package for arm64 (Debian: linux-image-arm64)"
            }
            Self::Elf | Self::Zboot | Self::Uimage | Self::Fit => {
                "formats may contain each other in one order only: a UKI, FIT or uImage, in it EFI zboot, in it \
                 something compressed, in it an Image or vmlinux; take it apart by hand"
            }
            Self::DeviceTree => "a device tree goes to --dtb; give a kernel here",
            Self::Pe => {
                "it has no section .linux, so it is no unified kernel image; give a kernel here"
            }
            Self::Cpio => "an initramfs goes to --initrd; give a kernel here",
            Self::Compressed(_) => "compress a kernel once; decompress this file by hand",
            Self::Text | Self::Unknown => {
                "give a kernel: Image, compressed, EFI zboot, vmlinux, uImage, FIT or UKI (often \
                 /boot/vmlinuz-VERSION)"
            }
        }
    }
}

impl fmt::Display for FileKind {
    /// What it is, and what to do: `an ELF file ...; use ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Empty => "an empty file",
            Self::TooShort => "a file shorter than a kernel's header of 64 bytes",
            Self::X86 => "a kernel for x86",
            Self::Arm32Zimage => "a zImage, a kernel for 32-bit Arm",
            Self::RiscV => "a kernel for RISC-V",
            Self::Elf => "an ELF file (vmlinux?)",
            Self::Zboot => "an EFI zboot kernel, compressed inside an EFI program",
            Self::Uimage => "a U-Boot legacy image (uImage)",
            Self::DeviceTree => "a device tree",
            Self::Fit => "a FIT image",
            Self::Pe => "a PE program",
            Self::Cpio => "a cpio archive (initramfs?)",
            Self::Compressed(compression) => {
                return write!(f, "compressed with {compression}; {}", self.remedy());
            }
            Self::Text => "a text file",
            Self::Zeros => "a file that begins with nothing but zeros",
            Self::Unknown => "of no format known here",
        };
        write!(f, "{name}; {}", self.remedy())
    }
}
