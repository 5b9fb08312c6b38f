//! The processors that a fake kernel is made for.

use crate::isf::IsfError;

/// A processor, and how it translates addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 32 bits, page-table entries of 4 bytes.
    X86,
    /// 32 bits, page-table entries of 8 bytes.
    X86Pae,
    /// AMD64, four levels of page tables.
    X64,
    /// 4 KB pages, 48 bits.
    Arm64,
}

impl Machine {
    /// By `IMAGE_FILE_MACHINE_*` and the size of a page-table entry, if it is known.
    pub(crate) fn new(number: u16, entry: Option<u64>) -> Result<Machine, IsfError> {
        match (number, entry) {
            (0x14c, Some(8)) => Ok(Machine::X86Pae),
            (0x14c, _) => Ok(Machine::X86),
            (0x8664, _) => Ok(Machine::X64),
            (0xaa64, _) => Ok(Machine::Arm64),
            _ => Err(IsfError::Machine(number)),
        }
    }

    /// `IMAGE_FILE_MACHINE_*`.
    pub fn number(self) -> u16 {
        match self {
            Machine::X86 | Machine::X86Pae => 0x14c,
            Machine::X64 => 0x8664,
            Machine::Arm64 => 0xaa64,
        }
    }

    /// Bytes of a pointer.
    pub fn pointer(self) -> usize {
        if self.is_x86() { 4 } else { 8 }
    }

    /// 32 bits.
    pub fn is_x86(self) -> bool {
        matches!(self, Machine::X86 | Machine::X86Pae)
    }

    /// As KD and version blocks have it: addresses of 32 bits with their sign.
    pub(crate) fn extended(self, address: u64) -> u64 {
        if self.is_x86() { address as u32 as i32 as u64 } else { address }
    }

    /// The instruction of a breakpoint.
    pub(crate) fn breakpoint(self) -> &'static [u8] {
        match self {
            Machine::Arm64 => &[0x00, 0x00, 0x3e, 0xd4],
            _ => &[0xcc],
        }
    }

    /// The page that the kernel shares with user mode, at the same place in every version.
    pub(crate) fn shared_data(self) -> u64 {
        if self.is_x86() { 0xffdf_0000 } else { 0xffff_f780_0000_0000 }
    }
}
