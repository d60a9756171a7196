//! HTTP/1.1 and 1.0 on both sides: framing, reuse, streaming.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::support::{Backend, Raw, Tidegate, Web, exchange, get, reply};

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "v1");
    }
    assert_eq!((backend.count(), backend.connections()), (50, 1));
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_connections_accepted_total", &[], 1.0);
    scrape.expect("tidegate_connections_open", &[], 1.0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], seen.target()));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    let requests: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    assert!(client.send(requests));
    for i in 0..20 {
        assert_eq!(client.response().text(), format!("/{i}"));
    }
    assert_eq!(backend.count(), 20);
}

#[test]
fn responses_without_a_body_do_not_hold_up_the_next() {
    let backend = Backend::answering(|seen| match (seen.method(), seen.target()) {
        ("HEAD", _) => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec(),
        (_, "/204") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        (_, "/304") => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"e\"\r\n\r\n".to_vec(),
        _ => reply("200 OK", &[], ""),
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = client.response_to("HEAD");
    assert_eq!((head.status, head.fields("content-length")), (200, vec!["5"]));
    let none = client.get("/204");
    assert_eq!((none.status, none.fields("content-length").len()), (204, 0), "{none:?}");
    let unchanged = client.get("/304");
    assert_eq!((unchanged.status, unchanged.fields("etag")), (304, vec!["\"e\""]));
    assert_eq!(client.get("/empty").status, 200);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn chunks_pass_in_both_directions_with_their_trailers() {
    let backend = Backend::scripted(|mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
            peer.send("3;a=b\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n");
        client.send("Trailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n");
        let response = client.response();
        assert_eq!(response.text(), "abcdefg");
        assert_eq!(response.trailers.to_lowercase(), "x-sum: 7\n");
    }
    for seen in backend.requests() {
        assert_eq!(seen.body, b"hi");
        assert_eq!(seen.trailers.to_lowercase(), "x-sum: 2\n");
        assert_eq!(seen.fields("transfer-encoding"), ["chunked"]);
    }
}

#[test]
fn a_body_of_known_length_keeps_its_length() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let body = exchange(tidegate.address(), "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((body.text().as_str(), body.fields("content-length")), ("hello", vec!["5"]));
    assert_eq!(backend.only_request().fields("content-length"), ["5"]);
    assert_eq!(backend.only_request().fields("transfer-encoding").len(), 0);
}

#[test]
fn a_body_that_ends_with_the_connection_is_passed_on_whole() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "until the end"));
        assert!(response.head.starts_with("HTTP/1.1 "), "the version is our own: {}", response.head);
    }
    tidegate.wait_for_outcome("2xx", 2);
}

#[test]
fn a_client_of_http_1_0_is_understood() {
    let backend = Backend::scripted(|mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    // Without a Host, without chunks, and the end of the connection is the end of the body.
    let response = exchange(tidegate.address(), "GET / HTTP/1.0\r\n\r\n");
    assert_eq!((response.status, response.text().as_str()), (200, "abc"));
    assert_eq!(response.fields("transfer-encoding").len(), 0);
    let seen = backend.only_request();
    assert!(seen.head.starts_with("GET / HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.fields("host"), [backend.address.to_string()]);
}

#[test]
fn a_client_of_http_1_0_may_ask_for_the_connection_to_stay() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.response().text(), "v1");
    }
}

#[test]
fn a_client_that_waits_for_permission_to_send_gets_it() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("hi");
    assert_eq!(client.response().text(), "hi");
    assert_eq!(backend.only_request().fields("expect").len(), 0);
}

#[test]
fn interim_responses_of_a_backend_do_not_disturb_the_final_one() {
    let backend = Backend::scripted(|mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            peer.send(reply("200 OK", &[], "final"));
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..2 {
        assert_eq!(client.get("/").text(), "final");
    }
    assert_eq!(backend.connections(), 1);
}

const LARGE: usize = 16 * 1024 * 1024;

#[test]
fn large_bodies_stream_in_both_directions() {
    let backend = Backend::scripted(|mut peer| {
        while peer.head().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
            // As it comes, so both directions are under way at the same time.
            for _ in 0..LARGE / 65536 {
                let part = peer.wire.read_length(65536);
                peer.send(&part);
            }
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    let mut sending =
        Raw { wire: crate::support::wire::Wire::new(client.wire.socket().try_clone().unwrap()) };
    let body: Vec<u8> = (0..LARGE).map(|i| (i / 1021) as u8).collect();
    let sent = body.clone();
    let sender = thread::spawn(move || {
        assert!(sending.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n")));
        assert!(sending.send(&sent));
    });
    let response = client.response();
    sender.join().unwrap();
    assert!(response.whole && response.body == body, "{} bytes came back", response.body.len());
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_slow_reader_stops_the_backend_and_not_the_memory() {
    const BODY: usize = 128 * 1024 * 1024;
    let accepted = Arc::new(AtomicUsize::new(0));
    let (stalled, wait_for_stall) = mpsc::channel();
    let backend = {
        let accepted = Arc::clone(&accepted);
        Backend::scripted(move |mut peer| {
            use std::io::Write;
            if peer.request().is_none() {
                return;
            }
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n"));
            let part = vec![7; 65536];
            let mut socket = peer.wire.socket();
            // If the proxy takes nothing for so long, it is because it waits for its client.
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut left = BODY;
            while left > 0 {
                match socket.write(&part[..left.min(65536)]) {
                    Ok(n) => left -= n,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        stalled.send(()).unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
                accepted.store(BODY - left, SeqCst);
            }
        })
    };
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for_stall.recv().unwrap();
    // The kernel keeps up to 4 MiB to be sent and 32 MiB received for each of the two connections.
    let taken = accepted.load(SeqCst);
    assert!(taken < 80 * 1024 * 1024, "{taken} bytes were taken for a client that read none");
    assert_eq!(client.wire.read_head().unwrap().split(' ').nth(1), Some("200"));
    assert_eq!(client.wire.skip(BODY), BODY);
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_backend_that_closes_after_each_response_is_no_failure() {
    let backend = Backend::answering(|_| reply("200 OK", &[("Connection", "close")], "bye"));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..20 {
        let response = client.get("/");
        assert_eq!((response.status, response.text().as_str()), (200, "bye"));
        assert_eq!(response.fields("connection").len(), 0, "the client's connection is another");
    }
    assert_eq!(backend.connections(), 20);
    tidegate.wait_for_outcome("2xx", 20);
}

#[test]
fn a_body_after_the_response_to_head_is_not_the_next_response() {
    let backend = Backend::scripted(|mut peer| {
        while let Some(seen) = peer.request() {
            if seen.method() == "HEAD" {
                // All at once: the false response lies ready before the next request.
                let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{poison}", poison.len()));
            } else {
                peer.send(reply("200 OK", &[], "true"));
            }
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response_to("HEAD").status, 200);
    assert_eq!(client.get("/").text(), "true");
}

#[test]
fn an_early_response_reaches_a_client_that_is_still_sending() {
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.send(reply("413 Content Too Large", &[("Connection", "close")], "too much"));
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n");
    client.send(vec![0; 100_000]);
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "too much"));
    // What is left of the body must not be taken for a request.
    client.send("GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
    client.wire.wait_for_end();
    assert_eq!(get(tidegate.address(), "/").status, 413);
    assert_eq!(backend.requests().len(), 0);
    tidegate.wait_for_outcome("4xx", 2);
}

#[test]
fn a_body_that_no_backend_read_is_not_the_next_request() {
    let refusing = crate::support::Refusing::new();
    let tidegate = Tidegate::start(Web::new(refusing.address));
    let mut client = tidegate.client();
    let body = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.response().status, 502);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    // Either the connection is closed, or the body was read and thrown away.
    let next = client.try_response_to("GET").map(|response| response.status);
    assert!(matches!(next, None | Some(502)), "{next:?}");
    let answered = if next.is_some() { 2.0 } else { 1.0 };
    let reason = [("reason", "connect_failure")];
    tidegate.scrape().expect("tidegate_local_replies_total", &reason, answered);
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_refused() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 502);
    tidegate.wait_for_outcome("reset", 1);
    // The client's connection has not become anything else.
    assert_eq!(client.get("/").status, 502);
}

#[test]
fn heads_beyond_the_limits_are_refused_and_those_below_are_not() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let with = |target: &str, fields: &str| {
        exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).status
    };
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect::<String>();
    assert_eq!(with(&format!("/{}", "a".repeat(16_000)), ""), 200);
    assert_eq!(with("/", &format!("X-Long: {}\r\n", "a".repeat(16_000))), 200);
    assert_eq!(with("/", &fields(90)), 200);
    assert_eq!(with("/", &fields(1000)), 431);
    assert_eq!(with("/", &format!("X-Long: {}\r\n", "a".repeat(70_000))), 431);
    let long = with(&format!("/{}", "a".repeat(65_600)), "");
    assert!(long == 414 || long == 431, "{long}");
}
