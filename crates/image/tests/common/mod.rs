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
        if let Some(table) = self.signature_offset() {
            // The body is made up, and so is the signature: one of a kind that is not looked at.
            let length = u32::try_from(self.file_bytes - table).unwrap();
            put(&mut image, table, &length.to_le_bytes());
            put(&mut image, table + 4, &[0, 2, 0xf1, 0x0e]);
        }
        let branch = u32::from_le_bytes(image[4..8].try_into().unwrap());
        let target = 4 + 4 * usize::try_from(branch & 0x03ff_ffff).unwrap();
        put_entry(&mut image, target);
        put(&mut image, BANNER_OFFSET, self.banner.as_bytes());
        put(&mut image, BANNER_OFFSET + self.banner.len(), b"\n");
        image
    }
}

impl Fixture {
    /// Where the head says that the file's signature is, bytes from its beginning.
    fn signature_offset(&self) -> Option<usize> {
        let directory = SIGNATURE_DIRECTORY;
        let word = |at: usize| u32::from_le_bytes(self.head[at..at + 4].try_into().unwrap());
        (word(directory + 4) != 0).then(|| usize::try_from(word(directory)).unwrap())
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

/// A kernel with a PE header: the head of a real one, with sections of 64 and 32 KiB.
pub(crate) fn small_efi() -> Vec<u8> {
    let fixture = FIXTURES
        .iter()
        .find(|fixture| fixture.name == "6.1")
        .unwrap();
    let mut image = packed();
    image[..fixture.head.len()].copy_from_slice(fixture.head);
    image[0x1000..0x1010].fill(0);
    image.resize(SMALL_EFI_BYTES, 0x5a);
    put(&mut image, 4, &0x1400_3fff_u32.to_le_bytes());
    put_entry(&mut image, 0x1_0000);
    let optional = 0x40 + 24;
    let sections = optional + 160;
    for (offset, value) in [
        (16, 0x3_0000_u32),
        // SizeOfImage, CheckSum, no signature.
        (optional + 56, 0x3_0000),
        (optional + 64, 0),
        (SIGNATURE_DIRECTORY, 0),
        (SIGNATURE_DIRECTORY + 4, 0),
        (sections + 8, 0x1_0000),
        (sections + 16, 0x1_0000),
        (sections + 40 + 8, 0x1_0000),
        (sections + 40 + 12, 0x2_0000),
        (sections + 40 + 16, 0x8000),
        (sections + 40 + 20, 0x2_0000),
    ] {
        put(&mut image, offset, &value.to_le_bytes());
    }
    image
}

/// Length of [`small_efi`], bytes.
pub(crate) const SMALL_EFI_BYTES: usize = 0x2_8000;
/// Offset of the entry of a kernel's data directory that says where the signature is, bytes.
pub(crate) const SIGNATURE_DIRECTORY: usize = 0x40 + 24 + 112 + 4 * 8;

/// An EFI program with these sections.
pub(crate) fn pe(machine: u16, sections: &[(&[u8], &[u8])]) -> Vec<u8> {
    const ALIGNMENT: usize = 0x200;
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x3c, &0x80_u32.to_le_bytes());
    put(&mut file, 0x80, b"PE\0\0");
    put(&mut file, 0x84, &machine.to_le_bytes());
    put(
        &mut file,
        0x86,
        &u16::try_from(sections.len()).unwrap().to_le_bytes(),
    );
    put(&mut file, 0x94, &240_u16.to_le_bytes());
    put(&mut file, 0x98, &0x20b_u16.to_le_bytes());
    for (offset, value) in [(32, 0x1000_u32), (36, 0x200), (60, 0x1000), (108, 16)] {
        put(&mut file, 0x98 + offset, &value.to_le_bytes());
    }
    for (index, (name, content)) in sections.iter().enumerate() {
        let header = 0x98 + 240 + 40 * index;
        let raw = content.len().next_multiple_of(ALIGNMENT);
        let start = file.len();
        let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        put(&mut file, header, name);
        put(&mut file, header + 8, &word(content.len()));
        put(&mut file, header + 12, &word(start));
        put(&mut file, header + 16, &word(raw));
        put(&mut file, header + 20, &word(start));
        file.extend_from_slice(content);
        file.resize(start + raw, 0);
    }
    file
}

pub(crate) fn uki(linux: &[u8]) -> Vec<u8> {
    pe(
        0xaa64,
        &[
            (b".text", b"code"),
            (b".osrel", b"ID=debian\n"),
            (b".cmdline", b"console=ttyAMA0 x=\"a  b\"\n\0"),
            (b".linux", linux),
            (b".initrd", b"the initrd"),
            (b".dtb", b"the tree"),
        ],
    )
}

/// Numbers that a seed repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`, by splitmix64.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        usize::try_from(word % u64::try_from(limit).unwrap()).unwrap()
    }
}
