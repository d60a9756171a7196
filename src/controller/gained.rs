//! What came in between two readings, as the analysis wants it.

use std::{borrow::Cow, sync::Arc};

use super::{Counts, service::delta};
use crate::{
    analysis::{ArmTick, Tick, error_rate::Sample, paired, verdict::Arms},
    config::Service,
    model::{
        histogram::Histogram,
        name::ServiceName,
        role::{Role, Roles},
    },
    telemetry::reader::{Counted, Pairs, Totals},
};

/// What came in between two readings.
pub(super) struct Gained {
    arms: Arms<Totals>,
    routes: Vec<Arms<Sample>>,
}

impl Gained {
    /// What came in for the service's two backends, by route in the order of `routes`; nothing without a
    /// canary.
    pub(super) fn between<'r>(
        (now, before): (&Counts, &Counts),
        service: &Service,
        roles: &Roles,
        routes: impl Iterator<Item = &'r Arc<str>>,
    ) -> Option<Self> {
        let stable = delta(now, before, (service, roles.stable(), Role::Stable));
        let canary = delta(now, before, (service, roles.canary()?, Role::Canary));
        let of = |arm: &Totals, route| sample(arm.routes.get(route).copied().unwrap_or_default());
        let routes = routes.map(|route| Arms { stable: of(&stable, route), canary: of(&canary, route) });
        Some(Self { routes: routes.collect(), arms: Arms { stable, canary } })
    }

    /// What came in for stable.
    pub(super) fn stable(&self) -> &Totals {
        &self.arms.stable
    }

    /// The same as a tick.
    pub(super) fn tell<T>(&self, to: impl FnOnce(&Tick<'_>) -> T) -> T {
        let Arms { stable, canary } = &self.arms;
        let latencies = (warm_latency(stable), warm_latency(canary));
        to(&Tick {
            stable: arm(stable, &latencies.0),
            canary: arm(canary, &latencies.1),
            routes: &self.routes,
        })
    }
}

/// Pairs of a request and its copy that ended between two readings.
pub(super) fn pairs((now, before): (&Counts, &Counts), service: &ServiceName) -> paired::Counts {
    let of = |counts: &Counts| {
        let Pairs { none, stable, canary, both, compared, slower } =
            counts.pairs.get(service).copied().unwrap_or_default();
        paired::Counts { none, stable, canary, both, timed: compared, slower }
    };
    of(now).since(&of(before))
}

fn arm<'l>(gained: &Totals, latency: &'l Histogram) -> ArmTick<'l> {
    let warming = gained.warming.as_ref().map(|warming| warming.counted).unwrap_or_default();
    let warm = Counted { requests: gained.requests(), failures: gained.failures }.since(warming);
    let Sample { requests, failures } = sample(warm);
    ArmTick { requests, failures, latency, warming: sample(warming) }
}

/// The latencies of endpoints that are not warming up.
fn warm_latency(gained: &Totals) -> Cow<'_, Histogram> {
    match &gained.warming {
        Some(warming) if warming.counted.requests > 0 => Cow::Owned(gained.latency.since(&warming.latency)),
        _ => Cow::Borrowed(&gained.latency),
    }
}

pub(super) fn sample(Counted { requests, failures }: Counted) -> Sample {
    Sample { requests, failures: failures.min(requests) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{model::outcome::Outcome, telemetry::reader::Share};

    #[test]
    fn what_is_warming_up_is_taken_out() {
        let mut gained = Totals::default();
        gained.outcomes[Outcome::Success.index()] = 8;
        gained.outcomes[Outcome::ServerError.index()] = 2;
        gained.failures = 2;
        let mut warming = Share { counted: Counted { requests: 3, failures: 1 }, ..Share::default() };
        for millis in 0..10 {
            let latency = Duration::from_millis(1 + millis);
            gained.latency.record(latency);
            if millis > 6 {
                warming.latency.record(latency);
            }
        }
        gained.warming = Some(Box::new(warming));
        let latency = warm_latency(&gained);
        let arm = arm(&gained, &latency);
        assert_eq!((arm.requests, arm.failures, arm.latency.total()), (7, 1, 7));
        assert_eq!(arm.warming, Sample { requests: 3, failures: 1 });
    }
}
