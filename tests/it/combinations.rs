//! The same exchanges with HTTP/1.1 and HTTP/2 on either side: each is declared once and runs four
//! times.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::support::{
    H2, HyperBackend, Limits, Tidegate, Web,
    client::{AnyBody, Chunks, empty, full},
    hyper_backend::SeenWhole,
    runtime,
};

type Fields = &'static [(&'static str, &'static str)];

/// A message's body.
#[derive(Debug, Clone, Copy)]
enum Content {
    None,
    /// Of known length.
    Known(&'static str),
    /// Of unknown length, in chunks, with trailers.
    Chunks(&'static [&'static str], Fields),
}

impl Content {
    fn body(self) -> AnyBody {
        match self {
            Self::None => empty(),
            Self::Known(text) => full(text),
            Self::Chunks(chunks, trailers) => {
                let chunks = chunks.iter().map(|chunk| Bytes::from_static(chunk.as_bytes())).collect();
                let trailers = (!trailers.is_empty()).then(|| Ok(map(trailers)));
                Chunks { chunks, ends: true }.with_trailers(std::future::ready(trailers)).boxed()
            }
        }
    }
}

/// An exchange: what is sent, what is answered, and what of it arrives.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    method: &'static str,
    request: (Fields, Content),
    /// Fields that the backend sees, and what it sees of the body and the trailers.
    seen: (Fields, &'static str, Fields),
    response: (u16, Fields, Content),
    /// The same for the client.
    got: (Fields, &'static str, Fields),
    /// Fields that neither side sees.
    gone: &'static [&'static str],
}

const PLAIN: Exchange = Exchange {
    method: "GET",
    request: (&[], Content::None),
    seen: (&[], "", &[]),
    response: (200, &[], Content::None),
    got: (&[], "", &[]),
    gone: &[],
};

fn map(fields: Fields) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}

/// Runs an exchange in all four combinations.
#[track_caller]
fn check(exchange: Exchange) {
    for client in [Version::HTTP_11, Version::HTTP_2] {
        for backend in [Version::HTTP_11, Version::HTTP_2] {
            run(exchange, client, backend);
        }
    }
}

#[track_caller]
fn run(exchange: Exchange, client: Version, backend: Version) {
    let Exchange { method, request, seen, response, got, gone } = exchange;
    let way = format!("{client:?} to {backend:?}");
    let limits = Limits { http1: backend == Version::HTTP_11, ..Limits::default() };
    let served = HyperBackend::answering(limits, move |_| {
        let (status, fields, content) = response;
        let mut response = Response::builder().status(status).body(content.body()).unwrap();
        response.headers_mut().extend(map(fields));
        response
    });
    let web = if limits.http1 { Web::new(served.address) } else { Web::h2c(served.address) };
    let tidegate = Tidegate::start(web);
    // Twice, so that a connection that has been used is used again.
    for _ in 0..2 {
        let (fields, content) = request;
        let mut sent = Request::builder().method(method).body(content.body()).unwrap();
        sent.headers_mut().extend(map(fields));
        let (head, body, trailers) = runtime().block_on(send(tidegate.address(), client, sent));
        assert_eq!(head.status.as_u16(), response.0, "{way}");
        contains(&head.headers, got.0, &way);
        assert_eq!((&body[..], &trailers), (got.1.as_bytes(), &map(got.2)), "{way}");
        gone.iter().for_each(|gone| assert!(!head.headers.contains_key(*gone), "{way}: {gone}"));
    }
    let requests = served.requests();
    assert_eq!((requests.len(), served.connections()), (2, 1), "{way}");
    for SeenWhole { head, body, trailers } in requests {
        assert_eq!((head.method.as_str(), head.version), (method, backend), "{way}");
        contains(&head.headers, seen.0, &way);
        assert_eq!(&body[..], seen.1.as_bytes(), "{way}");
        assert_eq!(trailers.unwrap_or_default(), map(seen.2), "{way}");
        gone.iter().for_each(|gone| assert!(!head.headers.contains_key(*gone), "{way}: {gone}"));
        let host = head.uri.authority().map(ToString::to_string);
        let host = host.or_else(|| head.headers.get("host").map(|host| host.to_str().unwrap().to_owned()));
        assert_eq!(host.as_deref(), Some("web.test"), "{way}");
        assert_eq!(head.uri.path_and_query().unwrap(), "/a?b", "{way}");
        assert_eq!(head.headers["x-forwarded-host"], "web.test", "{way}");
        assert_eq!(head.headers.contains_key("host"), backend == Version::HTTP_11, "{way}");
    }
    tidegate.wait_until_idle();
}

#[track_caller]
fn contains(headers: &HeaderMap, fields: Fields, way: &str) {
    for (name, value) in fields {
        let values: Vec<_> = headers.get_all(*name).iter().collect();
        assert_eq!(values, [value], "{way}: {name}");
    }
}

async fn send(
    address: SocketAddr,
    version: Version,
    mut request: Request<AnyBody>,
) -> (http::response::Parts, Bytes, HeaderMap) {
    let response = if version == Version::HTTP_2 {
        *request.uri_mut() = "http://web.test/a?b".parse().unwrap();
        H2::connect(address).send(request).await.unwrap()
    } else {
        *request.uri_mut() = "/a?b".parse().unwrap();
        request.headers_mut().insert("host", HeaderValue::from_static("web.test"));
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    assert_eq!(response.version(), version);
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    (head, body.to_bytes(), trailers)
}

#[test]
fn requests_and_responses_without_a_body() {
    check(PLAIN);
    check(Exchange { method: "DELETE", response: (204, &[("x-a", "1")], Content::None), ..PLAIN });
    check(Exchange { method: "OPTIONS", response: (404, &[], Content::None), ..PLAIN });
}

#[test]
fn bodies_of_known_length_keep_it() {
    check(Exchange {
        method: "POST",
        request: (&[("x-a", "1")], Content::Known("hello")),
        seen: (&[("x-a", "1"), ("content-length", "5")], "hello", &[]),
        response: (201, &[("x-b", "2")], Content::Known("created")),
        got: (&[("x-b", "2"), ("content-length", "7")], "created", &[]),
        gone: &["transfer-encoding"],
    });
}

#[test]
fn bodies_of_unknown_length_come_with_their_trailers() {
    const TRAILERS: Fields = &[("x-sum", "7")];
    check(Exchange {
        method: "POST",
        request: (&[("trailer", "x-sum"), ("te", "trailers")], Content::Chunks(&["a", "bc"], TRAILERS)),
        seen: (&[("trailer", "x-sum"), ("te", "trailers")], "abc", TRAILERS),
        response: (200, &[("trailer", "x-sum")], Content::Chunks(&["de", "f"], TRAILERS)),
        got: (&[("trailer", "x-sum")], "def", TRAILERS),
        gone: &["content-length"],
    });
}

#[test]
fn trailers_cannot_say_what_belongs_into_a_head() {
    const TRAILERS: Fields = &[("x-sum", "7"), ("x-forwarded-for", "6.6.6.6"), ("location", "/else")];
    check(Exchange {
        method: "POST",
        request: (
            &[("trailer", "x-sum, x-forwarded-for, location"), ("te", "trailers")],
            Content::Chunks(&["a"], TRAILERS),
        ),
        seen: (&[], "a", &[("x-sum", "7")]),
        response: (
            200,
            &[("trailer", "x-sum, x-forwarded-for, location")],
            Content::Chunks(&["b"], TRAILERS),
        ),
        got: (&[], "b", &[("x-sum", "7")]),
        ..PLAIN
    });
}

#[test]
fn a_length_without_a_body_stays_where_there_is_none() {
    check(Exchange {
        method: "HEAD",
        response: (200, &[("content-length", "12")], Content::None),
        got: (&[("content-length", "12")], "", &[]),
        ..PLAIN
    });
    check(Exchange {
        response: (304, &[("etag", "\"a\"")], Content::None),
        got: (&[("etag", "\"a\"")], "", &[]),
        ..PLAIN
    });
}

#[test]
fn cookies_arrive_in_one_field() {
    check(Exchange {
        request: (&[("cookie", "a=1; b=2")], Content::None),
        seen: (&[("cookie", "a=1; b=2")], "", &[]),
        ..PLAIN
    });
    // Two fields, which only HTTP/2 may have.
    let two = Exchange {
        request: (&[("cookie", "a=1"), ("cookie", "b=2")], Content::None),
        seen: (&[("cookie", "a=1; b=2")], "", &[]),
        ..PLAIN
    };
    run(two, Version::HTTP_2, Version::HTTP_11);
    run(two, Version::HTTP_2, Version::HTTP_2);
}

#[test]
fn an_expectation_is_not_passed_on() {
    check(Exchange {
        method: "PUT",
        request: (&[("expect", "100-continue")], Content::Known("hello")),
        seen: (&[], "hello", &[]),
        gone: &["expect"],
        ..PLAIN
    });
}
