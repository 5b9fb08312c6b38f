//! Structures of the target, read by their members' names.

use std::sync::Arc;

use nt_symbols::{Field, Layout};

use crate::kernel::little_endian;
use crate::{Kernel, PoolError};

/// No structure read here is larger; a symbol file that says so is damaged. Also bounds what a table of them takes.
const MAX_RECORD: u64 = 0x1000;

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
    bits: Option<(u8, u8)>,
    /// Elements of the array; one for a plain member.
    pub(crate) count: usize,
}

impl<'k> Record<'k> {
    pub(crate) fn new(kernel: &'k Kernel<'k>, type_name: &str) -> Result<Self, PoolError> {
        let layout = kernel.layout(type_name)?;
        if !(1..=MAX_RECORD).contains(&layout.size) {
            return Err(PoolError::Unlikely(format!(
                "the symbols of nt give type {type_name} a size of {:#x} bytes; the symbol file is damaged",
                layout.size
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

    fn checked(&self, field: &Field, offset: u64) -> Option<Member> {
        let (count, size) = field.array.unwrap_or((1, field.size));
        let end = offset.checked_add(count.checked_mul(size)?)?;
        let fits = end <= self.size as u64 && count > 0 && (1..=8).contains(&size);
        fits.then_some(Member { offset: offset as usize, size: size as usize, bits: field.bits, count: count as usize })
    }
}

impl Member {
    /// The member's value; `record` holds at least the record's size of bytes.
    pub(crate) fn get(&self, record: &[u8]) -> u64 {
        self.element(record, 0)
    }

    pub(crate) fn element(&self, record: &[u8], index: usize) -> u64 {
        let start = self.offset + index * self.size;
        let value = little_endian(&record[start..start + self.size]);
        match self.bits {
            None => value,
            Some((first, bits)) => {
                let mask = 1u64.checked_shl(bits.into()).map_or(u64::MAX, |bit| bit - 1);
                value.checked_shr(first.into()).unwrap_or(0) & mask
            }
        }
    }
}
