//! The process that keeps pages pinned, started and ended in every way.
//!
//! It starts this same program again, so this is no ordinary test program: the first argument says what it is
//! to be, and without one it is the tests. The payloads are files of ordinary pages on a tmpfs, which can be
//! pinned, locked and unlinked as those of a hugetlbfs.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kleap_linux::holder::{self, ARGV0, Holder};
use kleap_linux::hugepages::PageFile;
use kleap_linux::pin::{Method, Pin, Region};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE_MS: u64 = 20_000;
const PAGES: usize = 300;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        ["role-hold", paths @ ..] => hold(paths),
        ["role-mute"] => std::thread::sleep(Duration::from_secs(600)),
        ["role-babble"] => println!("hello"),
        ["role-load", path, "stay"] => load(path, false),
        ["role-load", path, "go"] => load(path, true),
        _ => tests(&words),
    }
}

/// As the holder: what `kleap`'s hidden command does. The first word may be the method to try first.
fn hold(words: &[&str]) {
    let first = words.first().and_then(|word| Method::from_name(word));
    let paths = words.iter().skip(usize::from(first.is_some()));
    let page_size_bytes = kleap_linux::facts::page_size_bytes();
    let files: Result<Vec<_>, _> = paths
        .map(|path| {
            let file = PageFile::open(Path::new(path), PAGES, page_size_bytes)?;
            Ok((file, vec![0..10, 20..PAGES]))
        })
        .collect();
    match files {
        Ok(files) => {
            if holder::serve(first, files).is_err() {
                std::process::exit(1);
            }
        }
        Err(error) => {
            let error: kleap_linux::Error = error;
            holder::answer_error(&error).unwrap();
            std::process::exit(1);
        }
    }
}

/// As a `load` that will be killed.
fn load(path: &str, is_to_go: bool) {
    let mut holder = spawn(&[path]);
    holder.wait_ready(DEADLINE_MS).unwrap();
    let kept = if is_to_go {
        holder.go(DEADLINE_MS).unwrap();
        None
    } else {
        Some(holder)
    };
    println!("now");
    std::thread::sleep(Duration::from_secs(600));
    drop(kept);
}

fn spawn(paths: &[&str]) -> Holder {
    let mut words = vec![OsString::from("role-hold")];
    words.extend(paths.iter().map(OsString::from));
    Holder::spawn(&words).unwrap()
}

fn tests(words: &[&str]) {
    let all: [(&str, fn()); 8] = [
        ("lives_on_until_the_payload_is_removed", lives_on),
        ("one_of_two_payloads_is_enough", one_of_two),
        ("the_method_that_is_named_comes_first", named_method),
        ("without_go_it_ends", without_go),
        ("a_killed_load_leaves_none", killed_load),
        ("sigterm_ends_it", sigterm),
        ("a_second_one_is_refused", second),
        ("what_is_no_holder_is_an_error", no_holder),
    ];
    if words.contains(&"--list") {
        for (name, _) in all {
            println!("{name}: test");
        }
        return;
    }
    let filters: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let mut failed = 0;
    let mut passed = 0;
    for (name, test) in all {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(**filter)) {
            continue;
        }
        let is_ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        passed += usize::from(is_ok);
        failed += usize::from(!is_ok);
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    println!("replay one: cargo test -p kleap-linux --test holder -- NAME");
    if failed > 0 {
        std::process::exit(101);
    }
}

/// A payload, removed at the latest when the test ends.
struct Payload(PathBuf);

impl Payload {
    fn new(name: &str) -> Self {
        let path = Path::new("/dev/shm").join(format!("kleap-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let file = PageFile::create(&path, PAGES, kleap_linux::facts::page_size_bytes());
        drop(file.unwrap());
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn is_held(&self) -> bool {
        holder::is_held(&self.0)
    }

    /// The processes that hold it, by their arguments.
    fn holders(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|process| {
                std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| {
                    let mut words = line.split(|byte| *byte == 0);
                    words.next() == Some(ARGV0.as_bytes())
                        && words.any(|word| word == self.path().as_bytes())
                })
            })
            .collect()
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn becomes(what: &str, is_true: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_millis(DEADLINE_MS);
    while !is_true() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn allocated_bytes(file: impl AsFd) -> i64 {
    rustix::fs::fstat(file).unwrap().st_blocks * 512
}

fn status(process: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// The session of a process: the fourth word after its name, which may have spaces.
fn session(process: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, words) = stat.rsplit_once(") ").unwrap();
    words.split(' ').nth(3).unwrap().to_owned()
}

fn lives_on() {
    let payload = Payload::new("lives-on");
    // As a shell's `exec 9>lock` leaves it: open, and not close-on-exec.
    let lock = std::fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();

    assert!(!payload.is_held());
    let mut holder = spawn(&[payload.path()]);
    let method = holder.wait_ready(DEADLINE_MS).unwrap();
    println!("  pinned by {method}");
    assert!(payload.is_held());
    holder.go(DEADLINE_MS).unwrap();
    assert!(payload.is_held());

    becomes("one holder", || payload.holders().len() == 1);
    let process = payload.holders()[0];
    assert_ne!(status(process, "PPid"), std::process::id().to_string());
    let link = |name: &str| std::fs::read_link(format!("/proc/{process}/{name}")).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    let exe = link("exe");
    assert!(exe.to_str().unwrap().starts_with("/memfd:kleap"), "{exe:?}");
    for stream in 0..3 {
        assert_eq!(link(&format!("fd/{stream}")), Path::new("/dev/null"));
    }
    for entry in std::fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        let entry = entry.unwrap().path();
        let target = std::fs::read_link(&entry).unwrap();
        let target = target.to_str().unwrap();
        let is_own = [
            "/dev/null",
            payload.path(),
            "anon_inode:inotify",
            "anon_inode:[io_uring]",
            "pipe:",
        ]
        .iter()
        .any(|own| target.starts_with(own));
        assert!(is_own, "{entry:?} -> {target}");
    }
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    assert!(environment.is_empty());
    assert_ne!(session(&process.to_string()), session("self"));

    let file = holder::open_to_wait(&payload.0).unwrap();
    assert!(!holder::wait_released(file.as_fd(), 50));
    // Attributes change for other reasons too; only the removal counts.
    rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).unwrap();
    assert!(!holder::wait_released(file.as_fd(), 50));
    assert!(allocated_bytes(&file) > 0);
    std::fs::remove_file(&payload.0).unwrap();
    assert!(holder::wait_released(file.as_fd(), DEADLINE_MS));
    assert_eq!(
        allocated_bytes(&file),
        0,
        "the pages are free at that moment"
    );
    becomes("no holder", || payload.holders().is_empty());
    drop(lock);
}

fn named_method() {
    let payload = Payload::new("named");
    for method in Method::ALL {
        let page_size_bytes = kleap_linux::facts::page_size_bytes();
        let file = PageFile::open(Path::new(payload.path()), PAGES, page_size_bytes).unwrap();
        let region = Region {
            file: &file,
            pages: 0..PAGES,
        };
        if let Err(error) = Pin::by(method, &[region]) {
            println!("SKIPPED: this machine does not allow {method}: {error}");
            continue;
        }
        drop(file);
        let mut holder = spawn(&[method.name(), payload.path()]);
        assert_eq!(holder.wait_ready(DEADLINE_MS).unwrap(), method);
        // Without `go` it ends, and the next one can have the lock.
        drop(holder);
    }
}

fn one_of_two() {
    let (first, second) = (Payload::new("two-a"), Payload::new("two-b"));
    let mut holder = spawn(&[first.path(), second.path()]);
    holder.wait_ready(DEADLINE_MS).unwrap();
    holder.go(DEADLINE_MS).unwrap();
    assert!(first.is_held() && second.is_held());
    let (one, two) = (
        holder::open_to_wait(&first.0).unwrap(),
        holder::open_to_wait(&second.0).unwrap(),
    );
    std::fs::remove_file(&second.0).unwrap();
    assert!(holder::wait_released(two.as_fd(), DEADLINE_MS));
    assert!(holder::wait_released(one.as_fd(), DEADLINE_MS));
    assert_eq!(allocated_bytes(&two), 0);
    assert!(allocated_bytes(&one) > 0, "what is still there is kept");
}

fn without_go() {
    let payload = Payload::new("without-go");
    let mut holder = spawn(&[payload.path()]);
    holder.wait_ready(DEADLINE_MS).unwrap();
    assert!(payload.is_held());
    drop(holder);
    assert!(!payload.is_held(), "at once: it was waited for");
    assert_eq!(payload.holders(), [] as [u32; 0]);
    // Also before it is ready.
    drop(spawn(&[payload.path()]));
    assert_eq!(payload.holders(), [] as [u32; 0]);
}

fn killed_load() {
    for (word, is_left) in [("stay", false), ("go", true)] {
        let payload = Payload::new(&format!("killed-{word}"));
        let mut load = Command::new("/proc/self/exe")
            .args(["role-load", payload.path(), word])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 3];
        load.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert!(payload.is_held());
        load.kill().unwrap();
        load.wait().unwrap();
        if is_left {
            std::thread::sleep(Duration::from_millis(200));
            assert!(payload.is_held());
            std::fs::remove_file(&payload.0).unwrap();
        }
        becomes("no holder", || payload.holders().is_empty());
        assert!(!payload.is_held());
    }
}

fn sigterm() {
    let payload = Payload::new("sigterm");
    let mut holder = spawn(&[payload.path()]);
    holder.wait_ready(DEADLINE_MS).unwrap();
    holder.go(DEADLINE_MS).unwrap();
    becomes("one holder", || payload.holders().len() == 1);
    let process = i32::try_from(payload.holders()[0]).unwrap();
    let process = rustix::process::Pid::from_raw(process).unwrap();
    let kill = |signal| rustix::process::kill_process(process, signal).unwrap();
    kill(rustix::process::Signal::HUP);
    std::thread::sleep(Duration::from_millis(100));
    assert!(payload.is_held(), "SIGHUP is ignored");
    kill(rustix::process::Signal::TERM);
    becomes("not held", || !payload.is_held());
    assert!(payload.0.exists());
}

fn second() {
    let payload = Payload::new("second");
    let mut holder = spawn(&[payload.path()]);
    holder.wait_ready(DEADLINE_MS).unwrap();
    let error = spawn(&[payload.path()]).wait_ready(DEADLINE_MS);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot lock") && error.contains(payload.path()));
    assert!(payload.is_held());
}

fn no_holder() {
    let missing = spawn(&["/nonexistent/payload"]).wait_ready(DEADLINE_MS);
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/payload"), "{missing}");

    let mut babble = Holder::spawn(&["role-babble".into()]).unwrap();
    let said = babble.wait_ready(DEADLINE_MS).unwrap_err().to_string();
    assert!(said.contains("\"hello\""), "{said}");
    let end = babble.wait_ready(DEADLINE_MS).unwrap_err().to_string();
    assert!(end.contains("it ended"), "{end}");
    let gone = babble.go(DEADLINE_MS).unwrap_err().to_string();
    assert!(gone.contains("ended"), "{gone}");

    let mut mute = Holder::spawn(&["role-mute".into()]).unwrap();
    let silence = mute.wait_ready(50).unwrap_err().to_string();
    assert!(silence.contains("50 ms"), "{silence}");
    let silence = mute.go(50).unwrap_err().to_string();
    assert!(silence.contains("50 ms"), "{silence}");
}
