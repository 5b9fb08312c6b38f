//! What commands ask of a kernel that stands still. A session has [`kd_target::Halted`], tests have their own.

use kd_target::{Halted, Stop, TargetError, Version};
use nt_memory::{Fault, Memory};

use crate::text::Width;

/// A module on the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    pub base: u64,
    pub size: u32,
    /// As the kernel spells it: `ntoskrnl.exe`, `myfault.sys`.
    pub file: String,
    pub checksum: u32,
}

/// The modules, as far as they could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drivers {
    pub drivers: Vec<Driver>,
    pub notes: Vec<String>,
}

/// Addresses of a 32-bit kernel are zero-extended here, whatever form they had on the wire.
pub trait Kernel: Memory {
    fn version(&self) -> &Version;
    fn stop(&self) -> &Stop;
    /// The loaded-module list; costs requests the first time in a stop.
    fn drivers(&self) -> Result<Drivers, Fault>;
    /// Where the module at `base` was loaded from.
    fn driver_path(&self, base: u64) -> Result<Option<String>, Fault>;
    /// One processor's CONTEXT record, raw.
    fn context(&self, processor: u16) -> Result<Vec<u8>, TargetError>;
    fn memory(&self) -> &dyn Memory;

    fn width(&self) -> Width {
        Width::of(self.version().pointer_size())
    }

    /// Where the kernel's own image lies.
    fn base(&self) -> u64 {
        self.width().address(self.version().kernel_base)
    }
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
        };
        Ok(Drivers { drivers: modules.modules.iter().map(driver).collect(), notes: modules.notes.clone() })
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
}
