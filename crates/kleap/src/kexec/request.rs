//! What a command line asks for: pure, and the same for the same words.
//!
//! kexec-tools reads its options in turn, and each of those that name an action sets several switches: the last one
//! counts, but not in all it does (`-u -l KERNEL` unloads and loads; `-l -u KERNEL` unloads). People's scripts are
//! written against that, so it is kept. What is not kept is said in docs/kexec-differences.md.

use super::getopt::{Found, Mistake, Words};
use super::options::{self, Id};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Which of the two kernels that can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Which {
    /// For a reboot.
    #[default]
    Normal,
    /// For the case of a panic.
    Crash,
}

/// Which system call may load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Syscall {
    /// `kexec_load(2)`, or else `kexec_file_load(2)`.
    #[default]
    Auto,
    /// `kexec_load(2)`.
    Load,
    /// `kexec_file_load(2)`.
    File,
}

/// A kernel's format, as `--type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Vmlinux,
    Image,
    Uimage,
    /// EFI zboot.
    Vmlinuz,
    Uki,
}

impl Type {
    fn named(name: &OsStr) -> Option<Self> {
        Some(match name.to_str()? {
            "vmlinux" => Self::Vmlinux,
            "Image" => Self::Image,
            "uImage" => Self::Uimage,
            "vmlinuz" => Self::Vmlinuz,
            "uki" => Self::Uki,
            _ => return None,
        })
    }

    /// As `--type` names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vmlinux => "vmlinux",
            Self::Image => "Image",
            Self::Uimage => "uImage",
            Self::Vmlinuz => "vmlinuz",
            Self::Uki => "uki",
        }
    }
}

/// What is to be loaded, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Load {
    pub(super) kernel: Option<PathBuf>,
    pub(super) kind: Option<Type>,
    pub(super) command_line: Option<String>,
    pub(super) reuse_command_line: bool,
    pub(super) initrd: Option<PathBuf>,
    pub(super) reuse_initrd: bool,
    pub(super) device_tree: Option<PathBuf>,
    /// A tty's name, or a whole specification.
    pub(super) serial: Option<String>,
    pub(super) no_checks: bool,
    /// Lowest and highest address of memory that may be used.
    pub(super) mem_min: Option<u64>,
    pub(super) mem_max: Option<u64>,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Request {
    pub(super) debug: bool,
    pub(super) which: Which,
    pub(super) syscall: Syscall,
    /// Say whether something is loaded, and nothing else.
    pub(super) status: bool,
    pub(super) unload: bool,
    /// Load this.
    pub(super) load: Option<Load>,
    /// Run `shutdown -r now`.
    pub(super) shutdown: bool,
    /// Go. Before that:
    pub(super) exec: bool,
    pub(super) sync: bool,
    pub(super) interfaces_down: bool,
}

/// What the words come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    Help,
    Version,
    PrintCrashSize,
    Work(Box<Request>),
}

/// Why the words cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    /// Exit code 1, with the usage.
    #[error("{0}")]
    Mistake(Mistake),
    #[error("--{option}={value}: not a number: 0x and hexadecimal digits, or decimal ones")]
    Number { option: &'static str, value: String },
    #[error("{0} says how to load, and nothing is to be loaded")]
    NothingToLoad(&'static str),
    #[error(
        "'{0}' is one operand too many: quote a command line that has blanks in it, as in --append=\"...\""
    )]
    Operand(String),
    #[error("'{0}': nothing is to be loaded, and nothing else takes an operand")]
    NoOperand(String),
    #[error("--mem-min={min:#x} is above --mem-max={max:#x}")]
    Window { min: u64, max: u64 },
    /// Exit code 1, without.
    #[error("{0}")]
    Refused(String),
    /// Exit code 255.
    #[error("there is no type '{0}': {types}", types = options::TYPES.join(", "))]
    Type(String),
}

impl Wrong {
    /// Whether the usage follows.
    pub(super) fn wants_usage(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Type(_))
    }
}

/// The switches, as the options before the present one have set them.
#[derive(Debug)]
struct Switches {
    load: bool,
    /// `-l` was there.
    named_load: bool,
    /// A load was named, of whatever kind.
    any_load: bool,
    unload: bool,
    status: bool,
    shutdown: bool,
    exec: bool,
    sync: bool,
    interfaces_down: bool,
    no_sync: bool,
    no_interfaces_down: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            load: true,
            named_load: false,
            any_load: false,
            unload: false,
            status: false,
            shutdown: true,
            exec: false,
            sync: true,
            interfaces_down: false,
            no_sync: false,
            no_interfaces_down: false,
        }
    }
}

impl Switches {
    /// An option that names an action.
    fn act(&mut self, id: Id) {
        self.any_load |= matches!(id, Id::Load | Id::LoadPanic | Id::Force);
        match id {
            Id::Load => {
                self.named_load = true;
                (self.load, self.exec, self.shutdown) = (true, false, false);
            }
            Id::LoadPanic => {
                (self.load, self.exec, self.shutdown) = (true, false, false);
                self.sync = false;
            }
            Id::Unload => {
                (self.load, self.shutdown, self.unload) = (false, false, true);
                self.sync = false;
            }
            Id::Exec | Id::Force => {
                (self.exec, self.shutdown) = (true, false);
                (self.sync, self.interfaces_down) = (true, true);
                self.load = id == Id::Force;
            }
            Id::Status => self.status = true,
            Id::NoSync => self.no_sync = true,
            Id::NoIfdown => self.no_interfaces_down = true,
            _ => {}
        }
    }
}

/// Why an option is refused, if a kernel is to be loaded.
fn refusal(id: Id) -> Option<&'static str> {
    Some(match id {
        Id::Entry => {
            "--entry: kleap enters a kernel where the boot protocol says, at the start of its Image, and nowhere else"
        }
        Id::Hotplug => {
            "--hotplug: arm64 kernels have no /sys/kernel/crash_elfcorehdr_size: load the crash kernel again when memory or \
             CPUs are added"
        }
        Id::PreserveContext | Id::JumpBackHelper => {
            "--load-preserve-context, --load-jump-back-helper: there is no way back from the next kernel on arm64"
        }
        Id::LoadLiveUpdate | Id::ExecLiveUpdate => {
            "--load-live-update, --exec-live-update: for Xen on x86 alone"
        }
        _ => return None,
    })
}

/// As C's `strtoul` with base 0 has it, but for signs and nothing at all.
fn number(option: &'static str, value: &OsStr) -> Result<u64, Wrong> {
    let wrong = || Wrong::Number {
        option,
        value: value.to_string_lossy().into_owned(),
    };
    let text = value.to_str().ok_or_else(wrong)?;
    let (digits, radix) =
        if let Some(hexadecimal) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            (hexadecimal, 16)
        } else if text.len() > 1 && text.starts_with('0') {
            (&text[1..], 8)
        } else {
            (text, 10)
        };
    // `from_str_radix` would take a sign.
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u64::from_str_radix(digits, radix).map_err(|_| wrong())
}

fn text(option: &str, value: OsString) -> Result<String, Wrong> {
    value.into_string().map_err(|value| {
        Wrong::Refused(format!(
            "{option}: '{}' is not UTF-8 text",
            value.to_string_lossy()
        ))
    })
}

/// Understands the words after the program's name.
pub(super) fn understand(words: Vec<OsString>) -> Result<Asked, Wrong> {
    let table = options::known();
    let mut switches = Switches::default();
    let mut request = Request::default();
    let mut load = Load::default();
    let mut refused: Vec<Id> = Vec::new();
    let mut about_loading: Option<&'static str> = None;
    let mut kind = None;
    let mut operands = Vec::new();
    for found in Words::new(&table, words) {
        let (id, value) = match found.map_err(Wrong::Mistake)? {
            Found::Operand(operand) => {
                operands.push(operand);
                continue;
            }
            Found::Option(id, value) => (id, value.unwrap_or_default()),
        };
        switches.act(id);
        match id {
            Id::Help => return Ok(Asked::Help),
            Id::Version => return Ok(Asked::Version),
            Id::PrintCrashSize => return Ok(Asked::PrintCrashSize),
            Id::Debug => request.debug = true,
            Id::LoadPanic => request.which = Which::Crash,
            Id::FileSyscall => request.syscall = Syscall::File,
            Id::LoadSyscall => request.syscall = Syscall::Load,
            Id::AutoSyscall => request.syscall = Syscall::Auto,
            Id::Type => kind = Some(value),
            Id::CommandLine => {
                load.command_line = Some(text("--command-line (or --append)", value)?);
                about_loading = Some("--command-line (or --append)");
            }
            Id::ReuseCommandLine => {
                load.reuse_command_line = true;
                about_loading = Some("--reuse-cmdline");
            }
            Id::Initrd => {
                load.initrd = Some(value.into());
                about_loading = Some("--initrd (or --ramdisk)");
            }
            Id::DeviceTree => {
                load.device_tree = Some(value.into());
                about_loading = Some("--dtb");
            }
            Id::Serial => {
                load.serial = Some(text("--serial", value)?);
                about_loading = Some("--serial");
            }
            Id::ReuseInitrd => load.reuse_initrd = true,
            Id::NoChecks => load.no_checks = true,
            Id::MemMin => load.mem_min = Some(number("mem-min", &value)?),
            Id::MemMax => load.mem_max = Some(number("mem-max", &value)?),
            Id::Entry => {
                number("entry", &value)?;
                refused.push(id);
            }
            Id::LoadLiveUpdate | Id::ExecLiveUpdate | Id::PreserveContext | Id::JumpBackHelper => {
                if let Some(why) = refusal(id) {
                    return Err(Wrong::Refused(why.into()));
                }
            }
            Id::Hotplug => refused.push(id),
            Id::Load
            | Id::Unload
            | Id::Exec
            | Id::Force
            | Id::Status
            | Id::NoIfdown
            | Id::NoSync => {}
        }
    }
    if switches.status {
        if request.which == Which::Normal && !switches.named_load {
            request.which = Which::Crash;
        }
        request.status = true;
        switches.load = false;
    }
    if !switches.load {
        // Where a load was named, and something else after it, they were that load's.
        if !switches.any_load {
            if let Some(option) = about_loading {
                return Err(Wrong::NothingToLoad(option));
            }
            if let Some(operand) = operands.first() {
                return Err(Wrong::NoOperand(operand.to_string_lossy().into_owned()));
            }
        }
    }
    if switches.load {
        if let Some(operand) = operands.get(1) {
            return Err(Wrong::Operand(operand.to_string_lossy().into_owned()));
        }
        if let Some(why) = refused.first().and_then(|id| refusal(*id)) {
            return Err(Wrong::Refused(why.into()));
        }
        if let (Some(min), Some(max)) = (load.mem_min, load.mem_max)
            && min > max
        {
            return Err(Wrong::Window { min, max });
        }
        if request.which == Which::Crash && (load.mem_min.is_some() || load.mem_max.is_some()) {
            return Err(Wrong::Refused(
                "--mem-min, --mem-max: a crash kernel is loaded to where crashkernel= has set memory aside, and nowhere else"
                    .into(),
            ));
        }
        if load.initrd.is_some() && load.reuse_initrd {
            return Err(Wrong::Refused(
                "--initrd and --reuseinitrd: one of them, the next kernel has one initrd".into(),
            ));
        }
        load.kernel = operands.into_iter().next().map(PathBuf::from);
        load.kind = match kind {
            None => None,
            Some(name) => Some(
                Type::named(&name)
                    .ok_or_else(|| Wrong::Type(name.to_string_lossy().into_owned()))?,
            ),
        };
        request.load = Some(load);
    }
    if !request.status {
        request.unload = switches.unload;
        request.shutdown = switches.shutdown;
        request.exec = switches.exec;
        // Of a machine that goes on running nothing is stopped.
        request.sync = switches.exec && switches.sync && !switches.no_sync;
        request.interfaces_down =
            switches.exec && switches.interfaces_down && !switches.no_interfaces_down;
    }
    Ok(Asked::Work(Box::new(request)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(words: &[&str]) -> Result<Asked, Wrong> {
        understand(words.iter().map(OsString::from).collect())
    }

    fn work(words: &[&str]) -> Request {
        match asked(words) {
            Ok(Asked::Work(request)) => *request,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn wrong(words: &[&str]) -> String {
        match asked(words) {
            Err(wrong) => wrong.to_string(),
            other => panic!("{words:?}: {other:?}"),
        }
    }

    /// A load of K, and nothing else.
    fn load_k() -> Request {
        Request {
            load: Some(Load {
                kernel: Some("K".into()),
                ..Load::default()
            }),
            ..Request::default()
        }
    }

    fn go() -> Request {
        Request {
            exec: true,
            sync: true,
            interfaces_down: true,
            ..Request::default()
        }
    }

    fn with_load(change: impl FnOnce(&mut Load)) -> Request {
        let mut request = load_k();
        if let Some(load) = &mut request.load {
            change(load);
        }
        request
    }

    fn bring(load: &mut Load, initrd: &str, command_line: &str) {
        load.initrd = Some(initrd.into());
        load.command_line = Some(command_line.into());
    }

    /// What the programs that call `kexec` write, word for word, and what they want to happen.
    #[test]
    fn every_callers_words_are_understood() {
        let systemd = |initrd: bool| {
            with_load(|load| {
                load.command_line = Some("root=/dev/vda1 ro quiet".into());
                load.initrd = initrd.then(|| "I".into());
            })
        };
        let script = with_load(|load| bring(load, "I", "root=/dev/vda1 quiet"));
        let crash = |syscall| Request {
            which: Which::Crash,
            syscall,
            ..with_load(|load| bring(load, "I", "root=/dev/vda1 reset_devices nr_cpus=1"))
        };
        let crash_unload = |syscall| Request {
            which: Which::Crash,
            syscall,
            unload: true,
            ..Request::default()
        };
        let by_file = |request: Request| Request {
            syscall: Syscall::File,
            ..request
        };
        let petitboot = |debug| Request {
            debug,
            ..with_load(|load| {
                bring(load, "I", "quiet");
                load.device_tree = Some("D".into());
            })
        };
        let kexecboot = with_load(|load| {
            bring(load, "I", "quiet");
            load.device_tree = Some("D".into());
            load.no_checks = true;
            (load.mem_min, load.mem_max) = (Some(0xa000_0000), Some(0xa9ff_ffff));
        });
        let crash_line = "--command-line=root=/dev/vda1 reset_devices nr_cpus=1";
        let cases: Vec<(&str, Vec<&str>, Request)> = vec![
            (
                "systemctl kexec 252 to 261",
                vec![
                    "--load",
                    "K",
                    "--append",
                    "root=/dev/vda1 ro quiet",
                    "--initrd",
                    "I",
                ],
                systemd(true),
            ),
            (
                "systemctl kexec, no initrd",
                vec!["--load", "K", "--append", "root=/dev/vda1 ro quiet"],
                systemd(false),
            ),
            ("systemd-shutdown", vec!["-e"], go()),
            (
                "Debian kexec-load-kernel",
                vec!["-l", "K", "--initrd=I", "--append=root=/dev/vda1 quiet"],
                script.clone(),
            ),
            (
                "Debian kdump-config",
                vec!["-p", crash_line, "--initrd=I", "K"],
                crash(Syscall::Auto),
            ),
            (
                "Debian kdump-config -s",
                vec!["-p", "-s", crash_line, "--initrd=I", "K"],
                crash(Syscall::File),
            ),
            (
                "Debian kdump-config unload",
                vec!["-p", "-u"],
                crash_unload(Syscall::Auto),
            ),
            (
                "Debian kdump-config unload -s",
                vec!["-s", "-p", "-u"],
                crash_unload(Syscall::File),
            ),
            (
                "Fedora kdumpctl",
                vec!["-s", "-p", crash_line, "--initrd=I", "K"],
                crash(Syscall::File),
            ),
            (
                "Fedora kdumpctl -d",
                vec!["-d", "-p", crash_line, "--initrd=I", "K"],
                Request {
                    debug: true,
                    ..crash(Syscall::Auto)
                },
            ),
            ("kselftest kexec_load", vec!["--load", "K"], load_k()),
            (
                "kselftest kexec_file_load",
                vec!["--load", "--kexec-file-syscall", "K"],
                by_file(load_k()),
            ),
            (
                "kselftest unload",
                vec!["--unload"],
                Request {
                    unload: true,
                    ..Request::default()
                },
            ),
            (
                "kselftest liveupdate",
                vec!["-l", "-s", "--reuse-cmdline", "K", "--initrd=I"],
                by_file(with_load(|load| {
                    load.reuse_command_line = true;
                    load.initrd = Some("I".into());
                })),
            ),
            (
                "nixpkgs",
                vec![
                    "--load",
                    "--kexec-syscall-auto",
                    "--initrd=I",
                    "--append=root=/dev/vda1 quiet",
                    "--",
                    "K",
                ],
                script,
            ),
            (
                "petitboot",
                vec![
                    "-l",
                    "--debug",
                    "--initrd=I",
                    "--dtb=D",
                    "--append=quiet",
                    "K",
                ],
                petitboot(true),
            ),
            (
                "petitboot, once more",
                vec!["-s", "--initrd=I", "--dtb=D", "--append=quiet", "-l", "K"],
                by_file(petitboot(false)),
            ),
            (
                "kexecboot",
                vec![
                    "--mem-min=0xA0000000",
                    "--mem-max=0xA9FFFFFF",
                    "-l",
                    "K",
                    "--no-checks",
                    "--dtb=D",
                    "--initrd=I",
                    "--command-line=quiet",
                ],
                kexecboot,
            ),
        ];
        for (caller, words, wanted) in cases {
            assert_eq!(work(&words), wanted, "{caller}");
        }
    }

    /// petitboot's last resort: `-f` after `-e` means a load, of nothing.
    #[test]
    fn the_last_action_counts() {
        let nothing = Some(Load::default());
        assert_eq!(
            work(&["-e", "-f"]),
            Request {
                load: nothing,
                ..go()
            }
        );
        assert_eq!(work(&["-l", "-e"]), go());
        let loaded = load_k().load;
        assert_eq!(
            work(&["-f", "K"]),
            Request {
                load: loaded.clone(),
                ..go()
            }
        );
        assert_eq!(work(&["-f", "-l", "K"]), load_k());
        assert_eq!(
            work(&["K"]),
            Request {
                shutdown: true,
                ..load_k()
            }
        );
        let unload = Request {
            unload: true,
            ..Request::default()
        };
        assert_eq!(work(&["-l", "-u"]), unload);
        assert_eq!(work(&["-l", "K", "--append=x", "-u"]), unload);
        assert_eq!(
            work(&["-u", "-l", "K"]),
            Request {
                unload: true,
                ..load_k()
            }
        );
        assert_eq!(
            work(&["-u", "-e"]),
            Request {
                unload: true,
                ..go()
            }
        );
        assert!(work(&["-e", "-u"]).exec);
        let crash = |request| Request {
            which: Which::Crash,
            ..request
        };
        assert_eq!(work(&["-p", "-u"]), crash(unload.clone()));
        assert_eq!(
            work(&["-u", "-p", "K"]),
            crash(Request {
                unload: true,
                ..load_k()
            })
        );
    }

    #[test]
    fn sync_and_interfaces() {
        let steps = |words: &[&str]| {
            let request = work(words);
            (request.exec, request.sync, request.interfaces_down)
        };
        assert_eq!(steps(&["-e"]), (true, true, true));
        assert_eq!(steps(&["-x", "-e"]), (true, true, false));
        assert_eq!(steps(&["-e", "--no-sync"]), (true, false, true));
        assert_eq!(steps(&["-exy"]), (true, false, false));
        assert_eq!(steps(&["-f", "-l", "K"]), (false, false, false));
    }

    #[test]
    fn status_asks_and_does_nothing() {
        let status = |which| Request {
            which,
            status: true,
            ..Request::default()
        };
        assert_eq!(work(&["--status"]), status(Which::Crash));
        assert_eq!(work(&["-S", "-p"]), status(Which::Crash));
        assert_eq!(work(&["-S", "-l"]), status(Which::Normal));
        assert_eq!(work(&["-l", "-S", "-p"]), status(Which::Crash));
        assert_eq!(work(&["-e", "-u", "-S", "-l"]), status(Which::Normal));
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let words = [
            "-l",
            "--append=a",
            "--command-line",
            "b",
            "--initrd=I",
            "--ramdisk=J",
            "K",
        ];
        assert_eq!(work(&words), with_load(|load| bring(load, "J", "b")));
        let words = ["-c", "-s", "-a", "-lt", "Image", "-tvmlinux", "K"];
        assert_eq!(
            work(&words),
            with_load(|load| load.kind = Some(Type::Vmlinux))
        );
    }

    #[test]
    fn what_ends_it_at_once() {
        assert_eq!(asked(&["-h", "--nonsense"]), Ok(Asked::Help));
        assert_eq!(asked(&["-l", "-v", "-e"]), Ok(Asked::Version));
        assert_eq!(
            asked(&["-p", "--print-ckr-size", "-z"]),
            Ok(Asked::PrintCrashSize)
        );
        assert!(matches!(asked(&["-z", "-h"]), Err(Wrong::Mistake(_))));
    }

    #[test]
    fn what_is_refused_says_why() {
        for (words, wanted) in [
            (&["-l", "--entry=0x1000", "K"][..], "boot protocol"),
            (&["-p", "--hotplug", "K"], "crash_elfcorehdr_size"),
            (&["-p", "--mem-min=0x1000", "K"], "crashkernel="),
            (&["--load-preserve-context", "K"], "no way back"),
            (&["--load-jump-back-helper"], "no way back"),
            (&["--load-live-update", "K"], "Xen"),
            (&["--exec-live-update"], "Xen"),
            (&["-l", "--initrd=I", "--reuseinitrd", "K"], "one of them"),
            (
                &["-l", "-t", "multiboot", "K"],
                "no type 'multiboot': vmlinux, Image",
            ),
            (
                &["-l", "--append", "quiet", "K", "splash"],
                "'splash' is one operand too many",
            ),
            (&["-e", "K"], "'K': nothing is to be loaded"),
            (&["-u", "--append=x"], "nothing is to be loaded"),
            (&["-e", "--dtb=D"], "nothing is to be loaded"),
            (&["-S", "--initrd=I"], "nothing is to be loaded"),
            (&["-l", "--mem-min=2", "--mem-max=1", "K"], "above"),
        ] {
            assert!(wrong(words).contains(wanted), "{words:?}: {}", wrong(words));
        }
        // Beside what loads nothing, how to load is of no matter.
        assert_eq!(
            work(&["-u", "-t", "nonsense", "--entry=1", "-i"]).load,
            None
        );
    }

    #[test]
    fn numbers_are_what_c_takes_but_for_signs() {
        let min = |value: &str| number("mem-min", OsStr::new(value)).ok();
        for (value, wanted) in [
            ("0", Some(0)),
            ("0x40000000", Some(0x4000_0000)),
            ("0XfF", Some(255)),
            ("010", Some(8)),
            ("4096", Some(4096)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("", None),
            ("0x", None),
            ("-1", None),
            ("+1", None),
            ("0x-1", None),
            ("09", None),
            ("1G", None),
            (" 1", None),
        ] {
            assert_eq!(min(value), wanted, "{value:?}");
        }
        assert!(wrong(&["-l", "--mem-max=x", "K"]).starts_with("--mem-max=x: not a number"));
        assert!(wrong(&["-u", "--entry=x"]).starts_with("--entry=x: not a number"));
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic_and_what_it_does_fits_together(words in prop::collection::vec("(-[a-zS?]{1,3}|--[a-z-]{1,12}(=[0-9a-zx]{0,4})?|[a-zK]{1,3}|--)", 0..6)) {
            let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
            if let Ok(Asked::Work(request)) = understand(words) {
                prop_assert!(!(request.shutdown && request.exec));
                prop_assert!(request.exec || !(request.sync || request.interfaces_down));
                if request.status {
                    prop_assert!(request.load.is_none() && !request.exec && !request.unload && !request.shutdown);
                }
                prop_assert!(!request.shutdown || request.load.is_some());
            }
        }
    }
}
