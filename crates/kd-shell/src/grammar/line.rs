//! A line is commands separated by `;`.
//!
//! ```text
//! dd nt!Foo L4; .echo "a;b"; * a comment takes the rest; of the line
//! $$ a comment up to the next semicolon; $<file takes; the rest
//! ```

use nom::branch::alt;
use nom::bytes::complete::{is_not, tag, tag_no_case, take_while, take_while1};
use nom::character::complete::{char, digit1, multispace0, not_line_ending, one_of, satisfy};
use nom::combinator::{opt, recognize, rest, value};
use nom::multi::many0_count;
use nom::sequence::{pair, preceded, terminated};
use nom::{IResult, Parser};

use super::block::{self, Block, BlockError, is_block};

/// kd's limit of one line.
pub const MAX_LINE: usize = 4096;

/// Other commands than the same words in lower case.
const CASE_COUNTS: [&str; 3] = ["dD", "dS", "dW"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement<'a> {
    Command(Command<'a>),
    /// Read commands from this file.
    Script {
        file: &'a str,
        /// The file is one line (`$><`, `$$><`, `$$>a<`), and this is what `${$arg1}` and so on stand for.
        arguments: Option<&'a str>,
    },
    Block(Result<Block<'a>, BlockError>),
}

/// One command as typed, taken apart into word and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    /// The whole command, without surrounding blanks.
    pub text: &'a str,
    /// Lower case but for the words whose case counts: `dd`, `dD`, `lm`, `!poolused`, `.sympath+`, `?`.
    pub word: String,
    /// What follows the word, leading blanks removed. `lmvm nt` has the word `lm` and the arguments `vm nt`.
    pub arguments: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the line is longer than {MAX_LINE} characters")]
pub struct LineTooLong;

/// Splits one line that was typed. Empty commands and comments vanish.
pub fn split(line: &str) -> Result<Vec<Statement<'_>>, LineTooLong> {
    match line.chars().count() > MAX_LINE {
        true => Err(LineTooLong),
        false => Ok(statements(line)),
    }
}

/// As [`split`], of a line of any length: a whole script, or what a loop made of its body.
pub fn statements(line: &str) -> Vec<Statement<'_>> {
    let mut statements = Vec::new();
    let mut left = line;
    // Every statement consumes at least one character, so this ends.
    loop {
        let start = left.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if is_block(start) {
            match block::parse(start) {
                Ok((block, after)) => {
                    statements.push(Statement::Block(Ok(block)));
                    left = after;
                    continue;
                }
                Err(error) => {
                    statements.push(Statement::Block(Err(error)));
                    break;
                }
            }
        }
        let Ok((after, statement)) = statement(left) else { break };
        statements.extend(statement);
        left = after;
        if left.is_empty() {
            break;
        }
    }
    statements
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
    #[derive(Clone, Copy)]
    enum Way {
        Lines,
        Condensed,
        WithArguments,
    }
    alt((
        preceded(tag("$><"), rest).map(|file: &str| (file, Way::Condensed)),
        preceded(tag("$<"), rest).map(|file: &str| (file, Way::Lines)),
        terminated(preceded(tag("$$><"), piece), opt(char(';'))).map(|file| (file, Way::Condensed)),
        terminated(preceded(tag("$$<"), piece), opt(char(';'))).map(|file| (file, Way::Lines)),
        terminated(preceded(tag_no_case("$$>a<"), piece), opt(char(';'))).map(|file| (file, Way::WithArguments)),
    ))
    .map(|(text, way)| {
        let text = text.trim();
        let (file, arguments) = match way {
            Way::WithArguments => {
                let (file, arguments) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
                (file, Some(arguments.trim()))
            }
            Way::Condensed => (text, Some("")),
            Way::Lines => (text, None),
        };
        Some(Statement::Script { file, arguments })
    })
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
    let word = match CASE_COUNTS.contains(&word) {
        true => word.into(),
        false => word.to_ascii_lowercase(),
    };
    Some(Command { text, word, arguments: arguments.trim_start() })
}

fn word(input: &str) -> IResult<&str, &str> {
    alt((
        recognize(pair(one_of("!."), take_while(|c: char| !c.is_whitespace() && c != '"'))),
        tag("??"),
        tag("?"),
        // `lm` and its options are one word for kd.
        tag_no_case("lm"),
        recognize(pair(alt((tag_no_case("bp"), tag_no_case("bu"))), digit1)),
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
                Statement::Script { file, arguments: None } => ("$<".into(), file.to_string()),
                Statement::Script { file, arguments: Some(arguments) } => {
                    ("$$>a<".into(), format!("{file}|{arguments}"))
                }
                Statement::Block(block) => ("block".into(), block.is_ok().to_string()),
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
        assert_eq!(words("$$>< a.txt; g"), pairs(&[("$$>a<", "a.txt|"), ("g", "")]));
        assert_eq!(words("$$< a.txt; g"), pairs(&[("$<", "a.txt"), ("g", "")]));
        assert_eq!(words("$$>a<a.txt 1 2; g"), pairs(&[("$$>a<", "a.txt|1 2"), ("g", "")]));
    }

    #[test]
    fn blocks_keep_their_semicolons() {
        assert_eq!(words("g; .if (1) { a; b } .else { c; d }; q"), pairs(&[("g", ""), ("block", "true"), ("q", "")]));
        assert_eq!(words(".foreach (x {a; b}) {c; d} q"), pairs(&[("block", "true"), ("q", "")]));
        assert_eq!(words("g; .if (1) { a; b"), pairs(&[("g", ""), ("block", "false")]));
        // What is no control flow is taken apart as ever.
        assert_eq!(words(".echo {a; b}"), pairs(&[(".echo", "{a"), ("b", "}")]));
    }

    #[test]
    fn command_words_are_recognised_in_kds_forms() {
        for (text, word, arguments) in [
            ("dd nt!Foo L4", "dd", "nt!Foo L4"),
            ("DPS @rsp", "dps", "@rsp"),
            ("dps@rsp", "dps", "@rsp"),
            ("dW @rsp", "dW", "@rsp"),
            ("DW @rsp", "dw", "@rsp"),
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
            ("bp3 nt!Foo", "bp3", "nt!Foo"),
            ("BP 3", "bp", "3"),
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
