//! What is said of several measurements of the same thing: median, least, most.
//!
//! Not the mean: one stall of the host moves it, and says nothing about what is measured. No standard
//! deviation either, because such times are not normally distributed; the two ends say more.

use serde_json::{Value, json};

/// A set of measurements, none of them NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// How many.
    pub(crate) count: usize,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// `None` where there is nothing to summarise.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper)
        } else {
            upper
        };
        Some(Self {
            count: values.len(),
            median,
            min: *values.first()?,
            max: *values.last()?,
        })
    }

    /// `{"count": ..., "median": ..., "min": ..., "max": ...}`.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "count": self.count,
            "median": self.median,
            "min": self.min,
            "max": self.max,
        })
    }
}

/// One median over another; `None` where one is missing or the divisor is 0.
pub(crate) fn ratio(this: Option<Summary>, other: Option<Summary>) -> Option<f64> {
    let ratio = this?.median / other?.median;
    ratio.is_finite().then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN]), None);
        let one = Summary::of([2.0]).unwrap();
        assert_eq!(
            (one.count, one.median, one.min, one.max),
            (1, 2.0, 2.0, 2.0)
        );
        let odd = Summary::of([9.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 9.0));
        let even = Summary::of([4.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!((even.count, even.median), (4, 3.0));
    }

    #[test]
    fn every_permutation_has_the_same_summary() {
        let expected = Summary::of([1.0, 2.0, 3.0, 4.0]);
        for first in 1..=4 {
            for second in (1..=4).filter(|&value| value != first) {
                for third in (1..=4).filter(|&value| value != first && value != second) {
                    let fourth = 10 - first - second - third;
                    let values = [first, second, third, fourth].map(f64::from);
                    assert_eq!(Summary::of(values), expected, "{values:?}");
                }
            }
        }
    }

    #[test]
    fn ratios() {
        let summary = |value: f64| Summary::of([value]);
        assert_eq!(ratio(summary(1.0), summary(4.0)), Some(0.25));
        assert_eq!(ratio(summary(1.0), summary(0.0)), None);
        assert_eq!(ratio(summary(1.0), None), None);
        assert_eq!(ratio(None, summary(1.0)), None);
    }
}
