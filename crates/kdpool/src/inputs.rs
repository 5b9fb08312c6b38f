//! What a session starts with: symbol path, pool tags, log, and who is asked and told.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use console::Term;
use kd_shell::{Consent, Log, Monitor, PathSource, PoolTags, Question, Session, Sink, Symbols};

use crate::console::{ask, complain, fitting, is_interactive, remark};
use crate::options::{Format, SessionArgs};
use crate::progress;

/// The session that the command line describes; `aside`: a program reads standard output.
pub(crate) fn session(arguments: &SessionArgs, aside: bool) -> Result<Session> {
    let json = arguments.format == Format::Json;
    let log = Log::default();
    let source = symbols(arguments.symbol_path.as_deref()).watched(monitor(log.clone(), json));
    let file = arguments.logo.as_ref().map(|path| (path, false)).or(arguments.loga.as_ref().map(|path| (path, true)));
    if let Some((path, append)) = file {
        log.open(path, append).with_context(|| format!("cannot open the log file {}", path.display()))?;
    }
    let mut session = Session::new(Symbols::new(Box::new(source)), pool_tags(arguments)?, log);
    session.allow_write = arguments.allow_write;
    // In JSON the costs stand in the answers, and whoever asked for them decides with --yes.
    let say = move |line: &str| remark(&fitting(&Term::stderr(), line), true);
    let question = (is_interactive() && !aside).then(|| Box::new(ask) as Question);
    session.consent = Some(Arc::new(Consent::new(Box::new(say), question, arguments.yes)));
    Ok(session)
}

/// What is said while symbols are looked for: noisy lines where the answers go, and progress to who looks at it.
fn monitor(log: Log, json: bool) -> Monitor {
    let lines = move |text: &str| {
        log.write(text);
        remark(text, json);
    };
    let progress = |text: &str| {
        progress::clear();
        let mut terminal = io::stderr().lock();
        // With standard error gone there is nobody to tell.
        let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
    };
    let terminal = io::stderr().is_terminal() && io::stdin().is_terminal();
    let monitor = Monitor::new(Box::new(lines), terminal.then(|| Box::new(progress) as Sink));
    if is_interactive() && !json { monitor.asking(Box::new(ask)) } else { monitor }
}

/// Where a path or a part of it comes from, and what it says: `-y`, else `_NT_ALT_SYMBOL_PATH` before `_NT_SYMBOL_PATH`,
/// as in kd.
fn paths(option: Option<&str>) -> Vec<(&'static str, String)> {
    match option {
        Some(path) => vec![("-y", path.to_owned())],
        None => {
            let variable = |name| Some((name, std::env::var(name).ok()?));
            ["_NT_ALT_SYMBOL_PATH", "_NT_SYMBOL_PATH"].into_iter().filter_map(variable).collect()
        }
    }
}

pub(crate) fn symbol_path(option: Option<&str>) -> String {
    let parts: Vec<String> = paths(option).into_iter().map(|(_, path)| path).collect();
    parts.join(";")
}

/// The symbols along the path. What of it is of no use is told, with who said it, and the rest is used.
pub(crate) fn symbols(option: Option<&str>) -> PathSource {
    let mut used = Vec::new();
    for (name, path) in paths(option) {
        let (path, refused) = nt_symbols::SymbolPath::read(&path);
        refused.iter().for_each(|error| complain(&format!("{name}: {error}")));
        if !path.is_empty() {
            used.push(path.to_string());
        }
    }
    nt_symbols::Http::refused_proxies().iter().for_each(|line| complain(line));
    // Each part was read, so all of it is of use.
    PathSource::read(&used.join(";")).0
}

fn pool_tags(arguments: &SessionArgs) -> Result<PoolTags> {
    let named = arguments.pooltag.clone().or_else(|| std::env::var_os("KDPOOL_POOLTAG").map(PathBuf::from));
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("pooltag.txt")).filter(|path| path.exists());
    let Some(path) = named.or_else(beside) else { return Ok(PoolTags::built_in()) };
    let text = std::fs::File::open(&path).and_then(|file| heap_limit::read_whole(file, kd_shell::MAX_POOLTAG));
    let text = text.with_context(|| format!("cannot read the pool tags {}", path.display()))?;
    let tags = PoolTags::parse(&text).with_context(|| format!("pool tags {}", path.display()))?;
    if let Some(unread) = tags.unread() {
        let what = if unread.lines == 1 { "1 line says".to_owned() } else { format!("{} lines say", unread.lines) };
        complain(&format!(
            "{}: {what} nothing of any tag (the first is line {}); a line is: Tag - binary - description",
            path.display(),
            unread.first
        ));
    }
    Ok(tags.or(PoolTags::built_in()))
}
