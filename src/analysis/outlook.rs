//! How much evidence is to be expected, before there is any: what a rollout can find, and how soon.
//!
//! While traffic stays as it is, so does what a tick adds to ln LR of each alternative (see
//! [`error_rate`](super::error_rate)): a constant, and a multiple of each arm's failures. Those are binomial, so
//! the sum's mean and variance are known; it is nearly normal (central limit), and stays above its mean less 1.28
//! standard deviations in nine cases of ten. That is what is foretold. It is a little less than what really comes:
//! evidence may be looked at in every tick, so it need not be enough in the last one.

use super::{
    error_rate::{ALTERNATIVES, Direction, Margin},
    mixture::log_sum_exp,
    verdict::Arms,
};

/// What evidence comes to, from traffic that is to be expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    direction: Direction,
    margin: Margin,
    /// Of ln LR, for each alternative.
    mean: [f64; ALTERNATIVES],
    variance: [f64; ALTERNATIVES],
}

impl Outlook {
    /// Of evidence for or against a margin, of which there is none yet.
    pub fn new(direction: Direction, margin: Margin) -> Self {
        Self { direction, margin, mean: [0.0; ALTERNATIVES], variance: [0.0; ALTERNATIVES] }
    }

    /// Adds so many requests of both arms, of which these shares fail, `dispersion` at a time: the mean and the
    /// variance of [`error_rate`](super::error_rate)'s ln LR(g), which is linear in binomial counts.
    pub fn add(&mut self, requests: Arms<f64>, failing: Arms<f64>, dispersion: f64) {
        let Arms { stable, canary } = requests.map(|requests| requests / dispersion.max(1.0));
        if stable <= 0.0 || canary <= 0.0 {
            return;
        }
        let q = self.margin.ratio * canary / (self.margin.ratio * canary + stable);
        let (of_stable, of_canary) = (stable * failing.stable, canary * failing.canary);
        for (k, alternative) in self.direction.grid().iter().enumerate() {
            let d = (alternative.excess * q).ln_1p();
            let each = alternative.log - d;
            self.mean[k] += of_canary * each - (of_stable + stable * self.margin.absolute) * d;
            self.variance[k] +=
                of_canary * (1.0 - failing.canary) * each * each + of_stable * (1.0 - failing.stable) * d * d;
        }
    }

    /// What the logarithm of the e-value is at least, in nine cases of ten.
    pub fn log_e(&self) -> f64 {
        self.below_mean(NINE_OF_TEN)
    }

    /// What it is in the middle of all cases.
    pub fn median_log_e(&self) -> f64 {
        self.below_mean(0.0)
    }

    fn below_mean(&self, deviations: f64) -> f64 {
        let of = |k: usize| self.mean[k] - deviations * self.variance[k].sqrt();
        let mean = log_sum_exp(std::array::from_fn::<_, ALTERNATIVES, _>(of)) - (ALTERNATIVES as f64).ln();
        match self.direction {
            // Half of the mixture lies on later starts, which are worth no less than nothing.
            Direction::Worse => (mean - std::f64::consts::LN_2).max(0.0),
            Direction::Better => mean,
        }
    }
}

/// The normal distribution's 90 % quantile.
const NINE_OF_TEN: f64 = 1.281_551_565_544_600_4;

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::analysis::error_rate::{Comparison, Sample};

    /// Of 400 draws, 40 are to be expected below, and 22 to 58 in all but one case of 400 (three standard
    /// deviations). The foretold value is a bound, so fewer are fine.
    #[test]
    fn nine_of_ten_have_at_least_what_is_foretold() {
        let margin = Margin { ratio: 1.1, absolute: 0.0002 };
        for (failing, ticks) in [(0.02, 200), (0.1, 40)] {
            let mut outlook = Outlook::new(Direction::Worse, margin);
            let rates = Arms { stable: 0.005, canary: failing };
            let length = f64::from(ticks);
            outlook.add(Arms { stable: 80.0 * length, canary: 20.0 * length }, rates, 1.0);
            let foretold = outlook.log_e();
            assert!(foretold > 3.0, "{foretold}");
            let mut rng = StdRng::seed_from_u64(7);
            let mut draw = |of: u64, rate: f64| (0..of).filter(|_| rng.random::<f64>() < rate).count() as u64;
            let below = (0..400).filter(|_| {
                let mut comparison = Comparison::worse(margin, 30);
                for _ in 0..ticks {
                    let stable = Sample { requests: 80, failures: draw(80, rates.stable) };
                    let canary = Sample { requests: 20, failures: draw(20, rates.canary) };
                    comparison.update(Arms { stable, canary }, 1.0);
                }
                comparison.log_e() < foretold
            });
            let below = below.count();
            assert!((5..=58).contains(&below), "{below} of 400 for {failing}");
        }
    }

    #[test]
    fn clusters_and_the_lack_of_traffic_are_worth_less() {
        let log_e = |canary: f64, dispersion: f64| {
            let mut outlook = Outlook::new(Direction::Better, Margin { ratio: 1.0, absolute: 0.005 });
            outlook.add(Arms { stable: 5_000.0, canary }, Arms { stable: 0.001, canary: 0.001 }, dispersion);
            outlook.log_e()
        };
        assert!(log_e(5_000.0, 1.0) > log_e(1_000.0, 1.0));
        assert!(log_e(5_000.0, 1.0) > log_e(5_000.0, 3.0));
        assert_eq!(log_e(0.0, 1.0), 0.0);
    }
}
