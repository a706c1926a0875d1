//! Where the lab keeps what it downloads and makes.
//!
//! Problem: a demo that installs packages, or writes outside the work tree, is one that people
//! hesitate to run. So everything lives below `target/`, where `cargo clean` finds it and where no
//! rights are needed. Rejected: a cache in the home directory, which outlives the work tree and is
//! shared by versions that disagree about its content.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress::Progress;

/// Overrides the lab's directory, for several work trees on one machine.
const DIRECTORY_VARIABLE: &str = "KLEAP_LAB_DIR";

/// How often a lab that another process changes is looked at.
const EXCLUSIVE_INTERVAL: Duration = Duration::from_millis(200);

/// The directories the lab works in.
#[derive(Debug, Clone)]
pub(crate) struct Lab {
    workspace: PathBuf,
    root: PathBuf,
}

impl Lab {
    /// Finds the work tree from Cargo, wherever the command was started.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let workspace = manifest
            .parent()
            .context("xtask's manifest has no parent directory: run it as `cargo xtask`")?
            .to_path_buf();
        let root = env::var_os(DIRECTORY_VARIABLE)
            .map_or_else(|| workspace.join("target").join("kleap-lab"), PathBuf::from);
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create {}: is it writable?", root.display()))?;
        Ok(Self { workspace, root })
    }

    /// The root of the work tree.
    pub(crate) fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// A path inside the lab; nothing is created.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A directory inside the lab, created where missing.
    pub(crate) fn directory(&self, relative: &str) -> Result<PathBuf> {
        let path = self.root.join(relative);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Where finished programs are put.
    pub(crate) fn dist(&self) -> PathBuf {
        self.workspace.join("target").join("dist")
    }
}

/// Says that this process changes the lab; another one waits until it is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    _name: UnixListener,
}

impl Lab {
    /// Waits until no other process changes the lab.
    ///
    /// What is taken is a name of an abstract socket, because the kernel gives it back however the
    /// process ends. Rejected: a lock file with a process id, which somebody has to find stale.
    pub(crate) fn exclusive(&self) -> Result<Exclusive> {
        self.exclusive_for("")
    }

    /// Waits until no other process makes this part of the lab, which takes so long that others should not wait
    /// for it.
    pub(crate) fn exclusive_for(&self, part: &str) -> Result<Exclusive> {
        let mut hasher = Sha256::new();
        hasher.update(self.root.as_os_str().as_bytes());
        hasher.update(part);
        let digest = hasher.finalize();
        let name: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let address = SocketAddr::from_abstract_name(format!("kleap-lab-{name}"))
            .context("cannot form a socket's name")?;
        let mut waiting: Option<Progress> = None;
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => {
                    if let Some(progress) = waiting {
                        progress.finish("done");
                    }
                    return Ok(Exclusive { _name: listener });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    waiting
                        .get_or_insert_with(|| Progress::start("waiting for another set-up"))
                        .update("it still runs");
                    thread::sleep(EXCLUSIVE_INTERVAL);
                }
                Err(error) => return Err(error).context("cannot take the lab's lock"),
            }
        }
    }
}

/// Replaces a directory by a new empty one, for a step that starts again from nothing.
pub(crate) fn fresh_directory(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Writes a file so that a reader, or a run after an interruption, sees all of it or none.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    fs::write(&part, content).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("cannot rename to {}", path.display()))
}
