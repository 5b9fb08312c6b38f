//! The symbol path: where symbol files are looked for, in kd's syntax.
//!
//! ```text
//! element[;element...]
//!   dir                        a directory, or a symbol store
//!   cache*[dir]                a store that is asked before the elements after it
//!   srv*[store*...]store|url   stores, the nearest first; an empty one is the default store
//!   symsrv*symsrv.dll*...      the same, in the long form
//! ```
//!
//! A directory is searched as kd does (`dir/x.pdb`, `dir/symbols/exe/x.pdb`, `dir/exe/x.pdb`; `sys` and `dll` too), as a
//! symbol store (`dir/x.pdb/GUIDAGE/x.pdb`, or `dir/x./x.pdb/...` if it has an `index2.txt`; a `file.ptr` is followed) and
//! as a pack of ISF tables (`dir/GUID-AGE.json.xz`, `dir/windows/x.pdb/GUID-AGE.json.xz`). Case does not count, whatever
//! the file system says. Files found in local places are used where they are, and nothing is copied.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{ImageIdentity, Isf, Pdb, PdbId, SymbolError, SymbolFile, safe_file_name};

/// What `srv*` alone means.
const MICROSOFT: &str = "https://msdl.microsoft.com/download/symbols";

/// One element of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    Directory(PathBuf),
    /// `None` is the default store.
    Cache(Option<PathBuf>),
    /// Stores from the nearest to the farthest.
    Server {
        stores: Vec<Option<PathBuf>>,
        url: Option<String>,
    },
}

/// Why a text is not a symbol path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("symbol path element \"{element}\": {why}")]
    Element { element: String, why: &'static str },
}

/// A parsed symbol path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SymbolPath {
    elements: Vec<Element>,
    text: String,
}

/// One place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// A file, or a URL.
    pub place: String,
    pub outcome: Outcome,
}

/// What was found at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The file that is used.
    Used,
    Missing,
    NoDirectory,
    /// A file of that name which belongs to another build.
    Mismatch {
        wanted: PdbId,
        found: PdbId,
    },
    /// There is a file, and it cannot be used.
    Unusable(String),
    NotTried(&'static str),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - ", self.place)?;
        match &self.outcome {
            Outcome::Used => write!(f, "OK"),
            Outcome::Missing => write!(f, "file not found"),
            Outcome::NoDirectory => write!(f, "this directory does not exist"),
            Outcome::Mismatch { wanted, found } => write!(f, "mismatched pdb: it is {found}, wanted is {wanted}"),
            Outcome::Unusable(why) => write!(f, "{why}"),
            Outcome::NotTried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// A symbol file and how it was found.
pub struct Found {
    pub file: Arc<dyn SymbolFile>,
    pub tried: Vec<Attempt>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("file", &self.file.path()).field("tried", &self.tried).finish()
    }
}

/// The path has no matching file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotFound {
    pub name: String,
    pub id: PdbId,
    /// The symbol path, as it was given.
    pub path: String,
    pub tried: Vec<Attempt>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no symbol file for {} ({})", self.name.escape_debug(), self.id)?;
        if self.tried.is_empty() {
            return write!(f, ": the symbol path is empty; set it with -y, _NT_SYMBOL_PATH or .sympath");
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

/// Where downloads and `srv*`'s default store live.
fn default_store() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else {
        set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))
    };
    Some(cache?.join("kdpool").join("symbols"))
}

fn is_url(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
}

impl Element {
    fn parse(text: &str) -> Result<Element, PathError> {
        let error = |why| PathError::Element { element: text.to_owned(), why };
        let Some((kind, rest)) = text.split_once('*') else {
            return if is_url(text) {
                Err(error("a symbol server is written srv*store*URL or srv*URL"))
            } else {
                Ok(Element::Directory(PathBuf::from(text)))
            };
        };
        let store = |part: &str| (!part.is_empty()).then(|| PathBuf::from(part));
        let kind = kind.trim().to_ascii_lowercase();
        let rest = match kind.as_str() {
            "cache" if rest.contains('*') => return Err(error("cache* takes one directory")),
            "cache" if is_url(rest) => return Err(error("cache* takes a directory, not a URL")),
            "cache" => return Ok(Element::Cache(store(rest))),
            "srv" => rest,
            "symsrv" => match rest.split_once('*') {
                Some((_dll, rest)) => rest,
                None => return Err(error("the long form is symsrv*symsrv.dll*store*URL")),
            },
            _ => return Err(error("an element with * starts with srv*, symsrv* or cache*")),
        };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let url = match parts.last() {
            Some(last) if is_url(last) => parts.pop().map(str::to_owned),
            _ => None,
        };
        if parts.iter().any(|part| is_url(part)) {
            return Err(error("a URL can only be the last store of an element"));
        }
        if parts == [""] && url.is_none() {
            // `srv*` alone: the default store, filled from Microsoft's server.
            return Ok(Element::Server { stores: vec![None], url: Some(MICROSOFT.to_owned()) });
        }
        Ok(Element::Server { stores: parts.into_iter().map(store).collect(), url })
    }
}

impl SymbolPath {
    /// Parses a path. Empty elements are dropped, as kd does.
    pub fn parse(text: &str) -> Result<SymbolPath, PathError> {
        let parts: Vec<&str> = text.split(';').map(str::trim).filter(|part| !part.is_empty()).collect();
        let elements = parts.iter().map(|part| Element::parse(part)).collect::<Result<_, _>>()?;
        Ok(SymbolPath { elements, text: parts.join(";") })
    }

    /// The path with further elements at its end (`.sympath+`).
    pub fn with(&self, text: &str) -> Result<SymbolPath, PathError> {
        SymbolPath::parse(&format!("{};{text}", self.text))
    }

    pub fn elements(&self) -> &[Element] {
        &self.elements
    }

    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// The path with the defaults filled in, as kd's `Expanded Symbol search path is:` shows it.
    pub fn expanded(&self) -> String {
        let shown = |store: &Option<PathBuf>| {
            store.clone().or_else(default_store).map_or_else(|| "?".into(), |path| path.display().to_string())
        };
        let parts = self.elements.iter().map(|element| match element {
            Element::Directory(dir) => dir.display().to_string(),
            Element::Cache(dir) => format!("cache*{}", shown(dir)),
            Element::Server { stores, url: Some(url) } if stores == &[None] => {
                format!("cache*{};SRV*{url}", shown(&None))
            }
            Element::Server { stores, url } => {
                let stores = stores.iter().map(shown).chain(url.clone());
                format!("srv*{}", stores.collect::<Vec<_>>().join("*"))
            }
        });
        parts.collect::<Vec<_>>().join(";")
    }

    /// Directories of the path that do not exist. The default store is made when it is needed and not told here.
    pub fn warnings(&self) -> Vec<String> {
        let given = self.elements.iter().flat_map(|element| match element {
            Element::Directory(dir) | Element::Cache(Some(dir)) => vec![dir],
            Element::Cache(None) => vec![],
            Element::Server { stores, .. } => stores.iter().flatten().collect(),
        });
        given
            .filter(|dir| !dir.is_dir())
            .map(|dir| format!("the symbol path's directory {} does not exist", dir.display()))
            .collect()
    }

    /// The symbol file of an image.
    pub fn find_pdb(&self, image: &ImageIdentity) -> Result<Found, NotFound> {
        self.find(&image.pdb_name, image.pdb)
    }

    /// The symbol file of that name, GUID and age. A name that is not a plain file name ([`safe_file_name`]) is not
    /// looked for anywhere.
    pub fn find(&self, name: &str, id: PdbId) -> Result<Found, NotFound> {
        let mut search = Search { name, id, tried: Vec::new() };
        let not_found = |tried| NotFound { name: name.to_owned(), id, path: self.text.clone(), tried };
        let why = match safe_file_name(name.as_bytes()) {
            Ok(plain) if plain == name => None,
            Ok(_) => Some("it holds directories".to_owned()),
            Err(why) => Some(why.to_string()),
        };
        if let Some(why) = why {
            let place = name.escape_debug().to_string();
            let outcome = Outcome::Unusable(format!("this name is not looked for: {why}"));
            return Err(not_found(vec![Attempt { place, outcome }]));
        }
        for element in &self.elements {
            let found = match element {
                Element::Directory(dir) => search.directory(dir),
                Element::Cache(dir) => search.default_or(dir),
                Element::Server { stores, url } => {
                    let found = stores.iter().find_map(|store| search.default_or(store));
                    if let (None, Some(url)) = (&found, url) {
                        search.tried.push(Attempt {
                            place: format!("{}/{name}/{}/{name}", url.trim_end_matches('/'), id.store_key()),
                            outcome: Outcome::NotTried("no network support yet"),
                        });
                    }
                    found
                }
            };
            if let Some(file) = found {
                return Ok(Found { file, tried: search.tried });
            }
        }
        Err(not_found(search.tried))
    }
}

impl fmt::Display for SymbolPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One search along the path.
struct Search<'s> {
    name: &'s str,
    id: PdbId,
    tried: Vec<Attempt>,
}

type Hit = Option<Arc<dyn SymbolFile>>;

impl Search<'_> {
    fn exists(&mut self, dir: &Path) -> bool {
        let exists = dir.is_dir();
        if !exists {
            self.tried.push(Attempt { place: dir.display().to_string(), outcome: Outcome::NoDirectory });
        }
        exists
    }

    fn default_or(&mut self, store: &Option<PathBuf>) -> Hit {
        match store.clone().or_else(default_store) {
            Some(root) if self.exists(&root) => self.store(&root),
            Some(_) => None,
            None => {
                self.tried.push(Attempt {
                    place: "the default store".into(),
                    outcome: Outcome::NotTried("there is no home directory"),
                });
                None
            }
        }
    }

    fn directory(&mut self, dir: &Path) -> Hit {
        let name = self.name;
        if !self.exists(dir) {
            return None;
        }
        let plain = [&[name][..], &["symbols", "exe", name], &["symbols", "sys", name], &["symbols", "dll", name]];
        let short = [&["exe", name][..], &["sys", name], &["dll", name]];
        if let Some(file) = plain.iter().chain(&short).find_map(|parts| self.file(dir, parts)) {
            return Some(file);
        }
        self.store(dir)
    }

    fn store(&mut self, root: &Path) -> Hit {
        let (name, key) = (self.name, self.id.store_key());
        let two: String = name.chars().take(2).collect();
        let mut place = vec![name, &key, name];
        if root.join("index2.txt").is_file() {
            place.insert(0, &two);
        }
        if let Some(file) = self.file(root, &place) {
            return Some(file);
        }
        let folder = &place[..place.len() - 1];
        if let Some(file) = self.pointer(root, folder) {
            return Some(file);
        }
        self.compressed(root, folder);
        self.isf(root)
    }

    /// `file.ptr` holds the path of a file that is kept elsewhere.
    fn pointer(&mut self, root: &Path, folder: &[&str]) -> Hit {
        let parts: Vec<&str> = folder.iter().copied().chain(["file.ptr"]).collect();
        let pointer = locate(root, &parts)?;
        let mut text = String::new();
        let read = File::open(&pointer).and_then(|file| file.take(0x1000).read_to_string(&mut text));
        let target = text.trim().strip_prefix("PATH:").unwrap_or(text.trim()).trim();
        if read.is_err() || target.is_empty() || target.starts_with("MSG:") {
            let outcome = Outcome::Unusable(format!("it does not point to a file: {target}"));
            self.tried.push(Attempt { place: pointer.display().to_string(), outcome });
            return None;
        }
        self.open(Path::new(target))
    }

    /// A compressed file is told, so that nobody wonders why the store's file is not found.
    fn compressed(&mut self, root: &Path, folder: &[&str]) {
        let Some(stem) = self.name.get(..self.name.len().saturating_sub(1)) else { return };
        let squeezed = format!("{stem}_");
        let parts: Vec<&str> = folder.iter().copied().chain([squeezed.as_str()]).collect();
        if let Some(path) = locate(root, &parts) {
            self.tried.push(Attempt {
                place: path.display().to_string(),
                outcome: Outcome::Unusable("it is compressed; expand it first (expand.exe, cabextract)".into()),
            });
        }
    }

    fn isf(&mut self, root: &Path) -> Hit {
        let name = self.name;
        for key in [self.id.isf_key(), self.id.store_key()] {
            for extension in ["json.xz", "json"] {
                let file = format!("{key}.{extension}");
                let places = [
                    &[file.as_str()][..],
                    &[name, &file],
                    &["windows", name, &file],
                    &["symbols", "windows", name, &file],
                ];
                if let Some(path) = places.iter().find_map(|parts| locate(root, parts)) {
                    let opened = Isf::open(&path);
                    if let Some(file) = self.check(&path, opened.map(|isf| (isf.id(), isf))) {
                        return Some(file);
                    }
                }
            }
        }
        None
    }

    fn file(&mut self, root: &Path, parts: &[&str]) -> Hit {
        match locate(root, parts) {
            Some(path) => self.open(&path),
            None => {
                let path = parts.iter().fold(root.to_owned(), |path, part| path.join(part));
                self.tried.push(Attempt { place: path.display().to_string(), outcome: Outcome::Missing });
                None
            }
        }
    }

    fn open(&mut self, path: &Path) -> Hit {
        let opened = Pdb::open(path);
        self.check(path, opened.map(|pdb| (Some(pdb.id()), pdb)))
    }

    fn check<F: SymbolFile + 'static>(&mut self, path: &Path, opened: Result<(Option<PdbId>, F), SymbolError>) -> Hit {
        let (outcome, hit) = match opened {
            Ok((Some(found), _)) if found != self.id => (Outcome::Mismatch { wanted: self.id, found }, None),
            Ok((Some(_), file)) => (Outcome::Used, Some(Arc::new(file) as Arc<dyn SymbolFile>)),
            Ok((None, _)) => (Outcome::Unusable("it does not say which PDB it was made from".into()), None),
            Err(SymbolError::Io { source, .. }) => (Outcome::Unusable(source.to_string()), None),
            Err(SymbolError::Format { format, why, .. }) => {
                (Outcome::Unusable(format!("not a usable {format} file: {why}")), None)
            }
        };
        self.tried.push(Attempt { place: path.display().to_string(), outcome });
        hit
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

    #[test]
    fn elements_of_every_kind() {
        let dir = |text: &str| Some(PathBuf::from(text));
        let path = SymbolPath::parse(
            " /sym ;;srv*; SRV*/c*https://x/y;cache*/c; cache*;symsrv*symsrv.dll*/a*/b;srv**http://z",
        )
        .unwrap();
        assert_eq!(
            path.elements(),
            [
                Element::Directory("/sym".into()),
                Element::Server { stores: vec![None], url: Some(MICROSOFT.into()) },
                Element::Server { stores: vec![dir("/c")], url: Some("https://x/y".into()) },
                Element::Cache(dir("/c")),
                Element::Cache(None),
                Element::Server { stores: vec![dir("/a"), dir("/b")], url: None },
                Element::Server { stores: vec![None], url: Some("http://z".into()) },
            ]
        );
        assert_eq!(
            path.to_string(),
            "/sym;srv*;SRV*/c*https://x/y;cache*/c;cache*;symsrv*symsrv.dll*/a*/b;srv**http://z"
        );
        assert_eq!(SymbolPath::parse("a;srv*b*http://c").unwrap().expanded(), "a;srv*b*http://c");
        assert!(SymbolPath::parse("srv*").unwrap().expanded().ends_with(&format!(";SRV*{MICROSOFT}")));
        assert_eq!(SymbolPath::parse("a").unwrap().with("b").unwrap().to_string(), "a;b");
        assert!(SymbolPath::parse(" ; ").unwrap().is_empty());
    }

    #[test]
    fn wrong_elements_are_told() {
        for (text, why) in [
            ("https://x", "symbol path element \"https://x\": a symbol server is written srv*store*URL or srv*URL"),
            ("a;svr*x", "symbol path element \"svr*x\": an element with * starts with srv*, symsrv* or cache*"),
            (
                "srv*http://x*/a",
                "symbol path element \"srv*http://x*/a\": a URL can only be the last store of an element",
            ),
            ("cache*a*b", "symbol path element \"cache*a*b\": cache* takes one directory"),
            ("symsrv*", "symbol path element \"symsrv*\": the long form is symsrv*symsrv.dll*store*URL"),
        ] {
            assert_eq!(SymbolPath::parse(text).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn a_missing_directory_is_one_warning() {
        let path = SymbolPath::parse("/no/such/place;srv*").unwrap();
        assert_eq!(path.warnings(), ["the symbol path's directory /no/such/place does not exist"]);
    }

    #[test]
    fn a_directory_that_does_not_exist_is_the_reason() {
        let path = SymbolPath::parse("/no/such/place;cache*/nor/this").unwrap();
        let error = path.find("x.pdb", PdbId { guid: 1, age: 1 }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no symbol file for x.pdb (00000000000000000000000000000001 age 1): /no/such/place - this directory does not \
             exist; /nor/this - this directory does not exist"
        );
        let empty = tempfile::tempdir().unwrap();
        let text = empty.path().to_str().unwrap().to_owned();
        let error = SymbolPath::parse(&text).unwrap().find("x.pdb", PdbId { guid: 1, age: 1 }).unwrap_err().to_string();
        assert!(error.ends_with(&format!(": none along {text} (8 places looked at)")), "{error}");
    }

    #[test]
    fn an_empty_path_says_what_to_do() {
        let error = SymbolPath::default().find("x.pdb", PdbId { guid: 1, age: 1 }).unwrap_err();
        assert!(error.to_string().contains("set it with -y"), "{error}");
    }

    #[test]
    fn a_server_is_told_and_not_tried() {
        let store = tempfile::tempdir().unwrap();
        let path = SymbolPath::parse(&format!("srv*{}*https://x/s/", store.path().display())).unwrap();
        let error = path.find("x.pdb", PdbId { guid: 0xab, age: 2 }).unwrap_err();
        assert!(
            error.to_string().ends_with(
                "https://x/s/x.pdb/000000000000000000000000000000AB2/x.pdb - not tried: no network support yet"
            ),
            "{error}"
        );
    }

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
        SymbolPath::parse(root.path().to_str().unwrap()).unwrap().find("x.pdb", id)
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
        let found = SymbolPath::parse(&text).unwrap().find("x.pdb", ID).unwrap();
        assert!(found.file.path().starts_with(right.path()));
        assert!(found.tried[0].to_string().contains("x.pdb - not a usable PDB file"), "{}", found.tried[0]);
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let pdb = crate::testing::TestPdb::new().bytes();
        let root = tree(&[("x.pdb", &pdb), ("inner/keep", b"")]);
        let path = SymbolPath::parse(root.path().join("inner").to_str().unwrap()).unwrap();
        for name in ["../x.pdb", "..\\x.pdb", "..", "NUL", "a/../../x.pdb"] {
            let error = path.find(name, ID).unwrap_err();
            assert!(error.to_string().contains("is not looked for"), "{error}");
        }
    }

    #[test]
    fn a_compressed_file_and_an_isf_table() {
        let squeezed = tree(&[(&format!("x.pdb/{KEY}/x.pd_"), b"MSCF")]);
        assert!(find(&squeezed, ID).unwrap_err().to_string().contains("it is compressed"));
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
