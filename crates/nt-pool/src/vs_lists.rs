//! Where the freed VS chunks of a heap wait before they are merged: lists whose chunks still look allocated.
//!
//! ```text
//! up to 22631   _SEGMENT_HEAP.VsContext.DelayFreeContext.ListHead
//! 26100         _SEGMENT_HEAP.VsContext: SlotMapRef, AffinityMask
//!   context + (SlotMapRef << 6)   _HEAP_VS_SLOT_MAP[AffinityMask + 1]: SlotRef
//!   context + (SlotRef << 6)      _HEAP_VS_AFFINITY_SLOT.DelayFreeContext.ListHead; entries of the map share slots
//! ```
//!
//! A slot leads back to its context: by a pointer (`VsContext`), or by how far behind it lies (`VsContextOffset`). Both
//! have been measured on builds with one number, so what a slot holds decides, whatever its member is called.

use nt_memory::{ReadError, read_sparse};

use crate::kernel::little_endian;
use crate::lists::{Head, slist_head};
use crate::readings::VsLists;
use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

/// References to maps and slots are in units of so many bytes, as powers of two.
const REFERENCE_SHIFT: u64 = 6;

/// Where the lists are, by this kernel's types.
pub(crate) struct VsListsFormat {
    /// Of the context in the heap.
    context: usize,
    place: Place,
}

enum Place {
    /// Of the list's head in the context.
    Context(usize),
    Slots(Slots),
}

struct Slots {
    map_ref: Member,
    affinity_mask: Member,
    /// Bytes of an entry of the map, and the reference in it.
    entry: usize,
    slot_ref: Member,
    slot_size: usize,
    /// What leads back to the context.
    back: Member,
    list: usize,
}

impl VsListsFormat {
    /// `heap`: `_SEGMENT_HEAP`.
    pub(crate) fn new(kernel: &Kernel<'_>, heap: &Record<'_>) -> Result<Self, PoolError> {
        let context = Record::new(kernel, "_HEAP_VS_CONTEXT")?;
        // The list's head comes first where the types do not say.
        let head = Record::new(kernel, "_HEAP_VS_DELAY_FREE_CONTEXT").and_then(|list| list.place("ListHead"));
        let head = head.unwrap_or(0);
        let place = match context.place("DelayFreeContext") {
            Ok(list) => Place::Context(list + head),
            Err(_) => {
                let map = Record::new(kernel, "_HEAP_VS_SLOT_MAP")?;
                let slot = Record::new(kernel, "_HEAP_VS_AFFINITY_SLOT")?;
                let back = slot.find("VsContext").or_else(|| slot.find("VsContextOffset"));
                Place::Slots(Slots {
                    map_ref: context.member("SlotMapRef")?,
                    affinity_mask: context.member("AffinityMask")?,
                    entry: map.size,
                    slot_ref: map.member("SlotRef")?,
                    slot_size: slot.size,
                    back: back.map_or_else(|| slot.member("VsContext"), Ok)?,
                    list: slot.place("DelayFreeContext")? + head,
                })
            }
        };
        Ok(VsListsFormat { context: heap.place("VsContext")?, place })
    }

    /// The lists of the heap at `heap`, whose bytes are `bytes`; adds them to `heads`. Returns how they were reached.
    pub(crate) fn heads(
        &self,
        kernel: &Kernel<'_>,
        heap: u64,
        bytes: &[u8],
        heads: &mut Vec<Head>,
    ) -> Result<VsLists, PoolError> {
        let slots = match &self.place {
            Place::Context(list) => {
                heads.extend(slist_head(kernel, bytes, self.context + list).filter(|head| !head.is_empty()));
                return Ok(VsLists::Context);
            }
            Place::Slots(slots) => slots,
        };
        let context = kernel.wrap(heap.wrapping_add(self.context as u64));
        let record = bytes.get(self.context..).unwrap_or_default();
        let map_ref = record.get(..slots.map_ref.end()).map_or(0, |record| slots.map_ref.get(record));
        // Nothing was ever freed, or allocated, here.
        if map_ref == 0 {
            return Ok(VsLists::Unknown);
        }
        let entries = 1 + record.get(..slots.affinity_mask.end()).map_or(0, |record| slots.affinity_mask.get(record));
        let map = kernel.wrap(context.wrapping_add(map_ref << REFERENCE_SHIFT));
        let map = read_sparse(kernel.memory, map, entries.min(0x100) as usize * slots.entry)?;
        if !map.is_complete() {
            return Err(PoolError::Read(ReadError::Hole { address: map.address, wanted: map.bytes.len(), read: 0 }));
        }
        let mut references: Vec<u64> = map
            .bytes
            .chunks_exact(slots.entry)
            .map(|entry| slots.slot_ref.get(entry))
            .filter(|slot| *slot != 0)
            .collect();
        references.sort_unstable();
        references.dedup();
        let (mut how, mut astray) = (VsLists::Unknown, None);
        for reference in references {
            match slots.slot(kernel, context, reference << REFERENCE_SHIFT, heads)? {
                Ok(form) => how = form,
                Err(address) => astray = astray.or(Some(address)),
            }
        }
        match astray {
            None => Ok(how),
            Some(address) => Err(PoolError::Unlikely(format!(
                "the affinity slot at {address:016x} does not lead back to its VS context at {context:016x}"
            ))),
        }
    }
}

impl Slots {
    /// One slot, which is trusted only if it leads back; else its address.
    fn slot(
        &self,
        kernel: &Kernel<'_>,
        context: u64,
        distance: u64,
        heads: &mut Vec<Head>,
    ) -> Result<Result<VsLists, u64>, PoolError> {
        let address = kernel.wrap(context.wrapping_add(distance));
        let mut bytes = vec![0; self.slot_size];
        kernel.memory.read_exact(address, &mut bytes)?;
        let width = usize::from(kernel.pointer_size);
        let pointer = bytes.get(self.back.offset..self.back.offset + width).map_or(0, little_endian);
        // An offset may be narrower than a pointer, with anything behind it.
        let offsets = [8, 4, 2].map(|size| bytes.get(self.back.offset..self.back.offset + size).map(little_endian));
        let form = if kernel.wrap(pointer) == context {
            VsLists::Slots
        } else if offsets.contains(&Some(distance)) {
            VsLists::SlotsByOffset
        } else {
            return Ok(Err(address));
        };
        heads.extend(slist_head(kernel, &bytes, self.list).filter(|head| !head.is_empty()));
        Ok(Ok(form))
    }
}
