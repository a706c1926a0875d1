//! Memory near the CPU that jumps.
//!
//! The relocator and the first part of the next kernel run on one CPU, and the next kernel's text stays
//! where it is put. On a machine with several NUMA nodes that should be memory of this CPU's node.
//!
//! Growing a pool takes a node in sysfs ([`crate::hugepages::Pool::grow`]). Which page of the pool a file
//! gets is decided by the memory policy of the thread that allocates it: hugetlbfs has no policy of its own
//! for fallocate(2).
//!
//! Rejected: mbind(2) on the mapping. hugetlbfs ignores it in fallocate(2), and touching the pages instead
//! ends in SIGBUS where the pool is too small.

use crate::Error;
use rustix::io::Errno;
use std::marker::PhantomData;
use std::path::Path;

/// `MPOL_PREFERRED` (`include/uapi/linux/mempolicy.h`): this node first, then the others.
const MPOL_PREFERRED: i32 = 1;
/// Most nodes that Linux can have: `CONFIG_NODES_SHIFT` is at most 10.
const NODES_MAX: u32 = 1024;
const WORDS: usize = (NODES_MAX / u64::BITS) as usize;
/// The kernel takes one off the number of bits that it is told.
const MASK_BITS: libc::c_ulong = NODES_MAX as libc::c_ulong + 1;

/// The NUMA node of the CPU on which the kernel will jump: see [`crate::facts::reboot_cpu`]. `None`
/// without NUMA.
#[must_use]
pub fn boot_cpu_node() -> Option<u32> {
    let cpu = crate::facts::reboot_cpu();
    node_in(&Path::new("/sys/devices/system/cpu").join(format!("cpu{cpu}")))
}

/// The node whose link is in a CPU's directory.
fn node_in(directory: &Path) -> Option<u32> {
    std::fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| node_in_name(entry.file_name().to_str()?))
}

/// The node that a link in sysfs stands for: `node3` is 3.
#[must_use]
pub fn node_in_name(name: &str) -> Option<u32> {
    let node = name.strip_prefix("node")?.parse().ok()?;
    (node < NODES_MAX).then_some(node)
}

/// A thread's memory policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    mode: i32,
    nodes: [u64; WORDS],
}

impl Policy {
    fn of_this_thread() -> Result<Self, Errno> {
        let (mut mode, mut nodes) = (0_i32, [0_u64; WORDS]);
        // SAFETY: both pointers are to live memory of the sizes that the call is told; without an address
        // and flags it writes the thread's own policy there and nothing else.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                nodes.as_mut_ptr(),
                MASK_BITS,
                std::ptr::null::<u8>(),
                0_usize,
            )
        };
        answered(answer)?;
        Ok(Self { mode, nodes })
    }

    fn set(&self) -> Result<(), Errno> {
        // SAFETY: the kernel only reads the mask, which has the size that the call is told.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_set_mempolicy,
                self.mode,
                self.nodes.as_ptr(),
                MASK_BITS,
            )
        };
        answered(answer)
    }
}

fn answered(answer: libc::c_long) -> Result<(), Errno> {
    if answer == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(error
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error))
}

/// This thread prefers memory of one node while this lives; then it has the policy again that it had.
///
/// A policy belongs to a thread, so this stays in the thread that made it.
#[derive(Debug)]
pub struct PreferredNode {
    before: Policy,
    _this_thread: PhantomData<*const ()>,
}

impl Drop for PreferredNode {
    fn drop(&mut self) {
        // It was accepted before. Should it no longer be, this thread prefers a node: no harm.
        let _ = self.before.set();
    }
}

/// Makes this thread take memory from `node` where it has some; also pages of a pool.
///
/// # Errors
/// If there is no such node, or the kernel has no memory policies (CONFIG_NUMA).
pub fn prefer_node(node: u32) -> Result<PreferredNode, Error> {
    let failed = |source| Error::Call {
        call: format!("set_mempolicy(MPOL_PREFERRED, node {node})"),
        source,
    };
    let before = Policy::of_this_thread().map_err(failed)?;
    let mut nodes = [0; WORDS];
    let word = usize::try_from(node / u64::BITS).unwrap_or(usize::MAX);
    *nodes.get_mut(word).ok_or_else(|| failed(Errno::INVAL))? = 1 << (node % u64::BITS);
    let wanted = Policy {
        mode: MPOL_PREFERRED,
        nodes,
    };
    wanted.set().map_err(failed)?;
    Ok(PreferredNode {
        before,
        _this_thread: PhantomData,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_the_node() {
        let directory = std::env::temp_dir().join(format!("kleap-numa-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("nodes")).unwrap();
        assert_eq!(node_in(&directory), None);
        std::fs::create_dir(directory.join("node17")).unwrap();
        assert_eq!(node_in(&directory), Some(17));
        std::fs::rename(directory.join("node17"), directory.join("node1024")).unwrap();
        assert_eq!(node_in(&directory), None, "more than there can be");
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(node_in(&directory), None);
    }

    #[test]
    fn the_policy_is_restored() {
        let before = match Policy::of_this_thread() {
            Err(Errno::NOSYS) => {
                eprintln!("SKIPPED: no memory policies here (no CONFIG_NUMA, or emulation)");
                return;
            }
            policy => policy.unwrap(),
        };
        // Node 0 always exists; a node is not needed to prefer it.
        let preferred = prefer_node(0).unwrap();
        let during = Policy::of_this_thread().unwrap();
        assert_eq!((during.mode, during.nodes[0]), (MPOL_PREFERRED, 1));
        drop(preferred);
        assert_eq!(Policy::of_this_thread().unwrap(), before);
    }

    #[test]
    fn a_node_that_is_not_there_is_refused() {
        for node in [NODES_MAX - 1, NODES_MAX, u32::MAX] {
            let error = prefer_node(node).unwrap_err().to_string();
            assert!(error.contains(&node.to_string()), "{error}");
        }
    }
}
