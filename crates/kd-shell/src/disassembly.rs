//! Instructions as kd writes them.
//!
//! ```text
//! fffff801`0bf95810 4c89442418      mov     qword ptr [rsp+18h],r8
//! fffff801`0bf95815 e8e6070000      call    nt!Foo+0x10 (fffff801`0bf96000)
//! ```

use std::cell::RefCell;
use std::rc::Rc;

use iced_x86::{
    Code, Decoder, DecoderOptions, Formatter, Instruction, MasmFormatter, MemorySizeOptions, Mnemonic, OpKind,
    SymbolResolver, SymbolResult,
};
use kd_target::Machine;
use nt_memory::Fault;

use crate::symbols::Names;
use crate::text::Width;

/// No instruction is longer.
pub(crate) const MAX_LENGTH: usize = 15;

/// One instruction.
pub(crate) struct Disassembled {
    pub(crate) length: usize,
    /// `mov     qword ptr [rsp+18h],r8`
    pub(crate) text: String,
    pub(crate) flow: Flow,
}

/// Where it goes on behind an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    /// Here, or at the next one.
    Branch(u64),
    /// Here; `None` when that is not in the instruction.
    Jump(Option<u64>),
    /// This is called, and then it is the next one; `None` when the place is not in the instruction.
    Call(Option<u64>),
    /// Nowhere: a return, or an instruction that ends in the kernel's hands.
    End,
}

fn flow(instruction: &Instruction) -> Flow {
    let is_near = matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let target = is_near.then(|| instruction.near_branch_target());
    match instruction.mnemonic() {
        Mnemonic::Jmp => Flow::Jump(target),
        Mnemonic::Call => Flow::Call(target),
        Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Flow::End,
        Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Ud2 => Flow::End,
        // What else has a place in the code is a branch: jcc, loop, jrcxz.
        _ => target.map_or(Flow::Next, Flow::Branch),
    }
}

/// The name that an operand's address is shown with.
#[derive(Default, Clone)]
struct Named(Rc<RefCell<Option<(u64, String)>>>);

impl SymbolResolver for Named {
    fn symbol(&mut self, _: &Instruction, _: u32, _: Option<u32>, address: u64, _: u32) -> Option<SymbolResult<'_>> {
        let named = self.0.borrow();
        let (_, text) = named.as_ref().filter(|(named, _)| *named == address)?;
        Some(SymbolResult::with_string(address, text.clone()))
    }
}

pub(crate) struct Disassembler {
    width: Width,
    formatter: MasmFormatter,
    named: Named,
}

impl Disassembler {
    /// `None`: instructions of this machine are not known.
    pub(crate) fn new(machine: Machine) -> Option<Self> {
        let width = match machine {
            Machine::X64 => Width::Eight,
            Machine::X86 => Width::Four,
            _ => return None,
        };
        let named = Named::default();
        let mut formatter = MasmFormatter::with_options(Some(Box::new(named.clone())), None);
        let options = formatter.options_mut();
        options.set_first_operand_char_index(8);
        options.set_memory_size_options(MemorySizeOptions::Always);
        options.set_show_branch_size(false);
        options.set_rip_relative_addresses(false);
        options.set_small_hex_numbers_in_decimal(true);
        options.set_branch_leading_zeros(true);
        Some(Self { width, formatter, named })
    }

    /// The instruction that `bytes` begin with; `None` when they end before it does. Addresses in it get the names that
    /// `name` has for them.
    pub(crate) fn one(
        &mut self,
        bytes: &[u8],
        address: u64,
        name: &mut dyn FnMut(u64) -> Result<Option<String>, Fault>,
    ) -> Result<Option<Disassembled>, Fault> {
        let bits = self.width.bytes() as u32 * 8;
        let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
        if !decoder.can_decode() {
            return Ok(None);
        }
        let instruction = decoder.decode();
        match instruction.code() {
            // kd shows bytes that are no instruction one by one.
            Code::INVALID if bytes.len() < MAX_LENGTH && instruction.len() >= bytes.len() => return Ok(None),
            Code::INVALID => return Ok(Some(Disassembled { length: 1, text: "???".into(), flow: Flow::End })),
            Code::Int3 => {
                let (length, text) = (instruction.len(), "int     3".into());
                return Ok(Some(Disassembled { length, text, flow: Flow::Next }));
            }
            _ => {}
        }
        let target = match instruction.op0_kind() {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                Some(instruction.near_branch_target())
            }
            _ if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
            _ if is_absolute(&instruction) => Some(instruction.memory_displacement64()),
            _ => None,
        };
        let shown = match target {
            None => None,
            Some(target) => {
                let at = self.width.tick(target);
                Some((target, name(self.width.address(target))?.map_or(at.clone(), |name| format!("{name} ({at})"))))
            }
        };
        *self.named.0.borrow_mut() = shown;
        let mut text = String::new();
        self.formatter.format(&instruction, &mut text);
        let (length, text) = (instruction.len(), text.trim_end().into());
        Ok(Some(Disassembled { length, text, flow: flow(&instruction) }))
    }

    /// One instruction with names of the target's modules.
    pub(crate) fn named(
        &mut self,
        bytes: &[u8],
        address: u64,
        names: &mut Names<'_>,
    ) -> Result<Option<Disassembled>, Fault> {
        let width = self.width;
        self.one(bytes, address, &mut |target| match width.is_kernel(target) {
            true => names.name(target),
            false => Ok(None),
        })
    }
}

/// `[820f2ba4h]`: a memory operand without registers.
fn is_absolute(instruction: &Instruction) -> bool {
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let none = iced_x86::Register::None;
    has_memory
        && instruction.memory_base() == none
        && instruction.memory_index() == none
        && instruction.segment_prefix() == none
}

/// Where the instructions before the end of `bytes` begin: the longest row of them that ends there, at most `count`, from
/// `start` on when that is known to be the start of one.
pub(crate) fn backwards(machine: Machine, bytes: &[u8], start: Option<usize>, count: usize) -> Vec<usize> {
    let bits = if machine == Machine::X64 { 64 } else { 32 };
    let first = bytes.len().saturating_sub(count.saturating_mul(MAX_LENGTH));
    let mut best = Vec::new();
    for from in start.into_iter().chain(first..bytes.len()) {
        let (mut at, mut found) = (from, Vec::new());
        while at < bytes.len() {
            let instruction = Decoder::new(bits, &bytes[at..], DecoderOptions::NONE).decode();
            if instruction.code() == Code::INVALID {
                break;
            }
            found.push(at);
            at += instruction.len();
        }
        if at != bytes.len() {
            continue;
        }
        let found = found.split_off(found.len().saturating_sub(count));
        if start == Some(from) || found.len() >= count {
            return found;
        }
        if found.len() > best.len() {
            best = found;
        }
    }
    best
}

/// The length of the instruction that `bytes` begin with if it is a call.
pub(crate) fn call_length(machine: Machine, bytes: &[u8]) -> Option<usize> {
    match machine {
        Machine::X64 | Machine::X86 => {
            let bits = if machine == Machine::X64 { 64 } else { 32 };
            let instruction = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
            let is_call = instruction.mnemonic() == Mnemonic::Call;
            // A repeated string instruction is one as well for whoever steps.
            (is_call || instruction.has_rep_prefix() || instruction.has_repne_prefix()).then(|| instruction.len())
        }
        Machine::Arm64 => {
            let word = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
            // bl, blr
            (word >> 26 == 0b10_0101 || word & 0xffff_fc1f == 0xd63f_0000).then_some(4)
        }
        _ => None,
    }
}

/// Where the instruction begins whose four-byte constant lies at `at` in `bytes`. `start` is where an instruction is known
/// to begin, as a function does; without one the bytes before the constant tell: `b8` to `bf` (mov) and `68` (push) stand
/// right before it, with a prefix as the case may be.
pub(crate) fn instruction_of_constant(
    machine: Machine,
    bytes: &[u8],
    start: Option<usize>,
    at: usize,
) -> Option<usize> {
    /// Prefixes, opcode, ModRM, SIB and displacement.
    const BEFORE: usize = 11;
    let bits = match machine {
        Machine::X64 => 64,
        Machine::X86 => 32,
        _ => return None,
    };
    let holds = |from: usize| {
        let mut decoder = Decoder::new(bits, bytes.get(from..)?, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let offsets = decoder.get_constant_offsets(&instruction);
        let is = offsets.has_immediate() && offsets.immediate_size() == 4 && from + offsets.immediate_offset() == at;
        (!instruction.is_invalid()).then_some((instruction.len(), is))
    };
    if let Some(start) = start {
        let mut from = start;
        while from <= at {
            match holds(from) {
                Some((_, true)) => return Some(from),
                Some((length, false)) => from += length,
                None => break,
            }
        }
    }
    let candidates: Vec<usize> =
        (1..=BEFORE.min(at)).map(|back| at - back).filter(|from| matches!(holds(*from), Some((_, true)))).collect();
    let nearest = *candidates.first()?;
    // A REX prefix belongs to what follows it.
    let prefixed = candidates.get(1).filter(|from| **from + 1 == nearest && bits == 64 && bytes[**from] & 0xf0 == 0x40);
    Some(prefixed.copied().unwrap_or(nearest))
}

/// ``fffff801`0bf95810 4c89442418      mov     …``
pub(crate) fn line(width: Width, address: u64, bytes: &[u8], text: &str) -> String {
    let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {bytes:<15} {text}", width.tick(address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(machine: Machine, bytes: &[u8], address: u64) -> String {
        let mut disassembler = Disassembler::new(machine).unwrap();
        let name = &mut |target: u64| Ok((target == 0xfffff801_0bf96000).then(|| "nt!Foo+0x10".to_string()));
        let one = disassembler.one(bytes, address, name).unwrap().unwrap();
        line(Width::Eight, address, &bytes[..one.length], &one.text)
    }

    #[test]
    fn lines_are_kds() {
        for (bytes, line) in [
            (&[0x4c, 0x89, 0x44, 0x24, 0x18][..], "fffff801`0bf95810 4c89442418      mov     qword ptr [rsp+18h],r8"),
            (&[0xcc], "fffff801`0bf95810 cc              int     3"),
            (&[0xc3], "fffff801`0bf95810 c3              ret"),
            (
                &[0xe8, 0xeb, 0x07, 0x00, 0x00],
                "fffff801`0bf95810 e8eb070000      call    nt!Foo+0x10 (fffff801`0bf96000)",
            ),
            (
                &[0x48, 0x8b, 0x05, 0xe9, 0x07, 0x00, 0x00],
                "fffff801`0bf95810 488b05e9070000  mov     rax,qword ptr [nt!Foo+0x10 (fffff801`0bf96000)]",
            ),
            (&[0xeb, 0x0e], "fffff801`0bf95810 eb0e            jmp     fffff801`0bf95820"),
            (&[0x25, 0xff, 0x00, 0x00, 0x00], "fffff801`0bf95810 25ff000000      and     eax,0FFh"),
            (&[0x48, 0x83, 0xec, 0x28], "fffff801`0bf95810 4883ec28        sub     rsp,28h"),
        ] {
            assert_eq!(text(Machine::X64, bytes, 0xfffff801_0bf95810), line);
        }
    }

    #[test]
    fn the_instruction_around_a_constant_is_found() {
        let tag = *b"Leak";
        // xor ecx,ecx; mov r8d,'kaeL'; ret
        let code = [&[0x33, 0xc9, 0x41, 0xb8][..], &tag, &[0xc3]].concat();
        assert_eq!(instruction_of_constant(Machine::X64, &code, None, 4), Some(2));
        assert_eq!(instruction_of_constant(Machine::X64, &code, Some(0), 4), Some(2));
        // push 'kaeL'
        let code = [&[0x8b, 0xc1, 0x68][..], &tag].concat();
        assert_eq!(instruction_of_constant(Machine::X86, &code, None, 3), Some(2));
        // mov dword ptr [rsp+28h],'kaeL'
        let code = [&[0x90, 0xc7, 0x44, 0x24, 0x28][..], &tag].concat();
        assert_eq!(instruction_of_constant(Machine::X64, &code, None, 5), Some(1));
        // Text, and no instruction.
        assert_eq!(instruction_of_constant(Machine::X64, b"\0\0\0\0Leak", None, 4), None);
    }

    #[test]
    fn instructions_before_a_place_are_found() {
        // push rbp; mov rbp,rsp; sub rsp,28h; call; ret
        let code = [0x55, 0x48, 0x8b, 0xec, 0x48, 0x83, 0xec, 0x28, 0xe8, 1, 2, 3, 4, 0xc3];
        assert_eq!(backwards(Machine::X64, &code, Some(0), 3), [4, 8, 13]);
        assert_eq!(backwards(Machine::X64, &code, None, 2), [8, 13]);
        assert_eq!(backwards(Machine::X64, &code, Some(1), 8), [1, 4, 8, 13]);
        assert!(backwards(Machine::X64, &[], None, 8).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_instruction_or_none(bytes: Vec<u8>, start in proptest::option::of(0usize..64), at in 0usize..64) {
            let _ = instruction_of_constant(Machine::X64, &bytes, start, at);
            let _ = instruction_of_constant(Machine::X86, &bytes, start, at);
        }

        #[test]
        fn rows_backwards_end_where_they_must(bytes in prop::collection::vec(any::<u8>(), 0..80), count in 1usize..9) {
            let found = backwards(Machine::X64, &bytes, None, count);
            prop_assert!(found.len() <= count && found.is_sorted());
        }

        #[test]
        fn any_bytes_are_disassembled(bytes: [u8; 16], address: u64, x86: bool) {
            let mut disassembler = Disassembler::new(if x86 { Machine::X86 } else { Machine::X64 }).unwrap();
            let one = disassembler.one(&bytes, address, &mut |_| Ok(None)).unwrap().unwrap();
            prop_assert!((1..=MAX_LENGTH).contains(&one.length));
        }
    }
}
