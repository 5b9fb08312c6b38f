//! A line is commands separated by `;`.
//!
//! ```text
//! dd nt!Foo L4; .echo "a;b"; * a comment takes the rest; of the line
//! $$ a comment up to the next semicolon; $<file takes; the rest
//! ```

use nom::branch::alt;
use nom::bytes::complete::{is_not, tag, tag_no_case, take_while, take_while1};
use nom::character::complete::{char, multispace0, not_line_ending, one_of, satisfy};
use nom::combinator::{opt, recognize, rest, value};
use nom::multi::many0_count;
use nom::sequence::{pair, preceded, terminated};
use nom::{IResult, Parser};

/// kd's limit of one line.
pub const MAX_LINE: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement<'a> {
    Command(Command<'a>),
    /// Read commands from this file.
    Script {
        file: &'a str,
    },
}

/// One command as typed, taken apart into word and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    /// The whole command, without surrounding blanks.
    pub text: &'a str,
    /// Lower case: `dd`, `lm`, `!poolused`, `.sympath+`, `?`.
    pub word: String,
    /// What follows the word, leading blanks removed. `lmvm nt` has the word `lm` and the arguments `vm nt`.
    pub arguments: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the line is longer than {MAX_LINE} characters")]
pub struct LineTooLong;

/// Splits one line. Empty commands and comments vanish.
pub fn split(line: &str) -> Result<Vec<Statement<'_>>, LineTooLong> {
    if line.chars().count() > MAX_LINE {
        return Err(LineTooLong);
    }
    let mut statements = Vec::new();
    let mut left = line;
    // Every statement consumes at least one character, so this ends.
    while let Ok((after, statement)) = statement(left) {
        statements.extend(statement);
        left = after;
        if left.is_empty() {
            break;
        }
    }
    Ok(statements)
}

fn statement(input: &str) -> IResult<&str, Option<Statement<'_>>> {
    preceded(
        multispace0,
        alt((
            value(None, terminated(char(';'), multispace0)),
            value(None, pair(char('*'), not_line_ending)),
            script,
            value(None, (tag("$$"), piece, opt(char(';')))),
            terminated(piece, opt(char(';'))).map(|text: &str| command(text).map(Statement::Command)),
        )),
    )
    .parse(input)
}

/// `$<f` and `$><f` take the rest of the line, `$$<f` and `$$><f` end at `;`.
fn script(input: &str) -> IResult<&str, Option<Statement<'_>>> {
    alt((
        preceded(alt((tag("$><"), tag("$<"))), rest),
        terminated(preceded(alt((tag("$$><"), tag("$$<"))), piece), opt(char(';'))),
    ))
    .map(|file: &str| Some(Statement::Script { file: file.trim() }))
    .parse(input)
}

/// Everything up to a `;` that is not between double quotes. A quote that is never closed is an ordinary character.
fn piece(input: &str) -> IResult<&str, &str> {
    recognize(many0_count(alt((
        recognize((char('"'), opt(is_not("\"")), char('"'))),
        recognize(satisfy(|c| c == '"')),
        is_not(";\""),
    ))))
    .parse(input)
}

/// `None` for blanks.
pub fn command(text: &str) -> Option<Command<'_>> {
    let text = text.trim();
    let (arguments, word) = word(text).ok()?;
    Some(Command { text, word: word.to_ascii_lowercase(), arguments: arguments.trim_start() })
}

fn word(input: &str) -> IResult<&str, &str> {
    alt((
        recognize(pair(one_of("!."), take_while(|c: char| !c.is_whitespace() && c != '"'))),
        tag("??"),
        tag("?"),
        // `lm` and its options are one word for kd.
        tag_no_case("lm"),
        take_while1(|c: char| c.is_ascii_alphabetic()),
        recognize(satisfy(|c: char| !c.is_whitespace())),
    ))
    .parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<(String, String)> {
        split(line)
            .unwrap()
            .into_iter()
            .map(|statement| match statement {
                Statement::Command(c) => (c.word, c.arguments.to_string()),
                Statement::Script { file } => ("$<".into(), file.to_string()),
            })
            .collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(w, a)| (w.to_string(), a.to_string())).collect()
    }

    #[test]
    fn a_line_is_commands_between_semicolons() {
        assert_eq!(
            words("!poolused 4; !poolfind Leak;!verifier 0x80 fffff8a005800000 ; q"),
            pairs(&[("!poolused", "4"), ("!poolfind", "Leak"), ("!verifier", "0x80 fffff8a005800000"), ("q", "")])
        );
        assert_eq!(words(" ;; \t"), []);
        assert_eq!(words(""), []);
    }

    #[test]
    fn quotes_protect_semicolons() {
        assert_eq!(words(r#".echo "a;b"; g"#), pairs(&[(".echo", r#""a;b""#), ("g", "")]));
        assert_eq!(words(r#".echo 5" disk; g"#), pairs(&[(".echo", r#"5" disk"#), ("g", "")]));
    }

    #[test]
    fn comments_and_files() {
        assert_eq!(words("g; * all; of this"), pairs(&[("g", "")]));
        assert_eq!(words("$$ only this; g"), pairs(&[("g", "")]));
        assert_eq!(words("$<a;b.txt"), pairs(&[("$<", "a;b.txt")]));
        assert_eq!(words("$$>< a.txt; g"), pairs(&[("$<", "a.txt"), ("g", "")]));
    }

    #[test]
    fn command_words_are_recognised_in_kds_forms() {
        for (text, word, arguments) in [
            ("dd nt!Foo L4", "dd", "nt!Foo L4"),
            ("DPS @rsp", "dps", "@rsp"),
            ("dps@rsp", "dps", "@rsp"),
            ("lm", "lm", ""),
            ("lmvm nt", "lm", "vm nt"),
            ("lm m nt*", "lm", "m nt*"),
            ("?1+2", "?", "1+2"),
            ("? poi(1)", "?", "poi(1)"),
            ("?? x", "??", "x"),
            ("x nt!Foo", "x", "nt!Foo"),
            ("!PoolUsed 4", "!poolused", "4"),
            (".sympath+ a b", ".sympath+", "a b"),
            ("q -halted", "q", "-halted"),
            ("qd", "qd", ""),
            ("~1s", "~", "1s"),
        ] {
            let c = command(text).unwrap();
            assert_eq!((c.word.as_str(), c.arguments), (word, arguments), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_a_panic(line in "\\PC*") {
            let _ = split(&line);
        }

        #[test]
        fn marks_in_any_order_are_split_without_a_panic(line in "[;*$<>\"'!.?a-f ]{0,60}") {
            for statement in split(&line).unwrap() {
                if let Statement::Command(c) = statement {
                    prop_assert!(!c.word.is_empty());
                }
            }
        }
    }
}
