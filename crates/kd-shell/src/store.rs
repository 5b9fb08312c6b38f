//! Symbol files along the user's symbol path.

use nt_memory::Fault;
use nt_symbols::{Element, Http, Image, ImageError, ImageFile, ImageIdentity, NotFound, Reach, Servers, SymbolPath};

use crate::monitor::Monitor;
use crate::symbols::{Load, PathElement, PathState, Request, SymbolSource};

/// The image's RSDS record leads to its PDB. When the image is paged out its file is looked for first.
pub struct PathSource {
    path: SymbolPath,
    text: String,
    servers: Servers,
    monitor: Monitor,
}

impl PathSource {
    pub fn new(path: &str) -> Result<Self, String> {
        let path = SymbolPath::parse(path).map_err(|error| error.to_string())?;
        let servers = Servers::new(Http::default());
        Ok(Self { text: path.to_string(), path, servers, monitor: Monitor::default() })
    }

    /// Somebody watches the searches.
    pub fn watched(self, monitor: Monitor) -> Self {
        Self { monitor, ..self }
    }

    fn search(&self, request: &Request<'_>) -> Result<Load, Fault> {
        let reach = Reach {
            servers: request.network.then_some(&self.servers),
            observer: &self.monitor,
            ignore_mismatch: request.ignore_mismatch,
        };
        let image = match nt_symbols::rsds(request.memory, request.base) {
            Ok(image) => image,
            Err(ImageError::Fault(fault)) => return Err(fault),
            Err(error @ ImageError::Unreadable { .. }) => match self.read_file(request, &reach)? {
                Some(Ok(image)) => image,
                Some(Err(missing)) => return Ok(miss(&missing, format!("{error}; {missing}"))),
                None => return Ok(Load::Missing(error.to_string())),
            },
            Err(error) => return Ok(Load::Missing(error.to_string())),
        };
        Ok(match self.path.find_pdb(&image, &reach) {
            Ok(found) => Load::Loaded { file: found.file, mismatched: found.mismatched },
            Err(missing) => miss(&missing, missing.to_string()),
        })
    }

    /// What the image's file says; `None` when the image's headers are unreadable too, so that nobody knows which file.
    fn read_file(
        &self,
        request: &Request<'_>,
        reach: &Reach<'_>,
    ) -> Result<Option<Result<ImageIdentity, NotFound>>, Fault> {
        let image = match Image::read(request.memory, request.base) {
            Ok(image) => image,
            Err(ImageError::Fault(fault)) => return Err(fault),
            Err(_) => return Ok(None),
        };
        let found = match self.path.find_image(request.file, image.key(), reach) {
            Ok(found) => found,
            Err(missing) => return Ok(Some(Err(missing))),
        };
        let file = ImageFile::open(found.file, request.base).ok();
        Ok(file.and_then(|file| file.image().clone().pdb(&file).ok()).map(Ok))
    }
}

fn miss(missing: &NotFound, why: String) -> Load {
    match () {
        () if missing.is_unasked() => Load::Unasked(why),
        () if missing.may_pass() => Load::faulty(why),
        () => Load::Missing(why),
    }
}

impl SymbolSource for PathSource {
    fn path(&self) -> &str {
        &self.text
    }

    fn set_path(&mut self, path: &str) -> Result<(), String> {
        self.path = SymbolPath::parse(path).map_err(|error| error.to_string())?;
        self.text = self.path.to_string();
        // What was wrong with the servers may have been the reason to change the path.
        self.servers = Servers::new(Http::default());
        Ok(())
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
            let why = "the symbol path is empty; set it with -y, _NT_SYMBOL_PATH or .sympath";
            return Ok(Load::Missing(why.into()));
        }
        self.monitor.search_begins();
        let load = self.search(request);
        // A Ctrl+C that came too late for the search still ends the command.
        match self.monitor.search_ends() {
            true => Err(Fault::Cancelled),
            false => load,
        }
    }

    fn monitor(&self) -> &Monitor {
        &self.monitor
    }
}
