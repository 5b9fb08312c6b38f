//! kd's wildcards.

/// A pattern in which `*` stands for any run of characters and `?` for one. Case of ASCII letters is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// What stands between the stars, in lower case.
    parts: Vec<Vec<u8>>,
}

impl Glob {
    pub fn new(pattern: &str) -> Glob {
        let folded = pattern.to_ascii_lowercase();
        Glob { parts: folded.split('*').map(|part| part.as_bytes().to_vec()).collect() }
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let (first, last, middle) = match &self.parts[..] {
            [] => return text.is_empty(),
            [only] => return text.len() == only.len() && same(only, text),
            [first, middle @ .., last] => (first, last, middle),
        };
        let Some(mut rest) = text.get(first.len()..).filter(|_| same(first, text)) else { return false };
        for part in middle.iter().filter(|part| !part.is_empty()) {
            // The leftmost place is as good as any: it leaves the most for the parts after it.
            let Some(at) = find(part, rest) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.len().checked_sub(last.len()).is_some_and(|at| same(last, &rest[at..]))
    }
}

/// Whether `text` matches `pattern`. For many texts, make a [`Glob`] once.
pub fn matches_glob(pattern: &str, text: &str) -> bool {
    Glob::new(pattern).matches(text)
}

/// The leftmost place of `part`, which is not empty. Most places differ in the first byte already.
fn find(part: &[u8], text: &[u8]) -> Option<usize> {
    let (lower, upper) = (part[0], part[0].to_ascii_uppercase());
    let last = text.len().checked_sub(part.len())?;
    let candidate = |byte: u8| byte == lower || byte == upper || lower == b'?';
    (0..=last).find(|at| candidate(text[*at]) && same(&part[1..], &text[at + 1..]))
}

/// Whether `text` starts with `part`.
fn same(part: &[u8], text: &[u8]) -> bool {
    text.len() >= part.len() && part.iter().zip(text).all(|(p, t)| *p == b'?' || *p == t.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::matches_glob;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*pool*", "ExAllocatePoolWithTag", true),
            ("Ex*Pool?", "ExFreePool", false),
            ("Ex*Pool?", "ExFreePoolX", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("??", "a", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
            ("*?b", "ab", true),
            ("*?b", "b", false),
            ("poolbigpagetable", "PoolBigPageTable", true),
        ] {
            assert_eq!(matches_glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let text = "a".repeat(5000);
        assert!(!matches_glob(&"*a".repeat(50).replace('a', "ab"), &text));
    }
}
