//! A session's shell: lines in, answers out.

mod complete;
mod control;
mod drive;
mod script;
mod stops;
mod tee;

use std::time::Duration;

use jiff::Zoned;
use kd_target::{Cost, Event, Halted, Interrupt, Leave, Left, Meter, Target, TargetError};
use nt_memory::Fault;

use crate::answer::Reply;
use crate::banner::{self, Reason};
use crate::command::{Action, Table};
use crate::error::CommandError;
use crate::grammar::line::{Command, Statement, split, statements};
use crate::kernel::Kernel;
use crate::output::{Output, difference, show};
use crate::session::{Context, Debuggee, Format, LastCommand, Session};
use crate::text::{tick, visible_name};
use crate::vertarget;

pub use complete::Completion;
pub(crate) use drive::{Drive, is_cancelled};
pub(crate) use script::read as read_script;
pub(crate) use stops::{Seen, Stopped};
use tee::Tee;

/// What a line of commands came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Some command of the line failed; the others were run all the same, as in kd.
    pub failed: bool,
    /// What is to happen now.
    pub next: Next,
}

/// What a line asks of whoever runs the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read the next line.
    Continue,
    /// `q`: the session is to end.
    Quit {
        /// The target is to be left standing (`q -halted`).
        halted: bool,
    },
    /// The connection is gone.
    Lost,
}

/// What a command in a loop's body leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Loop,
    Round,
    /// The innermost `.catch`.
    Catch,
}

/// How often a `.sleep` looks whether it is to end.
const SLEEP_STEP: Duration = Duration::from_millis(20);

/// A prompt with its target and its session.
pub struct Shell {
    /// What lasts from one command to the next.
    pub session: Session,
    /// Text or JSON.
    pub format: Format,
    /// How long `.break` waits for the target.
    pub patience: Duration,
    /// `q` ends the session. A server's session is its client's to end: there `q` is refused.
    pub ends_by_q: bool,
    commands: &'static Table,
    target: Option<Target>,
    interrupt: Interrupt,
    scripts: usize,
    /// Loops that are being run, one in another.
    loops: usize,
    /// What `.break` or `.continue` said; the loop hears of it when its round is over.
    leaving: Option<Leaving>,
    /// `.catch` blocks that are being run, one in another.
    catches: usize,
    /// Ctrl+C ended a command: what follows it on the line is not run.
    cancelled: bool,
    /// A statement made no sense: what follows it on the line is not run.
    refused: bool,
    /// The line that ENTER repeats.
    last_line: String,
    /// Why the target stands still, once that was looked at.
    reason: Option<Reason>,
    /// The target was let go for one instruction.
    stepping: bool,
    /// The commands of a breakpoint want the session to end.
    ended: Option<Next>,
    /// kd's box about a break-in was shown: it says the same each time.
    explained_break: bool,
    /// The target's tags, for Tab, once they were read.
    seen_tags: Option<Vec<nt_pool::Tag>>,
    /// How long a command may hold the target (`--max-frozen`).
    pub max_frozen: Option<Duration>,
    /// The same of the command that runs.
    hold: Option<Duration>,
    /// Commands that run, one in another.
    running: usize,
    /// How the session ended, and what it had cost by then.
    left: Option<(Left, Cost)>,
}

impl Shell {
    /// `interrupt` is the one the target was attached with.
    pub(crate) fn with_commands(
        commands: &'static Table,
        session: Session,
        format: Format,
        interrupt: Interrupt,
    ) -> Self {
        session.symbols.source().monitor().use_interrupt(interrupt.clone());
        Self {
            session,
            format,
            commands,
            patience: Duration::from_secs(30),
            target: None,
            interrupt,
            scripts: 0,
            ends_by_q: true,
            loops: 0,
            leaving: None,
            catches: 0,
            cancelled: false,
            refused: false,
            last_line: String::new(),
            reason: None,
            stepping: false,
            ended: None,
            explained_break: false,
            seen_tags: None,
            max_frozen: None,
            hold: None,
            running: 0,
            left: None,
        }
    }

    /// From now on commands are of this target.
    pub fn set_target(&mut self, target: Target) {
        if let Some(consent) = &self.session.consent {
            target.use_gate(consent.clone());
        }
        self.target = Some(target);
    }

    /// Looks at the target's cost while a command runs.
    pub fn meter(&self) -> Option<Meter> {
        self.target.as_ref().map(Target::meter)
    }

    /// Ends the session, if it has not ended yet. `None`: there never was one.
    pub fn leave(&mut self, leave: Leave) -> Option<Left> {
        if let Some(target) = self.target.take() {
            let cost = target.cost();
            self.left = Some((target.leave(leave), cost));
        }
        self.left()
    }

    /// How the session ended.
    pub fn left(&self) -> Option<Left> {
        self.left.as_ref().map(|(left, _)| left.clone())
    }

    /// The target, to end its session.
    pub fn take_target(&mut self) -> Option<Target> {
        self.target.take()
    }

    /// Takes notice of what the target did by itself since.
    pub fn refresh(&mut self) {
        self.target = self.target.take().map(Target::current);
        if self.halted().is_none() {
            self.session.forget_choices();
            self.reason = None;
        }
    }

    /// The target started anew: nothing that is known of it holds.
    pub fn forget_target(&mut self) {
        self.session.symbols.forget();
        self.session.breakpoints.clear();
        self.seen_tags = None;
    }

    /// The target if it stands still.
    pub fn halted(&self) -> Option<&Halted> {
        match &self.target {
            Some(Target::Halted(halted)) => Some(halted),
            Some(Target::Running(_)) | None => None,
        }
    }

    /// One line about what of the symbol path does not exist; an error when nothing of it does.
    pub fn check_symbol_path(&self) -> Result<Option<String>, CommandError> {
        banner::missing_elements(&self.session.symbols.source().check())
    }

    /// Why the session is over, if it is.
    pub fn lost(&self) -> Option<String> {
        self.target.as_ref().and_then(Target::lost)
    }

    /// `kd> `; `None` while the target runs.
    pub fn prompt(&mut self) -> Option<String> {
        self.refresh();
        self.halted().map(|halted| banner::prompt(halted))
    }

    /// Undoes what a session that died left changed in this target, and says what.
    pub fn undo_leftovers(&self) -> Vec<String> {
        let Some(halted) = self.halted() else { return Vec::new() };
        crate::leftover::undo(halted).unwrap_or_else(|error| vec![error.to_string()])
    }

    /// The banner's first line. Nothing is read for it.
    pub fn connected(&self) -> Result<String, Fault> {
        let halted = self.halted().ok_or(Fault::Running)?;
        Ok(vertarget::connected(Kernel::version(halted), &Zoned::now()) + "\n")
    }

    /// The banner of a target that stands still for the first time.
    pub fn banner(&mut self, break_requested: bool) -> Result<String, Fault> {
        let Some(Target::Halted(halted)) = &self.target else { return Err(Fault::Running) };
        let suffix = if break_requested { "  (Initial Breakpoint requested)" } else { "" };
        let mut text = format!("{}Kernel Debugger connection established.{suffix}\n", self.connected()?);
        text.push_str(&self.session.symbols.offline(|symbols| banner::target(halted, symbols))?);
        Ok(text)
    }

    /// What a line stands for that was typed at the prompt of a target that stands: an empty one for the last that was not.
    /// Memory commands go on where they ended.
    pub fn typed(&mut self, line: &str) -> String {
        if !line.trim().is_empty() {
            self.last_line = line.trim().into();
            return line.into();
        }
        self.repeated().into()
    }

    fn repeated(&self) -> &str {
        let word = crate::grammar::line::command(&self.last_line).map(|command| command.word);
        let is_dump = word.is_some_and(|word| self.commands.find(&word).is_some_and(|info| info.names.contains(&"db")));
        match self.last_line.split_once(char::is_whitespace) {
            Some((word, _)) if is_dump && !self.last_line.contains(';') => word,
            _ => &self.last_line,
        }
    }

    /// Runs one line. Every command is answered. One that fails does not keep the others from running, unless it made no
    /// sense: the rest of its line is dropped then, as in kd.
    pub fn execute(&mut self, line: &str, out: &mut dyn Output) -> Outcome {
        self.session.columns = out.columns();
        if let Some(consent) = &self.session.consent {
            consent.begin();
        }
        // A Ctrl+C of before is not meant for this line.
        self.interrupt.take();
        self.cancelled = false;
        self.refused = false;
        self.leaving = None;
        let log = self.session.log.clone();
        if log.path().is_some() {
            let prompt = self.prompt().unwrap_or_default();
            log.write(&format!("{prompt}{line}\n"));
        }
        self.run_line(line, &mut Tee { out, log: &log })
    }

    fn run_line(&mut self, line: &str, out: &mut dyn Output) -> Outcome {
        if let Err(error) = split(line) {
            return self.refuse(line, CommandError::Usage(error.to_string()), out);
        }
        let line = self.session.aliases.expand(line).into_owned();
        self.run_statements(statements(&line), out)
    }

    /// Runs the commands of a block: aliases that were made since stand for their text.
    fn run_body(&mut self, body: &str, out: &mut dyn Output) -> Outcome {
        let body = self.session.aliases.expand(body).into_owned();
        self.run_statements(statements(&body), out)
    }

    fn run_statements(&mut self, statements: Vec<Statement<'_>>, out: &mut dyn Output) -> Outcome {
        let mut outcome = Outcome { failed: false, next: Next::Continue };
        let (mut at, mut rounds) = (0, 0);
        while let Some(statement) = statements.get(at) {
            at += 1;
            let one = match statement {
                Statement::Command(command) if command.word == "z" => {
                    rounds += 1;
                    match self.again(command.arguments, rounds) {
                        Ok(again) => {
                            at = if again { 0 } else { at };
                            Outcome { failed: false, next: Next::Continue }
                        }
                        Err(error) => self.refuse(command.text, error, out),
                    }
                }
                Statement::Command(command) => self.run_command(command, out),
                Statement::Script { file, arguments: None } => self.run_script(file, out),
                Statement::Script { file, arguments: Some(arguments) } => self.run_script_with(file, arguments, out),
                Statement::Block(block) => self.run_block(block.clone(), out),
            };
            outcome.failed |= one.failed;
            outcome.next = one.next;
            if self.is_over(&outcome) {
                break;
            }
        }
        outcome
    }

    /// Whether what follows a command is not run.
    fn is_over(&self, outcome: &Outcome) -> bool {
        outcome.next != Next::Continue || self.cancelled || self.refused || self.leaving.is_some()
    }

    /// What the session has asked of its target so far.
    pub fn cost(&self) -> Cost {
        match (&self.target, &self.left) {
            (Some(target), _) => target.cost(),
            (None, Some((_, cost))) => *cost,
            (None, None) => Cost::default(),
        }
    }

    /// From now on the command that runs may hold the target so long.
    fn hold(&mut self, limit: Duration) {
        if let Some(target) = self.target.as_ref().filter(|_| self.hold.is_none()) {
            target.holder().begin(limit);
            self.hold = Some(limit);
        }
    }

    /// The command is over. The limit, when it held the target longer.
    fn held(&mut self) -> Option<Duration> {
        let limit = self.hold.take()?;
        self.target.as_ref().is_some_and(|target| target.holder().end()).then_some(limit)
    }

    /// Runs a command that may hold the target only so long, if that is limited.
    fn holding(&mut self, run: impl FnOnce(&mut Self) -> Result<Reply, CommandError>) -> Result<Reply, CommandError> {
        if let (0, Some(limit)) = (self.running, self.max_frozen) {
            self.hold(limit);
        }
        self.running += 1;
        let reply = run(self);
        self.running -= 1;
        match if self.running == 0 { self.held() } else { None } {
            Some(limit) => {
                self.cancelled = true;
                cut_short(reply, limit)
            }
            None => reply,
        }
    }

    fn run_command(&mut self, command: &Command<'_>, out: &mut dyn Output) -> Outcome {
        self.notice_stop(out);
        let before = self.cost();
        self.session.symbols.source().monitor().begin();
        let span = tracing::info_span!("command", command = command.text);
        let _entered = span.enter();
        let mut next = Next::Continue;
        let reply = self.holding(|shell| {
            loop {
                let ran = shell.target.is_some() && shell.lost().is_none() && shell.halted().is_none();
                match shell.dispatch(command, before, &mut next, out) {
                    // As in kd: what follows g on a line or in a script is run when the target has stopped again.
                    Err(CommandError::Fault(Fault::Running)) if ran => match shell.wait_to_go_on(out) {
                        Ok(()) => {}
                        Err(error) => break Err(error),
                    },
                    reply => break reply,
                }
            }
        });
        let cost = difference(before, self.cost());
        if command.word != ".stats" {
            self.session.last_command = LastCommand { command: command.text.into(), cost };
        }
        // Extensions see to their arguments themselves: kd runs what follows them.
        let ends_line = !command.is_extension() || self.commands.find(&command.word).is_none();
        self.finish((command.text, ends_line), reply, cost, next, out)
    }

    /// Runs what a program asks for, as if `text` had been typed.
    pub(crate) fn perform(
        &mut self,
        text: &str,
        run: impl FnOnce(&mut Drive<'_>) -> Result<Reply, CommandError>,
        out: &mut dyn Output,
    ) -> Outcome {
        self.interrupt.take();
        self.cancelled = false;
        let log = self.session.log.clone();
        let out = &mut Tee { out, log: &log };
        self.notice_stop(out);
        let before = self.cost();
        self.session.symbols.source().monitor().begin();
        let reply = self.holding(|shell| run(&mut Drive { shell, out: &mut *out, word: "", arguments: "" }));
        let cost = difference(before, self.cost());
        self.finish((text, false), reply, cost, Next::Continue, out)
    }

    /// Shows what a command came to. The command as it was typed, and whether what
    /// follows it is not run when it is refused.
    fn finish(
        &mut self,
        (text, ends_line): (&str, bool),
        reply: Result<Reply, CommandError>,
        cost: Cost,
        mut next: Next,
        out: &mut dyn Output,
    ) -> Outcome {
        let refusal = self.session.consent.as_ref().and_then(|consent| consent.take_refusal());
        let reply = match (reply, refusal) {
            (Err(CommandError::Fault(Fault::Cancelled)), Some(why)) => {
                self.cancelled = true;
                Err(CommandError::Failed(why))
            }
            (reply, _) => reply,
        };
        let failure = show(text, reply, cost, self.format, out);
        match &failure {
            // At a terminal a target that does not answer for a while is waited for.
            Some(CommandError::Fault(Fault::Lost(_))) if self.lost().is_some() || !out.is_interactive() => {
                next = Next::Lost;
            }
            Some(CommandError::Fault(Fault::Cancelled)) => self.cancelled = true,
            // An expression wraps the interruption in its own words.
            Some(_) if self.session.symbols.source().monitor().was_interrupted() => self.cancelled = true,
            Some(error) => self.refused |= error.is_refusal() && ends_line,
            None => {}
        }
        if let Some(ended) = self.take_end() {
            next = ended;
        }
        Outcome { failed: failure.is_some(), next }
    }

    fn dispatch(
        &mut self,
        command: &Command<'_>,
        before: Cost,
        next: &mut Next,
        out: &mut dyn Output,
    ) -> Result<Reply, CommandError> {
        let Some(info) = self.commands.find(&command.word) else { return Err(self.commands.unknown(command)) };
        if matches!(command.arguments.trim(), "-?" | "/?") {
            return (self.commands.help)(self.commands, info.names[0], self.session.columns);
        }
        match info.action {
            Action::Answer(run) => {
                let lost = self.lost();
                run(&mut Context {
                    debuggee: debuggee(self.target.as_ref(), lost.as_deref()),
                    session: &mut self.session,
                    word: &command.word,
                    arguments: command.arguments,
                    cost: before,
                    commands: self.commands,
                })
            }
            Action::Control(control) => self.control(control, command.arguments, next, out),
            Action::Drive(run) => {
                run(&mut Drive { shell: self, out: &mut *out, word: &command.word, arguments: command.arguments })
            }
        }
    }

    /// Waits until the target stops, by itself or because the user wants it, and tells of it.
    fn wait_to_go_on(&mut self, out: &mut dyn Output) -> Result<(), CommandError> {
        match self.wait(None, out) {
            Ok(_) => {}
            // Ctrl+C is the stop that was waited for.
            Err(TargetError::Fault(Fault::Cancelled)) => self.break_in()?,
            Err(error) => return Err(error.into()),
        }
        self.look_at_stop(out)?;
        if self.format == Format::Kd
            && let Ok(lines) = self.stop_lines()
        {
            out.remark(&lines);
        }
        Ok(())
    }

    /// `z (expression)`: whether the line is run again.
    fn again(&mut self, condition: &str, rounds: u32) -> Result<bool, CommandError> {
        if self.interrupt.take() {
            return Err(Fault::Cancelled.into());
        }
        if rounds > script::MAX_ROUNDS {
            return Err(CommandError::Failed(format!("it did not end within {:#x} rounds", script::MAX_ROUNDS)));
        }
        Ok(self.evaluate(condition)? != 0)
    }
}

/// An event as kd shows it; `None` for what it does not show. Drivers that come and go are for those who want to know
/// more.
pub fn event_text(event: &Event, verbose: bool) -> Option<String> {
    match event {
        Event::Print(text) => Some(banner::printed(text)),
        Event::Prompt { text, answer } => Some(format!("{}{}\n", banner::printed(text), visible_name(answer))),
        Event::Restarted { announced } => Some(banner::restarted(*announced, &Zoned::now())),
        Event::BreakpointMissed { address, why } => {
            Some(format!("Unable to insert the breakpoint at {}: {why}\n", tick(*address)))
        }
        Event::Silent => Some(
            "The target stands and does not answer. It is asked until it does; q lets it go as soon as it can.\n"
                .into(),
        ),
        Event::AnswersAgain => Some("The target answers again. It stands where it was left.\n".into()),
        Event::Lost(why) => Some(format!("The connection to the target is lost: {why}\n")),
        Event::ModuleChange { path, base, size, unload } if verbose => {
            Some(banner::module_change(path, *base, *size, *unload))
        }
        _ => None,
    }
}

/// The target was let go under a command: what it has is shown, and that it is not all.
fn cut_short(reply: Result<Reply, CommandError>, limit: Duration) -> Result<Reply, CommandError> {
    let line = format!(
        "the command held the target for {} s (--max-frozen): the target was let go, and the command ended with what it \
         had",
        limit.as_secs_f64()
    );
    match reply {
        Ok(mut reply) => {
            reply.complete = false;
            reply.warnings.push(line);
            Ok(reply)
        }
        Err(_) => Err(CommandError::Failed(line)),
    }
}

fn debuggee<'a>(target: Option<&'a Target>, lost: Option<&'a str>) -> Debuggee<'a> {
    match (target, lost) {
        (None, _) => Debuggee::None,
        (Some(_), Some(why)) => Debuggee::Lost(why),
        (Some(Target::Running(_)), None) => Debuggee::Running,
        (Some(Target::Halted(halted)), None) => Debuggee::Halted(halted),
    }
}
