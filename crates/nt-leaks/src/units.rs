//! Numbers as people say them: three digits and a unit. Exact ones are in JSON.

const STEP: f64 = 1024.0;

/// `512 bytes`, `3.9 MB`, `197 MB`; a KB has 1024 bytes, as in Windows.
pub fn bytes(count: f64) -> String {
    let sign = if count < 0.0 { "-" } else { "" };
    let mut value = count.abs();
    if value < STEP {
        return format!("{sign}{value:.0} bytes");
    }
    let mut unit = "";
    for next in ["KB", "MB", "GB", "TB", "PB", "EB"] {
        if value < 999.5 && !unit.is_empty() {
            break;
        }
        (value, unit) = (value / STEP, next);
    }
    match value < 9.95 {
        true => format!("{sign}{value:.1} {unit}"),
        false => format!("{sign}{value:.0} {unit}"),
    }
}

/// `250 ms`, `4.2 s`, `12 min`, `11 h`, `9 days`.
pub fn time(milliseconds: f64) -> String {
    let ms = milliseconds.max(0.0);
    let (seconds, minutes, hours) = (ms / 1000.0, ms / 60_000.0, ms / 3_600_000.0);
    match () {
        () if ms < 999.5 => format!("{ms:.0} ms"),
        () if seconds < 9.95 => format!("{seconds:.1} s"),
        () if seconds < 99.5 => format!("{seconds:.0} s"),
        () if minutes < 99.5 => format!("{minutes:.0} min"),
        () if hours < 47.5 => format!("{hours:.0} h"),
        () if hours < 24.0 * 730.0 => format!("{:.0} days", hours / 24.0),
        () => "years".into(),
    }
}

/// `1 check`, `4 checks`
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let shown = [0.0, 512.0, 1023.0, 1024.0, 10.0 * 1024.0, 1_024_000.0, 206_569_472.0, -4e6, 1.4e11].map(bytes);
        let words = ["0 bytes", "512 bytes", "1023 bytes", "1.0 KB", "10 KB", "1.0 MB", "197 MB", "-3.8 MB", "130 GB"];
        assert_eq!(shown, words);
        assert_eq!(bytes(1_023_900.0), "1.0 MB");
    }

    /// What takes less than a second does not take none.
    #[test]
    fn times_have_the_unit_that_people_use() {
        let shown = [0.4, 12.0, 999.0, 999.7, 4200.0, 42_000.0, 99_600.0, 720_000.0, 3.96e7, 8e8, 1e12].map(time);
        let words = ["0 ms", "12 ms", "999 ms", "1.0 s", "4.2 s", "42 s", "2 min", "12 min", "11 h", "9 days", "years"];
        assert_eq!(shown, words);
    }
}
