//! Linked structures of the target, walked without trusting them.

use std::collections::HashSet;

use nt_memory::{Fault, ReadError};

use crate::kernel::{Variable, little_endian};
use crate::record::Record;
use crate::{Kernel, PoolError};

/// Elements of one list; more is a list that was damaged.
const MAX_ELEMENTS: usize = 1 << 16;

/// Characters of a file's name.
const MAX_NAME: usize = 0x400;

/// Takes an element's address and gives the next link; may add notes of its own.
pub(crate) type Visit<'v> = &'v mut dyn FnMut(u64, &mut Vec<String>) -> Result<u64, PoolError>;

/// Follows links from `first` until one is 0 or `end`. A list that
/// comes back on itself, leaves kernel memory, or cannot be read ends there with a note.
pub(crate) fn follow(
    kernel: &Kernel<'_>,
    what: &str,
    first: u64,
    end: u64,
    notes: &mut Vec<String>,
    each: Visit<'_>,
) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    let mut at = first;
    while at != 0 && at != end {
        if !kernel.is_kernel_address(at) {
            notes.push(format!("{what}: the list leads to {at:016x}, which is no kernel address; the rest is missing"));
            break;
        }
        if !seen.insert(at) {
            notes.push(format!("{what}: the list comes back to {at:016x}; what lies behind is missing"));
            break;
        }
        if seen.len() > MAX_ELEMENTS {
            notes.push(format!("{what}: the list has more than {MAX_ELEMENTS} elements; the rest was not read"));
            break;
        }
        at = match each(at, notes) {
            Ok(next) => next,
            Err(error) => {
                note(notes, &format!("{what}: the rest of the list is missing"), error)?;
                break;
            }
        };
    }
    Ok(())
}

/// Turns what could not be read into a note; a source that is gone stays an error.
pub(crate) fn note(notes: &mut Vec<String>, what: &str, error: impl Into<PoolError>) -> Result<(), Fault> {
    match error.into() {
        PoolError::Fault(fault) | PoolError::Read(ReadError::Fault(fault)) => Err(fault),
        error => {
            notes.push(format!("{what}: {error}"));
            Ok(())
        }
    }
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
