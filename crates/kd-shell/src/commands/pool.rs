//! `!pool address [flags]`: what lies around an address in pool.
//!
//! ```text
//! Pool page ffffac883ca17920 region is Nonpaged pool
//!  ffffac883ca17000 size:  900 previous size:    0  (Allocated)  PFXM
//! *ffffac883ca17910 size:  600 previous size:    0  (Allocated) *tvEm
//!         Owning component : Unknown (update pooltag.txt)
//! ```

use std::fmt;

use nt_pool::PoolKind;
use nt_pool::around::{self, Around, Contents};
use nt_pool::pool_page;
use serde::Serialize;

use super::pool_used::NEW_LAYOUT;
use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::session::Context;
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!pool"],
    usage: "!pool address [flags]",
    help: "the pool block that an address lies in, and the other blocks of its page",
    details: "Flags: 1 the blocks' contents too, 2 only the block of the address, 0x80000000 no description of its tag. \
              The\nblock of the address is marked with *. Large allocations, special pool and segment heaps are known; a \
              free chunk of\na segment heap is shown from its own header on, as kd does.",
    action: Action::Answer(run),
};

const CONTENTS: u64 = 1;
const ONLY: u64 = 2;
const NO_DESCRIPTION: u64 = 0x8000_0000;

/// Bytes of one block that are shown.
const SHOWN: usize = 0x1000;

#[derive(Debug, Serialize)]
struct Pool {
    address: Hex,
    page: Hex,
    /// kd's word for the pool.
    region: String,
    readable: bool,
    blocks: Vec<Block>,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    new_layout: bool,
}

#[derive(Debug, Serialize)]
struct Block {
    address: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Hex>,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u64>,
    previous_size: u64,
    tag: String,
    protected: bool,
    kind: &'static str,
    /// `allocated` or `free`.
    state: &'static str,
    /// The address lies in this block.
    contains: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Hex>,
    /// What pooltag.txt says, of the block of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip)]
    paged: bool,
    #[serde(skip)]
    contents: Vec<u32>,
}

/// An address and flags; the address is an expression, so the flags are the last word if there are two.
fn arguments(context: &mut Context<'_>) -> Result<(u64, u64), CommandError> {
    let text = context.arguments.trim();
    if text.is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let (address, flags) = match text.rsplit_once(char::is_whitespace) {
        Some((address, flags)) => {
            let flags = plain_number(flags).ok_or_else(|| usage(&INFO, format!("'{flags}' is no number of flags")))?;
            (address, flags)
        }
        None => (text, 0),
    };
    if flags & !(CONTENTS | ONLY | NO_DESCRIPTION) != 0 {
        return Err(usage(&INFO, format!("unknown flags {flags:#x}; there are 1, 2 and 0x80000000")));
    }
    let address = evaluate_all(address, &mut context.scope())?;
    Ok((context.width().address(address), flags))
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (address, flags) = arguments(context)?;
    let kernel = context.kernel()?;
    let width = kernel.width();
    let found = context.pool(|kernel| around::read(kernel, address))?;
    let describe = |tag| (flags & NO_DESCRIPTION == 0).then(|| context.session.pool_tags.pool(tag));
    let Around { page, pool, contents, problem, readable, mut notes } = found;
    let complete = notes.is_empty();
    notes.extend(problem);
    let hex = |address: u64| Hex(width.address(address));
    let mut region = pool.map_or("Unknown".into(), |pool| pool.to_string());
    let mut blocks = Vec::new();
    match contents {
        Contents::Blocks(found) => {
            for block in found.into_iter().filter(|block| flags & ONLY == 0 || block.contains(address)) {
                let pool_page::Block { header, address: data, size, block_size, previous_size, tag, .. } = block;
                let contains = block.contains(address);
                let mut contents = Vec::new();
                if flags & CONTENTS != 0 {
                    let mut bytes = vec![0; SHOWN.min(size as usize)];
                    let read = kernel.memory().read(data, &mut bytes)?;
                    contents.extend(bytes[..read].as_chunks().0.iter().map(|dword| u32::from_le_bytes(*dword)));
                }
                blocks.push(Block {
                    address: hex(data),
                    header: Some(hex(header)),
                    size,
                    block_size: Some(block_size),
                    previous_size,
                    tag: tag.to_string(),
                    protected: block.protected,
                    kind: "small",
                    state: if block.allocated { "allocated" } else { "free" },
                    contains,
                    process: block.process.map(hex),
                    description: contains.then(|| describe(tag)).flatten(),
                    paged: block.paged,
                    contents,
                });
            }
        }
        Contents::Special(block) => {
            region = "Special pool".into();
            blocks.push(Block {
                address: hex(block.address),
                header: Some(hex(block.header)),
                size: block.size,
                block_size: None,
                previous_size: 0,
                tag: block.tag.to_string(),
                protected: false,
                kind: "special",
                state: "allocated",
                contains: true,
                process: None,
                description: describe(block.tag),
                paged: pool.is_some_and(PoolKind::is_paged),
                contents: Vec::new(),
            });
        }
        Contents::Large(block) => blocks.push(Block {
            address: hex(block.address),
            header: None,
            size: block.size,
            block_size: None,
            previous_size: 0,
            tag: block.tag.to_string(),
            protected: block.protected,
            kind: "large",
            state: if block.free { "free" } else { "allocated" },
            contains: true,
            process: None,
            description: describe(block.tag),
            paged: block.kind.is_paged(),
            contents: Vec::new(),
        }),
        Contents::Nothing => {}
    }
    let new_layout = kernel.version().minor >= NEW_LAYOUT;
    let answer = Pool { address: hex(address), page: hex(page), region, readable, blocks, width, new_layout };
    Ok(Reply { complete, ..Reply::with_notes(answer, notes) })
}

impl Block {
    fn row(&self, pool: &Pool, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| pool.width.pointer(address.0);
        let mark = if self.contains { '*' } else { ' ' };
        let Block { tag, size, previous_size, .. } = self;
        match (self.kind, self.header) {
            ("special", Some(header)) => {
                let kind = if self.paged { "Paged" } else { "NonPaged" };
                writeln!(out, "*{} size: {size:4x} data: {} ({kind}) *{tag}", pointer(header), pointer(self.address))
            }
            (_, Some(header)) => {
                let state = if self.state == "free" { "(Free)     " } else { "(Allocated)" };
                let block_size = self.block_size.unwrap_or(*size);
                let mut row = format!(
                    "{mark}{} size: {block_size:4x} previous size: {previous_size:4x}  {state} {mark}{tag}",
                    pointer(header)
                );
                if self.protected {
                    row.push_str(" (Protected)");
                }
                if let Some(process) = self.process {
                    row.push_str(&format!("  Process: {}", pointer(process)));
                }
                writeln!(out, "{row}")
            }
            (_, None) => {
                let freed = if self.state == "free" { " (Free)" } else { "" };
                let words = if pool.new_layout {
                    format!(" : large page allocation, tag is {tag}, size is {size:#x} bytes")
                } else {
                    format!(" :large page allocation, Tag  is {tag}, size  is {size:#x} bytes")
                };
                writeln!(out, "*{}{words}{freed}", pointer(self.address))
            }
        }
    }
}

impl Text for Pool {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (address, page) = (self.width.pointer(self.address.0), self.width.pointer(self.page.0));
        writeln!(out, "Pool page {address} region is {}", self.region)?;
        for block in &self.blocks {
            block.row(self, out)?;
            if let Some(description) = &block.description {
                writeln!(out, "\t\t{description}")?;
            }
            if !block.contents.is_empty() {
                for (index, line) in block.contents.chunks(4).enumerate() {
                    let at = self.width.pointer(block.address.0.wrapping_add(index as u64 * 16));
                    let line: Vec<String> = line.iter().map(|dword| format!("{dword:08x}")).collect();
                    writeln!(out, "{}{at}  {}", if index == 0 { " " } else { "    " }, line.join(" "))?;
                }
                writeln!(out)?;
            }
        }
        if self.blocks.is_empty() {
            writeln!(out, "{page} is not a valid large pool allocation, checking large session pool...")?;
            writeln!(out, "{page} is not valid pool. Checking for freed (or corrupt) pool")?;
            if !self.readable {
                writeln!(out, "Address {page} could not be read. It may be a freed, invalid or paged out page")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(header: u64, tag: &str, state: &'static str, contains: bool) -> Block {
        Block {
            address: Hex(header + 0x10),
            header: Some(Hex(header)),
            size: 0x5f0,
            block_size: Some(0x600),
            previous_size: 0,
            tag: tag.into(),
            protected: false,
            kind: "small",
            state,
            contains,
            process: None,
            description: contains.then(|| "Owning component : Unknown (update pooltag.txt)".into()),
            paged: false,
            contents: Vec::new(),
        }
    }

    fn text(pool: &Pool) -> String {
        let mut text = String::new();
        pool.text(&mut text).unwrap();
        text
    }

    /// facts 8.3 and kd-ux 3.3.
    #[test]
    fn rows_are_kds() {
        let mut pool = Pool {
            address: Hex(0xffffac883ca17920),
            page: Hex(0xffffac883ca17000),
            region: "Nonpaged pool".into(),
            readable: true,
            blocks: vec![
                block(0xffffac883ca17000, "PFXM", "allocated", false),
                block(0xffffac883ca17910, "tvEm", "allocated", true),
                block(0xffffac883ca17f10, "Mm  ", "free", false),
            ],
            width: Width::Eight,
            new_layout: true,
        };
        assert_eq!(
            text(&pool),
            "Pool page ffffac883ca17920 region is Nonpaged pool\n \
             ffffac883ca17000 size:  600 previous size:    0  (Allocated)  PFXM\n\
             *ffffac883ca17910 size:  600 previous size:    0  (Allocated) *tvEm\n\
             \t\tOwning component : Unknown (update pooltag.txt)\n \
             ffffac883ca17f10 size:  600 previous size:    0  (Free)       Mm  \n"
        );
        pool.blocks.truncate(2);
        pool.blocks.remove(0);
        pool.blocks[0].kind = "special";
        pool.blocks[0].size = 0x4f0;
        assert!(text(&pool).contains("*ffffac883ca17910 size:  4f0 data: ffffac883ca17920 (NonPaged) *tvEm\n"));
        pool.blocks[0].header = None;
        pool.blocks[0].kind = "large";
        assert!(text(&pool).contains("*ffffac883ca17920 : large page allocation, tag is tvEm, size is 0x4f0 bytes\n"));
        pool.blocks.clear();
        pool.readable = false;
        assert!(
            text(&pool).ends_with(
                "Address ffffac883ca17000 could not be read. It may be a freed, invalid or paged out page\n"
            )
        );
    }
}
