//! The canary's failure rate beside stable's on one route, which a whole service may drown: a tenth of
//! the requests that all fail are a tenth of the service's, but everything to whoever sent them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    dispersion::Dispersion,
    error_rate::{Comparison, Margin, Sample},
    interval::Difference,
    users::{Firsts, Judge},
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
    /// Of users, where they are what is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<Judge>,
    /// Canary requests since the rollout began.
    pub(super) requests: u64,
    /// Since the step began.
    pub(super) step: Arms<Sample>,
}

impl Route {
    pub(super) fn new(name: Arc<str>, tolerance: Margin, planned: u64, dispersion: Dispersion) -> Self {
        let worse = Comparison::worse(tolerance, planned);
        let difference = Some(Difference::default());
        Self { name, worse, difference, dispersion, users: None, requests: 0, step: Arms::default() }
    }

    /// Takes in one tick; of users, where they are what is counted.
    pub(super) fn update(&mut self, tick: Arms<Sample>, users: Option<&Firsts>) {
        let factor = self.dispersion.factor();
        match users {
            None => self.worse.update(tick, factor),
            Some(firsts) => {
                let judge = self.users.get_or_insert_with(|| Judge::beside(&self.dispersion));
                let requests = tick.map(|sample| sample.requests);
                judge.update(&mut self.worse, firsts, requests, tick.stable.is_outage());
            }
        }
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
