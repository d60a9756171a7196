//! Connections that become something else than HTTP: only what is allowed, only as asked for, and only
//! once the backend has agreed.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Backend, H2, HyperBackend, Limits, Raw, Tidegate, Web,
    backend::Peer,
    client::empty,
    eventually_is,
    python::{Server, python, run_client},
    runtime,
};

const PEER: &str = "tests/peers/websocket_peer.py";

const OFFER: &str = "GET /chat HTTP/1.1\r\nHost: web.test\r\nConnection: keep-alive, Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Accepts, greets in the same bytes, and sends back four bytes at a time until the end.
fn echo(mut peer: Peer) {
    if peer.request().is_none() {
        return;
    }
    peer.send(format!("{ACCEPTED}hello"));
    loop {
        let bytes = peer.wire.read_length(4);
        if bytes.is_empty() {
            return;
        }
        peer.send(bytes);
    }
}

/// Makes an offer that has to be accepted.
#[track_caller]
fn accepted(tidegate: &Tidegate) -> Raw {
    let mut client = tidegate.client();
    client.send(OFFER);
    let response = client.response();
    assert_eq!((response.status, response.fields("upgrade")), (101, vec!["websocket"]), "{}", response.head);
    assert_eq!(response.fields("sec-websocket-accept"), [ACCEPT]);
    assert_eq!(response.fields("connection"), ["upgrade"]);
    client
}

#[test]
fn bytes_pass_both_ways_after_the_backend_agrees() {
    let backend = Backend::scripted(echo);
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.read_length(5), b"hello");
    for text in ["ping", "pong"] {
        client.send(text);
        assert_eq!(client.wire.read_length(4), text.as_bytes());
    }
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_tunnels_open", &[], 1.0);
    scrape.expect("tidegate_requests_in_flight", &[], 1.0);
    let seen = backend.only_request();
    assert_eq!((seen.fields("upgrade"), seen.fields("connection")), (vec!["websocket"], vec!["upgrade"]));
    drop(client);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("status", "1xx")], 1.0);
    scrape.expect("tidegate_tunnels_open", &[], 0.0);
    scrape.expect("tidegate_request_duration_seconds_count", &[], 0.0);
}

#[test]
fn what_is_sent_before_the_answer_waits_for_it() {
    let backend = Backend::scripted(echo);
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send(format!("{OFFER}early"));
    assert_eq!(client.response().status, 101);
    client.send("late???");
    assert_eq!(client.wire.read_length(17), b"helloearlylate???");
}

#[test]
fn the_end_of_one_side_is_told_to_the_other() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send(format!("{ACCEPTED}bye"));
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.read_to_end(), b"bye");
}

#[test]
fn a_backend_may_decline() {
    let backend = Backend::named("no");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send(OFFER);
    assert_eq!(client.response().text(), "no");
    // The connection goes on as it was.
    assert_eq!(client.get("/").text(), "no");
    tidegate.wait_for_outcome("2xx", 2);
}

#[test]
fn an_offer_that_is_not_allowed_is_not_passed_on() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let offer = |text: &str| {
        let mut client = tidegate.client();
        client.send(text);
        assert_eq!(client.response().text(), "v1", "{text}");
    };
    offer(&OFFER.replace("Upgrade: websocket", "Upgrade: h2c"));
    offer(&OFFER.replace("Upgrade: websocket", "Upgrade: websocket, h2c"));
    offer(&OFFER.replace("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket"));
    offer(&OFFER.replace("keep-alive, Upgrade", "keep-alive"));
    offer(&OFFER.replace("GET", "POST"));
    offer(&OFFER.replace("HTTP/1.1", "HTTP/1.0"));
    offer(&(OFFER.replace("Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 1") + "x"));
    for seen in backend.requests() {
        assert_eq!((seen.fields("upgrade").len(), seen.fields("connection").len()), (0, 0), "{}", seen.head);
    }
}

#[test]
fn a_service_may_allow_others_or_none() {
    let backend = Backend::scripted(|mut peer| {
        if let Some(seen) = peer.request() {
            let asked = seen.fields("upgrade").first().map(|name| (*name).to_owned());
            let upgrade = asked
                .map(|name| format!("101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {name}"));
            let answer = upgrade.unwrap_or_else(|| "204 No Content".to_owned());
            peer.send(format!("HTTP/1.1 {answer}\r\n\r\n"));
            peer.wait_for_end();
        }
    });
    for (allowed, name, status) in
        [("'x/1'", "X/1", 101), ("'x/1'", "websocket", 204), ("", "websocket", 204)]
    {
        let tidegate = Tidegate::start(Web::new(backend.address).keys(&format!("upgrades = [{allowed}]")));
        let mut client = tidegate.client();
        client.send(OFFER.replace("Upgrade: websocket", &format!("Upgrade: {name}")));
        assert_eq!(client.response().status, status, "{allowed} {name}");
    }
}

#[test]
fn an_answer_to_another_offer_is_refused() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send(ACCEPTED.replace("Upgrade: websocket", "Upgrade: x"));
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send(OFFER);
    assert_eq!(client.response().status, 502);
    tidegate.wait_for_outcome("reset", 1);
}

#[test]
fn a_silent_tunnel_is_closed_in_the_end() {
    let backend = Backend::scripted(echo);
    let tidegate = Tidegate::start(Web::new(backend.address).table("timeouts", "tunnel = '100ms'"));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.read_to_end(), b"hello");
    tidegate.wait_for_outcome("1xx", 1);
}

#[test]
fn a_drain_leaves_tunnels_alone_until_its_deadline() {
    let backend = Backend::scripted(echo);
    let mut tidegate = Tidegate::start(Web::new(backend.address).deadline("60s"));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.read_length(5), b"hello");
    tidegate.drain(Duration::ZERO);
    eventually_is(true, || std::net::TcpStream::connect(tidegate.address()).is_err());
    client.send("ping");
    assert_eq!(client.wire.read_length(4), b"ping");
    drop(client);
    tidegate.wait_for_end();
}

#[test]
fn a_rollback_ends_the_canarys_tunnels_when_their_time_is_over_and_no_others() {
    let (stable, canary) = (Backend::scripted(echo), Backend::scripted(echo));
    let web = Web::new(stable.address).canary(canary.address);
    let rollout = "steps = [{ weight = 100, hold = '1h' }]\ndrain = '300ms'";
    let tidegate = Tidegate::start(web.table("rollout", rollout));
    let mut to_stable = accepted(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut to_canary = accepted(&tidegate);
    let still_there = |client: &mut Raw| {
        client.send("ping");
        assert_eq!(client.wire.read_length(4), b"ping");
    };
    for client in [&mut to_stable, &mut to_canary] {
        assert_eq!(client.wire.read_length(5), b"hello");
    }
    tidegate.api("POST", "web/rollback", "");
    still_there(&mut to_canary);
    tidegate.wait_for_phase("rolled_back");
    assert_eq!(to_canary.wire.read_to_end(), b"");
    still_there(&mut to_stable);
    // Another one to the canary, by whoever looks at what went wrong, is left alone.
    tidegate.set_weight(100.0);
    let mut later = accepted(&tidegate);
    assert_eq!(later.wire.read_length(5), b"hello");
    still_there(&mut later);
}

#[test]
fn a_side_that_does_not_read_stops_the_other() {
    const LARGE: usize = 64 * 1024 * 1024;
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send(ACCEPTED);
            // Stops when its buffers and those in between are full; goes on when it is read.
            peer.send(vec![7; LARGE]);
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.skip(LARGE), LARGE);
}

/// Sends an extended CONNECT; the response, and what the stream has become.
async fn connect(client: &H2, protocol: &'static str) -> Response<hyper::body::Incoming> {
    let request = Request::connect("http://web.test/chat")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static(protocol));
    client.send(request.body(empty()).unwrap()).await.unwrap()
}

/// Echoes on an extended CONNECT.
fn h2_echo(limits: Limits) -> HyperBackend {
    HyperBackend::serving(limits, |mut request| async move {
        if request.method() != "CONNECT" {
            return Response::builder().status(404).body(empty()).unwrap();
        }
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        assert_eq!(request.uri(), "http://web.test/chat");
        assert!(!request.headers().contains_key("sec-websocket-key"));
        let on_upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(on_upgrade.await.unwrap());
            io.write_all(b"hello").await.unwrap();
            let mut bytes = [0; 4];
            while io.read_exact(&mut bytes).await.is_ok() {
                io.write_all(&bytes).await.unwrap();
            }
        });
        Response::new(empty())
    })
}

#[track_caller]
fn check_over_h2(tidegate: &Tidegate) {
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        // The settings that allow it come with the first response.
        let _ready = client.get("/nothing").await;
        let mut response = connect(&client, "websocket").await;
        assert_eq!(response.status(), StatusCode::OK);
        for gone in ["sec-websocket-accept", "upgrade", "connection"] {
            assert!(!response.headers().contains_key(gone), "{gone}");
        }
        let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let mut greeting = [0; 5];
        io.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
        let mut bytes = [0; 4];
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    });
    drop(client);
    tidegate.wait_for_outcome("1xx", 1);
    tidegate.wait_until_idle().expect("tidegate_tunnels_open", &[], 0.0);
}

/// Accepts with the right answer to the key that came, and echoes; other requests get a 404.
fn echo_by_key(mut peer: Peer) {
    while let Some(seen) = peer.request() {
        if seen.fields("upgrade").is_empty() {
            peer.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            continue;
        }
        assert_eq!(seen.method(), "GET");
        let key = seen.fields("sec-websocket-key")[0].to_owned();
        peer.send(ACCEPTED.replace(ACCEPT, &accept(&key)) + "hello");
        loop {
            let bytes = peer.wire.read_length(4);
            if bytes.is_empty() {
                return;
            }
            peer.send(bytes);
        }
    }
}

fn accept(key: &str) -> String {
    use sha1::{Digest, Sha1};
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = digest.iter().map(|byte| format!("{byte:08b}")).collect::<String>() + "00";
    let digit = |at: usize| digits[usize::from_str_radix(&bits[at..at + 6], 2).unwrap()] as char;
    (0..bits.len()).step_by(6).map(digit).collect::<String>() + "="
}

#[test]
fn a_websocket_from_http_2_reaches_a_backend_of_http_1() {
    let backend = Backend::scripted(echo_by_key);
    let tidegate = Tidegate::start(Web::new(backend.address));
    check_over_h2(&tidegate);
}

#[test]
fn a_websocket_from_http_2_reaches_a_backend_of_http_2() {
    let backend = h2_echo(Limits::default());
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    check_over_h2(&tidegate);
}

#[test]
fn a_websocket_from_http_1_reaches_a_backend_of_http_2() {
    let backend = h2_echo(Limits::default());
    let tidegate = Tidegate::start(Web::h2c(backend.address));
    let mut client = accepted(&tidegate);
    assert_eq!(client.wire.read_length(5), b"hello");
    client.send("ping");
    assert_eq!(client.wire.read_length(4), b"ping");
    drop(client);
    tidegate.wait_for_outcome("1xx", 1);
}

#[test]
fn a_backend_of_http_2_that_takes_no_websockets_is_told_of() {
    let backend = h2_echo(Limits { connect: false, ..Limits::default() });
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("timeouts", "connect = '100ms'"));
    let mut client = tidegate.client();
    client.send(OFFER);
    assert_eq!(client.response().status, 502);
    tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "no_upgrade")], 1.0);
}

#[test]
fn connect_to_anything_else_is_refused() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let _ready = client.get("/").await.unwrap();
        assert_eq!(connect(&client, "connect-udp").await.status(), 405);
        let plain = Request::connect("web.test:443").body(empty()).unwrap();
        assert_eq!(client.send(plain).await.unwrap().status(), 405);
    });
    assert_eq!(backend.count(), 1);
}

#[test]
fn somebody_elses_client_and_server_talk_through_it() {
    let Some(python) = python("websockets") else { return };
    let server = Server::start(&python, PEER);
    let tidegate = Tidegate::start(Web::new(server.address));
    run_client(&python, PEER, &["client", &tidegate.address().to_string()]);
    tidegate.wait_for_outcome("1xx", 1);
}
