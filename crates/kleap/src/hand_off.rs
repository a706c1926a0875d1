//! What the user wants of the hand-over itself: said at `load`, kept with what is loaded, and changed by
//! `exec` where it says something else.

use crate::serial::SerialSpec;
use clap::{Args, ValueEnum};
use kleap_relocator::abi::OnFailure;
use serde::{Deserialize, Serialize};

/// What becomes of the machine when the hand-over cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFailureArgument {
    /// Reset; power off where the firmware refuses that
    #[default]
    Reset,
    /// Power off; reset where the firmware refuses that
    Off,
    /// Stop and wait, for somebody who wants to look at the machine as it is
    Halt,
}

impl From<OnFailureArgument> for OnFailure {
    fn from(argument: OnFailureArgument) -> Self {
        match argument {
            OnFailureArgument::Reset => Self::Reset,
            OnFailureArgument::Off => Self::Off,
            OnFailureArgument::Halt => Self::Halt,
        }
    }
}

/// As `load` and `exec` take it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HandOffArguments {
    /// At hand-over, write a line to the console for every phase
    #[arg(long)]
    pub(crate) verbose_handoff: bool,
    /// What becomes of the machine if the hand-over cannot go on (without it: for exec as load was told, else reset)
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) on_failure: Option<OnFailureArgument>,
    /// The UART that the relocator writes to, as the kernel's earlycon= spells it: pl011,ADDRESS,
    /// uart8250,mmio,ADDRESS or uart8250,mmio32,ADDRESS (without it: for exec as load was told, else this kernel's console)
    #[arg(long, value_name = "SPEC")]
    pub(crate) serial: Option<SerialSpec>,
}

impl HandOffArguments {
    /// Whether nothing was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        !self.verbose_handoff && self.on_failure.is_none() && self.serial.is_none()
    }
}

/// As it is kept with what is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct HandOffOptions {
    /// Whether a line is written for every phase.
    pub(crate) verbose: bool,
    /// What ends a hand-over that failed.
    pub(crate) on_failure: OnFailureArgument,
    /// The UART that is written to, where the user has named it.
    pub(crate) serial: Option<SerialSpec>,
}

impl HandOffOptions {
    /// These, but for what was asked for now.
    pub(crate) fn with(&self, arguments: &HandOffArguments) -> Self {
        Self {
            verbose: self.verbose || arguments.verbose_handoff,
            on_failure: arguments.on_failure.unwrap_or(self.on_failure),
            serial: arguments.serial.clone().or_else(|| self.serial.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_changes_what_it_says_and_nothing_else() {
        let loaded = HandOffOptions {
            verbose: true,
            on_failure: OnFailureArgument::Off,
            serial: "pl011,0x9000000".parse().ok(),
        };
        assert_eq!(loaded.with(&HandOffArguments::default()), loaded);
        let halt = HandOffArguments {
            on_failure: Some(OnFailureArgument::Halt),
            ..HandOffArguments::default()
        };
        let now = loaded.with(&halt);
        assert_eq!(
            (now.verbose, now.on_failure),
            (true, OnFailureArgument::Halt)
        );
    }

    /// A note of a load by a version that had none of this.
    #[test]
    fn what_a_note_does_not_have_is_as_usual() {
        let options: HandOffOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(options, HandOffOptions::default());
    }
}
