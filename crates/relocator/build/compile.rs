//! The two runs of the compiler that make the bare program.
//!
//! A file of its own because two use it: `build.rs`, and the test that builds the program again
//! elsewhere and compares it bit for bit.

use std::path::Path;
use std::process::Command;

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

/// Builds `relocator.elf` in `out` from the crate in `source`.
///
/// `linker` is the linker to use, and whether it is an `ld` (as opposed to a C compiler that drives
/// one).
pub(crate) fn build(
    rustc: &str,
    target: &str,
    linker: &(String, bool),
    source: &Path,
    out: &Path,
) -> Result<(), String> {
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
