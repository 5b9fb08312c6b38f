//! The log file: all that is shown, and what was typed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A handle to the session's log; whoever prints has one.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Option<Open>>>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Starts a log, in place of one that is open.
    pub fn open(&self, path: &Path, append: bool) -> io::Result<()> {
        let file = nt_leaks::open_private(path, append)?;
        *self.lock() = Some(Open { path: path.into(), file });
        Ok(())
    }

    /// Returns the file that was open.
    pub fn close(&self) -> Option<PathBuf> {
        self.lock().take().map(|open| open.path)
    }

    /// The file that is open.
    pub fn path(&self) -> Option<PathBuf> {
        self.lock().as_ref().map(|open| open.path.clone())
    }

    /// A log that cannot be written must not end the session: it is closed, and said once.
    pub fn write(&self, text: &str) {
        let mut log = self.lock();
        if let Some(open) = log.as_mut()
            && let Err(error) = open.file.write_all(text.as_bytes())
        {
            tracing::error!(path = %open.path.display(), %error, "cannot write the log; it is closed");
            *log = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
