//! What is said while symbols are looked for, and how a search ends early.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use kd_target::Interrupt;
use nt_symbols::{Event, Observer};

use crate::text::visible_name;

/// When somebody who waits is told how to stop waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// kd's words for it.
const ABORT: &str = "\n\
    Press ctrl-c (cdb, kd, ntsd) or ctrl-break (windbg) to abort symbol loads that take too long.\n\
    Run !sym noisy before .reload to track down problems loading symbols.\n\n";

/// A place for words that come in the middle of a command.
pub type Sink = Box<dyn Fn(&str)>;

/// Asks whoever sits at the terminal; false is no.
pub type Ask = Box<dyn Fn(&str) -> bool>;

/// Watches the searches of a session.
#[derive(Default)]
pub struct Monitor {
    /// The lines of `!sym noisy`.
    lines: Option<Sink>,
    /// Progress, for somebody who looks at it.
    terminal: Option<Sink>,
    ask: Option<Ask>,
    /// The question about a symbol path was put.
    asked: Cell<bool>,
    noisy: Cell<bool>,
    interrupt: RefCell<Interrupt>,
    /// How long this command has been loading symbols, without the search under way.
    loading: Cell<Duration>,
    since: Cell<Option<Instant>>,
    told: Cell<bool>,
    /// Ctrl+C ended a search of this command.
    interrupted: Cell<bool>,
    /// A progress line stands on the terminal, since when.
    progress: Cell<Option<Instant>>,
}

/// How long a file may take before its progress is shown, and how often it is.
const PROGRESS: Duration = Duration::from_millis(500);

impl Monitor {
    /// `lines` takes what `!sym noisy` shows, `terminal` what only a person needs.
    pub fn new(lines: Sink, terminal: Option<Sink>) -> Self {
        Self { lines: Some(lines), terminal, ..Self::default() }
    }

    /// Somebody is there who can be asked.
    pub fn asking(self, ask: Ask) -> Self {
        Self { ask: Some(ask), ..self }
    }

    /// Whether Microsoft's server is to be used, as there is no symbol path; asked once.
    pub(crate) fn wants_server(&self) -> bool {
        let Some(ask) = self.ask.as_ref().filter(|_| !self.asked.replace(true)) else { return false };
        let place = nt_symbols::default_store().map_or_else(|| "memory".into(), |store| store.display().to_string());
        ask(&format!(
            "No symbol path is set. Use Microsoft's symbol server, and keep what it sends in {}?",
            visible_name(&place)
        ))
    }

    pub(crate) fn use_interrupt(&self, interrupt: Interrupt) {
        self.interrupt.replace(interrupt);
    }

    /// Whether each place that is tried is told (`!sym noisy`).
    pub fn set_noisy(&self, noisy: bool) {
        self.noisy.set(noisy);
    }

    pub(crate) fn is_noisy(&self) -> bool {
        self.noisy.get()
    }

    /// A command begins.
    pub(crate) fn begin(&self) {
        self.loading.set(Duration::ZERO);
        self.told.set(false);
        self.interrupted.set(false);
    }

    pub(crate) fn search_begins(&self) {
        self.since.set(Some(Instant::now()));
    }

    /// True: Ctrl+C ended it.
    pub(crate) fn search_ends(&self) -> bool {
        let since = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.loading.set(self.loading.get() + since);
        self.clear_progress();
        let interrupted = self.interrupt.borrow().take();
        self.interrupted.set(self.interrupted.get() || interrupted);
        interrupted
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupted.get()
    }

    /// A line of `!sym noisy`.
    pub(crate) fn say(&self, line: &str) {
        if let Some(lines) = self.lines.as_ref().filter(|_| self.noisy.get()) {
            self.clear_progress();
            lines(&format!("{line}\n"));
        }
    }

    fn clear_progress(&self) {
        if let (Some(terminal), Some(_)) = (&self.terminal, self.progress.take()) {
            terminal("\r\x1b[K");
        }
    }

    fn show_progress(&self, url: &str, bytes: u64, of: Option<u64>) {
        let Some(terminal) = &self.terminal else { return };
        let waited = self.since.get().map_or(Duration::ZERO, |since| since.elapsed());
        if !self.told.get() && self.loading.get() + waited >= PATIENCE {
            self.told.set(true);
            self.clear_progress();
            terminal(ABORT);
        }
        if waited >= PROGRESS && self.progress.get().is_none_or(|shown| shown.elapsed() >= PROGRESS) {
            let file = visible_name(url.rsplit('/').next().unwrap_or(url));
            let text = match of {
                Some(of) if of > 0 => format!("{file}: {} of {} KB", bytes / 1024, of / 1024),
                _ => format!("{file}: {} KB", bytes / 1024),
            };
            terminal(&format!("\r\x1b[K{text}"));
            self.progress.set(Some(Instant::now()));
        }
    }
}

impl Observer for Monitor {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Tried(attempt) => {
                let who = if attempt.place.contains("://") { "SYMSRV:  " } else { "DBGHELP: " };
                self.say(&format!("{who}{}", visible_name(&attempt.to_string())));
            }
            Event::Asking { url } => self.say(&format!("SYMSRV:  HTTPGET: {}", visible_name(url))),
            Event::Receiving { url, bytes, of } => self.show_progress(url, bytes, of),
        }
    }

    fn cancelled(&self) -> bool {
        self.interrupt.borrow().is_raised()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn monitor() -> (Monitor, Rc<RefCell<String>>, Rc<RefCell<String>>) {
        let (lines, terminal) = (Rc::<RefCell<String>>::default(), Rc::<RefCell<String>>::default());
        let sink = |to: &Rc<RefCell<String>>| {
            let to = to.clone();
            Box::new(move |text: &str| to.borrow_mut().push_str(text)) as Sink
        };
        (Monitor::new(sink(&lines), Some(sink(&terminal))), lines, terminal)
    }

    #[test]
    fn only_noisy_mode_says_every_step() {
        let (monitor, lines, _) = monitor();
        monitor.event(Event::Asking { url: "http://a/b" });
        assert_eq!(*lines.borrow(), "");
        monitor.set_noisy(true);
        monitor.event(Event::Asking { url: "http://a/\x1bb" });
        assert_eq!(*lines.borrow(), "SYMSRV:  HTTPGET: http://a/^[b\n");
    }

    #[test]
    fn who_waits_is_told_once_how_to_stop() {
        let (monitor, _, terminal) = monitor();
        let receiving = || monitor.event(Event::Receiving { url: "http://a/x.pdb", bytes: 0x400, of: Some(0x800) });
        monitor.search_begins();
        receiving();
        assert_eq!(*terminal.borrow(), "", "nothing after a moment");
        monitor.loading.set(PATIENCE);
        receiving();
        receiving();
        assert_eq!(*terminal.borrow(), ABORT);
        monitor.interrupt.borrow().raise();
        assert!(monitor.cancelled());
        assert!(monitor.search_ends());
        assert!(!monitor.cancelled(), "it ends one command");
    }
}
