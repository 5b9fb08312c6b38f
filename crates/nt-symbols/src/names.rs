//! The names of a module, held compactly: one text, and eight bytes more per name than the text itself.

use std::sync::OnceLock;

use crate::{Glob, Symbol};

/// What kd shows for a linker's name: without the leading character of C names (`_Foo@12`, `@Foo@4`, `__C_handler`) and
/// without the argument size. C++ names (`?Foo@@YAXXZ`) are left as they are.
pub fn undecorated(name: &str) -> &str {
    let plain = name.strip_prefix(['_', '@', '\u{7f}']).unwrap_or(name);
    match plain.split_once('@') {
        Some((stem, size)) if !size.contains('@') => {
            let decimal = !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit());
            if decimal && !stem.is_empty() && !stem.starts_with('?') { stem } else { name }
        }
        _ => plain,
    }
}

/// Hash of a name in which the case of ASCII letters does not count. It looks at the length and at eight bytes of either
/// end, which tells most names apart and costs a tenth of reading them whole.
pub(crate) fn folded_hash(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let end = |part: &[u8]| {
        let mut eight = [0; 8];
        eight[..part.len()].copy_from_slice(part);
        // Upper and lower case differ in this bit.
        u64::from_le_bytes(eight) | 0x2020_2020_2020_2020
    };
    let first = end(&bytes[..bytes.len().min(8)]);
    let last = end(&bytes[bytes.len().saturating_sub(8)..]);
    let mixed = (first ^ last.rotate_left(29) ^ bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    rva: u32,
    start: u32,
    length: u16,
}

/// Collects names in any order.
#[derive(Debug, Default)]
pub(crate) struct NamesBuilder {
    text: String,
    entries: Vec<Entry>,
    skipped: usize,
}

impl NamesBuilder {
    pub(crate) fn push(&mut self, name: &str, rva: u32) {
        let (Ok(start), Ok(length)) = (u32::try_from(self.text.len()), u16::try_from(name.len())) else {
            self.skipped += 1;
            return;
        };
        if length == 0 {
            return;
        }
        self.text.push_str(name);
        self.entries.push(Entry { rva, start, length });
    }

    pub(crate) fn build(mut self) -> Names {
        let text = std::mem::take(&mut self.text);
        // By address first, which is a comparison of numbers; then the few that share one.
        self.entries.sort_unstable_by_key(|entry| entry.rva);
        for same in self.entries.chunk_by_mut(|a, b| a.rva == b.rva).filter(|same| same.len() > 1) {
            // Any other name is preferred to a string literal's; then the order is that of the names, so that it does
            // not depend on the file they came from.
            same.sort_unstable_by_key(|entry| {
                let name = entry.name(&text);
                (name.starts_with("??_C@"), name)
            });
        }
        self.entries.dedup_by(|a, b| a.rva == b.rva && a.name(&text) == b.name(&text));
        self.entries.shrink_to_fit();
        Names { text, entries: self.entries, skipped: self.skipped, by_name: OnceLock::new() }
    }
}

/// The names of a module, ordered by address.
#[derive(Debug)]
pub(crate) struct Names {
    text: String,
    entries: Vec<Entry>,
    skipped: usize,
    /// (folded hash, place in `entries`), ordered. Built when a name is first asked for.
    by_name: OnceLock<Vec<(u32, u32)>>,
}

impl Entry {
    fn name<'t>(&self, text: &'t str) -> &'t str {
        &text[self.start as usize..self.start as usize + usize::from(self.length)]
    }
}

impl Names {
    /// Names too long to be kept.
    pub(crate) fn skipped(&self) -> usize {
        self.skipped
    }

    fn at(&self, index: usize) -> Option<Symbol> {
        self.entries.get(index).map(|entry| Symbol { name: entry.name(&self.text).to_owned(), rva: entry.rva })
    }

    pub(crate) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.find(name).or_else(|| match undecorated(name) {
            plain if plain != name => self.find(plain),
            _ => None,
        })
    }

    fn find(&self, name: &str) -> Option<Symbol> {
        let by_name = self.by_name.get_or_init(|| {
            let hashed = self.entries.iter().zip(0u32..);
            let mut index: Vec<_> = hashed.map(|(entry, place)| (folded_hash(entry.name(&self.text)), place)).collect();
            index.sort_unstable();
            index
        });
        let hash = folded_hash(name);
        let first = by_name.partition_point(|(h, _)| *h < hash);
        let mut folded = None;
        for (_, place) in by_name[first..].iter().take_while(|(h, _)| *h == hash) {
            let candidate = self.entries[*place as usize].name(&self.text);
            if candidate == name {
                return self.at(*place as usize);
            }
            if folded.is_none() && candidate.eq_ignore_ascii_case(name) {
                folded = Some(*place as usize);
            }
        }
        folded.and_then(|place| self.at(place))
    }

    pub(crate) fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        let next = self.entries.partition_point(|entry| entry.rva <= rva);
        let previous = next.checked_sub(1).map(|last| {
            let same = self.entries[last].rva;
            // The preferred one of several names comes first.
            self.entries[..next].partition_point(|entry| entry.rva < same)
        });
        (previous.and_then(|place| self.at(place)), self.at(next))
    }

    pub(crate) fn matching(&self, pattern: &str) -> Vec<Symbol> {
        let glob = Glob::new(pattern);
        let hits = self.entries.iter().map(|entry| (entry.name(&self.text), entry.rva));
        hits.filter(|(name, _)| glob.matches(name)).map(|(name, rva)| Symbol { name: name.to_owned(), rva }).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decorated_names_are_shown_as_kd_does() {
        for (raw, shown) in [
            ("_Foo@12", "Foo"),
            ("@Foo@4", "Foo"),
            ("_Foo", "Foo"),
            ("Foo", "Foo"),
            ("__C_specific_handler", "_C_specific_handler"),
            ("?Foo@@YAXXZ", "?Foo@@YAXXZ"),
            ("\u{7f}KDCOM_NULL_THUNK_DATA", "KDCOM_NULL_THUNK_DATA"),
            ("__@@_PchSym_@00@Kx", "_@@_PchSym_@00@Kx"),
            ("_Foo@x", "_Foo@x"),
            ("@", ""),
            ("", ""),
        ] {
            assert_eq!(undecorated(raw), shown, "{raw}");
        }
    }

    fn names(list: &[(&str, u32)]) -> Names {
        let mut builder = NamesBuilder::default();
        for (name, rva) in list {
            builder.push(name, *rva);
        }
        builder.build()
    }

    #[test]
    fn an_address_has_one_name_whatever_the_order() {
        let list = [("Zeta", 0x10), ("??_C@_0", 0x10), ("Alpha", 0x10), ("Beta", 0x20)];
        let mut reversed = list;
        reversed.reverse();
        for list in [list, reversed] {
            let names = names(&list);
            let (before, after) = names.around(0x1f);
            assert_eq!(before.map(|s| s.name), Some("Alpha".into()));
            assert_eq!(after.map(|s| (s.name, s.rva)), Some(("Beta".into(), 0x20)));
            assert_eq!(names.around(0xf), (None, names.symbol("alpha")));
            assert_eq!(names.around(u32::MAX).1, None);
        }
    }

    #[test]
    fn exact_case_wins_over_any_case() {
        let names = names(&[("poolhittag", 1), ("PoolHitTag", 2), ("_C_handler", 3)]);
        assert_eq!(names.symbol("PoolHitTag").map(|s| s.rva), Some(2));
        assert_eq!(names.symbol("poolhittag").map(|s| s.rva), Some(1));
        assert_eq!(names.symbol("POOLHITTAG").map(|s| s.rva), Some(1));
        assert_eq!(names.symbol("__C_handler").map(|s| s.rva), Some(3));
        assert_eq!(names.symbol("Pool"), None);
        assert_eq!(names.matching("pool*").len(), 2);
    }

    #[test]
    fn a_name_told_twice_is_one() {
        assert_eq!(names(&[("A", 1), ("A", 1), ("A", 2)]).len(), 2);
    }
}
