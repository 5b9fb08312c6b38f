//! `!verifier`: what Driver Verifier is set to, what it watches, and its logs.

use nt_pool::Notes;

use crate::answer::{Answer, Reply};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::schema::ResultShape;
use crate::session::Context;

mod help;
mod logs;
mod options;
mod overview;
mod pool_log;
mod stacks;
mod watch;

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!verifier"],
    usage: "!verifier [flags [image] [-old] | log [quantity | address] [options] | ?]",
    help: "Driver Verifier: settings, verified drivers and what they have allocated, logs with call stacks",
    details: "\
Flags: 0 settings and statistics, 1 verified drivers, 3 also their outstanding allocations; an image restricts these to
one driver; -old shows them as Windows 7's debugger did. Logs: 4 injected faults, 8 IRQL transitions, 0x40 forced-pending IRPs, 0x80 pool, 0x100 IRPs, 0x200 critical
regions, 0x400 cancelled IRPs that are watched; newest first, with a quantity or with an address (of a block, an IRP or
a thread); 0x80 with a module's name is -driver. Other sums of flags show each part in turn.
Options of 0x80: -since INDEX (what was written after that; JSON has the index), -tag TAG (of large blocks and of
verified drivers' blocks that have the tag now, and of freed large blocks while the kernel's table still shows them: the
log holds no tags), -driver MODULE (anywhere on the stack), -op alloc|free, -outstanding (allocations without a
later free), -group (by stack, with counts and bytes), -timeline ADDRESS (oldest first), -full (an address: read every
record, which also finds larger blocks that begin far below), -calls (the calls and not where they return to).
A stack is no proof of who owns a block now: the log keeps old records of an address too. The newest is at the top.",
    results: &[ResultShape::of::<overview::Overview>("verifier"), ResultShape::of::<pool_log::PoolLogAnswer>("verifier-log"), ResultShape::of::<logs::EntryLog>("verifier-logs"), ResultShape::of::<help::Help>("verifier-help")],
    action: Action::Answer(run),
};

/// What is to be known about an answer, gathered while it is made.
#[derive(Default)]
struct Known {
    /// What could not be read.
    notes: Notes,
    remarks: Vec<String>,
}

impl Known {
    /// Notes that a part of the answer is missing; an error that concerns all of it stays one.
    fn missing(&mut self, what: &str, error: CommandError) -> Result<(), CommandError> {
        self.notes.missing(format!("{what}: {}", error.part()?));
        Ok(())
    }

    fn reply(self, answer: impl Answer + 'static) -> Reply {
        Reply { remarks: self.remarks, ..Reply::with_notes(answer, self.notes) }
    }
}

/// The layout of Windows 7's debugger.
const OLD_LAYOUT: &str = "-old";

/// The parts of an answer, by kd's flags. Those from 4 on are logs.
const DRIVERS: u64 = 0x1;
const ALLOCATIONS: u64 = 0x2;
const POOL_LOG: u64 = 0x80;
const LOGS: [u64; 9] = [0x4, 0x8, 0x20, 0x40, POOL_LOG, 0x100, 0x200, 0x400, 0x800];
/// 0x10 is mentioned in kd's documentation and not described; it shows nothing.
const ALL: u64 = 0xfff;

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let words: Vec<&str> = context.arguments.split_whitespace().collect();
    let old = words.contains(&OLD_LAYOUT);
    let text = match old {
        true => words.into_iter().filter(|word| *word != OLD_LAYOUT).collect::<Vec<_>>().join(" "),
        false => context.arguments.to_string(),
    };
    let (flags, argument) = match text.split_once(char::is_whitespace) {
        Some((flags, argument)) => (flags, argument.trim()),
        None => (text.as_str(), ""),
    };
    let flags = match flags {
        "" => 0,
        "?" => return Ok(help::reply()),
        "-disable" => {
            return Err(CommandError::Failed(
                "!verifier -disable would write to the target's memory, which kdpool does not do; on the target: \
                 verifier /volatile /flags 0, or verifier /reset and a restart"
                    .into(),
            ));
        }
        text => plain_number(text).ok_or_else(|| usage(&INFO, format!("the flags are a number, not '{text}'")))?,
    };
    if flags & !ALL != 0 {
        return Err(usage(&INFO, format!("unknown flags {:#x}", flags & !ALL)));
    }
    if old && LOGS.contains(&flags) {
        return Err(usage(&INFO, format!("{OLD_LAYOUT} is for the settings and drivers; the logs have one layout")));
    }
    match flags {
        POOL_LOG => pool_log::reply(context, argument),
        log if LOGS.contains(&log) => logs::reply(context, log, argument),
        flags => overview::reply(context, flags, argument, old),
    }
}
