//! What a session changed in a target and could not put back: it is noted in a file first, and the next session that
//! comes to the same kernel puts it back.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs, io};

use nt_memory::{Fault, ReadError};
use serde::{Deserialize, Serialize};

use crate::error::CommandError;
use crate::kernel::Kernel;

/// A change of four bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leftover {
    /// Where the kernel lies; with the time stamp of its image it tells one kernel from others.
    pub(crate) base: u64,
    pub(crate) timestamp: u32,
    /// What is changed, for people.
    pub(crate) what: String,
    pub(crate) address: u64,
    pub(crate) ours: u32,
    pub(crate) old: u32,
}

const PREFIX: &str = "changed-";

/// Machines are restarted now and then, and nothing is left of a change.
const FORGOTTEN: Duration = Duration::from_secs(60 * 24 * 3600);

/// Where notes and marks are kept: `KDPOOL_STATE`, else where this system keeps the state of programs.
pub fn state_folder() -> Option<PathBuf> {
    let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("KDPOOL_STATE")
        .or_else(|| of("XDG_STATE_HOME").map(|home| home.join("kdpool")))
        .or_else(|| of("LOCALAPPDATA").map(|home| home.join("kdpool")))
        .or_else(|| of("HOME").map(|home| home.join(".local/state/kdpool")))
}

/// A note on disk.
pub(crate) struct Note(PathBuf);

impl Note {
    pub(crate) fn write(leftover: &Leftover) -> io::Result<Note> {
        let directory = state_folder().ok_or_else(|| io::Error::other("no directory for it; set KDPOOL_STATE"))?;
        nt_leaks::create_private_folder(&directory)?;
        let path = directory.join(format!("{PREFIX}{:x}-{}.json", leftover.base, std::process::id()));
        nt_leaks::write_private(&path, serde_json::to_string(leftover)?)?;
        Ok(Note(path))
    }

    /// The change is undone.
    pub(crate) fn remove(self) {
        // One that stays is found to be undone by the next session.
        let _ = fs::remove_file(self.0);
    }
}

/// The time stamp of the kernel's image.
pub(crate) fn timestamp(kernel: &dyn Kernel) -> Result<u32, Fault> {
    match nt_symbols::Image::read(kernel.memory(), kernel.base()) {
        Ok(image) => Ok(image.time_date_stamp),
        Err(nt_symbols::ImageError::Fault(fault)) => Err(fault),
        Err(_) => Ok(0),
    }
}

/// Undoes what earlier sessions left changed in this kernel; one line for each. Without notes nothing is asked.
pub(crate) fn undo(kernel: &dyn Kernel) -> Result<Vec<String>, CommandError> {
    let Some(directory) = state_folder() else { return Ok(Vec::new()) };
    undo_in(&directory, kernel)
}

fn undo_in(directory: &Path, kernel: &dyn Kernel) -> Result<Vec<String>, CommandError> {
    let mut told = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let found = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Leftover>(&text).ok());
        let Some(found) = found.filter(|found| found.base == kernel.base()) else { continue };
        if found.timestamp != timestamp(kernel)? {
            continue;
        }
        let value = match kernel.memory().read_u32(found.address) {
            Ok(value) => value,
            Err(ReadError::Fault(fault)) => return Err(fault.into()),
            Err(_) => continue,
        };
        if value == found.ours {
            kernel.write(found.address, &found.old.to_le_bytes())?;
            told.push(format!(
                "An earlier session had set {} to {:#x} and could not put it back: it is {:#x} again.",
                found.what, found.ours, found.old
            ));
            let _ = fs::remove_file(&path);
        } else if old(&path) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(told)
}

fn old(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    written.elapsed().is_ok_and(|age| age > FORGOTTEN)
}
