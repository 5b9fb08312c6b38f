//! Words of arguments that several commands have: tags, times, quotes.

use std::time::Duration;

use nt_pool::{BadTag, TagPattern};

/// A tag as it is typed: quotes keep its blanks.
pub(crate) fn pattern(text: &str) -> Result<TagPattern, BadTag> {
    unquoted(text).parse()
}

/// The mark of a word that begins with a quote and does not end with one.
pub(crate) fn unclosed(text: &str) -> Option<char> {
    let mut left = text.trim_start();
    while let Some(first) = left.chars().next() {
        let end = match first {
            '\'' | '"' => match left[1..].find(first) {
                Some(end) => end + 2,
                None => return Some(first),
            },
            _ => left.find(char::is_whitespace).unwrap_or(left.len()),
        };
        left = left[end..].trim_start();
    }
    None
}

/// What stands between quotes, if it does.
pub(crate) fn unquoted(text: &str) -> &str {
    let quoted = |mark| text.strip_prefix(mark).and_then(|text| text.strip_suffix(mark));
    quoted('\'').or_else(|| quoted('"')).unwrap_or(text)
}

/// `500ms`, `30s`, `10m`, `2h`; a bare number is of seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    const LONGEST: u64 = 366 * 24 * 3_600_000;
    let time = number.checked_mul(milliseconds).filter(|time| *time <= LONGEST)?;
    Some(Duration::from_millis(time))
}
