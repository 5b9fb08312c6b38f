//! `--max-memory`: what this process may hold. A target, a symbol server or a file can show more than a host has, and who
//! is killed for that by the system leaves the target frozen.
//!
//! A command that comes near the limit ends with an error (`heap_limit::room_for`, asked by whatever reads or is about to
//! hold much). What gets past that is stopped at the limit itself: the target is let go, and the process ends.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use heap_limit::Heap;
use kd_target::{Leaver, Left};
use tokio::runtime::Handle;

use crate::console::{complain, remark_json};
use crate::debug::lock;
use crate::options::Format;
use crate::{COMMAND_FAILED, CONNECTION_LOST, keys, signals};

#[global_allocator]
static HEAP: Heap = Heap;

/// Longer than leaving takes.
const LEAVES_WITHIN: Duration = Duration::from_secs(15);

/// The threads that stand still may hold what the terminal is guarded by.
const TELLS_WITHIN: Duration = Duration::from_secs(1);

/// How the target is let go when there is one.
static SESSION: Mutex<Option<Session>> = Mutex::new(None);

struct Session {
    runtime: Handle,
    leaver: Leaver,
    format: Format,
}

/// From now on the process ends where it would hold more than `bytes`.
pub(crate) fn limit(bytes: usize) -> io::Result<()> {
    heap_limit::limit(bytes, move || end(bytes))
}

/// From now on there is a target, and it is let go first.
pub(crate) fn lets_go(runtime: &Handle, leaver: Leaver, format: Format) {
    *lock(&SESSION) = Some(Session { runtime: runtime.clone(), leaver, format });
}

/// Ends the process, on the guard's thread.
fn end(limit: usize) {
    // The session's own thread may go on, where it does not want more memory, and is not to tell another end.
    signals::set_ending();
    let session = lock(&SESSION).take();
    let left = session.as_ref().map(let_go);
    let why = format!(
        "kdpool would hold more than {} MiB of memory (--max-memory), and ends: ask for less at once, or allow more",
        limit >> 20
    );
    let status = if left.is_some() { CONNECTION_LOST } else { COMMAND_FAILED };
    let of_target = match left {
        None | Some(Some(Left::Unmet { break_ins: 0 })) => None,
        Some(Some(left)) => Some(left.to_string()),
        Some(None) => Some("The target may still stand.".to_owned()),
    };
    let lines: Vec<String> = [Some(why), of_target].into_iter().flatten().collect();
    let (told, is_told) = mpsc::channel();
    let json = session.is_some_and(|session| session.format == Format::Json);
    std::thread::spawn(move || {
        heap_limit::exempt_this_thread();
        keys::restore();
        lines.iter().for_each(|line| complain(line));
        if json {
            remark_json(&lines.join(" "));
        }
        // The other end waits, or has given up.
        let _ = told.send(());
    });
    // Whether it could be told or not.
    let _ = is_told.recv_timeout(TELLS_WITHIN);
    std::process::exit(status.into());
}

/// `None`: that did not come to an end.
fn let_go(session: &Session) -> Option<Left> {
    session.runtime.block_on(async { tokio::time::timeout(LEAVES_WITHIN, session.leaver.leave()).await.ok() })
}
