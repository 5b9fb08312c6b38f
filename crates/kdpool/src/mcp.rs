//! `kdpool mcp`: the questions as tools for agents.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use kd_link::KdSpec;
use kd_mcp::{Connect, Options, Session};
use kd_shell::{Format, Shell};
use kd_target::{Interrupt, Leaver, Left, Target};
use tokio::runtime::Handle;

use crate::console::Announcer;
use crate::debug::{self, Attached, Plan};
use crate::demo::Demo;
use crate::diagnose::{explain, explain_attach};
use crate::options::{self, Carrier, DemoWindows, SessionArgs, VERSION};
use crate::{COMMAND_FAILED, CONNECTION_LOST, holder, inputs, memory};

/// Answer an agent's questions over the Model Context Protocol.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kdpool mcp --fake
  kdpool mcp -k net:port=50000,key=1.2.3.4 -y 'srv*'

A client starts this line itself; docs/mcp.md shows how three of them are told. The first question stops the target, \
and it runs again when its lease ends, when the client says `run`, and when the client is gone.")]
pub(crate) struct McpArgs {
    /// Connection, as kdpool's own -k takes it
    #[arg(short = 'k', value_name = "CONNECTION", required_unless_present = "fake")]
    connection: Option<String>,
    /// Use the demonstration's fake target instead
    #[arg(long, conflicts_with = "connection")]
    fake: bool,
    /// Symbol path; else _NT_SYMBOL_PATH
    #[arg(short = 'y', value_name = "PATH")]
    symbol_path: Option<String>,
    /// Pool tag descriptions; else KDPOOL_POOLTAG, else pooltag.txt beside the program
    #[arg(long, value_name = "FILE")]
    pooltag: Option<PathBuf>,
    /// How long the target may stand still after a question began, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    lease: u64,
    /// Offer tools that change the target, too
    #[arg(long)]
    allow_write: bool,
    /// Show what happens on the wire, on standard error; twice for more
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// Write those messages to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    trace_file: Option<PathBuf>,
}

pub(crate) fn run(arguments: McpArgs) -> Result<ExitCode> {
    let demo = if arguments.fake { Some(Demo::start(Carrier::Net, DemoWindows::Seven)?) } else { None };
    let spec = match (&demo, arguments.connection.as_deref()) {
        (Some(demo), _) => demo.spec.clone(),
        (None, connection) => match KdSpec::parse(connection.unwrap_or_default()) {
            Ok(spec) => spec,
            Err(error) => return Ok(debug::usage(&format!("-k: {error}"))),
        },
    };
    let options =
        Options { lease: Duration::from_secs(arguments.lease), allow_write: arguments.allow_write, version: VERSION };
    let plan = Plan {
        spec,
        // Only a question stops the target.
        break_on_connect: false,
        brief: true,
        connect_timeout: None,
        capture: None,
        session: SessionArgs {
            symbol_path: arguments.symbol_path.or(demo.as_ref().map(Demo::symbols)),
            pooltag: arguments.pooltag,
            allow_write: arguments.allow_write,
            format: options::Format::Json,
            verbose: arguments.verbose,
            trace_file: arguments.trace_file,
            // The lease bounds what a question may cost.
            yes: true,
            ..SessionArgs::default()
        },
        task: None,
        hint: "",
    };
    let _tracing = debug::start_tracing(&plan.session)?;
    // What is wrong with the arguments is said before a client is served.
    if let Err(error) = inputs::session(&plan.session, true) {
        return Ok(debug::usage(&format!("{error:#}")));
    }
    let runtime = crate::runtime()?;
    let handle = runtime.handle().clone();
    // Once there is a session.
    let leaver: Arc<Mutex<Option<Leaver>>> = Arc::default();
    let of_session = leaver.clone();
    let connect: Connect = Box::new(move || connect(&handle, &plan, &of_session));
    let served = runtime.block_on(kd_mcp::serve(options, connect, tokio::io::stdin(), tokio::io::stdout()));
    // However that ended, a panic of the thread that asked included, the target is let go before the process ends.
    let leaver = debug::lock(&leaver).take();
    let left = leaver.map(|leaver| runtime.block_on(leaver.leave()));
    // A read of standard input that is under way cannot be ended; nobody waits for it.
    runtime.shutdown_background();
    if let Some(left) = left.filter(Left::may_stand) {
        crate::console::complain(&left.to_string());
        return Ok(ExitCode::from(CONNECTION_LOST));
    }
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            crate::console::complain(&format!("{error}; kdpool mcp is started by a client (docs/mcp.md)"));
            Ok(ExitCode::from(COMMAND_FAILED))
        }
    }
}

/// Opens the line and puts a session on it, in the thread that will ask the questions.
fn connect(runtime: &Handle, plan: &Plan, slot: &Mutex<Option<Leaver>>) -> Result<Session, String> {
    let session = inputs::session(&plan.session, true).map_err(|error| format!("{error:#}"))?;
    let interrupt = Interrupt::default();
    let hold = holder::take(&plan.spec)?;
    let Attached { running, restarted, evidence, signals } =
        Attached::start(runtime, plan, Announcer::new(true), &interrupt, &session.log)
            .map_err(|error| explain_attach(&error).join("\n"))?;
    let leaver = running.leaver();
    memory::lets_go(runtime, leaver.clone(), options::Format::Json);
    *debug::lock(slot) = Some(leaver.clone());
    runtime.spawn(async move {
        signals.any_end().await;
        let left = leaver.leave().await;
        if left.may_stand() {
            crate::console::complain(&left.to_string());
            std::process::exit(CONNECTION_LOST.into());
        }
        std::process::exit(130);
    });
    let mut shell = Shell::new(session, Format::Json, interrupt.clone());
    shell.set_target(Target::Running(running));
    shell.ends_by_q = false;
    let started = std::time::Instant::now();
    let explain = move || {
        let mut evidence = debug::lock(&evidence);
        evidence.elapsed = started.elapsed();
        explain(&evidence)
    };
    Ok(Session { shell, interrupt, restarted, explain: Box::new(explain), kept: Box::new(hold) })
}
