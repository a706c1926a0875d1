//! What is left of a hand-over that failed, and the ways on which it is said: ramoops, the console, its names.

use super::Draw;
use kleap_command::fuzzing;
use kleap_linux::consoles;
use kleap_relocator::abi::{HandOffError, PieceKind, Rule, Uart};
use kleap_relocator::console::{
    BYTE_DEADLINE_MS, Console, DRAIN_DEADLINE_MS, NS16550_EMPTY, NS16550_ROOM, PL011_BUSY,
    PL011_FULL, Registers,
};
use kleap_relocator::deadline::frequency_or_fallback_hz;
use kleap_relocator::digest::Digest;
use kleap_relocator::failure::Failure;
use kleap_relocator::record::{
    self, DUMP_HEADER, Encoded, HEADER_BYTES, LINE_START, MAX_BYTES, Phase, SIGNATURE, VALUES_START,
};
use std::fmt::Write as _;

fn failure(draw: &mut Draw<'_>) -> Failure {
    let kind = [
        PieceKind::Image,
        PieceKind::Initrd,
        PieceKind::DeviceTree,
        PieceKind::Tables,
        PieceKind::Program,
    ][draw.below(5)];
    let digest = |draw: &mut Draw<'_>| {
        if draw.flag() {
            Digest::Crc32c(draw.word32())
        } else {
            Digest::Sha256([draw.byte(); 32])
        }
    };
    match draw.below(8) {
        0 => Failure::HandOff(HandOffError {
            rule: [Rule::Magic, Rule::Count, Rule::Stride, Rule::Timeline][draw.below(4)],
            value: draw.word(),
        }),
        1 => Failure::Move {
            target: draw.word(),
            source: draw.word(),
            size_bytes: draw.word(),
        },
        2 => Failure::Digest {
            kind,
            start: draw.word(),
            size_bytes: draw.word(),
            expected: if draw.flag() {
                Some(digest(draw))
            } else {
                None
            },
            found: digest(draw),
        },
        3 => Failure::LpiTable {
            start: draw.word(),
            kind,
        },
        4 => Failure::NoReservation { start: draw.word() },
        5 => Failure::PageSize {
            page_size_bytes: draw.word(),
        },
        6 => Failure::Exception {
            vector: draw.word(),
            syndrome: draw.word(),
            at: draw.word(),
            fault_address: draw.word(),
        },
        _ => Failure::Panic {
            line: draw.word32(),
        },
    }
}

/// `persistent_ram_post_init`, `persistent_ram_save_old` and `ramoops_read_kmsg_hdr` of Linux.
fn as_linux_reads(zone: &[u8]) -> Option<&[u8]> {
    let word = |index: usize| u32::from_le_bytes(zone[index * 4..][..4].try_into().unwrap());
    let size = usize::try_from(word(2)).unwrap();
    if word(0) != SIGNATURE || word(1) != 0 || size == 0 {
        return None;
    }
    zone.get(HEADER_BYTES..HEADER_BYTES + size)?
        .strip_prefix(DUMP_HEADER.as_bytes())
}

/// Records of failures of any kind, in zones of any size, among any bytes; then the bytes as they are.
pub fn record(data: &[u8]) {
    let mut draw = Draw::new(data);
    let failure = failure(&mut draw);
    let phase = Phase::from_code(u64::from(draw.byte()));
    let zone_bytes = match draw.below(4) {
        0 => 16 + 4 * u64::from(draw.byte()),
        1 => draw.number().max(16),
        _ => 4096,
    };
    let encoded = Encoded::new(&failure, phase, zone_bytes);
    let words: Vec<u8> = encoded.words().flat_map(u64::to_le_bytes).collect();
    assert!(words.len() as u64 <= zone_bytes && words.len() <= MAX_BYTES);
    let mut zone = vec![0xff; usize::try_from(zone_bytes.min(4096)).unwrap()];
    zone[..words.len()].copy_from_slice(&words);
    let text = as_linux_reads(&zone);
    let rest = draw.bytes(usize::MAX);
    if zone_bytes >= MAX_BYTES as u64 {
        let text = text.expect("a whole record");
        let found = record::parse(text).expect("its own record");
        assert_eq!(found.line, failure.to_string());
        assert_eq!(found.value("phase"), Some(phase.name()));
        // Behind anything else it is the last one, if what is before it ends.
        let mut more = rest.to_vec();
        more.push(b'\n');
        more.extend(text);
        assert_eq!(record::parse(&more), Some(found));
    } else if let Some(text) = text
        && let Some(found) = record::parse(text)
    {
        assert_eq!(found.line, failure.to_string(), "half a line counts as one");
    }
    for bytes in [data, rest] {
        let Some(found) = record::parse(bytes) else {
            continue;
        };
        let shown = fuzzing::last_failure(&found);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        let again = format!("x\n{LINE_START}{}\n{VALUES_START}", found.reason());
        let again = found.values().fold(again, |mut text, (name, value)| {
            let _ = write!(text, "{name}={value} ");
            text
        });
        let again = record::parse(again.trim_end().as_bytes()).expect("said again");
        assert_eq!(again.line, found.line);
        assert!(again.values().eq(found.values()));
    }
}

/// The zone of ramoops that a record goes into, by the module's numbers.
pub fn ramoops(data: &[u8]) {
    let mut draw = Draw::new(data);
    let start = draw.number();
    let numbers = [0; 3].map(|_| match draw.below(4) {
        0 => draw.number(),
        1 => u64::from(draw.word32()),
        _ => 1024 * u64::from(draw.byte()),
    });
    let [size_bytes, record_size_bytes, other_bytes] = numbers;
    let Some((zone, zone_bytes)) =
        fuzzing::last_dump_zone(start, size_bytes, record_size_bytes, other_bytes)
    else {
        return;
    };
    assert!(zone % 8 == 0 && zone_bytes >= MAX_BYTES as u64 && zone_bytes >= record_size_bytes);
    // Within the dumps, at the start of one of them.
    let end = u128::from(zone) + u128::from(zone_bytes);
    assert!(zone >= start && end <= u128::from(start) + u128::from(size_bytes - other_bytes));
    assert_eq!((zone - start) % zone_bytes, 0);
}

/// A UART that answers as it likes.
struct Simulated<'a> {
    draw: Draw<'a>,
    uart: Option<Uart>,
    now: u64,
    tick: u64,
    frequency_hz: u64,
    reads: u64,
    written: Vec<u8>,
}

impl Registers for &mut Simulated<'_> {
    fn read(&mut self, address: u64, width_bytes: u64) -> u32 {
        self.reads += 1;
        match self.uart.expect("nobody reads where there is no UART") {
            Uart::Pl011 { base } => {
                assert_eq!((address, width_bytes), (base.wrapping_add(0x18), 4));
                // Mostly ready, and without room for ever where the bytes end in such a one.
                match self.draw.byte() {
                    byte if byte < 0xc0 => 0,
                    byte => u32::from(byte) & (PL011_FULL | PL011_BUSY),
                }
            }
            Uart::Ns16550 {
                base,
                reg_shift,
                width_bytes: width,
            } => {
                assert_eq!(
                    (address, width_bytes),
                    (base.wrapping_add(5 << reg_shift), width)
                );
                match self.draw.byte() {
                    // Zeros, which come at the end, are a UART that has died.
                    0 => 0,
                    byte if byte < 0xc0 => NS16550_ROOM | NS16550_EMPTY,
                    byte => u32::from(byte) & (NS16550_ROOM | NS16550_EMPTY),
                }
            }
        }
    }
    fn write(&mut self, address: u64, _: u64, value: u32) {
        let (Uart::Pl011 { base } | Uart::Ns16550 { base, .. }) = self.uart.expect("a UART");
        assert_eq!(address, base);
        self.written.push(u8::try_from(value).expect("a byte"));
    }
    fn counter(&mut self) -> u64 {
        self.now = self.now.wrapping_add(self.tick);
        self.now
    }
    fn frequency_hz(&mut self) -> u64 {
        self.frequency_hz
    }
}

/// A line, and a wait for its last bit, with a UART that answers as it likes.
pub fn console(data: &[u8]) {
    let mut draw = Draw::new(data);
    let base = draw.number();
    let uart = match draw.below(8) {
        0 => None,
        1..=4 => Some(Uart::Pl011 { base }),
        kind => Some(Uart::Ns16550 {
            base,
            reg_shift: draw.below(5) as u64,
            width_bytes: if kind == 5 { 1 } else { 4 },
        }),
    };
    let (frequency_hz, now) = (draw.number(), draw.number());
    let length = draw.below(100);
    let text = String::from_utf8_lossy(draw.bytes(length)).into_owned();
    let mut registers = Simulated {
        draw,
        uart,
        now,
        // A look takes a millisecond.
        tick: frequency_or_fallback_hz(frequency_hz).div_ceil(1000),
        frequency_hz,
        reads: 0,
        written: Vec::new(),
    };
    {
        let mut console = Console::new(uart, &mut registers);
        write!(console, "{text}").expect("never an error");
        console.drain();
    }
    // What was written is a start of the text, byte by byte.
    assert!(text.as_bytes().starts_with(&registers.written));
    // One wait may be in vain: after it nothing is waited for.
    let waits = text.len() as u64 * (BYTE_DEADLINE_MS + 2) + DRAIN_DEADLINE_MS + 2;
    assert!(registers.reads <= waits, "{} reads", registers.reads);
    assert!(uart.is_some() || registers.reads == 0);
    if registers.written.len() < text.len() {
        assert!(uart.is_none() || registers.reads > 0);
    }
}

/// `/proc/consoles`, and what sysfs says of a console; the first byte says which.
pub fn consoles(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = &*String::from_utf8_lossy(rest);
    if kind % 2 == 0 {
        let names = consoles::names(text);
        // They become parts of a path.
        assert!(names.iter().all(|name| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }));
        assert!(names.iter().all(|name| text.contains(name)));
        // One that is preferred goes before all others that are not, wherever it stands.
        let more =
            format!("{text}\nttyKleap0  -W- (EC p a)  4:64\nttyKleap1  -W- (E  p a)  4:65\n");
        let found = consoles::names(&more);
        assert_eq!(found.len(), names.len() + 2);
        assert_eq!(found.last(), Some(&"ttyKleap1"));
        let first = found.iter().position(|name| *name == "ttyKleap0");
        assert!(first.is_some_and(|first| found[..first] == names[..first]));
    } else {
        let mut lines = text.split('\n');
        let mut attribute = |wanted: &str| {
            let (name, value) = lines.next()?.split_once('=')?;
            (name == wanted).then(|| value.to_owned())
        };
        if let Some(console) = consoles::describe("ttyS0", &mut attribute) {
            assert!(console.base != 0);
            if let consoles::SerialKind::Ns16550 {
                reg_shift,
                width_bytes,
            } = console.kind
            {
                assert!(reg_shift <= 4 && matches!(width_bytes, 1 | 4));
            }
        }
    }
}

/// `--serial`, and the same words in a command line: what was understood, said again, is understood the same.
pub fn serial(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let word = text.split(' ').next().unwrap_or_default();
    let found = fuzzing::serial(word);
    if let Ok((said, uart)) = &found {
        assert_eq!(fuzzing::serial(said), found);
        let (Uart::Pl011 { base } | Uart::Ns16550 { base, .. }) = *uart;
        assert!(base != 0);
        let again = match uart {
            Uart::Pl011 { base } => format!("pl011,{base:#x}"),
            Uart::Ns16550 {
                base, width_bytes, ..
            } => {
                let access = if *width_bytes == 4 { "mmio32" } else { "mmio" };
                format!("uart8250,{access},{base:#x}")
            }
        };
        assert_eq!(fuzzing::serial(&again).map(|(_, uart)| uart), Ok(*uart));
    }
    for (said, uart) in fuzzing::serials_in_command_line(&text) {
        assert!(text.contains(&said));
        assert_eq!(fuzzing::serial(&said), Ok((said.clone(), uart)));
    }
}
