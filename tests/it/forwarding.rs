//! Whose word is taken on who the client is, and what a request is called.

use crate::support::{Backend, Tidegate, Web, exchange};

const TRUSTING: &str = "trusted_proxies = ['127.0.0.0/8']\n";

#[test]
fn a_trusted_proxys_word_is_kept_and_extended() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener(TRUSTING));
    exchange(
        tidegate.address(),
        "GET / HTTP/1.1\r\nHost: inner.test\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 10.0.0.2\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\nForwarded: for=198.51.100.7;proto=https\r\n\r\n",
    );
    let seen = backend.only_request();
    assert_eq!(seen.fields("x-forwarded-for"), ["198.51.100.7, 10.0.0.2, 127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["shop.test"]);
    assert_eq!(seen.fields("forwarded"), ["for=198.51.100.7;proto=https"]);
    assert_eq!(seen.fields("host"), ["inner.test"]);
}

#[test]
fn what_a_trusted_proxy_does_not_say_is_said() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener(TRUSTING));
    exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let seen = backend.only_request();
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["a.test"]);
}

#[test]
fn an_underscore_does_not_get_past_what_a_hyphen_does_not() {
    let backend = Backend::named("v1");
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Proto: https\r\n\
                   Content_Length: 7\r\nMy_Own: 1\r\n\r\n";
    for (action, status, own) in [
        ("", 200, 1),
        ("headers_with_underscores_action = 'drop_header'\n", 200, 0),
        ("headers_with_underscores_action = 'reject_request'\n", 400, 0),
    ] {
        let before = backend.count();
        let tidegate = Tidegate::start(Web::new(backend.address).listener(action));
        assert_eq!(exchange(tidegate.address(), request).status, status, "{action}");
        for seen in &backend.requests()[before..] {
            assert_eq!(seen.fields("my_own").len(), own, "{action}");
            for alias in ["x_forwarded_for", "x-forwarded_proto", "content_length"] {
                assert_eq!(seen.fields(alias).len(), 0, "{action}: {alias}");
            }
        }
    }
}

#[test]
fn each_request_has_an_id_of_its_own_if_asked_for() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("request_id = {}\n"));
    let mut client = tidegate.client();
    client.get("/");
    client.send("GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: chosen\r\n\r\n");
    client.response();
    let ids: Vec<_> = backend.requests().iter().map(|seen| seen.fields("x-request-id").join("|")).collect();
    assert!(ids.iter().all(|id| id.len() == 36 && id != "chosen"), "{ids:?}");
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn a_trusted_proxys_id_is_kept_if_it_is_one() {
    let backend = Backend::named("v1");
    let keys = format!("{TRUSTING}request_id = {{ header = 'x-trace-id' }}\n");
    let tidegate = Tidegate::start(Web::new(backend.address).listener(&keys));
    for field in ["X-Trace-Id: given-1", "X-Trace-Id: a b", "X-Trace-Id: a\r\nX-Trace-Id: b"] {
        exchange(tidegate.address(), format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n"));
    }
    let ids: Vec<_> = backend.requests().iter().map(|seen| seen.fields("x-trace-id").join("|")).collect();
    assert_eq!((ids[0].as_str(), ids[1].len(), ids[2].len()), ("given-1", 36, 36), "{ids:?}");
}

#[test]
fn trace_context_passes_untouched() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nTraceparent: {parent}\r\nTracestate: a=b\r\n\r\n");
    exchange(tidegate.address(), head);
    let seen = backend.only_request();
    assert_eq!((seen.fields("traceparent"), seen.fields("tracestate")), (vec![parent], vec!["a=b"]));
    assert_eq!(seen.fields("x-request-id").len(), 0, "nobody asked for ids");
}
