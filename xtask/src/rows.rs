//! The matrix: which hand-overs are tried, and what each must end with.
//!
//! A row is data: a machine, two kernels, a payload, a script for the first kernel, and what must be
//! seen from outside. The whole product of all choices would take days, so every pair of kernels
//! meets every kind of machine and both strategies with the small payload and four CPUs; the large
//! payload and the single CPU then meet every pair of kernels once or twice, on machines taken in
//! turn.

use crate::formats::{FORMATS, Format};
use crate::initramfs::SecondInitrd;

/// Image and initrd together, as in the measurements that this project started from.
pub(crate) const SMALL_PAYLOAD_BYTES: u64 = 47_000_000;
/// The larger of those payloads.
pub(crate) const LARGE_PAYLOAD_BYTES: u64 = 380_000_000;
/// Memory of a machine for the small payload.
const SMALL_MEMORY_MB: u32 = 2048;
/// For the large one, which the first kernel holds three times: initramfs, files, huge pages. With
/// 4096 the `in-place` rows sometimes found no free run that is long enough.
const LARGE_MEMORY_MB: u32 = 6144;
/// For an initrd with four kernels, which each kernel of a chain holds four times: as it was given it, as
/// files, as one file, and in huge pages.
pub(crate) const CHAIN_MEMORY_MB: u32 = 3072;
/// How many CPUs most rows have.
const USUAL_CPUS: u32 = 4;
/// Every kernel's command line starts with this. A panic ends the machine. The watchdogs are off: when
/// the host is busy the emulator stands still for many seconds, and what they say of that is no
/// complaint about the hand-over.
const COMMON_WORDS: &str = "console=ttyAMA0 panic=1 oops=panic rdinit=/init nowatchdog \
                            rcupdate.rcu_cpu_stall_suppress=1";

/// The script's line at which the debugger comes in, and the time it has for that; before it, where the
/// relocator's first instruction will be.
pub(crate) const WITNESS_LINE: &str = "witness";
pub(crate) const WITNESS_STAGE: &str = "stage=";
const WITNESS_PAUSE: &str = "say \"stage=$(sed 's/.*\"stage\":\\[\\([0-9]*\\),.*/\\1/' /dev/kleap/state.json)\"\nsay witness\nsleep 5\n";

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its name in rows.
    pub(crate) name: &'static str,
    /// `-cpu`.
    pub(crate) cpu: &'static str,
    /// Whether it has EL2.
    pub(crate) virtualization: bool,
    /// Words for both kernels' command lines.
    pub(crate) kernel_words: &'static str,
}

/// EL2 without VHE: a v8.0 CPU.
pub(crate) const EL2_A57: Kind = Kind {
    name: "el2-a57",
    cpu: "cortex-a57",
    virtualization: true,
    kernel_words: "",
};
/// EL1 only, as in a guest.
pub(crate) const EL1_A57: Kind = Kind {
    name: "el1-a57",
    cpu: "cortex-a57",
    virtualization: false,
    kernel_words: "",
};
/// EL2 with VHE.
pub(crate) const VHE_N1: Kind = Kind {
    name: "vhe-n1",
    cpu: "neoverse-n1",
    virtualization: true,
    kernel_words: "",
};
/// EL2 with VHE and everything QEMU has. Its own algorithm for pointer authentication instead of
/// the architecture's, which takes half of the emulator's time and proves nothing here.
pub(crate) const VHE_MAX: Kind = Kind {
    name: "vhe-max",
    cpu: "max,pauth-impdef=on",
    virtualization: true,
    kernel_words: "",
};
/// EL1 on a CPU with 16K pages, which a Cortex-A57 lacks.
pub(crate) const EL1_N1: Kind = Kind {
    name: "el1-n1",
    cpu: "neoverse-n1",
    virtualization: false,
    kernel_words: "",
};
/// EL2 with VHE that the kernel does not use, for kernels with 16K pages.
const NVHE_N1: Kind = Kind {
    name: "nvhe-n1",
    cpu: "neoverse-n1",
    virtualization: true,
    kernel_words: "kvm-arm.mode=nvhe",
};

/// The machine that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Board {
    /// `virt`, with the CPU and the exception levels of its [`Kind`].
    Virt,
    /// `raspi3b`: CPUs in a spin-table, no PSCI, no GIC. It cannot power itself off.
    Raspi3b,
}

/// What starts the first kernel, and tells it what machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// QEMU itself, with a device tree.
    DeviceTree,
    /// UEFI, with ACPI tables.
    Efi,
}

/// How the payload reaches its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Strategy {
    /// It is there before the reboot.
    InPlace,
    /// The relocator moves it.
    Relocate,
    /// The command chooses.
    Auto,
    /// The first kernel copies everything.
    Kernel,
}

impl Strategy {
    /// As the command spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::InPlace => "in-place",
            Self::Relocate => "relocate",
            Self::Auto => "auto",
            Self::Kernel => "kernel",
        }
    }
}

/// What the first kernel does.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Loads and executes.
    HandOver(Strategy),
    /// Tries to load, which must fail with a message that matches each of these extended regular
    /// expressions, and change nothing.
    Refuse(&'static [&'static str]),
    /// Loads, breaks something after the last check (`--inject-fault`), and executes.
    Break {
        /// How the payload reaches its place.
        strategy: Strategy,
        /// What is broken.
        fault: &'static str,
    },
    /// Loads with `--early`, and lets somebody else reboot.
    Early,
    /// A script of its own.
    Text(&'static str),
    /// Kernel after kernel in one machine, each loading and executing the next (`chain.sh`).
    Chain {
        /// In turn, beginning with the one that the machine starts.
        kernels: &'static [&'static str],
        /// How many hand-overs.
        hops: u32,
        /// What is broken, or decided another way, at each of them.
        fault: Option<&'static str>,
        /// What each kernel does, where they do not all do the same (`soak.sh`).
        plan: Option<String>,
    },
    /// Hands over to a kernel in this format, with what the format has in it.
    Format(Format),
    /// The same with a script made for the row, in which [`COMMAND_LINE`] stands for the second kernel's.
    FormatTemplate(Format, String),
    /// Hands over with two initrds, one of them compressed, that `--decompress-initrd` makes one of.
    Initrds,
    /// Does each case once by kexec-tools and once by kleap as `kexec`.
    KexecDiff(&'static [crate::kexec_diff::Case]),
    /// A script made for the row, in which [`COMMAND_LINE`] stands for the second kernel's.
    Template(String),
}

/// What a [`Script::Template`] has where the second kernel's command line belongs.
pub(crate) const COMMAND_LINE: &str = "@COMMAND_LINE@";

/// Everything that a user can get wrong, each a clear error and an unchanged machine.
const BAD_INPUT: &str = include_str!("../guest-scripts/bad-input.sh");
/// What `kexec_load` takes of memory, against what is predicted.
const KEXEC_COST: &str = include_str!("../guest-scripts/kexec-cost.sh");

/// How the machine must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// A kernel says `verdict=ok` with the run's token and powers off.
    Verdict,
    /// As [`End::Verdict`]; and each `kleap check --json` that the script ran said this.
    Checks(Vec<crate::check::Expected>),
    /// As [`End::Verdict`]; and both programs did the same in each case, but for what is written down.
    KexecDiff(&'static [crate::kexec_diff::Case]),
    /// Every kernel of a chain says what it found; then as [`End::Verdict`].
    Chain {
        /// How many hand-overs.
        hops: u32,
        /// By how much less memory each must have than the one before, but for its version.
        lost_kb_per_hop: u64,
    },
    /// The second kernel finds no initrd and no root file system, and says nothing of the first one's initrd.
    NoRoot,
    /// The second kernel complains with this text, and its verdict is a failure for that reason: shows that
    /// the other rows would notice.
    Complaint {
        /// What must be in the verdict.
        text: &'static str,
    },
    /// The second kernel starts, and its machine is then reset by a watchdog or powers off.
    Watchdog {
        /// Whether it is the watchdog.
        resets: bool,
    },
    /// The machine resets itself after a line with this text, and no second kernel is seen.
    Reset {
        /// What must be on the console.
        line: &'static str,
    },
    /// The same, but it powers itself off.
    Off {
        /// What must be on the console.
        line: &'static str,
    },
    /// It stays as it is after a line with this text: not reset, not off, no second kernel.
    Halt {
        /// What must be on the console.
        line: &'static str,
    },
    /// It resets itself without a line, and no second kernel is seen.
    SilentReset,
}

/// One hand-over.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What `--only` selects.
    pub(crate) name: String,
    /// The machine.
    pub(crate) kind: Kind,
    /// Whether it is QEMU's `virt`.
    pub(crate) board: Board,
    /// What starts the first kernel.
    pub(crate) firmware: Firmware,
    /// How many CPUs.
    pub(crate) cpus: u32,
    /// How much memory.
    pub(crate) memory_mb: u32,
    /// Whether the interrupt controller has an ITS, and so LPIs whose tables outlive the first kernel.
    pub(crate) its: bool,
    /// The first kernel's name.
    pub(crate) first: &'static str,
    /// The second kernel's name.
    pub(crate) second: &'static str,
    /// What else QEMU's `-m` says.
    pub(crate) memory_words: &'static str,
    /// More words for QEMU.
    pub(crate) machine_words: &'static [&'static str],
    /// Whether the payload is on a disk, not in the first initramfs.
    pub(crate) is_payload_on_disk: bool,
    /// Modules of the first kernel, to be found in /lab.
    pub(crate) modules: &'static [&'static str],
    /// What `--verify` says, where it is given; then the second kernel must report the same.
    pub(crate) verify: Option<&'static str>,
    /// The most that the second kernel may report as moved, bytes, where that matters.
    pub(crate) moved_max_bytes: Option<u64>,
    /// Whether the first kernel's script may find that the load is refused, and end there.
    pub(crate) may_be_refused: bool,
    /// More words for the first kernel.
    pub(crate) first_words: &'static str,
    /// Image and initrd together.
    pub(crate) payload_bytes: u64,
    /// Whether the command is the variant with switches that break things.
    pub(crate) fault_injection: bool,
    /// Whether a debugger watches the hand-over.
    pub(crate) witness: bool,
    /// Whether the first kernel's machine has kexec-tools, to compare with.
    pub(crate) kexec_tools: bool,
    /// Whether the second kernel is a crash kernel, which gets tools that read the first one's memory.
    pub(crate) captures: bool,
    /// Whether the second kernel must have a report of kleap's.
    pub(crate) report: bool,
    /// Whether the machine starts again after a reset.
    pub(crate) reboots: bool,
    /// More words for `kleap exec`.
    pub(crate) exec_words: &'static str,
    /// Lines with these texts must be on the console, in this order.
    pub(crate) lines: &'static [&'static str],
    /// How long the first kernel's script and the second kernel may take, where that is not usual.
    pub(crate) verdict_deadline_ms: Option<u64>,
    /// What the first kernel does.
    pub(crate) script: Script,
    /// How the machine must end.
    pub(crate) end: End,
    /// Whether `--fast` includes it.
    pub(crate) fast: bool,
    /// The command that runs it again, where that is not `e2e --only`.
    pub(crate) replay: Option<String>,
}

impl Row {
    /// A hand-over with the small payload and the usual number of CPUs.
    pub(crate) fn hand_over(
        first: &'static str,
        second: &'static str,
        kind: Kind,
        strategy: Strategy,
    ) -> Self {
        let row = Self {
            name: String::new(),
            kind,
            board: Board::Virt,
            firmware: Firmware::DeviceTree,
            cpus: USUAL_CPUS,
            memory_mb: SMALL_MEMORY_MB,
            its: true,
            first,
            second,
            memory_words: "",
            machine_words: &[],
            is_payload_on_disk: false,
            modules: &[],
            verify: None,
            moved_max_bytes: None,
            may_be_refused: false,
            first_words: "",
            payload_bytes: SMALL_PAYLOAD_BYTES,
            fault_injection: false,
            witness: false,
            kexec_tools: false,
            captures: false,
            report: true,
            reboots: false,
            exec_words: "",
            lines: &[],
            verdict_deadline_ms: None,
            script: Script::HandOver(strategy),
            end: End::Verdict,
            fast: false,
            replay: None,
        };
        row.named()
    }

    fn refusal(
        first: &'static str,
        second: &'static str,
        kind: Kind,
        why: &str,
        patterns: &'static [&'static str],
    ) -> Self {
        let mut row = Self::hand_over(first, second, kind, Strategy::Auto);
        row.script = Script::Refuse(patterns);
        row.name = format!("{first}-to-{second}/{}/refused-{why}", kind.name);
        row
    }

    fn broken(kind: Kind, strategy: Strategy, fault: &'static str, line: &'static str) -> Self {
        let mut row = Self::hand_over("6.1", "6.12", kind, strategy);
        row.fault_injection = true;
        row.script = Script::Break { strategy, fault };
        row.end = End::Reset { line };
        row.name = format!("broken/{fault}/{}/{}", kind.name, strategy.word());
        row
    }

    /// A hand-over verified another way than usual; `fault` is what is decided or broken at it.
    fn verified(
        kind: Kind,
        strategy: Strategy,
        verify: &'static str,
        fault: Option<&'static str>,
        end: End,
    ) -> Self {
        let mut row = match fault {
            None => Self::hand_over("6.1", "6.12", kind, strategy),
            Some(fault) => Self::broken(kind, strategy, fault, ""),
        };
        row.verify = Some(verify);
        row.end = end;
        let fault = fault.map_or_else(String::new, |fault| format!(",{fault}"));
        row.name = format!("verify/{verify}{fault}/{}/{}", kind.name, strategy.word());
        row
    }

    fn early(first: &'static str, second: &'static str, kind: Kind) -> Self {
        let mut row = Self::hand_over(first, second, kind, Strategy::Auto);
        row.script = Script::Early;
        row.named()
    }

    fn bad_input(first: &'static str) -> Self {
        let mut row = Self::hand_over(first, "5.10", EL1_A57, Strategy::Auto);
        row.script = Script::Text(BAD_INPUT);
        row.cpus = 2;
        // Less than the GiB that one of the files claims.
        row.memory_mb = 1024;
        row.name = format!("bad-input/{first}");
        row
    }

    fn kexec_cost(first: &'static str, kind: Kind, memory_mb: u32) -> Self {
        let mut row = Self::hand_over(first, first, kind, Strategy::Auto);
        row.script = Script::Text(KEXEC_COST);
        row.cpus = 2;
        row.memory_mb = memory_mb;
        // Nothing is handed over to.
        row.payload_bytes = 0;
        row.name = format!("kexec-cost/{first}/{}/{memory_mb}M", kind.name);
        row
    }

    pub(crate) fn large(mut self) -> Self {
        self.payload_bytes = LARGE_PAYLOAD_BYTES;
        self.memory_mb = LARGE_MEMORY_MB;
        self.named()
    }

    fn witnessed(mut self) -> Self {
        self.witness = true;
        self.name.push_str("/witness");
        self
    }

    pub(crate) fn by_efi(mut self) -> Self {
        self.firmware = Firmware::Efi;
        self.name.push_str("/efi");
        self
    }

    fn with_cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self.named()
    }

    fn named(mut self) -> Self {
        let strategy = match self.script {
            Script::HandOver(strategy) => strategy.word(),
            Script::Refuse(_) => "refused",
            Script::Break { .. } => "broken",
            Script::Early => "early",
            Script::Format(_) | Script::FormatTemplate(..) | Script::Initrds => "formats",
            Script::Text(_) | Script::Template(_) | Script::KexecDiff(_) => "script",
            Script::Chain { .. } => "chain",
        };
        self.name = format!(
            "{}-to-{}/{}/{strategy}/{}M/cpus{}",
            self.first,
            self.second,
            self.kind.name,
            self.payload_bytes / 1_000_000,
            self.cpus
        );
        self
    }

    /// The command that runs this row alone.
    pub(crate) fn replay_command(&self) -> String {
        self.replay
            .clone()
            .unwrap_or_else(|| format!("cargo xtask e2e --only {}", self.name))
    }

    /// The first kernel's command line.
    pub(crate) fn first_command_line(&self, token: &str) -> String {
        join_words(&[
            COMMON_WORDS,
            self.kind.kernel_words,
            self.first_words,
            "kleap_lab.role=first",
            &format!("kleap_lab.token={token}"),
        ])
    }

    /// The second kernel's command line.
    pub(crate) fn second_command_line(&self, token: &str, initrd: &SecondInitrd) -> String {
        join_words(&[
            COMMON_WORDS,
            self.kind.kernel_words,
            // The first line of the second kernel is then seen when it is written.
            "earlycon",
            "retain_initrd",
            "kleap_lab.role=second",
            if self.report {
                ""
            } else {
                "kleap_lab.report=no"
            },
            &format!("kleap_lab.token={token}"),
            &format!("kleap_lab.initrd_sha256={}", initrd.sha256),
            &format!("kleap_lab.cpus={}", self.cpus),
        ])
    }

    /// The command line of the first kernel of a chain, and, but for the number of the hop, of all.
    pub(crate) fn chain_command_line(&self, token: &str, initrd: &SecondInitrd) -> String {
        let Script::Chain {
            kernels,
            hops,
            fault,
            plan,
        } = &self.script
        else {
            return String::new();
        };
        join_words(&[
            COMMON_WORDS,
            self.kind.kernel_words,
            self.first_words,
            "earlycon",
            "retain_initrd",
            if plan.is_some() {
                "kleap_lab.role=soak"
            } else {
                "kleap_lab.role=chain"
            },
            &format!("kleap_lab.initrd_bytes={}", initrd.size_bytes),
            "kleap_lab.hop=0",
            &format!("kleap_lab.hops={hops}"),
            &format!("kleap_lab.kernels={}", kernels.join(",")),
            &format!("kleap_lab.strategy={}", Strategy::Auto.word()),
            &fault.map_or(String::new(), |fault| format!("kleap_lab.fault={fault}")),
            &format!("kleap_lab.token={token}"),
            &format!("kleap_lab.initrd_sha256={}", initrd.sha256),
            &format!("kleap_lab.cpus={}", self.cpus),
        ])
    }

    /// The kernels that the row needs.
    pub(crate) fn kernels(&self) -> Vec<&'static str> {
        match &self.script {
            Script::Chain { kernels, .. } => kernels.to_vec(),
            _ => vec![self.first, self.second],
        }
    }

    /// The first kernel's script.
    pub(crate) fn script_text(&self, token: &str, initrd: &SecondInitrd) -> String {
        let command_line = self.second_command_line(token, initrd);
        let load = |strategy: Strategy| {
            format!(
                "kleap load /payload/Image --initrd /payload/initrd --strategy {}{} \
                 --command-line '{command_line}'",
                strategy.word(),
                self.verify
                    .map_or_else(String::new, |verify| format!(" --verify {verify}")),
            )
        };
        match &self.script {
            Script::HandOver(strategy) => {
                let pause = if self.witness { WITNESS_PAUSE } else { "" };
                format!(
                    "say payload initrd_bytes={}\nmust {}\nsay loaded\nrun kleap status\n{pause}\
                     say executing\nrun kleap exec {}\nfinish fail 'kleap exec came back'\n",
                    initrd.size_bytes,
                    load(*strategy),
                    self.exec_words
                )
            }
            Script::Refuse(patterns) => {
                let patterns: Vec<_> = patterns
                    .iter()
                    .map(|pattern| format!("'{pattern}'"))
                    .collect();
                let (patterns, load) = (patterns.join(" "), load(Strategy::Auto));
                format!("refuse {patterns} -- {load}\nfinish ok\n")
            }
            Script::Early => format!(
                "say payload initrd_bytes={}\nbefore=$(cat /sys/kernel/kexec_loaded)\n\
                 must {} --early\nrun kleap status\n\
                 [ \"$before$(cat /sys/kernel/kexec_loaded)\" = 01 ] || finish fail 'not loaded early'\n\
                 not_loaded() {{\n[ \"$(cat /sys/kernel/kexec_loaded)\" = 0 ] || finish fail \"$1 left it loaded\"\n}}\n\
                 must kleap unload\nnot_loaded unload\n\
                 must {early} --early\nmust {early}\nnot_loaded 'a load that is not early'\n\
                 must {early} --early\necho 7 >/dev/kleap/state.json\nmust kleap unload\nnot_loaded 'unload of a damaged note'\n\
                 [ ! -e /dev/kleap ] || finish fail 'unload left /dev/kleap behind'\n\
                 must {early} --early\nsay executing\nrun kleap-guest reboot-kexec\n\
                 finish fail 'the reboot came back'\n",
                initrd.size_bytes,
                load(Strategy::Auto),
                early = load(Strategy::Auto),
            ),
            Script::Break { strategy, fault } => format!(
                "must {}\nsay executing\nrun kleap exec --inject-fault '{fault}' {}\n\
                 finish fail 'kleap exec came back'\n",
                load(*strategy),
                self.exec_words
            ),
            Script::Format(format) => {
                let mut load = "kleap load /payload/Image".to_owned();
                if !format.has_initrd {
                    load.push_str(" --initrd /payload/initrd");
                }
                if !format.has_command_line {
                    load.push_str(&format!(" --command-line '{command_line}'"));
                }
                format!(
                    "must {load}\nsay loaded\nrun kleap status\nsay executing\nrun kleap exec\n\
                     finish fail 'kleap exec came back'\n"
                )
            }
            Script::Initrds => format!(
                "must kleap load /payload/Image --initrd /lab/early.cpio --initrd /lab/initrd.zst \
                 --decompress-initrd --command-line '{command_line}'\nsay loaded\nrun kleap status\n\
                 say executing\nrun kleap exec\nfinish fail 'kleap exec came back'\n"
            ),
            Script::Text(text) => (*text).to_owned(),
            Script::KexecDiff(cases) => crate::kexec_diff::script(cases),
            // In the base, the same for every kernel.
            Script::Chain { .. } => String::new(),
            Script::Template(text) | Script::FormatTemplate(_, text) => {
                text.replace(COMMAND_LINE, &command_line)
            }
        }
    }
}

fn join_words(words: &[&str]) -> String {
    words
        .iter()
        .filter(|word| !word.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Pairs of kernels with 4K pages.
const PAIRS_4K: &[(&str, &str)] = &[
    ("5.10", "5.10"),
    ("6.1", "6.1"),
    ("6.12", "6.12"),
    ("7.3", "7.3"),
    ("5.10", "7.3"),
    ("7.3", "5.10"),
];
/// Pairs with a kernel with 16K pages.
const PAIRS_16K: &[(&str, &str)] = &[
    ("6.12-16k", "6.12-16k"),
    ("6.12-16k", "6.1"),
    ("6.1", "6.12-16k"),
];
/// Machines for kernels with 4K pages.
const KINDS_4K: &[Kind] = &[EL2_A57, EL1_A57, VHE_N1, VHE_MAX];
/// Machines for kernels with 16K pages.
const KINDS_16K: &[Kind] = &[NVHE_N1, EL1_N1, VHE_N1, VHE_MAX];
/// Both ways.
const STRATEGIES: &[Strategy] = &[Strategy::InPlace, Strategy::Relocate];
/// What keeps 6.12 with 4K pages from crashing in the stock system call where the CPU has LPA2.
const WITHOUT_LPA2: &str = "arm64.nolva";
/// Rows of the fast subset: each machine and both strategies.
const FAST: &[&str] = &[
    "5.10-to-7.3/el2-a57/in-place/47M/cpus4",
    "6.12-to-6.12/el1-a57/relocate/47M/cpus4",
    "6.12-16k-to-6.1/vhe-n1/in-place/47M/cpus4",
    "7.3-to-5.10/vhe-max/relocate/47M/cpus4",
    "6.12-to-6.12/vhe-max/refused-lpa2",
    "6.1-to-6.12/el2-a57/relocate/47M/cpus4/witness",
    "broken/Image:12345678/el2-a57/in-place",
    "broken/exception/el1-a57/in-place",
    "broken/tables:0/el2-a57/in-place",
    "verify/sha256/el2-a57/in-place",
    "verify/crc32c,portable/el1-a57/relocate",
    "bad-input/6.1",
    "6.1-to-6.12/el2-a57/in-place/47M/cpus4/efi",
    "5.10-to-7.3/el2-a57/kernel/47M/cpus4",
    "6.1-to-7.3/el1-a57/early/47M/cpus4",
    "kexec/exec/el2-a57",
    "formats/fit",
    "formats/uki-zboot",
    "kexec-cost/6.1/el2-a57/2048M",
    "check/6.12/el2-a57/more",
    "check/6.1/el2-a57/protected-kvm",
    "verbose/el1-a57/relocate",
    "on-failure/off/Image:12345678/el2-a57",
    "on-failure/halt/early-exception/el1-a57",
    "broken/uart:silent/el1-a57/in-place",
    "broken/psci:other/el1-a57/in-place",
    "record/Image:12345678/el1-a57",
    "chain/dt",
    "stress/hand-over/6.1/100M/alternate-pinned-60",
    "stress/fresh/6.1/100M/300",
    "stress/migrate/6.1/move-pages/pins-yes",
    "stress/migrate/6.1/move-pages/pins-no",
    "stress/migrate/6.1/soft-offline/pins-no",
    "stress/kill/6.1",
    "stress/interrupt/6.1",
    "stress/killing-spree/6.12/reboot",
    "stress/race/2",
    "stress/numa/6.1",
    "stress/small-pages/6.1",
    "stress/exhaustion/6.1/short",
];

/// Kernels and machines on which the cost of `kexec_load` differs: nothing to copy; one copy; kernels built
/// for 52-bit addresses on CPUs without and with them.
const KEXEC_COSTS: [(&str, Kind, [u32; 2]); 7] = [
    ("5.10", EL2_A57, KEXEC_COST_MB),
    ("6.1", EL2_A57, KEXEC_COST_MB),
    ("6.12", EL2_A57, KEXEC_COST_MB),
    ("7.3", EL2_A57, KEXEC_COST_MB),
    ("7.3", VHE_MAX, KEXEC_COST_MB),
    ("6.12-16k", VHE_N1, KEXEC_COST_16K_MB),
    ("6.12-16k", VHE_MAX, KEXEC_COST_16K_MB),
];
/// Memory of those machines. Larger pages need fewer tables: with less the noise would hide them.
const KEXEC_COST_MB: [u32; 2] = [2048, 8192];
const KEXEC_COST_16K_MB: [u32; 2] = [8192, 16384];

/// The system call of 6.12 with 4K pages would take the first kernel down on this machine.
fn crashes(first: &str, kind: Kind) -> bool {
    first == "6.12" && kind == VHE_MAX
}

/// The row, on a kernel that survives loading.
pub(crate) fn usable(mut row: Row) -> Row {
    if crashes(row.first, row.kind) {
        row.first_words = WITHOUT_LPA2;
    }
    row
}

/// What is broken after the last check, on every kind of machine: a line that says what, then a reset.
fn broken() -> Vec<Row> {
    let (image, initrd, tree) = ("Image:12345678", "initrd:1234567", "device tree:100");
    let digest = [
        "digest mismatch in Image",
        "digest mismatch in initrd",
        "digest mismatch in device tree",
    ];
    let exception = "kleap: hand-over stopped: exception: vector 4";
    let early = "kleap: hand-over stopped: exception before the MMU was on";
    let damaged = [
        "kleap: hand-over stopped: relocator damaged before the MMU was on; resetting",
        "kleap: hand-over stopped: hand-off block damaged before the MMU was on; resetting",
        "kleap: hand-over stopped: translation tables damaged before the MMU was on; resetting",
    ];
    vec![
        Row::broken(EL2_A57, Strategy::InPlace, image, digest[0]),
        Row::broken(EL1_A57, Strategy::Relocate, image, digest[0]),
        Row::broken(VHE_N1, Strategy::Relocate, initrd, digest[1]),
        Row::broken(VHE_MAX, Strategy::InPlace, initrd, digest[1]),
        Row::broken(EL2_A57, Strategy::Relocate, tree, digest[2]),
        // What the MMU would be turned on with, or what runs then. A bit of the program (its last constants).
        Row::broken(EL1_A57, Strategy::InPlace, "stage:24000", damaged[0]),
        Row::broken(
            EL2_A57,
            Strategy::InPlace,
            "portable,stage:24000",
            damaged[0],
        ),
        // Of the hand-off block: TTBR; the highest byte of its size; how PSCI is called (HVC here), so that the
        // other way is tried first.
        Row::broken(VHE_N1, Strategy::InPlace, "stage:131160", damaged[1]),
        Row::broken(EL2_A57, Strategy::InPlace, "stage:131087", damaged[1]),
        Row::broken(EL1_A57, Strategy::InPlace, "stage:131224", damaged[1]),
        // Of the tables: the first descriptor, and one that is not used.
        Row::broken(EL1_A57, Strategy::InPlace, "tables:0", damaged[2]),
        Row::broken(EL2_A57, Strategy::InPlace, "tables:0", damaged[2]),
        Row::broken(VHE_N1, Strategy::Relocate, "tables:4088", damaged[2]),
        Row::broken(EL1_A57, Strategy::InPlace, "portable,tables:0", damaged[2]),
        Row::broken(EL1_A57, Strategy::InPlace, "exception", exception),
        Row::broken(EL2_A57, Strategy::InPlace, "exception", exception),
        Row::broken(VHE_N1, Strategy::InPlace, "exception", exception),
        Row::broken(EL1_A57, Strategy::InPlace, "early-exception", early),
        Row::broken(EL2_A57, Strategy::InPlace, "early-exception", early),
        Row::broken(VHE_N1, Strategy::InPlace, "early-exception", early),
        // Console and reset as ACPI describes them.
        Row::broken(EL2_A57, Strategy::Relocate, image, digest[0]).by_efi(),
        Row::broken(EL1_A57, Strategy::InPlace, "early-exception", early).by_efi(),
    ]
}

/// `--verify`, with the instructions that the CPU has for it and without them: no CPU of QEMU's lacks them.
fn verified() -> Vec<Row> {
    let reset = |line| End::Reset { line };
    let booted = || End::Verdict;
    let portable = Some("portable");
    let row = Row::verified;
    vec![
        row(EL2_A57, Strategy::InPlace, "sha256", None, booted()),
        row(VHE_N1, Strategy::Relocate, "sha256", portable, booted()),
        row(EL1_A57, Strategy::Relocate, "crc32c", portable, booted()),
        row(EL1_A57, Strategy::InPlace, "none", None, booted()),
        row(
            EL2_A57,
            Strategy::Relocate,
            "sha256",
            Some("Image:12345678"),
            reset("digest mismatch in Image at"),
        ),
        row(
            EL1_A57,
            Strategy::InPlace,
            "sha256",
            Some("portable,initrd:1234567"),
            reset("digest mismatch in initrd at"),
        ),
        row(
            EL2_A57,
            Strategy::InPlace,
            "none",
            Some("stage:24000"),
            reset("relocator damaged before the MMU was on"),
        ),
    ]
}

/// What `kleap exec --verbose-handoff` writes.
const VERBOSE_LINES: &[&str] = &[
    "kleap: MMU on at ",
    "kleap: interrupts quiet: ",
    "kleap: moved 0x",
    "kleap: verified 0x",
    "kleap: cleaned 0x",
    "kleap: entering the kernel at 0x",
    "Booting Linux on physical CPU",
];

/// Leaves the last 8 MiB of memory to ramoops: Linux does not use them, and does not lose them in a reset.
const RECORD_WORDS: &str = "mem=2040M";
/// A hand-over that fails, and the same kernel once more, which must find out why.
const RECORD: &str = "insmod /lab/reed_solomon.ko || finish fail 'no reed_solomon'\n\
    insmod /lab/ramoops.ko mem_address=0xbf800000 mem_size=0x100000 record_size=0x20000 || finish fail 'no ramoops'\n\
    mkdir -p /sys/fs/pstore; mount -t pstore pstore /sys/fs/pstore || finish fail 'no pstore'\n\
    if ls /sys/fs/pstore/dmesg-ramoops-* 2>/dev/null; then\n\
    cat /sys/fs/pstore/dmesg-ramoops-*\n\
    kleap report | tee /dev/console | grep -q 'the last hand-over failed because of this: @REASON@' || finish fail 'report does not say why'\n\
    kleap report --json | grep -q '\"class\":\"' || finish fail 'the JSON does not say why'\n\
    finish ok\nfi\n\
    must kleap load /payload/Image --initrd /payload/initrd --command-line '@COMMAND_LINE@'\n\
    say executing\nrun kleap exec --inject-fault '@FAULT@'\n\
    finish fail 'kleap exec came back'\n";

/// Which console is found, and one that the user has named: `status` says it, and the hand-over writes there.
const CONSOLE: &str = "is() { kleap status | tee /dev/console | grep -qx \"console       $1\" || finish fail \"no console $1\"; }\n\
    must kleap load /payload/Image --initrd /payload/initrd --command-line '@COMMAND_LINE@'\n\
    is \"PL011 at 0x9000000: this kernel's console ttyAMA0\"\n\
    kleap load /payload/Image --serial pl011,0x9000002 && finish fail 'an odd address is accepted'\n\
    is \"PL011 at 0x9000000: this kernel's console ttyAMA0\"\n\
    must kleap load /payload/Image --initrd /payload/initrd --command-line '@COMMAND_LINE@' --serial pl011,0x9001000\n\
    is 'PL011 at 0x9001000: --serial'\n\
    say executing\nrun kleap exec --verbose-handoff --serial pl011,mmio32,0x9000000\n\
    finish fail 'kleap exec came back'\n";

/// A line for every phase, and what is done where none can be finished.
fn voice() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = Row::hand_over("6.1", "6.12", EL1_A57, Strategy::Auto);
    row.script = Script::Template(CONSOLE.into());
    row.lines = VERBOSE_LINES;
    row.name = "console/el1-a57".to_owned();
    rows.push(row);
    for (kind, strategy) in [
        (EL1_A57, Strategy::Relocate),
        (EL2_A57, Strategy::InPlace),
        (VHE_N1, Strategy::Relocate),
    ] {
        let mut row = Row::hand_over("6.1", "6.12", kind, strategy);
        row.exec_words = "--verbose-handoff";
        row.lines = VERBOSE_LINES;
        row.name = format!("verbose/{}/{}", kind.name, strategy.word());
        rows.push(row);
    }
    let (off, halt) = ("--on-failure off", "--on-failure halt");
    let image = "Image:12345678";
    let halted = "kleap: halted, as --on-failure asked for";
    for kind in [EL1_A57, EL2_A57, VHE_N1] {
        for (fault, words, end) in [
            (
                image,
                off,
                End::Off {
                    line: "; powering off",
                },
            ),
            (image, halt, End::Halt { line: halted }),
            (
                "early-exception",
                off,
                End::Off {
                    line: "exception before the MMU was on; powering off",
                },
            ),
            ("early-exception", halt, End::Halt { line: halted }),
        ] {
            let mut row = Row::broken(kind, Strategy::InPlace, fault, "");
            row.exec_words = words;
            row.end = end;
            let action = words.trim_start_matches("--on-failure ");
            row.name = format!("on-failure/{action}/{fault}/{}", kind.name);
            rows.push(row);
        }
    }
    for (fault, reason) in [
        ("Image:12345678", "digest mismatch in Image"),
        ("exception", "exception: vector 4 ESR"),
        ("early-exception", "exception before the MMU was on"),
    ] {
        for kind in [EL1_A57, EL2_A57] {
            let mut row = Row::broken(kind, Strategy::InPlace, fault, "");
            row.first_words = RECORD_WORDS;
            row.modules = &["reed_solomon", "ramoops"];
            row.reboots = true;
            row.script =
                Script::Template(RECORD.replace("@FAULT@", fault).replace("@REASON@", reason));
            row.end = End::Verdict;
            row.name = format!("record/{fault}/{}", kind.name);
            rows.push(row);
        }
    }
    let stops = "kleap: no PSCI to reset this machine with: it stops here";
    for (kind, fault, end) in [
        // No byte of the line gets out in time, so there is no line.
        (EL1_A57, "uart:silent", End::SilentReset),
        (EL2_A57, "uart:silent", End::SilentReset),
        (EL1_A57, "uart:unmapped", End::SilentReset),
        (VHE_N1, "uart:unmapped", End::SilentReset),
        // At EL1 without EL3 there is no SMC, and HVC is tried.
        (
            EL1_A57,
            "psci:other",
            End::Reset {
                line: "digest mismatch in Image",
            },
        ),
        (
            EL2_A57,
            "psci:other",
            End::Reset {
                line: "digest mismatch in Image",
            },
        ),
        (EL1_A57, "psci:none", End::Halt { line: stops }),
        (EL2_A57, "psci:none", End::Halt { line: stops }),
    ] {
        let mut row = Row::broken(kind, Strategy::InPlace, fault, "");
        row.end = end;
        rows.push(row);
    }
    rows
}

/// Hand-overs between kernels that were started by UEFI and use ACPI.
fn efi() -> Vec<Row> {
    [
        ("6.1", "6.12", EL2_A57, Strategy::InPlace),
        ("6.12", "7.3", EL1_A57, Strategy::Relocate),
        ("7.3", "5.10", VHE_N1, Strategy::Relocate),
        ("5.10", "6.1", EL2_A57, Strategy::Auto),
    ]
    .map(|(first, second, kind, strategy)| Row::hand_over(first, second, kind, strategy).by_efi())
    .into()
}

/// The kernels of the chains, oldest first.
pub(crate) const CHAIN_KERNELS: &[&str] = &["5.10", "6.1", "6.12", "7.3"];
/// Hand-overs of a chain: every kernel is met twice by way of a hand-over, and two of them three times.
const CHAIN_HOPS: u32 = 10;

/// Ten hand-overs in a row in one machine, by device tree and by EFI, and with LPIs decided the other way.
fn chain() -> Vec<Row> {
    const CPUS: u32 = 2;
    // One table, and one for each CPU.
    const TABLES_KB: u64 = 64 * (1 + CPUS as u64);
    [
        ("chain/dt", Firmware::DeviceTree, None, 0),
        ("chain/efi", Firmware::Efi, None, 0),
        ("chain/dt-lpis-on", Firmware::DeviceTree, Some("lpis:on"), 0),
        (
            "chain/efi-lpis-off",
            Firmware::Efi,
            Some("lpis:off"),
            TABLES_KB,
        ),
    ]
    .map(|(name, firmware, fault, lost_kb_per_hop)| {
        let mut row = Row::hand_over("5.10", "6.1", EL2_A57, Strategy::Auto);
        row.firmware = firmware;
        row.cpus = CPUS;
        row.memory_mb = CHAIN_MEMORY_MB;
        row.fault_injection = fault.is_some();
        row.script = Script::Chain {
            kernels: CHAIN_KERNELS,
            hops: CHAIN_HOPS,
            fault,
            plan: None,
        };
        row.end = End::Chain {
            hops: CHAIN_HOPS,
            lost_kb_per_hop,
        };
        row.name = name.to_owned();
        row
    })
    .into()
}

/// EFI goes on naming the first kernel's initrd: a kernel that is given none must not take it.
const NO_INITRD: &str = "must kleap load /payload/Image \
    --command-line 'console=ttyAMA0 earlycon panic=1 nowatchdog'\n\
    say executing\nrun kleap exec\nfinish fail 'kleap exec came back'\n";

fn no_initrd() -> Vec<Row> {
    [("6.12", "6.12"), ("6.1", "7.3")]
        .map(|(first, second)| {
            let mut row = Row::hand_over(first, second, EL2_A57, Strategy::Auto).by_efi();
            row.script = Script::Text(NO_INITRD);
            row.end = End::NoRoot;
            row.name = format!("no-initrd/{first}-to-{second}/efi");
            row
        })
        .into()
}

/// LPIs decided the other way than the command does: left on without EFI, which is also what happens where
/// they cannot be turned off, and turned off with EFI. Both must be clean. And forgotten: that must not be.
fn lpis() -> Vec<Row> {
    let mut rows = Vec::new();
    for (first, second) in [("5.10", "6.12"), ("7.3", "6.1")] {
        let (strategy, fault) = (Strategy::InPlace, "lpis:forgotten");
        let mut row = Row::hand_over(first, second, EL2_A57, strategy);
        row.fault_injection = true;
        row.script = Script::Break { strategy, fault };
        row.end = End::Complaint {
            text: "memory probably corrupted",
        };
        row.name = format!("{fault}/{first}-to-{second}");
        rows.push(row);
    }
    for (first, second) in [("5.10", "6.1"), ("6.12", "7.3"), ("7.3", "5.10")] {
        let strategy = Strategy::Relocate;
        let row = Row::hand_over(first, second, EL2_A57, strategy);
        for (firmware, fault) in [
            (Firmware::DeviceTree, "lpis:on"),
            (Firmware::Efi, "lpis:off"),
        ] {
            let mut row = row.clone();
            row.firmware = firmware;
            row.fault_injection = true;
            row.script = Script::Break { strategy, fault };
            row.name = format!("{fault}/{first}-to-{second}");
            rows.push(row);
        }
    }
    rows
}

/// A hand-over to a kernel in this format.
pub(crate) fn format_row(format: Format) -> Row {
    let mut row = Row::hand_over("6.12", "6.1", EL2_A57, Strategy::Auto);
    row.cpus = 2;
    row.script = Script::Format(format);
    row.name = format!("formats/{}", format.name);
    row
}

/// Every format, and initrds that are put together.
fn formats() -> Vec<Row> {
    let mut rows: Vec<Row> = FORMATS.iter().map(|format| format_row(*format)).collect();
    let mut row = Row::hand_over("6.12", "6.1", EL2_A57, Strategy::Auto);
    row.cpus = 2;
    row.script = Script::Initrds;
    row.name = "formats/initrds".to_owned();
    rows.push(row);
    rows
}

/// All rows.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let combinations: Vec<(&'static str, &'static str, &'static [Kind])> = PAIRS_4K
        .iter()
        .map(|&(first, second)| (first, second, KINDS_4K))
        .chain(
            PAIRS_16K
                .iter()
                .map(|&(first, second)| (first, second, KINDS_16K)),
        )
        .collect();
    for &(first, second, kinds) in &combinations {
        for &kind in kinds {
            for &strategy in STRATEGIES {
                rows.push(usable(Row::hand_over(first, second, kind, strategy)));
            }
        }
    }
    // In turn: every pair with every strategy, and every machine several times.
    for (turn, &(first, second, kinds)) in combinations.iter().enumerate() {
        for (offset, &strategy) in STRATEGIES.iter().enumerate() {
            if let Some(&kind) = kinds.get((turn + offset) % kinds.len()) {
                rows.push(usable(Row::hand_over(first, second, kind, strategy)).large());
            }
        }
        let strategy = STRATEGIES.get(turn % STRATEGIES.len()).copied();
        if let (Some(strategy), Some(&kind)) = (strategy, kinds.get((turn + 2) % kinds.len())) {
            rows.push(usable(Row::hand_over(first, second, kind, strategy)).with_cpus(1));
        }
    }
    for kind in [EL1_A57, EL2_A57, VHE_N1, VHE_MAX] {
        rows.push(Row::hand_over("6.1", "6.12", kind, Strategy::Relocate).witnessed());
    }
    rows.push(Row::refusal(
        "6.12",
        "6.12",
        VHE_MAX,
        "lpa2",
        &["LPA2", "arm64\\.nolva"],
    ));
    rows.push(Row::refusal(
        "6.1",
        "6.12-16k",
        EL2_A57,
        "16k-pages",
        &["16 ?K"],
    ));
    // The first kernel does what the relocator usually does; on each machine, from old to new.
    for (first, second, kind) in [
        ("5.10", "7.3", EL2_A57),
        ("6.1", "5.10", EL1_A57),
        ("6.12", "6.1", VHE_N1),
        ("7.3", "6.12", VHE_MAX),
        ("6.12-16k", "6.12-16k", VHE_N1),
    ] {
        rows.push(Row::hand_over(first, second, kind, Strategy::Kernel));
    }
    rows.push(Row::hand_over("6.1", "6.12", EL2_A57, Strategy::Kernel).large());
    for (first, second, kind) in [
        ("5.10", "6.12", EL2_A57),
        ("6.1", "7.3", EL1_A57),
        ("7.3", "6.1", VHE_MAX),
    ] {
        rows.push(Row::early(first, second, kind));
    }
    rows.extend(["5.10", "6.1", "7.3"].map(Row::bad_input));
    for (first, kind, memories_mb) in KEXEC_COSTS {
        rows.extend(memories_mb.map(|memory_mb| Row::kexec_cost(first, kind, memory_mb)));
    }
    rows.extend(broken());
    rows.extend(verified());
    rows.extend(voice());
    rows.extend(efi());
    rows.extend(no_initrd());
    rows.extend(lpis());
    rows.extend(chain());
    rows.extend(formats());
    rows.extend(crate::built::rows());
    rows.extend(crate::check::rows());
    rows.extend(crate::kexec_diff::rows());
    rows.extend(crate::dropin::rows());
    rows.extend(crate::crash::rows());
    rows.extend(crate::stress::rows());
    rows.extend(crate::watchdog::rows());
    for row in &mut rows {
        row.fast = FAST.contains(&row.name.as_str());
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_select_one_row_each() {
        let rows = all();
        let names: BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), rows.len());
        assert!(rows.len() >= 100, "{} rows", rows.len());
    }

    #[test]
    fn the_fast_rows_exist() {
        assert_eq!(all().iter().filter(|row| row.fast).count(), FAST.len());
    }

    #[test]
    fn command_lines_fit_the_kernel() {
        // COMMAND_LINE_SIZE of arm64.
        let initrd = SecondInitrd {
            sha256: "0".repeat(64),
            size_bytes: 0,
        };
        for row in all() {
            assert!(row.second_command_line("0123456789abcdef", &initrd).len() < 2048);
            assert!(row.chain_command_line("0123456789abcdef", &initrd).len() < 2048);
        }
    }

    #[test]
    fn a57_runs_no_kernel_with_16k_pages() {
        for row in all() {
            let is_16k = row.first.ends_with("16k") || row.second.ends_with("16k");
            if is_16k && row.kind.cpu == "cortex-a57" {
                assert!(matches!(row.script, Script::Refuse(_)), "{}", row.name);
            }
        }
    }
}
