//! What Linux may answer, in words.

use rustix::io::Errno;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why Linux did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried: `cannot read`, `cannot write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file has something in it that was not expected.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    Call {
        /// The call with its arguments, so that the line alone is enough to understand it.
        call: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// Not permitted: the caller lacks a capability.
    #[error("{what} needs {capability}")]
    Privilege {
        /// What was tried.
        what: &'static str,
        /// The capability, as capabilities(7) names it.
        capability: &'static str,
    },
    /// The kernel has no `kexec_load(2)`.
    #[error("this kernel cannot kexec: it was built without CONFIG_KEXEC")]
    NoKexec,
    /// The kernel refuses `kexec_load(2)`.
    #[error("this kernel refuses kexec_load: {0}")]
    Refused(String),
    /// The kernel has no `kexec_file_load(2)`.
    #[error("this kernel has no kexec_file_load: it was built without CONFIG_KEXEC_FILE")]
    NoKexecFile,
    /// The kernel refuses `kexec_file_load(2)`.
    #[error("this kernel refuses kexec_file_load: {0}")]
    FileRefused(String),
    /// The kernel has no memory for its copies of what `kexec_file_load(2)` is given, or for its own part.
    #[error(
        "kexec_file_load: the kernel has not enough memory, or none in one piece, for its copies of the files and for \
         its own copy of the translation tables ({0})"
    )]
    FileMemory(Errno),
    /// What was to be loaded cannot be given to the kernel.
    #[error("cannot be loaded: {0}")]
    Segments(String),
    /// Not enough huge pages.
    #[error("huge pages of {page_size_bytes} bytes: {wanted} wanted, the kernel had {found}")]
    HugePages {
        /// Pages wanted, count.
        wanted: u64,
        /// Pages there were, count.
        found: u64,
        /// Size of a page, bytes.
        page_size_bytes: u64,
    },
    /// Huge pages are there, and this process may not have them.
    #[error(
        "huge pages of {page_size_bytes} bytes: {wanted} wanted, the kernel has {found}, but this process may not \
         have them: {limit}"
    )]
    Limited {
        /// Pages wanted, count.
        wanted: u64,
        /// Pages there are, count.
        found: u64,
        /// Size of a page, bytes.
        page_size_bytes: u64,
        /// What limits it.
        limit: &'static str,
    },
    /// The kernel has no memory for its own part of `kexec_load(2)`.
    #[error(
        "kexec_load: the kernel has not enough memory for its own copy of the translation tables; kleap status \
         says how much that is"
    )]
    KernelMemory,
    /// The kernel has no huge pages of a usable size.
    #[error("this kernel has no huge pages of {page_size_bytes} bytes (CONFIG_HUGETLBFS)")]
    NoHugePages {
        /// Size asked for, bytes.
        page_size_bytes: u64,
    },
    /// Pages could not be pinned, by any method.
    #[error("cannot pin the pages, so the kernel might move them: {0}")]
    NotPinned(String),
    /// The process that keeps the pages pinned does not.
    #[error("the process that is to keep the pages pinned: {0}")]
    Holder(String),
    /// pagemap shows no addresses.
    #[error(
        "the kernel hides physical addresses from this process (/proc/self/pagemap, /proc/iomem)"
    )]
    NoAddresses,
    /// This build runs on another architecture.
    #[error("kleap hands over arm64 machines; this one is {0}")]
    Architecture(&'static str),
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::File {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    pub(crate) fn content(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Content {
            path: path.as_ref().to_owned(),
            what: what.into(),
        }
    }

    /// What the operating system said, if it is about a file.
    #[must_use]
    pub fn file_error_kind(&self) -> Option<ErrorKind> {
        match self {
            Self::File { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// What the user can do about it, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self.file_error_kind() {
            Some(ErrorKind::PermissionDenied) => {
                return Some("run it as root, in the initial user namespace");
            }
            Some(ErrorKind::OutOfMemory) => {
                return Some(
                    "free memory, or run it without a limit of its address space (ulimit -v), if it has one",
                );
            }
            _ => {}
        }
        match self {
            Self::Privilege { .. } | Self::NoAddresses => {
                Some("run it as root, in the initial user namespace")
            }
            Self::NoKexec => Some("boot a kernel with CONFIG_KEXEC=y, or reboot the ordinary way"),
            Self::HugePages { .. } => Some(
                "free memory (or load earlier after boot, when memory is less fragmented), or load a smaller initrd",
            ),
            Self::Limited { .. } => Some(
                "run it without that limit: in a shell of root's, outside of a container or service",
            ),
            Self::KernelMemory | Self::FileMemory(_) => Some("free memory and try again"),
            Self::NoKexecFile => Some(
                "load with kexec_load(2) instead (kleap load, kexec -c), or boot a kernel with CONFIG_KEXEC_FILE=y",
            ),
            Self::Refused(_) => {
                Some("kleap check says what this machine allows, and what to do about it")
            }
            Self::FileRefused(_) => Some(
                "give an Image that is not compressed, signed if this kernel wants that; kleap check says what this machine \
                 allows",
            ),
            Self::NoHugePages { .. } => Some(
                "load with --strategy kernel, which needs none, or boot a kernel with CONFIG_HUGETLBFS=y",
            ),
            _ => None,
        }
    }
}
