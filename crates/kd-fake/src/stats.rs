//! What really happened to the target, for a test to compare with what its debugger says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The truth about a fake target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// It is stopped and waits for its debugger.
    pub halted: bool,
    /// Time spent stopped, the present stop included.
    pub frozen: Duration,
    /// Time spent in packets that are not stops (prints, prompts, files): a kernel does nothing else meanwhile. After
    /// the debugger has left, this is how long the target hung.
    pub blocked: Duration,
    /// How often it stopped: break-ins, exceptions, module loads.
    pub stops: u64,
    /// State changes sent, repetitions included.
    pub state_changes: u64,
    /// Stops because it was continued on a `cc` with the program counter left there.
    pub rebreaks: u64,
    /// Requests served, by API number.
    pub requests: BTreeMap<u32, u64>,
    /// Of KDNET datagrams and serial bytes, headers included.
    pub bytes_sent: u64,
    /// Of packets and datagrams, headers included.
    pub bytes_received: u64,
    /// Data bytes of memory reads.
    pub bytes_read: u64,
    /// Packets sent again, for whatever reason.
    pub retransmissions: u64,
    /// Packets it stopped sending because nobody acknowledged them.
    pub given_up: u64,
    /// It believes that there is no debugger.
    pub debugger_not_present: bool,
    /// Breakpoints in the 32-slot table now.
    pub breakpoints: Vec<u64>,
    /// Dr7 of the last Continue2.
    pub continue_dr7: Option<u64>,
    /// Continues whose Dr7 lacked bit 10, which is always set: the host sent one it had not read.
    pub wrong_dr7: u64,
    /// SetContext and SetContextEx requests that took effect.
    pub contexts_set: u64,
    /// Where processor 0 was continued last.
    pub continue_pc: Option<u64>,
    /// Whole starts of the machine after the first.
    pub reboots: u64,
    /// The last bug check code.
    pub bugcheck: Option<u32>,
    /// KDNET: offers made, accepted responses, datagrams dropped as forged, old or foreign.
    pub offers: u64,
    /// Debuggers that connected, one after the other.
    pub connections: u64,
    /// Datagrams that did not authenticate, or were no KDNET.
    pub datagrams_refused: u64,
    /// The status of each answered file request.
    pub file_statuses: Vec<u32>,
    /// What the debugger answered to DbgPrompt.
    pub prompt_answers: Vec<String>,
}

impl Stats {
    /// How often this ApiNumber was asked for.
    pub fn requests_of(&self, api: u32) -> u64 {
        self.requests.get(&api).copied().unwrap_or_default()
    }

    /// Requests of whatever API.
    pub fn total_requests(&self) -> u64 {
        self.requests.values().sum()
    }
}

#[derive(Debug, Default)]
struct State {
    stats: Stats,
    halted_since: Option<Instant>,
    blocked_since: Option<Instant>,
}

/// The stub's and the handle's common view of [`Stats`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters(Arc<Mutex<State>>);

impl Counters {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Stats)) {
        self.with(|state| change(&mut state.stats));
    }

    pub(crate) fn halt(&self) {
        self.with(|state| {
            state.stats.halted = true;
            state.halted_since.get_or_insert_with(Instant::now);
        });
    }

    pub(crate) fn resume(&self) {
        self.with(|state| {
            state.stats.halted = false;
            if let Some(since) = state.halted_since.take() {
                state.stats.frozen += since.elapsed();
            }
        });
    }

    pub(crate) fn block(&self) {
        self.with(|state| {
            state.blocked_since.get_or_insert_with(Instant::now);
        });
    }

    pub(crate) fn unblock(&self) {
        self.with(|state| {
            if let Some(since) = state.blocked_since.take() {
                state.stats.blocked += since.elapsed();
            }
        });
    }

    pub(crate) fn snapshot(&self) -> Stats {
        self.with(|state| {
            let mut stats = state.stats.clone();
            stats.frozen += state.halted_since.map(|since| since.elapsed()).unwrap_or_default();
            stats.blocked += state.blocked_since.map(|since| since.elapsed()).unwrap_or_default();
            stats
        })
    }
}
