//! What can go wrong, as the user sees it: a message, what to do about it, an exit code that stays.

use kleap_linux::interrupts::{self, EXIT_CODE_BASE};
use kleap_plan::{LayoutError, StageError};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Shown by `--help`; the man page has the same table.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed in a way that has no code of its own
  2  wrong usage
  3  a file or argument cannot be used (kernel, initrd, device tree, command line)
  4  this machine or this kernel cannot do it
  5  not permitted (privileges, lockdown, sysctl)
  6  not enough memory (for the payload, or for kexec_load's own tables), or not in one piece
  7  nothing is loaded (exec; status and unload say so and succeed); for report: this kernel
     was not started by kleap
  8  what was loaded is no longer what it was: load again
  129, 130, 143  ended by SIGHUP, SIGINT (Ctrl-C), SIGTERM
check has codes of its own: 0 ready, 1 limited, 2 cannot (kleap check --help)

On every code but 0 what was loaded before still is, and nothing else has changed. (If exec gets as
far as reboot(2) and that refuses, a kernel that another program had loaded for kexec is gone; a
crash kernel is, if the kernel refuses the next one at the very last.)";

/// Says so if somebody has asked this command to end ([`interrupts`]).
///
/// # Errors
/// [`Failure::Interrupted`].
pub(crate) fn check_interrupted() -> Result<(), Failure> {
    match interrupts::signal() {
        Some(signal) => Err(Failure::Interrupted(signal)),
        None => Ok(()),
    }
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Linux(#[from] kleap_linux::Error),
    #[error("{}: {source}", path.display())]
    Image {
        path: PathBuf,
        source: kleap_image::Error,
    },
    #[error("{}: {what}", path.display())]
    Input { path: PathBuf, what: String },
    #[error("device tree {}: {what}", path.display())]
    DeviceTree { path: PathBuf, what: String },
    #[error(
        "the command line has {length} bytes, more than the {limit} that an arm64 kernel takes"
    )]
    CommandLine { length: usize, limit: usize },
    #[error("{0}")]
    Unsupported(String),
    #[error("{message}")]
    KnownBug {
        message: String,
        remedy: &'static str,
        /// It is about memory, and there may be more of it later.
        is_memory: bool,
    },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(
        "not enough memory: {needed_bytes} bytes are needed, {available_bytes} bytes are available"
    )]
    Memory {
        needed_bytes: u64,
        available_bytes: u64,
    },
    #[error(
        "{needed_bytes} bytes are needed for a crash kernel, and {reserved} is set aside for it"
    )]
    CrashMemory {
        needed_bytes: u64,
        reserved: kleap_memmap::PhysRange,
    },
    #[error("cannot write the answer: {0}")]
    Output(std::io::Error),
    #[error("ended by signal {0}")]
    Interrupted(u8),
    #[error("nothing is loaded")]
    NothingLoaded,
    #[error("{0}")]
    NoReport(String),
    #[error("{0}")]
    Changed(String),
    #[error("{path}: {what}", path = path.display())]
    State { path: PathBuf, what: String },
}

impl Failure {
    /// See [`EXIT_CODES_HELP`].
    pub(crate) fn exit_code(&self) -> u8 {
        use kleap_linux::Error as Linux;
        match self {
            Self::Image { .. }
            | Self::Input { .. }
            | Self::DeviceTree { .. }
            | Self::CommandLine { .. } => 3,
            Self::KnownBug {
                is_memory: true, ..
            } => 6,
            Self::Unsupported(_)
            | Self::KnownBug { .. }
            | Self::Linux(
                Linux::NoKexec
                | Linux::NoKexecFile
                | Linux::NoHugePages { .. }
                | Linux::Architecture(_),
            ) => 4,
            Self::Linux(
                Linux::Privilege { .. }
                | Linux::Refused(_)
                | Linux::FileRefused(_)
                | Linux::NoAddresses,
            ) => 5,
            Self::Linux(error) if error.file_error_kind() == Some(ErrorKind::PermissionDenied) => 5,
            Self::Linux(error) if error.file_error_kind() == Some(ErrorKind::OutOfMemory) => 6,
            Self::Linux(
                Linux::HugePages { .. }
                | Linux::Limited { .. }
                | Linux::KernelMemory
                | Linux::FileMemory(_),
            )
            | Self::Layout(_)
            | Self::Memory { .. }
            | Self::CrashMemory { .. } => 6,
            Self::Stage(StageError::TooLarge { .. } | StageError::TooManyMoves(_)) => 6,
            Self::NothingLoaded | Self::NoReport(_) => 7,
            Self::Interrupted(signal) => EXIT_CODE_BASE.saturating_add(*signal),
            Self::Changed(_) => 8,
            Self::Linux(_) | Self::Stage(_) | Self::State { .. } | Self::Output(_) => 1,
        }
    }

    /// Whether a larger stage may help.
    pub(crate) fn is_stage_too_large(&self) -> bool {
        matches!(self, Self::Stage(StageError::TooLarge { .. }))
    }

    /// Whether the kernel refuses `kexec_load(2)` for a reason that `kexec_file_load(2)` need not share.
    pub(crate) fn leaves_file_load(&self) -> bool {
        use kleap_linux::Error as Linux;
        matches!(self, Self::Linux(Linux::NoKexec | Linux::Refused(_)))
    }

    /// Whether there are no pages to be had, or none whose address can be known: the kernel's own strategy needs none.
    pub(crate) fn leaves_kernel_strategy(&self) -> bool {
        use kleap_linux::Error as Linux;
        matches!(
            self,
            Self::Linux(Linux::NoHugePages { .. } | Linux::NoAddresses | Linux::HugePages { .. })
                | Self::Layout(_)
        )
    }

    /// What the user can do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Linux(error) => error.hint(),
            Self::KnownBug { remedy, .. } => Some(remedy),
            Self::CommandLine { .. } => {
                Some("shorten it: the kernel would cut it off without a word")
            }
            Self::Layout(LayoutError::NoRun { .. }) => Some(
                "use --strategy auto, which moves what does not fit, or load earlier after boot",
            ),
            Self::Layout(LayoutError::NoTarget { .. }) => Some(
                "load a smaller initrd, or earlier after boot, or with --strategy in-place: what is moved needs plain \
                 System RAM in one piece (/proc/iomem) beside what is loaded",
            ),
            Self::Layout(LayoutError::Pages(_)) => Some("load it again: kleap load IMAGE"),
            Self::Layout(_) | Self::Memory { .. } => {
                Some("free memory, or load a smaller kernel or initrd")
            }
            Self::CrashMemory { .. } => {
                Some("boot with a larger crashkernel=, or load a smaller initrd")
            }
            Self::NothingLoaded => Some("load a kernel first: kleap load IMAGE"),
            Self::State { .. } => Some("kleap unload removes what is there"),
            Self::NoReport(_) => crate::last_words::hint(),
            Self::Changed(_) => Some("load it again: kleap load IMAGE"),
            _ => None,
        }
    }
}
