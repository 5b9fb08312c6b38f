//! Text as the lines of a script: blocks, loops, aliases, expressions, in a session that has no target.
//!
//! Ctrl+C comes when a script takes long: it may well loop for ever, and must end then.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kd_shell::symbols::{Again, Load, PathElement, Request, SymbolSource};
use kd_shell::{Format, Log, Monitor, Next, Output, PoolTags, Session, Shell, Symbols};
use kd_target::Interrupt;
use nt_memory::Fault;
use nt_symbols::{ImageFile, PdbId};

/// Commands that write files, read them or sleep. A fuzzer has no business there.
const KEPT_OUT: [&str; 6] = ["log", "leak", "selfcheck", "sleep", "<", "/f"];

/// After so long Ctrl+C is pressed.
const PATIENCE: Duration = Duration::from_millis(5);

/// Who is to be interrupted, and when.
static WATCHED: LazyLock<Mutex<Option<(Instant, Interrupt)>>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(3));
            if let Some((since, interrupt)) = &*watched()
                && since.elapsed() > PATIENCE
            {
                interrupt.raise();
            }
        }
    });
    Mutex::default()
});

fn watched() -> MutexGuard<'static, Option<(Instant, Interrupt)>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// There are no symbols.
struct Nothing(Monitor);

fn missing() -> Load {
    Load::Missing { why: "there are none".into(), again: Again::Never }
}

impl SymbolSource for Nothing {
    fn path(&self) -> &str {
        ""
    }

    fn set_path(&mut self, _: &str) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn expanded(&self) -> String {
        String::new()
    }

    fn check(&self) -> Vec<PathElement> {
        Vec::new()
    }

    fn find(&self, _: &Request<'_>) -> Result<Load, Fault> {
        Ok(missing())
    }

    fn image(&self, _: &Request<'_>) -> Result<Option<ImageFile>, Fault> {
        Ok(None)
    }

    fn find_pdb(&self, _: &str, _: PdbId) -> Result<Load, Fault> {
        Ok(missing())
    }

    fn monitor(&self) -> &Monitor {
        &self.0
    }
}

/// Nobody reads it.
struct Quiet;

impl Output for Quiet {
    fn write(&mut self, text: &str) {
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    fn error(&mut self, line: &str) {
        assert!(!line.contains('\x1b'), "{line:?}");
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lower = text.to_ascii_lowercase();
    if KEPT_OUT.iter().any(|word| lower.contains(word)) {
        return;
    }
    let interrupt = Interrupt::default();
    let symbols = Symbols::new(Box::new(Nothing(Monitor::default())));
    let session = Session::new(symbols, PoolTags::default(), Log::default());
    let format = if text.len().is_multiple_of(2) { Format::Kd } else { Format::Json };
    let mut shell = Shell::new(session, format, interrupt.clone());
    for line in text.lines().take(64) {
        let begun = Instant::now();
        *watched() = Some((begun, interrupt.clone()));
        let outcome = shell.execute(line, &mut Quiet);
        *watched() = None;
        assert!(begun.elapsed() < Duration::from_secs(5), "Ctrl+C did not end {line:?}");
        if outcome.next != Next::Continue {
            break;
        }
    }
}
