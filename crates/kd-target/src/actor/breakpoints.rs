//! Breakpoints on code: the target's table holds ours only while the target runs.

use kd_wire::message::manipulate::{restore_break_point, write_break_point};

use super::data::Data;
use super::*;

/// Slots of a target's breakpoint table; handles count from 1.
const BREAKPOINT_HANDLES: u32 = 32;

/// A debugger fills the table from its first slot on whenever its target runs, and a stop takes out those that lie within
/// some bytes of it. So what a dead one left begins near the table's start, and so many empty slots there are enough to
/// see that it left nothing: the whole table costs a serial line a third of a second at each attach.
const LEFTOVER_SLOTS: u32 = 4;

/// How often a breakpoint is set anew whose answer was lost.
const MOST_PLANTS: u32 = 4;

/// How long one instruction may take.
const SINGLE_STEP: Duration = Duration::from_secs(5);

/// A breakpoint is in the target's table only while the target runs: what stands still holds its own bytes, and a
/// debugger that dies at its prompt leaves nothing behind.
pub(super) struct Breakpoint {
    pub(super) address: u64,
    /// In the target's table, which counts from 1.
    pub(super) handle: Option<u32>,
    /// The target did not take it when it last went on: its memory is not there.
    pub(super) refused: bool,
    /// It is one on data, in a debug register and not in the table.
    pub(super) data: Option<Data>,
}

/// What becomes of a continue when the target does not take a breakpoint of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    /// The user continues: it stands, and says why.
    AllOrNone,
    /// We continue a stop that the user does not see: it goes on, and misses that one.
    WhatCanBe,
}

impl Actor {
    /// Adds a breakpoint. It is planted once to see whether the target takes it.
    pub(super) async fn set_breakpoint(&mut self, processor: u16, address: u64) -> Result<(), TargetError> {
        if self.breakpoints.iter().any(|known| known.address == address) {
            return Err(TargetError::Refused(format!("there is a breakpoint of ours at {address:016x} already")));
        }
        let handle = self.plant(processor, address).await?;
        self.lift(processor, handle).await?;
        self.breakpoints.push(Breakpoint { address, handle: None, refused: false, data: None });
        Ok(())
    }

    /// Whether one of ours, not one on data, is at an instruction.
    pub(super) fn is_at_breakpoint(&self, program_counter: u64) -> bool {
        self.breakpoints.iter().any(|known| known.data.is_none() && known.address == program_counter)
    }

    pub(super) fn clear_breakpoint(&mut self, address: u64) -> Result<(), TargetError> {
        let known = self.breakpoints.iter().position(|known| known.address == address);
        let known =
            known.ok_or_else(|| TargetError::Refused(format!("there is no breakpoint of ours at {address:016x}")))?;
        self.breakpoints.swap_remove(known);
        Ok(())
    }

    /// Takes ours out of the target. It has removed those around the program counter itself, and answers with an error
    /// for them.
    pub(super) async fn lift_breakpoints(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        if self.unknown_slots {
            self.empty_unknown_slots().await?;
        }
        for index in 0..self.breakpoints.len() {
            let Some(handle) = self.breakpoints[index].handle.take().filter(|_| self.breakpoints[index].data.is_none())
            else {
                continue;
            };
            match self.lift(processor, handle).await {
                Ok(()) | Err(TargetError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Puts ours into the target, but for the one at `except`.
    pub(super) async fn plant_breakpoints(
        &mut self,
        processor: u16,
        except: Option<u64>,
        plant: Plant,
    ) -> Result<(), TargetError> {
        for index in 0..self.breakpoints.len() {
            let Breakpoint { address, handle, refused, data } = self.breakpoints[index];
            // The continue itself turns it on.
            if data.is_some() {
                self.breakpoints[index].handle = Some(0);
            }
            if data.is_some() || handle.is_some() || except == Some(address) {
                continue;
            }
            match self.plant(processor, address).await {
                Ok(handle) => {
                    self.breakpoints[index].handle = Some(handle);
                    self.breakpoints[index].refused = false;
                }
                Err(TargetError::Refused(why)) if plant == Plant::WhatCanBe => {
                    self.breakpoints[index].refused = true;
                    if !refused {
                        self.tell(Event::BreakpointMissed { address, why });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs the one instruction under a breakpoint of ours; continuing there would stop at it again. False: the target
    /// stopped for another reason meanwhile, or the step did not end.
    pub(super) async fn step_off_breakpoint(&mut self, at: &StateChange, plant: Plant) -> Result<bool, TargetError> {
        self.plant_breakpoints(at.processor, Some(at.program_counter), plant).await?;
        self.stepping = Some(Stepping::OffBreakpoint);
        self.continue_with(at, DBG_EXCEPTION_HANDLED, true).await?;
        self.at = None;
        let deadline = Deadline::now() + SINGLE_STEP;
        let stop = loop {
            if let Some(stop) = self.next_stop.take() {
                break stop;
            }
            match self.step(Some(deadline)).await {
                Step::Event(event) => self.on_event(event),
                Step::Lost(why) => {
                    self.lost(why.clone());
                    return Err(Fault::Lost(why).into());
                }
                Step::Deadline => {
                    tracing::warn!("a single step did not end; the breakpoint is out");
                    return Ok(false);
                }
                Step::Order(order) => self.put_off(order),
                Step::OrdersClosed => self.ending = Some((Leave::Running, None)),
                Step::HeldTooLong => {}
            }
        };
        if !is_step(&stop) {
            // Reported as any other stop.
            self.next_stop = Some(stop);
            return Ok(false);
        }
        self.stepping = None;
        self.at = Some(stop);
        self.lift_breakpoints().await?;
        Ok(true)
    }

    /// What a session that died left in the table, before anything of ours is in it.
    pub(super) async fn release_leftovers(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        let mut last = LEFTOVER_SLOTS;
        let mut handle = 1;
        while handle <= last {
            match self.lift(processor, handle).await {
                Ok(()) => last = BREAKPOINT_HANDLES,
                // An empty slot.
                Err(TargetError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
            handle += 1;
        }
        self.released = true;
        Ok(())
    }

    /// Puts one into the table. When the answer was lost and the target was asked again, it may have one there from the
    /// first time, whose handle nobody knows, and says that it cannot take the second: it would stop there long after we
    /// are gone. So what came of both is taken out, and the target is asked anew.
    async fn plant(&mut self, processor: u16, address: u64) -> Result<u32, TargetError> {
        for _ in 0..MOST_PLANTS {
            self.unknown_slots = true;
            let request = write_break_point::Request { break_point_address: address };
            let reply = self.reply(processor, Request::WriteBreakPoint(request)).await?;
            if self.asked_twice {
                self.empty_unknown_slots().await?;
                continue;
            }
            self.unknown_slots = false;
            return match reply.body {
                Reply::WriteBreakPoint(body) if is_success(reply.return_status) => Ok(body.break_point_handle),
                _ => Err(refused(reply.return_status, || {
                    format!("set a breakpoint at {address:016x}: its table is full, or it has one there")
                })),
            };
        }
        Err(TargetError::Refused(format!("the answers to a breakpoint at {address:016x} are lost again and again")))
    }

    async fn lift(&mut self, processor: u16, break_point_handle: u32) -> Result<(), TargetError> {
        let request = restore_break_point::Request { break_point_handle };
        let reply = self.reply(processor, Request::RestoreBreakPoint(request)).await?;
        // The first time took it out.
        if self.asked_twice {
            return Ok(());
        }
        accepted(reply.return_status, || format!("take breakpoint {break_point_handle} of its table out"))
    }

    /// Empties every slot that none of ours is known to be in; the last one first, since a later one may have kept the
    /// break instruction of an earlier one as what was there before.
    async fn empty_unknown_slots(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        for handle in (1..=BREAKPOINT_HANDLES).rev() {
            let is_known = |ours: &Breakpoint| ours.data.is_none() && ours.handle == Some(handle);
            if self.breakpoints.iter().any(is_known) {
                continue;
            }
            match self.lift(processor, handle).await {
                // An empty slot.
                Ok(()) | Err(TargetError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.unknown_slots = false;
        Ok(())
    }
}
