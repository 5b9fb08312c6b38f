//! Control flow: `.if`, `.elsif`, `.else`, `j`, `.foreach`, `.for`, `.while`, `.do`, `.block`, `.catch`.
//!
//! ```text
//! .if (poi(nt!Foo) == 0) { .echo none } .elsif (1) { .echo some } .else { .echo never }
//! .foreach (place { !poolfind Leak }) { !pool place }
//! .foreach /s (place "one two") { .echo ${place}s }
//! .foreach /f (place "file.txt") { .echo place }
//! .for (r $t0 = 0; @$t0 < 4; r $t0 = @$t0 + 1) { dq nt!Foo + 8 * @$t0 L1 }
//! .while (poi(nt!Foo) == 0) { g; .sleep 100; .break }
//! .do { r $t0 = @$t0 + 1 } (@$t0 < 4)
//! j (poi(nt!Foo) == 0) '.echo none; g' ; 'k'
//! .block { as Foo nt!Foo }; .catch { dq poi(0) L1; .leave }
//! ```

use super::alias::is_edge;
use super::expression::expression_end;
use super::line::piece_end;

/// One piece of control flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block<'a> {
    /// `.if`
    If {
        /// Conditions and what is run when they hold; the first one that does is taken.
        branches: Vec<(&'a str, &'a str)>,
        /// `.else`
        otherwise: Option<&'a str>,
    },
    /// `.foreach`
    ForEach {
        /// What each token is called in the body.
        variable: &'a str,
        /// Where tokens come from.
        tokens: Tokens<'a>,
        /// Tokens that are passed over before the first one, and after each one that is taken.
        skip_first: usize,
        /// Tokens passed over after each one.
        skip_between: usize,
        /// What is run for each.
        body: &'a str,
    },
    /// `.for`, and `.while`, which has a condition and a body only.
    Loop {
        /// Run once, before.
        first: &'a str,
        /// It goes on as long as this is not 0.
        condition: &'a str,
        /// Run after each turn.
        step: &'a str,
        /// What is run in each turn.
        body: &'a str,
    },
    /// The condition is asked after each round.
    Do {
        /// What is run in each turn, the first one in any case.
        body: &'a str,
        /// It goes on as long as this is not 0.
        condition: &'a str,
    },
    /// Commands whose aliases are looked up when they are reached.
    Plain(&'a str),
    /// What is refused in it ends it, and nothing else.
    Catch(&'a str),
}

/// Where the tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// What these commands print.
    Output(&'a str),
    /// The words of this text.
    Text(&'a str),
    /// The words of this file.
    File(&'a str),
}

/// kd's word for it, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Syntax error at '{at}': {why}")]
pub struct BlockError {
    /// Where in the line.
    pub at: String,
    /// What is wrong there.
    pub why: &'static str,
}

/// Those that begin one.
pub const WORDS: [&str; 8] = [".if", ".foreach", ".for", ".while", ".do", ".block", ".catch", "j"];

/// Whether a statement begins with one of the words.
pub fn is_block(text: &str) -> bool {
    WORDS.iter().any(|word| after_word(text, word).is_some())
}

/// The statement at the start of `text`, and what follows it.
pub fn parse(text: &str) -> Result<(Block<'_>, &str), BlockError> {
    let text = text.trim_start();
    if let Some(left) = after_word(text, ".if") {
        return condition(left);
    }
    if let Some(left) = after_word(text, ".for") {
        return for_loop(left);
    }
    if let Some(left) = after_word(text, ".while") {
        let (condition, rest) = enclosed(left, '(', ')').ok_or_else(|| error(left, "a condition in ( ) is missing"))?;
        let (body, rest) = body(rest)?;
        return Ok((Block::Loop { first: "", condition, step: "", body }, rest));
    }
    if let Some(left) = after_word(text, ".do") {
        let (commands, rest) = body(left)?;
        let at = skip_ends(rest);
        let (condition, rest) = enclosed(at, '(', ')').ok_or_else(|| error(at, "a condition in ( ) is missing"))?;
        return Ok((Block::Do { body: commands, condition }, rest));
    }
    if let Some(left) = after_word(text, ".block") {
        return body(left).map(|(commands, rest)| (Block::Plain(commands), rest));
    }
    if let Some(left) = after_word(text, ".catch") {
        return body(left).map(|(commands, rest)| (Block::Catch(commands), rest));
    }
    if let Some(left) = after_word(text, "j") {
        return either(left);
    }
    for_each(after_word(text, ".foreach").unwrap_or(text))
}

/// `j expression 'commands' ; 'commands'`: quotes may be left out around one command.
fn either(text: &str) -> Result<(Block<'_>, &str), BlockError> {
    let at = expression_end(text).map_err(|_| error(text, "an expression is missing"))?;
    let condition = &text[..text.len() - at.len()];
    let (yes, rest) = choice(at)?;
    let after = rest.trim_start();
    let (otherwise, rest) = match after.strip_prefix(';').map(str::trim_start) {
        Some(after) => choice(after).map(|(no, rest)| (Some(no), rest))?,
        None if after.is_empty() => (None, after),
        None => return Err(error(after, "; is missing before what is run when the expression is 0")),
    };
    Ok((Block::If { branches: vec![(condition, yes)], otherwise }, rest))
}

fn choice(text: &str) -> Result<(&str, &str), BlockError> {
    let text = text.trim_start();
    match text.strip_prefix('\'') {
        Some(inside) => inside.split_once('\'').ok_or_else(|| error(text, "the quote has no end")),
        None => Ok(text.split_at(piece_end(text))),
    }
}

fn after_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let start = text.get(..word.len())?;
    let rest = &text[word.len()..];
    (start.eq_ignore_ascii_case(word) && rest.starts_with(|c: char| c.is_whitespace() || c == '(' || c == '{'))
        .then(|| rest.trim_start())
}

fn error(at: &str, why: &'static str) -> BlockError {
    BlockError { at: at.trim_end().into(), why }
}

/// The inside of a pair of brackets at the start of `text`, and what follows. Double quotes protect brackets.
pub fn enclosed(text: &str, open: char, close: char) -> Option<(&str, &str)> {
    let (mut depth, mut quoted) = (0usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            c if c == open => depth += 1,
            c if c == close => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((&text[open.len_utf8()..at], &text[at + close.len_utf8()..]));
                }
            }
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// In a script that was made one line the line ends are semicolons.
fn skip_ends(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || c == ';')
}

fn body(text: &str) -> Result<(&str, &str), BlockError> {
    let text = skip_ends(text);
    enclosed(text, '{', '}').ok_or_else(|| error(text, "commands in { } are missing"))
}

fn condition(text: &str) -> Result<(Block<'_>, &str), BlockError> {
    let (mut branches, mut left) = (Vec::new(), text);
    loop {
        let (condition, rest) = enclosed(left, '(', ')').ok_or_else(|| error(left, "a condition in ( ) is missing"))?;
        let (commands, rest) = body(rest)?;
        branches.push((condition, commands));
        let next = skip_ends(rest);
        if let Some(rest) = after_word(next, ".elsif") {
            left = rest;
            continue;
        }
        return match after_word(next, ".else") {
            Some(rest) => {
                let (otherwise, rest) = body(rest)?;
                Ok((Block::If { branches, otherwise: Some(otherwise) }, rest))
            }
            None => Ok((Block::If { branches, otherwise: None }, rest)),
        };
    }
}

fn for_loop(text: &str) -> Result<(Block<'_>, &str), BlockError> {
    const PARTS: &str = "( ) with a command, a condition and a command is missing, ; between them";
    let (inside, rest) = enclosed(text, '(', ')').ok_or_else(|| error(text, PARTS))?;
    let parts = split_once(inside).and_then(|(first, left)| Some((first, split_once(left)?)));
    let (first, (condition, step)) = parts.ok_or_else(|| error(inside, PARTS))?;
    // Several commands at the end may be in brackets.
    let step = enclosed(step.trim(), '{', '}').map_or(step, |(step, _)| step);
    let (body, rest) = body(rest)?;
    Ok((Block::Loop { first, condition: condition.trim(), step, body }, rest))
}

/// What is before and behind the first semicolon that is neither in brackets nor between double quotes.
fn split_once(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut quoted) = (0i32, false);
    let at = text.find(|c| {
        match c {
            '"' => quoted = !quoted,
            '(' | '{' if !quoted => depth += 1,
            ')' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        c == ';' && depth == 0 && !quoted
    })?;
    Some((&text[..at], &text[at + 1..]))
}

fn for_each(text: &str) -> Result<(Block<'_>, &str), BlockError> {
    let mut left = text;
    let mut kind = 'o';
    let mut skips = [0, 0];
    while let Some(option) = left.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        left = rest.trim_start();
        match option {
            "s" | "f" => kind = if option == "s" { 's' } else { 'f' },
            "pS" | "ps" => {
                let (number, rest) = left.split_once(char::is_whitespace).unwrap_or((left, ""));
                let number = usize::from_str_radix(number, 16).map_err(|_| error(left, "a number is missing"))?;
                skips[usize::from(option == "ps")] = number;
                left = rest.trim_start();
            }
            _ => return Err(error(option, "unknown option")),
        }
    }
    let (inside, rest) = enclosed(left, '(', ')').ok_or_else(|| error(left, "( ) with a variable is missing"))?;
    let inside = inside.trim();
    let end = inside.find(|c: char| c.is_whitespace() || c == '{' || c == '"').unwrap_or(inside.len());
    let (variable, source) = (&inside[..end], inside[end..].trim());
    if variable.is_empty() {
        return Err(error(inside, "a variable is missing"));
    }
    let quoted = || {
        let text = source.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        text.ok_or_else(|| error(source, "text between double quotes is missing"))
    };
    let tokens = match kind {
        's' => Tokens::Text(quoted()?),
        'f' => Tokens::File(quoted()?),
        _ => Tokens::Output(body(source)?.0),
    };
    let (body, rest) = body(rest)?;
    Ok((Block::ForEach { variable, tokens, skip_first: skips[0], skip_between: skips[1], body }, rest))
}

/// A body with the variable's value in its place: as a word of its own, or as `${variable}` anywhere.
pub fn substitute(body: &str, variable: &str, value: &str) -> String {
    let body = body.replace(&format!("${{{variable}}}"), value);
    let mut text = String::with_capacity(body.len());
    let mut left = body.as_str();
    while let Some(start) = left.find(variable) {
        let (before, at) = left.split_at(start);
        let after = &at[variable.len()..];
        let is_edge = |c: Option<char>| c.is_none_or(is_edge);
        let edge = is_edge(before.chars().next_back().or(text.chars().next_back())) && is_edge(after.chars().next());
        text.push_str(before);
        text.push_str(if edge { value } else { variable });
        left = after;
    }
    text.push_str(left);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn branches() {
        let (block, rest) = parse(".if (1 == (2)) { a; b } .elsif(3){c} .else { \"}\" }; d").unwrap();
        let branches = vec![("1 == (2)", " a; b "), ("3", "c")];
        assert_eq!(block, Block::If { branches, otherwise: Some(" \"}\" ") });
        assert_eq!(rest, "; d");
        for text in [".if", ".if 1 { a }", ".if (1) a", ".if (1) { a", ".if (1) { a } .else b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn loops() {
        let (block, rest) = parse(".foreach /pS 1 /ps 2 (x {dd 1; dd 2}) { .echo x } g").unwrap();
        let tokens = Tokens::Output("dd 1; dd 2");
        assert_eq!(block, Block::ForEach { variable: "x", tokens, skip_first: 1, skip_between: 2, body: " .echo x " });
        assert_eq!(rest, " g");
        let (block, _) = parse(".foreach /s (x \"a b\") {.echo x}").unwrap();
        assert!(matches!(block, Block::ForEach { tokens: Tokens::Text("a b"), .. }));
        assert!(!is_block(".iffy") && is_block(".IF(1){}"));
        let (block, rest) = parse(".for (r $t0=0; (@$t0 < 3); {a \";\"; b}) { c; d } e").unwrap();
        let counted = Block::Loop { first: "r $t0=0", condition: "(@$t0 < 3)", step: "a \";\"; b", body: " c; d " };
        assert_eq!((block, rest), (counted, " e"));
        let (block, _) = parse(".for (; 1; a; b) {}").unwrap();
        assert_eq!(block, Block::Loop { first: "", condition: "1", step: " a; b", body: "" });
        let (block, _) = parse(".while (@$t0) { c }").unwrap();
        assert_eq!(block, Block::Loop { first: "", condition: "@$t0", step: "", body: " c " });
        for text in [".for (a; b) { c }", ".for a; b; c { d }", ".for (a; b; c) d", ".while { c }", ".while (1) c"] {
            assert!(is_block(text) && parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_of_two_and_blocks_that_stand_alone() {
        for (text, condition, yes, no, left) in [
            ("j (0) '.echo a; ed x 1; .echo b'; 'gc'", "(0)", ".echo a; ed x 1; .echo b", Some("gc"), ""),
            ("J @eax==0xa '.echo stop';'gc'; q", "@eax==0xa", ".echo stop", Some("gc"), "; q"),
            ("j (poi(x)>5) ''; 'gc' ", "(poi(x)>5)", "", Some("gc"), " "),
            ("j (1) g; k; q", "(1)", "g", Some("k"), "; q"),
            ("j(1) g", "(1)", "g", None, ""),
        ] {
            let (block, rest) = parse(text).unwrap();
            let Block::If { branches, otherwise } = &block else { panic!("{text}") };
            assert_eq!((branches[0].0.trim(), branches[0].1, *otherwise, rest), (condition, yes, no, left), "{text}");
        }
        for text in ["j (0) 'a; b", "j (0) 'a' b", "j", "j ", "j (0 'a'; 'b'", "j (0) 'a'; 'b"] {
            assert!(!is_block(text) || parse(text).is_err(), "{text}");
        }
        assert!(!is_block("jx (1)") && is_block("j (1)"));
        assert_eq!(parse(".do { a; b } (1); c"), Ok((Block::Do { body: " a; b ", condition: "1" }, "; c")));
        assert_eq!(parse(".block { a; { b } } c"), Ok((Block::Plain(" a; { b } "), " c")));
        assert_eq!(parse(".catch{a}"), Ok((Block::Catch("a"), "")));
        assert!(parse(".do { a }").is_err() && parse(".block a").is_err());
    }

    #[test]
    fn variables_are_words() {
        assert_eq!(substitute("dd x; .echo ${x}x xx (x)", "x", "1"), "dd 1; .echo 1x xx (1)");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(text in "(\\.if|\\.foreach|\\.for|\\.while|\\.do|j)[ (){}\"'/sx1;.elsif]{0,60}", value in "\\PC{0,4}") {
            if let Ok((Block::ForEach { variable, body, .. }, _)) = parse(&text) {
                substitute(body, variable, &value);
            }
        }
    }
}
