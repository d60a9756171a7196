//! The e-process behind every check: a bet spread over how bad the canary may be, and over when it
//! turned bad.
//!
//! An e-process starts at 1 and, while its null hypothesis holds, is a non-negative
//! supermartingale. Ville's inequality (1939) then says that it ever reaches 1/α with probability at
//! most α, so it may be looked at after each tick and acted on at once. A mean of e-processes is
//! one too, which is what makes both spreads legal (Howard, Ramdas, McAuliffe & Sekhon 2021; Ramdas,
//! Grünwald, Vovk & Shafer 2023).
//!
//! Everything is kept as natural logarithms, and nothing here is ever infinite: the state goes
//! through JSON, which has no word for that.

use serde::{Deserialize, Serialize};

/// An e-process over `N` alternatives, equally likely beforehand, and over the ticks at which the
/// canary may have turned bad.
///
/// For alternative `k` it keeps the logarithm of the sum, over the starts that have joined, of a
/// start's prior mass times the product of the likelihood ratios since. The value is the mean of
/// those sums over `k`, plus the mass of the starts that are still to come, each of which is worth
/// 1 until it joins. A tick without information therefore leaves the value alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "[f64; N]: Serialize", deserialize = "[f64; N]: Deserialize<'de>"))]
pub struct Mixture<const N: usize> {
    log_sums: [f64; N],
    /// Prior mass of the starts that have not joined, 0 to 1.
    to_come: f64,
    starts: Option<Starts>,
}

/// When starts join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Starts {
    ticks: u64,
    planned: u64,
}

impl<const N: usize> Mixture<N> {
    /// A process that a new start joins every [`TICKS_PER_START`] ticks; `planned` of them, at
    /// least 1, are expected after the first.
    pub fn restarting(planned: u64) -> Self {
        let planned = planned.max(1);
        let first = start_prior(0, planned);
        Self { log_sums: [first.ln(); N], to_come: 1.0 - first, starts: Some(Starts { ticks: 0, planned }) }
    }

    /// A process with one start, now.
    pub fn from_now_on() -> Self {
        Self { log_sums: [0.0; N], to_come: 0.0, starts: None }
    }

    /// Takes in one tick. `log_ratios[k]` is the logarithm of its likelihood ratio of alternative
    /// `k` against the null's boundary; finite, 0 where the tick says nothing.
    pub fn update(&mut self, log_ratios: &[f64; N]) {
        self.join_start();
        for (sum, ratio) in self.log_sums.iter_mut().zip(log_ratios) {
            debug_assert!(ratio.is_finite(), "a likelihood ratio of {ratio}");
            *sum += ratio;
        }
    }

    /// Natural logarithm of the process's value: the evidence against the null hypothesis so far.
    pub fn log_e(&self) -> f64 {
        let mean = log_sum_exp(self.log_sums) - (N as f64).ln();
        if self.to_come > 0.0 { log_sum_exp([mean, self.to_come.ln()]) } else { mean }
    }

    /// Something that is at least [`log_e`](Self::log_e), without an exponential for each alternative.
    pub(super) fn ceiling(&self) -> f64 {
        // The mean is at most the largest, what is to come at most 1, and a sum at most twice the larger.
        self.log_sums.iter().copied().fold(0.0, f64::max) + std::f64::consts::LN_2
    }

    fn join_start(&mut self) {
        let Some(Starts { ticks, planned }) = &mut self.starts else { return };
        // The first start joined when the process was made.
        if *ticks > 0 && ticks.is_multiple_of(TICKS_PER_START) {
            let mass = start_prior(*ticks / TICKS_PER_START, *planned);
            let log_mass = mass.ln();
            for sum in &mut self.log_sums {
                // ln(e^sum + mass), for one exponential less than log_sum_exp.
                *sum = sum.max(log_mass) + (-(*sum - log_mass).abs()).exp().ln_1p();
            }
            self.to_come -= mass;
        }
        *ticks += 1;
    }
}

/// Prior mass of start `index`, over 0; the sum over all starts is 1.
///
/// Half lies on the beginning, since most bad releases are bad from their first request. A quarter
/// is spread evenly over the `planned` starts (at least 1), so that turning bad half-way costs
/// ln(4 · planned) of evidence at any time. The last quarter decays as 1/(k(k+1)), whose sum is 1,
/// so that a rollout that outlasts its plan is still watched.
pub fn start_prior(index: u64, planned: u64) -> f64 {
    let planned = planned.max(1);
    match index.checked_sub(planned) {
        _ if index == 0 => 0.5,
        None | Some(0) => 0.25 / planned as f64,
        Some(beyond) => 0.25 / (beyond as f64 * (beyond as f64 + 1.0)),
    }
}

/// ln Σ exp(terms) without overflow; −∞ for no terms.
pub(crate) fn log_sum_exp<const N: usize>(terms: [f64; N]) -> f64 {
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()
}

/// Ticks between two starts: few enough to notice soon that a canary turned bad, many enough to
/// keep each start's mass useful.
pub const TICKS_PER_START: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prior_of_all_starts_is_one() {
        let until = 1_000_000;
        let sum: f64 = (0..=until).map(|i| start_prior(i, 180)).sum();
        let tail = 0.25 / (until - 180 + 1) as f64;
        assert!((sum + tail - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn a_process_starts_at_one() {
        assert_eq!(Mixture::<24>::restarting(180).log_e(), 0.0);
        assert!(Mixture::<24>::from_now_on().log_e().abs() < 1e-15);
    }

    #[test]
    fn the_ceiling_is_never_below_the_value() {
        let mut mixture = Mixture::<4>::restarting(3);
        for tick in 0..200 {
            mixture.update(&[0.5, 0.1, -0.3, if tick % 3 == 0 { 2.0 } else { -2.0 }]);
            assert!(mixture.log_e() <= mixture.ceiling());
        }
    }

    #[test]
    fn a_tick_without_information_changes_nothing() {
        let mut mixture = Mixture::<4>::restarting(3);
        mixture.update(&[0.5, 0.1, -0.3, -2.0]);
        let before = mixture.log_e();
        for _ in 0..1_000 {
            mixture.update(&[0.0; 4]);
            assert!((mixture.log_e() - before).abs() < 1e-12);
        }
    }
}
