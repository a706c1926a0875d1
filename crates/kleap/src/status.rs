//! `status`: what is loaded, and where. Changes nothing.

use crate::error::Failure;
use crate::output::line;
use crate::payload::Loaded;
use crate::{exec, output, store, units};
use kleap_linux::kexec;
use kleap_plan::stage::Summary;
use serde::Serialize;

/// One piece, as JSON.
#[derive(Debug, Serialize)]
struct Piece {
    piece: &'static str,
    size_bytes: u64,
    crc32c: String,
    address: u64,
    in_place: bool,
}

/// What is loaded, as JSON.
#[derive(Debug, Serialize)]
struct LoadedStatus<'a> {
    kernel: &'a str,
    kernel_banner: Option<&'a str>,
    initrd: Option<&'a str>,
    command_line: &'a str,
    strategy: kleap_plan::Strategy,
    in_place: bool,
    pieces: Vec<Piece>,
    /// Whether the pages are still there.
    payload_present: bool,
    huge_pages: usize,
    huge_page_size_bytes: u64,
    hand_over: Option<Summary>,
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Status<'a> {
    loaded: Option<LoadedStatus<'a>>,
    /// Whether the running kernel has something loaded for kexec, from whomever.
    kexec_loaded: Option<bool>,
}

fn describe(loaded: &Loaded) -> LoadedStatus<'_> {
    LoadedStatus {
        kernel: &loaded.kernel_path,
        kernel_banner: loaded.kernel_banner.as_deref(),
        initrd: loaded.initrd_path.as_deref(),
        command_line: &loaded.command_line,
        strategy: loaded.strategy,
        in_place: loaded.layout.is_in_place(),
        pieces: loaded
            .pieces()
            .map(|(piece, place, content)| Piece {
                piece,
                size_bytes: content.size_bytes,
                crc32c: format!("{:#010x}", content.crc32c),
                address: place.start().as_u64(),
                in_place: place.is_in_place(),
            })
            .collect(),
        payload_present: store::has_payload(loaded),
        huge_pages: loaded.layout.pages().count(),
        huge_page_size_bytes: loaded.layout.page_size_bytes,
        hand_over: exec::stage(loaded, 0).ok().map(|stage| stage.summary),
    }
}

/// `kleap status`.
pub(crate) fn status(json: bool) -> Result<(), Failure> {
    let loaded = store::loaded()?;
    let status = Status {
        loaded: loaded.as_ref().map(describe),
        kexec_loaded: kexec::is_loaded(),
    };
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(|error| Failure::State {
            path: "status".into(),
            what: error.to_string(),
        })?;
        return output::answer(&format!("{text}\n"));
    }
    let mut text = String::new();
    let Some(loaded) = &status.loaded else {
        line!(text, "nothing is loaded by kleap");
        if status.kexec_loaded == Some(true) {
            line!(text, "(another program has loaded a kernel for kexec)");
        }
        return output::answer(&text);
    };
    line!(
        text,
        "kernel        {}",
        output::printable(loaded.kernel_banner.unwrap_or(loaded.kernel))
    );
    line!(
        text,
        "command line  {}",
        output::printable(loaded.command_line)
    );
    line!(text);
    line!(
        text,
        "{:<12} {:>10}  {:<18} at hand-over",
        "piece",
        "size",
        "address"
    );
    for piece in &loaded.pieces {
        let how = if piece.in_place {
            "in place"
        } else {
            "moved there"
        };
        let address = format!("{:#x}", piece.address);
        line!(
            text,
            "{:<12} {:>10}  {address:<18} {how}",
            piece.piece,
            units::bytes(piece.size_bytes)
        );
    }
    line!(text);
    line!(
        text,
        "{} huge pages of {} MiB held",
        loaded.huge_pages,
        loaded.huge_page_size_bytes >> 20
    );
    if !loaded.payload_present {
        line!(
            text,
            "but the payload is gone, somebody removed it: load it again"
        );
    }
    if let Some(summary) = &loaded.hand_over {
        line!(
            text,
            "at hand-over: {} moved, {} verified, {} translation tables",
            units::bytes(summary.moved_bytes),
            units::bytes(summary.verified_bytes),
            summary.tables
        );
    }
    output::answer(&text)
}
