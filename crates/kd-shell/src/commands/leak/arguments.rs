//! The words after `!leak …`.

use std::path::PathBuf;
use std::time::Duration;

use nt_leaks::{Scope, Skip};

use super::INFO;
use super::files::FileKind;
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::{duration, pattern};
use crate::text::{visible_name, words};

/// What all subcommands understand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub words: Vec<String>,
    pub file: Option<PathBuf>,
    pub report: Options,
    pub every: Option<Duration>,
    pub times: Option<u32>,
    pub run_for: Option<Duration>,
    pub min_age: Option<Duration>,
    pub until_confirmed: bool,
    /// The outcome that makes the watch fail.
    pub fail_on: Option<FailOn>,
    pub hits: Option<u32>,
    /// Hits a second.
    pub rate: Option<u32>,
    /// How long the target may stand still.
    pub frozen: Option<Duration>,
    /// Small blocks too, whatever it costs.
    pub small: bool,
    /// All pool, where no tag is given.
    pub all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailOn {
    Confirmed,
    Growing,
}

/// How a report looks, and where else it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub verbose: bool,
    pub decimal: bool,
    pub skip: Skip,
    pub files: Vec<(FileKind, PathBuf)>,
    /// Where Parquet files go.
    pub parquet: Option<PathBuf>,
    /// Which machine they say it is.
    pub machine: Option<String>,
}

/// A file system takes a folder of this name, even if each byte of it becomes three.
const LONGEST_MACHINE: usize = 64;

fn unquoted(word: &str) -> &str {
    let inner = |mark| word.strip_prefix(mark).and_then(|word| word.strip_suffix(mark));
    inner('"').or_else(|| inner('\'')).unwrap_or(word)
}

impl Arguments {
    pub(super) fn parse(text: &str) -> Result<Self, CommandError> {
        let mut parsed = Arguments::default();
        let mut words = words(text).map(str::to_owned);
        while let Some(word) = words.next() {
            let mut value = |what: &str| words.next().ok_or_else(|| usage(&INFO, format!("{word} needs {what}")));
            let time = |text: String| {
                duration(unquoted(&text)).ok_or_else(|| {
                    usage(&INFO, format!("'{}' is no time (30s, 10m, 500ms)", visible_name(unquoted(&text))))
                })
            };
            let path = |text: String| PathBuf::from(unquoted(&text));
            match word.as_str() {
                "-file" => parsed.file = Some(path(value("a file name")?)),
                option if FileKind::of(option).is_some() => {
                    let file = path(value("a file name")?);
                    parsed.report.files.extend(FileKind::of(option).map(|kind| (kind, file)));
                }
                "-parquet" => parsed.report.parquet = Some(path(value("a directory")?)),
                "-machine" => {
                    let name = unquoted(&value("a name")?).to_owned();
                    if name.is_empty() || name.len() > LONGEST_MACHINE {
                        return Err(usage(&INFO, format!("a machine's name has 1 to {LONGEST_MACHINE} bytes")));
                    }
                    parsed.report.machine = Some(name);
                }
                "-small" => parsed.small = true,
                "-all" => (parsed.small, parsed.all) = (true, true),
                "-skip" => parsed.report.skip.add(unquoted(&value("module!pattern")?)),
                "-v" => parsed.report.verbose = true,
                "-d" => parsed.report.decimal = true,
                "-every" => parsed.every = Some(time(value("a time")?)?),
                "-for" => parsed.run_for = Some(time(value("a time")?)?),
                "-min-age" => parsed.min_age = Some(time(value("a time")?)?),
                "-frozen" => parsed.frozen = Some(time(value("a time")?)?),
                option @ ("-times" | "-hits" | "-rate") => {
                    let text = value("a number")?;
                    let number = unquoted(&text).parse().ok().filter(|number| *number > 0);
                    let number = number.ok_or_else(|| usage(&INFO, format!("{option} needs a number above 0")))?;
                    *match option {
                        "-times" => &mut parsed.times,
                        "-hits" => &mut parsed.hits,
                        _ => &mut parsed.rate,
                    } = Some(number);
                }
                "-fail-on" => {
                    parsed.fail_on = match unquoted(&value("confirmed or growing")?) {
                        "confirmed" => Some(FailOn::Confirmed),
                        "growing" => Some(FailOn::Growing),
                        _ => return Err(usage(&INFO, "-fail-on takes confirmed or growing")),
                    }
                }
                "-nonpaged" | "-paged" => parsed.words.push(word),
                "-until-confirmed" => parsed.until_confirmed = true,
                option if option.starts_with('-') => {
                    return Err(usage(&INFO, format!("unknown option '{}'", visible_name(option))));
                }
                _ => parsed.words.push(word),
            }
        }
        Ok(parsed)
    }
}

/// Every word has been used.
pub(super) fn no_more<'w>(mut words: impl Iterator<Item = &'w str>) -> Result<(), CommandError> {
    match words.next() {
        None => Ok(()),
        Some(word) => Err(usage(&INFO, format!("'{}' is one word too many", visible_name(word)))),
    }
}

/// A tag and a pool type.
pub(super) fn scope(tag: Option<&str>, pool: Option<&str>) -> Result<Scope, CommandError> {
    let tag = match tag {
        None => None,
        Some(text) => {
            let tag = pattern(text).map_err(|error| usage(&INFO, error))?;
            let exact =
                tag.exact().ok_or_else(|| usage(&INFO, format!("'{tag}' has wildcards; a mark is of one tag")))?;
            Some(exact.key())
        }
    };
    let paged = match pool.map(|text| (text, plain_number(text))) {
        None => None,
        Some((_, Some(0))) | Some(("-nonpaged", _)) => Some(false),
        Some((_, Some(1))) | Some(("-paged", _)) => Some(true),
        Some((text, _)) => {
            return Err(usage(&INFO, format!("'{}' is no pool type; they are 0 and 1", visible_name(text))));
        }
    };
    Ok(Scope { tag, paged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_options_and_times() {
        let parsed = Arguments::parse(r#"m1 "AB C" 1 -file "a b.json" -every 500ms -times 3 -for 10m -v"#).unwrap();
        assert_eq!(parsed.words, ["m1", "\"AB C\"", "1"]);
        assert_eq!(parsed.file, Some("a b.json".into()));
        assert_eq!((parsed.every, parsed.times), (Some(Duration::from_millis(500)), Some(3)));
        assert_eq!(parsed.run_for, Some(Duration::from_secs(600)));
        assert!(parsed.report.verbose && !parsed.report.decimal);
        for bad in ["-every", "-every soon", "-times 0", "-what", "-every 99999999999999999999s", "-every 9999999999h"]
        {
            assert!(Arguments::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mark_is_of_one_tag() {
        assert_eq!(scope(Some("Leak"), None).unwrap(), Scope { tag: Some(0x6b61654c), paged: None });
        assert_eq!(scope(Some("Leak"), Some("1")).unwrap().paged, Some(true));
        assert_eq!(scope(None, None).unwrap(), Scope::default());
        assert!(scope(Some("Lea*"), None).is_err() && scope(Some("Leak"), Some("7")).is_err());
    }
}
