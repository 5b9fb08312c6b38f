#![doc = include_str!("../README.md")]
//!
//! A target's memory as a source of bytes.
//!
//! Decoders of kernel structures (`nt-pool` and its users) read through [`Memory`] and never learn where the bytes come
//! from: a live kernel over KD, a dump, or a test's own array. Two kinds of failure are kept apart because they mean
//! different things to a reader of the result:
//!
//! * a *hole*: this page is not readable now. Other pages are; the result is incomplete and says where.
//! * a [`Fault`]: the source itself is gone (link lost, target running, command cancelled), or there is no room here for
//!   what it would bring. Nothing more can be read.

pub mod paging;

use std::ops::Range;
use std::time::Duration;

pub use heap_limit::Full;

/// The source cannot be read at all any more; whatever was being computed ends here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The connection ended.
    #[error("the connection to the target is lost: {0}")]
    Lost(String),
    /// The target runs, and a running target does not answer.
    #[error("the target is running; break in first")]
    Running,
    /// The user stopped the command.
    #[error("interrupted")]
    Cancelled,
    /// There is too little room here to read on.
    #[error(transparent)]
    Full(#[from] Full),
}

/// Why exactly the wanted bytes could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// `read` bytes are good, the byte at `address + read` is not readable.
    #[error("cannot read {wanted:#x} bytes at {address:016x}: the target could not read {:016x}", address.wrapping_add(*read as u64))]
    Hole {
        /// Where what was wanted begins.
        address: u64,
        /// Bytes that were wanted.
        wanted: usize,
        /// Bytes before the hole.
        read: usize,
    },
    /// There is no answer from the source at all.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The outcome of letting the target search its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// The pattern starts here.
    Found(u64),
    /// All of it was readable, and the bytes are not there.
    NotFound,
    /// This source cannot search; read and compare instead.
    Unsupported,
}

/// What a source has cost since it was opened. Questions compare two of these to say what the rest will cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Questions that were put to the target.
    pub requests: u64,
    /// Bytes of memory that it sent.
    pub bytes: u64,
    /// How long the target stood still for it.
    pub time: Duration,
}

impl Spent {
    /// What was spent since an earlier moment.
    pub fn since(self, earlier: Spent) -> Spent {
        Spent {
            requests: self.requests.saturating_sub(earlier.requests),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            time: self.time.saturating_sub(earlier.time),
        }
    }
}

/// What one reply over KDNET carries at least, as a rule.
pub const KDNET_REPLY: usize = 1296;

/// Virtual memory of one kernel, as it is now.
pub trait Memory {
    /// Fills the start of `buffer` from `address` and returns how many bytes are good. Less than `buffer.len()` means
    /// that the byte at `address + returned` is not readable; it is never a limit of the transport.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault>;

    /// As [`read`](Memory::read), of what is there at this moment: a source that keeps what it has read asks again.
    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.read(address, buffer)
    }

    /// Lets the source look for `pattern` in `address .. address + length`. A hit must be verified by the caller.
    fn search(&self, _address: u64, _length: u64, _pattern: &[u8]) -> Result<Search, Fault> {
        Ok(Search::Unsupported)
    }

    /// Bytes that one question to the source brings at most, where that is known: so much costs as much as one byte.
    fn reply_size(&self) -> usize {
        KDNET_REPLY
    }

    /// What it has cost so far; nothing where asking costs nothing.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// Bytes of a range that reading it would ask the source for: what it keeps costs nothing.
    fn unread(&self, _address: u64, length: u64) -> u64 {
        length
    }

    /// How long so many requests for so many bytes in all will take, by what this source's reads took so far; `None`
    /// where that was not measured.
    fn takes(&self, _requests: u64, _bytes: u64) -> Option<Duration> {
        None
    }

    /// Fills the start of `buffer` from physical memory and returns how many bytes are good: none where the source has
    /// no way to it.
    fn read_physical(&self, _address: u64, _buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(0)
    }

    /// All of `buffer` or an error.
    fn read_exact(&self, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let wanted = buffer.len();
        match self.read(address, buffer)? {
            read if read == wanted => Ok(()),
            read => Err(ReadError::Hole { address, wanted, read }),
        }
    }

    /// Two bytes, little-endian.
    fn read_u16(&self, address: u64) -> Result<u16, ReadError> {
        let mut b = [0; 2];
        self.read_exact(address, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }

    /// Four bytes, little-endian.
    fn read_u32(&self, address: u64) -> Result<u32, ReadError> {
        let mut b = [0; 4];
        self.read_exact(address, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Eight bytes, little-endian.
    fn read_u64(&self, address: u64) -> Result<u64, ReadError> {
        let mut b = [0; 8];
        self.read_exact(address, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
}

impl<M: Memory + ?Sized> Memory for &M {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        (**self).read(address, buffer)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        (**self).reread(address, buffer)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        (**self).search(address, length, pattern)
    }

    fn reply_size(&self) -> usize {
        (**self).reply_size()
    }

    fn spent(&self) -> Spent {
        (**self).spent()
    }

    fn unread(&self, address: u64, length: u64) -> u64 {
        (**self).unread(address, length)
    }

    fn takes(&self, requests: u64, bytes: u64) -> Option<Duration> {
        (**self).takes(requests, bytes)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        (**self).read_physical(address, buffer)
    }
}

/// Memory that stands before other memory: it sees another address space, or allows less. Use it as
/// [`Through`]`(layer)`.
///
/// Every question must be answered here, and what the source is like (what a reply carries, what was spent) cannot be:
/// a layer that forgot to pass one of these on would have its users ask in the wrong sizes, or get yesterday's bytes.
pub trait Layer {
    /// The memory behind.
    fn below(&self) -> &dyn Memory;

    /// As [`Memory::read`].
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault>;

    /// As [`Memory::reread`].
    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault>;

    /// As [`Memory::search`].
    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault>;

    /// As [`Memory::read_physical`].
    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault>;

    /// As [`Memory::unread`].
    fn unread(&self, address: u64, length: u64) -> u64;
}

/// A layer as memory.
pub struct Through<L>(pub L);

impl<L: Layer> Memory for Through<L> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.read(address, buffer)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.reread(address, buffer)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.0.search(address, length, pattern)
    }

    fn reply_size(&self) -> usize {
        self.0.below().reply_size()
    }

    fn spent(&self) -> Spent {
        self.0.below().spent()
    }

    fn unread(&self, address: u64, length: u64) -> u64 {
        self.0.unread(address, length)
    }

    fn takes(&self, requests: u64, bytes: u64) -> Option<Duration> {
        self.0.below().takes(requests, bytes)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.read_physical(address, buffer)
    }
}

/// Bytes of a range some of which could not be read; the holes are zero in `bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Where it begins.
    pub address: u64,
    /// What was read; zeros in the holes.
    pub bytes: Vec<u8>,
    /// What is not readable, as addresses, ascending, without overlap.
    pub holes: Vec<Range<u64>>,
}

impl Sparse {
    /// Zeros, to be read into. The caller bounds `length`, which comes from the target; here it is seen to that there is
    /// room for it.
    pub fn zeroed(address: u64, length: usize) -> Result<Sparse, Full> {
        heap_limit::room_for(length)?;
        Ok(Sparse { address, bytes: vec![0; length], holes: Vec::new() })
    }

    /// The bytes of `range` if all of them were readable.
    pub fn get(&self, offset: usize, length: usize) -> Option<&[u8]> {
        let bytes = self.bytes.get(offset..offset.checked_add(length)?)?;
        let start = self.address.wrapping_add(offset as u64);
        let end = start.wrapping_add(length as u64);
        let clean = !self.holes.iter().any(|hole| hole.start < end && start < hole.end);
        clean.then_some(bytes)
    }

    /// Whether there is no hole.
    pub fn is_complete(&self) -> bool {
        self.holes.is_empty()
    }
}

/// The unit in which memory is present or not.
pub const PAGE_SIZE: u64 = 0x1000;

/// Reads `length` bytes and steps over unreadable pages. The caller bounds `length`: it comes from the target.
pub fn read_sparse(memory: &dyn Memory, address: u64, length: usize) -> Result<Sparse, Fault> {
    let mut sparse = Sparse::zeroed(address, length)?;
    let mut done = 0usize;
    while done < length {
        let at = address.wrapping_add(done as u64);
        done += memory.read(at, &mut sparse.bytes[done..])?.min(length - done);
        if done < length {
            let bad = address.wrapping_add(done as u64);
            let to_page_end = (PAGE_SIZE - bad % PAGE_SIZE) as usize;
            let skip = to_page_end.min(length - done);
            let hole = bad..bad.wrapping_add(skip as u64);
            match sparse.holes.last_mut() {
                Some(last) if last.end == hole.start => last.end = hole.end,
                _ => sparse.holes.push(hole),
            }
            done += skip;
        }
    }
    Ok(sparse)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // One hole is what is expected.
mod tests {
    use super::*;

    /// Readable at 0x1000..0x2000 and 0x3000..0x4000, each byte the low byte of its page number.
    struct Pages;

    impl Memory for Pages {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let mut n = 0;
            for byte in buffer.iter_mut() {
                let page = (address + n as u64) / PAGE_SIZE;
                if page != 1 && page != 3 {
                    break;
                }
                *byte = page as u8;
                n += 1;
            }
            Ok(n)
        }
    }

    #[test]
    fn holes_are_stepped_over_and_named() {
        let sparse = read_sparse(&Pages, 0x1ffe, 0x1010).unwrap();
        assert_eq!(sparse.holes, [0x2000..0x3000]);
        assert_eq!(sparse.get(0, 2), Some(&[1, 1][..]));
        assert_eq!(sparse.get(1, 2), None);
        assert_eq!(sparse.get(0x1002, 0xe), Some(&[3; 14][..]));
        assert_eq!(sparse.get(0x1002, 0xf), None);
    }

    #[test]
    fn neighbouring_holes_are_one() {
        let sparse = read_sparse(&Pages, 0x4000, 0x2000).unwrap();
        assert_eq!(sparse.holes, [0x4000..0x6000]);
    }

    #[test]
    fn an_exact_read_says_where_the_hole_begins() {
        let error = Pages.read_u64(0x1ffc).unwrap_err();
        assert_eq!(error, ReadError::Hole { address: 0x1ffc, wanted: 8, read: 4 });
        assert_eq!(
            error.to_string(),
            "cannot read 0x8 bytes at 0000000000001ffc: the target could not read 0000000000002000"
        );
    }
}
