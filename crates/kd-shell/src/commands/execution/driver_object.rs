//! `!drvobj`: a driver's object, its devices and its entry points.
//!
//! ```text
//! Driver object (fffffa8002d9be70) is for:
//!  \Driver\myfault
//! Driver Extension List: (id , addr)
//!
//! Device Object list:
//! fffffa8002d9bc60
//! ```

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use nt_memory::{Memory, ReadError};
use nt_symbols::{Layout, SymbolFile};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};
use crate::typed::{Record, offset_of, read_pointer};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!drvobj"],
    usage: "!drvobj address|name [flags]",
    help: "show a driver's object and its devices",
    details: "A name is looked for among the kernel's objects: !drvobj myfault is \\Driver\\myfault. Flag 1 (the default) \
              shows the\ndevices, 2 the entry points.",
    results: &[ResultShape::of::<Driver>("drvobj")],
    action: Action::Answer(run),
};

/// Devices of a driver, and objects of a directory.
const MAX_LIST: usize = 1 << 14;
/// `_IRP_MJ_*`.
const MAJOR_FUNCTIONS: [&str; 28] = [
    "CREATE",
    "CREATE_NAMED_PIPE",
    "CLOSE",
    "READ",
    "WRITE",
    "QUERY_INFORMATION",
    "SET_INFORMATION",
    "QUERY_EA",
    "SET_EA",
    "FLUSH_BUFFERS",
    "QUERY_VOLUME_INFORMATION",
    "SET_VOLUME_INFORMATION",
    "DIRECTORY_CONTROL",
    "FILE_SYSTEM_CONTROL",
    "DEVICE_CONTROL",
    "INTERNAL_DEVICE_CONTROL",
    "SHUTDOWN",
    "LOCK_CONTROL",
    "CLEANUP",
    "CREATE_MAILSLOT",
    "QUERY_SECURITY",
    "SET_SECURITY",
    "POWER",
    "SYSTEM_CONTROL",
    "DEVICE_CHANGE",
    "QUERY_QUOTA",
    "SET_QUOTA",
    "PNP",
];
/// `IO_TYPE_DRIVER`
const DRIVER: u64 = 4;

#[derive(JsonSchema, Serialize)]
struct Driver {
    address: Hex,
    name: String,
    start: Hex,
    size: u64,
    devices: Vec<Hex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entry_points: Vec<EntryPoint>,
    #[serde(skip)]
    show_devices: bool,
    #[serde(skip)]
    width: Width,
}

#[derive(JsonSchema, Serialize)]
struct EntryPoint {
    name: String,
    address: Hex,
    symbol: Option<String>,
}

/// The kernel's objects and their types.
struct Objects<'a> {
    memory: &'a dyn Memory,
    symbols: Arc<dyn SymbolFile>,
    width: Width,
    base: u64,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = kernel.width();
    let mut words = context.arguments.split_whitespace();
    let Some(which) = words.next() else { return Err(usage(&INFO, "no driver")) };
    let flags = match words.next() {
        None => 1,
        Some(word) => plain_number(word).ok_or_else(|| usage(&INFO, format!("'{word}' is no number")))?,
    };
    if flags & !7 != 0 || words.next().is_some() {
        return Err(usage(&INFO, "one driver and flags 1 or 2 are taken"));
    }
    let symbols = context.session.symbols.nt(kernel)?;
    let objects = Objects { memory: kernel.memory(), symbols, width, base: kernel.base() };
    let mut notes = Vec::new();
    let address = match which.starts_with(|c: char| c.is_ascii_digit() || "@(fF".contains(c)) {
        true => match evaluate_all(which, &mut context.scope()) {
            Ok(address) if width.is_kernel(width.address(address)) => width.address(address),
            _ => objects.named(which, &mut notes)?,
        },
        false => objects.named(which, &mut notes)?,
    };
    let record = objects.record("_DRIVER_OBJECT", address)?;
    let get = |path: &str| record.get(objects.symbols.as_ref(), path);
    if get("Type") != Some(DRIVER) {
        return Err(CommandError::Failed(format!("{} is no driver object", width.pointer(address))));
    }
    let name = objects.text(get("DriverName.Buffer"), get("DriverName.Length"))?;
    let mut devices = Vec::new();
    let next = objects.offset("_DEVICE_OBJECT", "NextDevice")?;
    let (mut at, mut seen) = (get("DeviceObject").unwrap_or(0), HashSet::new());
    while at != 0 && seen.insert(at) && devices.len() < MAX_LIST {
        devices.push(Hex(at));
        at = match read_pointer(objects.memory, at.wrapping_add(next), width) {
            Ok(next) => next,
            Err(ReadError::Fault(fault)) => return Err(fault.into()),
            Err(hole) => {
                notes.push(format!("the list of devices ends early: {hole}"));
                break;
            }
        };
    }
    let mut entry_points = Vec::new();
    if flags & 2 != 0 {
        let mut points = Vec::new();
        for (name, member) in
            [("DriverEntry", "DriverInit"), ("DriverStartIo", "DriverStartIo"), ("DriverUnload", "DriverUnload")]
        {
            points.extend(get(member).map(|address| (format!("{name}:"), address)));
        }
        let functions = record.bytes("MajorFunction").unwrap_or_default().chunks_exact(width.bytes());
        for (number, (bytes, name)) in functions.zip(MAJOR_FUNCTIONS).enumerate() {
            let address = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            points.push((format!("[{number:02x}] IRP_MJ_{name}"), address));
        }
        let mut names = context.names()?;
        for (name, address) in points {
            let symbol = if address == 0 { None } else { names.name(address)? };
            entry_points.push(EntryPoint { name, address: Hex(address), symbol });
        }
    }
    let driver = Driver {
        address: Hex(address),
        name,
        start: Hex(get("DriverStart").unwrap_or(0)),
        size: get("DriverSize").unwrap_or(0),
        devices,
        entry_points,
        show_devices: flags & 1 != 0,
        width,
    };
    Ok(Reply::with_notes(driver, notes))
}

impl Objects<'_> {
    fn layout(&self, name: &str) -> Result<Arc<Layout>, CommandError> {
        let layout = self.symbols.layout(name);
        layout.ok_or_else(|| CommandError::Failed(format!("the symbols of nt have no type {name}")))
    }

    fn offset(&self, type_name: &str, path: &str) -> Result<u64, CommandError> {
        let offset = offset_of(self.symbols.as_ref(), type_name, path);
        offset.ok_or_else(|| CommandError::Failed(format!("type {type_name} has no member {path}")))
    }

    fn record(&self, type_name: &str, address: u64) -> Result<Record, CommandError> {
        Ok(Record::read(self.memory, self.layout(type_name)?, self.width.address(address))?)
    }

    /// The text of a UNICODE_STRING.
    fn text(&self, buffer: Option<u64>, length: Option<u64>) -> Result<String, CommandError> {
        let (Some(buffer), Some(length)) = (buffer, length) else { return Ok(String::new()) };
        let mut bytes = vec![0; length.min(0x200) as usize];
        let read = self.memory.read(self.width.address(buffer), &mut bytes)?.min(bytes.len());
        let units: Vec<u16> =
            bytes[..read].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        Ok(visible_name(&String::from_utf16_lossy(&units)))
    }

    /// The driver object of this name: `myfault`, `\Driver\myfault`, `\FileSystem\Ntfs`.
    fn named(&self, name: &str, notes: &mut Vec<String>) -> Result<u64, CommandError> {
        let path: Vec<&str> = name.trim_start_matches('\\').split('\\').collect();
        let paths = match path.as_slice() {
            [name] => {
                let stem = name.strip_suffix(".sys").unwrap_or(name);
                vec![vec!["Driver", stem], vec!["FileSystem", stem]]
            }
            path => vec![path.to_vec()],
        };
        let root = self.symbols.symbol("ObpRootDirectoryObject");
        let root =
            root.ok_or_else(|| CommandError::Failed("the symbols of nt have no ObpRootDirectoryObject".into()))?;
        let root = self.width.address(self.base.wrapping_add(root.rva.into()));
        let root = read_pointer(self.memory, root, self.width)?;
        for path in paths {
            let mut object = Some(root);
            for part in path {
                object = match object {
                    Some(directory) => self.entry(directory, part, notes)?,
                    None => None,
                };
            }
            if let Some(object) = object {
                return Ok(object);
            }
        }
        Err(CommandError::Failed(format!("there is no driver object '{}'", visible_name(name))))
    }

    /// An object of a directory by its name.
    fn entry(&self, directory: u64, name: &str, notes: &mut Vec<String>) -> Result<Option<u64>, CommandError> {
        let record = self.record("_OBJECT_DIRECTORY", directory)?;
        let buckets = record.bytes("HashBuckets").unwrap_or_default().to_vec();
        let (link, object) =
            (self.offset("_OBJECT_DIRECTORY_ENTRY", "ChainLink")?, self.offset("_OBJECT_DIRECTORY_ENTRY", "Object")?);
        let mut seen = HashSet::new();
        for bucket in buckets.chunks_exact(self.width.bytes()) {
            let mut at = bucket.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            while at != 0 && seen.insert(at) && seen.len() < MAX_LIST {
                let read =
                    |offset: u64| read_pointer(self.memory, self.width.address(at.wrapping_add(offset)), self.width);
                let (found, next) = match (read(object), read(link)) {
                    (Ok(found), Ok(next)) => (found, next),
                    (Err(ReadError::Fault(fault)), _) | (_, Err(ReadError::Fault(fault))) => return Err(fault.into()),
                    (Err(hole), _) | (_, Err(hole)) => {
                        notes.push(format!("an entry of a directory of objects is missing: {hole}"));
                        break;
                    }
                };
                if self.name(found)?.is_some_and(|known| known.eq_ignore_ascii_case(name)) {
                    return Ok(Some(found));
                }
                at = next;
            }
        }
        Ok(None)
    }

    /// An object's name, which stands before its header where the header says so.
    fn name(&self, object: u64) -> Result<Option<String>, CommandError> {
        let body = self.offset("_OBJECT_HEADER", "Body")?;
        let header = object.wrapping_sub(body);
        let record = self.record("_OBJECT_HEADER", header)?;
        let get = |path: &str| record.get(self.symbols.as_ref(), path);
        let before = match get("InfoMask") {
            // Windows 7 and later: bit 0 is the creator's part, bit 1 the name's; the creator's lies nearer.
            Some(mask) if mask & 2 != 0 => {
                let creator = if mask & 1 != 0 { self.layout("_OBJECT_HEADER_CREATOR_INFO")?.size } else { 0 };
                Some(creator + self.layout("_OBJECT_HEADER_NAME_INFO")?.size)
            }
            Some(_) => None,
            None => get("NameInfoOffset").filter(|offset| *offset != 0),
        };
        let Some(before) = before else { return Ok(None) };
        let record = self.record("_OBJECT_HEADER_NAME_INFO", header.wrapping_sub(before))?;
        let get = |path: &str| record.get(self.symbols.as_ref(), path);
        self.text(get("Name.Buffer"), get("Name.Length")).map(Some)
    }
}

impl Text for Driver {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Driver object ({}) is for:\n {}", self.width.pointer(self.address.0), self.name)?;
        if self.show_devices {
            writeln!(out, "Driver Extension List: (id , addr)\n\nDevice Object list:")?;
            for row in self.devices.chunks(4) {
                let row: Vec<String> = row.iter().map(|device| self.width.pointer(device.0)).collect();
                writeln!(out, "{}", row.join("  "))?;
            }
        }
        if !self.entry_points.is_empty() {
            writeln!(out)?;
        }
        for EntryPoint { name, address, symbol } in &self.entry_points {
            let symbol = symbol.as_deref().unwrap_or_default();
            writeln!(out, "{}", format!("{name:<40}{}  {symbol}", self.width.pointer(address.0)).trim_end())?;
        }
        Ok(())
    }
}
