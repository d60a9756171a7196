//! Who is in trouble: the canary, or everybody?
//!
//! A database that is slow, a network that is cut: then both arms fail, and what is decided meanwhile
//! is decided about the database. Comparing within ticks already keeps an incident from being blamed on
//! the canary; here it is recognised, so that nothing is concluded from it and people are told.
//!
//! An arm is in trouble if it fails at least half its requests lately, or surely more than twice what is
//! usual for stable and one percentage point besides. "Surely" is Chernoff's bound (1952): a share of at
//! least `r` among `n` independent failures of probability `p` below `r` comes with probability at most
//! `exp(−n·KL(r ‖ p))`, here at most 1 in 100,000. What is usual is stable's rate over the ticks before,
//! each worth half as much after [`HALF_LIFE`] ticks; so trouble that stays becomes usual in the end.
//!
//! No promise rests on any of this: to hold back wrongly costs time, and never keeps the canary from
//! being rolled back.

use serde::{Deserialize, Serialize};

use super::{
    error_rate::Sample,
    verdict::{Arms, Incident, Scope},
};

/// How stable usually fares.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Usual {
    requests: f64,
    failures: f64,
}

impl Usual {
    /// Takes in a tick of stable that is no longer recent: an exponentially weighted sum, as in
    /// [`latency`](super::latency).
    pub(super) fn update(&mut self, stable: Sample) {
        let decay = (-1.0 / HALF_LIFE).exp2();
        let (requests, failures) = stable.units(1.0);
        // As with latency: what decays for ever ends as a denormal, which is slow.
        let kept = |value: f64| if value < 1e-12 { 0.0 } else { value * decay };
        self.requests = kept(self.requests) + requests;
        self.failures = kept(self.failures) + failures;
    }

    /// Stable's rate; nothing while it rests on too little.
    fn rate(self) -> Option<f64> {
        (self.requests >= LEAST).then(|| self.failures / self.requests)
    }

    /// Whether one arm fails more than is usual.
    fn is_exceeded_by(self, recent: Sample) -> bool {
        let Some(rate) = recent.rate() else { return false };
        let exceeds = |usual: f64| surely_above(recent, rate, (2.0 * usual + 0.01).min(1.0));
        rate >= 0.5 || self.rate().is_some_and(exceeds)
    }

    /// The trouble that is not the canary's alone, by what the arms did lately.
    pub(super) fn incident(self, recent: Arms<Sample>) -> Option<Incident> {
        let (stable, canary) = (recent.stable.rate()?, recent.canary.rate()?);
        if !self.is_exceeded_by(recent.stable) {
            return None;
        }
        let scope = if self.is_exceeded_by(recent.canary) {
            Scope::Both
        } else if surely_below(recent.canary, canary, stable) {
            Scope::StableOnly
        } else {
            return None;
        };
        Some(Incident { scope, stable, canary })
    }
}

/// By Chernoff's bound: see the head of this file. So is [`surely_below`].
fn surely_above(sample: Sample, rate: f64, limit: f64) -> bool {
    rate > limit && sample.requests as f64 * divergence(rate, limit) >= SURE
}

fn surely_below(sample: Sample, rate: f64, limit: f64) -> bool {
    rate < limit && sample.requests as f64 * divergence(rate, limit) >= SURE
}

/// KL(p ‖ q) of two Bernoulli distributions (Kullback & Leibler 1951); infinite where q excludes what p does not.
pub(super) fn divergence(p: f64, q: f64) -> f64 {
    let part = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    part(p, q) + part(1.0 - p, 1.0 - q)
}

/// ln 100,000.
const SURE: f64 = 11.512_925_464_970_229;

/// Ticks after which a tick of stable is worth half.
const HALF_LIFE: f64 = 120.0;

/// Requests of stable that what is usual must rest on.
const LEAST: f64 = 200.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests: u64, failures: u64) -> Sample {
        Sample { requests, failures }
    }

    /// After ten minutes at one failure in a thousand.
    fn usual() -> Usual {
        let mut usual = Usual::default();
        (0..600).for_each(|_| usual.update(sample(1_000, 1)));
        usual
    }

    fn scope(stable: Sample, canary: Sample) -> Option<Scope> {
        usual().incident(Arms { stable, canary }).map(|incident| incident.scope)
    }

    #[test]
    fn trouble_in_both_arms_is_nobodys_fault() {
        assert_eq!(scope(sample(9_000, 900), sample(1_000, 100)), Some(Scope::Both));
        assert_eq!(scope(sample(2, 1), sample(2, 2)), Some(Scope::Both));
    }

    #[test]
    fn trouble_in_stable_alone_is_seen_only_where_the_canary_is_surely_well() {
        assert_eq!(scope(sample(9_000, 900), sample(1_000, 1)), Some(Scope::StableOnly));
        assert_eq!(scope(sample(9_000, 900), sample(20, 0)), None);
    }

    #[test]
    fn what_the_canary_does_alone_is_no_incident() {
        assert_eq!(scope(sample(9_000, 9), sample(1_000, 500)), None);
        // A little more than usual is not trouble.
        assert_eq!(scope(sample(9_000, 60), sample(1_000, 9)), None);
    }

    #[test]
    fn trouble_that_stays_becomes_usual() {
        let mut usual = usual();
        (0..600).for_each(|_| usual.update(sample(1_000, 100)));
        assert_eq!(usual.incident(Arms { stable: sample(9_000, 900), canary: sample(1_000, 100) }), None);
    }

    #[test]
    fn little_is_no_habit() {
        let mut usual = Usual::default();
        usual.update(sample(100, 0));
        assert_eq!(usual.incident(Arms { stable: sample(100, 30), canary: sample(100, 30) }), None);
    }
}
