//! What is counted: exactly what happened.

use std::sync::mpsc;

use crate::support::{Backend, Tidegate, Web, eventually, eventually_is, exchange, get, reply};

#[test]
fn every_request_is_counted_once_by_what_became_of_it() {
    let backend = Backend::answering(|seen| match seen.target() {
        "/301" => reply("301 Moved Permanently", &[("Location", "/")], ""),
        "/404" => reply("404 Not Found", &[], "not here"),
        "/500" => reply("500 Internal Server Error", &[], ""),
        "/599" => reply("599 Odd", &[], ""),
        _ => reply("200 OK", &[], "fine"),
    });
    let tidegate = Tidegate::start(Web::new(backend.address).workers(2));
    for (target, times) in [("/200", 7), ("/301", 5), ("/404", 3), ("/500", 2), ("/599", 1)] {
        for _ in 0..times {
            get(tidegate.address(), target);
        }
    }
    let scrape = tidegate.wait_until_idle();
    let labels = [("service", "web"), ("backend", "v1"), ("role", "stable")];
    for (status, count) in [("2xx", 7.0), ("3xx", 5.0), ("4xx", 3.0), ("5xx", 3.0)] {
        scrape.expect(
            "tidegate_requests_total",
            &[labels[0], labels[1], labels[2], ("status", status)],
            count,
        );
    }
    scrape.expect("tidegate_requests_total", &[], 18.0);
    scrape.expect("tidegate_request_duration_seconds_count", &labels, 18.0);
    scrape.expect("tidegate_request_duration_seconds_bucket", &[("le", "+Inf")], 18.0);
    assert!(scrape.sum("tidegate_request_duration_seconds_sum", &[]) > 0.0);
    scrape.expect("tidegate_connections_accepted_total", &[], 18.0);
    eventually_is(0.0, || tidegate.scrape().sum("tidegate_connections_open", &[]));
    let status = eventually(|| tidegate.status(), |s| s["backends"][0]["requests_total"] == 18);
    assert_eq!(status["backends"][0]["failures_total"], 3);
}

#[test]
fn a_request_is_in_flight_until_its_response_is_complete() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
            wait.lock().unwrap().recv().unwrap();
            peer.send("cd");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let in_flight = || tidegate.scrape().sum("tidegate_requests_in_flight", &[("backend", "v1")]);
    eventually_is(1.0, in_flight);
    tidegate.scrape().expect("tidegate_requests_total", &[], 0.0);
    eventually(|| tidegate.status(), |status| status["backends"][0]["in_flight"] == 1);
    go_on.send(()).unwrap();
    assert_eq!(client.response().text(), "abcd");
    eventually_is(0.0, in_flight);
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn what_clients_make_up_adds_no_series() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string();
    let tidegate = Tidegate::start(toml.replace("[[routes]]", "[[routes]]\nhostnames = ['web.test']"));
    get(tidegate.address(), "/");
    exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n");
    let before = tidegate.wait_until_idle();
    for i in 0..50 {
        let request = format!("M{i} /p{i} HTTP/1.1\r\nHost: host-{i}.test\r\nX-{i}: {i}\r\n\r\n");
        assert_eq!(exchange(tidegate.address(), request).status, 404);
        let request = format!("M{i} /p{i} HTTP/1.1\r\nHost: web.test\r\nX-{i}: {i}\r\n\r\n");
        assert_eq!(exchange(tidegate.address(), request).status, 200);
    }
    let scrape = tidegate.wait_until_idle();
    let (series, before) = (scrape.series(), before.series());
    assert_eq!(series.symmetric_difference(&before).collect::<Vec<_>>(), [] as [&_; 0]);
    scrape.expect("tidegate_local_replies_total", &[("reason", "no_route")], 51.0);
}

#[test]
fn a_scrape_before_the_first_request_has_the_versions_and_the_weights() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = Tidegate::start(Web::new(stable.address).canary(canary.address).weight(25.0));
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    scrape.expect("tidegate_weight_ratio", &[("backend", "v1"), ("role", "stable")], 0.75);
    scrape.expect("tidegate_weight_ratio", &[("backend", "v2"), ("role", "canary")], 0.25);
    scrape.expect("tidegate_rollout_running", &[("service", "web")], 0.0);
    let series = scrape.series();
    for backend in ["v1", "v2"] {
        let labels = [("backend", backend), ("service", "web")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert!(series.contains(&("tidegate_backend_drained", &labels[..])), "{series:?}");
    }
    assert!(scrape.sum("process_open_fds", &[]) > 0.0);
}

#[test]
fn connections_are_spread_evenly_over_the_workers() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).workers(4));
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let mut client = tidegate.client();
            assert_eq!(client.get("/").text(), "v1");
            client
        })
        .collect();
    let scrape = tidegate.scrape();
    for worker in ["0", "1", "2", "3"] {
        let open = scrape.sum("tidegate_connections_open", &[("worker", worker)]);
        assert!((16.0 - open).abs() <= 0.2 * 16.0, "worker {worker} has {open} of 64");
    }
    drop(clients);
    eventually_is(0.0, || tidegate.scrape().sum("tidegate_connections_open", &[]));
}
