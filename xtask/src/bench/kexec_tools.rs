//! Debian's own programs inside a machine: `kexec`, to compare with; `makedumpfile` and `vmcore-dmesg`, which read
//! what a crash kernel finds.
//!
//! Problem: the yardstick is the program that people use, as Debian builds it, on the same machine.
//! Choice: Debian's arm64 package and the libraries it is linked with, unpacked as everything else in
//! the lab is, and put into the first kernel's initramfs in those rows that want it. Which libraries
//! those are, Debian's own dynamic loader says. Rejected: building it statically from source, which
//! would be another program; reading the libraries' names out of the ELF file here, which is what the
//! loader is for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::initramfs::ExtraFiles;
use crate::lab::{self, Lab};
use crate::setup;

/// A program and the package that it is in.
#[derive(Debug, Clone, Copy)]
struct Program {
    /// The package; it is unpacked into a directory of that name below the lab.
    package: &'static str,
    /// Where the program is in the package.
    path: &'static str,
    /// Where it is in a machine.
    target: &'static str,
}

const KEXEC: Program = Program {
    package: "kexec-tools",
    path: "usr/sbin/kexec",
    target: "bin/kexec",
};
const MAKEDUMPFILE: Program = Program {
    package: "makedumpfile",
    path: "usr/bin/makedumpfile",
    target: "bin/makedumpfile",
};
const VMCORE_DMESG: Program = Program {
    package: "kexec-tools",
    path: "usr/sbin/vmcore-dmesg",
    target: "bin/vmcore-dmesg",
};
/// The dynamic loader of arm64: its name is part of the architecture's ABI.
const LOADER: &str = "ld-linux-aarch64.so.1";
/// Where the loader looks for libraries, in a machine.
const LIBRARIES: &str = "lib";

/// The program with its libraries.
#[derive(Debug)]
pub(crate) struct KexecTools {
    /// What a machine's initramfs needs: `bin/kexec`, the loader, libraries, and Debian's script that loads.
    pub(crate) files: ExtraFiles,
}

impl KexecTools {
    /// Gets them, from the lab or from the archive.
    pub(crate) fn fetch(lab: &Lab) -> Result<Self> {
        let mut files = fetch(lab, &KEXEC)?;
        let script = lab
            .directory(KEXEC.package)?
            .join("usr/sbin/kexec-load-kernel");
        files.push(("lab/kexec-load-kernel".to_owned(), read(&script)?));
        Ok(Self { files })
    }
}

/// Debian's `makedumpfile` and `vmcore-dmesg` with their libraries.
pub(crate) fn dump_tools(lab: &Lab) -> Result<ExtraFiles> {
    let mut files = fetch(lab, &MAKEDUMPFILE)?;
    for (name, content) in fetch(lab, &VMCORE_DMESG)? {
        if !files.iter().any(|(known, _)| *known == name) {
            files.push((name, content));
        }
    }
    Ok(files)
}

/// A program, the loader and its libraries, from the lab or from the archive.
fn fetch(lab: &Lab, program: &Program) -> Result<ExtraFiles> {
    let root = unpacked(lab, program.package)
        .with_context(|| format!("cannot get Debian's {} for arm64", program.package))?;
    let target = program.target;
    let missing = |name: &str| {
        format!(
            "{} holds no {name}: remove that directory and run this again",
            root.display()
        )
    };
    let program = root.join(program.path);
    let loader = setup::find_file(&root, LOADER).with_context(|| missing(LOADER))?;
    let directory = loader.parent().context("the loader has no directory")?;
    let libraries = root.join("usr/lib/aarch64-linux-gnu");
    let mut command = if cfg!(target_arch = "aarch64") {
        Command::new(&loader)
    } else {
        let mut command = Command::new(setup::qemu_user(lab)?);
        command.arg(&loader);
        command
    };
    let output = command
        .arg("--library-path")
        .arg(format!("{}:{}", libraries.display(), directory.display()))
        .arg("--list")
        .arg(&program)
        .output()
        .context("cannot run arm64's dynamic loader")?;
    ensure!(
        output.status.success(),
        "arm64's dynamic loader cannot list what {} needs: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut files = vec![
        (target.to_owned(), read(&program)?),
        (format!("{LIBRARIES}/{LOADER}"), read(&loader)?),
    ];
    for (name, path) in parse_list(&String::from_utf8_lossy(&output.stdout))? {
        files.push((format!("{LIBRARIES}/{name}"), read(&path)?));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The package and its libraries; what else it depends on is for installing it (debconf, perl).
fn unpacked(lab: &Lab, package: &str) -> Result<PathBuf> {
    let directory = lab.directory(package)?;
    let Some(_exclusive) = setup::to_be_made(lab, &directory)? else {
        return Ok(directory);
    };
    // Debian 13 has 2.0.29. What is compared with is the newest that Debian has.
    let apt = Apt::open(lab, apt::FORKY, "arm64")?;
    apt.update(false)?;
    lab::fresh_directory(&directory)?;
    let mut queue = vec![package.to_owned()];
    let mut seen = queue.clone();
    let mut names = String::new();
    while let Some(name) = queue.pop() {
        let versions = apt.versions(&name)?;
        let package = versions
            .first()
            .with_context(|| format!("the archive has no package {name}"))?;
        let file = apt.download(package)?;
        apt::unpack(&file, &directory)?;
        apt.discard_downloads()?;
        names.push_str(&format!("{} {}\n", package.name, package.version));
        for dependency in package.depends.iter().filter(|name| is_library(name)) {
            if !seen.contains(dependency) {
                seen.push(dependency.clone());
                queue.push(dependency.clone());
            }
        }
    }
    setup::write_stamp(&directory, &names)?;
    Ok(directory)
}

fn is_library(package: &str) -> bool {
    package.starts_with("lib") || package.starts_with("zlib")
}

/// Names and paths in what the loader prints, `name => path (address)` by line. Lines without an
/// arrow are the kernel's own object and the loader.
fn parse_list(text: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        let Some((name, path)) = line.trim().split_once(" => ") else {
            continue;
        };
        if name.ends_with(LOADER) {
            continue;
        }
        let Some((path, _)) = path.rsplit_once(" (0x") else {
            bail!("the program needs {name}, which was not unpacked: {path}");
        };
        libraries.push((name.to_owned(), PathBuf::from(path)));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007f0000)\n\
                    \tlibz.so.1 => /a b/libz.so.1 (0x0000004001)\n\
                    \t/lib/ld-linux-aarch64.so.1 => /a b/ld-linux-aarch64.so.1 (0x0000004000)\n";
        assert_eq!(
            parse_list(text).unwrap(),
            [("libz.so.1".to_owned(), PathBuf::from("/a b/libz.so.1"))]
        );
        let error = parse_list("\tlibz.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libz.so.1"), "{error}");
    }

    #[test]
    fn only_libraries_are_followed() {
        assert!(is_library("libxenctrl4.20") && is_library("zlib1g"));
        assert!(!is_library("debconf") && !is_library("dpkg"));
    }
}
