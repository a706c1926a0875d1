//! What `check` looks at. Reads, and calls that change nothing; no judgement.
//!
//! Two calls are more than reading, and are made in a way that leaves nothing behind: `kexec_load(2)` for
//! another architecture, and with bytes that cannot be read ([`kexec::try_prepare`]). Rejected: everything that
//! would take something, however shortly: a huge page, a pin, a mount, a file, a line in the kernel log (which
//! is how `report` finds out when PID 1 was started).

use crate::last_words::LastFailure;
use crate::machine::{self, ConsoleFrom, Devices, Memory};
use crate::{place, report, store};
use kleap_devicetree::Tree;
use kleap_linux::facts::{Cpus, InterruptController};
use kleap_linux::kexec::Preparation;
use kleap_linux::pagemap::Pagemap;
use kleap_linux::{facts, hugepages, kernel_log, kexec};
use kleap_plan::KexecCost;
use kleap_relocator::abi::{Lpis, Uart};
use kleap_relocator::timeline::Timeline;
use std::path::Path;

/// What a line of the kernel log says when protected KVM is on (`cpu_feature`, `ARM64_KVM_PROTECTED_MODE`).
const PROTECTED_KVM_LINE: &str = "detected: Protected KVM";

/// Something that was asked, or why there is no answer.
pub(super) type Answer<T> = Result<T, String>;

/// What the kernel says of `kexec_load(2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KexecLoad {
    /// This process may call it.
    Permitted,
    /// It was not called, because calls are counted, and this many are left.
    Counted(u64),
    /// This process lacks CAP_SYS_BOOT: it is there, and no more is known.
    NotPrivileged,
    /// The kernel has no such call, or a filter says so.
    Missing,
    /// Refused, for this reason.
    Refused(String),
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) page_size_bytes: u64,
    /// Pages that nobody uses, count.
    pub(super) available: u64,
}

/// Where memory for a payload may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    /// Of this boot's memory, without what is set aside, bytes.
    pub(super) usable_bytes: u64,
    /// Of that, what has nothing of the kernel's in it, bytes.
    pub(super) plain_bytes: u64,
    /// Ranges with a fixed place that the device tree sets aside, count.
    pub(super) reserved: usize,
    /// Memory that was added since the boot, bytes.
    pub(super) added_bytes: u64,
}

/// What described the machine to the running kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Firmware {
    pub(super) is_efi: bool,
    pub(super) is_acpi: bool,
}

/// The hand-over that led to the running kernel.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LastHandOver {
    /// This kernel was started in another way.
    None,
    /// From `exec` to this kernel's first instruction, seconds; `None` if nobody noted when it began.
    Done { seconds: Option<f64> },
    /// There is a record, and it cannot be read.
    Damaged(String),
}

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Another architecture than arm64, or its other byte order: then nothing else counts.
    pub(super) foreign: Option<&'static str>,
    pub(super) release: String,
    pub(super) page_size_bytes: u64,
    /// Capabilities that are needed and missing.
    pub(super) missing_capabilities: Vec<&'static str>,
    pub(super) is_in_user_namespace: bool,
    pub(super) has_own_mounts: Option<bool>,
    pub(super) has_seccomp_filter: bool,
    pub(super) kexec_load: KexecLoad,
    /// `/sys/kernel/kexec_loaded`; `None` where the kernel has none, and so no kexec.
    pub(super) kexec_loaded: Option<bool>,
    /// Whether what is loaded is kleap's.
    pub(super) is_loaded_by_kleap: Answer<bool>,
    pub(super) has_file_load: bool,
    pub(super) lockdown: Option<String>,
    pub(super) is_disabled: Option<bool>,
    pub(super) calls_left: Option<u64>,
    pub(super) preparation: Answer<Preparation>,
    pub(super) cpus: Option<Cpus>,
    /// From the device tree; empty where it does not say.
    pub(super) enable_methods: Vec<String>,
    /// Whether the kernel was told `kvm-arm.mode=protected`.
    pub(super) wants_protected_kvm: bool,
    /// Whether its log says that it has it.
    pub(super) has_protected_kvm: Answer<bool>,
    pub(super) cost: Answer<KexecCost>,
    pub(super) huge_pages: Answer<Vec<HugePages>>,
    pub(super) huge_pages_writable: Answer<()>,
    /// What a payload may take, bytes.
    pub(super) payload_bytes: Answer<u64>,
    pub(super) corrupted_bytes: Option<u64>,
    pub(super) pagemap: Answer<()>,
    pub(super) places: Answer<Places>,
    pub(super) dev_writable: Answer<()>,
    pub(super) firmware: Firmware,
    /// There is no device tree that the next kernel's could be made of.
    pub(super) no_device_tree: Option<String>,
    /// And who named it.
    pub(super) console: Answer<Option<(Uart, ConsoleFrom)>>,
    pub(super) has_psci: Answer<bool>,
    pub(super) interrupt_controller: Option<InterruptController>,
    /// Regions of redistributors that were found, whether there is an ITS (not known with ACPI), and what
    /// becomes of LPIs.
    pub(super) redistributors: Answer<(usize, Option<bool>, Lpis)>,
    pub(super) last_hand_over: Answer<LastHandOver>,
    /// What is left of one that failed.
    pub(super) last_failure: Option<LastFailure>,
}

fn because(failure: impl std::fmt::Display) -> String {
    failure.to_string()
}

fn kexec_load() -> KexecLoad {
    use kleap_linux::Error;
    match (kexec::probe(), kexec::calls_left()) {
        (Ok(()), Some(left)) => KexecLoad::Counted(left),
        (Ok(()), None) => KexecLoad::Permitted,
        (Err(Error::NoKexec), _) => KexecLoad::Missing,
        (Err(Error::Privilege { .. }), _) => KexecLoad::NotPrivileged,
        (Err(Error::Refused(why)), _) => KexecLoad::Refused(why),
        (Err(error), _) => KexecLoad::Refused(error.to_string()),
    }
}

/// Asks the kernel to get ready, where that leaves nothing behind: the answer "busy" is a line in the kernel
/// log, so what is known already is not asked.
fn preparation(is_permitted: bool, is_known_to_fail: bool) -> Answer<Preparation> {
    if !is_permitted {
        return Err("only a process that may call kexec_load(2) can ask".into());
    }
    if is_known_to_fail {
        return Ok(Preparation::Busy);
    }
    let Some(_lock) = facts::try_lock().map_err(because)? else {
        return Err("another kleap is at work".into());
    };
    kexec::try_prepare()
        .map_err(because)?
        .ok_or_else(|| "calls of kexec_load(2) are counted, and asking would use one up".into())
}

fn huge_pages() -> Answer<Vec<HugePages>> {
    hugepages::sizes()
        .map_err(because)?
        .into_iter()
        .map(|page_size_bytes| {
            let pool = hugepages::Pool::of_size(page_size_bytes).map_err(because)?;
            Ok(HugePages {
                page_size_bytes,
                available: pool.available().map_err(because)?,
            })
        })
        .collect()
}

fn pagemap() -> Answer<()> {
    let here = 0_u8;
    Pagemap::open()
        .and_then(|pagemap| pagemap.physical(&raw const here))
        .map(|_| ())
        .map_err(because)
}

fn places(tree: &Answer<Tree>) -> Answer<Places> {
    let tree = tree.as_ref().map_err(Clone::clone)?;
    let memory = Memory::find(tree).map_err(because)?;
    let added = kleap_linux::memory_blocks::added_by_acpi().map_err(because)?;
    Ok(Places {
        usable_bytes: memory.usable.size_bytes(),
        plain_bytes: memory.plain.size_bytes(),
        reserved: tree.reserved_memory().map_err(because)?.len(),
        added_bytes: added.into_iter().map(|range| range.size_bytes()).sum(),
    })
}

fn last_hand_over() -> Answer<LastHandOver> {
    let Some(record) = report::record().map_err(because)? else {
        return Ok(LastHandOver::None);
    };
    Ok(match Timeline::decode(&record) {
        Ok(times) => LastHandOver::Done {
            seconds: report::seconds(
                times.exec_requested,
                times.kernel_entered,
                times.frequency_hz,
            ),
        },
        Err(error) => LastHandOver::Damaged(error.to_string()),
    })
}

impl Facts {
    /// Looks.
    pub(super) fn gather() -> Self {
        let tree = machine::device_tree().map_err(because);
        let devices = tree
            .as_ref()
            .map(|tree| Devices::find(tree, None))
            .map_err(Clone::clone);
        let missing_capabilities: Vec<_> = [
            (facts::CAP_SYS_BOOT, "CAP_SYS_BOOT"),
            (facts::CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
        ]
        .into_iter()
        .filter(|(capability, _)| !facts::has_capability(*capability))
        .map(|(_, name)| name)
        .collect();
        let kexec_load = kexec_load();
        let cpus = facts::cpus();
        let has_protected_kvm = kernel_log::has_line(PROTECTED_KVM_LINE).map_err(because);
        let cannot_stop = cpus
            .as_ref()
            .is_some_and(|cpus| cpus.possible > 1 && cpus.unstoppable == cpus.online);
        let preparation = preparation(
            kexec_load == KexecLoad::Permitted,
            cannot_stop || has_protected_kvm == Ok(true),
        );
        Self {
            foreign: if cfg!(not(target_arch = "aarch64")) {
                Some(std::env::consts::ARCH)
            } else if cfg!(target_endian = "big") {
                Some("big-endian arm64")
            } else {
                None
            },
            release: facts::kernel_release().0,
            page_size_bytes: facts::page_size_bytes(),
            missing_capabilities,
            is_in_user_namespace: facts::is_in_user_namespace(),
            has_own_mounts: facts::has_own_mounts(),
            has_seccomp_filter: facts::has_seccomp_filter(),
            kexec_load,
            kexec_loaded: kexec::is_loaded(),
            is_loaded_by_kleap: store::loaded()
                .map(|loaded| loaded.is_some())
                .map_err(because),
            has_file_load: kexec::has_file_load(),
            lockdown: kexec::lockdown(),
            is_disabled: kexec::is_disabled(),
            calls_left: kexec::calls_left(),
            preparation,
            cpus,
            enable_methods: tree.as_ref().map(Tree::enable_methods).unwrap_or_default(),
            wants_protected_kvm: facts::command_line().is_ok_and(|line| {
                line.split_whitespace()
                    .any(|word| word == "kvm-arm.mode=protected")
            }),
            has_protected_kvm,
            cost: machine::kexec_cost().map(|cost| cost.0).map_err(because),
            huge_pages: huge_pages(),
            huge_pages_writable: hugepages::check_growable(place::FIRST_SIZE_BYTES)
                .map_err(because),
            payload_bytes: place::payload_room().map_err(because),
            corrupted_bytes: facts::corrupted_bytes(),
            pagemap: pagemap(),
            places: places(&tree),
            dev_writable: facts::check_writable(Path::new("/dev")).map_err(because),
            firmware: Firmware {
                is_efi: facts::is_efi(),
                is_acpi: facts::has_acpi(),
            },
            no_device_tree: (!Path::new(facts::DEVICE_TREE_PATH).exists())
                .then(|| tree.as_ref().err().cloned())
                .flatten(),
            console: devices
                .as_ref()
                .map(|devices| devices.uart.zip(devices.uart_from.clone()))
                .map_err(Clone::clone),
            has_psci: devices
                .as_ref()
                .map(|devices| devices.psci.is_some())
                .map_err(Clone::clone),
            interrupt_controller: facts::interrupt_controller(),
            redistributors: devices.as_ref().map_err(Clone::clone).and_then(|devices| {
                let tree = tree.as_ref().map_err(Clone::clone)?;
                let has_its = (!facts::has_acpi()).then(|| tree.has_its());
                Ok((devices.redistributors.len(), has_its, devices.lpis))
            }),
            last_hand_over: last_hand_over(),
            last_failure: LastFailure::find(),
        }
    }
}
