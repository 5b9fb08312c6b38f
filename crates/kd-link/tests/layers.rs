//! The layers around a link that is played by the test.

#![allow(clippy::unwrap_used)] // helpers of tests are not tests to clippy

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kd_link::{
    BoxFuture, Capture, CaptureError, CaptureReader, Captured, CapturedData, Direction, FaultRates, Faults, Frame,
    Link, RateLimit, Skipped, Trace,
};
use proptest::prelude::*;
use tokio::time::Instant;

/// Gives its frames one after the other, then ends; keeps what is sent and when.
#[derive(Clone, Default)]
struct Script {
    frames: Arc<Mutex<VecDeque<Frame>>>,
    sent: Arc<Mutex<Vec<(Instant, Frame)>>>,
    /// Stays silent instead of ending.
    stays: bool,
}

impl Script {
    fn new(frames: impl IntoIterator<Item = Frame>) -> Self {
        Self { frames: Arc::new(Mutex::new(frames.into_iter().collect())), ..Self::default() }
    }

    fn sent(&self) -> Vec<Frame> {
        self.sent.lock().unwrap().iter().map(|(_, frame)| frame.clone()).collect()
    }

    fn boxed(&self) -> Box<dyn Link> {
        Box::new(self.clone())
    }
}

impl Link for Script {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async {
            let next = self.frames.lock().unwrap().pop_front();
            if next.is_none() && self.stays {
                std::future::pending::<()>().await;
            }
            Ok(next)
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        self.sent.lock().unwrap().push((Instant::now(), frame));
        Box::pin(async { Ok(()) })
    }

    fn describe(&self) -> String {
        "script".into()
    }
}

fn peer() -> SocketAddr {
    "127.0.0.1:50001".parse().unwrap()
}

fn datagrams(count: u16) -> Vec<Frame> {
    (0..count).map(|n| Frame::Datagram { peer: peer(), data: Bytes::copy_from_slice(&n.to_be_bytes()) }).collect()
}

fn number(frame: &Frame) -> u16 {
    match frame {
        Frame::Datagram { data, .. } => u16::from_be_bytes([data[0], data[1]]),
        other => panic!("{other:?}"),
    }
}

async fn drain(link: &mut dyn Link) -> Vec<Frame> {
    let mut all = Vec::new();
    while let Some(frame) = link.recv().await.unwrap() {
        all.push(frame);
    }
    all
}

/// What comes out of `Faults` with these rates from the target.
async fn faulty(seed: u64, rates: FaultRates, frames: Vec<Frame>) -> Vec<Frame> {
    drain(&mut Faults::new(Script::new(frames).boxed(), seed, rates, FaultRates::default())).await
}

#[tokio::test(start_paused = true)]
async fn no_rates_no_faults() {
    let frames = datagrams(300);
    assert_eq!(faulty(1, FaultRates::default(), frames.clone()).await, frames);
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_the_faults() {
    let rates = FaultRates {
        drop: 0.2,
        duplicate: 0.1,
        reorder: 0.1,
        corrupt: 0.1,
        delay: 0.1,
        longest_delay: Duration::from_millis(5),
    };
    let once = faulty(7, rates, datagrams(200)).await;
    assert_eq!(faulty(7, rates, datagrams(200)).await, once);
    assert_ne!(faulty(8, rates, datagrams(200)).await, once);
}

#[tokio::test(start_paused = true)]
async fn dropped_datagrams_are_about_as_many_as_asked_for() {
    let left = faulty(3, FaultRates { drop: 0.25, ..Default::default() }, datagrams(1000)).await;
    assert!((700..800).contains(&left.len()), "{}", left.len());
    assert!(left.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])), "the rest keeps its order");
}

#[tokio::test(start_paused = true)]
async fn duplicates_reordering_and_corruption() {
    let always = 1.0;
    let doubled = faulty(1, FaultRates { duplicate: always, ..Default::default() }, datagrams(10)).await;
    assert_eq!(doubled.len(), 20);

    let mixed = faulty(5, FaultRates { reorder: 0.2, ..Default::default() }, datagrams(100)).await;
    let mut numbers: Vec<u16> = mixed.iter().map(number).collect();
    assert!(numbers.windows(2).any(|pair| pair[0] > pair[1]), "something is overtaken");
    numbers.sort();
    assert_eq!(numbers, (0..100).collect::<Vec<u16>>(), "nothing is lost by it");

    let flipped = faulty(1, FaultRates { corrupt: always, ..Default::default() }, datagrams(50)).await;
    for (n, frame) in flipped.iter().enumerate() {
        assert_eq!((number(frame) ^ n as u16).count_ones(), 1, "one bit of datagram {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_loses_bytes_but_keeps_its_order() {
    let pieces: Vec<Frame> = (0..200u8).map(|n| Frame::Bytes(Bytes::from(vec![n; 10]))).collect();
    let rates = FaultRates {
        drop: 0.3,
        duplicate: 1.0,
        reorder: 1.0,
        delay: 0.5,
        longest_delay: Duration::from_millis(9),
        ..Default::default()
    };
    let bytes: Vec<u8> = faulty(2, rates, pieces)
        .await
        .into_iter()
        .flat_map(|frame| match frame {
            Frame::Bytes(data) => data,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(bytes.len() < 2000 && bytes.len() > 1400, "{}", bytes.len());
    assert!(bytes.is_sorted(), "a stream cannot reorder or double");
}

#[tokio::test(start_paused = true)]
async fn delayed_frames_to_the_target_leave_while_the_link_is_polled() {
    let script = Script { stays: true, ..Script::default() };
    let rates = FaultRates { delay: 1.0, longest_delay: Duration::from_millis(50), ..Default::default() };
    let mut link = Faults::new(script.boxed(), 1, FaultRates::default(), rates);
    for frame in datagrams(20) {
        link.send(frame).await.unwrap();
    }
    assert!(script.sent().len() < 20);
    assert!(tokio::time::timeout(Duration::from_millis(60), link.recv()).await.is_err());
    let mut numbers: Vec<u16> = script.sent().iter().map(number).collect();
    numbers.sort();
    assert_eq!(numbers, (0..20).collect::<Vec<u16>>());
}

#[tokio::test(start_paused = true)]
async fn a_reopened_stream_forgets_what_was_under_way() {
    let slow = FaultRates { delay: 1.0, longest_delay: Duration::from_secs(1), ..Default::default() };
    let frames =
        vec![Frame::Bytes(Bytes::from_static(b"old")), Frame::Reopened, Frame::Bytes(Bytes::from_static(b"n"))];
    assert_eq!(faulty(1, slow, frames).await, [Frame::Reopened, Frame::Bytes(Bytes::from_static(b"n"))]);
}

#[tokio::test(start_paused = true)]
async fn a_serial_line_takes_the_time_of_its_bits() {
    // 4017 bytes, a full packet, at 115200 baud: 348.7 ms.
    let script = Script::new([Frame::Bytes(Bytes::from(vec![0; 4017]))]);
    let mut line = RateLimit::serial_line(script.boxed(), 115_200);
    let start = Instant::now();
    drain(&mut line).await;
    let took = start.elapsed();
    assert!((348..351).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn rate_and_latency_hold_in_both_directions() {
    let script = Script { stays: true, ..Script::new([Frame::Bytes(Bytes::from(vec![1; 100]))]) };
    let rate = NonZeroU32::new(1000).unwrap();
    let mut line = RateLimit::new(script.boxed(), rate, Duration::from_millis(30));
    let start = Instant::now();
    for _ in 0..3 {
        line.send(Frame::Bytes(Bytes::from(vec![2; 100]))).await.unwrap();
    }
    assert!(line.recv().await.unwrap().is_some());
    assert_eq!(start.elapsed().as_millis() / 2, 130 / 2);
    assert!(tokio::time::timeout(Duration::from_secs(1), line.recv()).await.is_err());
    let sent: Vec<u128> = script.sent.lock().unwrap().iter().map(|(at, _)| (*at - start).as_millis()).collect();
    assert_eq!(sent.iter().map(|ms| (ms + 5) / 10).collect::<Vec<_>>(), [13, 23, 33], "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fast_sender_waits_for_the_slow_line() {
    let script = Script::default();
    let mut line = RateLimit::new(script.boxed(), NonZeroU32::new(1000).unwrap(), Duration::ZERO);
    let start = Instant::now();
    for _ in 0..1000 {
        line.send(Frame::Bytes(Bytes::from_static(&[0; 10]))).await.unwrap();
    }
    // 10,000 bytes at 1000 bytes/s, less the 256 pieces that may wait.
    assert!(start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
}

/// A file that the test can look into.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_back(file: &[u8]) -> (Vec<Captured>, Skipped) {
    let mut reader = CaptureReader::new(file).unwrap();
    let all = reader.by_ref().map(Result::unwrap).collect();
    (all, reader.skipped())
}

#[tokio::test]
async fn a_capture_reads_back_as_what_passed() {
    let host: SocketAddr = "127.0.0.1:50000".parse().unwrap();
    let v6: SocketAddr = "[::1]:50001".parse().unwrap();
    let has_v6 = kd_link::local_address_toward(v6.ip()).is_ok();
    let odd = Bytes::from_static(b"odd");
    let script = Script::new([
        Frame::Datagram { peer: peer(), data: odd.clone() },
        Frame::Datagram { peer: v6, data: Bytes::new() },
        Frame::Bytes(Bytes::from_static(b"0000")),
        Frame::Reopened,
    ]);
    let file = Memory::default();
    let mut link = Capture::new(Box::new(Trace::new(script.boxed())), Box::new(file.clone()), 50000).unwrap();
    drain(&mut link).await;
    link.send(Frame::Datagram { peer: peer(), data: odd.clone() }).await.unwrap();
    link.send(Frame::Bytes(Bytes::from_static(b"b"))).await.unwrap();
    assert_eq!(script.sent().len(), 2);

    let (all, skipped) = read_back(&file.0.lock().unwrap());
    assert_eq!(skipped, Skipped::default());
    let datagram = |src, dst, payload: &Bytes| CapturedData::Datagram { src, dst, payload: payload.clone() };
    let v6_host = SocketAddr::new(if has_v6 { v6.ip() } else { "::".parse().unwrap() }, 50000);
    let expected = [
        (Direction::Inbound, datagram(peer(), host, &odd)),
        (Direction::Inbound, datagram(v6, v6_host, &Bytes::new())),
        (Direction::Inbound, CapturedData::Bytes(Bytes::from_static(b"0000"))),
        (Direction::Outbound, datagram(host, peer(), &odd)),
        (Direction::Outbound, CapturedData::Bytes(Bytes::from_static(b"b"))),
    ];
    let got: Vec<_> = all.iter().map(|c| (c.direction.unwrap(), c.data.clone())).collect();
    assert_eq!(got, expected);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(all.iter().all(|c| now - c.time < Duration::from_secs(60)));
}

/// A classic pcap file with one packet.
fn classic(link_type: u32, packet: &[u8], original: u32) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, link_type, 1000, 500_000, packet.len() as u32, original] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(packet);
    file
}

#[test]
fn every_link_type_gives_the_same_datagram() {
    let mut ip = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 16).udp(5, 6).write(&mut ip, b"MDBG").unwrap();
    let with = |header: &[u8]| [header, &ip].concat();
    let ethernet = with(&[[0; 12].as_slice(), &[8, 0]].concat());
    let vlan = with(&[[0; 12].as_slice(), &[0x81, 0, 0, 7, 8, 0]].concat());
    let cooked = with(&[[0, 0, 0, 1, 0, 6].as_slice(), &[0; 8], &[8, 0]].concat());
    let cooked2 = with(&[[8, 0].as_slice(), &[0; 18]].concat());
    for (link_type, packet) in [
        (1, ethernet),
        (1, vlan),
        (101, ip.clone()),
        (228, ip.clone()),
        (113, cooked),
        (276, cooked2),
        (0, with(&[2, 0, 0, 0])),
    ] {
        let (all, skipped) = read_back(&classic(link_type, &packet, packet.len() as u32));
        assert_eq!(skipped, Skipped::default(), "link type {link_type}");
        let data = CapturedData::Datagram {
            src: "10.0.0.1:5".parse().unwrap(),
            dst: "10.0.0.2:6".parse().unwrap(),
            payload: Bytes::from_static(b"MDBG"),
        };
        assert_eq!(all, [Captured { time: Duration::from_millis(1_000_500), direction: None, data }]);
    }
}

#[test]
fn what_cannot_be_used_is_counted_not_hidden() {
    let mut tcp = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 16).tcp(5, 6, 1, 1).write(&mut tcp, b"").unwrap();
    let skipped = |link_type, packet: &[u8], original| read_back(&classic(link_type, packet, original)).1;
    assert_eq!(skipped(101, &tcp, tcp.len() as u32), Skipped { not_udp: 1, ..Default::default() });
    assert_eq!(skipped(101, &tcp, 2000), Skipped { incomplete: 1, ..Default::default() });
    assert_eq!(skipped(101, &[0x45, 0], 2), Skipped { damaged: 1, ..Default::default() });
    assert_eq!(skipped(276, &[8], 1), Skipped { damaged: 1, ..Default::default() });
    assert_eq!(skipped(9, &tcp, tcp.len() as u32), Skipped { link_types: 1, ..Default::default() });
}

#[tokio::test]
async fn a_file_cut_short_is_said() {
    let file = Memory::default();
    let mut link = Capture::new(Script::new(datagrams(2)).boxed(), Box::new(file.clone()), 50000).unwrap();
    drain(&mut link).await;
    let bytes = file.0.lock().unwrap().clone();
    let results: Vec<_> = CaptureReader::new(&bytes[..bytes.len() - 3]).unwrap().collect();
    assert_eq!(results.len(), 2);
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(CaptureError::Truncated(_))), "{:?}", results[1]);
    assert!(matches!(
        CaptureReader::new(&b"hello, world: this is no capture file"[..]),
        Err(CaptureError::NotACapture)
    ));
    assert!(matches!(CaptureReader::new(&b""[..]), Err(CaptureError::NotACapture)));
    // Found by fuzzing: a block that says it is shorter than its own header, in either order of bytes.
    let good = bytes.len();
    for length in [[11, 0, 0, 0], [0, 0, 0, 8], [0; 4]] {
        let bytes = [&bytes[..], &[6, 0, 0, 0], &length, &[0; 32]].concat();
        let last = CaptureReader::new(&bytes[..]).unwrap().last();
        assert!(matches!(last, Some(Err(CaptureError::Damaged(at))) if at == good), "{last:?}");
        let first = [&bytes[..4], &length, &bytes[8..]].concat();
        assert!(matches!(CaptureReader::new(&first[..]), Err(CaptureError::Damaged(0))));
    }
}

proptest! {
    /// Damage anywhere gives packets, counts or an error; never a panic or an endless loop.
    #[test]
    fn damaged_files_are_survived(at in 0usize..300, value: u8, cut in 0usize..400) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let file = Memory::default();
        let mut link = Capture::new(Script::new(datagrams(3)).boxed(), Box::new(file.clone()), 50000).unwrap();
        runtime.block_on(drain(&mut link));
        let mut bytes = file.0.lock().unwrap().clone();
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(length - cut.min(length));
        if let Ok(reader) = CaptureReader::new(&bytes[..]) {
            prop_assert!(reader.count() <= 4);
        }
    }
}

#[test]
fn a_real_capture_is_read_whole() {
    let shared = std::env::var_os("KDPOOL_SHARED").map(std::path::PathBuf::from);
    let shared = shared.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into());
    let Ok(file) = std::fs::read(shared.join("capture/windbg-uncut.pcapng")) else {
        return println!("skipped: no shared captures");
    };
    let (all, skipped) = read_back(&file);
    assert_eq!(all.len(), 955);
    assert_eq!(skipped.damaged + skipped.incomplete + skipped.link_types + skipped.not_udp, 0, "{skipped:?}");
    let took = all[954].time - all[0].time;
    assert_eq!(took.as_secs(), 1289);
}
