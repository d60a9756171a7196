//! What a rollout waits for beside evidence: people, time, and the end of what is under way.

use std::{
    error::Error as _,
    net::SocketAddr,
    sync::{Mutex, mpsc},
};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::support::{
    Backend, H2, HyperBackend, Limits, Raw, Refusing, Tidegate, Web,
    backend::Peer,
    client::{self, Chunks, empty, full, h2_request},
    eventually, eventually_is, patience, runtime,
};

/// Nobody sends anything, so that evidence moves nothing.
pub fn start(canary: SocketAddr, rollout: &str, more: &str) -> (Backend, Tidegate) {
    let stable = Backend::named("v1");
    let web = Web::new(stable.address).canary(canary).table("rollout", rollout);
    let tidegate = Tidegate::start(format!("{web}\n{more}"));
    (stable, tidegate)
}

/// How the rollout stands: its phase, and what it waits for or by what it ended.
pub fn stands(status: &Value) -> (&str, &Value) {
    (status["rollout"]["phase"].as_str().unwrap(), &status["rollout"]["reason"])
}

#[track_caller]
pub fn refused(tidegate: &Tidegate, verb: &str, wanted: &str) {
    let response = tidegate.ask("POST", &format!("/api/v1/services/web/{verb}"), "");
    assert_eq!(response.status, 409, "{}", response.text());
    assert!(response.text().contains(wanted), "{}", response.text());
}

#[test]
fn a_gate_is_opened_by_a_person_and_by_nobody_else() {
    let canary = Backend::named("v2");
    let plan = "strategy = 'blue-green'\npromotion_gate = true\nbake = '1h'";
    let (_stable, tidegate) = start(canary.address, plan, "");
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("paused");
    assert_eq!(stands(&status), ("paused", &"gate".into()));
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &0.0.into()));
    assert_eq!(tidegate.client().get("/").text(), "v1");
    let status = tidegate.api("POST", "web/promote", "");
    assert_eq!(status["stable"], "v2");
    assert_eq!(tidegate.client().get("/").text(), "v2");
}

#[test]
fn after_a_rollback_the_next_try_needs_time_or_force() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(canary.address, "cool_down = '1h'", "");
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    refused(&tidegate, "start", "the plan wants the next try in ");
    assert_eq!(stands(&tidegate.status()).0, "rolled_back");
    let status = tidegate.api("POST", "web/start", r#"{"force": true}"#);
    assert_eq!(stands(&status).0, "preparing");
}

#[test]
fn a_hot_fix_need_not_be_told_to_go_on_when_it_is_ready() {
    let canary = Refusing::new();
    let (_stable, tidegate) = start(canary.address, "bake = '1h'", "");
    tidegate.api("POST", "web/start", "");
    let status = tidegate.api("POST", "web/promote", r#"{"full": true, "reason": "a hot fix"}"#);
    assert_eq!((stands(&status).0, &status["rollout"]["full"]), ("preparing", &true.into()));
    assert_eq!((&status["stable"], &status["weight"]), (&"v1".into(), &0.0.into()));
    let canary = canary.open("v2");
    let status = tidegate.wait_for_phase("baking");
    assert_eq!(status["stable"], "v2");
    drop(tidegate);
    drop(canary);
}

/// A canary whose answer begins and does not end, a client that waits for it, and a rollback.
fn rolled_back_with_an_answer_under_way(drain: &str) -> (Backend, Backend, Tidegate, Raw) {
    let canary = Backend::scripted(|mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
        peer.wait_for_end();
    });
    let plan = format!("steps = [{{ weight = 100, hold = '1h' }}]\n{drain}");
    let (stable, tidegate) = start(canary.address, &plan, "");
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let in_flight = || tidegate.scrape().sum("tidegate_requests_in_flight", &[("backend", "v2")]);
    eventually(in_flight, |count| *count == 1.0);
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!((stands(&status).0, &status["weight"]), ("rolling_back", &0.0.into()));
    (stable, canary, tidegate, client)
}

#[test]
fn a_rollback_has_ended_when_nothing_is_under_way_any_more() {
    let (_stable, canary, tidegate, client) = rolled_back_with_an_answer_under_way("drain = '1h'");
    // New requests go to stable while the old one is under way.
    assert_eq!(tidegate.client().get("/").text(), "v1");
    assert_eq!(stands(&tidegate.status()).0, "rolling_back");
    drop(client);
    tidegate.wait_for_phase("rolled_back");
    canary.close_connections();
}

#[test]
fn a_rollback_does_not_wait_for_ever() {
    let (_stable, _canary, tidegate, _client) = rolled_back_with_an_answer_under_way("drain = '100ms'");
    tidegate.wait_for_phase("rolled_back");
}

/// Answers with a stream that ends when its client does.
fn stream(mut peer: Peer) {
    if peer.head().is_some() {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        peer.wait_for_end();
    }
}

#[test]
fn a_rollback_cuts_what_still_comes_from_the_canary_when_its_time_is_over_and_nothing_else() {
    let (stable, canary) = (Backend::scripted(stream), Backend::scripted(stream));
    let web = Web::new(stable.address).canary(canary.address);
    let rollout = "steps = [{ weight = 100, hold = '1h' }]\ndrain = '300ms'";
    let tidegate = Tidegate::start(web.table("rollout", rollout));
    let begin = || {
        let mut client = tidegate.client();
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        client.wire.read_head().unwrap();
        client
    };
    let _to_stable = begin();
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut to_canary = begin();
    tidegate.api("POST", "web/rollback", "");
    let status = tidegate.wait_for_phase("rolled_back");
    let events = status["events"].as_array().unwrap();
    let last = events.last().unwrap()["what"].as_str().unwrap();
    assert!(last.ends_with("; cut is what was still under way at v2: 1"), "{last}");
    assert_eq!(
        to_canary.wire.read_chunked().unwrap_err(),
        b"hello",
        "it breaks off, and can be told from its end"
    );
    let role = ("role", "canary");
    tidegate.wait_for_outcome("cut", 1);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[role, ("status", "cut")], 1.0);
    scrape.expect("tidegate_request_failures_total", &[role], 0.0);
    scrape.expect("tidegate_requests_in_flight", &[("role", "stable")], 1.0);
    // Whoever looks at what went wrong, later, is left alone.
    tidegate.set_weight(100.0);
    let mut later = begin();
    assert_eq!(later.wire.read_line().as_deref(), Some("5"));
    tidegate.scrape().expect("tidegate_requests_in_flight", &[role], 1.0);
}

/// What a client hears that waits for a response of the canary's when the time of its rollback is over.
fn cut_before_an_answer(web: Web) -> (Tidegate, client::Response) {
    let tidegate =
        Tidegate::start(web.table("rollout", "steps = [{ weight = 100, hold = '1h' }]\ndrain = '300ms'"));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let in_flight = || tidegate.scrape().sum("tidegate_requests_in_flight", &[("backend", "v2")]);
    eventually_is(1.0, in_flight);
    tidegate.api("POST", "web/rollback", "");
    let response = client.response();
    let status = tidegate.wait_for_phase("rolled_back");
    let last = status["events"].as_array().unwrap().last().unwrap()["what"].as_str().unwrap();
    assert!(last.ends_with("; cut is what was still under way at v2: 1"), "{last}");
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("role", "canary"), ("status", "cut")], 1.0);
    scrape.expect("tidegate_requests_total", &[("role", "canary")], 1.0);
    scrape.expect("tidegate_request_failures_total", &[], 0.0);
    (tidegate, response)
}

#[test]
fn a_rollback_cuts_who_still_waits_for_the_canarys_answer_too() {
    let silent = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    });
    let silent_h2 = HyperBackend::serving(Limits::default(), |_| std::future::pending());
    let stable = Backend::named("v1");
    let stable_h2 = HyperBackend::serving(Limits::default(), |_| async { Response::new(full("v1")) });
    let http1 = || Web::new(stable.address).canary(silent.address);
    let http2 = || {
        let web = Web::h2c(stable_h2.address).keys("canary = 'v2'");
        web.backend("v2", "h2c", silent_h2.address)
    };
    for web in [http1(), http2()] {
        let (tidegate, response) = cut_before_an_answer(web);
        assert_eq!(response.status, 502, "{}", response.text());
        let said = "tidegate; error=connection_terminated; details=\"rolled back\"";
        assert_eq!(response.fields("proxy-status"), [said]);
        tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "cut")], 1.0);
    }
    for retry in ["attempts = 0\nshield = true", "attempts = 1"] {
        for web in [http1(), http2()] {
            let (tidegate, response) = cut_before_an_answer(web.table("retry", retry));
            assert_eq!((response.status, response.text().as_str()), (200, "v1"), "{retry}");
            tidegate.scrape().expect("tidegate_retries_total", &[("result", "success")], 1.0);
        }
    }
}

#[test]
fn an_answer_that_comes_before_its_client_is_told_of_the_cut_is_passed_on_as_a_whole() {
    let (answer, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let canary = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            let _told = wait.lock().unwrap().recv();
            peer.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwh\r\n3\r\nole\r\n0\r\n\r\n",
            );
            peer.wait_for_end();
        }
    });
    let plan = "steps = [{ weight = 100, hold = '1h' }]\ndrain = '100ms'";
    let (_stable, tidegate) = start(canary.address, plan, "");
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut clients: Vec<_> = (0..8).map(|_| tidegate.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let in_flight = || tidegate.scrape().sum("tidegate_requests_in_flight", &[("backend", "v2")]);
    eventually_is(8.0, in_flight);
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    // They are told within a second; who is first does not matter, only that nobody gets a part.
    drop(answer);
    for client in &mut clients {
        let response = client.response();
        let came = (response.status, response.text(), response.whole);
        assert!(came == (200, "whole".into(), true) || came.0 == 502, "{came:?}");
    }
}

#[test]
fn over_http_2_a_rollback_resets_what_still_comes_and_ends_calls_in_grpcs_own_words() {
    let stable = HyperBackend::serving(Limits::default(), |_| async { Response::new(full("v1")) });
    let canary = HyperBackend::serving(Limits::default(), |request| async move {
        let mut response =
            Response::new(Chunks { chunks: [Bytes::from("begun")].into(), ends: false }.boxed());
        // A call has the type that it was asked with.
        if let Some(kind) = request.headers().get("content-type") {
            response.headers_mut().insert("content-type", kind.clone());
        }
        response
    });
    let rollout = "steps = [{ weight = 100, hold = '1h' }]\ndrain = '300ms'";
    let web = Web::h2c(stable.address).keys("canary = 'v2'").backend("v2", "h2c", canary.address);
    let tidegate = Tidegate::start(web.table("rollout", rollout));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let stream = client.send(h2_request("GET", "/stream").body(empty()).unwrap()).await.unwrap();
        let call = h2_request("POST", "/call").header("content-type", "application/grpc");
        let call = client.send(call.header("te", "trailers").body(empty()).unwrap()).await.unwrap();
        let (mut stream, mut call) = (stream.into_body(), call.into_body());
        for body in [&mut stream, &mut call] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");
        }
        tidegate.api("POST", "web/rollback", "");
        let ends = async { (stream.frame().await, call.frame().await, call.frame().await) };
        let (broken, trailers, after) = tokio::time::timeout(patience(), ends).await.expect("both end");
        let error = broken.expect("it does not end as if it were whole").unwrap_err();
        let reset = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
        assert!(reset.is_some_and(|error| error.is_reset()), "{error:?}");
        let trailers = trailers.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "the version that served this call was rolled back");
        assert!(after.is_none());
        // Their connection goes on.
        assert_eq!(client.get("/").await.unwrap(), (200, "v1".into()));
    });
    tidegate.wait_for_phase("rolled_back");
    tidegate.wait_for_outcome("cut", 2);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[("role", "canary"), ("status", "cut")], 2.0);
    scrape.expect("tidegate_request_failures_total", &[("role", "canary")], 0.0);
}

#[test]
fn nobody_flips_to_a_backend_that_is_not_there_without_force() {
    let canary = Refusing::new();
    let (_stable, tidegate) = start(canary.address, "", "");
    refused(&tidegate, "flip", "no endpoint of `v2` takes a connection (Connection refused");
    assert_eq!(tidegate.client().get("/").text(), "v1");
    let status = tidegate.api("POST", "web/flip", r#"{"force": true}"#);
    assert_eq!(status["stable"], "v2");
    let canary = canary.open("v2");
    // v1 is canary now, and is there.
    let status = tidegate.api("POST", "web/undo", "");
    assert_eq!(status["stable"], "v1");
    drop(tidegate);
    drop(canary);
}

#[test]
fn a_version_may_be_taken_away_when_nothing_is_under_way_there() {
    let plan = "drain = '1h'\ndrained_after = '0s'";
    let (_stable, canary, tidegate, client) = rolled_back_with_an_answer_under_way(plan);
    let backend = |status: &Value, name: &str| {
        let backends = status["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["name"] == name).unwrap().clone()
    };
    let metric = |name| tidegate.scrape().sum("tidegate_backend_drained", &[("backend", name)]);
    assert_eq!((&backend(&tidegate.status(), "v2")["drained"], metric("v2")), (&false.into(), 0.0));
    drop(client);
    let drained = eventually(|| tidegate.status(), |status| backend(status, "v2")["drained"] == true);
    assert_eq!((&backend(&drained, "v1")["drained"], metric("v1")), (&false.into(), 0.0));
    eventually(|| metric("v2"), |drained| *drained == 1.0);
    let said = drained["events"].to_string();
    assert!(said.contains("v2 is drained: nothing was under way there for 50ms"), "{said}");
    tidegate.wait_for_phase("rolled_back");
    // Not any more, as soon as somebody may be sent there.
    let status = tidegate.api("PUT", "web/weight", r#"{"canary": 50}"#);
    assert_eq!(backend(&status, "v2")["drained"], false);
    eventually(|| metric("v2"), |drained| *drained == 0.0);
    canary.close_connections();
}
