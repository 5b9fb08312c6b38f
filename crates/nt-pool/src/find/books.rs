//! The tag's blocks against the tag's counters.

use crate::big_pages::BigPage;
use crate::checks::{Book, Check};
use crate::small_blocks::{BlockKind, BlockState, Kinds, SmallBlock};

/// Compares what was found with what the kernel counts, nonpaged and paged. `complete`: nothing is missing for a known
/// reason; where something is, no more than that fewer were found is said of it.
///
/// Whether the kernel counts blocks of special pool as well differs between versions, so either sum is right.
pub(super) fn tag_counters(
    counted: [i64; 2],
    large: &[BigPage],
    small: &[SmallBlock],
    kinds: Kinds,
    complete: bool,
) -> Option<Check> {
    // Without special pool some of what is counted was not looked at.
    let complete = complete && kinds.special;
    let (mut expected, mut found, mut ok) = (0, 0, true);
    let mut sums = Vec::new();
    for (paged, wanted) in [(false, kinds.nonpaged), (true, kinds.paged)] {
        if !wanted {
            continue;
        }
        // A counter that was reset, or that wrapped.
        let counted = u64::try_from(counted[usize::from(paged)]).ok()?;
        let large = large.iter().filter(|block| !block.free && block.kind.is_paged() == paged).count() as u64;
        let of_pool = |block: &&SmallBlock| block.pool.is_paged() == paged && block.state == BlockState::Allocated;
        let of_pool: Vec<&SmallBlock> = small.iter().filter(of_pool).collect();
        let special = of_pool.iter().filter(|block| block.kind == BlockKind::Special).count();
        let most = large + of_pool.len() as u64;
        let least = most - special as u64;
        let agrees = (least..=most).contains(&counted) || !complete && most < counted;
        ok &= agrees;
        expected += counted;
        found += if agrees && complete { counted } else { most };
        sums.push(counted);
    }
    (!sums.is_empty()).then_some(Check { name: Book::TagCounters, expected, found, ok, place: None })
}
