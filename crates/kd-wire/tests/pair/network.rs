//! The pair, and the network between.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kd_wire::kdnet::{Channel, Key, peek};
use kd_wire::message::debug_io::{DebugIo, GetString, PrintString};
use kd_wire::message::manipulate::{
    ManipulateReply, Reply, Request, get_version, read_virtual_memory, restore_break_point,
};
use kd_wire::message::state_change::{Exception, Report, StateChange};
use kd_wire::message::{Message, file_io};
use kd_wire::session::{
    Diagnostic, Event, HostSession, KdnetConfig, SerialConfig, TargetConfig, TargetEvent, TargetSession, Transmit,
};

pub(crate) fn key() -> Key {
    "1.2.3.4".parse().unwrap()
}

pub(crate) fn host_address() -> SocketAddr {
    "192.168.2.1:50000".parse().unwrap()
}

pub(crate) fn target_address() -> SocketAddr {
    "192.168.2.72:50000".parse().unwrap()
}

/// xorshift64*: enough to decide what happens to a datagram.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.roll(100) < chance
    }
}

/// Chances in percent.
#[derive(Default, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) repeat: u64,
    pub(crate) reorder: u64,
    pub(crate) damage: u64,
}

struct InFlight {
    at: Duration,
    to_host: bool,
    from: SocketAddr,
    data: Vec<u8>,
}

pub(crate) struct Pair {
    pub(crate) now: Duration,
    pub(crate) host: HostSession,
    pub(crate) target: TargetSession,
    pub(crate) stop: StateChange,
    pub(crate) target_address: SocketAddr,
    pub(crate) faults: Faults,
    pub(crate) events: Vec<Event>,
    /// Requests that the target carried out.
    pub(crate) executed: Vec<Request>,
    pub(crate) answers: Vec<Bytes>,
    /// Datagrams or writes of the host.
    pub(crate) sent: usize,
    pub(crate) host_sent: Vec<Bytes>,
    pub(crate) target_sent: Vec<Bytes>,
    /// Loses exactly these transmissions of the target, by number.
    pub(crate) lose_of_target: Vec<usize>,
    pub(crate) lose_of_host: Vec<usize>,
    /// Loses what a target that runs says of itself: all but its offers.
    pub(crate) lose_pings: bool,
    /// Carries requests out without answering them.
    pub(crate) mute: bool,
    wire: Vec<InFlight>,
    dice: Dice,
    serial: bool,
}

pub(crate) fn exception(program_counter: u64) -> StateChange {
    StateChange {
        new_state: kd_wire::message::state_change::EXCEPTION,
        processor_level: 6,
        processor: 0,
        number_processors: 1,
        thread: 0xffff_fa80_0000_1000,
        program_counter,
        report: Report::Exception(Exception {
            exception_code: 0x8000_0003,
            exception_address: program_counter,
            first_chance: 1,
            ..Exception::default()
        }),
        control_report: [0; 48],
    }
}

pub(crate) fn memory(address: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (address.wrapping_add(i).wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

pub(crate) fn read(address: u64, len: u32) -> Request {
    Request::ReadVirtualMemory(read_virtual_memory::Request { target_base_address: address, transfer_count: len })
}

pub(crate) fn print(text: &str) -> Message {
    let data = Bytes::copy_from_slice(text.as_bytes());
    Message::DebugIo(DebugIo::Print(PrintString { length_of_string: data.len() as u32, data, ..Default::default() }))
}

pub(crate) fn prompt(text: &str) -> Message {
    let data = Bytes::copy_from_slice(text.as_bytes());
    Message::DebugIo(DebugIo::Prompt(GetString {
        length_of_prompt_string: data.len() as u32,
        length_of_string_read: 16,
        data,
        ..Default::default()
    }))
}

pub(crate) fn host_config() -> KdnetConfig {
    KdnetConfig { key: key(), targets: Vec::new(), seed: [7; 32] }
}

pub(crate) fn target_config() -> TargetConfig {
    TargetConfig { key: key(), own: target_address(), host: host_address(), version: 4, boot: [0x11; 24], first_id: 0 }
}

impl Pair {
    pub(crate) fn kdnet(seed: u64) -> Self {
        Self::new(HostSession::kdnet(host_config()), TargetSession::kdnet(target_config()), seed, false)
    }

    pub(crate) fn serial(seed: u64) -> Self {
        Self::new(HostSession::serial(SerialConfig::default()), TargetSession::serial(), seed, true)
    }

    pub(crate) fn new(host: HostSession, target: TargetSession, seed: u64, serial: bool) -> Self {
        Pair {
            now: Duration::from_secs(100),
            host,
            target,
            stop: exception(0xffff_f800_0000_1000),
            target_address: target_address(),
            faults: Faults::default(),
            events: Vec::new(),
            executed: Vec::new(),
            answers: Vec::new(),
            sent: 0,
            host_sent: Vec::new(),
            target_sent: Vec::new(),
            lose_of_target: Vec::new(),
            lose_of_host: Vec::new(),
            lose_pings: false,
            mute: false,
            wire: Vec::new(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            serial,
        }
    }

    /// Puts a datagram or bytes on the wire as if the target had sent them.
    pub(crate) fn inject(&mut self, from: SocketAddr, data: &[u8]) {
        self.wire.push(InFlight { at: self.now, to_host: true, from, data: data.to_vec() });
    }

    /// Lets things happen until `done`, at most so long. Returns whether it was done.
    pub(crate) fn run(&mut self, patience: Duration, mut done: impl FnMut(&mut Pair) -> bool) -> bool {
        let end = self.now + patience;
        for _ in 0..200_000 {
            self.collect();
            if done(self) {
                return true;
            }
            self.collect();
            let timers = [self.host.poll_timeout(), self.target.poll_timeout()];
            let next = timers.into_iter().flatten().chain(self.wire.iter().map(|data| data.at)).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            self.deliver();
            if self.host.poll_timeout().is_some_and(|at| at <= self.now) {
                self.host.handle_timeout(self.now);
            }
            if self.target.poll_timeout().is_some_and(|at| at <= self.now) {
                self.target.handle_timeout(self.now);
            }
        }
        panic!("nothing ends: {} sent, events {:?}", self.sent, self.events.iter().rev().take(10).collect::<Vec<_>>());
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run(time, |_| false);
    }

    fn deliver(&mut self) {
        self.wire.sort_by_key(|data| data.at);
        while self.wire.first().is_some_and(|data| data.at <= self.now) {
            let data = self.wire.remove(0);
            match (data.to_host, self.serial) {
                (true, true) => self.host.handle_bytes(self.now, &data.data),
                (true, false) => self.host.handle_datagram(self.now, data.from, &data.data),
                (false, true) => self.target.handle_bytes(self.now, &data.data),
                (false, false) => self.target.handle_datagram(self.now, data.from, &data.data),
            }
        }
    }

    fn collect(&mut self) {
        while let Some(event) = self.target.poll_event() {
            self.serve(event);
        }
        while let Some(transmit) = self.host.poll_transmit() {
            self.sent += 1;
            let lost = self.lose_of_host.contains(&self.host_sent.len());
            self.host_sent.push(transmit.data.clone());
            if transmit.peer.is_none_or(|peer| peer == self.target_address) && !lost {
                self.put(transmit, false);
            }
        }
        while let Some(transmit) = self.target.poll_transmit() {
            let is_ping = |data: &[u8]| {
                !self.target.is_stopped() && peek(data).is_ok_and(|header| header.channel == Channel::Data)
            };
            let lost =
                self.lose_of_target.contains(&self.target_sent.len()) || self.lose_pings && is_ping(&transmit.data);
            self.target_sent.push(transmit.data.clone());
            if !lost {
                self.put(transmit, true);
            }
        }
        while let Some(event) = self.host.poll_event() {
            self.events.push(event);
        }
    }

    fn put(&mut self, transmit: Transmit, to_host: bool) {
        let from = if to_host { self.target_address } else { host_address() };
        let copies = 1 + u32::from(self.dice.percent(self.faults.repeat));
        for _ in 0..copies {
            if self.dice.percent(self.faults.lose) {
                continue;
            }
            let mut data = transmit.data.to_vec();
            if self.dice.percent(self.faults.damage) && !data.is_empty() {
                let at = self.dice.roll(data.len() as u64) as usize;
                if self.serial && self.dice.percent(50) {
                    data.remove(at);
                } else {
                    data[at] ^= 1 << self.dice.roll(8);
                }
            }
            let late = if self.dice.percent(self.faults.reorder) { self.dice.roll(20) } else { 0 };
            self.wire.push(InFlight { at: self.now + Duration::from_millis(1 + late), to_host, from, data });
        }
    }

    fn serve(&mut self, event: TargetEvent) {
        match event {
            TargetEvent::BreakIn | TargetEvent::StateChangeWanted => {
                let stop = self.stop.clone();
                self.target.send(self.now, Message::StateChange(stop));
            }
            TargetEvent::HostConnected { .. } | TargetEvent::GaveUp => {}
            TargetEvent::Message(message) => match *message {
                Message::Request(request) => {
                    self.executed.push(request.body.clone());
                    if self.mute {
                        return;
                    }
                    let (return_status, body) = match request.body {
                        Request::GetVersion(_) => {
                            (0, Reply::GetVersion(get_version::Reply { machine_type: 0x8664, ..Default::default() }))
                        }
                        Request::ReadVirtualMemory(read) => {
                            let len = read.transfer_count.min(1352);
                            let reply = read_virtual_memory::Reply {
                                target_base_address: read.target_base_address,
                                transfer_count: read.transfer_count,
                                actual_bytes_read: len,
                                data: memory(read.target_base_address, len as usize).into(),
                            };
                            (0, Reply::ReadVirtualMemory(reply))
                        }
                        Request::RestoreBreakPoint(restore) => {
                            let break_point_handle = restore.break_point_handle;
                            (0xc000_0001, Reply::RestoreBreakPoint(restore_break_point::Reply { break_point_handle }))
                        }
                        Request::Continue(_) | Request::Continue2(_) => {
                            self.target.resume();
                            return;
                        }
                        other => panic!("the test's target does not know {other:?}"),
                    };
                    let reply = ManipulateReply { processor: request.processor, return_status, body };
                    self.target.send(self.now, Message::Reply(reply));
                }
                Message::DebugIo(DebugIo::Answer(answer)) => self.answers.push(answer.data),
                Message::FileIoReply(reply) => {
                    assert_eq!(reply.encode()[4..8], file_io::NO_SUCH_FILE.to_le_bytes());
                    self.answers.push(Bytes::from_static(b"refused"));
                }
                other => panic!("the test's target does not know {other:?}"),
            },
        }
    }

    // ---- what tests ask ----

    pub(crate) fn take_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.events.iter().position(wanted)?;
        Some(self.events.remove(at))
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }

    pub(crate) fn has_diagnostic(&self, wanted: impl Fn(&Diagnostic) -> bool) -> bool {
        self.has(|event| matches!(event, Event::Diagnostic(diagnostic) if wanted(diagnostic)))
    }

    pub(crate) fn attach(&mut self, patience: Duration) {
        self.host.synchronise(self.now, true);
        let stopped =
            self.run(patience, |pair| pair.take_event(|event| matches!(event, Event::StateChange(_))).is_some());
        assert!(stopped, "no stop within {patience:?}: {:?}", self.events);
    }

    /// Asks and waits; checks that exactly the right answer comes.
    pub(crate) fn ask(&mut self, request: Request, patience: Duration) -> Result<ManipulateReply, Box<Event>> {
        self.host.request(self.now, 0, request).unwrap();
        let mut answer = None;
        self.run(patience, |pair| {
            answer =
                pair.take_event(|event| matches!(event, Event::Reply(_) | Event::Sent | Event::RequestFailed { .. }));
            answer.is_some()
        });
        match answer {
            Some(Event::Reply(reply)) => Ok(reply),
            Some(other) => Err(Box::new(other)),
            None => panic!("no end of the request: {:?}", self.events),
        }
    }

    pub(crate) fn read(&mut self, address: u64, len: u32) -> Vec<u8> {
        match self.ask(read(address, len), Duration::from_secs(200)) {
            Ok(ManipulateReply { body: Reply::ReadVirtualMemory(reply), .. }) => {
                assert_eq!(reply.target_base_address, address);
                reply.prefix().to_vec()
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn go(&mut self) {
        let request = kd_wire::message::manipulate::continue_api::Request { continue_status: 0x0001_0002 };
        let sent = self.ask(Request::Continue(request), Duration::from_secs(200));
        assert_eq!(sent, Err(Box::new(Event::Sent)));
    }
}
