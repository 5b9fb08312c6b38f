//! Driver Verifier's log of pool allocations and frees.

use crate::isf::{Isf, IsfError};
use crate::kernel::builder::{Builder, Place};
use crate::kernel::modules::utf16;

/// A record of the log.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) free: bool,
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
    /// Bytes of a frame.
    width: usize,
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
            depth: isf.size_of(stack_type)? as usize / isf.machine.pointer(),
            width: isf.machine.pointer(),
        })
    }

    pub(crate) fn write(&self, trace: &Trace) -> Vec<u8> {
        let mut record = vec![0; self.size];
        self.address.put(&mut record, trace.address);
        self.bytes.put(&mut record, trace.size);
        self.thread.put(&mut record, trace.thread);
        for (frame, value) in trace.frames.iter().take(self.depth).enumerate() {
            let at = self.stack + frame * self.width;
            record[at..at + self.width].copy_from_slice(&value.to_le_bytes()[..self.width]);
        }
        record
    }
}

/// The level bit of pool tracking.
pub(crate) const POOL_TRACKING: u64 = 8;

/// What Vista has of a driver.
pub(crate) const DRIVER_OF_VISTA: &str = "_MI_VERIFIER_DRIVER_ENTRY";

/// A driver that is to be verified.
pub(crate) struct VerifiedDriver {
    pub(crate) name: &'static str,
    /// Base and size, when it is loaded.
    pub(crate) image: Option<(u64, u64)>,
    pub(crate) loads: u64,
    pub(crate) unloads: u64,
    /// Further members of its `_VF_TARGET_VERIFIED_DRIVER_DATA`.
    pub(crate) counters: Vec<(&'static str, u64)>,
    /// The paged allocations that it has; at most as many as a page can track, 127.
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
        self.set_pointer("VfPoolTraces", table)?;
        self.set_u32("VfPoolTracesIndex", index)?;
        self.set_u32("VfPoolTracesLength", length)
    }

    /// Writes `MmVerifierData`.
    pub(crate) fn verifier_settings(&mut self, values: &[(&str, u64)]) -> Result<(), IsfError> {
        let mut data = self.object("_MM_DRIVER_VERIFIER_DATA")?;
        self.fields(&mut data, values)?;
        let place = self.symbol("MmVerifierData")?;
        self.store(place, &data);
        Ok(())
    }

    /// Writes what Verifier keeps of the drivers to be verified: the list of them, the trees (so many) of those that
    /// are loaded, and their allocations. Two pages for each driver at `at`, and one for the trees. Returns where the
    /// `_VF_TARGET_VERIFIED_DRIVER_DATA` of each is.
    pub(crate) fn verified_drivers(
        &mut self,
        at: u64,
        tables: u32,
        drivers: &[VerifiedDriver],
    ) -> Result<Vec<Option<u64>>, IsfError> {
        if let Ok(head) = self.symbol("MiSuspectDriverList") {
            return self.drivers_of_vista(head, at, drivers);
        }
        let mut suspects = vec![self.symbol("VfSuspectDriversList")?];
        let mut verified = Vec::new();
        let mut nodes = Vec::new();
        let trees = at + 0x2000 * drivers.len() as u64;
        for (driver, at) in drivers.iter().zip((at..).step_by(0x2000)) {
            let [node, data, page] = [0x200, 0x300, 0x1000].map(|offset| at + offset);
            self.suspect_driver("_VF_SUSPECT_DRIVER_ENTRY", at, driver, &[])?;
            suspects.push(at);
            verified.push(driver.image.map(|_| data));
            let Some((base, size)) = driver.image else { continue };
            self.driver_data(data, at, page, driver)?;
            nodes.push((base, node));
            let mut target = self.object("_VF_TARGET_DRIVER")?;
            // The node's own type has other names in other versions, and the same first two members.
            let width = self.isf.machine.pointer();
            let key = [&base.to_le_bytes()[..width], &size.to_le_bytes()[..width]].concat();
            self.bytes(&mut target, "TreeNode", &key)?;
            self.field(&mut target, "VerifiedData", data)?;
            self.store(node + self.isf.size("_RTL_BALANCED_LINKS")?, &target);
        }
        self.link(&suspects);
        nodes.sort_unstable();
        let size = self.isf.size("_VF_AVL_TABLE")?;
        for number in 0..tables {
            let table = trees + u64::from(number) * size;
            let chosen = |(base, _): &&(u64, u64)| (base >> 12) % u64::from(tables) == u64::from(number);
            let chosen: Vec<u64> = nodes.iter().filter(chosen).map(|(_, node)| *node).collect();
            let (first, depth) = self.balanced(&chosen, table)?;
            let mut root = self.object("_VF_AVL_TABLE")?;
            let values = [
                ("RtlTable.BalancedRoot.Parent", table),
                ("RtlTable.BalancedRoot.RightChild", first),
                ("RtlTable.NumberGenericTableElements", chosen.len() as u64),
                ("RtlTable.DepthOfTree", depth),
            ];
            self.fields(&mut root, &values)?;
            self.store(table, &root);
        }
        let mut tree = self.object("_VF_AVL_TREE")?;
        let values = [("NodeCount", nodes.len() as u64), ("Tables", trees), ("TablesNo", tables.into())];
        self.fields(&mut tree, &values)?;
        let place = self.symbol("ViTargetDriversAvl")?;
        self.store(place, &tree);
        Ok(verified)
    }

    /// Vista keeps everything of a driver in its entry of the list.
    fn drivers_of_vista(
        &mut self,
        head: u64,
        at: u64,
        drivers: &[VerifiedDriver],
    ) -> Result<Vec<Option<u64>>, IsfError> {
        let mut suspects = vec![head];
        let mut verified = Vec::new();
        for (driver, at) in drivers.iter().zip((at..).step_by(0x2000)) {
            let (base, size) = driver.image.unwrap_or_default();
            let bytes: u64 = driver.live.iter().map(|live| live.bytes).sum();
            let values = [
                ("StartAddress", base),
                ("EndAddress", base + size),
                ("Signature", 0x9876_1940),
                ("CurrentPagedPoolAllocations", driver.live.len() as u64),
                ("PeakPagedPoolAllocations", driver.live.len() as u64),
                ("PagedBytes", bytes),
                ("PeakPagedBytes", bytes),
            ];
            self.suspect_driver(DRIVER_OF_VISTA, at, driver, &values)?;
            suspects.push(at);
            verified.push(driver.image.map(|_| at));
            if driver.image.is_some() {
                let pages = at + self.isf.offset(DRIVER_OF_VISTA, "PoolPageHeaders")?;
                self.singly_linked(pages, &[at + 0x1000]);
                self.tracking_page(at + 0x1000, at, &driver.live)?;
            }
        }
        self.link(&suspects);
        Ok(verified)
    }

    /// Links `_RTL_BALANCED_LINKS`, in ascending order, into a balanced tree; its root (0 for none) and depth.
    fn balanced(&mut self, nodes: &[u64], parent: u64) -> Result<(u64, u64), IsfError> {
        let middle = nodes.len() / 2;
        let Some(&node) = nodes.get(middle) else { return Ok((0, 0)) };
        let (left, low) = self.balanced(&nodes[..middle], node)?;
        let (right, high) = self.balanced(&nodes[middle + 1..], node)?;
        let mut links = self.object("_RTL_BALANCED_LINKS")?;
        let values =
            [("Parent", parent), ("LeftChild", left), ("RightChild", right), ("Balance", high.wrapping_sub(low))];
        self.fields(&mut links, &values)?;
        self.store(node, &links);
        Ok((node, low.max(high) + 1))
    }

    /// `_VF_TARGET_VERIFIED_DRIVER_DATA`, and the page of its allocations.
    fn driver_data(&mut self, data: u64, suspect: u64, page: u64, driver: &VerifiedDriver) -> Result<(), IsfError> {
        let count = driver.live.len() as u64;
        let bytes: u64 = driver.live.iter().map(|live| live.bytes).sum();
        let mut object = self.object("_VF_TARGET_VERIFIED_DRIVER_DATA")?;
        let values = [
            ("SuspectDriverEntry", suspect),
            ("Signature", 0x9876_1940),
            ("CurrentPagedPoolAllocations", count),
            ("PeakPagedPoolAllocations", count),
            ("PagedBytes", bytes),
            ("PeakPagedBytes", bytes),
        ];
        self.fields(&mut object, &values)?;
        self.fields(&mut object, &driver.counters)?;
        self.store(data, &object);
        let pages = data + self.isf.offset("_VF_TARGET_VERIFIED_DRIVER_DATA", "PoolPageHeaders")?;
        self.singly_linked(pages, &[page]);
        let contiguous = data + self.isf.offset("_VF_TARGET_VERIFIED_DRIVER_DATA", "ContiguousMemoryListHead")?;
        self.link(&[contiguous]);
        self.tracking_page(page, data, &driver.live)
    }

    /// An entry of the list of drivers, with further members.
    fn suspect_driver(
        &mut self,
        ty: &'static str,
        entry: u64,
        driver: &VerifiedDriver,
        more: &[(&str, u64)],
    ) -> Result<(), IsfError> {
        let text = utf16(driver.name);
        let mut suspect = self.object(ty)?;
        let buffer = entry + self.isf.size(ty)?;
        let values = [
            ("Loads", driver.loads),
            ("Unloads", driver.unloads),
            ("BaseName.Length", text.len() as u64 - 2),
            ("BaseName.MaximumLength", text.len() as u64),
            ("BaseName.Buffer", buffer),
        ];
        self.fields(&mut suspect, &values)?;
        self.fields(&mut suspect, more)?;
        self.store(entry, &suspect);
        self.memory.put(buffer, &text);
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
