//! Scripts and control flow: lines that make other lines.

use std::fs;

use kd_target::Cost;
use nt_memory::Fault;

use super::{Leaving, Next, Outcome, Shell, debuggee};
use crate::error::CommandError;
use crate::grammar::alias::{Meaning, interpolate};
use crate::grammar::block::{Block, BlockError, Tokens, substitute};
use crate::grammar::expression::evaluate_all;
use crate::grammar::words::unquoted;
use crate::output::{Output, show};
use crate::session::{Context, Format};
use crate::text::words;

/// Scripts and blocks in each other.
const MAX_NESTED: usize = 16;

/// Rounds of one loop: a condition that never ends must not hold a script for ever.
pub(super) const MAX_ROUNDS: u32 = 1 << 20;

/// The largest script.
const MAX_SCRIPT: usize = 1 << 20;

/// What the commands of a `.foreach` print.
#[derive(Default)]
struct Captured(String);

impl Output for Captured {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn error(&mut self, _: &str) {}
}

impl Shell {
    /// Runs the lines of a file.
    pub fn run_script(&mut self, file: &str, out: &mut dyn Output) -> Outcome {
        match read(file) {
            Ok(text) => {
                let lines: Vec<String> = text.lines().map(str::to_string).collect();
                self.nested(&format!("$<{file}"), out, |shell, out| shell.run_lines(lines.into_iter(), out))
            }
            Err(error) => self.refuse(&format!("$<{file}"), error, out),
        }
    }

    /// `$$>a<file arguments`, `$><file`: the whole file as one line, with `${$arg1}` and so on replaced.
    pub(super) fn run_script_with(&mut self, file: &str, arguments: &str, out: &mut dyn Output) -> Outcome {
        let command = format!("$$>a<{file}");
        let text = match read(file) {
            // A comment would take the rest of the file with it.
            Ok(text) => text.lines().filter(|line| !line.trim_start().starts_with('*')).collect::<Vec<_>>().join(";"),
            Err(error) => return self.refuse(&command, error, out),
        };
        let arguments: Vec<&str> = words(arguments).map(unquoted).collect();
        let argument = |name: &str| {
            let Some(number) = name.strip_prefix("$arg").and_then(|number| number.parse::<usize>().ok()) else {
                return Meaning::NotMine;
            };
            let argument = number.checked_sub(1).and_then(|at| arguments.get(at));
            argument.map_or(Meaning::Undefined, |argument| Meaning::Text(argument.to_string()))
        };
        let text = interpolate(&text, &argument).into_owned();
        self.nested(&command, out, |shell, out| shell.run_body(&text, out))
    }

    pub(super) fn refuse(&mut self, command: &str, error: CommandError, out: &mut dyn Output) -> Outcome {
        self.cancelled |= matches!(error, CommandError::Fault(Fault::Cancelled));
        self.refused |= error.is_refusal();
        show(command, Err(error), Cost::default(), self.format, out);
        Outcome { failed: true, next: Next::Continue }
    }

    pub(super) fn nested(
        &mut self,
        command: &str,
        out: &mut dyn Output,
        run: impl FnOnce(&mut Self, &mut dyn Output) -> Outcome,
    ) -> Outcome {
        if self.scripts >= MAX_NESTED {
            let error = format!("scripts nested more than {MAX_NESTED} deep at {command}");
            return self.refuse(command, CommandError::Failed(error), out);
        }
        self.scripts += 1;
        let outcome = run(self, out);
        self.scripts -= 1;
        outcome
    }

    /// What a line prints as text, and its outcome.
    pub(super) fn captured(&mut self, line: &str) -> (String, Outcome) {
        let mut captured = Captured::default();
        let format = std::mem::replace(&mut self.format, Format::Kd);
        let outcome = self.nested("{ }", &mut captured, |shell, out| shell.run_line(line, out));
        self.format = format;
        (captured.0, outcome)
    }

    fn run_lines(&mut self, lines: impl Iterator<Item = String>, out: &mut dyn Output) -> Outcome {
        let mut outcome = Outcome { failed: false, next: Next::Continue };
        for line in lines {
            // Commands that are done in no time do not hear of Ctrl+C.
            if self.interrupt.take() {
                return self.refuse(&line, Fault::Cancelled.into(), out);
            }
            let one = self.run_line(&line, out);
            // Each line is for itself.
            self.refused = false;
            outcome.failed |= one.failed;
            outcome.next = one.next;
            if self.is_over(&outcome) {
                break;
            }
        }
        outcome
    }

    /// Runs rounds until there are no more, one fails to be made, or something ends them: Ctrl+C, `.break`, `q`.
    fn run_rounds(
        &mut self,
        word: &str,
        mut round: impl FnMut(&mut Self, &mut dyn Output) -> Result<Option<Outcome>, CommandError>,
        out: &mut dyn Output,
    ) -> Outcome {
        let mut outcome = Outcome { failed: false, next: Next::Continue };
        self.loops += 1;
        for number in 0.. {
            let one = match number {
                MAX_ROUNDS => Err(CommandError::Failed(format!("it did not end within {MAX_ROUNDS:#x} rounds"))),
                // Commands that are done in no time do not hear of Ctrl+C.
                _ if self.interrupt.take() => Err(Fault::Cancelled.into()),
                _ => round(self, out),
            };
            match one {
                Ok(Some(one)) => {
                    outcome.failed |= one.failed;
                    outcome.next = one.next;
                }
                Ok(None) => break,
                Err(error) => {
                    outcome = self.refuse(word, error, out);
                    break;
                }
            }
            if outcome.next != Next::Continue || self.cancelled || self.refused {
                break;
            }
            match self.leaving.take() {
                None | Some(Leaving::Round) => {}
                Some(Leaving::Loop) => break,
                Some(Leaving::Catch) => {
                    self.leaving = Some(Leaving::Catch);
                    break;
                }
            }
        }
        self.loops -= 1;
        outcome
    }

    /// `.if`, `.foreach`, `.for` and `.while`. What they run has its own answers; they have none.
    pub(super) fn run_block(&mut self, block: Result<Block<'_>, BlockError>, out: &mut dyn Output) -> Outcome {
        match block {
            Err(error) => self.refuse(&error.at.clone(), CommandError::Usage(error.to_string()), out),
            Ok(Block::If { branches, otherwise }) => {
                let mut chosen = otherwise;
                for (condition, commands) in branches {
                    match self.evaluate(condition) {
                        Ok(0) => {}
                        Ok(_) => {
                            chosen = Some(commands);
                            break;
                        }
                        Err(error) => return self.refuse(&format!(".if ({condition})"), error, out),
                    }
                }
                match chosen {
                    Some(commands) => self.nested(".if", out, |shell, out| shell.run_body(commands, out)),
                    None => Outcome { failed: false, next: Next::Continue },
                }
            }
            Ok(Block::ForEach { variable, tokens, skip_first, skip_between, body }) => {
                let text = match tokens {
                    Tokens::Text(text) => Ok(text.to_string()),
                    Tokens::File(file) => read(file),
                    Tokens::Output(commands) => {
                        let (text, outcome) = self.captured(commands);
                        if self.is_over(&outcome) {
                            return outcome;
                        }
                        Ok(text)
                    }
                };
                let text = match text {
                    Ok(text) => text,
                    Err(error) => return self.refuse(".foreach", error, out),
                };
                let mut tokens = text.split_whitespace().skip(skip_first).step_by(skip_between.saturating_add(1));
                let round = |shell: &mut Self, out: &mut dyn Output| {
                    let line = tokens.next().map(|token| substitute(body, variable, token));
                    Ok(line.map(|line| shell.run_line(&line, out)))
                };
                self.nested(".foreach", out, |shell, out| shell.run_rounds(".foreach", round, out))
            }
            Ok(Block::Loop { first, condition, step, body }) => {
                self.nested(".for", out, |shell, out| shell.run_loop((first, condition, step), body, out))
            }
            Ok(Block::Do { body, condition }) => self.nested(".do", out, |shell, out| {
                let mut first = true;
                let round = |shell: &mut Self, out: &mut dyn Output| {
                    if !std::mem::take(&mut first) && shell.evaluate(condition)? == 0 {
                        return Ok(None);
                    }
                    Ok(Some(shell.run_body(body, out)))
                };
                shell.run_rounds(&format!("({condition})"), round, out)
            }),
            Ok(Block::Plain(body)) => self.nested(".block", out, |shell, out| shell.run_body(body, out)),
            Ok(Block::Catch(body)) => self.nested(".catch", out, |shell, out| shell.run_catch(body, out)),
        }
    }

    /// What is refused in the block ends it; the line goes on behind it.
    fn run_catch(&mut self, body: &str, out: &mut dyn Output) -> Outcome {
        self.catches += 1;
        let outcome = self.run_body(body, out);
        self.catches -= 1;
        self.refused = false;
        self.leaving = self.leaving.filter(|leaving| *leaving != Leaving::Catch);
        // What was caught is no failure of the line.
        Outcome { failed: false, ..outcome }
    }

    fn run_loop(&mut self, (first, condition, step): (&str, &str, &str), body: &str, out: &mut dyn Output) -> Outcome {
        let before = self.run_body(first, out);
        if self.is_over(&before) {
            return before;
        }
        let round = |shell: &mut Self, out: &mut dyn Output| {
            if shell.evaluate(condition)? == 0 {
                return Ok(None);
            }
            let mut one = shell.run_body(body, out);
            // .continue makes the step as well.
            shell.leaving = shell.leaving.filter(|leaving| *leaving != Leaving::Round);
            if !shell.is_over(&one) {
                let stepped = shell.run_body(step, out);
                one = Outcome { failed: one.failed || stepped.failed, ..stepped };
            }
            Ok(Some(one))
        };
        let all = self.run_rounds(&format!("({condition})"), round, out);
        Outcome { failed: before.failed || all.failed, ..all }
    }

    pub(super) fn evaluate(&mut self, text: &str) -> Result<u64, CommandError> {
        let lost = self.lost();
        let debuggee = debuggee(self.target.as_ref(), lost.as_deref());
        let (session, cost) = (&mut self.session, Cost::default());
        let mut context = Context { debuggee, session, word: "", arguments: "", cost, commands: self.commands };
        Ok(evaluate_all(text, &mut context.scope())?)
    }
}

/// A script as Windows writes them: UTF-16 and UTF-8 with a mark at the start, UTF-8, or else the code page of western
/// Windows, in which every byte is some character.
pub(crate) fn read(file: &str) -> Result<String, CommandError> {
    let failed = |why: String| CommandError::Failed(format!("cannot read the script {file}: {why}"));
    let bytes = fs::File::open(file).and_then(|file| heap_limit::read_whole(file, MAX_SCRIPT));
    Ok(decode(&bytes.map_err(|error| failed(error.to_string()))?))
}

fn decode(bytes: &[u8]) -> String {
    let encoding = match encoding_rs::Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        // Without a mark every other byte of UTF-16 text in a western language is 0.
        None if bytes.len() > 1 && bytes.chunks_exact(2).all(|unit| unit[1] == 0 && unit[0] != 0) => {
            encoding_rs::UTF_16LE
        }
        None if std::str::from_utf8(bytes).is_ok() => encoding_rs::UTF_8,
        None => encoding_rs::WINDOWS_1252,
    };
    encoding.decode_with_bom_removal(bytes).0.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read_as_windows_writes_them() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let expected = ".echo a\r\n\tr\r\n";
        for bytes in [
            expected.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", expected.as_bytes()].concat(),
            [b"\xff\xfe".to_vec(), wide(expected)].concat(),
            [b"\xfe\xff".to_vec(), big(expected)].concat(),
            wide(expected),
        ] {
            assert_eq!(decode(&bytes), expected, "{bytes:x?}");
        }
        assert_eq!(decode(b".echo caf\xe9\r\n.echo b"), ".echo café\r\n.echo b");
        assert_eq!(decode("äöü".as_bytes()), "äöü");
        assert_eq!(decode(b""), "");
    }
}
