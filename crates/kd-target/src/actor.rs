//! The session's task: it owns the link, the protocol's state machine and the clock.

mod control;
mod data;
mod leaving;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kd_link::{Frame, Link};
use kd_wire::message::StateChange;
use kd_wire::message::manipulate::{
    ManipulateReply, Reply, Request, api_name, continue_api, continue2, get_context, get_version, read_control_space,
    read_physical_memory, read_virtual_memory, restore_break_point, search_memory, set_context, write_break_point,
    write_physical_memory, write_virtual_memory,
};
use kd_wire::message::state_change::{HIBERNATING, REBOOTING, Report};
use kd_wire::session::{self, HostSession, RequestFailure};
use nt_memory::{Fault, Search};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;
use tracing::Instrument;

use crate::continuing::Machine;
use crate::status::{Halt, Phase, Searching, Shared, lock};
use crate::{Answer, Ask, Command, Event, Leave, Left, Stop, TargetError, Version};

const STATUS_BREAKPOINT: u32 = 0x8000_0003;
/// Stops that a debugger causes, and that are therefore handled when it goes on: breakpoint, single step, the same two
/// from 32-bit code, and a processor that was switched to.
const DEBUGGER_STOPS: [u32; 5] = [STATUS_BREAKPOINT, 0x8000_0004, 0x4000_001f, 0x4000_001e, 0x8000_0007];
const STATUS_NO_MORE_ENTRIES: u32 = 0x8000_001a;
const DBG_EXCEPTION_HANDLED: u32 = 0x0001_0001;
const DBG_CONTINUE: u32 = 0x0001_0002;
const DBG_EXCEPTION_NOT_HANDLED: u32 = 0x8001_0001;

/// Slots of a target's breakpoint table; handles count from 1.
const BREAKPOINT_HANDLES: u32 = 32;

/// A debugger fills the table from its first slot on whenever its target runs, and a stop takes out those that lie within
/// some bytes of it. So what a dead one left begins near the table's start, and so many empty slots there are enough to
/// see that it left nothing: the whole table costs a serial line a third of a second at each attach.
const LEFTOVER_SLOTS: u32 = 4;

/// A break-in that was sent once too often stops the target again, at the same place, within this time of a continue.
const LATE_BREAK_IN: Duration = Duration::from_secs(2);

/// How long the line may take to accept one packet; the longest is some 1,300 bytes.
const LONGEST_SEND: Duration = Duration::from_secs(5);

/// How long one instruction may take.
const SINGLE_STEP: Duration = Duration::from_secs(5);

/// A reply of this size passes every network; tried when larger ones do not come through.
const SAFE_REPLY_DATA: usize = 1024;

#[allow(clippy::large_enum_variant)] // One at a time, on the stack.
enum Step {
    Event(session::Event),
    Order(Command),
    /// Nobody holds the target any more.
    OrdersClosed,
    Deadline,
    /// A command held the target longer than it may.
    HeldTooLong,
    Lost(String),
}

/// How long a command may hold the target.
struct Hold {
    limit: Duration,
    /// When the command began.
    since: Deadline,
}

/// A breakpoint is in the target's table only while the target runs: what stands still holds its own bytes, and a
/// debugger that dies at its prompt leaves nothing behind.
struct Breakpoint {
    address: u64,
    /// In the target's table, which counts from 1.
    handle: Option<u32>,
    /// The target did not take it when it last went on: its memory is not there.
    refused: bool,
    /// It is one on data, in a debug register and not in the table.
    data: Option<data::Data>,
}

/// What becomes of a continue when the target does not take a breakpoint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    /// The user continues: it stands, and says why.
    AllOrNone,
    /// We continue a stop that the user does not see: it goes on, and misses that one.
    WhatCanBe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepping {
    OffBreakpoint,
    ForUser,
}

struct Actor {
    link: Box<dyn Link>,
    session: HostSession,
    started: Instant,
    shared: Arc<Shared>,
    orders: UnboundedReceiver<Command>,
    /// Orders that came in the middle of an exchange.
    backlog: VecDeque<Command>,
    /// The session is to end; who wants to know of it.
    ending: Option<(Leave, Option<oneshot::Sender<()>>)>,
    hold: Option<Hold>,
    /// The stop that was taken from its command because that held it too long.
    taken_away: Option<u64>,
    /// It is to run again, as soon as what is under way has ended.
    letting_go: bool,
    /// The target stands and does not answer.
    silent: bool,
    events: Sender<Event>,
    version: Option<Version>,
    /// The stop that the target stands at, as it was reported.
    at: Option<StateChange>,
    /// A stop that was reported in the middle of an exchange.
    next_stop: Option<StateChange>,
    /// The user waits for a stop.
    break_wanted: bool,
    /// How many of the break-ins that were sent a stop has answered.
    break_ins_answered: u32,
    /// Where the last stop that we asked for was, and when it was continued.
    asked_at: Option<u64>,
    resumed: Option<Instant>,
    halts: u64,
    /// Ours.
    breakpoints: Vec<Breakpoint>,
    /// Memory to be written back before the target is left.
    restore: Vec<(u64, Bytes)>,
    /// The target runs one instruction for us: off a breakpoint, or because the user wants it.
    stepping: Option<Stepping>,
    heard: bool,
    reboot_announced: bool,
    /// The target's breakpoint table was emptied of what a dead debugger left.
    released: bool,
}

/// Runs until the session is left.
pub(crate) async fn run(
    link: Box<dyn Link>,
    session: HostSession,
    break_in: bool,
    shared: Arc<Shared>,
    orders: UnboundedReceiver<Command>,
    events: Sender<Event>,
) {
    let mut actor = Actor {
        link,
        session,
        started: Instant::now(),
        shared,
        orders,
        backlog: VecDeque::new(),
        ending: None,
        hold: None,
        taken_away: None,
        letting_go: false,
        silent: false,
        events,
        version: None,
        at: None,
        next_stop: None,
        break_wanted: break_in,
        break_ins_answered: 0,
        asked_at: None,
        resumed: None,
        halts: 0,
        breakpoints: Vec::new(),
        restore: Vec::new(),
        stepping: None,
        heard: false,
        reboot_announced: false,
        released: false,
    };
    actor.session.synchronise(Duration::ZERO, break_in);
    let (leave, done) = match actor.work().await {
        Ok(ending) => ending,
        Err(why) => {
            actor.lost(why);
            let Actor { orders, ending, .. } = actor;
            if let Some((_, Some(done))) = ending {
                let _ = done.send(());
            }
            return until_left(orders).await;
        }
    };
    let left = match leave {
        Leave::Running => actor.leave().await,
        Leave::Halted => Left::Halted,
    };
    tracing::info!(?left, "the session ends");
    actor.shared.set_left(left);
    actor.set_phase(Phase::Over("the session was ended".into()));
    // Whoever is told may open the same port again at once.
    let Actor { mut orders, link, .. } = actor;
    drop(link);
    if let Some(done) = done {
        // Whoever asked may be gone.
        let _ = done.send(());
    }
    // An order that is sent in this moment would stay in the channel unseen, and its sender would wait for ever.
    orders.close();
    until_left(orders).await;
}

/// After the end, or a loss, the handles are told so until the last one is gone or no more can be sent.
async fn until_left(mut orders: UnboundedReceiver<Command>) {
    while let Some(order) = orders.recv().await {
        if let Command::Leave { done, .. } = order {
            let _ = done.send(());
        }
    }
}

impl Actor {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tell(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    fn set_phase(&self, phase: Phase) {
        let mut status = self.shared.status();
        if !matches!(phase, Phase::Halted(_))
            && let Some(since) = status.frozen_since.take()
        {
            status.cost.frozen += since.elapsed();
        }
        status.phase = phase;
        drop(status);
        self.shared.changed.notify_all();
    }

    /// The link may end in the middle of an exchange, and then once more where the next thing is waited for.
    fn lost(&mut self, why: String) {
        if matches!(self.shared.status().phase, Phase::Over(_)) {
            return;
        }
        tracing::info!(why, "session lost");
        let stood = self.at.is_some() || self.next_stop.is_some();
        let planted = self.breakpoints.iter().any(|ours| ours.handle.is_some()) || !self.restore.is_empty();
        self.shared.set_left(Left::LinkLost { why: why.clone(), stood, changed: planted });
        self.tell(Event::Lost(why.clone()));
        self.set_phase(Phase::Over(why));
    }

    /// Serves the handles until the session is to end. An error is the end of the link.
    async fn work(&mut self) -> Result<(Leave, Option<oneshot::Sender<()>>), String> {
        loop {
            if let Some(ending) = self.ending.take() {
                return Ok(ending);
            }
            if let Some(change) = self.next_stop.take() {
                self.stopped(change).await?;
                continue;
            }
            if std::mem::take(&mut self.letting_go) {
                self.resume().await?;
                continue;
            }
            let step = match self.backlog.pop_front() {
                Some(order) => Step::Order(order),
                None => self.step(None).await,
            };
            match step {
                Step::Event(event) => self.on_event(event),
                Step::Order(Command::BreakIn) => self.break_in(),
                Step::Order(Command::Hold(limit)) => self.set_hold(limit),
                Step::Order(Command::Ask { halt, ask, answer }) => {
                    let result = self.answer(halt, ask).await;
                    // A command that was interrupted no longer waits.
                    let _ = answer.send(result);
                }
                Step::Order(Command::Leave { leave, done }) => return Ok((leave, Some(done))),
                Step::OrdersClosed => return Ok((Leave::Running, None)),
                Step::Lost(why) => return Err(why),
                Step::HeldTooLong => self.take_away(),
                Step::Deadline => {}
            }
        }
    }

    /// Sends what is to be sent, then waits for whatever happens first.
    async fn step(&mut self, deadline: Option<Deadline>) -> Step {
        let held = self.held_until();
        loop {
            while let Some(transmit) = self.session.poll_transmit() {
                self.shared.status().cost.bytes_sent += transmit.data.len() as u64;
                let frame = match transmit.peer {
                    Some(peer) => Frame::Datagram { peer, data: transmit.data },
                    None => Frame::Bytes(transmit.data),
                };
                match tokio::time::timeout(LONGEST_SEND, self.link.send(frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Step::Lost(format!("{}: {error}", self.link.describe())),
                    // Nobody reads its other end. It is lost, as on a cable that is not plugged in.
                    Err(_) => {
                        tracing::warn!("{} does not take what is sent", self.link.describe());
                        // The timers are due again already; an order has to be heard all the same.
                        match self.orders.try_recv() {
                            Ok(order) => return Step::Order(order),
                            Err(TryRecvError::Disconnected) => return Step::OrdersClosed,
                            Err(TryRecvError::Empty) => {}
                        }
                        if deadline.is_some_and(|deadline| deadline <= Deadline::now()) {
                            return Step::Deadline;
                        }
                    }
                }
            }
            if let Some(event) = self.session.poll_event() {
                return Step::Event(event);
            }
            let timer = self.session.poll_timeout().map(|at| Deadline::from_std(self.started + at));
            let is_ending = self.ending.is_some();
            tokio::select! {
                // Acknowledgements before everything else.
                biased;
                received = self.link.recv() => {
                    let now = self.started.elapsed();
                    match received {
                        Ok(Some(Frame::Bytes(bytes))) => self.session.handle_bytes(now, &bytes),
                        Ok(Some(Frame::Datagram { peer, data })) => self.session.handle_datagram(now, peer, &data),
                        Ok(Some(Frame::Reopened)) => {
                            tracing::info!("{} is open", self.link.describe());
                            self.reopened();
                        }
                        Ok(None) => return Step::Lost(format!("{} was closed by the other end", self.link.describe())),
                        Err(error) => return Step::Lost(format!("{}: {error}", self.link.describe())),
                    }
                    self.shared.heard();
                }
                () = until(timer) => self.session.handle_timeout(self.started.elapsed()),
                () = until(deadline) => return Step::Deadline,
                () = until(held) => return Step::HeldTooLong,
                order = self.orders.recv(), if !is_ending => {
                    return order.map_or(Step::OrdersClosed, Step::Order);
                }
            }
        }
    }

    /// A stream that was away is back. What was said meanwhile is lost, and who stands there now is not known.
    fn reopened(&mut self) {
        if self.at.is_some() {
            self.session.synchronise(self.now(), false);
        }
    }

    fn set_hold(&mut self, limit: Option<Duration>) {
        self.hold = limit.map(|limit| Hold { limit, since: Deadline::now() });
    }

    /// When the target is taken from the command that holds it.
    fn held_until(&self) -> Option<Deadline> {
        let hold = self.hold.as_ref().filter(|_| self.ending.is_none())?;
        let halted = self.at.is_some().then(|| self.shared.status().frozen_since).flatten()?;
        hold.since.max(Deadline::from_std(halted)).checked_add(hold.limit)
    }

    /// A command holds the target too long: from now on it hears that it was interrupted, and the target is let go.
    fn take_away(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        tracing::info!(limit = ?hold.limit, "the target is taken from its command");
        self.taken_away = Some(self.halts);
        self.letting_go = true;
        self.shared.taken_away.store(true, Ordering::Relaxed);
    }

    /// What does not need the target to be asked anything.
    fn on_event(&mut self, event: session::Event) {
        match event {
            session::Event::Connected { peer } => {
                self.heard = true;
                self.tell(Event::Connected { peer });
            }
            session::Event::PeerMoved { peer } => tracing::info!(%peer, "the target has a new address"),
            session::Event::TargetRestarted => self.restarted(),
            session::Event::StateChange(change) => {
                self.heard = true;
                self.shared.status().frozen_since.get_or_insert_with(Instant::now);
                self.next_stop = Some(change);
            }
            session::Event::Print { text, .. } => {
                self.tell(Event::Print(String::from_utf8_lossy(&text).into_owned()));
            }
            session::Event::Prompt { text, .. } => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let answer = prompt_answer(&text);
                self.session.answer_prompt(self.now(), answer.as_bytes());
                self.tell(Event::Prompt { text, answer: answer.into() });
            }
            session::Event::FileIo(request) => {
                let refusal = request.refuse();
                self.session.answer_file(self.now(), refusal);
            }
            session::Event::Diagnostic(diagnostic) => {
                tracing::debug!(?diagnostic);
                self.tell(Event::Diagnostic(diagnostic));
            }
            // Ends of exchanges that were given up.
            session::Event::Reply(_) | session::Event::Sent | session::Event::RequestFailed { .. } => {}
        }
    }

    fn restarted(&mut self) {
        *self.shared.kept_modules() = None;
        self.breakpoints.clear();
        self.restore.clear();
        self.stepping = None;
        self.version = None;
        self.at = None;
        self.next_stop = None;
        self.asked_at = None;
        self.released = false;
        self.silent = false;
        // One that was on its way may have reached the machine only after it started anew.
        if !self.break_wanted {
            self.break_ins_answered = self.session.break_ins();
        }
        self.shared.reply_data.store(usize::MAX, Ordering::Relaxed);
        *lock(&self.shared.searching) = Searching::Unknown;
        self.set_phase(Phase::Running);
        if !std::mem::take(&mut self.reboot_announced) {
            self.tell(Event::Restarted { announced: false });
        }
        self.session.synchronise(self.now(), self.break_wanted);
    }

    fn break_in(&mut self) {
        if self.at.is_some() {
            return;
        }
        self.break_wanted = true;
        if self.version.is_some() {
            self.session.break_in(self.now());
        } else {
            // Not connected yet: the target may as well stand still already and need a RESET.
            self.session.synchronise(self.now(), true);
        }
    }

    /// Decides what a stop means. An error is the end of the link.
    async fn stopped(&mut self, change: StateChange) -> Result<(), String> {
        let again = self.at.as_ref().is_some_and(|at| is_same_stop(at, &change));
        self.at = Some(change.clone());
        self.answers_again();
        if again {
            return Ok(());
        }
        if self.version.is_none() && !is_restart_notice(&change) {
            match self.ask_version().await {
                Ok(()) => {}
                Err(TargetError::Fault(fault)) => return self.ended_by(fault),
                Err(_) => {
                    // A stop that cannot be talked to: let the target report it again.
                    self.at = None;
                    self.session.synchronise(self.now(), self.break_wanted);
                    return Ok(());
                }
            }
        }
        let stepped = if is_step(&change) { self.stepping.take() } else { None };
        let lifted = match self.released {
            true => self.lift_breakpoints().await,
            false => self.release_leftovers().await,
        };
        if let Err(TargetError::Fault(fault)) = lifted {
            return self.ended_by(fault);
        }
        match &change.report {
            Report::Exception(exception) => {
                let is_break = exception.exception_code == STATUS_BREAKPOINT;
                let is_ours = self.is_at_breakpoint(change.program_counter);
                // Without a break-in on its way it is a stop of the target's own, whatever we were about to do.
                let asked = is_break && self.break_wanted && !is_ours && self.break_ins_unanswered() > 0;
                // The step off a breakpoint, which something else came before.
                if stepped == Some(Stepping::OffBreakpoint) {
                    return self.resume().await;
                }
                if is_break && !asked && self.is_late_break_in(change.program_counter) {
                    self.break_ins_answered += 1;
                    self.tell(Event::BreakInAbsorbed);
                    return self.resume().await;
                }
                self.break_wanted = false;
                if asked && self.break_ins_unanswered() > 0 {
                    self.break_ins_answered += 1;
                }
                self.asked_at = asked.then_some(change.program_counter);
                self.halt(&change, asked);
                Ok(())
            }
            Report::LoadSymbols(report) => {
                *self.shared.kept_modules() = None;
                if is_restart_notice(&change) {
                    self.reboot_announced = report.base_of_dll == REBOOTING;
                    self.version = None;
                    self.tell(Event::Restarted { announced: true });
                } else {
                    self.tell(Event::ModuleChange {
                        path: report.path(),
                        base: report.base_of_dll,
                        size: report.size_of_image,
                        unload: report.unload_symbols != 0,
                    });
                    if self.halt_at_load(&change, report) {
                        return Ok(());
                    }
                }
                self.resume_and_break_again().await
            }
            Report::CommandString(_) | Report::Unknown { .. } => self.resume_and_break_again().await,
        }
    }

    async fn ask_version(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        let Exchanged::Reply(reply) = self.exchange(processor, Request::GetVersion(get_version::Request {})).await?
        else {
            return Err(TargetError::Refused("the target acknowledged but did not answer".into()));
        };
        let Reply::GetVersion(version) = reply.body else {
            return Err(refused(reply.return_status, || "tell its version".into()));
        };
        accepted(reply.return_status, || "tell its version".into())?;
        self.version = Some(Version {
            major: version.major_version,
            minor: version.minor_version,
            protocol: version.protocol_version,
            flags: version.flags,
            machine: version.machine_type,
            kernel_base: version.kern_base,
            loaded_module_list: version.ps_loaded_module_list,
            debugger_data_list: version.debugger_data_list,
        });
        Ok(())
    }

    /// What a fault in the middle of the session's own work means: the end of the link, or nothing but that the work is
    /// not finished, when another stop came or the session is to end.
    fn ended_by(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Lost(why) => Err(why),
            Fault::Running | Fault::Cancelled => Ok(()),
        }
    }

    /// Continues a stop that is no business of the user's.
    async fn resume(&mut self) -> Result<(), String> {
        match self.go(false, Plant::WhatCanBe).await {
            Ok(()) => Ok(()),
            Err(TargetError::Fault(fault)) => self.ended_by(fault),
            Err(error) => {
                tracing::warn!(%error, "could not continue; asking the target to report again");
                self.at = None;
                self.session.synchronise(self.now(), self.break_wanted);
                Ok(())
            }
        }
    }

    async fn resume_and_break_again(&mut self) -> Result<(), String> {
        self.resume().await?;
        if self.break_wanted && self.at.is_none() {
            self.session.break_in(self.now());
        }
        Ok(())
    }

    fn break_ins_unanswered(&self) -> u32 {
        self.session.break_ins().saturating_sub(self.break_ins_answered)
    }

    fn is_late_break_in(&self, program_counter: u64) -> bool {
        self.asked_at == Some(program_counter)
            && self.break_ins_unanswered() > 0
            && self.resumed.is_some_and(|resumed| resumed.elapsed() < LATE_BREAK_IN)
    }

    fn halt(&mut self, change: &StateChange, asked: bool) {
        let Some(version) = self.version.clone() else { return };
        let Report::Exception(exception) = &change.report else { return };
        let instructions = instructions(change, version.machine);
        self.halts += 1;
        let stop = Stop {
            code: exception.exception_code,
            first_chance: exception.first_chance != 0,
            exception_address: exception.exception_address,
            parameters: exception.parameters().to_vec(),
            processor: change.processor,
            processors: change.processors(),
            thread: change.thread,
            program_counter: change.program_counter,
            instructions,
            asked,
            load: None,
            data: self.data_hit(change, version.machine),
        };
        self.set_phase(Phase::Halted(Arc::new(Halt { number: self.halts, version, stop })));
        self.tell(Event::Stopped);
    }

    async fn answer(&mut self, halt: u64, ask: Ask) -> Result<Answer, TargetError> {
        if self.taken_away == Some(halt) {
            return Err(Fault::Cancelled.into());
        }
        let current = matches!(&self.shared.status().phase, Phase::Halted(now) if now.number == halt);
        let Some(at) = self.at.as_ref().filter(|_| current) else { return Err(Fault::Running.into()) };
        let processor = at.processor;
        match ask {
            Ask::Read { address, length } => self.read(processor, address, length).await,
            Ask::ReadPhysical { address, length } => self.read_physical(processor, address, length).await,
            Ask::Write { address, data, physical } => self.write(processor, address, data, physical).await,
            Ask::ReadControl { processor, selector, length } => self.read_control(processor, selector, length).await,
            Ask::SetContext { processor, context } => self.set_context(processor, context).await.map(|()| Answer::Done),
            Ask::SetBreakpoint { address } => self.set_breakpoint(processor, address).await.map(|()| Answer::Done),
            Ask::RestoreOnLeave { address, data } => {
                self.restore.retain(|(known, _)| *known != address);
                if !data.is_empty() {
                    self.restore.push((address, data));
                }
                Ok(Answer::Done)
            }
            Ask::ClearBreakpoint { address } => self.clear_breakpoint(address).map(|()| Answer::Done),
            Ask::SetDataBreakpoint { address, access } => {
                self.set_data_breakpoint(address, access).await.map(|()| Answer::Done)
            }
            Ask::EndRun { crash } => self.end_run(crash).await,
            Ask::Search { address, length, pattern } => {
                let request = search_memory::Request {
                    search_address: address,
                    search_length: length,
                    pattern_length: pattern.len() as u32,
                    data: pattern.into(),
                };
                let reply = self.reply(processor, Request::SearchMemory(request)).await?;
                Ok(Answer::Search(match reply.body {
                    Reply::SearchMemory(found) if is_success(reply.return_status) => Search::Found(found.found_address),
                    Reply::SearchMemory(_) if reply.return_status == STATUS_NO_MORE_ENTRIES => Search::NotFound,
                    _ => Search::Unsupported,
                }))
            }
            Ask::Context { processor } => {
                let bytes = self.context(processor).await?;
                Ok(Answer::Bytes { bytes, ended: false })
            }
            Ask::Go { single_step } => self.go(single_step, Plant::AllOrNone).await.map(|()| Answer::Done),
        }
    }

    async fn read_physical(&mut self, processor: u16, address: u64, length: usize) -> Result<Answer, TargetError> {
        let request = read_physical_memory::Request {
            target_base_address: address,
            transfer_count: length.min(MOST_READ_DATA) as u32,
            caching: 0,
        };
        let reply = self.reply(processor, Request::ReadPhysicalMemory(request)).await?;
        let Reply::ReadPhysicalMemory(body) = reply.body else {
            return Err(refused(reply.return_status, || format!("read physical memory at {address:x}")));
        };
        let bytes = body.prefix();
        let bytes = bytes.slice(..bytes.len().min(length));
        self.shared.status().cost.bytes_read += bytes.len() as u64;
        Ok(Answer::Bytes { bytes, ended: !is_success(reply.return_status) })
    }

    /// One request; the answer says how many bytes were written.
    async fn write(
        &mut self,
        processor: u16,
        address: u64,
        data: Bytes,
        physical: bool,
    ) -> Result<Answer, TargetError> {
        let count = data.len() as u32;
        let request = match physical {
            false => Request::WriteVirtualMemory(write_virtual_memory::Request {
                target_base_address: address,
                transfer_count: count,
                data,
            }),
            true => Request::WritePhysicalMemory(write_physical_memory::Request {
                target_base_address: address,
                transfer_count: count,
                caching: 0,
                data,
            }),
        };
        let reply = self.reply(processor, request).await?;
        let written = match reply.body {
            Reply::WriteVirtualMemory(body) => body.actual_bytes_written,
            Reply::WritePhysicalMemory(body) => body.actual_bytes_written,
            _ => return Err(refused(reply.return_status, || format!("write at {address:x}"))),
        };
        Ok(Answer::Count(written.min(count)))
    }

    async fn read_control(&mut self, processor: u16, selector: u64, length: u32) -> Result<Answer, TargetError> {
        let request = read_control_space::Request { target_base_address: selector, transfer_count: length };
        let reply = self.reply(processor, Request::ReadControlSpace(request)).await?;
        match reply.body {
            Reply::ReadControlSpace(body) if is_success(reply.return_status) => {
                Ok(Answer::Bytes { bytes: body.prefix(), ended: false })
            }
            _ => Err(refused(reply.return_status, || {
                format!("give {length:#x} bytes of control space {selector:#x} of processor {processor}")
            })),
        }
    }

    /// Writes a CONTEXT record. A target takes one only after it gave one in the same stop.
    async fn set_context(&mut self, processor: u16, context: Bytes) -> Result<(), TargetError> {
        let machine = self.version.as_ref().map_or(0x8664, |version| version.machine);
        let context_flags = Machine::of(machine).and_then(|machine| machine.context_flags(&context)).unwrap_or(0);
        self.context(processor).await?;
        let request = set_context::Request { context_flags, data: context };
        let reply = self.reply(processor, Request::SetContext(request)).await?;
        accepted(reply.return_status, || format!("take registers of processor {processor}"))
    }

    /// Adds a breakpoint. It is planted once to see whether the target takes it.
    async fn set_breakpoint(&mut self, processor: u16, address: u64) -> Result<(), TargetError> {
        if self.breakpoints.iter().any(|known| known.address == address) {
            return Err(TargetError::Refused(format!("there is a breakpoint of ours at {address:016x} already")));
        }
        let handle = self.plant(processor, address).await?;
        self.lift(processor, handle).await?;
        self.breakpoints.push(Breakpoint { address, handle: None, refused: false, data: None });
        Ok(())
    }

    /// Whether one of ours, not one on data, is at an instruction.
    fn is_at_breakpoint(&self, program_counter: u64) -> bool {
        self.breakpoints.iter().any(|known| known.data.is_none() && known.address == program_counter)
    }

    fn clear_breakpoint(&mut self, address: u64) -> Result<(), TargetError> {
        let known = self.breakpoints.iter().position(|known| known.address == address);
        let known =
            known.ok_or_else(|| TargetError::Refused(format!("there is no breakpoint of ours at {address:016x}")))?;
        self.breakpoints.swap_remove(known);
        Ok(())
    }

    async fn plant(&mut self, processor: u16, address: u64) -> Result<u32, TargetError> {
        let request = write_break_point::Request { break_point_address: address };
        let reply = self.reply(processor, Request::WriteBreakPoint(request)).await?;
        match reply.body {
            Reply::WriteBreakPoint(body) if is_success(reply.return_status) => Ok(body.break_point_handle),
            _ => Err(refused(reply.return_status, || {
                format!("set a breakpoint at {address:016x}: its table is full, or it has one there")
            })),
        }
    }

    async fn lift(&mut self, processor: u16, break_point_handle: u32) -> Result<(), TargetError> {
        let request = restore_break_point::Request { break_point_handle };
        let reply = self.reply(processor, Request::RestoreBreakPoint(request)).await?;
        accepted(reply.return_status, || format!("take breakpoint {break_point_handle} of its table out"))
    }

    /// Takes ours out of the target. It has removed those around the program counter itself, and answers with an error
    /// for them.
    async fn lift_breakpoints(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        for index in 0..self.breakpoints.len() {
            let Some(handle) = self.breakpoints[index].handle.take().filter(|_| self.breakpoints[index].data.is_none())
            else {
                continue;
            };
            match self.lift(processor, handle).await {
                Ok(()) | Err(TargetError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Puts ours into the target, but for the one at `except`.
    async fn plant_breakpoints(
        &mut self,
        processor: u16,
        except: Option<u64>,
        plant: Plant,
    ) -> Result<(), TargetError> {
        for index in 0..self.breakpoints.len() {
            let Breakpoint { address, handle, refused, data } = self.breakpoints[index];
            // The continue itself turns it on.
            if data.is_some() {
                self.breakpoints[index].handle = Some(0);
            }
            if data.is_some() || handle.is_some() || except == Some(address) {
                continue;
            }
            match self.plant(processor, address).await {
                Ok(handle) => {
                    self.breakpoints[index].handle = Some(handle);
                    self.breakpoints[index].refused = false;
                }
                Err(TargetError::Refused(why)) if plant == Plant::WhatCanBe => {
                    self.breakpoints[index].refused = true;
                    if !refused {
                        self.tell(Event::BreakpointMissed { address, why });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs the one instruction under a breakpoint of ours; continuing there would stop at it again. False: the target
    /// stopped for another reason meanwhile, or the step did not end.
    async fn step_off_breakpoint(&mut self, at: &StateChange, plant: Plant) -> Result<bool, TargetError> {
        self.plant_breakpoints(at.processor, Some(at.program_counter), plant).await?;
        self.stepping = Some(Stepping::OffBreakpoint);
        self.continue_with(at, DBG_EXCEPTION_HANDLED, true).await?;
        self.at = None;
        let deadline = Deadline::now() + SINGLE_STEP;
        let stop = loop {
            if let Some(stop) = self.next_stop.take() {
                break stop;
            }
            match self.step(Some(deadline)).await {
                Step::Event(event) => self.on_event(event),
                Step::Lost(why) => {
                    self.lost(why.clone());
                    return Err(Fault::Lost(why).into());
                }
                Step::Deadline => {
                    tracing::warn!("a single step did not end; the breakpoint is out");
                    return Ok(false);
                }
                Step::Order(order) => self.put_off(order),
                Step::OrdersClosed => self.ending = Some((Leave::Running, None)),
                Step::HeldTooLong => {}
            }
        };
        if !is_step(&stop) {
            // Reported as any other stop.
            self.next_stop = Some(stop);
            return Ok(false);
        }
        self.stepping = None;
        self.at = Some(stop);
        self.lift_breakpoints().await?;
        Ok(true)
    }

    async fn read(&mut self, processor: u16, address: u64, length: usize) -> Result<Answer, TargetError> {
        let mut length = length.min(MOST_READ_DATA);
        loop {
            let request = read_virtual_memory::Request { target_base_address: address, transfer_count: length as u32 };
            // Whether a large reply passes is not known before one did.
            let untried = length > SAFE_REPLY_DATA && self.shared.reply_data.load(Ordering::Relaxed) == usize::MAX;
            let limit = untried.then_some(UNTRIED_REPLY);
            match self.exchange_within(processor, Request::ReadVirtualMemory(request), limit).await {
                Ok(Exchanged::Reply(ManipulateReply {
                    return_status, body: Reply::ReadVirtualMemory(reply), ..
                })) => {
                    let bytes = reply.prefix();
                    let bytes = bytes.slice(..bytes.len().min(length));
                    self.shared.status().cost.bytes_read += bytes.len() as u64;
                    let ended = !is_success(return_status);
                    if !ended && bytes.len() < length {
                        self.learn_reply_data(address, bytes.len());
                    } else if bytes.len() > SAFE_REPLY_DATA {
                        self.shared.reply_data.fetch_min(MOST_READ_DATA, Ordering::Relaxed);
                    }
                    return Ok(Answer::Bytes { bytes, ended });
                }
                Ok(Exchanged::Reply(reply)) => {
                    return Err(TargetError::Refused(format!(
                        "the target answered the read of {address:016x} with status {:08x}",
                        reply.return_status
                    )));
                }
                Ok(Exchanged::Sent) => return Err(Fault::Lost("a read was not answered".into()).into()),
                // Small replies that come and large ones that do not: a path that drops large datagrams.
                Err(TargetError::Silent(RequestFailure::NotAnswered)) if length > SAFE_REPLY_DATA => {
                    tracing::warn!(length, "no reply; asking for less");
                    self.shared.reply_data.store(SAFE_REPLY_DATA, Ordering::Relaxed);
                    length = SAFE_REPLY_DATA;
                }
                Err(error) => return Err(self.without_answer(error)),
            }
        }
    }

    /// A good reply that came back short shows how much this target's replies carry, unless it ends at a page: then
    /// the target may have stopped for another reason.
    fn learn_reply_data(&self, address: u64, got: usize) {
        if got >= 256 && !address.wrapping_add(got as u64).is_multiple_of(nt_memory::PAGE_SIZE) {
            self.shared.reply_data.fetch_min(got, Ordering::Relaxed);
        }
    }

    async fn reply(&mut self, processor: u16, request: Request) -> Result<ManipulateReply, TargetError> {
        let exchanged = self.exchange(processor, request).await;
        match exchanged.map_err(|error| self.without_answer(error))? {
            Exchanged::Reply(reply) => Ok(reply),
            Exchanged::Sent => Err(TargetError::Refused("the target acknowledged but did not answer".into())),
        }
    }

    /// Lets the halted target run, or run one instruction.
    async fn go(&mut self, single_step: bool, plant: Plant) -> Result<(), TargetError> {
        let Some(mut at) = self.at.clone() else { return Ok(()) };
        let machine = self.version.as_ref().map_or(0x8664, |version| version.machine);
        let status = match &at.report {
            Report::Exception(exception) if DEBUGGER_STOPS.contains(&exception.exception_code) => DBG_EXCEPTION_HANDLED,
            Report::Exception(_) => DBG_EXCEPTION_NOT_HANDLED,
            _ => DBG_CONTINUE,
        };
        let is_break = matches!(&at.report, Report::Exception(exception)
            if exception.exception_code == STATUS_BREAKPOINT);
        let went_on = is_break && self.step_over_break(&at, machine).await?;
        let on_ours = !went_on && self.is_at_breakpoint(at.program_counter);
        if on_ours && !single_step {
            if !self.step_off_breakpoint(&at, plant).await? {
                self.resumed = Some(Instant::now());
                self.set_phase(Phase::Running);
                return Ok(());
            }
            if let Some(stepped) = self.at.clone() {
                at = stepped;
            }
        }
        let except = (on_ours && single_step).then_some(at.program_counter);
        self.plant_breakpoints(at.processor, except, plant).await?;
        if single_step {
            self.stepping = Some(Stepping::ForUser);
        }
        self.continue_with(&at, status, single_step).await?;
        self.at = None;
        self.resumed = Some(Instant::now());
        self.set_phase(Phase::Running);
        Ok(())
    }

    /// The request that lets a stop go on: all of the target, or one instruction of the processor that stopped.
    async fn continue_with(&mut self, at: &StateChange, status: u32, single_step: bool) -> Result<(), TargetError> {
        let machine = self.version.as_ref().map_or(0x8664, |version| version.machine);
        let trace_flag = u32::from(single_step);
        // Continue says the same to every machine; Continue2 is laid out for each.
        let request = if is_restart_notice(at) || self.version.is_none() {
            Request::Continue(continue_api::Request { continue_status: status })
        } else {
            Request::Continue2(match machine {
                // SymStart 1 leaves the target's symbol range as it is; Dr7 is written into every processor.
                0x014c => continue2::Request::new(
                    status,
                    &continue2::X86 {
                        trace_flag,
                        dr7: self.dr7(at.x86().dr7.into()) as u32,
                        current_symbol_start: 1,
                        ..Default::default()
                    },
                ),
                0xaa64 => continue2::Request::new(
                    status,
                    &continue2::Arm64 { continue_flag: 1, trace_flag, current_symbol_start: 1, ..Default::default() },
                ),
                _ => continue2::Request::new(
                    status,
                    &continue2::X64 {
                        trace_flag,
                        dr7: self.dr7(at.x64().dr7),
                        current_symbol_start: 1,
                        ..Default::default()
                    },
                ),
            })
        };
        let exchanged = self.exchange(at.processor, request).await;
        exchanged.map_err(|error| self.without_answer(error))?;
        Ok(())
    }

    /// Moves the program counter behind a hard-coded break instruction; continuing on it would break again at once.
    /// False: there is none.
    async fn step_over_break(&mut self, at: &StateChange, machine: u16) -> Result<bool, TargetError> {
        let Some(machine_facts) = Machine::of(machine) else { return Ok(false) };
        let mut instructions = instructions(at, machine);
        if instructions.len() < machine_facts.break_length()
            && let Answer::Bytes { bytes, .. } =
                self.read(at.processor, at.program_counter, machine_facts.break_length()).await?
        {
            instructions = bytes.to_vec();
        }
        let Some(behind) = machine_facts.behind_break(at.program_counter, &instructions) else { return Ok(false) };
        let context = self.context(at.processor).await?;
        let mut context = context.to_vec();
        machine_facts.fill_up(&mut context);
        let Some(context_flags) = machine_facts.set_program_counter(&mut context, behind) else {
            return Err(TargetError::Refused(format!("the target's CONTEXT has only {} bytes", context.len())));
        };
        let request = Request::SetContext(set_context::Request { context_flags, data: context.into() });
        let reply = self.reply(at.processor, request).await?;
        if !is_success(reply.return_status) {
            return Err(TargetError::Refused(format!(
                "the target did not take a program counter behind its break instruction (status {:08x})",
                reply.return_status
            )));
        }
        Ok(true)
    }

    async fn context(&mut self, processor: u16) -> Result<Bytes, TargetError> {
        let request = Request::GetContext(get_context::Request { context_flags: 0 });
        let reply = self.reply(processor, request).await?;
        match reply.body {
            Reply::GetContext(context) if is_success(reply.return_status) => Ok(context.data),
            _ => Err(TargetError::Refused(format!(
                "the target did not give the registers of processor {processor} (status {:08x})",
                reply.return_status
            ))),
        }
    }

    /// One request to its end. Prints, prompts and file requests that come in between are answered.
    async fn exchange(&mut self, processor: u16, request: Request) -> Result<Exchanged, TargetError> {
        self.exchange_within(processor, request, None).await
    }

    /// The same, at most so long.
    async fn exchange_within(
        &mut self,
        processor: u16,
        request: Request,
        limit: Option<Duration>,
    ) -> Result<Exchanged, TargetError> {
        let span = tracing::debug_span!("request", api = api_name(request.api()), processor);
        self.exchange_in_span(processor, request, limit).instrument(span).await
    }

    async fn exchange_in_span(
        &mut self,
        processor: u16,
        request: Request,
        limit: Option<Duration>,
    ) -> Result<Exchanged, TargetError> {
        // One that did not answer the last request is asked only whether it does again.
        let limit = if self.silent { Some(limit.unwrap_or(SILENT_LIMIT).min(SILENT_LIMIT)) } else { limit };
        for _ in 0..MOST_ATTEMPTS {
            if self.ending.as_ref().is_some_and(|(_, done)| done.is_some()) {
                return Err(Fault::Cancelled.into());
            }
            let asked = match limit {
                Some(limit) => self.session.request_within(self.now(), processor, request.clone(), limit),
                None => self.session.request(self.now(), processor, request.clone()),
            };
            asked.map_err(|busy| TargetError::Refused(busy.to_string()))?;
            self.shared.status().cost.requests += 1;
            let failure = loop {
                match self.step(None).await {
                    Step::Event(session::Event::Reply(reply)) => {
                        self.answers_again();
                        return Ok(Exchanged::Reply(reply));
                    }
                    Step::Event(session::Event::Sent) => return Ok(Exchanged::Sent),
                    Step::Event(session::Event::RequestFailed { reason }) => break reason,
                    Step::Event(event) => self.on_event(event),
                    Step::Lost(why) => {
                        self.lost(why.clone());
                        return Err(Fault::Lost(why).into());
                    }
                    // A continue is not called back.
                    Step::HeldTooLong if !request.is_answered() => self.hold = None,
                    Step::HeldTooLong => {
                        self.take_away();
                        self.session.cancel(self.now());
                    }
                    Step::Order(order @ Command::Leave { .. }) if request.is_answered() => {
                        self.put_off(order);
                        self.session.cancel(self.now());
                    }
                    Step::Order(order) => self.put_off(order),
                    Step::OrdersClosed => self.ending = Some((Leave::Running, None)),
                    Step::Deadline => {}
                }
            };
            match failure {
                // The stop we stand at, reported again: the request was lost.
                RequestFailure::StoppedAnew if self.still_stands() => self.next_stop = None,
                // Another stop: only a continue can have led to it, and then its acknowledgement was lost.
                RequestFailure::StoppedAnew if !request.is_answered() => return Ok(Exchanged::Sent),
                RequestFailure::StoppedAnew => return Err(Fault::Running.into()),
                RequestFailure::TooLong => return Err(TargetError::Refused(failure.to_string())),
                RequestFailure::TargetRestarted => return Err(Fault::Running.into()),
                RequestFailure::Cancelled => return Err(Fault::Cancelled.into()),
                RequestFailure::NotAcknowledged | RequestFailure::NotAnswered => {
                    tracing::warn!(%failure);
                    return Err(TargetError::Silent(failure));
                }
            }
        }
        Err(TargetError::Refused("the target reports stop after stop instead of answering".into()))
    }

    /// An order that comes in the middle of an exchange waits for its end.
    fn put_off(&mut self, order: Command) {
        match order {
            Command::Leave { leave, done } => self.ending = Some((leave, Some(done))),
            order => self.backlog.push_back(order),
        }
    }

    fn answers_again(&mut self) {
        if std::mem::take(&mut self.silent) {
            self.session.stand_by();
            self.tell(Event::AnswersAgain);
        }
    }

    /// A target that stands and does not answer is asked for its state change until it does.
    fn without_answer(&mut self, error: TargetError) -> TargetError {
        let TargetError::Silent(_) = error else { return error };
        if self.at.is_some() && self.ending.is_none() {
            if !std::mem::replace(&mut self.silent, true) {
                self.tell(Event::Silent);
            }
            self.session.synchronise(self.now(), false);
        }
        error
    }

    fn still_stands(&self) -> bool {
        match (&self.at, &self.next_stop) {
            (Some(at), Some(next)) => is_same_stop(at, next),
            (_, next) => next.is_none(),
        }
    }

    /// What a session that died left in the table, before anything of ours is in it.
    async fn release_leftovers(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        let mut last = LEFTOVER_SLOTS;
        let mut handle = 1;
        while handle <= last {
            match self.lift(processor, handle).await {
                Ok(()) => last = BREAKPOINT_HANDLES,
                // An empty slot.
                Err(TargetError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
            handle += 1;
        }
        self.released = true;
        Ok(())
    }
}

/// The largest KD packet less the header of a reply.
pub(crate) const MOST_READ_DATA: usize = 4000 - 56;
/// How long a target that runs is silent before it is called gone.
pub(crate) const GONE: Duration = Duration::from_secs(5);
/// How long the first large reply may take.
const UNTRIED_REPLY: Duration = Duration::from_secs(3);
/// How long a request to a target that did not answer the last one may take.
const SILENT_LIMIT: Duration = Duration::from_secs(1);
/// How often a request is asked anew when stops come instead of its answer.
const MOST_ATTEMPTS: u32 = 4;

enum Exchanged {
    Reply(ManipulateReply),
    Sent,
}

async fn until(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn refused(status: u32, what: impl FnOnce() -> String) -> TargetError {
    TargetError::Refused(format!("the target did not {} (status {status:08x})", what()))
}

fn accepted(status: u32, what: impl FnOnce() -> String) -> Result<(), TargetError> {
    if is_success(status) { Ok(()) } else { Err(refused(status, what)) }
}

/// NTSTATUS: the top bit is a failure or a warning.
fn is_success(status: u32) -> bool {
    status & 0x8000_0000 == 0
}

/// The bytes at the program counter that came with a stop; where they lie depends on the machine.
fn instructions(change: &StateChange, machine: u16) -> Vec<u8> {
    match machine {
        0x014c => change.x86().instructions().to_vec(),
        0xaa64 => change.arm64().instructions().to_vec(),
        _ => change.x64().instructions().to_vec(),
    }
}

/// Whether an instruction was run for us.
fn is_step(change: &StateChange) -> bool {
    matches!(&change.report, Report::Exception(exception)
        if DEBUGGER_STOPS.contains(&exception.exception_code) && exception.exception_code != STATUS_BREAKPOINT)
}

fn is_restart_notice(change: &StateChange) -> bool {
    matches!(&change.report, Report::LoadSymbols(report)
        if report.unload_symbols != 0 && [REBOOTING, HIBERNATING].contains(&report.base_of_dll))
}

fn is_same_stop(a: &StateChange, b: &StateChange) -> bool {
    (a.new_state, a.processor, a.program_counter, a.thread) == (b.new_state, b.processor, b.program_counter, b.thread)
        && a.report == b.report
}

/// What to answer to a question of the target, which stands still until it is answered: the choice that lets it run.
/// Assertions ask `Break repeatedly, break Once, Ignore, terminate Process or terminate Thread (boipt)?`.
fn prompt_answer(text: &str) -> &'static str {
    let choices = text.rsplit_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(choices, _)| choices);
    if choices.contains('i') { "i" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assertions_are_ignored_and_other_prompts_get_an_empty_line() {
        let assertion = "Break repeatedly, break Once, Ignore, terminate Process or terminate Thread (boipt)? ";
        assert_eq!(prompt_answer(assertion), "i");
        assert_eq!(prompt_answer("Name? "), "");
        assert_eq!(prompt_answer("(b) Break, (r) Run, (s) Stop"), "");
        assert_eq!(prompt_answer("(("), "");
    }
}
