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
use crate::{ExecArguments, output, units};
use kleap_linux::{counter, facts, kexec, reboot};
use kleap_plan::{Stage, StageInput};

/// The stage for what is loaded.
pub(crate) fn stage(loaded: &Loaded, exec_requested: u64) -> Result<Stage, Failure> {
    let tree = machine::device_tree()?;
    let devices = Devices::find(&tree);
    Ok(kleap_plan::stage::prepare(&StageInput {
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
        exec_prepared: counter::now().unwrap_or(0),
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
    #[cfg(feature = "fault-injection")]
    let file = fault::inject_into_payload(arguments, &loaded, file);
    #[cfg(not(feature = "fault-injection"))]
    let ExecArguments {} = arguments;

    // Whatever is slow, or can fail, or can be interrupted comes before `kexec_load`: between that and
    // `reboot` there is nothing.
    let plan = stage(&loaded, exec_requested)?.summary;
    if kexec::is_loaded() == Some(true) {
        output::note("kleap: replacing the kernel that another program has loaded for kexec");
    }
    output::note(&format!(
        "kleap: entering {}: moving {}, verifying {}, {} translation tables",
        output::printable(
            loaded
                .kernel_banner
                .as_deref()
                .unwrap_or(&loaded.kernel_path)
        ),
        units::bytes(plan.moved_bytes),
        units::bytes(plan.verified_bytes),
        plan.tables,
    ));
    reboot::sync();
    #[allow(unused_mut, reason = "changed by the variant for tests only")]
    let mut stage = stage(&loaded, exec_requested)?;
    #[cfg(feature = "fault-injection")]
    fault::inject_into_stage(arguments, &mut stage);
    store.mark_exec()?;
    let segment = kexec::Segment {
        start: stage.start,
        bytes: &stage.bytes,
    };
    let error: Failure = match kexec::load(stage.start, &[segment]) {
        Ok(()) => reboot::kexec().into(),
        Err(error) => error.into(),
    };
    // Still here: nothing was handed over, so nothing stays loaded in the kernel.
    drop(file);
    if let Err(unload) = store.unmark_exec() {
        output::warn(&format!("and the kernel keeps what it was given: {unload}"));
    }
    Err(error)
}

#[cfg(feature = "fault-injection")]
pub(crate) use fault::Fault;

/// Test only: damages what was checked, between the last check and the hand-over.
#[cfg(feature = "fault-injection")]
mod fault {
    use super::{ExecArguments, Loaded};
    use crate::payload::parts;
    use kleap_linux::hugepages::PageFile;
    use kleap_plan::Stage;
    use kleap_relocator::abi::{self, HAND_OFF_OFFSET_BYTES, HandOff};
    use std::str::FromStr;

    /// What to break.
    #[derive(Debug, Clone)]
    pub(crate) enum Fault {
        /// `PIECE:OFFSET`: one bit of a piece of the payload.
        Piece { piece: String, offset_bytes: u64 },
        /// `stage:OFFSET`: one bit of the stage.
        Stage { offset_bytes: usize },
        /// `exception`: the first piece is said to be where nothing is mapped, with a right digest of the
        /// block.
        Exception,
        /// `early-exception`: an undefined instruction before the MMU is on.
        EarlyException,
    }

    impl FromStr for Fault {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            match text {
                "exception" => return Ok(Self::Exception),
                "early-exception" => return Ok(Self::EarlyException),
                _ => {}
            }
            let (piece, offset) = text
                .split_once(':')
                .ok_or("PIECE:OFFSET, as in Image:4096")?;
            let wrong = |error| format!("{offset}: {error}");
            if piece == "stage" {
                return Ok(Self::Stage {
                    offset_bytes: offset.parse().map_err(wrong)?,
                });
            }
            let offset_bytes = offset.parse().map_err(wrong)?;
            Ok(Self::Piece {
                piece: piece.into(),
                offset_bytes,
            })
        }
    }

    /// Says what was done: a test that broke nothing must not pass.
    fn say(what: &str) {
        crate::output::note(&format!("kleap: TEST: {what}"));
    }

    pub(crate) fn inject_into_payload(
        arguments: &ExecArguments,
        loaded: &Loaded,
        mut file: PageFile,
    ) -> PageFile {
        let Some(Fault::Piece {
            piece,
            offset_bytes,
        }) = &arguments.inject_fault
        else {
            return file;
        };
        for (name, place, content) in loaded.pieces() {
            let mut before = 0;
            for (index, from, to) in parts(place, content.size_bytes, file.page_size_bytes()) {
                let length = (to - from) as u64;
                if name == piece && (before..before + length).contains(offset_bytes) {
                    let at = from + usize::try_from(offset_bytes - before).unwrap_or(0);
                    file.page_mut(index)[at] ^= 1;
                    say(&format!(
                        "flipped a bit of byte {offset_bytes} of the {name}"
                    ));
                }
                before += length;
            }
        }
        file
    }

    pub(crate) fn inject_into_stage(arguments: &ExecArguments, stage: &mut Stage) {
        let block_at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap_or(usize::MAX);
        match &arguments.inject_fault {
            Some(Fault::Stage { offset_bytes }) => {
                if let Some(byte) = stage.bytes.get_mut(*offset_bytes) {
                    *byte ^= 1;
                    say(&format!(
                        "flipped a bit of byte {offset_bytes} of the stage"
                    ));
                }
            }
            Some(Fault::Exception) => {
                let Ok(hand_off) = HandOff::decode(&stage.bytes[block_at..]) else {
                    return;
                };
                let mut pieces: Vec<_> = hand_off.pieces().collect();
                pieces[0].start = 0x1000;
                let (moves, regions): (Vec<_>, Vec<_>) = (
                    hand_off.moves().collect(),
                    hand_off.redistributors().collect(),
                );
                if let Ok(block) = abi::encode(&hand_off.header, &pieces, &moves, &regions) {
                    stage.bytes[block_at..][..block.len()].copy_from_slice(&block);
                    say("the Image is said to be at 0x1000");
                }
            }
            Some(Fault::EarlyException) => {
                const TLBI: [u32; 2] = [0xd508_871f, 0xd50c_871f]; // vmalle1, alle2
                let mut count = 0;
                for word in stage.bytes[..block_at].as_chunks_mut::<4>().0 {
                    if TLBI.contains(&u32::from_le_bytes(*word)) {
                        *word = [0; 4];
                        count += 1;
                    }
                }
                say(&format!("replaced {count} instructions by undefined ones"));
            }
            Some(Fault::Piece { .. }) | None => {}
        }
    }
}
