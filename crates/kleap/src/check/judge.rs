//! What follows from the facts: pure, so that every machine can be judged in a test.

use super::facts::{Answer, Facts, KexecLoad, LastHandOver};
use crate::units;
use kleap_linux::facts::InterruptController;
use kleap_linux::kexec::Preparation;
use kleap_plan::kexec_cost::Hazard;
use kleap_relocator::abi::{Lpis, Uart};
use serde::Serialize;

/// Less room than this is said to be little: a Debian kernel alone has 27 to 52 MB.
const LITTLE_ROOM_BYTES: u64 = 64 << 20;

/// What one thing means for a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// A hand-over is possible, with a limit or a risk.
    Warning,
    /// Not to be known, or not to this process. Counts as a limit.
    Unknown,
    /// No hand-over is possible.
    No,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::No => "no",
        }
    }
}

/// What came of one thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// A name that stays.
    pub(super) id: &'static str,
    pub(super) verdict: Verdict,
    /// What was found, and what it means.
    pub(super) reason: String,
    /// What can be done about it, where there is something.
    pub(super) remedy: Option<String>,
}

/// Everything together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Overall {
    /// Every finding is `ok`.
    Ready,
    /// None is `no`, and at least one is not `ok`.
    Limited,
    /// At least one is `no`.
    Cannot,
}

impl Overall {
    pub(super) fn of(findings: &[Finding]) -> Self {
        let worst = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
        if worst(Verdict::No) || findings.is_empty() {
            Self::Cannot
        } else if worst(Verdict::Warning) || worst(Verdict::Unknown) {
            Self::Limited
        } else {
            Self::Ready
        }
    }

    /// `kleap check`'s own exit codes.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Ready => 0,
            Self::Limited => 1,
            Self::Cannot => 2,
        }
    }
}

const AS_ROOT: &str = "run it as root, in the initial user namespace: sudo kleap check";
const NO_MORE_UNTIL_BOOT: &str = "remove the setting (grep -r kexec_load /etc/sysctl.conf /etc/sysctl.d) and reboot the ordinary way";
const BY_FILE: &str =
    "kleap load --strategy kernel uses kexec_file_load(2) instead, and nobody verifies then";
const BY_KERNEL: &str =
    "use kleap load --strategy kernel, which needs neither huge pages nor addresses";

/// A finding under construction.
struct Words {
    verdict: Verdict,
    reason: String,
    remedy: Option<String>,
}

impl Words {
    fn new(verdict: Verdict, reason: impl Into<String>) -> Self {
        Self {
            verdict,
            reason: reason.into(),
            remedy: None,
        }
    }

    fn ok(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, reason)
    }

    fn warning(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Warning, reason)
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, reason)
    }

    fn no(reason: impl Into<String>) -> Self {
        Self::new(Verdict::No, reason)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// The findings, always the same ones in the same order; only that of the architecture where nothing else
/// counts.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if let Some(name) = facts.foreign {
        return vec![Finding {
            id: "architecture",
            verdict: Verdict::No,
            reason: format!("kleap hands over little-endian arm64 machines; this one is {name}"),
            remedy: None,
        }];
    }
    let page_kib = facts.page_size_bytes >> 10;
    [
        (
            "architecture",
            Words::ok(format!("arm64, {page_kib} KiB pages")),
        ),
        ("privileges", privileges(facts)),
        ("kexec-load", kexec_load(facts)),
        ("lockdown", lockdown(facts)),
        ("sysctls", sysctls(facts)),
        ("mounts", mounts(facts)),
        ("state-directory", state_directory(facts)),
        ("kernel-bugs", kernel_bugs(facts)),
        ("kexec-load-cost", kexec_load_cost(facts)),
        ("cpus", cpus(facts)),
        ("protected-kvm", protected_kvm(facts)),
        ("huge-pages", huge_pages(facts)),
        ("pagemap", pagemap(facts)),
        ("memory", memory(facts)),
        ("firmware", firmware(facts)),
        ("console", console(facts)),
        ("psci", psci(facts)),
        ("interrupts", interrupts(facts)),
        ("loaded", loaded(facts)),
        ("last-hand-over", last_hand_over(facts)),
    ]
    .into_iter()
    .map(|(id, words)| Finding {
        id,
        verdict: words.verdict,
        reason: words.reason,
        remedy: words.remedy,
    })
    .collect()
}

/// What only root may see.
fn hidden(facts: &Facts, what: &str, why: &str) -> Words {
    let words = Words::unknown(format!("not known {what}: {why}"));
    if facts.missing_capabilities.is_empty() {
        words
    } else {
        words.remedy(AS_ROOT)
    }
}

fn privileges(facts: &Facts) -> Words {
    if facts.is_in_user_namespace {
        return Words::no(
            "this process is in a user namespace, as in a container, where capabilities do not count",
        )
        .remedy("run it outside of the container, in the initial user namespace");
    }
    if !facts.missing_capabilities.is_empty() {
        return Words::no(format!(
            "this process lacks {}",
            facts.missing_capabilities.join(" and ")
        ))
        .remedy(AS_ROOT);
    }
    Words::ok("CAP_SYS_BOOT and CAP_SYS_ADMIN, in the initial user namespace")
}

fn kexec_load(facts: &Facts) -> Words {
    let refusal = match &facts.kexec_load {
        KexecLoad::Permitted => {
            return Words::ok("kexec_load(2) is there, and this process may call it");
        }
        KexecLoad::Counted(left) => {
            return Words::ok(format!(
                "kexec_load(2) is there; it was not called, because calls are counted ({left} are left)"
            ));
        }
        KexecLoad::NotPrivileged => {
            return Words::unknown(
                "kexec_load(2) is there; whether it is permitted is seen only with CAP_SYS_BOOT",
            )
            .remedy(AS_ROOT);
        }
        KexecLoad::Missing if facts.kexec_loaded.is_some() && facts.has_seccomp_filter => {
            "a seccomp filter hides kexec_load(2) from this process".to_owned()
        }
        KexecLoad::Missing => "this kernel was built without CONFIG_KEXEC".to_owned(),
        KexecLoad::Refused(why) if facts.has_seccomp_filter => {
            format!("{why}; a seccomp filter is in force for this process")
        }
        KexecLoad::Refused(why) => why.clone(),
    };
    if facts.has_file_load {
        return Words::warning(format!("no kexec_load(2): {refusal}")).remedy(BY_FILE);
    }
    let words = Words::no(format!("no kexec_load(2): {refusal}"));
    match facts.kexec_load {
        _ if facts.has_seccomp_filter => {
            words.remedy("run it outside of the container or service that filters system calls")
        }
        KexecLoad::Missing => {
            words.remedy("boot a kernel with CONFIG_KEXEC=y, or reboot the ordinary way")
        }
        _ => words,
    }
}

fn lockdown(facts: &Facts) -> Words {
    match facts.lockdown.as_deref() {
        Some("none") => Words::ok("off"),
        // securityfs may not be mounted; then only the call tells, which is `kexec-load`.
        None => Words::ok("none that can be seen"),
        Some(mode) if facts.has_file_load => {
            Words::warning(format!("{mode} mode, which forbids kexec_load(2)")).remedy(format!(
                "{BY_FILE} by kleap; the kernel wants a signature of its own"
            ))
        }
        Some(mode) => Words::no(format!("{mode} mode, which forbids kexec_load(2)")).remedy(
            "turn UEFI Secure Boot off in the firmware's set-up, or boot without lockdown= on the command \
             line; or reboot the ordinary way",
        ),
    }
}

fn sysctls(facts: &Facts) -> Words {
    if facts.is_disabled == Some(true) {
        return Words::no("kernel.kexec_load_disabled is 1, and stays so until the next boot")
            .remedy(NO_MORE_UNTIL_BOOT);
    }
    match facts.calls_left {
        Some(0) => Words::no("kernel.kexec_load_limit_reboot is used up until the next boot")
            .remedy(NO_MORE_UNTIL_BOOT),
        Some(left) => Words::warning(format!(
            "kernel.kexec_load_limit_reboot allows {left} more calls of kexec_load(2) until the next boot; exec \
             makes one, and so does every load --early and its unload"
        ))
        .remedy("load without --early"),
        None => Words::ok("kernel.kexec_load_disabled and kernel.kexec_load_limit_reboot forbid nothing"),
    }
}

fn mounts(facts: &Facts) -> Words {
    match facts.has_own_mounts {
        Some(false) => Words::ok("the mount namespace of PID 1"),
        Some(true) => Words::no(
            "this process has mounts of its own, as in a container or in a service with PrivateTmp=: what it \
             would load would be gone with it",
        )
        .remedy("run it in PID 1's mount namespace: nsenter --target 1 --mount kleap check"),
        None => hidden(
            facts,
            "whether this is PID 1's mount namespace",
            "/proc/1/ns/mnt is not to be read",
        ),
    }
}

fn state_directory(facts: &Facts) -> Words {
    match &facts.dev_writable {
        Ok(()) => Words::ok("/dev can be written"),
        Err(why) if facts.missing_capabilities.is_empty() => {
            Words::no(format!("what is loaded is noted below /dev: {why}"))
                .remedy("make /dev writable: mount -o remount,rw /dev")
        }
        Err(why) => hidden(facts, "whether root can write to /dev", why),
    }
}

fn kernel_bugs(facts: &Facts) -> Words {
    let cost = match &facts.cost {
        Ok(cost) => cost,
        Err(why) => {
            return hidden(
                facts,
                "whether kexec_load(2) meets a bug of this kernel",
                why,
            );
        }
    };
    let found = |wanted: fn(&Hazard) -> bool| cost.hazards.iter().find(|hazard| wanted(hazard));
    if let Some(hazard) = found(|hazard| matches!(hazard, Hazard::Lpa2Crash { .. })) {
        return Words::no(hazard.to_string()).remedy(hazard.remedy());
    }
    if let Some(hazard) = found(|hazard| matches!(hazard, Hazard::RepeatedCopy { .. })) {
        return Words::warning(hazard.to_string()).remedy(hazard.remedy());
    }
    Words::ok(format!("none is known of {} on this CPU", facts.release))
}

fn kexec_load_cost(facts: &Facts) -> Words {
    let cost = match &facts.cost {
        Ok(cost) => cost,
        Err(why) => return hidden(facts, "what kexec_load(2) itself takes", why),
    };
    if let Some(hazard) = cost
        .hazards
        .iter()
        .find(|hazard| matches!(hazard, Hazard::DoesNotFit { .. }))
    {
        return Words::no(hazard.to_string()).remedy(hazard.remedy());
    }
    let bytes = cost.bytes;
    if bytes.at_most == 0 {
        return Words::ok("kexec_load(2) copies no tables on this kernel");
    }
    let much = if cost.is_exact() {
        units::bytes(bytes.at_most)
    } else {
        format!(
            "{} to {}",
            units::bytes(bytes.at_least),
            units::bytes(bytes.at_most)
        )
    };
    Words::ok(format!(
        "kexec_load(2) itself takes {much} for a copy of this kernel's tables"
    ))
}

/// `a`, `a and b`, `a, b and 5 more`.
fn list(numbers: &[u32]) -> String {
    const SHOWN: usize = 4;
    let words: Vec<String> = numbers.iter().take(SHOWN).map(u32::to_string).collect();
    match numbers.len().checked_sub(SHOWN) {
        None | Some(0) => words.join(", "),
        Some(more) => format!("{} and {more} more", words.join(", ")),
    }
}

fn cpus(facts: &Facts) -> Words {
    let Some(cpus) = &facts.cpus else {
        return Words::unknown("sysfs does not show the CPUs");
    };
    if cpus.possible <= 1 {
        return busy(facts).unwrap_or_else(|| Words::ok("one CPU: there is none to stop"));
    }
    if cpus.unstoppable == cpus.online {
        let how = match facts.enable_methods.as_slice() {
            [] => "no PSCI CPU_OFF, or no CONFIG_HOTPLUG_CPU".to_owned(),
            methods => format!("enable-method {}", methods.join(", ")),
        };
        return Words::no(format!(
            "this kernel cannot stop its {} CPUs ({how}), so kexec_load(2) answers EBUSY",
            cpus.possible
        ))
        .remedy("boot this kernel with nr_cpus=1 on its command line: with one CPU there is none to stop");
    }
    let others: Vec<u32> = cpus
        .unstoppable
        .iter()
        .copied()
        .filter(|cpu| *cpu != cpus.reboot)
        .collect();
    if let [first, ..] = others[..] {
        return Words::no(format!(
            "CPU {} cannot be stopped (a trusted operating system may live there), and the jump is made on CPU {}: \
             the kernel would end in a BUG half way",
            list(&others),
            cpus.reboot
        ))
        .remedy(format!(
            "jump on that CPU, if it is the only one: echo {first} > /sys/kernel/reboot/cpu"
        ));
    }
    busy(facts).unwrap_or_else(|| {
        Words::ok(format!(
            "{} online, {} possible; the kernel can stop all but CPU {}, which jumps",
            cpus.online.len(),
            cpus.possible,
            cpus.reboot
        ))
    })
}

/// What the kernel says of itself, where nothing else explains it.
fn busy(facts: &Facts) -> Option<Words> {
    match &facts.preparation {
        Ok(Preparation::Busy) if explains_busy(facts) => None,
        Ok(Preparation::Busy) => Some(
            Words::no(
                "the kernel answers EBUSY: CPUs are stuck in it (its log says which), or another program is \
                 loading just now",
            )
            .remedy("run kleap check again; if it stays, reboot the ordinary way: dmesg | grep -i stuck"),
        ),
        _ => None,
    }
}

/// Whether protected KVM is why.
fn explains_busy(facts: &Facts) -> bool {
    facts.has_protected_kvm == Ok(true) || facts.wants_protected_kvm
}

fn protected_kvm(facts: &Facts) -> Words {
    const REMEDY: &str = "boot this kernel without kvm-arm.mode=protected on its command line";
    let at_work = || {
        Words::no(
            "protected KVM has EL2 (kvm-arm.mode=protected), and kexec_load(2) answers EBUSY for as long as it runs",
        )
        .remedy(REMEDY)
    };
    match (
        &facts.has_protected_kvm,
        facts.wants_protected_kvm,
        &facts.preparation,
    ) {
        (Ok(true), _, _) | (_, true, Ok(Preparation::Busy)) => at_work(),
        (_, true, Ok(Preparation::Ready)) => {
            Words::ok("kvm-arm.mode=protected is on the command line and has no effect here")
        }
        (_, true, Err(why)) => Words::unknown(format!(
            "kvm-arm.mode=protected is on the command line; whether it has an effect is not known: {why}"
        ))
        .remedy(REMEDY),
        (_, false, _) => Words::ok("not on"),
    }
}

fn huge_pages(facts: &Facts) -> Words {
    let sizes = match &facts.huge_pages {
        Ok(sizes) => sizes,
        Err(why) => return hidden(facts, "what huge pages there are", why),
    };
    let needed = crate::place::FIRST_SIZE_BYTES;
    if !sizes.iter().any(|pages| pages.page_size_bytes == needed) {
        return Words::warning("this kernel has no huge pages of 2 MiB (CONFIG_HUGETLBFS)")
            .remedy(BY_KERNEL);
    }
    let room = match (&facts.payload_bytes, &facts.huge_pages_writable) {
        (Err(why), _) => return hidden(facts, "how much memory there is", why),
        (Ok(_), Err(why)) if facts.missing_capabilities.is_empty() => {
            return Words::warning(format!("their pool cannot be made larger: {why}"))
                .remedy(BY_KERNEL);
        }
        (Ok(_), Err(why)) => return hidden(facts, "whether root can make their pool larger", why),
        (Ok(room), Ok(())) => *room,
    };
    let names: Vec<String> = sizes
        .iter()
        .map(|pages| {
            let size = size_name(pages.page_size_bytes);
            match pages.available {
                0 => size,
                available => format!("{size} ({available} free)"),
            }
        })
        .collect();
    let reason = format!(
        "of {}; memory for a payload: {}",
        names.join(", "),
        units::bytes(room)
    );
    if room < LITTLE_ROOM_BYTES {
        return Words::warning(reason).remedy("end what uses memory, or load a smaller initrd");
    }
    Words::ok(reason)
}

/// Sizes of huge pages are binary.
fn size_name(size_bytes: u64) -> String {
    match (size_bytes >> 10, size_bytes >> 20, size_bytes >> 30) {
        (kib, 0, _) => format!("{kib} KiB"),
        (_, mib, 0) => format!("{mib} MiB"),
        (_, _, gib) => format!("{gib} GiB"),
    }
}

fn pagemap(facts: &Facts) -> Words {
    match &facts.pagemap {
        Ok(()) => Words::ok("shows physical addresses"),
        Err(why) if facts.missing_capabilities.is_empty() => {
            Words::warning(why.as_str()).remedy(BY_KERNEL)
        }
        Err(why) => hidden(facts, "where pages are", why),
    }
}

fn memory(facts: &Facts) -> Words {
    let places = match &facts.places {
        Ok(places) => places,
        Err(why) if facts.missing_capabilities.is_empty() => {
            return Words::no(format!("where memory is cannot be read: {why}"));
        }
        Err(why) => return hidden(facts, "where memory is", why),
    };
    if places.plain_bytes == 0 {
        return Words::no(
            "no plain System RAM in /proc/iomem, so the payload has no place to be in",
        );
    }
    let mut reason = format!(
        "{} usable, {} of it plain System RAM; {} ranges are reserved by the device tree",
        units::bytes(places.usable_bytes),
        units::bytes(places.plain_bytes),
        places.reserved
    );
    if places.added_bytes > 0 {
        reason += &format!(
            "; {} were added since the boot and are not used",
            units::bytes(places.added_bytes)
        );
    }
    match facts.corrupted_bytes {
        Some(bad) if bad > 0 => Words::warning(format!(
            "{reason}; the kernel has found {} to be bad",
            units::bytes(bad)
        ))
        .remedy("nothing has to be done: bad pages are not used"),
        _ => Words::ok(reason),
    }
}

fn firmware(facts: &Facts) -> Words {
    Words::ok(match (facts.firmware.is_efi, facts.firmware.is_acpi) {
        (false, _) => "a device tree",
        (true, true) => "EFI, with ACPI",
        (true, false) => "EFI, with a device tree",
    })
}

fn console(facts: &Facts) -> Words {
    match &facts.console {
        Ok(Some(uart)) => {
            let kind = match uart {
                Uart::Pl011 { .. } => "PL011",
                Uart::Ns16550 { .. } => "8250",
            };
            Words::ok(format!("{kind} at {:#x}", uart.base()))
        }
        Ok(None) => Words::warning(
            "none that the relocator can write to: should a hand-over fail, the machine is reset without a word",
        )
        .remedy("give the machine a stdout-path in its device tree, or an SPCR table, if its firmware can"),
        Err(why) => hidden(facts, "which console there is", why),
    }
}

fn psci(facts: &Facts) -> Words {
    match &facts.has_psci {
        Ok(true) => Words::ok("SYSTEM_RESET is there, should a hand-over fail"),
        Ok(false) => {
            Words::warning("none: should a hand-over fail, the machine cannot be reset, and stops")
                .remedy("have a power switch or a hardware watchdog at hand")
        }
        Err(why) => hidden(facts, "whether there is PSCI", why),
    }
}

fn interrupts(facts: &Facts) -> Words {
    match facts.interrupt_controller {
        Some(InterruptController::GicV3) => {}
        Some(InterruptController::GicV2) => {
            return Words::ok("GICv2, which keeps nothing in memory");
        }
        Some(InterruptController::Other) => {
            return Words::ok("no GIC, so nothing of it is kept in memory");
        }
        None => {
            return hidden(
                facts,
                "which interrupt controller there is",
                "/proc/interrupts cannot be read",
            );
        }
    }
    let (regions, has_its, lpis) = match &facts.redistributors {
        Ok(answer) => *answer,
        Err(why) => return hidden(facts, "where the GICv3's redistributors are", why),
    };
    if regions == 0 {
        return Words::warning(
            "GICv3, and its redistributors were not found: LPIs that are on stay on, and their tables may lie in \
             the next kernel's memory",
        )
        .remedy("look for \"interrupt controller\" in what kleap load says");
    }
    let its = match has_its {
        Some(true) => " with an ITS",
        Some(false) => " without an ITS",
        None => "",
    };
    let becomes = match lpis {
        Lpis::TurnOff => "LPIs that are on are turned off",
        Lpis::LeaveOn => "LPIs stay on, in tables that EFI keeps reserved",
    };
    Words::ok(format!(
        "GICv3{its}, {regions} region{} of redistributors; {becomes}",
        if regions == 1 { "" } else { "s" }
    ))
}

fn loaded(facts: &Facts) -> Words {
    let by_kleap: &Answer<bool> = &facts.is_loaded_by_kleap;
    match (facts.kexec_loaded, by_kleap) {
        (_, Ok(true)) => Words::ok("kleap has a kernel loaded; kleap status says more"),
        (Some(true), Ok(false)) => Words::warning(
            "another program has loaded a kernel for kexec, which exec would replace",
        )
        .remedy("unload it, if it is not wanted: kexec -u"),
        (Some(true), Err(_)) => Words::ok("a kernel is loaded for kexec"),
        (_, Err(why)) if facts.missing_capabilities.is_empty() => {
            Words::warning(why.as_str()).remedy("kleap unload removes what is there")
        }
        _ => Words::ok("nothing"),
    }
}

fn last_hand_over(facts: &Facts) -> Words {
    match &facts.last_hand_over {
        Ok(LastHandOver::None) => Words::ok("this kernel was not started by kleap"),
        Ok(LastHandOver::Done {
            seconds: Some(seconds),
        }) => Words::ok(format!(
            "this kernel was started by kleap, {} after exec; kleap report says more",
            units::seconds(*seconds)
        )),
        Ok(LastHandOver::Done { seconds: None }) => {
            Words::ok("this kernel was started by kleap; kleap report says more")
        }
        Ok(LastHandOver::Damaged(what)) => Words::warning(format!(
            "this kernel was started by kleap, and the record of it cannot be used: {what}"
        )),
        Err(why) => hidden(facts, "whether this kernel was started by kleap", why),
    }
}
