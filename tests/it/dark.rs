//! Dark steps: a canary that is judged by copies before it has any user, at twenty ticks a second.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::Value;

use crate::{
    restart::{Site, saved},
    rollout::{Load, events, in_order},
    support::{Backend, Tidegate, Web, eventually, eventually_is, reply},
};

/// Copies first; and users whom nobody sends on, so that what is seen of them stays little.
const DARK: &str = "
    steps = [{ mirror = 100, hold = '150ms' }, { weight = 0.01, hold = '1h' }]
    deadline = '1h'";

fn start(stable: &Backend, canary: &Backend, rollout: &str, margin: &str) -> Tidegate {
    start_with(Web::new(stable.address).canary(canary.address), rollout, margin)
}

fn start_with(web: Web, rollout: &str, margin: &str) -> Tidegate {
    let web = web.workers(2);
    let analysis = format!("minimum_requests = 50\nlatency_margin = false\npromotion_margin = {margin}");
    Tidegate::start(web.table("rollout", rollout).table("rollout.analysis", &analysis))
}

/// A canary that answers one request in twenty so, and the others well.
fn one_in_twenty(status: &'static str) -> Backend {
    let count = AtomicU64::new(0);
    Backend::answering(move |_| match count.fetch_add(1, Relaxed) % 20 {
        7 => reply(status, &[], "bad"),
        _ => reply("200 OK", &[], "v2"),
    })
}

/// What users get, which is stable's own.
fn expect_stables(response: &crate::support::client::Response) {
    assert_eq!((response.status, response.text().as_str()), (200, "v1"));
}

fn copies(tidegate: &Tidegate) -> f64 {
    tidegate.scrape().sum("tidegate_mirrored_requests_total", &[("service", "web")])
}

#[test]
fn a_canary_that_fails_one_in_twenty_is_rolled_back_before_any_user_was_there() {
    let (stable, canary) = (Backend::named("v1"), one_in_twenty("500 Internal Server Error"));
    let patient = DARK.replace("150ms", "1h");
    let tidegate = start(&stable, &canary, &patient, "0.005");
    let load = Load::checked(&tidegate, expect_stables);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let events = events(&status);
    in_order(
        &events,
        &[
            "the rollout began",
            "step 1 began: the canary gets copies of 100 % of requests",
            "rolling back: the canary is worse than it may be: canary fails ",
        ],
    );
    let why = events.iter().find(|event| event.starts_with("rolling back")).unwrap();
    assert!(
        why.contains("of copied requests, stable 0 %") && why.ends_with("no user has been there"),
        "{why}"
    );
    // Each request that it had was a copy.
    assert!(canary.requests().iter().all(|seen| seen.fields("x-tidegate-mirrored") == ["true"]));
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("role", "canary")], 0.0);
    scrape.expect("tidegate_rollouts_total", &[("outcome", "rolled_back")], 1.0);
    // And there are no more.
    let before = copies(&tidegate);
    tidegate.client().get("/");
    assert_eq!(copies(&tidegate), before);
}

#[test]
fn a_canary_that_has_lost_what_stable_serves_is_rolled_back_by_its_copies() {
    let (stable, canary) = (Backend::named("v1"), one_in_twenty("404 Not Found"));
    let tidegate = start(&stable, &canary, &DARK.replace("150ms", "1h"), "0.005");
    let load = Load::checked(&tidegate, expect_stables);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let pairs = &status["rollout"]["verdict"]["pairs"];
    assert!(pairs["canary_only"].as_u64() > Some(0), "{pairs}");
    assert_eq!((&pairs["stable_only"], &pairs["both"]), (&0.into(), &0.into()));
    let events = events(&status);
    let why = events.iter().find(|event| event.starts_with("rolling back")).unwrap();
    assert!(
        why.contains("of copied requests, stable 0 %") && why.ends_with("no user has been there"),
        "{why}"
    );
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("role", "canary")], 0.0);
}

#[test]
fn where_answers_may_differ_another_status_is_not_held_against_the_canary() {
    let (stable, canary) = (Backend::named("v1"), one_in_twenty("404 Not Found"));
    let web = Web::new(stable.address).canary(canary.address);
    let tidegate = start_with(web.table("mirror", "mismatch_fails = false"), DARK, "0.05");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let live = eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    drop(load);
    in_order(&events(&live), &["step 2 began: the canary gets 0.01 % (the evidence allows it): of "]);
    let scrape = tidegate.wait_until_idle();
    let mismatches = scrape.sum("tidegate_mirrored_requests_total", &[("result", "mismatch")]);
    assert!(mismatches > 0.0);
    scrape.expect("tidegate_mirrored_pairs_total", &[("failed_by", "canary")], 0.0);
}

#[test]
fn a_good_canary_gets_its_first_users_and_copies_are_no_evidence_of_them() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&stable, &canary, DARK, "0.05");
    let load = Load::on(&tidegate);
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["rollout"]["steps"][0]["mirror"], 100.0);
    let verdict = |status: &Value| status["rollout"]["verdict"].clone();
    let dark = eventually(
        || tidegate.status(),
        |status| verdict(status)["stage"] == "dark" && verdict(status)["pairs"]["pairs"].as_u64() > Some(0),
    );
    assert_eq!((&dark["weight"], &dark["rollout"]["step"]), (&0.0.into(), &0.into()));
    let pairs = &verdict(&dark)["pairs"];
    assert_eq!(
        (&pairs["canary_only"], &pairs["stable_only"], &pairs["both"]),
        (&0.into(), &0.into(), &0.into())
    );
    let live = eventually(
        || tidegate.status(),
        |status| verdict(status)["stage"] == "stepping" && status["rollout"]["step"] == 1,
    );
    in_order(
        &events(&live),
        &[
            "step 1 began: the canary gets copies of 100 % of requests (it is ready)",
            "step 2 began: the canary gets 0.01 % (the evidence allows it): of ",
        ],
    );
    drop(load);
    let scrape = tidegate.wait_until_idle();
    let copied = scrape.sum("tidegate_mirrored_requests_total", &[("result", "match")]);
    let users = scrape.sum("tidegate_requests_total", &[("role", "canary")]);
    assert!(copied >= 50.0 && users < copied / 2.0, "{copied} copies, {users} users");
    // What users have met is all that counts now.
    let verdict = verdict(&live);
    assert!(verdict["rollout"]["canary"]["requests"].as_f64().unwrap() <= users, "{verdict}");
    assert_eq!(verdict["pairs"], Value::Null);
    assert!(verdict["promotion_evidence"].as_f64().unwrap() < 1.0, "{verdict}");
    let before = copies(&tidegate);
    tidegate.client().get("/");
    assert_eq!(copies(&tidegate), before, "copies end with the step");
}

#[test]
fn the_services_own_mirror_goes_on_after_the_dark_steps() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address).table("mirror", "percent = 0");
    let tidegate = Tidegate::start(web.table("rollout", &DARK.replace("150ms", "1h")));
    tidegate.client().get("/");
    assert_eq!(copies(&tidegate), 0.0);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.client().get("/");
    eventually_is(1.0, || copies(&tidegate));
    tidegate.api("POST", "web/promote", "");
    tidegate.client().get("/");
    assert_eq!(copies(&tidegate), 1.0);
}

#[test]
fn a_dark_step_that_is_taken_back_waits_for_its_copies_and_cuts_them() {
    let stable = Backend::named("v1");
    let silent = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    });
    let plan = format!("{}\ndrain = '300ms'", DARK.replace("150ms", "1h"));
    let tidegate = start(&stable, &silent, &plan, "0.05");
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    assert_eq!(tidegate.client().get("/").text(), "v1");
    let in_flight = || tidegate.scrape().sum("tidegate_mirrored_requests_in_flight", &[("service", "web")]);
    eventually_is(1.0, in_flight);
    tidegate.api("POST", "web/rollback", "");
    let events = events(&tidegate.wait_for_phase("rolled_back"));
    let last = events.last().unwrap();
    assert!(last.ends_with("; cut is what was still under way at v2: 1"), "{last}");
    eventually_is(0.0, in_flight);
    let results = "tidegate_mirrored_requests_total";
    tidegate.scrape().expect(results, &[("result", "dropped_incomplete")], 1.0);
}

#[test]
fn copies_alone_promote_nobody_and_silence_is_no_evidence() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let impatient = "steps = [{ mirror = 100, hold = '50ms' }, { weight = 10 }]\ndeadline = '1s'";
    let tidegate = start(&stable, &canary, impatient, "0.05");
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("paused");
    assert_eq!(status["rollout"]["reason"], "inconclusive");
    let why = status["rollout"]["explanation"].as_str().unwrap();
    assert!(why.starts_with("no copy of a request was answered in the last "), "{why}");
}

#[test]
fn a_restart_goes_on_with_the_copies_and_their_evidence() {
    let site = Site::new();
    let plan = "steps = [{ mirror = 100, hold = '1h' }, { weight = 20, hold = '1h' }]";
    let tidegate = site.start(plan);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    (0..20).for_each(|_| _ = tidegate.client().get("/"));
    let pairs = |tidegate: &Tidegate| tidegate.status()["rollout"]["verdict"]["pairs"]["pairs"].as_u64();
    eventually_is(Some(20), || pairs(&tidegate));
    site.stop(tidegate);
    let file = site.file("state.json");
    assert_eq!(saved(&file)["rollout"]["plan"]["steps"][0]["mirror"], 100.0);
    // Whatever the configuration says now, the plan is that with which it began.
    let tidegate = site.start("steps = [{ weight = 20, hold = '1h' }]");
    assert_eq!((tidegate.status()["weight"].as_f64(), pairs(&tidegate)), (Some(0.0), Some(20)));
    let seen = site.canary.count();
    tidegate.client().get("/");
    eventually_is(Some(21), || pairs(&tidegate));
    assert_eq!(site.canary.count(), seen + 1);
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("role", "canary")], 0.0);
}

#[test]
fn a_reload_leaves_a_rollout_its_copies() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web =
        |rollout: &str| Web::new(stable.address).canary(canary.address).table("rollout", rollout).to_string();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, web(&DARK.replace("150ms", "1h"))).unwrap();
    let tidegate = Tidegate::start_from(&file, false);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    // As far as it says now, nothing is ever copied.
    fs::write(&file, web("steps = [{ weight = 50 }]")).unwrap();
    assert_eq!(tidegate.ask("POST", "/api/v1/reload", "").status, 200);
    tidegate.client().get("/");
    eventually_is(1.0, || copies(&tidegate));
    tidegate.api("POST", "web/rollback", "");
    tidegate.client().get("/");
    assert_eq!(copies(&tidegate), 1.0);
}
