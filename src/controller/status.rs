//! How a service stands, as people and programs see it: the API, the CLI and the demo show the same.

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::{
    Reading,
    aa::AaStatus,
    check::Checks,
    service::{ServiceTask, delta},
};
use crate::{
    analysis::verdict::Verdict,
    config::Backend,
    model::{
        histogram::Histogram,
        name::{BackendName, ServiceName},
        role::Role,
        time::Timestamp,
        weight::Weight,
    },
    rollout::{
        check::CheckStatus,
        phase::Phase,
        plan::{Step, Strategy},
    },
    telemetry::reader::Totals,
};

/// How a service stands.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// Raised by each change of roles, weight or rollout; its `ETag`.
    pub revision: u64,
    /// The backend that users have today.
    pub stable: BackendName,
    /// The backend on trial, if there is one.
    pub canary: Option<BackendName>,
    /// The canary's share of requests, in percent.
    pub weight: Weight,
    /// Tests of stable against itself while no rollout runs, where there are any.
    pub aa: Option<AaStatus>,
    /// The rollout that runs or ran last.
    pub rollout: Option<RolloutStatus>,
    /// Why how it stands is not saved, if it is not: a restart would not know of it.
    pub unsaved: Option<String>,
    /// The backends, in the configuration's order.
    pub backends: Vec<BackendStatus>,
    /// What happened lately, the newest last.
    pub events: Vec<Occurrence>,
}

/// How a rollout stands.
#[derive(Debug, Clone, Serialize)]
pub struct RolloutStatus {
    /// Its id, unique within the service.
    pub id: String,
    /// When it was started, in milliseconds since the Unix epoch.
    pub started: Timestamp,
    /// Where it stands: `phase` and what belongs to it.
    #[serde(flatten)]
    pub phase: Phase,
    /// How traffic moves.
    pub strategy: Strategy,
    /// Whether it is judged by limits and checks alone, and nothing is compared with stable.
    pub guards_only: bool,
    /// The steps of its plan.
    pub steps: Vec<StepStatus>,
    /// The canary's endpoints, and what they have done since the rollout began.
    pub endpoints: Vec<EndpointStatus>,
    /// Until when the old version is kept warm for the way back, once the rollout has succeeded and as long as
    /// nobody has gone that way, in milliseconds since the Unix epoch.
    pub rollback_until: Option<Timestamp>,
    /// The checks of what is measured elsewhere.
    pub checks: Vec<CheckStatus>,
    /// What analysis concluded last, with its numbers.
    pub verdict: Option<Verdict>,
    /// The same in one sentence.
    pub explanation: Option<String>,
}

/// What one endpoint has done.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct EndpointStatus {
    /// Its address.
    pub endpoint: SocketAddr,
    /// Attempts that ended, those while it was warming up included.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Their share, 0 to 1; nothing where there were none.
    pub error_rate: Option<f64>,
}

/// A step of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct StepStatus {
    /// The canary's share, in percent.
    pub weight: Weight,
    /// In a dark step: the share of stable's requests that the canary gets copies of instead, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Weight>,
    /// Shortest time at this weight, in seconds.
    pub hold_seconds: f64,
    /// The checks that are watched in it, by name; left out where all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checks: Option<Vec<Arc<str>>>,
}

impl From<&Step> for StepStatus {
    fn from(step: &Step) -> Self {
        let Step { weight, mirror, hold, minimum_requests: _, gate: _, checks } = step;
        Self { weight: *weight, mirror: *mirror, hold_seconds: hold.as_secs_f64(), checks: checks.clone() }
    }
}

/// How a backend stands.
#[derive(Debug, Clone, Serialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: BackendName,
    /// The role that it holds, if any.
    pub role: Option<Role>,
    /// Where it can be reached, as `host:port`.
    pub endpoints: Vec<String>,
    /// Its share of the service's requests, in percent.
    pub weight: Weight,
    /// Attempts that have begun and not ended.
    pub in_flight: u64,
    /// Whether it may be taken away: nobody is sent there, and nothing has been under way there for
    /// `drained_after`.
    pub drained: bool,
    /// Attempts that ended since the start.
    pub requests_total: u64,
    /// Those of them that failed.
    pub failures_total: u64,
    /// The same of the last ten to twenty seconds.
    pub recent: Recent,
}

/// A backend's figures of the last ten to twenty seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Recent {
    /// Over how many seconds.
    pub seconds: f64,
    /// Attempts that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Attempts that ended per second.
    pub requests_per_second: f64,
    /// Share of attempts that failed, 0 to 1; nothing where there were none.
    pub error_rate: Option<f64>,
    /// Median latency, in seconds.
    pub p50_seconds: Option<f64>,
    /// 99th percentile of latency, in seconds.
    pub p99_seconds: Option<f64>,
}

impl Recent {
    pub(super) fn new(delta: &Totals, seconds: f64) -> Self {
        let (requests, failures) = (delta.requests(), delta.failures);
        let quantile = |latency: &Histogram, level| latency.quantile(level).map(|q| q.as_secs_f64());
        Self {
            seconds,
            requests,
            failures,
            requests_per_second: if seconds > 0.0 { requests as f64 / seconds } else { 0.0 },
            error_rate: (requests > 0).then(|| failures as f64 / requests as f64),
            p50_seconds: quantile(&delta.latency, 0.5),
            p99_seconds: quantile(&delta.latency, 0.99),
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Occurrence {
    /// Its number: greater than that of any event before it, of any service.
    pub id: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: Timestamp,
    /// What, as a sentence.
    pub what: String,
    /// Who wanted it, if anybody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, if they said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl ServiceTask {
    /// How the service stands.
    pub(super) fn status(&self) -> ServiceStatus {
        let rollout = self.record.as_ref().map(|record| RolloutStatus {
            id: record.id.clone(),
            started: record.started,
            phase: record.phase.clone(),
            strategy: record.plan.strategy(),
            guards_only: record.guards_only,
            steps: record.plan.steps().iter().map(Into::into).collect(),
            rollback_until: record.rollback_until(&self.roles),
            endpoints: self.endpoint_status(),
            checks: self.checks.as_ref().map(Checks::status).unwrap_or_default(),
            verdict: self.verdict.clone(),
            explanation: self.explanation(),
        });
        ServiceStatus {
            name: self.config.name.clone(),
            revision: self.revision,
            stable: self.roles.stable().clone(),
            canary: self.roles.canary().cloned(),
            weight: self.weight,
            aa: self.config.rollout.aa_test.then_some(self.aa).filter(|_| self.roles.canary().is_some()),
            rollout,
            unsaved: self.journal.problem(),
            backends: self.config.backends.iter().map(|backend| self.backend_status(backend)).collect(),
            events: self.events.to_vec(),
        }
    }

    fn backend_status(&self, backend: &Backend) -> BackendStatus {
        let role = self.roles.role_of(&backend.name);
        let canary_has = if self.roles.canary().is_some() { self.weight } else { Weight::ZERO };
        let (start, since) = &self.window.start;
        let mut totals = Totals::default();
        let mut recent = Totals::default();
        // A backend's figures are those of both its roles: a swap does not make it another backend.
        for role in Role::ALL {
            totals.merge(&delta(&self.now, &Reading::default(), (&self.config, &backend.name, role)));
            recent.merge(&delta(&self.now, start, (&self.config, &backend.name, role)));
        }
        BackendStatus {
            name: backend.name.clone(),
            role,
            endpoints: backend.endpoints.iter().map(ToString::to_string).collect(),
            weight: match role {
                Some(Role::Stable) => canary_has.complement(),
                Some(Role::Canary) => canary_has,
                None => Weight::ZERO,
            },
            in_flight: totals.in_flight,
            drained: self.drained.is(&backend.name) && !self.is_in_use(&backend.name),
            requests_total: totals.requests(),
            failures_total: totals.failures,
            recent: Recent::new(&recent, since.elapsed().as_secs_f64()),
        }
    }
}
