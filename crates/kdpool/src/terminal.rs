//! A person at a terminal: the line editor while the target stands still, plain lines while it runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Zoned;
use kd_shell::{Completion, Next, Shell, state_folder};
use rustyline::completion::Pair;
use rustyline::error::ReadlineError;
use rustyline::history::{FileHistory, History};
use rustyline::{CompletionType, Config, Editor};

use crate::console::{Announcer, remark};
#[cfg(windows)]
use crate::keys;
use crate::work::{Wait, Work};

/// Lines that are kept from one session to the next.
const HISTORY: usize = 1000;
/// How often a running target is looked at.
const STEP: Duration = Duration::from_millis(100);

impl Work {
    /// Commands from whoever sits there.
    pub(crate) fn converse(&mut self, announcer: &Announcer) -> Result<Next> {
        self.talked = true;
        let mut editor = Lines::new(self.shell.clone())?;
        if let Ok(printer) = editor.editor.create_external_printer() {
            announcer.use_printer(printer);
        }
        // What was pasted or typed ahead, and is still to be run.
        let mut ahead: VecDeque<String> = VecDeque::new();
        let mut typed = Typed::default();
        loop {
            let prompt = self.shell.borrow_mut().prompt();
            let Some(prompt) = prompt else {
                match self.watch(&mut ahead, &mut typed) {
                    Next::Continue => continue,
                    next => return Ok(next),
                }
            };
            let line = match ahead.pop_front() {
                Some(line) => {
                    remark(&format!("{prompt}{line}\n"), false);
                    line
                }
                None => match editor.read(&prompt, &typed.unfinished())? {
                    Read::Lines(mut lines) => {
                        let first = lines.pop_front().unwrap_or_default();
                        ahead = lines;
                        first
                    }
                    // Ctrl+C on a halted target drops the line, as in every shell.
                    Read::Dropped => continue,
                    Read::End => return Ok(Next::Quit { halted: false }),
                },
            };
            editor.keep(&line);
            let line = self.shell.borrow_mut().typed(&line);
            match self.execute(&line).next {
                Next::Continue => {}
                next => return Ok(next),
            }
        }
    }

    /// The target runs, until it stops or somebody says what to do.
    fn watch(&mut self, ahead: &mut VecDeque<String>, typed: &mut Typed) -> Next {
        let since = Zoned::now().strftime("%H:%M:%S").to_string();
        remark(&format!("The target runs since {since}. Ctrl+C breaks in; q leaves it running.\n"), false);
        loop {
            match self.wait(STEP) {
                Wait::Stopped => return Next::Continue,
                Wait::End(next) => return next,
                Wait::Runs => {}
            }
            // Lines that were pasted behind a `g` wait for their prompt, but for those that mean a target that runs.
            let line = match ahead.front().is_some_and(|line| self.shell.borrow().is_for_running(line)) {
                true => ahead.pop_front().map_or(TypedLine::None, TypedLine::Line),
                false => typed.line(Duration::ZERO).unwrap_or(TypedLine::End),
            };
            match line {
                TypedLine::None => {}
                TypedLine::End => return Next::Quit { halted: false },
                TypedLine::Line(line) if line.trim().is_empty() => {
                    remark("It runs. Ctrl+C breaks in; q leaves it running.\n", false);
                }
                TypedLine::Line(line) if self.shell.borrow().is_for_running(&line) => match self.execute(&line).next {
                    Next::Continue => {}
                    next => return next,
                },
                TypedLine::Line(line) => {
                    remark("That waits until the target stops (Ctrl+C breaks in).\n", false);
                    ahead.push_back(line);
                }
            }
        }
    }
}

/// What the editor gave.
enum Read {
    /// One, or several that were pasted.
    Lines(VecDeque<String>),
    Dropped,
    End,
}

/// The line editor, with what was typed in earlier sessions.
struct Lines {
    editor: Editor<Completer, FileHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    fn new(shell: Rc<RefCell<Shell>>) -> Result<Lines> {
        let config = Config::builder().completion_type(CompletionType::List).max_history_size(HISTORY)?;
        let mut editor = Editor::with_config(config.build())?;
        editor.set_helper(Some(Completer { shell }));
        let history = history_file();
        if let Some(file) = &history {
            // The first session has none.
            let _ = editor.load_history(file);
        }
        Ok(Lines { editor, history })
    }

    /// A line, of which `begun` was typed before the prompt came.
    fn read(&mut self, prompt: &str, begun: &str) -> Result<Read> {
        match self.editor.readline_with_initial(prompt, (begun, "")) {
            Ok(text) if text.contains(['\n', '\r']) => Ok(Read::Lines(pasted(&text))),
            Ok(line) => Ok(Read::Lines(VecDeque::from([line]))),
            Err(ReadlineError::Interrupted) => Ok(Read::Dropped),
            Err(ReadlineError::Eof) => Ok(Read::End),
            Err(error) => Err(error).context("the terminal is gone"),
        }
    }

    /// Remembers a line for this session and the next ones.
    fn keep(&mut self, line: &str) {
        if line.trim().is_empty() || is_secret(line) || !self.editor.add_history_entry(line).unwrap_or(false) {
            return;
        }
        if let Some(file) = &self.history {
            // A history that cannot be written is none.
            let _ = self.editor.history_mut().append(file);
        }
    }
}

/// Lines of a paste. One that ends in a line end is complete; blank ones say nothing.
fn pasted(text: &str) -> VecDeque<String> {
    text.split(['\n', '\r']).map(str::trim_end).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// A line that names a key must not lie about on a disk.
fn is_secret(line: &str) -> bool {
    line.to_ascii_lowercase().contains("key=")
}

/// The user's own file, which nobody else reads.
fn history_file() -> Option<PathBuf> {
    let folder = state_folder()?;
    kd_shell::create_private_folder(&folder).ok()?;
    let file = folder.join("history");
    kd_shell::open_private(&file, true).ok()?;
    Some(file)
}

enum TypedLine {
    Line(String),
    None,
    End,
}

/// What is typed while nothing is asked for. A terminal gives it line by line, and echoes it; a console gives it key by
/// key, and the echo is ours.
#[derive(Default)]
struct Typed {
    #[cfg(unix)]
    start: Vec<u8>,
    #[cfg(windows)]
    start: String,
}

#[cfg(unix)]
impl Typed {
    /// A line that was begun is the terminal's still, and it gives it to the editor.
    fn unfinished(&mut self) -> String {
        String::new()
    }

    /// Reads no more than there is: the next prompt's line is the editor's.
    fn line(&mut self, patience: Duration) -> io::Result<TypedLine> {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let stdin = io::stdin();
        loop {
            if let Some(end) = self.start.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.start.drain(..=end).collect();
                return Ok(TypedLine::Line(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            if poll(&mut ready, patience)? == 0 {
                return Ok(TypedLine::None);
            }
            let mut bytes = [0; 1024];
            match nix::unistd::read(stdin.as_fd(), &mut bytes)? {
                0 => return Ok(TypedLine::End),
                read => self.start.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

#[cfg(windows)]
impl Typed {
    /// A line that was begun when the target stopped.
    fn unfinished(&mut self) -> String {
        std::mem::take(&mut self.start)
    }

    fn echo(&mut self, c: char) {
        self.start.push(c);
        remark(c.encode_utf8(&mut [0; 4]), false);
    }

    /// Takes no more keys than the line has: those of the next prompt are the editor's. Ctrl+C comes as a signal, not as
    /// a key.
    fn line(&mut self, _: Duration) -> io::Result<TypedLine> {
        use crossterm::event::{KeyCode, KeyModifiers};

        while let Some(key) = keys::console::next() {
            match key.code {
                KeyCode::Enter => {
                    remark("\n", false);
                    return Ok(TypedLine::Line(std::mem::take(&mut self.start)));
                }
                KeyCode::Backspace => {
                    if self.start.pop().is_some() {
                        remark("\u{8} \u{8}", false);
                    }
                }
                // The ends of input here and there.
                KeyCode::Char('d' | 'z') if key.modifiers == KeyModifiers::CONTROL && self.start.is_empty() => {
                    return Ok(TypedLine::End);
                }
                // AltGr is Ctrl and Alt together, and writes letters.
                KeyCode::Char(c)
                    if !key.modifiers.contains(KeyModifiers::CONTROL) || key.modifiers.contains(KeyModifiers::ALT) =>
                {
                    self.echo(c);
                }
                _ => {}
            }
        }
        Ok(TypedLine::None)
    }
}

/// The answer to a question. Not a byte behind its line is read: what was pasted there is for the prompt.
pub(crate) fn answer() -> Option<String> {
    #[cfg(unix)]
    {
        let mut typed = Typed::default();
        loop {
            match typed.line(Duration::from_secs(3600)).ok()? {
                TypedLine::Line(line) => return Some(line),
                TypedLine::None => {}
                TypedLine::End => return None,
            }
        }
    }
    #[cfg(not(unix))]
    {
        let mut answer = String::new();
        (io::stdin().read_line(&mut answer).ok()? > 0).then_some(answer)
    }
}

/// Tab.
struct Completer {
    shell: Rc<RefCell<Shell>>,
}

impl rustyline::completion::Completer for Completer {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, found) = self.shell.borrow_mut().complete_line(&line[..position]);
        let pair = |Completion { text, help }: Completion| Pair {
            display: if help.is_empty() { text.clone() } else { format!("{text:<20} {help}") },
            replacement: text,
        };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

impl rustyline::hint::Hinter for Completer {
    type Hint = String;
}
impl rustyline::highlight::Highlighter for Completer {}
impl rustyline::validate::Validator for Completer {}
impl rustyline::Helper for Completer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paste_is_several_lines() {
        assert_eq!(pasted("!poolused 4\r\n\r\n!poolfind Leak\nq\n"), ["!poolused 4", "!poolfind Leak", "q"]);
        assert_eq!(pasted("\n\n"), [""; 0]);
    }

    #[test]
    fn keys_are_no_history() {
        for line in [".opendebug net:port=50000,KEY=1.2.3.4", "kdpool -k net:key=a.b.c.d"] {
            assert!(is_secret(line), "{line}");
        }
        assert!(!is_secret("!poolfind Key"));
    }
}
