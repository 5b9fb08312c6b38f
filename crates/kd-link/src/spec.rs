//! The `-k` string: which carrier, and how to reach it.
//!
//! The grammar is kd's: a carrier, a colon, and comma-separated options in any order, whose names are not
//! case-sensitive.
//!
//! | carrier | string |
//! |---|---|
//! | KDNET | `net:port=50000,key=1.2.3.4[,target=HOST]`, `key=@FILE` or without `key=` (below) |
//! | serial device | `com:port=/dev/ttyUSB0[,baud=115200]` |
//! | a VM's serial pipe | `com:pipe,port=PATH[,resets=N][,reconnect]` |
//! | serial over TCP | `com:ipport=N,port=HOST[,reconnect]` |
//!
//! A key on a command line stands in the list of processes, for every user of the machine to read, and in the shell's
//! history. So it may also be the first line of a file (`key=@FILE`), or the value of [`KEY_VARIABLE`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use zeroize::Zeroizing;

/// The line rate when `baud=` is not given; what `bcdedit /dbgsettings serial` uses by default too.
pub const DEFAULT_BAUD: u32 = 115_200;

/// Where the key is looked for when a `net:` string has none.
pub const KEY_VARIABLE: &str = "KDPOOL_KEY";

/// The most that is read of a key's file: a key has 55 letters at most, and any file may be named.
const MAX_KEY_FILE: u64 = 4096;

/// A parsed `-k` string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KdSpec {
    /// KDNET, over UDP.
    Net(NetSpec),
    /// A serial device of this machine.
    Serial(SerialSpec),
    /// A named pipe or a Unix socket: a virtual machine's serial port.
    Pipe(PipeSpec),
    /// A serial line behind a TCP port.
    Tcp(TcpSpec),
}

/// KDNET: this host listens on a UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// The UDP port of this machine that the target sends to.
    pub port: u16,
    /// The key that the target was told.
    pub key: KeyText,
    /// Where to ask for an offer, instead of waiting for one.
    pub target: Option<NetTarget>,
}

/// What `target=` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetTarget {
    /// `target=0.0.0.0`: listen on IPv4 only.
    AnyV4,
    /// `target=::`: listen on IPv6 only.
    AnyV6,
    /// A name or an address to poke, so that the target connects to this debugger.
    Host(String),
}

/// A serial device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialSpec {
    /// `COM1`, `/dev/ttyUSB0`.
    pub port: String,
    /// Bits per second, as the target was told.
    pub baud: u32,
}

/// A serial port that a VM exports as a Unix-domain socket or a Windows named pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeSpec {
    /// `\\.\pipe\com_1`, or a socket's path.
    pub port: String,
    /// How many reset packets may be sent while synchronising; 0 is any number, `None` leaves it to the session.
    pub resets: Option<u32>,
    /// Wait for the pipe to exist, and open it again when it breaks.
    pub reconnect: bool,
}

/// A serial port that is exported over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSpec {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Wait for the server, and connect again when the connection breaks.
    pub reconnect: bool,
}

/// A KDNET key as it was typed. Never printed: `Debug` hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// Checks the shape only (four parts of 1 to 13 base-36 digits); `kd-wire` gives the parts their values.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() != 4 {
            return Err(SpecError::KeyParts(parts.len()));
        }
        for (index, part) in parts.iter().enumerate() {
            if part.is_empty() || part.len() > 13 || !part.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(SpecError::KeyPart(index + 1));
            }
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The first line of a file.
    pub fn from_file(path: &str) -> Result<Self, SpecError> {
        let mut text = Zeroizing::new(Vec::new());
        File::open(path)
            .and_then(|file| file.take(MAX_KEY_FILE).read_to_end(&mut text))
            .map_err(|error| SpecError::KeyFile { path: path.to_owned(), why: reason(&error) })?;
        // Notepad may have put a byte order mark before it.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Self::parse(str::from_utf8(line).unwrap_or_default().trim())
    }

    /// The key itself, for the code that derives the cipher keys from it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(hidden)")
    }
}

/// Why a `-k` string is refused. One line each, and never the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There is no `net:` or `com:` at its beginning.
    #[error("connection string `{0}` has no carrier: use net:port=N,key=w.x.y.z or com:port=DEVICE,baud=N")]
    NoCarrier(String),
    /// Another word than `net` and `com`.
    #[error("carrier `{0}` is not supported: use net: or com:")]
    Carrier(String),
    /// An option that this carrier does not have.
    #[error("{carrier}: has no option `{option}`; it takes {known}")]
    Option {
        /// `net` or `com`.
        carrier: &'static str,
        /// The word.
        option: String,
        /// What it has, as a list.
        known: &'static str,
    },
    /// The same option once more.
    #[error("{carrier}: option `{option}` is given twice")]
    Twice {
        /// `net` or `com`.
        carrier: &'static str,
        /// Its name: `port`, `key`.
        option: &'static str,
    },
    /// It cannot do without this option.
    #[error("{carrier}: needs {what}")]
    Missing {
        /// `net` or `com`.
        carrier: &'static str,
        /// The option, and what it is.
        what: &'static str,
    },
    /// A value that is not in its range.
    #[error("{carrier}: {option}={value} is not a number from {min} to {max}")]
    Number {
        /// `net` or `com`.
        carrier: &'static str,
        /// Its name: `port`, `baud`.
        option: &'static str,
        /// What was given.
        value: String,
        /// The least that it may be.
        min: u32,
        /// The most that it may be.
        max: u32,
    },
    /// A flag with `=`.
    #[error("{carrier}: option `{option}` takes no value")]
    NoValue {
        /// `net` or `com`.
        carrier: &'static str,
        /// Its name: `pipe`, `reconnect`.
        option: &'static str,
    },
    /// Two carriers in one string.
    #[error("com: pipe and ipport exclude each other")]
    PipeAndTcp,
    /// An option of pipes and TCP on a serial device.
    #[error("com: `{0}` is for com:pipe and com:ipport only")]
    StreamOnly(&'static str),
    /// The key has so many parts.
    #[error("net: the key has {0} part(s), but must be four base-36 numbers joined by dots, as in 1.2.3.4")]
    KeyParts(usize),
    /// `key=@FILE`, and the file does not give a key.
    #[error("net: cannot read the key's file {path}: {why}")]
    KeyFile {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// This part of the key, counted from 1.
    #[error("net: part {0} of the key is not a base-36 number of 1 to 13 digits (0-9, a-z)")]
    KeyPart(usize),
}

impl KdSpec {
    /// Parses a `-k` string. The key is read from where the string says, so this may read a file or the environment.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let (carrier, options) =
            text.trim().split_once(':').ok_or_else(|| SpecError::NoCarrier(without_key(text.trim())))?;
        match carrier.trim().to_ascii_lowercase().as_str() {
            "net" => parse_net(options),
            "com" => parse_com(options),
            // Without a carrier the first colon may be that of `target=::`, behind the key.
            _ => Err(SpecError::Carrier(without_key(carrier.trim()))),
        }
    }

    /// Whether the carrier is waited for until it opens, and opened again when it breaks.
    pub fn reconnects(&self) -> bool {
        match self {
            Self::Net(_) | Self::Serial(_) => false,
            Self::Pipe(pipe) => pipe.reconnect,
            Self::Tcp(tcp) => tcp.reconnect,
        }
    }

    /// What a bare `-k` means: the serial port of `_NT_DEBUG_PORT` (default `com1`) at `_NT_DEBUG_BAUD_RATE`
    /// (default 115200).
    pub fn from_environment() -> Result<Self, SpecError> {
        Self::from_variables(std::env::var("_NT_DEBUG_PORT").ok(), std::env::var("_NT_DEBUG_BAUD_RATE").ok())
    }

    fn from_variables(port: Option<String>, baud: Option<String>) -> Result<Self, SpecError> {
        let set = |value: Option<String>| value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let port = set(port).unwrap_or_else(|| "com1".to_owned());
        let baud = match set(baud) {
            Some(text) => number("_NT_DEBUG_BAUD_RATE", "baud", &text, 1, MAX_BAUD)?,
            None => DEFAULT_BAUD,
        };
        Ok(Self::Serial(SerialSpec { port, baud }))
    }
}

impl FromStr for KdSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text)
    }
}

/// The connection as a string that may be shown and logged: the key is replaced.
impl fmt::Display for KdSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => {
                write!(f, "net:port={},key=<hidden>", net.port)?;
                match &net.target {
                    None => Ok(()),
                    Some(NetTarget::AnyV4) => f.write_str(",target=0.0.0.0"),
                    Some(NetTarget::AnyV6) => f.write_str(",target=::"),
                    Some(NetTarget::Host(host)) => write!(f, ",target={host}"),
                }
            }
            Self::Serial(serial) => write!(f, "com:port={},baud={}", serial.port, serial.baud),
            Self::Pipe(pipe) => {
                write!(f, "com:pipe,port={}", pipe.port)?;
                if let Some(resets) = pipe.resets {
                    write!(f, ",resets={resets}")?;
                }
                f.write_str(if pipe.reconnect { ",reconnect" } else { "" })
            }
            Self::Tcp(tcp) => {
                write!(f, "com:ipport={},port={}", tcp.port, tcp.host)?;
                f.write_str(if tcp.reconnect { ",reconnect" } else { "" })
            }
        }
    }
}

/// The fastest rate common adapters reach; more is a typing error.
const MAX_BAUD: u32 = 20_000_000;

fn parse_net(options: &str) -> Result<KdSpec, SpecError> {
    const NET: &str = "net";
    let (mut port, mut key, mut target) = (None, None, None);
    for (name, value) in split(options) {
        match name.as_str() {
            "port" => once(NET, "port", &mut port, value)?,
            "key" => once(NET, "key", &mut key, value)?,
            "target" => once(NET, "target", &mut target, value)?,
            _ => {
                // `key:1.2.3.4` is an option of that name.
                let option = without_key(&name);
                return Err(SpecError::Option { carrier: NET, option, known: "port, key and target" });
            }
        }
    }
    let port = given(NET, "port=N, the UDP port the target was told", port)?;
    let key = match key.filter(|key| !key.is_empty()) {
        Some(key) => match key.strip_prefix('@') {
            Some(file) => KeyText::from_file(given(NET, "a file's name after key=@", Some(file))?)?,
            None => KeyText::parse(key)?,
        },
        None => {
            let key = std::env::var(KEY_VARIABLE).ok().map(Zeroizing::new).filter(|key| !key.trim().is_empty());
            let what = "key=w.x.y.z, the key the target was told, or key=@FILE, or the key in KDPOOL_KEY";
            KeyText::parse(key.ok_or(SpecError::Missing { carrier: NET, what })?.trim())?
        }
    };
    let target = match target {
        None => None,
        // The key is not a part of a name, which is shown.
        Some(text) if without_key(text) != text && text.contains('=') => {
            return Err(SpecError::Missing { carrier: NET, what: "a comma behind target=HOST" });
        }
        Some(text) => Some(match given(NET, "a name or an address after target=", Some(bare(text)))? {
            "0.0.0.0" => NetTarget::AnyV4,
            "::" => NetTarget::AnyV6,
            host => NetTarget::Host(host.to_owned()),
        }),
    };
    Ok(KdSpec::Net(NetSpec { port: number16(NET, "port", port)?, key, target }))
}

fn parse_com(options: &str) -> Result<KdSpec, SpecError> {
    const COM: &str = "com";
    let (mut port, mut baud, mut resets, mut ipport) = (None, None, None, None);
    let (mut pipe, mut reconnect) = (None, None);
    for (name, value) in split(options) {
        match name.as_str() {
            "port" => once(COM, "port", &mut port, value)?,
            "baud" => once(COM, "baud", &mut baud, value)?,
            "resets" => once(COM, "resets", &mut resets, value)?,
            "ipport" => once(COM, "ipport", &mut ipport, value)?,
            "pipe" => flag(COM, "pipe", &mut pipe, value)?,
            "reconnect" => flag(COM, "reconnect", &mut reconnect, value)?,
            "modem" => return Err(SpecError::Carrier("com:modem".to_owned())),
            _ => {
                let known = "port, baud, pipe, resets, reconnect and ipport";
                return Err(SpecError::Option { carrier: COM, option: name, known });
            }
        }
    }
    let reconnect = reconnect.is_some();
    let baud = baud.map(|text| number(COM, "baud", text, 1, MAX_BAUD)).transpose()?;
    let resets = resets.map(|text| number(COM, "resets", text, 0, u32::MAX)).transpose()?;
    match (pipe, ipport) {
        (Some(()), Some(_)) => Err(SpecError::PipeAndTcp),
        (Some(()), None) => {
            let port = given(COM, "port=PATH, the pipe or socket of the VM's serial port", port)?.to_owned();
            Ok(KdSpec::Pipe(PipeSpec { port, resets, reconnect }))
        }
        (None, Some(ipport)) => {
            let host = given(COM, "port=HOST, the machine that exports the serial port", port.map(bare))?.to_owned();
            Ok(KdSpec::Tcp(TcpSpec { host, port: number16(COM, "ipport", ipport)?, reconnect }))
        }
        (None, None) if reconnect => Err(SpecError::StreamOnly("reconnect")),
        (None, None) if resets.is_some() => Err(SpecError::StreamOnly("resets")),
        (None, None) => {
            let port = given(COM, "port=DEVICE, such as com1 or /dev/ttyUSB0", port)?.to_owned();
            Ok(KdSpec::Serial(SerialSpec { port, baud: baud.unwrap_or(DEFAULT_BAUD) }))
        }
    }
}

/// The options as (lower-case name, value); empty ones, as a trailing comma leaves, are passed over.
fn split(options: &str) -> impl Iterator<Item = (String, Option<&str>)> {
    options.split(',').map(str::trim).filter(|option| !option.is_empty()).map(|option| match option.split_once('=') {
        Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.trim())),
        None => (option.to_ascii_lowercase(), None),
    })
}

fn once<'a>(
    carrier: &'static str,
    option: &'static str,
    slot: &mut Option<&'a str>,
    value: Option<&'a str>,
) -> Result<(), SpecError> {
    match slot.replace(value.unwrap_or_default()) {
        None => Ok(()),
        Some(_) => Err(SpecError::Twice { carrier, option }),
    }
}

fn flag(
    carrier: &'static str,
    option: &'static str,
    slot: &mut Option<()>,
    value: Option<&str>,
) -> Result<(), SpecError> {
    match (value, slot.replace(())) {
        (Some(_), _) => Err(SpecError::NoValue { carrier, option }),
        (None, Some(())) => Err(SpecError::Twice { carrier, option }),
        (None, None) => Ok(()),
    }
}

fn given<'a>(carrier: &'static str, what: &'static str, value: Option<&'a str>) -> Result<&'a str, SpecError> {
    value.filter(|text| !text.is_empty()).ok_or(SpecError::Missing { carrier, what })
}

fn number(carrier: &'static str, option: &'static str, text: &str, min: u32, max: u32) -> Result<u32, SpecError> {
    let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = if all_digits { text.parse().ok() } else { None };
    value.filter(|n| (min..=max).contains(n)).ok_or_else(|| SpecError::Number {
        carrier,
        option,
        // A blank instead of a comma makes the key a part of it.
        value: without_key(text),
        min,
        max,
    })
}

fn number16(carrier: &'static str, option: &'static str, text: &str) -> Result<u16, SpecError> {
    // In range by `max`.
    Ok(number(carrier, option, text, 1, u16::MAX.into())? as u16)
}

/// An address without the brackets that it wears in URLs.
fn bare(host: &str) -> &str {
    host.trim_matches(|c: char| c.is_whitespace() || matches!(c, '[' | ']'))
}

/// An error's text without the number that only programs need.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// A string that did not parse may still hold a key: everything from `key` on is cut.
fn without_key(text: &str) -> String {
    match text.to_ascii_lowercase().find("key") {
        Some(at) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(port: u16, target: Option<NetTarget>) -> KdSpec {
        KdSpec::Net(NetSpec { port, key: KeyText::parse("1.2.3.4").unwrap(), target })
    }

    #[test]
    fn accepts_kds_strings() {
        let host = |h: &str| Some(NetTarget::Host(h.to_owned()));
        for (text, expected) in [
            ("net:port=50000,key=1.2.3.4", net(50000, None)),
            ("NET:Key=1.2.3.4,Port=50000,", net(50000, None)),
            ("net:port=50000,key=1.2.3.4,target=win7", net(50000, host("win7"))),
            ("net:port=50000,key=1.2.3.4,target=[fe80::1]", net(50000, host("fe80::1"))),
            ("net:port=50000,key=1.2.3.4,target=::", net(50000, Some(NetTarget::AnyV6))),
            ("net:port=50000,key=1.2.3.4,target=[ :: ]", net(50000, Some(NetTarget::AnyV6))),
            ("net:port=50000,key=1.2.3.4,target=[0.0.0.0]", net(50000, Some(NetTarget::AnyV4))),
            ("net:port=50000,key=1.2.3.4,target=0.0.0.0", net(50000, Some(NetTarget::AnyV4))),
            (
                "com:port=/dev/ttyUSB0,baud=57600",
                KdSpec::Serial(SerialSpec { port: "/dev/ttyUSB0".into(), baud: 57600 }),
            ),
            ("com:port=com1", KdSpec::Serial(SerialSpec { port: "com1".into(), baud: 115200 })),
            (r"com:port=\\.\com1", KdSpec::Serial(SerialSpec { port: r"\\.\com1".into(), baud: 115200 })),
            (
                r"com:pipe,port=\\.\pipe\x,resets=0,reconnect",
                KdSpec::Pipe(PipeSpec { port: r"\\.\pipe\x".into(), resets: Some(0), reconnect: true }),
            ),
            (
                "com:port=/tmp/kd.sock,pipe",
                KdSpec::Pipe(PipeSpec { port: "/tmp/kd.sock".into(), resets: None, reconnect: false }),
            ),
            (
                "com:ipport=4444,port=vmhost",
                KdSpec::Tcp(TcpSpec { host: "vmhost".into(), port: 4444, reconnect: false }),
            ),
            (
                "com:port=::1,ipport=4444,reconnect",
                KdSpec::Tcp(TcpSpec { host: "::1".into(), port: 4444, reconnect: true }),
            ),
        ] {
            assert_eq!(KdSpec::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_with_one_line_that_names_the_fault() {
        for (text, expected) in [
            ("50000", "connection string `50000` has no carrier"),
            ("usb:targetname=x", "carrier `usb` is not supported"),
            ("com:modem", "carrier `com:modem` is not supported"),
            ("net:port=50000", "net: needs key=w.x.y.z"),
            ("net:key=1.2.3.4", "net: needs port=N"),
            ("net:port=50000,key=", "net: needs key=w.x.y.z"),
            ("net:port=50000,key=1.2.3", "net: the key has 3 part(s), but must be four base-36 numbers"),
            ("net:port=50000,key=!", "net: the key has 1 part(s)"),
            ("net:port=50000,key=1.2.!.4", "net: part 3 of the key is not a base-36 number"),
            ("net:port=50000,key=1.2.3.12345678901234", "net: part 4 of the key"),
            ("net:port=0,key=1.2.3.4", "net: port=0 is not a number from 1 to 65535"),
            ("net:port=70000,key=1.2.3.4", "net: port=70000 is not a number from 1 to 65535"),
            ("net:port=+5,key=1.2.3.4", "net: port=+5 is not a number"),
            ("net:port=1,port=2,key=1.2.3.4", "net: option `port` is given twice"),
            ("net:port=1,key=1.2.3.4,baud=9", "net: has no option `baud`; it takes port, key and target"),
            ("net:port=1,key=1.2.3.4,target=", "net: needs a name or an address after target="),
            ("com:baud=9600", "com: needs port=DEVICE"),
            ("com:port=com1,baud=fast", "com: baud=fast is not a number from 1 to 20000000"),
            ("com:pipe", "com: needs port=PATH"),
            ("com:pipe=1,port=x", "com: option `pipe` takes no value"),
            ("com:pipe,ipport=1,port=x", "com: pipe and ipport exclude each other"),
            ("com:port=com1,reconnect", "com: `reconnect` is for com:pipe and com:ipport only"),
            ("com:port=com1,speed=1", "com: has no option `speed`; it takes port, baud"),
        ] {
            let error = KdSpec::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn never_shows_the_key() {
        let secret = "secretpart1.b.c.d";
        let spec = KdSpec::parse(&format!("net:port=50000,key={secret}")).unwrap();
        assert!(!format!("{spec:?} {spec}").contains("secretpart"));
        assert!(matches!(&spec, KdSpec::Net(net) if net.key.expose() == secret));
        for text in [
            "net:port=1,key=secretpart1.b.c",
            "net:port=1,key=a.b.c.secretpart12345",
            "port=1,key=secretpart1",
            // Found by fuzzing: the first colon is that of an address; a comma or a sign was mistyped.
            "port=1,key=secretpart1.b.c.d,target=::",
            "net,key=secretpart1.b.c.d:port=1",
            "net:port=50000 key=secretpart1.b.c.d",
            "net:port=50000,key:secretpart1.b.c.d",
            "net:port=50000,target=win7 key=secretpart1.b.c.d,key=1.2.3.4",
        ] {
            let error = KdSpec::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secretpart"), "{error:?}");
        }
    }

    #[test]
    fn a_key_may_lie_in_a_file() {
        let folder = std::env::temp_dir().join(format!("kd-link-key-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("a key.txt");
        let spec = format!("net:port=50000,key=@{}", file.display());
        for text in ["1.2.3.4", "1.2.3.4\r\nwritten down on Monday\n", "\u{feff} 1.2.3.4 \n"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(KdSpec::parse(&spec), Ok(net(50000, None)), "{text:?}");
        }
        std::fs::write(&file, "secretpart1.b.c\n").unwrap();
        let error = KdSpec::parse(&spec).unwrap_err().to_string();
        assert!(error.contains("3 part(s)") && !error.contains("secretpart"), "{error}");
        std::fs::write(&file, [0xff; 5000]).unwrap();
        assert!(KdSpec::parse(&spec).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
        let error = KdSpec::parse(&spec).unwrap_err().to_string();
        assert!(error.starts_with("net: cannot read the key's file ") && error.contains("a key.txt: "), "{error}");
        assert!(KdSpec::parse("net:port=50000,key=@").unwrap_err().to_string().contains("a file's name"));
    }

    #[test]
    fn shown_strings_parse_back() {
        for text in ["com:port=com1,baud=9600", "com:pipe,port=/s,resets=0,reconnect", "com:ipport=1,port=h,reconnect"]
        {
            assert_eq!(KdSpec::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn bare_k_reads_the_environment() {
        let parse = |port: Option<&str>, baud: Option<&str>| {
            KdSpec::from_variables(port.map(str::to_owned), baud.map(str::to_owned))
        };
        let serial = |port: &str, baud| Ok(KdSpec::Serial(SerialSpec { port: port.into(), baud }));
        assert_eq!(parse(None, None), serial("com1", 115200));
        assert_eq!(parse(Some("com2"), Some("19200")), serial("com2", 19200));
        assert!(parse(None, Some("x")).unwrap_err().to_string().contains("_NT_DEBUG_BAUD_RATE"));
    }
}
