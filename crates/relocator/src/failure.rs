//! What ends a hand-over, and the one line that says so.
//!
//! Between two kernels nobody is watching: whatever cannot be put into one line on the console is
//! lost. So every failure carries the values that a reader needs, and every line starts the same way,
//! for those who search a log from a machine that came back slower than it should have. What is then done to
//! the machine ([`crate::abi::OnFailure::doing`]) is said behind it.

use crate::abi::{HandOffError, PieceKind};
use crate::digest::Digest;
use core::fmt;

/// Why the hand-over cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The hand-off block is not what the command wrote.
    HandOff(HandOffError),
    /// A move would read or overwrite the relocator's stage.
    Move {
        /// Where it would write, physical address.
        target: u64,
        /// Where it would read, physical address.
        source: u64,
        /// How much, bytes.
        size_bytes: u64,
    },
    /// A chunk of a piece is not what the command loaded.
    Digest {
        /// Which piece.
        kind: PieceKind,
        /// Where the chunk is, physical address.
        start: u64,
        /// Its size, bytes.
        size_bytes: u64,
        /// Its digest when it was loaded, if there is one.
        expected: Option<Digest>,
        /// Its digest now.
        found: Digest,
    },
    /// The interrupt controller uses memory that the next kernel is put into, and cannot be stopped.
    LpiTable {
        /// Its table, physical address.
        start: u64,
        /// What is put there.
        kind: PieceKind,
    },
    /// The interrupt controller goes on using a table, and the device tree has no room to say so.
    NoReservation {
        /// The table, physical address.
        start: u64,
    },
    /// The CPU cannot run a kernel of this page size.
    PageSize {
        /// Page size of the next kernel, bytes.
        page_size_bytes: u64,
    },
    /// An exception that nothing here should cause.
    Exception {
        /// Which of the sixteen vectors (Arm ARM D1.4.1, offset / 0x80).
        vector: u64,
        /// `ESR_ELx`.
        syndrome: u64,
        /// `ELR_ELx`: where it happened.
        at: u64,
        /// `FAR_ELx`: what it wanted, for aborts.
        fault_address: u64,
    },
    /// A bug: the relocator's own checks failed at this line of its source.
    Panic {
        /// Line.
        line: u32,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kleap: hand-over stopped: ")?;
        match *self {
            Self::HandOff(error) => {
                write!(f, "hand-off block: {} ({:#x})", error.what(), error.value)
            }
            Self::Move {
                target,
                source,
                size_bytes,
            } => write!(
                f,
                "refusing to move {size_bytes:#x} bytes from {source:#x} to {target:#x}: the relocator is there"
            ),
            Self::Digest {
                kind,
                start,
                size_bytes,
                expected,
                found,
            } => {
                let name = kind.name();
                write!(
                    f,
                    "digest mismatch in {name} at {start:#x}, {size_bytes:#x} bytes: expected "
                )?;
                match expected {
                    Some(expected) => write!(f, "{expected}, found {found}"),
                    None => write!(f, "no digest, found {found}"),
                }
            }
            Self::LpiTable { start, kind } => write!(
                f,
                "LPIs cannot be turned off, and their table at {start:#x} lies in {}",
                kind.name()
            ),
            Self::NoReservation { start } => write!(
                f,
                "LPIs stay on, and the device tree has no room to reserve their table at {start:#x}"
            ),
            Self::PageSize { page_size_bytes } => {
                write!(
                    f,
                    "this CPU cannot run a kernel with {page_size_bytes}-byte pages"
                )
            }
            Self::Exception {
                vector,
                syndrome,
                at,
                fault_address,
            } => write!(
                f,
                "exception: vector {vector} ESR {syndrome:#x} ELR {at:#x} FAR {fault_address:#x}"
            ),
            Self::Panic { line } => write!(f, "bug in the relocator, line {line}"),
        }
    }
}
