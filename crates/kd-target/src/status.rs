//! What the session's task tells the threads that hold the target's handles.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nt_memory::Fault;

use crate::gate::Gate;
use crate::{Cost, Left, LoadStops, Modules, Pace, Stop, Version};

#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Runs, or is not connected yet.
    Running,
    Halted(Arc<Halt>),
    /// The session is over; why.
    Over(String),
}

/// One stand-still of the target.
#[derive(Debug)]
pub(crate) struct Halt {
    /// Different for every stop of the session, so that a handle of an earlier stop is recognised.
    pub(crate) number: u64,
    pub(crate) version: Version,
    pub(crate) stop: Stop,
}

#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    pub(crate) cost: Cost,
    /// Since when the target stands still.
    pub(crate) frozen_since: Option<Instant>,
    /// When anything was last heard of the target.
    pub(crate) heard: Option<Instant>,
    /// How the session ended.
    pub(crate) left: Option<Left>,
}

impl Status {
    /// How the session ended. A task that ended without a word has let nothing go.
    pub(crate) fn left(&self) -> Left {
        let unknown = || Left::LinkLost { why: "the session's task ended".into(), stood: true, changed: true };
        self.left.clone().unwrap_or_else(unknown)
    }

    pub(crate) fn cost(&self) -> Cost {
        let now = self.frozen_since.map_or(Duration::ZERO, |since| since.elapsed());
        Cost { frozen: self.cost.frozen + now, ..self.cost }
    }
}

/// Stops a wait or a command; Ctrl+C raises it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<InterruptState>);

#[derive(Debug, Default)]
struct InterruptState {
    raised: AtomicBool,
    wake: Mutex<Vec<std::sync::Weak<Shared>>>,
}

impl Interrupt {
    /// Ends the wait or the read that is under way, or the next one.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::SeqCst);
        let mut watchers = lock(&self.0.wake);
        watchers.retain(|shared| {
            let Some(shared) = shared.upgrade() else { return false };
            // Taking the lock orders this after a waiter's check, so that it cannot miss the notification.
            drop(lock(&shared.status));
            shared.changed.notify_all();
            true
        });
    }

    /// Whether it was raised; lowers it.
    pub fn take(&self) -> bool {
        self.0.raised.swap(false, Ordering::SeqCst)
    }

    /// Whether it was raised and nobody has taken notice yet.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    pub(crate) fn watch(&self, shared: &Arc<Shared>) {
        lock(&self.0.wake).push(Arc::downgrade(shared));
    }
}

#[derive(Default)]
pub(crate) struct GateSlot(pub(crate) Option<Arc<dyn Gate>>);

impl std::fmt::Debug for GateSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "a gate" } else { "no gate" })
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) status: Mutex<Status>,
    pub(crate) changed: Condvar,
    /// How many bytes of memory one reply of this target carries; lowered when a good reply comes back short.
    pub(crate) reply_data: AtomicUsize,
    /// Whether the target's stub searches memory: it is not asked again and again for what it does not have.
    pub(crate) searching: Mutex<Searching>,
    pub(crate) interrupt: Interrupt,
    /// Which drivers stop the target when they come or go; nobody's when there is none.
    pub(crate) load_stops: Mutex<Option<LoadStops>>,
    /// Who looks at large reads.
    pub(crate) gate: Mutex<GateSlot>,
    /// What reads took so far.
    pub(crate) pace: Mutex<Pace>,
    /// The target was taken from a command that held it too long.
    pub(crate) taken_away: AtomicBool,
    /// The module list as it was read at an earlier stop; forgotten when the target says that it changes.
    pub(crate) modules: Mutex<Option<KeptModules>>,
}

/// What is known of the stub's SearchMemory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Searching {
    #[default]
    Unknown,
    Works,
    /// ReactOS's stub refuses it, and prints that into the target's output each time.
    Refused,
}

/// A module list that was read whole.
#[derive(Debug)]
pub(crate) struct KeptModules {
    /// Where its head led, to the first and to the last entry.
    pub(crate) ends: Vec<u8>,
    pub(crate) modules: Modules,
}

impl Shared {
    pub(crate) fn new(interrupt: Interrupt) -> Arc<Self> {
        let shared = Arc::new(Self {
            status: Mutex::new(Status {
                phase: Phase::Running,
                cost: Cost::default(),
                frozen_since: None,
                heard: None,
                left: None,
            }),
            changed: Condvar::new(),
            reply_data: AtomicUsize::new(usize::MAX),
            searching: Mutex::default(),
            interrupt: interrupt.clone(),
            load_stops: Mutex::new(None),
            gate: Mutex::default(),
            pace: Mutex::default(),
            taken_away: AtomicBool::new(false),
            modules: Mutex::new(None),
        });
        interrupt.watch(&shared);
        shared
    }

    pub(crate) fn status(&self) -> MutexGuard<'_, Status> {
        lock(&self.status)
    }

    pub(crate) fn gate(&self) -> MutexGuard<'_, GateSlot> {
        lock(&self.gate)
    }

    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        lock(&self.pace)
    }

    pub(crate) fn heard(&self) {
        self.status().heard = Some(Instant::now());
    }

    pub(crate) fn was_heard_within(&self, time: Duration) -> bool {
        self.status().heard.is_some_and(|at| at.elapsed() < time)
    }

    /// The first end counts.
    pub(crate) fn set_left(&self, left: Left) {
        self.status().left.get_or_insert(left);
    }

    pub(crate) fn kept_modules(&self) -> MutexGuard<'_, Option<KeptModules>> {
        lock(&self.modules)
    }

    /// Waits for a stop; `None` when `patience` ran out.
    pub(crate) fn wait_for_halt(&self, patience: Option<Duration>) -> Result<Option<Arc<Halt>>, Fault> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut status = self.status();
        loop {
            match &status.phase {
                Phase::Halted(halt) => return Ok(Some(halt.clone())),
                Phase::Over(why) => return Err(Fault::Lost(why.clone())),
                Phase::Running => {}
            }
            if self.interrupt.take() {
                return Err(Fault::Cancelled);
            }
            status = match deadline {
                None => self.changed.wait(status).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.changed.wait_timeout(status, left).unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
    }
}

/// A thread that panicked must not keep the others from letting the target run.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
