//! Makes the kernel move huge pages that hold what is loaded, behind the command's back.
//!
//! Two ways, as an administrator or the kernel itself would: `move-pages` maps the payload and asks for
//! the other one of two NUMA nodes (move_pages(2)); `soft-offline COUNT` retires the physical pages
//! (`/sys/devices/system/memory/soft_offline_page`), which moves what is in them. Prints how many
//! pages moved; whether they should have is for the caller to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kleap_linux::anonymous;
use kleap_linux::hugepages::PageFile;
use kleap_linux::pagemap::Pagemap;
use serde_json::Value;

use crate::command::Status;

/// What the command keeps.
const STORE: &str = "/dev/kleap";
/// The note of what is loaded.
const STATE: &str = "/dev/kleap/state.json";
/// Takes a physical address and retires its page.
const SOFT_OFFLINE: &str = "/sys/devices/system/memory/soft_offline_page";
/// How densely addresses are printed: no block of memory is smaller, bytes.
const STEP_BYTES: usize = 2 << 20;

/// `migrate move-pages | soft-offline COUNT | addresses`.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let how = arguments.next();
    let mut number = || -> Result<u32> {
        arguments
            .next()
            .context("no number")?
            .parse()
            .context("the number")
    };
    match how.as_deref() {
        Some("move-pages") => move_pages(),
        Some("soft-offline") => soft_offline(number()? as usize),
        Some("addresses") => print_addresses(),
        _ => bail!("usage: migrate move-pages | soft-offline COUNT | addresses"),
    }
}

/// A stretch of a payload's file, and where it is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    file: u64,
    offset_bytes: u64,
    size_bytes: u64,
    address: u64,
}

/// The parts of what is loaded, as the note has them: found by the names that only they have together,
/// wherever they stand.
fn parts(state: &Value) -> BTreeSet<Part> {
    fn collect(value: &Value, parts: &mut BTreeSet<Part>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| collect(value, parts)),
            Value::Object(members) => {
                let number = |name: &str| members.get(name).and_then(Value::as_u64);
                if let (Some(file), Some(offset_bytes), Some(size_bytes), Some(address)) = (
                    number("file"),
                    number("offset_bytes"),
                    number("size_bytes"),
                    number("address"),
                ) {
                    parts.insert(Part {
                        file,
                        offset_bytes,
                        size_bytes,
                        address,
                    });
                }
                members.values().for_each(|value| collect(value, parts));
            }
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    collect(state, &mut found);
    found
}

fn state() -> Result<Value> {
    let text = fs::read_to_string(STATE).with_context(|| format!("cannot read {STATE}"))?;
    serde_json::from_str(&text).context(STATE)
}

/// Every physical address that matters for what is loaded: where its pages are, and where its pieces
/// will be.
fn print_addresses() -> Result<()> {
    let mut addresses = BTreeSet::new();
    let mut add = |start: u64, size_bytes: u64| {
        let last = start + size_bytes.saturating_sub(1);
        addresses.extend((start..last).step_by(STEP_BYTES));
        addresses.insert(last);
    };
    let parts = parts(&state()?);
    if parts.is_empty() {
        bail!("{STATE} names no pages");
    }
    for part in parts {
        add(part.address, part.size_bytes);
    }
    let status = Status::ask()?;
    let pieces = status.0.pointer("/loaded/pieces").and_then(Value::as_array);
    for piece in pieces.context("status names no pieces")? {
        let number = |name: &str| piece.get(name).and_then(Value::as_u64);
        let start = number("address").context("a piece has no address")?;
        add(start, number("size_bytes").context("a piece has no size")?);
    }
    for address in addresses {
        println!("{address:#x}");
    }
    Ok(())
}

/// The files of what is loaded, with the pages in use of each. `kind` is the size of the pages.
fn files() -> Result<Vec<(PageFile, Vec<usize>)>> {
    let state = state()?;
    let name = state
        .get("payload")
        .and_then(Value::as_str)
        .context("the note names no payload")?;
    let notes = state
        .get("files")
        .and_then(Value::as_array)
        .context("the note has no files")?;
    let parts = parts(&state);
    let mut files = Vec::new();
    for (number, note) in notes.iter().enumerate() {
        let value = |name: &str| note.get(name).and_then(Value::as_u64);
        let page_bytes = value("page_size_bytes").context("a file has no page size")?;
        let pages = usize::try_from(value("pages").context("a file has no pages")?)?;
        let mut used = BTreeSet::new();
        for part in parts.iter().filter(|part| part.file == number as u64) {
            let last = part.offset_bytes + part.size_bytes.saturating_sub(1);
            for page in part.offset_bytes / page_bytes..=last / page_bytes {
                used.insert(usize::try_from(page)?);
            }
        }
        if !used.is_empty() {
            let file = PageFile::open(&payload(page_bytes, name), pages, page_bytes)?;
            files.push((file, used.into_iter().collect()));
        }
    }
    if files.is_empty() {
        bail!("{STATE} names no pages");
    }
    Ok(files)
}

fn payload(page_bytes: u64, name: &str) -> PathBuf {
    Path::new(STORE)
        .join(format!("pages-{}", page_bytes / 1024))
        .join(name)
}

/// Where the pages are now.
fn addresses(file: &PageFile, indices: &[usize]) -> Result<Vec<u64>> {
    let pagemap = Pagemap::open()?;
    indices
        .iter()
        .map(|&index| Ok(file.address(&pagemap, index)?.as_u64()))
        .collect()
}

fn moved(before: &[u64], after: &[u64]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count()
}

fn move_pages() -> Result<()> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let (mut count, mut total) = (0, 0);
    for (file, indices) in files()? {
        // Asking for the address touches the page, so that it is mapped here.
        let before = addresses(&file, &indices)?;
        let pointers: Vec<*const u8> = indices
            .iter()
            .map(|&index| file.page(index).as_ptr())
            .collect();
        for node in anonymous::page_nodes(&pointers)?.into_iter().flatten() {
            *answers.entry(format!("was on node {node}")).or_default() += 1;
        }
        // Each to the other of two.
        for (pointer, node) in pointers.iter().zip(anonymous::page_nodes(&pointers)?) {
            let other = u32::from(node == Some(0));
            for answer in anonymous::move_pages(&[*pointer], other)? {
                let answer = match answer {
                    Some(node @ 0..) => format!("is on node {node}"),
                    Some(error) => std::io::Error::from_raw_os_error(-error).to_string(),
                    None => "not moved".to_owned(),
                };
                *answers.entry(answer).or_default() += 1;
            }
        }
        count += moved(&before, &addresses(&file, &indices)?);
        total += before.len();
    }
    println!("move-pages: moved={count} of {total}, answers: {answers:?}");
    Ok(())
}

fn soft_offline(most: usize) -> Result<()> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let (mut count, mut total) = (0, 0);
    for (file, mut indices) in files()? {
        indices.truncate(most - total);
        let before = addresses(&file, &indices)?;
        // Mapped nowhere but where the command itself has it.
        let (pages, page_bytes, path) = (file.pages(), file.page_size_bytes() as u64, state()?);
        drop(file);
        for address in &before {
            let answer = match fs::write(SOFT_OFFLINE, format!("{address:#x}")) {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            *answers.entry(answer).or_default() += 1;
        }
        let name = path
            .get("payload")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let file = PageFile::open(&payload(page_bytes, name), pages, page_bytes)?;
        count += moved(&before, &addresses(&file, &indices)?);
        total += before.len();
    }
    println!("soft-offline: moved={count} of {total}, answers: {answers:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_wherever_they_stand() {
        let part = |address: u64| serde_json::json!({ "file": 0, "offset_bytes": 4096, "size_bytes": 8192, "address": address });
        let state = serde_json::json!({
            "generation": 1,
            "layout": { "image": { "parts": [part(1)] }, "other": [{ "file": 7 }, part(2)] },
        });
        let found: Vec<_> = parts(&state).into_iter().map(|part| part.address).collect();
        assert_eq!(found, [1, 2]);
    }
}
