//! `kdpool leak`, `report` and `compare`: the hunt without a prompt, and what its files tell.
//!
//! Their options are those of `!leak`, declared once in the shell: here they become a command line's.

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kd_shell::leak::{Arguments, Given, OPTIONS, Sub};

use crate::debug::{self, Task};
use crate::options::{self, DebugArgs};

/// The options of a subcommand of `!leak`.
fn augment(mut command: Command, sub: Sub) -> Command {
    for option in OPTIONS.iter().filter(|option| option.of.contains(&sub)) {
        let Some(name) = option.program else { continue };
        let arg = Arg::new(name).long(name).help(option.help);
        command = command.arg(match option.value {
            Some(value) => arg.value_name(value).action(ArgAction::Append).allow_hyphen_values(true),
            None => arg.action(ArgAction::SetTrue),
        });
    }
    command
}

/// What was given of them.
fn asked(matches: &ArgMatches, sub: Sub, words: Vec<String>) -> Result<Arguments, clap::Error> {
    let mut given: Vec<Given<'_>> = Vec::new();
    for option in OPTIONS.iter().filter(|option| option.of.contains(&sub)) {
        let Some(name) = option.program else { continue };
        match option.value {
            Some(_) => {
                let values = matches.get_many::<String>(name).into_iter().flatten();
                given.extend(values.map(|value| (option, Some(value.as_str()))));
            }
            None if matches.get_flag(name) => given.push((option, None)),
            None => {}
        }
    }
    Arguments::new(sub, words, &given).map_err(|why| clap::Error::raw(ErrorKind::ValueValidation, format!("{why}\n")))
}

/// `kdpool leak`
#[derive(Debug)]
pub(crate) struct LeakArgs {
    asked: Arguments,
    debug: DebugArgs,
}

const LEAK_HELP: &str = "\
Examples:
  kdpool leak -k net:port=50000,key=@key.txt -y 'srv*'
  kdpool leak --tag Leak --every 30s --times 5 --fail-on confirmed \\
    -k net:port=50000,key=@key.txt -y 'srv*'

Exit status: as of kdpool; 5 when --fail-on came true, 6 when nothing was ever allocated with the tag, 130 after Ctrl+C
(docs/exit-status.md). The target runs between the stops and afterwards.";

impl Args for LeakArgs {
    fn augment_args(command: Command) -> Command {
        DebugArgs::augment_args(augment(command, Sub::Watch)).after_help(LEAK_HELP)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LeakArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let debug = DebugArgs::from_arg_matches(matches)?;
        Ok(LeakArgs { asked: asked(matches, Sub::Watch, Vec::new())?, debug })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(crate) fn run(arguments: LeakArgs) -> Result<ExitCode> {
    let LeakArgs { asked, mut debug } = arguments;
    debug.bonc = true;
    // Whoever starts a hunt wants what it costs; it is said all the same.
    debug.session.yes = true;
    debug.brief = true;
    debug.task = Some(Task { sub: Sub::Watch, asked });
    debug::run(debug)
}

/// What reading files has beside the options of `!leak`.
#[derive(Debug, Args)]
struct Offline {
    /// Symbol path; else _NT_SYMBOL_PATH
    #[arg(short = 'y', value_name = "PATH")]
    symbol_path: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = options::Format::Kd)]
    format: options::Format,
}

/// `kdpool report`, and `kdpool compare`.
#[derive(Debug)]
pub(crate) struct FileArgs<const COMPARE: bool> {
    asked: Arguments,
    offline: Offline,
}

pub(crate) type ReportArgs = FileArgs<false>;
pub(crate) type CompareArgs = FileArgs<true>;

const REPORT_HELP: &str = "\
Examples:
  kdpool report leak.json -y 'srv*' --html leak.html
  kdpool report monday.leak.json friday.leak.json -y 'srv*'";

const COMPARE_HELP: &str = "\
Example:
  kdpool compare before/leak.json after/leak.json -y 'srv*'

Exit status: 0 when nothing grows any more, 5 when something grows (docs/exit-status.md).";

impl<const COMPARE: bool> FileArgs<COMPARE> {
    const SUB: Sub = if COMPARE { Sub::Compare } else { Sub::Report };

    pub(crate) fn run(self) -> Result<ExitCode> {
        let FileArgs { asked, offline } = self;
        debug::without_target(&Task { sub: Self::SUB, asked }, offline.symbol_path.as_deref(), offline.format)
    }
}

impl<const COMPARE: bool> Args for FileArgs<COMPARE> {
    fn augment_args(command: Command) -> Command {
        let (help, count) = match COMPARE {
            true => ("Reports (--json of kdpool leak): of the build before, and of the build after", 2..=2),
            false => (
                "A mark's file or name, a report's file (--json, or what --format json printed), or two marks of one machine",
                1..=2,
            ),
        };
        let files = Arg::new("files").value_name("FILE").num_args(count).required(true).help(help);
        let mut command = augment(Offline::augment_args(command.arg(files)), Self::SUB);
        if !COMPARE {
            command = command.mut_arg("blocks", |arg| arg.short('v')).mut_arg("decimal", |arg| arg.short('d'));
        }
        command.after_help(if COMPARE { COMPARE_HELP } else { REPORT_HELP })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const COMPARE: bool> FromArgMatches for FileArgs<COMPARE> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let words = matches.get_many::<String>("files").into_iter().flatten().cloned().collect();
        Ok(FileArgs { asked: asked(matches, Self::SUB, words)?, offline: Offline::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
