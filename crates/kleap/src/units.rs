//! Numbers for people.

/// Bytes with a decimal unit: `52.7 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} bytes");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count with its noun: `1 huge page`, `2 huge pages`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Seconds with a unit that leaves at least one digit before the point: `12.345 ms`.
pub(crate) fn seconds(value: f64) -> String {
    if value >= 1.0 {
        format!("{value:.3} s")
    } else if value >= 0.001 {
        format!("{:.3} ms", value * 1e3)
    } else {
        format!("{:.1} us", value * 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_951, "1.0 MB"),
            (52_700_000, "52.7 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn nouns() {
        assert_eq!(count(0, "huge page"), "0 huge pages");
        assert_eq!(count(1, "huge page"), "1 huge page");
        assert_eq!(count(2, "range"), "2 ranges");
    }

    #[test]
    fn times() {
        assert_eq!(seconds(1.5), "1.500 s");
        assert_eq!(seconds(0.0123456), "12.346 ms");
        assert_eq!(seconds(0.000_000_5), "0.5 us");
    }
}
