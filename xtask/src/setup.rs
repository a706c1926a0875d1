//! Makes a fresh machine ready: kernels, busybox, QEMU, the arm64 compiler and linker.
//!
//! Problem: the tests need five Debian kernels of another architecture, an emulator newer than the
//! host's and a cross toolchain, on a machine that has a C compiler and Rust. Choice: unpack all of
//! it below `target/`; nothing is installed, so no rights are needed and nothing is left behind.
//! Each part has a stamp that is written last, so a set-up that was interrupted goes on where it
//! stopped and a set-up that is complete takes no time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Apt, Package, Release};
use crate::kernels;
use crate::lab::{self, Exclusive, Lab};
use crate::toolchain::{self, Rust};

/// Written last into the directory of a finished part.
const STAMP: &str = ".complete";

/// A kernel that Debian ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelSource {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    release: Release,
    /// The package that always depends on the newest kernel of its series.
    meta: &'static str,
    /// The granule of its page tables.
    pub(crate) page_kb: u32,
}

/// The kernels of the matrix. ABI names change with every update, so they are looked up.
pub(crate) const KERNELS: &[KernelSource] = &[
    KernelSource {
        name: "5.10",
        release: apt::BULLSEYE,
        meta: "linux-image-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "6.1",
        release: apt::BOOKWORM,
        meta: "linux-image-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "6.12",
        release: apt::TRIXIE,
        meta: "linux-image-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "7.3",
        release: apt::TRIXIE_BACKPORTS,
        meta: "linux-image-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "6.12-16k",
        release: apt::TRIXIE,
        meta: "linux-image-arm64-16k",
        page_kb: 16,
    },
];

/// Kernels that only some rows need; `setup` leaves them out. Debian's arm64 kernels ignore memory that
/// is added by ACPI (no `CONFIG_ACPI_HOTPLUG_MEMORY`); those for clouds take it.
const SPECIAL_KERNELS: &[KernelSource] = &[
    KernelSource {
        name: "5.10-cloud",
        release: apt::BULLSEYE,
        meta: "linux-image-cloud-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "6.1-cloud",
        release: apt::BOOKWORM,
        meta: "linux-image-cloud-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "6.12-cloud",
        release: apt::TRIXIE,
        meta: "linux-image-cloud-arm64",
        page_kb: 4,
    },
    KernelSource {
        name: "7.3-cloud",
        release: apt::TRIXIE_BACKPORTS,
        meta: "linux-image-cloud-arm64",
        page_kb: 4,
    },
];

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Its name on the command line.
    pub(crate) name: String,
    /// Package version.
    pub(crate) version: String,
    /// The file.
    pub(crate) image: PathBuf,
    /// The granule of its page tables.
    pub(crate) page_kb: u32,
}

/// Whether a part is finished, and what its stamp says.
pub(crate) fn stamp(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join(STAMP)).ok()
}

/// Marks a part as finished.
pub(crate) fn write_stamp(directory: &Path, text: &str) -> Result<()> {
    lab::write_whole(&directory.join(STAMP), text.as_bytes())
}

/// The right to make a part, if it still has to be made when this process is the only one that
/// changes the lab.
pub(crate) fn to_be_made(lab: &Lab, directory: &Path) -> Result<Option<Exclusive>> {
    if stamp(directory).is_some() {
        return Ok(None);
    }
    let exclusive = lab.exclusive()?;
    Ok(stamp(directory).is_none().then_some(exclusive))
}

fn source(name: &str) -> Result<&'static KernelSource> {
    let mut all = KERNELS.iter().chain(SPECIAL_KERNELS);
    all.find(|kernel| kernel.name == name)
        .with_context(|| match known_name(name) {
            Ok(_) => format!("the kernel {name} is built here, and has no package"),
            Err(error) => error.to_string(),
        })
}

/// A kernel's name, if there is one of that name.
pub(crate) fn known_name(name: &str) -> Result<&'static str> {
    let debian = KERNELS.iter().chain(SPECIAL_KERNELS);
    let built = kernels::RECIPES.iter().map(|recipe| recipe.name);
    let names: Vec<_> = debian.map(|kernel| kernel.name).chain(built).collect();
    let known = names.iter().copied().find(|known| *known == name);
    known.with_context(|| {
        format!(
            "no kernel is called '{name}'; there are: {}",
            names.join(", ")
        )
    })
}

/// A kernel by its name, downloaded or built where it is not there yet.
pub(crate) fn kernel(lab: &Lab, name: &str) -> Result<Kernel> {
    if let Some(recipe) = kernels::recipe(name) {
        return kernels::kernel(lab, recipe);
    }
    let source = source(name)?;
    let directory = lab.directory(&format!("kernels/{name}"))?;
    let version = match stamp(&directory) {
        Some(version) => version,
        None => fetch_kernel(lab, source, &directory)
            .with_context(|| format!("cannot get the kernel {name}"))?,
    };
    Ok(Kernel {
        name: name.to_owned(),
        version,
        image: directory.join("Image"),
        page_kb: source.page_kb,
    })
}

fn fetch_kernel(lab: &Lab, source: &KernelSource, directory: &Path) -> Result<String> {
    let _exclusive = lab.exclusive()?;
    // Another process may have got it meanwhile.
    if let Some(version) = stamp(directory) {
        return Ok(version);
    }
    let apt = Apt::open(lab, source.release, "arm64")?;
    apt.update(false)?;
    let image = [("vmlinuz", "Image")];
    let version = match fetch_kernel_once(&apt, source, directory, &image) {
        Ok(version) => version,
        // The archive moves on below an index that is hours old.
        Err(error) => {
            println!("{}: {error:#}; once more with a new index", source.name);
            apt.update(true)?;
            fetch_kernel_once(&apt, source, directory, &image)?
        }
    };
    write_stamp(directory, &version)?;
    Ok(version)
}

/// Modules of a kernel, as they are in the kernel's package, which must be the same version: the directory that holds
/// them, each as `NAME.ko`.
pub(crate) fn modules(lab: &Lab, name: &str, modules: &[&str]) -> Result<PathBuf> {
    let file_names: Vec<String> = modules
        .iter()
        .map(|module| format!("{module}.ko"))
        .collect();
    let file_names: Vec<&str> = file_names.iter().map(String::as_str).collect();
    files_of_kernel(
        lab,
        name,
        &format!("modules/{}", modules.join("+")),
        &file_names,
    )
}

/// A device tree that comes with a kernel, by the name of its file.
pub(crate) fn device_tree(lab: &Lab, name: &str, file_name: &str) -> Result<PathBuf> {
    let directory = files_of_kernel(lab, name, &format!("dtbs/{file_name}"), &[file_name])?;
    Ok(directory.join(file_name))
}

/// Device trees that come with a kernel, by the names of their files: the directory that holds them.
pub(crate) fn device_trees(lab: &Lab, name: &str, file_names: &[&str]) -> Result<PathBuf> {
    files_of_kernel(lab, name, "device-trees", file_names)
}

/// The files of a kernel's package whose names start with these, kept in `part` of the kernel's directory.
fn files_of_kernel(lab: &Lab, name: &str, part: &str, file_names: &[&str]) -> Result<PathBuf> {
    let kernel = kernel(lab, name)?;
    let directory = lab.directory(&format!("kernels/{name}/{part}"))?;
    if let Some(_exclusive) = to_be_made(lab, &directory)? {
        let source = source(name)?;
        let apt = Apt::open(lab, source.release, "arm64")?;
        apt.update(false)?;
        let files: Vec<(&str, &str)> = file_names.iter().map(|name| (*name, *name)).collect();
        let version = fetch_kernel_once(&apt, source, &directory, &files).with_context(|| {
            format!("cannot get {} of the kernel {name}", file_names.join(", "))
        })?;
        if version != kernel.version {
            bail!(
                "the archive has {name} {version} now, the lab {}: remove {} and run set-up again",
                kernel.version,
                lab.path(&format!("kernels/{name}")).display()
            );
        }
        write_stamp(&directory, &version)?;
    }
    Ok(directory)
}

/// Tries the versions from the newest on: an index can name packages that its mirror lacks. Of the
/// package `files` are kept: the start of each name in it, and its name here.
fn fetch_kernel_once(
    apt: &Apt,
    source: &KernelSource,
    directory: &Path,
    files: &[(&str, &str)],
) -> Result<String> {
    let mut reasons = Vec::new();
    for meta in apt.versions(source.meta)? {
        match fetch_kernel_version(apt, &meta, directory, files) {
            Ok(version) => {
                apt.discard_downloads()?;
                return Ok(version);
            }
            Err(error) => reasons.push(format!("{} {}: {error:#}", meta.name, meta.version)),
        }
    }
    bail!(
        "no version of {} could be had: {}",
        source.meta,
        reasons.join("; ")
    )
}

fn fetch_kernel_version(
    apt: &Apt,
    meta: &Package,
    directory: &Path,
    files: &[(&str, &str)],
) -> Result<String> {
    let patterns: Vec<String> = files.iter().map(|(name, _)| format!("*/{name}*")).collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    // Newer packages split the kernel: linux-image-7.3... depends on linux-binary-7.3...,
    // and its modules may be in a package beside that.
    let parts: &[&str] = if files.iter().any(|(name, _)| name.ends_with(".ko")) {
        &["linux-image-", "linux-binary-", "linux-modules-"]
    } else {
        &["linux-image-", "linux-binary-"]
    };
    let mut queue: Vec<String> = kernel_dependencies(meta, parts);
    let mut seen = queue.clone();
    while let Some(name) = queue.pop() {
        let versions = apt.versions(&name)?;
        let package = versions
            .iter()
            .find(|package| package.version == meta.version)
            .or(versions.first())
            .with_context(|| format!("{} needs {name}, which the archive lacks", meta.name))?;
        let file = apt.download(package)?;
        let unpacked = directory.join("unpacked");
        lab::fresh_directory(&unpacked)?;
        apt::unpack_members(&file, &unpacked, &patterns)?;
        let found: Vec<_> = files
            .iter()
            .filter_map(|(name, kept)| Some((find_file(&unpacked, name)?, kept)))
            .collect();
        if found.len() == files.len() {
            for (file, kept) in found {
                fs::rename(&file, directory.join(kept))
                    .with_context(|| format!("cannot move {}", file.display()))?;
            }
            fs::remove_dir_all(&unpacked).context("cannot remove what was unpacked")?;
            return Ok(package.version.clone());
        }
        for dependency in kernel_dependencies(package, parts) {
            if !seen.contains(&dependency) {
                seen.push(dependency.clone());
                queue.push(dependency);
            }
        }
    }
    bail!(
        "no package below {} {} holds {}",
        meta.name,
        meta.version,
        patterns.join(" and ")
    )
}

fn kernel_dependencies(package: &Package, parts: &[&str]) -> Vec<String> {
    package
        .depends
        .iter()
        .filter(|name| {
            parts.iter().any(|prefix| {
                name.strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
            })
        })
        .cloned()
        .collect()
}

/// The first regular file below a directory whose name starts so.
pub(crate) fn find_file(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            if let Some(found) = find_file(&entry.path(), prefix) {
                return Some(found);
            }
        } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with(prefix) {
            return Some(entry.path());
        }
    }
    None
}

/// The static arm64 busybox.
pub(crate) fn busybox(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.directory("busybox")?;
    let file = directory.join("busybox");
    if let Some(_exclusive) = to_be_made(lab, &directory)? {
        let apt = Apt::open(lab, apt::TRIXIE, "arm64")?;
        apt.update(false)?;
        let package = fetch_one(&apt, "busybox-static", &directory)?;
        let unpacked = find_file(&directory.join("unpacked"), "busybox")
            .context("the package busybox-static holds no busybox")?;
        fs::rename(&unpacked, &file).context("cannot move busybox")?;
        write_stamp(&directory, &package.version)?;
    }
    Ok(file)
}

/// QEMU for arm64 user programs, static.
pub(crate) fn qemu_user(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.directory("qemu-user")?;
    let file = directory.join("qemu-aarch64-static");
    if let Some(_exclusive) = to_be_made(lab, &directory)? {
        let apt = Apt::open(lab, apt::TRIXIE, &apt::host_architecture()?)?;
        apt.update(false)?;
        // Since Debian 13 the static programs are in the package qemu-user.
        let package = fetch_one(&apt, "qemu-user", &directory)?;
        let unpacked = find_file(&directory.join("unpacked"), "qemu-aarch64")
            .context("the package qemu-user holds no qemu-aarch64")?;
        fs::rename(&unpacked, &file).context("cannot move qemu-aarch64")?;
        fs::remove_dir_all(directory.join("unpacked")).context("cannot remove leftovers")?;
        write_stamp(&directory, &package.version)?;
    }
    Ok(file)
}

/// UEFI for QEMU's arm64 machine.
pub(crate) fn firmware(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.directory("firmware")?;
    let file = directory.join("QEMU_EFI.fd");
    if let Some(_exclusive) = to_be_made(lab, &directory)? {
        // For every architecture the same package.
        let apt = Apt::open(lab, apt::TRIXIE, "arm64")?;
        apt.update(false)?;
        let package = fetch_one(&apt, "qemu-efi-aarch64", &directory)?;
        let unpacked = find_file(&directory.join("unpacked"), "QEMU_EFI.fd")
            .context("the package qemu-efi-aarch64 holds no QEMU_EFI.fd")?;
        // The path in the package may be a link to it.
        fs::copy(&unpacked, &file).context("cannot copy the firmware")?;
        fs::remove_dir_all(directory.join("unpacked")).context("cannot remove leftovers")?;
        write_stamp(&directory, &package.version)?;
    }
    Ok(file)
}

/// systemd's EFI stub for arm64, the program of a unified kernel image.
pub(crate) fn efi_stub(lab: &Lab) -> Result<PathBuf> {
    const NAME: &str = "linuxaa64.efi.stub";
    let directory = lab.directory("efi-stub")?;
    let file = directory.join(NAME);
    if let Some(_exclusive) = to_be_made(lab, &directory)? {
        let apt = Apt::open(lab, apt::TRIXIE, "arm64")?;
        apt.update(false)?;
        let package = fetch_one(&apt, "systemd-boot-efi", &directory)?;
        let unpacked = find_file(&directory.join("unpacked"), NAME)
            .with_context(|| format!("the package systemd-boot-efi holds no {NAME}"))?;
        fs::rename(&unpacked, &file).context("cannot move the EFI stub")?;
        fs::remove_dir_all(directory.join("unpacked")).context("cannot remove leftovers")?;
        write_stamp(&directory, &package.version)?;
    }
    Ok(file)
}

/// The newest version of a package that can be had, unpacked into `unpacked`.
pub(crate) fn fetch_one(apt: &Apt, name: &str, directory: &Path) -> Result<Package> {
    let unpacked = directory.join("unpacked");
    let mut reason = None;
    for package in apt.versions(name)? {
        match apt.download(&package) {
            Ok(file) => {
                lab::fresh_directory(&unpacked)?;
                apt::unpack(&file, &unpacked)?;
                apt.discard_downloads()?;
                return Ok(package);
            }
            Err(error) => reason = Some(error),
        }
    }
    Err(reason.unwrap_or_else(|| anyhow::anyhow!("the archive has no package {name}")))
}

/// Packages with their closure, unpacked into one directory of the lab. `leave_out` names packages
/// that the host brings itself.
pub(crate) fn closure(
    lab: &Lab,
    part: &str,
    apt: &Apt,
    packages: &[&str],
    leave_out: &[&str],
) -> Result<PathBuf> {
    let directory = lab.directory(part)?;
    if stamp(&directory).is_some() {
        return Ok(directory);
    }
    apt.update(false)?;
    let files = match apt.download_closure(part, packages) {
        Ok(files) => files,
        Err(error) => {
            println!("{part}: {error:#}; once more with a new index");
            apt.update(true)?;
            apt.download_closure(part, packages)?
        }
    };
    lab::fresh_directory(&directory)?;
    let mut names = String::new();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let package = name.split('_').next().unwrap_or_default();
        if leave_out.contains(&package) {
            continue;
        }
        apt::unpack(&file, &directory)?;
        names.push_str(&name);
        names.push('\n');
    }
    apt.discard_downloads()?;
    write_stamp(&directory, &names)?;
    println!("{part}: {} packages unpacked", names.lines().count());
    Ok(directory)
}

/// `cargo xtask setup`: everything that the demo and the tests need.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    for source in KERNELS {
        let kernel = kernel(lab, source.name)?;
        println!(
            "kernel {}: {}, {}K pages, {}",
            kernel.name,
            kernel.version,
            kernel.page_kb,
            kernel.image.display()
        );
    }
    println!("busybox: {}", busybox(lab)?.display());
    println!("UEFI: {}", firmware(lab)?.display());
    println!("arm64 programs run with: {}", qemu_user(lab)?.display());
    println!(
        "arm64 machines run with: {}",
        toolchain::qemu_system(lab)?.words.join(" ")
    );
    println!("arm64 programs are built with: {}", Rust::find(lab)?);
    Ok(())
}
