//! Text as a `-k` string.

use kd_link::KdSpec;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The key of `key=@FILE` is read from there; which files there are is nothing to explore.
    if text.contains('@') {
        return;
    }
    // What was typed as a key is in no text about it. A serial line has none: there it is a part of a device's name.
    let is_serial = text.trim_start().to_ascii_lowercase().starts_with("com");
    let key = text.split("key=").nth(1).filter(|_| !is_serial).and_then(|rest| rest.split(',').next());
    // No word of a refusal's own, nor the dots that it puts where it cuts.
    let is_key = |key: &&str| {
        let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        key.len() > 8 && !key.ends_with('.') && plain && key.bytes().any(|byte| byte.is_ascii_digit())
    };
    let once = |key: &&str| {
        let rest = text.replacen(key, "", 1).to_ascii_lowercase();
        !rest.contains(&key.to_ascii_lowercase())
    };
    let key = key.filter(is_key).filter(once);
    let _ = KdSpec::from_environment();
    match text.parse::<KdSpec>() {
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
