//! `!leak report F [F2]`: what a file holds, named with the symbols that are here.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use nt_leaks::{CheckReport, PdbName, Saved, WatchReport, compare, contents, umdh, umdh_snapshot};
use nt_symbols::{PdbId, SymbolFile};
use schemars::JsonSchema;
use serde::Serialize;

use super::INFO;
use super::arguments::{Arguments, FailOn, Options};
use super::check::write_report;
use super::files::{Source, write_files};
use super::mark::place;
use super::watched::{Origin, Watched, mood};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::words::unquoted;
use crate::session::{HuntEnd, Session};
use crate::shell::Drive;
use crate::symbols::{Load, with_offset};
use crate::text::{Width, is_plain, visible_name};

enum Kind {
    /// What a mark holds.
    Contents,
    /// Two marks compared.
    Difference,
    Check,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Reported {
    #[serde(flatten)]
    report: CheckReport,
    #[serde(skip)]
    kind: Kind,
    #[serde(skip)]
    options: Options,
}

pub(super) fn run(drive: &mut Drive<'_>, asked: &Arguments) -> Result<Reply, CommandError> {
    let mut notes = Vec::new();
    let mut files = Vec::new();
    for word in &asked.words {
        let path = named(unquoted(word));
        files.push(drive.with(|context| load(context.session, &path, &mut notes))?);
    }
    let mut files = files.into_iter();
    let (report, kind) = match (files.next(), files.next(), files.next()) {
        (Some(Saved::Watch(watch)), None, _) => return watched(drive, *watch, asked, notes),
        (Some(Saved::Mark(mark)), None, _) => (contents(&mark), Kind::Contents),
        (Some(Saved::Report(report)), None, _) => (*report, Kind::Check),
        (Some(Saved::Mark(old)), Some(Saved::Mark(new)), None) => {
            (compare(&old, &new).map_err(|error| CommandError::Failed(error.to_string()))?, Kind::Difference)
        }
        (None, ..) => return Err(usage(&INFO, "which file?")),
        _ => return Err(usage(&INFO, "one file, or two marks to compare")),
    };
    notes.extend(report.notes.iter().cloned());
    write_files(&Source::of_check(&report, None), &report, &asked.report)?;
    Ok(Reply::with_notes(Reported { report, kind, options: asked.report.clone() }, notes))
}

/// A file, or the name of a mark.
pub(super) fn named(word: &str) -> PathBuf {
    let path = PathBuf::from(word);
    let mark = || Some(place(word).ok()?).filter(|mark| mark.is_file());
    if !path.exists() && is_plain(word) { mark().unwrap_or(path) } else { path }
}

/// A watch as it was shown when it ended, with the names that are known here.
fn watched(
    drive: &mut Drive<'_>,
    mut watch: WatchReport,
    asked: &Arguments,
    notes: Vec<String>,
) -> Result<Reply, CommandError> {
    name_culprit(&mut watch, asked);
    watch.others.iter_mut().for_each(|other| name_culprit(other, asked));
    let strict = asked.fail_on == Some(FailOn::Growing);
    write_files(&Source::of_watch(&watch, strict), &watch, &asked.report)?;
    let fails = asked.fails(&watch);
    drive.with(|context| {
        if fails {
            context.session.hunt_end = HuntEnd::Found;
        }
    });
    for watch in watch.all() {
        drive.say_headline(&watch.headline, mood(watch.outcome));
    }
    let answer = Watched::new(watch, asked.report.clone(), Width::Eight, Origin::File, notes.len());
    Ok(Reply::with_notes(answer, notes))
}

fn name_culprit(watch: &mut WatchReport, asked: &Arguments) {
    watch.culprit = watch.last.as_ref().and_then(|last| nt_leaks::culprit(last, &asked.report.skip));
    watch.headline = watch.make_headline();
}

/// Reads a file and names its frames.
pub(super) fn load(session: &Session, path: &Path, notes: &mut Vec<String>) -> Result<Saved, CommandError> {
    let mut saved = Saved::load(path).map_err(|error| CommandError::Failed(error.to_string()))?;
    let source = session.symbols.source();
    let mut files: HashMap<(String, String, u32), Option<std::sync::Arc<dyn SymbolFile>>> = HashMap::new();
    let mut fault = None;
    saved.name(&mut |pdb: &PdbName, rva| {
        let key = (pdb.file.clone(), pdb.guid.clone(), pdb.age);
        let file = files.entry(key).or_insert_with(|| {
            let guid = u128::from_str_radix(&pdb.guid, 16).ok()?;
            match source.find_pdb(&pdb.file, PdbId { guid, age: pdb.age }) {
                Ok(Load::Loaded { file, .. }) => Some(file),
                Ok(Load::Missing { why, .. }) => {
                    notes.push(why);
                    None
                }
                Err(error) => {
                    fault = Some(error);
                    None
                }
            }
        });
        let symbol = file.as_ref()?.around(rva).0?;
        let name = visible_name(&symbol.name);
        Some(with_offset(name, (rva - symbol.rva).into()))
    });
    match fault {
        Some(fault) => Err(fault.into()),
        None => Ok(saved),
    }
}

impl Text for Reported {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Options { skip, decimal, .. } = &self.options;
        match self.kind {
            Kind::Contents => {
                writeln!(out, "Mark {}:\n", self.report.mark)?;
                umdh_snapshot(&self.report, skip, *decimal, out)
            }
            Kind::Difference => {
                let seconds = self.report.elapsed_ms as f64 / 1000.0;
                writeln!(out, "Marks {}, {seconds:.1} s apart:\n", self.report.mark)?;
                umdh(&self.report, skip, *decimal, out)
            }
            Kind::Check => write_report(&self.report, &self.options, Width::Eight, out),
        }
    }
}
