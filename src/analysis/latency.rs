//! Is the canary slower than stable? Asked of failure rates, by a choice of what "slow" means.
//!
//! Let Q be stable's quantile over the ticks *before* this one. A stable request is slow above Q, a
//! canary request above (1 + margin)·Q. If the canary is at most so much slower, its slow share is
//! at most stable's, whatever Q is: the null hypothesis of [`error_rate`](super::error_rate) with ρ
//! = 1 and δ = 0. Q comes from the past alone, so the evidence keeps its guarantee while latency
//! drifts; a poor Q costs speed, never correctness. To count who lies beyond the other arm's quantile is the
//! control-median test (Gart, *A median test with sequential application*, Biometrika 1963), here with a margin
//! and for each quantile.
//!
//! Q is the upper edge of a bucket, and the margin is a number of buckets rounded up, so a canary
//! just within the margin is never called slow for lack of resolution. With [`PER_DOUBLING`] buckets to a
//! doubling (log-linear, as in `model::histogram`), 1 + margin is ⌈[`PER_DOUBLING`] · log₂(1 + margin)⌉ of them.
//!
//! A request that failed has no time to compare: one that fails at once was not fast. Leaving failures out
//! of both arms would compare only what each got through, and those are not the same requests: where stable
//! fails just what is slow, a canary that answers it would look slower. So a failure of stable counts as
//! slow, for it took for ever, and one of the canary as not slow, for it is the error rate's to judge. Then
//! the null hypothesis holds whenever no request that the canary answers takes over 1 + margin times what
//! it takes stable, whoever fails what, and neither a stable that is down nor a failure within its own
//! tolerance makes a canary slow.
//!
//! Slow requests come together more than failures do, since whatever holds up one holds up its
//! neighbours. Each quantile therefore has a [`Dispersion`] of its own.

use serde::{Deserialize, Serialize};

use super::{
    dispersion::Dispersion,
    error_rate::{Comparison, Margin, Sample},
    interval::Difference,
    settings::Settings,
    users::{Firsts, Judge, Users},
    verdict::{Arms, Interval},
};
use crate::model::histogram::{BLOCK, BUCKETS, Histogram, PER_DOUBLING};

/// The quantiles that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantile {
    /// The median.
    P50,
    /// The 99th percentile.
    P99,
}

impl Quantile {
    /// Both.
    pub const ALL: [Self; 2] = [Self::P50, Self::P99];

    /// The share of requests below the quantile, 0 to 1.
    pub const fn level(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P99 => 0.99,
        }
    }
}

/// Evidence that the canary is slower than stable by more than a margin, at the median and at the
/// 99th percentile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Stable's requests by bucket, each worth half as much after [`HALF_LIFE`] ticks.
    weights: Vec<f64>,
    /// The buckets of which any ever had one: from the first to before the second.
    used: (usize, usize),
    /// Buckets between stable's edge and the canary's.
    shift: usize,
    /// In the order of [`Quantile::ALL`].
    slower: [Slower; 2],
}

/// What is known of stable's latencies before the canary gets anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Learned {
    /// The bucket of the first weight.
    first: usize,
    weights: Vec<f64>,
    /// In the order of [`Quantile::ALL`].
    dispersion: [Dispersion; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<[Judge; 2]>,
}

/// The evidence at one quantile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slower {
    comparison: Comparison,
    difference: Option<Difference>,
    dispersion: Dispersion,
    /// Of users, where they are what is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<Judge>,
    /// Canary requests that were compared.
    compared: u64,
}

impl Latency {
    /// A comparison that lets the canary be slower by `margin`, a share over 0; `planned` is the
    /// number of later starts that the rollout is expected to have, at least 1.
    pub fn new(margin: f64, planned: u64, dispersion: Dispersion) -> Self {
        let equal = Margin { ratio: 1.0, absolute: 0.0 };
        let slower = || Slower {
            comparison: Comparison::worse(equal, planned),
            difference: Some(Difference::default()),
            dispersion,
            users: None,
            compared: 0,
        };
        Self {
            weights: vec![0.0; BUCKETS],
            used: (BUCKETS, 0),
            shift: ((1.0 + margin).log2() * PER_DOUBLING as f64).ceil() as usize,
            slower: [slower(), slower()],
        }
    }

    /// The one that settings ask for, if they do.
    pub(super) fn of(settings: &Settings, planned: u64) -> Option<Self> {
        let dispersion = Dispersion::new(settings.dispersion);
        settings.latency_margin.map(|margin| Self::new(margin, planned, dispersion))
    }

    /// Keeps no intervals, which nothing is decided by.
    pub(super) fn drop_intervals(&mut self) {
        self.slower.iter_mut().for_each(|slower| slower.difference = None);
    }

    /// Takes in one tick: the latencies of what each arm answered in it, how many requests it failed, and the users
    /// for whom it was slow, where they are what is counted.
    pub fn update(&mut self, latencies: Arms<&Histogram>, failures: Arms<u64>, users: Option<&Users>) {
        let Arms { stable, canary } = latencies;
        let edges = self.edges();
        for (place, (slower, edge)) in self.slower.iter_mut().zip(edges).enumerate() {
            let users = users.map(|users| &users.slow[place]);
            match edge {
                Some(edge) => {
                    let tick = Arms { stable: slow(stable, edge), canary: slow(canary, edge + self.shift) };
                    slower.update(tick, failures, users);
                }
                None => slower.update(Arms::default(), Arms::default(), users),
            }
        }
        self.remember(stable);
    }

    /// The bucket that holds stable's quantile by the ticks so far; nothing while they weigh less
    /// than [`LEAST`] requests.
    pub fn edge(&self, quantile: Quantile) -> Option<usize> {
        self.edges()[quantile as usize]
    }

    /// The bucket above which each arm's requests are slow in the next tick, for each of [`Quantile::ALL`];
    /// nothing while too little is known.
    pub(super) fn edges_by_arm(&self) -> [Option<Arms<usize>>; 2] {
        self.edges().map(|edge| edge.map(|stable| Arms { stable, canary: stable + self.shift }))
    }

    /// Natural logarithm of the e-value at one quantile so far.
    pub fn log_e(&self, quantile: Quantile) -> f64 {
        self.slower[quantile as usize].comparison.log_e()
    }

    /// Something that is at least as much at both, for less than that costs.
    pub(super) fn ceiling(&self) -> f64 {
        self.slower.iter().map(|slower| slower.comparison.ceiling()).fold(0.0, f64::max)
    }

    /// How many more of the canary's requests are slow than of stable's, as a share.
    pub(super) fn interval(&self, quantile: Quantile) -> Option<Interval> {
        self.slower[quantile as usize].difference.as_ref().and_then(Difference::interval)
    }

    /// Canary requests that were compared.
    pub(super) fn compared(&self, quantile: Quantile) -> u64 {
        self.slower[quantile as usize].compared
    }

    /// Takes in a tick of stable alone, before the canary gets anything: only what is usual is learned.
    pub(super) fn learn(&mut self, stable: &Histogram, failures: u64, users: Option<&Users>) {
        let edges = self.edges();
        for (place, (slower, edge)) in self.slower.iter_mut().zip(edges).enumerate() {
            let tick =
                edge.map(|edge| with_failures(slow(stable, edge), failures, failures)).unwrap_or_default();
            slower.learn(tick, failures);
            if let Some(users) = users {
                let is_outage = is_outage(tick, failures);
                slower.judge().learn(&users.slow[place], tick.requests, is_outage);
            }
        }
        self.remember(stable);
    }

    /// What is known of stable so far.
    pub(super) fn learned(&self) -> Learned {
        let first = self.used.0.min(self.used.1);
        Learned {
            first,
            weights: self.weights[first..self.used.1].to_vec(),
            dispersion: self.slower.each_ref().map(|slower| slower.dispersion),
            users: match self.slower.each_ref().map(|slower| slower.users) {
                [Some(one), Some(other)] => Some([one, other]),
                _ => None,
            },
        }
    }

    /// Goes on from what is known of stable.
    pub(super) fn take_over(&mut self, learned: &Learned) {
        let Learned { first, weights, dispersion, users } = learned;
        let of_bucket = |(bucket, _): (usize, &f64)| bucket < BUCKETS;
        if weights.is_empty() || !(*first..).zip(weights).all(of_bucket) {
            return;
        }
        self.used = (*first, first + weights.len());
        self.weights.fill(0.0);
        self.weights[*first..first + weights.len()].copy_from_slice(weights);
        for (slower, dispersion) in self.slower.iter_mut().zip(dispersion) {
            slower.dispersion.take_over(*dispersion);
        }
        for (slower, judge) in self.slower.iter_mut().zip(users.iter().flatten()) {
            slower.judge().take_over(*judge);
        }
    }

    /// The first bucket up to which a quantile's share of all weight lies, for each quantile: the inverse of the
    /// weighted empirical distribution.
    fn edges(&self) -> [Option<usize>; 2] {
        let used = self.weights.get(self.used.0..self.used.1).unwrap_or_default();
        // By blocks first, because a sum of many that waits for each of them takes long.
        let mut sums = [0.0; BUCKETS.div_ceil(BLOCK)];
        for (block, weights) in sums.iter_mut().zip(used.chunks(BLOCK)) {
            *block = sum(weights);
        }
        let total: f64 = sums.iter().sum();
        if total < LEAST {
            return [None; 2];
        }
        Quantile::ALL.map(|quantile| {
            let level = quantile.level() * total;
            let (mut seen, mut block) = (0.0, 0);
            while block + 1 < used.len().div_ceil(BLOCK) && seen + sums[block] < level {
                seen += sums[block];
                block += 1;
            }
            let is_enough = |weight: &f64| {
                seen += weight;
                seen >= level
            };
            let within = used.chunks(BLOCK).nth(block)?;
            let last = within.iter().position(is_enough).unwrap_or(within.len() - 1);
            Some(self.used.0 + block * BLOCK + last)
        })
    }

    /// Adds a tick to what came before, which is worth `2^(−1/HALF_LIFE)` of what it was: an exponentially weighted
    /// sum (Roberts, *Control chart tests based on geometric moving averages*, Technometrics 1959).
    fn remember(&mut self, stable: &Histogram) {
        let decay = (-1.0 / HALF_LIFE).exp2();
        let fade = |weight: &mut f64, gained: f64| {
            let kept = *weight * decay;
            // A trillionth of a request decides nothing, and what decays further ends as a
            // denormal, which is slow.
            *weight = if kept < 1e-12 { 0.0 } else { kept } + gained;
        };
        let (first, counts) = stable.used();
        if !counts.is_empty() {
            self.used = (self.used.0.min(first), self.used.1.max(first + counts.len()));
        }
        let used = self.used.0.min(self.used.1)..self.used.1;
        let Some(weights) = self.weights.get_mut(used.clone()) else { return };
        // Those before what came, those of it, and those after it.
        let before = first.clamp(used.start, used.end) - used.start;
        let (before, weights) = weights.split_at_mut(before);
        let (with, after) = weights.split_at_mut(counts.len().min(weights.len()));
        before.iter_mut().chain(after).for_each(|weight| fade(weight, 0.0));
        with.iter_mut().zip(counts).for_each(|(weight, count)| fade(weight, *count as f64));
    }
}

impl Slower {
    fn judge(&mut self) -> &mut Judge {
        self.users.get_or_insert_with(|| Judge::beside(&self.dispersion))
    }

    fn update(&mut self, answered: Arms<Sample>, failures: Arms<u64>, users: Option<&Firsts>) {
        let factor = self.dispersion.factor();
        let tick = Arms {
            stable: with_failures(answered.stable, failures.stable, failures.stable),
            canary: with_failures(answered.canary, failures.canary, 0),
        };
        match users {
            None => self.comparison.update(tick, factor),
            Some(firsts) => {
                let mut judge = *self.judge();
                let is_outage = is_outage(tick.stable, failures.stable);
                judge.update(&mut self.comparison, firsts, tick.map(|sample| sample.requests), is_outage);
                self.users = Some(judge);
            }
        }
        // What people are shown is of what was answered: a failure is shown with the others.
        if let Some(difference) = &mut self.difference {
            difference.update(answered, factor);
        }
        self.learn(tick.stable, failures.stable);
        self.compared = self.compared.saturating_add(answered.canary.requests);
    }

    /// Learns how slow requests of stable come together, but in an outage.
    fn learn(&mut self, stable: Sample, failures: u64) {
        if !is_outage(stable, failures) {
            self.dispersion.update(stable);
        }
    }
}

/// Whether something is down where so many of stable's requests failed, whichever of them were slow.
fn is_outage(stable: Sample, failures: u64) -> bool {
    Sample { failures, ..stable }.is_outage()
}

/// What was answered, and besides so many requests that failed, some of which count as slow.
fn with_failures(answered: Sample, failures: u64, slow: u64) -> Sample {
    let Sample { requests, failures: slow_answers } = answered;
    Sample { requests: requests.saturating_add(failures), failures: slow_answers.saturating_add(slow) }
}

/// A sum of eight sums, which do not wait for each other.
fn sum(weights: &[f64]) -> f64 {
    let (eights, rest) = weights.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, weight)| *sum += weight);
    }
    sums.iter().chain(rest).sum()
}

/// The latencies of a tick, and those after bucket `edge`.
pub(crate) fn slow(latencies: &Histogram, edge: usize) -> Sample {
    Sample { requests: latencies.total(), failures: latencies.above(edge) }
}

/// Ticks after which a stable request weighs half: long enough to know the 99th percentile, short
/// enough to follow the hour of the day.
pub const HALF_LIFE: f64 = 120.0;

/// Requests of stable that its quantile must rest on: two beyond the 99th percentile.
pub const LEAST: f64 = 200.0;
