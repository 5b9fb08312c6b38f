//! Some subsegments of a segment heap that is too large to be read: whether they are what they are taken for shows in a
//! few of them.

use nt_memory::Memory;

use crate::small_blocks::{Area, Blocks, Content, Limits, Plan, in_use, requests};
use crate::walk::{Formats, Large, Walk};
use crate::{Kernel, PoolError, big_pages::BigPage};

/// Bytes of each subsegment that are looked at: a VS subsegment has at least a quarter of a megabyte.
pub(super) const FIRST: u64 = 0x2000;

/// What was looked at.
pub(super) struct Sample {
    pub(super) found: Blocks,
    /// Runs of pages that hold small blocks: those looked at, and those known.
    pub(super) areas: (usize, usize),
}

/// Decodes the start of subsegments of each kind, evenly chosen, for about so many requests, as long as `kernel`'s memory
/// allows it. `large`: large allocations, where they are known.
pub(super) fn look(
    kernel: &Kernel<'_>,
    plan: &Plan,
    large: Option<&[BigPage]>,
    requests: u64,
) -> Result<Sample, PoolError> {
    let formats = Formats::new(kernel, plan.heaps().keys)?;
    let mut walk = Walk::new(kernel, &formats, &|_| true, Limits::default());
    walk.large = large.map_or(Large::Unknown, |large| Large::Known(in_use(large)));
    walk.first = FIRST;
    let chosen = chosen(kernel.memory, plan, requests);
    let areas = (chosen.len(), plan.walked().count());
    let mut found = walk.run(chosen.into_iter(), plan.heaps())?;
    found.notes.prepend(plan.notes.clone());
    Ok(Sample { found, areas })
}

/// As many of each kind as the same share of the requests goes for, in the order of their addresses.
fn chosen<'p>(memory: &dyn Memory, plan: &'p Plan, allowed: u64) -> Vec<&'p Area> {
    let kinds = [Content::Vs, Content::Lfh, Content::SpecialRange];
    let of = |kind: Content| -> Vec<&Area> { plan.walked().filter(|area| area.content == kind).collect() };
    let mut kinds: Vec<Vec<&Area>> = kinds.map(of).into_iter().filter(|areas| !areas.is_empty()).collect();
    let cost = |areas: &[&Area]| areas.iter().map(|area| requests(memory, area.cost().min(FIRST))).sum::<u64>();
    // Whoever needs less than a share leaves more for the others.
    kinds.sort_by_key(|areas| cost(areas));
    let (mut left, mut shares) = (allowed, kinds.len() as u64);
    let mut chosen = Vec::new();
    for areas in kinds {
        let step = cost(&areas).div_ceil((left / shares).max(1)).max(1) as usize;
        let some: Vec<&Area> = areas.into_iter().step_by(step).collect();
        (left, shares) = (left.saturating_sub(cost(&some)), shares - 1);
        chosen.extend(some);
    }
    chosen.sort_by_key(|area| area.address);
    chosen
}
