//! `memcpy` and its kin of `mem.S`, as they are in the program, against what they should do.
//!
//! The program is mapped into this process and its functions are called by the addresses of their
//! symbols: what is tested are the very bytes that will run. So this needs an arm64 Linux, or QEMU's
//! user mode emulation of one.
#![cfg(all(target_arch = "aarch64", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests, on 64-bit machines"
)]

use kleap_relocator::image;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol};
use std::arch::asm;
use std::ffi::c_void;
use std::mem::transmute;

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        size: usize,
        protection: i32,
        flags: i32,
        file: i32,
        offset: i64,
    ) -> *mut c_void;
    fn mprotect(at: *mut c_void, size: usize, protection: i32) -> i32;
}

const PROT_READ: i32 = 1;
const PROT_WRITE: i32 = 2;
const PROT_EXEC: i32 = 4;
const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;
const MAP_BYTES: usize = 128 * 1024;

type Copy = unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8;
type Set = unsafe extern "C" fn(*mut u8, i32, usize) -> *mut u8;
type Compare = unsafe extern "C" fn(*const u8, *const u8, usize) -> i32;

/// The program's functions, ready to be called.
struct Functions {
    memcpy: Copy,
    memmove: Copy,
    memset: Set,
    memcmp: Compare,
    bcmp: Compare,
}

fn functions() -> Functions {
    let Some(elf) = image::ELF else {
        panic!("a build for arm64 Linux has the program, or it fails");
    };
    // SAFETY: new anonymous memory, of which nothing is assumed.
    let map = unsafe {
        mmap(
            std::ptr::null_mut(),
            MAP_BYTES,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(map.addr(), usize::MAX, "mmap failed");
    let program = image::program_at(map.addr() as u64).unwrap();
    assert!(program.len() <= MAP_BYTES);
    // SAFETY: the mapping is larger than the program, and nobody else knows it yet.
    unsafe { std::ptr::copy_nonoverlapping(program.as_ptr(), map.cast(), program.len()) };
    for offset in (0..program.len()).step_by(4) {
        let at = map.addr() + offset;
        // SAFETY: makes what was written visible to instruction fetch, word by word because the size of
        // a cache line does not matter here; Linux allows both at EL0.
        unsafe { asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", in(reg) at) };
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb") };
    // SAFETY: our own mapping; nothing writes to it any more.
    let result = unsafe { mprotect(map, MAP_BYTES, PROT_READ | PROT_EXEC) };
    assert_eq!(result, 0, "mprotect failed");

    let file = ElfFile64::<LittleEndian>::parse(elf).unwrap();
    let function = |name: &str| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        let offset = symbol
            .unwrap_or_else(|| panic!("the program has no {name}"))
            .address();
        map.wrapping_byte_add(offset as usize).cast_const()
    };
    Functions {
        // SAFETY: `mem.S` defines it with this signature; it is mapped for execution, for good.
        memcpy: unsafe { transmute::<*const c_void, Copy>(function("memcpy")) },
        // SAFETY: as above.
        memmove: unsafe { transmute::<*const c_void, Copy>(function("memmove")) },
        // SAFETY: as above.
        memset: unsafe { transmute::<*const c_void, Set>(function("memset")) },
        // SAFETY: as above.
        memcmp: unsafe { transmute::<*const c_void, Compare>(function("memcmp")) },
        // SAFETY: as above.
        bcmp: unsafe { transmute::<*const c_void, Compare>(function("bcmp")) },
    }
}

/// Bytes that differ from their neighbours, at a multiple of 64, with room to go wrong on both sides.
#[derive(Clone, PartialEq)]
#[repr(align(64))]
struct Buffer([u8; 1024]);

fn buffer(seed: u32) -> Buffer {
    let mut bytes = [0; 1024];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (((at as u32 + 1).wrapping_mul(2_654_435_761) ^ seed) >> 13) as u8;
    }
    Buffer(bytes)
}

const SIZES: std::ops::RangeInclusive<usize> = 0..=300;
const ALIGNMENTS: std::ops::Range<usize> = 0..16;

#[test]
fn memcpy_copies_what_it_should_and_nothing_else() {
    let Functions { memcpy, .. } = functions();
    let (source, before) = (buffer(1), buffer(2));
    for size in SIZES {
        for source_at in ALIGNMENTS {
            for target_at in ALIGNMENTS {
                let mut target = before.clone();
                let mut expected = target.clone();
                expected.0[64 + target_at..][..size]
                    .copy_from_slice(&source.0[64 + source_at..][..size]);
                let to = target.0[64 + target_at..].as_mut_ptr();
                // SAFETY: both ranges lie in their buffers, whatever the arguments.
                let result = unsafe { memcpy(to, source.0[64 + source_at..].as_ptr(), size) };
                assert_eq!(result, to);
                assert!(
                    target == expected,
                    "memcpy of {size} bytes from {source_at} to {target_at}"
                );
            }
        }
    }
}

/// As `buffer`, of any size.
fn large_buffer(size: usize) -> Vec<u8> {
    let byte = |at: usize| ((at as u32 + 1).wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..size).map(byte).collect()
}

fn check_memmove(memmove: Copy, before: &Buffer, size: usize, source_at: usize, distance: isize) {
    let mut bytes = before.clone();
    let mut expected = before.clone();
    let from = 340 + source_at;
    let to = from.checked_add_signed(distance).unwrap();
    expected.0.copy_within(from..from + size, to);
    let target = bytes.0[to..to + size].as_mut_ptr();
    let source = target.wrapping_offset(-distance).cast_const();
    // SAFETY: both ranges lie in the buffer: the slices above have seen to it.
    let result = unsafe { memmove(target, source, size) };
    assert_eq!(result, target);
    assert!(
        bytes == expected,
        "memmove of {size} bytes at {source_at} by {distance}"
    );
}

#[test]
fn memmove_moves_what_overlaps() {
    let Functions { memmove, .. } = functions();
    let before = buffer(3);
    // Small sizes: every distance at which the ranges overlap or nearly do.
    for size in 0..=72_usize {
        for source_at in ALIGNMENTS {
            for distance in -90..=90 {
                check_memmove(memmove, &before, size, source_at, distance);
            }
        }
    }
    // All sizes and all distances, at some alignments.
    for size in SIZES {
        for source_at in [0, 1, 15] {
            for distance in -300..=300 {
                check_memmove(memmove, &before, size, source_at, distance);
            }
        }
    }
    // All sizes: the distances around which the code could decide differently.
    for size in SIZES {
        let ends = [0, 8, 16, 32, 64, 128, size as isize / 2, size as isize];
        for source_at in ALIGNMENTS {
            for end in ends {
                for distance in end - 1..=end + 1 {
                    check_memmove(memmove, &before, size, source_at, distance);
                    check_memmove(memmove, &before, size, source_at, -distance);
                }
            }
        }
    }
}

/// Shifts of many iterations, where what is written early is what is read late.
#[test]
fn memmove_moves_large_ranges_that_overlap() {
    const ROOM: usize = 70_000; // as far as anything is moved, and a bit to go wrong in
    let Functions { memmove, .. } = functions();
    for size in [4095, 4096, 4097, 65_535, 65_536, 65_600, 200_003] {
        let before = large_buffer(size + 2 * ROOM);
        for source_at in [0, 1, 8, 15] {
            for distance in [
                0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 4095, 4096, 65_535, 65_536,
            ] {
                for distance in [distance, -distance] {
                    let from = ROOM + source_at;
                    let to = from.checked_add_signed(distance).unwrap();
                    let mut expected = before.clone();
                    expected.copy_within(from..from + size, to);
                    let mut bytes = before.clone();
                    let target = bytes[to..to + size].as_mut_ptr();
                    let source = target.wrapping_offset(-distance).cast_const();
                    // SAFETY: both ranges lie in the buffer, which has room for every distance on
                    // both sides.
                    let result = unsafe { memmove(target, source, size) };
                    assert_eq!(result, target);
                    assert!(
                        bytes == expected,
                        "memmove of {size} bytes at {source_at} by {distance}"
                    );
                }
            }
        }
    }
}

#[test]
fn memset_sets_what_it_should_and_nothing_else() {
    let Functions { memset, .. } = functions();
    let before = buffer(4);
    for size in SIZES {
        for at in ALIGNMENTS {
            // Only the lowest byte of the value counts.
            for value in [0, 0x5a, 0xff, 0x1234_56a5, -1] {
                let mut target = before.clone();
                let mut expected = target.clone();
                expected.0[64 + at..][..size].fill(value as u8);
                let to = target.0[64 + at..].as_mut_ptr();
                // SAFETY: the range lies in the buffer.
                let result = unsafe { memset(to, value, size) };
                assert_eq!(result, to);
                assert!(target == expected, "memset of {size} bytes at {at}");
            }
        }
    }
}

#[test]
fn memcmp_compares_as_unsigned_and_stops_where_it_should() {
    let functions = functions();
    let first = buffer(5);
    for size in SIZES {
        for at in ALIGNMENTS {
            let mut second = first.clone();
            let compare = |second: &Buffer, function: Compare| {
                let (a, b) = (first.0[64 + at..].as_ptr(), second.0[64 + at..].as_ptr());
                // SAFETY: both ranges lie in their buffers.
                unsafe { function(a, b, size) }
            };
            // What differs outside does not matter.
            second.0[63 + at] ^= 0x80;
            second.0[64 + at + size] ^= 0x80;
            for function in [functions.memcmp, functions.bcmp] {
                assert_eq!(compare(&second, function), 0, "{size} equal bytes at {at}");
            }
            let positions = [0, 1, size / 2, size.wrapping_sub(2), size.wrapping_sub(1)];
            for position in positions.into_iter().filter(|&position| position < size) {
                for change in [1, 0x7f, 0x80, 0xff] {
                    let mut second = second.clone();
                    second.0[64 + at + position] ^= change;
                    // A later difference must not win.
                    second.0[64 + at + size - 1] ^= if position + 1 < size { 0x80 } else { 0 };
                    let (a, b) = (&first.0[64 + at..][..size], &second.0[64 + at..][..size]);
                    let found = compare(&second, functions.memcmp).signum();
                    assert_eq!(
                        found,
                        a.cmp(b) as i32,
                        "{size} bytes at {at}, differing at {position}"
                    );
                    assert_ne!(compare(&second, functions.bcmp), 0);
                }
            }
        }
    }
}
