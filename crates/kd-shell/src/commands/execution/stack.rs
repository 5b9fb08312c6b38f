//! `k kb kv kc`: the stack of the current processor, or of the thread that `.thread` set.

use crate::answer::Reply;
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::registers::{self, Registers};
use crate::session::Context;
use crate::stack::{self, DEFAULT_FRAMES, Stack, Walked};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["k", "kn", "kb", "kv", "kbn", "kvn", "kc", "kcn", "kl", "kp"],
    usage: "k|kb|kv|kc [frames]",
    help: "show the stack: with arguments (b, v), names only (c)",
    details: "Frames are numbered, as in today's kd; kn is k. On x64 frames are found through the unwind data of the images, read from the\n\
              target's memory or, where its pages are not there, from the image's file along\n\
              the symbol path; on x86 and ARM64 along the chain of frame pointers. On x64 the\n\
              arguments are what stands in their home places, which is not always an\n\
              argument. The number of frames may be written\n\
              k 5 or k L5.",
    action: Action::Answer(run),
};

const MAX_FRAMES: u64 = 0xffff;

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let count = match context.arguments.trim() {
        "" => DEFAULT_FRAMES,
        text => {
            let text = text.strip_prefix(['l', 'L']).unwrap_or(text);
            evaluate_all(text, &mut context.scope())?
        }
    };
    if !(1..=MAX_FRAMES).contains(&count) {
        return Err(usage(&INFO, format!("1 to {MAX_FRAMES:#x} frames")));
    }
    let width = context.width();
    let word = context.word;
    let of_thread = context.session.thread.is_some();
    let state = match context.session.thread {
        Some(thread) => super::process::switched_out(context, thread)?,
        None => registers::state(&Registers::read(kernel)?),
    };
    let Walked { frames, notes, remarks } = stack::walk(kernel, context.session, state, count)?;
    let stack = Stack {
        frames,
        numbers: true,
        arguments: word.contains(['b', 'v']),
        names_only: word.contains('c'),
        width,
        of_thread,
    };
    Ok(Reply { remarks, ..Reply::with_notes(stack, notes) })
}
