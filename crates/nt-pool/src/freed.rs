//! Blocks that their owners have freed and that wait in the pool's own lists (lookaside, deferred free): whatever holds
//! them still calls them allocated.

use std::collections::HashSet;

use nt_memory::{Fault, Through};

use crate::allowance::Allowance;
use crate::checks::{Book, Books};
use crate::kernel::{Variable, little_endian};
use crate::lists::{Head, follow, note};
use crate::pool_page::Block;
use crate::small_blocks::Cost;
use crate::{Kernel, Notes, PoolError, PoolKind, classic_pool, page_tables, segment_heap};

/// What is spent on lists to tell the blocks of one page apart: following them costs a request an element, and the
/// question is asked at a prompt. What was read before, as by a search of the pool, costs nothing.
const ALLOWED: Cost = Cost { requests: 64, bytes: 64 << 10 };

/// What came of looking for blocks in lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// What of the lists could not be read.
    pub notes: Notes,
    /// The lists were not followed to their ends, for what that costs.
    pub undecided: Option<Undecided>,
}

/// Blocks that can be in a list that was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecided {
    /// How many of those asked about.
    pub blocks: u64,
    /// Elements of the lists, as far as their heads were read and say that: following them takes about as many requests.
    pub elements: u64,
}

/// The addresses of elements of lists. Millions of blocks are looked for among a few elements, so a bit for each of the
/// last digits that an element has says of most blocks that they are none, without a hash. The set keeps its seeded hash:
/// the addresses are the target's, and a bad target may choose them.
pub(crate) struct Waiting {
    elements: HashSet<u64>,
    digits: Vec<u64>,
}

impl Waiting {
    /// Bits of `digits`; pointers lie at multiples of 4 at least.
    const DIGITS: u64 = 1 << 16;

    pub(crate) fn new() -> Self {
        Waiting { elements: HashSet::new(), digits: vec![0; (Self::DIGITS / 64) as usize] }
    }

    fn digit(at: u64) -> (usize, u64) {
        let digit = at / 4 % Self::DIGITS;
        ((digit / 64) as usize, 1 << (digit % 64))
    }

    fn insert(&mut self, at: u64) {
        let (word, bit) = Self::digit(at);
        self.digits[word] |= bit;
        self.elements.insert(at);
    }

    pub(crate) fn has(&self, at: u64) -> bool {
        let (word, bit) = Self::digit(at);
        self.digits[word] & bit != 0 && self.elements.contains(&at)
    }
}

/// Finds out which of some blocks of one page wait in lists, and says of those that they are not allocated.
///
/// # Errors
///
/// The source is gone, or the user does not want to wait.
pub fn tell(kernel: &Kernel<'_>, pool: Option<PoolKind>, blocks: &mut [Block]) -> Result<Told, PoolError> {
    let mut told = Told::default();
    let doubtful = doubtful(kernel, blocks)?;
    if doubtful.is_empty() {
        return Ok(told);
    }
    let memory = Through(Allowance::new(kernel.memory, ALLOWED));
    let (mut waiting, mut elements) = (Waiting::new(), 0);
    let within = Kernel { memory: &memory, ..*kernel };
    let result = look(&within, pool, &mut waiting, &mut elements, &mut told.notes);
    let exhausted = match result.map_err(PoolError::local) {
        Ok(()) => false,
        Err(Err(Fault::Cancelled)) if memory.0.is_exhausted() => true,
        Err(Err(fault)) => return Err(fault.into()),
        Err(Ok(error)) => {
            note(&mut told.notes, "blocks that wait in lists look allocated", error)?;
            false
        }
    };
    let mut left = 0;
    for index in doubtful {
        let block = &mut blocks[index];
        block.allocated = !places(kernel, block.address, block.header, block.chunk).any(|at| waiting.has(at));
        left += u64::from(block.allocated);
    }
    told.undecided = (exhausted && left > 0).then_some(Undecided { blocks: left, elements });
    Ok(told)
}

/// The blocks in use that can be an element of a list: such a one has a link, which is 0 or leads into the kernel.
fn doubtful(kernel: &Kernel<'_>, blocks: &[Block]) -> Result<Vec<usize>, Fault> {
    let mut doubtful = Vec::new();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.allocated) {
        let links = places(kernel, block.address, block.header, block.chunk);
        let links: Vec<_> = links.map(|address| Variable { address, size: kernel.pointer_size }).collect();
        let link = |value: &Result<u64, _>| {
            // What is not in memory may be one.
            value.as_ref().map_or(true, |value| *value == 0 || kernel.is_kernel_address(*value))
        };
        if kernel.gather(&links)?.iter().any(link) {
            doubtful.push(index);
        }
    }
    Ok(doubtful)
}

fn look(
    kernel: &Kernel<'_>,
    pool: Option<PoolKind>,
    waiting: &mut Waiting,
    elements: &mut u64,
    notes: &mut Notes,
) -> Result<(), PoolError> {
    let mut lists = match segment_heap::is_segment_heap(kernel)? {
        true => segment_heap::lists(kernel, pool)?,
        false => classic_pool::lists(kernel)?,
    };
    notes.append(&mut lists.notes);
    // The most lists for what may be spent.
    lists.resting.sort_by_key(|head| head.depth);
    *elements = lists.resting.iter().map(|head| head.depth.unwrap_or(1)).sum();
    Ok(follow_all(kernel, &lists.resting, &mut Books::default(), notes, waiting)?)
}

/// Where the link of a block in a list can lie: in the block, in its pool header, or in the header of its VS chunk, or
/// where that chunk's pool header would be if the block were not aligned.
pub(crate) fn places(
    kernel: &Kernel<'_>,
    address: u64,
    header: u64,
    chunk: Option<u64>,
) -> impl Iterator<Item = u64> + use<> {
    let chunk_header = 2 * u64::from(kernel.pointer_size);
    let of_chunk = chunk.map(|chunk| [chunk, chunk.wrapping_add(chunk_header)]);
    [address, header].into_iter().chain(of_chunk.into_iter().flatten())
}

/// Every block that waits in a list, by its element's address: of the block, of its pool header or of its chunk. Lists
/// that cannot be followed to their end are one note, however many they are. What was found before a fault is in
/// `waiting`.
pub(crate) fn follow_all(
    kernel: &Kernel<'_>,
    heads: &[Head],
    books: &mut Books,
    notes: &mut Notes,
    waiting: &mut Waiting,
) -> Result<(), Fault> {
    let mut broken: Vec<String> = Vec::new();
    for &Head { first, depth } in heads {
        let mut problems = Notes::default();
        let (mut count, mut lost) = (0, false);
        follow(kernel, "a list of freed blocks", kernel.wrap(first), 0, &mut problems, &mut |at, _| {
            waiting.insert(at);
            count += 1;
            // A block may wait in a page that is in transition.
            let link = page_tables::read(kernel, at, kernel.pointer_size.into())?;
            lost |= !link.is_complete();
            match link.is_complete() {
                true => Ok(kernel.wrap(little_endian(&link.bytes))),
                false => Err(PoolError::Unlikely(format!("the element at {at:016x} is not in memory"))),
            }
        })?;
        // A list that leads to what is not in memory is no worse for it.
        if !lost {
            books.hold(Book::FreedLists, problems.is_complete(), first);
        }
        if let Some(depth) = depth.filter(|_| problems.is_complete()) {
            books.count(Book::FreedDepths, depth, count, first);
        }
        broken.extend(problems.lines().into_iter().take(1));
    }
    if let Some(first) = broken.first() {
        let more = match broken.len() {
            1 => String::new(),
            count => format!("; the same of {} more lists", count - 1),
        };
        notes.missing(format!("{first}{more}; freed blocks may look allocated"));
    }
    Ok(())
}
