//! What is shown, and written to a log at the same time.

use crate::log::Log;
use crate::output::{Mood, Output};

/// Everything that is shown goes to the log as well.
pub(super) struct Tee<'a> {
    pub(super) out: &'a mut dyn Output,
    pub(super) log: &'a Log,
}

impl Output for Tee<'_> {
    fn write(&mut self, text: &str) {
        self.log.write(text);
        self.out.write(text);
    }

    fn error(&mut self, line: &str) {
        self.log.write(line);
        self.out.error(line);
    }

    fn clear(&mut self) {
        self.out.clear();
    }

    fn remark(&mut self, line: &str) {
        self.log.write(line);
        self.out.remark(line);
    }

    fn redraw(&mut self, table: &str, line: &str) {
        self.log.write(line);
        self.out.redraw(table, line);
    }

    fn headline(&mut self, text: &str, mood: Mood) {
        self.log.write(text);
        self.out.headline(text, mood);
    }

    fn erase(&mut self) {
        self.out.erase();
    }

    fn listen(&mut self, on: bool) -> bool {
        self.out.listen(on)
    }

    fn key(&mut self) -> Option<char> {
        self.out.key()
    }

    fn ask(&mut self, question: &str) -> Option<bool> {
        let answer = self.out.ask(question);
        if let Some(yes) = answer {
            self.log.write(&format!("{question} {}\n", if yes { "yes" } else { "no" }));
        }
        answer
    }

    fn columns(&self) -> usize {
        self.out.columns()
    }

    fn is_interactive(&self) -> bool {
        self.out.is_interactive()
    }
}
