//! Symbol files along the user's symbol path.

use std::sync::Arc;
use std::time::Instant;

use nt_memory::Fault;
use nt_symbols::{
    Element, Exports, Http, Image, ImageError, ImageFile, ImageKey, NotFound, PdbId, Reach, Servers, SymbolFile,
    SymbolPath,
};

use crate::monitor::Monitor;
use crate::symbols::{Again, Load, PathElement, PathState, Request, SymbolSource};

/// What to do about it, to the letter.
fn empty_path(network: bool) -> Load {
    let kept = nt_symbols::default_store().map_or_else(String::new, |store| format!(", kept in {}", store.display()));
    let why = format!(
        "no symbol path is set; -y 'srv*' on the command line (or .symfix) takes them from Microsoft's server{kept}"
    );
    // Whoever needs them may be asked for a path.
    Load::Missing { why, again: if network { Again::Never } else { Again::WhenAsking } }
}

/// The image's RSDS record leads to its PDB. When the image is paged out its file is looked for first.
pub struct PathSource {
    path: SymbolPath,
    text: String,
    servers: Servers,
    monitor: Monitor,
}

impl PathSource {
    /// A path of which every element is of use.
    pub fn new(path: &str) -> Result<Self, String> {
        let (source, refused) = Self::read(path);
        refused.into_iter().next().map_or(Ok(source), Err)
    }

    /// What of the path is of use; a line about each of the other elements.
    pub fn read(path: &str) -> (Self, Vec<String>) {
        let (path, refused) = SymbolPath::read(path);
        let servers = Servers::new(Http::default());
        let source = Self { text: path.to_string(), path, servers, monitor: Monitor::default() };
        (source, refused.iter().map(ToString::to_string).collect())
    }

    /// Somebody watches the searches.
    pub fn watched(self, monitor: Monitor) -> Self {
        Self { monitor, ..self }
    }

    fn reach(&self, request: &Request<'_>) -> Reach<'_> {
        Reach {
            servers: request.network.then_some(&self.servers),
            observer: &self.monitor,
            ignore_mismatch: request.ignore_mismatch,
        }
    }

    fn search(&self, request: &Request<'_>) -> Result<Load, Fault> {
        let reach = self.reach(request);
        let image = match nt_symbols::rsds(request.kernel.memory(), request.driver.base) {
            Ok(image) => image,
            Err(ImageError::Fault(fault)) => return Err(fault),
            Err(error @ ImageError::Unreadable { .. }) => match self.open_image(request, &reach)? {
                Some(Ok(file)) => match file.image().clone().pdb(&file) {
                    Ok(image) => image,
                    Err(_) => return Ok(never(error.to_string())),
                },
                Some(Err(missing)) => return Ok(miss(&missing, format!("{error}; {missing}"))),
                None => return Ok(never(error.to_string())),
            },
            Err(error) => return Ok(never(error.to_string())),
        };
        Ok(match self.path.find_pdb(&image, &reach) {
            Ok(found) => Load::Loaded { file: found.file, mismatched: found.mismatched },
            Err(missing) => miss(&missing, told(&missing)),
        })
    }

    /// The image's file; `None` when nobody knows which file it is.
    fn open_image(
        &self,
        request: &Request<'_>,
        reach: &Reach<'_>,
    ) -> Result<Option<Result<ImageFile, NotFound>>, Fault> {
        let driver = request.driver;
        let Some(key) = image_key(request)? else { return Ok(None) };
        let found = self.path.find_image(&driver.file, key, reach);
        Ok(Some(found.map(|found| found.file.loaded_at(driver.base))))
    }

    /// Runs a search that Ctrl+C ends.
    fn watch<T>(&self, search: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        self.monitor.search_begins();
        let found = search();
        // A Ctrl+C that came too late for the search still ends the command.
        match self.monitor.search_ends() {
            true => Err(Fault::Cancelled),
            false => found,
        }
    }

    /// The image's file, if this machine has it.
    fn local_file(&self, request: &Request<'_>) -> Result<Option<ImageFile>, Fault> {
        let reach = Reach { observer: &self.monitor, ..Reach::default() };
        Ok(self.open_image(request, &reach)?.and_then(Result::ok))
    }
}

/// What the image's file is called in a store: from its headers, or, when they are paged out, from the module list.
fn image_key(request: &Request<'_>) -> Result<Option<ImageKey>, Fault> {
    let base = request.driver.base;
    match Image::read(request.kernel.memory(), base) {
        Ok(image) => return Ok(Some(image.key())),
        Err(ImageError::Fault(fault)) => return Err(fault),
        Err(ImageError::Unreadable { .. }) => {}
        Err(_) => return Ok(None),
    }
    let listed = request.kernel.drivers()?.drivers.into_iter().find(|driver| driver.base == base);
    let key = listed.map(|driver| ImageKey { time_date_stamp: driver.timestamp, size_of_image: driver.size });
    Ok(key.filter(|key| key.time_date_stamp != 0))
}

/// Why, and what helps at a prompt.
fn told(missing: &NotFound) -> String {
    let advice = match missing {
        missing if missing.has_no_path() => "; set it with -y, _NT_SYMBOL_PATH or .sympath",
        missing if missing.is_untried() => "; .sympath or .symfix tries it again",
        _ => "",
    };
    format!("{missing}{advice}")
}

fn miss(missing: &NotFound, why: String) -> Load {
    let again = match () {
        () if missing.is_unasked() => Again::WhenAsking,
        () if missing.may_pass() => Again::Later(Instant::now()),
        () => Again::Never,
    };
    Load::Missing { why, again }
}

fn never(why: String) -> Load {
    Load::Missing { why, again: Again::Never }
}

impl SymbolSource for PathSource {
    fn path(&self) -> &str {
        &self.text
    }

    fn set_path(&mut self, text: &str) -> Result<Vec<String>, String> {
        let (path, refused) = SymbolPath::read(text);
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        if path.is_empty() && !refused.is_empty() {
            return Err(refused.join("; "));
        }
        self.text = path.to_string();
        self.path = path;
        // What was wrong with the servers may have been the reason to change the path.
        self.servers = Servers::new(Http::default());
        Ok(refused)
    }

    fn expanded(&self) -> String {
        self.path.expanded()
    }

    fn check(&self) -> Vec<PathElement> {
        let locations = self.text.split(';').filter(|part| !part.is_empty());
        let state = |element: &Element| match element {
            Element::Directory(directory) if directory.is_dir() => PathState::Ok,
            Element::Directory(_) => PathState::Error,
            Element::Cache(_) | Element::Server { .. } => PathState::Deferred,
        };
        let elements = self.path.elements().iter().map(state);
        locations.zip(elements).map(|(location, state)| PathElement { location: location.into(), state }).collect()
    }

    fn find(&self, request: &Request<'_>) -> Result<Load, Fault> {
        if self.path.is_empty() {
            return Ok(empty_path(request.network));
        }
        self.watch(|| self.search(request))
    }

    fn find_pdb(&self, name: &str, id: PdbId) -> Result<Load, Fault> {
        if self.path.is_empty() {
            return Ok(empty_path(true));
        }
        let reach = Reach { servers: Some(&self.servers), observer: &self.monitor, ignore_mismatch: false };
        self.watch(|| {
            Ok(match self.path.find(name, id, &reach) {
                Ok(found) => Load::Loaded { file: found.file, mismatched: found.mismatched },
                Err(missing) => miss(&missing, told(&missing)),
            })
        })
    }

    fn image(&self, request: &Request<'_>) -> Result<Option<ImageFile>, Fault> {
        if self.path.is_empty() {
            return Ok(None);
        }
        let image = self.watch(|| self.open_image(request, &self.reach(request)))?;
        Ok(image.and_then(Result::ok))
    }

    /// From the image's file if this machine has it, else from the target's memory: that costs as many requests as the
    /// directory has kilobytes.
    fn exports(&self, request: &Request<'_>) -> Result<Option<Arc<dyn SymbolFile>>, Fault> {
        let exports = match self.local_file(request)? {
            Some(file) => Exports::read(&file, file.image(), file.path()),
            None => Image::read(request.kernel.memory(), request.driver.base)
                .and_then(|image| Exports::read(request.kernel.memory(), &image, &request.driver.file)),
        };
        let exports = match exports {
            Ok(exports) => exports,
            Err(ImageError::Fault(fault)) => return Err(fault),
            Err(error) => {
                tracing::info!(%error, "no exports");
                return Ok(None);
            }
        };
        Ok((!exports.is_empty()).then(|| Arc::new(exports) as Arc<dyn SymbolFile>))
    }

    fn monitor(&self) -> &Monitor {
        &self.monitor
    }
}
