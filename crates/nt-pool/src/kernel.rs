//! One kernel to be decoded, and how its variables are read.

use std::sync::Arc;

use nt_memory::{Fault, Memory, PAGE_SIZE, ReadError};
use nt_symbols::{Layout, SymbolFile};

/// One kernel to be decoded: its memory, its names, where it is loaded.
///
/// Addresses of a 32-bit kernel are zero-extended here (`82800000`, not `ffffffff82800000`).
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    /// Where its structures are read.
    pub memory: &'a dyn Memory,
    /// The names and types of its image.
    pub symbols: &'a dyn SymbolFile,
    /// Where its image begins.
    pub base: u64,
    /// 4 or 8.
    pub pointer_size: u8,
    /// The build number: 7601, 26100. [`crate::build`] names those that matter.
    pub build: u16,
}

/// Why a question has no answer at all. Partial answers are results with notes.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A variable that this build does not have, or whose name its symbols do not have.
    #[error("the symbols of nt have no {0}")]
    NoSymbol(String),
    /// A structure that the symbols do not describe: those of Windows 8 and later describe fewer.
    #[error("the symbols of nt have no type {0}")]
    NoType(String),
    /// A structure without this member: it is laid out in another way than is known.
    #[error("type {type_name} has no member {member}")]
    NoField {
        /// The structure.
        type_name: String,
        /// As symbols would name it.
        member: String,
    },
    /// A value beyond all that a healthy kernel has; what and where, as a sentence.
    #[error("{0}")]
    Unlikely(String),
    /// A place cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The source of memory is gone, or was interrupted.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl PoolError {
    /// The error if it concerns no more than what was asked for; a source that is gone, or a Ctrl+C, concerns all.
    pub fn local(self) -> Result<Self, Fault> {
        match self {
            Self::Fault(fault) | Self::Read(ReadError::Fault(fault)) => Err(fault),
            error => Ok(error),
        }
    }
}

/// Variables this close to each other are read together: a request costs far more than the bytes between them.
const GATHER_SPAN: u64 = 0x400;

/// Of one variable: a pointer for each of some processors.
const READ_AHEAD: u64 = 0x40;

/// A variable's address and width in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variable {
    pub(crate) address: u64,
    pub(crate) size: u8,
}

impl<'a> Kernel<'a> {
    /// A kernel whose image is at `base`. `pointer_size` is 4 or 8; `build` is what GetVersion or `nt!NtBuildNumber` says
    /// (7601, 26100): a few rules that no type shows depend on it.
    pub fn new(memory: &'a dyn Memory, symbols: &'a dyn SymbolFile, base: u64, pointer_size: u8, build: u16) -> Self {
        let kernel = Kernel { memory, symbols, base, pointer_size, build };
        // KD carries the addresses of 32-bit kernels sign-extended.
        Kernel { base: kernel.wrap(base), ..kernel }
    }

    /// Reads variables that will be asked for one by one, so that those that lie near each other cost one request. For
    /// sources that remember what they have read. `perhaps`: not worth a request of their own.
    pub fn read_ahead(&self, names: &[&str], perhaps: &[&str]) -> Result<(), Fault> {
        let places = |names: &[&str]| -> Vec<(u64, u64)> {
            let place = |name: &&str| {
                let bytes = self.room(name).unwrap_or(8).min(READ_AHEAD);
                Some((self.find_symbol(name)?, bytes))
            };
            names.iter().filter_map(place).collect()
        };
        let (mut wanted, more) = (places(names), places(perhaps));
        wanted.sort_unstable();
        let reply = self.memory.reply_size() as u64;
        let mut rest = &wanted[..];
        while let Some(&(start, _)) = rest.first() {
            let end = |&(address, bytes): &(u64, u64)| (address - start).saturating_add(bytes);
            let count = 1 + rest[1..].iter().take_while(|place| end(place) <= reply).count();
            let (group, later) = rest.split_at(count);
            let near = more.iter().filter(|place| place.0 >= start && end(place) <= reply);
            let together: Vec<u64> = group.iter().chain(near).map(end).collect();
            if together.len() > 1 {
                let mut bytes = vec![0; together.into_iter().max().unwrap_or(0) as usize];
                self.memory.read(start, &mut bytes)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// The address of `nt!name`, if the symbols have it.
    pub fn find_symbol(&self, name: &str) -> Option<u64> {
        let symbol = self.symbols.symbol(name)?;
        Some(self.wrap(self.base.wrapping_add(u64::from(symbol.rva))))
    }

    /// As [`Kernel::find_symbol`]; without one the question has no answer.
    pub fn symbol(&self, name: &str) -> Result<u64, PoolError> {
        self.find_symbol(name).ok_or_else(|| PoolError::NoSymbol(name.into()))
    }

    /// A structure's layout in this build; without one the question has no answer.
    pub fn layout(&self, type_name: &str) -> Result<Arc<Layout>, PoolError> {
        self.symbols.layout(type_name).ok_or_else(|| PoolError::NoType(type_name.into()))
    }

    /// Bytes from `nt!name` to the next symbol: the most that the variable can be wide.
    pub(crate) fn room(&self, name: &str) -> Option<u64> {
        let rva = self.symbols.symbol(name)?.rva;
        let next = self.symbols.around(rva).1?;
        next.rva.checked_sub(rva).filter(|room| *room > 0).map(u64::from)
    }

    /// Whether a pointer can lead into kernel memory: canonical and in the upper half.
    pub fn is_kernel_address(&self, address: u64) -> bool {
        match self.pointer_size {
            4 => (0x8000_0000..=0xffff_ffff).contains(&address),
            _ => address >= 0xffff_8000_0000_0000,
        }
    }

    /// Whether all of `length` bytes from `address` are kernel addresses.
    pub(crate) fn is_kernel_range(&self, address: u64, length: u64) -> bool {
        let last = length.checked_sub(1).and_then(|n| address.checked_add(n));
        self.is_kernel_address(address) && last.is_some_and(|last| self.is_kernel_address(last))
    }

    /// An address in the kernel's own width.
    pub(crate) fn wrap(&self, address: u64) -> u64 {
        match self.pointer_size {
            4 => address & 0xffff_ffff,
            _ => address,
        }
    }

    pub(crate) fn pointer_variable(&self, name: &str) -> Result<Variable, PoolError> {
        Ok(Variable { address: self.symbol(name)?, size: self.pointer_size })
    }

    pub(crate) fn u32_variable(&self, name: &str) -> Result<Variable, PoolError> {
        Ok(Variable { address: self.symbol(name)?, size: 4 })
    }

    /// Reads variables in as few requests as their places allow; the answers are in the order of the question.
    pub(crate) fn gather(&self, variables: &[Variable]) -> Result<Vec<Result<u64, ReadError>>, Fault> {
        gather(variables, |address, buffer| self.memory.read(address, buffer))
    }

    /// The same, whatever has been read of them before.
    pub(crate) fn gather_again(&self, variables: &[Variable]) -> Result<Vec<Result<u64, ReadError>>, Fault> {
        gather(variables, |address, buffer| self.memory.reread(address, buffer))
    }
}

/// [`Kernel::gather`] or [`Kernel::gather_again`].
pub(crate) type Gather<'k> = fn(&Kernel<'k>, &[Variable]) -> Result<Vec<Result<u64, ReadError>>, Fault>;

fn gather(
    variables: &[Variable],
    read: impl Fn(u64, &mut [u8]) -> Result<usize, Fault>,
) -> Result<Vec<Result<u64, ReadError>>, Fault> {
    let mut order: Vec<usize> = (0..variables.len()).collect();
    order.sort_by_key(|&i| variables[i].address);
    let mut values = vec![Ok(0); variables.len()];
    let mut rest = &order[..];
    while let Some(&first) = rest.first() {
        let start = variables[first].address;
        let end = |i: usize| (variables[i].address - start).saturating_add(u64::from(variables[i].size));
        // Within one page, so that a hole cannot hide a neighbour that is readable.
        let together = |i: usize| end(i) <= GATHER_SPAN && start % PAGE_SIZE + end(i) <= PAGE_SIZE;
        let count = 1 + rest[1..].iter().take_while(|&&i| together(i)).count();
        let (group, later) = rest.split_at(count);
        let span = group.iter().map(|&i| end(i)).max().unwrap_or(0) as usize;
        let mut bytes = vec![0; span];
        let read = read(start, &mut bytes)?.min(span);
        for &i in group {
            let from = (variables[i].address - start) as usize;
            let wanted = usize::from(variables[i].size);
            values[i] = if from + wanted <= read {
                Ok(little_endian(&bytes[from..from + wanted]))
            } else {
                Err(ReadError::Hole { address: variables[i].address, wanted, read: read.saturating_sub(from) })
            };
        }
        rest = later;
    }
    Ok(values)
}

/// Up to eight bytes as a number.
pub(crate) fn little_endian(bytes: &[u8]) -> u64 {
    // The usual widths in one step: gigabytes of headers are read this way.
    if let Ok(bytes) = bytes.try_into() {
        return u64::from_le_bytes(bytes);
    }
    if let Ok(bytes) = bytes.try_into() {
        return u32::from_le_bytes(bytes).into();
    }
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
