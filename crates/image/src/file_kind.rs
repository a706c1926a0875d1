//! Names for the files that people hand to a kernel loader by mistake.

use std::fmt;

use crate::read::u32_at;

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
    /// A flattened device tree: a FIT image or a machine's own tree.
    DeviceTree,
    /// Another PE program: a unified kernel image, a boot loader.
    Pe,
    /// An initramfs: a cpio archive.
    Cpio,
    /// gzip inside gzip.
    Gzip,
    /// Compressed with xz.
    Xz,
    /// Compressed with zstd.
    Zstd,
    /// Compressed with lz4, in its frame format or the older one that the kernel's build uses.
    Lz4,
    /// Compressed with bzip2.
    Bzip2,
    /// Compressed with lzma.
    Lzma,
    /// Compressed with lzop.
    Lzo,
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
        } else if starts(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if starts(b"\xfd7zXZ\0") {
            Self::Xz
        } else if starts(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else if starts(&[0x02, 0x21, 0x4c, 0x18]) || starts(&[0x04, 0x22, 0x4d, 0x18]) {
            Self::Lz4
        } else if starts(b"BZh") {
            Self::Bzip2
        } else if starts(b"\x89LZO\0") {
            Self::Lzo
        } else if starts(&[0x5d, 0, 0]) {
            Self::Lzma
        } else if starts(&[0x27, 0x05, 0x19, 0x56]) {
            Self::Uimage
        } else if starts(&[0xd0, 0x0d, 0xfe, 0xed]) {
            Self::DeviceTree
        } else if starts(b"07070") {
            Self::Cpio
        } else if at(0x202, b"HdrS") {
            Self::X86
        } else if u32_at(file, 0x24) == Some(0x016f_2818) {
            Self::Arm32Zimage
        } else if at(56, b"RSC\x05") {
            Self::RiscV
        } else if starts(b"MZ") && at(4, b"zimg") {
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
            Self::Elf => {
                "use arch/arm64/boot/Image of the same build, \
                 or make it: objcopy -O binary -R .note -R .note.gnu.build-id -R .comment -S FILE Image"
            }
            Self::Zboot => {
                "this version does not unpack it; use the Image or Image.gz of the same build, \
                 or build with CONFIG_EFI_ZBOOT off"
            }
            Self::Uimage => {
                "take the kernel out of it first: dumpimage -T kernel -p 0 -o Image FILE"
            }
            Self::DeviceTree => {
                "if it is a FIT image, take the kernel out of it first: \
                 dumpimage -T flat_dt -p 0 -o Image FILE; a device tree goes to --dtb"
            }
            Self::Pe => {
                "if it is a unified kernel image, take the kernel out of it first: \
                 objcopy -O binary --only-section=.linux FILE Image"
            }
            Self::Cpio => "an initramfs goes to --initrd; give a kernel here",
            Self::Gzip => "decompress it first: gzip -d < FILE > FILE.inner",
            Self::Xz => "decompress it first: xz -d < FILE > Image",
            Self::Zstd => "decompress it first: zstd -d < FILE > Image",
            Self::Lz4 => "decompress it first: lz4 -d < FILE > Image",
            Self::Bzip2 => "decompress it first: bzip2 -d < FILE > Image",
            Self::Lzma => "decompress it first: xz --format=lzma -d < FILE > Image",
            Self::Lzo => "decompress it first: lzop -d < FILE > Image",
            Self::Text | Self::Unknown => {
                "give the kernel's Image or Image.gz (often /boot/vmlinuz-VERSION)"
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
            Self::DeviceTree => "a flattened device tree or FIT image",
            Self::Pe => "a PE program without an arm64 kernel header (unified kernel image?)",
            Self::Cpio => "a cpio archive (initramfs?)",
            Self::Gzip => "compressed twice with gzip",
            Self::Xz => "compressed with xz",
            Self::Zstd => "compressed with zstd",
            Self::Lz4 => "compressed with lz4",
            Self::Bzip2 => "compressed with bzip2",
            Self::Lzma => "compressed with lzma",
            Self::Lzo => "compressed with lzop",
            Self::Text => "a text file",
            Self::Zeros => "a file that begins with nothing but zeros",
            Self::Unknown => "of no format known here",
        };
        write!(f, "{name}; {}", self.remedy())
    }
}
