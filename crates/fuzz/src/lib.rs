//! What reads bytes from outside, under attack.
//!
//! Every parser of kleap has a *target* here: a plain function of bytes that panics where something that must
//! hold does not. "No panic" is the least of it: what was read is written and read again, compared with an
//! oracle that shares no code, or checked against the bounds that the rest of kleap relies on. Where a digest,
//! a checksum or a length would keep nearly every input out, the target sets it right first ([`targets`]).
//!
//! The same functions serve twice:
//!
//! * [`replay`] runs the corpus in `fuzz/corpus` and a number of seeded mutations of it, on any compiler, in
//!   seconds, as part of `cargo xtask test`;
//! * the programs in `fuzz/` give them to libFuzzer, for hours.
//!
//! Rejected: targets inside of `fuzz/fuzz_targets`, as `cargo fuzz init` makes them. They are compiled with
//! libFuzzer only, so that a change breaks them unseen, and nothing else can replay a finding.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a finding is a panic: that is what both runners look for"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers out of random bytes: any will do"
)]

pub mod mutate;
pub mod replay;
pub mod seeds;
pub mod targets;

/// A function of bytes that must return, whatever they are.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the program in `fuzz/`, of the corpus' directory.
    pub name: &'static str,
    /// What it attacks, for people.
    pub covers: &'static str,
    /// Longest input that is tried, bytes.
    pub max_len_bytes: usize,
    /// Whether the bytes are numbers that something is built of. libFuzzer then learns nothing from what values
    /// are compared with, and is twice as fast without it.
    pub is_drawn: bool,
    /// Whether a run takes milliseconds and not microseconds: the short form gives it a tenth of the mutations.
    pub is_slow: bool,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "device_tree_prepare",
        covers: "the next kernel's tree: `prepare`, `carry_efi`, written and read again",
        max_len_bytes: 256,
        is_drawn: true,
        is_slow: false,
        run: targets::device_tree::prepare,
    },
    Target {
        name: "device_tree_built",
        covers: "well-formed trees of the words that kleap looks for: console, PSCI, GIC, memory, ranges",
        max_len_bytes: 256,
        is_drawn: true,
        is_slow: false,
        run: targets::device_tree::built,
    },
    Target {
        name: "device_tree",
        covers: "flattened device trees as bytes: read, every look-up, written, read again",
        max_len_bytes: 4096,
        is_drawn: false,
        is_slow: false,
        run: targets::device_tree::bytes,
    },
    Target {
        name: "relocate",
        covers: "the relocator's whole work, on a simulated machine, with a right digest",
        max_len_bytes: 1024,
        is_drawn: true,
        is_slow: false,
        run: targets::relocate::run,
    },
    Target {
        name: "hand_off",
        covers: "the hand-off block as the relocator reads it, with the digest as it is and set right",
        max_len_bytes: 1280,
        is_drawn: false,
        is_slow: false,
        run: targets::hand_off::run,
    },
    Target {
        name: "gzip",
        covers: "gzip streams: framing, length, CRC, bounded output",
        max_len_bytes: 1400,
        is_drawn: false,
        is_slow: false,
        run: targets::image::gzip,
    },
    Target {
        name: "image",
        covers: "kernel files: the Image header, PE header, banner, and the names of all other kinds",
        max_len_bytes: 2048,
        is_drawn: false,
        is_slow: false,
        run: targets::image::image,
    },
    Target {
        name: "state",
        covers: "the note of what is loaded, `state.json`, and what commands compute from it alone",
        max_len_bytes: 1536,
        is_drawn: false,
        is_slow: false,
        run: targets::notes::state,
    },
    Target {
        name: "pool",
        covers: "the note of what was added to the pools, `pool.json`",
        max_len_bytes: 512,
        is_drawn: false,
        is_slow: false,
        run: targets::notes::pool,
    },
    Target {
        name: "iomem",
        covers: "`/proc/iomem`, and which memory is free by it",
        max_len_bytes: 2048,
        is_drawn: false,
        is_slow: false,
        run: targets::iomem::run,
    },
    Target {
        name: "acpi",
        covers: "the ACPI tables SPCR, FADT and MADT, with length and checksum as they are and set right",
        max_len_bytes: 1024,
        is_drawn: false,
        is_slow: false,
        run: targets::acpi::run,
    },
    Target {
        name: "kexec_cost",
        covers: "kernel release and command line, as far as the cost of kexec_load is predicted from them",
        max_len_bytes: 512,
        is_drawn: true,
        is_slow: false,
        run: targets::texts::kexec_cost,
    },
    Target {
        name: "vmcoreinfo",
        covers: "the note in `/proc/kcore`: ELF header, program headers, notes",
        max_len_bytes: 1024,
        is_drawn: false,
        is_slow: false,
        run: targets::texts::vmcoreinfo,
    },
    Target {
        name: "crash",
        covers: "what a load for a panic reads: places of notes in sysfs, the ranges of memory in `/proc/kcore`",
        max_len_bytes: 1024,
        is_drawn: false,
        is_slow: false,
        run: targets::texts::crash,
    },
    Target {
        name: "kexec_words",
        covers: "the words of a call under the name kexec: options, prefixes, order",
        max_len_bytes: 512,
        is_drawn: false,
        is_slow: false,
        run: targets::notes::kexec_words,
    },
    Target {
        name: "timeline",
        covers: "the record of a hand-over, and the report that is made of it",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::words::timeline,
    },
    Target {
        name: "pagemap",
        covers: "words of `/proc/self/pagemap` and `/proc/kpageflags`",
        max_len_bytes: 256,
        is_drawn: true,
        is_slow: false,
        run: targets::words::pagemap,
    },
    Target {
        name: "kernel_log",
        covers: "records of `/dev/kmsg`",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::texts::kernel_log,
    },
    Target {
        name: "sysfs",
        covers: "texts of `/proc/meminfo`, lockdown, MIDR, blocks of memory, huge pages, counts",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::texts::sysfs,
    },
    Target {
        name: "locks",
        covers: "`/proc/locks`: who has the lock, among lines of all kinds",
        max_len_bytes: 1024,
        is_drawn: true,
        is_slow: false,
        run: targets::machine::locks,
    },
    Target {
        name: "huge_pages",
        covers: "words of `/proc/kpageflags`: where the huge pages begin",
        max_len_bytes: 512,
        is_drawn: true,
        is_slow: false,
        run: targets::machine::huge_pages,
    },
    Target {
        name: "cpu_list",
        covers: "lists of CPUs, as in `/sys/devices/system/cpu/online`",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::machine::cpu_list,
    },
    Target {
        name: "proc",
        covers: "`/proc/PID/stat`, `interrupts`, `status` and `uid_map`, `demote_size`, names of nodes, releases",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::machine::proc,
    },
    Target {
        name: "command_line",
        covers: "`/proc/cmdline`, used again for the next kernel; what is shown on a terminal",
        max_len_bytes: 512,
        is_drawn: false,
        is_slow: false,
        run: targets::machine::command_line,
    },
    Target {
        name: "holder_answer",
        covers: "what the process that holds the payload answers `load`",
        max_len_bytes: 512,
        is_drawn: false,
        is_slow: false,
        run: targets::machine::holder_answer,
    },
    Target {
        name: "record",
        covers: "the record of a failure in ramoops, written by the relocator and read by the next boot",
        max_len_bytes: 768,
        is_drawn: true,
        is_slow: false,
        run: targets::last_words::record,
    },
    Target {
        name: "ramoops",
        covers: "the numbers of ramoops: where its last zone for dumps is",
        max_len_bytes: 64,
        is_drawn: true,
        is_slow: false,
        run: targets::last_words::ramoops,
    },
    Target {
        name: "console",
        covers: "the relocator's console, with a UART that answers as it likes",
        max_len_bytes: 512,
        is_drawn: true,
        is_slow: false,
        run: targets::last_words::console,
    },
    Target {
        name: "consoles",
        covers: "`/proc/consoles`, and what sysfs says of a console",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::last_words::consoles,
    },
    Target {
        name: "serial",
        covers: "`--serial`, and the UARTs in a command line",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::last_words::serial,
    },
    Target {
        name: "hold_argument",
        covers: "the argument of the process that holds the payload",
        max_len_bytes: 256,
        is_drawn: false,
        is_slow: false,
        run: targets::notes::hold_argument,
    },
    Target {
        name: "formats",
        covers: "kernel files in their containers: zboot, ELF, uImage, FIT, UKI",
        max_len_bytes: 10240,
        is_drawn: false,
        is_slow: true,
        run: targets::image::formats,
    },
    Target {
        name: "streams",
        covers: "streams of every compression, and initramfs archives",
        max_len_bytes: 6144,
        is_drawn: false,
        is_slow: true,
        run: targets::image::streams,
    },
    Target {
        name: "signature",
        covers: "the table of signatures of an EFI program",
        max_len_bytes: 4096,
        is_drawn: false,
        is_slow: false,
        run: targets::image::signature,
    },
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
