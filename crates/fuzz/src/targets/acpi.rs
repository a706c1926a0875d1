//! ACPI tables.

use kleap_acpi::{Conduit, Error, MAX_REDISTRIBUTORS};

/// A table with the right signature, length and checksum.
fn repaired(data: &[u8], signature: &[u8; 4], least_bytes: usize) -> Vec<u8> {
    let mut table = data.to_vec();
    table.resize(data.len().max(least_bytes), 0);
    table[..4].copy_from_slice(signature);
    let length = u32::try_from(table.len()).unwrap();
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0_u8.wrapping_sub(sum);
    table
}

fn of_the_frame(error: &Error) -> bool {
    matches!(
        error,
        Error::Size { .. }
            | Error::Signature { .. }
            | Error::Checksum { .. }
            | Error::TooLarge { .. }
    )
}

/// How many redistributors a MADT names: in GICR structures, and in those of enabled CPUs.
fn named(madt: &[u8]) -> (usize, usize) {
    let (mut regions, mut cpus) = (0, 0);
    let mut rest = &madt[44..];
    while let [kind, length, ..] = *rest {
        let structure = &rest[..usize::from(length)];
        let zero = |from: usize| structure[from..from + 8].iter().all(|byte| *byte == 0);
        match kind {
            14 if !zero(4) => regions += 1,
            11 if structure[12] & 1 == 1 && !zero(60) => cpus += 1,
            _ => {}
        }
        rest = &rest[usize::from(length)..];
    }
    (regions, cpus)
}

fn madt(table: &[u8]) {
    match kleap_acpi::redistributors(table) {
        Ok(found) => {
            assert!(found.len() <= MAX_REDISTRIBUTORS);
            assert!(
                found
                    .iter()
                    .all(|range| !range.is_empty() && range.start().as_u64() != 0)
            );
            let (regions, cpus) = named(table);
            assert_eq!(found.len(), if regions > 0 { regions } else { cpus });
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn fadt(table: &[u8]) {
    if let Ok(found) = kleap_acpi::psci(table) {
        let expected = match table[129] & 3 {
            1 => Some(Conduit::Smc),
            3 => Some(Conduit::Hvc),
            _ => None,
        };
        assert_eq!(found, expected);
    }
}

fn spcr(table: &[u8]) {
    match kleap_acpi::console(table) {
        Ok(Some(console)) => {
            let base = u64::from_le_bytes(table[44..52].try_into().unwrap());
            assert!(base != 0 && console.base.as_u64() == base && table[40] == 0);
        }
        Ok(None) => assert!(table[44..52].iter().all(|byte| *byte == 0)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Every table as it is, as each of the three; then with signature, length and checksum set right.
pub fn run(data: &[u8]) {
    spcr(data);
    fadt(data);
    madt(data);
    for (signature, least_bytes, read) in [
        (b"SPCR", 80, spcr as fn(&[u8])),
        (b"FACP", 131, fadt),
        (b"APIC", 44, madt),
    ] {
        let mut table = repaired(data, signature, least_bytes);
        read(&table);
        let refused = match signature {
            b"SPCR" => kleap_acpi::console(&table).err(),
            b"FACP" => kleap_acpi::psci(&table).err(),
            _ => kleap_acpi::redistributors(&table).err(),
        };
        if let Some(error) = refused {
            assert!(
                !of_the_frame(&error),
                "{error} in a table whose frame is right"
            );
        }
        // One changed byte, and the checksum is wrong, or the signature or the length before it.
        let at = usize::from(data.first().copied().unwrap_or(0)) % table.len();
        table[at] ^= 0x10;
        assert!(kleap_acpi::console(&table).is_err());
        assert!(kleap_acpi::psci(&table).is_err());
        assert!(kleap_acpi::redistributors(&table).is_err());
    }
}
