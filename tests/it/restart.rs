//! What outlives the process: rollouts, roles and history, over restarts that are asked for.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    rollout::{Load, events},
    support::{Backend, Tidegate, Web, eventually, reply},
};

/// Two versions, and a directory for what outlives the proxy in front of them.
struct Site {
    stable: Backend,
    canary: Backend,
    folder: TempDir,
}

/// A plan whose steps last until a person ends them.
const BY_HAND: &str =
    "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'\ndeadline = '1h'";

impl Site {
    fn new() -> Self {
        Self {
            stable: Backend::named("v1"),
            canary: Backend::named("v2"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn web(&self, rollout: &str) -> Web {
        Web::new(self.stable.address)
            .canary(self.canary.address)
            .workers(2)
            .table("sticky", "header = 'x-user'")
            .table("rollout", rollout)
            .table("rollout.analysis", "minimum_requests = 50\nlatency_margin = false")
    }

    fn toml(&self, web: &Web) -> String {
        format!("{web}[store]\npath = '{}'\n", self.store().display())
    }

    #[track_caller]
    fn start(&self, rollout: &str) -> Tidegate {
        Tidegate::start(self.toml(&self.web(rollout)))
    }

    /// Ends it, and waits until it has let go of its files.
    fn stop(&self, tidegate: Tidegate) {
        drop(tidegate);
        let lock = fs::File::open(self.store().join(".lock")).unwrap();
        eventually(|| lock.try_lock().is_ok(), |locked| *locked);
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.store().join("web").join(name)
    }

    /// What is saved.
    fn saved(&self) -> Value {
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
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
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
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
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
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    site.stop(tidegate);
    let stable = site.stable.address;
    let v3 = format!("endpoints = ['http://{}']", site.canary.address);
    let web = Web::new(stable).keys("canary = 'v3'").table("backends.v3", &v3);
    let tidegate = Tidegate::start(site.toml(&web));
    let status = tidegate.status();
    assert_eq!((&status["canary"], &status["weight"]), (&"v3".into(), &0.0.into()));
    assert_eq!(
        (&status["rollout"]["phase"], &status["rollout"]["reason"]["kind"]),
        (&"rolled_back".into(), &"cannot_go_on".into())
    );
    site.stop(tidegate);
    // That is saved as well.
    let tidegate = Tidegate::start(site.toml(&web));
    assert_eq!(tidegate.status()["rollout"]["phase"], "rolled_back");
    tidegate.api("POST", "web/start", "");
}

#[test]
fn another_plan_is_for_the_next_rollout() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    site.stop(tidegate);
    let tidegate = site.start("steps = [{ weight = 1 }]");
    let status = tidegate.status();
    assert_eq!((&status["weight"], status["rollout"]["steps"].as_array().unwrap().len()), (&20.0.into(), 2));
}

#[test]
fn a_corrupt_record_gives_way_to_the_one_before_and_it_is_said() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    site.stop(tidegate);
    // The last save was of evidence alone, so the one before says the same.
    fs::write(site.file("state.json"), "{\"schema\":1,").unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &20.0.into()));
    let said = events(&status);
    assert!(said.iter().any(|event| event.contains("state.json is corrupt at byte 0")), "{said:#?}");
    tidegate.api("POST", "web/promote", "");
    site.stop(tidegate);
    // With the record of a transition lost nobody knows what the canary may have: it goes back.
    fs::write(site.file("state.json"), "").unwrap();
    let older = fs::read(site.file("state.json.last")).unwrap();
    let tidegate = site.start(BY_HAND);
    let went_on = tidegate.status();
    assert_eq!(went_on["weight"], 50.0, "evidence alone was lost");
    tidegate.api("POST", "web/pause", "");
    site.stop(tidegate);
    fs::write(site.file("state.json"), "").unwrap();
    fs::write(site.file("state.json.last"), older).unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"rolled_back".into(), &0.0.into()));
    assert_eq!(status["rollout"]["reason"]["kind"], "cannot_go_on");
    site.stop(tidegate);
    // Without any record the roles are those of the history.
    fs::write(site.file("state.json"), "").unwrap();
    fs::write(site.file("state.json.last"), "").unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!(
        (&status["stable"], &status["rollout"], &status["weight"]),
        (&"v1".into(), &Value::Null, &0.0.into())
    );
}

#[test]
fn what_cannot_be_saved_is_no_advance_and_a_way_back_all_the_same() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    // A file cannot be written where a folder is.
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let refused = tidegate.ask("POST", "/api/v1/services/web/promote", "");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("this cannot be saved, so nothing has changed"), "{}", refused.text());
    let status = tidegate.status();
    assert_eq!((&status["weight"], &status["rollout"]["step"]), (&20.0.into(), &0.into()));
    assert!(status["unsaved"].as_str().unwrap().contains("state.json.next"), "{status:#}");
    tidegate.scrape().expect("tidegate_store_unsaved", &[("service", "web")], 1.0);
    assert_eq!(tidegate.ask("GET", "/readyz", "").status, 200);
    assert_eq!(tidegate.client().get("/").status, 200);
    let said = events(&status);
    assert!(
        said.last().unwrap().starts_with("this cannot be saved, and so does not happen: step 2 began"),
        "{said:#?}"
    );
    // The way back happens, and is saved as soon as that works.
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!((&status["weight"], &status["stable"]), (&0.0.into(), &"v1".into()));
    let status = tidegate.wait_for_phase("rolled_back");
    assert!(status["unsaved"].is_string());
    let refused = tidegate.ask("POST", "/api/v1/services/web/start", "");
    assert_eq!(refused.status, 503);
    assert_eq!(tidegate.status()["rollout"]["phase"], "rolled_back", "as before");
    let refused = tidegate.ask("PUT", "/api/v1/services/web/weight", "{\"canary\": 10}");
    assert_eq!((refused.status, &tidegate.status()["weight"]), (503, &0.0.into()));
    fs::remove_dir(&in_the_way).unwrap();
    let status = eventually(|| tidegate.status(), |status| status["unsaved"].is_null());
    assert_eq!(events(&status).last().unwrap(), "what happens can be saved again");
    tidegate.scrape().expect("tidegate_store_unsaved", &[("service", "web")], 0.0);
    tidegate.set_weight(10.0);
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["weight"], &status["rollout"]["phase"]), (&10.0.into(), &"rolled_back".into()));
}

#[test]
fn a_canary_that_became_ready_when_nothing_could_be_saved_is_not_forgotten() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    site.stop(tidegate);
    // In preparing at the restart, and then nothing can be saved for a while.
    let refusing = crate::support::Refusing::new();
    let web = |canary| {
        let web = Web::new(site.stable.address).canary(canary);
        site.toml(&web.table("rollout", BY_HAND))
    };
    let tidegate = Tidegate::start(web(refusing.address));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("preparing");
    site.stop(tidegate);
    let tidegate = Tidegate::start(web(refusing.address));
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let canary = refusing.open("v2");
    eventually(|| tidegate.status(), |status| status["unsaved"].is_string());
    assert_eq!(tidegate.status()["rollout"]["phase"], "preparing");
    fs::remove_dir(&in_the_way).unwrap();
    tidegate.wait_for_phase("stepping");
    drop((tidegate, canary));
}

#[test]
fn a_bad_canary_is_rolled_back_while_nothing_can_be_saved() {
    let site = Site::new();
    let bad = Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"));
    let web = Web::new(site.stable.address).canary(bad.address).table("rollout", BY_HAND);
    let tidegate = Tidegate::start(site.toml(&web));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let load = Load::on(&tidegate);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!((&status["weight"], &status["rollout"]["reason"]["kind"]), (&0.0.into(), &"verdict".into()));
    fs::remove_dir(&in_the_way).unwrap();
    site.stop(tidegate);
    assert_eq!(site.saved()["rollout"]["phase"]["phase"], "rolled_back");
}

#[test]
fn a_directory_that_is_taken_ends_the_start() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    let toml = site.toml(&site.web(BY_HAND));
    let (code, said) = crate::cli::ends(toml);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: cannot use the store"), "{said}");
    let process = std::process::id();
    assert!(said.contains(&format!("another process (number {process}) uses the store")), "{said}");
    site.stop(tidegate);
}
