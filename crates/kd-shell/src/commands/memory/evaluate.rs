//! `? expression`
//!
//! ```text
//! Evaluate expression: 613867303176 = 0000008e`ed57b108
//! ```

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["?"],
    usage: "? expression",
    help: "evaluate a MASM expression",
    details: "Numbers are hexadecimal unless prefixed (0n decimal, 0t octal, 0y binary). Names are symbols (nt!Foo) or \
              registers (@rip);\npoi(), qwo(), dwo(), wo() and by() read memory. Without an argument this is .help.",
    results: &[ResultShape::of::<Value>("evaluate")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Value {
    value: Hex,
    /// Signed, as kd prints it; a string since it may pass 2^53.
    decimal: String,
    #[serde(skip)]
    width: Width,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.is_empty() {
        return (context.commands.help)(context.commands, "", context.session.columns);
    }
    let value = evaluate_all(context.arguments, &mut context.scope())?;
    context.session.last_value = value;
    let width = context.width();
    let signed = match width {
        Width::Four => i64::from(value as i32),
        Width::Eight => value as i64,
    };
    Ok(Reply::new(Value { value: Hex(width.address(value)), decimal: signed.to_string(), width }))
}

impl Text for Value {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Evaluate expression: {} = {}", self.decimal, self.width.tick(self.value.0))
    }
}
