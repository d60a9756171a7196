//! A disk that does not answer: nothing moves forward, and everything can go back.

use std::{fs, net::SocketAddr, path::PathBuf, thread};

use serde_json::Value;

use crate::{
    injection::process::{Comes, Process, Stop},
    killing::ask,
    support::{Backend, Web, eventually, eventually_is, metrics::Scrape, reply},
};

/// A process whose disk can be made to hang.
struct Hanging {
    process: Process,
    _folder: tempfile::TempDir,
    _backends: [Backend; 2],
}

impl Hanging {
    fn start(rollout: &str, analysis: &str) -> Self {
        let backends = ["v1", "v2"].map(Backend::named);
        let folder = tempfile::tempdir().unwrap();
        let web = Web::new(backends[0].address)
            .canary(backends[1].address)
            .table("sticky", "header = 'x-user'")
            .table("rollout", rollout)
            .table("rollout.analysis", analysis);
        let config: PathBuf = folder.path().join("tidegate.toml");
        let store = folder.path().join("state");
        fs::write(&config, format!("{web}[store]\npath = '{}'\n", store.display())).unwrap();
        Self { process: Process::start(&config), _folder: folder, _backends: backends }
    }

    fn admin(&self) -> SocketAddr {
        self.process.admin()
    }

    /// From the next save on nothing is saved any more; not from one of evidence alone, which no history has.
    fn hang(&mut self) {
        assert_eq!(self.process.stop(&Stop::At("a history is to be written").line(0)), None);
    }

    /// Waits until a save is under way that does not end.
    fn hangs(&self) {
        assert!(matches!(self.process.next(), Comes::Stopped(_)), "it comes to its next save");
    }

    fn status(&self) -> Value {
        ask(self.admin(), "GET", "", "").unwrap().1
    }

    fn weight(&self) -> f64 {
        self.status()["weight"].as_f64().unwrap()
    }

    /// What whoever looks after it is told of the store.
    fn unsaved(&self) -> (Option<String>, f64) {
        let metric = Scrape::of(self.admin()).sum("tidegate_store_unsaved", &[("service", "web")]);
        (self.status()["unsaved"].as_str().map(str::to_owned), metric)
    }

    fn ticks(&self) -> f64 {
        Scrape::of(self.admin()).sum("tidegate_tick_seconds_count", &[])
    }
}

/// Asks for something, and returns the status of its answer once it is there.
fn asks(
    admin: SocketAddr,
    method: &'static str,
    path: &'static str,
    body: &'static str,
) -> thread::JoinHandle<Option<u16>> {
    thread::spawn(move || ask(admin, method, path, body).map(|(status, _)| status))
}

#[test]
fn a_lower_weight_and_a_flip_back_do_not_wait_for_a_higher_one_to_be_saved() {
    let mut hanging = Hanging::start("strategy = 'blue-green'\nbake = '0s'", "");
    let admin = hanging.admin();
    ask(admin, "POST", "/start", "").unwrap();
    eventually(|| hanging.status(), |status| status["rollout"]["phase"] == "succeeded");
    assert_eq!(asks(admin, "PUT", "/weight", "{\"canary\": 30}").join().unwrap(), Some(200));
    assert_ne!(hanging.process.users().len(), 40, "v1 has some");
    hanging.hang();
    let more = asks(admin, "PUT", "/weight", "{\"canary\": 80}");
    hanging.hangs();
    let _later = asks(admin, "PUT", "/weight", "{\"canary\": 90}");
    let less = asks(admin, "PUT", "/weight", "{\"canary\": 0}");
    eventually_is(0.0, || hanging.weight());
    assert_eq!(hanging.process.users().len(), 40, "nobody gets to v1 any more");
    assert_eq!(more.join().unwrap(), Some(409), "it has not happened");
    assert_eq!(less.join().unwrap(), Some(200));
    let _more = asks(admin, "PUT", "/weight", "{\"canary\": 80}");
    let _back = asks(admin, "POST", "/flip", "");
    eventually_is(0, || hanging.process.users().len());
}

#[test]
fn what_the_budget_takes_away_is_not_given_back_by_a_step_that_was_being_saved() {
    let plan = "steps = [{ weight = 50, hold = '1h' }, { weight = 90, hold = '1h' }]";
    let mut hanging = Hanging::start(plan, "latency_margin = false\nmax_harm = 1");
    let admin = hanging.admin();
    ask(admin, "POST", "/start", "").unwrap();
    eventually_is(50.0, || hanging.weight());
    hanging.hang();
    let promoted = asks(admin, "POST", "/promote", "");
    hanging.hangs();
    // By what little is known of it, a bad canary could cost more than there is.
    let look = || {
        hanging.process.users();
        promoted.is_finished()
    };
    eventually_is(true, look);
    assert_eq!(promoted.join().unwrap(), Some(409));
    assert!(hanging.weight() < 50.0);
}

#[test]
fn a_rollback_is_answered_without_it_and_people_are_told() {
    let plan = "steps = [{ weight = 50, hold = '1h' }, { weight = 90, hold = '1h' }]";
    let mut hanging = Hanging::start(plan, "");
    let admin = hanging.admin();
    ask(admin, "POST", "/start", "").unwrap();
    eventually_is(50.0, || hanging.weight());
    assert_eq!(hanging.unsaved(), (None, 0.0));
    hanging.hang();
    let promoted = asks(admin, "POST", "/promote", "");
    hanging.hangs();
    let back = asks(admin, "POST", "/rollback", "");
    let silent = "the disk does not answer: see whether it, or the network that it is on, hangs";
    eventually_is((Some(silent.to_owned()), 1.0), || hanging.unsaved());
    assert_eq!(back.join().unwrap(), Some(200));
    assert_eq!(promoted.join().unwrap(), Some(409));
    let status = eventually(|| hanging.status(), |status| status["rollout"]["phase"] == "rolled_back");
    assert_eq!(status["weight"], 0.0);
    // An advance is not answered, as it may still come.
    let started = asks(admin, "POST", "/start", "{\"force\": true, \"reason\": \"a test\"}");
    eventually(|| hanging.status(), |status| status["rollout"]["phase"] == "preparing");
    let before = hanging.ticks();
    eventually(|| hanging.ticks(), |ticks| *ticks >= before + 3.0);
    assert!(!started.is_finished());
    hanging.process.go_on();
    assert_eq!(started.join().unwrap(), Some(200));
    eventually_is((None, 0.0), || hanging.unsaved());
    let events = hanging.status()["events"].to_string();
    assert!(events.contains("what happens is not saved yet: the disk does not answer"), "{events}");
    assert!(events.contains("what happens can be saved again"), "{events}");
    let rollouts = ask(admin, "GET", "/rollouts", "").unwrap().1;
    assert_eq!(rollouts["rollouts"].as_array().unwrap().len(), 2, "all is there: {rollouts:#}");
}

#[test]
fn nobody_outside_hears_of_a_start_that_may_still_be_undone() {
    let outside = Backend::answering(|_| reply("204 No Content", &[], ""));
    let hook = |at: &str| {
        format!("\n[[services.web.rollout.hooks]]\nat = '{at}'\nurl = 'http://{}/'", outside.address)
    };
    let plan = "steps = [{ weight = 50, hold = '1h' }]".to_owned();
    let mut hanging = Hanging::start(&(plan + &hook("pre-rollout") + &hook("event") + "\n"), "");
    let admin = hanging.admin();
    hanging.hang();
    let _started = asks(admin, "POST", "/start", "");
    hanging.hangs();
    eventually(|| hanging.status(), |status| status["rollout"]["phase"] == "preparing");
    let before = hanging.ticks();
    eventually(|| hanging.ticks(), |ticks| *ticks >= before + 3.0);
    assert_eq!(outside.count(), 0, "neither asked nor told");
    // What has been overtaken is not undone, and so has been.
    let _back = asks(admin, "POST", "/rollback", "");
    let told = || {
        let requests = outside.requests();
        let calls = requests.iter().map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap());
        calls.map(|call| call["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = eventually(told, |told| told.len() >= 2);
    assert_eq!(told[..2], ["started", "rolling_back"]);
}
