//! Terminal sessions' own pool: win32k's, mostly. Each session has tag tables, a table of large allocations and a pool
//! of its own, which lie in its part of the address space.
//!
//! ```text
//! _EPROCESS.Session -> _MM_SESSION_SPACE
//!   PoolTags                      10 1607 to Server 2022 in the structure, Windows 11 a pointer; before, the variable
//!                                 ExpSessionPoolTrackTable points into the session
//!   PoolTrackTableExpansion       tags that found no row
//!   PoolTrackBigPages             large allocations
//!   PagedPoolStart, PagedPoolEnd  pages of chained headers, before the segment heap
//!   Lookaside, PagedPool.PendingFrees   blocks freed that still look allocated, before the segment heap
//!   HeapState -> _EX_HEAP_SESSION_STATE.PagedHeap, SpecialPoolHeap
//! ```
//!
//! A session's addresses mean something in its processes only, so they are looked up in the page tables of one of them;
//! where physical memory cannot be read, the addresses are read as they are. Two sessions' structures may lie at the same
//! address.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use nt_memory::paging::{Page, Scheme, SoftwarePte, walk};
use nt_memory::{Fault, Layer, Memory, PAGE_SIZE, Search, Spent, Through, read_sparse};

use crate::big_pages::{self, BigPage, BigPages};
use crate::kernel::Variable;
use crate::lists::{Head, follow, slist_head};
use crate::record::Record;
use crate::segment_heap::{self, Heap};
use crate::small_blocks::{self, Blocks, Limits, Plan, SmallBlock};
use crate::tags::{self, TagReport};
use crate::{Kernel, Notes, PoolError, PoolKind, Tag};

const SPACE: &str = "_MM_SESSION_SPACE";

/// A terminal session that has pool of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// As `_MM_SESSION_SPACE.SessionId` has it.
    pub id: u32,
    /// Of its `_MM_SESSION_SPACE`.
    pub address: u64,
    /// EPROCESS through whose page tables its pool is read.
    pub process: Option<u64>,
    /// The page tables of that process, and how they are read.
    root: Option<u64>,
    scheme: Scheme,
}

/// The sessions that processes belong to, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    /// By their numbers.
    pub sessions: Vec<Session>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// No machine has more.
const MAX_SESSIONS: usize = 4096;

/// Follows the list of processes: one small request for each.
pub fn all(kernel: &Kernel<'_>) -> Result<Sessions, PoolError> {
    let mut found = Sessions::default();
    let process = kernel.layout("_EPROCESS")?;
    let member = |path: &str| {
        let missing = || PoolError::NoField { type_name: "_EPROCESS".into(), member: path.into() };
        process.field(path).map(|field| field.offset).ok_or_else(missing)
    };
    let (links, session) = (member("ActiveProcessLinks")?, member("Session")?);
    let root = kernel.layout("_KPROCESS").ok();
    let root = root.and_then(|process| process.field("DirectoryTableBase").map(|field| field.offset));
    let head = kernel.symbol("PsActiveProcessHead")?;
    let pointer = |address: u64| Variable { address: kernel.wrap(address), size: kernel.pointer_size };
    let first = kernel.gather(&[pointer(head)])?.remove(0)?;
    let scheme = scheme(kernel);
    let Sessions { sessions, notes } = &mut found;
    follow(kernel, "the list of processes", kernel.wrap(first), head, notes, &mut |at, _| {
        let process = at.wrapping_sub(links);
        let mut wanted = vec![pointer(at), pointer(process.wrapping_add(session))];
        wanted.extend(root.map(|root| pointer(process.wrapping_add(root))));
        let mut values = kernel.gather(&wanted)?.into_iter();
        let next = kernel.wrap(values.next().unwrap_or(Ok(0))?);
        let address = kernel.wrap(values.next().and_then(Result::ok).unwrap_or(0));
        if !kernel.is_kernel_address(address) {
            return Ok(next);
        }
        let root = values.next().and_then(Result::ok).filter(|root| *root != 0);
        let mut session = Session { id: 0, address, process: Some(kernel.wrap(process)), root, scheme };
        let mut known = false;
        for other in sessions.iter().filter(|other| other.address == address) {
            known |= is_same(kernel, other, &session)?;
        }
        if !known && sessions.len() < MAX_SESSIONS {
            // Page tables that do not have the session's structure are not the process's.
            if InSession::new(kernel.memory, &session).translate(address)? == Place::Nowhere {
                session.root = None;
            }
            sessions.push(session);
        }
        Ok(next)
    })?;
    // 32-bit kernels up to 10 1511 have the session of whatever runs at one place.
    if sessions.is_empty()
        && let Ok(space) = kernel.pointer_variable("MmSessionSpace")
        && let Ok(address) = kernel.gather(&[space])?.remove(0)
        && kernel.is_kernel_address(address)
    {
        sessions.push(Session { id: 0, address, process: None, root: None, scheme });
    }
    for session in sessions.iter_mut() {
        let memory = SessionKernel::new(kernel.memory, session);
        match Space::new(&memory.kernel(kernel), session)?.number("SessionId", 4)? {
            Some(id) => session.id = id as u32,
            None => notes.missing(format!("the session at {:016x} cannot be read", session.address)),
        }
    }
    sessions.sort_by_key(|session| session.id);
    Ok(found)
}

/// How this kernel's processor translates.
fn scheme(kernel: &Kernel<'_>) -> Scheme {
    let entry = Record::new(kernel, "_MMPTE_HARDWARE").ok();
    let wide = entry.as_ref().is_some_and(|entry| entry.size == 8);
    match kernel.pointer_size {
        4 if wide => Scheme::Pae,
        4 => Scheme::X86,
        _ if entry.is_some_and(|entry| entry.find("NotLargePage").is_some()) => Scheme::Arm64,
        _ => Scheme::X64 { levels: 4 },
    }
}

/// Whether two processes have the same memory where their sessions' structures are, which is at one address.
fn is_same(kernel: &Kernel<'_>, one: &Session, other: &Session) -> Result<bool, Fault> {
    let [one, other] = [one, other].map(|session| InSession::new(kernel.memory, session));
    // Mostly the first step of the way is the same, which costs one small read.
    if let (Some(first), Some(second)) = (one.first_entry()?, other.first_entry()?)
        && first == second
    {
        return Ok(true);
    }
    let address = one.session.address;
    Ok(match (one.translate(address)?, other.translate(address)?) {
        (Place::At(one), Place::At(other)) => one == other,
        (one, other) => one == other || one == Place::Unknown || other == Place::Unknown,
    })
}

/// The sums of a session's tag tables.
pub fn tags(kernel: &Kernel<'_>, session: &Session, wanted: &dyn Fn(Tag) -> bool) -> Result<TagReport, PoolError> {
    let memory = SessionKernel::new(kernel.memory, session);
    let kernel = memory.kernel(kernel);
    let space = Space::new(&kernel, session)?;
    let width = usize::from(kernel.pointer_size);
    let variable = |name: &str| -> Result<Option<u64>, Fault> {
        let Ok(variable) = kernel.pointer_variable(name) else { return Ok(None) };
        Ok(kernel.gather(&[variable])?.remove(0).ok())
    };
    let rows = variable("ExpSessionPoolTrackTableSize")?.unwrap_or(0);
    let (table, room) = match space.layout.field("PoolTags") {
        Some(field) if field.pointers == 0 && field.size > width as u64 => {
            (Some(kernel.wrap(session.address.wrapping_add(field.offset))), field.size)
        }
        Some(_) => (space.number("PoolTags", width)?, u64::MAX),
        None => (variable("ExpSessionPoolTrackTable")?, u64::MAX),
    };
    let expansion = space.number("PoolTrackTableExpansion", width)?;
    let expansion = expansion.zip(space.number("PoolTrackTableExpansionSize", width)?);
    let what = format!("the tag table of session {}", session.id);
    tags::read_plain(&kernel, &what, (table.unwrap_or(0), rows, room), expansion, wanted)
}

/// A session's large allocations.
pub fn big_pages(kernel: &Kernel<'_>, session: &Session, wanted: &dyn Fn(Tag) -> bool) -> Result<BigPages, PoolError> {
    let memory = SessionKernel::new(kernel.memory, session);
    let kernel = memory.kernel(kernel);
    let space = Space::new(&kernel, session)?;
    let width = usize::from(kernel.pointer_size);
    let table = space.number("PoolTrackBigPages", width)?.unwrap_or(0);
    let entries = space.number("PoolTrackBigPagesSize", width)?.unwrap_or(0);
    if table == 0 || entries == 0 {
        return Ok(BigPages::new(0..0));
    }
    let what = format!("the table of large allocations of session {}", session.id);
    let mut found = big_pages::read_at(&kernel, &what, table, entries, wanted)?;
    // Whatever type was asked for, this is where it was had.
    for block in &mut found.blocks {
        block.kind = block.kind.in_session();
    }
    Ok(found)
}

/// A session's small blocks; `large` are its large ones.
pub fn small_blocks(
    kernel: &Kernel<'_>,
    session: &Session,
    wanted: &dyn Fn(Tag) -> bool,
    large: &[BigPage],
    limits: Limits,
) -> Result<Blocks, PoolError> {
    let memory = SessionKernel::new(kernel.memory, session);
    let kernel = memory.kernel(kernel);
    let space = Space::new(&kernel, session)?;
    let width = usize::from(kernel.pointer_size);
    let plan = match segment_heap::is_segment_heap(&kernel)? {
        true => {
            const STATE: &str = "_EX_HEAP_SESSION_STATE";
            let state = space.number("HeapState", width)?.filter(|state| kernel.is_kernel_address(*state));
            let Some(state) = state else { return Ok(Blocks::default()) };
            let layout = kernel.layout(STATE)?;
            let mut heaps = Vec::new();
            for (member, special) in [("PagedHeap", false), ("SpecialPoolHeap", true)] {
                let Some(field) = layout.field(member) else {
                    if special {
                        continue;
                    }
                    return Err(PoolError::NoField { type_name: STATE.into(), member: member.into() });
                };
                let address = kernel.wrap(state.wrapping_add(field.offset));
                let heap = kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0)?;
                heaps.push(Heap { address: kernel.wrap(heap), pool: PoolKind::PagedSession, special });
            }
            Plan::of_heaps(&kernel, &heaps)?
        }
        false => {
            let start = space.number("PagedPoolStart", width)?.unwrap_or(0);
            let end = space.number("PagedPoolEnd", width)?.unwrap_or(0);
            let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(!(PAGE_SIZE - 1));
            let pool: Range<u64> = start & !(PAGE_SIZE - 1)..end;
            if !kernel.is_kernel_address(start) || pool.is_empty() || pool.end - pool.start > MAX_POOL {
                return Ok(Blocks::default());
            }
            Plan::of_pages(&kernel, pool, waiting(&space)?)?
        }
    };
    plan.find(&kernel, wanted, large, limits)
}

/// The lists of freed blocks that still look allocated: the session's own lookaside lists, and
/// what its pool has yet to take back.
fn waiting(space: &Space<'_>) -> Result<Vec<Head>, PoolError> {
    let kernel = space.kernel;
    let at = |offset: u64| kernel.wrap(space.address.wrapping_add(offset));
    let mut lists = Vec::new();
    let heads = space.layout.field("Lookaside").and_then(|field| Some((field.offset, field.array?)));
    if let Some((offset, (count, element))) = heads.filter(|(_, (count, element))| *count <= 64 && *element <= 0x100) {
        let bytes = read_sparse(kernel.memory, at(offset), (count * element) as usize)?.bytes;
        lists.extend((0..count).filter_map(|index| slist_head(kernel, &bytes, (index * element) as usize)));
    }
    let pool = space.layout.field("PagedPool").map(|field| field.offset);
    let pending = Record::large(kernel, "_POOL_DESCRIPTOR").and_then(|pool| pool.place("PendingFrees")).ok();
    if let Some((pool, pending)) = pool.zip(pending) {
        let head = Variable { address: at(pool.wrapping_add(pending as u64)), size: kernel.pointer_size };
        lists.extend(kernel.gather(&[head])?.remove(0).ok().map(|first| Head { first, depth: None }));
    }
    lists.retain(|head| !head.is_empty());
    Ok(lists)
}

/// The process that a small block of a session's is charged to, as its header says.
pub fn process(kernel: &Kernel<'_>, session: &Session, block: &SmallBlock) -> Result<Option<u64>, PoolError> {
    let memory = SessionKernel::new(kernel.memory, session);
    small_blocks::process(&memory.kernel(kernel), block)
}

/// No session's pool is larger.
const MAX_POOL: u64 = 1 << 40;

/// What a session's structure says, member by member: it is larger than it is worth to read.
struct Space<'k> {
    kernel: &'k Kernel<'k>,
    layout: std::sync::Arc<nt_symbols::Layout>,
    address: u64,
}

impl<'k> Space<'k> {
    fn new(kernel: &'k Kernel<'k>, session: &Session) -> Result<Self, PoolError> {
        Ok(Space { kernel, layout: kernel.layout(SPACE)?, address: session.address })
    }

    /// `None`: this version has no such member, or it cannot be read.
    fn number(&self, member: &str, width: usize) -> Result<Option<u64>, Fault> {
        let Some(field) = self.layout.field(member) else { return Ok(None) };
        let address = self.kernel.wrap(self.address.wrapping_add(field.offset));
        Ok(self.kernel.gather(&[Variable { address, size: width as u8 }])?.remove(0).ok())
    }
}

/// Memory as one session's processes see it.
struct InSession<'m> {
    memory: &'m dyn Memory,
    session: &'m Session,
    tables: Tables<'m>,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In physical memory.
    At(u64),
    /// Not in memory, and in no page file.
    Nowhere,
    /// The page tables cannot be read.
    Unknown,
}

impl<'m> InSession<'m> {
    fn new(memory: &'m dyn Memory, session: &'m Session) -> Self {
        InSession { memory, session, tables: Tables { memory, pieces: RefCell::default() } }
    }

    fn translate(&self, address: u64) -> Result<Place, Fault> {
        let Session { root: Some(root), scheme, .. } = *self.session else { return Ok(Place::Unknown) };
        let walked = walk(&self.tables, scheme, SoftwarePte::of(scheme), root, address)?;
        Ok(match walked.page {
            Page::Present { physical, .. } | Page::Transition { physical } => Place::At(physical),
            Page::Unreadable { .. } => Place::Unknown,
            _ => Place::Nowhere,
        })
    }

    /// Where the topmost of four tables leads for the session's structure.
    fn first_entry(&self) -> Result<Option<u64>, Fault> {
        let Session { root: Some(root), scheme: scheme @ Scheme::X64 { .. }, address, .. } = *self.session else {
            return Ok(None);
        };
        let at = (root & scheme.frame_mask()).wrapping_add((address >> 39 & 0x1ff) * 8);
        let mut entry = [0; 8];
        let read = self.memory.read_physical(at, &mut entry)?;
        Ok((read == 8).then(|| u64::from_le_bytes(entry) & scheme.frame_mask()))
    }
}

/// A kernel whose memory is that of a session's processes.
struct SessionKernel<'m>(Through<InSession<'m>>);

impl<'m> SessionKernel<'m> {
    fn new(memory: &'m dyn Memory, session: &'m Session) -> Self {
        SessionKernel(Through(InSession::new(memory, session)))
    }

    fn kernel<'k>(&'k self, kernel: &Kernel<'k>) -> Kernel<'k> {
        Kernel { memory: &self.0, ..*kernel }
    }
}

/// How memory is read at an address.
type Read<'r> = &'r dyn Fn(u64, &mut [u8]) -> Result<usize, Fault>;

impl InSession<'_> {
    /// Reads page by page, each from where it is: `read` where the page tables do not tell.
    fn pages(&self, address: u64, buffer: &mut [u8], read: Read<'_>) -> Result<usize, Fault> {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.wrapping_add(done as u64);
            let part = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(buffer.len() - done);
            let part = &mut buffer[done..done + part];
            let good = match self.translate(at)? {
                Place::At(physical) => self.memory.read_physical(physical, part)?,
                // Here the debugger's own process may have another session's page.
                Place::Nowhere => 0,
                Place::Unknown => read(at, part)?,
            };
            done += good.min(part.len());
            if good < part.len() {
                break;
            }
        }
        Ok(done)
    }
}

impl Layer for InSession<'_> {
    fn below(&self) -> &dyn Memory {
        self.memory
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.pages(address, buffer, &|at, part| self.memory.read(at, part))
    }

    /// Physical memory has no way to be read again: what a session's tables are is asked for once a question anyway.
    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.pages(address, buffer, &|at, part| self.memory.reread(at, part))
    }

    fn search(&self, _: u64, _: u64, _: &[u8]) -> Result<Search, Fault> {
        Ok(Search::Unsupported)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.memory.read_physical(address, buffer)
    }

    /// What is kept of these addresses may be of another session.
    fn unread(&self, _: u64, length: u64) -> u64 {
        length
    }
}

/// Page tables in physical memory, read in pieces of which each is kept: a page's neighbours have theirs beside it.
struct Tables<'m> {
    memory: &'m dyn Memory,
    pieces: RefCell<BTreeMap<u64, Vec<u8>>>,
}

/// What one reply of a target carries at least.
const PIECE: u64 = 0x400;

/// So many pieces are kept.
const MAX_PIECES: usize = 0x4000;

impl Memory for Tables<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let start = address & !(PIECE - 1);
        let mut pieces = self.pieces.borrow_mut();
        if pieces.len() >= MAX_PIECES {
            pieces.clear();
        }
        let piece = match pieces.entry(start) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let mut piece = vec![0; PIECE as usize];
                let read = self.memory.read_physical(start, &mut piece)?;
                piece.truncate(read);
                new.insert(piece)
            }
        };
        // An entry does not cross a piece.
        let rest = piece.get((address - start) as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn reply_size(&self) -> usize {
        self.memory.reply_size()
    }

    fn spent(&self) -> Spent {
        self.memory.spent()
    }
}
