//! Intervals against the tests that they are made of, and against the truth.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

fn tick(stable: (u64, u64), canary: (u64, u64)) -> Arms<Sample> {
    let sample = |(requests, failures)| Sample { requests, failures };
    Arms { stable: sample(stable), canary: sample(canary) }
}

fn binomial(rng: &mut StdRng, n: u64, p: f64) -> u64 {
    (0..n).filter(|_| rng.random::<f64>() < p).count() as u64
}

#[test]
fn the_threshold_belongs_to_the_misses() {
    assert!((ALONE - (LINES as f64).ln() - REJECTED).abs() < 1e-14);
    assert!((REJECTED - (2.0 / MISSES).ln()).abs() < 1e-15);
}

#[test]
fn nothing_seen_excludes_nothing() {
    let mut difference = Difference::default();
    assert_eq!(difference.interval(), None);
    difference.update(tick((500, 3), (0, 0)), 1.0);
    assert_eq!(difference.interval(), None);
    assert_eq!(of_one((0.0, 0.0)), None);
}

#[test]
fn an_interval_holds_what_is_seen_and_changes_sign_with_the_arms() {
    for (stable, canary) in [((900, 9), (100, 1)), ((500, 1), (500, 60)), ((500, 60), (500, 1))] {
        let (mut there, mut back) = (Difference::default(), Difference::default());
        for _ in 0..100 {
            there.update(tick(stable, canary), 1.0);
            back.update(tick(canary, stable), 1.0);
        }
        let seen = canary.1 as f64 / canary.0 as f64 - stable.1 as f64 / stable.0 as f64;
        let interval = there.interval().unwrap();
        assert!(interval.low < seen && seen < interval.high, "{interval:?} for {seen}");
        let mirrored = back.interval().unwrap();
        assert!((interval.low + mirrored.high).abs() < 1e-6, "{interval:?} and {mirrored:?}");
        assert!(interval.high - interval.low < 0.1, "{interval:?}");
    }
}

#[test]
fn more_requests_narrow_it() {
    let mut difference = Difference::default();
    let mut width = 2.0;
    for _ in 0..6 {
        (0..100).for_each(|_| difference.update(tick((450, 4), (50, 1)), 1.0));
        let Interval { low, high } = difference.interval().unwrap();
        assert!(high - low < width);
        width = high - low;
    }
    assert!(width < 0.012, "{width}");
}

#[test]
fn clusters_widen_it() {
    let width = |dispersion| {
        let mut difference = Difference::default();
        (0..100).for_each(|_| difference.update(tick((450, 9), (50, 1)), dispersion));
        let Interval { low, high } = difference.interval().unwrap();
        high - low
    };
    assert!(width(4.0) > 1.5 * width(1.0));
}

/// An interval misses in at most 5 % of rollouts at any of 300 ticks, of which every fifth is looked at here.
/// Of 150, 22 or more would come once in twenty thousand (Chernoff: 150·KL(22/150 ‖ 0.05) = 9.9), so this
/// passes with nearly any seed.
#[test]
fn it_misses_the_truth_in_few_rollouts_however_often_one_looks() {
    let mut rng = StdRng::seed_from_u64(11);
    let misses = (0..150).filter(|_| {
        let mut difference = Difference::default();
        (0..300).any(|t| {
            // The base rate moves, the difference does not.
            let base = 0.02 + 0.015 * (f64::from(t) / 40.0).sin();
            let stable = (80, binomial(&mut rng, 80, base));
            let canary = (20, binomial(&mut rng, 20, base + 0.03));
            difference.update(tick(stable, canary), 1.0);
            let misses = |interval: Interval| !(interval.low..=interval.high).contains(&0.03);
            t % 5 == 0 && difference.interval().is_some_and(misses)
        })
    });
    let misses = misses.count();
    assert!(misses < 22, "{misses} of 150");
}

#[test]
fn one_rate_lies_where_it_was_seen() {
    let Interval { low, high } = of_one((10_000.0, 100.0)).unwrap();
    assert!(low > 0.006 && low < 0.01 && high > 0.01 && high < 0.015, "{low} to {high}");
    let Interval { low, high } = of_one((100.0, 0.0)).unwrap();
    assert!(low == 0.0 && high < 0.06, "{low} to {high}");
    let Interval { low, high } = of_one((100.0, 100.0)).unwrap();
    assert!(low > 0.6 && high == 1.0, "{low} to {high}");
}

#[test]
fn wilsons_interval_is_the_published_one() {
    // Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: 81 of 263.
    let score = wilson(Sample { requests: 263, failures: 81 }).unwrap();
    assert!((score.low - 0.2553).abs() < 5e-5 && (score.high - 0.3662).abs() < 5e-5, "{score:?}");
    assert_eq!(wilson(Sample::default()), None);
}
