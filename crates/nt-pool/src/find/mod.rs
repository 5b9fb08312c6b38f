//! The blocks of a tag, wherever they lie: one question, what its answer will cost, and the answer.
//!
//! ```text
//! Question --Quote::new--> Quote --run--> Findings
//!   what is asked for       what it costs  blocks, how far it came, what is missing, whether the books balance
//! ```
//!
//! [`Quote::new`] reads the table of large allocations, the tag's counters, and where small blocks can be: which is
//! cheap, and says what the rest will cost. [`Quote::run`] does the rest. Whether the target searches its own memory or
//! all of it is read, and how far a budget goes, is decided here, from what the memory says of its own cost
//! ([`nt_memory::Memory::spent`], [`nt_memory::Memory::reply_size`]).

mod books;
mod large;
mod quote;
mod run;
mod sessions;

use std::ops::Range;
use std::time::Duration;

use crate::big_pages::BigPage;
use crate::checks::Check;
use crate::small_blocks::{BlockKind, BlockState, Kinds, SmallBlock};
use crate::{Notes, PoolKind, Tag, TagPattern};

pub use quote::{Estimate, Quote};
pub use run::{Observer, Silent};

/// A pool as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Always in memory; executable or not.
    NonPaged,
    /// May be in a page file.
    Paged,
    /// Of one session's own, paged or not.
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

/// Which blocks are asked for, by their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sizes {
    /// Large allocations, and small ones unless the kernel's counters say that there are none.
    #[default]
    All,
    /// Small blocks, whatever the counters say.
    Small,
    /// Large allocations only, from the kernel's table of them.
    Large,
}

/// Where a search of small blocks was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In whose pool, if not in the machine's.
    pub session: Option<u32>,
    /// The header's, of the block at which it stopped.
    pub address: u64,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whose blocks; it may have wildcards.
    pub tag: TagPattern,
    /// All of them without one.
    pub pool: Option<Pool>,
    /// Not the sessions' own pools.
    pub global: bool,
    /// Large, small, or what the counters call for.
    pub sizes: Sizes,
    /// Freed blocks that still have the tag, too.
    pub free: bool,
    /// Only blocks whose header says which process pays for them.
    pub process: bool,
    /// Without the target's own search.
    pub bulk: bool,
    /// Small blocks below this address are passed over.
    pub from: u64,
    /// Where an earlier search of the same blocks was stopped: what it has found is not told again.
    pub resumed: Option<Place>,
}

impl Question {
    /// All blocks of a tag that are in use.
    pub fn new(tag: impl Into<TagPattern>) -> Self {
        Question {
            tag: tag.into(),
            pool: None,
            global: false,
            sizes: Sizes::All,
            free: false,
            process: false,
            bulk: false,
            from: 0,
            resumed: None,
        }
    }

    fn kinds(&self) -> Kinds {
        match self.pool {
            None => Kinds::ALL,
            Some(Pool::NonPaged) => Kinds { nonpaged: true, ..Kinds::NONE },
            Some(Pool::Paged) => Kinds { paged: true, ..Kinds::NONE },
            Some(Pool::Special) => Kinds { special: true, ..Kinds::NONE },
            Some(Pool::Session) => Kinds::NONE,
        }
    }

    fn wants_sessions(&self) -> bool {
        match self.pool {
            None => !self.global,
            Some(pool) => pool == Pool::Session,
        }
    }

    /// Whether the machine's own small blocks are asked for, and not told already by an earlier search.
    fn wants_small(&self) -> bool {
        self.sizes != Sizes::Large && self.kinds() != Kinds::NONE && self.resumed_session().is_none()
    }

    /// Whether the machine's large allocations are asked for, and not told already by an earlier search.
    fn wants_large(&self) -> bool {
        self.sizes != Sizes::Small
            && self.resumed.is_none()
            && !matches!(self.pool, Some(Pool::Special | Pool::Session))
    }

    fn resumed_session(&self) -> Option<(u32, u64)> {
        self.resumed.and_then(|place| Some((place.session?, place.address)))
    }

    /// Where the search of the machine's small blocks begins.
    fn start(&self) -> u64 {
        match self.resumed {
            Some(Place { session: None, address }) => address,
            _ => self.from,
        }
    }

    fn shows(&self, block: &Block) -> bool {
        let special = block.kind() == Some(BlockKind::Special);
        let of_pool = match self.pool {
            None => true,
            Some(Pool::Special) => special,
            Some(Pool::Session) => block.pool() == Pool::Session,
            Some(pool) => block.pool() == pool && !special,
        };
        of_pool && (self.free || block.is_allocated()) && (!self.process || block.process.is_some())
    }
}

/// How much a search may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of pool that are read.
    pub bytes: u64,
    /// How long the target may stand still.
    pub budget: Option<Duration>,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { bytes: u64::MAX, budget: None }
    }
}

/// A block, from whichever of the kernel's books has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What the book that has it says.
    pub what: What,
    /// Whose own pool it is of: in other sessions there is something else at this address.
    pub session: Option<u32>,
    /// The process that it is charged to; only when that was asked for.
    pub process: Option<u64>,
}

/// What the books say of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An entry of the table of large allocations.
    Large(BigPage),
    /// A block below a page, with its header.
    Small(SmallBlock),
}

impl Block {
    fn large(page: &BigPage) -> Self {
        Block { what: What::Large(page.clone()), session: None, process: None }
    }

    fn small(block: &SmallBlock) -> Self {
        Block { what: What::Small(*block), session: None, process: None }
    }

    fn of_session(self, id: u32) -> Self {
        Block { session: Some(id), ..self }
    }

    /// Of a large allocation there is none.
    pub fn kind(&self) -> Option<BlockKind> {
        match &self.what {
            What::Large(_) => None,
            What::Small(block) => Some(block.kind),
        }
    }

    /// What the allocation call returned.
    pub fn address(&self) -> u64 {
        match &self.what {
            What::Large(page) => page.address,
            What::Small(block) => block.address,
        }
    }

    /// What the caller may use.
    pub fn size(&self) -> u64 {
        match &self.what {
            What::Large(page) => page.size,
            What::Small(block) => block.size,
        }
    }

    /// A freed block keeps its last owner's.
    pub fn tag(&self) -> Tag {
        match &self.what {
            What::Large(page) => page.tag,
            What::Small(block) => block.tag,
        }
    }

    /// As the allocation asked for it.
    pub fn pool_kind(&self) -> PoolKind {
        match &self.what {
            What::Large(page) => page.kind,
            What::Small(block) => block.pool,
        }
    }

    /// As people name it.
    pub fn pool(&self) -> Pool {
        self.pool_kind().into()
    }

    /// A block that waits in a list of freed ones is free for everyone but the pool.
    pub fn is_allocated(&self) -> bool {
        match &self.what {
            What::Large(page) => !page.free,
            What::Small(block) => block.state == BlockState::Allocated,
        }
    }
}

/// What was not looked at on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The kernel counts no more allocations of the tag than the large ones that were found: small blocks were not
    /// searched.
    Counted,
    /// The same, and looking into the sessions' own pools would have cost too much.
    Sessions,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Searched {
    /// The table of large allocations.
    Large,
    /// The pages where small blocks are.
    Small,
    /// Both.
    All,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Where the table of large allocations lies.
    pub table: Range<u64>,
    /// Where small blocks were looked for, by pool.
    pub ranges: Vec<(PoolKind, Range<u64>)>,
    /// Each of them once.
    pub blocks: Vec<Block>,
    /// Which books.
    pub searched: Searched,
    /// Where the search of small blocks was stopped by a limit or by the user; it can go on from there.
    pub stopped: Option<Place>,
    /// What was left out because the kernel's counters had answered, or because of its cost.
    pub skipped: Vec<Skipped>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
    /// What was counted twice on the way, and whether it agrees.
    pub checks: Vec<Check>,
}
