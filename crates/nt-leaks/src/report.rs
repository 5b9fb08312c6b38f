//! Reports for people and for other tools, and the list of files that they can be written to: [`FORMATS`].

mod ci;
mod flame;
mod html;
mod parquet;
mod pprof;
mod umdh;

use std::io;

use crate::check::{CheckReport, Growth};
use crate::hunt::WatchReport;
use crate::stack::Skip;
use crate::trails::Trails;

pub use ci::{junit, sarif};
pub use flame::{Column, flame_graph, folded};
pub use html::{Page, html};
pub use parquet::{ExportError, export_check, export_mark};
pub use pprof::pprof;
pub use umdh::{umdh, umdh_snapshot};

/// What a report's file can be made of.
pub struct Sheet<'a> {
    /// The last check. A watch that made none has only its own words.
    pub last: Option<&'a CheckReport>,
    /// What each check found in use.
    pub growth: &'a [Growth],
    /// Bytes in use by stack at each check, as far as that is known.
    pub trails: &'a Trails,
    /// What they come to, and why, as sentences.
    pub outcome: &'a [String],
    /// The whole watch, where it is one.
    pub watch: Option<&'a WatchReport>,
    /// Growth is a failure, too.
    pub strict: bool,
    /// What stands under a page's headline: which machine, when, and by which program.
    pub facts: &'a [String],
    /// Frames that are left out.
    pub skip: &'a Skip,
    /// What the question was answered with, as JSON.
    pub answer: &'a dyn Fn() -> serde_json::Result<String>,
}

/// A kind of file that reports are written to.
#[derive(Debug)]
pub struct Format {
    /// Of its option: `html`.
    pub name: &'static str,
    /// What its option does, in a line.
    pub help: &'static str,
    /// It says which machine it is of.
    pub names_machine: bool,
    text: Text,
}

#[derive(Debug, Clone, Copy)]
enum Text {
    /// The answer itself.
    Answer,
    /// Of the last check; there may be none.
    Check(fn(&Sheet<'_>, &CheckReport) -> String),
    /// The same, where it is no text.
    Packed(fn(&Sheet<'_>, &CheckReport) -> io::Result<Vec<u8>>),
    /// Of a watch, under the format's own name.
    Watch(&'static str, fn(&Sheet<'_>, &WatchReport) -> Result<String, std::fmt::Error>),
}

/// Why there is no text for a file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The format, named here, is for watches.
    #[error("{0} tells what a watch came to, and this is none")]
    NoWatch(&'static str),
    /// The text could not be made.
    #[error(transparent)]
    Text(#[from] std::fmt::Error),
    /// It could not be packed.
    #[error(transparent)]
    Packed(#[from] io::Error),
    /// The answer is no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// All of them, in the order in which help lists them. To add one: its file in `report/`, its `mod` above, its row here.
pub static FORMATS: &[Format] = &[
    Format {
        names_machine: true,
        ..of_check("html", "Write a page with everything, which opens without a network", |sheet, last| {
            let Sheet { growth, outcome, trails, facts, skip, .. } = *sheet;
            html(&Page { last, growth, outcome, trails, facts, skip })
        })
    },
    Format {
        name: "json",
        help: "Write the result as JSON, for `kdpool report` and `kdpool compare`",
        names_machine: true,
        text: Text::Answer,
    },
    of_check("svg", "Write a flame graph by bytes", |sheet, last| flame_graph(last, Column::Bytes, sheet.skip)),
    of_check("svg-count", "Write a flame graph by number of blocks", |sheet, last| {
        flame_graph(last, Column::Count, sheet.skip)
    }),
    of_check("svg-diff", "Write a flame graph of what grew and what shrank", |sheet, last| {
        flame_graph(last, Column::Difference, sheet.skip)
    }),
    // Folded stacks and profiles keep every frame: their readers fold by themselves.
    of_check("folded", "Write folded stacks by bytes", |_, last| folded(last, Column::Bytes, &Skip::none())),
    of_check("folded-count", "Write folded stacks by number of blocks", |_, last| {
        folded(last, Column::Count, &Skip::none())
    }),
    of_check("folded-diff", "Write folded stacks of what grew and what shrank", |_, last| {
        folded(last, Column::Difference, &Skip::none())
    }),
    Format {
        name: "pprof",
        help: "Write a profile for pprof: blocks and bytes in use, and their growth",
        names_machine: false,
        text: Text::Packed(|sheet, last| pprof(last, sheet.outcome.first().map(String::as_str))),
    },
    Format {
        name: "junit",
        help: "Write a JUnit report: one test for each tag that was watched",
        names_machine: false,
        text: Text::Watch("JUnit", |sheet, watch| junit(watch, sheet.strict)),
    },
    Format {
        name: "sarif",
        help: "Write the leaks as SARIF",
        names_machine: false,
        text: Text::Watch("SARIF", |_, watch| Ok(sarif(watch))),
    },
];

const fn of_check(name: &'static str, help: &'static str, text: fn(&Sheet<'_>, &CheckReport) -> String) -> Format {
    Format { name, help, names_machine: false, text: Text::Check(text) }
}

impl Format {
    /// Whether only a watch has what it tells.
    pub fn is_of_watches(&self) -> bool {
        matches!(self.text, Text::Watch(..))
    }

    /// Whether it tells of a check, and has nothing to say without one.
    pub fn needs_check(&self) -> bool {
        matches!(self.text, Text::Check(_) | Text::Packed(_))
    }

    /// What the file holds; `None` when it tells of a check and there is none.
    pub fn content(&self, sheet: &Sheet<'_>) -> Result<Option<Vec<u8>>, FormatError> {
        Ok(match self.text {
            Text::Answer => Some(((sheet.answer)()? + "\n").into_bytes()),
            Text::Check(text) => sheet.last.map(|last| text(sheet, last).into_bytes()),
            Text::Packed(content) => sheet.last.map(|last| content(sheet, last)).transpose()?,
            Text::Watch(title, text) => {
                let watch = sheet.watch.ok_or(FormatError::NoWatch(title))?;
                Some(text(sheet, watch)?.into_bytes())
            }
        })
    }
}

/// A name stands for one format.
impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Format {}
