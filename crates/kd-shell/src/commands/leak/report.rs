//! `!leak report F [F2]`: what a file holds, named with the symbols that are here.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use nt_leaks::{CheckReport, PdbName, Saved, compare, contents, umdh, umdh_snapshot};
use nt_symbols::{PdbId, SymbolFile};
use serde::Serialize;

use super::INFO;
use super::arguments::{Arguments, Options};
use super::check::write_report;
use super::files::write_files;
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::session::{Context, Session};
use crate::symbols::{Load, with_offset};
use crate::text::{Width, visible_name};

enum Kind {
    /// What a mark holds.
    Contents,
    /// Two marks compared.
    Difference,
    Check,
}

#[derive(Serialize)]
struct Reported {
    #[serde(flatten)]
    report: CheckReport,
    #[serde(skip)]
    kind: Kind,
    #[serde(skip)]
    options: Options,
}

pub(super) fn run(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    let arguments = Arguments::parse(text)?;
    let mut notes = Vec::new();
    let mut files = Vec::new();
    for word in &arguments.words {
        let path = word.trim_matches(['"', '\'']);
        files.push(load(context.session, Path::new(path), &mut notes)?);
    }
    let mut files = files.into_iter();
    let (report, kind) = match (files.next(), files.next(), files.next()) {
        (Some(Saved::Mark(mark)), None, _) => (contents(&mark), Kind::Contents),
        (Some(Saved::Report(report)), None, _) => (*report, Kind::Check),
        (Some(Saved::Mark(old)), Some(Saved::Mark(new)), None) => {
            (compare(&old, &new).map_err(|error| CommandError::Failed(error.to_string()))?, Kind::Difference)
        }
        (None, ..) => return Err(usage(&INFO, "which file?")),
        _ => return Err(usage(&INFO, "one file, or two marks to compare")),
    };
    notes.extend(report.notes.iter().cloned());
    write_files(Some(&report), &[report.growth()], &[], &report, &arguments.report)?;
    Ok(Reply::with_notes(Reported { report, kind, options: arguments.report }, notes))
}

/// Reads a file and names its frames.
fn load(session: &Session, path: &Path, notes: &mut Vec<String>) -> Result<Saved, CommandError> {
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
