//! kleap under the name `kexec` beside Debian's own: every option and every mistake, in one machine.
//!
//! Problem: "a drop-in" is a claim about another program, which no unit test of this one can check. Choice: both programs
//! do every case in the same machine, one after the other, from the same state; exit code, what the kernel has loaded,
//! which stream was written to and what else happened are compared here. Where they differ on purpose, it is written
//! in docs/kexec-differences.md, for people; that page is read by this test: a difference that it does not have is
//! a failure, and so is one that it has and that does not occur. Rejected: expected outcomes written down for both, which
//! would be our reading of kexec-tools and not kexec-tools.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use crate::e2e::{self, Selection};
use crate::initramfs::ExtraFiles;
use crate::lab::Lab;
use crate::qemu::Line;
use crate::rows::{EL1_A57, End, Row, Script, Strategy};
use crate::run::lab_value;

/// What is done otherwise, and why.
const DIFFERENCES: &str = include_str!("../../docs/kexec-differences.md");
/// How the machine does a case.
const SCRIPT: &str = include_str!("../guest-scripts/kexec-diff.sh");
/// Memory of the machine. Little: what `kexec_load` itself takes grows with it.
const MEMORY_MB: u32 = 768;
/// Two programs, each started several times for a case, in an emulator.
const DEADLINE_MS: u64 = 1_800_000;

/// One command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    name: &'static str,
    /// By whom, or without what.
    by: &'static str,
    /// What is loaded before.
    loaded: &'static str,
    /// The words, as the shell takes them.
    words: &'static str,
}

const fn case(name: &'static str, loaded: &'static str, words: &'static str) -> Case {
    Case {
        name,
        by: "root",
        loaded,
        words,
    }
}

const fn by(by: &'static str, case: Case) -> Case {
    Case { by, ..case }
}

const NOTHING: &str = "nothing";
const KERNEL: &str = "kernel";
const CRASH: &str = "crash";

/// On a machine without memory for a crash kernel.
const CASES: &[Case] = &[
    // Words.
    case("no-words", NOTHING, ""),
    case("help", NOTHING, "--help"),
    case("help-short", NOTHING, "-h"),
    case("help-then-nonsense", NOTHING, "-h --nonsense"),
    case("version", NOTHING, "-v"),
    case("version-prefix", NOTHING, "--vers"),
    case("question-mark", NOTHING, "'-?'"),
    case("unknown-long", NOTHING, "--nonsense"),
    case("unknown-short", NOTHING, "-z"),
    case("unknown-in-bundle", NOTHING, "-lz /k/Image"),
    case("unknown-after-load", NOTHING, "-l /k/Image --nonsense"),
    case("ambiguous-prefix", NOTHING, "--no"),
    case("ambiguous-prefix-reuse", NOTHING, "-l /k/Image --reuse"),
    case("argument-not-taken", NOTHING, "--load=yes /k/Image"),
    case("argument-missing-long", NOTHING, "-l /k/Image --append"),
    case("argument-missing-short", NOTHING, "-l /k/Image -t"),
    case("no-cma-is-newer", NOTHING, "-l --no-cma /k/Image"),
    case("single-dash", NOTHING, "-l -"),
    case(
        "mem-min-nonsense",
        NOTHING,
        "-l --mem-min=nonsense /k/Image",
    ),
    case("mem-max-nonsense", NOTHING, "-l --mem-max=1G /k/Image"),
    case("entry-nonsense", NOTHING, "-l --entry=nonsense /k/Image"),
    // Loads that succeed, spelled in every way.
    case("load", NOTHING, "-l /k/Image"),
    case("load-long", NOTHING, "--load /k/Image"),
    case("load-prefix", NOTHING, "--loa /k/Image"),
    case("load-behind", NOTHING, "/k/Image -l"),
    case("load-dashes", NOTHING, "-l -- /k/Image"),
    case("load-bundle", NOTHING, "-ld /k/Image"),
    case(
        "load-append-equals",
        NOTHING,
        "-l /k/Image --append='root=/dev/vda quiet'",
    ),
    case(
        "load-append-word",
        NOTHING,
        "--load /k/Image --append 'root=/dev/vda quiet' --initrd /k/initrd",
    ),
    case("load-append-prefix", NOTHING, "-l /k/Image --app=quiet"),
    case("load-append-empty", NOTHING, "-l /k/Image --append="),
    case(
        "load-append-twice",
        NOTHING,
        "-l /k/Image --append=a --command-line=b",
    ),
    case(
        "load-reuse-cmdline",
        NOTHING,
        "-l /k/Image --reuse-cmdline --append=more",
    ),
    case("load-longest-append", NOTHING, "-l /k/Image --append=$long"),
    case(
        "load-too-long-append",
        NOTHING,
        "-l /k/Image --append=$longer",
    ),
    case("load-initrd", NOTHING, "-l /k/Image --initrd=/k/initrd"),
    case("load-ramdisk", NOTHING, "-l /k/Image --ramdisk /k/initrd"),
    case("load-dtb", NOTHING, "-l /k/Image --dtb=/k/tree --append=x"),
    case("load-type", NOTHING, "-l -t Image /k/Image"),
    case("load-type-bundled", NOTHING, "-ltImage /k/Image"),
    case("load-gzip", NOTHING, "-l /k/Image.gz"),
    case("load-gzip-type", NOTHING, "-l --type=Image /k/Image.gz"),
    case("load-uimage", NOTHING, "-l /k/uImage"),
    case("load-vmlinux", NOTHING, "-l /k/vmlinux"),
    case("load-uimage-by-load", NOTHING, "-c -l /k/uImage"),
    case("load-vmlinux-by-load", NOTHING, "-c -l /k/vmlinux"),
    case("load-vmlinux-type", NOTHING, "-l --type=vmlinux /k/vmlinux"),
    case("load-no-checks", NOTHING, "-l -i /k/Image"),
    case("load-no-checks-long", NOTHING, "-l --no-checks /k/Image"),
    case("load-serial", NOTHING, "-l --serial=ttyAMA0 /k/Image"),
    case("load-mem-min", NOTHING, "-l --mem-min=0x50000000 /k/Image"),
    case("load-mem-max", NOTHING, "-l --mem-max=0x5fffffff /k/Image"),
    case(
        "load-mem-window",
        NOTHING,
        "-l --mem-min=0x50000000 --mem-max=1610612735 /k/Image",
    ),
    case("load-debug", NOTHING, "-d -l /k/Image"),
    case("load-by-load", NOTHING, "-c -l /k/Image"),
    case(
        "load-by-auto",
        NOTHING,
        "--load --kexec-syscall-auto --initrd=/k/initrd --append=x -- /k/Image",
    ),
    case("load-by-syscall-prefix", NOTHING, "-l --kexec-sys /k/Image"),
    case("load-again", KERNEL, "-l /k/Image"),
    case("load-then-status-word", KERNEL, "-l -S"),
    case("load-no-sync", NOTHING, "-l -y -x /k/Image"),
    // Loads that do not.
    case("load-nothing", NOTHING, "-l"),
    case("load-nothing-dashes", NOTHING, "-l --"),
    case("load-missing", NOTHING, "-l /k/missing"),
    case("load-directory", NOTHING, "-l /k/directory"),
    case("load-empty", NOTHING, "-l /k/empty"),
    case("load-garbage", NOTHING, "-l /k/garbage"),
    case("load-truncated", NOTHING, "-l /k/truncated"),
    case(
        "load-missing-initrd",
        NOTHING,
        "-l /k/Image --initrd=/k/missing",
    ),
    case(
        "load-empty-initrd",
        NOTHING,
        "-l /k/Image --initrd=/k/empty",
    ),
    case("load-missing-dtb", NOTHING, "-l /k/Image --dtb=/k/missing"),
    case("load-bad-dtb", NOTHING, "-l /k/Image --dtb=/k/garbage"),
    case("load-unknown-type", NOTHING, "-l -t nonsense /k/Image"),
    case("load-wrong-type", NOTHING, "-l -t uImage /k/Image"),
    case(
        "load-wrong-type-missing",
        NOTHING,
        "-l -t vmlinux /k/missing",
    ),
    case(
        "load-serial-unknown",
        NOTHING,
        "-l --serial=ttyNONE9 /k/Image",
    ),
    case(
        "load-mem-window-none",
        NOTHING,
        "-l --mem-min=0x100000000000 /k/Image",
    ),
    case("load-entry", NOTHING, "-l --entry=0x40000000 /k/Image"),
    case("load-two-kernels", NOTHING, "-l /k/Image /k/missing"),
    case("load-reuse-initrd", NOTHING, "-l --reuseinitrd /k/Image"),
    case("load-fails-over-loaded", KERNEL, "-l /k/garbage"),
    case(
        "load-preserve-context",
        NOTHING,
        "--load-preserve-context /k/Image",
    ),
    case("load-jump-back-helper", NOTHING, "--load-jump-back-helper"),
    case("load-live-update", NOTHING, "--load-live-update /k/Image"),
    case("exec-live-update", NOTHING, "--exec-live-update"),
    case("load-hotplug", NOTHING, "-l --hotplug /k/Image"),
    // By the other system call, which Debian's kernels do not have.
    case("file-load", NOTHING, "-s -l /k/Image"),
    case(
        "file-load-long",
        NOTHING,
        "--load --kexec-file-syscall /k/Image",
    ),
    case("file-load-nothing", NOTHING, "-s -l"),
    case("file-load-missing", NOTHING, "-s -l /k/missing"),
    case(
        "file-load-dtb",
        NOTHING,
        "-s -l --initrd=/k/initrd --dtb=/k/tree --append=x /k/Image",
    ),
    case("file-unload", NOTHING, "-s -u"),
    case("file-then-auto", NOTHING, "-s -a -l /k/Image"),
    case("file-then-load", NOTHING, "-s -c -l /k/Image"),
    // Unload, status, crash kernels that have no memory.
    case("unload", KERNEL, "-u"),
    case("unload-long", KERNEL, "--unload"),
    case("unload-nothing", NOTHING, "-u"),
    case("unload-by-load", KERNEL, "-c -u"),
    case("unload-then-load", KERNEL, "-u -l /k/Image"),
    case("load-then-unload", KERNEL, "-l /k/Image -u"),
    case("unload-then-nothing", KERNEL, "-u -l"),
    case("unload-with-append", KERNEL, "-u --append=x"),
    case("unload-with-type", KERNEL, "-u -t nonsense"),
    case("unload-with-operand", KERNEL, "-u /k/Image"),
    case("status", NOTHING, "-S"),
    case("status-long", KERNEL, "--status"),
    case("status-load", KERNEL, "-S -l"),
    case("status-load-none", NOTHING, "--status --load"),
    case("status-unload", KERNEL, "-S -l -u"),
    case("status-with-dtb", NOTHING, "-S --dtb=/k/tree"),
    by("no-sysfs", case("status-unreadable", NOTHING, "-S")),
    case("crash-load", NOTHING, "-p /k/Image"),
    case(
        "crash-load-file",
        NOTHING,
        "-p -s --command-line=x --initrd=/k/initrd /k/Image",
    ),
    case("crash-load-nothing", NOTHING, "-p"),
    case("crash-unload", NOTHING, "-p -u"),
    case("crash-unload-order", NOTHING, "-u -p"),
    case("crash-unload-file", NOTHING, "-s -p -u"),
    case("crash-size", NOTHING, "--print-ckr-size"),
    case("crash-size-first", NOTHING, "--print-ckr-size --nonsense"),
    // Going.
    case("exec-nothing", NOTHING, "-e"),
    case("exec-nothing-long", NOTHING, "--exec -x"),
    by(
        "no-reboot",
        case("exec-with-append", KERNEL, "-e --append=x"),
    ),
    case("exec-with-operand", NOTHING, "-e /k/Image"),
    case("exec-force-nothing", NOTHING, "-e -f"),
    case("unload-then-exec", KERNEL, "-u -e"),
    case("force-nothing", NOTHING, "-f"),
    case("force-missing", NOTHING, "-f /k/missing"),
    case("force-load-order", NOTHING, "-f -l /k/Image"),
    case("plain", NOTHING, "/k/Image"),
    case("plain-missing", NOTHING, "/k/missing"),
    by("no-reboot", case("exec-refused", KERNEL, "-e")),
    by(
        "no-reboot",
        case("exec-refused-no-ifdown", KERNEL, "-e --no-ifdown"),
    ),
    by(
        "no-reboot",
        case("force-refused", NOTHING, "-f -y /k/Image"),
    ),
    // By whom it is not allowed, and where it is not there.
    by("nobody", case("load-by-nobody", NOTHING, "-l /k/Image")),
    by("nobody", case("unload-by-nobody", KERNEL, "-u")),
    by("nobody", case("exec-by-nobody", KERNEL, "-x -e")),
    by("nobody", case("status-by-nobody", KERNEL, "-S -l")),
    by(
        "no-kexec",
        case("load-without-syscall", NOTHING, "-l /k/Image"),
    ),
    by(
        "no-kexec",
        case("load-by-load-without-syscall", NOTHING, "-c -l /k/Image"),
    ),
    by("no-kexec", case("unload-without-syscall", NOTHING, "-u")),
];

/// On a machine that has memory for one.
const CRASH_CASES: &[Case] = &[
    case("crash-size-reserved", NOTHING, "--print-ckr-size"),
    case(
        "crash-loaded",
        NOTHING,
        "-p /k/Image --command-line='root=/dev/vda1 reset_devices' --initrd=/k/initrd",
    ),
    case(
        "crash-loaded-reuse",
        NOTHING,
        "-p --reuse-cmdline --append=nr_cpus=1 /k/Image",
    ),
    case("crash-loaded-by-load", NOTHING, "-c -p /k/Image"),
    case("crash-loaded-by-file", NOTHING, "-s -p /k/Image"),
    case("crash-loaded-again", CRASH, "--load-panic /k/Image"),
    case("crash-loaded-nothing", NOTHING, "-p"),
    case("crash-loaded-missing", NOTHING, "-p /k/missing"),
    case("crash-loaded-hotplug", NOTHING, "-p --hotplug /k/Image"),
    case("crash-status", CRASH, "-S"),
    case("crash-status-panic", CRASH, "-S -p"),
    case("crash-status-load", CRASH, "-S -l"),
    case("crash-unloaded", CRASH, "-p -u"),
    case("crash-unloaded-by-load", CRASH, "-c -p -u"),
    case("crash-unloaded-by-file", CRASH, "-s -p -u"),
    case("crash-unloaded-other", CRASH, "-u"),
    case("crash-kept-by-load", CRASH, "-l /k/Image"),
    case("crash-exec", CRASH, "-p -e"),
    case("crash-window", NOTHING, "-p --mem-min=0x40000000 /k/Image"),
    case("crash-no-checks", NOTHING, "-p -i /k/Image"),
    case("crash-load-and-kernel", CRASH, "-u -l /k/Image"),
    case(
        "crash-loaded-missing-initrd",
        NOTHING,
        "-p /k/Image.gz --initrd=/k/missing",
    ),
    case(
        "crash-loaded-too-long-append",
        NOTHING,
        "-p /k/Image --append=$longer",
    ),
    by(
        "nobody",
        case("crash-load-by-nobody", NOTHING, "-p /k/Image"),
    ),
    by("nobody", case("crash-unload-by-nobody", CRASH, "-p -u")),
    by("nobody", case("crash-status-by-nobody", CRASH, "-S")),
    by(
        "nobody",
        case("crash-size-by-nobody", NOTHING, "--print-ckr-size"),
    ),
];

/// The rows of this test.
pub(crate) fn rows() -> Vec<Row> {
    [
        ("kexec/diff", CASES, ""),
        ("kexec/diff-crash", CRASH_CASES, "crashkernel=128M"),
    ]
    .map(|(name, cases, first_words)| {
        let mut row = Row::hand_over("6.1", "6.1", EL1_A57, Strategy::Auto);
        row.cpus = 2;
        row.memory_mb = MEMORY_MB;
        row.payload_bytes = 0;
        row.kexec_tools = true;
        row.modules = &["dummy"];
        row.first_words = first_words;
        row.script = Script::KexecDiff(cases);
        row.end = End::KexecDiff(cases);
        row.verdict_deadline_ms = Some(DEADLINE_MS);
        row.name = name.to_owned();
        row
    })
    .into()
}

/// `cargo xtask kexec-diff`: the rows of this test, as `e2e` runs them.
pub(crate) fn run(lab: &Lab) -> Result<()> {
    let selection = Selection {
        only: rows().into_iter().map(|row| row.name).collect(),
        ..Selection::default()
    };
    e2e::run_command(lab, &selection)
}

/// What the machine does.
pub(crate) fn script(cases: &[Case]) -> String {
    let mut text = SCRIPT.to_owned();
    for case in cases {
        text.push_str(&format!(
            "case_ {} {} {} {}\n",
            case.name, case.by, case.loaded, case.words
        ));
    }
    text.push_str("nothing_loaded\nfinish ok\n");
    text
}

/// Kernels that no machine has to run: as small as the formats allow.
pub(crate) fn files() -> ExtraFiles {
    let image = image();
    vec![
        ("lab/uImage".to_owned(), uimage(&image)),
        ("lab/vmlinux".to_owned(), vmlinux(&image)),
        ("lab/Image".to_owned(), image),
    ]
}

/// What [`image`] needs in memory, bytes.
const IMAGE_SIZE_BYTES: u64 = 0x2_0000;
/// Size of the file, bytes.
const IMAGE_FILE_BYTES: usize = 0x1_0000;

/// An arm64 Image (Documentation/arch/arm64/booting.rst) that loops.
fn image() -> Vec<u8> {
    const BRANCH_TO_64: u32 = 0x1400_0010;
    const BRANCH_TO_SELF: u32 = 0x1400_0000;
    // Anywhere in memory; pages of 4 KiB.
    const FLAGS: u64 = 1 << 3 | 1 << 1;
    let mut bytes = Vec::new();
    bytes.extend(BRANCH_TO_64.to_le_bytes());
    bytes.extend([0; 4]);
    for word in [0, IMAGE_SIZE_BYTES, FLAGS, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(b"ARM\x64");
    bytes.extend([0; 4]);
    bytes.extend(BRANCH_TO_SELF.to_le_bytes());
    bytes.resize(IMAGE_FILE_BYTES, 0);
    bytes
}

/// U-Boot's legacy header (include/image.h of U-Boot) and that Image.
fn uimage(image: &[u8]) -> Vec<u8> {
    const LINUX_ARM64_KERNEL_PLAIN: [u8; 4] = [5, 22, 2, 0];
    let mut header = Vec::new();
    let size = u32::try_from(image.len()).unwrap_or(u32::MAX);
    for word in [0x2705_1956, 0, 0, size, 0, 0, crc32fast::hash(image)] {
        header.extend(u32::to_be_bytes(word));
    }
    header.extend(LINUX_ARM64_KERNEL_PLAIN);
    header.resize(64, 0);
    let crc = crc32fast::hash(&header);
    header.splice(4..8, crc.to_be_bytes());
    header.extend(image);
    header
}

/// An ELF program of one segment, which is that Image.
fn vmlinux(image: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: u16 = 64;
    const PROGRAM_HEADER_BYTES: u16 = 56;
    const IMAGE_OFFSET_BYTES: u64 = 0x1000;
    const VIRTUAL_ADDRESS: u64 = 0xffff_8000_1000_0000;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    // ET_EXEC, EM_AARCH64.
    for half in [2_u16, 183] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1_u32.to_le_bytes());
    for word in [VIRTUAL_ADDRESS, u64::from(HEADER_BYTES), 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for half in [HEADER_BYTES, PROGRAM_HEADER_BYTES, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    for word in [1_u32, 5] {
        bytes.extend(word.to_le_bytes());
    }
    let size = image.len() as u64;
    for word in [
        IMAGE_OFFSET_BYTES,
        VIRTUAL_ADDRESS,
        VIRTUAL_ADDRESS,
        size,
        IMAGE_SIZE_BYTES,
        0x1_0000,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(usize::try_from(IMAGE_OFFSET_BYTES).unwrap_or(0), 0);
    bytes.extend(image);
    bytes
}

/// What came of a case, as docs/kexec-differences.md writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome(String);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Outcome {
    /// From what the script says: `exit=1 out=0 err=1 before=0 0 up after=0 0 up shutdown=0`.
    fn parse(text: &str) -> Result<Self> {
        let wrong = || format!("the script says '{text}'");
        let (head, states) = text.split_once(" before=").with_context(wrong)?;
        let (before, states) = states.split_once(" after=").with_context(wrong)?;
        let (after, shutdown) = states.split_once(" shutdown=").with_context(wrong)?;
        let mut words = head.split(' ');
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let (code, out, err) = (field("exit"), field("out"), field("err"));
        let (Some(code), Some(out), Some(err)) = (code, out, err) else {
            bail!(wrong());
        };
        let said = match (out, err) {
            ("0", "0") => "nothing said",
            ("1", "0") => "stdout",
            ("0", "1") => "stderr",
            ("1", "1") => "stdout and stderr",
            _ => bail!(wrong()),
        };
        let mut outcome = format!("exit {code}, {said}");
        let names = ["kernel", "crash kernel", "interface"];
        let states: Vec<_> = before.split(' ').zip(after.split(' ')).collect();
        ensure!(states.len() == names.len(), wrong());
        for (name, (before, after)) in names.iter().zip(states) {
            if before != after {
                outcome.push_str(&match (*name, after) {
                    ("interface", _) => format!(", {name} {after}"),
                    (_, "1") => format!(", {name} loaded"),
                    _ => format!(", {name} unloaded"),
                });
            }
        }
        if shutdown.trim() == "1" {
            outcome.push_str(", shutdown ran");
        }
        Ok(Self(outcome))
    }
}

/// Both outcomes of every case, by its name.
type Outcomes = BTreeMap<String, (Outcome, Outcome)>;

/// Collects what the machine says.
fn outcomes(history: &[Line]) -> Result<Outcomes> {
    let mut theirs = BTreeMap::new();
    let mut both = Outcomes::new();
    for line in history {
        let Some(rest) = lab_value(line, "diff ") else {
            continue;
        };
        let mut parts = rest.splitn(3, ' ');
        let (Some(name), Some(tool), Some(text)) = (parts.next(), parts.next(), parts.next())
        else {
            bail!("the script says '{rest}'");
        };
        let outcome = Outcome::parse(text)?;
        if tool.starts_with("/lab/") {
            let their = theirs
                .remove(name)
                .with_context(|| format!("{name}: kleap alone"))?;
            both.insert(name.to_owned(), (their, outcome));
        } else {
            theirs.insert(name.to_owned(), outcome);
        }
    }
    Ok(both)
}

/// The differences that are written down: name of the case, theirs, ours.
fn written() -> Result<Outcomes> {
    let mut found = Outcomes::new();
    for line in DIFFERENCES.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, theirs, ours] = cells.as_slice() else {
            bail!("docs/kexec-differences.md: no three cells in '{line}'");
        };
        for name in names.split(',') {
            let name = name.trim().trim_matches('`').to_owned();
            let pair = (Outcome((*theirs).to_owned()), Outcome((*ours).to_owned()));
            ensure!(
                found.insert(name.clone(), pair).is_none(),
                "docs/kexec-differences.md has {name} twice"
            );
        }
    }
    Ok(found)
}

/// Compares; gives a note for the table.
pub(crate) fn judge(history: &[Line], cases: &[Case]) -> Result<String> {
    compare(&outcomes(history)?, cases, &written()?)
}

fn compare(found: &Outcomes, cases: &[Case], written: &Outcomes) -> Result<String> {
    let mut wrong = Vec::new();
    let mut different = 0;
    for case in cases {
        let Some((theirs, ours)) = found.get(case.name) else {
            wrong.push(format!("{}: was not run", case.name));
            continue;
        };
        let line =
            |theirs: &Outcome, ours: &Outcome| format!("| `{}` | {theirs} | {ours} |", case.name);
        match (theirs == ours, written.get(case.name)) {
            (true, None) => {}
            (true, Some(_)) => wrong.push(format!(
                "{}: both end with '{ours}', and docs/kexec-differences.md has a difference",
                case.name
            )),
            (false, Some((their, our))) if their == theirs && our == ours => different += 1,
            (false, Some((their, our))) => wrong.push(format!(
                "another difference than in docs/kexec-differences.md:\n  {}\n  which has\n  {}",
                line(theirs, ours),
                line(their, our)
            )),
            (false, None) => wrong.push(format!("a difference:\n  {}", line(theirs, ours))),
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    Ok(format!(
        "{} cases, {different} of them different on purpose",
        cases.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_cases_and_each_has_a_name_of_its_own() {
        let mut names: Vec<_> = CASES
            .iter()
            .chain(CRASH_CASES)
            .map(|case| case.name)
            .collect();
        assert!(names.len() >= 80, "{}", names.len());
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in written().unwrap().keys() {
            assert!(names.contains(&name.as_str()), "no case is called {name}");
        }
    }

    #[test]
    fn what_is_written_down_is_a_difference() {
        for (name, (theirs, ours)) in written().unwrap() {
            assert_ne!(theirs, ours, "{name}");
        }
    }

    fn outcome(text: &str) -> Outcome {
        Outcome::parse(text).unwrap()
    }

    #[test]
    fn outcomes_are_words() {
        for (text, wanted) in [
            (
                "exit=255 out=0 err=1 before=0 0 up after=0 0 up shutdown=0",
                "exit 255, stderr",
            ),
            (
                "exit=0 out=0 err=0 before=1 0 up after=0 1 down shutdown=1",
                "exit 0, nothing said, kernel unloaded, crash kernel loaded, interface down, shutdown ran",
            ),
        ] {
            assert_eq!(outcome(text).0, wanted);
        }
        assert!(Outcome::parse("exit=1 out=0 before=0 0 up after=0 0 up shutdown=0").is_err());
        assert!(Outcome::parse("exit=1 out=0 err=0 before=0 0 after=0 0 shutdown=0").is_err());
    }

    #[test]
    fn a_difference_must_be_written_down_and_must_occur() {
        const CASES: &[Case] = &[case("a", NOTHING, "-a")];
        let same = outcome("exit=0 out=0 err=0 before=0 0 up after=0 0 up shutdown=0");
        let other = outcome("exit=1 out=0 err=0 before=0 0 up after=0 0 up shutdown=0");
        let of = |theirs: &Outcome, ours: &Outcome| {
            Outcomes::from([("a".to_owned(), (theirs.clone(), ours.clone()))])
        };
        let none = Outcomes::new();
        assert!(compare(&of(&same, &same), CASES, &none).is_ok());
        assert!(compare(&of(&same, &other), CASES, &of(&same, &other)).is_ok());
        for (found, written) in [
            (none.clone(), none.clone()),
            (of(&same, &other), none),
            (of(&same, &same), of(&same, &other)),
            (of(&other, &same), of(&same, &other)),
        ] {
            assert!(compare(&found, CASES, &written).is_err());
        }
    }
}
