//! Endpoints are asked whether they are well.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    thread,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{
    rollout::{Load, events},
    support::{Backend, Refusing, Tidegate, Web, eventually_is, exchange, get, reply, runtime},
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const QUICK: &str = "interval = '20ms'\ntimeout = '5s'\nunhealthy_threshold = 2\nhealthy_threshold = 2\n";

fn web(endpoints: &[SocketAddr], keys: &str) -> Web {
    Web::of(endpoints).table("health_check", &format!("{QUICK}{keys}"))
}

/// Waits until so many of this endpoint's addresses are healthy.
#[track_caller]
fn wait_until_healthy(tidegate: &Tidegate, endpoint: SocketAddr, wanted: f64) {
    let endpoint = endpoint.to_string();
    eventually_is(wanted, || tidegate.scrape().sum("tidegate_endpoint_healthy", &[("endpoint", &endpoint)]));
}

/// A backend whose `/up` answers 200 or 503, as the switch says.
fn switched(name: &'static str) -> (Backend, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let backend = Backend::answering(move |seen| match seen.target() {
        "/up" if is_well.load(SeqCst) => reply("200 OK", &[], ""),
        "/up" => reply("503 Service Unavailable", &[], ""),
        _ => reply("200 OK", &[], name),
    });
    (backend, well)
}

#[test]
fn an_endpoint_that_is_not_well_gets_no_requests_until_it_is() {
    let ((a, well), b) = (switched("a"), switched("b").0);
    let toml = web(&[a.address, b.address], "path = '/up'");
    let tidegate = Tidegate::start(toml.table("balance", "algorithm = 'round-robin'"));
    let mut client = tidegate.client();
    well.store(false, SeqCst);
    wait_until_healthy(&tidegate, a.address, 0.0);
    let names: String = (0..10).map(|_| client.get("/").text()).collect();
    assert_eq!(names, "bbbbbbbbbb");
    well.store(true, SeqCst);
    wait_until_healthy(&tidegate, a.address, 1.0);
    let names: String = (0..4).map(|_| client.get("/").text()).collect();
    assert!(names.contains('a'), "{names}");
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_requests_total", &[], 14.0);
    scrape.expect("tidegate_endpoint_ejections_total", &[], 0.0);
}

#[test]
fn an_http_check_is_a_get_with_the_host_that_was_asked_for() {
    let backend = Backend::named("");
    let _tidegate = Tidegate::start(web(&[backend.address], "path = '/up?now'\nhost = 'app.example'"));
    let _plain = Tidegate::start(web(&[backend.address], "path = '/plain'"));
    let wanted = |target: &str| backend.requests().into_iter().find(|seen| seen.target() == target);
    eventually_is(true, || wanted("/up?now").is_some() && wanted("/plain").is_some());
    let seen = wanted("/up?now").unwrap();
    assert_eq!((seen.method(), seen.fields("host")), ("GET", vec!["app.example"]));
    assert_eq!(seen.fields("user-agent"), ["tidegate-health-check"]);
    assert_eq!(wanted("/plain").unwrap().fields("host"), [backend.address.to_string()]);
}

#[test]
fn only_expected_statuses_pass() {
    let backend = Backend::answering(|_| reply("404 Not Found", &[], ""));
    let tidegate = Tidegate::start(web(&[backend.address], ""));
    wait_until_healthy(&tidegate, backend.address, 0.0);
    let tidegate = Tidegate::start(web(&[backend.address], "expected_statuses = ['200', '400-404']"));
    let before = backend.count();
    eventually_is(true, || backend.count() > before + 4);
    wait_until_healthy(&tidegate, backend.address, 1.0);
}

#[test]
fn a_tcp_check_wants_a_connection() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let tidegate = Tidegate::start(web(&[refusing.address, good.address], "kind = 'tcp'"));
    wait_until_healthy(&tidegate, refusing.address, 0.0);
    let mut client = tidegate.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "good");
    }
    let opened = refusing.open("opened");
    wait_until_healthy(&tidegate, opened.address, 1.0);
}

#[test]
fn a_check_that_takes_too_long_has_failed() {
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let keys = "interval = '20ms'\ntimeout = '50ms'";
    let tidegate = Tidegate::start(Web::of(&[silent.address]).table("health_check", keys));
    wait_until_healthy(&tidegate, silent.address, 0.0);
}

#[test]
fn with_too_few_healthy_all_get_requests_and_without_panic_none() {
    let ((one, first), (two, second)) = (switched("1"), switched("2"));
    first.store(false, SeqCst);
    second.store(false, SeqCst);
    for (panic, status) in [(50, 200), (0, 503)] {
        let toml = web(&[one.address, two.address], "path = '/up'");
        let tidegate = Tidegate::start(toml.table("balance", &format!("panic_threshold = {panic}")));
        wait_until_healthy(&tidegate, one.address, 0.0);
        wait_until_healthy(&tidegate, two.address, 0.0);
        let response = get(tidegate.address(), "/");
        assert_eq!(response.status, status);
        let replies =
            tidegate.scrape().sum("tidegate_local_replies_total", &[("reason", "no_healthy_endpoint")]);
        assert_eq!(replies, if status == 503 { 1.0 } else { 0.0 });
    }
}

#[test]
fn a_canary_none_of_whose_endpoints_is_healthy_is_rolled_back() {
    let ((stable, _), (canary, well)) = (switched("v1"), switched("v2"));
    let web = Web::new(stable.address).canary(canary.address).table("balance", "panic_threshold = 0");
    let web = web.table("health_check", &format!("{QUICK}path = '/up'"));
    let web = web.table("rollout", "steps = [{ weight = 20, hold = '1h' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", "latency_margin = false"));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    well.store(false, SeqCst);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(verdict["reason"]["kind"], "only_failures", "{verdict:#}");
    assert_eq!(verdict["reason"]["unserved"], verdict["reason"]["failures"], "{verdict:#}");
    assert_eq!(verdict["rollout"]["canary"]["failures"], 0, "no evidence: {verdict:#}");
    let why = events(&status).into_iter().find(|event| event.starts_with("rolling back: ")).unwrap();
    assert!(why.contains("no endpoint of the canary could take "), "{why}");
    let canary = [("backend", "v2"), ("role", "canary")];
    assert!(tidegate.scrape().sum("tidegate_unserved_requests_total", &canary) >= 20.0);
}

/// A gRPC server whose health service answers with that serving status.
struct Grpc {
    address: SocketAddr,
    status: Arc<AtomicU8>,
    seen: Arc<Mutex<Vec<(HeaderMap, String, Bytes)>>>,
}

type Answer = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

impl Grpc {
    fn start() -> Self {
        let status = Arc::new(AtomicU8::new(1));
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (give, take) = std::sync::mpsc::channel();
        let (serving, looking) = (Arc::clone(&status), Arc::clone(&seen));
        thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                give.send(listener.local_addr().unwrap()).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    let (status, seen) = (Arc::clone(&serving), Arc::clone(&looking));
                    let service = service_fn(move |request: Request<Incoming>| {
                        answer(request, Arc::clone(&status), Arc::clone(&seen))
                    });
                    let builder = http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(builder.serve_connection(TokioIo::new(socket), service));
                }
            });
        });
        Self { address: take.recv().unwrap(), status, seen }
    }
}

async fn answer(
    request: Request<Incoming>,
    status: Arc<AtomicU8>,
    seen: Arc<Mutex<Vec<(HeaderMap, String, Bytes)>>>,
) -> hyper::Result<Response<Answer>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    seen.lock().unwrap().push((head.headers, head.uri.path().to_owned(), body));
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status.load(SeqCst)]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(message).with_trailers(async move { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap())
}

#[test]
fn a_grpc_check_asks_the_health_service() {
    let grpc = Grpc::start();
    let tidegate = Tidegate::start(web(&[grpc.address], "kind = 'grpc'\ngrpc_service = 'shop.Cart'"));
    eventually_is(true, || grpc.seen.lock().unwrap().len() >= 3);
    wait_until_healthy(&tidegate, grpc.address, 1.0);
    // NOT_SERVING.
    grpc.status.store(2, SeqCst);
    wait_until_healthy(&tidegate, grpc.address, 0.0);
    grpc.status.store(1, SeqCst);
    wait_until_healthy(&tidegate, grpc.address, 1.0);
    let (headers, path, body) = grpc.seen.lock().unwrap()[0].clone();
    assert_eq!(path, "/grpc.health.v1.Health/Check");
    assert_eq!((&headers["content-type"], &headers["te"]), (&GRPC, &TRAILERS));
    assert_eq!(&body[..], b"\0\0\0\0\x0b\x0a\x09shop.Cart");
}

#[test]
fn a_grpc_check_of_a_server_that_speaks_no_grpc_fails() {
    let backend = Backend::named("http");
    let tidegate = Tidegate::start(web(&[backend.address], "kind = 'grpc'"));
    wait_until_healthy(&tidegate, backend.address, 0.0);
}

#[test]
fn checks_count_for_nobody() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(web(&[backend.address], ""));
    eventually_is(true, || backend.count() > 3);
    let request = exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(request.text(), "v1");
    tidegate.scrape().expect("tidegate_requests_total", &[], 1.0);
}
