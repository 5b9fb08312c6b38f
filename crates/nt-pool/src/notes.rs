//! What is to be known about an answer: what it lacks, and what is only worth saying.
//!
//! Decisions rest on the kind of a note ([`Notes::is_complete`]), never on its words or on how many there are.

use std::fmt;

/// Why something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lack {
    /// It could not be read, or the symbols do not say where it is.
    #[default]
    Unread,
    /// It is in a page file: nothing is wrong with it, and a debugger cannot have it.
    PagedOut,
    /// What was read is not what should be there.
    Damaged,
    /// A limit or the user ended the search before.
    Stopped,
}

/// Something that an answer lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What, as a sentence for people.
    pub what: String,
    /// For which kind of reason.
    pub why: Lack,
    /// Where it lies or begins in the target.
    pub at: Option<u64>,
    /// How much, in the unit that the sentence names.
    pub count: Option<u64>,
}

impl Missing {
    /// Something that could not be read.
    pub fn new(what: impl Into<String>) -> Self {
        Missing { what: what.into(), why: Lack::Unread, at: None, count: None }
    }

    /// Something that is missing for another reason.
    pub fn because(why: Lack, what: impl Into<String>) -> Self {
        Missing { why, ..Missing::new(what) }
    }

    /// With the place.
    pub fn at(self, address: u64) -> Self {
        Missing { at: Some(address), ..self }
    }

    /// With the amount.
    pub fn count(self, count: u64) -> Self {
        Missing { count: Some(count), ..self }
    }
}

impl From<String> for Missing {
    fn from(what: String) -> Self {
        Missing::new(what)
    }
}

impl From<&str> for Missing {
    fn from(what: &str) -> Self {
        Missing::new(what)
    }
}

/// One thing to be known about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The answer lacks something.
    Missing(Missing),
    /// The answer has all it should have, and something about it is worth saying.
    Remark(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Missing(missing) => f.write_str(&missing.what),
            Note::Remark(text) => f.write_str(text),
        }
    }
}

/// All that is to be known about an answer, in the order in which it was found out.
///
/// There is no way to ask whether notes were made at all: an answer is complete or it is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    notes: Vec<Note>,
}

impl Notes {
    /// The answer lacks something.
    pub fn missing(&mut self, missing: impl Into<Missing>) {
        self.notes.push(Note::Missing(missing.into()));
    }

    /// The answer lacks nothing by this.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.notes.push(Note::Remark(text.into()));
    }

    /// Whether the answer lacks nothing.
    pub fn is_complete(&self) -> bool {
        self.all_missing().next().is_none()
    }

    /// What the answer lacks.
    pub fn all_missing(&self) -> impl Iterator<Item = &Missing> {
        self.notes.iter().filter_map(|note| match note {
            Note::Missing(missing) => Some(missing),
            Note::Remark(_) => None,
        })
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter()
    }

    /// Everything as sentences for people.
    pub fn lines(&self) -> Vec<String> {
        self.notes.iter().map(Note::to_string).collect()
    }

    /// What was known before comes first.
    pub fn prepend(&mut self, earlier: Notes) {
        self.notes.splice(0..0, earlier.notes);
    }

    /// Takes the notes of a part of the answer out of the part.
    pub fn append(&mut self, part: &mut Notes) {
        self.notes.append(&mut part.notes);
    }
}

/// Sentences of a source that tells of nothing but what is missing.
impl From<Vec<String>> for Notes {
    fn from(missing: Vec<String>) -> Self {
        let mut notes = Notes::default();
        notes.extend(missing.into_iter().map(Missing::from));
        notes
    }
}

impl Extend<Note> for Notes {
    fn extend<T: IntoIterator<Item = Note>>(&mut self, notes: T) {
        self.notes.extend(notes);
    }
}

impl Extend<Missing> for Notes {
    fn extend<T: IntoIterator<Item = Missing>>(&mut self, missing: T) {
        self.notes.extend(missing.into_iter().map(Note::Missing));
    }
}

impl IntoIterator for Notes {
    type Item = Note;
    type IntoIter = std::vec::IntoIter<Note>;

    fn into_iter(self) -> Self::IntoIter {
        self.notes.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_makes_an_answer_incomplete() {
        let mut notes = Notes::default();
        notes.remark("two readings fit");
        assert!(notes.is_complete());
        notes.missing(Missing::because(Lack::PagedOut, "pages in a page file: 3").count(3));
        assert!(!notes.is_complete());
        let mut first = Notes::default();
        first.missing("the table could not be read");
        notes.prepend(first);
        let lines = notes.lines();
        assert_eq!(lines, ["the table could not be read", "two readings fit", "pages in a page file: 3"]);
        let why: Vec<_> = notes.all_missing().map(|missing| (missing.why, missing.count)).collect();
        assert_eq!(why, [(Lack::Unread, None), (Lack::PagedOut, Some(3))]);
    }
}
