//! What was seen: counts since the rollout and the step began, the last ten ticks, and whether the
//! canary has answered anything lately. Numbers for people and for the rules that need no
//! statistics; the e-processes keep their own state.

use serde::{Deserialize, Serialize};

use super::{
    ArmTick, Tick,
    error_rate::Sample,
    harm::Load,
    incident::Usual,
    verdict::{ArmLatency, ArmTotals, Arms, Incident, Reason},
};
use crate::model::{
    histogram::{Histogram, sparse},
    role::Role,
};

/// Counts of a rollout.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    /// Since the rollout began; stands still in baking.
    pub(super) rollout: Arms<Sample>,
    /// What of that stable did in outages.
    #[serde(default)]
    outages: Sample,
    /// Since the step, or baking, began.
    pub(super) step: Arms<Sample>,
    /// What endpoints served that were still warming up, since the rollout began.
    pub(super) warming: Arms<Sample>,
    /// What was sent to an arm by something other than chance, since the rollout began.
    #[serde(default)]
    pub(super) sent: Arms<Sample>,
    /// What was sent to the canary in the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent_in_step: Option<Box<SentInStep>>,
    latencies: Arms<Latencies>,
    pub(super) window: Window,
    #[serde(default)]
    pub(super) load: Load,
    pub(super) streak: Streak,
}

impl Tally {
    /// Counts a tick of a step.
    pub(super) fn count(&mut self, tick: &Tick<'_>) {
        let samples = tick.samples();
        let Self { rollout, outages, step, warming, sent, sent_in_step, latencies, window, load, streak } =
            self;
        for sum in [rollout, step] {
            sum.add(samples);
        }
        if samples.stable.is_outage() {
            outages.add(samples.stable);
        }
        warming.add(tick.arms(|arm| arm.warming));
        sent.add(tick.arms(ArmTick::sent));
        if let Some(tick) = &tick.canary.sent {
            let sum = sent_in_step.get_or_insert_default();
            sum.sample.add(tick.sample);
            sum.latencies.add(tick.latency);
        }
        latencies.stable.add(tick.stable.latency);
        latencies.canary.add(tick.canary.latency);
        window.push(samples);
        window.count_apart(tick);
        load.update(tick.stable.drawn().saturating_add(tick.canary.drawn()));
        // Who answers nothing at all need not be waited for until it is warm, or until somebody comes by
        // chance.
        streak.count(&tick.canary, tick.stable.met());
    }

    /// Learns from a tick of stable, before the canary gets anything.
    pub(super) fn learn(&mut self, stable: &ArmTick<'_>) {
        self.window.usual.update(stable.sample());
        self.load.update(stable.drawn());
    }

    /// Counts a tick of baking, in which the promoted version is stable and the only one.
    pub(super) fn count_baking(&mut self, tick: &ArmTick<'_>) {
        self.step.stable.add(tick.warm());
        tick.latencies().for_each(|latency| self.latencies.stable.add(latency));
        self.warming.stable.add(tick.warming);
        self.window.push(Arms { stable: tick.warm(), canary: Sample::default() });
        self.streak.count(tick, Sample::default());
    }

    /// Counts the step anew. What the last ticks were like outlives the change of weight.
    pub(super) fn begin_step(&mut self) {
        self.step = Arms::default();
        self.sent_in_step = None;
        self.latencies = Arms::default();
    }

    /// Forgets all but what stable is usually like.
    pub(super) fn forget(&mut self) {
        let window = Window { usual: self.window.usual, ..Window::default() };
        *self = Self { window, ..Self::default() };
    }

    /// What stable did in the rollout, its outages left out.
    pub(super) fn usual(&self) -> Sample {
        let Sample { requests, failures } = self.rollout.stable;
        Sample {
            requests: requests.saturating_sub(self.outages.requests),
            failures: failures.saturating_sub(self.outages.failures),
        }
    }

    /// Forgets all but the rollout's totals: the promoted version is now stable.
    pub(super) fn begin_baking(&mut self) {
        *self = Self { rollout: self.rollout, ..Self::default() };
    }

    /// What limits hold for in the step.
    pub(super) fn limited(&self) -> Sample {
        let mut all = self.step.canary;
        if let Some(sent) = &self.sent_in_step {
            all.add(sent.sample);
        }
        all
    }

    /// The 99th percentile that limits hold for in a step, in seconds, where it is not the one of what is
    /// compared.
    pub(super) fn limited_p99(&self) -> Option<f64> {
        let sent = self.sent_in_step.as_ref()?;
        let mut all = self.latencies.canary.clone();
        all.add(&sent.latencies.0);
        all.quantiles().p99_seconds
    }

    /// The latency of each arm in the step.
    pub(super) fn latency(&self) -> Arms<ArmLatency> {
        Arms { stable: self.latencies.stable.quantiles(), canary: self.latencies.canary.quantiles() }
    }

    /// What there is to say of an arm that has had no request that counts for longer than usual. With little traffic
    /// a pause is no news until it is five times as long as usual, which comes once in 150 pauses: those between
    /// arrivals that know nothing of each other (a Poisson process) are exponential, and `e^−5` is 1/148.
    pub(super) fn silence(&self, role: Role) -> Option<Reason<()>> {
        let Window { seen, quiet, warming, sent, .. } = &self.window;
        let (quiet, requests) = (*quiet.of(role), self.rollout.of(role).requests);
        // Ten ticks are added, lest the first request alone makes a habit.
        let usual = (seen - quiet + Window::TICKS) as f64 / requests as f64;
        if quiet < Window::TICKS || (requests > 0 && (quiet as f64) < 5.0 * usual) {
            return None;
        }
        let [warming, sent] = [warming, sent].map(|ticks| ticks.of(role).unwrap_or(u64::MAX));
        Some(if warming < Window::TICKS {
            Reason::WarmingUp { role, ticks: quiet }
        } else if sent < Window::TICKS {
            Reason::OnlySent { role, ticks: quiet }
        } else {
            let ticks = quiet.min(warming).min(sent);
            match role {
                Role::Canary => Reason::NoCanaryTraffic { ticks },
                Role::Stable => Reason::NoStableTraffic { ticks },
            }
        })
    }
}

impl Arms<Sample> {
    /// Counts `other` in.
    pub(super) fn add(&mut self, other: Self) {
        self.stable.add(other.stable);
        self.canary.add(other.canary);
    }

    pub(super) fn totals(self) -> Arms<ArmTotals> {
        self.map(ArmTotals::of)
    }
}

/// The last [`Window::TICKS`] ticks, and what stable was like before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Window {
    ticks: [Arms<Sample>; Self::TICKS as usize],
    seen: u64,
    /// Ticks since each arm's last request.
    quiet: Arms<u64>,
    /// Ticks since the last one of an endpoint that was warming up, if there was one.
    #[serde(default)]
    warming: Arms<Option<u64>>,
    /// The same of those that were sent.
    #[serde(default)]
    sent: Arms<Option<u64>>,
    pub(super) usual: Usual,
}

impl Window {
    /// How many ticks count as "lately".
    pub(super) const TICKS: u64 = 10;

    fn push(&mut self, tick: Arms<Sample>) {
        let place = &mut self.ticks[(self.seen % Self::TICKS) as usize];
        let oldest = std::mem::replace(place, tick);
        if self.seen >= Self::TICKS {
            self.usual.update(oldest.stable);
        }
        self.seen += 1;
        let count = |quiet: &mut u64, arm: Sample| *quiet = if arm.requests > 0 { 0 } else { *quiet + 1 };
        count(&mut self.quiet.stable, tick.stable);
        count(&mut self.quiet.canary, tick.canary);
    }

    /// Counts the ticks since there was a request that is counted apart.
    fn count_apart(&mut self, tick: &Tick<'_>) {
        let count = |quiet: &mut Option<u64>, apart: Sample| {
            *quiet = if apart.requests > 0 { Some(0) } else { quiet.map(|ticks| ticks + 1) };
        };
        let apart =
            [(&mut self.warming, tick.arms(|arm| arm.warming)), (&mut self.sent, tick.arms(ArmTick::sent))];
        for (quiet, arms) in apart {
            count(&mut quiet.stable, arms.stable);
            count(&mut quiet.canary, arms.canary);
        }
    }

    /// The sum of its ticks.
    pub(super) fn sum(&self) -> Arms<Sample> {
        let mut sum = Arms::<Sample>::default();
        self.ticks.iter().for_each(|tick| sum.add(*tick));
        sum
    }

    /// Requests in a tick lately.
    pub(super) fn rate(&self) -> Arms<f64> {
        let ticks = self.seen.clamp(1, Self::TICKS) as f64;
        self.sum().map(|sample| sample.requests as f64 / ticks)
    }

    /// The trouble that is not the canary's alone.
    pub(super) fn incident(&self) -> Option<Incident> {
        self.usual.incident(self.sum())
    }
}

/// Requests in a row that one arm failed or could not take, and what the other arm did in that time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Streak {
    failures: u64,
    /// Those of them that it could not take.
    #[serde(default)]
    unserved: u64,
    other: Sample,
}

impl Streak {
    /// So many failures in a row that no statistics are needed: at a failure rate of one half, 20
    /// in a row come once in a million.
    const ENOUGH: u64 = 20;

    fn count(&mut self, tick: &ArmTick<'_>, other: Sample) {
        let arm = tick.met();
        if arm.failures < arm.requests {
            *self = Self::default();
            return;
        }
        self.failures = self.failures.saturating_add(arm.failures);
        self.unserved = self.unserved.saturating_add(tick.unserved);
        if self.failures > 0 {
            self.other.add(other);
        }
    }

    /// The failures in a row, and how many of them could not be taken, if they are enough to act on and the other arm,
    /// which may have been idle, was not in trouble meanwhile; or, `alone`, however that fared.
    pub(super) fn damning(&self, alone: bool) -> Option<(u64, u64)> {
        let is_enough = self.failures >= Self::ENOUGH && (alone || !self.other.in_trouble());
        is_enough.then_some((self.failures, self.unserved))
    }
}

/// What was sent to the canary in the step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct SentInStep {
    sample: Sample,
    latencies: Latencies,
}

/// One arm's latencies in the step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Latencies(#[serde(with = "sparse")] Histogram);

impl Latencies {
    fn add(&mut self, tick: &Histogram) {
        // The sum of latencies is of no use here and would not survive `sparse`.
        self.0.merge_counts(tick);
    }

    fn quantiles(&self) -> ArmLatency {
        let seconds = |level| self.0.quantile(level).map(|latency| latency.as_secs_f64());
        ArmLatency { p50_seconds: seconds(0.5), p99_seconds: seconds(0.99) }
    }
}
