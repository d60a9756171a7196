//! Whether a user counts once, and what follows from how many there were.

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    analysis::{
        Tick,
        error_rate::Margin,
        explain::explain,
        firsts::Once,
        settings::Settings,
        verdict::{Decision, Reason},
    },
    model::{histogram::Histogram, slots::Slots, weight::Weight},
};

/// Clients that differ as much as clients can: of 60, each tenth makes a request in every tick and always fails,
/// and the others make fewer the later they stand, and fail one in a thousand.
const CLIENTS: u16 = 60;

fn fails(client: u16, rng: &mut StdRng) -> bool {
    client.is_multiple_of(10) || rng.random::<f64>() < 0.001
}

fn comes(client: u16, rng: &mut StdRng) -> bool {
    client.is_multiple_of(10) || rng.random::<f64>() < 1.0 / f64::from(client)
}

/// Whether a canary that is stable's like is ever found to be worse, by requests and by users, at α = 5 %.
fn is_found_worse(seed: u64) -> [bool; 2] {
    let mut rng = StdRng::seed_from_u64(seed);
    let slots: Vec<u16> = (0..CLIENTS).map(|_| rng.random_range(0..10_000)).collect();
    let comparison = || Comparison::worse(Margin { ratio: 1.0, absolute: 0.0 }, 10);
    let (mut by_requests, mut by_users) = (comparison(), comparison());
    let mut judge = Judge(Dispersion::Known(1.0));
    let (mut once, mut failed) = (Once::default(), Arms::<Slots>::default());
    let mut found = [false; 2];
    for tick in 0..90 {
        let weight = Weight::from_hundredths([500, 1_000, 5_000][tick / 30]).unwrap();
        let mut samples = Arms::<Sample>::default();
        for client in (0..CLIENTS).filter(|client| comes(*client, &mut rng)).collect::<Vec<_>>() {
            let slot = slots[usize::from(client)];
            let is_canary = slot < weight.hundredths();
            let sample = if is_canary { &mut samples.canary } else { &mut samples.stable };
            sample.requests += 1;
            if fails(client, &mut rng) {
                sample.failures += 1;
                if is_canary { &mut failed.canary } else { &mut failed.stable }.insert(slot);
            }
        }
        let is_so = Arms { stable: &failed.stable, canary: &failed.canary };
        let firsts = once.take(is_so, &Slots::below(weight), Arms::default());
        by_requests.update(samples, 1.0);
        judge.update(&mut by_users, &firsts, samples.map(|sample| sample.requests), false);
        let evidence = [by_requests.log_e(), by_users.log_e()];
        found = [0, 1].map(|by| found[by] || evidence[by] >= 20_f64.ln());
    }
    found
}

/// Of 1,000 at most 50 are promised; with the five standard deviations of √(1000·0.05·0.95) it is 84. By
/// requests there is no promise: each of the six who always fail may be the canary's, and is then its ruin.
#[test]
fn an_unlucky_heavy_client_does_not_speak_for_the_canary() {
    let found = (0..1_000).map(is_found_worse);
    let [by_requests, by_users] =
        found.fold([0, 0], |sums: [u32; 2], found| [0, 1].map(|by| sums[by] + u32::from(found[by])));
    assert!(by_users <= 84, "{by_users} by users");
    assert!(by_requests >= 150, "{by_requests} by requests");
}

fn arms<T>(stable: T, canary: T) -> Arms<T> {
    Arms { stable, canary }
}

fn firsts(free: (u64, u64), first: (u64, u64)) -> Firsts {
    Firsts { free: arms(free.0, free.1), first: arms(first.0, first.1), ..Firsts::default() }
}

/// Has a tick of 1,000 requests observed, of which none fails twice.
fn observe(analysis: &mut Analysis, first: (u64, u64), seen: u64) -> Decision {
    let none = Histogram::default();
    let tick = |requests, failures| ArmTick::new(requests, failures, &none);
    let failed = firsts((9_000, 1_000), first);
    let users =
        Users { failed, seen: arms(Seen::default(), Seen { slots: seen, of: 1_000 }), ..Users::default() };
    analysis.observe(&Tick {
        stable: tick(900, first.0),
        canary: tick(100, first.1),
        routes: &[],
        users: Some(&users),
    })
}

#[test]
fn the_step_is_left_once_enough_users_were_there() {
    let mut analysis = Analysis::new(&Settings::default(), 60);
    analysis.begin_step(None);
    assert_eq!(observe(&mut analysis, (9, 1), 20), Decision::Continue);
    let verdict = analysis.verdict();
    assert_eq!(verdict.reason, Reason::TooFewUsers { users: 20, minimum: 100 });
    assert_eq!((verdict.requests_needed, verdict.ticks_needed), (Some(400), Some(4)));
    assert_eq!(
        explain(&verdict),
        "canary has had about 20 of the 100 users that it takes to go on: waiting, about 400 more requests, 4 ticks at \
         this rate"
    );
    // At 10 % there are as many where the whole has a hundred.
    analysis.begin_step(Some(Weight::FULL));
    assert_eq!(observe(&mut analysis, (9, 1), 100), Decision::Advance);
    let said = explain(&analysis.verdict());
    assert!(
        said.contains(" (first failures: 2 of about 105 users, stable's 18 of about 18 users): ready"),
        "{said}"
    );
    // Another process begins to look anew; what was known stays.
    assert_eq!(observe(&mut analysis, (0, 0), 1), Decision::Advance);
}

#[test]
fn a_canary_that_fails_its_users_is_rolled_back() {
    let mut analysis = Analysis::new(&Settings::default(), 60);
    let decided = (0..10).map(|_| observe(&mut analysis, (1, 4), 100)).position(|d| d == Decision::RollBack);
    assert!(decided.is_some());
    let said = explain(&analysis.verdict());
    assert!(said.contains("% of requests, stable ") && said.contains(" (first failures: "), "{said}");
}

/// The same slots again and again are what one slot is, once.
#[test]
fn what_is_not_a_first_failure_is_no_evidence_against_the_canary() {
    let none = Histogram::default();
    let mut analysis = Analysis::new(&Settings::default(), 60);
    let users = Users { failed: firsts((9_000, 999), (0, 0)), ..Users::default() };
    for _ in 0..100 {
        let (stable, canary) = (ArmTick::new(900, 0, &none), ArmTick::new(100, 40, &none));
        let decision = analysis.observe(&Tick { stable, canary, routes: &[], users: Some(&users) });
        assert_ne!(decision, Decision::RollBack);
    }
    // But it is no proof of the contrary either.
    assert!(analysis.verdict().promotion_evidence < 0.0);
}

#[test]
fn users_are_estimated_from_their_slots() {
    let users = |slots, of| Seen { slots, of }.users();
    assert_eq!((users(0, 0), users(0, 100), users(1, 100)), (0, 0, 1));
    // 10,000·ln 2: as many users leave half of the slots empty.
    assert_eq!(users(5_000, 10_000), 6_931);
    assert_eq!(users(100, 100), 530);
    assert!(Seen { slots: 100, of: 100 }.is_all() && !Seen::default().is_all());
}

#[test]
fn slots_that_are_counted_anew_count_for_less() {
    let after = |pass| {
        let (mut comparison, mut judge) =
            (Comparison::worse(Margin { ratio: 1.0, absolute: 0.0 }, 10), Judge(Dispersion::Known(1.0)));
        judge.update(
            &mut comparison,
            &Firsts { pass, ..firsts((9_000, 1_000), (6, 6)) },
            arms(900, 100),
            false,
        );
        comparison.log_e()
    };
    assert!(after(0) > 3.0 && after(1) > 0.5 && after(1) < after(0) / 2.0 && after(9) < after(1));
}

/// Those who are not recognised are compared by requests, as wherever nobody is.
#[test]
fn requests_that_are_not_pinned_are_compared_as_ever() {
    let margin = Margin { ratio: 1.1, absolute: 0.0002 };
    let (mut by_requests, mut by_users) = (Comparison::worse(margin, 10), Comparison::worse(margin, 10));
    let others = arms(Sample { requests: 900, failures: 3 }, Sample { requests: 100, failures: 9 });
    let mut judge = Judge(Dispersion::Known(1.0));
    judge.update(
        &mut by_users,
        &Firsts { others, ..firsts((9_000, 1_000), (0, 0)) },
        others.map(|sample| sample.requests),
        false,
    );
    by_requests.update(others, 1.0);
    assert_eq!(by_users, by_requests);
}

#[test]
fn what_is_known_of_users_outlives_a_restart_bit_for_bit() {
    let settings = Settings::default();
    let route: Arc<str> = "/cart".into();
    let mut analysis = Analysis::new(&settings, 60).with_routes(&settings, [route]);
    let mut latency = Histogram::default();
    (1..=100).for_each(|millis| latency.record(std::time::Duration::from_millis(millis)));
    let tick = |analysis: &mut Analysis, tick: u64| {
        let slow = |first| firsts((9_000 - 3 * tick, 1_000), (first, 1));
        let users = Users {
            failed: firsts((9_000, 1_000 - tick), (tick % 3, 1)),
            slow: [slow(tick % 5), slow(1)],
            routes: vec![firsts((9_000, 1_000), (tick % 2, 1))],
            seen: arms(Seen { slots: tick, of: 9_000 }, Seen { slots: tick, of: 1_000 }),
        };
        let (stable, canary) = (ArmTick::new(90, 3, &latency), ArmTick::new(10, 1, &latency));
        let routes = [arms(Sample { requests: 9, failures: 1 }, Sample { requests: 1, failures: 1 })];
        if tick < 10 {
            analysis.observe_before(&stable, Some(&users));
        } else {
            analysis.observe(&Tick { stable, canary, routes: &routes, users: Some(&users) });
        }
    };
    (0..20).for_each(|at| tick(&mut analysis, at));
    let text = serde_json::to_string(&analysis).unwrap();
    let mut restored: Analysis = serde_json::from_str(&text).unwrap();
    assert_eq!(restored, analysis);
    (20..40).for_each(|at| [&mut analysis, &mut restored].into_iter().for_each(|a| tick(a, at)));
    assert_eq!(restored, analysis);
    let known = Analysis::new(&settings, 60).knowing(&analysis.learned()).learned();
    assert_eq!(known, analysis.learned());
}
