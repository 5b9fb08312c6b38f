//! `!lmi module`: what an image says of itself, and what symbols were found for it.

use std::fmt;

use nt_symbols::{ImageError, SymbolKind, rsds};
use schemars::JsonSchema;
use serde::Serialize;

use super::list_modules::when;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::short_name;
use crate::text::{Hex, Width, visible_name};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!lmi"],
    usage: "!lmi module|address",
    help: "show what a module's image says of itself, and its symbols",
    details: "",
    results: &[ResultShape::of::<ImageInfo>("lmi")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct ImageInfo {
    module: String,
    base: Hex,
    file: String,
    machine: u16,
    timestamp: u32,
    size: u32,
    checksum: u32,
    /// The PDB's GUID, age and name.
    pdb: Option<Pdb>,
    symbols: String,
    symbol_file: Option<String>,
    #[serde(skip)]
    width: Width,
}

#[derive(JsonSchema, Serialize)]
struct Pdb {
    guid: String,
    age: u32,
    name: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = kernel.width();
    let text = context.arguments.trim();
    if text.is_empty() {
        return Err(usage(&INFO, "no module"));
    }
    let named = context.names()?.image_named(text)?;
    let address = match named {
        Some(image) => image.start,
        None => evaluate_all(text, &mut context.scope())?,
    };
    let mut names = context.names()?;
    let Some(driver) = names.driver_at(address)? else {
        return Err(CommandError::Failed(format!("{} is in no loaded module", width.tick(width.address(address)))));
    };
    let file = match names.file(&driver) {
        Ok(file) => Some(file),
        Err(crate::symbols::NoSymbols::Fault(fault)) => return Err(fault.into()),
        Err(crate::symbols::NoSymbols::Missing(_)) => None,
    };
    let mut notes = Vec::new();
    let identity = match rsds(kernel.memory(), driver.base) {
        Ok(identity) => Some(identity),
        Err(ImageError::Fault(fault)) => return Err(fault.into()),
        Err(error) => {
            notes.push(error.to_string());
            None
        }
    };
    let image = match &identity {
        Some(identity) => Some(identity.image.clone()),
        None => match nt_symbols::Image::read(kernel.memory(), driver.base) {
            Ok(image) => Some(image),
            Err(ImageError::Fault(fault)) => return Err(fault.into()),
            Err(_) => None,
        },
    };
    let symbols = match file.as_ref().map(|file| file.kind()) {
        None => "NONE - no symbols were found",
        Some(SymbolKind::PublicPdb) => "PDB - public symbols",
        Some(SymbolKind::PrivatePdb) => "PDB - private symbols & lines",
        Some(SymbolKind::Exports) => "EXPORT - PDB not found",
    };
    let info = ImageInfo {
        module: short_name(&driver, kernel.base()),
        base: Hex(driver.base),
        machine: image.as_ref().map_or(0, |image| image.machine),
        timestamp: image.as_ref().map_or(driver.timestamp, |image| image.time_date_stamp),
        size: driver.size,
        checksum: driver.checksum,
        pdb: identity.map(|identity| Pdb {
            guid: guid(identity.pdb.guid),
            age: identity.pdb.age,
            name: visible_name(&identity.recorded_name),
        }),
        symbols: symbols.into(),
        symbol_file: file.map(|file| visible_name(&file.path().display().to_string())),
        file: visible_name(&driver.file),
        width,
    };
    Ok(Reply::with_notes(info, notes))
}

/// `{3844DBB9-2017-4967-BE7A-A4A2C20430FA}`
fn guid(guid: u128) -> String {
    let digits = format!("{guid:032X}");
    let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
    format!("{{{a}-{b}-{c}-{d}-{e}}}")
}

impl Text for ImageInfo {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let machine = match self.machine {
            0x14c => " (I386)",
            0x8664 => " (X64)",
            0xaa64 => " (ARM64)",
            _ => "",
        };
        writeln!(out, "Loaded Module Info: [{}] ", self.module)?;
        writeln!(out, "         Module: {}", self.module)?;
        writeln!(out, "   Base Address: {}", self.width.pointer(self.base.0))?;
        writeln!(out, "     Image Name: {}", self.file)?;
        writeln!(out, "   Machine Type: {}{machine}", self.machine)?;
        writeln!(out, "     Time Stamp: {:x} {}", self.timestamp, when(Some(self.timestamp)))?;
        writeln!(out, "           Size: {:x}", self.size)?;
        writeln!(out, "       CheckSum: {:x}", self.checksum)?;
        match &self.pdb {
            Some(Pdb { guid, age, name }) => {
                writeln!(out, "       CODEVIEW: RSDS - GUID: {guid}\n               Age: {age:x}, Pdb: {name}")?;
            }
            None => writeln!(out, "       CODEVIEW: none")?,
        }
        writeln!(out, "    Symbol Type: {}", self.symbols)?;
        match &self.symbol_file {
            Some(file) => writeln!(out, "                 {file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_written_as_everywhere() {
        assert_eq!(guid(0x3844dbb920174967be7aa4a2c20430fa), "{3844DBB9-2017-4967-BE7A-A4A2C20430FA}");
    }
}
