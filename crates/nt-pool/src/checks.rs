//! Books that have to balance: what a decoder found, against what a second witness in the target says.
//!
//! Decoders and the machines that test them can share a mistake; a real machine does not. So each walk of the pool
//! counts, from bytes that it has read anyway, what some other structure of the target counts too. A picture of the
//! target that is wrong shows up here as a number that differs, on the machine in front of the user, before anybody
//! believes a list of blocks or a verdict.

use std::fmt;

/// One book, for the whole of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Which of the kernel's books was compared.
    pub name: Book,
    /// What the second witness says; the unit is the book's.
    pub expected: u64,
    /// What was found.
    pub found: u64,
    /// Whether they agree everywhere. Two differences that cancel each other out in the sums are differences still.
    pub ok: bool,
    /// The address of the first structure at which they differ.
    pub place: Option<u64>,
}

impl Check {
    /// A book that was balanced in one place only; 0 where it is of no place.
    pub fn new(name: Book, expected: u64, found: u64, place: u64) -> Check {
        let ok = expected == found;
        Check { name, expected, found, ok, place: Some(place).filter(|place| !ok && *place != 0) }
    }
}

/// "VS chunks in step: 1047 expected, 1046 found, first at ffffc986cb6f2030".
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} expected, {} found", self.name, self.expected, self.found)?;
        match self.place {
            Some(place) => write!(f, ", first at {place:016x}"),
            None => Ok(()),
        }
    }
}

/// What is counted twice. The numbers of signatures and the like count structures: those looked at, and those that are
/// as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Book {
    /// `_SEGMENT_HEAP.Signature` of the heaps that the pool's nodes lead to.
    HeapSignatures,
    /// `_HEAP_PAGE_SEGMENT.Signature`: the segment's context, hidden by its address and the heap's key.
    SegmentSignatures,
    /// `_HEAP_SEG_CONTEXT.SegmentCount` against the segments that its list leads to.
    Segments,
    /// First descriptors of runs of pages in use: `TreeSignature`, and a size that the segment has room for.
    RangeDescriptors,
    /// Units of segments whose descriptor says that they are in use, against those that the runs have together.
    RangeUnits,
    /// `_HEAP_VS_SUBSEGMENT.Signature` against its size.
    VsSignatures,
    /// `UnsafePrevSize` of a VS chunk against the size of the chunk before it.
    VsChunkSizes,
    /// VS chunks in use that have no entry in the table of large allocations, against those with a pool header that
    /// fits them.
    VsPoolHeaders,
    /// LFH subsegments, against those that are set up. A few are not when the target stops; that most are not means that
    /// they are read in the wrong place.
    LfhSetUp,
    /// `_HEAP_LFH_SUBSEGMENT`: sizes and counts, decoded, fit the subsegment's range.
    LfhOffsets,
    /// LFH blocks in use: `BlockCount - FreeCount` against the bitmap.
    LfhBlocksInUse,
    /// Slots of LFH subsegments that cross a page: `WitheldBlockCount` against their places.
    LfhWithheld,
    /// LFH blocks in use against those whose pool header fits its block.
    LfhPoolHeaders,
    /// Committed pages: `_SEGMENT_HEAP.MemStats` against what the segments' descriptors count.
    HeapCommittedPages,
    /// Large allocations in use, by the table, against those that lie in a heap that is known. Those that are too large
    /// for a segment are not counted.
    LargeInHeaps,
    /// Large allocations in use against those that the kernel's hash leads to.
    LargeHash,
    /// Lists of freed blocks against those that are plausible as a whole.
    FreedLists,
    /// Pages of the classic pool that belong to no large allocation, against those with a chain of headers. Other things
    /// lie there too, so that they balance unless hardly any page has one.
    PoolPages,
    /// The same of so few pages that a machine without small blocks may have them: it is shown, and decides nothing.
    FewPoolPages,
    /// Headers of the classic pool, against those that are of a free block or of one in use. They balance unless many are
    /// neither, or none at all is in use.
    PoolTypes,
    /// Special pool: pages in use against those that hold a header that fits.
    SpecialPages,
    /// Blocks of a tag: allocations less frees, by the tag's counters, against those that were found.
    TagCounters,
    /// Bytes of a tag's blocks, by the tag's counters, against those of the blocks that were found.
    TagBytes,
    /// Rows of the tag tables: those in use, and those that make sense.
    TagRows,
    /// `nt!MmAllocatedNonPagedPool`, in bytes, against the sum of the tags' bytes, which is no more.
    NonPagedTotal,
    /// `nt!ExpPoolBigEntriesInUse` against the entries of the table of large allocations that are in use.
    LargeInUse,
    /// Large allocations in use: neighbours, and those that do not overlap.
    LargeApart,
    /// Small blocks: neighbours, and those that do not overlap.
    BlocksApart,
    /// Second headers of cache-aligned blocks: by tag, type and size, against those that say how far behind the first
    /// they lie.
    AlignedHeaders,
    /// Links forward in the list of modules against the links back.
    ModuleLinks,
    /// `MmVerifierData`'s allocations in use against those that the verifier tracks of its drivers.
    TrackedAllocations,
    /// `nt!VfPoolTracesIndex` against the newest record that is written.
    LogIndex,
}

impl Book {
    /// The name in JSON and in files.
    pub fn name(self) -> &'static str {
        match self {
            Book::HeapSignatures => "heap-signatures",
            Book::SegmentSignatures => "segment-signatures",
            Book::Segments => "segments",
            Book::RangeDescriptors => "range-descriptors",
            Book::RangeUnits => "range-units",
            Book::VsSignatures => "vs-signatures",
            Book::VsChunkSizes => "vs-chunk-sizes",
            Book::VsPoolHeaders => "vs-pool-headers",
            Book::LfhSetUp => "lfh-set-up",
            Book::LfhOffsets => "lfh-offsets",
            Book::LfhBlocksInUse => "lfh-blocks-in-use",
            Book::LfhWithheld => "lfh-withheld",
            Book::LfhPoolHeaders => "lfh-pool-headers",
            Book::HeapCommittedPages => "heap-committed-pages",
            Book::LargeInHeaps => "large-in-heaps",
            Book::LargeHash => "large-hash",
            Book::FreedLists => "freed-lists",
            Book::PoolPages => "pool-pages",
            Book::FewPoolPages => "pool-pages-few",
            Book::PoolTypes => "pool-types",
            Book::SpecialPages => "special-pages",
            Book::TagCounters => "tag-counters",
            Book::TagBytes => "tag-bytes",
            Book::TagRows => "tag-rows",
            Book::NonPagedTotal => "nonpaged-total",
            Book::LargeInUse => "large-in-use",
            Book::LargeApart => "large-apart",
            Book::BlocksApart => "blocks-apart",
            Book::AlignedHeaders => "aligned-headers",
            Book::ModuleLinks => "module-links",
            Book::TrackedAllocations => "tracked-allocations",
            Book::LogIndex => "log-index",
        }
    }

    /// Whether the rule was measured on live machines, so that a difference means that the answer cannot be trusted. The
    /// others are inferred from names and layouts, or wrong without harm (a hash that leads nowhere costs a search):
    /// their difference is worth a report and decides nothing.
    pub fn is_proven(self) -> bool {
        !matches!(
            self,
            Book::Segments
                | Book::RangeUnits
                | Book::HeapCommittedPages
                | Book::LargeHash
                | Book::TagBytes
                | Book::TagRows
                | Book::NonPagedTotal
                | Book::LargeInUse
                | Book::TrackedAllocations
                | Book::FewPoolPages
        )
    }
}

/// As it is said to people.
impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Book::HeapSignatures => "heaps with their signature",
            Book::SegmentSignatures => "segments with the signature of their heap",
            Book::Segments => "segments",
            Book::RangeDescriptors => "descriptors of runs of pages that make sense",
            Book::RangeUnits => "units of segments in use",
            Book::VsSignatures => "VS subsegments with the signature of their size",
            Book::VsChunkSizes => "VS chunks in step",
            Book::VsPoolHeaders => "VS chunks in use with a pool header",
            Book::LfhSetUp => "LFH subsegments that are set up",
            Book::LfhOffsets => "LFH subsegments whose sizes fit",
            Book::LfhBlocksInUse => "LFH blocks in use",
            Book::LfhWithheld => "LFH blocks that would cross a page",
            Book::LfhPoolHeaders => "LFH blocks in use with a pool header",
            Book::HeapCommittedPages => "committed pages of the heaps",
            Book::LargeInHeaps => "large allocations that lie in a known heap",
            Book::LargeHash => "large allocations where the kernel's hash leads",
            Book::FreedLists => "lists of freed blocks that are plausible",
            Book::PoolPages => "pages of pool with a chain of headers",
            Book::FewPoolPages => "of few pages of pool, those with a chain of headers",
            Book::PoolTypes => "headers of pool that are free or in use",
            Book::SpecialPages => "pages of special pool with a header",
            Book::TagCounters => "blocks that the kernel counts of the tag",
            Book::TagBytes => "bytes that the kernel counts of tags",
            Book::TagRows => "rows of the tag tables that make sense",
            Book::NonPagedTotal => "bytes of nonpaged pool that tags count",
            Book::LargeInUse => "large allocations in use",
            Book::LargeApart => "large allocations that do not overlap",
            Book::BlocksApart => "small blocks that do not overlap",
            Book::AlignedHeaders => "second headers of cache-aligned blocks",
            Book::ModuleLinks => "links back in the list of modules",
            Book::TrackedAllocations => "allocations that the verifier tracks",
            Book::LogIndex => "index of the newest record",
        })
    }
}

/// The books of one walk while it goes on; each book once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    checks: Vec<Check>,
}

impl Books {
    /// Adds what was counted of the structure at `place`.
    pub fn count(&mut self, name: Book, expected: u64, found: u64, place: u64) {
        self.add(Check::new(name, expected, found, place));
    }

    /// Adds one structure that is as it should be, or is not.
    pub fn hold(&mut self, name: Book, holds: bool, place: u64) {
        self.count(name, 1, holds.into(), place);
    }

    /// Adds one check to what its book has so far.
    pub fn add(&mut self, check: Check) {
        match self.checks.iter_mut().find(|known| known.name == check.name) {
            Some(known) => {
                known.expected = known.expected.saturating_add(check.expected);
                known.found = known.found.saturating_add(check.found);
                known.ok &= check.ok;
                known.place = known.place.or(check.place);
            }
            None => self.checks.push(check),
        }
    }

    /// Adds many, as [`Books::add`] does one.
    pub fn extend(&mut self, checks: impl IntoIterator<Item = Check>) {
        checks.into_iter().for_each(|check| self.add(check));
    }

    /// In the order of [`Book`]. A book that nothing was counted of is not there: nothing is known of it.
    pub fn checks(mut self) -> Vec<Check> {
        self.checks.sort_by_key(|check| check.name);
        self.checks
    }
}

/// Whether every book balances whose rule is proven.
pub fn balance(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.ok || !check.name.is_proven())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_that_cancel_out_are_differences() {
        let mut books = Books::default();
        books.count(Book::LfhBlocksInUse, 10, 9, 0x1000);
        books.count(Book::LfhBlocksInUse, 10, 11, 0x2000);
        books.hold(Book::HeapSignatures, true, 0x3000);
        let checks = books.checks();
        assert_eq!(checks[0], Check { name: Book::HeapSignatures, expected: 1, found: 1, ok: true, place: None });
        let lfh = Check { name: Book::LfhBlocksInUse, expected: 20, found: 20, ok: false, place: Some(0x1000) };
        assert_eq!(checks[1..], [lfh]);
        assert!(!balance(&checks) && balance(&checks[..1]));
        assert_eq!(lfh.to_string(), "LFH blocks in use: 20 expected, 20 found, first at 0000000000001000");
    }
}
