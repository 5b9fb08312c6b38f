//! `kdpool doctor`: what of this host stands between kdpool and a target, with the next step for each finding.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use console::Term;
use kd_link::{KdSpec, NetTarget, OpenError, SerialSpec};
use kd_shell::ResultShape;
use nt_symbols::{Element, Http, Outcome, PdbId, Reach, Servers, SymbolPath};
use schemars::JsonSchema;
use serde::Serialize;

use crate::console::fitting;
use crate::decode::OutputFormat;
use crate::setup::{Firewall, Passage};
use crate::{COMMAND_FAILED, debug, host};

/// Check this host: port, firewall, address, symbols, serial devices.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kdpool doctor
  kdpool doctor -k com:port=/dev/ttyUSB0 -y 'srv*'

Nothing is sent to a target; a serial device, pipe or TCP port is opened and closed.
Exit status: 0 nothing is in the way as far as can be seen, 1 something is, 2 usage.")]
pub(crate) struct DoctorArgs {
    /// Check what this connection needs, as kdpool's own -k takes it
    #[arg(short = 'k', value_name = "CONNECTION", conflicts_with = "port")]
    connection: Option<String>,
    /// UDP port of KDNET
    #[arg(long, value_name = "N", default_value_t = 50000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Symbol path [default: _NT_SYMBOL_PATH, else srv*]
    #[arg(short = 'y', value_name = "PATH")]
    symbol_path: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Bad,
    /// It cannot be seen from here.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, JsonSchema, Serialize)]
struct Check {
    what: String,
    state: State,
    found: String,
    /// What to do; empty when there is nothing to do.
    next: String,
}

/// What `--format json` prints, on one line.
pub(crate) const SHAPE: ResultShape = ResultShape::of::<Vec<Check>>("kdpool-doctor");

fn check(what: impl Into<String>, state: State, found: impl Into<String>, next: impl Into<String>) -> Check {
    Check { what: what.into(), state, found: found.into(), next: next.into() }
}

pub(crate) fn run(arguments: DoctorArgs) -> Result<ExitCode> {
    let spec = match arguments.connection.as_deref().map(KdSpec::parse).transpose() {
        Ok(spec) => spec,
        Err(error) => return Ok(debug::usage(&format!("-k: {error}"))),
    };
    let named = crate::inputs::symbol_path(arguments.symbol_path.as_deref());
    let path = if named.is_empty() { "srv*" } else { &named };
    let path = match SymbolPath::parse(path) {
        Ok(path) => path,
        Err(error) => return Ok(debug::usage(&format!("-y: {error}"))),
    };
    let mut checks = carrier(spec.as_ref(), arguments.port)?;
    checks.extend(symbols(&path));
    let text = match arguments.format {
        OutputFormat::Text => fitting(&Term::stdout(), &text(&checks)),
        OutputFormat::Json => format!("{}\n", serde_json::to_string(&checks)?),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot write to standard output");
        }
        _ => {}
    }
    let bad = checks.iter().any(|check| check.state == State::Bad);
    Ok(if bad { ExitCode::from(COMMAND_FAILED) } else { ExitCode::SUCCESS })
}

fn text(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Bad => "BAD",
            State::Unknown => "?",
        };
        out.push_str(&format!("{state:<4}{}: {}\n", check.what, check.found));
        if !check.next.is_empty() {
            out.push_str(&format!("      {}\n", check.next));
        }
    }
    out
}

/// What carries the session.
fn carrier(spec: Option<&KdSpec>, port: u16) -> Result<Vec<Check>> {
    Ok(match spec {
        Some(KdSpec::Net(net)) => {
            let peer = match &net.target {
                Some(NetTarget::Host(host)) => Some(host.as_str()),
                _ => None,
            };
            network(net.port, peer)
        }
        Some(spec) => vec![opens(spec)?],
        None => {
            let mut checks = network(port, None);
            for port in kd_link::serial_devices() {
                checks.push(opens(&KdSpec::Serial(SerialSpec { port, baud: kd_link::DEFAULT_BAUD }))?);
            }
            checks
        }
    })
}

fn network(port: u16, peer: Option<&str>) -> Vec<Check> {
    let mut checks = vec![free_port(port)];
    let walls = Firewall::found();
    if walls.is_empty() {
        checks.push(check("firewall", State::Ok, "none was found on this host", ""));
    }
    for wall in walls {
        let what = format!("firewall ({})", wall.name());
        let opens = wall.opens(port);
        let next = if opens.is_empty() { wall.note().to_owned() } else { format!("open it: {opens}") };
        checks.push(match wall.passage(port) {
            Passage::Open => check(what, State::Ok, format!("UDP port {port} is let in"), ""),
            Passage::Closed => check(what, State::Bad, format!("UDP port {port} is not let in"), next),
            Passage::Unknown(why) => check(what, State::Unknown, why, next),
        });
    }
    checks.push(address(port, peer));
    checks
}

fn free_port(port: u16) -> Check {
    let what = format!("UDP port {port}");
    match UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
        Ok(_) => check(what, State::Ok, "free", ""),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let who = format!("who holds it: {}", host::HERE.who_holds(port));
            check(what, State::Bad, "another program holds it, a debugger perhaps", who)
        }
        Err(error) => check(what, State::Bad, error.to_string(), "take a port from 50000 to 50039"),
    }
}

/// The address that the target's settings must name.
fn address(port: u16, peer: Option<&str>) -> Check {
    let what = "this host's address";
    if let Some(peer) = peer.and_then(|peer| peer.parse::<IpAddr>().ok()) {
        return match kd_link::local_address_toward(peer) {
            Ok(address) => check(what, State::Ok, format!("{address}, toward {peer}"), ""),
            Err(error) => check(what, State::Bad, format!("there is no way to {peer}: {error}"), "is it its address?"),
        };
    }
    match kd_link::local_addresses() {
        Ok(addresses) if addresses.is_empty() => {
            check(what, State::Bad, "it has none that a target could be told", "connect it to the target's network")
        }
        Ok(addresses) => {
            let first = addresses.first().map(IpAddr::to_string).unwrap_or_default();
            let all: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            let next = format!("in Windows: bcdedit /dbgsettings net hostip:{first} port:{port} key:...");
            let several = if all.len() > 1 { "; take the one that the target reaches" } else { "" };
            check(what, State::Ok, format!("{}{several}", all.join(", ")), next)
        }
        Err(error) => check(what, State::Unknown, error.to_string(), ""),
    }
}

/// Opens what the session would open, and closes it.
fn opens(spec: &KdSpec) -> Result<Check> {
    let mut spec = spec.clone();
    if let KdSpec::Pipe(pipe) = &mut spec {
        // With `reconnect` the link opens whether the pipe is there or not.
        pipe.reconnect = false;
    }
    let what = match &spec {
        KdSpec::Serial(serial) => format!("serial device {}", serial.port),
        KdSpec::Pipe(pipe) => format!("pipe {}", pipe.port),
        KdSpec::Tcp(_) | KdSpec::Net(_) => "connection".to_owned(),
    };
    let runtime = crate::runtime()?;
    Ok(match runtime.block_on(kd_link::open(&spec)) {
        Ok(link) => check(what, State::Ok, format!("it opens ({})", link.describe()), ""),
        Err(error) => {
            let next = match (&error, host::HERE.serial_rights()) {
                (OpenError::Permission { .. }, Some(command)) => format!("{command}, then log in again"),
                _ => "kdpool setup serial says how the other end is made".to_owned(),
            };
            check(what, State::Bad, error.to_string(), next)
        }
    })
}

/// Where symbols come from, and where they are kept.
fn symbols(path: &SymbolPath) -> Vec<Check> {
    let mut checks = Vec::new();
    let keep = |store: &Option<PathBuf>| store.clone().or_else(nt_symbols::default_store);
    for element in path.elements() {
        match element {
            Element::Directory(folder) => {
                let what = format!("symbols in {}", folder.display());
                checks.push(match folder.is_dir() {
                    true => check(what, State::Ok, "the folder is there", ""),
                    false => check(what, State::Bad, "there is no such folder", "name another one with -y"),
                });
            }
            Element::Cache(store) => checks.extend(keep(store).map(|store| writable(&store))),
            Element::Server { stores, url } => {
                checks.extend(stores.iter().filter_map(keep).map(|store| writable(&store)));
                if stores.is_empty() {
                    checks.extend(nt_symbols::default_store().map(|store| writable(&store)));
                }
                checks.extend(url.as_deref().map(server));
            }
        }
    }
    checks
}

fn writable(store: &Path) -> Check {
    let what = format!("symbol cache {}", store.display());
    let tried = fs::create_dir_all(store).and_then(|()| tempfile::tempfile_in(store));
    match tried {
        Ok(_) => check(what, State::Ok, "writable", ""),
        Err(error) => check(what, State::Bad, error.to_string(), "name a folder of yours: -y srv*FOLDER*URL"),
    }
}

/// Asks for a file that no server has: a server that says so is there.
fn server(url: &str) -> Check {
    let what = format!("symbol server {url}");
    let alone = match SymbolPath::parse(&format!("srv*{url}")) {
        Ok(path) => path,
        Err(error) => return check(what, State::Bad, error.to_string(), ""),
    };
    let servers = Servers::new(Http::default());
    let reach = Reach { servers: Some(&servers), ..Reach::default() };
    let tried = match alone.find("kdpool-doctor.pdb", PdbId::from_memory([0; 16], 1), &reach) {
        Ok(found) => found.tried,
        Err(missing) => missing.tried,
    };
    let asked = tried.iter().filter(|attempt| attempt.place.contains("://"));
    let fault = asked.clone().find_map(|attempt| match &attempt.outcome {
        Outcome::Fault(why) | Outcome::NotTried(why) | Outcome::Unreachable(why) | Outcome::Unusable(why) => {
            Some(why.clone())
        }
        _ => None,
    });
    match fault {
        Some(why) => {
            let next = "behind a proxy set HTTPS_PROXY; without a network name a folder with -y";
            check(what, State::Bad, why, next)
        }
        None if asked.count() == 0 => check(what, State::Unknown, "it was not asked", ""),
        None => check(what, State::Ok, "it answers", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(checks: &'a [Check], what: &str) -> &'a Check {
        checks.iter().find(|check| check.what.starts_with(what)).unwrap_or_else(|| panic!("no {what}: {checks:?}"))
    }

    #[test]
    fn a_port_that_is_held_is_told_with_who_may_hold_it() {
        let holder = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let held = free_port(port);
        assert_eq!(held.state, State::Bad);
        assert!(held.next.contains(&port.to_string()), "{held:?}");
        drop(holder);
        assert_eq!(free_port(port).state, State::Ok);
    }

    #[test]
    fn the_address_is_told_with_the_line_for_the_target() {
        let toward = address(50000, Some("127.0.0.1"));
        assert!(toward.found.starts_with("127.0.0.1, toward"), "{toward:?}");
        let any = address(50001, None);
        assert!(any.state != State::Ok || any.next.contains("port:50001"), "{any:?}");
    }

    #[test]
    fn a_device_that_is_missing_says_what_to_do() {
        let spec = KdSpec::parse("com:port=/dev/no-such-device").unwrap();
        let missing = opens(&spec).unwrap();
        assert_eq!(missing.state, State::Bad);
        assert!(missing.found.contains("does not exist") && !missing.next.is_empty(), "{missing:?}");
        // With `reconnect` a pipe that is not there would open all the same.
        let spec = KdSpec::parse("com:pipe,port=/tmp/no-such-socket,reconnect").unwrap();
        assert_eq!(opens(&spec).unwrap().state, State::Bad);
    }

    #[test]
    fn places_of_symbols_are_tried() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().display();
        // Nothing listens at port 9 of this machine.
        let path = format!("{there};{there}/none;srv*{there}/cache*http://127.0.0.1:9/symbols");
        let checks = symbols(&SymbolPath::parse(&path).unwrap());
        assert_eq!(of(&checks, &format!("symbols in {there}")).state, State::Ok);
        assert_eq!(of(&checks, &format!("symbols in {there}/none")).state, State::Bad);
        assert_eq!(of(&checks, "symbol cache").state, State::Ok);
        let server = of(&checks, "symbol server");
        assert_eq!(server.state, State::Bad);
        assert!(server.next.contains("HTTPS_PROXY"), "{server:?}");
        // A file where the cache should be.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let checks = symbols(&SymbolPath::parse(&format!("cache*{}", file.display())).unwrap());
        assert_eq!(checks[0].state, State::Bad);
    }

    #[test]
    fn the_text_gives_each_finding_its_next_step() {
        let checks = [check("a", State::Ok, "fine", ""), check("b", State::Bad, "broken", "mend it")];
        assert_eq!(text(&checks), "ok  a: fine\nBAD b: broken\n      mend it\n");
    }
}
