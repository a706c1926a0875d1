//! The running kernel's consoles, and the UARTs behind them.
//!
//! `/proc/consoles` says which consoles are in use, whatever named them: `console=`, `stdout-path`, ACPI or the
//! kernel itself. Every driver of serial_core shows in sysfs where its registers are and how they are reached
//! (`drivers/tty/serial/serial_core.c`, `tty_dev_attrs`), so that neither firmware's description nor driver's
//! quirks have to be understood once more. Only root may read that.

use crate::facts;
use std::path::Path;

/// Which consoles are in use.
const CONSOLES: &str = "/proc/consoles";
/// What there is about each of them.
const DIRECTORY: &str = "/sys/class/tty";
/// Most bytes of `/proc/consoles` and of an attribute.
const CONSOLES_MAX_BYTES: u64 = 1 << 16;
const ATTRIBUTE_MAX_BYTES: u64 = 64;

/// How registers are reached: `UPIO_MEM` and `UPIO_MEM32` of include/linux/serial_core.h.
const UPIO_MEM: u64 = 2;
const UPIO_MEM32: u64 = 3;
/// `PORT_AMBA`: PL011, and the SBSA's generic UART (include/uapi/linux/serial_core.h).
const PORT_AMBA: u64 = 32;
/// The 8250 family, from `PORT_8250` to `PORT_16550A_FSL64` and what lies between.
const PORTS_8250: std::ops::RangeInclusive<u64> = 1..=30;

/// What kind of UART.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SerialKind {
    /// Arm PL011, or the SBSA's generic UART.
    Pl011,
    /// 8250 family.
    Ns16550 {
        /// log2 of the distance between registers, bytes: at most 4.
        reg_shift: u64,
        /// Width of an access, bytes: 1 or 4.
        width_bytes: u64,
    },
}

/// A console that is a UART.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialConsole {
    /// Its name, as in `console=`.
    pub name: String,
    /// Physical address of its first register.
    pub base: u64,
    /// How to write to it.
    pub kind: SerialKind,
}

/// The consoles in use that are UARTs which can be written to, `/dev/console` first; none if only root may know.
#[must_use]
pub fn serial() -> Vec<SerialConsole> {
    let text = facts::read_limited(Path::new(CONSOLES), CONSOLES_MAX_BYTES).unwrap_or_default();
    names(&String::from_utf8_lossy(&text))
        .into_iter()
        .filter_map(|name| in_directory(Path::new(DIRECTORY), name))
        .collect()
}

/// The names of consoles that are enabled and no boot consoles, the preferred one first. Lines are
/// `ttyS0 -W- (EC p a) 4:64` (fs/proc/consoles.c).
#[must_use]
pub fn names(text: &str) -> Vec<&str> {
    let mut preferred = Vec::new();
    let mut others = Vec::new();
    for line in text.lines() {
        let Some(name) = line.split_whitespace().next() else {
            continue;
        };
        let Some((_, flags)) = line.split_once('(') else {
            continue;
        };
        let flags = flags.split(')').next().unwrap_or_default();
        // It becomes part of a path.
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_name || !flags.contains('E') || flags.contains('B') {
            continue;
        }
        if flags.contains('C') {
            preferred.push(name);
        } else {
            others.push(name);
        }
    }
    preferred.extend(others);
    preferred
}

/// The UART that is called `name`, whether a console or not; `None` if there is none that can be written to.
#[must_use]
pub fn named(name: &str) -> Option<SerialConsole> {
    // It becomes part of a path.
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| in_directory(Path::new(DIRECTORY), name))?
}

fn in_directory(directory: &Path, name: &str) -> Option<SerialConsole> {
    describe(name, |attribute| {
        let path = directory.join(name).join(attribute);
        let text = facts::read_limited(&path, ATTRIBUTE_MAX_BYTES).ok()?;
        String::from_utf8(text).ok()
    })
}

/// The console called `name`, of which `read` has the texts of the attributes; `None` if it is no UART that can
/// be written to.
pub fn describe(name: &str, mut read: impl FnMut(&str) -> Option<String>) -> Option<SerialConsole> {
    let mut text = |attribute: &str| Some(read(attribute)?.trim().to_owned());
    let base = text("iomem_base")?;
    let base = u64::from_str_radix(base.strip_prefix("0x")?, 16).ok()?;
    let mut decimal = |attribute: &str| text(attribute)?.parse::<u64>().ok();
    let (kind, io) = (decimal("type")?, decimal("io_type")?);
    let width_bytes = match io {
        UPIO_MEM => 1,
        UPIO_MEM32 => 4,
        _ => return None,
    };
    let kind = match kind {
        PORT_AMBA => SerialKind::Pl011,
        kind if PORTS_8250.contains(&kind) => SerialKind::Ns16550 {
            reg_shift: decimal("iomem_reg_shift").filter(|shift| *shift <= 4)?,
            width_bytes,
        },
        _ => return None,
    };
    (base != 0).then(|| SerialConsole {
        name: name.to_owned(),
        base,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_preferred_console_is_first_and_boot_consoles_are_left_out() {
        let text = "tty0                 -WU (E  p  )    4:1\n\
                    ttyS2                -W- (E  p a)    4:66\n\
                    ttyAMA0              -W- (EC p a)  204:64\n\
                    pl11                 -W- (EB p  )\n\
                    ttyS3                -W- (   p  )    4:67\n\
                    ../../x              -W- (EC p  )\n\
                    ttyS4\n\n";
        assert_eq!(names(text), ["ttyAMA0", "tty0", "ttyS2"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn what_sysfs_says_of_uarts_that_are_met() {
        let root = std::env::temp_dir().join(format!("kleap-{}-ttys", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let kinds = [
            // QEMU's virt; a Raspberry Pi's mini UART; a board's DesignWare UART above 4 GiB.
            (
                "ttyAMA0",
                "32",
                "2",
                "0x9000000",
                "0",
                Some(SerialKind::Pl011),
            ),
            (
                "ttyAMA1",
                "32",
                "3",
                "0x9000000",
                "0",
                Some(SerialKind::Pl011),
            ),
            (
                "ttyS1",
                "3",
                "2",
                "0x3F215040",
                "2",
                Some(SerialKind::Ns16550 {
                    reg_shift: 2,
                    width_bytes: 1,
                }),
            ),
            (
                "ttyS0",
                "4",
                "3",
                "0xFFFE660000",
                "2",
                Some(SerialKind::Ns16550 {
                    reg_shift: 2,
                    width_bytes: 4,
                }),
            ),
            // No memory; big-endian; another kind; not there; not to be believed.
            ("ttyS5", "4", "0", "0x0", "0", None),
            ("ttyS6", "4", "6", "0x9000000", "2", None),
            ("ttyLP0", "72", "3", "0x5a060000", "0", None),
            ("ttyS7", "0", "2", "0x0", "0", None),
            ("ttyS8", "4", "2", "0x9000000", "5", None),
            ("ttyS9", "4", "2", "9000000", "0", None),
            ("ttyS10", "4", "2", "0x10000000000000000", "0", None),
        ];
        for (name, kind, io, base, shift, _) in kinds {
            fs::create_dir_all(root.join(name)).unwrap();
            for (attribute, text) in [
                ("type", kind),
                ("io_type", io),
                ("iomem_base", base),
                ("iomem_reg_shift", shift),
            ] {
                fs::write(root.join(name).join(attribute), format!("{text}\n")).unwrap();
            }
        }
        let found: Vec<_> = kinds
            .iter()
            .map(|(name, ..)| in_directory(&root, name).map(|console| console.kind))
            .collect();
        let far = in_directory(&root, "ttyS0").unwrap().base;
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, kinds.map(|(.., wanted)| wanted));
        assert_eq!(far, 0xff_fe66_0000);
        assert_eq!(in_directory(&root, "tty0"), None);
    }
}
