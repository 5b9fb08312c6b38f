//! Aliases: names that stand for text, and `${}`, which puts text into the middle of a word.
//!
//! ```text
//! as Pool nt!PoolBigPageTable        dps Pool L1        dps ${Pool}Size L1
//! ${name}       the text; as it stands when there is no such name
//! ${/d:name}    1 when there is such a name, else 0
//! ${/f:name}    the text, or nothing
//! ${/n:name}    the name, if it is one; ${/v:name} the name in any case
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

/// What aliases make of a line is not longer: each of them may hold many others.
pub const MAX_EXPANDED: usize = 1 << 20;

/// `$u0` to `$u9`.
pub const FIXED: usize = 10;

/// The session's aliases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    named: BTreeMap<String, String>,
    fixed: [Option<String>; FIXED],
}

/// What a name in `${}` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// What the name stands for.
    Text(String),
    /// Nothing, and this is the place to say so.
    Undefined,
    /// Somebody else may know it.
    NotMine,
}

/// Whether a word ends at this character.
pub(super) fn is_edge(c: char) -> bool {
    c.is_whitespace() || ";{}()\",".contains(c)
}

impl Aliases {
    /// Gives a name its text, in place of the one that it had.
    pub fn set(&mut self, name: &str, text: &str) {
        self.named.insert(name.into(), text.into());
    }

    /// `$u0` to `$u9`; an empty text takes it back.
    pub fn set_fixed(&mut self, number: usize, text: &str) {
        if let Some(alias) = self.fixed.get_mut(number) {
            *alias = Some(text.to_string()).filter(|text| !text.is_empty());
        }
    }

    /// False: there was none.
    pub fn remove(&mut self, name: &str) -> bool {
        self.named.remove(name).is_some()
    }

    /// Takes all names away.
    pub fn clear(&mut self) {
        self.named.clear();
    }

    /// Names and what they stand for, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// A line with what its aliases stand for. What they stand for is not looked at again. A line that makes or deletes
    /// an alias means the name itself.
    pub fn expand<'a>(&self, line: &'a str) -> Cow<'a, str> {
        let mut line = Cow::Borrowed(line);
        for (number, text) in self.fixed.iter().enumerate() {
            if let Some(text) = text {
                line = bounded(line.replace(&format!("$u{number}"), text), &line);
            }
        }
        let word = line.trim_start().split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or_default();
        let has_words = !self.named.is_empty() && !matches!(word, "as" | "aS" | "ad" | "al");
        if !has_words && !line.contains("${") {
            return line;
        }
        let meaning = |name: &str| match self.named.get(name) {
            Some(text) => Meaning::Text(text.clone()),
            None => Meaning::Undefined,
        };
        let plain = |text: &str, glued: (bool, bool)| match has_words {
            true => self.whole_words(text, glued),
            false => text.to_string(),
        };
        let expanded = pieces(&line, &meaning, &plain);
        bounded(expanded, &line)
    }

    /// A piece of a line with aliases that are whole words replaced. `glued`: a `${}` stands before it, and behind it.
    fn whole_words(&self, piece: &str, glued: (bool, bool)) -> String {
        let mut text = String::with_capacity(piece.len());
        let mut left = piece;
        while !left.is_empty() && text.len() <= MAX_EXPANDED {
            let end = left.find(is_edge).unwrap_or(left.len());
            let (word, rest) = left.split_at(end);
            let is_part = glued.0 && left.len() == piece.len() || glued.1 && rest.is_empty();
            let alias = self.named.get(word).filter(|_| !is_part);
            text.push_str(alias.map_or(word, String::as_str));
            let edges = rest.find(|c| !is_edge(c)).unwrap_or(rest.len());
            text.push_str(&rest[..edges]);
            left = &rest[edges..];
        }
        text
    }
}

/// Text that grew beyond all measure is left as it was.
fn bounded<'a>(expanded: String, before: &str) -> Cow<'a, str> {
    Cow::Owned(if expanded.len() > MAX_EXPANDED { before.to_string() } else { expanded })
}

/// A text with its `${}` replaced.
pub fn interpolate<'a>(text: &'a str, meaning: &dyn Fn(&str) -> Meaning) -> Cow<'a, str> {
    match text.contains("${") {
        true => pieces(text, meaning, &|piece, _| piece.to_string()).into(),
        false => text.into(),
    }
}

/// A text with its `${}` replaced, and what is between them as `plain` wants it: it hears whether a `${}` stands before
/// and behind.
fn pieces(text: &str, meaning: &dyn Fn(&str) -> Meaning, plain: &dyn Fn(&str, (bool, bool)) -> String) -> String {
    let mut result = String::with_capacity(text.len());
    let (mut left, mut glued) = (text, false);
    while let Some(start) = left.find("${").filter(|_| result.len() <= MAX_EXPANDED) {
        let (before, at) = left.split_at(start);
        let Some(end) = at.find('}') else { break };
        result.push_str(&plain(before, (glued, true)));
        let (whole, after) = at.split_at(end + 1);
        match replacement(&whole[2..end], meaning) {
            Some(text) => result.push_str(&text),
            None => result.push_str(whole),
        }
        (left, glued) = (after, true);
    }
    result.push_str(&plain(left, (glued, false)));
    result
}

/// What stands between the braces; `None` leaves it as it is.
fn replacement(inside: &str, meaning: &dyn Fn(&str) -> Meaning) -> Option<String> {
    let (option, name) = match inside.strip_prefix('/') {
        Some(option) => option.split_once(':')?,
        None => ("", inside),
    };
    let name = name.trim();
    match (option, meaning(name)) {
        (_, Meaning::NotMine) => None,
        ("" | "f", Meaning::Text(text)) => Some(text),
        ("f", Meaning::Undefined) => Some(String::new()),
        ("d", Meaning::Text(_)) => Some("1".into()),
        ("d", Meaning::Undefined) => Some("0".into()),
        ("n", Meaning::Text(_)) | ("v", _) => Some(name.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aliases() -> Aliases {
        let mut aliases = Aliases::default();
        aliases.set("Foo", "nt!Foo");
        aliases.set("two", "Foo; Foo");
        aliases.set_fixed(3, "qd");
        aliases
    }

    #[test]
    fn whole_words_and_parts_of_words() {
        for (line, expected) in [
            ("dps Foo L1", "dps nt!Foo L1"),
            ("dps FooBar; Foo", "dps FooBar; nt!Foo"),
            ("dps ${Foo}Bar", "dps nt!FooBar"),
            ("two", "Foo; Foo"),
            ("(Foo)", "(nt!Foo)"),
            ("${none} ${/d:none} ${/d:Foo} [${/f:none}] ${/n:Foo} ${/v:none}", "${none} 0 1 [] Foo none"),
            ("as Foo 1", "as Foo 1"),
            ("ad ${/v:Foo}", "ad Foo"),
            ("$u3", "qd"),
            ("${bar", "${bar"),
        ] {
            assert_eq!(aliases().expand(line), expected, "{line}");
        }
        let mut aliases = aliases();
        assert!(aliases.remove("two") && !aliases.remove("two"));
        aliases.set_fixed(3, "");
        assert_eq!(aliases.expand("two $u3"), "two $u3");
    }

    #[test]
    fn what_somebody_else_knows_is_left() {
        let mine = |name: &str| match name {
            "$arg1" => Meaning::Text("one".into()),
            name if name.starts_with("$arg") => Meaning::Undefined,
            _ => Meaning::NotMine,
        };
        let text = interpolate("${$arg1} ${$arg2} ${/d:$arg1}${/d:$arg2} ${/d:x} ${x}", &mine);
        assert_eq!(text, "one ${$arg2} 10 ${/d:x} ${x}");
    }

    #[test]
    fn growth_has_an_end() {
        let mut aliases = Aliases::default();
        aliases.set("x", &"y ".repeat(1 << 16));
        let line = "x ".repeat(1 << 10);
        assert_eq!(aliases.expand(&line), line);
    }

    proptest! {
        #[test]
        fn any_line_is_expanded(line in "[${}/dfnv:; Footwo\"u3]{0,60}") {
            let _ = aliases().expand(&line);
        }
    }
}
