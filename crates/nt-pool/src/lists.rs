//! Linked structures of the target, walked without trusting them.

use std::collections::HashSet;

use nt_memory::Fault;

use crate::kernel::{Variable, little_endian};
use crate::record::Record;
use crate::{Kernel, Notes, PoolError};

/// Elements of one list; more is a list that was damaged.
const MAX_ELEMENTS: usize = 1 << 16;

/// Characters of a file's name.
const MAX_NAME: usize = 0x400;

/// Takes an element's address and gives the next link; may add notes of its own.
pub(crate) type Visit<'v> = &'v mut dyn FnMut(u64, &mut Notes) -> Result<u64, PoolError>;

/// How following a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    /// With 0, or where it was to end.
    ToTheEnd,
    /// Somewhere before; a note says where.
    Broken,
}

/// Follows links from `first` until one is 0 or `end`. A list that
/// comes back on itself, leaves kernel memory, or cannot be read ends there with a note.
pub(crate) fn follow(
    kernel: &Kernel<'_>,
    what: &str,
    first: u64,
    end: u64,
    notes: &mut Notes,
    each: Visit<'_>,
) -> Result<Walked, Fault> {
    let mut seen = HashSet::new();
    let mut at = first;
    while at != 0 && at != end {
        if !kernel.is_kernel_address(at) {
            notes.missing(format!(
                "{what}: the list leads to {at:016x}, which is no kernel address; the rest is missing"
            ));
            return Ok(Walked::Broken);
        }
        if !seen.insert(at) {
            notes.missing(format!("{what}: the list comes back to {at:016x}; what lies behind is missing"));
            return Ok(Walked::Broken);
        }
        if seen.len() > MAX_ELEMENTS {
            notes.missing(format!("{what}: the list has more than {MAX_ELEMENTS} elements; the rest was not read"));
            return Ok(Walked::Broken);
        }
        at = match each(at, notes) {
            Ok(next) => next,
            Err(error) => {
                note(notes, &format!("{what}: the rest of the list is missing"), error)?;
                return Ok(Walked::Broken);
            }
        };
    }
    Ok(Walked::ToTheEnd)
}

/// An element of a circular list, and where its two links lead: on, and back.
pub(crate) type Linked<T> = Result<(T, [u64; 2]), PoolError>;

/// The elements of a circular list of `_LIST_ENTRY`s, in its order. Where the list cannot be followed any further, what
/// can be reached from its other end is added. `each` takes a link's address.
pub(crate) fn elements<T>(
    kernel: &Kernel<'_>,
    what: &str,
    head: u64,
    notes: &mut Notes,
    each: &mut dyn FnMut(u64, &mut Notes) -> Linked<T>,
) -> Result<Vec<T>, PoolError> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    // The last link followed leads to the head, or where it went wrong.
    let mut end = pointer_at(kernel, head)?;
    let walked = follow(kernel, what, end, head, notes, &mut |at, notes| {
        seen.insert(at);
        let (element, [next, _]) = each(at, notes)?;
        found.push(element);
        end = next;
        Ok(next)
    })?;
    if end == head || end == 0 && found.is_empty() && walked == Walked::ToTheEnd {
        return Ok(found);
    }
    if end == 0 && walked == Walked::ToTheEnd {
        notes.missing(format!("{what}: the list ends without coming back to {head:016x}; more may be missing"));
    }
    let last = match pointer_at(kernel, head.wrapping_add(kernel.pointer_size.into())) {
        Ok(last) => last,
        Err(error) => {
            note(notes, &format!("{what}: its other end"), error)?;
            return Ok(found);
        }
    };
    let mut rest = Vec::new();
    let mut ignored = Notes::default();
    follow(kernel, what, last, head, &mut ignored, &mut |at, _| {
        if !seen.insert(at) {
            return Ok(0);
        }
        let (element, [_, previous]) = each(at, notes)?;
        rest.push(element);
        Ok(previous)
    })?;
    if !rest.is_empty() {
        notes.remark(format!("{what}: {} more elements were found from the list's other end", rest.len()));
    }
    found.extend(rest.into_iter().rev());
    Ok(found)
}

/// Where the links lead that lie at `offset` of `bytes`.
pub(crate) fn links_at(kernel: &Kernel<'_>, bytes: &[u8], offset: usize) -> [u64; 2] {
    let size = usize::from(kernel.pointer_size);
    [0, size].map(|at| bytes.get(offset + at..offset + at + size).map_or(0, little_endian))
}

/// Turns what could not be read into a note; a source that is gone stays an error.
pub(crate) fn note(notes: &mut Notes, what: &str, error: impl Into<PoolError>) -> Result<(), Fault> {
    notes.missing(format!("{what}: {}", error.into().local()?));
    Ok(())
}

/// A pointer in the target.
pub(crate) fn pointer_at(kernel: &Kernel<'_>, address: u64) -> Result<u64, PoolError> {
    Ok(kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0)?)
}

/// The first element of a `_SLIST_HEADER` at `offset` of `record`: the first pointer, in the 64-bit form the second
/// without its low four bits.
pub(crate) fn slist_first(kernel: &Kernel<'_>, record: &[u8], offset: usize) -> Option<u64> {
    match kernel.pointer_size {
        4 => record.get(offset..offset + 4).map(little_endian),
        _ => record.get(offset + 8..offset + 16).map(|bytes| little_endian(bytes) & !0xf),
    }
}

/// A list whose elements are freed blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// 0 for none.
    pub(crate) first: u64,
    /// How many there are, where the head says that.
    pub(crate) depth: Option<u64>,
}

impl Head {
    /// Whether the list can be followed; `depth` alone is a contradiction.
    pub(crate) fn is_empty(self) -> bool {
        self.first == 0 && self.depth.unwrap_or(0) == 0
    }
}

/// A `_SLIST_HEADER` at `offset` of `record`. Its depth is the low half of the first word in the 64-bit form, and behind
/// the pointer in the other.
pub(crate) fn slist_head(kernel: &Kernel<'_>, record: &[u8], offset: usize) -> Option<Head> {
    let depth = if kernel.pointer_size == 4 { offset + 4 } else { offset };
    let depth = record.get(depth..depth + 2).map(little_endian)?;
    Some(Head { first: slist_first(kernel, record, offset)?, depth: Some(depth) })
}

/// A `_UNICODE_STRING` member's text.
pub(crate) fn unicode_string(
    kernel: &Kernel<'_>,
    record: &Record<'_>,
    bytes: &[u8],
    member: &str,
) -> Result<String, PoolError> {
    let length = record.member(&format!("{member}.Length"))?.get(bytes) as usize;
    let buffer = record.member(&format!("{member}.Buffer"))?.get(bytes);
    if length == 0 {
        return Ok(String::new());
    }
    if length > 2 * MAX_NAME || !kernel.is_kernel_address(buffer) {
        return Err(PoolError::Unlikely(format!("a name of {length:#x} bytes at {buffer:016x} is not plausible")));
    }
    let mut text = vec![0; length & !1];
    kernel.memory.read_exact(buffer, &mut text)?;
    let units: Vec<u16> = text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    Ok(String::from_utf16_lossy(&units))
}
