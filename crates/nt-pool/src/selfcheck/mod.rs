//! Everything that the kernel counts twice, compared on the machine in front of the user.
//!
//! A decoder's picture of a kernel comes from symbols, from what people have measured, and from inference. Where it is
//! wrong, some number here differs from another. [`SelfCheck::step`] runs one part after the other, each in one stop of
//! the target, so that the target can run in between; all of them together ask no more than was allowed.

mod pool;
mod sample;
mod system;
mod verified;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use nt_memory::{Fault, Spent, Through};

use crate::allowance::Allowance;
use crate::checks::{Book, Books, Check, balance};
use crate::readings::Readings;
use crate::small_blocks::Cost;
use crate::{Kernel, Lack, Missing, Notes, PoolError};

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The links of the list of loaded modules.
    Modules,
    /// The rows of the tag tables, and their sums against the kernel's totals.
    Tags,
    /// The table of large allocations.
    Large,
    /// What holds small blocks.
    Small,
    /// The blocks of every tag against its counters.
    Blocks,
    /// Driver Verifier's counters against what it tracks.
    Verifier,
    /// The index of Driver Verifier's pool log against its records.
    Log,
}

impl Subject {
    /// The name in JSON and in files.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Modules => "modules",
            Subject::Tags => "tags",
            Subject::Large => "large",
            Subject::Small => "small",
            Subject::Blocks => "blocks",
            Subject::Verifier => "verifier",
            Subject::Log => "log",
        }
    }
}

/// As it is said to people.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Subject::Modules => "module list",
            Subject::Tags => "tag counters",
            Subject::Large => "large allocations",
            Subject::Small => "small blocks",
            Subject::Blocks => "blocks of tags",
            Subject::Verifier => "verifier's counters",
            Subject::Log => "pool log",
        })
    }
}

/// What a part of the check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Something was compared, and all of it agrees.
    Ok,
    /// Two witnesses of the same thing disagree.
    Differs,
    /// Nothing could be compared.
    Unknown,
}

impl State {
    /// The name in JSON, in files and on the screen.
    pub fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Differs => "differs",
            State::Unknown => "cannot know",
        }
    }
}

/// One part of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What was compared.
    pub subject: Subject,
    /// Each book with both witnesses.
    pub checks: Vec<Check>,
    /// Why nothing could be compared, or not everything: words of ours, without anything of the target's.
    pub limits: Vec<String>,
    /// What could not be read or made sense of on the way; these sentences may have addresses and names.
    pub missing: Vec<Missing>,
}

impl Part {
    fn new(subject: Subject) -> Self {
        Part { subject, checks: Vec::new(), limits: Vec::new(), missing: Vec::new() }
    }

    /// A part of which nothing can be known.
    fn unknown(subject: Subject, why: impl Into<String>) -> Self {
        Part { limits: vec![why.into()], ..Part::new(subject) }
    }

    /// The same, where the target is the reason.
    fn unread(subject: Subject, why: &PoolError) -> Self {
        Part { missing: vec![Missing::new(why.to_string())], ..Part::new(subject) }
    }

    /// Whether everything agrees that was compared.
    pub fn state(&self) -> State {
        match self.checks.iter().all(|check| check.ok) && self.damaged() == 0 {
            false => State::Differs,
            true if self.checks.is_empty() => State::Unknown,
            true => State::Ok,
        }
    }

    /// Whether answers that rest on this part can be trusted: a rule that nobody has proved may be broken.
    pub fn is_sound(&self) -> bool {
        balance(&self.checks) && self.damaged() == 0
    }

    fn balance(&mut self, books: Books) {
        self.checks.extend(books.checks());
    }

    /// Places that do not hold what they should.
    pub fn damaged(&self) -> u64 {
        let damaged = self.missing.iter().filter(|missing| missing.why == Lack::Damaged);
        damaged.map(|missing| missing.count.unwrap_or(1)).sum()
    }

    /// What an answer lacked.
    fn lacks(&mut self, notes: &Notes) {
        self.missing.extend(notes.all_missing().cloned());
    }
}

/// How many blocks there are of what size: powers of two, by what holds them.
pub type Sizes = BTreeMap<(&'static str, u64), u64>;

/// A word of a structure's header as it lies in memory, and decoded. The address that is part of the encoding is not
/// here, so that no key follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// The structure that it is of.
    pub structure: &'static str,
    /// As it stands in memory, hidden by the heap's key.
    pub encoded: u64,
    /// As it is read.
    pub decoded: u64,
}

/// A check that goes on part by part.
#[derive(Debug)]
pub struct SelfCheck {
    limit: u64,
    /// Requests that the present part may make.
    share: u64,
    spent: Spent,
    /// What the memory had cost when the present part began.
    began: Spent,
    next: usize,
    /// Allocations that the verifier tracks, by address: bytes.
    tracked: BTreeMap<u64, u64>,
    /// In the order in which they were done.
    pub parts: Vec<Part>,
    /// Of the structures that decoding rests on.
    pub sizes: Sizes,
    /// Some headers, before and after decoding: without contents and addresses.
    pub words: Vec<Word>,
    /// Which of two possible readings of a structure were taken.
    pub readings: Readings,
}

/// One part, or several that must be of one stop.
type Step = fn(&mut SelfCheck, &Kernel<'_>) -> Result<(), PoolError>;

/// What is cheap comes first, and the pool, which takes whatever it gets, last. The number says of how many shares of
/// what is left a step gets one: a verifier that tracks a hundred thousand blocks leaves the pool its half.
const STEPS: [(Step, u64, &[Subject]); 5] = [
    (system::modules, 1, &[Subject::Modules]),
    (system::tags, 1, &[Subject::Tags]),
    (verified::verifier, 2, &[Subject::Verifier]),
    (verified::log, 2, &[Subject::Log]),
    (pool::pool, 1, &[Subject::Large, Subject::Small, Subject::Blocks]),
];

impl SelfCheck {
    /// A check that asks the target no more than so many times.
    pub fn new(requests: u64) -> Self {
        SelfCheck {
            limit: requests,
            share: 0,
            spent: Spent::default(),
            began: Spent::default(),
            next: 0,
            tracked: BTreeMap::new(),
            parts: Vec::new(),
            sizes: Sizes::new(),
            words: Vec::new(),
            readings: Readings::default(),
        }
    }

    /// What was spent on it so far.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Runs the next part. False when all are done.
    ///
    /// # Errors
    ///
    /// The source is gone, or the user does not want to wait: the parts so far stand.
    pub fn step(&mut self, kernel: &Kernel<'_>) -> Result<bool, PoolError> {
        let Some((step, shares, subjects)) = STEPS.get(self.next) else { return Ok(false) };
        self.next += 1;
        self.began = kernel.memory.spent();
        self.share = self.limit.saturating_sub(self.spent.requests) / shares;
        let memory = Through(Allowance::new(kernel.memory, Cost { requests: self.share, bytes: u64::MAX }));
        let result = step(self, &Kernel { memory: &memory, ..*kernel });
        let spent = kernel.memory.spent().since(self.began);
        self.spent.requests += spent.requests;
        self.spent.bytes += spent.bytes;
        self.spent.time += spent.time;
        let why = match result.map_err(PoolError::local) {
            Ok(()) => return Ok(true),
            Err(Err(Fault::Cancelled)) if memory.0.is_exhausted() => None,
            Err(Err(fault)) => return Err(fault.into()),
            Err(Ok(error)) => Some(error),
        };
        for subject in *subjects {
            if !self.parts.iter().any(|part| part.subject == *subject) {
                self.parts.push(match &why {
                    Some(why) => Part::unread(*subject, why),
                    None => {
                        let limit = self.limit;
                        Part::unknown(*subject, format!("the {limit} requests that it may cost were not enough"))
                    }
                });
            }
        }
        Ok(true)
    }

    /// What all parts come to.
    pub fn state(&self) -> State {
        let is = |state| self.parts.iter().any(|part| part.state() == state);
        match (is(State::Differs), is(State::Ok)) {
            (true, _) => State::Differs,
            (false, true) => State::Ok,
            (false, false) => State::Unknown,
        }
    }

    /// Requests that are left to the present part.
    fn left(&self, kernel: &Kernel<'_>) -> u64 {
        let now = kernel.memory.spent().since(self.began);
        self.share.saturating_sub(now.requests)
    }
}

/// A check whose two witnesses are of one place only.
fn one(name: Book, expected: u64, found: u64, place: u64) -> Check {
    Check::new(name, expected, found, place)
}
