//! Symbol files along the user's symbol path.

use std::sync::Arc;

use nt_memory::Memory;
use nt_symbols::{Element, ImageError, SymbolFile, SymbolPath};

use crate::symbols::{NoSymbols, PathElement, PathState, SymbolSource};

/// The image's RSDS record leads to its PDB.
#[derive(Debug, Default)]
pub struct PathSource {
    path: SymbolPath,
    text: String,
}

impl PathSource {
    pub fn new(path: &str) -> Result<Self, String> {
        let path = SymbolPath::parse(path).map_err(|error| error.to_string())?;
        Ok(Self { text: path.to_string(), path })
    }
}

impl SymbolSource for PathSource {
    fn path(&self) -> &str {
        &self.text
    }

    fn set_path(&mut self, path: &str) -> Result<(), String> {
        *self = Self::new(path)?;
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

    fn find(&self, memory: &dyn Memory, base: u64) -> Result<Arc<dyn SymbolFile>, NoSymbols> {
        if self.path.is_empty() {
            let why = "the symbol path is empty; set it with -y, _NT_SYMBOL_PATH or .sympath";
            return Err(NoSymbols::Missing(why.into()));
        }
        let image = nt_symbols::rsds(memory, base).map_err(|error| match error {
            ImageError::Fault(fault) => NoSymbols::Fault(fault),
            error => NoSymbols::Missing(error.to_string()),
        })?;
        let found = self.path.find_pdb(&image).map_err(|missing| NoSymbols::Missing(missing.to_string()))?;
        Ok(found.file)
    }
}
