//! A mark's file.
//!
//! ```text
//! {"format":"kdpool leak mark","version":2,"sha256":"…of the text of body…","body":{…}}
//! ```

use std::fs;
use std::io;
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
    /// As the user called it.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub name: String,
    /// Of which kernel, and which boot.
    pub identity: Identity,
    /// Where the verifier's log stood; `None` when there was none.
    pub log: Option<Position>,
    /// For stacks that are seen later: reading the list again costs more than all the rest of a check.
    pub modules: Modules,
    /// What was there.
    pub snapshot: Snapshot,
}

/// Why a mark's or a report's file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The system does not give the file.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system does not take the file.
    #[error("cannot write the mark {path}: {source}")]
    Write {
        /// Which file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no mark of kdpool: {why}")]
    NotAMark {
        /// Which file.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// It is something else, where a report would have done as well.
    #[error(
        "{path} is neither a mark of kdpool nor a report: {why}; marks are what !leak mark saves, reports what -json \
         writes for a check or a watch, or --format json prints"
    )]
    Neither {
        /// Which file.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// It ends in the middle.
    #[error("{path} is truncated: it ends in the middle; copy it again")]
    Truncated {
        /// Which file.
        path: String,
    },
    /// A later format.
    #[error(
        "the mark {path} was written by a newer kdpool (format {version}, this one reads up to {VERSION}): read it with \
         that one"
    )]
    Newer {
        /// Which file.
        path: String,
        /// Its format's number.
        version: u64,
    },
    /// Its contents do not have its checksum.
    #[error(
        "the mark {path} was changed or damaged since it was written: its checksum does not match; copy it again, or take \
         a new mark"
    )]
    Changed {
        /// Which file.
        path: String,
    },
}

const FORMAT: &str = "kdpool leak mark";
/// 2: small blocks, what blocks look like, where stacks are from, and what ties modules to their symbols.
const VERSION: u64 = 2;

/// No mark is larger: some million blocks.
const MAX_FILE: usize = 1 << 29;

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

/// A file's text, if it is not too large to be one of ours.
pub(crate) fn read(path: &Path) -> Result<String, MarkError> {
    let shown = path.display().to_string();
    let failed = |source| MarkError::Read { path: shown.clone(), source };
    let bytes = fs::File::open(path).and_then(|file| heap_limit::read_whole(file, MAX_FILE)).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))
}

impl Mark {
    /// As its file holds it, checksum included.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let body = serde_json::value::to_raw_value(self)?;
        let written = Written { format: FORMAT, version: VERSION, sha256: checksum(body.get()), body: &body };
        Ok(serde_json::to_string(&written)? + "\n")
    }

    /// Writes its file: a mark is whole or not there.
    pub fn save(&self, path: &Path) -> Result<(), MarkError> {
        let failed = |source| MarkError::Write { path: path.display().to_string(), source };
        let text = self.to_json().map_err(|error| failed(error.into()))?;
        crate::write_private(path, text).map_err(failed)
    }

    /// Reads what [`Mark::to_json`] made; nothing of it is trusted.
    pub fn load(path: &Path) -> Result<Mark, MarkError> {
        Mark::from_json(&read(path)?, &path.display().to_string())
    }

    pub(crate) fn from_json(text: &str, path: &str) -> Result<Mark, MarkError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Times;
    use crate::snapshot::{Block, Counters, Scope, Source};
    use crate::stack::Frame;

    fn mark() -> Mark {
        let mut snapshot = Snapshot::empty(Scope { tag: Some(0x6b61654c), paged: Some(true) }, Times::default());
        snapshot.counter_bits = Some(32);
        snapshot.counters.insert(0x6b61654c, Counters { allocs: 1, frees: 0, bytes: 0xfa000 });
        let frame = Frame { address: 0xfffff880042881f6, module: Some("myfault".into()), offset: 0x11f6, symbol: None };
        let stack = Some(snapshot.stacks.add(vec![frame]));
        let source = Source::Tracked("myfault.sys".into());
        let block = Block::new(0xfffff8a005800000, 0xfa000, nt_pool::Tag(*b"Leak"), Some(true), source);
        snapshot.blocks.push(Block { allocation: Some(7), stack, ..block });
        Mark {
            name: "m1".into(),
            identity: Identity {
                build: 7601,
                pointer_size: 8,
                pdb: Some("39E74133576439CBCDF7E0229DA37731".into()),
                pdb_at: Some(0x6f00),
                image: Some((1, 2)),
                base: 0xfffff80001418000,
                boot_time: Some(132_234_768_000_000_000),
                boot_id: None,
            },
            log: Some(Position { index: u32::MAX, length: 0x10000, anchor: Some("00".into()) }),
            modules: Modules::default(),
            snapshot,
        }
    }

    #[test]
    fn a_mark_comes_back_as_it_was() {
        let text = mark().to_json().unwrap();
        assert_eq!(Mark::from_json(&text, "m").unwrap(), mark());
        assert!(text.starts_with(r#"{"format":"kdpool leak mark","version":2,"sha256":""#), "{text}");
    }

    #[test]
    fn a_mark_that_ends_early_is_truncated() {
        let text = mark().to_json().unwrap();
        for length in 0..text.len() - 1 {
            let error = Mark::from_json(&text[..length], "m").unwrap_err();
            assert!(matches!(error, MarkError::Truncated { .. }), "{length}: {error}");
        }
    }

    /// Whatever byte is changed, nothing is read wrong in silence.
    #[test]
    fn a_mark_that_was_changed_is_refused() {
        let text = mark().to_json().unwrap();
        let body = text.find("\"body\"").unwrap() + "\"body\":".len();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            match Mark::from_json(&changed, "m") {
                Ok(read) => assert!(at < body && read == mark(), "{at}"),
                Err(MarkError::Changed { .. } | MarkError::NotAMark { .. } | MarkError::Newer { .. }) => {}
                Err(MarkError::Truncated { .. }) => assert!(changed != text),
                Err(error) => panic!("{at}: {error}"),
            }
        }
        let newer = text.replacen("\"version\":2", "\"version\":99", 1);
        let error = Mark::from_json(&newer, "m").unwrap_err().to_string();
        assert!(error.contains("newer kdpool (format 99"), "{error}");
        // A newer version's other members are not looked at.
        let error = Mark::from_json(r#"{"format":"kdpool leak mark","version":3}"#, "m").unwrap_err();
        assert!(matches!(error, MarkError::Newer { .. }));
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.json");
        mark().save(&path).unwrap();
        assert_eq!(Mark::load(&path).unwrap(), mark());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = directory.path().join("none").join("m.json");
        assert!(matches!(mark().save(&nowhere), Err(MarkError::Write { .. })));
        assert!(matches!(Mark::load(&nowhere), Err(MarkError::Read { .. })));
    }
}
