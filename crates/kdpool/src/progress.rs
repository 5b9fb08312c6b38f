//! What a command has done so far, for whoever waits for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use kd_shell::Consent;
use kd_shell::text::{in_bytes, lasting};
use kd_target::{Cost, Meter};

/// A command that is done by then needs no line.
const PATIENCE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(200);
/// Steps without a request after which the line goes: the command waits for something else.
const IDLE: u32 = 5;

/// The line on the terminal. There is one terminal, and whoever writes to it must not tear the line up.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Somebody is asked something: the line of the answer is his.
static ASKED: AtomicBool = AtomicBool::new(false);

fn bar() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `write`, which writes to the terminal.
pub(crate) fn aside<T>(write: impl FnOnce() -> T) -> T {
    match &*bar() {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Takes the line away, until there is more to tell.
pub(crate) fn clear() {
    if let Some(bar) = bar().take() {
        bar.finish_and_clear();
    }
}

/// Runs `ask`, which waits for somebody at the terminal; nothing is drawn meanwhile.
pub(crate) fn without<T>(ask: impl FnOnce() -> T) -> T {
    ASKED.store(true, Ordering::Relaxed);
    clear();
    let answer = ask();
    ASKED.store(false, Ordering::Relaxed);
    answer
}

/// Shows the progress of one command as long as it lives.
pub(crate) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(meter: Meter, consent: Arc<Consent>) -> Watch {
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::new(meter.cost());
            while stopped.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                match seen.line(meter.cost(), consent.expected()) {
                    Some(line) => draw(&line),
                    None => clear(),
                }
            }
            clear();
        });
        Watch { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say when it panicked.
            let _ = thread.join();
        }
    }
}

fn draw(line: &str) {
    let mut bar = bar();
    if ASKED.load(Ordering::Relaxed) {
        return;
    }
    let bar = bar.get_or_insert_with(|| {
        let terminal = Term::stderr();
        let target = match terminal.is_term() {
            true => ProgressDrawTarget::term_like(Box::new(Narrowed(terminal))),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        // It cuts what is too long for the terminal.
        bar.with_style(ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()))
    });
    bar.set_message(line.to_owned());
    bar.tick();
}

/// A terminal whose last columns are left alone: it shows the `^C` that is typed there. Behind a line that is as wide as
/// the terminal that would begin another line, and the progress above it would stay.
#[derive(Debug)]
struct Narrowed(Term);

/// `^C`, and the cursor.
const TYPED: u16 = 3;

impl TermLike for Narrowed {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(TYPED).max(1)
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.0.move_cursor_up(lines)
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.0.move_cursor_down(lines)
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_right(columns)
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_left(columns)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.0.write_line(line)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What was seen of a command so far.
struct Seen {
    started: Instant,
    first: Cost,
    last: Cost,
    idle: u32,
    /// The number of the large read under way, and what had been read before it.
    read: (u64, u64),
}

impl Seen {
    fn new(first: Cost) -> Seen {
        Seen { started: Instant::now(), first, last: first, idle: 0, read: (0, first.bytes_read) }
    }

    fn line(&mut self, now: Cost, expected: (u64, u64)) -> Option<String> {
        self.idle = if now.requests == self.last.requests { self.idle + 1 } else { 0 };
        if expected.0 != self.read.0 {
            self.read = (expected.0, self.last.bytes_read);
        }
        self.last = now;
        let elapsed = self.started.elapsed();
        let requests = now.requests - self.first.requests;
        if elapsed < PATIENCE || requests == 0 || self.idle >= IDLE {
            return None;
        }
        let bytes = now.bytes_read - self.first.bytes_read;
        let rate = bytes as f64 / elapsed.as_secs_f64();
        let left = expected.1.saturating_sub(now.bytes_read - self.read.1);
        let rest = match (expected.1, left) {
            (0, _) | (_, 0) => String::new(),
            (all, left) => {
                let time = Duration::try_from_secs_f64(left as f64 / rate.max(1.0)).unwrap_or(Duration::MAX);
                let share = 100 * (all - left.min(all)) / all;
                format!("{share} % of {}, {} left; ", in_bytes(all), lasting(time))
            }
        };
        let frozen = lasting(now.frozen.saturating_sub(self.first.frozen));
        Some(format!(
            "{rest}{requests} requests, {}, {}/s; target frozen {frozen}; Ctrl+C stops",
            in_bytes(bytes),
            in_bytes(rate as u64)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(requests: u64, bytes_read: u64, frozen: u64) -> Cost {
        Cost { requests, bytes_read, bytes_sent: 0, frozen: Duration::from_millis(frozen) }
    }

    fn seen(ago: Duration) -> Seen {
        Seen { started: Instant::now().checked_sub(ago).unwrap(), ..Seen::new(cost(100, 10_000, 5000)) }
    }

    #[test]
    fn a_quick_command_and_one_that_waits_show_nothing() {
        let mut quick = seen(Duration::from_millis(100));
        assert_eq!(quick.line(cost(110, 20_000, 5100), (0, 0)), None);
        let mut idle = seen(Duration::from_secs(2));
        assert_eq!(idle.line(cost(100, 10_000, 5000), (0, 0)), None, "it asked for nothing");
        assert!(idle.line(cost(101, 10_000, 5000), (0, 0)).is_some());
        let lines: Vec<_> = (0..IDLE).map(|_| idle.line(cost(101, 10_000, 5000), (0, 0)).is_some()).collect();
        assert_eq!(lines, [true, true, true, true, false]);
    }

    #[test]
    fn progress_has_its_rate_and_what_is_left() {
        let mut seen = seen(Duration::from_secs(10));
        let line = seen.line(cost(180, 10_000 + (80 << 10), 15_000), (1, 160 << 10)).unwrap();
        assert!(line.starts_with("50 % of 160 KB, 10 s left; 80 requests, 80 KB, "), "{line}");
        assert!(line.ends_with("; target frozen 10 s; Ctrl+C stops"), "{line}");
        let line = seen.line(cost(181, 10_000 + (80 << 10), 15_200), (0, 0)).unwrap();
        assert!(line.starts_with("81 requests, "), "{line}");
    }
}
