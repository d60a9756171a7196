//! A request's head, as text: method, target and perhaps a version, then a field to a line.
//! What is accepted leaves for the backend with one host, one id, our word on the client, and nothing
//! that belongs to one connection, whether a stranger has sent it or a trusted proxy. The same fields
//! come back as a response's, and as trailers.

#![no_main]

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, request::Parts};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use tidegate::{
    model::protocol::Protocol,
    net::timers::Timers,
    proxy::{
        client::{Client, Patience},
        fuzzing,
    },
    routing::{edge::Edge, snapshot::Endpoint},
};

const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
    "proxy-authenticate",
];
const PEER: [u8; 4] = [192, 0, 2, 1];
const PEER_TEXT: &[u8] = b"192.0.2.1";
/// What a request is called that draws a zero.
const NEW_ID: &str = "00000000-0000-4000-8000-000000000000";
/// What `Connection` cannot take away.
const KEPT: [&str; 4] = ["host", "content-length", "authorization", "cookie"];

fuzz_target!(|data: &[u8]| {
    let Some(parts) = head(data) else { return };
    check_response(&parts.headers);
    check_trailers(&parts.headers);
    for trusted in [false, true] {
        check_request(parts.clone(), trusted);
    }
});

fn check_response(before: &HeaderMap) {
    let mut response = Response::new(()).into_parts().0;
    response.headers = before.clone();
    fuzzing::prepare_response(&mut response);
    assert_clean(&response.headers, before);
    let once = response.headers.clone();
    fuzzing::prepare_response(&mut response);
    assert_eq!(response.headers, once);
}

fn check_trailers(before: &HeaderMap) {
    let mut after = before.clone();
    fuzzing::prepare_trailers(&mut after);
    assert_clean(&after, &HeaderMap::new());
    assert!(!KEPT.iter().any(|name| after.contains_key(*name)), "{after:?}");
}

fn check_request(mut parts: Parts, trusted: bool) {
    let before = parts.headers.clone();
    let networks = if trusted { vec![IpNet::from(IpAddr::from(PEER))] } else { Vec::new() };
    let id = HeaderName::from_static("x-request-id");
    let edge = Edge { trusted_proxies: networks, request_id: Some(id.clone()), ..Edge::default() };
    let Ok(authority) = fuzzing::accept(&mut parts, &edge).map(str::to_owned) else { return };
    assert!(!authority.contains(['@', '/', '?', '#', ',', ' ']), "{authority:?} is not a host");
    let patience = Patience { header: Duration::from_secs(1), idle: Duration::from_secs(1) };
    let deadline = Rc::new(Timers::default()).deadline();
    let client = Client::new((PEER, 40_000).into(), patience, Arc::new(edge), deadline, Rc::default());
    fuzzing::identify(&mut parts.headers, &client, 0);
    let given = parts.headers.get_all(&id).iter().cloned().collect::<Vec<_>>();
    assert!(given.len() == 1 && given[0].as_bytes().iter().all(u8::is_ascii_graphic), "{given:?}");
    assert!(given[0] == NEW_ID || trusted && before.get(&id) == Some(&given[0]), "{given:?}");

    let endpoint = Endpoint { host: "backend.example".to_owned(), port: 80, protocol: Protocol::Http1 };
    let http2 = parts.version == Version::HTTP_2;
    fuzzing::prepare_request(&mut parts, &client, &endpoint);
    let only = |name| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    let host = if authority.is_empty() { "backend.example:80" } else { &authority };
    assert_eq!(only("host"), Some(host.as_bytes()));
    let chain = only("x-forwarded-for").expect("there is one");
    if trusted {
        assert!(chain == PEER_TEXT || chain.ends_with(&[b", ", PEER_TEXT].concat()), "{chain:?}");
        assert!(parts.headers.contains_key("x-forwarded-host"));
        assert!(parts.headers.contains_key("x-forwarded-proto"));
    } else {
        assert_eq!(chain, PEER_TEXT);
        assert_eq!(only("x-forwarded-host"), Some(host.as_bytes()));
        assert_eq!(only("x-forwarded-proto"), Some(&b"http"[..]));
        assert!(!parts.headers.contains_key("forwarded"));
    }
    assert_eq!((parts.uri.authority(), parts.uri.scheme()), (None, None));
    assert!(!http2 || parts.headers.get_all("cookie").iter().count() <= 1, "{:?}", parts.headers);
    let both = parts.headers.contains_key("content-length") && before.contains_key("transfer-encoding");
    assert!(!both, "a length beside a transfer coding");
    let aliases = |name: &HeaderName| {
        name.as_str().contains('_') && name.as_str().replace('_', "-").starts_with("x-forwarded-")
    };
    assert!(!parts.headers.keys().any(aliases), "{:?}", parts.headers);
    assert_clean(&parts.headers, &HeaderMap::new());
}

fn head(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|b| *b == b'\n');
    let mut first = lines.next()?.splitn(3, |b| *b == b' ');
    let mut parts = Request::builder().method(first.next()?).uri(first.next()?).body(()).ok()?.into_parts().0;
    parts.version = match first.next() {
        Some(b"HTTP/1.0") => Version::HTTP_10,
        Some(b"HTTP/2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    for line in lines {
        let mut field = line.splitn(2, |b| *b == b':');
        let name = HeaderName::from_bytes(field.next()?).ok()?;
        let value = HeaderValue::from_bytes(field.next()?.trim_ascii()).ok()?;
        parts.headers.try_append(name, value).ok()?;
    }
    Some(parts)
}

fn assert_clean(after: &HeaderMap, before: &HeaderMap) {
    assert!(!HOP_BY_HOP.iter().any(|name| after.contains_key(*name)), "{after:?}");
    assert!(
        after.get_all("te").iter().all(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")),
        "{after:?}"
    );
    for name in KEPT {
        assert!(before.get_all(name).iter().all(|value| after.get_all(name).iter().any(|v| v == value)));
    }
}
