//! This host's own addresses, for messages and for the target's `hostip`, and its serial devices.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use serial2_tokio::SerialPort;

/// The address this host uses toward `peer`. Sends nothing: a connected UDP socket only asks the routing table.
pub fn local_address_toward(peer: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // Any port does: nothing is sent.
    socket.connect(SocketAddr::new(peer, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// The addresses a target on the network could use for this host, IPv4 first. Loopback and link-local ones are left
/// out: a target cannot be told them.
pub fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()?
        .into_iter()
        .map(|interface| interface.ip())
        .filter(|ip| match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// Serial devices that a cable to a target may hang at, as `-k com:port=` takes them: what the system lists, and of Unix's
/// many the USB adapters, since boards' own ports are there whether something is behind them or not. None where the
/// system has no list.
pub fn serial_devices() -> Vec<String> {
    const ADAPTERS: [&str; 3] = ["ttyUSB", "ttyACM", "cu.usb"];
    let may_be = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        cfg!(windows) || ADAPTERS.iter().any(|start| name.starts_with(start))
    };
    let found = SerialPort::available_ports().unwrap_or_default();
    let mut names: Vec<String> =
        found.iter().filter(|path| may_be(path)).map(|path| path.display().to_string()).collect();
    names.sort();
    names
}

/// IPv4 addresses that arrived on an IPv6 socket, as plain IPv4.
pub fn normalised(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        let local = local_address_toward(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert!(local.is_loopback(), "{local}");
    }

    #[test]
    fn no_loopback_among_the_addresses_to_give_a_target() {
        assert!(local_addresses().unwrap().iter().all(|ip| !ip.is_loopback()));
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        assert_eq!(normalised("[::ffff:10.0.0.1]:5".parse().unwrap()), "10.0.0.1:5".parse().unwrap());
        assert_eq!(normalised("[2001:db8::1]:5".parse().unwrap()), "[2001:db8::1]:5".parse().unwrap());
    }
}
