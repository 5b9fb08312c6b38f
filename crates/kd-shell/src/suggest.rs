//! What was meant, when a word is not known.

/// The nearest of `known` to `word`, if it is so near that it was probably meant. Case does not count.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    // A letter of three, two of six: more is another word.
    let most = match word.chars().count() {
        ..=1 => 0,
        2..=5 => 1,
        6..=8 => 2,
        _ => 3,
    };
    let distance = |name: &'k str| (strsim::damerau_levenshtein(&word, &name.to_ascii_lowercase()), name);
    known
        .into_iter()
        .map(distance)
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The command that a word that is none was meant to be: the `!` or the dot may be missing or the wrong one, and a letter
/// or two wrong.
pub(crate) fn command<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let bare = |word: &'k str| word.trim_start_matches(['!', '.']);
    let wanted = word.trim_start_matches(['!', '.']).to_ascii_lowercase();
    let names: Vec<&'k str> = known.into_iter().collect();
    let same = names.iter().copied().find(|name| bare(name) == wanted);
    // Of a short word everything is near.
    same.filter(|_| wanted.len() > 1).or_else(|| {
        let near = nearest(&wanted, names.iter().map(|name| bare(name)).filter(|name| name.len() > 2))?;
        names.iter().copied().find(|name| bare(name) == near)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::TABLE;

    fn meant(word: &str) -> Option<&'static str> {
        command(word, TABLE.words())
    }

    #[test]
    fn a_letter_or_the_mark_before_it_is_wrong() {
        for (word, command) in [
            ("!poolfnd", "!poolfind"),
            ("poolused", "!poolused"),
            (".poolused", "!poolused"),
            ("!PoolUsde", "!poolused"),
            ("vm", "!vm"),
            ("!help", ".help"),
            ("relaod", ".reload"),
            ("!verifer", "!verifier"),
            ("sympath", ".sympath"),
            ("!leek", "!leak"),
        ] {
            assert_eq!(meant(word), Some(command), "{word}");
        }
    }

    #[test]
    fn other_words_are_other_words() {
        for word in ["foo", "x1", "!zz", "nonsense", "q1", ""] {
            assert_eq!(meant(word), None, "{word}");
        }
        let words = ["mark", "check", "watch", "trace"];
        assert_eq!(nearest("wach", words), Some("watch"));
        assert_eq!(nearest("chekc", words), Some("check"));
        assert_eq!(nearest("remark", words), Some("mark"));
        assert_eq!(nearest("growth", words), None);
    }
}
