//! Processes and threads: `!process`, `!thread`, `.process`, `.thread`.
//!
//! ```text
//! **** NT ACTIVE PROCESS DUMP ****
//! PROCESS ffffe0007bbde900
//!     SessionId: 1  Cid: 0f34    Peb: 7ff72dfa7000  ParentCid: 0c64
//!     DirBase: 19c5fa000  ObjectTable: ffffc001d8c2f300  HandleCount:  31.
//!     Image: cmd.exe
//! ```

mod row;
mod thread;
mod types;

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use self::row::{Processes, STACKS, process};
use self::thread::add_stack;
pub(in crate::commands) use self::thread::{SET_THREAD, THREAD, switched_out};
use self::types::types;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate, evaluate_all};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};
use crate::translation::current_process;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!process"],
    usage: "!process [address | id | -1 | 0 [flags [image]]]",
    help: "show processes",
    details: "!process 0 0 lists all of them, !process 0 0 name.exe those with that image; without an argument the current \
              one is shown,\nas with -1. An id is a process's number (!process 4). Flag 1 shows times, quotas and sizes, 4 threads, 2 threads with what they wait \
              for, 6 and 7\nalso their stacks (of waiting threads on x64).",
    results: &[ResultShape::of::<Processes>("process")],
    action: Action::Answer(run),
};

pub(in crate::commands) const SET_PROCESS: CommandInfo = CommandInfo {
    names: &[".process"],
    usage: ".process [/p] [/r] [address]",
    help: "choose the process whose user memory is read",
    details: "d*, dt, da, s, u, poi() and e* read and write addresses of user memory through its\n\
              page tables; $proc and !pte mean it. /p and /r are accepted, and change nothing:\n\
              no translation is kept that would have to be dropped. 0 goes back to the\n\
              current process; so does letting the target run.",
    results: &[ResultShape::of::<Implicit>("context")],
    action: Action::Answer(set_process),
};

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let (address, left) = match text {
        "" => (u64::MAX, ""),
        text => evaluate(text, &mut context.scope())?,
    };
    let mut words = left.split_whitespace();
    let flags = match words.next() {
        Some(word) => evaluate_all(word, &mut context.scope())?,
        // One process is shown with its threads, all of them without.
        None if address == 0 => 3,
        None => 1,
    };
    let image = words.next();
    let kernel = context.kernel()?;
    let width = context.width();
    let types = types(context)?;
    let mut notes = Vec::new();
    let all = address == 0;
    let addresses = match width.address(address) {
        0 => types.processes(kernel, &mut notes)?,
        _ if address == u64::MAX => vec![current_process(kernel, &mut context.session.symbols)?],
        // What is no address of the kernel's is a process's number.
        id if !width.is_kernel(id) => types.with_id(kernel, id, &mut notes)?,
        address => vec![address],
    };
    let mut processes = Vec::new();
    let mut remarks = Vec::new();
    for address in addresses {
        let Some(mut process) = process(&types, address, !all, flags, image, &mut notes)? else { continue };
        if flags & STACKS == STACKS {
            for thread in &mut process.threads {
                add_stack(context, thread, &mut notes, &mut remarks)?;
            }
        }
        processes.push(process);
    }
    remarks.dedup();
    let mut reply = Reply::with_notes(Processes { processes, all, width }, notes);
    reply.remarks = remarks;
    Ok(reply)
}

/// A process, and one of its threads when these are wanted.
type Running = (u64, Option<u64>);

/// All processes, and with `of_threads` all of their threads; notes on what is missing.
pub(in crate::commands) fn addresses(
    context: &mut Context<'_>,
    of_threads: bool,
) -> Result<(Vec<Running>, Vec<String>), CommandError> {
    let kernel = context.kernel()?;
    let types = types(context)?;
    let mut notes = Vec::new();
    let processes = types.processes(kernel, &mut notes)?;
    if !of_threads {
        return Ok((processes.into_iter().map(|process| (process, None)).collect(), notes));
    }
    let (head, link) = (types.offset("_EPROCESS", "ThreadListHead")?, types.offset("_ETHREAD", "ThreadListEntry")?);
    let mut found = Vec::new();
    for process in processes {
        let threads = types.list(process.wrapping_add(head), link, &mut notes)?;
        found.extend(threads.into_iter().map(|thread| (process, Some(thread))));
    }
    Ok((found, notes))
}

#[derive(JsonSchema, Serialize)]
struct Implicit {
    what: &'static str,
    address: Hex,
    #[serde(skip)]
    width: Width,
}

fn set_process(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let mut text = context.arguments.trim();
    while let Some(option) = text.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        match option {
            // Which translations the debugger uses, and user symbols: nothing is kept that would have to be dropped.
            "p" | "r" | "P" => {}
            other => return Err(usage(&SET_PROCESS, format!("unknown option '/{other}'"))),
        }
        text = rest.trim_start();
    }
    let width = context.width();
    if !text.is_empty() {
        let address = width.address(evaluate_all(text, &mut context.scope())?);
        context.session.process = (address != 0).then_some(address);
    }
    let address = match context.session.process {
        Some(address) => address,
        None => current_process(kernel, &mut context.session.symbols)?,
    };
    Ok(Reply::new(Implicit { what: "process", address: Hex(address), width }))
}

impl Text for Implicit {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Implicit {} is now {}", self.what, self.width.tick(self.address.0))
    }
}

fn number(value: Option<u64>, digits: usize) -> String {
    value.map_or("????".into(), |value| format!("{value:0digits$x}"))
}
