//! The options of `!leak`, each declared once: the prompt's parser and `kdpool leak`, `report` and `compare` are made of
//! this list.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use nt_leaks::survey::By;
use nt_leaks::{FORMATS, Format};

use super::arguments::{Arguments, FailOn};
use crate::grammar::words::{duration, pattern};
use crate::text::visible_name;

/// The subcommands that have options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sub {
    /// Remember the pool.
    Mark,
    /// Compare it with a mark.
    Check,
    /// Look again and again until the answer is known.
    Watch,
    /// Stop at each allocation of a tag.
    Trace,
    /// Show a saved mark or report.
    Report,
    /// Compare two saved reports.
    Compare,
}

/// An option of `!leak`: how it is written, who takes it, and what it sets.
#[derive(Debug, Clone, Copy)]
pub struct LeakOption {
    /// At the prompt, behind a dash.
    pub name: &'static str,
    /// On the command line, behind two; `None`: only at the prompt.
    pub program: Option<&'static str>,
    /// What its value is called; `None`: it has none.
    pub value: Option<&'static str>,
    /// One line.
    pub help: &'static str,
    /// Who takes it.
    pub of: &'static [Sub],
    set: Set,
}

/// What an option does with its value.
#[derive(Debug, Clone, Copy)]
enum Set {
    With(fn(&mut Arguments, &str) -> Result<(), String>),
    /// A report's file of this format is written there.
    File(&'static Format),
}

impl LeakOption {
    /// Sets what it sets; `text` is empty where it has no value.
    pub(super) fn set(&self, to: &mut Arguments, text: &str) -> Result<(), String> {
        match self.set {
            Set::With(set) => set(to, text),
            Set::File(format) => {
                to.report.files.push((format, PathBuf::from(text)));
                Ok(())
            }
        }
    }
}

type With = fn(&mut Arguments, &str) -> Result<(), String>;

const fn option(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    of: &'static [Sub],
    set: With,
) -> LeakOption {
    LeakOption { name, program: Some(name), value: Some(value), help, of, set: Set::With(set) }
}

const fn flag(name: &'static str, help: &'static str, of: &'static [Sub], set: With) -> LeakOption {
    LeakOption { name, program: Some(name), value: None, help, of, set: Set::With(set) }
}

const REPORTS: &[Sub] = &[Sub::Check, Sub::Watch, Sub::Report];
const WATCHES: &[Sub] = &[Sub::Watch, Sub::Report];
const LOOKS: &[Sub] = &[Sub::Mark, Sub::Check, Sub::Watch];
const WATCH: &[Sub] = &[Sub::Watch];
const MARKS: &[Sub] = &[Sub::Mark, Sub::Check, Sub::Watch];
const TRACE: &[Sub] = &[Sub::Trace];

/// All of them, as help lists them: those of reports' files are what [`FORMATS`] has.
pub static OPTIONS: LazyLock<Vec<LeakOption>> = LazyLock::new(|| {
    let files = FORMATS.iter().map(|format| LeakOption {
        name: format.name,
        program: Some(format.name),
        value: Some("FILE"),
        help: format.help,
        of: if format.is_of_watches() { WATCHES } else { REPORTS },
        set: Set::File(format),
    });
    HUNTS.iter().copied().chain(files).chain(PARQUET.iter().copied()).collect()
});

const HUNTS: &[LeakOption] = &[
    option("tag", "TAG", "Only this pool tag, four characters; without it all tags are surveyed", WATCH, |to, text| {
        to.tag = Some(text.into());
        Ok(())
    }),
    option("pool", "POOL", "Only this pool: nonpaged or paged", WATCH, |to, text| {
        to.paged = Some(match text {
            "nonpaged" => false,
            "paged" => true,
            _ => return Err(format!("'{}' is no pool (nonpaged, paged)", visible_name(text))),
        });
        Ok(())
    }),
    prompt(flag("nonpaged", "As -pool nonpaged", LOOKS, |to, _| {
        to.paged = Some(false);
        Ok(())
    })),
    prompt(flag("paged", "As -pool paged", LOOKS, |to, _| {
        to.paged = Some(true);
        Ok(())
    })),
    option("top", "N", "Without a tag: watch the N tags that grow most [default: 3]", WATCH, |to, text| {
        to.top = Some(number(text)?);
        Ok(())
    }),
    option(
        "exclude",
        "TAG",
        "Without a tag: leave this one out (wildcards * and ?); may be repeated",
        WATCH,
        |to, text| {
            to.exclude.push(pattern(text).map_err(|error| error.to_string())?);
            Ok(())
        },
    ),
    option("by", "WHAT", "Without a tag: growth of what, bytes or count [default: bytes]", WATCH, |to, text| {
        to.by = match text {
            "bytes" => By::Bytes,
            "count" => By::Count,
            _ => return Err(format!("'{}' is nothing to rank by (bytes, count)", visible_name(text))),
        };
        Ok(())
    }),
    option(
        "every",
        "TIME",
        "Time between two stops: 30s, 500ms, 2m [default: seconds at first, up to 30s as long as nothing grows]",
        WATCH,
        |to, text| {
            to.every = Some(time(text)?);
            Ok(())
        },
    ),
    option("times", "N", "Number of checks [default: 4 of a leak, 5 without growth, 20 at most]", WATCH, |to, text| {
        to.times = Some(number(text)?);
        Ok(())
    }),
    option("for", "TIME", "End after this time", &[Sub::Watch, Sub::Trace], |to, text| {
        to.run_for = Some(time(text)?);
        Ok(())
    }),
    option(
        "min-age",
        "TIME",
        "A leak is confirmed only by blocks that are this old [default: as old as those of the tag become]",
        WATCH,
        |to, text| {
            to.min_age = Some(time(text)?);
            Ok(())
        },
    ),
    flag("until-confirmed", "End as soon as a leak is confirmed", WATCH, |to, _| {
        to.until_confirmed = true;
        Ok(())
    }),
    option(
        "fail-on",
        "OUTCOME",
        "Exit with status 5 when this is the outcome, or worse: confirmed or growing",
        WATCHES,
        |to, text| {
            to.fail_on = Some(match text {
                "confirmed" => FailOn::Confirmed,
                "growing" => FailOn::Growing,
                _ => return Err(format!("'{}' is no outcome (confirmed, growing)", visible_name(text))),
            });
            Ok(())
        },
    ),
    LeakOption {
        program: Some("mark"),
        ..option("file", "FILE", "Write the mark, for `kdpool report` or a later check", MARKS, |to, text| {
            to.file = Some(text.into());
            Ok(())
        })
    },
    prompt(flag("small", "List blocks below a page too, whatever that costs", &[Sub::Mark], |to, _| {
        to.small = true;
        Ok(())
    })),
    prompt(flag("all", "A mark of all pool", &[Sub::Mark], |to, _| {
        (to.small, to.all) = (true, true);
        Ok(())
    })),
    prompt(option("hits", "N", "End after N hits [default: 20]", TRACE, |to, text| {
        to.hits = Some(number(text)?);
        Ok(())
    })),
    prompt(option("rate", "N", "Hits a second at most [default: 10]", TRACE, |to, text| {
        to.rate = Some(number(text)?);
        Ok(())
    })),
    prompt(option(
        "frozen",
        "TIME",
        "The target may stand still for so long altogether [default: 5s]",
        TRACE,
        |to, text| {
            to.frozen = Some(time(text)?);
            Ok(())
        },
    )),
    option(
        "skip",
        "PATTERN",
        "Leave out leading frames of this kind, module!pattern; may be repeated",
        &[Sub::Check, Sub::Watch, Sub::Report, Sub::Trace, Sub::Compare],
        |to, text| {
            to.report.skip.add(text);
            Ok(())
        },
    ),
    LeakOption {
        program: Some("blocks"),
        ..flag("v", "List every stack and every block, with its verdict and evidence", REPORTS, |to, _| {
            to.report.verbose = true;
            Ok(())
        })
    },
    LeakOption {
        program: Some("decimal"),
        ..flag("d", "Decimal numbers in umdh's comparison", &[Sub::Check, Sub::Report], |to, _| {
            to.report.decimal = true;
            Ok(())
        })
    },
];

const PARQUET: &[LeakOption] = &[
    option(
        "parquet",
        "DIR",
        "Add the mark and every check to a directory of Parquet files, by machine and date",
        LOOKS,
        |to, text| {
            to.report.parquet = Some(text.into());
            Ok(())
        },
    ),
    option("machine", "NAME", "The machine's name in a page, in -json and in Parquet files", LOOKS, |to, text| {
        if text.is_empty() || text.len() > LONGEST_MACHINE {
            return Err(format!("a machine's name has 1 to {LONGEST_MACHINE} bytes"));
        }
        to.report.machine = Some(text.into());
        Ok(())
    }),
];

const fn prompt(option: LeakOption) -> LeakOption {
    LeakOption { program: None, ..option }
}

/// A file system takes a folder of this name, even if each byte of it becomes three.
const LONGEST_MACHINE: usize = 64;

fn time(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("'{}' is no time (30s, 10m, 500ms)", visible_name(text)))
}

fn number(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("'{}' is no number above 0", visible_name(text)))
}
