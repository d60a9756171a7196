//! The canary's failure rate beside stable's on one route, which a whole service may drown: a tenth of
//! the requests that all fail are a tenth of the service's, but everything to whoever sent them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    dispersion::Dispersion,
    error_rate::{Comparison, Margin, Sample},
    interval::Difference,
    verdict::Arms,
};

/// One route's evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) name: Arc<str>,
    pub(super) worse: Comparison,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) difference: Option<Difference>,
    dispersion: Dispersion,
    /// Canary requests since the rollout began.
    pub(super) requests: u64,
    /// Since the step began.
    pub(super) step: Arms<Sample>,
}

impl Route {
    pub(super) fn new(name: Arc<str>, tolerance: Margin, planned: u64, dispersion: Dispersion) -> Self {
        let worse = Comparison::worse(tolerance, planned);
        let difference = Some(Difference::default());
        Self { name, worse, difference, dispersion, requests: 0, step: Arms::default() }
    }

    /// Takes in one tick.
    pub(super) fn update(&mut self, tick: Arms<Sample>) {
        let factor = self.dispersion.factor();
        self.worse.update(tick, factor);
        if let Some(difference) = &mut self.difference {
            difference.update(tick, factor);
        }
        if !tick.stable.is_outage() {
            self.dispersion.update(tick.stable);
        }
        self.requests = self.requests.saturating_add(tick.canary.requests);
        self.step.add(tick);
    }
}
