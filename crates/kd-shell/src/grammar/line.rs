//! A line is commands separated by `;`.
//!
//! ```text
//! dd nt!Foo L4; .echo "a;b"; * a comment takes the rest; of the line
//! $$ a comment up to the next semicolon; $<file takes; the rest
//! j (poi(nt!Foo)) '.echo a; .echo b'; 'g'
//! ```
//!
//! Quotes of both kinds keep semicolons together. One that begins a word and is never closed keeps the rest of the line:
//! what was meant as a part of one command is never run as another.

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case, take_while, take_while1};
use nom::character::complete::{char, digit1, multispace0, not_line_ending, one_of, satisfy};
use nom::combinator::{opt, recognize, rest, value};
use nom::sequence::{pair, preceded, terminated};
use nom::{IResult, Parser};

use super::block::{self, Block, BlockError, is_block};

/// kd's limit of one line.
pub const MAX_LINE: usize = 4096;

/// Other commands than the same words in lower case.
const CASE_COUNTS: [&str; 4] = ["aS", "dD", "dS", "dW"];

/// Extensions whose arguments are commands: braces keep these together as quotes do.
const TAKE_COMMANDS: [&str; 3] = ["!for_each_module", "!for_each_process", "!for_each_thread"];

/// One statement of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement<'a> {
    /// A command with its arguments.
    Command(Command<'a>),
    /// Read commands from this file.
    Script {
        /// The file's name, as it was typed.
        file: &'a str,
        /// The file is one line (`$><`, `$$><`, `$$>a<`), and this is what `${$arg1}` and so on stand for.
        arguments: Option<&'a str>,
    },
    /// `.if`, `.for` and their kin, or what is wrong with them.
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

impl Command<'_> {
    /// `!poolused` and its like, which take their arguments apart themselves.
    pub fn is_extension(&self) -> bool {
        self.word.starts_with('!')
    }
}

/// A line of more bytes than are read.
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
            value(None, (tag("$$"), take_while(|c| c != ';'), opt(char(';')))),
            // `as` takes the rest of the line, semicolons and all.
            recognize((tag("as"), satisfy(char::is_whitespace), rest)).map(one_command),
            terminated(piece, opt(char(';'))).map(one_command),
        )),
    )
    .parse(input)
}

fn one_command(text: &str) -> Option<Statement<'_>> {
    command(text).map(Statement::Command)
}

/// `$<f` and `$><f` take the rest of the line, `$$<f` and `$$><f` end at `;`.
fn script(input: &str) -> IResult<&str, Option<Statement<'_>>> {
    #[derive(Clone, Copy)]
    enum Way {
        Lines,
        Condensed,
        WithArguments,
    }
    let way_arguments = |way| match way {
        Way::Lines => None,
        Way::Condensed | Way::WithArguments => Some(""),
    };
    alt((
        preceded(tag("$><"), rest).map(|file: &str| (file, Way::Condensed)),
        preceded(tag("$<"), rest).map(|file: &str| (file, Way::Lines)),
        terminated(preceded(tag("$$><"), piece), opt(char(';'))).map(|file| (file, Way::Condensed)),
        terminated(preceded(tag("$$<"), piece), opt(char(';'))).map(|file| (file, Way::Lines)),
        terminated(preceded(tag_no_case("$$>a<"), piece), opt(char(';'))).map(|file| (file, Way::WithArguments)),
    ))
    .map(|(text, way)| {
        let text = text.trim();
        let quoted = text.strip_prefix('"').and_then(|text| text.split_once('"'));
        let (file, arguments) = match (way, quoted) {
            (Way::WithArguments, Some((file, arguments))) => (file, Some(arguments.trim())),
            (Way::WithArguments, None) => {
                let (file, arguments) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
                (file, Some(arguments.trim()))
            }
            (way, Some((file, ""))) => (file, way_arguments(way)),
            (way, _) => (text, way_arguments(way)),
        };
        Some(Statement::Script { file, arguments })
    })
    .parse(input)
}

/// Everything up to a `;` that is not between quotes.
fn piece(input: &str) -> IResult<&str, &str> {
    let end = piece_end(input);
    Ok((&input[end..], &input[..end]))
}

/// Where the statement that `text` begins with ends: at a `;`, or at the end.
pub(super) fn piece_end(text: &str) -> usize {
    let word = text.trim_start().split(|c: char| c.is_whitespace() || c == '{').next().unwrap_or_default();
    let braces = TAKE_COMMANDS.iter().any(|name| name.eq_ignore_ascii_case(word));
    let (mut at, mut before, mut depth) = (0, None, 0usize);
    while let Some(c) = text[at..].chars().next() {
        match c {
            ';' if depth == 0 => return at,
            '{' if braces => depth += 1,
            '}' if braces => depth = depth.saturating_sub(1),
            '"' | '\'' => {
                if let Some(end) = quote_end(text, at, before) {
                    at = end;
                    before = Some(c);
                    continue;
                }
            }
            _ => {}
        }
        at += c.len_utf8();
        before = Some(c);
    }
    text.len()
}

/// Where the quoted text ends that begins at `at`; `None` when the mark is an ordinary character: an apostrophe, or
/// inches behind a number. A mark before which no word stands is a quote even when its end is missing.
fn quote_end(text: &str, at: usize, before: Option<char>) -> Option<usize> {
    let mark = text[at..].chars().next()?;
    let inside = at + mark.len_utf8();
    let begins = before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '_' | '"' | '\'' | '}' | ')')));
    if mark == '\'' && !begins {
        return None;
    }
    closing(&text[inside..], mark).map(|end| inside + end + mark.len_utf8()).or(begins.then_some(text.len()))
}

/// The mark that ends a quoted text. `\"` is a quote inside, unless no other mark follows it: it ends a folder's name
/// then.
fn closing(inside: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    let end = inside.char_indices().find(|&(_, c)| {
        let ends = c == mark && !escaped;
        escaped = mark == '"' && c == '\\' && !escaped;
        ends
    });
    end.map(|(at, _)| at).or_else(|| inside.find(mark))
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
        // Its sign is the word's, whatever follows: `.symopt+40`.
        recognize(pair(alt((tag_no_case(".symopt"), tag_no_case(".sympath"), tag_no_case(".symfix"))), one_of("+-"))),
        recognize(pair(one_of("!."), take_while(|c: char| !c.is_whitespace() && c != '"'))),
        tag("??"),
        tag("?"),
        // `lm` and its options are one word for kd.
        tag_no_case("lm"),
        recognize(pair(alt((tag_no_case("bp"), tag_no_case("bu"), tag_no_case("ba"))), digit1)),
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
        assert_eq!(words(".echo 'a;b' c; g"), pairs(&[(".echo", "'a;b' c"), ("g", "")]));
        // An apostrophe is none, and what is quoted and has no end takes the rest.
        assert_eq!(words(".echo it's; .echo that's"), pairs(&[(".echo", "it's"), (".echo", "that's")]));
        assert_eq!(words("bp x \"r; g"), pairs(&[("bp", "x \"r; g")]));
        assert_eq!(words("foo 'r; g"), pairs(&[("foo", "'r; g")]));
        assert_eq!(words(r#"bp x ".echo \"a;b\"; g"; q"#), pairs(&[("bp", r#"x ".echo \"a;b\"; g""#), ("q", "")]));
        assert_eq!(words(r#".logopen "c:\dir\"; g"#), pairs(&[(".logopen", r#""c:\dir\""#), ("g", "")]));
    }

    #[test]
    fn comments_and_files() {
        assert_eq!(words("g; * all; of this"), pairs(&[("g", "")]));
        assert_eq!(words("$$ only this; g"), pairs(&[("g", "")]));
        assert_eq!(words("$<a;b.txt"), pairs(&[("$<", "a;b.txt")]));
        assert_eq!(words("$$>< a.txt; g"), pairs(&[("$$>a<", "a.txt|"), ("g", "")]));
        assert_eq!(words("$$< a.txt; g"), pairs(&[("$<", "a.txt"), ("g", "")]));
        assert_eq!(words("$$>a<a.txt 1 2; g"), pairs(&[("$$>a<", "a.txt|1 2"), ("g", "")]));
        assert_eq!(words("$$>a<\"my dir/a;b.txt\" 1; g"), pairs(&[("$$>a<", "my dir/a;b.txt|1"), ("g", "")]));
        assert_eq!(words("$><\"my dir/a.txt\""), pairs(&[("$$>a<", "my dir/a.txt|")]));
        assert_eq!(words("$<\"my dir/a.txt\""), pairs(&[("$<", "my dir/a.txt")]));
        assert_eq!(words("as x a; b"), pairs(&[("as", "x a; b")]));
        assert_eq!(words("aS x a; b"), pairs(&[("aS", "x a"), ("b", "")]));
        assert_eq!(words("$$ don't; g"), pairs(&[("g", "")]));
        let for_each = "!for_each_module .if (1) { a; b }";
        assert_eq!(words(&format!("{for_each}; q")), pairs(&[("!for_each_module", &for_each[17..]), ("q", "")]));
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
