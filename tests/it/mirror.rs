//! Copies of requests to stable, for the canary: what it gets, what is made of its answers, and that nobody
//! waits for it.

use std::sync::{
    Mutex,
    mpsc::{self, Receiver, Sender},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use http_body_util::BodyExt;

use crate::support::{
    Backend, H2, HyperBackend, Limits, Refusing, Tidegate, Web,
    backend::Peer,
    client::{AnyBody, full, h2_request},
    eventually, eventually_is, exchange, get, reply, runtime,
};

fn mirrored(web: Web, keys: &str) -> Tidegate {
    Tidegate::start(web.table("mirror", keys))
}

/// Waits until so many requests had this result, and nothing is in flight.
#[track_caller]
fn wait_for(tidegate: &Tidegate, result: &str, wanted: usize) {
    let count = || tidegate.scrape().sum("tidegate_mirrored_requests_total", &[("result", result)]);
    eventually_is(wanted as f64, count);
    let in_flight = || tidegate.scrape().sum("tidegate_mirrored_requests_in_flight", &[]);
    eventually_is(0.0, in_flight);
}

#[track_caller]
fn expect_pairs(tidegate: &Tidegate, failed_by: &str, wanted: usize) {
    let labels = [("service", "web"), ("failed_by", failed_by)];
    tidegate.scrape().expect("tidegate_mirrored_pairs_total", &labels, wanted as f64);
}

/// A backend that answers each request when it is told to.
struct Held {
    backend: Backend,
    answer: Sender<()>,
}

impl Held {
    fn new(answer: &'static str) -> Self {
        let (give, take): (_, Receiver<()>) = mpsc::channel();
        let take = Mutex::new(take);
        let backend = Backend::answering(move |_| {
            // The test is over if nobody can tell any more.
            let _over = take.lock().unwrap().recv();
            reply("200 OK", &[], answer)
        });
        Self { backend, answer: give }
    }
}

#[test]
fn the_canary_gets_a_copy_and_the_user_gets_stables_answer() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "");
    let fields =
        "Host: web.test\r\nAuthorization: Basic eA==\r\nCookie: a=b\r\nX-Tidegate-Mirrored: true\r\n";
    let mut client = tidegate.client();
    for copied in 1..=3 {
        client.send(format!("GET /a?b=c HTTP/1.1\r\n{fields}\r\n"));
        assert_eq!(client.response().text(), "v1");
        // A copy that begins before the one before it has ended has a connection of its own.
        wait_for(&tidegate, "match", copied);
    }
    expect_pairs(&tidegate, "none", 3);
    assert_eq!((stable.count(), canary.count(), canary.connections()), (3, 3, 1));
    let (original, copy) = (&stable.requests()[0], &canary.requests()[0]);
    assert_eq!((copy.method(), copy.target()), ("GET", "/a?b=c"));
    for name in ["host", "authorization", "cookie", "x-forwarded-for", "via"] {
        assert_eq!(copy.fields(name), original.fields(name), "{name}");
    }
    assert_eq!(copy.fields("x-tidegate-mirrored"), ["true"]);
    assert_eq!(original.fields("x-tidegate-mirrored"), [""; 0], "a client cannot say that it is a copy");
    // Nothing of it is evidence about users.
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("role", "canary")], 0.0);
    scrape.expect("tidegate_requests_total", &[("role", "stable"), ("status", "2xx")], 3.0);
    for role in ["stable", "canary"] {
        scrape.expect("tidegate_mirrored_response_seconds_count", &[("role", role)], 3.0);
    }
}

#[test]
fn what_the_canary_answers_otherwise_is_a_mismatch() {
    let stable = Backend::answering(|seen| match seen.target() {
        "/created" => reply("201 Created", &[], ""),
        "/broken" => reply("500 Internal Server Error", &[], ""),
        _ => reply("200 OK", &[], ""),
    });
    let canary = Backend::answering(|seen| match seen.target() {
        "/error" => reply("503 Service Unavailable", &[], ""),
        _ => reply("200 OK", &[], ""),
    });
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "");
    for (target, status) in [("/", 200), ("/created", 201), ("/error", 200), ("/broken", 500)] {
        assert_eq!(get(tidegate.address(), target).status, status);
    }
    wait_for(&tidegate, "mismatch", 3);
    wait_for(&tidegate, "match", 1);
    for (failed_by, wanted) in [("none", 1), ("canary", 2), ("stable", 1), ("both", 0)] {
        expect_pairs(&tidegate, failed_by, wanted);
    }
}

#[test]
fn a_dead_canary_is_nobodys_trouble() {
    let stable = Backend::named("v1");
    let (refusing, breaking) = (Refusing::new(), Backend::scripted(|mut peer| _ = peer.request()));
    for canary in [refusing.address, breaking.address] {
        let tidegate = mirrored(Web::new(stable.address).canary(canary), "");
        for _ in 0..10 {
            assert_eq!(get(tidegate.address(), "/").text(), "v1");
        }
        wait_for(&tidegate, "failed", 10);
        expect_pairs(&tidegate, "canary", 10);
        let scrape = tidegate.scrape();
        scrape.expect("tidegate_requests_total", &[("role", "canary")], 0.0);
        scrape.expect("tidegate_upstream_connect_failures_total", &[], 0.0);
    }
}

#[test]
fn copies_do_not_get_an_endpoint_ejected() {
    let stable = Backend::named("v1");
    let canary = Backend::answering(|_| reply("500 Internal Server Error", &[], ""));
    let web = Web::new(stable.address).canary(canary.address);
    let tidegate = mirrored(web.table("outlier_detection", "consecutive_5xx = 1"), "");
    for _ in 0..3 {
        get(tidegate.address(), "/");
    }
    wait_for(&tidegate, "mismatch", 3);
    tidegate.scrape().expect("tidegate_endpoint_healthy", &[("backend", "v2")], 1.0);
    tidegate.scrape().expect("tidegate_endpoint_ejections_total", &[], 0.0);
}

#[test]
fn the_response_arrives_before_a_slow_canary_has_answered() {
    let (stable, canary) = (Backend::named("v1"), Held::new("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.backend.address), "max_in_flight = 2");
    let mut client = tidegate.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "v1");
    }
    // Two wait for the canary; there is no room for more.
    let scrape = eventually(|| tidegate.scrape(), |_| canary.backend.count() == 2);
    scrape.expect("tidegate_mirrored_requests_in_flight", &[], 2.0);
    let dropped = [("result", "dropped_in_flight")];
    scrape.expect("tidegate_mirrored_requests_total", &dropped, 3.0);
    (0..2).for_each(|_| canary.answer.send(()).unwrap());
    wait_for(&tidegate, "match", 2);
    client.get("/");
    canary.answer.send(()).unwrap();
    wait_for(&tidegate, "match", 3);
}

#[test]
fn what_may_change_something_is_copied_only_if_asked_for() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    let tidegate = mirrored(web.clone(), "");
    assert_eq!(exchange(tidegate.address(), post).status, 200);
    assert_eq!(get(tidegate.address(), "/").status, 200);
    wait_for(&tidegate, "match", 1);
    assert_eq!(canary.only_request().method(), "GET");
    let tidegate = mirrored(web, "methods = ['POST']");
    assert_eq!(get(tidegate.address(), "/").status, 200);
    assert_eq!(exchange(tidegate.address(), post).status, 200);
    wait_for(&tidegate, "match", 1);
    assert_eq!((canary.count(), canary.requests()[1].body.as_slice()), (2, &b"hi"[..]));
}

#[test]
fn a_body_is_copied_as_it_passes_and_sent_at_its_end() {
    let (told, hears) = mpsc::channel();
    let stable = Backend::scripted(move |mut peer: Peer| {
        if peer.head().is_some() {
            told.send(peer.wire.read_length(7)).unwrap();
            peer.wire.read_chunked().unwrap();
            peer.send(reply("200 OK", &[], "v1"));
        }
    });
    let canary = Backend::named("v2");
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "methods = ['PUT']");
    let mut client = tidegate.client();
    client.send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    assert_eq!(hears.recv().unwrap(), b"2\r\nab\r\n");
    assert_eq!(canary.connections(), 0);
    client.send("3\r\ncde\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "v1");
    wait_for(&tidegate, "match", 1);
    let copy = canary.only_request();
    assert_eq!((copy.body.as_slice(), copy.fields("transfer-encoding").len()), (&b"abcde"[..], 0));
}

#[test]
fn a_large_body_is_not_copied() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate =
        mirrored(Web::new(stable.address).canary(canary.address), "methods = ['POST']\nmax_body = '4B'");
    let sized = |n: usize| format!("Content-Length: {n}\r\n\r\n{}", "x".repeat(n));
    let chunked = |n: usize| format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\nx\r\n".repeat(n));
    for body in [sized(5), chunked(5), sized(4), chunked(4), sized(0)] {
        let response = exchange(tidegate.address(), format!("POST / HTTP/1.1\r\nHost: x\r\n{body}"));
        assert_eq!(response.text(), "v1");
    }
    wait_for(&tidegate, "match", 3);
    wait_for(&tidegate, "dropped_body", 2);
    let lengths: Vec<_> = stable.requests().iter().map(|seen| seen.body.len()).collect();
    assert_eq!(lengths, [5, 5, 4, 4, 0]);
}

#[test]
fn a_request_that_does_not_come_to_its_end_is_not_copied() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "methods = ['POST']");
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc");
    eventually(|| stable.connections(), |connections| *connections == 1);
    drop(client);
    wait_for(&tidegate, "dropped_incomplete", 1);
    assert_eq!(canary.connections(), 0);
}

#[test]
fn a_request_that_is_tried_again_is_copied_once_and_compared_with_the_first_try() {
    let failing = Backend::answering(|_| reply("503 Service Unavailable", &[], ""));
    let (well, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::of(&[failing.address, well.address]).canary(canary.address);
    let web = web.table("retry", "on = ['503']").table("balance", "algorithm = 'round-robin'");
    let tidegate = mirrored(web, "methods = ['PUT']");
    for _ in 0..2 {
        let put = "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        assert_eq!(exchange(tidegate.address(), put).text(), "v1");
    }
    wait_for(&tidegate, "match", 1);
    wait_for(&tidegate, "mismatch", 1);
    expect_pairs(&tidegate, "stable", 1);
    let bodies = |backend: &Backend| backend.requests().into_iter().map(|seen| seen.body).collect::<Vec<_>>();
    assert_eq!((bodies(&well), bodies(&canary)), (vec![b"hi".to_vec(); 2], vec![b"hi".to_vec(); 2]));
    assert_eq!(failing.count(), 1);
}

#[test]
fn only_what_goes_to_stable_is_copied() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address).weight(100.0), "");
    assert_eq!(get(tidegate.address(), "/").text(), "v2");
    tidegate.set_weight(0.0);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    wait_for(&tidegate, "match", 1);
    let results = tidegate.scrape().sum("tidegate_mirrored_requests_total", &[]);
    assert_eq!((results, canary.count()), (1.0, 2));
}

#[test]
fn a_share_is_copied() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "percent = 25");
    let mut client = tidegate.client();
    for _ in 0..400 {
        assert_eq!(client.get("/").status, 200);
    }
    let copies = tidegate.scrape().sum("tidegate_mirrored_requests_total", &[]);
    // 400 independent draws at 25 %: standard deviation 8.7; six of them.
    assert!((48.0..=152.0).contains(&copies), "{copies}");
}

#[test]
fn a_trusted_proxy_may_say_that_a_request_is_a_copy() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let tidegate = mirrored(web.listener("trusted_proxies = ['127.0.0.1']\n"), "");
    let request = "GET / HTTP/1.1\r\nHost: x\r\nX-Tidegate-Mirrored: true\r\n\r\n";
    assert_eq!(exchange(tidegate.address(), request).text(), "v1");
    tidegate.wait_until_idle().expect("tidegate_mirrored_requests_total", &[], 0.0);
    assert_eq!(stable.only_request().fields("x-tidegate-mirrored"), ["true"]);
}

#[test]
fn an_upgrade_is_not_copied() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = mirrored(Web::new(stable.address).canary(canary.address), "");
    let offer =
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{offer}\r\n");
    assert_eq!(exchange(tidegate.address(), request).text(), "v1");
    tidegate.wait_until_idle().expect("tidegate_mirrored_requests_total", &[], 0.0);
    assert_eq!(canary.connections(), 0);
}

#[test]
fn a_copys_response_is_read_for_a_while_and_no_longer() {
    let stable = Backend::named("v1");
    let endless = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while peer.send("1\r\nx\r\n") {}
        }
    });
    let stalled = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx");
            peer.wait_for_end();
        }
    });
    for (canary, result) in [(endless.address, "match"), (stalled.address, "failed")] {
        let web = Web::new(stable.address).canary(canary);
        let tidegate = mirrored(web.table("timeouts", "response = '100ms'\nidle = '100ms'"), "");
        assert_eq!(get(tidegate.address(), "/").text(), "v1");
        wait_for(&tidegate, result, 1);
    }
}

#[test]
fn a_version_that_gets_copies_is_not_drained_and_a_rollback_does_not_wait_for_them() {
    let stable = Backend::named("v1");
    let silent = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    });
    let plan = "steps = [{ weight = 0.01, hold = '1h' }]\ndrain = '1h'\ndrained_after = '0s'";
    let web = Web::new(stable.address).canary(silent.address).table("rollout", plan).table("mirror", "");
    let endpoint = format!("['http://{}']", stable.address);
    let tidegate = Tidegate::start(format!(
        "{web}\n[services.other]\nstable = 'v1'\ncanary = 'v2'\n[services.other.backends]\n\
         v1.endpoints = {endpoint}\nv2.endpoints = {endpoint}\n\
         [services.other.rollout]\ndrained_after = '500ms'\n"
    ));
    let drained = |service| {
        tidegate.scrape().sum("tidegate_backend_drained", &[("service", service), ("backend", "v2")])
    };
    // One that gets nothing takes longer than this one would.
    eventually_is(1.0, || drained("other"));
    assert_eq!(drained("web"), 0.0);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    let in_flight = || tidegate.scrape().sum("tidegate_mirrored_requests_in_flight", &[("service", "web")]);
    eventually_is(1.0, in_flight);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/rollback", "");
    let status = tidegate.wait_for_phase("rolled_back");
    let last = status["events"].as_array().unwrap().last().unwrap()["what"].as_str().unwrap();
    assert!(last.ends_with("; no user's request is under way at v2 any more, and copies go on"), "{last}");
}

fn h2c(stable: &HyperBackend, canary: &HyperBackend) -> Web {
    let web = Web::h2c(stable.address).keys("canary = 'v2'");
    web.table("backends.v2", &format!("endpoints = ['h2c://{}']", canary.address))
}

fn with_trailer(data: &'static str, name: &'static str, value: &'static str) -> AnyBody {
    let trailers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
    full(data).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()
}

#[test]
fn http_2_on_both_sides_is_copied_too() {
    let stable = HyperBackend::answering(Limits::default(), |_| Response::new(full("v1")));
    let canary = HyperBackend::answering(Limits::default(), |_| Response::new(full("v2")));
    let tidegate = mirrored(h2c(&stable, &canary), "methods = ['GET', 'POST']");
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        assert_eq!(client.get("/a").await.unwrap().1, "v1");
        let post = h2_request("POST", "/b").body(with_trailer("ab", "x-sum", "7")).unwrap();
        let response = client.send(post).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "v1");
    });
    wait_for(&tidegate, "match", 2);
    let mut copies = canary.requests();
    copies.sort_by_key(|copy| copy.head.uri.path().to_owned());
    let [get, post] = copies.try_into().unwrap();
    assert_eq!((get.head.uri.path(), get.head.uri.host()), ("/a", Some("web.test")));
    assert_eq!((post.body, post.trailers.unwrap()["x-sum"].to_str().unwrap()), (Bytes::from("ab"), "7"));
    assert_eq!(get.head.headers["x-tidegate-mirrored"], "true");
}

#[test]
fn calls_are_compared_by_how_they_end() {
    fn ending(status: &'static str) -> HyperBackend {
        HyperBackend::answering(Limits::default(), move |_| {
            Response::new(with_trailer("x", "grpc-status", status))
        })
    }
    let (stable, canary) = (ending("0"), ending("13"));
    let tidegate = mirrored(h2c(&stable, &canary), "methods = ['POST']");
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let call = h2_request("POST", "/x.Y/Z").header("content-type", "application/grpc");
        let response = client.send(call.body(full("hi")).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    });
    wait_for(&tidegate, "mismatch", 1);
    expect_pairs(&tidegate, "canary", 1);
}
