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

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const FALLBACK_TARGET: &str = "aarch64-unknown-linux-gnu";

fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }
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

fn build(rustc: &str, target: &str, linker: &(String, bool), out: &Path) -> Result<(), String> {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?);
    let base = |command: &mut Command| {
        command
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args(["--edition", "2024", "--target", target])
            .args([
                "-C",
                "panic=abort",
                "-C",
                "opt-level=2",
                "-C",
                "codegen-units=1",
            ])
            .args(["-C", "relocation-model=pic", "-C", "force-unwind-tables=no"])
            .args(["-C", "overflow-checks=on", "-C", "debuginfo=0"])
            // The same source gives the same bytes, wherever it was unpacked and built.
            .arg(format!(
                "--remap-path-prefix={}=/kleap-relocator",
                source.display()
            ))
            .arg(format!("--remap-path-prefix={}=/out", out.display()));
    };
    let library = out.join("libkleap_relocator.rlib");
    let mut command = Command::new(rustc);
    base(&mut command);
    run(command
        .args(["--crate-type", "rlib", "--crate-name", "kleap_relocator"])
        .args([
            "-C",
            "metadata=kleap-relocator",
            "--cap-lints",
            "warn",
            "-o",
        ])
        .arg(&library)
        .arg(source.join("src/lib.rs")))?;

    let script = source.join("blob/link.ld");
    let mut command = Command::new(rustc);
    base(&mut command);
    command
        .args(["--crate-type", "bin", "--crate-name", "relocator"])
        .arg("--extern")
        .arg(format!("kleap_relocator={}", library.display()))
        .args([
            "-C",
            "lto=fat",
            "-C",
            "strip=debuginfo",
            "-C",
            "metadata=kleap-relocator",
        ])
        .args(["-C", "default-linker-libraries=no", "-C"])
        .arg(format!("linker={}", linker.0));
    let options = [
        "-z",
        "text",
        "-z",
        "max-page-size=4096",
        "--no-dynamic-linker",
        "--build-id=none",
        "--orphan-handling=error",
        "-O1",
    ];
    if linker.1 {
        command.args(["-C", "linker-flavor=ld.lld", "-C", "link-arg=-pie", "-C"]);
        command.arg(format!("link-arg=-T{}", script.display()));
        for option in options {
            command.arg("-C").arg(format!("link-arg={option}"));
        }
    } else {
        for option in ["-nostartfiles", "-nostdlib", "-static-pie"] {
            command.arg("-C").arg(format!("link-arg={option}"));
        }
        command.arg("-C").arg(format!(
            "link-arg=-Wl,-T,{},{}",
            script.display(),
            options.join(",")
        ));
    }
    run(command
        .args(["--cap-lints", "warn", "-o"])
        .arg(out.join("relocator.elf"))
        .arg(source.join("blob/main.rs")))
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
    match build(&rustc, &target, &linker, Path::new(&cargo("OUT_DIR"))) {
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
