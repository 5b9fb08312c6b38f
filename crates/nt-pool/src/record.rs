//! Structures of the target, read by their members' names.

use std::sync::Arc;

use nt_memory::ReadError;
use nt_symbols::{Field, Layout};

use crate::kernel::little_endian;
use crate::{Kernel, PoolError};

/// No structure read here is larger; a symbol file that says so is damaged. Also bounds what a table of them takes.
const MAX_RECORD: u64 = 0x1000;

/// A pool node, a page segment, a processor's control block.
const MAX_LARGE: u64 = 0x2_0000;

/// A structure whose size has been checked.
pub(crate) struct Record<'k> {
    kernel: &'k Kernel<'k>,
    layout: Arc<Layout>,
    pub(crate) size: usize,
}

/// Where a member lies in a record's bytes. It is inside the record: `Record` checked it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) offset: usize,
    /// Of one element when the member is an array; at most eight.
    pub(crate) size: usize,
    /// Of a bit field; all bits of a plain member. Kept ready: gigabytes of headers are read with them.
    shift: u32,
    mask: u64,
    /// Elements of the array; one for a plain member.
    pub(crate) count: usize,
}

impl<'k> Record<'k> {
    pub(crate) fn new(kernel: &'k Kernel<'k>, type_name: &str) -> Result<Self, PoolError> {
        Self::of(kernel, kernel.layout(type_name)?)
    }

    /// One of the few that are larger than a page.
    pub(crate) fn large(kernel: &'k Kernel<'k>, type_name: &str) -> Result<Self, PoolError> {
        Self::up_to(kernel, kernel.layout(type_name)?, MAX_LARGE)
    }

    /// A structure that no symbol file describes.
    pub(crate) fn of(kernel: &'k Kernel<'k>, layout: Arc<Layout>) -> Result<Self, PoolError> {
        Self::up_to(kernel, layout, MAX_RECORD)
    }

    fn up_to(kernel: &'k Kernel<'k>, layout: Arc<Layout>, most: u64) -> Result<Self, PoolError> {
        if !(1..=most).contains(&layout.size) {
            return Err(PoolError::Unlikely(format!(
                "the symbols of nt give type {} a size of {:#x} bytes; the symbol file is damaged",
                layout.name, layout.size
            )));
        }
        Ok(Record { kernel, size: layout.size as usize, layout })
    }

    /// The member by name; a dot leads into a member's own type (`InUse.Tag`).
    pub(crate) fn member(&self, path: &str) -> Result<Member, PoolError> {
        self.find(path).ok_or_else(|| PoolError::NoField { type_name: self.layout.name.clone(), member: path.into() })
    }

    /// A member that not every version has.
    pub(crate) fn find(&self, path: &str) -> Option<Member> {
        let mut layout = Arc::clone(&self.layout);
        let mut base = 0u64;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let field = layout.field(name)?;
            let offset = base.checked_add(field.offset)?;
            if names.peek().is_none() {
                return self.checked(field, offset);
            }
            let inner = self.kernel.symbols.layout(&field.type_name).filter(|_| field.pointers == 0)?;
            base = offset;
            layout = inner;
        }
        None
    }

    /// Where a member of any size starts.
    pub(crate) fn place(&self, name: &str) -> Result<usize, PoolError> {
        let inside = |field: &&Field| {
            field.offset.checked_add(field.size).is_some_and(|end| field.size > 0 && end <= self.size as u64)
        };
        let field = self.layout.field(name).filter(inside);
        field
            .map(|field| field.offset as usize)
            .ok_or_else(|| PoolError::NoField { type_name: self.layout.name.clone(), member: name.into() })
    }

    /// The plain numbers among the members, by name: no pointers, arrays, bit fields or inner structures.
    pub(crate) fn numbers(&self) -> Vec<(String, Member)> {
        let plain = self.layout.fields.iter().filter(|field| {
            field.pointers == 0 && field.array.is_none() && field.bits.is_none() && !field.type_name.starts_with('_')
        });
        plain.filter_map(|field| Some((field.name.clone(), self.checked(field, field.offset)?))).collect()
    }

    /// One whole record from the target.
    pub(crate) fn read(&self, address: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; self.size];
        self.kernel.memory.read_exact(address, &mut bytes)?;
        Ok(bytes)
    }

    fn checked(&self, field: &Field, offset: u64) -> Option<Member> {
        let (count, size) = field.array.unwrap_or((1, field.size));
        let end = offset.checked_add(count.checked_mul(size)?)?;
        if end > self.size as u64 || count == 0 || !(1..=8).contains(&size) {
            return None;
        }
        let (shift, mask) = match field.bits {
            None => (0, u64::MAX),
            // A bit that no number has.
            Some((first, _)) if first >= 64 => (0, 0),
            Some((first, bits)) => (first.into(), 1u64.checked_shl(bits.into()).map_or(u64::MAX, |bit| bit - 1)),
        };
        // Eight bytes are read where there are as many: what lies behind the member is not of it.
        let own = 1u64.checked_shl(8 * size as u32).map_or(u64::MAX, |bit| bit - 1);
        let mask = mask & own.checked_shr(shift).unwrap_or(0);
        let (offset, size, count) = (offset as usize, size as usize, count as usize);
        Some(Member { offset, size, shift, mask, count })
    }
}

impl Member {
    /// Bytes of a record up to the member's end.
    pub(crate) fn end(&self) -> usize {
        self.offset + self.count * self.size
    }

    /// The member's value; `record` holds at least the record's size of bytes.
    pub(crate) fn get(&self, record: &[u8]) -> u64 {
        self.element(record, 0)
    }

    pub(crate) fn element(&self, record: &[u8], index: usize) -> u64 {
        let start = self.offset + index * self.size;
        let bytes = &record[start..];
        let number = match bytes.first_chunk() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => little_endian(&bytes[..self.size]),
        };
        number >> self.shift & self.mask
    }
}
