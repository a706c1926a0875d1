//! The generic timer's virtual counter: the one clock that both kernels and the relocator share.
//!
//! `CNTVCT_EL0` counts from power-on (or from the start of the virtual machine) at the constant rate in
//! `CNTFRQ_EL0`, and a hand-over does not touch it. Linux lets EL0 read both.

/// Counts now, or `None` on a machine that is not arm64.
#[must_use]
pub fn now() -> Option<u64> {
    #[cfg(target_arch = "aarch64")]
    {
        let value: u64;
        // SAFETY: reads the counter; Linux enables it for EL0 (CNTKCTL_EL1.EL0VCTEN) or emulates it.
        unsafe {
            core::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack));
        }
        Some(value)
    }
    #[cfg(not(target_arch = "aarch64"))]
    None
}
