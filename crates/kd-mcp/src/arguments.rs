//! Arguments of tools as words of the shell's line. What could end a word, a statement or a quotation is refused: a
//! question must stay the question that the tool stands for.

use std::fmt;

/// An argument that is none, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadArgument(pub(crate) String);

impl fmt::Display for BadArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The shell's own limit of a line is 4096 characters.
const LONGEST: usize = 1024;

/// What means something to the shell beyond the word it stands in.
const SPECIAL: [char; 6] = [';', '"', '\'', '{', '}', '\\'];

fn plain<'a>(what: &str, text: &'a str) -> Result<&'a str, BadArgument> {
    let bad = |why: &str| Err(BadArgument(format!("{what}: '{}' {why}", text.escape_debug())));
    let text_length = text.chars().count();
    match () {
        () if text.trim().is_empty() => bad("is empty"),
        () if text_length > LONGEST => Err(BadArgument(format!("{what} has {text_length} characters"))),
        () if text.chars().any(|c| c.is_control() || SPECIAL.contains(&c)) => {
            bad("has a character that does not belong there")
        }
        () if text.starts_with(['-', '/', '$', '*']) && what != "tag" && what != "pattern" => {
            bad("does not begin as one")
        }
        () => Ok(text),
    }
}

/// An address or another number: one word.
pub(crate) fn word<'a>(what: &str, text: &'a str) -> Result<&'a str, BadArgument> {
    let text = plain(what, text)?;
    match text.contains(char::is_whitespace) {
        true => Err(BadArgument(format!("{what}: '{}' has a blank", text.escape_debug()))),
        false => Ok(text),
    }
}

/// An expression takes the rest of the line.
pub(crate) fn expression<'a>(what: &str, text: &'a str) -> Result<&'a str, BadArgument> {
    plain(what, text)
}

/// A pool tag of up to four characters, with wildcards; in quotes, since a tag may hold blanks.
pub(crate) fn tag(text: &str) -> Result<String, BadArgument> {
    let text = plain("tag", text)?;
    match text.chars().count() {
        1..=4 if text.is_ascii() => Ok(format!("\"{text}\"")),
        _ => Err(BadArgument(format!("tag: '{}' is not one to four ASCII characters", text.escape_debug()))),
    }
}

/// A number within bounds, in the shell's hexadecimal.
pub(crate) fn number(what: &str, value: u64, most: u64) -> Result<String, BadArgument> {
    match value {
        0 => Err(BadArgument(format!("{what} must be above 0"))),
        _ if value > most => Err(BadArgument(format!("{what} must be at most {most}"))),
        _ => Ok(format!("0x{value:x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_word() {
        for bad in ["a;ed nt!x 0", "\"", "a\nq", "'a'", "{q}", "-x q", "/f", "$$<f", "", " ", "a\\b", "\u{7f}"] {
            assert!(word("address", bad).is_err(), "{bad:?}");
            assert!(expression("expression", bad).is_err(), "{bad:?}");
        }
        assert!(word("address", "a b").is_err());
        assert_eq!(expression("expression", "a + b"), Ok("a + b"));
        assert_eq!(word("address", "nt!PoolBigPageTable+0x10"), Ok("nt!PoolBigPageTable+0x10"));
        assert_eq!(word("pattern", "*!Pool*"), Ok("*!Pool*"));
    }

    #[test]
    fn tags_keep_their_blanks() {
        assert_eq!(tag("AB C").unwrap(), "\"AB C\"");
        assert_eq!(tag("*").unwrap(), "\"*\"");
        assert!(tag("Leaky").is_err() && tag("").is_err() && tag("Lé").is_err() && tag("a\"").is_err());
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(number("count", 16, 100).unwrap(), "0x10");
        assert!(number("count", 0, 100).is_err() && number("count", 101, 100).is_err());
    }
}
