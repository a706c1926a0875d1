//! Programs of other releases and for other machines, run from where they were unpacked.
//!
//! - QEMU comes from Debian 13, which may be newer than the host: it is started through the dynamic
//!   loader it was unpacked with, so that it does not depend on the host's libc. One version
//!   everywhere also means that a row that fails here fails there.
//! - The cross linker comes from Debian 12: GCC finds its own parts relative to itself, so it needs
//!   no more than its libraries by `LD_LIBRARY_PATH`, and programs of an older release run on the
//!   libc of a newer one.
//! - arm64's Rust standard library comes from rustup, or, where rustup is absent or cannot reach its
//!   server, from Debian 12 (security) with the compiler it belongs to.
//!
//! Rejected: an arm64 sysroot made by `-Zbuild-std` (needs nightly), and rust-lld without GCC (the
//! crt files and libc.a would still have to come from Debian, and finding them is GCC's job).

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::lab::{self, Lab};
use crate::progress::Progress;
use crate::setup;

/// The target of the command and of the guest's helper.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Overrides the emulator: a program that is started as it is.
const QEMU_VARIABLE: &str = "KLEAP_QEMU";
/// Forces where arm64's standard library comes from: `rustup`, `debian` or `auto`.
const STD_VARIABLE: &str = "KLEAP_ARM64_STD";
/// Read by the relocator's build script.
const RELOCATOR_RUSTC_VARIABLE: &str = "KLEAP_RELOCATOR_RUSTC";
/// Read by the relocator's build script.
const RELOCATOR_LINKER_VARIABLE: &str = "KLEAP_RELOCATOR_LINKER";

/// How to start the emulator.
#[derive(Debug, Clone)]
pub(crate) struct QemuSystem {
    /// The program and its first arguments.
    pub(crate) words: Vec<String>,
}

/// Refuses a program of the user's that is no emulator, before anything is built.
pub(crate) fn check_qemu() -> Result<()> {
    let Ok(program) = env::var(QEMU_VARIABLE) else {
        return Ok(());
    };
    let said = Command::new(&program).arg("--version").output();
    let said = said.with_context(|| format!("{QEMU_VARIABLE}={program}: cannot start it"))?;
    ensure!(
        String::from_utf8_lossy(&said.stdout).contains("QEMU emulator"),
        "{QEMU_VARIABLE}={program}: no QEMU, by what it says to --version ({})",
        said.status
    );
    Ok(())
}

/// The emulator of whole arm64 machines.
pub(crate) fn qemu_system(lab: &Lab) -> Result<QemuSystem> {
    if let Ok(program) = env::var(QEMU_VARIABLE) {
        return Ok(QemuSystem {
            words: vec![program],
        });
    }
    let root = lab.path("qemu-system");
    if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
        let apt = Apt::open(lab, apt::TRIXIE, &apt::host_architecture()?)?;
        setup::closure(lab, "qemu-system", &apt, &["qemu-system-arm"], &[])?;
    }
    let libraries = root.join("usr/lib").join(multiarch());
    let loader = setup::find_file(&libraries, "ld-linux-").with_context(|| {
        format!(
            "no dynamic loader below {}: remove {} and run set-up again",
            libraries.display(),
            root.display()
        )
    })?;
    let words = [
        loader,
        PathBuf::from("--library-path"),
        libraries,
        root.join("usr/bin/qemu-system-aarch64"),
        PathBuf::from("-L"),
        root.join("usr/share/qemu"),
    ];
    let words = words
        .iter()
        .map(|word| word.display().to_string())
        .collect();
    Ok(QemuSystem { words })
}

/// systemd's `ukify`, which Debian 12 has not, with the Python that it came with: words of a command.
pub(crate) fn ukify(lab: &Lab) -> Result<Vec<String>> {
    let root = lab.path("ukify");
    if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
        let apt = Apt::open(lab, apt::TRIXIE, &apt::host_architecture()?)?;
        setup::closure(lab, "ukify", &apt, &["systemd-ukify"], &[])?;
    }
    let libraries = root.join("usr/lib").join(multiarch());
    let loader = setup::find_file(&libraries, "ld-linux-")
        .with_context(|| format!("no dynamic loader below {}", libraries.display()))?;
    let python = root.join("usr");
    let modules = python.join("lib/python3/dist-packages");
    let words = [
        // Debian 13's Python on Debian 12's libc would not start; and it looks for its library from where the
        // loader is.
        "env".to_owned(),
        format!("PYTHONHOME={}", python.display()),
        format!("PYTHONPATH={}", modules.display()),
        "PYTHONDONTWRITEBYTECODE=1".to_owned(),
        loader.display().to_string(),
        "--library-path".to_owned(),
        libraries.display().to_string(),
        python.join("bin/python3").display().to_string(),
        "-s".to_owned(),
        python.join("bin/ukify").display().to_string(),
    ];
    Ok(words.into())
}

/// Debian's name for the directory of this machine's libraries.
fn multiarch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "aarch64-linux-gnu"
    } else {
        "x86_64-linux-gnu"
    }
}

/// A linker for static arm64 programs.
pub(crate) fn linker(lab: &Lab) -> Result<PathBuf> {
    if cfg!(target_arch = "aarch64") {
        return Ok(PathBuf::from("cc"));
    }
    let root = lab.path("cross");
    if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
        let apt = Apt::open(lab, apt::BOOKWORM, &apt::host_architecture()?)?;
        let packages = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
        // The host's own libc is used: it is at least as new.
        setup::closure(lab, "cross", &apt, &packages, &["libc6"])?;
    }
    wrapper(
        lab,
        "aarch64-linux-gnu-gcc",
        &root,
        "usr/bin/aarch64-linux-gnu-gcc",
        "",
    )
}

/// A program of arm64's binutils.
pub(crate) fn binutils(lab: &Lab, program: &str) -> Result<PathBuf> {
    if cfg!(target_arch = "aarch64") {
        return Ok(PathBuf::from(program));
    }
    // Sees to it that they are there.
    linker(lab)?;
    let name = format!("aarch64-linux-gnu-{program}");
    let path = format!("usr/bin/{name}");
    wrapper(lab, &name, &lab.path("cross"), &path, "")
}

/// A script that starts an unpacked program with the libraries that were unpacked with it.
pub(crate) fn wrapper(
    lab: &Lab,
    name: &str,
    root: &Path,
    program: &str,
    arguments: &str,
) -> Result<PathBuf> {
    let path = lab.directory("bin")?.join(name);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).context("cannot create a directory for scripts")?;
    }
    let multiarch = multiarch();
    let root = root.display();
    let text = format!(
        "#!/bin/sh\n\
         # Written by cargo xtask setup.\n\
         root='{root}'\n\
         LD_LIBRARY_PATH=\"$root/usr/lib/{multiarch}:$root/lib/{multiarch}\" \\\n\
         exec \"$root/{program}\" {arguments} \"$@\"\n"
    );
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    lab::write_whole(&path, text.as_bytes())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))?;
    Ok(path)
}

/// A Rust compiler with arm64's standard library, and a linker for it.
#[derive(Debug, Clone)]
pub(crate) struct Rust {
    /// Another compiler than the one Cargo would use.
    rustc: Option<PathBuf>,
    linker: PathBuf,
    target_directory: PathBuf,
}

impl Rust {
    /// Finds, or gets, both.
    pub(crate) fn find(lab: &Lab) -> Result<Self> {
        let linker = linker(lab)?;
        let own = Self {
            rustc: None,
            linker: linker.clone(),
            target_directory: lab.workspace().join("target"),
        };
        let wish = env::var(STD_VARIABLE).unwrap_or_else(|_| "auto".to_owned());
        let reason = match wish.as_str() {
            "auto" | "rustup" => match own_standard_library() {
                Ok(()) => return Ok(own),
                Err(error) if wish == "rustup" => return Err(error),
                Err(error) => error,
            },
            "debian" => anyhow::anyhow!("{STD_VARIABLE}=debian"),
            other => bail!("{STD_VARIABLE}={other}: it must be rustup, debian or auto"),
        };
        let rustc = debian_rustc(lab, &reason).context("cannot get Debian's Rust compiler")?;
        // Two compilers in one target directory would rebuild everything at each change.
        let target_directory = lab.path("build-debian");
        Ok(Self {
            rustc: Some(rustc),
            linker,
            target_directory,
        })
    }

    /// Makes a Cargo command build with this compiler and link with this linker, and keeps it from
    /// inheriting what an outer Cargo set for itself.
    pub(crate) fn configure(&self, command: &mut Command) {
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST") {
                command.env_remove(name.as_ref());
            }
        }
        // Per target, not RUSTFLAGS: build scripts and procedural macros stay as they are.
        command
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                &self.linker,
            )
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static",
            )
            .env("CARGO_TARGET_DIR", self.target_directory());
        self.configure_relocator(command);
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
    }

    /// Makes a Cargo command that builds for this machine build the relocator for arm64 all the
    /// same, so that the tests here can examine it.
    pub(crate) fn configure_relocator(&self, command: &mut Command) {
        command.env(RELOCATOR_LINKER_VARIABLE, &self.linker);
        if let Some(rustc) = &self.rustc {
            command.env(RELOCATOR_RUSTC_VARIABLE, rustc);
        }
    }

    /// Where Cargo puts what it builds with this compiler.
    pub(crate) fn target_directory(&self) -> PathBuf {
        match (&self.rustc, env::var_os("CARGO_TARGET_DIR")) {
            (None, Some(directory)) => PathBuf::from(directory),
            _ => self.target_directory.clone(),
        }
    }
}

impl fmt::Display for Rust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rustc {
            Some(rustc) => write!(formatter, "{}", rustc.display())?,
            None => formatter.write_str("Cargo's own compiler")?,
        }
        write!(formatter, ", linked with {}", self.linker.display())
    }
}

/// Sees to it that Cargo's own compiler can build for arm64.
fn own_standard_library() -> Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .with_context(|| format!("cannot run {}", rustc.display()))?;
    ensure!(output.status.success(), "rustc --print sysroot failed");
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    let progress = Progress::start(format!("rustup target add {TARGET}"));
    let output = match Command::new("rustup")
        .args(["target", "add", TARGET])
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            progress.finish("rustup is not there");
            return Err(error).context("cannot run rustup");
        }
    };
    if output.status.success() && library.is_dir() {
        progress.finish("done");
        return Ok(());
    }
    progress.finish("failed");
    // rustup's message names its server.
    bail!("rustup target add {TARGET} failed ({})", output.status)
}

/// Debian's compiler with its standard library for this machine and for arm64.
fn debian_rustc(lab: &Lab, reason: &anyhow::Error) -> Result<PathBuf> {
    let root = lab.path("rust-debian");
    if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
        println!("Debian's Rust compiler is used for arm64: {reason:#}");
        let host = apt::host_architecture()?;
        let apt = Apt::open(lab, apt::BOOKWORM, &host)?;
        let packages = ["rustc-web", "libstd-rust-web-dev"];
        setup::closure(lab, "rust-debian-host", &apt, &packages, &["libc6"])?;
        // Unpacked a second time over a copy would be slower: the closure's directory becomes the
        // root, and only the stamp of the root says that arm64's library is in it as well.
        let host_root = lab.path("rust-debian-host");
        if host != "arm64" {
            let version = rust_version(&host_root)?;
            let apt = Apt::open(lab, apt::BOOKWORM, "arm64")?;
            apt.update(false)?;
            let package = apt
                .versions("libstd-rust-web-dev")?
                .into_iter()
                .find(|package| package.version.contains(&version))
                .with_context(|| format!("the archive lacks arm64's library for Rust {version}"))?;
            let file = apt.download(&package)?;
            apt::unpack(&file, &host_root)?;
            apt.discard_downloads()?;
        }
        if root.exists() {
            fs::remove_dir_all(&root).context("cannot remove an unfinished compiler")?;
        }
        fs::rename(&host_root, &root).context("cannot move the compiler to its place")?;
        setup::write_stamp(&root, "complete")?;
    }
    let rustc = wrapper(lab, "rustc", &root, "usr/bin/rustc", "")?;
    let output = Command::new(&rustc)
        .arg("--version")
        .output()
        .context("cannot run rustc")?;
    ensure!(
        output.status.success(),
        "Debian's rustc does not run here: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(rustc)
}

/// The version of an unpacked compiler, from the names of the packages in its stamp.
fn rust_version(root: &Path) -> Result<String> {
    let names = setup::stamp(root).context("the compiler's closure is not complete")?;
    names
        .lines()
        .find_map(|name| {
            name.strip_prefix("rustc-web_")?
                .rsplit_once('_')
                .map(|(version, _)| version)
        })
        .map(|version| version.replace("%3a", ":"))
        .context("the closure has no package rustc-web")
}
