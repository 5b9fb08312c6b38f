//! `!tagowner tag [module ...]`: which loaded images hold a tag's four bytes.
//!
//! ```text
//! Leak is held by 1 of 143 images:
//! myfault+0x11e8        41b84c65616b    mov     r8d,6B61654Ch
//! An image that holds a tag need not allocate with it; one that computes its tag holds none.
//! ```

use std::fmt;

use kd_target::Machine;
use nt_memory::Memory;
use nt_pool::Tag;
use nt_pool::notes::Notes;
use nt_pool::tag_owner::{self, Form, LoadedImage, Owners, Place};
use nt_unwind::{ImageId, Images, Stuck};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::disassembly::{Disassembler, MAX_LENGTH, instruction_of_constant};
use crate::error::CommandError;
use crate::grammar::words::pattern;
use crate::kernel::Driver;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::short_name;
use crate::text::{Hex, Width, visible_name, words};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!tagowner"],
    usage: "!tagowner tag [module ...]",
    help: "which loaded images hold a tag",
    details: "Searches the images of all modules, or of those named, for the tag's four bytes:\n\
              a driver has the tag that it allocates with in an instruction or in its data.\n\
              The target searches itself, one request for an image and some for each place;\n\
              where it cannot, the images' files along the symbol path are searched. What is\n\
              found holds the tag; that it allocates with it is not proved by that.",
    results: &[ResultShape::of::<TagOwners>("tagowner")],
    action: Action::Answer(run),
};

#[derive(Debug, JsonSchema, Serialize)]
struct TagOwners {
    tag: String,
    /// What pooltag.txt says of the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    searched: usize,
    /// Images that could not be searched.
    unsearched: Vec<String>,
    places: Vec<Found>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Found {
    module: String,
    /// Where the instruction begins, or the bytes.
    address: Hex,
    /// `module!function+offset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<String>,
    /// `code` or `data`.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instruction: Option<String>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments;
    let mut words = words(text);
    let word = words.next().ok_or_else(|| usage(&INFO, "no tag"))?;
    let tag = pattern(word).map_err(|error| usage(&INFO, error))?;
    let tag = tag.exact().ok_or_else(|| usage(&INFO, "a tag without wildcards is needed"))?;
    let modules: Vec<String> = words.map(str::to_owned).collect();
    let drivers = chosen(context, &modules)?;
    let mut notes = Notes::default();
    notes.extend(context.names()?.notes().cloned().collect::<Vec<_>>());
    let machine = context.kernel()?.version().machine;
    let mut found = search(context, machine, tag, &drivers, &[])?;
    // The target does not search: whoever has the files here need not ask it for each byte.
    if !found.unsearched.is_empty() {
        let mut files = Vec::new();
        let mut names = context.names()?;
        for driver in &drivers {
            files.push(names.image(driver)?);
        }
        found = search(context, machine, tag, &drivers, &files)?;
    }
    let Owners { places, searched, unsearched, notes: told } = found;
    notes.extend(told);
    let base = context.kernel()?.base();
    let name = |index: usize| drivers.get(index).map_or(String::new(), |driver| short_name(driver, base));
    let unsearched: Vec<String> = unsearched.into_iter().map(name).collect();
    if !unsearched.is_empty() {
        notes.missing(format!(
            "the target does not search its memory, and the symbol path has no file of {} images ({})",
            unsearched.len(),
            unsearched.join(" ")
        ));
    }
    let mut images = std::mem::take(&mut context.session.images);
    let shown: Result<Vec<Found>, CommandError> =
        places.iter().map(|place| show(context, &mut images, machine, &drivers, place)).collect();
    context.session.images = images;
    let answer = TagOwners {
        tag: tag.to_string(),
        description: context.session.pool_tags.describe(tag).map(|known| known.text.clone()),
        searched,
        unsearched,
        places: shown?,
        width: context.width(),
    };
    Ok(Reply::with_notes(answer, notes))
}

/// The modules to be searched; the kernel's own image is the largest and comes last.
fn chosen(context: &mut Context<'_>, modules: &[String]) -> Result<Vec<Driver>, CommandError> {
    let base = context.kernel()?.base();
    let mut names = context.names()?;
    let mut drivers = names.drivers()?.drivers.clone();
    drivers.sort_by_key(|driver| (driver.base == base, driver.base));
    let is = |driver: &Driver, module: &String| {
        short_name(driver, base).eq_ignore_ascii_case(module) || driver.file.eq_ignore_ascii_case(module)
    };
    for module in modules {
        if !drivers.iter().any(|driver| is(driver, module)) {
            return Err(CommandError::Failed(format!("no module is called '{}'; lm lists them", visible_name(module))));
        }
    }
    if !modules.is_empty() {
        drivers.retain(|driver| modules.iter().any(|module| is(driver, module)));
    }
    Ok(drivers)
}

fn search(
    context: &mut Context<'_>,
    machine: Machine,
    tag: Tag,
    drivers: &[Driver],
    files: &[Option<std::sync::Arc<nt_symbols::ImageFile>>],
) -> Result<Owners, CommandError> {
    let images: Vec<LoadedImage<'_>> = drivers
        .iter()
        .enumerate()
        .map(|(index, driver)| LoadedImage {
            base: driver.base,
            size: driver.size,
            file: files.get(index).and_then(Option::as_ref).map(|file| file.as_ref() as &dyn Memory),
        })
        .collect();
    context.pool(|kernel| tag_owner::owners(kernel, machine.number(), tag, &images))
}

/// A place with its name and its instruction.
fn show(
    context: &mut Context<'_>,
    images: &mut Images,
    machine: Machine,
    drivers: &[Driver],
    place: &Place,
) -> Result<Found, CommandError> {
    let kernel = context.kernel()?;
    let memory = kernel.memory();
    let driver = drivers.get(place.image);
    let base = kernel.base();
    let module = driver.map_or(String::new(), |driver| short_name(driver, base));
    let mut address = place.address;
    let (mut bytes, mut instruction) = (None, None);
    if let (Form::Code, Some(driver)) = (place.form, driver) {
        let start = function(images, memory, driver, address)?;
        // Without its function's begin, a few bytes before the constant tell.
        let from = start.unwrap_or(address.saturating_sub(MAX_LENGTH as u64).max(driver.base));
        let mut code = vec![0; (address - from) as usize + MAX_LENGTH];
        let read = memory.read(from, &mut code)?.min(code.len());
        code.truncate(read);
        let at = (address - from) as usize;
        if let Some(offset) = instruction_of_constant(machine, &code, start.map(|_| 0), at) {
            address = from + offset as u64;
            let mut names = context.names()?;
            let code = &code[offset..code.len().min(offset + MAX_LENGTH)];
            if let Some(mut disassembler) = Disassembler::new(machine)
                && let Some(one) = disassembler.named(code, address, &mut names)?
            {
                bytes = Some(code[..one.length].iter().map(|byte| format!("{byte:02x}")).collect());
                instruction = Some(one.text);
            }
        }
    }
    let symbol = context.names()?.name_of_code(address)?;
    let kind = if place.form == Form::Data { "data" } else { "code" };
    Ok(Found { module, address: Hex(address), symbol, section: place.section.clone(), kind, bytes, instruction })
}

/// Where the function begins that an address is in, where unwind data says so and it is near enough to be read.
fn function(
    images: &mut Images,
    memory: &dyn Memory,
    driver: &Driver,
    address: u64,
) -> Result<Option<u64>, CommandError> {
    const NEAR: u64 = 0x1000;
    let id = ImageId { base: driver.base, size: driver.size, time_date_stamp: driver.timestamp };
    let Ok(rva) = u32::try_from(address.wrapping_sub(driver.base)) else { return Ok(None) };
    match images.bounds(memory, id, rva) {
        Ok(bounds) => {
            let begin = bounds.map(|(begin, _)| driver.base.wrapping_add(begin.into()));
            Ok(begin.filter(|begin| address.wrapping_sub(*begin) < NEAR))
        }
        Err(Stuck::Fault(fault)) => Err(fault.into()),
        // Paged out: the bytes before the constant have to do.
        Err(_) => Ok(None),
    }
}

impl Text for TagOwners {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let TagOwners { tag, searched, places, .. } = self;
        if let Some(description) = &self.description {
            writeln!(out, "pooltag.txt: {tag} - {description}")?;
        }
        let mut holders: Vec<&str> = places.iter().map(|place| place.module.as_str()).collect();
        holders.dedup();
        let images = |count: usize| if count == 1 { "image" } else { "images" };
        if holders.is_empty() {
            return writeln!(
                out,
                "{tag} is in none of {searched} {}: its owner computes it, or is not loaded any more.",
                images(*searched)
            );
        }
        writeln!(out, "{tag} is held by {} of {searched} {}:", holders.len(), images(*searched))?;
        for place in places {
            let at = place.symbol.clone().unwrap_or_else(|| format!("0x{}", self.width.tick(place.address.0)));
            match (&place.bytes, &place.instruction) {
                (Some(bytes), Some(text)) => writeln!(out, "{at:<28} {bytes:<16} {text}")?,
                _ => {
                    let section =
                        place.section.as_deref().map_or(String::new(), |name| format!(", {}", visible_name(name)));
                    writeln!(out, "{at:<28} {}{section}", place.kind)?;
                }
            }
        }
        writeln!(out, "An image that holds a tag need not allocate with it.")
    }
}
