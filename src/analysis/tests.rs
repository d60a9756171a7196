//! What a rollout sees of the analysis: decisions, their order, and their reasons.

mod circumstances;
mod failing_stable;
mod guards_only;
mod pauses;
mod properties;
mod vectors;

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    explain::explain,
    verdict::{CheckReport, Verdict},
    *,
};
use crate::model::histogram::Histogram;

/// Requests and failures of one arm in one tick.
type Counts = (u64, u64);

fn only_errors() -> Settings {
    Settings { latency_margin: None, ..Settings::default() }
}

fn observe(analysis: &mut Analysis, stable: Counts, canary: Counts) -> Verdict {
    let none = Histogram::default();
    observe_tick(
        analysis,
        &Tick { stable: arm(stable, &none), canary: arm(canary, &none), routes: &[], users: None },
    )
}

/// The same, for those who look at nothing but what is decided.
fn decide(analysis: &mut Analysis, stable: Counts, canary: Counts) -> Decision {
    let none = Histogram::default();
    analysis.observe(&Tick {
        stable: arm(stable, &none),
        canary: arm(canary, &none),
        routes: &[],
        users: None,
    })
}

/// Takes in a tick, and checks that the verdict decides what the tick did.
fn observe_tick(analysis: &mut Analysis, tick: &Tick<'_>) -> Verdict {
    let decision = analysis.observe(tick);
    let verdict = analysis.verdict();
    assert_eq!(verdict.decision, decision);
    verdict
}

fn arm((requests, failures): Counts, latency: &Histogram) -> ArmTick<'_> {
    ArmTick::new(requests, failures, latency)
}

fn bake(analysis: &mut Analysis, (requests, failures): Counts) -> Verdict {
    let decision = analysis.observe_baking(&arm((requests, failures), &Histogram::default()));
    let verdict = analysis.verdict();
    assert_eq!(verdict.decision, decision);
    verdict
}

/// The same tick over and over; the last verdict.
fn repeat(analysis: &mut Analysis, ticks: u64, stable: Counts, canary: Counts) -> Verdict {
    (0..ticks).map(|_| observe(analysis, stable, canary)).last().unwrap()
}

/// A draw of how many of `n` trials of probability `p` succeed, by the gaps between successes.
fn binomial(rng: &mut StdRng, n: u64, p: f64) -> u64 {
    let gap = |rng: &mut StdRng| ((1.0 - rng.random::<f64>()).ln() / (-p).ln_1p()) as u64;
    let (mut at, mut count) = (gap(rng), 0);
    while at < n {
        count += 1;
        at = at.saturating_add(1).saturating_add(gap(rng));
    }
    count
}

fn latencies(rng: &mut StdRng, count: u64, scale: f64) -> Histogram {
    let mut histogram = Histogram::default();
    for _ in 0..count {
        // Between 10 and 100 ms, evenly in the logarithm.
        histogram.record(Duration::from_secs_f64(scale * 0.01 * 10.0_f64.powf(rng.random())));
    }
    histogram
}

/// The verdict that ends a rollout of 500 requests a tick with a tenth on the canary, and its tick.
fn run(seed: u64, ticks: u64, rates: impl Fn(u64) -> (f64, f64)) -> Option<(u64, Verdict)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut analysis = Analysis::new(&Settings::default(), 600);
    (1..=ticks).find_map(|tick| {
        let (stable, canary) = rates(tick);
        let (xs, xc) = (binomial(&mut rng, 450, stable), binomial(&mut rng, 50, canary));
        let verdict = observe(&mut analysis, (450, xs), (50, xc));
        (verdict.decision == Decision::RollBack).then_some((tick, verdict))
    })
}

#[test]
fn a_regression_from_a_tenth_to_five_percent_is_caught_within_ten_ticks() {
    // In ten ticks the canary fails 25 times on average and stable 4.5 times. Were stable's failures
    // even 10, 10 of the canary's would convict it, and fewer come once in 4,500 rollouts (Poisson).
    for seed in 0..20 {
        let (tick, verdict) = run(seed, 60, |_| (0.001, 0.05)).expect("a rollback");
        assert!(tick <= 10, "seed {seed}: tick {tick}");
        assert!(matches!(verdict.reason, Reason::Worse(CheckReport { check: Check::ErrorRate, .. })));
        assert!(verdict.evidence >= verdict.threshold);
    }
}

#[test]
fn a_canary_that_turns_bad_late_is_caught_as_fast() {
    for seed in 0..5 {
        let (tick, _) = run(seed, 400, |t| (0.001, if t > 300 { 0.05 } else { 0.001 })).unwrap();
        assert!((301..=312).contains(&tick), "seed {seed}: tick {tick}");
    }
}

#[test]
fn an_incident_in_both_arms_is_not_blamed_on_the_canary() {
    for seed in 0..5 {
        let incident = |t: u64| if (100..200).contains(&t) { 0.3 } else { 0.001 };
        assert_eq!(run(seed, 300, |t| (incident(t), incident(t))), None, "seed {seed}");
    }
}

#[test]
fn doubled_latency_is_caught_and_equal_latency_is_not() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut caught = |scale| {
        let mut analysis = Analysis::new(&Settings::default(), 600);
        (1..=60).find_map(|tick| {
            let (stable, canary) = (latencies(&mut rng, 95, 1.0), latencies(&mut rng, 5, scale));
            let arm = |latency| arm((Histogram::total(latency), 0), latency);
            let counts = Tick { stable: arm(&stable), canary: arm(&canary), routes: &[], users: None };
            let verdict = observe_tick(&mut analysis, &counts);
            (verdict.decision == Decision::RollBack).then_some((tick, verdict))
        })
    };
    let (tick, verdict) = caught(2.0).expect("a rollback");
    assert!(tick <= 30, "tick {tick}");
    assert!(matches!(
        verdict.reason,
        Reason::Worse(CheckReport { check: Check::LatencyP50 | Check::LatencyP99, .. })
    ));
    assert!(explain(&verdict).starts_with("canary takes "), "{}", explain(&verdict));
    assert_eq!(caught(1.0), None);
    assert_eq!(caught(1.15), None);
}

/// A share of at most α of harmless rollouts may cross ln(1/α), so the number that do is at most
/// binomial. Chernoff bounds its upper tail by P(X ≥ k) ≤ exp(−n·KL(k/n ‖ α)); `allowed` is the
/// smallest k that makes this one in a million, so a correct implementation passes with all but one
/// seed in a million, and one that errs at twice α at 10 % fails.
#[test]
fn harmless_canaries_are_rolled_back_no_more_often_than_alpha() {
    let rollouts = 1_000;
    let allowed = |alpha: f64| {
        let divergence = |x: f64| x * (x / alpha).ln() + (1.0 - x) * ((1.0 - x) / (1.0 - alpha)).ln();
        (1..rollouts).find(|k| {
            let share = f64::from(*k) / f64::from(rollouts);
            share > alpha && f64::from(rollouts) * divergence(share) >= 1e6_f64.ln()
        })
    };
    let mut rng = StdRng::seed_from_u64(7);
    let highest: Vec<f64> = (0..rollouts).map(|_| highest_evidence_at_the_tolerance(&mut rng)).collect();
    for alpha in [0.01_f64, 0.1] {
        let crossed = highest.iter().filter(|e| **e >= -alpha.ln()).count() as i32;
        assert!(crossed < allowed(alpha).unwrap(), "{crossed} of {rollouts} at {alpha}");
    }
}

/// The highest evidence in a rollout whose canary is as bad as the tolerance lets it be, while the
/// weight rises twice and the base rate moves with the weight.
fn highest_evidence_at_the_tolerance(rng: &mut StdRng) -> f64 {
    let mut analysis = Analysis::new(&only_errors(), 90);
    let mut highest = f64::NEG_INFINITY;
    for (stable, canary, base) in [(95, 5, 0.002), (80, 20, 0.03), (50, 50, 0.01)] {
        analysis.begin_step(Some(Weight::FULL));
        for _ in 0..30 {
            let failing = (binomial(rng, stable, base), binomial(rng, canary, 1.1 * (base + 0.0002)));
            let verdict = observe(&mut analysis, (stable, failing.0), (canary, failing.1));
            highest = highest.max(verdict.evidence);
        }
    }
    highest
}

#[test]
fn twenty_failures_in_a_row_need_no_statistics() {
    // Stable is idle, so nothing can be compared.
    let mut analysis = Analysis::new(&only_errors(), 600);
    assert_eq!(repeat(&mut analysis, 9, (0, 0), (2, 2)).decision, Decision::Continue);
    let verdict = observe(&mut analysis, (0, 0), (2, 2));
    assert_eq!(verdict.decision, Decision::RollBack);
    assert_eq!(explain(&verdict), "canary failed 20 requests in a row and answered none: rolling back");
}

#[test]
fn one_success_breaks_the_row() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    repeat(&mut analysis, 9, (0, 0), (2, 2));
    observe(&mut analysis, (0, 0), (1, 0));
    assert_ne!(repeat(&mut analysis, 9, (0, 0), (2, 2)).decision, Decision::RollBack);
}

#[test]
fn both_arms_in_trouble_hold() {
    // One arm a tick, as with little traffic: the row of failures must not be blamed either.
    let mut analysis = Analysis::new(&only_errors(), 600);
    for _ in 0..30 {
        observe(&mut analysis, (2, 2), (0, 0));
        let verdict = observe(&mut analysis, (0, 0), (2, 2));
        assert_eq!(verdict.decision, Decision::Hold);
        assert_eq!(verdict.reason, Reason::BothFailing { stable: 1.0, canary: 1.0 });
    }
}

#[test]
fn retreat_comes_before_hold() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    let verdict = repeat(&mut analysis, 60, (500, 250), (500, 500));
    assert!(matches!(verdict.reason, Reason::Worse(_)), "{verdict:?}");
}

#[test]
fn an_arm_without_traffic_holds_and_says_so() {
    for (stable, canary, reason) in [
        ((50, 0), (0, 0), Reason::NoCanaryTraffic { ticks: 10 }),
        ((0, 0), (50, 0), Reason::NoStableTraffic { ticks: 10 }),
    ] {
        let mut analysis = Analysis::new(&only_errors(), 600);
        assert_ne!(repeat(&mut analysis, 9, stable, canary).decision, Decision::Hold);
        let verdict = observe(&mut analysis, stable, canary);
        assert_eq!((verdict.decision, verdict.reason), (Decision::Hold, reason));
        assert_ne!(observe(&mut analysis, (1, 0), (1, 0)).decision, Decision::Hold);
    }
}

#[test]
fn a_step_is_left_when_it_has_seen_enough_requests() {
    let mut analysis = Analysis::new(&Settings::default(), 600);
    let verdict = repeat(&mut analysis, 9, (190, 0), (10, 0));
    assert_eq!(verdict.decision, Decision::Continue);
    assert_eq!(verdict.reason, Reason::TooFewRequests { requests: 90, minimum: 100 });
    assert_eq!(verdict.requests_needed, Some(10));
    assert_eq!(observe(&mut analysis, (190, 0), (10, 0)).decision, Decision::Advance);
    analysis.begin_step(Some(Weight::FULL));
    assert_eq!(observe(&mut analysis, (190, 0), (10, 0)).decision, Decision::Continue);
}

#[test]
fn the_last_step_waits_for_proof_and_knows_how_long() {
    let mut analysis = Analysis::new(&Settings::default(), 600);
    analysis.begin_step(None);
    let verdict = repeat(&mut analysis, 3, (50, 0), (50, 0));
    assert_eq!(verdict.reason, Reason::NotYetNonInferior { margin: 0.005 });
    let needed = verdict.requests_needed.expect("evidence is coming");
    let more =
        (1..).find(|_| observe(&mut analysis, (50, 0), (50, 0)).decision == Decision::Advance).unwrap();
    assert!((0.5..1.5).contains(&(needed as f64 / (more * 50) as f64)), "{needed} for {more} ticks of 50");
}

#[test]
fn the_last_step_knows_its_minimum_before_proof_has_come() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    analysis.begin_step(None);
    let verdict = observe(&mut analysis, (50, 0), (5, 1));
    assert!(verdict.promotion_evidence < 0.0);
    assert_eq!(verdict.reason, Reason::TooFewRequests { requests: 5, minimum: 100 });
    assert_eq!(verdict.requests_needed, Some(95));
}

#[test]
fn each_step_waits_for_proof_if_told_to() {
    let mut analysis = Analysis::new(&Settings { prove_each_step: true, ..only_errors() }, 600);
    analysis.begin_step(Some(Weight::FULL));
    let verdict = repeat(&mut analysis, 3, (50, 0), (50, 0));
    assert_eq!(verdict.reason, Reason::NotYetNonInferior { margin: 0.005 });
    let said = explain(&verdict);
    assert!(said.contains(" needed to go on, about ") && verdict.requests_needed.is_some(), "{said}");
    let verdict = repeat(&mut analysis, 30, (50, 0), (50, 0));
    assert_eq!((verdict.decision, verdict.reason), (Decision::Advance, Reason::Healthy { requests: 1650 }));
    // What is known stays known: the next one only needs requests of its own.
    analysis.begin_step(Some(Weight::FULL));
    assert_eq!(repeat(&mut analysis, 2, (50, 0), (50, 0)).decision, Decision::Advance);
}

#[test]
fn a_canary_much_worse_than_the_margin_is_not_promoted() {
    let settings = Settings { ratio_tolerance: 100.0, ..only_errors() };
    let mut analysis = Analysis::new(&settings, 600);
    analysis.begin_step(None);
    let verdict = repeat(&mut analysis, 100, (100, 1), (100, 3));
    assert_eq!(verdict.reason, Reason::NotYetNonInferior { margin: 0.005 });
    assert_eq!(verdict.requests_needed, None);
}

#[test]
fn suspicion_keeps_the_canary_where_it_is() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    repeat(&mut analysis, 4, (475, 0), (25, 0));
    let verdict = observe(&mut analysis, (475, 0), (25, 2));
    assert!(matches!(verdict.reason, Reason::Suspicious(_)), "{}", explain(&verdict));
    assert_eq!(verdict.decision, Decision::Continue);
    assert!(verdict.requests_needed.is_some());
}

#[test]
fn a_limit_on_failures_holds_whatever_stable_does() {
    let settings = Settings { max_error_rate: Some(0.05), ..only_errors() };
    let mut analysis = Analysis::new(&settings, 600);
    let verdict = repeat(&mut analysis, 20, (50, 10), (50, 10));
    let Reason::Worse(report) = &verdict.reason else { panic!("{verdict:?}") };
    assert_eq!((report.check, report.limit), (Check::MaxErrorRate, Some(0.05)));
    assert!(explain(&verdict).starts_with("canary fails 20 % of requests, limit 5 %: rolling back ("));
}

#[test]
fn a_limit_on_latency_counts_what_is_surely_over() {
    let settings = Settings { max_p99: Some(Duration::from_millis(50)), ..only_errors() };
    for (millis, decision) in [(50, Decision::Advance), (60, Decision::RollBack)] {
        let mut analysis = Analysis::new(&settings, 600);
        let mut latency = Histogram::default();
        (0..20).for_each(|_| latency.record(Duration::from_millis(millis)));
        let arm = arm((20, 0), &latency);
        let tick = Tick { stable: arm, canary: arm, routes: &[], users: None };
        let verdict = (0..5).map(|_| observe_tick(&mut analysis, &tick)).last().unwrap();
        assert_eq!(verdict.decision, decision, "{}", explain(&verdict));
    }
}

#[test]
fn baking_allows_five_times_what_stable_showed() {
    let baked = |failures| {
        let mut analysis = Analysis::new(&only_errors(), 600);
        repeat(&mut analysis, 20, (100, 2), (100, 2));
        analysis.begin_baking();
        (0..60).map(|_| bake(&mut analysis, (100, failures))).last().unwrap()
    };
    let verdict = baked(8);
    assert_eq!(verdict.decision, Decision::Continue);
    assert_eq!(
        explain(&verdict),
        "promoted version fails 8 % of 6000 requests since promotion: within its limits"
    );
    let verdict = baked(10);
    assert!(explain(&verdict).ends_with(": within its limits"), "{}", explain(&verdict));
    let verdict = baked(11);
    assert_eq!(verdict.decision, Decision::Continue);
    assert_eq!(
        explain(&verdict),
        "promoted version fails 11 % of 6000 requests since promotion: not surely over its limit of 10 %"
    );
    let verdict = baked(20);
    assert_eq!(verdict.decision, Decision::RollBack);
    assert!(
        explain(&verdict).starts_with("promoted version fails 20 % of requests, limit 10 %: rolling back")
    );
}

#[test]
fn baking_without_steps_allows_one_failure_in_twenty() {
    let mut analysis = Analysis::new(&only_errors(), 1);
    analysis.begin_baking();
    assert_eq!(bake(&mut analysis, (0, 0)).decision, Decision::Continue);
    assert_eq!(bake(&mut analysis, (100, 4)).checks.get(Check::MaxErrorRate).unwrap().limit, Some(0.05));
    assert_eq!(bake(&mut analysis, (30, 30)).decision, Decision::RollBack);
}

#[test]
fn a_rollback_is_explained_with_its_numbers() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    let verdict = repeat(&mut analysis, 2, (1000, 1), (98, 5));
    assert_eq!(verdict.decision, Decision::RollBack);
    let sentence = explain(&verdict);
    assert!(sentence.starts_with("canary fails 5.1 % of requests, stable 0.1 %: rolling back (evidence "));
    assert!(sentence.ends_with(" of 4.6 needed)"), "{sentence}");
    let difference = verdict.difference.unwrap();
    assert!(difference.low > 0.0 && difference.low < 0.05 && difference.high > 0.05);
}

#[test]
fn what_convicts_is_said_where_the_average_hides_it() {
    let mut analysis = Analysis::new(&only_errors(), 7_200);
    for _ in 0..7_200 {
        decide(&mut analysis, (900, 1), (100, 0));
    }
    let verdict = (0..10).map(|_| observe(&mut analysis, (900, 1), (100, 5))).last().unwrap();
    assert_eq!(verdict.decision, Decision::RollBack);
    assert_eq!((verdict.recent.canary.requests, verdict.recent.canary.failures), (1_000, 50));
    let said = "canary fails under 0.01 % of requests, stable 0.1 %, in the last 10 ticks 5 % of 1000, stable 0.1 %: \
                rolling back (evidence ";
    assert!(explain(&verdict).starts_with(said), "{}", explain(&verdict));
    // So it is in baking.
    let mut analysis = Analysis::new(&Settings { max_error_rate: Some(0.05), ..only_errors() }, 600);
    analysis.begin_baking();
    (0..1_000).for_each(|_| drop(bake(&mut analysis, (100, 0))));
    let verdict = (0..10).map(|_| bake(&mut analysis, (100, 30))).last().unwrap();
    let said = "promoted version fails 0.3 % of requests, limit 5 %, in the last 10 ticks 30 % of 1000: rolling back (";
    assert!(explain(&verdict).starts_with(said), "{}", explain(&verdict));
}

#[test]
fn a_restored_analysis_goes_on_bit_for_bit() {
    let settings = Settings {
        max_error_rate: Some(0.1),
        max_p99: Some(Duration::from_millis(70)),
        ..Settings::default()
    };
    let mut rng = StdRng::seed_from_u64(3);
    let mut analysis = Analysis::new(&settings, 600);
    for _ in 0..40 {
        let saved = serde_json::to_string(&analysis).unwrap();
        let mut restored: Analysis = serde_json::from_str(&saved).unwrap();
        assert_eq!(restored, analysis);
        let (stable, canary) = (latencies(&mut rng, 95, 1.0), latencies(&mut rng, 5, 1.3));
        let tick = Tick {
            stable: arm((95, binomial(&mut rng, 95, 0.01)), &stable),
            canary: arm((5, binomial(&mut rng, 5, 0.03)), &canary),
            routes: &[],
            users: None,
        };
        assert_eq!(observe_tick(&mut restored, &tick), observe_tick(&mut analysis, &tick));
    }
}

#[test]
fn a_saved_histogram_with_a_bucket_too_many_is_refused() {
    let saved = serde_json::to_string(&Analysis::new(&only_errors(), 600)).unwrap();
    let wrong = saved.replacen("\"latencies\":{\"stable\":[]", "\"latencies\":{\"stable\":[[9999,1]]", 1);
    assert_ne!(saved, wrong);
    assert!(serde_json::from_str::<Analysis>(&wrong).is_err());
}
