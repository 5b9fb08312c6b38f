//! What a kernel does that its types do not show.

use crate::isf::Isf;
use crate::kernel::Mutation;
use crate::kernel::pool::FACTOR;
use crate::kernel::random::Random;

/// The rules of a machine's pool. Those of versions that nobody has measured are drawn from what is possible.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Bits of a block in an LFH subsegment's bitmap.
    pub(crate) lfh_bits: u64,
    /// XORed into a segment's signature.
    pub(crate) segment_constant: u64,
    /// Whether the key of an LFH subsegment is its address shifted and then cut to 32 bits; cut first otherwise.
    pub(crate) lfh_key_shifted_first: bool,
    /// Whether the big-page table hashes whole page numbers; only their lower 32 bits otherwise.
    pub(crate) whole_page_numbers: bool,
    /// `Va` of a slot of the big-page table that was never used.
    pub(crate) never_used: u64,
    /// Whether the big-page table has POOL_FLAGS where it had a POOL_TYPE.
    pub(crate) pool_flags: bool,
    /// Whether a block of special pool has something in its header's second half.
    pub(crate) special_rest: bool,
    /// Makes a slot of the big-page table of a page number.
    pub(crate) factor: u64,
    /// What is wrong on purpose.
    pub(crate) mutation: Option<Mutation>,
}

impl Default for Rules {
    /// Those before the segment heap changed.
    fn default() -> Rules {
        Rules {
            lfh_bits: 2,
            segment_constant: 0xa2e6_4ead_a2e6_4ead,
            lfh_key_shifted_first: false,
            whole_page_numbers: false,
            never_used: 0,
            pool_flags: false,
            special_rest: false,
            factor: FACTOR,
            mutation: None,
        }
    }
}

impl Rules {
    pub(crate) fn of(build: u16, isf: &Isf, mutation: Option<Mutation>, random: &mut Random) -> Rules {
        let mut rules = match build {
            ..20348 => Rules::default(),
            // The hash changed somewhere between 19041 and 26100.
            20348..26100 => Rules { whole_page_numbers: random.once_in(2), ..Rules::default() },
            _ => Rules {
                lfh_bits: 1,
                segment_constant: 0,
                lfh_key_shifted_first: true,
                whole_page_numbers: true,
                never_used: 1,
                special_rest: true,
                // The member's name is known, its values are not.
                pool_flags: isf.offset("_POOL_TRACKER_BIG_PAGES", "PoolFlags").is_ok() && random.once_in(2),
                ..Rules::default()
            },
        };
        rules.mutation = mutation;
        match mutation {
            Some(Mutation::LfhOtherBits) => rules.lfh_bits = 3 - rules.lfh_bits,
            Some(Mutation::SegmentSignature) => rules.segment_constant ^= 0x5a5a_5a5a_0000_0000,
            Some(Mutation::PageHash) => rules.factor = 0x9e61,
            Some(Mutation::NeverUsed) => rules.never_used = 1 - rules.never_used,
            _ => {}
        }
        rules
    }

    /// Whether this is wrong on purpose.
    pub(crate) fn breaks(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}
