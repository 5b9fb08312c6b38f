//! The verifier's other logs: injected failures (0x4), IRQL transitions (0x8), forced-pending IRPs (0x40), IRPs (0x100),
//! critical regions (0x200) and cancelled IRPs being watched (0x400).

use nt_symbols::{Field, Layout};

use crate::lists::{elements, links_at};
use crate::pool_log::Wanted;
use crate::record::{Member, Record};
use crate::ring::{Names, Ring};
use crate::{Kernel, Notes, PoolError};

/// The verifier's logs beside that of pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogKind {
    /// Allocations that were made to fail (`!verifier 4`).
    Faults,
    /// Changes of IRQL (`!verifier 8`).
    Irql,
    /// IRPs that were made to pend (`!verifier 0x40`).
    ForcedPending,
    /// IRPs that were allocated, completed and cancelled (`!verifier 0x100`).
    Irps,
    /// Critical regions that were entered and left (`!verifier 0x200`).
    CriticalRegions,
    /// Cancelled IRPs that are watched until they complete (`!verifier 0x400`).
    WatchedIrps,
}

/// One record; a log has only some of the members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Counts since the log was made; 0 in the list of watched IRPs.
    pub sequence: u32,
    /// ETHREAD of whoever did it.
    pub thread: Option<u64>,
    /// The IRP that it is about.
    pub irp: Option<u64>,
    /// The IRQL before.
    pub old_irql: Option<u8>,
    /// The IRQL that was asked for.
    pub new_irql: Option<u8>,
    /// The processor whose IRQL changed.
    pub processor: Option<u16>,
    /// `KeTickCount` then.
    pub tick_count: Option<u32>,
    /// IRQL at which an IRP was allocated, completed or cancelled.
    pub irql: Option<u8>,
    /// Combined APC-disable count of its thread then.
    pub apc_disable: Option<u32>,
    /// When the watch on a cancelled IRP ends.
    pub due_tick_count: Option<u32>,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
}

/// One log, or a list that is kept like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryLog {
    /// Slots in the ring; the number of elements of a list.
    pub length: u32,
    /// Newest first; a list in its own order.
    pub entries: Vec<Entry>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

const FAULTS: Names = Names { table: "ViFaultTraces", index: "ViFaultTracesIndex", length: "ViFaultTracesLength" };
const IRQL: Names = Names { table: "ViTrackIrqlQueue", index: "ViTrackIrqlIndex", length: "ViTrackIrqlQueueLength" };
const IRPS: Names = Names { table: "IovIrpTraces", index: "IovIrpTracesIndex", length: "IovIrpTracesLength" };
const REGIONS: Names = Names {
    table: "VfKeCriticalRegionTraces",
    index: "VfKeCriticalRegionTracesIndex",
    length: "VfKeCriticalRegionTracesLength",
};
const PENDING: Names =
    Names { table: "VfForcedPendingLog", index: "VfForcedPendingIrps", length: "VfForcedPendingLogLength" };
const PENDING_VISTA: Names =
    Names { table: "IovForcePendingLog", index: "IovForcedPendingIrps", length: "IovForcedPendingLogLength" };

/// Reads one log; `Wanted::Address` is a thread's or an IRP's. `Ok(None)`: this version, or these settings, have none.
pub fn log(kernel: &Kernel<'_>, kind: LogKind, wanted: Wanted) -> Result<Option<EntryLog>, PoolError> {
    let pointer = u64::from(kernel.pointer_size);
    // The type's name, and what is known of it where the symbols lack it.
    let (names, type_name, known) = match kind {
        LogKind::WatchedIrps => return watched_irps(kernel, wanted),
        LogKind::Faults => (&FAULTS, "_VI_FAULT_TRACE", None),
        LogKind::Irql => (&IRQL, "_VI_TRACK_IRQL", None),
        LogKind::CriticalRegions => (&REGIONS, "_VF_KE_CRITICAL_REGION_TRACE", None),
        LogKind::Irps => (&IRPS, "_IOV_IRP_TRACE", Some(irp_trace(pointer))),
        LogKind::ForcedPending => {
            let vista = kernel.find_symbol(PENDING.table).is_none();
            let names = if vista { &PENDING_VISTA } else { &PENDING };
            (names, "_IOV_FORCED_PENDING_TRACE", Some(forced_pending_trace(pointer)))
        }
    };
    if kernel.find_symbol(names.table).is_none() {
        return Ok(None);
    }
    let record = match (kernel.symbols.layout(type_name), known) {
        (None, Some(layout)) => Record::of(kernel, layout.into())?,
        _ => Record::new(kernel, type_name)?,
    };
    let Some(ring) = Ring::read(kernel, names, record.size)? else { return Ok(None) };
    let fields = Fields::new(&record);
    let decode = |bytes: &[u8], sequence| fields.decode(bytes, sequence);
    let mut notes = Notes::default();
    let entries = match wanted {
        Wanted::All => ring.all(kernel, &mut notes, &decode, &|_| true)?,
        Wanted::Newest(count) => ring.newest(kernel, &mut notes, &decode, count)?,
        Wanted::Address(address) => ring.all(kernel, &mut notes, &decode, &|entry| entry.is_of(address))?,
    };
    ring.check(kernel, &mut notes)?;
    Ok(Some(EntryLog { length: ring.length, entries, notes }))
}

/// The list of `_VF_WATCHDOG_IRP`.
fn watched_irps(kernel: &Kernel<'_>, wanted: Wanted) -> Result<Option<EntryLog>, PoolError> {
    let Some(head) = kernel.find_symbol("VfWdIrpListHead") else { return Ok(None) };
    let record = Record::new(kernel, "_VF_WATCHDOG_IRP")?;
    let links = record.place("ListEntry")?;
    let fields = Fields::new(&record);
    let mut notes = Notes::default();
    let found = elements(kernel, "nt!VfWdIrpListHead", head, &mut notes, &mut |link, _| {
        let bytes = record.read(link.wrapping_sub(links as u64))?;
        Ok((fields.decode(&bytes, 0), links_at(kernel, &bytes, links)))
    })?;
    let entries: Vec<Entry> = found.into_iter().flatten().collect();
    let mut log = EntryLog { length: 0, entries, notes };
    log.length = log.entries.len() as u32;
    match wanted {
        Wanted::All => {}
        Wanted::Newest(count) => log.entries.truncate(count as usize),
        Wanted::Address(address) => log.entries.retain(|entry| entry.is_of(address)),
    }
    Ok(Some(log))
}

impl Entry {
    fn is_of(&self, address: u64) -> bool {
        self.thread == Some(address) || self.irp == Some(address)
    }
}

/// The members that the logs' records may have.
struct Fields {
    thread: Option<Member>,
    irp: Option<Member>,
    old_irql: Option<Member>,
    new_irql: Option<Member>,
    processor: Option<Member>,
    tick_count: Option<Member>,
    irql: Option<Member>,
    apc_disable: Option<Member>,
    due_tick_count: Option<Member>,
    stack: Option<Member>,
}

impl Fields {
    fn new(record: &Record<'_>) -> Self {
        Fields {
            thread: record.find("Thread"),
            irp: record.find("Irp"),
            old_irql: record.find("OldIrql"),
            new_irql: record.find("NewIrql"),
            processor: record.find("Processor"),
            tick_count: record.find("TickCount"),
            irql: record.find("Irql"),
            apc_disable: record.find("CombinedApcDisable"),
            due_tick_count: record.find("DueTickCount"),
            stack: record.find("StackTrace"),
        }
    }

    /// `None` for a slot that was never written: it is of no thread and no IRP, and has no stack.
    fn decode(&self, record: &[u8], sequence: u32) -> Option<Entry> {
        let get = |member: &Option<Member>| member.map(|member| member.get(record));
        let frames = self.stack.iter().flat_map(|stack| (0..stack.count).map(|i| stack.element(record, i)));
        let entry = Entry {
            sequence,
            // Not every log's record has its thread filled in.
            thread: get(&self.thread).filter(|thread| *thread != 0),
            irp: get(&self.irp),
            old_irql: get(&self.old_irql).map(|value| value as u8),
            new_irql: get(&self.new_irql).map(|value| value as u8),
            processor: get(&self.processor).map(|value| value as u16),
            tick_count: get(&self.tick_count).map(|value| value as u32),
            irql: get(&self.irql).map(|value| value as u8),
            apc_disable: get(&self.apc_disable).map(|value| value as u32),
            due_tick_count: get(&self.due_tick_count).map(|value| value as u32),
            frames: frames.take_while(|frame| *frame != 0).collect(),
        };
        let blank = entry.thread.is_none() && entry.irp.unwrap_or(0) == 0 && entry.frames.is_empty();
        (!blank).then_some(entry)
    }
}

fn field(name: &str, offset: u64, size: u64) -> Field {
    Field { name: name.into(), offset, size, bits: None, array: None, pointers: 0, type_name: "void".into() }
}

fn stack(offset: u64, frames: u64, pointer: u64) -> Field {
    Field { array: Some((frames, pointer)), ..field("StackTrace", offset, frames * pointer) }
}

/// The IRP log's type where symbols lack it (Windows 7); of 32 bits by the public type of later versions:
///
/// ```text
/// 64 bits  00 Irp   08 Thread   10 CombinedApcDisable (4)   14 Irql (1)   18 StackTrace[13]   80
/// 32 bits  00 Irp   04 Thread   08 CombinedApcDisable (4)   0c Irql (1)   10 StackTrace[12]   40
/// ```
fn irp_trace(pointer: u64) -> Layout {
    let (size, frames) = if pointer == 4 { (0x40, 12) } else { (0x80, 13) };
    let fields = vec![
        field("Irp", 0, pointer),
        field("Thread", pointer, pointer),
        field("CombinedApcDisable", 2 * pointer, 4),
        field("Irql", 2 * pointer + 4, 1),
        stack(2 * pointer + 8, frames, pointer),
    ];
    Layout { name: "of the IRP log".into(), size, fields }
}

/// The forced-pending log's:
///
/// ```text
/// 64 bits  00 Irp   08 (not known)   10 StackTrace[62]   200
/// 32 bits  00 Irp   04 (not known)   08 StackTrace[62]   100
/// ```
fn forced_pending_trace(pointer: u64) -> Layout {
    let fields = vec![field("Irp", 0, pointer), stack(2 * pointer, 62, pointer)];
    Layout { name: "of the forced-pending log".into(), size: 64 * pointer, fields }
}
