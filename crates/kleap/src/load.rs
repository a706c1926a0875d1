//! `load` and `unload`.
//!
//! Everything that can be refused is refused before the first huge page is asked for; from then on every
//! way out but success gives the pages back ([`Store::abandon`]). A load that replaces another one is built
//! beside it: while it is built there must be room for both, and if it fails the first one stays.

use crate::cpu::{Support, page_size_support};
use crate::error::Failure;
use crate::exec;
use crate::machine::{self, Devices, Memory};
use crate::payload::{Content, Loaded, parts};
use crate::store::{NewPayload, PAGE_SIZE_BYTES, Store};
use crate::{LoadArguments, output, units};
use kleap_devicetree::{MAX_BOOTARGS_BYTES, NextBoot, RNG_SEED_BYTES, SecureBoot, Tree};
use kleap_image::Kernel;
use kleap_linux::hugepages::PageFile;
use kleap_linux::pagemap::Pagemap;
use kleap_linux::{counter, facts};
use kleap_memmap::{PhysRange, PhysRanges};
use kleap_plan::{Layout, LayoutError, Owned, Place, Requirements, Strategy, layout};
use kleap_relocator::{crc32c, timeline};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of an initrd.
const INITRD_MAX_BYTES: u64 = 16 << 30;
/// How far the search for contiguous runs goes, where `auto` can fall back to moving: at most this many
/// times what is needed, and this part of the available memory.
const SEARCH_AUTO: Search = Search {
    factor: 3,
    available_percent: 50,
};
/// And where it cannot, because only `in-place` will do.
const SEARCH_IN_PLACE: Search = Search {
    factor: 16,
    available_percent: 80,
};
/// In so many steps.
const SEARCH_STEPS: u64 = 8;

/// Limits of a search.
struct Search {
    factor: u64,
    available_percent: u64,
}

fn input_error(path: &Path, what: impl ToString) -> Failure {
    Failure::Input {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

fn read_kernel(path: &Path) -> Result<Kernel, Failure> {
    let bytes = facts::read_limited(path, kleap_image::MAX_FILE_BYTES as u64)
        .map_err(|error| input_error(path, reason(&error)))?;
    Kernel::parse(bytes).map_err(|source| Failure::Image {
        path: path.to_owned(),
        source,
    })
}

/// The reason alone: the path is said by the caller.
fn reason(error: &kleap_linux::Error) -> String {
    match error {
        kleap_linux::Error::File { action, source, .. } => format!("{action}: {source}"),
        kleap_linux::Error::Content { what, .. } => what.clone(),
        other => other.to_string(),
    }
}

/// An initrd that is open and has a size.
struct Initrd {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

impl Initrd {
    fn open(path: &Path) -> Result<Self, Failure> {
        // Asked before it is opened: opening a FIFO waits for a writer.
        let is_file = std::fs::metadata(path)
            .map_err(|error| input_error(path, error))?
            .is_file();
        if !is_file {
            return Err(input_error(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(|error| input_error(path, error))?;
        let metadata = file.metadata().map_err(|error| input_error(path, error))?;
        match metadata.len() {
            0 => Err(input_error(path, "is empty")),
            size_bytes if size_bytes > INITRD_MAX_BYTES => Err(input_error(
                path,
                format!("is larger than {INITRD_MAX_BYTES} bytes"),
            )),
            size_bytes => Ok(Self {
                path: path.to_owned(),
                file,
                size_bytes,
            }),
        }
    }
}

/// Refuses a kernel whose page size this CPU is known not to have; warns where it is not known.
fn check_page_size(kernel: &Kernel, path: &Path) -> Result<(), Failure> {
    let Some(wanted) = kernel.page_size().map(kleap_image::PageSize::bytes) else {
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
fn without_boot_image(command_line: &str) -> String {
    let words: Vec<&str> = command_line
        .split(' ')
        .filter(|word| !word.is_empty() && !word.starts_with("BOOT_IMAGE="))
        .collect();
    words.join(" ")
}

fn command_line(arguments: &LoadArguments, tree: &Tree) -> Result<String, Failure> {
    let line = if arguments.reuse_cmdline {
        let reused = without_boot_image(&facts::command_line()?);
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
        tree.bootargs().unwrap_or("").to_owned()
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

/// Every page of the file with its address.
fn owned(file: &PageFile, pagemap: &Pagemap) -> Result<Vec<Owned>, Failure> {
    (0..file.pages())
        .map(|index| {
            Ok(Owned {
                address: file.address(pagemap, index)?,
                index,
            })
        })
        .collect()
}

/// Whether a page lies where the next kernel will find ordinary memory.
fn is_usable(page: &Owned, usable: &PhysRanges) -> bool {
    PhysRange::from_size(page.address, PAGE_SIZE_BYTES)
        .is_ok_and(|range| usable.contains_range(range))
}

/// Gets pages, and more pages, until there is a place for everything.
fn find_places(
    store: &Store,
    requirements: &Requirements,
    strategy: Strategy,
    memory: &Memory,
) -> Result<(NewPayload, Layout), Failure> {
    let pages_for = |bytes: u64| bytes.div_ceil(PAGE_SIZE_BYTES);
    let needed = pages_for(requirements.text_offset_bytes + requirements.image_size_bytes)
        + pages_for(requirements.initrd_bytes)
        + 2;
    let (_, available_bytes) = facts::memory_bytes()?;
    let pool_bytes = store.pool().available()? * PAGE_SIZE_BYTES;
    let available = (available_bytes + pool_bytes) / PAGE_SIZE_BYTES;
    if needed > available {
        return Err(Failure::Memory {
            needed_bytes: needed * PAGE_SIZE_BYTES,
            available_bytes: available * PAGE_SIZE_BYTES,
        });
    }
    let search = match strategy {
        Strategy::InPlace => SEARCH_IN_PLACE,
        Strategy::Auto | Strategy::Relocate => SEARCH_AUTO,
    };
    let most = needed.max((needed * search.factor).min(available / 100 * search.available_percent));
    let step = (most - needed).div_ceil(SEARCH_STEPS).max(1);

    let count = |pages: u64| {
        usize::try_from(pages).map_err(|_| Failure::Memory {
            needed_bytes: pages.saturating_mul(PAGE_SIZE_BYTES),
            available_bytes,
        })
    };
    let mut payload = store.create(count(needed)?)?;
    let pagemap = Pagemap::open()?;
    // While there is more to be had, `auto` behaves like `in-place`.
    let first = if strategy == Strategy::Auto {
        Strategy::InPlace
    } else {
        strategy
    };
    let mut total = needed;
    loop {
        let mut pages = owned(payload.file()?, &pagemap)?;
        pages.retain(|page| is_usable(page, &memory.usable));
        let choose = |strategy| {
            layout::choose(
                &pages,
                PAGE_SIZE_BYTES,
                &memory.plain,
                requirements,
                strategy,
            )
        };
        match choose(first) {
            Ok(layout) => return Ok((payload, layout)),
            Err(error @ (LayoutError::NoRun { .. } | LayoutError::TooFewPages { .. })) => {
                let added = store.extend(&mut payload, step.min(most - total))?;
                total += added;
                if added == 0 {
                    // There is no more to be had: move what has no place, or say so.
                    return match (error, strategy) {
                        (LayoutError::NoRun { .. }, Strategy::Auto) => {
                            Ok((payload, choose(Strategy::Auto)?))
                        }
                        (error, _) => Err(error.into()),
                    };
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_bytes(file: &mut PageFile, place: &Place, bytes: &[u8]) -> Content {
    let mut rest = bytes;
    for (index, from, to) in parts(place, bytes.len() as u64, file.page_size_bytes()) {
        let (now, later) = rest.split_at(to - from);
        file.page_mut(index)[from..to].copy_from_slice(now);
        rest = later;
    }
    Content {
        size_bytes: bytes.len() as u64,
        crc32c: crc32c::update_on_host(0, bytes),
    }
}

/// Reads the initrd straight into its pages.
fn write_initrd(
    file: &mut PageFile,
    place: &Place,
    initrd: &mut Initrd,
) -> Result<Content, Failure> {
    let mut crc = 0;
    for (index, from, to) in parts(place, initrd.size_bytes, file.page_size_bytes()) {
        let part = &mut file.page_mut(index)[from..to];
        initrd
            .file
            .read_exact(part)
            .map_err(|error| input_error(&initrd.path, error))?;
        crc = crc32c::update_on_host(crc, part);
    }
    match initrd.file.read(&mut [0]) {
        Ok(0) => Ok(Content {
            size_bytes: initrd.size_bytes,
            crc32c: crc,
        }),
        Ok(_) => Err(input_error(&initrd.path, "grew while it was read")),
        Err(error) => Err(input_error(&initrd.path, error)),
    }
}

/// The device tree for the next kernel, and where the timeline is in it.
fn next_tree(
    mut tree: Tree,
    path: &Path,
    bootargs: &str,
    initrd: Option<PhysRange>,
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

/// `kleap load`.
pub(crate) fn load(arguments: &LoadArguments) -> Result<(), Failure> {
    machine::check()?;
    let kernel = read_kernel(&arguments.image)?;
    check_page_size(&kernel, &arguments.image)?;
    if kernel.placement() == kleap_image::Placement::NearDramBase {
        return Err(Failure::Unsupported(format!(
            "{}: from before Linux 4.6, which loses all memory below the place it is put at",
            arguments.image.display()
        )));
    }
    let mut initrd = arguments.initrd.as_deref().map(Initrd::open).transpose()?;
    let own_tree = machine::device_tree()?;
    let memory = Memory::find(&own_tree)?;
    for warning in Devices::find(&own_tree).warnings {
        output::warn(&format!("warning: {warning}"));
    }
    let (tree, tree_path) = match &arguments.dtb {
        None => (own_tree, PathBuf::from(facts::DEVICE_TREE_PATH)),
        Some(path) => {
            let bytes = facts::read_limited(path, kleap_devicetree::MAX_DTB_BYTES as u64)
                .map_err(|error| input_error(path, reason(&error)))?;
            let mut tree = Tree::parse(&bytes).map_err(|error| Failure::DeviceTree {
                path: path.clone(),
                what: error.to_string(),
            })?;
            tree.carry_efi(&own_tree);
            (tree, path.clone())
        }
    };
    let command_line = command_line(arguments, &tree)?;
    let requirements = Requirements {
        image_file_bytes: kernel.image_bytes().len() as u64,
        image_size_bytes: kernel.image_size_bytes(),
        text_offset_bytes: kernel.text_offset_bytes(),
        initrd_bytes: initrd.as_ref().map_or(0, |initrd| initrd.size_bytes),
        device_tree_bytes: kleap_devicetree::MAX_DTB_BYTES as u64,
        stage_bytes: PAGE_SIZE_BYTES,
    };

    let store = Store::open()?;
    let strategy = arguments.strategy.into();
    let placed =
        find_places(&store, &requirements, strategy, &memory).and_then(|(mut payload, layout)| {
            let file = payload.file()?;
            let image = write_bytes(file, &layout.image, kernel.image_bytes());
            let initrd_content = match (&mut initrd, &layout.initrd) {
                (Some(initrd), Some(place)) => Some(write_initrd(file, place, initrd)?),
                _ => None,
            };
            let initrd_range =
                layout
                    .initrd
                    .as_ref()
                    .zip(initrd_content)
                    .and_then(|(place, content)| {
                        PhysRange::from_size(place.start(), content.size_bytes).ok()
                    });
            let (dtb, timeline_offset_bytes) =
                next_tree(tree, &tree_path, &command_line, initrd_range)?;
            let device_tree = write_bytes(file, &layout.device_tree, &dtb);

            let used: BTreeSet<usize> = layout.pages().map(|page| page.index).collect();
            for index in (0..file.pages()).filter(|index| !used.contains(index)) {
                file.release(index..index + 1)?;
            }
            let loaded = Loaded {
                boot_id: facts::boot_id()?,
                generation: payload.generation,
                file_pages: payload.file()?.pages(),
                payload: payload.name,
                layout,
                strategy,
                kernel_path: arguments.image.display().to_string(),
                kernel_banner: kernel.banner().map(str::to_owned),
                image_size_bytes: kernel.image_size_bytes(),
                kernel_page_size_bytes: kernel.page_size().map(kleap_image::PageSize::bytes),
                command_line,
                image,
                initrd_path: arguments
                    .initrd
                    .as_ref()
                    .map(|path| path.display().to_string()),
                initrd: initrd_content,
                device_tree,
                timeline_offset_bytes,
            };
            // What `exec` will do is tried out now, while there is nothing to lose.
            let stage = exec::stage(&loaded, counter::now().unwrap_or(0))?;
            store.commit(&loaded)?;
            Ok((loaded, stage.summary))
        });
    match placed {
        Ok((loaded, summary)) => {
            let how = if loaded.layout.is_in_place() {
                "in place: nothing will be moved".to_owned()
            } else {
                format!(
                    "{} will be moved at hand-over",
                    units::bytes(summary.moved_bytes)
                )
            };
            let total = loaded
                .pieces()
                .map(|(_, _, content)| content.size_bytes)
                .sum();
            output::note(&format!("kleap: loaded {}, {how}", units::bytes(total)));
            Ok(())
        }
        Err(failure) => {
            if let Err(error) = store.abandon() {
                output::warn(&format!(
                    "while giving back what this load had taken: {error}"
                ));
            }
            Err(failure)
        }
    }
}

/// `kleap unload`.
pub(crate) fn unload() -> Result<(), Failure> {
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

    #[test]
    fn boot_image_is_dropped_and_nothing_else() {
        assert_eq!(
            without_boot_image("BOOT_IMAGE=/vmlinuz root=/dev/vda1  quiet x=BOOT_IMAGE=1"),
            "root=/dev/vda1 quiet x=BOOT_IMAGE=1"
        );
    }
}
