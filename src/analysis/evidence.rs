//! What was seen: counts since the rollout and the step began, the last ten ticks, and whether the
//! canary has answered anything lately. Numbers for people and for the rules that need no
//! statistics; the e-processes keep their own state.

use serde::{Deserialize, Serialize};

use super::{
    error_rate::Sample,
    verdict::{ArmLatency, ArmTotals, Arms},
};
use crate::model::histogram::Histogram;

/// Counts of a rollout.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    /// Since the rollout began; stands still in baking.
    pub(super) rollout: Arms<Sample>,
    /// Since the step, or baking, began.
    pub(super) step: Arms<Sample>,
    latencies: Arms<Latencies>,
    pub(super) window: Window,
    pub(super) streak: Streak,
}

impl Tally {
    /// Counts a tick of a step.
    pub(super) fn count(&mut self, tick: Arms<Sample>, latencies: Arms<&Histogram>) {
        self.rollout.stable.add(tick.stable);
        self.rollout.canary.add(tick.canary);
        self.step.stable.add(tick.stable);
        self.step.canary.add(tick.canary);
        self.latencies.stable.add(latencies.stable);
        self.latencies.canary.add(latencies.canary);
        self.window.push(tick);
        self.streak.count(tick.canary, tick.stable);
    }

    /// Counts a tick of baking, in which the promoted version is stable and the only one.
    pub(super) fn count_baking(&mut self, tick: Sample, latencies: &Histogram) {
        self.step.stable.add(tick);
        self.latencies.stable.add(latencies);
        self.streak.count(tick, Sample::default());
    }

    /// Counts the step anew. What the last ticks were like outlives the change of weight.
    pub(super) fn begin_step(&mut self) {
        let Self { rollout: _, step, latencies, window: _, streak: _ } = self;
        *step = Arms::default();
        *latencies = Arms::default();
    }

    /// Forgets all but the rollout's totals: the promoted version is now stable.
    pub(super) fn begin_baking(&mut self) {
        *self = Self { rollout: self.rollout, ..Self::default() };
    }

    /// The latency of each arm in the step.
    pub(super) fn latency(&self) -> Arms<ArmLatency> {
        Arms { stable: self.latencies.stable.quantiles(), canary: self.latencies.canary.quantiles() }
    }
}

impl Arms<Sample> {
    pub(super) fn totals(self) -> Arms<ArmTotals> {
        let totals = |sample: Sample| ArmTotals {
            requests: sample.requests,
            failures: sample.failures,
            error_rate: sample.rate(),
        };
        Arms { stable: totals(self.stable), canary: totals(self.canary) }
    }
}

/// The last [`Window::TICKS`] ticks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Window {
    ticks: [Arms<Sample>; Self::TICKS as usize],
    seen: u64,
}

impl Window {
    /// How many ticks count as "lately".
    pub(super) const TICKS: u64 = 10;

    fn push(&mut self, tick: Arms<Sample>) {
        self.ticks[(self.seen % Self::TICKS) as usize] = tick;
        self.seen += 1;
    }

    /// Whether there were so many ticks that an empty arm means something.
    pub(super) fn is_full(&self) -> bool {
        self.seen >= Self::TICKS
    }

    /// The sum of its ticks.
    pub(super) fn sum(&self) -> Arms<Sample> {
        let mut sum = Arms::<Sample>::default();
        for tick in &self.ticks {
            sum.stable.add(tick.stable);
            sum.canary.add(tick.canary);
        }
        sum
    }
}

/// Requests in a row that one arm failed, and what the other arm did in that time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Streak {
    failures: u64,
    other: Sample,
}

impl Streak {
    /// So many failures in a row that no statistics are needed: at a failure rate of one half, 20
    /// in a row come once in a million.
    const ENOUGH: u64 = 20;

    fn count(&mut self, arm: Sample, other: Sample) {
        if arm.failures < arm.requests {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(arm.failures);
        if self.failures > 0 {
            self.other.add(other);
        }
    }

    /// The failures in a row, if they are enough to act on and the other arm, which may have been
    /// idle, was not in trouble meanwhile.
    pub(super) fn damning(&self) -> Option<u64> {
        (self.failures >= Self::ENOUGH && !self.other.in_trouble()).then_some(self.failures)
    }
}

/// One arm's latencies in the step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Latencies(#[serde(with = "sparse")] Histogram);

impl Latencies {
    fn add(&mut self, tick: &Histogram) {
        if tick.total() == 0 {
            return;
        }
        // Bucket by bucket: the sum of latencies is of no use here and would not survive `sparse`.
        for (index, count) in tick.counts().iter().enumerate().filter(|(_, count)| **count > 0) {
            self.0.add(index, *count);
        }
    }

    fn quantiles(&self) -> ArmLatency {
        let seconds = |level| self.0.quantile(level).map(|latency| latency.as_secs_f64());
        ArmLatency { p50_seconds: seconds(0.5), p99_seconds: seconds(0.99) }
    }
}

/// A histogram as the pairs of bucket and count that are not empty: a few dozen of a thousand.
mod sparse {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::model::histogram::{BUCKETS, Histogram};

    pub(super) fn serialize<S: Serializer>(histogram: &Histogram, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(histogram.counts().iter().enumerate().filter(|(_, count)| **count > 0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Histogram, D::Error> {
        let mut histogram = Histogram::default();
        for (index, count) in Vec::<(usize, u64)>::deserialize(from)? {
            if index >= BUCKETS || histogram.total().checked_add(count).is_none() {
                return Err(D::Error::custom(format_args!("no histogram has {count} in bucket {index}")));
            }
            histogram.add(index, count);
        }
        Ok(histogram)
    }
}
