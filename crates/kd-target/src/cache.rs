//! What is known of the target's memory during one halt.
//!
//! A halted kernel's memory changes only through us, so nothing is asked for twice between two stops.

use std::collections::{BTreeMap, BTreeSet};

use nt_memory::PAGE_SIZE;

/// More than this is not kept: a command that reads hundreds of megabytes must not hold them here as well.
const LIMIT: usize = 64 << 20;

/// Disjoint pieces of memory by address, and the pages known to be unreadable.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pieces: BTreeMap<u64, Vec<u8>>,
    held: usize,
    unreadable: BTreeSet<u64>,
}

/// What the cache knows about the bytes from an address on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known<'a> {
    Bytes(&'a [u8]),
    Unreadable,
    /// Nothing is known for this many bytes; after them something is.
    Gap(usize),
}

impl Cache {
    /// Looks at up to `length` bytes from `address`, which is at least one.
    pub(crate) fn at(&self, address: u64, length: usize) -> Known<'_> {
        if let Some((start, piece)) = self.pieces.range(..=address).next_back() {
            let offset = (address - start) as usize;
            if offset < piece.len() {
                return Known::Bytes(&piece[offset..piece.len().min(offset.saturating_add(length))]);
            }
        }
        if self.unreadable.contains(&(address / PAGE_SIZE)) {
            return Known::Unreadable;
        }
        let next_piece = self.pieces.range(address..).next().map(|(start, _)| start - address);
        let next_hole = self.unreadable.range(address / PAGE_SIZE..).next().map(|page| page * PAGE_SIZE - address);
        let gap = [next_piece, next_hole].into_iter().flatten().min().unwrap_or(u64::MAX);
        Known::Gap(usize::try_from(gap).unwrap_or(usize::MAX).min(length))
    }

    /// Bytes of a range of which nothing is known.
    pub(crate) fn gaps(&self, address: u64, length: u64) -> u64 {
        let (mut done, mut gaps) = (0, 0);
        while done < length {
            let Some(at) = address.checked_add(done) else { break };
            // The last byte of the address space is the last of the range.
            let left = (length - done).min((u64::MAX - at).saturating_add(1));
            done += match self.at(at, usize::try_from(left).unwrap_or(usize::MAX)) {
                Known::Bytes(bytes) => bytes.len() as u64,
                Known::Unreadable => left.min(PAGE_SIZE - at % PAGE_SIZE),
                Known::Gap(gap) => {
                    gaps += gap as u64;
                    gap as u64
                }
            };
        }
        gaps
    }

    /// Adds bytes that fill (a part of) a gap.
    pub(crate) fn insert(&mut self, address: u64, bytes: &[u8]) {
        if bytes.is_empty() || bytes.len() > LIMIT {
            return;
        }
        if self.held + bytes.len() > LIMIT {
            self.pieces.clear();
            self.held = 0;
        }
        self.held += bytes.len();
        // Growing the neighbour keeps a long sequential read one piece.
        if let Some((start, piece)) = self.pieces.range_mut(..=address).next_back()
            && start.wrapping_add(piece.len() as u64) == address
        {
            piece.extend_from_slice(bytes);
            return;
        }
        self.pieces.insert(address, bytes.to_vec());
    }

    /// Notes that the page of `address` is unreadable from `address` on.
    pub(crate) fn mark_unreadable(&mut self, address: u64) {
        self.unreadable.insert(address / PAGE_SIZE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_end_where_something_is_known() {
        let mut cache = Cache::default();
        assert_eq!(cache.at(0x1000, 64), Known::Gap(64));
        cache.insert(0x1010, b"0123456789abcdef");
        cache.insert(0x1020, b"ghij");
        assert_eq!(cache.at(0x1000, 64), Known::Gap(16));
        assert_eq!(cache.at(0x1012, 4), Known::Bytes(b"2345"));
        assert_eq!(cache.at(0x1012, 64), Known::Bytes(b"23456789abcdefghij"));
        assert_eq!(cache.at(0x1024, 64), Known::Gap(64));
    }

    #[test]
    fn only_what_is_not_known_is_a_gap() {
        let mut cache = Cache::default();
        assert_eq!(cache.gaps(0x1000, 0x4000), 0x4000);
        cache.insert(0x1010, &[7; 0x20]);
        cache.insert(0x1100, &[7; 0x10]);
        cache.mark_unreadable(0x3abc);
        assert_eq!(cache.gaps(0x1000, 0x4000), 0x4000 - 0x20 - 0x10 - 0x1000);
        assert_eq!(cache.gaps(0x1010, 0x20), 0);
        assert_eq!(cache.gaps(0x3800, 0x1000), 0x800);
        assert_eq!(cache.gaps(u64::MAX - 3, 0x10), 4);
    }

    #[test]
    fn an_unreadable_page_keeps_what_was_read_before_it() {
        let mut cache = Cache::default();
        cache.insert(0x1ff8, b"01234567");
        cache.mark_unreadable(0x2000);
        assert_eq!(cache.at(0x1ff8, 16), Known::Bytes(b"01234567"));
        assert_eq!(cache.at(0x2abc, 16), Known::Unreadable);
        assert_eq!(cache.at(0x1000, 0x2000), Known::Gap(0xff8));
        assert_eq!(cache.at(0x3000, 16), Known::Gap(16));
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trouble() {
        let mut cache = Cache::default();
        cache.insert(u64::MAX - 3, b"abcd");
        assert_eq!(cache.at(u64::MAX - 1, 8), Known::Bytes(b"cd"));
        cache.insert(0, b"x");
        assert_eq!(cache.at(0, 8), Known::Bytes(b"x"));
    }
}
