//! `kdpool leak`: the whole hunt without a prompt.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::debug;
use crate::options::{self, DebugArgs};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// The pool grows again and again, and what was allocated stays
    Confirmed,
    /// The pool grew
    Growing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pool {
    Nonpaged,
    Paged,
}

/// What is written beside the screen.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// Write a page with everything, which opens without a network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a flame graph by bytes
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a flame graph by number of blocks
    #[arg(long, value_name = "FILE")]
    svg_count: Option<PathBuf>,
    /// Write a flame graph of what grew and what shrank
    #[arg(long, value_name = "FILE")]
    svg_diff: Option<PathBuf>,
    /// Write folded stacks by bytes
    #[arg(long, value_name = "FILE")]
    folded: Option<PathBuf>,
    /// Write folded stacks by number of blocks
    #[arg(long, value_name = "FILE")]
    folded_count: Option<PathBuf>,
    /// Write folded stacks of what grew and what shrank
    #[arg(long, value_name = "FILE")]
    folded_diff: Option<PathBuf>,
}

impl Files {
    /// The shell's options for them.
    fn options(&self) -> Result<String, String> {
        let mut options = String::new();
        for (option, file) in [
            ("-html", &self.html),
            ("-json", &self.json),
            ("-svg", &self.svg),
            ("-svg-count", &self.svg_count),
            ("-svg-diff", &self.svg_diff),
            ("-folded", &self.folded),
            ("-folded-count", &self.folded_count),
            ("-folded-diff", &self.folded_diff),
        ] {
            if let Some(file) = file {
                options.push_str(&format!(" {option} {}", quoted(text(file)?)?));
            }
        }
        Ok(options)
    }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| "a file name is not UTF-8".into())
}

/// Watch a tag and say whether it leaks, and who.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  kdpool leak --tag Leak --every 30s --times 5 --fail-on confirmed -k net:port=50000,key=@key.txt -y 'srv*'

Exit status: as of kdpool, and 5 when --fail-on came true. The target runs between the stops and afterwards.")]
pub(crate) struct LeakArgs {
    /// Pool tag, four characters
    #[arg(long, value_name = "TAG")]
    tag: String,
    /// Only this pool
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// Time between two stops (30s, 500ms, 2m)
    #[arg(long, value_name = "TIME", default_value = "30s")]
    every: String,
    /// Number of checks [default: 5, unless --for or --until-confirmed ends the watch]
    #[arg(long, value_name = "N")]
    times: Option<u32>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME")]
    run_for: Option<String>,
    /// A leak is confirmed only by blocks that are this old
    #[arg(long, value_name = "TIME")]
    min_age: Option<String>,
    /// End as soon as a leak is confirmed
    #[arg(long)]
    until_confirmed: bool,
    /// Exit with status 5 when this is the outcome (or worse)
    #[arg(long, value_enum)]
    fail_on: Option<FailOn>,
    /// Leave out leading frames of this kind, module!pattern; may be repeated
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    /// Write the mark, for `kdpool report` or a later check
    #[arg(long, value_name = "FILE")]
    mark: Option<PathBuf>,
    /// List every block, with its verdict and evidence
    #[arg(long)]
    blocks: bool,
    #[command(flatten)]
    files: Files,
    /// Add the mark and every check to a directory of Parquet files, partitioned by machine and date
    #[arg(long, value_name = "DIR")]
    parquet: Option<PathBuf>,
    /// The machine's name in those files
    #[arg(long, value_name = "NAME", requires = "parquet")]
    machine: Option<String>,
    #[command(flatten)]
    debug: DebugArgs,
}

const TIMES: u32 = 5;

pub(crate) fn run(arguments: LeakArgs) -> Result<ExitCode> {
    let line = match line(&arguments) {
        Ok(line) => line,
        Err(why) => return Ok(debug::usage(&why)),
    };
    if let Err(why) = kd_shell::refuse_watch(&line) {
        return Ok(debug::usage(&why.to_string()));
    }
    let line = format!("!leak watch {line}");
    let mut debug = arguments.debug;
    debug.bonc = true;
    debug.session.commands.push(line);
    debug.session.commands.push("q".into());
    debug.brief = true;
    debug::run(debug)
}

/// Read a mark or a report without its target.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  kdpool report leak.json -y 'srv*' --html leak.html
  kdpool report monday.leak.json friday.leak.json -y 'srv*'")]
pub(crate) struct ReportArgs {
    /// A mark's file, a report's (--json, or what --format json printed), or two marks of one machine to compare
    #[arg(value_name = "FILE", num_args = 1..=2, required = true)]
    input: Vec<PathBuf>,
    /// Symbol path; else _NT_SYMBOL_PATH
    #[arg(short = 'y', value_name = "PATH")]
    symbol_path: Option<String>,
    /// Decimal numbers
    #[arg(short = 'd', long)]
    decimal: bool,
    /// Leave out leading frames of this kind, module!pattern; may be repeated
    #[arg(long, value_name = "PATTERN")]
    skip: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Output format
    #[arg(long, value_enum, default_value_t = options::Format::Kd)]
    format: options::Format,
}

pub(crate) fn report(arguments: ReportArgs) -> Result<ExitCode> {
    let line = || -> Result<String, String> {
        let mut line = String::from("!leak report");
        for file in &arguments.input {
            line.push_str(&format!(" {}", quoted(text(file)?)?));
        }
        for pattern in &arguments.skip {
            line.push_str(&format!(" -skip {}", quoted(pattern)?));
        }
        if arguments.decimal {
            line.push_str(" -d");
        }
        Ok(line + &arguments.files.options()?)
    };
    match line() {
        Ok(line) => debug::without_target(&line, arguments.symbol_path.as_deref(), arguments.format),
        Err(why) => Ok(debug::usage(&why)),
    }
}

/// What the shell's `!leak watch` is told.
fn line(arguments: &LeakArgs) -> Result<String, String> {
    let mut line = quoted(&arguments.tag)?;
    let mut add = |option: &str, value: &str| -> Result<(), String> {
        line.push_str(&format!(" {option} {}", quoted(value)?));
        Ok(())
    };
    add("-every", &arguments.every)?;
    for (option, value) in [("-for", &arguments.run_for), ("-min-age", &arguments.min_age)] {
        if let Some(value) = value {
            add(option, value)?;
        }
    }
    let ends = arguments.run_for.is_some() || arguments.until_confirmed;
    if let Some(times) = arguments.times.or((!ends).then_some(TIMES)) {
        add("-times", &times.to_string())?;
    }
    for pattern in &arguments.skip {
        add("-skip", pattern)?;
    }
    if let Some(file) = &arguments.mark {
        add("-file", text(file)?)?;
    }
    if let Some(directory) = &arguments.parquet {
        add("-parquet", text(directory)?)?;
    }
    if let Some(machine) = &arguments.machine {
        add("-machine", machine)?;
    }
    match arguments.fail_on {
        Some(FailOn::Confirmed) => add("-fail-on", "confirmed")?,
        Some(FailOn::Growing) => add("-fail-on", "growing")?,
        None => {}
    }
    match arguments.pool {
        Some(Pool::Nonpaged) => line.push_str(" -nonpaged"),
        Some(Pool::Paged) => line.push_str(" -paged"),
        None => {}
    }
    if arguments.blocks {
        line.push_str(" -v");
    }
    if arguments.until_confirmed {
        line.push_str(" -until-confirmed");
    }
    line.push_str(&arguments.files.options()?);
    Ok(line)
}

/// One word for the shell, whatever it holds.
fn quoted(text: &str) -> Result<String, String> {
    match text.contains(['"', '\n']) {
        true => Err(format!("'{}' has a quotation mark or a line end", text.escape_debug())),
        false => Ok(format!("\"{text}\"")),
    }
}
