//! The fake target against a debugger that shares nothing with it but the facts.

#![allow(clippy::unwrap_used)]

mod host;

use host::{Host, Kdnet, PATIENCE, Packet, u16_at, u32_at, u64_at};
use kd_fake::kernel::{LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport, Faults, ModuleLoad, Start, kernel};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const KEY: &str = "1.2.3.4";

/// The same kernel as the target's, to compare with.
fn twin() -> &'static kernel::Kernel {
    static TWIN: OnceLock<kernel::Kernel> = OnceLock::new();
    TWIN.get_or_init(kernel::article)
}

fn quick(transport: FakeTransport) -> FakeOptions {
    let mut options = FakeOptions::new(transport, kernel::article());
    options.offer_period = Duration::from_millis(50);
    options.retransmit = Duration::from_millis(100);
    options.break_in_silence = Duration::from_millis(50);
    options.clock_tick = Duration::from_millis(1);
    options.reboot_time = Duration::from_millis(50);
    options.dump_time = Duration::from_millis(50);
    options
}

fn tcp_with(change: impl FnOnce(&mut FakeOptions)) -> (FakeTarget, Host) {
    let mut options = quick(FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0))));
    change(&mut options);
    let target = FakeTarget::start(options).unwrap();
    let stream = TcpStream::connect(target.address().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    (target, Host::serial(stream))
}

fn net_with(change: impl FnOnce(&mut FakeOptions)) -> (FakeTarget, Host) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut options = quick(FakeTransport::kdnet(socket.local_addr().unwrap(), KEY));
    change(&mut options);
    let target = FakeTarget::start(options).unwrap();
    let mut kdnet = Kdnet::new(socket, [1, 2, 3, 4]);
    kdnet.connect();
    until("connected", || target.stats().connections == 1);
    (target, Host::kdnet(kdnet))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The first unmapped address at or above this one.
fn hole_above(kernel: &kernel::Kernel, start: u64) -> u64 {
    (1..1 << 20)
        .map(|page| (start & !0xfff) + page * 0x1000)
        .find(|address| kernel.read_virtual(*address, &mut [0]) == 0)
        .unwrap()
}

/// Everything a debugger does first, on any line.
fn attach_and_read(target: &FakeTarget, host: &mut Host) {
    let twin = twin();
    let facts = twin.facts().clone();
    host.break_in();
    let stop = host.stop();
    assert_eq!((stop.state, stop.code, stop.pc), (0x3030, 0x8000_0003, facts.break_pc));
    assert_eq!(stop.stream[0], 0xcc);
    assert!(target.stats().halted);

    let version = host.request(0x3146, &[], &[]);
    assert_eq!(version.status, 0);
    assert_eq!(u16_at(&version.header, 18), facts.build);
    assert_eq!(u64_at(&version.header, 32), facts.kernel_base);

    let head = host.read(facts.kernel_base, 2);
    assert_eq!((head.status, &head.data[..]), (0, &b"MZ"[..]));

    // Across the end of what is mapped: the good bytes come, with a failure status.
    let hole = hole_above(twin, facts.kernel_base);
    let across = host.read(hole - 8, 16);
    assert_eq!((across.status, u32_at(&across.header, 28), across.data.len()), (0xc000_0001, 8, 8));
    let mut expected = [0; 8];
    twin.read_virtual(hole - 8, &mut expected);
    assert_eq!(across.data, expected);
    let nothing = host.read(hole, 16);
    assert_eq!((nothing.status, nothing.data.len()), (0xc000_0001, 0));

    // A long read is cut, and that is a success.
    let long = host.read(facts.kernel_base, 0x4000);
    let limit = if matches!(host.link, host::Link::Kdnet(_)) { 1352 } else { 3944 };
    assert_eq!((long.status, long.data.len(), u32_at(&long.header, 24)), (0, limit, 0x4000));

    let special = host.request(0x3137, &[(16, 2), (24, 0xa8)], &[]);
    assert_eq!(u64_at(&special.data, 0x10), facts.cr3);
    assert_eq!(host.request(0x3137, &[(16, 0x2cc), (24, 84)], &[]).status, 0xc000_0001);

    host.leave(&stop);
    until("running", || !target.stats().halted);
    let stats = target.stats();
    assert_eq!((stats.rebreaks, stats.wrong_dr7, stats.contexts_set), (0, 0, 1));
    assert_eq!(stats.continue_dr7, Some(0x400));
    assert_eq!(stats.continue_pc, Some(facts.break_pc + 1));
}

#[test]
fn attach_over_tcp() {
    let (target, mut host) = tcp_with(|_| {});
    attach_and_read(&target, &mut host);
}

#[cfg(unix)]
#[test]
fn attach_over_a_unix_socket_twice() {
    use std::os::unix::net::UnixStream;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kd");
    let target = FakeTarget::start(quick(FakeTransport::UnixListen(path.clone()))).unwrap();
    for _ in 0..2 {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let mut host = Host::serial(stream);
        // The second debugger starts from the beginning; the target goes on counting, and takes its first id or not.
        let before = target.stats().contexts_set;
        if before == 0 {
            attach_and_read(&target, &mut host);
        } else {
            host.break_in();
            let stop = host.stop();
            host.control(6, 0);
            host.expected = None;
            let again = host.stop();
            assert_eq!(stop.pc, again.pc);
            assert_eq!(host.read(stop.pc, 1).data, [0xcc]);
        }
    }
    drop(target);
    assert!(!path.exists(), "the socket is taken away");
}

#[cfg(unix)]
#[test]
fn attach_over_a_pty() {
    let target = FakeTarget::start(quick(FakeTransport::Pty)).unwrap();
    let tty = std::fs::OpenOptions::new().read(true).write(true).open(target.path().unwrap()).unwrap();
    let mut reader = tty.try_clone().unwrap();
    // A blocking file: its bytes come through a socket, which has a time limit.
    let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut near));
    far.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    struct Both(std::os::unix::net::UnixStream, std::fs::File);
    impl std::io::Read for Both {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl std::io::Write for Both {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.1.flush()
        }
    }
    attach_and_read(&target, &mut Host::serial(Both(far, tty)));
}

#[test]
fn attach_over_kdnet() {
    let (target, mut host) = net_with(|_| {});
    attach_and_read(&target, &mut host);
    assert_eq!(host.seen[..3], [0, 2, 4], "ids count by two");
    assert!(host.net().pings >= 1);
}

#[test]
fn attach_over_kdnet_on_ipv6() {
    let Ok(socket) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("skipped: no IPv6 here");
        return;
    };
    let target = FakeTarget::start(quick(FakeTransport::kdnet(socket.local_addr().unwrap(), KEY))).unwrap();
    let mut kdnet = Kdnet::new(socket, [1, 2, 3, 4]);
    kdnet.connect();
    attach_and_read(&target, &mut Host::kdnet(kdnet));
}

#[test]
fn continued_on_its_own_int3_it_stops_again() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    host.go(0);
    assert_eq!(host.stop().pc, stop.pc);
    host.go(0x400);
    assert_eq!(host.stop().pc, stop.pc);
    host.leave(&stop);
    assert_eq!(host.try_stop(Duration::from_millis(200)), None);
    let stats = target.stats();
    assert_eq!((stats.rebreaks, stats.wrong_dr7, stats.halted), (2, 1, false));
    assert!(stats.frozen > Duration::ZERO);
}

#[test]
fn serial_ids_and_repetition() {
    let (_target, mut host) = tcp_with(|options| options.start = Start::BrokenIn);
    // The first packet of a stub carries SYNC, until it is acknowledged.
    let deadline = Instant::now() + PATIENCE;
    let Some(Packet::Data { kind: 7, id: 0x8080_0800, .. }) = host.packet(deadline) else { panic!("state change") };
    let Some(Packet::Data { kind: 7, id: 0x8080_0800, .. }) = host.packet(deadline) else { panic!("again") };
    host.control(4, 0x8080_0000);
    // A RESET takes both sides back, without SYNC.
    host.control(6, 0);
    let mut packets = std::iter::from_fn(|| host.packet(deadline));
    let reset = packets.find(|packet| matches!(packet, Packet::Control { .. })).unwrap();
    assert_eq!(reset, Packet::Control { kind: 6, id: 0 });
    let Some(Packet::Data { kind: 7, id: 0x8080_0000, .. }) = packets.next() else { panic!("state change") };
    host.control(4, 0x8080_0000);

    let mut version = vec![0; 56];
    version[..4].copy_from_slice(&0x3146u32.to_le_bytes());
    let mut broken = host.data_packet(2, 0x8080_0000, &version);
    let good = broken.clone();
    *broken.last_mut().unwrap() = 0xab;
    host.raw(&broken);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 5, id: 0 }));
    host.raw(&good);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 4, id: 0x8080_0000 }));
    let Some(Packet::Data { kind: 2, id: 0x8080_0001, .. }) = host.packet(deadline) else { panic!("reply") };
    host.control(4, 0x8080_0001);
    // The same packet once more is acknowledged, and not executed.
    host.raw(&good);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 4, id: 0x8080_0000 }));
    assert_eq!(host.packet(Instant::now() + Duration::from_millis(200)), None);
    // RESEND while idle brings the state change, as a new packet.
    host.control(5, 0);
    let Some(Packet::Data { kind: 7, id: 0x8080_0000, .. }) = host.packet(deadline) else { panic!("state change") };
}

#[test]
fn a_kdnet_target_that_was_debugged_before() {
    let (_target, mut host) = net_with(|options| {
        options.start = Start::BrokenIn;
        options.first_id = 0x926;
    });
    let deadline = Instant::now() + PATIENCE;
    let Some(Packet::Data { kind: 7, id: 0x926, .. }) = host.packet(deadline) else { panic!("state change") };
    host.control(6, 0x8000_0000);
    let answer = std::iter::from_fn(|| host.packet(deadline)).find(|packet| matches!(packet, Packet::Control { .. }));
    assert_eq!(answer, Some(Packet::Control { kind: 6, id: 0x926 }));
    let Some(Packet::Data { kind: 7, id: 0x926, .. }) = host.packet(deadline) else { panic!("state change") };
    host.control(4, 0x926);
    assert_eq!(host.request(0x3146, &[], &[]).status, 0);
    // A break-in while it is stopped brings the state change again, and fires once more after the continue.
    host.break_in();
    let stop = host.stop();
    host.leave(&stop);
    assert_eq!(host.stop().pc, stop.pc);
}

#[test]
fn a_new_request_during_a_lost_reply_is_an_acknowledgement() {
    let (_target, mut host) = net_with(|options| options.retransmit = Duration::from_secs(5));
    host.break_in();
    host.stop();
    let deadline = Instant::now() + PATIENCE;
    let mut version = vec![0; 56];
    version[..4].copy_from_slice(&0x3146u32.to_le_bytes());
    let first = host.data_packet(2, 0x8000_0000, &version);
    host.raw(&first);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 4, id: 0x8000_0000 }));
    let Some(Packet::Data { id: 2, .. }) = host.packet(deadline) else { panic!("reply") };
    // Not acknowledged; as in the capture the host goes on.
    let second = host.data_packet(2, 0x8000_0002, &version);
    host.raw(&second);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 5, id: 0 }));
    host.raw(&second);
    assert_eq!(host.packet(deadline), Some(Packet::Control { kind: 4, id: 0x8000_0002 }));
    let Some(Packet::Data { id: 4, .. }) = host.packet(deadline) else { panic!("next reply") };
}

#[test]
fn offers_tell_whether_a_host_is_connected() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    std::thread::sleep(Duration::from_millis(200));
    host.read(stop.pc, 1);
    let net = host.net();
    let port = net.socket.local_addr().unwrap().port().to_be_bytes();
    assert_eq!(net.offers[0].1[86..88], [0, 0]);
    let last = &net.offers[net.offers.len() - 1];
    assert_eq!(last.1[86..88], port);
    assert_eq!(last.1[10..34], net.offers[0].1[10..34]);
    assert!(last.0 > net.offers[0].0 && u64_at(&last.1, 2) > u64_at(&net.offers[0].1, 2));

    // An empty control datagram brings an offer to whoever sent it, and his answer takes the session.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut other = Kdnet::new(socket, [1, 2, 3, 4]);
    let poke = other.seal(true, 1, &[]);
    other.socket.send_to(&poke, target.address().unwrap()).unwrap();
    other.connect();
    let mut other = Host::kdnet(other);
    other.break_in();
    assert_eq!(other.stop().pc, stop.pc);
    assert_eq!(target.stats().connections, 2);
}

#[test]
fn a_replayed_datagram_is_not_looked_at() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    host.read(stop.pc, 1);
    let net = host.net();
    let refused = target.stats().datagrams_refused;
    let replay = net.seal(false, 1, b"b");
    net.socket.send_to(&replay, net.peer.unwrap()).unwrap();
    until("refused", || target.stats().datagrams_refused > refused);
    assert_eq!(host.try_stop(Duration::from_millis(100)), None);
}

#[test]
fn reboot_over_kdnet() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    host.stop();
    host.tell(0x313b, &[], &[]);
    let notice = host.stop();
    assert_eq!((notice.state, notice.base), (0x3031, u64::MAX));
    let before = host.net().offers.last().unwrap().1.clone();
    host.go(0x400);
    let mut fresh = None;
    let deadline = Instant::now() + PATIENCE;
    while fresh.is_none() && Instant::now() < deadline {
        host.packet(Instant::now() + Duration::from_millis(20));
        fresh = host.net().offers.iter().find(|(_, body)| body[10..34] != before[10..34]).cloned();
    }
    let (sequence, offer) = fresh.expect("an offer of the new boot");
    assert!(sequence <= 9 && offer[86..88] == [0, 0]);
    host.transmit = 0x8000_0000;
    host.expected = None;
    host.seen.clear();
    host.net().connect();
    let stop = host.stop();
    assert_eq!(host.seen[0], 0);
    assert_eq!((stop.state, stop.path.as_str()), (0x3031, "\\SystemRoot\\system32\\ntoskrnl.exe"));
    assert_eq!(stop.base, twin().facts().kernel_base);
    assert_eq!(host.prints, ["KDTARGET: Refreshing KD connection\n"]);
    host.go(0x400);
    until("running", || !target.stats().halted);
    assert_eq!(target.stats().reboots, 1);
}

#[test]
fn reboot_over_serial_begins_with_sync() {
    let (target, mut host) = tcp_with(|options| {
        options.firmware_noise = b"Booting 0i00b from disk\r\n".to_vec();
    });
    host.break_in();
    let stop = host.stop();
    host.leave(&stop);
    target.reset();
    host.seen.clear();
    let stop = host.stop();
    assert_eq!((stop.state, host.seen[0]), (0x3031, 0x8080_0800));
    assert_eq!(host.read(stop.base, 2).data, b"MZ");
}

#[test]
fn breakpoints_are_cc_bytes_in_a_table_of_32() {
    let (target, mut host) = tcp_with(|_| {});
    host.break_in();
    let stop = host.stop();
    let site = twin().facts().kernel_base + 0x1000;
    let original = host.read(site, 1).data[0];
    let set = host.request(0x3134, &[(16, site)], &[]);
    assert_eq!((set.status, u32_at(&set.header, 24)), (0, 1));
    assert_eq!(host.read(site, 1).data, [0xcc]);
    assert_eq!(host.request(0x3134, &[(16, site)], &[]).status, 0xc000_0001, "twice");
    assert_eq!(target.stats().breakpoints, [site]);
    for slot in 1..32 {
        assert_eq!(host.request(0x3134, &[(16, site + slot * 0x20)], &[]).status, 0);
    }
    assert_eq!(host.request(0x3134, &[(16, site + 0x800)], &[]).status, 0xc000_0001, "full");
    assert_eq!(host.request(0x3135, &[(16, 1)], &[]).status, 0);
    assert_eq!(host.request(0x3135, &[(16, 1)], &[]).status, 0xc000_0001, "empty");
    assert_eq!(host.read(site, 1).data, [original]);
    // A stop takes out what lies within 16 bytes of its program counter.
    host.leave(&stop);
    target.stop_at(0x8000_0003, site + 0x18);
    assert_eq!(host.stop().stream.len(), 16);
    assert_eq!(target.stats().breakpoints.len(), 30);
    assert_ne!(host.read(site + 0x20, 1).data, [0xcc]);
}

#[test]
fn registers() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    // Windows 7 has no Ex calls; nothing is set that was not read.
    assert_eq!(host.request(0x315f, &[(16, 0x4d0 << 32)], &[]).status, 0xc000_0001);
    assert_eq!(host.request(0x3133, &[], &[0; 0x4d0]).status, 0xc000_0001);
    let context = host.request(0x3132, &[], &[]).data;
    assert_eq!(u64_at(&context, 0xf8), stop.pc);
    let efer = host.request(0x3152, &[(16, 0xc000_0080)], &[]);
    assert_eq!((efer.status, u32_at(&efer.header, 20)), (0, 0xd01));
    assert_eq!(host.request(0x3152, &[(16, 0x1234)], &[]).status, 0xc000_000e);
    // One step over the int3's successor.
    host.set_pc(stop.pc + 1);
    host.tell(0x313c, &[(16, 0x1_0001_0002), (24, 0x400), (32, 1)], &[]);
    let step = host.stop();
    assert_eq!(step.code, 0x8000_0004);
    assert_ne!(step.pc, stop.pc + 1);
    assert_eq!(target.stats().stops, 2);
}

#[test]
fn another_processor() {
    let (target, mut host) = tcp_with(|_| {});
    host.break_in();
    let stop = host.stop();
    let facts = twin().facts();
    assert!(facts.processors > 1);
    // Its registers can be had without a switch.
    let first = host.request(0x3137, &[(16, 0), (24, 8)], &[]).data;
    assert_eq!(first, facts.kpcr.to_le_bytes());
    let second = host.request(0x3137, &[(6, 1), (16, 0), (24, 8)], &[]).data;
    assert_ne!(first, second);
    assert_eq!(host.request(0x3132, &[(6, u64::from(facts.processors))], &[]).status, 0xc000_0001);
    host.tell(0x3150, &[(6, 1)], &[]);
    let other = host.stop();
    assert_eq!((other.processor, other.code), (1, 0x8000_0007));
    // A step of it gives the stop back to the first.
    host.tell(0x313c, &[(16, 0x1_0001_0002), (24, 0x400), (32, 1)], &[]);
    let back = host.stop();
    assert_eq!((back.processor, back.code, back.pc), (0, 0x8000_0003, stop.pc));
    host.leave(&stop);
    until("running", || !target.stats().halted);
}

#[test]
fn memory_requests() {
    let (_target, mut host) = tcp_with(|_| {});
    host.break_in();
    host.stop();
    let twin = twin();
    let facts = twin.facts().clone();
    let stack = facts.stack & !0xfff;
    let fill = host.request(0x315b, &[(16, stack), (24, 10), (28, 1), (30, 3)], b"abc");
    assert_eq!((fill.status, u32_at(&fill.header, 24)), (0, 10));
    assert_eq!(host.read(stack, 10).data, b"abcabcabca");
    let write = host.request(0x3131, &[(16, stack + 2), (24, 2)], b"XY");
    assert_eq!((write.status, u32_at(&write.header, 28)), (0, 2));
    let search = host.request(0x3156, &[(16, stack), (24, 0x1000), (32, 3)], b"XYb");
    assert_eq!((search.status, u64_at(&search.header, 16)), (0, stack + 2));
    let search = host.request(0x3156, &[(16, stack), (24, 0x100), (32, 3)], b"XYZ");
    assert_eq!(search.status, 0x8000_001a);
    let query = host.request(0x315c, &[(16, facts.kernel_base)], &[]);
    assert_eq!((query.status, u32_at(&query.header, 32), u32_at(&query.header, 36)), (0, 2, 7));
    let physical = host.request(0x313d, &[(16, facts.cr3), (24, 8)], &[]);
    assert_eq!((physical.status, physical.data.len()), (0, 8));
    // Nobody knows this one: the kernel prints before it refuses.
    assert_eq!(host.request(0x31ff, &[], &[]).status, 0xc000_0001);
    assert_eq!(host.prints, ["KD: Received Unrecognized API 0x31ff\n"]);
}

#[test]
fn what_a_running_target_says_and_asks() {
    let (target, mut host) = net_with(|options| options.print_on_continue = Some("off we go\n".to_owned()));
    host.break_in();
    let stop = host.stop();
    host.leave(&stop);
    target.print("hello\n");
    host.listen(Duration::from_millis(200));
    assert_eq!(host.prints, ["off we go\n", "hello\n"]);

    target.load_module(ModuleLoad {
        path: "\\??\\C:\\x.sys".into(),
        base: 0xffff_f880_0001_0000,
        size: 1,
        unload: false,
    });
    let module = host.stop();
    assert_eq!((module.state, module.base, module.path.as_str()), (0x3031, 0xffff_f880_0001_0000, "\\??\\C:\\x.sys"));
    assert!(target.stats().halted);
    host.go(0x400);

    target.open_file("\\SystemRoot\\drivers\\x.sys");
    let (kind, request) = host.message(PATIENCE).unwrap();
    assert_eq!((kind, u32_at(&request, 0)), (11, 0x3430));
    let mut answer = request[..64].to_vec();
    answer[4..8].copy_from_slice(&0xc000_000fu32.to_le_bytes());
    host.send(11, &answer);
    until("file answered", || target.stats().file_statuses == [0xc000_000f]);

    target.prompt("Break or run (br)? ");
    let (kind, request) = host.message(PATIENCE).unwrap();
    assert_eq!((kind, u32_at(&request, 0)), (3, 0x3231));
    let mut answer = request[..16].to_vec();
    answer.push(b'r');
    host.send(3, &answer);
    until("prompt answered", || target.stats().prompt_answers == ["r"]);
}

#[test]
fn a_print_that_nobody_takes_is_given_up() {
    let (target, mut host) = tcp_with(|options| options.retransmit = Duration::from_millis(5));
    host.break_in();
    let stop = host.stop();
    host.leave(&stop);
    until("running", || !target.stats().halted);
    target.print("is anybody there?\n");
    until("given up", || target.stats().given_up == 1);
    let stats = target.stats();
    assert!(stats.debugger_not_present && stats.blocked >= Duration::from_millis(95));
    // The next debugger meets fresh ids.
    host.seen.clear();
    host.break_in();
    host.stop();
    assert_eq!(host.seen.last(), Some(&0x8080_0800));
    assert!(!target.stats().debugger_not_present);
}

#[test]
fn bugcheck_restarts() {
    let (target, mut host) = net_with(|_| {});
    target.bugcheck(0xc4);
    assert_eq!(host.stop().code, 0x8000_0003);
    assert!(host.prints.concat().contains("*** Fatal System Error: 0x000000c4"));
    host.go(0x400);
    // It stands on the breakpoint still.
    let stop = host.stop();
    host.leave(&stop);
    until("restarted", || target.stats().reboots == 1);
}

#[test]
fn prints_come_between_request_and_reply() {
    let (_target, mut host) = net_with(|options| options.print_before_reply = Some("busy\n".to_owned()));
    host.break_in();
    let stop = host.stop();
    assert_eq!(host.read(stop.pc, 1).data, [0xcc]);
    assert_eq!(host.prints, ["busy\n"]);
}

#[test]
fn a_bad_line_is_survived() {
    for seed in 0..2 {
        let (target, mut host) = net_with(|options| options.retransmit = Duration::from_millis(40));
        host.retry = Duration::from_millis(60);
        host.break_in();
        host.stop();
        target.set_faults(Faults {
            seed,
            drop: 0.08,
            duplicate: 0.08,
            reorder: 0.08,
            corrupt: 0.08,
            delay: Duration::from_millis(1),
            old_sequence: 0.1,
            foreign_offer: 0.5,
            ..Faults::default()
        });
        let twin = twin();
        let base = twin.facts().kernel_base;
        for page in 0..20 {
            let mut expected = [0; 64];
            twin.read_virtual(base + page * 8, &mut expected);
            assert_eq!(host.read(base + page * 8, 64).data, expected, "seed {seed}");
        }
        assert!(target.stats().retransmissions > 0);
    }
}

#[test]
fn a_bad_serial_line_is_survived() {
    for seed in 0..2 {
        let (target, mut host) = tcp_with(|options| options.retransmit = Duration::from_millis(40));
        host.retry = Duration::from_millis(60);
        host.break_in();
        host.stop();
        target.set_faults(Faults {
            seed,
            drop: 0.08,
            corrupt: 0.05,
            delay: Duration::from_millis(1),
            ..Faults::default()
        });
        let base = twin().facts().kernel_base;
        for page in 0..20 {
            let mut expected = [0; 64];
            twin().read_virtual(base + page * 8, &mut expected);
            assert_eq!(host.read(base + page * 8, 64).data, expected, "seed {seed}");
        }
        assert!(target.stats().retransmissions > 0);
    }
}

#[test]
fn a_stale_reply_goes_ahead_of_a_reply() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    assert_eq!(host.read(stop.pc, 1).data, [0xcc]);
    target.set_faults(Faults { stale_reply: 1.0, ..Faults::default() });
    host.tell(0x3146, &[], &[]);
    let first = host.message(PATIENCE).unwrap();
    assert_eq!((first.0, u32_at(&first.1, 0)), (2, 0x3130), "the reply to the read, again");
    let second = host.message(PATIENCE).unwrap();
    assert_eq!(u32_at(&second.1, 0), 0x3146);
}

#[test]
fn a_moved_target_is_followed_by_its_data() {
    let (target, mut host) = net_with(|_| {});
    host.break_in();
    let stop = host.stop();
    let before = host.net().peer;
    target.change_port();
    until("an offer from the new port", || {
        host.packet(Instant::now() + Duration::from_millis(20));
        host.net().peer != before
    });
    assert_eq!(host.read(stop.pc, 1).data, [0xcc]);
}

#[test]
fn a_hung_target_says_nothing() {
    let (target, mut host) = net_with(|_| {});
    target.hang(true);
    host.break_in();
    assert_eq!(host.try_stop(Duration::from_millis(200)), None);
    target.hang(false);
    host.break_in();
    host.stop();
}

#[test]
fn a_bad_key_is_refused() {
    let transport = FakeTransport::kdnet(SocketAddr::from(([127, 0, 0, 1], 50000)), "1.2.3");
    let error = FakeTarget::start(quick(transport)).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

fn interrupt_time(host: &mut Host) -> u64 {
    u64_at(&host.read(0xffff_f780_0000_0008, 8).data, 0)
}

#[test]
fn the_machine_leaks_while_it_runs_and_only_then() {
    let (target, mut host) = tcp_with(|options| {
        options.evolve = Some(Box::new(kernel::article_activity(Some(Duration::from_millis(2)), true)));
    });
    let leaked = || target.with_kernel(|kernel| kernel.large().filter(|life| life.tag == LEAK_TAG).count());

    host.break_in();
    let stop = host.stop();
    let (time, count) = (interrupt_time(&mut host), leaked());
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((interrupt_time(&mut host), leaked()), (time, count), "stopped is stopped");
    // A test may do more to a stopped machine than its debugger.
    let address = target
        .with_kernel(|kernel| kernel.allocate_large(LEAK_TAG, 0x2000, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD))
        .unwrap();
    assert_eq!(host.read(address, 8).data.len(), 8);

    host.leave(&stop);
    until("ten more", || leaked() >= count + 10);
    host.break_in();
    host.stop();
    assert!(interrupt_time(&mut host) >= time + 9 * 2 * 10_000);
}

#[test]
fn a_system_call_is_executed_step_by_step() {
    let (target, mut host) = net_with(|options| {
        options.call = Some((kernel::ARTICLE_CALL, Duration::from_millis(20)));
    });
    host.break_in();
    host.stop();
    let site = LEAK_STACK[0];
    assert_eq!(host.request(0x3134, &[(16, site)], &[]).status, 0);
    let break_pc = twin().facts().break_pc;
    host.set_pc(break_pc + 1);
    host.tell(0x313c, &[(16, 0x0001_0002), (24, 0x400), (32, 1)], &[]);
    let hit = host.stop();
    assert_eq!((hit.code, hit.pc), (0x8000_0003, site));
    // add rsp,48h, and the stub has taken its break instruction out.
    assert_eq!(hit.stream[..4], [0x48, 0x83, 0xc4, 0x48]);
    assert_eq!(host.request(0x3137, &[(16, 3), (24, 8)], &[]).data, LEAK_THREAD.to_le_bytes());
    let rsp = |host: &mut Host| u64_at(&host.request(0x3132, &[], &[]).data, 0x98);
    let before = rsp(&mut host);
    host.tell(0x313c, &[(16, 0x1_0001_0002), (24, 0x400), (32, 1)], &[]);
    let step = host.stop();
    assert_eq!((step.code, step.pc), (0x8000_0004, site + 4));
    assert_eq!(rsp(&mut host), before + 0x48);
    host.tell(0x313c, &[(16, 0x1_0001_0002), (24, 0x400), (32, 1)], &[]);
    assert_eq!(host.stop().pc, LEAK_STACK[1]);
    host.tell(0x313c, &[(16, 0x0001_0002), (24, 0x400), (32, 1)], &[]);
    until("running", || !target.stats().halted);
}
