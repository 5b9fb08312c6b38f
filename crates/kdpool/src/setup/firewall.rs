//! The firewall of this host: which one it is, whether it lets a port in as far as that can be seen, and what opens it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::host::{self, System};

/// A packet filter that may keep the target's datagrams out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Firewall {
    Ufw,
    Firewalld,
    /// Rules without a manager.
    Nftables,
    Windows,
    /// macOS' own, which allows programs and knows no ports.
    Applications,
}

/// What the rules say of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passage {
    Open,
    Closed,
    /// They cannot be read, or not be judged; why.
    Unknown(String),
}

/// How long a program that is asked may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Firewall {
    /// Those that are at work here, as far as anybody may see without being root.
    pub(crate) fn found() -> Vec<Firewall> {
        match host::HERE {
            System::Windows => return vec![Firewall::Windows],
            System::MacOs => return vec![Firewall::Applications],
            System::Linux | System::Other => {}
        }
        let mut found = Vec::new();
        let ufw = std::fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
        if ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes")) {
            found.push(Firewall::Ufw);
        }
        if Path::new("/run/firewalld").exists() {
            found.push(Firewall::Firewalld);
        }
        if found.is_empty() && ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().any(|nft| Path::new(nft).exists())
        {
            found.push(Firewall::Nftables);
        }
        found
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Firewall::Ufw => "ufw",
            Firewall::Firewalld => "firewalld",
            Firewall::Nftables => "nftables",
            Firewall::Windows => "Windows Defender Firewall",
            Firewall::Applications => "macOS' firewall",
        }
    }

    /// The command that lets this UDP port in; empty where there is none.
    pub(crate) fn opens(self, port: u16) -> String {
        match self {
            Firewall::Ufw => format!("sudo ufw allow {port}/udp"),
            Firewall::Firewalld => format!("sudo firewall-cmd --add-port={port}/udp"),
            Firewall::Nftables => format!("sudo nft insert rule inet filter input udp dport {port} accept"),
            Firewall::Windows => format!(
                "netsh advfirewall firewall add rule name=kdpool dir=in action=allow protocol=UDP localport={port}"
            ),
            Firewall::Applications => String::new(),
        }
    }

    pub(crate) fn note(self) -> &'static str {
        match self {
            Firewall::Ufw | Firewall::Firewalld => "",
            Firewall::Nftables => "Only if nftables filters here.",
            Firewall::Windows => "As administrator.",
            Firewall::Applications => "System Settings, Network, Firewall: let kdpool receive connections.",
        }
    }

    /// What its rules say of this UDP port.
    pub(crate) fn passage(self, port: u16) -> Passage {
        match self {
            Firewall::Ufw => match std::fs::read_to_string("/etc/ufw/user.rules") {
                Ok(rules) => ufw(&rules, port),
                Err(error) => Passage::Unknown(format!("its rules cannot be read: {error}")),
            },
            Firewall::Firewalld => match run("firewall-cmd", &[&format!("--query-port={port}/udp")]) {
                Ok(output) if output.trim() == "yes" => Passage::Open,
                Ok(output) if output.trim() == "no" => Passage::Closed,
                Ok(output) => Passage::Unknown(output.trim().to_owned()),
                Err(why) => Passage::Unknown(why),
            },
            Firewall::Nftables => match run("nft", &["list", "ruleset"]) {
                Ok(rules) => nftables(&rules, port),
                Err(why) => Passage::Unknown(why),
            },
            Firewall::Windows => {
                match run("netsh", &["advfirewall", "firewall", "show", "rule", "name=kdpool", "dir=in"]) {
                    Ok(rules) if rules.contains(&port.to_string()) => Passage::Open,
                    Ok(_) => Passage::Unknown("it has no rule named kdpool".into()),
                    Err(why) => Passage::Unknown(why),
                }
            }
            Firewall::Applications => Passage::Unknown("it allows programs, not ports".into()),
        }
    }
}

/// `### tuple ### allow udp 50000 0.0.0.0/0 any 0.0.0.0/0 in`, one line a rule.
fn ufw(rules: &str, port: u16) -> Passage {
    let allows = |line: &str| {
        let mut words = line.strip_prefix("### tuple ###")?.split_whitespace();
        let (action, protocol, ports) = (words.next()?, words.next()?, words.next()?);
        let matches = ports == "any" || ports.split(',').any(|part| holds(part, ':', port));
        Some(action == "allow" && matches!(protocol, "udp" | "any") && matches)
    };
    match rules.lines().any(|line| allows(line) == Some(true)) {
        true => Passage::Open,
        false => Passage::Closed,
    }
}

/// An input chain that drops what no rule accepts closes the port, unless a rule names it.
fn nftables(rules: &str, port: u16) -> Passage {
    let drops = rules.lines().any(|line| line.contains("hook input") && line.contains("policy drop"));
    let named = rules.lines().filter(|line| line.contains("udp dport") && line.contains("accept"));
    let accepts = named.filter_map(|line| line.split("udp dport").nth(1)).any(|rest| {
        let rest = rest.split("accept").next().unwrap_or_default();
        rest.split(['{', '}', ',', ' ']).any(|part| holds(part.trim(), '-', port))
    });
    match (drops, accepts) {
        (_, true) => Passage::Open,
        (false, false) if !rules.contains("hook input") => Passage::Open,
        (true, false) => Passage::Closed,
        (false, false) => Passage::Unknown("its input chain has rules; none names this port".into()),
    }
}

/// `50000`, or a range.
fn holds(part: &str, between: char, port: u16) -> bool {
    match part.split_once(between) {
        Some((first, last)) => {
            matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
        }
        None => part.parse() == Ok(port),
    }
}

/// What a program prints, or why there is nothing.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // It is asked nothing more, whether it ends or not.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} gives no answer"));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    let (text, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match complaint.lines().find(|line| !line.trim().is_empty()) {
        Some(line) if text.trim().is_empty() && !output.status.success() => Err(line.trim().to_owned()),
        _ => Ok(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw_rules_are_read_by_port_and_range() {
        let rules = "*filter\n### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### allow udp 50000:50039 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### deny udp 50100 0.0.0.0/0 any 0.0.0.0/0 in\n";
        assert_eq!(ufw(rules, 50005), Passage::Open);
        assert_eq!(ufw(rules, 50040), Passage::Closed);
        assert_eq!(ufw(rules, 50100), Passage::Closed);
        assert_eq!(ufw(rules, 22), Passage::Closed, "that one is TCP's");
    }

    #[test]
    fn nftables_rules_close_what_none_accepts() {
        assert_eq!(nftables("", 50000), Passage::Open);
        let drop = "table inet filter {\n chain input {\n  type filter hook input priority filter; policy drop;\n";
        assert_eq!(nftables(drop, 50000), Passage::Closed);
        for rule in ["udp dport 50000 accept", "udp dport { 500, 50000-50039 } accept", "udp dport 1-65535 accept"] {
            assert_eq!(nftables(&format!("{drop}{rule}\n"), 50000), Passage::Open, "{rule}");
        }
        assert_eq!(nftables(&format!("{drop}udp dport 500 accept\n"), 50000), Passage::Closed);
        let accept = drop.replace("policy drop", "policy accept");
        assert!(matches!(nftables(&accept, 50000), Passage::Unknown(_)));
    }
}
