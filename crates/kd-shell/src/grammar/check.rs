//! Commands that are kept for later are looked at when they are stored: a word that nobody knows is refused at once, and
//! not at the first hit of a breakpoint.

use super::block::{Block, BlockError, Tokens};
use super::expression::expression_end;
use super::line::{Statement, statements};

/// What is wrong with commands that were to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A statement whose command nobody knows.
    #[error("there is no command '{0}'")]
    Unknown(String),
    /// A block that is not closed, or is no block.
    #[error(transparent)]
    Block(BlockError),
    /// A condition that is no expression.
    #[error("'{0}' is no condition")]
    Condition(String),
    /// Blocks within blocks, deeper than anybody writes.
    #[error("blocks are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// Blocks in each other.
const MAX_DEPTH: usize = 16;

/// Whether each statement of `text` can be run, as far as that is known before it is: `known` says what is a command's
/// word. Words that are put together later (`${name}`) are passed over.
pub fn check(text: &str, known: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
    each(text, known, 0)
}

fn each(text: &str, known: &dyn Fn(&str) -> bool, depth: usize) -> Result<(), Refusal> {
    if depth > MAX_DEPTH {
        return Err(Refusal::TooDeep);
    }
    for statement in statements(text) {
        match statement {
            Statement::Command(command) if command.text.contains("${") || known(&command.word) => {}
            Statement::Command(command) => return Err(Refusal::Unknown(command.text.into())),
            Statement::Script { .. } => {}
            Statement::Block(Err(error)) => return Err(Refusal::Block(error)),
            Statement::Block(Ok(block)) => inside(&block, known, depth + 1)?,
        }
    }
    Ok(())
}

fn inside(block: &Block<'_>, known: &dyn Fn(&str) -> bool, depth: usize) -> Result<(), Refusal> {
    match block {
        Block::If { branches, otherwise } => {
            for (expression, commands) in branches {
                condition(expression)?;
                each(commands, known, depth)?;
            }
            otherwise.map_or(Ok(()), |commands| each(commands, known, depth))
        }
        Block::Loop { first, condition: expression, step, body } => {
            condition(expression)?;
            [first, step, body].into_iter().try_for_each(|commands| each(commands, known, depth))
        }
        Block::Do { body, condition: expression } => {
            condition(expression)?;
            each(body, known, depth)
        }
        Block::Plain(body) | Block::Catch(body) => each(body, known, depth),
        Block::ForEach { variable, tokens, body, .. } => {
            if let Tokens::Output(commands) = tokens {
                each(commands, known, depth)?;
            }
            // The variable may stand for a command.
            each(body, &|word| word.eq_ignore_ascii_case(variable) || known(word), depth)
        }
    }
}

fn condition(text: &str) -> Result<(), Refusal> {
    if text.contains("${") {
        return Ok(());
    }
    match expression_end(text) {
        Ok(left) if left.trim().is_empty() => Ok(()),
        _ => Err(Refusal::Condition(text.trim().into())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(word: &str) -> bool {
        ["g", "k", "ed", ".echo", "r"].contains(&word)
    }

    #[test]
    fn unknown_words_are_found_wherever_they_stand() {
        for text in [
            "",
            "k; g",
            ".if (1) { k; g } .else { g }",
            "j (1) 'k; g'; 'g'",
            ".foreach (x { .echo a }) { x; .echo x }",
            ".for (r $t0=0; @$t0 < 3; r $t0=@$t0+1) { k }",
            ".do { k } (0); .catch { k }; .block { g }",
            "${word} a; k",
            ".if (${x} == 1) { g }",
            "$$<file; g",
        ] {
            assert_eq!(check(text, &known), Ok(()), "{text}");
        }
        for text in [
            "kay; g",
            "k; gee",
            ".if (1) { kay }",
            ".if (1) { k } .else { kay }",
            ".if (1 + ) { k }",
            ".while (1 2) { k }",
            "j (1) 'kay'; 'g'",
            "j (1) 'k",
            ".foreach (x { kay }) { x }",
            ".foreach (x { k }) { kay }",
            ".catch { kay }",
            ".do { k }",
            "k; .if (1) { g",
        ] {
            assert!(check(text, &known).is_err(), "{text}");
        }
        let deep = ".block { ".repeat(100) + &"}".repeat(100);
        assert_eq!(check(&deep, &known), Err(Refusal::TooDeep));
    }

    proptest! {
        #[test]
        fn any_text_is_checked(text in "[gk;{}()'\" .if$1]{0,60}") {
            let _ = check(&text, &known);
        }
    }
}
