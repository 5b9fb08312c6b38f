//! What a tool answers with.

use kd_shell::{CostRecord, ResultShape};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// A tool's answer: what was asked, and how the target was left.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    pub(crate) target: Told,
}

impl Answer {
    pub(crate) fn failed(&self) -> bool {
        match &self.outcome {
            Outcome::Done { ok } => !ok,
            Outcome::Record(record) => record["ok"] == false,
        }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    /// Of `target` and `run`.
    Done { ok: bool },
    /// Of a question: what `--format json` prints for its line.
    Record(#[schemars(with = "kd_shell::Record<'static>")] Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Running,
    /// It stands still until the lease ends.
    Halted,
    /// The connection is gone.
    Lost,
    #[serde(rename = "not connected")]
    NotConnected,
}

/// The target, behind the answer.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Told {
    pub(crate) state: State,
    /// When it runs by itself; only while it is halted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) runs_in_ms: Option<u64>,
    /// Why it is lost or not connected; for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// What the session cost so far; nothing was connected without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<CostRecord>,
}

/// What a tool answers with, in JSON.
pub const ANSWER: ResultShape = ResultShape::of::<Answer>("mcp");
