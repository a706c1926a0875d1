//! A small process that keeps pages pinned after `load` has ended.
//!
//! A pin ends with the process that has it ([`crate::pin`]), the payload does not. So `load` leaves a process
//! behind that holds the pins and does nothing else: it ends when the payload is removed, and not before.
//!
//! ```text
//! load                                  holder
//!   spawn (a copy of itself) ------------> opens the payload, locks it, pins it
//!   wait_ready  <--- "ready io_uring" ---
//!   reads pagemap, plans, commits
//!   go          ----- "go" -------------> leaves the session and the control group, forks; the parent exits (42)
//!   reaps it
//!   ends                                  sleeps until the payload is unlinked; unpins, frees the pages, exits
//! ```
//!
//! Without `go`, the end of the pipe ends the holder: a `load` that is killed leaves none behind.
//!
//! - **systemd-shutdown** kills every process but those of root whose `argv[0]` begins with `@`
//!   (`src/shutdown/killall.c`): the holder's is [`ARGV0`]. It is the convention for processes that the
//!   root file system depends on.
//! - **No file system is kept busy**: the program is a copy in a memfd, the working directory is `/`, the
//!   standard streams are `/dev/null`. Where a memfd may not be executed (`vm.memfd_noexec`), it is the
//!   program's own file.
//! - **SIGTERM ends it**, as SIGKILL does. Nothing is lost by that but the pins: the payload stays, and the
//!   addresses are read again before the jump. Ignoring it would make an init that waits for its processes
//!   wait in vain. Only SIGHUP is ignored: nobody who sends that means this process.
//! - **Whether a payload is held** is a lock: the holder has an exclusive flock(2) on each file, which the
//!   kernel drops whatever way it ends. Whoever asks tries a shared one, so that two who ask do not see each
//!   other.
//!
//! Rejected: a service unit (not every system has systemd, and a unit is a file that may be missing); a
//! thread of the kernel's io_uring (ends with its process); leaving the pins out and repairing at `exec`
//! (`exec` does that anyway, but a page moved meanwhile costs a copy in the window that is to be short).

use crate::Error;
use crate::hugepages::PageFile;
use crate::pin::{Method, Pin, Region};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, MemfdFlags, Mode, OFlags, SealFlags, flock};
use rustix::io::Errno;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The holder's `argv[0]`.
pub const ARGV0: &str = "@kleap";

/// Most bytes of a line that one tells the other.
const LINE_MAX_BYTES: usize = 4096;
/// How often a state is looked at where the kernel cannot wake us.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long the holder tries to lock a payload.
const LOCK_DEADLINE_MS: u64 = 1000;
/// How long a holder that was killed is waited for: the kernel has to unpin its pages.
const KILL_DEADLINE_MS: u64 = 5000;
/// How often the holder looks at its files where there is no inotify.
const WATCH_INTERVAL_MS: u64 = 500;
/// Most descriptors that are kept from the holder one by one, on a kernel before 5.11.
const DESCRIPTORS_MAX: i32 = 4096;
/// Most control group hierarchies that are left.
const HIERARCHIES_MAX: usize = 64;
/// The exit status of the first process when the second holds the pages: not 0, which any program might have.
const WENT_STATUS: i32 = 42;
const GO: &str = "go";
const READY: &str = "ready ";
const FAILED: &str = "error ";

/// The holder as `load` sees it, before [`Holder::go`]. Dropping it ends the process.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    /// What this process tells it.
    to: Option<OwnedFd>,
    /// What it tells this process.
    from: OwnedFd,
    /// The holder was told to go, or has ended.
    is_done: bool,
}

impl Holder {
    /// Starts this same program again with the arguments `words`, which must make it call [`serve`] (or
    /// [`answer_error`]). It has no environment, and no open file but the three standard ones.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(words: &[OsString]) -> Result<Self, Error> {
        const OWN_PROGRAM: &str = "/proc/self/exe";
        let copy = copy_of_program(Path::new(OWN_PROGRAM));
        let started = match &copy {
            Ok(copy) => start(&descriptor_path(copy.as_fd()), words),
            Err(error) => Err(std::io::Error::other(error.to_string())),
        };
        let mut child = started
            .or_else(|_| start(Path::new(OWN_PROGRAM), words))
            .map_err(|error| Error::file("cannot execute", OWN_PROGRAM, error))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::content(OWN_PROGRAM, "was started without pipes"));
        };
        Ok(Self {
            child,
            to: Some(to.into()),
            from: from.into(),
            is_done: false,
        })
    }

    /// Waits until the pages are pinned; says how. From now on pagemap may be read.
    ///
    /// # Errors
    /// [`Error::Holder`] with the holder's own reason, or if it says nothing in time.
    pub fn wait_ready(&mut self, deadline_ms: u64) -> Result<Method, Error> {
        ready(&read_line(self.from.as_fd(), deadline_ms)?)
    }

    /// Lets the holder live on its own: it stays when this process has ended, until the payload is removed.
    ///
    /// # Errors
    /// [`Error::Holder`] if it did not do so in time: remove the payload then, and there is none.
    pub fn go(mut self, deadline_ms: u64) -> Result<(), Error> {
        if let Some(to) = &self.to {
            rustix::io::write(to, format!("{GO}\n").as_bytes())
                .map_err(|source| Error::Holder(format!("it has ended: {source}")))?;
        }
        // What lives on is a child of the one started here, which ends when that is there.
        let deadline = Deadline::new(deadline_ms);
        while !deadline.has_passed() {
            let status = self
                .child
                .try_wait()
                .map_err(|source| Error::Holder(source.to_string()))?;
            if let Some(status) = status {
                self.is_done = true;
                return if status.code() == Some(WENT_STATUS) {
                    Ok(())
                } else {
                    Err(Error::Holder(format!("it ended with {status}")))
                };
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Err(Error::Holder(format!(
            "it did not go on its own in {deadline_ms} ms"
        )))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.to = None;
        let _ = self.child.kill();
        // No zombie stays.
        let deadline = Deadline::new(KILL_DEADLINE_MS);
        while matches!(self.child.try_wait(), Ok(None)) && !deadline.has_passed() {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

fn descriptor_path(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn start(program: &Path, words: &[OsString]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command
        .arg0(ARGV0)
        .args(words)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    // SAFETY: between fork and exec it makes system calls only, on no memory.
    unsafe { command.pre_exec(close_others_on_exec) };
    command.spawn()
}

/// Descriptors that this process was started with must not stay open for as long as the holder lives: a lock,
/// or the pipe to somebody who waits for its end.
fn close_others_on_exec() -> std::io::Result<()> {
    const FIRST: i32 = 3;
    // SAFETY: changes only the flags of this process' descriptors, which is about to be replaced.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            i32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if answer != 0 {
        for descriptor in FIRST..DESCRIPTORS_MAX {
            // SAFETY: as above; a number that is no descriptor is an error that does not matter.
            let _ = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// The program in memory, which nobody can change any more.
fn copy_of_program(program: &Path) -> Result<OwnedFd, Error> {
    const NAME: &CStr = c"kleap";
    let failed = |source| Error::Call {
        call: "memfd_create".into(),
        source,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC)
        .or_else(|error| match error {
            // Before 6.3 every memfd may be executed, and the flag is unknown.
            Errno::INVAL => rustix::fs::memfd_create(NAME, flags),
            error => Err(error),
        })
        .map_err(failed)?;
    let mut from =
        File::open(program).map_err(|error| Error::file("cannot open", program, error))?;
    let mut to = File::from(copy);
    std::io::copy(&mut from, &mut to)
        .map_err(|error| Error::file("cannot copy", program, error))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&to, seals).map_err(failed)?;
    Ok(to.into())
}

#[derive(Debug, Clone, Copy)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn new(deadline_ms: u64) -> Self {
        Self(Instant::now().checked_add(Duration::from_millis(deadline_ms)))
    }

    fn rest(self) -> Duration {
        self.0.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }

    fn has_passed(self) -> bool {
        self.rest().is_zero()
    }
}

/// One line, without its end, of what the other process writes.
fn read_line(from: BorrowedFd<'_>, deadline_ms: u64) -> Result<String, Error> {
    let deadline = Deadline::new(deadline_ms);
    let mut line = Vec::new();
    loop {
        let timeout = Timespec::try_from(deadline.rest()).ok();
        let mut fds = [PollFd::new(&from, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => {
                return Err(Error::Holder(format!("no answer in {deadline_ms} ms")));
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(source) => return Err(Error::Holder(source.to_string())),
        }
        let mut byte = [0];
        match rustix::io::read(from, &mut byte) {
            Ok(0) => {
                let said = String::from_utf8_lossy(&line);
                return Err(Error::Holder(format!("it ended, and said {said:?}")));
            }
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend_from_slice(&byte),
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(source) => return Err(Error::Holder(source.to_string())),
        }
        if line.len() > LINE_MAX_BYTES {
            return Err(Error::Holder(format!(
                "it said more than {LINE_MAX_BYTES} bytes"
            )));
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// What the holder's first line says: how the pages are pinned.
///
/// # Errors
/// [`Error::Holder`] with the holder's reason why they are not, or with what else it said.
pub fn ready(line: &str) -> Result<Method, Error> {
    if let Some(method) = line.strip_prefix(READY).and_then(Method::from_name) {
        return Ok(method);
    }
    Err(Error::Holder(match line.strip_prefix(FAILED) {
        Some(reason) => reason.to_owned(),
        None => format!("it said {line:?}"),
    }))
}

/// The line that says why the pages are not pinned, without its end; not longer than a line may be.
#[must_use]
pub fn failed(error: &dyn std::fmt::Display) -> String {
    format!("{FAILED}{}", on_one_line(&error.to_string()))
}

/// In the holder: tells `load` why it cannot hold. For what fails before [`serve`].
///
/// # Errors
/// If nobody listens.
pub fn answer_error(error: &dyn std::fmt::Display) -> Result<(), Error> {
    answer(&failed(error))
}

fn on_one_line(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(LINE_MAX_BYTES / char::MAX.len_utf8() - FAILED.len())
        .collect()
}

fn answer(line: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::Holder(format!("cannot answer: {error}")))
}

/// In the holder: holds the pages (runs of page indices) of these files until one of the files is removed,
/// then frees the pages of those that are, and returns; the process should end then. Returns early, with all
/// pins released, if `load` ends without saying `go`.
///
/// The process has one thread: it forks.
///
/// # Errors
/// If the pages cannot be pinned (`load` is told), or the process cannot go on its own.
pub fn serve(
    first: Option<Method>,
    files: Vec<(PageFile, Vec<Range<usize>>)>,
) -> Result<(), Error> {
    let pin = match hold(first, &files) {
        Ok(pin) => pin,
        Err(error) => {
            answer_error(&error)?;
            return Err(error);
        }
    };
    answer(&format!("{READY}{}", pin.method()))?;
    if !is_told_to_go()? {
        return Ok(());
    }
    let watch = watch(&files);
    leave()?;
    // SAFETY: this process has one thread, so its memory is consistent in the child too.
    match unsafe { libc::fork() } {
        0 => {}
        -1 => {
            return Err(Error::Holder(format!(
                "fork: {}",
                std::io::Error::last_os_error()
            )));
        }
        _ => {
            // The files, their locks and the pins are the child's as well: nothing is released here. No
            // destructor may run, as that of the pins would end them for both.
            // SAFETY: ends this process; nothing of it is needed any more.
            unsafe { libc::_exit(WENT_STATUS) };
        }
    }
    wait_for_removal(&files, watch.as_ref());
    // In this order, so that the pages are back in the pool when the locks are gone.
    pin.release();
    for (file, _) in &files {
        if is_removed(file) {
            // Whoever waits may have the file open as well: then closing it here would free nothing.
            let _ = rustix::fs::ftruncate(file, 0);
        }
    }
    Ok(())
}

fn hold(first: Option<Method>, files: &[(PageFile, Vec<Range<usize>>)]) -> Result<Pin, Error> {
    for (file, _) in files {
        let deadline = Deadline::new(LOCK_DEADLINE_MS);
        // `is_held` has a lock for an instant; another holder has it for good.
        while let Err(error) = flock(file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK || deadline.has_passed() {
                return Err(Error::file("cannot lock", file.path(), error));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
    let regions: Vec<Region<'_>> = files
        .iter()
        .flat_map(|(file, runs)| {
            let runs = runs.iter().cloned();
            runs.map(move |pages| Region { file, pages })
        })
        .collect();
    Pin::preferring(first, &regions)
}

fn is_told_to_go() -> Result<bool, Error> {
    let mut bytes = Vec::new();
    let mut stdin = std::io::stdin().lock();
    while bytes.len() <= GO.len() {
        let mut byte = [0];
        match stdin.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => return Ok(bytes == GO.as_bytes()),
            Ok(_) => bytes.extend_from_slice(&byte),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Holder(format!("cannot listen: {error}"))),
        }
    }
    Ok(false)
}

/// Leaves everything by which somebody might end or wait for this process without meaning it.
fn leave() -> Result<(), Error> {
    let failed = |what: &str, error: Errno| Error::Holder(format!("{what}: {error}"));
    // Started from a descriptor, it would be called after its number.
    let _ = rustix::thread::set_name(c"@kleap");
    rustix::process::chdir("/").map_err(|error| failed("chdir(/)", error))?;
    // Fails only for the leader of a process group, as when a shell started it: then it is alone in it.
    let _ = rustix::process::setsid();
    // SAFETY: SIG_IGN is no function; nothing else in this process handles the signal.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    // Best effort: it is small, but it would be a pity.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    leave_control_groups();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed("/dev/null", error))?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| failed("stdin", error))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| failed("stdout", error))?;
    rustix::stdio::dup2_stderr(&null).map_err(|error| failed("stderr", error))
}

/// Moves this process to the root of every control group hierarchy, as far as it may: the end of a service or
/// of a session kills what is in its group.
fn leave_control_groups() {
    const ROOT: &str = "/sys/fs/cgroup";
    let this_process = |directory: &Path| {
        let path = directory.join("cgroup.procs");
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(b"0"))
            .is_ok()
    };
    // Version 2: one hierarchy. Version 1, and both: one for each controller, below.
    if this_process(Path::new(ROOT)) {
        return;
    }
    let Ok(entries) = std::fs::read_dir(ROOT) else {
        return;
    };
    for entry in entries.filter_map(Result::ok).take(HIERARCHIES_MAX) {
        this_process(&entry.path());
    }
}

/// An inotify descriptor that has something to read when one of the files may have been unlinked. `None` where
/// there is no inotify.
fn watch(files: &[(PageFile, Vec<Range<usize>>)]) -> Option<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    for (file, _) in files {
        // Unlinking changes the link count, an attribute. By descriptor: it is this very file.
        inotify::add_watch(&watch, descriptor_path(file.as_fd()), WatchFlags::ATTRIB).ok()?;
    }
    Some(watch)
}

fn is_removed(file: &PageFile) -> bool {
    rustix::fs::fstat(file).is_ok_and(|status| status.st_nlink == 0)
}

fn wait_for_removal(files: &[(PageFile, Vec<Range<usize>>)], watch: Option<&OwnedFd>) {
    while !files.iter().any(|(file, _)| is_removed(file)) {
        let Some(watch) = watch else {
            std::thread::sleep(Duration::from_millis(WATCH_INTERVAL_MS));
            continue;
        };
        let mut fds = [PollFd::new(watch, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            std::thread::sleep(POLL_INTERVAL);
        }
        // What happened does not matter, only that something did.
        let mut events = [0_u8; LINE_MAX_BYTES];
        while rustix::io::read(watch, &mut events).is_ok_and(|length| length > 0) {}
    }
}

/// Whether a process holds the payload in `path`. `false` if there is no such file.
#[must_use]
pub fn is_held(path: &Path) -> bool {
    open_to_wait(path).is_ok_and(|file| is_locked(file.as_fd()))
}

/// Opens a payload to wait for its release: before it is unlinked, as there is no path afterwards.
///
/// # Errors
/// If it cannot be opened.
pub fn open_to_wait(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Error::file("cannot open", path, error))
}

/// Waits until no process holds the payload that [`open_to_wait`] opened and that has been unlinked since; says
/// whether that is so. Its pages are in the pool then, unless the holder was killed: the kernel unpins them a
/// moment after that. Where there is no inotify, it takes up to half a second.
#[must_use]
pub fn wait_released(file: BorrowedFd<'_>, deadline_ms: u64) -> bool {
    let deadline = Deadline::new(deadline_ms);
    loop {
        if !is_locked(file) {
            return true;
        }
        if deadline.has_passed() {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Whether a holder has its lock: tries to take one beside it, and gives that back.
fn is_locked(file: BorrowedFd<'_>) -> bool {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = flock(file, FlockOperation::Unlock);
            false
        }
        Err(error) => error == Errno::WOULDBLOCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe from which `bytes` can be read, and its writing end.
    fn saying(bytes: &[u8]) -> (OwnedFd, OwnedFd) {
        let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&to, bytes).unwrap();
        (from, to)
    }

    #[test]
    fn one_line_is_read_and_no_more() {
        let (from, _to) = saying(b"ready pipe\nnext\n");
        assert_eq!(read_line(from.as_fd(), 1000).unwrap(), "ready pipe");
        assert_eq!(read_line(from.as_fd(), 1000).unwrap(), "next");
    }

    #[test]
    fn silence_an_end_and_a_flood_are_errors() {
        let (from, to) = saying(b"rea");
        let silence = read_line(from.as_fd(), 20).unwrap_err().to_string();
        assert!(silence.contains("20 ms"), "{silence}");
        rustix::io::write(&to, b"dy").unwrap();
        drop(to);
        let end = read_line(from.as_fd(), 1000).unwrap_err().to_string();
        assert!(end.contains("it ended") && end.contains("\"dy\""), "{end}");
        let (from, _to) = saying(&[b'x'; 2 * LINE_MAX_BYTES]);
        let flood = read_line(from.as_fd(), 1000).unwrap_err().to_string();
        assert!(flood.contains("4096"), "{flood}");
    }

    #[test]
    fn an_answer_is_one_line_that_is_read_whole() {
        let reason = on_one_line(&"a\n\u{10ffff}".repeat(LINE_MAX_BYTES));
        assert!(reason.starts_with("a \u{10ffff}a"), "{reason}");
        assert!(FAILED.len() + reason.len() <= LINE_MAX_BYTES);
    }

    #[test]
    fn the_copy_is_the_program_and_stays_so() {
        let copy = copy_of_program(Path::new("/proc/self/exe")).unwrap();
        let program = std::fs::read("/proc/self/exe").unwrap();
        let copied = std::fs::read(descriptor_path(copy.as_fd())).unwrap();
        assert!(copied == program);
        let change = rustix::io::pwrite(&copy, b"x", 0);
        assert_eq!(change, Err(Errno::PERM));
    }

    #[test]
    fn what_is_not_there_is_not_held() {
        assert!(!is_held(Path::new("/nonexistent/payload")));
        assert!(open_to_wait(Path::new("/nonexistent/payload")).is_err());
    }
}
