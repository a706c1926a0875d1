//! What follows from the facts: pure, so that every machine can be judged in a test.

use super::facts::{Answer, Facts, KexecLoad, LastHandOver};
use crate::units;
use kleap_linux::facts::InterruptController;
use kleap_linux::kexec::Preparation;
use kleap_plan::kexec_cost::Hazard;
use kleap_relocator::abi::Lpis;
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
                "{BY_FILE} by kleap; the kernel may want a signature of its own"
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
            "kernel.kexec_load_limit_reboot allows {} of kexec_load(2) until the next boot; exec makes one, and so does \
             every load --early and its unload",
            units::count(left, "more call")
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
        "{} usable, {} of it plain System RAM; {} reserved by the device tree",
        units::bytes(places.usable_bytes),
        units::bytes(places.plain_bytes),
        units::count(places.reserved as u64, "range")
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
    if let Some(why) = &facts.no_device_tree {
        return Words::no(why.as_str());
    }
    Words::ok(match (facts.firmware.is_efi, facts.firmware.is_acpi) {
        (false, _) => "a device tree",
        (true, true) => "EFI, with ACPI",
        (true, false) => "EFI, with a device tree",
    })
}

fn console(facts: &Facts) -> Words {
    match &facts.console {
        Ok(Some((uart, from))) => {
            Words::ok(format!("{} at {:#x}: {from}", uart.name(), uart.base()))
        }
        Ok(None) => Words::warning(
            "none that the relocator can write to: should a hand-over fail, the machine is reset without a word",
        )
        .remedy("name one with --serial; or give the machine a stdout-path in its device tree, or an SPCR table"),
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
        "GICv3{its}, {} of redistributors; {becomes}",
        units::count(regions as u64, "region")
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
        (_, Err(why)) => Words::unknown(format!(
            "not known whether kleap has something loaded: {why}"
        )),
        _ => Words::ok("nothing"),
    }
}

fn last_hand_over(facts: &Facts) -> Words {
    if let Some(failure) = &facts.last_failure {
        let is_last = facts.last_hand_over == Ok(LastHandOver::None);
        return Words::warning(failure.text(is_last)).remedy(format!(
            "kleap report has the values; once that is dealt with, remove {}",
            failure.file.display()
        ));
    }
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

#[cfg(test)]
mod tests {
    use super::super::facts::{Firmware, HugePages, Places};
    use super::Verdict::{No, Unknown, Warning};
    use super::*;
    use crate::last_words::LastFailure;
    use crate::machine::ConsoleFrom;
    use kleap_linux::facts::Cpus;
    use kleap_plan::KexecCost;
    use kleap_plan::kexec_cost::{Bounds, KernelVersion, LinearMap};
    use kleap_relocator::abi::Uart;

    /// A machine that is ready, seen by root.
    fn ready() -> Facts {
        Facts {
            foreign: None,
            release: "6.12.118+deb13-arm64".into(),
            page_size_bytes: 4096,
            missing_capabilities: Vec::new(),
            is_in_user_namespace: false,
            has_own_mounts: Some(false),
            has_seccomp_filter: false,
            kexec_load: KexecLoad::Permitted,
            kexec_loaded: Some(false),
            is_loaded_by_kleap: Ok(false),
            has_file_load: false,
            lockdown: Some("none".into()),
            is_disabled: Some(false),
            calls_left: None,
            preparation: Ok(Preparation::Ready),
            cpus: Some(Cpus {
                possible: 4,
                online: vec![0, 1, 2, 3],
                unstoppable: Vec::new(),
                reboot: 0,
            }),
            enable_methods: vec!["psci".into()],
            wants_protected_kvm: false,
            has_protected_kvm: Ok(false),
            cost: Ok(KexecCost {
                tables: Bounds {
                    at_least: 10,
                    at_most: 500,
                },
                bytes: Bounds {
                    at_least: 40_960,
                    at_most: 2_048_000,
                },
                linear_map: LinearMap::Unknown,
                hazards: Vec::new(),
            }),
            huge_pages: Ok(vec![HugePages {
                page_size_bytes: 2 << 20,
                available: 0,
            }]),
            huge_pages_writable: Ok(()),
            payload_bytes: Ok(1 << 30),
            corrupted_bytes: Some(0),
            pagemap: Ok(()),
            places: Ok(Places {
                usable_bytes: 2 << 30,
                plain_bytes: 1 << 30,
                reserved: 1,
                added_bytes: 0,
            }),
            dev_writable: Ok(()),
            firmware: Firmware {
                is_efi: false,
                is_acpi: false,
            },
            no_device_tree: None,
            console: Ok(Some((
                Uart::Pl011 { base: 0x900_0000 },
                ConsoleFrom::Kernel("ttyAMA0".into()),
            ))),
            has_psci: Ok(true),
            interrupt_controller: Some(InterruptController::GicV3),
            redistributors: Ok((1, Some(true), Lpis::TurnOff)),
            last_hand_over: Ok(LastHandOver::None),
            last_failure: None,
        }
    }

    /// The same, seen by a process without privileges.
    fn unprivileged() -> Facts {
        let hidden = || "hidden".to_owned();
        Facts {
            missing_capabilities: vec!["CAP_SYS_BOOT", "CAP_SYS_ADMIN"],
            has_own_mounts: None,
            kexec_load: KexecLoad::NotPrivileged,
            lockdown: None,
            preparation: Err(hidden()),
            enable_methods: Vec::new(),
            has_protected_kvm: Err(hidden()),
            cost: Err(hidden()),
            huge_pages_writable: Err(hidden()),
            pagemap: Err(hidden()),
            places: Err(hidden()),
            dev_writable: Err(hidden()),
            console: Err(hidden()),
            has_psci: Err(hidden()),
            redistributors: Err(hidden()),
            last_hand_over: Err(hidden()),
            ..ready()
        }
    }

    fn hazard(facts: &mut Facts, hazard: Hazard) {
        if let Ok(cost) = &mut facts.cost {
            cost.hazards = vec![hazard];
        }
    }

    const KERNEL: KernelVersion = KernelVersion::new(6, 12, 100);

    /// One thing that is not as it should be: what, which finding tells it, how, with what in reason and remedy.
    type Case = (
        fn(&mut Facts),
        &'static str,
        Verdict,
        &'static str,
        &'static str,
    );

    // One line for each, so that they can be read as the table that they are.
    #[rustfmt::skip]
    const CASES: &[Case] = &[
        (|f| f.missing_capabilities = vec!["CAP_SYS_BOOT"], "privileges", No, "CAP_SYS_BOOT", "root"),
        (|f| f.is_in_user_namespace = true, "privileges", No, "user namespace", "container"),
        (|f| f.kexec_load = KexecLoad::Missing, "kexec-load", No, "CONFIG_KEXEC", "CONFIG_KEXEC=y"),
        (|f| (f.kexec_load, f.has_seccomp_filter) = (KexecLoad::Missing, true),
            "kexec-load", No, "seccomp filter hides", "filters"),
        (|f| (f.kexec_load, f.has_file_load) = (KexecLoad::Missing, true),
            "kexec-load", Warning, "CONFIG_KEXEC", "--strategy kernel"),
        (|f| f.kexec_load = KexecLoad::Refused("because".into()), "kexec-load", No, "because", ""),
        (|f| f.lockdown = Some("integrity".into()), "lockdown", No, "integrity", "Secure Boot"),
        (|f| (f.lockdown, f.has_file_load) = (Some("integrity".into()), true),
            "lockdown", Warning, "integrity", "signature"),
        (|f| f.is_disabled = Some(true), "sysctls", No, "kexec_load_disabled is 1", "reboot"),
        (|f| f.calls_left = Some(0), "sysctls", No, "used up", "reboot"),
        (|f| f.calls_left = Some(3), "sysctls", Warning, "3 more", "--early"),
        (|f| f.has_own_mounts = Some(true), "mounts", No, "mounts of its own", "nsenter"),
        (|f| f.has_own_mounts = None, "mounts", Unknown, "not known", ""),
        (|f| f.dev_writable = Err("read-only".into()), "state-directory", No, "read-only", "remount"),
        (|f| hazard(f, Hazard::Lpa2Crash { kernel: KERNEL }), "kernel-bugs", No, "LPA2", "arm64.nolva"),
        (|f| hazard(f, Hazard::RepeatedCopy { times: 16, certain: true }),
            "kernel-bugs", Warning, "16 times", "rodata=on"),
        (|f| hazard(f, DOES_NOT_FIT), "kexec-load-cost", No, "900 MiB", "end what uses memory"),
        (|f| f.cost = Err("odd".into()), "kernel-bugs", Unknown, "odd", ""),
        (|f| f.cpus = None, "cpus", Unknown, "sysfs", ""),
        (spin_table, "cpus", No, "4 CPUs (enable-method spin-table)", "nr_cpus=1"),
        (|f| unstoppable(f, 2), "cpus", No, "CPU 2 cannot be stopped", "echo 2 > /sys/kernel/reboot/cpu"),
        (|f| f.preparation = Ok(Preparation::Busy), "cpus", No, "EBUSY", "again"),
        (|f| f.has_protected_kvm = Ok(true), "protected-kvm", No, "EL2", "without kvm-arm.mode"),
        (|f| (f.wants_protected_kvm, f.preparation) = (true, Ok(Preparation::Busy)),
            "protected-kvm", No, "EL2", "without kvm-arm.mode"),
        (|f| (f.wants_protected_kvm, f.preparation) = (true, Err("counted".into())),
            "protected-kvm", Unknown, "counted", "without kvm-arm.mode"),
        (|f| f.huge_pages = Ok(Vec::new()), "huge-pages", Warning, "no huge pages of 2 MiB", "--strategy kernel"),
        (|f| f.huge_pages_writable = Err("read-only".into()), "huge-pages", Warning, "read-only", "--strategy kernel"),
        (|f| f.payload_bytes = Ok(20 << 20), "huge-pages", Warning, "21.0 MB", "smaller initrd"),
        (|f| f.pagemap = Err("hides".into()), "pagemap", Warning, "hides", "--strategy kernel"),
        (|f| f.places = Err("odd".into()), "memory", No, "odd", ""),
        (|f| f.corrupted_bytes = Some(4096), "memory", Warning, "4.1 kB to be bad", ""),
        (|f| f.no_device_tree = Some("there is none".into()), "firmware", No, "there is none", ""),
        (|f| f.console = Ok(None), "console", Warning, "without a word", "--serial"),
        (|f| f.has_psci = Ok(false), "psci", Warning, "cannot be reset", "power switch"),
        (|f| f.redistributors = Ok((0, None, Lpis::TurnOff)), "interrupts", Warning, "not found", ""),
        (|f| f.kexec_loaded = Some(true), "loaded", Warning, "another program", "kexec -u"),
        (|f| f.is_loaded_by_kleap = Err("damaged".into()), "loaded", Warning, "damaged", "unload"),
        (|f| f.last_hand_over = Ok(LastHandOver::Damaged("cut".into())), "last-hand-over", Warning, "cut", ""),
        (|f| f.last_failure = Some(failure()), "last-hand-over", Warning, "the last hand-over failed because", "remove /sys/fs/pstore/x"),
    ];

    fn failure() -> LastFailure {
        LastFailure {
            reason: "digest mismatch in Image".into(),
            values: [("phase".to_owned(), "verify".to_owned())].into(),
            file: "/sys/fs/pstore/x".into(),
        }
    }

    const DOES_NOT_FIT: Hazard = Hazard::DoesNotFit {
        needed_bytes: 900 << 20,
        available_bytes: 500 << 20,
        remaining_bytes: 64 << 20,
    };

    fn unstoppable(facts: &mut Facts, cpu: u32) {
        if let Some(cpus) = &mut facts.cpus {
            cpus.unstoppable = vec![cpu];
        }
    }

    fn spin_table(facts: &mut Facts) {
        if let Some(cpus) = &mut facts.cpus {
            cpus.unstoppable = cpus.online.clone();
        }
        facts.enable_methods = vec!["spin-table".into()];
        facts.preparation = Ok(Preparation::Busy);
    }

    fn find<'a>(findings: &'a [Finding], id: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.id == id).unwrap()
    }

    #[test]
    fn a_machine_that_is_ready() {
        let findings = judge(&ready());
        assert_eq!(Overall::of(&findings), Overall::Ready, "{findings:#?}");
        let harmless: [fn(&mut Facts); 8] = [
            |f| f.lockdown = None,
            |f| f.interrupt_controller = Some(InterruptController::GicV2),
            |f| f.wants_protected_kvm = true,
            |f| f.has_protected_kvm = Err("hidden".into()),
            |f| f.is_loaded_by_kleap = Ok(true),
            |f| f.last_hand_over = Ok(LastHandOver::Done { seconds: Some(1.5) }),
            |f| {
                // The CPU that jumps need not be stopped.
                if let Some(cpus) = &mut f.cpus {
                    (cpus.unstoppable, cpus.reboot) = (vec![2], 2);
                }
            },
            |f| {
                if let Some(cpus) = &mut f.cpus {
                    (cpus.possible, cpus.online, cpus.unstoppable) = (1, vec![0], vec![0]);
                }
            },
        ];
        for harmless in harmless {
            let mut facts = ready();
            harmless(&mut facts);
            let findings = judge(&facts);
            assert_eq!(Overall::of(&findings), Overall::Ready, "{findings:#?}");
        }
    }

    #[test]
    fn one_thing_that_is_wrong_is_told_by_its_finding_alone() {
        for (number, (change, id, verdict, reason, remedy)) in CASES.iter().enumerate() {
            let mut facts = ready();
            change(&mut facts);
            let findings = judge(&facts);
            let finding = find(&findings, id);
            let what = format!("case {number}: {finding:?}");
            assert_eq!(finding.verdict, *verdict, "{what}");
            assert!(finding.reason.contains(reason), "{what}");
            assert!(
                finding
                    .remedy
                    .as_deref()
                    .unwrap_or_default()
                    .contains(remedy),
                "{what}"
            );
            let overall = match verdict {
                Verdict::Ok => Overall::Ready,
                Verdict::Warning | Verdict::Unknown => Overall::Limited,
                Verdict::No => Overall::Cannot,
            };
            assert_eq!(Overall::of(&findings), overall, "{what}");
            // Without a cost neither of its two findings can be told.
            let others = findings
                .iter()
                .filter(|other| other.id != *id && other.verdict != Verdict::Ok)
                .filter(|other| facts.cost.is_ok() || other.id != "kexec-load-cost");
            assert_eq!(others.count(), 0, "{what}: {findings:#?}");
        }
    }

    /// Whatever is wrong: no panic, the same findings, the worst verdict over all, and a way out of every "no"
    /// that the user can do something about.
    #[test]
    fn any_two_things_that_are_wrong() {
        let ids: Vec<_> = judge(&ready()).iter().map(|finding| finding.id).collect();
        for start in [ready as fn() -> Facts, unprivileged] {
            for (one, ..) in CASES {
                for (two, ..) in CASES {
                    let mut facts = start();
                    one(&mut facts);
                    two(&mut facts);
                    let findings = judge(&facts);
                    let found: Vec<_> = findings.iter().map(|finding| finding.id).collect();
                    assert_eq!(found, ids);
                    let has = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
                    assert_eq!(Overall::of(&findings) == Overall::Cannot, has(Verdict::No));
                    assert_eq!(
                        Overall::of(&findings) == Overall::Ready,
                        !has(Verdict::No) && !has(Verdict::Warning) && !has(Verdict::Unknown)
                    );
                    assert!(findings.iter().all(|finding| !finding.reason.is_empty()));
                }
            }
        }
    }

    #[test]
    fn without_privileges_nothing_is_claimed() {
        let findings = judge(&unprivileged());
        assert_eq!(Overall::of(&findings), Overall::Cannot);
        let no: Vec<_> = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::No)
            .map(|finding| finding.id)
            .collect();
        assert_eq!(no, ["privileges"]);
        for id in [
            "kernel-bugs",
            "kexec-load-cost",
            "pagemap",
            "memory",
            "console",
            "psci",
        ] {
            assert_eq!(find(&findings, id).verdict, Verdict::Unknown, "{id}");
        }
        assert_eq!(find(&findings, "cpus").verdict, Verdict::Ok);
    }

    #[test]
    fn another_architecture_is_one_finding() {
        let facts = Facts {
            foreign: Some("x86_64"),
            ..ready()
        };
        let findings = judge(&facts);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].reason.contains("x86_64"));
        assert_eq!(Overall::of(&findings).exit_code(), 2);
    }

    #[test]
    fn what_is_printed_is_as_documented() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../../../docs/check.schema.json")).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut facts = vec![
            ready(),
            unprivileged(),
            Facts {
                foreign: Some("x86_64"),
                ..ready()
            },
        ];
        for (change, ..) in CASES {
            let mut changed = ready();
            change(&mut changed);
            facts.push(changed);
        }
        for facts in facts {
            let findings = judge(&facts);
            let check = crate::check::Check::new(&facts.release, &findings);
            let value = serde_json::to_value(&check).unwrap();
            assert!(validator.validate(&value).is_ok(), "{value:#}");
            let text = crate::check::table(&check);
            assert!(
                findings
                    .iter()
                    .all(|finding| text.contains(&finding.reason)),
                "{text}"
            );
        }
        // The documented list of names is the real one.
        let documented: Vec<String> =
            serde_json::from_value(schema["$defs"]["finding"]["properties"]["id"]["enum"].clone())
                .unwrap();
        let ids: Vec<_> = judge(&ready()).iter().map(|finding| finding.id).collect();
        assert_eq!(documented, ids);
    }
}
