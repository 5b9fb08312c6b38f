//! The words after `!leak …`, and what `kdpool leak` asks for.

use std::path::PathBuf;
use std::time::Duration;

use nt_leaks::survey::By;
use nt_leaks::watch::Outcome;
use nt_leaks::{Format, Scope, Skip, WatchReport};
use nt_pool::TagPattern;

use super::INFO;
use super::files::have_places;
use super::options::{LeakOption, OPTIONS, Sub};
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::{pattern, unquoted};
use crate::text::{visible_name, words};

/// What a subcommand is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arguments {
    /// Those that are no options.
    pub words: Vec<String>,
    pub(super) tag: Option<String>,
    pub(super) paged: Option<bool>,
    pub(super) top: Option<u32>,
    pub(super) exclude: Vec<TagPattern>,
    pub(super) by: By,
    pub(super) file: Option<PathBuf>,
    pub(super) report: Options,
    pub(super) every: Option<Duration>,
    pub(super) times: Option<u32>,
    pub(super) run_for: Option<Duration>,
    pub(super) min_age: Option<Duration>,
    pub(super) until_confirmed: bool,
    /// The outcome that makes the watch fail.
    pub(super) fail_on: Option<FailOn>,
    pub(super) hits: Option<u32>,
    /// Hits a second.
    pub(super) rate: Option<u32>,
    /// How long the target may stand still.
    pub(super) frozen: Option<Duration>,
    /// Small blocks too, whatever it costs.
    pub(super) small: bool,
    /// All pool, where no tag is given.
    pub(super) all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailOn {
    Confirmed,
    Growing,
}

/// How a report looks, and where else it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// It was typed at the prompt, where options have one dash.
    pub(super) at_prompt: bool,
    pub(super) verbose: bool,
    pub(super) decimal: bool,
    pub(super) skip: Skip,
    pub(super) files: Vec<(&'static Format, PathBuf)>,
    /// Where Parquet files go.
    pub(super) parquet: Option<PathBuf>,
    /// Which machine they say it is.
    pub(super) machine: Option<String>,
}

/// An option that was given, with its value where it has one.
pub type Given<'g> = (&'static LeakOption, Option<&'g str>);

impl Arguments {
    /// What is typed at the prompt.
    pub(super) fn parse(sub: Sub, text: &str) -> Result<Self, CommandError> {
        let (mut plain, mut given) = (Vec::new(), Vec::new());
        let mut words = words(text);
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-') else {
                plain.push(word.to_owned());
                continue;
            };
            let known = OPTIONS.iter().find(|option| option.name == name);
            let option = known
                .filter(|option| option.of.contains(&sub))
                .ok_or_else(|| usage(&INFO, refusal(word, known.is_some())))?;
            let value = match option.value {
                None => None,
                Some(what) => {
                    let value = words.next().ok_or_else(|| usage(&INFO, format!("{word} needs a value ({what})")))?;
                    Some(unquoted(value))
                }
            };
            given.push((option, value));
        }
        let mut parsed = Self::new(sub, plain, &given).map_err(|why| usage(&INFO, why))?;
        parsed.report.at_prompt = true;
        Ok(parsed)
    }

    /// What a program asks for: words, and options of [`OPTIONS`].
    ///
    /// # Errors
    ///
    /// A line that says which value is none, or what does not go together.
    pub fn new(sub: Sub, words: Vec<String>, given: &[Given<'_>]) -> Result<Self, String> {
        let mut parsed = Arguments { words, ..Arguments::default() };
        for (option, value) in given {
            option.set(&mut parsed, value.unwrap_or_default()).map_err(|why| format!("-{}: {why}", option.name))?;
        }
        if sub == Sub::Watch {
            parsed.check_watch()?;
        }
        // A watch may take hours until it writes them.
        have_places(parsed.file.iter().chain(parsed.report.files.iter().map(|(_, file)| file)))?;
        Ok(parsed)
    }

    /// The watch came to what `-fail-on` names, or worse.
    pub(super) fn fails(&self, report: &WatchReport) -> bool {
        match self.fail_on {
            Some(FailOn::Confirmed) => report.all().any(|watch| watch.outcome == Outcome::Confirmed),
            Some(FailOn::Growing) => {
                report.all().any(|watch| matches!(watch.outcome, Outcome::Confirmed | Outcome::Growing))
            }
            None => false,
        }
    }

    fn check_watch(&self) -> Result<(), String> {
        let scope = self.watched()?;
        let hunts =
            [(self.top.is_some(), "-top"), (!self.exclude.is_empty(), "-exclude"), (self.by != By::Bytes, "-by")];
        if let Some((_, option)) = hunts.iter().find(|(given, _)| *given && scope.tag.is_some()) {
            return Err(format!("{option} is for a hunt without a tag"));
        }
        let is_named =
            self.report.parquet.is_some() || self.report.files.iter().any(|(format, _)| format.names_machine);
        if self.report.machine.is_some() && !is_named {
            return Err("-machine names the machine in files: -html, -json or -parquet says which".into());
        }
        Ok(())
    }

    /// The tag and the pool that are watched.
    pub(super) fn watched(&self) -> Result<Scope, String> {
        let mut words = self.words.iter().map(String::as_str);
        let tag = self.tag.as_deref().or_else(|| words.next());
        let mut found = scope(tag, words.next())?;
        if let Some(word) = words.next() {
            return Err(format!("'{}' is one word too many", visible_name(word)));
        }
        found.paged = found.paged.or(self.paged);
        Ok(found)
    }
}

fn refusal(word: &str, known: bool) -> String {
    match known {
        true => format!("{word} is for another !leak"),
        false => format!("unknown option '{}'", visible_name(word)),
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
pub(super) fn scope(tag: Option<&str>, pool: Option<&str>) -> Result<Scope, String> {
    let tag = match tag {
        None => None,
        Some(text) => {
            let tag = pattern(text).map_err(|error| error.to_string())?;
            let exact = tag.exact().ok_or_else(|| format!("'{tag}' has wildcards; a mark is of one tag"))?;
            Some(exact.key())
        }
    };
    let paged = match pool.map(|text| (text, plain_number(text))) {
        None => None,
        Some((_, Some(0))) => Some(false),
        Some((_, Some(1))) => Some(true),
        Some((text, _)) => return Err(format!("'{}' is no pool type; they are 0 and 1", visible_name(text))),
    };
    Ok(Scope { tag, paged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_options_and_times() {
        let parsed =
            Arguments::parse(Sub::Watch, r#""AB C" 1 -file "a b.json" -every 500ms -times 3 -for 10m -v"#).unwrap();
        assert_eq!(parsed.words, ["\"AB C\"", "1"]);
        assert_eq!(parsed.watched().unwrap(), Scope { tag: Some(u32::from_le_bytes(*b"AB C")), paged: Some(true) });
        assert_eq!(parsed.file, Some("a b.json".into()));
        assert_eq!((parsed.every, parsed.times), (Some(Duration::from_millis(500)), Some(3)));
        assert_eq!(parsed.run_for, Some(Duration::from_secs(600)));
        assert!(parsed.report.verbose && !parsed.report.decimal);
        for bad in [
            "-every",
            "-every soon",
            "-times 0",
            "-what",
            "-every 99999999999999999999s",
            "-every 9999999999h",
            "Leak -top 2",
            "Leak -by count",
            "-by size",
            "Leak 1 2",
            "Leak -machine m",
        ] {
            assert!(Arguments::parse(Sub::Watch, bad).is_err(), "{bad}");
        }
    }

    /// What would do nothing is refused.
    #[test]
    fn options_are_of_subcommands() {
        let refused = |sub, text| Arguments::parse(sub, text).unwrap_err().to_string();
        assert!(refused(Sub::Mark, "m -every 3s").starts_with("-every is for another !leak; usage: "));
        assert!(refused(Sub::Trace, "Leak -html x").starts_with("-html is for another !leak"));
        assert!(refused(Sub::Check, "-sml").starts_with("unknown option '-sml'"));
        assert!(Arguments::parse(Sub::Mark, "m Leak -paged -small").is_ok());
        let names: std::collections::BTreeSet<_> = OPTIONS.iter().map(|option| option.name).collect();
        assert_eq!(names.len(), OPTIONS.len());
    }

    #[test]
    fn a_mark_is_of_one_tag() {
        assert_eq!(scope(Some("Leak"), None).unwrap(), Scope { tag: Some(0x6b61654c), paged: None });
        assert_eq!(scope(Some("Leak"), Some("1")).unwrap().paged, Some(true));
        assert_eq!(scope(None, None).unwrap(), Scope::default());
        assert!(scope(Some("Lea*"), None).is_err() && scope(Some("Leak"), Some("7")).is_err());
    }
}
