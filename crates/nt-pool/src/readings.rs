//! Which of two readings of a structure was taken, where Windows has had both and no name tells them apart.
//!
//! Builds between those that somebody has measured can have either form. So both are tried on the target, and the one
//! is taken whose books balance; what was taken is kept here, for the user to see and for a report from the field.

use std::cmp::Ordering;
use std::fmt;

/// One of two forms of a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Measured up to Windows 10 2004.
    Older = 0,
    /// Measured on Windows 11 24H2 and later.
    Newer = 1,
}

/// Structures by the form that they fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Votes {
    /// Only the form of older versions fits.
    pub older: u64,
    /// Only the form of newer versions fits.
    pub newer: u64,
    /// Both forms fit, so that the others decide.
    pub either: u64,
    /// No form fits: the picture of the structure is wrong, or the structure is damaged.
    pub neither: u64,
}

impl Votes {
    pub(crate) fn add(&mut self, older: bool, newer: bool) {
        let count = match (older, newer) {
            (true, false) => &mut self.older,
            (false, true) => &mut self.newer,
            (true, true) => &mut self.either,
            (false, false) => &mut self.neither,
        };
        *count += 1;
    }

    /// What most structures say that fit one form only; `None` while they say nothing.
    pub fn chosen(&self) -> Option<Form> {
        match self.older.cmp(&self.newer) {
            Ordering::Greater => Some(Form::Older),
            Ordering::Less => Some(Form::Newer),
            Ordering::Equal => None,
        }
    }

    /// By how many the one form is ahead of the other.
    pub(crate) fn lead(&self) -> u64 {
        self.older.abs_diff(self.newer)
    }

    fn merge(&mut self, other: Votes) {
        self.older += other.older;
        self.newer += other.newer;
        self.either += other.either;
        self.neither += other.neither;
    }
}

/// Where a heap keeps its lists of freed VS chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VsLists {
    /// No VS context was read.
    #[default]
    Unknown,
    /// In `_HEAP_VS_CONTEXT` itself.
    Context,
    /// In affinity slots, which lead back to their context by a pointer.
    Slots,
    /// In affinity slots, which say how far behind their context they lie.
    SlotsByOffset,
}

/// Everything that was read in one of two ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readings {
    /// `_HEAP_PAGE_SEGMENT.Signature`, with the constant a2e64eada2e64ead in it (older) or without.
    pub segment_signature: Votes,
    /// An LFH subsegment's bitmap: two bits a block (older) or one.
    pub lfh_bits: Votes,
    /// What hides an LFH subsegment's sizes: its address cut to 32 bits and then shifted (older), or shifted and cut.
    pub lfh_offsets: Votes,
    /// The hash of a large allocation's page number: cut to 32 bits (older), or not.
    pub large_hash: Votes,
    /// Where VS contexts keep their lists of subsegments.
    pub vs_lists: VsLists,
}

impl Readings {
    pub(crate) fn merge(&mut self, other: &Readings) {
        self.segment_signature.merge(other.segment_signature);
        self.lfh_bits.merge(other.lfh_bits);
        self.lfh_offsets.merge(other.lfh_offsets);
        self.large_hash.merge(other.large_hash);
        if other.vs_lists != VsLists::Unknown {
            self.vs_lists = other.vs_lists;
        }
    }

    /// What was taken, one line each, as far as anything had to be decided.
    pub fn lines(&self) -> Vec<String> {
        let votes = |what: &str, votes: Votes, older: &str, newer: &str| {
            let chosen = match votes.chosen()? {
                Form::Older => older,
                Form::Newer => newer,
            };
            Some(format!("{what}: {chosen} ({votes})"))
        };
        let lists = match self.vs_lists {
            VsLists::Unknown => None,
            VsLists::Context => Some("in the heap's VS context"),
            VsLists::Slots => Some("in affinity slots, by pointer"),
            VsLists::SlotsByOffset => Some("in affinity slots, by offset"),
        };
        [
            votes("segment signature", self.segment_signature, "with the constant", "without the constant"),
            votes("LFH bitmap", self.lfh_bits, "two bits a block", "one bit a block"),
            votes("LFH offsets", self.lfh_offsets, "address cut, then shifted", "address shifted, then cut"),
            votes("hash of large allocations", self.large_hash, "page number cut to 32 bits", "page number not cut"),
            lists.map(|lists| format!("lists of freed VS chunks: {lists}")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// "18 fit this form only" is what counts, so all four are said.
impl fmt::Display for Votes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Votes { older, newer, either, neither } = self;
        write!(f, "older form {older}, newer {newer}, either {either}, neither {neither}")
    }
}
