//! Help as it is written in the commands, laid out for a terminal of any width.
//!
//! ```text
//! Plain lines that follow one another are one paragraph, wherever they end in the source.
//!
//! term      a line with two blanks or more in it is a row of a table
//!           which lines that begin with eight blanks go on
//! a term that is too long for its column, with its words below
//!                                 where the column is
//! ```
//!
//! Nothing is longer than the width, no word is broken, and a row's words stay in their column.

use std::fmt::{self, Write};

use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// A terminal of which nothing is known.
pub(crate) const COLUMNS: usize = 80;

/// The widest first column of a table, when its terms are longer.
const TERMS: usize = 26;

/// Words that begin here belong to the term above them.
const COLUMN: usize = 24;

enum Block {
    Paragraph(String),
    Blank,
    /// Term and explanation.
    Rows(Vec<(String, String)>),
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let indent = line.len() - line.trim_start_matches(' ').len();
        let is_more = indent >= 8;
        match (blocks.last_mut(), row(line)) {
            _ if words.is_empty() => blocks.push(Block::Blank),
            (Some(Block::Paragraph(term)), _) if indent >= COLUMN => {
                let row = (std::mem::take(term), words);
                blocks.pop();
                match blocks.last_mut() {
                    Some(Block::Rows(rows)) => rows.push(row),
                    _ => blocks.push(Block::Rows(vec![row])),
                }
            }
            (Some(Block::Rows(rows)), _) if is_more => {
                if let Some((_, explanation)) = rows.last_mut() {
                    explanation.push(' ');
                    explanation.push_str(&words);
                }
            }
            (Some(Block::Rows(rows)), Some(row)) => rows.push(row),
            (_, Some(row)) => blocks.push(Block::Rows(vec![row])),
            (Some(Block::Paragraph(text)), None) if !words.starts_with("Example") => {
                text.push(' ');
                text.push_str(&words);
            }
            (_, None) => blocks.push(Block::Paragraph(words)),
        }
    }
    blocks
}

/// What stands before and after the first two blanks.
fn row(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (term, explanation) = line.split_once("  ")?;
    Some((term.to_owned(), explanation.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// `text` in lines of at most `width`, the first after `first` and the others after `rest`.
pub(crate) fn wrap(text: &str, width: usize, first: &str, rest: &str) -> String {
    let options = Options::new(width.max(20))
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .initial_indent(first)
        .subsequent_indent(rest);
    textwrap::fill(text, options)
}

/// Writes `text` after `indent` blanks.
pub(crate) fn lay_out(text: &str, width: usize, indent: usize, out: &mut dyn Write) -> fmt::Result {
    let margin = " ".repeat(indent);
    for block in blocks(text) {
        match block {
            Block::Blank => writeln!(out)?,
            Block::Paragraph(text) => writeln!(out, "{}", wrap(&text, width, &margin, &margin))?,
            Block::Rows(rows) => table(&rows, width, indent, out)?,
        }
    }
    Ok(())
}

/// Writes rows whose explanations begin in one column.
pub(crate) fn table(
    rows: &[(impl AsRef<str>, impl AsRef<str>)],
    width: usize,
    indent: usize,
    out: &mut dyn Write,
) -> fmt::Result {
    let margin = " ".repeat(indent + 2);
    let longest = rows.iter().map(|(term, _)| term.as_ref().chars().count()).filter(|length| *length <= TERMS).max();
    let column = indent + 2 + longest.unwrap_or(2) + 2;
    let rest = " ".repeat(column);
    for (term, explanation) in rows {
        let (term, explanation) = (term.as_ref(), explanation.as_ref());
        let beside = indent + 2 + term.chars().count() + 2;
        if beside <= column {
            let first = format!("{margin}{term}{}", " ".repeat(column - beside + 2));
            writeln!(out, "{}", wrap(explanation, width, &first, &rest))?;
        } else {
            writeln!(out, "{}", wrap(term, width, &margin, &format!("{margin}    ")))?;
            writeln!(out, "{}", wrap(explanation, width, &rest, &rest))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, width: usize) -> String {
        let mut out = String::new();
        lay_out(text, width, 0, &mut out).unwrap();
        out
    }

    const TEXT: &str = "One paragraph that was\nbroken somewhere in the source.\n-a     first\n--much-longer-than-that-one x  second,\n\
                        \x20                               and more of it\nThe end.\nExample: one";

    #[test]
    fn paragraphs_and_tables() {
        let wide = "One paragraph that was broken somewhere in the source.\n  -a  first\n  --much-longer-than-that-one x\n\
                    \x20     second, and more of it\nThe end.\nExample: one\n";
        assert_eq!(shown(TEXT, 80), wide);
        let narrow = "One paragraph that was broken\nsomewhere in the source.\n  -a  first\n\
                      \x20 --much-longer-than-that-one\n      x\n      second, and more of it\nThe end.\nExample: one\n";
        assert_eq!(shown(TEXT, 29), narrow);
    }

    #[test]
    fn a_long_term_has_its_words_below() {
        let text = "mark [name]              remember it\n\
                    watch tag [-every 30s] [-times N] [-for 10m]\n\
                    \x20           [options]\n\
                    \x20                        whether it leaks,\n\
                    \x20                        and who";
        let wide = "  mark [name]  remember it\n  watch tag [-every 30s] [-times N] [-for 10m] [options]\n               whether it leaks, and who\n";
        assert_eq!(shown(text, 80), wide);
    }

    #[test]
    fn no_word_is_lost_or_broken() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for width in 20..100 {
            let text = shown(TEXT, width);
            assert_eq!(words(&text), words(TEXT), "{width}");
            let longest = text.lines().map(str::len).max().unwrap();
            assert!(longest <= width.max(29), "{width}: {text}");
        }
    }
}
