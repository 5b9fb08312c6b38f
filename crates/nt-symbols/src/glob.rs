//! kd's wildcards.

/// A pattern in which `*` stands for any run of characters, `?` for one, `[a-cx]` for one of those, and `#` and `+` for
/// any number (`+`: at least one) of what stands before them. Case of ASCII letters is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Only `*` and `?`: what stands between the stars, in lower case.
    Parts(Vec<Vec<u8>>),
    Steps(Vec<Step>),
}

impl Glob {
    /// Reads a pattern; every text is one.
    pub fn new(pattern: &str) -> Glob {
        let folded = pattern.to_ascii_lowercase();
        Glob(match folded.contains(['[', '#', '+']) {
            true => Kind::Steps(steps(folded.as_bytes())),
            false => Kind::Parts(folded.split('*').map(|part| part.as_bytes().to_vec()).collect()),
        })
    }

    /// Whether a text is a pattern and not a name.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '[', '#', '+'])
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.0 {
            Kind::Parts(parts) => matches_parts(parts, text.as_bytes()),
            Kind::Steps(steps) => matches_steps(steps, text.as_bytes()),
        }
    }
}

fn matches_parts(parts: &[Vec<u8>], text: &[u8]) -> bool {
    let (first, last, middle) = match parts {
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

/// One character of a pattern, or any number of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// First and last of each run of characters that will do.
    ranges: Vec<(u8, u8)>,
    many: bool,
}

fn steps(pattern: &[u8]) -> Vec<Step> {
    const ANY: (u8, u8) = (0, u8::MAX);
    let mut steps: Vec<Step> = Vec::new();
    let mut rest = pattern;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'#'
            && let Some(before) = steps.last_mut()
        {
            before.many = true;
            continue;
        }
        let (ranges, many) = match (byte, steps.last()) {
            (b'*', _) => (vec![ANY], true),
            (b'?', _) => (vec![ANY], false),
            (b'+', Some(before)) => (before.ranges.clone(), true),
            (b'[', _) => match after.iter().position(|byte| *byte == b']') {
                Some(end) => {
                    rest = &after[end + 1..];
                    (ranges(&after[..end]), false)
                }
                None => (vec![(byte, byte)], false),
            },
            _ => (vec![(byte, byte)], false),
        };
        steps.push(Step { ranges, many });
    }
    steps
}

/// What stands between brackets: `a-cx`.
fn ranges(mut text: &[u8]) -> Vec<(u8, u8)> {
    let mut ranges = Vec::new();
    while let Some((&first, rest)) = text.split_first() {
        let (last, rest) = match rest {
            [b'-', last, rest @ ..] => (*last, rest),
            _ => (first, rest),
        };
        ranges.push((first, last));
        text = rest;
    }
    ranges
}

/// Follows all ways through the steps at once, so that no pattern takes long.
fn matches_steps(steps: &[Step], text: &[u8]) -> bool {
    let mut reached = vec![false; steps.len() + 1];
    reached[0] = true;
    let skip = |reached: &mut [bool]| {
        for (at, step) in steps.iter().enumerate() {
            reached[at + 1] |= reached[at] && step.many;
        }
    };
    skip(&mut reached);
    for byte in text.iter().map(u8::to_ascii_lowercase) {
        let mut next = vec![false; steps.len() + 1];
        for (at, step) in steps.iter().enumerate().filter(|(at, _)| reached[*at]) {
            if step.ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) {
                next[if step.many { at } else { at + 1 }] = true;
            }
        }
        skip(&mut next);
        reached = next;
    }
    reached[steps.len()]
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
            ("Vf[KW]*", "VfKeFoo", true),
            ("Vf[KW]*", "vfwFoo", true),
            ("Vf[KW]*", "VfAFoo", false),
            ("Vf[K-W]?", "VfMx", true),
            ("*[0-9]*", "Ex2", true),
            ("*[0-9]*", "Exx", false),
            ("ab#c", "ac", true),
            ("ab#c", "abbbc", true),
            ("ab+c", "ac", false),
            ("ab+c", "abbc", true),
            ("a[xy]+", "axyx", true),
            ("a[xy]+", "a", false),
            ("a?+b", "axyb", true),
            ("+a", "+a", true),
            ("a[b", "A[B", true),
            ("a[]b", "ab", false),
        ] {
            assert_eq!(matches_glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let text = "a".repeat(5000);
        assert!(!matches_glob(&"*a".repeat(50).replace('a', "ab"), &text));
        assert!(!matches_glob(&"a#".repeat(50).replace('a', "[ab]"), &format!("{text}c")));
    }
}
