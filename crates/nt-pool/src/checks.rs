//! Books that have to balance: what a decoder found, against what a second witness in the target says.
//!
//! Decoders and the machines that test them can share a mistake; a real machine does not. So each walk of the pool
//! counts, from bytes that it has read anyway, what some other structure of the target counts too. A picture of the
//! target that is wrong shows up here as a number that differs, on the machine in front of the user, before anybody
//! believes a list of blocks or a verdict.

use std::fmt;

use crate::{Lack, Missing, Notes};

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

    /// A book of things of which some may be odd: it balances unless many are, or a quarter of a few. `None`: there is
    /// nothing to count.
    ///
    /// What is read in the wrong place is odd as a rule, so that a machine with an odd tag, or a row that another processor
    /// was writing to, needs no exact rule to be told from it.
    pub fn most(name: Book, expected: u64, found: u64) -> Option<Check> {
        let odd = expected.saturating_sub(found);
        let ok = if expected < FEW { ODD_OF_FEW * odd <= expected } else { ODD * odd <= expected };
        (expected > 0).then_some(Check { name, expected, found, ok, place: None })
    }
}

/// One thing in so many may be odd, and more where there are fewer than this.
const ODD: u64 = 16;
const FEW: u64 = 32;
const ODD_OF_FEW: u64 = 4;

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

/// How sure the rule of a book is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Measured on live machines, or documented: a difference means that the answer cannot be trusted.
    Proven,
    /// Inferred from names and layouts, or wrong without harm (a hash that leads nowhere costs a search): a difference is
    /// worth a report and decides nothing.
    Inferred,
}

/// Defines [`Book`]: each with its name in JSON, what people are told, and how sure its rule is.
macro_rules! books {
    ($($(#[$doc:meta])* $book:ident, $name:literal, $words:literal, $rule:ident;)*) => {
        /// What is counted twice. The numbers of signatures and the like count structures: those looked at, and those that
        /// are as they should be.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Book {
            $($(#[$doc])* $book,)*
        }

        impl Book {
            /// Every book.
            pub const ALL: &[Book] = &[$(Book::$book,)*];

            /// The name in JSON and in files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Book::$book => $name,)*
                }
            }

            /// As it is said to people.
            fn words(self) -> &'static str {
                match self {
                    $(Book::$book => $words,)*
                }
            }

            fn rule(self) -> Rule {
                match self {
                    $(Book::$book => Rule::$rule,)*
                }
            }
        }
    };
}

books! {
    /// `_SEGMENT_HEAP.Signature` of the heaps that the pool's nodes lead to.
    HeapSignatures, "heap-signatures", "heaps with their signature", Proven;
    /// `_HEAP_PAGE_SEGMENT.Signature`: the segment's context, hidden by its address and the heap's key.
    SegmentSignatures, "segment-signatures", "segments with the signature of their heap", Proven;
    /// `_HEAP_SEG_CONTEXT.SegmentCount` against the segments that its list leads to.
    Segments, "segments", "segments", Inferred;
    /// First descriptors of runs of pages in use: `TreeSignature`, and a size that the segment has room for.
    RangeDescriptors, "range-descriptors", "descriptors of runs of pages that make sense", Proven;
    /// Units of segments whose descriptor says that they are in use, against those that the runs have together.
    RangeUnits, "range-units", "units of segments in use", Inferred;
    /// `_HEAP_VS_SUBSEGMENT.Signature` against its size.
    VsSignatures, "vs-signatures", "VS subsegments with the signature of their size", Proven;
    /// `UnsafePrevSize` of a VS chunk against the size of the chunk before it.
    VsChunkSizes, "vs-chunk-sizes", "VS chunks in step", Proven;
    /// VS chunks, against those whose `Allocated` is 0 or 1. They balance unless many are something else.
    VsMarks, "vs-marks", "VS chunks that are free or in use", Inferred;
    /// VS chunks in use that have no entry in the table of large allocations, against those with a pool header that
    /// fits them.
    VsPoolHeaders, "vs-pool-headers", "VS chunks in use with a pool header", Proven;
    /// LFH subsegments, against those that are set up. A few are not when the target stops; that most are not means that
    /// they are read in the wrong place.
    LfhSetUp, "lfh-set-up", "LFH subsegments that are set up", Proven;
    /// `_HEAP_LFH_SUBSEGMENT`: sizes and counts, decoded, fit the subsegment's range.
    LfhOffsets, "lfh-offsets", "LFH subsegments whose sizes fit", Proven;
    /// LFH blocks in use: `BlockCount - FreeCount` against the bitmap.
    LfhBlocksInUse, "lfh-blocks-in-use", "LFH blocks in use", Proven;
    /// Slots of LFH subsegments that cross a page: `WitheldBlockCount` against their places.
    LfhWithheld, "lfh-withheld", "LFH blocks that would cross a page", Proven;
    /// LFH blocks in use against those whose pool header fits its block.
    LfhPoolHeaders, "lfh-pool-headers", "LFH blocks in use with a pool header", Proven;
    /// Committed pages: `_SEGMENT_HEAP.MemStats` against what the segments' descriptors count.
    HeapCommittedPages, "heap-committed-pages", "committed pages of the heaps", Inferred;
    /// Large allocations in use, by the table, against those that lie in a heap that is known. Those that are too large
    /// for a segment are not counted.
    LargeInHeaps, "large-in-heaps", "large allocations that lie in a known heap", Proven;
    /// Large allocations in use against those that the kernel's hash leads to.
    LargeHash, "large-hash", "large allocations where the kernel's hash leads", Inferred;
    /// Lists of freed blocks against those that are plausible as a whole.
    FreedLists, "freed-lists", "lists of freed blocks that are plausible", Proven;
    /// Elements of lists of freed blocks: by the lists' heads (`_SLIST_HEADER.Depth`), against those that are found.
    FreedDepths, "freed-depths", "elements of lists of freed blocks", Proven;
    /// Dynamic lookaside lists that are on: `ActiveBucketCount` against the bits of `EnabledBucketBitmap`.
    ActiveLists, "active-lists", "lookaside lists that are on", Inferred;
    /// Pool descriptors' lists of blocks that will be freed, against those whose depth (`PendingFreeDepth`) says so, too.
    PendingFrees, "pending-frees", "lists of blocks to be freed with their depth", Inferred;
    /// Headers of a page of the classic pool: `PreviousSize` against the block before.
    PageHeaders, "page-headers", "headers of the page in step", Proven;
    /// Pages of the classic pool that belong to no large allocation, against those with a chain of headers. Other things
    /// lie there too, so that they balance unless hardly any page has one.
    PoolPages, "pool-pages", "pages of pool with a chain of headers", Proven;
    /// The same of so few pages that a machine without small blocks may have them: it is shown, and decides nothing.
    FewPoolPages, "pool-pages-few", "of few pages of pool, those with a chain of headers", Inferred;
    /// Headers of the classic pool, against those that are of a free block or of one in use. They balance unless many are
    /// neither, or none at all is in use.
    PoolTypes, "pool-types", "headers of pool that are free or in use", Proven;
    /// Blocks in use against those whose tag can be typed. They balance unless many cannot.
    TypedTags, "typed-tags", "blocks in use with a tag that can be typed", Proven;
    /// Special pool: pages in use against those that hold a header that fits.
    SpecialPages, "special-pages", "pages of special pool with a header", Proven;
    /// Blocks of a tag: allocations less frees, by the tag's counters, against those that were found.
    TagCounters, "tag-counters", "blocks that the kernel counts of the tag", Proven;
    /// Bytes of a tag's blocks, by the tag's counters, against those of the blocks that were found.
    TagBytes, "tag-bytes", "bytes that the kernel counts of tags", Inferred;
    /// Tags that the kernel counts, by pool, against those whose numbers and name make sense. They balance unless many do
    /// not.
    TagRows, "tag-rows", "counters of tags that make sense", Inferred;
    /// Nonpaged pool in use by the memory manager's count of pages, in bytes, against the sum of the tags' bytes, which is
    /// no more.
    NonPagedTotal, "nonpaged-total", "bytes of nonpaged pool that tags count", Inferred;
    /// The same of paged pool.
    PagedTotal, "paged-total", "bytes of paged pool that tags count", Inferred;
    /// `nt!ExpPoolBigEntriesInUse` against the entries of the table of large allocations that are in use.
    LargeInUse, "large-in-use", "large allocations in use", Inferred;
    /// Large allocations in use, against those that make sense: they start a page, have about one at least, and a tag that
    /// can be typed. They balance unless many do not.
    LargeEntries, "large-entries", "large allocations that make sense", Proven;
    /// Large allocations in use, against those that fill pages with what nobody asked for (`SlushSize`). They balance unless
    /// many do not.
    LargeSlush, "large-slush", "large allocations that fill their pages", Inferred;
    /// Tags with large allocations, by pool, against those whose counters have as many blocks. They balance unless many have
    /// not.
    LargeCounted, "large-counted", "tags that count their large allocations", Inferred;
    /// Large allocations in use: neighbours, and those that do not overlap.
    LargeApart, "large-apart", "large allocations that do not overlap", Proven;
    /// Small blocks: neighbours, and those that do not overlap.
    BlocksApart, "blocks-apart", "small blocks that do not overlap", Proven;
    /// Second headers of cache-aligned blocks: by tag, type and size, against those that say how far behind the first
    /// they lie.
    AlignedHeaders, "aligned-headers", "second headers of cache-aligned blocks", Proven;
    /// Links forward in the list of modules against the links back.
    ModuleLinks, "module-links", "links back in the list of modules", Proven;
    /// Links forward in the circles of registered lookaside lists against the links back.
    ListLinks, "list-links", "links back in the circles of lookaside lists", Proven;
    /// `MmVerifierData`'s allocations in use against those that its drivers' counters have together.
    DriverCounters, "driver-counters", "allocations that drivers' counters have", Inferred;
    /// Allocations in use of verified drivers: by counters (`MmVerifierData`'s, or a driver's), against those that the
    /// verifier tracks.
    TrackedAllocations, "tracked-allocations", "allocations that the verifier tracks", Inferred;
    /// The same in bytes.
    TrackedBytes, "tracked-bytes", "bytes that the verifier tracks", Inferred;
    /// Tracked allocations, against those that make sense: size, tag and caller. They balance unless many do not.
    TrackedEntries, "tracked-entries", "tracked allocations that make sense", Proven;
    /// `nt!VfPoolTracesIndex` against the newest record that is written.
    LogIndex, "log-index", "index of the newest record", Proven;
    /// Records of the pool log, against those that make sense: block, size, thread and stack. They balance unless many do
    /// not.
    LogRecords, "log-records", "records of the pool log that make sense", Proven;
    /// The log's newest records of tracked allocations, against those that ask for about what their blocks have. They
    /// balance unless many do not.
    LogSizes, "log-sizes", "newest records with the size that their block has", Inferred;
    /// The threads of the log's newest records, against those that are threads. They balance unless none is.
    LogThreads, "log-threads", "threads of the newest records that are threads", Proven;
}

impl Book {
    /// Whether a difference means that the answer cannot be trusted: the rule was measured on live machines, or is
    /// documented. That of the others is worth a report and decides nothing.
    pub fn is_proven(self) -> bool {
        self.rule() == Rule::Proven
    }
}

impl fmt::Display for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
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

    /// Adds a book of which there may be nothing to count.
    pub fn add_known(&mut self, check: Option<Check>) {
        check.into_iter().for_each(|check| self.add(check));
    }

    /// In the order of [`Book`]. A book that nothing was counted of is not there: nothing is known of it.
    pub fn checks(mut self) -> Vec<Check> {
        self.checks.sort_by_key(|check| check.name);
        self.checks
    }
}

/// Puts what differs among an answer's notes: where a proven rule is broken the answer cannot be trusted to have
/// everything. What nobody has proved is no reason for that: a self-check tells it.
pub fn doubt(checks: &[Check], notes: &mut Notes) {
    for check in checks.iter().filter(|check| !check.ok && check.name.is_proven()) {
        notes.missing(Missing::because(Lack::Damaged, format!("the books do not balance: {check}")));
    }
}

/// Whether every book balances whose rule is proven.
pub fn balance(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.ok || !check.name.is_proven())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is explained to those who meet it in JSON.
    #[test]
    fn the_page_names_every_book() {
        let page = include_str!("../../../docs/selfcheck.md");
        let missing: Vec<&str> =
            Book::ALL.iter().map(|book| book.name()).filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert_eq!(missing, [""; 0]);
        let (open, inferred) = page.split_once("## What is inferred").expect("a heading");
        for book in Book::ALL {
            let listed = inferred.contains(&format!("`{}`", book.name()));
            assert_eq!(listed, !book.is_proven(), "{}", book.name());
            assert!(open.contains(&format!("`{}`", book.name())), "{}", book.name());
        }
    }

    #[test]
    fn odd_things_are_told_from_a_wrong_picture() {
        let most = |all, good| Check::most(Book::TypedTags, all, good).map(|check| check.ok);
        assert_eq!((most(0, 0), most(1, 1), most(1, 0)), (None, Some(true), Some(false)));
        assert_eq!(
            (most(8, 6), most(8, 5), most(31, 24), most(31, 23)),
            (Some(true), Some(false), Some(true), Some(false))
        );
        assert_eq!((most(320, 300), most(320, 299)), (Some(true), Some(false)));
    }

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
