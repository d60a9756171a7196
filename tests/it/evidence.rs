//! What a rollout is judged by, as far as the data plane tells it: what counts as a failure, and of whom.

use bytes::Bytes;
use http::Response;

use crate::{
    rollout::Load,
    support::{
        Backend, H2, HyperBackend, Limits, Tidegate, Web,
        client::{empty, full, h2_request},
        eventually_is, get, reply, runtime,
    },
};

const FAILURES: &str = "tidegate_request_failures_total";

/// A backend that answers `/…/404` with 404.
fn by_path() -> Backend {
    Backend::answering(|seen| reply(&format!("{} X", seen.target().rsplit('/').next().unwrap()), &[], ""))
}

#[track_caller]
fn expect_failures(tidegate: &Tidegate, wanted: f64) {
    tidegate.wait_until_idle().expect(FAILURES, &[("service", "web")], wanted);
}

#[test]
fn a_service_and_its_routes_say_which_statuses_count() {
    let backend = by_path();
    let strict = "[[routes]]\nservice = 'web'\npath_prefix = '/strict'\n\
                  failures = { statuses = ['4xx', '500'], except = ['429'] }";
    let web = Web::new(backend.address).table("failures", "except = ['503']");
    let tidegate = Tidegate::start(format!("{web}{strict}"));
    let mut client = tidegate.client();
    let mut failures = 0.0;
    for (path, counts) in [
        ("/404", false),
        ("/500", true),
        ("/503", false),
        ("/599", true),
        ("/strict/404", true),
        ("/strict/429", false),
        ("/strict/500", true),
        ("/strict/503", false),
        ("/strict/200", false),
    ] {
        assert_eq!(client.get(path).status.to_string(), path.rsplit('/').next().unwrap());
        failures += f64::from(u8::from(counts));
        expect_failures(&tidegate, failures);
    }
    eventually_is(Some(4), || tidegate.status()["backends"][0]["failures_total"].as_u64());
    // The class of a status is what it is.
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "5xx")], 5.0);
}

#[test]
fn a_broken_connection_counts_whatever_is_written() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("failures", "statuses = ['404']"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.try_response_to("GET").is_none_or(|response| !response.whole));
    expect_failures(&tidegate, 1.0);
}

#[test]
fn calls_have_failures_of_their_own() {
    let backend = HyperBackend::answering(Limits::default(), |seen| {
        let code = seen.head.uri.path().rsplit('/').next().unwrap().to_owned();
        Response::builder().header("grpc-status", code).body(empty()).unwrap()
    });
    let keys = "statuses = ['2xx']\ngrpc_statuses = ['NOT_FOUND', 'INTERNAL']";
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("failures", keys));
    let client = H2::connect(tidegate.address());
    for (code, failures) in [("0", 0.0), ("5", 1.0), ("13", 2.0), ("14", 2.0), ("99", 3.0)] {
        let call = h2_request("POST", &format!("/{code}")).header("content-type", "application/grpc");
        let response = runtime().block_on(client.send(call.body(full(Bytes::new())).unwrap()));
        assert_eq!(response.unwrap().headers()["grpc-status"], code);
        expect_failures(&tidegate, failures);
    }
}

#[test]
fn users_are_shielded_from_what_counts() {
    let (stable, canary) = (Backend::named("v1"), by_path());
    let web = Web::new(stable.address).canary(canary.address).weight(100.0);
    let web = web.table("retry", "attempts = 0\nshield = true");
    let tidegate = Tidegate::start(web.table("failures", "statuses = ['404', '500']"));
    for (path, status) in [("/404", 200), ("/500", 200), ("/503", 503), ("/403", 403)] {
        assert_eq!(get(tidegate.address(), path).status, status, "{path}");
    }
    tidegate.wait_until_idle().expect(FAILURES, &[("backend", "v2")], 2.0);
}

#[test]
fn a_canary_that_finds_nothing_is_rolled_back_where_that_counts() {
    let (stable, canary) = (Backend::named("v1"), Backend::answering(|_| reply("404 Not Found", &[], "")));
    let web = Web::new(stable.address).canary(canary.address).table("failures", "statuses = ['4xx', '5xx']");
    let web = web.table("rollout", "steps = [{ weight = 20, hold = '1h' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", "latency_margin = false"));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!(status["rollout"]["reason"]["kind"], "verdict");
}
