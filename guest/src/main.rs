//! What the init script of a test machine cannot do with busybox: look at physical memory, and spoil it.
//!
//! Problem: "the second kernel booted" proves only that its Image survived the hand-over. The proof
//! wanted is that *every byte* of the initrd is what was loaded, as the kernel was given it, not as
//! it unpacked it. Choice: with `retain_initrd` the kernel keeps those pages; their place is in the
//! device tree and `/proc/kcore` shows them to root, so a program without a line of unsafe code can
//! hash them. Rejected: `/dev/mem`, which Debian's kernels close for RAM (`STRICT_DEVMEM`), and
//! hashing unpacked files, which misses padding and depends on what unpacked them.
//!
//! The second half is attackers: what makes memory scarce and fragmented (`fragment`), kills loads and
//! lets them race (`trials`), moves pages behind the command's back (`migrate`). They judge each trial
//! where it happens; how many there were, and what came of them, is judged from outside.
//!
//! And one that takes things away: system calls, capabilities, resource limits (`without-syscall`,
//! `without-capability`, `limited`).
#![forbid(unsafe_code)]

mod command;
mod fragment;
mod hugepages;
mod initrd;
mod kcore;
mod kexec_cost;
mod limited;
mod migrate;
mod seeded;
mod snapshot;
mod time;
mod traces;
mod trials;
mod without_syscall;

use std::env;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kleap-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A number of bytes, if the argument is there.
fn bytes_argument(index: usize) -> Result<Option<u64>> {
    env::args()
        .nth(index)
        .map(|text| {
            text.parse()
                .with_context(|| format!("'{text}' is no number of bytes"))
        })
        .transpose()
}

fn run() -> Result<()> {
    match env::args().nth(1).as_deref() {
        Some("initrd-digest") => initrd::print_digest(bytes_argument(2)?),
        Some("initrd-copy") => {
            let path = env::args().nth(2).context("no file to write to")?;
            initrd::copy_to(path.as_ref(), bytes_argument(3)?)
        }
        Some("lock") => hold_lock(),
        Some("snapshot") => snapshot::print(),
        Some("hugepages") => hugepages::print(),
        // What systemd-shutdown does, and `kexec -e`: nobody asks kleap.
        Some("reboot-kexec") => {
            rustix::system::reboot(rustix::system::RebootCommand::Kexec)?;
            bail!("reboot(LINUX_REBOOT_CMD_KEXEC) came back")
        }
        Some("kexec-cost") => kexec_cost::print_prediction(),
        Some("measure-kexec-cost") => kexec_cost::measure(),
        Some("time") => time::run(env::args().skip(2)),
        Some("limited") => limited::run(env::args().skip(2)),
        Some("without-capability") => limited::without_capability(env::args().skip(2)),
        Some("without-syscall") => without_syscall::run(env::args().skip(2)),
        Some("fragment") => fragment::run(env::args().skip(2)),
        Some("fragment-trials") => trials::fragmentation(env::args().skip(2)),
        Some("kill-trials") => trials::kills(env::args().skip(2)),
        Some("interrupt-trials") => trials::interrupts(env::args().skip(2)),
        Some("race-trials") => trials::races(env::args().skip(2)),
        Some("migrate") => migrate::run(env::args().skip(2)),
        _ => bail!(
            "usage: kleap-guest initrd-digest [BYTES]|initrd-copy FILE [BYTES]|hugepages|lock|snapshot|\
             reboot-kexec|kexec-cost|\
             measure-kexec-cost|time NAME COMMAND...|\
             without-syscall NAME ERROR COMMAND...|limited NAME VALUE COMMAND...|\
             without-capability NUMBER COMMAND...|\
             fragment KIND FILL_PERCENT SEED COMMAND...|\
             fragment-trials SEED COUNT FIRST LOAD_ARGUMENTS...|\
             kill-trials SEED COUNT LOAD_ARGUMENTS...|\
             interrupt-trials SEED COUNT LOAD_ARGUMENTS...|\
             race-trials SEED COUNT RIVALS IMAGE INITRD COMMAND_LINE|\
             migrate move-pages|soft-offline COUNT|addresses"
        ),
    }
}

/// `lock`: takes the lock that every kleap takes, and keeps it until it is killed.
fn hold_lock() -> Result<()> {
    let _lock = kleap_linux::facts::lock(|_| {})?;
    loop {
        std::thread::park();
    }
}
