//! An end for every wait.
//!
//! Between two kernels a device that never answers would be a machine that never comes back. So whoever
//! polls asks a [`Deadline`] each time round. It goes by the counter; but nothing promises that the counter
//! runs, or that firmware has set its frequency, so there is a most of polls beside it, and a frequency that
//! makes no sense is replaced by [`FALLBACK_HZ`].

/// Polls after which a wait ends even if the counter stands still. A read of a device takes 10 ns or more,
/// so this is no less than the time of a byte at 300 baud.
pub const POLLS_MAX: u32 = 1 << 24;
/// Most that a frequency can be: that of the counter from Armv8.6 on (Arm ARM D12.1.2).
pub const HIGHEST_HZ: u64 = 1_000_000_000;
/// Taken for a frequency of 0 or above [`HIGHEST_HZ`]: with a counter of 1 GHz, deadlines are a tenth of
/// what they should be; with one of 10 MHz, ten times that.
pub const FALLBACK_HZ: u64 = 100_000_000;

/// A frequency that can be reckoned with.
#[must_use]
pub const fn frequency_or_fallback_hz(cntfrq: u64) -> u64 {
    if cntfrq == 0 || cntfrq > HIGHEST_HZ {
        FALLBACK_HZ
    } else {
        cntfrq
    }
}

/// When a wait ends; it begins when it is first asked.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    after_ms: u64,
    began: Option<u64>,
    polls_left: u32,
}

impl Deadline {
    /// So long after the first question.
    #[must_use]
    pub const fn after_ms(after_ms: u64) -> Self {
        Self {
            after_ms,
            began: None,
            polls_left: POLLS_MAX,
        }
    }

    /// Whether the wait has to end. `now` is `CNTVCT_EL0`, `cntfrq` is `CNTFRQ_EL0`.
    pub const fn is_over(&mut self, now: u64, cntfrq: u64) -> bool {
        let Some(began) = self.began else {
            self.began = Some(now);
            return false;
        };
        if self.polls_left == 0 {
            return true;
        }
        self.polls_left -= 1;
        let ticks = frequency_or_fallback_hz(cntfrq).saturating_mul(self.after_ms) / 1000;
        now.wrapping_sub(began) >= ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_the_counter() {
        let mut deadline = Deadline::after_ms(100);
        for (now, over) in [
            (u64::MAX - 1, false), // the counter may run over
            (97, false),
            (98, true),
            (1 << 40, true),
        ] {
            assert_eq!(deadline.is_over(now, 1000), over, "{now}");
        }
    }

    #[test]
    fn it_ends_where_the_counter_stands_still() {
        let mut deadline = Deadline::after_ms(100);
        let polls = (0..u64::MAX)
            .take_while(|_| !deadline.is_over(5, 24_000_000))
            .count();
        assert_eq!(polls, POLLS_MAX as usize + 1);
    }

    #[test]
    fn a_frequency_that_makes_no_sense_is_replaced() {
        for (cntfrq, ticks) in [
            (0, FALLBACK_HZ),
            (1, 1),
            (HIGHEST_HZ, HIGHEST_HZ),
            (HIGHEST_HZ + 1, FALLBACK_HZ),
            (u64::MAX, FALLBACK_HZ),
        ] {
            let mut deadline = Deadline::after_ms(1000);
            assert!(!deadline.is_over(0, cntfrq));
            assert!(!deadline.is_over(ticks - 1, cntfrq), "{cntfrq}");
            assert!(deadline.is_over(ticks, cntfrq), "{cntfrq}");
        }
    }
}
