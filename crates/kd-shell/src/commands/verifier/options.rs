//! The arguments of `!verifier 0x80`.

use nt_pool::TagPattern;
use nt_pool::pool_log::Operation;

use super::INFO;
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::grammar::words::pattern;
use crate::session::Context;
use crate::text::words;

/// What is asked of the pool log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) address: Option<u64>,
    pub(super) quantity: Option<u32>,
    pub(super) since: Option<u32>,
    pub(super) tag: Option<TagPattern>,
    pub(super) driver: Option<String>,
    pub(super) operation: Option<Operation>,
    pub(super) outstanding: bool,
    pub(super) group: bool,
    pub(super) timeline: bool,
    pub(super) full: bool,
    pub(super) calls: bool,
}

impl Options {
    pub(super) fn parse(context: &mut Context<'_>, text: &str) -> Result<Self, CommandError> {
        let mut options = Self::default();
        let mut expression = Vec::new();
        let mut words = words(text);
        while let Some(word) = words.next() {
            let mut value = |what: &str| words.next().ok_or_else(|| usage(&INFO, format!("{word} without {what}")));
            match word {
                "-since" => options.since = Some(index(context, value("an index")?)?),
                "-tag" => {
                    let tag = pattern(value("a tag")?).map_err(|error| usage(&INFO, error))?;
                    options.tag = Some(tag);
                }
                "-driver" => options.driver = Some(value("a module")?.into()),
                "-op" => {
                    options.operation = Some(match value("alloc or free")? {
                        "alloc" | "allocate" => Operation::Allocate,
                        "free" => Operation::Free,
                        other => return Err(usage(&INFO, format!("-op is alloc or free, not '{other}'"))),
                    });
                }
                "-outstanding" => options.outstanding = true,
                "-group" => options.group = true,
                "-timeline" => {
                    let place = value("an address")?;
                    options.timeline = true;
                    expression.push(place);
                }
                "-full" => options.full = true,
                "-calls" => options.calls = true,
                // A minus before a number may be a part of an address.
                word if word.starts_with('-') && word[1..].starts_with(|c: char| c.is_ascii_lowercase() && c > 'f') => {
                    return Err(usage(&INFO, format!("unknown option {word}")));
                }
                word => expression.push(word),
            }
        }
        if !expression.is_empty() {
            options.place(context, &expression.join(" "))?;
        }
        if options.timeline && (options.address.is_none() || options.group) {
            return Err(usage(&INFO, "-timeline is of one address, and not with -group"));
        }
        if options.full && options.address.is_none() {
            return Err(usage(&INFO, "-full is for an address"));
        }
        if options.quantity.is_some() && options.since.is_some() {
            return Err(usage(&INFO, "a quantity and -since exclude each other"));
        }
        Ok(options)
    }

    /// An address or a quantity. kd's documentation does not say how it tells them apart.
    fn place(&mut self, context: &mut Context<'_>, text: &str) -> Result<(), CommandError> {
        // A module's name stands for its base elsewhere, where no block begins: its driver's records are meant.
        if !text.contains(char::is_whitespace)
            && plain_number(text).is_none()
            && (text.to_ascii_lowercase().ends_with(".sys") || context.names()?.image_named(text)?.is_some())
        {
            self.driver = Some(text.into());
            return Ok(());
        }
        match address_or_quantity(context, text)? {
            Place::Address(address) => self.address = Some(address),
            Place::Quantity(quantity) => self.quantity = Some(quantity),
        }
        Ok(())
    }
}

pub(super) enum Place {
    Address(u64),
    Quantity(u32),
}

/// An address in the kernel's half, or how many records are wanted.
pub(super) fn address_or_quantity(context: &mut Context<'_>, text: &str) -> Result<Place, CommandError> {
    let width = context.width();
    match width.address(evaluate_all(text, &mut context.scope())?) {
        address if width.is_kernel(address) => Ok(Place::Address(address)),
        0 => Err(usage(&INFO, "0 records are none")),
        quantity => match u32::try_from(quantity) {
            Ok(quantity) => Ok(Place::Quantity(quantity)),
            Err(_) => Err(usage(&INFO, format!("{quantity:#x} is neither a kernel address nor a quantity"))),
        },
    }
}

/// A sequence number; it may have any 32 bits.
fn index(context: &mut Context<'_>, text: &str) -> Result<u32, CommandError> {
    let value = evaluate_all(text, &mut context.scope())?;
    let extended = value as i32 as i64 as u64 == value;
    match u32::try_from(value) {
        Ok(index) => Ok(index),
        // As kd reads a number with its top bit set.
        Err(_) if extended => Ok(value as u32),
        Err(_) => Err(usage(&INFO, format!("{value:#x} is no index: it has 32 bits"))),
    }
}
