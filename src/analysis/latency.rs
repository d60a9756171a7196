//! Is the canary slower than stable? Asked of failure rates, by a choice of what "slow" means.
//!
//! Let Q be stable's quantile over the ticks *before* this one. A stable request is slow above Q, a
//! canary request above (1 + margin)·Q. If the canary is at most so much slower, its slow share is
//! at most stable's, whatever Q is: the null hypothesis of [`error_rate`](super::error_rate) with ρ
//! = 1 and δ = 0. Q comes from the past alone, so the evidence keeps its guarantee while latency
//! drifts; a poor Q costs speed, never correctness.
//!
//! Q is the upper edge of a bucket, and the margin is a number of buckets rounded up, so a canary
//! just within the margin is never called slow for lack of resolution.

use serde::{Deserialize, Serialize};

use super::error_rate::{Comparison, Margin, Sample};
use crate::model::histogram::{BUCKETS, Histogram, PER_DOUBLING};

/// The quantiles that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantile {
    /// The median.
    P50,
    /// The 99th percentile.
    P99,
}

impl Quantile {
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
    /// Buckets between stable's edge and the canary's.
    shift: usize,
    p50: Comparison,
    p99: Comparison,
}

impl Latency {
    /// A comparison that lets the canary be slower by `margin`, a share over 0; `planned` is the
    /// number of later starts that the rollout is expected to have, at least 1.
    pub fn new(margin: f64, planned: u64) -> Self {
        let equal = Margin { ratio: 1.0, absolute: 0.0 };
        Self {
            weights: vec![0.0; BUCKETS],
            shift: ((1.0 + margin).log2() * PER_DOUBLING as f64).ceil() as usize,
            p50: Comparison::worse(equal, planned),
            p99: Comparison::worse(equal, planned),
        }
    }

    /// Takes in one tick: each arm's latencies in it.
    pub fn update(&mut self, stable: &Histogram, canary: &Histogram) {
        let edges = [self.edge(Quantile::P50), self.edge(Quantile::P99)];
        for (comparison, edge) in [&mut self.p50, &mut self.p99].into_iter().zip(edges) {
            let (stable, canary) = match edge {
                Some(edge) => (slow(stable, edge), slow(canary, edge + self.shift)),
                None => Default::default(),
            };
            comparison.update(stable, canary);
        }
        self.remember(stable);
    }

    /// The bucket that holds stable's quantile by the ticks so far; nothing while they weigh less
    /// than [`LEAST`] requests.
    pub fn edge(&self, quantile: Quantile) -> Option<usize> {
        let total: f64 = self.weights.iter().sum();
        if total < LEAST {
            return None;
        }
        let mut seen = 0.0;
        let reached = self.weights.iter().position(|weight| {
            seen += weight;
            seen >= quantile.level() * total
        });
        Some(reached.unwrap_or(BUCKETS - 1))
    }

    /// Natural logarithm of the e-value at one quantile so far.
    pub fn log_e(&self, quantile: Quantile) -> f64 {
        match quantile {
            Quantile::P50 => self.p50.log_e(),
            Quantile::P99 => self.p99.log_e(),
        }
    }

    fn remember(&mut self, stable: &Histogram) {
        let decay = (-1.0 / HALF_LIFE).exp2();
        for (weight, count) in self.weights.iter_mut().zip(stable.counts()) {
            let kept = *weight * decay;
            // A trillionth of a request decides nothing, and what decays further ends as a
            // denormal, which is slow.
            *weight = if kept < 1e-12 { 0.0 } else { kept } + *count as f64;
        }
    }
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
