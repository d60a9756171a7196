//! Requests to the admin API, one after the other: method, path and body, a line each. Whatever is
//! asked, the answer is JSON (or the metrics), and a request that is refused has changed nothing.

#![no_main]

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use libfuzzer_sys::fuzz_target;
use prometheus::Registry;
use serde_json::Value;
use tidegate::{
    admin::{fuzzing::router, readiness::Readiness},
    config::{Config, load::parse},
    controller::{
        Controller, Inputs,
        publish::{Compiled, Publisher},
    },
    store::Store,
    telemetry::ledger::Hub,
    tls::reload::Keeper,
};
use tokio::{runtime::Builder, time::advance};
use tower::ServiceExt as _;

const CONFIG: &str = "
[[listeners]]
address = '127.0.0.1:1'
[admin]
[[routes]]
service = 'web'
[services.web]
stable = 'v1'
canary = 'v2'
backends = { v1 = { endpoints = ['http://127.0.0.1:1'] }, v2 = { endpoints = ['http://127.0.0.1:1'] } }
rollout = { steps = [{ weight = 10, hold = '1m' }] }
";

fuzz_target!(|data: &[u8]| {
    // Time stands still, so that nothing happens but what is asked for.
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("there is room for a runtime").block_on(async {
        let api = api();
        // But the first tick, which comes at once.
        advance(Duration::from_millis(5)).await;
        for line in data.split(|b| *b == b'\n') {
            let mut words = line.splitn(3, |b| *b == b' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let body = words.next().unwrap_or_default().to_vec();
            let before = ask(&api, Request::get("/api/v1/services/web").body(Body::empty()).ok()).await;
            let request = Request::builder().method(method).uri(path).body(Body::from(body));
            let Some((status, _)) = ask(&api, request.ok()).await else { continue };
            let after = ask(&api, Request::get("/api/v1/services/web").body(Body::empty()).ok()).await;
            let is_event = |answer: Option<(StatusCode, Value)>| answer.map(|(_, web)| web["events"].clone());
            assert!(status.is_success() || is_event(before) == is_event(after), "{status} changed something");
        }
    });
});

thread_local! {
    static PARSED: Config = parse("tidegate.toml", CONFIG).expect("it is right").0;
}

fn api() -> Router {
    let config = PARSED.with(Config::clone);
    let registry = Registry::new();
    let mut keeper = Keeper::new(&registry).expect("nothing else is registered");
    let compiled = Compiled::new(&config, &mut keeper).expect("nobody speaks TLS");
    let publisher = Arc::new(Publisher::new(compiled));
    let (hub, tick) = (Arc::new(Hub::new(1)), Duration::from_secs(60));
    let store = Store::in_memory();
    let inputs = Inputs { config: &config, publisher, hub, tick, store, registry: &registry };
    let controller = Controller::start(inputs).expect("nothing else is registered");
    let admin = config.admin.as_ref().expect("it has an admin side");
    router(admin, controller, registry, Readiness::default())
}

/// What is answered; nothing if it is no request.
async fn ask(api: &Router, request: Option<Request<Body>>) -> Option<(StatusCode, Value)> {
    let response = api.clone().oneshot(request?).await.expect("it always answers");
    let (head, body) = response.into_parts();
    // A stream has no end.
    if head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream") {
        return None;
    }
    let body = body.collect().await.expect("the body is whole").to_bytes();
    assert!(head.status.as_u16() < 500 || head.status == StatusCode::SERVICE_UNAVAILABLE, "{head:?}");
    let kind = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let answer = match kind {
        b"application/json" | b"application/problem+json" if !body.is_empty() => {
            serde_json::from_slice(&body).expect("it is JSON")
        }
        _ => Value::Null,
    };
    if kind == b"application/problem+json" && !body.is_empty() {
        assert_eq!(answer["status"], head.status.as_u16());
        assert!(answer["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{answer}");
    }
    Some((head.status, answer))
}
