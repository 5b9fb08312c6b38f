//! Variable-size subsegments: chained chunks, the tree of the free ones, and those that wait to be given back.

use super::super::PAGE;
use super::super::heap::{Chunk, ChunkState, Heap, Vs};
use super::{Writer, known, stale};
use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::{Builder, Place};
use crate::kernel::truth::{Carrier, Residence, SmallState};

const CONTEXT: &str = "_HEAP_VS_CONTEXT";
const SUBSEGMENT: &str = "_HEAP_VS_SUBSEGMENT";
const SLOT: &str = "_HEAP_VS_AFFINITY_SLOT";
/// Bytes behind a heap for the map and the affinity slots of its context.
pub(super) const SLOTS_ROOM: u64 = 0x1000;
/// In what those are counted.
const SLOT_UNIT: u64 = 0x40;
/// Makes a subsegment's signature of its size.
const SIGNATURE: u64 = 0x2bed;

/// How chunks and subsegments are written.
pub(super) struct VsLayout {
    /// Of a chunk: its size, that of the one before it, and whether it is in use.
    sizes: [Place; 3],
    page: Place,
    header: u64,
    /// The size of a subsegment, and the number that belongs to it.
    size: Place,
    signature: Place,
    committed: Place,
    full: Place,
    slot: Option<Place>,
    subsegment: u64,
}

impl VsLayout {
    pub(super) fn of(builder: &Builder) -> Result<VsLayout, IsfError> {
        let isf = &builder.isf;
        let chunk = |name: &str| Place::of(isf, "_HEAP_VS_CHUNK_HEADER", name);
        let subsegment = |name| Place::of(isf, SUBSEGMENT, name);
        Ok(VsLayout {
            sizes: [chunk("Sizes.UnsafeSize")?, chunk("Sizes.UnsafePrevSize")?, chunk("Sizes.Allocated")?],
            page: chunk("EncodedSegmentPageOffset")?,
            header: isf.size("_HEAP_VS_CHUNK_HEADER")?,
            size: subsegment("Size")?,
            signature: subsegment("Signature")?,
            committed: subsegment("CommitBitmap")?,
            full: subsegment("FullCommit")?,
            slot: known(builder, SUBSEGMENT, "OwnerSlotRef"),
            subsegment: isf.size(SUBSEGMENT)?,
        })
    }
}

/// Where the lists of some of a context's subsegments are.
struct Home {
    /// Its number as subsegments know it.
    reference: u64,
    tree: u64,
    list: u64,
    delayed: u64,
    /// Whether the links of the list are XORed with their own addresses.
    xored: bool,
}

impl Writer<'_> {
    /// A context and all its subsegments. `room`: where its affinity slots go, in versions that have them.
    pub(super) fn vs_context(
        &mut self,
        builder: &mut Builder,
        heap: &Heap,
        context: u64,
        room: u64,
    ) -> Result<(), IsfError> {
        let homes = match builder.isf.offset(CONTEXT, "FreeChunkTree") {
            Ok(tree) => vec![Home {
                reference: 0,
                tree: context + tree,
                list: context + builder.isf.offset(CONTEXT, "SubsegmentList")?,
                delayed: context + builder.isf.offset(CONTEXT, "DelayFreeContext.ListHead")?,
                xored: false,
            }],
            Err(_) => self.slots(builder, context, room)?,
        };
        let delayed: Vec<(usize, u64)> = heap.delayed().collect();
        for (number, home) in homes.iter().enumerate() {
            let mine = |subsegment: usize| subsegment % homes.len() == number;
            let mut free = Vec::new();
            let mut links = vec![home.list];
            for (_, vs) in heap.vs.iter().enumerate().filter(|(at, vs)| mine(*at) && !vs.is_gone()) {
                self.vs(builder, heap.kind, vs, home.reference, &mut free)?;
                links.push(vs.address);
            }
            builder.link(&links);
            if home.xored {
                let width = builder.width();
                for link in links.iter().flat_map(|link| [*link, link + width]) {
                    let value = builder.pointer(link);
                    builder.put_pointer(link, value ^ link);
                }
            }
            free.sort_unstable();
            // The node is behind the size.
            let nodes: Vec<u64> = free.iter().map(|(_, chunk)| chunk + builder.width()).collect();
            builder.memory.tree(home.tree, &nodes);
            // The link is where the allocator's block starts, in place of the pool's header.
            let waiting = delayed.iter().filter(|(subsegment, _)| mine(*subsegment));
            let waiting: Vec<u64> = waiting.map(|(_, chunk)| chunk + self.vs.header).collect();
            builder.singly_linked(home.delayed, &waiting);
        }
        Ok(())
    }

    /// Some affinity slots, and the map that leads to them.
    fn slots(&mut self, builder: &mut Builder, context: u64, room: u64) -> Result<Vec<Home>, IsfError> {
        let count = 1 + self.random.below(3);
        let mask = *self.random.pick(&[3, 7]);
        let xored = self.random.once_in(2);
        let (map, entry) = (room, builder.isf.size("_HEAP_VS_SLOT_MAP")?);
        let size = builder.isf.size(SLOT)?;
        let first = (map + (mask + 1) * entry).next_multiple_of(SLOT_UNIT);
        let unit = if self.rules.breaks(Mutation::SlotUnit) { SLOT_UNIT / 2 } else { SLOT_UNIT };
        let reference = |at: u64| (at - context) / unit;
        let values = [("SlotMapRef", reference(map)), ("AffinityMask", mask), ("EliminatePointers", u64::from(xored))];
        let mut object = builder.object(CONTEXT)?;
        builder.fields(&mut object, &values)?;
        builder.store(context, &object);
        let slots: Vec<u64> = (0..count).map(|number| first + number * size).collect();
        let owner = known(builder, SLOT, "VsContext");
        let distance = known(builder, SLOT, "VsContextOffset");
        let mut homes = Vec::new();
        for slot in &slots {
            builder.memory.map(*slot, size);
            let wrong = if self.rules.breaks(Mutation::SlotContext) { 0x100 } else { 0 };
            if let Some(owner) = owner {
                owner.store(&mut builder.memory, *slot, context + wrong);
            }
            if let Some(distance) = distance {
                distance.store(&mut builder.memory, *slot, slot - context + wrong);
            }
            let place = |path| Ok::<u64, IsfError>(slot + builder.isf.offset(SLOT, path)?);
            homes.push(Home {
                reference: reference(*slot),
                tree: place("FreeChunkTree")?,
                list: place("SubsegmentList")?,
                delayed: place("DelayFreeContext.ListHead")?,
                xored,
            });
        }
        for processor in 0..=mask {
            // Each slot is somebody's; some processors have none yet.
            let slot = match processor < count {
                true => homes[processor as usize].reference,
                false if self.random.once_in(3) => 0,
                false => self.random.pick(&homes).reference,
            };
            builder.memory.put(map + processor * entry, &(slot as u32).to_le_bytes()[..entry as usize]);
        }
        Ok(homes)
    }

    /// A subsegment; adds size and address of each free chunk.
    fn vs(
        &mut self,
        builder: &mut Builder,
        kind: PoolKind,
        vs: &Vs,
        slot: u64,
        free: &mut Vec<(u64, u64)>,
    ) -> Result<(), IsfError> {
        stale(builder, vs.address, vs.pages * PAGE, self.random);
        let full = u64::MAX >> (64 - vs.pages);
        let mut committed = full;
        let mut previous = 0;
        let unit = self.format.unit;
        let mine = self.small.len();
        // Pages with something that is in a list stay, and so does the first one.
        let mut quiet = vec![true; vs.pages as usize];
        quiet[0] = false;
        for (at, chunk) in vs.walk(self.format) {
            self.chunk(builder, vs.address, at, chunk, previous);
            previous = chunk.units;
            let end = at + chunk.units * unit;
            let lead = if self.rules.breaks(Mutation::HeaderCrossesPage) { chunk.lead.min(1) } else { chunk.lead };
            let block = at + lead * unit;
            let page = |at: u64| ((at - vs.address) / PAGE) as usize;
            if !matches!(chunk.state, ChunkState::Live(_) | ChunkState::Large(_)) {
                quiet[page(at)] = false;
                quiet[page((block + 2 * unit).min(end - 1))] = false;
            }
            match chunk.state {
                ChunkState::Free => {
                    free.push((chunk.units, at));
                    // Whole pages inside a free chunk are given back now and then.
                    let pages = (at + 2 * unit).next_multiple_of(PAGE)..end & !(PAGE - 1);
                    if pages.start < pages.end && self.random.once_in(2) {
                        builder.memory.unmap(pages.start, pages.end - pages.start);
                        for page in pages.step_by(PAGE as usize) {
                            committed &= !(1 << ((page - vs.address) / PAGE));
                        }
                    }
                }
                ChunkState::Live(owner) => self.block(builder, block, owner, kind, SmallState::Live, Carrier::Vs),
                ChunkState::Lookaside(owner) => {
                    self.block(builder, block, owner, kind, SmallState::Lookaside, Carrier::Vs);
                }
                ChunkState::Delayed(owner) => {
                    self.block(builder, block, owner, kind, SmallState::Deferred, Carrier::Vs);
                }
                // Its own first bytes look like anything.
                ChunkState::Large(owner) => self.large(block, &owner, kind, false),
            }
        }
        self.subsegment(builder, vs, slot, committed, committed == full);
        self.spare_unit(builder, vs);
        self.trim(builder, kind, vs, &quiet, mine);
        Ok(())
    }

    fn subsegment(&mut self, builder: &mut Builder, vs: &Vs, slot: u64, committed: u64, full: bool) {
        // Of the chunks only.
        let header = if self.rules.breaks(Mutation::VsSizeWithHeader) { 0 } else { self.format.first_chunk };
        let size = (vs.pages * PAGE - header) / self.format.unit;
        let signature = if self.rules.breaks(Mutation::VsSignature) { SIGNATURE ^ 0x10 } else { SIGNATURE };
        let mut bytes = vec![0; self.vs.subsegment as usize];
        self.vs.committed.put(&mut bytes, committed);
        self.vs.size.put(&mut bytes, size);
        self.vs.signature.put(&mut bytes, size ^ signature);
        self.vs.full.put(&mut bytes, full.into());
        if let Some(place) = self.vs.slot {
            place.put(&mut bytes, slot);
        }
        builder.memory.put(vs.address, &bytes);
    }

    /// The range's last unit holds no chunks. It is committed now and then, with what others left there.
    fn spare_unit(&mut self, builder: &mut Builder, vs: &Vs) {
        let at = vs.address + vs.pages * PAGE;
        if self.format.spare_units == 0 || !self.random.once_in(3) {
            return;
        }
        stale(builder, at, PAGE, self.random);
        // A chunk that once was there, and looks like one.
        let chunk = Chunk { units: 1 + self.random.below(0x40), lead: 1, state: ChunkState::Free };
        let previous = self.random.below(0x40);
        self.chunk(builder, vs.address, at, &chunk, previous);
    }

    /// Some pages leave memory; with them go the blocks whose chunk or header is in them.
    fn trim(&mut self, builder: &mut Builder, kind: PoolKind, vs: &Vs, quiet: &[bool], mine: usize) {
        // Behind a page that is away two stay, so that the chain can be taken up again.
        let mut next = 0;
        for number in (0..quiet.len()).filter(|number| quiet[*number]) {
            let page = vs.address + number as u64 * PAGE;
            if number < next || builder.memory.read(page, &mut [0]) == 0 {
                continue;
            }
            let residence = self.residence(kind);
            match residence {
                Residence::Present => continue,
                Residence::Transition => builder.memory.trim(page),
                Residence::PagedOut => builder.memory.page_out(page),
            }
            next = number + 3;
            let unit = self.format.unit;
            for block in &mut self.small[mine..] {
                // The chunk is one or two units before the first header.
                let first = block.outer.map_or(block.header, |outer| outer.header);
                let chunk = if first % PAGE == 0 && self.format.late_header { first - 2 * unit } else { first - unit };
                let places = [chunk, first, block.header];
                if block.carrier == Carrier::Vs && places.iter().any(|place| place & !(PAGE - 1) == page) {
                    block.residence = residence;
                }
            }
        }
    }

    /// `_HEAP_VS_CHUNK_HEADER`: its sizes are XORed with its address and the heap's key.
    fn chunk(&self, builder: &mut Builder, subsegment: u64, at: u64, chunk: &Chunk, previous: u64) {
        let used = !matches!(chunk.state, ChunkState::Free);
        let surplus = u64::from(self.rules.breaks(Mutation::VsPreviousSize) && (at / 16).is_multiple_of(7));
        let previous = previous + surplus;
        let key = if self.rules.breaks(Mutation::VsKey) { self.heap_key } else { at ^ self.heap_key };
        let mut bytes = vec![0; self.vs.header as usize];
        for (place, value) in self.vs.sizes.iter().zip([chunk.units, previous, u64::from(used)]) {
            place.put(&mut bytes, value);
        }
        for (byte, key) in bytes[..builder.width() as usize].iter_mut().zip(key.to_le_bytes()) {
            *byte ^= key;
        }
        if used {
            let page = (at >> 12) - (subsegment >> 12);
            self.vs.page.put(&mut bytes, page ^ at ^ self.heap_key);
        }
        builder.memory.put(at, &bytes);
    }
}
