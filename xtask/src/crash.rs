//! Kernels that panic, and a crash kernel that saves their memory: what it finds is read by Debian's vmcore-dmesg, which
//! needs every virtual address in the headers, and makedumpfile, which finds its own way.
//!
//! makedumpfile 1.7.8 knows no kernel that is built for 4 KiB pages and 52-bit virtual addresses, as Debian's are from
//! 6.9 on: there it must say so, and the whole of `/proc/vmcore` is read instead.

use crate::rows::{EL1_A57, EL2_A57, End, Firmware, Row, Script, Strategy, VHE_MAX, VHE_N1};

const SCRIPT: &str = include_str!("../guest-scripts/crash.sh");
/// What most machines are told to set aside.
const RESERVED: &str = "crashkernel=256M";

fn row(first: &'static str, second: &'static str, kind: crate::rows::Kind) -> Row {
    let mut row = Row::hand_over(first, second, kind, Strategy::Auto);
    row.name = format!("crash/{first}-to-{second}/{}", kind.name);
    row.first_words = RESERVED;
    row.captures = true;
    row.script = Script::Template(SCRIPT.replace("@OPTIONS@", ""));
    row
}

/// A machine whose crash kernel is damaged between load and panic: it must not be entered.
fn broken(what: &str, fault: &str, line: &'static str) -> Row {
    let mut row = row("6.12", "6.12", EL2_A57);
    row.name = format!("crash/broken/{what}");
    row.fault_injection = true;
    let options = format!("--inject-fault {fault}");
    row.script = Script::Template(SCRIPT.replace("@OPTIONS@", &options));
    row.end = End::Reset { line };
    row
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("5.10", "5.10", EL1_A57),
        row("6.1", "6.1", VHE_N1),
        row("6.12", "6.12", EL2_A57),
        row("7.3", "7.3", VHE_MAX),
        // Nobody demands that it is the same kernel.
        row("6.1", "7.3", EL2_A57),
    ];
    let mut efi = row("6.12", "6.12", EL1_A57);
    efi.name += "/efi";
    efi.firmware = Firmware::Efi;
    rows.push(efi);
    // One range above 4 GiB for the kernel, and one below for devices.
    let mut high = row("6.12", "6.12", EL2_A57);
    high.name += "/high";
    high.memory_mb = 6144;
    high.first_words = "crashkernel=256M,high crashkernel=64M,low";
    rows.push(high);
    let mut sha256 = row("6.12", "6.12", EL2_A57);
    sha256.name += "/sha256";
    sha256.verify = Some("sha256");
    sha256.script =
        Script::Template(SCRIPT.replace("@OPTIONS@", "--verify sha256 --verbose-handoff"));
    sha256.lines = &[
        "kleap: MMU on at ",
        "kleap: verified 0x",
        "Booting Linux on physical CPU",
    ];
    rows.push(sha256);
    rows.extend([
        broken("Image", "Image:8388608", "digest mismatch in Image"),
        broken("initrd", "initrd:4096", "digest mismatch in initrd"),
        broken(
            "core-header",
            "core-header:64",
            "digest mismatch in ELF core header",
        ),
    ]);
    let mut none = row("6.12", "6.12", EL2_A57);
    none.name = "crash/refused/nothing-reserved".into();
    none.first_words = "";
    none.script = Script::Template(
        "refuse 'no memory is set aside' 'crashkernel=256M' -- kleap load --panic /payload/Image\n\
         must kleap unload --panic\n\
         kleap status | grep -i 'crash kernel' && finish fail 'status speaks of a crash kernel'\n\
         finish ok\n"
            .into(),
    );
    rows.push(none);
    let mut small = row("6.12", "6.12", EL2_A57);
    small.name = "crash/refused/too-little-reserved".into();
    small.first_words = "crashkernel=32M";
    small.script = Script::Template(
        "refuse 'are needed for a crash kernel' 'larger crashkernel=' -- \
         kleap load --panic /payload/Image --initrd /payload/initrd\n\
         [ \"$(cat /sys/kernel/kexec_crash_loaded)\" = 0 ] || finish fail 'a crash kernel is loaded'\n\
         kleap load --panic --early /payload/Image && finish fail '--panic and --early go together'\n\
         kleap load --panic --strategy relocate /payload/Image && finish fail '--panic and --strategy go together'\n\
         finish ok\n"
            .into(),
    );
    rows.push(small);
    rows
}
