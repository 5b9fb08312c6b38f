use nt_symbols::{Glob, SymbolPath};

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(path) = SymbolPath::parse(text) {
        assert_eq!(SymbolPath::parse(&path.to_string()).as_ref(), Ok(&path));
        let _ = path.expanded();
    }
    if let Some((pattern, name)) = text.split_once('\n') {
        let _ = Glob::new(pattern).matches(name);
    }
}
