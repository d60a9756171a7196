//! The controller's own metrics.

use std::time::Duration;

use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::aa::Outcome;
use crate::{
    config::hook::At,
    model::{
        name::{BackendName, ServiceName},
        role::Roles,
        time::Timestamp,
        weight::Weight,
    },
    rollout::phase::Phase,
};

/// From a fast disk to one that is not well.
const SAVE_SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// From a control thread that has nothing else to do to one that misses ticks.
const TICK_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The controller's own metrics.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    weight: GaugeVec,
    running: IntGaugeVec,
    ended: IntCounterVec,
    evidence: GaugeVec,
    unsaved: IntGaugeVec,
    saves: IntCounterVec,
    save_seconds: Histogram,
    tick_lag: Histogram,
    tick_seconds: Histogram,
    aa: IntCounterVec,
    hooks: IntCounterVec,
    drained: IntGaugeVec,
    rollback_until: GaugeVec,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            weight: GaugeVec::new(
                Opts::new("tidegate_weight_ratio", "A role's share of its service's requests, 0 to 1."),
                &["service", "backend", "role"],
            )?,
            running: IntGaugeVec::new(
                Opts::new("tidegate_rollout_running", "Whether a rollout of the service runs."),
                &["service"],
            )?,
            ended: IntCounterVec::new(
                Opts::new("tidegate_rollouts_total", "Rollouts that have ended, by outcome."),
                &["service", "outcome"],
            )?,
            evidence: GaugeVec::new(
                Opts::new(
                    "tidegate_rollout_evidence_ratio",
                    "Evidence against the canary as a share of what rolls back; 1 or more rolls back.",
                ),
                &["service"],
            )?,
            unsaved: IntGaugeVec::new(
                Opts::new(
                    "tidegate_store_unsaved",
                    "Whether the service stands otherwise than it is saved, because saving fails or hangs.",
                ),
                &["service"],
            )?,
            saves: IntCounterVec::new(
                Opts::new("tidegate_store_saves_total", "Attempts to save how a service stands, by result."),
                &["service", "result"],
            )?,
            save_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "tidegate_store_save_seconds",
                    "How long it takes to save how a service stands.",
                )
                .buckets(SAVE_SECONDS.to_vec()),
            )?,
            tick_lag: Histogram::with_opts(
                HistogramOpts::new("tidegate_tick_lag_seconds", "How much later than it is due a tick begins.")
                    .buckets(TICK_SECONDS.to_vec()),
            )?,
            tick_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "tidegate_tick_seconds",
                    "Time from the beginning of a tick until a service has been judged by it, for each service.",
                )
                .buckets(TICK_SECONDS.to_vec()),
            )?,
            aa: IntCounterVec::new(
                Opts::new(
                    "tidegate_aa_tests_total",
                    "Tests of stable against itself that have ended, by outcome; an alarm is a false one.",
                ),
                &["service", "outcome"],
            )?,
            hooks: IntCounterVec::new(
                Opts::new("tidegate_hooks_total", "Hooks that were asked or told, by what came of it."),
                &["service", "at", "result"],
            )?,
            drained: IntGaugeVec::new(
                Opts::new(
                    "tidegate_backend_drained",
                    "Whether nobody is sent to the backend, and nothing has been under way there for a while.",
                ),
                &["service", "backend"],
            )?,
            rollback_until: GaugeVec::new(
                Opts::new(
                    "tidegate_rollback_until_timestamp_seconds",
                    "Until when the old version is kept for the way back after a success, since 1970; else 0.",
                ),
                &["service"],
            )?,
        };
        registry.register(Box::new(metrics.unsaved.clone()))?;
        registry.register(Box::new(metrics.saves.clone()))?;
        registry.register(Box::new(metrics.save_seconds.clone()))?;
        registry.register(Box::new(metrics.tick_lag.clone()))?;
        registry.register(Box::new(metrics.tick_seconds.clone()))?;
        registry.register(Box::new(metrics.aa.clone()))?;
        registry.register(Box::new(metrics.weight.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        registry.register(Box::new(metrics.evidence.clone()))?;
        registry.register(Box::new(metrics.hooks.clone()))?;
        registry.register(Box::new(metrics.drained.clone()))?;
        registry.register(Box::new(metrics.rollback_until.clone()))?;
        Ok(metrics)
    }

    pub(super) fn begin(&self, service: &ServiceName) {
        self.running(service, false);
        self.unsaved.with_label_values(&[service.as_str()]).set(0);
        for result in ["success", "failure"] {
            self.saves.with_label_values(&[service.as_str(), result]).inc_by(0);
        }
        for outcome in ["succeeded", "rolled_back"] {
            self.ended.with_label_values(&[service.as_str(), outcome]).inc_by(0);
        }
    }

    /// The service is not there any more.
    pub(super) fn end(&self, service: &ServiceName, roles: &Roles) {
        let service = service.as_str();
        // What was never set need not be removed.
        for outcome in Outcome::ALL {
            let _absent = self.aa.remove_label_values(&[service, outcome.label()]);
        }
        for outcome in ["succeeded", "rolled_back"] {
            let _absent = self.ended.remove_label_values(&[service, outcome]);
        }
        for result in ["success", "failure"] {
            let _absent = self.saves.remove_label_values(&[service, result]);
        }
        let _absent = self.unsaved.remove_label_values(&[service]);
        let _absent = self.rollback_until.remove_label_values(&[service]);
        for (at, _) in At::ALL {
            for result in ["success", "failure", "dropped"] {
                let _absent = self.hooks.remove_label_values(&[service, at, result]);
            }
        }
        let _absent = self.running.remove_label_values(&[service]);
        let _absent = self.evidence.remove_label_values(&[service]);
        let stable = (roles.stable(), "stable");
        for (backend, role) in roles.canary().map(|canary| (canary, "canary")).into_iter().chain([stable]) {
            let _absent = self.weight.remove_label_values(&[service, backend.as_str(), role]);
        }
    }

    pub(super) fn published(&self, service: &ServiceName, before: &Roles, roles: &Roles, weight: Weight) {
        let canary_share = weight.percent() / 100.0;
        let series = |roles: &Roles| {
            let canary = roles.canary().map(|c| (c.clone(), "canary", canary_share));
            let stable =
                (roles.stable().clone(), "stable", if canary.is_some() { 1.0 - canary_share } else { 1.0 });
            [Some(stable), canary].into_iter().flatten().collect::<Vec<_>>()
        };
        if before != roles {
            for (backend, role, _) in series(before) {
                let labels = [service.as_str(), backend.as_str(), role];
                // One that was never set need not be removed.
                let _absent = self.weight.remove_label_values(&labels);
            }
        }
        for (backend, role, share) in series(roles) {
            self.weight.with_label_values(&[service.as_str(), backend.as_str(), role]).set(share);
        }
    }

    pub(super) fn entered(&self, service: &ServiceName, phase: &Phase) {
        let outcome = match phase {
            Phase::Succeeded { .. } => Some("succeeded"),
            Phase::RolledBack { .. } => Some("rolled_back"),
            _ => None,
        };
        if let Some(outcome) = outcome {
            self.ended.with_label_values(&[service.as_str(), outcome]).inc();
        }
        self.running(service, phase.is_running());
        if !phase.is_running() {
            // An alert on it ends with the rollout.
            self.evidence(service, 0.0);
        }
    }

    /// Whether a rollout of the service runs.
    pub(super) fn running(&self, service: &ServiceName, runs: bool) {
        self.running.with_label_values(&[service.as_str()]).set(i64::from(runs));
    }

    /// Until when the way back is to be kept open, if it is.
    pub(super) fn rollback_until(&self, service: &ServiceName, until: Option<Timestamp>) {
        let seconds = until.map_or(0.0, |until| until.as_millis() as f64 / 1e3);
        self.rollback_until.with_label_values(&[service.as_str()]).set(seconds);
    }

    /// What was to be saved is, or could not be.
    pub(super) fn saved(&self, service: &ServiceName, is_saved: bool, took: Duration) {
        let result = if is_saved { "success" } else { "failure" };
        self.saves.with_label_values(&[service.as_str(), result]).inc();
        self.unsaved.with_label_values(&[service.as_str()]).set(i64::from(!is_saved));
        self.save_seconds.observe(took.as_secs_f64());
    }

    /// A save takes so long that it may as well have failed.
    pub(super) fn unsaved(&self, service: &ServiceName) {
        self.unsaved.with_label_values(&[service.as_str()]).set(1);
    }

    /// A tick begins, so much after it was due.
    pub(super) fn tick_begins(&self, lag: Duration) {
        self.tick_lag.observe(lag.as_secs_f64());
    }

    /// A service has been judged by a tick, so long after that began.
    pub(super) fn ticked(&self, took: Duration) {
        self.tick_seconds.observe(took.as_secs_f64());
    }

    /// Stable is tested against itself: its tests are counted from none on, so that there is a share of them.
    pub(super) fn tests(&self, service: &ServiceName) {
        for outcome in Outcome::ALL {
            self.aa.with_label_values(&[service.as_str(), outcome.label()]).inc_by(0);
        }
    }

    pub(super) fn tested(&self, service: &ServiceName, outcome: Outcome) {
        self.aa.with_label_values(&[service.as_str(), outcome.label()]).inc();
    }

    /// Whether a backend may be taken away.
    pub(super) fn drained(&self, service: &ServiceName, backend: &BackendName, is_drained: bool) {
        self.drained.with_label_values(&[service.as_str(), backend.as_str()]).set(i64::from(is_drained));
    }

    /// The backend is not there any more.
    pub(super) fn without(&self, service: &ServiceName, backend: &BackendName) {
        // What was never set need not be removed.
        let _absent = self.drained.remove_label_values(&[service.as_str(), backend.as_str()]);
    }

    /// A hook was asked or told: `success`, `failure` or `dropped`.
    pub(super) fn called(&self, service: &ServiceName, at: At, result: &str) {
        self.hooks.with_label_values(&[service.as_str(), at.name(), result]).inc();
    }

    pub(super) fn evidence(&self, service: &ServiceName, share: f64) {
        self.evidence.with_label_values(&[service.as_str()]).set(share.max(0.0));
    }
}
