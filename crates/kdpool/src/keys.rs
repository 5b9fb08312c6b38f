//! Keys that count by themselves, while a command shows a table that is sorted by them.

/// The terminal gives key by key, and shows none of them, from [`Keys::listen`] until this is dropped. Ctrl+C stays what
/// it is.
pub(crate) struct Keys(());

#[cfg(unix)]
mod terminal {
    use std::io::{self, IsTerminal};
    use std::os::fd::AsFd;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

    /// How the terminal was. Whoever ends the process in the middle of a command puts it back as well.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

    fn before() -> MutexGuard<'static, Option<Termios>> {
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin() -> bool {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !io::stdout().is_terminal() {
            return false;
        }
        let Ok(mut termios) = tcgetattr(stdin.as_fd()) else { return false };
        before().get_or_insert_with(|| termios.clone());
        termios.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &termios).is_ok()
    }

    pub(super) fn end() {
        if let Some(termios) = before().take() {
            // A terminal that went away needs nothing.
            let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &termios);
        }
    }

    pub(super) fn next() -> Option<char> {
        let stdin = io::stdin();
        let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        // A signal, Ctrl+C for example, is somebody else's business.
        if poll(&mut ready, PollTimeout::ZERO).ok()? == 0 {
            return None;
        }
        let mut byte = [0];
        // What is more than a byte means nothing to anybody here, byte by byte.
        (nix::unistd::read(stdin.as_fd(), &mut byte).ok()? == 1).then_some(byte[0].into())
    }
}

/// A console tells of keys while they are pressed, whatever else it does with lines: nothing of it is changed.
#[cfg(windows)]
mod terminal {
    use std::io::{self, IsTerminal};

    use crossterm::event::KeyCode;

    pub(super) fn begin() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    pub(super) fn end() {}

    pub(super) fn next() -> Option<char> {
        match super::console::next()?.code {
            KeyCode::Char(key) => Some(key),
            KeyCode::Esc => Some('\u{1b}'),
            // Means nothing to anybody here; what was pressed behind it is seen all the same.
            _ => Some('\0'),
        }
    }
}

/// What is pressed at a console.
#[cfg(windows)]
pub(crate) mod console {
    use std::time::Duration;

    use crossterm::event::{self, Event, KeyEvent, KeyEventKind};

    /// A key that was pressed since, if there is one. What stands behind it stays where it is.
    pub(crate) fn next() -> Option<KeyEvent> {
        // Without a console, in a terminal that is a pipe for example, there are no keys.
        while event::poll(Duration::ZERO).ok()? {
            match event::read().ok()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => return Some(key),
                _ => {}
            }
        }
        None
    }
}

impl Keys {
    /// `None`: nobody sits at a terminal.
    pub(crate) fn listen() -> Option<Keys> {
        terminal::begin().then_some(Keys(()))
    }

    /// A key that was pressed.
    pub(crate) fn next(&self) -> Option<char> {
        terminal::next()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if a command had changed it.
pub(crate) fn restore() {
    terminal::end();
}
