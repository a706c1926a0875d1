//! What the command reads from outside and computes from that alone, for the fuzzer (`crates/fuzz`).
//!
//! A function for each, that panics where what must hold does not. Nothing here touches the machine.

use crate::hold;
use crate::payload::{self, Loaded};
use crate::serial::SerialSpec;
use crate::store::{self, Ledger};
use kleap_memmap::PhysRanges;
use kleap_plan::{LayoutError, Owned};
use kleap_relocator::abi::Uart;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Notes of more memory than this are checked and no more: what is computed from them takes its time, and is the
/// same.
const COMPUTED_MAX_BYTES: u64 = 512 << 20;

/// Reads the text of `state.json`, as `status` and `exec` do, and computes what they compute from it before
/// they ask the machine. Says whether it was accepted.
///
/// # Panics
/// If something that is accepted leads beyond the limits: that is what it is for.
pub fn state(bytes: &[u8]) -> bool {
    let Ok(loaded) = serde_json::from_slice::<Loaded>(bytes) else {
        return false;
    };
    if store::check_note(&loaded).is_err() {
        return false;
    }
    // What is written again says the same.
    let text = serde_json::to_vec(&loaded).unwrap_or_default();
    let again = serde_json::from_slice::<Loaded>(&text).ok();
    assert_eq!(
        again.and_then(|again| serde_json::to_vec(&again).ok()),
        Some(text)
    );
    let files = PathBuf::from("/dev/kleap").join(&loaded.payload);
    assert_eq!(files.parent(), Some(Path::new("/dev/kleap")));
    let owned: Vec<Owned> = loaded.layout.owned().collect();
    let owned_bytes: u64 = owned.iter().map(|part| part.size_bytes).sum();
    if owned_bytes <= COMPUTED_MAX_BYTES {
        pages(&loaded);
        pieces(&loaded);
        repaired(&loaded, &owned);
    }
    true
}

/// Understands the words of a call under the name `kexec`, which are separated by NULs.
///
/// # Panics
/// If the same words mean two things, if a refusal says nothing, or if help or the version cannot be had.
pub fn kexec_words(bytes: &[u8]) {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let words: Vec<OsString> = bytes
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    let found = crate::kexec::understood(words.clone());
    assert_eq!(found, crate::kexec::understood(words.clone()));
    assert!(found.is_ok() || found.is_err_and(|message| !message.is_empty()));
    for (option, answer) in [("-h", "Help"), ("--versi", "Version")] {
        let first = [vec![option.into()], words.clone()].concat();
        assert_eq!(crate::kexec::understood(first).as_deref(), Ok(answer));
    }
}

/// The pages that a layout uses are pages of the files.
fn pages(loaded: &Loaded) {
    let sizes = sizes(loaded);
    let used = payload::used_pages(&loaded.layout, &sizes);
    assert_eq!(used.len(), sizes.len());
    for (pages, file) in used.iter().zip(&loaded.files) {
        assert!(pages.iter().all(|page| *page < file.pages));
        let runs = payload::runs(pages);
        assert_eq!(runs.iter().map(Range::len).sum::<usize>(), pages.len());
    }
}

fn sizes(loaded: &Loaded) -> Vec<u64> {
    loaded
        .files
        .iter()
        .map(|file| file.page_size_bytes)
        .collect()
}

/// Every byte of a piece lies in a page.
fn pieces(loaded: &Loaded) {
    let sizes = sizes(loaded);
    for (_, place, content) in loaded.pieces() {
        let stretches = payload::stretches(place, content.size_bytes, &sizes);
        for at in &stretches {
            let file = loaded.files.get(at.file);
            let fits = file.is_some_and(|file| {
                at.page < file.pages && at.from < at.to && at.to as u64 <= file.page_size_bytes
            });
            assert!(fits, "{at:?} is outside of the file {file:?}");
        }
        let found_bytes: u64 = stretches.iter().map(|at| (at.to - at.from) as u64).sum();
        assert!(found_bytes <= content.size_bytes);
        let _ = (place.start(), place.is_in_place());
        // What `status` shows, and `exec` compares.
        let digests = content.digests(loaded.verify);
        let count = digests.iter().count();
        assert!(count <= content.digests.len());
        let _ = digests.crc32c(content.size_bytes);
        let in_place_bytes: u64 = place
            .parts_with_targets()
            .filter(|(part, target)| part.address == *target)
            .map(|(part, _)| part.size_bytes)
            .sum();
        assert!(in_place_bytes <= place.held_bytes());
    }
}

/// As if no page had moved; `exec` asks pagemap.
fn repaired(loaded: &Loaded, owned: &[Owned]) {
    let usable = PhysRanges::from(loaded.layout.stage);
    let repaired = loaded.layout.repaired(&usable, |file, offset_bytes| {
        owned
            .iter()
            .filter(|part| part.file == file)
            .find_map(|part| {
                let within = offset_bytes.checked_sub(part.offset_bytes)?;
                (within < part.size_bytes).then_some(part.address.checked_add(within))?
            })
            .ok_or(LayoutError::NoTarget {
                piece: "payload",
                wanted_bytes: offset_bytes,
            })
    });
    if let Err(error) = repaired {
        assert!(!error.to_string().is_empty());
    }
}

/// Reads the text of `pool.json`. Says whether it was accepted.
///
/// # Panics
/// If what is written again says something else.
pub fn pool(bytes: &[u8]) -> bool {
    let Ok(mut ledger) = serde_json::from_slice::<Ledger>(bytes) else {
        return false;
    };
    let text = serde_json::to_vec(&ledger).unwrap_or_default();
    let again = serde_json::from_slice::<Ledger>(&text).ok();
    assert_eq!(
        again.and_then(|again| serde_json::to_vec(&again).ok()),
        Some(text)
    );
    // An entry is made where there is none, and found where there is one.
    let before = ledger.pools.len();
    let first = *ledger.entry(2 << 20, 7);
    assert_eq!(*ledger.entry(2 << 20, 8), first);
    assert!(ledger.pools.len() <= before + 1);
    true
}

/// What the holder is told to hold, in one word of its arguments: page size in bytes, pages, runs of them, file.
#[must_use]
pub fn hold_argument(word: &str) -> Option<(u64, usize, Vec<Range<usize>>, PathBuf)> {
    hold::parse(word)
}

/// The word that says so.
#[must_use]
pub fn hold_word(
    page_size_bytes: u64,
    pages: usize,
    runs: &[Range<usize>],
    path: &Path,
) -> std::ffi::OsString {
    hold::word(path, page_size_bytes, pages, runs)
}

/// The report of a record, as text and as JSON.
///
/// # Panics
/// If there is a time in it that is none.
pub fn report(timeline: &kleap_relocator::timeline::Timeline, init_started: u64) {
    // What `check` says of it.
    let _ = crate::report::seconds(
        timeline.exec_requested,
        timeline.kernel_entered,
        timeline.frequency_hz,
    );
    let (text, json) = crate::report::both(timeline, Some(init_started));
    assert!(!text.contains("NaN") && !text.contains("inf "), "{text}");
    assert!(json.starts_with('{'), "{json}");
}

/// A command line without what the boot loader added for itself.
#[must_use]
pub fn without_boot_image(command_line: &str) -> String {
    crate::load::without_boot_image(command_line)
}

/// Text, safe to show on a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    crate::output::printable(text)
}

/// What `report` says of the record of a failure.
#[must_use]
pub fn last_failure(record: &kleap_relocator::record::Record<'_>) -> String {
    crate::last_words::said_of(record)
}

/// The zone of a ramoops of these numbers, bytes, that a record goes into: address and size.
#[must_use]
pub fn last_dump_zone(
    start: u64,
    size_bytes: u64,
    record_size_bytes: u64,
    other_bytes: u64,
) -> Option<(u64, u64)> {
    crate::last_words::last_dump_zone(start, size_bytes, record_size_bytes, other_bytes)
}

/// A UART as the user names it: how it is said again, and what it is.
///
/// # Errors
/// Why it is none.
pub fn serial(word: &str) -> Result<(String, Uart), String> {
    word.parse::<SerialSpec>()
        .map(|spec| (spec.to_string(), spec.uart()))
        .map_err(|error| error.to_string())
}

/// Those that a kernel's command line names.
#[must_use]
pub fn serials_in_command_line(command_line: &str) -> Vec<(String, Uart)> {
    crate::serial::in_command_line(command_line)
        .into_iter()
        .map(|spec| (spec.to_string(), spec.uart()))
        .collect()
}
