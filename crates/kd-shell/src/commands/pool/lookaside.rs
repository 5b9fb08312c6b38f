//! `!lookaside [address [options [depth]]]`, `!lookaside -all`, `!pplookaside [processor]`: blocks that drivers, and each
//! processor, keep for their next allocation.
//!
//! ```text
//! Lookaside "nt!CcTwilightLookasideList" @ 0xfffff800c6f54300  Tag(hex): 0x6b576343 "CcWk"
//!     Type           =       0000  NonPagedPool
//! ```

use std::fmt;

use nt_pool::PoolKind;
use nt_pool::checks::{Book, Check};
use nt_pool::lookaside::{self, Lookasides, Place};
use schemars::JsonSchema;
use serde::Serialize;

use super::balance::Balance;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!lookaside"],
    usage: "!lookaside [address [options [depth]]] | [0] -all",
    help: "lookaside lists: blocks that are kept for the next allocation",
    details: "Without an address the registered lists are shown, drivers' and the kernel's; with -all those of each \
              processor too\n(!pplookaside). Options: 0 show the list, 1 set its counters to zero, 2 set how many blocks it \
              may keep (1 and 2 need\n.allow_write on). TotalAllocates less TotalFrees is what is in use; blocks that wait \
              in a list are still allocated as\nfar as the pool and its tags are concerned.",
    results: &[ResultShape::of::<Lists>("lookaside")],
    action: Action::Answer(run),
};

pub(in crate::commands) const PER_PROCESSOR: CommandInfo = CommandInfo {
    names: &["!pplookaside"],
    usage: "!pplookaside [processor]",
    help: "the lookaside lists that each processor keeps for the pool and for the system",
    details: "PPNPagedLookasideList, PPNxPagedLookasideList and PPPagedLookasideList keep small blocks of pool by size, \
              PPLookasideList\nthe system's own (IRPs, MDLs); lists that all processors share are shown once. The text \
              leaves out lists that were never\nused; JSON has them all.",
    results: &[ResultShape::of::<Lists>("lookaside")],
    action: Action::Answer(per_processor),
};

#[derive(Debug, JsonSchema, Serialize)]
struct Lists {
    lookasides: Vec<List>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, JsonSchema, Serialize)]
struct List {
    address: Hex,
    symbol: String,
    /// Of `_KPRCB`, when the list is one of a processor's.
    #[serde(flatten)]
    place: Option<Processors>,
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

#[derive(Debug, JsonSchema, Serialize)]
struct Processors {
    processor: u32,
    member: &'static str,
    index: u32,
    /// All processors fall back to this list.
    shared: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let mut words: Vec<&str> = context.arguments.split_whitespace().collect();
    let before = words.len();
    words.retain(|word| *word != "-all");
    let all = words.len() < before;
    let address = match words.first() {
        Some(word) if word.starts_with('-') => return Err(usage(&INFO, format!("unknown option '{word}'"))),
        Some(word) => evaluate_all(word, &mut context.scope())?,
        None => 0,
    };
    let number = |word: &&str, what| plain_number(word).ok_or_else(|| usage(&INFO, format!("'{word}' is no {what}")));
    let option = words.get(1).map(|word| number(word, "option")).transpose()?.unwrap_or(0);
    let depth = words.get(2).map(|word| number(word, "depth")).transpose()?;
    match (address, option, depth) {
        _ if words.len() > 3 => {
            return Err(usage(&INFO, "an address, an option and a depth are all that there can be"));
        }
        (_, 0 | 1, Some(_)) => return Err(usage(&INFO, "a depth goes with option 2")),
        (_, 2, None) => return Err(usage(&INFO, "option 2 needs a depth")),
        (_, 3.., _) => return Err(usage(&INFO, format!("option {option:#x} is none of 0, 1 and 2"))),
        (0, 1 | 2, _) => return Err(usage(&INFO, "the options 1 and 2 need a list's address")),
        (1.., _, _) if all => return Err(usage(&INFO, "-all goes without an address")),
        _ => {}
    }
    if address == 0 {
        let mut found = context.pool(lookaside::all)?;
        if all {
            let more = context.pool(|kernel| lookaside::per_processor(kernel, None))?;
            found.lists.extend(more.lists);
            found.notes.extend(more.notes);
            found.checks.extend(more.checks);
        }
        return answer(context, found);
    }
    let address = context.width().address(address);
    match option {
        1 => {
            const COUNTERS: [&str; 4] = ["TotalAllocates", "AllocateMisses", "TotalFrees", "FreeMisses"];
            let places = context.pool(|kernel| lookaside::members(kernel, COUNTERS))?;
            set(context, address, &places.map(|place| (place, 0)))?;
        }
        2 => {
            let depth = depth.filter(|depth| *depth <= u16::MAX.into());
            let depth = depth.ok_or_else(|| usage(&INFO, "a list keeps no more than 0xffff blocks"))?;
            let [place] = context.pool(|kernel| lookaside::members(kernel, ["Depth"]))?;
            set(context, address, &[(place, depth)])?;
        }
        _ => {}
    }
    let list = context.pool(|kernel| lookaside::read(kernel, address))?;
    answer(context, Lookasides { lists: vec![list], ..Lookasides::default() })
}

/// Writes numbers into a list: ((offset, bytes), value).
fn set(context: &mut Context<'_>, list: u64, values: &[((u64, usize), u64)]) -> Result<(), CommandError> {
    context.session.check_writing()?;
    // What cannot be read as a list is not written to either.
    context.pool(|kernel| lookaside::read(kernel, list))?;
    for ((offset, size), value) in values {
        let address = list.wrapping_add(*offset);
        let written = context.memory()?.write(address, &value.to_le_bytes()[..*size])?;
        if written < *size {
            let address = context.width().tick(address);
            return Err(CommandError::Failed(format!("Memory access error: cannot write {address}")));
        }
    }
    Ok(())
}

fn per_processor(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let processor = match context.arguments.trim() {
        "" => None,
        word => {
            let number = plain_number(word).and_then(|number| u32::try_from(number).ok());
            Some(number.ok_or_else(|| usage(&PER_PROCESSOR, format!("'{word}' is no processor's number")))?)
        }
    };
    let found = context.pool(|kernel| lookaside::per_processor(kernel, processor))?;
    if found.lists.is_empty() && found.notes.is_complete() {
        let which = processor.map(|number| format!("processor {number:#x}")).unwrap_or("any processor".into());
        return Err(CommandError::Failed(format!("there are no lookaside lists of {which}")));
    }
    answer(context, found)
}

fn answer(context: &mut Context<'_>, mut found: Lookasides) -> Result<Reply, CommandError> {
    let width = context.width();
    let mut names = context.names()?;
    let mut shown = Vec::new();
    for list in found.lists {
        shown.push(List {
            address: Hex(width.address(list.address)),
            symbol: names.name(list.address)?.unwrap_or_default(),
            place: match list.place {
                Place::Given | Place::Registered => None,
                Place::Pool { processor, member, index } => {
                    Some(Processors { processor, member, index, shared: false })
                }
                Place::System { processor, index, shared } => {
                    Some(Processors { processor, member: "PPLookasideList", index, shared })
                }
            },
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
    // Lists that are not plausible have their line already.
    let (told, others): (Vec<Check>, Vec<Check>) =
        found.checks.iter().partition(|check| check.name == Book::FreedLists);
    let mut checks = Balance::all(&others, &[], &mut found.notes);
    checks.extend(told.iter().map(Balance::from));
    Ok(Reply::with_notes(Lists { lookasides: shown, checks, width }, found.notes))
}

/// Which part of so many calls did without the pool, in percent.
fn hit_rate(total: u64, misses: u64) -> u64 {
    total.saturating_sub(misses).saturating_mul(100).checked_div(total).unwrap_or(0)
}

/// POOL_TYPE's name.
fn type_name(pool_type: u32) -> String {
    let mut name = String::from(if pool_type & 1 == 0 { "NonPagedPool" } else { "PagedPool" });
    for (bit, word) in [
        (0x200, "Nx"),
        (4, "CacheAligned"),
        (0x20, "Session"),
        (8, " QuotaFailInsteadOfRaise"),
        (0x10, " RaiseIfAllocationFailure"),
    ] {
        if pool_type & bit != 0 {
            name.push_str(word);
        }
    }
    name
}

impl List {
    fn was_used(&self) -> bool {
        self.place.is_none() || self.total_allocates > 0 || self.total_frees > 0 || self.current_depth > 0
    }
}

impl Text for Lists {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.lookasides.is_empty() {
            writeln!(out, "No lookaside list is registered.")?;
        }
        for list in self.lookasides.iter().filter(|list| list.was_used()) {
            let List { symbol, tag, key, size, total_allocates, allocate_misses, total_frees, free_misses, .. } = list;
            let name = match &list.place {
                Some(Processors { member, index, shared: true, .. }) if symbol.is_empty() => {
                    format!("{member}[{index}].L")
                }
                Some(Processors { processor, member, index, shared: false }) => {
                    format!("{member}[{index}] of processor {processor}")
                }
                _ => symbol.clone(),
            };
            let address = self.width.pointer(list.address.0);
            let pool = type_name(list.pool_type);
            let kept = size.saturating_mul(list.max_depth);
            writeln!(out, "Lookaside \"{name}\" @ 0x{address}  Tag(hex): 0x{key:08x} \"{tag}\"")?;
            writeln!(out, "    Type           =       {:04x}  {pool}", list.pool_type)?;
            writeln!(out, "    Current Depth  = {:>10}  Max Depth  = {:>10}", list.current_depth, list.max_depth)?;
            writeln!(out, "    Size           = {size:>10}  Max Alloc  = {kept:>10}")?;
            writeln!(out, "    AllocateMisses = {allocate_misses:>10}  FreeMisses = {free_misses:>10}")?;
            writeln!(out, "    TotalAllocates = {total_allocates:>10}  TotalFrees = {total_frees:>10}")?;
            let (allocates, frees) =
                (hit_rate(*total_allocates, *allocate_misses), hit_rate(*total_frees, *free_misses));
            writeln!(out, "    Hit Rate       = {allocates:>10}% Hit Rate   = {frees:>10}%\n")?;
        }
        let unused = self.lookasides.iter().filter(|list| !list.was_used()).count();
        if unused > 0 {
            writeln!(out, "{unused} lists of processors were never used and are left out.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kd-ux 3.5: the sample of Microsoft's documentation, and the header of Windows Internals.
    #[test]
    fn the_samples() {
        let sample = || List {
            address: Hex(0xfffff88001294f80),
            symbol: String::new(),
            place: None,
            tag: "Ntfs".into(),
            pool: "paged".into(),
            pool_type: 0x11,
            size: 496,
            current_depth: 0,
            max_depth: 4,
            total_allocates: 272492,
            allocate_misses: 8,
            total_frees: 272488,
            free_misses: 0,
            key: 0x7366744e,
        };
        let twilight = List {
            address: Hex(0xfffff800c6f54300),
            symbol: "nt!CcTwilightLookasideList".into(),
            tag: "CcWk".into(),
            pool_type: 0x200,
            key: 0x6b576343,
            ..sample()
        };
        let mut text = String::new();
        Lists { lookasides: vec![sample(), twilight], checks: Vec::new(), width: Width::Eight }
            .text(&mut text)
            .unwrap();
        assert!(
            text.starts_with(
                "Lookaside \"\" @ 0xfffff88001294f80  Tag(hex): 0x7366744e \"Ntfs\"
    Type           =       0011  PagedPool RaiseIfAllocationFailure
    Current Depth  =          0  Max Depth  =          4
    Size           =        496  Max Alloc  =       1984
    AllocateMisses =          8  FreeMisses =          0
    TotalAllocates =     272492  TotalFrees =     272488
    Hit Rate       =         99% Hit Rate   =        100%

Lookaside \"nt!CcTwilightLookasideList\" @ 0xfffff800c6f54300  Tag(hex): 0x6b576343 \"CcWk\"
    Type           =       0200  NonPagedPoolNx
"
            ),
            "{text}"
        );
    }
}
