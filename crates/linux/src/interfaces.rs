//! Network interfaces, and how they are brought down.
//!
//! Through `flags` in sysfs, which the kernel takes for what `SIOCSIFFLAGS` takes (`net/core/net-sysfs.c`): no socket and
//! no system call with a structure. The interfaces are those of the network namespace that sysfs was mounted in, for the
//! last program of a machine that of PID 1.

use crate::{Error, facts};
use std::path::Path;

/// What there is about each interface.
const DIRECTORY: &str = "/sys/class/net";
/// `IFF_UP` and `IFF_LOOPBACK` of include/uapi/linux/if.h.
const IFF_UP: u32 = 1 << 0;
const IFF_LOOPBACK: u32 = 1 << 3;
/// Most bytes of an attribute.
const ATTRIBUTE_MAX_BYTES: u64 = 64;

/// Brings every interface down that is up, but for the loopback. Gives what could not be done.
#[must_use]
pub fn bring_down() -> Vec<Error> {
    bring_down_in(Path::new(DIRECTORY))
}

fn bring_down_in(directory: &Path) -> Vec<Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // A kernel without networking.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Error::file("cannot read", directory, error)],
    };
    let mut failed = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path().join("flags");
        // Files that are no interfaces have none (bonding_masters).
        let Ok(text) = facts::read_limited(&path, ATTRIBUTE_MAX_BYTES) else {
            continue;
        };
        let Some(down) = flags_when_down(&String::from_utf8_lossy(&text)) else {
            continue;
        };
        if let Err(error) = std::fs::write(&path, format!("{down:#x}")) {
            failed.push(Error::file(
                "cannot bring an interface down by",
                &path,
                error,
            ));
        }
    }
    failed
}

/// The flags of an interface that is to be brought down; `None` if it is down, the loopback, or no interface.
#[must_use]
pub fn flags_when_down(text: &str) -> Option<u32> {
    let flags = u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()?;
    (flags & IFF_UP != 0 && flags & IFF_LOOPBACK == 0).then_some(flags & !IFF_UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_up_but_the_loopback() {
        let root = std::env::temp_dir().join(format!("kleap-{}-net", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for (name, before) in [("eth0", "0x1003\n"), ("lo", "0x9\n"), ("wlan0", "0x1002\n")] {
            std::fs::create_dir_all(root.join(name)).unwrap();
            std::fs::write(root.join(name).join("flags"), before).unwrap();
        }
        std::fs::write(root.join("bonding_masters"), "bond0").unwrap();
        assert!(bring_down_in(&root).is_empty());
        let after = |name: &str| std::fs::read_to_string(root.join(name).join("flags")).unwrap();
        assert_eq!(after("eth0"), "0x1002");
        assert_eq!(after("lo"), "0x9\n");
        assert_eq!(after("wlan0"), "0x1002\n");
        std::fs::remove_dir_all(&root).unwrap();
        assert!(bring_down_in(&root).is_empty());
    }

    #[test]
    fn what_is_no_number_is_left_alone() {
        for text in ["", "0x", "1003", "0x1003 x", "-0x1"] {
            assert_eq!(flags_when_down(text), None, "{text}");
        }
    }
}
