//! Services whose clients are pinned: one client counts once, however many requests it makes.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::Value;

use crate::{
    rollout::Load,
    support::{Backend, Tidegate, Web, backend::Seen, eventually, reply},
};

/// A backend that fails the requests of all users whose name begins with `bad`.
fn with_bad_users(name: &'static str) -> Backend {
    let is_bad = |seen: &Seen| seen.fields("x-user").iter().any(|user| user.starts_with("bad"));
    Backend::answering(
        move |seen| {
            if is_bad(seen) { reply("500 X", &[], name) } else { reply("200 OK", &[], name) }
        },
    )
}

/// Sharp eyes for failures, and none for latency.
const ANALYSIS: &str = "minimum_requests = 50\nlatency_margin = false\n";

/// A service whose clients are recognised by a header.
fn sticky(stable: &Backend, canary: &Backend) -> Web {
    Web::new(stable.address).canary(canary.address).workers(2).table("sticky", "header = 'x-user'")
}

/// A rollout whose canary has 30 % of users, and what its analysis is told besides.
fn start(stable: &Backend, canary: &Backend, hold: &str, analysis: &str) -> Tidegate {
    let steps = format!("steps = [{{ weight = 30, hold = '{hold}' }}, {{ weight = 50, hold = '1h' }}]");
    let web = sticky(stable, canary).table("rollout", &steps);
    let tidegate = Tidegate::start(web.table("rollout.analysis", &format!("{ANALYSIS}{analysis}")));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate
}

fn request(user: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\nX-User: {user}\r\n\r\n")
}

/// A bad user whom this rollout has put on the canary's side.
fn bad_user_of_the_canary(tidegate: &Tidegate) -> String {
    let is_there = |user: &String| {
        let mut client = tidegate.client();
        client.send(request(user));
        client.response().text() == "v2"
    };
    // At 30 % the first hundred are all stable's once in 10^15.
    (0..100).map(|nth| format!("bad-{nth}")).find(is_there).unwrap()
}

/// Requests of these users, one after the other, over and over.
fn load(tidegate: &Tidegate, users: &[String]) -> Load {
    let requests: String = users.iter().map(|user| request(user)).collect();
    Load::sending(tidegate, requests, users.len(), |_| {})
}

/// Twenty users who are well, and one who makes a fifth of all requests.
fn crowd(heavy: &str) -> Vec<String> {
    (0..20)
        .flat_map(|nth| [Some(format!("well-{nth}")), (nth % 4 == 0).then(|| heavy.to_owned())])
        .flatten()
        .collect()
}

fn verdict(tidegate: &Tidegate) -> Value {
    tidegate.status()["rollout"]["verdict"].clone()
}

#[test]
fn one_heavy_user_does_not_speak_for_the_canary() {
    let (stable, canary) = (with_bad_users("v1"), with_bad_users("v2"));
    let tidegate = start(&stable, &canary, "1h", "");
    let heavy = bad_user_of_the_canary(&tidegate);
    let load = load(&tidegate, &crowd(&heavy));
    let failed = |verdict: &Value| verdict["rollout"]["canary"]["failures"].as_u64() >= Some(500);
    let verdict = eventually(|| verdict(&tidegate), failed);
    drop(load);
    assert_eq!(tidegate.status()["rollout"]["phase"], "stepping", "{verdict}");
    assert_eq!(verdict["users"]["canary"]["first_failures"], 1, "{verdict}");
    assert!(verdict["users"]["canary"]["seen"].as_u64() <= Some(21), "{verdict}");
}

#[test]
fn by_requests_one_heavy_user_is_the_canarys_ruin() {
    let (stable, canary) = (with_bad_users("v1"), with_bad_users("v2"));
    let tidegate = start(&stable, &canary, "1h", "unit = 'request'");
    let heavy = bad_user_of_the_canary(&tidegate);
    let load = load(&tidegate, &crowd(&heavy));
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!((&verdict["reason"]["kind"], &verdict["users"]), (&"worse".into(), &Value::Null), "{verdict}");
}

#[test]
fn a_canary_that_fails_its_users_is_rolled_back() {
    let (stable, served) = (Backend::named("v1"), AtomicUsize::new(0));
    let canary = Backend::answering(move |_| {
        let fails = served.fetch_add(1, SeqCst).is_multiple_of(5);
        if fails { reply("500 X", &[], "v2") } else { reply("200 OK", &[], "v2") }
    });
    let tidegate = start(&stable, &canary, "1h", "");
    let users: Vec<_> = (0..200).map(|nth| format!("user-{nth}")).collect();
    let load = load(&tidegate, &users);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(verdict["reason"]["kind"], "worse", "{verdict}");
    assert!(verdict["users"]["canary"]["first_failures"].as_u64() >= Some(3), "{verdict}");
    let said = status["rollout"]["explanation"].as_str().unwrap();
    assert!(said.contains(" (first failures: "), "{said}");
}

#[test]
fn few_users_are_not_enough_however_much_they_ask() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = start(&stable, &canary, "100ms", "");
    let users: Vec<_> = (0..20).map(|nth| format!("user-{nth}")).collect();
    let few = load(&tidegate, &users);
    // Of 50, 30 % are the canary's.
    let lacks = |verdict: &Value| verdict["reason"]["kind"] == "too_few_users";
    let seen = eventually(|| verdict(&tidegate), lacks);
    assert!(seen["rollout"]["canary"]["requests"].as_u64() >= Some(50), "{seen}");
    assert!(seen["reason"]["users"].as_u64() <= Some(20) && seen["reason"]["minimum"] == 15, "{seen}");
    drop(few);
    let users: Vec<_> = (0..400).map(|nth| format!("user-{nth}")).collect();
    let many = load(&tidegate, &users);
    eventually(|| tidegate.status()["rollout"]["step"].clone(), |step| *step == 1);
    drop(many);
}

/// How many tests of stable against itself passed and how many found something, as soon as that will do or thirty
/// are over, while one user makes a fifth of all requests, and fails them.
fn outcomes(analysis: &str, will_do: impl Fn([u64; 2]) -> bool) -> [u64; 2] {
    let (stable, canary) = (with_bad_users("v1"), Backend::named("v2"));
    // Tests are as long as twenty ticks, however short the steps.
    let web = sticky(&stable, &canary).table("rollout", "steps = [{ weight = 50, hold = '0s' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", &format!("{ANALYSIS}{analysis}")));
    let load = load(&tidegate, &crowd("bad"));
    let counted = || {
        let scrape = tidegate.scrape();
        let of = |outcome| scrape.sum("tidegate_aa_tests_total", &[("outcome", outcome)]) as u64;
        ["passed", "false_alarm"].map(of)
    };
    let after = |tests: u64| eventually(counted, |[passed, alarms]| passed + alarms >= tests);
    let outcomes = (1..=30).map(after).find(|outcomes| will_do(*outcomes));
    drop(load);
    outcomes.unwrap_or_else(counted)
}

#[test]
fn one_heavy_user_raises_no_alarm_about_stable() {
    let outcomes = outcomes("", |[passed, alarms]| passed + alarms >= 6);
    assert_eq!(outcomes[1], 0, "{outcomes:?}");
}

/// That one is in the same half in all of thirty tests comes once in 10^9.
#[test]
fn by_requests_one_heavy_user_raises_an_alarm_in_some_tests_and_in_others_none() {
    let both = |[passed, alarms]: [u64; 2]| passed > 0 && alarms > 0;
    let outcomes = outcomes("unit = 'request'", both);
    assert!(both(outcomes), "{outcomes:?}");
}
