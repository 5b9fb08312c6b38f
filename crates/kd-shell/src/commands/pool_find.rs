//! `!poolfind tag [pool type]`: the large allocations of a tag.
//!
//! ```text
//! Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)
//!
//! *fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes
//! ```
//!
//! kd's default pool type is nonpaged, but it scans the large table for both, and so the article's paged blocks are
//! found without a type. A type that is given restricts the answer to it.

use std::fmt;
use std::ops::Range;

use nt_pool::TagPattern;
use nt_pool::big_pages::{self, BigPages};
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
    usage: "!poolfind tag [pooltype]",
    help: "the allocations with a tag (large ones: a page and more)",
    details: "A tag is four characters, may have wildcards (* ?), and keeps its blanks between quotes; 0x6b61654c is a tag's \
              value.\nPool types: 0 nonpaged, 1 paged, 2 special, 4 session, or -nonpaged -paged -session; without one all \
              pools are\nsearched. Allocations smaller than a page are not searched in this version.",
    action: Action::Answer(run),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    NonPaged,
    Paged,
    Session,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Block {
    /// What the allocation call returned.
    address: Hex,
    size: u64,
    tag: String,
    kind: &'static str,
    pool: Pool,
    state: &'static str,
    #[serde(skip)]
    pool_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PoolFind {
    tag: String,
    /// What was looked at: the table of large allocations.
    searched: &'static str,
    table: Table,
    blocks: Vec<Block>,
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

/// The arguments: a tag and the pool it is wanted from.
fn arguments(text: &str) -> Result<(TagPattern, Option<Pool>), CommandError> {
    let mut tag = None;
    let mut pool = None;
    let mut left = text.trim();
    while !left.is_empty() {
        let quote = left.starts_with(['\'', '"']).then(|| left[1..].find(&left[..1])).flatten();
        let length = quote.map_or_else(|| left.find(char::is_whitespace).unwrap_or(left.len()), |end| end + 2);
        let (word, after) = left.split_at(length);
        left = after.trim_start();
        let wanted = match word {
            "-tag" | "-large" | "-global" => continue,
            "-nonpaged" => Pool::NonPaged,
            "-paged" => Pool::Paged,
            "-session" => Pool::Session,
            "-small" | "-process" | "-x" => {
                return Err(CommandError::Failed(format!("!poolfind {word} is not in this version")));
            }
            word if tag.is_none() => {
                tag = Some(pattern(word).map_err(|error| usage(&INFO, error))?);
                continue;
            }
            word => match plain_number(word) {
                Some(0) => Pool::NonPaged,
                Some(1) => Pool::Paged,
                Some(2) => {
                    return Err(CommandError::Failed("searching special pool is not in this version".into()));
                }
                Some(4) => Pool::Session,
                _ => return Err(usage(&INFO, format!("'{word}' is no pool type; they are 0, 1, 2 and 4"))),
            },
        };
        pool = Some(wanted);
    }
    Ok((tag.ok_or_else(|| usage(&INFO, "no tag"))?, pool))
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (tag, pool) = arguments(context.arguments)?;
    let kernel = context.kernel()?;
    let width = kernel.width();
    let new_layout = kernel.version().minor >= NEW_LAYOUT;
    let BigPages { table: Range { start, end }, blocks, notes } = context.pool(|kernel| match tag.exact() {
        Some(tag) => big_pages::find(kernel, tag),
        None => big_pages::read(kernel, &|found| tag.matches(found)),
    })?;
    let blocks = blocks
        .into_iter()
        .filter(|block| !block.free)
        .map(|block| Block {
            address: Hex(width.address(block.address)),
            size: block.size,
            tag: block.tag.to_string(),
            kind: "large",
            pool: match block.kind {
                kind if kind.is_session() => Pool::Session,
                kind if kind.is_paged() => Pool::Paged,
                _ => Pool::NonPaged,
            },
            state: "allocated",
            pool_name: block.kind.to_string(),
        })
        .filter(|block| pool.is_none_or(|pool| block.pool == pool))
        .collect();
    let name = tag.to_string();
    let key = name.bytes().take(4).rev().fold(0, |key, byte| key << 8 | u32::from(byte));
    let table = Table { start: Hex(width.address(start)), end: Hex(width.address(end)) };
    let answer = PoolFind { tag: name, searched: "large", table, blocks, key, width, new_layout };
    Ok(Reply::with_notes(answer, notes))
}

impl Text for PoolFind {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| self.width.pointer(address.0);
        let (tag, start, end) = (&self.tag, pointer(self.table.start), pointer(self.table.end));
        let scanning = "Scanning large pool allocation table for";
        match self.new_layout {
            false => writeln!(out, "\n{scanning} Tag: {tag} ({start} : {end})\n")?,
            true => writeln!(out, "\n{scanning} tag 0x{:08x} ({tag}) ({start} : {end})\n", self.key)?,
        }
        for block in &self.blocks {
            let (address, tag) = (pointer(block.address), &block.tag);
            match self.new_layout {
                false => {
                    writeln!(
                        out,
                        "*{address} :large page allocation, Tag  is {tag}, size  is {:#x} bytes",
                        block.size
                    )?;
                }
                true => {
                    writeln!(
                        out,
                        "{address} : tag {tag}, size {:>9}, {}",
                        format!("{:#x}", block.size),
                        block.pool_name
                    )?;
                }
            }
        }
        match self.blocks.is_empty() {
            true => {
                writeln!(out, "No large allocation has the tag {tag}; smaller ones are not searched in this version.")
            }
            false => Ok(()),
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
        let parsed = |text: &str| arguments(text).map(|(tag, pool)| (tag.to_string(), pool)).map_err(|e| e.to_string());
        assert_eq!(parsed("Leak"), Ok(("Leak".into(), None)));
        assert_eq!(parsed("Leak 1"), Ok(("Leak".into(), Some(Pool::Paged))));
        assert_eq!(parsed("MmSt -paged"), Ok(("MmSt".into(), Some(Pool::Paged))));
        assert_eq!(parsed(r#"-tag "AB C" 0"#), Ok(("AB C".into(), Some(Pool::NonPaged))));
        assert_eq!(parsed("Irp"), Ok(("Irp ".into(), None)));
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
