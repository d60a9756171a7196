//! What outlives the process: rollouts, roles and history, over restarts that are asked for.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc::channel},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    rollout::{Load, events},
    support::{Backend, Tidegate, Web, eventually, patience, reply},
};

/// Two versions, and a directory for what outlives the proxy in front of them.
pub struct Site {
    pub stable: Backend,
    pub canary: Backend,
    pub folder: TempDir,
}

/// A plan whose steps last until a person ends them.
pub const BY_HAND: &str =
    "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'\ndeadline = '1h'";

impl Site {
    pub fn new() -> Self {
        Self {
            stable: Backend::named("v1"),
            canary: Backend::named("v2"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn web(&self, rollout: &str) -> Web {
        Web::new(self.stable.address)
            .canary(self.canary.address)
            .workers(2)
            .table("sticky", "header = 'x-user'")
            .table("rollout", rollout)
            .table("rollout.analysis", "minimum_requests = 50\nlatency_margin = false")
    }

    pub fn toml(&self, web: &Web) -> String {
        format!("{web}[store]\npath = '{}'\n", self.store().display())
    }

    #[track_caller]
    pub fn start(&self, rollout: &str) -> Tidegate {
        Tidegate::start(self.toml(&self.web(rollout)))
    }

    /// Started by hand, and in its first step.
    #[track_caller]
    pub fn stepping(&self) -> Tidegate {
        let tidegate = self.start(BY_HAND);
        tidegate.api("POST", "web/start", "");
        tidegate.wait_for_phase("stepping");
        tidegate
    }

    /// Ends it, and waits until it has let go of its files.
    pub fn stop(&self, tidegate: Tidegate) {
        drop(tidegate);
        let lock = fs::File::open(self.store().join(".lock")).unwrap();
        eventually(|| lock.try_lock().is_ok(), |locked| *locked);
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.store().join("web").join(name)
    }

    /// What is saved.
    pub fn saved(&self) -> Value {
        saved(&self.file("state.json"))
    }
}

pub fn saved(file: &Path) -> Value {
    let sealed: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    sealed["body"]["record"].clone()
}

/// Which of a hundred users get the canary.
fn on_canary(tidegate: &Tidegate) -> Vec<usize> {
    let mut client = tidegate.client();
    let gets = |user: &usize| {
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\n\r\n"));
        client.response().text() == "v2"
    };
    (0..100).filter(gets).collect()
}

#[test]
fn a_rollout_goes_on_where_it_was() {
    let site = Site::new();
    let tidegate = site.stepping();
    let before = tidegate.api("POST", "web/promote", "");
    assert_eq!((&before["rollout"]["step"], &before["weight"]), (&1.into(), &50.0.into()));
    let users = on_canary(&tidegate);
    assert!((20..80).contains(&users.len()), "{users:?}");
    site.stop(tidegate);

    let tidegate = site.start(BY_HAND);
    // From the first request on: the same users get the canary.
    assert_eq!(on_canary(&tidegate), users);
    let after = tidegate.status();
    for field in ["id", "started", "phase", "step", "steps"] {
        assert_eq!(after["rollout"][field], before["rollout"][field], "{field}");
    }
    assert_eq!((&after["weight"], &after["unsaved"]), (&50.0.into(), &Value::Null));
    let events = events(&after);
    assert!(events[0].starts_with("the rollout began"), "{events:#?}");
    assert!(events.last().unwrap().starts_with("the rollout goes on after a restart"), "{events:#?}");
    tidegate.scrape().expect("tidegate_rollout_running", &[("service", "web")], 1.0);
    tidegate.scrape().expect("tidegate_weight_ratio", &[("role", "canary")], 0.5);
    // And it can be ended as if nothing had been.
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!((&status["weight"], &status["stable"]), (&0.0.into(), &"v1".into()));
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    assert_eq!(tidegate.wait_for_phase("rolled_back")["rollout"]["reason"]["kind"], "command");
    assert_eq!(on_canary(&tidegate), [0; 0]);
}

#[test]
fn time_that_nobody_watched_counts_for_nothing() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    let since = |status: &Value| status["rollout"]["since"].as_u64().unwrap();
    let before = since(&tidegate.wait_for_phase("stepping"));
    site.stop(tidegate);
    let saved = site.saved()["saved"].as_u64().unwrap();
    // An hour ago, as it seems.
    let hour = Duration::from_secs(3600).as_millis() as u64;
    for name in ["state.json", "state.json.last"] {
        let file = site.file(name);
        let text = fs::read_to_string(&file).unwrap();
        let sealed: Value = serde_json::from_str(&text).unwrap();
        let body = text.split_once("\"body\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
        let body = [saved, before].iter().fold(body.to_owned(), |body, millis| {
            body.replace(&millis.to_string(), &(millis - hour).to_string())
        });
        fs::write(
            file,
            text.replace(sealed["checksum"].as_str().unwrap(), &checksum(&body)).replace(
                text.split_once("\"body\":").unwrap().1.trim_end().strip_suffix('}').unwrap(),
                &body,
            ),
        )
        .unwrap();
    }
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!(status["rollout"]["phase"], "stepping", "its deadline has not passed");
    let moved = since(&status) - (before - hour);
    assert!((hour..hour + 60_000).contains(&moved), "moved by {moved} ms");
}

/// As the store makes it.
fn checksum(body: &str) -> String {
    use std::hash::Hasher as _;
    let mut hasher = siphasher::sip::SipHasher13::new();
    hasher.write(body.as_bytes());
    format!("{:016x}", hasher.finish())
}

#[test]
fn evidence_is_kept_and_counted_once() {
    let site = Site::new();
    let tidegate = site.stepping();
    let requests = |status: &Value| status["rollout"]["verdict"]["rollout"]["canary"]["requests"].as_u64();
    let load = Load::on(&tidegate);
    eventually(|| requests(&tidegate.status()), |seen| seen.unwrap_or(0) > 200);
    drop(load);
    tidegate.wait_until_idle();
    let all = tidegate.scrape().sum("tidegate_requests_total", &[("backend", "v2")]);
    let seen = eventually(|| requests(&tidegate.status()), |seen| *seen == Some(all as u64));
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    assert_eq!(requests(&tidegate.status()), seen);
    // What comes now is added to it.
    let mut client = tidegate.client();
    let more = (0..100).filter(|_| client.get("/").text() == "v2").count() as u64;
    eventually(|| requests(&tidegate.status()), |now| *now == seen.map(|seen| seen + more));
}

#[test]
fn a_hooks_yes_is_kept_and_moves_nothing_without_evidence() {
    let (site, (answer, told)) = (Site::new(), channel());
    let told = Mutex::new(told);
    let hook = Backend::answering(move |_| {
        let _told = told.lock().unwrap().recv_timeout(patience());
        reply("200 OK", &[], "")
    });
    let rollout = format!(
        "steps = [{{ weight = 20, hold = '50ms' }}, {{ weight = 50, hold = '1h' }}]\n\
         hooks = [{{ at = 'step', url = 'http://{}/', timeout = '1h', deadline = '1h' }}]",
        hook.address
    );
    let tidegate = site.start(&rollout);
    let waits = |tidegate: &Tidegate, reason: &str| {
        let status = eventually(|| tidegate.status(), |status| status["rollout"]["reason"] == reason);
        assert_eq!((&status["rollout"]["step"], &status["weight"]), (&0.into(), &20.0.into()));
    };
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    waits(&tidegate, "hook");
    // With nobody there nothing is known of how the canary is now.
    drop(load);
    let is_silent = |status: &Value| status["rollout"]["verdict"]["reason"]["kind"] == "no_canary_traffic";
    eventually(|| tidegate.status(), is_silent);
    answer.send(()).unwrap();
    waits(&tidegate, "hook_allowed");
    site.stop(tidegate);
    let tidegate = site.start(&rollout);
    let ticks = || tidegate.scrape().sum("tidegate_tick_seconds_count", &[]);
    eventually(ticks, |ticks| *ticks >= 3.0);
    waits(&tidegate, "hook_allowed");
    let load = Load::on(&tidegate);
    let status = eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &50.0.into()));
    drop(load);
    assert_eq!(hook.count(), 1, "it is not asked again");
}

#[test]
fn whoever_became_stable_stays_so_until_the_configuration_says_otherwise() {
    let site = Site::new();
    let tidegate = site.start("strategy = 'blue-green'\nbake = '50ms'");
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("succeeded");
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["stable"], &status["canary"]), (&"v2".into(), &"v1".into()));
    assert_eq!(tidegate.client().get("/").text(), "v2");
    assert_eq!(status["rollout"]["phase"], "succeeded");
    // What people set by hand is kept as well.
    tidegate.set_weight(100.0);
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    assert_eq!(tidegate.client().get("/").text(), "v1");
    tidegate.api("POST", "web/flip", "");
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &0.0.into()));
    tidegate.api("POST", "web/flip", "");
    site.stop(tidegate);
    // Somebody writes another weight meanwhile.
    let tidegate = Tidegate::start(site.toml(&site.web(BY_HAND).weight(30.0)));
    let status = tidegate.status();
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &30.0.into()));
    let events = events(&status);
    let said = "the configuration has changed meanwhile: v1 is stable, and the canary gets 30 %";
    assert_eq!(events.last().unwrap(), said);
}

#[test]
fn a_rollout_whose_roles_are_written_anew_is_over() {
    let site = Site::new();
    let tidegate = site.stepping();
    let id = tidegate.status()["rollout"]["id"].clone();
    site.stop(tidegate);
    let receiver = Backend::answering(|_| reply("204 No Content", &[], ""));
    let hook = |at| {
        let address = receiver.address;
        format!("[[services.web.rollout.hooks]]\nat = '{at}'\nurl = 'http://{address}/'\n")
    };
    let stable = site.stable.address;
    let v3 = format!("endpoints = ['http://{}']", site.canary.address);
    let web = Web::new(stable)
        .keys("canary = 'v3'")
        .table("backends.v3", &v3)
        .table("rollout", &["event", "rollback"].map(hook).concat());
    let tidegate = Tidegate::start(site.toml(&web));
    let status = tidegate.status();
    assert_eq!((&status["canary"], &status["weight"]), (&"v3".into(), &0.0.into()));
    assert_eq!(
        (&status["rollout"]["phase"], &status["rollout"]["reason"]["kind"]),
        (&"rolled_back".into(), &"cannot_go_on".into())
    );
    // As with any other end, people are told, it is counted, and it is in the history.
    let mut told: Vec<_> = eventually(|| receiver.requests(), |told| told.len() == 2)
        .iter()
        .map(|told| serde_json::from_slice::<Value>(&told.body).unwrap())
        .map(|told| (told["at"].clone(), told["event"].clone(), told["rollout"].clone()))
        .collect();
    told.sort_by_key(|(at, ..)| at.to_string());
    let wanted = [("event".into(), "rolled_back".into()), ("rollback".into(), Value::Null)];
    assert_eq!(told, wanted.map(|(at, event)| (at, event, id.clone())));
    tidegate.scrape().expect("tidegate_rollouts_total", &[("outcome", "rolled_back")], 1.0);
    let past = |tidegate: &Tidegate| tidegate.api("GET", "web/rollouts", "")["rollouts"].clone();
    let known = eventually(|| past(&tidegate), |past| past[0]["phase"] == "rolled_back");
    assert_eq!((known.as_array().unwrap().len(), &known[0]["id"]), (1, &id));
    site.stop(tidegate);
    // That is saved as well, and said once.
    let tidegate = Tidegate::start(site.toml(&web));
    assert_eq!(tidegate.status()["rollout"]["phase"], "rolled_back");
    assert_eq!(past(&tidegate), known);
    tidegate.scrape().expect("tidegate_rollouts_total", &[("outcome", "rolled_back")], 0.0);
    tidegate.api("POST", "web/start", "");
}

#[test]
fn another_plan_is_for_the_next_rollout() {
    let site = Site::new();
    let tidegate = site.stepping();
    site.stop(tidegate);
    let tidegate = site.start("steps = [{ weight = 1 }]");
    let status = tidegate.status();
    assert_eq!((&status["weight"], status["rollout"]["steps"].as_array().unwrap().len()), (&20.0.into(), 2));
}

#[test]
fn the_history_is_read_in_pages_and_by_rollout() {
    let site = Site::new();
    let tidegate = site.stepping();
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    tidegate.set_weight(5.0);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let all = tidegate.api("GET", "web/history", "");
    let entries = all["entries"].as_array().unwrap();
    let field = |name: &str| entries.iter().map(|entry| entry[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("seq"), [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(field("weight"), [20.0, 0.0, 5.0, 0.0, 0.0, 20.0, 0.0]);
    assert_eq!(entries[2]["kind"], "weight");
    assert_eq!(
        (&entries[0]["note"]["kind"], &entries[0]["phase"]["phase"]),
        (&"stepped".into(), &"stepping".into())
    );
    assert_eq!(all["next"], Value::Null);
    let page = tidegate.api("GET", "web/history?limit=2&before=6", "");
    assert_eq!(page["entries"].as_array().unwrap()[..], entries[2..4]);
    assert_eq!(page["next"], 4);
    let rollouts = tidegate.api("GET", "web/rollouts", "");
    let rollouts = rollouts["rollouts"].as_array().unwrap();
    let phases: Vec<_> = rollouts.iter().map(|past| (&past["phase"], &past["entries"])).collect();
    let runs = (&"stepping".into(), &serde_json::json!([6, 7]));
    assert_eq!(phases, [runs, (&"rolled_back".into(), &serde_json::json!([1, 4]))]);
    assert_eq!(rollouts[0]["id"], tidegate.status()["rollout"]["id"]);
    let what = "rolled back: somebody asked for it; nothing is under way at v2 any more";
    assert_eq!(rollouts[1]["what"], what);
    let page = tidegate.api("GET", "web/rollouts?limit=1", "");
    assert_eq!((&page["rollouts"], &page["next"]), (&serde_json::json!([rollouts[0]]), &6.into()));
    let page = tidegate.api("GET", "web/rollouts?limit=1&before=6", "");
    assert_eq!((&page["rollouts"], &page["next"]), (&serde_json::json!([rollouts[1]]), &Value::Null));
    for (path, status) in [
        ("web/history?limit=0", 400),
        ("web/history?limit=1001", 400),
        ("web/history?limti=1", 400),
        ("web/rollouts?after=1", 400),
        ("nobody/history", 404),
        ("nobody/rollouts", 404),
    ] {
        assert_eq!(tidegate.ask("GET", &format!("/api/v1/services/{path}"), "").status, status, "{path}");
    }
}
