//! What came in between two readings, as the analysis wants it.

use std::{borrow::Cow, sync::Arc};

use super::{Counts, service::delta};
use crate::{
    analysis::{ArmTick, Sent, Tick, error_rate::Sample, paired, users::Users, verdict::Arms},
    config::Service,
    model::{
        histogram::Histogram,
        name::ServiceName,
        role::{Role, Roles},
    },
    telemetry::reader::{Counted, Pairs, RetryTotals, Share, Totals},
};

/// What came in between two readings.
pub(super) struct Gained {
    arms: Arms<Totals>,
    evidence: Evidence,
    routes: Vec<Arms<Sample>>,
    /// What users did, where they are compared.
    users: Option<Users>,
    /// Failures of the canary that were shielded.
    shielded: u64,
}

/// Which requests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Those for which the role was drawn.
    Drawn,
    /// All: nobody comes to the canary by chance, so whoever is sent there is all there is.
    All,
}

impl Gained {
    /// What came in for the service's two backends, and which of it is evidence, by route in the order of
    /// `routes`; nothing without a canary.
    pub(super) fn between<'r>(
        (now, before): (&Counts, &Counts),
        service: &Service,
        roles: &Roles,
        (evidence, routes): (Evidence, impl Iterator<Item = &'r Arc<str>>),
    ) -> Option<Self> {
        let stable = delta(now, before, (service, roles.stable(), Role::Stable));
        let canary = delta(now, before, (service, roles.canary()?, Role::Canary));
        let of = |arm: &Totals, route| {
            let mut counted = arm.routes.get(route).copied().unwrap_or_default();
            if evidence == Evidence::All {
                counted.add(arm.sent_routes.get(route).copied().unwrap_or_default());
            }
            sample(counted)
        };
        let routes = routes.map(|route| Arms { stable: of(&stable, route), canary: of(&canary, route) });
        let spared = |counts: &Counts| counts.retries.get(&service.name).map_or(0, RetryTotals::spared);
        let shielded = spared(now).saturating_sub(spared(before));
        Some(Self {
            routes: routes.collect(),
            users: None,
            evidence,
            shielded,
            arms: Arms { stable, canary },
        })
    }

    /// The same with what users did. Those who are sent to the canary are compared by requests.
    pub(super) fn by_users(self, users: Option<Users>) -> Self {
        Self { users: users.filter(|_| self.evidence == Evidence::Drawn), ..self }
    }

    /// What came in for stable.
    pub(super) fn stable(&self) -> &Totals {
        &self.arms.stable
    }

    /// The same as a tick.
    pub(super) fn tell<T>(&self, to: impl FnOnce(&Tick<'_>) -> T) -> T {
        let Arms { stable, canary } = &self.arms;
        let (stable, canary) = (Arm::of(stable, self.evidence), Arm::of(canary, self.evidence));
        let canary = ArmTick { shielded: self.shielded, ..canary.tick() };
        to(&Tick { stable: stable.tick(), canary, routes: &self.routes, users: self.users.as_ref() })
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

/// What came in for one arm, by what is made of it.
struct Arm<'t> {
    compared: Sample,
    latency: Cow<'t, Histogram>,
    warming: Sample,
    sent: Option<(Sample, Cow<'t, Histogram>)>,
    unserved: u64,
}

impl<'t> Arm<'t> {
    fn of(gained: &'t Totals, evidence: Evidence) -> Self {
        let any = |share: &'t Option<Box<Share>>| share.as_deref().filter(|share| share.counted.requests > 0);
        let warming = any(&gained.warming);
        let sent = any(&gained.sent).filter(|_| evidence == Evidence::Drawn);
        let mut compared = Counted { requests: gained.requests(), failures: gained.failures };
        let mut latency = gained.answered();
        for apart in [warming, sent].into_iter().flatten() {
            compared = compared.since(apart.counted);
            latency = Cow::Owned(latency.since(&apart.answered()));
        }
        let warming = warming.map(|warming| sample(warming.counted)).unwrap_or_default();
        let sent = sent.map(|sent| (sample(sent.counted), sent.answered()));
        Self { compared: sample(compared), latency, warming, sent, unserved: gained.unserved }
    }

    fn tick(&self) -> ArmTick<'_> {
        let Sample { requests, failures } = self.compared;
        let sent = self.sent.as_ref().map(|(sample, latency)| Sent { sample: *sample, latency });
        ArmTick {
            warming: self.warming,
            sent,
            unserved: self.unserved,
            ..ArmTick::new(requests, failures, &self.latency)
        }
    }
}

fn sample(Counted { requests, failures }: Counted) -> Sample {
    Sample { requests, failures: failures.min(requests) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{model::outcome::Outcome, telemetry::reader::Share};

    #[test]
    fn what_is_warming_up_or_was_sent_is_taken_out() {
        let mut gained = Totals::default();
        gained.outcomes[Outcome::Success.index()] = 8;
        gained.outcomes[Outcome::ServerError.index()] = 2;
        (gained.failures, gained.unserved) = (2, 3);
        gained.failed_latency.record(Duration::from_millis(6));
        gained.failed_latency.record(Duration::from_millis(8));
        let share =
            |requests, failures| Share { counted: Counted { requests, failures }, ..Share::default() };
        let (mut warming, mut sent) = (share(3, 1), share(2, 1));
        for millis in 0..10 {
            let latency = Duration::from_millis(1 + millis);
            gained.latency.record(latency);
            match millis {
                0..5 => {}
                5..7 => sent.latency.record(latency),
                _ => warming.latency.record(latency),
            }
        }
        sent.failed_latency.record(Duration::from_millis(6));
        warming.failed_latency.record(Duration::from_millis(8));
        (gained.warming, gained.sent) = (Some(Box::new(warming)), Some(Box::new(sent)));
        let arm = Arm::of(&gained, Evidence::Drawn);
        let tick = arm.tick();
        assert_eq!((tick.requests, tick.failures, tick.latency.total()), (5, 0, 5));
        assert_eq!(tick.unserved, 3);
        assert_eq!(tick.warming, Sample { requests: 3, failures: 1 });
        let sent = tick.sent.unwrap();
        assert_eq!((sent.sample, sent.latency.total()), (Sample { requests: 2, failures: 1 }, 1));
        // Where nobody else comes.
        let arm = Arm::of(&gained, Evidence::All);
        let tick = arm.tick();
        assert_eq!((tick.requests, tick.failures, tick.latency.total()), (7, 1, 6));
        assert!(tick.sent.is_none());
    }
}
