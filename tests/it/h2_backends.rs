//! Connections to backends that speak HTTP/2: shared by many requests, up to what the backend allows,
//! and left when it says so.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use tokio::sync::{Barrier, Semaphore};

use crate::support::{
    Backend, H2, HyperBackend, Limits, Raw, Refusing, Tidegate, Web,
    client::{Chunks, empty, full, h2_request},
    eventually_is, exchange, get, runtime,
};

/// A backend that answers only once so many requests are there together.
fn gathering(limits: Limits, together: usize) -> HyperBackend {
    gathering_on(TcpListener::bind("127.0.0.1:0").unwrap(), limits, together)
}

/// The same on a socket that listens already.
fn gathering_on(listener: TcpListener, limits: Limits, together: usize) -> HyperBackend {
    let barrier = Arc::new(Barrier::new(together));
    HyperBackend::serving_on(listener, limits, move |_| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            Response::new(full("together"))
        }
    })
}

/// Sends so many requests at the same time over one connection; all have to be answered with 200.
fn send_together(tidegate: &Tidegate, count: usize) {
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get("/").await.unwrap() })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), (200, Bytes::from("together")));
        }
    });
}

#[test]
fn requests_share_a_connection() {
    let backend = gathering(Limits::default(), 50);
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    send_together(&tidegate, 50);
    assert_eq!(backend.connections(), 1);
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "2xx")], 50.0);
}

#[test]
fn what_one_connection_may_not_have_goes_to_another() {
    let backend = gathering(Limits { streams: 10, ..Limits::default() }, 40);
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    send_together(&tidegate, 40);
    assert!(backend.connections() >= 4, "{}", backend.connections());
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 40.0);
}

#[test]
fn a_connection_has_no_more_streams_than_is_written() {
    let backend = gathering(Limits::default(), 40);
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("pool", "max_concurrent_streams = 10"));
    send_together(&tidegate, 40);
    assert_eq!(backend.connections(), 4);
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 40.0);
}

#[test]
fn requests_wait_for_a_stream_of_the_connections_that_there_may_be() {
    let barrier = Arc::new(Barrier::new(4));
    let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    let backend = HyperBackend::serving(Limits::default(), move |_| {
        let (barrier, now, most) = (Arc::clone(&barrier), Arc::clone(&counted), Arc::clone(&highest));
        async move {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            barrier.wait().await;
            now.fetch_sub(1, SeqCst);
            Response::new(full("together"))
        }
    });
    let keys = "max_connections = 1\nmax_concurrent_streams = 4\npending_timeout = '1m'";
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("pool", keys));
    send_together(&tidegate, 40);
    assert_eq!((backend.connections(), most.load(SeqCst)), (1, 4));
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 40.0);
}

/// A backend that holds requests to `/held` until there are permits.
fn holding() -> (HyperBackend, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let backend = HyperBackend::serving(Limits::default(), move |request| {
        let gate = Arc::clone(&held);
        async move {
            if request.uri().path() == "/held" {
                gate.acquire().await.unwrap().forget();
            }
            Response::new(full("done"))
        }
    });
    (backend, gate)
}

/// A client whose request is held, as the one that makes this number of them.
fn hold(tidegate: &Tidegate, number: f64) -> Raw {
    let mut client = tidegate.client();
    client.send("GET /held HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(number, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
    client
}

#[test]
fn too_many_that_wait_for_a_stream_and_those_that_wait_too_long_are_turned_away() {
    let (backend, gate) = holding();
    let keys = "max_connections = 1\nmax_concurrent_streams = 1\nmax_pending_requests = 1\n\
                pending_timeout = '1s'";
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("pool", keys));
    // So that the connection knows how many streams it may have, and nobody waits for that.
    assert_eq!(get(tidegate.address(), "/").status, 200);
    tidegate.wait_until_idle();
    let mut first = hold(&tidegate, 1.0);
    let mut waiting = hold(&tidegate, 2.0);
    let refused = get(tidegate.address(), "/");
    assert_eq!((refused.status, refused.fields("retry-after")), (503, vec!["1"]));
    assert_eq!(refused.fields("proxy-status"), ["tidegate; error=connection_limit_reached"]);
    assert_eq!(waiting.response().status, 503);
    gate.add_permits(1);
    assert_eq!(first.response().status, 200);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_local_replies_total", &[("reason", "upstream_overflow")], 1.0);
    scrape.expect("tidegate_local_replies_total", &[("reason", "pending_timeout")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn whoever_stops_waiting_for_a_stream_leaves_the_line() {
    let (backend, gate) = holding();
    let keys = "max_connections = 1\nmax_concurrent_streams = 1\nmax_pending_requests = 1\n\
                pending_timeout = '1m'";
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("pool", keys));
    assert_eq!(get(tidegate.address(), "/").status, 200);
    tidegate.wait_until_idle();
    let mut first = hold(&tidegate, 1.0);
    let gone = hold(&tidegate, 2.0);
    drop(gone);
    eventually_is(1.0, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
    let mut next = hold(&tidegate, 2.0);
    gate.add_permits(2);
    assert_eq!((first.response().status, next.response().status), (200, 200));
    assert_eq!(backend.connections(), 1);
}

#[test]
fn each_endpoint_has_a_connection_whatever_others_have() {
    let backends = [holding(), holding()];
    let urls = backends.each_ref().map(|(backend, _)| format!("h2c://{}", backend.address));
    let web = Web::at(&urls.each_ref().map(String::as_str)).table("pool", "max_connections = 1");
    let tidegate = Tidegate::start(web);
    // To the less busy one each time.
    let mut held = [hold(&tidegate, 1.0), hold(&tidegate, 2.0)];
    eventually_is(2, || backends.iter().map(|(backend, _)| backend.connections()).sum::<usize>());
    for (backend, gate) in &backends {
        assert_eq!(backend.connections(), 1);
        gate.add_permits(1);
    }
    for client in &mut held {
        assert_eq!(client.response().status, 200);
    }
}

/// How many streams a connection may have is known when the backend's settings come, which may be after the
/// requests did.
#[test]
fn requests_wait_for_what_a_new_connection_may_have() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tidegate = Tidegate::start(Web::h2c(listener.local_addr().unwrap()));
    let backend = thread::scope(|scope| {
        let sent = scope.spawn(|| send_together(&tidegate, 40));
        eventually_is(40.0, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
        let backend = gathering_on(listener, Limits { streams: 10, ..Limits::default() }, 40);
        sent.join().unwrap();
        backend
    });
    assert_eq!(backend.connections(), 4);
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 40.0);
}

/// A backend that takes connections and never says anything, and a proxy before it.
fn silent(timeouts: &str) -> (TcpListener, Tidegate) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tidegate = Tidegate::start(Web::h2c(listener.local_addr().unwrap()).table("timeouts", timeouts));
    (listener, tidegate)
}

#[test]
fn what_another_request_waits_for_is_waited_for_as_long_as_a_connection() {
    let (_listener, tidegate) = silent("connect = '100ms'\nresponse = '1h'");
    let mut first = tidegate.client();
    first.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1.0, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
    assert_eq!(get(tidegate.address(), "/").status, 504);
    tidegate.wait_for_outcome("connect_failure", 1);
    tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "connect_timeout")], 1.0);
}

#[test]
fn a_connection_that_has_never_said_anything_is_given_up_with_its_request() {
    let (listener, tidegate) = silent("connect = '1m'\nresponse = '300ms'");
    let mut first = tidegate.client();
    first.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1.0, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
    // Waits for the first one's connection, and then makes its own.
    assert_eq!(get(tidegate.address(), "/").status, 504);
    assert_eq!(first.response().status, 504);
    tidegate.wait_for_outcome("timeout", 2);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(std::iter::from_fn(|| listener.accept().ok()).count(), 2);
}

#[test]
fn a_backend_that_leaves_after_each_request_is_followed() {
    let limits = Limits { requests: 1, ..Limits::default() };
    let backend = HyperBackend::serving(limits, |_| async { Response::new(full("v1")) });
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let mut client = tidegate.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "v1");
    }
    assert!(backend.connections() > 1, "{}", backend.connections());
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 20.0);
}

/// A backend that has `reject` answer each connection's first request, and answers the others with 200.
pub fn rejecting(reject: Reject) -> Rejecting {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let requests = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&requests);
    // Ends with the test's process: what it does, the test has seen by then.
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(reject_first(socket, reject, Arc::clone(&counted)));
            }
        });
    });
    Rejecting { address, requests }
}

pub struct Rejecting {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
pub enum Reject {
    /// Resets the stream as one that was not looked at.
    Refuse,
    /// The same as one that broke.
    Break,
}

async fn reject_first(socket: tokio::net::TcpStream, reject: Reject, requests: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let mut first = true;
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        requests.fetch_add(1, SeqCst);
        if std::mem::take(&mut first) {
            respond.send_reset(match reject {
                Reject::Refuse => h2::Reason::REFUSED_STREAM,
                Reject::Break => h2::Reason::INTERNAL_ERROR,
            });
        } else {
            respond.send_response(Response::new(()), true).unwrap();
        }
    }
}

#[test]
fn a_refused_request_is_sent_again_whatever_its_method() {
    let backend = rejecting(Reject::Refuse);
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let response = exchange(tidegate.address(), "DELETE / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    assert_eq!((response.status, backend.requests.load(SeqCst)), (200, 2));
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 1.0);
}

#[test]
fn a_request_that_was_looked_at_is_not_sent_again() {
    let backend = rejecting(Reject::Break);
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    assert_eq!(get(tidegate.address(), "/").status, 502);
    assert_eq!(backend.requests.load(SeqCst), 1);
    tidegate.wait_for_outcome("reset", 1);
    // The connection is as good as before.
    assert_eq!(get(tidegate.address(), "/").status, 200);
}

#[test]
fn a_body_of_known_length_is_whole_whatever_comes_behind_it() {
    let backend = HyperBackend::answering(Limits::default(), |_| {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let body = full("hello").with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
        Response::builder().header("content-length", "5").body(body).unwrap()
    });
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.text().as_str(), response.fields("content-length")), ("hello", vec!["5"]));
    }
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], 2.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
}

#[test]
fn a_request_that_the_backend_holds_does_not_hold_others() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let backend = HyperBackend::serving(Limits::default(), move |request| {
        let gate = Arc::clone(&held);
        async move {
            if request.uri().path() == "/slow" {
                let _open = gate.acquire().await.unwrap();
            }
            Response::new(full("done"))
        }
    });
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let slow = tokio::spawn({
            let client = client.clone();
            async move { client.get("/slow").await.unwrap() }
        });
        for _ in 0..10 {
            assert_eq!(client.get("/fast").await.unwrap().0, 200);
        }
        gate.add_permits(1);
        assert_eq!(slow.await.unwrap().0, 200);
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_client_that_goes_away_takes_its_stream_with_it() {
    let dropped = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&dropped);
    /// Counts when it is dropped.
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let backend = HyperBackend::serving(Limits::default(), move |_| {
        let guard = Guard(Arc::clone(&counted));
        async move {
            let _guard = guard;
            std::future::pending().await
        }
    });
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    eventually_is(1, || backend.connections());
    eventually_is(1.0, || tidegate.scrape().sum("tidegate_requests_in_flight", &[]));
    drop(client);
    eventually_is(1, || dropped.load(SeqCst));
    tidegate.wait_for_outcome("client_abort", 1);
}

#[test]
fn large_bodies_pass_at_the_slower_sides_pace() {
    const LARGE: usize = 4 * 1024 * 1024;
    let backend = HyperBackend::answering(Limits::default(), |seen| Response::new(full(seen.body.clone())));
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let client = H2::connect(tidegate.address());
    let body: Bytes = (0..LARGE).map(|i| (i / 1021) as u8).collect();
    runtime().block_on(async {
        let request = h2_request("POST", "/").body(full(body.clone())).unwrap();
        let response = client.send(request).await.unwrap();
        assert!(response.into_body().collect().await.unwrap().to_bytes() == body);
    });
}

#[test]
fn one_that_refuses_connections_is_told_of_once_for_each() {
    let refusing = Refusing::new();
    let tidegate = Tidegate::start(Web::h2c(refusing.address));
    assert_eq!(get(tidegate.address(), "/").status, 502);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_upstream_connect_failures_total", &[], 1.0);
    scrape.expect("tidegate_requests_total", &[("status", "connect_failure")], 1.0);
}

#[test]
fn one_that_does_not_speak_http_2_is_to_blame() {
    let backend = Backend::scripted(|mut peer| {
        peer.send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    assert_eq!(get(tidegate.address(), "/").status, 502);
    tidegate.wait_for_outcome("reset", 1);
}

#[test]
fn one_that_does_not_answer_in_time_is_to_blame_and_its_connection_stays() {
    let backend = HyperBackend::serving(Limits::default(), |request| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        let chunks = [Bytes::from("a")].into();
        Response::new(if request.uri().path() == "/half" {
            Chunks { chunks, ends: false }.boxed()
        } else {
            empty()
        })
    });
    let web = Web::h2c(backend.address).table("timeouts", "response = '100ms'\nidle = '100ms'");
    let tidegate = Tidegate::start(web);
    assert_eq!(get(tidegate.address(), "/never").status, 504);
    assert!(!get(tidegate.address(), "/half").whole);
    assert_eq!(get(tidegate.address(), "/").status, 200);
    tidegate.wait_for_outcome("timeout", 2);
    assert_eq!(backend.connections(), 1);
}
