//! The process that keeps the payload's pages pinned after `load` has ended.
//!
//! `load` starts this command again with the hidden subcommand `hold`, which finds what to hold in its
//! arguments: the note of what is loaded does not exist yet at that moment. Pinning is a help, not a condition: if it fails,
//! `load` warns and goes on, because `exec` looks at every page again. What has moved out of CMA it refuses: nothing can be moved
//! back to there.

use crate::error::Failure;
use crate::output;
use crate::payload::{Loaded, runs, used_pages};
use crate::store;
use kleap_linux::holder::{self, Holder};
use kleap_linux::hugepages::PageFile;
use kleap_linux::pin::{Method, Pin};
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;

/// How long the holder may take to pin everything.
const READY_DEADLINE_MS: u64 = 60_000;
/// How long it may take to leave.
const GO_DEADLINE_MS: u64 = 10_000;
/// Most files that are held, one for each size of pages.
const FILES_MAX: usize = 16;

/// One file as `load` names it to the holder: `PAGE_SIZE:PAGES:FROM-TO,FROM-TO:PATH`.
pub(crate) fn word(
    path: &std::path::Path,
    page_size_bytes: u64,
    pages: usize,
    runs: &[Range<usize>],
) -> OsString {
    let runs: Vec<String> = runs
        .iter()
        .map(|run| format!("{}-{}", run.start, run.end))
        .collect();
    let mut word = OsString::from(format!("{page_size_bytes}:{pages}:{}:", runs.join(",")));
    word.push(path);
    word
}

/// What a word says; `None` if it is none.
pub(crate) fn parse(word: &str) -> Option<(u64, usize, Vec<Range<usize>>, PathBuf)> {
    let mut fields = word.splitn(4, ':');
    let page_size_bytes = fields.next()?.parse().ok()?;
    let pages = fields.next()?.parse().ok()?;
    let runs = fields
        .next()?
        .split(',')
        .map(|run| {
            let (start, end) = run.split_once('-')?;
            let (start, end): (usize, usize) = (start.parse().ok()?, end.parse().ok()?);
            (start <= end && end <= pages).then_some(start..end)
        })
        .collect::<Option<Vec<_>>>()?;
    Some((page_size_bytes, pages, runs, fields.next()?.into()))
}

/// Starts the holder of a payload that is about to be committed, and that `pin` keeps until then; `None`, with a warning,
/// if it cannot hold.
pub(crate) fn start(loaded: &Loaded, pin: Option<&Pin>) -> Option<(Holder, Method)> {
    let sizes: Vec<u64> = loaded
        .files
        .iter()
        .map(|file| file.page_size_bytes)
        .collect();
    let mut words = vec![OsString::from("hold")];
    // The other method might move them.
    words.extend(pin.map(|pin| OsString::from(pin.method().name())));
    for ((file, path), pages) in loaded
        .files
        .iter()
        .zip(store::payload_paths(loaded))
        .zip(used_pages(&loaded.layout, &sizes))
    {
        if !pages.is_empty() {
            words.push(word(&path, file.page_size_bytes, file.pages, &runs(&pages)));
        }
    }
    let started = Holder::spawn(&words).and_then(|mut holder| {
        let method = holder.wait_ready(READY_DEADLINE_MS)?;
        Ok((holder, method))
    });
    started
        .inspect_err(|error| {
            output::warn(&format!(
                "warning: the payload is not pinned: {error}; should the kernel move a page, exec finds it"
            ));
        })
        .ok()
}

/// Lets the holder live on.
pub(crate) fn go(holder: Holder) {
    if let Err(error) = holder.go(GO_DEADLINE_MS) {
        output::warn(&format!(
            "warning: the payload is no longer pinned: {error}"
        ));
    }
}

/// `kleap hold`: the holder itself.
pub(crate) fn hold(words: &[String]) -> Result<(), Failure> {
    let open = |word: &String| {
        let (page_size_bytes, pages, runs, path) =
            parse(word).ok_or_else(|| Failure::Unsupported(format!("cannot hold {word:?}")))?;
        Ok((PageFile::open(&path, pages, page_size_bytes)?, runs))
    };
    let first = words.first().and_then(|word| Method::from_name(word));
    let files = words.iter().skip(usize::from(first.is_some()));
    let files: Result<Vec<_>, Failure> = files.take(FILES_MAX).map(open).collect();
    match files {
        Ok(files) => Ok(holder::serve(first, files)?),
        Err(failure) => {
            holder::answer_error(&failure)?;
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_said_is_understood() {
        let path = Path::new("/dev/kleap/pages-2048/payload-1");
        let said = word(path, 2 << 20, 40, &[0..3, 7..40]);
        let found = parse(said.to_str().unwrap()).unwrap();
        assert_eq!(found, (2 << 20, 40, vec![0..3, 7..40], path.to_owned()));
    }

    #[test]
    fn nonsense_is_refused() {
        for word in [
            "",
            "1",
            "1:2",
            "1:2:0-1",
            "1:2:0-3:/x",
            "1:2:1-0:/x",
            "1:2::/x",
            "x:2:0-1:/x",
        ] {
            assert_eq!(parse(word), None, "{word}");
        }
    }
}
