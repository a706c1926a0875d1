//! Watchdogs, and what becomes of them when this kernel ends.
//!
//! A watchdog in hardware resets a machine in which nobody serves it any more: the one thing that helps where a
//! hand-over ends in silence and PSCI does not. Nothing of kleap's touches one, so whether it still runs between
//! the two kernels is the first kernel's doing.
//!
//! Linux calls its reboot notifiers for kexec as for a reboot (`kernel_kexec`, `kernel_restart_prepare`), and a
//! watchdog's notifier stops it if the driver has asked for that (`watchdog_stop_on_reboot`); most drivers of
//! real hardware do. `watchdog.stop_on_reboot=` on the kernel's command line overrules them, since Linux 5.7.
//! `nowayout` does not: it is about who closes `/dev/watchdog`. What a driver wants cannot be read anywhere, so it
//! is not known here ([`AtReboot::AsDriverWants`]).
//!
//! Only sysfs is read. Rejected: `/dev/watchdog` and its ioctls, because opening it starts the watchdog.

use std::path::Path;

/// One directory for each watchdog.
const DIRECTORY: &str = "/sys/class/watchdog";
/// The parameter of the watchdog core.
const STOP_ON_REBOOT: &str = "/sys/module/watchdog/parameters/stop_on_reboot";
/// Most watchdogs that are listed.
pub const WATCHDOGS_MAX: usize = 64;

/// What the first kernel's shutdown does with a watchdog that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtReboot {
    /// Its driver decides; most stop it.
    AsDriverWants,
    /// It is stopped: `watchdog.stop_on_reboot=1`.
    Stopped,
    /// It goes on running: `watchdog.stop_on_reboot=0`.
    Kept,
}

/// A watchdog, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Its name below `/sys/class/watchdog`.
    pub name: String,
    /// What its driver calls it, where the kernel shows that (`CONFIG_WATCHDOG_SYSFS`).
    pub identity: Option<String>,
    /// Whether somebody has started it; `None` where the kernel does not show that.
    pub is_active: Option<bool>,
    /// After how long without service it resets the machine, seconds, where the kernel shows that.
    pub timeout_s: Option<u64>,
}

/// The watchdogs of this machine, by name, at most [`WATCHDOGS_MAX`]; none on a kernel without them.
#[must_use]
pub fn all() -> Vec<Watchdog> {
    below(Path::new(DIRECTORY))
}

/// What a reboot does with those that run, as far as that can be known.
#[must_use]
pub fn at_reboot() -> AtReboot {
    let text = std::fs::read_to_string(STOP_ON_REBOOT).unwrap_or_default();
    parse_at_reboot(&text)
}

/// `stop_on_reboot`: -1 says nothing, 0 keeps, everything else stops (`___watchdog_register_device`).
fn parse_at_reboot(text: &str) -> AtReboot {
    match text.trim().parse::<i32>() {
        Ok(0) => AtReboot::Kept,
        Ok(-1) | Err(_) => AtReboot::AsDriverWants,
        Ok(_) => AtReboot::Stopped,
    }
}

fn below(directory: &Path) -> Vec<Watchdog> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<Watchdog> = entries
        .flatten()
        .take(WATCHDOGS_MAX)
        .map(|entry| {
            let text = |attribute| {
                let text = std::fs::read_to_string(entry.path().join(attribute)).ok()?;
                Some(text.trim().to_owned()).filter(|text| !text.is_empty())
            };
            Watchdog {
                name: entry.file_name().to_string_lossy().into_owned(),
                identity: text("identity"),
                is_active: text("state").map(|state| state == "active"),
                timeout_s: text("timeout").and_then(|timeout| timeout.parse().ok()),
            }
        })
        .collect();
    found.sort_by(|one, two| one.name.cmp(&two.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_the_parameter_means() {
        for (text, means) in [
            ("-1\n", AtReboot::AsDriverWants),
            ("0\n", AtReboot::Kept),
            ("1\n", AtReboot::Stopped),
            ("-2\n", AtReboot::Stopped),
            ("", AtReboot::AsDriverWants),
            ("N\n", AtReboot::AsDriverWants),
            ("99999999999\n", AtReboot::AsDriverWants),
        ] {
            assert_eq!(parse_at_reboot(text), means, "{text:?}");
        }
    }

    #[test]
    fn what_sysfs_shows_and_what_it_does_not() {
        let root = std::env::temp_dir().join(format!("kleap-{}-watchdogs", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (name, attributes) in [
            (
                "watchdog1",
                &[
                    ("identity", "i6300ESB timer\n"),
                    ("state", "active\n"),
                    ("timeout", "30\n"),
                ][..],
            ),
            ("watchdog0", &[("state", "inactive\n"), ("timeout", "x\n")]),
            // Without CONFIG_WATCHDOG_SYSFS.
            ("watchdog2", &[]),
        ] {
            fs::create_dir_all(root.join(name)).unwrap();
            for (attribute, text) in attributes {
                fs::write(root.join(name).join(attribute), text).unwrap();
            }
        }
        let found = below(&root);
        fs::remove_dir_all(&root).unwrap();
        let seen: Vec<_> = found
            .iter()
            .map(|one| {
                let identity = one.identity.as_deref();
                (one.name.as_str(), identity, one.is_active, one.timeout_s)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("watchdog0", None, Some(false), None),
                ("watchdog1", Some("i6300ESB timer"), Some(true), Some(30)),
                ("watchdog2", None, None, None),
            ]
        );
    }

    #[test]
    fn without_watchdogs_there_are_none() {
        assert_eq!(below(Path::new("/no/such/directory")), []);
    }
}
