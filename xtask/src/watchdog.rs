//! A hardware watchdog over a hand-over: QEMU's `i6300esb`, which says itself when it resets the machine.

use crate::rows::{EL1_A57, End, Row, Script, Strategy};

const SCRIPT: &str = include_str!("../guest-scripts/watchdog.sh");

/// It is kept running if the user wants that, and the hand-over does not touch it; otherwise its driver stops
/// it. The same script, and what decides is a word of the first kernel's command line.
pub(crate) fn rows() -> Vec<Row> {
    [
        (
            "kept",
            "watchdog.stop_on_reboot=0",
            "goes on running at hand-over",
        ),
        ("as-driver-wants", "", "most drivers stop it"),
    ]
    .map(|(name, first_words, expected)| {
        let mut row = Row::hand_over("6.1", "6.12", EL1_A57, Strategy::Auto);
        row.modules = &["i6300esb"];
        row.machine_words = &["-device", "i6300esb", "-action", "watchdog=reset"];
        row.first_words = first_words;
        row.script = Script::Template(format!("EXPECTED='{expected}'\n{SCRIPT}"));
        row.end = End::Watchdog {
            resets: name == "kept",
        };
        row.name = format!("watchdog/{name}");
        row
    })
    .into()
}
