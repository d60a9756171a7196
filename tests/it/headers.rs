//! What changes in a head on its way through, and what is refused.

use crate::support::{Backend, Tidegate, Web, exchange, get, reply};

#[test]
fn fields_of_one_connection_stay_behind_in_both_directions() {
    let backend = Backend::answering(|_| {
        let fields = [
            ("Connection", "X-Reply, keep-alive"),
            ("Connection", "x-more"),
            ("Keep-Alive", "timeout=5"),
            ("X-Reply", "1"),
            ("X-More", "1"),
            ("X-Kept", "1"),
            ("Proxy-Authenticate", "Basic"),
            ("Upgrade", "h2c"),
        ];
        reply("200 OK", &fields, "")
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let response = exchange(
        tidegate.address(),
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: X-One, Upgrade\r\nX-One: 1\r\nConnection: x-two\r\n\
         X-Two: 2\r\nX-Kept: 3\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: keep-alive\r\n\
         Upgrade: h2c\r\nProxy-Authorization: secret\r\n\r\n",
    );
    let seen = backend.only_request();
    for gone in
        ["connection", "x-one", "x-two", "keep-alive", "proxy-connection", "upgrade", "proxy-authorization"]
    {
        assert_eq!(seen.fields(gone).len(), 0, "{gone} in {}", seen.head);
    }
    assert_eq!((seen.fields("x-kept"), seen.fields("te")), (vec!["3"], vec!["trailers"]));
    for gone in ["connection", "keep-alive", "x-reply", "x-more", "proxy-authenticate", "upgrade"] {
        assert_eq!(response.fields(gone).len(), 0, "{gone} in {}", response.head);
    }
    assert_eq!(response.fields("x-kept"), ["1"]);
}

#[test]
fn what_a_client_says_of_its_origin_is_replaced() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    exchange(
        tidegate.address(),
        "GET / HTTP/1.1\r\nHost: shop.test:8080\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nForwarded: for=10.0.0.3\r\n\
         Via: 1.0 cache\r\n\r\n",
    );
    let seen = backend.only_request();
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.fields("x-forwarded-host"), ["shop.test:8080"]);
    assert_eq!(seen.fields("forwarded").len(), 0);
    assert_eq!(seen.fields("via"), ["1.0 cache", "1.1 tidegate"]);
    assert_eq!(seen.fields("host"), ["shop.test:8080"]);
}

#[test]
fn fields_that_say_nothing_to_a_proxy_pass_as_they_are() {
    let backend = Backend::answering(|_| {
        reply("200 Fine", &[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Server", "unit")], "")
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let response = exchange(
        tidegate.address(),
        "GET /a/~b%20?q=%20&&q=%7e/../ HTTP/1.1\r\nHost: x\r\nCookie: a=b\r\nX-Latin: caf\u{e9}\r\n\
         Authorization: Bearer t\r\nX-Empty:\r\n\r\n",
    );
    assert_eq!(response.fields("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(response.fields("server"), ["unit"]);
    let seen = backend.only_request();
    assert_eq!(seen.target(), "/a/~b%20?q=%20&&q=%7e/../");
    assert_eq!((seen.fields("cookie"), seen.fields("authorization")), (vec!["a=b"], vec!["Bearer t"]));
    assert_eq!((seen.fields("x-latin"), seen.fields("x-empty")), (vec!["caf\u{e9}"], vec![""]));
}

#[test]
fn a_target_in_absolute_form_gives_its_host_and_its_path() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    exchange(tidegate.address(), "GET http://a.test:81/x?y HTTP/1.1\r\nHost: a.test:81\r\n\r\n");
    exchange(tidegate.address(), "OPTIONS * HTTP/1.1\r\nHost: b.test\r\n\r\n");
    let requests = backend.requests();
    assert_eq!((requests[0].target(), requests[0].fields("host")), ("/x?y", vec!["a.test:81"]));
    assert_eq!(requests[0].fields("x-forwarded-host"), ["a.test:81"]);
    assert_eq!((requests[1].target(), requests[1].fields("host")), ("*", vec!["b.test"]));
}

#[test]
fn a_request_needs_exactly_one_valid_host() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n",
        "GET http://user:word@a.test/ HTTP/1.1\r\nHost: a.test\r\n",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n",
    ] {
        let response = exchange(tidegate.address(), format!("{head}\r\n"));
        assert_eq!((response.status, response.fields("connection")), (400, vec!["close"]), "{head}");
        let said = response.fields("proxy-status");
        assert_eq!(said, ["tidegate; error=http_request_error; details=\"host\""], "{head}");
    }
    assert_eq!(backend.count(), 0);
}

#[test]
fn connect_and_unknown_transfer_codings_are_refused() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let tunnel = exchange(tidegate.address(), "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
    assert_eq!((tunnel.status, tunnel.fields("connection")), (405, vec!["close"]));
    for coding in ["gzip, chunked", "gzip,chunked", "chunked, chunked"] {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n");
        let response = exchange(tidegate.address(), head);
        assert!(matches!(response.status, 400 | 501), "{coding}: {}", response.status);
    }
    assert_eq!(backend.count(), 0);
}

#[test]
fn two_framings_never_become_two_requests() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], seen.target()));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len() + 5;
    for fields in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: +{length}\r\n"),
        format!("Content-Length: {length}, 0\r\n"),
        "Content-Length: 0x10\r\n".to_owned(),
        "Content-Length: -1\r\n".to_owned(),
        "Transfer-Encoding : chunked\r\n".to_owned(),
        "Transfer-Encoding:\u{b}chunked\r\n".to_owned(),
        " Transfer-Encoding: chunked\r\n".to_owned(),
        "X: y\r\n Transfer-Encoding: chunked\r\n".to_owned(),
        "X: y\nTransfer-Encoding: chunked\r\n".to_owned(),
        "Transfer-Encoding: xchunked\r\n".to_owned(),
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".to_owned(),
        "Connection: Content-Length\r\nContent-Length: 0\r\n".to_owned(),
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n".to_owned(),
    ] {
        let before = backend.count();
        let mut client = tidegate.client();
        // Closed for writing, so that a proxy that waits for more gets to know that there is none.
        client.send(format!("POST /outer HTTP/1.1\r\nHost: x\r\n{fields}\r\n0\r\n\r\n{smuggled}"));
        client.wire.socket().shutdown(std::net::Shutdown::Write).unwrap();
        let said = String::from_utf8_lossy(&client.wire.read_to_end()).into_owned();
        let seen = backend.requests();
        for seen in &seen[before..] {
            assert!(
                seen.fields("content-length").len() + seen.fields("transfer-encoding").len() <= 1,
                "{fields:?} reached the backend as {}",
                seen.head
            );
        }
        let targets: Vec<_> = seen[before..].iter().map(|seen| seen.target().to_owned()).collect();
        // What follows an empty chunked body, or a length of 0, is a request of its own by any reading.
        let honest = fields.starts_with("Connection")
            || fields.contains("Transfer-Encoding: chunked\r\nContent-Length")
            || (fields.contains("Content-Length: ")
                && fields.ends_with("\r\nTransfer-Encoding: chunked\r\n"));
        if !honest {
            assert!(!targets.contains(&"/smuggled".to_owned()), "{fields:?}: {targets:?}\n{said}");
        }
    }
    assert_eq!(get(tidegate.address(), "/after").text(), "/after", "no connection was left out of step");
}

#[test]
fn a_length_beside_chunks_does_not_reach_the_backend() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    ] {
        let response = exchange(
            tidegate.address(),
            format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n6\r\nabcdef\r\n0\r\n\r\n"),
        );
        assert_eq!((response.status, response.text().as_str()), (200, "abcdef"), "{fields}");
    }
    for seen in backend.requests() {
        assert_eq!(seen.fields("content-length").len(), 0, "{}", seen.head);
    }
}
