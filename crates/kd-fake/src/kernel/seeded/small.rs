//! Pool blocks smaller than a page, and the allocators that keep them.
//!
//! An allocator is run outside the machine, on its own list of blocks; what comes out is written into memory once.

mod classic;
mod heap;
mod segment;
mod special;

use std::ops::Range;

use super::places::Map;
use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::books::{PoolKind, SmallRoom};
use crate::kernel::builder::{Builder, Place};
use crate::kernel::memory::Memory;
use crate::kernel::pool::BigPage;
use crate::kernel::random::Random;
use crate::kernel::segments::RunningHeaps;
use crate::kernel::truth::SmallBlock;

const PAGE: u64 = 0x1000;
/// `ExpCacheLineSize`.
const CACHE_LINE: u64 = 0x40;

/// What the allocators need of the machine.
pub(crate) struct World {
    pub(crate) build: u16,
    /// Bytes of a `_POOL_HEADER`, and of a unit of its sizes: two pointers.
    pub(crate) unit: u64,
    /// Live blocks of a pool, or a heap, from which on no more are allocated than freed.
    pub(crate) crowd: usize,
    pub(crate) processes: Vec<u64>,
    /// KPRCBs.
    pub(crate) processors: Vec<u64>,
    pub(crate) operations: u32,
    /// Least and most bytes of a block.
    pub(crate) sizes: Option<(u64, u64)>,
    /// Whether pages leave memory for a page file.
    pub(crate) paged_out: bool,
    /// Whether there is a pool to which no node leads.
    pub(crate) private_pool: bool,
    /// Whether tags have no counters but those of their blocks.
    pub(crate) balanced: bool,
    /// Whether somebody will leak small blocks, and what else is leaked is large.
    pub(crate) hunt: bool,
}

/// A machine's small blocks by address, the blocks that are in the big-page table, and the heaps of those, in versions
/// that have them.
pub(crate) struct Written {
    pub(crate) small: Vec<SmallBlock>,
    pub(crate) pages: Vec<BigPage>,
    pub(crate) heaps: Option<RunningHeaps>,
    /// For small blocks that are allocated while the machine runs.
    pub(crate) room: Option<SmallRoom>,
}

/// Runs the version's allocator and writes its pool.
pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<Written, IsfError> {
    let mut written = match world.build {
        ..17763 => {
            let mut small = classic::write(builder, map, random, world)?;
            small.extend(special::write_classic(builder, map, random)?);
            Written { small, pages: Vec::new(), heaps: None, room: None }
        }
        _ => segment::write(builder, map, random, world)?,
    };
    written.small.sort_unstable_by_key(|block| block.address);
    Ok(written)
}

/// The same of one session's own pool, in whose address space this is.
pub(crate) fn write_session(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
    space: u64,
    range: &Range<u64>,
) -> Result<(Vec<SmallBlock>, Vec<BigPage>), IsfError> {
    let (mut small, pages) = match world.build {
        ..17763 => (classic::write_session(builder, random, world, space, range)?, Vec::new()),
        _ => segment::write_session(builder, map, random, world, space, range)?,
    };
    small.sort_unstable_by_key(|block| block.address);
    Ok((small, pages))
}

/// What an owner wants of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    tag: u32,
    /// Bytes asked for.
    size: u64,
    /// The EPROCESS that it is charged to.
    process: Option<u64>,
    /// Asked for at the start of a cache line, for which the block has to be larger.
    aligned: bool,
}

impl Owner {
    /// Units that its block needs with the header; 32-bit headers leave the process for the block's end.
    fn units(&self, unit: u64) -> u64 {
        let process = if unit == 8 && self.process.is_some() { 4 } else { 0 };
        let line = if self.aligned { CACHE_LINE } else { 0 };
        (self.size + process + line + unit).div_ceil(unit)
    }

    /// Of so many bytes, and charged to nobody.
    pub(crate) fn plain(tag: u32, size: u64) -> Owner {
        Owner { tag, size, process: None, aligned: false }
    }

    /// Mostly small, of few tags, sometimes charged to a process; at most `limit` bytes.
    fn random(random: &mut Random, world: &World, limit: u64) -> Owner {
        let texts: [&[u8; 4]; 10] =
            [b"File", b"Ntf0", b"Even", b"Irp ", b"Leak", b"FMsl", b"Key ", b"Pro\xe3", b"a\x01b ", b"Vad "];
        let sizes = match random.below(8) {
            0 => limit,
            1 | 2 => 0x400,
            _ => 0x120,
        };
        let (least, most) = world.sizes.unwrap_or((1, sizes));
        let tag = **random.pick(&texts);
        Owner {
            tag: u32::from_le_bytes(if world.hunt && tag == *b"Leak" { *b"MmSt" } else { tag }),
            size: least + random.below(most.min(limit) - least + 1),
            process: random.once_in(5).then(|| *random.pick(&world.processes)),
            aligned: false,
        }
    }
}

/// Writes `_POOL_HEADER`s.
pub(crate) struct Headers {
    previous: Place,
    index: Place,
    size: Place,
    kind: Place,
    tag: Place,
    /// Not on 32 bits.
    billed: Option<Place>,
    cookie: u64,
    unit: u64,
    /// Units that a header says too much, on purpose.
    surplus: u64,
}

/// What a header says.
pub(crate) struct Header {
    /// Of the block before, and of this one.
    pub(crate) previous: u64,
    pub(crate) units: u64,
    pub(crate) index: u64,
    pub(crate) pool: PoolKind,
    /// None: free.
    pub(crate) owner: Option<Owner>,
    /// The tag of a free block's last owner.
    pub(crate) tag: u32,
}

impl Headers {
    pub(crate) fn new(builder: &Builder, world: &World) -> Result<Headers, IsfError> {
        let place = |name| Place::of(&builder.isf, "_POOL_HEADER", name);
        Ok(Headers {
            previous: place("PreviousSize")?,
            index: place("PoolIndex")?,
            size: place("BlockSize")?,
            kind: place("PoolType")?,
            tag: place("PoolTag")?,
            billed: place("ProcessBilled").ok(),
            unit: world.unit,
            surplus: u64::from(builder.rules.breaks(Mutation::HeaderSize)),
            // From Windows 8 on the process is hidden.
            cookie: if world.build < 9200 { 0 } else { builder.variable("ExpPoolQuotaCookie")? },
        })
    }

    pub(crate) fn write(&self, memory: &mut Memory, at: u64, header: &Header) {
        let mut bytes = vec![0; self.unit as usize];
        self.previous.put(&mut bytes, header.previous);
        self.index.put(&mut bytes, header.index);
        self.size.put(&mut bytes, header.units + self.surplus);
        self.tag.put(&mut bytes, header.owner.map_or(header.tag, |owner| owner.tag).into());
        if let Some(owner) = header.owner {
            // In use, charged to a process; paged, cache-aligned and session as in POOL_TYPE.
            let aligned = if owner.aligned { 4 } else { 0 };
            let quota = if owner.process.is_some() { 8 } else { 0 };
            let kind = 2 | header.pool.pool_type() & 0x21 | aligned | quota;
            self.kind.put(&mut bytes, kind);
            if let (Some(process), None) = (owner.process, self.billed) {
                memory.put_pointer(at + header.units * self.unit - memory.pointer() as u64, process);
            }
            if let (Some(process), Some(billed)) = (owner.process, self.billed) {
                let hidden = if self.cookie == 0 { process } else { process ^ self.cookie ^ at };
                billed.put(&mut bytes, hidden);
            }
        }
        memory.put(at, &bytes);
    }
}

/// The block's first bytes are its own.
fn fill(builder: &mut Builder, address: u64, bytes: u64, random: &mut Random) {
    let content: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    builder.memory.put(address, &content[..bytes as usize]);
}

/// The pools that a version has.
fn kinds(build: u16) -> &'static [PoolKind] {
    match build {
        ..9200 => &[PoolKind::NonPaged, PoolKind::Paged],
        _ => &[PoolKind::NonPaged, PoolKind::NonPagedNx, PoolKind::Paged],
    }
}
