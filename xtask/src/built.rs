//! Rows with kernels that are built here (`kernels`): pages of 64 KiB, no huge pages, `kexec_file_load(2)`,
//! and files that only a kernel's own build makes.

use crate::check;
use crate::formats::{BUILT_FORMATS, Format};
use crate::kernels::ZBOOT_KERNEL;
use crate::rows::{
    CHAIN_MEMORY_MB, EL1_A57, EL2_A57, End, Row, Script, Strategy, VHE_MAX, VHE_N1, usable,
};

const PAGES_64K: &str = "7.3-64k";
const FILE: &str = "7.3-file";
const NO_HUGE_PAGES: &str = "7.3-nohuge";
/// Room for Image, initrd and device tree of a row, in the CMA.
const CMA: &str = "cma=256M";
/// Kernels with pages of each size in turn, beginning and ending with 4 KiB.
const PAGE_SIZES: &[&str] = &["6.12", PAGES_64K, "6.12-16k"];
/// Each of them is met twice by way of a hand-over, and one three times.
const PAGE_SIZES_HOPS: u32 = 7;

const FILE_LOAD: &str = include_str!("../guest-scripts/file-load.sh");
const NO_HUGE_PAGES_SCRIPT: &str = include_str!("../guest-scripts/no-huge-pages.sh");

/// Why `kexec_load(2)` cannot be called.
struct Forbidden {
    name: &'static str,
    /// What does it.
    command: &'static str,
    /// What runs the command.
    prefix: &'static str,
    /// What the refusal says.
    reason: &'static str,
}

/// By the kernel's own policy, as with UEFI Secure Boot; this kernel checks no signatures of files.
const LOCKDOWN: Forbidden = Forbidden {
    name: "lockdown",
    command: "echo integrity >/sys/kernel/security/lockdown",
    prefix: "",
    reason: "lockdown is in integrity mode",
};
/// As a kernel without `CONFIG_KEXEC`.
const MISSING: Forbidden = Forbidden {
    name: "missing",
    command: "",
    prefix: "kleap-guest without-syscall kexec_load ENOSYS",
    reason: "CONFIG_KEXEC",
};

fn file_script(forbidden: &Forbidden, packed: bool) -> String {
    FILE_LOAD
        .replace("@FORBID@", forbidden.command)
        .replace("@PREFIX@", forbidden.prefix)
        .replace("@REASON@", forbidden.reason)
        .replace("@PACKED@", if packed { "yes" } else { "no" })
}

/// `kexec_file_load(2)` takes the kernel, with a CMA or without one.
fn file() -> Vec<Row> {
    let mut rows = Vec::new();
    for (forbidden, cma, second, kind) in [
        (&LOCKDOWN, true, "6.12", EL2_A57),
        (&LOCKDOWN, false, "6.12", VHE_N1),
        (&MISSING, true, FILE, EL1_A57),
        (&MISSING, false, "7.3", VHE_MAX),
    ] {
        let mut row = Row::hand_over(FILE, second, kind, Strategy::Kernel);
        row.first_words = if cma { CMA } else { "cma=0" };
        // It turns no LPIs off.
        row.its = false;
        row.report = false;
        row.script = Script::Template(file_script(forbidden, false));
        let with = if cma { "cma" } else { "no-cma" };
        row.name = format!("file/{}/{with}/{}", forbidden.name, kind.name);
        rows.push(row);
    }
    // A file of a format that the kernel does not know: it gets what is inside.
    for format in BUILT_FORMATS.iter().filter(|format| !format.has_initrd) {
        let mut row = Row::hand_over(FILE, ZBOOT_KERNEL, EL2_A57, Strategy::Kernel);
        row.first_words = CMA;
        row.its = false;
        row.report = false;
        row.cpus = 2;
        row.script = Script::FormatTemplate(*format, file_script(&LOCKDOWN, true));
        row.name = format!("file/lockdown/{}", format.name);
        rows.push(row);
    }
    // Beside it, on the same kernel, what is usual.
    for (strategy, kind) in [
        (Strategy::InPlace, EL2_A57),
        (Strategy::Relocate, EL1_A57),
        (Strategy::Kernel, VHE_MAX),
    ] {
        let mut row = Row::hand_over(FILE, "6.12", kind, strategy);
        row.first_words = CMA;
        rows.push(row);
    }
    rows
}

/// A hand-over from 6.12 to a kernel in a format that its own build made, or with `--strategy kernel`.
fn formats() -> Vec<Row> {
    let by_kernel = |format: Format, second: &'static str| {
        let mut row = Row::hand_over("6.12", second, EL2_A57, Strategy::Kernel);
        row.cpus = 2;
        let mut script = "must kleap load /payload/Image --strategy kernel".to_owned();
        if !format.has_initrd {
            script.push_str(" --initrd /payload/initrd");
        }
        if !format.has_command_line {
            script.push_str(" --command-line '@COMMAND_LINE@'");
        }
        script.push_str(
            "\nrun kleap status\nsay executing\nrun kleap exec\nfinish fail 'kleap exec came back'\n",
        );
        row.script = Script::FormatTemplate(format, script);
        row.name = format!("formats/{}/kernel", format.name);
        row
    };
    let mut rows = Vec::new();
    for format in BUILT_FORMATS {
        let mut row = Row::hand_over("6.12", ZBOOT_KERNEL, EL2_A57, Strategy::Auto);
        row.cpus = 2;
        row.script = Script::Format(*format);
        row.name = format!("formats/{}", format.name);
        rows.push(row);
        rows.push(by_kernel(*format, ZBOOT_KERNEL));
    }
    for format in crate::formats::FORMATS {
        if ["fit", "ukify", "uimage-multi"].contains(&format.name) {
            rows.push(by_kernel(*format, "6.1"));
        }
    }
    rows
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (first, second) in [
        (PAGES_64K, "6.12"),
        ("6.12", PAGES_64K),
        (PAGES_64K, PAGES_64K),
    ] {
        for kind in [EL2_A57, EL1_A57, VHE_N1, VHE_MAX] {
            for strategy in [Strategy::InPlace, Strategy::Relocate, Strategy::Kernel] {
                rows.push(usable(Row::hand_over(first, second, kind, strategy)));
            }
        }
    }
    for (kind, strategy) in [
        (EL2_A57, Strategy::Relocate),
        (VHE_N1, Strategy::InPlace),
        (EL1_A57, Strategy::Auto),
    ] {
        rows.push(Row::hand_over(PAGES_64K, "6.12", kind, strategy).large());
    }
    let mut row = Row::hand_over("6.12", PAGES_64K, VHE_N1, Strategy::Auto);
    row.cpus = 2;
    row.memory_mb = CHAIN_MEMORY_MB;
    row.script = Script::Chain {
        kernels: PAGE_SIZES,
        hops: PAGE_SIZES_HOPS,
        fault: None,
        plan: None,
    };
    row.end = End::Chain {
        hops: PAGE_SIZES_HOPS,
        lost_kb_per_hop: 0,
    };
    row.name = "chain/page-sizes".to_owned();
    rows.push(row);
    for (kind, second) in [(EL2_A57, "6.12"), (EL1_A57, NO_HUGE_PAGES)] {
        let mut row = Row::hand_over(NO_HUGE_PAGES, second, kind, Strategy::Kernel);
        row.script = Script::Template(NO_HUGE_PAGES_SCRIPT.to_owned());
        row.name = format!("no-huge-pages/{}", kind.name);
        rows.push(row);
    }
    rows.extend(file());
    rows.extend(formats());
    rows.extend(check::built_rows(PAGES_64K, FILE, NO_HUGE_PAGES));
    rows
}
