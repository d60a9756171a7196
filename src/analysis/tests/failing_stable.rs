//! A stable that fails, and the canary that cures it: whoever fails is not fast, and whoever answers what the
//! other one failed is not slow.

use super::*;

/// How a rollout of half the traffic with these latencies and failures a tick stands at its end.
fn compare(stable: (&Histogram, u64), canary: (&Histogram, u64)) -> Verdict {
    let mut analysis = Analysis::new(&Settings::default(), 600);
    for _ in 0..10 {
        let healthy = all(1_000, 30);
        analysis.observe_before(&did(&healthy, 0), None);
    }
    let tick =
        Tick { stable: did(stable.0, stable.1), canary: did(canary.0, canary.1), routes: &[], users: None };
    (0..300).map(|_| observe_tick(&mut analysis, &tick)).last().unwrap()
}

/// What answered so, and failed besides.
fn did(answered: &Histogram, failures: u64) -> ArmTick<'_> {
    arm((answered.total() + failures, failures), answered)
}

/// So many requests that took so long.
fn all(count: u64, millis: u64) -> Histogram {
    let mut histogram = Histogram::default();
    (0..count).for_each(|_| histogram.record(Duration::from_millis(millis)));
    histogram
}

fn assert_not_slow(verdict: &Verdict) {
    for check in [Check::LatencyP50, Check::LatencyP99] {
        let report = verdict.checks.get(check).unwrap();
        assert!(report.evidence <= 0.0, "{report:?}");
    }
    assert_ne!(verdict.decision, Decision::RollBack, "{}", explain(verdict));
}

#[test]
fn a_canary_beside_a_stable_that_fails_is_not_slow() {
    let (half, none, fine) = (all(50, 30), Histogram::default(), all(100, 30));
    assert_not_slow(&compare((&half, 50), (&fine, 0)));
    assert_not_slow(&compare((&none, 100), (&fine, 0)));
}

/// What stable gets through is the quick part; compared with that alone, whoever does the whole work is slow.
#[test]
fn a_canary_that_answers_what_stable_fails_is_not_slow() {
    let (quick, mut whole) = (all(90, 30), all(90, 30));
    (0..10).for_each(|_| whole.record(Duration::from_secs(3)));
    assert_not_slow(&compare((&quick, 10), (&whole, 0)));
    // The same without failures is slow.
    let slow = compare((&quick, 0), (&whole, 0));
    assert!(slow.checks.get(Check::LatencyP99).unwrap().evidence > slow.threshold, "{}", explain(&slow));
}

/// Failures in neither arm hide that what is answered takes twice as long.
#[test]
fn a_slow_canary_is_found_beside_failures() {
    let (stable, canary) = (all(99, 30), all(99, 60));
    let verdict = compare((&stable, 1), (&canary, 1));
    let Reason::Worse(CheckReport { check, .. }) = verdict.reason else { panic!("{}", explain(&verdict)) };
    assert!(matches!(check, Check::LatencyP50 | Check::LatencyP99), "{check:?}");
}

/// The promise of [`harmless_canaries_are_rolled_back_no_more_often_than_alpha`] for latency, where each arm
/// fails a part of its requests: stable what is slow, the canary what comes.
#[test]
fn canaries_that_are_as_fast_are_called_slow_no_more_often_than_alpha() {
    let mut rng = StdRng::seed_from_u64(11);
    let rollouts = 300;
    let called = (0..rollouts).filter(|_| {
        let settings = Settings { absolute_tolerance: 0.9, ..Settings::default() };
        let mut analysis = Analysis::new(&settings, 90);
        (0..90).any(|tick| {
            // From fine to failing a third, of which most is the slow end.
            let threshold = if tick < 30 { 0.1 } else { 0.05 };
            let mut draw = |count: u64, fails: &mut dyn FnMut(&mut StdRng, f64) -> bool| {
                let (mut answered, mut failures) = (Histogram::default(), 0);
                for _ in 0..count {
                    let seconds = 0.01 * 10.0_f64.powf(rng.random());
                    if fails(&mut rng, seconds) {
                        failures += 1;
                    } else {
                        answered.record(Duration::from_secs_f64(seconds));
                    }
                }
                (answered, failures)
            };
            let (stable, xs) = draw(60, &mut |_, seconds| seconds > threshold);
            let (canary, xc) = draw(40, &mut |rng, _| rng.random::<f64>() < 0.02);
            let tick = Tick { stable: did(&stable, xs), canary: did(&canary, xc), routes: &[], users: None };
            analysis.observe(&tick) == Decision::RollBack
        })
    });
    // At most binomial of α = 1 %: 12 or more of 300 come once in 12,000.
    let called = called.count();
    assert!(called < 12, "{called} of {rollouts}");
}

/// After minutes in which all was well, one in which both versions failed everything, and another well one.
fn after_an_outage() -> Analysis {
    let mut analysis = Analysis::new(&only_errors(), 600);
    analysis.begin_step(None);
    for minute in 0..5 {
        let is_down = minute == 3;
        let failures = |requests| if is_down { requests } else { requests / 1_000 };
        let verdict = repeat(&mut analysis, 60, (900, failures(900)), (1_000, failures(1_000)));
        assert_eq!(matches!(verdict.reason, Reason::BothFailing { .. }), is_down, "{}", explain(&verdict));
    }
    analysis
}

/// An outage is no cluster of thousands of failures, by which nothing would count any more.
#[test]
fn a_canary_that_turns_bad_after_an_outage_is_found() {
    let mut analysis = after_an_outage();
    assert!(analysis.verdict().dispersion < 1.5, "{}", analysis.verdict().dispersion);
    let ticks = (1..60).find(|_| decide(&mut analysis, (900, 1), (1_000, 50)) == Decision::RollBack);
    assert!(ticks.is_some_and(|ticks| ticks <= 3), "{ticks:?}");
}

#[test]
fn an_outage_before_the_promotion_excuses_nothing_after_it() {
    let mut analysis = after_an_outage();
    analysis.begin_baking();
    let verdict = bake(&mut analysis, (1_000, 1));
    assert_eq!(verdict.checks.get(Check::MaxErrorRate).unwrap().limit, Some(0.05));
    let ticks = (1..60).find(|_| bake(&mut analysis, (1_000, 150)).decision == Decision::RollBack);
    assert!(ticks.is_some_and(|ticks| ticks <= 3), "{ticks:?}");
}
