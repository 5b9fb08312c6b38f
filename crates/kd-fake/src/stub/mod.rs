//! The KD stub: what a kernel does at its debugger port.
//!
//! It is written as the kernel is: one thread of control that sends a packet and waits for its acknowledgement, or sits
//! in its command loop until it is continued. Nothing here is shared with the debugger's own codec.

mod breakpoints;
mod cpu;
mod execute;
pub(crate) mod line;
mod manipulate;
mod message;
pub(crate) mod packet;

use crate::faults::Dice;
use crate::server::{FakeOptions, ModuleLoad, Start};
use crate::stats::Counters;
use crate::transport::LineState;
use breakpoints::Breakpoints;
use cpu::Cpu;
use execute::Idle;
use line::Line;
use manipulate::Outcome;
use message::{MANIPULATE, Stop, Stopped};
use packet::{Data, Event, Ids, Standing};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// How long an idle stub listens before it listens again.
const IDLE: Duration = Duration::from_millis(500);
/// Tries before a packet that may be given up is, once a debugger was there; see [`Patience`].
const TRIES: u32 = 20;
/// Longest text of one DbgPrint packet.
const PRINT_LIMIT: usize = 512;
/// Where a boot's kernel comes from.
const KERNEL_PATH: &str = "\\SystemRoot\\system32\\ntoskrnl.exe";

/// The machine is not there any more, whatever the stub was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// It starts anew.
    Reboot,
    /// The handle is gone.
    Closed,
}

/// What a test makes the target do while it runs.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Print(String),
    LoadModule(ModuleLoad),
    OpenFile(String),
    Prompt(String),
    /// Stop with this exception code at this address.
    Stop(u32, u64),
    /// Stop because of this debug register, at this address.
    HitData(u8, u64),
    Bugcheck(u32),
    /// With the notice that a kernel sends before it restarts.
    Reboot,
}

/// What ends a stretch of running.
enum Running {
    Command(Command),
    Print,
    Call,
    BreakIn,
}

/// The clock interrupt: time passes for the kernel only while it runs.
struct Clock {
    last: Instant,
}

impl Clock {
    fn start() -> Clock {
        Clock { last: Instant::now() }
    }

    fn tick(&mut self, options: &mut FakeOptions) {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.last, now);
        let mut kernel = options.kernel.lock();
        kernel.advance(passed);
        if let Some(evolve) = &mut options.evolve {
            evolve(&mut kernel, passed);
        }
    }

    async fn run(&mut self, options: &mut FakeOptions) -> Infallible {
        loop {
            sleep(options.clock_tick).await;
            self.tick(options);
        }
    }
}

/// How long a packet is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Endless,
    /// Prints, module loads, file requests: the kernel gives its debugger up after a while.
    Limited,
}

/// What the handle and the stub share.
pub(crate) struct Wiring {
    pub(crate) line: Line,
    pub(crate) line_state: LineState,
    pub(crate) counters: Counters,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) resets: mpsc::Receiver<()>,
    pub(crate) max_data: usize,
}

pub(crate) struct Stub {
    line: Line,
    line_state: LineState,
    counters: Counters,
    commands: mpsc::Receiver<Command>,
    resets: mpsc::Receiver<()>,
    options: FakeOptions,
    max_data: usize,
    ids: Ids,
    cpus: Vec<Cpu>,
    /// What processor 0 goes back to: it executes a system call.
    idle: Option<Idle>,
    /// The processor that reports.
    current: usize,
    breakpoints: Breakpoints,
    /// A break-in that came while the stub was busy; it fires at the next clock tick of the running kernel.
    control_c: bool,
    not_present: bool,
    /// Somebody has answered since the boot.
    contacted: bool,
    /// GetContext was asked in this stop.
    context_read: bool,
    staged_context: Vec<u8>,
    last_reply: Option<Vec<u8>>,
    /// Data packets sent so far.
    sent: u32,
    /// How often it told of a stop, repetitions included.
    told: u64,
    dice: Dice,
}

impl Stub {
    pub(crate) fn new(wiring: Wiring, options: FakeOptions) -> Stub {
        let Wiring { line, line_state, counters, commands, resets, max_data } = wiring;
        let ids = Self::first_ids(&line, options.first_id);
        let dice = Dice::new(line_state.faults().seed ^ 0x7374);
        let mut stub = Stub {
            line,
            line_state,
            counters,
            commands,
            resets,
            options,
            max_data,
            ids,
            cpus: Vec::new(),
            idle: None,
            current: 0,
            breakpoints: Breakpoints::default(),
            control_c: false,
            not_present: false,
            contacted: false,
            context_read: false,
            staged_context: Vec::new(),
            last_reply: None,
            sent: 0,
            told: 0,
            dice,
        };
        stub.power_on();
        stub
    }

    fn first_ids(line: &Line, first: u32) -> Ids {
        if line.version() == 0 { Ids::serial() } else { Ids::kdnet(first) }
    }

    fn power_on(&mut self) {
        let count = self.options.kernel.lock().facts().processors.max(1);
        self.cpus = (0..count).map(|number| Cpu::new(&self.options.kernel.lock(), number)).collect();
        self.idle = None;
        self.current = 0;
        self.control_c = false;
        self.set_not_present(false);
        self.contacted = false;
        self.last_reply = None;
        self.staged_context = Vec::new();
        self.breakpoints.remove_all(&mut self.options.kernel.lock());
        self.counters.update(|stats| stats.breakpoints = Vec::new());
        self.counters.resume();
        self.counters.unblock();
    }

    /// Runs boot after boot until the handle is gone.
    pub(crate) async fn run(mut self) {
        let mut start = self.options.start;
        loop {
            if let Err(Interrupt::Closed) = self.boot(start).await {
                return;
            }
            self.counters.update(|stats| stats.reboots += 1);
            tracing::debug!("the machine restarts");
            self.power_on();
            self.options.kernel.lock().restart(self.options.reboot_time);
            let mut nonce = [0; 24];
            if getrandom::fill(&mut nonce).is_err() {
                nonce[..8].copy_from_slice(&self.counters.snapshot().reboots.to_le_bytes());
            }
            sleep(self.options.reboot_time).await;
            self.line.restart(nonce);
            self.ids = Self::first_ids(&self.line, 0);
            start = self.options.restart;
        }
    }

    /// One boot: from power-on to the next reset.
    async fn boot(&mut self, start: Start) -> Result<(), Interrupt> {
        if let Line::Serial(serial) = &mut self.line
            && !self.options.firmware_noise.is_empty()
        {
            serial.send(self.options.firmware_noise.clone());
        }
        match start {
            Start::Running => {}
            Start::WaitingAtBoot => {
                let first = message::print(b"KDTARGET: Refreshing KD connection\n", 0);
                self.send_data(packet::DEBUG_IO, &first, Patience::Endless).await?;
                let facts = self.options.kernel.lock().facts().clone();
                let stop = Stop::Module {
                    path: KERNEL_PATH.to_owned(),
                    base: facts.kernel_base,
                    size: facts.kernel_size,
                    checksum: 0,
                    process: u64::MAX,
                    unload: false,
                };
                self.halt(stop, Patience::Endless).await?;
            }
            Start::BrokenIn => self.break_in().await?,
            Start::BugcheckLoop => loop {
                self.break_in().await?;
            },
        }
        self.execute().await
    }

    /// The kernel runs; returns only by an interrupt.
    async fn execute(&mut self) -> Result<(), Interrupt> {
        let mut next_print = self.options.print_every.map(|period| Instant::now() + period);
        let mut next_call = self.options.call.map(|(_, period)| Instant::now() + period);
        loop {
            // Past a breakpoint or a step in a system call, the rest of it.
            while self.run_call() {
                self.halt(Stop::breakpoint(self.cpus[0].pc()), Patience::Endless).await?;
            }
            if std::mem::take(&mut self.control_c) {
                self.break_in().await?;
                continue;
            }
            let drain = self.not_present || !self.contacted;
            let mut clock = Clock::start();
            let event = tokio::select! {
                biased;
                reset = self.resets.recv() => return Err(reset.map_or(Interrupt::Closed, |()| Interrupt::Reboot)),
                command = self.commands.recv() => Running::Command(command.ok_or(Interrupt::Closed)?),
                () = due(next_print) => Running::Print,
                () = due(next_call) => Running::Call,
                () = self.line.poll_break_in(drain) => Running::BreakIn,
                never = clock.run(&mut self.options) => match never {},
            };
            clock.tick(&mut self.options);
            match event {
                Running::Command(command) => self.command(command).await?,
                Running::Print => {
                    next_print = self.options.print_every.map(|period| Instant::now() + period);
                    let text = self.options.print_text.clone();
                    self.print(text.as_bytes()).await?;
                }
                Running::Call => {
                    if let Some((call, period)) = self.options.call {
                        next_call = Some(Instant::now() + period);
                        self.enter(&call);
                    }
                }
                Running::BreakIn => {
                    self.heard();
                    self.break_in().await?;
                }
            }
        }
    }

    async fn command(&mut self, command: Command) -> Result<(), Interrupt> {
        match command {
            Command::Print(text) => self.print(text.as_bytes()).await,
            Command::LoadModule(module) => {
                let ModuleLoad { path, base, size, unload } = module;
                if self.not_present {
                    return Ok(());
                }
                let stop = Stop::Module { path, base, size, checksum: 0, process: u64::MAX, unload };
                self.halt(stop, Patience::Limited).await
            }
            Command::OpenFile(path) => self.open_file(&path).await,
            Command::Prompt(text) => self.prompt(&text).await,
            Command::Stop(code, address) => {
                self.current = 0;
                self.cpus[0].set_pc(address);
                self.halt(Stop::Exception { code, address, first_chance: true }, Patience::Endless).await
            }
            Command::HitData(number, address) => {
                self.current = 0;
                self.cpus[0].set_pc(address);
                self.cpus[0].hit_data(number);
                let code = 0x8000_0004;
                self.halt(Stop::Exception { code, address, first_chance: true }, Patience::Endless).await
            }
            Command::Bugcheck(code) => {
                self.counters.update(|stats| stats.bugcheck = Some(code));
                let text = format!(
                    "\n*** Fatal System Error: 0x{code:08x}\n                       \
                     (0x0000000000000000,0x0000000000000000,0x0000000000000000,0x0000000000000000)\n\n"
                );
                self.print(text.as_bytes()).await?;
                self.break_in().await?;
                self.crash().await
            }
            Command::Reboot => {
                self.halt(Stop::reboot_notice(), Patience::Limited).await?;
                Err(Interrupt::Reboot)
            }
        }
    }

    /// Writes its dump, deaf to everything, and restarts.
    async fn crash(&mut self) -> Result<(), Interrupt> {
        sleep(self.options.dump_time).await;
        Err(Interrupt::Reboot)
    }

    async fn break_in(&mut self) -> Result<(), Interrupt> {
        let facts = self.options.kernel.lock().facts().clone();
        self.current = 0;
        self.idle = None;
        self.cpus[0].break_in(&facts);
        self.halt(Stop::breakpoint(facts.break_pc), Patience::Endless).await
    }

    /// Stops, serves the debugger until it continues, and stops again as long as the next instruction is a `cc`.
    async fn halt(&mut self, mut stop: Stop, mut patience: Patience) -> Result<(), Interrupt> {
        loop {
            self.counters.update(|stats| stats.stops += 1);
            self.counters.halt();
            tracing::debug!(?stop, "halted");
            self.context_read = false;
            let trace = self.command_loop(&stop, patience).await?;
            self.counters.resume();
            tracing::debug!(trace, pc = format_args!("{:016x}", self.cpus[0].pc()), "continued");
            let module = matches!(stop, Stop::Module { .. });
            let reporter = std::mem::take(&mut self.current);
            if trace {
                self.step(reporter);
                // A step of another processor hands the stop back to the one that had it.
                if reporter != 0 {
                    continue;
                }
                stop = Stop::Exception { code: 0x8000_0004, address: self.cpus[0].pc(), first_chance: true };
            } else if !module && self.at_int3() {
                self.counters.update(|stats| stats.rebreaks += 1);
                stop = Stop::breakpoint(self.cpus[0].pc());
            } else {
                break;
            }
            patience = Patience::Endless;
        }
        if let Some(text) = self.options.print_on_continue.clone() {
            self.print(text.as_bytes()).await?;
        }
        Ok(())
    }

    fn at_int3(&self) -> bool {
        let kernel = self.options.kernel.lock();
        let code = kernel.machine().breakpoint();
        let mut there = vec![0; code.len()];
        kernel.read_virtual(self.cpus[0].pc(), &mut there);
        there == code
    }

    /// Announces the stop and answers requests; returns at a continue, whether for one step only.
    async fn command_loop(&mut self, stop: &Stop, patience: Patience) -> Result<bool, Interrupt> {
        let mut stop = stop.clone();
        'announce: loop {
            let pc = self.cpus[self.current].pc();
            self.breakpoints.remove_range(&mut self.options.kernel.lock(), pc, 16);
            let payload = self.state_change(&stop);
            self.counters.update(|stats| {
                stats.state_changes += 1;
                stats.breakpoints = self.breakpoints.addresses();
            });
            if !self.send_data(packet::STATE_CHANGE64, &payload, patience).await? {
                return Ok(false);
            }
            loop {
                let Some(request) = self.receive_data(packet::STATE_MANIPULATE, MANIPULATE).await? else {
                    continue 'announce;
                };
                match self.manipulate(&request).await? {
                    Outcome::Answered => {}
                    Outcome::Continue { trace } => return Ok(trace),
                    Outcome::Announce(next) => {
                        stop = next;
                        continue 'announce;
                    }
                    Outcome::Reboot => {
                        if self.options.reboot_notice {
                            let notice = Stop::reboot_notice();
                            Box::pin(self.command_loop(&notice, Patience::Limited)).await?;
                        }
                        return Err(Interrupt::Reboot);
                    }
                    Outcome::Bugcheck(code) => {
                        self.counters.update(|stats| stats.bugcheck = Some(code));
                        self.counters.resume();
                        self.crash().await?;
                    }
                }
            }
        }
    }

    fn state_change(&mut self, stop: &Stop) -> Vec<u8> {
        self.told += 1;
        let cpu = &self.cpus[self.current];
        let mut code = [0; 16];
        let length = self.options.kernel.lock().read_virtual(cpu.pc(), &mut code);
        let at = Stopped {
            machine: self.options.kernel.lock().machine(),
            processor: self.current as u16,
            processors: self.cpus.len() as u32,
            thread: cpu.thread,
            pc: cpu.pc(),
            dr6: cpu.dr6(),
            dr7: cpu.dr7(),
            status: cpu.status(),
            code: &code[..length],
        };
        message::state_change(stop, &at, self.told)
    }

    /// DbgPrint: nothing else happens until the host acknowledges, or is given up.
    async fn print(&mut self, text: &[u8]) -> Result<(), Interrupt> {
        for piece in text.chunks(PRINT_LIMIT) {
            if self.not_present {
                return Ok(());
            }
            let payload = message::print(piece, self.current as u16);
            self.counters.block();
            self.send_data(packet::DEBUG_IO, &payload, Patience::Limited).await?;
            self.counters.unblock();
        }
        Ok(())
    }

    async fn open_file(&mut self, path: &str) -> Result<(), Interrupt> {
        let payload = message::create_file(path);
        self.counters.block();
        while !self.not_present {
            if !self.send_data(packet::FILE_IO, &payload, Patience::Limited).await? {
                break;
            }
            if let Some(answer) = self.receive_data(packet::FILE_IO, 64).await? {
                let status = message::get32(&answer, 4);
                self.counters.update(|stats| stats.file_statuses.push(status));
                break;
            }
        }
        self.counters.unblock();
        Ok(())
    }

    async fn prompt(&mut self, text: &str) -> Result<(), Interrupt> {
        let payload = message::prompt(text.as_bytes(), self.current as u16, 64);
        self.counters.block();
        loop {
            self.send_data(packet::DEBUG_IO, &payload, Patience::Endless).await?;
            if let Some(answer) = self.receive_data(packet::DEBUG_IO, 16).await? {
                let text = String::from_utf8_lossy(&answer[16..]).into_owned();
                self.counters.update(|stats| stats.prompt_answers.push(text));
                break;
            }
        }
        self.counters.unblock();
        Ok(())
    }

    fn set_not_present(&mut self, value: bool) {
        self.not_present = value;
        self.counters.update(|stats| stats.debugger_not_present = value);
    }

    /// Every packet of a host marks the debugger as present again.
    fn heard(&mut self) {
        self.contacted = true;
        self.set_not_present(false);
    }

    fn give_up(&mut self) {
        tracing::debug!("nobody acknowledges; debugger not present");
        self.set_not_present(true);
        self.counters.update(|stats| stats.given_up += 1);
        if let Ids::Serial { .. } = self.ids {
            self.ids = Ids::serial();
        }
    }

    async fn receive(&mut self, wait: Duration) -> Result<Event, Interrupt> {
        let event = tokio::select! {
            biased;
            reset = self.resets.recv() => return Err(reset.map_or(Interrupt::Closed, |()| Interrupt::Reboot)),
            event = self.line.receive(wait) => event,
        };
        if !matches!(event, Event::Timeout | Event::Scrap | Event::Unknown | Event::Data(Data { intact: false, .. })) {
            self.heard();
        }
        Ok(event)
    }

    fn reset(&mut self, id: u32) {
        let answer = self.ids.reset(id);
        self.line.send_control(packet::RESET, answer);
    }

    fn ask_resend(&mut self) {
        self.line.send_control(packet::RESEND, 0);
    }

    /// Sends until acknowledged; false when the debugger was given up.
    async fn send_data(&mut self, kind: u16, payload: &[u8], patience: Patience) -> Result<bool, Interrupt> {
        let first_tries = if self.line.version() == 0 { 5 } else { 3 };
        let mut timeouts = 0;
        self.sent = self.sent.wrapping_add(1);
        let wrong = self.options.wrong_id_every.is_some_and(|every| self.sent.is_multiple_of(every));
        let first_id = self.ids.transmit() ^ if wrong { 0x5000 } else { 0 };
        self.line.send_data(kind, first_id, payload);
        loop {
            let deadline = Instant::now() + self.options.retransmit;
            loop {
                let wait = deadline.saturating_duration_since(Instant::now());
                match self.receive(wait).await? {
                    Event::Acknowledge(id) if id == self.ids.awaited() => {
                        self.ids.acknowledged();
                        return Ok(true);
                    }
                    Event::Acknowledge(_) => {}
                    Event::Timeout => {
                        timeouts += 1;
                        let tries = if self.contacted { TRIES } else { first_tries };
                        if patience == Patience::Limited && timeouts >= tries {
                            self.give_up();
                            return Ok(false);
                        }
                        break;
                    }
                    Event::Resend | Event::Scrap | Event::Connected => break,
                    Event::BreakIn if self.options.deaf_while_printing && kind == packet::DEBUG_IO => {}
                    Event::BreakIn => {
                        self.control_c = true;
                        break;
                    }
                    Event::Reset(id) => {
                        self.reset(id);
                        break;
                    }
                    Event::Data(data) => {
                        let version = self.line.version();
                        if self.options.any_data_acknowledges || self.ids.implies_acknowledge(data.id, version) {
                            self.ask_resend();
                            self.ids.acknowledged();
                            return Ok(true);
                        }
                        if version > 2 {
                            break;
                        }
                        if self.ids.standing(data.id) != Standing::Illegal {
                            self.line.send_control(packet::ACKNOWLEDGE, data.id);
                        }
                        if version == 2 {
                            break;
                        }
                    }
                    Event::Unknown if self.line.version() != 0 => self.ask_resend(),
                    Event::Unknown => {}
                }
            }
            self.counters.update(|stats| stats.retransmissions += 1);
            self.line.send_data(kind, self.ids.transmit(), payload);
        }
    }

    /// Waits for a data packet of this type; `None` when what was sent last is wanted again.
    async fn receive_data(&mut self, kind: u16, shortest: usize) -> Result<Option<Vec<u8>>, Interrupt> {
        loop {
            match self.receive(IDLE).await? {
                Event::Timeout | Event::Acknowledge(_) | Event::Connected => {}
                Event::Resend | Event::Scrap => return Ok(None),
                Event::BreakIn => {
                    self.control_c = true;
                    return Ok(None);
                }
                Event::Reset(id) => {
                    self.reset(id);
                    return Ok(None);
                }
                Event::Unknown if self.line.version() != 0 => self.ask_resend(),
                Event::Unknown => {}
                Event::Data(data) => {
                    if let Some(payload) = self.accept(data, kind, shortest) {
                        return Ok(Some(payload));
                    }
                }
            }
        }
    }

    /// Takes a data packet or refuses it at the packet layer.
    fn accept(&mut self, data: Data, kind: u16, shortest: usize) -> Option<Vec<u8>> {
        let serial = self.line.version() == 0;
        let sound = data.intact && data.payload.len() >= shortest;
        if serial {
            match self.ids.standing(data.id) {
                Standing::Illegal => {
                    self.ask_resend();
                    return None;
                }
                Standing::Duplicate => {
                    self.line.send_control(packet::ACKNOWLEDGE, data.id);
                    return None;
                }
                Standing::Expected if sound && data.kind != kind => {
                    self.line.send_control(packet::ACKNOWLEDGE, data.id);
                    return None;
                }
                Standing::Expected => {}
            }
        }
        if !sound || data.kind != kind {
            self.ask_resend();
            return None;
        }
        self.line.send_control(packet::ACKNOWLEDGE, data.id);
        self.ids.accepted(data.id);
        Some(data.payload)
    }
}

async fn due(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
