//! Counts requests to the admin side that were turned away at the door, and records that were lost.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// All reasons, so that each has a series from the start.
const REASONS: [&str; 6] =
    ["connections", "no_credentials", "wrong_credentials", "too_many_failures", "host", "browser"];

/// The counts, by reason.
#[derive(Debug)]
pub(super) struct Refusals {
    refused: IntCounterVec,
    unwritten: IntCounter,
}

impl Refusals {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counts = IntCounterVec::new(
            Opts::new(
                "tidegate_admin_refused_total",
                "Requests and connections to the admin side that were turned away before they were looked at, by why.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(counts.clone()))?;
        let unwritten = IntCounter::new(
            "tidegate_admin_audit_write_errors_total",
            "Records of the audit that could not be written to its file.",
        )?;
        registry.register(Box::new(unwritten.clone()))?;
        for reason in REASONS {
            counts.with_label_values(&[reason]).inc_by(0);
        }
        Ok(Self { refused: counts, unwritten })
    }

    pub(super) fn count(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(super) fn audit_failed(&self) {
        self.unwritten.inc();
    }
}
