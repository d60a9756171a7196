//! What holds for any counts at all.

use std::time::Duration;

use proptest::prelude::*;

use crate::{
    analysis::{
        Analysis, ArmTick, Sent, Tick,
        error_rate::{Comparison, Margin, Sample},
        explain::explain,
        guard::Guard,
        settings::Settings,
        verdict::{Arms, Decision, Verdict},
    },
    model::{
        histogram::{BUCKETS, Histogram},
        weight::Weight,
    },
};

const TOLERANCE: Margin = Margin { ratio: 1.1, absolute: 0.0002 };

/// Small counts mostly, any counts sometimes, failures never above requests.
fn sample() -> impl Strategy<Value = Sample> {
    let requests = prop_oneof![4 => 0..50_u64, 2 => 0..1_000_000_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    requests.prop_flat_map(|requests| {
        let failures = prop_oneof![Just(0), Just(requests), 0..=requests];
        failures.prop_map(move |failures| Sample { requests, failures })
    })
}

/// Counts as a service may really have in a tick.
fn plausible() -> impl Strategy<Value = Sample> {
    (0..20_000_u64)
        .prop_flat_map(|requests| (0..=requests).prop_map(move |failures| Sample { requests, failures }))
}

fn histogram() -> impl Strategy<Value = Histogram> {
    let bucket = (0..BUCKETS, prop_oneof![0..300_u64, 0..1_u64 << 40]);
    prop::collection::vec(bucket, 0..4).prop_map(|buckets| {
        let mut histogram = Histogram::default();
        buckets.into_iter().for_each(|(index, count)| histogram.add(index, count));
        histogram
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let tolerance = (1.0..100.0, prop_oneof![Just(0.0), 0.0..0.99]);
    let limits = (1e-9..0.999_999, 0..10_000_000_000_u64);
    let clusters = (prop::option::of(1.0..10_000.0), prop::option::of(1.0..1e12));
    (options, tolerance, limits, clusters).prop_map(
        |(options, (ratio, absolute), (limit, nanos), clusters)| {
            let (latency, failures, slow, prove_each_step) = options;
            let settings = Settings {
                ratio_tolerance: ratio,
                absolute_tolerance: absolute,
                prove_each_step,
                latency_margin: latency.then_some(0.2),
                max_error_rate: failures.then_some(limit),
                max_p99: slow.then_some(Duration::from_nanos(nanos)),
                dispersion: clusters.0,
                max_harm: clusters.1,
                ..Settings::default()
            };
            assert_eq!(settings.faults(), []);
            settings
        },
    )
}

fn arm(sample: Sample, latency: &Histogram) -> ArmTick<'_> {
    let sent = sample.failures.is_multiple_of(2).then_some(Sent { sample, latency });
    ArmTick {
        warming: sample,
        sent,
        unserved: sample.failures,
        ..ArmTick::new(sample.requests, sample.failures, latency)
    }
}

fn assert_finite(verdict: &Verdict) -> Result<(), TestCaseError> {
    let reports = verdict.checks.iter().chain(&*verdict.routes);
    let checks = reports.flat_map(|c| [Some(c.evidence), Some(c.threshold), c.stable, c.canary, c.limit]);
    let intervals = verdict.checks.iter().chain(&*verdict.routes).filter_map(|c| c.interval);
    let intervals: Vec<_> = intervals.flat_map(|i| [Some(i.low), Some(i.high)]).collect();
    let harm = verdict.harm.map(|harm| harm.spent);
    let numbers = [Some(verdict.evidence), Some(verdict.promotion_evidence), Some(verdict.dispersion), harm];
    for number in checks.chain(intervals).chain(numbers).flatten() {
        prop_assert!(number.is_finite(), "{verdict:?}");
    }
    prop_assert!(!explain(verdict).contains("NaN"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_counts_break_a_rollout(
        settings in settings(),
        planned_ticks in prop_oneof![0..1_000_u64, any::<u64>()],
        ticks in prop::collection::vec((sample(), sample(), histogram(), histogram(), 0..8_u8), 1..40),
    ) {
        let routes = ["/a".into(), "/b".into()];
        let mut analysis = Analysis::new(&settings, planned_ticks).with_routes(&settings, routes);
        for (stable, canary, stable_latency, canary_latency, event) in &ticks {
            if *event < 2 {
                analysis.begin_step((*event == 0).then_some(Weight::FULL));
            }
            let route = Arms { stable: *stable, canary: *canary };
            let stable = arm(*stable, stable_latency);
            let canary = arm(*canary, canary_latency);
            let decision = analysis.observe(&Tick { stable, canary, routes: &[route, Arms::default()], users: None });
            let verdict = analysis.verdict();
            prop_assert_eq!(verdict.decision, decision);
            assert_finite(&verdict)?;
        }
        analysis.begin_baking();
        for (stable, _, latency, ..) in &ticks {
            let decision = analysis.observe_baking(&arm(*stable, latency));
            let verdict = analysis.verdict();
            prop_assert_eq!(verdict.decision, decision);
            assert_finite(&verdict)?;
            prop_assert!(matches!(verdict.decision, Decision::Continue | Decision::RollBack));
        }
        let restored: Analysis = serde_json::from_str(&serde_json::to_string(&analysis).unwrap()).unwrap();
        prop_assert_eq!(restored, analysis);
    }

    #[test]
    fn a_canary_failure_speaks_against_the_canary_and_a_stable_one_for_it(
        past in prop::collection::vec((plausible(), plausible()), 0..20),
        (stable, canary) in (plausible(), plausible()),
    ) {
        let mut worse = Comparison::worse(TOLERANCE, 60);
        let mut better = Comparison::better(TOLERANCE);
        let mut guard = Guard::new(0.05, 60);
        for (stable, canary) in past {
            worse.update(Arms { stable, canary }, 1.0);
            better.update(Arms { stable, canary }, 1.0);
            guard.update(canary, 1.0);
        }
        let after = |stable: Sample, canary: Sample| {
            let (mut worse, mut better, mut guard) = (worse.clone(), better.clone(), guard.clone());
            worse.update(Arms { stable, canary }, 1.0);
            better.update(Arms { stable, canary }, 1.0);
            guard.update(canary, 1.0);
            [worse.log_e(), better.log_e(), guard.log_e()]
        };
        let one_more = |sample: Sample| Sample { failures: (sample.failures + 1).min(sample.requests), ..sample };
        let (as_it_is, bad_canary, bad_stable) =
            (after(stable, canary), after(stable, one_more(canary)), after(one_more(stable), canary));
        let rounding = |a: f64| 1e-9 * a.abs().max(1.0);
        let at_least = |a: f64, b: f64| a >= b - rounding(b);
        prop_assert!(at_least(bad_canary[0], as_it_is[0]) && at_least(as_it_is[1], bad_canary[1]));
        prop_assert!(at_least(bad_canary[2], as_it_is[2]));
        prop_assert!(at_least(as_it_is[0], bad_stable[0]) && at_least(bad_stable[1], as_it_is[1]));
    }

    #[test]
    fn a_tick_with_one_arm_empty_leaves_the_comparison_alone(
        past in prop::collection::vec((plausible(), plausible()), 0..25),
        (sample, stable_is_empty) in (sample(), any::<bool>()),
    ) {
        let mut worse = Comparison::worse(TOLERANCE, 2);
        for (stable, canary) in past {
            worse.update(Arms { stable, canary }, 1.0);
        }
        let before = worse.log_e();
        let (stable, canary) =
            if stable_is_empty { (Sample::default(), sample) } else { (sample, Sample::default()) };
        worse.update(Arms { stable, canary }, 1.0);
        prop_assert!((worse.log_e() - before).abs() <= 1e-9 * before.abs().max(1.0));
    }
}
