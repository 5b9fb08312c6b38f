//! Every carrier against a real peer: sockets on loopback, a Unix-domain socket, a pty.

#![allow(clippy::unwrap_used)] // helpers of tests are not tests to clippy

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use kd_link::{Frame, KdSpec, Link, OpenError, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);

async fn recv(link: &mut Box<dyn Link>) -> Option<Frame> {
    timeout(PATIENCE, link.recv()).await.expect("nothing arrives").expect("the link fails")
}

/// Reads pieces until `length` bytes are there.
async fn recv_bytes(link: &mut Box<dyn Link>, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        match recv(link).await {
            Some(Frame::Bytes(data)) => all.extend_from_slice(&data),
            other => panic!("{other:?} after {} bytes", all.len()),
        }
    }
    all
}

fn bytes(data: &[u8]) -> Frame {
    Frame::Bytes(Bytes::copy_from_slice(data))
}

async fn open_text(text: &str) -> Result<Box<dyn Link>, OpenError> {
    open(&KdSpec::parse(text).unwrap()).await
}

async fn open_error(text: &str) -> OpenError {
    match open_text(text).await {
        Ok(link) => panic!("{text} opened {}", link.describe()),
        Err(error) => error,
    }
}

/// A UDP port that was free a moment ago.
fn free_port() -> u16 {
    std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

async fn udp_round_trip(link: &mut Box<dyn Link>, target: &UdpSocket, port: u16) {
    let local = target.local_addr().unwrap();
    target.send_to(b"offer", SocketAddr::new(local.ip(), port)).await.unwrap();
    let Some(Frame::Datagram { peer, data }) = recv(link).await else { panic!("no datagram") };
    assert_eq!((peer, &data[..]), (local, &b"offer"[..]), "the peer is shown in its own family");

    link.send(Frame::Datagram { peer, data: Bytes::from_static(b"response") }).await.unwrap();
    let mut buffer = [0; 100];
    let (length, from) = timeout(PATIENCE, target.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!((&buffer[..length], from.port()), (&b"response"[..], port));
}

fn has_ipv6() -> bool {
    let there = std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !there {
        println!("skipped: this machine has no IPv6");
    }
    there
}

#[tokio::test]
async fn udp_serves_both_families_on_one_port() {
    let port = free_port();
    let mut link = open_text(&format!("net:port={port},key=1.2.3.4")).await.unwrap();
    assert_eq!(link.describe(), format!("UDP port {port}"));
    udp_round_trip(&mut link, &UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), port).await;
    if has_ipv6() {
        udp_round_trip(&mut link, &UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap(), port).await;
    }
}

#[tokio::test]
async fn target_forces_a_family() {
    let port = free_port();
    let mut link = open_text(&format!("net:port={port},key=1.2.3.4,target=0.0.0.0")).await.unwrap();
    udp_round_trip(&mut link, &UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), port).await;
    if has_ipv6() {
        // The IPv6 port is still free, so a second link can have it.
        let mut v6 = open_text(&format!("net:port={port},key=1.2.3.4,target=::")).await.unwrap();
        udp_round_trip(&mut v6, &UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap(), port).await;
    }
}

#[tokio::test]
async fn a_taken_udp_port_is_said() {
    let holder = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = holder.local_addr().unwrap().port();
    let error = open_error(&format!("net:port={port},key=1.2.3.4")).await;
    assert!(matches!(error, OpenError::PortTaken { port: p, .. } if p == port), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with(&format!("UDP port {port} is already in use")));
}

#[tokio::test]
async fn sending_to_a_target_that_is_away_does_not_end_the_link() {
    let port = free_port();
    let mut link = open_text(&format!("net:port={port},key=1.2.3.4")).await.unwrap();
    // Nothing listens there: the kernel answers each datagram with "port unreachable".
    let gone: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()).into();
    for _ in 0..5 {
        link.send(Frame::Datagram { peer: gone, data: Bytes::from_static(b"poke") }).await.unwrap();
        assert!(timeout(Duration::from_millis(5), link.recv()).await.is_err(), "no frame and no error");
    }
    udp_round_trip(&mut link, &UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), port).await;
}

#[tokio::test]
async fn target_names_resolve_to_addresses_to_poke() {
    let spec = |text: &str| match KdSpec::parse(text).unwrap() {
        KdSpec::Net(net) => net,
        other => panic!("{other}"),
    };
    let pokes = spec("net:port=50000,key=1.2.3.4,target=127.0.0.1").target_addresses().await.unwrap();
    assert_eq!(pokes, ["127.0.0.1:50000".parse().unwrap()]);
    assert!(spec("net:port=50000,key=1.2.3.4").target_addresses().await.unwrap().is_empty());
    assert!(spec("net:port=50000,key=1.2.3.4,target=::").target_addresses().await.unwrap().is_empty());
    let error = spec("net:port=50000,key=1.2.3.4,target=no such host").target_addresses().await.unwrap_err();
    assert!(error.to_string().starts_with("cannot resolve the name `no such host`"), "{error}");
}

#[tokio::test]
async fn cancelled_receives_lose_nothing() {
    let port = free_port();
    let mut link = open_text(&format!("net:port={port},key=1.2.3.4")).await.unwrap();
    let target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for n in 0..50u8 {
        assert!(timeout(Duration::from_micros(100), link.recv()).await.is_err());
        target.send_to(&[n], (Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let Some(Frame::Datagram { data, .. }) = recv(&mut link).await else { panic!() };
        assert_eq!(&data[..], [n]);
    }
}

#[tokio::test]
async fn tcp_carries_bytes_and_ends() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut link = open_text(&format!("com:ipport={port},port=localhost")).await.unwrap();
    assert_eq!(link.describe(), format!("TCP localhost:{port}"));
    let (mut peer, _) = server.accept().await.unwrap();
    peer.write_all(b"iiii").await.unwrap();
    assert_eq!(recv_bytes(&mut link, 4).await, b"iiii");
    link.send(bytes(b"b")).await.unwrap();
    assert_eq!(peer.read_u8().await.unwrap(), b'b');
    drop(peer);
    assert_eq!(recv(&mut link).await, None);
}

#[tokio::test]
async fn tcp_reconnects_and_says_so() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut link = open_text(&format!("com:ipport={port},port=127.0.0.1,reconnect")).await.unwrap();
    link.send(bytes(b"lost: nobody is connected yet")).await.unwrap();
    for round in [b'1', b'2'] {
        let (opened, accepted) = tokio::join!(recv(&mut link), server.accept());
        assert_eq!(opened, Some(Frame::Reopened));
        let (mut peer, _) = accepted.unwrap();
        peer.write_all(&[round]).await.unwrap();
        assert_eq!(recv_bytes(&mut link, 1).await, [round]);
        link.send(bytes(&[round])).await.unwrap();
        assert_eq!(peer.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_closed_tcp_port_is_said() {
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let error = open_error(&format!("com:ipport={port},port=127.0.0.1")).await;
    assert!(error.to_string().starts_with(&format!("TCP 127.0.0.1:{port} refuses the connection")), "{error}");
}

#[tokio::test]
async fn only_the_right_kind_of_frame_is_sent() {
    let port = free_port();
    let mut link = open_text(&format!("net:port={port},key=1.2.3.4")).await.unwrap();
    for frame in [bytes(b"x"), Frame::Reopened] {
        assert_eq!(link.send(frame).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_vm_socket_carries_bytes_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kd.sock");
        let server = UnixListener::bind(&path).unwrap();
        let mut link = open_text(&format!("com:pipe,port={}", path.display())).await.unwrap();
        let (mut peer, _) = server.accept().await.unwrap();
        let big = vec![0x30; 100_000];
        let (sent, got) = tokio::join!(peer.write_all(&big), recv_bytes(&mut link, big.len()));
        sent.unwrap();
        assert_eq!(got, big);
        drop(peer);
        assert_eq!(recv(&mut link).await, None);
    }

    #[tokio::test]
    async fn reconnect_waits_for_the_socket_and_opens_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kd.sock");
        let mut link = open_text(&format!("com:pipe,port={},resets=0,reconnect", path.display())).await.unwrap();
        assert!(timeout(Duration::from_millis(100), link.recv()).await.is_err(), "waits while there is no socket");
        for round in 0..2 {
            let server = UnixListener::bind(&path).unwrap();
            let (opened, accepted) = tokio::join!(recv(&mut link), server.accept());
            assert_eq!(opened, Some(Frame::Reopened), "round {round}");
            let (mut peer, _) = accepted.unwrap();
            peer.write_all(b"0000").await.unwrap();
            assert_eq!(recv_bytes(&mut link, 4).await, b"0000");
            drop((peer, server));
            std::fs::remove_file(&path).unwrap();
        }
        // The VM is gone; what is sent now is lost without an error.
        assert!(timeout(Duration::from_millis(100), link.recv()).await.is_err());
        link.send(bytes(b"b")).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let stale = dir.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        for (text, expected) in [
            (format!("com:pipe,port={}/none", dir.path().display()), "/none does not exist (is the VM running?)"),
            (format!("com:pipe,port={}", file.display()), "is not a socket; for a serial device use com:port="),
            (format!("com:pipe,port={}", stale.display()), "refuses the connection"),
            (format!("com:port={}/none", dir.path().display()), "/none does not exist; serial devices are named"),
            (format!("com:port={}", file.display()), "is not a serial device; for a VM's socket use com:pipe"),
        ] {
            let error = open_error(&text).await.to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }
}

#[cfg(target_os = "linux")]
mod pty {
    use super::*;
    use serial2::SerialPort;
    use std::os::fd::AsRawFd;
    use std::thread;

    /// A pty: the end a fake target would hold, and the name of the other.
    fn pair() -> (SerialPort, String) {
        let (master, slave) = SerialPort::pair().unwrap();
        let name = std::fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).unwrap();
        (master, name.into_os_string().into_string().unwrap())
    }

    #[tokio::test]
    async fn every_byte_value_passes_a_serial_device_unchanged() {
        let (master, name) = pair();
        let mut link = open_text(&format!("com:port={name},baud=115200")).await.unwrap();
        assert_eq!(link.describe(), format!("{name} at 115200 baud"));
        // CR, LF, XON, XOFF, 0x7f and EOF characters included: a line that is not raw changes them.
        let all: Vec<u8> = (0..=255).cycle().take(4017).collect();
        let expected = all.clone();
        let target = thread::spawn(move || {
            let mut got = vec![0; all.len()];
            master.write_all(&all).unwrap();
            master.read_exact(&mut got).unwrap();
            got
        });
        assert_eq!(recv_bytes(&mut link, expected.len()).await, expected);
        link.send(bytes(&expected)).await.unwrap();
        let got = tokio::task::spawn_blocking(|| target.join().unwrap()).await.unwrap();
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn a_device_that_is_pulled_out_ends_the_link() {
        let (master, name) = pair();
        let mut link = open_text(&format!("com:port={name}")).await.unwrap();
        drop(master);
        assert_eq!(recv(&mut link).await, None);
    }
}
