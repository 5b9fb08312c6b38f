//! `?? expression`: C++ expressions.

use crate::answer::Reply;
use crate::command::{Action, CommandInfo, usage};
use crate::cpp;
use crate::cpp::Typed;
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["??"],
    usage: "?? expression",
    help: "evaluate a C++ expression",
    details: "Decimal and 0x numbers, sizeof(type), #FIELD_OFFSET(type, member), (type*)address, *(type*)address, \
              ((type*)address)->member.member and @$proc->member;\n@@masm(...) or @@(...) for what ? takes. In ?, \
              @@c++(...) or @@(...) is what ?? takes.",
    results: &[ResultShape::of::<Typed>("typed")],
    action: Action::Answer(run),
};

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.trim().is_empty() {
        return Err(usage(&INFO, "no expression"));
    }
    let text = context.arguments;
    let (typed, notes) = cpp::evaluate(&mut context.scope(), text)?;
    Ok(Reply::with_notes(typed, notes))
}
