//! Which endpoint of a backend gets a request.

use std::{net::SocketAddr, sync::Mutex, sync::mpsc};

use crate::support::{Backend, Refusing, Tidegate, Web, eventually, exchange, get, reply};

fn web(endpoints: &[SocketAddr], balance: &str) -> Tidegate {
    Tidegate::start(Web::of(endpoints).table("balance", balance))
}

#[test]
fn round_robin_takes_turns() {
    let backends = [Backend::named("a"), Backend::named("b"), Backend::named("c")];
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let tidegate = web(&addresses, "algorithm = 'round-robin'");
    let mut client = tidegate.client();
    let seen: String = (0..9).map(|_| client.get("/").text()).collect();
    assert!("abcabcabcabc".contains(&seen), "{seen}");
}

#[test]
fn every_algorithm_reaches_every_endpoint() {
    let keyed = "algorithm = 'consistent-hash'\nhash_on = 'header:x-user'";
    for balance in ["", "algorithm = 'least-request'", "algorithm = 'peak-ewma'", keyed] {
        let backends = [Backend::named("a"), Backend::named("b")];
        let tidegate = web(&[backends[0].address, backends[1].address], balance);
        let mut client = tidegate.client();
        for user in 0..40 {
            client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-User: {user}\r\n\r\n"));
            assert_eq!(client.response().status, 200);
        }
        // A fair coin that falls on one side 40 times in a row is one in a trillion.
        assert!(backends.iter().all(|backend| backend.count() > 0), "{balance}");
    }
}

#[test]
fn the_same_key_goes_to_the_same_endpoint() {
    let backends = [Backend::named("a"), Backend::named("b"), Backend::named("c")];
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    for (on, field) in [("header:x-user", "X-User: "), ("cookie:sid", "Cookie: a=b; sid=")] {
        let balance = format!("algorithm = 'consistent-hash'\nhash_on = '{on}'");
        let tidegate = Tidegate::start(Web::of(&addresses).workers(2).table("balance", &balance));
        let asked = |key: usize| {
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{field}{key}\r\n\r\n");
            exchange(tidegate.address(), request).text()
        };
        let first: Vec<_> = (0..20).map(asked).collect();
        let again: Vec<_> = (0..20).map(asked).collect();
        assert_eq!(first, again);
        assert!(first.iter().any(|name| *name != first[0]), "{first:?}");
    }
    let tidegate = web(&addresses, "algorithm = 'consistent-hash'");
    let names: Vec<_> = (0..5).map(|_| get(tidegate.address(), "/").text()).collect();
    assert!(names.iter().all(|name| *name == names[0]), "one client has one address: {names:?}");
}

#[test]
fn peak_ewma_avoids_an_endpoint_that_is_slow_to_answer() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    // The first request to the slow one is answered when the test says so.
    let slow = Backend::answering(move |seen| {
        if seen.target() == "/slow" {
            held.lock().unwrap().recv().unwrap();
        }
        reply("200 OK", &[], "slow")
    });
    // Gone before the backend, which waits for it: a test that fails is not to hang.
    let release = release;
    let quick = Backend::named("quick");
    let tidegate = web(&[slow.address, quick.address], "algorithm = 'peak-ewma'");
    // Until one has gone to the slow one.
    let mut clients = Vec::new();
    while slow.count() == 0 {
        let mut client = tidegate.client();
        let before = quick.count() + slow.count();
        client.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
        eventually(|| quick.count() + slow.count(), |count| *count > before);
        clients.push(client);
    }
    // Longer than the 30 ms that is assumed of an unknown endpoint.
    std::thread::sleep(std::time::Duration::from_millis(100));
    release.send(()).unwrap();
    let mut client = clients.pop().unwrap();
    assert_eq!(client.response().text(), "slow");
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "quick");
    }
    drop(release);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let (refusing, backend) = (Refusing::new(), Backend::named("a"));
    let keyed = "algorithm = 'consistent-hash'\nhash_on = 'header:x-user'";
    for balance in ["algorithm = 'round-robin'", "algorithm = 'peak-ewma'", keyed] {
        let tidegate = web(&[refusing.address, backend.address], balance);
        let mut client = tidegate.client();
        let statuses: Vec<_> = (0..40)
            .map(|user| {
                client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-User: {user}\r\n\r\n"));
                client.response().status
            })
            .collect();
        // Once a second it gets another chance, and the test may take longer than one.
        let failed = statuses.iter().filter(|status| **status == 502).count();
        assert!((1..=5).contains(&failed), "{balance}: {statuses:?}");
    }
}
