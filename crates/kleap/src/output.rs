//! What is said, and what becomes of it when nobody can hear it.
//!
//! `println!` panics when its reader is gone or the disk behind it is full. What a command has done must
//! not depend on that: a note may be lost, an answer that was asked for (`status`, `report`) may not,
//! except where its reader did not want more of it.

use crate::error::Failure;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

/// Who hears notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notes {
    /// Whoever reads standard output.
    Output,
    /// Whoever reads standard error.
    Error,
    /// Nobody.
    Nobody,
}

/// As it was chosen for this process, once, at its start.
static NOTES: OnceLock<Notes> = OnceLock::new();

/// Chooses who hears notes, where that is not [`Notes::Output`]. The first choice counts.
pub(crate) fn choose_notes(notes: Notes) {
    let _ = NOTES.set(notes);
}

/// Says something beside the work itself; lost if it cannot be written.
pub(crate) fn note(text: &str) {
    let text = &lines_printable(text);
    match NOTES.get().unwrap_or(&Notes::Output) {
        Notes::Output => {
            let _ = writeln!(std::io::stdout(), "{text}");
            let _ = std::io::stdout().flush();
        }
        Notes::Error => {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        Notes::Nobody => {}
    }
}

/// Says why it did not work, and what can be done about it.
pub(crate) fn failed(failure: &Failure) {
    warn(&failure.to_string());
    if let Some(hint) = failure.hint() {
        warn(hint);
    }
}

/// Says something on standard error; lost if it cannot be written.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "kleap: {}", lines_printable(text));
}

/// Gives the answer that was asked for.
pub(crate) fn answer(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Text from a file or a command line, safe to show on a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The same, but lines stay lines. Whatever is said goes through here: names of files and words of the user are in
/// most messages, and must not control a terminal.
fn lines_printable(text: &str) -> String {
    text.split('\n')
        .map(printable)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Appends a line to a `String`, which cannot fail.
macro_rules! line {
    ($text:expr $(, $($argument:tt)+)?) => {{
        use std::fmt::Write as _;
        let _ = writeln!($text $(, $($argument)+)?);
    }};
}
pub(crate) use line;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_controls_no_terminal() {
        assert_eq!(
            lines_printable("\u{1b}[31mred\u{7}: no such file\nand so on\r\n"),
            "\u{fffd}[31mred\u{fffd}: no such file\nand so on\u{fffd}\n"
        );
    }
}
