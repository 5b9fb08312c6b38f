//! kd's wildcards.

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters and `?` for one. Case of ASCII letters
/// is ignored. Takes at most `pattern.len() * text.len()` steps.
pub fn matches_glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to resume when the guess at the last `*` turns out too short.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(c) if c.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    p = star + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
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
