//! One search along a symbol path: what is looked at, fetched, expanded and kept.
//!
//! A file that is found far away is kept nearer: one from a server in all stores of its element, one from a store in the
//! stores before it, and both, like a file from a directory, in the `cache*` directories before that. Without any of
//! these, a file from a server and one that has to be expanded are kept in the default store. A file gets its name in a
//! store when all of it is there and it is what was asked for; until then it lies at the store's root as `.kdpool-*`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;

use crate::bytes::u32_at;
use crate::cab::{self, CabError};
use crate::fetch::{Event, FetchError, MAX_FILE, Observer, Servers};
use crate::path::{Element, default_store};
use crate::{ImageFile, Isf, Pdb, PdbId, SymbolError, SymbolFile};

/// What an image's file is called in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageKey {
    /// Of the image's header.
    pub time_date_stamp: u32,
    /// Of the image's header.
    pub size_of_image: u32,
}

/// Which build of a file is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A symbol file.
    Pdb(PdbId),
    /// The image's own file.
    Image(ImageKey),
}

impl Wanted {
    /// The name of the file's directory in a store.
    pub fn store_key(&self) -> String {
        match self {
            Wanted::Pdb(id) => id.store_key(),
            Wanted::Image(key) => format!("{:08X}{:x}", key.time_date_stamp, key.size_of_image),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Pdb(id) => id.fmt(f),
            Wanted::Image(key) => write!(f, "time stamp {:08X}, size {:x}", key.time_date_stamp, key.size_of_image),
        }
    }
}

/// How far a search goes, and who watches it.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// Without them only local places are looked at.
    pub servers: Option<&'a Servers>,
    /// Told of each download; `&()` ignores it.
    pub observer: &'a dyn Observer,
    /// When nothing matches, a file of another build will do (`.reload /i`).
    pub ignore_mismatch: bool,
}

impl Default for Reach<'_> {
    fn default() -> Self {
        Self { servers: None, observer: &(), ignore_mismatch: false }
    }
}

/// One place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// A file, or a URL.
    pub place: String,
    /// What was there.
    pub outcome: Outcome,
}

/// What was found at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The file that is used.
    Used,
    /// It was copied here.
    Kept,
    /// No file of that name.
    Missing,
    /// The folder itself is not there.
    NoDirectory,
    /// A file of that name which belongs to another build.
    Mismatch {
        /// The build that was looked for.
        wanted: Wanted,
        /// The build that the file belongs to.
        found: Wanted,
    },
    /// There is a file, and it cannot be used.
    Unusable(String),
    /// A fault that may pass.
    Fault(String),
    /// Passed over, for this reason.
    NotTried(String),
    /// Its server could not be reached before, for this reason, and is not asked again.
    Unreachable(String),
    /// A server that was not to be asked in this search.
    NotAsked,
    /// The observer ended the search here.
    Cancelled,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - ", self.place)?;
        match &self.outcome {
            Outcome::Used => write!(f, "OK"),
            Outcome::Kept => write!(f, "copied"),
            Outcome::Missing => write!(f, "file not found"),
            Outcome::NoDirectory => write!(f, "this directory does not exist"),
            Outcome::Mismatch { wanted: wanted @ Wanted::Pdb(_), found } => {
                write!(f, "mismatched pdb: it is {found}, wanted is {wanted}")
            }
            Outcome::Mismatch { wanted, found } => write!(f, "mismatched image: it is {found}, wanted is {wanted}"),
            Outcome::Unusable(why) | Outcome::Fault(why) => write!(f, "{why}"),
            Outcome::NotTried(why) => write!(f, "not tried: {why}"),
            Outcome::Unreachable(why) => write!(f, "not tried: its host could not be reached before ({why})"),
            Outcome::NotAsked => write!(f, "not asked yet"),
            Outcome::Cancelled => write!(f, "cancelled"),
        }
    }
}

/// A symbol file and how it was found.
pub struct Found {
    /// Ready to be asked.
    pub file: Arc<dyn SymbolFile>,
    /// It belongs to another build.
    pub mismatched: bool,
    /// Every place that was looked at, in order.
    pub tried: Vec<Attempt>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("file", &self.file.path()).field("tried", &self.tried).finish()
    }
}

/// An image's file and how it was found.
#[derive(Debug)]
pub struct FoundImage {
    /// At base 0; [`ImageFile::loaded_at`] moves it.
    pub file: ImageFile,
    /// Every place that was looked at, in order.
    pub tried: Vec<Attempt>,
}

/// The path has no matching file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    /// Name of the file that was looked for.
    pub name: Box<str>,
    /// By what it would have been recognised.
    pub wanted: Wanted,
    /// The symbol path, as it was given.
    pub path: Box<str>,
    /// Every place that was looked at, in order.
    pub tried: Vec<Attempt>,
}

impl NotFound {
    fn met(&self, outcome: impl Fn(&Outcome) -> bool) -> bool {
        self.tried.iter().any(|attempt| outcome(&attempt.outcome))
    }

    /// The search was ended by its observer.
    pub fn is_cancelled(&self) -> bool {
        self.met(|outcome| *outcome == Outcome::Cancelled)
    }

    /// A server may have it that was not to be asked.
    pub fn is_unasked(&self) -> bool {
        self.met(|outcome| *outcome == Outcome::NotAsked)
    }

    /// There was nowhere to look.
    pub fn has_no_path(&self) -> bool {
        self.tried.is_empty()
    }

    /// A server was passed over that could not be reached before.
    pub fn is_untried(&self) -> bool {
        self.met(|outcome| matches!(outcome, Outcome::Unreachable(_)))
    }

    /// A later search may find it.
    pub fn may_pass(&self) -> bool {
        self.met(|outcome| matches!(outcome, Outcome::Fault(_)))
    }
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.wanted {
            Wanted::Pdb(_) => "symbol file",
            Wanted::Image(_) => "image file",
        };
        write!(f, "no {what} for {} ({})", self.name.escape_debug(), self.wanted)?;
        if self.tried.is_empty() {
            return write!(f, ": the symbol path is empty");
        }
        let mut telling = self.tried.iter().filter(|attempt| attempt.outcome != Outcome::Missing).peekable();
        if telling.peek().is_none() {
            return write!(f, ": none along {} ({} places looked at)", self.path, self.tried.len());
        }
        for (n, attempt) in telling.enumerate() {
            write!(f, "{} {attempt}", if n == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

enum Opened {
    Symbols(Arc<dyn SymbolFile>),
    Image(ImageFile),
}

type Hit = Option<Opened>;

pub(crate) struct Search<'s> {
    name: &'s str,
    wanted: Wanted,
    key: String,
    reach: &'s Reach<'s>,
    default_store: Option<PathBuf>,
    tried: Vec<Attempt>,
    /// Local files of another build.
    mismatched: Vec<PathBuf>,
}

impl<'s> Search<'s> {
    pub(crate) fn new(name: &'s str, wanted: Wanted, reach: &'s Reach<'s>) -> Self {
        Self {
            name,
            wanted,
            key: wanted.store_key(),
            reach,
            default_store: default_store(),
            tried: Vec::new(),
            mismatched: Vec::new(),
        }
    }

    pub(crate) fn into_tried(self) -> Vec<Attempt> {
        self.tried
    }

    pub(crate) fn symbols(&mut self, elements: &[Element]) -> Option<Found> {
        let mut hit = self.run(elements);
        let mut mismatched = false;
        if hit.is_none() && self.reach.ignore_mismatch && !self.reach.observer.cancelled() {
            let candidates = std::mem::take(&mut self.mismatched);
            // It was opened before.
            hit = candidates.into_iter().find_map(|path| {
                let file = Pdb::open(&path).ok()?;
                self.tell(path.display().to_string(), Outcome::Used);
                Some(Opened::Symbols(Arc::new(file)))
            });
            mismatched = hit.is_some();
        }
        match hit? {
            Opened::Symbols(file) => Some(Found { file, mismatched, tried: std::mem::take(&mut self.tried) }),
            Opened::Image(_) => None,
        }
    }

    pub(crate) fn image(&mut self, elements: &[Element]) -> Option<FoundImage> {
        match self.run(elements)? {
            Opened::Image(file) => Some(FoundImage { file, tried: std::mem::take(&mut self.tried) }),
            Opened::Symbols(_) => None,
        }
    }

    fn run(&mut self, elements: &[Element]) -> Hit {
        let mut caches: Vec<PathBuf> = Vec::new();
        for element in elements {
            if self.reach.observer.cancelled() {
                self.tell(self.name.to_owned(), Outcome::Cancelled);
                return None;
            }
            let hit = match element {
                Element::Directory(dir) => self.directory(dir, &caches),
                Element::Cache(dir) => {
                    let Some(root) = self.root(dir) else { continue };
                    let hit = if self.exists(&root) { self.store(&root, &caches) } else { None };
                    caches.push(root);
                    hit
                }
                Element::Server { stores, url } => self.server(stores, url.as_deref(), &caches),
            };
            if hit.is_some() || self.is_cancelled() {
                return hit;
            }
        }
        None
    }

    fn tell(&mut self, place: String, outcome: Outcome) {
        let attempt = Attempt { place, outcome };
        self.reach.observer.event(Event::Tried(&attempt));
        self.tried.push(attempt);
    }

    fn is_cancelled(&self) -> bool {
        self.tried.last().is_some_and(|attempt| attempt.outcome == Outcome::Cancelled)
    }

    fn exists(&mut self, dir: &Path) -> bool {
        let exists = dir.is_dir();
        if !exists {
            self.tell(dir.display().to_string(), Outcome::NoDirectory);
        }
        exists
    }

    /// The store's directory; the default one for `None`.
    fn root(&mut self, store: &Option<PathBuf>) -> Option<PathBuf> {
        let root = store.clone().or_else(|| self.default_store.clone());
        if root.is_none() {
            self.tell("the default store".into(), Outcome::NotTried("there is no home directory".into()));
        }
        root
    }

    fn server(&mut self, stores: &[Option<PathBuf>], url: Option<&str>, caches: &[PathBuf]) -> Hit {
        // What was fetched into the default store is looked for there.
        let default = [None];
        let stores = if stores.is_empty() && caches.is_empty() { &default } else { stores };
        let mut nearer = caches.to_vec();
        for store in stores {
            let Some(root) = self.root(store) else { continue };
            // A store that a server fills is made when there is something to put into it.
            let there = if url.is_some() { root.is_dir() } else { self.exists(&root) };
            if there {
                let hit = self.store(&root, &nearer);
                if hit.is_some() || self.is_cancelled() {
                    return hit;
                }
            }
            nearer.push(root);
        }
        self.download(url?, &nearer)
    }

    fn directory(&mut self, dir: &Path, keep: &[PathBuf]) -> Hit {
        let name = self.name;
        if !self.exists(dir) {
            return None;
        }
        let plain = [&[name][..], &["symbols", "exe", name], &["symbols", "sys", name], &["symbols", "dll", name]];
        let short = [&["exe", name][..], &["sys", name], &["dll", name]];
        for parts in plain.iter().chain(&short) {
            let hit = self.file(dir, parts, keep);
            if hit.is_some() || self.is_cancelled() {
                return hit;
            }
        }
        self.store(dir, keep)
    }

    fn store(&mut self, root: &Path, keep: &[PathBuf]) -> Hit {
        let folder = self.folder(root);
        let folder: Vec<&str> = folder.iter().map(String::as_str).collect();
        let with = |file| folder.iter().copied().chain([file]).collect::<Vec<&str>>();
        let hit = self.file(root, &with(self.name), keep);
        if hit.is_some() || self.is_cancelled() {
            return hit;
        }
        let squeezed = squeezed(self.name);
        if let Some(path) = locate(root, &with(&squeezed)) {
            let hit = self.take(&path, keep);
            if hit.is_some() || self.is_cancelled() {
                return hit;
            }
        }
        if let Some(pointer) = locate(root, &with("file.ptr")) {
            let hit = self.pointer(&pointer, keep);
            if hit.is_some() || self.is_cancelled() {
                return hit;
            }
        }
        self.isf(root)
    }

    /// Where the file's directory is in a store.
    fn folder(&self, root: &Path) -> Vec<String> {
        let one_tier = [self.name.to_owned(), self.key.clone()];
        let two = root.join("index2.txt").is_file().then(|| first_two(self.name));
        two.into_iter().chain(one_tier).collect()
    }

    /// `file.ptr` holds the path of a file that is kept elsewhere.
    fn pointer(&mut self, pointer: &Path, keep: &[PathBuf]) -> Hit {
        let mut text = String::new();
        let read = File::open(pointer).and_then(|file| file.take(MAX_POINTER).read_to_string(&mut text));
        let target = pointed_at(&text).filter(|_| read.is_ok());
        let Some(target) = target else {
            let outcome = Outcome::Unusable(format!("it does not point to a file: {}", text.trim()));
            self.tell(pointer.display().to_string(), outcome);
            return None;
        };
        self.take(Path::new(target), keep)
    }

    fn isf(&mut self, root: &Path) -> Hit {
        let Wanted::Pdb(id) = self.wanted else { return None };
        let name = self.name;
        for key in [id.isf_key(), id.store_key()] {
            for extension in ["json.xz", "json"] {
                let file = format!("{key}.{extension}");
                let places = [
                    &[file.as_str()][..],
                    &[name, &file],
                    &["windows", name, &file],
                    &["symbols", "windows", name, &file],
                ];
                let Some(path) = places.iter().find_map(|parts| locate(root, parts)) else { continue };
                let opened = Isf::open(&path).map_err(unusable).and_then(|isf| match isf.id() {
                    Some(found) if found != id => {
                        Err(Outcome::Mismatch { wanted: self.wanted, found: Wanted::Pdb(found) })
                    }
                    Some(_) => Ok(Opened::Symbols(Arc::new(isf))),
                    None => Err(Outcome::Unusable("it does not say which PDB it was made from".into())),
                });
                let hit = self.note(path.display().to_string(), opened);
                if hit.is_some() {
                    return hit;
                }
            }
        }
        None
    }

    fn file(&mut self, root: &Path, parts: &[&str], keep: &[PathBuf]) -> Hit {
        match locate(root, parts) {
            Some(path) => self.take(&path, keep),
            None => {
                let path = parts.iter().fold(root.to_owned(), |path, part| path.join(part));
                self.tell(path.display().to_string(), Outcome::Missing);
                None
            }
        }
    }

    /// Uses a local file, which may be compressed, and keeps it nearer.
    fn take(&mut self, path: &Path, keep: &[PathBuf]) -> Hit {
        let place = path.display().to_string();
        if !is_cabinet(path) {
            let opened = self.inspect(path);
            if matches!(opened, Err(Outcome::Mismatch { .. })) {
                self.mismatched.push(path.to_owned());
            }
            let hit = self.note(place, opened)?;
            return Some(match self.keep(path, keep) {
                Some(nearest) => self.kept_at(hit, &nearest),
                None => hit,
            });
        }
        let keep = self.or_default(keep);
        let expanded = File::open(path)
            .map_err(|error| Outcome::Unusable(error.to_string()))
            .and_then(|mut cabinet| self.expand(&mut cabinet, &keep));
        match expanded {
            Ok(spool) => self.settle(place, spool, &keep),
            Err(outcome) => self.note(place, Err(outcome)),
        }
    }

    /// The file if it is what was asked for.
    fn inspect(&self, path: &Path) -> Result<Opened, Outcome> {
        let (found, opened) = match self.wanted {
            Wanted::Pdb(_) => {
                let file = Pdb::open(path).map_err(unusable)?;
                (Wanted::Pdb(file.id()), Opened::Symbols(Arc::new(file)))
            }
            Wanted::Image(_) => {
                let file = ImageFile::open(path).map_err(unusable)?;
                (Wanted::Image(file.image().key()), Opened::Image(file))
            }
        };
        if found == self.wanted { Ok(opened) } else { Err(Outcome::Mismatch { wanted: self.wanted, found }) }
    }

    fn note(&mut self, place: String, opened: Result<Opened, Outcome>) -> Hit {
        match opened {
            Ok(hit) => {
                self.tell(place, Outcome::Used);
                Some(hit)
            }
            Err(outcome) => {
                self.tell(place, outcome);
                None
            }
        }
    }

    /// A file that was opened elsewhere, at the place where a copy is kept. An image is not read again: it is whole in
    /// memory. What was opened stays in use when its copy cannot be.
    fn kept_at(&self, opened: Opened, path: &Path) -> Opened {
        match opened {
            Opened::Image(file) => Opened::Image(file.moved_to(path)),
            Opened::Symbols(_) => self.inspect(path).unwrap_or(opened),
        }
    }

    /// Copies a file that was found far away into the nearer stores. The path of the copy in the nearest one.
    fn keep(&mut self, from: &Path, stores: &[PathBuf]) -> Option<PathBuf> {
        let mut nearest = None;
        for root in stores.iter().rev() {
            let copied = (|| {
                let mut spool = spool(root)?;
                copy(&mut File::open(from)?, spool.as_file_mut(), self.reach.observer)?;
                self.persist(spool, root)
            })();
            let (place, outcome) = match copied {
                Ok(path) => {
                    let place = path.display().to_string();
                    nearest = Some(path);
                    (place, Outcome::Kept)
                }
                Err(error) => {
                    let why = format!("the file could not be copied here: {error}");
                    (root.display().to_string(), Outcome::Unusable(why))
                }
            };
            self.tell(place, outcome);
        }
        nearest
    }

    fn persist(&self, spool: NamedTempFile, root: &Path) -> io::Result<PathBuf> {
        let folder = self.folder(root).iter().fold(root.to_owned(), |path, part| path.join(part));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(self.name);
        match spool.persist(&path) {
            Ok(_) => Ok(path),
            // Another session was faster, and has it open.
            Err(_) if path.is_file() => Ok(path),
            Err(error) => Err(error.error),
        }
    }

    fn or_default(&self, stores: &[PathBuf]) -> Vec<PathBuf> {
        if stores.is_empty() { self.default_store.iter().cloned().collect() } else { stores.to_vec() }
    }

    /// A file to write to in the first store that can be written.
    fn any_spool(&self, stores: &[PathBuf]) -> Result<(NamedTempFile, PathBuf), Outcome> {
        let mut why = Outcome::NotTried("there is no store to keep the file in".into());
        for root in stores {
            match spool(root) {
                Ok(file) => return Ok((file, root.clone())),
                Err(error) => why = Outcome::Unusable(format!("cannot write to the store {}: {error}", root.display())),
            }
        }
        Err(why)
    }

    fn expand(&self, cabinet: &mut File, stores: &[PathBuf]) -> Result<(NamedTempFile, PathBuf), Outcome> {
        let (mut spool, root) = self.any_spool(stores)?;
        let mut out = io::BufWriter::new(spool.as_file_mut());
        let expanded = cab::expand(cabinet, &mut out, MAX_FILE, || self.reach.observer.cancelled());
        match expanded.and_then(|()| out.flush().map_err(CabError::Write)) {
            Ok(()) => {}
            Err(CabError::Cancelled) => return Err(Outcome::Cancelled),
            Err(error) => return Err(Outcome::Unusable(error.to_string())),
        }
        drop(out);
        Ok((spool, root))
    }

    /// Gives a file that came from `place` its name, if it is what was asked for.
    fn settle(&mut self, place: String, (spool, root): (NamedTempFile, PathBuf), stores: &[PathBuf]) -> Hit {
        let settled = whole(spool.path()).and_then(|()| self.inspect(spool.path())).and_then(|opened| {
            let path = self.persist(spool, &root).map_err(|error| Outcome::Unusable(error.to_string()))?;
            Ok((opened, path))
        });
        let (opened, path) = match settled {
            Ok(settled) => settled,
            Err(outcome) => return self.note(place, Err(outcome)),
        };
        self.tell(place, Outcome::Used);
        let hit = self.kept_at(opened, &path);
        self.tell(path.display().to_string(), Outcome::Used);
        let others: Vec<PathBuf> = stores.iter().filter(|store| **store != root).cloned().collect();
        self.keep(&path, &others);
        Some(hit)
    }

    fn download(&mut self, server: &str, stores: &[PathBuf]) -> Hit {
        let server = server.trim_end_matches('/');
        let (name, key) = (encoded(self.name), self.key.clone());
        let one_tier = format!("{server}/{name}/{key}");
        let Some(servers) = self.reach.servers else {
            self.tell(format!("{one_tier}/{name}"), Outcome::NotAsked);
            return None;
        };
        let stores = self.or_default(stores);
        let mut folder = one_tier;
        let mut hit = self.fetch(servers, &format!("{folder}/{name}"), &stores);
        if self.is_missing() && servers.is_two_tier(server, self.reach.observer) {
            folder = format!("{server}/{}/{name}/{key}", encoded(&first_two(self.name)));
            hit = self.fetch(servers, &format!("{folder}/{name}"), &stores);
        }
        if self.is_missing() {
            hit = self.fetch(servers, &format!("{folder}/{}", encoded(&squeezed(self.name))), &stores);
        }
        if self.is_missing() {
            self.remote_pointer(servers, &format!("{folder}/file.ptr"));
        }
        hit
    }

    fn is_missing(&self) -> bool {
        self.tried.last().is_some_and(|attempt| attempt.outcome == Outcome::Missing)
    }

    /// What is known of a URL without asking.
    fn known(&self, servers: &Servers, url: &str) -> Option<Outcome> {
        if let Some(why) = servers.unreachable(url) {
            return Some(Outcome::Unreachable(why));
        }
        servers.is_missing(url).then_some(Outcome::Missing)
    }

    fn fetch(&mut self, servers: &Servers, url: &str, stores: &[PathBuf]) -> Hit {
        let fetched = match self.known(servers, url) {
            Some(outcome) => Err(outcome),
            None => self.any_spool(stores).and_then(|(mut spool, root)| {
                servers.fetch(url, self.reach.observer, spool.as_file_mut()).map_err(fault)?;
                if !is_cabinet(spool.path()) {
                    return Ok((spool, root));
                }
                let mut cabinet = spool.reopen().map_err(|error| Outcome::Unusable(error.to_string()))?;
                self.expand(&mut cabinet, &[root])
            }),
        };
        match fetched {
            Ok(spool) => self.settle(url.to_owned(), spool, stores),
            Err(outcome) => self.note(url.to_owned(), Err(outcome)),
        }
    }

    /// A pointer from a server is told, not followed: it could point at any file or host of ours.
    fn remote_pointer(&mut self, servers: &Servers, url: &str) {
        let mut text = Pointer(Vec::new());
        let outcome = match self.known(servers, url) {
            Some(outcome) => outcome,
            None => match servers.fetch(url, self.reach.observer, &mut text) {
                Ok(()) => {
                    let text = String::from_utf8_lossy(&text.0).trim().to_owned();
                    let why = "the server keeps the file elsewhere; add that place to the symbol path";
                    Outcome::Unusable(format!("{why}: {}", text.escape_debug()))
                }
                Err(error) => fault(error),
            },
        };
        self.tell(url.to_owned(), outcome);
    }
}

/// The longest `file.ptr` that is read: one path.
const MAX_POINTER: u64 = 0x1000;

/// The start of a `file.ptr`.
struct Pointer(Vec<u8>);

impl Write for Pointer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_POINTER as usize - self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pointed_at(text: &str) -> Option<&str> {
    let text = text.trim();
    let target = text.strip_prefix("PATH:").unwrap_or(text).trim();
    (!target.is_empty() && !target.starts_with("MSG:")).then_some(target)
}

fn fault(error: FetchError) -> Outcome {
    match error {
        FetchError::NotFound => Outcome::Missing,
        FetchError::Cancelled => Outcome::Cancelled,
        error => Outcome::Fault(error.to_string()),
    }
}

fn unusable(error: SymbolError) -> Outcome {
    match error {
        SymbolError::Io { source, .. } => Outcome::Unusable(source.to_string()),
        SymbolError::Format { format, why, .. } => Outcome::Unusable(format!("not a usable {format} file: {why}")),
    }
}

/// `x.pd_`, the compressed `x.pdb`.
fn squeezed(name: &str) -> String {
    let mut name = name.to_owned();
    name.pop();
    name + "_"
}

fn first_two(name: &str) -> String {
    name.chars().take(2).collect()
}

/// A file name as a part of a URL.
fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

fn is_cabinet(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *cab::SIGNATURE
}

/// A PDB says how many pages it has; an answer without a length may have ended early.
///
/// ```text
/// 0 "Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"  20 size of a page  28 pages
/// ```
fn whole(path: &Path) -> Result<(), Outcome> {
    let mut header = [0; 0x2c];
    let read = File::open(path).and_then(|mut file| {
        file.read_exact(&mut header)?;
        file.metadata()
    });
    // What is too short for a header is told when it is opened.
    let Ok(metadata) = read else { return Ok(()) };
    let pages = || Some(u64::from(u32_at(&header, 0x20)?) * u64::from(u32_at(&header, 0x28)?));
    match pages().filter(|_| header.starts_with(b"Microsoft C/C++ MSF 7.00")) {
        Some(size) if metadata.len() < size => {
            Err(Outcome::Fault(format!("it ends early: {} bytes of {size}", metadata.len())))
        }
        _ => Ok(()),
    }
}

fn spool(root: &Path) -> io::Result<NamedTempFile> {
    std::fs::create_dir_all(root)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kdpool-");
    // A store may be shared; the default for temporary files is to hide them from others.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(root)
}

fn copy(from: &mut File, to: &mut File, observer: &dyn Observer) -> io::Result<()> {
    let mut part = vec![0; 1 << 20];
    loop {
        if observer.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        match from.read(&mut part)? {
            0 => return Ok(()),
            read => to.write_all(&part[..read])?,
        }
    }
}

/// The file below `root`, if there is one. Stores come from systems on which case does not count.
fn locate(root: &Path, parts: &[&str]) -> Option<PathBuf> {
    let exact = parts.iter().fold(root.to_owned(), |path, part| path.join(part));
    if exact.is_file() {
        return Some(exact);
    }
    let mut path = root.to_owned();
    for part in parts {
        let next = path.join(part);
        if next.exists() {
            path = next;
            continue;
        }
        let same = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.eq_ignore_ascii_case(part));
        path = std::fs::read_dir(&path).ok()?.flatten().find(|entry| same(&entry.file_name()))?.path();
    }
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SymbolPath;

    const ID: PdbId = PdbId { guid: 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f, age: 3 };
    const KEY: &str = "000102030405060708090A0B0C0D0E0F3";

    /// A directory with these files in it.
    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        root
    }

    fn find(root: &tempfile::TempDir, id: PdbId) -> Result<Found, NotFound> {
        SymbolPath::parse(root.path().to_str().unwrap()).unwrap().find("x.pdb", id, &Reach::default())
    }

    #[test]
    fn every_layout_of_a_directory_is_known() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let store = format!("x.pdb/{KEY}/x.pdb");
        let lower = format!("X.PDB/{}/x.Pdb", KEY.to_lowercase());
        let two_tier = format!("x./x.pdb/{KEY}/x.pdb");
        for place in ["x.pdb", "X.pdb", "symbols/sys/x.pdb", "dll/x.pdb", "EXE/x.pdb", &store, &lower] {
            let root = tree(&[(place, &pdb)]);
            let found = find(&root, ID).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(found.file.path(), root.path().join(place));
            assert_eq!(found.tried.last().unwrap().outcome, Outcome::Used);
        }
        assert!(find(&tree(&[(&two_tier, &pdb)]), ID).is_err());
        find(&tree(&[(&two_tier, &pdb), ("index2.txt", b"")]), ID).unwrap();
    }

    #[test]
    fn a_pointer_file_is_followed() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let elsewhere = tree(&[("real.pdb", &pdb)]);
        let target = format!("PATH:{}\r\n", elsewhere.path().join("real.pdb").display());
        let root = tree(&[(&format!("x.pdb/{KEY}/file.ptr"), target.as_bytes())]);
        assert_eq!(find(&root, ID).unwrap().file.path(), elsewhere.path().join("real.pdb"));
        let root = tree(&[(&format!("x.pdb/{KEY}/file.ptr"), b"MSG: gone")]);
        assert!(find(&root, ID).unwrap_err().to_string().contains("does not point to a file"));
    }

    #[test]
    fn another_build_is_told_with_both_ids_and_the_search_goes_on() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let root = tree(&[("x.pdb", &pdb)]);
        let other = PdbId { guid: 0xab, age: 1 };
        let error = find(&root, other).unwrap_err().to_string();
        assert!(error.contains("it is 000102030405060708090A0B0C0D0E0F age 3"), "{error}");
        assert!(error.contains("wanted is 000000000000000000000000000000AB age 1"), "{error}");

        let right = tree(&[("x.pdb", &pdb)]);
        let wrong = tree(&[("x.pdb", b"no PDB at all")]);
        let text = format!("{};srv*{}*{}", wrong.path().display(), wrong.path().display(), right.path().display());
        // A store is not searched for a bare x.pdb, so the right file must lie in the store's layout.
        let store = right.path().join("x.pdb.d");
        std::fs::rename(right.path().join("x.pdb"), &store).unwrap();
        std::fs::create_dir_all(right.path().join("x.pdb").join(KEY)).unwrap();
        std::fs::rename(&store, right.path().join("x.pdb").join(KEY).join("x.pdb")).unwrap();
        let found = SymbolPath::parse(&text).unwrap().find("x.pdb", ID, &Reach::default()).unwrap();
        assert!(found.file.path().starts_with(right.path()));
        assert!(found.tried[0].to_string().contains("x.pdb - not a usable PDB file"), "{}", found.tried[0]);
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let root = tree(&[("x.pdb", &pdb), ("inner/keep", b"")]);
        let path = SymbolPath::parse(root.path().join("inner").to_str().unwrap()).unwrap();
        for name in ["../x.pdb", "..\\x.pdb", "..", "NUL", "a/../../x.pdb"] {
            let error = path.find(name, ID, &Reach::default()).unwrap_err();
            assert!(error.to_string().contains("is not looked for"), "{error}");
        }
    }

    #[test]
    fn a_compressed_file_is_expanded_into_the_cache() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let squeezed = tree(&[(&format!("x.pdb/{KEY}/x.pd_"), &crate::testing::cabinet(&pdb))]);
        let cache = tree(&[]);
        let kept = cache.path().join("x.pdb").join(KEY).join("x.pdb");
        let path = |text: &str| SymbolPath::parse(text).unwrap();
        let (near, far) = (cache.path().display(), squeezed.path().display());
        for text in [format!("cache*{near};{far}"), format!("srv*{near}*{far}")] {
            let found = path(&text).find("x.pdb", ID, &Reach::default()).unwrap();
            assert_eq!(found.file.path(), kept, "{text}");
            assert_eq!(std::fs::read(&kept).unwrap(), pdb);
            std::fs::remove_dir_all(cache.path().join("x.pdb")).unwrap();
        }
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "nothing else is left behind");
        let damaged = tree(&[(&format!("x.pdb/{KEY}/x.pd_"), b"MSCF and no more")]);
        let text = format!("cache*{near};{}", damaged.path().display());
        let error = path(&text).find("x.pdb", ID, &Reach::default()).unwrap_err().to_string();
        assert!(error.contains("x.pd_ - not a usable cabinet: it ends too early"), "{error}");
    }

    #[test]
    fn without_a_default_store_the_rest_of_the_path_is_searched() {
        let root = tree(&[("x.pdb", &crate::testing::TestPdb::new().bytes())]);
        let path = SymbolPath::parse(&format!("cache*;srv*;{}", root.path().display())).unwrap();
        let reach = Reach::default();
        let mut search = Search { default_store: None, ..Search::new("x.pdb", Wanted::Pdb(ID), &reach) };
        let found = search.symbols(path.elements()).unwrap();
        assert_eq!(found.file.path(), root.path().join("x.pdb"));
        assert_eq!(found.tried[0].to_string(), "the default store - not tried: there is no home directory");
    }

    #[test]
    fn a_file_is_kept_in_every_nearer_store() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let place = format!("x.pdb/{KEY}/x.pdb");
        let (far, two_tier, one, cache) = (tree(&[(&place, &pdb)]), tree(&[("index2.txt", b"")]), tree(&[]), tree(&[]));
        let text = format!(
            "cache*{};srv*{}*{}*{}",
            cache.path().display(),
            one.path().display(),
            two_tier.path().display(),
            far.path().display()
        );
        let found = SymbolPath::parse(&text).unwrap().find("x.pdb", ID, &Reach::default()).unwrap();
        assert_eq!(found.file.path(), cache.path().join(&place));
        assert!(one.path().join(&place).is_file());
        assert!(two_tier.path().join("x.").join(&place).is_file());
        // A directory's file goes to the cache too, and one that is near is used where it is.
        let dir = tree(&[("x.pdb", &pdb)]);
        std::fs::remove_dir_all(cache.path().join("x.pdb")).unwrap();
        let text = format!("cache*{};{}", cache.path().display(), dir.path().display());
        let found = SymbolPath::parse(&text).unwrap().find("x.pdb", ID, &Reach::default()).unwrap();
        assert_eq!(found.file.path(), cache.path().join(&place));
        assert_eq!(find(&dir, ID).unwrap().file.path(), dir.path().join("x.pdb"));
    }

    #[test]
    fn another_build_will_do_when_asked_for() {
        let root = tree(&[("x.pdb", &crate::testing::TestPdb::new().bytes())]);
        let path = SymbolPath::parse(root.path().to_str().unwrap()).unwrap();
        let other = PdbId { guid: 0xab, age: 1 };
        assert!(path.find("x.pdb", other, &Reach::default()).is_err());
        let found = path.find("x.pdb", other, &Reach { ignore_mismatch: true, ..Reach::default() }).unwrap();
        assert!(found.mismatched);
        assert!(!path.find("x.pdb", ID, &Reach { ignore_mismatch: true, ..Reach::default() }).unwrap().mismatched);
    }

    #[test]
    fn an_image_is_found_by_time_stamp_and_size() {
        let bytes = crate::testing::TestImage::new(b"x.pdb").bytes;
        let root = tree(&[("x.sys/5CE77C414000/x.sys", &bytes)]);
        let path = SymbolPath::parse(root.path().to_str().unwrap()).unwrap();
        let key = ImageKey { time_date_stamp: 0x5ce7_7c41, size_of_image: 0x4000 };
        let found = path.find_image("x.sys", key, &Reach::default()).unwrap();
        assert_eq!(found.file.path(), root.path().join("x.sys/5CE77C414000/x.sys"));
        let other = ImageKey { size_of_image: 0x5000, ..key };
        std::fs::rename(root.path().join("x.sys/5CE77C414000"), root.path().join("x.sys/5CE77C415000")).unwrap();
        let error = path.find_image("x.sys", other, &Reach::default()).unwrap_err().to_string();
        assert!(error.contains("mismatched image: it is time stamp 5CE77C41, size 4000"), "{error}");
    }

    #[test]
    fn an_isf_table() {
        let json = br#"{"metadata": {"windows": {"pdb": {"GUID": "000102030405060708090A0B0C0D0E0F", "age": 3}}},
            "base_types": {}, "symbols": {"Foo": {"address": 16}}}"#;
        let file = "000102030405060708090A0B0C0D0E0F-3.json";
        for place in [file.to_owned(), format!("x.pdb/{file}"), format!("windows/x.pdb/{file}"), format!("{KEY}.json")]
        {
            let found = find(&tree(&[(&place, json)]), ID).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(found.file.symbol("foo").map(|s| s.rva), Some(16));
        }
        // A table in a place whose name lies about it.
        let root = tree(&[("000000000000000000000000000000AB-1.json", json)]);
        assert!(find(&root, PdbId { guid: 0xab, age: 1 }).unwrap_err().to_string().contains("mismatched"));
    }
}
