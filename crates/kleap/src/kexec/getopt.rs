//! The words of a command line, split into options and operands as `getopt_long(3)` of glibc does.
//!
//! Problem: what callers of `kexec` write is what glibc takes: `-lf`, `-tImage`, `--append "..."`, `--append=...`,
//! `--reuse-c`, options behind the kernel, `--`. Choice: a parser of its own, over a table, that does nothing else.
//! Rejected: clap with inferred long options, which looks at all words before it says anything of the first
//! (`kexec -h --nonsense` is help and exit code 0), and has its own ideas of repetition and of `=`; lexopt and
//! pico-args, which know no prefixes; the C library's own, which keeps its state in statics and writes to standard
//! error itself. See docs/decisions/0027.
//!
//! Not taken over: `POSIXLY_CORRECT`, which makes glibc stop at the first operand. No caller sets it, and whoever has
//! it set for other programs would find options behind the kernel ignored without a word.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Whether an option has an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// None; `--option=` is a mistake.
    Nothing,
    /// One, in the same word or in the next.
    Value,
}

/// An option that is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<Id> {
    /// What it is; several spellings may share it.
    pub(super) id: Id,
    /// Without the dashes.
    pub(super) long: &'static str,
    /// The letter.
    pub(super) short: Option<u8>,
    /// Whether it has an argument.
    pub(super) takes: Takes,
}

/// What the next words are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<Id> {
    /// An option, with its argument where it has one.
    Option(Id, Option<OsString>),
    /// Neither an option nor an option's argument.
    Operand(OsString),
}

/// Why a word cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    #[error("there is no option '{0}'")]
    Unknown(String),
    #[error("'{word}' could be {}", .candidates.join(" or "))]
    Ambiguous {
        word: String,
        candidates: Vec<String>,
    },
    #[error("the option '{0}' needs an argument")]
    NoArgument(String),
    #[error("the option '{0}' takes no argument")]
    Argument(String),
}

/// The words that are still to be read.
#[derive(Debug)]
pub(super) struct Words<'table, Id> {
    table: &'table [Known<Id>],
    words: std::vec::IntoIter<OsString>,
    /// Letters of a word like `-lf` that are still to be read.
    letters: Vec<u8>,
    /// `--` was seen: the rest are operands.
    only_operands: bool,
}

impl<'table, Id: Copy + PartialEq> Words<'table, Id> {
    /// The words after the program's name.
    pub(super) fn new(table: &'table [Known<Id>], words: Vec<OsString>) -> Self {
        Self {
            table,
            words: words.into_iter(),
            letters: Vec::new(),
            only_operands: false,
        }
    }

    fn long(&mut self, word: &[u8]) -> Result<Found<Id>, Mistake> {
        let (name, value) = match word.iter().position(|byte| *byte == b'=') {
            Some(at) => (
                &word[..at],
                Some(OsString::from_vec(word[at + 1..].to_vec())),
            ),
            None => (word, None),
        };
        let shown = || format!("--{}", String::from_utf8_lossy(name));
        let exact = self
            .table
            .iter()
            .find(|known| known.long.as_bytes() == name);
        let found = match exact {
            Some(found) => found,
            None => {
                let begins = |known: &&Known<Id>| known.long.as_bytes().starts_with(name);
                let candidates: Vec<&Known<Id>> = self.table.iter().filter(begins).collect();
                match candidates.as_slice() {
                    [] => return Err(Mistake::Unknown(shown())),
                    // Spellings of one option are no choice.
                    &[first, ref rest @ ..] if rest.iter().all(|known| known.id == first.id) => {
                        first
                    }
                    _ => {
                        return Err(Mistake::Ambiguous {
                            word: shown(),
                            candidates: candidates
                                .iter()
                                .map(|known| format!("--{}", known.long))
                                .collect(),
                        });
                    }
                }
            }
        };
        let name = || format!("--{}", found.long);
        match (found.takes, value) {
            (Takes::Nothing, None) => Ok(Found::Option(found.id, None)),
            (Takes::Nothing, Some(_)) => Err(Mistake::Argument(name())),
            (Takes::Value, Some(value)) => Ok(Found::Option(found.id, Some(value))),
            (Takes::Value, None) => match self.words.next() {
                Some(value) => Ok(Found::Option(found.id, Some(value))),
                None => Err(Mistake::NoArgument(name())),
            },
        }
    }

    /// The next of the letters that stand in one word.
    fn short(&mut self) -> Result<Found<Id>, Mistake> {
        let letter = self.letters.remove(0);
        let shown = || format!("-{}", String::from_utf8_lossy(&[letter]));
        let Some(found) = self.table.iter().find(|known| known.short == Some(letter)) else {
            return Err(Mistake::Unknown(shown()));
        };
        if found.takes == Takes::Nothing {
            return Ok(Found::Option(found.id, None));
        }
        // The rest of the word, or the next one whatever it looks like.
        let rest = std::mem::take(&mut self.letters);
        if !rest.is_empty() {
            return Ok(Found::Option(found.id, Some(OsString::from_vec(rest))));
        }
        match self.words.next() {
            Some(value) => Ok(Found::Option(found.id, Some(value))),
            None => Err(Mistake::NoArgument(shown())),
        }
    }
}

impl<Id: Copy + PartialEq> Iterator for Words<'_, Id> {
    type Item = Result<Found<Id>, Mistake>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.letters.is_empty() {
            return Some(self.short());
        }
        let word = self.words.next()?;
        let bytes = OsStr::as_bytes(&word);
        match bytes {
            _ if self.only_operands => Some(Ok(Found::Operand(word))),
            b"--" => {
                self.only_operands = true;
                self.next()
            }
            [b'-', b'-', name @ ..] => {
                let name = name.to_vec();
                Some(self.long(&name))
            }
            [b'-', letters @ ..] if !letters.is_empty() => {
                self.letters = letters.to_vec();
                Some(self.short())
            }
            _ => Some(Ok(Found::Operand(word))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Id {
        Load,
        LoadPanic,
        Type,
        Append,
        NoSync,
        NoChecks,
    }

    const fn known(id: Id, long: &'static str, short: Option<u8>, takes: Takes) -> Known<Id> {
        Known {
            id,
            long,
            short,
            takes,
        }
    }

    const TABLE: &[Known<Id>] = &[
        known(Id::Load, "load", Some(b'l'), Takes::Nothing),
        known(Id::LoadPanic, "load-panic", Some(b'p'), Takes::Nothing),
        known(Id::Type, "type", Some(b't'), Takes::Value),
        known(Id::Append, "append", None, Takes::Value),
        known(Id::Append, "append-words", None, Takes::Value),
        known(Id::NoSync, "no-sync", Some(b'y'), Takes::Nothing),
        known(Id::NoChecks, "no-checks", Some(b'i'), Takes::Nothing),
    ];

    fn parse(words: &[&str]) -> Result<Vec<Found<Id>>, Mistake> {
        Words::new(TABLE, words.iter().map(OsString::from).collect()).collect()
    }

    fn flag(id: Id) -> Found<Id> {
        Found::Option(id, None)
    }

    fn with(id: Id, value: &str) -> Found<Id> {
        Found::Option(id, Some(value.into()))
    }

    fn operand(word: &str) -> Found<Id> {
        Found::Operand(word.into())
    }

    #[test]
    fn every_way_to_spell_an_option() {
        for (words, wanted) in [
            (&["-l"][..], vec![flag(Id::Load)]),
            (&["-ly"], vec![flag(Id::Load), flag(Id::NoSync)]),
            (&["-ltImage"], vec![flag(Id::Load), with(Id::Type, "Image")]),
            (&["-t", "-l"], vec![with(Id::Type, "-l")]),
            (&["-t", "--"], vec![with(Id::Type, "--")]),
            (&["--load"], vec![flag(Id::Load)]),
            (&["--load-"], vec![flag(Id::LoadPanic)]),
            (&["--t=a=b"], vec![with(Id::Type, "a=b")]),
            (&["--type="], vec![with(Id::Type, "")]),
            (&["--append", "--load"], vec![with(Id::Append, "--load")]),
            (&["--app", ""], vec![with(Id::Append, "")]),
            (
                &["K", "-l", "L"],
                vec![operand("K"), flag(Id::Load), operand("L")],
            ),
            (
                &["-l", "--", "-l", "--"],
                vec![flag(Id::Load), operand("-l"), operand("--")],
            ),
            (&["-", ""], vec![operand("-"), operand("")]),
        ] {
            assert_eq!(parse(words), Ok(wanted), "{words:?}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (words, wanted) in [
            (&["--nonsense"][..], "there is no option '--nonsense'"),
            (&["-lz"], "there is no option '-z'"),
            (&["-t"], "the option '-t' needs an argument"),
            (&["--ty"], "the option '--type' needs an argument"),
            (&["--load=x"], "the option '--load' takes no argument"),
            (&["--no"], "'--no' could be --no-sync or --no-checks"),
            (&["--loads"], "there is no option '--loads'"),
        ] {
            assert_eq!(parse(words).unwrap_err().to_string(), wanted, "{words:?}");
        }
    }

    #[test]
    fn what_stands_before_a_mistake_is_read_first() {
        let words = ["-l", "--nonsense"].map(OsString::from).to_vec();
        let mut words = Words::new(TABLE, words);
        assert_eq!(words.next(), Some(Ok(flag(Id::Load))));
        assert!(matches!(words.next(), Some(Err(Mistake::Unknown(_)))));
    }

    #[test]
    fn names_that_are_no_text_are_kept() {
        let name = OsString::from_vec(vec![b'-', b'-', b't', b'=', 0xff]);
        let found: Vec<_> = Words::new(TABLE, vec![name]).collect();
        let value = OsString::from_vec(vec![0xff]);
        assert_eq!(found, [Ok(Found::Option(Id::Type, Some(value)))]);
    }

    proptest! {
        #[test]
        fn every_word_is_used_and_it_ends(words in prop::collection::vec("(-{0,3}[a-z=]{0,6}|--(load|type|append|no)[-=a-z]{0,4})", 0..8)) {
            let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
            let (most, operands) = (words.iter().map(|word| word.len().max(1)).sum::<usize>(), words.clone());
            let found: Vec<_> = Words::new(TABLE, words).collect();
            prop_assert!(found.len() <= most);
            for operand in &found {
                if let Ok(Found::Operand(operand)) = operand {
                    prop_assert!(operands.contains(operand));
                }
            }
        }
    }
}
