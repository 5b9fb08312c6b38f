//! Attach, work, leave.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kd_link::{BoxFuture, Capture, Frame, KdSpec, Link, Trace};
use kd_shell::{Format, HuntEnd, Log, PoolTags, Session, Shell, Symbols, banner, event_text, leak};
use kd_target::{Attach, AttachError, Event, Halted, Interrupt, Running, Target, TargetError};
use nt_memory::Fault;
use tokio::runtime::Handle;
use tracing_appender::non_blocking::{ErrorCounter, WorkerGuard};

use crate::console::{Announcer, Console, complain, is_interactive, remark};
use crate::diagnose::{ConnectEvidence, explain, explain_attach};
use crate::options::{self, DebugArgs, SessionArgs};
use crate::signals::Signals;
use crate::work::Work;
use crate::{COMMAND_FAILED, INTERRUPTED, LEAK_FOUND, NO_CONNECTION, USAGE, ending, holder, inputs, memory};

/// Everything that is decided before the first packet.
pub(crate) struct Plan {
    pub(crate) spec: KdSpec,
    pub(crate) break_on_connect: bool,
    /// Without kd's banner.
    pub(crate) brief: bool,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) capture: Option<PathBuf>,
    pub(crate) session: SessionArgs,
    /// What is done instead of a prompt.
    pub(crate) task: Option<Task>,
    /// Shown before the first prompt at a terminal.
    pub(crate) hint: &'static str,
}

impl Plan {
    /// Commands were given, so that nobody need type any.
    pub(crate) fn is_scripted(&self) -> bool {
        !self.session.commands.is_empty() || self.session.script.is_some() || self.task.is_some()
    }

    /// A program reads standard output: what is no answer goes to standard error. A tool that types commands into a pipe
    /// is served as kd serves it, with everything in one stream.
    pub(crate) fn is_aside(&self) -> bool {
        self.session.format == options::Format::Json || self.is_scripted() && !is_interactive()
    }
}

/// What a subcommand of the program does on its target: an order for `!leak`.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) sub: leak::Sub,
    pub(crate) asked: leak::Arguments,
}

/// How long a script waits for its target when nobody says how long.
const BATCH_PATIENCE: Duration = Duration::from_secs(60);
/// After this time a person at the terminal is told what to check.
const TELL_WHY_AFTER: Duration = Duration::from_secs(10);
/// How often a wait for the target looks around.
const STEP: Duration = Duration::from_millis(250);

pub(crate) fn run(arguments: DebugArgs) -> Result<ExitCode> {
    let spec = match arguments.connection.as_deref() {
        // kd takes the first serial port then; a newcomer has none, and wants to know what to type.
        None if std::env::var_os("_NT_DEBUG_PORT").is_none() => return Ok(no_connection()),
        None | Some("") => KdSpec::from_environment(),
        Some(text) => KdSpec::parse(text),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) => return Ok(usage(&format!("-k: {error}"))),
    };
    attach_and_work(Plan {
        spec,
        break_on_connect: arguments.bonc,
        brief: arguments.brief,
        connect_timeout: arguments.connect_timeout,
        capture: arguments.capture,
        session: arguments.session,
        task: arguments.task,
        hint: "",
    })
}

/// What to type, for whoever typed only the program's name.
const SHORT_HELP: &str = "\
kdpool finds who leaks Windows kernel pool, live, over KDNET or a serial line.

  kdpool demo                a fake Windows with a leak, to try it out
  kdpool setup               what to type on the target, and what a VM needs
  kdpool -k net:port=50000,key=1.2.3.4 -y 'srv*'
                             attach over the network; Ctrl+C breaks in
  kdpool -k com:port=com1,baud=115200 -y 'srv*'
                             attach over a serial line
  kdpool --help              everything else
";

fn no_connection() -> ExitCode {
    // With standard error gone there is nobody to tell.
    let _ = io::stderr().lock().write_all(SHORT_HELP.as_bytes());
    ExitCode::from(USAGE)
}

pub(crate) fn usage(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(USAGE)
}

pub(crate) fn attach_and_work(plan: Plan) -> Result<ExitCode> {
    attach_and(plan, |mut work, plan, announcer, told| work.all(plan, announcer, told))
}

/// Attaches, does `what`, and lets the target run however that ends. `what` gets a flag to raise when the user has heard
/// what became of the target.
fn attach_and(
    plan: Plan,
    what: impl FnOnce(Work, &Plan, &Announcer, &Cell<bool>) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let _tracing = start_tracing(&plan.session)?;
    let aside = plan.is_aside();
    let mut shell = match inputs::session(&plan.session, aside) {
        Ok(session) => session,
        Err(error) => return Ok(usage(&format!("{error:#}"))),
    };
    // A script that is missing is no reason to stop a target.
    if let Some(script) = &plan.session.script
        && let Err(error) = std::fs::metadata(script)
    {
        return Ok(usage(&format!("--cf: cannot read the script {}: {error}", script.display())));
    }
    // At the prompt it is asked when a name is needed. What runs by itself would keep the target for the answer.
    if plan.is_scripted() {
        shell.symbols.choose_path();
    }
    let runtime = crate::runtime()?;
    let announcer = Announcer::new(plan.session.format == options::Format::Json);
    let _hold = match holder::take(&plan.spec) {
        Ok(hold) => hold,
        Err(who) => {
            complain(&who);
            return Ok(ExitCode::from(NO_CONNECTION));
        }
    };
    let interrupt = Interrupt::default();
    let attached = match Attached::start(runtime.handle(), &plan, announcer.clone(), &interrupt, &shell.log) {
        Ok(attached) => attached,
        Err(error) => return Ok(not_attached(&error)),
    };
    // From here on the target may be halted at any moment; dropping `running` lets it run.
    let Attached { running, restarted, evidence, signals } = attached;
    memory::lets_go(runtime.handle(), running.leaver(), plan.session.format);
    signals.serve(runtime.handle(), interrupt.clone(), running.leaver());

    let leaver = running.leaver();
    let json = plan.session.format == options::Format::Json;
    let told = Cell::new(false);
    let worked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let halted = match connect(running, &plan, &evidence, aside) {
            Ok(halted) => halted,
            Err(status) => return Ok(status),
        };
        let format = if json { Format::Json } else { Format::Kd };
        let mut shell = Shell::new(shell, format, interrupt);
        shell.max_frozen = plan.session.max_frozen;
        shell.set_target(Target::Halted(halted));
        what(Work::new(shell, restarted), &plan, &announcer, &told)
    }));
    // However that ended, the handle it held has let the target go; here it is only heard what came of it.
    let left = runtime.block_on(leaver.leave());
    ending::conclude(worked, &left, told.get(), json)
}

/// Says why nothing was attached to.
fn not_attached(error: &AttachError) -> ExitCode {
    explain_attach(error).iter().for_each(|line| complain(line));
    ExitCode::from(match error {
        AttachError::Spec(_) | AttachError::Key(_) | AttachError::Target(_) => USAGE,
        AttachError::Open(_) | AttachError::Stop(_) => NO_CONNECTION,
        AttachError::Layer(_) | AttachError::System(_) => COMMAND_FAILED,
    })
}

/// A target whose carrier is open, or is waited for.
pub(crate) struct Attached {
    pub(crate) running: Running,
    /// It started anew since somebody looked.
    pub(crate) restarted: Arc<AtomicBool>,
    /// What is seen on the line.
    pub(crate) evidence: Arc<Mutex<ConnectEvidence>>,
    /// Listened to since the line was open, to be served by whoever knows what they end.
    pub(crate) signals: Signals,
}

impl Attached {
    /// Opens the line, puts a session on it, and listens to what happens there by itself.
    pub(crate) fn start(
        runtime: &Handle,
        plan: &Plan,
        announcer: Announcer,
        interrupt: &Interrupt,
        log: &Log,
    ) -> Result<Attached, AttachError> {
        let host = kd_link::local_addresses().unwrap_or_default();
        let evidence = Arc::new(Mutex::new(ConnectEvidence::new(plan.spec.clone(), host)));
        let told = Told { announcer, quiet: plan.brief || plan.session.quiet, aside: plan.is_aside() };
        let mut signals = None;
        let (running, events) = Attach::to(plan.spec.clone())
            .on(runtime)
            .break_in(plan.break_on_connect)
            .interrupt(interrupt.clone())
            .waiting(waiting(evidence.clone(), told.clone()))
            .layer(|link| {
                signals = Some(Signals::listen(runtime));
                layers(link, plan, &evidence, &told)
            })
            .start()?;
        let restarted = Arc::new(AtomicBool::new(false));
        let (log, verbose) = (log.clone(), plan.session.verbose > 0);
        let listener = Listener {
            spec: plan.spec.clone(),
            evidence: evidence.clone(),
            told,
            log,
            restarted: restarted.clone(),
            verbose,
        };
        std::thread::spawn(move || listener.listen(events));
        let signals = signals.unwrap_or_else(|| Signals::listen(runtime));
        Ok(Attached { running, restarted, evidence, signals })
    }
}

/// What is put around the carrier once it is open: what counts, what `--capture` and `-v` write.
fn layers(
    link: Box<dyn Link>,
    plan: &Plan,
    evidence: &Arc<Mutex<ConnectEvidence>>,
    told: &Told,
) -> io::Result<Box<dyn Link>> {
    // What is waited for is opened later.
    if !plan.spec.reconnects() {
        told.opened(&plan.spec, &link.describe());
    }
    let (spec, evidence, told) = (plan.spec.clone(), evidence.clone(), told.clone());
    let mut link: Box<dyn Link> = Box::new(Counted { inner: link, evidence, spec, told });
    if let Some(path) = &plan.capture {
        let file = kd_shell::open_private(path, false).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write the capture {}: {error}", path.display()))
        })?;
        let port = if let KdSpec::Net(net) = &plan.spec { net.port } else { 0 };
        link = Box::new(Capture::new(link, Box::new(file), port)?);
    }
    Ok(Box::new(Trace::new(link)))
}

/// Does what needs no target.
pub(crate) fn without_target(task: &Task, path: Option<&str>, format: options::Format) -> Result<ExitCode> {
    let source = inputs::symbols(path);
    let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
    let format = if format == options::Format::Json { Format::Json } else { Format::Kd };
    let mut shell = Shell::new(session, format, Interrupt::default());
    let outcome = leak::order(&mut shell, task.sub, &task.asked, &mut Console::default());
    Ok(match () {
        () if shell.session.hunt_end == HuntEnd::Found => ExitCode::from(LEAK_FOUND),
        () if outcome.failed => ExitCode::from(COMMAND_FAILED),
        () => ExitCode::SUCCESS,
    })
}

/// Waits for the first stop. Says why it does not come.
fn connect(
    mut running: Running,
    plan: &Plan,
    evidence: &Mutex<ConnectEvidence>,
    aside: bool,
) -> Result<Halted, ExitCode> {
    let somebody_waits = io::stdin().is_terminal();
    let endless = somebody_waits && !plan.is_scripted();
    let patience = plan.connect_timeout.or((!endless).then_some(BATCH_PATIENCE));
    let started = Instant::now();
    let mut told = false;
    let mut break_asked = plan.break_on_connect;
    loop {
        let left = patience.map(|patience| patience.saturating_sub(started.elapsed()));
        if left == Some(Duration::ZERO) {
            tell_why(evidence, started, break_asked);
            return Err(ExitCode::from(NO_CONNECTION));
        }
        let error = match running.wait(Some(left.unwrap_or(STEP).min(STEP))) {
            Ok(halted) => return Ok(halted),
            Err((still, error)) => {
                running = still;
                error
            }
        };
        match error {
            // A hunt asks for the break-in itself: whoever presses Ctrl+C wants it to end.
            TargetError::Fault(Fault::Cancelled) if plan.task.is_some() => return Err(ExitCode::from(INTERRUPTED)),
            TargetError::Fault(Fault::Cancelled) if break_asked && told => return Err(ExitCode::from(NO_CONNECTION)),
            TargetError::Fault(Fault::Cancelled) => {
                remark("Break-in requested; Ctrl+C again gives up.\n", aside);
                (break_asked, told) = (true, true);
                running = match running.break_in(Duration::ZERO) {
                    Ok(halted) => return Ok(halted),
                    Err((still, _)) => still,
                };
            }
            TargetError::Fault(fault) => {
                complain(&fault.to_string());
                return Err(ExitCode::from(NO_CONNECTION));
            }
            _ if somebody_waits && !told && started.elapsed() >= TELL_WHY_AFTER => {
                told = true;
                tell_why(evidence, started, break_asked);
            }
            _ => {}
        }
    }
}

fn tell_why(evidence: &Mutex<ConnectEvidence>, started: Instant, break_asked: bool) {
    let mut evidence = lock(evidence);
    evidence.elapsed = started.elapsed();
    if evidence.keys_established && !break_asked {
        complain("The target runs, and no break-in was asked for: use -bonc, or Ctrl+C at a terminal.");
        return;
    }
    explain(&evidence).iter().for_each(|line| complain(line));
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows what happens by itself.
struct Listener {
    spec: KdSpec,
    evidence: Arc<Mutex<ConnectEvidence>>,
    told: Told,
    log: Log,
    restarted: Arc<AtomicBool>,
    verbose: bool,
}

impl Listener {
    fn listen(self, events: Receiver<Event>) {
        for event in events {
            match &event {
                Event::Diagnostic(diagnostic) => lock(&self.evidence).record(diagnostic),
                Event::Connected { peer } => {
                    lock(&self.evidence).keys_established = true;
                    if let (KdSpec::Net(net), Some(peer)) = (&self.spec, peer) {
                        let line = banner::connected_net(*peer, net.port, local_toward(*peer));
                        self.log.write(&line);
                        self.told.say(&line);
                    }
                }
                Event::Restarted { .. } => self.restarted.store(true, Ordering::Relaxed),
                _ => {}
            }
            if let Some(text) = event_text(&event, self.verbose) {
                self.log.write(&text);
                self.told.announcer.say(&text);
            }
        }
    }
}

/// The lines about the connection, for whoever wants them.
#[derive(Clone)]
struct Told {
    announcer: Announcer,
    quiet: bool,
    /// A program reads standard output.
    aside: bool,
}

impl Told {
    fn say(&self, text: &str) {
        match (self.quiet, self.aside) {
            (true, _) => {}
            (false, true) => remark(text, true),
            (false, false) => self.announcer.say(text),
        }
    }

    fn opened(&self, spec: &KdSpec, name: &str) {
        self.say(&match spec {
            KdSpec::Net(_) => banner::waiting_net(),
            _ => banner::waiting_serial(name),
        });
    }
}

/// Says why what is waited for does not open, and keeps it for who asks later.
fn waiting(evidence: Arc<Mutex<ConnectEvidence>>, told: Told) -> kd_link::Waiting {
    Box::new(move |error| {
        let why = error.to_string();
        let what = match &lock(&evidence).spec {
            KdSpec::Pipe(pipe) => format!("pipe {}", pipe.port),
            KdSpec::Tcp(tcp) => format!("{}, TCP port {}", tcp.host, tcp.port),
            other => other.to_string(),
        };
        lock(&evidence).away = Some(why.clone());
        // Whoever asked for no banner still wants to know what is wrong.
        remark(&format!("{why}; it is tried again.\nWaiting for {what}...\n"), told.aside || told.quiet);
    })
}

fn local_toward(peer: SocketAddr) -> Option<std::net::IpAddr> {
    kd_link::local_address_toward(peer.ip()).ok()
}

/// Counts what arrives, for those who wonder why it does not connect.
struct Counted {
    inner: Box<dyn Link>,
    evidence: Arc<Mutex<ConnectEvidence>>,
    spec: KdSpec,
    told: Told,
}

impl Link for Counted {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async {
            let received = self.inner.recv().await;
            match &received {
                Ok(Some(Frame::Datagram { .. })) => lock(&self.evidence).datagrams += 1,
                Ok(Some(Frame::Reopened)) => {
                    lock(&self.evidence).away = None;
                    self.told.opened(&self.spec, &self.inner.describe());
                }
                Ok(Some(Frame::Bytes(bytes))) => lock(&self.evidence).serial_bytes += bytes.len() as u64,
                _ => {}
            }
            received
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        self.inner.send(frame)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// Our own crates: what the line editor and others tell of themselves is neither asked for nor always harmless.
const OURS: [&str; 10] = [
    "kdpool",
    "kd_fake",
    "kd_link",
    "kd_shell",
    "kd_target",
    "kd_wire",
    "nt_leaks",
    "nt_pool",
    "nt_symbols",
    "nt_unwind",
];

/// What `-v` (1) and `-v -v` show.
fn log_targets(verbose: u8) -> String {
    let level = |target: &str| match (verbose, target) {
        (0, _) => "off",
        (1, "kd_target" | "kd_shell" | "nt_symbols") => "debug",
        (1, _) => "info",
        _ => "trace",
    };
    OURS.map(|target| format!("{target}={}", level(target))).join(",")
}

/// Who writes the messages of `-v`; to be kept until the program ends.
pub(crate) struct Tracing {
    _writer: WorkerGuard,
    lost: ErrorCounter,
}

impl Drop for Tracing {
    fn drop(&mut self) {
        if let lines @ 1.. = self.lost.dropped_lines() {
            complain(&format!("{lines} lines of -v are missing: they were not read in time"));
        }
    }
}

/// The session's own task writes these messages while it holds the target. A thread takes them from it: a pager that
/// nobody scrolls, or a full disk, must not keep the target frozen.
pub(crate) fn start_tracing(arguments: &SessionArgs) -> Result<Tracing> {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::prelude::*;
    let default = log_targets(arguments.verbose);
    let chosen = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = chosen.map_or_else(|| default.parse(), Ok).context("-v")?;
    let (out, ansi): (Box<dyn Write + Send>, bool) = match &arguments.trace_file {
        Some(path) => {
            let file =
                kd_shell::open_private(path, false).with_context(|| format!("cannot write {}", path.display()))?;
            (Box::new(file), false)
        }
        None => (Box::new(io::stderr()), io::stderr().is_terminal()),
    };
    let (writer, _writer) = tracing_appender::non_blocking(out);
    let lost = writer.error_counter();
    // What it would complain of itself goes to a standard error that may be gone, and that would be a panic.
    let layer = tracing_subscriber::fmt::layer().with_ansi(ansi).log_internal_errors(false).with_writer(writer);
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(Tracing { _writer, lost })
}

#[cfg(all(test, unix))]
mod tests;
