//! The system that this host runs, in the words that the program prints: what is typed here differs from one to the other.
//! What works differently is in kd-link and in the terminal's modules (keys.rs, signals.rs, terminal.rs).

/// A family of systems that have their commands in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Linux,
    MacOs,
    Windows,
    /// Any other Unix.
    Other,
}

/// The one that this program was built for.
pub(crate) const HERE: System = if cfg!(windows) {
    System::Windows
} else if cfg!(target_os = "macos") {
    System::MacOs
} else if cfg!(target_os = "linux") {
    System::Linux
} else {
    System::Other
};

impl System {
    /// The command that says which program has a UDP port.
    pub(crate) fn who_holds(self, port: u16) -> String {
        match self {
            System::Windows => format!("netstat -ano -p udp | findstr :{port}"),
            System::Linux => format!("ss -lunp 'sport = :{port}'"),
            System::MacOs | System::Other => format!("lsof -nP -iUDP:{port}"),
        }
    }

    /// A name for a hypervisor's pipe or socket.
    pub(crate) fn pipe(self) -> &'static str {
        match self {
            System::Windows => r"\\.\pipe\kd",
            _ => "/tmp/kd.sock",
        }
    }

    /// A serial device as it is usually called.
    pub(crate) fn serial_device(self) -> &'static str {
        match self {
            System::Windows => "com1",
            System::MacOs => "/dev/cu.usbserial",
            System::Linux | System::Other => "/dev/ttyUSB0",
        }
    }

    /// A word as it is typed in this system's shell.
    pub(crate) fn typed(self, word: &str) -> String {
        let plain = |c: char| c.is_alphanumeric() || "/\\.:,=_-+@%".contains(c);
        match self {
            _ if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
            System::Windows => format!("\"{word}\""),
            _ => format!("'{}'", word.replace('\'', r"'\''")),
        }
    }

    /// The command after which the user may open serial devices, where that is a matter of a group.
    pub(crate) fn serial_rights(self) -> Option<&'static str> {
        (self == System::Linux).then_some("sudo usermod -aG dialout $USER")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_system() {
        assert!(System::Windows.who_holds(50000).starts_with("netstat"));
        assert!(System::Linux.who_holds(50000).starts_with("ss "));
        assert!(System::MacOs.who_holds(50000).starts_with("lsof"));
        assert!(System::Windows.serial_rights().is_none());
        assert_eq!(System::Linux.typed("/tmp/a-b/c.d"), "/tmp/a-b/c.d");
        assert_eq!(System::Linux.typed("it's mine"), r"'it'\''s mine'");
        assert_eq!(System::Windows.typed(r"C:\my symbols"), r#""C:\my symbols""#);
    }
}
