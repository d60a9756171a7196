//! One α for all checks.
//!
//! A weighted mean of e-values is an e-value however they depend on each other (Ramdas et al. 2023),
//! so the mean of all checks may be compared with 1/α once, without a correction for their number.
//! One check alone then has to reach `1 / (α · its weight)`.
//!
//! The weights have to be fixed beforehand. Half goes to the checks on the whole service, in equal
//! parts, and half is spread over those on its routes: however many routes there are, the service's
//! own checks need at most ln 2 more evidence for it.

use super::mixture::log_sum_exp;

/// The weight of each check on the whole service, and of each on a route. All of them sum to 1.
pub fn weights(service: usize, routes: usize) -> (f64, f64) {
    let part = if service > 0 && routes > 0 { 0.5 } else { 1.0 };
    (part / service.max(1) as f64, part / routes.max(1) as f64)
}

/// Natural logarithm of the mean of e-values (Ramdas et al. 2023), given as pairs of natural logarithm and weight; 0,
/// which is no evidence, where no weight is over 0. Only the ratios of the weights matter.
pub fn combine(log_es: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (sum, weights) = log_es
        .filter(|(_, weight)| *weight > 0.0)
        .fold((f64::NEG_INFINITY, 0.0), |(sum, weights), (log_e, weight)| {
            (log_sum_exp([sum, log_e + weight.ln()]), weights + weight)
        });
    if weights > 0.0 { sum - weights.ln() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_e_values_is_taken_outside_the_logarithm() {
        let combined = combine([(8.0_f64.ln(), 1.0), (0.0, 2.0), (f64::MAX, 0.0)].into_iter());
        assert!((combined - (10.0_f64 / 3.0).ln()).abs() < 1e-12, "{combined}");
    }

    #[test]
    fn routes_get_half_together() {
        assert_eq!(weights(2, 0).0, 0.5);
        assert_eq!(weights(2, 10), (0.25, 0.05));
        assert_eq!(weights(0, 4).1, 0.25);
    }

    #[test]
    fn no_check_is_no_evidence() {
        assert_eq!(combine(std::iter::empty()), 0.0);
    }

    #[test]
    fn huge_evidence_stays_finite() {
        assert_eq!(combine([(1e9, 1.0), (-1e9, 1.0)].into_iter()), 1e9 - 2.0_f64.ln());
    }
}
