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
//!   HeapState -> _EX_HEAP_SESSION_STATE.PagedHeap
//! ```
//!
//! A session's addresses mean something in its processes only, so they are looked up in the page tables of one of them;
//! where physical memory cannot be read, the addresses are read as they are.

use std::ops::Range;

use nt_memory::paging::{Page, Physical, Scheme, SoftwarePte, walk};
use nt_memory::{Fault, Memory, PAGE_SIZE, Search};

use crate::big_pages::{self, BigPage, BigPages};
use crate::kernel::Variable;
use crate::lists::follow;
use crate::small_blocks::{Blocks, Limits, Plan};
use crate::tags::{self, TagReport};
use crate::{Kernel, PoolError, Tag, segment_heap};

const SPACE: &str = "_MM_SESSION_SPACE";

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: u32,
    /// Of its `_MM_SESSION_SPACE`.
    pub address: u64,
    /// One of its processes.
    pub process: Option<u64>,
    /// The page tables of that process.
    root: Option<u64>,
}

/// The sessions that processes belong to, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    pub notes: Vec<String>,
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
    let Sessions { sessions, notes } = &mut found;
    follow(kernel, "the list of processes", kernel.wrap(first), head, notes, &mut |at, _| {
        let process = at.wrapping_sub(links);
        let mut wanted = vec![pointer(at), pointer(process.wrapping_add(session))];
        wanted.extend(root.map(|root| pointer(process.wrapping_add(root))));
        let mut values = kernel.gather(&wanted)?.into_iter();
        let next = kernel.wrap(values.next().unwrap_or(Ok(0))?);
        let address = kernel.wrap(values.next().and_then(Result::ok).unwrap_or(0));
        let known = sessions.iter().any(|session| session.address == address);
        if !known && kernel.is_kernel_address(address) && sessions.len() < MAX_SESSIONS {
            let root = values.next().and_then(Result::ok).filter(|_| kernel.pointer_size == 8);
            sessions.push(Session { id: 0, address, process: Some(kernel.wrap(process)), root });
        }
        Ok(next)
    })?;
    // 32-bit kernels up to 10 1511 have the session of whatever runs at one place.
    if sessions.is_empty()
        && let Ok(space) = kernel.pointer_variable("MmSessionSpace")
        && let Ok(address) = kernel.gather(&[space])?.remove(0)
        && kernel.is_kernel_address(address)
    {
        sessions.push(Session { id: 0, address, process: None, root: None });
    }
    for session in sessions.iter_mut() {
        let memory = InSession::new(kernel.memory, session);
        match Space::new(&memory.kernel(kernel), session)?.number("SessionId", 4)? {
            Some(id) => session.id = id as u32,
            None => notes.push(format!("the session at {:016x} cannot be read", session.address)),
        }
    }
    sessions.sort_by_key(|session| session.id);
    Ok(found)
}

/// The sums of a session's tag tables.
pub fn tags(kernel: &Kernel<'_>, session: &Session, wanted: &dyn Fn(Tag) -> bool) -> Result<TagReport, PoolError> {
    let memory = InSession::new(kernel.memory, session);
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
    let memory = InSession::new(kernel.memory, session);
    let kernel = memory.kernel(kernel);
    let space = Space::new(&kernel, session)?;
    let width = usize::from(kernel.pointer_size);
    let table = space.number("PoolTrackBigPages", width)?.unwrap_or(0);
    let entries = space.number("PoolTrackBigPagesSize", width)?.unwrap_or(0);
    if table == 0 || entries == 0 {
        return Ok(BigPages { table: 0..0, blocks: Vec::new(), notes: Vec::new() });
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
    let memory = InSession::new(kernel.memory, session);
    let kernel = memory.kernel(kernel);
    let space = Space::new(&kernel, session)?;
    let width = usize::from(kernel.pointer_size);
    let plan = match segment_heap::is_segment_heap(&kernel)? {
        true => {
            let heap = space.number("HeapState", width)?.filter(|state| kernel.is_kernel_address(*state));
            let layout = kernel.layout("_EX_HEAP_SESSION_STATE")?;
            let paged = layout.field("PagedHeap").map(|field| field.offset);
            let place = heap.zip(paged).map(|(heap, paged)| kernel.wrap(heap.wrapping_add(paged)));
            match place {
                Some(address) => {
                    let heap = kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0)?;
                    Plan::of_heap(&kernel, kernel.wrap(heap))?
                }
                None => return Ok(Blocks { complete: true, ..Blocks::default() }),
            }
        }
        false => {
            let start = space.number("PagedPoolStart", width)?.unwrap_or(0);
            let end = space.number("PagedPoolEnd", width)?.unwrap_or(0);
            let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(!(PAGE_SIZE - 1));
            let pool: Range<u64> = start & !(PAGE_SIZE - 1)..end;
            if !kernel.is_kernel_address(start) || pool.is_empty() || pool.end - pool.start > MAX_POOL {
                return Ok(Blocks { complete: true, ..Blocks::default() });
            }
            Plan::of_pages(&kernel, pool)?
        }
    };
    plan.find(&kernel, wanted, large, limits)
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
    root: Option<u64>,
}

impl<'m> InSession<'m> {
    fn new(memory: &'m dyn Memory, session: &Session) -> Self {
        InSession { memory, root: session.root }
    }

    fn kernel<'k>(&'k self, kernel: &Kernel<'k>) -> Kernel<'k> {
        Kernel { memory: self, ..*kernel }
    }

    /// Where a page is in physical memory.
    fn translate(&self, address: u64) -> Result<Option<u64>, Fault> {
        let Some(root) = self.root.filter(|root| *root != 0) else { return Ok(None) };
        let scheme = Scheme::X64 { levels: 4 };
        let walked = walk(&Physical(self.memory), scheme, SoftwarePte::of(scheme), root, address)?;
        Ok(match walked.page {
            Page::Present { physical, .. } | Page::Transition { physical } => Some(physical),
            _ => None,
        })
    }
}

impl Memory for InSession<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.wrapping_add(done as u64);
            let part = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(buffer.len() - done);
            let part = &mut buffer[done..done + part];
            let mut read = match self.translate(at)? {
                Some(physical) => self.memory.read_physical(physical, part)?,
                None => 0,
            };
            if read < part.len() {
                read = self.memory.read(at, part)?;
            }
            done += read.min(part.len());
            if read < part.len() {
                break;
            }
        }
        Ok(done)
    }

    fn search(&self, _: u64, _: u64, _: &[u8]) -> Result<Search, Fault> {
        Ok(Search::Unsupported)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.memory.read_physical(address, buffer)
    }
}
