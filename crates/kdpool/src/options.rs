//! The command line, as kd spells it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::fake::FakeArgs;
use crate::{decode, doctor, leak, manual, mcp, setup};

/// What `--version` says: the release, the commit it was built from, and the target it was built for.
pub(crate) const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("KDPOOL_COMMIT"), ", ", env!("KDPOOL_TARGET"), ")");

/// Find who leaks Windows kernel pool, live, over KDNET or a serial line.
#[derive(Debug, Parser)]
#[command(
    name = "kdpool",
    version = VERSION,
    args_conflicts_with_subcommands = true,
    after_help = "\
CONNECTION is one of
  net:port=N,key=W.X.Y.Z[,target=HOST]    KDNET; key=@FILE reads the key,
                                          without key= it is in KDPOOL_KEY
  com:port=DEVICE[,baud=N]                a serial line
  com:pipe,port=PATH[,resets=N][,reconnect]
                                          a VM's serial port as pipe or socket
  com:ipport=N,port=HOST[,reconnect]      a serial port over TCP

Examples:
  kdpool demo
  kdpool -k net:port=50000,key=@key.txt -y 'srv*' -bonc
  kdpool -k com:port=/dev/ttyUSB0,baud=115200 -y 'srv*'
  kdpool -k com:pipe,port=/tmp/kd.sock,resets=0,reconnect -y 'srv*'
  kdpool -k com:ipport=4555,port=vmhost -y 'srv*' -b -c '!poolfind Leak; q'

Exit status: 0 all commands succeeded, 1 one failed, 2 usage, 3 no connection, 4 connection lost, or the target may still stand. Unlike kd, kdpool \
lets the target run when it leaves, however it leaves; `q -halted` leaves it standing."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) debug: DebugArgs,
    /// What kdpool itself may hold [default: 1g]
    #[arg(long, value_name = "SIZE", global = true, value_parser = size, help_heading = "Session")]
    #[arg(default_value = "1g", hide_default_value = true)]
    pub(crate) max_memory: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach to a fake Windows 7 with a leak, in this process
    Demo(DemoArgs),
    /// Watch a pool tag and say whether it leaks, and who allocates it
    Leak(Box<leak::LeakArgs>),
    /// Read a mark or a report of a leak without its target
    Report(Box<leak::ReportArgs>),
    /// Compare two reports, of two builds of a driver, stack by stack
    Compare(Box<leak::CompareArgs>),
    /// Show the file that .selfcheck wrote, to read a bug report
    Selfcheck(SelfcheckArgs),
    /// Run the fake Windows 7 alone, for any debugger to attach to
    Fake(FakeArgs),
    /// Print a KDNET capture, one line per datagram
    Decode(decode::DecodeArgs),
    /// Print what to type on the target, and the settings of a VM
    Setup(setup::SetupArgs),
    /// Check this host: port, firewall, address, symbols, serial devices
    Doctor(doctor::DoctorArgs),
    /// Answer an agent's questions (Model Context Protocol)
    Mcp(mcp::McpArgs),
    /// Print the completions of a shell
    Completions(manual::CompletionsArgs),
    /// Write the manual pages to a folder
    Man(manual::ManArgs),
    /// Write JSON Schemas of what --format json prints to a folder
    Schemas(manual::SchemasArgs),
}

/// The command line, with help that is one page of short lines everywhere.
pub(crate) fn command() -> clap::Command {
    compact(Cli::command())
}

fn compact(command: clap::Command) -> clap::Command {
    let help = clap::Arg::new("help").short('h').long("help").action(clap::ArgAction::HelpShort).help("Print help");
    let help = help.help_heading(clap::builder::Resettable::Reset);
    command.disable_help_flag(true).arg(help).mut_subcommands(compact)
}

/// Show a self-check's file.
#[derive(Debug, Args)]
pub(crate) struct SelfcheckArgs {
    /// What `.selfcheck -file FILE` wrote
    pub(crate) file: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// kd's lines
    #[default]
    Kd,
    /// One JSON object per command and line (docs/json.md)
    Json,
}

/// How to attach.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct DebugArgs {
    /// The target, see below [default: _NT_DEBUG_PORT]
    #[arg(short = 'k', value_name = "CONNECTION", num_args = 0..=1, default_missing_value = "")]
    pub(crate) connection: Option<String>,
    /// Break in at once (also -bonc, -b)
    #[arg(long)]
    pub(crate) bonc: bool,
    /// Give up by then (30s) [default: 60s in scripts]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Write the traffic for `kdpool decode`
    #[arg(long, value_name = "FILE")]
    pub(crate) capture: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// One line says what was attached to, instead of kd's banner
    #[arg(skip)]
    pub(crate) brief: bool,
    /// What is done instead of a prompt
    #[arg(skip)]
    pub(crate) task: Option<crate::debug::Task>,
}

/// What to do once attached.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Session")]
pub(crate) struct SessionArgs {
    /// Symbol path [default: _NT_SYMBOL_PATH]
    #[arg(short = 'y', value_name = "PATH")]
    pub(crate) symbol_path: Option<String>,
    /// Commands for the first prompt, separated by `;`
    #[arg(short = 'c', value_name = "COMMANDS")]
    pub(crate) commands: Vec<String>,
    /// Script for the first prompt (also -cf)
    #[arg(long = "cf", value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
    /// Log file, overwritten (also -logo)
    #[arg(long, value_name = "FILE", conflicts_with = "loga", help_heading = "Output")]
    pub(crate) logo: Option<PathBuf>,
    /// Log file, appended to (also -loga)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) loga: Option<PathBuf>,
    /// pooltag.txt [default: KDPOOL_POOLTAG, or here]
    #[arg(long, value_name = "FILE")]
    pub(crate) pooltag: Option<PathBuf>,
    /// Let commands change the target (.allow_write)
    #[arg(long)]
    pub(crate) allow_write: bool,
    /// Take it from a command that holds it longer (2s)
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) max_frozen: Option<Duration>,
    /// kd (default), or json: an object a command
    #[arg(long, value_enum, default_value_t = Format::Kd, hide_possible_values = true, hide_default_value = true, help_heading = "Output")]
    pub(crate) format: Format,
    /// Show the wire; twice for more (or RUST_LOG)
    #[arg(short = 'v', action = clap::ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,
    /// Without kd's banner (also -quiet, -kqm)
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Tell how symbols are looked for (also -n)
    #[arg(long, help_heading = "Output")]
    pub(crate) noisy: bool,
    /// Do what freezes the target for over a minute
    #[arg(long)]
    pub(crate) yes: bool,
    /// Write what -v shows to a file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) trace_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Carrier {
    /// KDNET datagrams on loopback
    Net,
    /// Serial over TCP
    Tcp,
    /// Serial over a Unix-domain socket
    #[cfg(unix)]
    Unix,
    /// Serial on a pseudo terminal
    #[cfg(unix)]
    Pty,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What carries the session
    #[arg(long, value_enum, default_value_t = Carrier::Net)]
    pub(crate) over: Carrier,
    /// Which Windows the fake target is
    #[arg(long, value_enum, default_value_t = DemoWindows::Seven)]
    pub(crate) windows: DemoWindows,
    /// Write the traffic to a pcapng file
    #[arg(long, value_name = "FILE")]
    pub(crate) capture: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

/// The fake machines with a leak that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoWindows {
    /// Windows 7, the article's
    #[value(name = "7")]
    Seven,
    /// Windows 10 2004, whose pool is a segment heap
    #[value(name = "10")]
    Ten,
    /// Windows 11 24H2
    #[value(name = "11")]
    Eleven,
}

impl DemoWindows {
    pub(crate) fn machine(self) -> kd_fake::kernel::DemoWindows {
        match self {
            DemoWindows::Seven => kd_fake::kernel::DemoWindows::Seven,
            DemoWindows::Ten => kd_fake::kernel::DemoWindows::Ten,
            DemoWindows::Eleven => kd_fake::kernel::DemoWindows::Eleven,
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    kd_shell::duration(text)
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a time is a number and ms, s, m or h: 500ms, 2s, 1m".into())
}

/// A time; a number alone is one of seconds, as scripts have it.
fn patience(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| time(text))
}

/// The least that kdpool can do something with: symbols of one kernel, and the answers of usual questions.
const LEAST_MEMORY: u64 = 128 << 20;

fn size(text: &str) -> Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.len() - lower.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("a size is a number and m or g: 512m, 2g".into()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes.and_then(|bytes| usize::try_from(bytes).ok()) {
        Some(bytes) if bytes as u64 >= LEAST_MEMORY => Ok(bytes),
        Some(_) => Err("kdpool needs 128m at least".into()),
        None => Err("no machine has so much".into()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_numbers_with_a_unit_and_make_sense() {
        assert_eq!(super::size("128m"), Ok(128 << 20));
        assert_eq!(super::size("2GiB"), Ok(2 << 30));
        for nonsense in
            ["", "1", "g", "127m", "0g", "-1g", "1.5g", "1k", "1 g", "99999999999g", "99999999999999999999g"]
        {
            assert!(super::size(nonsense).is_err(), "{nonsense}");
        }
    }

    fn pages(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        let name = format!("{name} {}", command.get_name());
        for sub in command.get_subcommands() {
            pages(sub, &name, found);
        }
        found.push((name, command.clone()));
    }

    /// Every page of help at every usual width: no line is too long, and no example is broken at 80 columns.
    #[test]
    fn help_fits_every_terminal() {
        let mut found = Vec::new();
        let mut root = super::command();
        root.build();
        pages(&root, "", &mut found);
        for (name, command) in found {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in after.lines().filter(|line| line.starts_with(' ')) {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
            for width in [60, 80, 120] {
                let text = command.clone().term_width(width).render_help().to_string();
                for line in text.lines() {
                    // Terms and examples are not broken for less than a usual terminal.
                    let most = width.max(80);
                    assert!(line.chars().count() <= most, "{name} at {width}: {line}");
                }
            }
        }
    }

    /// A line an option, nearly everywhere.
    #[test]
    fn the_main_page_is_short() {
        let text = super::command().term_width(80).render_help().to_string();
        assert!(text.lines().count() <= 68, "{} lines:\n{text}", text.lines().count());
    }
}
