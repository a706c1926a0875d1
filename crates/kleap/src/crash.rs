//! `load --panic` and `unload --panic`: a kernel that is entered when this one panics, to save its memory.
//!
//! Linux has memory for it, set aside by `crashkernel=`, and `kexec_load(2)` copies a crash kernel there at once: what
//! kleap calls in place. So there is no strategy to choose, no page of ours, nothing to pin, and nothing to give back
//! but by the kernel's own unload. It is not noted anywhere either, because the kernel shows all that counts
//! (`/sys/kernel/kexec_crash_loaded`), and a note could only be wrong.
//!
//! The panicking kernel jumps to the relocator. That does what it does in any hand-over, less what a kernel that is broken
//! should not be trusted with, or what must not be touched: it moves nothing, and it leaves the interrupt controller alone,
//! whose tables lie in memory that is to be saved (a kernel that is told of `linux,elfcorehdr` expects to find LPIs
//! on). It verifies all that was loaded, the headers of `/proc/vmcore` among it, with the MMU and the caches on: where
//! memory may have been overwritten by whatever led to the panic, that is worth more than ever, and it takes milliseconds
//! where kexec-tools takes seconds.
//!
//! Rejected: `kexec_file_load(2)`, which makes the headers itself, but has nobody who verifies, takes no device tree,
//! and is in no Debian kernel.

use crate::LoadArguments;
use crate::error::Failure;
use crate::hand_off::HandOffOptions;
use crate::load::Payload;
use crate::machine::{self, Devices};
use crate::payload::{Content, Verify};
use crate::{last_words, output, place, store, units};
use kleap_devicetree::CrashBoot;
use kleap_linux::{crash, facts, kexec};
use kleap_memmap::iomem::{self, Entry};
use kleap_memmap::{Mapped, PhysRange, PhysRanges};
use kleap_plan::core_header::{CoreHeaderInput, core_header};
use kleap_plan::layout::{self, BASE_ALIGNMENT_BYTES, UNIT_MIN_BYTES};
use kleap_plan::{Layout, Stage, StageInput, Strategy};
use kleap_relocator::abi::Lpis;

/// Most ranges that a crash kernel is told it may use: more are not looked at (`MAX_USABLE_RANGES` of arm64).
const USABLE_RANGES_MAX: usize = 2;
/// Less than this beside what is loaded, bytes, and the crash kernel will hardly get to its own init.
const RUN_MIN_BYTES: u64 = 32 << 20;

/// The memory that `crashkernel=` has set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reserved {
    /// Where a crash kernel is loaded to.
    main: PhysRange,
    /// All of it, that one first.
    usable: Vec<PhysRange>,
}

impl Reserved {
    /// What the kernel shows; `None` if there is none.
    ///
    /// With `crashkernel=SIZE,high` there are two: the one below 4 GiB is for devices that reach no further, and the
    /// kernel takes no segment there.
    fn find(entries: &[Entry]) -> Option<Self> {
        let usable: Vec<PhysRange> = iomem::crash_regions(entries)
            .into_iter()
            .rev()
            .take(USABLE_RANGES_MAX)
            .collect();
        Some(Self {
            main: *usable.first()?,
            usable,
        })
    }

    fn size_bytes(&self) -> u64 {
        self.usable.iter().map(|range| range.size_bytes()).sum()
    }
}

/// The headers of the core file: all memory but what the crash kernel runs in.
fn headers(entries: &[Entry], reserved: &PhysRanges) -> Result<Vec<u8>, Failure> {
    let text = iomem::labelled(entries, iomem::KERNEL_CODE)
        .union(&iomem::labelled(entries, iomem::KERNEL_DATA));
    let memory = iomem::all_system_ram(entries).difference(reserved);
    let known = crash::mapped_memory();
    if known.is_empty() {
        output::warn(
            "warning: /proc/kcore cannot be read, so the core file will have no virtual addresses: makedumpfile does \
             without, vmcore-dmesg and gdb do not",
        );
    }
    let (kernel, linear_map) = apart(known, &text);
    core_header(&CoreHeaderInput {
        cpu_notes: &crash::cpu_notes()?,
        vmcoreinfo: crash::vmcoreinfo_note()?,
        kernel,
        memory: &memory,
        linear_map: &linear_map,
    })
    .map_err(|error| Failure::Unsupported(error.to_string()))
}

/// The kernel's own mapping, and the linear map. The memory with its text is in both, of which the linear map's
/// part is the larger.
fn apart(mut known: Vec<Mapped>, text: &PhysRanges) -> (Option<Mapped>, Vec<Mapped>) {
    let with_text: Vec<(u64, usize)> = known
        .iter()
        .enumerate()
        .filter(|(_, mapped)| text.overlaps(mapped.range))
        .map(|(index, mapped)| (mapped.range.size_bytes(), index))
        .collect();
    let smallest = with_text.iter().min().filter(|_| with_text.len() > 1);
    let kernel = smallest.map(|(_, index)| known.swap_remove(*index));
    (kernel, known)
}

/// A place for every piece in memory that was set aside, and one for the headers at its end.
fn arrange(
    payload: &Payload<'_>,
    reserved: &Reserved,
    header_bytes: u64,
) -> Result<(Layout, PhysRange), Failure> {
    let too_small = |wanted_bytes: u64| Failure::CrashMemory {
        needed_bytes: wanted_bytes,
        reserved: reserved.main,
    };
    let requirements = payload.requirements(place::STAGE_BYTES);
    let needed_bytes = [
        requirements
            .image_size_bytes
            .saturating_add(requirements.text_offset_bytes),
        requirements.initrd_bytes,
        requirements.device_tree_bytes,
        requirements.stage_bytes,
        header_bytes,
    ]
    .into_iter()
    .map(|bytes| bytes.checked_next_multiple_of(BASE_ALIGNMENT_BYTES))
    .try_fold(0_u64, |sum, bytes| sum.checked_add(bytes?))
    .unwrap_or(u64::MAX);
    let room_bytes = header_bytes.next_multiple_of(UNIT_MIN_BYTES);
    let at = reserved
        .main
        .size_bytes()
        .checked_sub(room_bytes)
        .and_then(|offset_bytes| reserved.main.start().checked_add(offset_bytes))
        .map(|at| at.align_down(UNIT_MIN_BYTES))
        .filter(|at| *at > reserved.main.start())
        .ok_or_else(|| too_small(needed_bytes))?;
    let header = PhysRange::from_size(at, room_bytes).map_err(|_| too_small(needed_bytes))?;
    let free = PhysRanges::from(reserved.main).difference(&header.into());
    let layout = layout::choose(
        &[],
        BASE_ALIGNMENT_BYTES,
        &free,
        &requirements,
        Strategy::Kernel,
    )
    .map_err(|_| too_small(needed_bytes))?;
    Ok((layout, header))
}

/// `kleap load --panic`.
pub(crate) fn load(arguments: &LoadArguments) -> Result<(), Failure> {
    kexec::probe_crash()?;
    machine::check_process("reading physical addresses")?;
    let entries = machine::iomem_entries()?;
    let reserved = Reserved::find(&entries).ok_or_else(|| {
        Failure::Unsupported(
            "no memory is set aside for a crash kernel: boot with crashkernel=256M, or what this machine needs".into(),
        )
    })?;
    let mut payload = Payload::read(arguments)?;
    let verify = payload.verify();
    let all: PhysRanges = iomem::labelled(&entries, iomem::CRASH_KERNEL);
    let headers = headers(&entries, &all)?;
    let (layout, header_range) = arrange(&payload, &reserved, headers.len() as u64)?;

    // Read once more by us: the kernel takes it from there.
    place::check_available_to_us(
        (payload.kernel.pieces.size_bytes()).saturating_add(
            payload
                .initrd
                .as_ref()
                .map_or(0, |initrd| initrd.pieces.size_bytes()),
        ),
    )?;
    let image = std::mem::take(&mut payload.kernel.pieces).take()?;
    let initrd = match &mut payload.initrd {
        Some(initrd) => Some(std::mem::take(&mut initrd.pieces).take()?),
        None => None,
    };
    let content = |bytes: &[u8]| Content::of(verify, &[bytes]);
    let initrd_content = initrd.as_deref().map(content);
    let boot = CrashBoot {
        core_header: PhysRange::from_size(header_range.start(), headers.len() as u64)
            .unwrap_or(header_range),
        usable: &reserved.usable,
    };
    let (dtb, timeline_offset_bytes) =
        payload.next_tree(&layout, initrd_content.as_ref(), Some(boot))?;
    let stage = stage(
        &payload,
        &Contents {
            layout: &layout,
            image: content(&image),
            initrd: initrd_content,
            device_tree: content(&dtb),
            timeline_offset_bytes,
            core_header: (header_range, content(&headers)),
        },
        &HandOffOptions::default().with(&arguments.hand_off),
    )?;
    #[cfg(feature = "fault-injection")]
    let (image, initrd, dtb, headers) =
        inject_faults(&arguments.inject_fault, (image, initrd, dtb, headers));
    let mut segments = vec![
        (layout.image.start(), image.as_slice()),
        (layout.device_tree.start(), dtb.as_slice()),
        (stage.start, stage.bytes.as_slice()),
        (header_range.start(), headers.as_slice()),
    ];
    if let (Some(place), Some(bytes)) = (&layout.initrd, &initrd) {
        segments.push((place.start(), bytes));
    }
    let segments: Vec<kexec::Segment<'_>> = segments
        .into_iter()
        .map(|(start, bytes)| kexec::Segment { start, bytes })
        .collect();

    let _lock = store::lock()?;
    let was_loaded = kexec::is_crash_loaded() == Some(true);
    let loaded = kexec::load_crash(stage.start, &segments);
    if loaded.is_err() && was_loaded && kexec::is_crash_loaded() == Some(false) {
        output::warn("the crash kernel that was loaded before is gone too: load one again");
    }
    loaded?;
    report(&reserved, &layout, &segments, &stage, verify);
    Ok(())
}

/// Image, initrd, device tree, headers of the core file.
#[cfg(feature = "fault-injection")]
type Bytes = (Vec<u8>, Option<Vec<u8>>, Vec<u8>, Vec<u8>);

/// Test only: flips a bit of what has its digest already, and says so.
#[cfg(feature = "fault-injection")]
fn inject_faults(faults: &[crate::exec::Fault], mut bytes: Bytes) -> Bytes {
    for fault in faults {
        let crate::exec::Fault::Piece {
            piece,
            offset_bytes,
        } = fault
        else {
            continue;
        };
        let (image, initrd, dtb, headers) = &mut bytes;
        let damaged = match piece.as_str() {
            "Image" => Some(image),
            "initrd" => initrd.as_mut(),
            "device tree" => Some(dtb),
            "core-header" => Some(headers),
            _ => None,
        };
        let byte = damaged.and_then(|bytes| bytes.get_mut(usize::try_from(*offset_bytes).ok()?));
        if let Some(byte) = byte {
            *byte ^= 1;
            output::note(&format!(
                "kleap: TEST: flipped a bit of byte {offset_bytes} of the {piece}"
            ));
        }
    }
    bytes
}

/// What the stage is made from.
struct Contents<'a> {
    layout: &'a Layout,
    image: Content,
    initrd: Option<Content>,
    device_tree: Content,
    timeline_offset_bytes: u64,
    core_header: (PhysRange, Content),
}

fn stage(
    payload: &Payload<'_>,
    contents: &Contents<'_>,
    options: &HandOffOptions,
) -> Result<Stage, Failure> {
    let tree = machine::device_tree()?;
    let devices = Devices::find(&tree, options.serial.as_ref());
    let verify = payload.verify();
    let content = |content: &Content| kleap_plan::stage::Content {
        size_bytes: content.size_bytes,
        digests: content.digests(verify),
    };
    let (header_range, header) = &contents.core_header;
    Ok(kleap_plan::stage::prepare(&StageInput {
        layout: contents.layout,
        granule_bytes: facts::page_size_bytes(),
        image: content(&contents.image),
        image_size_bytes: payload.kernel.header.image_size_bytes,
        initrd: contents.initrd.as_ref().map(content),
        device_tree: content(&contents.device_tree),
        timeline_offset_bytes: contents.timeline_offset_bytes,
        kernel_page_size_bytes: payload
            .kernel
            .header
            .page_size
            .map(kleap_image::PageSize::bytes),
        uart: devices.uart,
        psci: devices.psci,
        // Their tables are memory that is to be saved.
        redistributors: &[],
        lpis: Lpis::LeaveOn,
        verbose: options.verbose,
        on_failure: options.on_failure.into(),
        record: last_words::place(&tree, &payload.memory, contents.layout),
        core_header: Some((*header_range, content(header))),
        mappable: &PhysRanges::new(),
    })?)
}

/// Says what was loaded, and what is left for it to run in.
fn report(
    reserved: &Reserved,
    layout: &Layout,
    segments: &[kexec::Segment<'_>],
    stage: &Stage,
    verify: Verify,
) {
    if verify == Verify::None {
        output::warn(
            "warning: --verify none: a crash kernel that the crash has damaged is entered all the same",
        );
    }
    let loaded_bytes: u64 = segments
        .iter()
        .map(|segment| segment.bytes.len() as u64)
        .sum();
    // The device tree and the relocator are given back, or as good as; the Image's BSS is not in the segments.
    let left_bytes = reserved
        .size_bytes()
        .saturating_sub(loaded_bytes)
        .saturating_sub(
            layout
                .image
                .target
                .size_bytes()
                .saturating_sub(segments.first().map_or(0, |image| image.bytes.len() as u64)),
        );
    output::note(&format!(
        "kleap: loaded for a panic: {} in the {} at {}, {} verified before it is entered; {} are left for it to run in",
        units::bytes(loaded_bytes),
        units::bytes(reserved.main.size_bytes()),
        reserved.main,
        units::bytes(stage.summary.verified_bytes),
        units::bytes(left_bytes),
    ));
    if left_bytes < RUN_MIN_BYTES {
        output::warn(&format!(
            "warning: that is little, and it has to unpack its initrd there: boot with a larger crashkernel= than {}",
            units::bytes(reserved.size_bytes())
        ));
    }
}

/// `kleap unload --panic`.
pub(crate) fn unload() -> Result<(), Failure> {
    // Where kexec_load(2) is missing or refused, the other system call may still unload.
    let permitted = kexec::probe_crash().map_err(Failure::from);
    if permitted
        .as_ref()
        .is_err_and(|failure| !failure.leaves_file_load())
    {
        return permitted;
    }
    machine::check_device_tree()?;
    let _lock = store::lock()?;
    let was_loaded = kexec::is_crash_loaded() == Some(true);
    if was_loaded || permitted.is_err() {
        kexec::unload_crash()?;
    }
    output::note(if was_loaded {
        "kleap: unloaded the crash kernel"
    } else {
        "kleap: no crash kernel was loaded"
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<(u64, Vec<u64>)> {
        let entries = iomem::parse(text.as_bytes()).unwrap();
        let reserved = Reserved::find(&entries)?;
        let starts = reserved
            .usable
            .iter()
            .map(|range| range.start().as_u64())
            .collect();
        Some((reserved.main.start().as_u64(), starts))
    }

    #[test]
    fn the_kernels_own_mapping_is_the_smaller_one() {
        let mapped = |start: u64, size_bytes: u64, virtual_start: u64| Mapped {
            range: PhysRange::from_size(kleap_memmap::PhysAddr::new(start), size_bytes).unwrap(),
            virtual_start,
        };
        // `_text` is a little before what iomem shows of it.
        let text = PhysRanges::from(mapped(0x4021_0000, 0x200_0000, 0).range);
        let kernel = mapped(0x4020_0000, 0x240_0000, 0xffff_8000_8000_0000);
        let linear = mapped(0x4000_0000, 0x8000_0000, 0xffff_0000_0000_0000);
        let other = mapped(0x8_0000_0000, 0x1000, 0xffff_0007_c000_0000);
        for known in [[kernel, linear, other], [other, linear, kernel]] {
            let (found, rest) = apart(known.to_vec(), &text);
            assert_eq!(found, Some(kernel));
            assert_eq!(rest.len(), 2);
            assert!(rest.contains(&linear) && rest.contains(&other));
        }
        assert_eq!(
            apart(vec![linear, other], &text),
            (None, vec![linear, other])
        );
    }

    #[test]
    fn the_higher_range_takes_the_kernel_and_the_lower_is_used_too() {
        assert_eq!(
            found(
                "40000000-bfffffff : System RAM\n  40210000-41c4ffff : Kernel code\n  a0000000-afffffff : Crash kernel\n"
            ),
            Some((0xa000_0000, vec![0xa000_0000]))
        );
        assert_eq!(
            found(
                "40000000-bfffffff : System RAM\n  b8000000-bfffffff : Crash kernel\n\
                 100000000-1bfffffff : System RAM\n  1a0000000-1afffffff : Crash kernel\n"
            ),
            Some((0x1_a000_0000, vec![0x1_a000_0000, 0xb800_0000]))
        );
        // Side by side they are still two: the kernel takes segments in the higher one alone.
        assert_eq!(
            found(
                "40000000-10fffffff : System RAM\n  f8000000-ffffffff : Crash kernel\n  \
                 100000000-10fffffff : Crash kernel\n"
            ),
            Some((0x1_0000_0000, vec![0x1_0000_0000, 0xf800_0000]))
        );
        assert_eq!(found("40000000-bfffffff : System RAM\n"), None);
    }
}
