//! Symbols that are looked for while the target runs: what is read of it is which file belongs to a module, and no more.

use std::sync::Arc;

use nt_memory::Fault;
use nt_symbols::{ImageError, PdbId, SymbolFile};

use super::{Key, Known, Load, Symbols, key, nt, short_name};
use crate::kernel::{Driver, Kernel};

/// A module whose symbol file can be looked for without the target.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    /// Another base is another boot.
    kernel_base: u64,
    key: Key,
    driver: Driver,
    /// kd's short name of it.
    module: String,
    pdb: String,
    id: PdbId,
}

impl Later {
    /// The PDB's name, its GUID in 32 hexadecimal digits, and its age.
    pub(crate) fn is_of(&self, file: &str, guid: &str, age: u32) -> bool {
        self.pdb == file && self.id.age == age && format!("{:032X}", self.id.guid) == guid
    }
}

impl Symbols {
    /// From now on [`Symbols::of_or_later`] looks for nothing; what it would have looked for is returned by
    /// [`Symbols::take_later`].
    pub(crate) fn begin_later(&mut self) {
        self.later = Some(Vec::new());
    }

    /// Ends that.
    pub(crate) fn end_later(&mut self) {
        self.later = None;
    }

    /// The modules that were asked for meanwhile.
    pub(crate) fn take_later(&mut self) -> Vec<Later> {
        self.later.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The symbols of a module, as [`Symbols::of`]; `None` also where they are looked for later.
    pub(crate) fn of_or_later(
        &mut self,
        kernel: &dyn Kernel,
        driver: &Driver,
    ) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        let Some(waiting) = &self.later else { return self.of(kernel, driver) };
        let key = key(kernel, driver);
        if waiting.iter().any(|later| later.key == key) {
            return Ok(None);
        }
        match self.later(kernel, driver)? {
            Some(later) => {
                self.later.get_or_insert_default().push(later);
                Ok(None)
            }
            None => self.of(kernel, driver),
        }
    }

    /// The kernel's, where they were not looked for yet.
    pub(crate) fn nt_later(&self, kernel: &dyn Kernel) -> Result<Option<Later>, Fault> {
        self.later(kernel, &nt(kernel))
    }

    /// What a module's symbols are looked for by: three reads. `None`: they were looked for, or the image does not say
    /// it, or what is looked for depends on what is found.
    pub(crate) fn later(&self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Later>, Fault> {
        let key = key(kernel, driver);
        let known = self.modules.get(&key).filter(|_| self.kernel_base == kernel.base());
        if self.ignore_mismatch || known.is_some_and(|known| known.holds(true)) {
            return Ok(None);
        }
        match nt_symbols::rsds(kernel.memory(), driver.base) {
            Ok(image) => Ok(Some(Later {
                kernel_base: kernel.base(),
                key,
                driver: driver.clone(),
                module: short_name(driver, kernel.base()),
                pdb: image.pdb_name,
                id: image.pdb,
            })),
            Err(ImageError::Fault(fault)) => Err(fault),
            Err(_) => Ok(None),
        }
    }

    /// Looks for the symbol file of a module, and keeps what came of it.
    pub(crate) fn fetch(&mut self, later: &Later) -> Result<(), Fault> {
        self.choose_path();
        if self.kernel_base != later.kernel_base {
            self.forget();
            self.kernel_base = later.kernel_base;
        }
        let load = self.source.find_pdb(&later.pdb, later.id)?;
        self.say_load(&later.module, &later.driver, &load);
        self.modules.insert(later.key, Known { load, exports: None });
        Ok(())
    }

    /// Whether a module was looked for that has no file, and what it exports was not.
    pub(crate) fn lacks_exports(&self, later: &Later) -> bool {
        let known = self.modules.get(&later.key).filter(|_| self.kernel_base == later.kernel_base);
        known.is_some_and(|known| matches!(known.load, Load::Missing { .. }) && known.exports.is_none())
    }

    /// What a module exports, for want of a file; the target stands.
    pub(crate) fn export_names(&mut self, kernel: &dyn Kernel, later: &Later) -> Result<(), Fault> {
        self.of(kernel, &later.driver).map(drop)
    }

    /// The symbols of a module that was looked for.
    pub(crate) fn found(&self, later: &Later) -> Option<&Arc<dyn SymbolFile>> {
        self.modules.get(&later.key).filter(|_| self.kernel_base == later.kernel_base)?.file()
    }
}
