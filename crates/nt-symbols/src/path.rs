//! The symbol path: where symbol files are looked for, in kd's syntax.
//!
//! ```text
//! element[;element...]
//!   dir                        a directory, or a symbol store
//!   cache*[dir]                a store that is asked before the elements after it
//!   srv*[store*...]store|url   stores, the nearest first; an empty one is the default store
//!   symsrv*symsrv.dll*...      the same, in the long form
//!   url                        a server alone: srv*url
//! ```
//!
//! Paths come from variables that somebody set years ago, on another system. So quotes around the path or an element are
//! taken off, `~` is the home directory, and an element that makes no sense is left out and told ([`SymbolPath::read`]):
//! it must not cost the other elements.
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
    /// A folder, in which the file itself or a store's folders are looked for.
    Directory(PathBuf),
    /// `None` is the default store.
    Cache(Option<PathBuf>),
    /// Stores from the nearest to the farthest.
    Server {
        /// Where what was fetched is kept, the first one first; `None` is the default store.
        stores: Vec<Option<PathBuf>>,
        /// Its address; without one the stores are all there is.
        url: Option<String>,
    },
}

/// Why an element is not used, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// An element that is of no use.
    #[error("symbol path element \"{element}\": {why}")]
    Element {
        /// As it was written.
        element: String,
        /// What is wrong with it.
        why: &'static str,
    },
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

/// `http//server/x` and `https:/server/x`: what is left of a URL that was typed wrong. It would become a folder.
fn is_broken_url(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let rest = lower.strip_prefix("https").or_else(|| lower.strip_prefix("http"));
    rest.is_some_and(|rest| rest.starts_with('/') || rest.starts_with(":/") || rest.starts_with(":\\"))
}

/// A folder of another system, which would become an odd name in the current one.
///
/// ```text
/// C:\symbols   c:/symbols   C:   \\server\share
/// ```
fn foreign(text: &str) -> Option<&'static str> {
    if cfg!(windows) {
        return None;
    }
    let bytes = text.as_bytes();
    let drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    match () {
        () if drive && matches!(bytes.get(2), None | Some(b'\\' | b'/')) => {
            Some("there are no drives on this system; name a folder as ~/symbols, or write srv* for the default one")
        }
        () if text.starts_with("\\\\") => {
            Some("a Windows share has no such name on this system; mount it, and name the folder it is mounted at")
        }
        () => None,
    }
}

/// The folder that a part of a path names, `~` being the home directory.
fn folder(text: &str) -> Result<PathBuf, &'static str> {
    if let Some(why) = foreign(text) {
        return Err(why);
    }
    if is_broken_url(text) {
        return Err("a server is written https://server/folder");
    }
    let Some(rest) = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\'])) else {
        return Ok(PathBuf::from(text));
    };
    let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    let home = std::env::var_os(variable).filter(|home| !home.is_empty());
    let home = home.ok_or("there is no home directory to put in the place of ~")?;
    Ok(PathBuf::from(home).join(rest.trim_start_matches(['/', '\\'])))
}

/// An element as far as it is of use, as it is written then, and what was wrong with the rest.
struct Taken {
    element: Element,
    text: String,
    refused: Vec<PathError>,
}

impl Element {
    fn parse(text: &str) -> Result<Taken, PathError> {
        let error = |why| PathError::Element { element: text.to_owned(), why };
        let whole = |element| Ok(Taken { element, text: text.to_owned(), refused: Vec::new() });
        let Some((kind, rest)) = text.split_once('*') else {
            return match is_url(text) {
                true => whole(Element::Server { stores: Vec::new(), url: Some(text.to_owned()) }),
                false => whole(Element::Directory(folder(text).map_err(error)?)),
            };
        };
        let written = kind.trim();
        match written.to_ascii_lowercase().as_str() {
            "cache" if rest.contains('*') => Err(error("cache* takes one directory")),
            "cache" if is_url(rest) => Err(error("cache* takes a directory, not a URL")),
            "cache" if rest.trim().is_empty() => whole(Element::Cache(None)),
            "cache" => whole(Element::Cache(Some(folder(rest.trim()).map_err(error)?))),
            "srv" => Element::server(text, &format!("{written}*"), rest),
            "symsrv" => match rest.split_once('*') {
                Some((dll, rest)) => Element::server(text, &format!("{written}*{dll}*"), rest),
                None => Err(error("the long form is symsrv*symsrv.dll*store*URL")),
            },
            _ => Err(error("an element with * starts with srv*, symsrv* or cache*")),
        }
    }

    /// `rest` follows `kind` in the element `text`. A store that cannot be on this system is left out: the server can
    /// be asked without it.
    fn server(text: &str, kind: &str, rest: &str) -> Result<Taken, PathError> {
        let error = |element: &str, why| PathError::Element { element: element.to_owned(), why };
        let mut parts: Vec<&str> = rest.split('*').map(str::trim).collect();
        let url = match parts.last() {
            Some(last) if is_url(last) => parts.pop(),
            _ => None,
        };
        if parts.iter().any(|part| is_url(part)) {
            return Err(error(text, "a URL can only be the last store of an element"));
        }
        if parts == [""] && url.is_none() {
            // `srv*` alone: the default store, filled from Microsoft's server.
            let element = Element::Server { stores: vec![None], url: Some(MICROSOFT.to_owned()) };
            return Ok(Taken { element, text: text.to_owned(), refused: Vec::new() });
        }
        let (mut stores, mut used, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            match if part.is_empty() { Ok(None) } else { folder(part).map(Some) } {
                Ok(store) => {
                    stores.push(store);
                    used.push(part);
                }
                Err(why) => refused.push(error(part, why)),
            }
        }
        if stores.is_empty() && url.is_none() {
            return Err(refused.swap_remove(0));
        }
        used.extend(url);
        let text = if refused.is_empty() { text.to_owned() } else { format!("{kind}{}", used.join("*")) };
        Ok(Taken { element: Element::Server { stores, url: url.map(str::to_owned) }, text, refused })
    }
}

impl SymbolPath {
    /// The elements that are of use, and what is wrong with the others. Empty elements are dropped, as kd does.
    pub fn read(text: &str) -> (SymbolPath, Vec<PathError>) {
        let (mut path, mut refused) = (SymbolPath::default(), Vec::new());
        let mut texts = Vec::new();
        // Quotes that a shell or a dialog would have taken off, around all of it or around one element; no name on Windows
        // has double ones.
        let text = text.replace('"', "");
        let bare = |part: &'_ str| part.trim_matches(|c: char| c == '\'' || c.is_whitespace()).to_owned();
        for part in text.split(';').map(bare).filter(|part| !part.is_empty()) {
            match Element::parse(&part) {
                Ok(taken) => {
                    path.elements.push(taken.element);
                    texts.push(taken.text);
                    refused.extend(taken.refused);
                }
                Err(error) => refused.push(error),
            }
        }
        path.text = texts.join(";");
        (path, refused)
    }

    /// As [`SymbolPath::read`], for those who want all of it or nothing.
    pub fn parse(text: &str) -> Result<SymbolPath, PathError> {
        let (path, refused) = SymbolPath::read(text);
        refused.into_iter().next().map_or(Ok(path), Err)
    }

    /// The path with further elements at its end (`.sympath+`).
    pub fn with(&self, text: &str) -> Result<SymbolPath, PathError> {
        SymbolPath::parse(&format!("{};{text}", self.text))
    }

    /// In the order in which they are looked at.
    pub fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// Whether there is nowhere to look.
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
            ("srv*https:/x/y", "symbol path element \"https:/x/y\": a server is written https://server/folder"),
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
    fn a_bad_element_costs_nothing_but_itself() {
        let (path, refused) = SymbolPath::read("/a;foo*bar;srv*/c*https://x/y;cache*http://z");
        assert_eq!(path.to_string(), "/a;srv*/c*https://x/y");
        assert_eq!(path.elements().len(), 2);
        let refused: Vec<String> = refused.iter().map(PathError::to_string).collect();
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].contains("\"foo*bar\"") && refused[1].contains("\"cache*http://z\""), "{refused:?}");
        assert_eq!(SymbolPath::read("foo*bar;;").0, SymbolPath::default());
    }

    #[test]
    fn a_bare_url_is_a_server() {
        for text in ["https://server/x", "HTTP://server:8080/x", "/a;https://server/x"] {
            let path = SymbolPath::parse(text).unwrap();
            let url = text.rsplit(';').next().unwrap();
            let server = Element::Server { stores: Vec::new(), url: Some(url.into()) };
            assert_eq!(path.elements().last(), Some(&server), "{text}");
        }
        assert_eq!(SymbolPath::parse("https://x/y").unwrap().expanded(), "srv*https://x/y");
    }

    #[test]
    fn quotes_are_no_part_of_a_name() {
        for text in [
            "\"/a b;srv*/c*https://x\"",
            "\"/a b\";srv*\"/c\"*https://x",
            "'/a b;srv*/c*https://x'",
            " \"/a b;srv*/c*https://x",
            "'/a b';'srv*/c*https://x'",
            // What is left when somebody edited a quoted path; shown and read again it is the same.
            "';/a b' ; '; srv*/c*https://x' '",
        ] {
            assert_eq!(SymbolPath::parse(text).unwrap().to_string(), "/a b;srv*/c*https://x", "{text}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn the_home_directory_and_nobody_elses() {
        let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from) else { return };
        let path = SymbolPath::parse("~/syms;cache*~;srv*~/a*~/b/*https://x;~other/syms;/a~").unwrap();
        assert_eq!(
            path.elements(),
            [
                Element::Directory(home.join("syms")),
                Element::Cache(Some(home.clone())),
                Element::Server {
                    stores: vec![Some(home.join("a")), Some(home.join("b/"))],
                    url: Some("https://x".into())
                },
                Element::Directory("~other/syms".into()),
                Element::Directory("/a~".into()),
            ]
        );
        assert!(path.to_string().starts_with("~/syms;"), "it is shown as it was written");
    }

    #[test]
    #[cfg(not(windows))]
    fn folders_of_windows_are_refused_with_a_hint() {
        for text in ["C:\\symbols", "c:/symbols", "D:", "cache*C:\\symbols", "\\\\server\\symbols", "srv*C:\\a*D:\\b"] {
            let (path, refused) = SymbolPath::read(text);
            assert!(path.is_empty(), "{text}");
            let why = refused[0].to_string();
            assert!(why.contains("on this system"), "{why}");
        }
        // The server is asked all the same.
        for (text, rest) in [
            ("srv*C:\\symbols*https://x/y", "srv*https://x/y"),
            ("SRV*c:\\a*/b*https://x/y", "SRV*/b*https://x/y"),
            ("symsrv*symsrv.dll*\\\\s\\t*https://x/y", "symsrv*symsrv.dll*https://x/y"),
        ] {
            let (path, refused) = SymbolPath::read(text);
            assert_eq!((path.to_string().as_str(), refused.len()), (rest, 1), "{text}");
            assert_eq!(SymbolPath::parse(rest).unwrap(), path, "{text}");
        }
        // A file's name may have a colon.
        assert_eq!(SymbolPath::parse("x:y").unwrap().elements(), [Element::Directory("x:y".into())]);
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
    fn an_empty_path_is_said() {
        let error = SymbolPath::default().find("x.pdb", PdbId { guid: 1, age: 1 }, &Reach::default()).unwrap_err();
        assert!(error.to_string().ends_with("the symbol path is empty"), "{error}");
    }
}
