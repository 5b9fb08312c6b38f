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
//! the file system says. How files get from the far places into the near ones is in `search`.

use std::fmt;
use std::path::PathBuf;

use crate::search::{Attempt, Found, FoundImage, NotFound, Outcome, Reach, Search, Wanted};
use crate::{ImageIdentity, ImageKey, PdbId, safe_file_name};

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

/// Where downloads and `srv*`'s default store live; `None` where the environment names no home.
pub fn default_store() -> Option<PathBuf> {
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

    /// The symbol file of an image.
    pub fn find_pdb(&self, image: &ImageIdentity, reach: &Reach<'_>) -> Result<Found, NotFound> {
        self.find(&image.pdb_name, image.pdb, reach)
    }

    /// The symbol file of that name, GUID and age. A name that is not a plain file name ([`safe_file_name`]) is not
    /// looked for anywhere.
    pub fn find(&self, name: &str, id: PdbId, reach: &Reach<'_>) -> Result<Found, NotFound> {
        self.search(name, Wanted::Pdb(id), reach, |search| search.symbols(&self.elements))
    }

    /// The file of an image, for modules whose headers cannot be read. `name` is checked as in [`SymbolPath::find`].
    pub fn find_image(&self, name: &str, key: ImageKey, reach: &Reach<'_>) -> Result<FoundImage, NotFound> {
        self.search(name, Wanted::Image(key), reach, |search| search.image(&self.elements))
    }

    fn search<F>(
        &self,
        name: &str,
        wanted: Wanted,
        reach: &Reach<'_>,
        run: impl FnOnce(&mut Search<'_>) -> Option<F>,
    ) -> Result<F, NotFound> {
        let not_found = |tried| NotFound { name: name.into(), wanted, path: self.text.as_str().into(), tried };
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
        let mut search = Search::new(name, wanted, reach);
        run(&mut search).ok_or_else(|| not_found(search.into_tried()))
    }
}

impl fmt::Display for SymbolPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
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
    fn a_directory_that_does_not_exist_is_the_reason() {
        let path = SymbolPath::parse("/no/such/place;cache*/nor/this").unwrap();
        let error = path.find("x.pdb", PdbId { guid: 1, age: 1 }, &Reach::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no symbol file for x.pdb (00000000000000000000000000000001 age 1): /no/such/place - this directory does not \
             exist; /nor/this - this directory does not exist"
        );
        let empty = tempfile::tempdir().unwrap();
        let text = empty.path().to_str().unwrap().to_owned();
        let error = SymbolPath::parse(&text)
            .unwrap()
            .find("x.pdb", PdbId { guid: 1, age: 1 }, &Reach::default())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(&format!(": none along {text} (8 places looked at)")), "{error}");
    }

    #[test]
    fn an_empty_path_says_what_to_do() {
        let error = SymbolPath::default().find("x.pdb", PdbId { guid: 1, age: 1 }, &Reach::default()).unwrap_err();
        assert!(error.to_string().contains("set it with -y"), "{error}");
    }
}
