//! What `check`, and the lock, ask Linux: lists of CPUs, locks, processes, huge pages, command lines, the holder.

use super::Draw;
use kleap_command::fuzzing;
use kleap_linux::facts::{self, InterruptController, LockHolder};
use kleap_linux::{hugepages, numa, pageflags, pin};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Most CPUs that a list may name (`CONFIG_NR_CPUS` on arm64), as the crate under attack has it too.
const CPUS_MAX: u128 = 4096;

/// The CPUs of a list, by wider arithmetic, one part after the other.
fn cpus_expected(text: &str) -> Option<Vec<u32>> {
    let mut expected = Vec::new();
    for part in text.trim().split(',') {
        let mut ends = part.splitn(2, '-').map(str::parse::<u32>);
        let first = ends.next()?.ok()?;
        let last = match ends.next() {
            Some(last) => last.ok()?,
            None => first,
        };
        let count = (u128::from(last) + 1).checked_sub(u128::from(first))?;
        if count == 0 || expected.len() as u128 + count > CPUS_MAX {
            return None;
        }
        expected.extend((0..count).map(|index| first + index as u32));
    }
    Some(expected)
}

/// A list of CPUs; what was read, written as Linux writes it, reads the same.
pub fn cpu_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let found = facts::parse_cpu_list(&text);
    assert_eq!(found, cpus_expected(&text));
    let Some(cpus) = found else { return };
    let mut printed = String::new();
    let mut rest = &cpus[..];
    while let Some((first, _)) = rest.split_first() {
        let run = rest
            .iter()
            .zip(*first..)
            .take_while(|(cpu, wanted)| *cpu == wanted)
            .count();
        let separator = if printed.is_empty() { "" } else { "," };
        let _ = match run {
            1 => write!(printed, "{separator}{first}"),
            _ => write!(printed, "{separator}{first}-{}", rest[run - 1]),
        };
        rest = &rest[run..];
    }
    assert_eq!(facts::parse_cpu_list(&(printed + "\n")), Some(cpus));
}

/// Mostly one of a few, so that lines agree with what is looked for.
fn few(draw: &mut Draw<'_>) -> u64 {
    match draw.below(8) {
        0 => draw.number(),
        number => number as u64 & 3,
    }
}

/// What stat(2) says of a device, by makedev(3).
fn device_number(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xffff_f000) << 32
        | (major & 0xfff) << 8
        | (minor & 0xffff_ff00) << 12
        | (minor & 0xff)
}

/// `/proc/locks` with lines of all kinds, of which it is known who has the lock; then the bytes as they are.
pub fn locks(data: &[u8]) {
    let mut draw = Draw::new(data);
    let (major, minor) = (few(&mut draw) as u32, few(&mut draw) as u32);
    let inode = few(&mut draw);
    let device = device_number(major, minor);
    let mut text = String::new();
    let mut expected = None;
    for line in 0..draw.below(12) {
        let kind = ["FLOCK", "POSIX", "OFDLCK", "LEASE", "FLOCK"][draw.below(5)];
        let access = ["READ", "WRITE"][draw.below(2)];
        let waits = draw.below(4) == 0;
        // What the kernel shows of a process in another namespace is 0, of a lock without one -1.
        let process = i64::from(draw.word32() as i32 >> draw.below(32));
        let found = if draw.flag() {
            (major, minor, inode)
        } else {
            let (major, minor) = (few(&mut draw) as u32, few(&mut draw) as u32);
            (major, minor, few(&mut draw))
        };
        let arrow = if waits { "-> " } else { "" };
        let _ = writeln!(
            text,
            "{line}: {arrow}{kind}  ADVISORY  {access} {process} \
             {:02x}:{:02x}:{} 0 EOF",
            found.0, found.1, found.2
        );
        let is_it = kind == "FLOCK" && !waits && found == (major, minor, inode);
        if is_it && expected.is_none() {
            expected = u32::try_from(process).ok();
        }
    }
    assert_eq!(facts::locker(&text, device, inode), expected, "{text}");
    let raw = String::from_utf8_lossy(draw.bytes(usize::MAX)).into_owned();
    if let Some(process) = facts::locker(&raw, device, inode) {
        assert!(raw.contains("FLOCK") && raw.contains(&process.to_string()));
    }
}

/// One of the small texts of `/proc` and of sysfs; the first byte says which.
pub fn proc(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = &*String::from_utf8_lossy(rest);
    match kind % 7 {
        0 => {
            let Some(holder) = LockHolder::from_stat(7, text) else {
                return;
            };
            let shown = holder.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            // A name with parentheses in it is a name all the same; all else follows the last one.
            let (_, after) = text.rsplit_once(')').unwrap();
            let is_stopped = after.trim_start().starts_with(['T', 't']);
            assert!(!is_stopped || shown.ends_with(", stopped)"));
        }
        1 => {
            let words = |start: &str| text.split_whitespace().any(|word| word.starts_with(start));
            let expected = match (words("GICv3"), words("GICv2") || words("GIC-")) {
                (true, _) => InterruptController::GicV3,
                (false, true) => InterruptController::GicV2,
                (false, false) => InterruptController::Other,
            };
            assert_eq!(facts::interrupt_controller_in(text), expected);
        }
        2 => {
            let has = facts::has_seccomp_filter_in(text);
            assert!(!has || text.contains("Seccomp:"));
            // The first line of that name counts, whatever follows it.
            let before = format!("Name:\tx\nSeccomp:\t2\n{text}");
            assert!(facts::has_seccomp_filter_in(&before));
            assert!(!facts::has_seccomp_filter_in(&before.replace("\t2", "\t0")));
        }
        3 => {
            let is_identity = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(facts::maps_all_users(text), is_identity == "0 0 4294967295");
        }
        4 => {
            if let Some(size_bytes) = hugepages::demote_size_in(text) {
                assert_eq!(size_bytes % 1024, 0);
                let said = format!("{}kB\n", size_bytes / 1024);
                assert_eq!(hugepages::demote_size_in(&said), Some(size_bytes));
            }
        }
        5 => {
            if let Some(node) = numa::node_in_name(text) {
                assert!(node < 1024);
                assert_eq!(numa::node_in_name(&format!("node{node}")), Some(node));
            }
        }
        _ => {
            if let Some(method) = pin::Method::from_name(text) {
                assert_eq!(method.name(), text);
            }
            let order = pin::Method::in_order(text);
            assert!(order[0] != order[1], "both are tried");
        }
    }
}

/// Where huge pages begin, as `/proc/kpageflags` says, by a look at every page frame.
pub fn huge_pages(data: &[u8]) {
    const COMPOUND_HEAD: u64 = 1 << 15;
    const HUGE: u64 = 1 << 17;
    const FRAMES: u64 = 512;
    let mut draw = Draw::new(data);
    let page_size_bytes = [4096, 16384, 65536][draw.below(3)];
    let size_bytes = page_size_bytes << draw.below(9);
    // Now and then where addresses end.
    let base = match draw.below(8) {
        0 => (u64::MAX - FRAMES * page_size_bytes + 1) / size_bytes * size_bytes,
        _ => size_bytes * draw.below(4) as u64,
    };
    let mut ranges = PhysRanges::new();
    for _ in 0..draw.below(5) {
        let start = u64::from(draw.word32()) % (FRAMES * page_size_bytes);
        let length = u64::from(draw.word32()) % (FRAMES * page_size_bytes - start);
        // A whole number of pages, or not.
        let mask = if draw.flag() {
            !0
        } else {
            !(page_size_bytes - 1)
        };
        let range = PhysRange::from_size(PhysAddr::new(base + (start & mask)), length & mask);
        ranges.insert(range.unwrap());
    }
    let flags: Vec<u64> = (0..draw.below(64)).map(|_| draw.word()).collect();
    let flags_of = |frame: u64| {
        let index = usize::try_from(frame % 61).unwrap();
        flags.get(index).copied().unwrap_or(HUGE | COMPOUND_HEAD)
    };
    let found = pageflags::huge_pages_in(&ranges, size_bytes, page_size_bytes, |word, offset| {
        assert_eq!(offset % 8, 0);
        *word = flags_of(offset / 8).to_le_bytes();
        Ok(())
    })
    .expect("nothing fails");
    let expected: BTreeSet<PhysAddr> = (0..FRAMES * page_size_bytes / size_bytes)
        .filter_map(|page| base.checked_add(page * size_bytes))
        .filter(|start| {
            flags_of(start / page_size_bytes) & (HUGE | COMPOUND_HEAD) == HUGE | COMPOUND_HEAD
        })
        .map(PhysAddr::new)
        .filter(|start| {
            PhysRange::from_size(*start, size_bytes)
                .is_ok_and(|page| ranges.iter().any(|range| range.contains_range(page)))
        })
        .collect();
    assert_eq!(found, expected, "{size_bytes} in {ranges}");
}

/// The running kernel's command line, as it is used again; any text that is shown.
pub fn command_line(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let reused = fuzzing::without_boot_image(&text);
    assert_eq!(fuzzing::without_boot_image(&reused), reused);
    let is_ours = |word: &&str| !word.is_empty() && !word.starts_with("BOOT_IMAGE=");
    assert!(
        text.split(' ')
            .filter(is_ours)
            .eq(reused.split(' ').filter(|word| !word.is_empty()))
    );
    assert!(reused.len() <= text.len());
    let shown = fuzzing::printable(&text);
    assert!(!shown.chars().any(char::is_control));
    assert_eq!(shown.chars().count(), text.chars().count());
}

/// The line with which the holder answers `load`, and any reason of a failure that it puts into one.
pub fn holder_answer(data: &[u8]) {
    use kleap_linux::holder;
    let text = String::from_utf8_lossy(data);
    match holder::ready(&text) {
        Ok(method) => assert_eq!(text, format!("ready {method}")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // Now and then longer than a line may be.
    let times = if data.len().is_multiple_of(16) { 10 } else { 1 };
    let line = holder::failed(&text.repeat(times));
    assert!(!line.contains('\n') && line.len() <= 4096);
    let error = holder::ready(&line).expect_err("a failure is none the less one");
    assert!(error.to_string().len() >= line.len() - "error ".len());
}
