//! Large pool that is allocated and freed while the machine runs, and what the kernel writes down about it.

mod big_pages;
mod log;
mod small;
mod tags;
mod tracking;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use self::big_pages::BigPages;
pub(crate) use self::big_pages::EntryLayout;
use self::log::Log;
pub use self::log::Record;
pub(crate) use self::small::SmallRoom;
use self::tags::Tags;
pub use self::tags::{TagUsage, Usage};
pub(crate) use self::tags::{sums, usages};
use self::tracking::Tracking;
pub use self::tracking::{TrackedBlock, VerifierDriver};
use crate::isf::IsfError;
use crate::kernel::Kernel;
use crate::kernel::builder::Builder;
use crate::kernel::memory::Memory;
use crate::kernel::pool::{BigPage, TagRow};
use crate::kernel::segments::{Content, RunningHeaps};
use crate::kernel::truth::{SmallBlock, SmallState};
use crate::kernel::verifier::{Trace, VerifiedDriver};

const PAGE: u64 = 0x1000;

/// The kinds of pool that drivers allocate from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum PoolKind {
    /// `NonPagedPool`, executable.
    NonPaged,
    /// `NonPagedPoolNx`, from Windows 8 on.
    NonPagedNx,
    /// `PagedPool`.
    Paged,
    /// `PagedPoolSession`: a terminal session's own.
    PagedSession,
}

impl PoolKind {
    /// The value of `POOL_TYPE`.
    pub fn pool_type(self) -> u64 {
        match self {
            PoolKind::NonPaged => 0,
            PoolKind::NonPagedNx => 0x200,
            PoolKind::Paged => 1,
            PoolKind::PagedSession => 0x21,
        }
    }

    /// The value of `POOL_FLAGS`.
    pub fn pool_flags(self) -> u64 {
        match self {
            PoolKind::NonPaged => 0x80,
            PoolKind::NonPagedNx => 0x40,
            PoolKind::Paged => 0x100,
            PoolKind::PagedSession => 0x104,
        }
    }

    pub(crate) fn is_paged(self) -> bool {
        matches!(self, PoolKind::Paged | PoolKind::PagedSession)
    }
}

/// An allocation or a free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// `InterruptTime`; none when it was before the machine came to life.
    pub time: Option<u64>,
    /// The ETHREAD.
    pub thread: u64,
    /// Return addresses, innermost first; empty when nobody watched.
    pub stack: Vec<u64>,
    /// `VfPoolTracesIndex` of its record, when it was logged; the record may have been overwritten since.
    pub record: Option<u32>,
}

/// A large block from its allocation to its free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Life {
    /// Unique in the machine, and ascending in time.
    pub id: u64,
    /// Of the block's first byte, page aligned.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Bytes the kernel keeps for it: `NumberOfBytes` of its entry in the big-page table.
    pub bytes: u64,
    /// The tag, with its protected bit.
    pub tag: u32,
    /// Paged or nonpaged.
    pub kind: PoolKind,
    /// Stack, thread and time of its allocation.
    pub allocated: Operation,
    /// Who freed it; none while it lives.
    pub freed: Option<Operation>,
}

/// Where the parts lie that are kept up while the machine runs.
pub(crate) struct Places<'a> {
    /// Nonpaged and paged address space for further large blocks.
    pub(crate) regions: [Range<u64>; 2],
    pub(crate) pages: &'a [BigPage],
    pub(crate) rows: &'a [TagRow],
    /// Rows of the expansion table.
    pub(crate) overflow: &'a [TagRow],
    /// The whole log, oldest record first.
    pub(crate) log: &'a [Trace],
    pub(crate) drivers: &'a [VerifiedDriver],
    /// The `_VF_TARGET_VERIFIED_DRIVER_DATA` of each.
    pub(crate) verified: &'a [Option<u64>],
}

/// The kernel's books of large pool, and our own.
pub(crate) struct Books {
    big: BigPages,
    tags: Tags,
    log: Option<Log>,
    tracking: Tracking,
    /// A return address in the function through which the pool tells Verifier of a free.
    free_notice: Option<u64>,
    regions: [Range<u64>; 2],
    /// Where large blocks go in versions with segment heaps, as long as they fit there.
    heaps: Option<RunningHeaps>,
    /// Where small blocks go.
    small: Option<SmallRoom>,
    /// In each region, below this no page is free.
    lowest: [u64; 2],
    processors: u32,
    next_life: u64,
    live: BTreeMap<u64, Life>,
    /// Lives that ended, oldest first.
    ended: BTreeMap<u64, Vec<Life>>,
}

impl Books {
    /// Takes over what `builder` has written.
    pub(crate) fn open(
        builder: &Builder,
        processors: u32,
        places: Places<'_>,
        heaps: Option<RunningHeaps>,
        small: Option<SmallRoom>,
    ) -> Result<Books, IsfError> {
        let log = match builder.variable("VfPoolTraces")? {
            0 => None,
            _ => Some(Log::open(builder, places.log)?),
        };
        let mut books = Books {
            big: BigPages::open(builder)?,
            tags: Tags::open(builder, processors, places.rows, places.overflow)?,
            log,
            tracking: Tracking::open(builder, places.drivers, places.verified)?,
            free_notice: ["VfFreePoolNotification", "VfPtFreePoolNotification"]
                .iter()
                .find_map(|name| builder.inside(name)),
            lowest: [places.regions[0].start, places.regions[1].start],
            regions: places.regions,
            heaps,
            small,
            processors,
            next_life: 1,
            live: BTreeMap::new(),
            ended: BTreeMap::new(),
        };
        for page in places.pages {
            let id = books.life();
            let trace = books.log.as_ref().and_then(|log| log.newest(page.address));
            let allocated = match trace {
                Some((index, trace)) => {
                    Operation { time: None, thread: trace.thread, stack: trace.frames.clone(), record: Some(index) }
                }
                None => Operation { time: None, thread: 0, stack: Vec::new(), record: None },
            };
            let freed = Operation { time: None, thread: 0, stack: Vec::new(), record: None };
            let life = Life {
                id,
                address: page.address,
                size: page.bytes,
                bytes: page.bytes,
                tag: page.tag,
                kind: page.kind,
                allocated,
                freed: page.freed.then_some(freed),
            };
            if page.freed {
                books.ended.entry(page.address).or_default().push(life);
            } else {
                books.live.insert(page.address, life);
            }
        }
        Ok(books)
    }

    fn life(&mut self) -> u64 {
        self.next_life += 1;
        self.next_life - 1
    }

    /// The lowest free range of a kind of pool: what was freed is used again soon.
    fn room(&mut self, kind: PoolKind, bytes: u64) -> Option<u64> {
        let paged = usize::from(kind.is_paged());
        let end = self.regions[paged].end;
        let mut at = self.lowest[paged];
        let mut first_gap = true;
        for life in self.live.range(at..end).map(|(_, life)| life) {
            if life.address > at {
                if life.address - at >= bytes {
                    break;
                }
                first_gap = false;
            }
            at = (life.address + life.bytes).next_multiple_of(PAGE);
        }
        if end.saturating_sub(at) < bytes {
            return None;
        }
        if first_gap {
            self.lowest[paged] = at + bytes;
        }
        Some(at)
    }

    /// What was freed is there again.
    fn give_back(&mut self, life: &Life) {
        let paged = usize::from(life.kind.is_paged());
        let address = life.address.max(self.regions[paged].start);
        self.lowest[paged] = self.lowest[paged].min(address);
    }

    fn is_free(&self, address: u64, bytes: u64) -> bool {
        let before = self.live.range(..address.saturating_add(bytes)).next_back();
        address.is_multiple_of(PAGE)
            && before.is_none_or(|(_, life)| (life.address + life.bytes).next_multiple_of(PAGE) <= address)
    }
}

/// An allocation that is asked for.
struct Request<'a> {
    address: Option<u64>,
    tag: u32,
    size: u64,
    kind: PoolKind,
    stack: &'a [u64],
    thread: u64,
}

impl Kernel {
    /// Allocates a large block, at the lowest free address. `stack` are the return addresses of the call, innermost
    /// first; an empty one is a caller that Verifier does not watch, and is not logged. A block whose stack has a
    /// frame in a verified driver is tracked for that driver. None when the pool is exhausted.
    pub fn allocate_large(&mut self, tag: u32, size: u64, kind: PoolKind, stack: &[u64], thread: u64) -> Option<u64> {
        self.allocate(&Request { address: None, tag, size, kind, stack, thread })
    }

    /// As [`Kernel::allocate_large`], at this address. None when it is not page aligned or something lies there.
    pub fn allocate_large_at(
        &mut self,
        address: u64,
        tag: u32,
        size: u64,
        kind: PoolKind,
        stack: &[u64],
        thread: u64,
    ) -> Option<u64> {
        self.allocate(&Request { address: Some(address), tag, size, kind, stack, thread })
    }

    fn allocate(&mut self, request: &Request<'_>) -> Option<u64> {
        let &Request { tag, size, kind, stack, thread, .. } = request;
        let driver = self.books.tracking.driver(stack);
        let pointer = driver.is_some() && self.books.tracking.points_back;
        let width = self.books.tracking.pointer;
        let bytes = size.max(1).checked_add(if pointer { width } else { 0 })?.checked_next_multiple_of(2 * width)?;
        let pages = bytes.checked_next_multiple_of(PAGE)?;
        let address = match request.address {
            Some(address) if self.books.is_free(address, pages) => address,
            Some(_) => return None,
            None => self.large_room(kind, bytes)?,
        };
        if !self.books.big.has_room() {
            self.grow_big_pages()?;
        }
        self.books.big.insert(&mut self.memory, &BigPage { address, tag, kind, bytes, freed: false });
        let id = self.books.life();
        let processor = id as u32 % self.books.processors;
        self.books.tags.charge(&mut self.memory, processor, tag, kind, 1, pages);

        self.memory.map(address, PAGE);
        self.memory.write(address, &id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let entry = driver.and_then(|driver| {
            if self.books.tracking.is_full(driver.0) {
                self.add_tracking_page(driver.0)?;
            }
            self.books.tracking.allocated(&mut self.memory, driver, (address, bytes, tag), kind)
        });
        if let (true, Some(entry)) = (pointer, entry) {
            self.memory.put(address + bytes - width, &entry.to_le_bytes()[..width as usize]);
        }
        let record = self.log(false, (address, size), thread, stack);
        let allocated = Operation { time: Some(self.interrupt_time()), thread, stack: stack.to_vec(), record };
        let life = Life { id, address, size, bytes, tag, kind, allocated, freed: None };
        self.books.live.insert(address, life);
        Some(address)
    }

    /// A place for a large block: a range of pages in a heap, or the next free pages of its region.
    fn large_room(&mut self, kind: PoolKind, bytes: u64) -> Option<u64> {
        let content = Content::User { bytes, flags: 0 };
        let range = match &mut self.books.heaps {
            Some(heaps) => heaps.allocate(&mut self.memory, kind, content, bytes),
            None => None,
        };
        range.or_else(|| self.books.room(kind, bytes.next_multiple_of(PAGE)))
    }

    pub(crate) fn spoil_tag(&mut self, tag: u32, counter: usize, change: u64) {
        self.books.tags.spoil(&mut self.memory, tag, counter, change);
    }

    /// From now on somebody may look at any time.
    pub(crate) fn settle(&mut self) {
        if let Some(heaps) = &mut self.books.heaps {
            heaps.lazy = false;
            heaps.settle(&mut self.memory);
        }
    }

    /// Counts the blocks that were there before the machine came to life: the large ones, and the small ones that
    /// somebody has. A freed block is not counted any more, whatever list it waits in.
    pub(crate) fn count_standing_blocks(&mut self) {
        let large = self.books.live.values().map(|life| (life.tag, life.kind, life.bytes.next_multiple_of(PAGE)));
        let small = self.fixed.small.iter().filter(|block| block.state == SmallState::Live);
        let small = small.map(|block| (block.tag, block.kind, block.outer.map_or(block.bytes, |outer| outer.bytes)));
        let blocks: Vec<(u32, PoolKind, u64)> = large.chain(small).collect();
        for (processor, (tag, kind, bytes)) in (0..self.books.processors).cycle().zip(blocks) {
            self.books.tags.charge(&mut self.memory, processor, tag, kind, 1, bytes);
        }
    }

    /// Frees a large block and returns its life; the record in the log has the block's usable size. None when no large
    /// block starts there, or when it is a chunk among others of a segment heap: those are not kept up.
    ///
    /// The pool itself tells Verifier when a block that is tracked is freed, whoever does it: the free of a block whose
    /// allocation was logged is logged also without a stack. Nobody watches the free of another.
    pub fn free_large(&mut self, address: u64, stack: &[u64], thread: u64) -> Option<Life> {
        if self.books.heaps.as_ref().is_some_and(|heaps| heaps.is_shared(address)) {
            return None;
        }
        let mut life = self.books.live.remove(&address)?;
        let notice = self.books.free_notice.filter(|_| life.allocated.record.is_some());
        let stack = if stack.is_empty() { notice.as_slice() } else { stack };
        let record = self.log(true, (address, life.bytes), thread, stack);
        self.books.tracking.freed(&mut self.memory, &life);
        self.books.big.remove(&mut self.memory, address);
        let pages = life.bytes.next_multiple_of(PAGE);
        // Freed on another processor than the one that allocated it, as often as not.
        let processor = (life.id / 2) as u32 % self.books.processors;
        self.books.tags.charge(&mut self.memory, processor, life.tag, life.kind, -1, pages);
        self.memory.unmap(address, pages);
        let in_heap = self.books.heaps.as_mut().is_some_and(|heaps| heaps.free(&mut self.memory, address));
        if !in_heap {
            self.books.give_back(&life);
        }
        life.freed = Some(Operation { time: Some(self.interrupt_time()), thread, stack: stack.to_vec(), record });
        self.books.ended.entry(address).or_default().push(life.clone());
        Some(life)
    }

    /// Lets the verified driver of `stack` have a block of special pool that is there already: it is logged, tracked as
    /// long as it is, and where special pool is not a heap's its page leads to the entry. Nothing happens when no
    /// verified driver is on the stack.
    pub(crate) fn track_special(&mut self, block: &SmallBlock, stack: &[u64], thread: u64) -> Option<()> {
        let driver = self.books.tracking.driver(stack)?;
        if self.books.tracking.is_full(driver.0) {
            self.add_tracking_page(driver.0)?;
        }
        let what = (block.address, block.size, block.tag);
        let entry = self.books.tracking.allocated(&mut self.memory, driver, what, block.kind)?;
        // Behind the header, or before one at the page's end; a large block leaves no room there.
        let place = if block.header.is_multiple_of(PAGE) { block.header + 0x10 } else { block.header - 8 };
        if self.facts.build < 17763 || place + 8 <= block.address {
            let mut first = [0; 4];
            self.memory.read(block.header, &mut first);
            self.memory.write(block.header, &(u32::from_le_bytes(first) | 0x4000).to_le_bytes());
            self.memory.write(place, &entry.to_le_bytes());
        }
        self.log(false, (block.address, block.size), thread, stack);
        Some(())
    }

    /// The large blocks that live now, by address.
    pub fn large(&self) -> impl Iterator<Item = &Life> {
        self.books.live.values()
    }

    /// Every life of a large block that starts at this address, oldest first; the last may be the present one.
    pub fn history(&self, address: u64) -> Vec<&Life> {
        let ended = self.books.ended.get(&address).into_iter().flatten();
        ended.chain(self.books.live.get(&address)).collect()
    }

    /// Every address at which a large block was freed, with its lives as [`Kernel::history`] gives them.
    pub fn histories(&self) -> BTreeMap<u64, Vec<&Life>> {
        self.books.ended.keys().map(|address| (*address, self.history(*address))).collect()
    }

    /// The integers of `MmVerifierData`, by name.
    pub fn verifier_settings(&self) -> BTreeMap<String, u64> {
        self.books.tracking.settings(&self.memory)
    }

    /// The drivers to be verified, in the order of `VfSuspectDriversList`.
    pub fn verifier_drivers(&self) -> Vec<VerifierDriver> {
        self.books.tracking.drivers(&self.memory)
    }

    /// Every tag's counters, summed over the processors' tables and the expansion table.
    pub fn tags(&self) -> Vec<TagUsage> {
        self.books.tags.sums()
    }

    /// Verifier's log with the index of each record, oldest first; empty when there is no log.
    pub fn pool_log(&self) -> Vec<Record> {
        self.books.log.as_ref().map(Log::records).unwrap_or_default()
    }

    /// The index of the log's newest record and its number of slots.
    pub fn pool_log_position(&self) -> Option<(u32, u32)> {
        self.books.log.as_ref().map(Log::position)
    }

    fn log(&mut self, free: bool, (address, size): (u64, u64), thread: u64, stack: &[u64]) -> Option<u32> {
        let log = self.books.log.as_mut().filter(|_| !stack.is_empty())?;
        Some(log.write(&mut self.memory, Trace { free, address, size, thread, frames: stack.to_vec() }))
    }

    /// Doubles the big-page table, elsewhere; the old one is gone.
    fn grow_big_pages(&mut self) -> Option<()> {
        let bytes = self.books.big.bytes() * 2;
        let room = self.books.room(PoolKind::NonPaged, bytes)?;
        let live: Vec<BigPage> = self.books.live.values().map(BigPage::from).collect();
        self.books.big.grow(&mut self.memory, room, &live);
        // The table is no block of its own in these books, so its room must not be given away again.
        self.books.regions[0].start = room + bytes;
        self.books.lowest[0] = room + bytes;
        Some(())
    }

    /// One more page for the allocations of a driver: pool that is neither logged nor tracked itself.
    fn add_tracking_page(&mut self, driver: usize) -> Option<()> {
        let kind = PoolKind::NonPaged;
        let page = self.allocate_large(crate::kernel::pool::tag(b"Vepp"), PAGE, kind, &[], 0)?;
        self.books.tracking.add_page(&mut self.memory, driver, page);
        Some(())
    }
}

impl From<&Life> for BigPage {
    fn from(life: &Life) -> BigPage {
        BigPage { address: life.address, tag: life.tag, kind: life.kind, bytes: life.bytes, freed: false }
    }
}

/// Adds to a counter in memory, and returns the new value.
fn add(memory: &mut Memory, at: u64, width: usize, change: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes[..width]);
    let value = u64::from_le_bytes(bytes).wrapping_add(change);
    memory.write(at, &value.to_le_bytes()[..width]);
    let mask = u64::MAX >> (64 - 8 * width as u32);
    value & mask
}
