//! What outlives `load`: files of huge pages and a note of what is in them, below `/dev`.
//!
//! ```text
//! /dev/kleap/            mode 0700, made by the first load, gone after unload
//! /dev/kleap/pages-S/    a hugetlbfs of our own with pages of S KiB: payload-N, those of load number N
//! /dev/kleap/state.json  what is loaded: which payload, where, with which digests
//! /dev/kleap/pool.json   how many huge pages of each size we added to the system's pools, and settings of the kernel
//!                        that are to be put back
//! /dev/kleap/exec        there while a command gives the stage to the kernel: whoever finds it, with the
//!                        lock, takes the stage back, because that command has died
//! /dev/kleap/early       there while the kernel has the stage of what is loaded, since `load --early`
//! ```
//!
//! Below `/dev` because systemd-shutdown kills every process but leaves mounts there alone. A load is
//! complete when `state.json` names it; the file is replaced by renaming. So a second load either replaces
//! the first at one instant or leaves it as it was, and a payload that no `state.json` names is what an
//! interrupted load left behind: the next command that changes something removes it.

use crate::error::{Failure, check_interrupted};
use crate::payload::{FileNote, Files, Loaded, used_pages};
use crate::{output, units};
use kleap_linux::holder;
use kleap_linux::hugepages::{self, PageFile, Pool};
use kleap_linux::tunables::{self, Tunable};
use kleap_plan::Owned;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const ROOT: &str = "/dev/kleap";
/// Names of our file systems start with this; the size of their pages in KiB follows.
const PAGES: &str = "pages-";
/// How long a holder of a removed payload may take to let go of it.
const RELEASE_DEADLINE_MS: u64 = 5_000;
/// Most bytes of a state file: a page is noted in about 60 bytes.
const STATE_MAX_BYTES: u64 = 64 << 20;

/// What the pools had before us, and what we added: noted *before* it is added.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// The boot in which they were added: should /dev be a real disk, a note from an earlier one would take
    /// pages away from somebody else.
    boot_id: String,
    /// One entry for each size.
    #[serde(default)]
    pub(crate) pools: Vec<Added>,
    /// What `vm.watermark_boost_factor` was before a load changed it, in 1/10000; there until it is put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boost_factor: Option<u64>,
    /// The same of `vm.percpu_pagelist_high_fraction`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    high_fraction: Option<u64>,
}

/// What one pool had, and what we added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Added {
    /// Size of its pages, bytes.
    page_size_bytes: u64,
    /// Pages in the pool before we first added some, count.
    before: u64,
    /// Pages that we added, at most, count.
    added: u64,
}

impl Ledger {
    /// Where it is noted what a setting of the kernel was.
    fn noted(&mut self, tunable: Tunable) -> &mut Option<u64> {
        match tunable {
            Tunable::WatermarkBoostFactor => &mut self.boost_factor,
            Tunable::PercpuPagelistHighFraction => &mut self.high_fraction,
        }
    }

    /// Notes what the kernel's settings are that have to be others while a pool grows; returns those.
    fn note_tunables(&mut self) -> Vec<Tunable> {
        let mut changing = Vec::new();
        for tunable in Tunable::ALL {
            // What cannot be read is not changed either.
            if let Ok(Some(value)) = tunable.get()
                && value != tunable.while_growing()
            {
                *self.noted(tunable) = Some(value);
                changing.push(tunable);
            }
        }
        changing
    }

    pub(crate) fn entry(&mut self, page_size_bytes: u64, before: u64) -> &mut Added {
        let found = self
            .pools
            .iter()
            .position(|added| added.page_size_bytes == page_size_bytes);
        let index = found.unwrap_or_else(|| {
            self.pools.push(Added {
                page_size_bytes,
                before,
                added: 0,
            });
            self.pools.len() - 1
        });
        &mut self.pools[index]
    }
}

/// Changes settings of the kernel that have been noted. Where one may not be changed, what is left is looked at all the
/// same.
fn set_while_growing(changing: &[Tunable]) {
    for tunable in changing {
        let _ = tunable.set(tunable.while_growing());
    }
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
        Err(error) if error.file_error_kind() == Some(ErrorKind::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| state_error(&path, error))
}

fn write<T: Serialize>(name: &str, value: &T) -> Result<(), Failure> {
    write_new(name, value)?;
    replace(name)
}

/// Makes what [`write_new`] wrote the file of that name, in one instant.
fn replace(name: &str) -> Result<(), Failure> {
    let (path, new) = (path(name), path(&format!("{name}.new")));
    std::fs::rename(&new, &path).map_err(|error| state_error(&path, error))
}

/// Writes a file beside the one that it is to replace.
fn write_new<T: Serialize>(name: &str, value: &T) -> Result<(), Failure> {
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
        .map_err(|error| state_error(&path, error))
}

/// Makes a directory of ours where it is not there yet.
fn make_directory(directory: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(kleap_linux::Error::File {
                action: "cannot create",
                path: directory.to_owned(),
                source: error,
            }
            .into())
        }
        _ => Ok(()),
    }
}

fn pages_path(page_size_bytes: u64) -> PathBuf {
    path(&format!("{PAGES}{}", page_size_bytes / 1024))
}

/// Our file systems of huge pages: directory and size of the pages, bytes. Empty where there are none.
fn page_directories() -> Result<Vec<(PathBuf, u64)>, Failure> {
    let entries = match std::fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(state_error(Path::new(ROOT), error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| state_error(Path::new(ROOT), error))?;
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| name.strip_prefix(PAGES));
        let size_bytes = size
            .and_then(|kib| kib.parse::<u64>().ok())
            .and_then(|kib| kib.checked_mul(1024));
        found.extend(size_bytes.map(|size_bytes| (entry.path(), size_bytes)));
    }
    found.sort();
    Ok(found)
}

/// The store, locked: nobody else changes it while this lives.
#[derive(Debug)]
pub(crate) struct Store {
    _lock: std::os::fd::OwnedFd,
}

/// Waits until no other kleap is changing what is loaded; nor will one until the answer is dropped.
pub(crate) fn lock() -> Result<std::os::fd::OwnedFd, Failure> {
    Ok(kleap_linux::facts::lock(|holder| {
        let name = holder.map_or_else(|| "another kleap".to_owned(), |holder| holder.to_string());
        output::warn(&format!(
            "waiting for {name}, which is changing what is loaded"
        ));
    })?)
}

impl Store {
    /// Locks the store and clears away what interrupted commands left.
    pub(crate) fn open() -> Result<Self, Failure> {
        let store = Self::lock()?;
        store.sweep()?;
        Ok(store)
    }

    /// The same, if nobody else has the store locked and there is something in it; for commands that change
    /// nothing else. What cannot be cleared away stays for the next command that must.
    pub(crate) fn tidy() {
        if Path::new(ROOT).exists()
            && let Ok(Some(lock)) = kleap_linux::facts::try_lock()
            && kleap_linux::facts::has_own_mounts() == Some(false)
        {
            let store = Self { _lock: lock };
            let _ = store.unmark_exec().and_then(|()| store.sweep());
        }
    }

    fn lock() -> Result<Self, Failure> {
        let store = Self { _lock: lock()? };
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
        make_directory(Path::new(ROOT))?;
        write("exec", &())
    }

    /// Whether the kernel has the stage of what is loaded, as far as this store knows.
    pub(crate) fn has_given_early(&self) -> bool {
        has_given_early()
    }

    /// Notes that the kernel did not take what it was to be given, and has what it had.
    pub(crate) fn not_given(&self) -> Result<(), Failure> {
        remove_if_there(&path("exec"))
    }

    /// Notes that the kernel may keep what it was given, until it is unloaded.
    pub(crate) fn given_early(&self) -> Result<(), Failure> {
        std::fs::rename(path("exec"), path("early"))
            .map_err(|error| state_error(&path("exec"), error))
    }

    /// Takes back what a command gave to the kernel before it died, or could not enter.
    pub(crate) fn unmark_exec(&self) -> Result<(), Failure> {
        if path("exec").exists() {
            kleap_linux::kexec::unload()?;
            remove_if_there(&path("early"))?;
            remove_if_there(&path("exec"))?;
        }
        Ok(())
    }

    /// Takes back what the kernel was given early. Before its payload goes: a stage without one would only
    /// find that out after the jump.
    fn take_back_early(&self) -> Result<(), Failure> {
        if path("early").exists() {
            kleap_linux::kexec::unload()?;
            remove_if_there(&path("early"))?;
        }
        Ok(())
    }

    /// What is loaded, if anything.
    pub(crate) fn loaded(&self) -> Result<Option<Loaded>, Failure> {
        loaded()
    }

    /// Removes payloads that no state names; with none left, everything.
    fn sweep(&self) -> Result<(), Failure> {
        if !Path::new(ROOT).exists() {
            return Ok(());
        }
        let Some(loaded) = self.loaded().transpose() else {
            return self.remove_all();
        };
        // First, whatever fails after it. What is given back below may stay on the lists of CPUs, as is usual.
        self.restore_tunables();
        let loaded = loaded?;
        for (directory, _) in page_directories()? {
            if !hugepages::is_mounted(&directory) {
                continue;
            }
            remove_payloads(&directory, Some(&loaded.payload))?;
            if !directory.join(&loaded.payload).exists() {
                // A size that was tried, and is not in use.
                hugepages::unmount(&directory)?;
                std::fs::remove_dir(&directory).map_err(|error| state_error(&directory, error))?;
            }
        }
        let page_sizes: Vec<u64> = loaded
            .files
            .iter()
            .map(|file| file.page_size_bytes)
            .collect();
        let held: Vec<(u64, u64)> = used_pages(&loaded.layout, &page_sizes)
            .iter()
            .zip(page_sizes)
            .map(|(pages, size)| (size, pages.len() as u64))
            .collect();
        self.balance(&held)
    }

    /// Puts the kernel's settings back, if a load has changed them; says whether all of them are. What could not be put back
    /// stays noted, for the next command.
    fn restore_tunables(&self) -> bool {
        // Whether the note can be read is seen by whoever needs more of it.
        let Ok(mut ledger) = self.ledger() else {
            return true;
        };
        let (mut is_any_restored, mut are_all) = (false, true);
        for tunable in Tunable::ALL {
            let Some(value) = *ledger.noted(tunable) else {
                continue;
            };
            // Somebody else may have set it since.
            let restored = tunable.get().and_then(|now| match now {
                Some(now) if now == tunable.while_growing() => tunable.set(value),
                _ => Ok(()),
            });
            match restored {
                Ok(()) => {
                    *ledger.noted(tunable) = None;
                    is_any_restored = true;
                }
                Err(error) => {
                    are_all = false;
                    output::warn(&format!(
                        "warning: {error}: {} was {value}; the next kleap command tries again to put it back",
                        tunable.name()
                    ));
                }
            }
        }
        if is_any_restored && let Err(error) = write("pool.json", &ledger) {
            output::warn(&format!("warning: {error}"));
        }
        are_all
    }

    /// Keeps the kernel from keeping free memory to itself, as it is kept while a pool grows, and has it give back what
    /// single CPUs have kept until now.
    ///
    /// # Errors
    /// If what its settings were cannot be noted.
    pub(crate) fn empty_cpu_lists(&self) -> Result<(), Failure> {
        make_directory(Path::new(ROOT))?;
        let mut ledger = self.ledger()?;
        let changing = ledger.note_tunables();
        if !changing.is_empty() {
            write("pool.json", &ledger)?;
        }
        set_while_growing(&changing);
        tunables::empty_cpu_lists();
        Ok(())
    }

    fn ledger(&self) -> Result<Ledger, Failure> {
        let boot_id = kleap_linux::facts::boot_id()?;
        Ok(read::<Ledger>("pool.json")?
            .filter(|ledger| ledger.boot_id == boot_id)
            .unwrap_or(Ledger {
                boot_id,
                ..Ledger::default()
            }))
    }

    /// Gives back what we added beyond `held`, the payload's pages (size in bytes, count). Free pages beyond
    /// that are not ours to give.
    fn balance(&self, held: &[(u64, u64)]) -> Result<(), Failure> {
        let mut ledger = self.ledger()?;
        let before = ledger.pools.clone();
        for entry in &mut ledger.pools {
            let Ok(pool) = Pool::of_size(entry.page_size_bytes) else {
                continue;
            };
            let held = held
                .iter()
                .find(|(size, _)| *size == entry.page_size_bytes)
                .map_or(0, |(_, pages)| *pages);
            let most = pool.total()?.saturating_sub(entry.before);
            let added = entry.added.min(most);
            let free = added.saturating_sub(held).min(pool.available()?);
            pool.shrink(free, kleap_linux::numa::boot_cpu_node())?;
            entry.added = added - free;
        }
        if ledger.pools == before {
            return Ok(());
        }
        write("pool.json", &ledger)
    }

    /// Gives back all that we added. What is still in use (overcommitted pages of others that growing had made
    /// persistent, a payload that a process of another mount namespace holds) becomes surplus by that, and
    /// goes back to the system by itself when it is released.
    fn settle(&self) -> Result<(), Failure> {
        let ledger = match self.ledger() {
            Ok(ledger) => ledger,
            // What it said is lost; the rest can still be removed.
            Err(error @ Failure::State { .. }) => {
                output::warn(&format!(
                    "warning: {error}: huge pages that kleap added may stay in the pools of the system, and \
                     {} may not be what they were",
                    Tunable::ALL.map(Tunable::name).join(" and ")
                ));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // No new note: the old one is removed next, and says nothing wrong until then, because no pool is made
        // smaller than it was before us.
        for entry in &ledger.pools {
            let Ok(pool) = Pool::of_size(entry.page_size_bytes) else {
                continue;
            };
            let most = pool.total()?.saturating_sub(entry.before);
            pool.shrink(entry.added.min(most), kleap_linux::numa::boot_cpu_node())?;
        }
        Ok(())
    }

    /// Removes everything and gives every page back.
    fn remove_all(&self) -> Result<(), Failure> {
        if !Path::new(ROOT).exists() {
            return Ok(());
        }
        let mut is_restored = self.restore_tunables();
        self.take_back_early()?;
        for name in ["state.json", "state.json.new"] {
            remove_if_there(&path(name))?;
        }
        let directories = page_directories()?;
        for (directory, _) in &directories {
            if hugepages::is_mounted(directory) {
                remove_payloads(directory, None)?;
                hugepages::unmount(directory)?;
            }
        }
        self.settle()?;
        if !is_restored {
            // For want of memory, maybe; now there is more.
            is_restored = self.restore_tunables();
        }
        for name in ["pool.json.new", "exec.new"] {
            remove_if_there(&path(name))?;
        }
        let mut directories: Vec<PathBuf> = directories
            .into_iter()
            .map(|(directory, _)| directory)
            .collect();
        if is_restored {
            remove_if_there(&path("pool.json"))?;
            directories.push(PathBuf::from(ROOT));
        } else {
            // The note of the settings stays, with the directory that it is in, and says nothing of pages any more.
            let mut ledger = self.ledger()?;
            ledger.pools.clear();
            write("pool.json", &ledger)?;
        }
        for directory in directories {
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
    fn prepare(&self, page_size_bytes: u64) -> Result<PathBuf, Failure> {
        let pages = pages_path(page_size_bytes);
        make_directory(Path::new(ROOT))?;
        make_directory(&pages)?;
        if !hugepages::is_mounted(&pages) {
            hugepages::mount(&pages, page_size_bytes)?;
        }
        Ok(pages)
    }

    /// Adds `pages` huge pages to a pool, from `node` where it has some; returns how many are there now that
    /// were not before, which may be fewer. Those that are there already were set aside for somebody else.
    fn reserve(&self, pool: &Pool, pages: u64, node: Option<u32>) -> Result<u64, Failure> {
        let mut ledger = self.ledger()?;
        let total_before = pool.total()?;
        let surplus = pool.surplus()?;
        let entry = ledger.entry(pool.page_size_bytes(), total_before);
        let added_before = entry.added;
        // What others have by overcommit becomes persistent as well: it is to be given back with ours.
        entry.added = added_before + pages + surplus;
        let changing = ledger.note_tunables();
        write("pool.json", &ledger)?;
        set_while_growing(&changing);
        let came = pool.grow(pages, node)?;
        let added = added_before + pool.total()?.saturating_sub(total_before);
        ledger.entry(pool.page_size_bytes(), total_before).added = added;
        write("pool.json", &ledger)?;
        Ok(came.min(pool.available()?))
    }

    /// A new payload without pages, beside the one that is loaded. Call [`Store::commit`] with what became of
    /// it, or [`Store::abandon`].
    pub(crate) fn create(&self) -> Result<NewPayload, Failure> {
        let number = self
            .loaded()?
            .map_or(1, |loaded| loaded.generation.wrapping_add(1));
        Ok(NewPayload {
            files: Vec::new(),
            name: format!("payload-{number}"),
            generation: number,
        })
    }

    /// How many of up to `pages` pages a pool has that others have set aside, with a warning that they are going to be used.
    pub(crate) fn set_aside(&self, page_size_bytes: u64, pages: u64) -> Result<u64, Failure> {
        let others = pages.min(Pool::of_size(page_size_bytes)?.available()?);
        if others > 0 {
            output::warn(&format!(
                "warning: using {} set aside before kleap, until unload",
                units::count(others, "huge page")
            ));
        }
        Ok(others)
    }

    /// Adds up to `pages` pages to a pool, from `node` where it has some; returns how many came. Ends if somebody has asked
    /// for that.
    pub(crate) fn grow(
        &self,
        page_size_bytes: u64,
        pages: u64,
        node: Option<u32>,
    ) -> Result<u64, Failure> {
        check_interrupted()?;
        // The note of it is below the root, which has to be there.
        make_directory(Path::new(ROOT))?;
        self.reserve(&Pool::of_size(page_size_bytes)?, pages, node)
    }

    /// Adds pages to a pool that are made of `larger` pages of another size; returns how many came, 0 where the kernel
    /// cannot do that.
    pub(crate) fn grow_from_larger(
        &self,
        page_size_bytes: u64,
        larger_bytes: u64,
        larger: u64,
        node: Option<u32>,
    ) -> Result<u64, Failure> {
        let (from, to) = (
            Pool::of_size(larger_bytes)?,
            Pool::of_size(page_size_bytes)?,
        );
        if larger == 0 || !from.demotes_to(page_size_bytes, node) {
            return Ok(0);
        }
        let came = self.grow(larger_bytes, larger, node)?;
        let total_before = to.total()?;
        let each = larger_bytes / page_size_bytes;
        let mut ledger = self.ledger()?;
        let entry = ledger.entry(page_size_bytes, total_before);
        let added_before = entry.added;
        entry.added = added_before + came * each;
        write("pool.json", &ledger)?;
        // What cannot be split is as what has not come.
        let _ = from.demote(came, node);
        let added = to.total()?.saturating_sub(total_before);
        let entry = ledger.entry(page_size_bytes, total_before);
        entry.added = added_before + added;
        let entry = ledger.entry(larger_bytes, 0);
        entry.added = entry.added.saturating_sub(added / each);
        write("pool.json", &ledger)?;
        self.shrink(larger_bytes, came.saturating_sub(added / each), node)?;
        Ok(added.min(to.available()?))
    }

    /// Gives back `pages` free pages of those that were added to a pool, first those of `node`.
    pub(crate) fn shrink(
        &self,
        page_size_bytes: u64,
        pages: u64,
        node: Option<u32>,
    ) -> Result<(), Failure> {
        if pages == 0 {
            return Ok(());
        }
        let pool = Pool::of_size(page_size_bytes)?;
        let mut ledger = self.ledger()?;
        let total = pool.total()?;
        let entry = ledger.entry(page_size_bytes, total);
        let free = pages.min(entry.added).min(pool.available()?);
        pool.shrink(free, node)?;
        entry.added -= free;
        write("pool.json", &ledger)
    }

    /// Adds pages to a new payload, which the pool has.
    pub(crate) fn fill(
        &self,
        payload: &mut NewPayload,
        page_size_bytes: u64,
        pages: u64,
    ) -> Result<(), Failure> {
        let directory = self.prepare(page_size_bytes)?;
        match usize::try_from(pages).unwrap_or(0) {
            0 => Ok(()),
            pages => payload.add(&directory, page_size_bytes, pages),
        }
    }

    /// Gives back what a new payload has beyond what `used` says (for each file, whether a page is used).
    pub(crate) fn trim(
        &self,
        payload: &mut NewPayload,
        used: impl Fn(usize, usize) -> bool,
    ) -> Result<(), Failure> {
        for (number, file) in payload.files.iter_mut().enumerate() {
            file.release(|page| used(number, page))?;
        }
        let mut held: Vec<(u64, u64)> = payload
            .files
            .iter()
            .map(|file| (file.page_size_bytes, file.present_count()))
            .collect();
        if let Some(loaded) = self.loaded()? {
            let sizes: Vec<u64> = loaded
                .files
                .iter()
                .map(|file| file.page_size_bytes)
                .collect();
            for (pages, size) in used_pages(&loaded.layout, &sizes).iter().zip(sizes) {
                match held.iter_mut().find(|(other, _)| *other == size) {
                    Some((_, count)) => *count += pages.len() as u64,
                    None => held.push((size, pages.len() as u64)),
                }
            }
        }
        self.balance(&held)
    }

    /// Writes the note of what is about to be loaded: what can fail for lack of room fails here, before anything
    /// that was loaded before is changed.
    pub(crate) fn prepare_commit(&self, loaded: &Loaded) -> Result<(), Failure> {
        make_directory(Path::new(ROOT))?;
        write_new("state.json", loaded).map(|_| ())
    }

    /// Makes `loaded`, of which [`Store::prepare_commit`] has written the note, what is loaded, in place of what
    /// was, and gives back what is no longer needed.
    pub(crate) fn commit(&self, loaded: &Loaded) -> Result<(), Failure> {
        if !loaded.early {
            self.take_back_early()?;
        }
        replace("state.json")?;
        if let Err(error) = self.sweep() {
            output::warn(&format!(
                "warning: loaded, but not everything that is no longer needed could be given back: {error}"
            ));
        }
        Ok(())
    }

    /// Gives a new payload back; what was loaded before stays.
    pub(crate) fn abandon(&self) -> Result<(), Failure> {
        // What the kernel was given for it goes first: it would find no payload.
        self.unmark_exec()?;
        self.sweep()
    }

    /// Removes what is loaded, also what cannot be read; says whether there was something.
    pub(crate) fn unload() -> Result<bool, Failure> {
        let store = Self::lock()?;
        let was_loaded = path("state.json").exists();
        store.remove_all()?;
        Ok(was_loaded)
    }

    /// The store, if there is something in it.
    pub(crate) fn open_if_used() -> Result<Option<Self>, Failure> {
        if Path::new(ROOT).exists() {
            Self::open().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Removes what is loaded here, and leaves the kernel what it has: another thing, that was loaded since.
    pub(crate) fn forget(&self) -> Result<(), Failure> {
        remove_if_there(&path("early"))?;
        self.remove_all()
    }

    /// The pages of what is loaded.
    pub(crate) fn files(&self, loaded: &Loaded) -> Result<Files, Failure> {
        let open = |file: &FileNote| {
            let path = pages_path(file.page_size_bytes).join(&loaded.payload);
            PageFile::open(&path, file.pages, file.page_size_bytes)
                .map_err(|error| Failure::Changed(format!("the payload is gone: {error}")))
        };
        Ok(Files(
            loaded.files.iter().map(open).collect::<Result<_, _>>()?,
        ))
    }
}

/// Removes payloads from one of our file systems, but for the one that is named. A holder of a removed one
/// lets go of it by itself, and is waited for.
fn remove_payloads(directory: &Path, but: Option<&str>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(directory).map_err(|error| state_error(directory, error))? {
        let entry = entry.map_err(|error| state_error(directory, error))?;
        if but.is_some() && but == entry.file_name().to_str() {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(|error| state_error(&path, error))?;
            continue;
        }
        let file = holder::open_to_wait(&path).ok();
        remove_if_there(&path)?;
        if let Some(file) = file
            && !holder::wait_released(file.as_fd(), RELEASE_DEADLINE_MS)
        {
            output::warn(&format!(
                "warning: {} is still held by another process; its pages go back when that ends",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Whether the kernel has the stage of what is loaded, as far as the store knows; without its lock.
pub(crate) fn has_given_early() -> bool {
    path("early").exists()
}

/// The files of a payload: paths.
pub(crate) fn payload_paths(loaded: &Loaded) -> impl Iterator<Item = PathBuf> + '_ {
    loaded
        .files
        .iter()
        .map(|file| pages_path(file.page_size_bytes).join(&loaded.payload))
}

/// Whether the payload of what is loaded is still there.
pub(crate) fn has_payload(loaded: &Loaded) -> bool {
    payload_paths(loaded).all(|path| path.exists())
}

/// Whether a process pins the payload of what is loaded; `None` if that cannot be seen.
pub(crate) fn is_held(loaded: &Loaded) -> Option<bool> {
    let path = payload_paths(loaded).next()?;
    // Who may not look must not say no.
    std::fs::File::open(&path).ok()?;
    Some(holder::is_held(&path))
}

/// What is loaded, if anything; needs no lock, as the state is replaced in one instant.
pub(crate) fn loaded() -> Result<Option<Loaded>, Failure> {
    let loaded: Option<Loaded> = read("state.json")?;
    // Should /dev be a real disk, a note from an earlier boot means nothing.
    let boot_id = kleap_linux::facts::boot_id()?;
    let loaded = loaded.filter(|loaded| loaded.boot_id == boot_id);
    if let Some(loaded) = &loaded {
        check_note(loaded).map_err(|what| state_error(&path("state.json"), what))?;
    }
    Ok(loaded)
}

/// Whether every part of the layout lies within the files that the note names.
pub(crate) fn check_note(loaded: &Loaded) -> Result<(), String> {
    // What is computed from it takes one step for each page, or for each unit of the layout.
    let mut pages = 0_usize;
    for note in &loaded.files {
        pages = pages.saturating_add(note.pages);
        if !note.page_size_bytes.is_power_of_two() || pages > kleap_plan::layout::PAGES_MAX {
            return Err(format!(
                "names a file of {} pages of {} bytes",
                note.pages, note.page_size_bytes
            ));
        }
    }
    loaded.layout.check().map_err(|error| error.to_string())?;
    for Owned {
        size_bytes,
        file,
        offset_bytes,
        ..
    } in loaded.layout.owned()
    {
        let note = loaded
            .files
            .get(file)
            .ok_or_else(|| format!("names file number {file}, which is not there"))?;
        let file_bytes = (note.pages as u64).checked_mul(note.page_size_bytes);
        let end_bytes = offset_bytes.checked_add(size_bytes);
        if file_bytes.is_none() || end_bytes.is_none() || end_bytes > file_bytes {
            return Err(format!(
                "names {size_bytes} bytes at {offset_bytes} of a file of {} pages of {} bytes",
                note.pages, note.page_size_bytes
            ));
        }
    }
    if loaded.payload.contains('/') {
        return Err(format!("names the payload {:?}", loaded.payload));
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(state_error(path, error)),
        _ => Ok(()),
    }
}

/// A file of a payload that is being made.
#[derive(Debug)]
pub(crate) struct NewFile {
    /// Size of its pages, bytes.
    pub(crate) page_size_bytes: u64,
    /// `None` only after a failed extension.
    file: Option<PageFile>,
    /// Whether a page is there, or is a hole.
    present: Vec<bool>,
}

impl NewFile {
    fn present_count(&self) -> u64 {
        self.present.iter().filter(|present| **present).count() as u64
    }

    /// Indices of the pages that are no holes.
    pub(crate) fn present(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.present.len()).filter(|index| self.present[*index])
    }

    /// Its pages.
    pub(crate) fn pages(&self) -> Result<&PageFile, Failure> {
        self.file
            .as_ref()
            .ok_or_else(|| state_error(&pages_path(self.page_size_bytes), "the payload is gone"))
    }

    /// Puts the pages back into the pool that are not used.
    pub(crate) fn release(&mut self, used: impl Fn(usize) -> bool) -> Result<(), Failure> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        for (index, present) in self.present.iter_mut().enumerate() {
            if *present && !used(index) {
                file.release(index..index + 1)?;
                *present = false;
            }
        }
        Ok(())
    }
}

/// A payload that is being made.
#[derive(Debug)]
pub(crate) struct NewPayload {
    /// Its files, one for each size of pages.
    pub(crate) files: Vec<NewFile>,
    /// The name of each of them.
    pub(crate) name: String,
    /// Its number.
    pub(crate) generation: u64,
}

impl NewPayload {
    /// Adds pages, which the pool has.
    fn add(&mut self, directory: &Path, page_size_bytes: u64, pages: usize) -> Result<(), Failure> {
        let found = self
            .files
            .iter_mut()
            .find(|file| file.page_size_bytes == page_size_bytes);
        match found {
            Some(new) => {
                if let Some(file) = new.file.take() {
                    new.file = Some(file.extend(pages)?);
                    new.present.extend(vec![true; pages]);
                }
            }
            None => {
                let file = PageFile::create(&directory.join(&self.name), pages, page_size_bytes)?;
                self.files.push(NewFile {
                    page_size_bytes,
                    file: Some(file),
                    present: vec![true; pages],
                });
            }
        }
        Ok(())
    }

    /// Its open files, to be written; nothing can be added to it any more.
    pub(crate) fn into_files(self) -> Result<Files, Failure> {
        let open = |new: NewFile| {
            new.file
                .ok_or_else(|| state_error(Path::new(ROOT), "the payload is gone"))
        };
        Ok(Files(
            self.files.into_iter().map(open).collect::<Result<_, _>>()?,
        ))
    }
}
