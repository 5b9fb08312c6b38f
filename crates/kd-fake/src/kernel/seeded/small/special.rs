//! Special pool: a page for each block, its end at the page's end, and nothing behind it.

use super::{PAGE, fill};
use crate::isf::IsfError;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::seeded::places::Map;
use crate::kernel::truth::{Carrier, Residence, SmallBlock, SmallState};

/// The regions of Windows up to 1809; blocks that were freed left a hole.
pub(crate) fn write_classic(
    builder: &mut Builder,
    map: &Map,
    random: &mut Random,
) -> Result<Vec<SmallBlock>, IsfError> {
    let Some(regions) = &map.special else { return Ok(Vec::new()) };
    // To catch overruns the block is at the page's end, to catch underruns at its start.
    let overruns = !random.once_in(3);
    builder.set_known("MmSpecialPoolCatchOverruns", &u32::from(overruns).to_le_bytes());
    let shared = regions[0] == regions[1];
    let mut blocks = Vec::new();
    for number in 0..120 {
        if random.once_in(4) {
            continue;
        }
        let paged = random.once_in(2);
        let offset = if shared { 0 } else { usize::from(paged) };
        let page = regions[offset].start + number * 2 * PAGE;
        let kind = if paged { PoolKind::Paged } else { PoolKind::NonPaged };
        let mark = if paged { 0x8000 } else { 0 };
        blocks.push(write_page(builder, page, kind, overruns, mark, random));
    }
    Ok(blocks)
}

/// One block: its page's header, the pattern, and the block. `mark`: further bits of the header, 0x8000 paged, 0x2000 session.
pub(crate) fn write_page(
    builder: &mut Builder,
    page: u64,
    kind: PoolKind,
    overruns: bool,
    mark: u32,
    random: &mut Random,
) -> SmallBlock {
    // The header's room.
    let unit = 2 * builder.width();
    let size = 1 + random.below(PAGE - 2 * unit);
    let letters = b"ABCDELNOPRSTabcdelnoprst";
    let tag = u32::from_le_bytes(std::array::from_fn(|_| *random.pick(letters)));
    let pattern = random.below(256) as u8 | 1;
    builder.memory.put(page, &[pattern; PAGE as usize]);
    let (header, address) =
        if overruns { (page, (page + PAGE - size) & !(unit - 1)) } else { (page + PAGE - unit, page) };
    let first = size as u32 | mark | u32::from(pattern) << 16;
    // What is behind the tag nobody has told of 26100; before that it is zeros.
    let rest = if builder.rules.special_rest { random.next() } else { 0 };
    let bytes = [&first.to_le_bytes()[..], &tag.to_le_bytes(), &rest.to_le_bytes()].concat();
    builder.memory.put(header, &bytes[..unit as usize]);
    fill(builder, address, size, random);
    SmallBlock {
        address,
        header,
        bytes: size,
        size,
        tag,
        kind,
        state: SmallState::Live,
        process: None,
        carrier: Carrier::Special,
        residence: Residence::Present,
        outer: None,
    }
}
