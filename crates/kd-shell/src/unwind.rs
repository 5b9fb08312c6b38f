//! Walking a stack of x64 by the unwind data of the images in the target's memory, or in their files.
//!
//! ```text
//! RUNTIME_FUNCTION   u32 BeginAddress  u32 EndAddress  u32 UnwindData        sorted, in the exception directory
//! UNWIND_INFO        u8 Version:3 Flags:5  u8 SizeOfProlog  u8 CountOfCodes  u8 FrameRegister:4 FrameOffset:4
//!                    u16 codes[]: u8 CodeOffset  u8 UnwindOp:4 OpInfo:4
//!                    with UNW_FLAG_CHAININFO (4): another RUNTIME_FUNCTION after an even number of codes
//! ```
//!
//! <https://learn.microsoft.com/cpp/build/exception-handling-x64>. All of it is the target's: every number is checked,
//! chains and codes are bounded.

use std::collections::HashMap;
use std::sync::Arc;

use nt_memory::{Fault, Memory, ReadError};
use nt_symbols::ImageFile;

const RSP: usize = 4;
/// Chained unwind information.
const MAX_CHAIN: usize = 32;
const CHAIN_INFO: u8 = 4;

/// The registers that unwinding restores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) rip: u64,
    /// By their numbers in instructions: rax rcx rdx rbx rsp rbp rsi rdi r8 ...
    pub(crate) registers: [u64; 16],
}

impl State {
    pub(crate) fn rsp(&self) -> u64 {
        self.registers[RSP]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    begin: u32,
    end: u32,
    unwind: u32,
}

impl Function {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self { begin: word(0)?, end: word(4)?, unwind: word(8)? })
    }
}

/// Where an image's table of functions is.
#[derive(Debug, Clone, Copy)]
struct Table {
    address: u64,
    count: u32,
}

/// Why a frame could not be left.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stuck {
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The stack, or an image's own data.
    #[error("{what} at {address:016x} cannot be read")]
    Unreadable { what: &'static str, address: u64 },
    #[error("the unwind data at {0:016x} makes no sense")]
    Damaged(u64),
}

/// The target's memory, and what of images only their files have.
struct Backed<'a> {
    memory: &'a dyn Memory,
    files: Vec<Arc<ImageFile>>,
}

impl Memory for Backed<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let good = self.memory.read(address, buffer)?.min(buffer.len());
        let (at, rest) = (address.wrapping_add(good as u64), &mut buffer[good..]);
        let inside = |file: &&Arc<ImageFile>| {
            let image = file.image();
            at.checked_sub(image.base).is_some_and(|offset| offset < u64::from(image.size_of_image))
        };
        match self.files.iter().find(inside) {
            Some(file) if !rest.is_empty() => Ok(good + file.read(at, rest)?),
            _ => Ok(good),
        }
    }
}

/// Unwinds frame by frame; remembers the tables of the images.
pub(crate) struct Unwinder<'a> {
    memory: Backed<'a>,
    tables: HashMap<u64, Option<Table>>,
}

impl<'a> Unwinder<'a> {
    pub(crate) fn new(memory: &'a dyn Memory) -> Self {
        Self { memory: Backed { memory, files: Vec::new() }, tables: HashMap::new() }
    }

    /// From here on what the target cannot read of an image comes from its file.
    pub(crate) fn use_file(&mut self, file: Arc<ImageFile>) {
        self.memory.files.push(file);
    }

    /// Leaves the frame of `state`; `base` is the image that `rip` is in. Returns whether it was an interrupt's or a
    /// trap's frame.
    pub(crate) fn step(&mut self, state: &mut State, base: Option<u64>) -> Result<bool, Stuck> {
        let function = match base {
            Some(base) => {
                let rva = state.rip.wrapping_sub(base);
                match u32::try_from(rva) {
                    Ok(rva) => self.function(base, rva)?.map(|function| (base, rva, function)),
                    Err(_) => None,
                }
            }
            None => None,
        };
        match function {
            Some((base, rva, function)) => self.unwind(state, base, rva, function),
            // A function without unwind data has no frame: its return address is on top.
            None => self.pop_return(state).map(|()| false),
        }
    }

    fn stack(&self, address: u64) -> Result<u64, Stuck> {
        match self.memory.read_u64(address) {
            Ok(value) => Ok(value),
            Err(ReadError::Fault(fault)) => Err(fault.into()),
            Err(ReadError::Hole { .. }) => Err(Stuck::Unreadable { what: "the stack", address }),
        }
    }

    fn pop_return(&self, state: &mut State) -> Result<(), Stuck> {
        state.rip = self.stack(state.rsp())?;
        state.registers[RSP] = state.rsp().wrapping_add(8);
        Ok(())
    }

    fn bytes(&self, what: &'static str, address: u64, length: usize) -> Result<Vec<u8>, Stuck> {
        let mut bytes = vec![0; length];
        match self.memory.read(address, &mut bytes)? {
            read if read >= length => Ok(bytes),
            read => Err(Stuck::Unreadable { what, address: address.wrapping_add(read as u64) }),
        }
    }

    /// The exception directory of an image; `None` when it has none.
    fn table(&mut self, base: u64) -> Result<Option<Table>, Stuck> {
        if let Some(table) = self.tables.get(&base) {
            return Ok(*table);
        }
        let headers = |at: u64, length| self.bytes("an image's header", base.wrapping_add(at), length);
        let new = u64::from(u32::from_le_bytes(headers(0x3c, 4)?.try_into().unwrap_or_default()));
        // Signature, file header, then the optional header of PE32+ with its directories from 0x70 on.
        let optional = headers(new.wrapping_add(0x18), 0x70 + 4 * 8)?;
        let word = |at: usize| u32::from_le_bytes(optional[at..at + 4].try_into().unwrap_or_default());
        const PE32_PLUS: u16 = 0x20b;
        const EXCEPTION: usize = 3;
        let magic = u16::from_le_bytes([optional[0], optional[1]]);
        let (rva, size) = (word(0x70 + EXCEPTION * 8), word(0x74 + EXCEPTION * 8));
        let has_table = magic == PE32_PLUS && word(0x6c) > EXCEPTION as u32 && rva != 0;
        let table = has_table.then(|| Table { address: base.wrapping_add(rva.into()), count: size / 12 });
        self.tables.insert(base, table);
        Ok(table)
    }

    /// The function that holds `rva`, by halving the table.
    fn function(&mut self, base: u64, rva: u32) -> Result<Option<Function>, Stuck> {
        let Some(table) = self.table(base)? else { return Ok(None) };
        let (mut low, mut high) = (0, table.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = table.address.wrapping_add(u64::from(middle) * 12);
            let bytes = self.bytes("an image's function table", at, 12)?;
            let Some(function) = Function::parse(&bytes) else { return Err(Stuck::Damaged(at)) };
            match () {
                () if rva < function.begin => high = middle,
                () if rva >= function.end => low = middle + 1,
                () => return Ok(Some(function)),
            }
        }
        Ok(None)
    }

    fn unwind(&mut self, state: &mut State, base: u64, rva: u32, function: Function) -> Result<bool, Stuck> {
        if self.leave_epilog(state)? {
            return Ok(false);
        }
        let mut function = function;
        for chained in 0..MAX_CHAIN {
            // An odd value leads to another entry of the table.
            if function.unwind & 1 != 0 {
                let at = base.wrapping_add(u64::from(function.unwind & !1));
                let bytes = self.bytes("an image's function table", at, 12)?;
                function = Function::parse(&bytes).ok_or(Stuck::Damaged(at))?;
                continue;
            }
            let at = base.wrapping_add(function.unwind.into());
            let header = self.bytes("unwind data", at, 4)?;
            let (version, flags, count) = (header[0] & 7, header[0] >> 3, usize::from(header[2]));
            if !(1..=2).contains(&version) {
                return Err(Stuck::Damaged(at));
            }
            let trailer = if flags & CHAIN_INFO != 0 { 12 } else { 0 };
            let even = count + (count & 1);
            let body = self.bytes("unwind data", at.wrapping_add(4), 2 * even + trailer)?;
            let codes: Vec<[u8; 2]> = body[..2 * count].chunks_exact(2).map(|code| [code[0], code[1]]).collect();
            let offset = if chained == 0 { rva.wrapping_sub(function.begin) } else { u32::MAX };
            let is_machine_frame = self.run(state, header[3], &codes, offset, at)?;
            if is_machine_frame {
                return Ok(true);
            }
            if trailer == 0 {
                self.pop_return(state)?;
                return Ok(false);
            }
            function = Function::parse(&body[2 * even..]).ok_or(Stuck::Damaged(at))?;
        }
        Err(Stuck::Damaged(base.wrapping_add(function.unwind.into())))
    }

    /// Undoes the prolog's operations that had been done by `offset`. True: the processor itself had pushed a frame.
    fn run(&self, state: &mut State, frame: u8, codes: &[[u8; 2]], offset: u32, at: u64) -> Result<bool, Stuck> {
        let slot = |index: usize| codes.get(index).map(|code| u64::from(u16::from_le_bytes(*code)));
        let damaged = || Stuck::Damaged(at);
        let (frame_register, frame_offset) = (usize::from(frame & 0xf), u64::from(frame >> 4) * 16);
        // Saved registers lie above the frame as it was when the prolog had set it.
        let is_set = codes.iter().any(|code| code[1] & 0xf == 3 && u32::from(code[0]) <= offset);
        let base = match frame_register != 0 && is_set {
            true => state.registers[frame_register].wrapping_sub(frame_offset),
            false => state.rsp(),
        };
        let mut index = 0;
        while let Some(&[when, operation]) = codes.get(index) {
            let (code, info) = (operation & 0xf, usize::from(operation >> 4));
            let slots = match (code, info) {
                (0 | 2 | 3 | 10, _) => 1,
                (1, 0) | (4 | 8, _) => 2,
                (1, _) | (5 | 9, _) => 3,
                // Version 2: where epilogs are; they were recognised by their instructions.
                (6, _) => 1,
                (7, _) => 2,
                _ => return Err(damaged()),
            };
            // Operations of the prolog that lie ahead have not been done.
            if u32::from(when) <= offset || code == 6 {
                let wide = |index| Some(slot(index)? | slot(index + 1)? << 16);
                let rsp = state.rsp();
                match (code, info) {
                    (0, register) => {
                        state.registers[register] = self.stack(rsp)?;
                        state.registers[RSP] = rsp.wrapping_add(8);
                    }
                    (1, 0) => {
                        state.registers[RSP] = rsp.wrapping_add(slot(index + 1).ok_or_else(damaged)? * 8);
                    }
                    (1, _) => state.registers[RSP] = rsp.wrapping_add(wide(index + 1).ok_or_else(damaged)?),
                    (2, size) => state.registers[RSP] = rsp.wrapping_add(size as u64 * 8 + 8),
                    (3, _) => {
                        state.registers[RSP] = state.registers[frame_register].wrapping_sub(frame_offset);
                    }
                    (4, register) => {
                        let saved = slot(index + 1).ok_or_else(damaged)? * 8;
                        state.registers[register] = self.stack(base.wrapping_add(saved))?;
                    }
                    (5, register) => {
                        let saved = wide(index + 1).ok_or_else(damaged)?;
                        state.registers[register] = self.stack(base.wrapping_add(saved))?;
                    }
                    (10, error_code) => {
                        let frame = rsp.wrapping_add(if error_code == 0 { 0 } else { 8 });
                        state.rip = self.stack(frame)?;
                        state.registers[RSP] = self.stack(frame.wrapping_add(24))?;
                        return Ok(true);
                    }
                    _ => {}
                }
            }
            index += slots;
        }
        Ok(false)
    }

    /// In an epilog the prolog's operations are half undone already: its instructions are done to their end.
    ///
    /// ```text
    /// [add rsp,imm | lea rsp,[reg+disp]]  pop reg ...  ret | jmp
    /// ```
    fn leave_epilog(&self, state: &mut State) -> Result<bool, Stuck> {
        let mut code = [0; 64];
        let read = self.memory.read(state.rip, &mut code)?.min(code.len());
        let mut left = &code[..read];
        let mut after = state.clone();
        match left {
            [0x48, 0x83, 0xc4, imm, rest @ ..] => {
                after.registers[RSP] = after.rsp().wrapping_add(*imm as i8 as u64);
                left = rest;
            }
            [0x48, 0x81, 0xc4, a, b, c, d, rest @ ..] => {
                let size = i32::from_le_bytes([*a, *b, *c, *d]);
                after.registers[RSP] = after.rsp().wrapping_add(size as u64);
                left = rest;
            }
            [rex @ (0x48 | 0x49), 0x8d, modrm, rest @ ..] if modrm & 0x38 == 0x20 && modrm & 7 != 4 => {
                let register = usize::from(modrm & 7 | (rex & 1) << 3);
                let (displacement, rest) = match (modrm >> 6, rest) {
                    (1, [byte, rest @ ..]) => (i64::from(*byte as i8), rest),
                    (2, [a, b, c, d, rest @ ..]) => (i64::from(i32::from_le_bytes([*a, *b, *c, *d])), rest),
                    _ => return Ok(false),
                };
                after.registers[RSP] = after.registers[register].wrapping_add(displacement as u64);
                left = rest;
            }
            _ => {}
        }
        loop {
            let (register, rest) = match left {
                [byte @ 0x58..=0x5f, rest @ ..] => (byte - 0x58, rest),
                [0x41, byte @ 0x58..=0x5f, rest @ ..] => (byte - 0x58 + 8, rest),
                // A return; `rep ret`, which old processors like better; a tail call through a register or a table.
                [0xc3, ..]
                | [0xc2, ..]
                | [0xf3, 0xc3, ..]
                | [0xff, 0x25, ..]
                | [0x48, 0xff, 0x25 | 0xe0..=0xe7, ..] => break,
                _ => return Ok(false),
            };
            after.registers[usize::from(register)] = self.stack(after.rsp())?;
            after.registers[RSP] = after.rsp().wrapping_add(8);
            left = rest;
        }
        self.pop_return(&mut after)?;
        *state = after;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// One piece of memory.
    struct Piece {
        start: u64,
        bytes: RefCell<Vec<u8>>,
    }

    impl Memory for Piece {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let bytes = self.bytes.borrow();
            let from = usize::try_from(address.wrapping_sub(self.start)).unwrap_or(usize::MAX).min(bytes.len());
            let count = buffer.len().min(bytes.len() - from);
            buffer[..count].copy_from_slice(&bytes[from..from + count]);
            Ok(count)
        }
    }

    const BASE: u64 = 0xfffff880_01000000;
    const STACK: u64 = BASE + 0x8000;

    impl Piece {
        /// An image with one function at 0x1000..0x1100 whose unwind data is `unwind`, and a stack behind it.
        fn image(unwind: &[u8]) -> Self {
            let piece = Self { start: BASE, bytes: RefCell::new(vec![0; 0x9000]) };
            piece.put(0x3c, &0x80u32.to_le_bytes());
            piece.put(0x98, &0x20bu16.to_le_bytes());
            piece.put(0x98 + 0x6c, &16u32.to_le_bytes());
            piece.put(0x98 + 0x88, &0x2000u32.to_le_bytes());
            piece.put(0x98 + 0x8c, &24u32.to_le_bytes());
            for (at, word) in [0x1000u32, 0x1100, 0x3000, 0x5000, 0x5100, 0x3000].iter().enumerate() {
                piece.put(0x2000 + at * 4, &word.to_le_bytes());
            }
            piece.put(0x1000, &[0x90; 0x100]);
            piece.put(0x3000, unwind);
            for slot in 0..0x100u64 {
                piece.put(0x8000 + slot as usize * 8, &(0x1000 + slot).to_le_bytes());
            }
            piece
        }

        fn put(&self, at: usize, bytes: &[u8]) {
            self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn step(&self, rip: u64, adjust: impl FnOnce(&mut State)) -> Result<(State, bool), Stuck> {
            let mut state = State { rip, registers: [0; 16] };
            state.registers[RSP] = STACK;
            adjust(&mut state);
            let trap = Unwinder::new(self).step(&mut state, Some(BASE))?;
            Ok((state, trap))
        }
    }

    /// push rbx; sub rsp,20h
    const SIMPLE: &[u8] = &[1, 6, 2, 0, 6, 0x32, 2, 0x30];

    #[test]
    fn a_prolog_is_undone_as_far_as_it_was_done() {
        let image = Piece::image(SIMPLE);
        let (state, _) = image.step(BASE + 0x1050, |_| {}).unwrap();
        assert_eq!((state.rip, state.rsp(), state.registers[3]), (0x1005, STACK + 0x30, 0x1004));
        // Behind the push only.
        let (state, _) = image.step(BASE + 0x1002, |_| {}).unwrap();
        assert_eq!((state.rip, state.rsp(), state.registers[3]), (0x1001, STACK + 0x10, 0x1000));
        let (state, _) = image.step(BASE + 0x1000, |_| {}).unwrap();
        assert_eq!((state.rip, state.rsp()), (0x1000, STACK + 8));
        // No function there: a leaf.
        let (state, _) = image.step(BASE + 0x1200, |_| {}).unwrap();
        assert_eq!((state.rip, state.rsp()), (0x1000, STACK + 8));
    }

    #[test]
    fn an_epilog_is_done_to_its_end() {
        let image = Piece::image(SIMPLE);
        image.put(0x1050, &[0x48, 0x83, 0xc4, 0x20, 0x5b, 0xc3]);
        for (at, adjust) in [(0x1050, 0), (0x1054, 0x20), (0x1055, 0x28)] {
            let (state, _) = image.step(BASE + at, |state| state.registers[RSP] += adjust).unwrap();
            assert_eq!((state.rip, state.rsp()), (0x1005, STACK + 0x30), "{at:x}");
        }
    }

    #[test]
    fn frame_registers_saved_registers_large_frames_and_traps() {
        // push rbp; sub rsp,1000h; lea rbp,[rsp+20h]; mov [rsp+8],rsi
        let image = Piece::image(&[1, 0x20, 6, 0x25, 0x20, 0x64, 1, 0, 0x10, 0x53, 8, 1, 0x20, 0, 1, 0x50]);
        let (state, _) = image
            .step(BASE + 0x1050, |state| {
                state.registers[5] = STACK + 0x20;
                state.registers[RSP] = STACK - 0x500;
            })
            .unwrap();
        assert_eq!((state.registers[6], state.registers[5]), (0x1001, 0x1020));
        assert_eq!((state.rip, state.rsp()), (0x1021, STACK + 0x110));
        // An interrupt with an error code.
        let image = Piece::image(&[1, 0, 1, 0, 0, 0x1a]);
        let (state, trap) = image.step(BASE + 0x1050, |_| {}).unwrap();
        assert!(trap);
        assert_eq!((state.rip, state.rsp()), (0x1001, 0x1004));
    }

    #[test]
    fn chains_end() {
        // The chained part allocates 0x28 more.
        let mut unwind = vec![0x21, 0, 0, 0];
        for word in [0x1000u32, 0x1100, 0x3010] {
            unwind.extend(word.to_le_bytes());
        }
        unwind.extend([1, 4, 1, 0, 4, 0x42]);
        let (state, _) = Piece::image(&unwind).step(BASE + 0x1050, |_| {}).unwrap();
        assert_eq!((state.rip, state.rsp()), (0x1005, STACK + 0x30));
        unwind[12..16].copy_from_slice(&0x3000u32.to_le_bytes());
        assert_eq!(Piece::image(&unwind).step(BASE + 0x1050, |_| {}), Err(Stuck::Damaged(BASE + 0x3000)));
    }

    proptest! {
        #[test]
        fn any_unwind_data_ends(unwind in proptest::collection::vec(any::<u8>(), 4..600), at in 0u64..0x100) {
            let _ = Piece::image(&unwind).step(BASE + 0x1000 + at, |_| {});
        }

        #[test]
        fn any_header_ends(header in proptest::collection::vec(any::<u8>(), 0x200)) {
            let image = Piece::image(SIMPLE);
            image.put(0, &header);
            let _ = image.step(BASE + 0x1050, |_| {});
        }
    }
}
