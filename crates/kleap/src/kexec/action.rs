//! Does what was asked for, step by step, each only if all before it went well. Gives the exit code.

use super::request::{Load, Request, Syscall, Which};
use super::{FAILED, NO_FILE_LOAD, REFUSED, Wishes};
use crate::error::Failure;
use crate::exec::{self, LastSteps};
use crate::hand_off::HandOffArguments;
use crate::payload::Verify;
use crate::serial::SerialSpec;
use crate::store::{self, Store};
use crate::{ExecArguments, LoadArguments, StrategyArgument, crash, load, machine, output};
use kleap_linux::consoles::{self, SerialKind};
use kleap_linux::{facts, kexec, reboot};
use kleap_memmap::{PhysAddr, PhysRange, iomem};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `kexec KERNEL` runs when it has loaded.
const SHUTDOWN: &str = "/sbin/shutdown";
/// Where a kernel shows the initrd that it was told to keep (from Linux 6.8 on).
const RETAINED_INITRD: &str = "/sys/firmware/initrd";
/// Granularity of memory that can be used, bytes: the largest page size of arm64.
const WINDOW_ALIGNMENT_BYTES: u64 = 1 << 16;

/// The exit code that ends it.
type Step = Result<(), u8>;

fn refuse(what: &str) -> Step {
    output::warn(what);
    Err(REFUSED)
}

/// Says why something failed.
fn failed(failure: &Failure) -> u8 {
    output::failed(failure);
    match failure {
        Failure::Linux(kleap_linux::Error::NoKexecFile) => NO_FILE_LOAD,
        _ => FAILED,
    }
}

/// Carries it out.
pub(super) fn carry_out(request: &Request) -> u8 {
    if request.debug {
        output::note(&format!("kleap: as kexec: {request:?}"));
    }
    if request.status {
        return status(request.which);
    }
    match work(request) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

/// 1 if it is loaded, 0 if not.
fn status(which: Which) -> u8 {
    let loaded = match which {
        Which::Normal => kexec::is_loaded(),
        Which::Crash => kexec::is_crash_loaded(),
    };
    match loaded {
        Some(loaded) => u8::from(loaded),
        None => {
            output::warn(
                "the kernel does not say whether something is loaded: no kexec_loaded and kexec_crash_loaded below \
                 /sys/kernel",
            );
            FAILED
        }
    }
}

fn work(request: &Request) -> Step {
    if request.load.is_some() && request.which == Which::Crash {
        check_crash_reserved()?;
    }
    let retained = match &request.load {
        Some(load) if load.reuse_initrd => Some(retained_initrd()?),
        _ => None,
    };
    if request.unload {
        unload(request)?;
    }
    if let Some(load) = &request.load {
        self::load(request, load, retained)?;
    }
    if (request.shutdown || request.exec) && kexec::is_loaded() != Some(true) {
        output::warn("Nothing has been loaded!");
        if store::loaded().is_ok_and(|loaded| loaded.is_some()) {
            output::warn(
                "kleap load has placed a kernel, of which the running kernel knows nothing: kleap exec enters it",
            );
        }
        return Err(REFUSED);
    }
    if request.shutdown {
        return shutdown();
    }
    if request.exec {
        return go(request);
    }
    Ok(())
}

/// Memory that is set aside for a crash kernel: the region that it lives in, the highest one.
pub(super) fn crash_size_bytes() -> Result<u64, Failure> {
    Ok(iomem::crash_regions(&machine::iomem_entries()?)
        .last()
        .map_or(0, |region| region.size_bytes()))
}

fn check_crash_reserved() -> Step {
    match crash_size_bytes() {
        Ok(0) => refuse(
            "no memory is reserved for a crash kernel: boot with crashkernel=SIZE, as in crashkernel=256M, and load it then",
        ),
        Ok(_) => Ok(()),
        // Who cannot see it has none, to kexec-tools.
        Err(failure) => {
            output::failed(&failure);
            Err(REFUSED)
        }
    }
}

/// The running kernel's initrd, as a file.
fn retained_initrd() -> Result<PathBuf, u8> {
    let command_line = facts::command_line().map_err(|error| failed(&error.into()))?;
    if !command_line
        .split_whitespace()
        .any(|word| word == "retain_initrd")
    {
        refuse(
            "--reuseinitrd: this kernel has given its initrd up: boot it with retain_initrd, or name a file with --initrd",
        )?;
    }
    if !Path::new(RETAINED_INITRD).exists() {
        refuse(&format!(
            "--reuseinitrd: this kernel does not show its initrd (there is no {RETAINED_INITRD}, which Linux has from 6.8 on): \
             name a file with --initrd"
        ))?;
    }
    Ok(PathBuf::from(RETAINED_INITRD))
}

fn unload(request: &Request) -> Step {
    if request.syscall == Syscall::File && !kexec::has_file_load() {
        return Err(failed(&kleap_linux::Error::NoKexecFile.into()));
    }
    let probe = || match request.which {
        Which::Normal => kexec::probe(),
        Which::Crash => kexec::probe_crash(),
    };
    if request.syscall == Syscall::Load {
        probe().map_err(|error| failed(&error.into()))?;
    }
    let done = match request.which {
        Which::Normal => machine::check_device_tree()
            .and_then(|()| Store::unload())
            .and_then(|_| {
                // What somebody else has loaded. With nothing there it is asked whether that would be permitted, by
                // either system call.
                if kexec::is_loaded() == Some(true) || probe().is_err() {
                    kexec::unload()?;
                }
                Ok(())
            }),
        Which::Crash => crash::unload(),
    };
    done.map_err(|failure| failed(&failure))
}

/// The option's UART: a tty's name, with or without `/dev/`, or what `earlycon=` takes.
fn serial(name: &str) -> Result<SerialSpec, u8> {
    if name.contains(',') {
        return name.parse().map_err(|error| {
            output::warn(&format!("--serial={}: {error}", output::printable(name)));
            REFUSED
        });
    }
    let tty = name.strip_prefix("/dev/").unwrap_or(name);
    let Some(console) = consoles::named(tty) else {
        refuse(&format!(
            "--serial={}: no such tty, or not one of a UART whose registers are in memory and of a kind that the relocator \
             can write to (PL011, 8250)",
            output::printable(name)
        ))?;
        return Err(REFUSED);
    };
    let spec = match console.kind {
        SerialKind::Pl011 => format!("pl011,{:#x}", console.base),
        SerialKind::Ns16550 {
            reg_shift: 2,
            width_bytes: 4,
        } => format!("uart8250,mmio32,{:#x}", console.base),
        SerialKind::Ns16550 {
            reg_shift: 0,
            width_bytes: 1,
        } => format!("uart8250,mmio,{:#x}", console.base),
        SerialKind::Ns16550 {
            reg_shift,
            width_bytes,
        } => {
            refuse(&format!(
                "--serial={}: registers of {width_bytes} bytes, {} bytes apart, cannot be named; where it is the running \
                 kernel's console it is used without this option",
                output::printable(name),
                1_u64 << reg_shift
            ))?;
            return Err(REFUSED);
        }
    };
    spec.parse().map_err(|error| {
        output::warn(&format!("--serial={}: {error}", output::printable(name)));
        REFUSED
    })
}

/// The memory that may be used: from the lowest to the highest address, both in it.
fn window(load: &Load) -> Result<Option<PhysRange>, u8> {
    if load.mem_min.is_none() && load.mem_max.is_none() {
        return Ok(None);
    }
    let start = PhysAddr::new(load.mem_min.unwrap_or(0));
    let end = PhysAddr::new(load.mem_max.unwrap_or(u64::MAX).saturating_add(1));
    let window = PhysRange::new(start, end)
        .ok()
        .and_then(|range| range.align_inward(WINDOW_ALIGNMENT_BYTES));
    match window {
        Some(window) => Ok(Some(window)),
        None => {
            refuse("--mem-min and --mem-max leave no memory between them")?;
            Err(REFUSED)
        }
    }
}

/// Files that cannot be read have an exit code of their own.
fn check_readable(path: &Path) -> Step {
    // Nothing but a file is opened: a FIFO would wait for somebody.
    let metadata = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() {
            std::fs::File::open(path)?;
        }
        Ok(metadata)
    });
    let what = match metadata {
        Err(error) => error.to_string(),
        Ok(metadata) if !metadata.is_file() => "is not a regular file".to_owned(),
        Ok(metadata) if metadata.len() == 0 => "is empty".to_owned(),
        Ok(_) => return Ok(()),
    };
    refuse(&format!("{}: {what}", path.display()))
}

fn load(request: &Request, wanted: &Load, retained: Option<PathBuf>) -> Step {
    let Some(kernel) = &wanted.kernel else {
        output::warn("No kernel specified");
        output::warn("kexec --help shows all options");
        return Err(FAILED);
    };
    check_readable(kernel)?;
    if let Some(tree) = &wanted.device_tree {
        check_readable(tree)?;
    }
    // A missing one is a load that failed, to kexec-tools; an empty one is not.
    if let Some(initrd) = wanted.initrd.as_deref().filter(|path| path.exists()) {
        check_readable(initrd)?;
    }
    let serial = wanted.serial.as_deref().map(serial).transpose()?;
    let arguments = LoadArguments {
        image: kernel.clone(),
        initrd: wanted.initrd.clone().or(retained).into_iter().collect(),
        decompress_initrd: false,
        fit_config: None,
        command_line: None,
        append: wanted.command_line.clone(),
        reuse_cmdline: wanted.reuse_command_line,
        dtb: wanted.device_tree.clone(),
        strategy: StrategyArgument::Auto,
        verify: wanted.no_checks.then_some(Verify::None),
        early: request.which == Which::Normal,
        panic: request.which == Which::Crash,
        #[cfg(feature = "fault-injection")]
        inject_fault: Vec::new(),
        hand_off: HandOffArguments {
            serial,
            ..HandOffArguments::default()
        },
        wishes: Wishes {
            by_kexec: true,
            window: window(wanted)?,
            kind: wanted.kind,
            not_as_files: request.syscall == Syscall::Load,
        },
    };
    match request.which {
        Which::Normal => load_normal(request.syscall, arguments),
        Which::Crash => load_crash(request.syscall, &arguments),
    }
    .map_err(|failure| failed(&failure))
}

fn load_normal(syscall: Syscall, mut arguments: LoadArguments) -> Result<(), Failure> {
    if syscall == Syscall::File {
        if !kexec::has_file_load() {
            return Err(kleap_linux::Error::NoKexecFile.into());
        }
        return load::load_files(&arguments);
    }
    let why = match machine::check() {
        // Asked of the kernel's own strategy, which knows the other system call.
        Err(refusal) if syscall == Syscall::Auto && refusal.leaves_file_load() => {
            arguments.strategy = StrategyArgument::Kernel;
            return load::load(&arguments);
        }
        Err(refusal) => return Err(refusal),
        Ok(()) => match load::load(&arguments) {
            Err(failure) if failure.leaves_kernel_strategy() => failure,
            done => return done,
        },
    };
    output::warn(&format!(
        "warning: {why}: the running kernel takes all of it instead, and copies it at hand-over, which takes longer"
    ));
    arguments.strategy = StrategyArgument::Kernel;
    load::load(&arguments)
}

/// With `kexec_load(2)` alone: kleap makes the headers of the core file itself, and verifies them.
fn load_crash(syscall: Syscall, arguments: &LoadArguments) -> Result<(), Failure> {
    if syscall == Syscall::File {
        if !kexec::has_file_load() {
            return Err(kleap_linux::Error::NoKexecFile.into());
        }
        return Err(Failure::Unsupported(
            "-s -p: kleap loads crash kernels with kexec_load(2) only: leave -s away".into(),
        ));
    }
    crash::load(arguments)
}

/// Whoever has given it to systemd: it is entered when services have stopped.
fn shutdown() -> Step {
    let error = Command::new(SHUTDOWN).args(["-r", "now"]).exec();
    output::warn(&format!(
        "loaded, but cannot run {SHUTDOWN} -r now: {error}"
    ));
    Err(FAILED)
}

/// Enters what is loaded, whoever has loaded it.
fn go(request: &Request) -> Step {
    let last_steps = LastSteps {
        no_sync: !request.sync,
        interfaces_down: request.interfaces_down,
    };
    if store::has_given_early() {
        let arguments = ExecArguments {
            hand_off: HandOffArguments::default(),
            last_steps,
            #[cfg(feature = "fault-injection")]
            inject_fault: Vec::new(),
        };
        let Err(failure) = exec::exec(&arguments) else {
            return Ok(());
        };
        // What the kernel was given by `load` is whole, and verified before it is entered. Where pages have moved or
        // changed, that would end in a reset.
        if matches!(failure, Failure::Changed(_)) || kexec::is_loaded() != Some(true) {
            return Err(failed(&failure));
        }
        output::warn(&format!(
            "warning: {failure}: entering what the kernel was given when it was loaded"
        ));
    }
    last_steps.take();
    Err(failed(&reboot::kexec().into()))
}
