//! What tags stand for: Microsoft's `pooltag.txt` and a small table of our own.
//!
//! A line of `pooltag.txt` is `Tag - binary - description`; the binary is padded with blanks or `<unknown>`, `rem` in
//! the first column starts a comment, and a tag may have wildcards (`*` any run, `?` one character). Blanks or tabs
//! stand around the dashes.
//!
//! The file has no declared encoding. Microsoft's is plain ASCII, but people add lines of their own with what is at
//! hand: Notepad saves UTF-8 with a byte order mark, PowerShell's `>` UTF-16.

use std::borrow::Cow;
use std::collections::HashMap;

use encoding_rs::{Encoding, UTF_8, UTF_16LE, WINDOWS_1252};

use crate::Tag;
use crate::tag::TagPattern;

/// What one tag stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The words behind the tag, without the binary's name.
    pub text: String,
    /// The component that pooltag.txt names: `nt!mm`, `ntfs.sys`.
    pub binary: Option<String>,
}

/// A pooltag.txt is some 200 KB; a file that is larger than this is something else.
pub const MAX_FILE: usize = 16 << 20;

/// A file of so many bytes, which is no pooltag.txt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} bytes are too much for a pooltag.txt (at most {MAX_FILE})")]
pub struct TooLarge(usize);

/// Tags with their descriptions.
///
/// A tag that is listed as it is goes before one that matches by wildcards; among those, the pattern with more fixed
/// characters wins, then the one with a `?` instead of a `*`, then the earlier line. Of two lines with the same tag
/// the earlier one counts.
#[derive(Debug, Clone, Default)]
pub struct PoolTags {
    exact: HashMap<Tag, Description>,
    /// Most specific first.
    patterns: Vec<(TagPattern, Description)>,
    unread: Option<Unread>,
}

/// Lines of a file that say nothing of any tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// How many.
    pub lines: usize,
    /// The first one's number, from 1.
    pub first: usize,
}

impl PoolTags {
    /// The tags that most machines have, in words of our own.
    pub fn built_in() -> Self {
        let mut tags = PoolTags::default();
        tags.add(BUILT_IN);
        tags
    }

    /// A `pooltag.txt` in UTF-8, UTF-16 or Windows' old encoding. Lines that are not of its form are passed over, as the
    /// debuggers do, and counted ([`PoolTags::unread`]).
    pub fn parse(file: &[u8]) -> Result<Self, TooLarge> {
        if file.len() > MAX_FILE {
            return Err(TooLarge(file.len()));
        }
        let mut tags = PoolTags::default();
        tags.add(&decoded(file));
        // Stable: of two patterns that are equally specific the earlier line stays first.
        tags.patterns.sort_by_key(|(pattern, _)| pattern.vagueness());
        Ok(tags)
    }

    /// These tags first, and `other`'s where these have nothing.
    pub fn or(mut self, other: PoolTags) -> Self {
        for (tag, description) in other.exact {
            // A pattern of the first file is that file's word on the tag.
            if self.describe(tag).is_none() {
                self.exact.insert(tag, description);
            }
        }
        self.patterns.extend(other.patterns);
        self
    }

    /// The tags that are listed as they are.
    pub fn tags(&self) -> impl Iterator<Item = Tag> {
        self.exact.keys().copied()
    }

    /// What of the file could not be read.
    pub fn unread(&self) -> Option<Unread> {
        self.unread
    }

    /// What is known of a tag: the most specific line that fits it.
    pub fn describe(&self, tag: Tag) -> Option<&Description> {
        let pattern = || self.patterns.iter().find(|(pattern, _)| pattern.matches(tag)).map(|(_, text)| text);
        self.exact.get(&tag).or_else(pattern)
    }

    /// The last column of `!poolused`. A description without a binary ends in a blank, as in kd.
    pub fn poolused(&self, tag: Tag) -> String {
        match self.describe(tag) {
            Some(Description { text, binary: Some(binary) }) => format!("{text} , Binary: {binary}"),
            Some(Description { text, binary: None }) => format!("{text} "),
            None => format!("UNKNOWN pooltag '{tag}', please update pooltag.txt"),
        }
    }

    /// The line that `!pool` puts under the block that was asked for, without its indentation.
    pub fn pool(&self, tag: Tag) -> String {
        match self.describe(tag) {
            Some(Description { text, binary: Some(binary) }) => format!("Pooltag {tag} : {text}, Binary : {binary}"),
            Some(Description { text, binary: None }) => format!("Pooltag {tag} : {text}"),
            None => "Owning component : Unknown (update pooltag.txt)".into(),
        }
    }

    fn add(&mut self, text: &str) {
        for (number, line) in (1..).zip(text.lines()) {
            if self.add_line(line).is_none() {
                self.unread.get_or_insert(Unread { lines: 0, first: number }).lines += 1;
            }
        }
    }

    /// `None`: the line should say something, and nobody knows what.
    fn add_line(&mut self, line: &str) -> Option<()> {
        let comment = line.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("rem"));
        // A tag may begin with "rem" itself; a comment's word ends there.
        let comment = comment && line.as_bytes().get(3).is_none_or(|byte| byte.is_ascii_whitespace());
        if comment || line.trim().is_empty() {
            return Some(());
        }
        let (tag, rest) = at_dash(line)?;
        let (binary, text) = at_dash(rest).unwrap_or(("", rest));
        let binary = Some(binary.trim()).filter(|binary| !binary.is_empty() && *binary != "<unknown>");
        let description = Description { text: text.trim().into(), binary: binary.map(Into::into) };
        // Blanks after the fourth character are padding, those before it are the tag's; tabs never are.
        let tag = tag.trim_end_matches('\t');
        let tag = if tag.len() > 4 { tag.trim_end() } else { tag };
        let pattern = tag.parse::<TagPattern>().ok()?;
        match pattern.exact() {
            Some(tag) => {
                self.exact.entry(tag).or_insert(description);
            }
            None => self.patterns.push((pattern, description)),
        }
        Some(())
    }
}

/// What stands before and after the first dash between blanks or tabs.
fn at_dash(text: &str) -> Option<(&str, &str)> {
    const BLANK: [char; 2] = [' ', '\t'];
    let dash = text.match_indices('-').map(|(at, _)| at).find(|&at| {
        let after = &text[at + 1..];
        text[..at].ends_with(BLANK) && (after.is_empty() || after.starts_with(BLANK))
    })?;
    // Both neighbours are one byte.
    Some((&text[..dash - 1], text.get(dash + 2..).unwrap_or_default()))
}

fn decoded(file: &[u8]) -> Cow<'_, str> {
    // ASCII in UTF-16: every second byte is 0, which no text in another encoding has.
    let wide = || file.len() > 3 && file[..file.len().min(64)].chunks_exact(2).all(|pair| pair[1] == 0 && pair[0] != 0);
    let encoding = match Encoding::for_bom(file) {
        Some((encoding, _)) => encoding,
        None if wide() => UTF_16LE,
        None if std::str::from_utf8(file).is_ok() => UTF_8,
        None => WINDOWS_1252,
    };
    encoding.decode(file).0
}

/// Our own table, in the same form as the file; packages carry it as an example to add to.
const BUILT_IN: &str = include_str!("pooltag.txt");

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(text: &str) -> PoolTags {
        PoolTags::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_built_in_table_renders_the_article() {
        let tags = PoolTags::built_in();
        for (tag, text) in [
            (b"Leak", "UNKNOWN pooltag 'Leak', please update pooltag.txt"),
            (b"CM31", "Internal Configuration manager allocations , Binary: nt!cm"),
            (b"CIcr", "Code Integrity allocations for image integrity checking , Binary: ci.dll"),
            (b"Cont", "Contiguous physical memory allocations for device drivers "),
            (b"EtwB", "Etw Buffer , Binary: nt!etw"),
        ] {
            assert_eq!(tags.poolused(Tag(*tag)), text);
        }
        assert_eq!(tags.pool(Tag(*b"Proc")), "Pooltag Proc : Process objects, Binary : nt!ps");
        assert_eq!(tags.pool(Tag(*b"Irp ")), "Pooltag Irp  : Io, IRP packets");
        assert_eq!(tags.pool(Tag(*b"Leak")), "Owning component : Unknown (update pooltag.txt)");
    }

    #[test]
    fn every_built_in_line_is_used() {
        assert_eq!(PoolTags::built_in().exact.len(), BUILT_IN.lines().count());
    }

    #[test]
    fn lines_are_taken_as_microsoft_writes_them() {
        let tags = tags(
            "rem  Tag - binary - Description\r\nREM\r\n\r\nno separator\r\nAGP  - <unknown>   - AGP driver\r\n\
             Proc - nt!ps       - Process objects  \r\nProc - other - second\r\nToolong - a.sys - never\r\n\
             8042 - i8042prt.sys - PS/2 - kb and mouse\r\nremX - x.sys - not a comment\r\n  rx - rdbss.sys - leading blanks\r\n",
        );
        assert_eq!(tags.poolused(Tag(*b"AGP ")), "AGP driver ");
        assert_eq!(tags.poolused(Tag(*b"Proc")), "Process objects , Binary: nt!ps");
        assert_eq!(tags.poolused(Tag(*b"8042")), "PS/2 - kb and mouse , Binary: i8042prt.sys");
        assert_eq!(tags.poolused(Tag(*b"remX")), "not a comment , Binary: x.sys");
        assert_eq!(tags.poolused(Tag(*b"  rx")), "leading blanks , Binary: rdbss.sys");
        assert_eq!(tags.exact.len(), 5);
    }

    #[test]
    fn every_encoding_and_every_blank_is_read() {
        let text =
            "rem Tag\r\nLeak\t-\tmydrv.sys\t-\tBüffer of mine\r\nIrp\t\t- <unknown> \t - \tIo\r\nAbcd - x.sys -\r\n";
        let wide = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let (little, big) = (wide(u16::to_le_bytes), wide(u16::to_be_bytes));
        let old: Vec<u8> = text.chars().map(|c| c as u8).collect();
        for (name, file) in [
            ("UTF-8", text.as_bytes().to_vec()),
            ("UTF-8 with a mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
            ("UTF-16", [b"\xff\xfe", &little[..]].concat()),
            ("UTF-16, the other way round", [b"\xfe\xff", &big[..]].concat()),
            ("UTF-16 without a mark", little.clone()),
            ("Windows-1252", old),
        ] {
            let tags = PoolTags::parse(&file).unwrap();
            assert_eq!(tags.poolused(Tag(*b"Leak")), "Büffer of mine , Binary: mydrv.sys", "{name}");
            assert_eq!(tags.poolused(Tag(*b"Irp ")), "Io ", "{name}");
            assert_eq!(tags.poolused(Tag(*b"Abcd")), " , Binary: x.sys", "{name}");
            assert_eq!(tags.unread(), None, "{name}");
        }
    }

    #[test]
    fn lines_that_say_nothing_are_counted() {
        let tags = tags("Leak - a.sys - b\n\nno dash\nToolong - a - b\nLea-x.sys-c\nrem - a - b\nremark\n");
        assert_eq!(tags.exact.len(), 1);
        assert_eq!(tags.unread(), Some(Unread { lines: 4, first: 3 }));
        assert_eq!(tags.or(PoolTags::built_in()).unread().map(|unread| unread.lines), Some(4));
        assert_eq!(PoolTags::built_in().unread(), None);
    }

    #[test]
    fn the_most_specific_line_wins() {
        let tags =
            tags("* - - all\nUsb* - u - star\nUsb? - q - mark\nUsbX - x - exact\nUs* - s - short\n?sb? - m - two\n");
        let text = |tag: &[u8; 4]| tags.describe(Tag(*tag)).unwrap().text.clone();
        assert_eq!(text(b"UsbX"), "exact");
        assert_eq!(text(b"UsbY"), "mark");
        assert_eq!(text(b"UsxY"), "short");
        assert_eq!(text(b"XsbY"), "two");
        assert_eq!(text(b"Leak"), "- all");
    }

    #[test]
    fn the_users_file_goes_before_ours() {
        let both = tags("Pr* - mine.sys - Mine\nCM31 - - Other words\n").or(PoolTags::built_in());
        assert_eq!(both.poolused(Tag(*b"Proc")), "Mine , Binary: mine.sys");
        assert_eq!(both.describe(Tag(*b"CM31")).unwrap().text, "- Other words");
        assert_eq!(both.poolused(Tag(*b"MmSt")), "Mm section object prototype ptes , Binary: nt!mm");
    }

    #[test]
    fn a_file_that_is_no_pooltag_file_is_refused() {
        assert_eq!(PoolTags::parse(&vec![b'a'; MAX_FILE + 1]).unwrap_err(), TooLarge(MAX_FILE + 1));
        assert!(PoolTags::parse(&[0xff, 0xfe, 0, b'\n', b' ', b'-']).unwrap().exact.is_empty());
        let text = PoolTags::parse(b"\x7fELF\x02\x01\n\x00\x00\xff\xfe\n").unwrap();
        assert!(text.exact.is_empty() && text.unread() == Some(Unread { lines: 2, first: 1 }));
    }
}
