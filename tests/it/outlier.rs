//! Endpoints whose requests fail are passed over for a while, by all workers.

use crate::support::{Backend, Tidegate, Web, eventually, get, reply};

const EJECTIONS: &str = "tidegate_endpoint_ejections_total";
const HEALTHY: &str = "tidegate_endpoint_healthy";

/// Answers 500.
fn failing() -> Backend {
    Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"))
}

#[test]
fn an_endpoint_that_fails_five_times_in_a_row_is_ejected() {
    let (bad, good) = (failing(), Backend::named("good"));
    let toml = Web::of(&[bad.address, good.address]).table("outlier_detection", "");
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    let mut client = tidegate.client();
    let statuses: Vec<_> = (0..40).map(|_| client.get("/").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 5, "{statuses:?}");
    assert_eq!(bad.count(), 5);
    let scrape = tidegate.scrape();
    let endpoint = bad.address.to_string();
    scrape.expect(EJECTIONS, &[("service", "web"), ("backend", "v1"), ("endpoint", &endpoint)], 1.0);
    scrape.expect(EJECTIONS, &[], 1.0);
    scrape.expect(HEALTHY, &[("endpoint", &endpoint)], 0.0);
    scrape.expect(HEALTHY, &[], 1.0);
    // The failures count against the backend all the same.
    scrape.expect("tidegate_requests_total", &[("status", "5xx")], 5.0);
}

#[test]
fn all_workers_count_together_and_see_the_same() {
    let (bad, good) = (failing(), Backend::named("good"));
    let toml = Web::of(&[bad.address, good.address]).workers(4).table("outlier_detection", "");
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    // A connection each, so that the kernel spreads them.
    for _ in 0..100 {
        get(tidegate.address(), "/");
    }
    assert_eq!(bad.count(), 5);
    tidegate.scrape().expect(EJECTIONS, &[], 1.0);
}

#[test]
fn a_success_in_between_begins_the_count_anew() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let flaky =
        Backend::answering(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 5 {
            4 => reply("200 OK", &[], ""),
            _ => reply("503 Service Unavailable", &[], ""),
        });
    let good = Backend::named("good");
    let toml = Web::of(&[flaky.address, good.address]).table("outlier_detection", "");
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    let mut client = tidegate.client();
    for _ in 0..40 {
        client.get("/");
    }
    tidegate.scrape().expect(EJECTIONS, &[], 0.0);
    assert_eq!(flaky.count(), 20);
}

#[test]
fn the_only_endpoint_and_those_above_the_cap_stay() {
    let bad = failing();
    let tidegate = Tidegate::start(Web::of(&[bad.address]).table("outlier_detection", ""));
    let mut client = tidegate.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").status, 500);
    }
    tidegate.scrape().expect(EJECTIONS, &[], 0.0);

    let (one, two) = (failing(), failing());
    let toml = Web::of(&[one.address, two.address]).table("outlier_detection", "");
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    for _ in 0..40 {
        assert_eq!(client.get("/").status, 500);
    }
    tidegate.scrape().expect(EJECTIONS, &[], 1.0);
}

#[test]
fn an_ejection_ends() {
    let (bad, good) = (failing(), Backend::named("good"));
    let keys = "consecutive_5xx = 1\nbase_ejection_time = '100ms'";
    let toml = Web::of(&[bad.address, good.address]).table("outlier_detection", keys);
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    let mut client = tidegate.client();
    // One request each time that it is back.
    eventually(
        || {
            client.get("/");
            tidegate.scrape().sum(EJECTIONS, &[])
        },
        |ejections| *ejections >= 3.0,
    );
    eventually(|| tidegate.scrape().sum(HEALTHY, &[]), |healthy| *healthy == 2.0);
}

#[test]
fn with_all_ejected_and_no_panic_there_is_nobody_to_ask() {
    let (one, two) = (failing(), failing());
    let toml = Web::of(&[one.address, two.address])
        .table("outlier_detection", "consecutive_5xx = 1\nmax_ejection_percent = 100")
        .table("balance", "panic_threshold = 0\nalgorithm = 'round-robin'");
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    assert_eq!((client.get("/").status, client.get("/").status), (500, 500));
    let response = client.get("/");
    assert_eq!(response.status, 503);
    let status = "tidegate; error=destination_unavailable; details=\"unhealthy\"";
    assert_eq!(response.fields("proxy-status"), [status]);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_local_replies_total", &[("reason", "no_healthy_endpoint")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
}
