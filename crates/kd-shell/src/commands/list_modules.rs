//! `lm`: the loaded modules.
//!
//! ```text
//! start             end                 module name
//! fffff800`02a0e000 fffff800`03191000   nt         (pdb symbols)          /symbols/ntkrnlmp.pdb/…/ntkrnlmp.pdb
//! fffff880`04287000 fffff880`0428f000   myfault    (deferred)             
//! ```

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nt_memory::Fault;
use nt_symbols::{Glob, Image, ImageError, SymbolKind};
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::kernel::Kernel;
use crate::session::Context;
use crate::symbols::{Names, short_name};
use crate::text::{Hex, Width, visible_name};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["lm"],
    usage: "lm [v] [m pattern] [a address]",
    help: "list the loaded modules",
    details: "m: only modules whose name matches (* ?); a: only the one that holds the address; v: more about each. \
              lmvm nt is\nlm v m nt. Symbols are looked up when something needs them; until then a module is (deferred).",
    action: Action::Answer(run),
};

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ModuleList {
    modules: Vec<Module>,
    #[serde(skip)]
    verbose: bool,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Module {
    name: String,
    start: Hex,
    /// One past the last byte.
    end: Hex,
    file: String,
    symbols: Status,
    /// The file that the symbols come from.
    symbol_file: Option<String>,
    checksum: u32,
    /// With `v` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// With `v` only: seconds since 1970, or a hash of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Deferred,
    Pdb,
    #[serde(rename = "private pdb")]
    PrivatePdb,
    Export,
    None,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Self::Deferred => "(deferred)",
            Self::Pdb => "(pdb symbols)",
            Self::PrivatePdb => "(private pdb symbols)",
            Self::Export => "(export symbols)",
            Self::None => "(no symbols)",
        }
    }
}

struct Options<'a> {
    verbose: bool,
    pattern: Option<&'a str>,
    address: Option<&'a str>,
}

/// Letters, apart or glued (`vm nt`, `v m nt`), and an argument after `m` or `a`.
fn options(text: &str) -> Result<Options<'_>, CommandError> {
    let mut options = Options { verbose: false, pattern: None, address: None };
    let mut left = text.trim();
    while let Some(letter) = left.chars().next() {
        let after = left[letter.len_utf8()..].trim_start();
        match letter.to_ascii_lowercase() {
            'v' => options.verbose = true,
            // What is shown anyway, or ordered so.
            'k' | 'n' | 'o' | 's' | 'l' | 'f' => {}
            letter @ ('m' | 'a') => {
                let (argument, rest) = after.split_at(after.find(char::is_whitespace).unwrap_or(after.len()));
                if argument.is_empty() {
                    return Err(usage(&INFO, format!("nothing after '{letter}'")));
                }
                *(if letter == 'm' { &mut options.pattern } else { &mut options.address }) = Some(argument);
                left = rest.trim_start();
                continue;
            }
            letter => return Err(usage(&INFO, format!("option '{letter}' is not in this version"))),
        }
        left = after;
    }
    Ok(options)
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let options = options(context.arguments)?;
    let kernel = context.kernel()?;
    let width = kernel.width();
    let address = match options.address {
        Some(text) => Some(crate::grammar::expression::evaluate_all(text, &mut context.scope())?),
        None => None,
    };
    let mut names = Names::new(kernel, &mut context.session.symbols);
    let drivers = match address {
        Some(address) => names.driver_at(address)?.into_iter().collect(),
        None => names.drivers()?.drivers.clone(),
    };
    let notes = names.drivers()?.notes.clone();
    let pattern = options.pattern.map(Glob::new);
    let mut modules = Vec::new();
    for driver in drivers {
        let name = short_name(&driver, kernel.base());
        if pattern.as_ref().is_some_and(|pattern| !pattern.matches(&name)) {
            continue;
        }
        let known = context.session.symbols.known(kernel, &driver);
        let (symbols, symbol_file) = match known {
            None => (Status::Deferred, None),
            Some(None) => (Status::None, None),
            Some(Some(file)) => {
                let status = match file.kind() {
                    SymbolKind::PublicPdb => Status::Pdb,
                    SymbolKind::PrivatePdb => Status::PrivatePdb,
                    SymbolKind::Exports => Status::Export,
                };
                (status, Some(file.path().display().to_string()))
            }
        };
        let start = width.address(driver.base);
        let (path, timestamp) = match options.verbose {
            true => (kernel.driver_path(driver.base)?, timestamp(kernel, driver.base)?),
            false => (None, None),
        };
        modules.push(Module {
            name,
            start: Hex(start),
            end: Hex(width.address(start.wrapping_add(driver.size.into()))),
            file: driver.file,
            symbols,
            symbol_file,
            checksum: driver.checksum,
            path,
            timestamp,
        });
    }
    Ok(Reply::with_notes(ModuleList { modules, verbose: options.verbose, width }, notes))
}

/// From the image's header, which may be paged out.
fn timestamp(kernel: &dyn Kernel, base: u64) -> Result<Option<u32>, Fault> {
    match Image::read(kernel.memory(), base) {
        Ok(image) => Ok(Some(image.time_date_stamp)),
        Err(ImageError::Fault(fault)) => Err(fault),
        Err(_) => Ok(None),
    }
}

/// `Wed Jul  8 15:43:44 2015 (559DA7A0)`
fn when(timestamp: Option<u32>) -> String {
    let time = timestamp.and_then(|seconds| Timestamp::from_second(seconds.into()).ok());
    match (timestamp, time) {
        (Some(stamp), Some(time)) => {
            format!("{} ({stamp:08X})", time.to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Y"))
        }
        _ => "unavailable".into(),
    }
}

impl Text for ModuleList {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.width {
            Width::Eight => writeln!(out, "start             end                 module name")?,
            Width::Four => writeln!(out, "start    end        module name")?,
        }
        for module in &self.modules {
            let (start, end) = (self.width.tick(module.start.0), self.width.tick(module.end.0));
            let file = module.symbol_file.as_deref().unwrap_or_default();
            writeln!(out, "{start} {end}   {:<8}   {:<23}{file}", module.name, module.symbols.text())?;
            if self.verbose {
                let image = visible_name(&module.file);
                writeln!(out, "    Loaded symbol image file: {image}")?;
                if let Some(path) = &module.path {
                    writeln!(out, "    Image path: {}", visible_name(path))?;
                }
                writeln!(out, "    Image name: {image}")?;
                writeln!(out, "    Timestamp:        {}", when(module.timestamp))?;
                writeln!(out, "    CheckSum:         {:08X}", module.checksum)?;
                writeln!(out, "    ImageSize:        {:08X}", module.end.0.wrapping_sub(module.start.0))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(verbose: bool) -> ModuleList {
        let module = |name: &str, start, end, symbols, symbol_file: Option<&str>| Module {
            name: name.into(),
            start: Hex(start),
            end: Hex(end),
            file: format!("{name}.sys"),
            symbols,
            symbol_file: symbol_file.map(Into::into),
            checksum: 0xaa7491,
            path: None,
            timestamp: Some(0x559da7a0),
        };
        ModuleList {
            modules: vec![
                module("nt", 0xfffff80002a0e000, 0xfffff80003191000, Status::Pdb, Some("/s/ntkrnlmp.pdb")),
                module("volmgrx", 0xfffff80109200000, 0xfffff8010925f000, Status::None, None),
            ],
            verbose,
            width: Width::Eight,
        }
    }

    #[test]
    fn columns_are_kds() {
        let mut text = String::new();
        list(false).text(&mut text).unwrap();
        assert_eq!(
            text,
            "start             end                 module name\n\
             fffff800`02a0e000 fffff800`03191000   nt         (pdb symbols)          /s/ntkrnlmp.pdb\n\
             fffff801`09200000 fffff801`0925f000   volmgrx    (no symbols)           \n"
        );
        let mut text = String::new();
        list(true).text(&mut text).unwrap();
        assert!(text.contains("    CheckSum:         00AA7491\n    ImageSize:        00783000\n"));
    }

    #[test]
    fn options_may_be_glued() {
        let parsed = |text| options(text).map(|o| (o.verbose, o.pattern.map(String::from))).ok();
        assert_eq!(parsed(""), Some((false, None)));
        assert_eq!(parsed("vm nt"), Some((true, Some("nt".into()))));
        assert_eq!(parsed("m nt*"), Some((false, Some("nt*".into()))));
        assert_eq!(parsed("v m nt"), Some((true, Some("nt".into()))));
        assert_eq!(parsed("m"), None);
        assert_eq!(parsed("z"), None);
    }
}
