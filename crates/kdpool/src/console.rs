//! Standard output and standard error, and who may write to the terminal when.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use console::{Term, truncate_str};
use kd_shell::Output;
use rustyline::ExternalPrinter;

const ERROR: Style = AnsiColor::Red.on_default();

/// One line about what went wrong, in colour where people look.
pub(crate) fn complain(line: &str) {
    // With standard error gone there is nobody to tell.
    let _ = writeln!(anstream::stderr().lock(), "{ERROR}{line}{ERROR:#}");
}

/// Lines for people that are no result: to standard output as kd writes them, or, when that carries JSON, to standard
/// error.
pub(crate) fn remark(text: &str, json: bool) {
    if json {
        let _ = anstream::stderr().lock().write_all(text.as_bytes());
    } else {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// What commands write to.
#[derive(Default)]
pub(crate) struct Console {
    /// The reader of our output went away.
    pub(crate) closed: bool,
    /// Lines of the table that was drawn last, as long as nothing came after it.
    table: usize,
}

impl Output for Console {
    fn write(&mut self, text: &str) {
        self.table = 0;
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            self.closed = true;
        }
    }

    fn error(&mut self, line: &str) {
        complain(line.trim_end());
    }

    fn remark(&mut self, line: &str) {
        // With standard error gone there is nobody to tell.
        let _ = anstream::stderr().lock().write_all(line.as_bytes());
    }

    fn clear(&mut self) {
        let terminal = Term::stdout();
        if terminal.is_term() {
            // A terminal that went away shows at the next write.
            let _ = terminal.clear_screen();
        }
        self.table = 0;
    }

    fn redraw(&mut self, table: &str, line: &str) {
        let terminal = Term::stdout();
        if !terminal.is_term() {
            return self.write(line);
        }
        let width = usize::from(terminal.size().1);
        let lines: Vec<_> = table.lines().map(|line| truncate_str(line, width, "")).collect();
        // A terminal that went away shows at the next write.
        let _ = terminal.clear_last_lines(self.table);
        self.write(&(lines.join("\n") + "\n"));
        self.table = lines.len();
    }

    fn ask(&mut self, question: &str) -> Option<bool> {
        if !self.is_interactive() {
            return None;
        }
        self.write(&format!("{question} [y/N] "));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).ok()?;
        Some(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    fn is_interactive(&self) -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }
}

/// Writes what the target says while a line is being typed without tearing it up.
#[derive(Clone, Default)]
pub(crate) struct Announcer(Arc<AnnouncerState>);

#[derive(Default)]
struct AnnouncerState {
    printer: Mutex<Option<Box<dyn ExternalPrinter + Send>>>,
    json: AtomicBool,
}

impl Announcer {
    pub(crate) fn new(json: bool) -> Self {
        let announcer = Self::default();
        announcer.0.json.store(json, Ordering::Relaxed);
        announcer
    }

    pub(crate) fn use_printer(&self, printer: impl ExternalPrinter + Send + 'static) {
        *self.0.printer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(printer));
    }

    pub(crate) fn say(&self, text: &str) {
        let mut printer = self.0.printer.lock().unwrap_or_else(PoisonError::into_inner);
        let printed = printer.as_mut().is_some_and(|printer| printer.print(text.to_owned()).is_ok());
        if !printed {
            remark(text, self.0.json.load(Ordering::Relaxed));
        }
    }
}
