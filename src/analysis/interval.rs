//! How far apart two failure rates are, or how high one is: intervals that hold at every look.
//!
//! A confidence sequence is the set of values that no e-process has rejected (Howard, Ramdas, McAuliffe
//! & Sekhon 2021): if each end is wrong with probability at most α/2 over *all* ticks, so is the whole
//! with α, however often somebody looks. Here the values are differences δ between the canary's failure
//! rate and stable's, the same in every tick, and the e-processes are those of
//! [`error_rate`](super::error_rate) with ρ = 1 and one start. Only, there the charge for δ is rounded
//! up from `ns·δ·(1 − b)` to `−ns·δ·ln b`, and here it is not; the proof there has both.
//!
//! Since the charge is linear in δ, so is a process's logarithm for each alternative: `A − δ·B`, where A
//! and B are sums over ticks that do not know δ. Two numbers for each alternative therefore stand for
//! the processes of *all* δ at once, and the end of the interval is where their mean crosses 2/α. That
//! mean's logarithm is convex in δ, so Newton's method comes to it from one side and may stop anywhere:
//! what it then says is only wider. It begins where the first process would be enough by itself, since the
//! mean is at least a part of each. To look below 0, the arms change places.
//!
//! For one rate θ alone the same is simpler still: `x·ln a − n·θ·(a − 1)` needs no sums but `x` and `n`.
//!
//! [`wilson`] is of another kind: for one look at one arm, for people who watch.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{
    error_rate::Sample,
    logarithm::ln_1p,
    verdict::{Arms, Interval},
};

/// Where the difference of two failure rates lies, tick by tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Against "the canary's rate is at most stable's + δ", and against "at least".
    canary: Sides,
    /// The same with the arms in each other's places.
    stable: Sides,
}

impl Default for Difference {
    fn default() -> Self {
        let sides = || Sides { above: [Line::default(); LINES], below: [Line::default(); LINES] };
        Self { canary: sides(), stable: sides() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sides {
    above: [Line; LINES],
    below: [Line; LINES],
}

/// The logarithm of one alternative's process, as a function of δ.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Line {
    at_zero: f64,
    slope: f64,
}

impl Difference {
    /// Takes in one tick, whose failures come `dispersion` at a time; 1 or more.
    pub fn update(&mut self, Arms { stable, canary }: Arms<Sample>, dispersion: f64) {
        if stable.requests == 0 || canary.requests == 0 {
            return;
        }
        let (stable, canary) = (stable.units(dispersion), canary.units(dispersion));
        self.canary.update(canary, stable);
        self.stable.update(stable, canary);
    }

    /// The canary's failure rate less stable's; nothing as long as nothing is excluded.
    pub fn interval(&self) -> Option<Interval> {
        let low = match rejected_up_to(&self.canary.above) {
            Some(difference) => difference,
            None => -rejected_down_to(&self.stable.below),
        };
        let high = match rejected_up_to(&self.stable.above) {
            Some(difference) => -difference,
            None => rejected_down_to(&self.canary.below),
        };
        // Both ends can only be passed where the difference moves; then there is no one value to name.
        (low > -1.0 || high < 1.0).then(|| Interval { low: low.min(high), high: low.max(high) })
    }
}

impl Sides {
    /// Adds a tick to A and B of the head of this file; `one` stands where the canary does in
    /// [`error_rate`](super::error_rate)'s formulas, `other` where stable does.
    fn update(&mut self, one: (f64, f64), other: (f64, f64)) {
        let (n, x) = one;
        let (n_other, x_other) = other;
        let q = n / (n + n_other);
        for (lines, grid) in [(&mut self.above, &*ABOVE), (&mut self.below, &*BELOW)] {
            let excesses = grid.each_ref().map(|factor| factor.excess * q);
            if x + x_other > 0.0 {
                let logarithms = ln_1p(&excesses);
                for ((line, factor), logarithm) in lines.iter_mut().zip(grid).zip(logarithms) {
                    line.at_zero += x * factor.log - (x + x_other) * logarithm;
                }
            }
            for (line, excess) in lines.iter_mut().zip(excesses) {
                // 1 − b, with b = 1/(1 + excess).
                line.slope -= n_other * excess / (1.0 + excess);
            }
        }
    }
}

/// Where one failure rate lies, given `x` failures of `n` requests, in clusters counted once; nothing
/// before there was a request. By `x·ln a − n·θ·(a − 1)`, whose exponential has a mean of at most 1 as the proof in
/// [`error_rate`](super::error_rate) has it for one arm.
pub(super) fn of_one((n, x): (f64, f64)) -> Option<Interval> {
    let lines = |grid: &[Factor; LINES]| {
        let line = |factor: &Factor| Line { at_zero: x * factor.log, slope: -n * factor.excess };
        grid.each_ref().map(line)
    };
    (n > 0.0).then(|| Interval {
        low: rejected_up_to(&lines(&ABOVE)).unwrap_or(0.0),
        high: rejected_down_to(&lines(&BELOW)),
    })
}

/// The largest value from 0 to 1 up to which all are rejected, for lines that fall; nothing if 0 is not.
fn rejected_up_to(lines: &[Line; LINES]) -> Option<f64> {
    let falling = lines.iter().filter(|line| line.slope < 0.0);
    let mut at = falling.map(|line| (line.at_zero - ALONE) / -line.slope).fold(0.0, f64::max).min(1.0);
    let (mut height, mut slope) = mean(lines, at);
    if at == 0.0 && height < REJECTED {
        return None;
    }
    for _ in 0..STEPS {
        // Falling, so the division is by less than 0; where it is level, it stays rejected to the end.
        let next = if slope < 0.0 { at + (REJECTED - height) / slope } else { 1.0 };
        if next >= 1.0 || next - at < PRECISION {
            return Some(next.min(1.0));
        }
        at = next;
        (height, slope) = mean(lines, at);
    }
    Some(at)
}

/// The smallest value from 0 to 1 from which on all are rejected, for lines that rise; 1 if none is.
fn rejected_down_to(lines: &[Line; LINES]) -> f64 {
    let rising = lines.iter().filter(|line| line.slope > 0.0);
    let mut at = rising.map(|line| (ALONE - line.at_zero) / line.slope).fold(1.0, f64::min).max(0.0);
    let (mut height, mut slope) = mean(lines, at);
    if at == 1.0 && height < REJECTED {
        return 1.0;
    }
    for _ in 0..STEPS {
        let next = if slope > 0.0 { at - (height - REJECTED) / slope } else { 0.0 };
        if next <= 0.0 || at - next < PRECISION {
            return next.max(0.0);
        }
        at = next;
        (height, slope) = mean(lines, at);
    }
    at
}

/// The logarithm of the mean of all processes at one value, and how it changes there.
fn mean(lines: &[Line; LINES], at: f64) -> (f64, f64) {
    let heights = lines.each_ref().map(|line| line.at_zero + at * line.slope);
    let highest = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut slopes) = (0.0, 0.0);
    for (line, height) in lines.iter().zip(heights) {
        // What is e⁴⁰ times smaller changes no digit.
        if height > highest - 40.0 {
            let part = (height - highest).exp();
            sum += part;
            slopes += part * line.slope;
        }
    }
    (highest + sum.ln() - (LINES as f64).ln(), slopes / sum)
}

/// How many times the boundary's rate an alternative's is.
struct Factor {
    log: f64,
    /// The factor less 1.
    excess: f64,
}

/// Alternatives to each side.
const LINES: usize = 24;

/// Factors from 2 % over 1 to a thousand, denser near 1 than those of a [`Comparison`]: what is a little
/// worse need not be found, but an interval should go on shrinking.
///
/// [`Comparison`]: super::error_rate::Comparison
static ABOVE: LazyLock<[Factor; LINES]> = LazyLock::new(|| {
    std::array::from_fn(|k| {
        let excess = 0.02 * (1000.0_f64 / 0.02).powf(k as f64 / (LINES - 1) as f64);
        Factor { log: excess.ln_1p(), excess }
    })
});

/// Their inverses.
static BELOW: LazyLock<[Factor; LINES]> =
    LazyLock::new(|| ABOVE.each_ref().map(|up| Factor { log: -up.log, excess: (-up.log).exp_m1() }));

/// The share of rollouts in which an interval misses the truth at some tick, at most.
pub const MISSES: f64 = 0.05;

/// ln(2 / [`MISSES`]): each end may miss half as often.
const REJECTED: f64 = 3.688_879_454_113_936;

/// ln([`LINES`] · 2 / [`MISSES`]): what one process has to come to if all others are worth nothing.
const ALONE: f64 = REJECTED + 3.178_053_830_347_945_6;

/// Ends are this exact, a share of requests.
const PRECISION: f64 = 1e-7;

/// Steps of Newton's method at most; a handful is usual.
const STEPS: usize = 30;

/// A share and where it lies with 95 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The lower end.
    pub low: f64,
    /// The share that was seen.
    pub rate: f64,
    /// The upper end.
    pub high: f64,
}

/// Wilson's interval (1927) for one arm's failure rate; nothing while it is empty. It covers the truth
/// with 95 % at *one* look, and no decision rests on it.
pub fn wilson(sample: Sample) -> Option<Score> {
    let rate = sample.rate()?;
    let n = sample.requests as f64;
    let z2 = Z * Z;
    let middle = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
    Some(Score { low: (middle - half).max(0.0), rate, high: (middle + half).min(1.0) })
}

/// The normal distribution's 97.5 % quantile.
const Z: f64 = 1.959_963_984_540_054;

#[cfg(test)]
mod tests;
