//! One frame after the other.

use nt_memory::{Fault, KDNET_REPLY, Memory};

use crate::images::{Function, ImageId, Images};

const RSP: usize = 4;
/// Chained unwind information.
const MAX_CHAIN: usize = 32;
const CHAIN_INFO: u8 = 4;

/// The registers that unwinding restores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The program counter.
    pub rip: u64,
    /// By their numbers in instructions: rax rcx rdx rbx rsp rbp rsi rdi r8 ...
    pub registers: [u64; 16],
}

impl State {
    /// The stack pointer.
    pub fn rsp(&self) -> u64 {
        self.registers[RSP]
    }
}

/// What is known of the place at which a frame's code stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It was stopped, or interrupted: at any instruction, also within a prolog or an epilog.
    Interrupted,
    /// It called the frame above. No compiler calls from within an epilog, so its code need not be read.
    Calling,
}

/// Why a frame could not be left.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// The source of memory is gone, or was interrupted.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The stack, or an image's own data.
    #[error("{what} at {address:016x} cannot be read")]
    Unreadable {
        /// What of the image or the stack.
        what: &'static str,
        /// Where it lies.
        address: u64,
    },
    /// The unwind data of the function at this address contradicts itself.
    #[error("the unwind data at {0:016x} makes no sense")]
    Damaged(u64),
}

/// Unwinds frame by frame.
pub struct Unwinder<'a> {
    memory: &'a dyn Memory,
    images: &'a mut Images,
    /// A piece of the stack, and where it begins: a frame's words lie together.
    window: (u64, Vec<u8>),
}

impl<'a> Unwinder<'a> {
    /// Reads stack and images through `memory`, and keeps what it learns of images in `images`.
    pub fn new(memory: &'a dyn Memory, images: &'a mut Images) -> Self {
        Self { memory, images, window: (0, Vec::new()) }
    }

    /// What is kept of images.
    pub fn images(&mut self) -> &mut Images {
        self.images
    }

    /// Leaves the frame of `state`; `image` is what `rip` lies in. Returns whether it was an interrupt's or a trap's
    /// frame: its caller was interrupted, too.
    pub fn step(&mut self, state: &mut State, image: Option<ImageId>, position: Position) -> Result<bool, Stuck> {
        let inside = |image: ImageId| Some((image, u32::try_from(state.rip.checked_sub(image.base)?).ok()?));
        let function = match image.and_then(inside) {
            Some((image, rva)) => self.images.function(self.memory, image, rva)?.map(|function| (image, rva, function)),
            None => None,
        };
        match function {
            Some((image, rva, function)) => {
                if position == Position::Interrupted && self.leave_epilog(state)? {
                    return Ok(false);
                }
                self.unwind(state, image, rva, function)
            }
            // A function without unwind data has no frame: its return address is on top.
            None => self.pop_return(state).map(|()| false),
        }
    }

    fn stack(&mut self, address: u64) -> Result<u64, Stuck> {
        let word = |(start, bytes): &(u64, Vec<u8>)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
        };
        if let Some(value) = word(&self.window) {
            return Ok(value);
        }
        // Callers lie above. A full reply of a slow line would take longer than a few frames are worth.
        let mut bytes = vec![0; self.memory.reply_size().clamp(8, KDNET_REPLY)];
        let read = self.memory.read(address, &mut bytes)?.min(bytes.len());
        bytes.truncate(read);
        self.window = (address, bytes);
        word(&self.window).ok_or(Stuck::Unreadable { what: "the stack", address })
    }

    fn pop_return(&mut self, state: &mut State) -> Result<(), Stuck> {
        state.rip = self.stack(state.rsp())?;
        state.registers[RSP] = state.rsp().wrapping_add(8);
        Ok(())
    }

    fn unwind(&mut self, state: &mut State, image: ImageId, rva: u32, function: Function) -> Result<bool, Stuck> {
        let address = |rva: u32| image.base.wrapping_add(rva.into());
        let mut function = function;
        for chained in 0..MAX_CHAIN {
            // An odd value leads to another entry of the table.
            if function.unwind & 1 != 0 {
                let at = function.unwind & !1;
                let bytes = self.images.bytes(self.memory, image, "an image's function table", at.into(), 12)?;
                function = Function::parse(&bytes).ok_or(Stuck::Damaged(address(at)))?;
                continue;
            }
            let (start, at) = (u64::from(function.unwind), address(function.unwind));
            let header = self.images.bytes(self.memory, image, "unwind data", start, 4)?;
            let (version, flags, count) = (header[0] & 7, header[0] >> 3, usize::from(header[2]));
            if !(1..=2).contains(&version) {
                return Err(Stuck::Damaged(at));
            }
            let trailer = if flags & CHAIN_INFO != 0 { 12 } else { 0 };
            let even = count + (count & 1);
            let body = self.images.bytes(self.memory, image, "unwind data", start + 4, 2 * even + trailer)?;
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
        Err(Stuck::Damaged(address(function.unwind)))
    }

    /// Undoes the prolog's operations that had been done by `offset`. True: the processor itself had pushed a frame.
    fn run(&mut self, state: &mut State, frame: u8, codes: &[[u8; 2]], offset: u32, at: u64) -> Result<bool, Stuck> {
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
    fn leave_epilog(&mut self, state: &mut State) -> Result<bool, Stuck> {
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
pub(crate) mod testing {
    use std::cell::RefCell;

    use nt_memory::{Fault, Memory};

    /// One piece of memory.
    pub(crate) struct Piece {
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

    pub(crate) const BASE: u64 = 0xfffff880_01000000;

    impl Piece {
        /// An image's headers: a section of code from 0x1000, and `count` functions listed at `table`.
        fn new(size: usize, code: u32, table: u32, count: usize) -> Self {
            let piece = Self { start: BASE, bytes: RefCell::new(vec![0; size]) };
            piece.put(0, b"MZ");
            piece.put(0x3c, &0x80u32.to_le_bytes());
            piece.put(0x80, b"PE\0\0\x64\x86\x01\0");
            piece.put(0x94, &0xf0u16.to_le_bytes());
            piece.put(0x98, &0x20bu16.to_le_bytes());
            piece.put(0x98 + 0x38, &(size as u32).to_le_bytes());
            piece.put(0x98 + 0x6c, &16u32.to_le_bytes());
            piece.put(0x98 + 0x88, &table.to_le_bytes());
            piece.put(0x98 + 0x8c, &(count as u32 * 12).to_le_bytes());
            piece.put(0x188 + 8, &code.to_le_bytes());
            piece.put(0x188 + 12, &0x1000u32.to_le_bytes());
            piece.put(0x188 + 36, &0x6000_0020u32.to_le_bytes());
            piece
        }

        pub(crate) fn put(&self, at: usize, bytes: &[u8]) {
            self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }

        pub(crate) fn len(&self) -> usize {
            self.bytes.borrow().len()
        }

        /// An image with one function at 0x1000..0x1100 whose unwind data is `unwind`, and a stack behind it.
        pub(crate) fn image(unwind: &[u8]) -> Self {
            let piece = Self::new(0x9000, 0x4100, 0x2000, 2);
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
    }

    /// An image with these functions, listed behind its code.
    pub(crate) fn image_of(functions: &[(u32, u32)], end: u32) -> Piece {
        let table = end.next_multiple_of(0x1000);
        let piece = Piece::new(table as usize + functions.len() * 12, end - 0x1000, table, functions.len());
        for (index, (begin, end)) in functions.iter().enumerate() {
            let at = table as usize + index * 12;
            piece.put(at, &begin.to_le_bytes());
            piece.put(at + 4, &end.to_le_bytes());
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{BASE, Piece};
    use super::*;

    const STACK: u64 = BASE + 0x8000;

    impl Piece {
        fn step(&self, rip: u64, adjust: impl FnOnce(&mut State)) -> Result<(State, bool), Stuck> {
            let mut state = State { rip, registers: [0; 16] };
            state.registers[RSP] = STACK;
            adjust(&mut state);
            let id = ImageId { base: BASE, size: 0x9000, time_date_stamp: 1 };
            let mut images = Images::default();
            let trap = Unwinder::new(self, &mut images).step(&mut state, Some(id), Position::Interrupted)?;
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
