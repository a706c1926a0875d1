//! What `status` says of watchdogs: whether one would still reset the machine, should both the hand-over and PSCI
//! fail.

use kleap_linux::watchdog::{AtReboot, Watchdog};
use serde::Serialize;

/// One watchdog, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    name: String,
    identity: Option<String>,
    /// `null` where the kernel does not show it, as in those that follow.
    active: Option<bool>,
    timeout_s: Option<u64>,
    /// Whether it goes on running when this kernel ends; `null` where its driver decides.
    kept_running: Option<bool>,
}

impl Status {
    fn new(watchdog: Watchdog, at_reboot: AtReboot) -> Self {
        Self {
            kept_running: match (watchdog.is_active, at_reboot) {
                (Some(false), _) | (_, AtReboot::Stopped) => Some(false),
                (Some(true), AtReboot::Kept) => Some(true),
                _ => None,
            },
            name: watchdog.name,
            identity: watchdog.identity,
            active: watchdog.is_active,
            timeout_s: watchdog.timeout_s,
        }
    }

    /// One sentence about one that runs, or may run; nothing is said of others.
    pub(crate) fn sentence(&self) -> Option<String> {
        let name = match &self.identity {
            Some(identity) => format!("{} ({})", self.name, crate::output::printable(identity)),
            None => self.name.clone(),
        };
        let time = self
            .timeout_s
            .map_or(String::new(), |timeout_s| format!(" within {timeout_s} s"));
        Some(match (self.active, self.kept_running) {
            (Some(true), Some(true)) => format!(
                "{name} runs, and goes on running at hand-over: the next kernel has to serve it{time}"
            ),
            (Some(true), Some(false)) => {
                format!("{name} runs, and is stopped at hand-over by watchdog.stop_on_reboot")
            }
            (Some(true), None) => format!(
                "{name} runs; most drivers stop it at hand-over, unless this kernel was booted with \
                 watchdog.stop_on_reboot=0"
            ),
            _ => return None,
        })
    }
}

/// Those of this machine.
pub(crate) fn all() -> Vec<Status> {
    let at_reboot = kleap_linux::watchdog::at_reboot();
    kleap_linux::watchdog::all()
        .into_iter()
        .map(|watchdog| Status::new(watchdog, at_reboot))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_whom() {
        let said = |is_active, at_reboot| {
            let watchdog = Watchdog {
                name: "watchdog0".into(),
                identity: Some("i6300ESB timer".into()),
                is_active,
                timeout_s: Some(30),
            };
            let status = Status::new(watchdog, at_reboot);
            (status.kept_running, status.sentence().unwrap_or_default())
        };
        let (kept, sentence) = said(Some(true), AtReboot::Kept);
        assert_eq!(kept, Some(true));
        assert!(
            sentence.contains("(i6300ESB timer) runs, and goes on"),
            "{sentence}"
        );
        assert!(sentence.ends_with("within 30 s"), "{sentence}");
        let (kept, sentence) = said(Some(true), AtReboot::Stopped);
        assert_eq!(kept, Some(false));
        assert!(sentence.contains("is stopped at hand-over"), "{sentence}");
        let (kept, sentence) = said(Some(true), AtReboot::AsDriverWants);
        assert_eq!(kept, None);
        assert!(sentence.contains("watchdog.stop_on_reboot=0"), "{sentence}");
        for at_reboot in [AtReboot::Kept, AtReboot::Stopped, AtReboot::AsDriverWants] {
            assert_eq!(said(Some(false), at_reboot), (Some(false), String::new()));
            assert_eq!(said(None, at_reboot).1, "");
        }
    }
}
