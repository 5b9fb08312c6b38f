//! Header words of a few subsegments, encoded and decoded: what a reader of a report can try other decodings on.

use nt_memory::Fault;

use super::Word;
use crate::Kernel;
use crate::kernel::little_endian;
use crate::record::Record;
use crate::segment_heap::Heaps;
use crate::small_blocks::Content;

/// Subsegments of each kind that are shown.
const SHOWN: usize = 3;

/// Of the first subsegments; nothing where the pool is no segment heap, or its types are not known.
pub(super) fn of(kernel: &Kernel<'_>, heaps: &Heaps) -> Result<Vec<Word>, Fault> {
    let mut words = Vec::new();
    let areas = |content: Content| heaps.areas.iter().filter(move |area| area.content == content).take(SHOWN);
    if let (Some(key), Some((first, sizes))) = (heaps.keys.heap, vs(kernel)) {
        for area in areas(Content::Vs) {
            let chunk = area.address.wrapping_add(first);
            let Some(encoded) = word(kernel, chunk.wrapping_add(sizes), 8)? else { continue };
            let decoded = encoded ^ chunk ^ key;
            words.push(Word { structure: "_HEAP_VS_CHUNK_HEADER.Sizes", encoded, decoded });
        }
    }
    if let (Some(key), Some(offsets)) = (heaps.keys.lfh, lfh(kernel)) {
        for area in areas(Content::Lfh) {
            let Some(encoded) = word(kernel, area.address.wrapping_add(offsets), 4)? else { continue };
            let decoded = (encoded ^ key ^ area.address >> 12) & 0xffff_ffff;
            words.push(Word { structure: "_HEAP_LFH_SUBSEGMENT.BlockOffsets", encoded, decoded });
        }
    }
    Ok(words)
}

/// Where a subsegment's first chunk lies, and its sizes in its header.
fn vs(kernel: &Kernel<'_>) -> Option<(u64, u64)> {
    let subsegment = Record::new(kernel, "_HEAP_VS_SUBSEGMENT").ok()?;
    let chunk = Record::new(kernel, "_HEAP_VS_CHUNK_HEADER").ok()?;
    let unit = 2 * u64::from(kernel.pointer_size);
    let sizes = if kernel.pointer_size == 8 { chunk.place("Sizes").ok()? as u64 } else { return None };
    Some(((subsegment.size as u64).checked_next_multiple_of(unit)?, sizes))
}

fn lfh(kernel: &Kernel<'_>) -> Option<u64> {
    let subsegment = Record::new(kernel, "_HEAP_LFH_SUBSEGMENT").ok()?;
    Some(subsegment.place("BlockOffsets").ok()? as u64)
}

fn word(kernel: &Kernel<'_>, address: u64, size: usize) -> Result<Option<u64>, Fault> {
    let mut bytes = [0; 8];
    let read = kernel.memory.read(address, &mut bytes[..size])?;
    Ok((read >= size).then(|| little_endian(&bytes[..size])))
}
