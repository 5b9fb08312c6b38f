//! PE images as they lie in memory: headers, exports, function table, the debug directory and its RSDS record.

use crate::isf::{Identity, IsfError};
use crate::kernel::builder::Builder;
use crate::kernel::code::{Function, exception_directory};
use crate::pdb::Section;

/// What the headers of an image say.
pub(crate) struct Image<'a> {
    pub(crate) name: &'a str,
    pub(crate) base: u64,
    pub(crate) size: u32,
    pub(crate) entry_point: u32,
    pub(crate) timestamp: u32,
    pub(crate) checksum: u32,
    pub(crate) pdb: Option<Identity>,
    pub(crate) sections: Vec<Section>,
    /// Functions with unwind data; the others have none.
    pub(crate) functions: &'a [Function],
}

const PE: usize = 0xe8;
const OPTIONAL: usize = PE + 24;
/// Bytes of the optional header before its data directories; PE32 has it shorter.
const DIRECTORIES: usize = 112;
const DIRECTORIES_32: usize = 96;

impl Builder {
    /// Writes headers, exports and debug directory into the last section of an image.
    pub(crate) fn image(&mut self, image: &Image<'_>, exports: &[(&str, u32)]) {
        let linker = image.sections.last().map_or(0x1000, |section| section.rva);
        let (debug, codeview) = match &image.pdb {
            Some(identity) => debug(identity, linker, image.timestamp),
            None => (Vec::new(), 0),
        };
        let exports_at = linker + (debug.len() as u32).next_multiple_of(16);
        let exports = if exports.is_empty() { Vec::new() } else { export_directory(image, exports, exports_at) };
        let functions_at = exports_at + (exports.len() as u32).next_multiple_of(16);
        let (functions, functions_size) = exception_directory(image.functions, functions_at);

        let narrow = self.isf.machine.is_x86();
        let directories = OPTIONAL + if narrow { DIRECTORIES_32 } else { DIRECTORIES };
        let sections = directories + 16 * 8;
        let mut header = vec![0; sections + image.sections.len() * 40];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &(PE as u32).to_le_bytes());
        put(PE, b"PE\0\0");
        put(PE + 4, &self.isf.machine.number().to_le_bytes());
        put(PE + 6, &(image.sections.len() as u16).to_le_bytes());
        put(PE + 8, &image.timestamp.to_le_bytes());
        put(PE + 20, &((sections - OPTIONAL) as u16).to_le_bytes());
        put(PE + 22, &if narrow { 0x102u16 } else { 0x22 }.to_le_bytes());
        put(OPTIONAL, &if narrow { 0x10bu16 } else { 0x20b }.to_le_bytes());
        put(OPTIONAL + 2, &[9, 0]);
        put(OPTIONAL + 16, &image.entry_point.to_le_bytes());
        put(OPTIONAL + 20, &0x1000u32.to_le_bytes());
        match narrow {
            // BaseOfData is before it.
            true => put(OPTIONAL + 28, &(image.base as u32).to_le_bytes()),
            false => put(OPTIONAL + 24, &image.base.to_le_bytes()),
        }
        put(OPTIONAL + 32, &0x1000u32.to_le_bytes());
        put(OPTIONAL + 36, &0x1000u32.to_le_bytes());
        for (at, value) in [(40, 6u16), (42, 1), (44, 6), (46, 1), (48, 6), (50, 1), (68, 1)] {
            put(OPTIONAL + at, &value.to_le_bytes());
        }
        put(OPTIONAL + 56, &image.size.to_le_bytes());
        put(OPTIONAL + 60, &0x1000u32.to_le_bytes());
        put(OPTIONAL + 64, &image.checksum.to_le_bytes());
        put(directories - 4, &16u32.to_le_bytes());
        let mut directory = |index: usize, rva: u32, size: u32| {
            put(directories + index * 8, &rva.to_le_bytes());
            put(directories + index * 8 + 4, &size.to_le_bytes());
        };
        if !exports.is_empty() {
            directory(0, exports_at, exports.len() as u32);
        }
        if functions_size != 0 {
            directory(3, functions_at, functions_size);
        }
        if codeview != 0 {
            directory(6, linker, 28);
        }
        for (index, section) in image.sections.iter().enumerate() {
            put(sections + index * 40, &section.header());
        }
        self.memory.map(image.base, 0x1000);
        self.memory.put(image.base, &header);
        self.memory.put(image.base + u64::from(linker), &debug);
        self.memory.put(image.base + u64::from(exports_at), &exports);
        self.memory.put(image.base + u64::from(functions_at), &functions);
    }

    /// The kernel's own image, with a few dozen of its functions exported.
    pub(crate) fn kernel_image(
        &mut self,
        identity: Identity,
        (timestamp, checksum): (u32, u32),
        functions: &[Function],
    ) -> Result<(), IsfError> {
        let exports: Vec<(String, u32)> = self
            .isf
            .symbols
            .iter()
            .filter(|(name, _)| EXPORTS.contains(&name.as_str()))
            .map(|(name, symbol)| (name.clone(), symbol.address as u32))
            .collect();
        let exports: Vec<(&str, u32)> = exports.iter().map(|(name, rva)| (name.as_str(), *rva)).collect();
        let image = Image {
            name: "ntoskrnl.exe",
            base: self.base,
            size: self.image_size(),
            entry_point: self.isf.symbol("KiSystemStartup")? as u32,
            timestamp,
            checksum,
            pdb: Some(identity),
            sections: self.sections.clone(),
            functions,
        };
        self.image(&image, &exports);
        Ok(())
    }
}

/// Exports of every NT kernel.
const EXPORTS: &[&str] = &[
    "DbgBreakPoint",
    "DbgBreakPointWithStatus",
    "DbgPrint",
    "DbgPrintEx",
    "ExAllocatePool",
    "ExAllocatePoolWithTag",
    "ExFreePool",
    "ExFreePoolWithTag",
    "InitSafeBootMode",
    "IoAllocateIrp",
    "IoCreateDevice",
    "IoFreeIrp",
    "IofCallDriver",
    "IofCompleteRequest",
    "KdDebuggerEnabled",
    "KdDebuggerNotPresent",
    "KeBugCheck",
    "KeBugCheckEx",
    "KeDelayExecutionThread",
    "KeInitializeEvent",
    "KeNumberProcessors",
    "KeSetEvent",
    "KeWaitForSingleObject",
    "MmGetSystemRoutineAddress",
    "MmHighestUserAddress",
    "MmMapIoSpace",
    "MmSystemRangeStart",
    "MmUserProbeAddress",
    "NtBuildLab",
    "NtBuildNumber",
    "NtGlobalFlag",
    "ObReferenceObjectByHandle",
    "ObfDereferenceObject",
    "PsGetCurrentProcessId",
    "PsGetVersion",
    "PsInitialSystemProcess",
    "PsLoadedModuleList",
    "PsLookupProcessByProcessId",
    "RtlInitUnicodeString",
    "ZwClose",
    "ZwCreateFile",
];

/// `IMAGE_DEBUG_DIRECTORY` of one CodeView record, and the record behind it; also the record's RVA.
fn debug(identity: &Identity, rva: u32, timestamp: u32) -> (Vec<u8>, u32) {
    let record = rva + 32;
    let mut codeview = b"RSDS".to_vec();
    codeview.extend(identity.guid);
    codeview.extend(identity.age.to_le_bytes());
    codeview.extend(identity.name.as_bytes());
    codeview.push(0);
    let mut bytes = vec![0; 4];
    bytes.extend(timestamp.to_le_bytes());
    bytes.extend([0; 4]);
    for value in [2, codeview.len() as u32, record, record] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(codeview);
    (bytes, record)
}

/// `IMAGE_EXPORT_DIRECTORY` with its tables; `exports` are sorted by name.
fn export_directory(image: &Image<'_>, exports: &[(&str, u32)], rva: u32) -> Vec<u8> {
    let count = exports.len() as u32;
    let functions = 40;
    let names = functions + count * 4;
    let ordinals = names + count * 4;
    let strings = ordinals + count * 2;
    let mut text = image.name.as_bytes().to_vec();
    text.push(0);
    let mut bytes = vec![0; 4];
    bytes.extend(image.timestamp.to_le_bytes());
    bytes.extend([0; 4]);
    for value in [rva + strings, 1, count, count, rva + functions, rva + names, rva + ordinals] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(exports.iter().flat_map(|(_, function)| function.to_le_bytes()));
    for (name, _) in exports {
        bytes.extend((rva + strings + text.len() as u32).to_le_bytes());
        text.extend(name.as_bytes());
        text.push(0);
    }
    bytes.extend((0..count as u16).flat_map(u16::to_le_bytes));
    bytes.extend(text);
    bytes
}
