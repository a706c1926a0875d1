//! `load` and `unload`.
//!
//! Everything that can be refused is refused before the first huge page is asked for; from then on every
//! way out but success gives the pages back ([`Store::abandon`]). A load that replaces another one is built
//! beside it: while it is built there must be room for both, and if it fails the first one stays.

use crate::cpu::{Support, page_size_support};
use crate::error::{Failure, check_interrupted};
use crate::hand_off::HandOffOptions;
use crate::machine::{self, Devices, Memory};
use crate::payload::{Content, Files, Loaded, Verify};
use crate::pieces::{Pieces, check_regular, read_error};
use crate::place::{self, Placed};
use crate::sources::{Bundle, Initrd, Kernel};
use crate::store::Store;
use crate::{LoadArguments, UnloadArguments, crash, exec, hold, output, units};
use kleap_devicetree::{CrashBoot, MAX_BOOTARGS_BYTES, NextBoot, RNG_SEED_BYTES, SecureBoot, Tree};
use kleap_image::Header;
use kleap_linux::{facts, interrupts, kexec};
use kleap_memmap::PhysRange;
use kleap_plan::layout::BASE_ALIGNMENT_BYTES;
use kleap_plan::stage::Summary;
use kleap_plan::{Layout, Place, Requirements, Strategy, layout};
use kleap_relocator::digest::{Algorithm, chunk_count};
use kleap_relocator::timeline;
use std::path::{Path, PathBuf};

/// Refuses a kernel whose page size this CPU is known not to have; warns where it is not known.
fn check_page_size(header: &Header, path: &Path) -> Result<(), Failure> {
    let Some(wanted) = header.page_size.map(kleap_image::PageSize::bytes) else {
        return Ok(());
    };
    let midr = facts::midr();
    match page_size_support(midr, facts::page_size_bytes(), wanted) {
        Support::Yes => Ok(()),
        Support::No => Err(Failure::Unsupported(format!(
            "{}: built for {} KiB pages, which this CPU (MIDR_EL1 {:#x}) does not have",
            path.display(),
            wanted / 1024,
            midr.unwrap_or(0),
        ))),
        Support::Unknown => {
            output::warn(&format!(
                "warning: built for {} KiB pages, and it is not known whether this CPU has them; \
                 should it not, the hand-over says so and resets the machine",
                wanted / 1024
            ));
            Ok(())
        }
    }
}

/// The command line without what the boot loader added for itself.
pub(crate) fn without_boot_image(command_line: &str) -> String {
    without_word(command_line, "BOOT_IMAGE")
}

/// The command line without a parameter, each time that it is there.
fn without_word(command_line: &str, name: &str) -> String {
    // Without a value it is another word, and none of the kernel's.
    let is_it = |word: &str| {
        word.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('='))
    };
    let words: Vec<&str> = command_line
        .split(' ')
        .filter(|word| !word.is_empty() && !is_it(word))
        .collect();
    words.join(" ")
}

/// What the options say, or else the kernel's file, or else the device tree.
fn command_line(
    arguments: &LoadArguments,
    of_file: Option<&str>,
    tree: &Tree,
) -> Result<String, Failure> {
    // A crash kernel that set memory aside for another one would have less, if it got any.
    let for_purpose = |line: &str| match arguments.panic {
        true => without_word(line, "crashkernel"),
        false => line.to_owned(),
    };
    let line = if arguments.reuse_cmdline {
        let reused = for_purpose(&without_boot_image(&facts::command_line()?));
        match &arguments.append {
            Some(more) => format!("{reused} {more}").trim().to_owned(),
            None => reused,
        }
    } else if let Some(line) = arguments
        .command_line
        .as_ref()
        .or(arguments.append.as_ref())
    {
        line.clone()
    } else {
        // A UKI's is made for the kernel that runs, too.
        for_purpose(of_file.or(tree.bootargs()).unwrap_or_default())
    };
    if line.len() > MAX_BOOTARGS_BYTES {
        return Err(Failure::CommandLine {
            length: line.len(),
            limit: MAX_BOOTARGS_BYTES,
        });
    }
    Ok(line)
}

/// The state of Secure Boot, for kernels that want to be told (Debian's).
fn secure_boot() -> SecureBoot {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    // Four bytes of attributes, then the value.
    match std::fs::read(variable)
        .ok()
        .and_then(|bytes| bytes.get(4).copied())
    {
        Some(0) => SecureBoot::Disabled,
        Some(_) => SecureBoot::Enabled,
        None => SecureBoot::Unknown,
    }
}

fn write_bytes(files: &mut Files, place: &Place, bytes: &[u8], verify: Verify) -> Content {
    let mut rest = bytes;
    let Ok(()) = files.write(place, bytes.len() as u64, |part| {
        let (now, later) = rest.split_at(part.len().min(rest.len()));
        part[..now.len()].copy_from_slice(now);
        rest = later;
        Ok::<(), std::convert::Infallible>(())
    });
    Content::of(verify, &[bytes])
}

/// Reads a piece straight into its pages. The digests are taken when all of it is there: then every CPU can do
/// some.
fn write_pieces(
    files: &mut Files,
    place: &Place,
    pieces: &mut Pieces,
    verify: Verify,
) -> Result<Content, Failure> {
    let size_bytes = pieces.size_bytes();
    files.write(place, size_bytes, |part| {
        check_interrupted()?;
        pieces.fill(part)
    })?;
    Ok(Content::of(verify, &files.slices(place, size_bytes)))
}

/// The device tree for the next kernel, and where the timeline is in it.
fn next_tree(
    mut tree: Tree,
    path: &Path,
    bootargs: &str,
    initrd: Option<PhysRange>,
    crash: Option<CrashBoot<'_>>,
) -> Result<(Vec<u8>, u64), Failure> {
    let tree_error = |what: String| Failure::DeviceTree {
        path: path.to_owned(),
        what,
    };
    let (mut kaslr_seed, mut rng_seed) = ([0; 8], [0; RNG_SEED_BYTES]);
    facts::random(&mut kaslr_seed)?;
    facts::random(&mut rng_seed)?;
    let prepared = tree
        .prepare(&NextBoot {
            bootargs,
            initrd,
            kaslr_seed: u64::from_ne_bytes(kaslr_seed),
            rng_seed: &rng_seed,
            timeline_bytes: timeline::SIZE_BYTES,
            old_dtb: None,
            secure_boot: Some(secure_boot()),
            crash,
        })
        .map_err(|error| tree_error(error.to_string()))?;
    for warning in prepared.warnings {
        output::warn(&format!("warning: {warning}"));
    }
    let dtb = tree
        .to_dtb()
        .map_err(|error| tree_error(error.to_string()))?;
    let value = kleap_devicetree::find_property_value(&dtb, "/chosen", timeline::PROPERTY)
        .ok_or_else(|| tree_error(format!("has no {} after it was added", timeline::PROPERTY)))?;
    Ok((dtb, value.start as u64))
}

/// What is to be loaded, read and checked.
pub(crate) struct Payload<'a> {
    arguments: &'a LoadArguments,
    pub(crate) kernel: Kernel,
    pub(crate) initrd: Option<Initrd>,
    tree: Tree,
    tree_path: PathBuf,
    command_line: String,
    pub(crate) memory: Memory,
}

impl<'a> Payload<'a> {
    /// Reads everything, and refuses what can be refused; takes no huge page.
    pub(crate) fn read(arguments: &'a LoadArguments) -> Result<Self, Failure> {
        let bundle = Bundle::read(arguments)?;
        check_page_size(&bundle.kernel.header, &arguments.image)?;
        if bundle.kernel.header.placement == kleap_image::Placement::NearDramBase {
            return Err(Failure::Unsupported(format!(
                "{}: from before Linux 4.6, which loses all memory below the place it is put at",
                arguments.image.display()
            )));
        }
        let mut initrd = Initrd::open(arguments, &bundle)?;
        bundle.announce(arguments);
        let own_tree = machine::device_tree()?;
        if initrd.is_none() && machine::has_efi(&own_tree) {
            initrd = Some(Initrd::empty());
        }
        let memory = Memory::find(&own_tree)?;
        for warning in Devices::find(&own_tree, arguments.hand_off.serial.as_ref()).warnings {
            output::warn(&format!("warning: {warning}"));
        }
        let given = match (&arguments.dtb, &bundle.device_tree) {
            (Some(path), _) => {
                check_regular(path)?;
                let bytes = facts::read_limited(path, kleap_devicetree::MAX_DTB_BYTES as u64)
                    .map_err(|error| read_error(path, error))?;
                Some((path.clone(), bytes))
            }
            (None, Some((name, bytes))) => {
                let path = format!("{} ({name})", arguments.image.display());
                Some((PathBuf::from(path), bytes.clone()))
            }
            (None, None) => None,
        };
        let (tree, tree_path) = match given {
            None => (own_tree, PathBuf::from(facts::DEVICE_TREE_PATH)),
            Some((path, bytes)) => {
                let mut tree = Tree::parse(&bytes).map_err(|error| Failure::DeviceTree {
                    path: path.clone(),
                    what: error.to_string(),
                })?;
                tree.carry_efi(&own_tree);
                (tree, path)
            }
        };
        let command_line = command_line(arguments, bundle.command_line.as_deref(), &tree)?;
        Ok(Self {
            arguments,
            kernel: bundle.kernel,
            initrd,
            tree,
            tree_path,
            command_line,
            memory,
        })
    }

    /// What is not in memory yet, bytes.
    fn unread_bytes(&self) -> u64 {
        let initrd = self.initrd.as_ref();
        let initrd_bytes = initrd.map_or(0, |initrd| initrd.pieces.unread_bytes());
        self.kernel
            .pieces
            .unread_bytes()
            .saturating_add(initrd_bytes)
    }

    pub(crate) fn requirements(&self, stage_bytes: u64) -> Requirements {
        Requirements {
            image_file_bytes: self.kernel.pieces.size_bytes(),
            image_size_bytes: self.kernel.header.image_size_bytes,
            text_offset_bytes: self.kernel.header.text_offset_bytes,
            initrd_bytes: self
                .initrd
                .as_ref()
                .map_or(0, |initrd| initrd.pieces.size_bytes()),
            device_tree_bytes: kleap_devicetree::MAX_DTB_BYTES as u64,
            stage_bytes,
        }
    }

    /// The tree for the next kernel, whose initrd will be at its place.
    pub(crate) fn next_tree(
        &self,
        layout: &Layout,
        initrd: Option<&Content>,
        crash: Option<CrashBoot<'_>>,
    ) -> Result<(Vec<u8>, u64), Failure> {
        let range = layout
            .initrd
            .as_ref()
            .zip(initrd)
            .and_then(|(place, content)| {
                PhysRange::from_size(place.start(), content.size_bytes).ok()
            });
        next_tree(
            self.tree.clone(),
            &self.tree_path,
            &self.command_line,
            range,
            crash,
        )
    }

    /// How it is verified.
    pub(crate) fn verify(&self) -> Verify {
        self.arguments.verify.unwrap_or_default()
    }

    /// The note of what is loaded.
    fn note(&self, layout: Layout, contents: Contents) -> Result<Loaded, Failure> {
        let arguments = self.arguments;
        Ok(Loaded {
            boot_id: facts::boot_id()?,
            generation: 0,
            payload: String::new(),
            files: Vec::new(),
            pinned_by: None,
            early: false,
            hand_off: HandOffOptions::default().with(&arguments.hand_off),
            window: arguments.wishes.window,
            layout,
            strategy: arguments.strategy.into(),
            verify: self.verify(),
            kernel_path: arguments.image.display().to_string(),
            kernel_banner: self.kernel.banner.clone(),
            image_size_bytes: self.kernel.header.image_size_bytes,
            kernel_page_size_bytes: self
                .kernel
                .header
                .page_size
                .map(kleap_image::PageSize::bytes),
            command_line: self.command_line.clone(),
            image: contents.image,
            initrd_path: self.initrd.as_ref().and_then(|initrd| initrd.name.clone()),
            initrd: contents.initrd,
            device_tree: contents.device_tree,
            timeline_offset_bytes: contents.timeline_offset_bytes,
        })
    }
}

/// The pieces as they were written.
struct Contents {
    image: Content,
    initrd: Option<Content>,
    device_tree: Content,
    timeline_offset_bytes: u64,
}

/// Loads into huge pages of ours.
fn load_owned(mut payload: Payload<'_>, store: &Store) -> Result<(Loaded, Summary), Failure> {
    let strategy: Strategy = payload.arguments.strategy.into();
    let mut new = store.create()?;
    let verify = payload.verify();
    let each = verify.algorithm().map_or(0, Algorithm::digest_words);
    let try_stage = |layout: &Layout| {
        let (image, initrd) = (payload.kernel.pieces.size_bytes(), &payload.initrd);
        let content = |size_bytes| Content {
            size_bytes,
            digests: vec![0; chunk_count(size_bytes) * each],
        };
        let trial = payload.note(
            layout.clone(),
            Contents {
                image: content(image),
                initrd: initrd
                    .as_ref()
                    .map(|initrd| content(initrd.pieces.size_bytes())),
                device_tree: content(kleap_devicetree::MAX_DTB_BYTES as u64),
                timeline_offset_bytes: 0,
            },
        )?;
        exec::stage(&trial, &payload.memory).map(|_| ())
    };
    place::drop_cached(
        &payload.requirements(place::STAGE_BYTES),
        std::iter::once(payload.arguments.image.as_path())
            .chain(payload.arguments.initrd.iter().map(PathBuf::as_path)),
    )?;
    // Pinned by this process until the holder has them too.
    let Placed { layout, pin } = place::find(
        store,
        &mut new,
        &payload.requirements(place::STAGE_BYTES),
        strategy,
        &payload.memory.within(payload.arguments.wishes.window),
        try_stage,
    )?;
    check_interrupted()?;
    // With the pages taken, there is less.
    place::check_rest()?;
    machine::kexec_cost()?.check(payload.arguments.early)?;
    let (name, generation) = (new.name.clone(), new.generation);
    let mut files = new.into_files()?;
    let kernel = &mut payload.kernel.pieces;
    let image = write_pieces(&mut files, &layout.image, kernel, verify)?;
    let initrd = match (&mut payload.initrd, &layout.initrd) {
        (Some(initrd), Some(place)) => {
            Some(write_pieces(&mut files, place, &mut initrd.pieces, verify)?)
        }
        _ => None,
    };
    check_interrupted()?;
    let (dtb, timeline_offset_bytes) = payload.next_tree(&layout, initrd.as_ref(), None)?;
    let device_tree = write_bytes(&mut files, &layout.device_tree, &dtb, verify);
    let mut loaded = payload.note(
        layout,
        Contents {
            image,
            initrd,
            device_tree,
            timeline_offset_bytes,
        },
    )?;
    loaded.generation = generation;
    loaded.payload = name;
    loaded.files = files.notes();
    loaded.early = payload.arguments.early;
    // What `exec` will do is tried out now, while there is nothing to lose.
    let stage = exec::stage(&loaded, &payload.memory)?;
    let holder = hold::start(&loaded, pin.as_ref());
    loaded.pinned_by = holder.as_ref().map(|(_, method)| method.name().to_owned());
    check_interrupted()?;
    store.prepare_commit(&loaded)?;
    if loaded.early {
        give_to_kernel(store, &stage)?;
    }
    store.commit(&loaded)?;
    if loaded.early {
        store.given_early()?;
    }
    if let Some((holder, _)) = holder {
        hold::go(holder);
    }
    Ok((loaded, stage.summary))
}

/// Says so if the kernel has something that somebody else has loaded, and that is about to be replaced.
fn announce_replacement(store: &Store) {
    if kexec::is_loaded() == Some(true) && !store.has_given_early() {
        output::note("kleap: replacing the kernel that another program has loaded for kexec");
    }
}

/// Gives the stage to the kernel, in a way that whoever finds this process dead takes it back.
fn give_to_kernel(store: &Store, stage: &kleap_plan::Stage) -> Result<(), Failure> {
    announce_replacement(store);
    store.mark_exec()?;
    let segment = kexec::Segment {
        start: stage.start,
        bytes: &stage.bytes,
    };
    kexec::load(stage.start, &[segment]).inspect_err(|_| {
        let _ = store.not_given();
    })?;
    Ok(())
}

/// Refuses a call for which there is no memory beside such copies; says what it will cost.
fn check_room(copies: machine::Copies) -> Result<machine::KexecCost, Failure> {
    place::check_available_to_us(copies.ours_bytes.saturating_add(copies.kernels_bytes))?;
    place::check_available_to_kernel(copies.kernels_bytes)?;
    let cost = machine::kexec_cost_beside(copies)?;
    cost.check(true)?;
    Ok(cost)
}

/// Gives all pieces to the kernel, which will copy them to their places.
fn load_by_kernel(mut payload: Payload<'_>, store: &Store) -> Result<(Loaded, Summary), Failure> {
    let requirements = payload.requirements(place::STAGE_BYTES);
    // Read by us, and copied by the kernel, which then makes its tables.
    let kernels_bytes = requirements
        .initrd_bytes
        .saturating_add(requirements.image_file_bytes)
        .saturating_add(requirements.device_tree_bytes + requirements.stage_bytes);
    let copies = machine::Copies {
        ours_bytes: payload.unread_bytes(),
        kernels_bytes,
    };
    check_room(copies)?;
    let mut memory = payload.memory.within(payload.arguments.wishes.window);
    let layout = loop {
        let layout = layout::choose(
            &[],
            BASE_ALIGNMENT_BYTES,
            &memory.plain,
            &requirements,
            Strategy::Kernel,
        )?;
        // Ends: each time there is less memory to choose from.
        if !memory.exclude_bad(&place::used_memory(&layout), layout.unit_bytes) {
            break layout;
        }
    };
    let take = |initrd: &mut Initrd| std::mem::take(&mut initrd.pieces).take();
    let initrd_bytes = payload.initrd.as_mut().map(take).transpose()?;
    let content_of =
        |bytes: &[u8]| Content::of(payload.arguments.verify.unwrap_or_default(), &[bytes]);
    let initrd = initrd_bytes.as_deref().map(content_of);
    let (dtb, timeline_offset_bytes) = payload.next_tree(&layout, initrd.as_ref(), None)?;
    let image_bytes = std::mem::take(&mut payload.kernel.pieces).take()?;
    let mut loaded = payload.note(
        layout,
        Contents {
            image: content_of(&image_bytes),
            initrd,
            device_tree: content_of(&dtb),
            timeline_offset_bytes,
        },
    )?;
    loaded.early = true;
    let new = store.create()?;
    (loaded.payload, loaded.generation) = (new.name, new.generation);
    let stage = exec::stage(&loaded, &payload.memory)?;
    let layout = &loaded.layout;
    let mut segments = vec![
        kexec::Segment {
            start: layout.image.start(),
            bytes: &image_bytes,
        },
        kexec::Segment {
            start: layout.device_tree.start(),
            bytes: &dtb,
        },
        kexec::Segment {
            start: stage.start,
            bytes: &stage.bytes,
        },
    ];
    if let (Some(place), Some(bytes)) = (&layout.initrd, &initrd_bytes) {
        segments.push(kexec::Segment {
            start: place.start(),
            bytes,
        });
    }
    check_interrupted()?;
    store.prepare_commit(&loaded)?;
    announce_replacement(store);
    store.mark_exec()?;
    kexec::load(stage.start, &segments).inspect_err(|_| {
        let _ = store.not_given();
    })?;
    store.commit(&loaded)?;
    store.given_early()?;
    Ok((loaded, stage.summary))
}

/// Gives the files to `kexec_file_load(2)`: the kernel does everything, and nobody verifies. What cannot be asked of it
/// is refused.
pub(crate) fn load_files(arguments: &LoadArguments) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    let refuse = |options: &str, what: &str| {
        Err(Failure::Unsupported(format!(
            "{options}: kexec_file_load(2) {what}"
        )))
    };
    if !matches!(arguments.verify, None | Some(Verify::None)) {
        return refuse("--verify", "leaves nobody to verify anything");
    }
    if arguments.dtb.is_some() {
        return refuse("--dtb", "takes no device tree");
    }
    if !arguments.hand_off.is_empty() {
        return refuse(
            "--verbose-handoff, --on-failure, --serial",
            "has no relocator that could heed them",
        );
    }
    if arguments.wishes.window.is_some() {
        return refuse("--mem-min, --mem-max", "lets the kernel choose the memory");
    }
    let mut payload = Payload::read(arguments)?;
    if payload.tree_path != Path::new(facts::DEVICE_TREE_PATH) {
        output::warn(&format!(
            "warning: the device tree in {} is not used: kexec_file_load(2) takes none",
            payload.tree_path.display()
        ));
    }
    // The kernel reads each file into memory of its own, and makes the segments of that, which may lie in CMA.
    let requirements = payload.requirements(0);
    let files_bytes = requirements
        .initrd_bytes
        .saturating_add(requirements.image_file_bytes);
    let copies = machine::Copies {
        ours_bytes: payload.unread_bytes().saturating_add(files_bytes),
        kernels_bytes: files_bytes,
    };
    let cost = check_room(copies)?;
    let store = Store::open_if_used()?;
    let image = std::mem::take(&mut payload.kernel.pieces).take()?;
    let kernel = kexec::image_file(&payload.arguments.image, &image)?;
    drop(image);
    let made;
    let initrd = match &mut payload.initrd {
        None => None,
        Some(initrd) => match initrd.pieces.whole_file() {
            Some(file) => Some(file),
            None => {
                let bytes = std::mem::take(&mut initrd.pieces).take()?;
                made = kexec::memory_file("kleap-initrd", &bytes)?;
                Some(&made)
            }
        },
    };
    kexec::file_load(
        kernel.as_fd(),
        initrd.map(AsFd::as_fd),
        &payload.command_line,
    )?;
    if let Some(cost) = cost.sentence(true) {
        output::note(&format!("kleap: {cost}"));
    }
    // The kernel has one thing loaded, and that is no longer ours.
    store.map_or(Ok(()), |store| store.forget())
}

/// `kleap load`.
pub(crate) fn load(arguments: &LoadArguments) -> Result<(), Failure> {
    if arguments.panic {
        return crash::load(arguments);
    }
    let strategy: Strategy = arguments.strategy.into();
    if let Err(refusal) = machine::check() {
        // The last resort: a kernel that takes nothing but files.
        if strategy != Strategy::Kernel
            || arguments.wishes.not_as_files
            || !refusal.leaves_file_load()
            || !kexec::has_file_load()
        {
            return Err(refusal);
        }
        load_files(arguments)?;
        output::warn(&format!(
            "warning: {refusal}: loaded by kexec_file_load(2) instead; the kernel places and copies everything, \
             and nobody verifies it. kleap status, exec and unload know nothing of it: enter it with systemctl \
             kexec or kexec -e, take it back with kexec -s -u"
        ));
        return Ok(());
    }
    let payload = Payload::read(arguments)?;
    let cost = machine::kexec_cost()?;
    match strategy {
        Strategy::Kernel => cost.check(true)?,
        // Whether it fits is seen when the pages are there.
        _ => cost.check_crash()?,
    }
    let store = Store::open()?;
    // With the lock, so that no other kleap is loading.
    kexec::check_prepared()?;
    if let Err(error) = interrupts::notice() {
        output::warn(&format!(
            "warning: {error}: should this be interrupted, kleap unload puts everything back"
        ));
    }
    let loaded = match strategy {
        Strategy::Kernel => load_by_kernel(payload, &store),
        _ => load_owned(payload, &store),
    };
    match loaded {
        Ok((loaded, summary)) => {
            // Whoever says -i to kexec has been told nothing of it for twenty years.
            if loaded.verify == Verify::None && !arguments.wishes.by_kexec {
                warn_of_no_verification();
            }
            report(&loaded, &summary, &cost);
            Ok(())
        }
        Err(failure) => {
            // A call that a signal has ended fails in its own words.
            let failure = check_interrupted().err().unwrap_or(failure);
            if let Err(error) = store.abandon() {
                output::warn(&format!(
                    "while giving back what this load had taken: {error}"
                ));
            }
            Err(failure)
        }
    }
}

fn warn_of_no_verification() {
    output::warn(
        "warning: --verify none: Image, initrd and device tree will be entered as they are then, damaged or \
         not; nobody compares them with what was loaded",
    );
}

/// Says what was loaded, and what it will cost.
fn report(loaded: &Loaded, summary: &Summary, cost: &machine::KexecCost) {
    let total: u64 = loaded
        .pieces()
        .map(|(_, _, content)| content.size_bytes)
        .sum();
    let how = if loaded.strategy == Strategy::Kernel {
        "by the kernel, which will copy all of it at hand-over".to_owned()
    } else if summary.moved_bytes == 0 {
        "in place: nothing will be moved".to_owned()
    } else {
        format!(
            "{} of it will be moved at hand-over",
            units::bytes(summary.moved_bytes)
        )
    };
    let pinned = match &loaded.pinned_by {
        Some(method) => format!(", pinned by {method}"),
        None => String::new(),
    };
    output::note(&format!(
        "kleap: loaded {}, {how}{pinned}",
        units::bytes(total)
    ));
    if let Some(cost) = cost.sentence(loaded.early) {
        output::note(&format!("kleap: {cost}"));
    }
}

/// `kleap unload`.
pub(crate) fn unload(arguments: UnloadArguments) -> Result<(), Failure> {
    if arguments.panic {
        return crash::unload();
    }
    machine::check_device_tree()?;
    let was_loaded = Store::unload()?;
    output::note(if was_loaded {
        "kleap: unloaded"
    } else {
        "kleap: nothing was loaded"
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn boot_image_is_dropped_and_nothing_else() {
        assert_eq!(
            without_boot_image("BOOT_IMAGE=/vmlinuz root=/dev/vda1  quiet x=BOOT_IMAGE=1"),
            "root=/dev/vda1 quiet x=BOOT_IMAGE=1"
        );
    }

    /// The device tree of nothing: a root without anything in it.
    fn empty_tree() -> Tree {
        let structure = [1_u32, 0, 2, 9];
        let header = [0xd00d_feed_u32, 72, 56, 72, 40, 17, 16, 0, 0, 16];
        let reservations = [0_u32; 4];
        let dtb: Vec<u8> = [&header[..], &reservations, &structure]
            .concat()
            .into_iter()
            .flat_map(u32::to_be_bytes)
            .collect();
        Tree::parse(&dtb).unwrap()
    }

    #[test]
    fn a_crash_kernel_sets_no_memory_aside_but_as_it_is_told() {
        let line = |words: &[&str], of_file| {
            let words = ["kleap", "load", "K"].iter().chain(words);
            match crate::Command::try_parse_from(words).unwrap().action {
                crate::Action::Load(arguments) => {
                    command_line(&arguments, of_file, &empty_tree()).unwrap()
                }
                other => panic!("{other:?}"),
            }
        };
        let of_uki = Some("crashkernel=64M root=/dev/vda1");
        assert_eq!(line(&["--panic"], of_uki), "root=/dev/vda1");
        assert_eq!(line(&[], of_uki), "crashkernel=64M root=/dev/vda1");
        let told = "--command-line=crashkernel=64M quiet";
        assert_eq!(line(&["--panic", told], of_uki), "crashkernel=64M quiet");
    }

    #[test]
    fn a_parameter_is_dropped_each_time_and_no_other() {
        assert_eq!(
            without_word(
                "crashkernel=256M,high quiet crashkernel=64M,low crashkernel crashkernels=1",
                "crashkernel"
            ),
            "quiet crashkernel crashkernels=1"
        );
    }
}
