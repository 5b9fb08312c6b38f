//! How the target translates addresses, and memory as another process sees it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use kd_target::{Machine, TargetError};
use nt_memory::paging::{self, Page, Physical, Scheme, SoftwarePte, Walk};
use nt_memory::{Fault, Memory, PAGE_SIZE, ReadError, Search, Spent};
use nt_symbols::SymbolFile;

use crate::error::CommandError;
use crate::kernel::Kernel;
use crate::registers::special_registers;
use crate::symbols::{NoSymbols, Symbols};
use crate::typed::{offset_of, read_pointer};

/// The page tables of the stopped processor, or of a process.
pub(crate) struct Tables<'a> {
    physical: WholePages<'a>,
    pub(crate) scheme: Scheme,
    pub(crate) software: SoftwarePte,
    root: u64,
    kernel_base: u64,
}

/// Physical memory, a page at a time: a walk over many addresses asks for neighbouring entries.
struct WholePages<'a> {
    memory: Physical<'a, dyn Kernel + 'a>,
    pages: RefCell<HashMap<u64, Vec<u8>>>,
}

/// So many pages of tables are kept.
const MAX_KEPT: usize = 0x1000;

impl Memory for WholePages<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let (page, offset) = (address & !(PAGE_SIZE - 1), (address % PAGE_SIZE) as usize);
        let mut pages = self.pages.borrow_mut();
        if pages.len() >= MAX_KEPT {
            pages.clear();
        }
        let known = match pages.entry(page) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let mut bytes = vec![0; PAGE_SIZE as usize];
                let good = self.memory.read(page, &mut bytes)?;
                bytes.truncate(good);
                new.insert(bytes)
            }
        };
        let known = known.get(offset..).unwrap_or_default();
        let good = known.len().min(buffer.len());
        buffer[..good].copy_from_slice(&known[..good]);
        Ok(good)
    }
}

impl<'a> Tables<'a> {
    pub(crate) fn new(
        kernel: &'a dyn Kernel,
        symbols: &mut Symbols,
        process: Option<u64>,
    ) -> Result<Self, CommandError> {
        let (scheme, current) = translation(kernel)?;
        let root = match (process, current) {
            (None, Some(root)) => root,
            (process, _) => {
                let process = match process {
                    Some(process) => process,
                    None => current_process(kernel, symbols)?,
                };
                directory_base(kernel, symbols, process)?
            }
        };
        let software = software(scheme, symbols.nt(kernel).ok().as_deref());
        let physical = WholePages { memory: Physical(kernel), pages: RefCell::default() };
        Ok(Self { physical, scheme, software, root, kernel_base: kernel.base() })
    }

    pub(crate) fn walk(&self, address: u64) -> Result<Walk, Fault> {
        paging::walk(&self.physical, self.scheme, self.software, self.root, address)
    }

    /// The parts of `start .. start + length` that are not there, ascending. `None`: these are no page tables, since the
    /// kernel itself is not in them, or they cannot be read.
    pub(crate) fn holes(&self, start: u64, length: u64) -> Result<Option<Vec<Range<u64>>>, Fault> {
        if !matches!(self.walk(self.kernel_base)?.page, Page::Present { .. }) {
            return Ok(None);
        }
        let mut holes: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < length {
            let address = start.wrapping_add(at);
            let walk = self.walk(address)?;
            let (present, size) = match walk.page {
                Page::Present { size, .. } => (true, size),
                Page::Unreadable { .. } => return Ok(None),
                _ => (false, walk.entries.last().map_or(PAGE_SIZE, |entry| 1 << entry.shift)),
            };
            let step = (size - address % size).min(length - at);
            if !present {
                let hole = address..address.wrapping_add(step);
                match holes.last_mut() {
                    Some(last) if last.end == hole.start => last.end = hole.end,
                    _ => holes.push(hole),
                }
            }
            at += step;
        }
        Ok(Some(holes))
    }

    /// Whether a page of this address can be written.
    pub(crate) fn is_writable(&self, address: u64) -> Result<bool, Fault> {
        let walk = self.walk(address)?;
        let is_present = matches!(walk.page, Page::Present { .. });
        Ok(is_present
            && walk.entries.iter().all(|entry| match self.scheme {
                // AP[2]: read-only.
                Scheme::Arm64 => entry.value & 1 << 7 == 0 || entry.value & 3 == 3 && entry.shift > 12,
                _ => entry.value & 2 != 0,
            }))
    }
}

/// How the stopped processor translates, and from where if its registers tell that.
fn translation(kernel: &dyn Kernel) -> Result<(Scheme, Option<u64>), CommandError> {
    let processor = kernel.stop().processor;
    match kernel.version().machine {
        Machine::X64 => {
            // Cr0 Cr2 Cr3 Cr4.
            let special = kernel.read_control(processor, special_registers(kernel), 0x20)?;
            const FIVE_LEVELS: u64 = 1 << 12;
            let levels = if word(&special, 0x18, 8)? & FIVE_LEVELS != 0 { 5 } else { 4 };
            Ok((Scheme::X64 { levels }, Some(word(&special, 0x10, 8)?)))
        }
        Machine::X86 => {
            let special = kernel.read_control(processor, special_registers(kernel), 0x10)?;
            const PAE: u64 = 1 << 5;
            let scheme = if word(&special, 0xc, 4)? & PAE != 0 { Scheme::Pae } else { Scheme::X86 };
            Ok((scheme, Some(word(&special, 8, 4)?)))
        }
        // Its special registers hold no table base; a process has one for both halves of the address space.
        Machine::Arm64 => Ok((Scheme::Arm64, None)),
        other => {
            Err(CommandError::Failed(format!("page tables of machine {:04x} are not in this version", other.number())))
        }
    }
}

fn word(bytes: &[u8], at: usize, size: usize) -> Result<u64, CommandError> {
    let bytes = bytes.get(at..at + size);
    let bytes = bytes.ok_or_else(|| CommandError::Failed("the target's special registers are too short".into()))?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Where a process keeps its page tables.
fn directory_base(kernel: &dyn Kernel, symbols: &mut Symbols, process: u64) -> Result<u64, CommandError> {
    let nt = symbols.nt(kernel)?;
    let offset = offset_of(nt.as_ref(), "_KPROCESS", "DirectoryTableBase");
    let offset =
        offset.ok_or_else(|| CommandError::Failed("type _KPROCESS has no member DirectoryTableBase".into()))?;
    Ok(read_pointer(kernel.memory(), process.wrapping_add(offset), kernel.width())?)
}

/// Where this kernel keeps what in an entry that is not valid.
fn software(scheme: Scheme, symbols: Option<&dyn SymbolFile>) -> SoftwarePte {
    let mut software = SoftwarePte::of(scheme);
    let Some(layout) = symbols.and_then(|symbols| symbols.layout("_MMPTE_SOFTWARE")) else { return software };
    let bits = |name: &str| layout.field(name).and_then(|field| field.bits);
    if let (Some(low), Some(high), Some((prototype, 1)), Some((transition, 1))) =
        (bits("PageFileLow"), bits("PageFileHigh"), bits("Prototype"), bits("Transition"))
    {
        software = SoftwarePte { page_file: low, page_file_offset: high, prototype, transition, ..software };
    }
    software
}

/// Memory as a command sees it: the stopped processor's, with the user half of the process that `.process` chose.
pub(crate) struct View<'a> {
    kernel: &'a dyn Kernel,
    process: Option<Tables<'a>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        kernel: &'a dyn Kernel,
        symbols: &mut Symbols,
        process: Option<u64>,
    ) -> Result<Self, CommandError> {
        let process = process.map(|process| Tables::new(kernel, symbols, Some(process))).transpose()?;
        Ok(Self { kernel, process })
    }

    fn user(&self, address: u64) -> Option<&Tables<'a>> {
        self.process.as_ref().filter(|_| !self.kernel.width().is_kernel(address))
    }

    /// Writes; returns how many bytes were taken.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<usize, TargetError> {
        let Some(tables) = self.user(address) else { return self.kernel.write(address, data) };
        let mut done = 0;
        while done < data.len() {
            let at = address.wrapping_add(done as u64);
            let Page::Present { physical, .. } = tables.walk(at)?.page else { break };
            let piece = (data.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let written = self.kernel.write_physical(physical, &data[done..done + piece])?;
            done += written;
            if written < piece {
                break;
            }
        }
        Ok(done)
    }
}

impl Memory for View<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let Some(tables) = self.user(address) else { return self.kernel.memory().read(address, buffer) };
        let mut done = 0;
        while done < buffer.len() {
            let at = address.wrapping_add(done as u64);
            // A page in transition is in memory still.
            let (Page::Present { physical, .. } | Page::Transition { physical }) = tables.walk(at)?.page else { break };
            let piece = (buffer.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let read = self.kernel.read_physical(physical, &mut buffer[done..done + piece])?.min(piece);
            done += read;
            if read < piece {
                break;
            }
        }
        Ok(done)
    }

    /// What a process has is read from physical memory each time.
    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        match self.user(address) {
            None => self.kernel.memory().reread(address, buffer),
            Some(_) => self.read(address, buffer),
        }
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        match self.user(address) {
            None => self.kernel.memory().search(address, length, pattern),
            Some(_) => Ok(Search::Unsupported),
        }
    }

    fn reply_size(&self) -> usize {
        self.kernel.memory().reply_size()
    }

    fn spent(&self) -> Spent {
        self.kernel.memory().spent()
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.kernel.read_physical(address, buffer)
    }
}

/// A number of at most 8 bytes.
pub(crate) fn read_number(memory: &dyn Memory, address: u64, size: usize) -> Result<u64, ReadError> {
    let mut bytes = [0; 8];
    memory.read_exact(address, &mut bytes[..size.min(8)])?;
    Ok(u64::from_le_bytes(bytes))
}

/// The process of the thread that the stopped processor runs.
pub(crate) fn current_process(kernel: &dyn Kernel, symbols: &mut Symbols) -> Result<u64, NoSymbols> {
    let file = symbols.nt(kernel)?;
    let (memory, width) = (kernel.memory(), kernel.width());
    let thread = width.address(kernel.stop().thread);
    let offset = offset_of(file.as_ref(), "_KTHREAD", "ApcState.Process")
        .ok_or_else(|| NoSymbols::Missing("the symbols of nt do not tell a thread's process".into()))?;
    match read_pointer(memory, thread.wrapping_add(offset), width) {
        Ok(process) => Ok(process),
        Err(ReadError::Fault(fault)) => Err(fault.into()),
        Err(hole) => Err(NoSymbols::Missing(hole.to_string())),
    }
}
