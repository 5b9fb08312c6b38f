//! Pool tags and the patterns kd's commands take.

use std::fmt;
use std::str::FromStr;

/// Four characters that name an allocation's owner, in memory order. Without the protected bit: it is part of a
/// block's state, not of its owner's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub [u8; 4]);

/// PROTECTED_POOL: the block can only be freed by someone who quotes the tag.
const PROTECTED: u32 = 0x8000_0000;

impl Tag {
    /// A tag as the kernel stores it, and whether the protected bit was set.
    pub fn from_key(key: u32) -> (Tag, bool) {
        (Tag((key & !PROTECTED).to_le_bytes()), key & PROTECTED != 0)
    }

    /// The number a kernel compares, without the protected bit.
    pub fn key(self) -> u32 {
        u32::from_le_bytes(self.0) & !PROTECTED
    }

    /// Whether somebody could have typed it: at least three of its characters can be printed, as all shall (documented of
    /// ExAllocatePoolWithTag), and a few drivers' last one cannot.
    pub fn is_typed(self) -> bool {
        // All four at once, for every header of gigabytes: a byte's uppermost bit tells that it cannot be printed.
        const EACH: u32 = 0x0101_0101;
        let key = self.key();
        let low = key & (0x7f * EACH);
        let (from_space, deleted) = (low + 0x60 * EACH, low + EACH);
        let odd = (!from_space | deleted | key) & (0x80 * EACH);
        odd & odd.wrapping_sub(1) == 0
    }

    /// The four bytes as they lie in memory when the block is protected.
    pub(crate) fn protected_bytes(self) -> [u8; 4] {
        (self.key() | PROTECTED).to_le_bytes()
    }
}

/// What kd prints: a byte that is not printable is a dot.
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&printable(&self.0))
    }
}

fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { '.' }).collect()
}

/// Why a text is no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTag {
    /// More than four characters without a `*`.
    #[error("a tag is four characters, or has a * for any characters: '{0}' is longer")]
    TooLong(String),
    /// Nothing was given.
    #[error("a tag is not empty; * stands for all tags")]
    Empty,
    /// A character that no tag has.
    #[error("a tag's characters are ASCII: '{0}' has others")]
    NotAscii(String),
    /// `0x` without a number of 32 bits behind it.
    #[error("'{0}' is not a tag's value: 0x and up to eight hexadecimal digits")]
    BadValue(String),
}

/// A tag or a set of tags, by kd's rules: case counts; `*` is any run of characters and `?` is exactly one; without a
/// `*` there are four characters, and blanks fill what is missing; `0x6b61654c` (lower-case x) is the tag's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPattern {
    text: Vec<u8>,
    /// The text has wildcards; without, a `*` in it is a `*` in the tag (`0x2a2a2a2a`).
    wild: bool,
}

/// A pattern of a four-character text needs no more.
const MAX_PATTERN: usize = 16;

impl TagPattern {
    /// Whether the tag is one of those that are meant.
    pub fn matches(&self, tag: Tag) -> bool {
        match self.exact() {
            Some(exact) => exact.key() == tag.key(),
            None => glob(&self.text, &tag.key().to_le_bytes()),
        }
    }

    /// The only tag that matches, if there is one. A table can be asked for it directly.
    pub fn exact(&self) -> Option<Tag> {
        let bytes: [u8; 4] = self.text.as_slice().try_into().ok()?;
        (!self.wild).then(|| Tag::from_key(u32::from_le_bytes(bytes)).0)
    }
}

impl TagPattern {
    /// Orders patterns by how little they say: fixed characters count most, then a `?` says more than a `*`.
    pub(crate) fn vagueness(&self) -> (usize, usize) {
        let fixed = self.text.iter().filter(|b| !matches!(b, b'*' | b'?')).count();
        let stars = self.text.iter().filter(|b| **b == b'*').count();
        (MAX_PATTERN - fixed, stars)
    }
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| glob(rest, &text[skip..])),
        Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| glob(rest, text)),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && glob(rest, text)),
    }
}

impl From<Tag> for TagPattern {
    fn from(tag: Tag) -> Self {
        TagPattern { text: tag.0.to_vec(), wild: false }
    }
}

impl FromStr for TagPattern {
    type Err = BadTag;

    fn from_str(text: &str) -> Result<Self, BadTag> {
        if let Some(digits) = text.strip_prefix("0x") {
            let hexadecimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let value = u32::from_str_radix(digits, 16).ok().filter(|_| hexadecimal);
            let value = value.ok_or_else(|| BadTag::BadValue(text.into()))?;
            return Ok(Tag::from_key(value).0.into());
        }
        if text.is_empty() {
            return Err(BadTag::Empty);
        }
        if !text.is_ascii() {
            return Err(BadTag::NotAscii(text.into()));
        }
        let mut pattern = text.as_bytes().to_vec();
        // Two stars in a row say no more than one, and cost time.
        pattern.dedup_by(|a, b| *a == b'*' && *b == b'*');
        if pattern.contains(&b'*') {
            if pattern.len() > MAX_PATTERN {
                return Err(BadTag::TooLong(text.into()));
            }
        } else {
            if pattern.len() > 4 {
                return Err(BadTag::TooLong(text.into()));
            }
            pattern.resize(4, b' ');
        }
        let wild = pattern.iter().any(|b| matches!(b, b'*' | b'?'));
        Ok(TagPattern { text: pattern, wild })
    }
}

/// kd pads a pattern to four characters: `*   `.
impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}", printable(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TagPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_short_tag_is_filled_with_blanks() {
        assert_eq!(pattern("AGP").exact(), Some(Tag(*b"AGP ")));
        assert!(pattern("AGP").matches(Tag(*b"AGP ")));
        assert!(!pattern("AGP").matches(Tag(*b"AGPx")));
    }

    #[test]
    fn wildcards_match_as_in_kd() {
        assert!(pattern("Mm*").matches(Tag(*b"MmSt")));
        assert!(!pattern("mm*").matches(Tag(*b"MmSt")));
        assert!(pattern("M?S?").matches(Tag(*b"MmSt")));
        assert!(!pattern("M?S").matches(Tag(*b"MmSt")));
        assert!(pattern("*").matches(Tag([0, 1, 2, 3])));
        assert!(pattern("*St").matches(Tag(*b"MmSt")));
        assert!(!pattern("*St").matches(Tag(*b"StMm")));
        assert_eq!(pattern("Mm*").exact(), None);
        assert_eq!(pattern("****************************").to_string(), "*   ");
    }

    #[test]
    fn a_value_is_the_key_with_or_without_the_protected_bit() {
        assert_eq!(pattern("0x6b61654c").exact(), Some(Tag(*b"Leak")));
        assert_eq!(pattern("0xe36f7250").exact(), Some(Tag(*b"Proc")));
        assert_eq!(pattern("0Xab").exact(), Some(Tag(*b"0Xab")));
        assert_eq!(Tag::from_key(0xe36f_7250), (Tag(*b"Proc"), true));
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        assert_eq!("Leaky".parse::<TagPattern>(), Err(BadTag::TooLong("Leaky".into())));
        assert_eq!("".parse::<TagPattern>(), Err(BadTag::Empty));
        assert_eq!("Lé".parse::<TagPattern>(), Err(BadTag::NotAscii("Lé".into())));
        for text in ["0x", "0x123456789", "0x+1", "0xleak"] {
            assert_eq!(text.parse::<TagPattern>(), Err(BadTag::BadValue(text.into())));
        }
    }

    #[test]
    fn bytes_that_cannot_be_printed_are_dots() {
        assert_eq!(Tag(*b"rx\0\x1f").to_string(), "rx..");
        assert_eq!(format!("[{:>6}]", Tag(*b"Leak")), "[  Leak]");
    }

    #[test]
    fn a_tag_is_typed_where_three_bytes_can_be_printed() {
        let printed = |tag: [u8; 4]| tag.iter().filter(|byte| (0x20..0x7f).contains(*byte)).count() >= 3;
        for (place, other) in (0..4).flat_map(|place| [(place, 0), (place, 0x1f), (place, 0x7f), (place, 0xff)]) {
            for byte in 0..=u8::MAX {
                let mut tag = *b"Leak";
                tag[place] = byte;
                tag[(place + 1) % 4] = other;
                // The protected bit is no part of a tag.
                tag[3] &= 0x7f;
                assert_eq!(Tag(tag).is_typed(), printed(tag), "{tag:x?}");
            }
        }
    }
}
