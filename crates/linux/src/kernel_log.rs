//! The kernel log, read for what the kernel says nowhere else: when PID 1 was started, and what it found at
//! boot ([`has_line`]).
//!
//! The kernel says `Run /init as init process` when it starts it. Its records carry microseconds of
//! the scheduler's clock, which is the counter that the relocator reads, from another start. Writing
//! one record of our own and reading the counter at the same moment ties the two together.
//!
//! Rejected: `/proc/1/stat` (the start time there is that of the kernel thread that later becomes PID
//! 1, and does not change at exec), CLOCK_MONOTONIC (stands still in early boot, while the scheduler's
//! clock does not), systemd's own stamps (not every PID 1 is systemd).

use crate::{Error, counter};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

const PATH: &str = "/dev/kmsg";
/// Most bytes of one record (`PRINTK_MESSAGE_MAX` is 2048 in current kernels, 8192 in older ones).
const RECORD_MAX_BYTES: usize = 16 * 1024;
/// Most records read: more than the largest log buffer (`log_buf_len`) holds on any machine met.
const RECORDS_MAX: usize = 4_000_000;
/// What ends the kernel's line on starting PID 1 (`init/main.c`, `run_init_process`).
const INIT_LINE: (&str, &str) = ("Run ", " as init process");

/// One record: when, in microseconds, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Scheduler clock, microseconds.
    pub time_us: u64,
    /// The message's first line.
    pub text: String,
}

/// Parses one record of `/dev/kmsg`: `priority,sequence,microseconds,flags[,...];text`.
#[must_use]
pub fn parse(record: &[u8]) -> Option<Record> {
    let record = String::from_utf8_lossy(record);
    let (prefix, rest) = record.split_once(';')?;
    let time_us = prefix.split(',').nth(2)?.parse().ok()?;
    Some(Record {
        time_us,
        // Not `lines`: what that makes of a carriage return depends on what follows.
        text: rest.split('\n').next().unwrap_or("").to_owned(),
    })
}

/// Whether a line is the one on starting PID 1.
#[must_use]
pub fn is_init_line(text: &str) -> bool {
    // One after the other: in `Run as init process` they overlap, and nothing was run.
    text.strip_prefix(INIT_LINE.0)
        .and_then(|rest| rest.strip_suffix(INIT_LINE.1))
        .is_some_and(|program| !program.is_empty())
}

/// Calls `see` with every record there is. Takes nothing out of the log.
///
/// # Errors
/// If the log cannot be read: without CAP_SYSLOG where `kernel.dmesg_restrict` is set.
pub fn each(mut see: impl FnMut(Record)) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open(PATH, flags, Mode::empty())
        .map_err(|error| Error::file("cannot open", PATH, error))?;
    let mut buffer = vec![0; RECORD_MAX_BYTES];
    for _ in 0..RECORDS_MAX {
        match rustix::io::read(&log, &mut buffer[..]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Ok(length) => {
                if let Some(record) = parse(&buffer[..length]) {
                    see(record);
                }
            }
            // EPIPE: records were overwritten while we read; the next read goes on behind them.
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(source) => return Err(Error::file("cannot read", PATH, source)),
        }
    }
    Ok(())
}

/// Whether the kernel log, as far as it still reaches, has a line that contains `text`.
///
/// # Errors
/// If the log cannot be read: without CAP_SYSLOG where `kernel.dmesg_restrict` is set.
pub fn has_line(text: &str) -> Result<bool, Error> {
    let mut found = false;
    each(|record| found |= record.text.contains(text))?;
    Ok(found)
}

/// The counter's value when the running kernel started PID 1; `frequency_hz` is the counter's.
///
/// Writes one line to the kernel log (`marker`, which should make sense to a reader of it).
///
/// # Errors
/// If the log cannot be read and written. `Ok(None)` if the kernel's line is no longer in it.
pub fn init_started(frequency_hz: u64, marker: &str) -> Result<Option<u64>, Error> {
    let line = format!("<6>{marker}\n"); // priority 6: informational
    let log = rustix::fs::open(PATH, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::file("cannot open", PATH, error))?;
    // The kernel takes the time on the way in, before it hands the line to a slow console.
    let Some(before) = counter::now() else {
        return Err(Error::Architecture(std::env::consts::ARCH));
    };
    rustix::io::write(&log, line.as_bytes())
        .map_err(|error| Error::file("cannot write", PATH, error))?;
    let (mut init_us, mut marker_us) = (None, None);
    each(|record| {
        if is_init_line(&record.text) {
            // The last one: a first attempt (`Run /init`) may fail and be followed by another.
            init_us = Some(record.time_us);
        }
        if record.text == marker {
            marker_us = Some(record.time_us);
        }
    })?;
    Ok(init_us.zip(marker_us).and_then(|(init_us, marker_us)| {
        counter_at(before, marker_us.checked_sub(init_us)?, frequency_hz)
    }))
}

/// The counter's value `earlier_us` microseconds before it was `now`.
fn counter_at(now: u64, earlier_us: u64, frequency_hz: u64) -> Option<u64> {
    let counts = u128::from(earlier_us) * u128::from(frequency_hz) / 1_000_000;
    now.checked_sub(u64::try_from(counts).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_as_the_kernel_writes_them() {
        let record = parse(b"6,812,1234567,-,caller=T1;Run /init as init process\n SUBSYSTEM=x\n");
        let record = record.unwrap();
        assert_eq!(
            (record.time_us, is_init_line(&record.text)),
            (1_234_567, true)
        );
        assert!(!is_init_line(
            &parse(b"12,1,5,-;Running /init as init process?")
                .unwrap()
                .text
        ));
        // Found by fuzzing.
        assert!(!is_init_line("Run as init process"));
        for record in [
            &b"6,1,2,-;x\r"[..],
            b"6,1,2,-;x\r\n",
            b"6,1,2,-;x\r\n A=b\n",
        ] {
            assert_eq!(parse(record).unwrap().text, "x\r");
        }
        for broken in [&b""[..], b"6,1,2,-", b"6,1;x", b"6,1,x,-;y", b"\xff\xfe;"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn microseconds_become_counts() {
        assert_eq!(counter_at(1000, 10, 62_500_000), Some(375));
        assert_eq!(
            counter_at(100, 10, 62_500_000),
            None,
            "before the counter started"
        );
        assert_eq!(counter_at(u64::MAX, u64::MAX, u64::MAX), None);
    }
}
