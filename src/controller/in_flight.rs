//! Sets the limits of requests at a time that adapt, from what has been counted.

mod gradient;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use self::gradient::{Gradient, Measured};
use super::Reading;
use crate::{
    clock,
    model::{
        name::{BackendName, ServiceName},
        outcome::Outcome,
        role::Role,
    },
    telemetry::{in_flight::InFlight, ledger::Hub, reader::Totals},
};

/// Requests that have to have ended before one looks at what they took: fewer say too little.
const ENOUGH: u64 = 100;
/// The share of requests that is looked at, the quickest ones. The rest may be downloads, or clients that
/// read slowly.
const QUICKEST: f64 = 0.9;

/// One service's limit as it adapts.
struct Adapting {
    gradient: Gradient,
    /// What had been counted at the last decision, and when that was.
    before: Totals,
    rejected: u64,
    at: Instant,
}

/// Sets limits for as long as there are readings.
pub(super) async fn run(hub: Arc<Hub>, mut readings: watch::Receiver<Reading>) {
    let mut services: HashMap<ServiceName, Adapting> = HashMap::new();
    while readings.changed().await.is_ok() {
        let reading = Arc::clone(&readings.borrow_and_update());
        let limits = hub.in_flight().all();
        services.retain(|name, _| limits.iter().any(|(limited, _)| limited == name));
        for (name, limit) in limits {
            let Some(bounds) = limit.bounds() else { continue };
            let (totals, now) = (totals(&reading, &name), clock::monotonic());
            let begin = || Adapting {
                gradient: Gradient::default(),
                before: totals.clone(),
                rejected: limit.rejected(),
                at: now,
            };
            let adapting = services.entry(name).or_insert_with(begin);
            adapting.look(&totals, &limit, bounds, now);
        }
    }
}

impl Adapting {
    fn look(&mut self, totals: &Totals, limit: &InFlight, bounds: (u32, u32), now: Instant) {
        let delta = totals.since(&self.before);
        let elapsed = now.saturating_duration_since(self.at);
        let rejected = limit.rejected();
        let Some(measured) = measure(&delta, rejected > self.rejected, elapsed) else { return };
        limit.set_limit(self.gradient.next(limit.limit(), bounds, &measured));
        (self.before, self.rejected, self.at) = (totals.clone(), rejected, now);
    }
}

/// What the counts say; nothing if they are too few.
fn measure(delta: &Totals, rejected: bool, elapsed: Duration) -> Option<Measured> {
    let late = delta.outcomes[Outcome::Timeout.index()];
    let answered = delta.latency.total();
    let all = answered + late;
    if all < ENOUGH || elapsed.is_zero() {
        return None;
    }
    let quickest = (all as f64 * QUICKEST) as u64;
    let latency = (answered >= quickest).then(|| delta.latency.mean_of_quickest(quickest)).flatten();
    // Little's law: what all of them took together, for each second.
    let on_average = delta.latency.sum_seconds() / elapsed.as_secs_f64();
    Some(Measured { latency, in_flight: on_average.max(delta.in_flight as f64), rejected, elapsed })
}

/// What a service has counted, over all backends and roles.
fn totals(reading: &Reading, service: &ServiceName) -> Totals {
    let mut sum = Totals::default();
    let of_service = |((name, ..), _): &(&(ServiceName, BackendName, Role), &Totals)| name == service;
    reading.totals.iter().filter(of_service).for_each(|(_, totals)| sum.merge(totals));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_few_requests_say_nothing_and_slow_ones_are_left_out() {
        let mut delta = Totals::default();
        (0..90).for_each(|_| delta.latency.record(Duration::from_millis(10)));
        assert_eq!(measure(&delta, false, SECOND), None);
        (0..10).for_each(|_| delta.latency.record(Duration::from_secs(30)));
        let measured = measure(&delta, true, SECOND).unwrap();
        let millis = measured.latency.unwrap().as_secs_f64() * 1000.0;
        assert!((9.7..10.3).contains(&millis), "{millis}");
        assert!(measured.rejected && measured.in_flight > 300.0);
    }

    #[test]
    fn where_more_than_a_tenth_gets_no_response_there_is_no_latency() {
        let mut delta = Totals::default();
        (0..100).for_each(|_| delta.latency.record(Duration::from_millis(10)));
        delta.outcomes[Outcome::Timeout.index()] = 10;
        assert!(measure(&delta, false, SECOND).unwrap().latency.is_some());
        delta.outcomes[Outcome::Timeout.index()] = 20;
        assert_eq!(measure(&delta, false, SECOND).unwrap().latency, None);
    }
}
