//! `!leak mark [name] [tag] [pooltype] [-file F]`

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use kd_target::Cost;
use nt_leaks::{Depth, Mark, SmallPool, Source, StackFrom, create_private_folder, small_pool, units};
use nt_pool::Tag;
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::{Arguments, no_more, scope};
use super::files::export;
use super::options::Sub;
use super::{DEFAULT_NAME, Held, INFO, modules, with_pool};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::leftover::state_folder;
use crate::output::difference;
use crate::session::Context;
use crate::shell::Drive;
use crate::text::{Hex, is_plain, visible_name};

#[derive(JsonSchema, Serialize)]
pub(super) struct Marked {
    mark: String,
    /// `null` when the mark is of all large allocations.
    tag: Option<String>,
    /// `null` when it could not be written.
    file: Option<String>,
    blocks: u64,
    bytes: u64,
    /// Blocks whose allocation the verifier's log still holds.
    with_stack: u64,
    /// Blocks of which only the caller is known.
    with_caller: u64,
    /// Blocks below a page, which the pool's own pages hold.
    small: u64,
    /// Whether all of those are there.
    small_complete: bool,
    log_entries: Option<u32>,
    log_index: Option<Hex>,
    uptime_ms: u64,
}

pub(super) fn run(drive: &mut Drive<'_>, text: &str) -> Result<Reply, CommandError> {
    let arguments = Arguments::parse(Sub::Mark, text)?;
    let mut words = arguments.words.iter().map(String::as_str);
    let name = name(words.next().unwrap_or(DEFAULT_NAME))?;
    let mut scope = scope(words.next(), words.next()).map_err(|why| usage(&INFO, why))?;
    scope.paged = scope.paged.or(arguments.paged);
    no_more(words)?;
    if arguments.all && scope.tag.is_some() {
        return Err(usage(&INFO, "-all is for marks without a tag; -small adds the small blocks of a tag"));
    }
    let mut notes = Vec::new();
    let mut depth = Depth { small: arguments.small.then_some(NO_LIMIT), prints: true, without_records: false };
    let before = (drive.cost(), Instant::now());
    let mut held = drive.with(|context| take(context, &name, scope, depth, &mut notes))?;
    if depth.small.is_none()
        && let Some(bytes) = wanted_search(drive, &held.mark, before, &mut notes)?
    {
        depth.small = Some(bytes);
        notes.clear();
        held = drive.with(|context| take(context, &name, scope, depth, &mut notes))?;
    }
    let also_tag = match arguments.words.as_slice() {
        [word] => is_tag(word, &held.mark).then(|| {
            format!(
                "{word} is a tag, too; this is a mark of all large allocations, with that name. For the tag's blocks: \
                 !leak mark {DEFAULT_NAME} {word}"
            )
        }),
        _ => None,
    };
    drive.with(|context| {
        let file = match (&arguments.file, place(&name)) {
            (Some(file), _) => {
                held.mark.save(file).map_err(|error| CommandError::Failed(error.to_string()))?;
                Some(file.display().to_string())
            }
            (None, Ok(path)) => match held.mark.save(&path) {
                Ok(()) => Some(path.display().to_string()),
                Err(error) => {
                    notes.push(format!("{error}; the mark lasts as long as this session (-file names another place)"));
                    None
                }
            },
            (None, Err(why)) => {
                notes.push(format!("{why}; the mark lasts as long as this session (-file names another place)"));
                None
            }
        };
        export(&held.mark, None, &arguments.report)?;
        let answer = marked(&held.mark, file);
        context.session.leaks.insert(name, held);
        Ok(Reply { remarks: also_tag.into_iter().collect(), ..Reply::with_notes(answer, notes) })
    })
}

/// Whether a mark's name is a tag that the kernel counts or the mark has blocks of: who types one word may mean that.
fn is_tag(name: &str, mark: &Mark) -> bool {
    let Ok(nt_leaks::Scope { tag: Some(key), .. }) = scope(Some(name), None) else { return false };
    mark.snapshot.counters.contains_key(&key) || mark.snapshot.blocks.iter().any(|block| block.tag == key)
}

const NO_LIMIT: u64 = u64::MAX;

/// So many bytes of pool are searched for small blocks without asking.
const CHEAP: u64 = 8 << 20;

/// How much pool is to be searched for small blocks: what costs little is, and who sits at a terminal is asked about
/// the rest. `before`: what the session had cost when the mark was begun, and when that was.
fn wanted_search(
    drive: &mut Drive<'_>,
    mark: &Mark,
    before: (Cost, Instant),
    notes: &mut Vec<String>,
) -> Result<Option<u64>, CommandError> {
    let scope = mark.snapshot.scope;
    let mut hits = 0;
    let what = match scope.tag {
        Some(tag) => match mark.snapshot.unlisted(tag) {
            Some(0) => return Ok(None),
            None => {
                let tag = Tag::from_key(tag).0;
                notes.push(format!(
                    "how many blocks of {tag} are in use is not known from its counters: small blocks are not listed; \
                     -small lists them"
                ));
                return Ok(None);
            }
            Some(more) => {
                hits = more;
                format!("the kernel counts {more} more allocations of {} than are listed", Tag::from_key(tag).0)
            }
        },
        // A script that wants all pool says so.
        None if !drive.is_interactive() => return Ok(None),
        None => "this is a mark of all large allocations".into(),
    };
    let SmallPool { pool, read } = match drive.with(|context| context.pool(|kernel| small_pool(kernel, scope, hits))) {
        Ok(pool) => pool,
        Err(error @ (CommandError::Pool(_) | CommandError::Read(_))) => {
            notes.push(format!("{what}, and small blocks cannot be looked for: {error}"));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if read <= CHEAP && scope.tag.is_some() {
        return Ok(Some(pool));
    }
    let spent = difference(before.0, drive.cost());
    let rate = spent.bytes_read as f64 / before.1.elapsed().as_secs_f64().max(1e-3);
    let estimate = format!(
        "{what}; to list small blocks too, {} of pool are to be read, which takes about {}",
        units::bytes(read as f64),
        units::time(read as f64 / rate.max(1.0) * 1000.0)
    );
    if drive.ask(&format!("{estimate}. Do it?")) == Some(true) {
        return Ok(Some(NO_LIMIT));
    }
    let option = if scope.tag.is_some() { "-small" } else { "-all" };
    notes.push(format!("{estimate}; {option} does it"));
    Ok(None)
}

/// Takes a mark; notes say what it lacks.
pub(super) fn take(
    context: &mut Context<'_>,
    name: &str,
    scope: nt_leaks::Scope,
    depth: Depth,
    notes: &mut Vec<String>,
) -> Result<Held, CommandError> {
    let modules = modules(context, notes)?;
    let mark = with_pool(context, &modules, |kernel, resolver| {
        Ok(nt_leaks::mark(kernel, name, scope, depth, &modules, resolver)?)
    })?;
    let snapshot = &mark.snapshot;
    if snapshot.blocks.is_empty() && !snapshot.complete {
        // Nothing was seen, and that is not because nothing is there.
        let why = snapshot.notes.last().map_or("its books cannot be read", String::as_str);
        return Err(CommandError::Failed(format!("there is nothing to mark: {why}")));
    }
    notes.extend(mark.snapshot.notes.iter().cloned());
    if let Some(tag) = scope.tag
        && mark.snapshot.blocks.is_empty()
    {
        let tag = Tag::from_key(tag).0;
        notes.push(match (mark.snapshot.counters.is_empty(), mark.snapshot.outstanding(tag.key())) {
            (true, _) => format!("nothing was ever allocated with the tag {tag} (tags are case-sensitive)"),
            (false, Some(0)) => format!("no allocation with the tag {tag} is in use now"),
            (false, _) => format!("tag {tag}: its small allocations are counted, not listed"),
        });
    }
    Ok(Held::new(mark))
}

/// A mark's name is a file's name too.
pub(super) fn name(text: &str) -> Result<String, CommandError> {
    match text.len() <= 64 && is_plain(text) && !text.starts_with('.') {
        true => Ok(text.into()),
        false => Err(usage(
            &INFO,
            format!("a mark's name has letters, digits, - and _, and '{}' has others", visible_name(text)),
        )),
    }
}

/// In the folder where kdpool keeps its state, which is made if need be.
pub(super) fn place(name: &str) -> Result<PathBuf, String> {
    let folder = state_folder().ok_or("there is no folder for marks (set KDPOOL_STATE)")?.join("marks");
    create_private_folder(&folder).map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))?;
    Ok(folder.join(format!("{name}.leak.json")))
}

fn marked(mark: &Mark, file: Option<String>) -> Marked {
    let blocks = &mark.snapshot.blocks;
    let count = |which: &dyn Fn(&nt_leaks::Block) -> bool| blocks.iter().filter(|block| which(block)).count() as u64;
    Marked {
        mark: mark.name.clone(),
        tag: mark.snapshot.scope.tag.map(|tag| Tag::from_key(tag).0.to_string()),
        file,
        blocks: blocks.len() as u64,
        bytes: blocks.iter().fold(0, |sum, block| u64::saturating_add(sum, block.size)),
        with_stack: count(&|block| block.stack_from == Some(StackFrom::Log)),
        with_caller: count(&|block| block.stack_from == Some(StackFrom::Verifier)),
        small: count(&|block| block.source == Source::Small),
        small_complete: mark.snapshot.small_complete,
        log_entries: mark.log.as_ref().map(|log| log.length),
        log_index: mark.log.as_ref().map(|log| Hex(log.index.into())),
        uptime_ms: mark.snapshot.times.interrupt / 10_000,
    }
}

impl Text for Marked {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let what = match &self.tag {
            Some(tag) => format!("blocks of {tag}"),
            None if self.small > 0 => format!("blocks, {} of them small", self.small),
            None => "large allocations".into(),
        };
        writeln!(out, "Mark {}: {} {what}, {} bytes", self.mark, self.blocks, self.bytes)?;
        match self.log_entries {
            Some(_) => writeln!(out, "The verifier's log has the call stacks of {} of them.", self.with_stack)?,
            None => writeln!(out, "The kernel keeps no pool log: there will be no call stacks (see !leak setup).")?,
        }
        if self.with_caller > 0 {
            writeln!(out, "Of {} more the verifier knows who called.", self.with_caller)?;
        }
        if let Some(file) = &self.file {
            writeln!(out, "Saved in {file}")?;
        }
        writeln!(out, "Let the target run (g), break in, then: !leak check {}", self.mark)
    }
}
