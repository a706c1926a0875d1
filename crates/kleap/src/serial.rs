//! A UART as the kernel's `earlycon=` spells it: `pl011,0x9000000`, `uart8250,mmio32,0xfe660000`.
//!
//! The grammar is the kernel's (`uart_parse_earlycon` of drivers/tty/serial/serial_core.c), and so is what it leaves
//! out: `mmio` means registers of a byte side by side, `mmio32` words of four bytes. Options behind the address are
//! accepted and mean nothing, because the UART is not set up anew.

use kleap_relocator::abi::Uart;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most bytes of a specification.
const MAX_BYTES: usize = 128;
/// Names by which earlycon knows what can be written to.
const PL011: [&str; 2] = ["pl011", "sbsa-uart"];
const NS16550: [&str; 4] = ["uart8250", "uart", "ns16550", "ns16550a"];

/// A UART that the user has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct SerialSpec {
    text: String,
    uart: Uart,
}

/// Why a specification cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("no UART is called {0:?}: pl011 or uart8250")]
    Name(String),
    #[error(
        "access {0:?}: mmio (bytes) or mmio32 (words of four bytes), or an address that begins with 0x"
    )]
    Access(String),
    #[error("{0:?} is no address of 64 bits other than 0")]
    Address(String),
    #[error("the address is missing, as in {0},0x9000000")]
    NoAddress(String),
    #[error("the address {0:#x} is not a multiple of 4")]
    Alignment(u64),
}

impl SerialSpec {
    pub(crate) fn uart(&self) -> Uart {
        self.uart
    }
}

fn address(text: &str) -> Result<u64, SpecError> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // `from_str_radix` would take a sign.
        Some(digits) if digits.starts_with(|first: char| first.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None if text.starts_with(|first: char| first.is_ascii_digit()) => text.parse().ok(),
        None => None,
    };
    parsed
        .filter(|address| *address != 0)
        .ok_or_else(|| SpecError::Address(text.to_owned()))
}

impl FromStr for SerialSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.len() > MAX_BYTES {
            return Err(SpecError::TooLong);
        }
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let is_pl011 = PL011.contains(&name);
        if !is_pl011 && !NS16550.contains(&name) {
            return Err(SpecError::Name(name.to_owned()));
        }
        let access = parts.next().unwrap_or_default();
        if access.is_empty() {
            return Err(SpecError::NoAddress(name.to_owned()));
        }
        let (width_bytes, base) = match access {
            "mmio" => (1, parts.next().unwrap_or_default()),
            "mmio32" | "mmio32native" => (4, parts.next().unwrap_or_default()),
            direct if direct.starts_with("0x") => (1, direct),
            other => return Err(SpecError::Access(other.to_owned())),
        };
        let base = address(base)?;
        let uart = if is_pl011 {
            Uart::Pl011 { base }
        } else {
            Uart::Ns16550 {
                base,
                reg_shift: if width_bytes == 4 { 2 } else { 0 },
                width_bytes,
            }
        };
        if (is_pl011 || width_bytes == 4) && !base.is_multiple_of(4) {
            return Err(SpecError::Alignment(base));
        }
        Ok(Self {
            text: text.to_owned(),
            uart,
        })
    }
}

impl TryFrom<String> for SerialSpec {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<SerialSpec> for String {
    fn from(spec: SerialSpec) -> Self {
        spec.text
    }
}

impl fmt::Display for SerialSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The UARTs that a kernel's command line names by address, in its order: `earlycon=`, and `console=` with an
/// address. What cannot be used is left out.
pub(crate) fn in_command_line(command_line: &str) -> Vec<SerialSpec> {
    command_line
        .split_whitespace()
        .map(|word| word.trim_matches('"'))
        .filter_map(|word| {
            let value = word
                .strip_prefix("earlycon=")
                .or_else(|| word.strip_prefix("console="))?;
            value.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uart(text: &str) -> Result<Uart, SpecError> {
        text.parse().map(|spec: SerialSpec| spec.uart())
    }

    fn ns16550(base: u64, reg_shift: u64, width_bytes: u64) -> Result<Uart, SpecError> {
        Ok(Uart::Ns16550 {
            base,
            reg_shift,
            width_bytes,
        })
    }

    #[test]
    fn what_the_kernel_takes() {
        for (text, wanted) in [
            ("pl011,0x9000000", Ok(Uart::Pl011 { base: 0x900_0000 })),
            (
                "pl011,mmio32,0x9000000,115200n8",
                Ok(Uart::Pl011 { base: 0x900_0000 }),
            ),
            ("pl011,mmio,150994944", Ok(Uart::Pl011 { base: 0x900_0000 })),
            ("uart8250,mmio,0x3f8", ns16550(0x3f8, 0, 1)),
            ("uart8250,0x3f9", ns16550(0x3f9, 0, 1)),
            (
                "uart8250,mmio32,0xfffe660000",
                ns16550(0xff_fe66_0000, 2, 4),
            ),
            (
                "ns16550a,mmio32native,0xfffffffffffffffc",
                ns16550(u64::MAX - 3, 2, 4),
            ),
        ] {
            assert_eq!(uart(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        let long = format!("pl011,0x9000000,{}", "9".repeat(MAX_BYTES));
        for (text, wanted) in [
            ("", SpecError::Name(String::new())),
            ("ttyS0", SpecError::Name("ttyS0".into())),
            ("pl011", SpecError::NoAddress("pl011".into())),
            ("pl011,", SpecError::NoAddress("pl011".into())),
            ("pl011,9000000", SpecError::Access("9000000".into())),
            ("uart8250,io,0x3f8", SpecError::Access("io".into())),
            ("uart8250,mmio16,0x1000", SpecError::Access("mmio16".into())),
            (
                "uart8250,mmio32be,0x1000",
                SpecError::Access("mmio32be".into()),
            ),
            ("uart8250,mmio", SpecError::Address(String::new())),
            ("uart8250,mmio,0x", SpecError::Address("0x".into())),
            ("uart8250,mmio,0x+1", SpecError::Address("0x+1".into())),
            ("uart8250,mmio,+1", SpecError::Address("+1".into())),
            ("uart8250,mmio,0x0", SpecError::Address("0x0".into())),
            (
                "uart8250,mmio,0x10000000000000000",
                SpecError::Address("0x10000000000000000".into()),
            ),
            ("uart8250,mmio32,0x1002", SpecError::Alignment(0x1002)),
            ("pl011,0x1002", SpecError::Alignment(0x1002)),
            (&long, SpecError::TooLong),
        ] {
            assert_eq!(uart(text), Err(wanted), "{text}");
        }
    }

    #[test]
    fn command_lines() {
        let found = in_command_line(
            "root=/dev/vda console=ttyS0,115200 earlycon earlycon=pl011,0x9000000 \
             earlycon=msm_serial,0x1000 console=uart8250,mmio32,0xfe660000",
        );
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["pl011,0x9000000", "uart8250,mmio32,0xfe660000"]);
        assert!(in_command_line("").is_empty());
    }

    #[test]
    fn a_note_keeps_it_and_a_damaged_one_is_refused() {
        let spec: SerialSpec = "uart8250,mmio32,0xfe660000".parse().unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SerialSpec>(&text).unwrap(), spec);
        assert!(serde_json::from_str::<SerialSpec>("\"pl011,0\"").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(pl011|uart8250|uart)?,?(mmio|mmio32|io)?,?(0x)?[0-9a-fA-F+-]{0,20}.{0,20}") {
            if let Ok(spec) = text.parse::<SerialSpec>() {
                prop_assert!(spec.uart().base() != 0);
                prop_assert_eq!(spec.to_string(), text);
            }
        }
    }
}
