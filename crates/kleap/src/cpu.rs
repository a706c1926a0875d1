//! What the CPU can run.
//!
//! A kernel built for a page size that the CPU does not have loops for ever in its first instructions,
//! without a word. The register that tells (`ID_AA64MMFR0_EL1`) is hidden from EL0, and Linux' emulation of
//! it hides the very fields. So: the running kernel's page size is certain; for others the CPU's model is
//! looked up, as far as models are known to lack one; and what remains unknown is left to the relocator,
//! which reads the register before it touches anything and resets the machine with a line that says why.

/// What is known about a page size on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It runs.
    Yes,
    /// It does not.
    No,
    /// Nobody told us.
    Unknown,
}

/// Arm's implementer code in `MIDR_EL1`.
const ARM: u64 = 0x41;
/// Apple's.
const APPLE: u64 = 0x61;
/// Part numbers of Arm's cores whose `ID_AA64MMFR0_EL1.TGran16` is 0 (their Technical Reference Manuals):
/// Cortex-A53, A57, A72.
const ARM_WITHOUT_16K: [u64; 3] = [0xd03, 0xd07, 0xd08];
/// Neoverse N1 and Cortex-A76 up: all granules. The oldest of Arm's parts with 16 KiB pages are the
/// Cortex-A55 and A75.
const ARM_WITH_ALL: [u64; 16] = [
    0xd05, 0xd0a, 0xd0b, 0xd0c, 0xd0d, 0xd0e, 0xd40, 0xd41, 0xd44, 0xd46, 0xd47, 0xd48, 0xd49,
    0xd4a, 0xd4b, 0xd4f,
];

/// Whether a CPU with this `MIDR_EL1`, which runs a kernel of `running_bytes` pages, runs one of
/// `wanted_bytes` pages.
pub(crate) fn page_size_support(
    midr: Option<u64>,
    running_bytes: u64,
    wanted_bytes: u64,
) -> Support {
    if running_bytes == wanted_bytes {
        return Support::Yes;
    }
    let Some(midr) = midr else {
        return Support::Unknown;
    };
    let (implementer, part) = (midr >> 24 & 0xff, midr >> 4 & 0xfff);
    match (implementer, wanted_bytes) {
        (ARM, 16384) if ARM_WITHOUT_16K.contains(&part) => Support::No,
        (ARM, 4096 | 65536) if ARM_WITHOUT_16K.contains(&part) => Support::Yes,
        (ARM, _) if ARM_WITH_ALL.contains(&part) => Support::Yes,
        (APPLE, 65536) => Support::No,
        (APPLE, 4096 | 16384) => Support::Yes,
        _ => Support::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_models() {
        let cortex_a57 = Some(0x411f_d070);
        let neoverse_n1 = Some(0x414f_d0c1);
        let qemu_max = Some(0x000f_0510);
        for (midr, running, wanted, answer) in [
            (cortex_a57, 4096, 4096, Support::Yes),
            (cortex_a57, 4096, 16384, Support::No),
            (cortex_a57, 4096, 65536, Support::Yes),
            (neoverse_n1, 4096, 16384, Support::Yes),
            (qemu_max, 4096, 16384, Support::Unknown),
            (qemu_max, 16384, 16384, Support::Yes),
            (None, 4096, 65536, Support::Unknown),
        ] {
            assert_eq!(
                page_size_support(midr, running, wanted),
                answer,
                "{midr:x?} {wanted}"
            );
        }
    }
}
