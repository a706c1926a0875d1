//! `status`: what is loaded, and where.
//!
//! Changes nothing that is loaded. What a command that was killed has left behind is cleared away first, where
//! that can be done without waiting: whoever looks should see what is, not what was under way.

use crate::error::Failure;
use crate::hand_off::OnFailureArgument;
use crate::machine::{self, Devices, Memory};
use crate::output::line;
use crate::payload::{Loaded, Verify, used_pages};
use crate::{exec, output, store, units, watchdog};
use kleap_linux::kexec;
use kleap_plan::stage::Summary;
use kleap_plan::{KexecCost, Strategy};
use kleap_relocator::digest::{Algorithm, chunk_size_bytes};
use serde::Serialize;

/// One piece, as JSON.
#[derive(Debug, Serialize)]
struct Piece {
    piece: &'static str,
    size_bytes: u64,
    /// Of the whole piece, with `verify` `crc32c`.
    crc32c: Option<String>,
    /// One for each chunk; empty with `verify` `none`.
    digests: Vec<String>,
    /// Size of a chunk; the last one may be smaller.
    chunk_size_bytes: u64,
    address: u64,
    in_place: bool,
    /// Bytes of the pages that are where they belong, and of all that hold it.
    in_place_bytes: u64,
    held_bytes: u64,
}

/// Huge pages of one size, as JSON.
#[derive(Debug, Serialize)]
struct HugePages {
    page_size_bytes: u64,
    pages: usize,
}

/// What is loaded, as JSON.
#[derive(Debug, Serialize)]
struct LoadedStatus<'a> {
    kernel: &'a str,
    kernel_banner: Option<&'a str>,
    initrd: Option<&'a str>,
    command_line: &'a str,
    strategy: kleap_plan::Strategy,
    /// How the pieces are verified.
    verify: Verify,
    in_place: bool,
    pieces: Vec<Piece>,
    /// Whether the pages are still there.
    payload_present: bool,
    huge_pages: Vec<HugePages>,
    /// How the pages are pinned; `null` if they are not, or if that cannot be seen.
    pinned_by: Option<&'a str>,
    /// Whether `kexec_load(2)` was called by `load`, and the kernel still has something.
    early: bool,
    hand_over: Option<Summary>,
    /// Where the relocator writes to; `null` if it is nowhere.
    console: Option<Console>,
    /// What becomes of the machine if the hand-over cannot go on: `reset`, `off`, `halt`.
    on_failure: OnFailureArgument,
    /// Whether it writes a line for every phase.
    verbose_handoff: bool,
}

/// A console, as JSON.
#[derive(Debug, Serialize)]
struct Console {
    kind: &'static str,
    address: u64,
    /// Who named it, in words.
    found_by: String,
}

/// What there is for a panic, as JSON.
#[derive(Debug, Serialize)]
struct Crash {
    /// What `crashkernel=` has set aside, bytes.
    reserved_bytes: Option<u64>,
    /// Whether the kernel has a crash kernel, from whomever.
    loaded: Option<bool>,
}

impl Crash {
    fn find() -> Self {
        Self {
            reserved_bytes: kexec::crash_size_bytes(),
            loaded: kexec::is_crash_loaded(),
        }
    }

    /// One line, if there is anything to say.
    fn line(&self) -> Option<String> {
        let size = self.reserved_bytes.filter(|bytes| *bytes > 0)?;
        Some(format!(
            "crash kernel  {}, {} set aside",
            if self.loaded == Some(true) {
                "loaded"
            } else {
                "not loaded"
            },
            units::bytes(size)
        ))
    }
}

fn console(loaded: &Loaded) -> Option<Console> {
    let devices = Devices::find(
        &machine::device_tree().ok()?,
        loaded.hand_off.serial.as_ref(),
    );
    let (uart, found_by) = devices.uart.zip(devices.uart_from)?;
    Some(Console {
        kind: uart.name(),
        address: uart.base(),
        found_by: found_by.to_string(),
    })
}

/// Everything, as JSON.
#[derive(Debug, Serialize)]
struct Status<'a> {
    loaded: Option<LoadedStatus<'a>>,
    /// Whether the running kernel has something loaded for kexec, from whomever.
    kexec_loaded: Option<bool>,
    /// What is set aside for a crash kernel, and whether one is loaded.
    crash: Crash,
    /// What `kexec_load(2)` itself takes on this machine; `null` if that cannot be known.
    kexec_load: Option<KexecCost>,
    watchdogs: Vec<watchdog::Status>,
}

fn describe(loaded: &Loaded) -> LoadedStatus<'_> {
    let sizes: Vec<u64> = loaded
        .files
        .iter()
        .map(|file| file.page_size_bytes)
        .collect();
    let stage = || -> Result<Summary, Failure> {
        let memory = Memory::find(&machine::device_tree()?)?;
        Ok(exec::stage(loaded, &memory)?.summary)
    };
    LoadedStatus {
        kernel: &loaded.kernel_path,
        kernel_banner: loaded.kernel_banner.as_deref(),
        initrd: loaded.initrd_path.as_deref(),
        command_line: &loaded.command_line,
        strategy: loaded.strategy,
        verify: loaded.verify,
        in_place: loaded.strategy != Strategy::Kernel && loaded.layout.is_in_place(),
        pieces: loaded
            .pieces()
            .map(|(piece, place, content)| Piece {
                piece,
                size_bytes: content.size_bytes,
                crc32c: content
                    .digests(loaded.verify)
                    .crc32c(content.size_bytes)
                    .map(|crc| format!("{crc:#010x}")),
                digests: content
                    .digests(loaded.verify)
                    .iter()
                    .map(|digest| digest.to_string())
                    .collect(),
                chunk_size_bytes: chunk_size_bytes(content.size_bytes),
                address: place.start().as_u64(),
                in_place: loaded.strategy != Strategy::Kernel && place.is_in_place(),
                in_place_bytes: place
                    .parts_with_targets()
                    .filter(|(part, target)| part.address == *target)
                    .map(|(part, _)| part.size_bytes)
                    .sum(),
                held_bytes: place.held_bytes(),
            })
            .collect(),
        payload_present: store::has_payload(loaded),
        huge_pages: used_pages(&loaded.layout, &sizes)
            .iter()
            .zip(sizes)
            .map(|(pages, page_size_bytes)| HugePages {
                page_size_bytes,
                pages: pages.len(),
            })
            .collect(),
        pinned_by: loaded
            .pinned_by
            .as_deref()
            .filter(|_| store::is_held(loaded) == Some(true)),
        early: loaded.early && kexec::is_loaded() == Some(true),
        hand_over: stage().ok(),
        console: console(loaded),
        on_failure: loaded.hand_off.on_failure,
        verbose_handoff: loaded.hand_off.verbose,
    }
}

/// `kleap status`.
pub(crate) fn status(json: bool) -> Result<(), Failure> {
    store::Store::tidy();
    let loaded = store::loaded()?;
    // Of another architecture nothing is known.
    let cost = machine::kexec_cost()
        .ok()
        .filter(|_| cfg!(target_arch = "aarch64"));
    let status = Status {
        loaded: loaded.as_ref().map(describe),
        kexec_loaded: kexec::is_loaded(),
        crash: Crash::find(),
        kexec_load: cost.as_ref().map(|cost| cost.0.clone()),
        watchdogs: watchdog::all(),
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
        if let Some(sentence) = cost.and_then(|cost| cost.sentence(false)) {
            line!(text, "{sentence}");
        }
        if let Some(crash) = status.crash.line() {
            line!(text, "{crash}");
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
        let how = if loaded.strategy == Strategy::Kernel {
            "copied there by the kernel".to_owned()
        } else if piece.in_place {
            "in place".to_owned()
        } else if piece.in_place_bytes == 0 {
            "moved there".to_owned()
        } else {
            format!(
                "{} in place, the rest moved there",
                units::bytes(piece.in_place_bytes)
            )
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
    let present = loaded.huge_pages.iter().filter(|_| loaded.payload_present);
    for held in present.filter(|held| held.pages > 0) {
        line!(
            text,
            "{} of {} KiB held",
            units::count(held.pages as u64, "huge page"),
            held.page_size_bytes >> 10
        );
    }
    match loaded.pinned_by {
        _ if loaded.strategy == Strategy::Kernel || !loaded.payload_present => {}
        Some(method) => line!(text, "pinned by {method}: the kernel cannot move them"),
        None => line!(
            text,
            "not pinned: the kernel may move them, which exec will find"
        ),
    }
    if loaded.strategy == Strategy::Kernel && !loaded.early {
        line!(text, "but the kernel no longer has it: load it again");
    }
    if loaded.early {
        line!(
            text,
            "kexec_load(2) has been called: reboot(2) and systemctl kexec enter it"
        );
    }
    if !loaded.payload_present {
        line!(
            text,
            "but the payload is gone, somebody removed it: load it again"
        );
    }
    match &loaded.console {
        Some(console) => line!(
            text,
            "console       {} at {:#x}: {}",
            console.kind,
            console.address,
            output::printable(&console.found_by)
        ),
        None => line!(
            text,
            "no console that the relocator can write to: load --serial names one"
        ),
    }
    if loaded.verbose_handoff {
        line!(text, "the hand-over writes a line there for every phase");
    }
    line!(
        text,
        "should it fail, {}",
        match loaded.on_failure {
            OnFailureArgument::Reset => "the machine is reset",
            OnFailureArgument::Off => "the machine is switched off (--on-failure off)",
            OnFailureArgument::Halt => "the machine stops and waits (--on-failure halt)",
        }
    );
    if let Some(summary) = &loaded.hand_over {
        line!(
            text,
            "at hand-over: {} moved, {} verified{}, {} translation tables",
            units::bytes(summary.moved_bytes),
            units::bytes(summary.verified_bytes),
            match loaded.verify.algorithm() {
                Some(Algorithm::Crc32c) => " by CRC32C",
                Some(Algorithm::Sha256) => " by SHA-256",
                None => " (the relocator alone: --verify none)",
            },
            summary.tables
        );
    }
    if let Some(sentence) = cost.and_then(|cost| cost.sentence(loaded.early)) {
        line!(text, "{sentence}");
    }
    if let Some(crash) = status.crash.line() {
        line!(text, "{crash}");
    }
    for sentence in status
        .watchdogs
        .iter()
        .filter_map(watchdog::Status::sentence)
    {
        line!(text, "{sentence}");
    }
    output::answer(&text)
}
