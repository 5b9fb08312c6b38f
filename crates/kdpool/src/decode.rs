//! `kdpool decode`: a capture file, one line per datagram.
//!
//! Lines go to standard output, totals to standard error. Directions come from the authenticated datagrams, so ports
//! and addresses do not matter; a capture of a serial line, as `--capture` writes it, knows its own.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kd_link::{CaptureReader, CapturedData, Skipped};
use kd_wire::dissect::{Content, Dissection, Dissector, SerialDissector};
use kd_wire::kdnet::{Channel, Key, Rejection};
use kd_wire::message::Direction;

pub(crate) use self::json::SHAPE;
use self::json::{Decoded, Line, Total};
use crate::USAGE;

mod json;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Lines for people
    Text,
    /// JSON
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// Capture file, pcapng or pcap, of KDNET or of a serial line
    file: PathBuf,
    /// The KDNET key of the session, w.x.y.z, or @FILE that holds it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only datagrams from or to this UDP port
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// One line, or one JSON object, per datagram
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,
}

/// Lines held back until a datagram shows that the key is right, so that a wrong one is told in one line.
const HELD_LINES: usize = 1 << 16;

pub(crate) fn run(args: DecodeArgs) -> anyhow::Result<ExitCode> {
    let text = args.key.as_deref().map(|key| match key.strip_prefix('@') {
        Some(file) => kd_link::KeyText::from_file(file).map_err(|error| error.to_string()),
        None => kd_link::KeyText::parse(key).map_err(|error| error.to_string()),
    });
    let key = text.map(|text| text?.expose().parse::<Key>().map_err(|error| error.to_string())).transpose();
    let key = match key {
        Ok(key) => key,
        Err(error) => {
            // Not clap's own error: that would show the key.
            eprintln!("kdpool: --key: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let reader = CaptureReader::new(file).with_context(|| args.file.display().to_string())?;
    let out = BufWriter::new(io::stdout().lock());
    match decode(reader, key, args.port, args.format, out) {
        Ok(totals) => {
            match args.format {
                OutputFormat::Text => eprint!("{totals}"),
                OutputFormat::Json => eprintln!("{}", serde_json::to_string(&totals.shown())?),
            }
            Ok(ExitCode::SUCCESS)
        }
        // `kdpool decode x.pcapng | head` is no failure.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.context(args.file.display().to_string())),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn decode(
    mut reader: CaptureReader<'_>,
    key: Option<Key>,
    port: Option<u16>,
    format: OutputFormat,
    mut out: impl Write,
) -> anyhow::Result<Totals> {
    let mut kdnet = key.map(Dissector::new);
    let mut streams = [Direction::TargetToHost, Direction::HostToTarget].map(SerialDissector::new);
    let mut totals = Totals::default();
    let mut start = None;
    let mut held = Vec::new();
    for captured in reader.by_ref() {
        let captured = captured.context(format!("after {} datagrams", totals.datagrams))?;
        let dissections = match &captured.data {
            CapturedData::Datagram { src, dst, payload } => {
                if port.is_some_and(|port| src.port() != port && dst.port() != port) {
                    continue;
                }
                if port.is_none() && !payload.starts_with(b"MDBG") {
                    totals.other_udp += 1;
                    continue;
                }
                let dissector = kdnet.as_mut().context("KDNET datagrams need --key w.x.y.z")?;
                totals.datagrams += 1;
                vec![dissector.datagram(payload)]
            }
            CapturedData::Bytes(bytes) => {
                let [from_target, to_target] = &mut streams;
                match captured.direction {
                    Some(kd_link::Direction::Outbound) => to_target.bytes(bytes),
                    Some(kd_link::Direction::Inbound) | None => from_target.bytes(bytes),
                }
            }
        };
        for dissection in dissections {
            totals.count(&dissection);
            let elapsed = captured.time.saturating_sub(*start.get_or_insert(captured.time));
            let index = totals.lines - 1;
            held.push(match format {
                OutputFormat::Text => text_line(elapsed, &dissection),
                OutputFormat::Json => {
                    serde_json::to_string(&Decoded::Line(Line::new(index, elapsed, &captured, &dissection)))?
                }
            });
        }
        if totals.readable > 0 || held.len() >= HELD_LINES {
            for line in held.drain(..) {
                writeln!(out, "{line}")?;
            }
        }
    }
    totals.skipped = reader.skipped();
    totals.check(port)?;
    out.flush()?;
    Ok(totals)
}

/// What was found in the whole file.
#[derive(Debug, Default)]
struct Totals {
    /// Datagrams, and lines: a datagram has one line, a piece of a serial stream as many as it completes packets.
    datagrams: u64,
    lines: u64,
    readable: u64,
    bad_tags: u64,
    /// Data from before the first response in the file: its key cannot be known.
    without_key: u64,
    not_kdnet: u64,
    /// Readable, but not what it should be, or of a kind without a name.
    unparsed: u64,
    unknown: u64,
    /// UDP of other programs in the file.
    other_udp: u64,
    by_name: BTreeMap<&'static str, u64>,
    skipped: Skipped,
}

impl Totals {
    fn count(&mut self, dissection: &Dissection) {
        self.lines += 1;
        match dissection.rejection {
            None => self.readable += 1,
            Some(Rejection::Tag | Rejection::Direction | Rejection::Padding(_)) => self.bad_tags += 1,
            Some(Rejection::NoDataKey) => self.without_key += 1,
            Some(_) => self.not_kdnet += 1,
        }
        match &dissection.content {
            Content::Opaque => return,
            Content::Malformed { .. } => self.unparsed += 1,
            Content::Data { message, .. } if message.is_unknown() => self.unknown += 1,
            _ => {}
        }
        *self.by_name.entry(dissection.name()).or_default() += 1;
    }

    /// Nothing readable is a failure, and has a reason.
    fn check(&self, port: Option<u16>) -> anyhow::Result<()> {
        if self.readable > 0 {
            return Ok(());
        }
        let place = port.map(|port| format!(" on port {port}")).unwrap_or_default();
        if self.bad_tags > 0 {
            anyhow::bail!("wrong key: none of {} KDNET datagrams{place} authenticates", self.datagrams);
        }
        if self.without_key > 0 {
            anyhow::bail!(
                "none of {} datagrams{place} can be read: the session's key was agreed before the capture began",
                self.datagrams
            );
        }
        anyhow::bail!("no KDNET datagram{place} and no serial packet in the file");
    }

    fn skipped_packets(&self) -> u64 {
        let Skipped { blocks: _, link_types, not_udp, incomplete, damaged } = self.skipped;
        link_types + not_udp + incomplete + damaged
    }

    fn shown(&self) -> Decoded<'_> {
        Decoded::Last {
            total: Total {
                datagrams: self.datagrams,
                lines: self.lines,
                bad_tags: self.bad_tags,
                without_key: self.without_key,
                not_kdnet: self.not_kdnet,
                unparsed: self.unparsed,
                unknown: self.unknown,
                other_udp: self.other_udp,
                skipped_packets: self.skipped_packets(),
                messages: &self.by_name,
            },
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, what) = match (self.datagrams, self.lines) {
            (0, packets) => (packets, "serial packets"),
            (datagrams, _) => (datagrams, "datagrams"),
        };
        let Self { bad_tags, unparsed, unknown, .. } = self;
        writeln!(f, "{number} {what}, {bad_tags} bad tags, {unparsed} unparsed, {unknown} unknown")?;
        for (count, what) in [
            (self.without_key, "datagrams of a session whose key was agreed before the capture began"),
            (self.not_kdnet, "datagrams that are not KDNET"),
            (self.other_udp, "datagrams of other programs, not shown"),
            (self.skipped.incomplete, "packets cut short by the capture, or fragments, not shown"),
            (self.skipped.damaged, "packets with damaged headers, not shown"),
            (self.skipped.not_udp + self.skipped.link_types, "packets that are not UDP, not shown"),
        ] {
            if count > 0 {
                writeln!(f, "{count} {what}")?;
            }
        }
        let mut names: Vec<_> = self.by_name.iter().collect();
        names.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), **name));
        names.iter().try_for_each(|(name, count)| writeln!(f, "{count:>8} {name}"))
    }
}

fn arrow(direction: Option<Direction>) -> Option<&'static str> {
    direction.map(|direction| match direction {
        Direction::HostToTarget => "H>T",
        Direction::TargetToHost => "T>H",
    })
}

fn channel(dissection: &Dissection) -> &'static str {
    match dissection.envelope.as_ref().map(|envelope| envelope.channel) {
        Some(Channel::Control) => "control",
        Some(Channel::Data) => "data",
        None if dissection.rejection.is_some() => "none",
        None => "serial",
    }
}

/// The KD packet around the message: its type and id.
fn packet(content: &Content) -> Option<(&'static str, u32)> {
    match content {
        Content::Control { packet_type, id } | Content::Data { packet_type, id, .. } => Some((packet_type.name(), *id)),
        _ => None,
    }
}

/// Seconds since the first line, direction, channel, sequence, packet with its id, message with its fields.
fn text_line(elapsed: Duration, dissection: &Dissection) -> String {
    let mut line = String::new();
    let direction = arrow(dissection.direction).unwrap_or("???");
    let mut put = |part: fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = line.write_fmt(part);
    };
    put(format_args!("{:>12.6} {direction} {:<7}", elapsed.as_secs_f64(), channel(dissection)));
    if let Some(sequence) = dissection.envelope.as_ref().and_then(|envelope| envelope.sequence) {
        put(format_args!(" #{sequence}"));
    }
    if let Some((packet_type, id)) = packet(&dissection.content) {
        put(format_args!(" {packet_type} {id:#010x}"));
    }
    match (&dissection.content, &dissection.rejection) {
        (_, Some(rejection)) => put(format_args!(" unreadable: {rejection}")),
        (Content::Control { .. }, None) => {}
        (_, None) => put(format_args!(" {}", dissection.name())),
    }
    for (name, value) in dissection.fields() {
        put(format_args!(" {name}={value}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use kd_wire::kdnet::{Offer, Sealed, seal};
    use kd_wire::packet::{Packet, PacketType};

    use super::*;

    /// A classic pcap file; link type 101 is IP, 147 a byte stream.
    fn pcap(link_type: u32, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, link_type] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for (second, packet) in packets.iter().enumerate() {
            for word in [second as u32, 0, packet.len() as u32, packet.len() as u32] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(packet);
        }
        file
    }

    /// IPv4 and UDP headers around a payload, from port 1000 to port 2000, without checksums.
    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend_from_slice(&(28 + payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0x40, 0, 16, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        for field in [1000, 2000, 8 + payload.len() as u16, 0] {
            packet.extend_from_slice(&field.to_be_bytes());
        }
        packet.extend_from_slice(payload);
        packet
    }

    fn key(text: &str) -> Option<Key> {
        Some(text.parse().unwrap())
    }

    fn offer() -> Vec<u8> {
        let host = "10.0.0.2:2000".parse().unwrap();
        let offer =
            Offer { nonce: [7; 32], target: "10.0.0.1:1000".parse().unwrap(), configured: host, connected: None };
        let content =
            Sealed { version: 4, data_key: None, from: Direction::TargetToHost, sequence: 3, body: &offer.encode() };
        seal(&key("1.2.3.4").unwrap(), content).to_vec()
    }

    fn decoded(
        file: &[u8],
        key: Option<Key>,
        port: Option<u16>,
        format: OutputFormat,
    ) -> anyhow::Result<(String, Totals)> {
        let mut out = Vec::new();
        let totals = decode(CaptureReader::new(file)?, key, port, format, &mut out)?;
        Ok((String::from_utf8(out)?, totals))
    }

    #[test]
    fn one_line_per_datagram_in_text_and_json() {
        let file = pcap(101, &[udp(&offer()), udp(b"a name server asks")]);
        let (text, totals) = decoded(&file, key("1.2.3.4"), None, OutputFormat::Text).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("    0.000000 T>H control #3 Offer Nonce=0707"), "{text}");
        assert!(text.contains("Configured=\"10.0.0.2:2000\" Connected=\"none\""), "{text}");
        assert_eq!((totals.datagrams, totals.other_udp), (1, 1));
        assert!(totals.to_string().starts_with("1 datagrams, 0 bad tags, 0 unparsed, 0 unknown\n1 datagrams of other"));

        let (json, _) = decoded(&file, key("1.2.3.4"), None, OutputFormat::Json).unwrap();
        let line: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
        assert_eq!(line["direction"], "T>H");
        assert_eq!(line["message"], "Offer");
        assert_eq!(line["fields"]["Configured"], "10.0.0.2:2000");
        assert_eq!(line["source"], "10.0.0.1:1000");
    }

    #[test]
    fn a_port_chooses_datagrams_and_shows_strays_on_it() {
        let file = pcap(101, &[udp(&offer()), udp(b"stray")]);
        let (text, totals) = decoded(&file, key("1.2.3.4"), Some(2000), OutputFormat::Text).unwrap();
        assert!(text.contains("??? none    unreadable: it does not begin with MDBG"), "{text}");
        assert_eq!((totals.datagrams, totals.not_kdnet), (2, 1));
        let error = decoded(&file, key("1.2.3.4"), Some(3000), OutputFormat::Text).unwrap_err();
        assert_eq!(error.to_string(), "no KDNET datagram on port 3000 and no serial packet in the file");
    }

    #[test]
    fn a_wrong_key_is_told_in_one_line_and_nothing_else() {
        let file = pcap(101, &[udp(&offer()), udp(&offer())]);
        let mut out = Vec::new();
        let reader = CaptureReader::new(&file[..]).unwrap();
        let error = decode(reader, key("1.2.3.5"), None, OutputFormat::Text, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "wrong key: none of 2 KDNET datagrams authenticates");
        assert!(out.is_empty());
        let error = decoded(&file, None, None, OutputFormat::Text).unwrap_err();
        assert_eq!(error.to_string(), "KDNET datagrams need --key w.x.y.z");
    }

    #[test]
    fn one_damaged_datagram_among_good_ones_is_counted() {
        let mut damaged = offer();
        damaged[40] ^= 1;
        let file = pcap(101, &[udp(&damaged), udp(&offer())]);
        let (text, totals) = decoded(&file, key("1.2.3.4"), None, OutputFormat::Text).unwrap();
        assert!(text.lines().next().unwrap().contains("??? control unreadable: it does not authenticate"), "{text}");
        assert_eq!((text.lines().count(), totals.bad_tags), (2, 1));
    }

    #[test]
    fn serial_captures_need_no_key() {
        let reset = Packet::control(PacketType::Reset, 0x8080_0000).encode_serial();
        // Cut in the middle of the packet, as a line delivers it.
        let file = pcap(147, &[reset[..5].to_vec(), reset[5..].to_vec()]);
        let (text, totals) = decoded(&file, None, None, OutputFormat::Text).unwrap();
        assert!(totals.to_string().starts_with("1 serial packets, 0 bad tags"), "{totals}");
        assert_eq!(text, "    0.000000 T>H serial  RESET 0x80800000\n");
    }

    #[test]
    fn a_closed_pipe_is_recognised_through_the_context() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let file = pcap(101, &[udp(&offer())]);
        let reader = CaptureReader::new(&file[..]).unwrap();
        let error = decode(reader, key("1.2.3.4"), None, OutputFormat::Text, Closed).unwrap_err();
        assert!(is_broken_pipe(&error), "{error}");
    }

    #[test]
    fn the_real_capture_is_understood_whole() {
        let shared = std::env::var_os("KDPOOL_SHARED").map(PathBuf::from);
        let shared = shared.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into());
        let Ok(file) = std::fs::read(shared.join("capture/windbg-uncut.pcapng")) else {
            return println!("skipped: no shared captures");
        };
        let (text, totals) = decoded(&file, key("8.8.8.8"), None, OutputFormat::Text).unwrap();
        assert!(totals.to_string().starts_with("955 datagrams, 0 bad tags, 0 unparsed, 0 unknown\n"), "{totals}");
        assert_eq!(text.lines().count(), 955);
        assert_eq!(totals.readable, 955);
        // The exchange with the one loss, numbered from 0 as in the fact sheet.
        let line = |number: usize| text.lines().nth(number).unwrap();
        assert!(line(197).contains("T>H") && line(197).contains("RESEND 0x00000000"), "{}", line(197));
        assert!(line(198).contains("STATE_MANIPULATE 0x8000005e GetContext"), "{}", line(198));
        assert!(line(201).contains("H>T") && line(201).contains("RESET 0x80000060"), "{}", line(201));

        let (json, _) = decoded(&file, key("8.8.8.8"), None, OutputFormat::Json).unwrap();
        for line in json.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["message"].is_string() && line["fields"].is_object(), "{line}");
        }
        let mut dissector = Dissector::new(key("8.8.8.8").unwrap());
        for captured in CaptureReader::new(&file[..]).unwrap() {
            let CapturedData::Datagram { payload, .. } = captured.unwrap().data else { panic!("a stream") };
            let fields = dissector.datagram(&payload).fields();
            let mut names: Vec<_> = fields.iter().map(|(name, _)| name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), fields.len(), "a JSON object has each name once: {fields:?}");
        }
        let error = decoded(&file, key("8.8.8.9"), None, OutputFormat::Text).unwrap_err();
        assert_eq!(error.to_string(), "wrong key: none of 955 KDNET datagrams authenticates");
    }
}
