//! `!pool address [flags]`: what lies around an address in pool.
//!
//! ```text
//! Pool page ffffac883ca17920 region is Nonpaged pool
//!  ffffac883ca17000 size:  900 previous size:    0  (Allocated)  PFXM
//! *ffffac883ca17910 size:  600 previous size:    0  (Allocated) *tvEm
//!         Owning component : Unknown (update pooltag.txt)
//! ```

use std::fmt;

use nt_pool::around::{self, Around, Contents};
use nt_pool::build::WINDOWS_8;
use nt_pool::freed::{self, Told, Undecided};
use nt_pool::pool_page;
use nt_pool::{Lack, Missing, PoolKind};
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
    names: &["!pool"],
    usage: "!pool address [flags]",
    help: "the pool block that an address lies in, and the other blocks of its page",
    details: "Flags: 1 the first bytes of each block too (dc shows more), 2 only the block of the address, 0x80000000 \
              neither the\npool's name nor the tag's description. The block of the address is marked with *. Large \
              allocations, those of\nsessions, special pool and segment heaps are known; a free chunk of a segment heap \
              is shown from its own header on,\nas kd does.",
    results: &[ResultShape::of::<Pool>("pool")],
    action: Action::Answer(run),
};

const CONTENTS: u64 = 1;
const ONLY: u64 = 2;
const NO_DESCRIPTION: u64 = 0x8000_0000;

/// Dwords of one block that are shown: two lines, as in kd, whatever the block's size is.
const SHOWN: usize = 8;

#[derive(Debug, JsonSchema, Serialize)]
struct Pool {
    address: Hex,
    page: Hex,
    /// kd's word for the pool.
    region: String,
    readable: bool,
    /// The session whose large allocation it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<u32>,
    blocks: Vec<Block>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    #[serde(skip)]
    described: bool,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    new_layout: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
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
    /// With flag 1, the dwords that it begins with; `None` where they cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    contents: Vec<Option<u32>>,
    #[serde(skip)]
    paged: bool,
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
    let (found, told) = context.pool(|kernel| {
        let mut found = around::read(kernel, address)?;
        let mut told = Told::default();
        if let Contents::Blocks(blocks) = &mut found.contents {
            blocks.retain(|block| flags & ONLY == 0 || block.contains(address));
            told = freed::tell(kernel, found.pool, blocks)?;
        }
        Ok((found, told))
    })?;
    let describe = |tag| (flags & NO_DESCRIPTION == 0).then(|| context.session.pool_tags.pool(tag));
    let Around { page, pool, contents, session, problem, readable, mut notes, checks } = found;
    let checks = match problem {
        // It says what differs, and where.
        Some(problem) => {
            notes.remark(problem);
            checks.iter().map(Balance::from).collect()
        }
        None => Balance::all(&checks, &[], &mut notes),
    };
    notes.extend(told.notes);
    notes.extend(told.undecided.map(undecided));
    let hex = |address: u64| Hex(width.address(address));
    let mut region = pool.map_or("Unknown".into(), |pool| pool.to_string());
    let mut blocks = Vec::new();
    match contents {
        Contents::Blocks(found) => {
            for block in found {
                let pool_page::Block { header, address: data, size, block_size, previous_size, tag, .. } = block;
                let contains = block.contains(address);
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
                    contents: Vec::new(),
                    paged: block.paged,
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
                contents: Vec::new(),
                paged: pool.is_some_and(PoolKind::is_paged),
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
            contents: Vec::new(),
            paged: block.kind.is_paged(),
        }),
        Contents::Nothing => {}
    }
    let new_layout = kernel.version().minor >= WINDOWS_8;
    if flags & CONTENTS != 0 {
        for block in &mut blocks {
            block.contents = context.pool(|kernel| around::dwords(kernel, block.address.0, SHOWN))?;
        }
    }
    let (address, page, described) = (hex(address), hex(page), flags & NO_DESCRIPTION == 0);
    let answer = Pool { address, page, region, readable, session, blocks, checks, described, width, new_layout };
    Ok(Reply::with_notes(answer, notes))
}

/// What to say of blocks that may be in lists that were not followed.
fn undecided(Undecided { blocks, elements }: Undecided) -> Missing {
    let what = format!(
        "{blocks} of these blocks that look allocated may wait in a lookaside list: the lists have {elements} elements, a \
         request each; !poolfind with the tag follows them, and !pool then knows in the same stop"
    );
    Missing::because(Lack::Stopped, what).count(blocks)
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
                    row.push_str(&format!(" Process: {}", pointer(process)));
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
        if self.described {
            writeln!(out, "Pool page {address} region is {}", self.region)?;
        }
        if self.session.is_some() {
            writeln!(out, "{page} is not a valid large pool allocation, checking large session pool...")?;
        }
        for block in &self.blocks {
            block.row(self, out)?;
            if let Some(description) = &block.description {
                writeln!(out, "\t\t{description}")?;
            }
            if !block.contents.is_empty() {
                for (index, line) in block.contents.chunks(4).enumerate() {
                    let at = self.width.pointer(block.address.0.wrapping_add(index as u64 * 16));
                    let text = |dword: &Option<u32>| dword.map_or("????????".into(), |dword| format!("{dword:08x}"));
                    let line: Vec<String> = line.iter().map(text).collect();
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

    fn block(header: u64, unit: u64, sizes: (u64, u64), tag: &str, state: &'static str) -> Block {
        Block {
            address: Hex(header + unit),
            header: Some(Hex(header)),
            size: sizes.0 - unit,
            block_size: Some(sizes.0),
            previous_size: sizes.1,
            tag: tag.into(),
            protected: false,
            kind: "small",
            state,
            contains: false,
            process: None,
            description: None,
            contents: Vec::new(),
            paged: false,
        }
    }

    /// The block of the address.
    fn marked(block: Block, description: &str) -> Block {
        Block { contains: true, description: Some(description.into()), ..block }
    }

    fn pool(address: u64, region: &str, width: Width, blocks: Vec<Block>) -> Pool {
        Pool {
            address: Hex(address),
            page: Hex(address & !0xfff),
            region: region.into(),
            readable: true,
            session: None,
            blocks,
            checks: Vec::new(),
            described: true,
            width,
            new_layout: width == Width::Eight,
        }
    }

    fn text(pool: &Pool) -> String {
        let mut text = String::new();
        pool.text(&mut text).unwrap();
        text
    }

    const UNKNOWN: &str = "Owning component : Unknown (update pooltag.txt)";

    /// kd-ux 3.3.
    #[test]
    fn a_page_of_a_segment_heap() {
        let blocks = vec![
            block(0xffffac883ca17000, 16, (0x900, 0), "PFXM", "allocated"),
            marked(block(0xffffac883ca17910, 16, (0x600, 0), "tvEm", "allocated"), UNKNOWN),
        ];
        assert_eq!(
            text(&pool(0xffffac883ca17920, "Nonpaged pool", Width::Eight, blocks)),
            "Pool page ffffac883ca17920 region is Nonpaged pool\n \
             ffffac883ca17000 size:  900 previous size:    0  (Allocated)  PFXM\n\
             *ffffac883ca17910 size:  600 previous size:    0  (Allocated) *tvEm\n\
             \t\tOwning component : Unknown (update pooltag.txt)\n"
        );
    }

    /// kd-ux 3.3, Windows 7.
    #[test]
    fn a_page_of_the_classic_pool() {
        let blocks = vec![
            marked(block(0xfffffa8003f42000, 16, (0x410, 0), "Irp ", "free"), "Pooltag Irp  : Io, IRP packets"),
            block(0xfffffa8003f42410, 16, (0x40, 0x410), "MmSe", "allocated"),
            block(0xfffffa8003f42880, 16, (0x20, 0xd0), "Free", "free"),
        ];
        assert_eq!(
            text(&pool(0xfffffa8003f42000, "Nonpaged pool", Width::Eight, blocks)),
            "Pool page fffffa8003f42000 region is Nonpaged pool\n\
             *fffffa8003f42000 size:  410 previous size:    0  (Free)      *Irp \n\
             \t\tPooltag Irp  : Io, IRP packets\n \
             fffffa8003f42410 size:   40 previous size:  410  (Allocated)  MmSe\n \
             fffffa8003f42880 size:   20 previous size:   d0  (Free)       Free\n"
        );
    }

    /// pool-internals 8.3: quota, a protected tag, a free block.
    #[test]
    fn a_page_of_32_bits() {
        let mut irp = block(0x83b452f0, 8, (0x208, 0x1b0), "Irp ", "allocated");
        irp.process = Some(Hex(0x856afd40));
        let mut object = marked(
            block(0x85fa2000, 8, (0x280, 0), "Proc", "allocated"),
            "Pooltag Proc : Process objects, Binary : nt!ps",
        );
        object.protected = true;
        let free = block(0xe1001040, 8, (0x10, 0x40), "Mm  ", "free");
        assert_eq!(
            text(&pool(0x83b45af8, "Nonpaged pool", Width::Four, vec![irp, object, free])),
            "Pool page 83b45af8 region is Nonpaged pool\n \
             83b452f0 size:  208 previous size:  1b0  (Allocated)  Irp  Process: 856afd40\n\
             *85fa2000 size:  280 previous size:    0  (Allocated) *Proc (Protected)\n\
             \t\tPooltag Proc : Process objects, Binary : nt!ps\n \
             e1001040 size:   10 previous size:   40  (Free)       Mm  \n"
        );
    }

    /// The page of `!pool` in Microsoft's documentation: two lines behind each block, whatever its size.
    #[test]
    fn contents() {
        let mut first = block(0xe1001000, 8, (0x40, 0), "MmDT", "allocated");
        first.contents =
            [0xffffffff, 0x0057005c, 0x004e0049, 0x004f0044, 0xffffffff, 0x00530053].into_iter().map(Some).collect();
        first.contents.extend([Some(0x00730079), None]);
        let mut second = block(0xe1001040, 8, (0x10, 0x40), "Mm  ", "free");
        second.contents = vec![Some(0xffffffff); 8];
        let mut page = pool(0xe1001050, "Paged pool", Width::Four, vec![first, second]);
        page.described = false;
        assert_eq!(
            text(&page),
            " e1001000 size:   40 previous size:    0  (Allocated)  MmDT\n \
             e1001008  ffffffff 0057005c 004e0049 004f0044\n    \
             e1001018  ffffffff 00530053 00730079 ????????\n\n \
             e1001040 size:   10 previous size:   40  (Free)       Mm  \n \
             e1001048  ffffffff ffffffff ffffffff ffffffff\n    \
             e1001058  ffffffff ffffffff ffffffff ffffffff\n\n"
        );
    }

    /// pool-internals 8.3, Windows 11: free chunks have whatever stands where a tag would.
    #[test]
    fn free_chunks_of_a_segment_heap() {
        let blocks = vec![
            marked(
                block(0xffffe2809abee000, 16, (0x880, 0), "MmSt", "allocated"),
                "Pooltag MmSt : Mm section object prototype ptes, Binary : nt!mm",
            ),
            block(0xffffe2809abee880, 16, (0x760, 0), ".r.\"", "free"),
        ];
        assert_eq!(
            text(&pool(0xffffe2809abee000, "Paged pool", Width::Eight, blocks)),
            "Pool page ffffe2809abee000 region is Paged pool\n\
             *ffffe2809abee000 size:  880 previous size:    0  (Allocated) *MmSt\n\
             \t\tPooltag MmSt : Mm section object prototype ptes, Binary : nt!mm\n \
             ffffe2809abee880 size:  760 previous size:    0  (Free)       .r.\"\n"
        );
        let blocks = vec![marked(block(0xffffbd06d46dffe0, 16, (0x8020, 0), ">.g.", "free"), UNKNOWN)];
        assert_eq!(
            text(&pool(0xffffbd06d46e0000, "Paged pool", Width::Eight, blocks)).lines().nth(1),
            Some("*ffffbd06d46dffe0 size: 8020 previous size:    0  (Free)      *>.g.")
        );
    }

    /// pool-internals 2.5.
    #[test]
    fn large_allocations() {
        let mut large = marked(
            block(0xffffc986cb6f1ff0, 16, (0x4010, 0), "V2lg", "allocated"),
            "Pooltag V2lg : VHD2 core large allocation, Binary : vhdmp.sys",
        );
        (large.header, large.kind) = (None, "large");
        let mut page = pool(0xffffc986cb6f2000, "Nonpaged pool", Width::Eight, vec![large]);
        assert_eq!(
            text(&page),
            "Pool page ffffc986cb6f2000 region is Nonpaged pool\n\
             *ffffc986cb6f2000 : large page allocation, tag is V2lg, size is 0x4000 bytes\n\
             \t\tPooltag V2lg : VHD2 core large allocation, Binary : vhdmp.sys\n"
        );
        page.new_layout = false;
        (page.blocks[0].tag, page.blocks[0].size, page.blocks[0].address) =
            ("Leak".into(), 0xfa000, Hex(0xfffff8a006a00000));
        assert!(
            text(&page).contains("\n*fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes\n")
        );
        (page.new_layout, page.session, page.page) = (true, Some(1), Hex(0xfffff901400d0000));
        (page.blocks[0].tag, page.blocks[0].size, page.blocks[0].address) =
            ("Gh05".into(), 0x1090, Hex(0xfffff901400d0000));
        page.described = false;
        page.blocks[0].description = None;
        assert_eq!(
            text(&page),
            "fffff901400d0000 is not a valid large pool allocation, checking large session pool...\n\
             *fffff901400d0000 : large page allocation, tag is Gh05, size is 0x1090 bytes\n"
        );
    }

    /// pool-internals 6.3.
    #[test]
    fn special_pool() {
        let mut special = marked(
            block(0xffffb98851f06000, 0xb10, (0x1000, 0), "Scbf", "allocated"),
            "Pooltag Scbf : Mass storage driver tags",
        );
        (special.kind, special.block_size) = ("special", None);
        assert_eq!(
            text(&pool(0xffffb98851f06b10, "Special pool", Width::Eight, vec![special])),
            "Pool page ffffb98851f06b10 region is Special pool\n\
             *ffffb98851f06000 size:  4f0 data: ffffb98851f06b10 (NonPaged) *Scbf\n\
             \t\tPooltag Scbf : Mass storage driver tags\n"
        );
    }

    /// pool-internals 8.3: the address as it was typed, then its page.
    #[test]
    fn no_pool() {
        let mut page = pool(0xffffc48068d7d123, "Unknown", Width::Eight, Vec::new());
        page.readable = false;
        assert_eq!(
            text(&page),
            "Pool page ffffc48068d7d123 region is Unknown\n\
             ffffc48068d7d000 is not a valid large pool allocation, checking large session pool...\n\
             ffffc48068d7d000 is not valid pool. Checking for freed (or corrupt) pool\n\
             Address ffffc48068d7d000 could not be read. It may be a freed, invalid or paged out page\n"
        );
    }
}
