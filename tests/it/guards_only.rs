//! A fix that has to go out while stable is down: judged by guards alone, and beside a stable that fails fast.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    restart::Site,
    rollout::{Load, events, in_order},
    support::{Backend, Tidegate, Web, eventually, reply},
};

const GUARDS_ONLY: &str = r#"{"guards_only": true, "reason": "v1 is down"}"#;

/// Answers 503 at once.
fn down() -> Backend {
    Backend::answering(|_| reply("503 Service Unavailable", &[], "down"))
}

/// Answers as it should, after as long as that takes.
fn slow(millis: u64) -> Backend {
    Backend::answering(move |_| {
        thread::park_timeout(Duration::from_millis(millis));
        reply("200 OK", &[], "v2")
    })
}

/// A fix in front of which stable fails, by a plan of two steps.
fn start(stable: &Backend, canary: &Backend, analysis: &str) -> Tidegate {
    let plan = "steps = [{ weight = 20, hold = '150ms' }, { weight = 50, hold = '150ms' }]\nbake = '150ms'";
    let web = Web::new(stable.address).canary(canary.address).workers(2).table("rollout", plan);
    Tidegate::start(web.table("rollout.analysis", analysis))
}

#[test]
fn a_fix_is_promoted_on_guards_alone_while_stable_answers_503() {
    let (stable, canary) = (down(), slow(30));
    let tidegate = start(&stable, &canary, "minimum_requests = 20");
    let load = Load::on(&tidegate);
    refused_without_reason(&tidegate, "start", r#"{"guards_only": true}"#);
    let status = tidegate.api("POST", "web/start", GUARDS_ONLY);
    assert_eq!(status["rollout"]["guards_only"], true);
    let status = tidegate.wait_for_phase("succeeded");
    drop(load);
    assert_eq!(status["stable"], "v2");
    in_order(
        &events(&status),
        &[
            "the rollout began: the canary is being prepared: v1 to v2, 20 % for 150ms, then 50 % for 150ms, judged by guards alone",
            "step 1 began",
            "step 2 began: the canary gets 50 % (the evidence allows it): canary fails 0 % of ",
            "the canary became stable and gets all traffic (the evidence allows it): canary fails 0 % of ",
            "the rollout succeeded",
        ],
    );
    let began = status["events"].as_array().unwrap().iter().find(|event| event["reason"] == "v1 is down");
    assert!(began.is_some(), "{status:#}");
}

#[test]
fn a_fix_that_is_none_is_rolled_back_on_guards_alone() {
    let (stable, canary) = (down(), down());
    let tidegate = start(&stable, &canary, "minimum_requests = 20");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", GUARDS_ONLY);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let kind = status["rollout"]["verdict"]["reason"]["kind"].as_str().unwrap();
    assert!(["worse", "only_failures"].contains(&kind), "{status:#}");
}

/// Neither side fails all, and the limit is what tells.
#[test]
fn a_fix_that_fails_too_much_is_rolled_back_by_the_limit() {
    let stable = down();
    let third = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let canary = Backend::answering(move |_| match third.fetch_add(1, SeqCst) % 3 {
        0 => reply("500 Internal Server Error", &[], ""),
        _ => reply("200 OK", &[], "v2"),
    });
    let tidegate = start(&stable, &canary, "minimum_requests = 1000000");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", GUARDS_ONLY);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let why = status["rollout"]["explanation"].as_str().unwrap();
    assert!(why.contains(" of requests, limit 5 %: rolling back"), "{why}");
}

/// Without guards alone, too: a stable that fails at once is not fast.
#[test]
fn a_fix_is_not_slow_beside_a_stable_that_fails_at_once() {
    let odd = AtomicBool::new(false);
    // What it still answers takes as long as the fix does.
    let stable = Backend::answering(move |_| {
        if odd.fetch_xor(true, SeqCst) {
            return reply("503 Service Unavailable", &[], "down");
        }
        thread::park_timeout(Duration::from_millis(5));
        reply("200 OK", &[], "v1")
    });
    let canary = slow(5);
    let tidegate = start(&stable, &canary, "minimum_requests = 50\nlatency_margin = 3");
    let load = Load::on(&tidegate);
    let ended = |status: &Value| status["backends"][0]["requests_total"].as_u64() >= Some(600);
    eventually(|| tidegate.status(), ended);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("succeeded");
    drop(load);
}

/// Stable breaks in the middle of a rollout; what somebody then says survives a restart.
#[test]
fn a_rollout_that_runs_is_switched_and_stays_so_over_a_restart() {
    let is_down = Arc::new(AtomicBool::new(false));
    let stable = {
        let is_down = Arc::clone(&is_down);
        Backend::answering(move |_| match is_down.load(SeqCst) {
            true => reply("503 Service Unavailable", &[], "down"),
            false => reply("200 OK", &[], "v1"),
        })
    };
    let site = Site { stable, ..Site::new() };
    let plan = "steps = [{ weight = 50, hold = '1h' }]\nbake = '1h'\ndeadline = '1h'";
    let tidegate = site.start(plan);
    refused_without_reason(&tidegate, "guards-only", "");
    let because = r#"{"reason": "v1 is down"}"#;
    let response = tidegate.ask("POST", "/api/v1/services/web/guards-only", because);
    assert_eq!(response.status, 409, "{}", response.text());
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    is_down.store(true, SeqCst);
    let offered = |status: &Value| {
        status["rollout"]["explanation"].as_str().is_some_and(|said| said.contains("with `guards-only`"))
    };
    eventually(|| tidegate.status(), offered);
    let status = tidegate.api("POST", "web/guards-only", because);
    assert_eq!(
        (&status["rollout"]["guards_only"], &status["rollout"]["phase"]),
        (&true.into(), &"stepping".into())
    );
    let said = events(&status).pop().unwrap();
    assert_eq!(said, "judged by guards alone from now on: nothing is compared with stable");
    drop(load);
    site.stop(tidegate);
    let tidegate = site.start(plan);
    let load = Load::on(&tidegate);
    let is_alone = |status: &Value| {
        let rollout = &status["rollout"];
        rollout["guards_only"] == true && rollout["verdict"]["reason"]["kind"] == "within_limits"
    };
    eventually(|| tidegate.status(), is_alone);
    drop(load);
    // It is over with the rollout.
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["rollout"]["guards_only"], false);
}

#[track_caller]
fn refused_without_reason(tidegate: &Tidegate, verb: &str, body: &str) {
    for body in [body, &body.replace('}', r#", "reason": " "}"#)] {
        let response = tidegate.ask("POST", &format!("/api/v1/services/web/{verb}"), body);
        assert_eq!(response.status, 422, "{}", response.text());
        assert!(response.text().contains("needs a `reason`"), "{}", response.text());
    }
}
