//! `x module!pattern`: symbols by name.
//!
//! ```text
//! fffff800`030821cc nt!ViCreateProcessCallback (<no parameter info>)
//! ```

use std::fmt;

use nt_symbols::SymbolKind;
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;
use crate::symbols::{qualified, short_name};
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["x"],
    usage: "x [/0|/1|/2] [/n|/a] [/v] module!pattern",
    help: "find symbols by name",
    details: "The pattern may have wildcards (* ?); case does not count. Without a module the kernel's symbols are \
              searched.\n/0 shows addresses alone, /1 names alone, /2 both; /a orders by address, /n by name; /v says \
              that they are public.",
    action: Action::Answer(run),
};

#[derive(Serialize)]
struct Matches {
    symbols: Vec<Match>,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    show: Show,
}

#[derive(Debug, Clone, Copy, Default)]
struct Show {
    /// `/0` is 1, `/1` is 2, `/2` both; nothing is all there is.
    columns: u8,
    by_name: bool,
    verbose: bool,
}

fn options(text: &str) -> Result<(Show, &str), CommandError> {
    let mut show = Show::default();
    let mut left = text;
    while let Some(option) = left.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        match option {
            "0" => show.columns = 1,
            "1" => show.columns = 2,
            "2" => show.columns = 3,
            "n" => show.by_name = true,
            "a" => show.by_name = false,
            "v" => show.verbose = true,
            _ => return Err(usage(&INFO, format!("unknown option '/{option}'"))),
        }
        left = rest.trim_start();
    }
    Ok((show, left))
}

#[derive(Serialize)]
struct Match {
    address: Hex,
    symbol: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (show, text) = options(context.arguments)?;
    let (module, pattern) = match text.split_once('!') {
        Some((module, pattern)) if !module.is_empty() => (module, pattern),
        Some((_, pattern)) => ("nt", pattern),
        None if text.is_empty() => return Err(usage(&INFO, "no pattern")),
        None => ("nt", text),
    };
    let kernel = context.kernel()?;
    let width = context.width();
    let mut names = context.names()?;
    let Some(driver) = names.driver_named(module)? else {
        return Err(CommandError::Failed(format!("Couldn't resolve 'x {text}': no module {module} (lm lists them)")));
    };
    let file = names.file(&driver)?;
    let module = short_name(&driver, kernel.base());
    let mut symbols: Vec<Match> = file
        .matching(pattern)
        .into_iter()
        .map(|symbol| Match {
            address: Hex(width.address(driver.base.wrapping_add(symbol.rva.into()))),
            symbol: qualified(&module, &symbol),
        })
        .collect();
    if symbols.is_empty() && file.kind() == SymbolKind::Exports {
        // It may be a name that only a symbol file has.
        return Err(no_symbols(names.missing(&driver)));
    }
    if show.by_name {
        symbols.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    }
    Ok(Reply::new(Matches { symbols, width, show }))
}

impl Text for Matches {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.symbols.iter().try_for_each(|Match { address, symbol }| {
            let address = self.width.tick(address.0);
            match self.show.columns {
                1 => writeln!(out, "{address}"),
                2 => writeln!(out, "{symbol}"),
                3 => writeln!(out, "{address} {symbol}"),
                _ if self.show.verbose => writeln!(out, "pub global {address}    0 {symbol} (<no parameter info>)"),
                _ => writeln!(out, "{address} {symbol} (<no parameter info>)"),
            }
        })
    }
}
