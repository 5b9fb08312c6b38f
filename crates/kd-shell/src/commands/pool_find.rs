//! `!poolfind tag [pool type]`: the allocations of a tag, large and small.
//!
//! ```text
//! Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)
//!
//! *fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes
//! ```
//!
//! kd's default pool type is nonpaged, but it scans the large table for both, and so the article's paged blocks are
//! found without a type. A type that is given restricts the answer to it.
//!
//! kd then reads through the whole pool. Here the kernel's own count of the tag is asked first: when the large
//! allocations are all that the tag has, as in the article, there is nothing to read through the pool for.

use std::fmt;
use std::ops::Range;

use nt_pool::big_pages::{self, BigPages};
use nt_pool::small_blocks::{BlockKind, BlockState, Blocks, Kinds, Limits, Plan, SmallBlock};
use nt_pool::{PoolError, PoolKind, TagPattern, tags};
use serde::Serialize;

use super::pool_used::{NEW_LAYOUT, pattern};
use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!poolfind"],
    usage: "!poolfind tag [pooltype] [-small|-large] [-free] [-limit MB] [-from address]",
    help: "the allocations with a tag",
    details: "A tag is four characters, may have wildcards (* ?), and keeps its blanks between quotes (-tag \"AB C\"); \
              0x6b61654c\nis a tag's value. Pool types: 0 nonpaged, 1 paged, 2 special, 4 session, or -nonpaged -paged \
              -special -session;\nwithout one all pools are searched. Small blocks (less than a page) are searched when \
              the kernel counts more\nallocations of the tag than there are large ones, or with -small; -large leaves \
              them out. -free shows freed blocks\nthat still have the tag, too. No more than 256 MB (-limit) of pool are \
              read; Ctrl+C stops a search with what it has\nfound; -from goes on where an earlier one stopped.",
    action: Action::Answer(run),
};

/// Megabytes of pool that are read when nobody says otherwise.
const LIMIT: u64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    NonPaged,
    Paged,
    Session,
    /// Only as what is asked for: a block of special pool is nonpaged or paged.
    Special,
}

impl From<PoolKind> for Pool {
    fn from(kind: PoolKind) -> Self {
        match kind {
            kind if kind.is_session() => Pool::Session,
            kind if kind.is_paged() => Pool::Paged,
            _ => Pool::NonPaged,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Block {
    /// What the allocation call returned.
    address: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Hex>,
    size: u64,
    /// With the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u64>,
    tag: String,
    kind: &'static str,
    pool: Pool,
    state: &'static str,
    #[serde(skip)]
    previous_size: u64,
    #[serde(skip)]
    pool_name: String,
}

impl Block {
    fn small(block: &SmallBlock, width: Width) -> Self {
        let special = block.kind == BlockKind::Special;
        Self {
            address: Hex(width.address(block.address)),
            header: Some(Hex(width.address(block.header))),
            size: block.size,
            block_size: Some(block.block_size),
            tag: block.tag.to_string(),
            kind: if special { "special" } else { "small" },
            pool: block.pool.into(),
            // A block that waits in a lookaside list is free for everyone but the pool.
            state: if block.state == BlockState::Allocated { "allocated" } else { "free" },
            previous_size: block.previous_size,
            pool_name: if special { "Special pool".into() } else { block.pool.to_string() },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PoolFind {
    tag: String,
    /// What was looked at: `large`, `small` or `all`.
    searched: &'static str,
    table: Table,
    /// Where the search of small blocks stopped; it can go on from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<Hex>,
    blocks: Vec<Block>,
    #[serde(skip)]
    ranges: Vec<(PoolKind, Range<u64>)>,
    #[serde(skip)]
    key: u32,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    new_layout: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Table {
    start: Hex,
    end: Hex,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    tag: TagPattern,
    pool: Option<Pool>,
    small: bool,
    large: bool,
    free: bool,
    /// Bytes.
    limit: u64,
    from: u64,
}

fn arguments(text: &str) -> Result<Question, CommandError> {
    let mut tag = None;
    let mut question = Question {
        tag: nt_pool::Tag(*b"    ").into(),
        pool: None,
        small: false,
        large: false,
        free: false,
        limit: LIMIT << 20,
        from: 0,
    };
    let mut left = text.trim();
    let mut word = || {
        let quote = left.starts_with(['\'', '"']).then(|| left[1..].find(&left[..1])).flatten();
        let length = quote.map_or_else(|| left.find(char::is_whitespace).unwrap_or(left.len()), |end| end + 2);
        let (word, after) = left.split_at(length);
        left = after.trim_start();
        (!word.is_empty()).then_some(word)
    };
    while let Some(option) = word() {
        let mut number = |what: &str| {
            let value = word().and_then(plain_number);
            value.ok_or_else(|| usage(&INFO, format!("{option} needs {what}")))
        };
        match option {
            "-tag" | "-global" => {}
            "-small" => question.small = true,
            "-large" => question.large = true,
            "-free" => question.free = true,
            "-limit" => question.limit = number("a number of megabytes")?.saturating_mul(1 << 20),
            "-from" => question.from = number("an address")?,
            "-nonpaged" => question.pool = Some(Pool::NonPaged),
            "-paged" => question.pool = Some(Pool::Paged),
            "-special" => question.pool = Some(Pool::Special),
            "-session" => question.pool = Some(Pool::Session),
            "-process" | "-x" => {
                return Err(CommandError::Failed(format!("!poolfind {option} is not in this version")));
            }
            word if tag.is_none() => tag = Some(pattern(word).map_err(|error| usage(&INFO, error))?),
            word => {
                question.pool = Some(match plain_number(word) {
                    Some(0) => Pool::NonPaged,
                    Some(1) => Pool::Paged,
                    Some(2) => Pool::Special,
                    Some(4) => Pool::Session,
                    _ => return Err(usage(&INFO, format!("'{word}' is no pool type; they are 0, 1, 2 and 4"))),
                });
            }
        }
    }
    if question.small && question.large {
        (question.small, question.large) = (false, false);
    }
    question.tag = tag.ok_or_else(|| usage(&INFO, "no tag"))?;
    Ok(question)
}

impl Question {
    fn kinds(&self) -> Kinds {
        match self.pool {
            None => Kinds::ALL,
            Some(Pool::NonPaged) => Kinds { nonpaged: true, ..Kinds::NONE },
            Some(Pool::Paged) => Kinds { paged: true, ..Kinds::NONE },
            Some(Pool::Special) => Kinds { special: true, ..Kinds::NONE },
            Some(Pool::Session) => Kinds::NONE,
        }
    }
}

/// What a search came upon.
#[derive(Default)]
struct Found {
    table: Range<u64>,
    large: Vec<big_pages::BigPage>,
    small: Option<(Plan, Blocks)>,
    notes: Vec<String>,
}

fn search(kernel: &nt_pool::Kernel<'_>, question: &Question) -> Result<Found, PoolError> {
    let tag = &question.tag;
    let kinds = question.kinds();
    let mut found = Found::default();
    let mut whole = None;
    let wants_large = !question.small && question.pool != Some(Pool::Special);
    let mut wants_small = !question.large && kinds != Kinds::NONE;
    if wants_large {
        let BigPages { table, blocks, notes } = match tag.exact() {
            Some(tag) => big_pages::find(kernel, tag)?,
            None => big_pages::read(kernel, &|_| true)?,
        };
        found.table = table;
        found.notes = notes;
        if tag.exact().is_none() {
            whole = Some(blocks.clone());
        }
        found.large = blocks.into_iter().filter(|block| tag.matches(block.tag)).collect();
        let asked = question.small || question.free || question.pool == Some(Pool::Special);
        wants_small &= asked || !is_all(kernel, question, &found.large)?;
    } else {
        found.table = big_pages::table(kernel)?;
    }
    if wants_small {
        let whole = match whole {
            Some(whole) => whole,
            None => {
                let BigPages { blocks, notes, .. } = big_pages::read(kernel, &|_| true)?;
                found.notes.extend(notes);
                blocks
            }
        };
        let plan = Plan::read(kernel, kinds)?;
        let limits = Limits { bytes: question.limit, from: question.from, ..Limits::default() };
        let blocks = plan.find(kernel, &|found| tag.matches(found), &whole, limits)?;
        found.small = Some((plan, blocks));
    }
    Ok(found)
}

/// Whether the kernel counts exactly these allocations of the tag, so that there are no others.
fn is_all(kernel: &nt_pool::Kernel<'_>, question: &Question, large: &[big_pages::BigPage]) -> Result<bool, PoolError> {
    let counted = match question.tag.exact() {
        Some(tag) => tags::read_one(kernel, tag),
        None => tags::read(kernel, &|tag| question.tag.matches(tag)),
    };
    let counted = match counted {
        Ok(counted) if counted.notes.is_empty() && !counted.tags.is_empty() => counted,
        Err(PoolError::Fault(fault)) => return Err(fault.into()),
        Ok(_) | Err(_) => return Ok(false),
    };
    let all = |paged: bool| {
        let live = large.iter().filter(|block| !block.free && block.kind.is_paged() == paged).count();
        let usage = counted.tags.iter().map(|tag| if paged { tag.paged } else { tag.nonpaged });
        usage.map(|usage| usage.diff).sum::<i64>() == i64::try_from(live).unwrap_or(-1)
    };
    let kinds = question.kinds();
    Ok((!kinds.nonpaged || all(false)) && (!kinds.paged || all(true)))
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let question = arguments(context.arguments)?;
    let kernel = context.kernel()?;
    let width = kernel.width();
    let new_layout = kernel.version().minor >= NEW_LAYOUT;
    let Found { table, large, small, mut notes } = context.pool(|kernel| search(kernel, &question))?;
    let shown = |block: &Block| match question.pool {
        None => true,
        Some(Pool::Special) => block.kind == "special",
        Some(pool) => block.pool == pool && block.kind != "special",
    };
    let mut blocks: Vec<Block> = large
        .into_iter()
        .filter(|block| question.free || !block.free)
        .map(|block| Block {
            address: Hex(width.address(block.address)),
            header: None,
            size: block.size,
            block_size: None,
            tag: block.tag.to_string(),
            kind: "large",
            pool: block.kind.into(),
            state: if block.free { "free" } else { "allocated" },
            previous_size: 0,
            pool_name: block.kind.to_string(),
        })
        .filter(shown)
        .collect();
    let searched = match (&small, question.small || question.pool == Some(Pool::Special)) {
        (None, _) => "large",
        (Some(_), true) => "small",
        (Some(_), false) => "all",
    };
    let mut complete = notes.is_empty();
    let (mut ranges, mut stopped) = (Vec::new(), None);
    if let Some((plan, found)) = small {
        complete &= found.complete;
        notes.extend(found.notes);
        let live = |block: &&SmallBlock| question.free || block.state == BlockState::Allocated;
        blocks.extend(found.blocks.iter().filter(live).map(|block| Block::small(block, width)).filter(shown));
        ranges = plan.ranges();
        stopped = found.stopped;
        if let Some(at) = stopped {
            notes.push(format!(
                "{} MB of pool were to be searched; -from {} goes on where this search stopped, -limit raises its limit",
                plan.bytes(question.from) >> 20,
                width.pointer(at)
            ));
        }
    }
    if question.pool == Some(Pool::Session) && !question.large {
        notes.push("small blocks of session pool are not searched in this version".into());
        complete = false;
    }
    let name = question.tag.to_string();
    let key = name.bytes().take(4).rev().fold(0, |key, byte| key << 8 | u32::from(byte));
    let table = Table { start: Hex(width.address(table.start)), end: Hex(width.address(table.end)) };
    let stopped = stopped.map(|at| Hex(width.address(at)));
    let answer = PoolFind { tag: name, searched, table, stopped, blocks, ranges, key, width, new_layout };
    Ok(Reply { complete, ..Reply::with_notes(answer, notes) })
}

impl PoolFind {
    fn row(&self, block: &Block, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| self.width.pointer(address.0);
        let Block { tag, size, state, pool_name, .. } = block;
        let address = pointer(block.address);
        let free = *state == "free";
        match (self.new_layout, block.header) {
            (false, None) => {
                let freed = if free { " (Free)" } else { "" };
                writeln!(out, "*{address} :large page allocation, Tag  is {tag}, size  is {size:#x} bytes{freed}")
            }
            (false, Some(header)) if block.kind == "special" => {
                let pool = if block.pool == Pool::Paged { "Paged" } else { "NonPaged" };
                writeln!(out, "*{} size: {size:4x} data: {address} ({pool}) *{tag}", pointer(header))
            }
            (false, Some(header)) => {
                let state = if free { "(Free)     " } else { "(Allocated)" };
                let block_size = block.block_size.unwrap_or(*size);
                let previous = block.previous_size;
                writeln!(out, "{} size: {block_size:4x} previous size: {previous:4x}  {state} {tag}", pointer(header))
            }
            (true, _) => {
                let freed = if free { " (Free)" } else { "" };
                let size = if *size == 0 { "0".into() } else { format!("{size:#x}") };
                writeln!(out, "{address} : tag {tag}, size {size:>9}, {pool_name}{freed}")
            }
        }
    }
}

impl Text for PoolFind {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| self.width.pointer(address.0);
        let (tag, start, end) = (&self.tag, pointer(self.table.start), pointer(self.table.end));
        let scanning = "Scanning large pool allocation table for";
        if self.searched != "small" {
            match self.new_layout {
                false => writeln!(out, "\n{scanning} Tag: {tag} ({start} : {end})\n")?,
                true => writeln!(out, "\n{scanning} tag 0x{:08x} ({tag}) ({start} : {end})\n", self.key)?,
            }
        }
        let (large, small): (Vec<&Block>, Vec<&Block>) = self.blocks.iter().partition(|block| block.header.is_none());
        for block in large {
            self.row(block, out)?;
        }
        let paged = |block: &&&Block| block.pool == Pool::Paged;
        for (pool, range) in &self.ranges {
            let (start, end) = (self.width.pointer(range.start), self.width.pointer(range.end));
            match (self.new_layout, pool.is_paged()) {
                (false, true) => writeln!(out, "\nSearching Paged pool ({start} : {end}) for Tag: {tag}\n")?,
                (false, false) => writeln!(out, "\nSearching NonPaged pool ({start} : {end}) for Tag: {tag}\n")?,
                (true, is_paged) => {
                    let name = if is_paged { "paged" } else { "nonpaged" };
                    writeln!(out, "\nSearching {name} pool ({start} : {end}) for tag 0x{:08x} ({tag})\n", self.key)?;
                }
            }
            for block in small.iter().filter(|block| paged(block) == pool.is_paged()) {
                self.row(block, out)?;
            }
        }
        if let Some(at) = self.stopped {
            writeln!(out, "\n...terminating - searched pool to {}", pointer(at))?;
        }
        match (self.blocks.is_empty(), self.searched) {
            (true, "large") => writeln!(out, "No large allocation has the tag {tag}."),
            (true, _) => writeln!(out, "No allocation that was searched has the tag {tag}."),
            (false, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The article's addresses, in its order.
    const ARTICLE: [u64; 23] = [
        0xfffff8a006a00000,
        0xfffff8a0058fa000,
        0xfffff8a006200000,
        0xfffff8a0068fa000,
        0xfffff8a0060fa000,
        0xfffff8a005a00000,
        0xfffff8a006c00000,
        0xfffff8a006400000,
        0xfffff8a0062fa000,
        0xfffff8a005afa000,
        0xfffff8a005c00000,
        0xfffff8a006e00000,
        0xfffff8a006600000,
        0xfffff8a0064fa000,
        0xfffff8a005cfa000,
        0xfffff8a006afa000,
        0xfffff8a005e00000,
        0xfffff8a006800000,
        0xfffff8a0066fa000,
        0xfffff8a005efa000,
        0xfffff8a006cfa000,
        0xfffff8a006000000,
        0xfffff8a005800000,
    ];

    fn found(new_layout: bool) -> PoolFind {
        let block = |&address| Block {
            address: Hex(address),
            header: None,
            block_size: None,
            previous_size: 0,
            size: 0xfa000,
            tag: "Leak".into(),
            kind: "large",
            pool: Pool::Paged,
            state: "allocated",
            pool_name: "Paged pool".into(),
        };
        PoolFind {
            tag: "Leak".into(),
            searched: "large",
            table: Table { start: Hex(0xfffffa8002e00000), end: Hex(0xfffffa8002f80000) },
            stopped: None,
            ranges: Vec::new(),
            blocks: ARTICLE.iter().map(block).collect(),
            key: 0x6b61654c,
            width: Width::Eight,
            new_layout,
        }
    }

    fn lines(found: &PoolFind) -> Vec<String> {
        let mut text = String::new();
        found.text(&mut text).unwrap();
        text.lines().map(String::from).collect()
    }

    #[test]
    fn the_articles_blocks() {
        let lines = lines(&found(false));
        assert_eq!(lines[0], "");
        assert_eq!(
            lines[1],
            "Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)"
        );
        assert_eq!(lines[2], "");
        assert_eq!(lines[3], "*fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
        assert_eq!(lines[25], "*fffff8a005800000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
        assert_eq!(lines.len(), 26);
    }

    /// facts 8.2.
    #[test]
    fn small_blocks_have_kds_rows() {
        let mut found = found(false);
        found.searched = "all";
        let small = |header: u64, state| Block {
            address: Hex(header + 8),
            header: Some(Hex(header)),
            size: 0xb8,
            block_size: Some(0xc0),
            tag: "SeSd".into(),
            kind: "small",
            pool: Pool::NonPaged,
            state,
            previous_size: 0x40,
            pool_name: "Nonpaged pool".into(),
        };
        found.tag = "SeSd".into();
        found.width = Width::Four;
        found.ranges = vec![(PoolKind::NonPaged, 0x823b1000..0x82800000)];
        found.blocks = vec![small(0x826fa130, "allocated"), small(0x82721c00, "free")];
        found.stopped = Some(Hex(0xe1224000));
        let old = lines(&found);
        assert_eq!(
            old[3..],
            [
                "",
                "Searching NonPaged pool (823b1000 : 82800000) for Tag: SeSd",
                "",
                "826fa130 size:   c0 previous size:   40  (Allocated) SeSd",
                "82721c00 size:   c0 previous size:   40  (Free)      SeSd",
                "",
                "...terminating - searched pool to e1224000",
            ]
        );
        found.new_layout = true;
        assert_eq!(lines(&found)[6], "826fa138 : tag SeSd, size      0xb8, Nonpaged pool");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            json["blocks"][0],
            serde_json::json!({
                "address": "0x826fa138", "header": "0x826fa130", "size": 0xb8, "block_size": 0xc0, "tag": "SeSd",
                "kind": "small", "pool": "nonpaged", "state": "allocated"
            })
        );
    }

    #[test]
    fn the_current_layout() {
        let lines = lines(&found(true));
        assert_eq!(
            lines[1],
            "Scanning large pool allocation table for tag 0x6b61654c (Leak) (fffffa8002e00000 : fffffa8002f80000)"
        );
        assert_eq!(lines[3], "fffff8a006a00000 : tag Leak, size   0xfa000, Paged pool");
    }

    #[test]
    fn arguments_are_kds() {
        let parsed =
            |text: &str| arguments(text).map(|q| (q.tag.to_string(), q.pool)).map_err(|error| error.to_string());
        assert_eq!(parsed("Leak"), Ok(("Leak".into(), None)));
        assert_eq!(parsed("Leak 1"), Ok(("Leak".into(), Some(Pool::Paged))));
        assert_eq!(parsed("MmSt -paged"), Ok(("MmSt".into(), Some(Pool::Paged))));
        assert_eq!(parsed(r#"-tag "AB C" 0"#), Ok(("AB C".into(), Some(Pool::NonPaged))));
        assert_eq!(parsed("Irp"), Ok(("Irp ".into(), None)));
        assert_eq!(parsed("Leak 2"), Ok(("Leak".into(), Some(Pool::Special))));
        let question = arguments("-small -limit 10 -from fffff8a0`00000000 -free Leak -paged").unwrap();
        assert_eq!((question.limit, question.from), (0x10 << 20, 0xfffff8a000000000));
        assert!(question.small && question.free && !question.large && question.pool == Some(Pool::Paged));
        assert!(parsed("Leak -limit").unwrap_err().contains("megabytes"));
        assert!(parsed("").unwrap_err().contains("no tag"));
        assert!(parsed("Leak 9").unwrap_err().contains("no pool type"));
        assert!(parsed("TooLong").unwrap_err().contains("four characters"));
    }

    #[test]
    fn json_has_the_issues_names() {
        let json = serde_json::to_value(found(false)).unwrap();
        assert_eq!(json["tag"], "Leak");
        assert_eq!(
            json["blocks"][0],
            serde_json::json!({
                "address": "0xfffff8a006a00000", "size": 0xfa000, "tag": "Leak", "kind": "large", "pool": "paged",
                "state": "allocated"
            })
        );
    }
}
