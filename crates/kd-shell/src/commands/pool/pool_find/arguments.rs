//! What is typed behind `!poolfind`.

use std::time::Duration;

use nt_pool::Tag;
use nt_pool::find::{Bounds, Pool, Question, Sizes};

use super::super::cost::LIMIT;
use super::INFO;
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::{duration, pattern, unclosed, unquoted};
use crate::session::StoppedSearch;
use crate::text::words;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) question: Question,
    pub(super) bounds: Bounds,
    /// What is run for each block.
    pub(super) command: Option<String>,
}

/// Options as they stand, in any order; what was not said is `None` or false.
#[derive(Default)]
struct Options {
    tag: Option<nt_pool::TagPattern>,
    pool: Option<Pool>,
    global: bool,
    small: bool,
    large: bool,
    free: bool,
    process: bool,
    bulk: bool,
    resume: bool,
    from: Option<u64>,
    limit: Option<u64>,
    budget: Option<Duration>,
    command: Option<String>,
}

/// `stopped`: the search that `-resume` takes up.
pub(super) fn parse(text: &str, stopped: Option<&StoppedSearch>) -> Result<Arguments, CommandError> {
    let options = Options::parse(text)?;
    if options.process && options.large {
        return Err(usage(&INFO, "-process is about small blocks: large ones have no header that names a process"));
    }
    let Arguments { mut question, mut bounds, mut command } = match options.resume {
        true => options.resumed(stopped)?,
        false => {
            let tag = options.tag.clone().ok_or_else(|| usage(&INFO, "no tag"))?;
            let question = Question { from: options.from.unwrap_or(0), ..Question::new(tag) };
            Arguments { question, bounds: Bounds { bytes: LIMIT << 20, budget: None }, command: None }
        }
    };
    bounds.bytes = options.limit.unwrap_or(bounds.bytes);
    bounds.budget = options.budget.or(bounds.budget);
    command = options.command.or(command);
    question.pool = options.pool.or(question.pool);
    question.global |= options.global;
    question.free |= options.free;
    question.process |= options.process;
    question.bulk |= options.bulk;
    question.sizes = match (options.small || options.process, options.large) {
        (true, false) => Sizes::Small,
        (false, true) => Sizes::Large,
        (true, true) => Sizes::All,
        (false, false) => question.sizes,
    };
    Ok(Arguments { question, bounds, command })
}

impl Options {
    fn parse(text: &str) -> Result<Self, CommandError> {
        if let Some(mark) = unclosed(text) {
            return Err(usage(&INFO, format!("the quote {mark} has no end")));
        }
        let mut options = Options::default();
        let mut words = words(text);
        while let Some(option) = words.next() {
            let mut number = |what: &str| {
                let value = words.next().and_then(plain_number);
                value.ok_or_else(|| usage(&INFO, format!("{option} needs {what}")))
            };
            match option {
                "-tag" => {}
                "-global" => options.global = true,
                "-small" => options.small = true,
                "-large" => options.large = true,
                "-free" => options.free = true,
                "-process" => options.process = true,
                "-bulk" => options.bulk = true,
                "-resume" => options.resume = true,
                "-limit" => options.limit = Some(number("a number of megabytes")?.saturating_mul(1 << 20)),
                "-from" => options.from = Some(number("an address")?),
                "-budget" => {
                    let time = words.next().and_then(duration);
                    options.budget = Some(time.ok_or_else(|| usage(&INFO, "-budget needs a time (500ms, 30s, 5m)"))?);
                }
                "-x" => {
                    let command = words.next().map(|word| unquoted(word).trim());
                    let command = command.filter(|command| !command.is_empty());
                    options.command = Some(command.ok_or_else(|| usage(&INFO, "-x needs a command"))?.into());
                }
                word if word.starts_with('-') => match pool(word) {
                    Some(pool) => options.pool = Some(pool),
                    None => return Err(usage(&INFO, format!("unknown option '{word}'"))),
                },
                word if options.tag.is_none() => {
                    options.tag = Some(pattern(word).map_err(|error| usage(&INFO, error))?);
                }
                word => {
                    let known = pool(word);
                    let unknown = || usage(&INFO, format!("'{word}' is no pool type; they are 0, 1, 2 and 4"));
                    options.pool = Some(known.ok_or_else(unknown)?);
                }
            }
        }
        Ok(options)
    }

    /// The search that was stopped, from where it was stopped. What is named again must be the same; how far it goes
    /// and what is done with its blocks may be said anew.
    fn resumed(&self, stopped: Option<&StoppedSearch>) -> Result<Arguments, CommandError> {
        let stopped = stopped.ok_or_else(|| CommandError::Failed("no search was stopped".into()))?;
        let StoppedSearch { question, bounds, command, place } = stopped;
        let differs = |what: &str| {
            Err(CommandError::Failed(format!(
                "the search that was stopped is one for {} with another {what}; without -resume a new one begins",
                question.tag
            )))
        };
        if self.tag.as_ref().is_some_and(|tag| *tag != question.tag) {
            return differs("tag");
        }
        if self.pool.is_some_and(|pool| question.pool != Some(pool)) {
            return differs("pool type");
        }
        if self.large {
            return Err(usage(&INFO, "-resume goes on with small blocks; -large leaves them out"));
        }
        if self.from.is_some() {
            return Err(usage(&INFO, "-resume knows where to go on; -from says it, too"));
        }
        let question = Question { resumed: Some(*place), ..question.clone() };
        Ok(Arguments { question, bounds: *bounds, command: command.clone() })
    }
}

/// A pool type as a number or as an option.
fn pool(word: &str) -> Option<Pool> {
    Some(match word {
        "-nonpaged" => Pool::NonPaged,
        "-paged" => Pool::Paged,
        "-special" => Pool::Special,
        "-session" => Pool::Session,
        number => match plain_number(number)? {
            0 => Pool::NonPaged,
            1 => Pool::Paged,
            2 => Pool::Special,
            4 => Pool::Session,
            _ => return None,
        },
    })
}

/// Four characters as the value that the kernel has.
pub(super) fn key(tag: &str) -> u32 {
    let tag: Option<[u8; 4]> = tag.as_bytes().first_chunk().copied();
    tag.map_or(0, |tag| Tag(tag).key())
}
