//! Names for addresses and addresses for names, read when a command needs them and kept for the session.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nt_memory::{Fault, Memory, ReadError};
use nt_pool::PoolError;
use nt_pool::unloaded::{self, UnloadedDrivers};
use nt_symbols::{SymbolFile, SymbolKind};

use crate::kernel::{Driver, Drivers, Kernel};
use crate::monitor::Monitor;
use crate::text::{Width, visible_name};

/// Where symbol files come from.
pub trait SymbolSource {
    /// The symbol path as the user wrote it.
    fn path(&self) -> &str;
    fn set_path(&mut self, path: &str) -> Result<(), String>;
    /// The path with its defaults filled in.
    fn expanded(&self) -> String;
    /// What each element of the path is good for.
    fn check(&self) -> Vec<PathElement>;
    /// The symbols of one loaded image.
    fn find(&self, request: &Request<'_>) -> Result<Load, Fault>;
    /// Who watches the searches.
    fn monitor(&self) -> &Monitor;
}

/// A module whose symbols are wanted.
pub struct Request<'a> {
    pub memory: &'a dyn Memory,
    pub base: u64,
    /// The image's file as the kernel spells it.
    pub file: &'a str,
    /// Whether servers may be asked.
    pub network: bool,
    /// Whether symbols of another build will do.
    pub ignore_mismatch: bool,
}

/// What became of a module's symbols.
#[derive(Clone)]
pub enum Load {
    Loaded {
        file: Arc<dyn SymbolFile>,
        /// It belongs to another build of the module.
        mismatched: bool,
    },
    Missing(String),
    /// Missing for now: a server had a fault. Looked for again later.
    Faulty {
        why: String,
        when: Instant,
    },
    /// Not on this machine, and servers were not to be asked.
    Unasked(String),
}

/// When a server that had a fault is asked again without `.reload`.
const ASK_AGAIN: Duration = Duration::from_secs(30);

impl Load {
    pub(crate) fn faulty(why: String) -> Self {
        Self::Faulty { why, when: Instant::now() }
    }

    fn file(&self) -> Option<&Arc<dyn SymbolFile>> {
        match self {
            Self::Loaded { file, .. } => Some(file),
            Self::Missing(_) | Self::Faulty { .. } | Self::Unasked(_) => None,
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Self::Loaded { .. } => None,
            Self::Missing(why) | Self::Faulty { why, .. } | Self::Unasked(why) => Some(why),
        }
    }

    /// Whether it is not worth looking again.
    fn holds(&self, network: bool) -> bool {
        match self {
            Self::Loaded { .. } | Self::Missing(_) => true,
            Self::Faulty { when, .. } => !network || when.elapsed() < ASK_AGAIN,
            Self::Unasked(_) => !network,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PathElement {
    pub location: String,
    pub state: PathState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    Ok,
    /// It does not exist.
    Error,
    /// Looked at when symbols are needed.
    Deferred,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSymbols {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("{0}")]
    Missing(String),
}

/// What is known of the session's modules.
pub struct Symbols {
    source: Box<dyn SymbolSource>,
    /// The kernel that the files below belong to; another base is another boot.
    kernel_base: u64,
    /// By base, size and checksum: an address may be used again by another module.
    files: HashMap<(u64, u32, u32), Load>,
    nt: Option<Load>,
    network: bool,
    ignore_mismatch: bool,
}

impl Symbols {
    pub fn new(source: Box<dyn SymbolSource>) -> Self {
        Self { source, kernel_base: 0, files: HashMap::new(), nt: None, network: true, ignore_mismatch: false }
    }

    pub fn source(&self) -> &dyn SymbolSource {
        self.source.as_ref()
    }

    pub fn set_path(&mut self, path: &str) -> Result<(), String> {
        self.source.set_path(path)?;
        self.forget();
        Ok(())
    }

    /// `.reload`: everything is looked up anew.
    pub fn forget(&mut self) {
        self.files.clear();
        self.nt = None;
    }

    /// One module is looked up anew.
    pub fn forget_one(&mut self, kernel: &dyn Kernel, driver: &Driver) {
        match driver.base == kernel.base() {
            true => self.nt = None,
            false => drop(self.files.remove(&(driver.base, driver.size, driver.checksum))),
        }
    }

    /// Runs `f` without asking a symbol server: what nobody asked for must not wait for one.
    pub fn offline<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        self.network = false;
        let result = f(self);
        self.network = true;
        result
    }

    /// Runs `f` with symbols of another build taken where there are no others (`.reload /i`).
    pub fn with_mismatched<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        self.ignore_mismatch = true;
        let result = f(self);
        self.ignore_mismatch = false;
        result
    }

    /// The kernel's own symbols; looked up once.
    pub fn nt(&mut self, kernel: &dyn Kernel) -> Result<Arc<dyn SymbolFile>, NoSymbols> {
        let base = kernel.base();
        if self.kernel_base != base {
            self.forget();
            self.kernel_base = base;
        }
        let nt = match self.nt.take().filter(|nt| nt.holds(self.network)) {
            Some(nt) => nt,
            None => self.load(kernel, base, "nt", "ntoskrnl.exe")?,
        };
        match self.nt.insert(nt) {
            Load::Loaded { file, .. } => Ok(file.clone()),
            Load::Missing(why) | Load::Faulty { why, .. } | Load::Unasked(why) => {
                Err(NoSymbols::Missing(format!("no symbols of nt: {why}")))
            }
        }
    }

    /// The symbols of one module; `None` when it has none. Looked up once.
    pub fn of(&mut self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        if driver.base == kernel.base() {
            return match self.nt(kernel) {
                Ok(file) => Ok(Some(file)),
                Err(NoSymbols::Fault(fault)) => Err(fault),
                Err(NoSymbols::Missing(_)) => Ok(None),
            };
        }
        let key = (driver.base, driver.size, driver.checksum);
        if !self.files.get(&key).is_some_and(|load| load.holds(self.network)) {
            let load = self.load(kernel, driver.base, &short_name(driver, kernel.base()), &driver.file)?;
            self.files.insert(key, load);
        }
        Ok(self.files.get(&key).and_then(Load::file).cloned())
    }

    /// The kernel's symbols if they were looked up already.
    pub fn known_nt(&self, kernel: &dyn Kernel) -> Option<Arc<dyn SymbolFile>> {
        self.nt.as_ref().filter(|_| self.kernel_base == kernel.base())?.file().cloned()
    }

    /// Whether a server may have the kernel's symbols, and was not asked yet.
    pub fn is_nt_unasked(&self) -> bool {
        matches!(self.nt, Some(Load::Unasked(_)))
    }

    fn known_load(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<&Load> {
        let load = match driver.base == kernel.base() {
            true if self.kernel_base != driver.base => None,
            true => self.nt.as_ref(),
            false => self.files.get(&(driver.base, driver.size, driver.checksum)),
        };
        load.filter(|load| !matches!(load, Load::Unasked(_)))
    }

    /// What is known without asking: `None` when the module was not looked at yet.
    pub fn known(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<Option<Arc<dyn SymbolFile>>> {
        self.known_load(kernel, driver).map(|load| load.file().cloned())
    }

    /// Why a module that was looked at has no symbols.
    pub fn why_missing(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<&str> {
        self.known_load(kernel, driver).and_then(Load::why)
    }

    /// Whether a module's symbols belong to another build of it.
    pub fn is_mismatched(&self, kernel: &dyn Kernel, driver: &Driver) -> bool {
        matches!(self.known_load(kernel, driver), Some(Load::Loaded { mismatched: true, .. }))
    }

    fn load(&self, kernel: &dyn Kernel, base: u64, name: &str, file: &str) -> Result<Load, Fault> {
        let (network, ignore_mismatch) = (self.network, self.ignore_mismatch);
        let load = self.source.find(&Request { memory: kernel.memory(), base, file, network, ignore_mismatch })?;
        let monitor = self.source.monitor();
        match &load {
            Load::Loaded { file: symbols, mismatched } => {
                let kind = match symbols.kind() {
                    SymbolKind::PublicPdb => "public symbols",
                    SymbolKind::PrivatePdb => "private symbols & lines",
                    SymbolKind::Exports => "export symbols",
                };
                let mismatched = if *mismatched { ", mismatched" } else { "" };
                let path = visible_name(&symbols.path().display().to_string());
                monitor.say(&format!("DBGHELP: {name} - {kind}{mismatched}\n         {path}"));
            }
            Load::Missing(why) | Load::Faulty { why, .. } => {
                let file = visible_name(file);
                monitor.say(&format!("*** ERROR: Module load completed but symbols could not be loaded for {file}"));
                tracing::info!(module = %file, %why, "no symbols");
            }
            Load::Unasked(_) => {}
        }
        Ok(load)
    }
}

/// kd's short name of a module: `nt` for the kernel, else the file name without its extension.
pub fn short_name(driver: &Driver, kernel_base: u64) -> String {
    if driver.base == kernel_base {
        return "nt".into();
    }
    let stem = driver.file.rsplit_once('.').map_or(driver.file.as_str(), |(stem, _)| stem);
    visible_name(stem).replace(|c: char| !c.is_alphanumeric() && c != '_', "_")
}

/// Names during one command: the target stands still, so everything is looked up once.
pub struct Names<'a> {
    kernel: &'a dyn Kernel,
    symbols: &'a mut Symbols,
    /// Ordered by base.
    drivers: Option<Drivers>,
    unloaded: Option<UnloadedDrivers>,
    names: HashMap<u64, Option<String>>,
}

/// An address in a module: where it is from the nearest name.
pub struct Near {
    pub module: String,
    pub base: u64,
    pub before: Option<nt_symbols::Symbol>,
    pub after: Option<nt_symbols::Symbol>,
}

impl<'a> Names<'a> {
    pub fn new(kernel: &'a dyn Kernel, symbols: &'a mut Symbols) -> Self {
        Self { kernel, symbols, drivers: None, unloaded: None, names: HashMap::new() }
    }

    fn width(&self) -> Width {
        self.kernel.width()
    }

    /// The loaded modules, ordered by base.
    pub fn drivers(&mut self) -> Result<&Drivers, Fault> {
        let drivers = match self.drivers.take() {
            Some(drivers) => drivers,
            None => {
                let mut drivers = self.kernel.drivers()?;
                drivers.drivers.sort_by_key(|driver| driver.base);
                drivers
            }
        };
        Ok(self.drivers.insert(drivers))
    }

    /// The module that holds `address`.
    pub fn driver_at(&mut self, address: u64) -> Result<Option<Driver>, Fault> {
        let width = self.width();
        let address = width.address(address);
        let drivers = &self.drivers()?.drivers;
        let inside =
            |driver: &&Driver| address.checked_sub(driver.base).is_some_and(|offset| offset < u64::from(driver.size));
        Ok(drivers.iter().find(inside).cloned())
    }

    /// The module with kd's short name (or file name) `name`, whatever its case.
    pub fn driver_named(&mut self, name: &str) -> Result<Option<Driver>, Fault> {
        let kernel_base = self.kernel.base();
        if name.eq_ignore_ascii_case("nt") {
            // The kernel's base is known without its module list.
            return Ok(Some(Driver { base: kernel_base, size: 0, file: "ntoskrnl.exe".into(), checksum: 0 }));
        }
        let drivers = &self.drivers()?.drivers;
        let named = |driver: &&Driver| {
            short_name(driver, kernel_base).eq_ignore_ascii_case(name) || driver.file.eq_ignore_ascii_case(name)
        };
        Ok(drivers.iter().find(named).cloned())
    }

    /// `nt!Foo`, `Foo` (in the kernel, then in modules whose symbols are loaded), or a module's name.
    pub fn address_of(&mut self, name: &str) -> Result<Option<u64>, NoSymbols> {
        let width = self.width();
        let place = |base: u64, rva: u32| width.address(base.wrapping_add(rva.into()));
        match name.split_once('!') {
            Some((module, symbol)) if !module.is_empty() => {
                let Some(driver) = self.driver_named(module)? else { return Ok(None) };
                let file = match driver.base == self.kernel.base() {
                    true => Some(self.symbols.nt(self.kernel)?),
                    false => self.symbols.of(self.kernel, &driver)?,
                };
                let file = file.ok_or_else(|| NoSymbols::Missing(format!("no symbols of {module}")))?;
                Ok(file.symbol(symbol).map(|symbol| place(driver.base, symbol.rva)))
            }
            split => {
                let symbol = split.map_or(name, |(_, symbol)| symbol);
                let nt = self.symbols.nt(self.kernel);
                if let Err(NoSymbols::Fault(fault)) = nt {
                    return Err(fault.into());
                }
                if let Some(symbol) = nt.as_ref().ok().and_then(|nt| nt.symbol(symbol)) {
                    return Ok(Some(place(self.kernel.base(), symbol.rva)));
                }
                for driver in self.drivers()?.drivers.clone() {
                    if let Some(Some(file)) = self.symbols.known(self.kernel, &driver)
                        && let Some(symbol) = file.symbol(symbol)
                    {
                        return Ok(Some(place(driver.base, symbol.rva)));
                    }
                }
                if let Some(driver) = self.driver_named(symbol)? {
                    return Ok(Some(driver.base));
                }
                nt.map(|_| None)
            }
        }
    }

    /// The names around `address`; `None` outside all modules.
    pub fn near(&mut self, address: u64) -> Result<Option<Near>, Fault> {
        let Some(driver) = self.driver_at(address)? else { return Ok(None) };
        let width = self.width();
        let rva = width.address(address).wrapping_sub(driver.base) as u32;
        let (before, after) = match self.symbols.of(self.kernel, &driver)? {
            Some(file) => file.around(rva),
            None => (None, None),
        };
        let module = short_name(&driver, self.kernel.base());
        Ok(Some(Near { module, base: driver.base, before, after }))
    }

    /// `nt!NtFlushKey+0x142`, `myfault+0x11f6`; `None` outside all modules.
    pub fn name(&mut self, address: u64) -> Result<Option<String>, Fault> {
        let address = self.width().address(address);
        if let Some(name) = self.names.get(&address) {
            return Ok(name.clone());
        }
        let near = self.near(address)?;
        let name = near.map(|near| describe(&near, address.wrapping_sub(near.base)));
        self.names.insert(address, name.clone());
        Ok(name)
    }

    /// As [`Names::name`], and for places in drivers that are gone `<Unloaded_myfault.sys>+0x11f6`, as kd has it.
    pub fn name_of_code(&mut self, address: u64) -> Result<Option<String>, Fault> {
        let width = self.width();
        let address = width.address(address);
        let name = self.name(address)?;
        if name.is_some() || !width.is_kernel(address) {
            return Ok(name);
        }
        let gone = self.with_unloaded(|kernel, unloaded| unloaded.at(kernel, address))?.flatten();
        let name = gone.map(|(file, image)| {
            let file = visible_name(&file);
            match address - image.start {
                0 => format!("<Unloaded_{file}>"),
                offset => format!("<Unloaded_{file}>+{offset:#x}"),
            }
        });
        self.names.insert(address, name.clone());
        Ok(name)
    }

    /// Where the module of this name lies, or lay when the kernel unloaded it.
    pub fn image_named(&mut self, name: &str) -> Result<Option<Range<u64>>, Fault> {
        if let Some(driver) = self.driver_named(name)? {
            // The kernel is known by its base alone.
            let listed = self.drivers()?.drivers.iter().find(|listed| listed.base == driver.base);
            let size = listed.map_or(driver.size, |listed| listed.size);
            return Ok(Some(driver.base..driver.base.saturating_add(size.into())));
        }
        let named = |file: &str| {
            let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
            file.eq_ignore_ascii_case(name) || stem.eq_ignore_ascii_case(name)
        };
        let image = self.with_unloaded(|kernel, unloaded| {
            for driver in &unloaded.drivers {
                match driver.name(kernel) {
                    Ok(file) if named(&file) => return Ok(Some(driver.image.clone())),
                    Ok(_) | Err(PoolError::Unlikely(_) | PoolError::Read(ReadError::Hole { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        })?;
        Ok(image.flatten())
    }

    /// What is missing from the lists of modules, of those that were looked at.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        let loaded = self.drivers.iter().flat_map(|drivers| &drivers.notes);
        loaded.chain(self.unloaded.iter().flat_map(|unloaded| &unloaded.notes))
    }

    /// Runs `f` on the kernel's list of unloaded drivers, which is read the first time. `None`: it cannot be known.
    fn with_unloaded<T>(
        &mut self,
        f: impl FnOnce(&nt_pool::Kernel<'_>, &mut UnloadedDrivers) -> Result<T, PoolError>,
    ) -> Result<Option<T>, Fault> {
        let nt = match self.symbols.nt(self.kernel) {
            Ok(nt) => nt,
            Err(NoSymbols::Fault(fault)) => return Err(fault),
            Err(NoSymbols::Missing(_)) => return Ok(None),
        };
        let kernel = self.kernel.pool(nt.as_ref());
        if self.unloaded.is_none() {
            self.unloaded = Some(match unloaded::drivers(&kernel) {
                Ok(unloaded) => unloaded,
                Err(error) => UnloadedDrivers { drivers: Vec::new(), notes: vec![no_fault(error)?] },
            });
        }
        let Some(unloaded) = &mut self.unloaded else { return Ok(None) };
        match f(&kernel, unloaded) {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                unloaded.notes.push(no_fault(error)?);
                Ok(None)
            }
        }
    }

    /// The symbols of a module, by the module's name.
    pub fn file(&mut self, driver: &Driver) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        self.symbols.of(self.kernel, driver)
    }
}

/// What to say of an error that leaves the rest of an answer as it is.
fn no_fault(error: PoolError) -> Result<String, Fault> {
    match error {
        PoolError::Fault(fault) | PoolError::Read(ReadError::Fault(fault)) => Err(fault),
        error => Ok(format!("unloaded drivers: {error}")),
    }
}

/// `module!symbol`; the name comes from a file that nobody vouches for.
pub fn qualified(module: &str, symbol: &nt_symbols::Symbol) -> String {
    format!("{module}!{}", visible_name(&symbol.name))
}

fn describe(near: &Near, rva: u64) -> String {
    let (name, offset) = match &near.before {
        Some(symbol) => (qualified(&near.module, symbol), rva.wrapping_sub(symbol.rva.into())),
        None => (near.module.clone(), rva),
    };
    match offset {
        0 => name,
        offset => format!("{name}+{offset:#x}"),
    }
}
