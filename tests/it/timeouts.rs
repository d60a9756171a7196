//! What happens to those who take too long, and who is blamed for it.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use http::Request;
use tidegate::clock;

use crate::support::{
    Backend, Tidegate, Unaccepting, Web, eventually_is, exchange, get, patience, reply, runtime,
};

#[test]
fn a_backend_that_takes_no_connection_times_out() {
    let full = Unaccepting::new();
    let toml = Web::new(full.address).table("timeouts", "connect = '100ms'");
    let tidegate = Tidegate::start(toml);
    let response = get(tidegate.address(), "/");
    assert_eq!(response.status, 504);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=connection_timeout"]);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("status", "connect_failure")], 1.0);
    scrape.expect("tidegate_upstream_connect_failures_total", &[("backend", "v1")], 1.0);
    scrape.expect("tidegate_local_replies_total", &[("reason", "connect_timeout")], 1.0);
}

#[test]
fn a_response_that_does_not_begin_times_out() {
    let backend = Backend::scripted(|mut peer| {
        peer.request();
        peer.wait_for_end();
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "response = '100ms'"));
    let mut client = tidegate.client();
    let response = client.get("/");
    assert_eq!(response.status, 504);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=http_response_timeout"]);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("status", "timeout")], 1.0);
    scrape.expect("tidegate_request_duration_seconds_count", &[], 0.0);
    assert_eq!(client.get("/").status, 504, "the client's connection goes on");
    assert_eq!(backend.connections(), 2, "the backend's does not");
}

#[test]
fn a_response_that_stops_in_the_middle_is_cut() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '100ms'"));
    let response = get(tidegate.address(), "/");
    assert_eq!((response.status, response.whole, response.text().as_str()), (200, false, "half"));
    tidegate.wait_for_outcome("timeout", 1);
}

#[test]
fn a_response_that_comes_slowly_but_steadily_is_not_cut() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n");
            for _ in 0..6 {
                pause(Duration::from_millis(60));
                peer.send("a");
            }
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '200ms'"));
    assert!(get(tidegate.address(), "/").whole);
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_client_that_stops_in_the_middle_of_its_body_is_told_so() {
    let backend = Backend::scripted(|mut peer| {
        peer.request();
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '100ms'"));
    let response =
        exchange(tidegate.address(), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(response.status, 408);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
    scrape.expect("tidegate_local_replies_total", &[("reason", "request_timeout")], 1.0);
}

#[test]
fn an_upload_that_goes_on_under_a_response_that_has_begun_is_not_cut() {
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
            assert_eq!(peer.wire.read_length(8).len(), 8);
            peer.send("done");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '200ms'"));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n");
    for _ in 0..8 {
        pause(Duration::from_millis(60));
        client.send("a");
    }
    assert_eq!(client.response().text(), "done");
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_client_that_stops_its_upload_under_a_response_is_not_the_backends_failure() {
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '100ms'"));
    let response = exchange(tidegate.address(), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\na");
    assert!(!response.whole);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let (gone, backend_saw_the_end) = mpsc::channel();
    let backend = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while peer.send([0; 65536]) {}
            gone.send(()).unwrap();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '200ms'"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    backend_saw_the_end.recv_timeout(patience()).unwrap();
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn a_stream_that_its_client_does_not_read_is_reset_and_others_go_on() {
    const SOME: u32 = 100_000;
    let (go, wait) = mpsc::channel::<()>();
    let (wait, begun) = (std::sync::Mutex::new(wait), std::sync::Arc::new(AtomicUsize::new(0)));
    let backend = {
        let begun = std::sync::Arc::clone(&begun);
        Backend::answering(move |seen| {
            begun.fetch_add(1, SeqCst);
            if seen.target() == "/slow" {
                wait.lock().unwrap().recv_timeout(patience()).unwrap();
                return reply("204 No Content", &[], "");
            }
            reply("200 OK", &[], vec![0; 10_000_000])
        })
    };
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '200ms'"));
    let get = |target: &str| Request::get(format!("http://web.test{target}")).body(()).unwrap();
    // Nothing at all, and some of it.
    for window in [0, SOME] {
        begun.store(0, SeqCst);
        runtime().block_on(async {
            let socket = tokio::net::TcpStream::connect(tidegate.address()).await.unwrap();
            let mut client = h2::client::Builder::new();
            client.initial_window_size(window).initial_connection_window_size(1_000_000);
            let (mut client, connection) = client.handshake::<_, bytes::Bytes>(socket).await.unwrap();
            let driven = tokio::spawn(connection);
            let (slow, _) = client.send_request(get("/slow"), true).unwrap();
            let (stuck, _) = client.send_request(get("/large"), true).unwrap();
            let mut body = stuck.await.unwrap().into_body();
            let mut came = 0;
            let ended = loop {
                match tokio::time::timeout(patience(), body.data()).await.unwrap().unwrap() {
                    Ok(bytes) => came += bytes.len(),
                    Err(error) => break error,
                }
            };
            assert_eq!((came, ended.reason()), (window as usize, Some(h2::Reason::CANCEL)));
            assert_eq!(begun.load(SeqCst), 2);
            go.send(()).unwrap();
            assert_eq!(slow.await.unwrap().status(), 204);
            driven.abort();
        });
    }
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 2.0);
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], 2.0);
}

#[test]
fn a_stream_that_its_client_reads_slowly_goes_on() {
    let backend = Backend::answering(|_| reply("200 OK", &[], vec![7; 400_000]));
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '1s'"));
    runtime().block_on(async {
        let socket = tokio::net::TcpStream::connect(tidegate.address()).await.unwrap();
        let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("http://web.test/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut came = 0;
        while let Some(bytes) = body.data().await {
            let bytes = bytes.unwrap();
            came += bytes.len();
            body.flow_control().release_capacity(bytes.len()).unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        assert_eq!(came, 400_000);
    });
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_head_that_does_not_come_or_not_wholly_is_cut() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("header_timeout = '100ms'"));
    for part in ["", "G", "GET / HTTP/1.1\r\nHo", "PRI * HTTP/2.0\r\n"] {
        let mut client = tidegate.client();
        client.send(part);
        client.expect_end();
    }
    // The second head of a connection as well, while idling between the two is another matter.
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    pause(Duration::from_millis(200));
    assert_eq!(client.get("/").status, 200);
    client.send("GET / HT");
    client.expect_end();
    eventually_is(0.0, || tidegate.scrape().sum("tidegate_connections_open", &[]));
    assert_eq!(backend.count(), 2);
}

#[test]
fn a_head_that_trickles_gets_no_more_time_for_it() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("header_timeout = '150ms'"));
    let mut client = tidegate.client();
    let begin = clock::monotonic();
    client.send("GET / HTTP/1.1\r\nX: ");
    while client.send("a") && begin.elapsed() < Duration::from_secs(5) {
        pause(Duration::from_millis(20));
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn an_idle_connection_is_closed() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '100ms'"));
    let mut client = tidegate.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
    }
    client.expect_end();
    eventually_is(0.0, || tidegate.scrape().sum("tidegate_connections_open", &[]));
}

#[test]
fn a_slow_response_is_not_an_idle_connection() {
    let backend = Backend::answering(|_| {
        pause(Duration::from_millis(400));
        reply("200 OK", &[], "late")
    });
    let toml = Web::new(backend.address).listener("idle_timeout = '100ms'\nheader_timeout = '100ms'");
    let tidegate = Tidegate::start(toml);
    assert_eq!(get(tidegate.address(), "/").text(), "late");
}

/// Takes its time, as a slow peer does; nothing waits for this to be over.
fn pause(time: Duration) {
    std::thread::sleep(time);
}
