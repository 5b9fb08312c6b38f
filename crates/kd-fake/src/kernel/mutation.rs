//! Machines whose pool breaks a rule on purpose: a reader that knows the rules shall notice, not answer wrongly.

use std::fmt;
use std::str::FromStr;

use crate::isf::{Isf, Type};
use crate::kernel::Kernel;
use crate::kernel::pool::tag;
use crate::kernel::random::Random;

/// What is wrong with a seeded machine, for [`SeededOptions::mutation`](crate::kernel::SeededOptions::mutation). Its symbols
/// and [`Kernel::truth`] say what they always say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// `Size` of a VS subsegment counts from the subsegment's start, with its header.
    VsSizeWithHeader,
    /// `Signature` of a VS subsegment is made with another number.
    VsSignature,
    /// Chunk headers are not XORed with their addresses.
    VsKey,
    /// `UnsafePrevSize` of some chunks is one too large.
    VsPreviousSize,
    /// The unit that a VS range has more is missing.
    VsNoSpareUnit,
    /// Chunks at page offset 0xfe0 have the pool's header right behind their own, in the page's last 16 bytes.
    HeaderCrossesPage,
    /// `BlockSize` of pool headers is one unit more than the block.
    HeaderSize,
    /// The LFH bitmap has two bits a block where the version has one, and one where it has two.
    LfhOtherBits,
    /// The LFH bitmap starts one block later than it should.
    LfhShiftedBitmap,
    /// `FreeCount` of LFH subsegments is one too high.
    LfhFreeCount,
    /// `WitheldBlockCount` is 0.
    LfhWithheld,
    /// Another key hides an LFH subsegment's sizes.
    LfhKey,
    /// Another constant is in the signatures of segments.
    SegmentSignature,
    /// `SegmentCount` is one too high.
    SegmentCount,
    /// `RangeFlags` of VS and LFH subsegments have other bits.
    RangeFlags,
    /// References to affinity slots count units of 32 bytes.
    SlotUnit,
    /// Affinity slots do not lead back to their context.
    SlotContext,
    /// The big-page table is hashed with another factor.
    PageHash,
    /// A slot of the big-page table that was never used reads what those of other versions read.
    NeverUsed,
    /// `NumberOfBytes` in the big-page table is a page too much.
    BigPageBytes,
    /// `ExpPoolBigEntriesInUse` is one too high.
    BigPagesInUse,
    /// The tag `Leak` has one allocation more than blocks.
    TagAllocations,
    /// The tag `Leak` has 16 bytes more than blocks.
    TagBytes,
    /// `VfPoolTracesIndex` is one too high.
    LogIndex,
    /// A module's `Blink` leads to a module that it does not follow.
    ModuleLinks,
    /// `MmVerifierData` counts one paged allocation more than there are.
    TrackedCount,
    /// A member of a pool type, which this number chooses, is not where the symbols say.
    Layout(u64),
}

/// All of them but the layouts, with their names.
const RULES: [(Mutation, &str); 26] = [
    (Mutation::VsSizeWithHeader, "vs-size-with-header"),
    (Mutation::VsSignature, "vs-signature"),
    (Mutation::VsKey, "vs-key"),
    (Mutation::VsPreviousSize, "vs-previous-size"),
    (Mutation::VsNoSpareUnit, "vs-no-spare-unit"),
    (Mutation::HeaderCrossesPage, "header-crosses-page"),
    (Mutation::HeaderSize, "header-size"),
    (Mutation::LfhOtherBits, "lfh-other-bits"),
    (Mutation::LfhShiftedBitmap, "lfh-shifted-bitmap"),
    (Mutation::LfhFreeCount, "lfh-free-count"),
    (Mutation::LfhWithheld, "lfh-withheld"),
    (Mutation::LfhKey, "lfh-key"),
    (Mutation::SegmentSignature, "segment-signature"),
    (Mutation::SegmentCount, "segment-count"),
    (Mutation::RangeFlags, "range-flags"),
    (Mutation::SlotUnit, "slot-unit"),
    (Mutation::SlotContext, "slot-context"),
    (Mutation::PageHash, "page-hash"),
    (Mutation::NeverUsed, "never-used"),
    (Mutation::BigPageBytes, "big-page-bytes"),
    (Mutation::BigPagesInUse, "big-pages-in-use"),
    (Mutation::TagAllocations, "tag-allocations"),
    (Mutation::TagBytes, "tag-bytes"),
    (Mutation::LogIndex, "log-index"),
    (Mutation::ModuleLinks, "module-links"),
    (Mutation::TrackedCount, "tracked-count"),
];

impl Mutation {
    /// Every rule that can be broken.
    pub fn rules() -> impl Iterator<Item = Mutation> {
        RULES.iter().map(|(mutation, _)| *mutation)
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, RULES.iter().find(|(mutation, _)| mutation == self)) {
            (Mutation::Layout(seed), _) => write!(formatter, "layout:{seed}"),
            (_, Some((_, name))) => formatter.write_str(name),
            (_, None) => formatter.write_str("?"),
        }
    }
}

impl FromStr for Mutation {
    type Err = String;

    /// A rule's name, or `layout:NUMBER`.
    fn from_str(text: &str) -> Result<Mutation, String> {
        let rule = RULES.iter().find(|(_, name)| *name == text).map(|(mutation, _)| *mutation);
        let layout = || text.strip_prefix("layout:")?.parse().ok().map(Mutation::Layout);
        rule.or_else(layout).ok_or_else(|| {
            let names: Vec<&str> = RULES.iter().map(|(_, name)| *name).collect();
            format!("no such rule; there are {} and layout:NUMBER", names.join(", "))
        })
    }
}

/// The types whose layout a number may change.
const TYPES: [&str; 23] = [
    "_POOL_HEADER",
    "_POOL_TRACKER_BIG_PAGES",
    "_POOL_TRACKER_TABLE",
    "_POOL_DESCRIPTOR",
    "_SEGMENT_HEAP",
    "_HEAP_SEG_CONTEXT",
    "_HEAP_PAGE_SEGMENT",
    "_HEAP_PAGE_RANGE_DESCRIPTOR",
    "_HEAP_VS_CONTEXT",
    "_HEAP_VS_AFFINITY_SLOT",
    "_HEAP_VS_SLOT_MAP",
    "_HEAP_VS_SUBSEGMENT",
    "_HEAP_VS_CHUNK_HEADER",
    "_HEAP_VS_CHUNK_HEADER_SIZE",
    "_HEAP_LFH_CONTEXT",
    "_HEAP_LFH_SUBSEGMENT",
    "_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS",
    "_EX_POOL_HEAP_MANAGER_STATE",
    "_EX_HEAP_POOL_NODE",
    "_RTL_DYNAMIC_LOOKASIDE",
    "_RTL_LOOKASIDE",
    "_VF_POOL_TRACE",
    "_VI_POOL_ENTRY_INUSE",
];

/// The layouts that a machine has whose symbols are `isf`, and what is different in them. Members stay inside their
/// structures, whose sizes do not change.
pub fn mutated_layout(isf: &Isf, seed: u64) -> (Isf, String) {
    let mut random = Random::new(seed ^ 0x6c61_796f_7574);
    let mut changed = isf.clone();
    let known: Vec<&str> = TYPES.into_iter().filter(|name| isf.user_types.contains_key(*name)).collect();
    loop {
        let name = *random.pick(&known);
        let Some(ty) = changed.user_types.get_mut(name) else { continue };
        let members: Vec<String> = ty.fields.keys().cloned().collect();
        let (one, other) = (random.pick(&members).clone(), random.pick(&members).clone());
        let size = |member: &String| isf.user_types[name].fields.get(member).map_or(0, |field| width(isf, &field.ty));
        let (offset, other_offset) = (ty.fields[&one].offset, ty.fields[&other].offset);
        let what = match random.below(3) {
            0 if offset != other_offset && size(&one) == size(&other) => {
                if let Some(field) = ty.fields.get_mut(&one) {
                    field.offset = other_offset;
                }
                if let Some(field) = ty.fields.get_mut(&other) {
                    field.offset = offset;
                }
                format!("{name}: {one} and {other} have changed places")
            }
            1 => {
                let step = [1, 2, 4, 8][random.below(4) as usize];
                let down = random.once_in(2);
                let moved = if down { offset.checked_sub(step) } else { Some(offset + step) };
                let Some(moved) = moved.filter(|moved| moved + size(&one) <= ty.size) else { continue };
                if let Some(field) = ty.fields.get_mut(&one) {
                    field.offset = moved;
                }
                format!("{name}: {one} is at {moved:#x} instead of {offset:#x}")
            }
            _ => {
                let Some(Type::Bitfield { bit_position, bit_length, .. }) =
                    ty.fields.get_mut(&one).map(|field| &mut field.ty)
                else {
                    continue;
                };
                let Some(lower) = bit_position.checked_sub(1).filter(|_| *bit_length > 0) else { continue };
                *bit_position = lower;
                format!("{name}: {one} starts at bit {lower}")
            }
        };
        return (changed, what);
    }
}

fn width(isf: &Isf, ty: &Type) -> u64 {
    isf.size_of(ty).unwrap_or(u64::MAX / 2)
}

impl Kernel {
    /// Breaks what stands in single variables of a machine; `isf`: its symbols.
    pub(crate) fn spoil(&mut self, isf: &Isf, mutation: Mutation) {
        let base = self.facts().kernel_base;
        let symbol = |name| isf.symbol(name).ok().map(|rva| base + rva);
        match mutation {
            Mutation::BigPagesInUse => self.count_up(symbol("ExpPoolBigEntriesInUse")),
            Mutation::LogIndex => self.count_up(symbol("VfPoolTracesIndex")),
            Mutation::TagAllocations => self.spoil_tag(tag(b"Leak"), 0, 1),
            Mutation::TagBytes => self.spoil_tag(tag(b"Leak"), 2, 16),
            Mutation::TrackedCount => {
                let member = isf.offset("_MM_DRIVER_VERIFIER_DATA", "CurrentPagedPoolAllocations").ok();
                self.count_up(symbol("MmVerifierData").zip(member).map(|(data, member)| data + member));
            }
            Mutation::ModuleLinks => {
                let width = self.machine().pointer();
                let pointer = |kernel: &Kernel, at: u64| {
                    let mut bytes = [0; 8];
                    kernel.read_virtual(at, &mut bytes[..width]);
                    u64::from_le_bytes(bytes)
                };
                let Some(head) = symbol("PsLoadedModuleList") else { return };
                let third = pointer(self, pointer(self, pointer(self, head)));
                self.write_virtual(third + width as u64, &head.to_le_bytes()[..width]);
            }
            _ => {}
        }
    }

    fn count_up(&mut self, at: Option<u64>) {
        let Some(at) = at else { return };
        let mut bytes = [0; 4];
        self.read_virtual(at, &mut bytes);
        self.write_virtual(at, &u32::from_le_bytes(bytes).wrapping_add(1).to_le_bytes());
    }
}
