//! Everything of a machine that a program could change, as lines that can be compared.
//!
//! For commands that must change nothing at all, where [`crate::traces`] is for those that must leave nothing
//! behind. What changes by itself is left out, each with its reason; a test takes two snapshots without anything
//! between them first.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Sysctls that count or draw something: a new value each time.
const COUNTING: &[&str] = &[
    "/proc/sys/kernel/random/",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/pty/nr",
    "/proc/sys/kernel/sched_domain/",
    "/proc/sys/fs/dentry-state",
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/inode-",
    "/proc/sys/fs/aio-nr",
    "/proc/sys/fs/quota/",
    "/proc/sys/net/netfilter/nf_conntrack_count",
];
/// Settings of the kernel that are below /sys and that kleap has to do with.
const SETTINGS: &[&str] = &[
    "/sys/kernel/mm",
    "/sys/kernel/reboot",
    "/sys/kernel/security",
];
/// Names of counters below those.
const COUNTERS: &[&str] = &["ksm", "transparent_hugepage", "lru_gen", "numa"];
/// File systems with other files than a program's: looked at above, or counting.
const NO_FILES: &[&str] = &["/proc", "/sys", "/run"];
/// Lines of the kernel log that come when they come: the entropy pool is full; the emulator was slow; a file
/// below /proc/sys was read for this snapshot.
const NOISE: &[&str] = &[
    "random: ",
    "hrtimer: ",
    "clocksource: ",
    "sched: ",
    "sched_clock: ",
    "is using deprecated sysctl",
];
/// Most files below one directory.
const FILES_MAX: usize = 100_000;

/// `snapshot`: prints it, a kind and a thing on each line.
pub(crate) fn print() -> Result<()> {
    let mut lines = BTreeSet::new();
    for line in fs::read_to_string("/proc/meminfo")
        .context("cannot read /proc/meminfo")?
        .lines()
        .filter(|line| line.starts_with("Huge") || line.starts_with("Mlocked"))
    {
        lines.insert(format!("memory {line}"));
    }
    for line in fs::read_to_string("/proc/mounts")
        .context("cannot read /proc/mounts")?
        .lines()
    {
        lines.insert(format!("mount {line}"));
    }
    for name in [
        "kexec_loaded",
        "kexec_crash_loaded",
        "kexec/loaded",
        "kexec/crash_loaded",
    ] {
        if let Ok(text) = fs::read_to_string(Path::new("/sys/kernel").join(name)) {
            lines.insert(format!("kexec {name}={}", text.trim()));
        }
    }
    let mut settings = Vec::new();
    below(Path::new("/proc/sys"), &[], &mut settings);
    let is_counting = |path: &Path| {
        let text = path.to_string_lossy();
        COUNTING.iter().any(|counting| text.starts_with(counting))
    };
    settings.retain(|path| !is_counting(path));
    for directory in SETTINGS {
        below(Path::new(directory), &[], &mut settings);
    }
    settings.retain(|path| {
        !path
            .iter()
            .any(|part| COUNTERS.iter().any(|counter| part == *counter))
    });
    for path in settings {
        if path.is_file() {
            let value = fs::read(&path).unwrap_or_default();
            let value = String::from_utf8_lossy(&value).replace('\n', " ");
            lines.insert(format!("setting {} {value}", path.display()));
        }
    }
    let mut files = Vec::new();
    let left_out: Vec<PathBuf> = NO_FILES.iter().map(PathBuf::from).collect();
    below(Path::new("/"), &left_out, &mut files);
    for path in files {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mut line = format!(
            "file {} {:o} {}:{} links={}",
            path.display(),
            found.mode(),
            found.uid(),
            found.gid(),
            found.nlink()
        );
        // A device's times change when it is written to, as the console is.
        if found.is_file() || found.is_dir() {
            line += &format!(
                " size={} changed={}.{}",
                found.size(),
                found.ctime(),
                found.ctime_nsec()
            );
        }
        lines.insert(line);
    }
    for entry in fs::read_dir("/proc")
        .context("cannot list /proc")?
        .flatten()
    {
        // Kernel threads come and go, and have no command line.
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        if is_process && !arguments.is_empty() {
            let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
            lines.insert(format!("process {text}"));
        }
    }
    let locks = fs::read_to_string("/proc/locks").context("cannot read /proc/locks")?;
    lines.insert(format!("locks {}", locks.lines().count()));
    for line in lines {
        println!("{line}");
    }
    kernel_log()
}

/// The kernel log's lines, in order.
fn kernel_log() -> Result<()> {
    let mut number = 0_u32;
    kleap_linux::kernel_log::each(|record| {
        if !NOISE.iter().any(|noise| record.text.contains(noise)) {
            number += 1;
            println!("log {number} {}", record.text);
        }
    })
    .context("cannot read the kernel log")
}

/// Every path below a directory, links not followed.
fn below(directory: &Path, left_out: &[PathBuf], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if left_out.contains(&path) || found.len() >= FILES_MAX {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&path, left_out, found);
        }
        found.push(path);
    }
}
