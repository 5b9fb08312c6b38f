//! `x module!pattern`: symbols by name.
//!
//! ```text
//! fffff800`030821cc nt!ViCreateProcessCallback (<no parameter info>)
//! ```

use std::fmt;

use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;
use crate::symbols::{qualified, short_name};
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["x"],
    usage: "x module!pattern",
    help: "find symbols by name",
    details: "The pattern may have wildcards (* ?); case does not count. Without a module the kernel's symbols are searched.",
    action: Action::Answer(run),
};

#[derive(Serialize)]
struct Matches {
    symbols: Vec<Match>,
    #[serde(skip)]
    width: Width,
}

#[derive(Serialize)]
struct Match {
    address: Hex,
    symbol: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments;
    if let Some(option) = text.strip_prefix('/') {
        let option = option.split_whitespace().next().unwrap_or_default();
        return Err(usage(&INFO, format!("option '/{option}' is not in this version")));
    }
    let (module, pattern) = match text.split_once('!') {
        Some((module, pattern)) if !module.is_empty() => (module, pattern),
        Some((_, pattern)) => ("nt", pattern),
        None if text.is_empty() => return Err(usage(&INFO, "no pattern")),
        None => ("nt", text),
    };
    let kernel = context.kernel()?;
    let width = context.width();
    if module.eq_ignore_ascii_case("nt") {
        // Says why when there are none.
        context.session.symbols.nt(kernel).map_err(crate::session::no_symbols)?;
    }
    let mut names = context.names()?;
    let Some(driver) = names.driver_named(module)? else {
        return Err(CommandError::Failed(format!("Couldn't resolve 'x {text}': no module {module} (lm lists them)")));
    };
    let Some(file) = names.file(&driver)? else {
        return Err(CommandError::Failed(format!("Couldn't resolve 'x {text}': no symbols of {module}")));
    };
    let module = short_name(&driver, kernel.base());
    let symbols = file
        .matching(pattern)
        .into_iter()
        .map(|symbol| Match {
            address: Hex(width.address(driver.base.wrapping_add(symbol.rva.into()))),
            symbol: qualified(&module, &symbol),
        })
        .collect();
    Ok(Reply::new(Matches { symbols, width }))
}

impl Text for Matches {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.symbols.iter().try_for_each(|Match { address, symbol }| {
            writeln!(out, "{} {symbol} (<no parameter info>)", self.width.tick(address.0))
        })
    }
}
