//! Checks of what is measured elsewhere, by a real Prometheus and by a server that answers with JSON: what a
//! rollout makes of them, and of a provider that does not answer.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    nginx::Nginx,
    reload::Filed,
    rollout::Load,
    support::{
        Backend, Refusing, Tidegate, Unaccepting, Web,
        certificates::{Authority, Files},
        eventually,
        external::program,
        get, reply,
    },
};

/// A service whose rollout has one long step, or is over soon.
fn web(stable: &Backend, canary: &Backend, hold: &str, check: &str) -> Tidegate {
    Tidegate::start(unchecked(stable, canary, hold) + &written(check))
}

/// The same without a check.
fn unchecked(stable: &Backend, canary: &Backend, hold: &str) -> String {
    let plan = format!("steps = [{{ weight = 50, hold = '{hold}' }}]\nbake = '100ms'\ndeadline = '1h'");
    let web = Web::new(stable.address).canary(canary.address).table("rollout", &plan);
    web.table("rollout.analysis", "latency_margin = false\npromotion_margin = 0.1").to_string()
}

fn written(check: &str) -> String {
    let common = "name = 'outside'\ninterval = '20ms'";
    format!("[[services.web.rollout.checks]]\n{common}\n{check}\n")
}

/// A check whose number the server at `address` answers.
fn json(address: SocketAddr, limits: &str) -> String {
    let url = format!("http://{address}/{{{{ role }}}}");
    format!("kind = 'http'\nurl = '{url}'\njson_pointer = '/value'\n{limits}")
}

/// A server that says `{"value": …}` of a number that can be changed; for stable it is 100.
fn answering(value: &Arc<AtomicUsize>) -> Backend {
    let value = Arc::clone(value);
    Backend::answering(move |seen| {
        let value = if seen.target() == "/stable" { 100 } else { value.load(SeqCst) };
        reply("200 OK", &[], format!("{{\"value\": {value}}}"))
    })
}

fn check(status: &Value) -> &Value {
    &status["rollout"]["checks"][0]
}

/// Waits until the check stands so.
#[track_caller]
fn wait_for(tidegate: &Tidegate, standing: &str) -> Value {
    eventually(|| tidegate.status(), |status| check(status)["standing"] == standing)
}

#[test]
fn a_number_within_its_limits_lets_a_rollout_go_on() {
    let (stable, canary, value) = (Backend::named("v1"), Backend::named("v2"), Arc::new(AtomicUsize::new(5)));
    let provider = answering(&value);
    let tidegate = web(&stable, &canary, "100ms", &json(provider.address, "min = 5\nmax = 5"));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("succeeded");
    drop(load);
    assert!(provider.requests().iter().all(|seen| seen.target() == "/canary"));
    // Nobody is asked any more.
    eventually(|| tidegate.status(), |status| check(status).is_null());
}

/// Two steps, each of which watches a check of its own.
#[test]
fn a_check_is_asked_in_the_steps_that_want_it_and_in_no_other() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let rate = Arc::new(AtomicUsize::new(2));
    let (memory, conversion) = (answering(&Arc::new(AtomicUsize::new(5))), answering(&rate));
    let plan = "steps = [{ weight = 20, hold = '300ms', checks = ['memory'] },
        { weight = 50, hold = '1h', checks = ['conversion'] }]\ndeadline = '1h'";
    let web = Web::new(stable.address).canary(canary.address).table("rollout", plan);
    let web = web.table("rollout.analysis", "latency_margin = false\npromotion_margin = 0.1");
    let written = |name: &str, provider: &Backend, limit: &str| {
        let common = format!("name = '{name}'\ninterval = '20ms'");
        format!("[[services.web.rollout.checks]]\n{common}\n{}\n", json(provider.address, limit))
    };
    let checks = written("memory", &memory, "max = 5") + &written("conversion", &conversion, "min = 2");
    let tidegate = Tidegate::start(format!("{web}{checks}"));
    let load = Load::on(&tidegate);
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["rollout"]["steps"][1]["checks"][0], "conversion");
    let status = wait_for(&tidegate, "passed");
    assert_eq!(status["rollout"]["checks"].as_array().unwrap().len(), 1);
    assert_eq!((&status["rollout"]["step"], &check(&status)["name"]), (&0.into(), &"memory".into()));
    assert_eq!(conversion.count(), 0, "nobody wants to know yet");
    let in_second = |status: &Value| status["rollout"]["step"] == 1 && check(status)["name"] == "conversion";
    eventually(|| tidegate.status(), in_second);
    let asked = memory.count();
    rate.store(1, SeqCst);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!(status["rollout"]["explanation"], "check conversion fails, 1 is under 2: rolling back");
    assert!(memory.count() <= asked + 1, "what was under way when the step was left, and no more");
}

#[test]
fn a_limit_that_is_broken_often_enough_rolls_back() {
    let (stable, canary, value) =
        (Backend::named("v1"), Backend::named("v2"), Arc::new(AtomicUsize::new(120)));
    let provider = answering(&value);
    let tidegate = web(&stable, &canary, "1h", &json(provider.address, "max_ratio = 1.2"));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = wait_for(&tidegate, "passed");
    assert_eq!((&check(&status)["stable"], &check(&status)["canary"]), (&100.0.into(), &120.0.into()));
    value.store(121, SeqCst);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let why = "check outside fails, 121 is over 120, 1.2 times stable's 100: rolling back";
    assert_eq!(status["rollout"]["explanation"], why);
    assert_eq!(status["rollout"]["verdict"]["reason"]["kind"], "check_failed");
    let events = status["events"].as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap());
    assert!(events.into_iter().any(|what| what.starts_with("rolling back") && what.ends_with(why)));
}

#[test]
fn a_reload_takes_no_check_from_a_rollout() {
    let (stable, canary, value) = (Backend::named("v1"), Backend::named("v2"), Arc::new(AtomicUsize::new(5)));
    let provider = answering(&value);
    let unchecked = unchecked(&stable, &canary, "1h");
    let filed = Filed::start(unchecked.clone() + &written(&json(provider.address, "max = 5")));
    filed.tidegate.api("POST", "web/start", "");
    wait_for(&filed.tidegate, "passed");
    filed.take_up(unchecked);
    value.store(6, SeqCst);
    let status = filed.tidegate.wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["explanation"], "check outside fails, 6 is over 5: rolling back");
}

#[test]
fn a_reload_puts_no_rollout_under_a_check() {
    let (stable, canary, value) = (Backend::named("v1"), Backend::named("v2"), Arc::new(AtomicUsize::new(6)));
    let provider = answering(&value);
    let unchecked = unchecked(&stable, &canary, "1h");
    let filed = Filed::start(unchecked.clone());
    filed.tidegate.api("POST", "web/start", "");
    filed.tidegate.wait_for_phase("stepping");
    filed.take_up(unchecked + &written(&json(provider.address, "max = 5")));
    // A tick or two, in which it would have been asked.
    let load = Load::on(&filed.tidegate);
    let requests = |status: &Value| status["rollout"]["verdict"]["rollout"]["canary"]["requests"].as_u64();
    let first = requests(&eventually(|| filed.tidegate.status(), |status| requests(status) > Some(0)));
    eventually(|| filed.tidegate.status(), |status| requests(status) > first);
    drop(load);
    filed.tidegate.api("POST", "web/rollback", "");
    filed.tidegate.wait_for_phase("rolled_back");
    assert_eq!(provider.count(), 0);
    // The next one is.
    filed.tidegate.api("POST", "web/start", "");
    let status = filed.tidegate.wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["explanation"], "check outside fails, 6 is over 5: rolling back");
}

#[test]
fn a_provider_that_is_down_holds_and_rolls_nothing_back() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let provider = Refusing::new();
    let limits = "kind = 'http'\njson_pointer = ''\nmax = 5\nfailure_threshold = 1";
    let check = format!("{limits}\nurl = 'http://{}'", provider.address);
    let tidegate = web(&stable, &canary, "50ms", &check);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let why = "but check outside is inconclusive, no connection";
    let held =
        |status: &Value| status["rollout"]["explanation"].as_str().is_some_and(|told| told.contains(why));
    let status = eventually(|| tidegate.status(), held);
    assert_eq!(status["rollout"]["verdict"]["reason"]["kind"], "check_inconclusive");
    assert_eq!(status["rollout"]["verdict"]["decision"], "hold");
    let before = canary.count();
    eventually(|| canary.count(), |count| *count > before + 500);
    assert_eq!(tidegate.status()["rollout"]["phase"], "stepping");
    // Once it answers, the rollout goes on by itself.
    let provider = provider.open("5");
    tidegate.wait_for_phase("succeeded");
    drop(load);
    drop(provider);
}

#[test]
fn what_is_no_number_is_inconclusive_and_the_reason_is_told() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let slow = Unaccepting::new();
    let answers =
        |status: &'static str, body: &'static str| Backend::answering(move |_| reply(status, &[], body));
    let providers = [
        (answers("200 OK", "{\"value\": null}"), "there is no number"),
        (answers("200 OK", "{\"value\": true}"), "there is no number at `/value`, but something else"),
        (answers("200 OK", "<html>"), "the answer is not JSON"),
        (answers("503 Service Unavailable", "{\"value\": 1}"), "status 503"),
    ];
    let addresses = providers.iter().map(|(provider, why)| (provider.address, *why));
    for (address, wanted) in addresses.chain([(slow.address, "no answer in time")]) {
        let limits = "max = 5\nfailure_threshold = 1\ntimeout = '200ms'";
        let tidegate = web(&stable, &canary, "0s", &json(address, limits));
        let load = Load::on(&tidegate);
        tidegate.api("POST", "web/start", "");
        let told = |status: &Value| check(status)["why"].as_str().is_some_and(|why| why.starts_with(wanted));
        let status = eventually(|| tidegate.status(), told);
        assert_eq!(
            (&check(&status)["standing"], &status["rollout"]["phase"]),
            (&"inconclusive".into(), &"stepping".into())
        );
        drop(load);
    }
}

#[test]
fn a_provider_is_asked_over_tls() {
    let Some(nginx) = program("nginx") else { return };
    let (authority, files) = (Authority::new("providers"), Files::new());
    files.pair("nginx", &authority.issue(&["localhost"]));
    let (right, wrong) =
        (files.write("ca.pem", &authority.pem), files.write("other.pem", &Authority::new("others").pem));
    let [certificate, key] = ["nginx.pem", "nginx.key"].map(|name| files.path(name).display().to_string());
    let lines = format!("ssl_certificate {certificate}; ssl_certificate_key {key};");
    let provider = Nginx::serve(&nginx, "ssl", &lines, "5");
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    for (ca, standing) in [(right, "passed"), (wrong, "inconclusive")] {
        let url = format!("https://localhost:{}", provider.address.port());
        let asked =
            format!("kind = 'http'\nurl = '{url}'\njson_pointer = ''\nmax = 5\nca = '{}'", ca.display());
        let tidegate = web(&stable, &canary, "1h", &asked);
        let load = Load::on(&tidegate);
        tidegate.api("POST", "web/start", "");
        let measured = |status: &Value| !check(status)["measured"].is_null();
        let status = eventually(|| tidegate.status(), measured);
        drop(load);
        assert_eq!(check(&status)["standing"], standing, "{status}");
    }
}

/// A running Prometheus that scrapes a backend's `/metrics` all the time.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Prometheus {
    fn start(prometheus: &Path, target: SocketAddr) -> Self {
        // Free a moment ago; it cannot be given a socket, and does not say which port it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (file, data) = (folder.path().join("prometheus.yml"), folder.path().join("data"));
        let scrape = format!("{{ job_name: app, static_configs: [{{ targets: ['{target}'] }}] }}");
        let times = "scrape_interval: 50ms, scrape_timeout: 50ms";
        fs::write(&file, format!("global: {{ {times} }}\nscrape_configs: [{scrape}]\n")).unwrap();
        let child = Command::new(prometheus)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { child, address, _folder: folder };
        eventually(|| started.answers("app_memory"), |answers| *answers);
        started
    }

    /// Whether it has a series.
    fn answers(&self, series: &str) -> bool {
        let is_up = std::net::TcpStream::connect(self.address).is_ok();
        is_up && get(self.address, &format!("/api/v1/query?query={series}")).text().contains("\"value\":")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has noticed by then.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What a real Prometheus is asked: the memory of each version, of which v1 has 100.
fn with_prometheus(limits: &str, memory: usize, hold: &str, then: impl FnOnce(&Tidegate, &Arc<AtomicUsize>)) {
    let Some(program) = program("prometheus") else { return };
    let memory = Arc::new(AtomicUsize::new(memory));
    let exporter = {
        let memory = Arc::clone(&memory);
        Backend::answering(move |_| {
            let memory = memory.load(SeqCst);
            let lines = format!("app_memory{{version=\"v1\"}} 100\napp_memory{{version=\"v2\"}} {memory}\n");
            reply("200 OK", &[("Content-Type", "text/plain")], &lines)
        })
    };
    let prometheus = Prometheus::start(&program, exporter.address);
    let query = "query = 'sum(app_memory{version=\"{{ backend }}\"})'";
    let check = format!("kind = 'prometheus'\naddress = 'http://{}'\n{query}\n{limits}", prometheus.address);
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = web(&stable, &canary, hold, &check);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    then(&tidegate, &memory);
    drop(load);
}

#[test]
fn prometheus_lets_a_rollout_go_on_and_rolls_it_back() {
    with_prometheus("max_ratio = 1.5", 140, "1h", |tidegate, memory| {
        let status = wait_for(tidegate, "passed");
        assert_eq!((&check(&status)["stable"], &check(&status)["canary"]), (&100.0.into(), &140.0.into()));
        memory.store(160, SeqCst);
        let status = tidegate.wait_for_phase("rolled_back");
        let why = "check outside fails, 160 is over 150, 1.5 times stable's 100: rolling back";
        assert_eq!(status["rollout"]["explanation"], why);
    });
    with_prometheus("min = 1\nmax = 200", 140, "100ms", |tidegate, _| {
        tidegate.wait_for_phase("succeeded");
    });
}

#[test]
fn prometheus_says_what_is_wrong_with_a_query() {
    let wrong = [
        ("query = 'sum('\nmax = 1", "invalid parameter \"query\""),
        ("query = 'app_memory'\nmax = 1", "2 series where one is wanted: aggregate them"),
        ("query = 'app_memory{version=\"v9\"}'\nmax = 1", "there is no number"),
        ("query = 'app_memory[5m]'\nmax = 1", "no instant vector and no scalar"),
    ];
    let Some(program) = program("prometheus") else { return };
    let exporter = Backend::answering(|_| {
        let lines = "app_memory{version=\"v1\"} 100\napp_memory{version=\"v2\"} 1\n";
        reply("200 OK", &[("Content-Type", "text/plain")], lines)
    });
    let prometheus = Prometheus::start(&program, exporter.address);
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    for (query, wanted) in wrong {
        let check_of = format!("kind = 'prometheus'\naddress = 'http://{}'\n{query}", prometheus.address);
        let tidegate = web(&stable, &canary, "1h", &check_of);
        tidegate.api("POST", "web/start", "");
        let told = |status: &Value| check(status)["why"].as_str().is_some_and(|why| why.contains(wanted));
        eventually(|| tidegate.status(), told);
    }
}
