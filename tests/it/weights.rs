//! The split: how even it is, and when a change of it is seen.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

use crate::support::{Backend, Tidegate, Web};

fn split(stable: &Backend, canary: &Backend, percent: f64) -> Tidegate {
    Tidegate::start(Web::new(stable.address).canary(canary.address).weight(percent).workers(2))
}

#[test]
fn the_canary_gets_its_share() {
    const CLIENTS: usize = 40;
    const EACH: usize = 500;
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = split(&stable, &canary, 10.0);
    // As pipelines, so that the time goes into requests and not into waiting for each.
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CLIENTS / 4 {
                    let mut client = tidegate.client();
                    for _ in 0..EACH / 50 {
                        assert!(client.send(&request));
                        for _ in 0..50 {
                            assert_eq!(client.response().status, 200);
                        }
                    }
                }
            });
        }
    });
    let (stable, canary) = (stable.count(), canary.count());
    assert_eq!(stable + canary, CLIENTS * EACH);
    // 20,000 draws at 10 %: mean 2,000, standard deviation √(20,000 · 0.1 · 0.9) = 42.4; five of them,
    // which an even split exceeds once in 1.7 million runs.
    assert!((1788..=2212).contains(&canary), "{canary} of {}", stable + canary);
}

#[test]
fn a_new_weight_holds_for_the_very_next_request() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = split(&stable, &canary, 0.0);
    // Enough connections for both workers to have some.
    let mut clients: Vec<_> = (0..8).map(|_| tidegate.client()).collect();
    for _ in 0..10 {
        for (percent, name) in [(0.0, "v1"), (100.0, "v2")] {
            tidegate.set_weight(percent);
            for client in &mut clients {
                assert_eq!(client.get("/").text(), name, "at {percent} %");
            }
        }
    }
}

#[test]
fn changing_the_weight_a_thousand_times_fails_no_request() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = split(&stable, &canary, 50.0);
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = tidegate.client();
                while !over.load(SeqCst) {
                    assert_eq!(client.get("/").status, 200);
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        let changes = || {
            let mut admin = crate::support::Raw::connect(tidegate.admin);
            for i in 0..1000 {
                let body = format!("{{\"canary\": {}}}", i % 101);
                let path = "/api/v1/services/web/weight";
                let length = body.len();
                admin.send(format!(
                    "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
                ));
                assert_eq!(admin.response().status, 200);
            }
        };
        // However it ends, the load has to end as well.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(changes));
        over.store(true, SeqCst);
        changed.unwrap();
    });
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], served.load(SeqCst) as f64);
    scrape.expect("tidegate_requests_total", &[], served.load(SeqCst) as f64);
    scrape.expect("tidegate_connections_accepted_total", &[], 3.0);
    assert!(stable.count() > 0 && canary.count() > 0);
}

#[test]
fn the_weight_is_said_wherever_one_looks() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = split(&stable, &canary, 0.0);
    tidegate.set_weight(12.34);
    let status = tidegate.status();
    assert_eq!(status["weight"], 12.34);
    assert_eq!(status["backends"][0]["weight"], 87.66);
    assert_eq!(status["backends"][1]["weight"], 12.34);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_weight_ratio", &[("backend", "v2"), ("role", "canary")], 0.1234);
    scrape.expect("tidegate_weight_ratio", &[("service", "web")], 1.0);
}
