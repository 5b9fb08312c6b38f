//! `ln address`: the symbols around an address.
//!
//! ```text
//! (fffff800`01489f60)   nt!RtlpBreakWithStatusInstruction   |  (fffff800`01489f70)   nt!KiBreakpoint
//! Exact matches:
//!     nt!RtlpBreakWithStatusInstruction = <no type information>
//! ```

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::qualified;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["ln"],
    usage: "ln address",
    help: "the symbols nearest to an address",
    details: "",
    results: &[ResultShape::of::<Nearest>("ln")],
    action: Action::Answer(run),
};

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Nearest {
    address: Hex,
    /// The last symbol at or before the address; `null` outside all modules. A module without symbols is its own.
    before: Option<Named>,
    after: Option<Named>,
    exact: bool,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Named {
    symbol: String,
    address: Hex,
    /// Bytes from this symbol to the address; 0 for the symbol after it.
    offset: u64,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let width = context.width();
    let address = width.address(evaluate_all(context.arguments, &mut context.scope())?);
    let near = context.names()?.near(address)?;
    let (before, after) = match near {
        Some(near) => {
            let base = width.address(near.base);
            let place = |symbol: &nt_symbols::Symbol| base.wrapping_add(symbol.rva.into());
            let before = match &near.before {
                Some(symbol) => (qualified(&near.module, symbol), place(symbol)),
                None => (near.module.clone(), base),
            };
            let before = Named { symbol: before.0, address: Hex(before.1), offset: address.wrapping_sub(before.1) };
            let after = near.after.as_ref().map(|symbol| Named {
                symbol: qualified(&near.module, symbol),
                address: Hex(place(symbol)),
                offset: 0,
            });
            (Some(before), after)
        }
        None => (None, None),
    };
    let exact = before.as_ref().is_some_and(|before| before.offset == 0);
    Ok(Reply::new(Nearest { address: Hex(address), before, after, exact, width }))
}

impl Text for Nearest {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Some(before) = &self.before else { return Ok(()) };
        write!(out, "({})   {}", self.width.tick(before.address.0), before.symbol)?;
        if before.offset != 0 {
            write!(out, "+{:#x}", before.offset)?;
        }
        match &self.after {
            Some(after) => writeln!(out, "   |  ({})   {}", self.width.tick(after.address.0), after.symbol)?,
            None => writeln!(out)?,
        }
        match self.exact {
            true => writeln!(out, "Exact matches:\n    {} = <no type information>", before.symbol),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_symbols() {
        let nearest = Nearest {
            address: Hex(0x9a3bf6ac),
            before: Some(Named {
                symbol: "MyDriver!DeviceControlDispatch".into(),
                address: Hex(0x9a3bf660),
                offset: 0x4c,
            }),
            after: Some(Named { symbol: "MyDriver!GetNecessaryObjects".into(), address: Hex(0x9a3bf6d0), offset: 0 }),
            exact: false,
            width: Width::Four,
        };
        let mut text = String::new();
        nearest.text(&mut text).unwrap();
        assert_eq!(
            text,
            "(9a3bf660)   MyDriver!DeviceControlDispatch+0x4c   |  (9a3bf6d0)   MyDriver!GetNecessaryObjects\n"
        );
    }
}
