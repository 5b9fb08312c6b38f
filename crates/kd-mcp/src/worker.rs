//! The thread that owns the target: questions in, answers out, and the lease.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kd_shell::{CostRecord, Output, Record};
use kd_target::{Interrupt, Leave};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::answer::{Answer, Outcome, State, Told};
use crate::tools::Ask;
use crate::{Connect, Session};

/// Questions that may wait. A client asks one after the other, or a few at once.
const QUEUE: usize = 32;
/// How often the thread looks whether the target stopped by itself.
const LOOK: Duration = Duration::from_millis(250);
/// How often somebody who waits for an interruption repeats it: a line that is just about to begin forgets it.
const AGAIN: Duration = Duration::from_millis(100);

/// A question on its way.
struct Job {
    ask: Ask,
    /// Nobody waits for it any more.
    dropped: Arc<AtomicBool>,
    /// Told when its turn has come and the target stands.
    begun: oneshot::Sender<()>,
    answer: oneshot::Sender<Answer>,
}

/// What both sides know.
struct Shared {
    /// The shell's interrupt, once there is a shell.
    interrupt: Mutex<Option<Interrupt>>,
    /// No question is answered any more; the target is let go.
    ending: AtomicBool,
}

impl Shared {
    fn interrupt(&self) {
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt.raise();
        }
    }
}

pub(crate) struct Worker {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    lease: Duration,
}

impl Worker {
    pub(crate) fn start(lease: Duration, connect: Connect) -> io::Result<Worker> {
        let (jobs, queue) = sync_channel(QUEUE);
        let shared = Arc::new(Shared { interrupt: Mutex::new(None), ending: AtomicBool::new(false) });
        let owner = shared.clone();
        let thread = std::thread::Builder::new().name("target".into()).spawn(move || {
            let session = connect();
            let mut owner = Owner { session, lease, runs_at: None, undone: false, shared: owner };
            owner.work(&queue);
        })?;
        Ok(Worker { jobs, shared, thread, lease })
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller { jobs: self.jobs.clone(), shared: self.shared.clone(), lease: self.lease }
    }

    /// Ends what is being answered; it answers with what it has.
    pub(crate) fn interrupt(&self) {
        self.shared.interrupt();
    }

    /// Returns when the target runs, or cannot be reached.
    pub(crate) async fn end(self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        drop(self.jobs);
        while !self.thread.is_finished() {
            self.shared.interrupt();
            tokio::time::sleep(AGAIN).await;
        }
        // A panic there let the target go as well.
        let _ = self.thread.join();
    }
}

/// Asks the worker.
#[derive(Clone)]
pub(crate) struct Caller {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    lease: Duration,
}

impl Caller {
    /// The answer, or why there is none. `cancelled` ends the question.
    pub(crate) async fn ask(&self, ask: Ask, cancelled: impl Future<Output = ()>) -> Result<Answer, String> {
        let limited = matches!(ask, Ask::Line(_));
        let (begun, has_begun) = oneshot::channel();
        let (answer, mut is_answered) = oneshot::channel();
        let dropped = Arc::new(AtomicBool::new(false));
        // Set when this future is dropped, too.
        let _dropped = SetOnDrop(dropped.clone());
        match self.jobs.try_send(Job { ask, dropped, begun, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(format!("{QUEUE} questions wait already; ask again later")),
            Err(TrySendError::Disconnected(_)) => return Err(ENDED.into()),
        }
        tokio::pin!(cancelled);
        let mut until = std::pin::pin!(async {
            // A worker that ended answers below.
            if has_begun.await.is_ok() && limited {
                tokio::time::sleep(self.lease).await;
            } else {
                std::future::pending::<()>().await;
            }
        });
        tokio::select! {
            answer = &mut is_answered => return answer.map_err(|_| ENDED.to_owned()),
            () = &mut until => {}
            () = &mut cancelled => {}
        }
        loop {
            self.shared.interrupt();
            match tokio::time::timeout(AGAIN, &mut is_answered).await {
                Ok(answer) => return answer.map_err(|_| ENDED.to_owned()),
                Err(_) => continue,
            }
        }
    }
}

const ENDED: &str = "the session has ended";

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The thread's own.
struct Owner {
    session: Result<Session, String>,
    lease: Duration,
    /// When the target that stands still is let go.
    runs_at: Option<Instant>,
    /// What a session that died left changed was looked for.
    undone: bool,
    shared: Arc<Shared>,
}

/// What a shell writes, as JSON.
#[derive(Default)]
struct Answers(String);

impl Output for Answers {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// In JSON errors are in the object.
    fn error(&mut self, line: &str) {
        tracing::info!("{}", line.trim_end());
    }
}

impl Owner {
    fn work(&mut self, queue: &Receiver<Job>) {
        if let Ok(session) = &self.session {
            *self.shared.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.interrupt.clone());
        }
        loop {
            if self.shared.ending.load(Ordering::SeqCst) {
                break;
            }
            match queue.recv_timeout(self.wait()) {
                Ok(job) if job.dropped.load(Ordering::SeqCst) => {}
                Ok(job) => {
                    // Whoever does not wait any more does not hear of it.
                    let _ = job.answer.send(self.answer(&job.ask, job.begun));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.keep_lease();
        }
        if let Ok(session) = &mut self.session
            && let Some(target) = session.shell.take_target()
        {
            target.leave(Leave::Running);
        }
    }

    fn wait(&self) -> Duration {
        let left = self.runs_at.map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(LOOK, |left| left.min(LOOK))
    }

    /// Lets a target go that stood still long enough, for whatever reason it did.
    fn keep_lease(&mut self) {
        let Ok(session) = &mut self.session else { return };
        session.shell.refresh();
        if session.shell.halted().is_none() {
            self.runs_at = None;
            return;
        }
        let now = Instant::now();
        // It stopped by itself: its lease begins when that is seen.
        let at = *self.runs_at.get_or_insert(now + self.lease);
        if now >= at {
            self.let_run();
        }
    }

    fn let_run(&mut self) {
        let Ok(session) = &mut self.session else { return };
        if session.shell.halted().is_some() {
            session.shell.execute("g", &mut Answers::default());
        }
        session.shell.refresh();
        if session.shell.halted().is_none() {
            self.runs_at = None;
        } else {
            // It could not be let go just now, or stopped again at once.
            self.runs_at = Some(Instant::now() + LOOK);
        }
    }

    fn answer(&mut self, ask: &Ask, begun: oneshot::Sender<()>) -> Answer {
        let outcome = match ask {
            Ask::Status => Outcome::Done { ok: true },
            Ask::Run => {
                self.let_run();
                Outcome::Done { ok: true }
            }
            Ask::Line(line) | Ask::Watch(line) => Outcome::Record(self.line(line, begun)),
        };
        self.keep_lease();
        Answer { outcome, target: self.target() }
    }

    /// Stops the target if need be, and runs a line on it.
    fn line(&mut self, line: &str, begun: oneshot::Sender<()>) -> Value {
        let session = match &mut self.session {
            Ok(session) => session,
            Err(why) => return failed(line, why),
        };
        if session.restarted.swap(false, Ordering::SeqCst) {
            session.shell.forget_target();
        }
        session.shell.refresh();
        if session.shell.halted().is_none() {
            session.shell.execute(".break", &mut Answers::default());
        }
        // From here on it stands for the question.
        self.runs_at = Some(Instant::now() + self.lease);
        let _ = begun.send(());
        if session.shell.halted().is_none() {
            let mut why = vec![session.shell.lost().unwrap_or_else(|| "the target does not stop".into())];
            why.extend((session.explain)());
            return failed(line, &why.join("\n"));
        }
        if !std::mem::replace(&mut self.undone, true) {
            session.shell.undo_leftovers().iter().for_each(|line| tracing::warn!("{line}"));
        }
        let mut answers = Answers::default();
        session.shell.execute(line, &mut answers);
        // One object for each command; what breakpoints' commands and loops say comes before the line's own.
        match answers.0.lines().last().map(serde_json::from_str::<Value>) {
            Some(Ok(answer @ Value::Object(_))) => answer,
            _ => failed(line, "the line has no command"),
        }
    }

    /// What each answer says of the target.
    fn target(&mut self) -> Told {
        let session = match &mut self.session {
            Ok(session) => session,
            Err(why) => {
                return Told { state: State::NotConnected, runs_in_ms: None, why: Some(why.clone()), session: None };
            }
        };
        let why = session.shell.lost();
        let state = match () {
            () if why.is_some() => State::Lost,
            () if session.shell.halted().is_some() => State::Halted,
            () => State::Running,
        };
        let left = self.runs_at.map_or(self.lease, |at| at.saturating_duration_since(Instant::now()));
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let runs_in_ms = (state == State::Halted).then_some(left);
        Told { state, runs_in_ms, why, session: Some(CostRecord::from(session.shell.cost())) }
    }
}

/// As `--format json` says of a command that failed.
fn failed(line: &str, why: &str) -> Value {
    serde_json::to_value(Record::failed(line, why.to_owned())).unwrap_or_default()
}
