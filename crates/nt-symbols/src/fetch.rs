//! What a search of symbols asks of the network, and who watches it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Attempt;

/// What happens during a search.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A place was looked at.
    Tried(&'a Attempt),
    /// A server is asked for a file.
    Asking {
        /// The file's address there.
        url: &'a str,
    },
    /// Bytes that came so far, and how many there will be if the server said so. Comes several times a second, also when
    /// nothing was received.
    Receiving {
        /// The file's address there.
        url: &'a str,
        /// What has come so far.
        bytes: u64,
        /// Its whole size, if the server said it.
        of: Option<u64>,
    },
}

/// Watches a search, and ends it.
pub trait Observer {
    /// Told of each step; whoever only wants results ignores it.
    fn event(&self, _event: Event<'_>) {}
    /// Looked at between any two steps, and several times a second while a server is waited for.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {}

/// Why a server's file was not had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server answers and has no such file; the only answer that is remembered.
    #[error("file not found")]
    NotFound,
    /// The server answered with this status, and not with the file.
    #[error("the server answers with status {0}")]
    Status(u16),
    /// Nobody answers there, or not in time. The host is not tried again.
    #[error("{0}")]
    Unreachable(String),
    /// An answer that breaks off or contradicts itself.
    #[error("{0}")]
    Broken(String),
    /// The file has more bytes than are taken, or claims to.
    #[error("{0} bytes are more than a symbol file has (at most {MAX_FILE})")]
    TooLarge(u64),
    /// The observer wanted it to end.
    #[error("cancelled")]
    Cancelled,
    /// The file could not be kept.
    #[error("cannot write it: {0}")]
    Write(io::Error),
}

/// The largest file that is fetched or expanded: PDBs of browsers come near it, those of drivers have a few MB.
pub const MAX_FILE: u64 = 4 << 30;

/// Gets files from servers.
pub trait Fetch: Send + Sync {
    /// Writes the file to `sink`. What was written before an error is worth nothing.
    fn fetch(&self, url: &str, observer: &dyn Observer, sink: &mut dyn io::Write) -> Result<(), FetchError>;
}

/// The symbol servers of a session, and what is known of them: a file that a server does not have is asked for once, and
/// a host that cannot be reached is tried once. A fault that may pass (status 500, an answer that breaks off) is not
/// remembered.
pub struct Servers {
    fetch: Box<dyn Fetch>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    missing: HashSet<String>,
    /// Why nobody answers at a host.
    unreachable: HashMap<String, String>,
    /// Servers that keep their files below directories of two letters.
    two_tier: HashMap<String, bool>,
}

impl Servers {
    /// Servers that are asked by `fetch`, all of them worth a try.
    pub fn new(fetch: impl Fetch + 'static) -> Self {
        Self { fetch: Box::new(fetch), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why this server is not worth asking any more.
    pub(crate) fn unreachable(&self, url: &str) -> Option<String> {
        self.known().unreachable.get(host(url)).cloned()
    }

    pub(crate) fn is_missing(&self, url: &str) -> bool {
        self.known().missing.contains(url)
    }

    /// Fetches `url` and remembers what that says of the server.
    pub(crate) fn fetch(&self, url: &str, observer: &dyn Observer, sink: &mut dyn io::Write) -> Result<(), FetchError> {
        observer.event(Event::Asking { url });
        let result = self.fetch.fetch(url, observer, sink);
        match &result {
            Err(FetchError::NotFound) => drop(self.known().missing.insert(url.to_owned())),
            Err(FetchError::Unreachable(why)) => {
                self.known().unreachable.insert(host(url).to_owned(), why.clone());
            }
            _ => {}
        }
        result
    }

    /// Whether the server has an `index2.txt`; asked once.
    pub(crate) fn is_two_tier(&self, server: &str, observer: &dyn Observer) -> bool {
        if let Some(known) = self.known().two_tier.get(server) {
            return *known;
        }
        let answer = self.fetch(&format!("{server}/index2.txt"), observer, &mut io::sink());
        let two_tier = answer.is_ok();
        if two_tier || matches!(answer, Err(FetchError::NotFound)) {
            self.known().two_tier.insert(server.to_owned(), two_tier);
        }
        two_tier
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Servers").finish_non_exhaustive()
    }
}

/// `https://host:port` of a URL.
fn host(url: &str) -> &str {
    let after = url.find("://").map_or(0, |at| at + 3);
    url[after..].find('/').map_or(url, |end| &url[..after + end])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_of_a_url() {
        assert_eq!(super::host("https://a.b:1/c/d"), "https://a.b:1");
        assert_eq!(super::host("http://a"), "http://a");
    }
}
