//! Reading, searching and writing a target's memory: by way of what is known already, in pieces that pass the wire.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nt_memory::{Fault, Memory, PAGE_SIZE, Search, Spent};

use super::{Halted, unexpected};
use crate::cache::{Cache, Known};
use crate::gate::AtGate;
use crate::order::{Answer, Ask};
use crate::status::{Searching, lock};
use crate::{Cost, TargetError};

/// Bytes of one write; a request of this size passes every carrier.
const WRITE_DATA: usize = 512;

impl Memory for Halted {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.room_to_read()?;
        let shared = &self.session.shared;
        let gate = AtGate::new(shared.gate().0.clone());
        read_through(&self.cache, self.on_the_wire(address), buffer, |at, gap| {
            let pace = *shared.pace();
            if !gate.passes(gap, self.reply_data(), pace) {
                return Err(Fault::Cancelled);
            }
            self.fill(at, gap)
        })
    }

    fn reply_size(&self) -> usize {
        self.reply_data()
    }

    fn spent(&self) -> Spent {
        let Cost { requests, bytes_read, frozen, .. } = self.cost();
        Spent { requests, bytes: bytes_read, time: frozen }
    }

    fn unread(&self, address: u64, length: u64) -> u64 {
        self.cache.borrow().gaps(self.on_the_wire(address), length)
    }

    fn takes(&self, requests: u64, bytes: u64) -> Option<Duration> {
        self.session.shared.pace().estimate(requests, bytes)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.room_to_read()?;
        let address = self.on_the_wire(address);
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let (bytes, ended) = self.fetch(|length| Ask::Read { address: at, length }, buffer.len() - done)?;
            buffer[done..done + bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
            if ended || bytes.is_empty() {
                break;
            }
        }
        Ok(done)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.room_to_read()?;
        read_through(&self.physical, address, buffer, |at, gap| self.fill_physical(at, gap))
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.room_to_read()?;
        if self.session.shared.interrupt.take() {
            return Err(Fault::Cancelled);
        }
        if *lock(&self.session.shared.searching) == Searching::Refused {
            return Ok(Search::Unsupported);
        }
        let start = self.on_the_wire(address);
        let found = match self.search_once(start, length, pattern)? {
            // Told in the caller's own form.
            Search::Found(hit) => Search::Found(self.on_the_wire(hit).wrapping_sub(start).wrapping_add(address)),
            other => other,
        };
        self.learn_searching(found)?;
        Ok(found)
    }
}

impl Halted {
    /// Writes memory; returns how many bytes the target took. It ignores write protection.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<usize, Fault> {
        self.write_pieces(self.on_the_wire(address), data, false)
    }

    /// Writes physical memory.
    pub fn write_physical(&self, address: u64, data: &[u8]) -> Result<usize, Fault> {
        self.write_pieces(address, data, true)
    }

    fn write_pieces(&self, address: u64, data: &[u8], physical: bool) -> Result<usize, Fault> {
        // What is written changes memory that is known by other addresses as well.
        self.cache.take();
        self.physical.take();
        let mut done = 0;
        while done < data.len() {
            if self.session.shared.interrupt.take() {
                return Err(Fault::Cancelled);
            }
            let Some(at) = address.checked_add(done as u64) else { break };
            let length = (data.len() - done).min(WRITE_DATA).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let piece = Bytes::copy_from_slice(&data[done..done + length]);
            let written = match self.ask(Ask::Write { address: at, data: piece, physical }) {
                Ok(Answer::Count(written)) => (written as usize).min(length),
                Ok(other) => return Err(Fault::Lost(unexpected(&other).to_string())),
                Err(TargetError::Fault(fault)) => return Err(fault),
                Err(error) => return Err(Fault::Lost(error.to_string())),
            };
            done += written;
            if written < length {
                break;
            }
        }
        Ok(done)
    }

    /// Whoever holds ever more reads ever more: here is seen that it ends. What is kept only so that it need not be asked
    /// for again gives way first.
    fn room_to_read(&self) -> Result<(), Fault> {
        if heap_limit::room_for(0).is_ok() {
            return Ok(());
        }
        drop((self.cache.take(), self.physical.take()));
        Ok(heap_limit::room_for(0)?)
    }

    /// An address as KD carries it: those of 32-bit targets are sign-extended.
    pub(super) fn on_the_wire(&self, address: u64) -> u64 {
        if self.version().pointer_size() == 4 { i64::from(address as u32 as i32) as u64 } else { address }
    }

    /// One request: as many of `length` bytes as a reply carries.
    fn fetch(&self, ask: impl FnOnce(usize) -> Ask, length: usize) -> Result<(Bytes, bool), Fault> {
        let shared = &self.session.shared;
        if shared.interrupt.take() {
            return Err(Fault::Cancelled);
        }
        let asked = length.min(shared.reply_data.load(Ordering::Relaxed));
        let started = Instant::now();
        let answer = self.ask(ask(asked));
        match answer {
            Ok(Answer::Bytes { bytes, ended }) => {
                shared.pace().add(bytes.len(), started.elapsed());
                Ok((bytes.slice(..bytes.len().min(asked)), ended))
            }
            Ok(other) => Err(Fault::Lost(unexpected(&other).to_string())),
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error) => Err(Fault::Lost(error.to_string())),
        }
    }

    /// Fills a gap of the cache, or marks where memory ends.
    fn fill(&self, address: u64, length: usize) -> Result<(), Fault> {
        let (bytes, ended) = self.fetch(|length| Ask::Read { address, length }, length)?;
        self.cache.borrow_mut().insert(address, &bytes);
        if !ended && !bytes.is_empty() {
            return Ok(());
        }
        let mut hole = address.wrapping_add(bytes.len() as u64);
        if !hole.is_multiple_of(PAGE_SIZE) && !bytes.is_empty() {
            // Memory ends at pages. A reply that ends elsewhere may only have been cut: ask once from there.
            let (rest, ended) = self.fetch(|length| Ask::Read { address: hole, length }, length - bytes.len())?;
            self.cache.borrow_mut().insert(hole, &rest);
            if !rest.is_empty() && !ended {
                return Ok(());
            }
            hole = hole.wrapping_add(rest.len() as u64);
        }
        self.cache.borrow_mut().mark_unreadable(hole);
        Ok(())
    }

    fn fill_physical(&self, address: u64, length: usize) -> Result<(), Fault> {
        // Targets read physical memory page by page.
        let length = length.min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        let (bytes, _) = self.fetch(|length| Ask::ReadPhysical { address, length }, length)?;
        let mut physical = self.physical.borrow_mut();
        physical.insert(address, &bytes);
        if bytes.is_empty() {
            physical.mark_unreadable(address);
        }
        Ok(())
    }

    fn search_once(&self, start: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        match self.ask(Ask::Search { address: start, length, pattern: pattern.to_vec() }) {
            Ok(Answer::Search(search)) => Ok(search),
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error @ TargetError::Silent(_)) => Err(Fault::Lost(error.to_string())),
            Ok(_) | Err(_) => Ok(Search::Unsupported),
        }
    }

    /// A search that failed may have met a page that is not there. One where the kernel's image begins tells.
    fn learn_searching(&self, found: Search) -> Result<(), Fault> {
        let known = *lock(&self.session.shared.searching);
        let learned = match (found, known) {
            (_, Searching::Works) => return Ok(()),
            (Search::Found(_) | Search::NotFound, _) => Searching::Works,
            (Search::Unsupported, _) => {
                match self.search_once(self.on_the_wire(self.version().kernel_base), 4, b"PE\0\0")? {
                    Search::Unsupported => Searching::Refused,
                    _ => Searching::Works,
                }
            }
        };
        *lock(&self.session.shared.searching) = learned;
        Ok(())
    }
}

/// What the cache knows is copied from there; `fill` asks for the rest. Returns how far memory is readable.
fn read_through(
    cache: &RefCell<Cache>,
    address: u64,
    buffer: &mut [u8],
    fill: impl Fn(u64, usize) -> Result<(), Fault>,
) -> Result<usize, Fault> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(at) = address.checked_add(done as u64) else { break };
        let gap = match cache.borrow().at(at, buffer.len() - done) {
            Known::Bytes(bytes) => {
                buffer[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
                continue;
            }
            Known::Unreadable => break,
            Known::Gap(gap) => gap,
        };
        fill(at, gap)?;
    }
    Ok(done)
}
