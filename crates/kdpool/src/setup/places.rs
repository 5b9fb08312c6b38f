//! Where Windows runs: a machine of its own or a hypervisor's guest, and what each needs to be debugged.
//!
//! Sources: Microsoft's pages on kernel debugging, the hypervisors' manuals, and the reports named in docs/attach.

use std::net::IpAddr;

use super::{Host, Step, step};
use crate::host;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Machine,
    Qemu,
    Libvirt,
    Proxmox,
    Vmware,
    VirtualBox,
    HyperV,
    CloudHypervisor,
}

/// A serial line to it.
pub(super) struct Line {
    /// In the VM's settings, or on the machine.
    pub(super) machine: Vec<Step>,
    pub(super) host: Vec<Step>,
    /// The `-k` string.
    pub(super) connection: String,
}

/// KDNET's driver for virtio came with build 20241; for e1000 and e1000e it has had one since Windows 8.
const ADAPTER: &str = "KDNET drives e1000e since Windows 8, virtio only since build 20241.";
/// A guest that finds Hyper-V's vendor id looks for Hyper-V's debug device, which QEMU does not have, and never calls.
const VENDOR: &str = "Beside the other hv- flags: a guest that takes KVM for Hyper-V looks for Hyper-V's debug device and \
                      never calls.";

impl Place {
    /// In the order in which they are offered.
    pub(super) const ALL: [Place; 8] = [
        Place::Machine,
        Place::Qemu,
        Place::Libvirt,
        Place::Proxmox,
        Place::Vmware,
        Place::VirtualBox,
        Place::HyperV,
        Place::CloudHypervisor,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Machine => "A machine of its own",
            Place::Qemu => "QEMU",
            Place::Libvirt => "libvirt",
            Place::Proxmox => "Proxmox VE",
            Place::Vmware => "VMware",
            Place::VirtualBox => "VirtualBox",
            Place::HyperV => "Hyper-V",
            Place::CloudHypervisor => "Cloud Hypervisor",
        }
    }

    pub(super) fn option(self) -> &'static str {
        match self {
            Place::Machine => "--machine",
            Place::Qemu => "--qemu",
            Place::Libvirt => "--libvirt",
            Place::Proxmox => "--proxmox",
            Place::Vmware => "--vmware",
            Place::VirtualBox => "--virtualbox",
            Place::HyperV => "--hyperv",
            Place::CloudHypervisor => "--cloud-hypervisor",
        }
    }

    /// Its page of the documentation.
    pub(super) fn page(self) -> &'static str {
        match self {
            Place::Machine => "docs/attach/machine.md",
            Place::Qemu | Place::Libvirt => "docs/attach/qemu.md",
            Place::Proxmox => "docs/attach/proxmox.md",
            Place::Vmware => "docs/attach/vmware.md",
            Place::VirtualBox => "docs/attach/virtualbox.md",
            Place::HyperV => "docs/attach/hyper-v.md",
            Place::CloudHypervisor => "docs/attach/cloud-hypervisor.md",
        }
    }

    /// Whether it has an adapter that KDNET drives.
    pub(super) fn has_network(&self) -> bool {
        *self != Place::CloudHypervisor
    }

    pub(super) fn settings_title(self) -> &'static str {
        match self {
            Place::Machine => "Between the machines",
            _ => "The virtual machine, powered off",
        }
    }

    /// What makes the settings take effect.
    pub(super) fn restart(self) -> Step {
        match self {
            Place::Qemu | Place::Libvirt | Place::Proxmox => {
                step("shutdown /s /t 0", "Then power the VM on: a restart is not enough for its new settings.")
            }
            _ => step("shutdown /r /t 0", ""),
        }
    }

    /// This host's address as the guest reaches it, and what else to know of it.
    pub(super) fn host_address(self, host: &Host) -> (String, String) {
        let first = || host.addresses.first().map(IpAddr::to_string);
        if host.named {
            return (first().unwrap_or_default(), String::new());
        }
        let within = |network: [u8; 3]| {
            host.addresses.iter().find(|address| match address {
                IpAddr::V4(v4) => v4.octets()[..3] == network,
                IpAddr::V6(_) => false,
            })
        };
        match self {
            Place::Qemu => ("10.0.2.2".into(), "10.0.2.2 is this host on QEMU's user network; else use --host.".into()),
            Place::Libvirt => {
                let address = within([192, 168, 122]).map_or_else(|| "192.168.122.1".into(), IpAddr::to_string);
                (address, "This host on libvirt's default network; on another use --host.".into())
            }
            _ => match first() {
                None => ("HOST".into(), "HOST is this host's address; it has none now.".into()),
                Some(address) if host.addresses.len() == 1 => (address, String::new()),
                Some(address) => {
                    let others: Vec<String> = host.addresses.iter().skip(1).take(3).map(IpAddr::to_string).collect();
                    (
                        address,
                        format!("Or another address of this host that the target reaches: {}.", others.join(", ")),
                    )
                }
            },
        }
    }

    /// The adapter that KDNET takes.
    pub(super) fn network(self) -> Vec<Step> {
        match self {
            Place::Machine | Place::CloudHypervisor => Vec::new(),
            Place::Qemu => vec![
                step("-netdev user,id=kd -device e1000e,netdev=kd", ADAPTER),
                step("-cpu host,hv-vendor-id=KVMKVMKVM", VENDOR),
            ],
            Place::Libvirt => vec![
                step("<model type='e1000e'/>", format!("In its <interface>. {ADAPTER}")),
                step(
                    "<vendor_id state='on' value='KVMKVMKVM'/>",
                    "In <features><hyperv>: a guest that takes KVM for Hyper-V looks for Hyper-V's debug device and \
                     never calls.",
                ),
            ],
            Place::Proxmox => vec![
                step("qm set VMID --net1 e1000e,bridge=vmbr0", ADAPTER),
                step(
                    "qm set VMID --cpu host,hv-vendor-id=KVMKVMKVM",
                    "A guest that takes KVM for Hyper-V looks for Hyper-V's debug device and never calls.",
                ),
            ],
            Place::Vmware => vec![step(
                "ethernet0.virtualDev = \"e1000e\"",
                "In the .vmx file. KDNET does not drive vmxnet3 before build 26006.",
            )],
            Place::VirtualBox => vec![step(
                "VBoxManage modifyvm VM --nic1 bridged --bridgeadapter1 ADAPTER --nictype1 82540EM",
                "82540EM is on KDNET's list since Windows 8; ADAPTER is this host's.",
            )],
            Place::HyperV => vec![step(
                "Set-VMFirmware -VMName VM -EnableSecureBoot Off",
                "PowerShell on the Hyper-V host, generation 2. The VM is on an external or the default switch; no \
                 particular adapter is needed.",
            )],
        }
    }

    pub(super) fn serial(self) -> Line {
        let pipe = host::HERE.pipe();
        let over = |machine, connection: &str| Line { machine, host: Vec::new(), connection: connection.into() };
        let piped = |machine| over(machine, &format!("com:pipe,port={pipe}"));
        match self {
            Place::Machine => machine(),
            Place::Qemu => {
                let mut line = piped(vec![
                    step(format!("-chardev socket,id=kd,path={pipe},server=on,wait=off -serial chardev:kd"), ""),
                    step(
                        "-serial tcp:127.0.0.1:4555,server=on,wait=off,nodelay=on",
                        "Over TCP instead; without nodelay=on QEMU holds small packets back until the last is \
                         acknowledged, and each request takes 40 ms.",
                    ),
                ]);
                line.host.push(step(
                    format!("kdpool -k com:ipport=4555,port=127.0.0.1 {}", super::SYMBOLS),
                    "Over TCP; else:",
                ));
                line
            }
            Place::Libvirt => piped(vec![step(
                format!(
                    "<serial type='unix'><source mode='bind' path='{pipe}'/><target type='isa-serial' port='0'/></serial>"
                ),
                "virt-manager's own console takes COM1; then this is COM2: debugport:2 in Windows.",
            )]),
            Place::Proxmox => over(
                vec![step("qm set VMID --serial0 socket", "kdpool then runs on the Proxmox host.")],
                "com:pipe,port=/var/run/qemu-server/VMID.serial0",
            ),
            Place::Vmware => {
                let mut lines: Vec<Step> = [
                    "serial0.present = \"TRUE\"".to_owned(),
                    "serial0.fileType = \"pipe\"".to_owned(),
                    format!("serial0.fileName = \"{pipe}\""),
                    "serial0.pipe.endPoint = \"server\"".to_owned(),
                    "serial0.startConnected = \"TRUE\"".to_owned(),
                    "serial0.yieldOnMsrRead = \"TRUE\"".to_owned(),
                ]
                .into_iter()
                .map(|line| step(line, ""))
                .collect();
                lines.push(step("", "In the .vmx file. A virtual printer takes serial0: remove it."));
                piped(lines)
            }
            Place::VirtualBox => piped(vec![step(
                format!("VBoxManage modifyvm VM --uart1 0x3F8 4 --uartmode1 server {pipe}"),
                "`--uartmode1 tcpserver 4555` exports it over TCP: then -k com:ipport=4555,port=127.0.0.1.",
            )]),
            Place::HyperV => over(
                vec![
                    step(r"Set-VMComPort -VMName VM -Number 1 -Path \\.\pipe\kd", "PowerShell on the Hyper-V host."),
                    step("Set-VMFirmware -VMName VM -EnableSecureBoot Off", "Generation 2."),
                    step("", "Enhanced Session off; kdpool runs on the Hyper-V host as administrator."),
                ],
                r"com:pipe,port=\\.\pipe\kd,resets=0,reconnect",
            ),
            Place::CloudHypervisor => {
                over(vec![step("--serial socket=/tmp/kd.sock --console off", "")], "com:pipe,port=/tmp/kd.sock")
            }
        }
    }
}

/// A cable between two machines.
fn machine() -> Line {
    let device = host::HERE.serial_device();
    let rights = host::HERE.serial_rights();
    let host = rights.map(|command| step(command, "If the device may not be opened; then log in again."));
    Line {
        machine: vec![step(
            "",
            "A null-modem cable (receive and transmit crossed). Windows' end is a real COM port: its kernel does not \
             debug over a USB adapter. This host's end may be one; name your device below.",
        )],
        host: host.into_iter().collect(),
        connection: format!("com:port={device},baud=115200"),
    }
}
