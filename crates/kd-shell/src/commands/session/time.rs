//! `.time`: the target's clock and how long it has been up.

use super::vertarget::Times;
use crate::answer::Reply;
use crate::command::{Action, CommandInfo};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".time"],
    usage: ".time",
    help: "the target's time and uptime",
    details: "",
    action: Action::Answer(|context| Ok(Reply::new(Times::read(context)?))),
};
