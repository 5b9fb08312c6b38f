//! A verified driver's outstanding allocations: `!verifier 3 driver.sys`.
//!
//! The verifier notes each in a slot of a tracking page (tag `Vepp`). A page's first slot is its header, which names the
//! driver's data; pages are chained from there. A free slot has bit 0 of `NumberOfBytes` set, but so has an allocation
//! of an odd size from special pool; a free slot's first member then leads to another slot, or nowhere.

use std::collections::HashSet;

use nt_memory::PAGE_SIZE;

use super::{Counters, Driver, Settings};
use crate::checks::{Book, Check};
use crate::lists::{Walked, follow};
use crate::record::Record;
use crate::{Kernel, Notes, PoolError, Tag};

/// A block that a verified driver holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// What the allocation call returned.
    pub address: u64,
    /// What the block can hold, the verifier's own pointer at its end included.
    pub size: u64,
    /// Its owner's.
    pub tag: Tag,
    /// Where the allocating function returned to.
    pub caller: u64,
}

/// The blocks that a verified driver holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocations {
    /// In the order of the driver's tracking pages.
    pub allocations: Vec<Allocation>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// A block is no larger than pool can be.
const MOST_BYTES: u64 = 1 << 40;
const MOST_BYTES_32: u64 = 1 << 31;

/// `MmVerifierData`'s counters of allocations in use, against the sums of those of its drivers, which are all here.
pub fn check_counters(settings: &Settings, drivers: &[Driver]) -> Option<Check> {
    let sum = |counters: &Counters| -> Option<u64> { IN_USE.iter().map(|name| counters.get(name)).sum() };
    // The kernel keeps no more than the name of a driver that is not loaded.
    let kept = drivers.iter().filter(|driver| driver.tracking.is_some());
    let of_drivers = kept.map(|driver| sum(&driver.counters)).sum::<Option<u64>>()?;
    Some(Check::new(Book::DriverCounters, sum(&settings.counters)?, of_drivers, 0))
}

/// Counters of allocations in use, of the verifier and of a driver.
const IN_USE: [&str; 2] = ["CurrentPagedPoolAllocations", "CurrentNonPagedPoolAllocations"];

/// A driver's tracked allocations against its own counters, and whether they make sense.
pub fn check(kernel: &Kernel<'_>, driver: &Driver, tracked: &Allocations) -> Vec<Check> {
    let sum = |names: [&str; 2]| names.iter().map(|name| driver.counters.get(name)).sum::<Option<u64>>();
    let listed = &tracked.allocations;
    let most = if kernel.pointer_size == 4 { MOST_BYTES_32 } else { MOST_BYTES };
    let good = listed.iter().filter(|allocation| {
        let in_image = driver.image.as_ref().is_some_and(|image| image.contains(&allocation.address));
        !in_image
            && (1..most).contains(&allocation.size)
            && allocation.tag.is_typed()
            && kernel.is_kernel_address(allocation.caller)
    });
    let mut checks: Vec<Check> =
        Check::most(Book::TrackedEntries, listed.len() as u64, good.count() as u64).into_iter().collect();
    if tracked.notes.is_complete() {
        let count = sum(IN_USE);
        let bytes = listed.iter().fold(0u64, |sum, allocation| sum.saturating_add(allocation.size));
        checks.extend(count.map(|count| Check::new(Book::TrackedAllocations, count, listed.len() as u64, 0)));
        checks.extend(sum(["PagedBytes", "NonPagedBytes"]).map(|sum| Check::new(Book::TrackedBytes, sum, bytes, 0)));
    }
    checks
}

/// `_VI_POOL_PAGE_HEADER.Signature` of Windows 7 and later.
const SIGNATURE: u64 = 0x2132_1345;

/// What the driver has allocated and not freed. Nothing is known of a driver of which the kernel keeps only the name.
pub fn allocations(kernel: &Kernel<'_>, driver: &Driver) -> Result<Allocations, PoolError> {
    let mut found = Allocations::default();
    let Some((owner, first)) = driver.tracking else { return Ok(found) };
    let header = Record::new(kernel, "_VI_POOL_PAGE_HEADER")?;
    let slot = Record::new(kernel, "_VI_POOL_ENTRY")?;
    let next = header.member("NextPage")?;
    let page_owner = header.member("VerifierEntry")?;
    let signature = header.find("Signature");
    if slot.size < header.size {
        return Err(PoolError::Unlikely(format!(
            "_VI_POOL_ENTRY has {:#x} bytes and _VI_POOL_PAGE_HEADER, which takes one's place, {:#x}",
            slot.size, header.size
        )));
    }

    let mut pages = Vec::new();
    let what = format!("tracking pages of {}", driver.name);
    let walked = follow(kernel, &what, first, 0, &mut found.notes, &mut |link, _| {
        let page = link & !(PAGE_SIZE - 1);
        let mut bytes = vec![0; PAGE_SIZE as usize];
        kernel.memory.read_exact(page, &mut bytes)?;
        let signed = signature.is_none_or(|signature| signature.get(&bytes) == SIGNATURE);
        if !signed || page_owner.get(&bytes) != owner {
            return Err(PoolError::Unlikely(format!("the page at {page:016x} is not one of this driver's")));
        }
        let link = next.get(&bytes);
        pages.push((page, bytes));
        Ok(link)
    })?;

    let address = slot.member("InUse.VirtualAddress")?;
    let caller = slot.member("InUse.CallingAddress")?;
    let size = slot.member("InUse.NumberOfBytes")?;
    let tag = slot.member("InUse.Tag")?;
    // Then a free slot may lead to a page that was not read.
    let incomplete = walked == Walked::Broken;
    let tracking: HashSet<u64> = pages.iter().map(|(page, _)| *page).collect();
    for slot in pages.iter().flat_map(|(_, bytes)| bytes.chunks_exact(slot.size).skip(1)) {
        let block = address.get(slot);
        let leads_to_slot = tracking.contains(&(block & !(PAGE_SIZE - 1)))
            || incomplete && size.get(slot) == 1 && caller.get(slot) == 0;
        let free = size.get(slot) & 1 != 0 && leads_to_slot;
        if kernel.is_kernel_address(block) && !free {
            found.allocations.push(Allocation {
                address: block,
                size: size.get(slot),
                tag: Tag::from_key(tag.get(slot) as u32).0,
                caller: caller.get(slot),
            });
        }
    }
    Ok(found)
}
