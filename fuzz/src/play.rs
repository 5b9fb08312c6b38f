//! A stub that the input plays: its packets are well made, so that no checksum and no seal stops the fuzzer; their ids,
//! types, bodies and moments are not.
//!
//! ```text
//! step: kind (bits 0-2 what, 3-5 the packet's type, 6 SYNC, 7 the other of the two ids), length, so many bytes
//! ```

use std::time::Duration;

use bytes::Bytes;
use kd_wire::message::FileIoRequest;
use kd_wire::message::manipulate::{
    Request, continue_api, get_context, get_version, read_control_space, read_virtual_memory, restore_break_point,
    search_memory, write_break_point,
};
use kd_wire::packet::{INITIAL_ID, Packet, PacketType, SYNC};
use kd_wire::session::{Event, HostSession};

const TYPES: [PacketType; 6] = [
    PacketType::StateChange64,
    PacketType::StateManipulate,
    PacketType::DebugIo,
    PacketType::FileIo,
    PacketType::ControlRequest,
    PacketType::TraceIo,
];

fn request(kind: u8) -> Request {
    let target_base_address = 0xffff_f800_0000_1000;
    match kind % 8 {
        0 => Request::GetVersion(get_version::Request {}),
        1 => Request::ReadVirtualMemory(read_virtual_memory::Request { target_base_address, transfer_count: 64 }),
        2 => Request::ReadControlSpace(read_control_space::Request { target_base_address: 2, transfer_count: 32 }),
        3 => Request::GetContext(get_context::Request { context_flags: 0 }),
        4 => Request::WriteBreakPoint(write_break_point::Request { break_point_address: target_base_address }),
        5 => Request::RestoreBreakPoint(restore_break_point::Request { break_point_handle: 1 }),
        6 => Request::SearchMemory(search_memory::Request {
            search_address: target_base_address,
            search_length: 64,
            pattern_length: 4,
            data: Bytes::from_static(b"Leak"),
        }),
        _ => Request::Continue(continue_api::Request { continue_status: 0x0001_0002 }),
    }
}

/// What a step puts on the wire.
pub(crate) enum Sent<'d> {
    /// Bytes as they are.
    Raw(&'d [u8]),
    /// A packet.
    Packet(Packet),
}

/// Plays the input step by step. `send` gives the host what the stub sends, `answered` sees what the host sends.
pub(crate) fn play(
    host: &mut HostSession,
    now: &mut Duration,
    data: &[u8],
    mut send: impl FnMut(&mut HostSession, Duration, Sent<'_>, u8),
    mut answered: impl FnMut(&[u8]),
) {
    let mut rest = data;
    while let [kind, length, bytes @ ..] = rest {
        let (body, after) = bytes.split_at(bytes.len().min(usize::from(*length)));
        rest = after;
        let id = INITIAL_ID ^ u32::from(kind >> 7) | if kind & 0x40 != 0 { SYNC } else { 0 };
        let control = |packet_type| Sent::Packet(Packet::control(packet_type, id));
        match kind & 7 {
            0 => send(host, *now, Sent::Raw(body), kind >> 3),
            1 | 2 => {
                let packet_type = TYPES[usize::from(kind >> 3) % TYPES.len()];
                let packet = Packet::data(packet_type, id, Bytes::copy_from_slice(body));
                send(host, *now, Sent::Packet(packet), 2);
            }
            3 => send(host, *now, control(PacketType::Acknowledge), 2),
            4 => send(host, *now, control(PacketType::Resend), 2),
            5 => send(host, *now, control(PacketType::Reset), 2),
            6 => drop(host.request(*now, 0, request(*length))),
            _ => match length % 8 {
                0 => host.break_in(*now),
                1 => host.cancel(*now),
                2 => host.answer_prompt(*now, body),
                3 => host.stand_by(),
                4 => host.synchronise(*now, length & 8 != 0),
                5 => host.nudge(),
                _ => *now += Duration::from_millis(u64::from(*length) * 4),
            },
        }
        host.handle_timeout(*now);
        while let Some(transmit) = host.poll_transmit() {
            answered(&transmit.data);
        }
        while let Some(event) = host.poll_event() {
            if let Event::FileIo(request) = event {
                refuse(host, *now, &request);
            }
        }
        while let Some(transmit) = host.poll_transmit() {
            answered(&transmit.data);
        }
        let timeout = host.poll_timeout();
        assert!(timeout.is_none_or(|at| at + Duration::from_secs(120) > *now), "a timer that never fires");
    }
}

/// Files are never given.
fn refuse(host: &mut HostSession, now: Duration, request: &FileIoRequest) {
    host.answer_file(now, request.refuse());
}
