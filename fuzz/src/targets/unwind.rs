//! Bytes as an image with its function table and unwind data, and as the stack that is unwound with it.
//!
//! Where the program counter and the stack are is said by the u16 at 40 and the one at 42 (hexadecimal); the table of
//! functions begins at 200 and has as many entries as the u16 at 44 says, three where that is 0.

use nt_unwind::{ImageId, Images, Position, State, Unwinder};

use crate::mapped::{BASE, Mapped};

/// One input.
pub fn run(data: &[u8]) {
    let mut bytes = data.to_vec();
    if bytes.len() < 0x300 {
        return;
    }
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (rip, rsp) = (u64::from(word(0x40)), u64::from(word(0x42)));
    let count = u32::from(if word(0x44) == 0 { 3 } else { word(0x44) });
    // The signatures, and a table of functions.
    for (at, value) in
        [(0, 0x5a4d), (0x3c, 0x80), (0x80, 0x4550), (0x104, 16), (0x98 + 0x88, 0x200), (0x98 + 0x8c, count * 12)]
    {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    bytes[0x84..0x88].copy_from_slice(&[0x64, 0x86, 1, 0]);
    bytes[0x94..0x96].copy_from_slice(&0xf0u16.to_le_bytes());
    bytes[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
    // One section, all of it code.
    for (at, value) in [(0x190, bytes.len() as u32), (0x194, 0x200), (0x188 + 36, 0x6000_0020)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let id = ImageId { base: BASE, size: bytes.len() as u32, time_date_stamp: 1 };
    let memory = Mapped { bytes: &bytes, reply: 256 };
    let mut images = Images::default();
    let mut unwinder = Unwinder::new(&memory, &mut images);
    let mut registers = [BASE + rsp; 16];
    // The frame register may well point elsewhere.
    registers[5] = BASE + rsp + 0x40;
    let mut state = State { rip: BASE + rip, registers };
    let mut position = Position::Interrupted;
    for _ in 0..64 {
        match unwinder.step(&mut state, Some(id), position) {
            Ok(true) => position = Position::Interrupted,
            Ok(false) => position = Position::Calling,
            Err(_) => break,
        }
    }
}
