//! What has the canary cost, and how much may it still?
//!
//! Harm is what users lose to the rollout: requests that the canary failed, or had no endpoint for, and stable would
//! not have.
//! In a tick with `nc` canary requests of which `xc` failed, while stable failed a share `ps`, it is
//! estimated as `xc − nc·ps`. That is right on average in each tick, so the sum less the true harm is a
//! martingale, and (Doob's optional stopping) still right on average at the tick at which a rollout ends
//! because of it. A rollout is therefore rolled back when the sum reaches the budget, and its weight is
//! kept so low that no single tick can lead far beyond: the expected harm stays within the budget.
//!
//! A failure that was shielded, so that its user got stable's answer, is evidence and no harm: it is taken
//! off again. It never takes the sum below 0: what shields spare users is no credit for harm that is still to
//! come, and the sum is never below the estimate of the last paragraph.
//!
//! "So low" means: what is left lasts for [`LAG`] ticks even if the canary is as bad as can be, which is
//! the upper end of the interval of the difference. That is everything at first, before the first tick of the
//! canary's, for which [`Load`] is known of stable alone; and less with each tick that goes well, so the weight
//! that the budget allows rises by itself.
//!
//! The interval is of a canary that is the same throughout, as far as it differs from stable. So what is bounded is
//! the expected harm of a canary that is as bad as it has been. One that turns bad after a good beginning costs a tick
//! or two more, at the weight that it has by then, and is rolled back as soon as the budget is spent. A bound for
//! that as well would have to take each canary for one that is about to fail everything, and promote none.
//!
//! It is in force in the steps alone: in baking there is no stable any more whose failures could be taken off, and
//! limits are what is watched.
//!
//! The price: an estimate also wanders for a harmless canary, by about √(failures of the canary). A
//! budget that is not well above that ends rollouts by chance, which α does not bound; so there is none
//! unless somebody sets one.

use serde::{Deserialize, Serialize};

use super::{
    error_rate::Sample,
    evidence::Window,
    verdict::{Arms, Harm, Interval},
};
use crate::model::weight::Weight;

/// A rollout's budget, and what is spent of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Budget {
    budget: f64,
    spent: f64,
}

impl Budget {
    pub(super) fn new(budget: f64) -> Self {
        Self { budget, spent: 0.0 }
    }

    /// Takes in one tick by `xc − nc·ps`, those requests included that are compared with nothing or found no endpoint; `shielded` of the
    /// canary's failures, in this tick or just before it, were seen by nobody. `usual` is stable's failure
    /// rate so far, for a tick in which it had no request.
    pub(super) fn update(&mut self, tick: Arms<Sample>, shielded: u64, usual: f64) {
        let stable = tick.stable.rate().unwrap_or(usual);
        let (requests, failures) = tick.canary.units(1.0);
        let spent = self.spent + failures - requests * stable;
        self.spent = spent.min((spent - shielded as f64).max(0.0));
    }

    /// Whether nothing is left.
    pub(super) fn is_spent(&self) -> bool {
        self.spent >= self.budget
    }

    /// What is spent, and the weight that what is left allows: `rate` is how many requests both arms have
    /// in a tick, `difference` where the canary's failure rate less stable's may lie.
    pub(super) fn report(&self, rate: f64, difference: Option<Interval>) -> Harm {
        let worst = difference.map_or(1.0, |interval| interval.high).max(0.0);
        let lost = LAG * rate * worst;
        let share = if lost > 0.0 { ((self.budget - self.spent) / lost).clamp(0.0, 1.0) } else { 1.0 };
        let hundredths = (share * f64::from(Weight::FULL.hundredths())) as u16;
        let cap = Weight::from_hundredths(hundredths).unwrap_or(Weight::FULL);
        Harm { spent: self.spent, budget: self.budget, weight_cap: (rate > 0.0).then_some(cap) }
    }
}

/// How many requests both arms have in a tick that has any, lately. Ticks without are left out: a pause in traffic is
/// over at once, and what comes then is as much as before.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Load {
    ticks: u64,
    mean: f64,
}

impl Load {
    /// Takes in a tick with so many requests of both arms.
    pub(super) fn update(&mut self, requests: u64) {
        if requests > 0 {
            self.ticks = (self.ticks + 1).min(Window::TICKS);
            self.mean += (requests as f64 - self.mean) / self.ticks as f64;
        }
    }

    /// Their number in a tick; 0 before there was any.
    pub(super) fn rate(self) -> f64 {
        self.mean
    }

    /// Whether there was none yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.ticks == 0
    }
}

/// The most that a canary of which nothing is known yet may have of so many requests in a tick, if it may cost
/// `budget`.
pub fn first_cap(budget: f64, requests: f64) -> Option<Weight> {
    Budget::new(budget).report(requests, None).weight_cap
}

/// Ticks for which a bad canary goes on getting requests: one that shows it, and one in which what was
/// already under way ends.
const LAG: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(stable: (u64, u64), canary: (u64, u64)) -> Arms<Sample> {
        let sample = |(requests, failures)| Sample { requests, failures };
        Arms { stable: sample(stable), canary: sample(canary) }
    }

    #[test]
    fn only_what_stable_would_not_have_failed_is_harm() {
        let mut budget = Budget::new(10.0);
        budget.update(tick((900, 9), (100, 6)), 0, 0.0);
        assert_eq!(budget.spent, 5.0);
        budget.update(tick((0, 0), (100, 6)), 0, 0.02);
        assert_eq!(budget.spent, 9.0);
        assert!(!budget.is_spent());
        budget.update(tick((900, 0), (100, 1)), 0, 0.0);
        assert!(budget.is_spent());
        assert_eq!(budget.report(1_000.0, None).weight_cap, Some(Weight::ZERO));
    }

    #[test]
    fn what_nobody_saw_is_no_harm_and_no_credit() {
        let spent_after = |ticks: &[(u64, u64)]| {
            let mut budget = Budget::new(10.0);
            for (failures, shielded) in ticks {
                budget.update(tick((900, 0), (100, *failures)), *shielded, 0.0);
            }
            budget.spent
        };
        assert_eq!(spent_after(&[(6, 6), (6, 4)]), 2.0);
        // The answer in its place may come a tick later.
        assert_eq!(spent_after(&[(6, 0), (0, 6)]), 0.0);
        // More than was spent is not lent.
        assert_eq!(spent_after(&[(2, 9), (6, 0)]), 6.0);
        let mut budget = Budget::new(10.0);
        budget.update(tick((900, 90), (100, 2)), 2, 0.0);
        assert_eq!(budget.spent, -8.0, "a canary that is better is, with or without a shield");
    }

    #[test]
    fn the_cap_rises_with_what_is_known() {
        let budget = Budget::new(100.0);
        let cap = |high| {
            let difference = Some(Interval { low: -1.0, high });
            budget.report(1_000.0, difference).weight_cap.unwrap().percent()
        };
        // 100 requests are 5 % of two ticks, if all of them can fail.
        assert_eq!(budget.report(1_000.0, None).weight_cap.unwrap().percent(), 5.0);
        assert_eq!([cap(1.0), cap(0.1), cap(0.05), cap(-0.01)], [5.0, 50.0, 100.0, 100.0]);
        assert_eq!(budget.report(0.0, None).weight_cap, None);
    }

    #[test]
    fn a_pause_in_traffic_is_no_smaller_load() {
        let mut load = Load::default();
        assert!(load.is_unknown());
        load.update(100);
        (0..1_000).for_each(|_| load.update(0));
        assert_eq!(load.rate(), 100.0);
        (0..200).for_each(|_| load.update(50));
        assert!((load.rate() - 50.0).abs() < 1e-6, "{load:?}");
    }
}
