//! Standard output and standard error, and who may write to the terminal when.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use console::{Term, truncate_str};
use kd_shell::text::visible_name;
use kd_shell::{Mood, Output, Record};
use rustyline::ExternalPrinter;
use textwrap::WordSplitter;

use crate::keys::Keys;
use crate::{progress, terminal};

const ERROR: Style = AnsiColor::Red.on_default();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Lines that others than [`Console`] wrote, of the connection for example: a table that stands above one is not to be
/// drawn over.
static ASIDES: AtomicUsize = AtomicUsize::new(0);

/// One line about what went wrong, in colour where people look. It may quote what came from outside.
pub(crate) fn complain(line: &str) {
    ASIDES.fetch_add(1, Ordering::Relaxed);
    // With standard error gone there is nobody to tell.
    let line = fitting(&Term::stderr(), &kd_shell::text::visible(line));
    progress::aside(|| drop(writeln!(anstream::stderr().lock(), "{ERROR}{line}{ERROR:#}")));
}

/// How wide a terminal is; `None` is none.
fn columns(terminal: &Term) -> Option<usize> {
    let (_, columns) = terminal.size_checked().filter(|_| terminal.is_term())?;
    Some(usize::from(columns)).filter(|columns| *columns > 0)
}

/// Lines that end between words, if they are for a terminal.
pub(crate) fn fitting(terminal: &Term, text: &str) -> String {
    let Some(columns) = columns(terminal) else { return text.to_owned() };
    folded(text, columns) + if text.ends_with('\n') { "\n" } else { "" }
}

/// Lines that a terminal would break in the middle of a word. What is indented is there to be copied, and stays.
fn folded(text: &str, columns: usize) -> String {
    let fill = textwrap::Options::new(columns).break_words(false).word_splitter(WordSplitter::NoHyphenation);
    let line = |line: &str| if line.starts_with(' ') { line.to_owned() } else { textwrap::fill(line, &fill) };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Lines for people that are no result: to standard output as kd writes them, or `aside`, to standard error, when a
/// program reads standard output.
pub(crate) fn remark(text: &str, aside: bool) {
    ASIDES.fetch_add(1, Ordering::Relaxed);
    progress::aside(|| {
        if aside {
            // With standard error gone there is nobody to tell.
            let _ = anstream::stderr().lock().write_all(text.as_bytes());
        } else {
            let mut out = io::stdout().lock();
            // A reader that went away shows at the next answer.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    });
}

/// Whether somebody sits there who sees what is written and can answer.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Asks whoever sits there.
pub(crate) fn ask(question: &str) -> bool {
    progress::without(|| {
        let question = fitting(&Term::stdout(), &format!("{} [y/N]", visible_name(question)));
        remark(&format!("{question} "), false);
        terminal::answer().is_some_and(|answer| matches!(answer.trim(), "y" | "Y" | "yes"))
    })
}

/// The record of a session that did not end well, where no `q` says so (docs/json.md).
pub(crate) fn remark_json(error: &str) {
    if let Ok(record) = serde_json::to_string(&Record::failed("q", error.to_owned())) {
        // Nobody may read any more.
        let _ = writeln!(io::stdout().lock(), "{record}");
    }
}

/// What commands write to.
#[derive(Default)]
pub(crate) struct Console {
    /// The reader of our output went away.
    pub(crate) closed: bool,
    /// Lines of the table that was drawn last, as long as nothing came after it.
    table: usize,
    /// [`ASIDES`] when it was drawn.
    asides: usize,
    keys: Option<Keys>,
}

impl Console {
    /// Takes the table from the screen that was drawn last, if nothing came after it.
    fn clear_table(&mut self) {
        let lines = std::mem::take(&mut self.table);
        if lines > 0 && self.asides == ASIDES.load(Ordering::Relaxed) {
            // A terminal that went away shows at the next write.
            let _ = progress::aside(|| Term::stdout().clear_last_lines(lines));
        }
    }
}

impl Output for Console {
    fn write(&mut self, text: &str) {
        self.table = 0;
        let written = progress::aside(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        self.closed |= written.is_err();
    }

    fn error(&mut self, line: &str) {
        complain(line.trim_end());
    }

    fn remark(&mut self, line: &str) {
        remark(&fitting(&Term::stderr(), line), true);
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
        let lines: Vec<_> = table.lines().map(|line| truncate_str(line, width, "...")).collect();
        self.clear_table();
        self.write(&(lines.join("\n") + "\n"));
        (self.table, self.asides) = (lines.len(), ASIDES.load(Ordering::Relaxed));
    }

    fn headline(&mut self, text: &str, mood: Mood) {
        self.table = 0;
        let style = match mood {
            Mood::Good => GOOD,
            Mood::Doubtful => DOUBTFUL,
            Mood::Bad => BAD,
        };
        // A terminal would break words; a program reads one line.
        let text = match Term::stdout().is_term() {
            true => folded(text.trim_end(), self.columns()),
            false => text.trim_end().to_owned(),
        };
        let written = progress::aside(|| {
            let mut out = anstream::stdout().lock();
            writeln!(out, "{style}{text}{style:#}").and_then(|()| out.flush())
        });
        self.closed |= written.is_err();
    }

    fn erase(&mut self) {
        self.clear_table();
    }

    fn ask(&mut self, question: &str) -> Option<bool> {
        self.is_interactive().then(|| ask(question))
    }

    fn listen(&mut self, on: bool) -> bool {
        self.keys = on.then(Keys::listen).flatten();
        self.keys.is_some()
    }

    fn key(&mut self) -> Option<char> {
        self.keys.as_ref()?.next()
    }

    fn columns(&self) -> usize {
        /// Wider lines are hard to read.
        const MOST: usize = 120;
        columns(&Term::stdout()).unwrap_or(80).min(MOST)
    }

    fn is_interactive(&self) -> bool {
        is_interactive()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_between_words() {
        let text = "one word-with-hyphens and another\n  an indented line that is to be copied as it is";
        assert_eq!(
            folded(text, 20),
            "one\nword-with-hyphens\nand another\n  an indented line that is to be copied as it is"
        );
        assert_eq!(folded("a-word-that-is-wider-than-the-terminal", 10), "a-word-that-is-wider-than-the-terminal");
    }
}
