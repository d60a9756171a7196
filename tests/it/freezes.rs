//! Freezes: what waits until they are over, and what does not.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
    mpsc::{Sender, channel},
};

use serde_json::Value;

use crate::{
    rollout::{Load, may_rise},
    support::{Backend, Refusing, Tidegate, Web, eventually, eventually_is, patience, reply},
    waiting::{refused, stands, start},
};

/// A window that began long ago and ends long after.
const FREEZE: &str = "[[freeze]]\nfrom = '2000-01-01'\nto = '2100-01-01'";

#[test]
fn in_a_freeze_nothing_starts_without_force_and_what_runs_waits() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(canary.address, "steps = [{ weight = 20, hold = '1h' }]", FREEZE);
    refused(&tidegate, "start", "service `web` is frozen, 2000-01-01 00:00 to 2100-01-01 00:00 (UTC)");
    tidegate.api("POST", "web/start", r#"{"force": true}"#);
    let status = tidegate.wait_for_phase("paused");
    assert_eq!(stands(&status), ("paused", &"freeze".into()));
    assert_eq!(status["weight"], 20.0);
    refused(&tidegate, "resume", "it goes on by itself when that is over");
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!(status["weight"], 0.0, "going back is always possible");
}

#[test]
fn a_freeze_that_ends_lets_the_rollout_go_on() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let freezing = Freezing::start(&web.table("rollout", "steps = [{ weight = 20, hold = '1h' }]"));
    let tidegate = &freezing.tidegate;
    freezing.freeze(FREEZE);
    tidegate.api("POST", "web/start", r#"{"force": true}"#);
    tidegate.wait_for_phase("paused");
    freezing.freeze("");
    let status = tidegate.wait_for_phase("stepping");
    assert_eq!((&status["rollout"]["step"], &status["weight"]), (&0.into(), &20.0.into()));
}

/// A service whose file can be written with and without a freeze.
struct Freezing {
    web: String,
    folder: tempfile::TempDir,
    tidegate: Tidegate,
}

impl Freezing {
    fn start(web: &Web) -> Self {
        let (web, folder) = (web.to_string(), tempfile::tempdir().unwrap());
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, &web).unwrap();
        let tidegate = Tidegate::start_from(&file, false);
        Self { web, folder, tidegate }
    }

    #[track_caller]
    fn freeze(&self, freeze: &str) {
        std::fs::write(self.folder.path().join("tidegate.toml"), format!("{}\n{freeze}", self.web)).unwrap();
        assert_eq!(self.tidegate.ask("POST", "/api/v1/reload", "").status, 200);
    }

    /// How it stands some ticks after this has been said.
    #[track_caller]
    fn later(&self, said: &str) -> Value {
        eventually(|| self.tidegate.status(), |status| status["events"].to_string().contains(said));
        let ticks = || self.tidegate.scrape().sum("tidegate_tick_seconds_count", &[]);
        let before = ticks();
        eventually(ticks, |now| *now >= before + 3.0);
        self.tidegate.status()
    }
}

/// A freeze begins while a canary is being prepared that could not be reached yet. What comes of it in the end?
#[track_caller]
fn frozen_while_preparing(plan: &str, then: &str) -> (Backend, Backend, Freezing) {
    let (stable, canary) = (Backend::named("v1"), Refusing::new());
    let freezing = Freezing::start(&Web::new(stable.address).canary(canary.address).table("rollout", plan));
    let tidegate = &freezing.tidegate;
    tidegate.api("POST", "web/start", "");
    freezing.freeze(FREEZE);
    let canary = canary.open("v2");
    let status = freezing.later("the canary is ready; it gets nothing until the freeze is over");
    assert_eq!(stands(&status).0, "preparing");
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &0.0.into()));
    assert_eq!(tidegate.client().get("/").text(), "v1");
    assert_eq!(canary.count(), 0, "no user has got there");
    freezing.freeze("");
    tidegate.wait_for_phase(then);
    (stable, canary, freezing)
}

#[test]
fn nobody_gets_to_a_canary_that_is_ready_in_a_freeze_until_that_ends() {
    let plan = "steps = [{ weight = 20, hold = '1h' }]";
    let (_stable, _canary, Freezing { tidegate, .. }) = frozen_while_preparing(plan, "stepping");
    assert_eq!(tidegate.status()["weight"], 20.0);
}

/// Hours may have passed since the canary was ready.
#[test]
fn a_canary_that_was_ready_before_a_freeze_has_to_be_so_after_it() {
    for is_well_then in [true, false] {
        let (stable, is_well) = (Backend::named("v1"), Arc::new(AtomicBool::new(true)));
        let well = Arc::clone(&is_well);
        let canary = Backend::answering(move |_| match well.load(SeqCst) {
            true => reply("200 OK", &[], "v2"),
            false => reply("503 Service Unavailable", &[], "down"),
        });
        let plan = "steps = [{ weight = 20, hold = '1h' }]\nprepare_deadline = '3s'
            [[services.web.rollout.probes]]\npath = '/ready'\ninterval = '10ms'";
        let freezing =
            Freezing::start(&Web::new(stable.address).canary(canary.address).table("rollout", plan));
        let tidegate = &freezing.tidegate;
        is_well.store(false, SeqCst);
        tidegate.api("POST", "web/start", "");
        freezing.freeze(FREEZE);
        is_well.store(true, SeqCst);
        freezing.later("the canary is ready; it gets nothing until the freeze is over");
        let before = canary.count();
        is_well.store(is_well_then, SeqCst);
        freezing.freeze("");
        let phase = if is_well_then { "stepping" } else { "rolled_back" };
        let status = tidegate.wait_for_phase(phase);
        assert!(canary.count() > before, "it is probed again");
        assert!(canary.requests().iter().all(|seen| seen.target() == "/ready"), "nobody else was there");
        if !is_well_then {
            let why = status["rollout"]["reason"]["why"].as_str().unwrap();
            assert!(why.starts_with("the probe `GET /ready`"), "{why}");
        }
    }
}

#[test]
fn in_a_freeze_blue_green_without_a_gate_does_not_swap_until_that_ends() {
    let plan = "strategy = 'blue-green'\nbake = '1h'";
    let (_stable, _canary, Freezing { tidegate, .. }) = frozen_while_preparing(plan, "baking");
    assert_eq!(tidegate.status()["stable"], "v2");
    assert_eq!(tidegate.client().get("/").text(), "v2");
}

/// A service with a hook that is asked after the first step, and answers once it is told to.
fn asking(status: &'static str, keys: &str) -> (Sender<()>, [Backend; 3], Freezing) {
    let (answer, told) = channel();
    let told = Mutex::new(told);
    let hook = Backend::answering(move |_| {
        let _told = told.lock().unwrap().recv_timeout(patience());
        reply(status, &[], "")
    });
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let called = format!("at = 'step'\nurl = 'http://{}/'\ntimeout = '1h'\ndeadline = '1h'", hook.address);
    let steps = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]";
    let plan = format!("{steps}\n{keys}\n[[services.web.rollout.hooks]]\n{called}");
    let freezing = Freezing::start(&Web::new(stable.address).canary(canary.address).table("rollout", &plan));
    (answer, [stable, canary, hook], freezing)
}

#[track_caller]
fn promote_to_the_hook(tidegate: &Tidegate, hook: &Backend) {
    tidegate.api("POST", "web/promote", "");
    eventually_is(1, || hook.count());
    assert_eq!(stands(&tidegate.status()), ("paused", &"hook".into()));
}

/// A rollout that waits for its hook when a freeze begins, and whose hook answers in it.
#[track_caller]
fn answered_in_a_freeze(answer: &Sender<()>, hook: &Backend, freezing: &Freezing) {
    freezing.tidegate.api("POST", "web/start", "");
    freezing.tidegate.wait_for_phase("stepping");
    promote_to_the_hook(&freezing.tidegate, hook);
    freezing.freeze(FREEZE);
    answer.send(()).unwrap();
}

#[test]
fn a_hook_that_says_yes_in_a_freeze_moves_nothing_until_that_ends() {
    let (answer, backends, freezing) = asking("200 OK", "");
    answered_in_a_freeze(&answer, &backends[2], &freezing);
    let tidegate = &freezing.tidegate;
    let status = freezing.later("a hook says yes; nothing moves until the freeze is over");
    assert_eq!((stands(&status), &status["weight"]), (("paused", &"hook".into()), &20.0.into()));
    freezing.freeze("");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1 && status["weight"] == 50.0);
    assert_eq!(backends[2].count(), 1, "it is not asked again");
}

#[test]
fn a_hook_that_says_no_in_a_freeze_rolls_back_in_it() {
    let (answer, backends, freezing) = asking("409 Conflict", "on_hook_failure = 'roll_back'");
    answered_in_a_freeze(&answer, &backends[2], &freezing);
    assert_eq!(freezing.tidegate.wait_for_phase("rolled_back")["weight"], 0.0);
}

#[test]
fn what_a_person_wants_in_a_freeze_moves_when_the_hook_says_yes() {
    let (answer, backends, freezing) = asking("200 OK", "");
    let tidegate = &freezing.tidegate;
    freezing.freeze(FREEZE);
    tidegate.api("POST", "web/start", r#"{"force": true}"#);
    tidegate.wait_for_phase("paused");
    promote_to_the_hook(tidegate, &backends[2]);
    answer.send(()).unwrap();
    let status = eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    assert_eq!(status["weight"], 50.0);
}

/// By what it is judged says nothing of when it is to move.
#[test]
fn guards_only_in_a_freeze_moves_nothing_when_the_hook_says_yes() {
    let (answer, backends, freezing) = asking("200 OK", "");
    let tidegate = &freezing.tidegate;
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    promote_to_the_hook(tidegate, &backends[2]);
    freezing.freeze(FREEZE);
    tidegate.api("POST", "web/guards-only", r#"{"reason": "v1 is down"}"#);
    answer.send(()).unwrap();
    let status = freezing.later("a hook says yes; nothing moves until the freeze is over");
    assert_eq!((stands(&status), &status["weight"]), (("paused", &"hook".into()), &20.0.into()));
    freezing.freeze("");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1 && status["weight"] == 50.0);
}

#[test]
fn a_hot_fix_that_is_ready_in_a_freeze_gets_everything_in_it() {
    let (stable, canary) = (Backend::named("v1"), Refusing::new());
    let web = Web::new(stable.address).canary(canary.address).table("rollout", "bake = '1h'");
    let freezing = Freezing::start(&web);
    freezing.tidegate.api("POST", "web/start", "");
    freezing.tidegate.api("POST", "web/promote", r#"{"full": true, "reason": "a hot fix"}"#);
    freezing.freeze(FREEZE);
    let canary = canary.open("v2");
    assert_eq!(freezing.tidegate.wait_for_phase("baking")["stable"], "v2");
    drop(freezing);
    drop(canary);
}

#[test]
fn in_a_freeze_the_budget_raises_no_weight() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let web = web.table("rollout", "steps = [{ weight = 50, hold = '1h' }]");
    let freezing = Freezing::start(&web.table("rollout.analysis", "latency_margin = false\nmax_harm = 1"));
    let tidegate = &freezing.tidegate;
    freezing.freeze(FREEZE);
    tidegate.api("POST", "web/start", r#"{"force": true}"#);
    tidegate.wait_for_phase("paused");
    // At first a bad canary could cost more than there is: it gets less, at once. Then more is known.
    let load = Load::on(tidegate);
    let lowered = eventually(|| tidegate.status(), may_rise)["weight"].as_f64().unwrap();
    let status = freezing.later("paused");
    assert_eq!(stands(&status), ("paused", &"freeze".into()));
    assert!(status["weight"].as_f64().unwrap() <= lowered, "{status:#}");
    freezing.freeze("");
    eventually(|| tidegate.status(), |status| status["weight"].as_f64() > Some(lowered));
    drop(load);
}
