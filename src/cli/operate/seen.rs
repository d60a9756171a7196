//! What of the API's answers is shown. Less than there is, so that an older program can ask a newer one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// All services.
#[derive(Debug, Deserialize)]
pub(super) struct Services {
    pub(super) services: Vec<Service>,
}

/// A service.
#[derive(Debug, Deserialize)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) revision: u64,
    pub(super) stable: String,
    pub(super) canary: Option<String>,
    pub(super) weight: f64,
    pub(super) rollout: Option<Rollout>,
    pub(super) backends: Vec<Backend>,
    pub(super) events: Vec<Event>,
}

/// A rollout.
#[derive(Debug, Deserialize)]
pub(super) struct Rollout {
    pub(super) id: String,
    pub(super) phase: String,
    pub(super) step: Option<usize>,
    /// Of a phase that lasts, when it began; of one that does not, `at`.
    pub(super) since: Option<u64>,
    pub(super) at: Option<u64>,
    /// A word while it is paused; what it went back for is an object.
    pub(super) reason: Option<Value>,
    #[serde(default)]
    pub(super) guards_only: bool,
    pub(super) steps: Vec<Step>,
    /// Until when the old version is kept for the way back.
    pub(super) rollback_until: Option<u64>,
    pub(super) explanation: Option<String>,
}

/// A step of a plan.
#[derive(Debug, Deserialize)]
pub(super) struct Step {
    pub(super) weight: f64,
    /// The share that is copied instead, in a dark step.
    pub(super) mirror: Option<f64>,
    pub(super) hold_seconds: f64,
}

/// A backend.
#[derive(Debug, Deserialize)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) role: Option<String>,
    pub(super) endpoints: Vec<String>,
    pub(super) weight: f64,
    pub(super) in_flight: u64,
    pub(super) recent: Recent,
}

/// A backend's latest figures.
#[derive(Debug, Deserialize)]
pub(super) struct Recent {
    pub(super) requests_per_second: f64,
    pub(super) error_rate: Option<f64>,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// Something that happened. For programs it is written as the API gives it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Event {
    /// Greater than that of any event before; entries of the history have none.
    #[serde(default)]
    pub(super) id: u64,
    pub(super) at: u64,
    pub(super) what: String,
    /// Who wanted it, and why they said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// What newer ones have beside it.
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
}

/// A page of what has happened, the newest first.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    /// Each is an [`Event`], and more that programs may want to see.
    pub(super) entries: Vec<Value>,
    /// Before which entry the next page ends; nothing if this is the last.
    pub(super) next: Option<u64>,
}

/// What a reload has changed.
#[derive(Debug, Deserialize)]
pub(super) struct Reloaded {
    pub(super) changes: Vec<String>,
}

impl Rollout {
    /// Whether it has begun and not ended.
    pub(super) fn runs(&self) -> bool {
        !matches!(self.phase.as_str(), "idle" | "succeeded" | "rolled_back")
    }

    /// Why it waits, in a word.
    pub(super) fn waits_for(&self) -> Option<&str> {
        self.reason.as_ref().filter(|_| self.phase == "paused")?.as_str()
    }
}
