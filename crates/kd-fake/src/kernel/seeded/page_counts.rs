//! How many pages of each pool the memory manager says are in use.

use crate::isf::{Isf, IsfError};
use crate::kernel::Kernel;
use crate::kernel::builder::Builder;

/// Pages that nobody has yet, so that the machine may live on.
const SPARE: u64 = 0x4000;

/// Where the counts of nonpaged and of paged pool lie, where the version's table says that.
pub(crate) fn places(builder: &Builder) -> [Option<u64>; 2] {
    let inside = |start: Result<u64, IsfError>, ty, path| Some(start.ok()? + builder.isf.offset(ty, path).ok()?);
    let state = || builder.symbol("MiState");
    let visible = || Ok(state()? + builder.isf.offset("_MI_SYSTEM_INFORMATION", "Vs")?);
    [
        builder
            .symbol("MmAllocatedNonPagedPool")
            .ok()
            .or_else(|| inside(state(), "_MI_SYSTEM_INFORMATION", "Pools.AllocatedNonPagedPool")),
        inside(builder.symbol("MmPagedPoolInfo"), "_MM_PAGED_POOL_INFO", "AllocatedPagedPool")
            .or_else(|| inside(visible(), "_MI_VISIBLE_STATE", "PagedPoolInfo.AllocatedPagedPool")),
    ]
}

/// Writes them: room for all that the tags have.
pub(crate) fn write(kernel: &mut Kernel, isf: &Isf, places: [Option<u64>; 2]) {
    let tags = kernel.truth().tags;
    let sums = [tags.iter().map(|tag| tag.nonpaged.bytes).sum::<u64>(), tags.iter().map(|tag| tag.paged.bytes).sum()];
    for (place, bytes) in places.into_iter().zip(sums) {
        if let Some(place) = place {
            let pages = bytes.div_ceil(0x1000) + SPARE;
            kernel.write_virtual(place, &pages.to_le_bytes()[..isf.machine.pointer()]);
        }
    }
}
