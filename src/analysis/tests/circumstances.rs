//! What a rollout meets: failures that come together, sick routes, cold endpoints, little traffic,
//! incidents, and a budget.

use super::*;

/// Failures in clusters of three, in both arms alike: each counts for three. Of 150 rollouts, the share
/// that may cross is α = 1 %, and 9 of them come once in 5,000 (Chernoff: 150·KL(9/150 ‖ 0.01) = 8.8).
/// Without the estimate a third cross.
#[test]
fn failures_that_come_together_count_once() {
    let crossed = |dispersion: Option<f64>| {
        let mut rng = StdRng::seed_from_u64(5);
        let settings = Settings { dispersion, ..only_errors() };
        let rollouts = (0..150).filter(|_| {
            let mut analysis = Analysis::new(&settings, 300);
            (0..300).any(|_| {
                let (xs, xc) = (3 * binomial(&mut rng, 60, 0.04), 3 * binomial(&mut rng, 20, 0.04));
                decide(&mut analysis, (180, xs), (60, xc)) == Decision::RollBack
            })
        });
        rollouts.count()
    };
    let estimated = crossed(None);
    assert!(estimated < 9, "{estimated}");
    assert!(crossed(Some(3.0)) < 9);
    let naive = crossed(Some(1.0));
    assert!(naive > 20, "{naive}");
}

#[test]
fn a_sick_route_is_found_in_a_healthy_service() {
    let settings = only_errors();
    let routes = ["/cart", "/search", "/account"].map(Arc::from);
    let mut analysis = Analysis::new(&settings, 600).with_routes(&settings, routes);
    let none = Histogram::default();
    let sample = |requests, failures| Sample { requests, failures };
    let verdicts: Vec<_> = (0..30)
        .map(|_| {
            // A hundredth of the requests, half of which fail; elsewhere stable fails as often as not.
            let routes = [
                Arms { stable: sample(890, 9), canary: sample(98, 0) },
                Arms { stable: sample(10, 0), canary: sample(2, 1) },
                Arms::default(),
            ];
            let tick = Tick {
                stable: arm((900, 9), &none),
                canary: arm((100, 1), &none),
                routes: &routes,
                users: None,
            };
            observe_tick(&mut analysis, &tick)
        })
        .take_while(|verdict| verdict.decision != Decision::RollBack)
        .collect();
    assert!(verdicts.len() < 30);
    let verdict = analysis.verdict();
    let sentence = explain(&verdict);
    assert!(
        sentence.starts_with("canary fails 50 % of requests on route /search, stable 0 %: "),
        "{sentence}"
    );
    // With three routes each has a sixth of the weight, and the service's only check has half.
    let threshold = |check| verdict.checks.get(check).unwrap().threshold - verdict.threshold;
    assert!((threshold(Check::ErrorRate) - 2.0_f64.ln()).abs() < 1e-12);
    assert!((threshold(Check::RouteErrorRate) - 6.0_f64.ln()).abs() < 1e-12);
    // Each route is shown, and that with the most evidence is the check.
    let names: Vec<_> = verdict.routes.iter().filter_map(|report| report.route.as_deref()).collect();
    assert_eq!(names, ["/cart", "/search", "/account"]);
    assert_eq!(verdict.checks.get(Check::RouteErrorRate), Some(&verdict.routes[1]));
    let [fine, sick, unused] = &*verdict.routes else { panic!("three routes, {verdict:?}") };
    assert!(sick.interval.unwrap().low > 0.0, "{sick:?}");
    assert!(fine.interval.unwrap().high < sick.interval.unwrap().high, "{fine:?}");
    assert_eq!((unused.interval, unused.requests, unused.canary), (None, 0, None));
    assert!(analysis.without_intervals().verdict().routes.iter().all(|report| report.interval.is_none()));
}

#[test]
fn a_cold_endpoint_is_left_out_unless_it_answers_nothing() {
    let none = Histogram::default();
    let cold = |requests, failures| {
        let mut analysis = Analysis::new(&only_errors(), 600);
        let warming = Sample { requests, failures };
        let canary = ArmTick { warming, ..arm((50, 0), &none) };
        for _ in 0..10 {
            let tick = Tick { stable: arm((450, 0), &none), canary, routes: &[], users: None };
            observe_tick(&mut analysis, &tick);
        }
        analysis.verdict()
    };
    let verdict = cold(20, 19);
    assert_eq!((verdict.rollout.canary.requests, verdict.rollout.canary.failures), (500, 0));
    assert_eq!((verdict.warming.canary.requests, verdict.warming.canary.failures), (200, 190));
    assert_eq!(verdict.decision, Decision::Advance);
    let mut analysis = Analysis::new(&only_errors(), 600);
    let canary = ArmTick { warming: Sample { requests: 20, failures: 20 }, ..arm((0, 0), &none) };
    let tick = Tick { stable: arm((450, 0), &none), canary, routes: &[], users: None };
    assert_eq!(observe_tick(&mut analysis, &tick).reason, Reason::OnlyFailures { failures: 20, unserved: 0 });
}

#[test]
fn requests_that_do_not_count_yet_are_not_said_to_be_none() {
    let none = Histogram::default();
    let pass = |analysis: &mut Analysis, ticks, canary| {
        let tick = Tick { stable: arm((450, 0), &none), canary, routes: &[], users: None };
        (0..ticks).map(|_| observe_tick(analysis, &tick)).last().unwrap()
    };
    let warming = ArmTick { warming: Sample { requests: 20, failures: 0 }, ..arm((0, 0), &none) };
    let sent = Sent { sample: Sample { requests: 5, failures: 0 }, latency: &none };
    let sent = ArmTick { sent: Some(sent), ..arm((0, 0), &none) };
    for is_alone in [false, true] {
        let mut analysis = Analysis::new(&only_errors(), 600);
        if is_alone {
            analysis.judge_by_guards_alone();
        }
        let verdict = pass(&mut analysis, 29, warming);
        assert_eq!(
            (verdict.decision, &verdict.reason),
            (Decision::Hold, &Reason::WarmingUp { role: Role::Canary, ticks: 29 })
        );
        assert_eq!(
            explain(&verdict),
            "canary's endpoints are warming up, and the 580 requests that they have ended so far do not count: \
             holding until they are warm"
        );
        // Sent ones alone, once the last that was warming up is some time ago.
        let verdict = pass(&mut analysis, 11, sent);
        assert_eq!(verdict.reason, Reason::OnlySent { role: Role::Canary, ticks: 40 });
        assert_eq!(
            explain(&verdict),
            "canary got no request by chance in the last 40 ticks, only such as were sent to it: holding, nothing \
             to judge by"
        );
        // None of any kind.
        let verdict = pass(&mut analysis, 10, arm((0, 0), &none));
        assert_eq!(verdict.reason, Reason::NoCanaryTraffic { ticks: 10 });
        assert_ne!(pass(&mut analysis, 1, arm((5, 0), &none)).decision, Decision::Hold);
    }
    let mut analysis = Analysis::new(&only_errors(), 600);
    let (stable, canary) = (warming, arm((50, 0), &none));
    for _ in 0..10 {
        observe_tick(&mut analysis, &Tick { stable, canary, routes: &[], users: None });
    }
    assert_eq!(analysis.verdict().reason, Reason::WarmingUp { role: Role::Stable, ticks: 10 });
}

#[test]
fn who_is_sent_is_compared_with_nobody_but_limits_hold() {
    let (none, mut slow) = (Histogram::default(), Histogram::default());
    (0..20).for_each(|_| slow.record(Duration::from_millis(60)));
    let sent_to = |settings: &Settings| {
        let mut analysis = Analysis::new(settings, 600);
        let sent = Some(Sent { sample: Sample { requests: 20, failures: 20 }, latency: &slow });
        let canary = ArmTick { sent, ..arm((50, 0), &none) };
        let tick = Tick { stable: arm((450, 0), &none), canary, routes: &[], users: None };
        (0..10).map(|_| observe_tick(&mut analysis, &tick)).last().unwrap()
    };
    let verdict = sent_to(&Settings::default());
    let [rollout, sent] = [verdict.rollout.canary, verdict.sent.canary];
    assert_eq!((rollout.requests, rollout.failures, sent.requests, sent.failures), (500, 0, 200, 200));
    assert_eq!((verdict.decision, verdict.reason), (Decision::Advance, Reason::Healthy { requests: 500 }));
    let limits = [
        (Settings { max_error_rate: Some(0.05), ..only_errors() }, Check::MaxErrorRate, 200.0 / 700.0),
        (Settings { max_p99: Some(Duration::from_millis(50)), ..only_errors() }, Check::MaxP99, 0.06),
    ];
    for (limited, check, shown) in limits {
        let verdict = sent_to(&limited);
        let Reason::Worse(report) = &verdict.reason else { panic!("{verdict:?}") };
        assert_eq!(report.check, check);
        // A bucket of latency is 2.2 % wide.
        assert!((report.canary.unwrap() / shown - 1.0).abs() < 0.023, "{report:?}");
    }
}

#[test]
fn little_traffic_is_not_none() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    // A canary request every twelve ticks.
    for tick in 0..120 {
        let verdict = observe(&mut analysis, (5, 0), (u64::from(tick % 12 == 0), 0));
        assert_ne!(verdict.decision, Decision::Hold, "tick {tick}");
    }
    let verdict = repeat(&mut analysis, 70, (5, 0), (0, 0));
    assert!(matches!(verdict.reason, Reason::NoCanaryTraffic { ticks: 60.. }), "{verdict:?}");
}

#[test]
fn the_time_until_more_is_known_follows_the_traffic() {
    let mut analysis = Analysis::new(&Settings::default(), 600);
    let verdict = repeat(&mut analysis, 4, (190, 0), (10, 0));
    assert_eq!((verdict.requests_needed, verdict.ticks_needed), (Some(60), Some(6)));
    assert_eq!(
        explain(&verdict),
        "canary has ended 40 of the 100 requests that the step needs: waiting, about 60 more requests, 6 \
         ticks at this rate"
    );
}

#[test]
fn trouble_in_stable_alone_is_offered_a_way_out() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    repeat(&mut analysis, 100, (450, 1), (50, 0));
    let verdict = repeat(&mut analysis, 10, (450, 90), (50, 0));
    assert_eq!(verdict.incident.map(|incident| incident.scope), Some(Scope::StableOnly));
    assert_eq!(verdict.decision, Decision::Advance);
    let sentence = explain(&verdict);
    assert!(sentence.contains("stable alone is in trouble and fails 20 % of requests lately"), "{sentence}");
}

#[test]
fn an_incident_in_both_arms_is_held_long_before_half_of_all_fails() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    repeat(&mut analysis, 100, (450, 1), (50, 0));
    let verdict = repeat(&mut analysis, 10, (450, 45), (50, 5));
    assert_eq!(verdict.decision, Decision::Hold);
    assert_eq!(
        explain(&verdict),
        "canary fails 10 % of requests and stable 10 %: holding, both are in trouble"
    );
}

#[test]
fn a_budget_of_harm_holds_the_weight_down_and_ends_the_rollout_when_it_is_spent() {
    let settings = Settings { max_harm: Some(10.0), ..only_errors() };
    let mut analysis = Analysis::new(&settings, 600);
    analysis.begin_step(Some(Weight::from_percent(50.0).unwrap()));
    let first = observe(&mut analysis, (490, 0), (10, 0));
    let cap = |verdict: &Verdict| verdict.harm.and_then(|harm| harm.weight_cap).unwrap();
    // 10 of the thousand requests of two ticks, and a little more, since ten have succeeded.
    assert!((1.0..3.0).contains(&cap(&first).percent()), "{first:?}");
    let verdict = repeat(&mut analysis, 10, (490, 0), (10, 0));
    let Reason::HarmPossible(harm) = verdict.reason else { panic!("{verdict:?}") };
    assert!(harm.weight_cap > first.harm.unwrap().weight_cap);
    assert_eq!(repeat(&mut analysis, 100, (490, 0), (10, 0)).decision, Decision::Advance);
    // Within the tolerance, so that evidence alone would never end it.
    let settings = Settings { ratio_tolerance: 100.0, max_harm: Some(50.0), ..settings };
    let mut analysis = Analysis::new(&settings, 600);
    let verdict = repeat(&mut analysis, 25, (900, 9), (100, 3));
    let Reason::HarmSpent(harm) = verdict.reason else { panic!("{verdict:?}") };
    assert!((harm.spent - 50.0).abs() < 1e-9);
    assert_eq!(
        explain(&verdict),
        "canary has failed about 50 requests that stable would not have, and may 50: rolling back"
    );
}

#[test]
fn a_check_says_what_it_rests_on_and_what_it_lacks() {
    let mut analysis = Analysis::new(&only_errors(), 600);
    let verdict = repeat(&mut analysis, 2, (450, 0), (50, 1));
    let report = verdict.checks.get(Check::ErrorRate).unwrap();
    assert_eq!((report.stable, report.canary, report.requests), (Some(0.0), Some(0.02), 100));
    assert_eq!(report.threshold, verdict.threshold);
    let needed = report.requests_needed.expect("evidence has come");
    assert!((1..500).contains(&needed), "{needed}");
    let Interval { low, high } = report.interval.unwrap();
    assert!(low < 0.02 && high > 0.02, "{low} to {high}");
}

#[test]
fn a_canary_that_has_no_endpoint_for_anybody_is_no_silence() {
    let none = Histogram::default();
    let tick = |stable, canary: Counts, unserved| {
        let canary = ArmTick { unserved, ..arm(canary, &none) };
        Tick {
            stable: ArmTick { unserved: stable, ..arm((400, 0), &none) },
            canary,
            routes: &[],
            users: None,
        }
    };
    let after = |settings: &Settings, ticks: &[Tick<'_>]| {
        let mut analysis = Analysis::new(settings, 600);
        ticks.iter().map(|tick| observe_tick(&mut analysis, tick)).last().unwrap()
    };
    let verdict = after(&only_errors(), &[tick(0, (0, 0), 12), tick(0, (0, 0), 0), tick(0, (0, 0), 8)]);
    assert_eq!(verdict.reason, Reason::OnlyFailures { failures: 20, unserved: 20 });
    assert_eq!(explain(&verdict), "no endpoint of the canary could take 20 requests in a row: rolling back");
    assert_eq!(verdict.rollout.canary.requests, 0, "no evidence");
    let warming = Sample { requests: 5, failures: 5 };
    let cold = Tick { canary: ArmTick { warming, ..arm((0, 0), &none) }, ..tick(0, (0, 0), 0) };
    let verdict = after(&only_errors(), &[cold, tick(0, (0, 0), 15)]);
    assert_eq!(
        explain(&verdict),
        "canary failed 20 requests in a row and answered none, 15 of them for want of an endpoint: rolling back"
    );
    // One that answers some is full, and stable may be as well.
    for ticks in [[tick(0, (1, 0), 19), tick(0, (0, 0), 19)], [tick(400, (0, 0), 20), tick(400, (0, 0), 20)]]
    {
        let decision = after(&only_errors(), &ticks).decision;
        assert_ne!(decision, Decision::RollBack);
    }
    let settings = Settings { max_harm: Some(30.0), ..only_errors() };
    let full = || tick(0, (5, 0), 10);
    let verdict = after(&settings, &[full(), full(), full()]);
    let Reason::HarmSpent(harm) = verdict.reason else { panic!("{verdict:?}") };
    assert_eq!(harm.spent, 30.0);
    let mut analysis = Analysis::new(&only_errors(), 600);
    analysis.begin_baking();
    analysis.observe_baking(&ArmTick { unserved: 20, ..arm((0, 0), &none) });
    let wanted = "no endpoint of the promoted version could take 20 requests in a row: rolling back";
    assert_eq!(explain(&analysis.verdict()), wanted);
}
