//! The control half's side of the counts: sums over workers, and what came in since the last look.

use std::collections::BTreeMap;

use super::ledger::Hub;
use crate::model::{
    histogram::Histogram,
    name::{BackendName, ServiceName},
    outcome::Outcome,
    role::Role,
};

/// One backend's counts in one role, summed over the workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts by outcome, in the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Those of them that count against the backend.
    pub failures: u64,
    /// Attempts that have begun and not ended.
    pub in_flight: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
    /// Time from request to the end of the response.
    pub latency: Histogram,
}

impl Totals {
    /// Attempts that ended and say something about the backend.
    pub fn requests(&self) -> u64 {
        let counting = Outcome::ALL.into_iter().filter(|outcome| outcome.counts());
        counting.map(|outcome| self.outcomes[outcome.index()]).sum()
    }

    /// What came in since `earlier`, an older reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let outcomes = std::array::from_fn(|i| self.outcomes[i].saturating_sub(earlier.outcomes[i]));
        Self {
            outcomes,
            failures: self.failures.saturating_sub(earlier.failures),
            in_flight: self.in_flight,
            connect_failures: self.connect_failures.saturating_sub(earlier.connect_failures),
            latency: self.latency.since(&earlier.latency),
        }
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.outcomes.iter_mut().zip(&other.outcomes) {
            *mine += theirs;
        }
        self.failures += other.failures;
        self.in_flight += other.in_flight;
        self.connect_failures += other.connect_failures;
        self.latency.merge(&other.latency);
    }
}

/// What a reading is by.
pub type Series = (ServiceName, BackendName, Role);

/// Reads every worker's counts and sums them.
///
/// The workers go on meanwhile, so the parts of one reading may be some microseconds apart; a
/// request is never missed, it is in this reading or in the next.
pub fn read(hub: &Hub) -> BTreeMap<Series, Totals> {
    let mut sums: BTreeMap<Series, Totals> = BTreeMap::new();
    for (ledger, _) in hub.workers() {
        for (key, role, cells) in ledger.cells() {
            let sum = sums.entry((key.service.clone(), key.backend.clone(), role)).or_default();
            for outcome in Outcome::ALL {
                sum.outcomes[outcome.index()] += cells.outcome(outcome);
            }
            sum.failures += cells.failures();
            sum.in_flight += cells.in_flight();
            sum.connect_failures += cells.connect_failures();
            cells.add_latency(&mut sum.latency);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::telemetry::ledger::Key;

    #[test]
    fn workers_are_summed_and_aborts_do_not_count() {
        let hub = Hub::new(2);
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        for worker in 0..2 {
            let ledger = hub.open_ledger(worker, Arc::new([key.clone()]));
            let writer = ledger.writer(0, Role::Stable);
            for outcome in [Outcome::Success, Outcome::Timeout, Outcome::ClientAbort] {
                writer.begin();
                writer.end(outcome, outcome == Outcome::Timeout, None);
            }
        }
        let readings = read(&hub);
        let totals = &readings[&(key.service, key.backend, Role::Stable)];
        assert_eq!((totals.requests(), totals.failures, totals.in_flight), (4, 2, 0));
    }
}
