//! What commands ask of a kernel that stands still. A session has [`kd_target::Halted`], tests have their own.

use kd_target::{DataAccess, Halted, LoadStops, Stop, TargetError, Version};
use nt_memory::{Fault, Memory};
use nt_pool::Notes;
use nt_symbols::SymbolFile;

use crate::text::Width;

/// A module on the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Where its image lies.
    pub base: u64,
    /// Bytes of its image.
    pub size: u32,
    /// As the kernel spells it: `ntoskrnl.exe`, `myfault.sys`.
    pub file: String,
    /// Of its image's header.
    pub checksum: u32,
    /// The image's time stamp, 0 when it is not known.
    pub timestamp: u32,
}

/// The modules, as far as they could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drivers {
    /// In the list's order.
    pub drivers: Vec<Driver>,
    /// What the list lacks.
    pub notes: Notes,
}

/// Addresses of a 32-bit kernel are zero-extended here, whatever form they had on the wire.
pub trait Kernel: Memory {
    /// What the target says of itself.
    fn version(&self) -> &Version;
    /// Why and where it stands.
    fn stop(&self) -> &Stop;
    /// The loaded-module list; costs requests the first time in a stop.
    fn drivers(&self) -> Result<Drivers, Fault>;
    /// Where the module at `base` was loaded from.
    fn driver_path(&self, base: u64) -> Result<Option<String>, Fault>;
    /// One processor's CONTEXT record, raw.
    fn context(&self, processor: u16) -> Result<Vec<u8>, TargetError>;
    /// Its memory, by virtual and by physical address.
    fn memory(&self) -> &dyn Memory;
    /// A part of one processor's control space.
    fn read_control(&self, processor: u16, selector: u64, length: u32) -> Result<Vec<u8>, TargetError>;

    /// Whose registers are meant.
    fn processor(&self) -> u16 {
        self.stop().processor
    }

    /// Chooses another processor.
    fn set_processor(&self, _processor: u16) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Replaces a processor's CONTEXT record.
    fn set_context(&self, _processor: u16, _context: Vec<u8>) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Writes memory; returns how many bytes were taken.
    fn write(&self, _address: u64, _data: &[u8]) -> Result<usize, TargetError> {
        Err(unchangeable())
    }

    /// Writes physical memory; how many bytes were written.
    fn write_physical(&self, _address: u64, _data: &[u8]) -> Result<usize, TargetError> {
        Err(unchangeable())
    }

    /// Before the target is left these bytes are written here; empty ones take it back.
    fn restore_on_leave(&self, _address: u64, _data: &[u8]) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Plants a breakpoint.
    fn set_breakpoint(&self, _address: u64) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Watches data; its breakpoint is cleared as any other.
    fn set_data_breakpoint(&self, _address: u64, _access: DataAccess) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Takes a breakpoint out.
    fn clear_breakpoint(&self, _address: u64) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// At which drivers that come or go the target stops.
    fn stop_at_loads(&self, _wanted: Option<LoadStops>) -> Result<(), TargetError> {
        Err(unchangeable())
    }

    /// Of its pointers.
    fn width(&self) -> Width {
        Width::of(self.version().pointer_size())
    }

    /// The kernel as nt-pool reads it.
    fn pool<'k>(&'k self, symbols: &'k dyn SymbolFile) -> nt_pool::Kernel<'k> {
        let version = self.version();
        nt_pool::Kernel {
            memory: self.memory(),
            symbols,
            base: self.base(),
            pointer_size: version.pointer_size(),
            build: version.minor,
        }
    }

    /// Where the kernel's own image lies.
    fn base(&self) -> u64 {
        self.width().address(self.version().kernel_base)
    }
}

fn unchangeable() -> TargetError {
    TargetError::Refused("this target cannot be changed".into())
}

impl Kernel for Halted {
    fn version(&self) -> &Version {
        Halted::version(self)
    }

    fn stop(&self) -> &Stop {
        Halted::stop(self)
    }

    fn drivers(&self) -> Result<Drivers, Fault> {
        let modules = self.modules()?;
        let driver = |module: &kd_target::Module| Driver {
            base: Kernel::width(self).address(module.base),
            size: module.size,
            file: module.file.clone(),
            checksum: module.checksum,
            timestamp: module.time_date_stamp,
        };
        Ok(Drivers { drivers: modules.modules.iter().map(driver).collect(), notes: modules.notes.clone().into() })
    }

    fn driver_path(&self, base: u64) -> Result<Option<String>, Fault> {
        let module = self.modules()?.modules.iter().find(|module| Kernel::width(self).address(module.base) == base);
        module.map(|module| module.read_path(self)).transpose()
    }

    fn context(&self, processor: u16) -> Result<Vec<u8>, TargetError> {
        Ok(Halted::context(self, processor)?.to_vec())
    }

    fn memory(&self) -> &dyn Memory {
        self
    }

    fn read_control(&self, processor: u16, selector: u64, length: u32) -> Result<Vec<u8>, TargetError> {
        Ok(Halted::read_control(self, processor, selector, length)?.to_vec())
    }

    fn processor(&self) -> u16 {
        Halted::processor(self)
    }

    fn set_processor(&self, processor: u16) -> Result<(), TargetError> {
        Halted::set_processor(self, processor)
    }

    fn set_context(&self, processor: u16, context: Vec<u8>) -> Result<(), TargetError> {
        Halted::set_context(self, processor, context)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<usize, TargetError> {
        Ok(Halted::write(self, address, data)?)
    }

    fn write_physical(&self, address: u64, data: &[u8]) -> Result<usize, TargetError> {
        Ok(Halted::write_physical(self, address, data)?)
    }

    fn restore_on_leave(&self, address: u64, data: &[u8]) -> Result<(), TargetError> {
        Halted::restore_on_leave(self, address, data)
    }

    fn set_breakpoint(&self, address: u64) -> Result<(), TargetError> {
        Halted::set_breakpoint(self, address)
    }

    fn set_data_breakpoint(&self, address: u64, access: DataAccess) -> Result<(), TargetError> {
        Halted::set_data_breakpoint(self, address, access)
    }

    fn clear_breakpoint(&self, address: u64) -> Result<(), TargetError> {
        Halted::clear_breakpoint(self, address)
    }

    fn stop_at_loads(&self, wanted: Option<LoadStops>) -> Result<(), TargetError> {
        Halted::stop_at_loads(self, wanted);
        Ok(())
    }
}
