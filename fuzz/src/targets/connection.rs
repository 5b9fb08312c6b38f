//! Text as a `-k` string.

use kd_link::KdSpec;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The key of `key=@FILE` is read from there; which files there are is nothing to explore.
    if text.contains('@') {
        return;
    }
    // What was typed as a key is in no text about it.
    let key = text.split("key=").nth(1).and_then(|rest| rest.split(',').next());
    let key = key.filter(|key| key.len() > 8 && !text.replacen(key, "", 1).contains(key));
    match KdSpec::parse(text) {
        Ok(spec) => {
            let shown = spec.to_string();
            assert!(key.is_none_or(|key| !format!("{spec:?} {shown}").contains(key)), "{shown}");
            // What is shown can be typed again, but for the key.
            let again = KdSpec::parse(&shown.replace("<hidden>", "1.2.3.4")).map(|spec| spec.to_string());
            assert_eq!(again.as_ref(), Ok(&shown));
            let _ = spec.reconnects();
        }
        Err(error) => {
            let error = error.to_string();
            // One line, whatever was typed.
            assert!(key.is_none_or(|key| !error.contains(key)), "{error}");
        }
    }
}
