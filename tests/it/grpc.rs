//! gRPC calls on their way through, and what becomes of those that fail: a failure inside an HTTP 200
//! is one all the same.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;

use crate::support::{
    H2, HyperBackend, Limits, Refusing, Tidegate, Web,
    client::{AnyBody, Chunks, empty, full, h2_request},
    eventually,
    python::{Server, python, run_client},
    runtime,
};

const PEER: &str = "tests/peers/grpc_peer.py";

/// A backend whose calls end with what the path says: in the trailers, or in the head.
fn ending() -> HyperBackend {
    HyperBackend::serving(Limits::default(), |request| async move {
        let path = request.uri().path().to_owned();
        let response = Response::builder().header("content-type", "application/grpc");
        match path.split('/').nth(1).unwrap() {
            "head" => response.header("grpc-status", last(&path)).body(empty()),
            "trailers" => response.body(with_trailers(Some(("grpc-status", last(&path))))),
            "none" => response.body(with_trailers(None)),
            "status" => response.status(last(&path).parse::<u16>().unwrap()).body(empty()),
            "timeout" => {
                let left = request.headers().get("grpc-timeout").map(|left| left.to_str().unwrap());
                response.header("x-left", left.unwrap_or("none")).header("grpc-status", "0").body(empty())
            }
            "begun" => response.body(Chunks { chunks: [Bytes::from("a")].into(), ends: false }.boxed()),
            _ => std::future::pending().await,
        }
        .unwrap()
    })
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn with_trailers(trailer: Option<(&'static str, &str)>) -> AnyBody {
    let trailers = trailer.map(|(name, value)| {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, value.parse().unwrap());
        Ok(trailers)
    });
    full("message").with_trailers(std::future::ready(trailers)).boxed()
}

/// A whole answer to a call: HTTP status, head, body, trailers.
type Answer = (u16, HeaderMap, Bytes, HeaderMap);

fn call(address: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Answer {
    let client = H2::connect(address);
    let mut request =
        h2_request("POST", path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    runtime().block_on(async {
        let response = client.send(request.body(full("question")).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        (head.status.as_u16(), head.headers, body.to_bytes(), trailers)
    })
}

#[test]
fn calls_are_judged_by_their_status() {
    let backend = ending();
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let paths = [
        "/trailers/0",
        "/trailers/5",
        "/trailers/13",
        "/head/14",
        "/head/7",
        "/none/",
        "/status/404",
        "/status/503",
    ];
    for path in paths {
        let (_, head, _, trailers) = call(tidegate.address(), path, &[]);
        if path.starts_with("/trailers") {
            assert_eq!(trailers["grpc-status"], last(path));
        } else if path.starts_with("/head") {
            assert_eq!(head["grpc-status"], last(path));
        }
    }
    let scrape = tidegate.wait_until_idle();
    for (status, count) in [("2xx", 3.0), ("grpc_failure", 3.0), ("4xx", 1.0), ("5xx", 1.0)] {
        scrape.expect("tidegate_requests_total", &[("status", status)], count);
    }
    scrape.expect("tidegate_request_duration_seconds_count", &[], 8.0);
}

#[test]
fn a_status_means_nothing_where_it_is_not_grpc() {
    let backend = ending();
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    runtime().block_on(async {
        let client = H2::connect(tidegate.address());
        assert_eq!(client.get("/head/13").await.unwrap().0, 200);
    });
    tidegate.wait_for_outcome("2xx", 1);
}

#[test]
fn the_time_that_is_left_is_passed_on() {
    let backend = ending();
    let web = Web::h2c(backend.address).table("timeouts", "grpc_max = '10s'");
    let tidegate = Tidegate::start(web);
    let left = |timeout: &[(&str, &str)]| call(tidegate.address(), "/timeout", timeout).1["x-left"].clone();
    assert_eq!(left(&[]), "none");
    let nanos = |text: http::HeaderValue| {
        let text = text.to_str().unwrap().to_owned();
        let (digits, unit) = text.split_at(text.len() - 1);
        let unit = ["n", "u", "m", "S"].iter().position(|u| *u == unit).unwrap();
        Duration::from_nanos(digits.parse::<u64>().unwrap() * 1000u64.pow(unit as u32))
    };
    let five = nanos(left(&[("grpc-timeout", "5S")]));
    assert!(five < Duration::from_secs(5) && five > Duration::from_secs(2), "{five:?}");
    let capped = nanos(left(&[("grpc-timeout", "2H")]));
    assert!(capped < Duration::from_secs(10) && capped > Duration::from_secs(5), "{capped:?}");
    assert_eq!(left(&[("grpc-timeout", "soon")]), "soon");
}

#[test]
fn a_call_ends_at_its_deadline_in_grpcs_own_words() {
    let backend = ending();
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let timeout = [("grpc-timeout", "100m")];
    let (status, head, body, _) = call(tidegate.address(), "/never", &timeout);
    assert_eq!((status, &head["grpc-status"], body.len()), (200, &"4".parse().unwrap(), 0));
    // With a response that has begun, at its end.
    let (status, head, body, trailers) = call(tidegate.address(), "/begun", &timeout);
    assert_eq!((status, head.get("grpc-status"), &body[..]), (200, None, &b"a"[..]));
    assert_eq!(trailers["grpc-status"], "4");
    tidegate.wait_for_outcome("timeout", 2);
}

#[test]
fn local_replies_are_what_a_grpc_client_understands() {
    let refusing = Refusing::new();
    let tidegate = Tidegate::start(Web::h2c(refusing.address).table("timeouts", "connect = '5s'"));
    let (status, head, body, _) = call(tidegate.address(), "/", &[]);
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(
        (&head["grpc-status"], &head["content-type"]),
        (&"14".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert_eq!(head["grpc-message"], "the backend takes no connection");
    assert_eq!(head["proxy-status"], "tidegate; error=connection_refused");
    // Others are told as ever.
    runtime().block_on(async {
        assert_eq!(H2::connect(tidegate.address()).get("/").await.unwrap().0, 502);
    });
}

fn timeouts(tidegate: &Tidegate) -> f64 {
    tidegate.scrape().sum("tidegate_requests_total", &[("status", "timeout")])
}

#[test]
fn a_client_that_gives_up_at_its_deadline_was_not_answered_in_time() {
    let backend = ending();
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let client = H2::connect(tidegate.address());
    // Within what a client's clock may differ, so it may give up whenever it likes.
    let request = h2_request("POST", "/never").header("grpc-timeout", "45m");
    let request = request.header("content-type", "application/grpc").body(empty()).unwrap();
    runtime().block_on(async {
        let sent = tokio::spawn(async move { client.send(request).await });
        tokio::task::yield_now().await;
        eventually(
            || tidegate.scrape().sum("tidegate_requests_in_flight", &[]) + timeouts(&tidegate),
            |n| *n == 1.0,
        );
        sent.abort();
    });
    tidegate.wait_for_outcome("timeout", 1);
}

#[test]
fn calls_of_every_shape_between_google_s_own_client_and_server() {
    let Some(python) = python("grpc") else { return };
    let server = Server::start(&python, PEER);
    let tidegate = Tidegate::start(Web::h2c(server.address));
    run_client(&python, PEER, &["client", &tidegate.address().to_string()]);
    let scrape = tidegate.wait_until_idle();
    // UNAVAILABLE, INTERNAL and UNIMPLEMENTED; NOT_FOUND is an answer. The call that hangs is ended by
    // whoever notices first: the server by its status, or one of the others.
    let count = |status| scrape.sum("tidegate_requests_total", &[("status", status)]);
    assert!(count("grpc_failure") >= 3.0 && count("grpc_failure") + count("timeout") == 4.0, "{scrape:#?}");
    scrape.expect("tidegate_requests_total", &[("status", "reset")], 0.0);
    scrape.expect("tidegate_requests_total", &[("status", "client_abort")], 0.0);
}

#[test]
fn google_s_own_client_understands_a_local_reply() {
    let Some(python) = python("grpc") else { return };
    let refusing = Refusing::new();
    let tidegate = Tidegate::start(Web::h2c(refusing.address));
    run_client(&python, PEER, &["failing", &tidegate.address().to_string(), "UNAVAILABLE"]);
}
