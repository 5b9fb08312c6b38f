//! `!leak mark [name] [tag] [pooltype] [-file F]`

use std::fmt;
use std::path::{Path, PathBuf};

use nt_leaks::Mark;
use nt_pool::Tag;
use serde::Serialize;

use super::arguments::{Arguments, scope};
use super::{DEFAULT_NAME, Held, INFO, modules, with_pool};
use crate::answer::{Reply, Text};
use crate::commands::usage;
use crate::error::CommandError;
use crate::session::Context;
use crate::text::{Hex, visible_name};

#[derive(Serialize)]
struct Marked {
    mark: String,
    /// `null` when the mark is of all large allocations.
    tag: Option<String>,
    /// `null` when it could not be written.
    file: Option<String>,
    blocks: u64,
    bytes: u64,
    /// Blocks whose allocation the verifier's log still holds.
    with_stack: u64,
    log_entries: Option<u32>,
    log_index: Option<Hex>,
    uptime_ms: u64,
}

pub(super) fn run(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    let arguments = Arguments::parse(text)?;
    let mut words = arguments.words.iter().map(String::as_str);
    let name = name(words.next().unwrap_or(DEFAULT_NAME))?;
    let scope = scope(words.next(), words.next())?;
    if let Some(word) = words.next() {
        return Err(usage(&INFO, format!("'{}' is one word too many", visible_name(word))));
    }
    let mut notes = Vec::new();
    let held = take(context, &name, scope, &mut notes)?;
    let path = arguments.file.clone().unwrap_or_else(|| place(context, &name));
    let file = match held.mark.save(&path) {
        Ok(()) => Some(path.display().to_string()),
        Err(error) if arguments.file.is_some() => return Err(CommandError::Failed(error.to_string())),
        Err(error) => {
            notes.push(format!("{error}; the mark lasts as long as this session (-file names another place)"));
            None
        }
    };
    let answer = marked(&held.mark, file);
    context.session.leaks.insert(name, held);
    Ok(Reply::with_notes(answer, notes))
}

/// Takes a mark; notes say what it lacks.
pub(super) fn take(
    context: &mut Context<'_>,
    name: &str,
    scope: nt_leaks::Scope,
    notes: &mut Vec<String>,
) -> Result<Held, CommandError> {
    let modules = modules(context, notes)?;
    let mark =
        with_pool(context, &modules, |kernel, resolver| Ok(nt_leaks::mark(kernel, name, scope, &modules, resolver)?))?;
    notes.extend(mark.snapshot.notes.iter().cloned());
    if let Some(tag) = scope.tag
        && mark.snapshot.blocks.is_empty()
    {
        let tag = Tag::from_key(tag).0;
        notes.push(match mark.snapshot.counters.is_empty() {
            true => format!("nothing was ever allocated with the tag {tag} (tags are case-sensitive)"),
            false => format!(
                "no large and no verifier-tracked allocation has the tag {tag} now; smaller ones are not listed in this \
                 version"
            ),
        });
    }
    Ok(Held::new(mark))
}

/// A mark's name is a file's name too.
pub(super) fn name(text: &str) -> Result<String, CommandError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match !text.is_empty() && text.len() <= 64 && text.chars().all(plain) && !text.starts_with('.') {
        true => Ok(text.into()),
        false => Err(usage(
            &INFO,
            format!("a mark's name has letters, digits, - and _, and '{}' has others", visible_name(text)),
        )),
    }
}

/// Beside the session's log, else in the current directory.
pub(super) fn place(context: &Context<'_>, name: &str) -> PathBuf {
    let log = context.session.log.path();
    let directory = log.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    directory.join(format!("{name}.leak.json"))
}

fn marked(mark: &Mark, file: Option<String>) -> Marked {
    let blocks = &mark.snapshot.blocks;
    Marked {
        mark: mark.name.clone(),
        tag: mark.snapshot.scope.tag.map(|tag| Tag::from_key(tag).0.to_string()),
        file,
        blocks: blocks.len() as u64,
        bytes: blocks.iter().fold(0, |sum, block| u64::saturating_add(sum, block.size)),
        with_stack: blocks.iter().filter(|block| block.stack.is_some()).count() as u64,
        log_entries: mark.log.as_ref().map(|log| log.length),
        log_index: mark.log.as_ref().map(|log| Hex(log.index.into())),
        uptime_ms: mark.snapshot.times.interrupt / 10_000,
    }
}

impl Text for Marked {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let what = self.tag.as_ref().map_or("large allocations".into(), |tag| format!("blocks of {tag}"));
        writeln!(out, "Mark {}: {} {what}, {} bytes", self.mark, self.blocks, self.bytes)?;
        match self.log_entries {
            Some(_) => writeln!(out, "The verifier's log has the call stacks of {} of them.", self.with_stack)?,
            None => writeln!(out, "The kernel keeps no pool log: there will be no call stacks (see !leak setup).")?,
        }
        if let Some(file) = &self.file {
            writeln!(out, "Saved in {file}")?;
        }
        writeln!(out, "Let the target run (g), break in, then: !leak check {}", self.mark)
    }
}
