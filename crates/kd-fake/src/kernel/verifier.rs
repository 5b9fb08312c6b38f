//! Driver Verifier's log of pool allocations and frees.

use crate::isf::IsfError;
use crate::kernel::builder::Builder;

/// A record of the log.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) thread: u64,
    /// Return addresses, innermost first.
    pub(crate) frames: Vec<u64>,
}

impl Builder {
    /// Writes the log at `table`. `records` are oldest first, as many as the log has slots (a power of two);
    /// `index` is the running counter after the last of them.
    pub(crate) fn pool_traces(&mut self, table: u64, index: u32, records: &[Trace]) -> Result<(), IsfError> {
        let ty = "_VF_POOL_TRACE";
        let size = self.isf.size(ty)? as usize;
        let address = self.isf.offset(ty, "Address")? as usize;
        let bytes = self.isf.offset(ty, "Size")? as usize;
        let thread = self.isf.offset(ty, "Thread")? as usize;
        let (stack, stack_type) = self.isf.member(ty, "StackTrace")?;
        let stack = stack as usize;
        let depth = self.isf.size_of(stack_type)? as usize / 8;
        let length = records.len() as u32;
        let mut log = vec![0; size * records.len()];
        for (age, record) in (0..length).zip(records.iter().rev()) {
            let slot = (index.wrapping_sub(age) & (length - 1)) as usize;
            let entry = &mut log[slot * size..(slot + 1) * size];
            entry[address..address + 8].copy_from_slice(&record.address.to_le_bytes());
            entry[bytes..bytes + 8].copy_from_slice(&record.size.to_le_bytes());
            entry[thread..thread + 8].copy_from_slice(&record.thread.to_le_bytes());
            for (frame, value) in record.frames.iter().take(depth).enumerate() {
                entry[stack + frame * 8..stack + frame * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        self.memory.put(table, &log);
        self.set_u64("VfPoolTraces", table)?;
        self.set_u32("VfPoolTracesIndex", index)?;
        self.set_u32("VfPoolTracesLength", length)
    }

    /// Writes `MmVerifierData` and the list of drivers to be verified, with one entry at `entry`.
    pub(crate) fn verified_driver(&mut self, entry: u64, driver: &str, level: u64) -> Result<(), IsfError> {
        let mut data = self.object("_MM_DRIVER_VERIFIER_DATA")?;
        let values = [
            ("Level", level),
            ("RaiseIrqls", 0),
            ("AcquireSpinLocks", 0x2b4),
            ("AllocationsAttempted", 0x1c7),
            ("AllocationsSucceeded", 0x1c7),
            ("AllocationsSucceededSpecialPool", 0x1b0),
            ("Loads", 1),
            ("CurrentPagedPoolAllocations", 23),
            ("PeakPagedPoolAllocations", 23),
            ("PagedBytes", 23 * 0xfa000),
            ("PeakPagedBytes", 23 * 0xfa000),
        ];
        self.fields(&mut data, &values)?;
        let at = self.symbol("MmVerifierData")?;
        self.store(at, &data);

        let text = super::modules::utf16(driver);
        let size = self.isf.size("_VF_SUSPECT_DRIVER_ENTRY")?;
        let mut suspect = self.object("_VF_SUSPECT_DRIVER_ENTRY")?;
        let values = [
            ("Loads", 1),
            ("BaseName.Length", text.len() as u64 - 2),
            ("BaseName.MaximumLength", text.len() as u64),
            ("BaseName.Buffer", entry + size),
        ];
        self.fields(&mut suspect, &values)?;
        self.store(entry, &suspect);
        self.memory.put(entry + size, &text);
        let head = self.symbol("VfSuspectDriversList")?;
        self.link(&[head, entry]);
        self.set_u32("VfOptionFlags", 0)
    }
}
