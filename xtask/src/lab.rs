//! Where the lab keeps what it downloads and makes.
//!
//! Problem: a demo that installs packages, or writes outside the work tree, is one that people
//! hesitate to run. So everything lives below `target/`, where `cargo clean` finds it and where no
//! rights are needed. Rejected: a cache in the home directory, which outlives the work tree and is
//! shared by versions that disagree about its content.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Overrides the lab's directory, for several work trees on one machine.
const DIRECTORY_VARIABLE: &str = "KLEAP_LAB_DIR";

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
