//! How much a backend is given at a time, and how long its connections live.

use std::sync::{Arc, Condvar, Mutex};

use crate::support::{Backend, Raw, Tidegate, Web, eventually, eventually_is, reply};

/// Holds requests until it is opened.
#[derive(Default)]
struct Barrier {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Barrier {
    fn wait(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// A backend that answers no request to `/held` before the barrier is opened.
fn holding() -> (Backend, Arc<Barrier>) {
    let barrier = Arc::<Barrier>::default();
    let held = Arc::clone(&barrier);
    let backend = Backend::answering(move |seen| {
        if seen.target() == "/held" {
            held.wait();
        }
        reply("200 OK", &[], "v1")
    });
    (backend, barrier)
}

/// A client whose request is held.
fn hold(tidegate: &Tidegate) -> Raw {
    let mut client = tidegate.client();
    client.send("GET /held HTTP/1.1\r\nHost: x\r\n\r\n");
    client
}

const LOCAL: &str = "tidegate_local_replies_total";
const UNSERVED: &str = "tidegate_unserved_requests_total";

#[test]
fn requests_above_the_limit_are_turned_away_and_say_nothing_about_the_backend() {
    for workers in [1, 4] {
        let (backend, barrier) = holding();
        let toml = Web::new(backend.address).workers(workers).table("pool", "max_requests = 3");
        let tidegate = Tidegate::start(toml);
        let mut clients = Vec::new();
        for held in 1..=3 {
            clients.push(hold(&tidegate));
            eventually_is(held, || backend.count());
        }
        for _ in 0..5 {
            let response = tidegate.client().get("/");
            assert_eq!(response.status, 503);
            assert_eq!(response.fields("proxy-status"), ["tidegate; error=connection_limit_reached"]);
            assert_eq!(response.fields("retry-after"), ["1"]);
        }
        tidegate.scrape().expect(LOCAL, &[("reason", "upstream_overflow")], 5.0);
        tidegate.scrape().expect(UNSERVED, &[("role", "stable")], 5.0);
        tidegate.scrape().expect("tidegate_requests_in_flight", &[], 3.0);
        barrier.open();
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
        tidegate.wait_until_idle();
        assert_eq!(tidegate.client().get("/").status, 200, "there is room again, on any worker");
        tidegate.wait_until_idle().expect("tidegate_requests_total", &[], 4.0);
    }
}

#[test]
fn a_request_waits_for_one_of_the_connections_that_there_may_be() {
    let (backend, barrier) = holding();
    let tidegate = Tidegate::start(Web::new(backend.address).table("pool", "max_connections = 1"));
    let mut first = hold(&tidegate);
    eventually_is(1, || backend.count());
    let mut waiting: Vec<_> = (0..4).map(|_| hold(&tidegate)).collect();
    eventually(|| tidegate.scrape().sum("tidegate_requests_in_flight", &[]), |count| *count == 5.0);
    assert_eq!((backend.count(), backend.connections()), (1, 1));
    barrier.open();
    assert_eq!(first.response().status, 200);
    for client in &mut waiting {
        assert_eq!(client.response().status, 200);
    }
    assert_eq!((backend.count(), backend.connections()), (5, 1));
}

#[test]
fn too_many_that_wait_and_those_that_wait_too_long_are_turned_away() {
    let (backend, barrier) = holding();
    let keys = "max_connections = 1\nmax_pending_requests = 1\npending_timeout = '300ms'";
    let tidegate = Tidegate::start(Web::new(backend.address).table("pool", keys));
    let mut first = hold(&tidegate);
    eventually_is(1, || backend.count());
    let mut waiting = hold(&tidegate);
    eventually(|| tidegate.scrape().sum("tidegate_requests_in_flight", &[]), |count| *count == 2.0);
    let response = tidegate.client().get("/");
    assert_eq!((response.status, response.fields("retry-after")), (503, vec!["1"]));
    let response = waiting.response();
    assert_eq!(response.status, 503);
    let status = "tidegate; error=connection_limit_reached; details=\"timeout\"";
    assert_eq!(response.fields("proxy-status"), [status]);
    barrier.open();
    assert_eq!(first.response().status, 200);
    let scrape = tidegate.wait_until_idle();
    scrape.expect(LOCAL, &[("reason", "upstream_overflow")], 1.0);
    scrape.expect(LOCAL, &[("reason", "pending_timeout")], 1.0);
    scrape.expect(UNSERVED, &[("role", "stable")], 2.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn whoever_stops_waiting_leaves_the_queue() {
    let (backend, barrier) = holding();
    let keys = "max_connections = 1\nmax_pending_requests = 1\npending_timeout = '1m'";
    let tidegate = Tidegate::start(Web::new(backend.address).table("pool", keys));
    let mut first = hold(&tidegate);
    eventually_is(1, || backend.count());
    let gone = hold(&tidegate);
    eventually(|| tidegate.scrape().sum("tidegate_requests_in_flight", &[]), |count| *count == 2.0);
    drop(gone);
    eventually(|| tidegate.scrape().sum("tidegate_requests_in_flight", &[]), |count| *count == 1.0);
    let mut next = hold(&tidegate);
    eventually(|| tidegate.scrape().sum("tidegate_requests_in_flight", &[]), |count| *count == 2.0);
    barrier.open();
    assert_eq!((first.response().status, next.response().status), (200, 200));
}

#[test]
fn an_idle_connection_to_another_endpoint_makes_room() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let toml = Web::of(&[a.address, b.address]).table("pool", "max_connections = 1");
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    let mut client = tidegate.client();
    let names: String = (0..6).map(|_| client.get("/").text()).collect();
    assert!("abababab".contains(&names), "{names}");
    assert_eq!(a.connections() + b.connections(), 6);
}

#[test]
fn a_connection_that_has_had_its_requests_is_not_used_again() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).table("pool", "max_requests_per_connection = 2");
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    for _ in 0..6 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(backend.connections(), 3);
}

#[test]
fn a_connection_that_is_too_old_is_not_used_again() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).table("pool", "max_connection_age = '1ms'");
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    let connections = || {
        client.get("/");
        backend.connections()
    };
    eventually(connections, |connections| *connections >= 3);
}

#[test]
fn without_idle_connections_each_request_has_its_own() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).table("pool", "max_idle = 0"));
    let mut client = tidegate.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(backend.connections(), 3);
}
