//! `cargo xtask demo`: one hand-over, told as it happens, ending with where its time went.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use crate::lab::Lab;
use crate::qemu::Line;
use crate::rows::{self, Row, Strategy};
use crate::run::{self, Assets, KERNEL_ENTRY};
use crate::setup::known_name;

/// How much of one line of the console is shown.
const SHOWN_COLUMNS: usize = 100;

/// What the user asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// The first kernel's name.
    pub(crate) from: String,
    /// The second kernel's name.
    pub(crate) to: String,
    /// A second kernel of the user's own.
    pub(crate) kernel: Option<PathBuf>,
    /// Forced, or the command's own choice.
    pub(crate) strategy: Strategy,
}

impl Wish {
    fn command(&self) -> String {
        let kernel = self.kernel.as_ref().map_or_else(
            || format!("--to {}", self.to),
            |path| format!("--kernel {}", quoted(&path.display().to_string())),
        );
        let strategy = self.strategy.word();
        format!(
            "cargo xtask demo --from {} {kernel} --strategy {strategy}",
            self.from
        )
    }
}

/// A word as a shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:,@%".contains(letter);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Shows a hand-over.
pub(crate) fn run(lab: &Lab, wish: &Wish) -> Result<()> {
    let mut row = Row::hand_over(
        known_name(&wish.from)?,
        known_name(&wish.to)?,
        rows::EL2_A57,
        wish.strategy,
    );
    // Pages of 16K are more than a Cortex-A57 can do.
    if [row.first, row.second]
        .iter()
        .any(|name| name.ends_with("16k"))
    {
        row.kind = rows::VHE_N1;
    }
    if let Some(kernel) = &wish.kernel {
        // Before anything is built for it.
        ensure!(kernel.is_file(), "{} is not a file", kernel.display());
    }
    row.name = "demo".to_owned();
    row.replay = Some(wish.command());
    let mut assets = Assets::prepare(lab, std::slice::from_ref(&row))?;
    if let Some(kernel) = &wish.kernel {
        row.second = YOURS;
        assets.set_kernel(YOURS, kernel.canonicalize()?);
    }
    println!(
        "\nfrom Debian's kernel {} to {}, {} CPUs, {} MB of memory, {} in QEMU",
        row.first,
        wish.kernel.as_ref().map_or_else(
            || format!("Debian's kernel {}", row.second),
            |path| path.display().to_string()
        ),
        row.cpus,
        row.memory_mb,
        row.kind.cpu,
    );
    let mut story = Story::new();
    let outcome = run::row(lab, &assets, &row, &mut |line| story.tell(line));
    story.end();
    if let Some(text) = outcome.failure {
        bail!("the hand-over failed: {text}");
    }
    println!();
    for line in &outcome.seen.report {
        println!("{line}");
    }
    Ok(())
}

/// The name under which a file of the user's is known.
const YOURS: &str = "the given kernel";

/// Turns the console into a few lines, and shows its last line below them on a terminal.
#[derive(Debug)]
struct Story {
    terminal: bool,
    kernels: usize,
    in_command: bool,
}

impl Story {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            kernels: 0,
            in_command: false,
        }
    }

    fn tell(&mut self, line: &Line) {
        match self.understand(line) {
            Some(text) => {
                self.clear();
                println!("{:7.2} s  {text}", line.at.as_secs_f64());
            }
            None if self.terminal => {
                let text = shortened(&line.text);
                print!(
                    "\r\x1b[K\x1b[2m{:7.2} s  {text}\x1b[0m",
                    line.at.as_secs_f64()
                );
            }
            None => {}
        }
        // A closed pipe shows at the next line.
        let _ = io::stdout().flush();
    }

    fn understand(&mut self, line: &Line) -> Option<String> {
        if line.text.contains(KERNEL_ENTRY) {
            self.kernels += 1;
            let which = if self.kernels == 1 { "first" } else { "second" };
            return Some(format!("the {which} kernel is entered"));
        }
        let Some(said) = run::lab_value(line, "") else {
            let shown = self.in_command && !run::is_kernel_message(&line.text);
            return shown.then(|| match is_reason(&line.text) {
                true => format!("  {}", line.text),
                false => format!("  {}", shortened(&line.text)),
            });
        };
        self.in_command = false;
        if let Some(command) = said.strip_prefix("run ") {
            self.in_command = true;
            // The second kernel's command line is long and not the point.
            let shown = command.split(" --command-line").next().unwrap_or(command);
            return Some(format!("$ {shown}"));
        }
        if let Some(rest) = said.strip_prefix("role=") {
            let (role, rest) = rest.split_once(' ')?;
            return Some(format!("the {role} kernel runs its init: {rest}"));
        }
        if let Some(rest) = said.strip_prefix("initrd sha256=") {
            let rest = rest.split_once(' ').map_or("", |(_, rest)| rest);
            return Some(format!(
                "the second kernel's initrd is what was loaded: {rest}"
            ));
        }
        if said.starts_with("cpus=") {
            return Some(format!("CPUs online: {}", said.trim_start_matches("cpus=")));
        }
        if said.contains("verdict=") || said.starts_with("suspicious") {
            let text = said.split_once(' ').map_or(said, |(_, text)| text);
            return Some(text.to_owned());
        }
        None
    }

    fn clear(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }

    fn end(&self) {
        self.clear();
        let _ = io::stdout().flush();
    }
}

/// Whether the command says something that may be why it failed, and what to do: its end must not be missing. What it says last
/// names the next kernel as that names itself.
fn is_reason(text: &str) -> bool {
    text.starts_with("kleap: ") && !text.starts_with("kleap: entering ")
}

/// A line that fits a terminal, and says where it was cut.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_COLUMNS).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_to_be_repeated_can_be_pasted() {
        for (word, expected) in [
            ("/boot/vmlinuz-6.12+deb13", "/boot/vmlinuz-6.12+deb13"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$HOME;ls", "'$HOME;ls'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn the_story_leaves_out_what_kernels_say() {
        let mut story = Story::new();
        let mut told = |text: &str| {
            story.understand(&Line {
                at: Duration::ZERO,
                text: text.to_owned(),
            })
        };
        assert_eq!(
            told("[    0.000000] Booting Linux on physical CPU 0x0").unwrap(),
            "the first kernel is entered"
        );
        assert_eq!(told("[    1.000000] random: ready"), None);
        assert_eq!(
            told("KLEAP-LAB: run kleap load a --command-line 'x'").unwrap(),
            "$ kleap load a"
        );
        assert_eq!(told("placed 3 pieces").unwrap(), "  placed 3 pieces");
        let long = "x".repeat(SHOWN_COLUMNS);
        assert_eq!(
            told(&format!("kleap: {long}: do this")).unwrap(),
            format!("  kleap: {long}: do this")
        );
        for said in ["placed", "kleap: entering"] {
            let told = told(&format!("{said} {long}")).unwrap();
            assert_eq!(told.len(), 2 + SHOWN_COLUMNS + 4, "{told}");
        }
        assert_eq!(told("[    2.000000] noise"), None);
        assert_eq!(told("KLEAP-LAB: exit 0"), None);
        assert_eq!(told("anything"), None);
        assert_eq!(
            told("[    0.000000] Booting Linux on physical CPU 0x0").unwrap(),
            "the second kernel is entered"
        );
    }
}
