//! Reads capture files: pcapng and classic pcap, from this crate's [`Capture`](crate::Capture) or from any other
//! program.
//!
//! | link type | number |
//! |---|---|
//! | BSD loopback (NULL, LOOP) | 0, 108 |
//! | Ethernet, with VLAN tags | 1 |
//! | RAW IP | 12, 14, 101, 228 (IPv4), 229 (IPv6) |
//! | Linux cooked, versions 1 and 2 | 113, 276 |
//! | USER0: a piece of a byte stream | 147 |

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use etherparse::{EtherType, NetSlice, SlicedPacket, TransportSlice};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, InterfaceDescriptionBlock, OptionCode, PcapBlockOwned, PcapError, create_reader};

pub(crate) const LINKTYPE_RAW: i32 = 101;
pub(crate) const LINKTYPE_USER0: i32 = 147;

/// The option of an enhanced packet block that holds its direction, in the low two bits.
const EPB_FLAGS: OptionCode = OptionCode(2);

/// The type of the block that begins a pcapng file.
const SECTION_HEADER: &[u8] = &[0x0a, 0x0d, 0x0d, 0x0a];

const FIRST_BUFFER: usize = 1 << 16;
/// No block of a sane file is longer.
const LARGEST_BUFFER: usize = 1 << 24;
/// Interfaces remembered per section; more are refused.
const INTERFACE_LIMIT: usize = 4096;

/// Which way a frame went, as seen by the machine that captured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the target.
    Inbound,
    /// To the target.
    Outbound,
}

/// One UDP datagram or one piece of a byte stream of a capture file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Since 1970-01-01 UTC, as the file says.
    pub time: Duration,
    /// `None` when the file does not say.
    pub direction: Option<Direction>,
    /// What was recorded.
    pub data: CapturedData,
}

/// What was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CapturedData {
    /// A UDP datagram.
    Datagram {
        /// Sender.
        src: SocketAddr,
        /// Receiver.
        dst: SocketAddr,
        /// What UDP carried.
        payload: Bytes,
    },
    /// A piece of a serial stream, as kdpool's own captures hold it.
    Bytes(Bytes),
}

/// Why a capture file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Its first bytes are those of neither format.
    #[error("not a pcapng or pcap file")]
    NotACapture,
    /// What was read before is good; the rest was never written.
    #[error("the file ends in the middle of a block, {0} bytes from its start")]
    Truncated(usize),
    /// So long a block is damage, not traffic.
    #[error("a block {0} bytes from the start of the file is longer than 16 MiB")]
    TooLong(usize),
    /// So many interfaces are damage, not a machine.
    #[error("more than 4096 interfaces in one section")]
    Interfaces,
    /// A block contradicts itself.
    #[error("damaged block {0} bytes from the start of the file")]
    Damaged(usize),
    /// The system cannot read the file.
    #[error("the file cannot be read")]
    Read,
}

/// What the reader passed over, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Blocks that hold no packet: statistics, names, and kinds not known.
    pub blocks: u64,
    /// Packets of link types not in the module's table.
    pub link_types: u64,
    /// Packets that are not UDP.
    pub not_udp: u64,
    /// Packets cut by the capture's snap length, and IP fragments.
    pub incomplete: u64,
    /// Packets whose headers do not parse.
    pub damaged: u64,
}

/// The datagrams and stream pieces of a capture file, in the file's order.
pub struct CaptureReader<'a> {
    reader: Box<dyn PcapReaderIterator + Send + 'a>,
    /// A pcapng file.
    in_blocks: bool,
    capacity: usize,
    interfaces: Vec<Interface>,
    /// Simple packets carry no time; they get that of the packet before.
    last_time: Duration,
    skipped: Skipped,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Interface {
    link_type: i32,
    /// Units per second, and seconds to add.
    resolution: u64,
    offset: i64,
}

impl<'a> CaptureReader<'a> {
    /// Reads the file's beginning, which says which format it is.
    pub fn new(mut file: impl Read + Send + 'a) -> Result<Self, CaptureError> {
        // The reader judges by what its first read gives: a pipe may give a few bytes.
        let mut start = Vec::new();
        file.by_ref().take(FIRST_BUFFER as u64).read_to_end(&mut start).map_err(|_| CaptureError::Read)?;
        let in_blocks = start.starts_with(SECTION_HEADER);
        if in_blocks && is_shorter_than_a_block(&start) {
            return Err(CaptureError::Damaged(0));
        }
        let file = std::io::Cursor::new(start).chain(file);
        let reader = create_reader(FIRST_BUFFER, file).map_err(|error| match error {
            PcapError::ReadError => CaptureError::Read,
            _ => CaptureError::NotACapture,
        })?;
        Ok(Self {
            reader,
            in_blocks,
            capacity: FIRST_BUFFER,
            interfaces: Vec::new(),
            last_time: Duration::ZERO,
            skipped: Skipped::default(),
            ended: false,
        })
    }

    /// What was passed over so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn read(&mut self) -> Result<Option<Captured>, CaptureError> {
        loop {
            let at = self.reader.consumed();
            if self.in_blocks && is_shorter_than_a_block(self.reader.data()) {
                return Err(CaptureError::Damaged(at));
            }
            let failure = match self.reader.next() {
                Ok((length, block)) => {
                    let captured = read_block(block, &mut self.interfaces, &mut self.last_time, &mut self.skipped);
                    self.reader.consume(length);
                    match captured? {
                        Some(captured) => return Ok(Some(captured)),
                        None => continue,
                    }
                }
                Err(error) => Failure::from(&error),
            };
            match failure {
                Failure::End => return Ok(None),
                Failure::NeedsData if self.reader.reader_exhausted() => return Err(CaptureError::Truncated(at)),
                Failure::NeedsData => self.reader.refill().map_err(|_| CaptureError::Read)?,
                Failure::NeedsSpace if self.capacity >= LARGEST_BUFFER => return Err(CaptureError::TooLong(at)),
                Failure::NeedsSpace => {
                    self.capacity *= 2;
                    self.reader.grow(self.capacity);
                    self.reader.refill().map_err(|_| CaptureError::Read)?;
                }
                Failure::Truncated => return Err(CaptureError::Truncated(at)),
                Failure::Read => return Err(CaptureError::Read),
                Failure::Damaged => return Err(CaptureError::Damaged(at)),
            }
        }
    }
}

impl Iterator for CaptureReader<'_> {
    type Item = Result<Captured, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Whether the block that begins here says that it is shorter than its own type and its two lengths, in either order of
/// bytes (as that of the other order, so small a number is beyond [`LARGEST_BUFFER`]). The reader takes the twelve bytes off
/// without a look.
fn is_shorter_than_a_block(block: &[u8]) -> bool {
    block.get(4..).and_then(|rest| rest.first_chunk()).is_some_and(|length| {
        [u32::from_le_bytes(*length), u32::from_be_bytes(*length)].into_iter().any(|length| length < 12)
    })
}

/// A [`PcapError`] without the reader's buffer that it borrows.
enum Failure {
    End,
    NeedsData,
    NeedsSpace,
    Truncated,
    Read,
    Damaged,
}

impl From<&PcapError<&[u8]>> for Failure {
    fn from(error: &PcapError<&[u8]>) -> Self {
        match error {
            PcapError::Eof => Self::End,
            PcapError::Incomplete(_) => Self::NeedsData,
            PcapError::BufferTooSmall => Self::NeedsSpace,
            PcapError::UnexpectedEof => Self::Truncated,
            PcapError::ReadError => Self::Read,
            _ => Self::Damaged,
        }
    }
}

fn read_block(
    block: PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
    last_time: &mut Duration,
    skipped: &mut Skipped,
) -> Result<Option<Captured>, CaptureError> {
    let (link_type, direction, whole, data) = match &block {
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            interfaces.clear();
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
            if interfaces.len() >= INTERFACE_LIMIT {
                return Err(CaptureError::Interfaces);
            }
            interfaces.push(Interface::new(description));
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let Some(interface) = interfaces.get(packet.if_id as usize) else {
                skipped.damaged += 1;
                return Ok(None);
            };
            *last_time = interface.time(u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low));
            let flags = packet.options.iter().find(|option| option.code == EPB_FLAGS).map(|option| &option.value[..]);
            let low_byte = flags.and_then(|flags| if packet.big_endian() { flags.last() } else { flags.first() });
            let direction = match low_byte.map(|flags| flags & 3) {
                Some(1) => Some(Direction::Inbound),
                Some(2) => Some(Direction::Outbound),
                _ => None,
            };
            (interface.link_type, direction, packet.caplen >= packet.origlen, packet.packet_data())
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            let Some(interface) = interfaces.first() else {
                skipped.damaged += 1;
                return Ok(None);
            };
            let whole = packet.data.len() >= packet.origlen as usize;
            let data = &packet.data[..packet.data.len().min(packet.origlen as usize)];
            (interface.link_type, None, whole, data)
        }
        PcapBlockOwned::LegacyHeader(header) => {
            let resolution = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            *interfaces = vec![Interface { link_type: header.network.0, resolution, offset: 0 }];
            return Ok(None);
        }
        PcapBlockOwned::Legacy(packet) => {
            let Some(interface) = interfaces.first() else { return Ok(None) };
            let fraction = interface.time(packet.ts_usec.into());
            *last_time = Duration::from_secs(packet.ts_sec.into()) + fraction;
            (interface.link_type, None, packet.caplen >= packet.origlen, packet.data)
        }
        PcapBlockOwned::NG(_) => {
            skipped.blocks += 1;
            return Ok(None);
        }
    };
    if link_type == LINKTYPE_USER0 {
        let data = CapturedData::Bytes(Bytes::copy_from_slice(data));
        return Ok(Some(Captured { time: *last_time, direction, data }));
    }
    if !whole {
        skipped.incomplete += 1;
        return Ok(None);
    }
    let Some(sliced) = slice(link_type, data) else {
        skipped.link_types += 1;
        return Ok(None);
    };
    Ok(datagram(sliced, skipped).map(|data| Captured { time: *last_time, direction, data }))
}

impl Interface {
    fn new(description: &InterfaceDescriptionBlock<'_>) -> Self {
        let exponent = u32::from(description.if_tsresol & 0x7f);
        let base: u64 = if description.if_tsresol & 0x80 == 0 { 10 } else { 2 };
        Self {
            link_type: description.linktype.0,
            // A resolution that is no number of units leaves whole seconds.
            resolution: base.checked_pow(exponent).unwrap_or(1),
            offset: description.if_tsoffset,
        }
    }

    fn time(&self, units: u64) -> Duration {
        let seconds = (units / self.resolution).saturating_add_signed(self.offset);
        let nanos = u128::from(units % self.resolution) * 1_000_000_000 / u128::from(self.resolution);
        Duration::new(seconds, nanos as u32)
    }
}

/// `None` for a link type that is not in the table.
fn slice(link_type: i32, data: &[u8]) -> Option<Result<SlicedPacket<'_>, ()>> {
    let after = |length: usize| data.get(length..).ok_or(());
    let sliced = match link_type {
        1 => SlicedPacket::from_ethernet(data).map_err(drop),
        // A four-byte address family, which the IP version repeats.
        0 | 108 => after(4).and_then(|ip| SlicedPacket::from_ip(ip).map_err(drop)),
        12 | 14 | LINKTYPE_RAW | 228 | 229 => SlicedPacket::from_ip(data).map_err(drop),
        113 => SlicedPacket::from_linux_sll(data).map_err(drop),
        // 20 bytes that begin with the EtherType.
        276 => after(20).and_then(|packet| {
            let ether_type = EtherType(u16::from_be_bytes([data[0], data[1]]));
            SlicedPacket::from_ether_type(ether_type, packet).map_err(drop)
        }),
        _ => return None,
    };
    Some(sliced)
}

fn datagram(sliced: Result<SlicedPacket<'_>, ()>, skipped: &mut Skipped) -> Option<CapturedData> {
    let Ok(packet) = sliced else {
        skipped.damaged += 1;
        return None;
    };
    if packet.ip_payload().is_some_and(|payload| payload.fragmented) {
        skipped.incomplete += 1;
        return None;
    }
    let addresses: Option<(IpAddr, IpAddr)> = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        Some(NetSlice::Ipv6(ip)) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        _ => None,
    };
    let (Some((src, dst)), Some(TransportSlice::Udp(udp))) = (addresses, &packet.transport) else {
        skipped.not_udp += 1;
        return None;
    };
    Some(CapturedData::Datagram {
        src: SocketAddr::new(src, udp.source_port()),
        dst: SocketAddr::new(dst, udp.destination_port()),
        payload: Bytes::copy_from_slice(udp.payload()),
    })
}
