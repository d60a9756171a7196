//! Requests that have failed and are tried again: which, where, how often, and who is blamed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
};

use crate::{
    reload::Filed,
    support::{Backend, Refusing, Tidegate, Web, eventually, eventually_is, exchange, get, reply},
};

const RETRIES: &str = "tidegate_retries_total";
pub const REQUESTS: &str = "tidegate_requests_total";

/// A backend whose endpoints take turns, with retries.
pub fn web(endpoints: &[SocketAddr], retry: &str) -> Web {
    Web::of(endpoints).table("balance", "algorithm = 'round-robin'").table("retry", retry)
}

pub fn start(endpoints: &[SocketAddr], retry: &str) -> Tidegate {
    Tidegate::start(web(endpoints, retry))
}

fn failing(status: &'static str) -> Backend {
    Backend::answering(move |_| reply(status, &[("X-From", "bad")], "bad"))
}

pub fn unavailable() -> Backend {
    failing("503 Service Unavailable")
}

/// Reads a request, and breaks off.
pub fn breaking() -> Backend {
    Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.reset();
        }
    })
}

/// Reads a request, and says nothing.
fn silent() -> Backend {
    Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    })
}

/// Waits until nothing is in flight, and checks how many retries came to what.
#[track_caller]
pub fn expect_retries(tidegate: &Tidegate, results: &[(&str, f64)]) {
    let scrape = tidegate.wait_until_idle();
    for (result, count) in results {
        scrape.expect(RETRIES, &[("service", "web"), ("result", result)], *count);
    }
    scrape.expect(RETRIES, &[], results.iter().map(|(_, count)| count).sum());
    scrape.expect("tidegate_shielded_total", &[], 0.0);
}

/// Checks how many attempts ended how, and that these were all.
#[track_caller]
pub fn expect_attempts(tidegate: &Tidegate, outcomes: &[(&str, f64)]) {
    let scrape = tidegate.wait_until_idle();
    for (status, count) in outcomes {
        scrape.expect(REQUESTS, &[("status", status)], *count);
    }
    scrape.expect(REQUESTS, &[], outcomes.iter().map(|(_, count)| count).sum());
}

pub fn put(body: &str) -> String {
    format!("PUT / HTTP/1.1\r\nHost: web.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub fn post(body: &str) -> String {
    put(body).replacen("PUT", "POST", 1)
}

#[test]
fn nothing_is_tried_again_unless_asked_for() {
    let (bad, good) = (unavailable(), Backend::named("good"));
    let toml = Web::of(&[bad.address, good.address]).table("balance", "algorithm = 'round-robin'");
    let tidegate = Tidegate::start(toml);
    assert_eq!(get(tidegate.address(), "/").status, 503);
    assert_eq!((bad.count(), good.count()), (1, 0));
    assert_eq!(tidegate.scrape().sum(RETRIES, &[]), 0.0);
}

#[test]
fn what_fails_is_tried_again_at_another_endpoint_and_counts_where_it_failed() {
    for (status, class) in [
        ("502 Bad Gateway", "5xx"),
        ("503 Service Unavailable", "5xx"),
        ("504 Gateway Timeout", "5xx"),
        ("reset", "reset"),
        ("silent", "timeout"),
    ] {
        let bad = match status {
            "reset" => breaking(),
            "silent" => silent(),
            _ => failing(status),
        };
        let good = Backend::named("good");
        let tidegate = start(&[bad.address, good.address], "per_try_timeout = '100ms'");
        let response = get(tidegate.address(), "/a?b");
        assert_eq!((response.status, response.text().as_str()), (200, "good"), "{status}");
        assert!(response.fields("x-from").is_empty());
        assert_eq!((bad.count(), good.only_request().target()), (1, "/a?b"));
        expect_retries(&tidegate, &[("success", 1.0)]);
        expect_attempts(&tidegate, &[(class, 1.0), ("2xx", 1.0)]);
    }
}

#[test]
fn conditions_that_are_not_named_are_passed_on() {
    for (bad, named, status) in [
        (unavailable(), "'reset', '502', '500'", 503),
        (breaking(), "'connect-failure', '503'", 502),
        (failing("500 Internal Server Error"), "'503'", 500),
    ] {
        let good = Backend::named("good");
        let tidegate = start(&[bad.address, good.address], &format!("on = [{named}]"));
        assert_eq!(get(tidegate.address(), "/").status, status);
        assert_eq!((bad.count(), good.count()), (1, 0));
        expect_retries(&tidegate, &[]);
    }
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let tidegate = start(&[refusing.address, good.address], "on = ['reset']");
    assert_eq!((get(tidegate.address(), "/").status, good.count()), (502, 0));
}

#[test]
fn each_condition_can_be_named_alone() {
    for (bad, named) in [
        (unavailable(), "'503'"),
        (failing("599 Odd"), "'599'"),
        (breaking(), "'reset'"),
        (failing("500 Internal Server Error"), "'500'"),
    ] {
        let good = Backend::named("good");
        let tidegate = start(&[bad.address, good.address], &format!("on = [{named}]"));
        assert_eq!(get(tidegate.address(), "/").text(), "good", "{named}");
    }
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let tidegate = start(&[refusing.address, good.address], "on = ['connect-failure']");
    assert_eq!(get(tidegate.address(), "/").text(), "good");
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    for bad in [unavailable(), breaking()] {
        for method in ["POST", "PATCH"] {
            let good = Backend::named("good");
            let tidegate = start(&[bad.address, good.address], "");
            let before = bad.count();
            let response = exchange(tidegate.address(), put("hello").replacen("PUT", method, 1));
            assert!([502, 503].contains(&response.status), "{method} {}", response.status);
            assert_eq!((bad.count(), good.count()), (before + 1, 0), "{method}");
            expect_retries(&tidegate, &[]);
        }
    }
}

#[test]
fn what_was_never_sent_is_sent_elsewhere_whatever_it_is() {
    let large = "x".repeat(300_000);
    for body in ["", "hello", &large] {
        let (refusing, good) = (Refusing::new(), Backend::named("good"));
        let tidegate = start(&[refusing.address, good.address], "");
        assert_eq!(exchange(tidegate.address(), post(body)).text(), "good");
        assert_eq!(good.only_request().body, body.as_bytes());
        expect_retries(&tidegate, &[("success", 1.0)]);
        expect_attempts(&tidegate, &[("connect_failure", 1.0), ("2xx", 1.0)]);
    }
}

#[test]
fn an_endpoint_that_has_failed_is_not_asked_again() {
    let only = unavailable();
    let tidegate = start(&[only.address], "attempts = 5");
    let response = get(tidegate.address(), "/");
    assert_eq!((response.status, response.text().as_str(), only.count()), (503, "bad", 1));
    expect_retries(&tidegate, &[("no_endpoint", 1.0)]);

    let bad = [unavailable(), breaking(), unavailable()];
    let tidegate = start(&bad.each_ref().map(|bad| bad.address), "attempts = 5");
    assert!([502, 503].contains(&get(tidegate.address(), "/").status));
    assert_eq!(bad.each_ref().map(Backend::count), [1, 1, 1]);
    expect_retries(&tidegate, &[("failure", 2.0), ("no_endpoint", 1.0)]);
    expect_attempts(&tidegate, &[("5xx", 2.0), ("reset", 1.0)]);
}

#[test]
fn a_retry_does_not_go_to_a_canary_that_was_rolled_back_meanwhile() {
    let (fail, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let canary = [(); 2].map(|()| {
        let wait = Arc::clone(&wait);
        Backend::scripted(move |mut peer| {
            if peer.request().is_some() {
                let _told = wait.lock().unwrap().recv();
                peer.reset();
            }
        })
    });
    let stable = Backend::named("v1");
    let [a, b] = canary.each_ref().map(|canary| canary.address);
    let web = Web::new(stable.address).keys("canary = 'v2'");
    let web = web.table("backends.v2", &format!("endpoints = ['http://{a}', 'http://{b}']"));
    let web = web.table("rollout", "steps = [{ weight = 100, hold = '1h' }]\ndrain = '1h'");
    let tidegate = Tidegate::start(web.table("retry", ""));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1, || canary.each_ref().map(Backend::count).iter().sum::<usize>());
    tidegate.api("POST", "web/rollback", "");
    drop(fail);
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "v1"));
    assert_eq!(canary.each_ref().map(Backend::count).iter().sum::<usize>(), 1);
    expect_retries(&tidegate, &[("success", 1.0)]);
    let scrape = tidegate.scrape();
    scrape.expect(REQUESTS, &[("role", "canary"), ("status", "reset")], 1.0);
    scrape.expect(REQUESTS, &[("role", "stable"), ("status", "2xx")], 1.0);
}

#[test]
fn there_are_no_more_tries_than_may_be() {
    let bad: Vec<_> = (0..5).map(|_| unavailable()).collect();
    let addresses: Vec<_> = bad.iter().map(|bad| bad.address).collect();
    for (attempts, tries) in [("", 2), ("attempts = 3", 4)] {
        let before: usize = bad.iter().map(Backend::count).sum();
        let tidegate = start(&addresses, attempts);
        assert_eq!(get(tidegate.address(), "/").status, 503);
        assert_eq!(bad.iter().map(Backend::count).sum::<usize>() - before, tries);
    }
}

#[test]
fn the_budget_bounds_what_is_tried_again() {
    let bad = [unavailable(), unavailable()];
    let addresses = bad.each_ref().map(|bad| bad.address);
    let tidegate = start(&addresses, "budget = { percent = 10, min_per_second = 1 }");
    let mut client = tidegate.client();
    for _ in 0..200 {
        let response = client.get("/");
        assert_eq!((response.status, response.text().as_str()), (503, "bad"));
    }
    let scrape = tidegate.wait_until_idle();
    let count = |result| scrape.sum(RETRIES, &[("result", result)]);
    let (made, refused) = (count("failure"), count("budget_exhausted"));
    assert_eq!(made + refused, 200.0);
    // A tenth of the requests and ten; more only if the test takes longer than the budget looks back.
    assert!(made >= 30.0 && refused > 0.0, "{made} {refused}");
    let asked: usize = bad.iter().map(Backend::count).sum();
    assert_eq!(asked as f64, 200.0 + made);
}

#[test]
fn all_tries_together_take_no_longer_than_one_may() {
    let silent = [silent(), silent(), silent(), silent()];
    let retry = "attempts = 5\nper_try_timeout = '200ms'";
    let toml = web(&silent.each_ref().map(|silent| silent.address), retry);
    let tidegate = Tidegate::start(toml.table("timeouts", "response = '300ms'"));
    let response = get(tidegate.address(), "/");
    assert_eq!(response.status, 504);
    assert_eq!(silent.iter().map(Backend::count).sum::<usize>(), 2);
    expect_retries(&tidegate, &[("failure", 1.0), ("no_time", 1.0)]);
    expect_attempts(&tidegate, &[("timeout", 2.0)]);
}

#[test]
fn a_client_that_leaves_while_a_retry_waits_takes_it_along() {
    let (bad, good) = (unavailable(), Backend::named("good"));
    // Any time up to twenty days: it is as good as certain that the test is over before.
    let retry = "backoff = { base = '20days' }";
    let toml = web(&[bad.address, good.address], retry).table("timeouts", "response = '30days'");
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    tidegate.wait_for_outcome("5xx", 1);
    tidegate.scrape().expect("tidegate_requests_in_flight", &[], 1.0);
    drop(client);
    expect_retries(&tidegate, &[("client_abort", 1.0)]);
    expect_attempts(&tidegate, &[("5xx", 1.0)]);
    assert_eq!(good.count(), 0);
}

#[test]
fn a_client_that_leaves_during_a_retry_counts_for_nobody() {
    let (bad, silent) = (unavailable(), silent());
    let tidegate = start(&[bad.address, silent.address], "");
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1, || silent.count());
    drop(client);
    expect_retries(&tidegate, &[("client_abort", 1.0)]);
    expect_attempts(&tidegate, &[("5xx", 1.0), ("client_abort", 1.0)]);
}

#[test]
fn a_response_that_has_begun_is_not_tried_again() {
    let (received, wait_until_received) = mpsc::channel();
    let wait_until_received = Mutex::new(wait_until_received);
    let bad = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            wait_until_received.lock().unwrap().recv().unwrap();
        }
    });
    let good = Backend::named("good");
    let tidegate = start(&[bad.address, good.address], "attempts = 3");
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.wire.read_head().unwrap().starts_with("HTTP/1.1 200 "));
    received.send(()).unwrap();
    assert_eq!(client.wire.read_to_end(), b"half");
    assert_eq!(good.count(), 0);
    expect_retries(&tidegate, &[]);
    tidegate.wait_for_outcome("reset", 1);
}

#[test]
fn a_short_failure_leaves_its_connection_to_others_and_a_long_one_does_not() {
    for (length, connections) in [(0, 1..=1), (1000, 1..=1), (3_000_000, 5..=5)] {
        let bad = Backend::answering(move |_| reply("503 Service Unavailable", &[], "x".repeat(length)));
        let good = Backend::named("good");
        let tidegate = start(&[bad.address, good.address], "");
        let mut client = tidegate.client();
        eventually(
            || {
                assert_eq!(client.get("/").text(), "good");
                bad.count()
            },
            |count| *count == 5,
        );
        assert!(connections.contains(&bad.connections()), "{length}: {}", bad.connections());
        expect_retries(&tidegate, &[("success", 5.0)]);
    }
}

#[test]
fn the_last_failure_is_what_the_client_gets() {
    let (bad, refusing) = (unavailable(), Refusing::new());
    let tidegate = start(&[bad.address, refusing.address], "");
    let response = get(tidegate.address(), "/");
    assert_eq!(response.status, 502);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=connection_refused"]);
    expect_retries(&tidegate, &[("failure", 1.0)]);
    expect_attempts(&tidegate, &[("5xx", 1.0), ("connect_failure", 1.0)]);
}

#[test]
fn switched_connections_and_their_offers_are_left_alone() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let tidegate = start(&[refusing.address, good.address], "");
    let offer = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    assert_eq!(exchange(tidegate.address(), offer).status, 502);
    expect_retries(&tidegate, &[]);
}

#[test]
fn a_changed_configuration_turns_retries_on_and_off_and_their_counts_go_on() {
    let (bad, good) = (unavailable(), Backend::named("good"));
    let endpoints = [bad.address, good.address];
    let without = Web::of(&endpoints).table("balance", "algorithm = 'round-robin'");
    let filed = Filed::start(&without);
    let mut client = filed.tidegate.client();
    let mut failures = || (0..4).filter(|_| client.get("/").status == 503).count();
    assert_eq!(failures(), 2);
    filed.take_up(web(&endpoints, ""));
    assert_eq!(failures(), 0);
    let made = filed.tidegate.wait_until_idle().sum(RETRIES, &[("result", "success")]);
    assert_eq!(made, 2.0);
    filed.take_up(web(&endpoints, "").keys("backend_header = 'x-backend'"));
    assert_eq!(failures(), 0);
    filed.take_up(web(&endpoints, "attempts = 2"));
    assert_eq!(failures(), 0);
    filed.tidegate.wait_until_idle().expect(RETRIES, &[("result", "success")], 6.0);
    filed.take_up(without);
    assert_eq!(failures(), 2);
    filed.tidegate.wait_until_idle().expect(RETRIES, &[], 0.0);
}
