//! The console's UART, as the first kernel left it: bytes are put into it, and nothing is set up.
//!
//! Written against [`Registers`], so that widths, offsets and deadlines are tested with a simulated UART.
//! A byte for which there is no room in time ends the message: whoever waits for each byte of a line waits
//! a line's worth of deadlines on a machine that should be on its way to a reset.

use crate::abi::Uart;
use crate::deadline::Deadline;
use core::fmt;

/// How long a byte may take: three times that of one at 300 baud. The assembly has the same.
pub const BYTE_DEADLINE_MS: u64 = 100;
/// How long until the last bit has left the UART: a FIFO of 64 bytes at 9600 baud, and some more.
pub const DRAIN_DEADLINE_MS: u64 = 200;

/// `UARTDR`, offset in bytes (Arm DDI 0183, 3.3).
pub const PL011_DATA: u64 = 0x0;
/// `UARTFR`, offset in bytes.
pub const PL011_FLAGS: u64 = 0x18;
/// `UARTFR.BUSY`: bits are still being sent.
pub const PL011_BUSY: u32 = 1 << 3;
/// `UARTFR.TXFF`: no room.
pub const PL011_FULL: u32 = 1 << 5;
/// Transmitter holding register of the 8250 family, number.
pub const NS16550_DATA: u64 = 0;
/// Line status register, number.
pub const NS16550_STATUS: u64 = 5;
/// `LSR.THRE`: there is room.
pub const NS16550_ROOM: u32 = 1 << 5;
/// `LSR.TEMT`: the last bit has left.
pub const NS16550_EMPTY: u32 = 1 << 6;

/// How registers are reached. Addresses are physical.
pub trait Registers {
    /// Reads `width_bytes`, 1 or 4.
    fn read(&mut self, address: u64, width_bytes: u64) -> u32;
    /// Writes `width_bytes`, 1 or 4.
    fn write(&mut self, address: u64, width_bytes: u64, value: u32);
    /// `CNTVCT_EL0`, now.
    fn counter(&mut self) -> u64;
    /// `CNTFRQ_EL0`, Hz.
    fn frequency_hz(&mut self) -> u64;
}

/// A console, or none.
#[derive(Debug)]
pub struct Console<R> {
    uart: Option<Uart>,
    registers: R,
}

impl<R: Registers> Console<R> {
    /// The console with this UART; without one, what is written is lost.
    pub const fn new(uart: Option<Uart>, registers: R) -> Self {
        Self { uart, registers }
    }

    /// Waits until the UART's status is as wanted; `false` if that took too long.
    fn wait(
        &mut self,
        status: u64,
        width_bytes: u64,
        ready: impl Fn(u32) -> bool,
        ms: u64,
    ) -> bool {
        let mut deadline = Deadline::after_ms(ms);
        loop {
            if ready(self.registers.read(status, width_bytes)) {
                return true;
            }
            let (now, frequency_hz) = (self.registers.counter(), self.registers.frequency_hz());
            if deadline.is_over(now, frequency_hz) {
                return false;
            }
        }
    }

    fn put(&mut self, byte: u8) {
        let (room, data, width_bytes) = match self.uart {
            None => return,
            Some(Uart::Pl011 { base }) => {
                let room = |flags| flags & PL011_FULL == 0;
                let status = base.wrapping_add(PL011_FLAGS);
                let room = self.wait(status, 4, room, BYTE_DEADLINE_MS);
                (room, base.wrapping_add(PL011_DATA), 4)
            }
            Some(Uart::Ns16550 {
                base,
                reg_shift,
                width_bytes,
            }) => {
                let room = |status| status & NS16550_ROOM != 0;
                let status = base.wrapping_add(NS16550_STATUS << reg_shift);
                let room = self.wait(status, width_bytes, room, BYTE_DEADLINE_MS);
                let data = base.wrapping_add(NS16550_DATA << reg_shift);
                (room, data, width_bytes)
            }
        };
        if room {
            self.registers.write(data, width_bytes, u32::from(byte));
        } else {
            self.uart = None;
        }
    }

    /// Waits until all that was written has left the UART: a reset would lose what is still in it.
    pub fn drain(&mut self) {
        let idle = match self.uart {
            None => return,
            Some(Uart::Pl011 { base }) => {
                let idle = |flags| flags & PL011_BUSY == 0;
                self.wait(base.wrapping_add(PL011_FLAGS), 4, idle, DRAIN_DEADLINE_MS)
            }
            Some(Uart::Ns16550 {
                base,
                reg_shift,
                width_bytes,
            }) => {
                let idle = |status| status & NS16550_EMPTY != 0;
                let status = base.wrapping_add(NS16550_STATUS << reg_shift);
                self.wait(status, width_bytes, idle, DRAIN_DEADLINE_MS)
            }
        };
        if !idle {
            self.uart = None;
        }
    }
}

impl<R: Registers> fmt::Write for Console<R> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        Ok(())
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use std::fmt::Write;

    const BASE: u64 = 0xff_fe21_5040;

    /// A UART that takes a byte in `ticks_per_byte`, or, after `dies_after` bytes, no more.
    struct Simulated {
        uart: Uart,
        sent: String,
        now: u64,
        busy_until: u64,
        ticks_per_byte: u64,
        dies_after: usize,
        reads: u64,
        counter_runs: bool,
    }

    impl Simulated {
        fn new(uart: Uart) -> Self {
            Self {
                uart,
                sent: String::new(),
                now: 0,
                busy_until: 0,
                ticks_per_byte: 5,
                dies_after: usize::MAX,
                reads: 0,
                counter_runs: true,
            }
        }

        fn is_full(&self) -> bool {
            self.now < self.busy_until || self.sent.len() >= self.dies_after
        }
    }

    impl Registers for &mut Simulated {
        fn read(&mut self, address: u64, width_bytes: u64) -> u32 {
            self.reads += 1;
            let full = self.is_full();
            let (status, width) = match self.uart {
                Uart::Pl011 { base } => (base + 0x18, 4),
                Uart::Ns16550 {
                    base,
                    reg_shift,
                    width_bytes,
                } => (base + (5 << reg_shift), width_bytes),
            };
            assert_eq!((address, width_bytes), (status, width));
            match self.uart {
                Uart::Pl011 { .. } if full => 0x28,
                Uart::Ns16550 { .. } if !full => 0x60,
                _ => 0,
            }
        }
        fn write(&mut self, address: u64, width_bytes: u64, value: u32) {
            assert!(!self.is_full(), "a byte was lost");
            let width = match self.uart {
                Uart::Pl011 { .. } => 4,
                Uart::Ns16550 { width_bytes, .. } => width_bytes,
            };
            assert_eq!((address, width_bytes), (BASE, width));
            self.sent.push(char::from(u8::try_from(value).unwrap_or(0)));
            self.busy_until = self.now + self.ticks_per_byte;
        }
        fn counter(&mut self) -> u64 {
            self.now += u64::from(self.counter_runs);
            self.now
        }
        fn frequency_hz(&mut self) -> u64 {
            1000
        }
    }

    fn uarts() -> Vec<Uart> {
        let mut uarts = vec![Uart::Pl011 { base: BASE }];
        for reg_shift in 0..=4 {
            for width_bytes in [1, 4] {
                uarts.push(Uart::Ns16550 {
                    base: BASE,
                    reg_shift,
                    width_bytes,
                });
            }
        }
        uarts
    }

    #[test]
    fn every_kind_gets_every_byte_at_its_own_width() {
        for uart in uarts() {
            let mut simulated = Simulated::new(uart);
            let mut console = Console::new(Some(uart), &mut simulated);
            let _ = write!(console, "kleap: {:#x}\r\n", 0x1234);
            console.drain();
            assert_eq!(simulated.sent, "kleap: 0x1234\r\n", "{uart:?}");
            assert!(
                simulated.now >= simulated.busy_until,
                "{uart:?}: not drained"
            );
        }
    }

    /// One deadline for the whole message, not one for each byte of it.
    #[test]
    fn a_byte_that_times_out_silences_the_rest() {
        let mut cases: Vec<(Uart, bool)> = uarts().into_iter().map(|uart| (uart, true)).collect();
        // Takes as many polls as it says; once is enough.
        cases.push((Uart::Pl011 { base: BASE }, false));
        for (uart, counter_runs) in cases {
            let mut simulated = Simulated::new(uart);
            simulated.dies_after = 0;
            simulated.counter_runs = counter_runs;
            let mut console = Console::new(Some(uart), &mut simulated);
            let _ = write!(console, "{}", "lost".repeat(100));
            console.drain();
            assert_eq!(simulated.sent, "");
            let most = if counter_runs {
                BYTE_DEADLINE_MS
            } else {
                u64::from(crate::deadline::POLLS_MAX)
            };
            assert!(simulated.reads <= most + 2, "{uart:?}: {}", simulated.reads);
        }
    }

    #[test]
    fn without_a_uart_nothing_is_touched() {
        let mut simulated = Simulated::new(Uart::Pl011 { base: BASE });
        let mut console = Console::new(None, &mut simulated);
        let _ = console.write_str("lost");
        console.drain();
        assert_eq!(simulated.reads, 0);
    }
}
