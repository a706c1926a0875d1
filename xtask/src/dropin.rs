//! kleap under the name `kexec`, in machines that hand over: the rows beside the comparison ([`crate::kexec_diff`]).

use crate::rows::{COMMAND_LINE, EL1_A57, EL2_A57, Row, Script, Strategy, VHE_N1};

/// The name, and what the rows share.
const PREAMBLE: &str = include_str!("../guest-scripts/kexec.sh");
/// What other programs say to it.
const CALLERS: &str = include_str!("../guest-scripts/kexec-callers.sh");

/// What scripts for crash kernels say, and a panic.
const CRASH: &str = include_str!("../guest-scripts/kexec-crash.sh");

/// The load that most rows begin with.
fn load() -> String {
    format!(
        "quietly kexec -l /payload/Image --initrd=/payload/initrd --append='{COMMAND_LINE}'\nloaded 1 'kexec -l'\n\
         run kleap status\nsay executing\n"
    )
}

/// How each row goes: name, what it does after the preamble.
fn ways() -> Vec<(&'static str, String)> {
    let came_back = "finish fail 'it came back'\n";
    let line = COMMAND_LINE;
    vec![
        ("exec", format!("{}run kexec -e\n{came_back}", load())),
        // systemd-shutdown where there is no /sbin/kexec, and from version 261 on.
        (
            "reboot",
            format!("{}run kleap-guest reboot-kexec\n{came_back}", load()),
        ),
        (
            "force",
            format!(
                "say executing\nrun kexec -f --ramdisk /payload/initrd --command-line '{line}' /payload/Image\n{came_back}"
            ),
        ),
        (
            "plain",
            format!(
                "cat >/sbin/shutdown <<'END'\n#!/bin/sh\n[ \"$*\" = '-r now' ] && exec /sbin/kexec -e\nEND\n\
                 chmod 755 /sbin/shutdown\nsay executing\n\
                 run kexec --initrd /payload/initrd --append '{line}' -- /payload/Image\n{came_back}"
            ),
        ),
        // The note is damaged, so nothing can be looked at once more; the kernel has what it was given.
        (
            "damaged-note",
            format!(
                "{}echo 7 >/dev/kleap/state.json\nrun kexec -e -y\n{came_back}",
                load()
            ),
        ),
        // No huge pages, so the first kernel copies.
        (
            "kernel-strategy",
            format!(
                "mkdir /tmp/none\nmount --bind /tmp/none /sys/kernel/mm/hugepages\n\
                 kexec -l /payload/Image --initrd=/payload/initrd --append='{line}' || finish fail 'not loaded'\n\
                 loaded 1 'kexec -l'\nsay executing\nrun kexec -e\n{came_back}"
            ),
        ),
    ]
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let kinds = [EL2_A57, VHE_N1, EL1_A57, EL2_A57, VHE_N1, EL1_A57];
    for ((name, script), kind) in ways().into_iter().zip(kinds) {
        let mut row = Row::hand_over("6.1", "6.12", kind, Strategy::Auto);
        row.script = Script::Template(format!("{PREAMBLE}{script}"));
        if name == "damaged-note" {
            row.lines = &["entering what the kernel was given when it was loaded"];
        }
        row.name = format!("kexec/{name}/{}", kind.name);
        rows.push(row);
    }
    let mut row = Row::hand_over("6.1", "6.1", EL1_A57, Strategy::Auto);
    row.script = Script::Template(format!("{PREAMBLE}{CALLERS}"));
    row.kexec_tools = true;
    row.name = "kexec/callers".to_owned();
    rows.push(row);
    let mut row = Row::hand_over("6.1", "6.1", EL2_A57, Strategy::Auto);
    row.script = Script::Template(format!("{PREAMBLE}{CRASH}"));
    row.first_words = "crashkernel=256M";
    row.captures = true;
    row.name = "kexec/crash".to_owned();
    rows.push(row);
    // What kexec-tools has loaded is entered as well. Without an ITS: what it leaves of LPIs is another matter.
    let mut row = Row::hand_over("6.1", "6.12", EL1_A57, Strategy::Auto);
    row.script = Script::Template(format!(
        "{PREAMBLE}must /bin/kexec -l /payload/Image --initrd=/payload/initrd --append='{COMMAND_LINE}' --no-checks\n\
         loaded 1 kexec-tools\nsay executing\nrun kexec -e\nfinish fail 'it came back'\n"
    ));
    row.kexec_tools = true;
    row.its = false;
    row.report = false;
    row.name = "kexec/exec-of-kexec-tools".to_owned();
    rows.push(row);
    // The first kernel's own initrd, once more: only it is what is checked.
    let mut row = Row::hand_over("7.3", "7.3", EL2_A57, Strategy::Auto);
    row.first_words = "retain_initrd";
    row.script = Script::Template(format!(
        "{PREAMBLE}sum=$(sha256sum /sys/firmware/initrd)\n\
         line=$(echo '{COMMAND_LINE}' | sed \"s/initrd_sha256=[0-9a-f]*/initrd_sha256=${{sum%% *}}/\")\n\
         quietly kexec -l --reuseinitrd --append=\"$line\" /payload/Image\nloaded 1 'kexec -l'\n\
         say executing\nrun kexec -e\nfinish fail 'it came back'\n"
    ));
    row.name = "kexec/reuse-initrd".to_owned();
    rows.push(row);
    rows
}
