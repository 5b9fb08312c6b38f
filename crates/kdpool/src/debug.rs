//! Attach, work, leave.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kd_link::{BoxFuture, Capture, Frame, KdSpec, Link, Trace};
use kd_shell::{
    Completion, Format, Log, Monitor, Next, Outcome, PathSource, PoolTags, Session, Shell, Sink, Symbols, banner,
    event_text,
};
use kd_target::{Event, Halted, Interrupt, Leave, Running, Target, TargetError};
use kd_wire::session::{HostSession, KdnetConfig, SerialConfig};
use nt_memory::Fault;
use rustyline::completion::Pair;
use rustyline::error::ReadlineError;
use tokio::runtime::Handle;

use crate::console::{Announcer, Console, complain, remark};
use crate::diagnose::{ConnectEvidence, explain, explain_open};
use crate::options::{self, DebugArgs, SessionArgs};
use crate::{COMMAND_FAILED, CONNECTION_LOST, LEAK_FOUND, NO_CONNECTION, USAGE, signals};

/// Everything that is decided before the first packet.
pub(crate) struct Plan {
    pub(crate) spec: KdSpec,
    pub(crate) break_on_connect: bool,
    /// Without kd's banner.
    pub(crate) brief: bool,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) capture: Option<PathBuf>,
    pub(crate) session: SessionArgs,
    /// Shown before the first prompt at a terminal.
    pub(crate) hint: &'static str,
}

/// How long a script waits for its target when nobody says how long.
const BATCH_PATIENCE: Duration = Duration::from_secs(60);
/// After this time a person at the terminal is told what to check.
const TELL_WHY_AFTER: Duration = Duration::from_secs(10);
/// How often a wait for the target looks around.
const STEP: Duration = Duration::from_millis(250);

pub(crate) fn run(arguments: DebugArgs) -> Result<ExitCode> {
    let spec = match arguments.connection.as_deref() {
        None | Some("") => KdSpec::from_environment(),
        Some(text) => KdSpec::parse(text),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) if arguments.connection.is_none() => {
            return Ok(usage(&format!("{error}; see kdpool --help, or try kdpool demo")));
        }
        Err(error) => return Ok(usage(&format!("-k: {error}"))),
    };
    attach_and_work(Plan {
        spec,
        break_on_connect: arguments.bonc,
        brief: arguments.brief,
        connect_timeout: arguments.connect_timeout.map(Duration::from_secs),
        capture: arguments.capture,
        session: arguments.session,
        hint: "",
    })
}

pub(crate) fn usage(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(USAGE)
}

pub(crate) fn attach_and_work(plan: Plan) -> Result<ExitCode> {
    start_tracing(&plan.session)?;
    let json = plan.session.format == options::Format::Json;
    let shell = match make_shell_session(&plan.session) {
        Ok(session) => session,
        Err(error) => return Ok(usage(&format!("{error:#}"))),
    };
    let runtime = crate::runtime()?;
    let wire = match make_wire_session(runtime.handle(), &plan.spec) {
        Ok(wire) => wire,
        Err(error) => return Ok(usage(&format!("{error:#}"))),
    };
    let link = match runtime.block_on(kd_link::open(&plan.spec)) {
        Ok(link) => link,
        Err(error) => {
            explain_open(&error).iter().for_each(|line| complain(line));
            return Ok(ExitCode::from(NO_CONNECTION));
        }
    };
    if !plan.brief {
        let waiting = match &plan.spec {
            KdSpec::Net(_) => banner::waiting_net(),
            _ => banner::waiting_serial(&link.describe()),
        };
        remark(&waiting, json);
    }
    let interrupt = Interrupt::default();
    let announcer = Announcer::new(json);
    let Attached { running, evidence, restarted } =
        attach(runtime.handle(), &plan, link, wire, &interrupt, &announcer, &shell.log)?;
    // From here on the target may be halted at any moment; dropping `running` lets it run.
    runtime.spawn(signals::interrupt_on_ctrl_c(interrupt.clone()));
    runtime.spawn(signals::leave_on_termination(running.leaver()));

    let halted = match connect(running, &plan, &evidence, json) {
        Ok(halted) => halted,
        Err(status) => return Ok(status),
    };
    let format = if json { Format::Json } else { Format::Kd };
    let mut shell = Shell::new(shell, format, interrupt);
    shell.set_target(Target::Halted(halted));
    let mut work = Work {
        shell: Rc::new(RefCell::new(shell)),
        console: Console::default(),
        restarted,
        failed: false,
        talked: false,
    };
    work.all(&plan, &announcer)
}

/// A session on its way.
pub(crate) struct Attached {
    pub(crate) running: Running,
    /// What was seen on the line so far.
    pub(crate) evidence: Arc<Mutex<ConnectEvidence>>,
    /// The target started anew since somebody looked.
    pub(crate) restarted: Arc<AtomicBool>,
}

/// Puts a session on the open link, and listens to what happens there by itself.
pub(crate) fn attach(
    runtime: &Handle,
    plan: &Plan,
    link: Box<dyn Link>,
    wire: HostSession,
    interrupt: &Interrupt,
    announcer: &Announcer,
    log: &Log,
) -> Result<Attached> {
    let evidence =
        Arc::new(Mutex::new(ConnectEvidence::new(plan.spec.clone(), kd_link::local_addresses().unwrap_or_default())));
    let mut link: Box<dyn Link> = Box::new(Counted { inner: link, evidence: evidence.clone() });
    if let Some(path) = &plan.capture {
        let file = File::create(path).with_context(|| format!("cannot write the capture {}", path.display()))?;
        let port = if let KdSpec::Net(net) = &plan.spec { net.port } else { 0 };
        link = Box::new(Capture::new(link, Box::new(file), port)?);
    }
    let link = Box::new(Trace::new(link));
    let (running, events) = kd_target::attach(runtime, link, wire, plan.break_on_connect, interrupt.clone());
    let restarted = Arc::new(AtomicBool::new(false));
    let listener = Listener {
        spec: plan.spec.clone(),
        evidence: evidence.clone(),
        announcer: announcer.clone(),
        log: log.clone(),
        restarted: restarted.clone(),
        verbose: plan.session.verbose > 0,
    };
    std::thread::spawn(move || listener.listen(events));
    Ok(Attached { running, evidence, restarted })
}

/// Runs one line that needs no target.
pub(crate) fn without_target(line: &str, path: Option<&str>, format: options::Format) -> Result<ExitCode> {
    let source = match PathSource::new(&symbol_path(path)) {
        Ok(source) => source,
        Err(error) => return Ok(usage(&format!("-y: {error}"))),
    };
    let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
    let format = if format == options::Format::Json { Format::Json } else { Format::Kd };
    let mut shell = Shell::new(session, format, Interrupt::default());
    let outcome = shell.execute(line, &mut Console::default());
    Ok(if outcome.failed { ExitCode::from(COMMAND_FAILED) } else { ExitCode::SUCCESS })
}

/// kd's prompt, from the first stop to the last.
struct Work {
    shell: Rc<RefCell<Shell>>,
    console: Console,
    restarted: Arc<AtomicBool>,
    /// A command of a script failed.
    failed: bool,
    /// Somebody typed.
    talked: bool,
}

impl Work {
    fn all(&mut self, plan: &Plan, announcer: &Announcer) -> Result<ExitCode> {
        let json = plan.session.format == options::Format::Json;
        if !json && let Err(fault) = self.greet(plan) {
            complain(&fault.to_string());
            return Ok(self.leave(Next::Lost));
        }
        let undone = self.shell.borrow().undo_leftovers();
        undone.iter().for_each(|line| complain(line));
        let checked = self.shell.borrow().check_symbol_path();
        match checked {
            Ok(warning) => warning.iter().for_each(|warning| complain(warning)),
            Err(error) => {
                complain(&error.to_string());
                self.failed = true;
            }
        }
        let mut next = Next::Continue;
        if let Some(script) = &plan.session.script {
            let outcome = self.shell.borrow_mut().run_script(&script.display().to_string(), &mut self.console);
            next = self.scripted(outcome);
        }
        for line in &plan.session.commands {
            if next == Next::Continue {
                next = self.line(line);
            }
        }
        if next == Next::Continue {
            next = if io::stdin().is_terminal() && !json {
                remark(plan.hint, false);
                self.converse(announcer)?
            } else {
                self.read_lines()?
            };
        }
        Ok(self.leave(next))
    }

    fn greet(&mut self, plan: &Plan) -> Result<(), Fault> {
        let mut shell = self.shell.borrow_mut();
        let text = match plan.brief {
            true => shell.connected()?,
            false => shell.banner(plan.break_on_connect)? + &shell.stop_lines()?,
        };
        shell.session.log.write(&text);
        remark(&text, false);
        Ok(())
    }

    fn execute(&mut self, line: &str) -> Outcome {
        let mut shell = self.shell.borrow_mut();
        if self.restarted.swap(false, Ordering::Relaxed) {
            shell.forget_target();
        }
        let outcome = shell.execute(line, &mut self.console);
        // Nobody reads any more: the same as the end of input.
        if self.console.closed { Outcome { next: Next::Quit { halted: false }, ..outcome } } else { outcome }
    }

    fn scripted(&mut self, outcome: Outcome) -> Next {
        self.failed |= outcome.failed;
        outcome.next
    }

    fn line(&mut self, line: &str) -> Next {
        let outcome = self.execute(line);
        self.scripted(outcome)
    }

    /// Commands from a pipe or a file.
    fn read_lines(&mut self) -> Result<Next> {
        for line in io::stdin().lock().lines() {
            let line = line.context("cannot read standard input")?;
            match self.line(&line) {
                Next::Continue => {}
                next => return Ok(next),
            }
        }
        Ok(Next::Quit { halted: false })
    }

    /// A person at a terminal.
    fn converse(&mut self, announcer: &Announcer) -> Result<Next> {
        self.talked = true;
        let config =
            rustyline::Config::builder().auto_add_history(true).completion_type(rustyline::CompletionType::List);
        let mut editor = rustyline::Editor::<Completer, _>::with_config(config.build())?;
        editor.set_helper(Some(Completer { shell: self.shell.clone() }));
        if let Ok(printer) = editor.create_external_printer() {
            announcer.use_printer(printer);
        }
        loop {
            let prompt = self.shell.borrow_mut().prompt();
            let Some(prompt) = prompt else {
                match self.watch() {
                    Next::Continue => continue,
                    next => return Ok(next),
                }
            };
            match editor.readline(&prompt) {
                Ok(line) => {
                    let line = if line.trim().is_empty() { self.shell.borrow().repeated().to_owned() } else { line };
                    match self.execute(&line).next {
                        Next::Continue => {}
                        next => return Ok(next),
                    }
                }
                // Ctrl+C on a halted target drops the line, as in every shell.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(Next::Quit { halted: false }),
                Err(error) => return Err(error).context("the terminal is gone"),
            }
        }
    }

    /// The target runs; Ctrl+C breaks in.
    fn watch(&mut self) -> Next {
        let waited = self.shell.borrow_mut().wait(None, &mut self.console);
        if let Some(end) = self.shell.borrow_mut().take_end() {
            return end;
        }
        let stopped = match waited {
            Ok(_) => self.shell.borrow_mut().stop_lines(),
            Err(TargetError::Fault(Fault::Cancelled)) => return self.execute(".break").next,
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error) => {
                complain(&error.to_string());
                return Next::Continue;
            }
        };
        match stopped {
            Ok(lines) => {
                self.shell.borrow().session.log.write(&lines);
                remark(&lines, false);
                Next::Continue
            }
            Err(fault @ Fault::Lost(_)) => {
                complain(&fault.to_string());
                Next::Lost
            }
            // It was reset in the same moment.
            Err(_) => Next::Continue,
        }
    }

    fn leave(&mut self, next: Next) -> ExitCode {
        let target = self.shell.borrow_mut().take_target();
        if let Some(target) = target {
            let leave = if next == (Next::Quit { halted: true }) { Leave::Halted } else { Leave::Running };
            target.leave(leave);
            if self.talked && next != Next::Lost {
                remark(parting(leave), false);
            }
        }
        match next {
            Next::Lost => ExitCode::from(CONNECTION_LOST),
            _ if self.shell.borrow().session.leak_found => ExitCode::from(LEAK_FOUND),
            _ if self.failed => ExitCode::from(COMMAND_FAILED),
            _ => ExitCode::SUCCESS,
        }
    }
}

/// What to know of a target that was left; docs/leaving.md.
fn parting(leave: Leave) -> &'static str {
    match leave {
        Leave::Running => "The target runs. It may stall once, up to a minute, when it next has something to print.\n",
        Leave::Halted => "The target stands still until a debugger comes.\n",
    }
}

/// Waits for the first stop. Says why it does not come.
fn connect(
    mut running: Running,
    plan: &Plan,
    evidence: &Mutex<ConnectEvidence>,
    json: bool,
) -> Result<Halted, ExitCode> {
    let interactive = io::stdin().is_terminal() && plan.session.commands.is_empty() && plan.session.script.is_none();
    let patience = plan.connect_timeout.or((!interactive).then_some(BATCH_PATIENCE));
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
            TargetError::Fault(Fault::Cancelled) if break_asked && told => return Err(ExitCode::from(NO_CONNECTION)),
            TargetError::Fault(Fault::Cancelled) => {
                remark("Break-in requested; Ctrl+C again gives up.\n", json);
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
            _ if interactive && !told && started.elapsed() >= TELL_WHY_AFTER => {
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
    announcer: Announcer,
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
                        self.say(&banner::connected_net(*peer, net.port, local_toward(*peer)));
                    }
                }
                Event::Restarted { .. } => self.restarted.store(true, Ordering::Relaxed),
                _ => {}
            }
            if let Some(text) = event_text(&event, self.verbose) {
                self.say(&text);
            }
        }
    }

    fn say(&self, text: &str) {
        self.log.write(text);
        self.announcer.say(text);
    }
}

fn local_toward(peer: SocketAddr) -> Option<std::net::IpAddr> {
    kd_link::local_address_toward(peer.ip()).ok()
}

/// Counts what arrives, for those who wonder why it does not connect.
struct Counted {
    inner: Box<dyn Link>,
    evidence: Arc<Mutex<ConnectEvidence>>,
}

impl Link for Counted {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async {
            let received = self.inner.recv().await;
            match &received {
                Ok(Some(Frame::Datagram { .. })) => lock(&self.evidence).datagrams += 1,
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

/// Tab: commands, modules, and names of modules whose symbols are loaded.
struct Completer {
    shell: Rc<RefCell<Shell>>,
}

impl rustyline::completion::Completer for Completer {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..position];
        let start = typed.rfind([' ', ';', '(', '+', '-']).map_or(0, |at| at + 1);
        let found = self.shell.borrow_mut().complete(&typed[start..]);
        let pair = |Completion { text, help }: Completion| Pair {
            display: if help.is_empty() { text.clone() } else { format!("{text:<20} {help}") },
            replacement: text,
        };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

impl rustyline::hint::Hinter for Completer {
    type Hint = String;
}
impl rustyline::highlight::Highlighter for Completer {}
impl rustyline::validate::Validator for Completer {}
impl rustyline::Helper for Completer {}

pub(crate) fn make_wire_session(runtime: &Handle, spec: &KdSpec) -> Result<HostSession> {
    Ok(match spec {
        KdSpec::Net(net) => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).context("no random numbers")?;
            let targets = runtime.block_on(net.target_addresses()).context("-k: target=")?;
            HostSession::kdnet(KdnetConfig { key: net.key.expose().parse().context("-k: key")?, targets, seed })
        }
        KdSpec::Serial(serial) => HostSession::serial(SerialConfig { baud: Some(serial.baud), resets: 0 }),
        KdSpec::Pipe(pipe) => HostSession::serial(SerialConfig { baud: None, resets: pipe.resets.unwrap_or_default() }),
        KdSpec::Tcp(_) => HostSession::serial(SerialConfig::default()),
    })
}

pub(crate) fn make_shell_session(arguments: &SessionArgs) -> Result<Session> {
    let path = symbol_path(arguments.symbol_path.as_deref());
    let source = PathSource::new(&path).map_err(|error| anyhow::anyhow!("-y: {error}"))?;
    let log = Log::default();
    let source = source.watched(monitor(log.clone(), arguments.format == options::Format::Json));
    let file = arguments.logo.as_ref().map(|path| (path, false)).or(arguments.loga.as_ref().map(|path| (path, true)));
    if let Some((path, append)) = file {
        log.open(path, append).with_context(|| format!("cannot open the log file {}", path.display()))?;
    }
    let mut session = Session::new(Symbols::new(Box::new(source)), pool_tags(arguments)?, log);
    session.allow_write = arguments.allow_write;
    Ok(session)
}

/// What is said while symbols are looked for: noisy lines where the answers go, and progress to who looks at it.
fn monitor(log: Log, json: bool) -> Monitor {
    let lines = move |text: &str| {
        log.write(text);
        remark(text, json);
    };
    let progress = |text: &str| {
        let mut terminal = io::stderr().lock();
        // With standard error gone there is nobody to tell.
        let _ = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
    };
    let terminal = io::stderr().is_terminal() && io::stdin().is_terminal();
    Monitor::new(Box::new(lines), terminal.then(|| Box::new(progress) as Sink))
}

/// `-y`, else `_NT_ALT_SYMBOL_PATH` before `_NT_SYMBOL_PATH`, as in kd.
pub(crate) fn symbol_path(option: Option<&str>) -> String {
    if let Some(path) = option {
        return path.to_owned();
    }
    let variables = ["_NT_ALT_SYMBOL_PATH", "_NT_SYMBOL_PATH"];
    let parts: Vec<String> = variables.into_iter().filter_map(|name| std::env::var(name).ok()).collect();
    parts.join(";")
}

fn pool_tags(arguments: &SessionArgs) -> Result<PoolTags> {
    let named = arguments.pooltag.clone().or_else(|| std::env::var_os("KDPOOL_POOLTAG").map(PathBuf::from));
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("pooltag.txt")).filter(|path| path.exists());
    let Some(path) = named.or_else(beside) else { return Ok(PoolTags::built_in()) };
    let text = std::fs::read(&path).with_context(|| format!("cannot read the pool tags {}", path.display()))?;
    let tags = PoolTags::parse(&text).with_context(|| format!("pool tags {}", path.display()))?;
    Ok(tags.or(PoolTags::built_in()))
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

pub(crate) fn start_tracing(arguments: &SessionArgs) -> Result<()> {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::prelude::*;
    let default = log_targets(arguments.verbose);
    let chosen = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = chosen.map_or_else(|| default.parse(), Ok).context("-v")?;
    let layer = tracing_subscriber::fmt::layer();
    let registry = tracing_subscriber::registry();
    match &arguments.trace_file {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            let layer = layer.with_ansi(false).with_writer(Mutex::new(file));
            registry.with(layer.with_filter(filter)).init();
        }
        None => {
            let layer = layer.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
            registry.with(layer.with_filter(filter)).init();
        }
    }
    Ok(())
}
