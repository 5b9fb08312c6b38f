//! The session's task: it owns the link, the protocol's state machine and the clock.

mod breakpoints;
mod control;
mod data;
mod exchange;
mod going;
mod leaving;
mod memory;
mod stops;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kd_link::{Frame, Link};
use kd_wire::message::StateChange;
use kd_wire::message::manipulate::{ManipulateReply, Reply, Request};
use kd_wire::message::state_change::Report;
use kd_wire::session::{self, HostSession, RequestFailure};
use nt_memory::Fault;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::oneshot;
use tokio::time::Instant as Deadline;

use self::breakpoints::{Breakpoint, Plant};
use self::exchange::{Exchanged, accepted, answered, is_success, refused};
use self::going::{DBG_CONTINUE, DBG_EXCEPTION_HANDLED, Stepping};
use self::stops::{DEBUGGER_STOPS, instructions, is_restart_notice, is_step};
use crate::machine::Machine;
use crate::order::{Answer, Ask, Command};
use crate::pieces::Pieces;
use crate::status::{Halt, Phase, Searching, Shared, lock};
use crate::{Event, Leave, Left, Stop, TargetError, Version};

pub(crate) use self::memory::MOST_READ_DATA;

const STATUS_BREAKPOINT: u32 = 0x8000_0003;

/// How long the line may take to accept one packet; the longest is some 1,300 bytes.
const LONGEST_SEND: Duration = Duration::from_secs(5);

/// How long a target that runs is silent before it is called gone.
pub(crate) const GONE: Duration = Duration::from_secs(5);

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
    /// Those that the user set; what the target's table holds now is in each.
    breakpoints: Vec<Breakpoint>,
    /// Memory to be written back before the target is left.
    restore: Vec<(u64, Bytes)>,
    /// The target runs one instruction for us: off a breakpoint, or because the user wants it.
    stepping: Option<Stepping>,
    heard: bool,
    reboot_announced: bool,
    /// The target's breakpoint table was emptied of what a dead debugger left.
    released: bool,
    /// The answer that came last may be that to a repetition.
    asked_twice: bool,
    /// How much comes whole in one reply.
    pieces: Pieces,
    /// Some slot of the table may be taken by a breakpoint of ours whose handle did not come through.
    unknown_slots: bool,
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
        asked_twice: false,
        pieces: Pieces::new(MOST_READ_DATA),
        unknown_slots: false,
    };
    actor.session.synchronise(Duration::ZERO, break_in);
    let (leave, done) = match caught(actor.work()).await {
        Ok(Ok(ending)) => ending,
        Err(_) => {
            tracing::error!("the session's task panicked");
            actor.forget_exchange();
            (Leave::Running, None)
        }
        Ok(Err(why)) => {
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

/// The future's end, or its panic: a fault of ours in the session's own work is no reason to leave a target frozen.
async fn caught<T>(work: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| match std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
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

    /// As the target told; one that was not asked yet counts as what nearly all are.
    fn machine(&self) -> Machine {
        self.version.as_ref().map_or(Machine::X64, |version| version.machine)
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
            Ask::Search { address, length, pattern } => self.search(processor, address, length, pattern).await,
            Ask::Context { processor } => {
                let bytes = self.context(processor).await?;
                Ok(Answer::Bytes { bytes, ended: false })
            }
            Ask::Go { single_step } => self.go(single_step, Plant::AllOrNone).await.map(|()| Answer::Done),
        }
    }
}

async fn until(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
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
