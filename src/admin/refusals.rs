//! Counts requests to the admin side that were turned away at the door.

use prometheus::{IntCounterVec, Opts, Registry};

/// All reasons, so that each has a series from the start.
const REASONS: [&str; 5] = ["no_credentials", "wrong_credentials", "too_many_failures", "host", "browser"];

/// The counts, by reason.
#[derive(Debug)]
pub(super) struct Refusals(IntCounterVec);

impl Refusals {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counts = IntCounterVec::new(
            Opts::new(
                "tidegate_admin_refused_total",
                "Requests to the admin side that were turned away before they were looked at, by why.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(counts.clone()))?;
        for reason in REASONS {
            counts.with_label_values(&[reason]).inc_by(0);
        }
        Ok(Self(counts))
    }

    pub(super) fn count(&self, reason: &'static str) {
        self.0.with_label_values(&[reason]).inc();
    }
}
