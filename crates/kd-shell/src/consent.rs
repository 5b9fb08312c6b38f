//! What a command may cost without a question.
//!
//! While a command reads, the target stands still. So before much is read at once it is said how long that will be, and a
//! time beyond the limit is taken only by whoever says so: a person with a word, a script with an option.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kd_target::{Gate, LargeRead};

use crate::text::{in_bytes, lasting};

/// What is done without a word.
const QUIET: Duration = Duration::from_millis(500);

/// What is done without a question: a minute's stand-still breaks the connections of a machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Takes a line for people.
pub type Say = Box<dyn Fn(&str) + Send + Sync>;
/// Asks whoever sits at the terminal.
pub type Question = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Who is told what a read will cost, and who is asked.
pub struct Consent {
    say: Say,
    /// Without it nobody sits there.
    ask: Option<Question>,
    /// Everything is wanted, whatever it costs.
    granted: bool,
    /// This command's first large read was told of, or asked for.
    told: AtomicBool,
    /// Counts large reads, for whoever shows progress.
    reads: AtomicU64,
    expected: AtomicU64,
    refusal: Mutex<Option<String>>,
}

impl Consent {
    /// What a large read costs is told to `say`, and `ask`, if somebody can answer, decides; with `granted` nobody is asked.
    pub fn new(say: Say, ask: Option<Question>, granted: bool) -> Self {
        let (told, reads, expected) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        Consent { say, ask, granted, told, reads, expected, refusal: Mutex::default() }
    }

    /// A command begins.
    pub(crate) fn begin(&self) {
        self.told.store(false, Ordering::Relaxed);
        self.expected.store(0, Ordering::Relaxed);
        self.take_refusal();
    }

    /// The number of the last large read, and the bytes that it reads in all; 0 bytes when nobody knows.
    pub fn expected(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.expected.load(Ordering::Relaxed))
    }

    /// Whether something that takes so long may be done.
    pub(crate) fn seek(&self, what: &str, time: Duration) -> bool {
        if time < QUIET || self.told.swap(true, Ordering::Relaxed) {
            return true;
        }
        let line = format!("{what}; on this link the target stands still for about {}", lasting(time));
        if time <= LIMIT || self.granted {
            (self.say)(&format!("{line}. Ctrl+C stops it.\n"));
            return true;
        }
        let Err(why) = self.decide(&line) else { return true };
        // Who reads may have an answer for what it has until here: then nothing else tells the reason.
        if self.ask.is_none() {
            (self.say)(&format!("{why}.\n"));
        }
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        false
    }

    /// The same for what was told already, with what is cheaper.
    ///
    /// # Errors
    ///
    /// Why not, as a line for people.
    pub(crate) fn allows(&self, what: &str, time: Duration) -> Result<(), String> {
        self.told.store(true, Ordering::Relaxed);
        match time <= LIMIT || self.granted {
            true => Ok(()),
            false => self.decide(&format!("{what} takes about {}", lasting(time))),
        }
    }

    /// Why this command's large read was not done, if one was not.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn decide(&self, line: &str) -> Result<(), String> {
        match &self.ask {
            Some(ask) if ask(&format!("{line}. Do it?")) => Ok(()),
            Some(_) => Err(format!("{line}: not done")),
            None => Err(format!("{line}: not done without --yes")),
        }
    }
}

impl Gate for Consent {
    fn passes(&self, read: LargeRead) -> bool {
        let LargeRead { requests, bytes, pace } = read;
        self.expected.store(bytes, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        let what = format!("Reading {} in about {requests} requests", in_bytes(bytes));
        pace.estimate(requests, bytes).is_none_or(|time| self.seek(&what, time))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kd_target::Pace;

    use super::*;

    fn read(bytes: u64, pace: Pace) -> LargeRead {
        LargeRead { requests: bytes / 2048, bytes, pace }
    }

    /// 115,200 baud.
    fn serial() -> Pace {
        let line = |bytes: usize| (bytes, Duration::from_micros(13_000 + 87 * bytes as u64));
        Pace::of([line(8), line(2048), line(64)])
    }

    fn consent(ask: Option<bool>, granted: bool) -> (Consent, Arc<Mutex<String>>) {
        let text = Arc::<Mutex<String>>::default();
        let heard = text.clone();
        let say = move |line: &str| heard.lock().unwrap().push_str(line);
        let ask = ask.map(|answer| Box::new(move |_: &str| answer) as Question);
        (Consent::new(Box::new(say), ask, granted), text)
    }

    #[test]
    fn what_is_quick_is_done_without_a_word() {
        let (consent, text) = consent(None, false);
        assert!(
            consent.passes(read(
                164 << 10,
                Pace::of([(8, Duration::from_micros(250)), (1024, Duration::from_micros(250))])
            ))
        );
        assert!(consent.passes(read(8 << 20, Pace::default())), "nothing was measured");
        assert_eq!(*text.lock().unwrap(), "");
        assert_eq!(consent.expected(), (2, 8 << 20));
    }

    #[test]
    fn what_takes_a_while_is_said_once_a_command() {
        let (consent, text) = consent(None, false);
        assert!(consent.passes(read(164 << 10, serial())) && consent.passes(read(164 << 10, serial())));
        let said = "Reading 164 KB in about 82 requests; on this link the target stands still for about 16 s. Ctrl+C stops it.\n";
        assert_eq!(*text.lock().unwrap(), said);
        consent.begin();
        assert!(consent.passes(read(16 << 10, serial())));
        assert!(text.lock().unwrap().contains("for about 1.5 s."), "{}", text.lock().unwrap());
        let fast = Pace::of([(8, Duration::from_millis(7))]);
        consent.begin();
        assert!(consent.seek("Searching", fast.estimate(80, 640).unwrap()));
        assert!(text.lock().unwrap().contains("Searching; on this link the target stands still for about 560 ms."));
    }

    #[test]
    fn what_takes_long_is_asked_or_left() {
        let log = || read(8 << 20, serial());
        for (ask, granted, done) in [(Some(true), false, true), (Some(false), false, false), (None, true, true)] {
            let (consent, _) = consent(ask, granted);
            assert_eq!(consent.passes(log()), done, "{ask:?} {granted}");
        }
        let (consent, text) = consent(None, false);
        assert_eq!(consent.allows("Searching", LIMIT), Ok(()));
        let why = consent.allows("Searching", LIMIT * 2).unwrap_err();
        assert_eq!(why, "Searching takes about 2 min: not done without --yes");
        consent.begin();
        assert!(!consent.passes(log()));
        assert!(
            text.lock().unwrap().ends_with(" for about 13 min: not done without --yes.\n"),
            "{}",
            text.lock().unwrap()
        );
        assert!(consent.take_refusal().unwrap().ends_with(" for about 13 min: not done without --yes"));
        assert_eq!(consent.take_refusal(), None);
    }
}
