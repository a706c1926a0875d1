//! `status`: what is loaded, and where. Changes nothing.

use crate::error::Failure;
use crate::payload::Loaded;
use crate::{exec, store, units};
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
        println!("{text}");
        return Ok(());
    }
    let Some(loaded) = &status.loaded else {
        println!("nothing is loaded by kleap");
        if status.kexec_loaded == Some(true) {
            println!("(another program has loaded a kernel for kexec)");
        }
        return Ok(());
    };
    println!(
        "kernel        {}",
        loaded.kernel_banner.unwrap_or(loaded.kernel)
    );
    println!("command line  {}", loaded.command_line);
    println!();
    println!(
        "{:<12} {:>10}  {:<18} at hand-over",
        "piece", "size", "address"
    );
    for piece in &loaded.pieces {
        let how = if piece.in_place {
            "in place"
        } else {
            "moved there"
        };
        let address = format!("{:#x}", piece.address);
        println!(
            "{:<12} {:>10}  {address:<18} {how}",
            piece.piece,
            units::bytes(piece.size_bytes)
        );
    }
    println!();
    println!(
        "{} huge pages of {} MiB held",
        loaded.huge_pages,
        loaded.huge_page_size_bytes >> 20
    );
    if let Some(summary) = &loaded.hand_over {
        println!(
            "at hand-over: {} moved, {} verified, {} translation tables",
            units::bytes(summary.moved_bytes),
            units::bytes(summary.verified_bytes),
            summary.tables
        );
    }
    Ok(())
}
