//! What a canary has to answer before anybody is sent there.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use http::{HeaderValue, Response};
use serde_json::Value;

use crate::support::{
    Backend, HyperBackend, Limits, Tidegate, Web,
    certificates::{Authority, Files},
    client::full,
    eventually, reply,
};

const QUICK: &str = "interval = '10ms'\n";
const SHORT: &str = "prepare_deadline = '300ms'";

/// Starts a rollout to this canary, which has a short time to pass one probe.
fn start(stable: &Backend, canary: SocketAddr, probe: &str) -> Tidegate {
    began(Web::new(stable.address).canary(canary), SHORT, probe)
}

/// Starts a rollout with keys of it and of its one probe.
fn began(web: Web, rollout: &str, probe: &str) -> Tidegate {
    let keys = format!("{rollout}\n[[services.web.rollout.probes]]\n{QUICK}{probe}");
    let tidegate = Tidegate::start(web.table("rollout", &keys));
    let status = tidegate.api("POST", "web/start", "");
    assert_eq!(status["rollout"]["phase"], "preparing");
    tidegate
}

/// Why the rollout went back before it began.
#[track_caller]
fn refused(tidegate: &Tidegate) -> String {
    let status = tidegate.wait_for_phase("rolled_back");
    let reason = &status["rollout"]["reason"];
    assert_eq!(reason["kind"], "prepare_failed");
    reason["why"].as_str().unwrap().to_owned()
}

#[track_caller]
fn passed(tidegate: &Tidegate) -> Value {
    tidegate.wait_for_phase("stepping")
}

#[test]
fn a_probe_is_the_request_that_it_is_said_to_be() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let keys = "path = '/cart?x=1'\nhost = 'app.example'\nbody = '{}'\ntimes = 3
                headers = [{ name = 'x-forwarded-proto', value = 'https' }]";
    let tidegate = start(&stable, canary.address, keys);
    passed(&tidegate);
    let seen = canary.requests();
    assert_eq!(seen.len(), 3, "three times in a row");
    for seen in seen {
        assert_eq!((seen.method(), seen.target()), ("POST", "/cart?x=1"));
        assert_eq!(seen.fields("host"), ["app.example"]);
        assert_eq!(seen.fields("x-forwarded-proto"), ["https"]);
        assert_eq!(seen.fields("user-agent"), ["tidegate-probe"]);
        assert_eq!(seen.body, b"{}");
    }
    assert_eq!(stable.count(), 0);
    tidegate.scrape().expect("tidegate_requests_total", &[], 0.0);
}

#[test]
fn what_fails_is_tried_until_it_has_passed_so_often_in_a_row() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    // Well, unwell, and then well for good.
    let canary = Backend::answering(move |_| match count.fetch_add(1, SeqCst) {
        0 | 2.. => reply("200 OK", &[], "up"),
        1 => reply("503 Service Unavailable", &[], "down"),
    });
    let stable = Backend::named("v1");
    let web = Web::new(stable.address).canary(canary.address);
    let tidegate = began(web, "", "times = 2");
    passed(&tidegate);
    assert_eq!(tries.load(SeqCst), 4);
}

#[test]
fn one_that_never_passes_says_what_came_instead_of_what() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let place = canary.address;
    let why = |probe: &str| refused(&start(&stable, place, probe));
    assert_eq!(
        why("path = '/up'\nexpected_statuses = ['204', '5xx']"),
        format!("the probe `GET /up` of {place} got status 200 instead of 204, 500-599")
    );
    assert_eq!(
        why("body_contains = 'v3'"),
        format!("the probe `GET /` of {place} got the body \"v2\", which does not contain \"v3\"")
    );
    assert_eq!(
        why("body_regex = '^v[13]$'"),
        format!("the probe `GET /` of {place} got the body \"v2\", in which `^v[13]$` does not match")
    );
    let so_far = why("times = 1000");
    let passed = so_far.strip_prefix(&format!("the probe `GET /` of {place} has passed "));
    assert!(passed.is_some_and(|passed| passed.ends_with(" of 1000 times")), "{so_far}");
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let why = refused(&start(&stable, silent.address, "timeout = '50ms'"));
    assert_eq!(why, format!("the probe `GET /` of {} got no answer within 50ms", silent.address));
    assert_eq!(stable.count(), 0, "stable is not asked");
}

#[test]
fn every_endpoint_has_to_pass() {
    let (stable, good) = (Backend::named("v1"), Backend::named("good"));
    let bad = Backend::answering(|_| reply("500 Internal Server Error", &[], ""));
    let endpoints = format!("endpoints = ['http://{}', 'http://{}']", good.address, bad.address);
    let web = Web::new(stable.address).keys("canary = 'v2'").table("backends.v2", &endpoints);
    let tidegate = began(web, SHORT, "");
    let why = refused(&tidegate);
    assert_eq!(why, format!("the probe `GET /` of {} got status 500 instead of 200-399", bad.address));
    assert_eq!(good.count(), 1);
}

#[test]
fn probes_speak_as_requests_do() {
    let stable = Backend::named("v1");
    let h2 = HyperBackend::answering(Limits::default(), |_| Response::new(full("over h2")));
    let endpoints = format!("endpoints = ['h2c://{}']", h2.address);
    let web = Web::new(stable.address).keys("canary = 'v2'").table("backends.v2", &endpoints);
    passed(&began(web, "", "body_contains = 'over h2'"));
    let uri = h2.requests()[0].head.uri.to_string();
    assert_eq!(uri, format!("http://{}/", h2.address));

    // Tidegate itself is a backend that speaks TLS.
    let (authority, files) = (Authority::new("probes"), Files::new());
    let pair = files.pair("v2", &authority.issue(&["127.0.0.1"]));
    let listener = format!("[listeners.tls]\ncertificates = [{{ {pair} }}]\n");
    let secure = Tidegate::start(Web::new(stable.address).listener(&listener));
    let web = |ca: &Authority| {
        let ca = files.write("ca.pem", &ca.pem);
        let endpoints = format!("endpoints = ['https://{}']", secure.address());
        let web = Web::new(stable.address).keys("canary = 'v2'").table("backends.v2", &endpoints);
        web.table("backends.v2.tls", &format!("ca = '{}'", ca.display()))
    };
    passed(&began(web(&authority), "", "body_contains = 'v1'"));
    let why = refused(&began(web(&Authority::new("others")), SHORT, ""));
    assert!(why.contains(" got no TLS: invalid peer certificate"), "{why}");
}

#[test]
fn a_grpc_probe_wants_the_service_to_serve() {
    let stable = Backend::named("v1");
    let status = Arc::new(AtomicUsize::new(2));
    let serving = Arc::clone(&status);
    let canary = HyperBackend::answering(Limits::default(), move |_| {
        let framed = vec![0, 0, 0, 0, 2, 0x08, serving.load(SeqCst) as u8];
        let mut response = Response::new(full(framed));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        // Of an answer that has no trailers.
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
        response
    });
    let endpoints = format!("endpoints = ['h2c://{}']", canary.address);
    let web = || Web::new(stable.address).keys("canary = 'v2'").table("backends.v2", &endpoints);
    let why = refused(&began(web(), SHORT, "kind = 'grpc'\ngrpc_service = 'a.B'"));
    let place = canary.address;
    assert_eq!(
        why,
        format!("the probe `gRPC health of a.B` of {place} got serving status 2 instead of SERVING")
    );
    let tidegate = began(web(), "", "kind = 'grpc'");
    eventually(|| canary.requests().len(), |seen| *seen > 2);
    status.store(1, SeqCst);
    passed(&tidegate);
}
