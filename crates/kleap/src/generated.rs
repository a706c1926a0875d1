//! What is made of the tables of options: the shells' completions, and the list in kexec(8). They are kept beside what
//! they belong to, for packages that build nothing, and are compared with the tables by tests. `KLEAP_GENERATE=1 cargo test
//! -p kleap generated` writes them.

use crate::{Command, kexec};
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use std::path::{Path, PathBuf};

/// Where the documentation is.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Compares a file with what it should be, or writes it.
fn check(path: &Path, wanted: &str) {
    if std::env::var_os("KLEAP_GENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the options say: KLEAP_GENERATE=1 cargo test -p kleap generated",
        path.display()
    );
}

#[test]
fn completions() {
    for (name, command) in [
        ("kleap", Command::command()),
        ("kexec", kexec::for_completions()),
    ] {
        for (shell, file) in [
            (Shell::Bash, name.to_owned()),
            (Shell::Zsh, format!("_{name}")),
            (Shell::Fish, format!("{name}.fish")),
        ] {
            let mut text = Vec::new();
            generate(shell, &mut command.clone(), name, &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(name));
            let path = docs()
                .join("completions")
                .join(shell.to_string())
                .join(file);
            check(&path, &text);
        }
    }
}

#[test]
fn options_of_kexec_8() {
    const BEGIN: &str = ".\\\" options begin\n";
    const END: &str = ".\\\" options end\n";
    let path = docs().join("man/kexec.8");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    check(
        &path,
        &format!("{head}{BEGIN}{}{END}{tail}", kexec::manual_options()),
    );
}

/// kleap(8) is written by hand; it must name every command and every option.
#[test]
fn kleap_8_is_complete() {
    let page = std::fs::read_to_string(docs().join("man/kleap.8")).unwrap();
    let page = page.replace("\\-", "-");
    let command = Command::command();
    let shown = command
        .get_subcommands()
        .filter(|action| !action.is_hide_set());
    for action in shown {
        assert!(
            page.contains(action.get_name()),
            "kleap(8) has no {}",
            action.get_name()
        );
        for long in action
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
            .filter_map(clap::Arg::get_long)
            .filter(|long| *long != "inject-fault")
        {
            assert!(
                page.contains(&format!("--{long}")),
                "kleap(8) says nothing of --{long} of {}",
                action.get_name()
            );
        }
    }
}
