//! `kdpool setup`: what to set in a virtual machine, what to type in Windows and here, on one screen, with a new key.

mod firewall;
mod key;
mod places;

use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use kd_shell::ResultShape;
use schemars::JsonSchema;
use serde::Serialize;

use crate::debug;
use crate::decode::OutputFormat;

pub(crate) use firewall::{Firewall, Passage};
use places::Place;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kdpool setup                      asks where Windows runs
  kdpool setup --libvirt            a libvirt guest, over the network
  kdpool setup serial --vmware      a VMware guest, over its serial port
  kdpool setup net --machine --host 192.168.1.10

`kdpool doctor` checks this host. docs/attach has a page for each of them, with what goes wrong by symptom.")]
pub(crate) struct SetupArgs {
    /// How the target is connected [default: net, where the machine has it]
    #[arg(value_enum)]
    transport: Option<Transport>,
    #[command(flatten)]
    place: PlaceArgs,
    /// UDP port of the target's datagrams; one per target
    #[arg(long, value_name = "N", default_value_t = 50000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// This host's address as the target reaches it [default: what the machine's network suggests]
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,
    /// Output format
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,
}

/// Where Windows runs; asked for at a terminal.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct PlaceArgs {
    /// A machine of its own
    #[arg(long, help_heading = "Where Windows runs")]
    machine: bool,
    /// QEMU's own command line
    #[arg(long, help_heading = "Where Windows runs")]
    qemu: bool,
    /// libvirt, virt-manager
    #[arg(long, help_heading = "Where Windows runs")]
    libvirt: bool,
    /// Proxmox VE
    #[arg(long, help_heading = "Where Windows runs")]
    proxmox: bool,
    /// VMware Workstation, Fusion, ESXi
    #[arg(long, help_heading = "Where Windows runs")]
    vmware: bool,
    /// VirtualBox
    #[arg(long, help_heading = "Where Windows runs")]
    virtualbox: bool,
    /// Hyper-V
    #[arg(long, help_heading = "Where Windows runs")]
    hyperv: bool,
    /// Cloud Hypervisor
    #[arg(long, help_heading = "Where Windows runs")]
    cloud_hypervisor: bool,
}

impl PlaceArgs {
    fn chosen(&self) -> Option<Place> {
        [
            (self.machine, Place::Machine),
            (self.qemu, Place::Qemu),
            (self.libvirt, Place::Libvirt),
            (self.proxmox, Place::Proxmox),
            (self.vmware, Place::Vmware),
            (self.virtualbox, Place::VirtualBox),
            (self.hyperv, Place::HyperV),
            (self.cloud_hypervisor, Place::CloudHypervisor),
        ]
        .into_iter()
        .find_map(|(given, place)| given.then_some(place))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// KDNET, over the network
    Net,
    /// A serial line, real or a VM's
    Serial,
}

pub(crate) fn run(args: SetupArgs) -> anyhow::Result<ExitCode> {
    let addresses = match args.host {
        Some(host) => vec![host],
        None => kd_link::local_addresses().context("cannot list this host's addresses")?,
    };
    let asked = io::stdin().is_terminal() && io::stdout().is_terminal() && args.format == OutputFormat::Text;
    let chosen = match args.place.chosen() {
        None if asked => ask()?,
        chosen => chosen,
    };
    let place = chosen.unwrap_or(Place::Machine);
    let transport = args.transport.unwrap_or(if place.has_network() { Transport::Net } else { Transport::Serial });
    if transport == Transport::Net && !place.has_network() {
        return Ok(debug::usage(&format!(
            "{} has no network adapter that KDNET drives: kdpool setup serial {}",
            place.name(),
            place.option()
        )));
    }
    let host = Host { addresses, named: args.host.is_some(), port: args.port, key: key::new()? };
    let text = match args.format {
        OutputFormat::Text => Guide::new(place, transport, &host).text(chosen.is_none()),
        OutputFormat::Json => serde_json::to_string(&advice(chosen, transport, host))? + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // `kdpool setup net | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS).context("cannot write to standard output"),
    }
}

/// Asks at the terminal where Windows runs; ENTER is the first.
fn ask() -> anyhow::Result<Option<Place>> {
    let mut out = io::stdout().lock();
    writeln!(out, "Where does Windows run?")?;
    for (number, place) in Place::ALL.iter().enumerate() {
        writeln!(out, "  {}  {}", number + 1, place.name())?;
    }
    loop {
        write!(out, "Number [1]: ")?;
        out.flush()?;
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer)? == 0 {
            return Ok(None);
        }
        let number = match answer.trim() {
            "" => Some(1),
            answer => answer.parse().ok(),
        };
        let place = number.and_then(|number: usize| Place::ALL.get(number.checked_sub(1)?));
        if let Some(place) = place {
            writeln!(out)?;
            return Ok(Some(*place));
        }
        writeln!(out, "A number from 1 to {}.", Place::ALL.len())?;
    }
}

/// What is known of this host.
pub(crate) struct Host {
    /// The likeliest first.
    addresses: Vec<IpAddr>,
    /// The user said which.
    named: bool,
    port: u16,
    key: String,
}

/// Something to type, or only to know, and why.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Step {
    /// Empty when there is nothing to type.
    command: String,
    /// For people.
    note: String,
}

fn step(command: impl Into<String>, note: impl Into<String>) -> Step {
    Step { command: command.into(), note: note.into() }
}

/// Everything there is to say about one place and one transport, before it is text or JSON.
struct Guide {
    place: Place,
    transport: Transport,
    /// In the VM's settings, or on the machine.
    machine: Vec<Step>,
    /// In Windows.
    target: Vec<Step>,
    /// On this host.
    host: Vec<Step>,
    /// The line that attaches.
    attach: String,
}

impl Guide {
    fn new(place: Place, transport: Transport, host: &Host) -> Guide {
        match transport {
            Transport::Net => Guide::net(place, host),
            Transport::Serial => Guide::serial(place),
        }
    }

    fn net(place: Place, host: &Host) -> Guide {
        let (address, others) = place.host_address(host);
        let element = if address.contains(':') { "hostipv6" } else { "hostip" };
        let (port, key) = (host.port, &host.key);
        let mut target = vec![
            step("bcdedit /debug on", ""),
            step(format!("bcdedit /dbgsettings net {element}:{address} port:{port} key:{key}"), others),
        ];
        if place == Place::Machine {
            target.push(step(
                "bcdedit /set \"{dbgsettings}\" busparams B.D.F",
                "Only with several network adapters: bus.device.function in decimal, from Device Manager.",
            ));
        }
        target.push(place.restart());
        Guide {
            place,
            transport: Transport::Net,
            machine: place.network(),
            target,
            host: Firewall::found().into_iter().map(|wall| step(wall.opens(port), wall.note())).collect(),
            attach: format!("kdpool -k net:port={port},key={key} {SYMBOLS}"),
        }
    }

    fn serial(place: Place) -> Guide {
        let line = place.serial();
        let mut target = vec![
            step("bcdedit /debug on", ""),
            step("bcdedit /dbgsettings serial debugport:1 baudrate:115200", "debugport is the COM port's number."),
        ];
        target.push(place.restart());
        Guide {
            place,
            transport: Transport::Serial,
            machine: line.machine,
            target,
            host: line.host,
            attach: format!("kdpool -k {} {SYMBOLS}", line.connection),
        }
    }

    /// One screen.
    fn text(&self, unasked: bool) -> String {
        let mut out = String::new();
        let over = match self.transport {
            Transport::Net => "over the network (KDNET)",
            Transport::Serial => "over a serial line",
        };
        put(&mut out, format_args!("{}, {over}", self.place.name()));
        let mut number = 0;
        let mut section = |title: &str, steps: &[Step]| {
            number += 1;
            put(&mut out, format_args!("\n{number}. {title}:"));
            print_steps(&mut out, steps);
        };
        if !self.machine.is_empty() {
            section(self.place.settings_title(), &self.machine);
        }
        section("In Windows, as administrator, with Secure Boot off and BitLocker suspended", &self.target);
        // Also where no firewall is in the way: the line that attaches is typed here, and not in Windows.
        section("On this host", &self.host);
        put(&mut out, format_args!("    {}", self.attach));
        out.push('\n');
        if unasked {
            let options: Vec<&str> = Place::ALL.iter().skip(1).map(|place| place.option()).collect();
            put(&mut out, format_args!("A virtual machine needs settings of its own: add\n  {}", options.join(" ")));
        }
        put(&mut out, format_args!("Ctrl+C breaks in. Nothing comes? kdpool doctor; {}", self.place.page()));
        out
    }

    fn advice(self) -> Machine {
        Machine {
            name: self.place.name(),
            option: self.place.option(),
            settings: self.machine,
            target: self.target,
            host: self.host,
            attach: self.attach,
            page: self.place.page(),
        }
    }
}

/// What `--format json` prints, on one line.
#[derive(Debug, JsonSchema, Serialize)]
struct Advice {
    transport: Transport,
    /// This host's, the likeliest first.
    addresses: Vec<IpAddr>,
    /// null for a serial line.
    port: Option<u16>,
    /// A new one; null for a serial line.
    key: Option<String>,
    /// To type in Windows.
    target: Vec<Step>,
    /// To type on this host.
    host: Vec<Step>,
    /// The line that attaches.
    attach: String,
    /// Each with lines of its own.
    machines: Vec<Machine>,
}

/// One place where Windows may run.
#[derive(Debug, JsonSchema, Serialize)]
struct Machine {
    name: &'static str,
    /// Of kdpool setup.
    option: &'static str,
    /// Of the virtual machine.
    settings: Vec<Step>,
    target: Vec<Step>,
    host: Vec<Step>,
    attach: String,
    /// Of the documentation.
    page: &'static str,
}

pub(crate) const SHAPE: ResultShape = ResultShape::of::<Advice>("kdpool-setup");

/// All places, or the one that was chosen.
fn advice(chosen: Option<Place>, transport: Transport, host: Host) -> Advice {
    let places = match chosen {
        Some(place) => vec![place],
        None => Place::ALL.to_vec(),
    };
    let possible = |place: &Place| transport == Transport::Serial || place.has_network();
    let guide = |place| Guide::new(place, transport, &host);
    let Guide { target, host: steps, attach, .. } = guide(chosen.unwrap_or(Place::Machine));
    let machines = places.into_iter().filter(possible).map(|place| guide(place).advice()).collect();
    let net = transport == Transport::Net;
    Advice {
        transport,
        port: net.then_some(host.port),
        key: net.then_some(host.key),
        addresses: host.addresses,
        target,
        host: steps,
        attach,
        machines,
    }
}

/// kd's word for "Microsoft's server, kept in the default cache". In quotes, since zsh and fish refuse a word with a star
/// that names no file; where a shell leaves the quotes (cmd) they are taken off.
const SYMBOLS: &str = "-y 'srv*'";

const WIDTH: usize = 78;

fn print_steps(out: &mut String, steps: &[Step]) {
    for step in steps {
        if !step.command.is_empty() {
            put(out, format_args!("    {}", step.command));
        }
        let mut line = String::from(" ");
        for word in step.note.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                put(out, format_args!("{line}"));
                line = String::from(" ");
            }
            line.push(' ');
            line.push_str(word);
        }
        if !line.trim().is_empty() {
            put(out, format_args!("{line}"));
        }
    }
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "2steg4fzbj2sz.23418vzkd4ko3.1g34ou07z4pev.1sp3yo9yz874p";

    fn host(addresses: &[&str]) -> Host {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Host { addresses, named: false, port: 50005, key: KEY.into() }
    }

    fn every() -> Vec<Guide> {
        let host = host(&["192.168.1.10", "10.0.0.5"]);
        let net = Place::ALL.into_iter().filter(Place::has_network).map(|place| Guide::net(place, &host));
        net.chain(Place::ALL.into_iter().map(Guide::serial)).collect()
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == format!("    {line}")), "{line}\nis not in\n{text}");
    }

    #[test]
    fn each_place_fits_one_screen() {
        for guide in every() {
            let text = guide.text(false);
            let rows: usize = text.lines().map(|line| line.chars().count().div_ceil(80).max(1)).sum();
            // The last row is the shell's.
            assert!(rows <= 23, "{rows} rows at 80 columns:\n{text}");
            let notes = text.lines().filter(|line| !line.starts_with("    "));
            assert!(notes.clone().all(|line| line.chars().count() <= 79), "{text}");
        }
    }

    /// Lines to copy, complete: symbols are there from the first command on.
    #[test]
    fn every_attach_line_is_one_that_kdpool_takes() {
        for guide in every() {
            let spec = guide.attach.strip_prefix("kdpool -k ").unwrap();
            let (spec, symbols) = spec.split_once(' ').unwrap();
            kd_link::KdSpec::parse(spec).unwrap();
            assert_eq!(symbols, SYMBOLS);
            has(&guide.text(true), &guide.attach);
        }
    }

    #[test]
    fn only_the_chosen_hypervisor_is_spoken_of() {
        let host = host(&["192.168.1.10"]);
        let vmware = Guide::net(Place::Vmware, &host).text(false);
        for other in ["QEMU", "libvirt", "VBoxManage", "Hyper-V", "--qemu"] {
            assert!(!vmware.contains(other), "{other} in\n{vmware}");
        }
        has(&vmware, "ethernet0.virtualDev = \"e1000e\"");
        let unasked = Guide::net(Place::Machine, &host).text(true);
        assert!(unasked.contains("--qemu --libvirt --proxmox"), "{unasked}");
    }

    #[test]
    fn net_names_this_host_this_port_and_the_key() {
        let text = Guide::net(Place::Machine, &host(&["192.168.1.10", "10.0.0.5"])).text(false);
        has(&text, "bcdedit /debug on");
        has(&text, &format!("bcdedit /dbgsettings net hostip:192.168.1.10 port:50005 key:{KEY}"));
        assert!(text.contains("10.0.0.5") && text.contains("busparams"), "{text}");
        let qemu = Guide::net(Place::Qemu, &host(&["192.168.1.10"])).text(false);
        has(&qemu, &format!("bcdedit /dbgsettings net hostip:10.0.2.2 port:50005 key:{KEY}"));
        assert!(qemu.contains("hv-vendor-id=KVMKVMKVM") && qemu.contains("e1000e"), "{qemu}");
        let libvirt = Guide::net(Place::Libvirt, &host(&["10.0.0.5", "192.168.122.1"])).text(false);
        has(&libvirt, &format!("bcdedit /dbgsettings net hostip:192.168.122.1 port:50005 key:{KEY}"));
    }

    #[test]
    fn the_address_that_was_named_is_used_everywhere() {
        let named = Host { named: true, ..host(&["172.16.0.9"]) };
        for place in Place::ALL.into_iter().filter(Place::has_network) {
            let text = Guide::net(place, &named).text(false);
            assert!(text.contains("hostip:172.16.0.9 "), "{text}");
        }
    }

    #[test]
    fn ipv6_hosts_have_their_own_element() {
        let text = Guide::net(Place::Machine, &host(&["2001:db8::1"])).text(false);
        assert!(text.contains("bcdedit /dbgsettings net hostipv6:2001:db8::1 port:50005"), "{text}");
    }

    /// QEMU's end of a TCP line waits with small packets until the last one is acknowledged; measured against a real KD
    /// kernel, a stack of 35 frames took 27 s so, and 4.6 s with nodelay=on.
    #[test]
    fn serial_over_tcp_is_told_of_nodelay() {
        for place in [Place::Qemu, Place::Libvirt, Place::Proxmox] {
            let text = Guide::serial(place).text(false);
            assert!(!text.contains("tcp:") || text.contains("nodelay=on"), "{text}");
        }
        let text = Guide::serial(Place::Qemu).text(false);
        assert!(text.contains("nodelay=on") && text.contains("com:ipport=4555"), "{text}");
    }

    #[test]
    fn serial_lines_of_the_hypervisors() {
        let text: String = Place::ALL.into_iter().map(|place| Guide::serial(place).text(false)).collect();
        for line in [
            "bcdedit /dbgsettings serial debugport:1 baudrate:115200",
            "serial0.pipe.endPoint = \"server\"",
            "serial0.yieldOnMsrRead = \"TRUE\"",
            r"Set-VMComPort -VMName VM -Number 1 -Path \\.\pipe\kd",
            "Set-VMFirmware -VMName VM -EnableSecureBoot Off",
        ] {
            has(&text, line);
        }
        assert!(text.contains("-serial chardev:kd") && text.contains("--uartmode1 server"));
        assert!(text.contains(r"kdpool -k com:pipe,port=\\.\pipe\kd,resets=0,reconnect"));
        assert!(!text.contains(KEY), "a serial line has no key");
    }

    #[test]
    fn json_says_the_same() {
        let json =
            |chosen, transport| serde_json::to_value(advice(chosen, transport, host(&["192.168.1.10"]))).unwrap();
        let all = json(None, Transport::Net);
        assert_eq!((all["key"].as_str(), all["port"].as_u64()), (Some(KEY), Some(50005)));
        assert_eq!(
            all["target"][1]["command"],
            format!("bcdedit /dbgsettings net hostip:192.168.1.10 port:50005 key:{KEY}")
        );
        let names: Vec<&str> =
            all["machines"].as_array().unwrap().iter().map(|machine| machine["option"].as_str().unwrap()).collect();
        assert_eq!(names.len(), Place::ALL.len() - 1, "all but the one without KDNET: {names:?}");
        let one = json(Some(Place::HyperV), Transport::Serial);
        assert_eq!(one["key"], serde_json::Value::Null);
        assert_eq!(one["machines"][0]["name"], "Hyper-V");
        assert_eq!(one["machines"].as_array().unwrap().len(), 1);
    }
}
