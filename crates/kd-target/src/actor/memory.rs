//! Memory, registers and control space of a target that stands.

use kd_wire::message::manipulate::{
    get_context, read_control_space, read_physical_memory, read_virtual_memory, search_memory, set_context,
    write_physical_memory, write_virtual_memory,
};
use nt_memory::Search;

use super::*;

const STATUS_NO_MORE_ENTRIES: u32 = 0x8000_001a;

/// A reply of this size passes every network; tried when larger ones do not come through.
const SAFE_REPLY_DATA: usize = 1024;

/// The largest KD packet less the header of a reply.
pub(crate) const MOST_READ_DATA: usize = 4000 - 56;

/// How long the first large reply may take.
const UNTRIED_REPLY: Duration = Duration::from_secs(3);

impl Actor {
    pub(super) async fn read(&mut self, processor: u16, address: u64, length: usize) -> Result<Answer, TargetError> {
        let mut length = length.min(MOST_READ_DATA);
        loop {
            // Whether a large reply passes is not known before one did.
            let untried = length > SAFE_REPLY_DATA && self.shared.reply_data.load(Ordering::Relaxed) == usize::MAX;
            let limit = untried.then_some(UNTRIED_REPLY);
            let request = |count| {
                Request::ReadVirtualMemory(read_virtual_memory::Request {
                    target_base_address: address,
                    transfer_count: count,
                })
            };
            match self.read_whole(processor, &mut length, limit, request).await {
                Ok(Exchanged::Reply(ManipulateReply {
                    return_status, body: Reply::ReadVirtualMemory(reply), ..
                })) => {
                    let bytes = reply.prefix();
                    let bytes = bytes.slice(..bytes.len().min(length));
                    self.shared.status().cost.bytes_read += bytes.len() as u64;
                    let ended = !is_success(return_status);
                    if !ended && bytes.len() < length {
                        self.learn_reply_data(address, bytes.len());
                    } else if bytes.len() > SAFE_REPLY_DATA {
                        self.shared.reply_data.fetch_min(MOST_READ_DATA, Ordering::Relaxed);
                    }
                    return Ok(Answer::Bytes { bytes, ended });
                }
                Ok(Exchanged::Reply(reply)) => {
                    return Err(TargetError::Refused(format!(
                        "the target answered the read of {address:016x} with status {:08x}",
                        reply.return_status
                    )));
                }
                Ok(Exchanged::Sent) => return Err(Fault::Lost("a read was not answered".into()).into()),
                // Small replies that come and large ones that do not: a path that drops large datagrams.
                Err(TargetError::Silent(RequestFailure::NotAnswered)) if length > SAFE_REPLY_DATA => {
                    tracing::warn!(length, "no reply; asking for less");
                    self.shared.reply_data.store(SAFE_REPLY_DATA, Ordering::Relaxed);
                    length = SAFE_REPLY_DATA;
                }
                Err(error) => return Err(self.without_answer(error)),
            }
        }
    }

    /// Asks for memory, and for less of it when the reply comes damaged again and again; `length` is then how much.
    async fn read_whole(
        &mut self,
        processor: u16,
        length: &mut usize,
        limit: Option<Duration>,
        request: impl Fn(u32) -> Request,
    ) -> Result<Exchanged, TargetError> {
        *length = (*length).min(self.pieces.most());
        loop {
            match self.exchange_within(processor, request(*length as u32), limit).await {
                Err(TargetError::Silent(RequestFailure::Damaged)) => {
                    tracing::debug!(length, "the reply comes damaged; asking for less");
                    self.pieces.came_damaged(*length);
                    *length = self.pieces.most();
                }
                answer => {
                    if answer.is_ok() {
                        self.pieces.came_whole(*length);
                    }
                    return answer;
                }
            }
        }
    }

    /// A good reply that came back short shows how much this target's replies carry, unless it ends at a page: then
    /// the target may have stopped for another reason.
    fn learn_reply_data(&self, address: u64, got: usize) {
        if got >= 256 && !address.wrapping_add(got as u64).is_multiple_of(nt_memory::PAGE_SIZE) {
            self.shared.reply_data.fetch_min(got, Ordering::Relaxed);
        }
    }

    pub(super) async fn read_physical(
        &mut self,
        processor: u16,
        address: u64,
        length: usize,
    ) -> Result<Answer, TargetError> {
        let mut length = length.min(MOST_READ_DATA);
        let request = |count| {
            Request::ReadPhysicalMemory(read_physical_memory::Request {
                target_base_address: address,
                transfer_count: count,
                caching: 0,
            })
        };
        let exchanged = self.read_whole(processor, &mut length, None, request).await;
        let reply = answered(exchanged.map_err(|error| self.without_answer(error))?)?;
        let Reply::ReadPhysicalMemory(body) = reply.body else {
            return Err(refused(reply.return_status, || format!("read physical memory at {address:x}")));
        };
        let bytes = body.prefix();
        let bytes = bytes.slice(..bytes.len().min(length));
        self.shared.status().cost.bytes_read += bytes.len() as u64;
        Ok(Answer::Bytes { bytes, ended: !is_success(reply.return_status) })
    }

    /// One request; the answer says how many bytes were written.
    pub(super) async fn write(
        &mut self,
        processor: u16,
        address: u64,
        data: Bytes,
        physical: bool,
    ) -> Result<Answer, TargetError> {
        let count = data.len() as u32;
        let request = match physical {
            false => Request::WriteVirtualMemory(write_virtual_memory::Request {
                target_base_address: address,
                transfer_count: count,
                data,
            }),
            true => Request::WritePhysicalMemory(write_physical_memory::Request {
                target_base_address: address,
                transfer_count: count,
                caching: 0,
                data,
            }),
        };
        let reply = self.reply(processor, request).await?;
        let written = match reply.body {
            Reply::WriteVirtualMemory(body) => body.actual_bytes_written,
            Reply::WritePhysicalMemory(body) => body.actual_bytes_written,
            _ => return Err(refused(reply.return_status, || format!("write at {address:x}"))),
        };
        Ok(Answer::Count(written.min(count)))
    }

    pub(super) async fn search(
        &mut self,
        processor: u16,
        address: u64,
        length: u64,
        pattern: Vec<u8>,
    ) -> Result<Answer, TargetError> {
        let request = search_memory::Request {
            search_address: address,
            search_length: length,
            pattern_length: pattern.len() as u32,
            data: pattern.into(),
        };
        let reply = self.reply(processor, Request::SearchMemory(request)).await?;
        Ok(Answer::Search(match reply.body {
            Reply::SearchMemory(found) if is_success(reply.return_status) => Search::Found(found.found_address),
            Reply::SearchMemory(_) if reply.return_status == STATUS_NO_MORE_ENTRIES => Search::NotFound,
            _ => Search::Unsupported,
        }))
    }

    pub(super) async fn read_control(
        &mut self,
        processor: u16,
        selector: u64,
        length: u32,
    ) -> Result<Answer, TargetError> {
        let request = read_control_space::Request { target_base_address: selector, transfer_count: length };
        let reply = self.reply(processor, Request::ReadControlSpace(request)).await?;
        match reply.body {
            Reply::ReadControlSpace(body) if is_success(reply.return_status) => {
                Ok(Answer::Bytes { bytes: body.prefix(), ended: false })
            }
            _ => Err(refused(reply.return_status, || {
                format!("give {length:#x} bytes of control space {selector:#x} of processor {processor}")
            })),
        }
    }

    pub(super) async fn context(&mut self, processor: u16) -> Result<Bytes, TargetError> {
        let request = Request::GetContext(get_context::Request { context_flags: 0 });
        let reply = self.reply(processor, request).await?;
        match reply.body {
            Reply::GetContext(context) if is_success(reply.return_status) => Ok(context.data),
            _ => Err(TargetError::Refused(format!(
                "the target did not give the registers of processor {processor} (status {:08x})",
                reply.return_status
            ))),
        }
    }

    /// Writes a CONTEXT record. A target takes one only after it gave one in the same stop.
    pub(super) async fn set_context(&mut self, processor: u16, context: Bytes) -> Result<(), TargetError> {
        let record = self.machine().context();
        let context_flags = record.and_then(|record| record.context_flags(&context)).unwrap_or(0);
        self.context(processor).await?;
        let moved = record.and_then(|record| record.program_counter(&context));
        if let Some(to) = moved.filter(|_| self.at.as_ref().is_some_and(|at| at.processor == processor)) {
            self.session.moves(to);
        }
        let request = set_context::Request { context_flags, data: context };
        let reply = self.reply(processor, Request::SetContext(request)).await?;
        accepted(reply.return_status, || format!("take registers of processor {processor}"))
    }
}
