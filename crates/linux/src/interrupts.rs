//! Signals that ask a command to end, noticed between its steps.
//!
//! What a load has changed when it is killed is put back by the next command. Ctrl-C, a terminal that goes away and a
//! service that is stopped are everyday events, and there may be no next command: so these only leave a mark, and the
//! command ends by itself where it can give everything back. A second one of the same kind ends it at once, in case it
//! does not get there.
//!
//! Rejected: doing the work in a child process that can be killed at any moment, and putting everything back in its parent,
//! which could be killed as well.

use crate::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What asks a command to end.
const SIGNALS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// How shells say that a signal has ended a program: this, and its number.
pub const EXIT_CODE_BASE: u8 = 128;
const STATUS_PATH: &str = "/proc/self/status";

static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on these signals only leave a mark ([`signal`]). One that is ignored, as by `nohup`, stays ignored.
///
/// # Errors
/// If the kernel does not let the program have them.
pub fn notice() -> Result<(), Error> {
    let status = std::fs::read_to_string(STATUS_PATH)
        .map_err(|error| Error::file("cannot read", STATUS_PATH, error))?;
    let ignored = ignored_in(&status);
    let mark = SIGNAL.get_or_init(Arc::default);
    for signal in SIGNALS {
        let Ok(number) = u8::try_from(signal) else {
            continue;
        };
        if ignored >> (number - 1) & 1 == 1 {
            continue;
        }
        let seen = Arc::new(AtomicBool::new(false));
        let code = i32::from(EXIT_CODE_BASE) + signal;
        // In this order: the first one finds nothing seen.
        flag::register_conditional_shutdown(signal, code, Arc::clone(&seen))
            .and_then(|_| flag::register(signal, seen))
            .and_then(|_| flag::register_usize(signal, Arc::clone(mark), number.into()))
            .map_err(|error| Error::file("cannot handle signals of", STATUS_PATH, error))?;
    }
    Ok(())
}

/// The signal that has asked this command to end, if one has.
#[must_use]
pub fn signal() -> Option<u8> {
    let number = SIGNAL.get()?.load(Ordering::Relaxed);
    u8::try_from(number).ok().filter(|number| *number > 0)
}

/// Which signals a process ignores, by the text of its `status` in procfs: bit 0 is signal 1. None where it does not say.
#[must_use]
fn ignored_in(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored() {
        assert_eq!(
            ignored_in("Name:\tx\nSigIgn:\t0000000000000001\nSigCgt:\t2\n"),
            1
        );
        assert_eq!(ignored_in("SigIgn:\t0000000000001004\n"), 0x1004);
        assert_eq!(ignored_in("SigIgn:\tnonsense\n"), 0);
        assert_eq!(ignored_in(""), 0);
    }
}
