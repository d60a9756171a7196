//! What is written about each exchange, and that nobody waits for it.

use std::{
    fs::{self, OpenOptions},
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{Mutex, mpsc},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Backend, H2, HyperBackend, Limits, Refusing, Tidegate, Web,
    client::{full, h2_request},
    eventually, eventually_is, get, reply, runtime,
};

/// A Tidegate that logs to a file.
struct Logged {
    /// Dropped first, so that all is written before the folder goes.
    tidegate: Option<Tidegate>,
    path: PathBuf,
    _folder: TempDir,
}

impl Logged {
    fn start(toml: impl ToString) -> Self {
        Self::with(toml, "")
    }

    /// With more keys of the log.
    fn with(toml: impl ToString, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = format!("[access_log]\noutput = '{}'\n{keys}\n", path.display());
        let tidegate = Some(Tidegate::start(toml.to_string() + &log));
        Self { tidegate, path, _folder: folder }
    }

    fn tidegate(&self) -> &Tidegate {
        self.tidegate.as_ref().unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.tidegate().address()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// The one line, once it is there.
    #[track_caller]
    fn line(&self) -> Value {
        let text = eventually(|| self.text(), |text| text.ends_with('\n'));
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Waits for the one line, and checks it but for what the clock says.
    #[track_caller]
    fn expect(&self, wanted: Value) {
        let mut line = self.line();
        let fields = line.as_object_mut().unwrap();
        let time = fields.remove("time").unwrap();
        let time = time.as_str().unwrap();
        assert_eq!((time.len(), &time[19..20], &time[23..]), (24, ".", "Z"), "{time}");
        let duration = fields.remove("duration_ms").unwrap().as_f64().unwrap();
        let head = fields.remove("head_ms").unwrap();
        assert!(duration > 0.0 && head.as_f64().is_none_or(|head| head <= duration), "{duration} {head}");
        fields.insert("has_head".to_owned(), head.is_number().into());
        // Where nothing is said of attempts, none was made.
        if fields["attempts"] == 0 {
            fields.remove("attempts");
        }
        let wanted_fields = wanted.as_object().unwrap();
        for (key, value) in wanted_fields {
            assert_eq!(&fields[key], value, "{key} in {fields:#?}");
        }
        let more: Vec<_> = fields.iter().filter(|(key, _)| !wanted_fields.contains_key(*key)).collect();
        assert!(more.iter().all(|(_, value)| value.is_null()), "{more:?}");
    }
}

/// What every line says that tells of an attempt at the only backend.
fn attempted(endpoint: SocketAddr, fields: Value) -> Value {
    let mut all = json!({
        "client": "127.0.0.1", "method": "GET", "host": "web.test", "path": "/", "protocol": "HTTP/1.1",
        "bytes_in": 0, "service": "web", "backend": "v1", "role": "stable", "assignment": "weight",
        "endpoint": endpoint.to_string(), "attempts": 1,
    });
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    all
}

#[test]
fn a_proxied_exchange_is_one_line_with_every_field() {
    let backend = Backend::named("v1");
    let logged = Logged::start(Web::new(backend.address));
    let mut client = logged.tidegate().client();
    client.send(
        "POST /a//b?c=%20d HTTP/1.1\r\nHost: web.test:80\r\nUser-Agent: tests/1 (\"quoted\")\r\n\
         Referer: http://other.test/\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    assert_eq!(client.response().text(), "v1");
    logged.expect(attempted(
        backend.address,
        json!({
            "method": "POST", "host": "web.test:80", "path": "/a//b?c=%20d", "status": 200, "bytes_in": 5,
            "bytes_out": 2, "has_head": true, "outcome": "2xx", "user_agent": "tests/1 (\"quoted\")",
            "referer": "http://other.test/",
        }),
    ));
}

#[test]
fn a_role_that_was_forced_is_logged_with_its_reason() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let force = "[[services.web.force]]\nheader = { name = 'x-try', value = 'v2' }\nrole = 'canary'\n";
    let web = Web::new(stable.address).canary(canary.address).to_string() + force;
    let logged = Logged::start(web);
    let mut client = logged.tidegate().client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\nX-Try: v2\r\n\r\n");
    assert_eq!(client.response().text(), "v2");
    logged.expect(attempted(
        canary.address,
        json!({
            "status": 200, "bytes_out": 2, "has_head": true, "outcome": "2xx", "backend": "v2",
            "role": "canary", "assignment": "header",
        }),
    ));
}

#[test]
fn bytes_that_pass_inside_the_kernel_count() {
    let body = vec![b'x'; 1 << 20];
    let length = body.len();
    let backend = Backend::answering(move |_| reply("200 OK", &[], &body));
    let logged = Logged::start(Web::new(backend.address));
    assert_eq!(get(logged.address(), "/").body.len(), length);
    assert_eq!(logged.line()["bytes_out"], length);
}

#[test]
fn replies_of_our_own_say_why() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string();
    let logged = Logged::start(toml.replace("[[routes]]", "[[routes]]\nhostnames = ['other.test']"));
    assert_eq!(get(logged.address(), "/nowhere").status, 404);
    logged.expect(json!({
        "client": "127.0.0.1", "method": "GET", "host": "web.test", "path": "/nowhere",
        "protocol": "HTTP/1.1", "status": 404, "bytes_in": 0, "bytes_out": 31, "has_head": false,
        "local_reply": "no_route",
    }));
    let refusing = Refusing::new();
    let logged = Logged::start(Web::new(refusing.address));
    assert_eq!(get(logged.address(), "/").status, 502);
    let failure = "connect_failure";
    logged.expect(attempted(
        refusing.address,
        json!({
            "status": 502, "bytes_out": 37, "has_head": false, "local_reply": failure, "outcome": failure,
        }),
    ));
}

#[test]
fn a_redirect_is_a_reply_of_our_own() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string();
    let route =
        "[[routes]]\npath_prefix = '/old'\nrequest_redirect = { replace_prefix_match = '/new' }\n[[routes]]";
    let logged = Logged::start(toml.replace("[[routes]]", route));
    assert_eq!(get(logged.address(), "/old/a").status, 302);
    let line = logged.line();
    let (status, reason) = (&line["status"], &line["local_reply"]);
    assert_eq!((status, reason, &line["outcome"]), (&json!(302), &json!("redirect"), &Value::Null));
}

#[test]
fn a_body_that_breaks_off_is_logged_as_far_as_it_came() {
    let (received, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let backend = Backend::scripted(move |mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            wait.lock().unwrap().recv().unwrap();
        }
    });
    let logged = Logged::start(Web::new(backend.address));
    let mut client = logged.tidegate().client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    assert!(client.wire.read_head().unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(client.wire.read_length(4), b"half");
    assert_eq!(logged.text(), "", "the exchange has not ended");
    received.send(()).unwrap();
    logged.expect(attempted(
        backend.address,
        json!({ "status": 200, "bytes_out": 4, "has_head": true, "outcome": "reset" }),
    ));
}

#[test]
fn a_client_that_goes_away_is_logged_without_a_status() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.wait_for_end();
        }
    });
    let logged = Logged::start(Web::new(backend.address));
    let mut client = logged.tidegate().client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    eventually_is(1, || backend.count());
    drop(client);
    let gone = json!({ "bytes_out": 0, "has_head": false, "outcome": "client_abort" });
    logged.expect(attempted(backend.address, gone));
}

#[test]
fn a_call_that_failed_inside_a_200_is_logged_as_failed() {
    let backend = HyperBackend::serving(Limits::default(), |request| async {
        request.into_body().collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "13".parse().unwrap());
        let body = full("message").with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
        Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    });
    let logged = Logged::start(Web::h2c(backend.address));
    let client = H2::connect(logged.address());
    let request = h2_request("POST", "/s/Call").header("content-type", "application/grpc");
    runtime().block_on(async {
        let response = client.send(request.body(full("question")).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), Bytes::from("message"));
    });
    logged.expect(attempted(
        backend.address,
        json!({
            "method": "POST", "path": "/s/Call", "protocol": "HTTP/2", "status": 200, "bytes_in": 8,
            "bytes_out": 7, "has_head": true, "outcome": "grpc_failure",
        }),
    ));
}

#[test]
fn a_tunnel_is_logged_at_its_end() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
            peer.send("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello");
            let seen = peer.wire.read_length(4);
            peer.send(seen);
        }
    });
    let logged = Logged::start(Web::new(backend.address));
    let mut client = logged.tidegate().client();
    client.send(
        "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_eq!(client.response().status, 101);
    assert_eq!(client.wire.read_length(5), b"hello");
    assert_eq!(logged.text(), "", "the tunnel stands");
    client.send("ping");
    assert_eq!(client.wire.read_length(4), b"ping");
    drop(client);
    logged.expect(attempted(
        backend.address,
        json!({ "status": 101, "bytes_in": 4, "bytes_out": 9, "has_head": true, "outcome": "1xx" }),
    ));
}

#[test]
fn what_clients_send_stays_within_its_quotes() {
    let backend = Backend::named("v1");
    let logged = Logged::with(Web::new(backend.address), "format = 'text'");
    let mut client = logged.tidegate().client();
    let agent = b"User-Agent: a\" status=500 \\ \xc2\x85\x9b\tb\r\n\r\n";
    client.send([b"GET /\"x HTTP/1.1\r\nHost: web.test\r\n", &agent[..]].concat());
    assert_eq!(client.response().status, 200);
    let text = eventually(|| logged.text(), |text| text.ends_with('\n'));
    let end = r#"outcome=2xx user_agent="a\" status=500 \\ \xc2\x85\x9b\x09b" referer=- trace_id=-"#;
    assert!(text.trim_end().ends_with(end), "{text}");
    assert!(text.contains(r#" path="/\"x" "#), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn a_file_that_was_moved_away_is_opened_anew() {
    let backend = Backend::named("v1");
    let logged = Logged::start(Web::new(backend.address));
    get(logged.address(), "/1");
    assert_eq!(logged.line()["path"], "/1");
    let away = logged.path.with_extension("1");
    fs::rename(&logged.path, &away).unwrap();
    get(logged.address(), "/2");
    assert_eq!(logged.line()["path"], "/2");
    fs::remove_file(&logged.path).unwrap();
    get(logged.address(), "/3");
    assert_eq!(logged.line()["path"], "/3");
    assert_eq!(fs::read_to_string(&away).unwrap().lines().count(), 1);
}

#[test]
fn a_file_that_cannot_be_opened_anew_goes_on_in_the_old_one() {
    let backend = Backend::named("v1");
    let folder = tempfile::tempdir().unwrap();
    let (logs, away) = (folder.path().join("logs"), folder.path().join("away"));
    fs::create_dir(&logs).unwrap();
    let log = format!("[access_log]\noutput = '{}'\n", logs.join("access.log").display());
    let tidegate = Tidegate::start(Web::new(backend.address).to_string() + &log);
    fs::rename(&logs, &away).unwrap();
    get(tidegate.address(), "/");
    let lines = || fs::read_to_string(away.join("access.log")).unwrap().lines().count();
    eventually_is(1, lines);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_access_log_write_errors_total", &[], 1.0);
    scrape.expect("tidegate_access_log_dropped_total", &[], 0.0);
    fs::create_dir(&logs).unwrap();
    get(tidegate.address(), "/");
    eventually_is(true, || logs.join("access.log").exists());
    drop(tidegate);
    assert_eq!(lines(), 1);
}

#[test]
fn what_is_done_is_written_before_the_end() {
    let backend = Backend::named("v1");
    let mut logged = Logged::start(Web::new(backend.address).workers(2));
    for _ in 0..20 {
        get(logged.address(), "/");
    }
    drop(logged.tidegate.take());
    assert_eq!(logged.text().lines().count(), 20);
}

#[test]
fn nobody_waits_for_an_output_that_stands_still() {
    let backend = Backend::named("v1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Open for both, so that neither waits for the other; nobody reads.
    let pipe = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let toml = Web::new(backend.address).to_string();
    let toml = toml.replace("[[routes]]", "[[routes]]\nhostnames = ['other.test']");
    let tidegate = Tidegate::start(format!("{toml}[access_log]\noutput = '{}'\n", path.display()));
    let lost = || tidegate.scrape().sum("tidegate_access_log_dropped_total", &[]);
    let mut client = tidegate.client();
    // The pipe, what is being written and the queue hold fewer lines than these.
    for _ in 0..12 {
        client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n".repeat(500));
        for _ in 0..500 {
            assert_eq!(client.response().status, 404);
        }
    }
    assert!(lost() > 0.0);
    tidegate.scrape().expect("tidegate_access_log_write_errors_total", &[], 0.0);
    // Nor does the end wait, once it is clear that nobody will read.
    drop(pipe);
    let errors = || tidegate.scrape().sum("tidegate_access_log_write_errors_total", &[]);
    eventually(errors, |errors| *errors > 0.0);
    assert_eq!(client.get("/").status, 404);
}

#[test]
fn of_several_attempts_the_last_is_told_of_and_all_are_counted() {
    let bad = Backend::answering(|_| reply("503 Service Unavailable", &[], "bad"));
    let good = Backend::named("good");
    let web = Web::of(&[bad.address, good.address]).table("balance", "algorithm = 'round-robin'");
    let logged = Logged::start(web.table("retry", ""));
    assert_eq!(get(logged.address(), "/").text(), "good");
    let fields = json!({ "status": 200, "bytes_out": 4, "has_head": true, "outcome": "2xx", "attempts": 2 });
    logged.expect(attempted(good.address, fields));
}

#[test]
fn a_user_who_is_shielded_is_logged_where_the_answer_came_from() {
    let canary = Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"));
    let stable = Backend::named("v1");
    let web = Web::new(stable.address).canary(canary.address).weight(100.0);
    let logged = Logged::start(web.table("retry", "shield = true"));
    assert_eq!(get(logged.address(), "/").text(), "v1");
    logged.expect(attempted(
        stable.address,
        json!({
            "status": 200, "bytes_out": 2, "has_head": true, "outcome": "2xx", "attempts": 2,
            "assignment": "shield",
        }),
    ));
}

#[test]
fn a_retry_that_only_waits_is_no_attempt() {
    let bad = Backend::answering(|_| reply("503 Service Unavailable", &[], "bad"));
    let good = Backend::named("good");
    let web = Web::of(&[bad.address, good.address]).table("balance", "algorithm = 'round-robin'");
    // Any time up to twenty days: it is as good as certain that the test is over before.
    let web = web.table("retry", "backoff = { base = '20days' }").table("timeouts", "response = '30days'");
    let logged = Logged::start(web);
    let mut client = logged.tidegate().client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    logged.tidegate().wait_for_outcome("5xx", 1);
    drop(client);
    let fields = json!({ "bytes_out": 0, "has_head": true, "outcome": "5xx", "attempts": 1 });
    logged.expect(attempted(bad.address, fields));
}
