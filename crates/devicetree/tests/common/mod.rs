//! The fixtures, and an independent reading of a blob to compare with.
#![allow(dead_code, reason = "every test file uses a part")]

use std::path::{Path, PathBuf};

pub(crate) const VIRT: &[u8] = include_bytes!("../fixtures/virt.dtb");
pub(crate) const EFI: &[u8] = include_bytes!("../fixtures/efi.dtb");
pub(crate) const BOARD: &[u8] = include_bytes!("../fixtures/board.dtb");
pub(crate) const FIXTURES: [(&str, &[u8]); 3] = [("virt", VIRT), ("efi", EFI), ("board", BOARD)];

/// Names a directory with `.dtb` and `.dtbo` files at any depth.
pub(crate) const CORPUS_VARIABLE: &str = "KLEAP_DTB_CORPUS";

/// The `.dtb` and `.dtbo` files at any depth, in order.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_below(&path));
        } else if path
            .extension()
            .is_some_and(|end| end == "dtb" || end == "dtbo")
        {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a blob says, without where it says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) boot_cpu: u32,
    pub(crate) reservations: Vec<(u64, u64)>,
    pub(crate) tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Begin(Vec<u8>),
    Property(Vec<u8>, Vec<u8>),
    End,
}

/// Reads a blob that is known to be good, straight from the specification, sharing no code with the
/// crate. NOP tokens mean nothing and are left out.
pub(crate) fn contents(blob: &[u8]) -> Contents {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap());
    let place = |at: usize| usize::try_from(word(at)).unwrap();
    let double = |at: usize| u64::from_be_bytes(blob[at..at + 8].try_into().unwrap());
    let text = |at: usize| {
        let length = blob[at..].iter().position(|byte| *byte == 0).unwrap();
        blob[at..at + length].to_vec()
    };
    let mut reservations = Vec::new();
    let mut at = place(16);
    while (double(at), double(at + 8)) != (0, 0) {
        reservations.push((double(at), double(at + 8)));
        at += 16;
    }
    let (mut at, strings) = (place(8), place(12));
    let mut tokens = Vec::new();
    loop {
        let token = word(at);
        at += 4;
        match token {
            1 => {
                let name = text(at);
                at = (at + name.len() + 1).next_multiple_of(4);
                tokens.push(Token::Begin(name));
            }
            2 => tokens.push(Token::End),
            3 => {
                let (length, name) = (place(at), text(strings + place(at + 4)));
                tokens.push(Token::Property(
                    name,
                    blob[at + 8..at + 8 + length].to_vec(),
                ));
                at = (at + 8 + length).next_multiple_of(4);
            }
            4 => {}
            9 => {
                return Contents {
                    boot_cpu: word(28),
                    reservations,
                    tokens,
                };
            }
            other => panic!("token {other} at {at:#x}"),
        }
    }
}

/// The properties of the node at `path` of full names, in order.
pub(crate) fn properties(contents: &Contents, path: &str) -> Vec<(String, Vec<u8>)> {
    let mut here: Vec<String> = Vec::new();
    let mut found = Vec::new();
    for token in &contents.tokens {
        match token {
            Token::Begin(name) => here.push(String::from_utf8(name.clone()).unwrap()),
            Token::End => {
                here.pop();
            }
            Token::Property(name, value) => {
                if here[1..]
                    .iter()
                    .fold(String::new(), |all, name| all + "/" + name)
                    == path
                {
                    found.push((String::from_utf8(name.clone()).unwrap(), value.clone()));
                }
            }
        }
    }
    found
}

/// Damages a blob: the big-endian word at `at` becomes `value`.
pub(crate) fn put_u32(blob: &mut [u8], at: usize, value: u32) {
    blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
