//! Page tables, walked in physical memory: what stands behind a virtual address, and why there may be nothing.
//!
//! ```text
//!           levels, entry bytes, index bits
//! x86       PDE PTE               4   10 10        PDE bit 7: 4 MB
//! PAE       PPE PDE PTE           8    2  9  9     PDE bit 7: 2 MB
//! x64       [P5E] PXE PPE PDE PTE 8    9 each      PPE and PDE bit 7: 1 GB, 2 MB
//! ARM64     PXE PPE PDE PTE       8    9 each      bits 0-1: 3 table or page, 1 block
//! ```
//!
//! An entry that is not valid is Windows' own: bit 11 is a page in transition (still in memory), bit 10 a prototype
//! (shared memory keeps the truth elsewhere), anything else names a page file or nothing (`_MMPTE_SOFTWARE`).

use crate::{Fault, Memory, Spent};

/// How a processor translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// 32-bit entries, two levels.
    X86,
    /// 64-bit entries on a 32-bit processor, three levels.
    Pae,
    /// Four levels, or five.
    X64 {
        /// 4, or 5 (LA57).
        levels: u8,
    },
    /// 4 KB granule, 48 bits.
    Arm64,
}

/// Where Windows keeps what in an entry that is not valid; the first bit and the number of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftwarePte {
    /// The bit that says that the entry leads to a prototype entry.
    pub prototype: u8,
    /// The bit of a page that was taken from a working set and is still in memory.
    pub transition: u8,
    /// First bit and width of the page file's number.
    pub page_file: (u8, u8),
    /// First bit and width of the page's place in it, in pages.
    pub page_file_offset: (u8, u8),
    /// Of MMPTE_PROTOTYPE: the address of the prototype, sign-extended.
    pub prototype_address: (u8, u8),
}

impl SoftwarePte {
    /// As `_MMPTE_SOFTWARE` of Windows 7; newer kernels have the page file's number elsewhere, and symbols that say so.
    pub fn of(scheme: Scheme) -> Self {
        let (prototype, transition, page_file) = (10, 11, (1, 4));
        match scheme {
            // The prototype's address is in pieces there and not told.
            Scheme::X86 => {
                Self { prototype, transition, page_file, page_file_offset: (12, 20), prototype_address: (0, 0) }
            }
            Scheme::Pae => {
                Self { prototype, transition, page_file, page_file_offset: (32, 32), prototype_address: (32, 32) }
            }
            Scheme::X64 { .. } | Scheme::Arm64 => {
                Self { prototype, transition, page_file, page_file_offset: (32, 32), prototype_address: (16, 48) }
            }
        }
    }
}

/// One entry on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// kd's name of the level: `PXE`, `PPE`, `PDE`, `PTE`.
    pub level: &'static str,
    /// Its physical address.
    pub at: u64,
    /// As it stands in memory.
    pub value: u64,
    /// First bit of the address that indexes this level.
    pub shift: u8,
}

/// What the last entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// In memory, and the processor finds it.
    Present {
        /// Its physical address.
        physical: u64,
        /// Of the page.
        size: u64,
    },
    /// Not valid, but still in memory at this place.
    Transition {
        /// Where its bytes still are.
        physical: u64,
    },
    /// Shared memory: the entry that counts is elsewhere, in virtual memory; `None` when it does not say where.
    Prototype {
        /// Of the prototype entry, if this entry says it.
        address: Option<u64>,
    },
    /// In a page file: a debugger cannot have it.
    PageFile {
        /// The page file's number.
        file: u8,
        /// The page in it, counted in pages.
        offset: u64,
    },
    /// Filled with zeros at the first touch.
    DemandZero,
    /// The entry is empty.
    Nothing,
    /// Page tables themselves could not be read: the physical address that failed.
    Unreadable {
        /// Physical address of the entry that cannot be read.
        at: u64,
    },
    /// No address of this processor.
    NotCanonical,
}

/// The way from the root to a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// From the top level down to where the walk ended.
    pub entries: Vec<Entry>,
    /// What the last entry says of the page.
    pub page: Page,
}

const X86_FRAME: u64 = 0xffff_f000;
/// Bits 12 to 51 on x64 and PAE, 12 to 47 on ARM64.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const ARM64_FRAME: u64 = 0x0000_ffff_ffff_f000;
const VALID: u64 = 1;
const LARGE: u64 = 0x80;

impl Scheme {
    fn levels(self) -> &'static [(&'static str, u8)] {
        match self {
            Self::X86 => &[("PDE", 22), ("PTE", 12)],
            Self::Pae => &[("PPE", 30), ("PDE", 21), ("PTE", 12)],
            Self::X64 { levels: 5 } => &[("P5E", 48), ("PXE", 39), ("PPE", 30), ("PDE", 21), ("PTE", 12)],
            Self::X64 { .. } | Self::Arm64 => &[("PXE", 39), ("PPE", 30), ("PDE", 21), ("PTE", 12)],
        }
    }

    fn entry_size(self) -> u64 {
        if self == Self::X86 { 4 } else { 8 }
    }

    /// The bits of an entry that are a physical address.
    pub fn frame_mask(self) -> u64 {
        match self {
            Self::X86 => X86_FRAME,
            Self::Pae | Self::X64 { .. } => FRAME,
            Self::Arm64 => ARM64_FRAME,
        }
    }

    fn index(self, address: u64, shift: u8) -> u64 {
        let bits = match (self, shift) {
            (Self::X86, _) => 0x3ff,
            (Self::Pae, 30) => 3,
            _ => 0x1ff,
        };
        address >> shift & bits
    }

    fn is_address(self, address: u64) -> bool {
        let bits = match self {
            Self::X86 | Self::Pae => return address >> 32 == 0,
            Self::X64 { levels: 5 } => 57,
            Self::X64 { .. } | Self::Arm64 => 48,
        };
        let high = (address as i64) >> (bits - 1);
        high == 0 || high == -1
    }

    /// Whether a valid entry above the last level is a page itself.
    fn is_large(self, value: u64, shift: u8) -> bool {
        match (self, shift) {
            (Self::Arm64, 21 | 30) => value & 2 == 0,
            (Self::X86, 22) | (Self::Pae | Self::X64 { .. }, 21) | (Self::X64 { .. }, 30) => value & LARGE != 0,
            _ => false,
        }
    }
}

/// A source's physical memory, as a memory of its own.
pub struct Physical<'a, M: Memory + ?Sized>(pub &'a M);

impl<M: Memory + ?Sized> Memory for Physical<'_, M> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.read_physical(address, buffer)
    }

    fn reply_size(&self) -> usize {
        self.0.reply_size()
    }

    fn spent(&self) -> Spent {
        self.0.spent()
    }
}

/// Walks from `root`, the value of CR3 or TTBR, to the page of `address`.
pub fn walk(
    physical: &dyn Memory,
    scheme: Scheme,
    software: SoftwarePte,
    root: u64,
    address: u64,
) -> Result<Walk, Fault> {
    let mut entries = Vec::new();
    if !scheme.is_address(address) {
        return Ok(Walk { entries, page: Page::NotCanonical });
    }
    // PAE's four entries lie in 32 bytes anywhere below 4 GB.
    let root_mask = if scheme == Scheme::Pae { 0xffff_ffe0 } else { scheme.frame_mask() };
    let mut table = root & root_mask;
    for &(level, shift) in scheme.levels() {
        let size = scheme.entry_size();
        let at = table.wrapping_add(scheme.index(address, shift) * size);
        let mut bytes = [0; 8];
        if physical.read(at, &mut bytes[..size as usize])? < size as usize {
            return Ok(Walk { entries, page: Page::Unreadable { at } });
        }
        let value = u64::from_le_bytes(bytes);
        entries.push(Entry { level, at, value, shift });
        if value & VALID == 0 {
            return Ok(Walk { entries, page: invalid(scheme, software, value, address) });
        }
        table = value & scheme.frame_mask();
        if shift == 12 || scheme.is_large(value, shift) {
            let size = 1u64 << shift;
            // A large page's low frame bits have other meanings (PAT).
            let physical = table & !(size - 1) | address & (size - 1);
            return Ok(Walk { entries, page: Page::Present { physical, size } });
        }
    }
    Ok(Walk { entries, page: Page::Nothing })
}

/// What an entry that is not valid says.
fn invalid(scheme: Scheme, software: SoftwarePte, value: u64, address: u64) -> Page {
    let bit = |bit: u8| value.checked_shr(bit.into()).unwrap_or(0) & 1 != 0;
    let bits = |(first, count): (u8, u8)| {
        let mask = 1u64.checked_shl(count.into()).map_or(u64::MAX, |bit| bit - 1);
        value.checked_shr(first.into()).unwrap_or(0) & mask
    };
    if value == 0 {
        return Page::Nothing;
    }
    if bit(software.prototype) {
        let (first, count) = software.prototype_address;
        let address = (count > 0).then(|| match scheme {
            Scheme::X86 | Scheme::Pae => bits((first, count)),
            // The sign of 48 bits.
            _ => ((bits((first, count)) << 16) as i64 >> 16) as u64,
        });
        return Page::Prototype { address };
    }
    if bit(software.transition) {
        return Page::Transition { physical: value & scheme.frame_mask() | address & 0xfff };
    }
    match bits(software.page_file_offset) {
        0 => Page::DemandZero,
        offset => Page::PageFile { file: bits(software.page_file) as u8, offset },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Physical(BTreeMap<u64, u8>);

    impl Physical {
        fn put(&mut self, at: u64, value: u64, size: usize) {
            for (i, byte) in value.to_le_bytes()[..size].iter().enumerate() {
                self.0.insert(at + i as u64, *byte);
            }
        }
    }

    impl Memory for Physical {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let mut read = 0;
            for byte in buffer.iter_mut() {
                let Some(&known) = self.0.get(&address.wrapping_add(read as u64)) else { break };
                *byte = known;
                read += 1;
            }
            Ok(read)
        }
    }

    fn page(physical: &Physical, scheme: Scheme, address: u64) -> Page {
        walk(physical, scheme, SoftwarePte::of(scheme), 0x1000, address).unwrap().page
    }

    /// A page table for `address` whose last entry is `last`.
    fn tables(scheme: Scheme, address: u64, last: u64, last_shift: u8) -> Physical {
        let mut physical = Physical::default();
        let mut table = 0x1000;
        let link = if scheme == Scheme::Arm64 { 3 } else { 1 };
        for &(_, shift) in scheme.levels() {
            let at = table + scheme.index(address, shift) * scheme.entry_size();
            if shift == last_shift {
                physical.put(at, last, scheme.entry_size() as usize);
                break;
            }
            table += 0x1000;
            physical.put(at, table | link, scheme.entry_size() as usize);
        }
        physical
    }

    #[test]
    fn every_scheme_finds_its_pages() {
        for (scheme, address) in [
            (Scheme::X86, 0x801544f4),
            (Scheme::Pae, 0x801544f4),
            (Scheme::X64 { levels: 4 }, 0xffff_f880_0123_44f4),
            (Scheme::X64 { levels: 5 }, 0xff12_3456_0123_44f4),
            (Scheme::Arm64, 0xffff_f880_0123_44f4),
        ] {
            let small = tables(scheme, address, 0x0015_4063, 12);
            assert_eq!(page(&small, scheme, address), Page::Present { physical: 0x1544f4, size: 0x1000 }, "{scheme:?}");
            let (shift, large) = match scheme {
                Scheme::X86 => (22, 0x80_00e3),
                Scheme::Arm64 => (21, 0x80_0001),
                _ => (21, 0x80_10e3),
            };
            let walked = page(&tables(scheme, address, large, shift), scheme, address);
            let size = 1 << shift;
            assert_eq!(walked, Page::Present { physical: 0x80_0000 | address & (size - 1), size }, "{scheme:?}");
            assert_eq!(page(&tables(scheme, address, 0, 12), scheme, address), Page::Nothing);
            assert_eq!(
                page(&Physical::default(), scheme, address),
                Page::Unreadable { at: 0x1000 + scheme.index(address, scheme.levels()[0].1) * scheme.entry_size() }
            );
        }
    }

    #[test]
    fn entries_that_are_not_valid_are_told_apart() {
        let (scheme, address) = (Scheme::X64 { levels: 4 }, 0xffff_f880_0123_44f4);
        let last = |value| page(&tables(scheme, address, value, 12), scheme, address);
        assert_eq!(last(0x15_4880), Page::Transition { physical: 0x1544f4 });
        assert_eq!(last(0xf8a0_0123_4560_0400), Page::Prototype { address: Some(0xffff_f8a0_0123_4560) });
        assert_eq!(last(0x0000_1234_0000_0082), Page::PageFile { file: 1, offset: 0x1234 });
        assert_eq!(last(0x80), Page::DemandZero);
        assert_eq!(page(&Physical::default(), scheme, 0x8000_0000_0000), Page::NotCanonical);
    }
}
