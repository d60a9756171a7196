//! Whole rollouts with real requests, at twenty ticks a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use serde_json::Value;

use crate::support::{Backend, Raw, Refusing, Tidegate, Web, client::Response, eventually, reply};

/// Requests that keep coming for as long as this lives.
pub struct Load {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn on(tidegate: &Tidegate) -> Self {
        Self::checked(tidegate, |_| {})
    }

    /// The same with a look at each response.
    pub fn checked(tidegate: &Tidegate, check: fn(&Response)) -> Self {
        Self::of(tidegate, &["/"; 20], check)
    }

    /// The same for these targets, one after the other.
    pub fn of(tidegate: &Tidegate, targets: &[&str], check: fn(&Response)) -> Self {
        let requests = targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        Self::sending(tidegate, requests.collect(), targets.len(), check)
    }

    /// The same for so many requests as they are written.
    pub fn sending(tidegate: &Tidegate, requests: String, count: usize, check: fn(&Response)) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (over, address, requests) = (Arc::clone(&over), tidegate.address(), requests.clone());
            thread::spawn(move || {
                let mut client = Raw::connect(address);
                while !over.load(SeqCst) {
                    client.send(&requests);
                    for _ in 0..count {
                        check(&client.response());
                    }
                }
            })
        };
        let clients = (0..2).map(client).collect();
        Self { over, clients }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        for client in self.clients.drain(..) {
            let ended = client.join();
            assert!(thread::panicking() || ended.is_ok(), "a client failed");
        }
    }
}

/// Whether the budget of harm has taken weight from a step of 50 %, and would give it back now.
pub fn may_rise(status: &Value) -> bool {
    let cap = status["rollout"]["verdict"]["harm"]["weight_cap"].as_f64();
    status["weight"].as_f64() < Some(50.0) && cap >= Some(50.0)
}

const CANARY: &str = "
    steps = [{ weight = 20, hold = '150ms' }, { weight = 50, hold = '150ms' }]
    bake = '150ms'";

/// Sharp eyes, so that a test need not send for minutes; latency on a busy machine says nothing.
const ANALYSIS: &str = "
    minimum_requests = 50
    promotion_margin = 0.05
    latency_margin = false";

fn start(stable: &Backend, canary: std::net::SocketAddr, rollout: &str) -> Tidegate {
    let web = Web::new(stable.address).canary(canary).workers(2);
    Tidegate::start(web.table("rollout", rollout).table("rollout.analysis", ANALYSIS))
}

fn failing() -> Backend {
    Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"))
}

/// What happened, in order, as sentences.
pub fn events(status: &Value) -> Vec<String> {
    let events = status["events"].as_array().unwrap();
    events.iter().map(|event| event["what"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
pub fn in_order(events: &[String], wanted: &[&str]) {
    let mut rest = events.iter();
    for beginning in wanted {
        assert!(
            rest.any(|event| event.starts_with(beginning)),
            "`{beginning}` is not in its place: {events:#?}"
        );
    }
}

#[test]
fn a_good_canary_is_promoted_step_by_step() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&stable, canary.address, CANARY);
    let load = Load::on(&tidegate);
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["rollout"]["phase"], "preparing");
    tidegate.scrape().expect("tidegate_rollout_running", &[("service", "web")], 1.0);
    let status = tidegate.wait_for_phase("succeeded");
    drop(load);
    assert_eq!((&status["stable"], &status["canary"]), (&"v2".into(), &"v1".into()));
    assert_eq!(status["weight"], 0.0);
    in_order(
        &events(&status),
        &[
            "the rollout began",
            "step 1 began: the canary gets 20 %",
            "step 2 began: the canary gets 50 %",
            "the canary became stable",
            "the new stable is watched for 150ms",
            "the rollout succeeded",
        ],
    );
    assert_eq!(tidegate.client().get("/").text(), "v2");
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_rollouts_total", &[("outcome", "succeeded")], 1.0);
    scrape.expect("tidegate_rollout_running", &[("service", "web")], 0.0);
    scrape.expect("tidegate_weight_ratio", &[("backend", "v2"), ("role", "stable")], 1.0);
    let ended = scrape.sum("tidegate_requests_total", &[]);
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], ended);
    // Roles have moved, so the next rollout goes the other way.
    let status = tidegate.api("POST", "web/start", "");
    in_order(&events(&status), &["the rollout began: the canary is being prepared: v2 to v1"]);
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    assert_eq!(tidegate.client().get("/").text(), "v2");
}

#[test]
fn a_bad_canary_is_rolled_back_and_gets_nothing() {
    let (stable, canary) = (Backend::named("v1"), failing());
    let tidegate = start(&stable, canary.address, CANARY);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &0.0.into()));
    assert_eq!(status["rollout"]["reason"]["kind"], "verdict");
    in_order(&events(&status), &["the rollout began", "step 1 began", "rolling back", "rolled back"]);
    let so_far = canary.count();
    let mut client = tidegate.client();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(canary.count(), so_far);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_rollouts_total", &[("outcome", "rolled_back")], 1.0);
    // An alert on it ends with the rollout.
    scrape.expect("tidegate_rollout_evidence_ratio", &[], 0.0);
    // A second try is a rollout of its own.
    let first = status["rollout"]["id"].clone();
    let again =
        eventually(|| tidegate.api("POST", "web/start", ""), |status| status["rollout"]["id"] != first);
    assert_eq!(again["rollout"]["phase"], "preparing");
}

/// A version that fails two requests of three for as long as it is told to.
fn failing_while(is_failing: &Arc<AtomicBool>) -> Backend {
    let (is_failing, count) = (Arc::clone(is_failing), AtomicU64::new(0));
    Backend::answering(move |_| match count.fetch_add(1, SeqCst) % 3 {
        1 | 2 if is_failing.load(SeqCst) => reply("500 Internal Server Error", &[], "bad"),
        _ => reply("200 OK", &[], "good"),
    })
}

#[test]
fn trouble_that_is_not_the_canarys_alone_is_said_and_so_is_its_end() {
    let failing = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let [stable, canary] = failing.each_ref().map(failing_while);
    let tidegate = start(&stable, canary.address, "steps = [{ weight = 50, hold = '1h' }]");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let last = |wanted: &str| {
        let is_last = |status: &Value| events(status).last().is_some_and(|event| event.starts_with(wanted));
        eventually(|| tidegate.status(), is_last)
    };
    failing.iter().for_each(|failing| failing.store(true, SeqCst));
    let status = last("incident: canary fails ");
    assert!(events(&status).last().unwrap().ends_with(": holding, both are in trouble"), "{status:#}");
    failing.iter().for_each(|failing| failing.store(false, SeqCst));
    let status = last("the incident is over");
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &50.0.into()));
    failing[0].store(true, SeqCst);
    let status = last("incident: ");
    let said = events(&status).pop().unwrap();
    assert!(said.contains("; stable alone is in trouble and fails "), "{said}");
    assert!(said.ends_with("with `guards-only` the rollout goes on without comparing"), "{said}");
    drop(load);
}

#[test]
fn blue_green_flips_at_once_and_bakes() {
    let (blue, green) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&blue, green.address, "strategy = 'blue-green'\nbake = '300ms'");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("baking");
    assert_eq!((&status["stable"], &status["canary"]), (&"v2".into(), &"v1".into()));
    assert_eq!(tidegate.client().get("/").text(), "v2");
    let status = tidegate.wait_for_phase("succeeded");
    drop(load);
    in_order(&events(&status), &["the rollout began", "the canary became stable", "the rollout succeeded"]);
    // The way back once all is over.
    let status = tidegate.api("POST", "web/flip", "");
    assert_eq!(status["stable"], "v1");
    assert_eq!(tidegate.client().get("/").text(), "v1");
}

#[test]
fn a_green_that_turns_bad_while_it_bakes_is_swapped_back() {
    let bad = Arc::new(AtomicBool::new(false));
    let green = {
        let bad = Arc::clone(&bad);
        Backend::answering(move |_| match bad.load(SeqCst) {
            true => reply("503 Service Unavailable", &[], ""),
            false => reply("200 OK", &[], "v2"),
        })
    };
    let blue = Backend::named("v1");
    let tidegate = start(&blue, green.address, "strategy = 'blue-green'\nbake = '1m'");
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("baking");
    bad.store(true, SeqCst);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!((&status["stable"], &status["canary"]), (&"v1".into(), &"v2".into()));
    assert_eq!(tidegate.client().get("/").text(), "v1");
}

/// A plan whose first step lasts until a person ends it.
const BY_HAND: &str = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'";

#[test]
fn people_pause_resume_promote_and_roll_back() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&stable, canary.address, BY_HAND);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("stepping");
    assert_eq!((&status["rollout"]["step"], &status["weight"]), (&0.into(), &20.0.into()));
    let status = tidegate.api("POST", "web/pause", "");
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"paused".into(), &20.0.into()));
    let status = tidegate.api("POST", "web/resume", "");
    assert_eq!(status["rollout"]["phase"], "stepping");
    let status = tidegate.api("POST", "web/promote", "");
    assert_eq!((&status["rollout"]["step"], &status["weight"]), (&1.into(), &50.0.into()));
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!((&status["weight"], &status["stable"]), (&0.0.into(), &"v1".into()));
    let status = tidegate.wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["reason"]["kind"], "command");
    // From the start again, and all the way at once.
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let status = tidegate.api("POST", "web/promote", r#"{"full": true, "reason": "a test"}"#);
    assert_eq!(status["stable"], "v2");
    tidegate.wait_for_phase("baking");
    assert_eq!(tidegate.client().get("/").text(), "v2");
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!(status["stable"], "v1");
    assert_eq!(tidegate.client().get("/").text(), "v1");
}

#[test]
fn while_it_is_paused_the_budget_raises_no_weight() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let web = web.table("rollout", "steps = [{ weight = 50, hold = '1h' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", "latency_margin = false\nmax_harm = 1"));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/pause", "");
    // At first a bad canary could cost more than there is: it gets less, at once. Then more is known.
    let load = Load::on(&tidegate);
    let lowered = eventually(|| tidegate.status(), may_rise)["weight"].as_f64().unwrap();
    let ticks = || tidegate.scrape().sum("tidegate_tick_seconds_count", &[]);
    let before = ticks();
    eventually(ticks, |now| *now >= before + 3.0);
    let status = tidegate.status();
    assert_eq!(status["rollout"]["phase"], "paused");
    assert!(status["weight"].as_f64().unwrap() <= lowered, "{status:#}");
    tidegate.api("POST", "web/resume", "");
    eventually(|| tidegate.status(), |status| status["weight"].as_f64() > Some(lowered));
    drop(load);
}

#[test]
fn the_budget_holds_from_the_first_request_of_a_step_on() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let web = web.table("rollout", "steps = [{ weight = 50, hold = '1h' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", "latency_margin = false\nmax_harm = 1"));
    // What stable has is known when a step begins.
    let load = Load::on(&tidegate);
    let ticks = || tidegate.scrape().sum("tidegate_tick_seconds_count", &[]);
    let before = ticks();
    eventually(ticks, |now| *now >= before + 5.0);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("stepping");
    drop(load);
    let began = events(&status).into_iter().find(|event| event.starts_with("step 1 began: ")).unwrap();
    assert!(began.starts_with("step 1 began: the canary gets 50 % (it is ready); "), "{began}");
    assert!(began.ends_with(" % for now, as more could cost over 1 requests"), "{began}");
}

#[test]
fn what_would_get_in_a_rollouts_way_is_refused() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&stable, canary.address, BY_HAND);
    tidegate.set_weight(5.0);
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["weight"], 0.0, "a rollout begins at nothing");
    tidegate.wait_for_phase("stepping");
    for (method, path, body) in [
        ("POST", "start", ""),
        ("PUT", "weight", r#"{"canary": 100}"#),
        ("POST", "flip", ""),
        ("POST", "resume", ""),
    ] {
        let response = tidegate.ask(method, &format!("/api/v1/services/web/{path}"), body);
        assert_eq!(response.status, 409, "{path}: {}", response.text());
    }
    let status = tidegate.status();
    assert_eq!((&status["weight"], &status["stable"]), (&20.0.into(), &"v1".into()));
}

#[test]
fn a_canary_that_is_not_up_yet_is_waited_for_without_traffic() {
    let (stable, canary) = (Backend::named("v1"), Refusing::new());
    let tidegate = start(&stable, canary.address, BY_HAND);
    tidegate.api("POST", "web/start", "");
    let mut client = tidegate.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "v1");
    }
    assert_eq!(tidegate.status()["rollout"]["phase"], "preparing");
    let canary = canary.open("v2");
    tidegate.wait_for_phase("stepping");
    eventually(|| client.get("/").text(), |text| text == "v2");
    drop(client);
    drop(tidegate);
    drop(canary);
}

#[test]
fn a_step_without_traffic_ends_in_a_pause_and_not_in_a_promotion() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let plan = "steps = [{ weight = 20, hold = '50ms' }]\nbake = '1h'\ndeadline = '200ms'";
    let tidegate = start(&stable, canary.address, plan);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("paused");
    assert_eq!((&status["rollout"]["reason"], &status["weight"]), (&"inconclusive".into(), &20.0.into()));
}
