//! `kdpool leak` and `kdpool report`: the hunt without a prompt.
//!
//! Their options are those of `!leak`, declared once in the shell: here they become a command line's.

use std::path::PathBuf;
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

/// What `kdpool report` has beside the options of `!leak report`.
#[derive(Debug, Args)]
struct Offline {
    /// A mark's file or name, a report's file (--json, or what --format json printed), or two marks of one machine
    #[arg(value_name = "FILE", num_args = 1..=2, required = true)]
    input: Vec<PathBuf>,
    /// Symbol path; else _NT_SYMBOL_PATH
    #[arg(short = 'y', value_name = "PATH")]
    symbol_path: Option<String>,
    /// As --blocks
    #[arg(short = 'v')]
    verbose: bool,
    /// As --decimal
    #[arg(short = 'd')]
    short_decimal: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = options::Format::Kd)]
    format: options::Format,
}

/// `kdpool report`
#[derive(Debug)]
pub(crate) struct ReportArgs {
    asked: Arguments,
    offline: Offline,
}

const REPORT_HELP: &str = "\
Examples:
  kdpool report leak.json -y 'srv*' --html leak.html
  kdpool report monday.leak.json friday.leak.json -y 'srv*'";

impl Args for ReportArgs {
    fn augment_args(command: Command) -> Command {
        augment(Offline::augment_args(command), Sub::Report).after_help(REPORT_HELP)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ReportArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let offline = Offline::from_arg_matches(matches)?;
        let words = offline.input.iter().map(|file| match file.to_str() {
            Some(file) => Ok(file.to_owned()),
            None => Err(clap::Error::raw(ErrorKind::ValueValidation, "a file name is not UTF-8\n")),
        });
        let words = words.collect::<Result<_, _>>()?;
        let mut asked = asked(matches, Sub::Report, words)?;
        asked.show_more(offline.verbose, offline.short_decimal);
        Ok(ReportArgs { asked, offline })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(crate) fn report(arguments: ReportArgs) -> Result<ExitCode> {
    let ReportArgs { asked, offline } = arguments;
    debug::without_target(&Task { sub: Sub::Report, asked }, offline.symbol_path.as_deref(), offline.format)
}
