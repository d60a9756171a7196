//! Rollouts that are recorded, and what `tidegate replay` makes of the recordings.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    rollout::Load,
    simulate::answer,
    support::{Backend, Tidegate, Web, eventually, eventually_is, reply},
};

/// A service that records its rollouts.
struct Site {
    folder: TempDir,
    toml: String,
}

impl Site {
    fn new(web: Web, rollout: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let record = format!("{rollout}\nrecord = '{}'", folder.path().join("recordings").display());
        let toml = format!("{}{more}", web.table("rollout", &record));
        fs::write(folder.path().join("tidegate.toml"), &toml).unwrap();
        Self { folder, toml }
    }

    /// The same, whose rollouts outlive the process.
    fn stored(mut self) -> Self {
        self.toml += &format!("[store]\npath = '{}'\n", self.folder.path().join("store").display());
        self
    }

    fn recordings(&self) -> PathBuf {
        self.folder.path().join("recordings")
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.recordings()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The verdicts that a replay comes to.
    fn replayed(&self, recording: &Path) -> Vec<Value> {
        let (recording, config) = (recording.to_str().unwrap(), self.folder.path().join("tidegate.toml"));
        let said = answer(&["replay", recording, "--config", config.to_str().unwrap(), "--tick", "50ms"]);
        let verdict = |line: &str| serde_json::from_str::<Value>(line).unwrap()["verdict"].take();
        said.lines().map(verdict).filter(|verdict| !verdict.is_null()).collect()
    }
}

/// All that was seen is among the replayed, in the same order.
#[track_caller]
fn are_in_order(seen: &[Value], replayed: &[Value]) {
    let mut rest = replayed.iter();
    for verdict in seen {
        assert!(rest.any(|replayed| replayed == verdict), "not in its place among the replayed: {verdict}");
    }
}

fn id(status: &Value) -> String {
    status["rollout"]["id"].as_str().unwrap().to_owned()
}

/// Two versions with all that a verdict may rest on: routes, endpoints, checks, limits, a harm budget, a
/// shield, and testers. Some of what comes fails at the canary.
fn everything(stable: &Backend, canaries: [&Backend; 2], provider: &Backend) -> Site {
    let endpoints = canaries.map(|backend| format!("http://{}", backend.address));
    let force = "force = [{ role = 'canary', query = { name = 'side', value = 'canary' } }]";
    let web = Web::new(stable.address).workers(2).keys(&format!("canary = 'v2'\n{force}"));
    let web = web.table("backends.v2", &format!("endpoints = {endpoints:?}"));
    let web = web.table("retry", "attempts = 0\nshield = true").table(
        "rollout.analysis",
        "absolute_tolerance = 0.3\npromotion_margin = 0.5\nlatency_margin = 50\nmax_harm = 1000000\n\
         max_error_rate = 0.9\nmax_p99 = '1m'",
    );
    let check = format!(
        "[[services.web.rollout.checks]]\nname = 'outside'\ninterval = '20ms'\nkind = 'http'\n\
         url = 'http://{}/'\njson_pointer = '/value'\nmax = 10\nfailure_threshold = 1\n\
         [[routes]]\nservice = 'web'\npath_prefix = '/bad'\n",
        provider.address
    );
    let steps = "steps = [{ weight = 20, hold = '300ms' }, { weight = 50, hold = '300ms' }]\nbake = '300ms'";
    Site::new(web, steps, &check)
}

/// Runs a rollout until it is in this phase, and replays it: every verdict that was to be seen meanwhile is
/// among those that the replay comes to, in the same order, and so is every one in the history.
fn replays_to_the_same(ends: &str, fails_at: Option<usize>) {
    let canary = || {
        let asked = AtomicUsize::new(0);
        Backend::answering(move |seen| {
            let bad = seen.target().starts_with("/bad") && asked.fetch_add(1, SeqCst).is_multiple_of(5);
            if bad { reply("500 Internal Server Error", &[], "") } else { reply("200 OK", &[], "v2") }
        })
    };
    let (stable, one, other) = (Backend::named("v1"), canary(), canary());
    let value = Arc::new(AtomicUsize::new(5));
    let shown = Arc::clone(&value);
    let provider =
        Backend::answering(move |_| reply("200 OK", &[], format!("{{\"value\": {}}}", shown.load(SeqCst))));
    let site = everything(&stable, [&one, &other], &provider);
    let tidegate = Tidegate::start(&site.toml);
    let targets = ["/", "/bad", "/", "/bad", "/", "/bad", "/?side=canary", "/bad?side=canary"];
    let load = Load::of(&tidegate, &targets, |_| {});
    // Something is known of stable before.
    eventually(|| stable.count(), |count| *count > 200);
    tidegate.api("POST", "web/start", "");
    let mut seen: Vec<Value> = Vec::new();
    let look = || {
        let status = tidegate.status();
        let verdict = &status["rollout"]["verdict"];
        if !verdict.is_null() && seen.last() != Some(verdict) {
            seen.push(verdict.clone());
        }
        if fails_at.is_some_and(|count| seen.len() >= count) {
            value.store(50, SeqCst);
        }
        status
    };
    let status = eventually(look, |status| status["rollout"]["phase"] == ends);
    drop(load);
    let history = tidegate.api("GET", "web/history", "")["entries"].take();
    drop(tidegate);

    let recording = site.recordings().join(format!("{}.jsonl", id(&status)));
    assert_eq!(fs::metadata(&recording).unwrap().permissions().mode() & 0o777, 0o600);
    let replayed = site.replayed(&recording);
    assert!(seen.len() >= 5, "{seen:#?}");
    are_in_order(&seen, &replayed);
    let known = history.as_array().unwrap().iter().map(|entry| &entry["verdict"]);
    let known: Vec<_> = known.filter(|verdict| !verdict.is_null()).collect();
    assert!(!known.is_empty() && known.iter().all(|verdict| replayed.contains(verdict)), "{known:#?}");
    assert_eq!(replayed.last(), seen.last());
    let text = fs::read_to_string(&recording).unwrap();
    for field in ["learned", "routes", "endpoints", "checks", "sent", "shielded"] {
        assert!(text.contains(&format!("\"{field}\":")), "no line has `{field}`");
    }
}

#[test]
fn a_promotion_replays_to_the_same_verdicts_bit_for_bit() {
    replays_to_the_same("succeeded", None);
}

#[test]
fn a_failed_check_replays_to_the_same_rollback() {
    replays_to_the_same("rolled_back", Some(4));
}

#[test]
fn a_recording_goes_on_after_a_restart() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let web = web.table("rollout.analysis", "latency_margin = 50\nminimum_requests = 1000000");
    let site = Site::new(web, "steps = [{ weight = 20, hold = '1h' }]", "").stored();
    let mut seen: Vec<Value> = Vec::new();
    let mut rollout = String::new();
    for run in 0..2 {
        let tidegate = Tidegate::start(&site.toml);
        let load = Load::on(&tidegate);
        if run == 0 {
            rollout = id(&tidegate.api("POST", "web/start", ""));
        }
        let mut more = 0;
        let look = || {
            let verdict = tidegate.status()["rollout"]["verdict"].take();
            if !verdict.is_null() && seen.last() != Some(&verdict) {
                seen.push(verdict);
                more += 1;
            }
            more
        };
        eventually(look, |more| *more >= 5);
        drop(load);
    }
    let replayed = site.replayed(&site.recordings().join(format!("{rollout}.jsonl")));
    are_in_order(&seen, &replayed);
}

/// Two restarts, the last of which comes without the endpoint.
#[test]
fn an_endpoint_that_was_to_blame_has_to_do_well_after_a_restart_too() {
    let (stable, well, fine) = (Backend::named("v1"), Backend::named("v2"), Backend::named("v2"));
    let asked = AtomicUsize::new(0);
    // Not from the first on: of two or three failures nobody could tell whose they are.
    let sick = Backend::answering(move |_| match asked.fetch_add(1, SeqCst) {
        20..60 => reply("500 Internal Server Error", &[], ""),
        _ => reply("200 OK", &[], "v2"),
    });
    let urls = |canaries: &[&Backend]| {
        let urls: Vec<_> = canaries.iter().map(|backend| format!("http://{}", backend.address)).collect();
        format!("endpoints = {urls:?}")
    };
    let (all, without) = (urls(&[&well, &sick, &fine]), urls(&[&well, &fine]));
    let web = Web::new(stable.address).keys("canary = 'v2'").table("backends.v2", &all);
    let analysis = "minimum_requests = 300\nlatency_margin = false\nabsolute_tolerance = 0.05\n\
                    promotion_margin = 0.2";
    let steps = "steps = [{ weight = 30, hold = '1ms' }, { weight = 50, hold = '1h' }]\nwarmup = '0s'";
    let site = Site::new(web.table("rollout.analysis", analysis), steps, "").stored();
    // By all that is known now it could go on.
    let held = |status: &Value| {
        let verdict = &status["rollout"]["verdict"];
        let enough = verdict["step"]["canary"]["requests"].as_u64() >= Some(300);
        enough && verdict["evidence"].as_f64() < Some(1.0) && verdict["reason"]["kind"] == "one_endpoint"
    };
    let mut seen: Vec<Value> = Vec::new();
    let mut rollout = String::new();
    for run in 0..2 {
        let tidegate = Tidegate::start(&site.toml);
        let load = Load::on(&tidegate);
        if run == 0 {
            rollout = id(&tidegate.api("POST", "web/start", ""));
        }
        for _ in 0..3 {
            let is_news = |status: &Value| held(status) && seen.last() != Some(&status["rollout"]["verdict"]);
            let mut status = eventually(|| tidegate.status(), is_news);
            assert_eq!(status["rollout"]["step"], 0, "{run}: {status:#}");
            // Who has failed what is known still, though nobody fails any more.
            let endpoints = status["rollout"]["endpoints"].as_array().unwrap().iter();
            let failures = endpoints.map(|endpoint| endpoint["failures"].as_u64().unwrap()).max();
            assert!(failures >= Some(5), "{run}: {status:#}");
            seen.push(status["rollout"]["verdict"].take());
        }
        drop(load);
    }
    let tidegate = Tidegate::start(site.toml.replace(&all, &without));
    let load = Load::on(&tidegate);
    eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    drop((load, tidegate));

    for verdict in &seen {
        assert_eq!(verdict["reason"]["endpoint"], sick.address.to_string());
    }
    let recording = site.recordings().join(format!("{rollout}.jsonl"));
    let replayed = site.replayed(&recording);
    are_in_order(&seen, &replayed);
    assert!(fs::read_to_string(&recording).unwrap().contains("\"gone\":true"));
}

#[test]
fn the_newest_recordings_are_kept() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let site = Site::new(web, "steps = [{ weight = 20, hold = '1h' }]\nkeep_recordings = 1", "");
    let tidegate = Tidegate::start(&site.toml);
    assert_eq!(site.names(), [""; 0]);
    for _ in 0..2 {
        tidegate.api("POST", "web/start", "");
        let status = tidegate.wait_for_phase("stepping");
        eventually_is(vec![format!("{}.jsonl", id(&status))], || site.names());
        tidegate.api("POST", "web/rollback", "");
        tidegate.wait_for_phase("rolled_back");
    }
}

#[test]
fn a_rollout_that_cannot_be_recorded_goes_on() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let site = Site::new(web, "steps = [{ weight = 20, hold = '0s' }]\nbake = '100ms'", "");
    fs::write(site.recordings(), "in the way").unwrap();
    let tidegate = Tidegate::start(&site.toml);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.api("POST", "web/promote", "{\"full\": true, \"reason\": \"a test\"}");
    tidegate.wait_for_phase("succeeded");
    drop(load);
    assert_eq!(fs::read_to_string(site.recordings()).unwrap(), "in the way");
}
