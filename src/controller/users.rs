//! Who failed for the first time between two readings, and what workers are to look for until the next.

use std::{collections::BTreeMap, sync::Arc};

use super::{Counts, service::ServiceTask};
use crate::{
    analysis::{
        error_rate::Sample,
        firsts::Once,
        users::{Seen, Unit, Users},
        verdict::Arms,
    },
    config::Service,
    model::{role::Role, slots::Slots, weight::Weight},
    rollout::phase::Phase,
    telemetry::{
        ledger::Hub,
        reader::{Mark, Marked, Others, Rules, UserTotals},
    },
};

/// Slots of a service whose unit is the user, as far as they have been counted.
#[derive(Debug)]
pub(super) struct Tracker {
    rules: Arc<Rules>,
    failed: Once,
    /// For each of [`Mark::SLOW`].
    slow: [Once; 2],
    routes: BTreeMap<Arc<str>, Once>,
    /// The canary's weight at the last reading.
    weight: Weight,
}

/// What users did between two readings.
#[derive(Debug)]
pub(super) struct Told {
    /// Of the two backends, or of stable alone.
    pub(super) arms: Users,
    /// Of stable's halves, the second in the canary's place, while it is split against itself.
    pub(super) halves: Option<Users>,
}

/// What is known of one arm's users.
#[derive(Debug, Default)]
struct Arm {
    marked: Marked,
    /// Requests that are not pinned, since the last reading.
    others: Others,
    /// The same for routes that are counted apart.
    routes: BTreeMap<Arc<str>, (Marked, Others)>,
}

impl Tracker {
    /// Of a service, if users are its unit.
    pub(super) fn of(service: &Service, hub: &Hub) -> Option<Self> {
        let counts = service.rollout.analysis.unit == Unit::User && service.roles.canary().is_some();
        counts.then(|| Self {
            rules: hub.users().of(&service.name),
            failed: Once::default(),
            slow: Default::default(),
            routes: BTreeMap::new(),
            weight: Weight::ZERO,
        })
    }

    /// Nobody has failed any more.
    fn restart(&mut self) {
        Mark::ALL.into_iter().for_each(|mark| self.rules.begin_anew(mark));
        (self.failed, self.slow, self.routes) = Default::default();
    }

    /// What came in for the arms, of which the canary has these slots; on routes in the order of `routes`.
    fn take(&mut self, arms: &Arms<Arm>, canary: &Slots, routes: &[Arc<str>]) -> Users {
        let none = (Marked::default(), Others::default());
        let of_route = |route| {
            let of = |arm: &Arm| arm.routes.get(route).unwrap_or(&none).clone();
            Arms { stable: of(&arms.stable), canary: of(&arms.canary) }
        };
        let routes = routes.iter().map(|name| {
            let Arms { stable, canary: other } = of_route(name);
            let others = Arms { stable: stable.1, canary: other.1 }.map(failures);
            let is_so =
                Arms { stable: &stable.0, canary: &other.0 }.map(|of| self.rules.slots(of, Mark::Failed));
            self.routes.entry(Arc::clone(name)).or_default().take(is_so.as_ref(), canary, others)
        });
        let routes = routes.collect();
        let is_so = |mark| Arms {
            stable: self.rules.slots(&arms.stable.marked, mark),
            canary: self.rules.slots(&arms.canary.marked, mark),
        };
        let others = Arms { stable: arms.stable.others, canary: arms.canary.others };
        let failed = self.failed.take(is_so(Mark::Failed).as_ref(), canary, others.map(failures));
        let slow = [0, 1].map(|at| {
            let slow = |others: Others| Sample { requests: others.timed, failures: others.slow[at] };
            self.slow[at].take(is_so(Mark::SLOW[at]).as_ref(), canary, others.map(slow))
        });
        let Arms { stable, canary: other } = is_so(Mark::Seen);
        let seen = Arms {
            stable: Seen { slots: stable.without(canary).count(), of: Slots::all().without(canary).count() },
            canary: Seen { slots: other.and(canary).count(), of: canary.count() },
        };
        self.count_anew();
        Users { failed, slow, routes, seen }
    }

    /// Where few slots are left, they are counted anew from now on.
    fn count_anew(&mut self) {
        if self.failed.is_half_used() {
            self.failed.count_anew();
            self.routes.values_mut().for_each(Once::count_anew);
            self.rules.begin_anew(Mark::Failed);
        }
        for (once, mark) in self.slow.iter_mut().zip(Mark::SLOW).filter(|(once, _)| once.is_half_used()) {
            once.count_anew();
            self.rules.begin_anew(mark);
        }
    }
}

impl ServiceTask {
    /// What users did in a tick, where they are the unit.
    pub(super) fn told_of_users(&mut self, phase: &Phase) -> Option<Told> {
        let is_halved = self.aa_test.is_some();
        let tracker = self.users.as_mut()?;
        // Where it has become less, what is under way is of what it was; where more, see `analysis::users`.
        let widest = self.weight.max(std::mem::replace(&mut tracker.weight, self.weight));
        if matches!(phase, Phase::Baking { .. }) {
            return None;
        }
        let of = |counts: &Counts, backend, role| {
            counts.users.get(&(self.config.name.clone(), backend, role)).cloned().unwrap_or_default()
        };
        let between = |backend: &_, role| {
            let backend = |counts| of(counts, Clone::clone(backend), role);
            (backend(&*self.now), backend(&*self.before))
        };
        let stable = between(self.roles.stable(), Role::Stable);
        if is_halved {
            let half = |at: usize| {
                let of = |totals: &UserTotals| totals.halves[at].clone();
                Arm::between((of(&stable.0), of(&stable.1)), BTreeMap::new())
            };
            let halves = tracker.take(&Arms { stable: half(0), canary: half(1) }, &Slots::odd(), &[]);
            return Some(Told { arms: halves.of_stable(), halves: Some(halves) });
        }
        let canary = self.roles.canary().map(|canary| between(canary, Role::Canary)).unwrap_or_default();
        let arms = Arms { stable: Arm::of(stable), canary: Arm::of(canary) };
        let routes: Vec<_> = self.analysis.routes_told().cloned().collect();
        Some(Told { arms: tracker.take(&arms, &Slots::below(widest), &routes), halves: None })
    }

    /// Another rollout, or test, begins.
    pub(super) fn restart_users(&mut self) {
        if let Some(tracker) = &mut self.users {
            tracker.restart();
        }
    }

    /// Tells workers which requests are slow, by all that is known by now.
    pub(super) fn tell_what_is_slow(&self) {
        let Some(tracker) = &self.users else { return };
        let edges = match &self.aa_test {
            Some(test) => test.slow_above(),
            None => self.analysis.slow_above(),
        };
        tracker.rules.set_edges(Role::Stable, edges.map(|edge| edge.map(|arms| arms.stable)));
        tracker.rules.set_edges(Role::Canary, edges.map(|edge| edge.map(|arms| arms.canary)));
    }

    /// Counts users from now on, if they are the unit by the configuration, and else no more.
    pub(super) fn count_users(&mut self) {
        let counted = Tracker::of(&self.config, &self.hub);
        if self.users.is_some() != counted.is_some() {
            self.users = counted;
        }
    }
}

impl Arm {
    fn of((now, before): (UserTotals, UserTotals)) -> Self {
        let since = |(name, (marked, others)): (&Arc<str>, &(Marked, Others))| {
            let earlier = before.routes.get(name).map(|(_, others)| *others).unwrap_or_default();
            (Arc::clone(name), (marked.clone(), others.since(&earlier)))
        };
        let routes = now.routes.iter().map(since).collect();
        Self::between((now.all(), before.all()), routes)
    }

    fn between(
        ((marked, now), (_, before)): ((Marked, Others), (Marked, Others)),
        routes: BTreeMap<Arc<str>, (Marked, Others)>,
    ) -> Self {
        Self { marked, others: now.since(&before), routes }
    }
}

fn failures(others: Others) -> Sample {
    Sample { requests: others.requests, failures: others.failures }
}
