//! Where clients are pinned, the unit is the user: who failed for the first time, and where?
//!
//! Requests of one client go to one arm, so they are not drawn one by one. A client that makes a tenth of all
//! requests, and fails them whatever the version, would condemn the canary that it happens to be in. What is
//! drawn is its *slot*: the key's hash falls into one of 10,000, and at weight `w` the lowest `w` of them are
//! the canary's. So each slot counts once, when it first fails, in whichever arm; what it does later says
//! nothing.
//!
//! *Why that is a test.* The salt is new in each rollout, so each way to lay out the clients over the slots is
//! as likely as any other. Let failures not depend on the arm (the null at ρ = 1 and δ = 0). Then neither when
//! a slot's clients fail nor which of the past has been seen depends on where the slot is, among those that
//! have not failed. So if `fc` slots of the canary's and `fs` of stable's are *free*, not having failed before
//! the tick, whoever is next to fail for the first time is the canary's with probability `fc / (fc + fs)`, whatever
//! heavy clients, frail clients, hours of the day and changes of weight there are, and whoever shares a slot.
//! That is what [`error_rate`](super::error_rate) tests by, with `nc : ns = fc : fs`; several in one tick are
//! drawn without replacement, which only narrows their spread (Hoeffding 1963). For a score of the split it
//! does not matter how large `nc` and `ns` are together, except for δ, which is a share of requests; so
//! together they are the requests of the tick.
//!
//! *With a tolerance* the canary may fail a little more. Then those of its slots that fail easily are used
//! up sooner than stable's, and those that are left fail less than as many of stable's would: the null's bound
//! holds, with room to spare. First failures are also no more than failures, of which δ forgives a share.
//!
//! *In a tick in which the weight changes* some slots were stable's for a part of it. They are taken for the
//! canary's for all of it: too many free slots make its failures look like fewer, so that errs against rolling
//! back.
//!
//! *Requests that are not pinned* are drawn one by one and compared as ever; the two likelihood ratios are of
//! different draws, so their product is one.
//!
//! *Once half of all slots have failed*, few are left that could tell of a canary that turns bad later. So
//! they are counted anew, and one client is then one of thousands. But a client who always fails does so again,
//! on the side that is known by now. So in the k-th pass slots count for 1/k, as clusters of k do. The first
//! pass has a proof; for later ones this is a precaution, as a dispersion is.
//!
//! *Slow requests* are the same, with "slow" for "failed", by edges that were known before the tick; what
//! stable fails is slow, what the canary fails is not (see [`latency`](super::latency)).
//!
//! Deliberately by requests: non-inferiority, its intervals, limits and harm. A canary that fails the same clients
//! again and again has few first failures, and must not be promoted for it. That also takes more than one
//! lucky client: as many users as requests must have been seen on the canary, and before the last step the share
//! of them that is the canary's weight, since at 1 % there are a hundred only where there are 10,000. From `v` of `m` slots seen,
//! those are `m·ln(m / (m − v))` (linear counting: Whang, Vander-Zanden & Taylor 1990).

use serde::{Deserialize, Serialize};

use super::{
    Analysis, ArmTick,
    dispersion::Dispersion,
    error_rate::{Comparison, Sample},
    latency::Latency,
    verdict::{ArmUsers, Arms},
};
use crate::model::slots::SLOTS;

/// What is counted, and compared between the arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Each request, for each is drawn.
    #[default]
    Request,
    /// Each user, for clients are pinned.
    User,
}

/// What slots did in one tick.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// Those that failed.
    pub failed: Firsts,
    /// Those that had a slow request, at each of [`Quantile::ALL`](super::latency::Quantile::ALL), by the
    /// edges that were known before the tick.
    pub slow: [Firsts; 2],
    /// Those that failed on a route, in the order in which the tick has routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Firsts>,
    /// Those that have been seen in each arm since the rollout began.
    pub seen: Arms<Seen>,
}

/// Slots for which something was so for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firsts {
    /// Slots of each arm for which it had not been so before the tick.
    pub free: Arms<u64>,
    /// Those of them for which it was so in it.
    pub first: Arms<u64>,
    /// The requests that are not pinned, and those of them of which it was so.
    #[serde(default, skip_serializing_if = "is_none")]
    pub others: Arms<Sample>,
    /// The how manieth time slots are counted, from 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub pass: u32,
}

fn is_none(others: &Arms<Sample>) -> bool {
    *others == Arms::default()
}

fn is_first(pass: &u32) -> bool {
    *pass == 0
}

/// How many of an arm's slots have been seen in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Those that have.
    pub slots: u64,
    /// All that it has.
    pub of: u64,
}

impl Users {
    /// What stable's alone did, of those of its two halves.
    #[must_use]
    pub fn of_stable(&self) -> Self {
        let of = |firsts: &Firsts| {
            let Firsts { free, first, others, pass } = firsts;
            let alone = |arms: &Arms<u64>| Arms { canary: 0, ..*arms };
            let others = Arms { canary: Sample::default(), ..*others };
            Firsts { free: alone(free), first: alone(first), others, pass: *pass }
        };
        let seen = Arms { canary: Seen::default(), ..self.seen };
        let routes = self.routes.iter().map(of).collect();
        Self { failed: of(&self.failed), slow: self.slow.each_ref().map(of), routes, seen }
    }
}

impl Seen {
    /// About how many users those are; if all slots have been seen, at least.
    pub fn users(self) -> u64 {
        let (of, slots) = (self.of as f64, self.slots.min(self.of) as f64);
        // Half a slot is left, since it cannot be known how long ago the last one was. The cast saturates.
        if of > 0.0 { (of * (of / (of - slots).max(0.5)).ln()).round() as u64 } else { 0 }
    }

    /// Whether there is none that has not been seen.
    pub fn is_all(self) -> bool {
        self.of > 0 && self.slots >= self.of
    }
}

impl Firsts {
    /// Requests and failures as the comparison wants them: of slots, and of requests that are not pinned; out
    /// of so many requests, `dispersion` at a time.
    fn units(&self, requests: Arms<u64>, dispersion: f64) -> [Arms<(f64, f64)>; 2] {
        let Self { free, first, others, pass } = self;
        let pinned = |requests: u64, others: Sample| requests.saturating_sub(others.requests);
        let pinned = pinned(requests.stable, others.stable) + pinned(requests.canary, others.canary);
        let each = pinned as f64 / (free.stable + free.canary).max(1) as f64;
        let weight = 1.0 / (dispersion.max(1.0) * f64::from(pass + 1));
        let slots = |free: u64, first: u64| (free as f64 * each * weight, first.min(free) as f64 * weight);
        [
            Arms { stable: slots(free.stable, first.stable), canary: slots(free.canary, first.canary) },
            others.map(|others| others.units(dispersion)),
        ]
    }

    /// Stable's requests, and what counts of them.
    fn of_stable(&self, requests: u64) -> Sample {
        Sample { requests, failures: self.first.stable + self.others.stable.failures }
    }
}

/// What the failures of a comparison of users come by, which depends on stable as for requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Judge(Dispersion);

impl Judge {
    /// One that has seen nothing, where of requests this is known or estimated.
    pub(super) fn beside(requests: &Dispersion) -> Self {
        Self(requests.afresh())
    }

    /// Has a comparison take in a tick, of so many requests.
    pub(super) fn update(
        &mut self,
        comparison: &mut Comparison,
        firsts: &Firsts,
        requests: Arms<u64>,
        is_outage: bool,
    ) {
        comparison.update_parts(firsts.units(requests, self.0.factor()));
        self.learn(firsts, requests.stable, is_outage);
    }

    /// Takes in a tick of stable alone, unless something was down in it.
    pub(super) fn learn(&mut self, firsts: &Firsts, requests: u64, is_outage: bool) {
        if !is_outage {
            self.0.update(firsts.of_stable(requests));
        }
    }

    /// Goes on from what another one has seen.
    pub(super) fn take_over(&mut self, other: Self) {
        self.0.take_over(other.0);
    }
}

/// What is known of users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) judge: Judge,
    /// The most that were seen; a process that is started anew begins to look anew.
    seen: Arms<u64>,
    /// Requests of nobody who is recognised: each is as good as a user.
    others: Arms<u64>,
    all_seen: bool,
    /// Slots that are the canary's.
    slots: u64,
    first_failures: Arms<u64>,
    /// Whether they were what was counted in the last tick.
    counts: bool,
}

impl Known {
    pub(super) fn new(judge: Judge) -> Self {
        let (seen, others, first_failures) = Default::default();
        Self { judge, seen, others, all_seen: false, slots: 0, first_failures, counts: false }
    }

    fn count(&mut self, users: &Users) {
        let Users { failed, seen, .. } = users;
        let add = |sum: Arms<u64>, more: Arms<u64>| Arms {
            stable: sum.stable.saturating_add(more.stable),
            canary: sum.canary.saturating_add(more.canary),
        };
        self.seen.stable = self.seen.stable.max(seen.stable.users());
        self.seen.canary = self.seen.canary.max(seen.canary.users());
        self.others = add(self.others, failed.others.map(|others| others.requests));
        self.all_seen = seen.canary.is_all();
        self.slots = seen.canary.of;
        self.first_failures = add(self.first_failures, failed.first);
        self.first_failures = add(self.first_failures, failed.others.map(|others| others.failures));
        self.counts = true;
    }

    fn users(&self) -> Arms<u64> {
        Arms {
            stable: self.seen.stable.saturating_add(self.others.stable),
            canary: self.seen.canary.saturating_add(self.others.canary),
        }
    }
}

impl Analysis {
    /// Compares failure rates: of users where they are told of, else of requests, `dispersion` at a time.
    pub(super) fn compare(&mut self, samples: Arms<Sample>, users: Option<&Users>, dispersion: f64) {
        let Some(users) = users else {
            if let Some(known) = &mut self.users {
                known.counts = false;
            }
            return self.worse.update(samples, dispersion);
        };
        let judge = || Box::new(Known::new(Judge::beside(&self.dispersion)));
        let known = self.users.get_or_insert_with(judge);
        let (requests, is_outage) = (samples.map(|sample| sample.requests), samples.stable.is_outage());
        known.judge.update(&mut self.worse, &users.failed, requests, is_outage);
        known.count(users);
    }

    /// Takes in what users did in a tick of stable alone.
    pub(super) fn learn_of_users(&mut self, stable: &ArmTick<'_>, users: Option<&Users>) {
        if let Some(users) = users {
            let judge = || Box::new(Known::new(Judge::beside(&self.dispersion)));
            let known = self.users.get_or_insert_with(judge);
            let stable = stable.sample();
            known.judge.learn(&users.failed, stable.requests, stable.is_outage());
        }
    }

    /// The bucket of latencies above which requests of each arm are slow in the next tick, for each of
    /// [`Quantile::ALL`](super::latency::Quantile::ALL); nothing while too little is known.
    pub fn slow_above(&self) -> [Option<Arms<usize>>; 2] {
        self.latency.as_ref().map(Latency::edges_by_arm).unwrap_or_default()
    }

    /// How many users have been on the canary, and how many there must be, where that is more.
    pub(super) fn lacks_users(&self) -> Option<(u64, u64)> {
        let known = self.users.as_ref().filter(|known| known.counts && !known.all_seen)?;
        let share = if self.next_weight.is_some() { known.slots } else { u64::from(SLOTS) };
        let minimum = self.targets.minimum_requests.saturating_mul(share).div_ceil(u64::from(SLOTS));
        let users = known.users().canary;
        (users < minimum).then_some((users, minimum))
    }

    /// How many there were, where they are what is counted.
    pub(super) fn users(&self) -> Option<Arms<ArmUsers>> {
        let known = self.users.as_ref().filter(|known| known.counts)?;
        let (users, first_failures) = (known.users(), known.first_failures);
        Some(Arms {
            stable: ArmUsers { seen: users.stable, first_failures: first_failures.stable },
            canary: ArmUsers { seen: users.canary, first_failures: first_failures.canary },
        })
    }
}

#[cfg(test)]
mod tests;
