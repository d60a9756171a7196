//! A disk that does not answer: nothing moves forward, and everything can go back.

use std::{fs, net::SocketAddr, path::PathBuf, thread};

use crate::{
    injection::process::{Comes, Process, Stop},
    killing::ask,
    support::{Backend, Web, eventually, eventually_is, metrics::Scrape},
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

    /// From the next save on nothing is saved any more.
    fn hang(&mut self) {
        assert_eq!(self.process.stop(&Stop::At("a state is to be written").line(0)), None);
    }

    /// Waits until a save is under way that does not end.
    fn hangs(&self) {
        assert!(matches!(self.process.next(), Comes::Stopped(_)), "it comes to its next save");
    }

    fn weight(&self) -> f64 {
        ask(self.admin(), "GET", "", "").unwrap().1["weight"].as_f64().unwrap()
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
    let succeeded = |status: &serde_json::Value| status["rollout"]["phase"] == "succeeded";
    eventually(|| ask(admin, "GET", "", "").unwrap().1, succeeded);
    assert_eq!(asks(admin, "PUT", "/weight", "{\"canary\": 30}").join().unwrap(), Some(200));
    assert_ne!(hanging.process.users().len(), 40, "v1 has some");
    hanging.hang();
    let more = asks(admin, "PUT", "/weight", "{\"canary\": 80}");
    hanging.hangs();
    let _later = asks(admin, "PUT", "/weight", "{\"canary\": 90}");
    let _less = asks(admin, "PUT", "/weight", "{\"canary\": 0}");
    eventually_is(0.0, || hanging.weight());
    assert_eq!(hanging.process.users().len(), 40, "nobody gets to v1 any more");
    assert_eq!(more.join().unwrap(), Some(409), "it has not happened");
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
    let before = hanging.ticks();
    eventually(|| hanging.ticks(), |ticks| *ticks >= before + 3.0);
    // By what little is known of it, a bad canary could cost more than there is.
    let look = || {
        hanging.process.users();
        promoted.is_finished()
    };
    eventually_is(true, look);
    assert_eq!(promoted.join().unwrap(), Some(409));
    assert!(hanging.weight() < 50.0);
}
