//! Why a connection does not come up, in a few lines.
//!
//! The key is never printed: what is said here ends up in logs, and in reports of faults.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kd_link::{KdSpec, NetSpec, NetTarget, OpenError, SerialSpec};
use kd_target::AttachError;
use kd_wire::session::Diagnostic;

use crate::host;

/// What was seen while waiting for the target.
#[derive(Debug, Clone)]
pub(crate) struct ConnectEvidence {
    pub(crate) spec: KdSpec,
    pub(crate) elapsed: Duration,
    /// Addresses of this host that a target could be told, the likeliest first.
    pub(crate) host: Vec<IpAddr>,
    /// UDP datagrams that arrived, and those of them that authenticated.
    pub(crate) datagrams: u64,
    pub(crate) authenticated: u64,
    /// Who sent KDNET datagrams under another key.
    pub(crate) failed_auth_from: Vec<IpAddr>,
    /// Who sent what is not KDNET.
    pub(crate) not_kdnet_from: Vec<IpAddr>,
    /// A second machine that uses the same key.
    pub(crate) foreign_host: Option<IpAddr>,
    /// The debugger that the target's offers say it is connected to, if that is not this host.
    pub(crate) offers_for_other_host: Option<SocketAddr>,
    /// Bytes of a stream, those of them that belong to no packet, and packets that did not survive.
    pub(crate) serial_bytes: u64,
    pub(crate) serial_noise: u64,
    pub(crate) bad_checksums: u64,
    /// KDNET keys are agreed, or a stream has carried a whole packet.
    pub(crate) keys_established: bool,
    /// Why a carrier that is waited for does not open.
    pub(crate) away: Option<String>,
}

/// Different senders remembered; stray traffic must not fill memory.
const SENDERS: usize = 8;

impl ConnectEvidence {
    pub(crate) fn new(spec: KdSpec, host: Vec<IpAddr>) -> Self {
        Self {
            spec,
            elapsed: Duration::ZERO,
            host,
            datagrams: 0,
            authenticated: 0,
            failed_auth_from: Vec::new(),
            not_kdnet_from: Vec::new(),
            foreign_host: None,
            offers_for_other_host: None,
            serial_bytes: 0,
            serial_noise: 0,
            bad_checksums: 0,
            keys_established: false,
            away: None,
        }
    }

    /// Adds what the session reports. Frames are counted by whoever carries them.
    pub(crate) fn record(&mut self, diagnostic: &Diagnostic) {
        match diagnostic {
            Diagnostic::AuthenticationFailed { peer } => remember(&mut self.failed_auth_from, peer.ip()),
            Diagnostic::NotKdnet { peer, .. } | Diagnostic::UnsupportedVersion { peer, .. } => {
                remember(&mut self.not_kdnet_from, peer.ip());
            }
            Diagnostic::ForeignHost { peer } => self.foreign_host = Some(peer.ip()),
            Diagnostic::Offer { configured, connected, .. } => {
                self.authenticated += 1;
                self.offers_for_other_host = connected.map(kd_link::normalised).filter(|debugger| {
                    !debugger.ip().is_unspecified()
                        && !debugger.ip().is_loopback()
                        // Its offers reach this host by the configured address, which NAT may have changed.
                        && debugger.ip() != kd_link::normalised(*configured).ip()
                        && !self.host.contains(&debugger.ip())
                });
            }
            Diagnostic::SerialNoise { bytes } => self.serial_noise += *bytes as u64,
            Diagnostic::BadChecksum | Diagnostic::BadTrailer { .. } | Diagnostic::TooLong { .. } => {
                self.bad_checksums += 1;
            }
            _ => {}
        }
    }
}

fn remember(senders: &mut Vec<IpAddr>, sender: IpAddr) {
    if senders.len() < SENDERS && !senders.contains(&sender) {
        senders.push(sender);
    }
}

/// The lines to print when the target has not stopped within the time.
pub(crate) fn explain(evidence: &ConnectEvidence) -> Vec<String> {
    let seconds = evidence.elapsed.as_secs();
    if let Some(why) = &evidence.away {
        return vec![why.clone(), format!("It was tried again and again for {seconds} s.")];
    }
    if evidence.keys_established {
        return vec![
            format!("The connection is up, but the target did not stop within {seconds} s."),
            "It does not answer the break-in: is the VM paused, or the machine hung? Try again, or reset it."
                .to_owned(),
        ];
    }
    match &evidence.spec {
        KdSpec::Net(net) => explain_net(evidence, net, seconds),
        KdSpec::Serial(serial) => explain_stream(evidence, Some(serial), seconds),
        KdSpec::Pipe(_) | KdSpec::Tcp(_) => explain_stream(evidence, None, seconds),
    }
}

/// Why nothing was attached to, and what to do.
pub(crate) fn explain_attach(error: &AttachError) -> Vec<String> {
    match error {
        AttachError::Open(error) => explain_open(error),
        AttachError::Spec(_) | AttachError::Key(_) | AttachError::Target(_) => vec![format!("-k: {error}")],
        AttachError::Layer(_) | AttachError::System(_) | AttachError::Stop(_) => vec![error.to_string()],
    }
}

fn explain_open(error: &OpenError) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    if let OpenError::PortTaken { port, .. } = error {
        lines.push(format!("Who holds it: {}", host::HERE.who_holds(*port)));
    }
    lines
}

fn explain_net(evidence: &ConnectEvidence, net: &NetSpec, seconds: u64) -> Vec<String> {
    let port = net.port;
    let mut lines = Vec::new();
    if let Some(other) = evidence.offers_for_other_host {
        lines.push(format!("A target calls here, but is connected to another debugger, {other}."));
        lines.push(format!(
            "End the debugger on {}, or take the target over with ,target=ADDRESS-OF-TARGET.",
            other.ip()
        ));
    }
    if !evidence.failed_auth_from.is_empty() {
        lines.push(format!(
            "KDNET datagrams arrive from {} but do not authenticate: the key is another one than the target's.",
            list(&evidence.failed_auth_from)
        ));
        lines.push("On the target, `bcdedit /dbgsettings` prints its key; one port serves one target.".to_owned());
    }
    if let Some(other) = evidence.foreign_host {
        lines.push(format!("A second machine, {other}, uses the same key and port; give each target its own."));
    }
    if !evidence.not_kdnet_from.is_empty() {
        lines.push(format!(
            "What arrives on UDP port {port} from {} is not KDNET: another program sends there.",
            list(&evidence.not_kdnet_from)
        ));
    }
    if !lines.is_empty() {
        return lines;
    }
    if evidence.authenticated > 0 {
        return vec![
            format!("The target's offers arrive, but it did not take up the session within {seconds} s."),
            format!(
                "Do this host's datagrams reach it? Check for a firewall or NAT that lets UDP port {port} in only."
            ),
        ];
    }
    if evidence.datagrams > 0 {
        return vec![format!("{} datagrams arrived on UDP port {port}, none of them usable.", evidence.datagrams)];
    }
    nothing_arrives(evidence, net, seconds)
}

fn nothing_arrives(evidence: &ConnectEvidence, net: &NetSpec, seconds: u64) -> Vec<String> {
    let port = net.port;
    let mut lines = vec![format!("Nothing arrived on UDP port {port} within {seconds} s.")];
    lines.push(format!("On this host: does the firewall let UDP port {port} in? (`kdpool setup net --port {port}`)"));
    match &net.target {
        Some(NetTarget::Host(host)) => {
            lines.push(format!(
                "Does {host} answer a ping, and is it the target's address? It was poked on port {port}."
            ));
        }
        Some(NetTarget::AnyV4) => lines.push("Only IPv4 is listened to (target=0.0.0.0).".to_owned()),
        Some(NetTarget::AnyV6) => lines.push("Only IPv6 is listened to (target=::).".to_owned()),
        None => {}
    }
    lines.push("On the target, as administrator, then reboot:".to_owned());
    lines.push("    bcdedit /debug on".to_owned());
    let (element, host) = match evidence.host.first() {
        Some(IpAddr::V6(v6)) => ("hostipv6", v6.to_string()),
        Some(IpAddr::V4(v4)) => ("hostip", v4.to_string()),
        None => ("hostip", "THIS-HOST".to_owned()),
    };
    lines.push(format!("    bcdedit /dbgsettings net {element}:{host} port:{port} key:KEY"));
    lines.push("    (KEY is the one that this debugger was given)".to_owned());
    if evidence.host.len() > 1 {
        lines.push(format!("    (or another address of this host: {})", list(&evidence.host[1..])));
    }
    lines.push(
        "Still nothing: Secure Boot on, an adapter that KDNET does not drive, wrong busparams, or a QEMU guest that \
         looks for Hyper-V's debug device (`kdpool setup net` has the VM settings)."
            .to_owned(),
    );
    lines
}

/// `serial` is `None` for a pipe or TCP, which have no line rate.
fn explain_stream(evidence: &ConnectEvidence, serial: Option<&SerialSpec>, seconds: u64) -> Vec<String> {
    let (bytes, noise, bad) = (evidence.serial_bytes, evidence.serial_noise, evidence.bad_checksums);
    if bytes == 0 {
        let baud = serial.map_or(kd_link::DEFAULT_BAUD, |spec| spec.baud);
        let check = match serial {
            Some(_) => "On this host: is it the right device, and a null-modem cable (receive and transmit crossed)?",
            None => "On this host: is it the VM's COM port that the target debugs over, and is the VM running?",
        };
        return vec![
            format!("The line is silent: nothing arrived within {seconds} s."),
            check.to_owned(),
            "On the target, as administrator, then reboot (debugport is the number of the COM port):".to_owned(),
            "    bcdedit /debug on".to_owned(),
            format!("    bcdedit /dbgsettings serial debugport:1 baudrate:{baud}"),
        ];
    }
    if noise == 0 && bad == 0 {
        return vec![format!("{bytes} bytes arrived within {seconds} s, but no whole packet.")];
    }
    let mut lines =
        vec![format!("{bytes} bytes arrived within {seconds} s: {noise} of them noise, {bad} damaged packets.")];
    lines.push(match serial {
        Some(spec) => format!(
            "The target's baud rate is probably not {}: compare with `bcdedit /dbgsettings` there, or look at the cable.",
            spec.baud
        ),
        None => "Something else than the kernel debugger writes to this port: boot text, a console, or a pseudo terminal \
                 that changes bytes."
            .to_owned(),
    });
    lines
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "secretone.secrettwo.c.d";

    fn evidence(spec: &str) -> ConnectEvidence {
        let spec = KdSpec::parse(spec).unwrap();
        let host = vec!["192.168.1.10".parse().unwrap(), "10.0.0.5".parse().unwrap()];
        ConnectEvidence { elapsed: Duration::from_secs(30), ..ConnectEvidence::new(spec, host) }
    }

    fn net() -> ConnectEvidence {
        evidence(&format!("net:port=50005,key={KEY}"))
    }

    fn peer() -> SocketAddr {
        "10.1.1.7:50005".parse().unwrap()
    }

    fn text(evidence: &ConnectEvidence) -> String {
        let text = explain(evidence).join("\n");
        assert!(!text.contains("secret"), "the key is shown: {text}");
        text
    }

    #[test]
    fn what_does_not_open_is_the_reason() {
        for spec in ["com:pipe,port=/no/such.sock,reconnect", "com:ipport=4555,port=vmhost,reconnect"] {
            let mut evidence = evidence(spec);
            evidence.away = Some("/no/such.sock does not exist (is the VM running?)".into());
            assert_eq!(
                explain(&evidence),
                ["/no/such.sock does not exist (is the VM running?)", "It was tried again and again for 30 s."]
            );
        }
    }

    #[test]
    fn nothing_arrives_names_the_commands() {
        let text = text(&net());
        for part in [
            "Nothing arrived on UDP port 50005 within 30 s.",
            "does the firewall let UDP port 50005 in?",
            "\n    bcdedit /debug on\n",
            "\n    bcdedit /dbgsettings net hostip:192.168.1.10 port:50005 key:KEY\n",
            "(or another address of this host: 10.0.0.5)",
            "QEMU",
        ] {
            assert!(text.contains(part), "{part}\nis not in\n{text}");
        }
        let mut six = net();
        six.host = vec!["2001:db8::1".parse().unwrap()];
        assert!(explain(&six).concat().contains("hostipv6:2001:db8::1 port:50005"));
        let poked = evidence(&format!("net:port=1,key={KEY},target=win7"));
        assert!(explain(&poked).concat().contains("Does win7 answer a ping"));
    }

    #[test]
    fn a_wrong_key_names_the_sender() {
        let mut evidence = net();
        for _ in 0..3 {
            evidence.datagrams += 1;
            evidence.record(&Diagnostic::AuthenticationFailed { peer: peer() });
        }
        let text = text(&evidence);
        assert!(text.starts_with("KDNET datagrams arrive from 10.1.1.7 but do not authenticate"), "{text}");
        assert!(!text.contains("Nothing arrived"));
    }

    #[test]
    fn stray_traffic_and_a_second_machine_are_told_apart() {
        let mut stray = net();
        stray.record(&Diagnostic::NotKdnet { peer: peer(), length: 5 });
        assert!(text(&stray).starts_with("What arrives on UDP port 50005 from 10.1.1.7 is not KDNET"));
        let mut second = net();
        second.record(&Diagnostic::ForeignHost { peer: peer() });
        assert!(text(&second).starts_with("A second machine, 10.1.1.7, uses the same key"));
    }

    #[test]
    fn a_target_of_another_debugger_names_it() {
        let offer = |connected: Option<&str>| Diagnostic::Offer {
            peer: peer(),
            configured: "192.168.1.10:50005".parse().unwrap(),
            connected: connected.map(|address| address.parse().unwrap()),
        };
        let mut evidence = net();
        evidence.record(&offer(Some("192.168.1.99:50005")));
        assert!(text(&evidence).contains("connected to another debugger, 192.168.1.99:50005"));
        for ours in [None, Some("192.168.1.10:50005"), Some("10.0.0.5:50005"), Some("0.0.0.0:0")] {
            evidence.record(&offer(ours));
            assert_eq!(evidence.offers_for_other_host, None, "{ours:?}");
        }
        assert!(text(&evidence).starts_with("The target's offers arrive, but"));
    }

    #[test]
    fn silent_and_noisy_lines() {
        let mut line = evidence("com:port=/dev/ttyUSB0,baud=57600");
        let silent = text(&line);
        assert!(silent.starts_with("The line is silent") && silent.contains("null-modem"), "{silent}");
        assert!(silent.contains("\n    bcdedit /dbgsettings serial debugport:1 baudrate:57600"), "{silent}");
        line.serial_bytes = 500;
        line.record(&Diagnostic::SerialNoise { bytes: 480 });
        line.record(&Diagnostic::BadChecksum);
        let noisy = text(&line);
        assert!(noisy.starts_with("500 bytes arrived within 30 s: 480 of them noise, 1 damaged packets."), "{noisy}");
        assert!(noisy.contains("baud rate is probably not 57600"), "{noisy}");
        let pipe = evidence("com:pipe,port=/tmp/kd.sock");
        assert!(text(&pipe).contains("is the VM running?"));
    }

    #[test]
    fn a_taken_port_says_how_to_find_the_holder() {
        let source = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let lines = explain_open(&OpenError::PortTaken { port: 50005, source });
        assert!(lines[0].starts_with("UDP port 50005 is already in use"));
        assert!(lines[1].starts_with("Who holds it: ") && lines[1].contains("50005"));
    }

    #[test]
    fn senders_are_remembered_within_bounds() {
        let mut evidence = net();
        for n in 0..1000u32 {
            let peer = SocketAddr::new(IpAddr::V4(n.into()), 1);
            evidence.record(&Diagnostic::AuthenticationFailed { peer });
            evidence.record(&Diagnostic::AuthenticationFailed { peer });
        }
        assert_eq!(evidence.failed_auth_from.len(), 8);
    }
}
