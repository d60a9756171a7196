//! HTTP/2 with prior knowledge, on the same port as HTTP/1.1.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Version, header};
use http_body_util::BodyExt;
use tidegate::clock;

use crate::support::{
    Backend, H2, Tidegate, Web,
    client::{Chunks, empty, full, h2_request},
    eventually, get, patience, reply, runtime,
};

#[test]
fn many_streams_share_a_connection() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], seen.target()));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let exchanges = (0..300).map(|i| {
            let client = client.clone();
            async move { (i, client.get(&format!("/{i}")).await.unwrap()) }
        });
        let tasks: Vec<_> = exchanges.map(Box::pin).collect();
        for task in all(tasks).await {
            let (i, (status, body)) = task;
            assert_eq!((status, body), (200, Bytes::from(format!("/{i}"))));
        }
    });
    // The same port speaks HTTP/1.1.
    assert_eq!(get(tidegate.address(), "/h1").text(), "/h1");
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], 301.0);
    scrape.expect("tidegate_connections_accepted_total", &[], 2.0);
    for seen in backend.requests().iter().filter(|seen| seen.target() != "/h1") {
        assert_eq!((seen.fields("host"), seen.fields("via")), (vec!["web.test"], vec!["2 tidegate"]));
        assert_eq!(seen.fields("transfer-encoding").len(), 0, "no body was sent: {}", seen.head);
    }
}

/// Runs futures at the same time, and returns what they do in their order.
async fn all<F: Future + Unpin>(mut futures: Vec<F>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(cx)
            {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[test]
fn large_bodies_pass_in_both_directions() {
    const LARGE: usize = 4 * 1024 * 1024;
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let body: Bytes = (0..LARGE).map(|i| (i / 1021) as u8).collect();
    runtime().block_on(async {
        let request = h2_request("POST", "/").body(full(body.clone())).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
        assert!(response.into_body().collect().await.unwrap().to_bytes() == body);
    });
    assert_eq!(backend.only_request().fields("content-length"), [LARGE.to_string()]);
}

#[test]
fn a_body_in_pieces_with_empty_ones_between_stays_whole() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let chunks = ["a", "", "b", "", "", "c", ""].map(Bytes::from).into();
    let body = Chunks { chunks, ends: true }.boxed();
    runtime().block_on(async {
        let response = client.send(h2_request("POST", "/").body(body).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "abc");
    });
    assert_eq!(backend.only_request().fields("transfer-encoding"), ["chunked"]);
}

#[test]
fn fields_of_an_http_1_connection_do_not_get_onto_an_http_2_one() {
    let backend = Backend::answering(|_| {
        let fields = [
            ("Connection", "X-Gone, keep-alive"),
            ("Keep-Alive", "timeout=5"),
            ("X-Gone", "1"),
            ("X-Kept", "1"),
            ("Upgrade", "h2c"),
        ];
        reply("200 OK", &fields, "")
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let response = client.send(h2_request("GET", "/").body(empty()).unwrap()).await.unwrap();
        let fields = response.headers();
        for gone in ["connection", "keep-alive", "x-gone", "upgrade", "transfer-encoding"] {
            assert!(!fields.contains_key(gone), "{fields:?}");
        }
        assert_eq!(fields["x-kept"], "1");
    });
}

#[test]
fn cookies_in_several_fields_reach_the_backend_in_one() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let request = h2_request("GET", "/").header(header::COOKIE, "a=b").header(header::COOKIE, "c=d");
    runtime().block_on(client.send(request.body(empty()).unwrap())).unwrap();
    assert_eq!(backend.only_request().fields("cookie"), ["a=b; c=d"]);
}

#[test]
fn a_target_with_a_user_name_is_refused() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let request = http::Request::builder().uri("http://user@web.test/").body(empty()).unwrap();
    // Either as a bad request, or as no HTTP/2 at all.
    if let Ok(response) = runtime().block_on(client.send(request)) {
        assert_eq!(response.status(), 400);
    }
    assert_eq!(backend.count(), 0);
}

#[test]
fn trailers_pass_from_http_1_to_http_2() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n");
            peer.send("2\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n");
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let request = h2_request("POST", "/").header(header::TE, "trailers").body(full("x")).unwrap();
    runtime().block_on(async {
        let response = client.send(request).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "hi");
    });
    assert_eq!(backend.only_request().fields("te"), ["trailers"]);
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn a_stream_that_is_reset_is_a_client_that_went_away() {
    let (seen, wait_for_request) = mpsc::channel();
    let (gone, wait_for_close) = mpsc::channel();
    let backend = Backend::scripted(move |mut peer| {
        while let Some(request) = peer.request() {
            if request.target() == "/other" {
                peer.send(reply("200 OK", &[], "fine"));
                continue;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            seen.send(()).unwrap();
            peer.wait_for_end();
            gone.send(()).unwrap();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let response = client.send(h2_request("GET", "/").body(empty()).unwrap()).await.unwrap();
        wait_for_request.recv_timeout(patience()).unwrap();
        drop(response);
        wait_for_close.recv_timeout(patience()).unwrap();
        assert_eq!(client.get("/other").await.unwrap(), (200, "fine".into()), "the connection goes on");
    });
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 2.0);
}

#[test]
fn a_backend_that_breaks_off_resets_only_its_stream() {
    let backend = Backend::answering(|seen| match seen.target() {
        "/bad" => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf".to_vec(),
        _ => reply("200 OK", &[], "fine"),
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        for _ in 0..5 {
            assert!(client.get("/bad").await.is_err());
            assert_eq!(client.get("/good").await.unwrap().1, "fine");
        }
    });
    tidegate.wait_for_outcome("reset", 5);
    tidegate.wait_for_outcome("2xx", 5);
}

#[test]
fn an_upload_that_stops_is_answered_and_not_the_backends_failure() {
    let backend = Backend::scripted(|mut peer| {
        peer.request();
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "idle = '100ms'"));
    let client = H2::connect(tidegate.address());
    let body = Chunks { chunks: [Bytes::from_static(b"half")].into(), ends: false }.boxed();
    let response = runtime().block_on(client.send(h2_request("POST", "/").body(body).unwrap())).unwrap();
    assert_eq!(response.status(), 408);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 1.0);
}

#[test]
fn an_idle_connection_is_told_to_go() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '100ms'"));
    let client = H2::connect(tidegate.address());
    assert_eq!(runtime().block_on(client.get("/")).unwrap().0, 200);
    eventually(|| client.is_closed(), |closed| *closed);
    eventually(|| tidegate.scrape().sum("tidegate_connections_open", &[]), |open| *open == 0.0);
}

#[test]
fn a_drain_lets_streams_finish_and_then_closes() {
    let (seen, wait_for_request) = mpsc::channel();
    let (answer, wait_for_leave) = mpsc::channel::<()>();
    let wait_for_leave = std::sync::Mutex::new(wait_for_leave);
    let backend = Backend::answering(move |_| {
        seen.send(()).unwrap();
        wait_for_leave.lock().unwrap().recv().unwrap();
        reply("200 OK", &[], "late")
    });
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    let begin: Instant = clock::monotonic();
    runtime().block_on(async {
        let mut late = Box::pin(client.get("/"));
        // Polled once so that it is sent; the rest of it comes below.
        let sent = tokio::time::timeout(Duration::from_millis(20), &mut late).await;
        assert!(sent.is_err());
        wait_for_request.recv_timeout(patience()).unwrap();
        tidegate.drain(Duration::ZERO);
        eventually(|| tidegate.ask("GET", "/readyz", "").status, |status| *status == 503);
        answer.send(()).unwrap();
        assert_eq!(late.await.unwrap(), (200, "late".into()));
    });
    tidegate.wait_for_end();
    assert!(begin.elapsed() < patience());
    eventually(|| client.is_closed(), |closed| *closed);
}
