//! How kd writes numbers, times and strings of the target.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use jiff::Zoned;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

use crate::schema::hexadecimal;

/// The size of the target's pointers, which decides how addresses are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// Of 32 bits.
    Four,
    /// Of 64 bits.
    #[default]
    Eight,
}

impl Width {
    /// 4 is four; all else is eight.
    pub fn of(pointer_size: u8) -> Self {
        if pointer_size == 4 { Self::Four } else { Self::Eight }
    }

    /// 4 or 8.
    pub fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// 32-bit addresses travel sign-extended or not; here they have one form.
    pub fn address(self, value: u64) -> u64 {
        match self {
            Self::Four => value & 0xffff_ffff,
            Self::Eight => value,
        }
    }

    /// As extensions print pointers: `fffff8a005800000`, `982a8fe0`.
    pub fn pointer(self, value: u64) -> String {
        match self {
            Self::Four => format!("{:08x}", value as u32),
            Self::Eight => format!("{value:016x}"),
        }
    }

    /// As the debugger prints addresses: ``fffff8a0`05800000``, `982a8fe0`.
    pub fn tick(self, value: u64) -> String {
        match self {
            Self::Four => format!("{:08x}", value as u32),
            Self::Eight => tick(value),
        }
    }

    /// Whether an address can be the kernel's: the first half of the address space belongs to processes.
    pub fn is_kernel(self, address: u64) -> bool {
        match self {
            Self::Four => self.address(address) > 0x7fff_ffff,
            // The bits above the 48th are copies of it.
            Self::Eight => address >= 0xffff_8000_0000_0000,
        }
    }
}

/// 64 bits with kd's backtick.
pub fn tick(value: u64) -> String {
    format!("{:08x}`{:08x}", value >> 32, value as u32)
}

/// An address, or another 64-bit number that may pass 2^53: a hex string in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl JsonSchema for Hex {
    fn schema_name() -> Cow<'static, str> {
        "Hex".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        hexadecimal(generator)
    }
}

/// Text of the target on a terminal: control characters become visible, so that a target cannot move the cursor,
/// change colours or hide what it says. Line ends and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    let dangerous = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(dangerous) {
        return text.into();
    }
    let mut visible = String::with_capacity(text.len());
    for c in text.replace("\r\n", "\n").chars() {
        match c {
            c if !dangerous(c) => visible.push(c),
            '\x7f' => visible.push_str("^?"),
            c if c < ' ' => {
                visible.push('^');
                visible.push((c as u8 ^ 0x40) as char);
            }
            c => {
                let _ = write!(visible, "\\u{{{:x}}}", c as u32);
            }
        }
    }
    visible.into()
}

/// Names come from the target: on one line, whatever they hold.
pub fn visible_name(text: &str) -> String {
    visible(text).replace(['\n', '\t'], " ")
}

/// `Wed Mar 19 20:56:31.371 2014 (UTC + 1:00)`
pub fn time(when: &Zoned) -> String {
    let offset = when.offset().seconds();
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    format!(
        "{}.{:03} {} (UTC {sign} {}:{:02})",
        when.strftime("%a %b %e %H:%M:%S"),
        when.subsec_nanosecond() / 1_000_000,
        when.year(),
        minutes / 60,
        minutes % 60
    )
}

/// A quantity for people: `164 KB`, `8 MB`.
pub fn in_bytes(bytes: u64) -> String {
    match bytes {
        ..1024 => format!("{bytes} bytes"),
        1024..0xa0_0000 => format!("{} KB", bytes >> 10),
        0xa0_0000..0x2_8000_0000 => format!("{} MB", bytes >> 20),
        _ => format!("{} GB", bytes >> 30),
    }
}

/// A time for people, with two figures or three: `120 ms`, `3.4 s`, `45 s`, `12 min`, `3.5 h`.
pub fn lasting(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.995 => format!("{} ms", (seconds * 1000.0).round()),
        ..9.95 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Words between blanks. Blanks between quotes are kept, and so are the quotes.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut left = text.trim_start();
    std::iter::from_fn(move || {
        let quote = left.starts_with(['\'', '"']).then(|| left[1..].find(&left[..1])).flatten();
        let length = quote.map_or_else(|| left.find(char::is_whitespace).unwrap_or(left.len()), |end| end + 2);
        let (word, after) = left.split_at(length);
        left = after.trim_start();
        (!word.is_empty()).then_some(word)
    })
}

/// A name that can be a file's anywhere: letters, digits, `_`, `-` and `.`.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_quantities_for_people() {
        for (ms, text) in [
            (0, "0 ms"),
            (4, "4 ms"),
            (990, "990 ms"),
            (1000, "1.0 s"),
            (3440, "3.4 s"),
            (45_200, "45 s"),
            (720_000, "12 min"),
            (12_600_000, "3.5 h"),
        ] {
            assert_eq!(lasting(Duration::from_millis(ms)), text);
        }
        for (bytes, text) in
            [(12, "12 bytes"), (164 << 10, "164 KB"), (8 << 20, "8192 KB"), (64 << 20, "64 MB"), (32 << 30, "32 GB")]
        {
            assert_eq!(in_bytes(bytes), text);
        }
    }

    #[test]
    fn addresses_have_the_targets_width() {
        assert_eq!(Width::Eight.pointer(0xfffff8a005800000), "fffff8a005800000");
        assert_eq!(Width::Eight.tick(0xfffff8a005800000), "fffff8a0`05800000");
        assert_eq!(Width::Four.tick(0xffffffff_982a8fe0), "982a8fe0");
        assert!(Width::Four.is_kernel(0x982a8fe0) && !Width::Four.is_kernel(0x10));
        assert!(Width::Eight.is_kernel(0xfffff8a005800000) && !Width::Eight.is_kernel(0x9090909090909090));
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(visible("a\x1b[2Jb\r\nc\rd\u{9b}\u{202e}"), "a^[[2Jb\nc^Md\\u{9b}\\u{202e}");
        assert_eq!(visible("plain\ttext\n"), "plain\ttext\n");
    }

    #[test]
    fn times_are_kds() {
        let when: Zoned = "2014-03-19T20:56:31.371+01:00[+01:00]".parse().unwrap();
        assert_eq!(time(&when), "Wed Mar 19 20:56:31.371 2014 (UTC + 1:00)");
        let when: Zoned = "2025-12-09T02:30:50.424-08:00[-08:00]".parse().unwrap();
        assert_eq!(time(&when), "Tue Dec  9 02:30:50.424 2025 (UTC - 8:00)");
    }
}
