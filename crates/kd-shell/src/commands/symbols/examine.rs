//! `x module!pattern`: symbols by name.
//!
//! ```text
//! fffff800`030821cc nt!ViCreateProcessCallback (<no parameter info>)
//! ```

use std::fmt;

use nt_symbols::{Glob, SymbolFile};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::kernel::{Driver, Kernel};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::{NoSymbols, qualified, short_name};
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["x"],
    usage: "x [/0|/1|/2] [/n|/N|/a|/A] [/v] [/q] module!pattern",
    help: "find symbols by name",
    details: "The pattern may have wildcards (* ? [a-c] # +), and so may the module; case does not count. Without a module \
              the\nkernel's symbols are searched. /0 shows addresses alone, /1 names alone, /2 both; /a orders by address, \
              /n by name, in\ncapitals the other way; /v says that they are public; /q puts names between quotes. /t /s \
              /d /f /p /z /Z /D change\nnothing: public symbols have neither type nor size.",
    results: &[ResultShape::of::<Matches>("x")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
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
    reversed: bool,
    verbose: bool,
    quoted: bool,
}

/// How it is shown, the options that have no effect, and the pattern.
fn options(text: &str) -> Result<(Show, Vec<&str>, &str), CommandError> {
    let (mut show, mut idle) = (Show::default(), Vec::new());
    let mut left = text;
    while let Some(option) = left.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        match option {
            "0" => show.columns = 1,
            "1" => show.columns = 2,
            "2" => show.columns = 3,
            "n" | "N" => (show.by_name, show.reversed) = (true, option == "N"),
            "a" | "A" => (show.by_name, show.reversed) = (false, option == "A"),
            "v" => show.verbose = true,
            "q" => show.quoted = true,
            // Links to click on.
            "D" => {}
            "t" | "s" | "d" | "f" | "p" | "z" | "Z" => idle.push(option),
            _ => return Err(usage(&INFO, format!("unknown option '/{option}'"))),
        }
        left = rest.trim_start();
    }
    Ok((show, idle, left))
}

#[derive(JsonSchema, Serialize)]
struct Match {
    address: Hex,
    symbol: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (show, idle, text) = options(context.arguments)?;
    let (module, pattern) = match text.split_once('!') {
        Some((module, pattern)) if !module.is_empty() => (module, pattern),
        Some((_, pattern)) => ("nt", pattern),
        None if text.is_empty() => return Err(usage(&INFO, "no pattern")),
        None => ("nt", text),
    };
    let kernel = context.kernel()?;
    let width = context.width();
    let mut names = context.names()?;
    let mut symbols = match Glob::is_pattern(module) {
        false => {
            let Some(driver) = names.driver_named(module)? else {
                let why = format!("Couldn't resolve 'x {text}': no module {module} (lm lists them)");
                return Err(CommandError::Failed(why));
            };
            let file = names.file(&driver)?;
            matches(kernel, &driver, file.as_ref(), pattern)
        }
        true => {
            let mut found = Vec::new();
            let modules = Glob::new(module);
            for driver in names.drivers()?.drivers.clone() {
                if !modules.matches(&short_name(&driver, kernel.base())) {
                    continue;
                }
                match names.file(&driver) {
                    Ok(file) => found.extend(matches(kernel, &driver, file.as_ref(), pattern)),
                    Err(NoSymbols::Missing(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            found
        }
    };
    match show.by_name {
        true => symbols.sort_by(|a, b| a.symbol.cmp(&b.symbol)),
        false => symbols.sort_by_key(|symbol| symbol.address),
    }
    if show.reversed {
        symbols.reverse();
    }
    let mut reply = Reply::new(Matches { symbols, width, show });
    if !idle.is_empty() {
        let options = idle.iter().map(|option| format!("/{option}")).collect::<Vec<_>>().join(" ");
        reply.remarks.push(format!("{options} changed nothing: public symbols have neither type nor size."));
    }
    Ok(reply)
}

fn matches(kernel: &dyn Kernel, driver: &Driver, file: &dyn SymbolFile, pattern: &str) -> Vec<Match> {
    let module = short_name(driver, kernel.base());
    let symbols = file.matching(pattern).into_iter();
    let place = |rva: u32| kernel.width().address(driver.base.wrapping_add(rva.into()));
    symbols.map(|symbol| Match { address: Hex(place(symbol.rva)), symbol: qualified(&module, &symbol) }).collect()
}

impl Text for Matches {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.symbols.iter().try_for_each(|Match { address, symbol }| {
            let address = self.width.tick(address.0);
            let quoted = self.show.quoted.then(|| format!("@!\"{symbol}\""));
            let symbol = quoted.as_ref().unwrap_or(symbol);
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
