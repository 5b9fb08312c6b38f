//! The command line, as kd spells it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
  kdpool -k com:ipport=4555,port=vmhost -y 'srv*' -b -c '!poolused 4; !poolfind Leak; q'

Exit status: 0 all commands succeeded, 1 one failed, 2 usage, 3 no connection,
4 connection lost, or the target may still stand. Unlike kd, kdpool lets the
target run when it leaves, however it leaves; `q -halted` leaves it standing."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) debug: DebugArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach to a fake Windows 7 with a leak, over real datagrams, in this process
    Demo(DemoArgs),
    /// Watch a pool tag and say whether it leaks, and who allocates it
    Leak(Box<leak::LeakArgs>),
    /// Read a mark or a report of a leak without its target, with the symbols that are here
    Report(Box<leak::ReportArgs>),
    /// Run the fake Windows 7 alone, for any debugger to attach to
    Fake(FakeArgs),
    /// Print a KDNET capture, one line per datagram
    Decode(decode::DecodeArgs),
    /// Print what to type on the target, and the settings of a VM
    Setup(setup::SetupArgs),
    /// Check this host: port, firewall, address, symbols, serial devices
    Doctor(doctor::DoctorArgs),
    /// Answer an agent's questions, as tools of the Model Context Protocol on standard input and output
    Mcp(mcp::McpArgs),
    /// Print the completions of a shell
    Completions(manual::CompletionsArgs),
    /// Write the manual pages to a folder
    Man(manual::ManArgs),
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
    /// Where the target is (see below); alone it takes _NT_DEBUG_PORT and _NT_DEBUG_BAUD_RATE
    #[arg(short = 'k', value_name = "CONNECTION", num_args = 0..=1, default_missing_value = "")]
    pub(crate) connection: Option<String>,
    /// Break in as soon as the session begins (also -bonc, -b)
    #[arg(long)]
    pub(crate) bonc: bool,
    /// Give up when the target has not stopped by then [default: wait for ever at a terminal, else 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) connect_timeout: Option<u64>,
    /// Write the traffic to a pcapng file, for `kdpool decode`
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
    /// Symbol path; else _NT_SYMBOL_PATH
    #[arg(short = 'y', value_name = "PATH")]
    pub(crate) symbol_path: Option<String>,
    /// Commands to run at the first prompt, separated by `;`
    #[arg(short = 'c', value_name = "COMMANDS")]
    pub(crate) commands: Vec<String>,
    /// Script to run at the first prompt (also -cf FILE)
    #[arg(long = "cf", value_name = "FILE")]
    pub(crate) script: Option<PathBuf>,
    /// Log file, overwritten (also -logo FILE)
    #[arg(long, value_name = "FILE", conflicts_with = "loga", help_heading = "Output")]
    pub(crate) logo: Option<PathBuf>,
    /// Log file, appended to (also -loga FILE)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) loga: Option<PathBuf>,
    /// Pool tag descriptions; else KDPOOL_POOLTAG, else pooltag.txt beside the program
    #[arg(long, value_name = "FILE")]
    pub(crate) pooltag: Option<PathBuf>,
    /// Allow commands to change the target's memory and registers (.allow_write)
    #[arg(long)]
    pub(crate) allow_write: bool,
    /// Take the target from a command that holds it longer (500ms, 2s, 1m), whatever the command does, and let it run
    /// [default: no limit; a minute for !leak watch and !leak trace]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) max_frozen: Option<Duration>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Kd, help_heading = "Output")]
    pub(crate) format: Format,
    /// Show what happens on the wire; twice for more (RUST_LOG for a finer choice)
    #[arg(short = 'v', action = clap::ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,
    /// Without kd's banner (also -quiet, -kqm)
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Tell every place where symbols are looked for (also -n)
    #[arg(long, help_heading = "Output")]
    pub(crate) noisy: bool,
    /// Do what takes the target more than a minute's stand-still without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Write those messages to a file instead of standard error
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
    /// Write the traffic to a pcapng file
    #[arg(long, value_name = "FILE")]
    pub(crate) capture: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
}

fn time(text: &str) -> Result<Duration, String> {
    kd_shell::duration(text)
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a time is a number and ms, s, m or h: 500ms, 2s, 1m".into())
}
