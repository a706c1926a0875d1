//! What outlives `load`: a file of huge pages and a note of what is in it, below `/dev`.
//!
//! ```text
//! /dev/kleap/            mode 0700, made by the first load, gone after unload
//! /dev/kleap/pages/      a hugetlbfs of our own: payload-N, the pages of load number N
//! /dev/kleap/state.json  what is loaded: which payload, where, with which digests
//! /dev/kleap/pool.json   how many huge pages we added to the system's pool
//! /dev/kleap/exec        there while `exec` has given the stage to the kernel: whoever finds it, with the
//!                        lock, takes the stage back, because that `exec` has died
//! ```
//!
//! Below `/dev` because systemd-shutdown kills every process but leaves mounts there alone. A load is
//! complete when `state.json` names it; the file is replaced by renaming. So a second load either replaces
//! the first at one instant or leaves it as it was, and a payload that no `state.json` names is what an
//! interrupted load left behind: the next command that changes something removes it.

use crate::error::Failure;
use crate::output;
use crate::payload::Loaded;
use kleap_linux::hugepages::{self, PageFile, Pool};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const ROOT: &str = "/dev/kleap";
/// Size of the huge pages used, bytes: 2 MiB exists on every granule.
pub(crate) const PAGE_SIZE_BYTES: u64 = 2 << 20;
/// Most bytes of a state file: a page is noted in about 60 bytes.
const STATE_MAX_BYTES: u64 = 64 << 20;

/// What the pool had before us, and what we added: noted *before* it is added.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Ledger {
    /// The boot in which they were added: should /dev be a real disk, a note from an earlier one would take
    /// pages away from somebody else.
    boot_id: String,
    /// Pages in the pool before we first added some, count.
    before: u64,
    /// Pages that we added, at most, count.
    added: u64,
}

fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn state_error(path: &Path, what: impl ToString) -> Failure {
    Failure::State {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> Result<Option<T>, Failure> {
    let path = path(name);
    let bytes = match kleap_linux::facts::read_limited(&path, STATE_MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(kleap_linux::Error::File { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| state_error(&path, error))
}

fn write<T: Serialize>(name: &str, value: &T) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let (path, new) = (path(name), path(&format!("{name}.new")));
    let bytes = serde_json::to_vec(value).map_err(|error| state_error(&path, error))?;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(|error| state_error(&path, error))
}

/// The store, locked: nobody else changes it while this lives.
#[derive(Debug)]
pub(crate) struct Store {
    pool: Pool,
    _lock: std::os::fd::OwnedFd,
}

impl Store {
    /// Locks the store and clears away what interrupted commands left.
    pub(crate) fn open() -> Result<Self, Failure> {
        let store = Self::lock()?;
        store.sweep()?;
        Ok(store)
    }

    fn lock() -> Result<Self, Failure> {
        let pool = Pool::of_size(PAGE_SIZE_BYTES)?;
        let store = Self {
            pool,
            _lock: kleap_linux::facts::lock()?,
        };
        if kleap_linux::facts::has_own_mounts() == Some(true) {
            return Err(Failure::Unsupported(
                "this process has mounts of its own (a mount namespace, as in a container or in a service \
                 with PrivateTmp=): what it would load would be gone with it. Run it in PID 1's, as with \
                 nsenter --target 1 --mount"
                    .into(),
            ));
        }
        store.unmark_exec()?;
        Ok(store)
    }

    /// Notes that the kernel is about to be given the stage.
    pub(crate) fn mark_exec(&self) -> Result<(), Failure> {
        write("exec", &())
    }

    /// Takes back what an `exec` gave to the kernel and did not enter.
    pub(crate) fn unmark_exec(&self) -> Result<(), Failure> {
        if path("exec").exists() {
            kleap_linux::kexec::unload()?;
            remove_if_there(&path("exec"))?;
        }
        Ok(())
    }

    /// What is loaded, if anything.
    pub(crate) fn loaded(&self) -> Result<Option<Loaded>, Failure> {
        loaded()
    }

    /// The pool of huge pages.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Removes payloads that no state names; with none left, everything.
    fn sweep(&self) -> Result<(), Failure> {
        if !Path::new(ROOT).exists() {
            return Ok(());
        }
        let loaded = self.loaded()?;
        let held = loaded
            .as_ref()
            .map_or(0, |loaded| loaded.layout.pages().count());
        let current = loaded.map(|loaded| loaded.payload);
        let pages = path("pages");
        if hugepages::is_mounted(&pages) {
            let entries = std::fs::read_dir(&pages).map_err(|error| state_error(&pages, error))?;
            for entry in entries {
                let file = entry.map_err(|error| state_error(&pages, error))?;
                if current.as_deref() != file.file_name().to_str() {
                    std::fs::remove_file(file.path())
                        .map_err(|error| state_error(&file.path(), error))?;
                }
            }
        }
        if current.is_none() {
            return self.remove_all();
        }
        self.balance(held as u64)
    }

    fn ledger(&self) -> Result<Option<Ledger>, Failure> {
        let boot_id = kleap_linux::facts::boot_id()?;
        Ok(read::<Ledger>("pool.json")?.filter(|ledger| ledger.boot_id == boot_id))
    }

    /// Gives back what we added beyond `held` pages, those of the payload. Free pages beyond that are not
    /// ours to give.
    fn balance(&self, held: u64) -> Result<(), Failure> {
        let Some((ledger, added)) = self.added()? else {
            return Ok(());
        };
        let free = added.saturating_sub(held).min(self.pool.available()?);
        self.pool.shrink(free)?;
        let added = added - free;
        write("pool.json", &Ledger { added, ..ledger })
    }

    /// Gives back all that we added. What is still in use (overcommitted pages of others that growing had made
    /// persistent, a payload that a process of another mount namespace holds) becomes surplus by that, and
    /// goes back to the system by itself when it is released.
    fn settle(&self) -> Result<(), Failure> {
        if let Some((ledger, added)) = self.added()? {
            self.pool.shrink(added)?;
            write("pool.json", &Ledger { added: 0, ..ledger })?;
        }
        Ok(())
    }

    /// The note, and how many pages of ours the pool has.
    fn added(&self) -> Result<Option<(Ledger, u64)>, Failure> {
        let Some(ledger) = self.ledger()? else {
            return Ok(None);
        };
        let most = self.pool.total()?.saturating_sub(ledger.before);
        let added = ledger.added.min(most);
        Ok(Some((ledger, added)))
    }

    /// Removes everything and gives every page back.
    fn remove_all(&self) -> Result<(), Failure> {
        let pages = path("pages");
        if !Path::new(ROOT).exists() {
            return Ok(());
        }
        for name in ["state.json", "state.json.new"] {
            remove_if_there(&path(name))?;
        }
        if hugepages::is_mounted(&pages) {
            for entry in std::fs::read_dir(&pages).map_err(|error| state_error(&pages, error))? {
                let entry = entry.map_err(|error| state_error(&pages, error))?.path();
                if entry.is_dir() {
                    std::fs::remove_dir_all(&entry).map_err(|error| state_error(&entry, error))?;
                } else {
                    remove_if_there(&entry)?;
                }
            }
            hugepages::unmount(&pages)?;
        }
        self.settle()?;
        for name in ["pool.json", "pool.json.new", "exec.new"] {
            remove_if_there(&path(name))?;
        }
        for directory in [pages, PathBuf::from(ROOT)] {
            match std::fs::remove_dir(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(state_error(&directory, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the directories and mounts the hugetlbfs, where they are not there yet.
    fn prepare(&self) -> Result<(), Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let pages = path("pages");
        for directory in [Path::new(ROOT), &pages] {
            match std::fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(kleap_linux::Error::File {
                        action: "cannot create",
                        path: directory.to_owned(),
                        source: error,
                    }
                    .into());
                }
                _ => {}
            }
        }
        if !hugepages::is_mounted(&pages) {
            hugepages::mount(&pages, PAGE_SIZE_BYTES)?;
        }
        Ok(())
    }

    /// Adds `pages` huge pages to the pool; returns how many came, which may be fewer. Those that are there
    /// already were set aside for somebody else.
    fn reserve(&self, pages: u64) -> Result<u64, Failure> {
        let mut ledger = match self.ledger()? {
            Some(ledger) => ledger,
            None => Ledger {
                boot_id: kleap_linux::facts::boot_id()?,
                before: self.pool.total()?,
                added: 0,
            },
        };
        let (added_before, total_before) = (ledger.added, self.pool.total()?);
        // What others have by overcommit becomes persistent as well: it is to be given back with ours.
        ledger.added = added_before + pages + self.pool.surplus()?;
        write("pool.json", &ledger)?;
        let came = self.pool.grow(pages, None)?;
        ledger.added = added_before + self.pool.total()?.saturating_sub(total_before);
        write("pool.json", &ledger)?;
        Ok(came.min(self.pool.available()?))
    }

    /// A new payload of `pages` pages, beside the one that is loaded. Call [`Store::commit`] with it, or
    /// [`Store::abandon`].
    pub(crate) fn create(&self, pages: usize) -> Result<NewPayload, Failure> {
        self.prepare()?;
        let came = self.reserve(pages as u64)?;
        if came < pages as u64 {
            let found = self.pool.available()?;
            if found < pages as u64 {
                return Err(kleap_linux::Error::HugePages {
                    wanted: pages as u64,
                    found,
                    page_size_bytes: PAGE_SIZE_BYTES,
                }
                .into());
            }
            output::warn(&format!(
                "warning: using {} huge pages that were set aside before kleap, until unload",
                pages as u64 - came
            ));
        }
        let number = self
            .loaded()?
            .map_or(1, |loaded| loaded.generation.wrapping_add(1));
        let name = format!("payload-{number}");
        let file = PageFile::create(&path("pages").join(&name), pages, PAGE_SIZE_BYTES)?;
        Ok(NewPayload {
            file: Some(file),
            name,
            generation: number,
        })
    }

    /// Adds up to `more` pages to a new payload; returns how many, 0 if there are no more to be had.
    pub(crate) fn extend(&self, payload: &mut NewPayload, more: u64) -> Result<u64, Failure> {
        let added = self.reserve(more)?;
        let pages = usize::try_from(added).unwrap_or(0);
        if pages > 0
            && let Some(file) = payload.file.take()
        {
            payload.file = Some(file.extend(pages)?);
        }
        Ok(added)
    }

    /// Makes `loaded` what is loaded, in place of what was, and gives back what is no longer needed.
    pub(crate) fn commit(&self, loaded: &Loaded) -> Result<(), Failure> {
        write("state.json", loaded)?;
        self.sweep()
    }

    /// Gives a new payload back; what was loaded before stays.
    pub(crate) fn abandon(&self) -> Result<(), Failure> {
        self.sweep()
    }

    /// Removes what is loaded, also what cannot be read; says whether there was something.
    pub(crate) fn unload() -> Result<bool, Failure> {
        let store = Self::lock()?;
        let was_loaded = path("state.json").exists();
        store.remove_all()?;
        Ok(was_loaded)
    }

    /// The pages of what is loaded.
    pub(crate) fn pages(&self, loaded: &Loaded) -> Result<PageFile, Failure> {
        let path = path("pages").join(&loaded.payload);
        PageFile::open(&path, loaded.file_pages, loaded.layout.page_size_bytes)
            .map_err(|error| Failure::Changed(format!("the payload is gone: {error}")))
    }
}

/// Whether the payload of what is loaded is still there.
pub(crate) fn has_payload(loaded: &Loaded) -> bool {
    path("pages").join(&loaded.payload).exists()
}

/// What is loaded, if anything; needs no lock, as the state is replaced in one instant.
pub(crate) fn loaded() -> Result<Option<Loaded>, Failure> {
    let loaded: Option<Loaded> = read("state.json")?;
    // Should /dev be a real disk, a note from an earlier boot means nothing.
    let boot_id = kleap_linux::facts::boot_id()?;
    Ok(loaded.filter(|loaded| loaded.boot_id == boot_id))
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(state_error(path, error)),
        _ => Ok(()),
    }
}

/// A payload that is being made.
#[derive(Debug)]
pub(crate) struct NewPayload {
    /// Its pages; `None` only after a failed [`Store::extend`].
    file: Option<PageFile>,
    /// Its file name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) generation: u64,
}

impl NewPayload {
    /// Its pages.
    pub(crate) fn file(&mut self) -> Result<&mut PageFile, Failure> {
        self.file
            .as_mut()
            .ok_or_else(|| state_error(&path("pages"), "the payload is gone"))
    }
}
