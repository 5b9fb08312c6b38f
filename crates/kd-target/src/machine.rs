//! The target's processor: what a client asks about it, and what continuing needs to know of it.

/// The processor architecture of a target, by the PE machine number that it tells in GetVersion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// `0x014c`, `IMAGE_FILE_MACHINE_I386`.
    X86,
    /// `0x8664`, `IMAGE_FILE_MACHINE_AMD64`.
    X64,
    /// `0xaa64`, `IMAGE_FILE_MACHINE_ARM64`.
    Arm64,
    /// Any other number: it is attached to and its memory read, and nothing is known of its registers.
    Other(u16),
}

/// `IMAGE_FILE_MACHINE_ARMNT`: the ARM of Windows 8 and Windows RT, of 32 bits.
const ARM: u16 = 0x01c4;

impl Machine {
    /// The machine of a PE header's or GetVersion's number.
    pub fn of(number: u16) -> Self {
        match number {
            0x014c => Self::X86,
            0x8664 => Self::X64,
            0xaa64 => Self::Arm64,
            other => Self::Other(other),
        }
    }

    /// Its number in PE headers and GetVersion.
    pub fn number(self) -> u16 {
        match self {
            Self::X86 => 0x014c,
            Self::X64 => 0x8664,
            Self::Arm64 => 0xaa64,
            Self::Other(number) => number,
        }
    }

    /// Bytes of a pointer: 4 or 8.
    pub fn pointer_size(self) -> u8 {
        match self {
            Self::X86 | Self::Other(ARM) => 4,
            Self::X64 | Self::Arm64 | Self::Other(_) => 8,
        }
    }

    /// What letting it go needs to know of its registers.
    pub(crate) fn context(self) -> Option<&'static ContextRecord> {
        match self {
            Self::X64 => Some(&X64),
            Self::X86 => Some(&X86),
            Self::Arm64 => Some(&ARM64),
            Self::Other(_) => None,
        }
    }
}

/// Where a CONTEXT record has what a continue needs, and the instruction that a kernel breaks with.
#[derive(Debug)]
pub(crate) struct ContextRecord {
    /// `int 3` and its like.
    break_instruction: &'static [u8],
    /// Offset and size of the program counter in CONTEXT.
    program_counter: usize,
    pointer_size: usize,
    /// Offset of ContextFlags in CONTEXT.
    context_flags: usize,
    /// Where CONTEXT's registers end that a continue restores, and where the record ends.
    context_size: (usize, usize),
}

const X64: ContextRecord = ContextRecord {
    break_instruction: &[0xcc],
    program_counter: 0xf8,
    pointer_size: 8,
    context_flags: 0x30,
    context_size: (0x300, 0x4d0),
};
const X86: ContextRecord = ContextRecord {
    break_instruction: &[0xcc],
    program_counter: 0xb8,
    pointer_size: 4,
    context_flags: 0,
    context_size: (0x2cc, 0x2cc),
};
/// `brk #0xf000`
const ARM64: ContextRecord = ContextRecord {
    break_instruction: &[0x00, 0x00, 0x3e, 0xd4],
    program_counter: 0x108,
    pointer_size: 8,
    context_flags: 0,
    context_size: (0x390, 0x390),
};

impl ContextRecord {
    /// The address behind a hard-coded break instruction, or `None` if `instructions` does not begin with one.
    ///
    /// The kernel takes its table's breakpoints out of the bytes it reports, so a break instruction among them is
    /// part of the program: continuing on it would break again at once, for ever.
    pub(crate) fn behind_break(&self, program_counter: u64, instructions: &[u8]) -> Option<u64> {
        let length = self.break_instruction.len() as u64;
        instructions.starts_with(self.break_instruction).then(|| program_counter.wrapping_add(length))
    }

    /// ContextFlags of a CONTEXT record.
    pub(crate) fn context_flags(&self, context: &[u8]) -> Option<u32> {
        let flags = context.get(self.context_flags..self.context_flags + 4)?;
        Some(u32::from_le_bytes(flags.try_into().ok()?))
    }

    pub(crate) fn break_length(&self) -> usize {
        self.break_instruction.len()
    }

    /// Fills up a CONTEXT record that a small reply cut short, if nothing is missing that a continue restores: behind
    /// the x64 registers lie vector registers and branch records that it does not touch.
    pub(crate) fn fill_up(&self, context: &mut Vec<u8>) {
        let (registers, size) = self.context_size;
        if (registers..size).contains(&context.len()) {
            context.resize(size, 0);
        }
    }

    /// The program counter of a CONTEXT record, extended by its sign as state changes have it.
    pub(crate) fn program_counter(&self, context: &[u8]) -> Option<u64> {
        let field = context.get(self.program_counter..self.program_counter + self.pointer_size)?;
        match *field {
            [a, b, c, d] => Some(i64::from(i32::from_le_bytes([a, b, c, d])) as u64),
            _ => Some(u64::from_le_bytes(field.try_into().ok()?)),
        }
    }

    /// Writes the program counter of a CONTEXT record; returns its ContextFlags. `None`: the record is too short.
    pub(crate) fn set_program_counter(&self, context: &mut [u8], value: u64) -> Option<u32> {
        let flags = self.context_flags(context)?;
        let field = context.get_mut(self.program_counter..self.program_counter + self.pointer_size)?;
        field.copy_from_slice(&value.to_le_bytes()[..self.pointer_size]);
        Some(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_keep_their_numbers() {
        for number in [0x014c, 0x8664, 0xaa64, 0x01c4, 0x0200, 0] {
            assert_eq!(Machine::of(number).number(), number);
        }
        let sizes = [0x014c, 0x01c4, 0x8664, 0xaa64].map(|number| Machine::of(number).pointer_size());
        assert_eq!(sizes, [4, 4, 8, 8]);
    }

    #[test]
    fn a_hard_coded_break_is_stepped_over() {
        assert_eq!(X64.behind_break(0xffff_f800_0000_1000, &[0xcc, 0xc3]), Some(0xffff_f800_0000_1001));
        assert_eq!(X64.behind_break(0xffff_f800_0000_1000, &[0x90, 0xcc]), None);
        assert_eq!(ARM64.behind_break(0x1000, &[0x00, 0x00, 0x3e, 0xd4, 0, 0]), Some(0x1004));
        assert_eq!(X64.behind_break(0x1000, &[]), None);
    }

    #[test]
    fn a_context_cut_short_behind_the_registers_is_filled_up() {
        for (length, filled) in [(1096, 0x4d0), (0x4d0, 0x4d0), (0x2ff, 0x2ff), (0x500, 0x500)] {
            let mut context = vec![1; length];
            X64.fill_up(&mut context);
            assert_eq!(context.len(), filled);
        }
    }

    #[test]
    fn the_program_counter_of_a_short_context_is_not_written() {
        assert_eq!(X64.set_program_counter(&mut [0; 0xff], 1), None);
        let mut context = vec![0; 0x4d0];
        context[0x30..0x34].copy_from_slice(&0x10_001fu32.to_le_bytes());
        assert_eq!(X64.set_program_counter(&mut context, 0x1122_3344_5566_7788), Some(0x10_001f));
        assert_eq!(context[0xf8..0x100], 0x1122_3344_5566_7788u64.to_le_bytes());
        let mut context = vec![0; 716];
        assert_eq!(X86.set_program_counter(&mut context, 0xffff_ffff_8050_0001), Some(0));
        assert_eq!(context[0xb8..0xbc], 0x8050_0001u32.to_le_bytes());
        assert_eq!(context[0xbc..0xc0], [0; 4]);
        assert_eq!(X86.program_counter(&context), Some(0xffff_ffff_8050_0001));
        assert_eq!(X64.program_counter(&[0; 0xff]), None);
    }
}
