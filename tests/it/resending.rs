//! What is sent again when a request is tried again: bodies, over HTTP/1.1 and HTTP/2, with TLS, and
//! gRPC calls.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
};

use http::Response;
use http_body_util::BodyExt;

use crate::{
    h2_backends::{Reject, rejecting},
    nginx::Nginx,
    retry::{REQUESTS, breaking, expect_attempts, expect_retries, post, put, start, unavailable, web},
    support::{
        Backend, H2, HyperBackend, Limits, Tidegate,
        certificates::{Authority, Files},
        client::{AnyBody, empty, full, h2_request},
        eventually_is, exchange,
        external::program,
        get, patience, reply, runtime,
    },
};

#[test]
fn a_body_is_kept_and_sent_again() {
    let body: String = (0..5000).map(|i| format!("{i} ")).collect();
    let chunked = "PUT / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                   5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-Sum: 11\r\n\r\n";
    for (request, whole) in [(put(&body), body.as_str()), (chunked.to_owned(), "hello world")] {
        for bad in [unavailable(), breaking()] {
            let good = Backend::named("good");
            let tidegate = start(&[bad.address, good.address], "");
            assert_eq!(exchange(tidegate.address(), &request).text(), "good");
            let (first, second) = (bad.only_request(), good.only_request());
            assert_eq!(String::from_utf8(second.body.clone()).unwrap(), whole);
            assert_eq!(
                (&first.head, &first.body, &first.trailers),
                (&second.head, &second.body, &second.trailers)
            );
            assert_eq!(second.trailers.is_empty(), request != chunked);
            expect_retries(&tidegate, &[("success", 1.0)]);
        }
    }
}

#[test]
fn a_body_that_is_still_coming_is_sent_from_its_beginning_and_goes_on() {
    let bad = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            assert_eq!(peer.wire.read_length(5), b"half!");
            peer.send(reply("503 Service Unavailable", &[], "bad"));
            peer.wait_for_end();
        }
    });
    let (seen, wait_for_head) = mpsc::channel();
    let good = Backend::scripted(move |mut peer| {
        if peer.head().is_some() {
            assert_eq!(peer.wire.read_length(5), b"half!");
            seen.send(()).unwrap();
            assert_eq!(peer.wire.read_length(5), b"rest!");
            peer.send(reply("200 OK", &[], "good"));
        }
    });
    let tidegate = start(&[bad.address, good.address], "");
    let mut client = tidegate.client();
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf!");
    wait_for_head.recv_timeout(patience()).unwrap();
    client.send("rest!");
    assert_eq!(client.response().text(), "good");
    expect_retries(&tidegate, &[("success", 1.0)]);
}

#[test]
fn over_http_2_as_well() {
    let bad = HyperBackend::serving(Limits::default(), |_| async {
        Response::builder().status(503).body(full("bad")).unwrap()
    });
    let good = HyperBackend::answering(Limits::default(), |seen| Response::new(full(seen.body.clone())));
    let tidegate = h2c(&[bad.address, good.address], "");
    let mut client = tidegate.client();
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf!");
    eventually_is(1, || good.connections());
    client.send("rest!");
    assert_eq!(client.response().text(), "half!rest!");
    expect_retries(&tidegate, &[("success", 1.0)]);
}

#[test]
fn a_body_beyond_the_bound_is_not_kept() {
    let body = "x".repeat(2000);
    let chunked = format!(
        "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n{0}\r\n3e8\r\n{0}\r\n0\r\n\r\n",
        &body[..1000]
    );
    for request in [put(&body), chunked] {
        let (bad, good) = (unavailable(), Backend::named("good"));
        let tidegate = start(&[bad.address, good.address], "max_body = '1999B'");
        let response = exchange(tidegate.address(), &request);
        assert_eq!((response.status, response.text().as_str()), (503, "bad"));
        assert_eq!((bad.only_request().body.len(), good.count()), (2000, 0));
        expect_retries(&tidegate, &[("body_too_large", 1.0)]);
    }
    let (bad, good) = (unavailable(), Backend::named("good"));
    let tidegate = start(&[bad.address, good.address], "max_body = '2000B'");
    assert_eq!(exchange(tidegate.address(), put(&body)).text(), "good");
}

#[test]
fn many_clients_see_no_failure_while_one_of_two_endpoints_fails_in_every_way() {
    let count = AtomicUsize::new(0);
    let bad = Backend::scripted(move |mut peer| {
        while peer.request().is_some() {
            match count.fetch_add(1, SeqCst) % 3 {
                0 => _ = peer.send(reply("502 Bad Gateway", &[], "bad")),
                1 => return peer.reset(),
                _ => return,
            }
        }
    });
    let good = Backend::named("good");
    let toml = web(&[bad.address, good.address], "budget = { percent = 100 }").workers(2);
    let tidegate = Tidegate::start(toml);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = tidegate.client();
                for i in 0..100 {
                    client.send(if i % 2 == 0 { put("hello") } else { put("") });
                    let response = client.response();
                    if response.text() != "good" {
                        wrong.lock().unwrap().push(response);
                    }
                }
            });
        }
    });
    assert!(wrong.lock().unwrap().is_empty(), "{wrong:?}");
    assert!(bad.count() > 0);
    assert!(good.requests().iter().all(|seen| [&b""[..], b"hello"].contains(&&seen.body[..])));
}

fn h2c(endpoints: &[SocketAddr], retry: &str) -> Tidegate {
    Tidegate::start(web(endpoints, retry).to_string().replace("http://", "h2c://"))
}

#[test]
fn a_stream_that_is_refused_goes_to_another_endpoint_whatever_its_method() {
    let refusing = rejecting(Reject::Refuse);
    let good = HyperBackend::answering(Limits::default(), |seen| Response::new(full(seen.body.clone())));
    let tidegate = h2c(&[refusing.address, good.address], "on = ['refused-stream']");
    // By itself, only what has no body goes to another stream.
    assert_eq!(exchange(tidegate.address(), post("hello")).text(), "hello");
    assert_eq!(refusing.requests.load(SeqCst), 1);
    expect_retries(&tidegate, &[("success", 1.0)]);
    expect_attempts(&tidegate, &[("reset", 1.0), ("2xx", 1.0)]);
}

#[test]
fn http_2_on_both_sides_is_tried_again_as_well() {
    let broken = rejecting(Reject::Break);
    let good = HyperBackend::answering(Limits::default(), |seen| Response::new(full(seen.body.clone())));
    let tidegate = h2c(&[broken.address, good.address], "");
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let request = h2_request("PUT", "/").body(full("hello")).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    });
    assert_eq!(broken.requests.load(SeqCst), 1);
    expect_retries(&tidegate, &[("success", 1.0)]);
    let parts = &good.requests()[0].head;
    assert_eq!((parts.method.as_str(), parts.uri.authority().unwrap().as_str()), ("PUT", "web.test"));
}

#[test]
fn a_failure_over_http_2_leaves_its_connection_to_others() {
    let bad = HyperBackend::serving(Limits::default(), |_| async {
        Response::builder().status(503).body(full("x".repeat(1_000_000))).unwrap()
    });
    let good = HyperBackend::serving(Limits::default(), |_| async { Response::new(full("good")) });
    let tidegate = h2c(&[bad.address, good.address], "");
    let mut client = tidegate.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "good");
    }
    assert_eq!(bad.connections(), 1);
    tidegate.wait_until_idle().expect(REQUESTS, &[("status", "2xx")], 10.0);
}

/// Answers calls with a status, in the head.
fn calls(status: &'static str) -> HyperBackend {
    HyperBackend::serving(Limits::default(), move |_| async move {
        let response = Response::builder().header("content-type", "application/grpc");
        response.header("grpc-status", status).body(empty()).unwrap()
    })
}

fn call(address: SocketAddr) -> String {
    let client = H2::connect(address);
    runtime().block_on(async {
        let request = h2_request("POST", "/").header("content-type", "application/grpc");
        let request: http::Request<AnyBody> = request.body(full("question")).unwrap();
        let response = client.send(request).await.unwrap();
        response.headers()["grpc-status"].to_str().unwrap().to_owned()
    })
}

#[test]
fn calls_that_are_answered_unavailable_are_made_again_if_that_is_asked_for() {
    for (answer, retry, status, results) in [
        ("14", "on = ['unavailable']", "0", &[("success", 1.0)][..]),
        ("14", "", "14", &[]),
        ("13", "on = ['unavailable']", "13", &[]),
    ] {
        let (bad, good) = (calls(answer), calls("0"));
        let tidegate = h2c(&[bad.address, good.address], retry);
        assert_eq!(call(tidegate.address()), status, "{answer} {retry}");
        expect_retries(&tidegate, results);
        tidegate.wait_until_idle().expect(REQUESTS, &[("status", "grpc_failure")], 1.0);
    }
}

#[test]
fn failures_under_tls_are_tried_again() {
    let Some(nginx) = program("nginx") else { return };
    let (authority, files) = (Authority::new("backends"), Files::new());
    files.pair("nginx", &authority.issue(&["127.0.0.1"]));
    let ca = files.write("ca.pem", &authority.pem);
    let [certificate, key] = ["nginx.pem", "nginx.key"].map(|name| files.path(name));
    let lines = format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display());
    let failing = format!("{lines} if ($request_method = GET) {{ return 503; }}");
    let bad = Nginx::serve(&nginx, "ssl", &failing, "bad");
    let good = Nginx::serve(&nginx, "ssl", &lines, "good");
    // Speaks no TLS.
    let plain = Backend::named("plain");
    for (bad, status) in [(bad.address, "5xx"), (plain.address, "connect_failure")] {
        let toml =
            web(&[bad, good.address], "").table("backends.v1.tls", &format!("ca = '{}'", ca.display()));
        let tidegate = Tidegate::start(toml.to_string().replace("http://", "https://"));
        assert_eq!(get(tidegate.address(), "/").text(), "good");
        expect_attempts(&tidegate, &[(status, 1.0), ("2xx", 1.0)]);
    }
}
