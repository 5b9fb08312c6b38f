#![no_main]

//! Bytes as an image with its function table and unwind data, and as the stack that is unwound with it.

use libfuzzer_sys::fuzz_target;
use nt_memory::{Fault, Memory};
use nt_unwind::{ImageId, Images, Position, State, Unwinder};

const BASE: u64 = 0xffff_f800_0260_0000;

struct Mapped(Vec<u8>);

impl Memory for Mapped {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let start = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX);
        let there = self.0.get(start..).unwrap_or_default();
        let good = there.len().min(buffer.len());
        buffer[..good].copy_from_slice(&there[..good]);
        Ok(good)
    }

    fn reply_size(&self) -> usize {
        256
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() < 0x300 {
        return;
    }
    // The signatures, and a table of functions that begins where the fuzzer's bytes do.
    let count = ((bytes.len() - 0x200) / 24) as u32;
    for (at, value) in
        [(0, 0x5a4d), (0x3c, 0x80), (0x80, 0x4550), (0x104, 16), (0x98 + 0x88, 0x200), (0x98 + 0x8c, count * 12)]
    {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    bytes[0x84..0x88].copy_from_slice(&[0x64, 0x86, 1, 0]);
    bytes[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
    let id = ImageId { base: BASE, size: bytes.len() as u32, time_date_stamp: 1 };
    let (rip, rsp) = (u64::from(bytes[0x40]) * 7, bytes.len() as u64 / 2);
    let memory = Mapped(bytes);
    let mut images = Images::default();
    let mut unwinder = Unwinder::new(&memory, &mut images);
    let mut state = State { rip: BASE + rip, registers: [BASE + rsp; 16] };
    let mut position = Position::Interrupted;
    for _ in 0..64 {
        match unwinder.step(&mut state, Some(id), position) {
            Ok(true) => position = Position::Interrupted,
            Ok(false) => position = Position::Calling,
            Err(_) => break,
        }
    }
});
