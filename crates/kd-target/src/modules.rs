//! The loaded-module list, `nt!PsLoadedModuleList`.
//!
//! It is read before any symbols are there, so its layout is a table. `_KLDR_DATA_TABLE_ENTRY` has kept these offsets
//! from Windows Vista to 11 (public PDBs of 6.1.7601 to 10.0.22000, x64 and x86; on the kernels whose public PDB lacks
//! the type, `_LDR_DATA_TABLE_ENTRY` shows the same ones).

use std::collections::BTreeSet;

use nt_memory::{Fault, Memory, ReadError};

/// A driver on the loaded-module list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where its image begins.
    pub base: u64,
    /// Bytes of its image.
    pub size: u32,
    /// As the kernel spells it: `ntoskrnl.exe`, `myfault.sys`.
    pub file: String,
    /// Of its image's header; tells builds apart.
    pub checksum: u32,
    /// The image's time stamp, 0 when it is not known.
    pub time_date_stamp: u32,
    /// Where the full path lies; it is read when somebody asks (see [`Module::read_path`]).
    path: UnicodeString,
}

/// The loaded-module list as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modules {
    /// In the list's order, which is that of loading.
    pub modules: Vec<Module>,
    /// What is missing and why; empty when the list is complete.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnicodeString {
    length: u16,
    buffer: u64,
}

struct EntryLayout {
    dll_base: usize,
    size_of_image: usize,
    full_dll_name: usize,
    base_dll_name: usize,
    check_sum: usize,
    time_date_stamp: usize,
    /// Bytes to read of an entry. The name of a driver usually lies right behind its entry, so reading on costs no
    /// request and often saves one.
    read: usize,
}

const X64: EntryLayout = EntryLayout {
    dll_base: 0x30,
    size_of_image: 0x40,
    full_dll_name: 0x48,
    base_dll_name: 0x58,
    check_sum: 0x78,
    time_date_stamp: 0x9c,
    read: 0x100,
};

const X86: EntryLayout = EntryLayout {
    dll_base: 0x18,
    size_of_image: 0x20,
    full_dll_name: 0x24,
    base_dll_name: 0x2c,
    check_sum: 0x40,
    time_date_stamp: 0x58,
    read: 0x80,
};

/// Real machines load some 200; more than this is a damaged list.
const MOST_MODULES: usize = 4096;

impl Module {
    /// The path as the kernel holds it, such as `\SystemRoot\system32\drivers\myfault.sys`; empty when unreadable.
    pub fn read_path(&self, memory: &dyn Memory) -> Result<String, Fault> {
        match read_name(memory, self.path) {
            Ok(path) => Ok(path),
            Err(ReadError::Hole { .. }) => Ok(String::new()),
            Err(ReadError::Fault(fault)) => Err(fault),
        }
    }
}

/// Walks the list whose head is at `head`.
pub(crate) fn read(memory: &dyn Memory, head: u64, pointer_size: u8) -> Result<Modules, Fault> {
    let layout = if pointer_size == 4 { X86 } else { X64 };
    let mut result = Modules::default();
    let mut seen = BTreeSet::new();
    if head == 0 {
        result.notes.push("the target has no module list yet".into());
        return Ok(result);
    }
    let pointer = |bytes: &[u8], at: usize| pointer_at(bytes, at, pointer_size);
    let mut link = [0u8; 8];
    let mut entry_address = match memory.read_exact(head, &mut link[..pointer_size.into()]) {
        Ok(()) => pointer(&link, 0),
        Err(ReadError::Fault(fault)) => return Err(fault),
        Err(error) => {
            result.notes.push(format!("PsLoadedModuleList: {error}"));
            return Ok(result);
        }
    };
    while entry_address != head {
        if entry_address == 0 || !seen.insert(entry_address) || seen.len() > MOST_MODULES {
            result.notes.push(format!("the module list is damaged at {entry_address:016x}; the rest is not shown"));
            break;
        }
        let mut entry = vec![0u8; layout.read];
        let good = memory.read(entry_address, &mut entry)?;
        if good < layout.check_sum + 4 {
            result
                .notes
                .push(format!("the module list entry at {entry_address:016x} is not readable; the rest is not shown"));
            break;
        }
        let name = unicode_string(&entry, layout.base_dll_name, pointer_size);
        let base = pointer(&entry, layout.dll_base);
        let file = match read_name(memory, name) {
            Ok(file) => file,
            Err(ReadError::Fault(fault)) => return Err(fault),
            Err(error) => {
                result.notes.push(format!("the name of the module at {base:016x} is not readable: {error}"));
                format!("unknown_{base:x}")
            }
        };
        result.modules.push(Module {
            base,
            size: u32_at(&entry, layout.size_of_image),
            file,
            checksum: u32_at(&entry, layout.check_sum),
            time_date_stamp: if good < layout.time_date_stamp + 4 { 0 } else { u32_at(&entry, layout.time_date_stamp) },
            path: unicode_string(&entry, layout.full_dll_name, pointer_size),
        });
        entry_address = pointer(&entry, 0);
    }
    Ok(result)
}

fn unicode_string(entry: &[u8], at: usize, pointer_size: u8) -> UnicodeString {
    let length = u16::from_le_bytes([entry[at], entry[at + 1]]);
    UnicodeString { length, buffer: pointer_at(entry, at + usize::from(pointer_size), pointer_size) }
}

/// A module's name is at most a path long, whatever the length field says.
const LONGEST_NAME: u16 = 1024;

fn read_name(memory: &dyn Memory, name: UnicodeString) -> Result<String, ReadError> {
    let mut bytes = vec![0u8; usize::from(name.length.min(LONGEST_NAME) & !1)];
    memory.read_exact(name.buffer, &mut bytes)?;
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    // The name goes to a terminal; a hostile target must not steer it.
    Ok(char::decode_utf16(units)
        .map(|unit| unit.ok().filter(|c| !c.is_control()).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect())
}

/// A pointer of the target as a 64-bit address; 32-bit kernels' are sign-extended, as everywhere in KD.
fn pointer_at(bytes: &[u8], at: usize, pointer_size: u8) -> u64 {
    let low = u32_at(bytes, at);
    if pointer_size == 4 {
        return i64::from(low as i32) as u64;
    }
    u64::from(low) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from 0xffff_8000_0000_0000 on.
    struct Flat(Vec<u8>);
    const BASE: u64 = 0xffff_8000_0000_0000;

    impl Memory for Flat {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
            let start = address.wrapping_sub(BASE) as usize;
            let Some(bytes) = self.0.get(start..) else { return Ok(0) };
            let n = bytes.len().min(buffer.len());
            buffer[..n].copy_from_slice(&bytes[..n]);
            Ok(n)
        }
    }

    impl Flat {
        fn put(&mut self, at: u64, bytes: &[u8]) {
            self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }

        fn entry(&mut self, at: u64, next: u64, name: &str) {
            let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            self.put(at, &(BASE + next).to_le_bytes());
            self.put(at + 0x30, &(0xffff_f800_0000_0000 + at).to_le_bytes());
            self.put(at + 0x40, &0x5000u32.to_le_bytes());
            self.put(at + 0x58, &(wide.len() as u16).to_le_bytes());
            self.put(at + 0x60, &(BASE + at + 0xe0).to_le_bytes());
            self.put(at + 0xe0, &wide);
        }
    }

    fn two_modules() -> Flat {
        let mut memory = Flat(vec![0; 0x3000]);
        memory.put(0x100, &(BASE + 0x1000).to_le_bytes());
        memory.entry(0x1000, 0x2000, "ntoskrnl.exe");
        memory.entry(0x2000, 0x100, "my\u{1b}fault.sys");
        memory
    }

    #[test]
    fn reads_names_and_ranges() {
        let modules = read(&two_modules(), BASE + 0x100, 8).unwrap();
        assert_eq!(modules.notes, [""; 0]);
        let found: Vec<_> = modules.modules.iter().map(|m| (m.base, m.size, m.file.as_str())).collect();
        assert_eq!(
            found,
            [(0xffff_f800_0000_1000, 0x5000, "ntoskrnl.exe"), (0xffff_f800_0000_2000, 0x5000, "my\u{fffd}fault.sys"),]
        );
    }

    #[test]
    fn a_cycle_ends_with_a_note() {
        let mut memory = two_modules();
        memory.put(0x2000, &(BASE + 0x1000).to_le_bytes());
        let modules = read(&memory, BASE + 0x100, 8).unwrap();
        assert_eq!(modules.modules.len(), 2);
        assert!(modules.notes[0].contains("damaged at ffff800000001000"), "{:?}", modules.notes);
    }

    #[test]
    fn an_unreadable_entry_ends_with_a_note() {
        let mut memory = two_modules();
        memory.put(0x1000, &(BASE + 0x10_0000).to_le_bytes());
        let modules = read(&memory, BASE + 0x100, 8).unwrap();
        assert_eq!(modules.modules.len(), 1);
        assert!(modules.notes[0].contains("not readable"), "{:?}", modules.notes);
    }

    #[test]
    fn pointers_of_32_bit_kernels_are_sign_extended() {
        assert_eq!(pointer_at(&0x8040_0000u32.to_le_bytes(), 0, 4), 0xffff_ffff_8040_0000);
    }
}
