//! The controller's own metrics.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::{
    model::{name::ServiceName, role::Roles, weight::Weight},
    rollout::phase::Phase,
};

/// The controller's own metrics.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    weight: GaugeVec,
    running: IntGaugeVec,
    ended: IntCounterVec,
    evidence: GaugeVec,
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
        };
        registry.register(Box::new(metrics.weight.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        registry.register(Box::new(metrics.evidence.clone()))?;
        Ok(metrics)
    }

    pub(super) fn begin(&self, service: &ServiceName) {
        self.running.with_label_values(&[service.as_str()]).set(0);
        for outcome in ["succeeded", "rolled_back"] {
            self.ended.with_label_values(&[service.as_str(), outcome]).inc_by(0);
        }
    }

    /// The service is not there any more.
    pub(super) fn end(&self, service: &ServiceName, roles: &Roles) {
        let service = service.as_str();
        // What was never set need not be removed.
        for outcome in ["succeeded", "rolled_back"] {
            let _absent = self.ended.remove_label_values(&[service, outcome]);
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
        self.running.with_label_values(&[service.as_str()]).set(i64::from(phase.is_running()));
        if !phase.is_running() {
            // An alert on it ends with the rollout.
            self.evidence(service, 0.0);
        }
    }

    pub(super) fn evidence(&self, service: &ServiceName, share: f64) {
        self.evidence.with_label_values(&[service.as_str()]).set(share.max(0.0));
    }
}
