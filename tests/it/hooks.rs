//! Who is asked before a rollout goes on, and who is told.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use ring::hmac;
use serde_json::Value;

use crate::support::{
    Backend, Refusing, Tidegate, Web,
    backend::Seen,
    certificates::{Authority, Files},
    eventually, eventually_is, reply,
};

const STEPS: &str = "steps = [{ weight = 10, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'\n";

/// A service with a canary, two long steps and these hooks.
pub struct Setup {
    stable: Backend,
    canary: Backend,
}

impl Setup {
    pub fn new() -> Self {
        Self { stable: Backend::named("v1"), canary: Backend::named("v2") }
    }

    pub fn web(&self, keys: &str) -> Web {
        Web::new(self.stable.address).canary(self.canary.address).table("rollout", &format!("{STEPS}{keys}"))
    }

    /// Starts a rollout.
    fn start(&self, keys: &str) -> Tidegate {
        let tidegate = Tidegate::start(self.web(keys));
        tidegate.api("POST", "web/start", "");
        tidegate
    }
}

fn hook(at: &str, receiver: &Backend, keys: &str) -> String {
    let url = format!("url = 'http://{}/called'", receiver.address);
    format!("[[services.web.rollout.hooks]]\nat = '{at}'\n{url}\n{keys}\n")
}

/// Answers each call in turn, and the last answer for good.
fn receiver(statuses: &'static [&'static str]) -> Backend {
    let calls = AtomicUsize::new(0);
    Backend::answering(move |_| {
        let call = calls.fetch_add(1, SeqCst).min(statuses.len() - 1);
        reply(statuses[call], &[], "checkout is\nred")
    })
}

fn json(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

/// Waits until the rollout is paused for this reason.
#[track_caller]
fn paused(tidegate: &Tidegate, reason: &str) -> Value {
    let is = |status: &Value| status["rollout"]["phase"] == "paused" && status["rollout"]["reason"] == reason;
    eventually(|| tidegate.status(), is)
}

#[test]
fn a_hook_that_says_yes_is_asked_once_at_each_place() {
    let (setup, receiver) = (Setup::new(), receiver(&["204 No Content"]));
    let asked = ["pre-rollout", "step", "pre-promotion"];
    let told = ["post-promotion", "rollback"];
    let hooks: String = asked.iter().chain(&told).map(|at| hook(at, &receiver, "")).collect();
    let tidegate = setup.start(&hooks);
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    tidegate.api("POST", "web/promote", "");
    tidegate.wait_for_phase("baking");
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    let seen = eventually(|| receiver.requests(), |seen| seen.len() >= 5);
    let calls: Vec<_> = seen.iter().map(json).collect();
    let places: Vec<_> = calls.iter().map(|call| call["at"].as_str().unwrap()).collect();
    assert_eq!(places, [&asked[..], &told].concat());
    let step = &calls[1];
    assert_eq!(
        (&step["service"], &step["stable"], &step["canary"]),
        (&"web".into(), &"v1".into(), &"v2".into())
    );
    assert_eq!((&step["phase"], &step["step"], &step["steps"]), (&"paused".into(), &0.into(), &2.into()));
    assert_eq!((&step["weight"], step["rollout"].is_string()), (&10.0.into(), true));
    assert_eq!((&calls[0]["phase"], &calls[0]["weight"]), (&"preparing".into(), &0.0.into()));
    assert_eq!((&calls[3]["stable"], &calls[4]["stable"]), (&"v2".into(), &"v1".into()));
    let ids: std::collections::BTreeSet<_> = calls.iter().map(|call| call["id"].to_string()).collect();
    assert_eq!(ids.len(), 5, "each has an id of its own");
    let scrape = tidegate.scrape();
    for at in asked.iter().chain(&told) {
        scrape.expect("tidegate_hooks_total", &[("at", at), ("result", "success")], 1.0);
    }
    assert_eq!(receiver.count(), 5, "never once a tick");
}

#[test]
fn while_a_hook_is_asked_the_rollout_waits_and_may_go_back() {
    let setup = Setup::new();
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let tidegate = setup.start(&hook("step", &silent, "timeout = '1h'\ndeadline = '1h'"));
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    let status = paused(&tidegate, "hook");
    assert_eq!(status["weight"], 10.0);
    eventually_is(1, || silent.connections());
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    assert_eq!(silent.connections(), 1);
}

#[test]
fn a_no_pauses_and_resume_asks_again() {
    let (setup, receiver) = (Setup::new(), receiver(&["409 Conflict", "200 OK"]));
    let tidegate = setup.start(&hook("step", &receiver, "name = 'smoke'\nretries = 5"));
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    let status = paused(&tidegate, "hook_failed");
    let events = status["events"].as_array().unwrap();
    let said = "paused at step 1: a hook did not let it go on: the hook `smoke`: status 409: checkout is red";
    assert_eq!(events.last().unwrap()["what"], said);
    assert_eq!(receiver.count(), 1, "a no is an answer, and is not asked for again");
    tidegate.api("POST", "web/resume", "");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    let seen = receiver.requests();
    assert_ne!(json(&seen[0])["id"], json(&seen[1])["id"], "it is another question");
    tidegate.scrape().expect("tidegate_hooks_total", &[("at", "step"), ("result", "failure")], 1.0);
}

#[test]
fn a_no_rolls_back_where_the_plan_says_so_and_before_the_first_user() {
    let (setup, receiver) = (Setup::new(), receiver(&["403 Forbidden"]));
    let roll_back = "on_hook_failure = 'roll_back'\n".to_owned();
    let tidegate = setup.start(&(roll_back + &hook("pre-promotion", &receiver, "")));
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    tidegate.api("POST", "web/promote", "");
    let status = tidegate.wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["reason"]["kind"], "hook_failed");

    let tidegate = setup.start(&hook("pre-rollout", &receiver, ""));
    let status = tidegate.wait_for_phase("rolled_back");
    let why = format!("the hook `http://{}/…`: status 403: checkout is red", receiver.address);
    assert_eq!(status["rollout"]["reason"]["kind"], "prepare_failed");
    assert_eq!(status["rollout"]["reason"]["why"], why);
}

#[test]
fn a_hot_fix_asks_nobody() {
    let (setup, no) = (Setup::new(), receiver(&["403 Forbidden"]));
    let full = "{\"full\": true, \"reason\": \"a hot fix\"}";
    let refusing = Refusing::new();
    let web = Web::new(setup.stable.address)
        .canary(refusing.address)
        .table("rollout", &format!("{STEPS}{}", hook("pre-rollout", &no, "")));
    let tidegate = Tidegate::start(web);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("preparing");
    tidegate.api("POST", "web/promote", full);
    let _canary = refusing.open("v2");
    tidegate.wait_for_phase("baking");
    assert_eq!(no.count(), 0);
    // Also where one is asked already, and would say no in the end.
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let tidegate = setup.start(&hook("pre-rollout", &silent, "timeout = '1h'\ndeadline = '1h'"));
    eventually_is(1, || silent.connections());
    assert_eq!(tidegate.status()["rollout"]["phase"], "preparing");
    tidegate.api("POST", "web/promote", full);
    tidegate.wait_for_phase("baking");
    assert_eq!(silent.connections(), 1);
}

#[test]
fn trouble_is_tried_again_with_the_same_id_and_signed_anew() {
    let (setup, files) = (Setup::new(), Files::new());
    let receiver = receiver(&["503 Service Unavailable", "429 Too Many Requests", "200 OK"]);
    let secret = files.write("secret", "s3cret\n");
    let fields = files.write("fields", "Authorization: Bearer abc\nX-Team: web\n");
    let keys =
        format!("retries = 2\nsecret_file = '{}'\nheaders_file = '{}'", secret.display(), fields.display());
    let tidegate = setup.start(&hook("pre-rollout", &receiver, &keys));
    tidegate.wait_for_phase("stepping");
    let seen = receiver.requests();
    assert_eq!(seen.len(), 3);
    for seen in &seen {
        assert_eq!((seen.method(), seen.target()), ("POST", "/called"));
        assert_eq!(seen.fields("content-type"), ["application/json"]);
        assert_eq!(seen.fields("authorization"), ["Bearer abc"]);
        assert_eq!(seen.fields("x-team"), ["web"]);
        assert_eq!(seen.fields("x-tidegate-delivery"), [json(seen)["id"].as_str().unwrap()]);
        assert_eq!(json(seen)["id"], json(&receiver.requests()[0])["id"]);
        let signature = seen.fields("x-tidegate-signature")[0].to_owned();
        let (time, mac) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
        let mac: Vec<_> =
            (0..mac.len()).step_by(2).map(|at| u8::from_str_radix(&mac[at..at + 2], 16).unwrap()).collect();
        let message = [format!("{time}.").as_bytes(), &seen.body].concat();
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, b"s3cret"), &message, &mac).unwrap();
    }
}

#[test]
fn whoever_wants_every_event_gets_each_once_and_in_order() {
    let (setup, receiver) = (Setup::new(), receiver(&["200 OK"]));
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let hooks = hook("event", &silent, "timeout = '1h'\ndeadline = '1h'") + &hook("event", &receiver, "");
    let tidegate = setup.start(&hooks);
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/pause", "");
    tidegate.api("POST", "web/resume", "");
    tidegate.api("POST", "web/promote", "{\"full\": true, \"reason\": \"a test\"}");
    tidegate.wait_for_phase("baking");
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    let wanted =
        ["started", "stepped", "paused", "resumed", "promoted", "baking", "rolling_back", "rolled_back"];
    let seen = eventually(|| receiver.requests(), |seen| seen.len() >= wanted.len());
    let events: Vec<_> = seen.iter().map(|seen| json(seen)["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, wanted);
    assert_eq!(json(&seen[1])["message"], "step 1 began: the canary gets 10 % (it is ready)");
    assert_eq!(silent.connections(), 1, "one that hangs holds up nobody else");
}

#[test]
fn a_success_says_until_when_the_way_back_is_kept() {
    let setup = Setup::new();
    let at_event = receiver(&["204 No Content"]);
    let keys = format!("strategy = 'blue-green'\nbake = '0s'\n{}", hook("event", &at_event, ""));
    let web = Web::new(setup.stable.address).canary(setup.canary.address).table("rollout", &keys);
    let tidegate = Tidegate::start(web);
    let metric = || tidegate.scrape().sum("tidegate_rollback_until_timestamp_seconds", &[("service", "web")]);
    assert_eq!(metric(), 0.0);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("succeeded");
    let until = status["rollout"]["rollback_until"].as_u64().unwrap();
    assert_eq!(metric(), until as f64 / 1e3);
    let told = || at_event.requests().iter().map(json).find(|call| call["event"] == "succeeded");
    let told = eventually(told, Option::is_some).unwrap();
    let said: jiff::Timestamp = told["rollback_until"].as_str().unwrap().parse().unwrap();
    assert_eq!(said.as_millisecond() as u64, until);
    let before = at_event.requests().iter().map(json).find(|call| call["event"] == "started").unwrap();
    assert!(before["rollback_until"].is_null());
    let shown =
        crate::simulate::answer(&["status", "web", "--address", &format!("http://{}", tidegate.admin)]);
    assert!(shown.contains("  v1 is kept until ") && shown.contains("Z: `flip` is the way back"), "{shown}");
    // A rollout that runs has no such time.
    tidegate.api("POST", "web/start", "");
    assert_eq!(metric(), 0.0);
}

#[test]
fn a_flip_is_told_and_there_is_no_way_back_to_what_it_rejected() {
    let setup = Setup::new();
    let at_event = receiver(&["204 No Content"]);
    let keys = format!("strategy = 'blue-green'\nbake = '0s'\n{}", hook("event", &at_event, ""));
    let web = Web::new(setup.stable.address).canary(setup.canary.address).table("rollout", &keys);
    let tidegate = Tidegate::start(web);
    let metric = || tidegate.scrape().sum("tidegate_rollback_until_timestamp_seconds", &[("service", "web")]);
    let address = format!("http://{}", tidegate.admin);
    let shown = || crate::simulate::answer(&["status", "web", "--address", &address]);
    let told = |count| {
        let flips = || {
            let calls: Vec<_> = at_event.requests().iter().map(json).collect();
            calls.into_iter().filter(|call| call["event"] == "flipped").collect::<Vec<_>>()
        };
        eventually(flips, |flips| flips.len() == count).pop().unwrap()
    };
    tidegate.api("POST", "web/start", "");
    let until = tidegate.wait_for_phase("succeeded")["rollout"]["rollback_until"].clone();
    let status = tidegate.api("POST", "web/flip", r#"{"reason": "wrong prices"}"#);
    assert!(until.is_u64() && status["rollout"]["rollback_until"].is_null(), "{status}");
    assert_eq!(metric(), 0.0);
    assert!(!shown().contains("is kept until"), "{}", shown());
    let flip = told(1);
    assert_eq!((&flip["stable"], &flip["weight"]), (&"v1".into(), &0.0.into()));
    assert_eq!(flip["message"], "flipped: v1 is stable and has all requests");
    assert_eq!(flip["reason"], "wrong prices");
    assert!(flip["by"].as_str().is_some_and(|by| by.starts_with("127.0.0.1")), "{flip}");
    assert!(flip["rollback_until"].is_null(), "{flip}");
    // Forward again is an advance, which is saved first; then it is as the success left it.
    let status = tidegate.api("POST", "web/flip", "");
    assert_eq!(status["rollout"]["rollback_until"], until);
    assert_eq!(metric(), until.as_f64().unwrap() / 1e3);
    assert!(shown().contains("  v1 is kept until "), "{}", shown());
    let flip = told(2);
    assert_eq!(flip["message"], "flipped: v2 is stable and has all requests");
    assert!(flip["reason"].is_null() && flip["rollback_until"].is_string(), "{flip}");
}

#[test]
fn a_url_may_be_a_secret_of_a_file_and_speak_tls() {
    let (setup, files, authority) = (Setup::new(), Files::new(), Authority::new("hooks"));
    let pair = files.pair("receiver", &authority.issue(&["127.0.0.1"]));
    let listener = format!("[listeners.tls]\ncertificates = [{{ {pair} }}]\n");
    let behind = receiver(&["200 OK"]);
    let secure = Tidegate::start(Web::new(behind.address).listener(&listener));
    let url = files.write("url", &format!("https://{}/services/T0/secret\n", secure.address()));
    let ca = files.write("ca.pem", &authority.pem);
    let keys = |ca: &Path| {
        let files = format!("url_file = '{}'\nca_file = '{}'", url.display(), ca.display());
        format!("[[services.web.rollout.hooks]]\nat = 'pre-rollout'\n{files}\n")
    };
    setup.start(&keys(&ca)).wait_for_phase("stepping");
    assert_eq!(behind.only_request().target(), "/services/T0/secret");
    let others = files.write("others.pem", &Authority::new("others").pem);
    let status = setup.start(&keys(&others)).wait_for_phase("rolled_back");
    let why = status["rollout"]["reason"]["why"].as_str().unwrap();
    assert!(why.contains("no TLS: invalid peer certificate") && !why.contains("T0"), "{why}");
}

#[test]
fn hooks_that_a_reload_adds_are_told_from_then_on() {
    let (setup, receiver, files) = (Setup::new(), receiver(&["200 OK"]), Files::new());
    let file = files.write("tidegate.toml", &setup.web("").to_string());
    let tidegate = Tidegate::start_from(&file, false);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    files.write("tidegate.toml", &setup.web(&hook("event", &receiver, "")).to_string());
    assert_eq!(tidegate.ask("POST", "/api/v1/reload", "").status, 200);
    tidegate.api("POST", "web/pause", "");
    let seen = eventually(|| receiver.requests(), |seen| !seen.is_empty());
    assert_eq!(json(&seen[0])["event"], "paused");
}

#[test]
fn after_a_restart_the_same_question_is_asked_again() {
    let (setup, files) = (Setup::new(), Files::new());
    let silent = Backend::scripted(|mut peer| {
        let _asked = peer.request();
        peer.wait_for_end();
    });
    let hook = hook("step", &silent, "timeout = '1h'\ndeadline = '1h'");
    let toml = format!("{}\n[store]\npath = '{}'\n", setup.web(&hook), files.path("store").display());
    let tidegate = Tidegate::start(&toml);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    paused(&tidegate, "hook");
    eventually_is(1, || silent.count());
    drop(tidegate);
    let lock = fs::File::open(files.path("store").join(".lock")).unwrap();
    eventually(|| lock.try_lock().is_ok(), |locked| *locked);
    drop(lock);
    let tidegate = Tidegate::start(&toml);
    paused(&tidegate, "hook");
    eventually_is(2, || silent.count());
    let [first, second] = [0, 1].map(|at: usize| json(&silent.requests()[at]));
    assert_eq!(first, second, "its id and its time too");
    tidegate.api("POST", "web/promote", "");
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
}

#[test]
fn whoever_takes_pods_away_is_told_once_that_a_backend_is_drained() {
    let setup = Setup::new();
    let [at_drained, at_event] = [receiver(&["204 No Content"]), receiver(&["204 No Content"])];
    let hooks = hook("drained", &at_drained, "") + &hook("event", &at_event, "");
    let tidegate = setup.start(&format!("drained_after = '0s'\n{hooks}"));
    for round in 1..=2 {
        tidegate.wait_for_phase("stepping");
        // It is news only of a backend that was used.
        let visit = || {
            tidegate.client().get("/");
            setup.canary.count()
        };
        eventually(visit, |visits| *visits >= round);
        tidegate.api("POST", "web/rollback", "");
        tidegate.wait_for_phase("rolled_back");
        eventually(|| at_drained.count(), |count| *count == round);
        tidegate.api("POST", "web/start", "");
    }
    let calls: Vec<_> = at_drained.requests().iter().map(json).collect();
    for call in &calls {
        assert_eq!(
            (&call["at"], &call["backend"], &call["stable"]),
            (&"drained".into(), &"v2".into(), &"v1".into())
        );
        assert_eq!(call["message"], "v2 is drained: nothing was under way there for 50ms");
    }
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let told = eventually(
        || at_event.requests().iter().map(json).filter(|call| call["event"] == "drained").collect::<Vec<_>>(),
        |told| told.len() == 2,
    );
    assert!(told.iter().all(|call| call["backend"] == "v2"), "{told:?}");
    tidegate.scrape().expect("tidegate_hooks_total", &[("at", "drained"), ("result", "success")], 2.0);
}
