//! The command as `kexec`: the options, exit codes, order rules and effects of kexec-tools 2.0.32 on arm64.
//!
//! Problem: systemd, Debian's, Fedora's and NixOS's scripts, boot loaders and people call a program of that name, and look at
//! its exit code and at `/sys/kernel/kexec_loaded`. Choice: the same binary, which looks at its own name; what the words
//! ask for is found out first, by a pure function ([`request`]), and then done by what `kleap load`, `exec` and
//! `unload` are made of. What cannot be done is refused, and never ignored. Rejected: a script around `kleap`, which
//! cannot have exit codes like these; options of kexec-tools among those of `kleap`, which would make both hard to
//! explain.
//!
//! `-l` is `kleap load --early`: who calls `kexec -l` looks at `kexec_loaded` afterwards, and reboots in whatever way.
//! What is done otherwise than by kexec-tools, and why, is in docs/kexec-differences.md, which the differential test
//! (`cargo xtask kexec-diff`) reads.

mod action;
mod getopt;
mod options;
mod request;

use crate::error::Failure;
use crate::output;
use crate::output::Notes;
use kleap_image::{Container, Layer};
use kleap_memmap::PhysRange;
use request::{Asked, Type};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// What the program is called when it is this.
const NAME: &str = "kexec";
/// Of kexec-tools, which is what is compared with.
const COMPATIBLE_WITH: &str = "kexec-tools 2.0.32";

/// Exit codes: the C `int`s that kexec-tools returns.
const REFUSED: u8 = 1;
/// `-3`: `kexec_file_load(2)` was asked for, and is not there.
const NO_FILE_LOAD: u8 = 253;
/// `-1`.
const FAILED: u8 = 255;

/// What `kexec` can ask a load for that `kleap load` cannot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// `kexec` asks.
    pub(crate) by_kexec: bool,
    /// Memory outside of this is not to be used.
    pub(crate) window: Option<PhysRange>,
    /// What the kernel's file must be.
    pub(crate) kind: Option<Type>,
    /// `kexec_file_load(2)` must not be used.
    pub(crate) not_as_files: bool,
}

impl Wishes {
    /// Refuses a file, in these layers, that is of another type than was asked for.
    pub(crate) fn check_type(&self, path: &Path, layers: &[Layer]) -> Result<(), Failure> {
        let Some(wanted) = self.kind else {
            return Ok(());
        };
        let found = type_of(layers);
        if found == Some(wanted) {
            return Ok(());
        }
        Err(Failure::Input {
            path: path.to_owned(),
            what: format!(
                "is of type {}, not of type {} as --type says",
                found.map_or("FIT", Type::name),
                wanted.name()
            ),
        })
    }
}

/// What kexec-tools calls a file in these layers, the outermost first; `None` for what it does not know. It takes a
/// compression off before it looks.
fn type_of(layers: &[Layer]) -> Option<Type> {
    let container = layers.iter().find_map(|layer| match layer {
        Layer::Container(container) => Some(*container),
        _ => None,
    });
    Some(match container {
        None => Type::Image,
        Some(Container::Elf) => Type::Vmlinux,
        Some(Container::Uimage) => Type::Uimage,
        Some(Container::Zboot) => Type::Vmlinuz,
        Some(Container::Uki) => Type::Uki,
        Some(_) => return None,
    })
}

/// Whether a program of this name is `kexec`.
pub(crate) fn is_name(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(NAME))
}

/// The command line for the shells' completions, and for nothing else: words are understood by [`request`].
#[cfg(test)]
pub(crate) fn for_completions() -> clap::Command {
    let mut command = clap::Command::new(NAME)
        .disable_help_flag(true)
        .arg(clap::Arg::new("KERNEL").value_hint(clap::ValueHint::FilePath));
    for row in options::ROWS {
        let mut argument = clap::Arg::new(row.long).long(row.long).help(row.what);
        if let Some(letter) = row.short {
            argument = argument.short(letter);
        }
        argument = match row.value {
            options::Value::None => argument.action(clap::ArgAction::SetTrue),
            options::Value::File => argument.value_hint(clap::ValueHint::FilePath),
            options::Value::Text(name) => argument.value_name(name),
        };
        if row.id == options::Id::Type {
            argument = argument.value_parser(options::TYPES.to_vec());
        }
        command = command.arg(argument);
    }
    command
}

/// The list of options in kexec(8).
#[cfg(test)]
pub(crate) fn manual_options() -> String {
    options::manual()
}

/// What words come to, for the fuzzer: the request in the debugger's form, or the message.
#[cfg(feature = "fuzzing")]
pub(crate) fn understood(words: Vec<OsString>) -> Result<String, String> {
    request::understand(words)
        .map(|asked| format!("{asked:?}"))
        .map_err(|wrong| wrong.to_string())
}

/// `kexec`, with the words after its name.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    match request::understand(words) {
        Ok(Asked::Help) => answer(&options::usage()),
        Ok(Asked::Version) => answer(&format!(
            "kleap {} ({COMPATIBLE_WITH} compatible)\n",
            env!("CARGO_PKG_VERSION")
        )),
        Ok(Asked::PrintCrashSize) => match action::crash_size_bytes() {
            Ok(bytes) => answer(&format!("{bytes}\n")),
            Err(failure) => {
                output::failed(&failure);
                ExitCode::from(FAILED)
            }
        },
        Ok(Asked::Work(request)) => {
            output::choose_notes(if request.debug {
                Notes::Error
            } else {
                Notes::Nobody
            });
            ExitCode::from(action::carry_out(&request))
        }
        Err(wrong) => {
            output::warn(&wrong.to_string());
            if wrong.wants_usage() {
                output::warn("kexec --help shows all options");
            }
            ExitCode::from(match wrong {
                request::Wrong::Type(_) => FAILED,
                _ => REFUSED,
            })
        }
    }
}

fn answer(text: &str) -> ExitCode {
    match output::answer(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failed(&failure);
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kleap_image::Compression;

    #[test]
    fn the_name_is_that_of_the_file() {
        for name in ["kexec", "/sbin/kexec", "../usr/sbin/kexec"] {
            assert!(is_name(OsStr::new(name)), "{name}");
        }
        for name in ["kleap", "/kexec/kleap", "kexec-tools", "", "/"] {
            assert!(!is_name(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn types_are_what_kexec_tools_calls_them() {
        let gzip = Layer::Compressed(Compression::Gzip);
        for (layers, wanted) in [
            (vec![], Some(Type::Image)),
            (vec![gzip], Some(Type::Image)),
            (
                vec![gzip, Layer::Container(Container::Elf)],
                Some(Type::Vmlinux),
            ),
            (
                vec![Layer::Container(Container::Zboot), gzip],
                Some(Type::Vmlinuz),
            ),
            (
                vec![Layer::Container(Container::Uimage), gzip],
                Some(Type::Uimage),
            ),
            (
                vec![
                    Layer::Container(Container::Uki),
                    Layer::Container(Container::Zboot),
                ],
                Some(Type::Uki),
            ),
            (vec![Layer::Container(Container::Fit)], None),
        ] {
            assert_eq!(type_of(&layers), wanted, "{layers:?}");
        }
        let wishes = Wishes {
            kind: Some(Type::Uimage),
            ..Wishes::default()
        };
        let refused = wishes.check_type(Path::new("K"), &[gzip]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "K: is of type Image, not of type uImage as --type says"
        );
    }

    #[test]
    fn completions_are_made_of_a_valid_command() {
        for_completions().debug_assert();
    }
}
