//! Builds the bare program for the command's own target and hands its ELF to the library.
//!
//! Two plain runs of the compiler that Cargo itself uses: this crate's library as a `no_std` rlib, then
//! `blob/main.rs` against it. No nightly, no other target, no nested Cargo, no network.
//!
//! When the command is built for something else than arm64 Linux (tests on a developer's machine), the
//! program is still built if the compiler has arm64's `core` (`rustup target add
//! aarch64-unknown-linux-gnu`), so that the tests can examine it; if not, the library says that it has
//! none.
//!
//! Environment: `KLEAP_RELOCATOR_RUSTC`, `KLEAP_RELOCATOR_LINKER` (a C compiler for arm64, or an
//! `ld.lld`) override what is found.

#[path = "build/compile.rs"]
mod compile;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const FALLBACK_TARGET: &str = "aarch64-unknown-linux-gnu";

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// The linker to use, and whether it is an `ld` (as opposed to a C compiler that drives one).
fn linker(target_is_arm64: bool, host: &str, rustc: &str) -> (String, bool) {
    let is_ld = |path: &str| {
        let name = Path::new(path)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        name.ends_with("lld") || name == "ld" || name.ends_with("-ld")
    };
    if let Some(linker) = variable("KLEAP_RELOCATOR_LINKER") {
        let is_ld = is_ld(&linker);
        return (linker, is_ld);
    }
    if target_is_arm64 {
        // What Cargo was told to link the command with can link this too.
        if let Some(linker) = env::var("RUSTC_LINKER")
            .ok()
            .filter(|linker| !linker.is_empty())
        {
            let is_ld = is_ld(&linker);
            return (linker, is_ld);
        }
        if host.starts_with("aarch64") {
            return ("cc".into(), false);
        }
    }
    let bundled = sysroot(rustc)
        .map(|root| root.join("lib/rustlib").join(host).join("bin/rust-lld"))
        .filter(|path| path.exists());
    match bundled {
        Some(path) => (path.display().to_string(), true),
        None => ("aarch64-linux-gnu-gcc".into(), false),
    }
}

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=blob");
    println!("cargo::rustc-check-cfg=cfg(relocator_program)");
    let cargo = |name: &str| env::var(name).unwrap_or_default();
    let target = cargo("TARGET");
    let target_is_arm64 = target.starts_with("aarch64") && target.contains("linux");
    let rustc = variable("KLEAP_RELOCATOR_RUSTC").unwrap_or_else(|| cargo("RUSTC"));
    let linker = linker(target_is_arm64, &cargo("HOST"), &rustc);
    let target = if target_is_arm64 {
        target
    } else {
        FALLBACK_TARGET.into()
    };
    let source = PathBuf::from(cargo("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(cargo("OUT_DIR"));
    // For the test that builds it again: which compiler, for what, with which linker.
    let recipe = format!("{rustc}\n{target}\n{}\n{}\n", linker.0, linker.1);
    if let Err(error) = std::fs::write(out.join("recipe.txt"), recipe) {
        println!("cargo::error={}: {error}", out.display());
    }
    match compile::build(&rustc, &target, &linker, &source, &out) {
        Ok(()) => println!("cargo::rustc-cfg=relocator_program"),
        Err(error) if target_is_arm64 => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
        }
        Err(error) => {
            let line = error
                .lines()
                .find(|line| line.starts_with("error"))
                .unwrap_or(&error);
            println!(
                "cargo::warning=built without the relocator, which this machine's compiler cannot \
                 build ({line}); `cargo xtask setup` provides what is missing"
            );
        }
    }
}
