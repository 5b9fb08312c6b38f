//! `kdpool setup`: what to type on the target and how to set up a VM, for this host, with a new key.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::decode::OutputFormat;

#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// How the target is connected
    #[arg(value_enum)]
    transport: Transport,
    /// UDP port of the target's datagrams; one per target
    #[arg(long, value_name = "N", default_value_t = 50000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// This host's address as the target reaches it [default: the addresses of this host]
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,
    /// Output format
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// KDNET, over the network
    Net,
    /// A serial line, real or a VM's
    Serial,
}

pub(crate) fn run(args: SetupArgs) -> anyhow::Result<ExitCode> {
    let setup = match args.transport {
        Transport::Net => {
            let addresses = match args.host {
                Some(host) => vec![host],
                None => kd_link::local_addresses().context("cannot list this host's addresses")?,
            };
            net(args.port, &addresses, &new_key()?)
        }
        Transport::Serial => serial(),
    };
    let text = match args.format {
        OutputFormat::Text => setup.text(),
        OutputFormat::Json => format!("{}\n", setup.json()),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // `kdpool setup net | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS).context("cannot write to standard output"),
    }
}

/// A KDNET key as Microsoft's kdnet makes it: four random 64-bit numbers in base 36.
fn new_key() -> anyhow::Result<String> {
    let mut parts = Vec::with_capacity(4);
    for _ in 0..4 {
        parts.push(base36(getrandom::u64().context("the system gives no random numbers")?));
    }
    Ok(parts.join("."))
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// Everything there is to say, before it is text or JSON.
struct Setup {
    transport: &'static str,
    addresses: Vec<IpAddr>,
    port: Option<u16>,
    key: Option<String>,
    target: Vec<Step>,
    host: Vec<Step>,
    machines: Vec<Machine>,
}

/// Something to type, or only to know (then `command` is empty), and why.
struct Step {
    command: String,
    note: &'static str,
}

/// The settings of one hypervisor.
struct Machine {
    name: &'static str,
    settings: Vec<Step>,
    /// The command that then attaches.
    attach: String,
}

fn step(command: impl Into<String>, note: &'static str) -> Step {
    Step { command: command.into(), note }
}

const REBOOT: &str = "shutdown /r /t 0";
const SECURE_BOOT: &str = "Secure Boot must be off to change these settings; with BitLocker, suspend it first.";

fn net(port: u16, addresses: &[IpAddr], key: &str) -> Setup {
    let attach = format!("kdpool -k net:port={port},key={key}");
    let host = addresses.first().map_or("HOST".to_owned(), IpAddr::to_string);
    let hostip = match addresses.first() {
        Some(IpAddr::V6(_)) => "hostipv6",
        _ => "hostip",
    };
    let settings = |host: &str| format!("bcdedit /dbgsettings net {hostip}:{host} port:{port} key:{key}");
    let mut target = vec![
        step(
            format!("kdnet.exe {host} {port}"),
            "Microsoft's tool, in place of the bcdedit lines: it chooses the adapter and prints a key of its own to use",
        ),
        step("bcdedit /debug on", ""),
        step(settings(&host), "sets the key above; `newkey` in its place would make another one"),
        step(
            "bcdedit /set \"{dbgsettings}\" busparams B.D.F",
            "only with several network adapters: bus.device.function in decimal, from Device Manager",
        ),
        step(REBOOT, ""),
        step("", SECURE_BOOT),
    ];
    if addresses.is_empty() {
        target.push(step("", "This host has no network address; put in the one the target will reach it at."));
    } else if addresses.len() > 1 {
        target.push(step("", "This host has several addresses: name the one the target can reach."));
    }
    let mut host_steps = vec![step(attach.clone(), "listens until the target calls")];
    host_steps.extend(firewall(port));

    let qemu = vec![
        step(
            "-netdev user,id=kd -device e1000e,netdev=kd",
            "QEMU; KDNET drives e1000e since Windows 8, virtio only since build 20241",
        ),
        step(settings("10.0.2.2"), "with user-mode networking the guest reaches this host at 10.0.2.2"),
        step("<interface type='network'><source network='default'/><model type='e1000e'/></interface>", "libvirt"),
        step(
            "<hyperv><vendor_id state='on' value='KVMKVMKVM'/></hyperv>",
            "libvirt, in <features>; with Hyper-V enlightenments the guest would else look for Hyper-V's debug device, \
             which QEMU lacks, and never connect",
        ),
        step("-cpu host,hv-vendor-id=KVMKVMKVM", "the same for QEMU, beside its other hv- flags"),
        step("", "Power the VM off and on afterwards; a restart is not enough."),
    ];
    let vmware = vec![step(
        "ethernet0.virtualDev = \"e1000e\"",
        ".vmx, with the VM off; KDNET does not drive vmxnet3 before build 26006",
    )];
    let virtualbox = vec![step(
        "VBoxManage modifyvm VM --nic1 bridged --bridgeadapter1 ADAPTER --nictype1 82540EM",
        "with the VM off; 82540EM is on KDNET's list since Windows 8",
    )];
    let hyperv = vec![
        step("Set-VMFirmware -VMName VM -EnableSecureBoot Off", "PowerShell, generation 2, with the VM off"),
        step("", "Connect the VM to an external switch or the default switch; no particular adapter is needed."),
    ];
    let machine = |name, settings| Machine { name, settings, attach: attach.clone() };
    Setup {
        transport: "net",
        addresses: addresses.to_vec(),
        port: Some(port),
        key: Some(key.to_owned()),
        target,
        host: host_steps,
        machines: vec![
            machine("QEMU and libvirt", qemu),
            machine("VMware", vmware),
            machine("VirtualBox", virtualbox),
            machine("Hyper-V", hyperv),
        ],
    }
}

/// How to let the target's datagrams in on this system.
fn firewall(port: u16) -> Vec<Step> {
    if cfg!(target_os = "linux") {
        vec![
            step(format!("sudo ufw allow {port}/udp"), "if ufw is the firewall"),
            step(format!("sudo firewall-cmd --add-port={port}/udp"), "if firewalld is"),
            step(format!("sudo nft insert rule inet filter input udp dport {port} accept"), "if nftables alone is"),
        ]
    } else if cfg!(windows) {
        let rule = format!(
            "netsh advfirewall firewall add rule name=kdpool dir=in action=allow protocol=UDP localport={port}"
        );
        vec![step(rule, "as administrator")]
    } else {
        vec![step("", "System Settings, Network, Firewall: allow kdpool to receive incoming connections.")]
    }
}

fn serial() -> Setup {
    let (device, pipe) = if cfg!(windows) { ("com1", r"\\.\pipe\kd") } else { ("/dev/ttyUSB0", "/tmp/kd.sock") };
    let attach_pipe = format!("kdpool -k com:pipe,port={pipe}");
    let attach_hyperv = r"kdpool -k com:pipe,port=\\.\pipe\kd,resets=0,reconnect".to_owned();
    let mut host = vec![step(
        format!("kdpool -k com:port={device},baud=115200"),
        "a null-modem cable between this host and the target; name your device",
    )];
    if cfg!(target_os = "linux") {
        host.push(step("sudo usermod -aG dialout $USER", "if the device may not be opened; then log in again"));
    }
    let qemu = vec![
        step(format!("-chardev socket,id=kd,path={pipe},server=on,wait=off -serial chardev:kd"), "QEMU"),
        step(
            format!(
                "<serial type='unix'><source mode='bind' path='{pipe}'/><target type='isa-serial' port='0'/></serial>"
            ),
            "libvirt; virt-manager's own console takes COM1, then this is COM2: debugport:2 on the target",
        ),
        step(
            "-serial tcp:127.0.0.1:4555,server=on,wait=off",
            "over TCP instead; then attach with kdpool -k com:ipport=4555,port=127.0.0.1",
        ),
    ];
    let vmware = [
        "serial0.present = \"TRUE\"".to_owned(),
        "serial0.fileType = \"pipe\"".to_owned(),
        format!("serial0.fileName = \"{pipe}\""),
        "serial0.pipe.endPoint = \"server\"".to_owned(),
        "serial0.startConnected = \"TRUE\"".to_owned(),
        "serial0.yieldOnMsrRead = \"TRUE\"".to_owned(),
    ];
    let mut vmware: Vec<Step> = vmware.into_iter().map(|line| step(line, "")).collect();
    vmware.push(step("", ".vmx, with the VM off. If the VM has a virtual printer it takes serial0: remove it."));
    let virtualbox = vec![step(
        format!("VBoxManage modifyvm VM --uart1 0x3F8 4 --uartmode1 server {pipe}"),
        "with the VM off; `--uartmode1 tcpserver 4555` exports it over TCP instead",
    )];
    let hyperv = vec![
        step(
            r"Set-VMComPort -VMName VM -Number 1 -Path \\.\pipe\kd",
            "PowerShell on the Hyper-V host, with the VM off",
        ),
        step("Set-VMFirmware -VMName VM -EnableSecureBoot Off", "generation 2"),
        step("", "Turn Enhanced Session off, and run kdpool on the Hyper-V host as administrator."),
    ];
    let machine = |name, settings| Machine { name, settings, attach: attach_pipe.clone() };
    Setup {
        transport: "serial",
        addresses: Vec::new(),
        port: None,
        key: None,
        target: vec![
            step("bcdedit /debug on", ""),
            step("bcdedit /dbgsettings serial debugport:1 baudrate:115200", "debugport is the number of the COM port"),
            step(REBOOT, ""),
            step("", SECURE_BOOT),
        ],
        host,
        machines: vec![
            machine("QEMU and libvirt", qemu),
            machine("VMware", vmware),
            machine("VirtualBox", virtualbox),
            Machine { name: "Hyper-V", settings: hyperv, attach: attach_hyperv },
        ],
    }
}

impl Setup {
    fn text(&self) -> String {
        let mut out = String::new();
        if let (Some(port), Some(key)) = (self.port, &self.key) {
            let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
            let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
            put(&mut out, format_args!("This host: {addresses}; UDP port {port}"));
            put(&mut out, format_args!("New key:   {key}"));
            out.push('\n');
        }
        put(&mut out, format_args!("On the target, in an administrator's command prompt:"));
        steps(&mut out, &self.target);
        put(&mut out, format_args!("\nOn this host:"));
        steps(&mut out, &self.host);
        for machine in &self.machines {
            put(&mut out, format_args!("\n{}:", machine.name));
            steps(&mut out, &machine.settings);
            put(&mut out, format_args!("    {}", machine.attach));
        }
        out
    }

    fn json(&self) -> Value {
        let steps = |steps: &[Step]| -> Value {
            steps.iter().map(|step| json!({ "command": step.command, "note": step.note })).collect()
        };
        let machines: Value = self
            .machines
            .iter()
            .map(|machine| {
                json!({ "name": machine.name, "settings": steps(&machine.settings), "attach": machine.attach })
            })
            .collect();
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        json!({
            "transport": self.transport,
            "addresses": addresses,
            "port": self.port,
            "key": self.key,
            "target": steps(&self.target),
            "host": steps(&self.host),
            "machines": machines,
        })
    }
}

fn steps(out: &mut String, steps: &[Step]) {
    for step in steps {
        match (step.command.as_str(), step.note) {
            ("", note) => put(out, format_args!("  - {note}")),
            (command, "") => put(out, format_args!("    {command}")),
            (command, note) => put(out, format_args!("    {command}\n      ({note})")),
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

    #[test]
    fn base36_as_kdnet_writes_it() {
        assert_eq!(base36(0), "0");
        assert_eq!(base36(35), "z");
        assert_eq!(base36(36), "10");
        assert_eq!(base36(u64::MAX), "3w5e11264sgsf");
    }

    #[test]
    fn keys_are_new_each_time_and_parse() {
        let key = new_key().unwrap();
        assert_ne!(key, new_key().unwrap());
        assert!(kd_link::KeyText::parse(&key).is_ok(), "{key}");
        assert!(key.parse::<kd_wire::kdnet::Key>().is_ok(), "{key}");
    }

    #[test]
    fn net_names_this_host_this_port_and_the_key() {
        let addresses = ["192.168.1.10".parse().unwrap(), "10.0.0.5".parse().unwrap()];
        let text = net(50005, &addresses, KEY).text();
        for line in [
            "This host: 192.168.1.10, 10.0.0.5; UDP port 50005".to_owned(),
            format!("New key:   {KEY}"),
            "    bcdedit /debug on".to_owned(),
            format!("    bcdedit /dbgsettings net hostip:192.168.1.10 port:50005 key:{KEY}"),
            format!("    bcdedit /dbgsettings net hostip:10.0.2.2 port:50005 key:{KEY}"),
            "    kdnet.exe 192.168.1.10 50005".to_owned(),
            format!("    kdpool -k net:port=50005,key={KEY}"),
            "    Set-VMFirmware -VMName VM -EnableSecureBoot Off".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
        assert!(text.contains("value='KVMKVMKVM'") && text.contains("e1000e") && text.contains("several addresses"));
    }

    #[test]
    fn ipv6_hosts_have_their_own_element() {
        let text = net(50000, &["2001:db8::1".parse().unwrap()], KEY).text();
        assert!(text.contains("bcdedit /dbgsettings net hostipv6:2001:db8::1 port:50000"), "{text}");
    }

    #[test]
    fn serial_covers_the_four_hypervisors() {
        let text = serial().text();
        for line in [
            "    bcdedit /dbgsettings serial debugport:1 baudrate:115200",
            "    serial0.pipe.endPoint = \"server\"",
            "    serial0.yieldOnMsrRead = \"TRUE\"",
            r"    Set-VMComPort -VMName VM -Number 1 -Path \\.\pipe\kd",
            r"    kdpool -k com:pipe,port=\\.\pipe\kd,resets=0,reconnect",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
        assert!(text.contains("-serial chardev:kd") && text.contains("--uartmode1 server"));
        assert!(!text.contains("key"), "a serial line has no key");
    }

    #[test]
    fn every_attach_line_is_one_that_kdpool_takes() {
        for setup in [net(50000, &[], KEY), serial()] {
            for machine in &setup.machines {
                let spec = machine.attach.strip_prefix("kdpool -k ").unwrap();
                kd_link::KdSpec::parse(spec).unwrap();
            }
        }
    }

    #[test]
    fn json_says_the_same() {
        let json = net(50000, &["192.168.1.10".parse().unwrap()], KEY).json();
        assert_eq!(json["key"], KEY);
        assert_eq!(json["port"], 50000);
        assert_eq!(
            json["target"][2]["command"],
            format!("bcdedit /dbgsettings net hostip:192.168.1.10 port:50000 key:{KEY}")
        );
        assert_eq!(json["machines"][3]["name"], "Hyper-V");
        assert_eq!(serial().json()["key"], Value::Null);
    }
}
