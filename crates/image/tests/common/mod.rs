//! Kernels to test with: real heads with a made-up body, and wholly made-up ones.
#![allow(dead_code, reason = "every test file uses a part")]

/// A real kernel's head and what is known about the rest of it.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    pub(crate) head: &'static [u8],
    pub(crate) file_bytes: usize,
    pub(crate) image_size_bytes: u64,
    pub(crate) page_size_bytes: u64,
    pub(crate) banner: &'static str,
}

pub(crate) const FIXTURES: [Fixture; 5] = [
    Fixture {
        name: "5.10",
        head: include_bytes!("../fixtures/debian-5.10.head"),
        file_bytes: 0x1a2_1fc0,
        image_size_bytes: 0x1ac_0000,
        page_size_bytes: 4096,
        banner: "Linux version 5.10.0-30-arm64 (debian-kernel@lists.debian.org)",
    },
    Fixture {
        name: "6.1",
        head: include_bytes!("../fixtures/debian-6.1.head"),
        file_bytes: 0x1f6_d7c0,
        image_size_bytes: 0x201_0000,
        page_size_bytes: 4096,
        banner: "Linux version 6.1.0-47-arm64 (debian-kernel@lists.debian.org)",
    },
    Fixture {
        name: "6.12",
        head: include_bytes!("../fixtures/debian-6.12.head"),
        file_bytes: 0x23e_a7c0,
        image_size_bytes: 0x24f_0000,
        page_size_bytes: 4096,
        banner: "Linux version 6.12.107+deb13-arm64 (debian-kernel@lists.debian.org)",
    },
    Fixture {
        name: "6.12-16k",
        head: include_bytes!("../fixtures/debian-6.12-16k.head"),
        file_bytes: 0x246_ffc0,
        image_size_bytes: 0x25a_0000,
        page_size_bytes: 16384,
        banner: "Linux version 6.12.107+deb13-arm64-16k (debian-kernel@lists.debian.org)",
    },
    Fixture {
        name: "7.3",
        head: include_bytes!("../fixtures/debian-7.3.head"),
        file_bytes: 0x313_ffc0,
        image_size_bytes: 0x324_0000,
        page_size_bytes: 4096,
        banner: "Linux version 7.3.4+deb13-arm64 (debian-kernel@lists.debian.org)",
    },
];

pub(crate) const NOP: u32 = 0xd503_201f;
const BANNER_OFFSET: usize = 0x2_0000;

impl Fixture {
    /// The head, code everywhere to the real length (so that a damaged branch hits some), how Linux
    /// begins where the entry branch leads, a banner.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.file_bytes];
        image[..self.head.len()].copy_from_slice(self.head);
        for word in image[0x1_0000..].as_chunks_mut::<4>().0 {
            *word = NOP.to_le_bytes();
        }
        let branch = u32::from_le_bytes(image[4..8].try_into().unwrap());
        let target = 4 + 4 * usize::try_from(branch & 0x03ff_ffff).unwrap();
        put_entry(&mut image, target);
        put(&mut image, BANNER_OFFSET, self.banner.as_bytes());
        put(&mut image, BANNER_OFFSET + self.banner.len(), b"\n");
        image
    }
}

/// `bl` over one instruction to `mov x21, x0`: arch/arm64/kernel/head.S in three words.
fn put_entry(image: &mut [u8], offset: usize) {
    for (index, word) in [0x9400_0002_u32, NOP, 0xaa00_03f5].into_iter().enumerate() {
        put(image, offset + 4 * index, &word.to_le_bytes());
    }
}

pub(crate) fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A kernel without CONFIG_EFI: no PE header. `code` is code0 and code1.
pub(crate) fn without_efi(code: [u32; 2], file_bytes: usize, image_size_bytes: u64) -> Vec<u8> {
    let mut image = vec![0; file_bytes];
    put(&mut image, 0, &code[0].to_le_bytes());
    put(&mut image, 4, &code[1].to_le_bytes());
    put(&mut image, 16, &image_size_bytes.to_le_bytes());
    put(&mut image, 24, &0xa_u64.to_le_bytes());
    put(&mut image, 56, b"ARM\x64");
    put_entry(&mut image, 0x1000);
    image
}

/// A kernel of 64 KiB that every format was made of (`fixtures/formats`): calls, which the filters of xz rewrite,
/// noise, and a rest that packs well.
pub(crate) fn packed() -> Vec<u8> {
    let mut image = without_efi([NOP, 0x1400_03ff], 0x1_0000, 0x2_0000);
    for index in 0..0x400_usize {
        let call = 0x9400_0000 | u32::try_from(index * 77 % 0x4000).unwrap();
        put(&mut image, 0x2000 + index * 4, &call.to_le_bytes());
    }
    let mut state = 1_u64;
    for byte in &mut image[0x4000..0x4400] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
    for (index, byte) in image.iter_mut().enumerate().skip(0x5000) {
        *byte = u8::try_from(index * index % 251).unwrap();
    }
    image
}
