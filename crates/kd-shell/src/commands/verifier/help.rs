//! `!verifier ?`

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::INFO;
use crate::answer::{Reply, Text};

#[derive(JsonSchema, Serialize)]
pub(super) struct Help {
    usage: &'static str,
    details: &'static str,
}

pub(super) fn reply() -> Reply {
    Reply::new(Help { usage: INFO.usage, details: INFO.details })
}

impl Text for Help {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}\n{}", self.usage, self.details)
    }
}
