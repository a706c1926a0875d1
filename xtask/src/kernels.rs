//! `cargo xtask kernel`: kernels that Debian does not have, built from Debian's source of Linux.
//!
//! Problem: Debian's arm64 kernels have pages of 4 and 16 KiB, huge pages, `kexec_load(2)` and no
//! `kexec_file_load(2)`, and none is an EFI zboot file. Machines have all of the others, and a test with a
//! header made by hand says nothing of them. Choice: the package that holds Debian's source, verified by apt,
//! unpacked below the lab, and built with the lab's cross compiler from almost nothing (`allnoconfig`) and a
//! fragment that is checked in (`xtask/kernels/*.config`), so that a build takes minutes. A line of a fragment
//! that Kconfig drops is an error, not another kernel.
//!
//! Rejected: Debian's own configuration with a few changes (an hour and several gigabytes for each); kernels
//! of other distributions (another archive to trust, and none has zboot, 64 KiB and no huge pages at once);
//! finished kernels in the repository (nobody could check them).
//!
//! A kernel is built once for each fragment, version of the source and toolchain, and only when a row, the
//! demo or a benchmark asks for it.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::initramfs;
use crate::lab::{self, Lab};
use crate::progress::{Progress, megabytes};
use crate::setup::{self, Kernel};
use crate::toolchain;

/// The package of the source. A fixed series: the newest one may need other fragments.
const SOURCE_PACKAGE: &str = "linux-source-7.3";
/// Where it is unpacked, below the lab.
const SOURCE_PART: &str = "kernel-source";
/// Parts of it that no fragment needs, half of it: tar's patterns.
const LEFT_OUT: &[&str] = &[
    "*/Documentation/*/*",
    "*/drivers/gpu/drm/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/testing/*",
];
/// What a build runs besides the compilers: packages, and the programs in them.
const TOOLS_PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "bsdextrautils",
    "flex",
    "gzip",
    "m4",
    "make",
    "xz-utils",
    "zstd",
];
const TOOLS: [(&str, &str); 9] = [
    ("bc", "usr/bin/bc"),
    ("bison", "usr/bin/bison"),
    ("flex", "usr/bin/flex"),
    ("gzip", "bin/gzip"),
    ("hexdump", "usr/bin/hexdump"),
    ("m4", "usr/bin/m4"),
    ("make", "usr/bin/make"),
    ("xz", "usr/bin/xz"),
    ("zstd", "usr/bin/zstd"),
];
const TOOLS_PART: &str = "kernel-tools";
/// The parts of binutils that a build calls, beside the compiler.
const BINUTILS: [&str; 8] = [
    "ar", "as", "ld", "nm", "objcopy", "objdump", "readelf", "strip",
];
/// How often the log is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How much of the log a failure shows.
const LOG_LINES: usize = 20;
/// The fragment that all share.
const COMMON: &str = include_str!("../kernels/common.config");

/// What is made of a configuration.
#[derive(Debug, Clone, Copy)]
struct Product {
    /// More lines of configuration.
    config: &'static str,
    /// What make is asked for.
    target: &'static str,
    /// The file, below the build's directory.
    made: &'static str,
    /// Its name in the lab.
    kept: &'static str,
}

const IMAGE: Product = Product {
    config: "",
    target: "Image",
    made: "arch/arm64/boot/Image",
    kept: "Image",
};

const fn zboot(config: &'static str, kept: &'static str) -> Product {
    Product {
        config,
        target: "vmlinuz.efi",
        made: "arch/arm64/boot/vmlinuz.efi",
        kept,
    }
}

/// The kernel as it is linked, before it becomes an `Image`.
pub(crate) const VMLINUX: &str = "vmlinux";
/// EFI zboot, by compression.
pub(crate) const ZBOOT_GZIP: &str = "vmlinuz-gzip.efi";
pub(crate) const ZBOOT_ZSTD: &str = "vmlinuz-zstd.efi";

/// A kernel that is built here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it is for, in a few words.
    pub(crate) purpose: &'static str,
    pub(crate) page_kb: u32,
    config: &'static str,
    products: &'static [Product],
}

/// The kernel of which zboot files are made.
pub(crate) const ZBOOT_KERNEL: &str = "7.3-zboot";

/// All of them.
pub(crate) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "7.3-64k",
        purpose: "pages of 64 KiB",
        page_kb: 64,
        config: include_str!("../kernels/64k.config"),
        products: &[IMAGE],
    },
    Recipe {
        name: "7.3-file",
        purpose: "kexec_file_load(2), with CMA where cma= sets some aside; lockdown",
        page_kb: 4,
        config: include_str!("../kernels/file.config"),
        products: &[IMAGE],
    },
    Recipe {
        name: "7.3-nohuge",
        purpose: "no huge pages",
        page_kb: 4,
        config: include_str!("../kernels/nohuge.config"),
        products: &[IMAGE],
    },
    Recipe {
        name: ZBOOT_KERNEL,
        purpose: "EFI zboot, compressed with gzip and with zstd; vmlinux",
        page_kb: 4,
        config: include_str!("../kernels/zboot.config"),
        products: &[
            IMAGE,
            Product {
                config: "",
                target: "vmlinux",
                made: "vmlinux",
                kept: VMLINUX,
            },
            zboot("", ZBOOT_GZIP),
            zboot("CONFIG_KERNEL_ZSTD=y\n", ZBOOT_ZSTD),
        ],
    },
];

/// The recipe of this name.
pub(crate) fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

impl Recipe {
    /// The configuration for one of the products.
    fn fragment(&self, product: &Product) -> String {
        [COMMON, self.config, product.config].concat()
    }

    /// What a kernel is built from besides the source: changes with the fragments, the products and the tools.
    fn key(&self, tools: &str) -> String {
        let mut text = tools.to_owned();
        for product in self.products {
            text.push_str(&self.fragment(product));
            text.push_str(product.target);
            text.push_str(product.kept);
        }
        initramfs::sha256(text.as_bytes())
    }
}

/// A kernel, built where it is not there yet, or was built from something else.
pub(crate) fn kernel(lab: &Lab, recipe: &Recipe) -> Result<Kernel> {
    let directory = lab.directory(&format!("kernels/{}", recipe.name))?;
    let tools = Tools::fetch(lab)?;
    let key = recipe.key(&tools.stamp);
    // The source may have been removed, to save room: then what was built of it is taken as it is.
    let source_version = setup::stamp(&lab.path(SOURCE_PART));
    let built = || {
        let text = setup::stamp(&directory)?;
        let (version, built_key) = text.split_once('\n')?;
        let is_current = source_version
            .as_ref()
            .is_none_or(|source| source == version);
        (built_key == key && is_current).then(|| version.to_owned())
    };
    let version = match built() {
        Some(version) => version,
        None => {
            let _exclusive = lab.exclusive_for(&format!("kernel {}", recipe.name))?;
            match built() {
                Some(version) => version,
                None => {
                    let version = build(lab, &tools, recipe, &directory)
                        .with_context(|| format!("cannot build the kernel {}", recipe.name))?;
                    setup::write_stamp(&directory, &format!("{version}\n{key}"))?;
                    version
                }
            }
        }
    };
    Ok(Kernel {
        name: recipe.name.to_owned(),
        version: format!("{version}, configured as {}", recipe.name),
        image: directory.join(IMAGE.kept),
        page_kb: recipe.page_kb,
    })
}

/// What a build runs.
#[derive(Debug)]
struct Tools {
    /// Scripts that start them.
    bin: PathBuf,
    root: PathBuf,
    /// What the compiler's programs are called, but for their last word.
    cross: String,
    /// Which versions these are.
    stamp: String,
}

impl Tools {
    fn fetch(lab: &Lab) -> Result<Self> {
        let root = lab.path(TOOLS_PART);
        if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
            let apt = Apt::open(lab, apt::BOOKWORM, &apt::host_architecture()?)?;
            // The host's own libc is used: it is at least as new.
            setup::closure(lab, TOOLS_PART, &apt, TOOLS_PACKAGES, &["libc6"])?;
        }
        let mut bin = PathBuf::new();
        for (name, program) in TOOLS {
            let script = toolchain::wrapper(lab, &format!("kernel/{name}"), &root, program, "")?;
            bin = script.parent().map(Path::to_path_buf).unwrap_or_default();
        }
        let mut cross = String::new();
        if cfg!(not(target_arch = "aarch64")) {
            let compiler = toolchain::linker(lab)?;
            for program in BINUTILS {
                toolchain::binutils(lab, program)?;
            }
            let text = compiler.display().to_string();
            let prefix = text.strip_suffix("gcc");
            prefix
                .context("the cross compiler is not called gcc")?
                .clone_into(&mut cross);
        }
        let stamps = [TOOLS_PART, "cross"].map(|part| setup::stamp(&lab.path(part)));
        Ok(Self {
            bin,
            root,
            cross,
            stamp: stamps.into_iter().flatten().collect(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nice");
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .arg(self.bin.join(program))
            .env("PATH", format!("{}:{path}", self.bin.display()))
            // Both were built to be at their usual place.
            .env("M4", self.bin.join("m4"))
            .env("BISON_PKGDATADIR", self.root.join("usr/share/bison"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE"] {
            command.env_remove(variable);
        }
        command
    }

    /// make, in the source for a build's directory.
    fn make(&self, source: &Path, directory: &Path) -> Command {
        let mut command = self.command("make");
        command
            .arg("-C")
            .arg(source)
            .arg(format!("O={}", directory.display()))
            .arg("ARCH=arm64")
            .arg(format!("CROSS_COMPILE={}", self.cross))
            // The same bytes for the same source, and no name of this machine in them.
            .args(["KBUILD_BUILD_USER=kleap", "KBUILD_BUILD_HOST=lab"])
            .args(["KBUILD_BUILD_VERSION=1", "KBUILD_BUILD_TIMESTAMP=@0"]);
        command
    }
}

/// Debian's source, unpacked, and its version.
fn source(lab: &Lab, tools: &Tools) -> Result<(PathBuf, String)> {
    let directory = lab.directory(SOURCE_PART)?;
    let tree = directory.join("tree");
    if let Some(_exclusive) = setup::to_be_made(lab, &directory)? {
        let apt = Apt::open(lab, apt::TRIXIE_BACKPORTS, "arm64")?;
        apt.update(false)?;
        let package = setup::fetch_one(&apt, SOURCE_PACKAGE, &directory).with_context(|| {
            format!("cannot get {SOURCE_PACKAGE} from Debian 13's backports (a series is removed when it is old)")
        })?;
        let unpacked = directory.join("unpacked");
        let archive = setup::find_file(&unpacked, &format!("{SOURCE_PACKAGE}.tar"))
            .with_context(|| format!("the package {SOURCE_PACKAGE} holds no archive"))?;
        lab::fresh_directory(&tree)?;
        let progress = Progress::start(format!("unpacking {SOURCE_PACKAGE}"));
        let mut command = Command::new("tar");
        command
            .arg("--extract")
            .arg(format!(
                "--use-compress-program={}",
                tools.bin.join("xz").display()
            ))
            .arg(format!("--file={}", archive.display()))
            .arg(format!("--directory={}", tree.display()))
            .arg("--strip-components=1")
            .args(LEFT_OUT.iter().map(|part| format!("--exclude={part}")));
        let status = command.status().context("cannot run tar")?;
        ensure!(
            status.success(),
            "cannot unpack {}: {status}",
            archive.display()
        );
        progress.finish("done");
        fs::remove_dir_all(&unpacked).context("cannot remove what was unpacked")?;
        setup::write_stamp(&directory, &package.version)?;
    }
    let version = setup::stamp(&directory).context("the source is not complete")?;
    Ok((tree, version))
}

fn build(lab: &Lab, tools: &Tools, recipe: &Recipe, directory: &Path) -> Result<String> {
    let (source, version) = source(lab, tools)?;
    let work = lab.directory(&format!("kernel-build/{}", recipe.name))?;
    // One that was interrupted goes on: make knows what is done.
    let begun = format!("{version}\n{}", recipe.key(&tools.stamp));
    if setup::stamp(&work).is_none_or(|text| text != begun) {
        lab::fresh_directory(&work)?;
        setup::write_stamp(&work, &begun)?;
    }
    let log = lab
        .directory("logs")?
        .join(format!("kernel-{}.log", recipe.name));
    let mut text = String::new();
    for product in recipe.products {
        let label = format!("{} of {} {version}", product.kept, recipe.name);
        let mut progress = Progress::start(label);
        let result = make_product(tools, recipe, product, &source, &work, &mut |lines| {
            progress.update(&format!("{lines} steps"));
        });
        text.push_str(&fs::read_to_string(work.join("log")).unwrap_or_default());
        lab::write_whole(&log, text.as_bytes())?;
        if let Err(error) = result {
            progress.finish("failed");
            let lines: Vec<_> = text.lines().collect();
            let start = lines.len().saturating_sub(LOG_LINES);
            let end = lines.get(start..).unwrap_or_default().join("\n");
            bail!("{error:#}; the end of {}:\n{end}", log.display());
        }
        let kept = directory.join(product.kept);
        fs::copy(work.join(product.made), &kept)
            .with_context(|| format!("cannot copy to {}", kept.display()))?;
        let size_bytes = fs::metadata(&kept).map(|metadata| metadata.len());
        progress.finish(&megabytes(size_bytes.unwrap_or_default()));
    }
    let config = directory.join("config");
    fs::copy(work.join(".config"), &config)
        .with_context(|| format!("cannot copy to {}", config.display()))?;
    fs::remove_dir_all(&work).context("cannot remove what the build left")?;
    Ok(version)
}

fn make_product(
    tools: &Tools,
    recipe: &Recipe,
    product: &Product,
    source: &Path,
    work: &Path,
    on_lines: &mut dyn FnMut(usize),
) -> Result<()> {
    let fragment = recipe.fragment(product);
    let fragment_file = work.join("fragment");
    fs::write(&fragment_file, &fragment).context("cannot write a fragment")?;
    let log = fs::File::create(work.join("log")).context("cannot create a log")?;
    let mut configure = tools.make(source, work);
    configure
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &fragment_file);
    run_logged(configure, &log, work, on_lines)?;
    let config = fs::read_to_string(work.join(".config")).context("no configuration was made")?;
    let dropped = dropped_lines(&fragment, &config);
    ensure!(
        dropped.is_empty(),
        "Kconfig does not take: {}",
        dropped.join(", ")
    );
    let mut make = tools.make(source, work);
    let jobs = thread::available_parallelism().map_or(1, NonZero::get);
    make.arg(format!("-j{jobs}")).arg(product.target);
    run_logged(make, &log, work, on_lines)
}

fn run_logged(
    mut command: Command,
    log: &fs::File,
    work: &Path,
    on_lines: &mut dyn FnMut(usize),
) -> Result<()> {
    let mut child = command
        .stdout(log.try_clone().context("cannot share a log")?)
        .stderr(log.try_clone().context("cannot share a log")?)
        .spawn()
        .context("cannot run make")?;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for make")? {
            break status;
        }
        let lines = fs::read(work.join("log"))
            .map(|text| text.iter().filter(|byte| **byte == b'\n').count());
        on_lines(lines.unwrap_or_default());
        thread::sleep(POLL_INTERVAL);
    };
    ensure!(status.success(), "make failed ({status})");
    Ok(())
}

/// Lines of a fragment that a configuration does not have.
fn dropped_lines<'fragment>(fragment: &'fragment str, config: &str) -> Vec<&'fragment str> {
    let has = |wanted: &dyn Fn(&str) -> bool| config.lines().any(wanted);
    fragment
        .lines()
        .filter(|line| {
            let unset = line
                .strip_prefix("# CONFIG_")
                .and_then(|rest| rest.strip_suffix(" is not set"));
            match unset {
                // One that cannot be set at all is not mentioned.
                Some(name) => has(&|have| {
                    have.strip_prefix("CONFIG_")
                        .and_then(|rest| rest.strip_prefix(name))
                        .is_some_and(|rest| rest.starts_with('='))
                }),
                None => line.starts_with("CONFIG_") && !has(&|have| have == *line),
            }
        })
        .collect()
}

/// `cargo xtask kernel`.
pub(crate) fn run(lab: &Lab, names: &[String]) -> Result<()> {
    let mut wanted = Vec::new();
    for name in names {
        wanted.push(recipe(name).with_context(|| {
            let names: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
            format!(
                "no kernel that is built here is called '{name}'; there are: {}",
                names.join(", ")
            )
        })?);
    }
    if names.is_empty() {
        wanted.extend(RECIPES);
    }
    for recipe in wanted {
        let kernel = kernel(lab, recipe)?;
        println!(
            "kernel {}: {}; {}K pages; {}",
            kernel.name,
            recipe.purpose,
            kernel.page_kb,
            kernel.image.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_dropped_is_found() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=9\nCONFIG_DD=y\n";
        let dropped = |fragment| dropped_lines(fragment, config);
        assert!(
            dropped(
                "# what\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=9\n# CONFIG_D is not set\n"
            )
            .is_empty()
        );
        assert_eq!(
            dropped("CONFIG_B=y\nCONFIG_C=8\n# CONFIG_A is not set\n"),
            ["CONFIG_B=y", "CONFIG_C=8", "# CONFIG_A is not set"]
        );
        assert_eq!(
            dropped("# CONFIG_DD is not set\nCONFIG_D=y\n"),
            ["# CONFIG_DD is not set", "CONFIG_D=y"]
        );
    }

    #[test]
    fn what_a_kernel_is_built_from_is_in_its_key() {
        let keys: Vec<_> = RECIPES.iter().map(|recipe| recipe.key("tools")).collect();
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
            assert_ne!(*key, RECIPES[index].key("other tools"));
        }
        let mut other = RECIPES[0];
        other.config = "CONFIG_ARM64_64K_PAGES=y\n";
        assert_ne!(other.key("tools"), keys[0]);
    }

    #[test]
    fn every_kernel_keeps_an_image() {
        for recipe in RECIPES {
            assert!(
                recipe
                    .products
                    .iter()
                    .any(|product| product.kept == IMAGE.kept)
            );
            assert!(recipe.name.starts_with("7.3-"));
        }
    }
}
