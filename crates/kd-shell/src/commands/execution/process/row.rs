//! A process as `!process` shows it.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::number;
use super::thread::{Thread, read_thread};
use super::types::{Types, clock};
use crate::answer::Text;
use crate::error::CommandError;
use crate::text::{Hex, Width};
use crate::typed::{Record, offset_of};

#[derive(JsonSchema, Serialize)]
pub(super) struct Processes {
    pub(super) processes: Vec<Process>,
    #[serde(skip)]
    pub(super) all: bool,
    #[serde(skip)]
    pub(super) width: Width,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Process {
    address: Hex,
    /// `null` for those of no session.
    session_id: Option<u64>,
    process_id: Option<u64>,
    parent_id: Option<u64>,
    peb: Option<Hex>,
    directory_base: Option<Hex>,
    object_table: Option<Hex>,
    handles: Option<u64>,
    image: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<(&'static str, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) threads: Vec<Thread>,
}

/// Flags of `!process`: times, quotas and sizes; what the threads wait for; threads, and with both their stacks.
const TIMES: u64 = 1;
const WAITS: u64 = 2;
pub(super) const STACKS: u64 = 6;

const WORKING_SET: &str = "Working Set Sizes (now,min,max)";

/// `_KOBJECTS`: the type of a dispatcher object.
const PROCESS_OBJECT: u64 = 3;

pub(super) fn process(
    types: &Types<'_>,
    address: u64,
    check: bool,
    flags: u64,
    image: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Option<Process>, CommandError> {
    let width = types.width;
    let record = types.record("_EPROCESS", address)?;
    if check && types.get(&record, "Pcb.Header.Type").is_none_or(|kind| kind & 0x7f != PROCESS_OBJECT) {
        let address = width.pointer(address);
        return Err(CommandError::Failed(format!("TYPE mismatch for process object at {address}")));
    }
    if !record.is_readable() {
        notes.push(format!("the process at {} is not readable as a whole", width.pointer(address)));
    }
    let name = types.image(&record);
    if image.is_some_and(|image| !image.eq_ignore_ascii_case(&name)) {
        return Ok(None);
    }
    let hex = |path: &str| types.get(&record, path).map(Hex);
    let object_table = hex("ObjectTable");
    let mut threads = Vec::new();
    if flags & STACKS != 0 {
        let head = address.wrapping_add(types.offset("_EPROCESS", "ThreadListHead")?);
        let offset = types.offset("_ETHREAD", "ThreadListEntry")?;
        for thread in types.list(head, offset, notes)? {
            threads.push(read_thread(types, thread, flags & WAITS != 0)?);
        }
    }
    Ok(Some(Process {
        address: Hex(address),
        session_id: session_id(types, &record)?,
        process_id: types.get(&record, "UniqueProcessId"),
        parent_id: types.get(&record, "InheritedFromUniqueProcessId"),
        peb: hex("Peb"),
        directory_base: hex("Pcb.DirectoryTableBase"),
        object_table,
        handles: handles(types, object_table)?,
        image: name,
        details: if flags & TIMES != 0 { details(types, &record) } else { Vec::new() },
        threads,
    }))
}

/// What flag 1 adds: times, quotas and sizes, each by its name.
fn details(types: &Types<'_>, record: &Record) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    let get = |paths: &[&str]| types.first(record, paths);
    let number = |paths: &[&str]| get(paths).map_or("?".into(), |value| value.to_string());
    let quota = |index: usize| {
        let pointer = types.width.bytes();
        let bytes = record.bytes("ProcessQuotaUsage").or_else(|| record.bytes("QuotaUsage"))?;
        let bytes = bytes.get(index * pointer..(index + 1) * pointer)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let mut add = |what: &'static str, value: Option<String>| details.extend(value.map(|value| (what, value)));
    let root = get(&["VadRoot.BalancedRoot.RightChild", "VadRoot.Root", "VadRoot"]);
    add(
        "VadRoot",
        root.map(|root| {
            format!(
                "{} Vads {} Clone {:x} Private {}. Modified {}. Locked {}.",
                types.width.pointer(root),
                number(&["VadRoot.NumberGenericTableElements", "VadCount"]),
                get(&["CloneRoot"]).unwrap_or(0),
                number(&["NumberOfPrivatePages"]),
                number(&["ModifiedPageCount"]),
                number(&["NumberOfLockedPages"]),
            )
        }),
    );
    // The low bits of a fast reference count.
    let token = types.first(record, &["Token.Object", "Token.Value"]).map(|token| token & !0xf);
    add("Token", token.map(|token| types.width.pointer(token)));
    let since = types.time.zip(get(&["CreateTime.QuadPart", "CreateTime"]).filter(|created| *created != 0));
    add("ElapsedTime", since.map(|(now, created)| clock(now.saturating_sub(created))));
    let spent = |path: &str| Some(clock(types.increment?.saturating_mul(get(&[path])?)));
    add("UserTime", spent("Pcb.UserTime"));
    add("KernelTime", spent("Pcb.KernelTime"));
    add("QuotaPoolUsage[PagedPool]", quota(1).map(|bytes| bytes.to_string()));
    add("QuotaPoolUsage[NonPagedPool]", quota(0).map(|bytes| bytes.to_string()));
    let vm = |name: &str| get(&[&format!("Vm.{name}"), &format!("Vm.Instance.{name}")]);
    let sizes = [vm("WorkingSetSize"), vm("MinimumWorkingSetSize"), vm("MaximumWorkingSetSize")];
    if let [Some(now), Some(least), Some(most)] = sizes {
        let kilobytes = |pages: u64| pages.saturating_mul(4);
        add(
            WORKING_SET,
            Some(format!(
                "({now}, {least}, {most}) ({}KB, {}KB, {}KB)",
                kilobytes(now),
                kilobytes(least),
                kilobytes(most)
            )),
        );
    }
    add("PeakWorkingSetSize", vm("PeakWorkingSetSize").map(|pages| pages.to_string()));
    add("VirtualSize", get(&["VirtualSize"]).map(|bytes| format!("{} Mb", bytes >> 20)));
    add("PeakVirtualSize", get(&["PeakVirtualSize"]).map(|bytes| format!("{} Mb", bytes >> 20)));
    add("PageFaultCount", vm("PageFaultCount").map(|count| count.to_string()));
    add("BasePriority", get(&["Pcb.BasePriority"]).map(|priority| (priority as i8).to_string()));
    add("CommitCharge", types.get(record, "CommitCharge").map(|pages| pages.to_string()));
    details
}

/// A process without an object table has no handles.
fn handles(types: &Types<'_>, object_table: Option<Hex>) -> Result<Option<u64>, CommandError> {
    match (object_table, offset_of(types.symbols.as_ref(), "_HANDLE_TABLE", "HandleCount")) {
        (Some(Hex(0)), _) => Ok(Some(0)),
        (Some(Hex(table)), Some(offset)) => Ok(types.u32_at(table, offset)?),
        _ => Ok(None),
    }
}

/// Where `_MM_SESSION_SPACE` has its `SessionId` when the symbols do not say.
const SESSION_ID: u64 = 8;

fn session_id(types: &Types<'_>, record: &Record) -> Result<Option<u64>, CommandError> {
    let Some(session) = types.get(record, "Session").filter(|session| *session != 0) else { return Ok(None) };
    let offset = offset_of(types.symbols.as_ref(), "_MM_SESSION_SPACE", "SessionId").unwrap_or(SESSION_ID);
    Ok(types.u32_at(session, offset)?)
}

impl Text for Processes {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.all {
            writeln!(out, "**** NT ACTIVE PROCESS DUMP ****")?;
        }
        for process in &self.processes {
            let session = process.session_id.map_or("none".into(), |id| id.to_string());
            let pointer = |value: Option<Hex>| value.map_or("????".into(), |value| self.width.pointer(value.0));
            let handles = process.handles.map_or("<Data Not Accessible>".into(), |count| format!("{count:>3}."));
            writeln!(out, "PROCESS {}", self.width.pointer(process.address.0))?;
            writeln!(
                out,
                "    SessionId: {session}  Cid: {}    Peb: {:0digits$x}  ParentCid: {}",
                number(process.process_id, 4),
                process.peb.map_or(0, |peb| peb.0),
                number(process.parent_id, 4),
                digits = 8,
            )?;
            writeln!(
                out,
                "    DirBase: {:08x}  ObjectTable: {}  HandleCount: {handles}",
                process.directory_base.map_or(0, |base| base.0),
                pointer(process.object_table),
            )?;
            writeln!(out, "    Image: {}", process.image)?;
            for (what, value) in &process.details {
                match *what {
                    "VadRoot" => writeln!(out, "    {what} {value}")?,
                    WORKING_SET => writeln!(out, "    {what}  {value}")?,
                    _ => writeln!(out, "    {what:<33} {value}")?,
                }
            }
            writeln!(out)?;
            for thread in &process.threads {
                thread.text_below(out, self.width)?;
            }
        }
        Ok(())
    }
}
