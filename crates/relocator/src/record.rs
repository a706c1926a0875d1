//! What is left of a hand-over that failed: a record that the next boot can read.
//!
//! The line on the console is lost where nobody listens. Linux has a place for last words, `ramoops`: memory
//! that survives a warm reset, cut into zones, which the next kernel shows below `/sys/fs/pstore`. The record
//! is written in that format (`fs/pstore/ram_core.c`, `struct persistent_ram_buffer`; the same from 5.10 to
//! 7.3), so that any kernel and any program that collects such files finds it. Rejected: a format and a
//! reader of our own, for memory that nobody else would keep free.
//!
//! ```text
//! offset  bytes
//! 0       4      "DBGC"
//! 4       4      start: 0
//! 8       4      size of what follows
//! 12             "====0.000000-D\n", which ramoops wants and takes off again
//!                the line that was printed
//!                "kleap-failure: version=1 phase=... class=..." and the values, for programs
//! ```
//!
//! Memory with error correction (`ecc-size`) is not written to: its parity would be wrong.

use crate::abi::PieceKind;
use crate::failure::Failure;
use core::fmt::{self, Write};

/// First word of a zone: `PERSISTENT_RAM_SIG`, "DBGC" from the lowest byte on.
pub const SIGNATURE: u32 = 0x4347_4244;
/// Bytes before the text.
pub const HEADER_BYTES: usize = 12;
/// Most bytes of a record, header included; a multiple of 8.
pub const MAX_BYTES: usize = 1024;
/// Most bytes of a line that [`parse`] believes.
pub const LINE_MAX_BYTES: usize = 512;
/// What ramoops expects before the text of a dump: the time, and "not compressed".
pub const DUMP_HEADER: &str = "====0.000000-D\n";
/// How the line for people starts.
pub const LINE_START: &str = "kleap: hand-over stopped: ";
/// How the line for programs starts.
pub const VALUES_START: &str = "kleap-failure: ";

/// How far a hand-over has come. Steps of [`crate::relocate::relocate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Turning the MMU on.
    #[default]
    Entry,
    /// Checking the hand-off block.
    Check,
    /// Stopping the interrupt controller's accesses to memory.
    Quiesce,
    /// Moving.
    Move,
    /// Verifying.
    Verify,
    /// Reserving tables that stay in use.
    Reserve,
    /// Cleaning to the point of coherency.
    Clean,
    /// Writing the timeline, and entering.
    Enter,
}

impl Phase {
    const ALL: [Self; 8] = [
        Self::Entry,
        Self::Check,
        Self::Quiesce,
        Self::Move,
        Self::Verify,
        Self::Reserve,
        Self::Clean,
        Self::Enter,
    ];

    /// The number that stands for it.
    #[must_use]
    pub const fn code(self) -> u64 {
        self as u64
    }

    /// The phase with this number.
    #[must_use]
    pub fn from_code(code: u64) -> Self {
        let found = Self::ALL.into_iter().find(|phase| phase.code() == code);
        found.unwrap_or_default()
    }

    /// Its name in a record.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Check => "check",
            Self::Quiesce => "quiesce",
            Self::Move => "move",
            Self::Verify => "verify",
            Self::Reserve => "reserve",
            Self::Clean => "clean",
            Self::Enter => "enter",
        }
    }
}

/// The bytes of a record, to be written to a zone.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: [u8; MAX_BYTES],
    length: usize,
}

impl Encoded {
    /// A record of `failure`, in a zone of `zone_bytes`; what does not fit is left out at the end.
    #[must_use]
    pub fn new(failure: &Failure, phase: Phase, zone_bytes: u64) -> Self {
        let mut record = Self {
            bytes: [0; MAX_BYTES],
            length: HEADER_BYTES,
        };
        let phase = phase.name();
        let _ = write!(
            record,
            "{DUMP_HEADER}{failure}\n{VALUES_START}version=1 phase={phase} "
        );
        let _ = write_values(failure, &mut record);
        let _ = record.write_str("\n");
        let zone_bytes = usize::try_from(zone_bytes).unwrap_or(usize::MAX);
        record.length = record.length.min(zone_bytes / 8 * 8);
        let text_bytes = u32::try_from(record.length.saturating_sub(HEADER_BYTES)).unwrap_or(0);
        let header = [SIGNATURE, 0, text_bytes].map(u32::to_le_bytes);
        let slots = record.bytes.as_chunks_mut::<4>().0;
        for (slot, word) in slots.iter_mut().zip(header) {
            *slot = word;
        }
        record
    }

    /// Words of 64 bits, little-endian, in the order in which they belong into the zone; none if the zone has
    /// no room for a header.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let count = if self.length <= HEADER_BYTES {
            0
        } else {
            self.length.div_ceil(8)
        };
        self.bytes
            .as_chunks::<8>()
            .0
            .iter()
            .take(count)
            .map(|word| u64::from_le_bytes(*word))
    }
}

impl Write for Encoded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let slot = self.bytes.get_mut(self.length).ok_or(fmt::Error)?;
            *slot = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// A name as one word.
fn word(kind: PieceKind) -> &'static str {
    match kind {
        PieceKind::Image => "image",
        PieceKind::Initrd => "initrd",
        PieceKind::DeviceTree => "device-tree",
        PieceKind::Tables => "tables",
        PieceKind::Program => "relocator",
        PieceKind::CoreHeader => "core-header",
    }
}

fn write_values(failure: &Failure, out: &mut impl Write) -> fmt::Result {
    match *failure {
        Failure::HandOff(error) => {
            write!(out, "class=hand-off found={:#x}", error.value)
        }
        Failure::Move {
            target,
            source,
            size_bytes,
        } => write!(
            out,
            "class=move address={target:#x} source={source:#x} size={size_bytes:#x}"
        ),
        Failure::Digest {
            kind,
            start,
            size_bytes,
            expected,
            found,
        } => {
            let kind = word(kind);
            write!(
                out,
                "class=digest piece={kind} address={start:#x} size={size_bytes:#x} expected="
            )?;
            match expected {
                Some(expected) => write!(out, "{expected}")?,
                None => out.write_str("none")?,
            }
            write!(out, " found={found}")
        }
        Failure::LpiTable { start, kind } => {
            write!(
                out,
                "class=lpi-table piece={} address={start:#x}",
                word(kind)
            )
        }
        Failure::NoReservation { start } => write!(out, "class=no-reservation address={start:#x}"),
        Failure::PageSize { page_size_bytes } => {
            write!(out, "class=page-size expected={page_size_bytes:#x}")
        }
        Failure::Exception {
            vector,
            syndrome,
            at,
            fault_address,
        } => write!(
            out,
            "class=exception vector={vector} esr={syndrome:#x} elr={at:#x} far={fault_address:#x}"
        ),
        Failure::Panic { line } => write!(out, "class=bug line={line}"),
    }
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The line for people, from [`LINE_START`] on.
    pub line: &'a str,
    /// The values, as `name=value`, separated by blanks; `version`, `phase` and `class` are always there.
    values: &'a str,
}

impl<'a> Record<'a> {
    /// Why, without what every such line starts with.
    #[must_use]
    pub fn reason(&self) -> &'a str {
        self.line.strip_prefix(LINE_START).unwrap_or(self.line)
    }

    /// Names and values, in the order in which they were written.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.values
            .split(' ')
            .filter_map(|value| value.split_once('='))
    }

    /// The value with this name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'a str> {
        self.values()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }
}

/// A line without line end, if it is printable ASCII and not too long.
fn line(bytes: &[u8]) -> Option<&str> {
    let is_printable = |byte: &u8| (b' '..=b'~').contains(byte);
    if bytes.len() > LINE_MAX_BYTES || !bytes.iter().all(is_printable) {
        return None;
    }
    core::str::from_utf8(bytes).ok()
}

/// The last record in a text, as a file of pstore's has it: lines of any kind, or any bytes at all. Only what
/// is there as a whole counts: the line for people, and behind it the one for programs.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Record<'_>> {
    let mut found = None;
    let mut before: Option<&str> = None;
    for bytes in text.split(|byte| *byte == b'\n') {
        let now = line(bytes);
        if let Some((line, values)) = before.zip(now)
            && line.starts_with(LINE_START)
            && let Some(values) = values.strip_prefix(VALUES_START)
        {
            let record = Record { line, values };
            let is_whole = record.value("version") == Some("1")
                && record.value("phase").is_some()
                && record.value("class").is_some();
            if is_whole {
                found = Some(record);
            }
        }
        before = now;
    }
    found
}

#[cfg(all(test, feature = "host"))]
#[allow(clippy::unwrap_used, reason = "a test's helper functions too")]
mod tests {
    use super::*;
    use crate::abi::{HandOffError, Rule};
    use crate::digest::Digest;
    use proptest::prelude::*;

    /// `persistent_ram_post_init`, `persistent_ram_save_old` and `ramoops_read_kmsg_hdr`.
    fn as_the_kernel_reads_it(zone: &[u8]) -> Option<Vec<u8>> {
        let word = |index: usize| u32::from_le_bytes(zone[index * 4..][..4].try_into().unwrap());
        let (start, size) = (word(1) as usize, word(2) as usize);
        if word(0) != SIGNATURE || size == 0 || size > zone.len() - 12 || start > size {
            return None;
        }
        let data = &zone[12..][..size];
        let old = [&data[start..], &data[..start]].concat();
        old.strip_prefix(DUMP_HEADER.as_bytes()).map(<[u8]>::to_vec)
    }

    fn zone(record: &Encoded, zone_bytes: usize) -> Vec<u8> {
        let mut zone = vec![0xff; zone_bytes];
        for (index, word) in record.words().enumerate() {
            zone[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        zone
    }

    fn failures() -> Vec<Failure> {
        let kinds = [
            PieceKind::Image,
            PieceKind::Initrd,
            PieceKind::DeviceTree,
            PieceKind::Tables,
            PieceKind::Program,
            PieceKind::CoreHeader,
        ];
        let mut failures = vec![
            Failure::HandOff(HandOffError {
                rule: Rule::Digest,
                value: u64::MAX,
            }),
            Failure::Move {
                target: u64::MAX,
                source: u64::MAX,
                size_bytes: u64::MAX,
            },
            Failure::NoReservation { start: u64::MAX },
            Failure::PageSize {
                page_size_bytes: u64::MAX,
            },
            Failure::Exception {
                vector: 15,
                syndrome: u64::MAX,
                at: u64::MAX,
                fault_address: u64::MAX,
            },
            Failure::Panic { line: u32::MAX },
        ];
        for kind in kinds {
            failures.push(Failure::LpiTable {
                start: u64::MAX,
                kind,
            });
            failures.push(Failure::Digest {
                kind,
                start: u64::MAX,
                size_bytes: u64::MAX,
                expected: None,
                found: Digest::Crc32c(1),
            });
            failures.push(Failure::Digest {
                kind,
                start: u64::MAX,
                size_bytes: u64::MAX,
                expected: Some(Digest::Sha256([0xff; 32])),
                found: Digest::Sha256([0xfe; 32]),
            });
        }
        failures
    }

    #[test]
    fn what_is_written_is_what_the_next_kernel_reads() {
        for failure in failures() {
            for phase in Phase::ALL {
                assert_eq!(Phase::from_code(phase.code()), phase);
                let record = Encoded::new(&failure, phase, 4096);
                let text = as_the_kernel_reads_it(&zone(&record, 4096)).unwrap();
                let found = parse(&text).unwrap();
                assert_eq!(found.line, failure.to_string());
                assert_eq!(found.value("phase"), Some(phase.name()));
                assert!(found.value("class").is_some());
            }
        }
    }

    #[test]
    fn its_values_are_there() {
        let failure = Failure::Digest {
            kind: PieceKind::DeviceTree,
            start: 0x4f00_0000,
            size_bytes: 0x1000,
            expected: Some(Digest::Crc32c(0x8c3f_e1d0)),
            found: Digest::Crc32c(0x17b2),
        };
        let record = Encoded::new(&failure, Phase::Verify, 65536);
        let text = as_the_kernel_reads_it(&zone(&record, 65536)).unwrap();
        let found = parse(&text).unwrap();
        for (name, value) in [
            ("class", "digest"),
            ("phase", "verify"),
            ("piece", "device-tree"),
            ("address", "0x4f000000"),
            ("expected", "0x8c3fe1d0"),
            ("found", "0x000017b2"),
        ] {
            assert_eq!(found.value(name), Some(value));
        }
        assert!(found.reason().starts_with("digest mismatch in device tree"));
    }

    /// However small the zone: nothing is written outside it, and what the kernel reads is well formed.
    #[test]
    fn a_small_zone_is_not_overrun() {
        for zone_bytes in 0..600 {
            for failure in failures() {
                let record = Encoded::new(&failure, Phase::Move, zone_bytes);
                let bytes = record.words().len() as u64 * 8;
                assert!(bytes <= zone_bytes, "{bytes} into {zone_bytes}");
                if zone_bytes > 100 {
                    let zone = zone(&record, usize::try_from(zone_bytes).unwrap());
                    assert!(as_the_kernel_reads_it(&zone).is_some());
                }
            }
        }
    }

    /// What the assembly writes where there is no Rust.
    #[test]
    fn the_records_of_the_assembly_are_records() {
        let source = include_str!("../blob/entry.S");
        for (name, reason, class, piece) in [
            ("exception", "exception", "exception", None),
            (
                "program",
                "relocator damaged",
                "digest",
                Some(PieceKind::Program),
            ),
            (
                "tables",
                "translation tables damaged",
                "digest",
                Some(PieceKind::Tables),
            ),
        ] {
            let (_, text) = source.split_once(&format!("\n{name}_record:\n")).unwrap();
            let (text, _) = text.split_once(&format!("\n{name}_record_end:\n")).unwrap();
            let text: String = text
                .lines()
                .filter_map(|line| line.split_once(".ascii  \"")?.1.strip_suffix('"'))
                .collect();
            let text = text.replace("\\n", "\n");
            let text = text.strip_prefix(DUMP_HEADER).unwrap();
            let record = parse(text.as_bytes()).unwrap();
            assert_eq!(record.reason(), format!("{reason} before the MMU was on"));
            assert_eq!(record.value("phase"), Some(Phase::Entry.name()));
            assert_eq!(record.value("class"), Some(class));
            assert_eq!(record.value("piece"), piece.map(word));
        }
    }

    #[test]
    fn the_last_whole_record_counts() {
        let text = b"Panic#1\nkleap: hand-over stopped: a\nkleap-failure: version=1 phase=move class=bug\n\xff\
            kleap: hand-over stopped: b\nkleap-failure: version=1 phase=check class=bug\n\
            kleap: hand-over stopped: c\nkleap-failure: version=1 phase=verify class=digest line=7\n\
            kleap: hand-over stopped: d\nkleap-failure: version=2 phase=verify class=bug\n\
            kleap: hand-over stopped: e\n";
        assert_eq!(parse(text).unwrap().reason(), "c");
        assert_eq!(
            parse(b"kleap: hand-over stopped: e\nkleap-failure: version=1 phase=x\n"),
            None
        );
        assert_eq!(parse(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = parse(&bytes);
        }

        /// Damaged anywhere: it is still a record, or none.
        #[test]
        fn damage_is_no_harm(which in 0..16_usize, changes in proptest::collection::vec((0..MAX_BYTES, any::<u8>()), 1..8)) {
            let failures = failures();
            let record = Encoded::new(&failures[which % failures.len()], Phase::Verify, 4096);
            let mut bytes = zone(&record, MAX_BYTES);
            for (at, value) in changes {
                bytes[at] = value;
            }
            if let Some(record) = parse(&bytes) {
                prop_assert!(record.line.len() <= LINE_MAX_BYTES);
                prop_assert!(record.values().count() >= 3);
            }
        }
    }
}
