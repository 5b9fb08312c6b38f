#![no_main]

//! A whole session over a serial stream: the input plays the stub, whose packets are well made, so that the checksum does
//! not stop the fuzzer, and whose ids, types, bodies and moments are not.

use std::time::Duration;

use bytes::Bytes;
use kd_wire::message::manipulate::{
    Request, continue_api, get_context, get_version, read_control_space, read_virtual_memory, restore_break_point,
    search_memory, write_break_point,
};
use kd_wire::packet::{INITIAL_ID, Packet, PacketType, SYNC};
use kd_wire::session::{HostSession, SerialConfig};
use libfuzzer_sys::fuzz_target;

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

fuzz_target!(|data: &[u8]| {
    let mut host = HostSession::serial(SerialConfig { baud: data.first().map(|_| 115_200), resets: 0 });
    let mut now = Duration::ZERO;
    host.synchronise(now, true);
    let mut rest = data;
    while let [kind, length, bytes @ ..] = rest {
        let (body, after) = bytes.split_at(bytes.len().min(usize::from(*length)));
        rest = after;
        let id = INITIAL_ID ^ u32::from(kind >> 7) | if kind & 0x40 != 0 { SYNC } else { 0 };
        match kind & 7 {
            0 => host.handle_bytes(now, body),
            1 | 2 => {
                let packet_type = TYPES[usize::from(kind >> 3) % TYPES.len()];
                let packet = Packet::data(packet_type, id, Bytes::copy_from_slice(body));
                host.handle_bytes(now, &packet.encode_serial());
            }
            3 => host.handle_bytes(now, &Packet::control(PacketType::Acknowledge, id).encode_serial()),
            4 => host.handle_bytes(now, &Packet::control(PacketType::Resend, id).encode_serial()),
            5 => host.handle_bytes(now, &Packet::control(PacketType::Reset, id).encode_serial()),
            6 => drop(host.request(now, 0, request(*length))),
            _ => match length % 4 {
                0 => host.break_in(now),
                1 => host.cancel(now),
                2 => host.answer_prompt(now, body),
                _ => now += Duration::from_millis(u64::from(*length) * 4),
            },
        }
        host.handle_timeout(now);
        while host.poll_transmit().is_some() {}
        while host.poll_event().is_some() {}
        assert!(host.poll_timeout().is_none_or(|at| at + Duration::from_secs(120) > now), "a timer that never fires");
    }
});
