//! `k kb kv kc`: the stack of the current processor, or of the thread that `.thread` set.

use std::fmt;

use nt_unwind::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::registers::{self, Registers};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::stack::{self, DEFAULT_FRAMES, Frame, Stack, Walked};
use crate::text::Width;

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
    results: &[ResultShape::of::<Stack>("k")],
    action: Action::Answer(run),
};

pub(in crate::commands) const FRAME: CommandInfo = CommandInfo {
    names: &[".frame"],
    usage: ".frame [number]",
    help: "show one frame of the stack; $frame is its number",
    details: "",
    results: &[ResultShape::of::<OneFrame>("frame")],
    action: Action::Answer(frame),
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
    let state = state(context)?;
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

fn frame(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let number = match context.arguments.trim() {
        "" => context.session.frame,
        text if text.starts_with('/') => {
            return Err(usage(&FRAME, format!("'{text}': registers of frames are not kept; r shows the processor's")));
        }
        text => evaluate_all(text, &mut context.scope())?,
    };
    if number >= MAX_FRAMES {
        return Err(usage(&FRAME, format!("0 to {MAX_FRAMES:#x}")));
    }
    let state = state(context)?;
    let Walked { mut frames, notes, .. } = stack::walk(kernel, context.session, state, number + 1)?;
    if frames.len() as u64 <= number {
        let why = format!("Cannot find frame 0x{number:x}, previous scope unchanged; there are {:#x}", frames.len());
        return Err(CommandError::Failed(why));
    }
    context.session.frame = number;
    let one = OneFrame { number, width: context.width(), frame: frames.remove(number as usize) };
    Ok(Reply::with_notes(one, notes))
}

/// Of the thread that `.thread` chose, or of the current processor.
fn state(context: &mut Context<'_>) -> Result<State, CommandError> {
    match context.session.thread {
        Some(thread) => super::process::switched_out(context, thread),
        None => Ok(registers::state(&Registers::read(context.kernel()?)?)),
    }
}

#[derive(JsonSchema, Serialize)]
struct OneFrame {
    number: u64,
    #[serde(flatten)]
    frame: Frame,
    #[serde(skip)]
    width: Width,
}

impl Text for OneFrame {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{:02x} ", self.number)?;
        self.frame.line(out, self.width)
    }
}
