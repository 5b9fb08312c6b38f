//! `lm`: the loaded modules.
//!
//! ```text
//! start             end                 module name
//! fffff800`02a0e000 fffff800`03191000   nt         (pdb symbols)          /symbols/ntkrnlmp.pdb/…/ntkrnlmp.pdb
//! fffff880`04287000 fffff880`0428f000   myfault    (deferred)             
//!
//! Unloaded modules:
//! fffff880`04297000 fffff880`0429f000   dump_ata.sys
//! ```

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nt_memory::Fault;
use nt_pool::Notes;
use nt_symbols::{Glob, Image, ImageError, SymbolKind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::kernel::{Driver, Kernel};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::{Names, short_name};
use crate::text::{Hex, Width, visible_name};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["lm"],
    usage: "lm [v] [f|n|t] [sm] [o] [l] [e] [k] [u] [m pattern] [a address]",
    help: "list the loaded modules, and those that were unloaded",
    details: "m: only modules whose name matches (* ?); a: only the one that holds the address; v: more about each; f: where \
              the image is;\nn: its name; t: its time (lm t n); sm: ordered by name; o: without the unloaded ones; l: with \
              symbols; e: without symbols\nalthough they were looked for; k: the kernel's (all are); u: those of user mode \
              (none). lmvm nt is lm v m nt, lmD the list\nwith links, which a console has not. Symbols are looked up when \
              something needs them; until then a module is (deferred).\nUnloaded modules are known when the kernel's \
              symbols are loaded.",
    results: &[ResultShape::of::<ModuleList>("lm")],
    action: Action::Answer(run),
};

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct ModuleList {
    modules: Vec<Module>,
    /// The last one first.
    unloaded: Vec<Unloaded>,
    #[serde(skip)]
    verbose: bool,
    #[serde(skip)]
    columns: Columns,
    #[serde(skip)]
    width: Width,
}

/// What a line has in place of the symbols: `f`, `n` and `t`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Columns {
    path: bool,
    image: bool,
    time: bool,
}

impl Columns {
    fn any(self) -> bool {
        self.path || self.image || self.time
    }
}

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Module {
    name: String,
    start: Hex,
    /// One past the last byte.
    end: Hex,
    file: String,
    symbols: Status,
    /// The symbols belong to another build of the module.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mismatched: bool,
    /// The file that the symbols come from.
    symbol_file: Option<String>,
    checksum: u32,
    /// With `v` and `f` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// With `v` and `t` only: seconds since 1970, or a hash of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u32>,
    /// With `v` only: the time stamp is a hash of the build (`/Brepro`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reproducible: bool,
}

#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
struct Unloaded {
    file: String,
    start: Hex,
    end: Hex,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
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

#[derive(Default)]
struct Options<'a> {
    verbose: bool,
    columns: Columns,
    by_name: bool,
    links: bool,
    loaded_only: bool,
    with_symbols: bool,
    with_errors: bool,
    user_mode: bool,
    pattern: Option<&'a str>,
    address: Option<&'a str>,
}

/// Letters, apart or glued (`vm nt`, `v m nt`), and an argument after `m` or `a`.
fn options(text: &str) -> Result<Options<'_>, CommandError> {
    let mut options = Options::default();
    let mut left = text.trim();
    while let Some(letter) = left.chars().next() {
        let after = left[letter.len_utf8()..].trim_start();
        match letter.to_ascii_lowercase() {
            'f' => options.columns.path = true,
            'n' => options.columns.image = true,
            't' => options.columns.time = true,
            'd' => options.links = true,
            's' if after.to_ascii_lowercase().starts_with('m') => {
                options.by_name = true;
                left = after[1..].trim_start();
                continue;
            }
            'v' => options.verbose = true,
            'o' => options.loaded_only = true,
            'l' => options.with_symbols = true,
            'e' => options.with_errors = true,
            'u' => options.user_mode = true,
            // All that are listed are the kernel's.
            'k' => {}
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
    let Options { verbose, columns, .. } = options;
    if options.user_mode {
        let list = ModuleList { modules: Vec::new(), unloaded: Vec::new(), verbose, columns, width };
        return Ok(Reply::new(list));
    }
    let mut names = Names::new(kernel, &mut context.session.symbols);
    let drivers = match address {
        Some(address) => names.driver_at(address)?.into_iter().collect(),
        None => names.drivers()?.drivers.clone(),
    };
    let mut notes = names.drivers()?.notes.clone();
    let pattern = options.pattern.map(Glob::new);
    let mut modules = Vec::new();
    for driver in drivers {
        let name = short_name(&driver, kernel.base());
        if pattern.as_ref().is_some_and(|pattern| !pattern.matches(&name)) {
            continue;
        }
        let known = context.session.symbols.known(kernel, &driver);
        let mismatched = context.session.symbols.is_mismatched(kernel, &driver);
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
        let has_symbols = !matches!(symbols, Status::Deferred | Status::None);
        if options.with_symbols && !has_symbols || options.with_errors && symbols != Status::None {
            continue;
        }
        let start = width.address(driver.base);
        let path = if verbose || columns.path { kernel.driver_path(driver.base)? } else { None };
        let (timestamp, reproducible) = match verbose || columns.time {
            true => timestamp(kernel, &driver)?,
            false => (None, false),
        };
        modules.push(Module {
            name,
            start: Hex(start),
            end: Hex(width.address(start.wrapping_add(driver.size.into()))),
            file: driver.file,
            symbols,
            mismatched,
            symbol_file,
            checksum: driver.checksum,
            path,
            timestamp,
            reproducible,
        });
    }
    if options.by_name {
        modules.sort_by_key(|module| module.name.to_ascii_lowercase());
    }
    let only_some = options.loaded_only || options.with_symbols || options.with_errors || address.is_some();
    let unloaded = if only_some { Vec::new() } else { unloaded(context, pattern.as_ref(), &mut notes)? };
    let mut reply = Reply::with_notes(ModuleList { modules, unloaded, verbose, columns, width }, notes);
    if options.links {
        reply.remarks.push("D: a console has no links to click; the list is that of lm.".into());
    }
    Ok(reply)
}

/// The drivers that the kernel remembers. No symbols are fetched for them.
fn unloaded(
    context: &mut Context<'_>,
    pattern: Option<&Glob>,
    notes: &mut Notes,
) -> Result<Vec<Unloaded>, CommandError> {
    if context.session.symbols.known_nt(context.kernel()?).is_none() {
        return Ok(Vec::new());
    }
    let listed = context.decode(|kernel| {
        let unloaded = nt_pool::unloaded::drivers(kernel)?;
        let mut listed = Vec::new();
        for driver in &unloaded.drivers {
            let file = match driver.name(kernel) {
                Ok(file) => file,
                Err(error) => {
                    notes.missing(format!("the name of an unloaded driver: {}", error.local()?));
                    continue;
                }
            };
            let stem = file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem);
            if pattern.is_none_or(|pattern| pattern.matches(stem) || pattern.matches(&file)) {
                listed.push(Unloaded { start: Hex(driver.image.start), end: Hex(driver.image.end), file });
            }
        }
        notes.extend(unloaded.notes);
        Ok(listed)
    });
    // A kernel whose list is not as expected, or is paged out, has its modules all the same.
    listed.or_else(|error| {
        notes.missing(format!("unloaded drivers: {}", error.part()?));
        Ok(Vec::new())
    })
}

/// The time stamp and whether it is a hash: from the image's header, or, when it is paged out, from the module list.
fn timestamp(kernel: &dyn Kernel, driver: &Driver) -> Result<(Option<u32>, bool), Fault> {
    let memory = kernel.memory();
    let image = match Image::read(memory, driver.base) {
        Ok(image) => image,
        Err(ImageError::Fault(fault)) => return Err(fault),
        Err(_) => return Ok(((driver.timestamp != 0).then_some(driver.timestamp), false)),
    };
    let reproducible = match image.is_reproducible(memory) {
        Err(ImageError::Fault(fault)) => return Err(fault),
        reproducible => reproducible.unwrap_or(false),
    };
    Ok((Some(image.time_date_stamp), reproducible))
}

/// `Wed Jul  8 15:43:44 2015 (559DA7A0)`
pub(super) fn when(timestamp: Option<u32>) -> String {
    let time = timestamp.and_then(|seconds| Timestamp::from_second(seconds.into()).ok());
    match (timestamp, time) {
        (Some(stamp), Some(time)) => {
            format!("{} ({stamp:08X})", time.to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Y"))
        }
        _ => "unavailable".into(),
    }
}

impl Columns {
    /// `ntoskrnl.exe Wed Jul  8 15:43:44 2015 (559DA7A0)`
    fn of(self, module: &Module) -> String {
        let image = visible_name(&module.file);
        let mut text = match &module.path {
            Some(path) if self.path => visible_name(path),
            _ if self.path => image,
            _ if self.image => format!("{image:<12}"),
            _ => String::new(),
        };
        if self.time {
            let time = match module.timestamp.filter(|_| module.reproducible) {
                Some(hash) => format!("{hash:08X} (build hash)"),
                None => when(module.timestamp),
            };
            text.push_str(&format!(" {time}"));
        }
        text.trim_start().to_string()
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
            let flag = if module.mismatched { 'M' } else { ' ' };
            if self.columns.any() && !self.verbose {
                writeln!(
                    out,
                    "{}",
                    format!("{start} {end}   {:<8} {}", module.name, self.columns.of(module)).trim_end()
                )?;
                continue;
            }
            writeln!(out, "{start} {end}   {:<8} {flag} {:<23}{file}", module.name, module.symbols.text())?;
            if self.verbose {
                let image = visible_name(&module.file);
                writeln!(out, "    Loaded symbol image file: {image}")?;
                if let Some(path) = &module.path {
                    writeln!(out, "    Image path: {}", visible_name(path))?;
                }
                writeln!(out, "    Image name: {image}")?;
                match module.timestamp.filter(|_| module.reproducible) {
                    Some(hash) => writeln!(
                        out,
                        "    Image was built with /Brepro flag.\n    Timestamp:        {hash:08X} (This is a \
                         reproducible build file hash, not a timestamp)"
                    )?,
                    None => writeln!(out, "    Timestamp:        {}", when(module.timestamp))?,
                }
                writeln!(out, "    CheckSum:         {:08X}", module.checksum)?;
                writeln!(out, "    ImageSize:        {:08X}", module.end.0.wrapping_sub(module.start.0))?;
            }
        }
        if !self.unloaded.is_empty() {
            writeln!(out, "\nUnloaded modules:")?;
        }
        for driver in &self.unloaded {
            let (start, end) = (self.width.tick(driver.start.0), self.width.tick(driver.end.0));
            writeln!(out, "{start} {end}   {}", visible_name(&driver.file))?;
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
            mismatched: name == "odd",
            symbol_file: symbol_file.map(Into::into),
            checksum: 0xaa7491,
            path: None,
            timestamp: Some(0x559da7a0),
            reproducible: name == "odd",
        };
        ModuleList {
            modules: vec![
                module("nt", 0xfffff80002a0e000, 0xfffff80003191000, Status::Pdb, Some("/s/ntkrnlmp.pdb")),
                module("volmgrx", 0xfffff80109200000, 0xfffff8010925f000, Status::None, None),
                module("odd", 0xfffff80109300000, 0xfffff80109301000, Status::Pdb, Some("/s/odd.pdb")),
            ],
            unloaded: vec![Unloaded {
                file: "swmidi.sys".into(),
                start: Hex(0xfffff801f9f53000),
                end: Hex(0xfffff801f9f61000),
            }],
            verbose,
            columns: Columns::default(),
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
             fffff801`09200000 fffff801`0925f000   volmgrx    (no symbols)           \n\
             fffff801`09300000 fffff801`09301000   odd      M (pdb symbols)          /s/odd.pdb\n\
             \n\
             Unloaded modules:\n\
             fffff801`f9f53000 fffff801`f9f61000   swmidi.sys\n"
        );
        let mut text = String::new();
        list(true).text(&mut text).unwrap();
        assert!(text.contains("    CheckSum:         00AA7491\n    ImageSize:        00783000\n"));
        assert!(text.contains(
            "    Image name: odd.sys\n    Image was built with /Brepro flag.\n    Timestamp:        559DA7A0 (This is a \
             reproducible build file hash, not a timestamp)\n"
        ));
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
        assert_eq!(parsed("s"), None);
        let parsed = |text| options(text).map(|o| (o.columns, o.by_name, o.links, o.pattern)).ok();
        let (path, image, time) = (true, true, true);
        assert_eq!(parsed("t n"), Some((Columns { image, time, path: false }, false, false, None)));
        assert_eq!(parsed("f"), Some((Columns { path, ..Columns::default() }, false, false, None)));
        assert_eq!(parsed("sm"), Some((Columns::default(), true, false, None)));
        assert_eq!(parsed("sm m n*"), Some((Columns::default(), true, false, Some("n*"))));
        assert_eq!(parsed("D"), Some((Columns::default(), false, true, None)));
    }
}
