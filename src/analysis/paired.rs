//! Is the canary worse than stable on the *same* requests? For steps in which it gets copies.
//!
//! Both have had each request of a pair, so what differs between requests cancels: a page that always
//! fails says nothing, and one that only the canary fails says all. Let `Yc` and `Ys` be 1 where the
//! canary, or stable, has failed a pair, else 0. The null hypothesis is that of
//! [`error_rate`](super::error_rate): whatever happened before, the canary's failure probability is at
//! most `ρ·(ps + δ)`. Divided by ρ, that is `E[Yc/ρ − Ys − δ | past] ≤ 0`.
//!
//! The e-process bets on the opposite (Waudby-Smith & Ramdas, *Estimating means of bounded random
//! variables by betting*, JRSSB 2024): with `D = (Yc/ρ − Ys − δ)/(1 + δ)`, which is never below −1, a
//! stake `0 ≤ κ < 1` makes each pair multiply the capital by `1 + κ·D`, whose mean under the null is at
//! most 1. Nothing is assumed of how the two halves of a pair depend on each other. With ρ = 1 and δ = 0 only
//! pairs that one of the two has failed move it, by `1 ± κ`: a sign test of those (McNemar 1947), that may
//! be looked at after each pair. A mean over fixed stakes ([`Mixture`]) takes the place of knowing how bad
//! the canary is. Since a stake is fixed, a tick's factor follows from its four counts.
//!
//! *Non-inferiority* is the same bet the other way round: against `E[Yc − Ys | past] ≥ m`. And the
//! *interval* of the difference is the set of θ against which neither bet has won: with fixed stakes
//! the counts since the beginning are all that is needed for every θ at once.
//!
//! *Failures that come together*, φ at a time, are one: each factor is raised to the power of 1/φ,
//! whose mean is at most 1 as well (Jensen 1906), and exact for clusters of φ.
//!
//! *Latency.* A pair is slow if the canary took longer than `1 + margin` times what stable took. If the
//! canary is at most so much slower, at most half of the pairs are slow: that is the median of the ratio, and
//! a sign test. A pause holds up many pairs at once, so a tick counts as one observation, the
//! *share* of its pairs that are slow: its mean is at most one half however they depend on each other, and
//! `1 + κ·(2·share − 1)` is the factor. The price is that it takes ten ticks to be sure; copies harm nobody
//! meanwhile. It starts once: a burst in the middle is none of its business. Where the mean lies, its
//! interval says: the set of θ that neither bet has refuted, of factors `1 + κ·(share/θ − 1)` (`Shares`).
//! Deliberately absent is a comparison of tails, for which live steps have histograms of all requests.

use std::{ops::Range, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::{
    budget,
    error_rate::{Margin, Sample},
    interval::MISSES,
    mixture::{Mixture, log_sum_exp},
    settings::Settings,
    verdict::{Arms, Interval},
};

/// Pairs that ended in a tick, by who failed them, and how many of them the canary was slower in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Neither has failed.
    pub none: u64,
    /// Stable alone has.
    pub stable: u64,
    /// The canary alone has.
    pub canary: u64,
    /// Both have.
    pub both: u64,
    /// Pairs whose times were compared.
    pub timed: u64,
    /// Those of them in which the canary took longer than it may; at most as many.
    pub slower: u64,
}

impl Counts {
    /// All pairs.
    pub fn pairs(&self) -> u64 {
        let Self { none, stable, canary, both, timed: _, slower: _ } = *self;
        [none, stable, canary, both].into_iter().fold(0, u64::saturating_add)
    }

    /// What each of the two has made of them.
    pub fn samples(&self) -> Arms<Sample> {
        let sample =
            |alone: u64| Sample { requests: self.pairs(), failures: alone.saturating_add(self.both) };
        Arms { stable: sample(self.stable), canary: sample(self.canary) }
    }

    /// What has come since an earlier reading of the same counts.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            none: self.none.saturating_sub(before.none),
            stable: self.stable.saturating_sub(before.stable),
            canary: self.canary.saturating_sub(before.canary),
            both: self.both.saturating_sub(before.both),
            timed: self.timed.saturating_sub(before.timed),
            slower: self.slower.saturating_sub(before.slower),
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { none, stable, canary, both, timed, slower } = self;
        for (sum, more) in [
            (none, other.none),
            (stable, other.stable),
            (canary, other.canary),
            (both, other.both),
            (timed, other.timed),
            (slower, other.slower),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// By who failed them, in units of `dispersion`.
    fn units(&self, dispersion: f64) -> [f64; 4] {
        [self.none, self.stable, self.canary, self.both].map(|count| count as f64 / dispersion.max(1.0))
    }

    /// With the roles in each other's places.
    fn swapped(&self) -> Self {
        Self { stable: self.canary, canary: self.stable, ..*self }
    }
}

/// Evidence from pairs, tick by tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    tolerance: Margin,
    margin: f64,
    worse: Mixture<STAKES>,
    better: Mixture<STAKES>,
    slower: Option<Mixture<STAKES>>,
    #[serde(default)]
    shares: Shares,
    /// Since the beginning.
    counts: Counts,
    /// Pairs when the step began.
    before_step: u64,
    ticks: u64,
    /// Ticks since the last pair.
    quiet: u64,
}

impl Paired {
    /// Evidence that begins at nothing. `planned` is the number of later moments at which the canary may
    /// have turned bad, at least 1.
    pub fn new(settings: &Settings, planned: u64) -> Self {
        Self {
            tolerance: settings.tolerance(),
            margin: settings.promotion_margin,
            worse: Mixture::restarting(planned),
            better: Mixture::from_now_on(),
            slower: settings.latency_margin.map(|_| Mixture::from_now_on()),
            shares: Shares::default(),
            counts: Counts::default(),
            before_step: 0,
            ticks: 0,
            quiet: 0,
        }
    }

    /// A step begins: its pairs are counted anew, and the evidence stays.
    pub fn begin_step(&mut self) {
        (self.before_step, self.quiet) = (self.counts.pairs(), 0);
    }

    /// Takes in one tick, whose failures come `dispersion` at a time; 1 or more.
    pub fn update(&mut self, tick: &Counts, dispersion: f64) {
        self.counts.add(tick);
        self.ticks += 1;
        self.quiet = if tick.pairs() > 0 { 0 } else { self.quiet + 1 };
        self.worse.update(&log_ratios(&payoffs(self.tolerance), tick.units(dispersion)));
        let better = payoffs(Margin { ratio: 1.0, absolute: -self.margin });
        self.better.update(&log_ratios(&better, tick.swapped().units(dispersion)));
        if let Some(slower) = self.slower.as_mut().filter(|_| tick.timed > 0) {
            let share = tick.slower.min(tick.timed) as f64 / tick.timed as f64;
            slower.update(&STAKE.each_ref().map(|stake| (stake * (2.0 * share - 1.0)).ln_1p()));
            self.shares.add(share);
        }
    }

    /// Natural logarithm of the e-value against "the canary fails no more than it may".
    pub fn failing(&self) -> f64 {
        self.worse.log_e()
    }

    /// The same against "the canary is no slower than it may be"; nothing where that is not asked.
    pub fn slower(&self) -> Option<f64> {
        self.slower.as_ref().map(Mixture::log_e)
    }

    /// The evidence of both together, as one number: see [`budget`].
    pub fn combined(&self) -> f64 {
        budget::combine([Some(self.failing()), self.slower()].into_iter().flatten().map(|log_e| (log_e, 1.0)))
    }

    /// How many of them there are.
    pub fn checks(&self) -> u32 {
        1 + u32::from(self.slower.is_some())
    }

    /// Natural logarithm of the e-value against "the canary fails the margin more often, or worse".
    pub fn better(&self) -> f64 {
        self.better.log_e()
    }

    /// Pairs since the beginning.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Pairs since the step began.
    pub fn in_step(&self) -> u64 {
        self.counts.pairs().saturating_sub(self.before_step)
    }

    /// Pairs in a tick.
    pub fn rate(&self) -> f64 {
        self.counts.pairs() as f64 / self.ticks.max(1) as f64
    }

    /// For how many ticks there has been no pair, where that means something, as for requests (`Tally::silence`):
    /// five times as long as usual.
    pub fn silence(&self) -> Option<u64> {
        let pairs = self.counts.pairs();
        let usual = (self.ticks - self.quiet + QUIET) as f64 / pairs as f64;
        (self.quiet >= QUIET && (pairs == 0 || self.quiet as f64 >= 5.0 * usual)).then_some(self.quiet)
    }

    /// The canary's failure rate less stable's, by their pairs, with failures that come `dispersion` at a
    /// time: right with [95 %](MISSES) at every look; nothing as long as nothing is excluded.
    pub fn difference(&self, dispersion: f64) -> Option<Interval> {
        let low = rejected_up_to(&self.counts, dispersion);
        let high = -rejected_up_to(&self.counts.swapped(), dispersion);
        (low > -1.0 || high < 1.0).then(|| Interval { low: low.min(high), high: low.max(high) })
    }

    /// The share of a tick's pairs in which the canary takes longer than it may, on average over ticks: right
    /// with [95 %](MISSES) at every look; nothing as long as nothing is excluded.
    pub fn slower_share(&self) -> Option<Interval> {
        let low = self.shares.rejected_up_to();
        let high = 1.0 - self.shares.inverted().rejected_up_to();
        (low > 0.0 || high < 1.0).then(|| Interval { low: low.min(high), high: low.max(high) })
    }
}

/// Ticks' shares, of each of which is known what a bound on their mean needs.
///
/// A stake κ on "more than θ" is multiplied by `1 + κ·(share/θ − 1)`, whose logarithm is at least what either of
/// two bounds says of sums that do not know θ: `s·ln(1 + κ·(1/θ − 1)) + (1 − s)·ln(1 − κ)`, as it is concave in
/// the share `s`, exact for shares of 0 and 1; and `κ·ξ + (κ + ln(1 − κ))·ξ²` with `ξ = s/θ − 1`, which is near
/// where shares differ little (Fan, Grama & Liu, *Exponential inequalities for martingales with applications*,
/// EJP 2015). Less than the capital that never wins more than it should is no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Shares {
    ticks: u64,
    sum: f64,
    /// Of their squares.
    squares: f64,
}

impl Shares {
    fn add(&mut self, share: f64) {
        self.ticks += 1;
        self.sum += share;
        self.squares += share * share;
    }

    /// Those of the other pairs.
    fn inverted(&self) -> Self {
        let ticks = self.ticks as f64;
        Self { sum: ticks - self.sum, squares: ticks - 2.0 * self.sum + self.squares, ..*self }
    }

    /// The largest mean up to which all are rejected; 0 if none is.
    fn rejected_up_to(&self) -> f64 {
        last(0.0..1.0, |mean| is_rejected(STAKE.each_ref().map(|stake| self.least_log(*stake, mean))))
    }

    /// What a stake on "more than `mean`" has come to at least, in logarithms.
    fn least_log(&self, stake: f64, mean: f64) -> f64 {
        let (ticks, lost) = (self.ticks as f64, (-stake).ln_1p());
        let by_ends = self.sum * (stake * (1.0 / mean - 1.0)).ln_1p() + (ticks - self.sum) * lost;
        let spread = (self.squares / mean - 2.0 * self.sum) / mean + ticks;
        by_ends.max(stake * (self.sum / mean - ticks) + (stake + lost) * spread.max(0.0))
    }
}

/// Whether the capital of all stakes together, given as logarithms, says that what was bet against is wrong.
fn is_rejected(stakes: [f64; STAKES]) -> bool {
    log_sum_exp(stakes) - (STAKES as f64).ln() >= (2.0 / MISSES).ln()
}

/// The last value within `range` for which something holds that does so from its beginning; that itself if it
/// never does.
fn last(range: Range<f64>, holds: impl Fn(f64) -> bool) -> f64 {
    let Range { start: mut low, end: mut high } = range;
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

/// What one unit staked wins in a pair, by who failed it (nobody, stable, the canary, both), on "the canary
/// fails more than `ratio` times as often as stable and `absolute`": at least −1, and at most 0 on average
/// where that is not so.
fn payoffs(Margin { ratio, absolute }: Margin) -> [f64; 4] {
    [0.0, -1.0, 1.0 / ratio, 1.0 / ratio - 1.0].map(|won| (won - absolute) / (1.0 + absolute))
}

/// What a tick multiplies the capital of each stake by, in logarithms: `ln(1 + κ·D)` of each pair, as the head of
/// this file has it (Waudby-Smith & Ramdas 2024).
fn log_ratios(payoffs: &[f64; 4], counts: [f64; 4]) -> [f64; STAKES] {
    STAKE.each_ref().map(|stake| {
        let bets = counts.iter().zip(payoffs).filter(|(count, _)| **count > 0.0);
        bets.map(|(count, payoff)| count * (stake * payoff).ln_1p()).sum()
    })
}

/// The largest difference up to which all are rejected; −1 if none is. What a pair wins falls as the
/// difference rises that is bet against, so there is one place where the bet stops winning.
fn rejected_up_to(counts: &Counts, dispersion: f64) -> f64 {
    let units = counts.units(dispersion);
    last(-1.0..1.0, |difference| {
        is_rejected(log_ratios(&payoffs(Margin { ratio: 1.0, absolute: difference }), units))
    })
}

/// What so many pairs show in nine cases of ten at least, of backends whose failures have nothing to do with
/// each other: natural logarithms of the e-values for "worse" and for "better". Where requests bring their
/// failures with them, it is more.
pub fn outlook(settings: &Settings, pairs: f64, failing: Arms<f64>) -> (f64, f64) {
    let both = failing.stable * failing.canary;
    let (stable, canary) = (pairs * (failing.stable - both), pairs * (failing.canary - both));
    // The difference of the two is nearly normal (central limit), and may be that much to one side.
    let off = 0.5 * NINE_IN_TEN * (stable + canary).sqrt();
    let log_e = |margin: Margin, [alone, other]: [f64; 2]| {
        let (alone, other, both) = ((alone - off).max(0.0), other + off, pairs * both);
        let none = (pairs - alone - other - both).max(0.0);
        log_sum_exp(log_ratios(&payoffs(margin), [none, other, alone, both])) - (STAKES as f64).ln()
    };
    // Half the mass is bet from the beginning on, and the rest is worth what it was.
    let worse = log_sum_exp([log_e(settings.tolerance(), [canary, stable]), 0.0]) - std::f64::consts::LN_2;
    (worse, log_e(Margin { ratio: 1.0, absolute: -settings.promotion_margin }, [stable, canary]))
}

/// The normal distribution's 90 % quantile.
const NINE_IN_TEN: f64 = 1.281_551_565_544_6;

/// Stakes between which the capital is spread. As many as a comparison has alternatives.
const STAKES: usize = 24;

/// Stakes from a fiftieth, for small differences between many pairs that differ, to all but 0.2 %.
static STAKE: LazyLock<[f64; STAKES]> = LazyLock::new(|| {
    std::array::from_fn(|k| {
        let odds = 0.02 * (500.0_f64 / 0.02).powf(k as f64 / (STAKES - 1) as f64);
        odds / (1.0 + odds)
    })
});

/// Ticks without a pair that may mean something.
const QUIET: u64 = 10;

/// Ends of intervals are exact to a 500,000th.
const BISECTIONS: u32 = 20;

#[cfg(test)]
mod tests;
