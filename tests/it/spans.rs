//! Spans of sampled exchanges: what they tell, what backends are told, and that nobody waits for them.

use std::{
    fs,
    sync::{Mutex, mpsc},
    time::Duration,
};

use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::{
    reload::Filed,
    retry,
    support::{
        Backend, H2, HyperBackend, Limits, Refusing, Tidegate, Web,
        certificates::Files,
        client::{empty, full, h2_request},
        collector::{Collector, attribute, message},
        eventually, eventually_is, exchange, get, reply, runtime,
    },
};

const ALL: &str = "sample = 1";
const NONE: &str = "sample = 0";
const TRUSTED: &str = "trusted_proxies = ['127.0.0.0/8']\n";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const EXPORTED: &str = "tidegate_spans_exported_total";
const DROPPED: &str = "tidegate_spans_dropped_total";
const ERRORS: &str = "tidegate_spans_export_errors_total";

fn start(web: Web, collector: &Collector, keys: &str) -> Tidegate {
    Tidegate::start(web.to_string() + &collector.table(keys))
}

/// A request in somebody's trace.
fn traced(parent: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\nTraceparent: {parent}\r\nTracestate: a=b\r\n\r\n")
}

#[test]
fn a_sampled_request_is_a_span_and_so_is_its_attempt_which_the_backend_is_told() {
    let (backend, collector) = (Backend::named("v1"), Collector::start());
    let tidegate = start(Web::new(backend.address), &collector, ALL);
    let head = "GET /a//b?token=secret HTTP/1.1\r\nHost: web.test:80\r\nUser-Agent: tests/1\r\n\
                Connection: traceparent\r\n\r\n";
    assert_eq!(exchange(tidegate.address(), head).status, 200);
    let [server, client] = collector.wait_for(2).try_into().unwrap();
    assert!(server.is_server() && server.parent().is_empty() && client.is_child_of(&server));
    let (ip, port) = (backend.address.ip().to_string(), backend.address.port().to_string());
    let both = [("http.request.method", "GET"), ("http.response.status_code", "200")];
    server.expect(&both);
    server.expect(&[
        ("url.scheme", "http"),
        ("url.path", "/a//b"),
        ("server.address", "web.test"),
        ("server.port", "80"),
        ("http.route", "/"),
        ("user_agent.original", "tests/1"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("http.response.body.size", "2"),
        ("tidegate.service", "web"),
        ("tidegate.assignment", "weight"),
    ]);
    client.expect(&both);
    client.expect(&[
        ("server.address", &ip),
        ("server.port", &port),
        ("tidegate.service", "web"),
        ("tidegate.backend", "v1"),
        ("tidegate.role", "stable"),
        ("tidegate.outcome", "2xx"),
    ]);
    assert_eq!((server.0.name.as_str(), client.0.name.as_str()), ("GET /", "GET"));
    assert!(!server.failed() && server.get("error.type").is_none());
    let (began, ended) = (server.0.start_time_unix_nano, server.0.end_time_unix_nano);
    assert!(began <= client.0.start_time_unix_nano && client.0.end_time_unix_nano <= ended);
    assert_eq!(backend.only_request().fields("traceparent"), [client.context()]);
    let seen = collector.0.only_request();
    assert_eq!((seen.method(), seen.target()), ("POST", "/v1/traces"));
    assert_eq!(seen.fields("content-type"), ["application/x-protobuf"]);
    let resource = message(&seen).resource_spans.remove(0).resource.unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("tidegate"));
    eventually_is(2.0, || tidegate.scrape().sum(EXPORTED, &[]));
    tidegate.scrape().expect(DROPPED, &[], 0.0);
}

#[test]
fn the_access_log_names_the_trace_of_what_has_spans() {
    let (backend, collector, files) = (Backend::named("v1"), Collector::start(), Files::new());
    let path = files.path("access.log");
    let log = format!("[access_log]\noutput = '{}'\n", path.display());
    let web = Web::new(backend.address).listener(TRUSTED).to_string();
    let tidegate = Tidegate::start(web + &collector.table(NONE) + &log);
    for parent in [PARENT, "none"] {
        assert_eq!(exchange(tidegate.address(), traced(parent)).text(), "v1");
    }
    let lines = || fs::read_to_string(&path).unwrap_or_default();
    let text = eventually(lines, |text| text.lines().count() == 2);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["trace_id"], &lines[1]["trace_id"]), (&TRACE.into(), &Value::Null));
    assert_eq!((&lines[0]["attempts"], &lines[0]["bytes_out"]), (&1.into(), &2.into()));
    collector.wait_for(2);
}

#[test]
fn a_retry_is_a_span_of_its_own_and_a_shielded_one_names_the_role() {
    let (stable, collector) = (Backend::named("v1"), Collector::start());
    let canary = Backend::answering(|_| reply("503 Service Unavailable", &[], ""));
    let web = Web::new(stable.address).canary(canary.address).weight(100.0);
    let tidegate = start(web.table("retry", "attempts = 0\nshield = true"), &collector, ALL);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    let [server, first, second] = collector.wait_for(3).try_into().unwrap();
    assert!(server.is_server() && first.is_child_of(&server) && second.is_child_of(&server));
    first.expect(&[
        ("tidegate.role", "canary"),
        ("http.response.status_code", "503"),
        ("error.type", "503"),
        ("tidegate.outcome", "5xx"),
    ]);
    second.expect(&[
        ("tidegate.role", "stable"),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", "1"),
    ]);
    assert_eq!((server.failed(), first.failed(), second.failed()), (false, true, false));
    assert_eq!(first.get("http.request.resend_count"), None);
    server.expect(&[("http.response.status_code", "200"), ("tidegate.assignment", "shield")]);
    for (backend, span) in [(canary, first), (stable, second)] {
        assert_eq!(backend.only_request().fields("traceparent"), [span.context()]);
    }
}

#[test]
fn a_copy_for_the_canary_belongs_to_the_exchange() {
    let (stable, canary, collector) = (Backend::named("v1"), Backend::named("v2"), Collector::start());
    let web = Web::new(stable.address).canary(canary.address).weight(0.0);
    let tidegate = start(web.table("mirror", "percent = 100"), &collector, ALL);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    eventually_is(1, || canary.count());
    let [server, client] = collector.wait_for(2).try_into().unwrap();
    assert_eq!(stable.only_request().fields("traceparent"), [client.context()]);
    assert_eq!(canary.only_request().fields("traceparent"), [server.context()]);
}

#[test]
fn a_trusted_proxy_says_which_trace_it_is_and_whether_it_is_sampled() {
    let (backend, collector) = (Backend::named("v1"), Collector::start());
    let tidegate = start(Web::new(backend.address).listener(TRUSTED), &collector, NONE);
    exchange(tidegate.address(), traced(PARENT));
    let [server, client] = collector.wait_for(2).try_into().unwrap();
    assert_eq!((server.trace_id().as_str(), server.parent().as_str()), (TRACE, "b7ad6b7169203331"));
    let seen = backend.only_request();
    assert_eq!(
        (seen.fields("traceparent"), seen.fields("tracestate")),
        (vec![&*client.context()], vec!["a=b"])
    );
    // What they do not sample passes as it came, whatever is in it.
    let unsampled = PARENT.replace("-01", "-02");
    exchange(tidegate.address(), traced(&unsampled));
    let seen = backend.requests().remove(1);
    assert_eq!((seen.fields("traceparent"), seen.fields("tracestate")), (vec![&*unsampled], vec!["a=b"]));
    // Two are one too many to believe either.
    let twice = format!(
        "{}Traceparent: {PARENT}\r\n\r\n",
        traced(PARENT).trim_end_matches("\r\n").to_owned() + "\r\n"
    );
    exchange(tidegate.address(), twice);
    let seen = backend.requests().remove(2);
    let told = seen.fields("traceparent");
    assert!(told.len() == 1 && told[0].ends_with("-00") && !told[0].contains(TRACE), "{told:?}");
    drop(tidegate);
    assert_eq!(collector.spans().len(), 2);
}

#[test]
fn by_its_own_share_it_goes_on_with_a_trace_whatever_the_flag_says() {
    let (backend, collector) = (Backend::named("v1"), Collector::start());
    let web = Web::new(backend.address).listener(TRUSTED);
    let tidegate = start(web.clone(), &collector, "sample = 1\nparent_based = false");
    exchange(tidegate.address(), traced(&PARENT.replace("-01", "-00")));
    let [server, client] = collector.wait_for(2).try_into().unwrap();
    assert_eq!((server.trace_id().as_str(), server.parent().as_str()), (TRACE, "b7ad6b7169203331"));
    assert_eq!(backend.only_request().fields("traceparent"), [client.context()]);
    let none = Collector::start();
    let tidegate = start(web, &none, "sample = 0\nparent_based = false");
    exchange(tidegate.address(), traced(PARENT));
    assert_eq!(backend.requests()[1].fields("traceparent"), [PARENT]);
    drop(tidegate);
    assert_eq!(none.0.count(), 0);
}

#[test]
fn a_stranger_is_not_believed() {
    let (backend, collector) = (Backend::named("v1"), Collector::start());
    for (keys, flag) in [(ALL, "-01"), (NONE, "-00")] {
        let tidegate = start(Web::new(backend.address), &collector, keys);
        exchange(tidegate.address(), traced(PARENT));
        let seen = backend.requests().pop().unwrap();
        let told = seen.fields("traceparent");
        assert!(told.len() == 1 && told[0].ends_with(flag) && !told[0].contains(TRACE), "{told:?}");
        assert!(seen.fields("tracestate").is_empty(), "it is about the other trace");
    }
    let spans = collector.wait_for(2);
    assert!(spans[0].parent().is_empty() && spans[0].trace_id() != TRACE);
}

#[test]
fn without_a_table_there_is_nothing() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    get(tidegate.address(), "/");
    assert!(backend.only_request().fields("traceparent").is_empty());
    let text = tidegate.ask("GET", "/metrics", "").text();
    assert!(!text.contains("tidegate_spans"), "{text}");
}

#[test]
fn a_route_can_keep_it_from_its_backend() {
    let collector = Collector::start();
    let bad = Backend::answering(|_| reply("503 Service Unavailable", &[], ""));
    let good = Backend::named("v1");
    let web = retry::web(&[bad.address, good.address], "").to_string();
    let filter = "service = 'web'\n[routes.request_header_modifier]\nremove = ['traceparent']\n";
    let web = web.replacen("service = 'web'\n", filter, 1);
    let tidegate = Tidegate::start(web + &collector.table(ALL));
    // They take turns, so one of two is tried again.
    for _ in 0..2 {
        assert_eq!(get(tidegate.address(), "/").text(), "v1");
    }
    eventually(|| collector.spans(), |spans| spans.len() == 5);
    let requests = [bad, good].map(|backend| backend.requests()).concat();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|seen| seen.fields("traceparent").is_empty()));
}

#[test]
fn a_reply_of_our_own_is_a_span_that_says_why() {
    let (refusing, collector) = (Refusing::new(), Collector::start());
    let tidegate = start(Web::new(refusing.address), &collector, ALL);
    assert_eq!(get(tidegate.address(), "/").status, 502);
    let [server, client] = collector.wait_for(2).try_into().unwrap();
    server.expect(&[
        ("http.response.status_code", "502"),
        ("error.type", "connect_failure"),
        ("tidegate.local_reply", "connect_failure"),
    ]);
    client.expect(&[("error.type", "connect_failure"), ("tidegate.outcome", "connect_failure")]);
    assert!(server.failed() && client.failed() && client.get("http.response.status_code").is_none());
    assert_eq!(exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost: a b\r\n\r\n").status, 400);
    let spans = eventually(|| collector.spans(), |spans| spans.len() == 3);
    spans[2].expect(&[("http.response.status_code", "400"), ("tidegate.local_reply", "bad_request")]);
    assert!(!spans[2].failed() && spans[2].get("tidegate.service").is_none());
}

#[test]
fn a_span_lasts_as_long_as_its_body_and_a_client_that_leaves_is_named() {
    let (say, said) = mpsc::channel::<()>();
    let said = Mutex::new(said);
    let backend = Backend::scripted(move |mut peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na");
            if said.lock().unwrap().recv().is_err() || !peer.send("b") {
                return;
            }
        }
    });
    let collector = Collector::start();
    let tidegate = start(Web::new(backend.address), &collector, ALL);
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1, || backend.count());
    // The exporter has looked, and found nothing that has ended.
    assert!(collector.spans().is_empty());
    say.send(()).unwrap();
    assert_eq!(client.response().text(), "ab");
    let spans = collector.wait_for(2);
    spans[0].expect(&[("http.response.body.size", "2")]);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(2, || backend.count());
    drop(client);
    let spans = eventually(|| collector.spans(), |spans| spans.len() == 4);
    for span in &spans[2..] {
        span.expect(&[("error.type", "client_abort"), ("http.response.status_code", "200")]);
        assert!(!span.failed(), "nobody has failed: {span:#?}");
    }
    drop(say);
}

#[test]
fn a_call_says_how_it_ended() {
    let backend = HyperBackend::serving(Limits::default(), |request| async move {
        let response = Response::builder().header("content-type", "application/grpc");
        let response = response.header("x-told", &request.headers()["traceparent"]);
        if request.uri().path() == "/s/Head" {
            return response.header("grpc-status", "0").body(empty()).unwrap();
        }
        request.into_body().collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "14".parse().unwrap());
        let body = full("message").with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
        response.body(body).unwrap()
    });
    let collector = Collector::start();
    let tidegate = start(Web::h2c(backend.address), &collector, ALL);
    let client = H2::connect(tidegate.address());
    let call = |path: &str| {
        let request = h2_request("POST", path).header("content-type", "application/grpc");
        runtime().block_on(async {
            let response = client.send(request.body(full("question")).unwrap()).await.unwrap();
            let told = response.headers()["x-told"].to_str().unwrap().to_owned();
            response.into_body().collect().await.unwrap();
            told
        })
    };
    let told = call("/s/Trailers");
    for span in collector.wait_for(2) {
        span.expect(&[
            ("rpc.system.name", "grpc"),
            ("rpc.response.status_code", "UNAVAILABLE"),
            ("http.response.status_code", "200"),
            ("error.type", "UNAVAILABLE"),
        ]);
        assert!(span.failed());
        if span.is_server() {
            span.expect(&[("network.protocol.version", "2")]);
        } else {
            assert_eq!(told, span.context());
        }
    }
    call("/s/Head");
    let spans = eventually(|| collector.spans(), |spans| spans.len() == 4);
    for span in &spans[2..] {
        span.expect(&[("rpc.response.status_code", "OK")]);
        assert!(!span.failed());
    }
}

#[test]
fn what_nobody_takes_is_counted_and_no_request_notices() {
    let backend = Backend::named("v1");
    let refused = Collector::answering("400 Bad Request");
    let tidegate = start(Web::new(backend.address), &refused, ALL);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    eventually_is(2.0, || tidegate.scrape().sum(DROPPED, &[]));
    tidegate.scrape().expect(ERRORS, &[], 1.0);
    tidegate.scrape().expect(EXPORTED, &[], 0.0);
    assert_eq!(refused.0.count(), 1, "what was refused is not sent again");
}

#[test]
fn a_collector_that_is_down_gets_the_spans_when_it_is_back() {
    let (backend, down) = (Backend::named("v1"), Refusing::new());
    let web = Web::new(backend.address).to_string();
    let tracing = format!("[tracing]\nurl = 'http://{}'\nsample = 1\n", down.address);
    let mut tidegate = Tidegate::start(web + &tracing);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    eventually(|| tidegate.scrape().sum(ERRORS, &[]), |errors| *errors >= 1.0);
    tidegate.scrape().expect(DROPPED, &[], 0.0);
    assert_eq!(get(tidegate.address(), "/").text(), "v1");
    let collector = Collector(down.open("taken"));
    eventually_is(4.0, || tidegate.scrape().sum(EXPORTED, &[]));
    assert_eq!(collector.spans().len(), 4);
    tidegate.drain(Duration::ZERO);
    tidegate.wait_for_end();
}

#[test]
fn one_that_says_nothing_holds_nobody_up_and_not_the_end_either() {
    let backend = Backend::named("v1");
    let silent = Collector(Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    }));
    let web = Web::new(backend.address).deadline("1s");
    let mut tidegate = start(web, &silent, ALL);
    for _ in 0..10 {
        assert_eq!(get(tidegate.address(), "/").text(), "v1");
    }
    eventually_is(1, || silent.0.count());
    tidegate.drain(Duration::ZERO);
    tidegate.wait_for_end();
}

#[test]
fn a_drain_waits_for_the_last_spans() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let backend = Backend::answering(move |_| {
        gone.lock().unwrap().recv().unwrap();
        reply("200 OK", &[], "late")
    });
    let collector = Collector::start();
    let mut tidegate = start(Web::new(backend.address), &collector, ALL);
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually_is(1, || backend.count());
    tidegate.drain(Duration::ZERO);
    go.send(()).unwrap();
    assert_eq!(client.response().text(), "late");
    tidegate.wait_for_end();
    assert_eq!(collector.spans().len(), 2);
}

#[test]
fn the_share_and_the_collector_can_change_and_whether_there_is_tracing_cannot() {
    let (backend, first, second) = (Backend::named("v1"), Collector::start(), Collector::start());
    let files = Files::new();
    let web = Web::new(backend.address);
    let filed = Filed::start(format!("{web}{}", first.table(NONE)));
    get(filed.tidegate.address(), "/");
    assert!(backend.only_request().fields("traceparent")[0].ends_with("-00"));
    let token = files.write("token", "Authorization: Bearer abc\n");
    let keys = format!("sample = 1\nservice_name = 'edge'\nheaders_file = '{}'", token.display());
    let changes = filed.take_up(format!("{web}{}", second.table(&keys)));
    assert_eq!(changes, ["[tracing] changed"]);
    get(filed.tidegate.address(), "/");
    second.wait_for(2);
    let seen = second.0.only_request();
    assert_eq!(seen.fields("authorization"), ["Bearer abc"]);
    let resource = message(&seen).resource_spans.remove(0).resource.unwrap();
    assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("edge"));
    assert_eq!(first.0.count(), 0);
    filed.is_refused(&web, 409, "adding or removing `[tracing]` needs a restart");
}
