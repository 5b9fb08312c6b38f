//! Names in files: whoever wrote one, it stays on its line and leaves the terminal alone.

use serde::{Deserialize, Deserializer};

/// It ends the line, orders the terminal about, or turns the rest of the line around.
pub(crate) fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) trait Line {
    fn cleaned(self) -> Self;
}

impl Line for String {
    fn cleaned(self) -> Self {
        if self.contains(is_dangerous) { self.replace(is_dangerous, "\u{fffd}") } else { self }
    }
}

impl Line for Option<String> {
    fn cleaned(self) -> Self {
        self.map(Line::cleaned)
    }
}

impl Line for Vec<String> {
    fn cleaned(self) -> Self {
        self.into_iter().map(Line::cleaned).collect()
    }
}

pub(crate) fn deserialize<'de, T: Line + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::deserialize(deserializer).map(Line::cleaned)
}
