//! Commands that let the target run, stop it, or end the session.

use crate::command::{Action, CommandInfo, Control};
use crate::schema::ResultShape;
use crate::shell::Stopped;

pub(in crate::commands) const GO: CommandInfo = CommandInfo {
    names: &["g", "gc"],
    usage: "g",
    help: "let the target run",
    details: "What follows on its line or in its script is run as in kd: the first command that\n\
              needs the target to stand still waits until it has stopped, by itself or by\n\
              Ctrl+C. That holds for -c, -cf, $<file and what is typed. .sleep, .break, .echo\n\
              and q need no target that stands: g; .sleep 0n1000; .break runs it for a second.",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Go),
};

pub(in crate::commands) const BREAK: CommandInfo = CommandInfo {
    names: &[".break"],
    usage: ".break",
    help: "break in and wait until the target stands still",
    details: "At a terminal Ctrl+C does the same. In a loop (.for, .while, .foreach), when the target stands still already, it \
              ends the loop, as kd's .break does.",
    results: &[ResultShape::of::<Stopped>("stop"), ResultShape::NOTHING],
    action: Action::Control(Control::Break),
};

pub(in crate::commands) const CONTINUE: CommandInfo = CommandInfo {
    names: &[".continue"],
    usage: ".continue",
    help: "go on with a loop's next round",
    details: "",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Continue),
};

pub(in crate::commands) const LEAVE: CommandInfo = CommandInfo {
    names: &[".leave"],
    usage: ".leave",
    help: "go on behind the .catch that this stands in",
    details: ".catch { commands } keeps what is refused in it from dropping the rest of the line.",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Leave),
};

pub(in crate::commands) const REPEAT: CommandInfo = CommandInfo {
    names: &["z"],
    usage: "commands; z (expression)",
    help: "run the line again from its start while the expression is not 0",
    details: "",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Repeat),
};

pub(in crate::commands) const WAIT: CommandInfo = CommandInfo {
    names: &[".wait"],
    usage: ".wait [milliseconds]",
    help: "wait until the target stops by itself",
    details: "Without a time it waits for ever; Ctrl+C ends the wait. The number is hexadecimal unless prefixed (0n1000).",
    results: &[ResultShape::of::<Stopped>("stop")],
    action: Action::Control(Control::Wait),
};

pub(in crate::commands) const SLEEP: CommandInfo = CommandInfo {
    names: &[".sleep"],
    usage: ".sleep milliseconds",
    help: "wait",
    details: "The number is hexadecimal unless prefixed: .sleep 0n1000 waits a second.",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Sleep),
};

pub(in crate::commands) const REBOOT: CommandInfo = CommandInfo {
    names: &[".reboot"],
    usage: ".reboot",
    help: "restart the target's machine",
    details: "At once, and without asking its programs. Only when changing the target is allowed\n(.allow_write on).",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Reboot),
};

pub(in crate::commands) const CRASH: CommandInfo = CommandInfo {
    names: &[".crash"],
    usage: ".crash",
    help: "make the target crash (bugcheck 0xE2), so that it writes its dump",
    details: "It stops at the bugcheck first; g lets it write the dump and restart. Only when\nchanging the target is allowed \
              (.allow_write on).",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Crash),
};

pub(in crate::commands) const QUIT: CommandInfo = CommandInfo {
    names: &["q", "qd", "qq"],
    usage: "q [-halted]",
    help: "end the session; the target runs on",
    details: "This differs from kd, whose q leaves the target frozen. q -halted does that: the target stands still until \
              another debugger comes.",
    results: &[ResultShape::NOTHING],
    action: Action::Control(Control::Quit),
};
