//! `exec`: check once more, say what will happen, go.
//!
//! Everything that could fail is done before `reboot(2)`: the pages are looked for where they were, every
//! byte is compared with its digest (an error here is an error message, in the relocator it is a reset),
//! the stage is built and given to the kernel, which allocates what it needs at that moment. After
//! `reboot(2)` nothing is allocated any more.

use crate::error::Failure;
use crate::machine::{self, Devices};
use crate::payload::{Loaded, check_addresses, digest};
use crate::store::Store;
use crate::{ExecArguments, units};
use kleap_linux::{counter, facts, kexec, reboot};
use kleap_plan::{Stage, StageInput, stage};
use std::io::Write;

/// The stage for what is loaded.
pub(crate) fn stage(loaded: &Loaded, exec_requested: u64) -> Result<Stage, Failure> {
    let (tree, _) = machine::device_tree()?;
    let devices = Devices::find(&tree);
    Ok(stage::prepare(&StageInput {
        layout: &loaded.layout,
        granule_bytes: facts::page_size_bytes(),
        image: loaded.image.into(),
        image_size_bytes: loaded.image_size_bytes,
        initrd: loaded.initrd.map(Into::into),
        device_tree: loaded.device_tree.into(),
        timeline_offset_bytes: loaded.timeline_offset_bytes,
        kernel_page_size_bytes: loaded.kernel_page_size_bytes,
        uart: devices.uart,
        psci: devices.psci,
        redistributors: &devices.redistributors,
        exec_requested,
    })?)
}

/// `kleap exec`.
pub(crate) fn exec(arguments: &ExecArguments) -> Result<(), Failure> {
    let exec_requested = counter::now().unwrap_or(0);
    machine::check()?;
    let store = Store::open()?;
    let loaded = store.loaded()?.ok_or(Failure::NothingLoaded)?;
    let file = store.pages(&loaded)?;
    check_addresses(&file, &loaded.layout)?;
    for (name, place, content) in loaded.pieces() {
        let found = digest(&file, place, content.size_bytes);
        if found != content.crc32c {
            return Err(Failure::Changed(format!(
                "the {name} is damaged in memory: CRC32C {found:#010x}, was {:#010x} when loaded",
                content.crc32c
            )));
        }
    }
    let stage = stage(&loaded, exec_requested)?;
    if kexec::is_loaded() == Some(true) {
        println!("kleap: replacing the kernel that another program has loaded for kexec");
    }
    kexec::load(stage.start, stage.start, &stage.bytes)?;

    #[cfg(feature = "fault-injection")]
    let file = inject(arguments, &loaded, file);
    #[cfg(not(feature = "fault-injection"))]
    let ExecArguments {} = arguments;

    let summary = &stage.summary;
    println!(
        "kleap: entering {}: moving {}, verifying {}, {} translation tables",
        loaded.kernel_banner.as_deref().unwrap_or(&loaded.kernel_path),
        units::bytes(summary.moved_bytes),
        units::bytes(summary.verified_bytes),
        summary.tables,
    );
    let _ = std::io::stdout().flush();
    reboot::sync();
    let error = reboot::kexec();
    // Still here: nothing was handed over, so nothing stays loaded in the kernel.
    drop(file);
    if let Err(unload) = kexec::unload() {
        eprintln!("kleap: and the kernel keeps what it was given: {unload}");
    }
    Err(error.into())
}

#[cfg(feature = "fault-injection")]
pub(crate) use fault::{Fault, inject};

/// Test only: damages the payload between the last check and the hand-over.
#[cfg(feature = "fault-injection")]
mod fault {
    use super::{ExecArguments, Loaded};
    use crate::payload::parts;
    use kleap_linux::hugepages::PageFile;
    use std::str::FromStr;

    /// A byte to flip.
    #[derive(Debug, Clone)]
    pub(crate) struct Fault {
        piece: String,
        offset_bytes: u64,
    }

    impl FromStr for Fault {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let (piece, offset) = text.split_once(':').ok_or("PIECE:OFFSET, as in Image:4096")?;
            let offset_bytes = offset.parse().map_err(|error| format!("{offset}: {error}"))?;
            Ok(Self { piece: piece.into(), offset_bytes })
        }
    }

    pub(crate) fn inject(
        arguments: &ExecArguments,
        loaded: &Loaded,
        mut file: PageFile,
    ) -> PageFile {
        let Some(fault) = &arguments.inject_fault else { return file };
        for (name, place, content) in loaded.pieces() {
            let mut before = 0;
            for (index, from, to) in parts(place, content.size_bytes, file.page_size_bytes()) {
                let length = (to - from) as u64;
                if name == fault.piece && (before..before + length).contains(&fault.offset_bytes) {
                    let at = from + usize::try_from(fault.offset_bytes - before).unwrap_or(0);
                    file.page_mut(index)[at] ^= 1;
                    println!("kleap: TEST: flipped a bit of byte {} of the {name}", fault.offset_bytes);
                }
                before += length;
            }
        }
        file
    }
}
