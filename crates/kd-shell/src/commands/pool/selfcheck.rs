//! `.selfcheck`: what the kernel counts twice, compared on this machine.

use std::path::PathBuf;
use std::time::Duration;

use nt_memory::Fault;
use nt_pool::selfcheck::{SelfCheck, State};

use crate::answer::Reply;
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::unquoted;
use crate::schema::ResultShape;
use crate::selfcheck::{About, SelfCheckReport};
use crate::shell::Drive;
use crate::text::words;
use crate::vertarget::{machine, windows};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".selfcheck"],
    usage: ".selfcheck [-file FILE] [-addresses] [-requests N]",
    help: "compare what the kernel counts twice, and say where kdpool's picture of it is wrong",
    details: "Module list, tag counters, large allocations, what holds small blocks, and the\n\
              verifier's books are each compared with a second witness. It asks at most 500\n\
              times (-requests, decimal). A target that runs is stopped for one part at a\n\
              time and runs in between; one that stands is not let go.\n\
              -file writes JSON for a bug report: sizes, offsets, counts and a few header\n\
              words; no contents of blocks, no tags, no names, no key. -addresses adds where\n\
              something differs, as a distance from the kernel's image. kdpool selfcheck FILE\n\
              shows such a file. docs/selfcheck.md says what each line means.",
    results: &[ResultShape::of::<SelfCheckReport>("selfcheck")],
    action: Action::Drive(run),
};

/// Requests that nobody needs to be asked about.
const REQUESTS: u64 = 500;

/// How long a target that ran runs between two parts.
const BREATH: Duration = Duration::from_millis(100);

struct Arguments {
    file: Option<PathBuf>,
    addresses: bool,
    requests: u64,
}

fn arguments(text: &str) -> Result<Arguments, CommandError> {
    let mut arguments = Arguments { file: None, addresses: false, requests: REQUESTS };
    let mut words = words(text);
    while let Some(word) = words.next() {
        match word {
            "-addresses" => arguments.addresses = true,
            "-file" => {
                let file = words.next().map(unquoted).filter(|file| !file.is_empty());
                arguments.file = Some(file.ok_or_else(|| usage(&INFO, "-file needs a file's name"))?.into());
            }
            "-requests" => {
                let number = words.next().and_then(|word| word.parse().ok().or_else(|| plain_number(word)));
                arguments.requests =
                    number.filter(|number| *number > 0).ok_or_else(|| usage(&INFO, "-requests needs a number"))?;
            }
            other => return Err(usage(&INFO, format!("unknown option '{other}'"))),
        }
    }
    Ok(arguments)
}

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let arguments = arguments(drive.arguments)?;
    let ran = !drive.is_halted();
    if ran {
        drive.break_in()?;
    }
    let mut check = SelfCheck::new(arguments.requests);
    let outcome = parts(drive, &mut check, ran);
    let about = drive.with(|context| {
        let version = context.kernel()?.version();
        Ok::<_, CommandError>(About {
            windows: windows(version.minor),
            build: version.minor,
            machine: machine(version),
        })
    });
    let report = about.and_then(|about| {
        drive.with(|context| {
            context.pool(|kernel| {
                Ok(SelfCheckReport::new(&about, &check, arguments.requests, kernel, arguments.addresses))
            })
        })
    });
    if ran && drive.is_halted() {
        drive.go()?;
    }
    outcome?;
    let report = report?;
    let mut reply = Reply::new(report.clone());
    reply.complete = check.state() != State::Differs;
    if let Some(file) = &arguments.file {
        report.write(file).map_err(CommandError::Failed)?;
        reply.remarks.push(format!("Written to {}.", file.display()));
    }
    Ok(reply)
}

/// One part after the other. The user may end it: the parts so far are an answer.
fn parts(drive: &mut Drive<'_>, check: &mut SelfCheck, ran: bool) -> Result<(), CommandError> {
    loop {
        match drive.with(|context| context.pool(|kernel| check.step(kernel))) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(CommandError::Fault(Fault::Cancelled)) if !check.parts.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        }
        if ran {
            drive.go()?;
            if !drive.run_for(BREATH)? {
                drive.break_in()?;
            }
        }
    }
}
