//! STATE_MANIPULATE: what the host asks of a stopped target.
//!
//! Requests and replies share a 56-byte header; the reply repeats the ApiNumber and most of the request.
//!
//! ```text
//!   0  u32  ApiNumber
//!   4  u16  ProcessorLevel   ignored
//!   6  u16  Processor        whose registers; memory is always read through the processor that stopped
//!   8  u32  ReturnStatus     NTSTATUS, only in replies
//!  12  u32  padding
//!  16  40 B per-API part     see the module of each API; offsets there count from the header's start
//!  56  ...  data
//! ```
//!
//! Nothing here checks unused bytes: WinDbg leaves its stack in them and targets echo it.

pub mod cause_bug_check;
pub mod check_low_memory;
pub mod clear_all_internal_breakpoints;
pub mod clear_special_calls;
pub mod continue2;
pub mod continue_api;
pub mod fill_memory;
pub mod get_bus_data;
pub mod get_context;
pub mod get_context_ex;
pub mod get_internal_break_point;
pub mod get_version;
pub mod page_in;
pub mod query_memory;
pub mod query_special_calls;
pub mod read_control_space;
pub mod read_io_space;
pub mod read_io_space_extended;
pub mod read_machine_specific_register;
pub mod read_physical_memory;
pub mod read_physical_memory_long;
pub mod read_virtual_memory;
pub mod reboot;
pub mod restore_break_point;
pub mod restore_break_point_ex;
pub mod search_memory;
pub mod set_bus_data;
pub mod set_context;
pub mod set_context_ex;
pub mod set_internal_break_point;
pub mod set_special_call;
pub mod switch_partition;
pub mod switch_processor;
pub mod write_break_point;
pub mod write_break_point_ex;
pub mod write_control_space;
pub mod write_custom_breakpoint;
pub mod write_custom_breakpoint_ex;
pub mod write_io_space;
pub mod write_io_space_extended;
pub mod write_machine_specific_register;
pub mod write_physical_memory;
pub mod write_virtual_memory;

use bytes::Bytes;

use super::layout::Field;
use super::{DecodeError, Fields, Layout, Value};

/// Bytes of the header that all requests and replies share.
pub const HEADER_SIZE: usize = 56;

/// An ApiNumber that this crate does not know, with everything behind the 16 common bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownApi {
    /// Its number.
    pub api: u32,
    /// All of the message.
    pub bytes: Bytes,
}

macro_rules! apis {
    (
        answered { $($answered:ident = $answered_number:literal in $answered_module:ident,)* }
        silent { $($silent:ident = $silent_number:literal in $silent_module:ident,)* }
    ) => {
        /// What the host can ask.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Request {
            $(
                #[doc = concat!("API ", stringify!($answered_number), ", laid out in [`", stringify!($answered_module), "`].")]
                $answered($answered_module::Request),
            )*
            $(
                #[doc = concat!("API ", stringify!($silent_number), ", laid out in [`", stringify!($silent_module), "`]; not answered.")]
                $silent($silent_module::Request),
            )*
            /// Any other number.
            Unknown(UnknownApi),
        }

        /// What the target answers. APIs that are only acknowledged have no variant.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Reply {
            $(
                #[doc = concat!("To API ", stringify!($answered_number), ", laid out in [`", stringify!($answered_module), "`].")]
                $answered($answered_module::Reply),
            )*
            /// To any other number.
            Unknown(UnknownApi),
        }

        impl Request {
            /// The ApiNumber in its header.
            pub fn api(&self) -> u32 {
                match self {
                    $( Request::$answered(_) => $answered_number, )*
                    $( Request::$silent(_) => $silent_number, )*
                    Request::Unknown(unknown) => unknown.api,
                }
            }

            /// Whether a reply comes. The others end with the target's acknowledgement.
            pub fn is_answered(&self) -> bool {
                match self {
                    $( Request::$answered(_) => true, )*
                    $( Request::$silent(_) => false, )*
                    Request::Unknown(_) => true,
                }
            }

            fn decode_body(api: u32, bytes: &Bytes) -> Result<Self, DecodeError> {
                Ok(match api {
                    $( $answered_number => Request::$answered(Layout::decode(bytes)?), )*
                    $( $silent_number => Request::$silent(Layout::decode(bytes)?), )*
                    _ => Request::Unknown(UnknownApi { api, bytes: bytes.slice(16..) }),
                })
            }

            fn encode_body(&self) -> Vec<u8> {
                match self {
                    $( Request::$answered(body) => body.encode(), )*
                    $( Request::$silent(body) => body.encode(), )*
                    Request::Unknown(unknown) => unknown.encode(),
                }
            }

            fn body_fields(&self, out: &mut Fields) {
                match self {
                    $( Request::$answered(body) => body.fields(out), )*
                    $( Request::$silent(body) => body.fields(out), )*
                    Request::Unknown(unknown) => unknown.fields(out),
                }
            }
        }

        impl Reply {
            /// The ApiNumber in its header.
            pub fn api(&self) -> u32 {
                match self {
                    $( Reply::$answered(_) => $answered_number, )*
                    Reply::Unknown(unknown) => unknown.api,
                }
            }

            fn decode_body(api: u32, bytes: &Bytes) -> Result<Self, DecodeError> {
                Ok(match api {
                    $( $answered_number => Reply::$answered(Layout::decode(bytes)?), )*
                    _ => Reply::Unknown(UnknownApi { api, bytes: bytes.slice(16..) }),
                })
            }

            fn encode_body(&self) -> Vec<u8> {
                match self {
                    $( Reply::$answered(body) => body.encode(), )*
                    Reply::Unknown(unknown) => unknown.encode(),
                }
            }

            fn body_fields(&self, out: &mut Fields) {
                match self {
                    $( Reply::$answered(body) => body.fields(out), )*
                    Reply::Unknown(unknown) => unknown.fields(out),
                }
            }
        }

        /// Microsoft's name of an API, without the `DbgKd` and `Api` around it.
        pub fn api_name(api: u32) -> Option<&'static str> {
            match api {
                $( $answered_number => Some(stringify!($answered)), )*
                $( $silent_number => Some(stringify!($silent)), )*
                _ => None,
            }
        }
    };
}

apis! {
    answered {
        ReadVirtualMemory = 0x3130 in read_virtual_memory,
        WriteVirtualMemory = 0x3131 in write_virtual_memory,
        GetContext = 0x3132 in get_context,
        SetContext = 0x3133 in set_context,
        WriteBreakPoint = 0x3134 in write_break_point,
        RestoreBreakPoint = 0x3135 in restore_break_point,
        ReadControlSpace = 0x3137 in read_control_space,
        WriteControlSpace = 0x3138 in write_control_space,
        ReadIoSpace = 0x3139 in read_io_space,
        WriteIoSpace = 0x313A in write_io_space,
        ReadPhysicalMemory = 0x313D in read_physical_memory,
        WritePhysicalMemory = 0x313E in write_physical_memory,
        QuerySpecialCalls = 0x313F in query_special_calls,
        GetInternalBreakPoint = 0x3143 in get_internal_break_point,
        ReadIoSpaceExtended = 0x3144 in read_io_space_extended,
        WriteIoSpaceExtended = 0x3145 in write_io_space_extended,
        GetVersion = 0x3146 in get_version,
        WriteBreakPointEx = 0x3147 in write_break_point_ex,
        RestoreBreakPointEx = 0x3148 in restore_break_point_ex,
        PageIn = 0x3151 in page_in,
        ReadMachineSpecificRegister = 0x3152 in read_machine_specific_register,
        WriteMachineSpecificRegister = 0x3153 in write_machine_specific_register,
        SearchMemory = 0x3156 in search_memory,
        GetBusData = 0x3157 in get_bus_data,
        SetBusData = 0x3158 in set_bus_data,
        CheckLowMemory = 0x3159 in check_low_memory,
        FillMemory = 0x315B in fill_memory,
        QueryMemory = 0x315C in query_memory,
        WriteCustomBreakpoint = 0x315E in write_custom_breakpoint,
        GetContextEx = 0x315F in get_context_ex,
        SetContextEx = 0x3160 in set_context_ex,
        WriteCustomBreakpointEx = 0x3161 in write_custom_breakpoint_ex,
        ReadPhysicalMemoryLong = 0x3162 in read_physical_memory_long,
    }
    silent {
        Continue = 0x3136 in continue_api,
        Reboot = 0x313B in reboot,
        Continue2 = 0x313C in continue2,
        SetSpecialCall = 0x3140 in set_special_call,
        ClearSpecialCalls = 0x3141 in clear_special_calls,
        SetInternalBreakPoint = 0x3142 in set_internal_break_point,
        CauseBugCheck = 0x3149 in cause_bug_check,
        SwitchProcessor = 0x3150 in switch_processor,
        ClearAllInternalBreakpoints = 0x315A in clear_all_internal_breakpoints,
        SwitchPartition = 0x315D in switch_partition,
    }
}

impl UnknownApi {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(&self.bytes);
        bytes.resize(bytes.len().max(HEADER_SIZE), 0);
        bytes
    }

    fn fields(&self, out: &mut Fields) {
        out.push(("Bytes".into(), Value::Bytes(self.bytes.clone())));
    }
}

/// A request with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManipulateRequest {
    /// Whom it is about; memory is the same for all.
    pub processor: u16,
    /// What is asked.
    pub body: Request,
}

/// A reply with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManipulateReply {
    /// As the request had it.
    pub processor: u16,
    /// NTSTATUS. C0000001 stands for nearly every failure, a partial read included.
    pub return_status: u32,
    /// What is answered.
    pub body: Reply,
}

fn header(bytes: &Bytes) -> Result<(u32, u16, u32), DecodeError> {
    if bytes.len() < HEADER_SIZE {
        return Err(DecodeError { what: "STATE_MANIPULATE", needed: HEADER_SIZE, got: bytes.len() });
    }
    Ok((u32::get(bytes, 0), u16::get(bytes, 6), u32::get(bytes, 8)))
}

impl ManipulateRequest {
    /// Reads header and request.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (api, processor, _) = header(bytes)?;
        Ok(ManipulateRequest { processor, body: Request::decode_body(api, bytes)? })
    }

    /// As a packet carries it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.body.encode_body();
        self.body.api().put(&mut bytes, 0);
        self.processor.put(&mut bytes, 6);
        bytes
    }

    pub(crate) fn fields(&self, out: &mut Fields) {
        out.push(("Processor".into(), self.processor.value()));
        self.body.body_fields(out);
    }
}

impl ManipulateReply {
    /// Reads header and reply.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (api, processor, return_status) = header(bytes)?;
        Ok(ManipulateReply { processor, return_status, body: Reply::decode_body(api, bytes)? })
    }

    /// As a packet carries it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.body.encode_body();
        self.body.api().put(&mut bytes, 0);
        self.processor.put(&mut bytes, 6);
        self.return_status.put(&mut bytes, 8);
        bytes
    }

    pub(crate) fn fields(&self, out: &mut Fields) {
        out.push(("Processor".into(), self.processor.value()));
        out.push(("ReturnStatus".into(), self.return_status.value()));
        self.body.body_fields(out);
    }

    /// Whether this can be the answer to `request`.
    ///
    /// A re-issued request is sometimes carried out twice, and a target that a debugger left owes its last reply to
    /// the next one. The second reply must not be taken for the answer to a later request of the same kind, so the
    /// fields that a target echoes are compared too; of addresses only the low half, because 32-bit targets differ
    /// in how they extend them.
    pub fn answers(&self, request: &ManipulateRequest) -> bool {
        let low = |address: u64| address as u32;
        if self.body.api() != request.body.api() {
            return false;
        }
        // 0xFFFF names no processor; whatever the target puts there is right.
        if request.processor != 0xffff && self.processor != request.processor {
            return false;
        }
        macro_rules! same_range {
            ($asked:expr, $got:expr) => {
                low($asked.target_base_address) == low($got.target_base_address)
                    && $asked.transfer_count == $got.transfer_count
            };
        }
        match (&request.body, &self.body) {
            (Request::ReadVirtualMemory(a), Reply::ReadVirtualMemory(b)) => same_range!(a, b),
            (Request::WriteVirtualMemory(a), Reply::WriteVirtualMemory(b)) => same_range!(a, b),
            (Request::ReadPhysicalMemory(a), Reply::ReadPhysicalMemory(b)) => same_range!(a, b),
            (Request::WritePhysicalMemory(a), Reply::WritePhysicalMemory(b)) => same_range!(a, b),
            (Request::ReadControlSpace(a), Reply::ReadControlSpace(b)) => same_range!(a, b),
            (Request::WriteControlSpace(a), Reply::WriteControlSpace(b)) => same_range!(a, b),
            (Request::WriteBreakPoint(a), Reply::WriteBreakPoint(b)) => {
                low(a.break_point_address) == low(b.break_point_address)
            }
            (Request::RestoreBreakPoint(a), Reply::RestoreBreakPoint(b)) => {
                a.break_point_handle == b.break_point_handle
            }
            (Request::GetContextEx(a), Reply::GetContextEx(b)) => (a.offset, a.byte_count) == (b.offset, b.byte_count),
            (Request::SetContextEx(a), Reply::SetContextEx(b)) => (a.offset, a.byte_count) == (b.offset, b.byte_count),
            (Request::ReadMachineSpecificRegister(a), Reply::ReadMachineSpecificRegister(b)) => a.msr == b.msr,
            (Request::WriteMachineSpecificRegister(a), Reply::WriteMachineSpecificRegister(b)) => a.msr == b.msr,
            _ => true,
        }
    }
}
