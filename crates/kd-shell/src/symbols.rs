//! Names for addresses and addresses for names, read when a command needs them and kept for the session.

mod later;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nt_memory::{Fault, ReadError};
use nt_pool::unloaded::{self, UnloadedDrivers};
use nt_pool::{Note, PoolError};
use nt_symbols::{ImageFile, PdbId, SymbolFile, SymbolKind};

pub(crate) use self::later::Later;
use crate::kernel::{Driver, Drivers, Kernel};
use crate::monitor::Monitor;
use crate::text::{Width, visible_name};

/// Where symbol files come from.
pub trait SymbolSource {
    /// The symbol path as the user wrote it.
    fn path(&self) -> &str;
    /// Sets the path to what of it is of use, and returns a line about each of the other elements. Nothing of use at all
    /// is an error, and changes nothing.
    fn set_path(&mut self, path: &str) -> Result<Vec<String>, String>;
    /// The path with its defaults filled in.
    fn expanded(&self) -> String;
    /// What each element of the path is good for.
    fn check(&self) -> Vec<PathElement>;
    /// The symbols of one loaded image.
    fn find(&self, request: &Request<'_>) -> Result<Load, Fault>;
    /// The names that an image exports, for one that has no symbols; `None` when there are none.
    fn exports(&self, _request: &Request<'_>) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        Ok(None)
    }
    /// The file of a loaded image, for what of it the target cannot read.
    fn image(&self, request: &Request<'_>) -> Result<Option<ImageFile>, Fault>;
    /// The symbols of an image that is not here, by what its header said.
    fn find_pdb(&self, name: &str, id: PdbId) -> Result<Load, Fault>;
    /// Who watches the searches.
    fn monitor(&self) -> &Monitor;
}

/// A module whose symbols are wanted.
pub struct Request<'a> {
    /// The kernel whose module it is.
    pub kernel: &'a dyn Kernel,
    /// The module.
    pub driver: &'a Driver,
    /// Whether servers may be asked.
    pub network: bool,
    /// Whether symbols of another build will do.
    pub ignore_mismatch: bool,
}

/// What became of a module's symbols.
#[derive(Clone)]
pub enum Load {
    /// There is a file.
    Loaded {
        /// What it says.
        file: Arc<dyn SymbolFile>,
        /// It belongs to another build of the module.
        mismatched: bool,
    },
    /// There is no symbol file, for this reason.
    Missing {
        /// As a sentence.
        why: String,
        /// When it is worth looking again.
        again: Again,
    },
}

/// When a symbol file that is missing is looked for again without `.reload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It will not be there later either.
    Never,
    /// A server had a fault then.
    Later(Instant),
    /// Not on this machine, and servers were not to be asked.
    WhenAsking,
}

/// When a server that had a fault is asked again without `.reload`.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// A module that was looked at.
struct Known {
    load: Load,
    /// The names that an image without a symbol file exports; looked for once.
    exports: Option<Option<Arc<dyn SymbolFile>>>,
}

impl Known {
    /// Whether it is not worth looking again.
    fn holds(&self, network: bool) -> bool {
        match &self.load {
            Load::Loaded { .. } | Load::Missing { again: Again::Never, .. } => true,
            Load::Missing { again: Again::Later(when), .. } => !network || when.elapsed() < ASK_AGAIN,
            Load::Missing { again: Again::WhenAsking, .. } => !network,
        }
    }

    fn is_unasked(&self) -> bool {
        matches!(self.load, Load::Missing { again: Again::WhenAsking, .. })
    }

    fn file(&self) -> Option<&Arc<dyn SymbolFile>> {
        match &self.load {
            Load::Loaded { file, .. } => Some(file),
            Load::Missing { .. } => self.exports.as_ref()?.as_ref(),
        }
    }

    fn why(&self) -> Option<&str> {
        match &self.load {
            Load::Loaded { .. } => None,
            Load::Missing { why, .. } => Some(why),
        }
    }
}

/// An element of the symbol path.
#[derive(Debug, Clone, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
pub struct PathElement {
    /// As it is written in the path.
    pub location: String,
    /// What it is good for.
    pub state: PathState,
}

/// Whether an element of the path is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// The folder or store exists.
    Ok,
    /// It does not exist.
    Error,
    /// Looked at when symbols are needed.
    Deferred,
}

/// Why a name or a type has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSymbols {
    /// The source of memory is gone, or Ctrl+C was pressed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// There is no symbol file; why, as a sentence.
    #[error("{0}")]
    Missing(String),
}

/// Base, size and checksum: an address may be used again by another module. The kernel is known by its base alone.
type Key = (u64, u32, u32);

fn key(kernel: &dyn Kernel, driver: &Driver) -> Key {
    match driver.base == kernel.base() {
        true => (driver.base, 0, 0),
        false => (driver.base, driver.size, driver.checksum),
    }
}

/// The kernel, without its module list.
fn nt(kernel: &dyn Kernel) -> Driver {
    Driver { base: kernel.base(), size: 0, file: "ntoskrnl.exe".into(), checksum: 0, timestamp: 0 }
}

/// What is known of the session's modules.
pub struct Symbols {
    source: Box<dyn SymbolSource>,
    /// The kernel that the files below belong to; another base is another boot.
    kernel_base: u64,
    modules: HashMap<Key, Known>,
    images: HashMap<Key, Option<Arc<ImageFile>>>,
    network: bool,
    ignore_mismatch: bool,
    /// Modules that are looked for when the target runs again; `None`: at once.
    later: Option<Vec<Later>>,
}

impl Symbols {
    /// Nothing is looked up before a command needs it.
    pub fn new(source: Box<dyn SymbolSource>) -> Self {
        let (modules, images) = (HashMap::new(), HashMap::new());
        Self { source, kernel_base: 0, modules, images, network: true, ignore_mismatch: false, later: None }
    }

    /// Where symbol files come from.
    pub fn source(&self) -> &dyn SymbolSource {
        self.source.as_ref()
    }

    /// Sets the path; all symbols are looked up anew. A line for each element of no use.
    pub fn set_path(&mut self, path: &str) -> Result<Vec<String>, String> {
        let refused = self.source.set_path(path)?;
        self.forget();
        Ok(refused)
    }

    /// Whether symbols of another build are taken where there are no others (`.symopt+ 40`).
    pub fn takes_mismatched(&self) -> bool {
        self.ignore_mismatch
    }

    /// Sets what [`Symbols::takes_mismatched`] says; all symbols are looked up anew.
    pub fn take_mismatched(&mut self, take: bool) {
        self.ignore_mismatch = take;
        self.forget();
    }

    /// Names are needed and there is no path: whoever sits there is asked, once. Whoever knows that they will be needed
    /// calls this before the target stands still for the answer.
    pub fn choose_path(&mut self) {
        if self.network && self.source.path().is_empty() && self.source.monitor().wants_server() {
            // Its one element is always of use.
            let _ = self.set_path("srv*");
        }
    }

    /// `.reload`: everything is looked up anew.
    pub fn forget(&mut self) {
        self.modules.clear();
        self.images.clear();
    }

    /// One module is looked up anew.
    pub fn forget_one(&mut self, kernel: &dyn Kernel, driver: &Driver) {
        self.modules.remove(&key(kernel, driver));
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
        let before = std::mem::replace(&mut self.ignore_mismatch, true);
        let result = f(self);
        self.ignore_mismatch = before;
        result
    }

    /// The kernel's own symbols; looked up once. What its image exports does not count: it holds no types.
    pub fn nt(&mut self, kernel: &dyn Kernel) -> Result<Arc<dyn SymbolFile>, NoSymbols> {
        match &self.look_up(kernel, &nt(kernel))?.load {
            Load::Loaded { file, .. } => Ok(file.clone()),
            Load::Missing { why, .. } => Err(NoSymbols::Missing(format!("no symbols of nt: {why}"))),
        }
    }

    /// The symbols of one module, or what its image exports; `None` when it has neither. Looked up once.
    pub fn of(&mut self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        let known = self.look_up(kernel, driver)?;
        if known.file().is_none() && known.exports.is_none() && !known.is_unasked() {
            let exports = self.load_exports(kernel, driver)?;
            self.look_up(kernel, driver)?.exports = Some(exports.clone());
            return Ok(exports);
        }
        Ok(known.file().cloned())
    }

    fn look_up(&mut self, kernel: &dyn Kernel, driver: &Driver) -> Result<&mut Known, Fault> {
        self.choose_path();
        let base = kernel.base();
        if self.kernel_base != base {
            self.forget();
            self.kernel_base = base;
        }
        let key = key(kernel, driver);
        let known = match self.modules.remove(&key).filter(|known| known.holds(self.network)) {
            Some(known) => known,
            None => self.load(kernel, driver)?,
        };
        Ok(self.modules.entry(key).insert_entry(known).into_mut())
    }

    /// The file of a loaded image, from the symbol path. Looked up once.
    pub fn image(&mut self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Arc<ImageFile>>, Fault> {
        let key = key(kernel, driver);
        if let Some(image) = self.images.get(&key) {
            return Ok(image.clone());
        }
        let image = self.source.image(&self.request(kernel, driver))?.map(Arc::new);
        self.images.insert(key, image.clone());
        Ok(image)
    }

    /// As [`Symbols::image`], of what this machine has.
    pub fn image_here(&mut self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Arc<ImageFile>>, Fault> {
        let key = key(kernel, driver);
        if let Some(Some(image)) = self.images.get(&key) {
            return Ok(Some(image.clone()));
        }
        let request = Request { network: false, ..self.request(kernel, driver) };
        let image = self.source.image(&request)?.map(Arc::new);
        if image.is_some() {
            self.images.insert(key, image.clone());
        }
        Ok(image)
    }

    /// The kernel's symbols if they were looked up already.
    pub fn known_nt(&self, kernel: &dyn Kernel) -> Option<Arc<dyn SymbolFile>> {
        match &self.known_load(kernel, &nt(kernel))?.load {
            Load::Loaded { file, .. } => Some(file.clone()),
            Load::Missing { .. } => None,
        }
    }

    /// Whether a server may have the kernel's symbols, and was not asked yet.
    pub fn is_nt_unasked(&self, kernel: &dyn Kernel) -> bool {
        self.modules.get(&key(kernel, &nt(kernel))).is_some_and(Known::is_unasked)
    }

    fn known_load(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<&Known> {
        let known = self.modules.get(&key(kernel, driver)).filter(|_| self.kernel_base == kernel.base());
        known.filter(|known| !known.is_unasked())
    }

    /// What is known without asking: `None` when the module was not looked at yet.
    pub fn known(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<Option<Arc<dyn SymbolFile>>> {
        self.known_load(kernel, driver).map(|known| known.file().cloned())
    }

    /// Why a module that was looked at has no symbols; it may have exports.
    pub fn why_missing(&self, kernel: &dyn Kernel, driver: &Driver) -> Option<&str> {
        self.known_load(kernel, driver).and_then(Known::why)
    }

    /// Whether a module's symbols belong to another build of it.
    pub fn is_mismatched(&self, kernel: &dyn Kernel, driver: &Driver) -> bool {
        self.known_load(kernel, driver).is_some_and(|known| matches!(known.load, Load::Loaded { mismatched: true, .. }))
    }

    fn request<'r>(&self, kernel: &'r dyn Kernel, driver: &'r Driver) -> Request<'r> {
        let (network, ignore_mismatch) = (self.network, self.ignore_mismatch);
        Request { kernel, driver, network, ignore_mismatch }
    }

    fn load(&self, kernel: &dyn Kernel, driver: &Driver) -> Result<Known, Fault> {
        let load = self.source.find(&self.request(kernel, driver))?;
        self.say_load(&short_name(driver, kernel.base()), driver, &load);
        Ok(Known { load, exports: None })
    }

    fn say_load(&self, name: &str, driver: &Driver, load: &Load) {
        match load {
            Load::Loaded { file, mismatched } => self.say_loaded(name, file.as_ref(), *mismatched),
            Load::Missing { why, .. } => tracing::info!(module = %visible_name(&driver.file), %why, "no symbols"),
        }
    }

    fn load_exports(&self, kernel: &dyn Kernel, driver: &Driver) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        let exports = self.source.exports(&self.request(kernel, driver))?;
        self.source.monitor().say(&not_loaded(&driver.file, exports.is_some()));
        if let Some(exports) = &exports {
            self.say_loaded(&short_name(driver, kernel.base()), exports.as_ref(), false);
        }
        Ok(exports)
    }

    fn say_loaded(&self, name: &str, file: &dyn SymbolFile, mismatched: bool) {
        let kind = match file.kind() {
            SymbolKind::PublicPdb => "public symbols",
            SymbolKind::PrivatePdb => "private symbols & lines",
            SymbolKind::Exports => "export symbols",
        };
        let mismatched = if mismatched { ", mismatched" } else { "" };
        let path = visible_name(&file.path().display().to_string());
        self.source.monitor().say(&format!("DBGHELP: {name} - {kind}{mismatched}\n         {path}"));
    }
}

/// kd's line about a module without a symbol file.
pub(crate) fn not_loaded(file: &str, has_exports: bool) -> String {
    let file = visible_name(file);
    match has_exports {
        true => format!("*** ERROR: Symbol file could not be found.  Defaulted to export symbols for {file} -"),
        false => format!("*** ERROR: Module load completed but symbols could not be loaded for {file}"),
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
    /// kd's short name.
    pub module: String,
    /// Where its image lies.
    pub base: u64,
    /// The symbol at the address, or the nearest below.
    pub before: Option<nt_symbols::Symbol>,
    /// The nearest above.
    pub after: Option<nt_symbols::Symbol>,
}

impl<'a> Names<'a> {
    /// Of one target; what is looked up is kept in `symbols`.
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
            return Ok(Some(nt(self.kernel)));
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
                let file = self.symbols.of(self.kernel, &driver)?;
                let found = file.as_ref().and_then(|file| file.symbol(symbol));
                if found.is_none() && file.is_none_or(|file| file.kind() == SymbolKind::Exports) {
                    return Err(self.missing(&driver));
                }
                Ok(found.map(|symbol| place(driver.base, symbol.rva)))
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
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        let loaded = self.drivers.iter().flat_map(|drivers| drivers.notes.iter());
        loaded.chain(self.unloaded.iter().flat_map(|unloaded| unloaded.notes.iter()))
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
                Err(error) => UnloadedDrivers { drivers: Vec::new(), notes: vec![no_fault(error)?].into() },
            });
        }
        let Some(unloaded) = &mut self.unloaded else { return Ok(None) };
        match f(&kernel, unloaded) {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                unloaded.notes.missing(no_fault(error)?);
                Ok(None)
            }
        }
    }

    /// The file of a loaded image.
    pub fn image(&mut self, driver: &Driver) -> Result<Option<Arc<ImageFile>>, Fault> {
        self.symbols.image(self.kernel, driver)
    }

    /// The file of a module's image, if this machine has it: no server is asked while the target stands.
    pub fn image_here(&mut self, driver: &Driver) -> Result<Option<Arc<ImageFile>>, Fault> {
        self.symbols.image_here(self.kernel, driver)
    }

    /// The symbols of a module, or what it exports.
    pub fn file(&mut self, driver: &Driver) -> Result<Arc<dyn SymbolFile>, NoSymbols> {
        self.symbols.of(self.kernel, driver)?.ok_or_else(|| self.missing(driver))
    }

    /// Why a module that was looked at has no symbols.
    pub fn missing(&self, driver: &Driver) -> NoSymbols {
        let module = short_name(driver, self.kernel.base());
        let why = self.symbols.why_missing(self.kernel, driver).unwrap_or("they were not looked for");
        NoSymbols::Missing(format!("no symbols of {module}: {why}"))
    }
}

/// What to say of an error that leaves the rest of an answer as it is.
fn no_fault(error: PoolError) -> Result<String, Fault> {
    Ok(format!("unloaded drivers: {}", error.local()?))
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
    with_offset(name, offset)
}

/// `NtFlushKey+0x142`; without an offset the name alone.
pub(crate) fn with_offset(name: String, offset: u64) -> String {
    match offset {
        0 => name,
        offset => format!("{name}+{offset:#x}"),
    }
}
