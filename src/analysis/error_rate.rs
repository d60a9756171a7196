//! Does the canary fail more often than stable? A comparison of two arms that share their ticks.
//!
//! In each tick `nc` canary requests end, `xc` of them in failure; likewise `ns` and `xs` in
//! stable. Where an arm's failures are near Poisson, the split of a tick's failures between the arms
//! tells the ratio of their rates, whatever the rate itself is in that tick (Lindon & Malek 2022;
//! Lindon et al. 2024). Comparing within the tick is what makes a moving base rate, an incident that
//! hits both arms and a change of the weight harmless: no hour is ever compared with another.
//!
//! The null hypothesis leaves room for differences that do not matter: in no tick is the canary's
//! failure rate above ρ·(stable's + δ). Against it, the alternative "`g` times worse than that"
//! scores a tick with the likelihood ratio of the split, charged for the failures that δ forgives.
//! With `q = ρ·nc / (ρ·nc + ns)`, the share of all failures that the canary would have at the
//! boundary for δ = 0, and `d = ln(1 + (g − 1)·q)`, that is
//!
//! `ln LR(g) = xc·ln g − (xc + xs + ns·δ)·d`
//!
//! *Its mean is at most 1.* Write `b = exp(−d)` and `a = g·b`, so that a canary failure multiplies
//! LR by `a`, a stable one by `b`, and `ρ·nc·(a − 1) = ns·(1 − b)`. A Bernoulli failure of
//! probability `p` multiplies the mean by `1 + p·(a − 1) ≤ exp(p·(a − 1))`, so LR's mean is at most
//! `exp(nc·pc·(a − 1) − ns·ps·(1 − b))·b^(ns·δ)`. Under the null the first factor is at most
//! `exp(ns·δ·(1 − b))`, and the second at most `exp(−ns·δ·(1 − b))`, since `ln b ≤ b − 1`. Drawing
//! requests without replacement only narrows their spread (Hoeffding 1963).
//!
//! With `g` below 1 the same steps give evidence against the reverse hypothesis, that the canary
//! fails *at least* so often: non-inferiority, which a promotion asks for.
//!
//! *Failures that come together*, such as the retries of one user, are not independent. Where each
//! comes `φ` at a time, the clusters are, and dividing every count by φ counts those; so that is what
//! a tick does. [`dispersion`](super::dispersion) says where φ comes from; whatever it is, it has to
//! be known before the tick.
//!
//! Absent on purpose: an arm without requests in a tick says nothing about the other in that tick,
//! and no attempt is made to compare it with a neighbouring one.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{logarithm::ln_1p, mixture::Mixture, verdict::Arms};

/// Requests that ended, and how many of them failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Requests that ended.
    pub requests: u64,
    /// Those of them that failed; where more are given, as many as there are requests.
    pub failures: u64,
}

impl Sample {
    /// The share of requests that failed, 0 to 1; nothing where there was no request.
    pub fn rate(self) -> Option<f64> {
        (self.requests > 0).then(|| self.failures.min(self.requests) as f64 / self.requests as f64)
    }

    /// Whether there was no request.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Whether there were requests and at least half of them failed.
    pub fn in_trouble(self) -> bool {
        self.rate().is_some_and(|rate| rate >= 0.5)
    }

    /// Whether there were enough requests to say so, and at least half of them failed: then something is down,
    /// which says nothing about how failures usually come.
    pub(super) fn is_outage(self) -> bool {
        self.requests >= OUTAGE && self.in_trouble()
    }

    /// Requests and failures in units of `dispersion` of them, 1 or more.
    pub(super) fn units(self, dispersion: f64) -> (f64, f64) {
        let units = |count: u64| count as f64 / dispersion.max(1.0);
        (units(self.requests), units(self.failures.min(self.requests)))
    }

    /// Counts `other` in, up to the largest number there is.
    pub fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
    }
}

/// Requests of which half fail in an outage; of fewer it may be one user with retries.
const OUTAGE: u64 = 20;

/// Which way a [`Comparison`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Evidence that the canary fails more often than it may.
    Worse,
    /// Evidence that the canary fails less often than it may at most.
    Better,
}

impl Direction {
    pub(super) fn grid(self) -> &'static [Alternative; ALTERNATIVES] {
        match self {
            Self::Worse => &WORSE,
            Self::Better => &BETTER,
        }
    }
}

/// How far apart the two arms' failure rates may be: the canary's at most `ratio` times stable's
/// raised by `absolute`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Margin {
    /// ρ: over 0.
    pub ratio: f64,
    /// δ: a share of requests, 0 or more.
    pub absolute: f64,
}

/// Evidence about the canary's failure rate beside stable's, tick by tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    direction: Direction,
    margin: Margin,
    mixture: Mixture<ALTERNATIVES>,
}

impl Comparison {
    /// Evidence that the canary is worse than `margin` allows, be it from the beginning or from
    /// later on; `planned` is the number of later starts that the rollout is expected to have, at
    /// least 1.
    pub fn worse(margin: Margin, planned: u64) -> Self {
        Self { direction: Direction::Worse, margin, mixture: Mixture::restarting(planned) }
    }

    /// Evidence that the canary is better than `margin` allows: non-inferior to stable. It counts
    /// from the beginning only, so that a bad start cannot be forgotten.
    pub fn better(margin: Margin) -> Self {
        Self { direction: Direction::Better, margin, mixture: Mixture::from_now_on() }
    }

    /// Takes in one tick, whose failures come `dispersion` at a time; 1 or more.
    pub fn update(&mut self, tick: Arms<Sample>, dispersion: f64) {
        self.mixture.update(&self.log_ratios(tick.map(|sample| sample.units(dispersion))));
    }

    /// Takes in one tick in two parts that are drawn apart from each other: requests and failures, by units.
    pub(super) fn update_parts(&mut self, parts: [Arms<(f64, f64)>; 2]) {
        let [one, other] = parts.map(|units| self.log_ratios(units));
        self.mixture.update(&std::array::from_fn(|k| one[k] + other[k]));
    }

    /// Natural logarithm of the e-value so far.
    pub fn log_e(&self) -> f64 {
        self.mixture.log_e()
    }

    /// Something that is at least as much, for less than that costs.
    pub(super) fn ceiling(&self) -> f64 {
        self.mixture.ceiling()
    }

    /// The tick's ln LR(g) for every alternative: see the head of this file.
    fn log_ratios(&self, units: Arms<(f64, f64)>) -> [f64; ALTERNATIVES] {
        let Arms { stable: (ns, xs), canary: (nc, xc) } = units;
        if ns == 0.0 || nc == 0.0 {
            return [0.0; ALTERNATIVES];
        }
        let charged = xc + xs + ns * self.margin.absolute;
        if charged == 0.0 {
            return [0.0; ALTERNATIVES];
        }
        let q = self.margin.ratio * nc / (self.margin.ratio * nc + ns);
        let grid = self.direction.grid();
        // Both terms stay finite as q nears 0 or 1, unlike the logarithms of q and 1 − q.
        let logarithms: [f64; ALTERNATIVES] = ln_1p(&std::array::from_fn(|k| grid[k].excess * q));
        std::array::from_fn(|k| xc * grid[k].log - charged * logarithms[k])
    }
}

/// How many times worse than the boundary the canary may be.
pub(super) struct Alternative {
    /// ln g.
    pub(super) log: f64,
    /// g − 1.
    pub(super) excess: f64,
}

/// `g` from `low` to `high`, evenly spaced in the logarithm.
fn grid(low: f64, high: f64) -> [Alternative; ALTERNATIVES] {
    std::array::from_fn(|k| {
        let log = low.ln() + (high.ln() - low.ln()) * k as f64 / (ALTERNATIVES - 1) as f64;
        Alternative { log, excess: log.exp_m1() }
    })
}

/// Alternatives to each side: neighbours on the grid are 34 % apart, and one that is off by so
/// little finds a difference nearly as fast as the right one would.
pub const ALTERNATIVES: usize = 24;

/// From a quarter worse, below which few would act, to a thousand times, which is a stable arm
/// with one failure in a thousand against a canary that answers nothing.
static WORSE: LazyLock<[Alternative; ALTERNATIVES]> = LazyLock::new(|| grid(1.25, 1000.0));

/// From a thousandth of the boundary to just below it.
static BETTER: LazyLock<[Alternative; ALTERNATIVES]> = LazyLock::new(|| grid(0.001, 0.8));
