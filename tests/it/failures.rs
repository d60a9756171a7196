//! What happens when a connection breaks, and who is blamed for it.

use std::sync::mpsc;

use crate::support::{Backend, Refusing, Tidegate, Web, eventually, exchange, get, patience, reply};

#[test]
fn a_backend_that_refuses_connections_is_a_502() {
    let refusing = Refusing::new();
    let tidegate = Tidegate::start(Web::new(refusing.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!(response.status, 502);
        assert_eq!(response.fields("proxy-status"), ["tidegate; error=connection_refused"]);
    }
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("status", "connect_failure")], 2.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
    scrape.expect("tidegate_upstream_connect_failures_total", &[], 2.0);
    scrape.expect("tidegate_request_duration_seconds_count", &[], 0.0);
}

#[test]
fn a_backend_that_breaks_off_before_it_answers_is_a_502() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.reset();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let response = get(tidegate.address(), "/");
    assert_eq!(response.status, 502);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=connection_terminated"]);
    tidegate.wait_for_outcome("reset", 1);
    assert_eq!(backend.count(), 1, "a request that a backend has seen is not sent again");
}

#[test]
fn what_is_not_http_is_a_502() {
    for nonsense in [
        "SSH-2.0-x\r\n\r\n".to_owned(),
        "HTTP/1.1 abc\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "a".repeat(2_000_000)),
    ] {
        let short: String = nonsense.chars().take(60).collect();
        let backend = Backend::scripted(move |mut peer| {
            if peer.request().is_some() {
                peer.send(&nonsense);
                peer.wait_for_end();
            }
        });
        let tidegate = Tidegate::start(Web::new(backend.address));
        assert_eq!(get(tidegate.address(), "/").status, 502, "{short:?}");
        tidegate.wait_for_outcome("reset", 1);
    }
}

#[test]
fn a_backend_that_breaks_off_in_the_middle_of_a_body_is_heard_of_by_the_client() {
    for body in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let (received, wait_until_received) = mpsc::channel();
        let wait_until_received = std::sync::Mutex::new(wait_until_received);
        let backend = Backend::scripted(move |mut peer| {
            if peer.request().is_some() {
                peer.send(format!("HTTP/1.1 200 OK\r\n{body}"));
                wait_until_received.lock().unwrap().recv().unwrap();
            }
        });
        let tidegate = Tidegate::start(Web::new(backend.address));
        let mut client = tidegate.client();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(client.wire.read_head().unwrap().starts_with("HTTP/1.1 200 "));
        received.send(()).unwrap();
        let rest = client.wire.read_to_end();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
        tidegate.wait_for_outcome("reset", 1);
        tidegate.scrape().expect("tidegate_requests_total", &[], 1.0);
    }
}

#[test]
fn a_connection_that_was_closed_while_idle_is_nobodys_failure() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for (request, times) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 5),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 5),
    ] {
        for _ in 0..times {
            client.send(request);
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, "v1"));
            backend.close_connections();
        }
    }
    tidegate.wait_for_outcome("2xx", 10);
    tidegate.scrape().expect("tidegate_requests_total", &[], 10.0);
    assert_eq!(backend.connections(), 10);
}

#[test]
fn a_safe_request_on_a_connection_that_dies_under_it_is_sent_again() {
    // Each connection serves one request, and dies when it sees the next.
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send(reply("200 OK", &[], "v1"));
            peer.head();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    // A connection has to be idle for half a second for a lost race to be likely.
    std::thread::sleep(std::time::Duration::from_millis(600));
    assert_eq!(client.get("/").status, 200);
    tidegate.wait_for_outcome("2xx", 2);
    tidegate.scrape().expect("tidegate_requests_total", &[], 2.0);
}

#[test]
fn a_client_that_goes_away_says_nothing_about_the_backend() {
    let (seen, wait_for_request) = mpsc::channel();
    let (gone, wait_for_close) = mpsc::channel();
    let backend = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            seen.send(()).unwrap();
            peer.wait_for_end();
            gone.send(()).unwrap();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    for reset in [false, true] {
        let mut client = tidegate.client();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        wait_for_request.recv_timeout(patience()).unwrap();
        if reset {
            client.wire.reset();
        } else {
            drop(client);
        }
        wait_for_close.recv_timeout(patience()).expect("the backend need not work for nobody");
    }
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 2.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
    scrape.expect("tidegate_request_duration_seconds_count", &[], 0.0);
    let v1 = &tidegate.status()["backends"][0];
    assert_eq!((v1["requests_total"].as_u64(), v1["failures_total"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn a_client_that_goes_away_before_its_request_is_whole_says_nothing_about_the_backend() {
    let (seen, wait_for_request) = mpsc::channel();
    let backend = Backend::scripted(move |mut peer| {
        if peer.head().is_some() {
            seen.send(()).unwrap();
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    wait_for_request.recv_timeout(patience()).unwrap();
    drop(client);
    tidegate.wait_for_outcome("client_abort", 1);
    tidegate.scrape().expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn a_body_that_is_not_chunks_is_the_clients_fault() {
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n");
    let status = client.try_response_to("POST").map(|response| response.status);
    assert!(matches!(status, None | Some(400)), "{status:?}");
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn after_a_failure_the_next_request_is_served() {
    let backend = Backend::answering(|seen| match seen.target() {
        "/bad" => b"nonsense\r\n\r\n".to_vec(),
        _ => reply("200 OK", &[], "fine"),
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..10 {
        assert_eq!(client.get("/bad").status, 502);
        assert_eq!(client.get("/good").text(), "fine");
    }
    let scrape = eventually(|| tidegate.scrape(), |s| s.sum("tidegate_requests_in_flight", &[]) == 0.0);
    scrape.expect("tidegate_requests_total", &[("status", "reset")], 10.0);
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], 10.0);
}

#[test]
fn an_error_of_the_backend_is_passed_on_and_counted_as_its_own() {
    let backend = Backend::answering(|_| reply("503 Service Unavailable", &[("Retry-After", "1")], "mine"));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let response = exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((response.status, response.text().as_str()), (503, "mine"));
    assert_eq!((response.fields("retry-after"), response.fields("proxy-status").len()), (vec!["1"], 0));
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("status", "5xx")], 1.0);
    scrape.expect("tidegate_local_replies_total", &[], 0.0);
}
