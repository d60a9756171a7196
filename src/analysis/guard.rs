//! Does the canary break a limit that holds whatever stable does?
//!
//! The null hypothesis: in no tick is the probability above `limit`. Against it stand 15 rates θ,
//! evenly spaced between the limit and 1. Of `n` requests with `x` over the limit, θ scores
//!
//! `ln LR(θ) = x·ln(θ / limit) + (n − x)·ln((1 − θ) / (1 − limit))`
//!
//! the likelihood ratio of independent Bernoulli trials. Its mean is 1 at the limit, and less below
//! it because LR grows with `x`; so it is an e-value (Ramdas et al. 2023), and [`Mixture`] makes it
//! an e-process.
//!
//! A pause holds up all that is under way, so requests over a limit on latency come together by far more than failures do.
//! How many at a time is another [`Dispersion`](super::dispersion) than that of failures, learned from what of stable's
//! is over that same limit. Those over its own 99th percentile would not show it: there is always one in a hundred.

use std::{sync::LazyLock, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Analysis, ArmTick, error_rate::Sample, latency::slow, mixture::Mixture};
use crate::model::histogram::{self, Histogram};

/// Evidence that more than `limit` of the requests are over what they may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    limit: f64,
    /// ln(θ / limit) for each θ.
    log_rates: [f64; RATES],
    mixture: Mixture<RATES>,
    /// What it was given so far.
    #[serde(default)]
    seen: Sample,
}

impl Guard {
    /// A guard on a share of requests, over 0 and below 1; `planned` is the number of later starts
    /// that are expected, at least 1.
    pub fn new(limit: f64, planned: u64) -> Self {
        debug_assert!(limit > 0.0 && limit < 1.0, "a limit of {limit}");
        let rate = |k: usize| limit + (1.0 - limit) * part(k);
        let log_rates = std::array::from_fn(|k| rate(k).ln() - limit.ln());
        Self { limit, log_rates, mixture: Mixture::restarting(planned), seen: Sample::default() }
    }

    /// The share of requests that may be over, 0 to 1.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Takes in one tick by the ln LR(θ) at the head of this file; the sample's failures are the requests that were
    /// over, which come `dispersion` at a time (1 or more).
    pub fn update(&mut self, sample: Sample, dispersion: f64) {
        self.seen.add(sample);
        let (requests, over) = sample.units(dispersion);
        let under = requests - over;
        // (1 − θ) / (1 − limit) is 1 − part, which stays finite for a limit next to 1.
        let log_ratio = |k: usize| over * self.log_rates[k] + under * LOG_RESTS[k];
        self.mixture.update(&std::array::from_fn(log_ratio));
    }

    /// Natural logarithm of the e-value so far.
    pub fn log_e(&self) -> f64 {
        self.mixture.log_e()
    }

    /// All requests that the evidence rests on, and those of them that were over.
    pub(super) fn seen(&self) -> Sample {
        self.seen
    }

    /// Something that is at least as much, for less than that costs.
    pub(super) fn ceiling(&self) -> f64 {
        self.mixture.ceiling()
    }
}

/// Evidence that more than one request in a hundred takes longer than `limit`: that the 99th
/// percentile is above it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlowGuard {
    limit: Duration,
    guard: Guard,
}

impl SlowGuard {
    /// A guard on the 99th percentile; `planned` as for [`Guard::new`].
    pub fn new(limit: Duration, planned: u64) -> Self {
        Self { limit, guard: Guard::new(0.01, planned) }
    }

    /// The 99th percentile that may not be exceeded.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Takes in one tick. Over the limit counts what lies after the bucket that holds it, so that a
    /// request just within is never blamed for lack of resolution.
    pub fn update<'l>(&mut self, latencies: impl IntoIterator<Item = &'l Histogram>, dispersion: f64) {
        self.guard.update(self.over(latencies), dispersion);
    }

    /// The requests that are surely over the limit.
    fn over<'l>(&self, latencies: impl IntoIterator<Item = &'l Histogram>) -> Sample {
        let mut over = Sample::default();
        latencies.into_iter().for_each(|latencies| over.add(slow(latencies, histogram::index(self.limit))));
        over
    }

    /// Something that is at least as much, for less than that costs.
    pub(super) fn ceiling(&self) -> f64 {
        self.guard.ceiling()
    }

    /// Natural logarithm of the e-value so far.
    pub fn log_e(&self) -> f64 {
        self.guard.log_e()
    }

    /// All requests that the evidence rests on, and those of them that were over.
    pub(super) fn seen(&self) -> Sample {
        self.guard.seen()
    }
}

impl Analysis {
    /// Takes in what is judged by limits, whose failures come `dispersion` at a time.
    pub(super) fn observe_guards(&mut self, judged: &ArmTick<'_>, dispersion: f64) {
        if let Some(guard) = &mut self.max_error_rate {
            guard.update(judged.warm(), dispersion);
        }
        let dispersion = self.dispersion_over_max_p99();
        if let Some(guard) = &mut self.max_p99 {
            guard.update(judged.latencies(), dispersion);
        }
    }

    /// Learns from stable, unless something was down, how requests over `max_p99` come together. Limits hold whatever
    /// stable does, so here its tick may be known before the canary's: a pause that holds up both is seen as one when it
    /// comes for the first time.
    pub(super) fn learn_of_limits(&mut self, stable: &ArmTick<'_>) {
        let Some(guard) = self.max_p99.as_ref().filter(|_| !stable.sample().is_outage()) else { return };
        let over = guard.over([stable.latency]);
        self.over_max_p99.get_or_insert_with(|| self.dispersion.afresh()).update(over);
    }

    /// How many requests over `max_p99` come together.
    pub(super) fn dispersion_over_max_p99(&self) -> f64 {
        self.over_max_p99.unwrap_or_else(|| self.dispersion.afresh()).factor()
    }
}

/// How far from the limit to 1 the rate number `k` lies.
fn part(k: usize) -> f64 {
    (k + 1) as f64 / (RATES + 1) as f64
}

/// ln(1 − part) of each rate.
static LOG_RESTS: LazyLock<[f64; RATES]> = LazyLock::new(|| std::array::from_fn(|k| (-part(k)).ln_1p()));

/// Rates between the limit and 1.
pub const RATES: usize = 15;
