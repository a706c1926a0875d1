//! `exec`: check once more, say what will happen, go.
//!
//! Everything that could fail is done before `reboot(2)`: the pages are looked for where they were, every
//! byte is compared with its digest (an error here is an error message, in the relocator it is a reset),
//! the stage is built and given to the kernel, which allocates what it needs at that moment. After
//! `reboot(2)` nothing is allocated any more.

use crate::error::Failure;
use crate::machine::{self, Devices, Memory};
use crate::payload::{Content, Files, Loaded};
use crate::store::Store;
use crate::{ExecArguments, last_words, output, place, units};
use kleap_linux::pagemap::Pagemap;
use kleap_linux::pin::Pin;
use kleap_linux::{counter, facts, interfaces, kexec, reboot};
use kleap_plan::{Layout, Stage, StageInput, Strategy};
use kleap_relocator::digest::chunk_size_bytes;

/// The stage for what is loaded; its times are not in it yet ([`Stage::stamp`]).
pub(crate) fn stage(loaded: &Loaded, memory: &Memory) -> Result<Stage, Failure> {
    let tree = machine::device_tree()?;
    let content = |content: &Content| kleap_plan::stage::Content {
        size_bytes: content.size_bytes,
        digests: content.digests(loaded.verify),
    };
    let devices = Devices::find(&tree, loaded.hand_off.serial.as_ref());
    Ok(kleap_plan::stage::prepare(&StageInput {
        layout: &loaded.layout,
        granule_bytes: facts::page_size_bytes(),
        image: content(&loaded.image),
        image_size_bytes: loaded.image_size_bytes,
        initrd: loaded.initrd.as_ref().map(content),
        device_tree: content(&loaded.device_tree),
        timeline_offset_bytes: loaded.timeline_offset_bytes,
        kernel_page_size_bytes: loaded.kernel_page_size_bytes,
        uart: devices.uart,
        psci: devices.psci,
        redistributors: &devices.redistributors,
        core_header: None,
        mappable: &memory.mappable(loaded.layout.owned()),
        lpis: devices.lpis,
        verbose: loaded.hand_off.verbose,
        on_failure: loaded.hand_off.on_failure.into(),
        record: last_words::place(&tree, memory, &loaded.layout),
    })?)
}

/// The layout with every page where it is now. Says so if one has moved.
pub(crate) fn current_layout(
    loaded: &Loaded,
    files: &Files,
    memory: &Memory,
) -> Result<Layout, Failure> {
    let pagemap = Pagemap::open()?;
    let layout = loaded
        .layout
        .repaired(&memory.within(loaded.window).plain, |file, offset_bytes| {
            files.address(&pagemap, file, offset_bytes)
        })
        .map_err(|failure: Failure| match failure {
            Failure::Layout(error) => Failure::Changed(format!(
                "the kernel has moved pages of the payload, and they cannot be used where they are: {error}"
            )),
            failure => failure,
        })?;
    if layout != loaded.layout {
        let unit_bytes = layout.unit_bytes;
        let units = |layout: &Layout| -> Vec<u64> {
            layout
                .owned()
                .flat_map(|part| {
                    let start = part.address.as_u64();
                    (0..part.size_bytes / unit_bytes).map(move |unit| start + unit * unit_bytes)
                })
                .collect()
        };
        let (before, now) = (units(&loaded.layout), units(&layout));
        let moved = before.iter().zip(&now).filter(|(a, b)| a != b).count() as u64;
        output::warn(&format!(
            "warning: the kernel has moved {} of the payload since it was loaded; the hand-over was planned \
             again",
            units::bytes(moved * unit_bytes)
        ));
    }
    Ok(layout)
}

/// Refuses memory that the kernel has found to be bad since it was chosen.
fn check_memory(layout: &Layout, memory: &Memory) -> Result<(), Failure> {
    let mut good = memory.clone();
    if !good.exclude_bad(&place::used_memory(layout), layout.unit_bytes) {
        return Ok(());
    }
    let bad = memory.usable.difference(&good.usable);
    Err(Failure::Changed(format!(
        "the kernel has found bad memory in {bad}, which the hand-over needs"
    )))
}

/// Compares every chunk of the payload with what was loaded.
fn check_payload(loaded: &Loaded, files: &Files) -> Result<(), Failure> {
    let Some(algorithm) = loaded.verify.algorithm() else {
        return Ok(()); // as the user wanted it
    };
    for (name, place, content) in loaded.pieces() {
        let now = Content::of(loaded.verify, &files.slices(place, content.size_bytes));
        if now == *content {
            continue;
        }
        let (found, expected) = (now.digests(loaded.verify), content.digests(loaded.verify));
        let mut chunks = found.iter().zip(expected.iter()).enumerate();
        let differ = chunks.find(|(_, (found, expected))| found != expected);
        return Err(Failure::Changed(match differ {
            Some((number, (found, expected))) => format!(
                "the {name} is damaged in memory, in the {} from byte {:#x} on: {} {found}, was {expected} when loaded",
                units::bytes(chunk_size_bytes(content.size_bytes)),
                number as u64 * chunk_size_bytes(content.size_bytes),
                algorithm.name(),
            ),
            None => {
                format!("the note of what is loaded has not one digest for each part of the {name}")
            }
        }));
    }
    Ok(())
}

/// What is done when nothing can be refused any more but by the kernel: a machine that stays must not have lost its
/// network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LastSteps {
    /// Dirty data is not written out.
    pub(crate) no_sync: bool,
    /// Network interfaces but the loopback are brought down.
    pub(crate) interfaces_down: bool,
}

impl LastSteps {
    pub(crate) fn take(self) {
        if !self.no_sync {
            reboot::sync();
        }
        if self.interfaces_down {
            for error in interfaces::bring_down() {
                output::warn(&format!("warning: {error}"));
            }
        }
    }
}

/// `kleap exec`.
pub(crate) fn exec(arguments: &ExecArguments) -> Result<(), Failure> {
    let exec_requested = counter::now().unwrap_or(0);
    let check = machine::check();
    let store = match Store::open() {
        Ok(store) => store,
        // Why nothing can be done at all is the better answer.
        Err(failure) => return Err(check.err().unwrap_or(failure)),
    };
    let loaded = match (store.loaded()?, &check) {
        (Some(loaded), _) => loaded,
        (None, Ok(())) => return Err(Failure::NothingLoaded),
        (None, Err(_)) => return check.and(Err(Failure::NothingLoaded)),
    };
    let loaded = Loaded {
        hand_off: loaded.hand_off.with(&arguments.hand_off),
        ..loaded
    };
    if loaded.strategy == Strategy::Kernel {
        check_no_wishes(arguments)?;
        return exec_by_kernel(arguments, &loaded);
    }
    // Whoever forbids kexec_load after a load with --early means the next one.
    let has_stage = loaded.early && kexec::is_loaded() == Some(true);
    let forbidden = match check {
        Ok(()) => None,
        Err(failure) if has_stage => Some(failure),
        Err(failure) => return Err(failure),
    };
    let files = store.files(&loaded)?;
    let tree = machine::device_tree()?;
    let memory = Memory::find(&tree)?;
    // Before anything is read: a page that the kernel has given up cannot be.
    check_memory(&loaded.layout, &memory)?;
    // From here on nothing moves any more, where the kernel allows that; what has moved is found below.
    let pin = Pin::preferring(
        memory.pin_first(&loaded.layout),
        &files.regions(&loaded.layout),
    );
    if let Err(error) = &pin {
        output::warn(&format!("warning: {error}"));
    }
    let noted = loaded.layout.clone();
    let loaded = Loaded {
        layout: current_layout(&loaded, &files, &memory)?,
        ..loaded
    };
    check_memory(&loaded.layout, &memory)?;
    check_payload(&loaded, &files)?;
    #[cfg(feature = "fault-injection")]
    let files = fault::inject_into_payload(arguments, &loaded, files);
    if let Some(failure) = forbidden {
        check_no_wishes(arguments)?;
        if loaded.layout != noted {
            return Err(failure);
        }
        announce(&loaded, "as it was given to the kernel by load --early");
        arguments.last_steps.take();
        return Err(reboot::kexec().into());
    }
    // Whatever is slow, or can fail, or can be interrupted comes before `kexec_load`: between that and
    // `reboot` there is nothing.
    machine::kexec_cost()?.check(true).inspect_err(|_| {
        // Which holds as much as the new one would take, until that is there.
        if has_stage && loaded.layout == noted {
            output::warn(
                "what load --early gave to the kernel is still there: systemctl kexec or kexec -e enters it",
            );
        }
    })?;
    let mut stage = stage(&loaded, &memory)?;
    if !loaded.early && kexec::is_loaded() == Some(true) {
        output::note("kleap: replacing the kernel that another program has loaded for kexec");
    }
    let plan = &stage.summary;
    announce(
        &loaded,
        &format!(
            "moving {}, verifying {}, {} translation tables",
            units::bytes(plan.moved_bytes),
            units::bytes(plan.verified_bytes),
            plan.tables,
        ),
    );
    arguments.last_steps.take();
    stage.stamp(exec_requested, counter::now().unwrap_or(0))?;
    #[cfg(feature = "fault-injection")]
    fault::inject_into_stage(arguments, &mut stage);
    store.mark_exec()?;
    let segment = kexec::Segment {
        start: stage.start,
        bytes: &stage.bytes,
    };
    let given = kexec::load(stage.start, &[segment]);
    let is_given = given.is_ok();
    let error: Failure = match given {
        Ok(()) => reboot::kexec().into(),
        Err(error) => error.into(),
    };
    // Still here: nothing was handed over, so nothing stays loaded in the kernel but what was there before.
    drop((pin, files));
    let undone = match (is_given, loaded.early) {
        (false, _) => store.not_given(),
        (true, true) => store.given_early(),
        (true, false) => store.unmark_exec(),
    };
    if let Err(unload) = undone {
        output::warn(&format!("and the kernel keeps what it was given: {unload}"));
    }
    Err(error)
}

/// Refuses what cannot be changed any more: the kernel has the stage, and shows nothing of it.
fn check_no_wishes(arguments: &ExecArguments) -> Result<(), Failure> {
    if arguments.hand_off.is_empty() {
        return Ok(());
    }
    Err(Failure::Unsupported(
        "the kernel was given the hand-over by load, which is where --verbose-handoff, --on-failure and --serial belong: \
         load again with them"
            .into(),
    ))
}

fn announce(loaded: &Loaded, what: &str) {
    let name = loaded
        .kernel_banner
        .as_deref()
        .unwrap_or(&loaded.kernel_path);
    output::note(&format!(
        "kleap: entering {}: {what}",
        output::printable(name)
    ));
}

/// The kernel has everything already, and shows nothing of it: there is nothing to check.
fn exec_by_kernel(arguments: &ExecArguments, loaded: &Loaded) -> Result<(), Failure> {
    if kexec::is_loaded() == Some(false) {
        return Err(Failure::Changed(
            "the kernel no longer has what was loaded".into(),
        ));
    }
    let total: u64 = loaded
        .pieces()
        .map(|(_, _, content)| content.size_bytes)
        .sum();
    announce(
        loaded,
        &format!("the kernel copies {} to their places", units::bytes(total)),
    );
    arguments.last_steps.take();
    Err(reboot::kexec().into())
}

#[cfg(feature = "fault-injection")]
pub(crate) use fault::Fault;

/// Test only: damages what was checked, between the last check and the hand-over.
#[cfg(feature = "fault-injection")]
mod fault {
    use super::{ExecArguments, Files, Loaded};
    use kleap_plan::Stage;
    use kleap_relocator::abi::{self, HAND_OFF_OFFSET_BYTES, HandOff};
    use kleap_relocator::crc32c;
    use std::str::FromStr;

    /// What to break.
    #[derive(Debug, Clone)]
    pub(crate) enum Fault {
        /// `PIECE:OFFSET`: one bit of a piece of the payload.
        Piece { piece: String, offset_bytes: u64 },
        /// `stage:OFFSET`: one bit of the stage.
        Stage { offset_bytes: usize },
        /// `tables:OFFSET`: one bit of each of the two sets of tables.
        Tables { offset_bytes: u64 },
        /// `portable`: no instruction is used that some CPUs do not have.
        Portable,
        /// `exception`: the first piece is said to be where nothing is mapped, with a right digest of the
        /// block.
        Exception,
        /// `lpis:off`, `lpis:on`: what is to become of LPIs is decided the other way.
        Lpis(abi::Lpis),
        /// `lpis:forgotten`: the relocator is told of no redistributors.
        LpisForgotten,
        /// `uart:silent`: the console is said to be one that never has room, and the Image is damaged.
        UartSilent,
        /// `uart:unmapped`: the console is said to be where nothing is mapped, and the Image is damaged.
        UartUnmapped,
        /// `psci:other`, `psci:none`: the machine's PSCI is said to be called by the other conduit, or not to
        /// be there, and the Image is damaged.
        Psci { is_there: bool },
        /// `early-exception`: an undefined instruction before the MMU is on.
        EarlyException,
    }

    impl FromStr for Fault {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            match text {
                "portable" => return Ok(Self::Portable),
                "exception" => return Ok(Self::Exception),
                "early-exception" => return Ok(Self::EarlyException),
                "uart:silent" => return Ok(Self::UartSilent),
                "uart:unmapped" => return Ok(Self::UartUnmapped),
                "psci:other" => return Ok(Self::Psci { is_there: true }),
                "psci:none" => return Ok(Self::Psci { is_there: false }),
                "lpis:off" => return Ok(Self::Lpis(abi::Lpis::TurnOff)),
                "lpis:on" => return Ok(Self::Lpis(abi::Lpis::LeaveOn)),
                "lpis:forgotten" => return Ok(Self::LpisForgotten),
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
            if piece == "tables" {
                return Ok(Self::Tables { offset_bytes });
            }
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
        mut files: Files,
    ) -> Files {
        for fault in &arguments.inject_fault {
            let Fault::Piece {
                piece,
                offset_bytes,
            } = fault
            else {
                continue;
            };
            for (name, place, content) in loaded.pieces() {
                let mut before = 0;
                let Ok(()) = files.write(place, content.size_bytes, |part| {
                    let length = part.len() as u64;
                    if name == piece && (before..before + length).contains(offset_bytes) {
                        part[usize::try_from(offset_bytes - before).unwrap_or(0)] ^= 1;
                        say(&format!(
                            "flipped a bit of byte {offset_bytes} of the {name}"
                        ));
                    }
                    before += length;
                    Ok::<(), std::convert::Infallible>(())
                });
            }
        }
        files
    }

    /// Flips a bit of a byte of the stage.
    fn flip(stage: &mut Stage, offset_bytes: usize) {
        if let Some(byte) = stage.bytes.get_mut(offset_bytes) {
            *byte ^= 1;
            say(&format!(
                "flipped a bit of byte {offset_bytes} of the stage"
            ));
        }
    }

    /// What of the hand-off block can be changed.
    struct Parts {
        header: abi::Header,
        pieces: Vec<abi::Piece>,
        digests: Vec<u64>,
        regions: Vec<abi::Redistributors>,
    }

    impl Parts {
        /// The first chunk gets a digest that it does not have.
        fn expect_another_digest(&mut self) {
            if let Some(word) = self.digests.first_mut() {
                *word ^= 1;
            }
        }
    }

    /// Changes the hand-off block, with a right digest, and says what was changed.
    fn edit(stage: &mut Stage, what: &str, change: impl FnOnce(&mut Parts)) {
        let block_at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap_or(usize::MAX);
        let Ok(hand_off) = HandOff::decode(&stage.bytes[block_at..]) else {
            return;
        };
        let mut parts = Parts {
            header: hand_off.header,
            pieces: hand_off.pieces().collect(),
            digests: hand_off.digest_words().collect(),
            regions: hand_off.redistributors().collect(),
        };
        let moves: Vec<_> = hand_off.moves().collect();
        change(&mut parts);
        let Parts {
            header,
            pieces,
            digests,
            regions,
        } = &parts;
        if let Ok(block) = abi::encode(header, pieces, digests, &moves, regions) {
            stage.bytes[block_at..][..block.len()].copy_from_slice(&block);
            say(what);
        }
    }

    pub(crate) fn inject_into_stage(arguments: &ExecArguments, stage: &mut Stage) {
        for fault in &arguments.inject_fault {
            inject_one(fault, stage);
        }
    }

    fn inject_one(fault: &Fault, stage: &mut Stage) {
        let block_at = usize::try_from(HAND_OFF_OFFSET_BYTES).unwrap_or(usize::MAX);
        match fault {
            Fault::Stage { offset_bytes } => flip(stage, *offset_bytes),
            Fault::Tables { offset_bytes } => {
                let Ok(hand_off) = HandOff::decode(&stage.bytes[block_at..]) else {
                    return;
                };
                let header = hand_off.header;
                for set in [header.ttbr_two_privileges, header.ttbr_one_privilege] {
                    let at = set
                        .saturating_sub(header.stage)
                        .saturating_add(*offset_bytes);
                    flip(stage, usize::try_from(at).unwrap_or(usize::MAX));
                }
            }
            Fault::Portable => edit(stage, "no optional instructions", |parts| {
                parts.header.portable = true;
            }),
            Fault::Exception => {
                edit(stage, "the Image is said to be at 0x1000", |parts| {
                    parts.pieces[0].start = 0x1000;
                    parts.header.kernel_entry = 0x1000;
                });
            }
            Fault::Lpis(lpis) => {
                edit(stage, &format!("LPIs: {lpis:?}"), |parts| {
                    parts.header.lpis = *lpis;
                });
            }
            Fault::UartSilent => {
                // A PL011's registers, read as an 8250's: UARTRSR where LSR is wanted is 0 for ever.
                edit(stage, "a console that never has room", |parts| {
                    parts.expect_another_digest();
                    parts.header.uart = parts.header.uart.map(|uart| abi::Uart::Ns16550 {
                        base: uart.base(),
                        reg_shift: 0,
                        width_bytes: 1,
                    });
                });
            }
            Fault::UartUnmapped => {
                edit(stage, "a console at 0x1000", |parts| {
                    parts.expect_another_digest();
                    parts.header.uart = Some(abi::Uart::Pl011 { base: 0x1000 });
                });
            }
            Fault::Psci { is_there } => {
                edit(stage, "PSCI as it is not", |parts| {
                    parts.expect_another_digest();
                    parts.header.psci =
                        parts
                            .header
                            .psci
                            .filter(|_| *is_there)
                            .map(|psci| match psci {
                                abi::Conduit::Smc => abi::Conduit::Hvc,
                                abi::Conduit::Hvc => abi::Conduit::Smc,
                            });
                });
            }
            Fault::LpisForgotten => {
                edit(stage, "no redistributors", |parts| parts.regions.clear());
            }
            Fault::EarlyException => {
                const TLBI: [u32; 2] = [0xd508_871f, 0xd50c_871f]; // vmalle1, alle2
                let mut count = 0;
                for word in stage.bytes[..block_at].as_chunks_mut::<4>().0 {
                    if TLBI.contains(&u32::from_le_bytes(*word)) {
                        *word = [0; 4];
                        count += 1;
                    }
                }
                // With a right digest: or else that would be found, and not be run.
                let code = stage.bytes[..block_at].to_vec();
                edit(
                    stage,
                    &format!("replaced {count} instructions by undefined ones"),
                    |parts| {
                        let size_bytes = usize::try_from(parts.header.program_size_bytes);
                        let program = code.get(..size_bytes.unwrap_or(0));
                        parts.header.program_crc32c =
                            crc32c::update(0, program.unwrap_or_default());
                    },
                );
            }
            Fault::Piece { .. } => {}
        }
    }
}
