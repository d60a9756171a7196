//! Pauses of what both arms rest on, which hold up whatever is under way.

use rand_distr::{Distribution, LogNormal};

use super::*;

/// Answers as the demo's: a median of 40 ms, and one in twenty takes `tail` times as long. With 3.4, the 99th percentile
/// is twice what it is with 1. A pause adds up to 150 ms.
fn latencies(rng: &mut StdRng, requests: u64, tail: f64, is_paused: bool) -> Histogram {
    let usual = LogNormal::new(0.04_f64.ln(), 0.36).unwrap();
    let mut latency = Histogram::default();
    for _ in 0..requests {
        let times = if rng.random::<f64>() < 0.05 { tail } else { 1.0 };
        let pause = if is_paused { 0.15 * rng.random::<f64>() } else { 0.0 };
        latency.record(Duration::from_secs_f64(usual.sample(rng) * times + pause));
    }
    latency
}

/// Whether a rollout of a minute is rolled back: 125 requests in each of four ticks a second, half of them the canary's,
/// after half a minute of stable alone; all the while with a pause of half a second to a second in every ten, on
/// average.
fn is_rolled_back(seed: u64, tail: f64, dispersion: Option<f64>) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut analysis = Analysis::new(&Settings { dispersion, ..Settings::default() }, 240);
    analysis.begin_step(None);
    let mut pause = 0;
    (0..360).any(|tick| {
        if pause == 0 && rng.random::<f64>() < 1.0 / 40.0 {
            pause = rng.random_range(2..=4);
        }
        let is_paused = pause > 0;
        pause -= u32::from(is_paused);
        if tick < 120 {
            analysis.observe_before(&arm((125, 0), &latencies(&mut rng, 125, 1.0, is_paused)), None);
            return false;
        }
        let to_canary = binomial(&mut rng, 125, 0.5);
        let to_stable = 125 - to_canary;
        let stable = latencies(&mut rng, to_stable, 1.0, is_paused);
        let canary = latencies(&mut rng, to_canary, tail, is_paused);
        let (stable, canary) = (arm((to_stable, 0), &stable), arm((to_canary, 0), &canary));
        analysis.observe(&Tick { stable, canary, routes: &[], users: None }) == Decision::RollBack
    })
}

#[test]
fn pauses_that_both_share_are_not_blamed_on_the_canary() {
    for dispersion in [None, Some(1.0)] {
        assert_eq!((0..25).find(|seed| is_rolled_back(*seed, 1.0, dispersion)), None, "{dispersion:?}");
    }
}

/// By itself, nobody can tell them from clusters.
#[test]
fn a_long_tail_is_found_among_them_if_it_is_known_that_each_request_waits_for_itself() {
    let found = |dispersion| (0..25).filter(|seed| is_rolled_back(*seed, 3.4, dispersion)).count();
    let (estimated, known) = (found(None), found(Some(1.0)));
    assert!(known >= 20 && known > estimated, "{known}, and {estimated} without");
}

/// A limit on the 99th percentile, in a service that holds up two requests in five once a minute: 0.7 % of all are over
/// it. `over` more of a hundred are the canary's own. Whether it is rolled back in ten minutes of a step, or in as many
/// of baking.
fn breaks_the_limit(dispersion: Option<f64>, over: u64) -> [bool; 2] {
    let settings = Settings {
        max_p99: Some(Duration::from_millis(50)),
        latency_margin: None,
        dispersion,
        ..Settings::default()
    };
    let mut analysis = Analysis::new(&settings, 600);
    let latency = |minute: u64, over: u64| {
        let mut latency = Histogram::default();
        let over = if minute == 30 { 40 } else { over };
        (0..100).for_each(|n| latency.record(Duration::from_millis(if n < over { 200 } else { 10 })));
        latency
    };
    let steps = (0..600).any(|tick| {
        let (stable, canary) = (latency(tick % 60, 0), latency(tick % 60, over));
        let tick =
            Tick { stable: arm((100, 0), &stable), canary: arm((100, 0), &canary), routes: &[], users: None };
        analysis.observe(&tick) == Decision::RollBack
    });
    let interval = analysis.verdict().checks.get(Check::MaxP99).unwrap().interval.unwrap();
    assert!(steps || interval.low < 0.01, "{interval:?}");
    analysis.begin_baking();
    let baking = (0..600)
        .any(|tick| analysis.observe_baking(&arm((100, 0), &latency(tick % 60, over))) == Decision::RollBack);
    [steps, baking]
}

#[test]
fn a_pause_breaks_no_limit_on_the_99th_percentile() {
    assert_eq!(breaks_the_limit(None, 0), [false; 2]);
    assert_eq!(breaks_the_limit(None, 5), [true; 2]);
    // Somebody who says that nothing comes together is believed.
    assert_eq!(breaks_the_limit(Some(1.0), 0), [true; 2]);
}
