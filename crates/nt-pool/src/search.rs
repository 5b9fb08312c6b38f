//! The target's own search, used on tables of records.

use nt_memory::{Fault, KDNET_REPLY, Memory, Search};

/// How many requests a bulk read of so many bytes takes at most, to weigh many small ones against it.
pub(crate) fn bulk_requests(bytes: u64) -> u64 {
    bytes.div_ceil(KDNET_REPLY as u64)
}

/// Looks for bytes that lie at one place in the records of a table.
pub(crate) struct Seeker {
    pub(crate) table: u64,
    pub(crate) record: u64,
    pub(crate) count: u64,
    /// Where in a record the bytes lie.
    pub(crate) place: u64,
    pub(crate) bytes: Vec<u8>,
    /// The last answer; it holds until the question passes it.
    pub(crate) last: Option<Seek>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seek {
    /// The first record from the one asked for that has the bytes.
    Record(u64),
    /// No record from the one asked for has them.
    None,
    /// The target cannot search, or what it answers cannot be right.
    Unsupported,
    /// The requests allowed are used up.
    TooMany,
}

impl Seeker {
    /// The next record at or after `from`. Counts its requests and stops when they reach `limit`.
    pub(crate) fn next(
        &mut self,
        memory: &dyn Memory,
        from: u64,
        requests: &mut u64,
        limit: u64,
    ) -> Result<Seek, Fault> {
        match self.last {
            Some(Seek::Record(record)) if record < from => {}
            Some(last) => return Ok(last),
            None => {}
        }
        let seek = self.seek(memory, from, requests, limit)?;
        if seek != Seek::TooMany {
            self.last = Some(seek);
        }
        Ok(seek)
    }

    fn seek(&self, memory: &dyn Memory, from: u64, requests: &mut u64, limit: u64) -> Result<Seek, Fault> {
        let length = self.count * self.record;
        let mut offset = from * self.record + self.place;
        while offset + self.bytes.len() as u64 <= length {
            if *requests >= limit {
                return Ok(Seek::TooMany);
            }
            *requests += 1;
            let start = self.table.wrapping_add(offset);
            match memory.search(start, length - offset, &self.bytes)? {
                Search::NotFound => return Ok(Seek::None),
                Search::Unsupported => return Ok(Seek::Unsupported),
                Search::Found(hit) => {
                    let found = hit.wrapping_sub(self.table);
                    if !(offset..length).contains(&found) {
                        return Ok(Seek::Unsupported);
                    }
                    if found % self.record == self.place {
                        return Ok(Seek::Record(found / self.record));
                    }
                    // The same bytes in another member.
                    offset = found + 1;
                }
            }
        }
        Ok(Seek::None)
    }
}
