//! How it ends: nobody who behaves is cut off.

use std::{
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use tidegate::{clock, worker::drain::Stage};

use crate::support::{Backend, Raw, Tidegate, Web, bare::Bare, eventually, patience, reply};

/// A backend that tells of each request, and answers when it is told to.
fn slow() -> (Backend, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (seen, wait_for_request) = mpsc::channel();
    let (answer, wait_for_leave) = mpsc::channel::<()>();
    let wait_for_leave = Mutex::new(wait_for_leave);
    let backend = Backend::answering(move |_| {
        seen.send(()).unwrap();
        // No leave any more means the same: the test is over.
        let _leave = wait_for_leave.lock().unwrap().recv();
        reply("200 OK", &[], "late")
    });
    (backend, wait_for_request, answer)
}

fn wait_until_unready(tidegate: &Tidegate) {
    let response = eventually(|| tidegate.ask("GET", "/readyz", ""), |response| response.status == 503);
    assert_eq!(response.text(), "draining: send new connections elsewhere\n");
}

#[test]
fn while_it_announces_everything_is_served_and_asked_to_close() {
    let backend = Backend::named("v1");
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let mut old = tidegate.client();
    let before = old.get("/");
    assert_eq!(before.fields("connection").len(), 0);
    tidegate.drain(Duration::from_millis(700));
    wait_until_unready(&tidegate);
    assert_eq!(tidegate.ask("GET", "/livez", "").status, 200, "it is not unwell");
    assert_eq!(tidegate.scrape().sum("tidegate_connections_open", &[]), 1.0, "metrics stay up");
    let asked = eventually(|| tidegate.client().get("/"), |reply| !reply.fields("connection").is_empty());
    assert_eq!((asked.status, asked.fields("connection")), (200, vec!["close"]));
    let last = old.get("/");
    assert_eq!((last.status, last.fields("connection")), (200, vec!["close"]));
    old.expect_end();
    tidegate.wait_for_end();
    assert!(TcpStream::connect(tidegate.address()).is_err(), "nobody listens any more");
}

/// As where the end is asked for right after the start.
#[test]
fn who_comes_to_a_listener_that_was_opened_late_is_served() {
    let bare = Bare::start("");
    bare.enter(Stage::Announcing);
    let closes = |address| Raw::connect(address).get("/").fields("connection").len();
    eventually(|| closes(bare.address), |fields| *fields == 1);
    assert_eq!(closes(bare.open()), 1);
}

#[test]
fn what_is_in_flight_is_finished() {
    let (backend, wait_for_request, answer) = slow();
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let (mut busy, mut idle) = (tidegate.client(), tidegate.client());
    idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for_request.recv_timeout(patience()).unwrap();
    answer.send(()).unwrap();
    assert_eq!(idle.response().status, 200);
    busy.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for_request.recv_timeout(patience()).unwrap();
    tidegate.drain(Duration::ZERO);
    // One that is idle has nothing to wait for.
    idle.expect_end();
    answer.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.status, response.text().as_str()), (200, "late"));
    assert_eq!(response.fields("connection"), ["close"]);
    busy.expect_end();
    tidegate.wait_for_end();
}

#[test]
fn a_body_on_its_way_is_finished() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let backend = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
            wait.lock().unwrap().recv().unwrap();
            peer.send("cd");
        }
    });
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    client.wire.read_head().unwrap();
    tidegate.drain(Duration::ZERO);
    wait_until_unready(&tidegate);
    go_on.send(()).unwrap();
    assert_eq!(client.wire.read_to_end(), b"abcd");
    tidegate.wait_for_end();
}

#[test]
fn the_deadline_cuts_what_is_left() {
    let (backend, wait_for_request, answer) = slow();
    let mut tidegate = Tidegate::start(Web::new(backend.address).deadline("200ms"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for_request.recv_timeout(patience()).unwrap();
    let begin = clock::monotonic();
    tidegate.drain(Duration::ZERO);
    tidegate.wait_for_end();
    assert!((Duration::from_millis(200)..Duration::from_secs(2)).contains(&begin.elapsed()));
    assert!(client.try_response_to("GET").is_none());
    drop(answer);
}

#[test]
fn a_connection_that_says_nothing_does_not_hold_it_up() {
    let backend = Backend::named("v1");
    let mut tidegate = Tidegate::start(Web::new(backend.address).deadline("30s"));
    let mut silent = tidegate.client();
    let mut half = tidegate.client();
    half.send("GET / HT");
    eventually(|| tidegate.scrape().sum("tidegate_connections_open", &[]), |open| *open == 2.0);
    tidegate.drain(Duration::ZERO);
    tidegate.wait_for_end();
    silent.expect_end();
    half.expect_end();
}

#[test]
fn a_connection_that_was_made_before_the_end_gets_its_first_request_served() {
    let backend = Backend::named("v1");
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let mut clients: Vec<_> = (0..20).map(|_| tidegate.client()).collect();
    tidegate.drain(Duration::ZERO);
    wait_until_unready(&tidegate);
    // All at once: they have a second.
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    for client in &mut clients {
        let response = client.response_to("GET");
        assert_eq!((response.status, response.fields("connection")), (200, vec!["close"]));
        client.expect_end();
    }
    tidegate.wait_for_end();
}

#[test]
fn no_request_is_lost_by_clients_that_close_when_asked_to() {
    let backend = Backend::named("v1");
    let mut tidegate = Tidegate::start(Web::new(backend.address).workers(2));
    let address = tidegate.address();
    let (served, failed, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    // Refused from here on: others would send to another instance now.
                    let Ok(socket) = TcpStream::connect(address) else { return };
                    let mut client = Raw { wire: crate::support::wire::Wire::new(socket) };
                    for _ in 0..50 {
                        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                        let Some(response) = client.try_response_to("GET") else {
                            failed.fetch_add(1, SeqCst);
                            return;
                        };
                        assert_eq!(response.status, 200);
                        served.fetch_add(1, SeqCst);
                        if response.fields("connection") == ["close"] {
                            break;
                        }
                    }
                }
            });
        }
        eventually(|| served.load(SeqCst), |served| *served > 200);
        tidegate.drain(Duration::from_millis(300));
        tidegate.wait_for_end();
        over.store(true, SeqCst);
    });
    // A connection that the kernel took in the very moment in which the socket was closed is reset
    // before it is ours; that is one for each of two workers at most.
    assert!(failed.load(SeqCst) <= 2, "{} of {}", failed.load(SeqCst), served.load(SeqCst));
}
