//! Users who are shielded from the canary's failures, which count against it all the same.

use std::net::SocketAddr;

use crate::{
    rollout::Load,
    support::{Backend, Raw, Refusing, Tidegate, Web, eventually_is, exchange, get, reply},
};

const SHIELDED: &str = "tidegate_shielded_total";
const REQUESTS: &str = "tidegate_requests_total";

/// A service whose canary gets everything.
fn web(stable: SocketAddr, canary: SocketAddr, retry: &str) -> Web {
    Web::new(stable).canary(canary).weight(100.0).table("retry", retry)
}

fn start(stable: &Backend, canary: SocketAddr) -> Tidegate {
    Tidegate::start(web(stable.address, canary, "attempts = 0\nshield = true"))
}

fn failing(status: &'static str) -> Backend {
    Backend::answering(move |_| reply(status, &[], "v2 failed"))
}

fn broken() -> Backend {
    failing("500 Internal Server Error")
}

#[track_caller]
fn expect(tidegate: &Tidegate, backend: &str, status: &str, count: f64) {
    let scrape = tidegate.wait_until_idle();
    scrape.expect(REQUESTS, &[("backend", backend), ("status", status)], count);
    scrape.expect(REQUESTS, &[("backend", backend)], count);
}

#[track_caller]
fn expect_shielded(tidegate: &Tidegate, result: &str, count: f64) {
    let scrape = tidegate.wait_until_idle();
    for name in [SHIELDED, "tidegate_retries_total"] {
        scrape.expect(name, &[("service", "web"), ("result", result)], count);
        scrape.expect(name, &[], count);
    }
}

#[test]
fn what_the_canary_fails_is_answered_by_stable_and_counts_against_the_canary() {
    let breaking = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.reset();
        }
    });
    for (canary, status) in
        [(broken(), "5xx"), (failing("503 Service Unavailable"), "5xx"), (breaking, "reset")]
    {
        let stable = Backend::named("v1");
        let tidegate = start(&stable, canary.address);
        let mut client = tidegate.client();
        for i in 1..=5 {
            let response = client.get("/a?b");
            assert_eq!((response.status, response.text().as_str()), (200, "v1"));
            assert_eq!(canary.count(), i);
        }
        assert_eq!(stable.requests()[0].target(), "/a?b");
        expect(&tidegate, "v2", status, 5.0);
        expect(&tidegate, "v1", "2xx", 5.0);
        expect_shielded(&tidegate, "success", 5.0);
        // What the analysis gets to see.
        let failures = || tidegate.status()["backends"][1]["failures_total"].as_u64();
        eventually_is(Some(5), failures);
    }
}

#[test]
fn without_it_users_see_what_the_canary_does() {
    let (stable, canary) = (Backend::named("v1"), broken());
    for retry in ["attempts = 1", "attempts = 1\nshield = false"] {
        let tidegate = Tidegate::start(web(stable.address, canary.address, retry));
        assert_eq!(get(tidegate.address(), "/").text(), "v2 failed");
        tidegate.wait_until_idle().expect(SHIELDED, &[], 0.0);
    }
    assert_eq!(stable.count(), 0);
}

#[test]
fn a_canary_that_takes_no_connection_is_shielded_whatever_the_request() {
    let (stable, canary) = (Backend::named("v1"), Refusing::new());
    let tidegate = start(&stable, canary.address);
    let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(exchange(tidegate.address(), request).text(), "v1");
    assert_eq!(stable.only_request().body, b"hello");
    expect(&tidegate, "v2", "connect_failure", 1.0);
    expect_shielded(&tidegate, "success", 1.0);
}

#[test]
fn what_may_have_been_done_is_not_done_again_at_stable() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let tidegate = start(&stable, canary.address);
    let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let response = exchange(tidegate.address(), request);
    assert_eq!((response.status, response.text().as_str(), stable.count()), (500, "v2 failed", 0));
    expect(&tidegate, "v2", "5xx", 1.0);
    tidegate.scrape().expect(SHIELDED, &[], 0.0);
}

#[test]
fn a_body_goes_to_stable_as_it_came() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let tidegate = start(&stable, canary.address);
    let request = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(exchange(tidegate.address(), request).text(), "v1");
    assert_eq!((canary.only_request().body, stable.only_request().body), (b"hello".into(), b"hello".into()));
}

#[test]
fn who_asks_for_the_canary_sees_what_it_does() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let rules = "
        force = [
          { role = 'canary', header = { name = 'x-side', value = 'canary' } },
          { role = 'canary', cookie = { name = 'side', value = 'canary' } },
          { role = 'canary', query = { name = 'side', value = 'canary' } },
        ]
        preview = { header = { name = 'x-preview', present = true } }";
    let toml = web(stable.address, canary.address, "shield = true").keys(rules);
    let tidegate = Tidegate::start(toml);
    for (target, field) in [
        ("/", "X-Side: canary\r\n"),
        ("/", "Cookie: side=canary\r\n"),
        ("/?side=canary", ""),
        ("/", "X-Preview: 1\r\n"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{field}\r\n");
        assert_eq!(exchange(tidegate.address(), request).text(), "v2 failed", "{target} {field}");
    }
    assert_eq!(stable.count(), 0);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    expect_shielded_among(&tidegate, 1.0);
}

/// Of retries of several kinds, so many were shielded, well.
#[track_caller]
fn expect_shielded_among(tidegate: &Tidegate, count: f64) {
    let scrape = tidegate.wait_until_idle();
    scrape.expect(SHIELDED, &[("result", "success")], count);
    scrape.expect(SHIELDED, &[], count);
}

#[test]
fn a_user_who_is_shielded_stays_a_user_of_the_canary() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let retry = "attempts = 0\nshield = true";
    let toml = web(stable.address, canary.address, retry).table("sticky", "cookie = 'side'");
    let tidegate = Tidegate::start(toml.keys("backend_header = 'x-backend'"));
    let first = get(tidegate.address(), "/");
    assert_eq!((first.text().as_str(), first.fields("x-backend")), ("v1", vec!["v1"]));
    let cookie = first.fields("set-cookie")[0].split(';').next().unwrap().to_owned();
    let again = |client: &mut Raw| {
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.text().as_str(), response.fields("set-cookie").len()), ("v1", 0));
    };
    again(&mut tidegate.client());
    assert_eq!(canary.count(), 2);
    // What a rollback does.
    tidegate.set_weight(0.0);
    again(&mut tidegate.client());
    assert_eq!((canary.count(), stable.count()), (2, 3));
}

#[test]
fn what_stable_fails_never_goes_to_the_canary() {
    let (stable, canary) = (broken(), Backend::named("v2"));
    let retry = "attempts = 3\nshield = true\non = ['500', 'reset', 'connect-failure']";
    let toml = web(stable.address, canary.address, retry);
    let tidegate = Tidegate::start(toml.to_string().replace("weight = 100", "weight = 0"));
    for _ in 0..20 {
        assert_eq!(get(tidegate.address(), "/").status, 500);
    }
    assert_eq!((stable.count(), canary.count()), (20, 0));
    // Nor does what both fail come back.
    let both = Tidegate::start(web(stable.address, broken().address, retry));
    assert_eq!(get(both.address(), "/").status, 500);
    assert_eq!(stable.count(), 21);
}

#[test]
fn what_stable_fails_in_its_place_is_tried_again_as_all_is() {
    let (bad, good, canary) = (failing("503 Service Unavailable"), Backend::named("v1"), broken());
    let toml = |retry: &str| {
        let web = Web::of(&[bad.address, good.address]).table("balance", "algorithm = 'round-robin'");
        web.canary(canary.address).weight(100.0).table("retry", retry)
    };
    let tidegate = Tidegate::start(toml("attempts = 2\nshield = true"));
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    assert_eq!((canary.count(), bad.count(), good.count()), (1, 1, 1));
    let scrape = tidegate.wait_until_idle();
    scrape.expect(SHIELDED, &[("result", "failure")], 1.0);
    scrape.expect("tidegate_retries_total", &[("result", "success")], 1.0);
    // Without retries there is the one try at stable.
    let tidegate = Tidegate::start(toml("attempts = 0\nshield = true"));
    assert_eq!(get(tidegate.address(), "/").status, 503);
    assert_eq!((canary.count(), bad.count(), good.count()), (2, 2, 1));
}

#[test]
fn the_budget_holds_for_shielding_too() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let retry = "attempts = 0\nshield = true\nbudget = { percent = 10, min_per_second = 0 }";
    let tidegate = Tidegate::start(web(stable.address, canary.address, retry));
    let mut client = tidegate.client();
    let seen = (0..100).filter(|_| client.get("/").status == 200).count();
    // A tenth; more only if the test takes longer than the budget looks back.
    assert!((10..100).contains(&seen), "{seen}");
    let scrape = tidegate.wait_until_idle();
    scrape.expect(SHIELDED, &[("result", "budget_exhausted")], 100.0 - seen as f64);
}

#[test]
fn a_bad_canary_is_rolled_back_and_nobody_sees_a_failure() {
    let (stable, canary) = (Backend::named("v1"), broken());
    let rollout = "steps = [{ weight = 10, hold = '1h' }]";
    let analysis = "minimum_requests = 50\nlatency_margin = false";
    let toml = Web::new(stable.address).canary(canary.address).workers(2);
    let toml = toml.table("retry", "attempts = 0\nshield = true").table("rollout", rollout);
    let tidegate = Tidegate::start(toml.table("rollout.analysis", analysis));
    let load = Load::checked(&tidegate, |response| assert_eq!(response.status, 200));
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!((&status["rollout"]["reason"]["kind"], &status["weight"]), (&"verdict".into(), &0.0.into()));
    let failed = canary.count() as f64;
    assert!(failed > 0.0);
    expect(&tidegate, "v2", "5xx", failed);
    expect_shielded(&tidegate, "success", failed);
}
