//! Driver Verifier's log of pool allocations and frees.

use crate::isf::{Isf, IsfError};
use crate::kernel::builder::{Builder, Place};
use crate::kernel::modules::utf16;

/// A record of the log.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) thread: u64,
    /// Return addresses, innermost first.
    pub(crate) frames: Vec<u64>,
}

/// The layout of a record.
#[derive(Clone, Copy)]
pub(crate) struct TraceLayout {
    pub(crate) size: usize,
    address: Place,
    bytes: Place,
    thread: Place,
    stack: usize,
    /// Number of frames.
    pub(crate) depth: usize,
}

impl TraceLayout {
    pub(crate) fn of(isf: &Isf) -> Result<TraceLayout, IsfError> {
        let ty = "_VF_POOL_TRACE";
        let (stack, stack_type) = isf.member(ty, "StackTrace")?;
        Ok(TraceLayout {
            size: isf.size(ty)? as usize,
            address: Place::of(isf, ty, "Address")?,
            bytes: Place::of(isf, ty, "Size")?,
            thread: Place::of(isf, ty, "Thread")?,
            stack: stack as usize,
            depth: isf.size_of(stack_type)? as usize / 8,
        })
    }

    pub(crate) fn write(&self, trace: &Trace) -> Vec<u8> {
        let mut record = vec![0; self.size];
        self.address.put(&mut record, trace.address);
        self.bytes.put(&mut record, trace.size);
        self.thread.put(&mut record, trace.thread);
        for (frame, value) in trace.frames.iter().take(self.depth).enumerate() {
            record[self.stack + frame * 8..self.stack + frame * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        record
    }
}

/// The level bit of pool tracking.
pub(crate) const POOL_TRACKING: u64 = 8;

/// A loaded driver that is verified.
pub(crate) struct VerifiedDriver {
    pub(crate) name: &'static str,
    pub(crate) base: u64,
    pub(crate) size: u64,
    /// All it ever made.
    pub(crate) allocations: u64,
    /// Those it still has, all of them paged; at most as many as a page can track, 127.
    pub(crate) live: Vec<LiveBlock>,
}

/// An allocation that Verifier tracks.
pub(crate) struct LiveBlock {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) tag: u32,
    /// Where the driver called the allocation routine from.
    pub(crate) caller: u64,
}

impl Builder {
    /// Writes the log of `length` slots (a power of two) at `table`. `records` are oldest first, not more than slots;
    /// `index` is the running counter after the last of them.
    pub(crate) fn pool_traces(
        &mut self,
        table: u64,
        index: u32,
        length: u32,
        records: &[Trace],
    ) -> Result<(), IsfError> {
        let layout = TraceLayout::of(&self.isf)?;
        let mut log = vec![0; layout.size * length as usize];
        for (age, record) in (0..length).zip(records.iter().rev()) {
            let slot = (index.wrapping_sub(age) & (length - 1)) as usize;
            log[slot * layout.size..(slot + 1) * layout.size].copy_from_slice(&layout.write(record));
        }
        self.memory.put(table, &log);
        self.set_u64("VfPoolTraces", table)?;
        self.set_u32("VfPoolTracesIndex", index)?;
        self.set_u32("VfPoolTracesLength", length)
    }

    /// Writes `MmVerifierData` for one verified driver, and what Verifier keeps of that driver: its entry in the list
    /// of drivers to be verified, its node in the tree of loaded ones, and its live allocations. All of it takes two
    /// pages at `at`. Returns where the driver's `_VF_TARGET_VERIFIED_DRIVER_DATA` is.
    pub(crate) fn verified_driver(&mut self, at: u64, level: u64, driver: &VerifiedDriver) -> Result<u64, IsfError> {
        let count = driver.live.len() as u64;
        let bytes: u64 = driver.live.iter().map(|live| live.bytes).sum();
        let paged = [
            ("CurrentPagedPoolAllocations", count),
            ("PeakPagedPoolAllocations", count),
            ("PagedBytes", bytes),
            ("PeakPagedBytes", bytes),
        ];
        let mut data = self.object("_MM_DRIVER_VERIFIER_DATA")?;
        let values = [
            ("Level", level),
            ("AcquireSpinLocks", 0x2b4),
            ("AllocationsAttempted", driver.allocations),
            ("AllocationsSucceeded", driver.allocations),
            // A block as large as a leaked one does not fit special pool.
            ("AllocationsSucceededSpecialPool", driver.allocations - count),
            ("Loads", 1),
        ];
        self.fields(&mut data, &values)?;
        self.fields(&mut data, &paged)?;
        let place = self.symbol("MmVerifierData")?;
        self.store(place, &data);
        self.set_u32("VfOptionFlags", 0)?;

        let [suspect, table, node, verified, page] = [0, 0x100, 0x200, 0x300, 0x1000].map(|offset| at + offset);
        self.suspect_driver(suspect, driver.name)?;
        self.target_driver(table, node, verified, driver)?;

        let mut data = self.object("_VF_TARGET_VERIFIED_DRIVER_DATA")?;
        let values = [
            ("SuspectDriverEntry", suspect),
            ("Signature", 0x9876_1940),
            // A list of one: its depth, and the element with the list's kind in the low bits.
            ("PoolPageHeaders.Alignment", 1),
            ("PoolPageHeaders.Region", page | 1),
            ("AcquireSpinLocks", 0x2b4),
        ];
        self.fields(&mut data, &values)?;
        self.fields(&mut data, &paged)?;
        self.store(verified, &data);
        let contiguous = verified + self.isf.offset("_VF_TARGET_VERIFIED_DRIVER_DATA", "ContiguousMemoryListHead")?;
        self.link(&[contiguous]);
        self.tracking_page(page, verified, &driver.live)?;
        Ok(verified)
    }

    /// `VfSuspectDriversList`, with one entry.
    fn suspect_driver(&mut self, entry: u64, name: &str) -> Result<(), IsfError> {
        let text = utf16(name);
        let mut suspect = self.object("_VF_SUSPECT_DRIVER_ENTRY")?;
        let buffer = entry + self.isf.size("_VF_SUSPECT_DRIVER_ENTRY")?;
        let values = [
            ("Loads", 1),
            ("BaseName.Length", text.len() as u64 - 2),
            ("BaseName.MaximumLength", text.len() as u64),
            ("BaseName.Buffer", buffer),
        ];
        self.fields(&mut suspect, &values)?;
        self.store(entry, &suspect);
        self.memory.put(buffer, &text);
        let head = self.symbol("VfSuspectDriversList")?;
        self.link(&[head, entry]);
        Ok(())
    }

    /// `ViTargetDriversAvl`, with one table and one node in it.
    fn target_driver(&mut self, table: u64, node: u64, verified: u64, driver: &VerifiedDriver) -> Result<(), IsfError> {
        let mut links = self.object("_RTL_BALANCED_LINKS")?;
        self.field(&mut links, "Parent", table)?;
        self.store(node, &links);
        let mut target = self.object("_VF_TARGET_DRIVER")?;
        let values = [("TreeNode.p", driver.base), ("TreeNode.RangeSize", driver.size), ("VerifiedData", verified)];
        self.fields(&mut target, &values)?;
        self.store(node + self.isf.size("_RTL_BALANCED_LINKS")?, &target);
        let mut root = self.object("_VF_AVL_TABLE")?;
        let values = [
            ("RtlTable.BalancedRoot.Parent", table),
            ("RtlTable.BalancedRoot.RightChild", node),
            ("RtlTable.NumberGenericTableElements", 1),
            ("RtlTable.DepthOfTree", 1),
        ];
        self.fields(&mut root, &values)?;
        self.store(table, &root);
        let mut tree = self.object("_VF_AVL_TREE")?;
        self.fields(&mut tree, &[("NodeCount", 1), ("Tables", table), ("TablesNo", 1)])?;
        let place = self.symbol("ViTargetDriversAvl")?;
        self.store(place, &tree);
        Ok(())
    }

    /// A page of tracked allocations: the page's header, those in use, and the free ones in a chain.
    fn tracking_page(&mut self, page: u64, verified: u64, live: &[LiveBlock]) -> Result<(), IsfError> {
        let size = self.isf.size("_VI_POOL_ENTRY")?;
        let mut header = self.object("_VI_POOL_PAGE_HEADER")?;
        self.fields(&mut header, &[("VerifierEntry", verified), ("Signature", 0x2132_1345)])?;
        self.memory.map(page, 0x1000);
        self.store(page, &header);
        let slots = (0x1000 / size - 1) as usize;
        for slot in 0..slots {
            let place = page + size * (slot as u64 + 1);
            let mut entry = self.object("_VI_POOL_ENTRY")?;
            let values = match live.get(slot) {
                Some(block) => [
                    ("InUse.VirtualAddress", block.address),
                    ("InUse.CallingAddress", block.caller),
                    ("InUse.NumberOfBytes", block.bytes),
                    ("InUse.Tag", u64::from(block.tag)),
                ],
                None => {
                    let next = if slot + 1 < slots { place + size } else { 0 };
                    [("NextFree", next), ("InUse.CallingAddress", 0), ("InUse.NumberOfBytes", 1), ("InUse.Tag", 0)]
                }
            };
            self.fields(&mut entry, &values)?;
            self.store(place, &entry);
        }
        Ok(())
    }
}
