//! How many failures come together?
//!
//! A user who retries, a batch that fails as one, a pause that holds up fifty requests at once: such
//! failures are not independent, and each weighs more than it should. φ, the variance of a tick's
//! failures over what independent ones would have, says how much more. It is estimated from stable's
//! own ticks, because whatever the canary does is what is in question.
//!
//! Stable's failure rate moves in the course of a day, which must not be taken for clustering. So a
//! tick is only ever compared with the one before it: the mean square of successive differences (von
//! Neumann, Kent, Bellinson & Hart 1941), for counts of unequal numbers of requests. With `x` failures
//! of `n` in a tick and `x'` of `n'` in the one before, and a common rate `p`,
//!
//! `E (x·n' − x'·n)² / (n·n') = φ·p·(1 − p)·(n + n')`
//!
//! so φ is the sum of the left sides over that of `(x + x')·(1 − p̂)`, with `p̂` from both ticks. Ten
//! failures' worth of independence go in beforehand, lest a first pair of failures means φ = 2.
//!
//! Ticks in which stable fails half of its requests are left out by whoever tells of them: something is down
//! then, all that fails fails for one reason, and the two jumps of an outage would make φ thousands for good.
//!
//! Deliberately absent: clusters that last for several ticks, which successive ticks share and whose
//! difference therefore does not show. Whoever has such sets φ (`dispersion`).

use serde::{Deserialize, Serialize};

use super::error_rate::Sample;

/// How many failures come together; 1 where they are independent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dispersion {
    /// As somebody knows it: 1 or more.
    Known(f64),
    /// As stable's ticks show it.
    Estimated(Estimate),
}

/// What stable's ticks have shown.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    before: Sample,
    /// Sum of the squared differences.
    observed: f64,
    /// What that would be if failures were independent.
    expected: f64,
}

impl Dispersion {
    /// As it is known, or else to be estimated.
    pub fn new(known: Option<f64>) -> Self {
        known.map_or_else(|| Self::Estimated(Estimate::default()), Self::Known)
    }

    /// φ by the ticks so far, 1 or more.
    pub fn factor(&self) -> f64 {
        match self {
            Self::Known(factor) => factor.max(1.0),
            Self::Estimated(Estimate { observed, expected, .. }) => {
                ((PRIOR + observed) / (PRIOR + expected)).max(1.0)
            }
        }
    }

    /// The same before anything was seen.
    pub(super) fn afresh(&self) -> Self {
        match self {
            Self::Known(factor) => Self::Known(*factor),
            Self::Estimated(_) => Self::Estimated(Estimate::default()),
        }
    }

    /// Goes on from what another one has estimated, unless it is known.
    pub(super) fn take_over(&mut self, other: Self) {
        if let (Self::Estimated(mine), Self::Estimated(theirs)) = (self, other) {
            *mine = theirs;
        }
    }

    /// Takes in a tick of stable by the squared difference at the head of this file (von Neumann et al. 1941).
    pub fn update(&mut self, stable: Sample) {
        let Self::Estimated(Estimate { before, observed, expected }) = self else { return };
        if stable.requests == 0 {
            return;
        }
        let ((n, x), (n_before, x_before)) = (stable.units(1.0), before.units(1.0));
        *before = stable;
        if x + x_before > 0.0 && n_before > 0.0 {
            let difference = x * n_before - x_before * n;
            *observed += difference * difference / (n * n_before);
            *expected += (x + x_before) * (1.0 - (x + x_before) / (n + n_before));
        }
    }
}

/// Failures that are believed to be independent before any is seen.
const PRIOR: f64 = 10.0;

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// φ after ticks of 1,000 requests, of which clusters of `size` fail at a rate that may move.
    fn estimate(size: u64, ticks: u64, rate: impl Fn(u64) -> f64) -> f64 {
        let mut rng = StdRng::seed_from_u64(size);
        let mut dispersion = Dispersion::new(None);
        for tick in 0..ticks {
            let clusters = (0..1_000 / size).filter(|_| rng.random::<f64>() < rate(tick)).count() as u64;
            dispersion.update(Sample { requests: 1_000 / size * size, failures: size * clusters });
        }
        dispersion.factor()
    }

    /// In 2,000 ticks the estimate is within 10 % of the truth: its standard deviation is √(3/2000),
    /// 4 %, and 15 % of that are added by the rates' own.
    #[test]
    fn clusters_are_measured() {
        for (size, rate) in [(1, 0.01), (1, 0.5), (3, 0.01), (5, 0.3)] {
            let factor = estimate(size, 2_000, |_| rate);
            assert!((0.9..1.1).contains(&(factor / size as f64)), "{factor} for clusters of {size}");
        }
    }

    #[test]
    fn a_rate_that_moves_is_no_cluster() {
        let factor = estimate(1, 2_000, |tick| 0.02 + 0.015 * (tick as f64 / 300.0).sin());
        assert!(factor < 1.1, "{factor}");
        // An incident of three minutes is two jumps among hundreds of ticks: caution, but not for long.
        let factor = estimate(1, 600, |tick| if (200..380).contains(&tick) { 0.1 } else { 0.001 });
        assert!(factor < 2.0, "{factor}");
    }

    #[test]
    fn the_first_failures_are_not_taken_for_a_cluster() {
        let mut dispersion = Dispersion::new(None);
        for failures in [0, 3, 0, 0] {
            dispersion.update(Sample { requests: 500, failures });
        }
        assert!(dispersion.factor() < 2.0, "{}", dispersion.factor());
    }

    #[test]
    fn what_is_known_is_not_estimated() {
        let mut dispersion = Dispersion::new(Some(4.0));
        dispersion.update(Sample { requests: 100, failures: 50 });
        dispersion.update(Sample { requests: 100, failures: 0 });
        assert_eq!(dispersion.factor(), 4.0);
    }
}
