//! A judge like Kayenta's (`NetflixACAJudge`): is a metric's canary series shifted upwards?
//!
//! The two series are compared by the Mann–Whitney test (1947), turned around into an interval for the
//! shift between them: with all pairwise differences in order, its ends are those at rank
//! `n·m/2 ∓ z·√(n·m·(n + m + 1)/12)`, and the estimate is their median (Hodges & Lehmann 1963). Kayenta
//! finds the same ends by root-finding. It calls a series high when the lower end, at 98 %, is above a
//! quarter of the estimate, and the ratio of the means at least 1.

/// Whether the canary's points are surely higher than the baseline's.
pub(super) fn is_high(canary: &[f64], baseline: &[f64]) -> bool {
    let (n, m) = (canary.len() as f64, baseline.len() as f64);
    if canary.is_empty() || baseline.is_empty() {
        return false;
    }
    let mut differences: Vec<f64> = canary.iter().flat_map(|c| baseline.iter().map(move |b| c - b)).collect();
    let half = Z * (n * m * (n + m + 1.0) / 12.0).sqrt();
    let lower = n * m / 2.0 - half;
    // With too few points there is no such rank, and nothing is sure. The cast saturates.
    if lower < 1.0 {
        return false;
    }
    let mut at = |rank: usize| *differences.select_nth_unstable_by(rank, f64::total_cmp).1;
    let (low, shift) = (at(lower as usize - 1), at((n * m / 2.0) as usize));
    let mean = |points: &[f64]| points.iter().sum::<f64>() / points.len() as f64;
    low > 0.25 * shift.abs() && mean(canary) >= mean(baseline)
}

/// The normal distribution's 99 % quantile: 98 % lie between it and its negative.
const Z: f64 = 2.326_347_874_040_841;

#[cfg(test)]
mod tests {
    use super::*;

    fn series(from: u32, step: u32) -> Vec<f64> {
        (0..60).map(|i| f64::from(from + i * 37 % 60 * step)).collect()
    }

    #[test]
    fn a_shift_is_high_and_its_absence_is_not() {
        assert!(is_high(&series(40, 1), &series(0, 1)));
        assert!(!is_high(&series(0, 1), &series(0, 1)));
        assert!(!is_high(&series(0, 1), &series(40, 1)));
        assert!(!is_high(&series(3, 1), &series(0, 1)));
    }

    #[test]
    fn little_is_not_sure() {
        assert!(!is_high(&[], &[1.0]));
        assert!(!is_high(&[5.0, 6.0], &[1.0, 2.0]));
    }

    #[test]
    fn constant_series_differ_or_do_not() {
        assert!(is_high(&[2.0; 60], &[1.0; 60]));
        assert!(!is_high(&[1.0; 60], &[1.0; 60]));
    }
}
