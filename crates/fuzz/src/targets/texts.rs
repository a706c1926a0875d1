//! Texts of Linux: `/proc`, `/sys`, the kernel log.

use super::Draw;
use kleap_linux::{crash, facts, hugepages, kernel_log, kexec, memory_blocks};
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges};
use kleap_plan::kexec_cost::{self, KernelVersion, KexecCostInput};
use std::path::Path;

/// A record of `/dev/kmsg`; what was read, written again, reads the same.
pub fn kernel_log(data: &[u8]) {
    let Some(record) = kernel_log::parse(data) else {
        return;
    };
    assert!(!record.text.contains('\n'));
    let line = format!("6,1,{},-;{}\n SUBSYSTEM=x\n", record.time_us, record.text);
    assert_eq!(kernel_log::parse(line.as_bytes()).as_ref(), Some(&record));
    if kernel_log::is_init_line(&record.text) {
        assert!(record.text.len() >= "Run  as init process".len());
    }
}

/// A core file, read as `/proc/kcore` is.
pub fn vmcoreinfo(data: &[u8]) {
    let mut read_bytes = 0;
    let found = facts::vmcoreinfo_in(|range| {
        let part = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok())
            .and_then(|(start, end)| data.get(start..end))
            .ok_or(kleap_linux::Error::NoAddresses)?;
        read_bytes += part.len();
        Ok(part.to_vec())
    });
    match found {
        Ok(text) => {
            // A byte that is no UTF-8 becomes three.
            assert!(text.len() <= 3 * data.len());
            let bits = facts::number_in_vmcoreinfo(&text, "VA_BITS");
            if let Some(bits) = bits {
                assert!(text.contains("NUMBER(VA_BITS)="));
                let line = format!("NUMBER(VA_BITS)={bits}\n");
                assert_eq!(facts::number_in_vmcoreinfo(&line, "VA_BITS"), Some(bits));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // Each header of a note names a part, and each may name all of the file.
    assert!(read_bytes <= data.len() * (2 + data.len() / 56));
}

/// What a load for a panic reads: places of notes, as sysfs prints them, and where memory is mapped, from a core file.
/// The first byte says which.
pub fn crash(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    if kind % 2 == 0 {
        let text = &*String::from_utf8_lossy(rest);
        if let Some(note) = crash::vmcoreinfo_note_in(text) {
            assert!((1..=crash::NOTE_MAX_BYTES).contains(&note.size_bytes()));
            // As the kernel prints it.
            let again = format!("{:#018x} {:x}\n", note.start().as_u64(), note.size_bytes());
            assert_eq!(crash::vmcoreinfo_note_in(&again), Some(note));
        }
        let (address, size) = text.split_once('\n').unwrap_or((text, "424"));
        if let Some(note) = crash::note_range(address, size.parse().ok()) {
            let again = format!("{:x}", note.start().as_u64());
            assert_eq!(
                crash::note_range(&again, Some(note.size_bytes())),
                Some(note)
            );
        }
        return;
    }
    let mut read_bytes = 0;
    let found = crash::mapped_memory_in(|range| {
        let start = usize::try_from(range.start).ok()?;
        let part = rest.get(start..usize::try_from(range.end).ok()?)?;
        read_bytes += part.len();
        Some(part.to_vec())
    });
    // The headers, once.
    assert!(read_bytes <= 64 + rest.len());
    assert!(found.len() <= rest.len() / 56);
    for mapped in found {
        assert_ne!(mapped.range.start().as_u64(), u64::MAX);
    }
}

fn is_uneven(text: &str) -> bool {
    text.trim() != text
}

/// One of the small texts; the first byte says which.
pub fn sysfs(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = &*String::from_utf8_lossy(rest);
    match kind % 6 {
        0 => {
            if let Ok(memory) = facts::memory_in(text) {
                assert!(memory.total_bytes % 1024 == 0 && memory.available_bytes % 1024 == 0);
                assert!(text.contains("MemTotal:") && text.contains("MemAvailable:"));
            }
            let corrupted = facts::corrupted_bytes_in(text);
            assert!(corrupted.is_none_or(|bytes| bytes % 1024 == 0));
        }
        1 => {
            if let Some(mode) = kexec::lockdown_in(text) {
                assert!(!mode.contains(']') && text.contains(&format!("[{mode}]")));
            }
        }
        2 => {
            if let Some(midr) = facts::midr_in(text) {
                assert_eq!(facts::midr_in(&format!("{midr:#018x}\n")), Some(midr));
            }
        }
        3 => {
            let (size, number) = text.split_once('\n').unwrap_or((text, "1f"));
            if let Ok(range) = memory_blocks::block_range(Path::new("/sys/x"), size, number) {
                let size_bytes = u64::from_str_radix(size.trim(), 16).unwrap();
                assert_eq!(range.size_bytes(), size_bytes);
                assert!(size_bytes == 0 || range.start().as_u64() % size_bytes == 0);
            }
        }
        4 => {
            if let Some(size_bytes) = hugepages::size_of_directory(text) {
                assert!(size_bytes.is_power_of_two() && size_bytes >= 1024);
                let name = format!("hugepages-{}kB", size_bytes / 1024);
                assert_eq!(hugepages::size_of_directory(&name), Some(size_bytes));
            }
        }
        _ => {
            if let Ok(count) = hugepages::count_in(Path::new("/sys/x"), text) {
                assert!(
                    is_uneven(text)
                        || text.trim_start_matches('+').trim_start_matches('0').len() <= 20
                );
                let said = format!("{count}\n");
                assert_eq!(
                    hugepages::count_in(Path::new("/sys/x"), &said).ok(),
                    Some(count)
                );
            }
        }
    }
}

/// A release and a command line, and a machine of any kind: a prediction comes, and its bounds are bounds.
pub fn kexec_cost(data: &[u8]) {
    let mut draw = Draw::new(data);
    let page_size_bytes = [4096, 16384, 65536, draw.number()][draw.below(4)];
    let compiled = draw.flag().then(|| draw.below(64) as u32);
    let virtual_address_bits = if draw.flag() {
        48
    } else {
        draw.below(65) as u32
    };
    let mut system_ram = PhysRanges::new();
    for _ in 0..draw.below(5) {
        if let Ok(range) = PhysRange::from_size(PhysAddr::new(draw.number()), draw.number()) {
            system_ram.insert(range);
        }
    }
    let (total_bytes, available_bytes) = (draw.number(), draw.number());
    let release_bytes = draw.below(24);
    let release = String::from_utf8_lossy(draw.bytes(release_bytes)).into_owned();
    let command_line = String::from_utf8_lossy(draw.bytes(usize::MAX)).into_owned();
    let kernel = KernelVersion::parse(&release);
    if let Some(kernel) = kernel {
        assert_eq!(KernelVersion::parse(&kernel.to_string()), Some(kernel));
    }
    let predicted = kexec_cost::predict(&KexecCostInput {
        kernel,
        page_size_bytes,
        compiled_virtual_address_bits: compiled,
        virtual_address_bits,
        system_ram: &system_ram,
        command_line: &command_line,
        total_bytes,
        available_bytes,
    });
    match predicted {
        Ok(cost) => {
            assert!(cost.tables.at_least <= cost.tables.at_most);
            assert!(cost.bytes.at_least <= cost.bytes.at_most);
            for hazard in &cost.hazards {
                assert!(!hazard.to_string().is_empty() && !hazard.remedy().is_empty());
            }
        }
        Err(error) => {
            assert!(!matches!(page_size_bytes, 4096 | 16384 | 65536), "{error}");
        }
    }
}
