//! What every version has saved is gone on with: `tests/state` has, of each schema, a folder for each way in which a
//! service can stand, written by the program itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;
use tidegate::store::SCHEMA;

use crate::{
    injection::stands,
    restart::{Site, saved},
    rollout::{Load, events},
    support::{Tidegate, eventually, eventually_is},
};

/// A way in which a service can stand.
struct Case {
    /// Its folder.
    name: &'static str,
    /// The rollout's configuration.
    plan: &'static str,
    /// How it gets there.
    begins: fn(&Tidegate),
    /// How it then stands; at least for a tick.
    stands: &'static str,
    /// What it is asked once it goes on, if anything, and how it then stands.
    then: (&'static str, &'static str),
}

const STEPS: &str = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'";
const DARK: &str =
    "steps = [{ mirror = 50, hold = '1h', minimum_requests = 7 }, { weight = 20, hold = '1h' }]";
const GATE: &str = "strategy = 'blue-green'\npromotion_gate = true\nbake = '1h'";
const LATE: &str = "steps = [{ weight = 20, hold = '1ms' }]\ndeadline = '1ms'";
const SHORT: &str = "steps = [{ weight = 20, hold = '1h' }]\nbake = '1ms'\nrollback_window = '30days'";
const COOLING: &str = "steps = [{ weight = 20, hold = '1h' }]\ndrain = '1ms'\ncool_down = '30days'";
const FREEZE: &str =
    "steps = [{ weight = 20, hold = '1h' }]\n[[freeze]]\nfrom = '2000-01-01'\nto = '2100-01-01'";
// Nobody answers there.
const PREPARING: &str = "steps = [{ weight = 20, hold = '1h' }]
    hooks = [{ at = 'pre-rollout', url = 'http://127.0.0.1:9/', retries = 100, deadline = '1h' }]";
const HOOK: &str = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]
    hooks = [{ at = 'step', url = 'http://127.0.0.1:9/', retries = 100, deadline = '1h' }]";
const HOOK_FAILED: &str = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]
    hooks = [{ at = 'step', url = 'http://127.0.0.1:9/' }]";
const HOOK_ALLOWED: &str = "steps = [{ weight = 20, hold = '1ms' }, { weight = 50, hold = '1h' }]
    hooks = [{ at = 'step', exec = ['/bin/sleep', '3'] }]
    [hooks]
    allow_exec = true";

/// In the order of a rollout.
fn cases() -> Vec<Case> {
    let case = |name, plan, begins, stands, then| Case { name, plan, begins, stands, then };
    vec![
        case("weight", STEPS, |web| web.set_weight(30.0), "idle, v1 30.0", ("start", "stepping 0, v1 20.0")),
        case("preparing", PREPARING, start, "preparing, v1 0.0", ("", "stepping 0, v1 20.0")),
        case("dark", DARK, dark, "stepping 0, v1 0.0", ("promote", "stepping 1, v1 20.0")),
        case("stepping", STEPS, stepping, "stepping 1, v1 50.0", ("promote", "baking, v2 0.0")),
        case("paused", STEPS, paused, "paused 0 command, v1 20.0", ("resume", "stepping 0, v1 20.0")),
        case("gate", GATE, start, "paused 0 gate, v1 0.0", ("resume", "baking, v2 0.0")),
        case("hook", HOOK, promote, "paused 0 hook, v1 20.0", ("", "stepping 1, v1 50.0")),
        case(
            "hook-failed",
            HOOK_FAILED,
            promote,
            "paused 0 hook_failed, v1 20.0",
            ("resume", "stepping 1, v1 50.0"),
        ),
        case(
            "hook-allowed",
            HOOK_ALLOWED,
            earned,
            "paused 0 hook_allowed, v1 20.0",
            ("promote", "stepping 1, v1 50.0"),
        ),
        case("freeze", FREEZE, start, "paused 0 freeze, v1 20.0", ("", "stepping 0, v1 20.0")),
        case(
            "inconclusive",
            LATE,
            start,
            "paused 0 inconclusive, v1 20.0",
            ("rollback", "rolled_back, v1 0.0"),
        ),
        case("promoting", STEPS, promote_full, "promoting, v2 0.0", ("", "baking, v2 0.0")),
        case("baking", STEPS, promote_full, "baking, v2 0.0", ("rollback", "rolled_back, v1 0.0")),
        case("succeeded", SHORT, promote_full, "succeeded, v2 0.0", ("flip", "succeeded, v1 0.0")),
        case("rolling-back", STEPS, roll_back, "rolling_back, v1 0.0", ("", "rolled_back, v1 0.0")),
        case("rolled-back", COOLING, roll_back, "rolled_back, v1 0.0", ("start", "stepping 0, v1 20.0")),
    ]
}

fn start(web: &Tidegate) {
    web.api("POST", "web/start", r#"{"force": true}"#);
}

/// With evidence of copies.
fn dark(web: &Tidegate) {
    start(web);
    web.wait_for_phase("stepping");
    gather(web);
}

/// With evidence of users.
fn stepping(web: &Tidegate) {
    promote(web);
    gather(web);
}

fn gather(web: &Tidegate) {
    let load = Load::on(web);
    eventually(|| evidence(&web.status()), |requests| *requests > Some(200));
    drop(load);
}

/// How many requests of the canary's it is judged by, or pairs of answers in a dark step.
fn evidence(status: &Value) -> Option<u64> {
    let verdict = &status["rollout"]["verdict"];
    verdict["pairs"]["pairs"].as_u64().or_else(|| verdict["rollout"]["canary"]["requests"].as_u64())
}

fn paused(web: &Tidegate) {
    start(web);
    web.wait_for_phase("stepping");
    web.api("POST", "web/pause", r#"{"reason": "lunch"}"#);
}

fn promote(web: &Tidegate) {
    start(web);
    web.wait_for_phase("stepping");
    web.api("POST", "web/promote", "");
}

/// To a hook by evidence, which then ends.
fn earned(web: &Tidegate) {
    start(web);
    let load = Load::on(web);
    eventually(|| web.status(), |status| status["rollout"]["earned"] == true);
    drop(load);
}

fn promote_full(web: &Tidegate) {
    start(web);
    web.wait_for_phase("stepping");
    web.api("POST", "web/promote", r#"{"full": true, "reason": "a test"}"#);
}

fn roll_back(web: &Tidegate) {
    start(web);
    web.wait_for_phase("stepping");
    web.api("POST", "web/rollback", "");
}

/// The name of a phase as it is saved; nothing without a rollout.
fn phase(record: &Value) -> &str {
    record["rollout"]["phase"]["phase"].as_str().unwrap_or("idle")
}

/// The newest schema has each case; older ones have those that there were then.
#[test]
fn whatever_a_schema_has_saved_is_gone_on_with() {
    for number in 1..=SCHEMA {
        let folder = Path::new("tests/state").join(format!("v{number}"));
        let there = folder.read_dir().unwrap().map(|case| case.unwrap().file_name().into_string().unwrap());
        let there: BTreeSet<_> = there.collect();
        let cases: BTreeMap<_, _> = cases().into_iter().map(|case| (case.name.to_owned(), case)).collect();
        if number == SCHEMA {
            let all: BTreeSet<_> = cases.keys().cloned().collect();
            assert_eq!(there, all, "write_what_this_schema_saves writes what is not there");
        }
        for name in there {
            go_on(&folder.join(&name), &cases[&name]);
        }
    }
}

fn go_on(saved_then: &Path, case: &Case) {
    let Case { name, stands: stood, then: (asked, then), .. } = case;
    let site = Site::new();
    fs::create_dir_all(site.store().join("web")).unwrap();
    let files: Vec<_> = saved_then.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        fs::copy(file, site.file(file.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    let record = site.saved();
    let tidegate = site.start(STEPS);
    let status = tidegate.status();
    let said = events(&status);
    for wrong in ["cannot be read", "corrupt", "lost"] {
        assert!(!said.iter().any(|said| said.contains(wrong)), "{name}: {said:#?}");
    }
    // Whatever it was, it is: with the rollout, its evidence and its history.
    assert_eq!(status["rollout"]["id"], record["rollout"]["id"], "{name}");
    let on = format!("the rollout goes on after a restart: it is {}", phase(&record));
    let ran = !["idle", "succeeded", "rolled_back"].contains(&phase(&record));
    assert_eq!(said.iter().any(|said| said.starts_with(&on)), ran, "{name}: {said:#?}");
    if asked.is_empty() {
        assert!(stood.starts_with(phase(&record)), "{name}");
    } else {
        assert_eq!(stands(&status), *stood, "{name}");
    }
    if ["dark", "stepping"].contains(name) {
        let evidence = evidence(&status);
        assert!(evidence > Some(100), "{name}: {evidence:?}");
    }
    let history = tidegate.api("GET", "web/history", "");
    let history = history["entries"].as_array().unwrap();
    let log = fs::read_to_string(saved_then.join("history-000000000001.jsonl")).unwrap();
    for line in log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(history.contains(&line["body"]), "{name}: {line}");
    }
    match *asked {
        "" => {}
        "start" => start(&tidegate),
        asked => drop(tidegate.api("POST", &format!("web/{asked}"), "")),
    }
    eventually_is((*then).to_owned(), || stands(&tidegate.status()));
    assert!(tidegate.status()["unsaved"].is_null(), "{name}");
}

/// Writes what is not in `tests/state` of this schema. What a version that was released has written stays as it is.
#[test]
#[ignore = "writes what another test reads"]
fn write_what_this_schema_saves() {
    for Case { name, plan, begins, stands: wanted, .. } in cases() {
        let to = Path::new("tests/state").join(format!("v{SCHEMA}")).join(name);
        if to.exists() {
            continue;
        }
        fs::create_dir_all(&to).unwrap();
        let site = Site::new();
        let tidegate = site.start(plan);
        begins(&tidegate);
        let copy = || {
            // The state last: what the history then lacks is in it. While another takes its place, there is none.
            let copy = |file| fs::copy(site.file(file), to.join(file)).is_ok();
            ["history-000000000001.jsonl", "state.json"].into_iter().all(copy)
                && wanted.starts_with(phase(&saved(&to.join("state.json"))))
        };
        if ["promoting", "rolling-back"].contains(&name) {
            // A tick later it is another.
            eventually_is((wanted.to_owned(), true), || (stands(&tidegate.status()), copy()));
        } else {
            eventually_is(wanted.to_owned(), || stands(&tidegate.status()));
            // Its evidence is saved when it ends.
            site.stop(tidegate);
            assert!(copy(), "{name}");
        }
    }
}
