//! A mark's file.
//!
//! ```text
//! {"format":"kdpool leak mark","version":1,"sha256":"…of the text of body…","body":{…}}
//! ```

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::harvest::Position;
use crate::identity::Identity;
use crate::snapshot::Snapshot;
use crate::stack::Modules;

/// The pool as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub name: String,
    pub identity: Identity,
    /// Where the verifier's log stood; `None` when there was none.
    pub log: Option<Position>,
    /// For stacks that are seen later: reading the list again costs more than all the rest of a check.
    pub modules: Modules,
    pub snapshot: Snapshot,
}

#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error("cannot read the mark {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("cannot write the mark {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("{path} is no mark of kdpool: {why}")]
    NotAMark { path: String, why: String },
    #[error("the mark {path} is truncated: it ends in the middle")]
    Truncated { path: String },
    #[error("the mark {path} was written by a newer kdpool (format {version}, this one reads {VERSION})")]
    Newer { path: String, version: u64 },
    #[error("the mark {path} was changed or damaged since it was written: its checksum does not match")]
    Changed { path: String },
}

const FORMAT: &str = "kdpool leak mark";
const VERSION: u64 = 1;

/// No mark is larger: some million blocks.
const MAX_FILE: u64 = 1 << 29;

#[derive(Serialize)]
struct Written<'a> {
    format: &'a str,
    version: u64,
    sha256: String,
    body: &'a RawValue,
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Deserialize)]
struct Found<'a> {
    sha256: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

fn checksum(body: &str) -> String {
    Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Mark {
    pub fn to_json(&self) -> serde_json::Result<String> {
        let body = serde_json::value::to_raw_value(self)?;
        let written = Written { format: FORMAT, version: VERSION, sha256: checksum(body.get()), body: &body };
        Ok(serde_json::to_string(&written)? + "\n")
    }

    /// Writes beside the file first: a mark is whole or not there.
    pub fn save(&self, path: &Path) -> Result<(), MarkError> {
        let failed = |source| MarkError::Write { path: path.display().to_string(), source };
        let text = self.to_json().map_err(|error| failed(error.into()))?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        fs::write(&part, text).and_then(|()| fs::rename(&part, path)).map_err(|error| {
            // Nothing to be kept; the error says what went wrong.
            let _ = fs::remove_file(&part);
            failed(error)
        })
    }

    pub fn load(path: &Path) -> Result<Mark, MarkError> {
        let shown = path.display().to_string();
        let read = |source| MarkError::Read { path: shown.clone(), source };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(read)?;
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_FILE {
            return Err(MarkError::NotAMark { path: shown, why: format!("it has more than {MAX_FILE} bytes") });
        }
        Mark::from_json(&text, &shown)
    }

    fn from_json(text: &str, path: &str) -> Result<Mark, MarkError> {
        let bad = |error: serde_json::Error| match error.is_eof() {
            true => MarkError::Truncated { path: path.into() },
            false => MarkError::NotAMark { path: path.into(), why: error.to_string() },
        };
        let head: Head = serde_json::from_str(text).map_err(bad)?;
        if head.format != FORMAT {
            let why = format!("it says that it is a '{}'", head.format.escape_debug());
            return Err(MarkError::NotAMark { path: path.into(), why });
        }
        if head.version > VERSION {
            return Err(MarkError::Newer { path: path.into(), version: head.version });
        }
        let found: Found<'_> = serde_json::from_str(text).map_err(bad)?;
        if checksum(found.body.get()) != found.sha256 {
            return Err(MarkError::Changed { path: path.into() });
        }
        serde_json::from_str(found.body.get()).map_err(bad)
    }
}
