//! Drives `kd_wire`'s session by hand: one socket, one clock, no runtime. `kd-target` is what one would use; this is how it
//! works inside, for whoever writes a carrier, a proxy, or a debugger of another shape.
//!
//! `cargo run -p kdpool-examples --bin drive_a_session -- 127.0.0.1:4555`
//!
//! The address is that of a serial line on TCP. The contract that the loop keeps stands at `kd_wire::session`.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use kd_wire::message::manipulate::{Reply, Request, continue_api, get_context, get_version, set_context};
use kd_wire::session::{Event, HostSession, SerialConfig};
use kdpool_examples::{Failure, words};

const DBG_CONTINUE: u32 = 0x0001_0002;
const AMD64: u16 = 0x8664;
/// Rip in the CONTEXT record of x64.
const RIP: std::ops::Range<usize> = 0xf8..0x100;
/// ContextFlags there.
const FLAGS: std::ops::Range<usize> = 0x30..0x34;

struct Line {
    socket: TcpStream,
    session: HostSession,
    started: Instant,
}

impl Line {
    /// The loop: what the last call queued goes out, then what the session has to say is taken, and only then it is waited,
    /// for bytes or for the session's timer, whichever comes first.
    fn event(&mut self) -> Result<Event, Failure> {
        let mut buffer = [0; 4096];
        loop {
            while let Some(transmit) = self.session.poll_transmit() {
                self.socket.write_all(&transmit.data)?;
            }
            if let Some(event) = self.session.poll_event() {
                return Ok(event);
            }
            // Asked anew after every call: what it said before no longer holds.
            let (now, timer) = (self.started.elapsed(), self.session.poll_timeout());
            if timer.is_some_and(|at| at <= now) {
                self.session.handle_timeout(now);
                continue;
            }
            self.socket.set_read_timeout(timer.map(|at| at - now))?;
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err("the other end closed the line".into()),
                Ok(count) => self.session.handle_bytes(self.started.elapsed(), &buffer[..count]),
                // The timer, which is looked at above.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One request to its one end.
    fn ask(&mut self, processor: u16, request: Request) -> Result<Option<Reply>, Failure> {
        self.session.request(self.started.elapsed(), processor, request)?;
        loop {
            match self.event()? {
                Event::Reply(reply) if reply.return_status == 0 => return Ok(Some(reply.body)),
                Event::Reply(reply) => return Err(format!("refused with {:08x}", reply.return_status).into()),
                Event::Sent => return Ok(None),
                Event::RequestFailed { reason } => return Err(reason.into()),
                event => self.meanwhile(event),
            }
        }
    }

    /// What may come at any time. The target stands still until a prompt or a file request is answered.
    fn meanwhile(&mut self, event: Event) {
        let now = self.started.elapsed();
        match event {
            Event::Print { text, .. } => print!("{}", String::from_utf8_lossy(&text)),
            Event::Prompt { .. } => self.session.answer_prompt(now, b""),
            Event::FileIo(request) => self.session.answer_file(now, request.refuse()),
            // Who started anew is asked to stop once more.
            Event::TargetRestarted => self.session.synchronise(now, true),
            _ => {}
        }
    }
}

fn main() -> Result<(), Failure> {
    let [address] = words("drive_a_session HOST:PORT")?;
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let session = HostSession::serial(SerialConfig::default());
    let mut line = Line { socket, session, started: Instant::now() };

    // Nothing is sent before this: a running target is broken in, one that stands tells its stop again.
    line.session.synchronise(line.started.elapsed(), true);
    let stop = loop {
        match line.event()? {
            Event::StateChange(stop) => break stop,
            event => line.meanwhile(event),
        }
    };
    println!("stopped at {:016x} on processor {}", stop.program_counter, stop.processor);

    let Some(Reply::GetVersion(version)) = line.ask(stop.processor, Request::GetVersion(get_version::Request {}))?
    else {
        return Err("no version".into());
    };
    println!("Windows build {}, machine {:04x}", version.minor_version, version.machine_type);

    // A break-in stops at a hard-coded `int 3`: continued there, it would stop again.
    if version.machine_type == AMD64 && stop.x64().instructions().starts_with(&[0xcc]) {
        let request = Request::GetContext(get_context::Request { context_flags: 0 });
        let Some(Reply::GetContext(context)) = line.ask(stop.processor, request)? else {
            return Err("no registers".into());
        };
        let mut data = context.data.to_vec();
        let flags = data.get(FLAGS).and_then(|flags| flags.try_into().ok()).map(u32::from_le_bytes);
        let (Some(context_flags), Some(rip)) = (flags, data.get_mut(RIP)) else {
            return Err("the CONTEXT record is too short".into());
        };
        rip.copy_from_slice(&(stop.program_counter + 1).to_le_bytes());
        line.ask(stop.processor, Request::SetContext(set_context::Request { context_flags, data: data.into() }))?;
    }
    // Acknowledged and never answered: its end is `Event::Sent`.
    line.ask(stop.processor, Request::Continue(continue_api::Request { continue_status: DBG_CONTINUE }))?;
    println!("it runs");
    Ok(())
}
