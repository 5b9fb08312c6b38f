//! `!lookaside [address]`, `!lookaside -all`: blocks that drivers keep for their next allocation.
//!
//! ```text
//! Lookaside "nt!CcTwilightLookasideList" @ 0xfffff800c6f54300  Tag(hex): 0x6b576343 "CcWk"
//!     Type           =       0000  NonPagedPool
//! ```

use std::fmt;

use nt_pool::PoolKind;
use nt_pool::lookaside::{self, Lookasides};
use serde::Serialize;

use super::{Action, CommandInfo};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!lookaside"],
    usage: "!lookaside [address | -all]",
    help: "lookaside lists: blocks that are kept for the next allocation",
    details: "Without an address all registered lists are shown. Blocks that wait in a list are still allocated as far as \
              the\npool and its tags are concerned.",
    action: Action::Answer(run),
};

#[derive(Debug, Serialize)]
struct Lists {
    lookasides: Vec<List>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, Serialize)]
struct List {
    address: Hex,
    symbol: String,
    tag: String,
    pool: String,
    #[serde(rename = "type")]
    pool_type: u32,
    size: u64,
    current_depth: u64,
    max_depth: u64,
    total_allocates: u64,
    allocate_misses: u64,
    total_frees: u64,
    free_misses: u64,
    #[serde(skip)]
    key: u32,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let address = match text {
        "" | "-all" | "0 -all" | "0" => None,
        text => Some(evaluate_all(text, &mut context.scope())?),
    };
    let width = context.width();
    let Lookasides { lists, notes } = context.pool(|kernel| match address {
        Some(address) => {
            Ok(Lookasides { lists: vec![lookaside::read(kernel, width.address(address))?], notes: Vec::new() })
        }
        None => lookaside::all(kernel),
    })?;
    let mut names = context.names()?;
    let mut shown = Vec::new();
    for list in lists {
        shown.push(List {
            address: Hex(width.address(list.address)),
            symbol: names.name(list.address)?.unwrap_or_default(),
            tag: list.tag.to_string(),
            pool: if PoolKind::from_pool_type(list.pool_type).is_paged() { "paged" } else { "nonpaged" }.into(),
            pool_type: list.pool_type,
            size: list.size,
            current_depth: list.current_depth,
            max_depth: list.depth,
            total_allocates: list.total_allocates,
            allocate_misses: list.allocate_misses,
            total_frees: list.total_frees,
            free_misses: list.free_misses,
            key: list.tag.key(),
        });
    }
    Ok(Reply::with_notes(Lists { lookasides: shown, width }, notes))
}

/// Which part of so many calls did without the pool, in percent.
fn hit_rate(total: u64, misses: u64) -> u64 {
    total.saturating_sub(misses).saturating_mul(100).checked_div(total).unwrap_or(0)
}

impl Text for Lists {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.lookasides.is_empty() {
            writeln!(out, "No lookaside list is registered.")?;
        }
        for list in &self.lookasides {
            let List { symbol, tag, key, size, total_allocates, allocate_misses, total_frees, free_misses, .. } = list;
            let address = self.width.pointer(list.address.0);
            let pool = if list.pool == "paged" { "PagedPool" } else { "NonPagedPool" };
            let kept = size.saturating_mul(list.max_depth);
            writeln!(out, "Lookaside \"{symbol}\" @ 0x{address}  Tag(hex): 0x{key:08x} \"{tag}\"")?;
            writeln!(out, "    Type           =       {:04x}  {pool}", list.pool_type)?;
            writeln!(out, "    Current Depth  = {:>10}  Max Depth  = {:>10}", list.current_depth, list.max_depth)?;
            writeln!(out, "    Size           = {size:>10}  Max Alloc  = {kept:>10}")?;
            writeln!(out, "    AllocateMisses = {allocate_misses:>10}  FreeMisses = {free_misses:>10}")?;
            writeln!(out, "    TotalAllocates = {total_allocates:>10}  TotalFrees = {total_frees:>10}")?;
            let (allocates, frees) =
                (hit_rate(*total_allocates, *allocate_misses), hit_rate(*total_frees, *free_misses));
            writeln!(out, "    Hit Rate       = {allocates:>9}% Hit Rate   = {frees:>9}%\n")?;
        }
        Ok(())
    }
}
