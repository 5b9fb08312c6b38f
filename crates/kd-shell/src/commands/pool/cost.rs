//! What a search of the pool costs, in words and in JSON.

use std::time::Duration;

use nt_pool::find;
use schemars::JsonSchema;
use serde::Serialize;

/// Megabytes of pool that are read when nobody says otherwise.
pub(super) const LIMIT: u64 = 256;

/// What a walk costs, from what was measured on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub(super) struct Estimate {
    pub(super) requests: u64,
    bytes: u64,
    frozen_ms: u64,
}

impl From<find::Estimate> for Estimate {
    fn from(estimate: find::Estimate) -> Self {
        let frozen_ms = u64::try_from(estimate.time.as_millis()).unwrap_or(u64::MAX);
        Self { requests: estimate.requests, bytes: estimate.bytes, frozen_ms }
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 10 << 20 { format!("{} KB", bytes >> 10) } else { format!("{} MB", bytes >> 20) }
}

/// A time for people.
pub(super) fn time(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_millis()),
        seconds => format!("{seconds} s"),
    }
}
