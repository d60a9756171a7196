//! That pairs prove no more than they show: the bets by numbers, and whole rollouts by simulation.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

const ONE: Counts = Counts { none: 0, stable: 0, canary: 0, both: 0, timed: 0, slower: 0 };

fn settings() -> Settings {
    Settings::default()
}

/// So many of each kind.
fn counts(none: u64, stable: u64, canary: u64, both: u64) -> Counts {
    Counts { none, stable, canary, both, ..ONE }
}

/// What one pair is worth to each stake under probabilities of the four kinds.
fn mean_of_one(margin: Margin, probabilities: [f64; 4]) -> impl Iterator<Item = f64> {
    let payoffs = payoffs(margin);
    STAKE.iter().map(move |stake| {
        probabilities.iter().zip(payoffs).map(|(p, payoff)| p * (1.0 + stake * payoff)).sum()
    })
}

proptest! {
    /// The proof at the head of the module, by numbers: under the null no stake gains, however the two
    /// halves of a pair depend on each other.
    #[test]
    fn no_bet_gains_on_a_canary_that_is_no_worse(
        stable in 0.0..1.0f64, share in 0.0..1.0f64, overlap in 0.0..1.0f64,
        ratio in 1.0..3.0f64, absolute in 0.0..0.1f64,
    ) {
        let canary = (share * ratio * (stable + absolute)).min(1.0);
        let (least, most) = ((stable + canary - 1.0).max(0.0), stable.min(canary));
        let both = least + overlap * (most - least);
        let probabilities = [1.0 - stable - canary + both, stable - both, canary - both, both];
        for mean in mean_of_one(Margin { ratio, absolute }, probabilities) {
            prop_assert!(mean <= 1.0 + 1e-12, "{mean}");
        }
    }

    #[test]
    fn nothing_is_ever_infinite(
        none in 0u64..1_000_000, stable in 0u64..1_000_000, canary in 0u64..1_000_000, both in 0u64..1_000_000,
        timed in 0u64..1_000_000, slower in 0u64..1_000_000,
    ) {
        let mut paired = Paired::new(&settings(), 10);
        paired.update(&Counts { timed, slower, ..counts(none, stable, canary, both) }, 1.0);
        let numbers = [paired.failing(), paired.better(), paired.slower().unwrap(), paired.combined()];
        prop_assert!(numbers.iter().all(|number| number.is_finite()), "{numbers:?}");
        if let Some(Interval { low, high }) = paired.difference(1.0) {
            let seen = (canary as f64 - stable as f64) / (none + stable + canary + both) as f64;
            prop_assert!(low <= seen + 1e-5 && seen - 1e-5 <= high, "{low} {seen} {high}");
        }
    }

    /// The other way round is the other side's interval, and more of the same only narrows it.
    #[test]
    fn intervals_are_symmetric_and_shrink(none in 0u64..5_000, stable in 0u64..500, canary in 0u64..500) {
        let of = |times: u64| {
            let mut paired = Paired::new(&settings(), 10);
            paired.update(&counts(none * times, stable * times, canary * times, 0), 1.0);
            paired.difference(1.0)
        };
        let mut swapped = Paired::new(&settings(), 10);
        swapped.update(&counts(none, canary, stable, 0), 1.0);
        if let Some(Interval { low, high }) = of(1) {
            prop_assert_eq!(swapped.difference(1.0), Some(Interval { low: -high, high: -low }));
            let more = of(4).unwrap();
            prop_assert!(more.low >= low - 1e-5 && more.high <= high + 1e-5, "{low} {high} {more:?}");
        }
    }
}

#[test]
fn only_pairs_that_one_of_them_failed_tell_them_apart() {
    let exact = Settings { ratio_tolerance: 1.0, absolute_tolerance: 0.0, ..settings() };
    let evidence = |tick: Counts| {
        let mut paired = Paired::new(&exact, 1);
        paired.update(&tick, 1.0);
        paired.failing()
    };
    assert!(evidence(counts(10_000, 0, 0, 3_000)).abs() < 1e-12);
    assert_eq!(evidence(counts(10_000, 3, 9, 3_000)), evidence(counts(0, 3, 9, 0)));
    // As the sign test has it: eleven of eleven come once in 2,048.
    assert!(
        evidence(counts(0, 0, 11, 0)) > 20.0_f64.ln() && evidence(counts(0, 0, 11, 0)) < 2_048.0_f64.ln()
    );
}

#[test]
fn what_the_tolerance_allows_is_no_evidence() {
    let mut paired = Paired::new(&settings(), 30);
    // 10 % of both, and the canary 1.05 times as often: at most 1.1 times is allowed.
    for _ in 0..1_000 {
        paired.update(&counts(8_900, 0, 50, 1_000), 1.0);
    }
    assert!(paired.failing() < 0.1, "{}", paired.failing());
    let mut small = Paired::new(&settings(), 30);
    // 0.01 points more, of 0.02 that do not matter.
    for _ in 0..1_000 {
        small.update(&counts(9_999, 0, 1, 0), 1.0);
    }
    assert!(small.failing() < 0.1, "{}", small.failing());
}

#[test]
fn a_canary_within_the_margin_is_proven_as_fast_as_the_plan_says() {
    let target = -settings().promotion_alpha.ln();
    let proves = |pairs: &u64| outlook(&settings(), *pairs as f64, Arms::default()).1 >= target;
    let needed = (1..2_000).find(proves).unwrap();
    assert!((650..1_200).contains(&needed), "{needed}");
    let better_after = |pairs: u64| {
        let mut paired = Paired::new(&settings(), 30);
        (0..pairs).for_each(|_| paired.update(&counts(1, 0, 0, 0), 1.0));
        paired.better()
    };
    assert!(better_after(needed) >= target - 1e-6 && better_after(needed - 1) < target);
    // Pairs that differ both ways make it longer; many of them do not make it impossible.
    let mut noisy = Paired::new(&settings(), 30);
    for _ in 0..900 {
        noisy.update(&counts(90, 5, 5, 0), 1.0);
    }
    assert!(noisy.better() >= target, "{}", noisy.better());
}

#[test]
fn failures_that_come_together_are_one() {
    let evidence = |failures: u64, dispersion: f64| {
        let mut paired = Paired::new(&settings(), 1);
        paired.update(&counts(0, 0, failures, 0), dispersion);
        paired.failing()
    };
    assert_eq!(evidence(40, 4.0), evidence(10, 1.0));
}

#[test]
fn a_tick_is_one_observation_of_speed() {
    let slower = |ticks: u64, timed: u64, slower: u64| {
        let mut paired = Paired::new(&settings(), 30);
        (0..ticks).for_each(|_| paired.update(&Counts { timed, slower, ..counts(timed, 0, 0, 0) }, 1.0));
        paired.slower().unwrap()
    };
    assert_eq!(slower(5, 10, 9), slower(5, 10_000, 9_000));
    assert!(slower(1, 1_000_000, 1_000_000) < 1.0, "a pause is no version");
    assert!(slower(15, 3, 3) > 6.9, "{}", slower(15, 3, 3));
    assert!(slower(100_000, 10, 5) <= 1e-12);
    let off = Settings { latency_margin: None, ..settings() };
    let mut paired = Paired::new(&off, 30);
    paired.update(&Counts { timed: 10, slower: 10, ..counts(10, 0, 0, 0) }, 1.0);
    assert_eq!((paired.slower(), paired.combined()), (None, paired.failing()));
}

#[test]
fn how_many_are_slower_lies_where_it_was_seen() {
    let interval = |ticks: u64, slower: &[u64]| {
        let mut paired = Paired::new(&settings(), 30);
        let mut ticks = (0..ticks).zip(slower.iter().cycle());
        ticks.by_ref().for_each(|(_, slower)| {
            paired.update(&Counts { timed: 10, slower: *slower, ..counts(10, 0, 0, 0) }, 1.0);
        });
        paired.slower_share()
    };
    assert_eq!(interval(0, &[0]), None);
    let hardly_any = interval(2, &[5]).unwrap();
    assert!(hardly_any.low < 0.01 && hardly_any.high > 0.99, "{hardly_any:?}");
    // What rolls back by itself is above one half.
    let all = interval(10, &[10]).unwrap();
    assert!(all.low > 0.5 && all.high == 1.0, "{all:?}");
    let none = interval(10, &[0]).unwrap();
    assert!(none.low == 0.0 && (none.high - (1.0 - all.low)).abs() < 1e-5, "{none:?}");
    let (few, many) = (interval(50, &[3, 5]).unwrap(), interval(500, &[3, 5]).unwrap());
    assert!(few.low < many.low && many.low < 0.4 && 0.4 < many.high && many.high < few.high);
    // Shares that differ little say more than as many zeros and ones would.
    let (alike, unlike) = (interval(200, &[5]).unwrap(), interval(200, &[0, 10]).unwrap());
    assert!(alike.high - alike.low < 0.5 * (unlike.high - unlike.low), "{alike:?}, {unlike:?}");
}

/// With 500 of them and misses of 5 % the number of those that ever miss is binomial: mean 25 at most,
/// deviation 4.9; 44 is not quite four of those above.
#[test]
fn the_share_of_slower_pairs_is_missed_in_few_rollouts_however_often_one_looks() {
    let mean = 0.3;
    let is_missed =
        |shares: &Shares| shares.rejected_up_to() > mean || 1.0 - shares.inverted().rejected_up_to() < mean;
    let missed = (0..500).filter(|seed| {
        let mut rng = SmallRng::seed_from_u64(*seed);
        let mut shares = Shares::default();
        (1..=200).any(|tick| {
            // Many pairs of any speed, or one alone: as far apart as shares can be.
            let many = rng.random::<f64>() * 2.0 * mean;
            shares.add(if tick % 2 == 0 { many } else { f64::from(rng.random_bool(mean)) });
            tick % 20 == 0 && is_missed(&shares)
        })
    });
    let missed = missed.count();
    assert!(missed <= 44, "{missed} of 500");
}

#[test]
fn silence_is_news_after_a_while() {
    let mut paired = Paired::new(&settings(), 30);
    let quiet = |ticks: u64, paired: &mut Paired| (0..ticks).for_each(|_| paired.update(&ONE, 1.0));
    quiet(9, &mut paired);
    assert_eq!(paired.silence(), None);
    quiet(1, &mut paired);
    assert_eq!(paired.silence(), Some(10));
    (0..100).for_each(|_| paired.update(&counts(1, 0, 0, 0), 1.0));
    assert_eq!(paired.silence(), None);
    paired.begin_step();
    assert_eq!(paired.in_step(), 0);
    quiet(12, &mut paired);
    assert_eq!(paired.silence(), Some(12));
}

/// Of rollouts of a canary at the edge of what is allowed, looked at after each tick, at most a share α is
/// ever found guilty. With 2,000 of them and α = 5 % the number is binomial: mean 100 at most, deviation 9.7;
/// 139 is four of those above.
#[test]
fn at_most_alpha_of_harmless_canaries_are_ever_blamed() {
    let (alpha, runs, ticks) = (0.05_f64, 2_000, 120);
    let exact = Settings { ratio_tolerance: 1.0, absolute_tolerance: 0.0, ..settings() };
    let mut rng = SmallRng::seed_from_u64(4);
    let (mut blamed, mut missed) = (0, 0);
    for run in 0..runs {
        let mut paired = Paired::new(&exact, 12);
        let (mut guilty, mut excluded) = (false, false);
        // Some pages fail for both, some at random for either, and every third rollout sees an incident.
        for tick in 0..ticks {
            let alone = if run % 3 == 0 && (40..60).contains(&tick) { 0.3 } else { 0.04 };
            let mut seen = ONE;
            for _ in 0..20 {
                let kind: f64 = rng.random();
                let slow = rng.random::<bool>();
                match kind {
                    _ if kind < alone => seen.canary += 1,
                    _ if kind < 2.0 * alone => seen.stable += 1,
                    _ if kind < 2.0 * alone + 0.02 => seen.both += 1,
                    _ => seen.none += 1,
                }
                seen.timed += 1;
                seen.slower += u64::from(slow);
            }
            paired.update(&seen, 1.0);
            guilty |= paired.combined() >= -alpha.ln();
            // The whole of it costs too much to look at each time.
            if tick % 40 == 39 {
                excluded |=
                    paired.difference(1.0).is_some_and(|Interval { low, high }| low > 0.0 || high < 0.0);
            }
        }
        blamed += u32::from(guilty);
        missed += u32::from(excluded);
    }
    assert!(blamed <= 139, "{blamed} of {runs}");
    assert!(missed <= 139, "{missed} of {runs}");
}

#[test]
fn a_canary_that_fails_what_stable_serves_is_found() {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut paired = Paired::new(&settings(), 30);
    let threshold = -0.002_f64.ln();
    let found = (0..600).find(|_| {
        let failed = (0..10).filter(|_| rng.random::<f64>() < 0.05).count() as u64;
        paired.update(&counts(10 - failed, 0, failed, 0), 1.0);
        paired.combined() >= threshold
    });
    // About thirteen failures of its own, so 260 pairs; half as many again is generous.
    assert!(found.is_some_and(|tick| tick < 40), "{found:?}");
}
