//! The bare program: the machine as it is, for [`kleap_relocator::relocate`].
//!
//! Single CPU, no interrupts, no allocation, no writable statics, no atomics that read and write
//! (their outline helpers do not exist here). The MMU and the caches are on in every line of this
//! file; `entry.S` sees to that.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::ptr::{read_volatile, write_volatile};
use kleap_relocator::abi::{
    self, HAND_OFF_MAX_BYTES, HAND_OFF_OFFSET_BYTES, HEADER_WORDS, OnFailure, Uart, word,
};
use kleap_relocator::console::{BYTE_DEADLINE_MS, Console, Registers};
use kleap_relocator::crc32c;
use kleap_relocator::deadline::{FALLBACK_HZ, HIGHEST_HZ, POLLS_MAX};
use kleap_relocator::digest::{Algorithm, Digest};
use kleap_relocator::failure::Failure;
use kleap_relocator::record::{self, Phase};
use kleap_relocator::relocate::{Entry, Machine, relocate};
use kleap_relocator::sha256::Hasher;
use kleap_relocator::timeline::Level;

global_asm!(
    include_str!("entry.S"),
    HAND_OFF_OFFSET = const HAND_OFF_OFFSET_BYTES,
    PHYSICAL_SIZE_MAX = const word::PHYSICAL_SIZE_MAX * 8,
    MAIR = const word::MAIR * 8,
    TCR_TWO_PRIVILEGES = const word::TCR_TWO_PRIVILEGES * 8,
    TTBR_TWO_PRIVILEGES = const word::TTBR_TWO_PRIVILEGES * 8,
    TCR_ONE_PRIVILEGE = const word::TCR_ONE_PRIVILEGE * 8,
    TTBR_ONE_PRIVILEGE = const word::TTBR_ONE_PRIVILEGE * 8,
    STACK_END = const word::STACK_END * 8,
    KERNEL_ENTRY = const word::KERNEL_ENTRY * 8,
    DEVICE_TREE = const word::DEVICE_TREE * 8,
    UART_KIND = const word::UART_KIND * 8,
    UART_BASE = const word::UART_BASE * 8,
    UART_REG_SHIFT = const word::UART_REG_SHIFT * 8,
    UART_WIDTH_BYTES = const word::UART_WIDTH_BYTES * 8,
    PSCI_CONDUIT = const word::PSCI_CONDUIT * 8,
    HEADER_SIZE_BYTES = const HEADER_WORDS * 8,
    HAND_OFF_MAX_BYTES = const HAND_OFF_MAX_BYTES,
    SIZE_BYTES = const word::SIZE_BYTES * 8,
    CRC32C = const word::CRC32C * 8,
    PROGRAM_SIZE_BYTES = const word::PROGRAM_SIZE_BYTES * 8,
    PROGRAM_CRC32C = const word::PROGRAM_CRC32C * 8,
    TABLE_SIZE_BYTES = const word::TABLE_SIZE_BYTES * 8,
    TABLES_TWO_PRIVILEGES = const word::TABLES_TWO_PRIVILEGES * 8,
    TABLES_ONE_PRIVILEGE = const word::TABLES_ONE_PRIVILEGE * 8,
    TABLES_TWO_PRIVILEGES_CRC32C = const word::TABLES_TWO_PRIVILEGES_CRC32C * 8,
    TABLES_ONE_PRIVILEGE_CRC32C = const word::TABLES_ONE_PRIVILEGE_CRC32C * 8,
    PORTABLE = const word::PORTABLE * 8,
    ON_FAILURE = const word::ON_FAILURE * 8,
    ON_FAILURE_OFF = const OnFailure::Off.code(),
    ON_FAILURE_HALT = const OnFailure::Halt.code(),
    RECORD = const word::RECORD * 8,
    RECORD_SIZE_BYTES = const word::RECORD_SIZE_BYTES * 8,
    RECORD_SIGNATURE = const record::SIGNATURE,
    RECORD_WRITTEN_BIT = const note::RECORD_WRITTEN_BIT,
    HIGHEST_HZ = const HIGHEST_HZ,
    FALLBACK_HZ = const FALLBACK_HZ,
    BYTES_PER_SECOND_LEAST = const 1000 / BYTE_DEADLINE_MS,
    POLLS_MAX = const POLLS_MAX,
);
global_asm!(include_str!("mem.S"));

unsafe extern "C" {
    /// Ends the machine as the hand-off says, through PSCI (`entry.S`).
    fn reset() -> !;
}

/// Reads a system register.
macro_rules! sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads an identification or counter register, which has no side effect and is
        // accessible at EL1 and EL2.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// A field of four bits of an identification register.
const fn field(register: u64, lowest_bit: u32) -> u64 {
    (register >> lowest_bit) & 0xf
}

/// The real machine.
struct Hardware {
    crc_instructions: bool,
    sha256_instructions: bool,
    /// Smallest data cache line of the system, bytes.
    line_bytes: u64,
}

impl Hardware {
    /// What the CPU has, but for what the hand-off forbids.
    fn probe() -> Self {
        let may = !abi::is_portable(block());
        Self {
            crc_instructions: may && field(sysreg!("id_aa64isar0_el1"), 16) != 0,
            sha256_instructions: may && field(sysreg!("id_aa64isar0_el1"), 12) != 0,
            line_bytes: 4 << field(sysreg!("ctr_el0"), 16), // CTR_EL0.DminLine, log2 of words
        }
    }
}

/// Memory that the tables map, as a slice.
///
/// # Safety
/// `[start, start + size_bytes)` is mapped as Normal memory and nothing writes to it meanwhile.
unsafe fn memory<'a>(start: u64, size_bytes: u64) -> &'a [u8] {
    // SAFETY: the caller's promise; an unmapped byte is an exception, reported as such.
    unsafe { core::slice::from_raw_parts(start as *const u8, size_bytes as usize) }
}

impl Machine for Hardware {
    fn counter(&mut self) -> u64 {
        let value: u64;
        // SAFETY: the counter has no side effect; the barriers keep it from being read before what was
        // done earlier is done.
        unsafe { asm!("dsb sy", "isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack)) };
        value
    }

    fn frequency_hz(&mut self) -> u64 {
        sysreg!("cntfrq_el0")
    }

    fn supports_page_size(&mut self, page_size_bytes: u64) -> bool {
        // Arm ARM D24.2.64, ID_AA64MMFR0_EL1; the same bounds as Linux' sysreg.h.
        let features = sysreg!("id_aa64mmfr0_el1");
        match page_size_bytes {
            4096 => field(features, 28) <= 7,  // TGran4
            16384 => field(features, 20) != 0, // TGran16
            65536 => field(features, 24) <= 7, // TGran64
            _ => false,
        }
    }

    fn read_register32(&mut self, address: u64) -> u32 {
        // SAFETY: a register of a redistributor in a region that the hand-off names; the tables map it as
        // Device memory, or it is an exception.
        unsafe { read_volatile(address as *const u32) }
    }

    fn read_register64(&mut self, address: u64) -> u64 {
        // SAFETY: as above.
        unsafe { read_volatile(address as *const u64) }
    }

    fn write_register32(&mut self, address: u64, value: u32) {
        // SAFETY: as above; what is written only stops the redistributor's accesses to memory.
        unsafe { write_volatile(address as *mut u32, value) };
    }

    fn copy(&mut self, target: u64, source: u64, size_bytes: u64) {
        // SAFETY: `relocate` has checked that neither touches the stage; they may overlap each other. The
        // tables map the source for reading and the target for writing, or it is an exception. No Rust
        // object lives in either.
        unsafe {
            core::ptr::copy(source as *const u8, target as *mut u8, size_bytes as usize);
        }
    }

    fn digest(&mut self, algorithm: Algorithm, start: u64, size_bytes: u64) -> Digest {
        // SAFETY: pieces are mapped; one CPU, interrupts masked: nothing else writes.
        let bytes = unsafe { memory(start, size_bytes) };
        match algorithm {
            Algorithm::Crc32c => Digest::Crc32c(if self.crc_instructions {
                // SAFETY: `probe` has read ID_AA64ISAR0_EL1.CRC32.
                unsafe { crc32c::update_with_instructions(0, bytes) }
            } else {
                crc32c::update(0, bytes)
            }),
            Algorithm::Sha256 => {
                let mut hasher = if self.sha256_instructions {
                    // SAFETY: `probe` has read ID_AA64ISAR0_EL1.SHA2.
                    unsafe { Hasher::with_instructions() }
                } else {
                    Hasher::portable()
                };
                hasher.update(bytes);
                Digest::Sha256(hasher.finish())
            }
        }
    }

    fn has_instructions(&mut self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::Crc32c => self.crc_instructions,
            Algorithm::Sha256 => self.sha256_instructions,
        }
    }

    fn clean(&mut self, start: u64, size_bytes: u64) {
        let mut line = start & !(self.line_bytes - 1);
        while line < start + size_bytes {
            // SAFETY: cleaning a line changes no content; the range is mapped.
            unsafe { asm!("dc civac, {}", in(reg) line, options(nostack)) };
            line += self.line_bytes;
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack)) };
    }

    fn read(&mut self, start: u64, bytes: &mut [u8]) {
        // SAFETY: `start` is in the device tree, which is mapped; `bytes` is on the stack.
        bytes.copy_from_slice(unsafe { memory(start, bytes.len() as u64) });
    }

    fn write(&mut self, start: u64, bytes: &[u8]) {
        // SAFETY: the command reserved these bytes in the device tree, which is mapped for writing.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, bytes.len()) };
    }

    fn begin(&mut self, phase: Phase) {
        note::set_phase(phase);
    }

    fn say(&mut self, uart: Option<Uart>, line: core::fmt::Arguments<'_>) {
        let mut console = Console::new(uart, UartRegisters);
        let _ = write!(console, "kleap: {line}\r\n");
        console.drain();
    }
}

/// The registers of the UART that the hand-off names.
struct UartRegisters;

impl Registers for UartRegisters {
    fn read(&mut self, address: u64, width_bytes: u64) -> u32 {
        if width_bytes == 4 {
            // SAFETY: a register of a UART that the tables map as Device memory, or it is an exception.
            unsafe { read_volatile(address as *const u32) }
        } else {
            // SAFETY: as above.
            u32::from(unsafe { read_volatile(address as *const u8) })
        }
    }

    fn write(&mut self, address: u64, width_bytes: u64, value: u32) {
        if width_bytes == 4 {
            // SAFETY: as above; what is written is sent, and changes no memory.
            unsafe { write_volatile(address as *mut u32, value) };
        } else {
            // SAFETY: as above.
            unsafe { write_volatile(address as *mut u8, (value & 0xff) as u8) };
        }
    }

    fn counter(&mut self) -> u64 {
        let value: u64;
        // SAFETY: the counter has no side effect; the barrier keeps it from being read early.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack)) };
        value
    }

    fn frequency_hz(&mut self) -> u64 {
        sysreg!("cntfrq_el0")
    }
}

/// `TPIDR_EL0`, which nobody else uses here, in place of the writable statics that this program cannot have:
/// it outlives exceptions. `entry.S` counts the steps of `reset` in the lowest byte.
mod note {
    use super::{Phase, asm};

    /// Set once a record was written: the first failure is the one that counts.
    pub const RECORD_WRITTEN_BIT: u64 = 8;
    const PHASE_LOWEST_BIT: u64 = 16;

    fn get() -> u64 {
        sysreg!("tpidr_el0")
    }

    fn set(value: u64) {
        // SAFETY: a register without effect, which no code here reads for another purpose.
        unsafe { asm!("msr tpidr_el0, {}", in(reg) value, options(nomem, nostack)) };
    }

    pub fn set_phase(phase: Phase) {
        set(get() & !(0xff << PHASE_LOWEST_BIT) | phase.code() << PHASE_LOWEST_BIT);
    }

    pub fn phase() -> Phase {
        Phase::from_code(get() >> PHASE_LOWEST_BIT & 0xff)
    }

    /// Whether a record is still to be written. Asked once.
    pub fn take_record() -> bool {
        let note = get();
        set(note | 1 << RECORD_WRITTEN_BIT);
        note & 1 << RECORD_WRITTEN_BIT == 0
    }
}

/// Writes the failure record. The place is mapped as Device memory: the words go past the caches, in this
/// order. The first kernel may have left lines of it in the caches, so those are written back before, and
/// once more after, should one have been read meanwhile.
fn write_record(failure: &Failure) {
    let Some(place) = abi::record_of(block()) else {
        return;
    };
    if !note::take_record() {
        return;
    }
    let record = record::Encoded::new(failure, note::phase(), place.size_bytes);
    let out = || {
        for index in 0..record.words().len() as u64 {
            // SAFETY: changes no content; an address that is not mapped is an exception, after which no
            // record is tried again.
            unsafe { asm!("dc civac, {}", in(reg) place.start + index * 8, options(nostack)) };
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack)) };
    };
    out();
    for (index, word) in (0..).zip(record.words()) {
        // SAFETY: the zone that the hand-off names, which is nobody's but the next kernel's; `Encoded` does
        // not go over its end.
        unsafe { write_volatile((place.start + index * 8) as *mut u64, word) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
    out();
}

/// The hand-off block, as bytes; its header in any case, so that a size that is wrong takes away nobody's voice.
fn block<'a>() -> &'a [u8] {
    let start: u64;
    // SAFETY: `_start` is the first byte of the stage (link.ld).
    unsafe { asm!("adr {}, _start", out(reg) start, options(nomem, nostack)) };
    let start = start + HAND_OFF_OFFSET_BYTES;
    // SAFETY: the second word of the block is within the first page of the hand-off, always mapped.
    let said = unsafe { read_volatile((start + word::SIZE_BYTES as u64 * 8) as *const u64) };
    let header = HEADER_WORDS as u64 * 8;
    // SAFETY: at most what the tables map, if the word is right; if it is not, the read of an unmapped
    // byte is an exception, which is reported.
    unsafe { memory(start, said.clamp(header, HAND_OFF_MAX_BYTES)) }
}

/// Writes down why, says why, and ends the machine.
fn stop(failure: Failure) -> ! {
    // The console comes from a block that may be what is broken. If it names a wrong address, writing there
    // is an exception; that is reported to the same address, and the second exception resets.
    write_record(&failure);
    let uart = abi::console_of(block());
    let mut console = Console::new(uart, UartRegisters);
    let doing = abi::on_failure_of(block()).doing();
    let _ = write!(console, "\r\n{failure}; {doing}\r\n");
    console.drain();
    // SAFETY: ends the machine.
    unsafe { reset() }
}

/// Called by `entry.S` with the MMU on; returns if and only if the next kernel may be entered.
#[unsafe(no_mangle)]
extern "C" fn relocator_main(_block: u64, entered: u64, mmu_on: u64, level: u64) {
    let level = Level::from_code(level).unwrap_or_default();
    let entry = Entry {
        entered,
        mmu_on,
        level,
    };
    if let Err(failure) = relocate(block(), entry, &mut Hardware::probe()) {
        stop(failure);
    }
}

/// Called by `entry.S` for every exception taken with the MMU on.
#[unsafe(no_mangle)]
extern "C" fn relocator_exception(vector: u64, syndrome: u64, at: u64, fault_address: u64) -> ! {
    stop(Failure::Exception {
        vector,
        syndrome,
        at,
        fault_address,
    })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    stop(Failure::Panic {
        line: info.location().map_or(0, core::panic::Location::line),
    })
}
